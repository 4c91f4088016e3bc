"""Dispatcher, accumulator and a service in one play, with numbers for time: hours take moments."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

from attrs import define, field, frozen

from adp_async._sansio.accumulator import Accumulator
from adp_async._sansio.actions import Action, action_for
from adp_async._sansio.concurrency import Concurrency
from adp_async._sansio.discarding import discard
from adp_async._sansio.dispatch import Dispatcher, Fault, Pulse, discarded, fault_of
from adp_async._sansio.records import DELIVERED, Metric, Param, RunTag
from adp_async._sansio.retry import RetryPolicy
from adp_async._sansio.throttle import Throttle
from adp_async.errors import AdpError, ServiceFault, Throttled
from adp_async.local.quota import Quota, TokenBucket

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adp_async._sansio.batch import RecordBatch
    from adp_async._sansio.lane import Lane
    from adp_async._sansio.records import AnyRecord

#: Rounds of a play that are too many for any of them.
ENDLESS = 3_000_000


@frozen
class Post:
    """A request that was answered: when it left and arrived, of which run, with how many."""

    departed: float
    arrived: float
    run_id: str
    records: int
    error: AdpError | None

    @property
    def status(self) -> int:
        return 200 if self.error is None else getattr(self.error, "status", 0)


@define(eq=False)
class Play:
    """*answers* says what the service says to a batch, and when; None when it takes it."""

    answers: Callable[[RecordBatch, float], AdpError | None] = lambda batch, now: None
    latency: float = 0.05
    linger: float = 1.0
    quota: Quota | None = None
    max_in_flight: int = 4
    policy: RetryPolicy = field(factory=RetryPolicy)
    pulse: Pulse = field(factory=Pulse)
    #: Whether a run that is looked at is shown.
    is_visible: bool = True
    #: Draws of jitter; a number is always the same draw.
    jitter: float | None = None
    seed: int = 1
    now: float = field(default=0.0, init=False)
    posts: list[Post] = field(factory=list, init=False)
    #: Requests that looked at a run.
    looked: int = field(default=0, init=False)
    #: Steps (or keys, of params and tags) that arrived, by run and in their order.
    arrived: dict[str, list[AnyRecord]] = field(factory=dict, init=False)
    lanes: dict[str, Lane] = field(factory=dict, init=False)
    accepted: Counter[str] = field(factory=Counter, init=False)
    #: The longest that the oldest record of a run waited, by run, as seen when something happens.
    oldest: dict[str, float] = field(factory=dict, init=False)
    watched: str = field(default="", init=False)
    accumulator: Accumulator = field(init=False)
    dispatcher: Dispatcher = field(init=False)
    throttle: Throttle = field(init=False)
    _events: list[tuple[float, int, Callable[[], object]]] = field(factory=list, init=False)
    _numbers: Any = field(factory=itertools.count, init=False)
    _bucket: TokenBucket | None = field(default=None, init=False)
    _chance: random.Random = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._chance = random.Random(self.seed)
        self.accumulator = Accumulator(
            linger=self.linger, tokens=(f"token-{number}" for number in itertools.count())
        )
        self.throttle = Throttle(self.policy)
        self.dispatcher = Dispatcher(
            self.accumulator,
            self.throttle,
            self.policy,
            Concurrency(self.max_in_flight),
            self.pulse,
        )
        if self.quota is not None:
            self._bucket = TokenBucket(self.quota, now=0.0)

    # What callers do

    def log(self, run_id: str, *records: AnyRecord) -> Lane:
        # Held, as whoever logs holds it.
        lane = self.lanes[run_id] = self.accumulator.lane(run_id)
        for record in records:
            record.place = lane
        self.accepted[run_id] += len(records)
        self.accumulator.take_in(records, self.now)
        return lane

    def log_points(self, run_id: str, count: int, key: str = "loss") -> Lane:
        first = self.accepted[run_id]
        return self.log(run_id, *[Metric(key, 0.5, 0, first + n) for n in range(count)])

    def at(self, time: float, event: Callable[[], object]) -> None:
        heapq.heappush(self._events, (time, next(self._numbers), event))

    def every(self, pause: float, event: Callable[[], object], until: float) -> None:
        for number in range(int((until - self.now) / pause)):
            self.at(self.now + number * pause, event)

    def discard(self, run_id: str) -> int:
        lane = self.accumulator.lane(run_id)
        return discard(self.accumulator, lane, self.now, discarded(run_id, lane.unsettled))

    # What happens

    def run(self, seconds: float) -> None:
        """Let that much time pass."""
        until = self.now + seconds
        for _ in range(ENDLESS):
            self._look()
            look = self.dispatcher.next_look(self.now)
            event = self._events[0][0] if self._events else float("inf")
            time = max(self.now, min(look, event))
            if time > until:
                break
            self.now = time
            while self._events and self._events[0][0] <= time:
                heapq.heappop(self._events)[2]()
        else:
            raise AssertionError("the play goes round in circles")
        self.now = until

    def _look(self) -> None:
        for batch in self.dispatcher.drain(self.now):
            self.throttle.depart(self.now)
            self.at(self.now + self.latency, partial(self._answer, batch, self.now))
        self._watch()

    def _watch(self) -> None:
        lane = self.accumulator.lanes.get(self.watched)
        if lane is not None:
            firsts = lane.queue.times[:1] + [span.since for span in lane.spans]
            if firsts:
                age = self.now - min(firsts)
                self.oldest[self.watched] = max(age, self.oldest.get(self.watched, 0.0))

    def _answer(self, batch: RecordBatch, departed: float) -> None:
        if self._bucket is not None and not self._bucket.take(departed):
            error: AdpError | None = Throttled("slow down", status=429, code="TooManyRequests")
            self.throttle.refused(departed=departed, now=self.now, jitter=self._draw())
        else:
            error = self.answers(batch, self.now)
            self.throttle.succeeded(departed=departed, now=self.now)
        self.posts.append(Post(departed, self.now, batch.run_id, len(batch.records), error))
        if error is None:
            self.arrived.setdefault(batch.run_id, []).extend(batch.records)
        action = Action.DELIVERED if error is None else action_for(error)
        is_visible = False
        if error is not None and self.dispatcher.doubts(batch, error):
            self.looked += 1
            is_visible = self.is_visible
        if error is None or fault_of(error) is Fault.RUN:
            deadline = self.accumulator.next_deadline()
            if deadline is not None and deadline <= self.now and not self.throttle.is_paced:
                self.dispatcher.concurrency.landed(len(batch.records), self.now)
            else:
                self.dispatcher.concurrency.paused()
        self.dispatcher.answered(
            batch, error, action, self.now, jitter=self._draw(), is_visible=is_visible
        )

    def _draw(self) -> float:
        return self._chance.random() if self.jitter is None else self.jitter

    # What can be asked

    def posts_of(self, run_id: str) -> list[Post]:
        return [post for post in self.posts if post.run_id == run_id]

    def departures(self, run_id: str = "") -> list[float]:
        return [post.departed for post in self.posts if run_id in ("", post.run_id)]

    def check_books(self) -> None:
        """Nothing is lost, nothing arrives twice, and the sums are right."""
        accumulator = self.accumulator
        rejected = accumulator.rejected.total()
        ends = accumulator.delivered + rejected + accumulator.dropped + accumulator.unsettled
        assert ends == sum(self.accepted.values())
        assert sum(map(len, self.arrived.values())) == accumulator.delivered
        for run_id, records in self.arrived.items():
            assert len({id(record) for record in records}) == len(records), f"{run_id}: twice"
            assert all(record.place is DELIVERED for record in records)
        if not accumulator.unsettled:
            assert accumulator.cost == 0
            assert not accumulator.batches_in_flight
        assert sum(lane.unsettled for lane in accumulator.lanes.values()) == accumulator.unsettled


def steps(records: Sequence[AnyRecord]) -> list[int]:
    return [record.step for record in records if type(record) is Metric]


def texts(records: Sequence[AnyRecord]) -> list[tuple[str, str]]:
    return [(record.key, record.value) for record in records if type(record) in (Param, RunTag)]  # type: ignore[misc]


def fault(status: int = 500, code: str = "InternalError") -> ServiceFault:
    return ServiceFault("it failed", status=status, code=code)
