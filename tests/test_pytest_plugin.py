"""The pytest plugin, in pytest runs of its own."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
import pytest_asyncio

from adp_async import pytest_plugin

if TYPE_CHECKING:
    from collections.abc import Callable

pytest_plugins = ["pytester"]

ROOT: Final = Path(__file__).parent.parent
#: The plugin as pytest loads it from the installed package, and neither twice nor not at all.
PLUGIN: Final = (["-p", "adp_async.pytest_plugin"], ["-p", "no:adp_async"])


@pytest.fixture
def run(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., pytest.RunResult]:
    """Run pytest in another process, on a file with this text."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def run(text: str, *options: str) -> pytest.RunResult:
        pytester.makepyfile(text)
        load, leave_out = PLUGIN
        own = ["-W", "error", "-p", "no:cacheprovider", "-p", "no:xdist", *leave_out, *load]
        if "no:asyncio" not in options:
            own += ["-o", "asyncio_default_fixture_loop_scope=function"]
        return pytester.runpytest_subprocess(*own, *options, timeout=120)

    return run


COROUTINE: Final = """
    import pytest

    async def fit(session):
        async with session.start_run("digits", params={"lr": 0.1}) as run:
            run.log_metric("loss", 0.5, step=1)
        return run.run_id

    MARK
    async def test_one(adp_session):
        run_id = await fit(adp_session)
        received = adp_session.received(run_id)
        assert [(point.key, point.value) for point in received.metrics] == [("loss", 0.5)]
        assert received.info["status"] == "FINISHED"

    MARK
    async def test_another(adp_session):
        assert adp_session.is_open
        assert adp_session.requests == []
"""


@pytest.mark.parametrize(
    ("mark", "options"),
    [
        ("@pytest.mark.asyncio", ["-o", "asyncio_mode=strict"]),
        ("", ["-o", "asyncio_mode=auto"]),
    ],
    ids=["strict", "auto"],
)
def test_with_pytest_asyncio(
    mark: str, options: list[str], run: Callable[..., pytest.RunResult]
) -> None:
    """An open fake session, a new one for each test, in both of its modes."""
    result = run(COROUTINE.replace("MARK", mark), *options)

    result.assert_outcomes(passed=2)


def test_with_anyio(run: Callable[..., pytest.RunResult], pytester: pytest.Pytester) -> None:
    """Without pytest-asyncio, anyio's plugin runs the fixture."""
    pytester.makeconftest(
        """
        import pytest

        @pytest.fixture
        def anyio_backend():
            return "asyncio"
        """
    )
    result = run(COROUTINE.replace("MARK", "@pytest.mark.anyio"), "-p", "no:asyncio")

    result.assert_outcomes(passed=2)


def test_without_pytest_asyncio(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is not installed, the fixture is one of pytest's own."""
    assert pytest_plugin._async_fixture() is pytest_asyncio.fixture
    monkeypatch.setattr(pytest_plugin, "find_spec", lambda name: None)
    assert pytest_plugin._async_fixture() is pytest.fixture


def test_anyio_beside_pytest_asyncio(run: Callable[..., pytest.RunResult]) -> None:
    """That would be two event loops: the error says so, and what to write instead."""
    result = run(COROUTINE.replace("MARK", "@pytest.mark.anyio"))

    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*event loop of pytest-asyncio*async with FakeSession()*"])


def test_blocking(run: Callable[..., pytest.RunResult]) -> None:
    """Without an event loop."""
    result = run(
        """
        def test_it(adp_blocking_session):
            with adp_blocking_session.start_run("digits") as run:
                run.log_metric("loss", 0.5)
            received = adp_blocking_session.session.received(run.run_id)
            assert [point.value for point in received.metrics] == [0.5]

        def test_another(adp_blocking_session):
            assert adp_blocking_session.session.requests == []
        """
    )

    result.assert_outcomes(passed=2)


def test_what_is_refused_fails_the_test(run: Callable[..., pytest.RunResult]) -> None:
    """As it would fail the application when it closes its session."""
    result = run(
        """
        def test_it(adp_blocking_session):
            run = adp_blocking_session.start_run("digits")
            run.log_param("lr", 0.1)
            run.flush()
            run.log_param("lr", 0.2)
        """
    )

    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*DeliveryError: the service refused param 'lr'*"])


PLATFORM: Final = """
    import adp_async
    import pytest

    def test_blocking_code(adp_platform):
        with adp_platform.blocking_session() as session, session.start_run("digits") as run:
            run.log_metric("loss", 0.5)
        with adp_platform.blocking_session() as session:
            points = list(session.runs.metric_history(run.run_id, "loss"))
        assert [point.value for point in points] == [0.5]

    @pytest.mark.asyncio
    async def test_a_coroutine(adp_platform):
        async with adp_platform.session() as session, session.start_run("digits") as run:
            run.log_metric("loss", 0.25)
            await run.flush()

    def test_the_environment(adp_environment, adp_platform):
        assert adp_environment is adp_platform
        with adp_async.blocking.start_run("digits", spool=True) as run:
            run.log_metric("loss", 0.5)
            run.flush()
        assert run.settings.endpoint == adp_platform.endpoint

    def test_the_environment_is_put_back(adp_platform, monkeypatch):
        import os

        assert os.environ.get("AIDP_ENDPOINT") != adp_platform.endpoint
"""


@pytest.mark.mlflow
def test_the_platform(run: Callable[..., pytest.RunResult]) -> None:
    """Started once, with a real MLflow; for blocking code, coroutines and the environment."""
    mlflow = """
    def test_mlflow(adp_platform):
        assert adp_platform.mlflow_url
    """
    result = run(PLATFORM + mlflow)

    result.assert_outcomes(passed=5)


def test_the_platform_without_mlflow(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]
) -> None:
    """A stand-in takes MLflow's place where it is not installed."""
    pytester.makeconftest(
        """
        from adp_async import pytest_plugin

        pytest_plugin._has_mlflow = lambda: False
        """
    )
    result = run(
        """
        def test_it(adp_platform):
            with adp_platform.blocking_session() as session, session.start_run() as run:
                run.log_metric("loss", 0.5)
            assert adp_platform.mlflow_url == ""
            assert len(adp_platform.gateway.received(run.run_id).metrics) == 1
        """
    )

    result.assert_outcomes(passed=1)


@pytest.mark.parametrize("name", ["mlflow", "uvicorn"])
def test_without_mlflow(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs both packages, and mlflow-skinny is not MLflow."""

    def find(wanted: str) -> object:
        if wanted == name:
            raise PackageNotFoundError(wanted)
        return distribution(wanted)

    assert pytest_plugin._has_mlflow() == (sys.platform != "win32")
    monkeypatch.setattr(pytest_plugin, "distribution", find)
    assert not pytest_plugin._has_mlflow()


def test_the_fixtures_are_shown(run: Callable[..., pytest.RunResult]) -> None:
    """`pytest --fixtures` explains each in a line."""
    result = run("def test_it(): ...", "--fixtures")

    for name in ("adp_session", "adp_blocking_session", "adp_platform", "adp_environment"):
        result.stdout.fnmatch_lines([f"{name}*"])


#: What the plugin must leave to the fixtures: each takes its time.
HEAVY: Final = (
    "adp_async.testing", "adp_async.local", "adp_async.cli", "oci", "mlflow", "cryptography",
    "sqlite3", "typer", "rich", "cattrs", "numpy", "pandas",
)  # fmt: skip


def test_loading_it_is_light() -> None:
    """It imports what `import adp_async` does, and pytest's own; nothing heavy of ours."""
    code = (
        "import adp_async, sys; before = set(sys.modules); import pytest, pytest_asyncio;"
        "usual = set(sys.modules); import adp_async.pytest_plugin;"
        "print(*sorted(set(sys.modules) - usual));"
        f"print(*[name for name in {HEAVY!r} if name in sys.modules and name not in before])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ran.stdout.splitlines() == ["adp_async.pytest_plugin", ""]


def test_the_entry_point() -> None:
    """The package declares the plugin under the name that `-p no:` takes."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")

    assert '[project.entry-points.pytest11]\nadp_async = "adp_async.pytest_plugin"\n' in text
