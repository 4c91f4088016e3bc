"""Who hears that a session is about to close, while it still accepts everything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adp_async._io.ending import watch
from adp_async._io.log import logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from adp_async._sansio.statuses import EndStatus

    Hook = Callable[[EndStatus | None], object]


class CloseHooks:
    """Called once each, the last one first.  Any thread."""

    def __init__(self) -> None:
        self._hooks: dict[object, Hook] = {}

    def add(self, hook: Hook) -> Callable[[], None]:
        """Have *hook* called; what is returned takes that back."""
        if not callable(hook):
            raise TypeError(f"a close hook is a function, not {type(hook).__name__}")
        watch()  # so that it can be told how the process ends
        entry = object()
        self._hooks[entry] = hook

        def forget() -> None:
            self._hooks.pop(entry, None)

        return forget

    def run(self, status: EndStatus | None) -> None:
        """Call them.  What one raises is an error in the log, and keeps nobody from closing."""
        while self._hooks:
            try:
                _, hook = self._hooks.popitem()
            except KeyError:  # another thread took the last
                return
            try:
                hook(status)
            except Exception:
                logger.exception("a close hook of the session failed")

    def forked(self) -> None:
        """In a forked child: they are the parent's."""
        self._hooks = {}
