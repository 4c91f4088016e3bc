"""The command line: what it says, what it leaves behind, and how it takes mistakes."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import typer
from children import free_port, not_outlived_by
from rich.console import Console
from typer.testing import CliRunner

import adp_async
from adp_async._sansio.messages import Reply
from adp_async.cli import app, service_checks
from adp_async.cli import serve as serving
from adp_async.cli.background import _Start
from adp_async.cli.mistakes import errors_in_one_line
from adp_async.cli.options import CommandLine
from adp_async.cli.serve import environment
from adp_async.errors import AdpError, ConfigurationError
from adp_async.local import Fault, LocalPlatform, Quota
from adp_async.local.identity import generate_key, write_profile
from adp_async.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from click.testing import Result
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

COMMAND = [sys.executable, "-c", "from adp_async.cli import main; main()"]
VARIABLES = (
    "AIDP_ENDPOINT",
    "AIDP_INSTANCE_ID",
    "AIDP_WORKSPACE",
    "OCI_CLI_AUTH",
    "OCI_CLI_CONFIG_FILE",
    "OCI_CLI_FINGERPRINT",
    "OCI_CLI_KEY_CONTENT",
    "OCI_CLI_KEY_FILE",
    "OCI_CLI_PROFILE",
    "OCI_CLI_REGION",
    "OCI_CLI_TENANCY",
    "OCI_CLI_USER",
    "OCI_CONFIG_FILE",
    "OCI_REGION",
)


@pytest.fixture(scope="module")
def bare(
    api_key: RSAPrivateKey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalPlatform]:
    """A platform without MLflow in a thread of its own: the commands have a loop each."""
    directory = tmp_path_factory.mktemp("bare")
    with LocalPlatform(directory, mlflow=False, key=api_key) as platform:
        yield platform


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nothing of the user's own: no settings, no config file, no spool."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ADP_ASYNC_SPOOL", str(tmp_path / "spool"))
    handlers = list(logging.getLogger("adp_async").handlers)
    yield
    logging.getLogger("adp_async").handlers[:] = handlers


@pytest.fixture
def at_bare(bare: LocalPlatform, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalPlatform]:
    """The environment leads to the platform without MLflow."""
    for name, value in environment(bare).items():
        monkeypatch.setenv(name, value)
    yield bare
    bare.gateway.reset()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def states(result: Result) -> dict[str, str]:
    """The sign of each step that the doctor has printed."""
    return {
        step: sign
        for sign, step in re.findall(r"^ *(ok|warn|WRONG|-) +(\S+)", result.output, re.MULTILINE)
    }


# ------------------------------------------------------------------ mistakes


def test_a_wrong_option_is_told_without_a_traceback() -> None:
    """A mistyped option ends with 2 and names it."""
    result = run("serve", "--prot", "1")

    assert result.exit_code == 2
    assert "No such option" in result.stderr
    assert "--prot" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize("command", ["serve", "demo"])
def test_a_missing_extra_is_one_line(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without MLflow the line says what to install."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    result = run(command)

    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert "pip install 'adp-async[local]'" in result.stderr


def test_a_port_that_is_taken_is_one_line() -> None:
    """It names the port and says what to do, before MLflow is started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("serve", "--port", str(port))

    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert f"port {port}: address already in use" in result.stderr
    assert "--port 0" in result.stderr
    assert "MLflow" not in result.output


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    """A file stands where a folder should be."""
    (tmp_path / "file").touch()

    result = run("serve", "--no-mlflow", "--directory", str(tmp_path / "file" / "below"))

    assert result.exit_code == 1
    assert result.stderr == f"adp-async: {tmp_path}/file/below: Not a directory\n"


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (KeyboardInterrupt(), 130, "adp-async: interrupted\n"),
        (PermissionError(13, "Permission denied", "/x"), 1, "adp-async: /x: Permission denied\n"),
        (OSError("odd"), 1, "adp-async: odd\n"),
        (AdpError("two\nlines"), 1, "adp-async: two lines\n"),
    ],
    ids=repr,
)
def test_an_end_of_any_kind_is_one_line(
    error: BaseException, code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code tells which kind, and SIGTERM has its handler back."""
    before = signal.getsignal(signal.SIGTERM)

    @errors_in_one_line
    def command() -> None:
        raise error

    with pytest.raises(typer.Exit) as caught:
        command()
    assert (caught.value.exit_code, capsys.readouterr().err) == (code, told)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("is_terminal", [False, True])
def test_the_start_of_the_platform_is_shown(is_terminal: bool) -> None:
    """A line a phase where a program reads; where a person does, one that changes."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=is_terminal, width=80, highlight=False)
    with _Start(console) as start:
        for second, phase in enumerate(["importing MLflow", "importing MLflow", "ready"]):
            start.show(phase, float(second))
    shown = screen.getvalue()
    assert "local platform started in 2.0 s" in shown
    assert ("2 s of 3 to 40" in shown) == is_terminal
    if not is_terminal:
        assert shown.count("importing MLflow") == 1


def test_the_version_is_told() -> None:
    """`--version` needs no command."""
    assert run("--version").output == f"adp-async {adp_async.__version__}\n"


def test_help_does_not_import_what_it_does_not_need() -> None:
    """Neither `oci` nor MLflow nor scikit-learn is loaded to explain the options."""
    code = (
        "import sys\nfrom adp_async.cli import app\n"
        "app(['demo', '--help'], standalone_mode=False)\n"
        "sys.exit(str(sys.modules.keys() & {'oci', 'mlflow', 'sklearn', 'numpy'} or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert done.stderr.strip() == ""
    assert "--points" in done.stdout


# ------------------------------------------------------------------ serve


@pytest.mark.parametrize(
    ("number", "told"), [(signal.SIGINT, "stopping"), (signal.SIGTERM, "stopping")]
)
def test_serve_prints_what_works_and_ends_cleanly(
    number: signal.Signals, told: str, tmp_path: Path
) -> None:
    """The Python lines run as they are; a signal ends it with 0 and its folder is gone."""
    with (
        subprocess.Popen(
            [*COMMAND, "serve", "--no-mlflow", "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
        not_outlived_by(process),
    ):
        assert process.stdout is not None
        printed = []
        while not (printed and printed[-1].startswith("Press Ctrl-C")):
            printed.append(process.stdout.readline())
            assert printed[-1], printed
        text = "".join(printed)
        start = printed.index("import adp_async\n")
        exec("".join(printed[start : start + 3]), {})
        process.send_signal(number)
        rest = process.stdout.read()
        code = process.wait(60)

    config = re.search(r"OCI_CONFIG_FILE=(\S+)", text)
    assert (rest, code) == (f"{told}\n", 0)
    assert config is not None
    assert not Path(config[1]).parent.exists()
    assert "\x1b" not in text


def test_serve_keeps_its_address_in_a_directory(tmp_path: Path) -> None:
    """What a second start prints is what the first has printed, the port included."""
    command = [
        *COMMAND,
        "serve",
        "--no-mlflow",
        "--directory",
        str(tmp_path / "kept"),
        "--port",
        str(free_port()),
    ]

    assert _exports(command) == _exports(command)
    assert (tmp_path / "kept" / "oci_config").exists()


def _exports(command: list[str]) -> list[str]:
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process,
        not_outlived_by(process),
    ):
        assert process.stdout is not None
        exports = []
        while (line := process.stdout.readline()) and not line.startswith("Press Ctrl-C"):
            exports += [line] if line.startswith("export ") else []
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    assert len(exports) == 5
    return exports


def test_on_windows_the_lines_are_those_of_powershell(
    bare: LocalPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quoted as it takes them; elsewhere they are a shell's."""
    assert f"export AIDP_ENDPOINT={bare.endpoint}" in serving._exports(bare)
    monkeypatch.setattr(serving, "sys", SimpleNamespace(platform="win32"))
    assert f"$env:AIDP_ENDPOINT = '{bare.endpoint}'" in serving._exports(bare)
    assert serving._assignment("A", "it's") == "$env:A = 'it''s'"


def test_serve_has_a_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    """The platform it shows refuses what is beyond it; Ctrl-C is a good end."""
    quotas = []

    def interrupted(_seconds: float) -> None:
        raise KeyboardInterrupt

    def shown(_console: Console, platform: LocalPlatform) -> None:
        quotas.append(platform.gateway.quota)

    monkeypatch.setattr(serving, "show", shown)
    monkeypatch.setattr(serving, "time", SimpleNamespace(sleep=interrupted))
    serving.serve(quota=7.0, mlflow=False)
    assert quotas == [Quota(7.0)]


def test_serve_ends_with_mlflow() -> None:
    """And says why."""
    screen = io.StringIO()
    gone: Any = SimpleNamespace(mlflow_server=SimpleNamespace(is_running=False))
    with pytest.raises(AdpError, match="the MLflow process exited unexpectedly"):
        serving.wait_for_the_end(Console(file=screen), gone)


# ------------------------------------------------------------------ doctor


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (socket.gaierror(-2, "Name or service not known"), "x.test has no address: Name or serv"),
        (ConnectionRefusedError(111, "Connection refused"), "x.test, port 443: Connection refused"),
        (TimeoutError(), "x.test, port 443: no answer within 10 s"),
    ],
    ids=repr,
)
def test_doctor_tells_why_there_is_no_connection(
    error: OSError, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's own words, with host and port."""

    def fails(_address: object, timeout: float) -> None:
        raise error

    monkeypatch.setattr(socket, "create_connection", fails)
    finding = service_checks.network("https://x.test/a", None)
    assert finding.state == "wrong"
    assert finding.told.startswith(told)


def test_doctor_takes_no_config_file_for_who_reads_none() -> None:
    """Instance principals have nothing to look for in it."""
    given = CommandLine(auth="instance_principal", profile="mine")
    with pytest.raises(
        ConfigurationError, match="auth: instance_principal does not read a config file"
    ):
        given.authentication()


def test_doctor_counts_the_room_on_the_disk(
    at_bare: LocalPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Less than an outage may take is worth a word."""
    monkeypatch.setenv("ADP_ASYNC_SPOOL_LIMIT", str(2**62))
    result = run("doctor")
    assert (states(result)["spool"], result.exit_code) == ("warn", 0)
    assert "An outage of hours may need more" in result.output


def test_doctor_compares_no_clocks_without_a_date(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply may have none that can be read."""

    async def undated(self: object, request: object) -> Reply:
        return Reply(404, {"date": "the day before yesterday"})

    monkeypatch.setattr("adp_async._io.transport.AiohttpTransport.send", undated)
    given = {"platform_id": "ocid1.aidataplatform.oc1.iad.a", "endpoint": "http://localhost"}
    finding = asyncio.run(service_checks.clock(Settings.resolve(given, environ={})))
    assert (finding.state, finding.told) == (
        "skipped",
        "not compared: the reply has no readable date",
    )


@pytest.mark.mlflow
def test_doctor_finds_nothing_wrong(
    platform: LocalPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the settings that `serve` prints every step is fine, and the exit code 0."""
    platform.gateway.reset()
    for name, value in environment(platform).items():
        monkeypatch.setenv(name, value)

    result = run("doctor")

    assert set(states(result).values()) == {"ok"}, result.output
    assert result.exit_code == 0
    assert "AIDP_INSTANCE_ID" in result.output


def test_doctor_tells_every_wrong_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only the first one."""
    monkeypatch.setenv("AIDP_INSTANCE_ID", "mine")
    monkeypatch.setenv("AIDP_ENDPOINT", "http://example.com")
    monkeypatch.setenv("ADP_ASYNC_LINGER", "soon")
    monkeypatch.setenv("OCI_CLI_AUTH", "magic")

    result = run("doctor")

    assert result.exit_code == 1
    assert "4 problems to fix" in result.output
    for name in ("platform_id", "endpoint", "linger", "auth"):
        assert re.search(rf"^WRONG settings +{name}: ", result.output, re.MULTILINE), name


def test_doctor_tells_settings_of_any_content(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers that would overflow, bytes that are not text, a pipe: named, and no traceback."""
    monkeypatch.setenv("ADP_ASYNC_MAX_BLOCK", "1e308")
    monkeypatch.setenv("ADP_ASYNC_BUFFER_LIMIT", "9" * 5000)
    monkeypatch.setenv("AIDP_WORKSPACE", "a\udcffb")
    monkeypatch.setenv("OCI_CLI_REGION", "hell")

    result = run("doctor", "--platform-id", "ocid1.aidataplatform.oc1.iad.a")

    assert result.exit_code == 1
    for name in ("max_block", "buffer_limit", "workspace", "region"):
        assert re.search(rf"^WRONG settings +{name}: ", result.output, re.MULTILINE), name
    assert "the environment's OCI_CLI_REGION" in result.output


def test_doctor_names_a_config_file_that_is_a_pipe(bare: LocalPlatform, tmp_path: Path) -> None:
    """It isn't waited for."""
    os.mkfifo(tmp_path / "pipe")

    result = run(
        *("doctor", "--platform-id", bare.platform_id, "--endpoint", bare.endpoint),
        *("--config-file", str(tmp_path / "pipe")),
    )

    assert result.exit_code == 1
    assert states(result)["credentials"] == "WRONG"
    assert "not a regular file" in result.output


def test_doctor_sees_a_session_token_under_api_key(at_bare: LocalPlatform, tmp_path: Path) -> None:
    """A section with a token of its own and the user of DEFAULT may want the other mode."""
    known = dict(re.findall(r"(\w+)=(.*)", at_bare.config_file.read_text()))
    config = tmp_path / "config"
    write_profile(config, "DEFAULT", known)
    with config.open("a") as file:
        file.write(f"[mine]\nsecurity_token_file={tmp_path / 'token'}\n")

    result = run("doctor", "--config-file", str(config), "--profile", "mine")

    assert states(result)["config"] == "warn"
    assert "auth='security_token'" in result.output


def test_doctor_takes_options(bare: LocalPlatform) -> None:
    """Options set the platform as the environment does, and are shown as the source."""
    result = run(
        "doctor",
        *("--platform-id", bare.platform_id, "--workspace", bare.workspace),
        *("--endpoint", bare.endpoint, "--config-file", str(bare.config_file)),
        *("--profile", bare.profile),
    )

    assert states(result)["service"] == "ok"
    assert result.exit_code == 0
    assert f"{bare.endpoint} (--endpoint)" in result.output


def test_doctor_names_a_config_file_that_is_missing(bare: LocalPlatform) -> None:
    """The service isn't asked then."""
    result = run("doctor", "--platform-id", bare.platform_id, "--endpoint", bare.endpoint)

    assert result.exit_code == 1
    assert states(result)["credentials"] == "WRONG"
    assert states(result)["service"] == "-"
    assert "oci setup config" in result.output


def test_doctor_says_when_nobody_listens(at_bare: LocalPlatform) -> None:
    """Connection refused is the network's fault, and the service's consequence."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]

    result = run("doctor", "--endpoint", f"http://127.0.0.1:{port}")

    assert result.exit_code == 1
    assert states(result)["network"] == states(result)["service"] == "WRONG"
    assert "Connection refused" in result.output


def test_doctor_says_what_a_404_means(at_bare: LocalPlatform) -> None:
    """Another workspace, or a policy that is missing."""
    result = run("doctor", "--workspace", "other")

    assert result.exit_code == 1
    assert states(result)["service"] == "WRONG"
    assert "policy" in result.output


def test_doctor_says_what_a_401_means(at_bare: LocalPlatform, tmp_path: Path) -> None:
    """A key that the service doesn't know: the fix names what to compare; the clock is fine."""
    key_file = tmp_path / "key.pem"
    key_file.write_bytes(_pem(generate_key()))
    key_file.chmod(0o644)
    config = tmp_path / "config"
    known = dict(re.findall(r"(\w+)=(.*)", at_bare.config_file.read_text()))
    write_profile(config, "OTHER", known | {"key_file": str(key_file)})

    result = run("doctor", "--config-file", str(config), "--profile", "OTHER")

    assert result.exit_code == 1
    assert states(result)["service"] == "WRONG"
    assert states(result)["clock"] == "ok"
    assert "fingerprint" in result.output
    assert f"chmod 600 {key_file}" in result.output


def test_doctor_compares_the_clocks(at_bare: LocalPlatform) -> None:
    """20 minutes are worth a word, although a session corrects for them."""
    at_bare.gateway.clock_offset = 1200.0

    result = run("doctor")

    assert states(result)["clock"] == "warn"
    # (A busy machine looks a little later.)
    assert re.search(r"1,(19\d|20[01]) s behind the service's", result.output)
    assert result.exit_code == 0


def test_doctor_says_that_it_is_throttled(
    at_bare: LocalPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 429 is not a fault of the settings."""
    monkeypatch.setattr("adp_async.cli.service_checks.CALL_TIMEOUT", 2.0)
    at_bare.gateway.inject(Fault.reply(429), times=None)

    result = run("doctor")

    assert states(result)["service"] == "warn"
    assert result.exit_code == 0


def test_doctor_looks_at_the_spool(
    at_bare: LocalPlatform, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A folder that cannot be created is wrong; a spool that is off is shown."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("ADP_ASYNC_SPOOL", str(tmp_path / "file" / "spool"))
    broken = run("doctor")
    monkeypatch.setenv("ADP_ASYNC_SPOOL", "off")
    off = run("doctor")

    assert (states(broken)["spool"], broken.exit_code) == ("WRONG", 1)
    assert (states(off)["spool"], off.exit_code) == ("warn", 0)


def test_doctor_says_that_there_is_no_home(
    at_bare: LocalPlatform, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A user of whom the system knows nothing but a number: the journal is a temporary file."""
    import pwd
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def unknown(uid: int) -> Any:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_STATE_HOME", "ADP_ASYNC_SPOOL"):
        monkeypatch.delenv(name, raising=False)
    result = run("doctor")
    assert (states(result)["spool"], result.exit_code) == ("warn", 0)
    assert "no home folder" in result.output

    monkeypatch.delenv("OCI_CONFIG_FILE")
    monkeypatch.setenv("ADP_ASYNC_SPOOL", "~/spool")
    result = run("doctor")
    assert result.exit_code == 1
    assert "spool: '~/spool' has no home folder to start from" in result.output


def test_doctor_says_that_others_can_write_to_the_spool(
    at_bare: LocalPlatform, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the fix; a session would keep its records in memory."""
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    monkeypatch.setenv("ADP_ASYNC_SPOOL", str(tmp_path / "open"))
    result = run("doctor")

    assert (states(result)["spool"], result.exit_code) == ("WRONG", 1)
    assert "chmod go-w" in result.output


def test_doctor_shows_nothing_that_steers_a_terminal(
    at_bare: LocalPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither from the settings nor from the service."""
    evil = "\x1b[31mRED\x1b]0;owned\x07\u202eX"
    monkeypatch.setenv("ADP_ASYNC_PATH_PREFIX", evil)
    settings = run("doctor")
    monkeypatch.delenv("ADP_ASYNC_PATH_PREFIX")
    at_bare.gateway.inject(Fault.reply(403, "NotAllowed", evil), times=None)
    service = run("doctor")

    for result in (settings, service):
        assert result.exit_code == 1
        assert all(each.isprintable() or each == "\n" for each in result.output)


def test_doctor_shows_no_secret(at_bare: LocalPlatform, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the key, nor a passphrase, nor what stands before an @ in an address."""
    with at_bare.config_file.open("a") as file:
        file.write("pass_phrase=open sesame\n")
    monkeypatch.setenv("HTTPS_PROXY", "http://user:hunter2@localhost:1")
    secrets = ["PRIVATE KEY", "open sesame", "hunter2", "swordfish"]

    outputs = [run("doctor"), run("doctor", "--endpoint", "https://user:swordfish@example.com")]

    for result in outputs:
        assert not [secret for secret in secrets if secret in result.output + result.stderr]


def test_doctor_writes_no_control_codes_into_a_pipe(at_bare: LocalPlatform) -> None:
    """And folds no line."""
    done = subprocess.run([*COMMAND, "doctor"], capture_output=True, text=True)

    assert "\x1b" not in done.stdout
    assert done.stderr == ""
    assert at_bare.platform_id in done.stdout


def _pem(key: RSAPrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
