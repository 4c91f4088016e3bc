"""What the keeper of a spool does when the disk takes some things and not others.

Its commits are asked for one by one, before a spool that fails on demand: nothing here waits.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytest
from attrs import define, field
from spools import FAKE

from adp_async._io.keeper import SECONDS_BETWEEN_WARNINGS, SpoolKeeper
from adp_async._io.sender import NotYet
from adp_async._io.spool import Spool
from adp_async._io.spool_file import SpoolError, SpoolFull, SpoolLimit, SpoolUnreadable
from adp_async._io.state import DeliveryState
from adp_async._sansio.accumulator import Accumulator
from adp_async._sansio.concurrency import Concurrency
from adp_async._sansio.dispatch import Dispatcher
from adp_async._sansio.records import METRIC_COST, Metric, RunTag
from adp_async._sansio.retry import RetryPolicy
from adp_async._sansio.spilling import spill
from adp_async._sansio.throttle import Throttle
from adp_async.errors import BadRequest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from adp_async._sansio.batch import RecordBatch
    from adp_async._sansio.journal import Changes
    from adp_async._sansio.lane import Lane
    from adp_async._sansio.records import AnyRecord

FULL = SpoolFull("the disk is full")
LIMIT = SpoolLimit("the spool has reached spool_limit")
BROKEN = SpoolError("the disk is broken")


@define(eq=False)
class Disk:
    """A spool that takes records, tokens and ends of records, each unless it has an error."""

    path: str = "a.spool"
    records: SpoolError | None = None
    tokens: SpoolError | None = None
    ends: SpoolError | None = None
    rows: dict[int, AnyRecord] = field(factory=dict)
    damaged: range = range(0)
    written: list[Changes] = field(factory=list)

    def commit(self, changes: Changes, last_error: str = "") -> None:
        if changes.settled or changes.refused or changes.unreadable:
            if self.ends is not None:
                raise self.ends
            changes.is_settled = True
        if changes.chunks and self.records is not None:
            raise self.records
        if changes.sealed and self.tokens is not None:
            raise self.tokens
        for chunk in changes.chunks:
            self.rows.update(enumerate(chunk.records, chunk.first))
        self.written.append(changes)

    def load(self, run_id: str, first: int, last: int) -> list[AnyRecord]:
        if first in self.damaged:
            message = "records are damaged"
            raise SpoolUnreadable(message, self.damaged.stop)
        upto = min(last, self.damaged.start) if first < self.damaged.start else last
        return [self.rows[seq] for seq in range(first, upto)]

    def close(self, is_all_settled: bool = False) -> None:
        """Nothing is open."""


class NoIntake:
    """Nobody logs: what is in the lanes was put there by the test."""

    lock = nullcontext()

    def pull(self, now: float, *, leave_excess: bool = False) -> None:
        """Nothing comes."""

    def room_made(self) -> None:
        """Nobody waits."""


def state_of(accumulator: Accumulator) -> DeliveryState:
    dispatcher = Dispatcher(accumulator, Throttle(), RetryPolicy(), Concurrency(4))
    return DeliveryState(accumulator, dispatcher, NoIntake())  # type: ignore[arg-type]


@define(eq=False)
class Scene:
    """A keeper and its accumulator, and a person who reads the warnings."""

    disk: Disk
    caplog: pytest.LogCaptureFixture
    accumulator: Accumulator = field(init=False)
    keeper: SpoolKeeper = field(init=False)
    _steps: Any = field(factory=itertools.count, init=False)

    def __attrs_post_init__(self) -> None:
        tokens = itertools.count()
        self.accumulator = Accumulator(linger=0.0, tokens=(f"token-{number}" for number in tokens))
        self.keeper = SpoolKeeper(
            state_of(self.accumulator),
            spool=self.disk,  # type: ignore[arg-type]
            interval=60.0,
            memory_limit=2**30,
        )

    def log(self, count: int) -> Lane:
        lane = self.accumulator.lane("run")
        records = [Metric("loss", 0.5, 1, next(self._steps)) for _ in range(count)]
        for record in records:
            record.place = lane
        self.accumulator.take_in(records, 0.0)
        return lane

    def depart(self) -> RecordBatch:
        (batch,) = self.accumulator.drain(0.0)
        return batch

    @property
    def said(self) -> list[str]:
        warnings = [each for each in self.caplog.records if each.levelno >= logging.WARNING]
        return ["works" if "works again" in each.getMessage() else "fails" for each in warnings]


@pytest.fixture
async def scene(caplog: pytest.LogCaptureFixture) -> AsyncIterator[Scene]:
    scene = Scene(Disk(), caplog)
    yield scene
    scene.keeper._worker.stop()


async def test_a_token_that_is_written_says_nothing_of_the_next_record(scene: Scene) -> None:
    """At its limit a spool takes tokens and no records: that is said once, and not taken back."""
    scene.log(1000)
    await scene.keeper.commit()
    scene.disk.records = LIMIT
    for _ in range(5):
        scene.log(1000)
        await scene.keeper.commit()
        batch = scene.depart()
        await scene.keeper.before_departure(batch)
        scene.accumulator.succeed(batch, 0.0)
    assert scene.said == ["fails"]

    scene.disk.records = None
    scene.log(1)
    await scene.keeper.commit()
    assert scene.said == ["fails", "works"]
    assert scene.keeper.failure is None


async def test_what_could_not_be_settled_works_again_when_it_is(scene: Scene) -> None:
    """Where no record was refused room, the disk need not wait for one to be well again."""
    scene.log(1000)
    await scene.keeper.commit()
    batch = scene.depart()
    await scene.keeper.before_departure(batch)
    scene.accumulator.succeed(batch, 0.0)
    scene.disk.ends = FULL
    await scene.keeper.commit()
    assert isinstance(scene.keeper.failure, SpoolFull)

    scene.disk.ends = None
    await scene.keeper.commit()
    assert scene.said == ["fails", "works"]


async def test_a_disk_that_fails_by_turns_is_said_once_in_a_while(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty times in a row are one pair of warnings; five minutes later another one."""
    for _ in range(20):
        scene.disk.records = FULL
        scene.log(10)
        await scene.keeper.commit()
        scene.disk.records = None
        await scene.keeper.commit()
    assert scene.said == ["fails", "works"]

    monkeypatch.setattr(scene.keeper, "_warned_at", -SECONDS_BETWEEN_WARNINGS)
    scene.disk.records = FULL
    scene.log(10)
    await scene.keeper.commit()
    assert scene.said == ["fails", "works", "fails"]


async def test_a_hold_that_begins_later_is_said_too(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spool that takes no more records delivers what it has, until no token can be written."""
    scene.disk.records = LIMIT
    scene.log(10)
    await scene.keeper.commit()
    assert scene.said == ["fails"]
    assert "held back" not in scene.caplog.text

    monkeypatch.setattr(scene.keeper, "_warned_at", -SECONDS_BETWEEN_WARNINGS)
    for error in [LIMIT, FULL, FULL]:
        scene.disk.records = error
        await scene.keeper.commit()
    assert scene.said == ["fails", "fails"]
    assert "held back" in scene.caplog.text


@pytest.mark.parametrize("error", [FULL, LIMIT, BROKEN])
async def test_what_is_not_on_disk_waits_for_no_token(scene: Scene, error: SpoolError) -> None:
    """A batch whose records could not be written leaves: nobody will send it a second time."""
    scene.disk.records = scene.disk.tokens = error
    scene.log(1000)
    await scene.keeper.commit()
    assert scene.keeper.failure is error

    await scene.keeper.before_departure(scene.depart())


@pytest.mark.parametrize("error", [FULL, LIMIT])
async def test_what_is_on_disk_waits_for_its_token(scene: Scene, error: SpoolError) -> None:
    """While that can't be written the batch is held; once it can, it leaves."""
    scene.log(1000)
    await scene.keeper.commit()
    batch = scene.depart()
    scene.disk.tokens = FULL
    for _ in range(3):
        with pytest.raises(NotYet, match="retry token"):
            await scene.keeper.before_departure(batch)

    scene.disk.tokens, scene.disk.records = None, error
    await scene.keeper.before_departure(batch)
    assert scene.disk.written[-1].sealed[0].retry_token == batch.retry_token


async def test_every_part_has_its_token_on_disk_before_it_leaves(scene: Scene) -> None:
    """A batch that is taken apart by a suspect key: each part, with the ranges it covers."""
    lane = scene.accumulator.lane("run")
    records = [Metric("bad" if n % 3 == 0 else "good", 0.5, 1, n) for n in range(30)]
    for record in records:
        record.place = lane
    scene.accumulator.take_in(records, 0.0)
    await scene.keeper.commit()
    covered: dict[str, set[int]] = {}
    for _ in range(100):
        if not (batches := scene.accumulator.drain(0.0)):
            break
        (batch,) = batches
        await scene.keeper.before_departure(batch)
        on_disk = {
            each.retry_token: each.ranges
            for changes in scene.disk.written
            for each in changes.sealed
        }
        assert on_disk[batch.retry_token] == tuple(batch.ranges)
        mine = {seq for first, last in batch.ranges for seq in range(first, last)}
        assert [record.step for record in batch.records] == sorted(mine)  # type: ignore[union-attr]
        covered[batch.retry_token] = mine
        if any(record.key == "bad" for record in batch.records):
            error = BadRequest("no", status=400, code="INVALID_PARAMETER_VALUE")
            scene.accumulator.refuse(batch, error, 0.0)
        else:
            scene.accumulator.succeed(batch, 0.0)

    assert scene.accumulator.delivered == 20
    assert scene.accumulator.rejected == {"BadRequest": 10}
    assert len(covered) > 5


async def test_a_batch_that_is_partly_on_disk_is_written_whole_beyond_the_limit(
    tmp_path: Path,
) -> None:
    """Its token would mean nothing for a part of it, and the part would arrive twice."""
    spool = Spool.create(tmp_path / "spool", FAKE, limit=2**30)
    tokens = itertools.count()
    accumulator = Accumulator(linger=0.0, tokens=(f"token-{number}" for number in tokens))
    keeper = SpoolKeeper(
        state_of(accumulator),
        spool=spool,
        interval=60.0,
        memory_limit=2**30,
    )
    lane = accumulator.lane("run")
    for count in (600, 400, 5000):
        records = [Metric("loss", 0.5, 1, lane.next_seq + n) for n in range(count)]
        for record in records:
            record.place = lane
        accumulator.take_in(records, 0.0)
        await keeper.commit()
        spool._writer.limit = 1
    assert isinstance(keeper.failure, SpoolLimit)

    (batch,) = accumulator.drain(0.0)
    await keeper.before_departure(batch)
    (piece,) = spool.pieces()
    assert [(ranges, token) for ranges, token, _ in piece.sealed] == [
        (((0, 1000),), batch.retry_token)
    ]
    assert piece.spilled == ()
    spool.close()
    keeper._worker.stop()


async def test_at_the_end_what_is_on_disk_is_kept_by_a_disk_that_takes_no_more(
    scene: Scene,
) -> None:
    """A spool at its limit has what it has, and only a broken one is no good for that."""
    scene.log(1000)
    await scene.keeper.commit()
    scene.keeper.failure = LIMIT
    assert await scene.keeper.commit_last(30.0)

    scene.disk.records = LIMIT
    scene.log(1)
    assert not await scene.keeper.commit_last(30.0)

    scene.disk.records = None
    assert await scene.keeper.commit_last(30.0)
    scene.keeper.failure = BROKEN
    assert not await scene.keeper.commit_last(30.0)


async def test_a_short_queue_does_not_wait_for_what_cannot_be_read(scene: Scene) -> None:
    """Ten records before a damaged row leave, the row is counted as rejected, the rest follows."""
    lane = scene.log(3010)
    await scene.keeper.commit()
    spill(scene.accumulator, lane, 0.0, keep=10, journaled_until=3010)
    scene.disk.damaged = range(10, 1010)
    assert scene.accumulator.next_deadline() is None

    delivered: list[AnyRecord] = []
    for _ in range(20):
        await scene.keeper._read_back()
        for batch in scene.accumulator.drain(time.monotonic()):
            delivered += batch.records
            scene.accumulator.succeed(batch, 0.0)
    steps = [record.step for record in delivered]  # type: ignore[union-attr]
    assert steps == [*range(10), *range(1010, 3010)]
    assert scene.accumulator.rejected == {"SpoolUnreadable": 1000}
    assert scene.accumulator.unsettled == 0
    assert scene.accumulator.cost == 0


async def test_a_disk_that_cannot_be_read_for_a_moment(scene: Scene) -> None:
    """What waits before it leaves, and then it is read, in its order."""
    lane = scene.log(500)
    await scene.keeper.commit()
    spill(scene.accumulator, lane, 0.0, keep=10, journaled_until=500)
    scene.disk.damaged = range(10, 500)
    await scene.keeper._read_back()
    (batch,) = scene.accumulator.drain(time.monotonic())
    assert len(batch.records) == 10

    scene.disk.damaged = range(0)
    await scene.keeper._read_back()
    assert [record.step for record in lane.queue] == list(range(10, 500))  # type: ignore[union-attr]
    assert scene.accumulator.cost == 500 * METRIC_COST
    scene.accumulator.succeed(batch, 0.0)
    (rest,) = scene.accumulator.drain(time.monotonic())
    assert len(rest.records) == 490


async def test_a_tag_waits_for_what_it_overwrites(scene: Scene) -> None:
    """The end of the tag before is on disk before the next one leaves; full, it is held."""
    lane = scene.accumulator.lane("run")

    def tag(value: str) -> RecordBatch:
        record = RunTag("stage", value)
        record.place = lane
        scene.accumulator.take_in([record], 0.0)
        return scene.depart()

    first = tag("begin")
    await scene.keeper.commit()
    await scene.keeper.before_departure(first)
    scene.accumulator.succeed(first, 0.0)
    second = tag("end")
    scene.disk.ends = FULL
    with pytest.raises(NotYet):
        await scene.keeper.before_departure(second)
    scene.disk.ends = None
    async with asyncio.timeout(30):
        await scene.keeper.before_departure(second)
    assert scene.disk.written[-1].settled


async def test_a_commit_that_failed_unheard_is_made_up_for_at_the_end(scene: Scene) -> None:
    """Whoever waited for it was cancelled: its records are written all the same."""
    failed = threading.Event()

    class Broken(Disk):
        def commit(self, changes: Changes, last_error: str = "") -> None:
            failed.set()
            raise BROKEN

    scene.log(10)
    scene.keeper.spool = Broken()  # type: ignore[assignment]
    committing = asyncio.create_task(scene.keeper.commit())
    await asyncio.sleep(0)
    committing.cancel()
    assert failed.wait(30.0)
    scene.keeper.spool = scene.disk  # type: ignore[assignment]

    assert await scene.keeper.commit_last(30.0)
    assert len(scene.disk.rows) == 10


async def test_the_fullest_run_goes_to_the_disk_first(scene: Scene) -> None:
    """Runs with a few records stay in memory, and need not be read back for a batch."""
    for run_id, count in (("small", 10), ("middle", 1200), ("big", 5000)):
        for record in (records := [Metric("loss", 0.5, 1, step) for step in range(count)]):
            record.place = scene.accumulator.lane(run_id)
        scene.accumulator.take_in(records, 0.0)
    await scene.keeper.commit()
    scene.keeper.memory_limit = 4500 * METRIC_COST
    scene.keeper.spill()

    lanes = scene.accumulator.lanes
    assert {run_id: lane.spooled for run_id, lane in lanes.items()} == {
        "small": 0,
        "middle": 0,
        "big": 4000,
    }
