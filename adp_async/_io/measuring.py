"""How far a wait is: measured from the counts of a delivery, and told at the interpreter's end."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from adp_async._io.counting import counted
from adp_async._io.log import logger
from adp_async._io.notebook import tell
from adp_async._sansio.waiting import Wait, line

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from adp_async._io.delivery import Delivery

T = TypeVar("T")

#: Seconds of waiting after which something is shown.
AFTER: Final = 2.0


class Measure:
    """How far *delivery* is with what is waited for, from now on; see `Wait`.  Any thread."""

    def __init__(
        self,
        delivery: Delivery,
        what: str,
        run_id: str | None = None,
        *,
        limit: float | None = None,
        uploads: Callable[[], int] = int,
    ) -> None:
        self._delivery = delivery
        self._what = what
        self._run_id = run_id
        self._limit = limit
        self._uploads = uploads
        self._since = time.monotonic()
        self._delivered, self._lost = _settled(delivery, run_id)

    def now(self) -> Wait:
        """How it stands."""
        stats = counted(self._delivery, self._run_id)
        delivered = stats.delivered - self._delivered
        lost = sum(stats.rejected.values()) + stats.dropped - self._lost
        now, trouble = time.monotonic(), self._delivery.trouble
        return Wait(
            self._what,
            delivered=delivered,
            lost=lost,
            total=delivered + lost + stats.undelivered,
            uploads=self._uploads(),
            elapsed=now - self._since,
            limit=self._limit,
            held=max(0.0, self._delivery.throttle.held_until - now),
            error=None if trouble is None else _brief(trouble),
        )


def _settled(delivery: Delivery, run_id: str | None) -> tuple[int, int]:
    """How many records were delivered before, and refused or dropped; without counting the rest."""
    accumulator = delivery.accumulator
    of = accumulator if run_id is None else delivery.intake.lane(run_id)
    ended = delivery.leftovers.lost.total() if run_id is None else delivery.leftovers.lost[run_id]
    return of.delivered, sum(of.rejected.values()) + of.dropped + ended


def _brief(error: Exception) -> str:
    """*error* without its operation, which is clear, and the ids at its end, which the log has."""
    text = str(error).removeprefix(f"{getattr(error, 'operation', '')}: ")
    return f"{type(error).__name__}: {text.partition(' (opc-request-id')[0]}"


async def told(doing: Coroutine[Any, Any, T], delivery: Delivery, limit: float) -> T:
    """Await *doing*, which takes *limit* seconds at most; after two, say once how far it is.

    For the interpreter's end, when no thread can be started that would show it.
    """
    if not delivery.settings.progress:
        return await doing
    measure = Measure(delivery, "the end of the program", limit=limit)
    timer = asyncio.get_running_loop().call_later(AFTER, partial(_tell, measure))
    try:
        return await doing
    finally:
        timer.cancel()


def _tell(measure: Measure) -> None:
    wait = measure.now()
    logger.info("%s", line(wait))
    tell(line(wait))
