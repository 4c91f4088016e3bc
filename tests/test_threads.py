"""Logging from many threads at once: nothing lost, nothing twice, bounded memory, safe looks."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from adp_async._io import intake
from adp_async._io.spool import Spool
from adp_async._sansio.records import METRIC_COST, cost_of
from adp_async.errors import BufferFull, Closed, DeliveryError
from adp_async.testing import FakeBlockingSession, FakeSession

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LOG_BATCH = "log_experiment_run_batch"


@pytest.fixture(autouse=True)
def frequent_switches() -> Iterator[None]:
    """Threads take turns much more often than usual."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def at_once(*works: Callable[[], object]) -> list[BaseException]:
    """Do all of *works* in a thread each; what they raised."""
    errors: list[BaseException] = []
    barrier = threading.Barrier(len(works))

    def guarded(work: Callable[[], object]) -> None:
        barrier.wait()
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120.0)
    return errors


def test_nothing_is_lost_and_nothing_comes_twice() -> None:
    """Eight threads, one run, every kind of record: each arrives once, in its thread's order."""
    with FakeBlockingSession(linger=0.001) as session:
        run = session.start_run()

        def work(number: int) -> None:
            for step in range(2000):
                run.log_metric(f"loss{number}", step / 7, step=step)
                if step % 100 == 0:
                    run.log_metrics({f"a{number}": 1.0, f"b{number}": 2.0}, step=step)
                    run.log_param(f"p{number}/{step}", step)
                    run.set_tag(f"t{number}", step)

        assert at_once(*(lambda number=number: work(number) for number in range(8))) == []
        run.flush()
        received = session.session.received(run.run_id)
        for number in range(8):
            steps = [metric.step for metric in received.metrics if metric.key == f"loss{number}"]
            assert sorted(steps) == list(range(2000))
            tags = [int(value) for key, value in received.tags if key == f"t{number}"]
            assert tags == sorted(set(tags))
            assert tags[-1] == 1900
        assert len(received.metrics) == 8 * (2000 + 40)
        assert len(received.params) == len(set(received.params)) == 8 * 20
        stats = session.session.logger.stats()
        assert stats.accepted == stats.delivered == 8 * (2000 + 40 + 20 + 20)


def test_many_runs_from_many_threads() -> None:
    """Runs don't mix, and `BatchLogger` is as safe as a run."""
    with FakeBlockingSession(linger=0.001, close_timeout=60.0) as session:
        run_ids = [session.session.add_run() for _ in range(50)]

        def work() -> None:
            for step in range(40):
                for run_id in run_ids:
                    session.session.logger.log_metric(run_id, "loss", 0.5, step=step)

        assert at_once(*[work] * 4) == []
    for run_id in run_ids:
        steps = [metric.step for metric in session.session.received(run_id).metrics]
        assert sorted(steps) == sorted([*range(40)] * 4)


def test_threads_wait_for_room() -> None:
    """With the buffer full a thread waits until there is room, and nothing is lost."""
    limit = 500 * METRIC_COST
    with FakeBlockingSession(buffer_limit=limit, linger=0.001) as session:
        run = session.start_run()
        session.session.answer(LOG_BATCH, status=503, times=5)
        highest = 0

        def work() -> None:
            nonlocal highest
            for step in range(3000):
                run.log_metric("loss", 0.5, step=step)
                highest = max(highest, session.session._delivery.accumulator.cost)

        assert at_once(*[work] * 3) == []
        run.flush()
        assert len(session.session.received(run.run_id).metrics) == 9000
        assert highest <= limit + 10 * METRIC_COST


def test_threads_do_not_wait_for_ever() -> None:
    """After *max_block* seconds BufferFull says what to do, and the record wasn't taken."""
    with FakeBlockingSession(buffer_limit=10 * METRIC_COST, max_block=0.05) as session:
        run = session.start_run()
        script = session.session.answer(LOG_BATCH, status=503)
        for step in range(10):
            run.log_metric("loss", 0.5, step=step)
        time.sleep(0.02)
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises(BufferFull, match="drain"):
                run.log_metric("loss", 0.5, step=10)
            assert 0.04 < time.monotonic() - began < 20.0
        assert session.session.logger.stats().accepted == 10
        script.left = 0
        run.flush()
        assert len(session.session.received(run.run_id).metrics) == 10


def test_dropping_from_threads() -> None:
    """``overflow="drop"``: no thread waits, and what isn't delivered is counted as dropped."""
    knobs: dict[str, Any] = {"overflow": "drop", "linger": 0.001}
    with FakeBlockingSession(buffer_limit=200 * METRIC_COST, **knobs) as session:
        run = session.start_run()
        script = session.session.answer(LOG_BATCH, status=503)

        def work() -> None:
            for step in range(2000):
                run.log_metric("loss", 0.5, step=step)

        assert at_once(*[work] * 4) == []
        script.left = 0
        run.flush()
        stats = session.session.logger.stats()
        assert stats.dropped > 0
        assert stats.accepted == stats.delivered + stats.dropped == 8000
        assert len(session.session.received(run.run_id).metrics) == stats.delivered


def test_threads_that_wait_when_it_closes() -> None:
    """Waiters for room or for a receipt get an error when the session closes."""
    session = FakeBlockingSession(
        buffer_limit=10 * METRIC_COST, max_block=60.0, close_timeout=0.05
    ).open()
    run = session.start_run()
    session.session.answer(LOG_BATCH, status=503)
    receipt = run.log_metric("loss", 0.5)

    def fill() -> None:
        while True:
            run.log_metric("loss", 0.5)

    def close() -> None:
        waiters, longest = session.session._delivery.state.waiters, time.monotonic() + 20.0
        while not (waiters._receipts and waiters._flushes) and time.monotonic() < longest:
            time.sleep(0.005)
        time.sleep(0.05)
        session.close()

    began = time.monotonic()
    errors = at_once(fill, receipt.wait, run.flush, close)
    assert time.monotonic() - began < 50.0
    assert sorted(type(error).__name__ for error in errors) in (
        ["Closed", "DeliveryError", "DeliveryError", "DeliveryError"],
        ["Closed", "Closed", "DeliveryError", "DeliveryError"],
    )


def test_looking_from_any_thread() -> None:
    """Stats, receipts and reprs can be asked for while everything moves."""
    with FakeBlockingSession(linger=0.0) as session:
        run = session.start_run()
        done = threading.Event()

        def look() -> None:
            while not done.is_set():
                stats = run.stats()
                assert stats.delivered <= stats.accepted
                session.session.logger.stats()
                assert repr(run)
                assert repr(session)

        def log() -> None:
            try:
                for step in range(10_000):
                    receipt = run.log_metric("loss", 0.5, step=step)
                    assert receipt.delivered in (False, True)
                    if step % 500 == 0:
                        run.log_param(f"p{step}", step)
            finally:
                done.set()

        assert at_once(look, look, log) == []
        run.flush()
        assert run.stats().delivered == 10_020


def test_closing_while_threads_log() -> None:
    """Each call either was accepted and is accounted for, or raised Closed."""
    for _ in range(5):
        session = FakeBlockingSession(linger=0.001).open()
        run = session.start_run()
        accepted: list[Any] = []

        def work(run: Any = run, accepted: list[Any] = accepted) -> None:
            while True:
                accepted.append(run.log_metric("loss", 0.5))

        def close(session: FakeBlockingSession = session) -> None:
            time.sleep(0.01)
            session.close()

        errors = at_once(work, work, work, close)
        assert {type(error) for error in errors} <= {Closed, DeliveryError}
        assert len(session.session.received(run.run_id).metrics) == sum(
            receipt.delivered for receipt in accepted
        )
        assert all(receipt.done for receipt in accepted)
        undelivered = [error.undelivered for error in errors if isinstance(error, DeliveryError)]
        assert sum(not receipt.delivered for receipt in accepted) == sum(undelivered)


async def test_logging_in_the_middle_of_taking_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A finalizer or signal handler may run anywhere on the loop's thread, and may log."""
    async with FakeSession() as session:
        run = session.attach_run(session.add_run())
        accumulator = session._delivery.accumulator
        take_in = accumulator.take_in

        def interrupted(records: Any, now: float) -> None:
            if len(records) == 1:
                run.log_metrics({"late": 1.0, "later": 2.0}, step=1)
                run.set_tag("interrupted", "yes")
            take_in(records, now)

        monkeypatch.setattr(type(accumulator), "take_in", lambda _, *given: interrupted(*given))
        run.log_metric("loss", 0.5, step=1)
        await run.flush()
        received = session.received(run.run_id)
    assert sorted(metric.key for metric in received.metrics) == ["late", "later", "loss"]
    assert received.tags == [("interrupted", "yes")]


async def test_logging_while_the_rest_is_measured(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another thread may append whenever the delivery thread looks at what came meanwhile."""
    async with FakeSession() as session:
        run = session.attach_run(session.add_run())
        delivery = session._delivery
        take_in, steps = delivery.accumulator.take_in, iter(range(100))

        def log_another() -> None:
            if delivery._is_ours() and (step := next(steps, None)) is not None:
                run.log_metric("late", 0.5, step=step)

        def interrupted(records: Any, now: float) -> None:
            log_another()
            take_in(records, now)

        def measured(record: Any) -> int:
            log_another()
            return cost_of(record)

        monkeypatch.setattr(
            type(delivery.accumulator), "take_in", lambda _, *given: interrupted(*given)
        )
        monkeypatch.setattr(intake, "cost_of", measured)
        run.log_metric("loss", 0.5, step=1)
        run.set_tag("stage", "fit")
        await run.flush()
        while next(steps, None) is not None:
            await run.flush()
        await run.flush()
        assert delivery.intake._text_cost == 0
        assert run.stats().delivered == run.stats().accepted
    assert "ended unexpectedly" not in caplog.text


def test_a_finalizer_in_a_thread_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk's thread, too, may run finalizers: with memory full it doesn't wait for itself."""
    knobs: Any = {"spool": tmp_path / "spool", "spool_interval": 0.01, "max_block": 60.0}
    with FakeBlockingSession(buffer_limit=4000 * METRIC_COST, **knobs) as session:
        run = session.start_run()
        commit, late = Spool.commit, iter(range(20))

        def interrupted(*arguments: Any) -> Any:
            if (step := next(late, None)) is not None:
                run.log_metric("late", 0.5, step=step)
            return commit(*arguments)

        monkeypatch.setattr(Spool, "commit", interrupted)
        script = session.session.answer(LOG_BATCH, status=503)
        began = time.monotonic()
        for step in range(20_000):
            run.log_metric("loss", 0.5, step=step)
        assert time.monotonic() - began < 50.0
        script.left = 0
        run.flush(timeout=60.0)
        assert run.stats().dropped == 0


def test_a_finalizer_in_the_middle_of_making_room() -> None:
    """It may interrupt a thread that holds the lock, or waits for its turn, and log."""
    with FakeBlockingSession(buffer_limit=10 * METRIC_COST, max_block=60.0) as session:
        run = session.start_run()
        script = session.session.answer(LOG_BATCH, status=503)
        for step in range(10):
            run.log_metric("loss", 0.5, step=step)
        intake = session.session._intake
        began = time.monotonic()
        with intake.lock:
            run.log_metric("late", 0.5, step=0)
            run.log_metric("late", 0.5, step=1)
        assert time.monotonic() - began < 50.0
        script.left = 0
        run.flush(timeout=60.0)
        assert len(session.session.received(run.run_id).metrics) == 12
