"""The local platform over TLS: its certificates, and clients that nobody here wrote."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import certifi
import pytest
from attrs import frozen
from cryptography import x509
from typer.testing import CliRunner

from adp_async import blocking
from adp_async.auth import ApiKey
from adp_async.cli import app
from adp_async.errors import ConnectionFailed
from adp_async.local import LocalPlatform
from adp_async.local import certificates as module
from adp_async.local.certificates import Certificates
from adp_async.local.objects import BUCKET
from tests.children import HANDED_ON, ROOT, not_outlived_by

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

#: Seconds that a platform with MLflow may take to start on a busy machine.
PATIENCE = 180.0
AIDP = Path(sys.executable).with_name("aidp")
SERVE = [sys.executable, "-c", "from adp_async.cli import main; main()", "serve"]


@pytest.fixture(autouse=True)
def _nobodys_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith(("_proxy", "_ca_bundle", "ssl_cert_file")):
            monkeypatch.delenv(name)


# ------------------------------------------------------------------ certificates


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_private_keys_are_for_the_owner_only(tmp_path: Path) -> None:
    """One file has a private key, the server's, and nobody else may read it."""
    files = Certificates.load_or_make(tmp_path)

    private = [path for path in tmp_path.iterdir() if b"PRIVATE KEY" in path.read_bytes()]
    assert private == [files.server]
    assert stat.S_IMODE(files.server.stat().st_mode) == 0o600
    key = ssl.create_default_context(cafile=files.authority)
    assert key.cert_store_stats() == {"x509": 1, "crl": 0, "x509_ca": 1}


def test_the_authority_signs_nothing_more(tmp_path: Path) -> None:
    """The certificate of the server is not one that could sign others."""
    files = Certificates.load_or_make(tmp_path)
    server, authority = certificate(files.server), certificate(files.authority)

    server.verify_directly_issued_by(authority)
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert server.public_key() != authority.public_key()


def test_a_platform_keeps_its_certificates(tmp_path: Path) -> None:
    """Clients that trust it still do after a restart."""
    first = Certificates.load_or_make(tmp_path)
    before = first.authority.read_bytes(), first.server.read_bytes()
    second = Certificates.load_or_make(tmp_path)

    assert (second.authority.read_bytes(), second.server.read_bytes()) == before


@pytest.mark.parametrize(("days", "is_kept"), [(334, True), (336, False)])
def test_certificates_are_renewed_in_time(
    days: int, is_kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A month before they expire, since a platform may run for long."""
    before = Certificates.load_or_make(tmp_path).server.read_bytes()
    today = datetime.now(UTC)

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return today + timedelta(days=days)

    monkeypatch.setattr(module, "datetime", Later)

    assert (Certificates.load_or_make(tmp_path).server.read_bytes() == before) == is_kept


@pytest.mark.parametrize("lost", ["authority", "server"])
def test_half_of_the_files_is_made_anew(lost: str, tmp_path: Path) -> None:
    """Both, so that they belong together."""
    files = Certificates.load_or_make(tmp_path)
    getattr(files, lost).unlink()

    files = Certificates.load_or_make(tmp_path)

    certificate(files.server).verify_directly_issued_by(certificate(files.authority))


def test_the_public_authorities_stay_trusted(tmp_path: Path) -> None:
    """A program that is pointed at the platform may still download from elsewhere."""
    files = Certificates.load_or_make(tmp_path)

    public = ssl.create_default_context(cafile=certifi.where()).cert_store_stats()["x509"]
    trusted = ssl.create_default_context(cafile=files.trusted)
    assert trusted.cert_store_stats()["x509"] == public + 1


# ------------------------------------------------------------------ in code


@pytest.fixture(scope="module")
def secure(
    api_key: RSAPrivateKey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalPlatform]:
    """A platform over TLS without MLflow, entered without an event loop."""
    directory = tmp_path_factory.mktemp("secure")
    with LocalPlatform(directory, mlflow=False, tls=True, key=api_key) as platform:
        yield platform


async def test_a_session_over_tls(secure: LocalPlatform) -> None:
    """What is logged arrives, and so does what is uploaded."""
    assert secure.endpoint == f"https://127.0.0.1:{secure.gateway.port}"
    async with secure.session() as session, session.start_run("secure") as run:
        run.log_metric("loss", 0.5, step=1)
        run.log_text("hello", "notes/a.txt")

    received = secure.gateway.received(str(run.run_id))
    assert [point.value for point in received.metrics] == [0.5]
    stored = [each for each in secure.artifacts.listed(BUCKET) if each.name.endswith("notes/a.txt")]
    assert [each.size for each in stored] == [5]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_both_names_of_this_machine(secure: LocalPlatform, host: str) -> None:
    """The certificate holds for the address and for the name."""
    endpoint = f"https://{host}:{secure.gateway.port}"
    async with secure.session(endpoint=endpoint) as session:
        assert await session.runs.create(run_name="named")


async def test_the_authority_has_to_be_trusted(secure: LocalPlatform) -> None:
    """Nothing is taken on trust: the default certificates don't know the platform's."""
    async with secure.session(ca_bundle=certifi.where()) as session:
        with pytest.raises(ConnectionFailed, match="certificate is not accepted"):
            await session.runs.create(run_name="distrustful")


async def test_plain_http_is_refused(secure: LocalPlatform) -> None:
    """There is no second door."""
    async with aiohttp.ClientSession() as http:
        with pytest.raises(aiohttp.ClientError):
            await http.get(f"http://127.0.0.1:{secure.gateway.port}/")


async def test_an_outage_over_tls(secure: LocalPlatform) -> None:
    """Down resets the connections, up listens with the same certificate."""
    async with secure.session() as session:
        run_id = (await session.runs.create(run_name="outage")).info.run_id
        await secure.gateway.down()
        session.attach_run(run_id).log_metric("loss", 0.5, step=1)
        await secure.gateway.up()
        await session.logger.flush()

    assert len(secure.gateway.received(run_id).metrics) == 1


def platforms() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "local platform"}


def test_plain_with(api_key: RSAPrivateKey) -> None:
    """The platform runs in a thread of its own, and everything of it is gone afterwards."""
    before = platforms()
    with LocalPlatform(mlflow=False, key=api_key) as platform:
        folder = platform.directory
        assert folder is not None
        assert platform.ca_bundle is None
        session = blocking.Session(
            platform.platform_id,
            platform.workspace,
            endpoint=platform.endpoint,
            auth=ApiKey(config_file=platform.config_file),
            spool=False,
        )
        with session, session.start_run("plain") as run:
            run.log_metric("loss", 0.5, step=1)
        assert len(platform.gateway.received(str(run.run_id)).metrics) == 1
        with pytest.raises(RuntimeError, match="already started"), platform:
            pass
        port = platform.gateway.port

    assert not folder.exists()
    assert platforms() == before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_plain_with_raises_what_start_raises(api_key: RSAPrivateKey) -> None:
    """A port that is taken, and nothing stays behind."""
    before = platforms()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        platform = LocalPlatform(mlflow=False, key=api_key, port=taken.getsockname()[1])
        with pytest.raises(OSError, match="in use"), platform:
            pass

    assert platforms() == before


# ------------------------------------------------------------------ adp-async serve


@frozen
class Served:
    """A platform of ``adp-async serve --tls``: the file *env*, and the variables in it."""

    env: Path
    variables: dict[str, str]


def handed_on() -> dict[str, str]:
    """A shell in which nothing of ours is set, not even the folder for spools."""
    ours = {name: os.environ[name] for name in HANDED_ON if name in os.environ}
    return {**ours, "PYTHONPATH": str(ROOT)}


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Served]:
    """Run ``adp-async serve --tls`` with *options* until the block ends."""
    env = folder / "env"
    with (
        (folder / "said").open("w") as said,
        subprocess.Popen(
            [*SERVE, "--tls", "--port", "0", "--env", str(env), *options],
            stdout=said,
            stderr=subprocess.STDOUT,
        ) as process,
        not_outlived_by(process),
    ):
        deadline = time.monotonic() + PATIENCE
        while not env.exists():
            assert process.poll() is None, (folder / "said").read_text()
            assert time.monotonic() < deadline, (folder / "said").read_text()
            time.sleep(0.05)
        yield Served(env, read_exports(env))
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0, (folder / "said").read_text()


def read_exports(env: Path) -> dict[str, str]:
    """The variables of *env*, as a shell understands them."""
    words = shlex.split(env.read_text(), comments=True)
    return dict(word.split("=", 1) for word in words if word != "export")


LOGS = """
import adp_async
with adp_async.blocking.start_run("first") as run:
    run.log_metric("loss", 0.5)
print(run.status)
"""


def test_env_is_written_when_the_platform_is_ready(tmp_path: Path) -> None:
    """A shell that has read the file needs nothing else; it goes with the platform."""
    with serving(tmp_path, "--no-mlflow") as served:
        command = f". {served.env} && {sys.executable} -W error -c {shlex.quote(LOGS)}"
        environment = {**handed_on(), "ADP_ASYNC_SPOOL": str(tmp_path / "spool")}
        done = subprocess.run(
            ["sh", "-c", command], env=environment, capture_output=True, text=True, timeout=PATIENCE
        )
        assert (done.stdout, done.returncode) == ("FINISHED\n", 0), done.stderr
        assert stat.S_IMODE(served.env.stat().st_mode) == 0o600

    assert not served.env.exists()


def test_env_spares_a_file_of_somebody_else(tmp_path: Path) -> None:
    """A mistyped name costs nothing."""
    profile = tmp_path / "profile"
    profile.write_text("export PATH=/bin\n")

    result = CliRunner().invoke(app, ["serve", "--no-mlflow", "--env", str(profile)])

    assert result.exit_code == 1
    assert f"--env: {profile} exists" in result.stderr
    assert profile.read_text() == "export PATH=/bin\n"


def test_env_in_a_folder_that_is_missing(tmp_path: Path) -> None:
    """It is said before anything is started."""
    result = CliRunner().invoke(app, ["serve", "--env", str(tmp_path / "no" / "env")])

    assert result.exit_code == 1
    assert result.stderr == f"adp-async: --env: {tmp_path}/no is not a folder\n"


def test_the_default_port_is_fixed() -> None:
    """And stands in the help."""
    result = CliRunner().invoke(app, ["serve", "--help"])

    assert re.search(r"--port .*8237", result.output, re.DOTALL)


# ------------------------------------------------------------------ Oracle's own clients

WRITES = """
import json
import mlflow
from sklearn.linear_model import LogisticRegression

mlflow.set_tracking_uri("aidp://")
experiment = mlflow.set_experiment("over TLS")
with mlflow.start_run(run_name="läuft 'gut'") as run:
    mlflow.log_params({"lr": 0.1, "layers": [3, 4]})
    mlflow.set_tag("kind", "test")
    for step in range(100):
        mlflow.log_metric("loss", 1 / (step + 1), step)
    with mlflow.start_run(run_name="child", nested=True):
        mlflow.log_metric("accuracy", 0.9)
    model = LogisticRegression().fit([[0.0], [1.0]], [0, 1])
    named = {"name": "model"} if mlflow.__version__ >= "3" else {"artifact_path": "model"}
    mlflow.sklearn.log_model(model, registered_model_name="digits", **named)
try:
    with mlflow.start_run(run_name="fails"):
        raise ArithmeticError
except ArithmeticError:
    pass
print(json.dumps({"experiment_id": experiment.experiment_id, "run_id": run.info.run_id}))
"""


@frozen
class Oracle:
    """What MLflow code has written, and the means to read it in another way."""

    variables: dict[str, str]
    written: dict[str, str]

    @property
    def where(self) -> tuple[str, str]:
        return self.variables["AIDP_INSTANCE_ID"], self.variables["AIDP_WORKSPACE"]

    def command(self, name: str, *arguments: str) -> Any:
        """What ``aidp mlops`` answers, run from the environment that `serve` gives."""
        done = subprocess.run(
            [AIDP, "mlops", name, *arguments],
            env={**handed_on(), **self.variables},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout.removeprefix("Response:"))["data"]

    def client(self) -> Any:
        """``MLOpsClient`` with the config file of `serve`, without retries."""
        import oci
        from aidp_python_client.aidataplatform_dp import MLOpsClient

        config = oci.config.from_file(self.variables["OCI_CONFIG_FILE"])
        return MLOpsClient(
            config,
            service_endpoint=f"{self.variables['AIDP_ENDPOINT']}/20260430",
            retry_strategy=oci.retry.NoneRetryStrategy(),
        )


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Oracle]:
    """A platform with MLflow over TLS, into which a training script has written."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "train.py").write_text(WRITES)
    with serving(folder) as served:
        ours = {"ADP_ASYNC_SPOOL": str(folder / "spool"), "MLFLOW_DISABLE_TELEMETRY": "true"}
        done = subprocess.run(
            [sys.executable, "train.py"],
            env={**handed_on(), **served.variables, **ours},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stderr
        yield Oracle(served.variables, json.loads(done.stdout.splitlines()[-1]))


def check_run(run: Any) -> None:
    """What both clients tell of the run, in the API's words."""
    info, data = run["info"], run["data"]
    assert (info["run_name"], info["status"]) == ("läuft 'gut'", "FINISHED")
    assert info["end_time"] >= info["start_time"] > 1_700_000_000_000
    assert [(each["key"], each["value"], each["step"]) for each in data["metrics"]] == [
        ("loss", 0.01, 99)
    ]
    assert {each["key"]: each["value"] for each in data["params"]} == {
        "lr": "0.1",
        "layers": "[3, 4]",
    }
    assert {"kind", "mlflow.user", "mlflow.source.name"} <= {each["key"] for each in data["tags"]}


LOSSES = [(step, 1 / (step + 1)) for step in range(100)]
STATUSES = {"läuft 'gut'": "FINISHED", "child": "FINISHED", "fails": "FAILED"}


@pytest.mark.mlflow
@pytest.mark.skipif(not AIDP.exists(), reason="the command aidp (aidp-cli) is not installed")
def test_oracles_command_line_reads_what_mlflow_wrote(oracle: Oracle) -> None:
    """Experiments, runs, metrics and the registered model, with nothing but the exports."""
    workspace = oracle.where[1]
    run_id, experiment_id = oracle.written["run_id"], oracle.written["experiment_id"]
    by_name = oracle.command("get-experiment-by-name", workspace, "--experiment-name", "over TLS")[
        "experiment"
    ]
    assert by_name["experiment_id"] == experiment_id
    listed = oracle.command("list-experiments", workspace, "--body", "{}")["experiments"]
    assert {each["name"] for each in listed} == {"Default", "over TLS"}

    body = json.dumps({"experiment_ids": [experiment_id]})
    runs = oracle.command("list-experiment-runs", workspace, "--body", body)["runs"]
    assert {run["info"]["run_name"]: run["info"]["status"] for run in runs} == STATUSES
    check_run(oracle.command("get-experiment-run-by-id", workspace, "--run-id", run_id)["run"])
    history = oracle.command(
        "get-experiment-run-metric-history", workspace, "--run-id", run_id, "--metric-key", "loss"
    )["metrics"]
    assert [(each["step"], each["value"]) for each in history] == LOSSES

    model = oracle.command("get-registered-model", "--name", "digits")["registered_model"]
    assert [each["version"] for each in model["latest_versions"]] == ["1"]
    (version,) = oracle.command("list-model-versions", "--filter", "name = 'digits'")[
        "model_versions"
    ]
    assert (version["run_id"], version["status"]) == (run_id, "READY")


@pytest.mark.mlflow
def test_oracles_client_reads_what_mlflow_wrote(
    oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same, with the library that programs use."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", oracle.variables["REQUESTS_CA_BUNDLE"])
    from aidp_python_client.aidataplatform_dp import models
    from oci.util import to_dict

    client, where = oracle.client(), oracle.where
    run_id, experiment_id = oracle.written["run_id"], oracle.written["experiment_id"]
    experiment = client.get_experiment_by_name(*where, "over TLS").data.experiment
    assert experiment.experiment_id == experiment_id

    details = models.ListExperimentRunsDetails(experiment_ids=[experiment_id])
    runs = client.list_experiment_runs(*where, details).data.runs
    assert {run.info.run_name: run.info.status for run in runs} == STATUSES
    check_run(to_dict(client.get_experiment_run_by_id(*where, run_id).data.run))
    history = client.get_experiment_run_metric_history(*where, run_id, "loss").data.metrics
    assert [(each.step, each.value) for each in history] == LOSSES

    platform_id = where[0]
    model = client.get_registered_model(platform_id, "digits").data.registered_model
    assert [each.version for each in model.latest_versions] == ["1"]
    client.base_client.session.close()
