"""Where a collector listens, and who connects there without being a worker."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import socket
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from children import until
from test_collector_hop import steps

from adp_async._io.loop_thread import LoopThread
from adp_async.collector import server as servers
from adp_async.collector import sockets
from adp_async.collector.sockets import Listen, listen_at
from adp_async.errors import Closed, ConfigurationError
from adp_async.testing import FakeBlockingSession, FakeSession

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adp_async.blocking import Run
    from adp_async.collector import Handle


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeBlockingSession]:
    with FakeBlockingSession(spool=tmp_path / "spool") as session:
        yield session


@pytest.fixture
def run(fake: FakeBlockingSession) -> Run:
    return fake.attach_run(fake.session.add_run())


# ------------------------------------------------------------------ places


def test_a_file_is_not_replaced(run: Run, tmp_path: Path) -> None:
    """A path by mistake: connecting to a file is refused as to a dead socket, but it stays."""
    precious = tmp_path / "model.bin"
    precious.write_bytes(b"weights")
    with pytest.raises(ConfigurationError, match="it is not a socket"):
        run.shared(precious).open()
    assert precious.read_bytes() == b"weights"


def test_a_deep_temporary_folder(
    fake: FakeBlockingSession, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where TMPDIR is too deep for a socket, it is elsewhere; nothing is left behind."""
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with run.shared() as handle, handle.attach() as worker:
        worker.log_metric("loss", 0.5)
    run.flush()
    assert steps(fake, run.run_id) == {"loss": [0]}
    assert not list(deep.iterdir())
    assert not os.path.exists(os.path.dirname(handle.socket))


def test_what_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `Path` is one even without a separator, and ~ is the home folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert Listen.of(Path("agent.sock")) == Listen(path=str(tmp_path / "agent.sock"))
    assert Listen.of("~/agent.sock") == Listen(path="/home/somebody/agent.sock")
    assert Listen.of("localhost") == Listen(host="localhost")


def test_a_umask_is_everybody_s(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not touched: another thread may create a folder at that moment."""

    def umask(mask: int) -> int:
        pytest.fail("os.umask was called")

    monkeypatch.setattr(os, "umask", umask)
    with run.shared(tmp_path / "s"):
        assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600


async def test_one_of_many_replaces_a_dead_socket(tmp_path: Path) -> None:
    """Collectors that start at once at a dead socket: one listens, and the others say so."""
    path = tmp_path / "s"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    found = await asyncio.gather(
        *(listen_at(Listen(path=str(path))) for _ in range(8)), return_exceptions=True
    )
    listening = [each for each in found if not isinstance(each, BaseException)]
    assert len(listening) == 1
    assert {str(each) for each in found if isinstance(each, OSError)} == {
        "[Errno 17] another collector listens there"
    }
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    listening[0].remove()
    listening[0].socket.close()
    assert not path.exists()


async def test_a_lock_that_another_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever locks the folder does not hold us up for ever."""
    import fcntl

    monkeypatch.setattr(sockets, "LONGEST_BINDING", 0.1)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(BlockingIOError, match="holds a lock"):
            await listen_at(Listen(path=str(tmp_path / "s")))
    finally:
        os.close(descriptor)


async def test_a_busy_collector_is_not_dead(tmp_path: Path) -> None:
    """One whose queue of connections is full: asking does not block, and it stays."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(str(path))
        busy.listen(0)
        waiting = []
        while True:
            client = socket.socket(socket.AF_UNIX)
            client.setblocking(False)
            waiting.append(client)
            try:
                client.connect(str(path))
            except BlockingIOError:
                break
        with pytest.raises(FileExistsError, match="another collector listens there"):
            await listen_at(Listen(path=str(path)))
        for client in waiting:
            client.close()
    assert path.exists()


def test_another_one_s_socket_stays(run: Run, tmp_path: Path) -> None:
    """A collector that ends removes its own, not what came to its path since."""
    shared = run.shared(tmp_path / "s")
    shared.open()
    (tmp_path / "s").unlink()
    with run.shared(tmp_path / "s") as handle:
        shared.close()
        with handle.attach() as worker:
            worker.log_metric("loss", 0.5)
            worker.flush(timeout=20)
    assert not (tmp_path / "s").exists()


def test_once_only(run: Run) -> None:
    """What was opened is not opened again: its handle is dead when it has closed."""
    shared = run.shared()
    handle = shared.open()
    with pytest.raises(Closed, match="makes another handle"):
        shared.open()
    assert handle.socket
    shared.close()
    assert not os.path.exists(handle.socket)
    with pytest.raises(Closed, match="makes another handle"):
        shared.open()


async def test_one_that_is_cancelled_as_it_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even at the last moment, when it listens already: then nobody is there to close it."""
    async with FakeSession() as session:
        run = session.attach_run(session.add_run())
        thread = session._engine.thread
        assert thread is not None
        real = LoopThread.run

        async def cancelled(self: LoopThread, doing: Any) -> Any:
            await real(self, doing)
            raise asyncio.CancelledError

        with monkeypatch.context() as patch:
            patch.setattr(LoopThread, "run", cancelled)
            with pytest.raises(asyncio.CancelledError):
                await run.shared(tmp_path / "s").__aenter__()
        await until(lambda: not (tmp_path / "s").exists())
        async with run.shared(tmp_path / "s") as handle, handle.attach() as worker:
            worker.log_metric("loss", 0.5)


def test_shared_within_shared(run: Run) -> None:
    """A pickled run is the inner handle, and the outer one again after that."""

    def pickled() -> Handle:
        found: Any = pickle.loads(pickle.dumps(run))
        handle: Handle = found.handle
        return handle

    with run.shared() as outer:
        with run.shared() as inner:
            assert pickled() == inner
        assert pickled() == outer


# ------------------------------------------------------------------ who connects


def connected(handle: Handle) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(20)
    client.connect(handle.socket)
    return client


def test_a_silent_connection(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is closed; so is one that brings half a head."""
    monkeypatch.setattr(servers, "LONGEST_HEAD", 0.1)
    with run.shared() as handle:
        for said in (b"", b"POST /x HTTP/1.1\r\nhost: "):
            with connected(handle) as client:
                with suppress(BrokenPipeError):  # on a busy machine it is closed by then
                    client.sendall(said)
                assert client.recv(1) == b""


def test_a_connection_that_has_brought_something(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a worker's, and stays."""
    monkeypatch.setattr(servers, "LONGEST_HEAD", 2.0)
    with run.shared() as handle, connected(handle) as client:
        request = f"POST /x HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {handle.token}\r\n\r\n"
        for pause in (0.0, 2.3):
            client.settimeout(pause or 20)
            if pause:
                with pytest.raises(TimeoutError):
                    client.recv(1)
                client.settimeout(20)
            client.sendall(request.encode())
            assert client.recv(65536).startswith(b"HTTP/1.1 404 ")


def test_half_a_body(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest is not waited for without end."""
    monkeypatch.setattr(servers, "LONGEST_BODY", 0.1)
    with run.shared() as handle, connected(handle) as client:
        head = f"authorization: Bearer {handle.token}\r\ncontent-length: 100\r\n\r\n"
        client.sendall(f"POST /x HTTP/1.1\r\nhost: x\r\n{head}half".encode())
        assert client.recv(65536).startswith(b"HTTP/1.1 408 ")


def test_a_large_body_without_the_token(run: Run) -> None:
    """It is not kept, the answer arrives all the same, and it is the last by that connection."""
    body = bytes(4_000_000)
    head = f"authorization: Bearer guess\r\ncontent-length: {len(body)}\r\n\r\n"
    with run.shared() as handle, connected(handle) as client:
        client.sendall(f"POST /x HTTP/1.1\r\nhost: x\r\n{head}".encode() + body)
        assert client.recv(65536).startswith(b"HTTP/1.1 401 ")
        assert client.recv(1) == b""


def test_garbage(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """A port scan is refused, and neither an error nor its bytes are in the log."""
    caplog.set_level(logging.DEBUG)
    garbage = (b"\x16\x03\x01secret\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"secret" * 2_000)
    with run.shared() as handle:
        for said in garbage:
            with connected(handle) as client:
                client.sendall(said)
                assert client.recv(65536).startswith(b"HTTP/1.0 400 ")
        with handle.attach() as worker:
            worker.log_metric("loss", 0.5)
    assert max(record.levelno for record in caplog.records) <= logging.INFO
    assert "secret" not in caplog.text
