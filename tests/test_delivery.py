"""Delivery in a thread of its own: whatever the caller's loop does, and from whichever it asks."""

from __future__ import annotations

import asyncio
import copy
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import pytest
from children import environment, points, start, until
from spools import journaled

from adp_async._sansio.records import METRIC_COST
from adp_async.errors import BufferFull, Closed, DeliveryError
from adp_async.local import Fault
from adp_async.testing import FakeBlockingSession, FakeSession

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from adp_async.local import LocalPlatform
    from adp_async.run import Run

LOG_BATCH = "log_experiment_run_batch"


def steps(session: FakeSession, run: Any) -> list[int]:
    return [metric.step for metric in session.received(run.run_id).metrics]


# A loop that is busy ------------------------------------------------------------------------------


def until_blocking(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait, and let no event loop of this thread come around."""
    ends_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends_at
        time.sleep(0.01)


async def test_a_loop_that_sleeps() -> None:
    """While `time.sleep` blocks the caller's loop, points arrive at most two lingers later."""
    linger, logged = 0.1, list[float]()
    in_time: set[int] = set()
    seen: set[int] = set()
    async with FakeSession(linger=linger) as session:
        run = session.attach_run(session.add_run())

        def log_and_look() -> bool:
            logged.append(time.monotonic())
            run.log_metric("loss", 0.5, step=len(logged) - 1)
            time.sleep(0.01)
            arrived = set(steps(session, run)) - seen
            now = time.monotonic()
            seen.update(arrived)
            in_time.update(step for step in arrived if now - logged[step] < 2 * linger + 0.05)
            # (A machine that is busy with other things may be late by itself, now and then.)
            return len(in_time) > 20

        until_blocking(log_and_look)


async def test_a_loop_that_is_blocked_outright() -> None:
    """Every kind of record that was logged before the loop was blocked arrives meanwhile."""
    async with FakeSession(linger=0.05) as session:
        run = session.attach_run(session.add_run())
        run.log_metrics({f"m{number}": 1.0 for number in range(200)})
        run.log_params({"lr": 0.1, "depth": 3})
        run.set_tags({"stage": "train"})
        received = session.received(run.run_id)
        until_blocking(lambda: len(received.tags) == 1 and len(received.metrics) == 200)
        assert len(received.metrics) == 200
        assert dict(received.params) == {"lr": "0.1", "depth": "3"}
        assert received.tags == [("stage", "train")]


async def test_a_blocked_loop_is_blocked_for_itself_alone() -> None:
    """A thread that flushes, or waits for a receipt, doesn't wait for the caller's loop."""
    async with FakeSession(linger=60.0) as session:
        run = session.attach_run(session.add_run())
        done: list[str] = []

        def work() -> None:
            run.log_metric("loss", 0.5).wait(20.0)
            done.append("receipt")
            asyncio.run(run.flush())
            done.append("flush")

        thread = threading.Thread(target=work)
        thread.start()
        thread.join(30.0)  # the loop is blocked on purpose
        assert done == ["receipt", "flush"]


CELL_OPEN = """
import time
import adp_async
session = adp_async.Session()
await session.open()
run = session.attach_run({run_id!r})
"""
CELL_TRAIN = """
import os
began = time.monotonic()
step = 0
while not os.path.exists({enough!r}) and time.monotonic() < began + {seconds}:
    run.log_metric("loss", 0.5, step=step)
    step += 1
    time.sleep(0.01)
"""
CELL_CLOSE = """
await session.close()
print("logged", step)
"""


async def test_a_notebook_cell_that_trains(bare_platform: LocalPlatform, tmp_path: Path) -> None:
    """Points are at the service while a cell computes without awaiting, in a real kernel."""
    pytest.importorskip("ipykernel", reason="needs a kernel to run cells in")
    jupyter = pytest.importorskip("jupyter_client", reason="needs what drives a kernel")
    gateway, linger, seconds = bare_platform.gateway, 0.2, 25.0
    run_id, enough = gateway.add_run(), tmp_path / "enough"
    manager = jupyter.manager.AsyncKernelManager(kernel_name="python3")
    manager.kernel_spec.argv[0] = sys.executable
    await manager.start_kernel(env=environment(bare_platform, linger=linger))
    client = manager.client()
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=60)

        async def run(code: str) -> str:
            said: list[str] = []

            def hear(message: Any) -> None:
                said.append(str(message["content"].get("text", "")))

            reply = await client.execute_interactive(code, timeout=90, output_hook=hear)
            assert reply["content"]["status"] == "ok", reply["content"]
            return "".join(said)

        await run(CELL_OPEN.format(run_id=run_id))
        train = CELL_TRAIN.format(seconds=seconds, enough=str(enough))
        cell = asyncio.create_task(run(train))
        in_time = 0
        # (On a busy machine they may be late by themselves, now and then.)
        while not cell.done() and in_time < 100:
            await asyncio.sleep(0.02)
            if metrics := gateway.received(run_id).metrics:
                newest = max(metric.timestamp for metric in metrics)
                in_time += time.time() - newest / 1000 < 2 * linger + 0.2
        enough.touch()
        await cell
        output = await run(CELL_CLOSE)
    finally:
        client.stop_channels()
        await manager.shutdown_kernel(now=True)
    logged = int(output.split()[-1])
    assert sorted(points(gateway, run_id)["loss"]) == list(range(logged))
    assert in_time == 100


# Any thread, any loop -----------------------------------------------------------------------------


async def use_everything(run: Run, session: FakeSession, name: str) -> None:
    """Everything a loop may ask of a run's logger."""
    receipt = run.log_metric(name, 0.5, step=1)
    assert not receipt.done
    await receipt
    assert receipt.delivered
    receipts = run.log_params({f"{name}/a": 1, f"{name}/b": 2})
    await receipts
    run.set_tag(name, "yes")
    await run.flush()
    await session.logger.flush()
    await run.drain()
    stats = run.stats()
    assert stats.delivered >= 4
    assert session.logger.stats(run.run_id).accepted >= 4
    assert repr(session)
    other = session.logger.log_metric(session.add_run(), "loss", 1.0)
    await asyncio.wait_for(other, 20.0)


def in_a_thread(work: Callable[[], object]) -> None:
    """Do *work* in a thread, and raise what it raised."""
    raised: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join(60.0)
    assert not thread.is_alive()
    if raised:
        raise raised[0]


def run_on(kind: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    if kind == "asyncio":
        asyncio.run(work())
    else:
        uvloop = pytest.importorskip("uvloop", reason="needs uvloop")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(work())


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_the_loop_it_was_opened_in(kind: str) -> None:
    """Receipts, flushes, drains and counts work on asyncio's loop as on uvloop's."""

    async def main() -> None:
        async with FakeSession(linger=60.0) as session, session.start_run() as run:
            await use_everything(run, session, "here")
        assert session.received(run.run_id).info["status"] == "FINISHED"

    run_on(kind, main)


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
async def test_a_second_loop(kind: str) -> None:
    """They work on another loop in another thread, while the first one is blocked."""
    async with FakeSession(linger=60.0) as session:
        run = session.attach_run(session.add_run())
        in_a_thread(lambda: run_on(kind, lambda: use_everything(run, session, "there")))
        await use_everything(run, session, "here")


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_the_blocking_face_and_a_loop(kind: str) -> None:
    """A loop may ask the asynchronous logger of a blocking session."""
    with FakeBlockingSession(linger=60.0) as session:
        run = session.session.attach_run(session.session.add_run())
        run_on(kind, lambda: use_everything(run, session.session, "there"))


async def test_a_thread_discards() -> None:
    """`discard` from a thread and from another loop gives up what waits, and says how much."""
    async with FakeSession(linger=60.0) as session:
        run, other = (session.attach_run(session.add_run()) for _ in range(2))
        run.log_metrics({"a": 1.0, "b": 2.0})
        receipt = run.set_tag("c", "3")
        counts: list[int] = []
        in_a_thread(lambda: counts.append(run.discard()))
        other.log_metric("a", 1.0)

        async def elsewhere() -> None:
            counts.append(other.discard())

        in_a_thread(lambda: asyncio.run(elsewhere()))
        assert counts == [3, 1]
        with pytest.raises(DeliveryError):
            await receipt
        run.log_metric("a", 1.0, step=2)
        await run.flush()
        assert steps(session, run) == [2]
        assert session.logger.stats().dropped == 4


async def test_waiters_on_many_loops_hear_of_the_end() -> None:
    """Waiters in a thread, or on another loop, get an error when the session closes."""
    session = await FakeSession(linger=0.0, close_timeout=0.1).open()
    run = session.attach_run(session.add_run())
    session.answer(LOG_BATCH, status=503)
    receipt = run.log_metric("loss", 0.5)
    raised: list[BaseException] = []

    async def wait_here() -> None:
        await receipt

    def blocked() -> None:
        receipt.wait(30.0)

    works: list[Callable[[], object]] = [
        blocked,
        lambda: asyncio.run(wait_here()),
        lambda: asyncio.run(run.flush()),
    ]

    def guarded(work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:
            raised.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    waiters = session._delivery.state.waiters
    await until(lambda: sum(map(len, waiters._receipts.values())) == 2 and bool(waiters._flushes))
    with pytest.raises(DeliveryError):
        await session.close()
    for thread in threads:
        await asyncio.to_thread(thread.join, 20.0)
    assert [type(error) for error in raised] == [DeliveryError] * 3


# The intake ---------------------------------------------------------------------------------------


class Recording(deque[Any]):
    """The queue of those who wait, which remembers who was served."""

    def __init__(self) -> None:
        super().__init__()
        self.came: list[Any] = []
        self.served: list[Any] = []

    def append(self, ticket: Any) -> None:
        self.came.append(ticket)
        super().append(ticket)

    def popleft(self) -> Any:
        ticket = super().popleft()
        self.served.append(ticket)
        return ticket


def test_threads_are_served_in_the_order_they_came() -> None:
    """The thread that has waited longest for memory gets it first."""
    limit = 10 * METRIC_COST
    order: list[int] = []
    with FakeBlockingSession(buffer_limit=limit, max_block=60.0, linger=0.0) as session:
        run = session.start_run()
        script = session.session.answer(LOG_BATCH, status=503)
        for step in range(10):
            run.log_metric("loss", 0.5, step=step)

        def work(number: int) -> None:
            run.log_metric("late", 0.5, step=number)
            order.append(number)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(30)]
        tickets = session.session._intake._tickets = Recording()
        for thread in threads:
            thread.start()
        while len(tickets.came) < 30:
            time.sleep(0.001)
        script.left = 0
        for thread in threads:
            thread.join(30.0)
        run.flush()
    assert sorted(order) == list(range(30))
    assert tickets.served == tickets.came


def test_a_large_call_is_not_overtaken_for_ever() -> None:
    """Small calls that come later don't keep one from its room that needs much of it."""
    limit = 100 * METRIC_COST
    with FakeBlockingSession(buffer_limit=limit, max_block=30.0, linger=0.0) as session:
        run = session.start_run()
        over = threading.Event()

        def small() -> None:
            while not over.is_set():
                run.log_metric("small", 0.5)

        threads = [threading.Thread(target=small) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for step in range(5):
                run.log_metrics({f"m{number}": 1.0 for number in range(90)}, step=step)
        finally:
            over.set()
            for thread in threads:
                thread.join(10.0)


def test_closed_while_a_thread_gets_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that was given room just before the session closed isn't told that it is taken."""
    session = FakeBlockingSession(
        buffer_limit=10 * METRIC_COST, max_block=60.0, linger=0.0, close_timeout=20.0
    ).open()
    run = session.start_run()
    script = session.session.answer(LOG_BATCH, status=503)
    for step in range(10):
        run.log_metric("loss", 0.5, step=step)
    room = session.session._intake
    has_room, may_go_on = threading.Event(), threading.Event()
    raised: list[BaseException] = []

    def work() -> None:
        try:
            run.log_metric("late", 0.5)
        except BaseException as error:
            raised.append(error)

    def delayed(ticket: Any) -> None:
        wait = ticket.is_over.wait

        class Slow:
            def wait(self, seconds: float) -> bool:
                answer = wait(seconds)
                has_room.set()
                may_go_on.wait(30.0)
                return bool(answer)

            set = ticket.is_over.set

        ticket.is_over = Slow()

    class Tickets(type(room._tickets)):  # type: ignore[misc]
        def append(self, ticket: Any) -> None:
            delayed(ticket)
            super().append(ticket)

    room._tickets = Tickets()
    thread = threading.Thread(target=work)
    thread.start()
    until_blocking(lambda: bool(room._tickets))
    script.left = 0
    assert has_room.wait(20.0)
    session.close()
    may_go_on.set()
    thread.join(20.0)
    assert [type(error) for error in raised] == [Closed]
    stats = session.session.logger.stats()
    assert (stats.accepted, stats.waiting) == (stats.delivered + stats.dropped, 0)
    assert not room.inbox


async def test_full_on_a_loop_without_a_spool() -> None:
    """Code on a loop isn't made to wait: it gets BufferFull at once, and goes on after a drain."""
    async with FakeSession(buffer_limit=50 * METRIC_COST, max_block=30.0) as session:
        run = session.attach_run(session.add_run())
        script = session.answer(LOG_BATCH, status=503)
        accepted = 0
        began = time.monotonic()
        with pytest.raises(BufferFull, match="drain"):  # noqa: PT012 - which one, is the system's
            for step in range(200):
                run.log_metric("loss", 0.5, step=step)
                accepted += 1
        assert time.monotonic() - began < 10.0
        assert accepted >= 50
        assert run.stats().accepted == accepted
        script.left = 0
        await run.drain()
        run.log_metric("loss", 0.5, step=accepted)
        await run.flush()
        assert sorted(steps(session, run)) == list(range(accepted + 1))


@pytest.mark.usefixtures("patient_loop")
async def test_the_disk_takes_what_a_loop_logs(tmp_path: Path) -> None:
    """A loop that logs far more than memory holds while the service is down gets no error."""
    count = 300_000
    async with FakeSession(
        buffer_limit=5_000_000, spool=tmp_path / "spool", spool_interval=0.05
    ) as session:
        run = session.attach_run(session.add_run())
        script = session.answer(LOG_BATCH, status=503)
        highest = 0
        for step in range(count):
            run.log_metric("loss", 0.5, step=step)
            if step % 1000 == 0:
                highest = max(highest, session._delivery.intake.used())
        assert highest < 6_000_000
        assert run.stats().accepted == count
        script.left = 0
        async with asyncio.timeout(60):
            await run.flush()
        assert sorted(steps(session, run)) == list(range(count))


# Copies -------------------------------------------------------------------------------------------


async def test_copies_are_the_same_handle() -> None:
    """A run that is copied or deep-copied, alone or inside of something, is the same run."""
    before = threading.active_count()
    async with FakeSession(progress=False) as session:
        opened = threading.active_count()
        async with session.start_run() as run:
            assert copy.copy(run) is run
            assert copy.deepcopy(run) is run
            assert copy.deepcopy({"run": [run]})["run"][0] is run
        assert threading.active_count() <= opened  # of earlier tests, one may end meanwhile
    assert threading.active_count() <= before + 1


def test_copies_of_a_blocking_run() -> None:
    """So is one of the blocking face, started or attached; it ends once."""
    with FakeBlockingSession() as session:
        attached = session.attach_run(session.session.add_run())
        with session.start_run() as run:
            for original in (run, attached):
                assert copy.copy(original) is original
                assert copy.deepcopy([original])[0] is original
            copy.deepcopy(run).log_metric("loss", 0.5)
    assert session.session.received(run.run_id).info["status"] == "FINISHED"
    assert len(session.session.received(run.run_id).metrics) == 1


# The loss window ----------------------------------------------------------------------------------

BLOCKED = """
    import asyncio, os, signal, sys, time
    import adp_async
    from adp_async import blocking

    run_id, face, count = sys.argv[1], sys.argv[2], int(sys.argv[3])

    def train(run):
        for step in range(count):
            run.log_metric("loss", step / 2, step=step)
        print("logged", flush=True)
        time.sleep(60)

    async def main():
        async with adp_async.Session() as session:
            train(session.attach_run(run_id))

    if face == "async":
        asyncio.run(main())
    else:
        train(blocking.attach_run(run_id))
"""


@pytest.mark.parametrize("face", ["async", "blocking"])
async def test_killed_while_the_loop_is_blocked(
    bare_platform: LocalPlatform, tmp_path: Path, face: str
) -> None:
    """All of it gets to the disk and outlives SIGKILL, though the loop never comes around."""
    gateway, count = bare_platform.gateway, 5000
    run_id = gateway.add_run()
    gateway.inject(Fault.reply(503), times=None)
    knobs = {"spool": tmp_path / "spool", "spool_interval": 0.05}
    child = await start(bare_platform, tmp_path, BLOCKED, run_id, face, count, **knobs)
    await child.says("logged")
    await until(lambda: journaled(tmp_path / "spool") == count)
    child.process.kill()
    await child.process.wait()
    gateway.clear_faults()
    async with bare_platform.session(spool=tmp_path / "spool"):
        await until(lambda: len(gateway.received(run_id).metrics) >= count)
    assert sorted(points(gateway, run_id)["loss"]) == list(range(count))


# The interpreter's end ----------------------------------------------------------------------------

FORGOTTEN = """
    import asyncio, sys
    import adp_async
    from adp_async import blocking

    def log(run):
        for step in range(3000):
            run.log_metric("loss", 0.5, step=step)
        run.log_params({f"p{number}": number for number in range(150)})
        run.set_tags({"a": "1", "b": "2"})
        run.set_tag("a", "3")

    async def forget():
        global session
        session = await adp_async.Session().open()
        log(session.attach_run(run_id))

    run_id, how = sys.argv[1:]
    if how == "blocking":
        log(blocking.attach_run(run_id))
    else:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(forget())
        if how == "closed loop":
            loop.close()
"""


@pytest.mark.parametrize("spool", [True, False], ids=["spool", "no spool"])
@pytest.mark.parametrize("how", ["blocking", "stopped loop", "closed loop"])
async def test_forgotten_with_every_kind_of_record(
    bare_platform: LocalPlatform, tmp_path: Path, how: str, spool: bool
) -> None:
    """Metrics, params and tags arrive by the interpreter's end, tags in their order."""
    gateway = bare_platform.gateway
    run_id = gateway.add_run()
    # (A busy machine may take so long that the progress is shown.)
    knobs = {"linger": 60.0, "progress": "off", **({} if spool else {"spool": "off"})}
    child = await start(bare_platform, tmp_path, FORGOTTEN, run_id, how, **knobs)
    assert await child.ends_well() == ""
    received = gateway.received(run_id)
    assert sorted(points(gateway, run_id)["loss"]) == list(range(3000))
    assert dict(received.params) == {f"p{number}": str(number) for number in range(150)}
    assert dict(received.tags) == {"a": "3", "b": "2"}


@pytest.mark.parametrize("spool", [True, False], ids=["spool", "no spool"])
@pytest.mark.parametrize("how", ["blocking", "stopped loop", "closed loop"])
async def test_the_end_is_bounded(
    bare_platform: LocalPlatform, tmp_path: Path, how: str, spool: bool
) -> None:
    """While the service hangs it takes `exit_timeout`, and one line says what is left."""
    gateway = bare_platform.gateway
    run_id = gateway.add_run()
    gateway.inject(Fault.hang(), times=None)
    knobs = {"exit_timeout": 0.5, "progress": "off", **({} if spool else {"spool": "off"})}
    # (A busy machine gets its time for the disk.)
    patient = "\n    adp_async._io.delivery.SHORTEST_COMMIT = 20.0"
    script = f"{FORGOTTEN}{patient}\n    print('the last line', flush=True)\n"
    child = await start(bare_platform, tmp_path, script, run_id, how, **knobs)
    await child.says("the last line")
    began = time.monotonic()
    code, _, errors = await child.ends()
    assert code == 0
    assert time.monotonic() - began < 0.5 + 20.0  # an interpreter ends, too
    (line,) = errors.splitlines()
    assert "3,153 records" in line
    assert ("the next session delivers them" in line) == spool


TRAINING_THREAD = """
    import asyncio, sys, threading, time
    import adp_async
    from adp_async import blocking

    run_id, face = sys.argv[1:]

    def train(run):
        for step in range(40):
            run.log_metric("loss", 0.5, step=step)
            time.sleep(0.01)
        run.set_tag("state", "done")

    async def opened():
        return await adp_async.Session().open()

    if face == "async":
        session = asyncio.run(opened())
        run = session.attach_run(run_id)
    else:
        run = blocking.attach_run(run_id)
    threading.Thread(target=train, args=(run,)).start()
"""


@pytest.mark.parametrize("spool", [True, False], ids=["spool", "no spool"])
@pytest.mark.parametrize("face", ["async", "blocking"])
async def test_a_training_thread_that_outlives_the_main_one(
    bare_platform: LocalPlatform, tmp_path: Path, face: str, spool: bool
) -> None:
    """The script's last line comes before the thread's: it goes on logging, and all arrives."""
    gateway = bare_platform.gateway
    run_id = gateway.add_run()
    knobs = {} if spool else {"spool": "off"}
    child = await start(bare_platform, tmp_path, TRAINING_THREAD, run_id, face, **knobs)
    assert await child.ends_well() == ""
    assert sorted(points(gateway, run_id)["loss"]) == list(range(40))
    assert gateway.received(run_id).tags == [("state", "done")]


AT_EXIT = """
    import asyncio, atexit, sys
    import adp_async
    from adp_async import blocking

    run_id, face, when = sys.argv[1:]

    async def log():
        async with adp_async.Session() as session:
            session.attach_run(run_id).log_metric("loss", 0.5)

    def last():
        try:
            if face == "async":
                asyncio.run(log())
            else:
                with blocking.attach_run(run_id) as run:
                    run.log_metric("loss", 0.5)
        except adp_async.Closed:
            print("Closed")
        else:
            print("works")

    if when == "after a session":
        blocking.attach_run(run_id)
    atexit.register(last)
"""


@pytest.mark.parametrize("when", ["first", "after a session"])
@pytest.mark.parametrize("face", ["async", "blocking"])
async def test_opened_in_an_atexit_handler(
    bare_platform: LocalPlatform, tmp_path: Path, face: str, when: str
) -> None:
    """Opening there works, or raises Closed, and never hangs."""
    gateway = bare_platform.gateway
    run_id = gateway.add_run()
    child = await start(bare_platform, tmp_path, AT_EXIT, run_id, face, when)
    code, output, errors = await child.ends()
    assert (code, errors) == (0, "")
    assert output.strip() in ("works", "Closed")
    assert len(points(gateway, run_id).get("loss", [])) == (output.strip() == "works")


LAST_WORDS = """
    import atexit, sys
    from adp_async import blocking

    atexit.register(lambda: run.log_metric("loss", 0.5, step=1))
    run = blocking.attach_run(sys.argv[1])
    run.log_metric("loss", 0.5, step=0)
"""


async def test_a_handler_of_the_end_that_logs(bare_platform: LocalPlatform, tmp_path: Path) -> None:
    """One that is registered after the import, though before the session, may still log."""
    gateway = bare_platform.gateway
    run_id = gateway.add_run()
    child = await start(bare_platform, tmp_path, LAST_WORDS, run_id)
    assert await child.ends_well() == ""
    assert sorted(points(gateway, run_id)["loss"]) == [0, 1]


DAEMON = """
    import atexit, sys, threading, time
    from adp_async import blocking

    # Before the session's: it is called after that has closed itself.
    said = []
    def last():
        before = after = run.stats()
        ends_at = time.monotonic() + 20.0
        while after.dropped <= before.dropped and time.monotonic() < ends_at:
            time.sleep(0.01)
            after = run.stats()
        print("dropped", after.dropped > before.dropped, raised)
        print("adds up", after.accepted == after.delivered + after.dropped)
    atexit.register(last)

    raised = []
    def train():
        step = 0
        while True:
            try:
                run.log_metric("loss", 0.5, step=step)
                run.log_metrics({"a": 1.0, "b": 2.0}, step=step)
                run.set_tag("state", step)
            except BaseException as error:
                raised.append(error)
            step += 1
            time.sleep(0.001)

    import adp_async._io.lifetime
    # Registered last, it is called first.
    atexit.unregister(adp_async._io.lifetime._interpreter_ends)
    atexit.register(adp_async._io.lifetime._interpreter_ends)
    run = blocking.attach_run(sys.argv[1])
    threading.Thread(target=train, daemon=True).start()
    time.sleep(0.1)
"""


async def test_a_daemon_thread_that_logs_after_the_end(
    bare_platform: LocalPlatform, tmp_path: Path
) -> None:
    """After the automatic close, records are dropped and counted, with one warning."""
    gateway = bare_platform.gateway
    run_id = gateway.add_run()
    child = await start(bare_platform, tmp_path, DAEMON, run_id)
    code, output, errors = await child.ends()
    assert code == 0
    assert output.splitlines() == ["dropped True []", "adds up True"]
    (line,) = errors.splitlines()
    assert "records are dropped" in line
    assert "the interpreter is ending" in line
