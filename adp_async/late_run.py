"""A run that the service may not have yet: what is known of it, waiting for it, and its end.

`adp_async._io.run_starts` creates it.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from adp_async._io.log import logger
from adp_async._sansio.run_start import is_out_of_reach
from adp_async._sansio.texts import counted, not_delivered_yet
from adp_async.errors import AdpError, DeliveryError
from adp_async.writer import RunWriter

if TYPE_CHECKING:
    from adp_async._io.contact import Started
    from adp_async._io.delivery import Delivery
    from adp_async._sansio.statuses import EndStatus
    from adp_async.stats import Stats


class LateRun(RunWriter):
    """What a run has to do with its own creation."""

    if TYPE_CHECKING:

        @property
        def _delivery(self) -> Delivery: ...

        def stats(self) -> Stats: ...

    #: Of a run that started offline; None for any other.
    _started: Started | None = None
    _run_name: str | None = None
    _experiment_id: str | None = None
    status: EndStatus | None = None

    @property
    def run_name(self) -> str | None:
        """The run's name; None for an attached run, and for one that the service is to name."""
        info = self._started.info if self._started is not None else None
        return self._run_name if info is None else info.run_name

    @property
    def experiment_id(self) -> str | None:
        """The id of its experiment; None for an attached run, and as long as it is not known."""
        info = self._started.info if self._started is not None else None
        return self._experiment_id if info is None else info.experiment_id

    async def created(self) -> str:
        """Wait until the service has the run; returns its id.

        That is at once, unless the run started offline.  There is no time limit: use
        ``asyncio.timeout``.  Raises `DeliveryError` when the session closes before that.
        """
        if self._lane.is_created:
            return self._lane.run_id
        return await self._delivery.running(self._delivery.starts.created(self._run_id))

    def _needs_id(self, what: str) -> str:
        """The run's id, which *what* needs; an `AdpError` when there is none yet."""
        if not self._lane.is_created:
            raise AdpError(f"{what}: {self._described()}; `run.created()` waits until it is")
        return self._lane.run_id

    def _described(self) -> str:
        return f"run {self._run_id}" if self._started is None else str(self._started.start)

    async def _end_late(self, status: EndStatus | None, seconds: float) -> DeliveryError | None:
        """End a run that is not created yet, and wait for at most so many *seconds* for that.

        Its end is written down first.  When the time is over a WARNING says where the run waits;
        without a spool there is only this session, which the error says that is returned.
        """
        delivery = self._delivery
        try:
            async with asyncio.timeout(seconds):
                if status is not None:
                    end_time = time.time_ns() // 1_000_000
                    await delivery.running(delivery.end_run(self._run_id, status, end_time))
                    self.status = status
                await delivery.running(delivery.starts.done(self._run_id))
        except TimeoutError:
            return self._still_late()
        return None

    async def _end_afterwards(self, status: EndStatus, failure: AdpError) -> None:
        """The status could not be set, for *failure*: unless the service said no, it is later."""
        if isinstance(failure, DeliveryError) or is_out_of_reach(failure):
            end_time = time.time_ns() // 1_000_000
            try:
                await self._delivery.running(self._delivery.end_run(self._run_id, status, end_time))
            except AdpError as closed:
                logger.debug("%s cannot be ended later: %s", self._described(), closed)

    def _still_late(self) -> DeliveryError | None:
        keeper, left = self._delivery.keeper, self.stats().undelivered
        if keeper is None or keeper.failure is not None:
            message = f"{self._described()}: {not_delivered_yet(left)}"
            return DeliveryError(message, undelivered=left, run_id=self._run_id)
        message = (
            "%s: its end and %s wait in %s; this session, the next one, or `adp-async sync` "
            "delivers them"
        )
        about = {"run_id": self._run_id}
        waiting = counted(left, "record")
        logger.warning(message, self._described(), waiting, keeper.spool.path, extra=about)
        return None
