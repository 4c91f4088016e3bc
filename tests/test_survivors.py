"""What no other test would notice if it broke, grouped by what a user would see.

Each was found by breaking one line of the core and seeing all other tests pass.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from attrs import define, field
from children import ROOT
from play import Play
from test_dispatch import BUSY, FAULT, HOUR, poisoned
from test_sender import DOWN, Scribe, Stage, run_virtually

from adp_async._io.recovery import Found, Recoveries, open_orphans
from adp_async._io.sender import NotYet
from adp_async._sansio.accumulator import Accumulator
from adp_async._sansio.actions import Action
from adp_async._sansio.blame import gist
from adp_async._sansio.concurrency import Concurrency
from adp_async._sansio.dispatch import (
    BEFORE_HALVING,
    ENOUGH_CONTRASTS,
    ENOUGH_EVIDENCE,
    FRUITLESS,
    MOST_ASIDE,
    TROUBLE_TURNS,
    Dispatcher,
    Pulse,
)
from adp_async._sansio.records import METRIC_COST, Metric, RunTag
from adp_async._sansio.refusals import ENOUGH_REFUSALS, GIVEN_UP_AT_ONCE
from adp_async._sansio.rejections import REJECTION_COST
from adp_async._sansio.retry import RetryPolicy
from adp_async._sansio.throttle import Throttle
from adp_async.errors import (
    BadRequest,
    BufferFull,
    Closed,
    ConnectionLost,
    DeliveryError,
    Forbidden,
    PayloadTooLarge,
    ServiceFault,
)
from adp_async.testing import FakeBlockingSession, FakeSession

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from adp_async import Run
    from adp_async._sansio.batch import RecordBatch
    from adp_async._sansio.lane import Lane
    from adp_async._sansio.records import AnyRecord
    from adp_async.errors import AdpError


LOG_BATCH = "log_experiment_run_batch"
CUT = ConnectionLost("the line is cut")
REFUSED = BadRequest("bad", status=400, code="INVALID_PARAMETER_VALUE")


async def eventually(condition: Callable[[], object], within: float = 30.0) -> None:
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110 - what is looked at has no event
            await asyncio.sleep(0.002)


def metrics(count: int) -> list[Metric]:
    return [Metric("loss", 0.5, 0, step) for step in range(count)]


# A record that nobody waits for is sent within a linger


@pytest.mark.parametrize("spool", [False, True], ids=["memory", "spool"])
@pytest.mark.parametrize("place", ["loop", "thread"])
async def test_after_an_idle_spell_a_metric_is_sent(
    spool: bool, place: str, tmp_path: Path
) -> None:
    """Nobody flushes or awaits: the first metric after a pause wakes whoever sends."""
    async with FakeSession(spool=tmp_path / "spool" if spool else False) as session:
        run = session.attach_run(session.add_run())
        for count in range(1, 5):
            if place == "loop":
                run.log_metric("loss", 0.5, step=count)
            else:
                await asyncio.to_thread(run.log_metric, "loss", 0.5, step=count)
            await eventually(lambda: run.stats().delivered == count)  # noqa: B023
        assert session.received(run.run_id).batches == [1] * 4


async def test_after_an_idle_spell_a_tag_is_sent() -> None:
    """What has a text takes another way in than a metric."""
    async with FakeSession() as session:
        run = session.attach_run(session.add_run())
        for count in range(1, 4):
            run.set_tag("epoch", count)
            await eventually(lambda: run.stats().delivered == count)  # noqa: B023


def test_after_an_idle_spell_a_blocking_session_sends() -> None:
    """The same without an event loop of one's own."""
    with FakeBlockingSession() as session:
        run = session.start_run()
        for count in range(1, 5):
            run.log_metric("loss", 0.5, step=count)
            deadline = time.monotonic() + 30.0
            while run.stats().delivered < count and time.monotonic() < deadline:
                time.sleep(0.002)
            assert run.stats().delivered == count


async def test_while_one_run_is_held_back_another_is_sent() -> None:
    """A metric that comes during a long back-off of another run is seen within a linger."""
    retry = RetryPolicy(first_backoff=600.0, max_backoff=600.0)
    async with FakeSession(retry=retry, close_timeout=0.01) as session:
        held, run = (session.attach_run(session.add_run()) for _ in range(2))
        forbidden = {"code": "NotAuthorized", "message": "not yours"}
        script = session.answer(LOG_BATCH, forbidden, status=403, times=1)
        held.log_metric("loss", 0.5)
        await eventually(lambda: script.given == 1)
        for count in range(1, 4):
            run.log_metric("loss", 0.5, step=count)
            await eventually(lambda: run.stats().delivered == count)  # noqa: B023
        session.logger.discard(held.run_id)


def test_records_that_come_during_a_long_back_off_are_seen_within_a_linger() -> None:
    """Nobody is woken by the second record and those after it, so somebody looks."""

    async def scene() -> None:
        stage = Stage(script=[ServiceFault("no", status=500)] * 20, latency=0.0)
        stage.log("bad", *metrics(1))
        playing = asyncio.create_task(stage.play(200.0))
        await asyncio.sleep(100.0)
        looks = stage.looks
        await asyncio.sleep(10.0)
        assert 9 <= stage.looks - looks <= 40
        await playing

    run_virtually(scene())


# While nobody gets through


@pytest.mark.parametrize("trouble", [DOWN, ServiceFault("no", status=503)], ids=["all", "either"])
def test_one_batch_at_a_time_finds_out(trouble: Exception) -> None:
    """However many runs wait, and however long an answer takes."""

    async def scene() -> None:
        stage = Stage(script=[trouble] * 1000, latency=20.0)
        for number in range(10):
            stage.log(f"run-{number}", *metrics(3))
        await stage.play(300.0)
        assert len(stage.posted) > 3
        assert stage.most_in_flight == 1

    run_virtually(scene())


def test_after_a_verdict_the_back_off_begins_anew() -> None:
    """A refusal is an answer, too: the next outage starts with short pauses."""

    async def scene() -> None:
        stage = Stage(script=[DOWN] * 7 + [REFUSED, DOWN], latency=0.0)
        stage.log("one", *metrics(1))
        playing = asyncio.create_task(stage.play(400.0))
        await asyncio.sleep(200.0)
        assert stage.accumulator.rejected == {"BadRequest": 1}
        stage.log("two", *metrics(1))
        await playing
        failed, delivered = stage.posted[-2:]
        assert delivered - failed <= 1.0

    run_virtually(scene())


def test_a_run_that_waits_is_hurried_when_another_gets_through() -> None:
    """The outage is over: nobody waits out what was asked for while it lasted."""

    async def scene() -> None:
        busy = ServiceFault("no", status=503)
        busy.retry_after = 300.0
        stage = Stage(script=[busy], latency=0.0)
        stage.log("other", *metrics(1))
        playing = asyncio.create_task(stage.play(100.0))
        await asyncio.sleep(5.0)
        stage.log("one", *metrics(1))
        await playing
        assert stage.accumulator.delivered == 2

    run_virtually(scene())


def test_runs_in_trouble_are_tried_one_at_a_time() -> None:
    """While their answers take long as well: the places are for the others."""

    async def scene() -> None:
        forbidden = Forbidden("not yours", status=403, code="NotAuthorized")
        stage = Stage(script=[forbidden] * 10_000, latency=5.0)
        for number in range(10):
            stage.log(f"run-{number}", *metrics(1))
        await stage.play(300.0)
        assert len(stage.posted) > 20
        assert stage.most_in_flight <= 2

    run_virtually(scene())


def test_a_batch_is_halved_after_so_many_failures() -> None:
    """No sooner and no later, where the run is shown and nothing else is sent."""

    async def scene() -> None:
        broken = ServiceFault("no", status=500, code="InternalError")
        stage = Stage(script=[broken] * 10_000)
        stage.log("run", *metrics(2))
        await stage.play(600.0)
        assert stage.tokens.count(stage.tokens[0]) == BEFORE_HALVING

    run_virtually(scene())


def test_a_run_that_fails_on_everything_is_not_taken_apart_for_ever() -> None:
    """Where no record of it gets through, it is the run: what waits is held, not given up."""
    play = poisoned()
    play.every(1.0, lambda: play.log_points("other", 1), 4 * HOUR)
    play.at(20.0, lambda: play.log("run", *(Metric("poison", 0.5, 0, n) for n in range(64))))
    play.run(6 * HOUR)

    assert 0 < play.accumulator.rejected.total() <= FRUITLESS + 1
    assert play.accumulator.unsettled == 64 - play.accumulator.rejected.total()


def test_others_go_before_a_few_records_only() -> None:
    """When more of a run fail than that, it is the run that is in trouble."""
    words = [f"poison-{number}" for number in range(2 * MOST_ASIDE)]
    play = poisoned(BUSY, *words)
    for at, word in enumerate(words):
        play.at(20.0 + at, lambda word=word: play.log("run", RunTag(word, "")))
    play.every(1.0, lambda: play.log_points("other", 5), 1800.0)
    play.run(3600.0)

    assert len(play.lanes["run"].aside) == MOST_ASIDE
    assert play.accumulator.unsettled == len(words)


def test_a_500_of_somebody_else_costs_no_record() -> None:
    """Without the service's code it may come from anywhere: the record is held."""
    play = poisoned(ServiceFault("no", status=500))
    play.every(1.0, lambda: play.log_points("run", 5), 1800.0)
    play.every(1.0, lambda: play.log_points("other", 5), 1800.0)
    play.at(20.0, lambda: play.log("run", RunTag("note", "poison")))
    play.run(7200.0)

    assert play.accumulator.rejected.total() == 0
    assert play.accumulator.unsettled == 1


def test_a_413_of_somebody_else_costs_no_record() -> None:
    """A proxy that takes no record of that size is no verdict: it is held, and sent again."""

    async def scene() -> None:
        stage = Stage(script=[PayloadTooLarge("no", status=413)] * 5)
        stage.log("run", *metrics(1))
        await stage.play(600.0)
        assert (stage.accumulator.delivered, stage.accumulator.rejected.total()) == (1, 0)

    run_virtually(scene())


def test_when_another_run_got_through_is_known_of_each() -> None:
    """Also of the run that was the last."""
    pulse = Pulse()
    for now, run_id in enumerate(("a", "b", "b")):
        pulse.got_through(run_id, float(now), float(now))

    assert [pulse.of_others(run_id) for run_id in "abc"] == [2.0, 0.0, 2.0]


def test_what_was_delivered_late_left_before() -> None:
    """It tells of the service as it was then, and what left last was not the last to arrive."""
    pulse = Pulse()
    pulse.got_through("a", 3.0, 9.0)
    pulse.got_through("b", 1.0, 10.0)

    assert pulse.departed_at == 3.0


def test_evidence_begins_anew_when_another_fails_as_well() -> None:
    """Then it may be the service that has a bad day, and not the record."""
    seen: list[int] = []

    def answers(batch: RecordBatch, now: float) -> AdpError | None:
        if batch.run_id == "bad":
            seen.append(batch.evidence)
            return FAULT
        return FAULT if len(seen) == 7 and not batch.failures else None

    play = Play(answers)
    play.log_points("bad", 1)
    play.every(0.5, lambda: play.log_points("good", 1), 300.0)
    play.run(300.0)

    assert seen[6] > 4
    assert 0 in seen[7:9]


@pytest.mark.parametrize(("missing", "rejected"), [(1, 1), (2, 0)])
def test_a_record_is_given_up_at_the_last_bit_of_evidence(missing: int, rejected: int) -> None:
    """A failure while the run is shown is one bit: the one that was missing, or not yet."""
    accumulator = Accumulator()
    dispatcher = Dispatcher(accumulator, Throttle(), RetryPolicy(), Concurrency(4))
    accumulator.add("run", RunTag("note", "poison"), 0.0)
    (batch,) = dispatcher.drain(1.0)
    batch.failed(1.0)
    batch.evidence, batch.contrasts = ENOUGH_EVIDENCE - missing, ENOUGH_CONTRASTS
    dispatcher.answered(batch, FAULT, Action.BACK_OFF, 2.0, jitter=0.5, is_visible=True)

    assert accumulator.rejected.total() == rejected
    assert accumulator.unsettled == 1 - rejected


def test_under_a_quota_runs_in_trouble_have_one_turn_in_ten() -> None:
    """All of them together, so that the others have the rest."""
    accumulator, throttle = Accumulator(), Throttle()
    dispatcher = Dispatcher(accumulator, throttle, RetryPolicy(), Concurrency(4))
    throttle.refused(departed=0.0, now=0.0, jitter=0.0, retry_after=0.1)
    error = Forbidden("not yours", status=403, code="NotAuthorized")
    for number in range(2):
        accumulator.add(f"run-{number}", Metric("loss", 0.5, 0, 0), 0.0)
    for now in (2.0, 3.0):
        (batch,) = dispatcher.drain(now)
        dispatcher.answered(batch, error, Action.HOLD, now, jitter=0.0)
    rate = throttle.rate(3.0)
    assert rate is not None
    again_at = 3.0 + TROUBLE_TURNS / rate

    assert dispatcher.drain(again_at - 0.1) == []
    assert len(dispatcher.drain(again_at + 0.1)) == 1


def test_who_is_tried_again_keeps_nobody_from_leaving() -> None:
    """One batch may be under way, and that of a run in trouble does not count."""

    async def scene() -> None:
        async def slow(batch: RecordBatch) -> None:
            if batch.failures:
                await asyncio.sleep(60.0)

        forbidden = Forbidden("not yours", status=403, code="NotAuthorized")
        stage = Stage(script=[forbidden], keeper=Scribe(slow))
        stage.log("bad", *metrics(1))
        playing = asyncio.create_task(stage.play(100.0))
        await asyncio.sleep(10.0)
        stage.log("good", *metrics(1))
        await asyncio.sleep(5.0)
        assert stage.accumulator.delivered == 1
        await playing

    run_virtually(scene())


def test_who_could_not_leave_when_tried_again_is_tried_once_more() -> None:
    """The disk did not take its token just then; nothing else stands in its way."""

    async def scene() -> None:
        obstacles = [NotYet("full")]

        async def write_down(batch: RecordBatch) -> None:
            if batch.failures and obstacles:
                raise obstacles.pop()

        forbidden = Forbidden("not yours", status=403, code="NotAuthorized")
        stage = Stage(script=[forbidden], keeper=Scribe(write_down))
        stage.log("run", *metrics(1))
        await stage.play(60.0)
        assert not obstacles
        assert stage.accumulator.delivered == 1

    run_virtually(scene())


@pytest.mark.parametrize(("is_paced", "leave"), [(False, 4), (True, 1)])
def test_under_a_quota_one_leaves_at_a_time(is_paced: bool, leave: int) -> None:
    """The others wait for their turn in the queue, where more can join them."""
    accumulator, throttle = Accumulator(), Throttle()
    dispatcher = Dispatcher(accumulator, throttle, RetryPolicy(), Concurrency(4))
    dispatcher.concurrency.limit = 4
    for number in range(4):
        accumulator.add(f"run-{number}", Metric("loss", 0.5, 0, 0), 0.0)
    if is_paced:
        throttle.refused(departed=0.0, now=0.0, jitter=0.0, retry_after=1.0)
    assert throttle.delay(3.0) == 0.0

    assert len(dispatcher.drain(3.0)) == leave


def test_a_new_run_waits_for_those_that_came_before() -> None:
    """It may overtake nobody only because nothing of it was delivered yet."""
    accumulator = Accumulator()
    accumulator.add("old", Metric("loss", 0.5, 0, 0), 0.0)
    (batch,) = accumulator.drain(1.0)
    accumulator.succeed(batch, 1.0)
    lane = batch.lane
    accumulator.add("old", Metric("loss", 0.5, 0, 0), 1.0)
    accumulator.add("new", Metric("loss", 0.5, 0, 0), 1.5)

    assert [each.run_id for each in accumulator.drain(9.0, room=2)] == ["old", "new"]
    assert lane.delivered == 1


def test_metrics_join_the_tags_that_wait_before_them() -> None:
    """With a journal full requests are sealed before their turn; one full of tags has room yet."""
    accumulator = Accumulator()
    accumulator.seals_ahead = True
    accumulator.add("run", Metric("loss", 0.5, 0, 0), 0.0)
    (batch,) = accumulator.drain(1.0)
    accumulator.succeed(batch, 1.0)
    limits = accumulator.limits
    for record in [
        *metrics(limits.entities),
        *(RunTag(f"tag-{number}", "") for number in range(limits.tags)),
    ]:
        accumulator.add("run", record, 2.0)
    (full,) = accumulator.drain(2.0)
    for record in metrics(5):
        accumulator.add("run", record, 2.0)
    accumulator.succeed(full, 3.0)
    (mixed,) = accumulator.drain(3.0)

    assert [len(full.records), len(mixed.records)] == [limits.entities, limits.tags + 5]


# Memory


async def test_params_that_found_no_room_cost_nothing() -> None:
    """However many were refused, there is as much room as before when the buffer is empty."""
    async with FakeSession(buffer_limit=100 * METRIC_COST) as session:
        run = session.attach_run(session.add_run())
        script = session.answer(LOG_BATCH, status=503)
        for step in range(100):
            run.log_metric("loss", 0.5, step=step)
        await eventually(lambda: script.given)
        for number in range(50):
            with pytest.raises(BufferFull):
                run.log_param(f"p{number}", "x" * 1000)
        script.left = 0
        async with asyncio.timeout(60):
            await run.flush()
            for step in range(100, 150):
                run.log_metric("loss", 0.5, step=step)
            await run.drain()
            await run.flush()
        assert run.stats().delivered == 150


def fill(run: Run) -> int:
    """How many metrics are accepted until there is no room."""
    count = 0
    with suppress(BufferFull):
        while True:
            run.log_metric("loss", 0.5)
            count += 1
    return count


async def test_refused_records_take_room_until_somebody_is_told() -> None:
    """What is kept of them is a part of what the buffer may hold, and given back by a flush."""
    limit = 100_000
    room = []
    async with FakeSession(buffer_limit=limit, close_timeout=0.01) as session:
        run = session.attach_run(session.add_run())
        for number in range(9):
            run.log_param(f"no@way{number}", 1)
        await eventually(lambda: run.stats().rejected == {"BadRequest": 9})
        session.answer(LOG_BATCH, CUT)
        for _ in range(2):
            room.append(fill(run))
            run.discard()
            with suppress(DeliveryError):
                await run.flush()
    before, after = room
    assert before <= (limit - 9 * REJECTION_COST) // METRIC_COST
    assert after == limit // METRIC_COST


async def test_drain_waits_until_half_of_the_buffer_is_free() -> None:
    """Not only until there is room for a batch."""
    async with FakeSession(
        buffer_limit=6000 * METRIC_COST, max_in_flight=1, linger=60.0
    ) as session:
        run = session.attach_run(session.add_run())
        session.answer("log_experiment_run_batch", times=3)
        failing = session.answer("log_experiment_run_batch", status=503)
        for step in range(5900):
            run.log_metric("loss", 0.5, step=step)
        await run.drain()
        assert run.stats().undelivered == 2900
        failing.left = 0


async def test_the_disk_makes_room_for_who_waits_for_it(tmp_path: Path) -> None:
    """`drain` returns while the service is down: half of the buffer goes to the disk."""
    knobs: dict[str, Any] = {"spool": tmp_path / "spool", "spool_interval": 0.01}
    limit = 4000 * METRIC_COST
    async with FakeSession(**knobs, buffer_limit=limit, close_timeout=0.01) as session:
        session.answer(LOG_BATCH, CUT)
        run = session.attach_run(session.add_run())
        for step in range(3500):
            run.log_metric("loss", 0.5, step=step)
        async with asyncio.timeout(60):
            await run.drain()
        stats = run.stats()
        assert stats.accepted == stats.undelivered == 3500
        assert stats.spooled >= 1500
        session.logger.discard(run.run_id)


@pytest.mark.usefixtures("patient_loop")
async def test_runs_are_read_back_in_turns(tmp_path: Path) -> None:
    """With memory for one at a time, a run does not wait until all of another was delivered."""
    knobs: dict[str, Any] = {"spool": tmp_path / "spool", "spool_interval": 0.01}
    async with FakeSession(**knobs, buffer_limit=2500 * METRIC_COST) as session:
        script = session.answer(LOG_BATCH, CUT)
        runs = [session.attach_run(session.add_run(name)) for name in ("one", "other")]
        for step in range(10_000):
            for run in runs:
                run.log_metric("loss", 0.5, step=step)
            if step % 500 == 0:
                await asyncio.sleep(0.005)
        await eventually(lambda: session.logger.stats().spooled > 15_000)
        script.left = 0
        at_one_end: list[int] = []

        def note() -> bool:
            delivered = [run.stats().delivered for run in runs]
            if max(delivered) > 8000 and not at_one_end:
                at_one_end.extend(delivered)
            return min(delivered) == 10_000

        flush = asyncio.create_task(session.logger.flush())
        await eventually(note, within=120.0)
        await flush
    assert min(at_one_end) > 3000


# Refusals


@define(eq=False)
class Table:
    """An accumulator that is asked at time 0, and the service's answers to what it hands out."""

    accumulator: Accumulator = field(factory=lambda: Accumulator(linger=0.0))
    #: A writer holds its lane while nothing waits.
    lanes: dict[str, Lane] = field(factory=dict)

    def send(self, *records: AnyRecord, run_id: str = "run") -> RecordBatch:
        self.lanes[run_id] = self.accumulator.lane(run_id)
        for record in records:
            self.accumulator.add(run_id, record, 0.0)
        return self.next()

    def next(self) -> RecordBatch:
        (batch,) = self.accumulator.drain(0.0)
        return batch

    def refuse(self, batch: RecordBatch, message: str = "bad") -> None:
        error = BadRequest(message, status=400, code="INVALID_PARAMETER_VALUE")
        self.accumulator.refuse(batch, error, 0.0)

    def succeed(self, batch: RecordBatch) -> None:
        self.accumulator.succeed(batch, 0.0)

    def refuse_often(self, key: str, times: int) -> None:
        """Each alone, while the service takes those of another run."""
        for _ in range(times):
            self.refuse(self.send(Metric(key, 0.5, 0, 0)))
            self.succeed(self.send(Metric("good", 0.5, 0, 0), run_id="other"))


@pytest.mark.parametrize(
    ("refusals", "is_bad"), [(ENOUGH_REFUSALS - 1, False), (ENOUGH_REFUSALS, True)]
)
def test_the_tenth_refusal_makes_a_key_bad(refusals: int, is_bad: bool) -> None:
    """From then on a batch of it is given up as a whole; one before, it is searched."""
    table = Table()
    table.refuse_often("loss", refusals)
    table.refuse(table.send(*metrics(4)))

    assert table.accumulator.rejected.total() == refusals + (4 if is_bad else 0)
    assert table.lanes["run"].unsettled == (0 if is_bad else 4)


def test_a_key_that_was_delivered_once_is_never_bad() -> None:
    """However many of its values are refused after that."""
    table = Table()
    table.succeed(table.send(*metrics(1)))
    table.refuse_often("loss", 3 * ENOUGH_REFUSALS)
    table.refuse(table.send(*metrics(4)))

    assert table.lanes["run"].unsettled == 4


def test_of_a_batch_under_way_a_sample_is_looked_at() -> None:
    """Its key turned bad meanwhile: some records are sent alone before the rest is given up."""
    table = Table()
    under_way = table.send(*metrics(100))
    table.refuse_often("loss", ENOUGH_REFUSALS)
    table.refuse(under_way)
    sizes = []
    while table.lanes["run"].unsettled:
        batch = table.next()
        sizes.append((len(batch.records), batch.is_final))
        table.succeed(batch)

    assert sizes == [(1, False)] * 3 + [(97, True)]


def test_a_key_that_is_named_is_refused_here_from_then_on() -> None:
    """For a minute: the service has said that it is the key."""
    table = Table()
    table.refuse(table.send(Metric("a", 0.5, 0, 0), Metric("b", 0.5, 0, 0)), "metrics[0].key")
    table.refuse(table.next(), "metrics[0].key")
    table.succeed(table.next())
    for now, batches in ((0.0, 0), (59.0, 0), (61.0, 1)):
        table.accumulator.add("run", Metric("a", 0.5, 0, 0), now)
        assert len(table.accumulator.drain(now)) == batches


def test_of_many_bad_keys_one_is_asked_about() -> None:
    """A request for each of them, again and again, is what they must not cost."""
    table = Table()
    for key in "abc":
        table.refuse_often(key, ENOUGH_REFUSALS)
    rejected = table.accumulator.rejected.total()
    batch = table.send(*(Metric(key, 0.5, 0, 0) for key in "abc"))

    assert len(batch.records) == 1
    assert table.accumulator.rejected.total() == rejected + 2


def test_values_that_are_named_make_no_key_suspect() -> None:
    """The service says that it is the value: the key's next record travels with all others."""
    table = Table()
    for step in range(3):
        batch = table.send(*metrics(2))
        table.refuse(batch, "metrics[0].value is wrong")
        if not step:  # the first time that is looked at
            table.refuse(table.next(), "metrics[0].value is wrong")
        table.refuse(table.next(), "metrics[0].value is wrong")

    assert table.accumulator.rejected.total() == 6
    assert not table.lanes["run"].suspects


def test_of_a_tag_that_is_there_twice_the_first_value_is_sent_first() -> None:
    """The words of a refusal accuse the last one, since only that was in the request."""
    table = Table()
    table.refuse(table.send(RunTag("state", "a"), RunTag("state", "b")), "tags[0].value is wrong")
    first = table.next()
    table.succeed(first)

    assert [record.value for record in (*first.records, *table.next().records)] == ["a", "b"]


def test_after_ten_in_a_row_the_service_is_asked_again() -> None:
    """Perhaps it is somebody else who refuses everything: the same request goes once more."""
    table = Table()
    for number in range(GIVEN_UP_AT_ONCE + 1):
        table.refuse(table.send(*metrics(1), run_id=f"run-{number}"))

    assert table.accumulator.rejected.total() == GIVEN_UP_AT_ONCE
    assert table.accumulator.next_deadline() == 1.0


def test_the_same_words_with_another_code_are_another_reason() -> None:
    """So are those with another status; what differs from record to record is not."""
    reasons = [
        BadRequest("'a' is wrong", status=400, code="INVALID_PARAMETER_VALUE"),
        BadRequest("'b' is wrong", status=400, code="INVALID_PARAMETER_VALUE"),
        BadRequest("'a' is wrong", status=400, code="MALFORMED_REQUEST"),
        BadRequest("'a' is wrong", status=422, code="INVALID_PARAMETER_VALUE"),
    ]
    same, again, *others = map(gist, reasons)
    assert same == again
    assert same not in others


# Giving up


async def test_what_is_in_flight_when_its_run_is_discarded_is_not_tried_again() -> None:
    """It is dropped when its attempt fails, and whoever waits for it is told."""
    async with FakeSession() as session:
        run = session.attach_run(session.add_run())
        service, asked, goes_on = session.service, threading.Event(), threading.Event()
        send = service.send

        async def breaks(request: Any, *, timeout: float | None = None) -> Any:
            asked.set()
            await eventually(goes_on.is_set)
            raise CUT

        service.send = breaks  # type: ignore[method-assign]
        receipt = run.log_metric("loss", 0.5, step=1)
        await eventually(asked.is_set)
        service.send = send  # type: ignore[method-assign]
        assert run.discard() == 0
        goes_on.set()
        async with asyncio.timeout(60):
            with pytest.raises(DeliveryError, match="discarded"):
                await receipt
            await run.log_metric("loss", 0.5, step=2)
        assert [metric.step for metric in session.received(run.run_id).metrics] == [2]
        stats = run.stats()
        assert (stats.accepted, stats.delivered, stats.dropped) == (2, 1, 1)


async def test_discarding_makes_room() -> None:
    """Params and metrics alike: the buffer is as empty as their receipts say."""
    async with FakeSession(buffer_limit=200 * METRIC_COST) as session:
        run = session.attach_run(session.add_run())
        session.answer(LOG_BATCH, CUT)
        for _ in range(10):
            for step in range(50):
                run.log_metric("loss", 0.5, step=step)
            receipt = run.log_param("notes", "x" * 5000)
            await asyncio.sleep(0.002)
            assert run.discard() >= 0
            await eventually(lambda: run.stats().undelivered == 0)
            with pytest.raises(DeliveryError):
                await receipt
        assert run.stats().dropped == run.stats().accepted == 510


async def test_a_flush_of_one_run_tells_nothing_of_another() -> None:
    """What was refused of the other is named by the next flush of that."""
    async with FakeSession() as session:
        runs = [session.attach_run(session.add_run(name)) for name in ("one", "other")]
        for run in runs:
            run.log_param("no@way", 1)
        await eventually(lambda: all(run.stats().rejected for run in runs))
        for run in runs:
            with pytest.raises(DeliveryError) as caught:
                await run.flush()
            assert [each.run_id for each in caught.value.rejections] == [run.run_id]
            await run.flush()


# The end, for threads that wait


class Waiting:
    """A thread with one `log_metric` that finds no room; how it ended, and why there is none."""

    def __init__(self, session: FakeBlockingSession) -> None:
        run = session.start_run()
        self.script = session.session.answer(LOG_BATCH, status=503)
        for step in range(10):
            run.log_metric("loss", 0.5, step=step)
        self.run = run
        self.error: BaseException | None = None
        self._begins = threading.Event()
        self.thread = threading.Thread(target=self._log)
        self.thread.start()
        self._begins.wait(60.0)
        time.sleep(0.03)
        assert self.thread.is_alive(), "there is no room"

    def _log(self) -> None:
        self._begins.set()
        try:
            self.run.log_metric("loss", 0.5, step=10)
        except BaseException as error:
            self.error = error


def test_a_thread_that_waits_when_the_session_closes_is_told() -> None:
    """It hears so at once, not when the session has ended, and its record was not taken."""
    session = FakeBlockingSession(
        buffer_limit=10 * METRIC_COST, max_block=120.0, close_timeout=60.0
    ).open()
    waiting = Waiting(session)
    closing = threading.Thread(target=session.close)
    closing.start()
    waiting.thread.join(30.0)
    assert not waiting.thread.is_alive()
    assert isinstance(waiting.error, Closed)
    assert closing.is_alive(), "it waits for the service"
    waiting.script.left = 0
    closing.join(60.0)
    stats = session.session.logger.stats()
    assert (stats.accepted, stats.delivered, stats.undelivered) == (10, 10, 0)


# Recovery


async def test_a_search_that_ends_early_holds_nobody(tmp_path: Path) -> None:
    """Params and tags wait while it is not known what was left of their runs, and no longer."""
    barred: list[frozenset[str] | None] = [None]
    may_look = threading.Event()

    def find(seen: set[Path], most: int) -> Found:
        may_look.wait(60.0)
        return Found()

    recoveries = Recoveries(
        find,
        make=lambda: None,  # type: ignore[arg-type,return-value]
        bar=barred.append,
        thread=None,  # type: ignore[arg-type]
        folder=tmp_path,
    )
    searching = asyncio.create_task(recoveries.run())
    await asyncio.sleep(0.01)
    searching.cancel()
    may_look.set()
    await asyncio.wait([searching])

    assert barred[-1] == frozenset()


def test_a_file_that_is_no_spool_is_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A session searches every minute as long as it lives, and reports it the first time."""
    path = tmp_path / "old.spool"
    path.write_bytes(b"a letter to somebody" * 100)
    os.utime(path, (0.0, 0.0))
    seen: set[Path] = set()
    for _ in range(3):
        assert open_orphans(tmp_path, identity=None, limit=10**6, but_not=seen) == Found()

    assert len([each for each in caplog.messages if str(path) in each]) == 1


# Forks

FORKED_WHILE_A_THREAD_LOGS = """
    import os, signal, sys, threading, time
    from adp_async.errors import Closed
    from adp_async.testing import FakeBlockingSession

    def child():
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(100)  # one that hangs dies of it
        for log in (session.logger.log_param, session.logger.set_tag, session.logger.log_metric):
            try:
                log(run.run_id, "key", 1.0)
            except Closed:
                continue
            os._exit(2)
        done.set()
        for log in (run.log_param, run.set_tag, run.log_metric):
            log("key", 1.0)
        run.flush()
        os._exit(0 if run.stats().delivered == 3 else 3)

    def work():
        while not done.is_set():
            for _ in range(50):
                run.set_tag("tag", "x")
            time.sleep(0.0005)  # or memory fills up

    sys.setswitchinterval(1e-6)
    done = threading.Event()
    with FakeBlockingSession(linger=0.001) as session:
        run = session.start_run()
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(40):
            pid = os.fork()
            if not pid:
                child()
            _, status = os.waitpid(pid, 0)
            if status:
                done.set()
                sys.exit(f"a child ended with {status}")
        done.set()
        for thread in threads:
            thread.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_never_waits_for_a_lock_of_the_parent() -> None:
    """Forked while other threads log, it hears at once that the session is not its own.

    The run that it inherits gets another.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FORKED_WHILE_A_THREAD_LOGS)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
