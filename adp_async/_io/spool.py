"""A spool: one SQLite file with what a process accepted and had not delivered yet.

Everything here blocks and belongs into a worker thread; one lock lets any thread in.  Commits are
atomic and outlive the process (WAL, ``synchronous=NORMAL``: a crash of the machine may take the
last of them, one of the process may not).  The file itself is the subject of `spool_file`.
"""

from __future__ import annotations

import ctypes
import os
import sqlite3
import sys
import threading
import time
import weakref
import zlib
from collections import defaultdict
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn

from attrs import define, field, frozen

from adp_async._io.log import logger
from adp_async._io.owner import Owner
from adp_async._io.spool_file import (
    FORMAT,
    Identity,
    SpoolBusy,
    SpoolError,
    SpoolFull,
    SpoolLimit,
    SpoolReserve,
    SpoolUnreadable,
    as_ours,
    check_folder,
    check_header,
    check_is_ours,
    check_owner,
    check_pages,
    check_schema,
    connect,
    file_id,
    has_room,
    is_still,
    lay_out,
    new_name,
    remove,
)
from adp_async._sansio.journal import CHUNK
from adp_async._sansio.packing import DAMAGED, pack, unpack
from adp_async._sansio.ranges import joined, without
from adp_async._sansio.records import Metric, Param, RunTag
from adp_async._sansio.signing import check_retry_token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from adp_async._io.spool_file import FileId
    from adp_async._sansio.journal import Changes, Refused, Settled
    from adp_async._sansio.records import AnyRecord, Kind

#: Refused records that are kept for a person to see.
KEPT_REFUSED: Final = 10_000
#: Pages of 4 KiB that may be free before the file shrinks.
_FREE_PAGES: Final = 2048
#: Records that are read at once.
LOADED: Final = 10_000
#: Seconds that a fork waits for a commit under way.
_LONGEST_WAIT: Final = 1.0
#: Sequence numbers that are beyond it were never given.
_LAST_POSSIBLE: Final = 2**62


@frozen
class RunRow:
    """What a spool holds of one run: counts by kind, and when the oldest was accepted."""

    run_id: str
    metrics: int
    params: int
    tags: int
    oldest: float

    @property
    def records(self) -> int:
        return self.metrics + self.params + self.tags


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
    """What is still to be delivered of a run: ranges on disk, and batches that were under way.

    *last* is where its records on disk end, delivered ones included.
    """

    run_id: str
    spilled: tuple[tuple[int, int], ...]
    #: (ranges, retry token, records) of the batches that were under way.
    sealed: tuple[tuple[tuple[tuple[int, int], ...], str, list[AnyRecord]], ...]
    last: int


@frozen
class Contents:
    """What a spool holds; *trouble* is why it can't be read, or not all of it."""

    path: Path
    identity: Identity | None
    runs: tuple[RunRow, ...] = ()
    rejected: tuple[RejectedRow, ...] = field(default=(), repr=False)
    last_error: str = ""
    trouble: str = ""

    @property
    def records(self) -> int:
        return sum(run.records for run in self.runs)


@define(eq=False)
class Spool:
    """An open spool.  Open one with `create` or `open`; `close` releases the file."""

    path: Path
    limit: int
    _connection: sqlite3.Connection = field(repr=False)
    #: What *path* was the name of when it was opened.
    file: FileId
    format: int = FORMAT
    #: Whether the file names this process as its owner.
    _is_taken: bool = field(default=False, repr=False)
    _lock: threading.RLock = field(factory=threading.RLock, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        _open_spools.add(self)

    # ------------------------------------------------------------------ opening and closing

    @classmethod
    def create(cls, folder: Path, identity: Identity, *, limit: int) -> Spool:
        """A new spool of this process, in *folder*, which is made for its owner alone."""
        folder = folder.absolute()  # whoever changes the working folder means no spool by it
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            check_folder(folder, to_create=True)
            path = folder / new_name()
            facts = _make(path)
        except OSError as error:
            raise SpoolError(f"no spool can be made in {folder}: {error.strerror}") from error
        try:
            # Whose is not ours here would not be taken after the process ended, either.
            check_is_ours(path, facts)
            owner = Owner.this_process(facts.st_ino)
            connection = connect(path, lambda new: lay_out(new, identity, owner))
        except SpoolError:
            remove(path)
            raise
        return cls(path, limit, connection, file_id(facts), is_taken=True)

    @classmethod
    def open(cls, path: Path, *, limit: int) -> Spool:
        """A spool that another process left.

        Raises `SpoolBusy` while that lives, or may live (see `owner`), `SpoolNewer`,
        `SpoolUntrusted` for one that isn't this user's, and `SpoolError` for a damaged file, which
        is left untouched.
        """
        path = path.absolute()
        header = check_header(path, [each.file for each in list(_open_spools)])
        check_folder(path.parent)
        check_owner(path, header)
        connection = connect(path)
        try:
            if not is_still(path, header.file):
                raise SpoolBusy(f"{path} was removed by another process")
            check_schema(path, connection, header.format)
            check_pages(path, connection)
        except BaseException:
            if sys.version_info >= (3, 12):  # pragma: no cover - not in Python 3.11
                # What is damaged is left untouched; an older Python merges the WAL into the file.
                connection.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, True)
            connection.close()
            raise
        return cls(path, limit, connection, header.file, header.format)

    def take(self) -> int:
        """Name this process as the owner, and put damaged rows aside; how many.

        All rows are looked at now: one that turns out damaged later would have those before it
        wait for what comes after it.
        """
        with self._transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO meta VALUES ('owner', ?)",
                (Owner.this_process(self.file[1]).as_text(),),
            )
            query = f"SELECT rowid, run_id, first, last, body, {self._checksum} FROM chunks"  # noqa: S608
            damaged = [row[:4] for row in connection.execute(query) if not self._is_sound(*row[1:])]
            for rowid, *_ in damaged:
                self._put_aside(connection, "chunks", rowid)
        self._is_taken = True
        if damaged:
            _, run_id, first, last = damaged[0]
            more = f", and {len(damaged) - 1} more rows" if len(damaged) > 1 else ""
            message = "%s: records %s to %s of run %r are damaged and put aside%s"
            logger.warning(message, self.path, first, last, run_id, more)
        with self._reading() as connection:
            # Who looks at the owner reads the file, and not the WAL.
            connection.execute("PRAGMA wal_checkpoint")
        return len(damaged)

    def _is_sound(self, run_id: Any, first: Any, last: Any, body: Any, checksum: Any) -> bool:
        if not _is_place(run_id, first, last):
            return False
        if checksum is None:  # format 1: it has to be read to be known
            return _records_of(run_id, first, last, body, checksum) is not None
        # A row of format 2 with its checksum is as it was written.
        return bool(checksum == _checksum_of(body, run_id, first, last))

    def close(self, is_all_settled: bool = False) -> None:
        """Release the file; it is removed when it holds nothing any more.

        *is_all_settled*: none of its records waits, whatever its rows say.
        """
        with self._lock:
            try:
                is_empty = not self._has_rows(is_all_settled)
            except SpoolError:
                is_empty = False
            is_empty = is_empty and is_still(self.path, self.file)
            self._let_go(is_left=not is_empty)
            if is_empty:
                remove(self.path)

    def let_go(self) -> None:
        """Close the file and leave it as it is, for whoever opens it next."""
        self._let_go(is_left=True)

    def _let_go(self, *, is_left: bool) -> None:
        with self._lock:
            if self._is_taken and is_left:
                try:
                    self._connection.execute("DELETE FROM meta WHERE name = 'owner'")
                except sqlite3.Error as error:
                    logger.debug("%s names its owner until that ends: %s", self.path, error)
            self._is_taken = False
            self._connection.close()
            _open_spools.discard(self)

    def disown(self) -> None:
        """In a forked child: the file is the parent's, and nothing here reaches it any more."""
        # Closed here, be it when the interpreter ends, SQLite would take itself for the only user
        # and remove the WAL that the parent keeps writing.  One reference too many prevents it.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._connection))
        self._connection, self._lock = _CLOSED, threading.RLock()
        self._is_taken = False

    def _has_rows(self, is_all_settled: bool) -> bool:
        with self._reading() as connection:
            query = (
                "SELECT EXISTS (SELECT 1 FROM chunks WHERE NOT ?) "
                "OR EXISTS (SELECT 1 FROM refused) OR EXISTS (SELECT 1 FROM unreadable)"
            )
            return bool(connection.execute(query, (is_all_settled,)).fetchone()[0])

    # ------------------------------------------------------------------ writing

    def commit(self, changes: Changes, last_error: str = "") -> None:
        """Write *changes*.  `SpoolError` says that their chunks are not written, and why."""
        if not is_still(self.path, self.file):  # SQLite would keep writing to a file without a name
            changes.is_settled = True  # no file is left that could say otherwise
            raise SpoolError(f"{self.path} was removed while it was in use")
        if changes.settled or changes.refused or changes.unreadable or last_error:
            self._make_room_for(partial(self._commit_ends, changes, last_error))
            changes.is_settled = True
            self._shrink()
        if changes.chunks or changes.sealed:
            self._make_room_for(partial(self._commit_records, changes))

    def _commit_ends(self, changes: Changes, last_error: str) -> None:
        with self._transaction() as connection:
            self._settle(connection, changes, last_error)

    def _commit_records(self, changes: Changes) -> None:
        now = time.time()
        rows = [_chunk_row(each.run_id, each.first, each.records, now) for each in changes.chunks]
        obstacle = None if changes.is_due else self._obstacle(rows)
        with self._transaction() as connection:
            if obstacle is None:
                self._insert(connection, rows)
            # The tokens of what is on disk already: only when that has left there is room again.
            self._insert_tokens(connection, changes)
        if obstacle is not None:
            raise obstacle

    def _make_room_for(self, commit: Callable[[], None]) -> None:
        """*commit*, and when the disk has no room for it, once more after making some."""
        try:
            commit()
        except (SpoolFull, SpoolReserve):
            if not self._fold():
                raise
            commit()

    def _obstacle(self, rows: Sequence[tuple[Any, ...]]) -> SpoolLimit | None:
        """Why the spool may not take *rows* of chunks."""
        if not rows:
            return None
        if self.size >= self.limit:
            return SpoolLimit(f"{self.path} has reached spool_limit, {self.limit} bytes")
        if has_room(self.path, sum(len(body) for *_, body, _, _ in rows)):
            return None
        return SpoolReserve(f"{self.path}: the disk is full")

    def _fold(self) -> bool:
        """Give back what the file and its WAL do not need; whether there was any."""
        with self._lock:
            connection = self._connection
            try:
                free = connection.execute("PRAGMA freelist_count").fetchone()[0]
                if not free and not os.stat(f"{self.path}-wal").st_size:
                    return False
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                if free:
                    connection.executescript("PRAGMA incremental_vacuum")
                    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            except (OSError, sqlite3.Error) as error:
                logger.debug("%s cannot be made smaller: %s", self.path, error)
        return True

    def _settle(self, connection: sqlite3.Connection, changes: Changes, last_error: str) -> None:
        for lost in changes.unreadable:
            which = "FROM chunks WHERE run_id = ? AND first < ? AND last > ?"
            row = (lost.run_id, lost.last, lost.first)
            connection.execute(
                f"INSERT INTO unreadable SELECT run_id, first, last, body {which}", row
            )
            connection.execute(f"DELETE {which}", row)
        for settled in changes.settled:
            self._settle_run(connection, settled)
        if changes.refused:
            now = time.time()
            rejected = [_refused_row(each, now) for each in changes.refused]
            self._insert_rows(connection, "refused", rejected)
            oldest = "SELECT max(rowid) - ? FROM refused"
            connection.execute(
                f"DELETE FROM refused WHERE rowid <= ({oldest})",  # noqa: S608
                (KEPT_REFUSED,),
            )
        if last_error:
            query = "INSERT OR REPLACE INTO meta VALUES ('last_error', ?)"
            connection.execute(query, (last_error[:1000],))

    def _shrink(self) -> None:
        with self._reading() as connection:
            if connection.execute("PRAGMA freelist_count").fetchone()[0] > _FREE_PAGES:
                # `execute` would take one step of it, which is one page.
                connection.executescript(f"PRAGMA incremental_vacuum({_FREE_PAGES // 2})")

    def _settle_run(self, connection: sqlite3.Connection, settled: Settled) -> None:
        run_id = settled.run_id
        for table in ("chunks", "sealed"):
            query = f"DELETE FROM {table} WHERE run_id = ? AND last <= ?"  # noqa: S608
            connection.execute(query, (run_id, settled.until))
        connection.execute("DELETE FROM done WHERE run_id = ?", (run_id,))
        left = "SELECT EXISTS (SELECT 1 FROM chunks WHERE run_id = ?)"
        if not connection.execute(left, (run_id,)).fetchone()[0]:
            connection.execute("DELETE FROM runs WHERE run_id = ?", (run_id,))
            return
        values = (run_id, settled.until)
        connection.execute("INSERT OR REPLACE INTO runs VALUES (?, ?)", values)
        rows = [(run_id, first, last) for first, last in settled.done]
        connection.executemany("INSERT INTO done VALUES (?, ?, ?)", rows)

    def _insert(self, connection: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        self._insert_rows(connection, "chunks", rows)

    def _insert_tokens(self, connection: sqlite3.Connection, changes: Changes) -> None:
        connection.executemany(
            "INSERT OR REPLACE INTO sealed VALUES (?, ?, ?, ?)",
            [
                (each.run_id, first, last, each.retry_token)
                for each in changes.sealed
                for first, last in each.ranges
            ],
        )

    def _insert_rows(
        self, connection: sqlite3.Connection, table: str, rows: Iterable[tuple[Any, ...]]
    ) -> None:
        """*rows*, which end with their checksum; tables of format 1 have no place for that."""
        if self.format < 2:
            rows = (row[:-1] for row in rows)
        marks = ", ".join("?" * (_COLUMNS[table] - (self.format < 2)))
        connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)  # noqa: S608

    def _put_aside(self, connection: sqlite3.Connection, table: str, rowid: int) -> None:
        """Move a damaged row to where nothing waits for it."""
        place = "run_id, first, last" if table == "chunks" else "run_id, 0, 0"
        # A damaged row may have a NULL where `lay_out` allows none.
        columns = ", ".join(f"ifnull({each}, 0)" for each in [*place.split(", "), "body"])
        which = f"FROM {table} WHERE rowid = ?"
        connection.execute(f"INSERT INTO unreadable SELECT {columns} {which}", (rowid,))
        connection.execute(f"DELETE {which}", (rowid,))

    def requeue_refused(self) -> int:
        """Have the refused records wait once more; how many do.

        They leave one table in the transaction in which they enter the other, so that none is sent
        twice, whatever happens in between.  They come behind what waits already: a tag among them
        overwrites what was set since.
        """
        waiting: dict[str, list[AnyRecord]] = defaultdict(list)
        with self._transaction() as connection:
            for row in connection.execute(self._refused_query()).fetchall():
                rejected = self._rejected(row)
                if rejected is None:
                    self._put_aside(connection, "refused", row[0])
                else:
                    waiting[rejected.run_id].append(rejected.record)
            now = time.time()
            for run_id, records in waiting.items():
                first = self._end_of(connection, run_id)
                rows = (
                    _chunk_row(run_id, first + at, records[at : at + CHUNK], now)
                    for at in range(0, len(records), CHUNK)
                )
                self._insert_rows(connection, "chunks", rows)
            connection.execute("DELETE FROM refused")
        return sum(map(len, waiting.values()))

    def _end_of(self, connection: sqlite3.Connection, run_id: str) -> int:
        """A sequence number that is beyond all that is known of a run."""
        ends = [0]
        for column, table in (
            ("last", "chunks"),
            ("last", "sealed"),
            ("last", "done"),
            ("settled", "runs"),
        ):
            query = f"SELECT max({column}) FROM {table} WHERE run_id = ?"  # noqa: S608
            ends += connection.execute(query, (run_id,)).fetchone()
        return max(end for end in ends if type(end) is int)

    def discard(self) -> None:
        """Remove the file with all that is in it."""
        with self._lock:
            self.let_go()
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
        try:
            found = Identity(meta["endpoint"], meta["platform_id"], meta["workspace"])
        except KeyError:
            found = None
        if found is None or not all(map(_is_encodable, meta.values())):
            message = f"{self.path} is damaged, and left untouched: it doesn't say whose records"
            raise SpoolError(message)
        return found

    def _meta(self) -> dict[str, str]:
        with self._reading() as connection:
            return dict(connection.execute("SELECT name, value FROM meta").fetchall())

    def load(self, run_id: str, first: int, last: int) -> list[AnyRecord]:
        """The records *first* to *last* (exclusive) of a run, or as many as can be read.

        Raises `SpoolUnreadable` when the very first can't; never comes back empty.
        """
        records: list[AnyRecord] = []
        query = (
            f"SELECT first, last, body, {self._checksum} FROM chunks "  # noqa: S608
            "WHERE run_id = ? AND first < ? AND last > ? ORDER BY first"
        )
        with self._reading() as connection:
            for start, end, body, checksum in connection.execute(query, (run_id, last, first)):
                position = first + len(records)
                if start > position or position >= last:
                    break
                chunk = _records_of(run_id, start, end, body, checksum)
                # A damaged row may pretend to be longer than it is, and another follow.
                records += chunk[position - start : last - start] if chunk else []
        if records or first == last:
            return records
        return self._raise_unreadable(run_id, first, last)

    def _raise_unreadable(self, run_id: str, first: int, last: int) -> NoReturn:
        with self._reading() as connection:
            query = (
                "SELECT min(CASE WHEN first <= ? THEN last ELSE first END) FROM chunks "
                "WHERE run_id = ? AND last > ? "
                "AND typeof(first) = 'integer' AND typeof(last) = 'integer'"
            )
            until = connection.execute(query, (first, run_id, first)).fetchone()[0] or last
        message = f"{self.path}: records {first} to {until} of run {run_id!r} are damaged"
        raise SpoolUnreadable(message, until)

    def pieces(self) -> list[Piece]:
        """What is still to be delivered, run by run."""
        with self._reading() as connection:
            settled = dict(connection.execute("SELECT run_id, settled FROM runs").fetchall())
            chunks = _by_run(
                place for _, *place in connection.execute(_PLACES) if _is_place(*place)
            )
            done = _by_run(
                row
                for row in connection.execute("SELECT run_id, first, last FROM done")
                if _is_span(*row[1:])
            )
            sealed = _by_run(
                row
                for row in connection.execute("SELECT run_id, first, last, token FROM sealed")
                if _is_span(*row[1:3]) and _is_token(row[3])
            )
        pieces = [
            self._piece(run_id, rows, settled.get(run_id, 0), done[run_id], sealed[run_id])
            for run_id, rows in chunks.items()
        ]
        return [piece for piece in pieces if piece.spilled or piece.sealed]

    def _piece(
        self,
        run_id: str,
        chunks: list[tuple[Any, ...]],
        settled: object,
        done: list[tuple[Any, ...]],
        sealed: list[tuple[Any, ...]],
    ) -> Piece:
        ranges = _unsettled(chunks, settled if type(settled) is int else 0, done)
        batches = []
        for token, parts in _by_token(sealed).items():
            if all(_is_within(part, ranges) for part in parts):
                records = self._load_whole(run_id, parts)
                if records:
                    batches.append((tuple(parts), token, records))
                    for first, last in parts:
                        ranges = without(ranges, first, last)
        return Piece(run_id, tuple(ranges), tuple(batches), max(row[1] for row in chunks))

    def _load_whole(self, run_id: str, parts: list[tuple[int, int]]) -> list[AnyRecord]:
        """The records of a sealed batch; none when one of them is damaged."""
        records: list[AnyRecord] = []
        for first, last in parts:
            try:
                records += self.load(run_id, first, last)
            except SpoolUnreadable:
                return []  # found again, and said, when they are read one row after the other
        return records if len(records) == sum(last - first for first, last in parts) else []

    def contents(self) -> Contents:
        """What a person wants to know of it."""
        meta = self._meta()
        with self._reading() as connection:
            refused = connection.execute(self._refused_query()).fetchall()
            damaged = int(connection.execute("SELECT count(*) FROM unreadable").fetchone()[0])
            places = connection.execute(_PLACES).fetchall()
        rejected = [row for each in refused if (row := self._rejected(each)) is not None]
        damaged += len(refused) - len(rejected)
        damaged += sum(not _is_place(*place) for _, *place in places)
        return Contents(
            self.path,
            self.identity,
            tuple(self._run_rows()),
            tuple(rejected),
            meta.get("last_error", ""),
            f"{damaged} rows are damaged and put aside" if damaged else "",
        )

    def _run_rows(self) -> Iterator[RunRow]:
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT run_id, sum(metrics), sum(params), sum(tags), min(accepted_at) "
                "FROM chunks GROUP BY run_id ORDER BY min(accepted_at)"
            ).fetchall()
        gone = {run_id: self._settled_counts(run_id) for run_id in self._partly_settled()}
        for run_id, metrics, params, tags, oldest in rows:
            if not _is_run_id(run_id):
                continue
            less = gone.get(run_id, (0, 0, 0))
            left = [
                max(0, int(count) - less) if isinstance(count, int | float) else 0
                for count, less in zip((metrics, params, tags), less, strict=True)
            ]
            since = oldest if isinstance(oldest, float) else time.time()
            row = RunRow(run_id, left[0], left[1], left[2], since)
            if row.records:
                yield row

    def _partly_settled(self) -> list[str]:
        with self._reading() as connection:
            rows = connection.execute("SELECT run_id, settled FROM runs").fetchall()
        return [run_id for run_id, until in rows if _is_run_id(run_id) and type(until) is int]

    def _settled_counts(self, run_id: str) -> tuple[int, int, int]:
        """Settled records by kind, in rows that still hold others."""
        with self._reading() as connection:
            query = "SELECT settled FROM runs WHERE run_id = ?"
            until = connection.execute(query, (run_id,)).fetchone()[0]
            query = "SELECT first, last FROM done WHERE run_id = ?"
            done = connection.execute(query, (run_id,)).fetchall()
            spans = [(0, until), *(span for span in done if _is_span(*span))]
            query = (
                f"SELECT first, last, body, {self._checksum} FROM chunks "  # noqa: S608
                "WHERE run_id = ? AND first < ? AND last > ?"
            )
            settled: list[AnyRecord] = []
            for first, last in spans:
                for start, *row in connection.execute(query, (run_id, last, first)):
                    records = _records_of(run_id, start, *row) or []
                    settled += records[max(0, first - start) : last - start]
        return _counts(settled)

    def waiting(self) -> Iterator[tuple[str, AnyRecord]]:
        """Every record that is still to be delivered, with its run, in order."""
        for piece in self.pieces():
            sealed = [part for parts, _, _ in piece.sealed for part in parts]
            for first, last in joined(sorted([*piece.spilled, *sealed])):
                yield from ((piece.run_id, record) for record in self._readable(piece, first, last))

    def _readable(self, piece: Piece, first: int, last: int) -> Iterator[AnyRecord]:
        while first < last:
            try:
                records = self.load(piece.run_id, first, min(last, first + LOADED))
            except SpoolUnreadable as error:
                first = error.until
            else:
                yield from records
                first += len(records)

    @property
    def _checksum(self) -> str:
        return "checksum" if self.format > 1 else "NULL"

    def _refused_query(self) -> str:
        return (
            f"SELECT rowid, run_id, kind, key, body, reason, refused_at, {self._checksum} "  # noqa: S608
            "FROM refused ORDER BY rowid"
        )

    def _rejected(self, row: Any) -> RejectedRow | None:
        """A row of `_refused_query`; None when it is damaged."""
        _, run_id, kind, key, body, reason, refused_at, checksum = row
        texts = (run_id, kind, key, reason)
        if not (all(map(_is_encodable, texts)) and run_id and isinstance(refused_at, float)):
            return None
        if checksum not in (None, _checksum_of(body, *texts)):
            return None
        try:
            (record,) = unpack(body)
        except DAMAGED:
            return None
        return RejectedRow(run_id, kind, key, record, reason, refused_at)

    # ------------------------------------------------------------------ SQLite

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, as_ours(self.path):
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
        with self._lock, as_ours(self.path):
            yield self._connection


def _make(path: Path) -> os.stat_result:
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    try:
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)


def _counts(records: Sequence[AnyRecord]) -> tuple[int, int, int]:
    kinds = [type(record) for record in records]
    return kinds.count(Metric), kinds.count(Param), kinds.count(RunTag)


def _chunk_row(
    run_id: str, first: int, records: Sequence[AnyRecord], now: float
) -> tuple[Any, ...]:
    last, body = first + len(records), pack(records)
    checksum = _checksum_of(body, run_id, first, last)
    return (run_id, first, last, *_counts(records), body, now, checksum)


def _refused_row(refused: Refused, now: float) -> tuple[Any, ...]:
    rejection = refused.rejection
    reason = str(rejection.cause)[:2000].encode("utf-8", "replace").decode()
    texts = (rejection.run_id, rejection.kind, rejection.key, reason)
    body = pack([refused.record])
    return (*texts[:3], body, reason, now, _checksum_of(body, *texts))


# ---------------------------------------------------------------------- what may be damaged

#: A row that says it holds more has another's number.
_LONGEST_ROW: Final = 1_000_000
#: Where the rows of chunks say they belong.
_PLACES: Final = "SELECT rowid, run_id, first, last FROM chunks"
#: How many columns the tables have, with the checksum.
_COLUMNS: Final = {"chunks": 9, "refused": 7}


def _checksum_of(body: object, *place: object) -> int | None:
    """CRC-32 of a row: its body, and where that belongs."""
    if not isinstance(body, bytes):
        return None
    return zlib.crc32(body, zlib.crc32("\0".join(map(str, place)).encode()))


def _records_of(
    run_id: str, first: object, last: object, body: object, checksum: object
) -> list[AnyRecord] | None:
    """The records of a row of chunks; None when it is damaged.  *checksum*: None in format 1."""
    if not _is_span(first, last) or checksum not in (None, _checksum_of(body, run_id, first, last)):
        return None
    try:
        records = unpack(body)
    except DAMAGED:
        return None
    return records if len(records) == last - first else None  # type: ignore[operator]


def _is_place(run_id: object, first: Any, last: Any) -> bool:
    return _is_run_id(run_id) and _is_span(first, last) and int(last - first) <= _LONGEST_ROW


def _is_span(first: object, last: object) -> bool:
    return type(first) is int and type(last) is int and 0 <= first < last <= _LAST_POSSIBLE


def _is_run_id(run_id: object) -> bool:
    return _is_encodable(run_id) and bool(run_id)


def _is_encodable(text: object) -> bool:
    try:
        return isinstance(text, str) and text.encode() is not None
    except UnicodeEncodeError:
        return False


def _is_token(token: object) -> bool:
    try:
        return check_retry_token(token) == token  # type: ignore[arg-type]
    except ValueError:
        return False


# ---------------------------------------------------------------------- ranges


def _by_token(sealed: Iterable[tuple[Any, ...]]) -> dict[str, list[tuple[int, int]]]:
    """The ranges of each batch that was sealed: a batch that was taken apart has several."""
    batches: dict[str, list[tuple[int, int]]] = {}
    for first, last, token in sorted(sealed):
        batches.setdefault(token, []).append((first, last))
    return batches


def _is_within(part: tuple[int, int], ranges: Iterable[tuple[int, int]]) -> bool:
    return any(start <= part[0] and part[1] <= end for start, end in ranges)


def _by_run(rows: Iterable[Sequence[Any]]) -> dict[str, list[tuple[Any, ...]]]:
    """*rows* without their run, by run."""
    groups: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
    for run_id, *row in rows:
        groups[run_id].append(tuple(row))
    return groups


def _unsettled(
    chunks: Iterable[tuple[Any, ...]], settled: int, done: Iterable[tuple[Any, ...]]
) -> list[tuple[int, int]]:
    """What of *chunks* has no end yet: not before *settled*, and in none of the spans of *done*."""
    ranges = joined(sorted((max(row[0], settled), row[1]) for row in chunks if row[1] > settled))
    for first, last in done:
        ranges = without(ranges, first, last)
    return ranges


# ---------------------------------------------------------------------- forks

_CLOSED: Final = sqlite3.connect(":memory:", check_same_thread=False)
_CLOSED.close()

_open_spools: weakref.WeakSet[Spool] = weakref.WeakSet()
#: Those that are locked while this process forks, and who forks.
_held: list[Spool] = []
_forking = threading.RLock()


def _before_fork() -> None:
    """Keep threads out of SQLite: a child inherits its locks, not the threads that release them."""
    _forking.acquire()
    spools = list(_open_spools)
    _held.extend(each for each in spools if each._lock.acquire(timeout=_LONGEST_WAIT))


def _after_fork_in_parent() -> None:
    while _held:
        _held.pop()._lock.release()
    _forking.release()


def _after_fork_in_child() -> None:
    global _forking
    _forking = threading.RLock()
    _held.clear()
    for spool in list(_open_spools):
        spool.disown()
    _open_spools.clear()


if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows has no fork
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
