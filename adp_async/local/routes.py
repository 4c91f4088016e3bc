"""The 68 operations at the service's own paths, and their counterparts in MLflow.

Typed out a second time on purpose: the client's table is `adp_async._sansio.endpoints`, and a
wrong path there must not find the same wrong path here.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ROUTES", "Place", "Route", "RouteTable", "locate"]

_VERSION = "20260430"
_PREFIX = re.compile(
    rf"/{_VERSION}/aiDataPlatforms/(?P<platform>[^/]+)"
    r"(?:/workspaces/(?P<workspace>[^/]+))?/mlops/api/2\.0/(?P<path>.+)"
)


@frozen
class Route:
    """One operation: where the service has it, and MLflow's method and path, "" when it has none.

    *path* is relative to ``.../mlops/api/2.0/``, *mlflow_path* to MLflow's ``/api/2.0/``.
    """

    operation: str
    method: str
    path: str
    in_workspace: bool
    mlflow_method: str = ""
    mlflow_path: str = ""

    @property
    def is_answered(self) -> bool:
        return self.mlflow_path != ""


@frozen
class Place:
    """A path of the service, taken apart.  The parts are still percent-encoded."""

    platform: str
    workspace: str | None
    path: str


def locate(raw_path: str) -> Place | None:
    """The parts of *raw_path*, without its query; None if it is not a path of the service."""
    match = _PREFIX.fullmatch(raw_path)
    return Place(match["platform"], match["workspace"], match["path"]) if match else None


class RouteTable:
    """Finds the operation for a method and a path."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._exact: dict[tuple[str, bool, str], Route] = {}
        self._patterns: list[tuple[str, bool, re.Pattern[str], Route]] = []
        for route in routes:
            self._add(route)

    def find(self, method: str, place: Place) -> Route | None:
        in_workspace = place.workspace is not None
        exact = self._exact.get((method, in_workspace, place.path))
        return exact or self._match(method, in_workspace, place.path)

    def _add(self, route: Route) -> None:
        if "{" not in route.path:
            self._exact[route.method, route.in_workspace, route.path] = route
            return
        pattern = re.compile(re.sub(r"\{\w+\}", "[^/]+", route.path))
        self._patterns.append((route.method, route.in_workspace, pattern, route))

    def _match(self, method: str, in_workspace: bool, path: str) -> Route | None:
        for its_method, its_scope, pattern, route in self._patterns:
            if (its_method, its_scope) == (method, in_workspace) and pattern.fullmatch(path):
                return route
        return None


def _row(line: str) -> Route:
    operation, scope, method, path, *mlflow = line.split()
    if mlflow == ["="]:
        mlflow = [method, path]
    return Route(operation, method, path, scope == "workspace", *mlflow)


# "=" is the same method and path in MLflow; nothing means that MLflow has no counterpart.
_TABLE = """
create_experiment workspace POST mlflow/experiments/create =
delete_experiment workspace POST mlflow/experiments/delete =
delete_experiment_tag workspace POST mlflow/experiments/delete-experiment-tag =
get_experiment_by_id workspace GET mlflow/experiments/get =
get_experiment_by_name workspace GET mlflow/experiments/get-by-name =
list_experiments workspace POST mlflow/experiments/search =
restore_experiment workspace POST mlflow/experiments/restore =
set_experiment_tag workspace POST mlflow/experiments/set-experiment-tag =
update_experiment workspace POST mlflow/experiments/update =
update_experiment_tags workspace POST mlflow/internal/experiments/update-experiment-tags =

create_experiment_run workspace POST mlflow/runs/create =
delete_experiment_run workspace POST mlflow/runs/delete =
delete_experiment_run_tag workspace POST mlflow/runs/delete-tag =
get_experiment_run_by_id workspace GET mlflow/runs/get =
get_experiment_run_metric_history workspace GET mlflow/metrics/get-history =
list_artifacts workspace GET mlflow/artifacts/list =
list_experiment_runs workspace POST mlflow/runs/search =
log_experiment_run_batch workspace POST mlflow/runs/log-batch =
log_experiment_run_inputs workspace POST mlflow/runs/log-inputs =
log_experiment_run_metric workspace POST mlflow/runs/log-metric =
log_experiment_run_model workspace POST mlflow/runs/log-model =
log_experiment_run_param workspace POST mlflow/runs/log-parameter =
restore_experiment_run workspace POST mlflow/runs/restore =
set_experiment_run_tag workspace POST mlflow/runs/set-tag =
update_experiment_run workspace POST mlflow/runs/update =
update_experiment_run_tags workspace POST mlflow/internal/runs/update-tags =

list_logged_models workspace POST mlflow/logged-models/search =

create_registered_model platform POST mlflow/registered-models/create =
delete_registered_model platform POST mlflow/registered-models/delete DELETE mlflow/registered-models/delete
delete_registered_model_tag platform POST mlflow/registered-models/delete-tag DELETE mlflow/registered-models/delete-tag
get_registered_model platform GET mlflow/registered-models/get =
get_registered_model_summary platform GET registered-models/summary
list_registered_model_permissions platform GET mlflow/registered-models/{registeredModelKey}/permissions
list_registered_models platform GET mlflow/registered-models/search =
manage_registered_model_permission platform POST mlflow/registered-models/{registeredModelKey}/actions/managePermission
rename_registered_model platform POST mlflow/registered-models/rename =
set_registered_model_tag platform POST mlflow/registered-models/set-tag =
update_registered_model platform POST mlflow/registered-models/update PATCH mlflow/registered-models/update
update_registered_model_tags platform POST mlflow/internal/registered-models/update-tags =

create_model_version platform POST mlflow/model-versions/create =
create_workspace_model_version workspace POST mlflow/model-versions/create =
delete_model_version platform POST mlflow/model-versions/delete DELETE mlflow/model-versions/delete
delete_model_version_tag platform POST mlflow/model-versions/delete-tag DELETE mlflow/model-versions/delete-tag
get_model_version platform GET mlflow/model-versions/get =
list_model_versions platform GET mlflow/model-versions/search =
set_model_version_tag platform POST mlflow/model-versions/set-tag =
transition_model_version_stage platform POST mlflow/model-versions/transition-stage =
update_model_version platform POST mlflow/model-versions/update PATCH mlflow/model-versions/update
update_model_version_tags platform POST mlflow/internal/model-versions/update-tags =

activate_model_deployment platform POST model-deployments/activate
create_model_deployment platform POST model-deployments/create
deactivate_model_deployment platform POST model-deployments/deactivate
delete_model_deployment platform POST model-deployments/delete
export_model_deployment_inferences platform POST model-deployments/{deploymentId}/monitoring/inferences/actions/export
get_deployment_log platform GET model-deployments/{deploymentId}/monitoring/logs/{logId}
get_model_deployment platform GET model-deployments/get
get_model_deployment_activity platform GET model-deployments/activities/get
get_model_deployment_contract platform GET model-deployments/contract
get_model_deployment_inference_summary platform GET model-deployments/{deploymentId}/monitoring/inferences/summary
get_model_deployment_inference_details platform GET model-deployments/{deploymentId}/monitoring/inferences/{requestId}
list_model_deployment_activities platform POST model-deployments/activities/search
roll_back_model_deployment platform POST model-deployments/roll-back
roll_forward_model_deployment platform POST model-deployments/roll-forward
search_deployment_logs platform POST model-deployments/{deploymentId}/monitoring/logs/search
search_model_deployment_inferences platform POST model-deployments/{deploymentId}/monitoring/inferences/search
search_model_deployments platform POST model-deployments/search
update_model_deployment platform POST model-deployments/update
update_model_deployment_tags platform POST model-deployments/update-tags
"""  # noqa: E501 -- a table reads best with one row a line

ROUTES = tuple(_row(line) for line in _TABLE.splitlines() if line)
