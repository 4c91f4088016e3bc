"""Everyday MLflow code, unchanged but for ``mlflow.set_tracking_uri("aidp://")``.

Against a real MLflow behind the gateway that checks signatures.  With
``ADP_ASYNC_TEST_PLATFORM=served`` the platform is the one that the environment leads to, as
``adp-async serve`` prints it: so run the same cases on another MLflow than the platform's own.

What cannot work is at the end, each with the error that says so.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.entities import Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sklearn.linear_model import LogisticRegression

from adp_async.integrations.mlflow.connection import connection_of
from adp_async.local import Fault
from tests.children import HANDED_ON, ROOT, environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adp_async.local import Gateway

pytestmark = [
    pytest.mark.mlflow,
    # MLflow, scikit-learn and LightGBM warn of one another; ours go to the log.
    pytest.mark.filterwarnings("ignore"),
]

URI = "aidp://"
IS_SERVED = os.environ.get("ADP_ASYNC_TEST_PLATFORM") == "served"
IS_MLFLOW_3 = int(mlflow.__version__.partition(".")[0]) >= 3
OURS = ("AIDP_", "OCI_", "ADP_ASYNC_")
needs_mlflow_3 = pytest.mark.skipif(not IS_MLFLOW_3, reason="MLflow 2 has no such function")


@pytest.fixture(scope="module")
def variables(request: pytest.FixtureRequest) -> dict[str, str]:
    """The environment that leads to the platform, for this process and for others."""
    handed_on = {name: os.environ[name] for name in HANDED_ON if name in os.environ}
    if IS_SERVED:
        ours = {name: value for name, value in os.environ.items() if name.startswith(OURS)}
        return {**handed_on, "PYTHONPATH": str(ROOT), "ADP_ASYNC_LINGER": "0.01", **ours}
    return environment(request.getfixturevalue("platform"))


@pytest.fixture(autouse=True)
def _mlflow(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """MLflow as at its start, pointed at the platform."""
    for name, value in variables.items():
        if name.startswith(OURS):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", URI)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("MLFLOW_REGISTRY_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.setenv(name, "")  # what MLflow sets is taken back
        monkeypatch.delenv(name)
    mlflow.set_tracking_uri(URI)
    yield
    while mlflow.active_run() is not None:
        mlflow.end_run()
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)


@pytest.fixture(scope="module", autouse=True)
def _sessions() -> Iterator[None]:
    """What the tests opened is closed before the platform is."""
    yield
    for uri in (URI, f"{URI}?sync=1", f"{URI}?linger=0.02"):
        session = connection_of(uri)._session
        if session is not None:
            session.close()


@pytest.fixture
def experiment(request: pytest.FixtureRequest) -> str:
    """The name of the active experiment, which is the test's own."""
    name = f"{request.node.name[:60]} {time.time_ns()}"
    mlflow.set_experiment(name)
    return name


@pytest.fixture
def client() -> MlflowClient:
    return MlflowClient()


def points(run_id: str, key: str) -> list[tuple[int, float]]:
    history = MlflowClient().get_metric_history(run_id, key)
    return sorted((point.step, point.value) for point in history)


def unique(name: str) -> str:
    return f"{name}-{time.time_ns()}"


def in_another_process(
    variables: dict[str, str], folder: Path, script: str, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Run *script* with the tracking URI in its environment."""
    file = folder / "script.py"
    file.write_text(textwrap.dedent(script))
    return subprocess.run(
        [sys.executable, str(file), *arguments],
        env={**variables, "MLFLOW_TRACKING_URI": URI, "MLFLOW_DISABLE_TELEMETRY": "true"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def trained() -> tuple[LogisticRegression, np.ndarray]:
    features = np.random.default_rng(0).random((40, 3))
    return LogisticRegression().fit(features, features[:, 0] > 0.5), features


def log_sklearn(model: Any, name: str) -> Any:
    """`mlflow.sklearn.log_model` with the argument that this MLflow has for the name."""
    named = {"name": name} if IS_MLFLOW_3 else {"artifact_path": name}
    return mlflow.sklearn.log_model(model, **named)


# ------------------------------------------------------------------ experiments


def test_an_experiment_is_created_and_found(client: MlflowClient) -> None:
    """By its id, by its name, with its tags and its artifact location."""
    name = unique("found")
    found = mlflow.create_experiment(name, artifact_location="file:///srv/here", tags={"a": "b"})

    assert client.get_experiment(found).name == name
    by_name = mlflow.get_experiment_by_name(name)
    assert (by_name.experiment_id, by_name.tags["a"]) == (found, "b")
    assert by_name.artifact_location == "file:///srv/here"


def test_set_experiment_creates_once() -> None:
    """The second time it finds what the first has made."""
    name = unique("once")

    assert mlflow.set_experiment(name).experiment_id == mlflow.set_experiment(name).experiment_id


def test_an_unknown_experiment_is_none() -> None:
    """MLflow tells it by the error's code."""
    assert mlflow.get_experiment_by_name(unique("unknown")) is None


def test_an_experiment_exists_already() -> None:
    """The code is MLflow's."""
    name = unique("twice")
    mlflow.create_experiment(name)

    with pytest.raises(MlflowException, match="already exists") as caught:
        mlflow.create_experiment(name)

    assert caught.value.error_code == "RESOURCE_ALREADY_EXISTS"


def test_experiments_are_searched_renamed_and_deleted(client: MlflowClient) -> None:
    """Rename, tag, search with a filter and an order, delete, restore."""
    name = unique("searched")
    found = mlflow.create_experiment(name)
    client.rename_experiment(found, f"{name}-anew")
    client.set_experiment_tag(found, "kind", "test")

    (one,) = mlflow.search_experiments(filter_string=f"name = '{name}-anew'", order_by=["name ASC"])
    assert (one.experiment_id, one.tags["kind"]) == (found, "test")
    mlflow.delete_experiment(found)
    assert client.get_experiment(found).lifecycle_stage == "deleted"
    client.restore_experiment(found)
    assert client.get_experiment(found).lifecycle_stage == "active"


def test_the_environment_names_the_experiment(
    variables: dict[str, str], tmp_path: Path, experiment: str
) -> None:
    """``MLFLOW_EXPERIMENT_NAME`` and ``MLFLOW_RUN_ID`` work as ever."""
    with mlflow.start_run() as run:
        pass
    script = """
    import mlflow
    mlflow.log_metric("again", 1.0)
    print(mlflow.active_run().info.run_id)
    """
    named = {"MLFLOW_EXPERIMENT_NAME": experiment, "MLFLOW_RUN_ID": run.info.run_id}

    done = in_another_process({**variables, **named}, tmp_path, script)

    assert run.info.run_id in done.stdout, done.stderr
    assert points(run.info.run_id, "again") == [(0, 1.0)]


# ------------------------------------------------------------------ fluent logging


def test_what_is_logged_is_there(experiment: str) -> None:
    """Params, metrics, tags and the name; the status is FINISHED."""
    with mlflow.start_run(run_name="first", tags={"given": "1"}, description="of it") as run:
        assert mlflow.log_param("lr", 0.1) == 0.1
        mlflow.log_params({"depth": 3, "kind": "tree"})
        mlflow.log_metric("loss", 0.5, step=1)
        mlflow.log_metrics({"loss": 0.25, "acc": 0.75}, step=2)
        mlflow.set_tag("done", True)
        mlflow.set_tags({"a": 1})

    found = mlflow.get_run(run.info.run_id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "first"
    assert found.data.params == {"lr": "0.1", "depth": "3", "kind": "tree"}
    assert found.data.metrics == {"loss": 0.25, "acc": 0.75}
    tags = found.data.tags
    assert (tags["done"], tags["a"], tags["given"]) == ("True", "1", "1")
    assert tags["mlflow.note.content"] == "of it"


def test_the_history_is_whole(experiment: str) -> None:
    """2,500 points, over the pages of MLflow's client."""
    with mlflow.start_run() as run:
        for step in range(2500):
            mlflow.log_metric("loss", float(step), step=step)

    assert points(run.info.run_id, "loss") == [(step, float(step)) for step in range(2500)]


def test_numbers_that_json_lacks(experiment: str) -> None:
    """NaN arrives as NaN; infinity as the largest double of MLflow's store."""
    with mlflow.start_run() as run:
        mlflow.log_metric("nan", float("nan"))
        mlflow.log_metric("inf", float("inf"))
        mlflow.log_metric("array", np.array([0.5]))

    metrics = mlflow.get_run(run.info.run_id).data.metrics
    assert np.isnan(metrics["nan"])
    assert metrics["inf"] > 1e300
    assert metrics["array"] == 0.5


def test_more_than_one_request_holds(experiment: str, client: MlflowClient) -> None:
    """250 params, 250 tags and 2,500 metrics in one call."""
    run_id = client.create_run(mlflow.get_experiment_by_name(experiment).experiment_id).info.run_id
    client.log_batch(
        run_id,
        metrics=[Metric("m", float(step), 1_700_000_000_000, step) for step in range(2500)],
        params=[Param(f"p{number}", str(number)) for number in range(90)],
        tags=[RunTag(f"t{number}", str(number)) for number in range(90)],
    )
    with mlflow.start_run(run_id=run_id):
        mlflow.log_params({f"q{number}": number for number in range(250)})
        mlflow.set_tags({f"u{number}": number for number in range(250)})

    found = client.get_run(run_id).data
    assert len(points(run_id, "m")) == 2500
    assert len(found.params) == 340
    assert sum(key[0] in "tu" and key[1:].isdigit() for key in found.tags) == 340


def test_a_tag_is_deleted(experiment: str, client: MlflowClient) -> None:
    """One that was logged a moment before."""
    with mlflow.start_run() as run:
        mlflow.set_tag("gone", 1)
        mlflow.delete_tag("gone")

    assert "gone" not in client.get_run(run.info.run_id).data.tags


def test_reads_see_what_was_written_before(experiment: str, client: MlflowClient) -> None:
    """In the middle of a run, by its id and by a search."""
    with mlflow.start_run() as run:
        mlflow.log_metric("loss", 0.5)
        assert client.get_run(run.info.run_id).data.metrics == {"loss": 0.5}
        mlflow.log_param("late", 1)
        found = mlflow.search_runs(experiment_names=[experiment], filter_string="params.late = '1'")

    assert list(found.run_id) == [run.info.run_id]


def test_long_values_are_cut_as_mlflow_cuts_them(experiment: str) -> None:
    """With a warning, unless ``MLFLOW_TRUNCATE_LONG_VALUES`` is off."""
    with mlflow.start_run() as run:
        mlflow.log_param("long", "x" * 7000)

    assert mlflow.get_run(run.info.run_id).data.params == {"long": "x" * 6000}


# ------------------------------------------------------------------ runs


def test_runs_nest(experiment: str) -> None:
    """Children know their parent and are found by it."""
    with mlflow.start_run() as parent:
        for number in range(3):
            with mlflow.start_run(nested=True, run_name=f"child {number}"):
                mlflow.log_metric("loss", number)
        mlflow.log_metric("best", 0.0)

    children = mlflow.search_runs(
        experiment_names=[experiment],
        filter_string=f"tags.mlflow.parentRunId = '{parent.info.run_id}'",
        order_by=["metrics.loss DESC"],
    )
    assert list(children["tags.mlflow.runName"]) == ["child 2", "child 1", "child 0"]
    assert list(children["status"]) == ["FINISHED"] * 3


def test_a_run_is_resumed(experiment: str) -> None:
    """RUNNING again, logged into, and ended anew."""
    with mlflow.start_run() as run:
        mlflow.log_metric("loss", 1.0, step=0)
    with mlflow.start_run(run_id=run.info.run_id):
        assert mlflow.get_run(run.info.run_id).info.status == "RUNNING"
        mlflow.log_metric("loss", 0.5, step=1)

    assert mlflow.get_run(run.info.run_id).info.status == "FINISHED"
    assert points(run.info.run_id, "loss") == [(0, 1.0), (1, 0.5)]


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_a_run_ends_as_its_body(experiment: str, error: type[BaseException], status: str) -> None:
    """The error comes out bare, and what was logged before it is there."""

    def body() -> None:
        with mlflow.start_run():
            mlflow.log_metric("loss", 0.5)
            raise error("of the body")

    with pytest.raises(error, match="of the body"):
        body()

    found = mlflow.last_active_run()
    assert (found.info.status, found.data.metrics) == (status, {"loss": 0.5})


def test_runs_are_searched(experiment: str) -> None:
    """Into a DataFrame, by metrics, params and tags, ordered, page by page."""
    for number in range(5):
        with mlflow.start_run(run_name=f"run {number}", tags={"even": str(number % 2 == 0)}):
            mlflow.log_param("number", number)
            mlflow.log_metric("loss", number / 10)

    frame = mlflow.search_runs(
        experiment_names=[experiment],
        filter_string="metrics.loss > 0.05 and tags.even = 'True'",
        order_by=["params.number DESC"],
    )
    assert isinstance(frame, pd.DataFrame)
    assert list(frame["params.number"]) == ["4", "2"]
    found = MlflowClient().search_runs(
        [mlflow.get_experiment_by_name(experiment).experiment_id], max_results=3
    )
    assert (len(found), bool(found.token)) == (3, True)


def test_a_run_is_deleted_and_restored(experiment: str, client: MlflowClient) -> None:
    """A deleted one is found only by who asks for deleted ones."""
    with mlflow.start_run() as run:
        pass
    mlflow.delete_run(run.info.run_id)

    deleted = mlflow.search_runs(experiment_names=[experiment], run_view_type=ViewType.DELETED_ONLY)
    assert list(deleted.run_id) == [run.info.run_id]
    assert mlflow.search_runs(experiment_names=[experiment]).empty
    client.restore_run(run.info.run_id)
    assert len(mlflow.search_runs(experiment_names=[experiment])) == 1


def test_the_client_alone(experiment: str, client: MlflowClient) -> None:
    """Without the fluent API, as Lightning and Optuna do it."""
    experiment_id = mlflow.get_experiment_by_name(experiment).experiment_id
    run_id = client.create_run(experiment_id, run_name="by hand", tags={"t": "1"}).info.run_id
    client.log_metric(run_id, "loss", 0.5, step=3, timestamp=1_700_000_000_000)
    client.log_param(run_id, "lr", 0.1)
    client.set_tag(run_id, "u", "2")
    client.update_run(run_id, name="another name")
    client.set_terminated(run_id, "KILLED")

    found = client.get_run(run_id)
    assert (found.info.status, found.info.run_name) == ("KILLED", "another name")
    (point,) = client.get_metric_history(run_id, "loss")
    assert (point.step, point.timestamp) == (3, 1_700_000_000_000)


def test_asynchronous_logging(experiment: str) -> None:
    """What MLflow hands out to wait for are our receipts."""
    with mlflow.start_run() as run:
        waiting = [mlflow.log_metric("loss", 0.5, step=n, synchronous=False) for n in range(3)]
        waiting.append(mlflow.log_params({"a": 1}, synchronous=False))
        for each in waiting:
            each.wait()
        assert all(each._operation_futures[0].done() for each in waiting)
        mlflow.flush_async_logging()

    assert len(points(run.info.run_id, "loss")) == 3


def test_two_points_of_one_key_at_one_moment(experiment: str, client: MlflowClient) -> None:
    """Both arrive, although a dict of them would have one."""
    with mlflow.start_run() as run:
        metrics = [Metric("loss", value, 1_700_000_000_000, 1) for value in (0.5, 0.7)]
        client.log_batch(run.info.run_id, metrics=metrics)

    assert points(run.info.run_id, "loss") == [(1, 0.5), (1, 0.7)]


def test_a_run_is_renamed(experiment: str, client: MlflowClient) -> None:
    """Which does not end it."""
    with mlflow.start_run() as run:
        client.update_run(run.info.run_id, name="renamed")
        found = mlflow.get_run(run.info.run_id).info

    assert (found.run_name, found.status) == ("renamed", "RUNNING")


# ------------------------------------------------------------------ refusals


def test_what_is_refused_is_raised_at_the_runs_end(experiment: str) -> None:
    """A param that changes: the run ends all the same, and the rest of it arrives."""
    run = mlflow.start_run()
    mlflow.log_param("lr", 0.1)
    mlflow.log_param("lr", 0.2)
    mlflow.log_metric("loss", 0.5)

    with pytest.raises(MlflowException, match="param 'lr'") as caught:
        mlflow.end_run()

    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"
    found = mlflow.get_run(run.info.run_id)
    assert (found.info.status, found.data.metrics) == ("FINISHED", {"loss": 0.5})
    assert found.data.params == {"lr": "0.1"}


def test_a_body_that_fails_after_a_refusal(
    experiment: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its own error comes out; what was refused is a WARNING, and the run FAILED."""

    def train() -> None:
        with mlflow.start_run() as run:
            run_ids.append(run.info.run_id)
            mlflow.log_param("lr", 0.1)
            mlflow.log_param("lr", 0.2)
            raise ZeroDivisionError

    run_ids: list[str] = []
    with pytest.raises(ZeroDivisionError):
        train()
    assert f"run {run_ids[0]}: " in caplog.text
    assert "param 'lr'" in caplog.text
    assert mlflow.get_run(run_ids[0]).info.status == "FAILED"


def test_a_search_does_not_raise_what_another_run_was_refused(experiment: str) -> None:
    """The next call that changes that run does, once."""
    with mlflow.start_run() as run:
        mlflow.log_param("lr", 0.1)
        mlflow.log_param("lr", 0.2)
        assert len(mlflow.search_runs(experiment_names=[experiment])) == 1
        assert mlflow.get_run(run.info.run_id).data.params == {"lr": "0.1"}
        with pytest.raises(MlflowException, match="param 'lr'"):
            mlflow.delete_tag("mlflow.user")


def test_waiting_for_each_call(experiment: str) -> None:
    """With ``?sync=1`` a refusal is raised where MLflow's own store raises it."""
    mlflow.set_tracking_uri(f"{URI}?sync=1")
    with mlflow.start_run() as run:
        mlflow.log_param("lr", 0.1)
        with pytest.raises(MlflowException, match="param 'lr'"):
            mlflow.log_param("lr", 0.2)
        mlflow.log_metric("loss", 0.5)

    assert mlflow.get_run(run.info.run_id).data.params == {"lr": "0.1"}


def test_what_no_service_takes_is_raised_at_once(experiment: str) -> None:
    """In MLflow's words, and the run goes on."""
    with mlflow.start_run() as run:
        with pytest.raises(MlflowException) as caught:
            mlflow.log_metric("x" * 300, 1.0)
        mlflow.log_metric("loss", 0.5)

    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"
    assert mlflow.get_run(run.info.run_id).data.metrics == {"loss": 0.5}


def test_an_unknown_run(client: MlflowClient) -> None:
    """MLflow's code tells it."""
    with pytest.raises(MlflowException, match="not found") as caught:
        client.get_run("0" * 32)

    assert caught.value.error_code == "RESOURCE_DOES_NOT_EXIST"


# ------------------------------------------------------------------ outages


@pytest.mark.skipif(IS_SERVED, reason="the gateway is in another process")
def test_an_outage_is_outlasted(experiment: str, gateway: Gateway) -> None:
    """Calls go on, and when the service is back it is as if nothing had been."""
    with mlflow.start_run() as run:
        gateway.inject(Fault.reply(503), times=3, operation="log_experiment_run_batch")
        for step in range(100):
            mlflow.log_metric("loss", step / 2, step=step)

    assert points(run.info.run_id, "loss") == [(step, step / 2) for step in range(100)]
    assert mlflow.get_run(run.info.run_id).info.status == "FINISHED"


@pytest.mark.skipif(IS_SERVED, reason="the gateway is in another process")
def test_an_end_is_bounded(
    experiment: str, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While no records get through a run ends within about ``close_timeout``; they are kept."""
    monkeypatch.setenv("ADP_ASYNC_CLOSE_TIMEOUT", "1")
    mlflow.set_tracking_uri(f"{URI}?linger=0.02")
    run = mlflow.start_run()
    gateway.inject(Fault.reply(503), times=None, operation="log_experiment_run_batch")
    mlflow.log_metric("loss", 0.5)
    began = time.monotonic()

    with pytest.raises(
        MlflowException, match=r"records of run .* for 1 s: 1; they are kept"
    ) as caught:
        mlflow.end_run()

    assert time.monotonic() - began < 20
    assert caught.value.error_code == "TEMPORARILY_UNAVAILABLE"
    assert len(mlflow.search_runs(experiment_names=[experiment])) == 1  # without waiting for ever
    gateway.clear_faults()
    batch = connection_of(f"{URI}?linger=0.02").logger
    batch.flush(timeout=60.0)
    assert mlflow.get_run(run.info.run_id).info.status == "FINISHED"
    assert points(run.info.run_id, "loss") == [(0, 0.5)]


# ------------------------------------------------------------------ autologging


def test_autologging_of_scikit_learn(experiment: str) -> None:
    """Params, training metrics and the model."""
    mlflow.sklearn.autolog()
    try:
        with mlflow.start_run() as run:
            trained()
    finally:
        mlflow.sklearn.autolog(disable=True)

    found = mlflow.get_run(run.info.run_id)
    assert found.data.params["C"] == "1.0"
    assert found.data.metrics["training_accuracy_score"] > 0.5
    model = mlflow.sklearn.load_model(f"runs:/{run.info.run_id}/model")
    assert isinstance(model, LogisticRegression)


def test_autologging_of_a_booster(experiment: str) -> None:
    """A point each round, the params and the importance of the features."""
    lightgbm = pytest.importorskip("lightgbm")
    mlflow.lightgbm.autolog(log_models=False)
    _, features = trained()
    data = lightgbm.Dataset(features, features[:, 0] > 0.5)
    params = {"objective": "binary", "metric": "binary_logloss", "verbose": -1}
    try:
        with mlflow.start_run() as run:
            lightgbm.train(params, data, num_boost_round=5, valid_sets=[data])
    finally:
        mlflow.lightgbm.autolog(disable=True)

    found = mlflow.get_run(run.info.run_id)
    assert found.data.params["objective"] == "binary"
    (name,) = [key for key in found.data.metrics if key.endswith("binary_logloss")]
    assert [step for step, _ in points(run.info.run_id, name)] == list(range(5))
    assert "feature_importance_split.json" in {
        each.path for each in MlflowClient().list_artifacts(run.info.run_id)
    }


# ------------------------------------------------------------------ artifacts and datasets


def test_files_texts_and_figures(experiment: str, tmp_path: Path) -> None:
    """Logged, listed and read again; the local platform's location is a folder."""
    figures = pytest.importorskip("matplotlib.figure")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file.txt").write_text("in a folder")
    with mlflow.start_run() as run:
        mlflow.log_text("hello", "texts/hello.txt")
        mlflow.log_dict({"a": [1]}, "dict.json")
        mlflow.log_figure(figures.Figure(), "figure.png")
        mlflow.log_artifact(str(tmp_path / "folder" / "file.txt"))
        mlflow.log_artifacts(str(tmp_path / "folder"), "folder")
        mlflow.log_table({"a": [1, 2]}, "table.json")

    run_id = run.info.run_id
    found = {each.path for each in MlflowClient().list_artifacts(run_id)}
    assert found == {"texts", "dict.json", "figure.png", "file.txt", "folder", "table.json"}
    assert mlflow.artifacts.load_text(f"runs:/{run_id}/texts/hello.txt") == "hello"
    assert mlflow.artifacts.load_dict(f"runs:/{run_id}/dict.json") == {"a": [1]}
    downloaded = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="folder")
    assert (Path(downloaded) / "file.txt").read_text() == "in a folder"
    assert list(mlflow.load_table("table.json", run_ids=[run_id])["a"]) == [1, 2]


def test_datasets(experiment: str) -> None:
    """`mlflow.log_input` records what a run reads."""
    frame = pd.DataFrame({"a": [1, 2]})
    with mlflow.start_run() as run:
        mlflow.log_input(mlflow.data.from_pandas(frame, name="small"), context="training")

    (found,) = mlflow.get_run(run.info.run_id).inputs.dataset_inputs
    assert found.dataset.name == "small"
    assert {tag.key: tag.value for tag in found.tags} == {"mlflow.data.context": "training"}


# ------------------------------------------------------------------ models


def test_a_model_is_logged_and_loaded(experiment: str) -> None:
    """By the URI that log_model returns and by the run's."""
    model, features = trained()
    with mlflow.start_run() as run:
        info = log_sklearn(model, "my model")

    for uri in (info.model_uri, f"runs:/{run.info.run_id}/my model"):
        loaded = mlflow.sklearn.load_model(uri)
        assert (loaded.predict(features) == model.predict(features)).all()
    assert "mlflow.log-model.history" in mlflow.get_run(run.info.run_id).data.tags


def test_a_model_is_loaded_elsewhere(
    experiment: str, variables: dict[str, str], tmp_path: Path
) -> None:
    """The URI of log_model says where it is, also to another process."""
    model, _ = trained()
    with mlflow.start_run():
        info = log_sklearn(model, "model")
    script = """
    import mlflow, sys
    print(type(mlflow.pyfunc.load_model(sys.argv[1])).__name__)
    """

    done = in_another_process(variables, tmp_path, script, info.model_uri)

    assert "PyFuncModel" in done.stdout, done.stderr


def test_a_python_model(experiment: str) -> None:
    """Code of one's own as a model."""

    class Doubles(mlflow.pyfunc.PythonModel):
        # Without annotations: MLflow would check them.
        def predict(self, context, model_input, params=None):
            return model_input * 2

    named = {"name": "doubles"} if IS_MLFLOW_3 else {"artifact_path": "doubles"}
    with mlflow.start_run():
        info = mlflow.pyfunc.log_model(python_model=Doubles(), **named)

    frame = pd.DataFrame({"a": [1, 2]})
    assert list(mlflow.pyfunc.load_model(info.model_uri).predict(frame)["a"]) == [2, 4]


def test_a_model_is_registered_and_loaded(experiment: str) -> None:
    """Versions, the latest, stages."""
    model, features = trained()
    name = unique("registered")
    with mlflow.start_run() as run:
        info = log_sklearn(model, "model")
    first = mlflow.register_model(info.model_uri, name)
    second = mlflow.register_model(f"runs:/{run.info.run_id}/model", name, tags={"from": "run"})
    client = MlflowClient()
    client.transition_model_version_stage(name, "1", "Staging")

    assert (first.version, second.version) in (("1", "2"), (1, 2))
    assert first.run_id == run.info.run_id
    for suffix in ("1", "2", "latest", "Staging"):
        loaded = mlflow.sklearn.load_model(f"models:/{name}/{suffix}")
        assert (loaded.predict(features) == model.predict(features)).all()
    latest = client.get_latest_versions(name)
    assert {str(version.version) for version in latest} == {"1", "2"}
    (staged,) = client.get_latest_versions(name, ["Staging"])
    assert str(staged.version) == "1"


def test_logging_and_registering_at_once(experiment: str) -> None:
    """``registered_model_name=``."""
    model, _ = trained()
    name = unique("at-once")
    with mlflow.start_run():
        named = {"name": "m"} if IS_MLFLOW_3 else {"artifact_path": "m"}
        mlflow.sklearn.log_model(model, registered_model_name=name, **named)

    (version,) = MlflowClient().search_model_versions(f"name = '{name}'")
    assert version.status == "READY"


@needs_mlflow_3
def test_what_is_noted_of_a_logged_model(experiment: str, client: MlflowClient) -> None:
    """Params, tags and an end of its own are known in this process, as the API has no place."""
    with mlflow.start_run():
        model = mlflow.initialize_logged_model(name="net", params={"lr": "0.1"})
        client.log_model_params(model.model_id, {"depth": "3"})
        client.set_logged_model_tags(model.model_id, {"stage": "new", "by": "me"})
        client.delete_logged_model_tag(model.model_id, "by")
        mlflow.finalize_logged_model(model.model_id, "FAILED")

    found = client.get_logged_model(model.model_id)
    assert found.params == {"lr": "0.1", "depth": "3"}
    assert found.tags["stage"] == "new"
    assert "by" not in found.tags
    assert str(found.status) == "FAILED"


@needs_mlflow_3
def test_a_logged_model_that_nobody_knows(experiment: str, client: MlflowClient) -> None:
    """The error says how models are found."""
    with pytest.raises(MlflowException, match=r"no logged model 'm-unknown'.*runs:/") as caught:
        client.get_logged_model("m-unknown")
    assert caught.value.error_code == "RESOURCE_DOES_NOT_EXIST"


@needs_mlflow_3
def test_the_models_that_a_run_reads(experiment: str, client: MlflowClient) -> None:
    """The API has no place for them, which costs nobody a run."""
    from mlflow.entities import LoggedModelInput

    with mlflow.start_run() as run:
        client.log_inputs(run.info.run_id, models=[LoggedModelInput("m-1")])
    assert mlflow.get_run(run.info.run_id).info.status == "FINISHED"


def test_registered_models(client: MlflowClient) -> None:
    """Create, describe, tag, search, rename, delete."""
    name = unique("model")
    client.create_registered_model(name, tags={"a": "1"}, description="first")
    client.update_registered_model(name, "second")
    client.set_registered_model_tag(name, "b", "2")
    client.delete_registered_model_tag(name, "a")

    (found,) = client.search_registered_models(f"name = '{name}'", order_by=["name ASC"])
    assert (found.description, found.tags) == ("second", {"b": "2"})
    client.rename_registered_model(name, f"{name}-anew")
    assert client.get_registered_model(f"{name}-anew").name == f"{name}-anew"
    client.delete_registered_model(f"{name}-anew")
    with pytest.raises(MlflowException) as caught:
        client.get_registered_model(f"{name}-anew")
    assert caught.value.error_code == "RESOURCE_DOES_NOT_EXIST"


def test_model_versions(experiment: str, client: MlflowClient) -> None:
    """Describe, tag, find the files, delete."""
    name = unique("versions")
    with mlflow.start_run() as run:
        mlflow.log_text("x", "model/file.txt")
        source = mlflow.get_artifact_uri("model")
    client.create_registered_model(name)
    version = str(client.create_model_version(name, source, run.info.run_id).version)
    client.update_model_version(name, version, "described")
    client.set_model_version_tag(name, version, "a", "1")
    client.set_model_version_tag(name, version, "b", "2")
    client.delete_model_version_tag(name, version, "a")

    found = client.get_model_version(name, version)
    assert (found.description, found.tags, found.run_id) == (
        "described", {"b": "2"}, run.info.run_id,
    )  # fmt: skip
    assert client.get_model_version_download_uri(name, version) == source
    client.delete_model_version(name, version)
    assert not client.search_model_versions(f"name = '{name}'")


@pytest.mark.skipif(IS_SERVED, reason="sets the alias in the MLflow behind the gateway")
def test_aliases_are_read(experiment: str, platform: Any) -> None:
    """Set in MLflow itself, since the API has no operation for it."""
    model, features = trained()
    name = unique("alias")
    with mlflow.start_run():
        mlflow.register_model(log_sklearn(model, "model").model_uri, name)
    MlflowClient(platform.mlflow_url).set_registered_model_alias(name, "champion", "1")

    assert str(MlflowClient().get_model_version_by_alias(name, "champion").version) == "1"
    loaded = mlflow.sklearn.load_model(f"models:/{name}@champion")
    assert (loaded.predict(features) == model.predict(features)).all()
    with pytest.raises(MlflowException, match="no alias 'other'"):
        MlflowClient().get_model_version_by_alias(name, "other")


# ------------------------------------------------------------------ threads and processes


def test_threads_log_into_one_run(experiment: str, client: MlflowClient) -> None:
    """Each point arrives once."""
    with mlflow.start_run() as run:
        run_id = run.info.run_id

        def log(number: int) -> None:
            for step in range(200):
                client.log_metric(run_id, f"thread {number}", step / 2, step=step)

        threads = [threading.Thread(target=log, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    for number in range(8):
        assert len(points(run_id, f"thread {number}")) == 200


def _log_in_child(run_id: str, number: int) -> None:
    MlflowClient().log_metric(run_id, "children", float(number), step=number)
    MlflowClient().get_run(run_id)  # sees, and so waits for, what was logged


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_log_into_one_run(experiment: str, method: str) -> None:
    """A forked child has a session of its own; the parent's run goes on."""
    context = multiprocessing.get_context(method)
    with mlflow.start_run() as run:
        mlflow.log_metric("parent", 0.0)
        children = [
            context.Process(target=_log_in_child, args=(run.info.run_id, number))
            for number in range(2)
        ]
        for child in children:
            child.start()
        for child in children:
            child.join(120)
        assert [child.exitcode for child in children] == [0, 0]
        assert mlflow.get_run(run.info.run_id).info.status == "RUNNING"
        mlflow.log_metric("parent", 1.0, step=1)

    assert points(run.info.run_id, "children") == [(0, 0.0), (1, 1.0)]
    assert points(run.info.run_id, "parent") == [(0, 0.0), (1, 1.0)]


ENDS = {
    "normal": ("", "FINISHED"),
    "exception": ("raise ValueError", "FAILED"),
    "exit status": ("import sys; sys.exit(1)", "FAILED"),
    "Ctrl-C": ("os.kill(os.getpid(), signal.SIGINT); time.sleep(10)", "KILLED"),
}


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("starts", ["mlflow.start_run()", "MlflowClient().create_run('0')"])
def test_a_run_ends_as_its_process(
    variables: dict[str, str], tmp_path: Path, how: str, starts: str
) -> None:
    """Without ``with``; a run that only the client has made stays open at a normal end."""
    last, status = ENDS[how]
    if how == "normal" and "create_run" in starts:
        status = "RUNNING"
    script = f"""
    import os, signal, time
    import mlflow
    from mlflow import MlflowClient
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run = {starts}
    MlflowClient().log_metric(run.info.run_id, "loss", 0.5)
    print(run.info.run_id, flush=True)
    {last}
    """

    done = in_another_process(variables, tmp_path, script)

    assert done.stdout, done.stderr
    found = mlflow.get_run(done.stdout.split()[0])
    assert (found.info.status, found.data.metrics) == (status, {"loss": 0.5})


def test_nothing_is_lost_by_sigkill(variables: dict[str, str], tmp_path: Path) -> None:
    """3,000 calls, then SIGKILL: after the next process 3,000 points are there, once each."""
    script = """
    import os, signal, time
    import mlflow
    from adp_async.integrations.mlflow.connection import connection_of
    from tests.spools import all_written
    with mlflow.start_run() as run:
        for step in range(3000):
            mlflow.log_metric("loss", step / 2, step=step)
        while not all_written(connection_of("aidp://")._session.session):
            time.sleep(0.01)
        print(run.info.run_id, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    slow = {"ADP_ASYNC_MAX_IN_FLIGHT": "1", "ADP_ASYNC_LINGER": "60"}  # MLflow takes 0.2 s a batch
    durable = {"ADP_ASYNC_SPOOL_INTERVAL": "0.02", "ADP_ASYNC_SPOOL": str(tmp_path / "spool")}
    lasting = {**variables, **slow, **durable}
    killed = in_another_process(lasting, tmp_path, script)
    run_id = killed.stdout.split()[0]
    before = len(points(run_id, "loss"))
    script = """
    import mlflow, sys, time
    client = mlflow.MlflowClient()
    deadline = time.monotonic() + 60
    while len(client.get_metric_history(sys.argv[1], "loss")) < 3000:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    """
    in_another_process(lasting, tmp_path, script, run_id)

    assert before <= 3000  # a quick machine may have delivered all of it
    assert points(run_id, "loss") == [(step, step / 2) for step in range(3000)]


def test_mlflows_command_line(variables: dict[str, str], experiment: str, tmp_path: Path) -> None:
    """``mlflow runs list`` finds the plugin as well."""
    with mlflow.start_run(run_name="on the list"):
        pass
    experiment_id = mlflow.get_experiment_by_name(experiment).experiment_id
    done = subprocess.run(
        [sys.executable, "-m", "mlflow", "runs", "list", "--experiment-id", experiment_id],
        env={**variables, "MLFLOW_TRACKING_URI": URI, "MLFLOW_DISABLE_TELEMETRY": "true"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert "on the list" in done.stdout, done.stderr


# ------------------------------------------------------------------ the URI


def test_the_registry_uri_follows() -> None:
    """It is made explicit, so that MLflow doesn't look for a Spark session on every call."""
    MlflowClient().search_experiments(max_results=1)
    mlflow.tracking._get_store.__globals__[
        "_tracking_store_registry"
    ]._get_store_with_resolved_uri.cache_clear()
    MlflowClient()

    assert os.environ["MLFLOW_REGISTRY_URI"] == URI


def test_a_registry_uri_of_the_users_stays(tmp_path: Path) -> None:
    """Only what follows the tracking URI is made explicit."""
    elsewhere = f"sqlite:///{tmp_path}/registry.db"
    mlflow.set_registry_uri(elsewhere)
    mlflow.tracking._get_store.__globals__[
        "_tracking_store_registry"
    ]._get_store_with_resolved_uri.cache_clear()
    mlflow.tracking._get_store()

    assert mlflow.get_registry_uri() == elsewhere


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("aidp://?linger=soon", "linger must be seconds"),
        ("aidp://?sync=maybe", "sync must be 1 or 0"),
        ("aidp://?colour=red", "'colour' is not an option"),
        ("aidp://platform", "not 'platform'"),
        ("aidp:///workspace/more", "must look like aidp://"),
        ("aidp://?profile=NOWHERE", "'NOWHERE' does not exist"),
    ],
)
def test_a_wrong_uri_is_named(uri: str, problem: str) -> None:
    """With what it should be."""
    with pytest.raises(MlflowException, match=problem) as caught:
        MlflowClient(uri).search_experiments()

    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"


# ------------------------------------------------------------------ what cannot work, and says so


@needs_mlflow_3
def test_traced_functions_run(experiment: str) -> None:
    """``@mlflow.trace`` does no harm; of the traces nothing is kept."""

    @mlflow.trace
    def double(number: int) -> int:
        return number * 2

    with mlflow.start_run():
        assert [double(number) for number in range(3)] == [0, 2, 4]


UNPUBLISHED = {
    "aliases are set": lambda c, name: c.set_registered_model_alias(name, "a", "1"),
    "aliases are deleted": lambda c, name: c.delete_registered_model_alias(name, "a"),
    "traces are searched": lambda c, name: c.search_traces(["0"]),
    "traces are deleted": lambda c, name: c.delete_traces("0", max_timestamp_millis=1),
    "models without a run": lambda c, name: mlflow.initialize_logged_model(name=name),
    "outputs of other runs": lambda c, name: _log_foreign_output(c),
    "logged models are deleted": lambda c, name: c.delete_logged_model("m-0.model"),
    "prompts": lambda c, name: mlflow.genai.register_prompt(f"{name}-p", "{{a}}"),
    "webhooks": lambda c, name: c.list_webhooks(),
    "evaluation datasets": lambda c, name: mlflow.genai.create_dataset(name=name),
}
MISSING_IN_MLFLOW_2 = {
    "models without a run", "outputs of other runs", "logged models are deleted", "prompts",
    "webhooks", "evaluation datasets",
}  # fmt: skip


def _log_foreign_output(client: MlflowClient) -> None:
    from mlflow.entities import LoggedModelOutput

    run_id = client.create_run("0").info.run_id
    client.log_outputs(run_id, [LoggedModelOutput("m-1234.model", step=0)])


@pytest.mark.parametrize("what", UNPUBLISHED)
def test_what_the_api_does_not_publish(what: str, client: MlflowClient) -> None:
    """An error that says so, and what to do instead."""
    if what in MISSING_IN_MLFLOW_2 and not IS_MLFLOW_3:
        pytest.skip("MLflow 2 has no such function")
    name = unique("unpublished")
    client.create_registered_model(name)

    with pytest.raises(MlflowException, match="has no such operation") as caught:
        UNPUBLISHED[what](client, name)

    assert caught.value.error_code == "NOT_IMPLEMENTED"


@pytest.mark.parametrize(
    "location",
    ["mlflow-artifacts:/runs", "xyz://bucket/runs"],
)
def test_artifacts_that_cannot_be_reached(client: MlflowClient, location: str) -> None:
    """Nothing is written to the local disk in place of it; metrics are not concerned."""
    experiment_id = client.create_experiment(unique("elsewhere"), artifact_location=location)
    run_id = client.create_run(experiment_id).info.run_id
    client.log_metric(run_id, "loss", 0.5)

    for reach in (
        lambda: client.log_text(run_id, "text", "file.txt"),
        lambda: client.list_artifacts(run_id),
        lambda: mlflow.artifacts.load_text(f"runs:/{run_id}/file.txt"),
    ):
        with pytest.raises(MlflowException, match="artifact_location") as caught:
            reach()
        assert location in str(caught.value)
    assert client.get_run(run_id).data.metrics == {"loss": 0.5}


def test_a_mounted_volume_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the platform's own notebooks."""
    from adp_async.integrations.mlflow import artifacts

    monkeypatch.setattr(artifacts, "_VOLUMES", f"{tmp_path}/Volumes/")
    monkeypatch.setattr(artifacts, "_VOLUME_DEPTH", len(tmp_path.parts) + 3)
    uri = f"{tmp_path}/Volumes/catalog/schema/volume/run"

    assert artifacts.reachable_uri(uri) == f"aidp-artifact:{uri}"
    (tmp_path / "Volumes" / "catalog" / "schema" / "volume").mkdir(parents=True)
    assert artifacts.reachable_uri(uri) == uri
