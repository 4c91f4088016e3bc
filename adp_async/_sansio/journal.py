"""What has to be written down so that it outlives the process, and what no longer has to.

The journal takes notes while the accumulator works, and `collect` turns them into the `Changes` of
one group commit.  What was delivered before its turn came is never written.  On disk a run has
ranges of records by sequence number, the retry tokens of the batches under way, and how far its
end is known; everything else follows from that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define, field, frozen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adp_async._sansio.accumulator import Lane, RecordBatch, Span
    from adp_async._sansio.records import AnyRecord
    from adp_async.errors import Rejection

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
    """A batch that is under way: its span and its retry token.  Its body follows from that."""

    run_id: str
    first: int
    last: int
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


@define
class Changes:
    """One group commit."""

    chunks: list[Chunk] = field(factory=list)
    sealed: list[Sealed] = field(factory=list)
    settled: list[Settled] = field(factory=list)
    refused: list[Refused] = field(factory=list)
    #: *settled* and *refused* are written, whatever becomes of the rest.
    is_settled: bool = False
    #: What the notes were, should the commit fail.
    notes: Notes | None = None

    def __bool__(self) -> bool:
        return bool(self.chunks or self.sealed or self.settled or self.refused)


@define
class Notes:
    """What happened since the last commit."""

    took: list[tuple[Lane, int, Sequence[AnyRecord]]] = field(factory=list)
    sealed: list[RecordBatch] = field(factory=list)
    settled: set[Lane] = field(factory=set)
    refused: list[Refused] = field(factory=list)


@define(eq=False)
class Journal:
    """What is on disk, and the notes since.  Belongs to the thread of the accumulator."""

    #: Up to which sequence number a lane's records are certainly on disk.
    journaled_until: dict[Lane, int] = field(factory=dict, init=False)
    #: Lanes with rows on disk, or in the commit under way, and their spans settled out of turn.
    _done: dict[Lane, set[tuple[int, int]]] = field(factory=dict, init=False)
    _notes: Notes = field(factory=Notes, init=False)

    @property
    def is_dirty(self) -> bool:
        notes = self._notes
        return bool(notes.took or notes.refused or notes.settled)

    # What the accumulator says

    def took(self, lane: Lane, first: int, records: Sequence[AnyRecord]) -> None:
        self._notes.took.append((lane, first, records))

    def sealed(self, batch: RecordBatch) -> None:
        self._notes.sealed.append(batch)

    def settled(self, lane: Lane, span: Span) -> None:
        done = self._done.get(lane)
        if done is not None:
            done.add((span.first, span.last))
            self._notes.settled.add(lane)

    def refused(self, rejections: Sequence[Rejection], records: Sequence[AnyRecord]) -> None:
        pairs = zip(rejections, records, strict=True)
        self._notes.refused.extend(Refused(rejection, record) for rejection, record in pairs)

    def restored(self, lane: Lane) -> None:
        """*lane* is that of a process that died: all of it is on disk."""
        self.journaled_until[lane] = lane.next_seq
        self._done[lane] = set()

    # Commits

    def collect(self) -> Changes:
        """What to commit now.  Afterwards call `committed` or `failed`."""
        notes, self._notes = self._notes, Notes()
        changes = Changes(refused=notes.refused, notes=notes)
        for lane, first, records in notes.took:
            changes.chunks.extend(_chunks(lane, first, records))
        for batch in notes.sealed:
            span = batch.span
            if span.open:
                sealed = Sealed(batch.run_id, span.first, span.last, batch.retry_token)
                changes.sealed.append(sealed)
        for lane in notes.settled:
            changes.settled.append(self._settled_of(lane))
        for chunk_lane, _, _ in notes.took:
            self._done.setdefault(chunk_lane, set())
        return changes

    def _settled_of(self, lane: Lane) -> Settled:
        until = lane.settled_until
        self._done[lane] = {span for span in self._done[lane] if span[0] >= until}
        return Settled(lane.run_id, until, tuple(sorted(self._done[lane])))

    def committed(self, changes: Changes) -> None:
        """*changes* are on disk."""
        assert changes.notes is not None
        for lane, first, records in changes.notes.took:
            self.journaled_until[lane] = first + len(records)
        for lane in changes.notes.settled:
            if lane.settled_until >= lane.next_seq:
                # Its rows went with this commit, or go with the next; no need to remember it.
                self._forget(lane)

    def _forget(self, lane: Lane) -> None:
        if lane not in self._notes.settled and not self._awaits(lane):
            self._done.pop(lane, None)
            self.journaled_until.pop(lane, None)

    def _awaits(self, lane: Lane) -> bool:
        return any(lane is taken for taken, _, _ in self._notes.took)

    def failed(self, changes: Changes) -> None:
        """*changes* are not on disk: their notes are kept for the next commit."""
        notes, later = changes.notes, self._notes
        assert notes is not None
        took = [note for note in notes.took if note[1] + len(note[2]) > note[0].settled_until]
        sealed = [batch for batch in notes.sealed if batch.span.open]
        settled: set[Lane] = set() if changes.is_settled else notes.settled
        refused = [] if changes.is_settled else notes.refused
        self._notes = Notes(
            took + later.took,
            sealed + later.sealed,
            settled | later.settled,
            refused + later.refused,
        )


def _chunks(lane: Lane, first: int, records: Sequence[AnyRecord]) -> list[Chunk]:
    """*records* that are not settled yet, in pieces of a row each."""
    start = max(0, lane.settled_until - first)
    return [
        Chunk(lane.run_id, first + at, records[at : at + CHUNK])
        for at in range(start, len(records), CHUNK)
    ]
