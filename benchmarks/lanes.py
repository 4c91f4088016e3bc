"""Many runs: what a record costs with 1, 100 and 10,000 of them, and what an idle run holds.

The requests are the same throughout, 50 records each, and are not sent: what is measured is the
library's own work from the call to the verdict, and whether it grows with the number of lanes.

Part of that no library can help: with many runs the records of one request lie all over the memory.
How much it is shows the floor, which does nothing but append to a list for each run, and encode.
With one record of a run in a row, every record is a visit to another lane besides, where a visit
is otherwise shared by a step's records, or by all that came since the last look.

The last table is the call alone, ``session.logger.log_metric(run_id, ...)`` from an event loop that
gets a turn every 500 calls, while every run has something waiting: the first call for a run makes
its lane, and the later ones must not cost more the more runs there are.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import statistics
import sys
import time
import tracemalloc
from time import time_ns
from typing import TYPE_CHECKING, Any

from adp_async import BatchLimits, Settings
from adp_async._io.delivery import Delivery
from adp_async._io.loop_thread import LoopThread
from adp_async._sansio.records import Metric, encode_records
from adp_async._sansio.throttle import Throttle
from adp_async.logger import BatchLogger
from adp_async.writer import RunWriter
from benchmarks._harness import (
    Contender,
    Goal,
    Options,
    Report,
    Samples,
    Table,
    comparison,
    number,
    run,
    take_turns,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

PER_REQUEST = 50
#: Records of one run in a row: what a training loop logs in one step.
STEP = PER_REQUEST // 2
#: Calls between two turns of the event loop.
CALLS_A_TURN = 500


class _Service:
    """Takes everything at once."""

    async def post_batch(self, body: bytes, retry_token: str) -> None:
        return

    async def run_is_gone(self, run_id: str) -> bool:
        return False


class _Delivery:
    """A delivery in a thread of its own, as a session has it, for as long as the block takes."""

    async def __aenter__(self) -> Delivery:
        settings = Settings("ocid1.aidataplatform.oc1.iad.bench", linger=3600.0, buffer_limit=2**32)
        limits = BatchLimits(metrics=PER_REQUEST, entities=PER_REQUEST)
        self._delivery = Delivery(
            settings, _Service(), throttle=Throttle(), tokens=itertools.repeat(""), limits=limits
        )
        self._thread = LoopThread()
        await self._thread.run(self._delivery.open(self._thread))
        return self._delivery

    async def __aexit__(self, *_: object) -> None:
        await self._thread.run(self._delivery.close(10.0))
        self._thread.stop()


async def _flush(delivery: Delivery) -> None:
    await delivery.running(delivery.flush(None))


async def _cost(lanes: int, records: int, in_a_row: int) -> float:
    """CPU nanoseconds of a record, from the call to its delivery."""
    async with _Delivery() as delivery:
        writers = [RunWriter(f"run-{number}", delivery.intake) for number in range(lanes)]
        began = time.process_time_ns()
        for first in range(0, records, in_a_row):
            log_metric = writers[first // in_a_row % lanes].log_metric
            for step in range(in_a_row):
                log_metric("loss", 0.5, step)
            if first % (PER_REQUEST * 10) == 0:
                await asyncio.sleep(0)
        await _flush(delivery)
        cost = (time.process_time_ns() - began) / records
        assert delivery.accumulator.delivered == records
    return cost


def _bare_cost(lanes: int, records: int, in_a_row: int) -> float:
    """The same with a list for each run, and no logger."""
    queues: list[list[Metric]] = [[] for _ in range(lanes)]
    began = time.process_time_ns()
    for first in range(0, records, in_a_row):
        lane = first // in_a_row % lanes
        queue = queues[lane]
        for step in range(in_a_row):
            queue.append(Metric("loss", 0.5, time_ns() // 1_000_000, step))
        if len(queue) >= PER_REQUEST:
            encode_records(f"run-{lane}", queue, with_text=False)
            queue.clear()
    return (time.process_time_ns() - began) / records


def _contenders(counts: Sequence[int], records: int, in_a_row: int) -> list[Contender]:
    def floor(lanes: int) -> Contender:
        async def once() -> float:
            return _bare_cost(lanes, records, in_a_row)

        return Contender(f"bare lists, {_runs(lanes)}", "floor", once)

    def contender(lanes: int) -> Contender:
        async def once() -> float:
            return await _cost(lanes, records, in_a_row)

        return Contender(_runs(lanes), "ours" if lanes == counts[-1] else "", once)

    return [*map(contender, counts), floor(counts[0]), floor(counts[-1])]


def _runs(lanes: int) -> str:
    return f"{lanes:,} run{'s' if lanes > 1 else ''}"


async def _call_costs(lanes: int, calls: int) -> tuple[float, float]:
    """Nanoseconds of this thread for a run's first call, and for each of the *calls* after it."""
    run_ids = [f"run-{number}" for number in range(lanes)]
    async with _Delivery() as delivery:
        logger = BatchLogger(delivery)
        first = await _round(logger, run_ids)
        rounds = [await _round(logger, run_ids) for _ in range(calls)]
        assert delivery.accumulator.delivered == 0
    return first, statistics.median(rounds)


async def _round(logger: BatchLogger, run_ids: Sequence[str]) -> float:
    spent = 0
    for first in range(0, len(run_ids), CALLS_A_TURN):
        began = time.thread_time_ns()
        for run_id in run_ids[first : first + CALLS_A_TURN]:
            logger.log_metric(run_id, "loss", 0.5)
        spent += time.thread_time_ns() - began
        await asyncio.sleep(0)
    return spent / len(run_ids)


def _bare_call_costs(lanes: int, calls: int) -> tuple[float, float]:
    """The same with a dictionary of lists."""
    run_ids = [f"run-{number}" for number in range(lanes)]
    queues: dict[str, list[Metric]] = {}
    rounds = []
    for _ in range(1 + calls):
        began = time.thread_time_ns()
        for run_id in run_ids:
            if (queue := queues.get(run_id)) is None:
                queue = queues[run_id] = []
            queue.append(Metric("loss", 0.5, time_ns() // 1_000_000, 0))
        rounds.append((time.thread_time_ns() - began) / lanes)
    return rounds[0], statistics.median(rounds[1:])


def _call_table(counts: Sequence[int], rounds: int) -> tuple[Table, Goal]:
    columns = ("runs", "first call, ns", "later, ns", "bare, first", "bare, later")
    table = Table("A call while every run has something waiting", columns)
    later: dict[int, float] = {}
    measured: dict[int, list[tuple[float, ...]]] = {count: [] for count in counts}
    for _ in range(rounds):
        for count in counts:
            ours = asyncio.run(_call_costs(count, 5))
            measured[count].append((*ours, *_bare_call_costs(count, 5)))
    for count, results in measured.items():
        medians = [statistics.median(column) for column in zip(*results, strict=True)]
        later[count] = medians[1]
        table.add(_runs(count), *medians)
    what = f"a later call with {counts[-1]:,} runs / with {counts[0]:,}"
    return table, Goal.at_most(what, 2.0, later[counts[-1]] / later[counts[0]])


async def _memory(lanes: int) -> tuple[float, float]:
    """Bytes of a run that has a record waiting, and of one whose records are delivered."""
    tracemalloc.start()
    async with _Delivery() as delivery:
        await asyncio.sleep(0.01)
        before = _traced()
        writers: list[Any] = [
            RunWriter(f"run-{number}", delivery.intake) for number in range(lanes)
        ]
        for writer in writers:
            writer.log_metric("loss", 0.5, 1)
        await asyncio.sleep(0.05)
        waiting = (_traced() - before) / lanes
        await _flush(delivery)
        idle = (_traced() - before) / lanes
    tracemalloc.stop()
    return waiting, idle


def _traced() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def measure(options: Options) -> Report:
    """Cost per record, and memory per run."""
    counts = options.size((1, 100, 10_000), (1, 10, 50))
    records = counts[-1] * PER_REQUEST
    report = Report("Many runs")
    rounds = min(options.rounds, 5)
    found: dict[int, list[Samples]] = {}
    for in_a_row in (STEP, 1):
        contenders = _contenders(counts, records, in_a_row)
        found[in_a_row] = asyncio.run(take_turns(contenders, rounds))
        title = f"CPU of a record, {in_a_row} of a run in a row"
        report.tables.append(comparison(title, "ns / record", found[in_a_row]))
    waiting, idle = asyncio.run(_memory(counts[-1]))
    memory = Table(f"Memory of each of {counts[-1]:,} runs", ("state", "bytes"))
    memory.add("one record waiting", waiting)
    memory.add("everything delivered, handle kept", idle)
    report.tables.append(memory)
    table, goal = _call_table(options.size((1_000, 4_000, 20_000), (5, 50)), rounds)
    report.tables.append(table)
    report.goals.append(goal)
    for in_a_row, (one, *_, many, bare_one, bare_many) in found.items():
        what = f"{counts[-1]:,} runs / 1 run, cost per record, {in_a_row} of a run in a row"
        report.goals.append(Goal.at_most(what, 1.3, many.over(one)))
        report.notes.append(f"{what}, of bare lists: {number(bare_many.over(bare_one))}")
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    return run(measure, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
