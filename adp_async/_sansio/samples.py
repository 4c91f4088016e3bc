"""Some points of each metric that was delivered, to draw it: bounded, however much is logged.

Points are taken from batches when they are settled, never in the call that logs them.  Of a run's
first two thousand records each is looked at, then a few stretches of every large batch.  When a
series is full, every second point is left out, and only every second of those to come is taken, so
that it spans the whole time.
"""

from __future__ import annotations

import array
from typing import TYPE_CHECKING, Final

from adp_async._sansio.records import DELIVERED, Metric

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from adp_async._sansio.records import AnyRecord

#: Runs, metrics of a run and points of a metric that are kept: 2 MB at the most.
MOST_RUNS: Final = 32
MOST_KEYS: Final = 32
MOST_POINTS: Final = 128
#: A run without points for so many seconds makes room for another.
IDLE: Final = 60.0
#: So many records of a run are all looked at; then of each batch so many stretches of so many.
WHOLE: Final = 2000
STRETCHES: Final = 4
STRETCH: Final = 16


class Series:
    """Points of one metric, evenly thinned out, and the last one."""

    __slots__ = ("_flat", "_last", "_seen", "_stride")

    def __init__(self) -> None:
        #: Step, value, step, value, and so on: 16 bytes a point.
        self._flat = array.array("d")
        self._last: tuple[float, float] | None = None
        self._seen = 0
        self._stride = 1

    def add(self, step: float, value: float) -> None:
        self._last = (step, value)
        if self._seen % self._stride == 0:
            flat = self._flat
            flat.extend(self._last)
            if len(flat) >= 2 * MOST_POINTS:
                # Another thread may read meanwhile: it has the old one, or the new.
                self._flat = array.array(
                    "d", [each for at in range(0, len(flat), 4) for each in flat[at : at + 2]]
                )
                self._stride *= 2
        self._seen += 1

    def points(self) -> list[tuple[float, float]]:
        """By step and value, in the order of their delivery.  From any thread."""
        flat, last = self._flat[:], self._last
        points = list(zip(flat[::2], flat[1::2], strict=False))
        return points if last is None or points[-1:] == [last] else [*points, last]


class RunSamples:
    """Points of one run's metrics."""

    __slots__ = ("_looked_at", "_series", "taken_at")

    def __init__(self) -> None:
        self._series: dict[str, Series] = {}
        self._looked_at = 0
        self.taken_at = 0.0

    def take(self, records: Sequence[AnyRecord], now: float) -> None:
        """Take points of *records*, which are settled."""
        self.taken_at = now
        series = self._series
        if self._looked_at >= WHOLE:
            records = _some_of(records)
        self._looked_at += len(records)
        for record in records:
            if type(record) is Metric and record.place is DELIVERED:
                found = series.get(record.key)
                if found is None:
                    if len(series) >= MOST_KEYS:
                        continue
                    found = series[record.key] = Series()
                found.add(record.step, record.value)

    def points(self) -> Mapping[str, list[tuple[float, float]]]:
        return {key: series.points() for key, series in list(self._series.items())}


class Samples:
    """Points of the runs of one session; those of the runs that came first, while there is room."""

    __slots__ = ("_look_at", "_runs")

    def __init__(self) -> None:
        self._runs: dict[str, RunSamples] = {}
        #: When a place for another run is looked for again: that costs a look at all of them.
        self._look_at = 0.0

    def take(self, run_id: str, records: Sequence[AnyRecord], now: float) -> None:
        """Take points of *records* of one run, which are settled."""
        run = self._runs.get(run_id) or self._another(run_id, now)
        if run is not None:
            run.take(records, now)

    def _another(self, run_id: str, now: float) -> RunSamples | None:
        if len(self._runs) >= MOST_RUNS:
            if now < self._look_at:
                return None
            longest_idle = min(self._runs, key=lambda each: self._runs[each].taken_at)
            if self._runs[longest_idle].taken_at > now - IDLE:
                self._look_at = now + 1.0
                return None
            del self._runs[longest_idle]
        run = self._runs[run_id] = RunSamples()
        return run

    def of(self, run_id: str) -> Mapping[str, list[tuple[float, float]]]:
        """By metric, the points of a run by step and value.  From any thread."""
        run = self._runs.get(run_id)
        return {} if run is None else run.points()


def _some_of(records: Sequence[AnyRecord]) -> Sequence[AnyRecord]:
    # Stretches, not every tenth: the metrics of a step lie side by side, and would be missed.
    if len(records) <= STRETCHES * STRETCH:
        return records
    last = len(records) - STRETCH
    starts = [stretch * last // (STRETCHES - 1) for stretch in range(STRETCHES)]
    return [record for start in starts for record in records[start : start + STRETCH]]
