"""The servers that benchmarks run against, each in a process of its own, on loopback only.

`answering` is one that answers ``{}`` at once: nginx, or a stated substitute.  `platform` is the
gateway of `adp_async.local`, in front of a real MLflow or of a counter.  Whoever starts one with
``with`` stops it, and each ends by itself when its parent does.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import define, field, frozen

from adp_async import ApiKey, Session, blocking
from adp_async.local.identity import REGION, Identity, KeyFile, write_profile

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent

#: What a run looks like when it has been updated.
_RUN_INFO = json.dumps({"run_info": {"run_id": "r", "status": "RUNNING", "lifecycle_stage": "a"}})
#: How a path ends, and the reply; the last one is for all the others.
REPLIES = {"/runs/update": _RUN_INFO, "": "{}"}

_NGINX_HELP = "nginx is not installed (Debian: apt-get install nginx-light)"
_NGINX = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    default_type application/json;
    keepalive_requests 1000000000;
    keepalive_timeout 600s;
    client_max_body_size 64m;
    client_body_buffer_size 4m;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        {locations}
    }}
}}
"""


@frozen
class Target:
    """Where a client goes, and the credentials it signs with."""

    endpoint: str
    platform_id: str
    workspace: str
    config_file: Path

    def session(self, **knobs: Any) -> Session:
        """A session, not entered yet, without a spool unless *knobs* say otherwise."""
        return Session(self.platform_id, self.workspace, **self._knobs(knobs))

    def blocking_session(self, **knobs: Any) -> blocking.Session:
        return blocking.Session(self.platform_id, self.workspace, **self._knobs(knobs))

    def _knobs(self, knobs: dict[str, Any]) -> dict[str, Any]:
        auth = ApiKey(config_file=self.config_file)
        return {"endpoint": self.endpoint, "auth": auth, "spool": False} | knobs

    @property
    def base(self) -> str:
        """Without the version, which the clients of ``oci`` add."""
        return f"/aiDataPlatforms/{self.platform_id}/workspaces/{self.workspace}/mlops/api/2.0"

    def url(self, path: str) -> str:
        return f"{self.endpoint}/20260430{self.base}/{path}"

    def config(self) -> dict[str, Any]:
        import oci.config

        config: dict[str, Any] = oci.config.from_file(str(self.config_file))
        return config

    def signer(self) -> Any:
        import oci.signer

        return oci.signer.Signer.from_config(self.config())


@frozen
class AnsweringServer:
    """A server that answers at once."""

    name: str
    url: str
    target: Target
    #: How to get nginx, when this is the substitute.
    help: str = ""

    @property
    def notes(self) -> list[str]:
        return [f"The server is {self.name}.", *([self.help] if self.help else [])]


@contextmanager
def answering() -> Iterator[AnsweringServer]:
    """nginx that answers ``{}``, or its substitute."""
    with tempfile.TemporaryDirectory(prefix="adp-async-bench-") as name:
        folder = Path(name)
        program = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
        serving = _nginx(program, folder) if program else _substitute()
        with serving as (what, url):
            target = with_credentials(url, folder)
            help_text = "" if program else f"{_NGINX_HELP}; with it the numbers change."
            yield AnsweringServer(what, url, target, help_text)


@contextmanager
def _nginx(program: str, folder: Path) -> Iterator[tuple[str, str]]:
    port = _free_port()
    locations = "\n        ".join(
        f"location ~ {path}$ {{ return 200 '{body}'; }}" for path, body in REPLIES.items()
    )
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder, port=port, locations=locations))
    # Without a master process there is one process to stop, and nothing can be left behind.
    command = [program, "-p", str(folder), "-c", str(config), "-g", "master_process off;"]
    version = subprocess.run([program, "-v"], capture_output=True, text=True, check=True).stderr
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _until_listening(port, process)
        yield version.strip().rpartition(" ")[2], f"http://127.0.0.1:{port}"
    finally:
        _stop(process)


@contextmanager
def _substitute() -> Iterator[tuple[str, str]]:
    with child("benchmarks._answers") as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        yield "a minimal asyncio server in its own process", f"http://127.0.0.1:{port}"


def with_credentials(url: str, folder: Path) -> Target:
    identity, key_file = Identity.invent(), KeyFile.load_or_write(folder / "api_key.pem")
    config_file = folder / "oci_config"
    entries = {
        "user": identity.user,
        "fingerprint": key_file.fingerprint,
        "tenancy": identity.tenancy,
        "region": REGION,
        "key_file": str(key_file.path),
    }
    write_profile(config_file, "DEFAULT", entries)
    return Target(url, identity.platform_id, identity.workspace, config_file)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def _until_listening(port: int, process: subprocess.Popen[Any], timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


@contextmanager
def child(module: str, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """``python -m module``, spoken to in lines; it ends when its standard input does."""
    import os

    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )
    try:
        yield process
    finally:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        _stop(process)
        process.stdout.close()


def _stop(process: subprocess.Popen[Any]) -> None:
    if process.stdin is None:
        process.terminate()
    try:
        process.wait(15.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def ask(process: subprocess.Popen[str], question: dict[str, Any]) -> Any:
    """Send a line of JSON to a `child`, and read its answer."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(question) + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise RuntimeError("a child process ended in the middle of a question")
    return json.loads(answer)


@define
class Platform:
    """A platform in a process of its own, with one gateway or several of the same identity."""

    targets: list[Target]
    mlflow_url: str
    _process: subprocess.Popen[str] = field(repr=False)

    @property
    def target(self) -> Target:
        return self.targets[0]

    def set_quota(
        self, gateway: int, rate: float, burst: float, retry_after: float | None = None
    ) -> None:
        """*rate* requests a second from now on, *burst* at once; counts begin at zero."""
        quota = {"rate": rate, "burst": burst, "retry_after": retry_after}
        self._ask({"gateway": gateway, **quota, "reset": True})

    def lift_quota(self, gateway: int) -> None:
        self._ask({"gateway": gateway, "rate": None, "reset": False})

    def counts(self, gateway: int) -> dict[str, int]:
        """*requests* that came, how many were *refused*, and the *records* of the others."""
        counts: dict[str, int] = self._ask({"gateway": gateway})
        return counts

    def latencies(self, gateway: int) -> list[float]:
        """Seconds from the moments that are the records' values until they came, since last asked.

        The first call begins it.
        """
        found: list[float] = self._ask({"gateway": gateway, "latencies": True})["latencies"]
        return found

    def _ask(self, question: dict[str, Any]) -> Any:
        return ask(self._process, question)


@contextmanager
def platform(*, mlflow: bool, gateways: int = 1) -> Iterator[Platform]:
    """A local platform: with *mlflow* the real one, else one that counts and stores nothing."""
    with child("benchmarks._platform", "mlflow" if mlflow else str(gateways)) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError("the local platform did not start; see its message above")
        said = json.loads(line)
        targets = [
            Target(url, said["platform_id"], said["workspace"], Path(said["config_file"]))
            for url in said["endpoints"]
        ]
        yield Platform(targets, said["mlflow_url"], process)
