"""Spools as processes that were killed leave them."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from adp_async._io.spool import Spool
from adp_async._io.spool_file import Identity, find_spools
from adp_async._io.spool_schema import APPLICATION_ID
from adp_async._sansio.journal import Changes, Chunk, Sealed, Settled
from adp_async._sansio.packing import pack
from adp_async._sansio.records import Metric, Param, RunTag
from adp_async.cli.spools import look_at
from adp_async.testing import PLATFORM_ID, WORKSPACE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adp_async import Session
    from adp_async._sansio.records import AnyRecord

#: Where a `FakeSession` believes to be.
FAKE = Identity("http://localhost", PLATFORM_ID, WORKSPACE)
LIMIT = 2**30


def metrics(count: int, first: int = 0, key: str = "loss") -> list[Metric]:
    """Points whose step, value and timestamp all tell which one it is."""
    return [Metric(key, step / 2, 1000 + step, step) for step in range(first, first + count)]


def chunk(records: Sequence[AnyRecord], first: int = 0, run_id: str = "run") -> Changes:
    return Changes(chunks=[Chunk(run_id, first, records)])


def sealed(first: int, last: int, token: str, run_id: str = "run") -> Changes:
    return Changes(sealed=[Sealed(run_id, ((first, last),), token)])


def settled(until: int, *done: tuple[int, int], run_id: str = "run") -> Changes:
    return Changes(settled=[Settled(run_id, until, done)])


def orphan(folder: Path, *changes: Changes, identity: Identity = FAKE, error: str = "") -> Path:
    """A spool with *changes* in it whose process is gone."""
    spool = Spool.create(folder, identity, limit=LIMIT)
    for each in changes:
        spool.commit(each, error)
    spool.release()
    return spool.path


def journaled(folder: Path) -> int:
    """How many records the spools there hold, by copies, as a process has them open."""
    # (What is copied while it is written may be torn: the next copy is whole.)
    with tempfile.TemporaryDirectory() as copies, suppress(OSError):
        copied = Path(shutil.copytree(folder, Path(copies, "spool")))
        return sum(look_at(path).records for path in find_spools(copied))
    return 0


def all_written(session: Session) -> bool:
    """Whether all that an open session has accepted is in its spool.  From another thread."""
    delivery, thread = session._delivery, session._engine.thread
    assert delivery.keeper is not None
    assert thread is not None
    keeper = delivery.keeper

    async def look() -> bool:
        is_busy = keeper._under_way is not None or keeper.journal.has_unwritten
        return not (delivery.intake.inbox or is_busy)

    return thread.wait(look())


def old_orphan(folder: Path, rows: Sequence[tuple[str, int, Sequence[AnyRecord]]]) -> Path:
    """What version 0.1.0 leaves: format 1, without owner and checksums.

    *rows*: run id, first sequence number and records of each.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / "20260101-000000-000000-1-00000000.spool"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 1")
        connection.executescript(TABLES_OF_FORMAT_1)
        meta = {
            "endpoint": FAKE.endpoint,
            "platform_id": FAKE.platform_id,
            "workspace": FAKE.workspace,
        }
        connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
        for run_id, first, records in rows:
            row = (run_id, first, first + len(records), *_counts(records), pack(records), 1000.5)
            connection.execute("INSERT INTO chunks VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        connection.execute("PRAGMA journal_mode = WAL")
    return path


def _counts(records: Sequence[AnyRecord]) -> list[int]:
    return [sum(type(each) is kind for each in records) for kind in (Metric, Param, RunTag)]


TABLES_OF_FORMAT_1 = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE runs (run_id TEXT PRIMARY KEY, settled INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE chunks (
    run_id TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
    metrics INTEGER NOT NULL, params INTEGER NOT NULL, tags INTEGER NOT NULL,
    body BLOB NOT NULL, accepted_at REAL NOT NULL
);
CREATE INDEX chunks_by_run ON chunks (run_id, first);
CREATE TABLE sealed (
    run_id TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL, token TEXT NOT NULL,
    PRIMARY KEY (run_id, first)
) WITHOUT ROWID;
CREATE TABLE done (
    run_id TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
    PRIMARY KEY (run_id, first)
) WITHOUT ROWID;
CREATE TABLE unreadable (
    run_id TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL, body BLOB NOT NULL
);
CREATE TABLE refused (
    run_id TEXT NOT NULL, kind TEXT NOT NULL, key TEXT NOT NULL, body BLOB NOT NULL,
    reason TEXT NOT NULL, refused_at REAL NOT NULL
);
"""
