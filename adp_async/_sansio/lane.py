"""One run's queue: its records in the order of the calls, what is sealed, and what is on disk only.

Records have a sequence number, counted from 0; where each of them is follows from it::

    settled │ spans: sealed, in flight or not │ queue │ spilled: on disk only │ tail
                                              ▲                                      ▲
                                      queue.head_seq                            next_seq

All of this belongs to one thread, and knows no time of its own.
"""

from __future__ import annotations

import itertools
import sys
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from attrs import define

from adp_async._sansio.ranges import joined
from adp_async._sansio.record_queue import RecordQueue
from adp_async._sansio.records import Metric, encode_records, has_text

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

    from adp_async._sansio.batch import RecordBatch, Span
    from adp_async._sansio.records import AnyRecord, BatchLimits
    from adp_async.errors import AdpError, Rejection

#: Records that are read from the disk at once.
RELOADED = 10_000

#: In the place of what a lane mostly has none of: a container of its own is made for the first one.
#: With twenty thousand runs the garbage collector visits each of them, again and again.
_NOTHING: Final[list[Any]] = []
_NO_KEYS: Final[set[str]] = set()

#: What records are told apart by when one of them is refused: their class and key.
Name: TypeAlias = "tuple[type, str]"


@define(eq=False)
class Suspect:
    """Records of one kind and key that the service refused, and none of which it took."""

    #: How many of them were refused when they were sent alone, or by name.
    refusals: int
    #: Why the last of them was.
    error: AdpError
    #: When records of it are sent again rather than refused here, and how long to wait after that.
    ask_at: float
    pause: float


class Waits(Protocol):
    """How a receipt is waited for: its way back from a record of a lane to the shell.

    The one thing of the shell that the core holds, and it never calls it by itself.
    """

    def wait(self, lane: Lane, record: AnyRecord) -> Generator[Any, None, None]: ...

    def wait_blocking(self, lane: Lane, record: AnyRecord, timeout: float | None) -> None: ...


class Lane:
    """One run's queue: what waits, what is in flight, and up to where it is settled."""

    __slots__ = (
        "__weakref__",
        "aside",
        "barrier_in_flight",
        "delivered",
        "discarded_until",
        "dropped",
        "entry",
        "failures",
        "fruitless",
        "has_gap",
        "held",
        "in_flight",
        "is_alarmed",
        "is_created",
        "is_full",
        "key",
        "last_refused",
        "left_at",
        "next_seq",
        "proven",
        "queue",
        "ready_at",
        "refused_count",
        "rejected",
        "run_id",
        "sealed",
        "spans",
        "spilled",
        "stands_in",
        "suspects",
        "tail",
        "told",
        "told_refused",
        "urgent_until",
        "waits",
    )

    def __init__(self, run_id: str, waits: Waits | None, first_seq: int = 0) -> None:
        #: What the run is called here, and on disk.  It never changes.
        self.key = run_id
        #: What the service calls it: the same, but for a run that started offline.
        self.run_id = run_id
        #: Whether the service has it; nothing leaves before.
        self.is_created = True
        #: How receipts of this lane are waited for; None when nobody has a receipt.
        self.waits = waits
        self.queue = RecordQueue(first_seq)
        #: The sequence number of the next record to come.
        self.next_seq = first_seq
        # A deque is 600 bytes even when it is empty, which counts with ten thousand runs: what is
        # mostly empty, or short, is a list.
        #: Behind the queue: ranges of records that are only on disk, and those that came since.
        self.spilled: list[tuple[int, int]] = _NOTHING
        self.tail: list[AnyRecord] = _NOTHING
        #: What is spilled can't be read back just now.
        self.has_gap = False
        #: Spilled records whose receipt somebody has, by their sequence number.
        self.held: dict[int, AnyRecord] = {}
        #: (batch, not before): sealed and not in flight, tried before or part of a refused one.
        self.sealed: list[tuple[RecordBatch, float]] = []
        #: The same of single records that failed again and again: others go before them.
        self.aside: list[tuple[RecordBatch, float]] = _NOTHING
        self.in_flight = 0
        self.barrier_in_flight = False
        self.spans: list[Span] = _NOTHING
        self.urgent_until = first_seq
        #: What was refused; such records travel apart.
        self.suspects: dict[Name, Suspect] = {}
        #: Keys of which a record was delivered: if another is refused, the key is not to blame.
        self.proven: set[str] = _NO_KEYS
        #: Attempts that failed since the last one with a verdict; the lane is in trouble then.
        self.failures = 0
        #: Batches taken apart since the last one that was delivered.
        self.fruitless = 0
        self.delivered = 0
        self.dropped = 0
        #: How many were refused, also by the class of the error; and the last one.
        self.refused_count = 0
        self.rejected: dict[str, int] = {}
        self.last_refused: Rejection | None = None
        #: What a person was told: the trouble it is in, and how many records were refused.
        self.told: type[AdpError] | None = None
        self.told_refused = 0
        #: Whether that trouble was a warning of its own, not one of many.
        self.is_alarmed = False
        #: Records before this one were discarded: those in flight are not tried again.
        self.discarded_until = first_seq
        #: Whether its next request is full: more records would not fit into it.
        self.is_full = False
        #: When it is ready, in which of the lines it stands, and its last place there.
        self.ready_at: float | None = None
        self.stands_in: list[Any] | None = None
        self.entry = 0
        #: When its last batch left: it is not ready before that, however old its records are.
        self.left_at = float("-inf")

    def __repr__(self) -> str:
        return f"<Lane {self.run_id} | {self.unsettled} unsettled | {self.in_flight} in flight>"

    def add_span(self, span: Span) -> None:
        """The records of *span* are sealed."""
        self.spans = self.spans or []
        self.spans.append(span)

    def prove(self, keys: Iterable[str]) -> None:
        """Records of *keys* were delivered."""
        self.proven = self.proven or set()
        self.proven.update(keys)

    # What is not settled yet

    @property
    def settled_until(self) -> int:
        """Every record before this one is settled."""
        return min((span.first for span in self.spans), default=self.queue.head_seq)

    def unsettled_within(self, first: int, last: int) -> list[tuple[int, int]]:
        """The parts of *first* to *last* that are not settled."""
        ranges = [(span.first, span.last) for span in self.spans]
        ranges += [(self.queue.head_seq, self.queue.end_seq), *self.spilled]
        ranges.append((self.next_seq - len(self.tail), self.next_seq))
        parts = ((max(start, first), min(end, last)) for start, end in sorted(ranges))
        return joined([(start, end) for start, end in parts if start < end])

    def settled_beyond(self) -> tuple[tuple[int, int], ...]:
        """Spans after `settled_until` that are settled already."""
        open_parts = self.unsettled_within(self.settled_until, self.next_seq)
        open_parts.append((self.next_seq, self.next_seq))
        neighbours = itertools.pairwise(open_parts)
        return tuple((end, start) for (_, end), (start, _) in neighbours if end < start)

    @property
    def is_idle(self) -> bool:
        return not (self.queue or self.spans or self.spilled or self.tail)

    @property
    def is_stuck(self) -> bool:
        """Whether there is nothing left but records that failed again and again."""
        busy = self.queue or self.sealed or self.spilled or self.tail or self.in_flight
        return bool(self.aside) and not busy

    def since(self) -> float | None:
        """When the oldest record came that is not settled; None when none waits.

        From any thread.
        """
        firsts = [*self.queue.times[:1], *(span.since for span in list(self.spans))]
        return min(firsts, default=None)

    @property
    def flying(self) -> int:
        """Records that are in flight."""
        held_back = sum(len(batch.records) for batch, _ in (*self.sealed, *self.aside))
        return sum(span.open for span in list(self.spans)) - held_back

    @property
    def spooled(self) -> int:
        """Records that are only on disk."""
        return sum(last - first for first, last in self.spilled)

    @property
    def unsettled(self) -> int:
        """Records that are not settled, in flight or not."""
        sealed = sum(span.open for span in self.spans)
        return len(self.queue) + len(self.tail) + self.spooled + sealed

    # A run that starts offline

    def hold(self) -> None:
        """The service does not have the run yet: nothing leaves."""
        self.is_created = False

    def name(self, run_id: str) -> None:
        """The service has the run, and calls it *run_id*."""
        self.run_id, self.is_created = run_id, True

    # The queue

    def append(self, records: Sequence[AnyRecord], now: float, *, with_text: bool) -> None:
        """The next records of the run, which came *now*."""
        self.next_seq += len(records)
        if self.spilled:
            self.tail = self.tail or []
            self.tail.extend(records)
        else:
            self.queue.put(records, now, with_text=with_text)

    def encode(self, records: list[AnyRecord], *, with_text: bool) -> bytes:
        """The body of a request with *records*, which are in this lane."""
        try:
            for record in records:
                record.place = None
            return encode_records(self.run_id, records, with_text=with_text)
        finally:
            for record in records:
                record.place = self

    def by_name(self, records: Sequence[AnyRecord]) -> dict[Name, list[int]]:
        """Positions in *records* by kind and key, in the order in which those first appear."""
        names: dict[Name, list[int]] = {}
        for at, record in enumerate(records):
            names.setdefault((type(record), record.key), []).append(at)
        return names

    def clear(self) -> list[AnyRecord]:
        """Hold nothing any longer.  Returns what waited here."""
        records = [record for batch, _ in (*self.aside, *self.sealed) for record in batch.records]
        records += [*self.queue, *self.held.values(), *self.tail]
        for each in (self.sealed, self.aside, self.spans, self.spilled, self.tail):
            each.clear()
        self.held.clear()
        self.queue.reset(self.queue.head_seq)
        return records

    def discard(self) -> tuple[list[AnyRecord], list[AnyRecord]]:
        """Hold nothing but what is in flight.

        What was held: records that waited here, and those that were on disk but for their receipt.
        """
        here = [*self.queue, *self.tail]
        for batch, _ in (*self.sealed, *self.aside):
            here += batch.records
            batch.span.open -= len(batch.records)
        held = list(self.held.values())
        self.spans = [span for span in self.spans if span.open]
        for each in (self.sealed, self.aside, self.tail, self.spilled):
            each.clear()
        self.held.clear()
        self.queue.reset(self.next_seq)
        self.has_gap = False
        self.discarded_until = self.urgent_until = self.next_seq
        return here, held

    # In trouble, and out of it

    def recover(self, now: float) -> None:
        """A batch was delivered: what was put aside is tried again with the others."""
        self.failures = self.fruitless = 0
        if self.aside:
            self.sealed[:0] = [(batch, now) for batch, _ in self.aside]
            self.aside.clear()

    def hurry(self, now: float) -> None:
        """End the waiting for a back-off."""
        self.failures = 0
        self.sealed = [(batch, min(not_before, now)) for batch, not_before in self.sealed]
        self.aside = [(batch, min(not_before, now)) for batch, not_before in self.aside]

    # What is on disk only

    def spill(self, keep: int, journaled_until: int) -> list[AnyRecord]:
        """Spill journaled records but for the queue's first *keep*; they are returned.

        Those whose receipt somebody has are held until they are settled.
        """
        if self.spilled:
            first, records = self._spill_tail(journaled_until)
        else:
            first, records = self._spill_queue(self.queue.head_seq + keep, journaled_until)
        references = _references(records)
        if max(references, default=0) > _NO_RECEIPT:
            for seq, (record, count) in enumerate(zip(records, references, strict=True), first):
                if count > _NO_RECEIPT:
                    self.held[seq] = record
        return records

    def _spill_queue(self, first: int, upto: int) -> tuple[int, list[AnyRecord]]:
        if upto <= first:
            return first, []
        records = self.queue.take_from(first)
        self.tail = records[upto - first :]
        del records[upto - first :]
        self.spilled = [(first, upto)]
        return first, records

    def _spill_tail(self, upto: int) -> tuple[int, list[AnyRecord]]:
        start, end = self.spilled.pop()
        count = max(0, upto - end)
        self.spilled.append((start, end + count))
        records = self.tail[:count]
        del self.tail[:count]
        return end, records

    def next_spilled(self, limits: BatchLimits) -> tuple[int, int] | None:
        """The records that should be read from the disk next; None while enough wait here."""
        if not self.spilled or len(self.queue) >= limits.entities:
            return None
        first, last = self.spilled[0]
        if self.queue and (self.has_gap or first != self.queue.end_seq):
            return None  # there is a hole: what comes next has its place after the queue's end
        return first, min(last, first + RELOADED)

    def reload(self, first: int, records: list[AnyRecord], now: float) -> None:
        """What `next_spilled` named has been read: it waits here again."""
        assert self.spilled[0][0] == first, "records come back in their order"
        if not self.queue:
            self.queue.head_seq = first
        if self.held:
            records = [self.held.pop(seq, record) for seq, record in enumerate(records, first)]
        for record in records:
            record.place = self
        self.queue.put(records, now, with_text=has_text(records))
        self._passed_on_disk(first + len(records), now)

    def lose_spilled(self, last: int, now: float) -> list[AnyRecord]:
        """What is next on disk is lost, up to *last*; returns those of it that are held.

        Only when nothing waits before it, so that the queue has no hole.
        """
        assert not self.queue
        lost = range(self.spilled[0][0], last)
        self.queue.head_seq = last
        self._passed_on_disk(last, now)
        return [self.held.pop(seq) for seq in lost if seq in self.held]

    def _passed_on_disk(self, upto: int, now: float) -> None:
        _, last = self.spilled[0]
        self.has_gap = False
        self.spilled[:1] = [(upto, last)] if upto < last else []
        if not self.spilled and self.tail:
            # What came while the lane was on disk has its turn.
            self.queue.put(self.tail, now, with_text=has_text(self.tail))
            self.tail = []

    # A record's place until it is settled: waiting for it starts here.

    def wait(self, record: AnyRecord) -> Generator[Any, None, None]:
        assert self.waits is not None
        return self.waits.wait(self, record)

    def wait_blocking(self, record: AnyRecord, timeout: float | None) -> None:
        assert self.waits is not None
        self.waits.wait_blocking(self, record, timeout)

    def verdict(self, record: AnyRecord) -> None:
        return None


def _references(records: list[AnyRecord]) -> list[int]:
    return list(map(sys.getrefcount, records))


#: References to a record that only its list holds on to; more is somebody with a receipt.  (It
#: depends on the version of Python how many there are.)
_NO_RECEIPT = _references([Metric("", 0.0, 0, 0)])[0]
