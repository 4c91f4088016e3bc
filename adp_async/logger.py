"""The background logger of a session: ``log_*``, `flush`, `drain`, `discard` and counts.

A thin face: records go through the `Intake` to a thread that delivers them (`_io.delivery`).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from adp_async._io.counting import counted, examined
from adp_async._sansio.values import valid_run_id
from adp_async.errors import AdpError
from adp_async.stats import Health, Stats
from adp_async.writer import Receipt, Receipts, RunWriter

if TYPE_CHECKING:
    from adp_async._io.delivery import Delivery
    from adp_async._progress import watched
    from adp_async._sansio.values import Metrics, MetricValue, Texts, WholeNumber

__all__ = ["BatchLogger", "Health", "Receipt", "Receipts", "Stats"]

#: Idle runs whose writers are kept.
KEPT_WRITERS: Final = 4096


class LoggerFace:
    """What the asynchronous and the blocking logger share: everything that doesn't wait."""

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

    def discard(self, run_id: str) -> int:
        """Give up the records that wait for a run; returns how many.  They count as dropped.

        For a run whose records are held forever, because the service does not know it or keeps
        failing on it.  Records in flight may still be delivered; records logged later are accepted
        again.  Raises `Closed`.
        """
        return self._delivery.discard(valid_run_id(run_id))

    def stats(self, run_id: str | None = None) -> Stats:
        """Counts as of now, of one run or of all."""
        return counted(self._delivery, None if run_id is None else valid_run_id(run_id))

    def health(self) -> Health:
        """Whether delivery works, since when, its last error, and how much waits."""
        return examined(self._delivery)

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
        if (trouble := self._delivery.trouble) is not None:
            parts.append(f"held back by {type(trouble).__name__}")
        if not self._delivery.lifetime.is_open:
            parts.append(f"closed: {self._delivery.lifetime}")
        return f"<BatchLogger {' | '.join(parts)}>"

    def _repr_html_(self) -> str:
        from adp_async.display import session_page  # only a notebook asks

        return session_page(self._delivery, self._delivery.settings)

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
        """Drop the writers of idle runs.  A lane lives as long as somebody holds it."""
        for run_id in list(self._writers):
            if self._delivery.intake.lane(run_id).is_idle:
                self._writers.pop(run_id, None)
        # If most are busy, the next look is when there are twice as many.
        self._most_writers = max(KEPT_WRITERS, 2 * len(self._writers))


class BatchLogger(LoggerFace):
    """Coalesces metrics, params and tags of many runs into few log-batch requests.

    ``session.logger`` is the one of a session; its ``log_*`` take the run's id first and are
    otherwise those of `Run`.  It may be used from any thread and any event loop.
    """

    async def flush(self, run_id: str | None = None) -> None:
        """Wait until the service has everything accepted so far, of one run or of all.

        Doesn't linger.  Raises `DeliveryError` when records were refused that no flush has
        reported yet.  There is no time limit: use ``asyncio.timeout``.
        """
        run_id = None if run_id is None else valid_run_id(run_id)
        with self._watched(run_id):
            await self._delivery.running(self._delivery.flush(run_id))

    async def try_flush(self, run_id: str | None = None) -> AdpError | None:
        """As `flush`, but returns the error that would be raised; None when all went well.

        What was refused remains to be told: a later `flush`, or the close, raises it.  So whoever
        only needs that the service is up to date takes nothing from the run's owner.
        """
        run_id = None if run_id is None else valid_run_id(run_id)
        try:
            with self._watched(run_id):
                return await self._delivery.running(_settled_or_why(self._delivery, run_id))
        except AdpError as error:  # closed, or given up
            return error

    async def drain(self) -> None:
        """Wait until the buffer is below its high-water mark, half of ``buffer_limit``."""
        await self._delivery.drain()

    def _watched(self, run_id: str | None) -> watched:
        from adp_async._io.measuring import Measure
        from adp_async._progress import watched

        what = "all runs" if run_id is None else f"run {run_id}"
        return watched(Measure(self._delivery, what, run_id))


async def _settled_or_why(delivery: Delivery, run_id: str | None) -> AdpError | None:
    """In the delivery thread."""
    from adp_async._sansio.rejections import delivery_error

    await delivery.settled(run_id)
    run_id = None if run_id is None else delivery.intake.lane(run_id).run_id
    rejections, rejected = delivery.accumulator.rejections.of(run_id)

    return delivery_error(rejections, rejected=rejected) if rejected else None
