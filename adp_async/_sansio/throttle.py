"""The hold and the rate that all calls of a session share.

Limits are per user and service, so a 429 to one call is news for every call.  A 429 does two
things.  It starts a *hold*: nobody sends until it is over.  And it teaches the *rate*: what
followed is paced at a little less than what got through, and creeps back up, slowest where the
last 429 came, faster the longer none comes.  That is the window curve of CUBIC (RFC 9438,
section 4.2) applied to a rate.

Before the first 429 there is no rate and nothing is paced.
"""

from __future__ import annotations

from collections import deque
from math import exp

from attrs import define, field

from adp_async._sansio.retry import RetryPolicy

#: After a 429 the rate is this share of what got through.
DECREASE = 0.96
#: Seconds, and requests, that the way back up to that takes: the longer of the two.
PLATEAU = 20.0
PLATEAU_REQUESTS = 100.0
PLATEAU_HOLDS = 30.0
#: While nothing good is known of the limit: growth e-fold in this time, and this many requests.
SEARCH = 5.0
SEARCH_REQUESTS = 25.0
#: Fewer successes than this between two 429s say nothing about the limit.
ENOUGH = 8
#: Then the rate is cut by this.
CUT = 0.7
LOWEST_RATE = 0.02
#: A rate this many times the one last refused is no bound any more.
LIFTED = 32.0


@define
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
    #: Whether it was measured between two 429s; else it is searched for.
    _is_measured: bool = field(default=False, init=False)
    _refused_at: float | None = field(default=None, init=False)
    _resumed_at: float = field(default=0.0, init=False)
    #: 429s in a row, as far as they tell something new.
    _in_a_row: int = field(default=0, init=False)
    _succeeded: int = field(default=0, init=False)
    _held: float = field(default=0.0, init=False)
    _last_hold: float = field(default=0.0, init=False)
    _recent: deque[float] = field(factory=lambda: deque(maxlen=1024), init=False)

    def delay(self, now: float) -> float:
        """Seconds until a request may leave; 0 when one may leave now."""
        return max(0.0, self.held_until - now, self._next_turn - now)

    def depart(self, now: float) -> None:
        """A request leaves now; the next one has its turn one interval later."""
        rate = self.rate(now)
        if rate is None:
            self._next_turn = 0.0
        else:
            self._next_turn = max(self._next_turn, now - 1 / rate) + 1 / rate

    def rate(self, now: float) -> float | None:
        """Requests a second that may leave; None while nothing bounds it."""
        if self._limit is None:
            return None
        factor = self._growth(now - self._resumed_at, self._limit)
        if factor > LIFTED:
            self._limit = None
            return None
        return self._limit * factor

    @property
    def is_paced(self) -> bool:
        """Whether a rate bounds what leaves."""
        return self._limit is not None

    def _growth(self, elapsed: float, limit: float) -> float:
        elapsed = max(0.0, elapsed)
        if not self._is_measured:
            return exp(min(elapsed / max(SEARCH, SEARCH_REQUESTS / limit), 10.0))
        way = (
            elapsed / max(PLATEAU, PLATEAU_REQUESTS / limit, PLATEAU_HOLDS * self._last_hold) - 1.0
        )
        # -1 at the 429, 0 back at the limit; beyond it the probing begins.
        return 1.0 + (1.0 - DECREASE) * way**3 if way < 0.0 else 1.0 + way**3

    def succeeded(self, now: float) -> None:
        """A reply came that was no 429."""
        self._in_a_row = 0
        self._succeeded += 1
        self._recent.append(now)

    def refused(
        self, *, departed: float, now: float, jitter: float, retry_after: float | None = None
    ) -> None:
        """A 429 came for a request that left at *departed*; *jitter* is a draw from [0, 1)."""
        self.throttled += 1
        asked = retry_after or 0.0
        if self._refused_at is not None and departed < self._resumed_at:
            # It was under way when the last 429 came: the same news, but for what it asks.
            self._hold(now + asked)
            return
        self._in_a_row += 1
        self._learn(departed, now)
        wait = self.policy.delay(self._in_a_row, jitter=jitter, retry_after=asked)
        self._hold(max(now + wait, now + 1.0 / (self._limit or 1.0)))
        if self._refused_at is None:
            self._restart_measuring(now)
        self._last_hold = self.held_until - now
        self._held += self._last_hold
        self._resumed_at = self.held_until  # no growth while holding
        self._next_turn = 0.0

    def _restart_measuring(self, now: float) -> None:
        self._refused_at, self._succeeded, self._held = now, 0, 0.0

    def _measured(self, now: float, current: float | None) -> float:
        """What the quota let through between two moments at which it was used up.

        Whether it filled up again during the holds can't be seen: the truth lies between.
        """
        assert self._refused_at is not None
        elapsed = now - self._refused_at
        at_least = self._succeeded / elapsed
        at_most = self._succeeded / max(elapsed - self._held, 1e-3)
        if current is not None:
            at_most = max(at_least, min(at_most, current))
        return (at_least + at_most) / 2

    def _hold(self, until: float) -> None:
        self.held_until = max(self.held_until, until)

    def _learn(self, departed: float, now: float) -> None:
        current = self.rate(departed)
        if self._refused_at is not None and self._succeeded >= ENOUGH:
            self._limit = self._measured(now, current)
            self._is_measured = True
            self._restart_measuring(now)
        elif current is None:
            self._limit = float(max(1, sum(time > now - 1.0 for time in self._recent)))
            self._is_measured = False
        else:
            self._limit = current * CUT
            self._is_measured = False
        self._limit = max(LOWEST_RATE, self._limit)
