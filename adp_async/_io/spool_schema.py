"""The tables of a spool: how a file is opened and laid out, and whether it is sound."""

from __future__ import annotations

import sqlite3
from contextlib import closing, contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from adp_async._io.spool_file import SpoolBusy, SpoolError, SpoolFull, SpoolUntrusted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from adp_async._io.owner import Owner
    from adp_async._io.spool_file import Identity

#: "adpa", which identifies the file as a spool.
APPLICATION_ID: Final = 0x61647061
#: The version of the tables below.  Format 1 had no checksums and no owner, format 2 none of the
#: tables *taken*, *aside* and *starts*.
FORMAT: Final = 3
_CACHE_KIB: Final = 2048
_PAGE_BYTES: Final = 4096
#: The WAL's usual size: a larger one is merged into the file less often, which is the expensive
#: part.
_WAL_BYTES: Final = 16 * 2**20

_TABLES: Final = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE runs (run_id TEXT PRIMARY KEY, settled INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE chunks (
    run_id TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
    metrics INTEGER NOT NULL, params INTEGER NOT NULL, tags INTEGER NOT NULL,
    body BLOB NOT NULL, accepted_at REAL NOT NULL, checksum INTEGER NOT NULL
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
    reason TEXT NOT NULL, refused_at REAL NOT NULL, checksum INTEGER NOT NULL
);
"""
#: *taken*: tokens under which other processes have handed records over; *aside*: records that do
#: not count yet; *starts*: runs that do not exist yet.
_NEW: Final = """
CREATE TABLE taken (token TEXT PRIMARY KEY, taken_at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE aside (
    token TEXT NOT NULL UNIQUE, run_id TEXT NOT NULL, task TEXT NOT NULL, attempt TEXT NOT NULL,
    count INTEGER NOT NULL, body BLOB NOT NULL, accepted_at REAL NOT NULL, checksum INTEGER NOT NULL
);
CREATE TABLE starts (
    run_id TEXT PRIMARY KEY, body TEXT NOT NULL, checksum INTEGER NOT NULL
) WITHOUT ROWID;
"""
_CHECKSUM: Final = ", checksum INTEGER NOT NULL"


def connect(
    path: Path, lay_out: Callable[[sqlite3.Connection], None] | None = None
) -> sqlite3.Connection:
    """A connection with the lock on *path*; *lay_out* is for a new file."""
    with as_ours(path):
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=rw",
            uri=True,
            timeout=0.0,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            connection.execute("PRAGMA trusted_schema = OFF")
            # A flipped bit in a name must not make the rows around it unreadable.
            connection.text_factory = text_of
            # Before WAL: then no shared memory is needed, and the lock is held until the end.
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            if lay_out is not None:
                lay_out(connection)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(f"PRAGMA wal_autocheckpoint = {_WAL_BYTES // _PAGE_BYTES}")
            connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("COMMIT")
        except BaseException:
            connection.close()
            raise
    return connection


def text_of(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def lay_out(connection: sqlite3.Connection, identity: Identity, owner: Owner) -> None:
    """Create the tables of a new spool, before there is a WAL, so that the first page has them."""
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {FORMAT}")
    for statement in _statements(FORMAT):
        connection.execute(statement)
    meta = {
        "endpoint": identity.endpoint,
        "platform_id": identity.platform_id,
        "workspace": identity.workspace,
        "owner": owner.as_text(),
    }
    connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
    connection.execute("COMMIT")


def _statements(version: int) -> list[str]:
    tables = _TABLES if version > 1 else _TABLES.replace(_CHECKSUM, "")
    if version > 2:
        tables += _NEW.lstrip()
    return tables.strip().split(";\n")


@lru_cache(maxsize=FORMAT)
def _schema(version: int) -> frozenset[tuple[str, ...]]:
    with closing(sqlite3.connect(":memory:")) as connection:
        for statement in _statements(version):
            connection.execute(statement)
        return _schema_of(connection)


def _schema_of(connection: sqlite3.Connection) -> frozenset[tuple[str, ...]]:
    query = "SELECT type, name, tbl_name, sql FROM sqlite_master"
    return frozenset(connection.execute(query).fetchall())


def check_schema(path: Path, connection: sqlite3.Connection, version: int) -> None:
    """Raise unless the tables are those that `lay_out` makes: a view could run forever."""
    with as_ours(path):
        found = _schema_of(connection)
    if strange := found ^ _schema(version):
        names = sorted({str(row[1]) for row in strange})
        message = f"{path} does not have the tables of a spool ({', '.join(names)})"
        raise SpoolUntrusted(f"{message}; left untouched")


def check_pages(path: Path, connection: sqlite3.Connection) -> None:
    """Raise for a damaged file; an index that doesn't match its table is rebuilt."""
    with as_ours(path):
        connection.execute("PRAGMA cell_size_check = ON")
        if _first_trouble(connection, "integrity_check") == "ok":
            return
        found = _first_trouble(connection, "quick_check")
        if found == "ok":
            connection.execute("REINDEX")
            return
    raise SpoolError(f"{path} is damaged, and left untouched: {' '.join(found.split())}")


def _first_trouble(connection: sqlite3.Connection, check: str) -> str:
    return str(connection.execute(f"PRAGMA {check}(1)").fetchone()[0])


@contextmanager
def as_ours(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:  # SQLite quotes what it found
        raise SpoolError(f"{path} is damaged, and left untouched") from error
    except sqlite3.Error as error:
        if not path.exists():
            raise SpoolBusy(f"{path} was removed by another process") from error
        name = getattr(error, "sqlite_errorname", "")
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise SpoolBusy(f"{path} is in use by a running process") from error
        if name.startswith("SQLITE_FULL"):
            raise SpoolFull(f"{path}: the disk is full") from error
        if name.startswith("SQLITE_CORRUPT"):
            raise SpoolError(f"{path} is damaged, and left untouched: {error}") from error
        raise SpoolError(f"{path}: {error} ({name or type(error).__name__})") from error
