"""A batch: records of one run, sealed for one request, and their span in the lane."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define, field

if TYPE_CHECKING:
    from adp_async._sansio.lane import Lane
    from adp_async._sansio.records import AnyRecord


class Span:
    """Records *first* to *last* (exclusive) of a lane, and how many of them are not settled.

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


@define(eq=False)
class RecordBatch:
    """Records of one run, sealed for one request: the body and the retry token never change.

    *is_barrier*: it holds params or tags.  *ranges*: the sequence numbers of its records.
    *is_whole*: it covers its span alone; a part of a batch that was refused or too large does
    not.  *is_final*: when it is refused, all of its records are.
    """

    lane: Lane = field(repr=False)
    records: list[AnyRecord] = field(repr=False)
    body: bytes = field(repr=False)
    retry_token: str = field(repr=False)
    span: Span
    is_barrier: bool
    ranges: list[tuple[int, int]]
    is_whole: bool = True
    is_final: bool = False
    #: Attempts in a row that failed without a verdict on it; the last of them.
    failures: int = 0
    failed_at: float = 0.0
    #: Those since which the service is known to take something else.
    blamed: int = 0
    #: The last of those in a row, as far as the service said itself that it took nothing.
    breakdowns: int = 0
    #: How sure it is that a record is to blame: see `Dispatcher`; and how often it failed between
    #: two batches that did not.
    evidence: int = 0
    contrasts: int = 0
    departed_at: float = 0.0

    @property
    def run_id(self) -> str:
        """The id of the run that the records are of."""
        return self.lane.run_id

    def failed(self, now: float) -> None:
        """An attempt ended without a verdict."""
        self.failures += 1
        self.failed_at = now
        self.lane.failures += 1

    def begin_like(self, whole: RecordBatch) -> None:
        """This is a part of *whole*, and begins with what that has seen."""
        self.failures, self.failed_at = whole.failures, whole.failed_at
        self.blamed, self.evidence = whole.blamed, whole.evidence
        self.contrasts, self.breakdowns = whole.contrasts, whole.breakdowns
