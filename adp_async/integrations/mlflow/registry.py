"""The model registry store: MLflow's REST store whose calls go through our session."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ErrorCode
from mlflow.protos.model_registry_pb2 import ModelRegistryService
from mlflow.store.model_registry.rest_store import RestStore
from mlflow.utils.rest_utils import MlflowHostCreds

from adp_async.integrations.mlflow.artifacts import reachable_uri
from adp_async.integrations.mlflow.connection import Connection, connection_of
from adp_async.integrations.mlflow.logged_models import run_and_name
from adp_async.integrations.mlflow.wire import Methods, unpublished

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_METHODS: Final = Methods(ModelRegistryService)
_MODELS: Final = "models:/"
#: What MLflow adds to every search for models.  Nobody has prompts where none can be registered.
_NO_PROMPTS: Final = "tag.`mlflow.prompt.is_prompt` != 'true'"
_PROMPT_TAG: Final = "mlflow.prompt.is_prompt"
_PAGE: Final = 100


class RegistryStore(RestStore):
    """The model registry store of an ``aidp://`` URI: registered models and their versions.

    Aliases can be read; the API has no operation that sets them.
    """

    supports_workspaces = False

    def __init__(self, store_uri: str, tracking_uri: str | None = None) -> None:
        self._uri = store_uri
        self._connection: Connection = connection_of(store_uri)
        super().__init__(self._host_creds)

    def _host_creds(self) -> MlflowHostCreds:
        return MlflowHostCreds(self._uri)

    def _call_endpoint(
        self,
        api: Any,
        json_body: str | None = None,
        call_all_endpoints: bool = False,
        extra_headers: Any = None,
        **_: Any,
    ) -> Any:
        check = getattr(self, "_validate_workspace_support_if_specified", None)
        if check is not None:  # pragma: no branch - depends on MLflow's version
            check()
        return self._connection.call(_METHODS.path_of(api), json_body, api.Response())

    def _call_webhook_endpoint(self, api: Any, *_: Any, **__: Any) -> Any:
        raise unpublished("mlflow/webhooks", api.__name__)

    def create_registered_model(
        self, name: str, tags: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        if any(tag.key == _PROMPT_TAG for tag in tags or ()):
            raise unpublished("mlflow/prompts", "prompts")
        return super().create_registered_model(name, tags, *args, **kwargs)

    def search_registered_models(
        self, filter_string: str | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        return super().search_registered_models(_without_prompts(filter_string), *args, **kwargs)

    def create_model_version(
        self, name: str, source: str, run_id: str | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Register a model; one that was logged into a run by the folder it is in."""
        parts = run_and_name(source.removeprefix(_MODELS)) if source.startswith(_MODELS) else None
        if parts is not None:
            run_id, folder = parts
            source = f"{self._artifact_uri(run_id)}/{folder}"
            # The service has never heard of its id.
            kwargs.pop("model_id", None)
        return super().create_model_version(name, source, run_id, *args, **kwargs)

    def get_latest_versions(self, name: str, stages: Sequence[str] | None = None) -> list[Any]:
        """The latest version in each stage, or in each of *stages*, found by a search."""
        wanted = {stage.lower() for stage in stages or ()}
        latest: dict[str, Any] = {}
        for version in self._versions(name):
            stage = (version.current_stage or "None").lower()
            best = latest.get(stage)
            if (not wanted or stage in wanted) and (
                best is None or int(version.version) > int(best.version)
            ):
                latest[stage] = version
        return list(latest.values())

    def get_model_version_download_uri(self, name: str, version: str) -> str:
        """Where the files of a version are: at its source."""
        return reachable_uri(self.get_model_version(name, version).source)

    def get_model_version_by_alias(self, name: str, alias: str) -> Any:
        """The version that an alias, set elsewhere, stands for."""
        aliases = self.get_registered_model(name).aliases
        if alias not in aliases:
            message = f"registered model {name!r:.120} has no alias {alias!r:.120}"
            code = ErrorCode.Value("RESOURCE_DOES_NOT_EXIST")
            raise MlflowException(message, error_code=code)
        return self.get_model_version(name, aliases[alias])

    def _versions(self, name: str) -> Iterator[Any]:
        self.get_registered_model(name)  # an unknown model is an error, not an empty list
        quoted = name.replace("'", "''")
        token: str | None = None
        while True:
            page = self.search_model_versions(f"name='{quoted}'", _PAGE, None, token)
            yield from page
            token = page.token
            if not token:
                return

    def _artifact_uri(self, run_id: str) -> str:
        from mlflow.protos.service_pb2 import GetRun

        self._connection.settle(run_id, is_read=True)
        reply = self._connection.send("mlflow/runs/get", {"run_id": run_id}, GetRun.Response())
        return str(reply.run.info.artifact_uri).rstrip("/")


def _without_prompts(filter_string: str | None) -> str | None:
    if not filter_string:
        return filter_string
    return filter_string.removesuffix(_NO_PROMPTS).removesuffix(" AND ") or None
