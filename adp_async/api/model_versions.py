"""Model versions: the versions of registered models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from adp_async._sansio import endpoints
from adp_async.api._family import CallOptions, Family, Listing, keys
from adp_async.entities.model_versions import ModelVersion, ModelVersionPage, ModelVersionReply

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adp_async.entities.model_versions import ModelVersionTag


class ModelVersions(Family):
    """The operations on versions of registered models."""

    __slots__ = ()

    async def create(
        self,
        name: str,
        source: str,
        *,
        description: str | None = None,
        run_id: str | None = None,
        run_link: str | None = None,
        model_id: str | None = None,
        tags: Sequence[ModelVersionTag] = (),
        **options: Unpack[CallOptions],
    ) -> ModelVersion:
        """Make a version of the model *name* from the artifacts at *source*.

        Operation: create_model_version, POST .../mlflow/model-versions/create
        """
        reply = await self._call(
            endpoints.CREATE_MODEL_VERSION,
            ModelVersionReply,
            options,
            name=name,
            source=source,
            description=description,
            run_id=run_id,
            run_link=run_link,
            model_id=model_id,
            tags=tags,
        )
        return reply.model_version

    async def create_in_workspace(
        self,
        name: str,
        source: str,
        *,
        description: str | None = None,
        run_id: str | None = None,
        run_link: str | None = None,
        model_id: str | None = None,
        tags: Sequence[ModelVersionTag] = (),
        **options: Unpack[CallOptions],
    ) -> ModelVersion:
        """As `create`, in the workspace, where the run and its artifacts are.

        Operation: create_workspace_model_version, POST .../mlflow/model-versions/create
        """
        reply = await self._call(
            endpoints.CREATE_WORKSPACE_MODEL_VERSION,
            ModelVersionReply,
            options,
            name=name,
            source=source,
            description=description,
            run_id=run_id,
            run_link=run_link,
            model_id=model_id,
            tags=tags,
        )
        return reply.model_version

    async def get(self, name: str, version: str, **options: Unpack[CallOptions]) -> ModelVersion:
        """One version of a model; versions are text: ``"1"``.

        Operation: get_model_version, GET .../mlflow/model-versions/get
        """
        reply = await self._call(
            endpoints.GET_MODEL_VERSION, ModelVersionReply, options, name=name, version=version
        )
        return reply.model_version

    async def update(
        self,
        name: str,
        version: str,
        *,
        description: str | None = None,
        **options: Unpack[CallOptions],
    ) -> ModelVersion:
        """Change a version's description.

        Operation: update_model_version, POST .../mlflow/model-versions/update
        """
        reply = await self._call(
            endpoints.UPDATE_MODEL_VERSION,
            ModelVersionReply,
            options,
            name=name,
            version=version,
            description=description,
        )
        return reply.model_version

    async def delete(self, name: str, version: str, **options: Unpack[CallOptions]) -> None:
        """Delete one version, for good.

        Operation: delete_model_version, POST .../mlflow/model-versions/delete
        """
        await self._do(endpoints.DELETE_MODEL_VERSION, options, name=name, version=version)

    def search(
        self,
        *,
        filter_string: str | None = None,
        order_by: str | None = None,
        max_results: int | None = None,
        limit: int | None = None,
        page_token: str | None = None,
        **options: Unpack[CallOptions],
    ) -> Listing[ModelVersion, ModelVersionPage]:
        """All model versions that match: ``async for version in ...``.

        *filter_string* as in MLflow: ``name = 'digits'``.  At most *limit* of them;
        *max_results* is the size of a page.

        Operation: list_model_versions, GET .../mlflow/model-versions/search
        """
        return self._listing(
            endpoints.SEARCH_MODEL_VERSIONS,
            ModelVersionPage,
            options,
            page_token=page_token,
            most=limit,
            filter=filter_string,
            order_by=order_by,
            max_results=max_results,
        )

    async def transition_stage(
        self,
        name: str,
        version: str,
        stage: str,
        archive_existing_versions: bool,
        **options: Unpack[CallOptions],
    ) -> ModelVersion:
        """Move a version to a stage: ``"Staging"``, ``"Production"``, ``"Archived"``, ``"None"``.

        With *archive_existing_versions*, versions that are in that stage are archived.

        Operation: transition_model_version_stage, POST .../mlflow/model-versions/transition-stage
        """
        reply = await self._call(
            endpoints.TRANSITION_MODEL_VERSION_STAGE,
            ModelVersionReply,
            options,
            name=name,
            version=version,
            stage=stage,
            archive_existing_versions=archive_existing_versions,
        )
        return reply.model_version

    async def set_tag(
        self, name: str, version: str, key: str, value: str, **options: Unpack[CallOptions]
    ) -> None:
        """Set one tag; an earlier value is overwritten.

        Operation: set_model_version_tag, POST .../mlflow/model-versions/set-tag
        """
        await self._do(
            endpoints.SET_MODEL_VERSION_TAG,
            options,
            name=name,
            version=version,
            key=key,
            value=value,
        )

    async def delete_tag(
        self, name: str, version: str, key: str, **options: Unpack[CallOptions]
    ) -> None:
        """Delete one tag.

        Operation: delete_model_version_tag, POST .../mlflow/model-versions/delete-tag
        """
        await self._do(
            endpoints.DELETE_MODEL_VERSION_TAG, options, name=name, version=version, key=key
        )

    async def update_tags(
        self,
        name: str,
        version: str,
        *,
        set_tags: Sequence[ModelVersionTag] = (),
        delete_tags: Sequence[str] = (),
        **options: Unpack[CallOptions],
    ) -> None:
        """Set some tags and delete others, named by key, in one request.

        Operation: update_model_version_tags, POST .../mlflow/internal/model-versions/update-tags
        """
        await self._do(
            endpoints.UPDATE_MODEL_VERSION_TAGS,
            options,
            name=name,
            version=version,
            set_tags=set_tags,
            delete_tags=keys(delete_tags),
        )
