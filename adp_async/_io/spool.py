"""A spool: one SQLite file with what a process accepted and had not delivered yet.

Everything here blocks and belongs in a worker thread; a lock makes it thread-safe.  Commits are
atomic and outlive the process (WAL, ``synchronous=NORMAL``: a crash of the machine may take the
last of them, one of the process may not).

Here it is opened and closed; what is in it is written by `spool_writer`, read by `spool_reader`
and shown by `spool_report`, row by row (`spool_rows`), through one `spool_database`.  Where the
file is, which tables it has and whether it may be opened are `spool_file`, `spool_schema` and
`spool_trust`.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
import weakref
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from adp_async._io.log import logger
from adp_async._io.owner import Owner
from adp_async._io.spool_aside import Aside
from adp_async._io.spool_database import Database
from adp_async._io.spool_file import (
    Identity,
    SpoolBusy,
    SpoolError,
    check_folder,
    file_id,
    is_open_elsewhere,
    is_still,
    new_name,
    remove,
)
from adp_async._io.spool_reader import Piece, Reader
from adp_async._io.spool_report import Contents, contents_of
from adp_async._io.spool_rows import checksum_of, is_encodable, is_place, records_of, start_of
from adp_async._io.spool_schema import FORMAT, check_pages, check_schema, connect, lay_out
from adp_async._io.spool_trust import check_header, check_is_ours, check_owner
from adp_async._io.spool_writer import Writer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from adp_async._sansio.journal import Changes
    from adp_async._sansio.records import AnyRecord
    from adp_async._sansio.run_start import RunStart

__all__ = ["Contents", "Piece", "Spool"]

#: Seconds that a fork waits for a commit in progress.
_LONGEST_WAIT: Final = 1.0


class Spool:
    """An open spool.  Open one with `create` or `open`; `close` releases the file."""

    def __init__(self, database: Database, limit: int, *, is_taken: bool = False) -> None:
        self._database = database
        self._reader = Reader(database)
        self._writer = Writer(database, limit, is_first=is_taken)
        #: Records that do not count yet.
        self.aside = Aside(database, limit)
        #: Whether the file names this process as its owner.
        self._is_taken = is_taken
        #: Others will ask again, and the next process knows from it what they have handed over.
        self.is_continued = False
        _open_spools.add(self)

    def __repr__(self) -> str:
        return f"<Spool {self.path}>"

    @property
    def path(self) -> Path:
        """Where it is."""
        return self._database.path

    @property
    def size(self) -> int:
        """Bytes in use, without free pages."""
        return self._database.size

    @property
    def identity(self) -> Identity:
        """Whose records these are; `SpoolError` when the file does not say."""
        meta = self._database.meta()
        try:
            found = Identity(meta["endpoint"], meta["platform_id"], meta["workspace"])
        except KeyError:
            found = None
        if found is None or not all(map(is_encodable, meta.values())):
            message = f"{self.path} is damaged, and left untouched: it doesn't say whose records"
            raise SpoolError(message)
        return found

    # ------------------------------------------------------------------ opening and closing

    @classmethod
    def create(cls, folder: Path, identity: Identity, *, limit: int) -> Spool:
        """A new spool of this process, in *folder*, which is made for its owner alone."""
        folder = folder.absolute()  # the working folder may change
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            check_folder(folder, to_create=True)
            path = folder / new_name()
            facts = _make(path)
        except OSError as error:
            raise SpoolError(f"a spool cannot be created in {folder}: {error.strerror}") from error
        try:
            # A file that isn't ours now could not be recovered later, either.
            check_is_ours(path, facts)
            owner = Owner.this_process(facts.st_ino)
            connection = connect(path, lambda new: lay_out(new, identity, owner))
        except SpoolError:
            remove(path)
            raise
        database = Database(path, connection, file_id(facts), FORMAT)
        return cls(database, limit, is_taken=True)

    @classmethod
    def open(cls, path: Path, *, limit: int) -> Spool:
        """Open the spool of another process.

        Raises `SpoolBusy` while that is, or may be, alive (see `owner`), `SpoolNewer`,
        `SpoolUntrusted` for one that isn't this user's, and `SpoolError` for a damaged file, which
        is left untouched.
        """
        path = path.absolute()
        header = check_header(path, [each._database.file for each in list(_open_spools)])
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
        return cls(Database(path, connection, header.file, header.format), limit)

    def take(self) -> int:
        """Name this process as the owner, and set damaged rows aside; returns how many.

        All rows are looked at now: one that turns out damaged later would have those before it
        wait for what comes after it.
        """
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO meta VALUES ('owner', ?)",
                (Owner.this_process(self._database.file[1]).as_text(),),
            )
            columns = f"rowid, run_id, first, last, body, {self._database.checksum}"
            query = f"SELECT {columns} FROM chunks"  # noqa: S608
            damaged = [row[:4] for row in connection.execute(query) if not _is_sound(*row[1:])]
            for rowid, *_ in damaged:
                self._database.put_aside(connection, "chunks", rowid)
            for key, *row in self._database.starts():
                if start_of(key, *row) is None:
                    self._database.put_start_aside(connection, key)
        self._is_taken = True
        if damaged:
            _, run_id, first, last = damaged[0]
            more = f", and {len(damaged) - 1} more rows" if len(damaged) > 1 else ""
            message = "%s: records %s to %s of run %r are damaged and set aside%s"
            about = {"run_id": run_id}
            logger.warning(message, self.path, first, last, run_id, more, extra=about)
        with self._database.reading() as connection:
            # The owner is read from the file, not from the WAL.
            connection.execute("PRAGMA wal_checkpoint")
        return len(damaged)

    def close(self, is_all_settled: bool = False) -> None:
        """Release the file, and remove it if it is empty.

        *is_all_settled*: none of its records or runs waits, whatever its rows say.
        """
        with self._database.lock:
            try:
                is_empty = not (self._has_rows(is_all_settled) or self._is_asked_for())
            except SpoolError:
                is_empty = False
            is_empty = is_empty and self._database.is_there
            self._release(is_left=not is_empty)
            if is_empty:
                self._remove()

    def _remove(self) -> None:
        """Remove the empty file; another process that looks at it on Windows does so itself."""
        try:
            remove(self.path)
        except OSError as error:
            if not is_open_elsewhere(error):
                raise
            logger.debug("%s is empty, and left to the process that has it open", self.path)

    def release(self) -> None:
        """Close the file and leave it as it is, for the next process."""
        self._release(is_left=True)

    def _release(self, *, is_left: bool) -> None:
        with self._database.lock:
            if self._is_taken and is_left:
                try:
                    self._database.connection.execute("DELETE FROM meta WHERE name = 'owner'")
                except sqlite3.Error as error:
                    logger.debug("%s names its owner until that ends: %s", self.path, error)
            self._is_taken = False
            self._database.connection.close()
            _open_spools.discard(self)

    def disown(self) -> None:
        """In a forked child: the file is the parent's, and nothing here reaches it any more."""
        self._database.disown()
        self._is_taken = False

    def _has_rows(self, is_all_settled: bool) -> bool:
        with self._database.reading() as connection:
            query = (
                "SELECT EXISTS (SELECT 1 FROM chunks WHERE NOT ?) "
                "OR EXISTS (SELECT 1 FROM refused) OR EXISTS (SELECT 1 FROM unreadable)"
            )
            has_records = connection.execute(query, (is_all_settled,)).fetchone()[0]
        return bool(has_records or (self._database.starts() and not is_all_settled))

    def _is_asked_for(self) -> bool:
        return self.is_continued and bool(self.aside or self.taken())

    def discard(self) -> None:
        """Remove the file with all that is in it."""
        with self._database.lock:
            self.release()
            remove(self.path)

    # ------------------------------------------------------------------ what it holds

    def commit(self, changes: Changes, last_error: str = "") -> None:
        """Write *changes*.  `SpoolError` says that their chunks are not written, and why."""
        self._writer.commit(changes, last_error)

    def requeue_refused(self) -> int:
        """Queue the refused records again; returns how many."""
        return self._writer.requeue_refused()

    def load(self, run_id: str, first: int, last: int) -> list[AnyRecord]:
        """The records *first* to *last* (exclusive) of a run, or as many as can be read.

        Raises `SpoolUnreadable` when the very first can't; never comes back empty.
        """
        return self._reader.load(run_id, first, last)

    def pieces(self) -> list[Piece]:
        """What is still to be delivered, run by run."""
        return self._reader.pieces()

    def starts(self) -> list[RunStart]:
        """The runs that its process had started and not ended, in the order of their start."""
        found = [start for row in self._database.starts() if (start := start_of(*row)) is not None]
        return sorted(found, key=attrgetter("start_time", "key"))

    @property
    def written_at(self) -> float:
        """When its own process last wrote to it, in Unix seconds; 0.0 when that is not known."""
        try:
            return float(self._database.meta().get("written_at", ""))
        except ValueError:
            return 0.0

    def waiting(self) -> Iterator[tuple[str, AnyRecord]]:
        """Every record that is still to be delivered, with its run, in order."""
        return self._reader.waiting()

    def taken(self) -> list[tuple[str, float]]:
        """Tokens under which other processes handed records over, each with its Unix time."""
        return self._reader.taken()

    def adopt(self, other: Spool) -> None:
        """Take over what *other*, which is about to go, knows of processes that ask again."""
        if taken := other.taken():
            self._writer.adopt(taken)
        self.aside.take_over(other.aside)

    def contents(self) -> Contents:
        """A summary of what it holds, for a person."""
        return contents_of(self._database, self.identity)


def _make(path: Path) -> os.stat_result:
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    try:
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)


def _is_sound(run_id: Any, first: Any, last: Any, body: Any, checksum: Any) -> bool:
    if not is_place(run_id, first, last):
        return False
    if checksum is None:  # format 1: only reading it can tell
        return records_of(run_id, first, last, body, checksum) is not None
    # A row of format 2 with its checksum is as it was written.
    return bool(checksum == checksum_of(body, run_id, first, last))


# ---------------------------------------------------------------------- forks

_open_spools: weakref.WeakSet[Spool] = weakref.WeakSet()
#: Spools that are locked while this process forks; and the lock of the fork itself.
_held: list[Spool] = []
_forking = threading.RLock()


def _before_fork() -> None:
    """Keep threads out of SQLite: a child inherits its locks, not the threads that release them."""
    _forking.acquire()
    spools = list(_open_spools)
    _held.extend(each for each in spools if each._database.lock.acquire(timeout=_LONGEST_WAIT))


def _after_fork_in_parent() -> None:
    while _held:
        _held.pop()._database.lock.release()
    _forking.release()


def _after_fork_in_child() -> None:
    global _forking
    _forking = threading.RLock()
    _held.clear()
    for spool in list(_open_spools):
        spool.disown()
    _open_spools.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
