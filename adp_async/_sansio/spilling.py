"""What happens to lanes when memory is short: records are forgotten here, and come back from disk.

Only records that a journal has written are spilled.  They come back in their order when the lane
has sent what it had; those of a process that died come the same way.
"""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING

from adp_async._sansio.accumulator import name
from adp_async._sansio.batch import RecordBatch, Span
from adp_async._sansio.events import Lost, Settled
from adp_async._sansio.ranges import joined
from adp_async._sansio.records import GivenUp, has_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adp_async._sansio.accumulator import Accumulator
    from adp_async._sansio.lane import Lane
    from adp_async._sansio.records import AnyRecord
    from adp_async._sansio.run_start import RunStart
    from adp_async.errors import AdpError


def spill(
    accumulator: Accumulator, lane: Lane, now: float, *, keep: int, journaled_until: int
) -> int:
    """Spill journaled records but for the queue's first *keep*; returns how many that were."""
    records = lane.spill(keep, journaled_until)
    accumulator.count_waiting(records, -1, with_text=has_text(records))
    accumulator.spooled += len(records)
    accumulator.reschedule(lane, now)
    return len(records)


def reload(
    accumulator: Accumulator, lane: Lane, first: int, records: list[AnyRecord], now: float
) -> None:
    """What `Lane.next_spilled` named has been read: it waits in memory again."""
    lane.reload(first, records, now)
    accumulator.spooled -= len(records)
    accumulator.count_waiting(records, with_text=has_text(records))
    accumulator.reschedule(lane, now)


def cannot_reload(accumulator: Accumulator, lane: Lane, now: float) -> None:
    """What `Lane.next_spilled` named can't be read: what waits before it leaves first."""
    lane.has_gap = True
    accumulator.reschedule(lane, now)


def lose(accumulator: Accumulator, lane: Lane, last: int, error: AdpError, now: float) -> None:
    """What is next on disk can't be read, up to *last*: counted as rejected.

    Only when nothing waits before it.
    """
    first, _ = lane.spilled[0]
    held = lane.lose_spilled(last, now)
    accumulator.spooled -= last - first
    accumulator.rejections.count(lane, error, last - first)
    for record in held:
        record.place = GivenUp(error)
    accumulator.note(Lost(lane, first, last))
    accumulator.note(Settled(lane, held))
    accumulator.reschedule(lane, now)


def restore_start(accumulator: Accumulator, start: RunStart) -> None:
    """A run that a process which died had started: before its records are restored."""
    lane = accumulator.lane(start.key)
    if start.run_id is None:
        lane.hold()
        accumulator.lanes[start.key] = lane  # else nobody may hold on to it
    elif start.run_id != start.key:
        name(accumulator, lane, start.run_id, 0.0)
        accumulator.lanes[start.key] = lane


def restore(
    accumulator: Accumulator,
    run_id: str,
    spilled: Sequence[tuple[int, int]],
    sealed: Sequence[tuple[Sequence[tuple[int, int]], str, list[AnyRecord]]],
    last: int,
) -> None:
    """A run of a process that died: ranges on disk, and (ranges, token, records) of batches.

    *last* is where its records on disk end, delivered ones included.
    """
    lane = accumulator.lanes[run_id] = accumulator.lane(run_id)
    if not lane.is_created and sealed:
        # A token is not written down before what the run is called: that was damaged since.
        parts = [part for ranges, _, _ in sealed for part in ranges]
        spilled, sealed = joined(sorted([*spilled, *parts])), ()
    lane.spilled = [*lane.spilled, *spilled]
    accumulator.spooled += lane.spooled
    span = Span(0, 0)
    for ranges, token, records in sorted(sealed, key=itemgetter(0)):
        if not lane.spans or ranges[0][0] >= span.last:
            span = Span(ranges[0][0], ranges[-1][1])
            span.open = 0
            lane.add_span(span)
        # Parts of a batch that was taken apart share its span.
        span.last = max(span.last, ranges[-1][1])
        span.open += len(records)
        is_barrier = has_text(records)
        body = lane.encode(records, with_text=is_barrier)
        batch = RecordBatch(lane, records, body, token, span, is_barrier, list(ranges))
        lane.sealed.append((batch, 0.0))
        accumulator.count_waiting(records, with_text=is_barrier)
    lane.next_seq = last
    lane.queue.head_seq = spilled[0][0] if spilled else last
    accumulator.reschedule(lane, 0.0)
