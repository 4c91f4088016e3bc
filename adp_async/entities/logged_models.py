"""Models as runs logged them, before anybody registered them."""

from attrs import frozen

from adp_async.entities._entity import Entity, Moment
from adp_async.entities._tag import Tag


@frozen
class LoggedModelTag(Tag):
    """A tag of a logged model."""


@frozen
class LoggedModelInfo(Entity):
    """Facts about a logged model.  Times are Unix milliseconds."""

    model_id: str = ""
    experiment_id: str = ""
    name: str | None = None
    creation_timestamp_ms: int | None = None
    last_updated_timestamp_ms: int | None = None
    artifact_uri: str | None = None
    status: str | None = None
    model_type: str | None = None
    source_run_id: str | None = None
    tags: tuple[LoggedModelTag, ...] = ()

    creation_datetime = Moment("creation_timestamp_ms")
    last_updated_datetime = Moment("last_updated_timestamp_ms")


@frozen
class LoggedModel(Entity):
    """A logged model; *data* is whatever JSON the service has for it."""

    info: LoggedModelInfo = LoggedModelInfo()
    data: object = None


@frozen
class LoggedModelOrder(Entity):
    """One field to order logged models by."""

    field_name: str
    ascending: bool | None = None


@frozen
class LoggedModelPage(Entity):
    """One page of a search for logged models."""

    models: tuple[LoggedModel, ...] = ()
    next_page_token: str | None = None

    @property
    def items(self) -> tuple[LoggedModel, ...]:
        return self.models
