"""Which spools are recovered: this user's, intact, with no live owner."""

from __future__ import annotations

import asyncio
import logging
import os
import pwd
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from attrs import evolve
from children import ROOT, not_outlived_by
from spools import FAKE, LIMIT, chunk, metrics, old_orphan, orphan, sealed, settled

from adp_async._io import owner as owner_module
from adp_async._io import recovery, spool_file
from adp_async._io.owner import Owner, started_at, why_in_use
from adp_async._io.recovery import open_orphan, open_orphans
from adp_async._io.spool import Spool
from adp_async._io.spool_file import (
    SpoolBusy,
    SpoolElsewhere,
    SpoolError,
    SpoolUntrusted,
    default_spool_folder,
    find_spools,
)
from adp_async._knobs import absolute_folder
from adp_async._sansio.packing import pack
from adp_async.auth import ApiKey
from adp_async.errors import ConfigurationError
from adp_async.settings import Settings
from adp_async.testing import FakeSession

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from adp_async._io.keeper import SpoolKeeper

SOMEBODY_ELSE = 1234
needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - a thread and a disk have no event
            await asyncio.sleep(0.002)


def session_in(folder: Path, **knobs: Any) -> FakeSession:
    session = FakeSession(**{"spool": folder, "spool_interval": 0.02, **knobs})
    session.add_run("run")
    return session


def steps(session: FakeSession, run_id: str = "run") -> list[int]:
    return [metric.step for metric in session.received(run_id).metrics]


def warnings(caplog: pytest.LogCaptureFixture, *words: str) -> list[str]:
    said = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    return [each for each in said if all(word in each for word in words)]


def keeper(session: FakeSession) -> SpoolKeeper:
    assert session._delivery.keeper is not None
    return session._delivery.keeper


# Whose it is


@needs_root
async def test_another_users_spool_is_left_alone(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Said once; this user's own beside it is delivered, the other not even touched."""
    theirs = orphan(folder, chunk(metrics(3)))
    os.chown(theirs, SOMEBODY_ELSE, SOMEBODY_ELSE)
    before = theirs.read_bytes()
    await asyncio.sleep(0.002)
    orphan(folder, chunk(metrics(3, 10)))
    async with session_in(folder) as session:
        await until(lambda: len(steps(session)) >= 3)
        await until(lambda: len(find_spools(folder)) == 2)

    assert steps(session) == [10, 11, 12]
    assert theirs.read_bytes() == before
    assert len(warnings(caplog, str(theirs), "belongs to another user (uid 1234)")) == 1


@needs_root
@pytest.mark.parametrize("suffix", ["-wal", "-journal", "-shm"])
def test_what_lies_beside_a_spool_is_looked_at_too(folder: Path, suffix: str) -> None:
    """SQLite would play another user's WAL into the file."""
    path = orphan(folder, chunk(metrics(3)))
    beside = path.with_name(path.name + suffix)
    beside.touch()
    os.chown(beside, SOMEBODY_ELSE, SOMEBODY_ELSE)

    with pytest.raises(SpoolUntrusted, match="another user"):
        Spool.open(path, limit=LIMIT)


@needs_root
async def test_a_folder_of_another_user_is_not_used(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither read from nor written into; records are only in memory, with a warning."""
    paths = [orphan(folder, chunk(metrics(1, number))) for number in range(3)]
    os.chown(folder, SOMEBODY_ELSE, SOMEBODY_ELSE)
    async with session_in(folder) as session:
        run = session.attach_run("run")
        run.log_metric("loss", 0.5, 77)
        await run.flush()

    assert steps(session) == [77]
    assert find_spools(folder) == sorted(paths)
    assert len(warnings(caplog, "only in memory", "belongs to another user")) == 1
    with pytest.raises(SpoolUntrusted, match="another user"):
        open_orphans(folder, identity=None, limit=LIMIT)
    with pytest.raises(SpoolUntrusted, match="another user"):
        Spool.open(paths[0], limit=LIMIT)


@pytest.mark.parametrize(
    ("mode", "is_used"),
    [(0o700, True), (0o755, True), (0o775, False), (0o757, False), (0o777, False), (0o1777, True)],
)
async def test_a_folder_that_others_can_write_to(
    folder: Path, caplog: pytest.LogCaptureFixture, mode: int, is_used: bool
) -> None:
    """No spool is made there unless files stay their owners'; the warning names the fix."""
    make_folder(folder, mode)
    async with session_in(folder) as session:
        session.attach_run("run").log_metric("loss", 0.5, 1)
        assert bool(find_spools(folder)) == is_used

    assert steps(session) == [1]
    assert len(warnings(caplog, "only in memory", "chmod go-w")) == (not is_used)


def make_folder(folder: Path, mode: int) -> None:
    folder.mkdir()
    folder.chmod(mode)  # whatever the umask is


def test_a_new_folder_inside_such_a_folder_will_do(folder: Path) -> None:
    """It is made for its owner alone, as the warning promises."""
    make_folder(folder, 0o777)
    spool = Spool.create(folder / "mine", FAKE, limit=LIMIT)
    spool.commit(chunk(metrics(1)))
    spool.release()

    Spool.open(spool.path, limit=LIMIT).release()


def fifo(path: Path, target: Path) -> None:
    os.mkfifo(path)


def link(path: Path, target: Path) -> None:
    path.symlink_to(target)


def directory(path: Path, target: Path) -> None:
    path.mkdir()


def unix_socket(path: Path, target: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        where = os.getcwd()
        os.chdir(path.parent)  # the address of a socket is short
        try:
            listener.bind(path.name)
        finally:
            os.chdir(where)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (fifo, "not a regular file"),
        (directory, "not a regular file"),
        (unix_socket, "not a regular file"),
        (link, "symbolic link"),
    ],
)
async def test_what_is_no_file_is_not_opened(
    folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    make: Callable[[Path, Path], None],
    words: str,
) -> None:
    """It could hang, or lead elsewhere: said once, and params and tags wait for nothing there."""
    elsewhere = orphan(tmp_path / "elsewhere", chunk(metrics(3, 30)))
    orphan(folder, chunk(metrics(3)))
    make(folder / "0.spool", elsewhere)
    async with session_in(folder) as session:
        session.attach_run("run").set_tag("state", "new")
        async with asyncio.timeout(30):
            await session.attach_run("run").flush()

    assert steps(session) == [0, 1, 2]
    assert elsewhere.exists()
    assert len(warnings(caplog, "0.spool", words)) == 1


ENDLESS = (
    "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n) "
    "SELECT 'run' AS run_id, i AS first, i + 1 AS last, 1 AS metrics, 0 AS params, 0 AS tags, "
    "x'90' AS body, 0.0 AS accepted_at, 0 AS checksum FROM n"
)


@pytest.mark.parametrize(
    "statements",
    [
        ["DROP TABLE chunks", f"CREATE VIEW chunks AS {ENDLESS}"],
        ["DROP TABLE meta", "CREATE VIEW meta AS SELECT 'owner' AS name, 'x' AS value"],
        ["CREATE TRIGGER gone AFTER DELETE ON chunks BEGIN DELETE FROM refused; END"],
        ["CREATE TABLE more (x)"],
        ["DROP INDEX chunks_by_run"],
        ["DROP TABLE done"],
        ["ALTER TABLE refused ADD COLUMN more"],
        ["CREATE INDEX mine ON refused (lower(reason))"],
    ],
    ids=[
        "endless view",
        "meta view",
        "trigger",
        "table",
        "no index",
        "no table",
        "column",
        "index",
    ],
)
async def test_other_tables_are_somebody_elses(
    folder: Path, caplog: pytest.LogCaptureFixture, statements: list[str]
) -> None:
    """A view may run for ever and a trigger do anything: such a file is left as it is."""
    strange = orphan(folder, chunk(metrics(3, 50)))
    with closing(sqlite3.connect(strange)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()
    orphan(folder, chunk(metrics(3)))
    async with session_in(folder) as session:
        session.attach_run("run").set_tag("state", "new")
        async with asyncio.timeout(30):
            await session.attach_run("run").flush()

    assert steps(session) == [0, 1, 2]
    assert find_spools(folder) == [strange]
    assert len(warnings(caplog, str(strange), "does not have the tables of a spool")) == 1


def test_tables_that_only_the_wal_has_are_seen(folder: Path) -> None:
    """Where the file alone looks well."""
    path = orphan(folder, chunk(metrics(3)))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("CREATE TABLE more (x)")
        connection.commit()
        wal = path.with_name(f"{path.name}-wal")
        content = wal.read_bytes(), path.read_bytes()
    wal.write_bytes(content[0])
    path.write_bytes(content[1])

    with pytest.raises(SpoolUntrusted, match="tables of a spool"):
        Spool.open(path, limit=LIMIT)


# Who has it

HERE = Owner("node-1", "boot-a", 100, "5000", 7)


@pytest.mark.parametrize(
    ("owner", "silent", "lives", "words"),
    [
        # (this machine: the process tells, and how long it was silent doesn't count)
        (Owner("node-1", "boot-a", 200, "6000", 7), 1e6, "6000", "pid 200"),
        (Owner("node-1", "boot-a", 200, "6000", 7), 0.0, None, ""),
        (Owner("node-1", "boot-a", 200, "6000", 7), 0.0, "9000", ""),  # its number was given again
        (Owner("node-1", "boot-b", 200, "6000", 7), 0.0, "6000", ""),  # before a restart
        # (a system that doesn't say when)
        (Owner("node-1", "", 200, "", 7), 1e6, "", "pid 200"),
        (Owner("node-1", "", 200, "", 7), 0.0, None, ""),
        # (this process knows what it has open; a copy is nobody's)
        (HERE, 0.0, "5000", ""),
        (Owner("node-1", "boot-a", 200, "6000", 8), 0.0, "6000", ""),
        # (another container of this machine: the lock tells)
        (Owner("pod-2", "boot-a", 200, "6000", 7), 0.0, "6000", ""),
        # (another machine: silence tells)
        (Owner("node-2", "boot-c", 200, "6000", 7), 599.0, None, "'node-2'"),
        (Owner("node-2", "boot-c", 200, "6000", 7), 600.0, "6000", ""),
        (Owner("node-2", "", 100, "", 7), 599.0, None, "'node-2'"),
    ],
)
def test_who_may_have_it_still(
    monkeypatch: pytest.MonkeyPatch, owner: Owner, silent: float, lives: str | None, words: str
) -> None:
    """*lives*: what this machine says of the owner's pid."""
    monkeypatch.setattr(owner_module, "started_at", lambda pid: lives)
    reason = why_in_use(owner, here=HERE, seconds_silent=silent)

    assert words in reason
    assert bool(reason) == bool(words)


@pytest.mark.parametrize(
    ("name", "answer", "lives"),
    [
        ("darwin", None, ""),
        ("darwin", PermissionError("another user's"), ""),
        ("darwin", ProcessLookupError("nobody's"), None),
        ("win32", AssertionError("there it would end the process"), None),
    ],
)
def test_a_system_without_proc(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    answer: BaseException | None,
    lives: str | None,
) -> None:
    """macOS doesn't say when a process started, but a signal tells whether it lives."""

    def kill(pid: int, signal: int) -> None:
        assert (pid, signal) == (4711, 0)
        if answer is not None:
            raise answer

    monkeypatch.setattr(owner_module, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(owner_module, "os", SimpleNamespace(kill=kill))
    monkeypatch.setattr(owner_module, "sys", SimpleNamespace(platform=name))
    assert started_at(4711) == lives


@pytest.mark.parametrize("content", [None, b"\xff"])
def test_a_system_without_a_boot_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    """Then every boot looks like the same one."""
    place = tmp_path / "sys/kernel/random"
    place.mkdir(parents=True)
    if content is not None:
        (place / "boot_id").write_bytes(content)
    monkeypatch.setattr(owner_module, "_PROC", tmp_path)
    assert owner_module._boot.__wrapped__() == ""


def test_an_owner_comes_back_from_its_text() -> None:
    """Anything else is not an owner."""
    assert Owner.from_text(HERE.as_text()) == HERE
    for text in ("", "[]", "{}", '{"host": 1}', HERE.as_text().replace("100", '"100"'), None, 5):
        assert Owner.from_text(text) is None
    assert Owner.from_text(evolve(HERE, pid=0).as_text()) is None


def test_a_process_that_was_killed_does_not_live() -> None:
    """Also before its parent has asked how it ended."""
    command = [sys.executable, "-c", "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process, not_outlived_by(process):
        assert started_at(process.pid) == started_at(process.pid) is not None
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert started_at(process.pid) is None
    assert started_at(2**22 + 1) is None


@pytest.mark.parametrize(("age", "is_busy"), [(300.0, True), (900.0, False), (-300.0, True)])
def test_a_spool_of_another_machine(folder: Path, age: float, is_busy: bool) -> None:
    """Taken when it was not written for ten minutes; a clock that is off takes nothing sooner."""
    path = orphan(folder, chunk(metrics(3)))
    give(path, host="elsewhere", boot="another")
    os.utime(path, (time.time() - age,) * 2)
    if is_busy:
        with pytest.raises(SpoolElsewhere, match="of host 'elsewhere'"):
            Spool.open(path, limit=LIMIT)
        assert open_orphans(folder, identity=None, limit=LIMIT).orphans == ()
    else:
        Spool.open(path, limit=LIMIT).release()


def give(path: Path, **changes: Any) -> None:
    """Have *path* name another owner, as a process that was killed leaves it."""
    owner = evolve(Owner.this_process(path.stat().st_ino), **changes)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('owner', ?)", (owner.as_text(),))
        connection.commit()


def test_the_owner_is_named_while_it_has_the_file(folder: Path) -> None:
    """From the first moment; recovery names a new one; releasing removes it."""
    spool = Spool.create(folder, FAKE, limit=LIMIT)
    spool.commit(chunk(metrics(3)))
    named = [owner_in(spool.path)]
    spool.release()
    named.append(owner_in(spool.path))
    found = open_orphan(spool.path, identity=None, limit=LIMIT)
    assert found is not None
    named.append(owner_in(spool.path))
    found.spool.release()
    named.append(owner_in(spool.path))

    me = Owner.this_process(spool.path.stat().st_ino)
    assert named == [me, None, me, None]


def owner_in(path: Path) -> Owner | None:
    # (A second connection of this process must not touch the lock of the first.)
    script = (
        "import sqlite3, sys\n"
        "connection = sqlite3.connect(f'file:{sys.argv[1]}?mode=ro&immutable=1', uri=True)\n"
        "query = \"SELECT value FROM meta WHERE name = 'owner'\"\n"
        "print(*connection.execute(query).fetchone() or '')"
    )
    command = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    return Owner.from_text(done.stdout.strip())


#: A file system whose locks do not lock, and a service that is down.
WITHOUT_LOCKS = """
import asyncio, sqlite3, sys
from pathlib import Path
from adp_async._io.recovery import open_orphans
from adp_async.errors import ConnectionLost
from adp_async.testing import FakeSession

connect = sqlite3.connect
def unlocked(name, **options):
    return connect(name.replace("mode=rw", "mode=rw&vfs=unix-none"), **options)
sqlite3.connect = unlocked

async def own(folder):
    session = FakeSession(spool=folder, spool_interval=0.01, linger=0.01, recover=False)
    session.answer("log_experiment_run_batch", ConnectionLost("down"))
    async with session:
        run = session.attach_run(session.add_run("run"))
        for step in range(100):
            run.log_metric("loss", 0.5, step)
        while not session._delivery.keeper.spool.contents().records == 100:
            await asyncio.sleep(0.005)
        print("owns", flush=True)
        await asyncio.sleep(600)

def find(folder):
    orphans = open_orphans(Path(folder), identity=None, limit=2**30).orphans
    print(sum(orphan.records for orphan in orphans))
    for orphan in orphans:
        orphan.spool.release()

what, folder = sys.argv[1:]
asyncio.run(own(folder)) if what == "own" else find(folder)
"""


async def test_locks_that_do_not_lock(folder: Path, tmp_path: Path) -> None:
    """A process that lives keeps its spool, its WAL included; after SIGKILL the next one has it."""
    script = tmp_path / "script.py"
    script.write_text(WITHOUT_LOCKS)

    async def start(what: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, str(script), what, str(folder)),
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    async def found() -> bytes:
        process = await start("find")
        with not_outlived_by(process):
            return (await process.communicate())[0].strip()

    owner = await start("own")
    with not_outlived_by(owner):
        async with asyncio.timeout(60):
            assert owner.stdout is not None
            assert await owner.stdout.readline() == b"owns\n"
            (path,) = find_spools(folder)
            assert await found() == b"0"
            assert path.exists()
            assert path.with_name(f"{path.name}-wal").stat().st_size > 0
            owner.kill()
            await owner.wait()
            assert await found() == b"100"


async def test_a_spool_that_was_removed_is_noticed_at_once(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By every commit, and it is not said to work again while the file is gone."""
    monkeypatch.setattr("adp_async._io.keeper.SECONDS_AFTER_FAILURE", 0.02)
    async with session_in(folder, linger=60.0) as session:
        run = session.attach_run("run")
        run.log_metric("loss", 0.5, 1)
        await until(lambda: keeper(session).spool.contents().records == 1)
        spool_file.remove(keeper(session).spool.path)
        await run.flush()  # what has to be written now is an end alone
        run.log_metric("loss", 0.5, 2)
        await until(lambda: warnings(caplog, "removed while it was in use"))
        await asyncio.sleep(0.05)

    assert len(warnings(caplog, "removed while it was in use")) == 1
    assert warnings(caplog, "works again") == []
    assert sorted(steps(session)) == [1, 2]


def test_an_end_is_not_written_into_a_file_that_is_gone(folder: Path) -> None:
    """Nor into another that has its name."""
    spool = Spool.create(folder, FAKE, limit=LIMIT)
    spool.commit(chunk(metrics(3)))
    moved = spool.path.rename(folder / "moved")
    for _ in range(2):
        changes = settled(3)
        with pytest.raises(SpoolError, match="removed while it was in use"):
            spool.commit(changes)
        assert changes.is_settled
        spool.path.touch()
    spool.close()

    assert spool.path.exists()
    assert moved.exists()


async def test_a_removed_spool_stops_no_recovery(folder: Path, tmp_path: Path) -> None:
    """Of another session in the same process, from another folder."""
    orphan(folder, chunk(metrics(5)))
    async with session_in(tmp_path / "another") as first:
        spool_file.remove(keeper(first).spool.path)
        async with session_in(folder) as session:
            await until(lambda: len(steps(session)) == 5)


# An older version


def old_spool(folder: Path) -> Path:
    """Records that wait, a batch that was under way, and one that was refused."""
    rows = [("run", first, metrics(10, first)) for first in range(0, 30, 10)]
    path = old_orphan(folder, rows)
    with closing(sqlite3.connect(path)) as connection:
        row = ("run", "metric", "bad key!", pack(metrics(1, 77, "bad key!")), "400", 1000.5)
        connection.execute("INSERT INTO refused VALUES (?, ?, ?, ?, ?, ?)", row)
        connection.execute("INSERT INTO sealed VALUES ('run', 0, 10, 'token-a')")
        connection.commit()
    return path


async def test_a_spool_of_the_first_version_is_delivered(folder: Path) -> None:
    """With its tokens; what is refused of it now lies beside what was refused then."""
    path = old_spool(folder)
    with closing(sqlite3.connect(path)) as connection:
        bad = pack(metrics(1, 30, "worse key!"))
        row = ("run", 30, 31, 1, 0, 0, bad, 1000.5)
        connection.execute("INSERT INTO chunks VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        connection.commit()
    async with session_in(folder) as session:
        await until(lambda: len(steps(session)) == 30)
        await until(lambda: "worse key!" in refused_in(path))
        tokens = [request.headers.get("opc-retry-token") for request in session.requests]

    assert "token-a" in tokens
    assert refused_in(path) == ["bad key!", "worse key!"]


def refused_in(path: Path) -> list[str]:
    try:
        spool = Spool.open(path, limit=LIMIT)
    except SpoolBusy:
        return []
    found = [row.key for row in spool.contents().rejected]
    spool.release()
    return found


def test_refused_records_of_the_first_version_can_wait_again(folder: Path) -> None:
    """In tables without checksums."""
    spool = Spool.open(old_spool(folder), limit=LIMIT)

    assert spool.requeue_refused() == 1
    assert [record.key for _, record in spool.waiting()][-1] == "bad key!"
    spool.release()


# Where it lies


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """No HOME, and a user without an entry, as in a container with a number for a user."""

    def unknown(uid: int) -> Any:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_STATE_HOME", "ADP_ASYNC_SPOOL", "OCI_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)


async def test_without_any_place_records_are_in_memory(
    homeless: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The usual warning, and a session that works, more than once."""
    monkeypatch.setattr("adp_async._io.spool_places._shared_folders", list)
    for _ in range(2):
        session = FakeSession(spool=True)
        async with session:
            run = session.attach_run(session.add_run("run"))
            run.log_metric("loss", 0.5, 1)
            await run.flush()
        assert steps(session) == [1]

    assert len(warnings(caplog, "only in memory", "no home folder", "ADP_ASYNC_SPOOL")) == 2


@pytest.mark.parametrize("home", [None, "", "  ", "relative/home"])
def test_a_home_that_is_none(
    homeless: None, monkeypatch: pytest.MonkeyPatch, home: str | None, tmp_path: Path
) -> None:
    """Missing, empty or relative: nothing is made in the working folder or at the root."""
    monkeypatch.chdir(tmp_path)
    if home is not None:
        monkeypatch.setenv("HOME", home)
    with pytest.raises(SpoolError, match="no home folder"):
        default_spool_folder()
    assert list(tmp_path.iterdir()) == []


def test_the_key_file_needs_a_home_too(homeless: None) -> None:
    """`ApiKey` finds its config file there, and says what is missing."""
    with pytest.raises(
        ConfigurationError, match=r"config_file: .* needs a home directory"
    ) as raised:
        ApiKey().load()
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    return home


@pytest.mark.parametrize("by", ["argument", "path", "environment"])
async def test_a_tilde_is_the_home(
    at_home: Path, monkeypatch: pytest.MonkeyPatch, by: str, tmp_path: Path
) -> None:
    """In an argument and in the environment, where no shell has expanded it."""
    from pathlib import Path as AnyPath

    monkeypatch.setenv("ADP_ASYNC_SPOOL", "~/x" if by == "environment" else "off")
    knobs: dict[str, Any] = {"argument": {"spool": "~/x"}, "path": {"spool": AnyPath("~/x")}}
    session = FakeSession(**knobs.get(by, {"spool": None}))
    async with session:
        assert session.spool_folder == at_home / "x"
        assert len(find_spools(at_home / "x")) == 1
    assert os.listdir(tmp_path) == ["home"]


async def test_a_relative_folder_stays_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Seen from where the session was made: it opens, writes and recovers there."""
    monkeypatch.chdir(tmp_path)
    orphan(tmp_path / "spool", chunk(metrics(3)))
    (tmp_path / "other").mkdir()
    session = session_in("spool")  # type: ignore[arg-type]
    monkeypatch.chdir(tmp_path / "other")
    async with session:
        run = session.attach_run("run")
        await until(lambda: len(steps(session)) == 3)
        monkeypatch.chdir("/")
        for step in range(10, 14):
            run.log_metric("loss", 0.5, step)
            await asyncio.sleep(0.03)
        await run.flush()

    assert sorted(steps(session)) == [0, 1, 2, 10, 11, 12, 13]
    assert warnings(caplog, "only in memory") == []
    assert list((tmp_path / "spool").iterdir()) == list((tmp_path / "other").iterdir()) == []


@pytest.mark.parametrize("bad", ["a\0b", "\ud800", "x/\udcff", "~nobody-of-that-name/x", b"bytes"])
def test_a_folder_that_cannot_be(bad: Any) -> None:
    """A `ConfigurationError` that names the setting, before anything is opened."""
    with pytest.raises(ConfigurationError, match=r"^spool: ") as raised:
        FakeSession(spool=bad)
    str(raised.value).encode()
    if isinstance(bad, str) and "\0" not in bad and bad.isascii():
        arguments = {"platform_id": FAKE.platform_id}
        with pytest.raises(ConfigurationError, match="ADP_ASYNC_SPOOL"):
            Settings.resolve(arguments, {"ADP_ASYNC_SPOOL": bad})


def test_a_working_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative folder lies nowhere then."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()

    with pytest.raises(ValueError, match="no working folder"):
        absolute_folder("spool")
    assert absolute_folder("/spool").is_absolute()


def test_a_folder_that_went_is_no_surprise(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody removed it between two looks: an error of ours reports it."""
    monkeypatch.setattr(recovery, "find_spools", lambda folder: [folder / "x.spool"])

    with pytest.raises(SpoolError, match="cannot be read"):
        open_orphans(folder, identity=None, limit=LIMIT)


def test_another_workspaces_batch_stays_where_it_is(folder: Path) -> None:
    """Not even the owner's name changes in its file."""
    path = orphan(folder, chunk(metrics(3)), sealed(0, 3, "token"))
    before = path.read_bytes()
    other = evolve(FAKE, workspace="another")

    assert open_orphan(path, identity=other, limit=LIMIT) is None
    assert (
        open_orphans(folder, identity=evolve(FAKE, platform_id="other"), limit=LIMIT).orphans == ()
    )
    assert path.read_bytes() == before
    Spool.open(path, limit=LIMIT).release()
