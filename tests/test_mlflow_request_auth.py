"""MLflow's own REST client, signed and translated by ``MLFLOW_TRACKING_AUTH=aidp``."""

from __future__ import annotations

import itertools
import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
import pytest
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from adp_async.integrations.mlflow import request_auth
from adp_async.local import Fault
from tests.children import environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adp_async.local import Gateway, LocalPlatform

pytestmark = [pytest.mark.mlflow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def _https(
    platform: LocalPlatform, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """MLflow's own store, pointed at the service."""
    for name, value in environment(platform).items():
        if name.startswith("OCI_"):
            monkeypatch.setenv(name, value)
    uri = (
        f"{platform.endpoint}/20260430/aiDataPlatforms/{platform.platform_id}"
        f"/workspaces/{platform.workspace}/mlops"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_TRACKING_AUTH", "aidp")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "")  # what MLflow sets is taken back
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID")
    request_auth.signed_by_oci.cache_clear()
    mlflow.set_registry_uri("")  # that of the tests before is taken back
    mlflow.set_tracking_uri(uri)
    yield
    while mlflow.active_run() is not None:
        mlflow.end_run()
    mlflow.set_tracking_uri(None)
    request_auth.signed_by_oci.cache_clear()


def unique(name: str) -> str:
    return f"{name}-{time.time_ns()}"


def test_a_run_is_logged_and_found() -> None:
    """An experiment by its name, params, metrics, tags, a dataset, a search."""
    name = unique("by https")
    mlflow.set_experiment(name)
    with mlflow.start_run(run_name="it's 100 %") as run:
        mlflow.log_param("lr", 0.1)
        mlflow.log_metrics({"loss": 0.5, "nan": float("nan")}, step=1)
        mlflow.set_tag("t", "ü")
        mlflow.log_input(mlflow.data.from_pandas(pd.DataFrame({"a": [1]}), name="small"))

    found = mlflow.search_runs(experiment_names=[name], filter_string="tags.t LIKE '%ü%'")
    assert list(found.run_id) == [run.info.run_id]
    again = mlflow.get_run(run.info.run_id)
    assert (again.info.status, again.info.run_name) == ("FINISHED", "it's 100 %")
    assert [each.dataset.name for each in again.inputs.dataset_inputs] == ["small"]


def test_errors_have_mlflows_code() -> None:
    """The service's ``code`` becomes ``error_code``: an unknown experiment is None."""
    name = unique("twice")
    assert mlflow.get_experiment_by_name(name) is None
    mlflow.create_experiment(name)

    with pytest.raises(MlflowException) as caught:
        mlflow.create_experiment(name)

    assert caught.value.error_code == "RESOURCE_ALREADY_EXISTS"


def test_the_registry_is_the_platforms() -> None:
    """Its paths have no workspace, and PATCH and DELETE are POST."""
    client, name = MlflowClient(), unique("model")
    client.create_registered_model(name, tags={"a": "1"})
    client.update_registered_model(name, "described")
    client.delete_registered_model_tag(name, "a")

    (found,) = client.search_registered_models(f"name = '{name}'", order_by=["name ASC"])
    assert (found.description, found.tags) == ("described", {})
    client.delete_registered_model(name)
    with pytest.raises(MlflowException) as caught:
        client.get_registered_model(name)
    assert caught.value.error_code == "RESOURCE_DOES_NOT_EXIST"


def test_every_attempt_is_signed(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """What urllib3 repeats has a date and a signature of its own, and the token it had."""
    seconds = itertools.count()
    monkeypatch.setattr(
        request_auth,
        "formatdate",
        lambda **_: formatdate(time.time() + next(seconds), usegmt=True),
    )
    sign, seen = request_auth.SignedByOci.sign, []

    def noted(auth: Any, request: Any, headers: Any) -> None:
        sign(auth, request, headers)
        seen.append({name: headers[name] for name in headers})

    monkeypatch.setattr(request_auth.SignedByOci, "sign", noted)
    gateway.inject(Fault.reply(503), times=2)

    created = MlflowClient().create_experiment(unique("repeated"))

    assert created
    assert len(seen) == 3
    for name, kinds in (("date", 3), ("authorization", 3), ("opc-retry-token", 1)):
        assert len({each[name] for each in seen}) == kinds, name


def test_a_lost_reply_does_nothing_twice(gateway: Gateway) -> None:
    """The request is sent again under its retry token, and so not refused as a second one."""
    name = unique("lost")
    gateway.inject(Fault.reply(503, after_write=True))

    created = MlflowClient().create_experiment(name)

    assert MlflowClient().get_experiment(created).name == name


def test_a_refused_token_is_renewed_once() -> None:
    """A signer that can renew itself is told to after a 401, and the request is sent again."""
    platform_signer = request_auth.signed_by_oci()._signer

    class Expired:
        renewals = 0

        def __call__(self, request: Any) -> None:
            platform_signer(request)
            if not self.renewals:
                request.headers["authorization"] = request.headers["authorization"][:-9] + '=bad"'

        def refresh_security_token(self) -> None:
            self.renewals += 1

    signer = Expired()
    auth = request_auth.SignedByOci(signer)
    url = f"{mlflow.get_tracking_uri()}/api/2.0/mlflow/experiments/get"

    reply = requests.get(url, params={"experiment_id": "0"}, auth=auth, timeout=30)

    assert (reply.status_code, signer.renewals) == (200, 1)


def test_a_redirect_is_not_followed(gateway: Gateway) -> None:
    """It would replay the signature at another target."""
    gateway.inject(Fault.reply(307, body="moved", headers={"location": "http://127.0.0.1:9/"}))

    with pytest.raises(MlflowException, match="307"):
        MlflowClient().get_experiment("0")


def test_what_is_not_published_says_so() -> None:
    """The same errors as on ``aidp://``; logged models work there."""
    client, name = MlflowClient(), unique("alias")
    client.create_registered_model(name)

    with pytest.raises(MlflowException, match="has no such operation"):
        client.set_registered_model_alias(name, "a", "1")
    with pytest.raises(MlflowException, match="aidp://"):
        mlflow.initialize_logged_model(name="model")
