"""The platforms that tests run against, and a client that signs with Oracle's own signer."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec
import pytest
from attrs import define, field, frozen
from hypothesis import HealthCheck, settings
from yarl import URL

from adp_async._io import delivery, intake, recovery
from adp_async.local import LocalPlatform
from adp_async.local.identity import generate_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    from adp_async.local import Gateway


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rounds", type=int, default=20, help="of test_processes: forks")
    parser.addoption("--kills", type=int, default=10, help="of test_kill: rounds")
    parser.addoption("--hop-kills", type=int, default=4, help="of test_collector_kill: rounds")
    parser.addoption("--points", type=int, default=100_000, help="of test_disk: while it is down")
    parser.addoption("--minutes", type=float, default=0.08, help="of test_soak: its length")
    parser.addoption("--storm", type=float, default=3.0, help="of test_storm: its seconds")
    parser.addoption("--inputs", type=int, default=500, help="of the fuzz tests: inputs each")


def pytest_configure() -> None:
    # How long it takes to make or try an input depends on what else the machine does.
    calm = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.register_profile("calm", calm)
    settings.load_profile("calm")
    # A shell that starts the tests in the background has them ignore SIGINT, and all they start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _spool_of_the_test(tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any) -> None:
    """No test writes into the user's own state folder."""
    monkeypatch.setenv("ADP_ASYNC_SPOOL", str(tmp_path_factory.getbasetemp() / "spool"))


@pytest.fixture(autouse=True)
def _outside_of_all_blocks() -> Iterator[None]:
    """A test may leave a block of a worker's that it never exits, as a killed worker does."""
    yield
    if (sessions := sys.modules.get("adp_async.collector.session")) is not None:
        sessions._entered.clear()


@pytest.fixture
def patient_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """However short the time for closing is, the disk gets more than a busy machine takes."""
    monkeypatch.setattr(delivery, "SHORTEST_COMMIT", 20.0)
    monkeypatch.setattr(recovery, "LONGEST_WAIT", 20.0)


@pytest.fixture
def patient_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code on an event loop waits for the disk for as long as a busy machine takes."""
    monkeypatch.setattr(intake, "LONGEST_PAUSE", 20.0)


@pytest.fixture(scope="session")
def api_key() -> RSAPrivateKey:
    """One key for all platforms of the run, since making one takes its time."""
    return generate_key()


@pytest.fixture(scope="session")
def platform(api_key: RSAPrivateKey) -> Iterator[LocalPlatform]:
    """A platform with a real MLflow, started once, in a thread of its own."""
    with LocalPlatform(key=api_key) as platform:
        yield platform


@pytest.fixture
def gateway(platform: LocalPlatform) -> Iterator[Gateway]:
    """The gateway of `platform`; its knobs are put back after the test."""
    platform.gateway.reset()
    yield platform.gateway
    platform.gateway.reset()


@pytest.fixture
async def bare_platform(api_key: RSAPrivateKey, tmp_path: Path) -> AsyncIterator[LocalPlatform]:
    """A platform without MLflow on the test's own loop: starts at once, for faults and time."""
    async with LocalPlatform(tmp_path / "platform", mlflow=False, key=api_key) as platform:
        yield platform


@frozen
class SignedReply:
    """Status, headers and JSON of a reply."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def code(self) -> str:
        return str(self.json["code"])


@define(slots=False)
class _Signable:
    """What an OCI signer reads, and where it writes."""

    method: str
    url: str
    path_url: str
    headers: dict[str, str]
    body: bytes | None = None


@define
class SignedClient:
    """Sends requests signed by ``oci.signer.Signer``, independently of our own session."""

    platform: LocalPlatform
    http: aiohttp.ClientSession
    signer: Any = field(repr=False)

    def url(self, path: str, *, workspace: bool = True, platform_id: str = "") -> str:
        base = f"{self.platform.endpoint}/20260430/aiDataPlatforms"
        scope = f"/workspaces/{self.platform.workspace}" if workspace else ""
        return f"{base}/{platform_id or self.platform.platform_id}{scope}/mlops/api/2.0/{path}"

    async def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        workspace: bool = True,
        headers: dict[str, str] | None = None,
        **options: Any,
    ) -> SignedReply:
        content = None
        if method == "POST":
            content = body if isinstance(body, bytes) else msgspec.json.encode(body or {})
        url = self.url(path, workspace=workspace, **options)
        signed = self.sign(method, url, content, headers or {})
        return await self.send(method, url, content, signed)

    def sign(
        self, method: str, url: str, body: bytes | None, headers: dict[str, str]
    ) -> dict[str, str]:
        raw = URL(url, encoded=True)
        headers = {"host": f"{raw.host}:{raw.port}", **headers}
        if body is not None:
            headers |= {"content-type": "application/json", "content-length": str(len(body))}
        signable = _Signable(method, url, raw.raw_path_qs, headers, body)
        self.signer(signable)
        return signable.headers

    async def send(
        self, method: str, url: str, body: bytes | None, headers: dict[str, str]
    ) -> SignedReply:
        address = URL(url, encoded=True)
        async with self.http.request(method, address, data=body, headers=headers) as response:
            names = {name.lower(): value for name, value in response.headers.items()}
            return SignedReply(response.status, names, await response.read())


def make_signer(platform: LocalPlatform) -> Any:
    import oci

    config = oci.config.from_file(str(platform.config_file), platform.profile)
    return oci.signer.Signer.from_config(config)


@pytest.fixture
async def client(platform: LocalPlatform, gateway: Gateway) -> AsyncIterator[SignedClient]:
    """A signed client of the platform with the real MLflow."""
    async with aiohttp.ClientSession() as http:
        yield SignedClient(platform, http, make_signer(platform))


@pytest.fixture
async def bare_client(bare_platform: LocalPlatform) -> AsyncIterator[SignedClient]:
    """A signed client of the platform without MLflow."""
    async with aiohttp.ClientSession() as http:
        yield SignedClient(bare_platform, http, make_signer(bare_platform))
