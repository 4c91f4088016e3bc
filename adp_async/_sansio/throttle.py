"""The hold and the rate that all calls of a session share.

Limits are per user and service, so a 429 to one call is news for every call.  It starts a *hold*,
during which nobody sends, and it teaches the *limit* that paces what follows.

The law: between two 429s the rate follows the curve of CUBIC (RFC 9438, section 4.2), with a rate
in place of a window.  It resumes a little below the limit, is back at it after a *plateau* of 50
requests, and grows beyond it, the faster the longer no 429 comes.  A 429 makes the rate it refused
the limit, times the share of requests that get through, which the rule of succession (Laplace)
estimates as (n + 1) / (n + 2) when n got through since the last one: a rare 429 costs little, a
frequent one much.  When several are refused in a row, each of them counts, and each doubles the
hold, up to a few seconds.

The first limit is what got through within a second before the first 429.  When that is next to
nothing, the limit is searched for as in TCP's slow start: from one request a second on, the rate
doubles with each that gets through, and is halved by each that does not, until a 429 ends a rise.
After that a plateau is a tenth as long, since a search may end by chance.  Before the first 429
there is no rate and nothing is paced.

When 429s stay frequent for all that, others use the same quota: then a `Timetable` says when
requests leave, until there is room for more than its turns.

A hold lasts for one turn, or as long as the service asks, and a random part of a turn on top, so
that throttled clients don't come back as one herd.  Where a turn is not used, for want of records,
nothing is learned: the rate does not grow in that time (as in RFC 7661).

Why CUBIC's curve with the fifth power: it stays near the limit for as long as with the third, and
leaves it behind in two thirds of the time when the quota was lifted.

Why no look for a lifted quota sooner: each look may be answered by a 429, so that their number is
bounded by the share of requests that may be refused, and they are the rarer the lower the rate.
"""

from __future__ import annotations

from collections import deque
from math import exp
from typing import Final

from attrs import define, field

from adp_async._sansio.retry import RetryPolicy
from adp_async._sansio.timetable import Timetable

#: Requests that a plateau lasts, which bounds the share that is refused, and the most seconds: a
#: low rate is often a share of a quota, and should not wait for minutes to get more.
PLATEAU_REQUESTS: Final = 50.0
LONGEST_PLATEAU: Final = 25.0
#: In the first plateau after a search, which one unlucky request may have ended, a request counts
#: for so many.
TRIAL_WEIGHT: Final = 10
#: A plateau is at least so many times what ``Retry-After`` asks for, times its requests: in a hold
#: nothing is sent.
HOLDS: Final = 0.4
#: The shape of the curve: how far below the limit it begins, and its power.
DIP: Final = 0.05
POWER: Final = 5
#: The longest hold, in seconds, that 429s in a row double a turn to; a turn may be longer.
LONGEST_DOUBLED: Final = 4.0
#: When usually fewer requests get through between two 429s, others use the quota as well.
SHARED: Final = 20.0
#: The weight of the last time in what is usual.
LAST_TIME: Final = 0.25
#: A rate this many times what it began with bounds nothing any more.
LIFTED: Final = 1000.0
#: The lowest rate, as a share of the one that a search begins with.
LOWEST: Final = 0.1
#: Where all requests are refused, records wait so many turns longer for company; where only a share
#: of them is, that share of it.
PATIENT_TURNS: Final = 8.0
#: Up to this share of an interval a request that leaves late is made up for by the next.
SLACK: Final = 0.05


@define(eq=False, repr=False)
class Throttle:
    """When may the next request leave?

    >>> throttle = Throttle()
    >>> throttle.delay(now=0.0)
    0.0
    >>> throttle.refused(departed=0.0, now=0.1, jitter=0.5, retry_after=7.0)
    >>> round(throttle.delay(now=1.1), 3)
    6.5
    """

    policy: RetryPolicy = field(factory=RetryPolicy)
    #: Monotonic time until which nobody sends.
    held_until: float = field(default=0.0, init=False)
    throttled: int = field(default=0, init=False)
    _next_turn: float = field(default=0.0, init=False)
    #: The service's limit as far as known, in requests a second; None before the first 429.
    _limit: float | None = field(default=None, init=False)
    #: Whether it is still searched for; whether what was found is tried out.
    _searches: bool = field(default=False, init=False)
    _tries: bool = field(default=False, init=False)
    #: Seconds until the rate is back at the limit; from when on, the time of unused turns added.
    _plateau: float = field(default=0.0, init=False)
    _resumed_at: float = field(default=0.0, init=False)
    #: When the last 429 came that told something new; how many came in a row, and how many requests
    #: got through before them.
    _refused_at: float = field(default=0.0, init=False)
    _in_a_row: int = field(default=0, init=False)
    _succeeded: int = field(default=0, init=False)
    #: How many requests get through between two 429s usually: a moving average.
    _usual: float = field(default=0.0, init=False)
    #: The turns in a quota that others use as well.
    _timetable: Timetable | None = field(default=None, init=False)
    #: When the last requests got through.
    _recent: deque[float] = field(factory=lambda: deque(maxlen=1024), init=False)

    def delay(self, now: float) -> float:
        """Seconds until a request may leave; 0 when one may leave now."""
        turn = self._next_turn if self._timetable is None else self._timetable.next_turn
        return max(0.0, self.held_until - now, turn - now)

    def depart(self, now: float) -> None:
        """A request leaves now; the next one has its turn one interval later.

        One that leaves a little late (a timer, a busy loop) is made up for; more than that would
        be refused by a strict service.
        """
        if self._timetable is not None:
            self._timetable.depart(now)
            return
        rate = self.rate(now)
        if rate is None:
            self._next_turn = 0.0
            return
        turn = max(self._next_turn, self.held_until)
        if now - turn >= SLACK / rate:
            self._resumed_at = min(now, self._resumed_at + now - turn)
            turn = now
        self._next_turn = turn + 1.0 / rate

    def rate(self, now: float) -> float | None:
        """Requests a second that may leave; None while nothing bounds it."""
        if self._timetable is not None:
            return self._timetable.rate(now)
        limit = self._limit
        if limit is None:
            return None
        rate = limit if self._searches else limit * self._growth(now)
        if rate > LIFTED * (self._first_rate if self._searches else limit):
            self._limit = None
            return None
        return rate

    def patience(self, now: float) -> float:
        """Seconds that records may wait longer for company, since their requests are refused."""
        rate = self.rate(now)
        if rate is None:
            return 0.0
        answers = self._succeeded + self._in_a_row
        return PATIENT_TURNS / rate * (self._in_a_row + 1) / (answers + 2)

    def held_since(self, now: float) -> float | None:
        """When the 429 came that holds everything now; None without a hold."""
        return self._refused_at if self.held_until > now else None

    @property
    def is_paced(self) -> bool:
        """Whether a rate bounds what leaves."""
        return self._limit is not None

    @property
    def _first_rate(self) -> float:
        return 1.0 / min(1.0, self.policy.first_backoff)

    def _growth(self, now: float) -> float:
        plateaus = max(0.0, now - self._resumed_at) / self._plateau
        return exp(DIP * min(plateaus - 1.0, 4.0) ** POWER)

    def succeeded(self, *, departed: float, now: float) -> None:
        """A reply that was not a 429 came to a request that left at *departed*."""
        self._recent.append(now)
        if now < self.held_until:
            return  # it left before the 429 came
        if self._in_a_row:
            self._in_a_row = self._succeeded = 0
        self._succeeded += TRIAL_WEIGHT if self._tries else 1
        if self._timetable is not None:
            self._timetable.succeeded(departed, now)
            if self._timetable.has_room:
                self._leave(self._timetable, now)
        elif self._searches and self._limit is not None:
            self._limit *= 2.0

    def refused(
        self, *, departed: float, now: float, jitter: float, retry_after: float | None = None
    ) -> None:
        """A 429 came for a request that left at *departed*; *jitter* is a draw from [0, 1)."""
        self.throttled += 1
        asked = retry_after or 0.0
        if departed < self.held_until:
            # It was under way when the last 429 came: the same news, but for what it asks.
            if asked:
                self.held_until = self._resumed_at = max(self.held_until, now + asked)
            return
        if self._timetable is not None and not self._timetable.is_filling(now):
            self._give_up_turn(self._timetable, departed, now, asked, jitter)
        else:
            self._learn(departed, now, asked, jitter)

    def _give_up_turn(
        self, timetable: Timetable, departed: float, now: float, asked: float, jitter: float
    ) -> None:
        timetable.refused(departed, now, jitter)
        # The other turns are as good as they were, unless several are refused in a row.
        hold = self._backed_off(1.0 / self._first_rate, self._in_a_row) if self._in_a_row else 0.0
        self._in_a_row += 1
        self._hold(now, asked, hold, jitter)
        timetable.skip(self.held_until)
        if timetable.is_undisputed:
            self._leave(timetable, self.held_until)

    def _learn(self, departed: float, now: float, asked: float, jitter: float) -> None:
        rate, searched = self.rate(departed), self._searches
        self._in_a_row += 1
        limit = self._first_limit(now) if rate is None else self._learned(rate)
        self._limit = max(LOWEST * self._first_rate, limit)
        turn = 1.0 / (self._first_rate if rate is None else self._limit)
        self._begin_plateau(tries=searched and rate is not None and not self._searches, asked=asked)
        hold = turn if self._searches else self._backed_off(turn, self._in_a_row)
        self._hold(now, asked, hold, jitter)
        self._resumed_at, self._next_turn = self.held_until, 0.0
        if rate is not None and not searched:
            if self._in_a_row == 1:
                self._usual += LAST_TIME * (self._succeeded - self._usual)
            if self._timetable is None and self._usual < SHARED:
                self._timetable = Timetable(now)
        if self._timetable is not None:
            first = max(self.held_until, now + jitter / self._limit)
            self._timetable.fill(self._limit, first)

    def _leave(self, timetable: Timetable, now: float) -> None:
        """Do without *timetable* from *now* on: the rate goes on from what it came to."""
        self._limit, self._timetable = timetable.rate(now), None
        self._resumed_at = self._next_turn = now
        self._usual = 2.0 * SHARED
        self._begin_plateau(tries=False)

    def _begin_plateau(self, *, tries: bool, asked: float = 0.0) -> None:
        """A new plateau begins; *tries*: the limit was found by a search."""
        limit = self._limit or self._first_rate
        self._tries = tries
        requests = PLATEAU_REQUESTS / (TRIAL_WEIGHT if tries else 1)
        self._plateau = max(min(requests / limit, LONGEST_PLATEAU), requests * HOLDS * asked)

    def _hold(self, now: float, asked: float, seconds: float, jitter: float) -> None:
        self.held_until = now + max(asked, seconds) + jitter * seconds
        self._refused_at = now

    def _first_limit(self, now: float) -> float:
        burst = sum(time > now - 1.0 for time in self._recent)
        self._in_a_row, self._succeeded, self._usual = 1, burst, max(SHARED, burst)
        self._searches = burst < 2
        return max(self._first_rate, float(burst))

    def _learned(self, rate: float) -> float:
        """The limit, as a 429 to a request tells it that left at *rate*."""
        if self._searches:
            self._searches = self._in_a_row > 1
            # What was refused left half of *rate* after the one before it, which got through and
            # had left half of that.
            return rate / (2.0 if self._searches else 4.0)
        answers = self._succeeded + self._in_a_row
        refused = rate if self._in_a_row == 1 else self._limit or rate
        return refused * answers / (answers + 1)

    def _backed_off(self, turn: float, in_a_row: int) -> float:
        doubled = turn * 2.0 ** min(in_a_row - 1, 32)
        return min(doubled, max(turn, min(LONGEST_DOUBLED, self.policy.max_backoff)))
