"""The typed operations against a real MLflow behind the gateway: what works, what is refused."""

from __future__ import annotations

import json
import math
import uuid
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from api_samples import OPERATIONS

from adp_async import BadRequest, Conflict, NotFound, ServiceFault
from adp_async.api.__main__ import rows
from adp_async.entities import (
    Dataset,
    DatasetInput,
    DeploymentTarget,
    ExperimentTag,
    InputTag,
    LoggedModelOrder,
    Metric,
    ModelVersionTag,
    Param,
    RegisteredModelTag,
    RunTag,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from adp_async import Session
    from adp_async.local import LocalPlatform

pytestmark = [pytest.mark.mlflow, pytest.mark.asyncio(loop_scope="module")]

NOBODY = "0" * 32
NOWHERE = "4711474747"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def session(platform: LocalPlatform) -> AsyncIterator[Session]:
    async with platform.session() as session:
        yield session


@pytest_asyncio.fixture(loop_scope="module")
async def experiment_id(session: Session) -> str:
    return await session.experiments.create(f"it's 100% é/{uuid.uuid4()}")


@pytest_asyncio.fixture(loop_scope="module")
async def run_id(session: Session, experiment_id: str) -> str:
    return (await session.runs.create(experiment_id=experiment_id)).info.run_id


@pytest_asyncio.fixture(loop_scope="module")
async def model(session: Session) -> str:
    return (await session.registered_models.create(f"model {uuid.uuid4()}")).name


def tags_of(thing: Any) -> dict[str, str]:
    return {tag.key: tag.value for tag in thing.tags if not tag.key.startswith("mlflow.")}


async def test_an_experiment_lives(session: Session) -> None:
    """Created, found, renamed, deleted, restored."""
    experiments = session.experiments
    name = f"digits 'quoted' 100%/{uuid.uuid4()}"

    made = await experiments.create(name, tags=[ExperimentTag("team", "vision")])
    found = await experiments.get_by_name(name)
    assert (found.experiment_id, found.name, tags_of(found)) == (made, name, {"team": "vision"})

    await experiments.update(made, new_name=f"{name} ß")
    assert (await experiments.get(made)).name == f"{name} ß"

    await experiments.delete(made)
    assert (await experiments.get(made)).lifecycle_stage == "deleted"
    await experiments.restore(made)
    assert (await experiments.get(made)).lifecycle_stage == "active"


async def test_experiments_are_tagged(session: Session, experiment_id: str) -> None:
    """Set, deleted, and both in one call."""
    experiments = session.experiments

    await experiments.set_tag(experiment_id, "a", "1 + 1")
    await experiments.set_tag(experiment_id, "b", "2")
    await experiments.delete_tag(experiment_id, "b")
    assert tags_of(await experiments.get(experiment_id)) == {"a": "1 + 1"}

    await experiments.update_tags(
        experiment_id, set_tags=[ExperimentTag("c", "3")], delete_tags=["a"]
    )
    assert tags_of(await experiments.get(experiment_id)) == {"c": "3"}


async def test_experiments_are_found(session: Session) -> None:
    """By a filter with quotes, over pages, deleted ones on demand."""
    stem = f"find me {uuid.uuid4()}"
    made = [await session.experiments.create(f"{stem} {number}") for number in range(3)]
    await session.experiments.delete(made[2])
    query = {"filter_string": f"name LIKE '{stem}%'", "order_by": ["name"], "max_results": 1}

    active = [e.experiment_id async for e in session.experiments.search(**query)]
    every = session.experiments.search(view_type="ALL", **query)
    pages = [len(page.items) async for page in every.pages()]

    assert active == made[:2]
    assert sum(pages) == 3
    assert max(pages) == 1


async def test_a_run_lives(session: Session, experiment_id: str) -> None:
    """Created, updated, deleted, restored."""
    runs = session.runs
    made = await runs.create(
        experiment_id=experiment_id, run_name="sgd é", start_time=7, tags=[RunTag("t", "v")]
    )
    run_id = made.info.run_id
    assert (made.info.run_name, made.info.start_time) == ("sgd é", 7)

    info = await runs.update(run_id, status="FINISHED", end_time=9, run_name="adam")
    assert (info.status, info.end_time, info.run_name) == ("FINISHED", 9, "adam")

    await runs.delete(run_id)
    assert (await runs.get(run_id)).info.lifecycle_stage == "deleted"
    await runs.restore(run_id)
    assert (await runs.get(run_id)).info.lifecycle_stage == "active"


async def test_everything_is_logged(session: Session, run_id: str) -> None:
    """A batch, single records, inputs: the run has them as they were given."""
    runs = session.runs
    data = Dataset("digits", "digest", "local", "file://x", schema="{}")

    await runs.log_batch(
        run_id,
        metrics=[Metric("loss", 0.5, 1, 0), Metric("nan", math.nan, 1, 0)],
        params=[Param("lr", "0.1")],
        tags=[RunTag("team", "vision")],
    )
    await runs.log_metric(run_id, "loss", 0.25, 2, step=1)
    await runs.log_param(run_id, "depth", "7")
    await runs.set_tag(run_id, "owner", "ada")
    await runs.log_inputs(run_id, dataset_inputs=[DatasetInput(data, [InputTag("c", "train")])])

    run = await runs.get(run_id)
    values = {metric.key: metric.value for metric in run.data.metrics}
    assert values["loss"] == 0.25
    assert math.isnan(values["nan"])
    assert {(param.key, param.value) for param in run.data.params} == {
        ("lr", "0.1"),
        ("depth", "7"),
    }
    assert tags_of(run.data) == {"team": "vision", "owner": "ada"}
    assert [found.dataset.name for found in run.inputs.dataset_inputs] == ["digits"]


async def test_a_history_is_read_page_by_page(session: Session, run_id: str) -> None:
    """Every point once, in order, however small the pages."""
    points = [Metric("loss", 1 / (step + 1), step, step) for step in range(25)]
    await session.runs.log_batch(run_id, metrics=points)

    history = session.runs.metric_history(run_id, "loss", max_results=10)

    assert [point async for point in history] == points
    assert [len(page.items) async for page in history.pages()] == [10, 10, 5]


async def test_runs_are_tagged(session: Session, run_id: str) -> None:
    """Set, deleted, and both in one call."""
    runs = session.runs
    await runs.set_tag(run_id, "a", "")
    await runs.set_tag(run_id, "b", "2")
    await runs.delete_tag(run_id, "b")
    assert tags_of((await runs.get(run_id)).data) == {"a": ""}

    await runs.update_tags(run_id, set_tags=[RunTag("c", "3")], delete_tags=["a"])
    assert tags_of((await runs.get(run_id)).data) == {"c": "3"}


async def test_runs_are_found(session: Session, experiment_id: str) -> None:
    """By a filter, over pages."""
    made = [
        (await session.runs.create(experiment_id=experiment_id, tags=[RunTag("n", str(number))]))
        for number in range(3)
    ]
    listing = session.runs.search(
        experiment_ids=[experiment_id],
        filter_string="tags.n != '1'",
        order_by=["tags.n"],
        max_results=1,
    )

    found = [run.info.run_id async for run in listing]

    assert found == [made[0].info.run_id, made[2].info.run_id]


async def test_models_and_artifacts_of_a_run(
    session: Session, experiment_id: str, run_id: str
) -> None:
    """A model's description, logged models, and a directory with nothing in it."""
    description = {
        "artifact_path": "model",
        "run_id": run_id,
        "flavors": {},
        "utc_time_created": "",
    }

    await session.runs.log_model(run_id, json.dumps(description))

    assert [file async for file in session.runs.list_artifacts(run_id)] == []
    assert [
        model
        async for model in session.logged_models.search(
            experiment_ids=[experiment_id], order_by=[LoggedModelOrder("creation_timestamp_ms")]
        )
    ] == []


async def test_a_registered_model_lives(session: Session) -> None:
    """Created, described, renamed, tagged, found, deleted."""
    models = session.registered_models
    name = f"it's 100% {uuid.uuid4()}"

    made = await models.create(name, description="d", tags=[RegisteredModelTag("a", "1")])
    assert (made.name, made.description, tags_of(made)) == (name, "d", {"a": "1"})
    assert (await models.update(name, description="v2")).description == "v2"

    await models.set_tag(name, "b", "2")
    await models.delete_tag(name, "a")
    await models.update_tags(name, set_tags=[RegisteredModelTag("c", "3")], delete_tags=["b"])
    assert tags_of(await models.get(name)) == {"c": "3"}

    assert (await models.rename(name, new_name=f"{name} +")).name == f"{name} +"
    filter_string = f'name = "{name} +"'
    assert [m.name async for m in models.search(filter_string=filter_string)] == [f"{name} +"]
    await models.delete(f"{name} +")
    with pytest.raises(NotFound):
        await models.get(f"{name} +")


async def test_a_model_version_lives(session: Session, model: str, run_id: str) -> None:
    """Created in both scopes, described, moved, tagged, found, deleted."""
    versions = session.model_versions
    source = f"runs:/{run_id}/model"

    first = await versions.create(
        model, source, run_id=run_id, description="d", tags=[ModelVersionTag("a", "1")]
    )
    second = await versions.create_in_workspace(model, source, run_id=run_id)
    assert [first.version, second.version] == ["1", "2"]
    assert (first.status, tags_of(first)) == ("READY", {"a": "1"})

    assert (await versions.update(model, "1", description="v2")).description == "v2"
    moved = await versions.transition_stage(model, "1", "Production", False)
    assert moved.current_stage == "Production"

    await versions.set_tag(model, "1", "b", "2")
    await versions.delete_tag(model, "1", "a")
    await versions.update_tags(model, "1", set_tags=[ModelVersionTag("c", "3")], delete_tags=["b"])
    assert tags_of(await versions.get(model, "1")) == {"c": "3"}

    await versions.delete(model, "2")
    found = versions.search(filter_string=f"name = '{model}'", max_results=1)
    assert [version.version async for version in found] == ["1"]
    latest = (await session.registered_models.get(model)).latest_versions
    assert [version.version for version in latest] == ["1"]


#: What each operation refuses, and with which error.
REFUSED: list[tuple[str, dict[str, Any], type[Exception]]] = [
    ("experiments.create", {"name": ""}, BadRequest),
    ("experiments.get", {"experiment_id": NOWHERE}, NotFound),
    ("experiments.get_by_name", {"experiment_name": "not there"}, NotFound),
    ("experiments.update", {"experiment_id": NOWHERE, "new_name": "n"}, NotFound),
    ("experiments.delete", {"experiment_id": NOWHERE}, NotFound),
    ("experiments.restore", {"experiment_id": NOWHERE}, NotFound),
    ("experiments.search", {"filter_string": "name ~ 1"}, BadRequest),
    ("experiments.set_tag", {"experiment_id": NOWHERE, "key": "k", "value": "v"}, NotFound),
    ("experiments.delete_tag", {"experiment_id": NOWHERE, "key": "k"}, NotFound),
    ("experiments.update_tags", {"experiment_id": NOWHERE, "delete_tags": ["k"]}, NotFound),
    ("runs.create", {"experiment_id": NOWHERE}, NotFound),
    ("runs.get", {"run_id": NOBODY}, NotFound),
    ("runs.update", {"run_id": NOBODY, "status": "FAILED"}, NotFound),
    ("runs.delete", {"run_id": NOBODY}, NotFound),
    ("runs.restore", {"run_id": NOBODY}, NotFound),
    ("runs.search", {"experiment_ids": ["0"], "filter_string": "loss <"}, BadRequest),
    ("runs.log_batch", {"run_id": NOBODY, "params": [Param("k", "v")]}, NotFound),
    ("runs.log_metric", {"run_id": NOBODY, "key": "k", "value": 1.0, "timestamp": 1}, NotFound),
    ("runs.log_param", {"run_id": NOBODY, "key": "k", "value": "v"}, NotFound),
    ("runs.log_model", {"run_id": NOBODY, "model_json": "no JSON"}, BadRequest),
    ("runs.log_inputs", {"run_id": NOBODY}, NotFound),
    ("runs.set_tag", {"run_id": NOBODY, "key": "k", "value": "v"}, NotFound),
    ("runs.delete_tag", {"run_id": NOBODY, "key": "k"}, NotFound),
    ("runs.update_tags", {"run_id": NOBODY, "delete_tags": ["k"]}, NotFound),
    ("runs.metric_history", {"run_id": NOBODY, "metric_key": ""}, BadRequest),
    ("runs.list_artifacts", {"run_id": NOBODY}, NotFound),
    ("registered_models.create", {"name": ""}, BadRequest),
    ("registered_models.get", {"name": "not there"}, NotFound),
    ("registered_models.update", {"name": "not there", "description": "d"}, NotFound),
    ("registered_models.rename", {"name": "not there", "new_name": "n"}, NotFound),
    ("registered_models.delete", {"name": "not there"}, NotFound),
    ("registered_models.search", {"filter_string": "loss <"}, BadRequest),
    ("registered_models.set_tag", {"name": "not there", "key": "k", "value": "v"}, NotFound),
    ("registered_models.delete_tag", {"name": "not there", "key": "k"}, NotFound),
    ("registered_models.update_tags", {"name": "not there", "delete_tags": ["k"]}, NotFound),
    ("model_versions.create", {"name": "not there", "source": "s3://bucket/m"}, NotFound),
    (
        "model_versions.create_in_workspace",
        {"name": "not there", "source": "s3://bucket/m"},
        NotFound,
    ),
    ("model_versions.get", {"name": "not there", "version": "1"}, NotFound),
    ("model_versions.update", {"name": "no", "version": "1", "description": "d"}, NotFound),
    ("model_versions.delete", {"name": "not there", "version": "1"}, NotFound),
    ("model_versions.search", {"filter_string": "loss <"}, BadRequest),
    (
        "model_versions.transition_stage",
        {"name": "no", "version": "1", "stage": "None", "archive_existing_versions": False},
        NotFound,
    ),
    ("model_versions.set_tag", {"name": "n", "version": "1", "key": "k", "value": "v"}, NotFound),
    ("model_versions.delete_tag", {"name": "n", "version": "1", "key": "k"}, NotFound),
    ("model_versions.update_tags", {"name": "n", "version": "1", "delete_tags": ["k"]}, NotFound),
    ("logged_models.search", {"experiment_ids": ["0"], "filter_string": "loss <"}, BadRequest),
]


async def call(session: Session, method: str, arguments: dict[str, Any]) -> None:
    family, name = method.split(".")
    result = getattr(getattr(session, family), name)(**arguments)
    if hasattr(result, "pages"):
        async for _ in result:
            break
    else:
        await result


@pytest.mark.parametrize(("method", "arguments", "error"), REFUSED, ids=[row[0] for row in REFUSED])
async def test_what_is_refused(
    method: str, arguments: dict[str, Any], error: type[Exception], session: Session
) -> None:
    """The error is of the right class, and names operation, code and request id."""
    with pytest.raises(error) as caught:
        await call(session, method, arguments)

    operation = next(row.operation for row in rows() if row.method == method)
    assert caught.value.operation == operation  # type: ignore[attr-defined]
    assert caught.value.code  # type: ignore[attr-defined]
    assert caught.value.request_id  # type: ignore[attr-defined]


async def test_every_operation_of_mlflow_is_refused_once() -> None:
    """The table above is complete: the rest has no counterpart in MLflow."""
    without = {row.operation for row in rows() if row.method.startswith("deployments.")} | {
        "list_registered_model_permissions",
        "manage_registered_model_permission",
        "get_registered_model_summary",
    }
    methods = {row.method for row in rows() if row.operation not in without}

    assert {row[0] for row in REFUSED} == methods
    assert len(methods) + len(without) == len(OPERATIONS)


async def test_a_name_that_is_taken(session: Session, experiment_id: str, model: str) -> None:
    """What exists already is not made a second time."""
    name = (await session.experiments.get(experiment_id)).name

    with pytest.raises((BadRequest, Conflict)) as caught:
        await session.experiments.create(name)
    assert caught.value.code == "RESOURCE_ALREADY_EXISTS"
    with pytest.raises((BadRequest, Conflict)):
        await session.registered_models.create(model)


async def test_what_mlflow_has_not(session: Session) -> None:
    """It is a 501, which is a fault of the service, and is not retried."""
    with pytest.raises(ServiceFault) as caught:
        await session.deployments.roll_back("d", [DeploymentTarget("1", 100)])

    assert (caught.value.status, caught.value.retriable) == (501, False)
