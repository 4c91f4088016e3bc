"""Cuts the records of a lane into requests: within all limits, refused ones apart from the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from attrs import define, evolve

from adp_async._sansio.batch import RecordBatch, Span
from adp_async._sansio.ranges import numbers_at, numbers_of, ranges_of, split
from adp_async._sansio.records import has_text
from adp_async.errors import AdpError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from adp_async._sansio.lane import Lane
    from adp_async._sansio.records import AnyRecord, BatchLimits
    from adp_async._sansio.refusals import Part, Refusals

#: A service that refuses bodies smaller than this as too large has some other trouble.
SMALLEST_BODY_LIMIT = 16 * 1024


class Cut(NamedTuple):
    """Batches, and records that can't be sent, with their sequence numbers and the reason."""

    batches: list[RecordBatch]
    refused: list[tuple[list[AnyRecord], list[int], AdpError]]


class _Fitting(NamedTuple):
    """Records that fit one request, whether there are params or tags among them, their numbers."""

    records: list[AnyRecord]
    body: bytes
    with_text: bool
    ranges: list[tuple[int, int]]


@define(eq=False)
class Sealer:
    """Makes batches of one request each.

    *limits*: what one request may hold.  *tokens*: an endless supply of retry tokens.
    """

    limits: BatchLimits
    tokens: Iterator[str]

    def seal_next(self, lane: Lane, refusals: Refusals, now: float) -> tuple[Span, Cut]:
        """Cut what fits one request from the head of the queue, and seal it."""
        first, since = lane.queue.head_seq, lane.queue.times[0]
        records = lane.queue.cut(self.limits)
        span = Span(first, first + len(records), since)
        lane.add_span(span)
        parts, refused = refusals.apart(lane, records, now)
        cut = self.seal(lane, span, records, [(first, span.last)], parts, is_whole=True)
        for positions, error in refused:
            numbers = [first + at for at in positions]
            cut.refused.append(([records[at] for at in positions], numbers, error))
        return span, cut

    def seal(
        self,
        lane: Lane,
        span: Span,
        records: list[AnyRecord],
        ranges: list[tuple[int, int]],
        parts: Iterable[Part],
        *,
        is_whole: bool = False,
    ) -> Cut:
        """Batches for the *parts* of *records*, which have the sequence numbers of *ranges*.

        *is_whole*: the records are all of *span*.
        """
        cut = Cut([], [])
        for part in parts:
            mine, numbers = records, ranges
            if len(part.positions) < len(records):
                mine = [records[at] for at in part.positions]
                numbers = ranges_of(numbers_at(ranges, part.positions))
            for fitting, body, is_barrier, at in self._fit(lane, mine, numbers, cut):
                has_all = is_whole and len(fitting) == span.last - span.first
                token = next(self.tokens)
                cut.batches.append(
                    RecordBatch(
                        lane, fitting, body, token, span, is_barrier, at, has_all, part.is_final
                    )
                )
        return cut

    def _fit(
        self, lane: Lane, records: list[AnyRecord], ranges: list[tuple[int, int]], cut: Cut
    ) -> list[_Fitting]:
        """*records* in as few halves as fit the limit of bytes."""
        with_text = has_text(records)
        try:
            body = lane.encode(records, with_text=with_text)
        except Exception as error:  # one odd value costs one value: what else can be sent is
            if len(records) == 1:
                cut.refused.append((records, [*numbers_of(ranges)], _not_encodable(error)))
                return []
        else:
            if len(body) <= self.limits.body_bytes or len(records) == 1:
                return [_Fitting(records, body, with_text, ranges)]
        middle = len(records) // 2
        left, right = split(ranges, middle)
        first_half = self._fit(lane, records[:middle], left, cut)
        return first_half + self._fit(lane, records[middle:], right, cut)

    def renewed(self, batch: RecordBatch) -> RecordBatch:
        """The same body under a new token."""
        return evolve(batch, retry_token=next(self.tokens))

    def too_large(self, body: Sequence[int]) -> None:
        """The service takes no request of the size of *body*."""
        # A little more than half of it, since halves are never quite equal.
        learned = max(SMALLEST_BODY_LIMIT, len(body) * 9 // 16)
        if learned < self.limits.body_bytes:
            self.limits = evolve(self.limits, body_bytes=learned)


def _not_encodable(error: Exception) -> AdpError:
    return AdpError(f"the record cannot be written as JSON: {type(error).__name__}")
