"""MLflow 3's logged models as folders of their run.

The API publishes only a search for them.  So a model is logged where MLflow 2 puts it, in the
folder of its run that has its name, and its id says which: any process finds it again by
``models:/<id>`` and by ``runs:/<run id>/<name>``.  Its tags and params are known only in the
process that logged it.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any, Final

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ErrorCode

from adp_async.integrations.mlflow.failures import not_published

if TYPE_CHECKING:
    from collections.abc import Sequence

_DEFAULT_NAME: Final = "model"
_ID: Final = re.compile(r"m-(?P<run_id>[0-9A-Za-z_-]{1,64})\.(?P<hex>\.)?(?P<name>.+)")
_PLAIN: Final = re.compile(r"[0-9A-Za-z_-]+")


def id_of(run_id: str, name: str) -> str:
    """The id of the model called *name* of a run.

    >>> id_of("4f2a", "model"), id_of("4f2a", "my model")
    ('m-4f2a.model', 'm-4f2a..6d79206d6f64656c')
    """
    is_plain = _PLAIN.fullmatch(name)
    return f"m-{run_id}.{name}" if is_plain else f"m-{run_id}..{name.encode().hex()}"


def run_and_name(model_id: str) -> tuple[str, str] | None:
    """The run and the name that an id was made of, or None for one that isn't ours.

    >>> run_and_name("m-4f2a..6d79206d6f64656c")
    ('4f2a', 'my model')
    """
    match = _ID.fullmatch(model_id)
    if match is None:
        return None
    name = match["name"]
    try:
        return match["run_id"], bytes.fromhex(name).decode() if match["hex"] else name
    except ValueError:
        return None


class LoggedModels:
    """What a tracking store does about logged models; a part of `TrackingStore`.

    MLflow 2 asks for none of it.
    """

    get_run: Any
    record_logged_model: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: As this process has logged them: with tags, params and status.
        self._models: dict[str, Any] = {}

    def create_logged_model(
        self,
        experiment_id: str,
        name: str | None = None,
        source_run_id: str | None = None,
        tags: Sequence[Any] | None = None,
        params: Sequence[Any] | None = None,
        model_type: str | None = None,
        **_: Any,
    ) -> Any:
        """Give a model its folder in the run."""
        from mlflow.entities import LoggedModel, LoggedModelStatus

        if source_run_id is None:
            instead = "Log it inside of a run: with mlflow.start_run(): ..."
            raise not_published("a logged model without a run", instead)
        name = name or _DEFAULT_NAME
        run = self.get_run(source_run_id)
        now = time.time_ns() // 1_000_000
        model = LoggedModel(
            experiment_id=run.info.experiment_id,
            model_id=id_of(source_run_id, name),
            name=name,
            artifact_location=f"{run.info.artifact_uri.rstrip('/')}/{name}",
            creation_timestamp=now,
            last_updated_timestamp=now,
            model_type=model_type,
            source_run_id=source_run_id,
            status=LoggedModelStatus.PENDING,
            tags=list(tags or ()),
            params=list(params or ()),
        )
        self._models[model.model_id] = model
        return model

    def get_logged_model(self, model_id: str, *_: Any, **__: Any) -> Any:
        """The model of an id, from any process."""
        known = self._models.get(model_id)
        return known if known is not None else self._found(model_id)

    def _found(self, model_id: str) -> Any:
        from mlflow.entities import LoggedModel, LoggedModelStatus

        parts = run_and_name(model_id)
        if parts is None:
            message = (
                f"there is no logged model {model_id!r:.120}: the API can only search for logged "
                "models. Models that were logged through aidp:// have ids like m-<run id>.<name>; "
                "runs:/<run id>/<name> finds them as well."
            )
            code = ErrorCode.Value("RESOURCE_DOES_NOT_EXIST")
            raise MlflowException(message, error_code=code)
        run_id, name = parts
        info = self.get_run(run_id).info
        return LoggedModel(
            experiment_id=info.experiment_id,
            model_id=model_id,
            name=name,
            artifact_location=f"{info.artifact_uri.rstrip('/')}/{name}",
            creation_timestamp=info.start_time,
            last_updated_timestamp=info.end_time or info.start_time,
            source_run_id=run_id,
            status=LoggedModelStatus.READY,
        )

    def finalize_logged_model(self, model_id: str, status: Any) -> Any:
        """Note that the model is complete; the run's history of models gets it then."""
        from mlflow.entities import LoggedModelStatus

        model = self.get_logged_model(model_id)
        if status == LoggedModelStatus.READY and not _is_external(model):
            self.record_logged_model(model.source_run_id, _description_of(model))
        return self._changed(model, status=status)

    def log_logged_model_params(self, model_id: str, params: Sequence[Any]) -> None:
        """Params of a model, which only this process knows."""
        model = self.get_logged_model(model_id)
        self._changed(model, params={**model.params, **{each.key: each.value for each in params}})

    def set_logged_model_tags(self, model_id: str, tags: Sequence[Any]) -> None:
        """Tags of a model, which only this process knows."""
        model = self.get_logged_model(model_id)
        self._changed(model, tags={**model.tags, **{each.key: each.value for each in tags}})

    def delete_logged_model_tag(self, model_id: str, key: str) -> None:
        """Remove a tag that this process has set."""
        model = self.get_logged_model(model_id)
        self._changed(
            model, tags={name: value for name, value in model.tags.items() if name != key}
        )

    def log_outputs(self, run_id: str, models: Sequence[Any]) -> None:
        """That a run wrote models of its own needs no note: they are folders of it."""
        for output in models:
            parts = run_and_name(output.model_id)
            if parts is None or parts[0] != run_id:
                instead = f"Model {output.model_id!r:.120} is not one of run {run_id}."
                raise not_published("the outputs of a run", instead)

    def _changed(self, model: Any, **changes: Any) -> Any:
        from mlflow.entities import LoggedModel, LoggedModelParameter, LoggedModelTag

        tags, params = changes.get("tags", model.tags), changes.get("params", model.params)
        changed = self._models[model.model_id] = LoggedModel(
            experiment_id=model.experiment_id,
            model_id=model.model_id,
            name=model.name,
            artifact_location=model.artifact_location,
            creation_timestamp=model.creation_timestamp,
            last_updated_timestamp=time.time_ns() // 1_000_000,
            model_type=model.model_type,
            source_run_id=model.source_run_id,
            status=changes.get("status", model.status),
            tags=[LoggedModelTag(key, value) for key, value in tags.items()],
            params=[LoggedModelParameter(key, value) for key, value in params.items()],
        )
        return changed


def _description_of(model: Any) -> Any:
    """What its file MLmodel says of it."""
    from mlflow.artifacts import download_artifacts
    from mlflow.models import Model

    file = download_artifacts(artifact_uri=f"{model.artifact_location}/MLmodel")
    description = Model.load(file)
    # MLflow 3 writes the whole location; the history of a run has the path inside of it.
    description.artifact_path = model.name
    return description


def _is_external(model: Any) -> bool:
    """Whether its files are kept elsewhere, as ``mlflow.create_external_model`` says."""
    return str(model.tags.get("mlflow.model.isExternal", "false")).lower() == "true"
