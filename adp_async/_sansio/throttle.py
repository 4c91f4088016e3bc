"""The hold and the rate that all calls of a session share.

Limits are per user and service, so a 429 to one call is news for every call.  A 429 does two
things.  It starts a *hold*: nobody sends until it is over.  And it teaches the *limit*: what
follows is paced by it.

How the rate grows between two 429s, with every *stage* closer to the limit and less often beyond
it.  When nothing got through before the first 429, it `SEARCHES`: a little faster with every
request that gets through.  When a burst did, that is a first idea of the limit, which a few
requests `TRY` out.  Once the rate was refused on its way up, the limit is `KNOWN`, and the rate
follows the window curve of CUBIC (RFC 9438, section 4.2): back to the limit within a *plateau*,
then faster the longer no 429 comes, until nothing bounds it any more.  A plateau is long enough
that one request in a hundred is refused, and that holds are a small part of the time.

What a 429 says about the limit depends on how many requests got through since the last one.
Many: it is as seldom as it may be, or has nothing to do with our rate; the limit stays.  Few: the
rate is too high.  How much too high?  A service that saves up what is not used (a token bucket)
lets through more than its limit for a while, so the rate at the 429 is too high an estimate; but
over the whole time since the last 429, exactly the limit got through.  One that saves nothing
refuses as soon as the rate is too high; but of what a hold let pass it gives nothing back, so
what got through is too low.  The truth is in between: the rate is cut to what got through, but
never by more than a share that grows the fewer they were.  What a service saves up shows before
the first 429, in how many requests it takes at once; a probe that got no more than that through
beyond the limit has used up what was saved, and has not found a higher one.

Before the first 429 there is no rate and nothing is paced.

The search begins with one request a second, and grows at that pace; where the first back-off
(`RetryPolicy`) is shorter than a second, in that time.
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum
from math import exp

from attrs import define, field

from adp_async._sansio.retry import RetryPolicy

#: While it searches the rate grows e-fold in this many requests, but not within less time.
SEARCH_REQUESTS = 3.0
SEARCH = 1.0
#: The rate of the request before, while it searches.
SEARCH_STEP = exp(-1.0 / SEARCH_REQUESTS)
#: Requests that a first idea of the limit is tried out with, and the seconds they take at least.
TRIAL_REQUESTS = 10.0
TRIAL = 2.0
#: After a 429 the rate is this share of the limit.
DECREASE = 0.96
#: Requests (but no more than so many seconds), seconds and holds that the way back to a known
#: limit takes: the longest of the three.
PLATEAU_REQUESTS = 100.0
LONGEST_PLATEAU = 50.0
PLATEAU = 10.0
PLATEAU_HOLDS = 30.0
#: How boldly the rate grows behind the plateau: by this share within one unit of seconds.
PROBE = 0.5
SHORTEST_UNIT, LONGEST_UNIT = 5.0, 8.0
#: Of what a probe found beyond the limit we knew, this share is believed.
BELIEVED = 0.8
#: A service that takes several requests at once saves up what is not used: a probe that got no more
#: than this share of them through beyond the limit need not have found a higher one.  It is not
#: believed where the 429 that would tell so is dear: with few requests at once, or long holds.
SAVED = 1.25
SMALL_BURST = 6
LONG_HOLD = 1.0
#: So many requests between two 429s make a 429 rare, when its hold took no more than this share.
RARE = 50
RARE_HOLD = 0.1
#: Fewer than so many requests since the last 429: the rate falls to this share of it, at most.
CUTS = ((1, 0.5), (4, 0.6), (20, 0.85), (RARE, 0.95))
#: The lowest rate, as a share of the one it begins with.
LOWEST = 0.1
#: A rate this many times the limit is no bound any more.
LIFTED = 32.0
#: The hold of a single 429 is no longer than so many turns; when told how long to wait, this
#: share of it is the most that goes on top.
HOLD_TURNS = 4.0
ON_TOP = 0.25
#: Up to this share of an interval a request that leaves late is made up for by the next.
SLACK = 0.05


class Stage(IntEnum):
    """How well the limit is known."""

    SEARCHES = 0
    TRIES = 1
    KNOWS = 2


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
    _stage: Stage = field(default=Stage.SEARCHES, init=False)
    #: When the last 429 came that told something new; its hold, and the end of that.
    _refused_at: float = field(default=0.0, init=False)
    _hold: float = field(default=0.0, init=False)
    _resumed_at: float = field(default=0.0, init=False)
    #: 429s in a row, as far as they told something new, and replies since that were not 429s.
    _in_a_row: int = field(default=0, init=False)
    _succeeded: int = field(default=0, init=False)
    #: Requests that the service took at once, or within a second, before the first 429.
    _burst: int = field(default=0, init=False)
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
        is_on_time = now - turn < SLACK / rate
        self._next_turn = (turn if is_on_time else now) + 1.0 / rate

    def rate(self, now: float) -> float | None:
        """Requests a second that may leave; None while nothing bounds it."""
        if self._limit is None:
            return None
        factor = self._growth(max(0.0, now - self._resumed_at), self._limit)
        if factor > LIFTED:
            self._limit = None
            return None
        return self._limit * factor

    def held_since(self, now: float) -> float | None:
        """When the 429 came that holds everything now; None without a hold."""
        return self._refused_at if self.held_until > now else None

    @property
    def is_paced(self) -> bool:
        """Whether a rate bounds what leaves."""
        return self._limit is not None

    @property
    def _search_time(self) -> float:
        return min(SEARCH, self.policy.first_backoff)

    def _growth(self, elapsed: float, limit: float) -> float:
        if self._stage is Stage.SEARCHES:
            steps = self._succeeded / SEARCH_REQUESTS
            return exp(min(elapsed / self._search_time, steps, 10.0))
        plateau = self._plateau(limit)
        if elapsed < plateau:
            return 1.0 - (1.0 - DECREASE) * (1.0 - elapsed / plateau) ** 3
        unit = max(SHORTEST_UNIT, min(plateau, LONGEST_UNIT))
        return 1.0 + PROBE * ((elapsed - plateau) / unit) ** 3

    def _plateau(self, limit: float) -> float:
        """Seconds from the end of a hold until the rate grows beyond *limit*."""
        match self._stage:
            case Stage.SEARCHES:
                return 0.0
            case Stage.TRIES:
                return max(TRIAL, TRIAL_REQUESTS / limit)
        requests = min(LONGEST_PLATEAU, PLATEAU_REQUESTS / limit)
        return max(PLATEAU, requests, PLATEAU_HOLDS * self._hold)

    def succeeded(self, now: float) -> None:
        """A reply came that was not a 429."""
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
        self._limit = max(LOWEST / self._search_time, self._learned(departed, now))
        self._hold = self._hold_of(self._limit, asked, jitter)
        until = now + max(self._hold, 1.0 / self._limit)
        # No growth while holding.
        self.held_until = self._resumed_at = max(self.held_until, until)
        self._refused_at, self._succeeded = now, 0
        self._next_turn = 0.0

    def _hold_of(self, limit: float, asked: float, jitter: float) -> float:
        hold = self.policy.delay(self._in_a_row, jitter=jitter)
        if asked:
            return asked + min(hold, ON_TOP * asked)
        return min(hold, jitter * HOLD_TURNS / limit) if self._in_a_row == 1 else hold

    def _learned(self, departed: float, now: float) -> float:
        """The limit, as this 429 tells it."""
        known, rate = self._limit, self.rate(departed)
        if known is None or rate is None:
            self._burst = sum(time > now - 1.0 for time in self._recent)
            self._stage = Stage.TRIES if self._burst > 1 else Stage.SEARCHES
            return max(1.0 / self._search_time, float(self._burst))
        got_through = self._succeeded / (now - self._refused_at)
        probed = departed - self._resumed_at - self._plateau(known)
        if self._succeeded and probed >= 0.0:
            return self._found(known, rate, got_through, probed)
        is_rare = self._succeeded >= RARE and self._hold <= RARE_HOLD * (now - self._refused_at)
        # A second one in a row is most often the same hold-up, which wants a longer hold.
        if is_rare or (self._succeeded == 0 and self._in_a_row == 2):
            return known
        share = next((share for few, share in CUTS if self._succeeded < few), CUTS[-1][1])
        if self._stage is Stage.TRIES:
            share = max(share, SEARCH_STEP)  # one step back: the one before that got through
        return max(min(0.98 * rate, got_through), share * rate)

    def _found(self, known: float, rate: float, got_through: float, probed: float) -> float:
        """The limit after a way up that ended at *rate*, *probed* seconds behind the plateau."""
        stage, self._stage = self._stage, Stage(min(self._stage + 1, Stage.KNOWS))
        if stage is Stage.SEARCHES:
            return max(known, rate * SEARCH_STEP)  # the rate that last got through
        excess = (rate - known) * probed / 4.0  # the integral of a cubic
        is_dear = self._burst <= SMALL_BURST or self._hold >= LONG_HOLD
        if is_dear and self._burst > 1 and excess <= SAVED * self._burst:
            return max(known, min(rate, got_through))
        beyond = 0.98 * (known + BELIEVED * (rate - known))
        return max(known, min(rate, got_through), beyond)
