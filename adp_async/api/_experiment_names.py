"""Experiments by name: found or created, and remembered for a while."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Unpack

from adp_async._sansio.names import Names
from adp_async.entities.experiments import Experiment
from adp_async.errors import AdpError, NotFound, ServiceError

if TYPE_CHECKING:
    from adp_async.api._family import CallOptions
    from adp_async.api.experiments import Experiments

logger = logging.getLogger("adp_async")


class ExperimentNames:
    """Finds the experiments of a session by their names."""

    def __init__(self, experiments: Experiments) -> None:
        self.ids = Names()
        self._experiments = experiments

    async def id_of(self, name: str, **options: Unpack[CallOptions]) -> str:
        """The id of the experiment called *name*, which is created unless it exists.

        It is remembered for five minutes.
        """
        known = self.ids.find(name, time.monotonic())
        return known or (await self.look_up(name, **options)).experiment_id

    async def look_up(self, name: str, **options: Unpack[CallOptions]) -> Experiment:
        """The experiment called *name* now, which is created unless it exists."""
        self.ids.forget(name)
        found = await self._find_or_create(name, options)
        if found.lifecycle_stage != "deleted":
            self.ids.remember(name, found.experiment_id, time.monotonic())
        return found

    async def _find_or_create(self, name: str, options: CallOptions) -> Experiment:
        try:
            return await self._experiments.get_by_name(name, **options)
        except NotFound:
            logger.debug("an experiment of that name does not exist yet")
        try:
            created = await self._experiments.create(name, **options)
        except AdpError as refused:
            # Somebody else may have created it in between.
            try:
                return await self._experiments.get_by_name(name, **options)
            except NotFound:
                _explain_hidden(refused, name)
                raise refused from None
        return Experiment(created, name)


def _explain_hidden(refused: AdpError, name: str) -> None:
    """An experiment can neither be found nor created: most likely it was deleted."""
    if isinstance(refused, ServiceError) and refused.code == "RESOURCE_ALREADY_EXISTS":
        refused.message = (
            f"experiment {name!r:.120} exists but cannot be found; if it was deleted, "
            "session.experiments.restore(its id) brings it back, or take another name: "
            f"{refused.message}"
        )
