"""How far a wait is: measured from the counts of a delivery, and told at the interpreter's end."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from attrs import define, field

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


@define(eq=False)
class Measure:
    """How far *delivery* is with what is waited for, from `begin` on; see `Wait`.  Any thread.

    *what*: whose wait it is, of one run or of all.  *limit*: the seconds after which it ends by
    itself.  *uploads* counts the artifacts that are on their way.
    """

    delivery: Delivery
    what: str
    run_id: str | None = None
    limit: float | None = field(default=None, kw_only=True)
    uploads: Callable[[], int] = field(default=int, kw_only=True)
    _since: float = field(default=0.0, init=False)
    _delivered: int = field(default=0, init=False)
    _lost: int = field(default=0, init=False)

    def begin(self) -> None:
        """What was settled before now does not count."""
        self._since = time.monotonic()
        self._delivered, self._lost = _settled(self.delivery, self.run_id)

    def now(self) -> Wait:
        """How it stands."""
        stats = counted(self.delivery, self.run_id)
        delivered = stats.delivered - self._delivered
        lost = sum(stats.rejected.values()) + stats.dropped - self._lost
        now, trouble = time.monotonic(), self.delivery.trouble
        return Wait(
            self.what,
            delivered=delivered,
            lost=lost,
            total=delivered + lost + stats.undelivered,
            uploads=self.uploads(),
            elapsed=now - self._since,
            limit=self.limit,
            held=max(0.0, self.delivery.throttle.held_until - now),
            error=None if trouble is None else _brief(trouble),
        )


def _settled(delivery: Delivery, run_id: str | None) -> tuple[int, int]:
    """How many records were delivered before, and refused or dropped; without counting the rest."""
    lost = delivery.leftovers.lost
    lane = None if run_id is None else delivery.intake.lane(run_id)
    of = delivery.accumulator if lane is None else lane
    ended = lost.total() if lane is None else lost[lane.key]
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
    measure.begin()
    timer = asyncio.get_running_loop().call_later(AFTER, partial(_tell, measure))
    try:
        return await doing
    finally:
        timer.cancel()


def _tell(measure: Measure) -> None:
    wait = measure.now()
    logger.info("%s", line(wait))
    tell(line(wait))
