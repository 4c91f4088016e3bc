"""The operations of the MLOps API, version 20260430, one row each.

A row says where an operation goes and whether it takes a retry token.  What an operation's
arguments are called and mean is the business of `adp_async.api`, and the URL of a call that of
`urls`.
"""

from __future__ import annotations

import enum

from attrs import Factory, field, frozen

from adp_async.errors import type_name

#: The version of the API, the first part of every path.
API_VERSION = "20260430"


class Scope(enum.Enum):
    """Whose operation it is: a workspace's, or the whole platform's."""

    WORKSPACE = "workspace"
    PLATFORM = "platform"


@frozen
class Endpoint:
    """One REST operation: where it goes, and whether it takes a retry token.

    *path* is what follows ``.../mlops/api/2.0/`` and may hold parts such as ``{deploymentId}``.
    *operation* is the API's name of the operation; by default the path.
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


def check_endpoint(endpoint: object) -> None:
    """Raise TypeError unless *endpoint* is one."""
    if not issubclass(type(endpoint), Endpoint):
        raise TypeError(f"an operation must be an Endpoint, not {type_name(endpoint)}")


_PLATFORM = Scope.PLATFORM


def _get(operation: str, path: str, scope: Scope = Scope.WORKSPACE) -> Endpoint:
    return Endpoint("GET", path, scope, operation=operation)


def _post(operation: str, path: str, scope: Scope = Scope.WORKSPACE) -> Endpoint:
    return Endpoint("POST", path, scope, operation=operation)


def _post_once(operation: str, path: str, scope: Scope = Scope.WORKSPACE) -> Endpoint:
    """One that takes a retry token, under which the service applies it once."""
    return Endpoint("POST", path, scope, takes_retry_token=True, operation=operation)


# A table reads best with one row a line.
# ruff: noqa: E501
# fmt: off

# Experiments
CREATE_EXPERIMENT = _post_once("create_experiment", "mlflow/experiments/create")
GET_EXPERIMENT = _get("get_experiment_by_id", "mlflow/experiments/get")
GET_EXPERIMENT_BY_NAME = _get("get_experiment_by_name", "mlflow/experiments/get-by-name")
UPDATE_EXPERIMENT = _post_once("update_experiment", "mlflow/experiments/update")
DELETE_EXPERIMENT = _post_once("delete_experiment", "mlflow/experiments/delete")
RESTORE_EXPERIMENT = _post_once("restore_experiment", "mlflow/experiments/restore")
SEARCH_EXPERIMENTS = _post("list_experiments", "mlflow/experiments/search")
SET_EXPERIMENT_TAG = _post_once("set_experiment_tag", "mlflow/experiments/set-experiment-tag")
DELETE_EXPERIMENT_TAG = _post_once("delete_experiment_tag", "mlflow/experiments/delete-experiment-tag")
UPDATE_EXPERIMENT_TAGS = _post_once("update_experiment_tags", "mlflow/internal/experiments/update-experiment-tags")

# Runs
CREATE_RUN = _post_once("create_experiment_run", "mlflow/runs/create")
GET_RUN = _get("get_experiment_run_by_id", "mlflow/runs/get")
UPDATE_RUN = _post_once("update_experiment_run", "mlflow/runs/update")
DELETE_RUN = _post_once("delete_experiment_run", "mlflow/runs/delete")
RESTORE_RUN = _post_once("restore_experiment_run", "mlflow/runs/restore")
SEARCH_RUNS = _post("list_experiment_runs", "mlflow/runs/search")
LOG_BATCH = _post_once("log_experiment_run_batch", "mlflow/runs/log-batch")
LOG_METRIC = _post_once("log_experiment_run_metric", "mlflow/runs/log-metric")
LOG_PARAM = _post_once("log_experiment_run_param", "mlflow/runs/log-parameter")
LOG_MODEL = _post_once("log_experiment_run_model", "mlflow/runs/log-model")
LOG_INPUTS = _post_once("log_experiment_run_inputs", "mlflow/runs/log-inputs")
SET_RUN_TAG = _post_once("set_experiment_run_tag", "mlflow/runs/set-tag")
DELETE_RUN_TAG = _post_once("delete_experiment_run_tag", "mlflow/runs/delete-tag")
UPDATE_RUN_TAGS = _post_once("update_experiment_run_tags", "mlflow/internal/runs/update-tags")
GET_METRIC_HISTORY = _get("get_experiment_run_metric_history", "mlflow/metrics/get-history")
LIST_ARTIFACTS = _get("list_artifacts", "mlflow/artifacts/list")

# Registered models
CREATE_REGISTERED_MODEL = _post_once("create_registered_model", "mlflow/registered-models/create", _PLATFORM)
GET_REGISTERED_MODEL = _get("get_registered_model", "mlflow/registered-models/get", _PLATFORM)
UPDATE_REGISTERED_MODEL = _post_once("update_registered_model", "mlflow/registered-models/update", _PLATFORM)
RENAME_REGISTERED_MODEL = _post_once("rename_registered_model", "mlflow/registered-models/rename", _PLATFORM)
DELETE_REGISTERED_MODEL = _post_once("delete_registered_model", "mlflow/registered-models/delete", _PLATFORM)
SEARCH_REGISTERED_MODELS = _get("list_registered_models", "mlflow/registered-models/search", _PLATFORM)
SET_REGISTERED_MODEL_TAG = _post_once("set_registered_model_tag", "mlflow/registered-models/set-tag", _PLATFORM)
DELETE_REGISTERED_MODEL_TAG = _post_once("delete_registered_model_tag", "mlflow/registered-models/delete-tag", _PLATFORM)
UPDATE_REGISTERED_MODEL_TAGS = _post_once("update_registered_model_tags", "mlflow/internal/registered-models/update-tags", _PLATFORM)
LIST_REGISTERED_MODEL_PERMISSIONS = _get("list_registered_model_permissions", "mlflow/registered-models/{registeredModelKey}/permissions", _PLATFORM)
MANAGE_REGISTERED_MODEL_PERMISSION = _post("manage_registered_model_permission", "mlflow/registered-models/{registeredModelKey}/actions/managePermission", _PLATFORM)
GET_REGISTERED_MODEL_SUMMARY = _get("get_registered_model_summary", "registered-models/summary", _PLATFORM)

# Model versions
CREATE_MODEL_VERSION = _post_once("create_model_version", "mlflow/model-versions/create", _PLATFORM)
CREATE_WORKSPACE_MODEL_VERSION = _post_once("create_workspace_model_version", "mlflow/model-versions/create")
GET_MODEL_VERSION = _get("get_model_version", "mlflow/model-versions/get", _PLATFORM)
UPDATE_MODEL_VERSION = _post_once("update_model_version", "mlflow/model-versions/update", _PLATFORM)
DELETE_MODEL_VERSION = _post_once("delete_model_version", "mlflow/model-versions/delete", _PLATFORM)
SEARCH_MODEL_VERSIONS = _get("list_model_versions", "mlflow/model-versions/search", _PLATFORM)
TRANSITION_MODEL_VERSION_STAGE = _post_once("transition_model_version_stage", "mlflow/model-versions/transition-stage", _PLATFORM)
SET_MODEL_VERSION_TAG = _post_once("set_model_version_tag", "mlflow/model-versions/set-tag", _PLATFORM)
DELETE_MODEL_VERSION_TAG = _post_once("delete_model_version_tag", "mlflow/model-versions/delete-tag", _PLATFORM)
UPDATE_MODEL_VERSION_TAGS = _post_once("update_model_version_tags", "mlflow/internal/model-versions/update-tags", _PLATFORM)

# Logged models
SEARCH_LOGGED_MODELS = _post("list_logged_models", "mlflow/logged-models/search")

# Deployments, which MLflow does not have
CREATE_DEPLOYMENT = _post_once("create_model_deployment", "model-deployments/create", _PLATFORM)
GET_DEPLOYMENT = _get("get_model_deployment", "model-deployments/get", _PLATFORM)
UPDATE_DEPLOYMENT = _post("update_model_deployment", "model-deployments/update", _PLATFORM)
DELETE_DEPLOYMENT = _post("delete_model_deployment", "model-deployments/delete", _PLATFORM)
SEARCH_DEPLOYMENTS = _post("search_model_deployments", "model-deployments/search", _PLATFORM)
ACTIVATE_DEPLOYMENT = _post("activate_model_deployment", "model-deployments/activate", _PLATFORM)
DEACTIVATE_DEPLOYMENT = _post("deactivate_model_deployment", "model-deployments/deactivate", _PLATFORM)
ROLL_BACK_DEPLOYMENT = _post("roll_back_model_deployment", "model-deployments/roll-back", _PLATFORM)
ROLL_FORWARD_DEPLOYMENT = _post("roll_forward_model_deployment", "model-deployments/roll-forward", _PLATFORM)
UPDATE_DEPLOYMENT_TAGS = _post_once("update_model_deployment_tags", "model-deployments/update-tags", _PLATFORM)
GET_DEPLOYMENT_CONTRACT = _get("get_model_deployment_contract", "model-deployments/contract", _PLATFORM)
GET_DEPLOYMENT_ACTIVITY = _get("get_model_deployment_activity", "model-deployments/activities/get", _PLATFORM)
SEARCH_DEPLOYMENT_ACTIVITIES = _post("list_model_deployment_activities", "model-deployments/activities/search", _PLATFORM)
SEARCH_DEPLOYMENT_LOGS = _post("search_deployment_logs", "model-deployments/{deploymentId}/monitoring/logs/search", _PLATFORM)
GET_DEPLOYMENT_LOG = _get("get_deployment_log", "model-deployments/{deploymentId}/monitoring/logs/{logId}", _PLATFORM)
SEARCH_INFERENCES = _post("search_model_deployment_inferences", "model-deployments/{deploymentId}/monitoring/inferences/search", _PLATFORM)
GET_INFERENCE = _get("get_model_deployment_inference_details", "model-deployments/{deploymentId}/monitoring/inferences/{requestId}", _PLATFORM)
GET_INFERENCE_SUMMARY = _get("get_model_deployment_inference_summary", "model-deployments/{deploymentId}/monitoring/inferences/summary", _PLATFORM)
EXPORT_INFERENCES = _post("export_model_deployment_inferences", "model-deployments/{deploymentId}/monitoring/inferences/actions/export", _PLATFORM)

# fmt: on

ENDPOINTS: tuple[Endpoint, ...] = tuple(
    row for row in tuple(globals().values()) if isinstance(row, Endpoint)
)
