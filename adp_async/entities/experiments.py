"""Experiments, their tags, and the views with or without deleted ones."""

from typing import Literal

from attrs import frozen

from adp_async.entities._entity import Entity, Moment
from adp_async.entities._tag import Tag

ViewType = Literal["ACTIVE_ONLY", "DELETED_ONLY", "ALL"]


@frozen
class ExperimentTag(Tag):
    """A tag of an experiment."""


@frozen
class Experiment(Entity):
    """A named group of runs.  Times are Unix milliseconds."""

    experiment_id: str
    name: str
    artifact_location: str | None = None
    lifecycle_stage: str | None = None
    creation_time: int | None = None
    last_update_time: int | None = None
    tags: tuple[ExperimentTag, ...] = ()

    creation_datetime = Moment("creation_time")
    last_update_datetime = Moment("last_update_time")


@frozen
class ExperimentPage(Entity):
    """One page of a search for experiments."""

    experiments: tuple[Experiment, ...]
    next_page_token: str | None = None

    @property
    def items(self) -> tuple[Experiment, ...]:
        return self.experiments


@frozen
class ExperimentReply:
    """The envelope of an experiment; `adp_async.api` unwraps it."""

    experiment: Experiment


@frozen
class ExperimentIdReply:
    """The envelope of a new experiment's id; `adp_async.api` unwraps it."""

    experiment_id: str
