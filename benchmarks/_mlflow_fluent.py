"""Stock MLflow code in a process of its own, told in lines what to measure.

Its tracking URI is the only argument.  A question has the *mode*: ``sync``, ``default`` or
``buffered`` for MLflow's own ways on http, ``aidp`` for ours, which is stock code as well.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time

import mlflow

from benchmarks._timing import distribution, each_cost

BUFFERING = "MLFLOW_ASYNC_LOGGING_BUFFERING_SECONDS"
SYNCHRONOUS = {"sync": True, "default": False, "buffered": False, "aidp": None}


def measure(count: int, mode: str) -> dict[str, float]:
    """Nanoseconds of ``mlflow.log_metric``, and how many a second were delivered."""
    if mode == "buffered":
        os.environ[BUFFERING] = "1"
    synchronous = SYNCHRONOUS[mode]

    def log_metric(key: str, value: float, step: int) -> None:
        mlflow.log_metric(key, value, step=step, synchronous=synchronous)

    with mlflow.start_run():
        log_metric("warm", 0.0, 0)
        mlflow.flush_async_logging()
        began = time.perf_counter()
        found = distribution(each_cost(log_metric, ["loss"] * count))
        mlflow.flush_async_logging()
        found["rate"] = count / (time.perf_counter() - began)
    os.environ.pop(BUFFERING, None)
    return found


def of_the_store(count: int) -> dict[str, float]:
    """Nanoseconds of what our store does in one such call."""
    from mlflow.entities import Metric

    with mlflow.start_run() as run:
        store = mlflow.tracking._get_store()

        def log_metric(key: str, value: float, step: int) -> None:
            store.log_metric(run.info.run_id, Metric(key, value, 1_700_000_000_000, step))

        return distribution(each_cost(log_metric, ["store"] * count))


def main(tracking_uri: str) -> None:
    logging.disable(logging.CRITICAL)
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_experiment("benchmark")
    answers = {"calls": measure, "store": of_the_store}
    for line in sys.stdin:
        question = json.loads(line)
        print(json.dumps(answers[question.pop("do")](**question)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
