"""The soak: 20,000 points a second while everything goes wrong now and then.

``pytest tests/test_soak.py --minutes 10 -s`` is the long one, and prints what it found; without
the option it takes five seconds.  The program that logs is a process of its own, so that its
memory is its own; the service runs here and counts what arrives, point by point.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec
from attrs import define, field
from children import start, until

from adp_async.local import Fault, Quota
from adp_async.local.answers import EMPTY, Answer
from adp_async.local.stand_in import ReceivedMetric, StandIn

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from adp_async.local import Gateway, LocalPlatform
    from adp_async.local.answers import Received
    from adp_async.local.routes import Route

RATE = 20_000
RUNS = 8
#: Less memory than an outage needs, so that the disk takes the rest.
BUFFER_LIMIT = 4 * 2**20

TRAINING = """
    import json, os, sys, threading, time
    from adp_async import RetryPolicy, blocking

    RATE, RUNS, SECONDS = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    TURN = 0.01

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def train(runs):
        share = round(RATE * TURN / RUNS)
        turn = step = 0
        began = time.monotonic()
        while (now := time.monotonic()) < began + SECONDS:
            for run in runs:
                for each in range(step, step + share):
                    run.log_metric("loss", 0.5, step=each)
            step += share
            if turn % 100 == 0:
                memory.append(resident())
                for run in runs:
                    run.set_tag("second", turn // 100)
                    run.log_param(f"p{turn // 100}", turn)
            turn += 1
            time.sleep(max(0.0, began + turn * TURN - time.monotonic()))
        return step, turn

    memory = []
    retry = RetryPolicy(first_backoff=0.05, max_backoff=0.5)
    session = blocking.Session(retry=retry, timeout=4.0, close_timeout=120.0)
    with session:
        runs = [session.attach_run(f"run-{number}") for number in range(RUNS)]
        began = time.monotonic()
        steps, turns = train(runs)
        seconds = time.monotonic() - began
        print("trained", flush=True)
        peak = session.session.logger.stats()
    stats = session.session.logger.stats()
    print(json.dumps({
        "steps": steps, "turns": turns, "seconds": seconds, "memory": memory,
        "accepted": stats.accepted, "delivered": stats.delivered,
        "undelivered": stats.undelivered, "dropped": stats.dropped,
        "rejected": stats.rejected, "requests": stats.requests, "retries": stats.retries,
        "throttled": stats.throttled, "left_at_the_end": peak.undelivered,
        "spooled_at_the_end": peak.spooled,
    }))
"""


class _Batch(msgspec.Struct):
    run_id: str
    metrics: list[ReceivedMetric] = []
    params: list[dict[str, str]] = []
    tags: list[dict[str, str]] = []


@define(eq=False)
class Tally:
    """What arrived for one run: how often each step, each param, and the tag's values."""

    steps: bytearray = field(factory=bytearray)
    params: Counter[str] = field(factory=Counter)
    seconds: list[int] = field(factory=list)

    def take(self, batch: _Batch) -> None:
        for metric in batch.metrics:
            if metric.step >= len(self.steps):
                self.steps.extend(bytes(metric.step + 100_000 - len(self.steps)))
            self.steps[metric.step] += 1
        self.params.update(param["key"] for param in batch.params)
        self.seconds += [int(tag["value"]) for tag in batch.tags]


class CountingService(StandIn):
    """Counts in place of keeping: millions of points take a byte each."""

    def __init__(self) -> None:
        super().__init__()
        self.tallies: dict[str, Tally] = {}
        self._read = msgspec.json.Decoder(_Batch).decode

    async def answer(self, route: Route, received: Received) -> Answer:
        if route.operation != "log_experiment_run_batch":
            return await super().answer(route, received)
        batch = self._read(received.body)
        self.tallies.setdefault(batch.run_id, Tally()).take(batch)
        return EMPTY


FAULTS = [
    Fault.reply(500),
    Fault.reply(503),
    Fault.reply(503, after_write=True),
    Fault.reply(503, headers={"retry-after": "1"}),
    Fault.html(502),
    Fault.drop(),
    Fault.drop(after_write=True),
    Fault.cut(),
    Fault.reset_after_reply(),
    Fault.truncate(),
    Fault.drip(3.0),
    Fault.hang(),
    Fault.hang(after_write=True),
    Fault.reply(401, "NotAuthenticated"),
    Fault.reply(403, "NotAuthorized"),
    Fault.reply(404, "NotAuthorizedOrNotFound"),
    Fault.reply(409, "InvalidatedRetryToken"),
    Fault.reply(409, "IncorrectState"),
]
#: What the service allows for a while; a third of it would do for batches that are full.
QUOTAS = [None, Quota(rate=100, burst=10), Quota(rate=60, burst=10, retry_after=1)]


#: Seconds in which a batch whose reply was lost is surely sent again: its timeout, and a back-off.
UNHEARD = 20.0


@define
class Trouble:
    """Makes something go wrong about once a second, and counts it."""

    gateway: Gateway
    dice: random.Random
    unheard_until: float = 0.0
    faults: int = 0
    outages: int = 0
    clocks: int = 0
    quotas: int = 0

    async def make(self) -> None:
        while True:
            await asyncio.sleep(self.dice.uniform(0.2, 1.5))
            what = self.dice.random()
            if what < 0.85:
                await self.spoil()
            elif what < 0.92:
                await self.outage()
            elif what < 0.96:
                self.clocks += 1
                self.gateway.clock_offset = self.dice.choice([-1200.0, 0.0, 1200.0])
            else:
                self.quotas += 1
                self.gateway.quota = self.dice.choice(QUOTAS)

    async def spoil(self) -> None:
        fault, times = self.dice.choice(FAULTS), self.dice.randint(1, 3)
        # A token that was taken, unheard, is spent: under a new one the batch would be doubled.
        if fault.status == 409 and time.monotonic() < self.unheard_until:
            return
        if fault.after_write:
            self.unheard_until = time.monotonic() + UNHEARD
        injection = self.gateway.inject(fault, times=times)
        await asyncio.sleep(0.5)
        self.gateway.faults.remove(injection)
        self.faults += injection.hits

    async def outage(self) -> None:
        self.outages += 1
        await self.gateway.down()
        try:
            await asyncio.sleep(self.dice.uniform(0.1, 3.0))
        finally:
            await self.gateway.up()


async def test_soak(
    bare_platform: LocalPlatform,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every point, param and tag arrives once, in order where there is one, in steady memory."""
    seconds = 60 * request.config.getoption("--minutes")
    service = bare_platform.gateway.backend = CountingService()
    seed = time.time_ns()
    trouble = Trouble(bare_platform.gateway, random.Random(seed))
    arguments = (RATE, RUNS, seconds)
    knobs = {"linger": 0.2, "buffer_limit": BUFFER_LIMIT}
    child = await start(bare_platform, tmp_path, TRAINING, *arguments, **knobs)
    making = asyncio.create_task(trouble.make())
    await child.says("trained")
    out = await child_ends(child)
    making.cancel()
    await asyncio.wait([making])
    said = json.loads(out)
    await deliver_the_rest(bare_platform)
    figures = figures_of(said, service, trouble) | {"seed": seed}
    with capsys.disabled():
        if seconds > 10:
            print("\n" + json.dumps(figures, indent=1))
    check(said, service, figures)


async def deliver_the_rest(platform: LocalPlatform) -> None:
    """The next session delivers what the first had no time for, if anything."""
    platform.gateway.reset()
    async with platform.session() as session:
        await until(
            lambda: session._engine.recoveries is not None and session._engine.recoveries.is_done
        )
    assert list(session.spool_folder.iterdir()) == []


async def child_ends(child: Any) -> str:
    code, out, errors = await child.ends(150)
    assert code == 0, errors
    assert "Traceback" not in errors, errors
    return str(out)


def figures_of(said: dict[str, Any], service: CountingService, trouble: Trouble) -> dict[str, Any]:
    tallies = service.tallies.values()
    memory = said["memory"]
    quarter = max(1, len(memory) // 4)
    accepted = said["steps"] * RUNS + 2 * RUNS * beats(said)
    return {
        "seconds": round(said["seconds"], 1),
        "points": said["steps"] * RUNS,
        "points_a_second": round(said["steps"] * RUNS / said["seconds"]),
        "arrived": sum(len(tally.steps) - tally.steps.count(0) for tally in tallies),
        "missing": sum(tally.steps[: said["steps"]].count(0) for tally in tallies),
        "doubles": sum(sum(tally.steps) for tally in tallies)
        - sum(len(tally.steps) - tally.steps.count(0) for tally in tallies),
        "faults_that_hit": trouble.faults,
        "outages": trouble.outages,
        "clock_jumps": trouble.clocks,
        "quotas": trouble.quotas,
        "undelivered_by_the_first": accepted - said["delivered"],
        **{name: said[name] for name in ("requests", "retries", "throttled")},
        **{name: said[name] for name in ("left_at_the_end", "spooled_at_the_end")},
        "memory_first": round(memory[0], 1),
        "memory_second_quarter": round(statistics.median(memory[quarter : 2 * quarter]), 1),
        "memory_last_quarter": round(statistics.median(memory[-quarter:]), 1),
        "memory_peak": round(max(memory), 1),
    }


def beats(said: dict[str, Any]) -> int:
    """How often each run had a param and its tag."""
    return -(-int(said["turns"]) // 100)


def check(said: dict[str, Any], service: CountingService, figures: dict[str, Any]) -> None:
    assert (figures["missing"], figures["doubles"]) == (0, 0), figures
    assert figures["arrived"] == figures["points"], figures
    assert len(service.tallies) == RUNS
    for tally in service.tallies.values():
        assert tally.params == Counter({f"p{second}": 1 for second in range(beats(said))})
        # A tag that is overwritten before it is sent is not sent.
        assert tally.seconds == sorted(set(tally.seconds))
        assert tally.seconds[-1] == beats(said) - 1
    assert (said["dropped"], said["rejected"]) == (0, {})
    # Training is held up by nothing; a few seconds of a busy machine say less about that.
    assert figures["points_a_second"] > (0.8 if said["seconds"] > 60 else 0.1) * RATE
    if said["seconds"] > 60:
        assert figures["memory_last_quarter"] < figures["memory_second_quarter"] + 10.0, figures
