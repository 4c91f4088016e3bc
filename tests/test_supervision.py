"""Foreign code, and cancelled tasks, may disturb delivery, but don't end it."""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from adp_async._io.spool import Spool
from adp_async._sansio.dispatch import Dispatcher
from adp_async._sansio.messages import Reply
from adp_async._sansio.retry import RetryPolicy
from adp_async.auth import CustomSigner
from adp_async.errors import Closed, ConnectionLost, DeliveryError, UploadError
from adp_async.testing import FakeBlockingSession, FakeSession

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from adp_async._sansio.batch import RecordBatch
    from adp_async._sansio.messages import Request
    from adp_async.run import Run

LOG_BATCH = "log_experiment_run_batch"
logger = logging.getLogger("adp_async")


class Odd(BaseException):
    """No Exception, so that nothing foresees it."""


def adds_up(session: FakeSession, run: Run, count: int) -> None:
    stats = session.logger.stats()
    assert stats.accepted == stats.delivered == count
    assert (stats.waiting, stats.in_flight, stats.spooled) == (0, 0, 0)
    assert sorted(each.step for each in session.received(run.run_id).metrics) == list(range(count))


def log_points(run: Run, count: int) -> None:
    for step in range(count):
        run.log_metric("loss", 0.5, step=step)


async def cancel_all(session: FakeSession, *names: str) -> int:
    """Cancel the tasks of the delivery thread whose names hold one of *names*; how many."""
    assert session._engine.thread is not None
    loop = session._engine.thread.loop

    async def cancel() -> int:
        tasks = [
            task
            for task in asyncio.all_tasks(loop)
            if task is not asyncio.current_task()
            and (not names or any(name in task.get_name() for name in names))
        ]
        for task in tasks:
            task.cancel()
        return len(tasks)

    return await session._engine.thread.run(cancel())


# Handlers and filters of the log ------------------------------------------------------------------


@contextmanager
def disturbed(level: int, add: Callable[[], Callable[[], None]]) -> Iterator[None]:
    before = logger.level
    logger.setLevel(level)
    remove = add()
    try:
        yield
    finally:
        remove()
        logger.setLevel(before)


class Raising(logging.Handler):
    """A handler whose author has forgotten what `handleError` is for."""

    def __init__(self) -> None:
        super().__init__()
        self.times = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.times += 1
        raise RuntimeError("the disk for logs is full")

    def filter(self, record: logging.LogRecord) -> bool:
        return True


def _handler() -> Callable[[], None]:
    handler = Raising()
    logger.addHandler(handler)
    return lambda: logger.removeHandler(handler)


def _filter() -> Callable[[], None]:
    def refuse(record: logging.LogRecord) -> bool:
        raise ValueError("what is this?")

    logger.addFilter(refuse)
    return lambda: logger.removeFilter(refuse)


@pytest.mark.parametrize("spool", [True, False], ids=["spool", "no spool"])
@pytest.mark.parametrize("level", [logging.DEBUG, logging.WARNING])
@pytest.mark.parametrize("add", [_handler, _filter], ids=["handler", "filter"])
async def test_a_log_that_raises(
    tmp_path: Path, add: Callable[[], Callable[[], None]], level: int, spool: bool
) -> None:
    """Every line raises, in good times and in bad ones: all of it is delivered."""
    folder = tmp_path / "spool"
    with disturbed(level, add):
        async with FakeSession(spool=folder if spool else False, spool_interval=0.01) as session:
            run = session.attach_run(session.add_run())
            session.answer(LOG_BATCH, status=503, times=2)
            session.answer(LOG_BATCH, status=429, headers={"retry-after": "0"}, times=1)
            for step in range(200):
                run.log_metric("loss", 0.5, step=step)
                if step % 10 == 0:
                    await run.flush()
            async with asyncio.timeout(30):
                await run.flush()
            adds_up(session, run, 200)


async def test_a_log_that_raises_while_leaving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has to be said at the end costs neither the end nor the body's own error."""
    monkeypatch.setattr("adp_async._io.delivery.SHORTEST_COMMIT", 30.0)  # a disk may be slow
    mistake = KeyError("the body's own")
    with disturbed(logging.DEBUG, _handler), pytest.raises(KeyError) as caught:  # noqa: PT012
        async with (
            FakeSession(spool=tmp_path / "spool", close_timeout=0.1) as session,
            session.start_run() as run,
        ):
            session.answer(LOG_BATCH, status=503)
            run.log_metric("loss", 0.5)
            raise mistake
    assert caught.value is mistake
    assert caught.value.__cause__ is None
    stats = session.logger.stats()
    assert (stats.accepted, stats.spooled) == (1, 1)


def test_where_a_line_comes_from(caplog: pytest.LogCaptureFixture) -> None:
    """A line names the place that says it, not the one that protects it."""
    caplog.set_level(logging.DEBUG, "adp_async")
    with FakeBlockingSession() as session:
        session.start_run().log_metric("loss", 0.5)
    found = {record.filename for record in caplog.records if record.name == "adp_async"}
    assert "sender.py" in found
    assert "log.py" not in found


# Tasks that somebody cancels ----------------------------------------------------------------------


@pytest.mark.parametrize("spool", [True, False], ids=["spool", "no spool"])
@pytest.mark.parametrize("names", [("adp_async sender",), ("adp_async batch",), ()])
async def test_tasks_that_are_cancelled(
    tmp_path: Path, names: tuple[str, ...], spool: bool
) -> None:
    """Somebody cancels the sender's, the keeper's or all tasks: delivery goes on, once each."""
    folder = tmp_path / "spool"
    async with FakeSession(spool=folder if spool else False, spool_interval=0.01) as session:
        run = session.attach_run(session.add_run())
        cancelled = 0
        for step in range(300):
            run.log_metric("loss", 0.5, step=step)
            if step % 60 == 30:
                await asyncio.sleep(0.006)
                cancelled += await cancel_all(session, *names)
        async with asyncio.timeout(30):
            await run.flush()
        adds_up(session, run, 300)
    assert cancelled or names == ("adp_async batch",)


async def test_a_run_in_trouble_whose_attempt_is_cancelled() -> None:
    """It is tried again: the attempt that somebody cancelled keeps no later one from leaving."""
    quick = RetryPolicy(first_backoff=0.02, max_backoff=0.02)
    async with FakeSession(linger=0.0, retry=quick, spool=False) as session:
        in_trouble = session.attach_run(session.add_run("in trouble"))
        healthy = session.attach_run(session.add_run())
        send, answers = session.service.send, {"in trouble": "refused"}

        async def answer(request: Request, *, timeout: float | None = None) -> Reply:
            if b'"in trouble"' in (request.body or b""):
                if answers["in trouble"] == "refused":
                    return Reply(403, {}, b'{"code": "NotAllowed", "message": "not yet"}')
                if answers["in trouble"] == "late":
                    answers["in trouble"] = "under way"
                    await asyncio.sleep(60)
            return await send(request, timeout=timeout)

        session.service.send = answer  # type: ignore[method-assign]
        in_trouble.log_metric("loss", 0.5)
        async with asyncio.timeout(30):
            while not in_trouble._lane.failures:
                await healthy.log_metric("loss", 0.5)
            answers["in trouble"] = "late"
            while answers["in trouble"] != "under way":
                await healthy.log_metric("loss", 0.5)
            answers["in trouble"] = "taken"
            assert await cancel_all(session, "batch in trouble") == 1
            while not in_trouble.stats().delivered:
                await healthy.log_metric("loss", 0.5)


async def test_uploads_when_all_tasks_are_cancelled() -> None:
    """Those under way, and those that have not begun, are uploaded; of one name the last."""
    async with FakeSession() as session:
        run = session.attach_run(session.add_run())
        send, is_slow = session.service.send, True

        async def answer(request: Request, *, timeout: float | None = None) -> Reply:
            if request.operation == "put_object" and is_slow:
                await asyncio.sleep(60)
            return await send(request, timeout=timeout)

        session.service.send = answer  # type: ignore[method-assign]
        uploads = [run.log_text(f"{number}", f"{number}.txt") for number in range(6)]
        earlier = run.log_text("earlier", "same.txt")
        later = run.log_text("later", "same.txt")
        for _ in range(3):
            await cancel_all(session)
            await asyncio.sleep(0.003)
        is_slow = False
        await cancel_all(session)
        async with asyncio.timeout(30):
            await asyncio.gather(*uploads, later)
            with pytest.raises(UploadError, match="a later one has its name"):
                await earlier
            with pytest.raises(UploadError):
                await run.finish()
        artifacts = session.received(run.run_id).artifacts
        assert artifacts == {f"{n}.txt": b"%d" % n for n in range(6)} | {"same.txt": b"later"}


async def test_a_run_that_is_not_created_when_all_tasks_are_cancelled() -> None:
    """It is created all the same, by this session, and ends."""
    async with FakeSession(linger=0.0) as session:
        outage = session.answer("get_experiment_by_name", ConnectionLost("the line is cut"))
        run = await session.start_run("digits", offline=True)
        run.log_metric("loss", 0.5)
        for _ in range(3):
            await cancel_all(session)
            await asyncio.sleep(0.003)
        outage.left = 0
        async with asyncio.timeout(30):
            await run.created()
            await run.finish()
        adds_up(session, run, 1)
        assert session.received(run.run_id).info["status"] == "FINISHED"


@pytest.mark.parametrize("face", ["receipt", "flush", "thread"])
async def test_who_waits_when_all_tasks_are_cancelled(face: str) -> None:
    """No waiter for a record hangs, on either side."""
    async with FakeSession(linger=0.0) as session:
        run = session.attach_run(session.add_run())
        script = session.answer(LOG_BATCH, status=503)
        receipt = run.log_metric("loss", 0.5, step=0)

        async def wait() -> None:
            if face == "receipt":
                await receipt
            elif face == "flush":
                await run.flush()
            else:
                await asyncio.to_thread(receipt.wait, 30.0)

        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0.03)
        await cancel_all(session)
        script.left = 0
        async with asyncio.timeout(30):
            await asyncio.gather(waiting, return_exceptions=True)
            await run.flush()
        assert receipt.delivered
        adds_up(session, run, 1)


async def test_tasks_that_are_cancelled_while_it_closes(tmp_path: Path) -> None:
    """Closing goes on delivering as well."""
    session = await FakeSession(spool=tmp_path / "spool", close_timeout=60.0).open()
    run = session.attach_run(session.add_run())
    script = session.answer(LOG_BATCH, status=503)
    run.log_metric("loss", 0.5, step=0)
    thread = session._engine.thread
    closing = asyncio.create_task(session.close())
    await asyncio.sleep(0.03)
    session._engine.thread = thread
    await cancel_all(session, "adp_async sender")
    session._engine.thread = None
    script.left = 0
    async with asyncio.timeout(30):
        await closing
    adds_up(session, run, 1)


async def test_a_sender_that_is_cancelled_for_ever() -> None:
    """When it is cancelled each time it starts, those who wait hear why."""
    session = await FakeSession(linger=0.0).open()
    run = session.attach_run(session.add_run())
    session.answer(LOG_BATCH, status=503)
    receipt = run.log_metric("loss", 0.5)
    async with asyncio.timeout(30):
        while session.is_open:
            await cancel_all(session, "adp_async sender")
        with pytest.raises(DeliveryError):
            await receipt
        with pytest.raises(Closed, match="crashed with CancelledError"):
            run.log_metric("loss", 0.5)
        with pytest.raises(DeliveryError, match="1 record"):
            await session.close()


# What foreign code raises -------------------------------------------------------------------------

RAISED = [Odd(), SystemExit(3), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError()]


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
async def test_what_the_sender_raises(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A BaseException out of the sender costs no record, whatever it is."""
    async with FakeSession(linger=0.0) as session:
        run = session.attach_run(session.add_run())
        drain = Dispatcher.drain
        times = 3

        def raising(self: Dispatcher, now: float) -> list[RecordBatch]:
            nonlocal times
            if times:
                times -= 1
                raise error
            return drain(self, now)

        monkeypatch.setattr(Dispatcher, "drain", raising)
        for step in range(50):
            run.log_metric("loss", 0.5, step=step)
        async with asyncio.timeout(30):
            await run.flush()
        assert times == 0
        adds_up(session, run, 50)


class Signer:
    """Raises *error* the first *times*."""

    def __init__(self, error: BaseException, times: int) -> None:
        self.error = error
        self.times = times

    def __call__(self, request: Any) -> None:
        if self.times:
            self.times -= 1
            raise self.error


@pytest.mark.parametrize("face", ["async", "blocking"])
@pytest.mark.parametrize(
    "error", [*RAISED, StopIteration(), RuntimeError()], ids=lambda error: type(error).__name__
)
async def test_what_a_signer_raises(error: BaseException, face: str) -> None:
    """It is called in the delivery thread: a batch waits for its next try, and nobody hangs."""
    signer = Signer(error, 0)
    knobs: Any = {"auth": CustomSigner(signer), "linger": 0.0}

    def blocking() -> None:
        with FakeBlockingSession(**knobs) as session:
            run = session.attach_run(session.session.add_run())
            signer.times = 15
            for step in range(50):
                run.log_metric("loss", 0.5, step=step)
            run.flush(timeout=30.0)
            assert run.stats().delivered == 50

    if face == "blocking":
        await asyncio.to_thread(blocking)
        return
    async with FakeSession(**knobs) as session:
        run = session.attach_run(session.add_run())
        signer.times = 15
        for step in range(50):
            run.log_metric("loss", 0.5, step=step)
        async with asyncio.timeout(30):
            await run.flush()
        adds_up(session, run, 50)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), Odd()], ids=repr)
def test_what_a_call_of_the_users_raises(error: BaseException) -> None:
    """A coroutine that runs in the delivery thread ends as it likes, alone."""

    async def ends() -> None:
        raise error

    with FakeBlockingSession() as session:
        run = session.start_run()
        with pytest.raises(type(error)):
            session.call(ends())
        run.log_metric("loss", 0.5)
        run.flush(timeout=30.0)
        assert run.stats().delivered == 1


# The spool ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["commit", "load", "close"])
async def test_a_spool_with_a_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """What the spool raises, foreseen or not, stops nothing but itself."""
    buffer = 200_000

    def broken(self: Any, *arguments: Any, **named: Any) -> Any:
        raise RuntimeError("a mistake of ours")

    async with FakeSession(
        spool=tmp_path / "spool", spool_interval=0.01, buffer_limit=buffer
    ) as session:
        run, other = (session.attach_run(session.add_run()) for _ in range(2))
        script = session.answer(LOG_BATCH, status=503)
        # From a thread, which waits for the disk as long as that takes.
        await asyncio.to_thread(log_points, run, 4000)
        await asyncio.sleep(0.05)
        monkeypatch.setattr(Spool, method, broken)
        script.left = 0
        other.log_metric("loss", 0.5, step=0)
        async with asyncio.timeout(30):
            await other.flush()
            await asyncio.gather(run.flush(), return_exceptions=True)
        stats = session.logger.stats()
        assert stats.accepted == 4001
        assert stats.accepted == stats.delivered + sum(stats.rejected.values()) + stats.dropped
        assert session.is_open
        if method != "load":
            assert stats.delivered == 4001
        monkeypatch.undo()


async def test_a_search_with_a_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A failed search for orphans is reported, and params and tags go on."""

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr("adp_async._io.recovery.find_spools", broken)
    async with FakeSession(spool=tmp_path / "spool") as session:
        run = session.attach_run(session.add_run())
        run.set_tag("state", "new")
        async with asyncio.timeout(30):
            await run.flush()
    assert any("could not be looked for" in message for message in caplog.messages)
