"""Registered models: the platform's registry, its tags, and permissions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from attrs import evolve

from adp_async._sansio import endpoints
from adp_async._sansio.codec import decode
from adp_async._sansio.urls import place
from adp_async.api._family import CallOptions, Family, Listing, keys
from adp_async.entities.registered_models import (
    PermissionPage,
    RegisteredModel,
    RegisteredModelPage,
    RegisteredModelPermission,
    RegisteredModelReply,
    RegisteredModelSummary,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adp_async.entities.registered_models import (
        PermissionChange,
        PermissionOrder,
        RegisteredModelTag,
        SortOrder,
    )


class RegisteredModels(Family):
    """The operations on registered models.  They belong to the platform, not to a workspace."""

    __slots__ = ()

    async def create(
        self,
        name: str,
        *,
        description: str | None = None,
        tags: Sequence[RegisteredModelTag] = (),
        deployment_job_id: str | None = None,
        **options: Unpack[CallOptions],
    ) -> RegisteredModel:
        """Register a model by name; a name that exists already is an error.

        Operation: create_registered_model, POST .../mlflow/registered-models/create
        """
        reply = await self._call(
            endpoints.CREATE_REGISTERED_MODEL,
            RegisteredModelReply,
            options,
            name=name,
            description=description,
            tags=tags,
            deployment_job_id=deployment_job_id,
        )
        return reply.registered_model

    async def get(self, name: str, **options: Unpack[CallOptions]) -> RegisteredModel:
        """A registered model with its newest versions.

        Operation: get_registered_model, GET .../mlflow/registered-models/get
        """
        reply = await self._call(
            endpoints.GET_REGISTERED_MODEL, RegisteredModelReply, options, name=name
        )
        return reply.registered_model

    async def update(
        self,
        name: str,
        *,
        description: str | None = None,
        deployment_job_id: str | None = None,
        **options: Unpack[CallOptions],
    ) -> RegisteredModel:
        """Change a model's description or deployment job; what is not given stays as it is.

        Operation: update_registered_model, POST .../mlflow/registered-models/update
        """
        reply = await self._call(
            endpoints.UPDATE_REGISTERED_MODEL,
            RegisteredModelReply,
            options,
            name=name,
            description=description,
            deployment_job_id=deployment_job_id,
        )
        return reply.registered_model

    async def rename(
        self, name: str, *, new_name: str | None = None, **options: Unpack[CallOptions]
    ) -> RegisteredModel:
        """Rename a model.

        Operation: rename_registered_model, POST .../mlflow/registered-models/rename
        """
        reply = await self._call(
            endpoints.RENAME_REGISTERED_MODEL,
            RegisteredModelReply,
            options,
            name=name,
            new_name=new_name,
        )
        return reply.registered_model

    async def delete(self, name: str, **options: Unpack[CallOptions]) -> None:
        """Delete a model with all its versions, for good.

        Operation: delete_registered_model, POST .../mlflow/registered-models/delete
        """
        await self._do(endpoints.DELETE_REGISTERED_MODEL, options, name=name)

    def search(
        self,
        *,
        filter_string: str | None = None,
        order_by: str | None = None,
        is_deployment_summary_enabled: bool | None = None,
        max_results: int | None = None,
        limit: int | None = None,
        page_token: str | None = None,
        **options: Unpack[CallOptions],
    ) -> Listing[RegisteredModel, RegisteredModelPage]:
        """All registered models that match: ``async for model in ...``.

        *filter_string* as in MLflow: ``name LIKE 'digits%'``.  At most *limit* of them;
        *max_results* is the size of a page.

        Operation: list_registered_models, GET .../mlflow/registered-models/search
        """
        return self._listing(
            endpoints.SEARCH_REGISTERED_MODELS,
            RegisteredModelPage,
            options,
            page_token=page_token,
            most=limit,
            filter=filter_string,
            order_by=order_by,
            is_deployment_summary_enabled=is_deployment_summary_enabled,
            max_results=max_results,
        )

    async def set_tag(
        self, name: str, key: str, value: str, **options: Unpack[CallOptions]
    ) -> None:
        """Set one tag; an earlier value is overwritten.

        Operation: set_registered_model_tag, POST .../mlflow/registered-models/set-tag
        """
        await self._do(endpoints.SET_REGISTERED_MODEL_TAG, options, name=name, key=key, value=value)

    async def delete_tag(self, name: str, key: str, **options: Unpack[CallOptions]) -> None:
        """Delete one tag.

        Operation: delete_registered_model_tag, POST .../mlflow/registered-models/delete-tag
        """
        await self._do(endpoints.DELETE_REGISTERED_MODEL_TAG, options, name=name, key=key)

    async def update_tags(
        self,
        name: str,
        *,
        set_tags: Sequence[RegisteredModelTag] = (),
        delete_tags: Sequence[str] = (),
        **options: Unpack[CallOptions],
    ) -> None:
        """Set some tags and delete others, named by key, in one request.

        Operation: update_registered_model_tags,
        POST .../mlflow/internal/registered-models/update-tags
        """
        await self._do(
            endpoints.UPDATE_REGISTERED_MODEL_TAGS,
            options,
            name=name,
            set_tags=set_tags,
            delete_tags=keys(delete_tags),
        )

    def permissions(
        self,
        registered_model_key: str,
        *,
        sort_by: PermissionOrder | None = None,
        sort_order: SortOrder | None = None,
        limit: int | None = None,
        page_token: str | None = None,
        **options: Unpack[CallOptions],
    ) -> Listing[RegisteredModelPermission, PermissionPage]:
        """The permissions on a model, whose key is ``catalog.schema.model``.

        *limit* is the size of a page.  By default the newest ``timeCreated`` come first, and
        ``displayName`` from A to Z.

        Operation: list_registered_model_permissions,
        GET .../mlflow/registered-models/{registeredModelKey}/permissions
        """
        endpoint = endpoints.LIST_REGISTERED_MODEL_PERMISSIONS
        arguments = {
            "registered_model_key": registered_model_key,
            "sort_by": sort_by,
            "sort_order": sort_order,
            "limit": limit,
        }

        async def fetch(token: str | None) -> PermissionPage:
            placed = place(endpoint, {**arguments, "page": token})
            reply = await self._caller.fetch(
                endpoint, path=placed.path, query=placed.query, **options
            )
            page = decode(reply.body, PermissionPage, reply=reply, operation=endpoint.operation)
            return evolve(page, next_page_token=reply.headers.get("opc-next-page"))

        place(endpoint, {**arguments, "page": page_token})  # report a wrong argument here
        return Listing(fetch, page_token)

    async def manage_permission(
        self,
        registered_model_key: str,
        *,
        assign: PermissionChange | None = None,
        revoke: PermissionChange | None = None,
        **options: Unpack[CallOptions],
    ) -> None:
        """Assign permissions to users, roles or groups, or revoke them.

        Operation: manage_registered_model_permission,
        POST .../mlflow/registered-models/{registeredModelKey}/actions/managePermission
        """
        await self._do(
            endpoints.MANAGE_REGISTERED_MODEL_PERMISSION,
            options,
            registered_model_key=registered_model_key,
            assign_registered_model_permission_details=assign,
            revoke_registered_model_permission_details=revoke,
        )

    async def summary(
        self, catalog: str, schema: str, **options: Unpack[CallOptions]
    ) -> RegisteredModelSummary:
        """How many models, versions and deployments a schema of the catalog holds.

        Operation: get_registered_model_summary, GET .../registered-models/summary
        """
        return await self._call(
            endpoints.GET_REGISTERED_MODEL_SUMMARY,
            RegisteredModelSummary,
            options,
            catalog=catalog,
            schema=schema,
        )
