"""Requests and replies as frozen attrs classes, with MLflow's names: one module a family.

Sequences are tuples; one that a reply leaves out is ``()``, any other optional field None.  The
names and ids that identify something are never None: they are ``""`` in the unlikely case that the
service leaves them out.  Enum values are plain text in replies, so that a new one breaks nothing;
the ``Literal`` types are what arguments may be.

A family's module is imported when one of its names is first used: a hundred attrs classes would
otherwise be a fifth of the time of ``import adp_async``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adp_async.entities.deployments import (
        ActivityStatus,
        AuthType,
        DeploymentActivity,
        DeploymentActivityPage,
        DeploymentActivitySummary,
        DeploymentContract,
        DeploymentDetails,
        DeploymentDetailsSummary,
        DeploymentLogCoverage,
        DeploymentLogDetail,
        DeploymentLogMessage,
        DeploymentLogMetadata,
        DeploymentLogPage,
        DeploymentLogQuery,
        DeploymentLogRecords,
        DeploymentLogSummary,
        DeploymentOAuthDetails,
        DeploymentStatus,
        DeploymentTarget,
        InferenceFilters,
        InferenceInvocationCounts,
        InferenceInvocationDetails,
        InferenceInvocationMetadata,
        InferenceInvocationPage,
        InferenceInvocationSummary,
        InferenceInvocationTotals,
        InferenceStatus,
        ModelDeployment,
        ModelDeploymentPage,
        ModelDeploymentSummary,
        ModelDeploymentTag,
    )
    from adp_async.entities.experiments import (
        Experiment,
        ExperimentPage,
        ExperimentTag,
        ViewType,
    )
    from adp_async.entities.logged_models import (
        LoggedModel,
        LoggedModelInfo,
        LoggedModelOrder,
        LoggedModelPage,
        LoggedModelTag,
    )
    from adp_async.entities.model_versions import (
        ModelParam,
        ModelVersion,
        ModelVersionDeploymentJobState,
        ModelVersionPage,
        ModelVersionTag,
    )
    from adp_async.entities.registered_models import (
        AssigneeType,
        DeploymentSummary,
        Permission,
        PermissionAssignees,
        PermissionChange,
        PermissionOrder,
        PermissionPage,
        RegisteredModel,
        RegisteredModelAlias,
        RegisteredModelPage,
        RegisteredModelPermission,
        RegisteredModelSummary,
        RegisteredModelTag,
        SortOrder,
    )
    from adp_async.entities.runs import (
        ArtifactPage,
        Dataset,
        DatasetInput,
        FileInfo,
        InputTag,
        Metric,
        MetricPage,
        ModelInput,
        ModelOutput,
        Param,
        Run,
        RunData,
        RunInfo,
        RunInputs,
        RunOutputs,
        RunPage,
        RunStatus,
        RunTag,
    )

__all__ = [
    "ActivityStatus",
    "ArtifactPage",
    "AssigneeType",
    "AuthType",
    "Dataset",
    "DatasetInput",
    "DeploymentActivity",
    "DeploymentActivityPage",
    "DeploymentActivitySummary",
    "DeploymentContract",
    "DeploymentDetails",
    "DeploymentDetailsSummary",
    "DeploymentLogCoverage",
    "DeploymentLogDetail",
    "DeploymentLogMessage",
    "DeploymentLogMetadata",
    "DeploymentLogPage",
    "DeploymentLogQuery",
    "DeploymentLogRecords",
    "DeploymentLogSummary",
    "DeploymentOAuthDetails",
    "DeploymentStatus",
    "DeploymentSummary",
    "DeploymentTarget",
    "Experiment",
    "ExperimentPage",
    "ExperimentTag",
    "FileInfo",
    "InferenceFilters",
    "InferenceInvocationCounts",
    "InferenceInvocationDetails",
    "InferenceInvocationMetadata",
    "InferenceInvocationPage",
    "InferenceInvocationSummary",
    "InferenceInvocationTotals",
    "InferenceStatus",
    "InputTag",
    "LoggedModel",
    "LoggedModelInfo",
    "LoggedModelOrder",
    "LoggedModelPage",
    "LoggedModelTag",
    "Metric",
    "MetricPage",
    "ModelDeployment",
    "ModelDeploymentPage",
    "ModelDeploymentSummary",
    "ModelDeploymentTag",
    "ModelInput",
    "ModelOutput",
    "ModelParam",
    "ModelVersion",
    "ModelVersionDeploymentJobState",
    "ModelVersionPage",
    "ModelVersionTag",
    "Param",
    "Permission",
    "PermissionAssignees",
    "PermissionChange",
    "PermissionOrder",
    "PermissionPage",
    "RegisteredModel",
    "RegisteredModelAlias",
    "RegisteredModelPage",
    "RegisteredModelPermission",
    "RegisteredModelSummary",
    "RegisteredModelTag",
    "Run",
    "RunData",
    "RunInfo",
    "RunInputs",
    "RunOutputs",
    "RunPage",
    "RunStatus",
    "RunTag",
    "SortOrder",
    "ViewType",
]

_FAMILIES = (
    "runs",
    "experiments",
    "model_versions",
    "registered_models",
    "logged_models",
    "deployments",
)


def __getattr__(name: str) -> object:
    if name in __all__:
        modules = (importlib.import_module(f"{__name__}.{family}") for family in _FAMILIES)
        entity = next(getattr(module, name) for module in modules if hasattr(module, name))
        return globals().setdefault(name, entity)
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
