"""Fixtures for tests of code that logs; pytest loads them by itself.

``adp_session``
    an open `adp_async.testing.FakeSession`: requests are answered in the test's process, and
    ``adp_session.received(run_id)`` has what arrived.  For tests that are coroutines, with
    pytest-asyncio, or with anyio's plugin where that is not loaded.
``adp_blocking_session``
    the same for code without an event loop: a `adp_async.testing.FakeBlockingSession`.
``adp_platform``
    a `adp_async.local.LocalPlatform` that is started once and serves all tests: sockets,
    signatures, and a real MLflow where the extra ``local`` is installed, else a stand-in that
    knows runs and log-batch.  It runs in a thread of its own, so that tests of both kinds can
    use it; ``adp_platform.session()`` and ``adp_platform.blocking_session()`` are sessions for it.
``adp_environment``
    leads code that takes its settings from the environment to that platform, for one test.

A fake session whose records were refused, or were not delivered when the test ended, raises then,
as a session of the application would.  ``-p no:adp_async`` leaves the plugin out.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from adp_async.local import LocalPlatform
    from adp_async.testing import FakeBlockingSession, FakeSession


def _async_fixture() -> Any:
    """What makes a fixture of a coroutine: pytest-asyncio's, whose strict mode takes no other."""
    if find_spec("pytest_asyncio") is None:
        return pytest.fixture
    import pytest_asyncio

    return pytest_asyncio.fixture


@_async_fixture()  # type: ignore[untyped-decorator]
async def adp_session(request: pytest.FixtureRequest) -> AsyncIterator[FakeSession]:
    """An open `FakeSession`, closed after the test."""
    from adp_async.testing import FakeSession

    is_asyncio = request.config.pluginmanager.hasplugin("asyncio")
    if is_asyncio and request.node.get_closest_marker("anyio"):
        pytest.fail(
            "adp_session is opened in the event loop of pytest-asyncio, and this test runs in "
            "anyio's; write `async with FakeSession() as session:` in the test instead",
            pytrace=False,
        )
    async with FakeSession() as session:
        yield session


@pytest.fixture
def adp_blocking_session() -> Iterator[FakeBlockingSession]:
    """An open `FakeBlockingSession`, closed after the test."""
    from adp_async.testing import FakeBlockingSession

    with FakeBlockingSession() as session:
        yield session


@pytest.fixture(scope="session")
def adp_platform() -> Iterator[LocalPlatform]:
    """A started `LocalPlatform`, with a real MLflow where that is installed."""
    from adp_async.local import LocalPlatform

    with LocalPlatform(mlflow=_has_mlflow()) as platform:
        yield platform


def _has_mlflow() -> bool:
    """Whether MLflow's server can be started: not with mlflow-skinny, nor on Windows."""
    try:
        for name in ("mlflow", "uvicorn"):
            distribution(name)
    except PackageNotFoundError:
        return False
    return sys.platform != "win32"


@pytest.fixture
def adp_environment(adp_platform: LocalPlatform, monkeypatch: pytest.MonkeyPatch) -> LocalPlatform:
    """`adp_platform`, and the environment that leads to it."""
    from adp_async.cli.serve import environment

    for name, value in environment(adp_platform).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ADP_ASYNC_SPOOL", str(adp_platform.config_file.with_name("spool")))
    return adp_platform
