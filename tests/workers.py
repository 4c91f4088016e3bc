"""What processes of the collector's tests do: importable by name, so that they can be spawned."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any


def log_some(handle: Any, worker: int, count: int = 100, **how: Any) -> tuple[int, int]:
    """Log *count* numbered points, exit; the process, and how many the collector has."""
    with handle.attach(**how) as run:
        for step in range(count):
            run.log_metric(f"w{worker}", step * 0.5, step)
    return os.getpid(), run.stats().delivered


def log_by_run(run: Any, worker: int, count: int = 100) -> tuple[int, int]:
    """The same with a run that was passed itself, within ``with run``."""
    with run:
        for step in range(count):
            run.log_metric(f"w{worker}", step * 0.5, step)
    return os.getpid(), run.stats().delivered


def log_async(handle: Any, worker: int, count: int = 100) -> tuple[int, int]:
    """The same on an event loop."""

    async def log() -> tuple[int, int]:
        async with handle.attach() as run:
            for step in range(count):
                run.log_metric(f"w{worker}", step * 0.5, step)
            await run.flush()
            return os.getpid(), run.stats().delivered

    return asyncio.run(log())


def log_without_leaving(handle: Any, worker: int, count: int = 100) -> None:
    """Log and hang, until somebody kills this."""
    run = handle.attach()
    for step in range(count):
        run.log_metric(f"w{worker}", step * 0.5, step)
    run.flush()
    time.sleep(60)


def what_is_imported(handle: Any, worker: int) -> list[str]:
    """Log a little, and tell which modules of weight are there, and what this process knows."""
    import sys

    log_some(handle, worker, 1)
    heavy = ("oci", "cryptography", "sqlite3", "mlflow")
    return [name for name in heavy if name in sys.modules]


def log_by_mlflow(handle: Any, how: str) -> str | None:
    """Log by MLflow's fluent API within a block; the status afterwards, as MLflow reads it."""
    import mlflow

    for name in [each for each in os.environ if each.startswith(("AIDP_", "OCI_"))]:
        del os.environ[name]
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    mlflow.set_tracking_uri("aidp://")
    more = {"commit": "task", "attempt": "7"} if how == "attempt" else {}
    with handle.attach(**more) as run:
        with mlflow.start_run(run_id=run.run_id):
            for step in range(100):
                mlflow.log_metric(how, step * 0.5, step=step)
            mlflow.log_param(f"by {how}", 1)
        run.log_metric("own", 1.0)
        return mlflow.get_run(run.run_id).info.status
