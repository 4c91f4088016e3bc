"""A quota, alone or shared by clients that know nothing of each other: simulated, in virtual time.

Every client is the real `Dispatcher` with its `Throttle`; only the service, the network and the
clock are made up.  The quota saves up what was not used for a second, or it is
strict (one request at a time, and a moment too early is too early), or it is counted in seconds of
the clock.  Numbers are medians over seeds.

*Busy* clients always have more to send than the quota takes.  *Sparse* ones log 50 points a second
each, which fills a request in 20 seconds.  Plain back-off (a random time of at most 1, 2, 4, ...
60 s) is the peer.

What can be reached?  Clients that know nothing of each other collide by chance.  The last table has
requests at random moments, and what a quota takes and refuses of them: whoever is refused less
often than that, with as much taken, does better than chance.
"""

from __future__ import annotations

import heapq
import itertools
import random
import statistics
import sys
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from attrs import define, evolve, field, frozen

from adp_async._sansio.accumulator import Accumulator
from adp_async._sansio.actions import Action
from adp_async._sansio.concurrency import Concurrency
from adp_async._sansio.dispatch import Dispatcher
from adp_async._sansio.records import BatchLimits, Metric
from adp_async._sansio.retry import RetryPolicy
from adp_async._sansio.throttle import Throttle
from adp_async.errors import Throttled
from adp_async.local.quota import Quota, TokenBucket
from benchmarks._harness import Goal, Options, Report, Table, number, percentile, run

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adp_async._sansio.batch import RecordBatch

#: Records that make a request of a sparse client full: each stands for 50 points, one second's.
#: Those of a busy client are always full, and one record will do.
FULL: Final = 20
#: How long a quota is in force.
SECONDS: Final = 60.0
#: The same for a crowd, which takes longer to settle.
CROWD_SECONDS: Final = 180.0
#: Seconds from a request to its answer; timers and requests come late by this on average.
ROUND_TRIP: Final = 0.01
LATE: Final = 0.001
RATES: Final = (2.0, 10.0, 50.0)
MOST_IN_FLIGHT: Final = 4
#: A client has found out that a quota was lifted when it sends at so many times its share of it.
FOUND: Final = 5.0
LONGEST_SEARCH: Final = 120.0


class PlainBackOff(Throttle):
    """After a 429 a random time, doubled with each in a row; no rate, and no ``Retry-After``."""

    def __init__(self) -> None:
        super().__init__()
        self._refusals = 0

    def succeeded(self, *, departed: float, now: float) -> None:
        self._refusals = 0

    def refused(
        self, *, departed: float, now: float, jitter: float, retry_after: float | None = None
    ) -> None:
        self._refusals += 1
        self.held_until = now + self.policy.delay(self._refusals, jitter=jitter)


class Service(Protocol):
    def take(self, now: float) -> bool:
        """Whether a request that arrives *now* is taken; otherwise it is refused with a 429."""


@define
class Windows:
    """*rate* in every second of the clock."""

    rate: float
    _second: int = field(default=-1, init=False)
    _taken: int = field(default=0, init=False)

    def take(self, now: float) -> bool:
        if int(now) != self._second:
            self._second, self._taken = int(now), 0
        self._taken += 1
        return self._taken <= self.rate


@define
class Lifted:
    """*service* until *at*, and no quota from then on."""

    service: Service
    at: float

    def take(self, now: float) -> bool:
        return now >= self.at or self.service.take(now)


def _bucket(rate: float, burst: float) -> Service:
    return TokenBucket(Quota(rate=rate, burst=burst), now=0.0)


#: Names of the kinds of quota, and how one is made.
KINDS: Final[dict[str, Callable[[float], Service]]] = {
    "": lambda rate: _bucket(rate, rate),
    " strict": lambda rate: _bucket(rate, 1.0),
    " windows": Windows,
}


WAYS: Final[dict[str, Callable[[], Throttle]]] = {
    "adp_async": Throttle,
    "plain back-off": PlainBackOff,
}


@define(eq=False)
class Client:
    """One session: a run, and what decides when its batches leave."""

    throttle: Throttle
    most: int
    full: int
    accumulator: Accumulator = field(init=False)
    dispatcher: Dispatcher = field(init=False)
    taken: int = field(default=0, init=False)
    found_at: float | None = field(default=None, init=False)
    looks_at: float = field(default=float("inf"), init=False)
    steps: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self.accumulator = Accumulator(limits=BatchLimits(metrics=self.full, entities=self.full))
        self.dispatcher = Dispatcher(
            self.accumulator, self.throttle, RetryPolicy(), Concurrency(self.most)
        )

    def log(self, count: int, now: float) -> None:
        for _ in range(count):
            # The timestamp is in milliseconds, and the step for the reader alone.
            self.accumulator.add("run", Metric("loss", 0.5, int(now * 1000), self.steps), now)
            self.steps += 1


@frozen
class Scenario:
    """Clients that share one quota."""

    rate: float
    kind: str
    clients: int
    way: Callable[[], Throttle]
    is_sparse: bool = False
    retry_after: float | None = None
    seconds: float = SECONDS
    #: When the quota is lifted; never, if None.
    lifted_at: float | None = None

    @property
    def name(self) -> str:
        asked = "" if self.retry_after is None else f", Retry-After: {self.retry_after:g}"
        way = next(name for name, way in WAYS.items() if way is self.way)
        return f"{self.rate:g}/s{self.kind}{asked}  {way}"

    @property
    def full(self) -> int:
        return FULL if self.is_sparse else 1

    def service(self) -> Service:
        service = KINDS[self.kind](self.rate)
        return service if self.lifted_at is None else Lifted(service, self.lifted_at)


@define
class Play:
    """*scenario*, once.  What came of it is in `taken`, `refused` and the clients."""

    scenario: Scenario
    seed: int
    #: When each request was taken and with how many records, and when each was refused.
    taken: list[tuple[float, int]] = field(factory=list, init=False)
    refused: list[float] = field(factory=list, init=False)
    #: Seconds from being logged until being taken, of each record.
    latencies: list[float] = field(factory=list, init=False)
    clients: list[Client] = field(factory=list, init=False)
    _service: Service = field(init=False)
    _chance: random.Random = field(init=False)
    _events: list[tuple[float, int, Callable[[float], None]]] = field(factory=list, init=False)
    _numbers: itertools.count[int] = field(factory=itertools.count, init=False)

    def run(self) -> Play:
        scenario = self.scenario
        self._service, self._chance = scenario.service(), random.Random(self.seed)
        most = 1 if scenario.way is PlainBackOff else MOST_IN_FLIGHT
        for _ in range(scenario.clients):
            client = Client(scenario.way(), most, scenario.full)
            self.clients.append(client)
            begin = self._chance.random() * (1.0 if scenario.is_sparse else ROUND_TRIP)
            self._at(begin, partial(self._begin, client))
        while (event := heapq.heappop(self._events))[0] < scenario.seconds:
            event[2](event[0])
        return self

    def _at(self, time: float, event: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (time, next(self._numbers), event))

    def _lateness(self) -> float:
        return self._chance.expovariate(1.0 / LATE)

    def _begin(self, client: Client, now: float) -> None:
        if self.scenario.is_sparse:
            client.log(1, now)
            self._at(now + 1.0, partial(self._begin, client))
        self._look(client, now)

    def _look(self, client: Client, now: float) -> None:
        """What the sender does when it wakes up."""
        waiting = client.accumulator.waiting
        if not self.scenario.is_sparse and waiting < 2:
            client.log(2, now)
        for batch in client.dispatcher.drain(now):
            client.throttle.depart(now)
            arrives = now + ROUND_TRIP / 2 + self._lateness()
            self._at(arrives, partial(self._arrive, client, batch, now))
        look = client.dispatcher.next_look(now)
        if look < float("inf"):
            client.looks_at = max(now, look) + self._lateness()
            self._at(client.looks_at, partial(self._wake, client))

    def _wake(self, client: Client, now: float) -> None:
        if now == client.looks_at:  # else it has looked since
            self._look(client, now)

    def _arrive(self, client: Client, batch: RecordBatch, departed: float, now: float) -> None:
        is_taken = self._service.take(now)
        if is_taken:
            self.taken.append((now, len(batch.records)))
            metrics = (record for record in batch.records if isinstance(record, Metric))
            self.latencies += [now - each.timestamp / 1000 for each in metrics]
        else:
            self.refused.append(now)
        back = now + ROUND_TRIP / 2
        self._at(back, partial(self._answer, client, batch, departed, is_taken=is_taken))

    def _answer(
        self, client: Client, batch: RecordBatch, departed: float, now: float, *, is_taken: bool
    ) -> None:
        throttle, jitter = client.throttle, self._chance.random()
        error: Throttled | None = None
        if is_taken:
            client.taken += 1
            throttle.succeeded(departed=departed, now=now)
            self._notice(client, now)
        else:
            error = Throttled("slow down", status=429)
            asked = self.scenario.retry_after
            throttle.refused(departed=departed, now=now, jitter=jitter, retry_after=asked)
        client.dispatcher.concurrency.paused()
        action = Action.DELIVERED if is_taken else Action.WAIT_TURN
        client.dispatcher.answered(batch, error, action, now, jitter=jitter)
        client.accumulator.take_events()
        self._look(client, now)

    def _notice(self, client: Client, now: float) -> None:
        lifted_at = self.scenario.lifted_at
        if lifted_at is not None and now >= lifted_at and client.found_at is None:
            rate = client.throttle.rate(now)
            if rate is None or rate >= FOUND * self.scenario.rate / self.scenario.clients:
                client.found_at = now


@frozen
class Outcome:
    """Shares of the best possible (*goodput*) and of all requests (*refused*), of the whole time
    and of its later half; of the fair share, what the *worst* client got; seconds that 95 % of the
    records waited at most."""

    goodput: float
    later_goodput: float
    refused: float
    later_refused: float
    worst: float
    latency: float


def _outcome(scenario: Scenario, seed: int) -> Outcome:
    play = Play(scenario, seed).run()
    half = scenario.seconds / 2
    shares = [client.taken for client in play.clients]
    return Outcome(
        _goodput(play, 0.0),
        _goodput(play, half),
        _refused(play, 0.0),
        _refused(play, half),
        min(shares) * len(shares) / max(1, sum(shares)),
        percentile(play.latencies, 0.95) if play.latencies else scenario.seconds,
    )


def _goodput(play: Play, since: float) -> float:
    """Of busy clients the share of the quota; of sparse ones that of what they logged."""
    scenario = play.scenario
    seconds = scenario.seconds - since
    best = scenario.clients * seconds if scenario.is_sparse else scenario.rate * seconds
    return sum(count for time, count in play.taken if time >= since) / best


def _refused(play: Play, since: float) -> float:
    refused = sum(time >= since for time in play.refused)
    return refused / max(1, refused + sum(time >= since for time, _ in play.taken))


def _median(scenario: Scenario, seeds: int) -> Outcome:
    found = [_outcome(scenario, seed) for seed in range(seeds)]
    names = ("goodput", "later_goodput", "refused", "later_refused", "worst", "latency")
    return Outcome(*(statistics.median(getattr(each, name) for each in found) for name in names))


def _search(scenario: Scenario, seeds: int) -> float:
    """Seconds until half of the clients have found out that the quota was lifted."""
    found = []
    for seed in range(seeds):
        play = Play(scenario, seed).run()
        lifted_at = scenario.lifted_at or 0.0
        found += [(client.found_at or scenario.seconds) - lifted_at for client in play.clients]
    return statistics.median(found)


def _by_chance(rate: float, kind: str, load: float) -> tuple[float, float]:
    """Requests at random moments, *load* times the quota: the share of it used, and refused."""
    service, chance = KINDS[kind](rate), random.Random(1)
    now = 0.0
    answers: list[bool] = []
    while len(answers) < 10_000:
        now += chance.expovariate(load * rate)
        answers.append(service.take(now))
    return sum(answers) / (now * rate), 1.0 - sum(answers) / len(answers)


def _scenarios(options: Options, clients: int, *, is_sparse: bool) -> list[Scenario]:
    rates = options.size(RATES, (10.0,))
    ways = WAYS.values() if options.peers else (Throttle,)
    seconds = options.size(SECONDS if clients == 1 else CROWD_SECONDS, 2.0)
    asked = (None,) if is_sparse else (None, 1.0)
    return [
        Scenario(rate, kind, clients, way, is_sparse, after, seconds)
        for after, rate, kind, way in itertools.product(asked, rates, KINDS, ways)
        if after is None or kind != " windows"
    ]


def _quota_table(found: dict[Scenario, Outcome], clients: int, *, is_sparse: bool) -> Table:
    who = "1 client" if clients == 1 else f"{clients} clients"
    headings = [
        "quota, contender",
        "goodput",
        "later half",
        "refused",
        "later half",
        "worst client",
    ]
    table = Table(f"{who}, {'sparse' if is_sparse else 'busy'}", headings)
    if is_sparse:
        headings.append("latency p95 in s")
    for each, outcome in found.items():
        if (each.clients, each.is_sparse) == (clients, is_sparse):
            latency = [outcome.latency] if is_sparse else []
            refused = [f"{share:.1%}" for share in (outcome.refused, outcome.later_refused)]
            goodput = (outcome.goodput, outcome.later_goodput)
            table.add(each.name, *goodput, *refused, outcome.worst, *latency)
    return table


def _search_table(options: Options, seeds: int) -> Table:
    crowds = options.size((1, 8, 16), (1,))
    headings = ("quota", *(f"{n} client{'s' if n > 1 else ''}" for n in crowds))
    title = "A quota is lifted: seconds until half of the clients send 5 times as much"
    table = Table(title, headings)
    at, longest = options.size((60.0, LONGEST_SEARCH), (1.0, 1.0))
    for rate in options.size(RATES, (10.0,)):
        cells = []
        for n in crowds:
            scenario = Scenario(rate, "", n, Throttle, seconds=at + longest, lifted_at=at)
            seconds = _search(scenario, seeds)
            cells.append(f"> {longest:g}" if seconds >= longest else number(seconds))
        table.add(f"{rate:g}/s", *cells)
    return table


def _chance_table(options: Options) -> Table:
    loads = options.size((0.25, 0.5, 0.75, 1.0, 1.5, 2.0), (0.5,))
    title = "By chance, so many requests as a multiple of the quota: goodput, refused"
    table = Table(title, ("quota", *(f"{load:g}" for load in loads)))
    for rate, kind in itertools.product(options.size(RATES, (10.0,)), ("", " strict")):
        shares = [_by_chance(rate, kind, load) for load in loads]
        table.add(f"{rate:g}/s{kind}", *(f"{good:.2f}, {bad:.0%}" for good, bad in shares))
    return table


def _goals(found: dict[Scenario, Outcome]) -> list[Goal]:
    """Of busy clients; and of one, where a quota saves up what was not used."""
    busy = {each: found[each] for each in found if not each.is_sparse}
    ours = {each: outcome for each, outcome in busy.items() if each.way is Throttle}
    goals = []
    if alone := [found for each, found in ours.items() if each.clients == 1 and not each.kind]:
        goodput, refused = min(o.goodput for o in alone), max(o.refused for o in alone)
        goals.append(Goal.at_least("1 client, worst quota: goodput", 0.95, goodput))
        goals.append(Goal.at_most("1 client, worst quota: share refused", 0.02, refused))
    for each, outcome in ours.items():
        peer = busy.get(evolve(each, way=PlainBackOff))
        if each.clients > 1 and each.retry_after is None and peer is not None:
            who = f"{each.clients} clients, {each.rate:g}/s{each.kind}, later half"
            goodput = outcome.later_goodput / max(peer.later_goodput, 1e-9)
            refused = _refusals(outcome) / max(_refusals(peer), 1e-9)
            goals.append(Goal.at_least(f"{who}: goodput / plain back-off", 0.98, goodput))
            goals.append(Goal.at_most(f"{who}: 429s / plain back-off", 0.25, refused))
    return goals


def _refusals(outcome: Outcome) -> float:
    """429s in the later half, as a multiple of what the quota takes."""
    return outcome.later_goodput * outcome.later_refused / (1.0 - outcome.later_refused)


def measure(options: Options) -> Report:
    """Busy and sparse clients, one and many; the search for a lifted quota; and chance."""
    seeds = options.size(5, 1)
    crowds = options.size(
        ((1, False), (8, False), (16, False), (8, True), (16, True)), ((2, False),)
    )
    found = {
        each: _median(each, seeds)
        for clients, is_sparse in crowds
        for each in _scenarios(options, clients, is_sparse=is_sparse)
    }
    report = Report("Under a quota, simulated")
    report.tables = [_quota_table(found, clients, is_sparse=sparse) for clients, sparse in crowds]
    report.tables += [_search_table(options, seeds), _chance_table(options)]
    report.goals = _goals(found)
    report.notes = [
        f"Medians of {seeds} seeds; a quota is in force for {SECONDS:g} s, shared by a crowd for"
        f" {CROWD_SECONDS:g} s.  A goodput of plain back-off within 2 % counts as reached.",
        "Turns that are kept from one period to the next do better than chance, since what fitted"
        " between the requests of others once fits again.",
    ]
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    return run(measure, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
