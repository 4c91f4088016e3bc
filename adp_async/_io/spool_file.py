"""The file of a spool: where it is, how it is made, opened and told from other files.

One SQLite file for a process.  It belongs to whoever holds SQLite's exclusive lock on it, which
goes with the process, however that ends.  Some network file systems grant that lock to everybody,
so the file names its owner as well; see `owner`.

A spool names the records to send, and where, with the credentials of whoever delivers it.  So
one is opened only when it is this user's, and exactly what `lay_out` makes.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import stat
import time
from contextlib import closing, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from attrs import frozen

from adp_async._io.owner import Owner, why_in_use
from adp_async.errors import AdpError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

#: Device and inode.
FileId: TypeAlias = "tuple[int, int]"

SUFFIX: Final = ".spool"
#: "adpa", so that `file` can tell what this is; and the version of the tables below.
APPLICATION_ID: Final = 0x61647061
#: Format 1 had no checksums and no owner.
FORMAT: Final = 2
_CACHE_KIB: Final = 2048
_PAGE_BYTES: Final = 4096
#: The WAL's usual size: a larger one is moved into the file less often, and that is what costs.
_WAL_BYTES: Final = 16 * 2**20
#: What stays free of a disk for the tokens and ends of the records that are on it already: as much
#: as the largest batch, and of a very small disk this part.
_RESERVED_BYTES: Final = 2**20
_RESERVED_PART: Final = 8
#: A file that is younger and looks like no spool yet may be in the making.
_SECONDS_IN_THE_MAKING: Final = 60.0
_MAGIC: Final = b"SQLite format 3\0"
_HEADER_BYTES: Final = 100

_BESIDE: Final = ("-wal", "-shm", "-journal")
_LOOKING: Final = (
    os.O_RDONLY
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)

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
_CHECKSUM: Final = ", checksum INTEGER NOT NULL"


class SpoolError(AdpError):
    """The spool can't be written or read: full disk, no permission, a damaged file."""


class SpoolFull(SpoolError):
    """The disk is full: the spool can be read, and nothing more is written."""


class SpoolLimit(SpoolError):
    """The spool is as large as it may be: it takes no more records."""


class SpoolReserve(SpoolLimit):
    """All that is free of the disk is kept for what has to follow the records that are on it."""


class SpoolUnreadable(SpoolError):
    """The next records of a run can't be read, up to the sequence number *until*."""

    def __init__(self, message: str, until: int) -> None:
        self.until = until
        super().__init__(message)


class SpoolBusy(SpoolError):
    """Another process, or session, has the spool open."""


class SpoolForeign(SpoolError):
    """Not a spool file, or the rest of one whose beginning is gone."""


class SpoolElsewhere(SpoolBusy):
    """A process of another machine may have it open."""


class SpoolUntrusted(SpoolForeign):
    """Another user's, or something else than `lay_out` makes: it is not even opened."""


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


@frozen
class Header:
    """What a look at a file tells before SQLite touches it."""

    file: FileId
    format: int


def default_spool_folder() -> Path:
    """The user's state folder, as each system has it.  `SpoolError` when the user has no home."""
    import platformdirs

    is_blank = not (os.environ.get("HOME", "~").strip() or os.environ.get("XDG_STATE_HOME"))
    with suppress(RuntimeError):  # what some versions say without a home
        folder = Path(platformdirs.user_state_dir("adp_async", appauthor=False))
        if folder.is_absolute() and not is_blank:
            return folder / "spool"
    message = (
        "this user has no home folder for a spool: set HOME, or name a folder with "
        "spool= or ADP_ASYNC_SPOOL"
    )
    raise SpoolError(message)


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
            connection.execute("PRAGMA trusted_schema = OFF")
            # A flipped bit in a name must not keep the rows around it from being read.
            connection.text_factory = _text
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


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def lay_out(connection: sqlite3.Connection, identity: Identity, owner: Owner) -> None:
    """The tables of a new spool, before there is a WAL: its first page says what it is."""
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
    """Raise unless the tables are those that `lay_out` makes: a view could run for ever."""
    with as_ours(path):
        found = _schema_of(connection)
    if strange := found ^ _schema(version):
        names = sorted({str(row[1]) for row in strange})
        message = f"{path} does not have the tables of a spool ({', '.join(names)})"
        raise SpoolUntrusted(f"{message}; left untouched")


# Whose it is -------------------------------------------------------------------------------------


def _user() -> int | None:
    """This process's user; None where users have no numbers."""
    return os.geteuid() if hasattr(os, "geteuid") else None


def check_folder(folder: Path, *, to_create: bool = False) -> None:
    """Raise `SpoolUntrusted` unless spools can be kept in *folder*.

    It belongs to this user, or to root as ``/tmp`` does.  *to_create*: and nobody else can put a
    file in another's place there.  `SpoolError` when it can't be looked at.
    """
    try:
        facts, user = os.stat(folder), _user()
    except OSError as error:
        raise SpoolError(f"the spool folder {folder} cannot be read: {error.strerror}") from error
    if user is None:
        return
    if facts.st_uid not in (user, 0):
        message = f"the spool folder {folder} belongs to another user (uid {facts.st_uid})"
        raise SpoolUntrusted(f"{message}, so it is not used; name a folder of your own")
    is_open = facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not facts.st_mode & stat.S_ISVTX
    if to_create and is_open:
        message = (
            f"others can write to the spool folder {folder}, so it is not used: chmod go-w it, or "
            "name a new folder inside it, which is made for its owner alone"
        )
        raise SpoolUntrusted(message)


def check_is_ours(path: Path, facts: os.stat_result) -> None:
    """Raise `SpoolUntrusted` unless *facts* are of a plain file of this user."""
    if stat.S_ISLNK(facts.st_mode):
        problem = "is a symbolic link"
    elif not stat.S_ISREG(facts.st_mode):
        problem = "is not a regular file"
    elif (user := _user()) is not None and facts.st_uid != user:
        problem = f"belongs to another user (uid {facts.st_uid})"
    else:
        return
    raise SpoolUntrusted(f"{path} {problem}; left untouched")


def check_header(path: Path, in_use: Collection[FileId]) -> Header:
    """Look at the file without SQLite, which would write into one of another kind.

    Not at one of those *in_use* by this process: when it is closed here, POSIX takes the lock away
    from whoever holds it in this process.
    """
    try:
        if file_id(os.stat(path)) in in_use:
            raise SpoolBusy(f"{path} is in use by this process")
        check_is_ours(path, os.lstat(path))  # opening a FIFO or a device would have an effect
        header, facts = _beginning(path)
        for each in _beside(path):
            with suppress(FileNotFoundError):
                check_is_ours(each, os.lstat(each))
    except FileNotFoundError:
        raise SpoolBusy(f"{path} was removed by another process") from None
    except OSError as error:
        raise SpoolError(f"{path} cannot be read: {error.strerror}") from error
    application = _number(header, 68) if header.startswith(_MAGIC) else 0
    if not application and time.time() - facts.st_mtime < _SECONDS_IN_THE_MAKING:
        raise SpoolBusy(f"{path} is being created by another process")
    if application != APPLICATION_ID:
        message = f"{path} is not a spool file (or is truncated); left untouched"
        raise SpoolForeign(message)
    version = _number(header, 60)
    if version > FORMAT:
        message = (
            f"{path} was written by a newer version of adp_async (format {version}, this "
            f"version knows {FORMAT}); left untouched: upgrade to deliver it"
        )
        raise SpoolNewer(message)
    if version < 1:
        raise SpoolForeign(f"{path} is not a spool file: it has no format; left untouched")
    return Header(file_id(facts), version)


def _beginning(path: Path) -> tuple[bytes, os.stat_result]:
    descriptor = os.open(path, _LOOKING)
    try:
        facts = os.fstat(descriptor)
        check_is_ours(path, facts)
        return os.read(descriptor, _HEADER_BYTES), facts
    finally:
        os.close(descriptor)


def file_id(facts: os.stat_result) -> FileId:
    return facts.st_dev, facts.st_ino


def _beside(path: Path) -> list[Path]:
    return [Path(f"{path}{suffix}") for suffix in _BESIDE]


def is_still(path: Path, file: FileId) -> bool:
    """Whether *path* is the name of *file*, and not gone or another's."""
    try:
        return file_id(os.lstat(path)) == file
    except OSError:
        return False


def _number(header: bytes, position: int) -> int:
    return int.from_bytes(header[position : position + 4], "big")


# Who has it --------------------------------------------------------------------------------------


def check_owner(path: Path, header: Header) -> None:
    """Raise `SpoolBusy` when the process that has the file may live, whatever the lock says."""
    owner = _read_owner(path, header)
    if owner is None:
        return
    here = Owner.this_process(header.file[1])
    if reason := why_in_use(owner, here=here, seconds_silent=_seconds_silent(path)):
        kind = SpoolBusy if owner.host == here.host else SpoolElsewhere
        raise kind(f"{path} is {reason}")


def _read_owner(path: Path, header: Header) -> Owner | None:
    """What stands in the file itself: SQLite must not touch the WAL of a process that lives."""
    if header.format < 2:
        return None
    try:
        with closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
        ) as connection:
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.text_factory = _text
            check_schema(path, connection, header.format)
            query = "SELECT value FROM meta WHERE name = 'owner'"
            found = connection.execute(query).fetchone()
    except SpoolUntrusted:
        raise
    except (sqlite3.Error, UnicodeDecodeError, SpoolError):
        return None  # damaged, or gone: opening it says so
    return Owner.from_text(found[0]) if found else None


def _seconds_silent(path: Path) -> float:
    """How long ago it was last written, at least; a clock that is off makes it no older."""
    times = []
    for each in (path, *_beside(path)):
        with suppress(OSError):
            times.append(os.stat(each).st_mtime)
    now = time.time()
    return min((abs(now - each) for each in times), default=0.0)


# Whether it is sound -----------------------------------------------------------------------------


def check_pages(path: Path, connection: sqlite3.Connection) -> None:
    """Raise for a damaged file; an index that doesn't fit its table is made anew."""
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


def has_room(path: Path, size: int) -> bool:
    """Whether the disk of *path* takes *size* bytes of records, and what has to follow them.

    That is the tokens of their batches and their ends, without which nothing on a full disk could
    leave it; and moving the WAL into the file, which makes room and needs some.
    """
    if not hasattr(os, "statvfs"):
        return True
    try:
        disk = os.statvfs(path)
        wal = os.stat(f"{path}-wal").st_size
    except OSError:
        return True  # writing says what is wrong
    if not disk.f_blocks:
        return True  # some file systems do not know how large they are
    blocks = disk.f_bavail if _user() else disk.f_bfree
    reserved = min(_RESERVED_BYTES, disk.f_blocks * disk.f_frsize // _RESERVED_PART)
    return blocks * disk.f_frsize >= wal + 3 * size + reserved


def remove(path: Path) -> None:
    """Remove a spool that is not open, with SQLite's files beside it."""
    for each in (path, *_beside(path)):
        each.unlink(missing_ok=True)
