"""Records that are given up without a verdict: discarded by the user, or at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adp_async._sansio.accumulator import cost_of_all
from adp_async._sansio.batch import Span
from adp_async._sansio.events import Settled
from adp_async._sansio.records import GivenUp, has_text

if TYPE_CHECKING:
    from adp_async._sansio.accumulator import Accumulator
    from adp_async._sansio.batch import RecordBatch
    from adp_async._sansio.lane import Lane
    from adp_async._sansio.records import AnyRecord
    from adp_async.errors import AdpError


def discard(accumulator: Accumulator, lane: Lane, now: float, error: AdpError) -> int:
    """Give up a run's waiting records; returns how many.

    What is in flight is not tried again, see `drop`.
    """
    first, spilled = lane.settled_until, lane.spooled
    here, held = lane.discard()
    accumulator.waiting -= len(here)
    accumulator.spooled -= spilled
    accumulator.cost -= cost_of_all(here, with_text=has_text(here))
    gone = [*here, *held]
    for record in gone:
        record.place = GivenUp(error)
    accumulator.count_dropped(lane, len(here) + spilled)
    accumulator.note(Settled(lane, gone, Span(first, lane.next_seq)))
    accumulator.reschedule(lane, now)
    accumulator.lanes.forget_if_idle(lane)
    return len(here) + spilled


def drop(accumulator: Accumulator, batch: RecordBatch, error: AdpError, now: float) -> None:
    """It was in flight when its run was discarded, and was not delivered."""
    for record in batch.records:
        record.place = GivenUp(error)
    accumulator.count_dropped(batch.lane, len(batch.records))
    accumulator.settle(batch, now)


def abandon(accumulator: Accumulator) -> list[tuple[Lane, int, list[AnyRecord]]]:
    """Nothing will be delivered any more, and nothing is held here any longer.

    By lane: how many records are left, and those of them that are not only on disk.
    """
    left = []
    for lane in accumulator.lanes.values():
        count = lane.unsettled
        records = lane.clear()
        if count:
            left.append((lane, count, records))
    accumulator.abandoned += accumulator.unsettled
    accumulator.waiting = accumulator.spooled = accumulator.cost = 0
    accumulator.schedule.line.clear()
    return left
