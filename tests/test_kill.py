"""Killed at random moments, again and again: what was journaled arrives, once, and little is lost.

A process logs numbered metrics, params and tags into one run and is killed with SIGKILL; the next
one recovers what it left while it goes on with the run, and is killed as well, perhaps in the
middle of that.  ``pytest tests/test_kill.py --kills 100 -s`` is the long one, and says figures.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import struct
import sys
import textwrap
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from attrs import define, field
from children import environment

from adp_async import RetryPolicy
from adp_async._io.spool import Spool
from adp_async._io.spool_file import find_spools
from adp_async._sansio.records import Metric, Param

if TYPE_CHECKING:
    from pathlib import Path

    from adp_async._sansio.records import AnyRecord
    from adp_async.local import Gateway, LocalPlatform

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forked")

INTERVAL = 0.2
#: What a commit may add to it.
COMMIT = 0.3
#: Seconds between two signs of life.
BEAT = 0.01
PARAM_EVERY, TAG_EVERY = 10, 7
#: Where a name is refused, it is looked at again after a while, which is a multiple of this.
QUICK = RetryPolicy(first_backoff=0.01, max_backoff=0.1)
LINE = struct.Struct("<qd")
MOMENT = struct.Struct("<d")

#: Forks a process for each line it is given: importing all of it takes longer than a round.
NURSERY = """
    import asyncio, itertools, os, struct, sys, threading, time
    import cryptography.hazmat.primitives.serialization
    import adp_async, adp_async._io.recovery
    from adp_async import Session, blocking

    def beat(beats):  # says when a thread of this process gets to run
        while True:
            beats.write(struct.pack("<d", time.monotonic()))
            time.sleep({BEAT})

    def log(run, first, rate, path):
        beats = open(path + ".beats", "ab", buffering=0)
        threading.Thread(target=beat, args=(beats,), daemon=True).start()
        begin = time.monotonic()
        with open(path, "ab", buffering=0) as log:
            for number in itertools.count(first):
                run.log_metric("number", float(number), step=number)
                if {REFUSED}:
                    run.log_metric("acc@5", 0.5, step=-1)
                if number % {PARAM_EVERY} == 0:
                    run.log_param(f"p{{number}}", number)
                if number % {TAG_EVERY} == 0:
                    run.set_tag("last", number)
                log.write(struct.pack("<qd", number, time.monotonic()))
                ahead = begin + (number - first + 1) / rate - time.monotonic()
                if ahead > 0.002:
                    time.sleep(ahead)

    async def log_and_never_await(run_id, *arguments):
        async with Session() as session:
            log(session.attach_run(run_id), *arguments)

    def child(run_id, how, first, rate, path):
        arguments = int(first), float(rate), path
        if how == "loop":
            asyncio.run(log_and_never_await(run_id, *arguments))
        else:
            log(blocking.Session().open().attach_run(run_id), *arguments)

    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                child(*line.split())
            finally:
                os._exit(1)
        print(pid, flush=True)
        print(os.waitpid(pid, 0)[1], flush=True)
"""


@define
class Round:
    """One life: what it accepted and when, when it was killed, what was on disk then.

    *stalled*: for how many seconds of its life it did not get to run, on a busy machine.
    """

    how: str
    accepted: dict[int, float]
    killed_at: float
    stalled: float
    journaled: set[tuple[str, int]] = field(repr=False)

    def lost_for(self, arrived: set[int]) -> float:
        """For how long the oldest point that never arrived had been accepted, and could run."""
        lost = [when for number, when in self.accepted.items() if number not in arrived]
        window = max((self.killed_at - when for when in lost), default=0.0)
        return max(0.0, window - self.stalled)


@define
class Killer:
    """Starts processes that log, and ends them."""

    platform: LocalPlatform
    folder: Path
    run_id: str
    rates: tuple[int, ...]
    #: Whether each point has one of a refused name beside it.
    refused: bool = False
    nursery: asyncio.subprocess.Process | None = None
    rounds: list[Round] = field(factory=list)
    next_number: int = 1

    @property
    def spools(self) -> Path:
        return self.folder / "spool"

    async def start(self) -> None:
        names = {"PARAM_EVERY": PARAM_EVERY, "TAG_EVERY": TAG_EVERY, "REFUSED": self.refused}
        names["BEAT"] = BEAT
        script = textwrap.dedent(NURSERY).format(**names)
        file = self.folder / "nursery.py"
        file.write_text(script)
        knobs = {"spool": self.spools, "spool_interval": INTERVAL, "linger": 0.05}
        self.nursery = await asyncio.create_subprocess_exec(
            sys.executable,
            file,
            env=environment(self.platform, **knobs),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )

    async def stop(self) -> None:
        assert self.nursery is not None
        assert self.nursery.stdin is not None
        self.nursery.stdin.close()
        await self.nursery.wait()

    async def kill_one(self, chance: random.Random) -> None:
        """One round: a life of random length, at a random rate."""
        assert self.nursery is not None
        assert self.nursery.stdin is not None
        assert self.nursery.stdout is not None
        how = chance.choice(("thread", "thread", "loop"))
        path = self.folder / f"accepted-{len(self.rounds)}"
        order = (self.run_id, how, self.next_number, chance.choice(self.rates), path)
        self.nursery.stdin.write(" ".join(map(str, order)).encode() + b"\n")
        pid = int(await self.nursery.stdout.readline())
        await self._logs(path)
        await asyncio.sleep(chance.uniform(0.0, 0.7))
        killed_at = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        assert int(await self.nursery.stdout.readline()) == signal.SIGKILL
        accepted = dict(LINE.iter_unpack(_whole(path.read_bytes(), LINE)))
        beats = _whole(path.with_suffix(".beats").read_bytes(), MOMENT)
        moments = [min(accepted.values()), *(when for (when,) in MOMENT.iter_unpack(beats))]
        stalled = _stalled([*moments, killed_at])
        self.rounds.append(Round(how, accepted, killed_at, stalled, self._journaled()))
        # One more may have been accepted than it could say.
        self.next_number = max(accepted) + 2

    async def _logs(self, path: Path) -> None:
        async with asyncio.timeout(60):
            while not _has_content(path):  # noqa: ASYNC110 - it is another process that writes
                await asyncio.sleep(0.002)

    def _journaled(self) -> set[tuple[str, int]]:
        """What the spools hold, read from copies, so that nothing is touched."""
        copies = self.folder / "copies"
        shutil.copytree(self.spools, copies)
        for path in find_spools(copies):
            os.utime(path, (0, 0))
        found = {each for path in find_spools(copies) for each in _waiting(path)}
        shutil.rmtree(copies)
        return found

    async def recover(self) -> None:
        """Be the next session that finds what is left."""
        session = self.platform.session(spool=self.spools, retry=QUICK)
        async with session, asyncio.timeout(300):
            own = session._delivery.keeper.spool.path  # type: ignore[union-attr]
            recoveries = session._engine.recoveries
            assert recoveries is not None
            # Refused records stay in their spool until a person has seen them.
            while not (find_spools(self.spools) == [own] or (self.refused and recoveries.is_done)):  # noqa: ASYNC110 - a folder
                await asyncio.sleep(0.05)
        assert not self._journaled()


def _stalled(beats: list[float]) -> float:
    """How much longer than they should be the pauses between signs of life are, in all."""
    return sum(max(0.0, after - before - 2 * BEAT) for before, after in pairwise(beats))


def _has_content(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _whole(content: bytes, item: struct.Struct) -> bytes:
    return content[: len(content) // item.size * item.size]


def _waiting(path: Path) -> list[tuple[str, int]]:
    spool = Spool.open(path, limit=2**30)
    try:
        return [_name(record) for _, record in spool.waiting()]
    finally:
        spool.release()


def _name(record: AnyRecord) -> tuple[str, int]:
    if type(record) is Metric:
        return "metric", record.step
    if type(record) is Param:
        return "param", int(record.value)
    return "tag", int(record.value)  # type: ignore[union-attr]


def doubles(gateway: Gateway) -> int:
    """Points that came in requests of different tokens; those of one the service takes once."""
    tokens: dict[int, set[str]] = {}
    for request in gateway.recorded:
        if request.operation == "log_experiment_run_batch":
            metrics = json.loads(request.body).get("metrics", ())
            # A request that holds a refused name is refused as a whole.
            for metric in metrics if all("@" not in each["key"] for each in metrics) else ():
                tokens.setdefault(metric["step"], set()).add(request.headers["opc-retry-token"])
    return sum(len(each) - 1 for each in tokens.values())


def check(
    killer: Killer, points: dict[int, float], params: dict[int, int], tag: int
) -> dict[str, float]:
    """That all is as it must be; the largest loss window, in seconds, by who logged."""
    accepted = {number for each in killer.rounds for number in each.accepted}
    unsaid = {max(each.accepted) + 1 for each in killer.rounds}
    assert all(value == number for number, value in points.items())
    assert set(points) <= accepted | unsaid, "nothing was made up"
    for each in killer.rounds:
        journaled = {number for kind, number in each.journaled if kind == "metric"} - {-1}
        assert journaled <= set(points), "every point that was journaled arrived"
        journaled = {number for kind, number in each.journaled if kind == "param"}
        assert journaled <= set(params), "and every param"
    tags = [number for each in killer.rounds for kind, number in each.journaled if kind == "tag"]
    assert tag >= max(tags, default=0), "the tag is the last one that was journaled, or later"
    windows = dict.fromkeys(("thread", "loop"), 0.0)
    for each in killer.rounds:
        windows[each.how] = max(windows[each.how], each.lost_for(set(points)))
    return windows


def say(killer: Killer, windows: dict[str, float], twice: int, seconds: float) -> None:
    count = sum(len(each.accepted) for each in killer.rounds)
    journaled = sum(len(each.journaled) for each in killer.rounds)
    longest = ", ".join(f"{window:.3f} s from a {how}" for how, window in windows.items())
    print(
        f"\n{len(killer.rounds)} kills, {count} points accepted, {journaled} records found on disk "
        f"after them; longest loss {longest}, {twice} doubles, {seconds:.0f} s"
    )


async def kill_rounds(killer: Killer, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    await killer.start()
    try:
        for _ in range(kills):
            await killer.kill_one(chance)
    finally:
        await killer.stop()
    await killer.recover()


@pytest.mark.parametrize("refused", [False, True], ids=["all good", "a refused name"])
async def test_killed_before_a_service_that_counts(
    bare_platform: LocalPlatform, tmp_path: Path, pytestconfig: pytest.Config, refused: bool
) -> None:
    """No point arrives twice, tags take effect in their order, what was journaled is there.

    Also where a refused name has every batch taken apart.
    """
    begin = time.monotonic()
    gateway = bare_platform.gateway
    gateway.record = True
    killer = Killer(bare_platform, tmp_path, gateway.add_run(), rates=(100, 1500, 15_000))
    killer.refused = refused
    kills = pytestconfig.getoption("kills")
    await kill_rounds(killer, kills if not refused else 1 + kills // 4, seed=1)
    run = gateway.received(killer.run_id)
    numbers = [metric.step for metric in run.metrics]
    tags = [int(value) for _, value in run.tags]
    points: dict[int, Any] = {metric.step: metric.value for metric in run.metrics}
    params = {int(value): int(key[1:]) for key, value in run.params}
    windows = check(killer, points, params, tags[-1])
    assert all(metric.key == "number" for metric in run.metrics)
    twice = len(numbers) - len(set(numbers))
    say(killer, windows, twice, time.monotonic() - begin)

    assert twice == doubles(gateway) == 0
    assert tags == sorted(set(tags))
    assert max(windows.values()) <= INTERVAL + COMMIT


@pytest.mark.mlflow
async def test_killed_before_mlflow(
    platform: LocalPlatform, gateway: Gateway, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """MLflow's own history of the metric holds what was journaled, and each point once."""
    begin = time.monotonic()
    gateway.record = True
    async with platform.session(spool=False) as session:
        run = await session.start_run(run_name="killed")
        killer = Killer(platform, tmp_path, run.run_id, rates=(50, 400, 1500))
        await kill_rounds(killer, pytestconfig.getoption("kills"), seed=2)
        history = [metric async for metric in session.runs.metric_history(run.run_id, "number")]
        data = (await session.runs.get(run.run_id)).data
    points = {metric.step: metric.value for metric in history}
    params = {int(param.value): int(param.key[1:]) for param in data.params}
    (tag,) = [int(tag.value) for tag in data.tags if tag.key == "last"]
    windows = check(killer, points, params, tag)
    say(killer, windows, doubles(gateway), time.monotonic() - begin)

    assert len(history) == len(points)
    assert doubles(gateway) == 0
    assert max(windows.values()) <= INTERVAL + COMMIT
