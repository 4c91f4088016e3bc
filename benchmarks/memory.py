"""What a metric that waits takes: 1,000,000 of them, with the service down.

Each measurement is a process of its own that does nothing else: resident memory before and after,
and once more under tracemalloc.  The floor is a tuple with a timestamp in a deque; the peer is the
queue of MLflow's asynchronous logging, in front of a server that never answers.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import json
import logging
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from benchmarks._harness import Goal, Options, Report, Samples, Table, run
from benchmarks._servers import ROOT, with_credentials

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CHUNK = 10_000


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# In the process that is measured ------------------------------------------------------------------


class Scale:
    """Bytes each of *count* things that were made since."""

    def __init__(self, count: int, *, traced: bool) -> None:
        self._count = count
        self._traced = traced
        gc.collect()
        if traced:
            tracemalloc.start()
        self._before = self._used()
        self._peak_before = _peak()

    def _used(self) -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0] if self._traced else _resident()

    def tell(self) -> NoReturn:
        """Print it, and end the process: nobody waits for what shall not be delivered."""
        each = (self._used() - self._before) / self._count
        peak = (_peak() - self._peak_before) / self._count
        print(json.dumps({"bytes": each, "peak": peak}), flush=True)
        os._exit(0)


async def _ours(count: int, *, traced: bool) -> NoReturn:
    with tempfile.TemporaryDirectory() as folder:
        target = with_credentials("http://127.0.0.1:1", Path(folder))  # nobody listens there
        session = target.session(buffer_limit=2**40, linger=3600.0, close_timeout=0.0)
        await session.open()
        run = session.attach_run("bench")
        scale = Scale(count, traced=traced)
        for step in range(count):
            run.log_metric("loss", 1.0 / (step + 1), step)
            if step % CHUNK == 0:
                await asyncio.sleep(0)
        await asyncio.sleep(0.2)  # everything is in its lane, a batch has failed
        scale.tell()


def _floor(count: int, *, traced: bool) -> NoReturn:
    waiting: deque[tuple[str, float, int, int]] = deque()
    scale = Scale(count, traced=traced)
    for step in range(count):
        waiting.append(("loss", 1.0 / (step + 1), step, time.time_ns() // 1_000_000))
    scale.tell()


def _mlflow(count: int, *, traced: bool) -> NoReturn:
    from mlflow.tracking import MlflowClient

    listener = socket.create_server(("127.0.0.1", 0))  # takes connections and never answers
    client = MlflowClient(f"http://127.0.0.1:{listener.getsockname()[1]}")
    client.log_metric("bench", "loss", 0.0, synchronous=False)
    scale = Scale(count, traced=traced)
    for step in range(count):
        client.log_metric("bench", "loss", 1.0 / (step + 1), step=step, synchronous=False)
    scale.tell()


def _child(question: dict[str, Any]) -> None:
    logging.disable(logging.CRITICAL)  # that the service is down is the point
    ways: dict[str, Callable[..., NoReturn]] = {
        "ours": lambda **sizes: asyncio.run(_ours(**sizes)),
        "floor": _floor,
        "mlflow": _mlflow,
    }
    ways[question.pop("what")](**question)


# In the benchmark ---------------------------------------------------------------------------------


def _in_fresh_process(what: str, count: int, *, traced: bool) -> dict[str, float]:
    question = json.dumps({"what": what, "count": count, "traced": traced})
    found = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", "--child", question],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
        timeout=120.0,
    )
    answer: dict[str, float] = json.loads(found.stdout.splitlines()[-1])
    return answer


def measure(options: Options) -> Report:
    """Bytes of a waiting metric."""
    count = options.size(1_000_000, 2000)
    report = Report(f"Memory of {count:,} waiting metrics")
    sizes = {"ours": count, "floor": count}
    if options.peers and importlib.util.find_spec("mlflow"):
        sizes["mlflow"] = count // 50  # a fiftieth is all it takes in a second
    names = {
        "ours": "adp_async, the service down",
        "floor": "tuple into a deque",
        "mlflow": f"MLflow's asynchronous queue ({count // 50:,} metrics)",
    }
    headings = ("what", "resident bytes", "low - high", "peak bytes", "tracemalloc bytes")
    table = Table("Bytes of each", headings)
    for what, its_count in sizes.items():
        rounds = min(options.rounds, 5)
        found = [_in_fresh_process(what, its_count, traced=False) for _ in range(rounds)]
        traced = _in_fresh_process(what, its_count, traced=True)["bytes"]
        resident = Samples(what, "", tuple(each["bytes"] for each in found))
        peak = Samples(what, "", tuple(each["peak"] for each in found))
        table.add(names[what], resident.median, resident.spread, peak.median, traced)
        if what == "ours":
            what_goal = "memory of a waiting metric, bytes"
            report.goals.append(Goal.at_most(what_goal, 200.0, resident.median))
    report.tables.append(table)
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    return run(measure, __doc__, arguments)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _child(json.loads(sys.argv[2]))
    sys.exit(main())
