"""Workers that live longer than their handles, are forked, pickled and lenient."""

from __future__ import annotations

import asyncio
import os
import pickle
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from children import until
from test_collector_hop import steps

from adp_async.collector import presence
from adp_async.collector.session import DEFAULTS, sessions
from adp_async.errors import AdpError, Closed, DeliveryError, Forbidden, ServiceFault, UploadError
from adp_async.testing import FakeBlockingSession, FakeSession

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from adp_async.blocking import Run

TASK: dict[str, Any] = {"attempt": "part 1", "commit": "task"}
FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")


@pytest.fixture(autouse=True)
def _alone() -> None:
    """Sessions that tests before left open, whose collectors are gone, are closed."""
    for session in sessions.take(lambda _: True):
        for lane in list(session.session._delivery.accumulator.lanes.values()):
            session.logger.discard(lane.run_id)
        session.close()


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeBlockingSession]:
    with FakeBlockingSession(spool=tmp_path / "spool") as session:
        yield session


@pytest.fixture
def run(fake: FakeBlockingSession) -> Run:
    return fake.attach_run(fake.session.add_run())


def open_sessions() -> int:
    return sum(session.is_open for session in sessions._sessions.values())


# ------------------------------------------------------------------ many handles


def test_a_worker_that_sees_many_handles(fake: FakeBlockingSession, run: Run) -> None:
    """As one of a cluster that runs for days: sessions of handles that are dead are closed."""
    threads = []
    for step in range(10):
        with run.shared() as handle, handle.attach() as worker:
            worker.log_metric("loss", 0.5, step)
        del worker
        threads.append(threading.active_count())
    # (The last may be held for a moment yet by the thread in which it has ended.)
    assert open_sessions() <= 2
    assert max(threads) - threads[0] <= 4
    run.flush()
    assert steps(fake, run.run_id) == {"loss": [*range(10)]}


def test_what_is_still_in_use_stays(fake: FakeBlockingSession, run: Run) -> None:
    """A run that somebody has, a session that was given out, and what waits for its collector."""
    with run.shared() as first, run.shared() as second, run.shared() as third:
        mine = first.attach()
        theirs = second.session()
        with third.attach() as worker:
            pass
    worker.log_metric("late", 0.5)
    del worker
    with run.shared() as handle, handle.attach():
        assert mine._session.is_open
        assert theirs.is_open
        assert open_sessions() == 4
    for session in list(sessions._sessions.values()):
        session.logger.discard(run.run_id)


def test_one_that_is_attached_again(fake: FakeBlockingSession, run: Run) -> None:
    """After its session was closed, for want of use, it is opened anew."""
    with run.shared() as first, run.shared() as second:
        for handle in (first, second, first, second):
            with handle.attach() as worker:
                worker.log_metric("loss", 0.5)
            del worker
        assert open_sessions() <= 2
    run.flush()
    assert len(fake.session.received(run.run_id).metrics) == 4


# ------------------------------------------------------------------ presence


def test_a_worker_that_computes_for_long(
    fake: FakeBlockingSession, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is waited for as long as it is within its block, although it logs nothing."""
    monkeypatch.setattr(presence, "RENEW_EVERY", 0.05)
    monkeypatch.setattr("adp_async.collector.collector.LEASE", 2.0)
    entered = threading.Event()

    def work(handle: Any) -> None:
        with handle.attach() as worker:
            entered.set()
            time.sleep(2.4)
            worker.log_metric("loss", 0.5)

    with run.shared() as handle:
        thread = threading.Thread(target=work, args=(handle,))
        thread.start()
        entered.wait(60)
    thread.join()
    run.flush()
    assert steps(fake, run.run_id) == {"loss": [0]}


async def test_signs_of_life_end_with_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several blocks with the last; the collector then knows of nobody within."""
    monkeypatch.setattr(presence, "RENEW_EVERY", 0.01)
    async with FakeSession() as session, session.start_run() as run:
        shared = run.shared()
        async with shared as handle:
            async with handle.attach(), handle.attach():
                ledger = shared._collector.handler.ledger
                (worker,) = ledger.workers.values()
                assert len(worker.inside) == 2
                answered = shared._collector.handler.by_status
                await until(lambda: answered[200] >= 10)
                worker.inside.clear()  # as one that was started again knows of nobody
                await until(lambda: len(worker.inside) == 2)
            assert not worker.inside
            before = answered[200]
            await asyncio.sleep(0.05)
            assert answered[200] == before


async def test_a_goodbye_comes_after_the_sign_of_life_under_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The collector would take one that comes after it for a block that is entered again."""
    monkeypatch.setattr(presence, "RENEW_EVERY", 0.0)
    said: list[str] = []
    asked, answered = asyncio.Event(), asyncio.Event()

    class Slow:
        async def call(self, endpoint: Any, **_: Any) -> None:
            if said:  # entering is answered at once
                asked.set()
                await answered.wait()
            said.append(endpoint.path)

    here = presence.Presence(Slow())  # type: ignore[arg-type]
    await here.enter("a", "run")
    here._inside.add("b")
    await asyncio.wait_for(asked.wait(), 30.0)
    leaving = asyncio.gather(here.leave("a", "run"), here.leave("b", "run"))
    await asyncio.sleep(0.01)
    answered.set()
    await leaving
    assert said == ["collector/enter"] * 2 + ["collector/leave"] * 2


def test_a_session_that_closes_within_a_block(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a process that ends there: signs of life do not hold it up."""
    monkeypatch.setattr("adp_async.collector.collector.LEASE", 0.1)
    with run.shared() as handle:
        manager = handle.attach()
        worker = manager.__enter__()
        worker.log_metric("loss", 0.5)
        began = time.monotonic()
        handle.session().close()
        assert time.monotonic() - began < 20.0
        with pytest.raises(Closed):
            manager.__exit__(None, None, None)


async def test_signs_of_life_that_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that is entered as the last one says that it is there: there is one timer for all."""
    monkeypatch.setattr(presence, "RENEW_EVERY", 30.0)
    async with FakeSession() as session, session.start_run() as run, run.shared() as handle:
        worker = handle.session()
        thread = worker._thread
        assert thread is not None
        loop: Any = thread.loop

        async def overlap() -> int:
            here = worker.presence
            await here.enter("a", run.run_id)
            renewing = asyncio.create_task(here._renew())
            await here.leave("a", run.run_id)
            await here.enter("b", run.run_id)
            await renewing
            timers = [each for each in loop._scheduled if "_renew_now" in repr(each)]
            await here.leave("b", run.run_id)
            return sum(not each.cancelled() for each in timers)

        assert await thread.run(overlap()) == 0, "and it was stopped"
        assert worker.presence._next is None

        async def entered() -> int:
            here = worker.presence
            await here.enter("a", run.run_id)
            here._renew_later()
            timers = [each for each in loop._scheduled if "_renew_now" in repr(each)]
            count = sum(not each.cancelled() for each in timers)
            await here.leave("a", run.run_id)
            return count

        assert await thread.run(entered()) == 1


# ------------------------------------------------------------------ forked and pickled


def forked(doing: Callable[[], object]) -> int:
    """The exit code of a child that does it."""
    if (pid := os.fork()) == 0:
        code = 1
        try:
            doing()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def log_and_flush(worker: Any) -> None:
    worker.log_metric("child", 1.0)
    worker.flush(timeout=60)


@FORKS
@pytest.mark.parametrize("ends_well", [True, False])
def test_a_child_of_an_attempt(fake: FakeBlockingSession, run: Run, ends_well: bool) -> None:
    """What it logs is the attempt's, and counts when that does."""

    def work(handle: Any) -> None:
        with handle.attach(**TASK) as worker:
            worker.log_metric("parent", 1.0)
            assert forked(lambda: log_and_flush(worker)) == 0
            worker.log_metric("parent", 1.0, 1)
            if not ends_well:
                raise ZeroDivisionError

    with run.shared() as handle:
        if ends_well:
            work(handle)
        else:
            with pytest.raises(ZeroDivisionError):
                work(handle)
    run.flush()
    expected = {"parent": [0, 1], "child": [0]} if ends_well else {}
    assert steps(fake, run.run_id) == expected


@FORKS
@pytest.mark.parametrize("how", [{}, TASK], ids=["stream", "task"])
def test_a_child_that_exits_its_parent_s_block(
    fake: FakeBlockingSession, run: Run, how: dict[str, Any]
) -> None:
    """It hands over what it has logged, and leaves the end of the block to its parent."""
    with run.shared() as handle:
        manager = handle.attach(**how)
        worker = manager.__enter__()

        def exit_it() -> None:
            worker.log_metric("child", 1.0)
            manager.__exit__(None, None, None)

        assert forked(exit_it) == 0
        worker.log_metric("parent", 1.0)
        manager.__exit__(None, None, None)
    run.flush()
    assert steps(fake, run.run_id) == {"child": [0], "parent": [0]}


@pytest.mark.parametrize("strict", [True, False])
def test_a_pickled_worker(fake: FakeBlockingSession, run: Run, strict: bool) -> None:
    """For a process that a worker starts: it has the same prefix and leaves params to rank 0."""
    with run.shared() as handle, handle.attach(rank=3, strict=strict) as worker:
        again = pickle.loads(pickle.dumps(worker))
        with again:
            again.log_metric("loss", 0.5)
            again.log_param("lr", 0.1)
        assert again.stats().dropped == 1
        assert type(again) is type(worker)
    run.flush()
    assert steps(fake, run.run_id) == {"rank3/loss": [0]}


def test_a_pickled_attempt(fake: FakeBlockingSession, run: Run) -> None:
    """What is logged by the copy counts when the attempt ends well, and the copy ends nothing."""
    with run.shared() as handle:
        with handle.attach(**TASK) as worker:
            with pickle.loads(pickle.dumps(worker)) as again:
                again.log_metric("copy", 0.5)
            run.flush()
            assert steps(fake, run.run_id) == {}
            worker.log_metric("own", 0.5)
        run.flush()
        assert steps(fake, run.run_id) == {"copy": [0], "own": [0]}


# ------------------------------------------------------------------ lenient


def test_a_lenient_run_that_is_shared(
    fake: FakeBlockingSession, caplog: pytest.LogCaptureFixture
) -> None:
    """It is lenient where it arrives as well, in the way of any such run."""
    run = fake.attach_run(fake.session.add_run(), strict=False)
    with run.shared():
        with pickle.loads(pickle.dumps(run)) as worker:
            worker.log_metric("acc%", 0.5)
            worker.log_metric("loss", "many")
            worker.log_metrics([1, 2])
            worker.log_params({"a": "x" * 10_000})
            with pytest.raises(UploadError, match="artifacts need credentials"):
                worker.log_text("text", "notes.txt").wait(30)
            worker.finish()
        strict = fake.attach_run(run.run_id)
        with pickle.loads(pickle.dumps(strict)) as worker, pytest.raises(AdpError):
            worker.log_metric("loss", "many")
    run.flush()
    received = fake.session.received(run.run_id)
    assert [each.key for each in received.metrics] == ["acc_"]
    assert len(received.params) == 1
    for told in ("skipped", "takes a mapping", "artifacts need credentials", "is ended by"):
        assert told in caplog.text


def test_a_lenient_rank(fake: FakeBlockingSession, run: Run) -> None:
    """Its prefix counts among the characters that a key may have; what is no mapping is skipped."""
    with run.shared() as handle, handle.attach(rank=1, strict=False) as worker:
        worker.log_metrics({"x" * 300: 0.5})
        worker.log_metrics(7)
        worker.log_params(7)
        worker.set_tags(7)
    run.flush()
    (point,) = fake.session.received(run.run_id).metrics
    assert len(point.key) == 250
    assert point.key.startswith("rank1/xxx")


@pytest.mark.parametrize("how", [{}, TASK], ids=["stream", "task"])
async def test_a_lenient_worker_of_a_collector_that_is_gone(
    how: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither face raises: the block is entered, run and exited, and warnings say what is lost."""
    monkeypatch.setitem(DEFAULTS, "close_timeout", 0.2)
    monkeypatch.setitem(DEFAULTS, "call_timeout", 0.2)
    monkeypatch.setattr(presence, "GREETING", 0.1)
    monkeypatch.setattr("adp_async.collector.attempt_run.GREETING", 0.1)
    done = []

    def work(handle: Any) -> None:
        with handle.attach(**how, strict=False) as worker:
            worker.log_metric("loss", 0.5)
            worker.flush(timeout=0.1, delivered=True)
            done.append("blocking")

    async with FakeSession() as session, session.start_run() as run:
        async with run.shared() as handle:
            pass
        await asyncio.to_thread(work, handle)
        async with handle.attach(**how, strict=False) as worker:
            worker.log_metric("loss", 0.5)
            await worker.finish()
            done.append("async")
    assert done == ["blocking", "async"]
    assert "1 record not delivered yet" in caplog.text
    for each in list(sessions._sessions.values()):
        each.logger.discard(run.run_id)


def test_a_lenient_worker_that_is_refused(fake: FakeBlockingSession, run: Run) -> None:
    """By flush(delivered=True) as well: a warning."""
    with run.shared() as handle, handle.attach(strict=False) as worker:
        worker.log_param("p", "a")
        worker.flush()
        worker.log_param("p", "b")
        worker.flush(delivered=True)
    with pytest.raises(AdpError, match="changing param values"):
        run.flush()


# ------------------------------------------------------------------ started offline


def test_a_run_that_started_offline(
    fake: FakeBlockingSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers read it by either of its names, as soon as the service has it, and no other run."""
    monkeypatch.setitem(DEFAULTS, "call_timeout", 3.0)
    monkeypatch.setattr("adp_async.collector.handler.LONGEST_LOOK", 0.05)
    script = fake.session.answer("create_experiment_run", status=503)
    other = fake.session.add_run()
    with fake.start_run(offline=True) as run, run.shared() as handle:
        assert run.run_id is None
        session = handle.session()
        with handle.attach() as worker:
            worker.log_metric("loss", 0.5)
        with pytest.raises(ServiceFault, match="does not have it yet"):
            session.runs.get(worker.run_id)
        script.left = script.given
        run_id = run.created(timeout=60)
        for name in (worker.run_id, run_id):
            assert session.runs.get(name).info.run_id == run_id
            session.runs.update(name, run_name=f"renamed by {name[:6]}")
        with pytest.raises(Forbidden):
            session.runs.get(other)
        with handle.attach() as worker:
            worker.log_param("bad", "a")
            worker.log_param("bad", "b")
            with pytest.raises(DeliveryError, match="bad"):
                worker.flush(delivered=True)
        with pytest.raises(DeliveryError, match="bad"):
            run.flush()
    assert steps(fake, run_id) == {"loss": [0]}
