"""Exactly once, with retries: what an attempt of a task logs counts when its block ends well."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
import time
from collections import Counter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from children import environment, until
from test_collector_hop import steps

from adp_async._io.spool_aside import Aside, Attempt
from adp_async._io.spool_file import SpoolError
from adp_async._sansio.records import Metric, RunTag
from adp_async.cli.agent import FILE
from adp_async.collector.ranks import find_task
from adp_async.collector.session import DEFAULTS
from adp_async.errors import AdpError, BadRequest
from adp_async.testing import FakeBlockingSession, FakeSession

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from adp_async.local import LocalPlatform

TASK: dict[str, Any] = {"attempt": "part 1/ä", "commit": "task"}


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeBlockingSession]:
    with FakeBlockingSession(spool=tmp_path / "spool") as session:
        yield session


def log(run: Any, count: int = 5) -> None:
    for step in range(count):
        run.log_metric("loss", 0.5, step)
    run.set_tag("stage", "done")


def wait_until(condition: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + 30.0
    while not condition():
        assert time.monotonic() < ends_at
        time.sleep(0.005)


def fail(handle: Any) -> None:
    with handle.attach(**TASK) as worker:
        log(worker)
        worker.flush()
        raise ZeroDivisionError


async def fail_on_a_loop(handle: Any) -> None:
    async with handle.attach(**TASK) as worker:
        worker.log_metric("loss", 1.0, 1)
        raise ZeroDivisionError


def test_an_attempt_that_ends_well_counts(fake: FakeBlockingSession) -> None:
    """Not before its end; all of it then, in its order."""
    run = fake.attach_run(fake.session.add_run())
    shared = run.shared()
    with shared as handle:
        with handle.attach(**TASK) as worker:
            log(worker)
            worker.flush()
            assert worker.stats().delivered == 6, "the collector has it on disk"
            assert shared.stats().taken == 0, "and it does not count"
        assert shared.stats().taken == 6
        run.flush()
    assert steps(fake, run.run_id) == {"loss": list(range(5))}
    assert fake.session.received(run.run_id).tags == [("stage", "done")]


def test_an_attempt_that_fails_does_not(fake: FakeBlockingSession) -> None:
    """It is thrown away, and counted; the next one counts."""
    run = fake.attach_run(fake.session.add_run())
    shared = run.shared()
    with shared as handle:
        with pytest.raises(ZeroDivisionError):
            fail(handle)
        (stats,) = shared.stats().workers.values()
        assert (stats.taken, stats.dropped) == (0, 6)
        with handle.attach(**TASK) as worker:
            log(worker, 3)
    run.flush()
    assert steps(fake, run.run_id) == {"loss": [0, 1, 2]}


def test_the_first_attempt_that_ends_well_counts(
    fake: FakeBlockingSession, caplog: pytest.LogCaptureFixture
) -> None:
    """Speculative execution: two attempts of a task at the same time, and one that comes late."""
    run = fake.attach_run(fake.session.add_run())
    shared = run.shared()
    with shared as handle:
        with handle.attach(**TASK) as slow:
            log(slow, 2)
            slow.flush()
            with handle.attach(**TASK) as fast:
                log(fast, 7)
            log(slow, 2)
        with handle.attach(**TASK) as late:
            log(late, 9)
        (stats,) = shared.stats().workers.values()
        assert stats.taken == 8
        assert stats.dropped >= 3
    run.flush()
    assert steps(fake, run.run_id) == {"loss": list(range(7))}
    assert caplog.text.count("this attempt does not count") == 2


def test_other_tasks_and_runs_are_others(fake: FakeBlockingSession) -> None:
    """The same name in another run, another name in the same one."""
    first, second = (fake.attach_run(fake.session.add_run()) for _ in range(2))
    with fake.shared() as handle:
        for run_id in (first.run_id, second.run_id):
            for name in ("a", "b", "a"):
                with handle.attach(run_id, attempt=name, commit="task", prefix=name) as worker:
                    worker.log_metric("loss", 0.5)
    fake.logger.flush()
    for run in (first, second):
        assert steps(fake, run.run_id) == {"aloss": [0], "bloss": [0]}


def test_what_never_ended_is_dropped_with_the_collector(
    fake: FakeBlockingSession, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """One WARNING says so, and no file stays behind."""
    run = fake.attach_run(fake.session.add_run())
    with run.shared() as handle:
        worker = handle.attach(**TASK)
        log(worker)
        worker.flush()
        worker._session.close()
    assert "6 records of 1 attempt that did not end well are dropped" in caplog.text
    run.flush()
    assert steps(fake, run.run_id) == {}
    fake.close()
    assert list((tmp_path / "spool").iterdir()) == []


async def test_on_an_event_loop(tmp_path: Path) -> None:
    """`async with` is the same."""
    async with FakeSession(spool=tmp_path / "spool") as session:
        run = session.attach_run(session.add_run())
        async with run.shared() as handle:
            with pytest.raises(ZeroDivisionError):
                await fail_on_a_loop(handle)
            async with handle.attach(**TASK) as worker:
                worker.log_metric("loss", 2.0, 2)
        await run.flush()
    assert [metric.step for metric in session.received(run.run_id).metrics] == [2]


def test_without_a_spool_there_is_no_aside() -> None:
    """Entering says so."""
    with FakeBlockingSession() as fake:
        run = fake.attach_run(fake.session.add_run())
        with run.shared() as handle:
            worker = handle.attach(**TASK)
            with pytest.raises(BadRequest, match="no spool"):
                worker.__enter__()
            worker._session.close()
            with handle.attach(attempt="a") as streaming:  # what streams needs none
                streaming.log_metric("loss", 0.5)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"commit": "task"}, "attempt"),
        ({"commit": "task", "attempt": "auto"}, "attempt"),
        ({"commit": "later"}, "commit"),
        ({"attempt": ""}, "attempt"),
        ({"attempt": 7}, "attempt"),
        ({"attempt": "x" * 201}, "attempt"),
    ],
)
def test_mistakes(fake: FakeBlockingSession, given: dict[str, Any], named: str) -> None:
    """The argument is named."""
    run = fake.attach_run(fake.session.add_run())
    with run.shared() as handle, pytest.raises(ValueError, match=f"^{named}"):
        handle.attach(**given)


def test_an_engine_says_which_task_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spark by stage and partition, which are the same in each attempt."""

    context = SimpleNamespace(stageId=lambda: 4, partitionId=lambda: 7)

    class Pyspark:
        class TaskContext:
            get = staticmethod(lambda: context)

    monkeypatch.setitem(sys.modules, "pyspark", Pyspark)
    assert find_task() == "4.7"
    monkeypatch.setattr(Pyspark.TaskContext, "get", staticmethod(lambda: None))
    assert find_task() is None


def test_the_next_application_does_other_tasks(
    fake: FakeBlockingSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spark counts its stages from 0 again: what its task logs there counts as well."""
    context = SimpleNamespace(stageId=lambda: 0, partitionId=lambda: 0)
    spark = SimpleNamespace(TaskContext=SimpleNamespace(get=lambda: context))
    monkeypatch.setitem(sys.modules, "pyspark", spark)
    run = fake.attach_run(fake.session.add_run())
    for application in range(2):
        with run.shared() as handle:
            for attempt in range(2):
                with handle.attach(attempt="auto", commit="task") as worker:
                    worker.log_metric("loss", float(attempt), application)
    run.flush()
    received = fake.session.received(run.run_id)
    assert [(each.value, each.step) for each in received.metrics] == [(0.0, 0), (0.0, 1)]


def test_attempts_that_never_end(
    fake: FakeBlockingSession, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What a collector before this one held aside is kept for a week, counted from its last."""
    keeper = fake.session._delivery.keeper
    assert keeper is not None
    aside = keeper.spool.aside
    assert not aside
    began = time.time()
    for number, (days, task) in enumerate(((0, "old"), (1, "old"), (0, "young"), (6, "young"))):
        monkeypatch.setattr(time, "time", lambda days=days: began + days * 86400)
        metric = Metric("loss", 0.5, 1, number)
        aside.put(Attempt("r", task, "1"), f"token {number}", [metric])
    monkeypatch.setattr(time, "time", lambda: began + 8.5 * 86400)
    run = fake.attach_run(fake.session.add_run())
    shared = run.shared()
    shared.open()
    assert aside
    assert aside.counts() == {Attempt("r", "young", "1"): 2}
    assert "dropped: 2 records of attempts that never ended" in caplog.text
    shared.close()
    assert not aside


def test_a_spool_at_its_limit(fake: FakeBlockingSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """What attempts log counts among its bytes: more is not taken, and the worker holds it."""
    keeper = fake.session._delivery.keeper
    assert keeper is not None
    run = fake.attach_run(fake.session.add_run())
    with run.shared() as handle, handle.attach(**TASK) as worker:
        worker.log_metric("loss", 0.5, 1)
        worker.flush(timeout=30)
        with monkeypatch.context() as patch:
            patch.setattr(keeper.spool.aside, "_limit", 1)
            worker.log_metric("loss", 0.5, 2)
            with pytest.raises(TimeoutError):
                worker.flush(timeout=0.1)
            wait_until(lambda: worker.stats().throttled >= 1)
    run.flush()
    assert steps(fake, run.run_id) == {"loss": [1, 2]}


def test_tasks_that_are_done_are_remembered_up_to_a_number(
    fake: FakeBlockingSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent sees many."""
    monkeypatch.setattr("adp_async.collector.attempts.KEPT_TOKENS", 2)
    run = fake.attach_run(fake.session.add_run())
    shared = run.shared()
    with shared as handle:
        for task in range(4):
            with handle.attach(attempt=f"part {task}", commit="task") as worker:
                worker.log_metric("loss", 0.5, task)
        done = shared._collector.handler.attempts._done
        assert [task for _, task in done] == ["part 2", "part 3"]


def test_rows_that_are_damaged(fake: FakeBlockingSession) -> None:
    """They are left out, and the others are there."""
    keeper = fake.session._delivery.keeper
    assert keeper is not None
    aside: Aside = keeper.spool.aside
    attempt = Attempt("r", "t", "a")
    for number in range(3):
        aside.put(attempt, f"token {number}", [Metric("k", 0.5, 1, number), RunTag("t", "v")])
        aside.put(attempt, f"token {number}", [Metric("k", 0.5, 1, number), RunTag("t", "v")])
    with aside._database.transaction() as connection:
        connection.execute("UPDATE aside SET body = x'00' WHERE token = 'token 1'")
    assert [each.step for each in aside.of(attempt) if isinstance(each, Metric)] == [0, 2]
    assert aside.counts() == {attempt: 4}
    aside.drop([attempt])
    assert aside.counts() == {}


# ------------------------------------------------------------------ kills

AGENT = """
    import os, signal, sys
    from adp_async.cli import main
    from adp_async.collector import attempts

    where = sys.argv.pop(1)
    commit = attempts.Attempts.commit
    safe = attempts.is_safe

    async def die_before(self, *arguments):
        os.kill(os.getpid(), signal.SIGKILL)

    async def die_after(*arguments):
        await safe(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    if where == "before":
        attempts.Attempts.commit = die_before
    if where == "after":
        attempts.is_safe = die_after
    sys.exit(main())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are killed by signals")
@pytest.mark.parametrize("where", ["before", "after"])
async def test_a_collector_that_dies_at_a_commit(
    bare_platform: LocalPlatform, tmp_path: Path, where: str
) -> None:
    """Before it, or between it and its reply: the next one has what was held aside, once."""
    from adp_async.collector import Handle

    (tmp_path / "agent.py").write_text(textwrap.dedent(AGENT))
    run_id = bare_platform.gateway.add_run()

    started: list[asyncio.subprocess.Process] = []

    async def start(where: str) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(tmp_path / "agent.py"), where),
            *("agent", "--folder", str(tmp_path / "agent")),
            env=environment(bare_platform, linger=0.02),
            stdout=asyncio.subprocess.PIPE,
        )
        started.append(process)
        assert process.stdout is not None
        await process.stdout.readline()
        return process

    async def work(handle: Handle) -> None:
        async with handle.attach(run_id, **TASK) as worker:
            for step in range(2500):
                worker.log_metric("loss", 0.5, step)

    received = bare_platform.gateway.received(run_id)
    try:
        dying = await start(where)
        handle = Handle.from_file(tmp_path / "agent" / FILE)
        working = asyncio.create_task(work(handle))
        assert await asyncio.wait_for(dying.wait(), 60) == -signal.SIGKILL
        again = await start("nowhere")
        await asyncio.wait_for(working, 60)
        await until(lambda: len({each.step for each in received.metrics}) == 2500)
        # One more attempt, after all of it: the task is known to be done.
        async with handle.attach(run_id, **TASK) as late:
            late.log_metric("loss", 0.5, 9999)
        again.terminate()
        assert await asyncio.wait_for(again.wait(), 60) == 0
    finally:
        for process in started:
            if process.returncode is None:
                process.kill()
    assert Counter(each.step for each in received.metrics) == Counter(range(2500))


def test_a_commit_that_fails_does_not_win(
    fake: FakeBlockingSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk cannot be read as the attempt ends: the next attempt of the task counts."""
    run = fake.attach_run(fake.session.add_run())

    def unreadable(self: Aside, attempt: Attempt) -> list[Any]:
        raise SpoolError("the disk is gone")

    def fail_to_commit(handle: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setitem(DEFAULTS, "call_timeout", 1.5)  # type: ignore[misc]
            patch.setattr("adp_async.collector.attempt_run.GREETING", 0.5)
            with handle.attach(**TASK) as worker:
                log(worker)
                worker.flush()
                patch.setattr(Aside, "of", unreadable)

    with run.shared() as handle:
        with pytest.raises(AdpError, match="can read nothing"):
            fail_to_commit(handle)
        with handle.attach(**TASK) as again:
            log(again)
        with handle.attach(**TASK) as late:
            late.log_metric("late", 1.0)
    run.flush()
    assert steps(fake, run.run_id) == {"loss": [*range(5)]}


async def test_an_attempt_that_is_refused_leaves_nothing_open() -> None:
    """Of the session that it would have had; both faces."""
    async with (
        FakeSession(spool=False) as session,
        session.start_run() as run,
        run.shared() as handle,
    ):
        with pytest.raises(BadRequest, match="has no spool"):
            async with handle.attach(attempt="7", commit="task"):
                raise AssertionError("it was entered")

        def attach() -> None:
            with handle.attach(attempt="7", commit="task"):
                raise AssertionError("it was entered")

        with pytest.raises(BadRequest, match="has no spool"):
            await asyncio.to_thread(attach)
