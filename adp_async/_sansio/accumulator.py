"""What waits, and what may leave when: lanes of records, cut into batches.

A *lane* is one run's queue.  Records have a sequence number in their lane, counted from 0 in the
order of the calls; a batch covers a *span* of them.  A lane is ready when it is full, when its
first record has lingered long enough, or when somebody waits for it; ready lanes leave in the
order in which they became ready, and after one batch a lane goes to the end of the line, so that
lanes take turns.

Rules of order within a run: batches of metrics alone fly in parallel; one with params or tags is
a barrier: it leaves when nothing of the run is in flight, and nothing else leaves until its end.

All of this belongs to one thread.  Nothing here knows the time, draws a random number or waits:
*now* is an argument, retry tokens come from *new_token*.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from heapq import heappop, heappush
from operator import attrgetter
from typing import TYPE_CHECKING, Protocol
from weakref import WeakValueDictionary

from attrs import define, evolve, field

from adp_async._sansio.lane import Lane, RecordBatch, Span
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
from adp_async.errors import AdpError, DeliveryError, Rejection

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adp_async._sansio.lane import Board
    from adp_async._sansio.records import AnyRecord

#: A service that refuses bodies smaller than this as too large has some other trouble.
SMALLEST_BODY_LIMIT = 16 * 1024

#: Refused records that a lane keeps by name.
KEPT_REJECTIONS = 1000

#: Records of a key that never got through which must be refused alone before others of that key
#: are given up together; and how many keys that did get through a lane remembers.
ENOUGH_REFUSALS = 10
PROVEN_KEYS = 10_000

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
    """

    linger: float = 1.0
    limits: BatchLimits = field(factory=BatchLimits)
    new_token: Callable[[], str] = _no_token
    board: Board | None = None
    #: Told which records of a lane have their end.
    on_settled: Callable[[Lane, Sequence[AnyRecord]], None] | None = None
    journal: Notes | None = None
    #: The lanes of which there is something to do, or to say.
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
    #: Records that were left behind at the end.
    abandoned: int = field(default=0, init=False)
    #: How many records were given up, by the class of the error.
    rejected: Counter[str] = field(factory=Counter, init=False)
    _line: list[tuple[float, int, Lane]] = field(factory=list, init=False)
    _entries: int = field(default=0, init=False)
    #: Every lane that somebody holds on to: *lanes*, a writer, a record.
    _held_lanes: WeakValueDictionary[str, Lane] = field(factory=WeakValueDictionary, init=False)
    _first_seq: int = field(default=0, init=False)
    #: Whether the last batch that was tried was delivered.
    _gets_through: bool = field(default=False, init=False)

    @property
    def unsettled(self) -> int:
        """Records that have no end yet."""
        return self.waiting + self.in_flight + self.spooled

    # Taking in

    def lane(self, run_id: str) -> Lane:
        lane = self.lanes.get(run_id)
        if lane is None:
            lane = self._held_lanes.get(run_id) or Lane(run_id, self.board, self._first_seq)
            self._held_lanes[run_id] = lane
        return lane

    def forget_if_idle(self, lane: Lane) -> None:
        """Hold on no longer to a lane of which there is nothing to say or to do.

        One that is made for the same run later counts on from where no lane has been: what the
        journal still has to say about this one is not about that.
        """
        if lane.is_idle and lane.refused_count == lane.reported:
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

    def urge(self, lane: Lane, now: float) -> None:
        """Somebody waits for what the lane holds by now: it doesn't linger."""
        lane.urgent_until = lane.next_seq
        self._schedule(lane, now)

    def next_deadline(self) -> float | None:
        """When `drain` will have something to hand out; None while nothing waits that may leave."""
        line = self._line
        while line and line[0][2].entry != line[0][1]:
            heappop(line)  # the lane has been given another time since
        return line[0][0] if line else None

    def _schedule(self, lane: Lane, now: float) -> None:
        ready_at = self._ready_at(lane, now)
        if ready_at == lane.ready_at:
            return
        lane.ready_at = ready_at
        self._entries += 1
        lane.entry = self._entries
        if ready_at is not None:
            heappush(self._line, (ready_at, self._entries, lane))

    def _ready_at(self, lane: Lane, now: float) -> float | None:
        if lane.barrier_in_flight:
            return None
        if lane.sealed:
            batch, not_before = lane.sealed[0]
            return None if batch.is_barrier and lane.in_flight else max(not_before, lane.left_at)
        if not lane.queue or (lane.in_flight and lane.next_is_barrier(self.limits)):
            return None
        if lane.next_spilled(self.limits) is not None and not lane.is_full(self.limits):
            return None  # more of it comes from the disk
        if lane.urgent_until > lane.head_seq or lane.is_full(self.limits):
            # Once ready it keeps its place in the line.
            return now if lane.ready_at is None else min(now, lane.ready_at)
        return max(lane.times[0] + self.linger, lane.left_at)

    # Handing out

    def drain(self, now: float, room: int = 1) -> list[RecordBatch]:
        """Up to *room* batches that are ready, now in flight."""
        batches: list[RecordBatch] = []
        while len(batches) < room:
            deadline = self.next_deadline()
            if deadline is None or deadline > now:
                break
            lane = self._line[0][2]
            lane.ready_at = None
            lane.entry = 0
            lane.left_at = now
            batches.append(self._depart(lane, now))
            self._schedule(lane, now)
        return batches

    def _depart(self, lane: Lane, now: float) -> RecordBatch:
        if not lane.sealed:
            self._seal(lane, now)
            if self.journal is not None and self._gets_through:
                self._seal_ahead(lane, now)
        batch, _ = lane.sealed.pop(0)
        lane.in_flight += 1
        lane.barrier_in_flight = batch.is_barrier
        self.batches_in_flight += 1
        self.waiting -= len(batch.records)
        self.in_flight += len(batch.records)
        return batch

    def _seal(self, lane: Lane, now: float) -> None:
        """Cut what fits one request from the head of the queue, and seal it."""
        first, since = lane.head_seq, lane.times[0]
        records = lane.cut(self.limits)
        span = Span(first, first + len(records), since)
        lane.spans.append(span)
        parts = lane.set_apart(records)
        fitting = [fit for part in parts for fit in self._fit(lane, part)]
        at = first if len(parts) == 1 else None
        for part, body in fitting:
            is_whole = len(fitting) == 1
            lane.sealed.append((self._batch(lane, part, body, span, at, is_whole=is_whole), now))
            at = None if at is None else at + len(part)

    def _seal_ahead(self, lane: Lane, now: float) -> None:
        """Seal what is full anyway: the journal writes down the tokens of all in one commit.

        Not while the service is down: what is sealed can't be let go of.
        """
        while len(lane.sealed) < SEALED_AHEAD and not lane.text_seqs and lane.is_full(self.limits):
            self._seal(lane, now)

    def _fit(self, lane: Lane, records: list[AnyRecord]) -> list[tuple[list[AnyRecord], bytes]]:
        """*records* in as few halves as fit the limit of bytes, each with its body."""
        body = lane.encode(records)
        if len(body) <= self.limits.body_bytes or len(records) == 1:
            return [(records, body)]
        return [fit for half in _halves(records) for fit in self._fit(lane, half)]

    def _batch(
        self,
        lane: Lane,
        records: list[AnyRecord],
        body: bytes,
        span: Span,
        first: int | None,
        *,
        is_whole: bool,
    ) -> RecordBatch:
        is_barrier = has_text(records)
        token = self.new_token()
        batch = RecordBatch(lane, records, body, token, span, is_barrier, is_whole, first)
        self._note_sealed(batch)
        return batch

    def _note_sealed(self, batch: RecordBatch) -> None:
        if self.journal is not None and batch.first is not None:
            self.journal.sealed(batch)

    # What became of a batch

    def succeed(self, batch: RecordBatch, now: float) -> None:
        """The service has it."""
        lane = batch.lane
        lane.failures = 0
        self._gets_through = True
        if lane.suspects:
            for record in batch.records:
                lane.suspects.pop((type(record), record.key), None)
        if len(lane.proven) < PROVEN_KEYS:
            lane.proven.update([record.key for record in batch.records])
        lane.delivered += len(batch.records)
        self.delivered += len(batch.records)
        for record in batch.records:
            record.place = DELIVERED
        self._settle(batch, now)

    def retry_later(self, batch: RecordBatch, not_before: float, now: float) -> None:
        """No verdict: the same request goes again, with the same token."""
        if not_before > now:  # else it was throttled, which says nothing about the batch
            batch.lane.failures += 1
            self._gets_through = False
        self._put_back(batch, [batch], not_before, now)

    def renew(self, batch: RecordBatch, now: float) -> None:
        """The retry token is spent: the same body goes again under a new one."""
        renewed = evolve(batch, retry_token=self.new_token())
        self._note_sealed(renewed)
        self._put_back(batch, [renewed], now, now)

    def refuse(self, batch: RecordBatch, error: AdpError, now: float) -> None:
        """The service's verdict on the request: find the bad records, and deliver the others.

        Takes apart what was refused before, or halves it; a record that is refused alone is given
        up.  A key that never got through, and of which ten records were refused alone, is bad
        itself: a batch of that key alone is given up as a whole then, or a bad key in a hot loop
        would cost a request for each point.
        """
        names = {(type(record), record.key) for record in batch.records}
        if len(names) == 1:
            name = names.pop()
            refusals = batch.lane.suspects.get(name, 0)
            if len(batch.records) == 1:
                self._suspect(batch.lane, name, refusals + 1)
            if len(batch.records) == 1 or self._is_bad_key(batch.lane, name[1], refusals):
                self.give_up(batch, error, now)
                return
        self._split(batch, now)

    def too_large(self, batch: RecordBatch, error: AdpError, now: float) -> None:
        """413: the service takes less than we thought.  Halves it, and keeps that in mind."""
        if len(batch.records) == 1:
            self.give_up(batch, error, now)
            return
        # A little more than half of it, since halves are never quite equal.
        learned = max(SMALLEST_BODY_LIMIT, len(batch.body) * 9 // 16)
        if learned < self.limits.body_bytes:
            self.limits = evolve(self.limits, body_bytes=learned)
        self._split(batch, now)

    def give_up(self, batch: RecordBatch, error: AdpError, now: float) -> None:
        """No record of the batch will be delivered."""
        lane = batch.lane
        lane.failures = 0
        refused = [_rejection(lane.run_id, record, error) for record in batch.records]
        lane.refused = [*lane.refused, *refused][-KEPT_REJECTIONS:]
        self._count_rejected(lane, error, len(refused))
        for record, rejection in zip(batch.records, refused, strict=True):
            record.place = GivenUp(delivery_error([rejection]))
        if self.journal is not None:
            self.journal.refused(refused, batch.records)
        self._settle(batch, now)

    def _count_rejected(self, lane: Lane, error: AdpError, count: int) -> None:
        name = type(error).__name__
        lane.refused_count += count
        lane.rejected[name] = lane.rejected.get(name, 0) + count
        self.rejected[name] += count

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
        self._line.clear()
        return left

    # What is on disk only

    def spill(self, lane: Lane, now: float, *, keep: int, journaled_until: int) -> int:
        """Let go of journaled records but for the queue's first *keep*; how many that were."""
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
        sealed: Sequence[tuple[int, str, list[AnyRecord]]],
        last: int,
    ) -> None:
        """A run of a process that died: ranges on disk, and (first, token, records) of batches.

        *last* is where its records on disk end, delivered ones included.
        """
        lane = self.lanes[run_id] = self.lane(run_id)
        lane.spilled.extend(spilled)
        self.spooled += lane.spooled
        for first, token, records in sealed:
            span = Span(first, first + len(records))
            lane.spans.append(span)
            body = lane.encode(records)
            is_barrier = has_text(records)
            batch = RecordBatch(lane, records, body, token, span, is_barrier, first=first)
            lane.sealed.append((batch, 0.0))
            self._count(records, with_text=is_barrier)
        lane.next_seq = last
        lane.head_seq = spilled[0][0] if spilled else last
        self._schedule(lane, 0.0)

    def _is_bad_key(self, lane: Lane, key: str, refusals: int) -> bool:
        is_proven = key in lane.proven or len(lane.proven) >= PROVEN_KEYS
        return refusals >= ENOUGH_REFUSALS and not is_proven

    def _suspect(self, lane: Lane, name: tuple[type, str], refusals: int) -> None:
        if name in lane.suspects or len(lane.suspects) < KEPT_REJECTIONS:
            lane.suspects[name] = refusals

    def _split(self, batch: RecordBatch, now: float) -> None:
        lane, at, parts = batch.lane, batch.first, []
        cuts = lane.set_apart(batch.records)
        if len(cuts) > 1:
            at = None
        else:
            cuts = _halves(batch.records)
        # A tag that was overwritten in the whole may be sent in a part, and make it larger.
        for records, body in [fit for cut in cuts for fit in self._fit(lane, cut)]:
            parts.append(self._batch(lane, records, body, batch.span, at, is_whole=False))
            at = None if at is None else at + len(records)
        self._put_back(batch, parts, now, now)

    def _put_back(
        self, batch: RecordBatch, parts: list[RecordBatch], not_before: float, now: float
    ) -> None:
        self._land(batch)
        self.waiting += len(batch.records)
        batch.lane.sealed[:0] = [(part, not_before) for part in parts]
        self._schedule(batch.lane, now)

    def _settle(self, batch: RecordBatch, now: float) -> None:
        lane, records = batch.lane, batch.records
        self._land(batch)
        self.cost -= _cost_of_all(records, with_text=batch.is_barrier)
        batch.span.open -= len(records)
        if not batch.span.open:
            lane.spans.remove(batch.span)
            if self.journal is not None:
                self.journal.settled(lane, batch.span)
        self._schedule(lane, now)
        self._tell_settled(lane, records)
        self.forget_if_idle(lane)

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


def _halves(records: list[AnyRecord]) -> list[list[AnyRecord]]:
    middle = len(records) // 2
    return [records[:middle], records[middle:]]


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
