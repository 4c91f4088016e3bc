"""Calls that come at a bad moment: while a session closes, after it, in a forked child."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from children import start, until

from adp_async import Closed, DeliveryError, RetryPolicy
from adp_async._io import sigterm
from adp_async._io.intake import Intake
from adp_async._io.lifetime import Why
from adp_async.errors import AdpError, BufferFull
from adp_async.testing import FakeBlockingSession, FakeSession

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from adp_async.local import LocalPlatform

LOG_BATCH = "log_experiment_run_batch"
LOG_INPUTS = "log_experiment_run_inputs"
CREATE, UPDATE = "create_experiment_run", "update_experiment_run"

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def in_child(check: Callable[[], object]) -> None:
    """Do *check* in a forked child, and fail when it fails there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            check()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


# Receipts -----------------------------------------------------------------------------------------


@needs_fork
def test_a_receipt_in_a_forked_child() -> None:
    """The parent delivers the record, and only there can it be waited for."""
    with FakeBlockingSession(linger=60.0) as session:
        run = session.start_run()
        receipt = run.log_metric("loss", 0.5)

        def wait() -> None:
            with pytest.raises(Closed, match="belongs to the parent process"):
                receipt.wait(10)

        in_child(wait)
        receipt.wait(10)
        run.finish()


@pytest.mark.parametrize("spool", [True, False], ids=["spool", "no spool"])
async def test_receipts_that_are_waited_for_while_the_session_closes(
    spool: bool, tmp_path: Path
) -> None:
    """In a thread and on an event loop: whoever waits is told, and waits no longer."""
    knobs: Any = {"close_timeout": 0.2, "spool": tmp_path / "spool" if spool else False}
    session = await FakeSession(**knobs).open()
    run = session.attach_run(session.add_run())
    session.answer(LOG_BATCH, status=503)
    first, second = run.log_metric("loss", 0.5), run.log_metric("acc", 0.5)
    here = asyncio.ensure_future(awaited(second))
    there = asyncio.create_task(asyncio.to_thread(first.wait, 20))
    await until(lambda: len(session._delivery.state.waiters._receipts) == 2)
    with suppress(DeliveryError):  # with a spool, the next session delivers them
        await session.close()
    for waiting in (here, there):
        with pytest.raises((Closed, DeliveryError)):
            await asyncio.wait_for(waiting, 10)


@pytest.mark.usefixtures("patient_end")
async def test_receipts_of_a_session_that_has_closed(tmp_path: Path) -> None:
    """What was delivered stays so; of the rest the error says that the next session has it."""
    session = await FakeSession(close_timeout=0.2, spool=tmp_path / "spool").open()
    run = session.attach_run(session.add_run())
    delivered = run.log_metric("loss", 0.5)
    await delivered
    session.answer(LOG_BATCH, status=503)
    left = run.log_metric("acc", 0.5)
    await session.close()

    await delivered
    delivered.wait(0)
    with pytest.raises(DeliveryError) as caught:
        await left
    assert caught.value.__notes__ == ["left in the spool, for the next session"]
    with pytest.raises(DeliveryError):
        await asyncio.to_thread(left.wait, 10)


async def awaited(receipt: Any) -> None:
    await receipt


# A full buffer ------------------------------------------------------------------------------------


def test_records_that_leave_while_room_is_made_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The delivery thread may have taken them by then: they are in, and nobody waits for room."""
    with FakeBlockingSession(buffer_limit=2000, max_block=30.0) as session:
        run = session.attach_run(session.session.add_run())
        script = session.session.answer(LOG_BATCH, status=503)
        for step in range(10):
            run.log_metric("loss", 0.5, step)
        monkeypatch.setattr(Intake, "_take_out", lambda *_: [])
        for step in range(10, 20):
            run.log_metric("loss", 0.5, step)
        monkeypatch.undo()
        script.left = script.given
        run.flush(20)
        assert run.stats().delivered == 20


def log_many(run: Any) -> None:
    for step in range(100):
        run.log_metric("loss", 0.5, step)


async def test_a_session_that_closes_while_there_is_no_room() -> None:
    """`Closed` is the reason, not a full buffer."""
    async with FakeSession(buffer_limit=2000) as session:
        run = session.attach_run(session.add_run())
        session.answer(LOG_BATCH, status=503)
        lifetime, take_out = session._engine.lifetime, Intake._take_out

        def close_meanwhile(intake: Intake, records: Any) -> Any:
            lifetime.close(Why.CLOSED)
            return take_out(intake, records)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Intake, "_take_out", close_meanwhile)
            with pytest.raises(Closed, match="it is closed"):
                log_many(run)
        lifetime.open()
        with pytest.raises(BufferFull):
            log_many(run)
        run.discard()


# Ends ---------------------------------------------------------------------------------------------


async def test_a_disk_that_hangs_does_not_hold_up_an_end(tmp_path: Path) -> None:
    """Writing down how runs ended takes so long and no longer; the commit goes on by itself."""
    async with FakeSession(spool=tmp_path / "spool") as session:
        delivery, thread = session._delivery, session._engine.thread
        keeper = delivery.keeper
        assert keeper is not None
        assert thread is not None
        go_on, commit = threading.Event(), keeper.spool.commit

        def hang(*arguments: Any) -> None:
            go_on.wait(20)
            commit(*arguments)

        keeper.spool.commit = hang  # type: ignore[method-assign]
        run = await session.start_run()
        run.log_metric("loss", 0.5)
        assert not await thread.run(delivery.write_down(0.05))
        go_on.set()
        assert await thread.run(delivery.write_down(20.0))
        await run.finish()


async def test_closing_the_delivery_again_is_nothing() -> None:
    """Its end was told the first time."""
    session = await FakeSession(close_timeout=0.2).open()
    run = session.attach_run(session.add_run())
    session.answer(LOG_BATCH, status=503)
    run.log_metric("loss", 0.5)
    thread, delivery = session._engine.thread, session._delivery
    assert thread is not None
    with pytest.raises(DeliveryError):
        await thread.run(delivery.close(0.2))
    await thread.run(delivery.close(0.2))
    await session.close()


async def test_a_late_run_that_ends_after_its_session() -> None:
    """It was never created and cannot be ended any more: that is raised, and not hidden."""
    session = await FakeSession(close_timeout=0.2, retry=RetryPolicy(first_backoff=0.01)).open()
    session.answer(CREATE, status=503)
    run = await session.start_run(offline=True)
    run.log_metric("loss", 0.5)
    with pytest.raises(AdpError):
        await session.close()
    with pytest.raises(Closed):
        await run.__aexit__(None, None, None)


async def test_a_late_run_without_a_spool_says_what_is_left() -> None:
    """There is only this session for it: leaving raises, and names what was not delivered."""
    session = await FakeSession(close_timeout=0.3, retry=RetryPolicy(first_backoff=0.01)).open()
    session.answer(CREATE, status=503)
    run = await session.start_run(offline=True)
    run.log_metric("loss", 0.5)
    with pytest.raises(DeliveryError, match="1 record not delivered yet; the session keeps"):
        await run._leave(None)
    with pytest.raises(AdpError):
        await session.close()


# Lenient runs -------------------------------------------------------------------------------------


async def test_a_lenient_run_whose_calls_fail(caplog: pytest.LogCaptureFixture) -> None:
    """Datasets that are refused, and waiting for room in a closed session, are WARNINGs."""
    session = await FakeSession().open()
    run = session.attach_run(session.add_run(), strict=False)
    session.answer(LOG_INPUTS, {"code": "Odd", "message": "broken"}, status=500)
    await run.log_inputs([])
    await session.close()
    await run.drain()
    refused, closed = told(caplog)
    assert "500 Odd" in refused
    assert "closed" in closed


async def test_a_lenient_run_whose_body_fails() -> None:
    """The body's own error comes out; that its status could not be set is a note on it."""
    async with FakeSession() as session:

        async def train() -> None:
            async with session.start_run(strict=False) as run:
                session.answer(UPDATE, {"code": "X", "message": "no"}, status=400)
                run.log_param("lr", 0.1)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError) as caught:
            await train()
        assert "400 X: no" in "".join(caught.value.__notes__)


@needs_fork
def test_a_lenient_run_is_the_parent_s_to_end(caplog: pytest.LogCaptureFixture) -> None:
    """In a forked child `finish` ends nothing, and says so."""
    with FakeBlockingSession() as session:
        run = session.session.start_run(strict=False)
        started = session.call(awaited_value(run))

        def finish() -> None:
            asyncio.run(started.finish())
            assert "belongs to the parent process, which ends it" in caplog.text

        in_child(finish)
        assert started.status is None
        session.call(started.finish())
        assert started.status == "FINISHED"


@needs_fork
def test_an_asynchronous_run_in_a_forked_child() -> None:
    """Its block is exited there, which ends nothing; used again, it has a session of its own."""
    with FakeBlockingSession() as session:
        started = session.call(awaited_value(session.session.start_run()))

        async def use() -> None:
            async with started:
                pass
            assert started._is_inherited
            await started.flush()
            assert started._is_parents

        in_child(lambda: asyncio.run(use()))
        assert started.status is None
        session.call(started.finish())


async def awaited_value(run: Any) -> Any:
    return await run


# Direct calls -------------------------------------------------------------------------------------


async def test_a_status_that_cannot_be_set_after_the_session_closed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """That it is not set later either is no second error: the first one is raised."""
    session = await FakeSession(close_timeout=0.2).open()
    run = await session.start_run()
    await session.close()
    with caplog.at_level(logging.DEBUG, "adp_async"):
        await run._end_afterwards("FINISHED", DeliveryError("late", undelivered=0, run_id="r"))
    assert "cannot be ended later" in caplog.text


# SIGTERM ------------------------------------------------------------------------------------------


def test_a_sigterm_at_a_moment_that_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler of the log that hangs keeps no process from ending."""
    happened: list[str] = []
    ended = threading.Event()
    monkeypatch.setattr(sigterm, "_MOST_TIMES", 3)
    monkeypatch.setattr(sigterm, "_times", 0)
    monkeypatch.setattr(sigterm, "is_any_busy_here", lambda: happened.append("busy") or True)
    monkeypatch.setattr(sigterm, "terminated", lambda: None)
    monkeypatch.setattr(sigterm, "end_all", lambda: happened.append("ended"))
    monkeypatch.setattr(sigterm.signal, "raise_signal", lambda number: ended.set())
    before = signal.signal(signal.SIGTERM, sigterm._terminated)
    try:
        sigterm._terminated(signal.SIGTERM, None)
        assert ended.wait(10)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert happened == ["busy"] * 4 + ["ended"]


BORN = """
    import os, signal, time, warnings
    from adp_async.testing import FakeBlockingSession

    warnings.simplefilter("ignore", DeprecationWarning)  # of a fork while threads run
    with FakeBlockingSession() as session, session.start_run() as run:
        run.log_metric("loss", 0.5)
        for _ in range(20):
            child = os.fork()
            if child == 0:
                time.sleep(60)
                os._exit(0)
            os.kill(child, signal.SIGTERM)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        print(signal.pthread_sigmask(signal.SIG_BLOCK, []))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
async def test_a_child_that_is_terminated_as_it_is_forked(
    bare_platform: LocalPlatform, tmp_path: Path
) -> None:
    """The signal is not lost before the child's interpreter has begun, as a Pool's may be."""
    child = await start(bare_platform, tmp_path, BORN)
    assert (await child.ends_well()).split() == ["-15"] * 20 + ["set()"]


def test_a_sigterm_at_a_bad_moment_is_raised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """While this thread holds what the end waits for, the signal comes again a little later."""
    happened: list[str] = []
    asked: list[bool] = []
    may_end, ended = threading.Event(), threading.Event()

    def is_busy() -> bool:
        asked.append(True)
        return not (may_end.is_set() and len(asked) > 2)

    def end_all() -> None:
        happened.append("ended")

    def raised(number: int) -> None:
        happened.append(f"raised {number}")
        ended.set()

    monkeypatch.setattr(sigterm, "_MOST_TIMES", 10_000)
    monkeypatch.setattr(sigterm, "_times", 0)
    monkeypatch.setattr(sigterm, "is_any_busy_here", is_busy)
    monkeypatch.setattr(sigterm, "terminated", lambda: happened.append("told"))
    monkeypatch.setattr(sigterm, "end_all", end_all)
    monkeypatch.setattr(sigterm.signal, "raise_signal", raised)
    before = signal.signal(signal.SIGTERM, sigterm._terminated)
    try:
        sigterm._terminated(signal.SIGTERM, None)
        assert happened == []
        may_end.set()
        assert ended.wait(10)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
    assert happened == ["told", "ended", f"raised {signal.SIGTERM}"]
