"""MLflow's artifacts in Object Storage and in volumes, through ``aidp://``.

The tracking server is a real MLflow; Object Storage and Volumes are the local platform's stand-ins.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pytest
from matplotlib.figure import Figure
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sklearn.linear_model import LogisticRegression

from adp_async.integrations.mlflow.connection import connection_of
from adp_async.local import Fault
from tests.children import environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adp_async.local import Gateway, LocalPlatform

pytestmark = [pytest.mark.mlflow, pytest.mark.filterwarnings("ignore")]

URI = "aidp://"


@pytest.fixture(autouse=True)
def _mlflow(
    platform: LocalPlatform, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    for name, value in environment(platform).items():
        if name.startswith(("AIDP_", "OCI_", "ADP_ASYNC_")):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", URI)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("MLFLOW_REGISTRY_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    mlflow.set_tracking_uri(URI)
    yield
    while mlflow.active_run() is not None:
        mlflow.end_run()
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)


@pytest.fixture(scope="module", autouse=True)
def _session(platform: LocalPlatform) -> Iterator[None]:
    """It is closed before the platform is."""
    yield
    session = connection_of(URI)._session
    if session is not None:
        session.close()


LOCATIONS = ["oci://artifacts@local/mlflow", "/Volumes/local/default/artifacts/mlflow"]


@pytest.fixture(params=LOCATIONS, ids=["oci", "volume"])
def experiment(request: pytest.FixtureRequest) -> str:
    """An experiment whose artifacts belong there, which is the active one."""
    name = f"{request.node.name[:40]} {time.time_ns()}"
    experiment_id = mlflow.create_experiment(name, artifact_location=request.param)
    mlflow.set_experiment(name)
    return experiment_id


def test_files_texts_and_figures(experiment: str, platform: LocalPlatform, tmp_path: Path) -> None:
    """They arrive, are listed, and come back; nothing is written to this machine's disk."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "one.bin").write_bytes(b"one")
    (tmp_path / "in" / "deep" / "two.bin").write_bytes(b"two")
    figure = Figure()
    figure.subplots().plot([1, 2])
    with mlflow.start_run() as run:
        mlflow.log_artifact(str(tmp_path / "in" / "one.bin"))
        mlflow.log_artifacts(str(tmp_path / "in"), "all")
        mlflow.log_text("größer", "notes/a b.txt")
        mlflow.log_dict({"lr": 0.1}, "config.json")
        mlflow.log_figure(figure, "plots/loss.png")

    client, run_id = MlflowClient(), run.info.run_id
    root = sorted((each.path, each.is_dir) for each in client.list_artifacts(run_id))
    assert root == [
        ("all", True),
        ("config.json", False),
        ("notes", True),
        ("one.bin", False),
        ("plots", True),
    ]
    assert [each.path for each in client.list_artifacts(run_id, "all")] == [
        "all/deep",
        "all/one.bin",
    ]
    assert client.list_artifacts(run_id, "one.bin") == []
    assert mlflow.artifacts.load_text(f"runs:/{run_id}/notes/a b.txt") == "größer"
    assert mlflow.artifacts.load_dict(f"runs:/{run_id}/config.json") == {"lr": 0.1}
    folder = Path(client.download_artifacts(run_id, "all", str(tmp_path)))
    assert (folder / "deep" / "two.bin").read_bytes() == b"two"
    published = run.info.artifact_uri.removeprefix("aidp-artifact:")
    assert len(platform.artifacts.names(published)) == 6
    assert not Path("/Volumes").exists()


def test_a_model_is_logged_registered_and_loaded(experiment: str) -> None:
    """By its run and by its name, as with any other MLflow."""
    features = np.random.default_rng(0).random((40, 3))
    model = LogisticRegression().fit(features, features[:, 0] > 0.5)
    named: dict[str, Any] = {"name": "model"}
    if mlflow.__version__.startswith("2."):
        named = {"artifact_path": "model"}
    name = f"digits-{time.time_ns()}"
    with mlflow.start_run() as run:
        mlflow.sklearn.log_model(model, registered_model_name=name, **named)

    expected = model.predict(features).tolist()
    for uri in (f"runs:/{run.info.run_id}/model", f"models:/{name}/1"):
        loaded = mlflow.sklearn.load_model(uri)
        assert loaded.predict(features).tolist() == expected


def test_what_fails_is_raised(experiment: str, gateway: Gateway) -> None:
    """At the call, in MLflow's words, and not once more at the end."""
    gateway.inject(Fault.reply(403, "NotAllowed"), times=None, operation="put_object")
    with mlflow.start_run() as run:
        with pytest.raises(MlflowException, match="NotAllowed") as caught:
            mlflow.log_text("x", "x.txt")
        with pytest.raises(MlflowException):
            mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/x.txt")

    assert caught.value.error_code == "PERMISSION_DENIED"


@pytest.mark.parametrize("location", ["oci://nobody@local/x", "/Volumes/nobody/has/it"])
def test_what_is_not_there(location: str) -> None:
    """A bucket or a volume that does not exist is an error, not a folder of this machine."""
    name = f"nowhere {time.time_ns()}"
    mlflow.create_experiment(name, artifact_location=location)
    mlflow.set_experiment(name)
    with mlflow.start_run(), pytest.raises(MlflowException) as caught:
        mlflow.log_text("x", "x.txt")

    assert caught.value.error_code == "RESOURCE_DOES_NOT_EXIST"
    assert not Path("/Volumes").exists()


def test_another_tracking_server(platform: LocalPlatform, tmp_path: Path) -> None:
    """``oci:`` works wherever MLflow tracks; the usual settings say who signs."""
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    uri = f"oci://artifacts@local/other/{time.time_ns()}"
    experiment_id = mlflow.create_experiment("elsewhere", artifact_location=uri)
    with mlflow.start_run(experiment_id=experiment_id) as run:
        mlflow.log_text("x", "x.txt")

    assert platform.artifacts.read(f"{run.info.artifact_uri}/x.txt") == b"x"
    assert os.listdir(tmp_path) == ["mlflow.db"]


def test_deleting_says_what_to_do() -> None:
    """The repository deletes nothing."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    repository = get_artifact_repository("oci://artifacts@local/x")
    with pytest.raises(MlflowException, match="Delete them in the bucket"):
        repository.delete_artifacts("y")
