"""When a lane is ready, and in which order ready lanes have their turn.

A lane is ready when it is full, when its first record has lingered long enough, or when somebody
waits for it.  One that holds params or tags is a barrier within its run: it waits until nothing of
the run is in flight, and nothing of the run leaves before it is settled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define, field

from adp_async._sansio.line import Line

if TYPE_CHECKING:
    from adp_async._sansio.lane import Lane
    from adp_async._sansio.records import BatchLimits


@define(eq=False)
class Schedule:
    """The line in which lanes wait.  *linger*: the longest that a record waits for company."""

    linger: float
    #: Seconds that records wait longer for company while the service throttles: a turn is dear.
    patience: float = field(default=0.0, init=False)
    line: Line = field(factory=Line, init=False)
    #: Runs whose params and tags wait, since what a process before this one has left of them comes
    #: first; None while it is not known which.
    barred: frozenset[str] | None = field(default=frozenset(), init=False)

    def put(self, lane: Lane, limits: BatchLimits, now: float) -> None:
        """Give *lane* its place, after anything of it has changed."""
        ready_at = self._ready_at(lane, limits, now)
        lane.is_full = _is_full(lane, limits)
        if ready_at != lane.ready_at or lane.stands_in is not self.line.entries_for(lane):
            self.line.put(lane, ready_at)

    def _ready_at(self, lane: Lane, limits: BatchLimits, now: float) -> float | None:
        if lane.barrier_in_flight or not lane.is_created:
            return None
        ready_at = self.others_ready_at(lane, limits, now)
        if not lane.aside:
            return ready_at
        batch, not_before = lane.aside[0]
        if batch.is_barrier and self._barrier_waits(lane):
            return ready_at
        not_before = max(not_before, lane.left_at)
        return not_before if ready_at is None else min(ready_at, not_before)

    def others_ready_at(self, lane: Lane, limits: BatchLimits, now: float) -> float | None:
        """When the lane is ready but for what was put aside."""
        if lane.sealed:
            batch, not_before = lane.sealed[0]
            if batch.is_barrier and self._barrier_waits(lane):
                return None
            return max(not_before, lane.left_at)
        if not lane.queue:
            return None
        if self._barrier_waits(lane) and lane.queue.next_is_barrier(limits):
            return None
        is_full = lane.queue.is_full(limits)
        if not is_full and lane.next_spilled(limits) is not None:
            return None  # more of it comes from the disk
        if is_full or lane.urgent_until > lane.queue.head_seq:
            # Once ready it keeps its place in the line.
            return now if lane.ready_at is None else min(now, lane.ready_at)
        return max(lane.queue.times[0] + self.linger + self.patience, lane.left_at)

    def _barrier_waits(self, lane: Lane) -> bool:
        return lane.in_flight > 0 or self.barred is None or lane.run_id in self.barred


def _is_full(lane: Lane, limits: BatchLimits) -> bool:
    if lane.sealed:
        return len(lane.sealed[0][0].records) >= min(limits.metrics, limits.entities)
    return lane.queue.is_full(limits)
