"""What has to be written down so that it outlives the process, and what no longer has to.

The journal takes notes while the accumulator works, and `collect` turns them into the `Changes` of
one group commit.  What was delivered before its turn came is never written.  On disk a run has
ranges of records by sequence number, the retry tokens of the batches under way, and how far its
end is known; everything else follows from that.  Of a run that this process has started and that
has not ended yet there is also its `RunStart`.

Two rules keep a record from arriving twice.  A batch whose records are on disk doesn't leave
before its retry token is there too; and a batch that leaves before its records were written comes
with its token when they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from attrs import define, field, frozen

from adp_async._sansio import events

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adp_async._sansio.batch import RecordBatch
    from adp_async._sansio.events import Event
    from adp_async._sansio.lane import Lane
    from adp_async._sansio.records import AnyRecord
    from adp_async._sansio.run_start import RunStart
    from adp_async.errors import Rejection

#: Lane, sequence number of the first, records.
Taken: TypeAlias = "tuple[Lane, int, Sequence[AnyRecord]]"

#: Tokens of other processes that are kept while the disk takes none.
KEPT_TAKEN = 100_000
#: Records in one row: a row is read whole, and goes when its last record is settled.
CHUNK = 1000


@frozen
class Chunk:
    """Consecutive records of a run, from sequence number *first* on: one row."""

    run_id: str
    first: int
    records: Sequence[AnyRecord] = field(repr=False)

    @property
    def last(self) -> int:
        return self.first + len(self.records)


@frozen
class Sealed:
    """A batch that is under way: its records and its retry token.  Its body follows from that."""

    run_id: str
    ranges: tuple[tuple[int, int], ...]
    retry_token: str


@frozen
class Settled:
    """How far a run's end is known: all before *until*, and beyond that the spans of *done*."""

    run_id: str
    until: int
    done: tuple[tuple[int, int], ...] = ()


@frozen
class Refused:
    """A record that the service refused, kept until a person has seen it."""

    rejection: Rejection
    record: AnyRecord = field(repr=False)


@frozen
class Unreadable:
    """Records that can't be read back: their rows are set aside, and no longer waited for."""

    run_id: str
    first: int
    last: int


@define
class Changes:
    """One group commit."""

    #: Runs that were started here, as they stand now; and the keys of those that have ended.
    starts: list[RunStart] = field(factory=list)
    ended: list[str] = field(factory=list)
    chunks: list[Chunk] = field(factory=list)
    sealed: list[Sealed] = field(factory=list)
    settled: list[Settled] = field(factory=list)
    refused: list[Refused] = field(factory=list)
    unreadable: list[Unreadable] = field(factory=list)
    #: Tokens under which other processes handed some of its chunks over.
    taken: list[str] = field(factory=list)
    #: All but *chunks*, *sealed* and *taken* is written, whatever becomes of those.
    is_settled: bool = False
    #: Its chunks complete a batch that leaves and is partly on disk, where a token for a part of
    #: it would mean nothing: they are written beyond ``spool_limit``, too.
    is_due: bool = False
    #: What the notes were, should the commit fail.
    notes: Notes | None = None

    def __bool__(self) -> bool:
        return bool(self.chunks or self.sealed or self.ends or self.taken)

    @property
    def ends(self) -> bool:
        """Whether there is anything beside records and tokens."""
        runs = self.starts or self.ended
        return bool(runs or self.settled or self.refused or self.unreadable)


@define
class Notes:
    """What happened since the last commit."""

    took: list[Taken] = field(factory=list)
    sealed: list[RecordBatch] = field(factory=list)
    settled: set[Lane] = field(factory=set)
    refused: list[Refused] = field(factory=list)
    unreadable: list[Unreadable] = field(factory=list)
    taken: list[str] = field(factory=list)
    #: The lanes that hold what was handed over under the tokens of *taken*.
    pledged: set[Lane] = field(factory=set)
    #: By their keys, runs that were started here, as they stand now.
    starts: dict[str, RunStart] = field(factory=dict)
    #: Keys of those that have ended.
    ended: set[str] = field(factory=set)


@define(eq=False)
class Journal:
    """What is on disk, and the notes since.  Belongs to the thread of the accumulator."""

    #: Up to which sequence number a lane's records are certainly on disk.
    journaled_until: dict[Lane, int] = field(factory=dict, init=False)
    #: The same, with the commit under way; lanes of which nothing is on disk are not here.
    _written_until: dict[Lane, int] = field(factory=dict, init=False)
    _notes: Notes = field(factory=Notes, init=False)

    @property
    def is_dirty(self) -> bool:
        notes = self._notes
        ends = notes.refused or notes.settled or notes.unreadable
        return bool(notes.took or ends or notes.taken or notes.starts or notes.ended)

    @property
    def has_unwritten(self) -> bool:
        """Whether records wait to be written."""
        return bool(self._notes.took)

    def concerns(self, batch: RecordBatch) -> bool:
        """Whether something has to be written before *batch* leaves.

        That is its token, when its records are on disk or will be in a moment.  And for params
        and tags, that what they overwrite was delivered: it must not come back.  And that records
        of another process are here, which sends them again unless that is on disk.
        """
        if batch.lane in self._notes.pledged:
            return True
        is_written = batch.span.first < self._written_until.get(batch.lane, 0)
        return is_written or (batch.is_barrier and batch.lane in self._notes.settled)

    # What happens in the lanes

    def note(self, event: Event) -> None:
        """What of *event* has to be written down."""
        match event:
            case events.Took(lane, first, records):
                self._notes.took.append((lane, first, records))
            case events.Sealed(batch):
                self._notes.sealed.append(batch)
            case events.Settled(lane, _, span):
                if span is not None and span.first < self._written_until.get(lane, 0):
                    self._notes.settled.add(lane)
            case events.Refused(rejections, records, _, _):
                pairs = zip(rejections, records, strict=True)
                self._notes.refused.extend(Refused(*pair) for pair in pairs)
            case lost:
                unreadable = Unreadable(lost.lane.key, lost.first, lost.last)
                self._notes.unreadable.append(unreadable)
                self._notes.settled.add(lost.lane)

    def note_start(self, start: RunStart) -> None:
        """A run that was started here stands so now."""
        self._notes.starts[start.key] = start

    def note_ended(self, key: str) -> None:
        """The run with that key has ended, or others end it: nothing is kept of it."""
        self._notes.starts.pop(key, None)
        self._notes.ended.add(key)

    def pledge(self, lane: Lane, token: str) -> None:
        """What was just noted of *lane* came from another process, under *token*.

        Both are written in one transaction, and nothing of it leaves before that.
        """
        self._notes.taken.append(token)
        self._notes.pledged.add(lane)

    def restored(self, lane: Lane) -> None:
        """*lane* is that of a process that died: all of it is on disk."""
        self.journaled_until[lane] = lane.next_seq
        self._written_until[lane] = lane.next_seq

    # Commits

    def collect(self) -> Changes:
        """What to commit now.  Afterwards call `committed` or `failed`."""
        notes, self._notes = self._notes, Notes()
        return self._changes(notes)

    def collect_for(self, batch: RecordBatch) -> Changes:
        """What `concerns` it: its token with its records, and what its texts overwrite is settled.

        The tokens of others that leave at the same time come along, when their records are there.
        """
        notes = self._notes
        if batch.lane in notes.pledged:
            # Records that were handed over together are written together.
            changes = self.collect()
            changes.is_due = self._is_partly_written(batch)
            return changes
        took, took_later = _divided(notes.took, batch.lane, batch.span.last)
        sealed: list[RecordBatch] = []
        sealed_later: list[RecordBatch] = []
        for each in notes.sealed:
            is_written = each.span.last <= self._written_until.get(each.lane, 0)
            # Parts of one batch together: their tokens replace that of the whole.
            goes_now = is_written or each.span is batch.span
            (sealed if goes_now else sealed_later).append(each)
        now, self._notes = Notes(took, sealed), Notes(took_later, sealed_later)
        self._notes.taken, self._notes.pledged = notes.taken, notes.pledged
        # What the service calls the run has to be there before any token; that a run has ended,
        # not before what was settled in it.
        now.starts = notes.starts
        ends = now if batch.is_barrier else self._notes
        ends.settled, ends.refused = notes.settled, notes.refused
        ends.unreadable, ends.ended = notes.unreadable, notes.ended
        changes = self._changes(now)
        changes.is_due = self._is_partly_written(batch)
        return changes

    def _is_partly_written(self, batch: RecordBatch) -> bool:
        on_disk = self.journaled_until.get(batch.lane, 0)
        return batch.span.first < on_disk < batch.span.last

    def _changes(self, notes: Notes) -> Changes:
        changes = Changes(
            list(notes.starts.values()),
            list(notes.ended),
            refused=notes.refused,
            unreadable=notes.unreadable,
            taken=notes.taken,
            notes=notes,
        )
        for lane, first, records in _joined(notes.took):
            if chunks := _chunks(lane, first, records):
                changes.chunks.extend(chunks)
                self._written_until[lane] = chunks[-1].last
        for batch in notes.sealed:
            if batch.span.open:
                changes.sealed.append(_sealed(batch))
        for lane in notes.settled:
            changes.settled.append(Settled(lane.key, lane.settled_until, lane.settled_beyond()))
        return changes

    def committed(self, changes: Changes) -> None:
        """*changes* are on disk."""
        notes = changes.notes
        assert notes is not None
        for lane, first, records in notes.took:
            self.journaled_until[lane] = first + len(records)
        # Rows of a lane that has nothing left went with this commit: no need to remember it.
        noted = self._notes.settled.union(lane for lane, _, _ in self._notes.took)
        for lane in notes.settled.union(lane for lane, _, _ in notes.took) - noted:
            if lane.is_idle:
                self._written_until.pop(lane, None)
                self.journaled_until.pop(lane, None)

    def prune(self) -> None:
        """Forget notes of what was delivered meanwhile: the next commit may be far away."""
        notes = self._notes
        notes.took = [each for each in notes.took if _end(each) > each[0].settled_until]
        notes.sealed = [batch for batch in notes.sealed if batch.span.open]

    def failed(self, changes: Changes) -> None:
        """*changes* are not on disk: their notes are kept for the next commit."""
        notes, later = changes.notes, self._notes
        assert notes is not None
        for lane in {lane for lane, *_ in notes.took}:
            # What is not on disk needs no token there, and must not wait for one.
            self._written_until.pop(lane, None)
            if lane in self.journaled_until:
                self._written_until[lane] = self.journaled_until[lane]
        kept = Notes() if changes.is_settled else notes
        self._notes = Notes(
            notes.took + later.took,
            notes.sealed + later.sealed,
            kept.settled | later.settled,
            kept.refused + later.refused,
            kept.unreadable + later.unreadable,
            (notes.taken + later.taken)[-KEPT_TAKEN:],
            notes.pledged | later.pledged,
            {key: each for key, each in kept.starts.items() if key not in later.ended}
            | later.starts,
            kept.ended | later.ended,
        )
        self.prune()


def _end(taken: Taken) -> int:
    return taken[1] + len(taken[2])


def _sealed(batch: RecordBatch) -> Sealed:
    return Sealed(batch.lane.key, tuple(batch.ranges), batch.retry_token)


def _divided(took: list[Taken], lane: Lane, until: int) -> tuple[list[Taken], list[Taken]]:
    """What was taken into *lane* before *until*, and the rest."""
    before, after = [], []
    for note in took:
        taken, first, records = note
        count = until - first if taken is lane else 0
        if count >= len(records):
            before.append(note)
        elif count <= 0:
            after.append(note)
        else:
            before.append((lane, first, records[:count]))
            after.append((lane, until, records[count:]))
    return before, after


def _joined(took: list[Taken]) -> list[Taken]:
    """What was taken into a lane in many small helpings, in one."""
    helpings: dict[Lane, list[Taken]] = {}
    for note in took:
        helpings.setdefault(note[0], []).append(note)
    return [
        notes[0]
        if len(notes) == 1
        else (lane, notes[0][1], [record for note in notes for record in note[2]])
        for lane, notes in helpings.items()
    ]


def _chunks(lane: Lane, first: int, records: Sequence[AnyRecord]) -> list[Chunk]:
    """*records* that are not settled yet, in pieces of a row each."""
    chunks = []
    for start, end in lane.unsettled_within(first, first + len(records)):
        for at in range(start, end, CHUNK):
            upto = min(end, at + CHUNK)
            chunks.append(Chunk(lane.key, at, records[at - first : upto - first]))
    return chunks
