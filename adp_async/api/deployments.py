"""Deployments: model versions that serve, their activities, logs and inferences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Unpack

from adp_async._sansio import endpoints
from adp_async.api._family import CallOptions, Family, Listing, keys
from adp_async.entities.deployments import (
    DeploymentActivity,
    DeploymentActivityPage,
    DeploymentActivitySummary,
    DeploymentContract,
    DeploymentLogDetail,
    DeploymentLogPage,
    DeploymentLogSummary,
    InferenceInvocationDetails,
    InferenceInvocationPage,
    InferenceInvocationSummary,
    InferenceInvocationTotals,
    ModelDeployment,
    ModelDeploymentPage,
    ModelDeploymentSummary,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from adp_async.entities.deployments import (
        ActivityStatus,
        AuthType,
        DeploymentOAuthDetails,
        DeploymentStatus,
        DeploymentTarget,
        InferenceFilters,
        InferenceStatus,
        ModelDeploymentTag,
    )


class Deployments(Family):
    """The operations on deployments.  They belong to the platform, not to a workspace.

    Every datetime has a time zone, going in (or it is a ValueError) and coming out.
    """

    __slots__ = ()

    async def create(
        self,
        name: str,
        model_name: str,
        deployment_targets: Sequence[DeploymentTarget],
        workspace_key: str,
        compute_key: str,
        auth_type: AuthType,
        *,
        description: str | None = None,
        auth_details: DeploymentOAuthDetails | None = None,
        tags: Sequence[ModelDeploymentTag] = (),
        **options: Unpack[CallOptions],
    ) -> ModelDeployment:
        """Deploy versions of a model; *auth_details* go with the auth type ``"OAUTH"``.

        Operation: create_model_deployment, POST .../model-deployments/create
        """
        return await self._call(
            endpoints.CREATE_DEPLOYMENT,
            ModelDeployment,
            options,
            name=name,
            model_name=model_name,
            deployment_targets=deployment_targets,
            workspace_key=workspace_key,
            compute_key=compute_key,
            auth_type=auth_type,
            description=description,
            auth_details=auth_details,
            tags=tags,
        )

    async def get(self, deployment_id: str, **options: Unpack[CallOptions]) -> ModelDeployment:
        """One deployment.

        Operation: get_model_deployment, GET .../model-deployments/get
        """
        return await self._call(
            endpoints.GET_DEPLOYMENT, ModelDeployment, options, deployment_id=deployment_id
        )

    async def update(
        self,
        deployment_id: str,
        name: str,
        workspace_key: str,
        compute_key: str,
        *,
        description: str | None = None,
        deployment_targets: Sequence[DeploymentTarget] = (),
        auth_type: AuthType | None = None,
        auth_details: DeploymentOAuthDetails | None = None,
        **options: Unpack[CallOptions],
    ) -> ModelDeployment:
        """Change a deployment; what is optional and not given stays.

        Operation: update_model_deployment, POST .../model-deployments/update
        """
        return await self._call(
            endpoints.UPDATE_DEPLOYMENT,
            ModelDeployment,
            options,
            deployment_id=deployment_id,
            name=name,
            workspace_key=workspace_key,
            compute_key=compute_key,
            description=description,
            deployment_targets=deployment_targets,
            auth_type=auth_type,
            auth_details=auth_details,
        )

    async def delete(self, deployment_id: str, **options: Unpack[CallOptions]) -> None:
        """Delete a deployment, for good.

        Operation: delete_model_deployment, POST .../model-deployments/delete
        """
        await self._do(endpoints.DELETE_DEPLOYMENT, options, deployment_id=deployment_id)

    def search(
        self,
        model_name: str,
        *,
        status: DeploymentStatus | None = None,
        order_by: Sequence[str] = (),
        max_results: int | None = None,
        page_token: str | None = None,
        **options: Unpack[CallOptions],
    ) -> Listing[ModelDeploymentSummary, ModelDeploymentPage]:
        """All deployments of a model: ``async for deployment in ...``.

        *max_results* is the size of a page, not a bound of the whole.

        Operation: search_model_deployments, POST .../model-deployments/search
        """
        return self._listing(
            endpoints.SEARCH_DEPLOYMENTS,
            ModelDeploymentPage,
            options,
            page_token=page_token,
            model_name=model_name,
            status=status,
            order_by=order_by,
            max_results=max_results,
        )

    async def activate(
        self, deployment_id: str, *, message: str | None = None, **options: Unpack[CallOptions]
    ) -> None:
        """Let a deployment serve; *message* is kept with the activity.

        Operation: activate_model_deployment, POST .../model-deployments/activate
        """
        await self._do(
            endpoints.ACTIVATE_DEPLOYMENT, options, deployment_id=deployment_id, message=message
        )

    async def deactivate(
        self, deployment_id: str, *, message: str | None = None, **options: Unpack[CallOptions]
    ) -> None:
        """Stop a deployment from serving; *message* is kept with the activity.

        Operation: deactivate_model_deployment, POST .../model-deployments/deactivate
        """
        await self._do(
            endpoints.DEACTIVATE_DEPLOYMENT, options, deployment_id=deployment_id, message=message
        )

    async def roll_back(
        self,
        deployment_id: str,
        deployment_targets: Sequence[DeploymentTarget],
        *,
        message: str | None = None,
        **options: Unpack[CallOptions],
    ) -> None:
        """Go back to earlier versions, with their shares of the traffic.

        Operation: roll_back_model_deployment, POST .../model-deployments/roll-back
        """
        await self._do(
            endpoints.ROLL_BACK_DEPLOYMENT,
            options,
            deployment_id=deployment_id,
            deployment_targets=deployment_targets,
            message=message,
        )

    async def roll_forward(
        self,
        deployment_id: str,
        deployment_targets: Sequence[DeploymentTarget],
        *,
        message: str | None = None,
        **options: Unpack[CallOptions],
    ) -> None:
        """Go on to newer versions, with their shares of the traffic.

        Operation: roll_forward_model_deployment, POST .../model-deployments/roll-forward
        """
        await self._do(
            endpoints.ROLL_FORWARD_DEPLOYMENT,
            options,
            deployment_id=deployment_id,
            deployment_targets=deployment_targets,
            message=message,
        )

    async def update_tags(
        self,
        deployment_id: str,
        *,
        set_tags: Sequence[ModelDeploymentTag] = (),
        delete_tags: Sequence[str] = (),
        **options: Unpack[CallOptions],
    ) -> None:
        """Set some tags and delete others, named by key, in one request.

        Operation: update_model_deployment_tags, POST .../model-deployments/update-tags
        """
        await self._do(
            endpoints.UPDATE_DEPLOYMENT_TAGS,
            options,
            deployment_id=deployment_id,
            set_tags=set_tags,
            delete_tags=keys(delete_tags),
        )

    async def contract(
        self,
        deployment_id: str,
        *,
        model_version: int | None = None,
        **options: Unpack[CallOptions],
    ) -> DeploymentContract:
        """What the deployed model takes and gives.

        Operation: get_model_deployment_contract, GET .../model-deployments/contract
        """
        return await self._call(
            endpoints.GET_DEPLOYMENT_CONTRACT,
            DeploymentContract,
            options,
            deployment_id=deployment_id,
            model_version=model_version,
        )

    async def get_activity(
        self, activity_id: str, **options: Unpack[CallOptions]
    ) -> DeploymentActivity:
        """One activity, with the deployment as it was then.

        Operation: get_model_deployment_activity, GET .../model-deployments/activities/get
        """
        return await self._call(
            endpoints.GET_DEPLOYMENT_ACTIVITY,
            DeploymentActivity,
            options,
            activity_id=activity_id,
        )

    def search_activities(
        self,
        deployment_id: str,
        *,
        status: ActivityStatus | None = None,
        order_by: Sequence[str] = (),
        max_results: int | None = None,
        page_token: str | None = None,
        **options: Unpack[CallOptions],
    ) -> Listing[DeploymentActivitySummary, DeploymentActivityPage]:
        """What was done to a deployment: ``async for activity in ...``.

        *max_results* is the size of a page, not a bound of the whole.

        Operation: list_model_deployment_activities,
        POST .../model-deployments/activities/search
        """
        return self._listing(
            endpoints.SEARCH_DEPLOYMENT_ACTIVITIES,
            DeploymentActivityPage,
            options,
            page_token=page_token,
            deployment_id=deployment_id,
            status=status,
            order_by=order_by,
            max_results=max_results,
        )

    def search_logs(
        self,
        deployment_id: str,
        time_start: datetime,
        time_end: datetime,
        *,
        levels: Sequence[str] = (),
        opc_request_id: str | None = None,
        replica_id: str | None = None,
        sort_by: Literal["TIMESTAMP"] | None = None,
        sort_order: Literal["DESC"] | None = None,
        limit: int | None = None,
        page_token: str | None = None,
        **options: Unpack[CallOptions],
    ) -> Listing[DeploymentLogSummary, DeploymentLogPage]:
        """The log between two moments: ``async for record in ...``.

        *limit* is the size of a page.  *opc_request_id* is that of the inference whose records
        are looked for, not the one sent with this call.  The pages also say how much of the time
        asked for the log still holds (``page.coverage``).

        Operation: search_deployment_logs,
        POST .../model-deployments/{deploymentId}/monitoring/logs/search
        """
        return self._listing(
            endpoints.SEARCH_DEPLOYMENT_LOGS,
            DeploymentLogPage,
            options,
            page_token=page_token,
            deployment_id=deployment_id,
            time_start=time_start,
            time_end=time_end,
            levels=levels,
            opc_request_id=opc_request_id,
            replica_id=replica_id,
            sort_by=sort_by,
            sort_order=sort_order,
            limit=limit,
        )

    async def get_log(
        self, deployment_id: str, log_id: str, **options: Unpack[CallOptions]
    ) -> DeploymentLogDetail:
        """One record of the log, with its message.

        Operation: get_deployment_log,
        GET .../model-deployments/{deploymentId}/monitoring/logs/{logId}
        """
        return await self._call(
            endpoints.GET_DEPLOYMENT_LOG,
            DeploymentLogDetail,
            options,
            deployment_id=deployment_id,
            log_id=log_id,
        )

    def search_inferences(
        self,
        deployment_id: str,
        *,
        time_start: datetime | None = None,
        time_end: datetime | None = None,
        status: InferenceStatus | None = None,
        model_version: str | None = None,
        request_uri: str | None = None,
        page_token: str | None = None,
        **options: Unpack[CallOptions],
    ) -> Listing[InferenceInvocationSummary, InferenceInvocationPage]:
        """The inferences a deployment answered: ``async for inference in ...``.

        Operation: search_model_deployment_inferences,
        POST .../model-deployments/{deploymentId}/monitoring/inferences/search
        """
        return self._listing(
            endpoints.SEARCH_INFERENCES,
            InferenceInvocationPage,
            options,
            page_token=page_token,
            deployment_id=deployment_id,
            time_start=time_start,
            time_end=time_end,
            status=status,
            model_version=model_version,
            request_uri=request_uri,
        )

    async def get_inference(
        self, deployment_id: str, inference_id: str, **options: Unpack[CallOptions]
    ) -> InferenceInvocationDetails:
        """One inference with its payloads; *inference_id* is its ``request_id``.

        Operation: get_model_deployment_inference_details,
        GET .../model-deployments/{deploymentId}/monitoring/inferences/{requestId}
        """
        return await self._call(
            endpoints.GET_INFERENCE,
            InferenceInvocationDetails,
            options,
            deployment_id=deployment_id,
            request_id=inference_id,
        )

    async def inference_summary(
        self,
        deployment_id: str,
        *,
        time_start: datetime | None = None,
        time_end: datetime | None = None,
        **options: Unpack[CallOptions],
    ) -> InferenceInvocationTotals:
        """How many inferences there were, and how they went.

        Operation: get_model_deployment_inference_summary,
        GET .../model-deployments/{deploymentId}/monitoring/inferences/summary
        """
        return await self._call(
            endpoints.GET_INFERENCE_SUMMARY,
            InferenceInvocationTotals,
            options,
            deployment_id=deployment_id,
            time_start=time_start,
            time_end=time_end,
        )

    async def export_inferences(
        self,
        deployment_id: str,
        volume_location: str,
        *,
        is_overwrite: bool | None = None,
        time_start: datetime | None = None,
        time_end: datetime | None = None,
        filters: InferenceFilters | None = None,
        **options: Unpack[CallOptions],
    ) -> None:
        """Have inferences written to a volume.

        Operation: export_model_deployment_inferences,
        POST .../model-deployments/{deploymentId}/monitoring/inferences/actions/export
        """
        await self._do(
            endpoints.EXPORT_INFERENCES,
            options,
            deployment_id=deployment_id,
            volume_location=volume_location,
            is_overwrite=is_overwrite,
            time_start=time_start,
            time_end=time_end,
            filters=filters,
        )
