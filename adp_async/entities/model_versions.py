"""Versions of registered models."""

from attrs import frozen

from adp_async.entities._entity import Entity, Moment
from adp_async.entities._tag import Tag
from adp_async.entities.runs import Metric


@frozen
class ModelVersionTag(Tag):
    """A tag of a model version."""


@frozen
class ModelParam(Entity):
    """A parameter of the model behind a version."""

    name: str = ""
    value: str | None = None


@frozen
class ModelVersionDeploymentJobState(Entity):
    """The state of a version's deployment job."""

    job_id: str | None = None
    run_id: str | None = None
    job_state: str | None = None
    run_state: str | None = None
    current_task_name: str | None = None


@frozen
class ModelVersion(Entity):
    """One version of a registered model.  Times are Unix milliseconds."""

    name: str = ""
    version: str = ""
    creation_timestamp: int | None = None
    last_updated_timestamp: int | None = None
    user_id: str | None = None
    current_stage: str | None = None
    description: str | None = None
    source: str | None = None
    run_id: str | None = None
    status: str | None = None
    status_message: str | None = None
    tags: tuple[ModelVersionTag, ...] = ()
    run_link: str | None = None
    aliases: tuple[str, ...] = ()
    model_id: str | None = None
    model_metrics: tuple[Metric, ...] = ()
    model_params: tuple[ModelParam, ...] = ()
    deployment_job_state: ModelVersionDeploymentJobState | None = None

    creation_datetime = Moment("creation_timestamp")
    last_updated_datetime = Moment("last_updated_timestamp")


@frozen
class ModelVersionPage(Entity):
    """One page of a search for model versions."""

    model_versions: tuple[ModelVersion, ...]
    next_page_token: str | None = None

    @property
    def items(self) -> tuple[ModelVersion, ...]:
        return self.model_versions


@frozen
class ModelVersionReply:
    """The envelope of a model version; `adp_async.api` unwraps it."""

    model_version: ModelVersion
