"""The line in which lanes wait for their turn, in the order in which they become ready.

Lanes in trouble (the last attempt failed) have a line of their own, so that they neither hold up
the others nor are forgotten.  In either line at most two turns of three go to new lanes, which have
delivered nothing yet, and to those whose trouble lasts: so a thousand run ids that don't exist
don't hold up a run that does, or one that failed once.

Under a quota a request costs a turn, whatever it holds.  So lanes with a full one go before those
with a part of one, which have every fourth turn all the same.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING, TypeAlias

from attrs import define, field

if TYPE_CHECKING:
    from adp_async._sansio.lane import Lane

#: One turn in so many goes to a lane in trouble, while others are always ready.
SHARE_OF_TROUBLE = 8
#: After so many failures in a row the trouble of a lane lasts.
LASTING = 8
#: At most so many new lanes, or lanes whose trouble lasts, go in a row while others are ready.
MOST_IN_A_ROW = 2
#: Under a quota at most so many full requests go in a row while other lanes are ready.
MOST_FULL_IN_A_ROW = 3

_Entry: TypeAlias = "tuple[float, int, Lane]"


@define(eq=False, repr=False)
class Line:
    """Lanes by the time at which they are ready.  Each is in it once, at its latest place."""

    #: Whether full requests go first: under a quota.
    full_first: bool = field(default=False, init=False)
    _full: list[_Entry] = field(factory=list, init=False)
    _proven: list[_Entry] = field(factory=list, init=False)
    _new: list[_Entry] = field(factory=list, init=False)
    _troubled: list[_Entry] = field(factory=list, init=False)
    _lasting: list[_Entry] = field(factory=list, init=False)
    _entries: int = field(default=0, init=False)
    #: Healthy lanes taken since the last one in trouble.
    _in_a_row: int = field(default=0, init=False)
    #: Full ones in a row, new ones in a row, and lanes whose trouble lasts in a row.
    _full_in_a_row: int = field(default=0, init=False)
    _new_in_a_row: int = field(default=0, init=False)
    _lasting_in_a_row: int = field(default=0, init=False)

    @property
    def length(self) -> int:
        """The number of entries, including outdated ones."""
        return sum(map(len, self._all))

    @property
    def _all(self) -> tuple[list[_Entry], ...]:
        return self._full, self._proven, self._new, self._troubled, self._lasting

    def put(self, lane: Lane, ready_at: float | None) -> None:
        """*lane* is ready at that time, or has nothing that may leave (None)."""
        lane.ready_at = ready_at
        lane.stands_in = self.entries_for(lane)
        self._entries += 1
        lane.entry = self._entries
        if ready_at is not None:
            heappush(lane.stands_in, (ready_at, self._entries, lane))

    def entries_for(self, lane: Lane) -> list[_Entry]:
        """Which of the lines is that of *lane* now."""
        if lane.failures:
            is_passing = lane.delivered and lane.failures <= LASTING
            return self._troubled if is_passing else self._lasting
        if not lane.delivered:
            return self._new
        return self._full if lane.is_full else self._proven

    def clear(self) -> None:
        for entries in self._all:
            entries.clear()

    def first_healthy(self) -> float | None:
        """When the first lane that is not in trouble is ready."""
        proven = _earlier(_first(self._full), _first(self._proven))
        return _earlier(proven, _first(self._new))

    def first_troubled(self) -> float | None:
        """When the first lane in trouble is ready."""
        return _earlier(_first(self._troubled), _first(self._lasting))

    def first(self) -> float | None:
        """When the first lane is ready."""
        return _earlier(self.first_healthy(), self.first_troubled())

    def take(self, now: float, *, healthy: bool = True, troubled: bool = True) -> Lane | None:
        """The lane whose turn it is *now*, or None."""
        entries = self._healthy(now) if healthy else None
        trouble = self._trouble(now) if troubled else None
        if trouble is not None and (entries is None or self._in_a_row >= SHARE_OF_TROUBLE):
            self._in_a_row = 0
            self._lasting_in_a_row = self._lasting_in_a_row + 1 if trouble is self._lasting else 0
            return _taken(trouble)
        if entries is None:
            return None
        self._in_a_row += 1
        self._new_in_a_row = self._new_in_a_row + 1 if entries is self._new else 0
        self._full_in_a_row = self._full_in_a_row + 1 if entries is self._full else 0
        return _taken(entries)

    def _healthy(self, now: float) -> list[_Entry] | None:
        if self.full_first and _is_ready(self._full, now):
            if self._full_in_a_row < MOST_FULL_IN_A_ROW:
                return self._full
            return self._turn(now, self._proven, self._new, self._new_in_a_row) or self._full
        proven = self._turn(now, self._full, self._proven, 0) or self._proven
        return self._turn(now, proven, self._new, self._new_in_a_row)

    def _trouble(self, now: float) -> list[_Entry] | None:
        return self._turn(now, self._troubled, self._lasting, self._lasting_in_a_row)

    def _turn(
        self, now: float, preferred: list[_Entry], other: list[_Entry], others_in_a_row: int
    ) -> list[_Entry] | None:
        """Of two lines, the one whose first lane is ready and has waited longer."""
        ready = [each for each in (preferred, other) if _is_ready(each, now)]
        if len(ready) < 2:
            return ready[0] if ready else None
        return preferred if others_in_a_row >= MOST_IN_A_ROW else min(ready, key=_place)

    def take_proven(self, now: float) -> Lane | None:
        """The healthy lane to try when the service may be down: it has delivered batches before."""
        for entries in (self._full, self._proven, self._new):
            if _is_ready(entries, now):
                return _taken(entries)
        return None


def _taken(entries: list[_Entry]) -> Lane:
    lane = entries[0][2]
    lane.ready_at = None
    lane.entry = 0
    return lane


def _place(entries: list[_Entry]) -> tuple[float, int]:
    return entries[0][:2]


def _first(entries: list[_Entry]) -> float | None:
    while entries and entries[0][2].entry != entries[0][1]:
        heappop(entries)  # outdated: the lane has got another time since
    return entries[0][0] if entries else None


def _earlier(one: float | None, other: float | None) -> float | None:
    return min((each for each in (one, other) if each is not None), default=None)


def _is_ready(entries: list[_Entry], now: float) -> bool:
    first = _first(entries)
    return first is not None and first <= now
