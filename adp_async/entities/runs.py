"""Runs and what is logged into them: metrics, params, tags, datasets, models, artifacts."""

import math
from typing import TYPE_CHECKING, Literal, NoReturn

from attrs import field, frozen

from adp_async.entities._entity import Entity, Moment
from adp_async.entities._fields import absent
from adp_async.entities._keyed import Keyed
from adp_async.entities._tag import Tag

RunStatus = Literal["RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED", "INTERNAL_ERROR"]


@frozen
class Metric(Entity):
    """One measured value of a run.

    *timestamp* is when it was measured, in Unix milliseconds.  NaN and the infinities are sent
    as strings, as the service spells them.
    """

    key: str = field(metadata=absent(""))
    value: float = field(converter=float, metadata=absent(math.nan))
    timestamp: int = field(metadata=absent(0))
    step: int = 0

    datetime = Moment("timestamp")


@frozen
class Param(Entity):
    """A parameter of a run: written once, always text."""

    key: str = field(metadata=absent(""))
    value: str = field(metadata=absent(""))


@frozen
class RunTag(Tag):
    """A tag of a run."""


@frozen
class InputTag(Tag):
    """A tag of a dataset as an input, such as ``mlflow.data.context``."""


@frozen
class Dataset(Entity):
    """A reference to data: *digest* identifies the content, *source* says where it is.

    *schema* and *profile* are text, usually JSON.
    """

    name: str
    digest: str
    source_type: str
    source: str
    schema: str | None = None
    profile: str | None = None


@frozen
class DatasetInput(Entity):
    """A dataset that a run read."""

    dataset: Dataset
    tags: tuple[InputTag, ...] = field(default=(), converter=tuple[InputTag, ...])


@frozen
class ModelInput(Entity):
    """A logged model that a run read."""

    model_id: str


@frozen
class ModelOutput(Entity):
    """A logged model that a run wrote, and at which step."""

    model_id: str
    step: int | None = None


@frozen
class RunInfo(Entity):
    """Facts about a run, without what was logged.  Times are Unix milliseconds."""

    run_id: str = ""
    run_name: str | None = None
    experiment_id: str = ""
    status: str | None = None
    start_time: int | None = None
    end_time: int | None = None
    artifact_uri: str | None = None
    lifecycle_stage: str | None = None
    run_uuid: str | None = None
    user_id: str | None = None

    start_datetime = Moment("start_time")
    end_datetime = Moment("end_time")


@frozen
class RunData(Entity):
    """What was logged into a run: the last value of each metric, the params, the tags.

    ``run.data.params["lr"]`` is a value; iteration gives `Metric`, `Param` and `RunTag`.
    """

    metrics: Keyed[Metric, float] = field(default=(), converter=Keyed[Metric, float])
    params: Keyed[Param, str] = field(default=(), converter=Keyed[Param, str])
    tags: Keyed[RunTag, str] = field(default=(), converter=Keyed[RunTag, str])


@frozen
class RunInputs(Entity):
    """What a run read."""

    dataset_inputs: tuple[DatasetInput, ...] = ()
    model_inputs: tuple[ModelInput, ...] = ()


@frozen
class RunOutputs(Entity):
    """What a run wrote."""

    model_outputs: tuple[ModelOutput, ...] = ()


@frozen
class Run(Entity):
    """A run as the service has it."""

    info: RunInfo = RunInfo()
    data: RunData = RunData()
    inputs: RunInputs = RunInputs()
    outputs: RunOutputs = RunOutputs()

    def _row(self) -> dict[str, object]:
        """Facts by their own names, then ``metrics.loss``, ``params.lr`` and ``tags.team``."""
        return {**self.info._row(), **self.data._row()}

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            message = f"{type(self).__name__!r} object has no attribute {name!r}"
            if name.startswith(("log_", "set_tag")) or name in ("flush", "finish"):
                message += (
                    ": this is what the service knows of a run; to log into it, take "
                    f"session.attach_run({self.info.run_id!r})"
                )
            raise AttributeError(message, name=name, obj=self)


@frozen
class RunPage(Entity):
    """One page of a search for runs."""

    runs: tuple[Run, ...]
    next_page_token: str | None = None

    @property
    def items(self) -> tuple[Run, ...]:
        return self.runs


@frozen
class MetricPage(Entity):
    """One page of a metric's history."""

    metrics: tuple[Metric, ...] = ()
    next_page_token: str | None = None

    @property
    def items(self) -> tuple[Metric, ...]:
        return self.metrics


@frozen
class FileInfo(Entity):
    """An artifact: a file of *file_size* bytes, or a directory."""

    path: str = ""
    is_dir: bool = False
    file_size: int | None = None


@frozen
class ArtifactPage(Entity):
    """One page of a run's artifacts; *root_uri* is the directory their paths start from."""

    root_uri: str | None = None
    files: tuple[FileInfo, ...] = ()
    next_page_token: str | None = None

    @property
    def items(self) -> tuple[FileInfo, ...]:
        return self.files


@frozen
class RunReply:
    """The envelope of a run; `adp_async.api` unwraps it."""

    run: Run


@frozen
class RunInfoReply:
    """The envelope of a run's info; `adp_async.api` unwraps it."""

    run_info: RunInfo
