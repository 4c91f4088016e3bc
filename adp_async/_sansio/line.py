"""The line in which lanes wait for their turn: in the order in which they become ready.

Lanes in trouble (the last attempt failed) stand in a line of their own, so that they neither stop
the others nor are forgotten.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING, TypeAlias

from attrs import define, field

if TYPE_CHECKING:
    from adp_async._sansio.lane import Lane

#: Of so many lanes one is in trouble, when others are ready all the time.
SHARE_OF_TROUBLE = 8

_Entry: TypeAlias = "tuple[float, int, Lane]"


@define(eq=False, repr=False)
class Line:
    """Lanes by the time at which they are ready.  A lane stands in it once, at its last place."""

    _healthy: list[_Entry] = field(factory=list, init=False)
    _troubled: list[_Entry] = field(factory=list, init=False)
    _entries: int = field(default=0, init=False)
    #: Healthy lanes taken since the last one in trouble.
    _in_a_row: int = field(default=0, init=False)

    @property
    def length(self) -> int:
        """Places in it, also those that were given up since."""
        return len(self._healthy) + len(self._troubled)

    def put(self, lane: Lane, ready_at: float | None) -> None:
        """*lane* is ready at that time; None when it has nothing that may leave."""
        lane.ready_at = ready_at
        lane.is_troubled = lane.failures > 0
        self._entries += 1
        lane.entry = self._entries
        if ready_at is not None:
            entries = self._troubled if lane.is_troubled else self._healthy
            heappush(entries, (ready_at, self._entries, lane))

    def clear(self) -> None:
        self._healthy.clear()
        self._troubled.clear()

    def first_healthy(self) -> float | None:
        """When the first lane is ready of which no attempt has failed lately."""
        return _first(self._healthy)

    def first_troubled(self) -> float | None:
        """The same of those in trouble."""
        return _first(self._troubled)

    def first(self) -> float | None:
        """When the first lane is ready."""
        times = [
            each for each in (_first(self._healthy), _first(self._troubled)) if each is not None
        ]
        return min(times, default=None)

    def take(self, now: float, *, healthy: bool = True, troubled: bool = True) -> Lane | None:
        """The lane whose turn it is *now*, of those that may have one."""
        is_healthy = healthy and _is_ready(self._healthy, now)
        is_troubled = troubled and _is_ready(self._troubled, now)
        if is_troubled and (not is_healthy or self._in_a_row >= SHARE_OF_TROUBLE):
            self._in_a_row = 0
            return self._taken(self._troubled[0][2])
        if is_healthy:
            self._in_a_row += 1
            return self._taken(self._healthy[0][2])
        return None

    def take_proven(self, now: float) -> Lane | None:
        """The healthy lane to try when the service may be down: one that it took batches of."""
        ready = [each for each in self._healthy if each[0] <= now and each[2].entry == each[1]]
        if not ready:
            return None
        return self._taken(min(ready, key=lambda each: (not each[2].delivered, each[:2]))[2])

    def _taken(self, lane: Lane) -> Lane:
        lane.ready_at = None
        lane.entry = 0
        return lane


def _first(entries: list[_Entry]) -> float | None:
    while entries and entries[0][2].entry != entries[0][1]:
        heappop(entries)  # the lane has been given another time since
    return entries[0][0] if entries else None


def _is_ready(entries: list[_Entry], now: float) -> bool:
    first = _first(entries)
    return first is not None and first <= now
