"""The gateway in front of the real MLflow: every operation it can answer, and its translations."""

from __future__ import annotations

import asyncio
import json
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlparse

import pytest

from adp_async.local.answers import Answer
from adp_async.local.routes import ROUTES
from adp_async.local.translation import as_service, mlflow_query

if TYPE_CHECKING:
    from conftest import SignedClient, SignedReply

    from adp_async.local import Gateway, LocalPlatform

SAMPLES = Path(__file__).parent / "samples"
MODELS = json.loads((SAMPLES / "models.json").read_text())
RESPONSES = {
    row["operation"]: row["response"]
    for row in json.loads((SAMPLES / "operations.json").read_text())
}
BY_OPERATION = {route.operation: route for route in ROUTES}


# -- replies against the published schemas

_PLAIN = {"str": str, "int": int, "bool": bool, "object": object}


def misfits(value: Any, type_: str, where: str) -> list[str]:
    """Where *value* is not of the published type."""
    if type_.startswith("list["):
        if not isinstance(value, list):
            return [f"{where} is no list"]
        return [
            misfit
            for number, one in enumerate(value)
            for misfit in misfits(one, type_[5:-1], f"{where}[{number}]")
        ]
    if type_ in MODELS:
        return model_misfits(value, type_, where)
    if type_ == "float":
        fits = isinstance(value, int | float) or value in {"NaN", "Infinity", "-Infinity"}
    else:
        fits = isinstance(value, _PLAIN[type_])
    return [] if fits else [f"{where} is {value!r}, not {type_}"]


def model_misfits(value: Any, name: str, where: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{where} is no object"]
    found = []
    for field, details in MODELS[name]["fields"].items():
        if field in value:
            found += misfits(value[field], details["type"], f"{where}.{field}")
        elif details.get("required"):
            found.append(f"{where}.{field} is missing")
    return found


async def ask(client: SignedClient, operation: str, query: str = "", **body: Any) -> SignedReply:
    route = BY_OPERATION[operation]
    path = f"{route.path}?{query}" if query else route.path
    return await client.call(route.method, path, body, workspace=route.in_workspace)


async def get(client: SignedClient, operation: str, query: str = "", **body: Any) -> Any:
    """Ask, insist on 200 and on the published schema, and return the JSON."""
    reply = await ask(client, operation, query, **body)
    assert reply.status == 200, reply.body
    assert model_misfits(reply.json, RESPONSES[operation], operation) == []
    return reply.json


def named(name: str) -> str:
    """The filter expression for *name*, ready for a query."""
    return quote(f"name = '{name}'", "")


def unique(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex[:12]}"


@pytest.fixture
async def experiment_id(client: SignedClient) -> str:
    reply = await get(client, "create_experiment", name=unique("experiment"))
    return str(reply["experiment_id"])


@pytest.fixture
async def run_id(client: SignedClient, experiment_id: str) -> str:
    reply = await get(client, "create_experiment_run", experiment_id=experiment_id, start_time=1)
    return str(reply["run"]["info"]["run_id"])


@pytest.fixture
async def model(client: SignedClient) -> str:
    name = unique("model")
    await get(client, "create_registered_model", name=name, description="first")
    return name


def tags_of(owner: dict[str, Any]) -> dict[str, str]:
    mlflows_own = "mlflow."
    return {
        tag["key"]: tag["value"]
        for tag in owner.get("tags", [])
        if not tag["key"].startswith(mlflows_own)
    }


async def run_of(client: SignedClient, run_id: str) -> Any:
    return (await get(client, "get_experiment_run_by_id", f"run_id={run_id}"))["run"]


# -- experiments


@pytest.mark.mlflow
async def test_experiment_life(client: SignedClient) -> None:
    """Created, found by id, name and search, renamed, deleted, restored."""
    name, new_name = unique("it's / an experiment"), unique("renamed")
    experiment_id = (await get(client, "create_experiment", name=name))["experiment_id"]

    by_id = await get(client, "get_experiment_by_id", f"experiment_id={experiment_id}")
    by_name = await get(client, "get_experiment_by_name", f"experiment_name={quote(name, '')}")
    assert by_id == by_name

    await get(client, "update_experiment", experiment_id=experiment_id, new_name=new_name)
    found = await get(client, "list_experiments", filter=f"name = '{new_name}'")
    assert [one["experiment_id"] for one in found["experiments"]] == [experiment_id]

    for operation, stage in (("delete_experiment", "deleted"), ("restore_experiment", "active")):
        await get(client, operation, experiment_id=experiment_id)
        reply = await get(client, "get_experiment_by_id", f"experiment_id={experiment_id}")
        assert reply["experiment"]["lifecycle_stage"] == stage


@pytest.mark.mlflow
async def test_experiment_tags(client: SignedClient, experiment_id: str) -> None:
    """Set one by one, then several set and deleted in one call, then deleted."""
    mine = {"experiment_id": experiment_id}
    await get(client, "set_experiment_tag", **mine, key="a", value="1")
    await get(
        client,
        "update_experiment_tags",
        **mine,
        set_tags=[{"key": "b", "value": "2"}, {"key": "c", "value": "3"}],
        delete_tags=[{"key": "a"}],
    )
    await get(client, "delete_experiment_tag", **mine, key="c")

    reply = await get(client, "get_experiment_by_id", f"experiment_id={experiment_id}")
    assert tags_of(reply["experiment"]) == {"b": "2"}


@pytest.mark.mlflow
async def test_experiment_name_is_taken_once(client: SignedClient) -> None:
    """409, where MLflow itself says 400."""
    name = unique("experiment")
    await get(client, "create_experiment", name=name)

    reply = await ask(client, "create_experiment", name=name)

    assert (reply.status, reply.code) == (409, "RESOURCE_ALREADY_EXISTS")


@pytest.mark.mlflow
async def test_search_that_finds_nothing(client: SignedClient) -> None:
    """The required list is there, empty, where MLflow leaves it out."""
    empty = "name = 'nothing'"
    query = f"filter={quote(empty)}"

    assert await get(client, "list_experiments", filter=empty) == {"experiments": []}
    assert await get(client, "list_experiment_runs", experiment_ids=[]) == {"runs": []}
    assert await get(client, "list_registered_models", query) == {"registered_models": []}
    assert await get(client, "list_model_versions", query) == {"model_versions": []}


# -- runs


@pytest.mark.mlflow
async def test_run_life(client: SignedClient, experiment_id: str) -> None:
    """Created with a name and tags, updated, found, deleted, restored."""
    created = await get(
        client,
        "create_experiment_run",
        experiment_id=experiment_id,
        run_name="Lauf für 'alle'",
        start_time=5,
        tags=[{"key": "a", "value": "1"}],
    )
    run_id = created["run"]["info"]["run_id"]
    updated = await get(
        client, "update_experiment_run", run_id=run_id, status="FINISHED", end_time=9
    )
    assert updated["run_info"]["status"] == "FINISHED"
    assert (updated["run_info"]["start_time"], updated["run_info"]["end_time"]) == (5, 9)

    found = await get(
        client,
        "list_experiment_runs",
        experiment_ids=[experiment_id],
        filter="tags.a = '1'",
        order_by=["attributes.start_time DESC"],
        run_view_type="ALL",
    )
    assert [run["info"]["run_name"] for run in found["runs"]] == ["Lauf für 'alle'"]

    for operation, stage in (
        ("delete_experiment_run", "deleted"),
        ("restore_experiment_run", "active"),
    ):
        await get(client, operation, run_id=run_id)
        assert (await run_of(client, run_id))["info"]["lifecycle_stage"] == stage


@pytest.mark.mlflow
async def test_run_without_experiment(client: SignedClient) -> None:
    """It goes to the default experiment."""
    created = await get(client, "create_experiment_run", experiment_id=None)

    assert created["run"]["info"]["experiment_id"] == "0"


@pytest.mark.mlflow
async def test_logging(client: SignedClient, run_id: str) -> None:
    """Batch, metric, param and tag arrive; NaN keeps its spelling, infinity becomes the largest."""
    await get(
        client,
        "log_experiment_run_batch",
        run_id=run_id,
        metrics=[
            {"key": "loss", "value": 0.5, "timestamp": 1, "step": 0},
            {"key": "nan", "value": "NaN", "timestamp": 1, "step": 0},
            {"key": "inf", "value": "Infinity", "timestamp": 1, "step": 0},
        ],
        params=[{"key": "lr", "value": "0.1"}],
        tags=[{"key": "a", "value": "1"}],
    )
    await get(
        client,
        "log_experiment_run_metric",
        run_id=run_id,
        key="loss",
        value=0.25,
        timestamp=2,
        step=1,
    )
    await get(client, "log_experiment_run_param", run_id=run_id, key="seed", value="7")
    await get(client, "set_experiment_run_tag", run_id=run_id, key="b", value="2")

    data = (await run_of(client, run_id))["data"]
    values = {metric["key"]: metric["value"] for metric in data["metrics"]}
    assert values == {"loss": 0.25, "nan": "NaN", "inf": 1.7976931348623157e308}
    assert {param["key"]: param["value"] for param in data["params"]} == {"lr": "0.1", "seed": "7"}
    assert tags_of(data) == {"a": "1", "b": "2"}


@pytest.mark.mlflow
async def test_metric_history_in_pages(client: SignedClient, run_id: str) -> None:
    """All points come, page by page."""
    points = [{"key": "m", "value": n, "timestamp": n, "step": n} for n in range(5)]
    await get(client, "log_experiment_run_batch", run_id=run_id, metrics=points)

    steps, token = [], ""
    while True:
        query = f"run_id={run_id}&metric_key=m&max_results=2&page_token={quote(token, '')}"
        page = await get(client, "get_experiment_run_metric_history", query)
        steps.append([metric["step"] for metric in page["metrics"]])
        token = page.get("next_page_token", "")
        if not token:
            break
    assert steps == [[0, 1], [2, 3], [4]]


@pytest.mark.mlflow
async def test_run_tags(client: SignedClient, run_id: str) -> None:
    """update-tags sets and deletes in one call; deleting what isn't there is a 404."""
    await get(client, "set_experiment_run_tag", run_id=run_id, key="a", value="1")
    await get(
        client,
        "update_experiment_run_tags",
        run_id=run_id,
        set_tags=[{"key": "b", "value": "2"}, {"key": "c", "value": "3"}],
        delete_tags=[{"key": "a"}],
    )
    await get(client, "delete_experiment_run_tag", run_id=run_id, key="c")
    assert tags_of((await run_of(client, run_id))["data"]) == {"b": "2"}

    reply = await ask(
        client, "update_experiment_run_tags", run_id=run_id, delete_tags=[{"key": "a"}]
    )
    assert (reply.status, reply.code) == (404, "RESOURCE_DOES_NOT_EXIST")


@pytest.mark.mlflow
async def test_inputs(client: SignedClient, run_id: str) -> None:
    """``dataset_inputs`` go in, where MLflow says ``datasets``, and come back as they were."""
    data = {"name": "digits", "digest": "d1", "source_type": "local", "source": "{}"}
    dataset_input = {"dataset": data, "tags": [{"key": "context", "value": "train"}]}

    await get(client, "log_experiment_run_inputs", run_id=run_id, dataset_inputs=[dataset_input])

    run = await run_of(client, run_id)
    (logged,) = run["inputs"]["dataset_inputs"]
    assert (logged["dataset"], logged["tags"]) == (data, dataset_input["tags"])


@pytest.mark.mlflow
async def test_logged_model_description(client: SignedClient, run_id: str) -> None:
    """log-model leaves its record among the run's tags."""
    description = {
        "artifact_path": "model",
        "flavors": {},
        "utc_time_created": "2026-05-01 12:00:00",
        "run_id": run_id,
    }

    await get(client, "log_experiment_run_model", run_id=run_id, model_json=json.dumps(description))

    tags = {tag["key"] for tag in (await run_of(client, run_id))["data"]["tags"]}
    assert "mlflow.log-model.history" in tags


@pytest.mark.mlflow
async def test_logged_models(client: SignedClient, experiment_id: str) -> None:
    """The search answers with and without experiments named."""
    assert await get(client, "list_logged_models", experiment_ids=[experiment_id]) == {}
    assert "models" not in await get(client, "list_logged_models", max_results=5)


@pytest.mark.mlflow
async def test_artifacts(client: SignedClient, run_id: str) -> None:
    """Files in the run's folder are listed with their sizes."""
    folder = Path(urlparse((await run_of(client, run_id))["info"]["artifact_uri"]).path)
    await asyncio.to_thread(folder.mkdir, parents=True)
    await asyncio.to_thread((folder / "notes.txt").write_text, "hello")

    listed = await get(client, "list_artifacts", f"run_id={run_id}")

    assert listed["files"] == [{"path": "notes.txt", "is_dir": False, "file_size": 5}]


@pytest.mark.mlflow
@pytest.mark.parametrize(
    "bad",
    [
        {"params": [{"key": "lr", "value": "2"}]},
        {"metrics": [{"key": "what?", "value": 1, "timestamp": 1, "step": 0}]},
        {"params": [{"key": "p", "value": "1"}, {"key": "p", "value": "2"}]},
        {"tags": [{"key": "t", "value": "x" * 8001}]},
        {"tags": [{"key": f"t{n}", "value": "x"} for n in range(101)]},
    ],
    ids=["changed param", "illegal key", "param twice", "long value", "too many"],
)
async def test_bad_record_fails_its_request(
    client: SignedClient, run_id: str, bad: dict[str, Any]
) -> None:
    """400, and its good neighbours are not visible; what the stand-in does too."""
    params = [{"key": "lr", "value": "1"}]
    await get(client, "log_experiment_run_batch", run_id=run_id, params=params)
    good = {"key": "good", "value": 1, "timestamp": 1, "step": 0}
    body = {"run_id": run_id, **bad, "metrics": [good, *bad.get("metrics", [])]}

    reply = await ask(client, "log_experiment_run_batch", **body)

    assert (reply.status, reply.code) == (400, "INVALID_PARAMETER_VALUE")
    assert "metrics" not in (await run_of(client, run_id))["data"]


@pytest.mark.mlflow
async def test_what_is_not_there(client: SignedClient) -> None:
    """404 for a run, an experiment, a model that doesn't exist."""
    for operation, query in (
        ("get_experiment_run_by_id", f"run_id={'0' * 32}"),
        ("get_experiment_by_id", "experiment_id=987654"),
        ("get_registered_model", "name=nobody"),
        ("get_model_version", "name=nobody&version=1"),
    ):
        reply = await ask(client, operation, query)
        assert (reply.status, reply.code) == (404, "RESOURCE_DOES_NOT_EXIST"), operation


# -- permanent deletion


@pytest.mark.mlflow
async def test_permanent_deletion(client: SignedClient, experiment_id: str, run_id: str) -> None:
    """A run goes with its artifacts; an experiment only when no run is left, as is documented."""
    folder = Path(urlparse((await run_of(client, run_id))["info"]["artifact_uri"]).path)
    await asyncio.to_thread(folder.mkdir, parents=True)
    whole = {"experiment_id": experiment_id, "is_permanent": True}
    assert (await ask(client, "delete_experiment", **whole)).status == 409

    await get(client, "delete_experiment_run", run_id=run_id, is_permanent=True)
    assert (await ask(client, "get_experiment_run_by_id", f"run_id={run_id}")).status == 404
    assert not await asyncio.to_thread(folder.exists)

    await get(client, "delete_experiment", **whole)
    reply = await ask(client, "get_experiment_by_id", f"experiment_id={experiment_id}")
    assert reply.status == 404


@pytest.mark.mlflow
async def test_deletion_that_is_not_permanent(client: SignedClient, run_id: str) -> None:
    """``is_permanent`` false is the common deletion."""
    await get(client, "delete_experiment_run", run_id=run_id, is_permanent=False)

    assert (await run_of(client, run_id))["info"]["lifecycle_stage"] == "deleted"


# -- the registry


@pytest.mark.mlflow
async def test_registered_model_life(client: SignedClient, model: str) -> None:
    """Updated with POST, renamed, found, deleted with POST."""
    updated = await get(client, "update_registered_model", name=model, description="second")
    assert updated["registered_model"]["description"] == "second"

    new_name = unique("renamed")
    await get(client, "rename_registered_model", name=model, new_name=new_name)
    query = f"filter={named(new_name)}&is_deployment_summary_enabled=true"
    found = await get(client, "list_registered_models", query)
    assert [one["name"] for one in found["registered_models"]] == [new_name]

    await get(client, "delete_registered_model", name=new_name)
    assert (await ask(client, "get_registered_model", f"name={new_name}")).status == 404


@pytest.mark.mlflow
async def test_registered_model_tags(client: SignedClient, model: str) -> None:
    """Set, updated in one call, deleted with POST."""
    await get(client, "set_registered_model_tag", name=model, key="a", value="1")
    await get(
        client,
        "update_registered_model_tags",
        name=model,
        set_tags=[{"key": "b", "value": "2"}, {"key": "c", "value": "3"}],
        delete_tags=[{"key": "a"}],
    )
    await get(client, "delete_registered_model_tag", name=model, key="c")

    reply = await get(client, "get_registered_model", f"name={model}")
    assert tags_of(reply["registered_model"]) == {"b": "2"}


@pytest.mark.mlflow
async def test_model_version_life(client: SignedClient, model: str) -> None:
    """Created in both scopes, updated, moved to a stage, tagged, found, deleted."""
    for operation, version in (
        ("create_model_version", "1"),
        ("create_workspace_model_version", "2"),
    ):
        created = await get(client, operation, name=model, source="s3://bucket/model")
        assert created["model_version"]["version"] == version
    first = {"name": model, "version": "1"}

    await get(client, "update_model_version", **first, description="better")
    moved = await get(
        client,
        "transition_model_version_stage",
        **first,
        stage="Production",
        archive_existing_versions=True,
    )
    assert moved["model_version"]["current_stage"] == "Production"
    assert moved["model_version"]["description"] == "better"

    await get(client, "set_model_version_tag", **first, key="a", value="1")
    await get(
        client,
        "update_model_version_tags",
        **first,
        set_tags=[{"key": "b", "value": "2"}, {"key": "c", "value": "3"}],
        delete_tags=[{"key": "a"}],
    )
    await get(client, "delete_model_version_tag", **first, key="c")
    reply = await get(client, "get_model_version", f"name={model}&version=1")
    assert tags_of(reply["model_version"]) == {"b": "2"}

    await get(client, "delete_model_version", **first)
    query = f"filter={named(model)}"
    left = await get(client, "list_model_versions", query)
    assert [one["version"] for one in left["model_versions"]] == ["2"]


@pytest.mark.mlflow
async def test_order_by_of_two_columns(client: SignedClient, model: str) -> None:
    """One ``order_by`` with a comma, as the service takes it, orders by both columns."""
    for _ in range(2):
        await get(client, "create_model_version", name=model, source="s3://bucket/model")
    order = quote("name ASC, version_number DESC", "")
    query = f"filter={named(model)}&order_by={order}&max_results=1"

    page = await get(client, "list_model_versions", query)

    assert [one["version"] for one in page["model_versions"]] == ["2"]
    assert page["next_page_token"]


# -- what MLflow has no counterpart for


@pytest.mark.mlflow
@pytest.mark.parametrize(
    "operation", [route.operation for route in ROUTES if not route.is_answered]
)
async def test_no_counterpart(client: SignedClient, operation: str) -> None:
    """501 with a clear code, never a made-up success."""
    route = BY_OPERATION[operation]
    path = route.path.replace("{", "").replace("}", "")

    reply = await client.call(route.method, path, {}, workspace=route.in_workspace)

    assert (reply.status, reply.code) == (501, "NotImplemented")
    assert operation in reply.json["message"]


def test_every_operation_of_mlflow_is_asked_above() -> None:
    """No operation that MLflow answers is left out of this file."""
    text = Path(__file__).read_text()
    missing = [
        route.operation
        for route in ROUTES
        if route.is_answered and f'"{route.operation}"' not in text
    ]

    assert missing == []


# -- retry tokens and MLflow


@pytest.mark.mlflow
async def test_retry_token_makes_one_run(client: SignedClient, experiment_id: str) -> None:
    """Five creates with one token at once make one run."""
    body = {"experiment_id": experiment_id, "run_name": "once"}
    headers = {"opc-retry-token": uuid.uuid4().hex}

    replies = await asyncio.gather(
        *(client.call("POST", "mlflow/runs/create", body, headers=headers) for _ in range(5))
    )

    assert len({reply.json["run"]["info"]["run_id"] for reply in replies}) == 1
    found = await get(client, "list_experiment_runs", experiment_ids=[experiment_id])
    assert len(found["runs"]) == 1

    other = {**body, "run_name": "twice"}
    reply = await client.call("POST", "mlflow/runs/create", other, headers=headers)
    assert (reply.status, reply.code) == (409, "InvalidatedRetryToken")


@pytest.mark.mlflow
async def test_parallel_batches(client: SignedClient, run_id: str) -> None:
    """Batches of one run at the same time all arrive, SQLite or not."""
    batches = [
        [{"key": f"m{n}", "value": s, "timestamp": s, "step": s} for s in range(200)]
        for n in range(8)
    ]

    await asyncio.gather(
        *(get(client, "log_experiment_run_batch", run_id=run_id, metrics=one) for one in batches)
    )

    data = (await run_of(client, run_id))["data"]
    assert {metric["key"]: metric["step"] for metric in data["metrics"]} == {
        f"m{n}": 199 for n in range(8)
    }


@pytest.mark.mlflow
async def test_mlflow_that_is_gone(
    client: SignedClient, gateway: Gateway, platform: LocalPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503 in the service's own form."""
    monkeypatch.setattr(gateway.backend, "_url", "http://127.0.0.1:9")

    reply = await ask(client, "get_experiment_by_id", "experiment_id=0")

    assert (reply.status, reply.code) == (503, "ServiceUnavailable")


# -- translations that need no MLflow


def test_error_without_json() -> None:
    """A page of Flask's becomes an error of the service."""
    answer = as_service("any", Answer(404, b"<html>"))

    assert (answer.status, json.loads(answer.body)["code"]) == (404, "NotAuthorizedOrNotFound")


def test_query_is_left_alone() -> None:
    """Without ``order_by`` not a character changes."""
    query = "filter=name%20LIKE%20%27a%2Cb%27&max_results=3"

    assert mlflow_query("list_registered_models", query) == query
