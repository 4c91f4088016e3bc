"""Killed at random, again and again: workers, the collector, both, in the middle of a reply.

What a worker has handed over (its ``flush`` returned) arrives, and nothing arrives twice.  A worker
that lives hands over all that it logs, however often the collector dies.  ``pytest
tests/test_collector_kill.py --hop-kills 20`` is the long one.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import textwrap
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from attrs import define, field
from children import environment, until

from adp_async._hop import FILE
from adp_async.cli.spools import look_at

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from adp_async.local import LocalPlatform

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are killed by signals")

#: Logs numbered points, and notes up to which of them the collector has them on disk.
WORKER = """
    import itertools, os, sys, time
    from adp_async.collector import Handle

    file, run_id, name, folder = sys.argv[1:]
    with Handle.from_file(file).attach(run_id) as run:
        for number in itertools.count(1):
            run.log_metric(name, number / 2, number)
            if number % 7 == 0:
                run.set_tag(name, number)
            if number % 20 == 0:
                run.flush()
                with open(f"{folder}/{name}", "w") as told:
                    told.write(str(number))
                if os.path.exists(f"{folder}/stop"):
                    break
            time.sleep(0.0005)
    print(number, flush=True)
"""

#: An agent; where a number is given, it kills itself after so many commits, before it answers.
AGENT = """
    import os, signal, sys
    from adp_async.cli import main
    from adp_async.collector import handler

    after = int(sys.argv.pop(1))
    is_safe, commits = handler.is_safe, 0

    async def and_die(*arguments):
        global commits
        found = await is_safe(*arguments)
        commits += 1
        if commits == after:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    handler.is_safe = and_die
    sys.exit(main())
"""


@define
class Cluster:
    """An agent and its workers, which are killed and started again."""

    platform: LocalPlatform
    folder: Path
    run_id: str
    listen: tuple[str, ...]
    agent: asyncio.subprocess.Process | None = None
    workers: dict[str, asyncio.subprocess.Process] = field(factory=dict)
    #: Points that each worker which was killed is known to have handed over.
    handed: dict[str, int] = field(factory=dict)
    names: int = 0

    @property
    def file(self) -> Path:
        return self.folder / "agent" / FILE

    async def start(self, script: str, *arguments: object) -> asyncio.subprocess.Process:
        path = self.folder / ("agent.py" if script is AGENT else "worker.py")
        if not path.exists():  # one that starts may be reading it
            path.write_text(textwrap.dedent(script))
        return await asyncio.create_subprocess_exec(
            *(sys.executable, str(path), *map(str, arguments)),
            env=environment(self.platform, spool_interval=0.2, linger=0.02),
            stdout=asyncio.subprocess.PIPE,
        )

    async def start_agent(self, dies_after: int = 0) -> None:
        folder = ("--folder", self.folder / "agent")
        self.agent = await self.start(AGENT, dies_after, "agent", *self.listen, *folder)
        assert self.agent.stdout is not None
        line = await self.agent.stdout.readline()
        # One that dies after its first commit may have been asked before it could say so.
        assert dies_after or line.startswith(b"export ADP_ASYNC_AGENT="), line

    async def start_worker(self) -> None:
        self.names += 1
        name = f"w{self.names}"
        self.workers[name] = await self.start(WORKER, self.file, self.run_id, name, self.folder)

    async def kill_agent(self) -> None:
        assert self.agent is not None
        if self.agent.returncode is None:
            self.agent.kill()
        assert await self.agent.wait() == -signal.SIGKILL

    async def kill_worker(self, chance: random.Random) -> None:
        name = chance.choice(sorted(self.workers))
        worker = self.workers.pop(name)
        worker.kill()
        await worker.wait()
        self.handed[name] = self.told_by(name)

    def told_by(self, name: str) -> int:
        told = self.folder / name
        text = told.read_text() if told.exists() else ""
        return int(text or 0)

    async def stop(self) -> dict[str, int]:
        """Let all workers end, then the agent; how many points each of them has handed over."""
        (self.folder / "stop").touch()
        handed = dict(self.handed)
        for name, worker in self.workers.items():
            async with asyncio.timeout(60):
                out, _ = await worker.communicate()
            assert worker.returncode == 0
            handed[name] = int(out)
        return handed

    async def end_agent(self) -> None:
        assert self.agent is not None
        self.agent.terminate()
        async with asyncio.timeout(60):
            assert await self.agent.wait() == 0

    async def kill_all(self) -> None:
        for process in (self.agent, *self.workers.values()):
            if process is not None and process.returncode is None:
                process.kill()
                await process.wait()  # else its pipes outlive the event loop


@pytest.fixture(params=["socket", "tls"])
async def cluster(
    bare_platform: LocalPlatform, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Cluster]:
    listen = ("--listen", "127.0.0.1") if request.param == "tls" else ()
    run_id = bare_platform.gateway.add_run()
    cluster = Cluster(bare_platform, tmp_path, run_id, listen)
    yield cluster
    await cluster.kill_all()


async def test_nothing_is_lost_and_nothing_doubled(
    cluster: Cluster, request: pytest.FixtureRequest
) -> None:
    """After rounds in which a worker, the collector or both are killed, or it dies mid-reply."""
    chance = random.Random(15)
    await cluster.start_agent()
    for _ in range(3):
        await cluster.start_worker()
    how = ("worker", "collector", "both", "between commit and reply")
    for number in range(request.config.getoption("--hop-kills")):
        await asyncio.sleep(chance.uniform(0.1, 0.8))
        what = how[number % len(how)]
        if what in ("worker", "both"):
            await cluster.kill_worker(chance)
            await cluster.start_worker()
        if what in ("collector", "both"):
            await cluster.kill_agent()
            await cluster.start_agent()
        if what == "between commit and reply":
            await cluster.kill_agent()
            await cluster.start_agent(dies_after=chance.randint(1, 5))
            assert cluster.agent is not None
            async with asyncio.timeout(60):
                assert await cluster.agent.wait() == -signal.SIGKILL
            await cluster.start_agent()
    handed = await cluster.stop()

    received = cluster.platform.gateway.received(cluster.run_id)
    expected = {(name, step) for name, most in handed.items() for step in range(1, most + 1)}
    await until(lambda: expected <= {(each.key, each.step) for each in received.metrics})
    await cluster.end_agent()
    assert sum(handed.values()) > 20
    counts = Counter((each.key, each.step) for each in received.metrics)
    assert {name: count for name, count in counts.items() if count > 1} == {}
    # Nothing is left on disk but the tokens of what was taken, which the next agent has to know.
    left = [look_at(path) for path in (cluster.folder / "agent" / "spool").glob("*.spool")]
    assert {(each.records, each.others, each.trouble) for each in left} <= {(0, (), "")}, left


async def test_a_reply_that_was_lost_is_given_again(cluster: Cluster) -> None:
    """The collector dies between its commit and its reply: the next one knows the token."""
    await cluster.start_agent(dies_after=1)
    await cluster.start_worker()
    assert cluster.agent is not None
    async with asyncio.timeout(60):
        assert await cluster.agent.wait() == -signal.SIGKILL
    assert cluster.told_by("w1") == 0, "its flush has not returned"
    await cluster.start_agent()
    await until(lambda: cluster.told_by("w1") >= 20)
    handed = await cluster.stop()
    received = cluster.platform.gateway.received(cluster.run_id)
    await until(lambda: len({each.step for each in received.metrics}) >= handed["w1"])
    await cluster.end_agent()
    assert sorted(each.step for each in received.metrics) == list(range(1, handed["w1"] + 1))
