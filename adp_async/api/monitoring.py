"""What deployments do: their activities, logs and inferences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Unpack

from adp_async._sansio import endpoints
from adp_async.api._family import CallOptions, Family, Listing
from adp_async.entities.deployments import (
    DeploymentActivity,
    DeploymentActivityPage,
    DeploymentActivitySummary,
    DeploymentLogDetail,
    DeploymentLogPage,
    DeploymentLogSummary,
    InferenceInvocationDetails,
    InferenceInvocationPage,
    InferenceInvocationSummary,
    InferenceInvocationTotals,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from adp_async.entities.deployments import (
        ActivityStatus,
        InferenceFilters,
        InferenceStatus,
    )


class Monitoring(Family):
    """The operations that observe deployments; `Deployments` inherits them."""

    __slots__ = ()

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
        limit: int | None = None,
        page_token: str | None = None,
        **options: Unpack[CallOptions],
    ) -> Listing[DeploymentActivitySummary, DeploymentActivityPage]:
        """What was done to a deployment: ``async for activity in ...``.

        At most *limit* of them; *max_results* is the size of a page.

        Operation: list_model_deployment_activities,
        POST .../model-deployments/activities/search
        """
        return self._listing(
            endpoints.SEARCH_DEPLOYMENT_ACTIVITIES,
            DeploymentActivityPage,
            options,
            page_token=page_token,
            most=limit,
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
        are wanted, not the one sent with this call.  The pages also say how much of the requested
        time the log still covers (``page.coverage``).

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
        limit: int | None = None,
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
            most=limit,
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
        """How many inferences there were, and their outcomes.

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
        """Export inferences to a volume.

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
