"""The runs of a session that this process has started: they end with it, as it ended."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from adp_async._io.ending import watch
from adp_async._io.log import logger
from adp_async._sansio import endpoints
from adp_async._sansio.call import Call
from adp_async._sansio.texts import counted
from adp_async.errors import AdpError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from adp_async._io.delivery import Delivery
    from adp_async._sansio.endpoints import Endpoint
    from adp_async._sansio.statuses import EndStatus

#: Of these, a request that succeeded has ended the run.
_ENDS: Final = frozenset(("FINISHED", "FAILED", "KILLED"))
#: Runs that are given their status at the same time.
_AT_ONCE: Final = 8


class OpenRuns:
    """Ids of the runs that were started, or resumed, and not ended yet.  Any thread.

    *tell* is called with a run's id and whether it is open, for the journal.  A run that started
    offline has its key for an id until the service has named it, and needs no telling.
    """

    def __init__(self, tell: Callable[[str, bool], object]) -> None:
        self._run_ids: dict[str, None] = {}
        self._tell = tell

    def __bool__(self) -> bool:
        return bool(self._run_ids)

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._run_ids

    def started(self, run_id: str, *, is_offline: bool = False) -> None:
        watch()
        self._run_ids[run_id] = None
        if not is_offline:
            self._tell(run_id, True)

    def named(self, key: str, run_id: str) -> None:
        """What had started offline as *key* is called *run_id*."""
        if key in self._run_ids:
            del self._run_ids[key]
            self._run_ids[run_id] = None

    def ended(self, run_id: str) -> None:
        """The run has ended."""
        self._run_ids.pop(run_id, None)

    def heard(self, endpoint: Endpoint, body: object) -> None:
        """A request succeeded: it may have ended a run."""
        if not isinstance(body, dict):
            return
        is_update = endpoint is endpoints.UPDATE_RUN and body.get("status") in _ENDS
        if is_update or endpoint is endpoints.DELETE_RUN:
            run_id = str(body.get("run_id"))
            self.ended(run_id)
            self._tell(run_id, False)

    def forked(self) -> None:
        """In a forked child: they are the parent's."""
        self._run_ids = {}

    async def end(
        self,
        status: EndStatus,
        seconds: float,
        *,
        delivery: Delivery,
        call: Callable[[Call, None], Awaitable[object]],
    ) -> None:
        """Give all of them *status*, once everything logged is settled, within so many *seconds*.

        In the delivery thread.  First it is written down, so that the next session can do it.
        What fails is a warning: there is nobody to catch it.
        """
        run_ids, self._run_ids = list(self._run_ids), {}
        end_time = time.time_ns() // 1_000_000
        ended: list[str] = []
        starts = delivery.starts
        noted = {run_id: starts.note_end(run_id, status, end_time) for run_id in run_ids}
        await delivery.write_down(0.2 * seconds)
        turns = asyncio.Semaphore(_AT_ONCE)

        async def end(run_id: str) -> None:
            if noted[run_id].task is not None:  # it started offline, and is ended there
                await noted[run_id].done.wait()
            else:
                async with turns:
                    if await _told(call, run_id, status, end_time):
                        starts.ended(run_id)
            ended.append(run_id)

        try:
            async with asyncio.timeout(seconds):
                # The end comes last; but it is worth a part of the time in any case.
                try:
                    async with asyncio.timeout(0.6 * seconds):
                        await delivery.settled(None)
                except TimeoutError:
                    logger.debug("not everything was delivered before the runs' end")
                await asyncio.gather(*map(end, run_ids))
        except TimeoutError:
            left = [each for each in run_ids if each not in ended]
            message = "%s could not be ended %s in time: %s"
            logger.warning(message, counted(len(left), "run"), status, ", ".join(left[:10]))


async def _told(
    call: Callable[[Call, None], Awaitable[object]], run_id: str, status: EndStatus, end_time: int
) -> bool:
    """Tell the service how a run ended; whether it has heard."""
    body = {"run_id": run_id, "status": status, "end_time": end_time}
    try:
        await call(Call.of(endpoints.UPDATE_RUN, body=body), None)
    except AdpError as failure:
        message, about = "run %s could not be ended %s: %s", {"run_id": run_id}
        logger.warning(message, run_id, status, failure, extra=about)
        return False
    return True
