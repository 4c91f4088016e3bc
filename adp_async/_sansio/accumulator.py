"""What waits, and what may leave when: lanes of records, cut into batches.

A *lane* is one run's queue.  Records have a sequence number in their lane, counted from 0 in the
order of the calls; a batch covers a *span* of them.  A lane is ready when it is full, when its
first record has lingered long enough, or when somebody waits for it; ready lanes leave in the
order in which they became ready, and after one batch a lane goes to the end of the line, so that
lanes take turns.

Rules of order within a run: batches of metrics alone fly in parallel; one with params or tags is
a barrier: it leaves when nothing of the run is in flight, and nothing else before it is settled.

All of this belongs to one thread.  Nothing here knows the time, draws a random number or waits:
*now* is an argument, and so is the supply of retry tokens.  Nobody is called either: what happened
is kept as a list of events (`adp_async._sansio.events`), which `take_events` hands over.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import repeat
from operator import attrgetter
from typing import TYPE_CHECKING

from adp_async._sansio.events import Event, Refused, Sealed, Settled, Took
from adp_async._sansio.lanes import Lanes
from adp_async._sansio.ranges import numbers_at, numbers_of
from adp_async._sansio.records import (
    DELIVERED,
    METRIC_COST,
    BatchLimits,
    GivenUp,
    cost_of,
    has_text,
)
from adp_async._sansio.refusals import Refusals, in_halves
from adp_async._sansio.rejections import KEPT_REJECTIONS, Rejections, delivery_error
from adp_async._sansio.schedule import Schedule
from adp_async._sansio.sealing import Sealer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from adp_async._sansio.batch import RecordBatch, Span
    from adp_async._sansio.lane import Lane, Waits
    from adp_async._sansio.records import AnyRecord
    from adp_async._sansio.refusals import Part
    from adp_async._sansio.sealing import Cut
    from adp_async.errors import AdpError, Rejection

#: Batches of a lane that are sealed at once when there is a journal.
SEALED_AHEAD = 4


class Accumulator:
    """The lanes of all runs: takes records in, hands out batches, and learns what became of them.

    *linger*: the longest a record waits for company.  *limits*: what one request may hold.
    *tokens*: an endless supply of retry tokens; all are empty without it.  *waits*: how receipts
    are waited for; None when nobody has one.  *unit*: of the waits after refusals, see `Refusals`.
    """

    def __init__(
        self,
        *,
        linger: float = 1.0,
        limits: BatchLimits | None = None,
        tokens: Iterator[str] | None = None,
        waits: Waits | None = None,
        kept_rejections: int = KEPT_REJECTIONS,
        unit: float = 1.0,
    ) -> None:
        self.schedule = Schedule(linger)
        self.sealer = Sealer(limits or BatchLimits(), tokens or repeat(""))
        self.rejections = Rejections(kept_rejections)
        self.refusals = Refusals(unit)
        #: Full requests are sealed before their turn: a journal writes down the tokens of all of
        #: them in one commit.
        self.seals_ahead = False
        #: The lanes of which there is something to do.
        self.lanes = Lanes(waits)
        #: Records in the lanes that are not in flight, those that are, and those only on disk.
        self.waiting = self.in_flight = self.spooled = 0
        #: Memory of those that are in memory, in bytes.
        self.cost = 0
        self.batches_in_flight = self.delivered = 0
        #: Records that were discarded, or found no room; and those abandoned on closing.
        self.dropped = self.abandoned = 0
        #: Whether the last batch that was tried was delivered.
        self._gets_through = False
        self._events: list[Event] = []

    def note(self, event: Event) -> None:
        """Something happened."""
        self._events.append(event)

    def take_events(self) -> Sequence[Event]:
        """What happened since the last call, in its order."""
        events, self._events = self._events, []
        return events

    @property
    def limits(self) -> BatchLimits:
        """What one request may hold."""
        return self.sealer.limits

    @property
    def rejected(self) -> Counter[str]:
        """How many records were given up, by the class of the error."""
        return self.rejections.by_error

    @property
    def unsettled(self) -> int:
        """Records that are not settled yet."""
        return self.waiting + self.in_flight + self.spooled

    @property
    def memory(self) -> int:
        """Bytes that records take, and what is kept of refused ones."""
        return self.cost + self.rejections.memory

    # Taking in

    def lane(self, run_id: str) -> Lane:
        """The one lane of a run."""
        return self.lanes.of(run_id)

    def add(self, run_id: str, record: AnyRecord, now: float) -> None:
        """Take one record in."""
        record.place = self.lane(run_id)
        self.take_in((record,), now)

    def take_in(self, records: Sequence[AnyRecord], now: float) -> None:
        """Take records in, each of which has its lane as its *place*."""
        with_text = has_text(records)
        self.count_waiting(records, with_text=with_text)
        if len(lanes := set(map(_PLACE, records))) == 1:
            self._grew(lanes.pop(), records, now, with_text=with_text)
            return
        groups: defaultdict[Lane, list[AnyRecord]] = defaultdict(list)
        for record in records:
            groups[record.place].append(record)
        for lane, group in groups.items():
            self._grew(lane, group, now, with_text=with_text and has_text(group))

    def _grew(
        self, lane: Lane, records: Sequence[AnyRecord], now: float, *, with_text: bool
    ) -> None:
        first = lane.next_seq
        if not lane.queue:  # else it is there
            self.lanes.setdefault(lane.key, lane)
        lane.append(records, now, with_text=with_text)
        self.note(Took(lane, first, records))
        # More metrics change nothing until they fill a request.
        if with_text or lane.ready_at is None or lane.queue.is_full(self.limits):
            self.reschedule(lane, now)

    def count_waiting(
        self, records: Sequence[AnyRecord], sign: int = 1, *, with_text: bool
    ) -> None:
        """*records* are in the lanes now; with a *sign* of -1 they no longer are."""
        self.waiting += sign * len(records)
        self.cost += sign * cost_of_all(records, with_text=with_text)

    # Being ready

    def bar(self, run_ids: frozenset[str] | None, now: float) -> None:
        """Have the params and tags of these runs wait, and of no others; None: of all runs."""
        self.schedule.barred = run_ids
        for lane in self.lanes.values():
            self.reschedule(lane, now)

    def skip_linger(self, lane: Lane, now: float) -> None:
        """The lane is waited for: its present records don't linger."""
        lane.urgent_until = lane.next_seq
        self.reschedule(lane, now)

    def next_deadline(self) -> float | None:
        """When `drain` will have something to hand out; None while nothing waits that may leave."""
        return self.schedule.line.first()

    def reschedule(self, lane: Lane, now: float) -> None:
        """Give *lane* its place in the line, after anything of it has changed."""
        self.schedule.put(lane, self.limits, now)

    # Handing out

    def drain(self, now: float, room: int = 1, *, troubled: int | None = None) -> list[RecordBatch]:
        """Up to *room* batches that are ready, now in flight.

        At most *troubled* of them are of lanes whose last attempt failed.
        """
        left = room if troubled is None else troubled
        batches: list[RecordBatch] = []
        while len(batches) < room:
            lane = self.schedule.line.take(now, troubled=left > 0)
            if lane is None:
                break
            left -= lane.failures > 0
            batches += self._departed(lane, now)
        return batches

    def probe(self, now: float, *, healthy: bool, troubled: bool) -> RecordBatch | None:
        """One batch that may find out whether the service answers anybody.

        Of a lane that has not failed if there is one, rather of one that got through before.
        """
        while True:
            lane = self.schedule.line.take_proven(now) if healthy else None
            if lane is None:
                lane = self.schedule.line.take(now, healthy=False, troubled=troubled)
            if lane is None:
                return None
            for batch in self._departed(lane, now):
                return batch

    def _departed(self, lane: Lane, now: float) -> list[RecordBatch]:
        """The next batch of *lane*; none when all of its records are refused here."""
        lane.left_at = now
        batch = self._next_batch(lane, now)
        if batch is not None:
            batch.departed_at = now
            lane.in_flight += 1
            lane.barrier_in_flight = batch.is_barrier
            self.batches_in_flight += 1
            self.waiting -= len(batch.records)
            self.in_flight += len(batch.records)
        self.reschedule(lane, now)
        self.lanes.forget_if_idle(lane)
        return [] if batch is None else [batch]

    def _next_batch(self, lane: Lane, now: float) -> RecordBatch | None:
        others_ready_at = self.schedule.others_ready_at(lane, self.limits, now)
        if lane.aside and (others_ready_at is None or others_ready_at > now):
            return lane.aside.pop(0)[0]
        if not lane.sealed:
            self._seal(lane, now)
            if self.seals_ahead and self._gets_through:
                self._seal_ahead(lane, now)
        return lane.sealed.pop(0)[0] if lane.sealed else None

    def _seal(self, lane: Lane, now: float) -> None:
        span, cut = self.sealer.seal_next(lane, self.refusals, now)
        lane.sealed += [(batch, now) for batch in self._sealed(lane, span, cut)]

    def _seal_ahead(self, lane: Lane, now: float) -> None:
        """Seal what is full anyway.

        Not while the service is down: what is sealed can't be spilled.
        """
        while len(lane.sealed) < SEALED_AHEAD and lane.queue.is_full_of_metrics(self.limits):
            self._seal(lane, now)

    def _sealed(self, lane: Lane, span: Span, cut: Cut) -> list[RecordBatch]:
        self._events += map(Sealed, cut.batches)
        for records, numbers, error in cut.refused:
            self._refuse_waiting(lane, span, records, numbers, error)
        return cut.batches

    # What became of a batch

    def succeed(self, batch: RecordBatch, now: float) -> None:
        """The service has it."""
        lane = batch.lane
        lane.recover(now)
        self._gets_through = True
        self.refusals.delivered(batch)
        lane.delivered += len(batch.records)
        self.delivered += len(batch.records)
        for record in batch.records:
            record.place = DELIVERED
        self.settle(batch, now)

    def wait_turn(self, batch: RecordBatch, not_before: float, now: float) -> None:
        """It was throttled, or could not leave, which says nothing about the batch."""
        self._put_back(batch, [batch], not_before, now)

    def back_off(self, batch: RecordBatch, not_before: float, now: float) -> None:
        """No verdict: the same request goes again, with the same token."""
        self._gets_through = False
        batch.failed(now)
        self._put_back(batch, [batch], not_before, now)

    def put_aside(self, batch: RecordBatch, not_before: float, now: float) -> None:
        """The same of a single record that fails again and again: others go before it."""
        lane = batch.lane
        self._gets_through = False
        batch.failed(now)
        self._land(batch)
        self.waiting += len(batch.records)
        lane.aside = [*lane.aside, (batch, not_before)]
        self.reschedule(lane, now)

    def halve(self, batch: RecordBatch, now: float) -> None:
        """The service fails on this batch and takes others: look for the record that does it.

        The halves begin with what the whole has seen: the next failure halves them again.
        """
        self._gets_through = False
        batch.failed(now)
        batch.lane.fruitless += 1
        for part in (halves := self._parts(batch, in_halves(len(batch.records)))):
            part.begin_like(batch)
        self._put_back(batch, halves, now, now)

    def hurry(self, lane: Lane, now: float) -> None:
        """The service is back: the lane need not wait out the back-off of what failed."""
        lane.hurry(now)
        self.reschedule(lane, now)

    def renew(self, batch: RecordBatch, now: float) -> None:
        """The retry token is spent: the same body goes again under a new one."""
        renewed = self.sealer.renewed(batch)
        self.note(Sealed(renewed))
        self._put_back(batch, [renewed], now, now)

    def refuse(self, batch: RecordBatch, error: AdpError, now: float) -> None:
        """The service's verdict on the request: find the bad records, and deliver the others."""
        lane = batch.lane
        lane.failures = 0
        ruling = self.refusals.judge(batch, error, now)
        if ruling.look_again_at is not None:
            self._put_back(batch, [batch], ruling.look_again_at, now)
        elif len(ruling.given_up) == len(batch.records):
            self.give_up(batch, error, now)
        else:
            # A tag that was overwritten in the whole may be sent in a part, and make it larger.
            given_up = [batch.records[at] for at in ruling.given_up]
            numbers = numbers_at(batch.ranges, ruling.given_up)
            self._put_back(batch, self._parts(batch, ruling.parts), now, now)
            if given_up:
                self._refuse_waiting(lane, batch.span, given_up, numbers, error)

    def too_large(self, batch: RecordBatch, error: AdpError, now: float) -> None:
        """413: the service takes less than we thought.  Halves it, and keeps that in mind."""
        if len(batch.records) == 1:
            self.give_up(batch, error, now)
            return
        self.sealer.too_large(batch.body)
        self._put_back(batch, self._parts(batch, in_halves(len(batch.records))), now, now)

    def give_up(self, batch: RecordBatch, error: AdpError, now: float) -> None:
        """No record of the batch will be delivered."""
        batch.lane.failures = 0
        self.reject(batch.lane, batch.records, list(numbers_of(batch.ranges)), error)
        self.settle(batch, now)

    def reject(
        self, lane: Lane, records: Sequence[AnyRecord], numbers: Sequence[int], error: AdpError
    ) -> list[Rejection]:
        """Count *records* as refused for *error*; without *numbers* if they were not taken in."""
        rejections = self.rejections.add(lane, records, error)
        for record, rejection in zip(records, rejections, strict=True):
            record.place = GivenUp(delivery_error([rejection]))
        self.note(Refused(rejections, records, lane, numbers))
        return rejections

    def _refuse_waiting(
        self, lane: Lane, span: Span, records: list[AnyRecord], numbers: list[int], error: AdpError
    ) -> None:
        """Records that are not in flight won't be sent: the service refuses such."""
        self.reject(lane, records, numbers, error)
        self.waiting -= len(records)
        self._close(lane, span, records, with_text=has_text(records))

    def count_dropped(self, lane: Lane, count: int) -> None:
        """So many records of *lane* were discarded by the user, or found no room."""
        lane.dropped += count
        self.dropped += count

    def _parts(self, batch: RecordBatch, parts: Sequence[Part]) -> list[RecordBatch]:
        cut = self.sealer.seal(batch.lane, batch.span, batch.records, batch.ranges, parts)
        return self._sealed(batch.lane, batch.span, cut)

    def _put_back(
        self, batch: RecordBatch, parts: list[RecordBatch], not_before: float, now: float
    ) -> None:
        self._land(batch)
        self.waiting += len(batch.records)
        batch.lane.sealed[:0] = [(part, not_before) for part in parts]
        self.reschedule(batch.lane, now)

    def settle(self, batch: RecordBatch, now: float) -> None:
        """Every record of *batch* has its verdict as its place."""
        self._land(batch)
        self._close(batch.lane, batch.span, batch.records, with_text=batch.is_barrier)
        self.reschedule(batch.lane, now)
        self.lanes.forget_if_idle(batch.lane)

    def _close(
        self, lane: Lane, span: Span, records: Sequence[AnyRecord], *, with_text: bool
    ) -> None:
        """*records* of a span are settled."""
        self.cost -= cost_of_all(records, with_text=with_text)
        span.open -= len(records)
        if not span.open:
            lane.spans.remove(span)
        self.note(Settled(lane, records, None if span.open else span))

    def _land(self, batch: RecordBatch) -> None:
        batch.lane.in_flight -= 1
        batch.lane.barrier_in_flight = False
        self.batches_in_flight -= 1
        self.in_flight -= len(batch.records)


def name(accumulator: Accumulator, lane: Lane, run_id: str, now: float) -> None:
    """The service has the run of *lane*, and calls it *run_id*: what waits may leave."""
    accumulator.lanes.name(lane, run_id)
    accumulator.reschedule(lane, now)


_PLACE = attrgetter("place")


def cost_of_all(records: Sequence[AnyRecord], *, with_text: bool) -> int:
    """Bytes of memory that *records* take."""
    return sum(map(cost_of, records)) if with_text else len(records) * METRIC_COST
