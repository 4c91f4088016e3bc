"""Turns that are kept from one period to the next, by clients that share a quota.

Clients that know nothing of each other collide by chance, and go on colliding for as long as all of
them keep changing when they send.  So a request that got through is followed by another exactly one
period later, as in Reservation ALOHA (Crowther and others, 1973): what fitted between the requests
of the others once fits again.  A request that is refused gives up its turn, and another moment is
tried.  After some periods most requests have a turn that nobody disputes.

*Trials* are requests without a turn.  In the first period, which is filled at a given rate, all
requests are trials.  Later they are rare, and look for room: each that gets through about halves
the pause before the next, and a 429 makes it the longest again.  When trials get through as fast as
turns come, there is room for more than turns; when trials alone are refused for long, there are no
other clients.  In both cases the timetable has done its work.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from math import ceil
from typing import Final

from attrs import define, field

#: Seconds from a request to the next one in the same turn.  Whole seconds, so that a quota that is
#: counted by the clock repeats itself as well.
PERIOD: Final = 10.0
#: The longest pause between two trials, in requests and in seconds; and that without any turn.
PAUSE_REQUESTS: Final = 70.0
LONGEST_PAUSE: Final = 70.0
LONGEST_WITHOUT_TURN: Final = 20.0
#: By how much one that gets through shortens the pause.  Not by half, since pauses that are whole
#: periods would bring each trial to the turn of the last one.
SHORTENED: Final = 0.47
#: When so many trials in a row are refused and no turn is lost, nobody else seems to be there.
UNDISPUTED: Final = 3


@define(eq=False)
class Timetable:
    """When requests leave that share a quota with those of others, from *began_at* on.

    >>> timetable = Timetable(began_at=0.0)
    >>> timetable.fill(rate=0.5, first=1.0)
    >>> timetable.depart(now=1.0)
    >>> timetable.succeeded(departed=1.0, now=1.1)
    >>> timetable.next_turn  # the first period is filled
    3.0
    >>> timetable.depart(now=3.0)
    >>> timetable.refused(departed=3.0, now=3.1, jitter=0.5)
    """

    began_at: float
    _rate: float = field(default=1.0, init=False)
    #: When requests have a turn next, in ascending order.
    _turns: list[float] = field(factory=list, init=False)
    _trial_at: float = field(default=0.0, init=False)
    _pause: float = field(default=LONGEST_PAUSE, init=False)
    #: Trials that were refused since a turn was lost, or a trial got through.
    _undisputed: int = field(default=0, init=False)

    def fill(self, rate: float, first: float) -> None:
        """Fill the first period with *rate* requests a second; the next one leaves at *first*."""
        self._rate, self._trial_at = rate, first

    def is_filling(self, now: float) -> bool:
        """Whether this is the first period."""
        return now < self.began_at + PERIOD

    @property
    def next_turn(self) -> float:
        """When the next request may leave."""
        return min(self._turns[0], self._trial_at) if self._turns else self._trial_at

    def rate(self, now: float) -> float:
        """Requests a second that leave, more or less: trials are not paced."""
        return self._rate if self.is_filling(now) else len(self._turns) / PERIOD + 1.0 / self._pause

    @property
    def has_room(self) -> bool:
        """Whether trials get through as fast as turns come."""
        return self._pause * (len(self._turns) + 1.0) < PERIOD

    @property
    def is_undisputed(self) -> bool:
        """Whether nothing but trials is refused for long: nobody else seems to be there."""
        return len(self._turns) > 1 and self._undisputed >= UNDISPUTED

    def depart(self, now: float) -> None:
        """A request leaves now: in its turn, or late, in one that was not used; or as a trial."""
        if due := bisect_right(self._turns, now):
            del self._turns[due - 1]
            self.skip(now)
            insort(self._turns, now + PERIOD)
        else:
            self._trial_at = now + self._pause
        if self.is_filling(now):
            self._trial_at, self._pause = now + 1.0 / self._rate, self._longest_pause

    def succeeded(self, departed: float, now: float) -> None:
        """The request that left at *departed* got through: so does the next in its turn."""
        turn = departed + PERIOD
        if self._has(turn):
            return
        insort(self._turns, turn)
        self._undisputed = 0
        if not self.is_filling(now):
            self._pause *= SHORTENED
            self._trial_at = departed + self._pause

    def refused(self, departed: float, now: float, jitter: float) -> None:
        """A 429 came for the request that left at *departed*: it gives up its turn, if it has one.

        *jitter* is a draw from [0, 1).
        """
        turn = departed + PERIOD
        if self._has(turn):
            self._turns.remove(turn)
            self._undisputed = 0
            pause = PERIOD * jitter  # it looks for another turn soon
        else:
            self._undisputed += 1
            pause = self._longest_pause * (0.5 + jitter)
        self._pause = self._longest_pause
        self._trial_at = now + pause

    def skip(self, until: float) -> None:
        """Nothing leaves before *until*: turns before that are kept for a later period."""
        while self._turns and self._turns[0] < until:
            turn = self._turns.pop(0)
            insort(self._turns, turn + PERIOD * ceil((until - turn) / PERIOD))

    @property
    def _longest_pause(self) -> float:
        if not self._turns:
            return LONGEST_WITHOUT_TURN
        return min(PAUSE_REQUESTS * PERIOD / len(self._turns), LONGEST_PAUSE)

    def _has(self, turn: float) -> bool:
        place = bisect_left(self._turns, turn)
        return place < len(self._turns) and self._turns[place] == turn
