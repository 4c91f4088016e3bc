"""One run from many processes under a quota: a session each, and one collector for all.

Sixteen processes log 50 points a second each into one run: one full request a second would carry
it.  With a session each they share the quota without knowing of each other; with a collector they
hand their points to the process that shares the run.  A point's value is the moment at which it was
logged, so that the gateway knows how long it took to arrive; it saves up the quota of a second.

And how many records a second go through one collector, with its journal, when workers log as fast
as they can and the server answers at once.  All of it shares the machine's cores: workers,
collector and server.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from attrs import define, field, frozen

from benchmarks._cluster_worker import _cpu
from benchmarks._harness import Goal, Options, Report, Table, percentile, run
from benchmarks._servers import answering, child, platform

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence

    from adp_async import blocking
    from benchmarks._servers import Platform, Target

PROCESSES = 16
RATE = 50.0
SECONDS = 30.0
#: Beyond which a point that has not arrived is counted as not arrived: what ``close`` would wait.
PATIENCE = 25.0
QUOTAS = (2.0, 10.0, 50.0)
#: Of the test how fast a collector is.
FLAT_OUT_WORKERS, FLAT_OUT_POINTS = 2, 1_000_000


@define
class Workers:
    """Processes that log at the same time."""

    processes: list[subprocess.Popen[str]]
    told: list[dict[str, Any]] = field(factory=list)

    @classmethod
    def start(cls, stack: ExitStack, count: int, how: dict[str, Any]) -> Workers:
        module = "benchmarks._cluster_worker"
        processes = [stack.enter_context(child(module)) for _ in range(count)]
        for number, process in enumerate(processes):
            _write(process, {**how, "name": f"w{number}"})
        for process in processes:
            _read(process)
        return cls(processes)

    def go(self) -> None:
        for process in self.processes:
            _write(process, {})

    def wait(self) -> None:
        self.told = [_read(process) for process in self.processes]

    def sum(self, name: str) -> float:
        return float(sum(each[name] for each in self.told))

    def median(self, name: str) -> float:
        return statistics.median(each[name] for each in self.told)


def _write(process: subprocess.Popen[str], said: dict[str, Any]) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(said) + "\n")
    process.stdin.flush()


def _read(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    found: dict[str, Any] = json.loads(process.stdout.readline())
    return found


@frozen
class Outcome:
    """What one way did under one quota."""

    arrived: float
    refused: float
    requests: int
    latencies: list[float] = field(repr=False)
    cpu: float
    memory: float

    def row(self) -> list[float | str]:
        p50, p95, most = self.latency()
        return [
            f"{self.arrived:.0%}", f"{self.refused:.0%}", self.requests, p50, p95, most, self.cpu,
            self.memory,
        ]  # fmt: skip

    def latency(self) -> tuple[float, float, float]:
        found = self.latencies or [0.0]
        return percentile(found, 0.5), percentile(found, 0.95), max(found)


def _how(target: Target, folder: str, **more: Any) -> dict[str, Any]:
    return {
        "handle": "", "rate": 0.0, "points": 0, "seconds": 0.0, "patience": PATIENCE,
        "endpoint": target.endpoint, "platform_id": target.platform_id,
        "workspace": target.workspace, "config_file": str(target.config_file), "spool": folder,
        **more,
    }  # fmt: skip


def _alone(platform: Platform, options: Options, quota: float) -> Outcome:
    """A session each."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="adp-async-bench-"))
        return _outcome(platform, options, quota, stack, folder, None)


def _together(platform: Platform, options: Options, quota: float) -> Outcome:
    """One collector, in this process."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="adp-async-bench-"))
        session = stack.enter_context(platform.target.blocking_session(spool=folder))
        shared = session.attach_run("bench").shared()
        stack.enter_context(shared)
        return _outcome(platform, options, quota, stack, folder, (session, shared))


def _outcome(
    platform: Platform,
    options: Options,
    quota: float,
    stack: ExitStack,
    folder: str,
    collector: tuple[blocking.Session, Any] | None,
) -> Outcome:
    seconds = options.size(SECONDS, 0.5)
    how = _how(
        platform.target,
        folder,
        rate=RATE,
        seconds=seconds,
        patience=options.size(PATIENCE, 5.0),
        handle=collector[1].handle.to_json() if collector else "",
    )
    workers = Workers.start(stack, options.size(PROCESSES, 2), how)
    platform.set_quota(0, quota, quota)
    platform.latencies(0)
    workers.go()
    workers.wait()
    if collector is not None:
        with suppress(TimeoutError):  # what has not arrived is counted
            collector[0].logger.flush("bench", timeout=how["patience"])
    counts = platform.counts(0)
    latencies = platform.latencies(0)
    platform.lift_quota(0)
    return Outcome(
        arrived=counts["records"] / workers.sum("accepted"),
        refused=counts["refused"] / max(1, counts["requests"]),
        requests=counts["requests"],
        latencies=latencies,
        cpu=workers.median("cpu"),
        memory=workers.median("memory"),
    )


def _throughput(options: Options, rounds: int) -> tuple[list[float], list[float]]:
    """Records a second through one collector, and its CPU microseconds a record."""
    rates: list[float] = []
    costs: list[float] = []
    points = options.size(FLAT_OUT_POINTS, 2000)
    with answering() as server, tempfile.TemporaryDirectory(prefix="adp-async-bench-") as folder:
        for _ in range(rounds):
            with ExitStack() as stack:
                session = stack.enter_context(server.target.blocking_session(spool=folder))
                shared = session.attach_run("bench").shared()
                handle = stack.enter_context(shared)
                how = _how(server.target, folder, points=points, handle=handle.to_json())
                workers = Workers.start(stack, FLAT_OUT_WORKERS, {**how, "patience": 120.0})
                before, began = _cpu(), time.perf_counter()
                workers.go()
                workers.wait()
                session.logger.flush()
                seconds = time.perf_counter() - began
                taken = shared.stats().taken
                assert taken == points * FLAT_OUT_WORKERS
                rates.append(taken / seconds)
                costs.append(1e6 * (_cpu() - before) / taken)
    return rates, costs


def measure(options: Options) -> Report:
    """Both ways under each quota, and the speed of a collector."""
    report = Report("One run, many processes")
    ways = {"a session each": _alone, "one collector": _together}
    headings = (
        "quota", "way", "arrived", "refused", "requests", "latency p50 s", "p95", "max",
        "CPU s a worker", "MiB a worker",
    )  # fmt: skip
    count = options.size(PROCESSES, 2)
    what = f"{count} processes, {RATE:g} points/s each, for {options.size(SECONDS, 0.5):g} s"
    table = Table(what, headings)
    found: dict[tuple[float, str], Outcome] = {}
    with platform(mlflow=False) as gateways:
        for quota in options.size(QUOTAS, (50.0,)):
            for name, way in ways.items():
                outcome = found[quota, name] = way(gateways, options, quota)
                table.add(f"{quota:g}/s", name, *outcome.row())
    report.tables.append(table)
    rates, costs = _throughput(options, options.size(3, 1))
    speed = Table("Through one collector", ("what", "median", "low", "high"))
    speed.add("records/s", statistics.median(rates), min(rates), max(rates))
    speed.add("CPU us a record", statistics.median(costs), min(costs), max(costs))
    report.tables.append(speed)
    slowest = found[min(quota for quota, _ in found), "one collector"]
    report.goals += [
        Goal.at_most("refused at the lowest quota, one collector", 0.05, slowest.refused),
        Goal.at_most("latency p95 there, seconds", 2.0, slowest.latency()[1]),
        Goal.at_least("arrived there", 1.0, slowest.arrived),
        Goal.at_least("records/s through one collector", 200_000, statistics.median(rates)),
    ]
    report.notes.append(f"The machine has {os.cpu_count()} cores, shared by all processes.")
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    return run(measure, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
