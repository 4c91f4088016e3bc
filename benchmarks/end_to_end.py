"""End to end into a server that answers at once: ours against the same thing written by hand.

The floor has its points ready, and only encodes (msgspec), signs (``oci``'s signer) and posts
(aiohttp) batches of 1000.  It comes in four forms, one batch after another or four in flight,
signing on the event loop or in a thread; ours is compared with the best of them.  Ours is measured
twice: with its 200,000 calls of ``log_metric``, which the floor has nothing of, and from when the
records wait already.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING

from adp_async._io.transport import AiohttpTransport
from adp_async._sansio.accumulator import Accumulator
from adp_async._sansio.messages import Request
from adp_async._sansio.records import Metric
from benchmarks._clients import BATCH, LOG_BATCH, HandWritten, ready_batches, value_of
from benchmarks._harness import (
    Contender,
    Goal,
    Options,
    Report,
    Table,
    best_floor,
    comparison,
    run,
    take_turns,
)
from benchmarks._servers import answering

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from adp_async import Run, Session
    from benchmarks._clients import Batch
    from benchmarks._harness import Samples
    from benchmarks._servers import Target

#: How many calls are made before the event loop gets its turn.
CHUNK = 1000


async def log_all(run: Run, values: Sequence[float]) -> None:
    """Log everything as fast as the loop takes it, and wait until it has arrived."""
    log_metric = run.log_metric
    for first in range(0, len(values), CHUNK):
        for step, value in enumerate(values[first : first + CHUNK], first):
            log_metric("loss", value, step)
        await asyncio.sleep(0)
    await run.flush()


def _ours(session: Session, values: Sequence[float]) -> Contender:
    async def once() -> float:
        began = time.perf_counter()
        await log_all(session.attach_run("bench"), values)
        return len(values) / (time.perf_counter() - began)

    return Contender("adp_async", "ours", once)


def _ours_waiting(session: Session, values: Sequence[float]) -> Contender:
    async def once() -> float:
        run = session.attach_run("bench")
        for step, value in enumerate(values):
            run.log_metric("loss", value, step)
        began = time.perf_counter()
        await run.flush()
        return len(values) / (time.perf_counter() - began)

    return Contender("adp_async, records waiting already", "ours", once)


def _floor(hand: HandWritten, batches: Sequence[Batch], in_flight: int, how: str) -> Contender:
    async def once() -> float:
        began = time.perf_counter()
        await hand.send(batches, in_flight)
        return len(batches) * BATCH / (time.perf_counter() - began)

    order = "one after another" if in_flight == 1 else f"{in_flight} in flight"
    return Contender(f"by hand, {order}, {how}", "floor", once)


async def _rates(target: Target, options: Options) -> list[Samples]:
    count = options.size(200, 2)
    values = [value_of(step) for step in range(count * BATCH)]
    batches = ready_batches(["bench"], count)
    async with (
        target.session() as session,
        HandWritten(target) as inline,
        HandWritten(target, threads=1) as threaded,
    ):
        contenders = [
            _ours(session, values),
            _ours_waiting(session, values),
            *(
                _floor(hand, batches, in_flight, how)
                for in_flight in (1, 4)
                for hand, how in ((inline, "signing inline"), (threaded, "signing in a thread"))
            ),
        ]
        return await take_turns(contenders, options.rounds)


# CPU of each part alone: what all threads of this process burn, per metric ----------------------


def _cpu(action: Callable[[], object], metrics: int) -> float:
    began = time.process_time()
    action()
    return (time.process_time() - began) / metrics * 1e6


async def _cpu_awaited(action: Callable[[], Awaitable[object]], metrics: int) -> float:
    began = time.process_time()
    await action()
    return (time.process_time() - began) / metrics * 1e6


def _cut_all(accumulator: Accumulator, metrics: Sequence[Metric]) -> list[bytes]:
    """Take in, cut into batches and encode: what happens on the loop before a request is."""
    accumulator.take_in(metrics, 0.0)
    return [batch.body for batch in accumulator.drain(0.0, len(metrics) // BATCH)]


async def _split(target: Target, options: Options) -> tuple[Table, float]:
    """A row for each part; and what all of it takes."""
    count = options.size(100, 1)
    metrics = count * BATCH
    values = [value_of(step) for step in range(metrics)]
    table = Table("CPU per metric, in batches of 1000", ("part", "CPU us / metric"))
    hand = HandWritten(target)
    async with target.session(linger=3600.0) as session, AiohttpTransport() as transport:
        run = session.attach_run("bench")
        log_metric = run.log_metric
        table.add("call", _cpu(lambda: [log_metric("loss", value) for value in values], metrics))
        await run.flush()

        accumulator = Accumulator()
        lane = accumulator.lane("bench")
        waiting = [Metric("loss", value, 1, 1, lane) for value in values]
        bodies: list[bytes] = []
        encode = _cpu(lambda: bodies.extend(_cut_all(accumulator, waiting)), metrics)
        table.add("take in, cut, encode", encode)

        headers: list[dict[str, str]] = []
        table.add("sign", _cpu(lambda: headers.extend(map(hand.sign, bodies)), metrics))
        requests = [
            Request("POST", target.url(LOG_BATCH), signed, body)
            for signed, body in zip(headers, bodies, strict=True)
        ]

        async def post_all() -> None:
            for request in requests:
                await transport.send(request)

        table.add("post", await _cpu_awaited(post_all, metrics))
        whole = await _cpu_awaited(lambda: log_all(run, values), metrics)
        table.add("all of it, end to end", whole)
    return table, whole


def measure(options: Options) -> Report:
    """Rates of ours and of the floors, and where the CPU goes."""
    report = Report("End to end, into a server that answers at once")
    with answering() as server:
        samples = asyncio.run(_rates(server.target, options))
        split, whole = asyncio.run(_split(server.target, options))
    ours, waiting, *_ = samples
    floor = best_floor(samples, more_is_better=True)
    report.tables = [comparison("Metrics delivered a second", "metrics/s", samples), split]
    what = "end to end into a server that answers at once: rate / the best hand-written loop"
    for each, name in ((ours, "with the calls"), (waiting, "records waiting already")):
        report.goals.append(Goal.at_least(f"{what}, {name}", 0.8, each.over(floor)))
    what = "CPU of the whole process per delivered metric, us"
    report.goals.append(Goal.at_most(what, 1.3, whole))
    report.notes += [*server.notes, f"The best floor is: {floor.name}."]
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    return run(measure, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
