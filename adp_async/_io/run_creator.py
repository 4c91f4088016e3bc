"""What the service is asked for runs that were started here: one attempt each, never retried.

`RunStarts` decides when to ask again.
"""

from __future__ import annotations

import time
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from adp_async._sansio import endpoints
from adp_async._sansio.call import Call
from adp_async._sansio.names import Names
from adp_async._sansio.run_start import found_among, search_filter
from adp_async._sansio.urls import place
from adp_async._sansio.values import valid_run_id
from adp_async.errors import NotFound, ServiceError, UnreadableReply

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adp_async._io.caller import Caller
    from adp_async._sansio.endpoints import Endpoint
    from adp_async._sansio.run_start import RunEnd, RunStart
    from adp_async.entities.runs import RunInfo

#: Of a search: the most that the service gives at once.
_PAGE: Final = 1000
#: What a run is that has not ended.
_OPEN: Final = frozenset(("RUNNING", "SCHEDULED", "", None))


class RunCreator:
    """Asks through *caller*.  Everything raises `AdpError`."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._names = Names()

    async def create(self, start: RunStart) -> RunInfo:
        """Create the run, in its experiment, which is created as well if it is not there."""
        from adp_async.entities.runs import RunReply

        experiment_id = start.experiment_id or await self._experiment_of(start)
        try:
            # As `Runs.create` does: a token belongs to one body.
            reply = await self._ask(
                endpoints.CREATE_RUN,
                RunReply,
                {"retry_token": start.retry_token},
                experiment_id=experiment_id,
                run_name=start.run_name,
                start_time=start.start_time or None,
                tags=[{"key": key, "value": value} for key, value in start.sent_tags.items()],
            )
        except ServiceError:
            if start.experiment is not None:
                self._names.forget(start.experiment)  # it may have been deleted, or renamed
            raise
        info: RunInfo = reply.run.info
        try:
            valid_run_id(info.run_id)
        except ValueError as error:
            operation = endpoints.CREATE_RUN.operation
            message = f"{operation}: {error}"
        else:
            return info
        raise UnreadableReply(message, status=200, operation=operation)

    async def find(self, start: RunStart) -> RunInfo | None:
        """The run, when an earlier attempt has created it; None when none has."""
        from adp_async.entities.runs import RunPage

        experiments = await self._searched(start)
        if not experiments:
            return None
        page = await self._ask(
            endpoints.SEARCH_RUNS,
            RunPage,
            experiment_ids=experiments,
            filter=search_filter(start),
            run_view_type="ALL",
            max_results=_PAGE,
        )
        found = found_among(start, page.items)
        return None if found is None else found.info

    async def _searched(self, start: RunStart) -> list[str]:
        """Where it can be: its experiment; all of them when the service was to choose."""
        from adp_async.entities.experiments import ExperimentPage

        if start.experiment_id is not None:
            return [start.experiment_id]
        if start.experiment is not None:
            known = await self._id_of(start.experiment)
            return [] if known is None else [known]
        page = await self._ask(
            endpoints.SEARCH_EXPERIMENTS, ExperimentPage, view_type="ALL", max_results=_PAGE
        )
        return [experiment.experiment_id for experiment in page.items]

    async def _experiment_of(self, start: RunStart) -> str | None:
        if start.experiment is None:
            return None
        known = self._names.find(start.experiment, time.monotonic())
        known = known or await self._id_of(start.experiment)
        if known is None:
            known = await self._new_experiment(start.experiment)
        self._names.remember(start.experiment, known, time.monotonic())
        return known

    async def _id_of(self, name: str) -> str | None:
        """The id of the experiment called *name*; None when there is none."""
        from adp_async.entities.experiments import ExperimentReply

        endpoint = endpoints.GET_EXPERIMENT_BY_NAME
        try:
            reply = await self._ask(endpoint, ExperimentReply, experiment_name=name)
        except NotFound as error:
            if not error.code:
                raise  # somebody else's
            return None
        return str(reply.experiment.experiment_id)

    async def _new_experiment(self, name: str) -> str:
        from adp_async.entities.experiments import ExperimentIdReply

        try:
            reply = await self._ask(endpoints.CREATE_EXPERIMENT, ExperimentIdReply, name=name)
        except ServiceError:
            # Somebody else may have created it in between.
            known = await self._id_of(name)
            if known is None:
                raise
            return known
        return str(reply.experiment_id)

    async def end(self, run_id: str, end: RunEnd) -> None:
        """Give the run its status and end time."""
        endpoint = endpoints.UPDATE_RUN
        await self._ask(endpoint, None, run_id=run_id, status=end.status, end_time=end.end_time)

    async def is_open(self, run_id: str) -> bool:
        """Whether the run is there, and has not ended."""
        from adp_async.entities.runs import RunReply

        try:
            reply = await self._ask(endpoints.GET_RUN, RunReply, run_id=run_id)
        except NotFound as error:
            if not error.code:
                raise
            return False
        info = reply.run.info
        return info.status in _OPEN and info.lifecycle_stage != "deleted"

    async def _ask(
        self,
        endpoint: Endpoint,
        returning: type[Any] | None,
        options: Mapping[str, Any] = MappingProxyType({}),
        /,
        **arguments: object,
    ) -> Any:
        placed = place(endpoint, arguments)
        call = Call.of(endpoint, path=placed.path, query=placed.query, body=placed.body, **options)
        return await self._caller.once(call, returning)
