"""Processes that end, or are killed, with runs that nobody has ended: the next one does both."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from children import Child, environment, not_outlived_by, points, start, until

from adp_async import RetryPolicy, blocking
from adp_async._io.spool_file import find_spools
from adp_async.local import Fault

if TYPE_CHECKING:
    from pathlib import Path

    from adp_async.local import Gateway, LocalPlatform
    from adp_async.local.stand_in import ReceivedRun

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

CREATE, UPDATE = "create_experiment_run", "update_experiment_run"
SOON: dict[str, Any] = {
    "linger": 0.01,
    "close_timeout": 20.0,
    "retry": RetryPolicy(first_backoff=0.01, max_backoff=0.05),
}


@pytest.fixture
def gateway(bare_platform: LocalPlatform) -> Gateway:
    return bare_platform.gateway


def spools(platform: LocalPlatform) -> list[Path]:
    assert platform.directory is not None
    return find_spools(platform.directory / "spool")


def the_run(gateway: Gateway) -> ReceivedRun:
    (run,) = gateway._stand_in().runs.values()
    return run


async def killed(child: Child) -> float:
    """Kill it; when that was."""
    child.process.kill()
    await child.process.wait()
    return time.time()


# Who delivers what is left ------------------------------------------------------------------------


async def by_a_session(platform: LocalPlatform) -> None:
    left = spools(platform)
    async with platform.session(**SOON):
        await until(lambda: not any(spool.exists() for spool in left))


async def by_a_blocking_session(platform: LocalPlatform) -> None:
    (spool,) = spools(platform)
    knobs = dict(platform.session(**SOON).settings.__getstate__())

    def deliver() -> None:
        with blocking.Session(**knobs):
            ends_at = time.monotonic() + 60.0
            while spool.exists() and time.monotonic() < ends_at:
                time.sleep(0.01)

    await asyncio.to_thread(deliver)
    assert not spool.exists()


async def by_sync(platform: LocalPlatform) -> None:
    listed = await command(platform, "sync", "--list")
    assert "not yet created" in listed
    assert "in experiment 'digits'" in listed
    await command(platform, "sync")
    assert spools(platform) == []


async def command(platform: LocalPlatform, *arguments: str) -> str:
    """What ``adp-async`` prints for them, if it succeeds."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "adp_async", *arguments),
        env=environment(platform),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    with not_outlived_by(process):
        out, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, (out, errors)
    return out.decode()


DELIVERERS = [by_a_session, by_a_blocking_session, by_sync]

# Killed while the service is down -----------------------------------------------------------------

#: Of the session of an `engine`; what is on disk survives a SIGKILL.
ON_DISK = "assert engine.thread.wait(engine.delivery.keeper.journaled()) is None"
SETTINGS = "spool_interval=0.01, retry=RetryPolicy(first_backoff=0.01, max_backoff=0.05)"

BLOCKING = f"""
    import sys, time
    from adp_async import RetryPolicy, blocking

    run = blocking.start_run("digits", run_name="sgd", start_timeout=0.1, {SETTINGS})
    for step in range(1000):
        run.log_metric("loss", 0.5, step=step)
    run.set_tag("state", "late")
    engine = run._session.session._engine
    {ON_DISK}
    print("logged", run.run_id, flush=True)
    sys.stdin.read()
    time.sleep(60)
"""

ASYNCHRONOUS = f"""
    import asyncio
    from adp_async import RetryPolicy, Session

    async def main():
        async with Session({SETTINGS}) as session:
            async with session.start_run("digits", run_name="sgd", start_timeout=0.1) as run:
                for step in range(1000):
                    run.log_metric("loss", 0.5, step=step)
                run.set_tag("state", "late")
                engine = session._engine
                {ON_DISK}
                print("logged", run.run_id, flush=True)
                await asyncio.sleep(60)

    asyncio.run(main())
"""


@pytest.mark.parametrize("script", [BLOCKING, ASYNCHRONOUS], ids=["blocking", "async"])
@pytest.mark.parametrize("deliver", DELIVERERS)
async def test_killed_while_the_service_is_down(
    bare_platform: LocalPlatform, gateway: Gateway, tmp_path: Path, script: str, deliver: Any
) -> None:
    """One run, with its name, all that was on disk, and KILLED when it was last heard of."""
    await gateway.down()
    child = await start(bare_platform, tmp_path, script)
    await child.says("logged None")
    killed_at = await killed(child)
    await gateway.up()
    await deliver(bare_platform)
    run = the_run(gateway)
    assert (run.info["run_name"], run.info["status"]) == ("sgd", "KILLED")
    assert points(gateway, run.run_id) == {"loss": list(range(1000))}
    assert dict(run.tags)["state"] == "late"
    assert run.info["start_time"] / 1000 <= run.info["end_time"] / 1000 <= killed_at


@pytest.mark.parametrize("deliver", DELIVERERS)
@pytest.mark.parametrize("remembers", [True, False], ids=["young token", "forgotten token"])
async def test_killed_between_the_create_and_its_answer(
    bare_platform: LocalPlatform, gateway: Gateway, tmp_path: Path, deliver: Any, remembers: bool
) -> None:
    """It took effect, and there is one run all the same, whether or not the token is known."""
    await gateway.down()
    child = await start(bare_platform, tmp_path, BLOCKING)
    await child.says("logged None")
    hanging = gateway.inject(Fault.hang(after_write=True), operation=CREATE)
    await gateway.up()
    await until(lambda: hanging.hits == 1)
    await killed(child)
    assert the_run(gateway).metrics == []
    gateway.deduplicate = remembers
    await deliver(bare_platform)
    run = the_run(gateway)
    assert run.info["status"] == "KILLED"
    assert points(gateway, run.run_id) == {"loss": list(range(1000))}


async def test_killed_again_and_again(
    bare_platform: LocalPlatform, gateway: Gateway, tmp_path: Path
) -> None:
    """Those who find it are killed as well, before and after they have created it."""
    await gateway.down()
    child = await start(bare_platform, tmp_path, BLOCKING)
    await child.says("logged None")
    await killed(child)
    gateway.deduplicate = False
    heir = f"""
        import time
        from adp_async import RetryPolicy, blocking
        session = blocking.Session({SETTINGS}).open()
        print("open", flush=True)
        time.sleep(60)
    """
    for fault in (Fault.hang(), Fault.hang(after_write=True), Fault.hang(after_write=True)):
        operation = CREATE if gateway.counts.by_operation[CREATE] < 2 else UPDATE
        hanging = gateway.inject(fault, operation=operation)
        await gateway.up()
        child = await start(bare_platform, tmp_path, heir)
        await until(lambda: hanging.hits == 1)  # noqa: B023 - at once
        await killed(child)
        gateway.clear_faults()
    await by_a_session(bare_platform)
    assert points(gateway, the_run(gateway).run_id) == {"loss": list(range(1000))}
    assert the_run(gateway).info["status"] == "KILLED"


# Runs that the service had, of a process that was killed ------------------------------------------

STARTED = f"""
    import sys, time
    from adp_async import RetryPolicy, blocking

    session = blocking.Session(linger=60.0, {SETTINGS}).open()
    attached = session.attach_run(sys.argv[1])
    ended, left, resumed = [session.start_run("digits") for _ in range(3)]
    ended.finish()
    for step in range(100):
        for run in (attached, left):
            run.log_metric("loss", 0.5, step=step)
    resumed.finish()
    again = session.attach_run(resumed.run_id, resume=True)
    engine = session.session._engine
    {ON_DISK}
    print(ended.run_id, left.run_id, resumed.run_id, flush=True)
    time.sleep(60)
"""


async def test_runs_that_a_killed_process_had_started(
    bare_platform: LocalPlatform, gateway: Gateway, tmp_path: Path
) -> None:
    """They end KILLED after their records, as do those it had resumed; no others."""
    attached = gateway.add_run()
    child = await start(bare_platform, tmp_path, STARTED, attached)
    assert child.process.stdout is not None
    ended, left, resumed = (await child.process.stdout.readline()).decode().split()
    killed_at = await killed(child)
    finished = dict(gateway.received(ended).info)
    gateway.record = True
    await by_a_session(bare_platform)
    for run_id in (left, resumed):
        info = gateway.received(run_id).info
        assert info["status"] == "KILLED"
        assert info["start_time"] <= info["end_time"] <= 1000 * killed_at
    assert points(gateway, left) == points(gateway, attached) == {"loss": list(range(100))}
    assert gateway.received(attached).info["status"] == "RUNNING"
    assert gateway.received(ended).info == finished
    about = [each for each in gateway.recorded if left.encode() in each.body]
    assert [each.operation for each in about] == ["log_experiment_run_batch", UPDATE]


async def test_what_has_ended_meanwhile_is_left_alone(
    bare_platform: LocalPlatform, gateway: Gateway, tmp_path: Path
) -> None:
    """By somebody else, or since it was deleted."""
    child = await start(bare_platform, tmp_path, STARTED, gateway.add_run())
    assert child.process.stdout is not None
    _, left, resumed = (await child.process.stdout.readline()).decode().split()
    await killed(child)
    gateway.received(left).info["status"] = "FINISHED"
    gateway.received(resumed).info["lifecycle_stage"] = "deleted"
    await by_a_session(bare_platform)
    assert gateway.received(left).info["status"] == "FINISHED"
    assert gateway.received(resumed).info["status"] == "RUNNING"


async def test_a_run_that_is_open_here_goes_on(
    bare_platform: LocalPlatform, gateway: Gateway, tmp_path: Path
) -> None:
    """Taken up again by the session that finds it: only its records are delivered."""
    script = f"""
        import time
        from adp_async import RetryPolicy, blocking
        run = blocking.start_run("digits", linger=60.0, {SETTINGS})
        run.log_metric("loss", 0.5, step=7)
        engine = run._session.session._engine
        {ON_DISK}
        print(run.run_id, flush=True)
        time.sleep(60)
    """
    child = await start(bare_platform, tmp_path, script)
    assert child.process.stdout is not None
    run_id = (await child.process.stdout.readline()).decode().strip()
    await killed(child)
    (spool,) = spools(bare_platform)
    # Until the run is taken up, nothing is delivered.
    gateway.inject(Fault.reply(503), times=None, operation="log_experiment_run_batch")
    async with bare_platform.session(**SOON) as session:
        run = await session.attach_run(run_id, resume=True)
        gateway.clear_faults()
        await until(lambda: not spool.exists())
        assert gateway.received(run_id).info["status"] == "RUNNING"
        await run.finish()
    assert points(gateway, run_id) == {"loss": [7]}
    assert gateway.received(run_id).info["status"] == "FINISHED"


# The end of a process while the service is away ---------------------------------------------------

ENDS = f"""
    import sys
    from adp_async import RetryPolicy, blocking

    run = blocking.start_run("digits", offline={{offline}}, exit_timeout=1.0, {SETTINGS})
    for step in range(100):
        run.log_metric("loss", 0.5, step=step)
    print(run.run_id, flush=True)
    input()
"""


@pytest.mark.parametrize("offline", [True, False])
async def test_an_end_that_could_not_be_told(
    bare_platform: LocalPlatform, gateway: Gateway, tmp_path: Path, offline: bool
) -> None:
    """The run ends as its process did, FAILED and not KILLED, when the next session tells it."""
    if offline:
        await gateway.down()
    began_at = time.time()
    child = await start(bare_platform, tmp_path, ENDS.format(offline=offline))
    assert child.process.stdout is not None
    await child.process.stdout.readline()
    await gateway.down()
    code, _, errors = await child.ends()
    ended_at = time.time()
    assert code == 1  # there is no input
    await gateway.up()
    await by_a_session(bare_platform)
    run = the_run(gateway)
    assert run.info["status"] == "FAILED", errors
    assert began_at - 0.001 <= run.info["end_time"] / 1000 <= ended_at
    assert points(gateway, run.run_id) == {"loss": list(range(100))}


# SIGTERM ------------------------------------------------------------------------------------------

TERMINATED = f"""
    import os, signal, sys, threading, time
    from adp_async import RetryPolicy, blocking

    {{before}}
    run = blocking.start_run("digits", linger=60.0, exit_timeout={{seconds}}, {SETTINGS})
    for step in range(900):  # fewer than a request takes: nothing leaves before the signal
        run.log_metric("loss", 0.5, step=step)
    print(run.run_id, flush=True)
    {{body}}
    while True:
        time.sleep(0.05)  # a longer one may overlook the signal
"""


async def terminated(
    platform: LocalPlatform, folder: Path, before: str = "", body: str = "", seconds: float = 20.0
) -> tuple[Child, str]:
    script = TERMINATED.format(before=before, body=body, seconds=seconds)
    child = await start(platform, folder, script)
    assert child.process.stdout is not None
    run_id = (await child.process.stdout.readline()).decode().strip()
    assert run_id, await child.errors()
    return child, run_id


async def test_terminated(bare_platform: LocalPlatform, gateway: Gateway, tmp_path: Path) -> None:
    """Everything is delivered, the run is KILLED, and the exit status is that of the signal."""
    child, run_id = await terminated(bare_platform, tmp_path)
    child.process.terminate()
    code, _, errors = await child.ends()
    assert (code, errors) == (-signal.SIGTERM, "")
    assert gateway.received(run_id).info["status"] == "KILLED"
    assert points(gateway, run_id) == {"loss": list(range(900))}
    assert spools(bare_platform) == []


ASYNCHRONOUS_TERMINATED = f"""
    import asyncio
    from adp_async import RetryPolicy, Session

    async def main():
        async with Session(linger=60.0, {SETTINGS}) as session:
            async with session.start_run("digits") as run:
                for step in range(900):
                    run.log_metric("loss", 0.5, step=step)
                print(run.run_id, flush=True)
                while True:  # (a longer one may overlook the signal)
                    await asyncio.sleep(0.05)

    asyncio.run(main())
"""


async def test_terminated_on_an_event_loop(
    bare_platform: LocalPlatform, gateway: Gateway, tmp_path: Path
) -> None:
    """So it is where a loop runs in the main thread, inside of ``async with``."""
    child = await start(bare_platform, tmp_path, ASYNCHRONOUS_TERMINATED)
    assert child.process.stdout is not None
    run_id = (await child.process.stdout.readline()).decode().strip()
    child.process.terminate()
    code, _, errors = await child.ends()
    assert (code, errors) == (-signal.SIGTERM, "")
    assert gateway.received(run_id).info["status"] == "KILLED"
    assert points(gateway, run_id) == {"loss": list(range(900))}


async def test_terminated_while_the_service_is_away(
    bare_platform: LocalPlatform, gateway: Gateway, tmp_path: Path
) -> None:
    """It ends within ``exit_timeout``, and the next session knows how."""
    child, run_id = await terminated(bare_platform, tmp_path, seconds=1.0)
    await gateway.down()
    began = time.monotonic()
    child.process.terminate()
    code, _, errors = await child.ends()
    assert code == -signal.SIGTERM, errors
    assert time.monotonic() - began < 15.0
    await gateway.up()
    await by_a_session(bare_platform)
    assert gateway.received(run_id).info["status"] == "KILLED"
    assert points(gateway, run_id) == {"loss": list(range(900))}


async def test_terminated_twice(
    bare_platform: LocalPlatform, gateway: Gateway, tmp_path: Path
) -> None:
    """The second signal ends it at once; what was journaled is not lost."""
    child, run_id = await terminated(bare_platform, tmp_path, seconds=30.0)
    hanging = gateway.inject(Fault.hang(), times=None)
    child.process.terminate()
    await until(lambda: hanging.hits > 0)
    began = time.monotonic()
    child.process.terminate()
    code, _, _ = await child.ends()
    assert code == -signal.SIGTERM
    assert time.monotonic() - began < 15.0
    gateway.clear_faults()
    await by_a_session(bare_platform)
    assert gateway.received(run_id).info["status"] == "KILLED"
    assert points(gateway, run_id) == {"loss": list(range(900))}


WAITS = """
    while not os.path.exists("{sent}"):
        time.sleep(0.02)
    os._exit(8)
"""
#: What the program does with the signal, and afterwards, and how it ends.
OWN_HANDLERS = {
    "its own": ("signal.signal(signal.SIGTERM, lambda number, frame: os._exit(7))", "", 7),
    "ignored": ("signal.signal(signal.SIGTERM, signal.SIG_IGN)", WAITS, 8),
}


@pytest.mark.parametrize("name", OWN_HANDLERS)
async def test_a_program_with_a_handler_of_its_own(
    bare_platform: LocalPlatform, gateway: Gateway, tmp_path: Path, name: str
) -> None:
    """It is left alone."""
    before, body, expected = OWN_HANDLERS[name]
    sent = tmp_path / "sent"
    child, run_id = await terminated(bare_platform, tmp_path, before, body.format(sent=sent))
    child.process.terminate()
    sent.touch()
    code, _, _ = await child.ends()
    assert code == expected
    assert gateway.received(run_id).info["status"] == "RUNNING"


async def test_terminated_children(
    bare_platform: LocalPlatform, gateway: Gateway, tmp_path: Path
) -> None:
    """A forked child inherits the handler and none of the runs, which go on."""
    body = """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, b".")
    while not child:
        time.sleep(0.05)
    os.read(reading, 1)
    os.kill(child, signal.SIGTERM)
    print(os.waitpid(child, 0)[1], flush=True)
    run.finish()
    sys.exit()
    """
    child, run_id = await terminated(bare_platform, tmp_path, body=body)
    code, out, errors = await child.ends()
    assert code == 0, errors
    assert out.strip() == str(int(signal.SIGTERM))
    assert gateway.received(run_id).info["status"] == "FINISHED"


async def test_terminated_in_the_middle_of_a_call(
    bare_platform: LocalPlatform, gateway: Gateway, tmp_path: Path
) -> None:
    """The handler waits for nothing that the thread it interrupts holds."""
    body = """
    with run._intake.lock:
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):
            time.sleep(0.0001)
    """
    child, run_id = await terminated(bare_platform, tmp_path, body=body)
    began = time.monotonic()
    code, _, errors = await child.ends()
    assert (code, errors) == (-signal.SIGTERM, "")
    assert time.monotonic() - began < 15.0
    assert gateway.received(run_id).info["status"] == "KILLED"
