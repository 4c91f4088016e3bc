"""MLflow code within ``with handle.attach()``, in this process: it needs no server and no key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlflow
import pytest

from adp_async.integrations.mlflow.connection import connection_of
from adp_async.testing import FakeBlockingSession

if TYPE_CHECKING:
    from collections.abc import Iterator

URI = "aidp://"


@pytest.fixture(autouse=True)
def _mlflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_RUN_ID"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    # The experiment that a test before has set is another platform's.
    monkeypatch.setattr("mlflow.tracking.fluent._active_experiment_id", None)
    mlflow.set_tracking_uri(URI)
    yield
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)


def test_a_shared_run_keeps_its_status() -> None:
    """What a worker's MLflow logs arrives; the run is ended by the process that shares it."""
    with FakeBlockingSession() as fake:
        with fake.start_run() as run, run.shared() as handle, handle.attach():
            with mlflow.start_run(run_id=run.run_id):
                mlflow.log_metric("loss", 0.5, step=3)
            assert fake.session.received(run.run_id).info["status"] == "RUNNING"
        received = fake.session.received(run.run_id)
    assert [(each.key, each.step) for each in received.metrics] == [("loss", 3)]
    assert received.info["status"] == "FINISHED"
    own = connection_of(URI)._session
    assert own is None or not own.is_open, "this process has opened no session of its own"
