"""The background logger of a session: ``log_*``, `flush`, `drain`, `discard` and counts.

A thin face: records go through the `Intake` to a thread that delivers them (`_io.delivery`).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from adp_async._sansio.values import valid_run_id
from adp_async.stats import Stats, oldest
from adp_async.writer import Receipt, Receipts, RunWriter

if TYPE_CHECKING:
    from adp_async._io.delivery import Delivery
    from adp_async._sansio.lane import Lane
    from adp_async._sansio.values import Metrics, MetricValue, Texts, WholeNumber

__all__ = ["BatchLogger", "Receipt", "Receipts", "Stats"]

#: Runs whose writers are kept although nothing of theirs waits.
KEPT_WRITERS: Final = 4096


class BatchLogger:
    """Coalesces metrics, params and tags of many runs into few log-batch requests.

    ``session.logger`` is the one of a session; its ``log_*`` take the run's id first and are
    otherwise those of `Run`.  All of it is for any thread and any event loop.
    """

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        self._writers: dict[str, RunWriter] = {}
        self._most_writers = KEPT_WRITERS

    # ------------------------------------------------------------------ what callers use

    def log_metric(
        self,
        run_id: str,
        key: str,
        value: MetricValue,
        step: WholeNumber | None = 0,
        timestamp: WholeNumber | None = None,
    ) -> Receipt:
        """`Run.log_metric` of the run *run_id*."""
        return self._writer(run_id).log_metric(key, value, step, timestamp)

    def log_metrics(
        self,
        run_id: str,
        metrics: Metrics,
        step: WholeNumber | None = 0,
        timestamp: WholeNumber | None = None,
    ) -> Receipts:
        """`Run.log_metrics` of the run *run_id*."""
        return self._writer(run_id).log_metrics(metrics, step, timestamp)

    def log_param(self, run_id: str, key: str, value: object) -> Receipt:
        """`Run.log_param` of the run *run_id*."""
        return self._writer(run_id).log_param(key, value)

    def log_params(self, run_id: str, params: Texts) -> Receipts:
        """`Run.log_params` of the run *run_id*."""
        return self._writer(run_id).log_params(params)

    def set_tag(self, run_id: str, key: str, value: object) -> Receipt:
        """`Run.set_tag` of the run *run_id*."""
        return self._writer(run_id).set_tag(key, value)

    def set_tags(self, run_id: str, tags: Texts) -> Receipts:
        """`Run.set_tags` of the run *run_id*."""
        return self._writer(run_id).set_tags(tags)

    async def flush(self, run_id: str | None = None) -> None:
        """Wait until the service has everything accepted so far, of one run or of all.

        Doesn't linger.  Raises `DeliveryError` when records were refused that no flush has
        reported yet.  There is no time limit: use ``asyncio.timeout``.
        """
        run_id = None if run_id is None else valid_run_id(run_id)
        await self._delivery.running(self._delivery.flush(run_id))

    async def drain(self) -> None:
        """Wait until the buffer is below its high-water mark, half of ``buffer_limit``."""
        await self._delivery.drain()

    def discard(self, run_id: str) -> int:
        """Give up what waits for a run: how many records that are, counted as dropped.

        For a run that the service does not show, or fails on, and so holds for ever.  What is on
        its way just now may still be delivered; what is logged afterwards is accepted again.
        Raises `Closed`.
        """
        return self._delivery.discard(valid_run_id(run_id))

    def stats(self, run_id: str | None = None) -> Stats:
        """Counts as of now, of one run or of all."""
        # (With the lock nothing is on its way from one count to another.)
        with self._delivery.intake.lock:
            if run_id is not None:
                return self._stats_of_run(valid_run_id(run_id))
            return self._stats_of_all()

    def _stats_of_all(self) -> Stats:
        accumulator = self._delivery.accumulator
        rejected = dict(accumulator.rejected)
        waiting = accumulator.waiting + len(self._delivery.intake.inbox)
        settled = accumulator.delivered + sum(rejected.values())
        spooled = accumulator.spooled + self._delivery.kept.total()
        dropped = accumulator.dropped + self._delivery.lost.total()
        return self._counted(
            list(accumulator.lanes.values()),
            accepted=settled + waiting + accumulator.in_flight + spooled + dropped,
            delivered=accumulator.delivered,
            rejected=rejected,
            dropped=dropped,
            waiting=waiting,
            in_flight=accumulator.in_flight,
            spooled=spooled,
        )

    def _stats_of_run(self, run_id: str) -> Stats:
        lane = self._delivery.intake.lane(run_id)
        inbox = sum(record.place is lane for record in list(self._delivery.intake.inbox))
        in_flight = lane.flying
        waiting = lane.unsettled - in_flight - lane.spooled + inbox
        spooled, dropped = (
            lane.spooled + self._delivery.kept[run_id],
            lane.dropped + self._delivery.lost[run_id],
        )
        settled = lane.delivered + lane.refused_count
        return self._counted(
            [lane],
            accepted=settled + waiting + in_flight + spooled + dropped,
            delivered=lane.delivered,
            rejected=dict(lane.rejected),
            dropped=dropped,
            waiting=waiting,
            in_flight=in_flight,
            spooled=spooled,
        )

    def _counted(self, lanes: list[Lane], **counts: Any) -> Stats:
        sender = self._delivery.sender
        return Stats(
            requests=sender.requests,
            retries=sender.retries,
            throttled=self._delivery.throttle.throttled,
            oldest=oldest(lanes),
            **counts,
        )

    def __repr__(self) -> str:
        accumulator = self._delivery.accumulator
        busy = sum(not lane.is_idle for lane in list(accumulator.lanes.values()))
        parts = [
            f"{busy} runs",
            f"{accumulator.waiting + len(self._delivery.intake.inbox)} waiting",
            f"{accumulator.batches_in_flight} batches in flight",
        ]
        held = self._delivery.throttle.held_until - time.monotonic()
        if held > 0:
            parts.append(f"held {held:.0f} s")
        if not self._delivery.lifetime.is_open:
            parts.append(f"closed: {self._delivery.lifetime}")
        return f"<BatchLogger {' | '.join(parts)}>"

    def _writer(self, run_id: str) -> RunWriter:
        """The ``log_*`` of one run."""
        if type(run_id) is not str:
            run_id = valid_run_id(run_id)
        writer = self._writers.get(run_id)
        if writer is None:
            if len(self._writers) >= self._most_writers:
                self._forget_idle()
            writer = self._writers[run_id] = RunWriter(run_id, self._delivery.intake)
        return writer

    def _forget_idle(self) -> None:
        """Keep no writer of which nothing waits.  A lane lives as long as somebody holds it."""
        for run_id in list(self._writers):
            if self._delivery.intake.lane(run_id).is_idle:
                self._writers.pop(run_id, None)
        # Where most are busy it isn't looked again before there are twice as many.
        self._most_writers = max(KEPT_WRITERS, 2 * len(self._writers))
