"""Artifacts whose session ends, whose file fails or whose volume is odd, as callers see it."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from attrs import define

from adp_async import AdpError, Closed, RetryPolicy, UploadError, blocking
from adp_async._io.lifetime import Why
from adp_async._io.streams import ContentStream, FileContent
from adp_async._io.volumes import FileUrl
from adp_async._io.worker import Worker
from adp_async.artifacts import ArtifactFolder
from adp_async.errors import Forbidden, NotFound
from adp_async.local import Fault
from adp_async.testing import FakeBlockingSession, FakeSession

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adp_async import Run
    from adp_async.local import LocalPlatform

QUICK = RetryPolicy(first_backoff=0.01, max_backoff=0.02)


async def task_on(run: Run, doing: Any) -> Any:
    """Do something in the session's delivery thread."""
    thread = run._session._engine.thread  # type: ignore[attr-defined]
    return await thread.run(doing)


# How a session ends -------------------------------------------------------------------------------


async def test_a_session_that_closes_while_an_artifact_is_handed_in() -> None:
    """The caller hears of it at once, and nothing counts as on its way."""
    async with FakeSession() as session:
        run = await session.start_run()
        engine, uploader = session._engine, run._uploader
        thread = engine.thread
        assert thread is not None
        with pytest.MonkeyPatch.context() as patch:

            def gone(*_: object) -> bool:
                engine.lifetime.close(Why.CLOSED)
                return False

            patch.setattr(thread, "call_soon", gone)
            with pytest.raises(Closed, match="it is closed"):
                run.log_text("text", "notes.txt")
        assert uploader.of(None) == []
        assert uploader._memory == 0
        engine.lifetime.open()
        with pytest.raises(UploadError, match=r"'notes\.txt'"):
            await run.finish()


async def test_an_artifact_that_comes_while_the_session_closes() -> None:
    """It is told to be too late, by its handle."""
    async with FakeSession() as session:
        run = await session.start_run()
        uploader = run._uploader
        uploader._is_closed = True
        with pytest.raises(UploadError, match="closed before that"):
            await run.log_text("text", "notes.txt")
        uploader._is_closed = False
        uploader._failed.clear()


async def test_a_session_that_ends_while_object_storage_is_looked_for() -> None:
    """Where it is may take a while to find out, and closing does not wait longer for that."""
    session = await FakeSession(close_timeout=0.3).open()
    run = await session.start_run()

    go_on = threading.Event()

    def slow() -> str:
        go_on.wait(30.0)
        return "http://localhost"

    run._uploader.find_endpoint = slow
    upload = run.log_text("text", "notes.txt")
    began = time.monotonic()
    with pytest.raises(UploadError, match=r"'notes\.txt'.*session is closed"):
        await session.close()
    assert time.monotonic() - began < 15.0
    go_on.set()
    with pytest.raises(UploadError, match="closed before that"):
        await upload


async def test_an_upload_that_ends_after_it_was_given_up() -> None:
    """Its end was told: what it comes to in the end changes nothing, whatever it is."""
    async with FakeSession() as session:
        run = await session.start_run()
        uploader = run._uploader
        stop = asyncio.Event()

        async def stubborn(_: str) -> str:
            while not stop.is_set():
                try:
                    await stop.wait()
                except asyncio.CancelledError:
                    continue
            return run.run_id

        known, uploader.created = uploader.created, stubborn
        upload = run.log_text("text", "notes.txt")
        await task_on(run, asyncio.sleep(0))
        await task_on(run, uploader._give_up(0.02))
        assert upload.done
        thread: Any = session._engine.thread
        thread.call_soon(stop.set)
        uploader.created = known
        await task_on(run, asyncio.sleep(0.02))
        with pytest.raises(UploadError, match="closed before that"):
            await upload
        await run.log_text("text", "other.txt")


# Files --------------------------------------------------------------------------------------------


async def test_a_file_that_becomes_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The handle names it, and says why."""
    (tmp_path / "model.bin").write_bytes(b"x")

    def refuse(path: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied")

    async with FakeSession() as session:
        run = await session.start_run()
        monkeypatch.setattr(Path, "open", refuse)
        with pytest.raises(UploadError, match=r"model\.bin.* cannot be read: Permission denied"):
            await run.log_artifact(tmp_path / "model.bin")
        monkeypatch.undo()
        with pytest.raises(UploadError):
            await run.finish()


class Broken(io.BytesIO):
    """A file on a disk that has a bad block."""

    def read(self, *_: object) -> bytes:
        raise OSError(5, "Input/output error")


@define
class Content:
    """What is handed in, opened as *file*."""

    file: Any

    def measure(self) -> int:
        return 10

    def open(self) -> Any:
        return self.file


async def test_a_disk_that_fails_while_it_is_read() -> None:
    """The reason is kept: what sends the stream tells it, and not that the line broke."""
    worker = Worker("test")
    stream = ContentStream(Content(Broken()), worker, 10)
    with pytest.raises(AdpError, match="the file cannot be read: Input/output error"):
        _ = [chunk async for chunk in stream.chunks()]
    assert stream.failure is not None
    worker.stop()


def test_a_file_is_not_read_after_it_was_closed(tmp_path: Path) -> None:
    """A reading that was cancelled may still be under way in its thread: it opens nothing anew."""
    from adp_async._io.streams import _Reading

    (tmp_path / "x").write_bytes(b"content")
    reading = _Reading(FileContent(tmp_path / "x"), 0)
    reading.close()
    with pytest.raises(AdpError, match="became shorter"):
        reading.read(10)


# Volumes ------------------------------------------------------------------------------------------


@pytest.fixture
def platform_in_thread(api_key: Any, tmp_path: Path) -> Iterator[LocalPlatform]:
    from adp_async.local import LocalPlatform

    with LocalPlatform(tmp_path / "platform", mlflow=False, key=api_key) as platform:
        yield platform


@pytest.fixture
def volume(platform_in_thread: LocalPlatform) -> Iterator[ArtifactFolder]:
    platform = platform_in_thread
    root = platform.artifacts.add_volume("c.s.v")
    auth = {"config_file": platform.config_file, "profile": platform.profile}
    import adp_async

    with blocking.Session(
        platform.platform_id,
        platform.workspace,
        endpoint=platform.endpoint,
        auth=adp_async.ApiKey(**auth),
        retry=QUICK,
        spool=False,
    ) as session:
        yield ArtifactFolder(session, f"{root}/models")


def test_a_pre_authenticated_url_is_not_shown() -> None:
    """Whoever has it has the file."""
    assert repr(FileUrl(par_url="https://example.com/p/secret")) == "<FileUrl>"


def test_a_url_that_is_refused_again(
    volume: ArtifactFolder, platform_in_thread: LocalPlatform
) -> None:
    """One more is asked for, and no more than that."""
    gateway = platform_in_thread.gateway
    gateway.inject(Fault.reply(403, "Forbidden"), times=None, operation="put_object")
    with pytest.raises(UploadError, match="403") as caught:
        volume.log_text("x", "x.txt").wait(10)
    assert isinstance(caught.value.__cause__, Forbidden)
    assert gateway.by_operation["upload_file_with_par"] == 2


def test_a_folder_of_a_volume_that_is_not_there(
    volume: ArtifactFolder, platform_in_thread: LocalPlatform
) -> None:
    """A run without artifacts has none, however the platform says so."""
    gone = Fault.reply(404, "NotAuthorizedOrNotFound")
    platform_in_thread.gateway.inject(gone, times=None, operation="list_files")
    assert volume.entries() == []


def test_a_listing_that_has_the_folder_itself(
    volume: ArtifactFolder, platform_in_thread: LocalPlatform
) -> None:
    """It is none of its entries."""
    items = [{"path": "/models", "type": "FOLDER"}, {"path": "/models/a.txt", "type": "FILE"}]
    reply = Fault.reply(200, body=msgspec.json.encode({"items": items}))
    platform_in_thread.gateway.inject(reply, operation="list_files")
    assert [(each.name, each.is_folder) for each in volume.entries()] == [("a.txt", False)]


def test_a_volume_that_cannot_be_looked_up(
    volume: ArtifactFolder, platform_in_thread: LocalPlatform, tmp_path: Path
) -> None:
    """What is said is that the file is not there, not that looking for its volume failed."""
    denied = Fault.reply(403, "NotAuthorized", "listing is not allowed")
    platform_in_thread.gateway.inject(denied, times=None, operation="list_volumes")
    with pytest.raises(NotFound, match="download_file_with_par"):
        volume.download("nowhere", tmp_path / "out")


def test_a_file_that_a_renamed_volume_does_not_have(
    volume: ArtifactFolder, platform_in_thread: LocalPlatform, tmp_path: Path
) -> None:
    """Its key is known by then: it is not looked for a second time."""
    storage = platform_in_thread.gateway.storage
    assert storage is not None
    storage.aliases["c.s.renamed"] = "c.s.v"
    renamed = ArtifactFolder(volume._session, "/Volumes/c/s/renamed/models")
    renamed.log_text("x", "x.txt").wait(10)
    for _ in range(2):
        with pytest.raises(NotFound):
            renamed.download("nowhere", tmp_path / "out")
    assert platform_in_thread.gateway.by_operation["list_volumes"] == 1


# What a notebook shows ----------------------------------------------------------------------------


def test_a_folder_of_uploads_shows_itself(tmp_path: Path) -> None:
    """How many there are, and how many are done."""
    for name in "ab":
        (tmp_path / name).write_text(name)
    with FakeBlockingSession() as session:
        run = session.start_run()
        uploads = run.log_artifacts(tmp_path)
        uploads.wait(10)
        assert repr(uploads) == "<Uploads 2 artifacts | 2 done>"
        assert repr(ArtifactFolder(session, "/Volumes/c/s/v")) == (
            "<ArtifactFolder /Volumes/c/s/v>"
        )
