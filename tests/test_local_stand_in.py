"""The stand-in keeps MLflow's rules of log-batch, and remembers exactly what arrived."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from adp_async.local.answers import Answer, Received
from adp_async.local.routes import ROUTES
from adp_async.local.stand_in import StandIn

BY_OPERATION = {route.operation: route for route in ROUTES}


def metric(
    key: str = "loss", value: Any = 0.5, step: int = 0, timestamp: int = 1
) -> dict[str, Any]:
    return {"key": key, "value": value, "step": step, "timestamp": timestamp}


def pair(key: str, value: str = "v") -> dict[str, str]:
    return {"key": key, "value": value}


@pytest.fixture
def store() -> StandIn:
    store = StandIn()
    store.add_run("r")
    return store


async def ask(store: StandIn, operation: str, query: str = "", **body: Any) -> Answer:
    received = Received("POST", f"/x?{query}", {}, msgspec.json.encode(body), operation)
    return await store.answer(BY_OPERATION[operation], received)


async def log(store: StandIn, **body: Any) -> Answer:
    return await ask(store, "log_experiment_run_batch", **{"run_id": "r", **body})


async def test_everything_arrives_in_order_with_duplicates(store: StandIn) -> None:
    """What came twice is there twice: that is what tests want to see."""
    for _ in range(2):
        answer = await log(store, metrics=[metric(step=2), metric(step=1)], tags=[pair("t")])
        assert (answer.status, answer.body) == (200, b"{}")

    run = store.runs["r"]
    assert [point.step for point in run.metrics] == [2, 1, 2, 1]
    assert run.tags == [("t", "v"), ("t", "v")]
    assert run.batches == [3, 3]


async def test_not_finite_values_are_kept_as_spelled(store: StandIn) -> None:
    """The wire's three strings are values."""
    values = ["NaN", "Infinity", "-Infinity", 1]
    assert (await log(store, metrics=[metric(value=value) for value in values])).status == 200

    assert [point.value for point in store.runs["r"].metrics] == values


@pytest.mark.parametrize(
    "bad",
    [
        {"metrics": [metric(f"m{n}") for n in range(1001)]},
        {"params": [pair(f"p{n}") for n in range(101)]},
        {"tags": [pair(f"t{n}") for n in range(101)]},
        {
            "metrics": [metric()] * 900,
            "params": [pair(f"p{n}") for n in range(50)],
            "tags": [pair(f"t{n}") for n in range(51)],
        },
        {"tags": [pair("t", "x" * 8001)]},
        {"params": [pair("p", "x" * 6001)]},
        {"params": [pair("p", "1"), pair("p", "1")]},
        {"metrics": [metric("a?b")]},
        {"metrics": [metric("a/../b")]},
        {"metrics": [metric("/a")]},
        {"metrics": [metric("")]},
        {"metrics": [metric("k" * 251)]},
        {"metrics": [metric(value="many")]},
        {"metrics": [metric(value=True)]},
        {"metrics": [metric(timestamp=-1)]},
        {"metrics": [{"key": "loss", "value": 1.0}]},
        {"tags": [pair(f"t{n}", "x" * 8000) for n in range(100)], "filler": "x" * 250_000},
    ],
)
async def test_one_bad_record_fails_the_whole_request(store: StandIn, bad: dict[str, Any]) -> None:
    """400, and nothing of that request is visible."""
    good = {"metrics": [metric("good")], "tags": [pair("good")]}
    mixed = {
        key: good.get(key, []) + value if isinstance(value, list) else value
        for key, value in bad.items()
    }

    answer = await log(store, **mixed)

    assert answer.status == 400
    assert store.runs["r"].metrics == []
    assert store.runs["r"].tags == []


async def test_param_is_write_once(store: StandIn) -> None:
    """The same value again is accepted, another is refused and takes its neighbours with it."""
    assert (await log(store, params=[pair("lr", "1")])).status == 200
    assert (await log(store, params=[pair("lr", "1")])).status == 200
    assert (await log(store, params=[pair("lr", "2")], metrics=[metric()])).status == 400

    assert store.runs["r"].params == [("lr", "1"), ("lr", "1")]
    assert store.runs["r"].metrics == []


async def test_unknown_run(store: StandIn) -> None:
    """404, unless `any_run` lets every run exist."""
    assert (await log(store, run_id="other")).status == 404

    store.any_run = True
    assert (await log(store, run_id="other", metrics=[metric()])).status == 200
    assert len(store.runs["other"].metrics) == 1


async def test_run_from_creation_to_end(store: StandIn) -> None:
    """Create, log, update, get: the reply has the last value of each key."""
    created = await ask(store, "create_experiment_run", run_name="n", tags=[pair("a", "1")])
    run_id = msgspec.json.decode(created.body)["run"]["info"]["run_id"]
    await log(store, run_id=run_id, metrics=[metric(value=1.0), metric(value=2.0)])
    await ask(store, "update_experiment_run", run_id=run_id, status="FINISHED", end_time=7)

    reply = await ask(store, "get_experiment_run_by_id", f"run_id={run_id}")

    run = msgspec.json.decode(reply.body)["run"]
    assert (run["info"]["status"], run["info"]["end_time"]) == ("FINISHED", 7)
    assert [point["value"] for point in run["data"]["metrics"]] == [2.0]
    assert run["data"]["tags"] == [{"key": "a", "value": "1"}]


async def test_experiments_by_id_and_name(store: StandIn) -> None:
    """An experiment is found by both, and its name is taken once."""
    created = msgspec.json.decode((await ask(store, "create_experiment", name="e")).body)
    by_name = await ask(store, "get_experiment_by_name", "experiment_name=e")
    by_id = await ask(store, "get_experiment_by_id", f"experiment_id={created['experiment_id']}")

    assert by_name.body == by_id.body
    assert (await ask(store, "create_experiment", name="e")).status == 409
    assert (await ask(store, "get_experiment_by_name", "experiment_name=f")).status == 404
    assert (await ask(store, "get_experiment_by_id")).status == 400


async def test_an_experiment_needs_a_name(store: StandIn) -> None:
    """A refusal as the service's, and none is made."""
    before = len(store.experiments)

    assert (await ask(store, "create_experiment", name="")).status == 400
    assert len(store.experiments) == before
    assert store.runs[store.add_run("r")].run_id == "r"


async def test_everything_else_is_501(store: StandIn) -> None:
    """It never makes up a success."""
    answer = await ask(store, "create_registered_model", name="m")

    assert (answer.status, msgspec.json.decode(answer.body)["code"]) == (501, "NotImplemented")
