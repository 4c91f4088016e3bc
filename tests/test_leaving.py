"""Leaving: the body's own exception comes out bare, on every road, and in time."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from adp_async._io.spool import Spool
from adp_async.auth import CustomSigner
from adp_async.errors import AdpError, Closed, DeliveryError
from adp_async.testing import FakeBlockingSession, FakeSession

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LOG_BATCH = "log_experiment_run_batch"
CLOSE_TIMEOUT = 0.1

ROADS = ["start_run", "attach_run", "session"]
SPOOLS = ["spool", "no spool", "failing spool"]
ERRORS: dict[str, Callable[[], BaseException]] = {
    "Exception": lambda: ValueError("the body's own"),
    "KeyboardInterrupt": KeyboardInterrupt,
    "SystemExit": lambda: SystemExit(3),
    "cancelled": asyncio.CancelledError,
}


def knobs_of(spool: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    if spool == "failing spool":

        def fail(spool: Spool, *_: Any, **__: Any) -> None:
            raise OSError("the disk is gone")

        def fail_to_close(spool: Spool, *_: Any) -> None:
            spool.release()  # Python 3.13 warns of a connection that is left open
            fail(spool)

        monkeypatch.setattr(Spool, "commit", fail)
        monkeypatch.setattr(Spool, "close", fail_to_close)
    return {
        "close_timeout": CLOSE_TIMEOUT,
        "spool": False if spool == "no spool" else folder / "spool",
        "spool_interval": 0.01,
    }


def is_bare(caught: BaseException | None, expected: BaseException) -> None:
    assert caught is expected
    assert caught.__cause__ is None
    assert not isinstance(caught.__context__, AdpError | OSError)
    assert all(note.startswith("adp_async: ") for note in getattr(caught, "__notes__", ()))


async def leave(road: str, error: BaseException, session: FakeSession) -> None:
    """A session, and a run in it, that are left with *error* while the service fails."""
    async with session:
        if road == "session":
            session.answer(LOG_BATCH, status=503)
            session.logger.log_metric(session.add_run(), "loss", 0.5)
            raise error
        if road == "start_run":
            async with session.start_run() as run:
                session.answer(LOG_BATCH, status=503)
                run.log_metric("loss", 0.5)
                run.set_tag("state", "bad")
                raise error
        async with session.attach_run(session.add_run()) as attached:
            session.answer(LOG_BATCH, status=503)
            attached.log_metric("loss", 0.5)
            raise error


def leave_blocking(road: str, error: BaseException, session: FakeBlockingSession) -> None:
    with session:
        if road == "session":
            session.session.answer(LOG_BATCH, status=503)
            session.session.logger.log_metric(session.session.add_run(), "loss", 0.5)
            raise error
        if road == "start_run":
            with session.start_run() as run:
                session.session.answer(LOG_BATCH, status=503)
                run.log_metric("loss", 0.5)
                run.set_tag("state", "bad")
                raise error
        with session.attach_run(session.session.add_run()) as attached:
            session.session.answer(LOG_BATCH, status=503)
            attached.log_metric("loss", 0.5)
            raise error


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("spool", SPOOLS)
@pytest.mark.parametrize("road", ROADS)
def test_the_bodys_own_exception(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, road: str, spool: str, kind: str
) -> None:
    """Whatever ends the body comes out as it is, on both faces, while nothing is delivered."""
    knobs = knobs_of(spool, tmp_path, monkeypatch)
    for face in ("async", "blocking"):
        error, caught = ERRORS[kind](), None
        began = time.monotonic()
        try:
            if face == "async":
                asyncio.run(leave(road, error, FakeSession(**knobs)))
            else:
                leave_blocking(road, error, FakeBlockingSession(**knobs))
        except BaseException as found:
            caught = found
        is_bare(caught, error)
        assert time.monotonic() - began < CLOSE_TIMEOUT + 15.0


@pytest.mark.parametrize("spool", SPOOLS)
@pytest.mark.parametrize("road", ROADS)
async def test_cancelled_three_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, road: str, spool: str
) -> None:
    """A task that is cancelled again and again while it leaves ends cancelled, in time."""
    knobs = knobs_of(spool, tmp_path, monkeypatch)
    session = FakeSession(**knobs)

    async def body(run: Any) -> None:
        session.answer(LOG_BATCH, status=503)
        run.log_metric("loss", 0.5)
        await asyncio.sleep(30)

    async def work() -> None:
        async with session:
            if road == "session":
                await body(session.attach_run(session.add_run()))
            elif road == "start_run":
                async with session.start_run() as run:
                    await body(run)
            else:
                async with session.attach_run(session.add_run()) as run:
                    await body(run)

    task = asyncio.create_task(work())
    await asyncio.sleep(0.03)
    began = time.monotonic()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.02)
    (result,) = await asyncio.gather(task, return_exceptions=True)
    assert type(result) is asyncio.CancelledError
    assert time.monotonic() - began < CLOSE_TIMEOUT + 15.0
    assert not session.is_open


# In time ------------------------------------------------------------------------------------------


def hangs(session: FakeSession) -> None:
    """The service answers nothing any more."""

    async def send(request: Any, *, timeout: float | None = None) -> Any:
        await asyncio.sleep(60)

    session.service.send = send  # type: ignore[method-assign]


def test_run_and_session_share_a_deadline(tmp_path: Path) -> None:
    """Both together take `close_timeout` when the service hangs: on both faces, spool or not."""

    def seconds(face: str, spool: Path | bool) -> float:
        knobs: Any = {"close_timeout": 4.0, "spool": spool}
        began = 0.0

        async def leaves() -> None:
            nonlocal began
            async with FakeSession(**knobs) as session, session.start_run() as run:
                hangs(session)
                run.log_metric("loss", 0.5)
                began = time.monotonic()

        def leaves_blocking() -> None:
            nonlocal began
            with FakeBlockingSession(**knobs) as session, session.start_run() as run:
                hangs(session.session)
                run.log_metric("loss", 0.5)
                began = time.monotonic()

        with pytest.raises(DeliveryError):
            asyncio.run(leaves()) if face == "async" else leaves_blocking()
        return time.monotonic() - began

    faces = ["async", "async", "blocking", "blocking"]
    with ThreadPoolExecutor(4) as pool:  # all at once, since each of them waits
        took = list(pool.map(seconds, faces, [False, tmp_path / "a", False, tmp_path / "b"]))
    assert min(took) > 2.0
    assert max(took) < 7.6, "not twice the time"


@pytest.mark.parametrize("service", ["well", "hangs"])
@pytest.mark.parametrize("method", ["commit", "close"])
@pytest.mark.parametrize("face", ["async", "blocking"])
def test_a_disk_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, face: str, method: str, service: str
) -> None:
    """Leaving doesn't wait for a disk that answers much later."""
    knobs: Any = {"close_timeout": 0.5, "spool": tmp_path / "spool", "spool_interval": 0.01}
    real, released = getattr(Spool, method), threading.Event()

    def slow(self: Spool, *arguments: Any) -> Any:
        released.wait(60.0)
        return real(self, *arguments)

    began = 0.0

    def fill(session: FakeSession) -> None:
        nonlocal began
        if service == "hangs":
            hangs(session)
        session.logger.log_metric(session.add_run(), "loss", 0.5)
        time.sleep(0.05)
        began = time.monotonic()
        if service == "well" and method == "close":  # what leaves is not what takes its time
            while session.logger.stats().undelivered and time.monotonic() < began + 20.0:
                time.sleep(0.005)
            began = time.monotonic()

    async def leaves() -> None:
        async with FakeSession(**knobs) as session:
            fill(session)

    monkeypatch.setattr(Spool, method, slow)
    try:
        try:
            if face == "async":
                asyncio.run(leaves())
            else:
                with FakeBlockingSession(**knobs) as session:
                    fill(session.session)
        except DeliveryError:
            # (A token has to be on disk before its batch leaves.)
            assert service == "hangs" or method == "commit"
        assert time.monotonic() - began < 20.0
    finally:
        released.set()


# While it opens -----------------------------------------------------------------------------------


class Slow:
    """Credentials that take long to load."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.released = threading.Event()

    def auth(self) -> CustomSigner:
        begun, released = self.begun, self.released

        class Loading(CustomSigner):
            def load(self) -> Any:
                begun.set()
                released.wait(60.0)
                return super().load()

        return Loading(lambda request: None)


async def test_closed_while_it_opens() -> None:
    """`close` doesn't wait for an opening that hangs, which raises Closed."""
    slow = Slow()
    session = FakeSession(auth=slow.auth())
    opening = asyncio.create_task(session.open())
    await asyncio.sleep(0.02)
    try:
        async with asyncio.timeout(20.0):
            await session.close()
            with pytest.raises(Closed, match="being opened"):
                await opening
        assert not session.is_open
        assert not opening.cancelled()
    finally:
        slow.released.set()


async def test_cancelled_and_closed_while_it_opens() -> None:
    """Who was cancelled as well stays cancelled."""
    slow = Slow()
    session = FakeSession(auth=slow.auth())
    opening = asyncio.create_task(session.open())
    await asyncio.sleep(0.02)
    try:
        opening.cancel()
        async with asyncio.timeout(20.0):
            await session.close()
            (result,) = await asyncio.gather(opening, return_exceptions=True)
        assert isinstance(result, asyncio.CancelledError | Closed)
    finally:
        slow.released.set()
    await session.open()
    await session.close()


def test_a_blocking_session_closed_while_it_opens() -> None:
    """The same from another thread."""
    slow = Slow()
    session = FakeBlockingSession(auth=slow.auth())
    raised: list[BaseException] = []

    def work() -> None:
        try:
            session.open()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert slow.begun.wait(20.0)
    try:
        began = time.monotonic()
        session.close()
        thread.join(30.0)
        assert time.monotonic() - began < 20.0
        assert [type(error) for error in raised] == [Closed]
        assert not session.is_open
    finally:
        slow.released.set()
