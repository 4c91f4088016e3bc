"""The records of a run that wait in memory, in the order of the calls.

Beside them stands when they came, and where the params and tags are: so it is known without a
look at each record whether they fill a request, and whether the next one is a barrier.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from adp_async._sansio.records import METRIC_COST, Metric, Param, RunTag, cost_of, take_first

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from adp_async._sansio.records import AnyRecord, BatchLimits

#: In the place of what a queue mostly has none of, see `adp_async._sansio.lane`.
_NOTHING: Final[list[Any]] = []
_NO_TEXTS: Final[dict[type, int]] = {Param: 0, RunTag: 0}


class RecordQueue(deque["AnyRecord"]):
    """Records of one run.  *head_seq* is the sequence number of the first of them."""

    __slots__ = ("head_seq", "marked", "text_cost", "text_counts", "text_seqs", "times")

    def __init__(self, head_seq: int) -> None:
        super().__init__()
        self.head_seq = head_seq
        #: Records from a *marked* sequence number on came at the time beside it.
        self.marked: list[int] = []
        self.times: list[float] = []
        #: Params and tags: how many, where, and their memory.
        self.text_counts: dict[type, int] = _NO_TEXTS
        self.text_seqs: list[int] = _NOTHING
        self.text_cost = 0

    @property
    def end_seq(self) -> int:
        """The sequence number behind the last record."""
        return self.head_seq + len(self)

    def put(self, records: Sequence[AnyRecord], now: float, *, with_text: bool) -> None:
        """Records that came *now*, behind the others."""
        first = self.end_seq
        if not self.times or self.times[-1] != now:
            self.marked.append(first)
            self.times.append(now)
        self.extend(records)
        if with_text:
            self.text_seqs = self.text_seqs or []
            for seq, record in enumerate(records, first):
                if type(record) is not Metric:
                    self._count_text(record)
                    self.text_seqs.append(seq)

    def _count_text(self, record: AnyRecord, sign: int = 1) -> None:
        if self.text_counts is _NO_TEXTS:
            self.text_counts = dict(_NO_TEXTS)
        self.text_counts[type(record)] += sign
        self.text_cost += sign * (cost_of(record) - METRIC_COST)

    def _uncount_texts(self, records: Iterable[AnyRecord]) -> None:
        for record in records:
            if type(record) is not Metric:
                self._count_text(record, -1)

    def is_full(self, limits: BatchLimits) -> bool:
        """Whether more records would not fit into the next request anyway."""
        waiting = len(self)
        if waiting >= limits.metrics or waiting >= limits.entities:
            return True
        return bool(self.text_seqs) and (
            self.text_counts[Param] >= limits.params
            or self.text_counts[RunTag] >= limits.tags
            or self.text_cost >= limits.body_bytes
        )

    def is_full_of_metrics(self, limits: BatchLimits) -> bool:
        """The same, while there are no params and tags."""
        return not self.text_seqs and self.is_full(limits)

    def next_is_barrier(self, limits: BatchLimits) -> bool:
        """Whether a batch cut now would hold params or tags."""
        if not self.text_seqs:
            return False
        ahead = self.text_seqs[0] - self.head_seq
        return ahead <= limits.metrics and ahead < limits.entities

    def cut(self, limits: BatchLimits) -> list[AnyRecord]:
        """The first records, as many as one request may hold by their number."""
        if self.text_seqs:
            records = self._cut_mixed(limits)
        else:
            records = take_first(self, min(len(self), limits.metrics, limits.entities))
        self.head_seq += len(records)
        self._forget_marks()
        return records

    def _cut_mixed(self, limits: BatchLimits) -> list[AnyRecord]:
        room = {Metric: limits.metrics, Param: limits.params, RunTag: limits.tags}
        records: list[AnyRecord] = []
        values: dict[str, str] = {}
        while self and len(records) < limits.entities:
            record = self[0]
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
            records.append(self.popleft())
        self._uncount_texts(records)
        del self.text_seqs[: bisect_left(self.text_seqs, self.head_seq + len(records))]
        return records

    def _forget_marks(self) -> None:
        """Keep that of the first record, and those after it."""
        passed = len(self.marked)
        if self:
            passed = bisect_right(self.marked, self.head_seq) - 1
        del self.marked[:passed]
        del self.times[:passed]

    def take_from(self, first: int) -> list[AnyRecord]:
        """The records from sequence number *first* on, which are no longer here."""
        records = [self.pop() for _ in range(self.end_seq - first)]
        records.reverse()
        self._uncount_texts(records)
        del self.text_seqs[bisect_left(self.text_seqs, first) :]
        kept = bisect_left(self.marked, first)
        del self.marked[kept:]
        del self.times[kept:]
        return records

    def reset(self, head_seq: int) -> None:
        """Hold nothing; the next record that comes has the number *head_seq*."""
        self.clear()
        self.head_seq = head_seq
        self.marked.clear()
        self.times.clear()
        self.text_counts, self.text_seqs, self.text_cost = _NO_TEXTS, _NOTHING, 0
