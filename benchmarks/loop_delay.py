"""How long the event loop makes others wait while metrics are logged and sent.

A task of the application's own asks to be woken every 2 ms, and what it is late is the delay.
Metrics come once a millisecond, from the loop itself or from another thread; the machine alone and
the hand-written loop (signing inline, as most would) stand beside.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import sys
import threading
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from attrs import define, field

from benchmarks._clients import BATCH, HandWritten, ready_batches
from benchmarks._harness import Goal, Options, Report, Table, number, percentile, run
from benchmarks._servers import answering
from benchmarks._timing import VALUE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
    from contextlib import AbstractAsyncContextManager

    from adp_async import Run
    from benchmarks._servers import Target

    Load = Callable[[int], AbstractAsyncContextManager[None]]

RATES = (10_000, 100_000)
PERIOD = 0.002
BURST = 0.001


async def _delays(seconds: float) -> list[float]:
    """Milliseconds by which a sleeper was woken too late."""
    late = []
    end = time.perf_counter() + seconds
    while (asleep := time.perf_counter()) < end:
        await asyncio.sleep(PERIOD)
        late.append((time.perf_counter() - asleep - PERIOD) * 1000)
    return late


@define
class Bursts:
    """How many metrics are due by now at *rate* a second."""

    rate: int
    began: float = field(factory=time.perf_counter)
    given: int = 0

    def due(self) -> int:
        due = int((time.perf_counter() - self.began) * self.rate) - self.given
        self.given += due
        return due


def _log(run: Run, count: int) -> None:
    log_metric = run.log_metric
    for step in range(count):
        log_metric("loss", VALUE, step)


# Who keeps the loop busy meanwhile; each is a context in which the delays are measured ------------


@asynccontextmanager
async def _nothing(_: int) -> AsyncIterator[None]:
    yield


@asynccontextmanager
async def _task(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def _from_loop(run: Run) -> Load:
    def load(rate: int) -> AbstractAsyncContextManager[None]:
        async def work() -> None:
            bursts = Bursts(rate)
            while True:
                _log(run, bursts.due())
                await asyncio.sleep(BURST)

        return _task(work())

    return load


def _from_thread(run: Run) -> Load:
    @asynccontextmanager
    async def load(rate: int) -> AsyncIterator[None]:
        is_over = threading.Event()

        def work() -> None:
            bursts = Bursts(rate)
            while not is_over.wait(BURST):
                _log(run, bursts.due())

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    return load


def _by_hand(hand: HandWritten) -> Load:
    def load(rate: int) -> AbstractAsyncContextManager[None]:
        async def work() -> None:
            bursts, waiting = Bursts(rate), 0
            batches = ready_batches(["bench"], 1)
            while True:
                waiting += bursts.due()
                whole, waiting = divmod(waiting, BATCH)
                await hand.send(batches * whole, 4)
                await asyncio.sleep(BURST)

        return _task(work())

    return load


async def _measure(target: Target, options: Options) -> dict[tuple[int, str], list[list[float]]]:
    seconds = options.size(1.0, 0.05)
    found: dict[tuple[int, str], list[list[float]]] = {}
    async with target.session() as session, HandWritten(target) as hand:
        run = session.attach_run("bench")
        loads: dict[str, Load] = {
            "the machine alone": _nothing,
            "adp_async, from the loop": _from_loop(run),
            "adp_async, from another thread": _from_thread(run),
            "by hand, ready batches": _by_hand(hand),
        }
        await hand.send(ready_batches(["bench"], 1), 1)
        for _ in range(min(options.rounds, 5)):
            for rate in RATES:
                for name, load in loads.items():
                    gc.collect()
                    async with load(rate):
                        found.setdefault((rate, name), []).append(await _delays(seconds))
                    await run.flush()
    return found


def _table(rate: int, found: dict[str, list[list[float]]]) -> Table:
    headings = ("load", "p50 ms", "p99 ms", "max ms", "p99 of each round, low - high")
    table = Table(f"Event loop delay at {rate:,} metrics/s", headings)
    for name, rounds in found.items():
        pooled = [delay for delays in rounds for delay in delays]
        each = [percentile(delays, 0.99) for delays in rounds]
        spread = f"{number(min(each))} - {number(max(each))}"
        table.add(name, statistics.median(pooled), percentile(pooled, 0.99), max(pooled), spread)
    return table


def measure(options: Options) -> Report:
    """Delays at both rates."""
    report = Report("Event loop delay")
    with answering() as server:
        found = asyncio.run(_measure(server.target, options))
        report.notes += server.notes
    for rate in RATES:
        of_rate = {name: rounds for (its_rate, name), rounds in found.items() if its_rate == rate}
        report.tables.append(_table(rate, of_rate))
    for name in ("adp_async, from the loop", "adp_async, from another thread"):
        rounds = found[RATES[-1], name]
        p99 = percentile([delay for delays in rounds for delay in delays], 0.99)
        what = f"event loop delay at 100,000 metrics/s, p99 in ms, {name.partition(', ')[2]}"
        report.goals.append(Goal.at_most(what, 5.0, p99))
    report.notes.append(f"The sleeper asks for {PERIOD * 1000:g} ms; a timer is itself a bit late.")
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    return run(measure, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
