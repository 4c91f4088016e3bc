"""Reads a spool: the records that are still to be delivered."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, NoReturn

from attrs import frozen

from adp_async._io.spool_file import SpoolUnreadable
from adp_async._io.spool_rows import PLACES, is_encodable, is_place, is_span, is_token, records_of
from adp_async._sansio.ranges import joined, without

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from adp_async._io.spool_database import Database
    from adp_async._sansio.records import AnyRecord

#: Records that are read at once.
LOADED: Final = 10_000


@frozen
class Piece:
    """What is still to be delivered of a run: ranges on disk, and batches that were in flight.

    *last* is where its records on disk end, delivered ones included.
    """

    run_id: str
    spilled: tuple[tuple[int, int], ...]
    #: (ranges, retry token, records) of the batches that were in flight.
    sealed: tuple[tuple[tuple[tuple[int, int], ...], str, list[AnyRecord]], ...]
    last: int


class Reader:
    """Reads from *database*."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def load(self, run_id: str, first: int, last: int) -> list[AnyRecord]:
        """The records *first* to *last* (exclusive) of a run, or as many as can be read.

        Raises `SpoolUnreadable` when the very first can't; never comes back empty.
        """
        records: list[AnyRecord] = []
        query = (
            f"SELECT first, last, body, {self._database.checksum} FROM chunks "  # noqa: S608
            "WHERE run_id = ? AND first < ? AND last > ? ORDER BY first"
        )
        with self._database.reading() as connection:
            for start, end, body, checksum in connection.execute(query, (run_id, last, first)):
                position = first + len(records)
                if start > position or position >= last:
                    break
                chunk = records_of(run_id, start, end, body, checksum)
                # A damaged row may claim to be longer than it is, and another row follow.
                records += chunk[position - start : last - start] if chunk else []
        if records or first == last:
            return records
        return self._raise_unreadable(run_id, first, last)

    def _raise_unreadable(self, run_id: str, first: int, last: int) -> NoReturn:
        with self._database.reading() as connection:
            query = (
                "SELECT min(CASE WHEN first <= ? THEN last ELSE first END) FROM chunks "
                "WHERE run_id = ? AND last > ? "
                "AND typeof(first) = 'integer' AND typeof(last) = 'integer'"
            )
            until = connection.execute(query, (first, run_id, first)).fetchone()[0] or last
        message = f"{self._database.path}: records {first} to {until} of run {run_id!r} are damaged"
        raise SpoolUnreadable(message, until)

    def taken(self) -> list[tuple[str, float]]:
        """Tokens under which other processes handed records over, each with its Unix time."""
        if self._database.version < 3:
            return []
        with self._database.reading() as connection:
            rows = connection.execute("SELECT token, taken_at FROM taken").fetchall()
        return [row for row in rows if is_encodable(row[0]) and type(row[1]) is float]

    def pieces(self) -> list[Piece]:
        """What is still to be delivered, run by run."""
        with self._database.reading() as connection:
            settled = dict(connection.execute("SELECT run_id, settled FROM runs").fetchall())
            chunks = _by_run(place for _, *place in connection.execute(PLACES) if is_place(*place))
            done = _by_run(
                row
                for row in connection.execute("SELECT run_id, first, last FROM done")
                if is_span(*row[1:])
            )
            sealed = _by_run(
                row
                for row in connection.execute("SELECT run_id, first, last, token FROM sealed")
                if is_span(*row[1:3]) and is_token(row[3])
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
                return []  # reported when the rows are read one by one
        return records if len(records) == sum(last - first for first, last in parts) else []

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


def _by_token(sealed: Iterable[tuple[Any, ...]]) -> dict[str, list[tuple[int, int]]]:
    """The ranges of each sealed batch: one that was split has several."""
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
    """The unsettled ranges of *chunks*: from *settled* on, and not in the spans of *done*."""
    ranges = joined(sorted((max(row[0], settled), row[1]) for row in chunks if row[1] > settled))
    for first, last in done:
        ranges = without(ranges, first, last)
    return ranges
