"""Direct signed calls a second, one at a time and many at once: ours, by hand, Oracle's clients.

The operation is ``runs/update``: a small body, a small reply that is decoded.  The floor signs and
posts it with bare aiohttp and decodes the reply; on the event loop, in one thread, or in two.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import msgspec

from benchmarks._clients import HandWritten, Official, oci_async_client
from benchmarks._harness import (
    Contender,
    Goal,
    Options,
    Report,
    best_floor,
    comparison,
    run,
    take_turns,
)
from benchmarks._servers import answering

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from benchmarks._harness import Role, Samples
    from benchmarks._servers import Target

PATH = "mlflow/runs/update"
CONCURRENCY = (1, 16, 128)
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


async def _calls(call: Callable[[], Awaitable[object]], count: int, at_once: int) -> None:
    async def caller(calls: int) -> None:
        for _ in range(calls):
            await call()

    await asyncio.gather(*(caller(count // at_once) for _ in range(at_once)))


def _contender(
    name: str, role: Role, call: Callable[[], Awaitable[object]], count: int, at_once: int
) -> Contender:
    async def once() -> float:
        began = time.perf_counter()
        await _calls(call, count, at_once)
        return count / (time.perf_counter() - began)

    return Contender(name, role, once)


def _by_hand(hand: HandWritten) -> Callable[[], Awaitable[object]]:
    async def call() -> object:
        _, reply = await hand.post(_encode({"run_id": "r", "run_name": "name"}))
        return _decode(reply)

    return call


def _official(official: Official, count: int, at_once: int) -> Contender:
    async def once() -> float:
        began = time.perf_counter()
        await official.in_pool(official.update_run, ["r"] * count)
        return count / (time.perf_counter() - began)

    name = "MLOpsClient" if at_once == 1 else f"MLOpsClient, {at_once} threads"
    return Contender(name, "peer", once)


def _oci_async(client: Any, target: Target) -> Callable[[], Awaitable[object]]:
    async def call() -> object:
        body = {"run_id": "r", "run_name": "name"}
        reply: object = await client.call_api(f"{target.base}/{PATH}", "POST", body=body)
        return reply

    return call


async def _rates(target: Target, options: Options, at_once: int) -> list[Samples]:
    count = options.size(384, at_once)
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(target.session())
        contenders = [
            _contender(
                "adp_async",
                "ours",
                lambda: session.runs.update("r", run_name="name"),
                count,
                at_once,
            )
        ]
        for threads, how in ((0, "inline"), (1, "in a thread"), (2, "in two threads")):
            hand = await stack.enter_async_context(HandWritten(target, PATH, threads=threads))
            name = f"aiohttp, signing {how}"
            contenders.append(_contender(name, "floor", _by_hand(hand), count, at_once))
        if options.peers:
            contenders += _peers(target, stack, count, at_once)
        return await take_turns(contenders, options.rounds)


def _peers(target: Target, stack: AsyncExitStack, count: int, at_once: int) -> list[Contender]:
    contenders = []
    if importlib.util.find_spec("aidp_python_client"):
        official = Official(target, at_once)
        stack.callback(official.close)
        contenders.append(_official(official, count, at_once))
    client = oci_async_client(target)
    if client is not None:
        stack.push_async_callback(client.close)
        call = _oci_async(client, target)
        contenders.append(_contender("oci AsyncBaseClient", "peer", call, count, at_once))
    return contenders


def measure(options: Options) -> Report:
    """Calls a second at each concurrency."""
    report = Report("Direct signed calls")
    with answering() as server:
        for at_once in CONCURRENCY:
            samples = asyncio.run(_rates(server.target, options, at_once))
            title = f"runs/update, {at_once} at once"
            report.tables.append(comparison(title, "calls/s", samples))
            report.goals += _goals(samples, at_once)
        report.notes += server.notes
    return report


def _goals(samples: Sequence[Samples], at_once: int) -> list[Goal]:
    ours, floor = samples[0], best_floor(samples, more_is_better=True)
    what = f"direct call, {at_once} at once: rate / bare aiohttp plus signature"
    goals = [Goal.at_least(what, 0.85, ours.over(floor), note=floor.name)]
    official = [each for each in samples if each.name.startswith("MLOpsClient,")]
    if official:
        what = f"direct call, {at_once} at once: rate / the official client in a thread pool"
        goals.append(Goal.at_least(what, 3.0, ours.over(official[0])))
    return goals


def main(arguments: Sequence[str] | None = None) -> int:
    return run(measure, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
