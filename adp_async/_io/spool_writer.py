"""Writes a spool: records that were accepted, sealed, settled or refused."""

from __future__ import annotations

import time
from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from adp_async._io.spool_file import SpoolError, SpoolFull, SpoolLimit, SpoolReserve, has_room
from adp_async._io.spool_rows import chunk_row, refused_row, rejected_of, start_row
from adp_async._sansio.journal import CHUNK

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Sequence

    from adp_async._io.spool_database import Database
    from adp_async._sansio.journal import Changes, Settled
    from adp_async._sansio.records import AnyRecord

#: Refused records that are kept for a person to see.
KEPT_REFUSED: Final = 10_000
#: Seconds that a token is remembered under which records were handed over: as the service does.
TAKEN_KEPT: Final = 24 * 3600.0
#: After so many of them, those that are older are forgotten.
FORGETTING: Final = 10_000


class Writer:
    """Writes into *database*, which may grow to *limit* bytes.

    *is_first*: for the process that has made it.  Then each commit is dated: the last one is the
    last sign of life of a process that is killed.
    """

    def __init__(self, database: Database, limit: int, *, is_first: bool) -> None:
        self._database = database
        self.limit = limit
        self._is_first = is_first
        #: Tokens noted since old ones were forgotten.
        self._taken = 0

    def commit(self, changes: Changes, last_error: str = "") -> None:
        """Write *changes*.  `SpoolError` says that their chunks are not written, and why."""
        if not self._database.is_there:  # SQLite would keep writing to a file without a name
            changes.is_settled = True  # no file is left to say otherwise
            raise SpoolError(f"{self._database.path} was removed while it was in use")
        if changes.ends or last_error:
            self._make_room_for(partial(self._commit_ends, changes, last_error))
            changes.is_settled = True
            self._database.shrink()
        if changes.chunks or changes.sealed or changes.taken:
            self._make_room_for(partial(self._commit_records, changes))

    def _commit_ends(self, changes: Changes, last_error: str) -> None:
        with self._database.transaction() as connection:
            self._settle(connection, changes, last_error)
            self._date(connection)

    def _commit_records(self, changes: Changes) -> None:
        now = time.time()
        rows = [chunk_row(each.run_id, each.first, each.records, now) for each in changes.chunks]
        obstacle = None if changes.is_due else self._obstacle(rows)
        with self._database.transaction() as connection:
            if obstacle is None:
                self._insert(connection, rows)
                self._note_taken(connection, [(token, now) for token in changes.taken])
            # Tokens of records that are on disk already: delivering those makes room.
            self._insert_tokens(connection, changes)
            self._date(connection)
        if obstacle is not None:
            raise obstacle

    def _date(self, connection: sqlite3.Connection) -> None:
        if self._is_first:
            query = "INSERT OR REPLACE INTO meta VALUES ('written_at', ?)"
            connection.execute(query, (f"{time.time():.3f}",))

    def _make_room_for(self, commit: Callable[[], None]) -> None:
        """Call *commit*; when the disk has no room for it, make some and call it again."""
        try:
            commit()
        except (SpoolFull, SpoolReserve):
            if not self._database.fold():
                raise
            commit()

    def _obstacle(self, rows: Sequence[tuple[Any, ...]]) -> SpoolLimit | None:
        """Why *rows* of chunks may not be written, or None."""
        if not rows:
            return None
        if self._database.size >= self.limit:
            return SpoolLimit(f"{self._database.path} has reached spool_limit, {self.limit} bytes")
        if has_room(self._database.path, sum(len(body) for *_, body, _, _ in rows)):
            return None
        return SpoolReserve(f"{self._database.path}: the disk is full")

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
        self._note_runs(connection, changes)
        if changes.refused:
            now = time.time()
            rejected = [refused_row(each, now) for each in changes.refused]
            self._database.insert_rows(connection, "refused", rejected)
            oldest = "SELECT max(rowid) - ? FROM refused"
            connection.execute(
                f"DELETE FROM refused WHERE rowid <= ({oldest})",  # noqa: S608
                (KEPT_REFUSED,),
            )
        if last_error:
            query = "INSERT OR REPLACE INTO meta VALUES ('last_error', ?)"
            connection.execute(query, (last_error[:1000],))

    def _note_runs(self, connection: sqlite3.Connection, changes: Changes) -> None:
        """In a file of an older format no run is started; what is in it was not, either."""
        if self._database.version < 3:
            return
        ended = [(key,) for key in changes.ended]
        connection.executemany("DELETE FROM starts WHERE run_id = ?", ended)
        rows = map(start_row, changes.starts)
        connection.executemany("INSERT OR REPLACE INTO starts VALUES (?, ?, ?)", rows)

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
        self._database.insert_rows(connection, "chunks", rows)

    def _insert_tokens(self, connection: sqlite3.Connection, changes: Changes) -> None:
        connection.executemany(
            "INSERT OR REPLACE INTO sealed VALUES (?, ?, ?, ?)",
            [
                (each.run_id, first, last, each.retry_token)
                for each in changes.sealed
                for first, last in each.ranges
            ],
        )

    def adopt(self, taken: Sequence[tuple[str, float]]) -> None:
        """Note tokens under which records came to another process; each with its date."""
        with self._database.transaction() as connection:
            self._note_taken(connection, taken)

    def _note_taken(
        self, connection: sqlite3.Connection, taken: Sequence[tuple[str, float]]
    ) -> None:
        if not taken:  # older formats have no table for them
            return
        connection.executemany("INSERT OR IGNORE INTO taken VALUES (?, ?)", taken)
        self._taken += len(taken)
        if self._taken > FORGETTING:
            self._taken = 0
            connection.execute("DELETE FROM taken WHERE taken_at < ?", (time.time() - TAKEN_KEPT,))

    def requeue_refused(self) -> int:
        """Queue the refused records again; returns how many.

        They move from one table to the other in one transaction, so that none is sent twice.  They
        come after the records that are waiting already: a tag among them overwrites one that was
        set since.
        """
        waiting: dict[str, list[AnyRecord]] = defaultdict(list)
        with self._database.transaction() as connection:
            for row in self._database.refused():
                rejected = rejected_of(row)
                if rejected is None:
                    self._database.put_aside(connection, "refused", row[0])
                else:
                    waiting[rejected.run_id].append(rejected.record)
            now = time.time()
            for run_id, records in waiting.items():
                first = self._end_of(connection, run_id)
                rows = (
                    chunk_row(run_id, first + at, records[at : at + CHUNK], now)
                    for at in range(0, len(records), CHUNK)
                )
                self._database.insert_rows(connection, "chunks", rows)
            connection.execute("DELETE FROM refused")
        return sum(map(len, waiting.values()))

    def _end_of(self, connection: sqlite3.Connection, run_id: str) -> int:
        """A sequence number beyond all known ones of a run."""
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
