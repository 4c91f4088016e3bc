"""Tidying up that a cancelled task does all the same."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any


async def ended(doing: Collection[asyncio.Future[Any]], seconds: float = float("inf")) -> bool:
    """Until *doing* has ended, for at most so many *seconds*, however often this is cancelled.

    Whether it has.  The cancellation is forgotten: for whoever has one to raise already.
    """
    ends_at = time.monotonic() + seconds
    while not all(each.done() for each in doing):
        left = ends_at - time.monotonic()
        if left <= 0.0:
            return False
        with suppress(asyncio.CancelledError):
            await asyncio.wait(doing, timeout=None if left == float("inf") else left)
    return True
