"""The background logger through a session: receipts, flushes, overflow, outages, verdicts, the end.

Most of it runs against a platform in memory; what depends on sockets, on the local gateway.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from adp_async import logger as logger_module
from adp_async._sansio.dispatch import Dispatcher
from adp_async._sansio.records import METRIC_COST, Metric
from adp_async._sansio.retry import RetryPolicy
from adp_async.errors import (
    AdpError,
    BadRequest,
    BufferFull,
    Closed,
    ConnectionLost,
    DeliveryError,
    Forbidden,
)
from adp_async.local import Fault
from adp_async.testing import FakeSession

if TYPE_CHECKING:
    from collections.abc import Callable

    from adp_async import Run, Stats
    from adp_async._sansio.batch import RecordBatch
    from adp_async.local import LocalPlatform

LOG_BATCH = "log_experiment_run_batch"
GET_RUN = "get_experiment_run_by_id"
QUICK: dict[str, Any] = {
    "spool": False,
    "linger": 0.01,
    "close_timeout": 5.0,
    "retry": RetryPolicy(first_backoff=0.005, max_backoff=0.05),
}
#: Set to run what takes its time.
SLOW = bool(os.environ.get("ADP_ASYNC_SLOW"))


async def pulled(session: FakeSession) -> None:
    """What was logged is in its lanes."""

    async def pull() -> None:
        session._intake.pull(time.monotonic())

    assert session._engine.thread is not None
    await session._engine.thread.run(pull())


def close_without_its_loop(session: FakeSession) -> None:
    """What the interpreter's end does with a session whose loop is gone."""
    thread = session._engine.thread
    assert thread is not None
    thread.wait(session._engine._close_delivery(1.0))
    thread.stop()
    session._engine.auth._worker.stop()  # type: ignore[union-attr]


def attach(session: FakeSession) -> Run:
    return session.attach_run(session.add_run())


async def eventually(condition: Callable[[], object], within: float = 20.0) -> None:
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110 - what is looked at has no event
            await asyncio.sleep(0.002)


def total(stats: Stats) -> int:
    return stats.delivered + sum(stats.rejected.values()) + stats.dropped + stats.undelivered


# Receipts -----------------------------------------------------------------------------------------


async def test_awaiting_a_receipt() -> None:
    """It returns when the service has the record, without lingering, and can be awaited again."""
    async with FakeSession(linger=60.0) as session:
        run = attach(session)
        receipt = run.log_metric("loss", 0.5)
        assert (receipt.done, receipt.delivered) == (False, False)
        assert repr(receipt) == "<Receipt for metric 'loss' | waiting>"
        await receipt
        assert (receipt.done, receipt.delivered) == (True, True)
        assert repr(receipt) == "<Receipt for metric 'loss' | delivered>"
        assert len(session.received(run.run_id).metrics) == 1
        await receipt
        receipt.wait(0)  # its end is known, so nothing blocks


async def test_awaiting_sends_what_waits_for_the_run() -> None:
    """Everything of that run goes along, and nothing of another one."""
    async with FakeSession(linger=60.0) as session:
        one, other = attach(session), attach(session)
        before = [one.log_metric("loss", step, step=step) for step in range(10)]
        waiting = other.log_metric("loss", 0.5)
        await before[3]
        assert all(receipt.delivered for receipt in before)
        assert not waiting.done


async def test_gathering_many_receipts() -> None:
    """Thousands of receipts can be awaited at once."""
    async with FakeSession(linger=60.0) as session:
        run = attach(session)
        receipts = [run.log_metric("loss", float(step), step=step) for step in range(5000)]
        await asyncio.gather(*receipts)
        assert session.received(run.run_id).batches == [1000] * 5


async def test_receipts_of_one_call() -> None:
    """``log_metrics``, ``log_params`` and ``set_tags`` give receipts that are awaited as one."""
    async with FakeSession(linger=60.0) as session:
        run = attach(session)
        metrics = run.log_metrics({"loss": 0.5, "accuracy": 0.9}, step=3)
        assert repr(metrics) == "<Receipts 2 records | 0 done>"
        params, tags = run.log_params({"lr": 0.1, "depth": 3}), run.set_tags({"a": 1, "b": None})
        for receipts in (metrics, params, tags):
            await receipts
            assert receipts.done
            assert receipts.delivered
        received = session.received(run.run_id)
        assert {(metric.key, metric.step) for metric in received.metrics} == {
            ("loss", 3),
            ("accuracy", 3),
        }
        assert len({metric.timestamp for metric in received.metrics}) == 1
        assert received.params == [("lr", "0.1"), ("depth", "3")]
        assert received.tags == [("a", "1"), ("b", "None")]
        await run.log_metrics({})


async def test_a_receipt_of_a_refused_record() -> None:
    """It raises what the service said, with run, kind, key and step, each time it is awaited."""
    async with FakeSession() as session:
        run = attach(session)
        good, bad = run.log_metric("loss", 0.5), run.log_metric("a@b", 0.5, step=7)
        for _ in range(2):
            with pytest.raises(DeliveryError, match=f"'a@b' at step 7 of run {run.run_id}") as e:
                await bad
            assert (e.value.run_id, e.value.kind, e.value.key, e.value.step) == (
                run.run_id,
                "metric",
                "a@b",
                7,
            )
            assert isinstance(e.value.cause, BadRequest)
        await good
        assert (bad.done, bad.delivered) == (True, False)
        with pytest.raises(DeliveryError):
            bad.wait(0)
        with pytest.raises(DeliveryError):
            await run.flush()


async def test_a_cancelled_wait_does_not_cancel_the_record() -> None:
    """A waiter may give up; the record is delivered anyway."""
    async with FakeSession() as session:
        run = attach(session)
        held = session.answer(LOG_BATCH, status=503)
        receipt = run.log_metric("loss", 0.5)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.005):
                await receipt
        held.left = 0
        await receipt
        assert receipt.delivered


async def test_code_on_the_loop_may_wait_in_its_thread() -> None:
    """``receipt.wait()`` blocks that loop, and not the thread that delivers."""
    async with FakeSession() as session:
        receipt = attach(session).log_metric("loss", 0.5)
        receipt.wait(20.0)
        assert receipt.delivered


# Flush and drain ----------------------------------------------------------------------------------


async def test_flush_covers_what_was_logged_before_it() -> None:
    """It returns when all of that is delivered, however much comes afterwards."""
    async with FakeSession(linger=60.0) as session:
        run = attach(session)
        before = [run.log_metric("loss", float(step), step=step) for step in range(2500)]
        flush = asyncio.create_task(run.flush())
        await asyncio.sleep(0)
        later = run.log_param("late", 1)
        await flush
        assert all(receipt.delivered for receipt in before)
        await later


async def test_flush_of_one_run() -> None:
    """Other runs go on lingering; `BatchLogger.flush` takes them all."""
    async with FakeSession(linger=60.0) as session:
        one, other = attach(session), attach(session)
        one.log_metric("loss", 0.5)
        waiting = other.log_metric("loss", 0.5)
        await one.flush()
        assert not waiting.done
        await session.logger.flush()
        assert waiting.delivered


async def test_flush_of_all_runs_ends_with_the_last() -> None:
    """A run that is held back holds that flush, and no other one's."""
    async with FakeSession(linger=60.0) as session:
        runs = [attach(session) for _ in range(20)]
        late, send, opened = runs[-1], session.service.send, asyncio.Event()

        async def hold_one(request: Any, *, timeout: float | None = None) -> Any:
            if late.run_id.encode() in (request.body or b""):
                await opened.wait()
            return await send(request, timeout=timeout)

        session.service.send = hold_one  # type: ignore[method-assign]
        receipts = [run.log_metric("loss", 0.5) for run in runs]
        flush = asyncio.create_task(session.logger.flush())
        await asyncio.gather(*(run.flush() for run in runs[:-1]))
        assert not flush.done()
        assert session._engine.thread is not None
        session._engine.thread.call_soon(opened.set)
        await flush
        assert all(receipt.delivered for receipt in receipts)
        assert session._delivery._waiters.are_none


async def test_flush_with_nothing_to_do() -> None:
    """It returns at once, and no request is made."""
    async with FakeSession() as session:
        await attach(session).flush()
        await session.logger.flush()
        assert session.requests == []


async def test_flushes_at_once() -> None:
    """Many may flush at the same time, and each returns."""
    async with FakeSession(linger=60.0) as session:
        run = attach(session)
        for step in range(20):
            run.log_metric("loss", float(step), step=step)
        await asyncio.gather(*(run.flush() for _ in range(50)))
        assert session._delivery._waiters.are_none


async def test_a_refusal_is_reported_once() -> None:
    """The next flush is about what came since; the count stays in the stats."""
    async with FakeSession() as session:
        run = attach(session)
        run.log_param("no@way", 1)
        with pytest.raises(DeliveryError, match="'no@way'"):
            await run.flush()
        await run.flush()
        run.log_param("no@way", 2)
        with pytest.raises(DeliveryError) as caught:
            await run.flush()
        assert caught.value.rejected == 1
        assert run.stats().rejected == {"BadRequest": 2}
        assert session.logger.stats().rejected == {"BadRequest": 2}


async def test_refusals_beyond_those_kept_by_name() -> None:
    """A thousand refused records are kept by name, all are counted."""
    async with FakeSession() as session:
        run = attach(session)
        for step in range(1500):
            run.log_metric("a@b", 0.5, step=step)
        with pytest.raises(DeliveryError) as caught:
            await run.flush()
        assert (caught.value.rejected, len(caught.value.rejections)) == (1500, 1000)
        for stats in (run.stats(), session.logger.stats()):
            assert stats.rejected == {"BadRequest": 1500}
            assert total(stats) == stats.accepted == 1500


async def test_drain() -> None:
    """It returns when the buffer is half empty; with room enough, at once."""
    knobs: dict[str, Any] = {"buffer_limit": 2000 * METRIC_COST, "max_in_flight": 1}
    # What has filled a batch leaves; what has not would leave as well, after a linger.
    async with FakeSession(**knobs, linger=60.0) as session:
        run = attach(session)
        session.answer(LOG_BATCH, times=1)
        failing = session.answer(LOG_BATCH, status=503)
        await run.drain()
        for step in range(1990):
            run.log_metric("loss", 0.5, step=step)
        await asyncio.gather(run.drain(), session.logger.drain())
        assert run.stats().undelivered == 990
        failing.left = 0


# Giving up, forgetting ----------------------------------------------------------------------------


@pytest.mark.parametrize("from_a_thread", [False, True])
@pytest.mark.parametrize("of_the_run", [False, True])
async def test_discarding_a_run(from_a_thread: bool, of_the_run: bool) -> None:
    """What waits for it is dropped and counted, and what comes later is delivered."""
    async with FakeSession() as session:
        run, other = attach(session), attach(session)
        answering = session.answer(LOG_BATCH, {"code": "NotFound"}, status=404)
        receipts = [run.log_metric("loss", 0.5, step=step) for step in range(7)]
        await eventually(lambda: answering.given > 0)
        discard = run.discard if of_the_run else lambda: session.logger.discard(run.run_id)
        assert (await asyncio.to_thread(discard) if from_a_thread else discard()) == 7
        answering.left = 0
        with pytest.raises(AdpError, match=run.run_id):
            await receipts[0]
        run.log_metric("loss", 0.5, step=7)
        other.log_metric("loss", 0.5)
        await session.logger.flush()
        assert [metric.step for metric in session.received(run.run_id).metrics] == [7]
        assert (run.stats().dropped, session.logger.stats().dropped) == (7, 7)
        assert total(run.stats()) == run.stats().accepted == 8
    with pytest.raises(Closed):
        run.discard()


async def test_writers_of_idle_runs_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """When there are too many; those of busy runs stay, until there are twice as many."""
    monkeypatch.setattr(logger_module, "KEPT_WRITERS", 5)
    async with FakeSession(linger=60.0) as session:
        logger, run_ids = session.logger, [session.add_run() for _ in range(11)]
        logger._most_writers = 5
        kept = []
        for number, run_id in enumerate(run_ids):
            logger.log_metric(run_id, "loss", 0.5)
            await pulled(session)
            if number == 8:
                await logger.flush()
            kept.append(len(logger._writers))
        await logger.flush()
        assert kept == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 2]  # the tenth is busy
        assert [len(session.received(each).metrics) for each in run_ids] == [1] * 11


async def test_closing_says_both_what_was_refused_and_what_was_left() -> None:
    """One error counts both; nothing of it was asked for before."""
    session = FakeSession(close_timeout=0.1, max_in_flight=1)
    await session.open()
    run, other = attach(session), attach(session)
    session.answer(LOG_BATCH, {"code": "Bad", "message": "no"}, status=400, times=1)
    run.log_metric("loss", 0.5)
    await eventually(lambda: run.stats().rejected)
    session.answer(LOG_BATCH, status=503)
    other.log_metrics({"loss": 0.5, "accuracy": 0.9})
    with pytest.raises(DeliveryError) as caught:
        await session.close()
    assert (caught.value.rejected, caught.value.undelivered) == (1, 2)


# Overflow -----------------------------------------------------------------------------------------


async def test_overflow_on_the_loop() -> None:
    """The record that doesn't fit is refused with what to do; the rest is delivered."""
    async with FakeSession(buffer_limit=100 * METRIC_COST) as session:
        run = attach(session)
        outage = session.answer(LOG_BATCH, status=503)
        for step in range(100):
            run.log_metric("loss", 0.5, step=step)
        for overflowing in (
            lambda: run.log_metric("loss", 0.5, step=100),
            lambda: run.log_metrics({"loss": 1.0, "accuracy": 0.9}),
            lambda: run.log_param("lr", 0.1),
        ):
            with pytest.raises(BufferFull, match=r"100 records wait.*await run\.drain\(\)"):
                overflowing()
            stats = session.logger.stats()
            assert stats.accepted == total(stats) == 100
        outage.left = 0
        await run.drain()
        run.log_metric("loss", 0.5, step=100)
        await run.flush()
        steps = [metric.step for metric in session.received(run.run_id).metrics]
        assert sorted(steps) == list(range(101))


async def test_overflow_that_drops() -> None:
    """``overflow="drop"`` drops new metrics and counts them; params and tags are never dropped."""
    async with FakeSession(buffer_limit=100 * METRIC_COST, overflow="drop") as session:
        run = attach(session)
        outage = session.answer(LOG_BATCH, status=503)
        receipts = [run.log_metric("loss", 0.5, step=step) for step in range(150)]
        dropped = [receipt for receipt in receipts if receipt.done]
        assert dropped == receipts[100:]
        with pytest.raises(BufferFull, match="dropped"):
            await dropped[0]
        with pytest.raises(BufferFull, match=r"drain\(\)"):
            run.log_param("lr", 0.1)
        stats = session.logger.stats()
        assert (stats.accepted, stats.dropped, stats.undelivered) == (150, 50, 100)
        outage.left = 0
        await run.flush()
        assert len(session.received(run.run_id).metrics) == 100


async def test_memory_is_bounded() -> None:
    """With the service gone, what is held stays below the limit however much is logged."""
    limit = 1000 * METRIC_COST
    async with FakeSession(buffer_limit=limit, close_timeout=0.05) as session:
        run = attach(session)
        session.answer(LOG_BATCH, status=503)
        held = refused = 0
        for step in range(5000):
            try:
                run.log_metric("loss", 0.5, step=step)
                held += 1
            except BufferFull:
                refused += 1
            if step % 100 == 0:
                await asyncio.sleep(0)
            held_bytes = session._delivery.accumulator.cost
            assert held_bytes <= limit
        assert held == session.logger.stats().accepted <= 1000
        assert held + refused == 5000
        with pytest.raises(DeliveryError) as caught:
            await session.close()
        assert caught.value.undelivered == held


async def test_a_pull_leaves_what_its_call_takes_back() -> None:
    """A call has appended its record when it finds memory full; the delivery thread may be faster.

    Were it pulled, it would stay, and so would the next one.
    """
    async with FakeSession(buffer_limit=10 * METRIC_COST, close_timeout=0.05) as session:
        run = attach(session)
        session.answer(LOG_BATCH, status=503)
        for step in range(10):
            run.log_metric("loss", 0.5, step=step)
        await eventually(lambda: not session._intake.inbox)

        for step in range(10, 15):
            record = Metric("loss", 0.5, 0, step, session._intake.lane(run.run_id))
            session._intake.inbox.append(record)
            session._intake.pull(time.monotonic(), leave_excess=True)
            with pytest.raises(BufferFull):
                session._intake.gate_reached((record,))
        assert session._delivery.accumulator.unsettled == 10
        with pytest.raises(DeliveryError):
            await session.close()


# Counts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
async def test_stats_add_up(seed: int) -> None:
    """Whatever happens, *accepted* is what was logged, and the sum of where it all is."""
    chance = random.Random(seed)
    knobs: dict[str, Any] = {"buffer_limit": 300 * METRIC_COST, "overflow": "drop"}
    async with FakeSession(**knobs) as session:
        run = attach(session)
        for status in (503, 401, 413, 404, 503):
            session.answer(LOG_BATCH, status=status, times=2)
        logged = 0
        for step in range(3000):
            key = "b@d" if chance.random() < 0.01 else "loss"
            try:
                if chance.random() < 0.02:
                    run.log_param(f"p{step}", step)
                else:
                    run.log_metric(key, 0.5, step=step)
                logged += 1
            except BufferFull:
                await run.drain()
            stats = session.logger.stats()
            assert stats.accepted == logged == total(stats)
            if chance.random() < 0.05:
                await asyncio.sleep(0.0005)
        with pytest.raises(DeliveryError):
            await run.flush()
        stats = session.logger.stats()
        assert (stats.undelivered, stats.accepted, total(stats)) == (0, logged, logged)
        assert stats.oldest == 0.0
        assert len(session.received(run.run_id).metrics) + len(
            session.received(run.run_id).params
        ) == (stats.delivered)


async def test_stats_while_things_are_under_way() -> None:
    """Waiting, in flight and the age of the oldest are what they are called."""
    async with FakeSession(linger=60.0, close_timeout=0.05) as session:
        run, other = attach(session), attach(session)
        gate = asyncio.Event()
        send = session.service.send

        async def wait_and_send(request: Any, *, timeout: float | None = None) -> Any:
            await gate.wait()
            return await send(request, timeout=timeout)

        session.service.send = wait_and_send  # type: ignore[method-assign]
        other.log_param("lr", 0.1)  # first, so that it is no longer in the inbox below
        for step in range(1200):
            run.log_metric("loss", 0.5, step=step)
        # A batch is in flight from when it is cut, its request is counted when it leaves.
        await eventually(lambda: session.logger.stats().requests == 1)
        assert (run.stats().waiting, run.stats().accepted) == (200, 1200)
        assert (other.stats().waiting, other.stats().in_flight) == (1, 0)
        stats = session.logger.stats()
        assert (stats.waiting, stats.in_flight, stats.requests) == (201, 1000, 1)
        assert 0.0 < stats.oldest < 30.0
        assert "2 runs | 201 waiting | 1 batches in flight" in repr(session.logger)
        gate.set()
        await session.logger.flush()


# Outages ------------------------------------------------------------------------------------------


async def outage(platform: LocalPlatform, seconds: float) -> None:
    """Log through an outage of *seconds*; nothing may be lost, slowed or raised."""
    gateway = platform.gateway
    run_id = gateway.add_run()
    async with platform.session(**QUICK | {"close_timeout": 30.0}) as session:
        run = session.attach_run(run_id)
        slowest, step = 0.0, 0
        await gateway.down()
        end, is_down = time.monotonic() + seconds, True
        while is_down or step < 3000:
            if is_down and time.monotonic() > end and run.stats().retries:
                await gateway.up()
                is_down = False
            for _ in range(20):
                began = time.perf_counter()
                run.log_metric("loss", float(step), step=step)
                slowest = max(slowest, time.perf_counter() - began)
                step += 1
            await asyncio.sleep(0.005)
        await run.flush()
        assert run.stats().retries > 0
    steps = [metric.step for metric in gateway.received(run_id).metrics]
    assert sorted(set(steps)) == list(range(step))
    assert slowest < 5.0, "a call waited for something"


async def test_the_service_goes_away_for_a_second(bare_platform: LocalPlatform) -> None:
    """Nothing is lost, and no call of ``log_metric`` waits or raises."""
    await outage(bare_platform, 1.0)


@pytest.mark.skipif(not SLOW, reason="takes 40 s: set ADP_ASYNC_SLOW=1")
async def test_the_service_goes_away_for_thirty_seconds(bare_platform: LocalPlatform) -> None:
    """The same at length."""
    await outage(bare_platform, 30.0)


async def test_connections_that_break(bare_platform: LocalPlatform) -> None:
    """Requests lost before or after the write, and half replies: all arrives, once with dedup."""
    gateway = bare_platform.gateway
    run_id = gateway.add_run()
    async with bare_platform.session(**QUICK | {"timeout": 0.3}) as session:
        run = session.attach_run(run_id)
        faults = [Fault.drop(), Fault.drop(after_write=True), Fault.cut(), Fault.truncate()]
        faults += [Fault.html(), Fault.reply(503, after_write=True), Fault.reply(408)]
        faults += [Fault.reset_after_reply(), Fault.hang(after_write=True)]
        for fault in faults:
            gateway.inject(fault, operation=LOG_BATCH)
        for step in range(3000):
            run.log_metric("loss", float(step), step=step)
        run.log_param("lr", 0.1)
        await run.flush()
    received = gateway.received(run_id)
    assert sorted(metric.step for metric in received.metrics) == list(range(3000))
    assert received.params == [("lr", "0.1")]


async def test_a_batch_is_resent_as_it_was() -> None:
    """Body and retry token never change, so that a repeated batch is distinct from a new one."""
    async with FakeSession() as session:
        run = attach(session)
        session.answer(LOG_BATCH, status=503, times=2, after_write=True)
        session.answer(LOG_BATCH, ConnectionLost("no reply"), times=2)
        await run.log_metric("loss", 0.5)
        assert len(session.requests) == 5
        assert len({request.body for request in session.requests}) == 1
        assert len({request.headers["opc-retry-token"] for request in session.requests}) == 1
        assert len({request.headers["opc-request-id"] for request in session.requests}) == 5
        assert run.stats().retries == 4


async def test_a_spent_token_is_replaced() -> None:
    """After 24 hours a token means nothing any more; the batch goes on under a new one."""
    async with FakeSession() as session:
        run = attach(session)
        session.answer(LOG_BATCH, {"code": "InvalidatedRetryToken"}, status=409, times=1)
        await run.log_metric("loss", 0.5)
        first, second = session.requests
        assert first.headers["opc-retry-token"] != second.headers["opc-retry-token"]
        assert first.body == second.body


async def test_a_good_status_is_no_delivery() -> None:
    """A 200 with a proxy's page in it delivered nothing: the same request goes again."""
    async with FakeSession() as session:
        run = attach(session)
        session.answer(LOG_BATCH, b"<html>", times=1)
        await run.log_metric("loss", 0.5)
        first, second = session.requests
        assert first.headers["opc-retry-token"] == second.headers["opc-retry-token"]
        assert len(session.received(run.run_id).metrics) == 1


# Verdicts -----------------------------------------------------------------------------------------

HELD = {
    "401": {"status": 401, "answer": {"code": "NotAuthenticated"}},
    "403": {"status": 403, "answer": {"code": "NotAllowed"}},
    "404 of the platform": {"status": 404, "answer": {"code": "NotAuthorizedOrNotFound"}},
    "404 of a proxy": {"status": 404, "answer": b"<html>no such page</html>"},
    "409 that passes": {"status": 409, "answer": {"code": "IncorrectState"}},
    "500": {"status": 500, "answer": {}},
}


@pytest.mark.parametrize("answer", HELD.values(), ids=HELD)
async def test_what_holds(answer: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """Credentials come back, and so does a platform: nothing is refused, one WARNING is given."""
    async with FakeSession() as session:
        run = attach(session)
        script = session.answer(LOG_BATCH, **answer)
        receipts = [run.log_metric("loss", 0.5, step=step) for step in range(2500)]
        param = run.log_param("lr", 0.1)
        await eventually(lambda: script.given >= 5)
        assert session.logger.stats().undelivered == 2501
        assert len(caplog.records) == 1
        assert caplog.records[0].levelname == "WARNING"
        assert "opc-request-id fake-" in caplog.text
        script.left = 0
        await run.flush()
        assert param.delivered
        assert all(receipt.delivered for receipt in receipts)
        assert session.logger.stats().rejected == {}


async def test_what_holds_one_run_does_not_hold_another() -> None:
    """A batch that fails by itself backs off by itself."""
    async with FakeSession() as session:
        bad, good = attach(session), attach(session)
        send = session.service.send

        async def refuse_one(request: Any, *, timeout: float | None = None) -> Any:
            if bad.run_id.encode() in (request.body or b""):
                raise ConnectionLost("always")
            return await send(request, timeout=timeout)

        session.service.send = refuse_one  # type: ignore[method-assign]
        bad.log_metric("loss", 0.5)
        for step in range(5):
            await asyncio.wait_for(good.log_metric("loss", 0.5, step=step), 20.0)
        assert bad.stats().undelivered == 1
        session.service.send = send  # type: ignore[method-assign]


async def test_one_bad_record_among_a_thousand() -> None:
    """It alone is refused, which takes about twenty requests; 999 neighbours are delivered."""
    async with FakeSession(linger=60.0) as session:
        run = attach(session)
        receipts = [
            run.log_metric("b@d" if step == 617 else "loss", 0.5, step=step) for step in range(1000)
        ]
        with pytest.raises(DeliveryError) as caught:
            await run.flush()
        assert (caught.value.key, caught.value.step, caught.value.rejected) == ("b@d", 617, 1)
        assert [receipt.delivered for receipt in receipts].count(False) == 1
        steps = [metric.step for metric in session.received(run.run_id).metrics]
        assert sorted(steps) == [step for step in range(1000) if step != 617]
        batches = [request for request in session.requests if request.operation == LOG_BATCH]
        assert len(batches) <= 22


async def test_a_run_that_is_not_there() -> None:
    """A 404 is not a verdict on the records, whatever its code: they wait for the run to appear."""
    async with FakeSession() as session:
        run = session.attach_run("late")
        other = attach(session)
        for step in range(1000):
            run.log_metric("loss", 0.5, step=step)
        async with asyncio.timeout(20.0):
            await other.log_metric("loss", 0.5)
            while session.logger.stats().retries < 2:  # noqa: ASYNC110 - a count, no event
                await asyncio.sleep(0.002)
            assert (run.stats().rejected, run.stats().undelivered) == ({}, 1000)
            session.add_run("late")
            await run.flush()
        assert len(session.received("late").metrics) == 1000


async def test_a_deleted_run() -> None:
    """A run in the bin refuses all of its records; one look at it finds out."""
    async with FakeSession(linger=60.0) as session:
        run = attach(session)
        session.received(run.run_id).info["lifecycle_stage"] = "deleted"
        for step in range(1000):
            run.log_metric("loss", 0.5, step=step)
        with pytest.raises(DeliveryError, match="must be in the 'active' state") as caught:
            await run.flush()
        assert caught.value.rejected == 1000
        assert [request.operation for request in session.requests] == [LOG_BATCH, GET_RUN]


@pytest.mark.parametrize("answer", [{}, [], {"run": None}, {"run": 5}, b"", b"<html>"], ids=repr)
async def test_a_look_that_tells_nothing(answer: object) -> None:
    """When the look at the run makes no sense, the bad record is looked for."""
    async with FakeSession() as session:
        run = attach(session)
        session.answer(GET_RUN, answer)
        receipts = [run.log_metric(key, 0.5) for key in ("loss", "b@d", "accuracy")]
        await asyncio.wait_for(asyncio.gather(*receipts, return_exceptions=True), 20.0)
        assert [receipt.delivered for receipt in receipts] == [True, False, True]
        with pytest.raises(DeliveryError):
            await run.flush()


async def test_too_large() -> None:
    """A 413 halves the batch until it fits, and the next ones are smaller from the start."""
    async with FakeSession(linger=60.0) as session:
        run = attach(session)
        send = session.service.send
        limit = 20_000

        async def refuse_large(request: Any, *, timeout: float | None = None) -> Any:
            if len(request.body or b"") > limit:
                reply = await send(replace(request, body=b"{}"), timeout=timeout)
                return replace(reply, status=413)
            return await send(request, timeout=timeout)

        session.service.send = refuse_large  # type: ignore[method-assign]
        for step in range(2000):
            run.log_metric("loss", 0.5, step=step)
        await run.flush()
        steps = [metric.step for metric in session.received(run.run_id).metrics]
        assert sorted(steps) == list(range(2000))
        requests = len(session.requests)
        for step in range(1000):
            run.log_metric("loss", 0.5, step=step)
        await run.flush()
        assert all(len(request.body) <= limit for request in session.requests[requests:])


async def test_a_tag_set_a_thousand_times() -> None:
    """The last value stands, and on the way it never goes back."""
    async with FakeSession() as session:
        run = attach(session)
        session.answer(LOG_BATCH, status=503, times=3)
        for number in range(1000):
            run.set_tag("progress", number)
            if number % 90 == 0:
                await asyncio.sleep(0.001)
        await run.flush()
        values = [int(value) for _, value in session.received(run.run_id).tags]
        assert values[-1] == 999
        assert values == sorted(values)


async def test_a_param_logged_twice() -> None:
    """Another value is refused by the service, alone; the same value again is fine."""
    async with FakeSession() as session:
        run = attach(session)
        first, other, same = (run.log_param("lr", value) for value in (0.1, 0.2, 0.1))
        neighbour = run.log_param("depth", 3)
        with pytest.raises(DeliveryError, match="param 'lr'") as caught:
            await run.flush()
        assert caught.value.rejected == 1
        assert [receipt.delivered for receipt in (first, other, same, neighbour)] == [
            True,
            False,
            True,
            True,
        ]


# The end ------------------------------------------------------------------------------------------

ENDLESS = {
    "hangs": Fault.hang(),
    "hangs after the write": Fault.hang(after_write=True),
    "drops": Fault.drop(),
    "503": Fault.reply(503),
    "401": Fault.reply(401),
    "429": Fault.reply(429),
    "429 for an hour": Fault.reply(429, headers={"retry-after": "3600"}),
    "drips": Fault.drip(60.0),
}


@pytest.mark.parametrize("fault", ENDLESS.values(), ids=ENDLESS)
async def test_closing_is_bounded(bare_platform: LocalPlatform, fault: Fault) -> None:
    """Whatever the service does, leaving takes *close_timeout*, and says how much remains."""
    gateway = bare_platform.gateway
    gateway.inject(fault, times=None)
    session = await bare_platform.session(**QUICK | {"close_timeout": 0.1}).open()
    receipts = [
        session.attach_run(gateway.add_run()).log_metric("loss", float(step), step=step)
        for step in range(50)
    ]
    await asyncio.sleep(0.02)
    began = time.monotonic()
    with pytest.raises(DeliveryError) as caught:
        await session.close()
    assert time.monotonic() - began < 5.0
    assert caught.value.undelivered == sum(not receipt.delivered for receipt in receipts)
    assert caught.value.rejected == 0
    assert all(receipt.done for receipt in receipts)
    with pytest.raises(DeliveryError, match="not delivered"):
        await receipts[-1]


async def test_closing_while_the_service_is_gone(bare_platform: LocalPlatform) -> None:
    """A service that refuses connections is no reason to hang, and its error is the cause."""
    session = await bare_platform.session(**QUICK | {"close_timeout": 0.1}).open()
    await bare_platform.gateway.down()
    session.attach_run("r").log_metric("loss", 0.5)
    await eventually(lambda: session.health().status == "failing")
    began = time.monotonic()
    with pytest.raises(DeliveryError, match="1 record ") as caught:
        await session.close()
    assert time.monotonic() - began < 5.0
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("close_timeout", [0.0, 0.002])
async def test_closing_at_any_moment(close_timeout: float) -> None:
    """Every record is settled when the session is closed, in time or not."""
    for moment in range(20):
        session = FakeSession(close_timeout=close_timeout, linger=0.0)
        await session.open()
        run = attach(session)
        receipts = [run.log_metric("loss", float(step), step=step) for step in range(2000)]
        for _ in range(moment):
            await asyncio.sleep(0)
        undelivered = 0
        try:
            await session.close()
        except DeliveryError as error:
            undelivered = error.undelivered
        assert all(receipt.done for receipt in receipts)
        assert sum(receipt.delivered for receipt in receipts) + undelivered == 2000
        assert session.logger.stats().in_flight == 0


async def test_closing_delivers_what_lingers() -> None:
    """Nobody has to flush before leaving."""
    async with FakeSession(linger=60.0) as session:
        runs = [attach(session) for _ in range(20)]
        for run in runs:
            run.log_metric("loss", 0.5)
            run.set_tag("stage", "last")
    assert all(session.received(run.run_id).batches == [2] for run in runs)


async def test_a_sender_that_crashes(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake of ours is raised to all waiters, by the next call, and on closing."""
    session = await FakeSession(linger=60.0).open()
    run, other = attach(session), attach(session)
    mistake = RuntimeError("a mistake of ours")

    is_logged = False

    is_replaced = threading.Event()

    def crash(self: Dispatcher, now: float) -> list[RecordBatch]:
        is_replaced.set()
        if is_logged:  # before, the thread would crash between two calls of this one
            raise mistake
        return []

    monkeypatch.setattr(Dispatcher, "drain", crash)
    session._delivery.intake.doorbell()
    assert await asyncio.to_thread(is_replaced.wait, 30)  # no call of the real one is under way
    receipts = [run.log_metric("loss", 0.5, step=step) for step in range(5)]
    lingering = other.log_metric("loss", 0.5)
    flush = asyncio.ensure_future(run.flush())
    await asyncio.sleep(0)  # it waits
    is_logged = True
    session._delivery.intake.doorbell()
    results = await asyncio.wait_for(
        asyncio.gather(*receipts, flush, lingering, return_exceptions=True), 20.0
    )
    for result in results:
        assert isinstance(result, DeliveryError)
        assert result.__cause__ is mistake
    for doing in (run.flush, run.drain, lambda: session.runs.get("r")):
        with pytest.raises(Closed, match="crashed with RuntimeError"):
            await doing()
    with pytest.raises(Closed, match="crashed with RuntimeError"):
        run.log_metric("loss", 0.5)
    with pytest.raises(DeliveryError, match="6 records") as caught:
        await session.close()
    assert caught.value.__cause__ is mistake
    assert "the sender crashed" in caplog.text


async def test_a_crash_on_the_way_to_a_verdict() -> None:
    """Also a batch whose answer was being judged is given up, and its receipts are resolved."""
    session = await FakeSession().open()
    run = attach(session)
    session.answer(LOG_BATCH, {"code": "Odd"}, status=400)

    class Crashing:
        async def run_is_gone(self, run_id: str) -> bool:
            raise RuntimeError("a mistake of ours")

        post_batch = session._engine.batches.post_batch

    session._delivery.sender.service = Crashing()
    receipts = [run.log_metric("loss", 0.5, step=step) for step in range(5)]
    results = await asyncio.wait_for(asyncio.gather(*receipts, return_exceptions=True), 20.0)
    assert all(isinstance(result, DeliveryError) for result in results)
    with pytest.raises(DeliveryError, match="5 records"):
        await session.close()


def test_a_loop_that_ends_without_leaving() -> None:
    """Delivery goes on without it, and its runs can still be logged into."""

    async def forget() -> tuple[FakeSession, Run]:
        session = await FakeSession().open()
        run = attach(session)
        run.log_metric("loss", 0.5)
        return session, run

    session, run = asyncio.run(forget())
    receipt = run.log_metric("loss", 0.25, step=1)
    receipt.wait(20.0)
    assert [metric.value for metric in session.received(run.run_id).metrics] == [0.5, 0.25]
    close_without_its_loop(session)


async def test_no_linger_is_no_busy_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a linger of 0 the sender still sleeps while it waits for a reply."""
    async with FakeSession(linger=0.0, close_timeout=0.0) as session:
        run = attach(session)
        session.answer(LOG_BATCH, status=429, headers={"retry-after": "60"})
        looks = 0
        drain = Dispatcher.drain

        def count(self: Dispatcher, now: float) -> list[RecordBatch]:
            nonlocal looks
            looks += 1
            return drain(self, now)

        monkeypatch.setattr(Dispatcher, "drain", count)
        run.log_metric("loss", 0.5)
        await asyncio.sleep(0.05)
        assert looks < 20
        with pytest.raises(DeliveryError):
            await session.close()


async def test_a_batch_leaves_after_a_linger() -> None:
    """Without anybody waiting, what was logged arrives a linger later."""
    async with FakeSession(linger=0.02) as session:
        run = attach(session)
        logged_at = time.monotonic()
        receipt = run.log_metric("loss", 0.5)
        await eventually(lambda: receipt.delivered)
        assert time.monotonic() - logged_at >= 0.02


async def test_secrets_stay_secret(caplog: pytest.LogCaptureFixture) -> None:
    """No log line at any level, repr or error holds a value, and no error a whole body."""
    caplog.set_level("DEBUG", "adp_async")
    session = await FakeSession().open()
    run = attach(session)
    session.answer(LOG_BATCH, status=503, times=1)
    run.log_param("password", "s3cr3t-value")
    run.log_param("p@ssword", "s3cr3t-value")
    run.set_tag("token", "s3cr3t-value")
    run.log_metric("amount", 421337.421337)
    shown = [
        repr(run),
        repr(session),
        repr(session.logger),
        repr(session._delivery.accumulator.lanes),
    ]
    with pytest.raises(DeliveryError) as caught:
        await run.flush()
    shown += [str(caught.value), repr(caught.value), repr(caught.value.rejections), caplog.text]
    await session.close()
    for text in shown:
        assert "s3cr3t" not in text
        assert "421337" not in text
    assert Forbidden.__name__ not in caplog.text
