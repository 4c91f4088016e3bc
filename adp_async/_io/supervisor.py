"""Keeps tasks running that should never end by themselves."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from adp_async._io.log import logger
from adp_async._io.tidying import first_end

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

#: Delivery is started again when it ends, but not more often than this within so many seconds.
MOST_CRASHES: Final = 10
CRASH_TIME: Final = 10.0


async def supervise(
    start: Callable[[], list[Coroutine[Any, Any, None]]], is_over: Callable[[], bool]
) -> BaseException | None:
    """Run the coroutines of *start* side by side, and start them again when one of them ends.

    Returns None when one ends after *is_over*.  Any other end is a mistake of ours, or of foreign
    code that they call, such as a logging handler or a cancelled task: after too many in a short
    time the last one is returned.
    """
    crashes: list[float] = []
    while True:
        ended = await first_end(start())
        if is_over():
            return None
        now = time.monotonic()
        crashes = [*(each for each in crashes if each > now - CRASH_TIME), now]
        if len(crashes) > MOST_CRASHES:
            return ended
        logger.error("delivery ended unexpectedly and starts again: %s", _named(ended))


def _named(error: BaseException) -> str:
    return f"{type(error).__name__} ({error})" if str(error) else type(error).__name__
