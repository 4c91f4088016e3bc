"""Experiments: named groups of runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from adp_async._sansio import endpoints
from adp_async.api._family import CallOptions, Family, Listing, keys
from adp_async.entities.experiments import (
    Experiment,
    ExperimentIdReply,
    ExperimentPage,
    ExperimentReply,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adp_async.entities.experiments import ExperimentTag, ViewType


class Experiments(Family):
    """The operations on experiments."""

    __slots__ = ()

    async def create(
        self,
        name: str,
        *,
        artifact_location: str | None = None,
        tags: Sequence[ExperimentTag] = (),
        **options: Unpack[CallOptions],
    ) -> str:
        """Create an experiment and return its id; a name that exists already is an error.

        Operation: create_experiment, POST .../mlflow/experiments/create
        """
        reply = await self._call(
            endpoints.CREATE_EXPERIMENT,
            ExperimentIdReply,
            options,
            name=name,
            artifact_location=artifact_location,
            tags=tags,
        )
        return reply.experiment_id

    async def get(self, experiment_id: str, **options: Unpack[CallOptions]) -> Experiment:
        """The experiment with this id, even if it is deleted.

        Operation: get_experiment_by_id, GET .../mlflow/experiments/get
        """
        reply = await self._call(
            endpoints.GET_EXPERIMENT, ExperimentReply, options, experiment_id=experiment_id
        )
        return reply.experiment

    async def get_by_name(self, experiment_name: str, **options: Unpack[CallOptions]) -> Experiment:
        """The experiment with this name, or `NotFound`.

        Operation: get_experiment_by_name, GET .../mlflow/experiments/get-by-name
        """
        reply = await self._call(
            endpoints.GET_EXPERIMENT_BY_NAME,
            ExperimentReply,
            options,
            experiment_name=experiment_name,
        )
        return reply.experiment

    async def update(
        self,
        experiment_id: str,
        *,
        new_name: str | None = None,
        **options: Unpack[CallOptions],
    ) -> None:
        """Rename an experiment.

        Operation: update_experiment, POST .../mlflow/experiments/update
        """
        await self._do(
            endpoints.UPDATE_EXPERIMENT, options, experiment_id=experiment_id, new_name=new_name
        )

    async def delete(
        self,
        experiment_id: str,
        *,
        is_permanent: bool | None = None,
        **options: Unpack[CallOptions],
    ) -> None:
        """Delete an experiment and its runs; unless *is_permanent*, `restore` brings them back.

        Operation: delete_experiment, POST .../mlflow/experiments/delete
        """
        await self._do(
            endpoints.DELETE_EXPERIMENT,
            options,
            experiment_id=experiment_id,
            is_permanent=is_permanent,
        )

    async def restore(self, experiment_id: str, **options: Unpack[CallOptions]) -> None:
        """Bring a deleted experiment back.

        Operation: restore_experiment, POST .../mlflow/experiments/restore
        """
        await self._do(endpoints.RESTORE_EXPERIMENT, options, experiment_id=experiment_id)

    def search(
        self,
        *,
        filter_string: str | None = None,
        view_type: ViewType | None = None,
        order_by: Sequence[str] = (),
        max_results: int | None = None,
        limit: int | None = None,
        page_token: str | None = None,
        **options: Unpack[CallOptions],
    ) -> Listing[Experiment, ExperimentPage]:
        """All experiments that match: ``async for experiment in ...``.

        *filter_string* as in MLflow: ``name LIKE 'digits%'``.  At most *limit* of them;
        *max_results* is the size of a page.

        Operation: list_experiments, POST .../mlflow/experiments/search
        """
        return self._listing(
            endpoints.SEARCH_EXPERIMENTS,
            ExperimentPage,
            options,
            page_token=page_token,
            most=limit,
            filter=filter_string,
            view_type=view_type,
            order_by=order_by,
            max_results=max_results,
        )

    async def set_tag(
        self, experiment_id: str, key: str, value: str, **options: Unpack[CallOptions]
    ) -> None:
        """Set one tag; an earlier value is overwritten.

        Operation: set_experiment_tag, POST .../mlflow/experiments/set-experiment-tag
        """
        await self._do(
            endpoints.SET_EXPERIMENT_TAG,
            options,
            experiment_id=experiment_id,
            key=key,
            value=value,
        )

    async def delete_tag(
        self, experiment_id: str, key: str, **options: Unpack[CallOptions]
    ) -> None:
        """Delete one tag.

        Operation: delete_experiment_tag, POST .../mlflow/experiments/delete-experiment-tag
        """
        await self._do(
            endpoints.DELETE_EXPERIMENT_TAG, options, experiment_id=experiment_id, key=key
        )

    async def update_tags(
        self,
        experiment_id: str,
        *,
        set_tags: Sequence[ExperimentTag] = (),
        delete_tags: Sequence[str] = (),
        **options: Unpack[CallOptions],
    ) -> None:
        """Set some tags and delete others, named by key, in one request.

        Operation: update_experiment_tags,
        POST .../mlflow/internal/experiments/update-experiment-tags
        """
        await self._do(
            endpoints.UPDATE_EXPERIMENT_TAGS,
            options,
            experiment_id=experiment_id,
            set_tags=set_tags,
            delete_tags=keys(delete_tags),
        )
