"""What a spool holds, for a person."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from attrs import field, frozen

from adp_async._io.spool_rows import (
    PLACES,
    counts_of,
    is_place,
    is_run_id,
    is_span,
    records_of,
    rejected_of,
    start_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from adp_async._io.spool_database import Database
    from adp_async._io.spool_file import Identity
    from adp_async._io.spool_rows import RejectedRow
    from adp_async._sansio.records import AnyRecord
    from adp_async._sansio.run_start import RunStart


@frozen
class RunRow:
    """What a spool holds of one run: counts by kind, and when the oldest was accepted."""

    run_id: str
    metrics: int
    params: int
    tags: int
    oldest: float
    #: As it was started, if its process had done so and not ended it.
    start: RunStart | None = None

    @property
    def records(self) -> int:
        return self.metrics + self.params + self.tags


@frozen
class Contents:
    """What a spool holds; *trouble* is why it can't be read, or not all of it."""

    path: Path
    identity: Identity | None
    runs: tuple[RunRow, ...] = ()
    rejected: tuple[RejectedRow, ...] = field(default=(), repr=False)
    last_error: str = ""
    trouble: str = ""
    #: Runs of which nothing waits, but that are to be created, or ended.
    others: tuple[RunStart, ...] = ()

    @property
    def records(self) -> int:
        return sum(run.records for run in self.runs)

    @property
    def starts(self) -> tuple[RunStart, ...]:
        """Runs that its process had started and not ended."""
        return (*(run.start for run in self.runs if run.start is not None), *self.others)


def contents_of(database: Database, identity: Identity) -> Contents:
    """A summary of what *database* holds."""
    meta = database.meta()
    refused = database.refused()
    with database.reading() as connection:
        damaged = int(connection.execute("SELECT count(*) FROM unreadable").fetchone()[0])
        places = connection.execute(PLACES).fetchall()
    rejected = [row for each in refused if (row := rejected_of(each)) is not None]
    started = [start for row in database.starts() if (start := start_of(*row)) is not None]
    starts = {start.key: start for start in started}
    runs = tuple(_run_rows(database, starts))
    with_records = {run.start.key for run in runs if run.start is not None}
    damaged += len(refused) - len(rejected)
    damaged += sum(not is_place(*place) for _, *place in places)
    return Contents(
        database.path,
        identity,
        runs,
        tuple(rejected),
        meta.get("last_error", ""),
        f"{damaged} rows are damaged and set aside" if damaged else "",
        tuple(start for start in started if start.key not in with_records),
    )


def _run_rows(database: Database, starts: Mapping[str, RunStart]) -> Iterator[RunRow]:
    with database.reading() as connection:
        rows = connection.execute(
            "SELECT run_id, sum(metrics), sum(params), sum(tags), min(accepted_at) "
            "FROM chunks GROUP BY run_id ORDER BY min(accepted_at)"
        ).fetchall()
    gone = {run_id: _settled_counts(database, run_id) for run_id in _partly_settled(database)}
    for run_id, metrics, params, tags, oldest in rows:
        if not is_run_id(run_id):
            continue
        less = gone.get(run_id, (0, 0, 0))
        left = [
            max(0, int(count) - less) if isinstance(count, int | float) else 0
            for count, less in zip((metrics, params, tags), less, strict=True)
        ]
        since = oldest if isinstance(oldest, float) else time.time()
        row = RunRow(run_id, left[0], left[1], left[2], since, starts.get(run_id))
        if row.records:
            yield row


def _partly_settled(database: Database) -> list[str]:
    with database.reading() as connection:
        rows = connection.execute("SELECT run_id, settled FROM runs").fetchall()
    return [run_id for run_id, until in rows if is_run_id(run_id) and type(until) is int]


def _settled_counts(database: Database, run_id: str) -> tuple[int, int, int]:
    """Settled records by kind, in rows that still hold others."""
    with database.reading() as connection:
        query = "SELECT settled FROM runs WHERE run_id = ?"
        until = connection.execute(query, (run_id,)).fetchone()[0]
        query = "SELECT first, last FROM done WHERE run_id = ?"
        done = connection.execute(query, (run_id,)).fetchall()
        spans = [(0, until), *(span for span in done if is_span(*span))]
        query = (
            f"SELECT first, last, body, {database.checksum} FROM chunks "  # noqa: S608
            "WHERE run_id = ? AND first < ? AND last > ?"
        )
        settled: list[AnyRecord] = []
        for first, last in spans:
            for start, *row in connection.execute(query, (run_id, last, first)):
                records = records_of(run_id, start, *row) or []
                settled += records[max(0, first - start) : last - start]
    return counts_of(settled)
