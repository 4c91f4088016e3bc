"""A spool: one SQLite file with what a process accepted and had not delivered yet.

Everything here blocks and belongs into a worker thread; one lock lets any thread in.  A file
belongs to the process that has it open: SQLite's exclusive lock says so and goes with the process,
however that ends.  Commits are atomic and outlive the process (WAL, ``synchronous=NORMAL``: a
crash of the machine may take the last of them, one of the process may not).
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import threading
import time
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from attrs import define, field, frozen

from adp_async._sansio.records import KINDS, Metric, Param, RunTag
from adp_async.errors import AdpError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from adp_async._sansio.journal import Changes, Refused
    from adp_async._sansio.records import AnyRecord, Kind

__all__ = ["Contents", "Identity", "RejectedRow", "RunRow", "Spool", "SpoolError", "find_spools"]

SUFFIX: Final = ".spool"
#: "adpa", so that `file` can tell what this is; and the version of the tables below.
APPLICATION_ID: Final = 0x61647061
FORMAT: Final = 1
#: Refused records that are kept for a person to see.
KEPT_REFUSED: Final = 10_000
_CACHE_KIB: Final = 2048
#: Pages of 4 KiB that may lie free before the file shrinks.
_FREE_PAGES: Final = 2048

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
CREATE TABLE refused (
    run_id TEXT NOT NULL, kind TEXT NOT NULL, key TEXT NOT NULL, body BLOB NOT NULL,
    reason TEXT NOT NULL, refused_at REAL NOT NULL
);
"""


class SpoolError(AdpError):
    """The spool can't be written or read: full disk, no permission, a damaged file."""


class SpoolBusy(SpoolError):
    """Another process, or session, has the spool open."""


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
class RunRow:
    """What a spool holds of one run: counts by kind, and when the oldest was accepted."""

    run_id: str
    metrics: int
    params: int
    tags: int
    oldest: float


@frozen
class RejectedRow:
    """A record the service refused, and why."""

    run_id: str
    kind: Kind
    key: str
    record: AnyRecord = field(repr=False)
    reason: str
    refused_at: float


@frozen
class Piece:
    """Records of a run that are still to be delivered, on disk from *first* to *last*."""

    run_id: str
    spilled: tuple[tuple[int, int], ...]
    #: (first, retry token, records) of the batches that were under way.
    sealed: tuple[tuple[int, str, list[AnyRecord]], ...]


@frozen
class Contents:
    """What lies in a spool."""

    path: Path
    identity: Identity | None
    runs: tuple[RunRow, ...] = ()
    rejected: tuple[RejectedRow, ...] = field(default=(), repr=False)
    last_error: str = ""
    #: Why it can't be read: in use, newer, damaged.
    trouble: str = ""

    @property
    def records(self) -> int:
        return sum(run.metrics + run.params + run.tags for run in self.runs)


def default_spool_folder() -> Path:
    """The user's state folder, as each system has it."""
    import platformdirs

    return Path(platformdirs.user_state_dir("adp_async", appauthor=False)) / "spool"


def find_spools(folder: Path) -> list[Path]:
    """The spools in *folder*, oldest first."""
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == SUFFIX)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SpoolError(f"the spool folder {folder} cannot be read: {error.strerror}") from error


@define(eq=False)
class Spool:
    """An open spool.  Open one with `create` or `open`; `close` lets go of it."""

    path: Path
    limit: int
    _connection: sqlite3.Connection = field(repr=False)
    _lock: threading.RLock = field(factory=threading.RLock, init=False, repr=False)

    # ------------------------------------------------------------------ opening and closing

    @classmethod
    def create(cls, folder: Path, identity: Identity, *, limit: int) -> Spool:
        """A new spool of this process, in *folder*, which is made for its owner alone."""
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
            path = folder / f"{stamp}-{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}"
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except OSError as error:
            raise SpoolError(f"no spool can be made in {folder}: {error.strerror}") from error
        try:
            spool = cls(path, limit, _connect(path))
        except SpoolError:
            path.unlink(missing_ok=True)
            raise
        with spool._transaction() as connection:
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {FORMAT}")
            for statement in _TABLES.strip().split(";\n"):
                connection.execute(statement.strip("; \n") or "SELECT 1")
            meta = {
                "endpoint": identity.endpoint,
                "platform_id": identity.platform_id,
                "workspace": identity.workspace,
                "pid": str(os.getpid()),
            }
            connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
        return spool

    @classmethod
    def open(cls, path: Path, *, limit: int) -> Spool:
        """A spool that another process left.

        Raises `SpoolBusy` while that lives, `SpoolNewer`, and `SpoolError` for a damaged file,
        which is left as it is.
        """
        connection = _connect(path)
        try:
            _check_format(path, connection)
        except BaseException:
            connection.close()
            raise
        return cls(path, limit, connection)

    def close(self) -> None:
        """Let go of the file; one in which nothing is left is removed."""
        with self._lock:
            try:
                is_empty = not self._has_rows()
            except SpoolError:
                is_empty = False
            self._connection.close()
            if is_empty:
                remove(self.path)

    def let_go(self) -> None:
        """Close the file and leave it as it is."""
        with self._lock:
            self._connection.close()

    def _has_rows(self) -> bool:
        with self._reading() as connection:
            query = "SELECT EXISTS (SELECT 1 FROM chunks) OR EXISTS (SELECT 1 FROM refused)"
            return bool(connection.execute(query).fetchone()[0])

    # ------------------------------------------------------------------ writing

    def commit(self, changes: Changes, last_error: str = "") -> None:
        """Write *changes*.  `SpoolError` says that their chunks are not written, and why."""
        if changes.settled or changes.refused or last_error:
            with self._transaction() as connection:
                self._settle(connection, changes, last_error)
            changes.is_settled = True
        if not (changes.chunks or changes.sealed):
            return
        if changes.chunks and self.size >= self.limit:
            raise SpoolError(f"{self.path} has reached spool_limit, {self.limit} bytes")
        with self._transaction() as connection:
            self._insert(connection, changes)

    def _settle(self, connection: sqlite3.Connection, changes: Changes, last_error: str) -> None:
        for settled in changes.settled:
            run_id, until = settled.run_id, settled.until
            connection.execute("INSERT OR REPLACE INTO runs VALUES (?, ?)", (run_id, until))
            for table in ("chunks", "sealed"):
                query = f"DELETE FROM {table} WHERE run_id = ? AND last <= ?"  # noqa: S608
                connection.execute(query, (run_id, until))
            connection.execute("DELETE FROM done WHERE run_id = ?", (run_id,))
            rows = [(run_id, first, last) for first, last in settled.done]
            connection.executemany("INSERT INTO done VALUES (?, ?, ?)", rows)
        if changes.refused:
            now = time.time()
            rejected = [_refused_row(each, now) for each in changes.refused]
            connection.executemany("INSERT INTO refused VALUES (?, ?, ?, ?, ?, ?)", rejected)
            oldest = "SELECT max(rowid) - ? FROM refused"
            connection.execute(
                f"DELETE FROM refused WHERE rowid <= ({oldest})",  # noqa: S608
                (KEPT_REFUSED,),
            )
        if last_error:
            row = ("last_error", last_error[:1000])
            connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", row)
        if connection.execute("PRAGMA freelist_count").fetchone()[0] > _FREE_PAGES:
            connection.execute(f"PRAGMA incremental_vacuum({_FREE_PAGES // 2})").fetchall()

    def _insert(self, connection: sqlite3.Connection, changes: Changes) -> None:
        now = time.time()
        connection.executemany(
            "INSERT INTO chunks VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (chunk.run_id, chunk.first, chunk.last, *_counts(chunk.records), body, now)
                for chunk, body in ((each, pack(each.records)) for each in changes.chunks)
            ),
        )
        connection.executemany(
            "INSERT OR REPLACE INTO sealed VALUES (?, ?, ?, ?)",
            [(each.run_id, each.first, each.last, each.retry_token) for each in changes.sealed],
        )

    def discard(self) -> None:
        """Remove the file with all that is in it."""
        with self._lock:
            self._connection.close()
            remove(self.path)

    # ------------------------------------------------------------------ reading

    @property
    def size(self) -> int:
        """Bytes in use, without the pages that are free again."""
        with self._reading() as connection:
            pages, free, page_size = (
                connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_count", "freelist_count", "page_size")
            )
        return int((pages - free) * page_size)

    @property
    def identity(self) -> Identity:
        meta = self._meta()
        return Identity(meta["endpoint"], meta["platform_id"], meta["workspace"])

    def _meta(self) -> dict[str, str]:
        with self._reading() as connection:
            return dict(connection.execute("SELECT name, value FROM meta").fetchall())

    def load(self, run_id: str, first: int, last: int) -> list[AnyRecord]:
        """The records *first* to *last* (exclusive) of a run."""
        records: list[AnyRecord] = []
        with self._reading() as connection:
            query = (
                "SELECT first, body FROM chunks "
                "WHERE run_id = ? AND first < ? AND last > ? ORDER BY first"
            )
            for start, body in connection.execute(query, (run_id, last, first)):
                chunk = self._unpacked(body)
                records += chunk[max(0, first - start) : last - start]
        if len(records) != last - first:
            message = f"{self.path}: records {first} to {last} of run {run_id} are not all there"
            raise SpoolError(message)
        return records

    def _unpacked(self, body: bytes) -> list[AnyRecord]:
        try:
            return unpack(body)
        except msgspec.MsgspecError as error:
            raise SpoolError(f"{self.path}: a row is damaged") from error

    def pieces(self) -> list[Piece]:
        """What is still to be delivered, run by run."""
        with self._reading() as connection:
            settled = dict(connection.execute("SELECT run_id, settled FROM runs").fetchall())
            chunks = connection.execute(
                "SELECT run_id, first, last FROM chunks ORDER BY run_id, first"
            ).fetchall()
            done = connection.execute("SELECT run_id, first, last FROM done").fetchall()
            sealed = connection.execute("SELECT run_id, first, last, token FROM sealed").fetchall()
        return [
            self._piece(
                run_id,
                _minus([row[1:] for row in chunks if row[0] == run_id], settled.get(run_id, 0)),
                [row[1:] for row in done if row[0] == run_id],
                [row[1:] for row in sealed if row[0] == run_id],
            )
            for run_id in dict.fromkeys(row[0] for row in chunks)
        ]

    def _piece(
        self,
        run_id: str,
        ranges: list[tuple[int, int]],
        done: list[tuple[int, int]],
        sealed: list[tuple[int, int, str]],
    ) -> Piece:
        for first, last in done:
            ranges = _without(ranges, first, last)
        batches = []
        for first, last, token in sorted(sealed):
            if any(start <= first and last <= end for start, end in ranges):
                batches.append((first, token, self.load(run_id, first, last)))
                ranges = _without(ranges, first, last)
        return Piece(run_id, tuple(ranges), tuple(batches))

    def contents(self) -> Contents:
        """What a person wants to know of it."""
        with self._reading() as connection:
            runs = connection.execute(
                "SELECT run_id, sum(metrics), sum(params), sum(tags), min(accepted_at) "
                "FROM chunks GROUP BY run_id ORDER BY min(accepted_at)"
            ).fetchall()
            refused = connection.execute("SELECT * FROM refused").fetchall()
        return Contents(
            self.path,
            self.identity,
            tuple(RunRow(*row) for row in runs),
            tuple(self._rejected(row) for row in refused),
            self._meta().get("last_error", ""),
        )

    def _rejected(self, row: Any) -> RejectedRow:
        run_id, kind, key, body, reason, refused_at = row
        return RejectedRow(run_id, kind, key, self._unpacked(body)[0], reason, refused_at)

    # ------------------------------------------------------------------ SQLite

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, _as_ours(self.path):
            connection = self._connection
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, _as_ours(self.path):
            yield self._connection


def _connect(path: Path) -> sqlite3.Connection:
    with _as_ours(path):
        connection = sqlite3.connect(
            path, timeout=0.0, isolation_level=None, check_same_thread=False
        )
        try:
            # Before WAL: then no shared memory is needed, and the lock is held until the end.
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("COMMIT")
        except BaseException:
            connection.close()
            raise
    return connection


def _check_format(path: Path, connection: sqlite3.Connection) -> None:
    with _as_ours(path):
        application, version = (
            connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("application_id", "user_version")
        )
        if application != APPLICATION_ID:
            raise SpoolError(f"{path} is no spool, or one that was cut off at its very beginning")
        if version > FORMAT:
            message = (
                f"{path} was written by a newer version of adp_async (format {version}, this "
                f"version knows {FORMAT}); it is left as it is: upgrade to deliver it"
            )
            raise SpoolNewer(message)
        found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise SpoolError(f"{path} is damaged ({found}); it is left as it is")


@contextmanager
def _as_ours(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "")
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise SpoolBusy(f"{path} is in use by a running process") from error
        raise SpoolError(f"{path}: {error} ({name or type(error).__name__})") from error


def remove(path: Path) -> None:
    """Remove a spool that is not open, with SQLite's files beside it."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


# ---------------------------------------------------------------------- records as bytes

_encoder = msgspec.msgpack.Encoder()
_METRIC_FIELDS = attrgetter("key", "value", "timestamp", "step")
_decoder = msgspec.msgpack.Decoder(list[tuple[Any, ...]])


def pack(records: Sequence[AnyRecord]) -> bytes:
    """*records* as bytes: MessagePack, which keeps every float as it is."""
    if set(map(type, records)) == {Metric}:  # nearly always, and then it need not take long
        return _encoder.encode(list(map(_METRIC_FIELDS, records)))
    return _encoder.encode(
        [
            _METRIC_FIELDS(record)
            if type(record) is Metric
            else (KINDS[type(record)][0], record.key, record.value)
            for record in records
        ]
    )


def unpack(body: bytes) -> list[AnyRecord]:
    """What `pack` packed."""
    return [
        Metric(*fields) if len(fields) == 4 else _TEXTS[fields[0]](*fields[1:])
        for fields in _decoder.decode(body)
    ]


_TEXTS: Final[dict[str, type[Param] | type[RunTag]]] = {"p": Param, "t": RunTag}


def _counts(records: Sequence[AnyRecord]) -> tuple[int, int, int]:
    kinds = [type(record) for record in records]
    return kinds.count(Metric), kinds.count(Param), kinds.count(RunTag)


def _refused_row(refused: Refused, now: float) -> tuple[Any, ...]:
    rejection = refused.rejection
    reason = str(rejection.cause)[:2000]
    return (rejection.run_id, rejection.kind, rejection.key, pack([refused.record]), reason, now)


# ---------------------------------------------------------------------- ranges


def _minus(ranges: list[tuple[int, int]], until: int) -> list[tuple[int, int]]:
    """*ranges* from *until* on, joined where one begins at the other's end."""
    joined: list[tuple[int, int]] = []
    for first, last in ranges:
        start = max(first, until)
        if start >= last:
            continue
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], last)
        else:
            joined.append((start, last))
    return joined


def _without(ranges: list[tuple[int, int]], first: int, last: int) -> list[tuple[int, int]]:
    """*ranges* without what lies between *first* and *last*.

    >>> _without([(0, 10), (12, 20)], 4, 14)
    [(0, 4), (14, 20)]
    """
    left = [(start, min(end, first)) for start, end in ranges]
    right = [(max(start, last), end) for start, end in ranges]
    return sorted((start, end) for start, end in left + right if start < end)
