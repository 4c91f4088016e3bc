"""What waits, and what may leave when: lanes of records, cut into batches.

A *lane* is one run's queue.  Records have a sequence number in their lane, counted from 0 in the
order of the calls; a batch covers a *span* of them.  A lane is ready when it is full, when its
first record has lingered long enough, or when somebody waits for it; ready lanes leave in the
order in which they became ready, and after one batch a lane goes to the end of the line, so that
lanes take turns.

Rules of order within a run: batches of metrics alone fly in parallel; one with params or tags is
a barrier: it leaves when nothing of the run is in flight, and nothing else before it is settled.

All of this belongs to one thread.  Nothing here knows the time, draws a random number or waits:
*now* is an argument, retry tokens come from *new_token*.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Protocol
from weakref import WeakValueDictionary

from attrs import define, evolve, field

from adp_async._sansio.lane import Lane, RecordBatch, Span
from adp_async._sansio.line import Line
from adp_async._sansio.ranges import numbers_of, ranges_of, split
from adp_async._sansio.records import (
    DELIVERED,
    KINDS,
    METRIC_COST,
    BatchLimits,
    GivenUp,
    Metric,
    cost_of,
    has_text,
)
from adp_async._sansio.refusals import Refusals, in_halves
from adp_async.errors import AdpError, DeliveryError, Rejection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from adp_async._sansio.lane import Board
    from adp_async._sansio.records import AnyRecord
    from adp_async._sansio.refusals import Part

#: A service that refuses bodies smaller than this as too large has some other trouble.
SMALLEST_BODY_LIMIT = 16 * 1024

#: Refused records that are kept by name, in all; their memory, error included (measured); and
#: runs of which it is kept how many nobody was told of.
KEPT_REJECTIONS = 1000
REJECTION_COST = 1024
KEPT_RUNS = 10_000

#: Batches of a lane that are sealed at once when there is a journal.
SEALED_AHEAD = 4


class Notes(Protocol):
    """Who writes down what is taken in, sealed and settled: the journal of the spool."""

    def took(self, lane: Lane, first: int, records: Sequence[AnyRecord]) -> None: ...

    def sealed(self, batch: RecordBatch) -> None: ...

    def settled(self, lane: Lane, span: Span) -> None: ...

    def refused(self, rejections: Sequence[Rejection], records: Sequence[AnyRecord]) -> None: ...

    def lost(self, lane: Lane, first: int, last: int) -> None: ...


def _no_token() -> str:
    return ""


@define(eq=False, repr=False)
class Accumulator:
    """The lanes of all runs: takes records in, hands out batches, and learns what became of them.

    *linger*: the longest a record waits for company.  *limits*: what one request may hold.
    *kept_rejections*: how many refused records are kept by name.  *unit*: of the waits after
    refusals, see `Refusals`.
    """

    linger: float = 1.0
    limits: BatchLimits = field(factory=BatchLimits)
    new_token: Callable[[], str] = _no_token
    board: Board | None = None
    #: Told which records of a lane are settled.
    on_settled: Callable[[Lane, Sequence[AnyRecord]], None] | None = None
    journal: Notes | None = None
    kept_rejections: int = KEPT_REJECTIONS
    unit: float = 1.0
    #: The lanes of which there is something to do.
    lanes: dict[str, Lane] = field(factory=dict, init=False)
    #: Records in the lanes that are not in flight, and those that are.
    waiting: int = field(default=0, init=False)
    in_flight: int = field(default=0, init=False)
    #: Records that are only on disk.
    spooled: int = field(default=0, init=False)
    #: Memory of those that are not, in bytes.
    cost: int = field(default=0, init=False)
    batches_in_flight: int = field(default=0, init=False)
    delivered: int = field(default=0, init=False)
    #: Records abandoned on closing.
    abandoned: int = field(default=0, init=False)
    #: How many records were given up, by the class of the error.
    rejected: Counter[str] = field(factory=Counter, init=False)
    #: Records that were discarded, or found no room.
    dropped: int = field(default=0, init=False)
    #: The last refused records that nobody was told of, and how many there are of each run.
    refused: deque[Rejection] = field(init=False)
    unreported: Counter[str] = field(factory=Counter, init=False)
    #: Runs whose params and tags wait, since what a process before this one has left of them comes
    #: first; None while it is not known which.
    barred: frozenset[str] | None = field(default=frozenset(), init=False)
    line: Line = field(factory=Line, init=False)
    refusals: Refusals = field(init=False)
    #: Every lane that somebody holds on to: *lanes*, a writer, a record.
    _held_lanes: WeakValueDictionary[str, Lane] = field(factory=WeakValueDictionary, init=False)
    _first_seq: int = field(default=0, init=False)
    #: Whether the last batch that was tried was delivered.
    _gets_through: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.refused = deque(maxlen=self.kept_rejections)
        self.refusals = Refusals(self.unit)

    @property
    def unsettled(self) -> int:
        """Records that have no end yet."""
        return self.waiting + self.in_flight + self.spooled

    @property
    def memory(self) -> int:
        """Bytes that records take, and what is kept of refused ones."""
        return self.cost + len(self.refused) * REJECTION_COST

    # Taking in

    def lane(self, run_id: str) -> Lane:
        lane = self.lanes.get(run_id)
        if lane is None:
            lane = self._held_lanes.get(run_id) or Lane(run_id, self.board, self._first_seq)
            self._held_lanes[run_id] = lane
        return lane

    def forget_if_idle(self, lane: Lane) -> None:
        """Hold on no longer to a lane with nothing to do.

        One that is made for the same run later counts on from where no lane has been: what the
        journal still has to say about this one is not about that.
        """
        if lane.is_idle:
            self._first_seq = max(self._first_seq, lane.next_seq)
            self.lanes.pop(lane.run_id, None)

    def add(self, run_id: str, record: AnyRecord, now: float) -> None:
        """Take one record in."""
        record.place = self.lane(run_id)
        self.take_in((record,), now)

    def take_in(self, records: Sequence[AnyRecord], now: float) -> None:
        """Take records in, each of which has its lane as its *place*."""
        with_text = has_text(records)
        self._count(records, with_text=with_text)
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
            self.lanes.setdefault(lane.run_id, lane)
        lane.append(records, now, with_text=with_text)
        if self.journal is not None:
            self.journal.took(lane, first, records)
        # More metrics change nothing until they fill a request.
        if with_text or lane.ready_at is None or lane.is_full(self.limits):
            self._schedule(lane, now)

    def _count(self, records: Sequence[AnyRecord], sign: int = 1, *, with_text: bool) -> None:
        self.waiting += sign * len(records)
        self.cost += sign * _cost_of_all(records, with_text=with_text)

    # Being ready

    def bar(self, run_ids: frozenset[str] | None, now: float) -> None:
        """Have the params and tags of these runs wait, and of no others; None: of all runs."""
        self.barred = run_ids
        for lane in self.lanes.values():
            self._schedule(lane, now)

    def _is_barred(self, lane: Lane) -> bool:
        return self.barred is None or lane.run_id in self.barred

    def urge(self, lane: Lane, now: float) -> None:
        """Somebody waits for what the lane holds by now: it doesn't linger."""
        lane.urgent_until = lane.next_seq
        self._schedule(lane, now)

    def next_deadline(self) -> float | None:
        """When `drain` will have something to hand out; None while nothing waits that may leave."""
        return self.line.first()

    def _schedule(self, lane: Lane, now: float) -> None:
        ready_at = self._ready_at(lane, now)
        if ready_at != lane.ready_at or lane.is_troubled != (lane.failures > 0):
            self.line.put(lane, ready_at)

    def _ready_at(self, lane: Lane, now: float) -> float | None:
        if lane.barrier_in_flight:
            return None
        ready_at = self._others_ready_at(lane, now)
        if not lane.aside:
            return ready_at
        batch, not_before = lane.aside[0]
        if batch.is_barrier and (lane.in_flight or self._is_barred(lane)):
            return ready_at
        not_before = max(not_before, lane.left_at)
        return not_before if ready_at is None else min(ready_at, not_before)

    def _others_ready_at(self, lane: Lane, now: float) -> float | None:
        """When the lane is ready but for what was put aside."""
        if lane.sealed:
            batch, not_before = lane.sealed[0]
            if batch.is_barrier and (lane.in_flight or self._is_barred(lane)):
                return None
            return max(not_before, lane.left_at)
        if not lane.queue:
            return None
        if (lane.in_flight or self._is_barred(lane)) and lane.next_is_barrier(self.limits):
            return None
        if lane.next_spilled(self.limits) is not None and not lane.is_full(self.limits):
            return None  # more of it comes from the disk
        if lane.urgent_until > lane.head_seq or lane.is_full(self.limits):
            # Once ready it keeps its place in the line.
            return now if lane.ready_at is None else min(now, lane.ready_at)
        return max(lane.times[0] + self.linger, lane.left_at)

    # Handing out

    def drain(self, now: float, room: int = 1, *, troubled: int | None = None) -> list[RecordBatch]:
        """Up to *room* batches that are ready, now in flight.

        At most *troubled* of them are of lanes whose last attempt failed.
        """
        left = room if troubled is None else troubled
        batches: list[RecordBatch] = []
        while len(batches) < room:
            lane = self.line.take(now, troubled=left > 0)
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
            lane = self.line.take_proven(now) if healthy else None
            if lane is None:
                lane = self.line.take(now, healthy=False, troubled=troubled)
            if lane is None:
                return None
            for batch in self._departed(lane, now):
                return batch

    def _departed(self, lane: Lane, now: float) -> list[RecordBatch]:
        """The next batch of *lane*; none when all of its records are refused here."""
        lane.left_at = now
        batch = self._depart(lane, now)
        self._schedule(lane, now)
        if batch is None:
            self.forget_if_idle(lane)
            return []
        return [batch]

    def _depart(self, lane: Lane, now: float) -> RecordBatch | None:
        batch = self._next_batch(lane, now)
        if batch is None:
            return None
        batch.departed_at = now
        lane.in_flight += 1
        lane.barrier_in_flight = batch.is_barrier
        self.batches_in_flight += 1
        self.waiting -= len(batch.records)
        self.in_flight += len(batch.records)
        return batch

    def _next_batch(self, lane: Lane, now: float) -> RecordBatch | None:
        others_ready_at = self._others_ready_at(lane, now)
        if lane.aside and (others_ready_at is None or others_ready_at > now):
            return lane.aside.pop(0)[0]
        if not lane.sealed:
            self._seal(lane, now)
            if self.journal is not None and self._gets_through:
                self._seal_ahead(lane, now)
        return lane.sealed.pop(0)[0] if lane.sealed else None

    def _seal(self, lane: Lane, now: float) -> None:
        """Cut what fits one request from the head of the queue, and seal it."""
        first, since = lane.head_seq, lane.times[0]
        records = lane.cut(self.limits)
        span = Span(first, first + len(records), since)
        lane.add_span(span)
        parts, refused = self.refusals.apart(lane, records, now)
        ranges = [(first, span.last)]
        sealed = self._sealed(lane, span, records, ranges, parts, is_whole=True)
        lane.sealed += [(batch, now) for batch in sealed]
        for positions, error in refused:
            self._refuse_waiting(lane, span, [records[at] for at in positions], error)

    def _seal_ahead(self, lane: Lane, now: float) -> None:
        """Seal what is full anyway: the journal writes down the tokens of all in one commit.

        Not while the service is down: what is sealed can't be spilled.
        """
        while len(lane.sealed) < SEALED_AHEAD and not lane.text_seqs and lane.is_full(self.limits):
            self._seal(lane, now)

    def _sealed(
        self,
        lane: Lane,
        span: Span,
        records: list[AnyRecord],
        ranges: list[tuple[int, int]],
        parts: Iterable[Part],
        *,
        is_whole: bool = False,
    ) -> list[RecordBatch]:
        """Batches for the *parts* of *records*, which have the sequence numbers of *ranges*."""
        batches: list[RecordBatch] = []
        for part in parts:
            mine, numbers = records, ranges
            if len(part.positions) < len(records):
                everyone = list(numbers_of(ranges))
                mine = [records[at] for at in part.positions]
                numbers = ranges_of(everyone[at] for at in part.positions)
            for fitting, body, at in self._fit(lane, span, mine, numbers):
                has_all = is_whole and len(fitting) == span.last - span.first
                is_barrier = has_text(fitting)
                token = self.new_token()
                batches.append(
                    RecordBatch(
                        lane, fitting, body, token, span, is_barrier, at, has_all, part.is_final
                    )
                )
        for batch in batches:
            self._note_sealed(batch)
        return batches

    def _fit(
        self, lane: Lane, span: Span, records: list[AnyRecord], ranges: list[tuple[int, int]]
    ) -> list[tuple[list[AnyRecord], bytes, list[tuple[int, int]]]]:
        """*records* in as few halves as fit the limit of bytes, each with its body and ranges."""
        try:
            body = lane.encode(records)
        except Exception as error:  # one odd value costs one value: what else can be sent is
            if len(records) == 1:
                self._refuse_waiting(lane, span, records, _not_encodable(error))
                return []
        else:
            if len(body) <= self.limits.body_bytes or len(records) == 1:
                return [(records, body, ranges)]
        middle = len(records) // 2
        left, right = split(ranges, middle)
        first_half = self._fit(lane, span, records[:middle], left)
        return first_half + self._fit(lane, span, records[middle:], right)

    def _note_sealed(self, batch: RecordBatch) -> None:
        if self.journal is not None:
            self.journal.sealed(batch)

    # What became of a batch

    def succeed(self, batch: RecordBatch, now: float) -> None:
        """The service has it."""
        lane = batch.lane
        lane.failures = lane.fruitless = 0
        if lane.aside:
            lane.sealed[:0] = [(each, now) for each, _ in lane.aside]
            lane.aside.clear()
        self._gets_through = True
        self.refusals.delivered(batch)
        lane.delivered += len(batch.records)
        self.delivered += len(batch.records)
        for record in batch.records:
            record.place = DELIVERED
        self._settle(batch, now)

    def wait_turn(self, batch: RecordBatch, not_before: float, now: float) -> None:
        """It was throttled, or could not leave, which says nothing about the batch."""
        self._put_back(batch, [batch], not_before, now)

    def back_off(self, batch: RecordBatch, not_before: float, now: float) -> None:
        """No verdict: the same request goes again, with the same token."""
        self._note_failure(batch, now)
        self._put_back(batch, [batch], not_before, now)

    def put_aside(self, batch: RecordBatch, not_before: float, now: float) -> None:
        """The same of a single record that fails again and again: others go before it."""
        lane = batch.lane
        self._note_failure(batch, now)
        self._land(batch)
        self.waiting += len(batch.records)
        lane.aside = [*lane.aside, (batch, not_before)]
        self._schedule(lane, now)

    def _note_failure(self, batch: RecordBatch, now: float) -> None:
        batch.failures += 1
        batch.failed_at = now
        batch.lane.failures += 1
        self._gets_through = False

    def halve(self, batch: RecordBatch, now: float) -> None:
        """The service fails on this batch and takes others: look for the record that does it.

        The halves begin with what the whole has seen: the next failure halves them again.
        """
        self._note_failure(batch, now)
        batch.lane.fruitless += 1
        for part in (halves := self._parts(batch, in_halves(len(batch.records)))):
            part.failures, part.failed_at = batch.failures, batch.failed_at
            part.blamed, part.evidence = batch.blamed, batch.evidence
            part.contrasts = batch.contrasts
        self._put_back(batch, halves, now, now)

    def hurry(self, lane: Lane, now: float) -> None:
        """The service is back: the lane need not wait out the back-off of what failed."""
        lane.failures = 0
        lane.sealed = [(batch, min(not_before, now)) for batch, not_before in lane.sealed]
        lane.aside = [(batch, min(not_before, now)) for batch, not_before in lane.aside]
        self._schedule(lane, now)

    def renew(self, batch: RecordBatch, now: float) -> None:
        """The retry token is spent: the same body goes again under a new one."""
        renewed = evolve(batch, retry_token=self.new_token())
        self._note_sealed(renewed)
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
            self._put_back(batch, self._parts(batch, ruling.parts), now, now)
            if given_up:
                self._refuse_waiting(lane, batch.span, given_up, error)

    def too_large(self, batch: RecordBatch, error: AdpError, now: float) -> None:
        """413: the service takes less than we thought.  Halves it, and keeps that in mind."""
        if len(batch.records) == 1:
            self.give_up(batch, error, now)
            return
        # A little more than half of it, since halves are never quite equal.
        learned = max(SMALLEST_BODY_LIMIT, len(batch.body) * 9 // 16)
        if learned < self.limits.body_bytes:
            self.limits = evolve(self.limits, body_bytes=learned)
        halves = in_halves(len(batch.records))
        self._put_back(batch, self._parts(batch, halves), now, now)

    def give_up(self, batch: RecordBatch, error: AdpError, now: float) -> None:
        """No record of the batch will be delivered."""
        batch.lane.failures = 0
        self._reject(batch.lane, batch.records, error)
        self._settle(batch, now)

    def _reject(self, lane: Lane, records: Sequence[AnyRecord], error: AdpError) -> None:
        rejections = [_rejection(lane.run_id, record, error) for record in records]
        self._count_rejected(lane, error, len(records))
        lane.last_refused = rejections[-1]
        self.refused += rejections[-self.kept_rejections :]
        for record, rejection in zip(records, rejections, strict=True):
            record.place = GivenUp(delivery_error([rejection]))
        if self.journal is not None:
            self.journal.refused(rejections, records)

    def _refuse_waiting(
        self, lane: Lane, span: Span, records: list[AnyRecord], error: AdpError
    ) -> None:
        """Records that are not in flight won't be sent: the service refuses such."""
        self._reject(lane, records, error)
        self.waiting -= len(records)
        self._close(lane, span, records, with_text=has_text(records))

    def _count_rejected(self, lane: Lane, error: AdpError, count: int) -> None:
        name = type(error).__name__
        lane.refused_count += count
        lane.rejected[name] = lane.rejected.get(name, 0) + count
        self.rejected[name] += count
        # Beyond so many runs they are counted together.
        is_known = lane.run_id in self.unreported or len(self.unreported) < KEPT_RUNS
        self.unreported[lane.run_id if is_known else ""] += count

    def refused_of(self, run_id: str | None = None) -> tuple[list[Rejection], int]:
        """What `take_refused` would return; it is still to be told."""
        if run_id is None:
            return list(self.refused), self.unreported.total()
        rejections = [each for each in self.refused if each.run_id == run_id]
        return rejections, self.unreported[run_id]

    def take_refused(self, run_id: str | None = None) -> tuple[list[Rejection], int]:
        """What was refused since somebody was last told, of one run or of all; and how many."""
        if run_id is None:
            rejections, count = list(self.refused), self.unreported.total()
            self.refused.clear()
            self.unreported.clear()
            return rejections, count
        count = self.unreported.pop(run_id, 0)
        if not count:
            return [], 0
        rejections = [each for each in self.refused if each.run_id == run_id]
        others = [each for each in self.refused if each.run_id != run_id]
        self.refused.clear()
        self.refused += others
        return rejections, count

    def discard(self, lane: Lane, now: float, error: AdpError) -> int:
        """Give up what waits for a run: how many records that were.

        What is in flight is not tried again, see `drop`.
        """
        first, spilled = lane.settled_until, lane.spooled
        here, held = lane.discard()
        self.waiting -= len(here)
        self.spooled -= spilled
        self.cost -= _cost_of_all(here, with_text=bool(here) and has_text(here))
        for record in (gone := [*here, *held]):
            record.place = GivenUp(error)
        self.count_dropped(lane, len(here) + spilled)
        if self.journal is not None:
            self.journal.settled(lane, Span(first, lane.next_seq))
        self._schedule(lane, now)
        self._tell_settled(lane, gone)
        self.forget_if_idle(lane)
        return len(here) + spilled

    def drop(self, batch: RecordBatch, error: AdpError, now: float) -> None:
        """It was in flight when its run was discarded, and was not delivered."""
        for record in batch.records:
            record.place = GivenUp(error)
        self.count_dropped(batch.lane, len(batch.records))
        self._settle(batch, now)

    def count_dropped(self, lane: Lane, count: int) -> None:
        lane.dropped += count
        self.dropped += count

    def abandon(self) -> list[tuple[Lane, int, list[AnyRecord]]]:
        """Nothing will be delivered any more, and nothing is held here any longer.

        By lane: how many records are left, and those of them that are not only on disk.
        """
        left = []
        for lane in self.lanes.values():
            count = lane.unsettled
            records = lane.clear()
            if count:
                left.append((lane, count, records))
        self.abandoned += self.unsettled
        self.waiting = self.spooled = self.cost = 0
        self.line.clear()
        return left

    # What is on disk only

    def spill(self, lane: Lane, now: float, *, keep: int, journaled_until: int) -> int:
        """Spill journaled records but for the queue's first *keep*; returns how many that were."""
        records = lane.spill(keep, journaled_until)
        self._count(records, -1, with_text=has_text(records))
        self.spooled += len(records)
        self._schedule(lane, now)
        return len(records)

    def next_spilled(self, lane: Lane) -> tuple[int, int] | None:
        """The records that should be read from the disk next; None while enough wait here."""
        return lane.next_spilled(self.limits)

    def reload(self, lane: Lane, first: int, records: list[AnyRecord], now: float) -> None:
        """What `next_spilled` named has been read: it waits here again."""
        lane.reload(first, records, now)
        self.spooled -= len(records)
        self._count(records, with_text=has_text(records))
        self._schedule(lane, now)

    def cannot_reload(self, lane: Lane, now: float) -> None:
        """What `next_spilled` named can't be read: what waits before it leaves first."""
        lane.has_gap = True
        self._schedule(lane, now)

    def lose_spilled(self, lane: Lane, last: int, error: AdpError, now: float) -> None:
        """What is next on disk can't be read, up to *last*: counted as rejected.

        Only when nothing waits before it.
        """
        first, _ = lane.spilled[0]
        held = lane.lose_spilled(last, now)
        self.spooled -= last - first
        self._count_rejected(lane, error, last - first)
        for record in held:
            record.place = GivenUp(error)
        if self.journal is not None:
            self.journal.lost(lane, first, last)
        self._schedule(lane, now)
        self._tell_settled(lane, held)

    def restore(
        self,
        run_id: str,
        spilled: Sequence[tuple[int, int]],
        sealed: Sequence[tuple[Sequence[tuple[int, int]], str, list[AnyRecord]]],
        last: int,
    ) -> None:
        """A run of a process that died: ranges on disk, and (ranges, token, records) of batches.

        *last* is where its records on disk end, delivered ones included.
        """
        lane = self.lanes[run_id] = self.lane(run_id)
        lane.spilled = [*lane.spilled, *spilled]
        self.spooled += lane.spooled
        span = Span(0, 0)
        for ranges, token, records in sorted(sealed, key=itemgetter(0)):
            if not lane.spans or ranges[0][0] >= span.last:
                span = Span(ranges[0][0], ranges[-1][1])
                span.open = 0
                lane.add_span(span)
            # Parts of a batch that was taken apart share its span.
            span.last = max(span.last, ranges[-1][1])
            span.open += len(records)
            body, is_barrier = lane.encode(records), has_text(records)
            batch = RecordBatch(lane, records, body, token, span, is_barrier, list(ranges))
            lane.sealed.append((batch, 0.0))
            self._count(records, with_text=is_barrier)
        lane.next_seq = last
        lane.head_seq = spilled[0][0] if spilled else last
        self._schedule(lane, 0.0)

    def _parts(self, batch: RecordBatch, parts: Sequence[Part]) -> list[RecordBatch]:
        return self._sealed(batch.lane, batch.span, batch.records, batch.ranges, parts)

    def _put_back(
        self, batch: RecordBatch, parts: list[RecordBatch], not_before: float, now: float
    ) -> None:
        self._land(batch)
        self.waiting += len(batch.records)
        batch.lane.sealed[:0] = [(part, not_before) for part in parts]
        self._schedule(batch.lane, now)

    def _settle(self, batch: RecordBatch, now: float) -> None:
        self._land(batch)
        self._close(batch.lane, batch.span, batch.records, with_text=batch.is_barrier)
        self._schedule(batch.lane, now)
        self.forget_if_idle(batch.lane)

    def _close(
        self, lane: Lane, span: Span, records: Sequence[AnyRecord], *, with_text: bool
    ) -> None:
        """*records* of a span are settled."""
        self.cost -= _cost_of_all(records, with_text=with_text)
        span.open -= len(records)
        if not span.open:
            lane.spans.remove(span)
            if self.journal is not None:
                self.journal.settled(lane, span)
        self._tell_settled(lane, records)

    def _tell_settled(self, lane: Lane, records: Sequence[AnyRecord]) -> None:
        if self.on_settled is not None:
            self.on_settled(lane, records)

    def _land(self, batch: RecordBatch) -> None:
        batch.lane.in_flight -= 1
        batch.lane.barrier_in_flight = False
        self.batches_in_flight -= 1
        self.in_flight -= len(batch.records)


_PLACE = attrgetter("place")


def _cost_of_all(records: Sequence[AnyRecord], *, with_text: bool) -> int:
    return sum(map(cost_of, records)) if with_text else len(records) * METRIC_COST


def _not_encodable(error: Exception) -> AdpError:
    return AdpError(f"the record cannot be written as JSON: {type(error).__name__}")


def _rejection(run_id: str, record: AnyRecord, error: AdpError) -> Rejection:
    step = record.step if type(record) is Metric else None
    return Rejection(run_id, KINDS[type(record)], record.key, step, error)


def delivery_error(
    rejections: Sequence[Rejection], *, rejected: int = 0, undelivered: int = 0, run_id: str = ""
) -> DeliveryError:
    """The error that names *rejections*; *rejected* counts those no longer kept as well."""
    rejected = rejected or len(rejections)
    parts = []
    if rejected:
        more = f" (and {rejected - 1} more)" if rejected > 1 else ""
        parts.append(
            f"the service refused {rejections[0]}{more}" if rejections else f"{rejected} refused"
        )
    if undelivered:
        of_run = f" of run {run_id}" if run_id else ""
        parts.append(f"{undelivered} records{of_run} were not delivered")
    return DeliveryError(
        "; ".join(parts),
        rejections=rejections,
        rejected=rejected,
        undelivered=undelivered,
        run_id=run_id or None,
    )
