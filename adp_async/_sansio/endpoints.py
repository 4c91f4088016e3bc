"""The operations of the MLOps API, version 20260430: one row each, and the URL of a call.

A row says where an operation goes and whether it takes a retry token.  What an operation's
arguments are called and mean is the business of `adp_async.api`.
"""

from __future__ import annotations

import enum
import re
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from attrs import Factory, field, frozen

from adp_async._sansio.arguments import checked, query_texts
from adp_async._sansio.codec import camel_case, wire_name
from adp_async._sansio.values import valid_name
from adp_async.errors import ConfigurationError, shown, type_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

API_VERSION = "20260430"

_PATH_PART = re.compile(r"{(\w+)}")


class Scope(enum.Enum):
    """Whose operation it is: a workspace's, or the whole platform's."""

    WORKSPACE = "workspace"
    PLATFORM = "platform"


@frozen
class Endpoint:
    """One REST operation: where it goes, and whether it takes a retry token.

    *path* is what follows ``.../mlops/api/2.0/`` and may hold parts such as ``{deploymentId}``.
    *operation* is the API's own name of the operation; the path stands in for it.
    """

    method: str
    path: str
    scope: Scope = Scope.WORKSPACE
    takes_retry_token: bool = False
    operation: str = field(default=Factory(lambda self: self.path, takes_self=True))

    @property
    def may_be_resent(self) -> bool:
        """Whether a request that may have been applied can be sent again without harm."""
        return self.takes_retry_token or self.method == "GET" or self.path.endswith("/search")


class Placed(NamedTuple):
    """The arguments of one call, each where it belongs, under its name on the wire."""

    path: Mapping[str, str]
    query: Mapping[str, object]
    body: Mapping[str, object] | None


def place(endpoint: Endpoint, arguments: Mapping[str, object]) -> Placed:
    """Sort a method's arguments into path, query and body; what is None was not given.

    They are checked on the way: TypeError or ValueError names the argument that can't be sent.

    Which is which follows from the row: names that occur in the path go there, and the rest is
    the query of a GET and the body of a POST.

    >>> place(Endpoint("GET", "things/{thingId}"), {"thing_id": "7", "limit": 5, "page": None})
    Placed(path={'thingId': '7'}, query={'limit': 5}, body=None)
    """
    parts = _PATH_PART.findall(endpoint.path)
    path: dict[str, str] = {}
    others: dict[str, object] = {}
    for name, given in arguments.items():
        try:
            value = None if given is None else checked(endpoint.operation, name, given)
        except (TypeError, ValueError) as error:
            # It is the caller's mistake: the way we found it is of no interest.
            raise error.with_traceback(None)  # noqa: B904 - the same error
        if value is None:
            continue
        if camel_case(name) in parts:
            path[camel_case(name)] = value
        else:
            others[wire_name(endpoint.operation, name)] = value
    if endpoint.method == "GET":
        return Placed(path, others, None)
    return Placed(path, {}, others)


def check_endpoint(endpoint: object) -> None:
    """Raise TypeError unless *endpoint* is one."""
    if not issubclass(type(endpoint), Endpoint):
        raise TypeError(f"what is called is an Endpoint, not {type_name(endpoint)}")


def url_of(
    endpoint: Endpoint,
    base_url: str,
    platform_id: str,
    workspace: str | None,
    path_arguments: Mapping[str, str],
    query: Mapping[str, object],
) -> str:
    """The absolute URL of a call, percent-encoded to the last character.

    Every path part is quoted completely, slashes included; a query value has its spaces as
    ``%20``, its lists repeat the name, and None is left out.

    >>> get = Endpoint("GET", "runs/get")
    >>> url_of(get, "https://host", "ocid1", "w/1", {}, {"run_id": "a b", "brief": True})
    'https://host/20260430/aiDataPlatforms/ocid1/workspaces/w%2F1/mlops/api/2.0/runs/get?run_id=a%20b&brief=true'
    """
    in_workspace = endpoint.scope is Scope.WORKSPACE
    owner = _required(workspace, endpoint) if in_workspace else None
    path = _PATH_PART.sub(
        lambda part: _quoted_part(part[1], path_arguments.get(part[1], "")), endpoint.path
    )
    pairs = "&".join(_query_pairs(query))
    url = _root(base_url, platform_id, owner) + path
    return f"{url}?{pairs}" if pairs else url


@lru_cache(maxsize=16)
def _root(base_url: str, platform_id: str, workspace: str | None) -> str:
    """What all URLs of a workspace have in common, or those of the platform itself."""
    scope = f"aiDataPlatforms/{_quoted_part('platform_id', platform_id)}"
    if workspace is not None:
        scope += f"/workspaces/{_quoted_part('workspace', workspace)}"
    return f"{base_url}/{API_VERSION}/{scope}/mlops/api/2.0/"


def _required(workspace: str | None, endpoint: Endpoint) -> str:
    if workspace:
        return workspace
    message = (
        f"workspace is not set, and {endpoint.operation} is an operation of a workspace: "
        "give Session its key, or set AIDP_WORKSPACE"
    )
    raise ConfigurationError(message)


def _quoted_part(name: str, value: str) -> str:
    # Dots can't be percent-encoded away: servers and proxies resolve "." and ".." and would
    # answer for another resource than the one that was signed.
    plain = valid_name(value, name) or ""
    if plain in {"", ".", ".."}:
        message = f"{name} must not be {plain!r}: it is a part of the path"
        raise ValueError(message)
    return quote(plain, safe="")


def _query_pairs(query: Mapping[str, object]) -> Iterator[str]:
    for name, value in query.items():
        what = f"query: {shown(name)}"
        quoted = quote(name, safe="")
        for text in query_texts(value, what):
            yield f"{quoted}={quote(text, safe='')}"


_WORKSPACE = Scope.WORKSPACE
_PLATFORM = Scope.PLATFORM


def _row(
    operation: str, method: str, path: str, scope: Scope, *, takes_retry_token: bool = False
) -> Endpoint:
    return Endpoint(method, path, scope, takes_retry_token, operation)


# Experiments
CREATE_EXPERIMENT = _row(
    "create_experiment", "POST", "mlflow/experiments/create", _WORKSPACE, takes_retry_token=True
)
GET_EXPERIMENT = _row("get_experiment_by_id", "GET", "mlflow/experiments/get", _WORKSPACE)
GET_EXPERIMENT_BY_NAME = _row(
    "get_experiment_by_name", "GET", "mlflow/experiments/get-by-name", _WORKSPACE
)
UPDATE_EXPERIMENT = _row(
    "update_experiment", "POST", "mlflow/experiments/update", _WORKSPACE, takes_retry_token=True
)
DELETE_EXPERIMENT = _row(
    "delete_experiment", "POST", "mlflow/experiments/delete", _WORKSPACE, takes_retry_token=True
)
RESTORE_EXPERIMENT = _row(
    "restore_experiment", "POST", "mlflow/experiments/restore", _WORKSPACE, takes_retry_token=True
)
SEARCH_EXPERIMENTS = _row("list_experiments", "POST", "mlflow/experiments/search", _WORKSPACE)
SET_EXPERIMENT_TAG = _row(
    "set_experiment_tag",
    "POST",
    "mlflow/experiments/set-experiment-tag",
    _WORKSPACE,
    takes_retry_token=True,
)
DELETE_EXPERIMENT_TAG = _row(
    "delete_experiment_tag",
    "POST",
    "mlflow/experiments/delete-experiment-tag",
    _WORKSPACE,
    takes_retry_token=True,
)
UPDATE_EXPERIMENT_TAGS = _row(
    "update_experiment_tags",
    "POST",
    "mlflow/internal/experiments/update-experiment-tags",
    _WORKSPACE,
    takes_retry_token=True,
)

# Runs
CREATE_RUN = _row(
    "create_experiment_run", "POST", "mlflow/runs/create", _WORKSPACE, takes_retry_token=True
)
GET_RUN = _row("get_experiment_run_by_id", "GET", "mlflow/runs/get", _WORKSPACE)
UPDATE_RUN = _row(
    "update_experiment_run", "POST", "mlflow/runs/update", _WORKSPACE, takes_retry_token=True
)
DELETE_RUN = _row(
    "delete_experiment_run", "POST", "mlflow/runs/delete", _WORKSPACE, takes_retry_token=True
)
RESTORE_RUN = _row(
    "restore_experiment_run", "POST", "mlflow/runs/restore", _WORKSPACE, takes_retry_token=True
)
SEARCH_RUNS = _row("list_experiment_runs", "POST", "mlflow/runs/search", _WORKSPACE)
LOG_BATCH = _row(
    "log_experiment_run_batch", "POST", "mlflow/runs/log-batch", _WORKSPACE, takes_retry_token=True
)
LOG_METRIC = _row(
    "log_experiment_run_metric",
    "POST",
    "mlflow/runs/log-metric",
    _WORKSPACE,
    takes_retry_token=True,
)
LOG_PARAM = _row(
    "log_experiment_run_param",
    "POST",
    "mlflow/runs/log-parameter",
    _WORKSPACE,
    takes_retry_token=True,
)
LOG_MODEL = _row(
    "log_experiment_run_model", "POST", "mlflow/runs/log-model", _WORKSPACE, takes_retry_token=True
)
LOG_INPUTS = _row(
    "log_experiment_run_inputs",
    "POST",
    "mlflow/runs/log-inputs",
    _WORKSPACE,
    takes_retry_token=True,
)
SET_RUN_TAG = _row(
    "set_experiment_run_tag", "POST", "mlflow/runs/set-tag", _WORKSPACE, takes_retry_token=True
)
DELETE_RUN_TAG = _row(
    "delete_experiment_run_tag",
    "POST",
    "mlflow/runs/delete-tag",
    _WORKSPACE,
    takes_retry_token=True,
)
UPDATE_RUN_TAGS = _row(
    "update_experiment_run_tags",
    "POST",
    "mlflow/internal/runs/update-tags",
    _WORKSPACE,
    takes_retry_token=True,
)
GET_METRIC_HISTORY = _row(
    "get_experiment_run_metric_history", "GET", "mlflow/metrics/get-history", _WORKSPACE
)
LIST_ARTIFACTS = _row("list_artifacts", "GET", "mlflow/artifacts/list", _WORKSPACE)

# Registered models
CREATE_REGISTERED_MODEL = _row(
    "create_registered_model",
    "POST",
    "mlflow/registered-models/create",
    _PLATFORM,
    takes_retry_token=True,
)
GET_REGISTERED_MODEL = _row(
    "get_registered_model", "GET", "mlflow/registered-models/get", _PLATFORM
)
UPDATE_REGISTERED_MODEL = _row(
    "update_registered_model",
    "POST",
    "mlflow/registered-models/update",
    _PLATFORM,
    takes_retry_token=True,
)
RENAME_REGISTERED_MODEL = _row(
    "rename_registered_model",
    "POST",
    "mlflow/registered-models/rename",
    _PLATFORM,
    takes_retry_token=True,
)
DELETE_REGISTERED_MODEL = _row(
    "delete_registered_model",
    "POST",
    "mlflow/registered-models/delete",
    _PLATFORM,
    takes_retry_token=True,
)
SEARCH_REGISTERED_MODELS = _row(
    "list_registered_models", "GET", "mlflow/registered-models/search", _PLATFORM
)
SET_REGISTERED_MODEL_TAG = _row(
    "set_registered_model_tag",
    "POST",
    "mlflow/registered-models/set-tag",
    _PLATFORM,
    takes_retry_token=True,
)
DELETE_REGISTERED_MODEL_TAG = _row(
    "delete_registered_model_tag",
    "POST",
    "mlflow/registered-models/delete-tag",
    _PLATFORM,
    takes_retry_token=True,
)
UPDATE_REGISTERED_MODEL_TAGS = _row(
    "update_registered_model_tags",
    "POST",
    "mlflow/internal/registered-models/update-tags",
    _PLATFORM,
    takes_retry_token=True,
)
LIST_REGISTERED_MODEL_PERMISSIONS = _row(
    "list_registered_model_permissions",
    "GET",
    "mlflow/registered-models/{registeredModelKey}/permissions",
    _PLATFORM,
)
MANAGE_REGISTERED_MODEL_PERMISSION = _row(
    "manage_registered_model_permission",
    "POST",
    "mlflow/registered-models/{registeredModelKey}/actions/managePermission",
    _PLATFORM,
)
GET_REGISTERED_MODEL_SUMMARY = _row(
    "get_registered_model_summary", "GET", "registered-models/summary", _PLATFORM
)

# Model versions
CREATE_MODEL_VERSION = _row(
    "create_model_version",
    "POST",
    "mlflow/model-versions/create",
    _PLATFORM,
    takes_retry_token=True,
)
CREATE_WORKSPACE_MODEL_VERSION = _row(
    "create_workspace_model_version",
    "POST",
    "mlflow/model-versions/create",
    _WORKSPACE,
    takes_retry_token=True,
)
GET_MODEL_VERSION = _row("get_model_version", "GET", "mlflow/model-versions/get", _PLATFORM)
UPDATE_MODEL_VERSION = _row(
    "update_model_version",
    "POST",
    "mlflow/model-versions/update",
    _PLATFORM,
    takes_retry_token=True,
)
DELETE_MODEL_VERSION = _row(
    "delete_model_version",
    "POST",
    "mlflow/model-versions/delete",
    _PLATFORM,
    takes_retry_token=True,
)
SEARCH_MODEL_VERSIONS = _row(
    "list_model_versions", "GET", "mlflow/model-versions/search", _PLATFORM
)
TRANSITION_MODEL_VERSION_STAGE = _row(
    "transition_model_version_stage",
    "POST",
    "mlflow/model-versions/transition-stage",
    _PLATFORM,
    takes_retry_token=True,
)
SET_MODEL_VERSION_TAG = _row(
    "set_model_version_tag",
    "POST",
    "mlflow/model-versions/set-tag",
    _PLATFORM,
    takes_retry_token=True,
)
DELETE_MODEL_VERSION_TAG = _row(
    "delete_model_version_tag",
    "POST",
    "mlflow/model-versions/delete-tag",
    _PLATFORM,
    takes_retry_token=True,
)
UPDATE_MODEL_VERSION_TAGS = _row(
    "update_model_version_tags",
    "POST",
    "mlflow/internal/model-versions/update-tags",
    _PLATFORM,
    takes_retry_token=True,
)

# Logged models
SEARCH_LOGGED_MODELS = _row("list_logged_models", "POST", "mlflow/logged-models/search", _WORKSPACE)

# Deployments, which no MLflow knows
CREATE_DEPLOYMENT = _row(
    "create_model_deployment", "POST", "model-deployments/create", _PLATFORM, takes_retry_token=True
)
GET_DEPLOYMENT = _row("get_model_deployment", "GET", "model-deployments/get", _PLATFORM)
UPDATE_DEPLOYMENT = _row("update_model_deployment", "POST", "model-deployments/update", _PLATFORM)
DELETE_DEPLOYMENT = _row("delete_model_deployment", "POST", "model-deployments/delete", _PLATFORM)
SEARCH_DEPLOYMENTS = _row("search_model_deployments", "POST", "model-deployments/search", _PLATFORM)
ACTIVATE_DEPLOYMENT = _row(
    "activate_model_deployment", "POST", "model-deployments/activate", _PLATFORM
)
DEACTIVATE_DEPLOYMENT = _row(
    "deactivate_model_deployment", "POST", "model-deployments/deactivate", _PLATFORM
)
ROLL_BACK_DEPLOYMENT = _row(
    "roll_back_model_deployment", "POST", "model-deployments/roll-back", _PLATFORM
)
ROLL_FORWARD_DEPLOYMENT = _row(
    "roll_forward_model_deployment", "POST", "model-deployments/roll-forward", _PLATFORM
)
UPDATE_DEPLOYMENT_TAGS = _row(
    "update_model_deployment_tags",
    "POST",
    "model-deployments/update-tags",
    _PLATFORM,
    takes_retry_token=True,
)
GET_DEPLOYMENT_CONTRACT = _row(
    "get_model_deployment_contract", "GET", "model-deployments/contract", _PLATFORM
)
GET_DEPLOYMENT_ACTIVITY = _row(
    "get_model_deployment_activity", "GET", "model-deployments/activities/get", _PLATFORM
)
SEARCH_DEPLOYMENT_ACTIVITIES = _row(
    "list_model_deployment_activities", "POST", "model-deployments/activities/search", _PLATFORM
)
SEARCH_DEPLOYMENT_LOGS = _row(
    "search_deployment_logs",
    "POST",
    "model-deployments/{deploymentId}/monitoring/logs/search",
    _PLATFORM,
)
GET_DEPLOYMENT_LOG = _row(
    "get_deployment_log",
    "GET",
    "model-deployments/{deploymentId}/monitoring/logs/{logId}",
    _PLATFORM,
)
SEARCH_INFERENCES = _row(
    "search_model_deployment_inferences",
    "POST",
    "model-deployments/{deploymentId}/monitoring/inferences/search",
    _PLATFORM,
)
GET_INFERENCE = _row(
    "get_model_deployment_inference_details",
    "GET",
    "model-deployments/{deploymentId}/monitoring/inferences/{requestId}",
    _PLATFORM,
)
GET_INFERENCE_SUMMARY = _row(
    "get_model_deployment_inference_summary",
    "GET",
    "model-deployments/{deploymentId}/monitoring/inferences/summary",
    _PLATFORM,
)
EXPORT_INFERENCES = _row(
    "export_model_deployment_inferences",
    "POST",
    "model-deployments/{deploymentId}/monitoring/inferences/actions/export",
    _PLATFORM,
)

ENDPOINTS: tuple[Endpoint, ...] = tuple(
    row for row in tuple(globals().values()) if isinstance(row, Endpoint)
)
