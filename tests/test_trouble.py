"""Runs in trouble beside healthy ones, in whole sessions: which wait, which are given up."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from adp_async._sansio.rejections import KEPT_REJECTIONS, REJECTION_COST
from adp_async._sansio.retry import RetryPolicy
from adp_async.errors import Closed, DeliveryError
from adp_async.local.answers import Answer, Received, refusal
from adp_async.testing import FakeBlockingSession, FakeSession

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("patient_end", "patient_loop")

LOG_BATCH = "log_experiment_run_batch"
BACK_OFF = RetryPolicy(first_backoff=0.01, max_backoff=0.6)


def on_batch(session: FakeSession, answers: Callable[[bytes, str], Answer | None]) -> None:
    """Let *answers* say what the service says to a body and its run id; None: it takes it."""
    store, answer = session.service.store, session.service.store.answer

    async def answering(route: Any, received: Received) -> Answer:
        if received.operation == LOG_BATCH:
            run_id = json.loads(received.body)["run_id"]
            if (said := answers(received.body, run_id)) is not None:
                return said
        return await answer(route, received)

    store.answer = answering  # type: ignore[method-assign]


def check_sums(session: FakeSession, *run_ids: str) -> None:
    """Accepted is what has each of its ends, for the session and each run; the server agrees."""
    for run_id in (None, *run_ids):
        stats = session.logger.stats(run_id)
        ends = stats.delivered + sum(stats.rejected.values()) + stats.dropped + stats.undelivered
        assert stats.accepted == ends
        if run_id is not None and run_id in session.service.store.runs:
            run = session.received(run_id)
            arrived = len(run.metrics) + len(run.params) + len(run.tags)
            assert arrived == stats.delivered


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - a service has no event
            await asyncio.sleep(0.002)


async def watch(stalls: list[float]) -> None:
    """Note how long this loop comes to nothing, since the machine is busy elsewhere."""
    while True:
        began = time.monotonic()
        await asyncio.sleep(0.01)
        if (late := time.monotonic() - began) > 0.2:
            stalls.append(late)


@pytest.mark.parametrize(
    "code", ["NotAuthorizedOrNotFound", "RESOURCE_DOES_NOT_EXIST", "Forbidden"]
)
@pytest.mark.parametrize("count", [20, 200])
async def test_invisible_runs_beside_a_good_one(
    code: str, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    """It is delivered as if it were alone; they are held, and given up when that is requested."""
    status = 403 if code == "Forbidden" else 404
    # However long it takes here, each of them is tried so many times and no more.
    retry = RetryPolicy(first_backoff=0.01, max_backoff=60.0)
    async with FakeSession(retry=retry, linger=0.02) as session:
        on_batch(
            session, lambda _, run_id: refusal(status, code, "no") if run_id != "good" else None
        )
        good = session.attach_run(session.add_run("good"))
        bad = [session.attach_run(f"bad-{number}") for number in range(count)]
        for run in bad:
            run.log_metrics({"a": 1.0, "b": 2.0})
        oldest, stalls = 0.0, []
        assert session._engine.thread is not None
        watching = asyncio.create_task(session._engine.thread.run(watch(stalls)))
        for step in range(150):
            good.log_metric("loss", 0.5, step)
            await asyncio.sleep(0.01)
            oldest = max(oldest, good.stats().oldest)
        watching.cancel()
        async with asyncio.timeout(60):
            await good.flush()

        assert oldest < 1.0 + sum(stalls)
        assert session.logger.stats().requests < 150 + 16 * count
        assert session.logger.stats().waiting + session.logger.stats().in_flight == 2 * count
        check_sums(session, "good", *(run.run_id for run in bad))
        # (Batches on their way are dropped when their answers come.)
        on_their_way = 2 * session.settings.max_in_flight
        assert sum(run.discard() for run in bad) >= 2 * count - on_their_way
        async with asyncio.timeout(60):
            await session.logger.flush()
        stats = session.logger.stats()
        assert (stats.delivered, stats.dropped, stats.undelivered) == (150, 2 * count, 0)
        assert bad[0].stats().dropped == 2
        check_sums(session, "good", *(run.run_id for run in bad))
    assert "batches are held back" not in caplog.text


@pytest.mark.parametrize("kind", ["tag", "metric"])
@pytest.mark.parametrize("others", [0, 3])
async def test_poison_in_a_session(kind: str, others: int) -> None:
    """`flush` ends, and says which record it was; all else is delivered."""
    async with FakeSession(retry=BACK_OFF) as session:
        on_batch(
            session,
            lambda body, _: (
                refusal(500, "InternalError", "it broke") if b"poison" in body else None
            ),
        )
        run = session.attach_run(session.add_run("run"))
        others_ = [session.attach_run(session.add_run(f"other-{n}")) for n in range(others)]
        run.log_param("before", 1)
        if kind == "tag":
            run.set_tag("note", "poison")
        else:
            run.log_metric("poison", 1.0)
        for step in range(500):
            run.log_metric("loss", 0.5, step)
            for other in others_:
                other.log_metric("loss", 0.5, step)
        run.log_params({"after": 2, "later": 3})
        run.set_tag("end", "yes")
        async with asyncio.timeout(120):
            with pytest.raises(DeliveryError, match="it broke") as raised:
                await run.flush()
            await session.logger.flush()

        (rejection,) = raised.value.rejections
        assert rejection.key == ("note" if kind == "tag" else "poison")
        received = session.received("run")
        assert sorted(metric.step for metric in received.metrics) == list(range(500))
        assert dict(received.params) == {"before": "1", "after": "2", "later": "3"}
        assert dict(received.tags)["end"] == "yes"
        check_sums(session, "run", *(other.run_id for other in others_))


async def test_poison_of_the_session_before(tmp_path: Path) -> None:
    """What a session that ended in it left is delivered by the next one, but for that record."""

    def broken(body: bytes, _: str) -> Answer | None:
        return refusal(500, "InternalError", "it broke") if b"poison" in body else None

    knobs: dict[str, Any] = {"spool": tmp_path / "spool", "spool_interval": 0.01}
    async with FakeSession(**knobs, retry=RetryPolicy(), close_timeout=0.3) as first:
        on_batch(first, broken)
        run = first.attach_run(first.add_run("run"))
        run.set_tag("note", "poison")
        for step in range(300):
            run.log_metric("loss", 0.5, step)
    assert first.logger.stats("run").spooled == 301
    check_sums(first, "run")

    async with FakeSession(**knobs, retry=BACK_OFF) as second:
        second.service.store.runs.update(first.service.store.runs)
        on_batch(second, broken)
        run = second.attach_run("run")
        run.set_tag("now", "here")
        await until(lambda: len(second.received("run").metrics) == 300)
        async with asyncio.timeout(60):
            await run.flush()
        assert dict(second.received("run").tags) == {"now": "here"}
        check_sums(second)


# Being discarded


@pytest.mark.parametrize("where", ["loop", "thread", "run"])
async def test_discarded_with_records_on_disk(tmp_path: Path, where: str) -> None:
    """Spilled records, waiting ones and the one in flight: all are dropped, the run goes on."""
    knobs: dict[str, Any] = {"spool": tmp_path / "spool", "spool_interval": 0.01}
    async with FakeSession(**knobs, buffer_limit=400_000, retry=BACK_OFF) as session:
        hidden = True
        on_batch(
            session,
            lambda _, run_id: (
                refusal(404, "NotAuthorizedOrNotFound", "no")
                if hidden and run_id == "bad"
                else None
            ),
        )
        bad = session.attach_run(session.add_run("bad"))
        good = session.attach_run(session.add_run("good"))
        receipts = []
        for step in range(20_000):
            receipt = bad.log_metric("loss", 0.5, step)
            if step % 2500 == 0:
                receipts.append(receipt)
                await asyncio.sleep(0.01)
        assert bad.stats().spooled > 5000
        if where == "thread":
            count = await asyncio.to_thread(session.logger.discard, "bad")
        else:
            count = session.logger.discard("bad") if where == "loop" else bad.discard()
        assert count >= 19_000
        await until(lambda: not bad.stats().undelivered)
        for receipt in receipts:
            with pytest.raises(DeliveryError, match="discarded"):
                await receipt
        assert bad.stats().dropped == 20_000
        hidden = False
        bad.log_metric("loss", 0.5, 20_000)
        good.log_metric("loss", 0.5, 1)
        async with asyncio.timeout(60):
            await session.logger.flush()
        assert [metric.step for metric in session.received("bad").metrics] == [20_000]
        check_sums(session, "bad", "good")
    assert list((tmp_path / "spool").iterdir()) == []


async def test_discarded_while_it_is_read_back(tmp_path: Path) -> None:
    """Records that were read in vain are released, and delivery of other runs goes on."""
    knobs: dict[str, Any] = {"spool": tmp_path / "spool", "spool_interval": 0.01}
    async with FakeSession(**knobs, buffer_limit=400_000) as session:
        session.answer(LOG_BATCH, {"code": "InternalError", "message": "x"}, status=503)
        run = session.attach_run(session.add_run("run"))
        for step in range(10_000):
            run.log_metric("loss", 0.5, step)
            if step % 2500 == 0:
                await asyncio.sleep(0.01)
        keeper = session._delivery.keeper
        assert keeper is not None
        lane = session._intake.lane("run")
        first, last = lane.spilled[0]
        thread = session._engine.thread
        assert thread is not None

        async def discarded_meanwhile() -> None:
            reading = asyncio.create_task(keeper._read(lane, first, min(last, first + 100)))
            await asyncio.sleep(0)
            run.discard()
            await reading

        await thread.run(discarded_meanwhile())
        session.service._scripts.clear()
        run.log_metric("loss", 0.5, 1)
        async with asyncio.timeout(60):
            await run.flush()
        check_sums(session)


def test_discarded_in_a_blocking_session() -> None:
    """From any thread; afterwards the session says that it is closed."""
    with FakeBlockingSession(retry=BACK_OFF) as session:
        session.session.answer(LOG_BATCH, {"code": "Forbidden", "message": "no"}, status=403)
        run = session.attach_run("run")
        run.log_metrics({"a": 1.0, "b": 2.0})
        counts: list[int] = []
        thread = threading.Thread(target=lambda: counts.append(run.discard()))
        thread.start()
        thread.join(60)
        # What was in flight is dropped when its answer comes.
        assert sum(counts) in (0, 2)
        run.flush(60)
        assert run.stats().dropped == 2
    with pytest.raises(Closed):
        run.discard()


@pytest.mark.parametrize("bad", ["", 7, None, "\ud800"])
async def test_what_is_no_run_id_cannot_be_discarded(bad: Any) -> None:
    """The error is of the same kind as for logging to it."""
    async with FakeSession() as session:
        with pytest.raises((ValueError, TypeError)):
            session.logger.discard(bad)


# Refused, and nobody asks


@pytest.mark.parametrize(("runs", "each"), [(3000, 5), (100, 1000)])
async def test_what_nobody_flushes_is_bounded(runs: int, each: int) -> None:
    """Wrong run ids: a thousand rejections are kept in all, lanes are dropped, counts are right."""
    session = FakeSession(buffer_limit=64 * 2**20)
    await session.open()
    on_batch(session, lambda *_: refusal(400, "INVALID_PARAMETER_VALUE", "no such thing"))

    class Service:
        post_batch = session._engine.batches.post_batch

        async def run_is_gone(self, run_id: str) -> bool:
            return True

    session._delivery.sender.service = Service()
    for number in range(runs):
        for step in range(each):
            session.logger.log_metric(f"run-{number}", "loss", 0.5, step)
        if number % 100 == 0:
            await session.logger.drain()
    async with asyncio.timeout(240):
        while session.logger.stats().undelivered:  # noqa: ASYNC110 - a service has no event
            await asyncio.sleep(0.02)
    accumulator = session._delivery.accumulator
    assert len(accumulator.rejections.last) <= KEPT_REJECTIONS
    assert accumulator.memory == len(accumulator.rejections.last) * REJECTION_COST
    assert accumulator.lanes == {}
    stats = session.logger.stats()
    assert stats.accepted == sum(stats.rejected.values()) == runs * each
    check_sums(session, "run-0", f"run-{runs - 1}")
    with pytest.raises(DeliveryError) as raised:
        await session.close()
    assert raised.value.rejected == runs * each
    assert len(raised.value.rejections) <= KEPT_REJECTIONS
    assert len(str(raised.value)) < 2000
