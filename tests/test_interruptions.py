"""Signal handlers, finalizers, log handlers and weakref callbacks that log, at any moment."""

from __future__ import annotations

import asyncio
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from children import start

from adp_async._sansio.records import METRIC_COST
from adp_async.testing import FakeBlockingSession

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from adp_async.local import LocalPlatform

INTERRUPTED = """
    import asyncio, faulthandler, gc, itertools, logging, signal, sys, threading, time, weakref
    from adp_async._sansio.records import METRIC_COST
    from adp_async.testing import FakeBlockingSession, FakeSession

    how, face, spool, full, seconds = sys.argv[1:]
    seconds = float(seconds)
    faulthandler.dump_traceback_later(100.0, exit=True)
    sys.unraisablehook = lambda unraisable: failed.append(repr(unraisable.exc_value))
    numbers, failed = itertools.count(), []
    interruptions = 0

    def log(run):
        global interruptions
        number = next(numbers)
        interruptions = number + 1
        try:
            if number % 50 == 0:
                run.set_tag("interrupted", number)
            else:
                run.log_metric("interrupted", 0.5, step=number)
        except BaseException as error:
            failed.append(repr(error))

    class Finalized:
        def __init__(self, run):
            self.run = run
            self.me = self  # for the garbage collector

        def __del__(self):
            log(self.run)

    class Referred:
        pass

    class Handler(logging.Handler):
        is_busy = False

        def emit(self, record):
            if not self.is_busy:
                self.is_busy = True
                try:
                    log(self.run)
                finally:
                    self.is_busy = False

    def train(run):
        references = []
        if how == "signal":
            signal.signal(signal.SIGALRM, lambda *_: log(run))
            signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        elif how == "handler":
            handler = Handler()
            handler.run = run
            logging.getLogger("adp_async").addHandler(handler)
            logging.getLogger("adp_async").setLevel(logging.DEBUG)
        gc.set_threshold(50)
        over = time.monotonic() + seconds
        count = 0
        # A machine that stalls still has to interrupt it a few times.
        while (now := time.monotonic()) < over or interruptions < 100 and now < over + 30.0:
            run.log_metric("loss", 0.5, step=count)
            if count % 100 == 0:
                run.set_tag("state", count)
            if how == "finalizer" and count % 5 == 0:
                Finalized(run)
            elif how == "weakref" and count % 5 == 0:
                it = Referred()
                it.me = it
                weakref.finalize(it, log, run)
            if count % 20 == 0:
                time.sleep(0.0005)
            count += 1
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        if how == "handler":
            logging.getLogger("adp_async").removeHandler(handler)
        gc.collect()
        return count

    knobs = {
        "spool": spool if spool != "off" else False,
        "spool_interval": 0.01,
        "linger": 0.001,
        "overflow": "drop" if spool == "off" and full == "full" else "block",
        "buffer_limit": 300 * METRIC_COST if full == "full" else 64 * 2**20,
    }

    def judge(session, run, count):
        stats = session.logger.stats()
        got = session.received(run.run_id)
        logged = count + -(-count // 100) + next(numbers)
        assert not failed, (len(failed), failed[:3])
        assert stats.accepted == logged, (stats, logged)
        assert stats.delivered + stats.dropped == logged, (stats, logged)
        assert stats.dropped == 0 or knobs["overflow"] == "drop", stats
        steps = [(each.key, each.step) for each in got.metrics]
        assert len(steps) == len(set(steps))
        if not stats.dropped:
            assert {step for key, step in steps if key == "loss"} == set(range(count))
            assert dict(got.tags)["state"] == str((count - 1) // 100 * 100)
        assert session._delivery.intake.used() == 0, session._delivery.intake.used()
        print("interruptions", logged - count)

    async def main():
        async with FakeSession(**knobs) as session:
            run = session.attach_run(session.add_run())
            count = train(run)
            await asyncio.wait_for(run.flush(), 60)
            judge(session, run, count)

    if face == "async":
        asyncio.run(main())
    else:
        with FakeBlockingSession(**knobs) as session:
            run = session.attach_run(session.session.add_run())
            count = train(run)
            run.flush(timeout=60)
            judge(session.session, run, count)
"""


@pytest.mark.parametrize("full", ["full", "room"])
@pytest.mark.parametrize("spool", ["spool", "off"])
@pytest.mark.parametrize(
    ("how", "face"),
    [
        ("signal", "async"),
        ("signal", "blocking"),
        ("finalizer", "blocking"),
        ("weakref", "blocking"),
        ("handler", "async"),
    ],
)
async def test_logging_at_any_moment(
    bare_platform: LocalPlatform, tmp_path: Path, how: str, face: str, spool: str, full: str
) -> None:
    """It never raises, deadlocks or is left behind, also with memory full; counts add up."""
    folder = "off" if spool == "off" else tmp_path / "spool"
    if full == "full" and face == "async" and spool == "off":
        pytest.skip("code on a loop is told that memory is full; test_delivery has that")
    child = await start(bare_platform, tmp_path, INTERRUPTED, how, face, folder, full, 0.7)
    code, output, errors = await child.ends(150.0)
    assert code == 0, errors[-3000:]
    assert int(output.split()[-1]) > 50


IDLE = """
    import asyncio, os, signal, sys, threading, time
    from adp_async.testing import FakeSession

    async def main():
        async with FakeSession(linger=0.05) as session:
            run = session.attach_run(session.add_run())

            def handle(*_):
                run.log_metric("loss", 0.5)
                run.set_tag("state", "preempted")

            signal.signal(signal.SIGUSR1, handle)
            seen = []

            def look():
                time.sleep(0.1)
                began = time.monotonic()
                os.kill(os.getpid(), signal.SIGUSR1)
                while time.monotonic() < began + 20.0:
                    got = session.received(run.run_id)
                    if got.metrics and got.tags:
                        seen.append(time.monotonic() - began)
                        return
                    time.sleep(0.002)

            thread = threading.Thread(target=look)
            thread.start()
            await asyncio.to_thread(thread.join)  # an idle loop: nothing else wakes it
            print("seen", *seen)

    asyncio.run(main())
"""


async def test_a_signal_in_an_idle_loop(bare_platform: LocalPlatform, tmp_path: Path) -> None:
    """What a plain signal handler logs while the loop sleeps is delivered within a linger."""
    child = await start(bare_platform, tmp_path, IDLE)
    output = await child.ends_well()
    word, seconds = output.split()
    assert word == "seen"
    assert float(seconds) < 0.05 + 15.0


async def test_a_handler_that_logs_what_is_said(
    bare_platform: LocalPlatform, tmp_path: Path
) -> None:
    """A handler of the log counts warnings in the run itself, also those of delivery's thread."""
    script = """
        import asyncio, logging
        from adp_async.testing import FakeSession

        async def main():
            async with FakeSession(linger=0.001) as session:
                run = session.attach_run(session.add_run())

                class Counting(logging.Handler):
                    count = 0
                    def emit(self, record):
                        self.count += 1
                        run.log_metric("warnings", self.count, step=self.count)

                handler = Counting()
                logging.getLogger("adp_async").addHandler(handler)
                session.answer("log_experiment_run_batch", status=503, times=3)
                run.log_metric("loss", 0.5)
                await asyncio.wait_for(run.flush(), 60)
                await asyncio.wait_for(run.flush(), 60)
                got = [each.key for each in session.received(run.run_id).metrics]
                print(got.count("loss"), got.count("warnings") == handler.count > 0)

        asyncio.run(main())
    """
    child = await start(bare_platform, tmp_path, script)
    assert (await child.ends_well()).split() == ["1", "True"]


# Handlers that raise ------------------------------------------------------------------------------


class TooLong(Exception):
    """What a program's own time limit raises."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """A time limit by SIGALRM, as programs have it around a step."""

    def raise_it(*_: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, raise_it)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no such timer on this system")
def test_a_call_that_a_handler_ends_gives_its_room_back() -> None:
    """It waits for memory when a signal's handler raises: the buffer is as large as before."""
    room = 20
    with FakeBlockingSession(buffer_limit=room * METRIC_COST, max_block=30.0) as session:
        run = session.attach_run(session.session.add_run())
        script = session.session.answer("log_experiment_run_batch", status=503)
        for step in range(room):
            run.log_metric("loss", 0.5, step=step)
        for _ in range(room):
            with pytest.raises(TooLong), at_most(0.005):
                run.log_metric("loss", 0.5, step=room)
        script.left = 0
        run.flush(60.0)
        script.left = None
        with at_most(20.0):
            for step in range(room, 2 * room):
                run.log_metric("loss", 0.5, step=step)
        script.left = 0
        run.flush(60.0)
        assert run.stats().accepted == run.stats().delivered == 2 * room
        steps = [metric.step for metric in session.session.received(run.run_id).metrics]
        assert sorted(steps) == list(range(2 * room))


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no such timer on this system")
def test_a_wait_that_a_handler_ends_is_over_in_the_loop_as_well() -> None:
    """Whatever the handler raises: nobody goes on waiting behind the caller's back."""
    with FakeBlockingSession() as session:
        run = session.attach_run(session.session.add_run())
        script = session.session.answer("log_experiment_run_batch", status=503)
        receipt = run.log_metric("loss", 0.5)
        for wait in (run.flush, receipt.wait):
            with pytest.raises(TooLong), at_most(0.05):
                wait()
        session.call(asyncio.sleep(0.01))
        assert session.session._delivery.state.waiters.are_none
        script.left = 0
        run.flush(60.0)
