"""How the wire spells names: snake_case as MLflow, or camelCase as Oracle, entity by entity."""

from __future__ import annotations

from functools import cache

#: Spelled in camelCase wherever they occur, even among snake_case names.
_CAMEL_CASE_NAMES = frozenset(
    {
        "auth_details",
        "auth_type",
        "compute_key",
        "compute_name",
        "time_end",
        "time_start",
        "workspace_key",
        "workspace_name",
    }
)

#: Entities, and operations (for their arguments), that spell every name in camelCase.
_CAMEL_CASE_OWNERS = frozenset(
    {
        "DeploymentLogCoverage",
        "DeploymentLogDetail",
        "DeploymentLogMessage",
        "DeploymentLogMetadata",
        "DeploymentLogPage",
        "DeploymentLogQuery",
        "DeploymentLogRecords",
        "DeploymentLogSummary",
        "DeploymentOAuthDetails",
        "InferenceInvocationCounts",
        "InferenceInvocationDetails",
        "InferenceInvocationMetadata",
        "InferenceInvocationPage",
        "InferenceInvocationSummary",
        "InferenceInvocationTotals",
        "RegisteredModelPermission",
        "list_registered_model_permissions",
        "manage_registered_model_permission",
        "search_deployment_logs",
        "search_model_deployment_inferences",
    }
)


@cache
def wire_name(owner: str, name: str) -> str:
    """How the wire spells *name*, an attribute of the entity or an argument of the operation.

    >>> wire_name("ModelDeployment", "workspace_key"), wire_name("ModelDeployment", "model_name")
    ('workspaceKey', 'model_name')
    """
    if name in _CAMEL_CASE_NAMES or owner in _CAMEL_CASE_OWNERS:
        return camel_case(name)
    return name


@cache
def camel_case(name: str) -> str:
    """*name* in camelCase, as in paths and in Oracle's own schemas.

    >>> camel_case("registered_model_key")
    'registeredModelKey'
    """
    first, *others = name.split("_")
    return first + "".join(part.capitalize() for part in others)
