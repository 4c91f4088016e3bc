"""Deployments: model versions that serve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from adp_async._sansio import endpoints
from adp_async.api._family import CallOptions, Listing, keys
from adp_async.api.monitoring import Monitoring
from adp_async.entities.deployments import (
    DeploymentContract,
    ModelDeployment,
    ModelDeploymentPage,
    ModelDeploymentSummary,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adp_async.entities.deployments import (
        AuthType,
        DeploymentOAuthDetails,
        DeploymentStatus,
        DeploymentTarget,
        ModelDeploymentTag,
    )


class Deployments(Monitoring):
    """The operations on deployments.  They belong to the platform, not to a workspace.

    Every datetime has a time zone: one without is a ValueError, and results have one.
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
        """Deploy versions of a model; *auth_details* are for the auth type ``"OAUTH"``.

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
        """Change a deployment; optional arguments that are not given stay as they are.

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
        limit: int | None = None,
        page_token: str | None = None,
        **options: Unpack[CallOptions],
    ) -> Listing[ModelDeploymentSummary, ModelDeploymentPage]:
        """All deployments of a model: ``async for deployment in ...``.

        At most *limit* of them; *max_results* is the size of a page.

        Operation: search_model_deployments, POST .../model-deployments/search
        """
        return self._listing(
            endpoints.SEARCH_DEPLOYMENTS,
            ModelDeploymentPage,
            options,
            page_token=page_token,
            most=limit,
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
        """Inputs and outputs of the deployed model.

        Operation: get_model_deployment_contract, GET .../model-deployments/contract
        """
        return await self._call(
            endpoints.GET_DEPLOYMENT_CONTRACT,
            DeploymentContract,
            options,
            deployment_id=deployment_id,
            model_version=model_version,
        )
