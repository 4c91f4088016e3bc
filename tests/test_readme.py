"""The README is true: its code runs, its commands are the gate's, its tables are complete."""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import inspect
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import mlflow
import pytest
import typer
import yaml
from aiohttp import ClientSession
from aiohttp.test_utils import TestServer
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import adp_async
from adp_async._knobs import variable_of
from adp_async.api.__main__ import table
from adp_async.cli import app
from adp_async.cli.serve import environment
from adp_async.instrumentation import HOOKS, watching
from adp_async.settings import Settings
from adp_async.testing import FakeBlockingSession

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adp_async.local import Gateway, LocalPlatform

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


#: Its blocks are the cells of one notebook.
NOTEBOOK = "A notebook"


def blocks(language: str) -> list[Any]:
    """The code blocks of a language, each under the heading it stands below."""
    found: list[tuple[str, str]] = []
    for match in re.finditer(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL):
        heading = re.findall(r"^##+ (.+)$", README[: match.start()], re.MULTILINE)[-1]
        if heading == NOTEBOOK and found[-1][0] == heading:
            found[-1] = (heading, f"{found[-1][1]}\n{match[1]}")
        else:
            found.append((heading, match[1]))
    return [pytest.param(code, id=heading) for heading, code in found]


def framework_of(code: Any) -> str:
    """The framework that a block trains with, if it does."""
    text = code if isinstance(code, str) else code.values[0]
    found = re.search(r"^from adp_async\.integrations\.(\w+) import", text, re.MULTILINE)
    return found[1] if found else ""


def has_processes(code: Any) -> bool:
    """Whether a block starts processes of its own."""
    return "import multiprocessing" in code.values[0]


#: What a block imports, or names, that logs through an engine; and the module that it takes.
ENGINES = {
    "from pyspark": "pyspark",
    "import ray": "ray",
    "import torch.distributed": "torch",
    "from distributed": "distributed",
    "# served.py": "gunicorn",
}


def engine_of(code: Any) -> str:
    """The engine that a block logs through, if it does."""
    text = code if isinstance(code, str) else code.values[0]
    found = [name for begin, name in ENGINES.items() if re.search(f"^{begin}", text, re.MULTILINE)]
    return found[0] if found else ""


def has_fixtures(code: Any) -> bool:
    """Whether it is a file for pytest, with fixtures of ours."""
    return re.search(r"^(async )?def test_\w+\(adp_", code.values[0], re.MULTILINE) is not None


def kind_of(code: Any) -> str:
    """Which of the tests below runs a block."""
    if engine_of(code):
        return "engine"
    if has_processes(code):
        return "processes"
    if has_fixtures(code):
        return "tests"
    return "framework" if framework_of(code) else "plain"


def python_blocks(kind: str) -> list[Any]:
    return [each for each in blocks("python") if kind_of(each) == kind]


def between(name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", README, re.DOTALL)
    assert found is not None, name
    return found[1]


def lines_of(language: str) -> list[str]:
    return [line for block in blocks(language) for line in block.values[0].splitlines() if line]


# ------------------------------------------------------------------ the code


@pytest.fixture
def local_environment(
    platform: LocalPlatform, gateway: Gateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[None]:
    """What ``adp-async serve`` prints for a shell; MLflow forgets afterwards where it was."""
    for name, value in environment(platform).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ADP_ASYNC_SPOOL", str(tmp_path / "spool"))
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.setenv(name, "")  # what the code sets is taken back
    log = logging.getLogger("adp_async")
    monkeypatch.setattr(log, "handlers", [*log.handlers])
    yield
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)
    forget_hooks()


def forget_hooks() -> None:
    """The code may have set some."""
    for name in HOOKS:
        setattr(watching, name, ())


@pytest.mark.mlflow
@pytest.mark.usefixtures("local_environment")
@pytest.mark.parametrize("code", python_blocks("plain"))
def test_the_code_runs(code: str) -> None:
    """Every Python block runs as it stands, by itself; its tests pass, its application answers."""
    names = run_code(code)
    for name, value in names.items():
        if name.startswith("test_"):
            asyncio.run(value())
    if isinstance(names.get("app"), FastAPI):
        use_fastapi(names["app"])
    elif "app" in names:
        asyncio.run(use_web_application(names["app"]))


@pytest.mark.mlflow
@pytest.mark.usefixtures("local_environment")
@pytest.mark.parametrize("code", python_blocks("processes"))
def test_the_processes_run(code: str, tmp_path: Path) -> None:
    """Blocks that start processes are scripts: those import them by their file."""
    path = tmp_path / "script.py"
    path.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, path], env=environment, cwd=tmp_path, capture_output=True, timeout=120
    )
    assert (ran.returncode, ran.stderr.decode()) == (0, "")


@pytest.mark.mlflow
@pytest.mark.usefixtures("local_environment")
@pytest.mark.parametrize("code", python_blocks("framework"))
def test_the_training_runs(code: str, tmp_path: Path) -> None:
    """So does every block that trains with a framework, in a process of its own."""
    framework = framework_of(code)
    if importlib.util.find_spec(framework) is None:
        pytest.skip(f"needs {framework}: pip install 'adp-async[test-frameworks]'")
    environment = {**os.environ, "KERAS_BACKEND": "torch", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, timeout=180)
    assert ran.returncode == 0, ran.stderr.decode()
    assert b"training goes on" not in ran.stderr
    assert b"is logged as" not in ran.stderr


@pytest.mark.mlflow
@pytest.mark.usefixtures("local_environment")
@pytest.mark.parametrize("code", python_blocks("engine"))
def test_the_engines_run(code: str, gateway: Gateway, tmp_path: Path) -> None:
    """So does every block that logs through an engine, as its users start it; points arrive."""
    engine = engine_of(code)
    if importlib.util.find_spec(engine) is None:
        pytest.skip(f"needs {engine}: pip install 'adp-async[test-cluster]'")
    if engine == "pyspark" and shutil.which("java") is None:
        pytest.skip("needs a Java runtime")
    (tmp_path / "served.py").write_text(code)
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)]),
        "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_USAGE_STATS_ENABLED": "0",
    }  # fmt: skip
    command = [sys.executable, *STARTED.get(engine, ["served.py"])]
    process = subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE)
    try:
        if engine == "gunicorn":
            ask_gunicorn()
            process.terminate()
        _, errors = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, errors.decode()[-5000:]
    assert gateway.by_operation["log_experiment_run_batch"] > 0
    assert gateway.by_operation["update_experiment_run"] > 0, "the run was ended"


#: How a block is started, other than as a script.
PORT = 8479
STARTED = {
    "torch": [
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "served.py",
    ],
    "gunicorn": ["-m", "gunicorn", "--preload", "-b", f"127.0.0.1:{PORT}", "served:app"],
}  # fmt: skip


def ask_gunicorn() -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/", timeout=20) as answer:
                assert answer.read() == b"logged"
                return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.mark.mlflow
@pytest.mark.parametrize("code", python_blocks("tests"))
def test_the_tests_pass(code: str, tmp_path: Path) -> None:
    """So does a block for pytest, in a run of its own, with the plugin."""
    (tmp_path / "test_it.py").write_text(code)
    own = ["-p", "no:adp_async", "-p", "adp_async.pytest_plugin", "-o", "asyncio_mode=auto"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *own]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, timeout=120)
    assert f"{code.count('def test_')} passed" in ran.stdout.decode(), ran.stdout.decode()


def run_code(code: str) -> dict[str, Any]:
    """Run *code* as a script, or as a notebook's cell when it awaits."""
    names: dict[str, Any] = {
        "__name__": "__main__",
        "batches": range(1, 6),
        "train": lambda batch: 1 / batch,
    }
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    compiled = compile(code, "<README>", "exec", flags=flags, dont_inherit=True)
    if compiled.co_flags & inspect.CO_COROUTINE:
        asyncio.run(eval(compiled, names))
    else:
        exec(compiled, names)
    return names


def use_fastapi(application: FastAPI) -> None:
    """Its route logs, its handler answers 422 for a client's bad key, and it tells its health."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of httpx, which newer ones of Starlette replace
        from fastapi.testclient import TestClient
    with adp_async.blocking.Session() as session:
        run = session.start_run("web")
        with TestClient(application) as client:
            answer = client.post(f"/runs/{run.run_id}/scores", json={"score": 0.5})
            assert (answer.status_code, set(answer.json())) == (200, {"waiting"})
            answer = client.post(f"/runs/{run.run_id}/scores", json={"sc\nore": 0.5})
            assert answer.status_code == 422
            assert f"metric 'sc\\nore' of run {run.run_id}" in answer.json()["detail"]
            health = client.get("/health").json()
            assert health["tracking"] == "ok"
            assert set(health) == {"tracking", "since", "waiting"}
        points = [point.value for point in session.runs.metric_history(run.run_id, "score")]
        run.finish()
    assert points == [0.5]


async def use_web_application(application: Any) -> None:
    async with adp_async.Session() as session:
        run = await session.start_run("web")
        async with TestServer(application) as server, ClientSession() as http:
            url = server.make_url(f"/runs/{run.run_id}/scores")
            async with http.post(url, json={"score": 0.5}) as answer:
                assert answer.status == 200
                assert set(await answer.json()) == {"waiting"}
        points = [point.value async for point in session.runs.metric_history(run.run_id, "score")]
        await run.finish()
    assert points == [0.5]


# ------------------------------------------------------------------ the commands


def test_the_gate_runs_the_test_command() -> None:
    """The line that `.ci/run` looks for stands once in the README, and does all the set-up."""
    gate = (ROOT / ".ci" / "run").read_text()
    pattern = re.search(r"grep -E '(.+)' README\.md", gate)
    assert pattern is not None

    found = [line for line in README.splitlines() if re.search(pattern[1], line)]

    assert len(found) == 1
    assert found[0] in lines_of("bash")
    assert found[0].startswith("python3 -m venv .venv && .venv/bin/pip install")


def test_each_of_the_two_commands_is_one_line() -> None:
    """A stranger pastes two lines: one ends in the demo, one in pytest."""
    ends = [line.rsplit(" && ", 1)[1] for line in lines_of("bash")]

    assert ends == [".venv/bin/adp-async demo", ".venv/bin/python -m pytest"]


def test_the_command_lines_are_understood() -> None:
    """Every `adp-async` line of the README parses, and no command is left out."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    seen = set()
    for line in lines_of("console"):
        dollar, program, name, *arguments = shlex.split(line, comments=True)
        assert (dollar, program) == ("$", "adp-async")
        commands[name].make_context(name, arguments)
        seen.add(name)
    assert seen == set(commands)


# ------------------------------------------------------------------ the tables


def test_the_knobs_are_those_of_the_settings() -> None:
    """The table has every setting, in order, with its variable and its default."""
    rows = [tuple(cells(line)[:3]) for line in between("knobs").splitlines()[2:]]

    assert rows == [
        (f"`{knob.name}`", f"`{name}`" if (name := variable(knob)) else "", default_of(knob))
        for knob in attrs.fields(Settings)
    ]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def variable(knob: attrs.Attribute[Any]) -> str:
    return "" if knob.name == "retry" else variable_of(knob)


def default_of(knob: attrs.Attribute[Any]) -> str:
    """A default as the table writes it."""
    if knob.name in ("auth", "retry"):
        return {"auth": "`api_key`", "retry": "`RetryPolicy()`"}[knob.name]
    match knob.default:
        case attrs.NOTHING:
            return "required"
        case None | "":
            return "none"
        case bool(switch):
            return "on" if switch else "off"
        case float(seconds):
            return f"{seconds:g} s"
        case int(size) if size >= 2**30:
            return f"{size // 2**30} GiB"
        case int(size) if size >= 2**20:
            return f"{size // 2**20} MiB"
        case int(count):
            return str(count)
        case text:
            return f"`{text}`"


def test_the_retry_policy_is_as_described() -> None:
    """The defaults of the policy stand beside it."""
    policy = adp_async.RetryPolicy()
    row = between("knobs").splitlines()[-1]

    assert f"`first_backoff` {policy.first_backoff:g} s" in row
    assert f"`max_backoff` {policy.max_backoff:g} s" in row
    assert f"`max_attempts` {policy.max_attempts} " in row


def test_the_limits_are_as_promised() -> None:
    """The numbers of the promise are those of `BatchLimits`."""
    limits = adp_async.BatchLimits()
    text = " ".join(README.split())

    assert (
        f"{limits.metrics:,} metrics, {limits.params} params, {limits.tags} tags, "
        f"{limits.entities:,} of all together, or {limits.body_bytes:,} bytes"
    ) in text


def test_the_operations_are_current() -> None:
    """The table is what `python -m adp_async.api` prints."""
    assert between("operations").strip() == table()


def test_every_error_is_named() -> None:
    """The table of errors has every public one."""
    section = README.partition("### Errors")[2].partition("\n## ")[0]
    errors = [
        name
        for name in adp_async.__all__
        if isinstance(kind := getattr(adp_async, name), type) and issubclass(kind, Exception)
    ]

    assert [name for name in errors if f"`{name}`" not in section and name != "AdpError"] == []


def test_every_way_to_sign_is_named() -> None:
    """The table of `auth` has every mode with its class."""
    modes = {
        name: kind
        for name in adp_async.__all__
        if (kind := getattr(getattr(adp_async, name), "mode", None)) and name != "CustomSigner"
    }

    for name, mode in modes.items():
        assert f"| `{mode}` | `{name}` |" in README


def test_links_lead_somewhere() -> None:
    """Files and headings that are linked exist."""
    headings = {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", README):
        is_there = target[1:] in headings if target.startswith("#") else (ROOT / target).exists()
        assert is_there or target.startswith("https://"), target


def test_the_version_is_in_the_changelog() -> None:
    """What is released is described."""
    assert f"### {adp_async.__version__}\n" in README.partition("## Changelog")[2]


# ------------------------------------------------------------------ recipes


def test_the_prometheus_recipe() -> None:
    """Its collector has the session's counts, in the format that Prometheus reads."""
    (code,) = [
        each.values[0] for each in blocks("python") if "class AdpCollector" in each.values[0]
    ]
    names: dict[str, Any] = {}
    exec(code.partition("\n\nwith ")[0], names)
    registry = CollectorRegistry()
    with FakeBlockingSession() as session:
        registry.register(names["AdpCollector"](session))
        run = session.attach_run(session.session.add_run())
        run.log_param("lr", 0.1)
        run.flush()
        run.log_param("lr", 0.2)
        assert run.try_flush() is not None
        session.session.logger._delivery.accumulator.rejections.take(None)
        text = generate_latest(registry).decode()
        value = registry.get_sample_value
        assert value("adp_async_accepted_total") == 2
        assert value("adp_async_delivered_total") == 1
        assert value("adp_async_rejected_total", {"error": "BadRequest"}) == 1
        assert value("adp_async_requests_total") == session.logger.stats().requests
        assert value("adp_async_waiting") == value("adp_async_oldest_seconds") == 0
        assert value("adp_async_health", {"status": "ok"}) == 1
        assert value("adp_async_health", {"status": "failing"}) == 0
    families = {family.name for family in text_string_to_metric_families(text)}
    alarms = set(re.findall(r"`(adp_async_\w+?)(?:_total)?[`{]", README))
    assert alarms
    assert alarms <= families


def test_the_grace_of_a_container() -> None:
    """Finishing requests and closing the session fit together into the pod's grace."""
    (manifest,) = [each.values[0] for each in blocks("yaml")]
    spec = yaml.safe_load(manifest)["spec"]
    (container,) = spec["containers"]
    environment = {each["name"]: each["value"] for each in container["env"]}
    requests = float(container["command"][-1])
    closing = float(environment["ADP_ASYNC_CLOSE_TIMEOUT"])

    assert requests + closing < spec["terminationGracePeriodSeconds"]
    assert set(environment) <= {variable(knob) for knob in attrs.fields(Settings)}
    (mount,) = container["volumeMounts"]
    assert environment["ADP_ASYNC_SPOOL"].startswith(f"{mount['mountPath']}/")
