"""How many batches are worth having under way at once.

A service that does them side by side delivers more the more are under way; one that does them one
after another (a store with a single writer) only makes them wait, and often gets slower by it.
Which one it is shows when one fewer, or one more, is tried: fewer are kept when they deliver as
much, more only when they deliver a good deal more.  A try that failed is repeated later and later.

It begins with one and grows by one with every batch delivered: when there is a quota, the first
429 then comes to one or two requests and not to all that may be under way.
"""

from __future__ import annotations

from attrs import define, field

#: Round trips that a rate is measured over.
SAMPLES = 4
#: One fewer is as good at this share of the rate; one more is better from this share on.
AS_GOOD = 0.97
BETTER = 1.1
#: Rates measured between two tries: doubled by each that failed, up to the longest.
FIRST_PAUSE = 2
LONGEST_PAUSE = 64
#: Below this a round trip tells more of our own event loop than of the service.
SHORTEST = 0.02


@define
class Concurrency:
    """The number of batches that may be under way, between 1 and *most*.

    >>> concurrency = Concurrency(most=4)
    >>> concurrency.limit
    1
    >>> for _ in range(3):
    ...     concurrency.delivered()
    >>> concurrency.limit
    4
    >>> for _ in range(100):
    ...     concurrency.landed(0.1 * concurrency.limit)  # one after another
    >>> concurrency.limit
    1
    """

    most: int
    #: What may be under way now, and what has proved best so far.
    limit: int = field(default=1, init=False)
    _best: int = field(init=False)
    _is_starting: bool = field(default=True, init=False)
    _best_rate: float = field(default=0.0, init=False)
    #: Round trips of batches that left under the limit before are not counted.
    _leftover: int = field(default=0, init=False)
    _sum: float = field(default=0.0, init=False)
    _count: int = field(default=0, init=False)
    _wait: int = field(default=FIRST_PAUSE, init=False)
    _pause: int = field(default=FIRST_PAUSE, init=False)
    _upwards: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._best = self.most

    def delivered(self) -> None:
        """A batch of any size was delivered."""
        if self._is_starting:
            self.limit = min(self.limit + 1, self.most)
            self._is_starting = self.limit < self.most

    def landed(self, round_trip: float) -> None:
        """A full batch was delivered in *round_trip* seconds, with *limit* under way."""
        if self._is_starting:
            return
        if self._leftover:
            self._leftover -= 1
            return
        self._sum += round_trip
        self._count += 1
        if self._count < SAMPLES:
            return
        if self._sum >= SHORTEST * SAMPLES and self.most > 1:
            self._decide(self.limit * SAMPLES / self._sum)
        self._sum, self._count = 0.0, 0

    def _decide(self, rate: float) -> None:
        """*rate*: batches a second with *limit* under way."""
        if self.limit == self._best:
            self._best_rate = rate
            self._wait -= 1
            if self._wait <= 0:
                self._try_another()
            return
        needed = BETTER if self.limit > self._best else AS_GOOD
        if rate >= needed * self._best_rate:
            self._best, self._best_rate, self._pause = self.limit, rate, FIRST_PAUSE
            self._wait = 1  # perhaps the same step again is good, too
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
