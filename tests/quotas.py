"""Services with a quota, and clients that share it, in virtual time: minutes take moments."""

from __future__ import annotations

import heapq
import random
from collections import deque
from itertools import count
from typing import TYPE_CHECKING, Protocol

from attrs import define, field, frozen

from adp_async._sansio.retry import RetryPolicy
from adp_async._sansio.throttle import Throttle

if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds that the first record of a batch waits for company: the default linger.
LINGER = 1.0


class Law(Protocol):
    """When a client may send: what `Throttle` does, and what it is compared with."""

    def delay(self, now: float) -> float: ...

    def depart(self, now: float) -> None: ...

    def succeeded(self, now: float) -> None: ...

    def refused(
        self, *, departed: float, now: float, jitter: float, retry_after: float | None = None
    ) -> None: ...


@define
class PlainBackOff:
    """After a 429 a random time of at most 1 s, doubled with each in a row up to a minute.

    It sends one request at a time: see `Simulation.in_flight`.
    """

    policy: RetryPolicy = field(factory=RetryPolicy)
    held_until: float = 0.0
    in_a_row: int = 0

    def delay(self, now: float) -> float:
        return max(0.0, self.held_until - now)

    def depart(self, now: float) -> None:
        pass

    def succeeded(self, now: float) -> None:
        self.in_a_row = 0

    def refused(
        self, *, departed: float, now: float, jitter: float, retry_after: float | None = None
    ) -> None:
        self.in_a_row += 1
        asked = retry_after or 0.0
        delay = self.policy.delay(self.in_a_row, jitter=jitter, retry_after=asked)
        self.held_until = now + delay


class Service(Protocol):
    def takes(self, now: float) -> bool:
        """Whether a request that arrives *now* is taken; otherwise it is refused with a 429."""


@define
class Bucket:
    """*rate* a second, and up to *burst* saved up; a *burst* of 1 saves nothing: it is strict."""

    rate: float
    burst: float = 1.0
    tokens: float = field(init=False)
    filled_at: float = 0.0

    def __attrs_post_init__(self) -> None:
        self.tokens = self.burst

    def takes(self, now: float) -> bool:
        grown = self.tokens + (now - self.filled_at) * self.rate
        self.tokens, self.filled_at = min(self.burst, grown), now
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


@define
class Windows:
    """*rate* in every second of the clock."""

    rate: float
    second: int = -1
    taken: int = 0

    def takes(self, now: float) -> bool:
        if int(now) != self.second:
            self.second, self.taken = int(now), 0
        self.taken += 1
        return self.taken <= self.rate


@define
class SlidingWindow:
    """*rate* in whatever second."""

    rate: float
    times: deque[float] = field(factory=deque)

    def takes(self, now: float) -> bool:
        while self.times and self.times[0] <= now - 1.0:
            self.times.popleft()
        if len(self.times) >= self.rate:
            return False
        self.times.append(now)
        return True


@define
class Workers:
    """*most* requests at a time, each of which takes *seconds*."""

    most: int
    seconds: float = 0.1
    ends: deque[float] = field(factory=deque)

    def takes(self, now: float) -> bool:
        while self.ends and self.ends[0] <= now:
            self.ends.popleft()
        if len(self.ends) >= self.most:
            return False
        self.ends.append(now + self.seconds)
        return True


@frozen
class Gaps:
    """Refuses for 0.2 s in every *period*, whatever our rate."""

    period: float

    def takes(self, now: float) -> bool:
        return now % self.period >= 0.2


@frozen
class Changing:
    """One service before *at*, another (or no limit) from then on."""

    at: float
    before: Service
    after: Service | None

    def takes(self, now: float) -> bool:
        service = self.before if now < self.at else self.after
        return service is None or service.takes(now)


@frozen
class Outcome:
    """When each request was taken, or refused; what each client got; how long records waited."""

    taken: list[float]
    refused: list[float]
    shares: list[int]
    latencies: list[float]

    def rate(self, since: float, until: float) -> float:
        return sum(since <= time < until for time in self.taken) / (until - since)

    def refused_share(self, since: float = 0.0) -> float:
        taken, refused = (sum(time >= since for time in x) for x in (self.taken, self.refused))
        return refused / max(1, taken + refused)

    def latency(self, share: float) -> float:
        """What *share* of the records waited at most, from being logged until they were taken."""
        return sorted(self.latencies)[int(share * len(self.latencies))]

    @property
    def fairness(self) -> float:
        """Jain's index: 1 when each client got as much, 1/n when one of n got all."""
        return sum(self.shares) ** 2 / (len(self.shares) * sum(x * x for x in self.shares))


@define(eq=False)
class Client:
    """One request under way at first, one more with every one taken, as far as it may.

    With a *pause* it logs a record each so many seconds, and a batch waits `LINGER` for company;
    otherwise it always has more to send.
    """

    throttle: Law
    pause: float | None = None
    most: int = 1
    under_way: int = 0
    taken: int = 0
    has_timer: bool = False
    #: When the first record was logged that is not under way.
    first: float = 0.0
    #: Batches that were refused: they are sent again as they are.
    again: deque[list[float]] = field(factory=deque)

    def ready_at(self) -> float:
        return 0.0 if self.pause is None or self.again else self.first + LINGER

    def batch(self, now: float) -> list[float]:
        """When the records were logged that leave now."""
        if self.again:
            return self.again.popleft()
        if self.pause is None:
            return []
        number = int((now - self.first) / self.pause) + 1
        batch = [self.first + n * self.pause for n in range(number)]
        self.first += number * self.pause
        return batch


@define
class Simulation:
    """Clients that share a service; turns and requests come late by a millisecond or so."""

    service: Service
    clients: int = 1
    retry_after: float | None = None
    in_flight: int = 4
    round_trip: float = 0.01
    late: float = 0.001
    pause: float | None = None
    law: Callable[[], Law] = Throttle
    chance: random.Random = field(factory=lambda: random.Random(1))
    _events: list[tuple[float, int, Client, str, float, list[float]]] = field(factory=list)
    _numbers: count[int] = field(factory=count)

    def run(self, seconds: float) -> Outcome:
        outcome = Outcome([], [], [], [])
        clients = [Client(self.law(), self.pause) for _ in range(self.clients)]
        for client in clients:
            client.first = self.chance.random() * LINGER
            self._at(self.chance.random() / 100, client, "look")
        while (event := heapq.heappop(self._events))[0] < seconds:
            now, _, client, what, departed, batch = event
            if what == "arrive":
                is_taken = self.service.takes(now)
                (outcome.taken if is_taken else outcome.refused).append(now)
                if is_taken:
                    outcome.latencies.extend(now - time for time in batch)
                answer = "taken" if is_taken else "refused"
                self._at(now + self.round_trip / 2, client, answer, departed, batch)
                continue
            self._hear(client, what, now, departed, batch)
            self._send(client, now)
        outcome.shares.extend(client.taken for client in clients)
        return outcome

    def _hear(
        self, client: Client, what: str, now: float, departed: float, batch: list[float]
    ) -> None:
        if what == "look":
            client.has_timer = False
            return
        client.under_way -= 1
        if what == "taken":
            client.throttle.succeeded(now)
            client.taken += 1
            client.most = min(client.most + 1, self.in_flight)
            return
        client.again.append(batch)
        jitter = self.chance.random()
        client.throttle.refused(
            departed=departed, now=now, jitter=jitter, retry_after=self.retry_after
        )

    def _send(self, client: Client, now: float) -> None:
        while client.under_way < client.most:
            delay = max(client.throttle.delay(now), client.ready_at() - now)
            if delay > 0.0:
                if not client.has_timer:
                    client.has_timer = True
                    self._at(now + delay + self._lateness(), client, "look")
                return
            client.throttle.depart(now)
            client.under_way += 1
            arrives = now + self.round_trip / 2 + self._lateness()
            self._at(arrives, client, "arrive", now, client.batch(now))

    def _lateness(self) -> float:
        return self.chance.expovariate(1.0 / self.late)

    def _at(
        self,
        time: float,
        client: Client,
        what: str,
        departed: float = 0.0,
        batch: list[float] | None = None,
    ) -> None:
        event = (time, next(self._numbers), client, what, departed, batch or [])
        heapq.heappush(self._events, event)
