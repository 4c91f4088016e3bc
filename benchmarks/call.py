"""What a call of ``log_metric`` costs, against appending a tuple, and against MLflow's.

The floor appends ``(key, value, step, milliseconds)`` to a deque.  The delivery thread encodes,
signs and posts meanwhile.  So there are two figures: the CPU of the calling thread, which is what
the call itself costs, and the time that each call takes by the clock, which now and then includes
waiting for the interpreter while the delivery thread has it.  MLflow's asynchronous ``log_metric``
(through `MlflowClient`, its shortest way) runs in a process of its own, against the same server.
"""

from __future__ import annotations

import asyncio
import importlib.util
import statistics
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from time import time_ns
from typing import TYPE_CHECKING, Any

import numpy

from benchmarks._harness import (
    Contender,
    Goal,
    Options,
    Report,
    Samples,
    Table,
    comparison,
    percentile,
    run,
    take_turns,
)
from benchmarks._servers import answering, ask, child
from benchmarks._timing import VALUE, distribution, each_cost, mean_cost

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from adp_async import Run, blocking
    from benchmarks._servers import AnsweringServer, Target
    from benchmarks._timing import LogMetric

THREADS = 8
WIDE = 20


class Floor:
    """A deque, and what a call would have to do at the very least."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[str, float, int, int]] = deque()
        self._append = self.waiting.append

    def log_metric(self, key: str, value: float, step: int) -> None:
        self._append((key, value, step, time_ns() // 1_000_000))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        now = time_ns() // 1_000_000
        self.waiting.extend((key, value, step, now) for key, value in metrics.items())


def _floor_cost(keys: Sequence[str]) -> float:
    """The floor proper: in the loop itself, without a function around it."""
    waiting: deque[tuple[str, float, int, int]] = deque()
    append, value = waiting.append, VALUE
    began = time.thread_time_ns()
    for step, key in enumerate(keys):
        append((key, value, step, time_ns() // 1_000_000))
    return (time.thread_time_ns() - began) / len(keys)


def _keys(count: int, distinct: int) -> list[str]:
    return [f"loss/{number % distinct}" for number in range(count)]


# From the event loop ----------------------------------------------------------------------------


def _on_loop(run: Run, keys: Sequence[str]) -> list[Contender]:
    async def ours() -> float:
        cost = mean_cost(run.log_metric, keys)
        await run.flush()
        return cost

    async def floor() -> float:
        return _floor_cost(keys)

    async def floor_function() -> float:
        return mean_cost(Floor().log_metric, keys)

    return [
        Contender("adp_async", "ours", ours),
        Contender("tuple into a deque", "floor", floor),
        Contender("the same in a method", "", floor_function),
    ]


def _wide(run: Run, count: int) -> list[Contender]:
    metrics = {f"wide/{number}": VALUE for number in range(WIDE)}

    async def ours() -> float:
        log_metrics = run.log_metrics
        began = time.thread_time_ns()
        for step in range(count // WIDE):
            log_metrics(metrics, step)
        cost = (time.thread_time_ns() - began) / count
        await run.flush()
        return cost

    async def floor() -> float:
        return _floor_cost(_keys(count, WIDE))

    return [
        Contender("adp_async", "ours", ours),
        Contender("tuple into a deque", "floor", floor),
    ]


async def _from_loop(target: Target, options: Options) -> list[list[Samples]]:
    count = options.size(20_000, 500)
    async with target.session() as session:
        run = session.attach_run("bench")
        return [
            await take_turns(_on_loop(run, _keys(count, 1)), options.rounds),
            await take_turns(_on_loop(run, _keys(count, 200)), options.rounds),
            await take_turns(_wide(run, count), options.rounds),
        ]


# From threads -----------------------------------------------------------------------------------


def _in_threads(log_metric: LogMetric, keys: Sequence[str], threads: int) -> float:
    """Nanoseconds a call when all threads log at once, seen from outside."""
    barrier = threading.Barrier(threads + 1)
    share = keys[: len(keys) // threads]

    def work() -> None:
        barrier.wait()
        mean_cost(log_metric, share)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    barrier.wait()
    began = time.perf_counter_ns()
    for worker in workers:
        worker.join()
    return (time.perf_counter_ns() - began) / (len(share) * threads)


def _threaded(run: blocking.Run, keys: Sequence[str], threads: int) -> list[Contender]:
    async def ours() -> float:
        cost = _in_threads(run.log_metric, keys, threads)
        run.flush(60.0)
        return cost

    async def floor() -> float:
        return _in_threads(Floor().log_metric, keys, threads)

    return [
        Contender("adp_async", "ours", ours),
        Contender("tuple into a deque", "floor", floor),
    ]


def _from_threads(run: blocking.Run, options: Options) -> list[list[Samples]]:
    count = options.size(48_000, 800)
    return [
        asyncio.run(take_turns(_threaded(run, _keys(count, distinct), threads), options.rounds))
        for threads in (1, THREADS)
        for distinct in (1, 200)
    ]


# Single calls, and a training loop that is busy with numpy ----------------------------------------


def _train(steps: int, log_metric: LogMetric | None) -> tuple[list[float], list[int]]:
    """Seconds of each step, and nanoseconds of each of its 20 calls."""
    generator = numpy.random.default_rng(0)
    weights = generator.random((160, 160))
    seconds, calls = [], []
    keys = _keys(WIDE, WIDE)
    for _ in range(steps):
        began = time.perf_counter()
        weights = numpy.tanh(weights @ weights.T / 160.0)
        if log_metric is not None:
            calls += each_cost(log_metric, keys)
        seconds.append(time.perf_counter() - began)
    return seconds, calls


def _single_calls(target: Target, run: blocking.Run, options: Options) -> Table:
    table = Table(
        "One call at a time",
        ("from", "what", "mean ns", "p50 ns", "p99 ns", "max us"),
    )

    def add(where: str, what: str, costs: Sequence[int]) -> None:
        found = distribution(costs)
        table.add(where, what, found["mean"], found["p50"], found["p99"], found["max"] / 1000)

    count = options.size(96_000, 800)
    asyncio.run(_single_on_loop(target, count, add))
    for where, threads in (("another thread", 1), (f"{THREADS} threads", THREADS)):
        for distinct in (1, 200):
            keys = _keys(count, distinct)
            for what, log_metric in _ways(run):
                costs = _each_in_threads(log_metric, keys, threads)
                add(f"{where}, {_named(distinct)}", what, costs)
                run.flush(60.0)
    return table


async def _single_on_loop(
    target: Target, count: int, add: Callable[[str, str, Sequence[int]], None]
) -> None:
    async with target.session() as session:
        run = session.attach_run("bench")
        for distinct in (1, 200):
            for what, log_metric in _ways(run):
                add(
                    f"the loop, {_named(distinct)}",
                    what,
                    each_cost(log_metric, _keys(count, distinct)),
                )
                await run.flush()
        metrics = {f"wide/{number}": VALUE for number in range(WIDE)}
        wide = [("adp_async", run.log_metrics), ("tuple into a deque", Floor().log_metrics)]
        for what, log_metrics in wide:

            def log_all(
                _key: str, _value: float, step: int, log_metrics: Any = log_metrics
            ) -> None:
                log_metrics(metrics, step)

            add(
                f"the loop, log_metrics of {WIDE}", what, each_cost(log_all, [""] * (count // WIDE))
            )
            await run.flush()


def _ways(run: Run | blocking.Run) -> list[tuple[str, LogMetric]]:
    return [("adp_async", run.log_metric), ("tuple into a deque", Floor().log_metric)]


def _named(keys: int) -> str:
    return f"{keys} key{'s' if keys > 1 else ''}"


def _each_in_threads(log_metric: LogMetric, keys: Sequence[str], threads: int) -> list[int]:
    shares = [keys[: len(keys) // threads]] * threads
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(lambda share: each_cost(log_metric, share), shares))
    return [cost for costs in found for cost in costs]


def _busy_loop(run: blocking.Run, options: Options) -> Table:
    steps = options.size(1500, 20)
    table = Table(
        f"A training loop of numpy, {WIDE} metrics a step",
        ("what", "step p50 us", "step p99 us", "call p50 ns", "call p99 ns", "call max us"),
    )
    ways: list[tuple[str, LogMetric | None]] = [
        ("no logging", None),
        ("tuple into a deque", Floor().log_metric),
        ("adp_async", run.log_metric),
    ]
    _train(steps // 10, None)
    for name, log_metric in ways:
        seconds, calls = _train(steps, log_metric)
        run.flush(60.0)
        table.add(name, *_percentiles_us(seconds), *_call_cells(calls))
    return table


def _percentiles_us(seconds: Sequence[float]) -> list[float]:
    return [percentile(seconds, share) * 1e6 for share in (0.5, 0.99)]


def _call_cells(calls: Sequence[int]) -> list[str | float]:
    if not calls:
        return ["", "", ""]
    found = distribution(calls)
    return [found["p50"], found["p99"], found["max"] / 1000]


# MLflow -------------------------------------------------------------------------------------------


def _mlflow(server: AnsweringServer, options: Options, ours: Samples) -> Table:
    table = Table(
        "MLflow's asynchronous log_metric, one call at a time, its sender at work",
        ("what", "mean us", "p50 us", "p99 us", "max us", "mean / ours"),
    )
    count = options.size(2000, 20)
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true"}
    with child("benchmarks._mlflow_peer", server.url, **quiet) as process:
        for mode in ("default", "buffered"):
            for keys in (1, 200):
                question = {"do": "calls", "count": count, "mode": mode, "keys": keys}
                rounds = [ask(process, question) for _ in range(min(options.rounds, 5))]
                row = [
                    statistics.median(found[name] for found in rounds) / 1000
                    for name in ("mean", "p50", "p99", "max")
                ]
                name = f"MLflow, {mode}, {_named(keys)}"
                table.add(name, *row, row[0] * 1000 / ours.median)
    return table


def _goals(ours: Samples, floor: Samples, mlflow: Table | None) -> list[Goal]:
    goals = [Goal.at_most("a log_metric call / a tuple into a deque", 2.0, ours.over(floor))]
    if mlflow is not None:
        what = "MLflow's asynchronous log_metric (default setting) / ours"
        times = float(mlflow.rows[0][-1].replace(",", ""))
        goals.append(Goal.at_least(what, 100.0, times))
    return goals


def measure(options: Options) -> Report:
    """The cost of a call from everywhere."""
    report = Report("The cost of a log_metric call")
    titles = [
        "From the event loop, 1 key",
        "From the event loop, 200 keys",
        f"From the event loop, log_metrics of {WIDE}",
        *(
            f"From {where}, {_named(distinct)}, the sender at work"
            for where in ("another thread", f"{THREADS} threads")
            for distinct in (1, 200)
        ),
    ]
    with answering() as server:
        found = asyncio.run(_from_loop(server.target, options))
        with server.target.blocking_session() as session:
            run = session.attach_run("bench")
            found += _from_threads(run, options)
            tables = [_single_calls(server.target, run, options), _busy_loop(run, options)]
        mlflow = None
        if options.peers and importlib.util.find_spec("mlflow"):
            mlflow = _mlflow(server, options, found[0][0])
            tables.append(mlflow)
        report.notes += server.notes
    pairs: list[tuple[str, list[Samples]]] = list(zip(titles, found, strict=True))
    report.tables = [comparison(title, "ns / metric", samples) for title, samples in pairs]
    report.tables += tables
    report.goals = _goals(found[0][0], found[0][1], mlflow)
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    return run(measure, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
