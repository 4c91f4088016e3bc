"""``log_*`` of a worker's run: the prefix of its keys, and which params and tags are its own."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, Final

import attrs

from adp_async._sansio.records import Param, RunTag, Verdict
from adp_async._sansio.values import pairs_of
from adp_async.writer import Receipts, RunWriter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adp_async._sansio.records import AnyRecord
    from adp_async._sansio.values import Metrics, MetricValue, WholeNumber
    from adp_async._sansio.values import Texts as TextValues
    from adp_async.stats import Stats
    from adp_async.writer import Receipt


class _NotMine(Verdict):
    """The verdict on a param or tag of another rank than 0."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<not logged: params and tags are those of rank 0>"


NOT_MINE: Final = _NotMine()


@attrs.define(eq=False)
class Part:
    """This process's part of the run: what it is called, and what of it counts."""

    prefix: str
    takes_texts: bool
    id: str = attrs.field(factory=lambda: uuid.uuid4().hex)
    #: Params and tags that were not logged.
    dropped: int = 0


class WorkerWriter(RunWriter):
    """``log_*`` with the prefix and the rank of a worker."""

    _part: Part

    def log_metric(
        self,
        key: str,
        value: MetricValue,
        step: WholeNumber | None = 0,
        timestamp: WholeNumber | None = None,
    ) -> Receipt:
        """As `Run.log_metric`; the key gets this worker's prefix."""
        return super().log_metric(self._named(key), value, step, timestamp)

    def log_metrics(
        self,
        metrics: Metrics,
        step: WholeNumber | None = 0,
        timestamp: WholeNumber | None = None,
    ) -> Receipts:
        """As `Run.log_metrics`; the keys get this worker's prefix."""
        if self._part.prefix and (pairs := _pairs(metrics)) is not None:
            metrics = {self._named(key): value for key, value in pairs}
        return super().log_metrics(metrics, step, timestamp)

    def log_param(self, key: str, value: object) -> Receipt:
        """As `Run.log_param`; of another rank than 0 it is dropped, and counted."""
        return (
            self._not_mine([self._text(Param, "param", key, value)])[0]
            if self._drops()
            else (super().log_param(key, value))
        )

    def log_params(self, params: TextValues) -> Receipts:
        """As `Run.log_params`; of another rank than 0 they are dropped, and counted."""
        if not self._drops() or (pairs := _pairs(params)) is None:
            return super().log_params(params)
        return self._not_mine([self._text(Param, "param", *pair) for pair in pairs])

    def set_tag(self, key: str, value: object) -> Receipt:
        """As `Run.set_tag`; of another rank than 0 it is dropped, and counted."""
        return (
            self._not_mine([self._text(RunTag, "tag", key, value)])[0]
            if self._drops()
            else (super().set_tag(key, value))
        )

    def set_tags(self, tags: TextValues) -> Receipts:
        """As `Run.set_tags`; of another rank than 0 they are dropped, and counted."""
        if not self._drops() or (pairs := _pairs(tags)) is None:
            return super().set_tags(tags)
        return self._not_mine([self._text(RunTag, "tag", *pair) for pair in pairs])

    def _named(self, key: Any) -> Any:
        prefix = self._part.prefix
        return prefix + key if prefix and issubclass(type(key), str) else key

    def _drops(self) -> bool:
        return not self._part.takes_texts

    def _not_mine(self, records: Sequence[AnyRecord]) -> Receipts:
        self._part.dropped += len(records)
        for record in records:
            record.place = NOT_MINE
        return Receipts(records)

    def _counted(self, stats: Stats) -> Stats:
        dropped = self._part.dropped
        return attrs.evolve(
            stats, accepted=stats.accepted + dropped, dropped=stats.dropped + dropped
        )


def _pairs(mapping: object) -> list[tuple[Any, Any]] | None:
    """Its items; None if it is not a mapping, which the run itself reports."""
    try:
        return pairs_of(mapping, "")
    except TypeError:
        return None
