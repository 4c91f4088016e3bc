"""Starts and stops a real MLflow server in a process of its own, on SQLite.

The listening socket is opened here and inherited by the process, so its port cannot be taken by
another program while MLflow is still importing.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from adp_async.errors import AdpError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["MlflowServer", "MlflowServerError"]

logger = logging.getLogger("adp_async")

_SCRIPT = Path(__file__).with_name("mlflow_process.py")
_NEEDED = ("mlflow", "uvicorn")
_POLL = 0.05
#: Seconds that it gets to end by itself, before it is killed.
_SECONDS_TO_END = 5.0


class MlflowServerError(AdpError):
    """MLflow's process ended, or was not ready in time; the message has the tail of its log."""


class MlflowServer:
    """A real MLflow server on 127.0.0.1, its database and artifacts in *directory*.

    *progress* is called a few times a second while it starts, with the phase and the seconds
    since the start.  Starting takes 10 to 40 s, nearly all of it Python importing MLflow.
    """

    def __init__(
        self,
        directory: Path,
        *,
        start_timeout: float = 180.0,
        progress: Callable[[str, float], None] | None = None,
    ) -> None:
        self.directory = directory
        self.log_file = directory / "mlflow.log"
        self.url = ""
        self.start_seconds = 0.0
        self._start_timeout = start_timeout
        self._progress = progress or _no_progress
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Return when MLflow answers; its address is then in `url`."""
        _check_system()
        _check_installed()
        began = time.monotonic()
        try:
            self._launch()
            await self._until_ready(began)
        except BaseException:
            await self.stop()
            raise
        self.start_seconds = time.monotonic() - began
        logger.debug("MLflow answers after %.1f s", self.start_seconds)

    async def stop(self) -> None:
        """End the process and everything it started; kill it if that takes more than 5 s."""
        process, self._process = self._process, None
        if process is not None:
            # A thread, and shielded: a cancelled caller must not leave a process behind.
            await asyncio.shield(asyncio.to_thread(_end, process))

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _launch(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener, self.log_file.open("wb") as log:
            self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            # -P: the script's folder has a platform.py, which must not shadow the library's.
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-P", str(_SCRIPT), str(listener.fileno())],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(self.directory, os.environ),
                cwd=self.directory,
                pass_fds=(listener.fileno(),),
                start_new_session=True,
            )

    async def _until_ready(self, began: float) -> None:
        while (phase := self._phase()) != "ready":
            elapsed = time.monotonic() - began
            self._progress(phase, elapsed)
            self._check_alive(elapsed)
            await asyncio.sleep(_POLL)
        self._progress("ready", time.monotonic() - began)

    def _phase(self) -> str:
        lines = _lines(self.log_file)
        said = [line for line in lines if line in {"importing MLflow", "preparing the database"}]
        if "ready" in lines:
            return "ready"
        return said[-1] if said else "starting Python"

    def _check_alive(self, elapsed: float) -> None:
        if not self.is_running:
            self._fail(f"MLflow's process ended after {elapsed:.0f} s")
        if elapsed > self._start_timeout:
            self._fail(f"MLflow was not ready after {elapsed:.0f} s")

    def _fail(self, what: str) -> None:
        tail = "\n".join(_lines(self.log_file)[-20:])
        message = f"{what}; the end of {self.log_file}:\n{tail}"
        raise MlflowServerError(message)

    def __repr__(self) -> str:
        state = "running" if self.is_running else "stopped"
        return f"<MlflowServer {self.url or 'not started'} | {state}>"


def _check_system() -> None:
    if sys.platform == "win32":
        message = (
            "a real MLflow is started on Linux and macOS only; on Windows the local platform has a "
            "stand-in: LocalPlatform(mlflow=False), or adp-async serve --no-mlflow"
        )
        raise ConfigurationError(message)


def _check_installed() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        message = (
            f"the local platform needs {' and '.join(missing)}, which cannot be imported; "
            "install them with: pip install 'adp-async[local]'"
        )
        raise ConfigurationError(message)


def _environment(directory: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """Our variables and the caller's, without its MLflow settings, meant for another server."""
    kept = {name: value for name, value in environ.items() if "MLFLOW" not in name}
    return {
        **kept,
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{directory / 'mlflow.db'}",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": (directory / "artifacts").as_uri(),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        # Refuse values that are too long: nothing may arrive changed.
        "MLFLOW_TRUNCATE_LONG_VALUES": "false",
        "GIT_PYTHON_REFRESH": "quiet",
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore",
    }


def _end(process: subprocess.Popen[bytes]) -> None:
    _signal(process, signal.SIGTERM)
    try:
        process.wait(_SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        logger.debug("MLflow did not end in time and is killed")
    # The leader may have ended before a process it started.
    _signal(process, signal.SIGKILL)  # type: ignore[attr-defined, unused-ignore]  # not on Windows
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)  # type: ignore[attr-defined, unused-ignore]  # nor this
    except ProcessLookupError:
        logger.debug("MLflow's process group is already gone")


def _lines(path: Path) -> list[str]:
    return path.read_text("utf-8", "replace").splitlines() if path.exists() else []


def _no_progress(phase: str, seconds: float) -> None:
    """Do nothing."""
