"""Runs: their status, what is logged into them, and their artifacts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from adp_async._sansio import endpoints
from adp_async._sansio.arguments import checked_texts
from adp_async.api._family import CallOptions, Family, Listing, keys
from adp_async.entities.experiments import ExperimentReply
from adp_async.entities.runs import (
    ArtifactPage,
    FileInfo,
    Metric,
    MetricPage,
    Run,
    RunInfo,
    RunInfoReply,
    RunPage,
    RunReply,
)
from adp_async.errors import UnreadableReply

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adp_async.entities.experiments import ViewType
    from adp_async.entities.runs import DatasetInput, Param, RunStatus, RunTag


class Runs(Family):
    """The operations on runs, each one signed request that goes out at once.

    For a training loop there is `adp_async.Run`, which logs in the background.
    """

    __slots__ = ()

    async def create(
        self,
        *,
        experiment_id: str | None = None,
        run_name: str | None = None,
        start_time: int | None = None,
        tags: Sequence[RunTag] = (),
        **options: Unpack[CallOptions],
    ) -> Run:
        """Create a run; *start_time* in Unix milliseconds.

        Operation: create_experiment_run, POST .../mlflow/runs/create
        """
        reply = await self._call(
            endpoints.CREATE_RUN,
            RunReply,
            options,
            experiment_id=experiment_id,
            run_name=run_name,
            start_time=start_time,
            tags=tags,
        )
        if not reply.run.info.run_id:
            operation = endpoints.CREATE_RUN.operation
            message = f"{operation}: missing @ RunReply.run.info.run_id"
            raise UnreadableReply(message, status=200, operation=operation)
        return reply.run

    async def get(self, run_id: str, **options: Unpack[CallOptions]) -> Run:
        """A run with its params, tags, inputs and the last value of each metric.

        Operation: get_experiment_run_by_id, GET .../mlflow/runs/get
        """
        return (await self._call(endpoints.GET_RUN, RunReply, options, run_id=run_id)).run

    async def update(
        self,
        run_id: str,
        *,
        status: RunStatus | None = None,
        end_time: int | None = None,
        run_name: str | None = None,
        **options: Unpack[CallOptions],
    ) -> RunInfo:
        """Change a run's status, end (Unix milliseconds) or name; the rest stays as it is.

        Operation: update_experiment_run, POST .../mlflow/runs/update
        """
        reply = await self._call(
            endpoints.UPDATE_RUN,
            RunInfoReply,
            options,
            run_id=run_id,
            status=status,
            end_time=end_time,
            run_name=run_name,
        )
        return reply.run_info

    async def delete(
        self,
        run_id: str,
        *,
        is_permanent: bool | None = None,
        **options: Unpack[CallOptions],
    ) -> None:
        """Delete a run; unless *is_permanent*, `restore` brings it back.

        Operation: delete_experiment_run, POST .../mlflow/runs/delete
        """
        await self._do(endpoints.DELETE_RUN, options, run_id=run_id, is_permanent=is_permanent)

    async def restore(self, run_id: str, **options: Unpack[CallOptions]) -> None:
        """Bring a deleted run back.

        Operation: restore_experiment_run, POST .../mlflow/runs/restore
        """
        await self._do(endpoints.RESTORE_RUN, options, run_id=run_id)

    def search(
        self,
        *,
        experiment_ids: Sequence[str] = (),
        experiment_names: Sequence[str] = (),
        filter_string: str | None = None,
        run_view_type: ViewType | None = None,
        order_by: Sequence[str] = (),
        max_results: int | None = None,
        limit: int | None = None,
        page_token: str | None = None,
        **options: Unpack[CallOptions],
    ) -> Listing[Run, RunPage]:
        """All runs that match: ``async for run in session.runs.search(...)``.

        They are those of the experiments with *experiment_ids*, and with *experiment_names*, whose
        ids are looked up before the first page (`NotFound` for a name that none has).
        *filter_string* as in MLflow: ``metrics.loss < 0.1 and tags.team = 'vision'``.
        At most *limit* of them; *max_results* is the size of a page.

        Operation: list_experiment_runs, POST .../mlflow/runs/search
        """
        names = checked_texts(experiment_names, "search: experiment_names")

        async def named_ids() -> dict[str, object]:
            found = [await self._experiment_id(name) for name in names]
            return {"experiment_ids": [*experiment_ids, *found]}

        return self._listing(
            endpoints.SEARCH_RUNS,
            RunPage,
            options,
            page_token=page_token,
            most=limit,
            late=named_ids if names else None,
            experiment_ids=experiment_ids,
            filter=filter_string,
            run_view_type=run_view_type,
            order_by=order_by,
            max_results=max_results,
        )

    async def _experiment_id(self, name: str) -> str:
        endpoint = endpoints.GET_EXPERIMENT_BY_NAME
        reply = await self._call(endpoint, ExperimentReply, {}, experiment_name=name)
        return reply.experiment.experiment_id

    async def log_batch(
        self,
        run_id: str,
        *,
        metrics: Sequence[Metric] = (),
        params: Sequence[Param] = (),
        tags: Sequence[RunTag] = (),
        **options: Unpack[CallOptions],
    ) -> None:
        """Log metrics, params and tags in one request.

        The service takes at most 1000 metrics, 100 params and 100 tags, 1000 of all kinds
        together, in 1,000,000 bytes.  One bad record fails the whole batch (`BadRequest`).

        Operation: log_experiment_run_batch, POST .../mlflow/runs/log-batch
        """
        await self._do(
            endpoints.LOG_BATCH,
            options,
            run_id=run_id,
            metrics=metrics,
            params=params,
            tags=tags,
        )

    async def log_metric(
        self,
        run_id: str,
        key: str,
        value: float,
        timestamp: int,
        *,
        step: int | None = None,
        **options: Unpack[CallOptions],
    ) -> None:
        """Log one value of one metric; *timestamp* in Unix milliseconds.

        Operation: log_experiment_run_metric, POST .../mlflow/runs/log-metric
        """
        await self._do(
            endpoints.LOG_METRIC,
            options,
            run_id=run_id,
            key=key,
            value=value,
            timestamp=timestamp,
            step=step,
        )

    async def log_param(
        self, run_id: str, key: str, value: str, **options: Unpack[CallOptions]
    ) -> None:
        """Log one param; the same value again is accepted, another one is a `BadRequest`.

        Operation: log_experiment_run_param, POST .../mlflow/runs/log-parameter
        """
        await self._do(endpoints.LOG_PARAM, options, run_id=run_id, key=key, value=value)

    async def log_model(self, run_id: str, model_json: str, **options: Unpack[CallOptions]) -> None:
        """Record that the run wrote a model; *model_json* is the content of its ``MLmodel`` file.

        Operation: log_experiment_run_model, POST .../mlflow/runs/log-model
        """
        await self._do(endpoints.LOG_MODEL, options, run_id=run_id, model_json=model_json)

    async def log_inputs(
        self,
        run_id: str,
        *,
        dataset_inputs: Sequence[DatasetInput] = (),
        **options: Unpack[CallOptions],
    ) -> None:
        """Record which datasets the run reads.

        Operation: log_experiment_run_inputs, POST .../mlflow/runs/log-inputs
        """
        await self._do(endpoints.LOG_INPUTS, options, run_id=run_id, dataset_inputs=dataset_inputs)

    async def set_tag(
        self, run_id: str, key: str, value: str, **options: Unpack[CallOptions]
    ) -> None:
        """Set one tag; an earlier value is overwritten.

        Operation: set_experiment_run_tag, POST .../mlflow/runs/set-tag
        """
        await self._do(endpoints.SET_RUN_TAG, options, run_id=run_id, key=key, value=value)

    async def delete_tag(self, run_id: str, key: str, **options: Unpack[CallOptions]) -> None:
        """Delete one tag; `NotFound` if the run doesn't have it.

        Operation: delete_experiment_run_tag, POST .../mlflow/runs/delete-tag
        """
        await self._do(endpoints.DELETE_RUN_TAG, options, run_id=run_id, key=key)

    async def update_tags(
        self,
        run_id: str,
        *,
        set_tags: Sequence[RunTag] = (),
        delete_tags: Sequence[str] = (),
        **options: Unpack[CallOptions],
    ) -> None:
        """Set some tags and delete others, named by key, in one request.

        Operation: update_experiment_run_tags, POST .../mlflow/internal/runs/update-tags
        """
        await self._do(
            endpoints.UPDATE_RUN_TAGS,
            options,
            run_id=run_id,
            set_tags=set_tags,
            delete_tags=keys(delete_tags),
        )

    def metric_history(
        self,
        run_id: str,
        metric_key: str,
        *,
        max_results: int | None = None,
        limit: int | None = None,
        page_token: str | None = None,
        **options: Unpack[CallOptions],
    ) -> Listing[Metric, MetricPage]:
        """Every value ever logged of one metric: ``async for point in ...``.

        At most *limit* of them; *max_results* is the size of a page.

        Operation: get_experiment_run_metric_history, GET .../mlflow/metrics/get-history
        """
        return self._listing(
            endpoints.GET_METRIC_HISTORY,
            MetricPage,
            options,
            page_token=page_token,
            most=limit,
            run_id=run_id,
            metric_key=metric_key,
            max_results=max_results,
        )

    def list_artifacts(
        self,
        run_id: str,
        *,
        path: str | None = None,
        limit: int | None = None,
        page_token: str | None = None,
        **options: Unpack[CallOptions],
    ) -> Listing[FileInfo, ArtifactPage]:
        """At most *limit* files and directories directly below *path*, or the root.

        Operation: list_artifacts, GET .../mlflow/artifacts/list
        """
        return self._listing(
            endpoints.LIST_ARTIFACTS,
            ArtifactPage,
            options,
            page_token=page_token,
            most=limit,
            run_id=run_id,
            path=path,
        )
