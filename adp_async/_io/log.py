"""The logger ``adp_async``, for code that must survive whatever handlers do."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    _Adapter = logging.LoggerAdapter[logging.Logger]
else:
    _Adapter = logging.LoggerAdapter


class _Undisturbed(_Adapter):
    """A handler or a filter that raises costs a log line, not delivery or a ``log_*`` call."""

    def log(self, level: int, msg: object, *args: object, **named: Any) -> None:
        try:
            # (2: the caller, not this line.)
            self.logger.log(level, msg, *args, stacklevel=2, **named)
        except Exception:  # there is nowhere else to report it
            return


logger = _Undisturbed(logging.getLogger("adp_async"), {})
