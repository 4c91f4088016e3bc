"""What happened in the lanes: facts for the journal, the waiters and the intake.

The accumulator calls nobody.  It keeps a list of these, which the shell takes and hands on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adp_async._sansio.batch import RecordBatch, Span
    from adp_async._sansio.lane import Lane
    from adp_async._sansio.records import AnyRecord
    from adp_async.errors import Rejection


class Took(NamedTuple):
    """Records came into *lane*; the first of them has the sequence number *first*."""

    lane: Lane
    first: int
    records: Sequence[AnyRecord]


class Sealed(NamedTuple):
    """*batch* has its body and its retry token."""

    batch: RecordBatch


class Refused(NamedTuple):
    """*records* of *lane* were refused, each with its rejection.  `Settled` follows.

    *numbers* are their sequence numbers; empty when they were never taken in.
    """

    rejections: Sequence[Rejection]
    records: Sequence[AnyRecord]
    lane: Lane
    numbers: Sequence[int]


class Lost(NamedTuple):
    """Records *first* to *last* (exclusive) of *lane* can't be read from the disk."""

    lane: Lane
    first: int
    last: int


class Settled(NamedTuple):
    """*records* of *lane* are settled, and with them all of *span*, unless that is None."""

    lane: Lane
    records: Sequence[AnyRecord]
    span: Span | None = None


Event: TypeAlias = Took | Sealed | Refused | Lost | Settled
