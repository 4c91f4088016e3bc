"""The hold and the rate that all calls of a session share.

Limits are per user and service, so a 429 to one call is news for every call.  A 429 does two
things.  It starts a *hold*: nobody sends until it is over.  And it teaches the *limit*: what
follows is paced at a little less than what got through.

How the rate grows between two 429s.  While nothing is known but the first 429, it *searches*: a
little faster with every request that gets through.  Once it was refused on its way, the limit is
known, and the rate follows the window curve of CUBIC (RFC 9438, section 4.2): back to the limit
within a *plateau*, slowest where the last 429 came, then faster the longer none comes, until
nothing bounds it any more.  A plateau is long enough that 429s stay rare and holds cheap.

What a 429 says about the limit.  A service that saves up what is not used (a token bucket) lets
through more than its limit for a while, so the rate at the 429 is too high an estimate; but over
the whole time since the last 429, exactly the limit got through.  One that saves nothing refuses
as soon as the rate is too high; but of what a hold let pass it gives nothing back, so what got
through is too low.  The truth lies between, and the larger of what got through and a little less
than the rate serves both.

Before the first 429 there is no rate and nothing is paced.
"""

from __future__ import annotations

from collections import deque
from math import exp

from attrs import define, field

from adp_async._sansio.retry import RetryPolicy

#: While it searches the rate grows e-fold in this many requests, but not within less time.
SEARCH_REQUESTS = 6.0
SEARCH = 1.0
#: Fewer successes than this between two 429s tell nothing but that the rate is too high: cut it.
ENOUGH = 8
CUT = 0.8
#: The limit is this share of the rate refused, at least: beyond the limit we knew, and before it.
BEYOND = 0.98
BEFORE = 0.93
#: After a 429 the rate is this share of the limit.
DECREASE = 0.96
#: Seconds, requests (but no more than so many seconds) and holds that the way back to the limit
#: takes: the longest of the three.
PLATEAU = 20.0
PLATEAU_REQUESTS = 100.0
LONGEST_PLATEAU = 100.0
PLATEAU_HOLDS = 30.0
#: How boldly the rate grows behind the plateau: by this share when as much time again is over.
PROBE = 0.5
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
    _searches: bool = field(default=False, init=False)
    #: When the last 429 came that told something new; its hold, and the end of that.
    _refused_at: float = field(default=0.0, init=False)
    _hold: float = field(default=0.0, init=False)
    _resumed_at: float = field(default=0.0, init=False)
    #: 429s in a row, as far as they told something new, and replies since that were none.
    _in_a_row: int = field(default=0, init=False)
    _succeeded: int = field(default=0, init=False)
    _recent: deque[float] = field(factory=lambda: deque(maxlen=1024), init=False)

    def delay(self, now: float) -> float:
        """Seconds until a request may leave; 0 when one may leave now."""
        return max(0.0, self.held_until - now, self._next_turn - now)

    def depart(self, now: float) -> None:
        """A request leaves now; the next one has its turn one interval later.

        One that leaves late is not made up for: a strict service would refuse the next one.
        """
        rate = self.rate(now)
        self._next_turn = 0.0 if rate is None else now + 1.0 / rate

    def rate(self, now: float) -> float | None:
        """Requests a second that may leave; None while nothing bounds it."""
        if self._limit is None:
            return None
        factor = self._growth(max(0.0, now - self._resumed_at), self._limit)
        if factor > LIFTED:
            self._limit = None
            return None
        return self._limit * factor

    @property
    def is_paced(self) -> bool:
        """Whether a rate bounds what leaves."""
        return self._limit is not None

    def _growth(self, elapsed: float, limit: float) -> float:
        if self._searches:
            return exp(min(elapsed / SEARCH, self._succeeded / SEARCH_REQUESTS, 10.0))
        plateau = max(
            PLATEAU, min(LONGEST_PLATEAU, PLATEAU_REQUESTS / limit), PLATEAU_HOLDS * self._hold
        )
        # -1 at the end of the hold, 0 back at the limit; beyond it the probing begins.
        way = elapsed / plateau - 1.0
        return 1.0 + (1.0 - DECREASE if way < 0.0 else PROBE) * way**3

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
        if self._limit is not None and departed < self._resumed_at:
            # It was under way when the last 429 came: the same news, but for what it asks.
            self.held_until = max(self.held_until, now + asked)
            self._resumed_at = self.held_until
            return
        self._in_a_row += 1
        self._limit = max(LOWEST_RATE, self._learned(departed, now))
        self._hold = self.policy.delay(self._in_a_row, jitter=jitter, retry_after=asked)
        until = now + max(self._hold, 1.0 / self._limit)
        # No growth while holding.
        self.held_until = self._resumed_at = max(self.held_until, until)
        self._refused_at, self._succeeded = now, 0
        self._next_turn = 0.0

    def _learned(self, departed: float, now: float) -> float:
        """The limit, as this 429 tells it."""
        known, rate = self._limit, self.rate(departed)
        if known is None or rate is None:
            self._searches = True
            return float(max(1, sum(time > now - 1.0 for time in self._recent)))
        if self._searches:
            self._searches = self._succeeded == 0
            return rate * CUT
        if self._succeeded < ENOUGH:
            return min(known, rate) * CUT
        got_through = self._succeeded / (now - self._refused_at)
        return max(min(rate, got_through), rate * (BEYOND if rate > known else BEFORE))
