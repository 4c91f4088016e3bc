"""How much was logged, and what became of it: counted from the lanes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from attrs import field, frozen

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from adp_async._sansio.lane import Lane

__all__ = ["Stats"]


@frozen
class Stats:
    """How much was logged, and what became of it.

    *accepted* is the sum of *delivered*, *rejected*, *dropped*, *waiting*, *in_flight* and
    *spooled*.  *rejected* counts by the class of the error, *dropped* what found no room, what was
    discarded, and what a session without a spool had left when it ended.  *spooled* is on disk
    only, after the end for the next session.  *requests*, *retries* and *throttled* (429s) count
    log-batch requests of the whole session.  *oldest*: seconds the oldest record has waited, 0
    when none does.
    """

    accepted: int = 0
    delivered: int = 0
    rejected: Mapping[str, int] = field(factory=dict)
    dropped: int = 0
    waiting: int = 0
    in_flight: int = 0
    spooled: int = 0
    requests: int = 0
    retries: int = 0
    throttled: int = 0
    oldest: float = 0.0

    @property
    def undelivered(self) -> int:
        """Records that are still on their way."""
        return self.waiting + self.in_flight + self.spooled


def oldest(lanes: Iterable[Lane]) -> float:
    """Seconds that the oldest record of *lanes* has waited, 0 when none does."""
    # Copies, taken at once: another thread may ask while the delivery thread changes them.
    firsts = [since for lane in lanes if (since := lane.since()) is not None]
    return max(0.0, time.monotonic() - min(firsts)) if firsts else 0.0
