"""The open file of a spool: one connection to SQLite, which any thread may use, one at a time."""

from __future__ import annotations

import ctypes
import os
import sqlite3
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from adp_async._io.log import logger
from adp_async._io.spool_file import is_still
from adp_async._io.spool_schema import as_ours

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from adp_async._io.spool_file import FileId

#: Pages of 4 KiB that may be free before the file shrinks.
_FREE_PAGES: Final = 2048
#: How many columns the tables have, with the checksum.
_COLUMNS: Final = {"chunks": 9, "refused": 7}

_CLOSED: Final = sqlite3.connect(":memory:", check_same_thread=False)
_CLOSED.close()


class Database:
    """The open file *path*, with rows of format *version*.

    *file* is its device and inode when it was opened.  *lock* is held while it is used.
    """

    def __init__(
        self, path: Path, connection: sqlite3.Connection, file: FileId, version: int
    ) -> None:
        self.path = path
        self.connection = connection
        self.file = file
        self.version = version
        self.lock = threading.RLock()

    @property
    def is_there(self) -> bool:
        """Whether *path* is still the name of the file."""
        return is_still(self.path, self.file)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A transaction; SQLite's errors become a `SpoolError`."""
        with self.lock, as_ours(self.path):
            connection = self.connection
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """For single statements; SQLite's errors become a `SpoolError`."""
        with self.lock, as_ours(self.path):
            yield self.connection

    def disown(self) -> None:
        """In a forked child: the file is the parent's, and nothing here reaches it any more."""
        # If the child closed it, even when its interpreter ends, SQLite would believe to be the
        # only user and remove the WAL that the parent keeps writing.  An extra reference prevents
        # that.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.connection))
        self.connection, self.lock = _CLOSED, threading.RLock()

    # ------------------------------------------------------------------ room

    @property
    def size(self) -> int:
        """Bytes in use, without free pages."""
        with self.reading() as connection:
            pages, free, page_size = (
                connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_count", "freelist_count", "page_size")
            )
        return int((pages - free) * page_size)

    def fold(self) -> bool:
        """Give back the space that file and WAL don't need; returns whether there was any."""
        with self.lock:
            connection = self.connection
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

    def shrink(self) -> None:
        """When there are many free pages, give back some of them."""
        with self.reading() as connection:
            if connection.execute("PRAGMA freelist_count").fetchone()[0] > _FREE_PAGES:
                # `execute` would take one step of it, which is one page.
                connection.executescript(f"PRAGMA incremental_vacuum({_FREE_PAGES // 2})")

    # ------------------------------------------------------------------ rows

    @property
    def checksum(self) -> str:
        """The column with a row's checksum, in a query."""
        return "checksum" if self.version > 1 else "NULL"

    def meta(self) -> dict[str, str]:
        """The table of facts about the file."""
        with self.reading() as connection:
            return dict(connection.execute("SELECT name, value FROM meta").fetchall())

    def starts(self) -> list[Any]:
        """Rows of runs that its process had started, for `start_of`."""
        if self.version < 3:
            return []
        with self.reading() as connection:
            return connection.execute("SELECT run_id, body, checksum FROM starts").fetchall()

    def refused(self) -> list[Any]:
        """Rows of refused records, for `rejected_of`; the oldest first."""
        query = (
            f"SELECT rowid, run_id, kind, key, body, reason, refused_at, {self.checksum} "  # noqa: S608
            "FROM refused ORDER BY rowid"
        )
        with self.reading() as connection:
            return connection.execute(query).fetchall()

    def insert_rows(
        self, connection: sqlite3.Connection, table: str, rows: Iterable[tuple[Any, ...]]
    ) -> None:
        """Insert *rows*, which end with a checksum; format 1 has no column for that."""
        if self.version < 2:
            rows = (row[:-1] for row in rows)
        marks = ", ".join("?" * (_COLUMNS[table] - (self.version < 2)))
        connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)  # noqa: S608

    def put_start_aside(self, connection: sqlite3.Connection, key: object) -> None:
        """The same of a row of starts."""
        which = "FROM starts WHERE run_id = ?"
        columns = "run_id, 0, 0, body"
        connection.execute(f"INSERT INTO unreadable SELECT {columns} {which}", (key,))
        connection.execute(f"DELETE {which}", (key,))

    def put_aside(self, connection: sqlite3.Connection, table: str, rowid: int) -> None:
        """Move a damaged row to the table of unreadable ones."""
        place = "run_id, first, last" if table == "chunks" else "run_id, 0, 0"
        # A damaged row may have a NULL where `lay_out` allows none.
        columns = ", ".join(f"ifnull({each}, 0)" for each in [*place.split(", "), "body"])
        which = f"FROM {table} WHERE rowid = ?"
        connection.execute(f"INSERT INTO unreadable SELECT {columns} {which}", (rowid,))
        connection.execute(f"DELETE {which}", (rowid,))
