"""End to end into a real MLflow behind the gateway, with 1 run and with 16.

The store (SQLite) is the bottleneck, so what counts is that it never waits for us.  The floor posts
ready-made batches of 1000 by hand, one after another or four in flight.  The peers log through the
same MLflow, MLflow's own client without the gateway in between.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from benchmarks._clients import (
    BATCH,
    LOG_BATCH,
    HandWritten,
    Official,
    oci_async_client,
    ready_batches,
    value_of,
)
from benchmarks._harness import (
    Contender,
    Goal,
    Options,
    Report,
    Samples,
    Table,
    best_floor,
    comparison,
    number,
    run,
    take_turns,
)
from benchmarks._servers import ask, child, platform

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from adp_async import Session
    from benchmarks._clients import Batch
    from benchmarks._servers import Platform, Target

RUNS = 16


async def _new_runs(session: Session, count: int) -> list[str]:
    made = [await session.runs.create(experiment_id="0") for _ in range(count)]
    return [each.info.run_id for each in made if each.info is not None]


def _ours(session: Session, run_ids: Sequence[str], count: int, name: str = "") -> Contender:
    runs = [session.attach_run(run_id) for run_id in run_ids]
    values = [value_of(step) for step in range(count)]

    async def once() -> float:
        began = time.perf_counter()
        for step, value in enumerate(values):
            runs[step % len(runs)].log_metric("loss", value, step)
        await session.logger.flush()
        return count / (time.perf_counter() - began)

    return Contender(name, "", once) if name else Contender("adp_async", "ours", once)


def _floor(hand: HandWritten, run_ids: Sequence[str], count: int, in_flight: int) -> Contender:
    async def once() -> float:
        # New ones each time: for MLflow a point it has already is another, slower case.
        batches = ready_batches(run_ids, count // BATCH)
        began = time.perf_counter()
        await hand.send(batches, in_flight)
        return count / (time.perf_counter() - began)

    order = "one after another" if in_flight == 1 else f"{in_flight} in flight"
    return Contender(f"ready batches by hand, {order}", "floor", once)


async def _rates(target: Target, options: Options, runs: int) -> list[Samples]:
    count = options.size(16, runs) * BATCH
    async with (
        target.session() as session,
        target.session(max_in_flight=1) as patient,
        HandWritten(target) as hand,
    ):
        # Each has runs of its own.
        contenders = [
            _ours(session, await _new_runs(session, runs), count),
            _ours(patient, await _new_runs(session, runs), count, "adp_async, max_in_flight=1"),
        ]
        for in_flight in (1, 4):
            run_ids = await _new_runs(session, runs)
            contenders.append(_floor(hand, run_ids, count, in_flight))
        return await take_turns(contenders, options.rounds)


# Peers: each at a size it can do in a second or two, since some are a hundred times slower --------


async def _official_rates(target: Target, options: Options) -> dict[str, list[float]]:
    rounds = options.size(5, 1)
    found: dict[str, list[float]] = {}
    async with target.session() as session, AsyncExitStack() as stack:
        (run_id,) = await _new_runs(session, 1)
        official = Official(target, threads=4)
        stack.callback(official.close)

        async def alone(batches: Sequence[Batch]) -> None:
            for batch in batches:
                await asyncio.to_thread(official.log_batch, batch)

        async def in_pool(batches: Sequence[Batch]) -> None:
            await official.in_pool(official.log_batch, batches)

        async def by_oci(batches: Sequence[Batch]) -> None:
            await _by_oci(client, target, batches)

        ways: dict[str, Callable[[Sequence[Batch]], Awaitable[None]]] = {
            "MLOpsClient, batches of 1000": alone,
            "MLOpsClient, batches of 1000, 4 threads": in_pool,
        }
        client = oci_async_client(target)
        if client is not None:
            stack.push_async_callback(client.close)
            ways["oci AsyncBaseClient, batches of 1000"] = by_oci
        for _ in range(rounds):
            for name, way in ways.items():
                batches = ready_batches([run_id], options.size(4, 1))
                began = time.perf_counter()
                await way(batches)
                rate = len(batches) * BATCH / (time.perf_counter() - began)
                found.setdefault(name, []).append(rate)
        found["aiohttp, a signed call a metric"] = [
            await _call_a_metric(target, run_id, options.size(50, 5)) for _ in range(rounds)
        ]
    return found


async def _by_oci(client: Any, target: Target, batches: Sequence[Batch]) -> None:
    path = f"{target.base}/{LOG_BATCH}"
    for batch in batches:
        metrics = [
            {"key": p.key, "value": p.value, "timestamp": p.timestamp, "step": p.step}
            for p in batch.metrics
        ]
        await client.call_api(path, "POST", body={"run_id": batch.run_id, "metrics": metrics})


async def _call_a_metric(target: Target, run_id: str, count: int) -> float:
    async with HandWritten(target, "mlflow/runs/log-metric") as hand:
        began = time.perf_counter()
        for step in range(count):
            point = {"run_id": run_id, "key": "one", "value": value_of(step), "step": step}
            point["timestamp"] = time.time_ns() // 1_000_000
            status, _ = await hand.post(json.dumps(point).encode())
            assert status == 200, status
        return count / (time.perf_counter() - began)


async def _make_runs(target: Target, count: int) -> list[str]:
    async with target.session() as session:
        return await _new_runs(session, count)


def _mlflow_rates(where: Platform, options: Options) -> dict[str, list[float]]:
    run_ids = asyncio.run(_make_runs(where.target, 1))
    few, many = options.size(50, 5), options.size(3000, 20)
    batches = options.size(4, 1)
    queued: dict[str, object] = {"do": "asynchronous", "run_ids": run_ids}
    questions: dict[str, tuple[int, dict[str, Any]]] = {
        "MLflow log_metric": (few, {"do": "one_by_one", "count": few, "run_ids": run_ids}),
        "MLflow log_batch, batches of 1000": (
            batches * BATCH,
            {"do": "log_batch", "batches": batches, "run_ids": run_ids},
        ),
        "MLflow asynchronous, default": (few, {**queued, "count": few, "mode": "default"}),
        "MLflow asynchronous, buffered": (many, {**queued, "count": many, "mode": "buffered"}),
    }
    found: dict[str, list[float]] = {name: [] for name in questions}
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true"}
    with child("benchmarks._mlflow_peer", where.mlflow_url, **quiet) as process:
        for _ in range(options.size(5, 1)):
            for name, (count, question) in questions.items():
                found[name].append(count / ask(process, question)["seconds"])
    return found


def _peers(where: Platform, options: Options, ours: Samples) -> Table:
    found = asyncio.run(_official_rates(where.target, options)) | _mlflow_rates(where, options)
    headings = ("contender", "role", "median metrics/s", "low - high", "ours / it")
    table = Table("Peers, 1 run (each measured by itself, after the table above)", headings)
    for name, rates in found.items():
        median = statistics.median(rates)
        spread = f"{number(min(rates))} - {number(max(rates))}"
        table.add(name, "peer", median, spread, ours.median / median)
    return table


def measure(options: Options) -> Report:
    """Rates into the real thing."""
    report = Report("End to end, into a real MLflow behind the gateway")
    with platform(mlflow=True) as where:
        for runs in (1, options.size(RUNS, 2)):
            samples = asyncio.run(_rates(where.target, options, runs))
            title = f"Metrics delivered a second, {runs} run{'s' if runs > 1 else ''}"
            report.tables.append(comparison(title, "metrics/s", samples))
            floor = best_floor(samples, more_is_better=True)
            what = f"into real MLflow, {runs} run{'s' if runs > 1 else ''}: rate / by hand"
            ratio = samples[0].over(floor)
            report.goals.append(Goal.at_least(what, 0.95, ratio, note=floor.name))
            if runs == 1:
                single = samples[0]
        if options.peers:
            report.tables.append(_peers(where, options, single))
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    return run(measure, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
