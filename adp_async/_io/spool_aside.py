"""What attempts of tasks have handed over and that does not count yet: held aside in the spool.

It counts when its attempt ends well, and is thrown away when it does not, or when another attempt
of the same task was first.
"""

from __future__ import annotations

import sys
import time
import zlib
from typing import TYPE_CHECKING, Any, Final

from attrs import frozen

from adp_async._io.log import logger
from adp_async._io.spool_file import SpoolLimit
from adp_async._sansio.packing import pack, unpack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adp_async._io.spool_database import Database
    from adp_async._sansio.records import AnyRecord

_COLUMNS: Final = "token, run_id, task, attempt, count, body, accepted_at, checksum"


@frozen
class Attempt:
    """One attempt of a task, which logs into the run *run_id*."""

    run_id: str
    task: str
    name: str


class Aside:
    """The table of records held aside, in *database*."""

    def __init__(self, database: Database, limit: int = sys.maxsize) -> None:
        self._database = database
        self._limit = limit

    def put(self, attempt: Attempt, token: str, records: Sequence[AnyRecord]) -> None:
        """Hold *records* aside, which came under *token*; once, however often this is called.

        Raises `SpoolLimit` when the file has reached its limit of bytes.
        """
        if self._database.size >= self._limit:
            path = self._database.path
            raise SpoolLimit(f"{path} has reached spool_limit, {self._limit} bytes")
        body = pack(records)
        of = (token, attempt.run_id, attempt.task, attempt.name, len(records))
        self._insert([(*of, body, time.time(), _checksum(body, of))])

    def take_over(self, other: Aside) -> None:
        """What *other* holds, whose file is about to go."""
        if rows := other._rows():
            self._insert(rows)

    def _insert(self, rows: Sequence[tuple[Any, ...]]) -> None:
        with self._database.transaction() as connection:
            connection.executemany("INSERT OR IGNORE INTO aside VALUES (?,?,?,?,?,?,?,?)", rows)

    def _rows(self) -> list[tuple[Any, ...]]:
        if self._database.version < 3:
            return []
        with self._database.reading() as connection:
            found = connection.execute(f"SELECT {_COLUMNS} FROM aside ORDER BY rowid").fetchall()  # noqa: S608
        return [row for row in found if _is_sound(row)]

    def of(self, attempt: Attempt) -> list[AnyRecord]:
        """What *attempt* has handed over, in its order."""
        records: list[AnyRecord] = []
        for _, run_id, task, name, _, body, *_ in self._rows_of(attempt):
            assert (run_id, task, name) == (attempt.run_id, attempt.task, attempt.name)
            records += unpack(body)
        return records

    def _rows_of(self, attempt: Attempt) -> list[tuple[Any, ...]]:
        query = (
            f"SELECT {_COLUMNS} FROM aside WHERE run_id = ? AND task = ? AND attempt = ? "  # noqa: S608
            "ORDER BY rowid"
        )
        key = (attempt.run_id, attempt.task, attempt.name)
        with self._database.reading() as connection:
            rows = connection.execute(query, key).fetchall()
        sound = [row for row in rows if _is_sound(row)]
        if len(sound) < len(rows):
            message = "%s: %d of %d requests of an attempt of %r are damaged and left out"
            damaged = len(rows) - len(sound)
            logger.warning(message, self._database.path, damaged, len(rows), attempt.task)
        return sound

    def counts(self) -> dict[Attempt, int]:
        """How many records each attempt has here."""
        counts: dict[Attempt, int] = {}
        for _, run_id, task, name, count, *_ in self._rows():
            attempt = Attempt(run_id, task, name)
            counts[attempt] = counts.get(attempt, 0) + count
        return counts

    def __bool__(self) -> bool:
        """Whether it holds anything."""
        if self._database.version < 3:
            return False
        with self._database.reading() as connection:
            (found,) = connection.execute("SELECT EXISTS (SELECT 1 FROM aside)").fetchone()
        return bool(found)

    def forget_before(self, unix_time: float) -> int:
        """Forget attempts that have handed over nothing since then; returns how many records."""
        with self._database.transaction() as connection:
            old = connection.execute(
                "SELECT run_id, task, attempt, sum(count) FROM aside "
                "GROUP BY run_id, task, attempt HAVING max(accepted_at) < ?",
                (unix_time,),
            ).fetchall()
            connection.executemany(
                "DELETE FROM aside WHERE run_id = ? AND task = ? AND attempt = ?",
                [row[:3] for row in old],
            )
        return sum(count for *_, count in old)

    def drop(self, attempts: Sequence[Attempt]) -> None:
        """Forget what these attempts have handed over."""
        keys = [(each.run_id, each.task, each.name) for each in attempts]
        with self._database.transaction() as connection:
            connection.executemany(
                "DELETE FROM aside WHERE run_id = ? AND task = ? AND attempt = ?", keys
            )


def _checksum(body: bytes, of: tuple[Any, ...]) -> int:
    return zlib.crc32(body, zlib.crc32("\0".join(map(str, of)).encode()))


def _is_sound(row: tuple[Any, ...]) -> bool:
    *of, body, _, checksum = row
    return isinstance(body, bytes) and checksum == _checksum(body, tuple(of))
