"""The logger ``adp_async``, for code that must survive whatever handlers do.

Every line has the attributes *run_id*, *operation*, *status* and *request_id*, so that a format may
name them and a structured log can be searched by them.  What is known beside the message comes as
``extra``; what an error among the arguments knows is read from it; the rest is None.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from adp_async.errors import AdpError, Rejection

if TYPE_CHECKING:
    from collections.abc import Iterator

    _Adapter = logging.LoggerAdapter[logging.Logger]
else:
    _Adapter = logging.LoggerAdapter

FIELDS: Final = ("run_id", "operation", "status", "request_id")


class _Fields(logging.Filter):
    """Completes the fields of a line, also of one that was logged elsewhere in the package."""

    def filter(self, record: logging.LogRecord) -> bool:
        known = record.__dict__
        known.update((name, known.get(name) or None) for name in FIELDS)
        given = record.args.values() if isinstance(record.args, dict) else record.args or ()
        for source in _sources(given):
            for name in FIELDS:
                if known[name] is None:
                    known[name] = getattr(source, name, None) or None
        return True


def _sources(given: object) -> Iterator[object]:
    """The errors among the arguments of a line, each with what caused it."""
    for each in given:  # type: ignore[attr-defined]
        if isinstance(each, AdpError | Rejection):
            yield each
            yield getattr(each, "cause", None) or getattr(each, "__cause__", None)


class _Undisturbed(_Adapter):
    """A handler or a filter that raises costs a log line, not delivery or a ``log_*`` call."""

    def log(self, level: int, msg: object, *args: object, **named: Any) -> None:
        try:
            # (2: the caller, not this line.)
            self.logger.log(level, msg, *args, stacklevel=2, **named)
        except Exception:  # there is nowhere else to report it
            return


logger = _Undisturbed(logging.getLogger("adp_async"), {})
logger.logger.addFilter(_Fields())


def is_locked_here() -> bool:
    """Whether this thread is in the middle of a handler that lines of this log go through.

    A signal's handler that waits for the delivery thread then waits for itself: that thread can
    log nothing meanwhile.
    """
    at: logging.Logger | None = logger.logger
    while at is not None:
        if any(_owns(handler.lock) for handler in at.handlers):
            return True
        at = at.parent if at.propagate else None
    return False


def _owns(lock: Any) -> bool:
    is_owned = getattr(lock, "_is_owned", None)  # a handler may have none, or one of its own kind
    return is_owned is not None and bool(is_owned())
