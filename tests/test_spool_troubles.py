"""Spools that cannot be read, closed or shown in full, and folders that are no place for them."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console
from spools import FAKE, LIMIT, chunk, metrics, orphan

from adp_async import CustomSigner, SessionToken
from adp_async._io import spool_file
from adp_async._io.recovery import Recovery, open_orphan, open_orphans
from adp_async._io.spool import Spool
from adp_async._io.spool_file import SpoolBusy, SpoolError, check_folder, find_spools, has_room
from adp_async._io.spool_report import Contents
from adp_async._sansio.run_start import RunEnd, RunStart
from adp_async.cli import checks, spools
from adp_async.settings import Settings
from adp_async.testing import PLATFORM_ID, FakeSession

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DOWN = 503
LOG_BATCH = "log_experiment_run_batch"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def fail(*_: object, **__: object) -> Any:
    raise SpoolError("the disk answers with an error")


# Folders ------------------------------------------------------------------------------------------


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    """It is named, with the system's reason; one that is not there has no spools."""
    (tmp_path / "file").touch()
    with pytest.raises(SpoolError, match=r"file cannot be read: Not a directory"):
        find_spools(tmp_path / "file")
    assert find_spools(tmp_path / "nowhere") == []


def test_users_without_numbers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they have none, as on Windows, nothing says whose a folder is: it is used."""
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(SpoolError, match="others can write"):
        check_folder(folder, to_create=True)
    monkeypatch.delattr(os, "geteuid")
    check_folder(folder, to_create=True)


def test_disks_that_do_not_say_how_large_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is held back for their sake: writing will report what is wrong."""
    (tmp_path / "x-wal").touch()
    full = SimpleNamespace(f_blocks=100, f_bavail=0, f_bfree=0, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    assert not has_room(tmp_path / "x", 10)
    full.f_blocks = 0
    assert has_room(tmp_path / "x", 10)
    monkeypatch.delattr(os, "statvfs")
    assert has_room(tmp_path / "x", 10)


def test_one_folder_of_several_that_cannot_be_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are searched all the same; where nothing is found the first problem is told."""
    from adp_async._io import spool_folder

    (tmp_path / "file").touch()
    good = tmp_path / "good"
    path = orphan(good, chunk(metrics(3)))
    settings = Settings.resolve(
        {"platform_id": PLATFORM_ID, "workspace": FAKE.workspace, "endpoint": FAKE.endpoint}, {}
    )
    settings = settings.complete(None)
    where = spool_folder.SpoolFolder(settings)
    where._named = True  # type: ignore[assignment]
    monkeypatch.setattr(where, "_places", lambda: [tmp_path / "file", good])
    monkeypatch.setattr(where, "_identity", lambda: FAKE)
    found = where.finder()(set(), 4)
    assert [each.spool.path for each in found.orphans] == [path]
    with pytest.raises(SpoolError, match="Not a directory"):
        where.finder()({path}, 4)
    found.orphans[0].spool.release()


# Sessions -----------------------------------------------------------------------------------------


async def test_a_spool_of_a_session_that_is_cancelled_while_it_opens(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """That it cannot even be closed is a WARNING, and the cancellation comes out."""
    create, begun, go_on = Spool.create, threading.Event(), threading.Event()
    made: list[Spool] = []

    def slow(*arguments: Any, **knobs: Any) -> Spool:
        made.append(create(*arguments, **knobs))
        begun.set()
        go_on.wait(30)
        return made[0]

    def fail_to_close(spool: Spool) -> None:
        spool.release()
        fail()

    monkeypatch.setattr(Spool, "create", slow)
    monkeypatch.setattr(Spool, "close", fail_to_close)
    session = FakeSession(spool=folder)
    opening = asyncio.create_task(session.open())
    assert await asyncio.to_thread(begun.wait, 20)
    opening.cancel()
    asyncio.get_running_loop().call_later(0.05, go_on.set)
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert f"{made[0].path} could not be closed: the disk answers" in caplog.text


async def test_an_opening_that_fails_twice(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first reason is raised; that what was opened cannot be closed is a WARNING."""
    release = Spool.release
    session = FakeSession(spool=folder)

    def refuse(*_: object) -> Any:
        raise ZeroDivisionError

    def fail_to_close(spool: Spool, *_: object) -> None:
        release(spool)
        fail()

    monkeypatch.setattr(Spool, "close", fail_to_close)
    monkeypatch.setattr(session._engine, "_open_delivery", refuse)
    with pytest.raises(ZeroDivisionError):
        await session.open()
    assert "what was opened could not be closed: the disk answers" in caplog.text


async def test_opening_again_is_nothing(folder: Path) -> None:
    """An open session stays as it is."""
    async with FakeSession(spool=folder) as session:
        thread = session._engine.thread
        assert await session.open() is session
        assert session._engine.thread is thread


# What is left behind ------------------------------------------------------------------------------


def test_a_full_disk_with_records_on_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It cannot be written who delivers them now: they are delivered, under the system's lock."""
    path = orphan(folder, chunk(metrics(3)))
    monkeypatch.setattr(Spool, "take", fail)
    with caplog.at_level(logging.DEBUG, "adp_async"):
        found = open_orphan(path, identity=FAKE, limit=LIMIT)
    assert found is not None
    assert found.records == 3
    assert "the disk answers with an error" in caplog.text
    found.spool.release()


async def test_a_recovery_that_nobody_watches(folder: Path) -> None:
    """It delivers all the same, and says whether that was everything."""
    orphan(folder, chunk(metrics(3)))
    async with FakeSession(recover=False) as session:
        session.add_run("run")
        (found,) = open_orphans(folder, identity=FAKE, limit=LIMIT).orphans
        thread = session._engine.thread
        assert thread is not None
        watched = Recovery(found, session._engine._make_delivery(session.settings))
        assert await thread.run(watched.run(thread))
        assert [each.step for each in session.received("run").metrics] == [0, 1, 2]
    assert find_spools(folder) == []


async def test_whoever_waits_for_what_is_left_behind(folder: Path) -> None:
    """Until all that was found is delivered, however long the service is down."""
    orphan(folder, chunk(metrics(3)))
    session = FakeSession(spool=folder)
    session.add_run("run")
    script = session.answer(LOG_BATCH, status=DOWN)
    async with session:
        recoveries, thread = session._engine.recoveries, session._engine.thread
        assert recoveries is not None
        assert thread is not None
        waiting = asyncio.create_task(thread.run(recoveries.settled()))
        while script.given < 2:
            assert not waiting.done()
            await asyncio.sleep(0.005)
        script.left = script.given
        await asyncio.wait_for(waiting, 20)
        assert [each.step for each in session.received("run").metrics] == [0, 1, 2]


async def test_a_folder_that_cannot_be_searched_is_named(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one WARNING; what is logged is delivered all the same."""
    monkeypatch.setattr("adp_async._io.recovery.find_spools", fail)
    async with FakeSession(spool=folder) as session, session.start_run() as run:
        run.log_metric("loss", 0.5)
        await run.flush()
    warnings = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert warnings == ["the disk answers with an error"]
    assert len(session.received(run.run_id).metrics) == 1


# The command line ---------------------------------------------------------------------------------


@pytest.fixture
def in_use(folder: Path) -> Iterator[Spool]:
    spool = Spool.create(folder, FAKE, limit=LIMIT)
    spool.commit(chunk(metrics(3)), "")
    yield spool
    spool.release()


def test_a_spool_that_opens_and_cannot_be_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listing goes on to the next one: what is wrong with it is what is shown of it."""
    path = orphan(folder, chunk(metrics(3)))
    monkeypatch.setattr(Spool, "contents", fail)
    assert spools.look_at(path) == Contents(path, None, trouble="the disk answers with an error")
    monkeypatch.undo()
    assert spools.look_at(path).records == 3


def test_a_spool_in_use_is_not_discarded(in_use: Spool) -> None:
    """Its process delivers it."""
    with pytest.raises(SpoolBusy):
        spools._discard(in_use.path)
    assert in_use.contents().records == 3


def test_runs_without_records_are_shown(folder: Path) -> None:
    """Those that are to be created, and how others are to be ended; of many, some."""
    others = (
        RunStart("local-1", run_name="trial"),
        RunStart("r1", run_id="r1"),
        RunStart("r2", run_id="r2", end=RunEnd("FINISHED", 5)),
        *(RunStart(f"x{number}", run_id=f"x{number}") for number in range(40)),
    )
    output = io.StringIO()
    console = Console(file=output, width=200)
    spools._show(console, Contents(folder / "a.spool", FAKE, others=others))
    told = output.getvalue()
    assert "no records" in told
    assert "r1 to be ended KILLED" in told
    assert "r2 to be ended FINISHED" in told
    assert "runs more without records" in told


def test_a_system_without_a_place_for_a_spool(monkeypatch: pytest.MonkeyPatch) -> None:
    """`doctor` says what a killed process loses then."""
    monkeypatch.setattr(checks, "spool_places", fail)
    found = checks.spool(Settings.resolve({"platform_id": PLATFORM_ID, "spool": True}, {}))
    assert (found.state, found.told) == ("warning", "the disk answers with an error")
    assert "a killed process loses them" in found.fix


def test_packages_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """`doctor` leaves them out."""

    def version(name: str) -> str:
        if name == "mlflow":
            raise checks.PackageNotFoundError
        return "1.2.3"

    monkeypatch.setattr(checks, "version", version)
    assert "oci 1.2.3" in checks.versions().told
    assert "mlflow 1.2.3" not in checks.versions().told


def test_credentials_without_files(tmp_path: Path) -> None:
    """There is nothing to say of the files of a signer that has none, nor of a token's end."""
    assert list(checks.files(CustomSigner(print))) == []
    assert list(checks.expiry(CustomSigner(print))) == []


def test_a_token_that_does_not_say_when_it_ends(tmp_path: Path) -> None:
    """Then nobody can say."""
    (tmp_path / "token").write_text("not.a.token")
    (tmp_path / "config").write_text(f"[DEFAULT]\nsecurity_token_file={tmp_path / 'token'}\n")
    assert list(checks.expiry(SessionToken(tmp_path / "config"))) == []
    assert spool_file.user_id() == os.geteuid()
