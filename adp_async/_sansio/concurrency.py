"""How many batches are worth having in flight at once.

A service that handles them in parallel delivers more the more are in flight; one that handles them
one after another (a store with a single writer) only makes them wait, and often gets slower.  To
find out, one more or one fewer is tried: more are kept only if they deliver a good deal more, fewer
if they deliver as much.  After a failed try, the next one comes later.

It begins with one, so that the first overload costs one 429, not as many as may be in flight.  What
counts is throughput, not latency: a store with a single writer serves some at once and starves
others.
"""

from __future__ import annotations

from attrs import define, field

#: Batches that a rate is measured over.
SAMPLES = 4
#: One fewer is as good at this share of the rate; one more is better from this share on.
AS_GOOD = 0.97
BETTER = 1.1
#: Rates measured between two tries: doubled by each failed one, up to the maximum.
FIRST_PAUSE = 2
LONGEST_PAUSE = 64
#: A shorter round trip, in seconds, says more about our own event loop than about the service.
SHORTEST = 0.02


@define
class Concurrency:
    """The number of batches that may be in flight, between 1 and *most*.

    >>> concurrency = Concurrency(most=4)
    >>> for n in range(100):
    ...     concurrency.landed(1000, now=0.1 * n)  # they are done one after another
    >>> concurrency.limit
    1
    """

    most: int
    #: How many may be in flight now, and what has proved best so far.
    limit: int = field(default=1, init=False)
    _best: int = field(default=1, init=False)
    _best_rate: float = field(default=0.0, init=False)
    #: Batches that left under the limit before are not counted.
    _leftover: int = field(default=0, init=False)
    #: The records that landed, and since when.
    _since: float | None = field(default=None, init=False)
    _records: int = field(default=0, init=False)
    _count: int = field(default=0, init=False)
    _wait: int = field(default=1, init=False)
    _pause: int = field(default=FIRST_PAUSE, init=False)
    _upwards: bool = field(default=True, init=False)

    def landed(self, records: int, now: float) -> None:
        """A batch of *records* was delivered while as many as allowed were in flight."""
        if self._leftover:
            self._leftover -= 1
            return
        if self._since is None:
            self._since = now
            return
        self._records += records
        self._count += 1
        if self._count == SAMPLES:
            elapsed = max(now - self._since, 1e-9)
            self._measured(self._records / elapsed, self.limit * elapsed / SAMPLES)
            self._begin(now)

    def paused(self) -> None:
        """A batch was delivered while fewer than allowed were in flight: that tells nothing."""
        self._begin(None)

    def _begin(self, since: float | None) -> None:
        self._since = None if self._leftover else since
        self._records = self._count = 0

    def _measured(self, rate: float, round_trip: float) -> None:
        """*rate*: records a second with *limit* in flight; *round_trip*: seconds of each."""
        if round_trip < SHORTEST:
            if not self._best_rate:
                self._best = self.most
                self._set(self.most)
        elif self.most > 1:
            self._decide(rate)

    def _decide(self, rate: float) -> None:
        if self.limit == self._best:
            self._best_rate = rate
            self._wait -= 1
            if self._wait <= 0:
                self._try_another()
            return
        needed = BETTER if self.limit > self._best else AS_GOOD
        if rate >= needed * self._best_rate:
            self._best, self._best_rate = self.limit, rate
            self._wait = self._pause = FIRST_PAUSE
            if 1 < self._best < self.most:
                self._try_another()  # perhaps another step the same way helps, too
        else:
            self._upwards = not self._upwards
            self._pause = min(LONGEST_PAUSE, 2 * self._pause)
            self._wait = self._pause
            self._set(self._best)

    def _try_another(self) -> None:
        if self._best == self.most:
            self._upwards = False
        elif self._best == 1:
            self._upwards = True
        self._set(self._best + 1 if self._upwards else self._best - 1)

    def _set(self, limit: int) -> None:
        self._leftover = self.limit
        self.limit = limit
