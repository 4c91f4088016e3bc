"""What is different where a person is looking: a notebook, in which cells are run twice."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

from adp_async._io.log import logger

if TYPE_CHECKING:
    from adp_async._io.lifetime import Lifetime
    from adp_async.settings import Settings


class Opened(Protocol):
    """What a session is made of, once it is open."""

    settings: Settings

    @property
    def lifetime(self) -> Lifetime: ...


#: Sessions that were opened here, and whether their face is the blocking one.
_opened: WeakKeyDictionary[Opened, bool] = WeakKeyDictionary()
_has_warned = False


def is_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython: Any = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


def tell(line: str) -> None:
    """Show *line* where a person is looking: below the cell of a notebook, or in a terminal."""
    try:
        if is_notebook():
            print(line)
        elif sys.stderr is not None and sys.stderr.isatty():
            print(line, file=sys.stderr)
    except (OSError, ValueError) as error:  # it is closed, or gone
        logger.debug("%r could not be shown: %s", line, error)


def warn_of_another(engine: Opened, *, is_blocking: bool) -> None:
    """Warn, once, when a notebook opens a session although one like it is open."""
    global _has_warned
    if _has_warned or not is_notebook():
        return
    alike = [
        each
        for each, is_other_blocking in _opened.items()
        if is_other_blocking is is_blocking
        and each.lifetime.is_open
        and each.settings == engine.settings
    ]
    _opened[engine] = is_blocking
    if alike:
        _has_warned = True
        logger.warning(
            "this notebook has another open session with the same settings: was the cell run twice?"
        )
