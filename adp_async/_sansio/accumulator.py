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

import itertools
import sys
from bisect import bisect_left
from collections import Counter, defaultdict, deque
from heapq import heappop, heappush
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakValueDictionary

from attrs import define, evolve, field, frozen

from adp_async._sansio.records import (
    DELIVERED,
    KINDS,
    METRIC_COST,
    BatchLimits,
    GivenUp,
    Metric,
    Param,
    RunTag,
    cost_of,
    encode_records,
    has_text,
    take_first,
)
from adp_async.errors import AdpError, DeliveryError, Rejection

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence

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

#: Records that are read from the disk at once.
RELOADED = 10_000


class Span:
    """Records *first* to *last* (exclusive) of a lane, and how many of them have no end yet.

    *since* is when the first of them came.
    """

    __slots__ = ("first", "last", "open", "since")

    def __init__(self, first: int, last: int, since: float = 0.0) -> None:
        self.first = first
        self.last = last
        self.open = last - first
        self.since = since

    def __repr__(self) -> str:
        return f"<Span {self.first}-{self.last} | {self.open} open>"


@frozen(eq=False)
class RecordBatch:
    """Records of one run, sealed for one request: the body and the retry token never change.

    *is_barrier*: it holds params or tags.  *is_whole*: it covers its span alone; a part of a
    batch that was refused or too large does not.  *first*: the sequence number of its first
    record, None when they don't follow each other.
    """

    lane: Lane = field(repr=False)
    records: list[AnyRecord] = field(repr=False)
    body: bytes = field(repr=False)
    retry_token: str = field(repr=False)
    span: Span
    is_barrier: bool
    is_whole: bool = True
    first: int | None = None

    @property
    def run_id(self) -> str:
        return self.lane.run_id


class Lane:
    """One run's queue: what waits, what is in flight, and how far its end is known."""

    __slots__ = (
        "__weakref__",
        "barrier_in_flight",
        "board",
        "count",
        "delivered",
        "entry",
        "failures",
        "head_seq",
        "held",
        "in_flight",
        "left_at",
        "marked",
        "next_seq",
        "proven",
        "queue",
        "ready_at",
        "refused",
        "refused_count",
        "rejected",
        "reported",
        "run_id",
        "sealed",
        "spans",
        "spilled",
        "suspects",
        "tail",
        "text_cost",
        "text_seqs",
        "times",
        "urgent_until",
    )

    def __init__(self, run_id: str, board: Board | None, first_seq: int = 0) -> None:
        self.run_id = run_id
        #: Who can wait for a record of this lane; None in a test of the core.
        self.board = board
        self.queue: deque[AnyRecord] = deque()
        #: The sequence number of the queue's first record, and of the next one to come.
        self.head_seq = first_seq
        self.next_seq = first_seq
        # A deque is 600 bytes even when it is empty, which counts with ten thousand runs: what is
        # mostly empty, or short, is a list.
        #: Behind the queue: ranges of records that are only on disk, and those that came since.
        self.spilled: list[tuple[int, int]] = []
        self.tail: list[AnyRecord] = []
        #: Spilled records whose receipt somebody has, by their sequence number.
        self.held: dict[int, AnyRecord] = {}
        #: Records of the queue from a *marked* sequence number on came at the time beside it.
        self.marked: list[int] = []
        self.times: list[float] = []
        #: Params and tags in the queue: how many, where, and their memory.
        self.count: dict[type, int] = {Param: 0, RunTag: 0}
        self.text_seqs: list[int] = []
        self.text_cost = 0
        #: (batch, not before): sealed and not in flight, tried before or part of a refused one.
        self.sealed: list[tuple[RecordBatch, float]] = []
        self.in_flight = 0
        self.barrier_in_flight = False
        self.spans: list[Span] = []
        self.urgent_until = first_seq
        #: How often a record of that kind and key was refused alone; such travel apart.
        self.suspects: dict[tuple[type, str], int] = {}
        #: Keys of which a record was delivered: if another is refused, the key is not to blame.
        self.proven: set[str] = set()
        #: Attempts that failed since the last one that did not.
        self.failures = 0
        self.delivered = 0
        #: The last ones, by name, and how many they were in all.
        self.refused: list[Rejection] = []
        self.refused_count = 0
        #: The same by the class of the error.
        self.rejected: dict[str, int] = {}
        #: How many of them somebody was told of.
        self.reported = 0
        self.ready_at: float | None = None
        self.entry = 0
        #: When its last batch left: it is not ready before that, however old its records are.
        self.left_at = float("-inf")

    @property
    def settled_until(self) -> int:
        """Every record before this one has its end."""
        return min((span.first for span in self.spans), default=self.head_seq)

    def unsettled_within(self, first: int, last: int) -> list[tuple[int, int]]:
        """The parts of *first* to *last* that have no end yet."""
        queue_end = self.head_seq + len(self.queue)
        ranges = [(span.first, span.last) for span in self.spans]
        ranges += [(self.head_seq, queue_end), *self.spilled]
        ranges.append((self.next_seq - len(self.tail), self.next_seq))
        parts = ((max(start, first), min(end, last)) for start, end in sorted(ranges))
        return joined([(start, end) for start, end in parts if start < end])

    def settled_beyond(self) -> tuple[tuple[int, int], ...]:
        """Spans after `settled_until` that have their end already."""
        open_parts = self.unsettled_within(self.settled_until, self.next_seq)
        open_parts.append((self.next_seq, self.next_seq))
        neighbours = itertools.pairwise(open_parts)
        return tuple((end, start) for (_, end), (start, _) in neighbours if end < start)

    def mark(self, seq: int, now: float) -> None:
        """Records from *seq* on came *now*."""
        if not self.times or self.times[-1] != now:
            self.marked.append(seq)
            self.times.append(now)

    def forget_marks(self) -> None:
        """Keep that of the queue's first record, and those after it."""
        passed = 0 if self.queue else len(self.marked)
        while passed + 1 < len(self.marked) and self.marked[passed + 1] <= self.head_seq:
            passed += 1
        del self.marked[:passed]
        del self.times[:passed]

    @property
    def is_idle(self) -> bool:
        return not (self.queue or self.spans or self.spilled or self.tail)

    @property
    def spooled(self) -> int:
        """Records that are only on disk."""
        return sum(last - first for first, last in self.spilled)

    @property
    def unsettled(self) -> int:
        """Records that have no end yet, in flight or not."""
        sealed = sum(span.open for span in self.spans)
        return len(self.queue) + len(self.tail) + self.spooled + sealed

    def __repr__(self) -> str:
        return f"<Lane {self.run_id} | {self.unsettled} unsettled | {self.in_flight} in flight>"

    # A record's place until its end: who waits for it asks here.

    def wait(self, record: AnyRecord) -> Generator[Any, None, None]:
        return self._board().wait(self, record)

    def wait_blocking(self, record: AnyRecord, timeout: float | None) -> None:
        self._board().wait_blocking(self, record, timeout)

    def verdict(self, record: AnyRecord) -> None:
        return None

    def _board(self) -> Board:
        assert self.board is not None
        return self.board


class Board(Protocol):
    """Who knows how to wait: the shell around the accumulator."""

    def wait(self, lane: Lane, record: AnyRecord) -> Generator[Any, None, None]: ...

    def wait_blocking(self, lane: Lane, record: AnyRecord, timeout: float | None) -> None: ...

    def settled(self, lane: Lane, records: Sequence[AnyRecord]) -> None: ...


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
        lane.next_seq = first + len(records)
        if not lane.queue:  # else it is there
            self.lanes.setdefault(lane.run_id, lane)
        if lane.spilled:
            lane.tail.extend(records)
        else:
            lane.mark(first, now)
            self._enqueue(lane, records, first, with_text=with_text)
        if self.journal is not None:
            self.journal.took(lane, first, records)
        # More metrics change nothing until they fill a request.
        if with_text or lane.ready_at is None or self.is_full(lane):
            self._schedule(lane, now)

    def _count(self, records: Sequence[AnyRecord], sign: int = 1, *, with_text: bool) -> None:
        self.waiting += sign * len(records)
        self.cost += sign * _cost_of_all(records, with_text=with_text)

    def _enqueue(
        self, lane: Lane, records: Sequence[AnyRecord], first: int, *, with_text: bool
    ) -> None:
        lane.queue.extend(records)
        if with_text:
            for seq, record in enumerate(records, first):
                if type(record) is not Metric:
                    self._count_text(lane, record, seq)

    def _count_text(self, lane: Lane, record: AnyRecord, seq: int) -> None:
        lane.count[type(record)] += 1
        lane.text_seqs.append(seq)
        lane.text_cost += cost_of(record) - METRIC_COST

    def _uncount_texts(self, lane: Lane, records: Iterable[AnyRecord]) -> None:
        for record in records:
            if type(record) is not Metric:
                lane.count[type(record)] -= 1
                lane.text_cost -= cost_of(record) - METRIC_COST

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

    def is_full(self, lane: Lane) -> bool:
        """Whether more records would not fit into the lane's next request anyway."""
        limits, waiting = self.limits, len(lane.queue)
        if waiting >= limits.metrics or waiting >= limits.entities:
            return True
        return bool(lane.text_seqs) and (
            lane.count[Param] >= limits.params
            or lane.count[RunTag] >= limits.tags
            or lane.text_cost >= limits.body_bytes
        )

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
        if not lane.queue or (lane.in_flight and self._next_is_barrier(lane)):
            return None
        if self.next_spilled(lane) is not None and not self.is_full(lane):
            return None  # more of it comes from the disk
        if lane.urgent_until > lane.head_seq or self.is_full(lane):
            # Once ready it keeps its place in the line.
            return now if lane.ready_at is None else min(now, lane.ready_at)
        return max(lane.times[0] + self.linger, lane.left_at)

    def _next_is_barrier(self, lane: Lane) -> bool:
        """Whether a batch cut now would hold params or tags."""
        if not lane.text_seqs:
            return False
        ahead = lane.text_seqs[0] - lane.head_seq
        return ahead <= self.limits.metrics and ahead < self.limits.entities

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
        records = self._cut(lane)
        span = Span(first, first + len(records), since)
        lane.spans.append(span)
        parts = self._set_apart(lane, records)
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
        while len(lane.sealed) < SEALED_AHEAD and not lane.text_seqs and self.is_full(lane):
            self._seal(lane, now)

    def _cut(self, lane: Lane) -> list[AnyRecord]:
        if lane.text_seqs:
            records = self._cut_mixed(lane)
        else:
            count = min(len(lane.queue), self.limits.metrics, self.limits.entities)
            records = take_first(lane.queue, count)
        lane.head_seq += len(records)
        lane.forget_marks()
        return records

    def _cut_mixed(self, lane: Lane) -> list[AnyRecord]:
        limits = self.limits
        room = {Metric: limits.metrics, Param: limits.params, RunTag: limits.tags}
        records: list[AnyRecord] = []
        values: dict[str, str] = {}
        while lane.queue and len(records) < limits.entities:
            record = lane.queue[0]
            kind = type(record)
            if not room[kind]:
                break
            # Two values of one param in one request: the service would refuse all of it.
            if (
                type(record) is Param
                and values.setdefault(record.key, record.value) != record.value
            ):
                break
            room[kind] -= 1
            records.append(lane.queue.popleft())
            if kind is not Metric:
                lane.count[kind] -= 1
                lane.text_cost -= cost_of(record) - METRIC_COST
        texts = bisect_left(lane.text_seqs, lane.head_seq + len(records))
        del lane.text_seqs[:texts]
        return records

    def _set_apart(self, lane: Lane, records: list[AnyRecord]) -> list[list[AnyRecord]]:
        """Records of a kind and key that were refused before don't spoil a batch of others."""
        if not lane.suspects:
            return [records]
        parts: dict[tuple[type, str] | None, list[AnyRecord]] = {}
        for record in records:
            name = (type(record), record.key)
            parts.setdefault(name if name in lane.suspects else None, []).append(record)
        return list(parts.values())

    def _fit(self, lane: Lane, records: list[AnyRecord]) -> list[tuple[list[AnyRecord], bytes]]:
        """*records* in as few halves as fit the limit of bytes, each with its body."""
        body = _encode(lane, records)
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
            records = [record for batch, _ in lane.sealed for record in batch.records]
            records += [*lane.queue, *lane.held.values(), *lane.tail]
            if lane.unsettled:
                left.append((lane, lane.unsettled, records))
            for each in (lane.queue, lane.sealed, lane.spans, lane.spilled, lane.tail, lane.held):
                each.clear()
            lane.forget_marks()
        self.abandoned += self.unsettled
        self.waiting = self.spooled = self.cost = 0
        self._line.clear()
        return left

    # What is on disk only

    def spill(self, lane: Lane, *, keep: int, journaled_until: int) -> int:
        """Let go of journaled records but for the queue's first *keep*; how many that were."""
        if lane.spilled:
            return self._spill_tail(lane, journaled_until)
        start = lane.head_seq + keep
        if journaled_until <= start:
            return 0
        lane.tail = _popped(lane.queue, lane.next_seq - journaled_until)
        spilled = _popped(lane.queue, journaled_until - start)
        del lane.text_seqs[bisect_left(lane.text_seqs, start) :]
        for records in (spilled, lane.tail):
            self._uncount_texts(lane, records)
        lane.spilled.append((start, journaled_until))
        return self._let_go(lane, spilled, start)

    def _spill_tail(self, lane: Lane, journaled_until: int) -> int:
        first, last = lane.spilled.pop()
        count = max(0, journaled_until - last)
        lane.spilled.append((first, last + count))
        spilled = lane.tail[:count]
        del lane.tail[:count]
        return self._let_go(lane, spilled, last)

    def _let_go(self, lane: Lane, records: list[AnyRecord], first: int) -> int:
        self._count(records, -1, with_text=has_text(records))
        self.spooled += len(records)
        references = _references(records)
        if max(references, default=0) > _NO_RECEIPT:
            for seq, (record, count) in enumerate(zip(records, references, strict=True), first):
                if count > _NO_RECEIPT:
                    lane.held[seq] = record
        return len(records)

    def next_spilled(self, lane: Lane) -> tuple[int, int] | None:
        """The records that should be read from the disk next; None while enough wait here."""
        if not lane.spilled or len(lane.queue) >= self.limits.entities:
            return None
        first, last = lane.spilled[0]
        if lane.queue and first != lane.head_seq + len(lane.queue):
            return None  # there is a hole: what comes next has its place after the queue's end
        return first, min(last, first + RELOADED)

    def reload(self, lane: Lane, first: int, records: list[AnyRecord], now: float) -> None:
        """What `next_spilled` named has been read: it waits here again."""
        start, last = lane.spilled[0]
        assert start == first, "records come back in their order"
        if not lane.queue:
            lane.head_seq = first
        upto = first + len(records)
        lane.spilled[:1] = [(upto, last)] if upto < last else []
        if lane.held:
            records = [lane.held.pop(seq, record) for seq, record in enumerate(records, first)]
        for record in records:
            record.place = lane
        self.spooled -= len(records)
        self._count(records, with_text=has_text(records))
        lane.mark(first, now)
        self._enqueue(lane, records, first, with_text=has_text(records))
        if not lane.spilled and lane.tail:
            self._append_tail(lane, upto, now)
        self._schedule(lane, now)

    def lose_spilled(self, lane: Lane, last: int, error: AdpError, now: float) -> None:
        """What is next on disk can't be read, up to *last*: counted as rejected.

        Only when nothing waits before it, so that the queue has no hole.
        """
        assert not lane.queue
        first, end = lane.spilled[0]
        lane.spilled[:1] = [(last, end)] if last < end else []
        count = last - first
        lane.head_seq = last
        self.spooled -= count
        self._count_rejected(lane, error, count)
        lost = [lane.held.pop(seq) for seq in range(first, last) if seq in lane.held]
        for record in lost:
            record.place = GivenUp(error)
        if self.journal is not None:
            self.journal.lost(lane, first, last)
        if not lane.spilled and lane.tail:
            self._append_tail(lane, last, now)
        self._schedule(lane, now)
        if self.board is not None:
            self.board.settled(lane, lost)

    def _append_tail(self, lane: Lane, first: int, now: float) -> None:
        """What came while the lane was on disk has its turn."""
        lane.mark(first, now)
        self._enqueue(lane, lane.tail, first, with_text=has_text(lane.tail))
        lane.tail = []

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
            body = _encode(lane, records)
            is_barrier = has_text(records)
            batch = RecordBatch(lane, records, body, token, span, is_barrier, first=first)
            lane.sealed.append((batch, 0.0))
            self._count(records, with_text=has_text(records))
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
        cuts = self._set_apart(lane, batch.records)
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
        if self.board is not None:
            self.board.settled(lane, records)
        self.forget_if_idle(lane)

    def _land(self, batch: RecordBatch) -> None:
        batch.lane.in_flight -= 1
        batch.lane.barrier_in_flight = False
        self.batches_in_flight -= 1
        self.in_flight -= len(batch.records)


_PLACE = attrgetter("place")


def _popped(queue: deque[AnyRecord], count: int) -> list[AnyRecord]:
    """The last *count* records of *queue*, which no longer has them."""
    records = [queue.pop() for _ in range(count)]
    records.reverse()
    return records


def _references(records: list[AnyRecord]) -> list[int]:
    return list(map(sys.getrefcount, records))


#: References to a record that only its list holds on to; more is somebody with a receipt.  (It
#: depends on the version of Python how many there are.)
_NO_RECEIPT = _references([Metric("", 0.0, 0, 0)])[0]


def joined(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """*ranges*, which are sorted, made one where one begins at the other's end.

    >>> joined([(0, 10), (10, 12), (20, 30)])
    [(0, 12), (20, 30)]
    """
    whole: list[tuple[int, int]] = []
    for first, last in ranges:
        if whole and first <= whole[-1][1]:
            whole[-1] = (whole[-1][0], max(last, whole[-1][1]))
        else:
            whole.append((first, last))
    return whole


def _cost_of_all(records: Sequence[AnyRecord], *, with_text: bool) -> int:
    return sum(map(cost_of, records)) if with_text else len(records) * METRIC_COST


def _encode(lane: Lane, records: list[AnyRecord]) -> bytes:
    try:
        for record in records:
            record.place = None
        return encode_records(lane.run_id, records)
    finally:
        for record in records:
            record.place = lane


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
