"""The file of a spool: where it lies, how it is made, opened and told from other files.

One SQLite file for a process.  It belongs to whoever holds SQLite's exclusive lock on it, which
goes with the process, however that ends.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attrs import frozen

from adp_async.errors import AdpError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

SUFFIX: Final = ".spool"
#: "adpa", so that `file` can tell what this is; and the version of the tables below.
APPLICATION_ID: Final = 0x61647061
FORMAT: Final = 1
_CACHE_KIB: Final = 2048
_PAGE_BYTES: Final = 4096
#: The WAL's usual size: a larger one is moved into the file less often, and that is what costs.
_WAL_BYTES: Final = 16 * 2**20
#: A file that is younger and looks like no spool yet may be in the making.
_SECONDS_IN_THE_MAKING: Final = 60.0
_MAGIC: Final = b"SQLite format 3\0"
_HEADER_BYTES: Final = 100

_TABLES: Final = """
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


class SpoolError(AdpError):
    """The spool can't be written or read: full disk, no permission, a damaged file."""


class SpoolFull(SpoolError):
    """The disk is full: what is in the spool can be read, and nothing more is written."""


class SpoolLimit(SpoolError):
    """The spool is as large as it may be."""


class SpoolUnreadable(SpoolError):
    """The next records of a run can't be read, up to the sequence number *until*."""

    def __init__(self, message: str, until: int) -> None:
        self.until = until
        super().__init__(message)


class SpoolBusy(SpoolError):
    """Another process, or session, has the spool open."""


class SpoolForeign(SpoolError):
    """No spool at all, or what is left of one whose beginning is gone."""


class SpoolNewer(SpoolError):
    """Written by a newer version of this library."""


@frozen
class Identity:
    """Whose records these are: a spool is delivered where it came from, and nowhere else."""

    endpoint: str
    platform_id: str
    workspace: str

    def is_same_place(self, other: Identity) -> bool:
        """Whether it is the same workspace, by whatever address."""
        return (self.platform_id, self.workspace) == (other.platform_id, other.workspace)


def default_spool_folder() -> Path:
    """The user's state folder, as each system has it."""
    import platformdirs

    return Path(platformdirs.user_state_dir("adp_async", appauthor=False)) / "spool"


def new_name() -> str:
    """A name that tells when and by which process, and sorts by time."""
    now = time.time()
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now))
    micros = int(now % 1 * 1e6)
    return f"{stamp}-{micros:06}-{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}"


def find_spools(folder: Path) -> list[Path]:
    """The spools in *folder*, oldest first."""
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == SUFFIX)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SpoolError(f"the spool folder {folder} cannot be read: {error.strerror}") from error


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


def lay_out(connection: sqlite3.Connection, identity: Identity) -> None:
    """The tables of a new spool, before there is a WAL: its first page says what it is."""
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {FORMAT}")
    for statement in _TABLES.strip().split(";\n"):
        connection.execute(statement)
    meta = {
        "endpoint": identity.endpoint,
        "platform_id": identity.platform_id,
        "workspace": identity.workspace,
    }
    connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
    connection.execute("COMMIT")


def check_header(path: Path, in_use: Iterable[Path]) -> None:
    """Look at the file without SQLite, which would write into one of another kind.

    Not at one of those *in_use* by this process: when it is closed here, POSIX takes the lock away
    from whoever holds it in this process.
    """
    try:
        if any(os.path.samefile(path, each) for each in in_use):
            raise SpoolBusy(f"{path} is in use by this process")
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
            age = time.time() - os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        raise SpoolBusy(f"{path} was removed by another process") from None
    except OSError as error:
        raise SpoolError(f"{path} cannot be read: {error.strerror}") from error
    application = _number(header, 68) if header.startswith(_MAGIC) else 0
    if not application and age < _SECONDS_IN_THE_MAKING:
        raise SpoolBusy(f"{path} is being made by another process")
    if application != APPLICATION_ID:
        message = f"{path} is no spool, or was cut off at its beginning; it is left as it is"
        raise SpoolForeign(message)
    version = _number(header, 60)
    if version > FORMAT:
        message = (
            f"{path} was written by a newer version of adp_async (format {version}, this "
            f"version knows {FORMAT}); it is left as it is: upgrade to deliver it"
        )
        raise SpoolNewer(message)


def _number(header: bytes, position: int) -> int:
    return int.from_bytes(header[position : position + 4], "big")


def check_pages(path: Path, connection: sqlite3.Connection) -> None:
    with as_ours(path):
        found = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    if found != "ok":
        raise SpoolError(f"{path} is damaged, and left as it is: {' '.join(found.split())}")


@contextmanager
def as_ours(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        if not path.exists():
            raise SpoolBusy(f"{path} was removed by another process") from error
        name = getattr(error, "sqlite_errorname", "")
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise SpoolBusy(f"{path} is in use by a running process") from error
        if name.startswith("SQLITE_FULL"):
            raise SpoolFull(f"{path}: the disk is full") from error
        if name.startswith("SQLITE_CORRUPT"):
            raise SpoolError(f"{path} is damaged, and left as it is: {error}") from error
        raise SpoolError(f"{path}: {error} ({name or type(error).__name__})") from error


def remove(path: Path) -> None:
    """Remove a spool that is not open, with SQLite's files beside it."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
