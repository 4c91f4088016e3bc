"""What must always hold of the accumulator, whatever happens in whatever order.

Hypothesis plays callers, the clock, the sender and the service: it adds records of several runs,
kinds and sizes, lets time pass, drains, and ends batches in every way there is.  The service is
a strict one: it refuses a request that holds a bad record, and takes a body up to its own limit.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import pytest
from attrs import define, field
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from adp_async._sansio.accumulator import Accumulator
from adp_async._sansio.line import SHARE_OF_TROUBLE
from adp_async._sansio.records import BatchLimits, GivenUp, Metric, Param, RunTag
from adp_async.errors import BadRequest, NotFound, PayloadTooLarge

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adp_async._sansio.batch import RecordBatch
    from adp_async._sansio.records import AnyRecord

RUNS = ("run-a", "run-b", "run-c", "run-d")
LIMITS = BatchLimits(metrics=6, params=3, tags=3, entities=8, body_bytes=900)
LINGER = 1.0
Passer = tuple[str, bool]
BAD = "bad"

run_ids = st.sampled_from(RUNS)
text_keys = st.sampled_from(("p", "q", "ü", BAD))
metric_keys = st.sampled_from(("loss", "acc", "ü" * 40, BAD))
paddings = st.sampled_from(("", "", "x" * 120, "\U0001f600" * 60, '"' * 150, "y" * 1200))


def is_bad(record: AnyRecord) -> bool:
    return record.key == BAD


@define(eq=False)
class History:
    """What happened to the records of one run, as the service and the callers saw it."""

    #: Every record, in the order of the calls.
    added: list[AnyRecord] = field(factory=list)
    #: id of a record -> how often its end was told.
    ends: dict[int, int] = field(factory=dict)
    #: (kind, key) -> params and tags in the order in which they took effect.
    applied: dict[tuple[type, str], list[AnyRecord]] = field(factory=dict)

    def end(self, records: list[AnyRecord]) -> None:
        for record in records:
            self.ends[id(record)] = self.ends.get(id(record), 0) + 1

    def apply(self, records: list[AnyRecord]) -> None:
        for record in records:
            if type(record) is not Metric:
                self.applied.setdefault((type(record), record.key), []).append(record)


class AccumulatorMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = 0
        self.now = 100.0
        self.accumulator = Accumulator(linger=LINGER, limits=LIMITS, tokens=self.new_tokens())
        self.runs = {run_id: History() for run_id in RUNS}
        #: Callers hold a run's handle, and with it its lane.
        self.handles = [self.accumulator.lane(run_id) for run_id in RUNS]
        self.in_flight: list[RecordBatch] = []
        #: Of each lane that is ready: which lanes have left before it since, and how often.
        self.passed_over: dict[str, Counter[Passer]] = {run_id: Counter() for run_id in RUNS}
        #: What the service takes; it may be less than we think.
        self.service_limit = LIMITS.body_bytes

    def new_tokens(self) -> Iterator[str]:
        while True:
            self.tokens += 1
            yield f"token-{self.tokens}"

    @initialize(service_limit=st.sampled_from((LIMITS.body_bytes, 500)))
    def choose_service(self, service_limit: int) -> None:
        self.service_limit = service_limit

    # Callers

    def take(self, run_id: str, record: AnyRecord) -> None:
        self.runs[run_id].added.append(record)
        self.accumulator.add(run_id, record, self.now)

    @rule(run_id=run_ids, key=metric_keys, count=st.integers(1, 15))
    def log_metrics(self, run_id: str, key: str, count: int) -> None:
        for step in range(count):
            value = float("nan") if step == 3 else step / 8
            self.take(run_id, Metric(key, value, 1_700_000_000_000, step))

    @rule(run_id=run_ids, key=text_keys, value=st.integers(0, 2), padding=paddings)
    def log_param(self, run_id: str, key: str, value: int, padding: str) -> None:
        self.take(run_id, Param(key, f"{value}{padding}"))

    @rule(run_id=run_ids, key=text_keys, padding=paddings, count=st.integers(1, 5))
    def set_tags(self, run_id: str, key: str, padding: str, count: int) -> None:
        for n in range(count):
            self.take(run_id, RunTag(key, f"{n}{padding}"))

    @rule(run_id=run_ids)
    def flush(self, run_id: str) -> None:
        self.accumulator.skip_linger(self.accumulator.lane(run_id), self.now)

    # Time and the sender

    @rule(seconds=st.sampled_from((0.0, 0.01, 0.5, 1.0, 10.0)))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def wait_until_deadline(self) -> None:
        self.now = max(self.now, self.accumulator.next_deadline() or 0.0)

    @rule(room=st.integers(1, 4))
    def drain(self, room: int) -> None:
        deadline = self.accumulator.next_deadline()
        is_due = deadline is not None and deadline <= self.now
        batches = self.accumulator.drain(self.now, room)

        assert bool(batches) == is_due
        assert len(batches) <= room
        for batch in batches:
            self.check_batch(batch)
            self.in_flight.append(batch)
            self.check_barrier(batch.run_id)
        if len(batches) < room:
            deadline = self.accumulator.next_deadline()
            assert deadline is None or deadline > self.now
        self.check_turns(batches)

    @rule()
    def drain_without_room(self) -> None:
        assert self.accumulator.drain(self.now, 0) == []

    # The service

    def answered(self, data: st.DataObject) -> tuple[RecordBatch, History]:
        batch = data.draw(st.sampled_from(self.in_flight), label="batch")
        self.in_flight.remove(batch)
        # What comes back has had its turn, and gets another place in the line.
        self.passed_over[batch.run_id].clear()
        return batch, self.runs[batch.run_id]

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        """The service judges a batch, as its rules say."""
        batch, history = self.answered(data)
        if len(batch.body) > self.service_limit:
            self.judged(batch, history, "too_large", PayloadTooLarge("", status=413))
        elif any(map(is_bad, batch.records)):
            self.judged(batch, history, "refuse", BadRequest("", status=400))
        else:
            history.apply(batch.records)
            history.end(batch.records)
            self.accumulator.succeed(batch, self.now)

    def judged(self, batch: RecordBatch, history: History, verdict: str, error: Any) -> None:
        getattr(self.accumulator, verdict)(batch, error, self.now)
        if batch.records[0].done:
            assert len(batch.records) == 1 or all(map(is_bad, batch.records))
            history.end(batch.records)

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data(), seconds=st.sampled_from((0.0, 0.0, 2.0, 60.0)), is_lost=st.booleans())
    def fail(self, data: st.DataObject, seconds: float, is_lost: bool) -> None:
        """No verdict; where only the reply was lost, the records did take effect."""
        batch, history = self.answered(data)
        if is_lost and not any(map(is_bad, batch.records)):
            history.apply(batch.records)
        self.accumulator.back_off(batch, self.now + seconds, self.now)

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def spend_token(self, data: st.DataObject) -> None:
        batch, _ = self.answered(data)
        self.accumulator.renew(batch, self.now)

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def lose_run(self, data: st.DataObject) -> None:
        batch, history = self.answered(data)
        history.end(batch.records)
        self.accumulator.give_up(batch, NotFound("", status=404), self.now)

    # What must hold of a batch that leaves

    def check_batch(self, batch: RecordBatch) -> None:
        body = json.loads(batch.body)
        sent = {kind: body.get(kind, []) for kind in ("metrics", "params", "tags")}
        assert body["run_id"] == batch.run_id
        self.check_limits(batch, sent)
        metrics = [record for record in batch.records if type(record) is Metric]
        assert [each["step"] for each in sent["metrics"]] == [each.step for each in metrics]
        for kind, name in ((Param, "params"), (RunTag, "tags")):
            last = {each.key: each.value for each in batch.records if type(each) is kind}
            assert {each["key"]: each["value"] for each in sent[name]} == last
            assert len(sent[name]) == len(last)
        values = {(each.key, each.value) for each in batch.records if type(each) is Param}
        assert len(values) == len(sent["params"]), "two values of one param in one request"

    def check_limits(self, batch: RecordBatch, sent: dict[str, list[Any]]) -> None:
        assert len(batch.body) <= LIMITS.body_bytes or len(batch.records) == 1
        for kind, name in ((Metric, "metrics"), (Param, "params"), (RunTag, "tags")):
            count = sum(type(record) is kind for record in batch.records)
            assert len(sent[name]) <= count <= getattr(LIMITS, name)
        assert 1 <= len(batch.records) <= LIMITS.entities

    def check_barrier(self, run_id: str) -> None:
        mine = [batch for batch in self.in_flight if batch.run_id == run_id]
        assert len(mine) == 1 or not any(batch.is_barrier for batch in mine)
        for batch in mine:
            assert batch.is_barrier == any(type(each) is not Metric for each in batch.records)

    def check_turns(self, batches: list[RecordBatch]) -> None:
        """A lane that is ready leaves before any other has left twice.

        Lanes in trouble do so among themselves: they get a turn after so many of the others.
        """
        left = [(batch.run_id, batch.lane.failures > 0) for batch in batches]
        for run_id, lane in self.accumulator.lanes.items():
            passed_over = self.passed_over[run_id]
            is_ready = lane.ready_at is not None and lane.ready_at <= self.now
            if not is_ready or any(run_id == each for each, _ in left):
                passed_over.clear()
                continue
            passed_over.update(left)
            by_healthy, by_troubled = (
                [count for (_, troubled), count in passed_over.items() if troubled is trouble]
                for trouble in (False, True)
            )
            if lane.failures:
                assert sum(by_healthy) <= SHARE_OF_TROUBLE * (sum(by_troubled) + 1)
                assert max(by_troubled, default=0) <= 2
            else:
                assert max(by_healthy, default=0) <= 2
                assert sum(by_troubled) <= 1

    # What must hold at any time

    @invariant()
    def counters_agree(self) -> None:
        accumulator = self.accumulator
        flying = sum(len(batch.records) for batch in self.in_flight)
        added = sum(len(history.added) for history in self.runs.values())
        ended = accumulator.delivered + sum(accumulator.rejected.values())
        assert accumulator.in_flight == flying
        assert accumulator.batches_in_flight == len(self.in_flight)
        assert accumulator.unsettled + ended == added
        assert sum(lane.unsettled for lane in accumulator.lanes.values()) == accumulator.unsettled
        assert (accumulator.cost == 0) == (accumulator.unsettled == 0)

    @invariant()
    def everything_ends_once(self) -> None:
        for run_id, history in self.runs.items():
            lane = self.accumulator.lane(run_id)
            assert all(count == 1 for count in history.ends.values())
            assert sum(record.done for record in history.added) == len(history.ends)
            assert all(record.done for record in history.added[: lane.settled_until])
            assert lane.delivered + lane.refused_count == len(history.ends)

    @invariant()
    def order_is_kept(self) -> None:
        """Params and tags of a key took effect in the order of the calls, resends aside."""
        for history in self.runs.values():
            place = {id(record): n for n, record in enumerate(history.added)}
            for applied in history.applied.values():
                places = [place[id(record)] for record in applied]
                newest = -1
                for n, each in enumerate(places):
                    # Back to the start of a request that was resent, and never behind that.
                    assert each > newest or each in places[:n]
                    newest = max(newest, each)

    def teardown(self) -> None:
        """From anywhere, a service that is back delivers everything but what is bad."""
        for batch in self.in_flight:
            self.accumulator.wait_turn(batch, self.now, self.now)
        self.in_flight.clear()
        while (deadline := self.accumulator.next_deadline()) is not None:
            self.now = max(self.now, deadline)
            for batch in self.accumulator.drain(self.now, 3):
                self.check_batch(batch)
                if any(map(is_bad, batch.records)):
                    self.accumulator.refuse(batch, BadRequest("", status=400), self.now)
                else:
                    self.accumulator.succeed(batch, self.now)
        self.check_end()

    def check_end(self) -> None:
        accumulator = self.accumulator
        assert (accumulator.waiting, accumulator.in_flight, accumulator.cost) == (0, 0, 0)
        for run_id, history in self.runs.items():
            assert accumulator.lane(run_id).is_idle
            for record in history.added:
                given_up = isinstance(record.place, GivenUp)
                told = history.ends.get(id(record))
                assert record.delivered or given_up
                # Refused although good: only where the run was lost, or it was too large alone.
                assert not given_up or is_bad(record) or told


AccumulatorMachine.TestCase.settings = settings(
    max_examples=250, stateful_step_count=50, deadline=None
)


class TestAccumulatorMachine(AccumulatorMachine.TestCase):  # type: ignore[misc,valid-type]
    """No limit broken, nothing lost, nothing twice, order kept, no lane starved."""


@pytest.mark.parametrize("room", [1, 4])
def test_ready_lanes_leave_within_one_round(room: int) -> None:
    """However busy the others are, a lane that is ready leaves before another leaves twice."""
    accumulator = Accumulator(limits=LIMITS)
    for n in range(600):
        accumulator.add(f"run-{n % 3}", Metric("loss", 0.5, 0, n), 0.0)
    accumulator.add("quiet", Metric("loss", 0.5, 0, 0), 0.0)

    left: list[str] = []
    while "quiet" not in left:
        left += [batch.run_id for batch in accumulator.drain(LINGER, room)]

    assert len(left) <= 4 + room
