"""The public surface as a type checker sees it: read by ``mypy --strict``, never run.

``assert_type`` fails on an ``Any`` as well as on another type.  A line with ``type: ignore`` is a
mistake that the checker must find: strict mode complains of an ignore that ignores nothing.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, assert_type

import numpy as np

import adp_async
from adp_async import (
    AdpError,
    ApiKey,
    CustomSigner,
    Endpoint,
    EndStatus,
    Receipt,
    RetryPolicy,
    Scope,
    ServiceError,
    Session,
    Stats,
    Throttled,
    blocking,
)
from adp_async.collector import Handle, Shared
from adp_async.entities import (
    ArtifactPage,
    Dataset,
    DatasetInput,
    DeploymentActivity,
    DeploymentActivitySummary,
    DeploymentContract,
    DeploymentLogDetail,
    DeploymentLogPage,
    DeploymentLogSummary,
    DeploymentTarget,
    Experiment,
    ExperimentTag,
    FileInfo,
    InferenceInvocationDetails,
    InferenceInvocationPage,
    InferenceInvocationSummary,
    InferenceInvocationTotals,
    InputTag,
    LoggedModel,
    LoggedModelOrder,
    Metric,
    MetricPage,
    ModelDeployment,
    ModelDeploymentSummary,
    ModelVersion,
    ModelVersionTag,
    Param,
    PermissionAssignees,
    PermissionChange,
    RegisteredModel,
    RegisteredModelPermission,
    RegisteredModelSummary,
    RegisteredModelTag,
    Run,
    RunInfo,
    RunPage,
    RunTag,
)
from adp_async.entities._keyed import Keyed

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Mapping

NOW = datetime.now(UTC)


async def sessions() -> None:
    Session("ocid1.aidataplatform", "workspace", endpoint="https://host", auth=ApiKey())
    Session(auth=ApiKey("~/.oci/config", "PROFILE", passphrase="secret"), linger=0.5)
    Session(retry=RetryPolicy(max_backoff=5.0), spool=False, overflow="drop")
    Session(linger="soon")  # type: ignore[arg-type]
    Session(lingr=1.0)  # type: ignore[call-arg]
    async with Session() as session:
        assert_type(session, Session)
    assert_type(await session.open(), Session)
    await session.close()


async def logging_of_runs(session: Session) -> None:
    async with session.start_run(
        experiment="digits", run_name="sgd", params={"lr": 0.1}, tags={"team": "vision"}
    ) as run:
        assert_type(run, adp_async.Run)
        assert_type(run.log_metric("loss", 0.1, step=7), Receipt)
        run.log_metrics({"loss": 0.1, "accuracy": 0.9}, step=7)
        run.log_param("lr", 0.1)
        run.set_tag("team", "vision")
        run.log_metric(7, 0.1)  # type: ignore[arg-type]
        await run.flush()
        await run.drain()
        assert_type(run.stats(), Stats)
    started = await session.start_run("digits")
    assert_type(started.run_id, str)
    await started.finish(status="KILLED")
    await started.finish(status="DONE")  # type: ignore[arg-type]
    await started.finish("RUNNING")  # type: ignore[arg-type]
    assert_type(session.attach_run("7"), adp_async.Run)
    assert_type(session.logger.stats(), Stats)


def without_an_event_loop() -> None:
    with blocking.start_run(experiment="digits") as run:
        receipt = run.log_metric("loss", 0.1)
        receipt.wait(timeout=3.0)
        run.flush(timeout=3.0)
        run.finish("KILLED")
        run.finish("RUNNING")  # type: ignore[arg-type]
    with blocking.Session() as session:
        session.start_run().finish("SCHEDULED")  # type: ignore[arg-type]


async def runs_of_runs(session: Session, blocks: blocking.Session) -> None:
    async with session.start_run(description="all trials", source=False) as study:
        trial = await session.start_run(parent=study, strict=False)
        await session.start_run(parent=trial.run_id)
        await session.start_run(parent=7)  # type: ignore[arg-type]
    async with session.attach_run("7", resume=True) as resumed:
        assert_type(resumed, adp_async.Run)
    assert_type(session.attach_run("7", resume=False, strict=False), adp_async.Run)
    assert_type(await study.try_flush(), AdpError | None)
    assert_type(blocks.attach_run("7"), blocking.Run)
    assert_type(blocks.attach_run("7", resume=True), blocking.StartedRun)
    assert_type(blocking.attach_run("7", strict=False), blocking.AttachedRun)
    assert_type(blocking.attach_run("7", resume=True), blocking.StartedRun)
    assert_type(blocks.start_run(parent=trial).try_flush(3.0), AdpError | None)
    assert_type(blocks.logger.try_flush(timeout=3.0), AdpError | None)
    assert_type(blocking.shared_session(linger=0.5), blocking.Session)
    blocking.shared_session(lingr=0.5)  # type: ignore[call-arg]


def hooks(session: blocking.Session, run: blocking.Run) -> None:
    def ends(status: EndStatus | None) -> None:
        run.finish(status or "KILLED")

    def odd(status: int) -> None: ...

    forget = session.on_close(ends)
    forget()
    session.on_close(odd)  # type: ignore[arg-type]
    assert_type(adp_async.flatten({"opt": {"lr": 0.1}}, sep="."), dict[str, object])


def operations_without_an_event_loop(session: blocking.Session) -> None:
    assert_type(session.runs.get("7"), Run)
    assert_type(session.runs.create(run_name="n", tags=[RunTag("k", "v")]), Run)
    assert_type(session.runs.update("7", status="FINISHED", timeout=3.0), RunInfo)
    session.runs.update("7", status="DONE")  # type: ignore[arg-type]
    session.runs.get(7)  # type: ignore[arg-type]
    session.runs.restore("7", retries=3)  # type: ignore[call-arg]
    for found in session.runs.search(experiment_ids=["1"], run_view_type="ALL"):
        assert_type(found, Run)
    for page in session.runs.search().pages():
        assert_type(page, RunPage)
    session.runs.search(run_view_type="SOME")  # type: ignore[arg-type]
    for point in session.runs.metric_history("7", "loss"):
        assert_type(point, Metric)
    assert_type(session.experiments.create("n"), str)
    assert_type(session.registered_models.get("n"), RegisteredModel)
    assert_type(session.model_versions.transition_stage("n", "1", "P", True), ModelVersion)
    for logged in session.logged_models.search():
        assert_type(logged, LoggedModel)
    assert_type(session.deployments.get("d"), ModelDeployment)
    for record in session.deployments.search_logs("d", NOW, NOW).pages():
        assert_type(record, DeploymentLogPage)
    tomorrow = Endpoint("POST", "mlflow/tomorrow/{key}", Scope.PLATFORM)
    assert_type(session.call(tomorrow, path={"key": "a/b"}, body={"x": [1]}), object)
    assert_type(session.call(tomorrow, query={"x": True}, returning=Run, timeout=3.0), Run)
    assert_type(session.call(session.session.runs.get("7"), 3.0), Run)
    session.call(7)  # type: ignore[call-overload]
    assert_type(session.fetch(tomorrow).status, int)
    assert_type(session.logger.log_metric("7", "loss", 0.5), Receipt)
    session.logger.flush("7", timeout=3.0)
    assert_type(session.logger.stats(), Stats)
    assert_type(session.attach_run("7").discard(), int)


class Tensor:
    """As much of a ``torch.Tensor`` as its type hints say."""

    def item(self) -> int | float | bool:
        raise NotImplementedError


class Series:
    """As much of a ``pandas.Series`` as its type hints say."""

    @property
    def index(self) -> Iterable[Hashable]:
        raise NotImplementedError

    def items(self) -> Iterator[tuple[Hashable, Any]]:
        raise NotImplementedError


def values(run: adp_async.Run, blocking_run: blocking.Run, session: Session) -> None:
    one: np.floating[Any] = np.float32(0.5)
    array = np.array([0.5])
    run.log_metric("loss", one, step=np.int64(7), timestamp=np.int64(1))
    run.log_metric("loss", np.float32(0.5), step=np.float64(7))
    run.log_metric("loss", np.float64(0.5), step=None)
    run.log_metric("loss", np.int64(3), step=7.0)
    run.log_metric("loss", Decimal("0.5"), step=Decimal(7))
    run.log_metric("loss", Fraction(1, 2), step=Fraction(7))
    run.log_metric("loss", True, step=True)
    run.log_metric("loss", "0.5")
    run.log_metric("loss", array, step=array)
    run.log_metric("loss", Tensor(), step=Tensor())
    run.log_metric("loss", None)  # type: ignore[arg-type]
    run.log_metric("loss", 1j)  # type: ignore[arg-type]
    run.log_metric("loss", [0.5])  # type: ignore[arg-type]
    run.log_metric("loss", 0.5, step="7")  # type: ignore[arg-type]
    run.log_metric(b"loss", 0.5)  # type: ignore[arg-type]
    blocking_run.log_metric("loss", one, step=None)
    session.logger.log_metric("7", "loss", one, step=7.0)
    session.logger.log_metric("7", "loss", None)  # type: ignore[arg-type]


def mappings(run: adp_async.Run, blocking_run: blocking.Run, session: Session) -> None:
    whatever: Mapping[str, float] = {"loss": 0.5}
    run.log_metrics(whatever, 7.0)
    run.log_metrics({"loss": np.float32(0.5), "f1": 1, "lr": Decimal("0.1")}, step=None)
    run.log_metrics(MappingProxyType(whatever))
    run.log_metrics(Series(), step=np.int64(7))
    run.log_params(Series())
    run.set_tags(Series())
    run.log_params(MappingProxyType({"lr": object()}))
    blocking_run.log_metrics(Series())
    session.logger.log_metrics("7", Series(), step=7.0)
    session.logger.log_params("7", Series())
    session.logger.set_tags("7", {"k": None})
    session.start_run(params=Series(), tags=MappingProxyType({"team": "vision"}))
    blocking.start_run(params=Series(), tags=MappingProxyType({"team": "vision"}))
    run.log_metrics("loss", 0.5)  # type: ignore[arg-type]
    run.log_metrics([("loss", 0.5)])  # type: ignore[arg-type]
    run.log_metrics(None)  # type: ignore[arg-type]
    run.log_metrics({"loss": None})  # type: ignore[dict-item]
    run.log_metrics({7: 0.5})  # type: ignore[dict-item]
    run.log_params(["lr"])  # type: ignore[arg-type]
    run.set_tags({b"team": "vision"})  # type: ignore[dict-item]
    session.logger.log_metrics({"loss": 0.5}, 7)  # type: ignore[arg-type]
    session.start_run(params=["lr"])  # type: ignore[arg-type]
    blocking.start_run(tags="team")  # type: ignore[arg-type]


async def runs(session: Session) -> None:
    run = await session.runs.create(
        experiment_id="1", run_name="n", start_time=7, tags=[RunTag("k", "v")]
    )
    assert_type(run, Run)
    assert_type(run.info.run_id, str)
    assert_type(run.data.metrics, Keyed[Metric, float])
    assert_type(run.data.metrics["loss"], float)
    assert_type(run.data.metrics[0], Metric)
    assert_type(run.data.params.get("lr"), str | None)
    assert_type(list(run.data.tags), list[RunTag])
    assert_type(run.info.start_datetime, datetime | None)
    assert_type(await session.runs.search(limit=7).to_list(), list[Run])
    assert_type(await session.runs.search(experiment_names=["digits"]).first(), Run | None)
    assert_type(await session.runs.get("7"), Run)
    assert_type(await session.runs.update("7", status="FINISHED", end_time=7), RunInfo)
    await session.runs.update("7", status="DONE")  # type: ignore[arg-type]
    await session.runs.delete("7", is_permanent=True)
    await session.runs.restore("7")
    await session.runs.log_batch(
        "7", metrics=[Metric("loss", 0.1, 7, step=1)], params=(Param("lr", "1"),), tags=[]
    )
    await session.runs.log_batch("7", params=[RunTag("k", "v")])  # type: ignore[list-item]
    await session.runs.log_metric("7", "loss", 0.1, 7, step=1)
    await session.runs.log_param("7", "lr", "0.1")
    await session.runs.log_model("7", "{}")
    data = Dataset("digits", "digest", "local", "file", schema="{}")
    await session.runs.log_inputs(
        "7", dataset_inputs=[DatasetInput(data, tags=[InputTag("k", "v")])]
    )
    await session.runs.set_tag("7", "k", "v")
    await session.runs.delete_tag("7", "k")
    await session.runs.update_tags("7", set_tags=[RunTag("k", "v")], delete_tags=["old"])
    async for found in session.runs.search(
        experiment_ids=["1"], filter_string="metrics.loss < 1", run_view_type="ALL", max_results=5
    ):
        assert_type(found, Run)
    async for page in session.runs.search().pages():
        assert_type(page, RunPage)
        assert_type(page.items, tuple[Run, ...])
        assert_type(page.next_page_token, str | None)
    session.runs.search(run_view_type="SOME")  # type: ignore[arg-type]
    async for point in session.runs.metric_history("7", "loss"):
        assert_type(point, Metric)
        assert_type(point.value, float)
    async for metric_page in session.runs.metric_history("7", "loss").pages():
        assert_type(metric_page, MetricPage)
    async for file in session.runs.list_artifacts("7", path="model"):
        assert_type(file, FileInfo)
    async for artifacts in session.runs.list_artifacts("7").pages():
        assert_type(artifacts, ArtifactPage)
        assert_type(artifacts.root_uri, str | None)


async def experiments(session: Session) -> None:
    assert_type(await session.experiments.create("n", tags=[ExperimentTag("k", "v")]), str)
    assert_type(await session.experiments.get("1"), Experiment)
    assert_type(await session.experiments.get_by_name("n"), Experiment)
    await session.experiments.update("1", new_name="m")
    await session.experiments.delete("1", is_permanent=False)
    await session.experiments.restore("1")
    await session.experiments.set_tag("1", "k", "v")
    await session.experiments.delete_tag("1", "k")
    await session.experiments.update_tags("1", set_tags=[ExperimentTag("k", "v")])
    async for found in session.experiments.search(view_type="DELETED_ONLY", order_by=["name"]):
        assert_type(found, Experiment)
        assert_type(found.tags, tuple[ExperimentTag, ...])


async def registry(session: Session) -> None:
    models = session.registered_models
    assert_type(await models.create("n", tags=[RegisteredModelTag("k", "v")]), RegisteredModel)
    assert_type(await models.get("n"), RegisteredModel)
    assert_type(await models.update("n", description="d", deployment_job_id="j"), RegisteredModel)
    assert_type(await models.rename("n", new_name="m"), RegisteredModel)
    await models.delete("n")
    await models.set_tag("n", "k", "v")
    await models.delete_tag("n", "k")
    await models.update_tags("n", delete_tags=["k"])
    async for model in models.search(is_deployment_summary_enabled=True):
        assert_type(model, RegisteredModel)
        assert_type(model.latest_versions, tuple[ModelVersion, ...])
    async for grant in models.permissions("a.b.c", sort_by="displayName", sort_order="ASC"):
        assert_type(grant, RegisteredModelPermission)
    change = PermissionChange(PermissionAssignees("USER", ["ada"]), ["READ", "MANAGE"])
    await models.manage_permission("a.b.c", assign=change, revoke=change)
    PermissionAssignees("ROBOT", ["ada"])  # type: ignore[arg-type]
    assert_type(await models.summary("catalog", "schema"), RegisteredModelSummary)

    versions = session.model_versions
    tags = [ModelVersionTag("k", "v")]
    assert_type(await versions.create("n", "s3://b", run_id="7", tags=tags), ModelVersion)
    assert_type(await versions.create_in_workspace("n", "s3://b"), ModelVersion)
    assert_type(await versions.get("n", "1"), ModelVersion)
    assert_type(await versions.update("n", "1", description="d"), ModelVersion)
    assert_type(await versions.transition_stage("n", "1", "Production", True), ModelVersion)
    await versions.delete("n", "1")
    await versions.set_tag("n", "1", "k", "v")
    await versions.delete_tag("n", "1", "k")
    await versions.update_tags("n", "1", set_tags=tags)
    async for version in versions.search(filter_string="name = 'n'"):
        assert_type(version, ModelVersion)

    order = LoggedModelOrder("name", ascending=True)
    async for logged in session.logged_models.search(order_by=[order]):
        assert_type(logged, LoggedModel)
        assert_type(logged.data, object)


async def deployments(session: Session) -> None:
    serving = session.deployments
    targets = [DeploymentTarget("1", 100)]
    assert_type(
        await serving.create("n", "model", targets, "workspace", "compute", "AIDP"),
        ModelDeployment,
    )
    await serving.create("n", "model", targets, "w", "c", "PASSWORD")  # type: ignore[arg-type]
    assert_type(await serving.get("d"), ModelDeployment)
    assert_type(await serving.update("d", "n", "workspace", "compute"), ModelDeployment)
    await serving.activate("d", message="go")
    await serving.deactivate("d")
    await serving.roll_back("d", targets)
    await serving.roll_forward("d", targets)
    await serving.delete("d")
    await serving.update_tags("d", delete_tags=["k"])
    assert_type(await serving.contract("d", model_version=1), DeploymentContract)
    assert_type(await serving.get_activity("a"), DeploymentActivity)
    assert_type(await serving.get_log("d", "l"), DeploymentLogDetail)
    inference = await serving.get_inference("d", "i")
    assert_type(inference, InferenceInvocationDetails)
    assert_type(inference.request_timestamp, datetime)
    assert_type(inference.request_payload, object)
    assert_type(await serving.inference_summary("d", time_start=NOW), InferenceInvocationTotals)
    await serving.export_inferences("d", "/volume", time_end=NOW)
    async for deployment in serving.search("model", status="ACTIVE"):
        assert_type(deployment, ModelDeploymentSummary)
    async for activity in serving.search_activities("d", status="SUCCESS"):
        assert_type(activity, DeploymentActivitySummary)
    async for record in serving.search_logs("d", NOW, NOW, levels=["ERROR"]):
        assert_type(record, DeploymentLogSummary)
    async for log_page in serving.search_logs("d", NOW, NOW).pages():
        assert_type(log_page, DeploymentLogPage)
    async for answered in serving.search_inferences("d", status="FAILED"):
        assert_type(answered, InferenceInvocationSummary)
    async for inferences in serving.search_inferences("d").pages():
        assert_type(inferences, InferenceInvocationPage)


async def operations_of_tomorrow(session: Session) -> None:
    tomorrow = Endpoint("POST", "mlflow/tomorrow/{key}", Scope.PLATFORM, takes_retry_token=True)
    assert_type(await session.call(tomorrow, path={"key": "a/b"}, body={"x": [1]}), object)
    assert_type(await session.call(tomorrow, query={"x": True}, returning=Run), Run)


async def what_every_call_takes(session: Session) -> None:
    etags: list[str | None] = []
    await session.runs.restore(
        "7",
        retry_token="token",
        request_id="id",
        principal="ada",
        timeout=3.0,
        on_reply=lambda reply: etags.append(reply.etag),
    )
    await session.runs.restore("7", retries=3)  # type: ignore[call-arg]


def errors(error: ServiceError, throttled: Throttled) -> None:
    assert_type((error.status, error.code, error.request_id), tuple[int, str, str])
    assert_type((error.retriable, error.maybe_applied), tuple[bool, bool])
    assert_type(throttled.retry_after, float | None)


def facts() -> None:
    metric = Metric("loss", 0.1, 7)
    metric.value = 0.2  # type: ignore[misc]
    Metric("loss")  # type: ignore[call-arg]
    CustomSigner(object())  # type: ignore[arg-type]


def many_processes(run: blocking.Run, session: blocking.Session, record: Receipt) -> None:
    """One run from many processes: the owner's side, and a worker's."""
    shared = run.shared("0.0.0.0", advertise="driver:8443")
    assert_type(shared, Shared)
    assert_type(shared.stats().taken, int)
    with shared as handle, session.shared() as whole:
        assert_type(handle, Handle)
        assert_type(whole.session().start_run(), blocking.StartedRun)
        with handle.attach(prefix="a/", rank="auto", texts="all") as worker:
            assert_type(worker.log_metric("loss", 0.5), Receipt)
            worker.flush(5.0, delivered=True)
            assert_type(worker.stats(), Stats)
        handle.attach(rank="first")  # type: ignore[arg-type]
        handle.attach(commit="later")  # type: ignore[arg-type]


async def many_processes_async(run: adp_async.Run) -> None:
    """The same on an event loop."""
    async with run.shared() as handle, handle.attach(attempt="a", commit="task") as worker:
        assert_type(worker.log_metric("loss", 0.5), Receipt)
        await worker.flush(delivered=True)
