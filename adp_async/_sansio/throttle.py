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

A hold lasts for one turn, or as long as the service asks, and a random part of a turn on top, so
that throttled clients don't come back as one herd.  Where a turn is not used, for want of records,
nothing is learned: the rate does not grow in that time (as in RFC 7661).

Why CUBIC's curve with the fifth power: it stays near the limit for as long as with the third, and
leaves it behind in two thirds of the time when the quota was lifted.
"""

from __future__ import annotations

from collections import deque
from math import exp
from typing import Final

from attrs import define, field

from adp_async._sansio.retry import RetryPolicy

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
    #: When the last requests got through.
    _recent: deque[float] = field(factory=lambda: deque(maxlen=1024), init=False)

    def delay(self, now: float) -> float:
        """Seconds until a request may leave; 0 when one may leave now."""
        return max(0.0, self.held_until - now, self._next_turn - now)

    def depart(self, now: float) -> None:
        """A request leaves now; the next one has its turn one interval later.

        One that leaves a little late (a timer, a busy loop) is made up for; more than that would
        be refused by a strict service.
        """
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

    def succeeded(self, now: float) -> None:
        """A reply came that was not a 429."""
        self._recent.append(now)
        if now < self.held_until:
            return  # it left before the 429 came
        if self._in_a_row:
            self._in_a_row = self._succeeded = 0
        self._succeeded += TRIAL_WEIGHT if self._tries else 1
        if self._searches and self._limit is not None:
            self._limit *= 2.0

    def refused(
        self, *, departed: float, now: float, jitter: float, retry_after: float | None = None
    ) -> None:
        """A 429 came for a request that left at *departed*; *jitter* is a draw from [0, 1)."""
        self.throttled += 1
        asked = retry_after or 0.0
        if departed < self.held_until:
            # It was under way when the last 429 came: the same news, but for what it asks.
            self.held_until = self._resumed_at = max(self.held_until, now + asked)
            return
        rate, searched = self.rate(departed), self._searches
        self._in_a_row += 1
        limit = self._first_limit(now) if rate is None else self._learned(rate)
        self._limit = max(LOWEST * self._first_rate, limit)
        turn = 1.0 / (self._first_rate if rate is None else self._limit)
        self._tries = searched and rate is not None and not self._searches
        requests = PLATEAU_REQUESTS / (TRIAL_WEIGHT if self._tries else 1)
        self._plateau = max(min(requests / self._limit, LONGEST_PLATEAU), requests * HOLDS * asked)
        hold = turn if self._searches else self._backed_off(turn)
        self.held_until = self._resumed_at = now + max(asked, hold) + jitter * hold
        self._refused_at, self._next_turn = now, 0.0

    def _first_limit(self, now: float) -> float:
        burst = sum(time > now - 1.0 for time in self._recent)
        self._in_a_row, self._succeeded = 1, burst
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

    def _backed_off(self, turn: float) -> float:
        doubled = turn * 2.0 ** min(self._in_a_row - 1, 32)
        return min(doubled, max(turn, min(LONGEST_DOUBLED, self.policy.max_backoff)))
