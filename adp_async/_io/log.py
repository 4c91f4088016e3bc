"""The logger ``adp_async`` for code that must go on whatever the handlers of others do."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    _Adapter = logging.LoggerAdapter[logging.Logger]
else:
    _Adapter = logging.LoggerAdapter


class _Undisturbed(_Adapter):
    """A handler or a filter that raises costs its line, and neither delivery nor a ``log_*``."""

    def log(self, level: int, msg: object, *args: object, **named: Any) -> None:
        try:
            # (2: the caller, not this line.)
            self.logger.log(level, msg, *args, stacklevel=2, **named)
        except Exception:  # there is no other place to say it
            return


logger = _Undisturbed(logging.getLogger("adp_async"), {})
