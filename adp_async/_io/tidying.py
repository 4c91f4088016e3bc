"""Waits for the end of tasks, however often the waiting is cancelled."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Coroutine, Iterable
    from typing import Any


async def ended(doing: Collection[asyncio.Future[Any]], seconds: float = float("inf")) -> bool:
    """Wait until *doing* has ended, for at most *seconds*, however often this is cancelled.

    Returns whether it has.  The cancellation is swallowed: the caller has one to raise already.
    """
    ends_at = time.monotonic() + seconds
    while not all(each.done() for each in doing):
        left = ends_at - time.monotonic()
        if left <= 0.0:
            return False
        with suppress(asyncio.CancelledError):
            await asyncio.wait(doing, timeout=None if left == float("inf") else left)
    return True


async def first_end(runs: Iterable[Coroutine[Any, Any, None]]) -> BaseException:
    """Run these until one ends, or this task is cancelled; stop the others, and return why."""
    tasks = [asyncio.create_task(run) for run in runs]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError as error:
        await _stopped(tasks)
        return error
    await _stopped(tasks)
    first = next(iter(done))
    if first.cancelled():
        return asyncio.CancelledError("its task was cancelled")
    return first.exception() or AssertionError("it returned")


async def _stopped(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel *tasks* and wait for their end, however often somebody cancels this."""
    for task in tasks:
        task.cancel()
    await ended(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # mark it as retrieved
