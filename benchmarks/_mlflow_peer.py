"""MLflow's own client, in a process of its own, told in lines what to measure.

Its tracking URI is the only argument.  A question names what to *do* (a function below) and the
*mode* of MLflow's asynchronous logging: ``default``, or ``buffered`` with
``MLFLOW_ASYNC_LOGGING_BUFFERING_SECONDS=1``, the smallest it takes.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from mlflow.entities import Metric
from mlflow.tracking import MlflowClient

from benchmarks._clients import BATCH, value_of
from benchmarks._timing import distribution, each_cost

if TYPE_CHECKING:
    from collections.abc import Callable

BUFFERING = "MLFLOW_ASYNC_LOGGING_BUFFERING_SECONDS"


class Peer:
    """The client and its queue."""

    def __init__(self, tracking_uri: str) -> None:
        self.client = MlflowClient(tracking_uri)
        self._mode = ""

    def use(self, mode: str) -> None:
        """MLflow reads the setting when its queue starts, and a flush starts it anew."""
        if mode == "buffered":
            os.environ[BUFFERING] = "1"
        else:
            os.environ.pop(BUFFERING, None)
        if mode != self._mode:
            self.client.log_metric("bench", "warm", 0.0, synchronous=False)
            self.flush()
            self._mode = mode

    def flush(self) -> None:
        self.client._tracking_client.store.flush_async_logging()

    def calls(self, count: int, mode: str, keys: int) -> dict[str, float]:
        """Nanoseconds of one asynchronous ``log_metric``."""
        self.use(mode)
        client = self.client
        names = [f"loss/{number % keys}" for number in range(count)]

        def log_metric(key: str, value: float, step: int) -> None:
            client.log_metric("bench", key, value, step=step, synchronous=False)

        found = distribution(each_cost(log_metric, names))
        self.flush()
        return found

    def asynchronous(self, count: int, mode: str, run_ids: list[str]) -> dict[str, float]:
        """Seconds until *count* asynchronous metrics have arrived."""
        self.use(mode)
        began = time.perf_counter()
        for step in range(count):
            run_id = run_ids[step % len(run_ids)]
            self.client.log_metric(run_id, "async", value_of(step), step=step, synchronous=False)
        self.flush()
        return {"seconds": time.perf_counter() - began}

    def one_by_one(self, count: int, run_ids: list[str]) -> dict[str, float]:
        """Seconds of *count* synchronous ``log_metric``."""
        began = time.perf_counter()
        for step in range(count):
            self.client.log_metric(run_ids[step % len(run_ids)], "sync", value_of(step), step=step)
        return {"seconds": time.perf_counter() - began}

    def log_batch(self, batches: int, run_ids: list[str]) -> dict[str, float]:
        """Seconds of *batches* synchronous ``log_batch`` of 1000."""
        now = time.time_ns() // 1_000_000
        ready = [
            [Metric("batch", value_of(step), now, number * BATCH + step) for step in range(BATCH)]
            for number in range(batches)
        ]
        began = time.perf_counter()
        for number, metrics in enumerate(ready):
            self.client.log_batch(run_ids[number % len(run_ids)], metrics=metrics)
        return {"seconds": time.perf_counter() - began}


def main(tracking_uri: str) -> None:
    logging.disable(logging.CRITICAL)
    peer = Peer(tracking_uri)
    answers: dict[str, Callable[..., Any]] = {
        name: getattr(peer, name) for name in ("calls", "asynchronous", "one_by_one", "log_batch")
    }
    for line in sys.stdin:
        question = json.loads(line)
        print(json.dumps(answers[question.pop("do")](**question)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
    # Its threads may be in the middle of a retry, and nobody waits for that.
    sys.stdout.flush()
    os._exit(0)
