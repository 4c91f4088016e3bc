"""`adp-async doctor` examines all that it can at once, and names the fix."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from children import not_outlived_by
from rich.text import Text
from typer.testing import CliRunner

from adp_async._io.transport import AiohttpTransport
from adp_async.cli import app, checks, service_checks
from adp_async.cli.serve import environment
from adp_async.errors import ConnectionFailed
from adp_async.local import LocalPlatform
from adp_async.local.identity import KeyFile, generate_key, make_token, write_private, write_profile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from click.testing import Result
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

OCID = "ocid1.aidataplatform.oc1.iad.a"


@pytest.fixture(scope="module")
def bare(
    api_key: RSAPrivateKey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalPlatform]:
    directory = tmp_path_factory.mktemp("bare")
    with LocalPlatform(directory, mlflow=False, key=api_key) as platform:
        yield platform


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine of somebody who has just installed the package, and no network."""
    import os

    for name in list(os.environ):
        if name.startswith(("ADP_", "AIDP_", "OCI_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def at_bare(bare: LocalPlatform, monkeypatch: pytest.MonkeyPatch) -> LocalPlatform:
    for name, value in environment(bare).items():
        monkeypatch.setenv(name, value)
    return bare


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """No name has an address."""

    def fails(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    async def unsent(*_: object) -> None:
        raise ConnectionFailed("no connection")

    monkeypatch.setattr(socket, "create_connection", fails)
    monkeypatch.setattr(AiohttpTransport, "send", unsent)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["doctor", *arguments])


def findings(*arguments: str) -> dict[str, dict[str, Any]]:
    """By step, the last one of each."""
    return {each["step"]: each for each in read(*arguments)["findings"]}


def read(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json").stdout)


def profile_of(platform: LocalPlatform) -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(.*)", platform.config_file.read_text()))


def test_a_new_machine_takes_one_round(unreachable: None) -> None:
    """The platform's id, the workspace, the config file and the network: each is told at once."""
    found = findings("--region", "us-ashburn-1")

    assert "AIDP_INSTANCE_ID" in found["settings"]["message"]
    assert "AIDP_WORKSPACE" in found["workspace"]["fix"]
    assert "oci setup config" in found["credentials"]["message"]
    assert found["region"]["state"] == "ok"
    assert found["address"]["message"] == "https://aidp.us-ashburn-1.oci.oraclecloud.com"
    assert "has no address" in found["network"]["message"]
    assert found["clock"]["state"] == "skipped"
    assert found["spool"]["state"] == "ok"
    assert found["service"] == {
        "step": "service",
        "state": "skipped",
        "message": "not asked: fix what is wrong above first",
        "fix": None,
    }


def test_credentials_are_examined_without_the_platforms_id(
    at_bare: LocalPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Key, fingerprint, network and clock do not need it."""
    monkeypatch.delenv("AIDP_INSTANCE_ID")
    found = findings()

    assert found["settings"]["state"] == "wrong"
    for step in ("credentials", "fingerprint", "address", "network", "clock"):
        assert found[step]["state"] == "ok", step
    assert found["service"]["state"] == "skipped"


def test_without_region_and_credentials_there_is_no_address() -> None:
    """What depends on it is not shown as wrong a second time."""
    found = findings("--platform-id", OCID)

    assert found["credentials"]["state"] == "wrong"
    assert found["address"]["state"] == "skipped"
    assert found["certificates"]["state"] == "ok"
    assert not {"network", "clock", "region"} & set(found)


def test_versions_are_told() -> None:
    """The first things that somebody who helps asks for."""
    message = findings()["version"]["message"]

    assert re.match(r"adp_async \S+, Python 3\.\d+\.\S+, \w+ \S+, aiohttp \S+", message)


# ------------------------------------------------------------------ settings


def test_a_misspelt_variable_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is ignored, and nothing else would tell; with the name that was meant."""
    monkeypatch.setenv("ADP_ASYNC_LINGR", "5")
    monkeypatch.setenv("ADP_ASYNC_COLOUR_OF_THE_SKY", "blue")
    monkeypatch.setenv("AIDP_INSTANCEID", OCID)
    monkeypatch.setenv("AIDP_DATALAKE", "of another program")
    monkeypatch.setenv("ADP_ASYNC_RUN_ID", "for the integration of transformers")
    monkeypatch.setenv("ADP_ASYNC_LINGER", "5")
    found = [each for each in read()["findings"] if each["step"] == "environment"]

    assert [(each["state"], each["message"].split()[0], each["fix"]) for each in found] == [
        (
            "warning",
            "ADP_ASYNC_COLOUR_OF_THE_SKY",
            "Unset it, or see the table of settings.",
        ),
        ("warning", "ADP_ASYNC_LINGR", "Did you mean ADP_ASYNC_LINGER?"),
        ("warning", "AIDP_INSTANCEID", "Did you mean AIDP_INSTANCE_ID?"),
    ]


@pytest.mark.usefixtures("unreachable")
def test_a_region_that_oci_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be new; the nearest name is offered.  A key of a region is as good as its name."""
    monkeypatch.setenv("OCI_REGION", "us-asburn-1")
    found = findings("--platform-id", OCID)["region"]

    assert found["state"] == "warning"
    assert "us-asburn-1 is not among the" in found["message"]
    assert found["fix"].startswith("Did you mean us-ashburn-1?")
    assert service_checks.region("iad").state == "ok"


def test_a_wrong_endpoint_is_not_replaced_by_the_region(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is meant; to examine another address would mislead."""
    monkeypatch.setenv("AIDP_ENDPOINT", "http://example.com")
    found = findings("--platform-id", OCID, "--region", "us-ashburn-1")

    assert found["settings"]["state"] == "wrong"
    assert found["address"]["state"] == "skipped"
    assert "network" not in found


def test_a_session_that_an_agent_signs_for(
    at_bare: LocalPlatform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It needs no credentials here; whether the agent is there, and the service behind it."""
    command = [sys.executable, "-m", "adp_async", "agent", "--folder", str(tmp_path / "agent")]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as agent,
        not_outlived_by(agent),
    ):
        assert agent.stdout is not None
        name, _, file = agent.stdout.readline().strip().removeprefix("export ").partition("=")
        for variable in environment(at_bare):
            monkeypatch.delenv(variable)
        monkeypatch.setenv(name, file)
        found = findings()
        shown = CliRunner().invoke(app, ["show", at_bare.gateway.add_run()])
        agent.terminate()
        agent.wait(60)

    assert list(found) == ["version", "agent", "platform_id", "workspace", "service"]
    assert file in found["agent"]["message"]
    assert at_bare.platform_id in found["platform_id"]["message"]
    assert found["service"]["state"] == "ok"  # it was passed on to the platform
    assert shown.exit_code == 0, shown.stderr


def test_an_agent_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable is named; options of the command line go before it."""
    monkeypatch.setenv("ADP_ASYNC_AGENT", str(tmp_path / "socket"))

    assert "ADP_ASYNC_AGENT" in findings()["agent"]["message"]
    assert "ADP_ASYNC_AGENT" in CliRunner().invoke(app, ["runs"]).stderr
    found = findings("--profile", "DEFAULT", "--platform-id", OCID)
    assert found["agent"]["state"] == "skipped"
    assert found["credentials"]["state"] == "wrong"


# ------------------------------------------------------------------ credentials


def test_the_fingerprint_of_another_key(at_bare: LocalPlatform, tmp_path: Path) -> None:
    """It is computed from the key: the service would only say 401."""
    key = KeyFile.load_or_write(tmp_path / "other.pem", generate_key())
    config = tmp_path / "config"
    write_profile(config, "OTHER", profile_of(at_bare) | {"key_file": str(key.path)})
    found = findings("--config-file", str(config), "--profile", "OTHER")

    assert found["credentials"]["state"] == "ok"
    assert found["fingerprint"]["state"] == "wrong"
    assert key.fingerprint in found["fingerprint"]["message"]
    assert profile_of(at_bare)["fingerprint"] in found["fingerprint"]["message"]


def test_the_right_fingerprint(at_bare: LocalPlatform) -> None:
    """It is told, to be compared with the console's."""
    found = findings()["fingerprint"]

    assert found["state"] == "ok"
    assert profile_of(at_bare)["fingerprint"] in found["message"]


@pytest.mark.parametrize(
    ("seconds", "state", "told"),
    [(1805.0, "ok", "expires in 30 min"), (-7200.0, "wrong", "expired 2 h ago")],
)
def test_when_a_session_token_expires(
    at_bare: LocalPlatform,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    state: str,
    told: str,
) -> None:
    """By what it says itself; with the command that renews it."""
    token = tmp_path / "token"
    write_private(token, make_token("me", time.time() + seconds).encode())
    config = tmp_path / "config"
    write_profile(config, "MINE", profile_of(at_bare) | {"security_token_file": str(token)})
    monkeypatch.setenv("OCI_CLI_AUTH", "security_token")
    found = findings("--config-file", str(config), "--profile", "MINE")["token"]

    assert (found["state"], found["message"]) == (state, told)
    assert (found["fix"] or "").startswith("oci session refresh --profile MINE" * (state != "ok"))


@pytest.mark.parametrize("content", [b"", b"a.b.c", b"a.bnVsbA.c", b"a.eyJleHAiOiJ4In0.c", b"\xff"])
def test_a_token_that_does_not_say_when_it_expires(tmp_path: Path, content: bytes) -> None:
    """Nothing is said then, whatever it is."""
    file = tmp_path / "token"
    file.write_bytes(content)

    assert checks._expires(file) is None


# ------------------------------------------------------------------ the road


def test_certificates_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unreachable: None
) -> None:
    """Where they come from; a file without any is wrong, and the clock is not asked then."""
    with LocalPlatform(tmp_path / "tls", mlflow=False, tls=True) as platform:
        good = str(platform.ca_bundle)
    monkeypatch.setenv("SSL_CERT_FILE", good)
    environment = findings("--region", "us-ashburn-1")["certificates"]
    (tmp_path / "empty.pem").touch()
    monkeypatch.setenv("ADP_ASYNC_CA_BUNDLE", str(tmp_path / "empty.pem"))
    setting = findings("--region", "us-ashburn-1")

    assert (environment["state"], environment["message"]) == ("ok", f"1 of {good}")
    assert setting["certificates"]["state"] == "wrong"
    assert "does not contain a certificate" in setting["certificates"]["message"]
    assert "clock" not in setting


def test_a_proxy_is_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what has to answer; where it was set is told, and its password is not."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:hunter2@127.0.0.1:{port}")

        async def unsent(*_: object) -> None:
            raise ConnectionFailed("no connection")

        monkeypatch.setattr(AiohttpTransport, "send", unsent)
        found = findings("--region", "us-ashburn-1")

    assert found["proxy"]["message"] == f"127.0.0.1:{port}, named by the environment's HTTPS_PROXY"
    assert found["network"]["message"] == f"connected to the proxy 127.0.0.1, port {port}"
    assert "hunter2" not in str(found)


def test_a_proxy_that_nobody_listens_at(monkeypatch: pytest.MonkeyPatch, unreachable: None) -> None:
    """The fix is about the proxy, not about the endpoint."""
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.test:3128")
    found = findings("--region", "us-ashburn-1")["network"]

    assert found["state"] == "wrong"
    assert found["message"].startswith("the proxy proxy.test has no address")


def test_a_proxy_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether or not the address is known; nothing is connected then."""
    monkeypatch.setenv("HTTPS_PROXY", "socks5://proxy.test:1080")
    found = findings()

    assert found["proxy"]["state"] == "wrong"
    assert "'socks5' is not supported" in found["proxy"]["message"]
    assert "network" not in found


# ------------------------------------------------------------------ output


def test_json_has_fields_that_stay(at_bare: LocalPlatform) -> None:
    """One object: whether a session will work, and a list; the exit code is the same."""
    good, bad = run("--json"), run("--json", "--auth", "magic")

    assert (good.exit_code, bad.exit_code) == (0, 1)
    for result, ok in ((good, True), (bad, False)):
        found = json.loads(result.stdout)
        assert list(found) == ["ok", "findings"]
        assert found["ok"] is ok
        for each in found["findings"]:
            assert list(each) == ["step", "state", "message", "fix"]
            assert each["state"] in ("ok", "warning", "wrong", "skipped")


def test_lines_for_programs_have_no_spaces_at_their_ends(at_bare: LocalPlatform) -> None:
    """And are not folded."""
    lines = run().stdout.splitlines()

    assert lines == [line.rstrip() for line in lines]
    assert any(at_bare.platform_id in line for line in lines)


@pytest.mark.parametrize("width", [80, 120])
def test_it_fits_a_terminal(
    at_bare: LocalPlatform, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long facts are folded below themselves, not below their names."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width))
    lines = Text.from_ansi(run().stdout).plain.splitlines()

    assert max(map(len, lines)) <= width
    assert any(line.startswith(" " * 19 + "/") or re.match(" {19}\\S", line) for line in lines)
