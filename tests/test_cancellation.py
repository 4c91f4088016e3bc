"""Cancellation alone: a cancelled task ends at once, and affects no other task."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from children import until

from adp_async._io import spool
from adp_async._sansio.retry import RetryPolicy
from adp_async.errors import DeliveryError
from adp_async.local import Fault
from adp_async.testing import FakeSession

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from adp_async import Run
    from adp_async.local import LocalPlatform

LOG_BATCH = "log_experiment_run_batch"
QUICK: dict[str, Any] = {
    "spool": False,
    "linger": 0.01,
    "close_timeout": 2.0,
    "retry": RetryPolicy(first_backoff=0.005, max_backoff=0.02),
}


def attach(session: FakeSession) -> Run:
    return session.attach_run(session.add_run())


async def cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel *task*, which must end by that, at once."""
    began = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - began < 15.0


async def test_a_call_under_way(bare_platform: LocalPlatform) -> None:
    """A call that waits for its reply ends at once, and the session goes on."""
    async with bare_platform.session(**QUICK) as session:
        bare_platform.gateway.inject(Fault.hang())
        task = asyncio.create_task(session.runs.get("r"))
        while not bare_platform.gateway.requests:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.005)
        await cancelled(task)
        assert (await session.runs.create()).info.run_id


async def test_a_call_that_backs_off() -> None:
    """So does one that waits to try again, or for its turn."""
    slow = RetryPolicy(first_backoff=6000.0, max_backoff=6000.0)
    async with FakeSession(retry=slow, call_timeout=100_000.0) as session:
        session.answer("get_experiment_run_by_id", status=503, times=1)
        session.answer("get_experiment_run_by_id", status=429, times=1)
        for requests in (1, 2, 2):
            task = asyncio.create_task(session.runs.get("r"))
            async with asyncio.timeout(20):
                while len(session.requests) < requests:  # noqa: ASYNC110 - it has no event
                    await asyncio.sleep(0.005)
            await asyncio.sleep(0.02)
            await cancelled(task)
            assert len(session.requests) == requests


async def test_who_waits_for_delivery() -> None:
    """A cancelled flush, drain or receipt leaves the records alone, and no waiter behind."""
    async with FakeSession(buffer_limit=160 * 100) as session:
        run = attach(session)
        script = session.answer(LOG_BATCH, status=503)
        receipts = [run.log_metric("loss", 0.5, step=step) for step in range(100)]
        for waiting in (run.flush(), session.logger.flush(), run.drain(), receipts[5], receipts[5]):
            task = asyncio.ensure_future(waiting)
            await asyncio.sleep(0.002)
            await cancelled(task)  # type: ignore[arg-type]
        other = asyncio.ensure_future(receipts[5])
        script.left = 0
        await other
        await run.flush()
        assert all(receipt.delivered for receipt in receipts)
        assert session._delivery._waiters.are_none


async def test_waits_that_time_out_in_an_outage_leave_nothing_behind() -> None:
    """A loop that waits for room, or for anything to be settled, a moment at a time."""
    once = RetryPolicy(first_backoff=60.0)  # so that nothing is in flight in the end
    async with FakeSession(buffer_limit=160 * 100, close_timeout=0.1, retry=once) as session:
        run, delivery = attach(session), session._delivery
        script = session.answer(LOG_BATCH, status=503)
        for step in range(100):
            run.log_metric("loss", 0.5, step=step)
        assert session._engine.thread is not None
        await until(lambda: script.given > 0 and run.stats().in_flight == 0)
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.002):
                    await run.drain()
            await session._engine.thread.run(delivery.something_settled(0.002))
        await session._engine.thread.run(asyncio.sleep(0))
        assert not delivery.intake._drained
        assert delivery.state.waiters.are_none
        assert run.discard() == 100


async def test_one_of_many_who_wait() -> None:
    """The others go on waiting, and hear of it."""
    async with FakeSession() as session:
        run = attach(session)
        script = session.answer(LOG_BATCH, status=503)
        receipt = run.log_metric("loss", 0.5)
        waiters = [asyncio.ensure_future(receipt) for _ in range(5)]
        flushes = [asyncio.create_task(run.flush()) for _ in range(5)]
        await asyncio.sleep(0.005)
        await cancelled(waiters[2])  # type: ignore[arg-type]
        await cancelled(flushes[2])
        script.left = 0
        await asyncio.gather(*waiters[:2], *waiters[3:], *flushes[:2], *flushes[3:])


async def test_a_failing_task_group_around_a_session() -> None:
    """The sender belongs to no group: what was accepted is delivered, no group wraps an error."""

    async def use(session: FakeSession) -> None:
        async with session, asyncio.TaskGroup() as group:
            run = attach(session)
            group.create_task(asyncio.sleep(60))
            for step in range(3000):
                run.log_metric("loss", 0.5, step=step)
            raise ValueError("the caller's own")

    session = FakeSession(linger=60.0)
    with pytest.raises(ExceptionGroup) as caught:
        await use(session)
    assert [str(error) for error in caught.value.exceptions] == ["the caller's own"]
    assert sum(len(run.metrics) for run in session.service.store.runs.values()) == 3000


@pytest.mark.parametrize("how", ["task", "asyncio.timeout", "anyio scope"])
async def test_a_cancelled_session(how: str) -> None:
    """Whatever cancels its body, the session delivers what it has before it is left."""
    session = FakeSession(linger=60.0)

    async def use(then: Callable[[], object]) -> None:
        async with session:
            run = attach(session)
            for step in range(3000):
                run.log_metric("loss", 0.5, step=step)
            then()
            await asyncio.sleep(60)

    if how == "task":
        logged = asyncio.Event()
        task = asyncio.create_task(use(logged.set))
        await logged.wait()
        await cancelled(task)
    elif how == "asyncio.timeout":
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(None) as limit:
                await use(lambda: limit.reschedule(asyncio.get_running_loop().time()))
    else:
        with anyio.CancelScope() as scope:
            await use(lambda: setattr(scope, "deadline", anyio.current_time()))
    (run,) = session.service.store.runs.values()
    assert len(run.metrics) == 3000
    assert "it is closed" in repr(session)


async def test_cancelled_while_it_closes() -> None:
    """A second cancellation cuts the closing short: everything is settled, nothing stays open."""
    session = await FakeSession(close_timeout=60.0).open()
    run = attach(session)
    session.answer(LOG_BATCH, status=503)
    receipt = run.log_metric("loss", 0.5)
    task = asyncio.create_task(session.close())
    await asyncio.sleep(0.02)
    await cancelled(task)
    assert receipt.done
    with pytest.raises(DeliveryError):
        await receipt
    assert "it is closed" in repr(session)
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert not [task for task in others if task.get_name().startswith("adp_async")]


async def test_cancelled_while_it_opens() -> None:
    """Opening that is cancelled can be done again."""
    session = FakeSession()
    task = asyncio.create_task(session.open())
    await asyncio.sleep(0)
    await cancelled(task)
    await session.open()
    await session.close()


async def test_cancelled_at_any_moment_of_its_opening(tmp_path: Path) -> None:
    """Nothing stays open: no delivery, no thread, no file, however often it is cancelled."""
    threads, files = threading.active_count(), len(spool._open_spools)
    for turns in range(40):
        session = FakeSession(spool=tmp_path)
        task = asyncio.create_task(session.open())
        for _ in range(turns):
            await asyncio.sleep(0.0002)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        await asyncio.gather(task, return_exceptions=True)
        if not task.cancelled():
            await session.close()
        assert not session.is_open

    def is_tidy() -> bool:
        no_more = threading.active_count() <= threads and len(spool._open_spools) <= files
        return no_more and not list(tmp_path.glob("*.spool"))

    async with asyncio.timeout(30.0):
        while not is_tidy():  # noqa: ASYNC110 - threads set no event
            await asyncio.sleep(0.01)


async def test_cancelled_while_a_run_is_created() -> None:
    """No run is entered, and the next one is created as if nothing had been."""
    async with FakeSession() as session:
        session.answer("create_experiment_run", status=503, times=1)
        task = asyncio.ensure_future(session.start_run().__aenter__())
        await asyncio.sleep(0)
        await cancelled(task)
        async with session.start_run() as run:
            run.log_metric("loss", 0.5)


async def test_no_task_is_left() -> None:
    """A closed session leaves no task behind, however busy it was."""
    before = asyncio.all_tasks()
    async with FakeSession(linger=0.0) as session:
        runs = [attach(session) for _ in range(10)]
        for step in range(1000):
            runs[step % 10].log_metric("loss", 0.5, step=step)
    assert asyncio.all_tasks() == before
