"""LocalPlatform: its files, its identity, its session tokens, and how it fails."""

from __future__ import annotations

import asyncio
import configparser
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from children import not_outlived_by

import adp_async.local
from adp_async.errors import ConfigurationError
from adp_async.local import LocalPlatform, MlflowServerError
from adp_async.local.identity import KeyFile
from adp_async.local.mlflow_server import MlflowServer

if TYPE_CHECKING:
    from conftest import SignedClient
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    from adp_async.local import Gateway, SessionProfile


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


async def test_credentials_are_private(bare_platform: LocalPlatform) -> None:
    """Config, key and folder are for their owner only, and the config names the key."""
    assert mode(bare_platform.config_file) == 0o600
    assert mode(bare_platform.config_file.parent) == 0o700
    config = configparser.ConfigParser(default_section="")
    config.read(bare_platform.config_file)
    assert mode(Path(config[bare_platform.profile]["key_file"])) == 0o600


async def test_config_is_one_that_oci_takes(bare_platform: LocalPlatform) -> None:
    """The SDK finds nothing wrong with it, the fingerprint's form included."""
    import oci

    config = oci.config.from_file(str(bare_platform.config_file), bare_platform.profile)

    oci.config.validate_config(config)


async def test_temporary_folder_goes(api_key: RSAPrivateKey) -> None:
    """Without a directory nothing is left behind."""
    async with LocalPlatform(mlflow=False, key=api_key) as platform:
        folder = platform.config_file.parent
        assert folder.exists()

    assert not folder.exists()


async def test_given_folder_keeps_the_address(tmp_path: Path, api_key: RSAPrivateKey) -> None:
    """Started again in the same folder it is the same platform with the same key."""
    async with LocalPlatform(tmp_path, mlflow=False, key=api_key) as first:
        config = first.config_file.read_text()
        address = (first.platform_id, first.workspace)
    async with LocalPlatform(tmp_path, mlflow=False) as second:
        assert (second.platform_id, second.workspace) == address
        assert second.config_file.read_text() == config


async def test_port_can_be_chosen(tmp_path: Path, api_key: RSAPrivateKey) -> None:
    """It listens on the given port."""
    async with LocalPlatform(tmp_path, mlflow=False, key=api_key) as first:
        port = first.gateway.port
    async with LocalPlatform(tmp_path, port=port, mlflow=False, key=api_key) as second:
        assert second.endpoint == f"http://127.0.0.1:{port}"


async def test_before_it_is_entered(tmp_path: Path) -> None:
    """Questions get an answer that says what to do."""
    platform = LocalPlatform(tmp_path, mlflow=False)

    for attribute in ("gateway", "platform_id", "endpoint"):
        with pytest.raises(RuntimeError, match="async with"):
            getattr(platform, attribute)
    assert repr(platform) == "<LocalPlatform not started>"


async def test_repr_names_the_address(bare_platform: LocalPlatform) -> None:
    """Platform and gateway show where they are, and no secret."""
    assert repr(bare_platform) == f"<LocalPlatform {bare_platform.endpoint} | MLflow off>"
    assert "127.0.0.1" in repr(bare_platform.gateway)


# -- session tokens


def token_signer(profile: SessionProfile) -> Any:
    """The SDK's signer for the profile's present files."""
    import oci

    config = oci.config.from_file(str(profile.config_file), profile.profile)
    token = Path(config["security_token_file"]).read_text()
    key = oci.signer.load_private_key_from_file(config["key_file"])
    return oci.auth.signers.SecurityTokenSigner(token, key)


async def ask(client: SignedClient, profile: SessionProfile) -> int:
    client.signer = token_signer(profile)
    return (await client.call("POST", "mlflow/runs/create", {})).status


async def test_session_token_profile(
    bare_platform: LocalPlatform, bare_client: SignedClient
) -> None:
    """A second profile signs in with a token; the first one goes on working."""
    profile = bare_platform.add_session_profile()

    assert await ask(bare_client, profile) == 200
    assert mode(profile.token_file) == 0o600
    assert bare_platform.profile in bare_platform.config_file.read_text()


async def test_session_token_expires_and_is_renewed(
    bare_platform: LocalPlatform, bare_client: SignedClient
) -> None:
    """Expired it is refused; renewed in the same file it passes, with a new key as well."""
    profile = bare_platform.add_session_profile()
    profile.expire()
    assert await ask(bare_client, profile) == 401

    profile.renew()
    assert await ask(bare_client, profile) == 200
    old = bare_client.signer

    profile.renew(new_key=True)
    assert await ask(bare_client, profile) == 200
    bare_client.signer = old
    assert (await bare_client.call("POST", "mlflow/runs/create", {})).status == 401


# -- failures


async def test_mlflow_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without MLflow the error names the extra to install, and nothing is left open."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    platform = LocalPlatform(tmp_path)

    with pytest.raises(ConfigurationError, match=r"pip install 'adp-async\[local\]'"):
        await platform.start()


def test_package_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for what the gateway itself needs."""
    for name in [name for name in sys.modules if name.startswith("adp_async.local.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)

    with pytest.raises(ConfigurationError, match=r"pip install 'adp-async\[local\]'"):
        adp_async.local.__getattr__("LocalPlatform")


def test_unknown_name() -> None:
    """A module attribute that isn't there is an AttributeError."""
    with pytest.raises(AttributeError, match="Nothing"):
        adp_async.local.__getattr__("Nothing")


def test_import_is_light() -> None:
    """Importing the package loads neither cryptography nor MLflow."""
    script = """
        import sys, adp_async.local
        heavy = {"cryptography", "mlflow", "oci", "uvicorn"} & set(sys.modules)
        assert not heavy, heavy
        assert "LocalPlatform" in adp_async.local.__all__
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)


def fake_mlflow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> None:
    path = tmp_path / "fake.py"
    path.write_text(textwrap.dedent(script))
    monkeypatch.setattr("adp_async.local.mlflow_server._SCRIPT", path)


async def test_mlflow_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the end of its log."""
    fake_mlflow(monkeypatch, tmp_path, "raise SystemExit('the database is broken')")

    with pytest.raises(MlflowServerError, match="the database is broken"):
        await LocalPlatform(tmp_path).start()


async def test_mlflow_that_is_never_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its time it is given up and ended, and progress was told meanwhile."""
    fake_mlflow(
        monkeypatch,
        tmp_path,
        """
        import time
        print("importing MLflow", flush=True)
        time.sleep(60)
        """,
    )
    phases: list[str] = []

    def progress(phase: str, seconds: float) -> None:
        phases.append(phase)
        server = platform.mlflow_server
        assert server is not None
        if phase == "importing MLflow" and server._start_timeout == 60.0:
            server._start_timeout = seconds  # its time is up now, however long Python has taken

    platform = LocalPlatform(tmp_path, start_timeout=60.0, progress=progress)

    with pytest.raises(MlflowServerError, match="not ready after"):
        await platform.start()

    assert "importing MLflow" in phases
    assert platform.mlflow_server is not None
    assert not platform.mlflow_server.is_running


async def test_cancelled_start_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while MLflow starts ends it too."""
    fake_mlflow(monkeypatch, tmp_path, "import time; time.sleep(60)")

    def now(*_: object) -> None:
        limit.reschedule(asyncio.get_running_loop().time())

    platform = LocalPlatform(tmp_path, progress=now)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(60) as limit:
            await platform.start()

    assert platform.mlflow_server is not None
    assert not platform.mlflow_server.is_running


@pytest.mark.parametrize("name", ["adp_async.local.quota", None])
def test_a_fault_of_our_own_is_not_a_missing_extra(
    name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No advice to install something then."""

    def fails(module: str) -> None:
        raise ModuleNotFoundError("no module", name=name)

    monkeypatch.setattr("importlib.import_module", fails)
    with pytest.raises(ModuleNotFoundError) as caught:
        _ = adp_async.local.Gateway
    assert caught.value.name == name


async def test_a_key_file_with_another_key(tmp_path: Path) -> None:
    """Only RSA signs for OCI."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (tmp_path / "key.pem").write_bytes(pem)
    with pytest.raises(TypeError, match="does not hold an RSA key"):
        KeyFile.load_or_write(tmp_path / "key.pem")


async def test_mlflow_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is killed when its time is up; until then it shows that it runs."""
    fake_mlflow(
        monkeypatch,
        tmp_path,
        """
        import signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("ready", flush=True)
        time.sleep(60)
        """,
    )
    monkeypatch.setattr("adp_async.local.mlflow_server._SECONDS_TO_END", 0.05)
    server = MlflowServer(tmp_path)
    await server.start()
    process = server._process
    assert process is not None
    assert repr(server) == f"<MlflowServer {server.url} | running>"
    await server.stop()
    assert process.returncode == -signal.SIGKILL
    assert repr(server) == f"<MlflowServer {server.url} | stopped>"


def test_mlflow_ends_with_a_killed_parent(tmp_path: Path) -> None:
    """A parent that is killed leaves no server behind."""
    import adp_async.local.mlflow_process as child

    watched = tmp_path / "watched.py"
    watched.write_text(
        f"import runpy, time\nmodule = runpy.run_path({child.__file__!r})\n"
        "module['end_with_parent']()\nprint('up', flush=True)\ntime.sleep(60)\n"
    )
    parent = tmp_path / "parent.py"
    parent.write_text(
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, {str(watched)!r}], stdin=subprocess.PIPE)\n"
        "time.sleep(60)\n"
    )
    with (
        subprocess.Popen([sys.executable, str(parent)], stdout=subprocess.PIPE) as process,
        not_outlived_by(process),
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.kill()
        # The child has the other copy of this pipe, so its end is the child's end.
        assert process.stdout.read() == b""


@pytest.mark.mlflow
async def test_mlflow_page(platform: LocalPlatform) -> None:
    """MLflow's own page answers at its own address."""
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"{platform.mlflow_url}/health") as response,
    ):
        assert (response.status, await response.text()) == (200, "OK")


@pytest.mark.mlflow
async def test_down_and_up_from_another_loop(client: SignedClient, gateway: Gateway) -> None:
    """A platform in a thread of its own is taken down from the test's loop."""
    await gateway.down()
    with pytest.raises(aiohttp.ClientConnectorError):
        await client.call("POST", "mlflow/runs/create", {})
    await gateway.up()

    assert (await client.call("POST", "mlflow/runs/create", {})).status == 200
