"""The hold and the rate that all calls of a session share.

Limits are per user and service, so a 429 to one call is news for every call.  It starts a *hold*,
during which nobody sends, and it teaches the *limit* that paces what follows.

The law is CUBIC's (RFC 9438, section 4), with a rate in place of a window and a 429 in place of a
lost packet.  A 429 takes the rate back to `DECREASE` of what it was; that is the limit.  The rate
resumes a little below the limit, follows a cubic curve back to it within a *plateau*, and grows
beyond it: slowly at first, to twice the limit within a second plateau, then faster, until nothing
bounds it any more.  A plateau lasts a hundred requests, and longer after a ``Retry-After``, which
costs the requests of its time.

The first limit is what the service took within the last second.  A few requests may be all of a
slow quota, or the beginning of a fast one: that limit is tried out for a shorter plateau, and the
429 behind it cuts twice.  A single request is no limit; it is searched for.  The rate begins with
one request a second (or one in `RetryPolicy.first_backoff`, if that is shorter), a plateau lasts
one request, and the limit is the rate that last got through.

A hold is what the service asks for, and a random number of turns on top: at most two, after a
second 429 in a row four, and then eight.  That second one tells that the hold was too short, and
costs no rate.  Before the first 429 there is no rate and nothing is paced.
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum

from attrs import define, field

from adp_async._sansio.retry import RetryPolicy

#: Of a rate that was refused this share is the limit, and of the limit it is the rate to resume
#: with.  Less leaves a quota unused; more is refused again at once by one that saves nothing up.
DECREASE = 0.95
#: So many requests that got through within a second are a limit that need not be tried out.
ENOUGH = 4
#: Seconds that a plateau lasts at least: two of the shortest are the time in which a fast quota
#: that was lifted is noticed.  And at most: 100 requests at two a second.  A slower rate is most
#: often a share of a quota, and a client with a small one must not wait for minutes to get more.
SHORTEST_PLATEAU, LONGEST_PLATEAU = 2.5, 50.0
#: A rate this many times the limit bounds nothing any more.  A search ends before, with a quota of
#: at most a hundred requests a second.
LIFTED = 100.0
#: Up to this share of an interval a request that leaves late is made up for by the next.
SLACK = 0.05


class Stage(IntEnum):
    """How well the limit is known, and how many requests a plateau lasts.

    The goal is that at most 2 % of the requests are refused.  One in 50 would do, were it not for
    the first ones, and for those that show that a limit is still too high.
    """

    SEARCHES = 1
    TRIES = 20
    KNOWS = 100


@define(eq=False, repr=False)
class Throttle:
    """When may the next request leave?

    >>> throttle = Throttle()
    >>> throttle.delay(now=0.0)
    0.0
    >>> throttle.refused(departed=0.0, now=0.1, jitter=0.25, retry_after=7.0)
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
    #: Seconds from the end of a hold until the rate grows beyond the limit.
    _plateau: float = field(default=0.0, init=False)
    _stage: Stage = field(default=Stage.SEARCHES, init=False)
    #: The rate when a request was last taken.
    _proven: float = field(default=0.0, init=False)
    #: The end of the last hold.
    _resumed_at: float = field(default=0.0, init=False)
    #: 429s in a row, as far as they told something new.
    _in_a_row: int = field(default=0, init=False)
    #: When the last requests were taken.
    _taken: deque[float] = field(factory=lambda: deque(maxlen=1024), init=False)

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
        factor = self._growth(now)
        if factor > LIFTED:
            self._limit = None
            return None
        return self._limit * factor

    @property
    def is_paced(self) -> bool:
        """Whether a rate bounds what leaves."""
        return self._limit is not None

    def _growth(self, now: float) -> float:
        beyond = max(0.0, now - self._resumed_at) / self._plateau - 1.0
        return 1.0 + (beyond**3 if beyond > 0.0 else (1.0 - DECREASE) * beyond**3)

    def succeeded(self, now: float) -> None:
        """A reply came that was not a 429."""
        self._in_a_row = 0
        self._taken.append(now)
        self._proven = self.rate(now) or 0.0

    def refused(
        self, *, departed: float, now: float, jitter: float, retry_after: float | None = None
    ) -> None:
        """A 429 came for a request that left at *departed*; *jitter* is a draw from [0, 1)."""
        self.throttled += 1
        asked = retry_after or 0.0
        if self._limit is not None and departed < self._resumed_at:
            # It was under way when the last 429 came: the same news, but for what it asks.
            self.held_until = self._resumed_at = max(self.held_until, now + asked)
            return
        self._in_a_row += 1
        limit = self._limit = self._learned(departed, now)
        self._plateau = self._plateau_of(limit, asked)
        turns = jitter * 2.0 ** min(self._in_a_row, 3)
        until = now + asked + min(self.policy.max_backoff, turns / limit)
        # No growth while holding.
        self.held_until = self._resumed_at = max(self.held_until, until)
        self._next_turn = 0.0

    def _learned(self, departed: float, now: float) -> float:
        """The limit, as this 429 tells it."""
        rate = self.rate(departed)
        if self._limit is None or rate is None:
            burst = sum(time > now - 1.0 for time in self._taken)
            self._stage = Stage.TRIES if burst > 1 else Stage.SEARCHES
            if burst >= ENOUGH:
                self._stage = Stage.KNOWS
            return max(1.0 / min(1.0, self.policy.first_backoff), float(burst))
        if self._in_a_row == 2:
            return self._limit
        if self._in_a_row == 1 and self._growth(departed) > 1.0:
            rate = self._confirmed(rate)
        return max(1.0 / self.policy.max_backoff, DECREASE * rate)

    def _confirmed(self, rate: float) -> float:
        """What is true of a *rate* that was refused beyond the limit."""
        stage, self._stage = self._stage, Stage.KNOWS
        if stage is Stage.SEARCHES:
            return min(rate, self._proven)
        return DECREASE * rate if stage is Stage.TRIES else rate

    def _plateau_of(self, limit: float, asked: float) -> float:
        if self._stage is Stage.SEARCHES:
            return 1.0 / limit
        seconds = self._stage * (1.0 / limit + asked)
        return max(SHORTEST_PLATEAU, min(seconds, LONGEST_PLATEAU))
