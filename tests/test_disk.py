"""Disks that are full, closed or broken, and an outage that takes a million points.

Each trouble ends in one clear warning, logging goes on, and nothing that was journaled is lost.
``pytest tests/test_disk.py --points 1000000 -s`` is the long outage.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import sqlite3
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from children import start
from spools import LIMIT, chunk, metrics, orphan

from adp_async._io.spool import Spool
from adp_async._io.spool_file import Identity, SpoolError, SpoolLimit, find_spools, has_room
from adp_async._sansio.journal import Changes, Chunk, Sealed, Settled
from adp_async._sansio.records import RunTag
from adp_async.errors import ConnectionLost
from adp_async.testing import FakeSession

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from adp_async.local import LocalPlatform

pytestmark = pytest.mark.usefixtures("patient_end")

LOG_BATCH = "log_experiment_run_batch"
PAGE = 4096
WAL_HEADER, FRAME = 32, 24 + PAGE
#: What a session over a disk that fails may say about its service, and of what it recovers.
OTHER_WARNINGS = ("batches are held back", "delivered again", "left behind by", "works again")


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - a thread and a disk have no event
            await asyncio.sleep(0.002)


def session_in(folder: Path, *, down: bool = False, **knobs: Any) -> FakeSession:
    session = FakeSession(**{"spool": folder, "spool_interval": 0.01, **knobs})
    session.add_run("run")
    if down:
        session.answer(LOG_BATCH, ConnectionLost("the line is cut"))
    return session


def steps(session: FakeSession) -> list[int]:
    return sorted(metric.step for metric in session.received("run").metrics)


async def on_disk(session: FakeSession) -> None:
    """Wait until everything that was logged so far is in the spool."""
    keeper, thread = session._delivery.keeper, session._engine.thread
    assert keeper is not None
    assert thread is not None

    async def committed() -> None:
        session._delivery.state.pull(time.monotonic())
        assert await keeper.journaled() is None

    await thread.run(committed())


def troubles(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The warnings that are about the disk."""
    messages = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    return [each for each in messages if not any(other in each for other in OTHER_WARNINGS)]


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of half a megabyte, or as many KB as the test says."""
    disk = tmp_path / "disk"
    disk.mkdir()
    size = f"size={getattr(request, 'param', 512)}k"
    command = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield disk
    run_command("umount", "-l", str(disk))


def run_command(*command: str) -> None:
    subprocess.run(command, check=True)


# A full disk


async def test_a_full_disk(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Logging goes on in memory, what is on disk stays there, and all of it is delivered.

    The spool leaves itself room for the tokens of what is on disk; else nothing would ever leave.
    """
    folder = small_disk / "spool"
    async with session_in(folder, down=True) as session:
        run = session.attach_run("run")
        for step in range(50_000):
            if step == 1000:
                await on_disk(session)
            run.log_metric("loss", 0.5, step)
        await until(lambda: troubles(caplog))
        assert run.stats().accepted == 50_000

        copy = copied(folder, small_disk.parent / "copy")
        left = Spool.open(copy, limit=LIMIT)
        journaled = [record.step for _, record in left.waiting()]  # type: ignore[union-attr]
        left.release()
        assert journaled == list(range(len(journaled)))
        assert 1000 <= len(journaled) < 50_000

        session.service._scripts.clear()
        async with asyncio.timeout(120):
            await run.flush()
        assert steps(session) == list(range(50_000))

    # (On a slow machine it is tried once more meanwhile, and full once more.)
    for trouble in troubles(caplog):
        assert "disk is full" in trouble
        assert "only in memory" in trouble
        assert "held back" not in trouble
    assert find_spools(folder) == []


@pytest.mark.parametrize("small_disk", [2000, 9000], indirect=True)
@pytest.mark.parametrize("text", [100, 3000])
@pytest.mark.parametrize("count", [5, 100, 1000])
def test_what_fills_its_disk_can_leave_it(small_disk: Path, count: int, text: int) -> None:
    """Room is left for the token and the end of each batch, however much comes at a time."""
    identity = Identity("https://example.com", "platform", "default")
    spool = Spool.create(small_disk / "spool", identity, limit=LIMIT)
    written = 0
    with suppress(SpoolLimit):
        while True:
            records = [RunTag(f"{written + n}", "x" * text) for n in range(count)]
            spool.commit(Changes(chunks=[Chunk("run", written, records)]))
            written += count
    for first in range(0, written, 50):
        last = min(first + 50, written)
        spool.commit(Changes(sealed=[Sealed("run", ((first, last),), f"token-{first}")]))
        spool.commit(Changes(settled=[Settled("run", last)]))
    if written:
        records = [RunTag(f"{n}", "x" * text) for n in range(count)]
        spool.commit(Changes(chunks=[Chunk("run", written, records)]))
        assert spool.contents().runs[0].records == count
    assert written or count * text > 300_000
    spool.release()


def test_a_disk_that_does_not_say_how_large_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is written to, until it says that it is full."""
    unknown = os.statvfs_result([4096, 4096, 0, 0, 0, 0, 0, 0, 0, 255])
    monkeypatch.setattr(os, "statvfs", lambda path: unknown)
    assert has_room(tmp_path, 1000)


def copied(folder: Path, copy: Path) -> Path:
    """The one spool of *folder*, as a killed process would leave it."""
    shutil.copytree(folder, copy)
    (path,) = find_spools(copy)
    return path


async def test_a_disk_that_is_full_from_the_start(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even an empty spool can be made: said once, and nothing half-made is left."""
    (small_disk / "filler").write_bytes(b"x" * 508 * 1024)
    async with session_in(small_disk) as session:
        session.attach_run("run").log_metric("loss", 0.5)

    assert steps(session) == [0]
    assert len(troubles(caplog)) == 1
    assert os.listdir(small_disk) == ["filler"]


async def test_a_spool_that_may_not_grow(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Beyond ``spool_limit`` records wait in memory alone, as without a spool."""
    folder = tmp_path / "spool"
    async with session_in(folder, down=True, spool_limit=200_000) as session:
        run = session.attach_run("run")
        for step in range(30_000):
            run.log_metric("loss", 0.5, step)
            if step % 1000 == 0:
                await asyncio.sleep(0.001)
        await until(lambda: troubles(caplog))
        session.service._scripts.clear()
        async with asyncio.timeout(120):
            await run.flush()

    assert steps(session) == list(range(30_000))
    # On a slow machine it is tried once more meanwhile, and full once more.
    assert all("spool_limit" in trouble for trouble in troubles(caplog))


async def test_a_full_disk_while_recovering(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What can't be noted as delivered waits until it can; no record is lost for it."""
    orphan(small_disk, chunk(metrics(3000)))
    (small_disk / "filler").write_bytes(b"x" * 300 * 1024)
    async with session_in(small_disk, close_timeout=0.1) as session:
        with (small_disk / "rest").open("wb", buffering=0) as rest:
            fill(rest)
        await asyncio.sleep(0.1)
    (small_disk / "filler").unlink()
    (small_disk / "rest").unlink()
    seen = set(steps(session))
    async with session_in(small_disk) as session:
        await until(lambda: len(find_spools(small_disk)) == 1)

    assert seen | set(steps(session)) == set(range(3000))


def fill(file: Any) -> None:
    try:
        while True:
            file.write(b"x" * 1024)
    except OSError:
        return


# A folder that can't be used


async def test_a_read_only_folder(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One warning for the spool that can't be made; orphans there are left alone."""
    path = orphan(small_disk, chunk(metrics(3)))
    before = path.read_bytes()
    run_command("mount", "-o", "remount,ro", str(small_disk))
    async with session_in(small_disk) as session:
        session.attach_run("run").log_metric("loss", 0.5)

    assert steps(session) == [0]
    (trouble,) = troubles(caplog)
    assert "Read-only" in trouble
    assert path.read_bytes() == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
async def test_a_folder_of_somebody_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No permission: the same."""
    os.chmod(tmp_path, 0o500)
    async with session_in(tmp_path / "spool") as session:
        session.attach_run("run").log_metric("loss", 0.5)

    assert steps(session) == [0]
    assert len(troubles(caplog)) == 1


async def test_a_folder_that_is_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One warning that names it."""
    (tmp_path / "spool").write_text("not a folder")
    async with session_in(tmp_path / "spool") as session:
        session.attach_run("run").log_metric("loss", 0.5)

    assert steps(session) == [0]
    (trouble,) = troubles(caplog)
    assert str(tmp_path / "spool") in trouble


async def test_a_folder_that_is_missing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is made, with all above it, and no word is lost about it."""
    folder = tmp_path / "one" / "two" / "spool"
    async with session_in(folder) as session:
        session.attach_run("run").log_metric("loss", 0.5)
        assert len(find_spools(folder)) == 1

    assert troubles(caplog) == []


async def test_a_folder_that_is_removed_meanwhile(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody removes the file while a session logs: it warns, goes on, and ends well."""
    folder = tmp_path / "spool"
    async with session_in(folder, down=True) as session:
        run = session.attach_run("run")
        run.log_metric("loss", 0.5, 1)
        await on_disk(session)
        shutil.rmtree(folder)
        run.log_metric("loss", 0.5, 2)
        await until(lambda: troubles(caplog))
        session.service._scripts.clear()
        await run.flush()

    assert steps(session) == [1, 2]
    (trouble,) = troubles(caplog)
    assert "was removed" in trouble


# A file that is damaged


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """File and WAL of a process that was killed: half is in the one, half in the other."""
    folder = tmp_path_factory.mktemp("killed")
    from spools import FAKE

    spool = Spool.create(folder, FAKE, limit=LIMIT)
    for first in range(0, 3000, 1000):
        spool.commit(chunk(metrics(1000, first), first))
    spool._database.connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
    for first in range(3000, 6000, 1000):
        spool.commit(chunk(metrics(1000, first), first))
    wal = spool.path.with_name(f"{spool.path.name}-wal")
    content = spool.path.read_bytes(), wal.read_bytes()
    spool.release()
    return content


def cuts(killed: tuple[bytes, bytes]) -> Iterator[tuple[str, bytes, bytes]]:
    whole, wal = killed
    for size in range(0, len(whole) + 1, PAGE):
        yield f"file cut at {size}", whole[:size], wal
        yield f"file cut at {size}, no WAL", whole[:size], b""
    for size in (0, 16, *range(WAL_HEADER, len(wal) + 1, FRAME), len(wal) - 100):
        yield f"WAL cut at {size}", whole, wal[:size]


def pages(path: Path) -> set[tuple[int, bytes]]:
    """Every page as it is by now: that of the WAL where it has one, else that of the file.

    SQLite may move a page from the one to the other, but none must go.
    """
    whole, wal = path.read_bytes(), b""
    beside = path.with_name(f"{path.name}-wal")
    if beside.exists():
        wal = beside.read_bytes()
    found = {at // PAGE + 1: whole[at : at + PAGE] for at in range(0, len(whole), PAGE)}
    for at in range(WAL_HEADER, len(wal) - FRAME + 1, FRAME):
        number = int.from_bytes(wal[at : at + 4], "big")
        found[number] = wal[at + 24 : at + FRAME]
    return set(found.items())


async def test_a_file_that_is_cut_anywhere(
    killed: tuple[bytes, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At every page of file and WAL: what can be read is delivered, or one warning says why not.

    In that case the file is left as it is: whoever knows how to may still get something out of it.
    """
    outcomes = {}
    for number, (what, whole, wal) in enumerate(cuts(killed)):
        folder = tmp_path / f"cut-{number}"
        folder.mkdir()
        path = folder / "20260101-1-a.spool"
        path.write_bytes(whole)
        (folder / f"{path.name}-wal").write_bytes(wal)
        os.utime(path, (0, 0))
        before = pages(path)
        caplog.clear()
        async with session_in(folder, close_timeout=1.0) as session:
            session.attach_run("run").set_tag("mine", "arrives")
            await session.logger.flush()
            await until(lambda: session._engine.recoveries.is_done)
        outcomes[what] = (len(steps(session)), len(troubles(caplog)), path.exists())
        assert session.received("run").tags[-1] == ("mine", "arrives")
        if troubles(caplog) and not steps(session):
            assert pages(path) >= before, what
        else:  # all of it, or all but rows that can't be read and are put aside
            assert path.exists() == bool(troubles(caplog)), what

    counts = {what: outcome for what, outcome in outcomes.items() if outcome[1] > 1}
    assert counts == {}, "one warning at most"
    silent = [each for each, (found, said, left) in outcomes.items() if not found + said and left]
    assert silent == []
    whole, wal = killed
    assert outcomes[f"file cut at {len(whole)}"] == (6000, 0, False)
    assert outcomes["WAL cut at 0"][0] == 3000
    assert outcomes[f"WAL cut at {len(wal) - 100}"][0] == 5000


async def test_garbage_in_the_middle(
    killed: tuple[bytes, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Pages that are overwritten: the process goes on, whatever they were."""
    whole, _ = killed
    for page in range(1, len(whole) // PAGE):
        folder = tmp_path / f"garbage-{page}"
        folder.mkdir()
        path = folder / "20260101-1-a.spool"
        path.write_bytes(whole[: page * PAGE] + b"\xa5" * PAGE + whole[(page + 1) * PAGE :])
        os.utime(path, (0, 0))
        caplog.clear()
        async with session_in(folder, close_timeout=1.0) as session:
            session.attach_run("run").set_tag("mine", "arrives")
            await session.logger.flush()
            await until(lambda: session._engine.recoveries.is_done)
        assert len(troubles(caplog)) <= 1
        assert path.exists() or steps(session) == list(range(3000))


async def test_a_newer_spool(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Left for the version that can read it."""
    path = orphan(tmp_path, chunk(metrics(3)))
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = path.read_bytes()
    async with session_in(tmp_path) as session:
        session.attach_run("run").log_metric("loss", 0.5)
        await until(lambda: session._engine.recoveries.is_done)  # type: ignore[union-attr]

    (trouble,) = troubles(caplog)
    assert "newer version" in trouble
    assert path.read_bytes() == before
    assert steps(session) == [0]


# An outage

OUTAGE = """
    import asyncio, json, resource, sys, time
    import adp_async, cryptography.hazmat.primitives.serialization
    from adp_async import RetryPolicy, Session, blocking
    from adp_async._io import intake

    intake.LONGEST_PAUSE = 10.0  # of a busy machine's disk
    run_id, how, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    knobs = dict(retry=RetryPolicy(first_backoff=0.05, max_backoff=0.2), buffer_limit=4 * 2**20)

    def rss():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize() / 2**20

    def peak():
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024

    def say(what, begin, run):
        print(json.dumps({"what": what, "seconds": round(time.monotonic() - begin, 2),
                          "rss": round(rss()), "peak": round(peak()),
                          "spooled": run.stats().spooled, "accepted": run.stats().accepted}),
              flush=True)

    def log(run):
        log_metric = run.log_metric
        for step in range(count):
            log_metric("loss", step / 2, step)

    async def in_the_loop():
        async with Session(**knobs) as session:
            run = session.attach_run(run_id)
            begin = time.monotonic()
            say("begin", begin, run)
            log(run)
            say("logged", begin, run)
            await run.flush()
            say("delivered", begin, run)

    def in_a_thread():
        with blocking.Session(**knobs) as session:
            run = session.attach_run(run_id)
            begin = time.monotonic()
            say("begin", begin, run)
            log(run)
            say("logged", begin, run)
            run.flush()
            say("delivered", begin, run)

    in_a_thread() if how == "thread" else asyncio.run(in_the_loop())
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux for its memory")
@pytest.mark.parametrize("how", ["thread", "loop"])
async def test_an_outage_with_little_memory(
    bare_platform: LocalPlatform, tmp_path: Path, pytestconfig: pytest.Config, how: str
) -> None:
    """Points of a whole outage: memory is bounded, the rest is on disk, all of it arrives once."""
    count = pytestconfig.getoption("points")
    gateway = bare_platform.gateway
    run_id = gateway.add_run()
    await gateway.down()
    child = await start(bare_platform, tmp_path, OUTAGE, run_id, how, count)
    said: dict[str, Any] = {}
    assert child.process.stdout is not None
    async with asyncio.timeout(120 + count / 1000):
        while line := await child.process.stdout.readline():
            fact = json.loads(line)
            said[fact["what"]] = fact
            if fact["what"] == "logged":
                on_disk = sum(
                    path.stat().st_size for path in bare_platform.directory.rglob("*spool*")
                )  # type: ignore[union-attr]
                await gateway.up()
        await child.process.wait()
    print(f"\n{how}: {count} points, {on_disk / 2**20:.0f} MiB on disk", *said.values(), sep="\n  ")

    arrived = [metric.step for metric in gateway.received(run_id).metrics]
    assert len(arrived) == len(set(arrived)) == count
    assert said["logged"]["spooled"] > count - 30_000
    assert said["logged"]["peak"] - said["begin"]["rss"] < 40, "MiB; 4 is what records may take"
    assert said["delivered"]["peak"] - said["begin"]["rss"] < 60


def test_a_spool_that_cannot_be_read_is_no_reason_to_stop(tmp_path: Path) -> None:
    """A folder in the place of a spool, for instance."""
    (tmp_path / "a.spool").mkdir()
    begin = time.monotonic()
    with pytest.raises(SpoolError):
        Spool.open(tmp_path / "a.spool", limit=LIMIT)

    assert time.monotonic() - begin < 10.0
