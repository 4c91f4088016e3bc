"""How a session ends: left well or badly, by a signal, with its loop or its interpreter.

Each end takes at most ``close_timeout``, and after each a record is delivered, or in the spool
from where the next session delivers it, or counted and named.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytest
from children import points, start, until
from spools import journaled

from adp_async._sansio.retry import RetryPolicy
from adp_async.errors import DeliveryError
from adp_async.local import Fault
from adp_async.testing import FakeSession

if TYPE_CHECKING:
    from pathlib import Path

    from adp_async.local import Gateway, LocalPlatform

COUNT = 50
#: Far more than any of these ends should take.
LONG = 60.0
#: What a busy machine may add to the time of an end, at most.
BUSY = 15.0
#: Of a session that closes while the service does not answer.
KNOBS: dict[str, Any] = {
    "linger": 0.01,
    "close_timeout": 0.2,
    "retry": RetryPolicy(first_backoff=0.01, max_backoff=0.05),
}
#: What the service does from the first record on.
SERVICES: dict[str, Fault | None] = {
    "well": None,
    "hangs": Fault.hang(),
    "hangs after the write": Fault.hang(after_write=True),
    "refuses connections": None,
    "429 for ever": Fault.reply(429),
    "429 for an hour": Fault.reply(429, headers={"retry-after": "3600"}),
    "503 for ever": Fault.reply(503),
    "401 for ever": Fault.reply(401),
    "a byte a minute": Fault.drip(60.0),
}

pytestmark = pytest.mark.usefixtures("patient_end")


class Mistake(Exception):
    """The caller's own."""


@pytest.fixture
def gateway(bare_platform: LocalPlatform) -> Gateway:
    return bare_platform.gateway


async def turn(gateway: Gateway, service: str) -> None:
    """From now on the service does what `SERVICES` says."""
    if service == "refuses connections":
        await gateway.down()
    elif (fault := SERVICES[service]) is not None:
        gateway.inject(fault, times=None)


async def next_session_delivers(platform: LocalPlatform, run_id: str, count: int = COUNT) -> None:
    """The service works again: the abandoned records arrive, once, and no spool remains."""
    platform.gateway.clear_faults()
    await platform.gateway.up()
    async with platform.session(**(KNOBS | {"close_timeout": LONG})) as session:
        await until(lambda: len(platform.gateway.received(run_id).metrics) >= count)
        await until(
            lambda: session._engine.recoveries is not None and session._engine.recoveries.is_done
        )
    assert sorted(points(platform.gateway, run_id)["loss"]) == list(range(count))
    assert list(session.spool_folder.iterdir()) == []


# ``async with`` -----------------------------------------------------------------------------------


async def body(platform: LocalPlatform, run_id: str, service: str, end: str, knobs: Any) -> None:
    async with platform.session(**knobs) as session:
        run = session.attach_run(run_id)
        await turn(platform.gateway, service)
        for step in range(COUNT):
            run.log_metric("loss", 0.5, step=step)
        await asyncio.sleep(0.03)  # a batch is under way
        if end == "error":
            raise Mistake
        if end == "cancelled":
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(LONG)


async def ended(platform: LocalPlatform, run_id: str, service: str, end: str, knobs: Any) -> Any:
    """What comes out of a session that is left like that, in time."""
    if service == "well":
        knobs = knobs | {"close_timeout": LONG}
    began = time.monotonic()
    task = asyncio.create_task(body(platform, run_id, service, end, knobs))
    (result,) = await asyncio.gather(task, return_exceptions=True)
    assert time.monotonic() - began < KNOBS["close_timeout"] + BUSY
    return result


EXPECTED = {"normal": type(None), "error": Mistake, "cancelled": asyncio.CancelledError}


@pytest.mark.parametrize("end", EXPECTED)
@pytest.mark.parametrize("service", SERVICES)
async def test_left_with_a_spool(
    bare_platform: LocalPlatform,
    gateway: Gateway,
    caplog: pytest.LogCaptureFixture,
    service: str,
    end: str,
) -> None:
    """Records not delivered in time are on disk: a warning names it, the next session delivers."""
    run_id = gateway.add_run()
    result = await ended(bare_platform, run_id, service, end, KNOBS)
    assert type(result) is EXPECTED[end]
    left = [each for each in caplog.messages if "the next session delivers them" in each]
    if service == "well":
        assert left == []
        assert len(gateway.received(run_id).metrics) == COUNT
    else:
        assert [message.split()[0] for message in left] == [str(COUNT)]
    await next_session_delivers(bare_platform, run_id)


@pytest.mark.parametrize("end", EXPECTED)
@pytest.mark.parametrize("service", ["hangs", "refuses connections", "429 for an hour"])
async def test_left_without_a_spool(
    bare_platform: LocalPlatform,
    gateway: Gateway,
    caplog: pytest.LogCaptureFixture,
    service: str,
    end: str,
) -> None:
    """What is not delivered in time is counted, in the error or behind the caller's own."""
    run_id = gateway.add_run()
    result = await ended(bare_platform, run_id, service, end, KNOBS | {"spool": False})
    if end == "normal":
        assert isinstance(result, DeliveryError)
        assert result.undelivered == COUNT
    else:
        assert type(result) is EXPECTED[end]
        assert f"{COUNT} records were not delivered" in caplog.messages
    if end == "error":
        assert f"{COUNT} records were not delivered" in result.__notes__[0]


@pytest.mark.parametrize(("is_spooled", "what"), [(True, "spooled"), (False, "dropped")])
async def test_the_counts_after_the_end(tmp_path: Path, is_spooled: bool, what: str) -> None:
    """Whatever was accepted is still accounted for when the session is closed."""
    spool = str(tmp_path) if is_spooled else False
    session = FakeSession(spool=spool, close_timeout=0.05)
    await session.open()
    runs = [session.attach_run(session.add_run()) for _ in range(2)]
    session.answer("log_experiment_run_batch", status=503)
    for number, run in enumerate(runs):
        for step in range(1200 + number):
            run.log_metric("loss", 0.5, step=step)
    with nullcontext() if is_spooled else pytest.raises(DeliveryError, match="2,401 records"):
        await session.close()

    stats = [session.logger.stats(run_id) for run_id in (None, *(run.run_id for run in runs))]
    assert [each.accepted for each in stats] == [2401, 1200, 1201]
    assert [getattr(each, what) for each in stats] == [2401, 1200, 1201]
    assert {each.oldest for each in stats} == {0.0}


async def test_a_run_within_a_session(bare_platform: LocalPlatform, gateway: Gateway) -> None:
    """A run and its session that are left together take twice the time at most."""
    began: list[float] = []

    async def train() -> None:
        async with bare_platform.session(**KNOBS) as session, session.start_run() as run:
            gateway.inject(Fault.hang(), times=None)
            for step in range(COUNT):
                run.log_metric("loss", 0.5, step=step)
            began.append(time.monotonic())

    with pytest.raises(DeliveryError, match="not delivered yet") as caught:
        await train()
    assert time.monotonic() - began[0] < 2 * KNOBS["close_timeout"] + BUSY
    assert caught.value.undelivered == COUNT
    assert "status could not be set" in " ".join(caught.value.__notes__)
    assert caught.value.run_id is not None
    await next_session_delivers(bare_platform, caught.value.run_id)


async def test_who_waits_at_the_end(bare_platform: LocalPlatform, gateway: Gateway) -> None:
    """Waiters for a receipt or a flush learn where the record is when the session closes."""
    session = await bare_platform.session(**KNOBS).open()
    run = session.attach_run(gateway.add_run())
    await turn(gateway, "hangs")
    receipt = run.log_metric("loss", 0.5)

    async def wait() -> None:
        await receipt

    waiting = [asyncio.create_task(wait()), asyncio.create_task(run.flush())]
    await asyncio.sleep(0.01)
    await session.close()
    for error in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(error, DeliveryError)
        assert "left in the spool" in " ".join(error.__notes__)


# Signals ------------------------------------------------------------------------------------------

TRAINING = """
    import asyncio, signal, sys, time
    import adp_async, adp_async._io.delivery
    from adp_async import blocking

    # However short the time for closing is, the disk gets more than a busy machine takes.
    adp_async._io.delivery.SHORTEST_COMMIT = 20.0

    def log(run):
        for step in range(50):
            run.log_metric("loss", 0.5, step=step)
        print("logged", flush=True)

    def leaving(_):
        print("leaving", flush=True)

    async def asynchronous():
        async with adp_async.Session() as session:
            session.on_close(leaving)
            run = session.attach_run(run_id)
            if how == "task":
                loop = asyncio.get_running_loop()
                loop.add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
            log(run)
            while True:
                await asyncio.sleep(0.01)  # as below

    def synchronous():
        if how == "exit":
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        with blocking.Session() as session:
            session.on_close(leaving)
            run = session.attach_run(run_id)
            log(run)
            while True:
                time.sleep(0.01)  # a longer one may overlook the signal

    run_id, kind, how = sys.argv[1:]
    if kind == "asynchronous":
        asyncio.run(asynchronous())
    else:
        synchronous()
"""
KINDS = ["asynchronous", "blocking"]


@pytest.mark.parametrize("service", ["well", "hangs"])
@pytest.mark.parametrize("kind", KINDS)
async def test_ctrl_c(
    bare_platform: LocalPlatform, gateway: Gateway, tmp_path: Path, kind: str, service: str
) -> None:
    """Ctrl-C once: the session is left as it should be, within its time."""
    await turn(gateway, service)
    run_id = gateway.add_run()
    knobs = {"close_timeout": LONG if service == "well" else 0.5}
    child = await start(bare_platform, tmp_path, TRAINING, run_id, kind, "-", **knobs)
    await child.says("logged")
    child.process.send_signal(signal.SIGINT)
    began = time.monotonic()
    code, _, errors = await child.ends()
    assert time.monotonic() - began < 0.5 + BUSY
    assert code == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
    if service == "well":
        assert sorted(points(gateway, run_id)["loss"]) == list(range(COUNT))
    else:
        assert f"{COUNT} records not delivered yet; the next session" in errors
    await next_session_delivers(bare_platform, run_id)


@pytest.mark.parametrize("kind", KINDS)
async def test_ctrl_c_twice(
    bare_platform: LocalPlatform, gateway: Gateway, tmp_path: Path, kind: str
) -> None:
    """A second Ctrl-C cuts the leaving short: what is not delivered is on disk all the same."""
    await turn(gateway, "hangs")
    run_id = gateway.add_run()
    child = await start(bare_platform, tmp_path, TRAINING, run_id, kind, "-", close_timeout=LONG)
    await child.says("logged")
    child.process.send_signal(signal.SIGINT)
    await child.says("leaving")
    await asyncio.sleep(0.05)
    child.process.send_signal(signal.SIGINT)
    began = time.monotonic()
    code, _, errors = await child.ends()
    assert time.monotonic() - began < BUSY
    assert code == -signal.SIGINT, errors
    await next_session_delivers(bare_platform, run_id)


@pytest.mark.parametrize(
    ("kind", "how", "expected"),
    [
        ("asynchronous", "-", -signal.SIGTERM),
        ("blocking", "-", -signal.SIGTERM),
        ("asynchronous", "task", 1),
        ("blocking", "exit", 143),
    ],
    ids=["as it comes", "as it comes, blocking", "cancels the task", "exits"],
)
async def test_sigterm(
    bare_platform: LocalPlatform,
    gateway: Gateway,
    tmp_path: Path,
    kind: str,
    how: str,
    expected: int,
) -> None:
    """Unhandled it kills, and the next session delivers; handled it is an end as any other."""
    run_id = gateway.add_run()
    knobs = {"spool_interval": 0.01, "linger": LONG if how == "-" else 0.01}
    child = await start(bare_platform, tmp_path, TRAINING, run_id, kind, how, **knobs)
    await child.says("logged")
    if how == "-":
        assert bare_platform.directory is not None
        folder = bare_platform.directory / "spool"
        await until(lambda: journaled(folder) == COUNT)
    child.process.send_signal(signal.SIGTERM)
    code, _, errors = await child.ends()
    assert code == expected, errors
    if how != "-":
        assert sorted(points(gateway, run_id)["loss"]) == list(range(COUNT))
    await next_session_delivers(bare_platform, run_id)


# Nobody leaves it ---------------------------------------------------------------------------------

LEFT_OPEN = """
    import asyncio, sys, threading
    import adp_async, adp_async._io.delivery
    from adp_async import blocking

    # However short the time for closing is, the disk gets more than a busy machine takes.
    adp_async._io.delivery.SHORTEST_COMMIT = 20.0

    def log(run):
        for step in range(50):
            run.log_metric("loss", 0.5, step=step)

    async def log_and_forget():
        global session
        session = await adp_async.Session().open()
        log(session.attach_run(run_id))

    async def blocking_in_a_loop():
        log(blocking.attach_run(run_id))

    run_id, how = sys.argv[1:]
    if how == "asyncio.run":
        asyncio.run(log_and_forget())
    elif how == "thread":
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        asyncio.run_coroutine_threadsafe(log_and_forget(), loop).result()
    elif how == "blocking":
        log(blocking.attach_run(run_id))
    else:
        loop = asyncio.new_event_loop()
        cell = blocking_in_a_loop if how == "blocking in a notebook" else log_and_forget
        loop.run_until_complete(cell())
        if how == "loop closed":
            loop.close()
"""


@pytest.mark.parametrize("spool", [True, False], ids=["spool", "no spool"])
@pytest.mark.parametrize("how", ["asyncio.run", "loop closed", "notebook", "thread"])
async def test_a_session_nobody_leaves(
    bare_platform: LocalPlatform, gateway: Gateway, tmp_path: Path, how: str, spool: bool
) -> None:
    """Its loop ends, and the interpreter: what waits is delivered then, with or without a spool."""
    run_id = gateway.add_run()
    # (A busy machine may take so long that the progress is shown.)
    knobs = {"linger": LONG, "spool_interval": LONG, "progress": "off"}
    knobs |= {} if spool else {"spool": "off"}
    child = await start(bare_platform, tmp_path, LEFT_OPEN, run_id, how, **knobs)
    code, _, errors = await child.ends()
    assert (code, errors) == (0, "")
    assert sorted(points(gateway, run_id)["loss"]) == list(range(COUNT))


@pytest.mark.parametrize(
    ("how", "service"),
    [
        ("blocking", "well"),
        ("blocking", "hangs"),
        ("blocking", "refuses connections"),
        ("blocking", "429 for an hour"),
        ("blocking in a notebook", "well"),
        ("blocking in a notebook", "hangs"),
    ],
)
async def test_a_blocking_session_nobody_leaves(
    bare_platform: LocalPlatform, gateway: Gateway, tmp_path: Path, how: str, service: str
) -> None:
    """It closes itself when the interpreter ends, with or without a loop of the program's own."""
    run_id = gateway.add_run()
    await turn(gateway, service)
    knobs = {"close_timeout": LONG if service == "well" else 0.3}
    child = await start(bare_platform, tmp_path, LEFT_OPEN, run_id, how, **knobs)
    code, _, errors = await child.ends()
    assert code == 0, errors
    if service == "well":
        assert errors == ""
        assert sorted(points(gateway, run_id)["loss"]) == list(range(COUNT))
    else:
        assert f"{COUNT} records not delivered yet; the next session" in errors
        assert "Traceback" not in errors
    await next_session_delivers(bare_platform, run_id)


async def test_a_spool_is_delivered_by_the_next_session_alone(
    bare_platform: LocalPlatform, gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    """Four sessions that open at once find one spool: one delivers it."""
    run_id = gateway.add_run()
    await ended(bare_platform, run_id, "503 for ever", "normal", KNOBS)
    gateway.clear_faults()
    caplog.clear()
    caplog.set_level(logging.WARNING, "adp_async")
    sessions = [bare_platform.session(**KNOBS) for _ in range(4)]
    await asyncio.gather(*(session.open() for session in sessions))
    await until(lambda: len(gateway.received(run_id).metrics) >= COUNT)
    await asyncio.gather(*(session.close() for session in sessions))
    assert sorted(points(gateway, run_id)["loss"]) == list(range(COUNT))
    assert sum(f"{COUNT} records left behind by 1" in message for message in caplog.messages) == 1
