"""Runs that are open when their process ends: FINISHED, FAILED or KILLED, as it ended."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from children import environment, points, start

from adp_async import blocking
from adp_async._io import lifetime
from adp_async._io.lifetime import Living
from adp_async._shared_sessions import SharedSessions
from adp_async.errors import Closed
from adp_async.testing import FakeBlockingSession, FakeSession

if TYPE_CHECKING:
    from pathlib import Path

    from adp_async.local import Gateway, LocalPlatform

UPDATE = "update_experiment_run"


@pytest.fixture
def gateway(bare_platform: LocalPlatform) -> Gateway:
    return bare_platform.gateway


# Whole processes ----------------------------------------------------------------------------------

BLOCKING = """
    import os, signal, sys, threading
    from adp_async import blocking

    run = blocking.start_run("digits", linger=60.0)
    for step in range(1000):
        run.log_metric("loss", 0.5, step=step)
    print(run.run_id, flush=True)
"""

#: How a script ends, its exit code, and how its run ends.
ENDS: dict[str, tuple[str, int, str]] = {
    "normally": ("", 0, "FINISHED"),
    "an exception": ("raise ValueError('the own')", 1, "FAILED"),
    "an exception that was caught": (
        """
        try:
            raise ValueError
        except ValueError:
            pass
        """,
        0,
        "FINISHED",
    ),
    "an exception of a thread": (
        """
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
        """,
        0,
        "FINISHED",
    ),
    "Ctrl-C": ("os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT, "KILLED"),
    "sys.exit()": ("sys.exit()", 0, "FINISHED"),
    "sys.exit(3)": ("sys.exit(3)", 3, "FAILED"),
    "sys.exit(text)": ("sys.exit('no data')", 1, "FAILED"),
    "sys.exit(143)": ("sys.exit(128 + signal.SIGTERM)", 143, "KILLED"),
    "sys.exit after Ctrl-C": (
        """
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            sys.exit(1)
        """,
        1,
        "KILLED",
    ),
    "sys.exit in a handler": (
        """
        def stop(number, frame):
            sys.exit(0)
        signal.signal(signal.SIGTERM, stop)
        os.kill(os.getpid(), signal.SIGTERM)
        """,
        0,
        "KILLED",
    ),
    "sys.exit in a thread": (
        """
        thread = threading.Thread(target=sys.exit, args=(3,))
        thread.start()
        thread.join()
        """,
        0,
        "FINISHED",
    ),
    "finished by hand": ("run.finish('FAILED')", 0, "FAILED"),
    "renamed, and then an exception": (
        "run._session.runs.update(run.run_id, run_name='other'); 1 / 0",
        1,
        "FAILED",
    ),
    "finished by an operation": (
        "run._session.runs.update(run.run_id, status='KILLED', end_time=2**42)",
        0,
        "KILLED",
    ),
}


@pytest.mark.parametrize("end", ENDS)
async def test_how_a_script_ends(
    bare_platform: LocalPlatform, gateway: Gateway, tmp_path: Path, end: str
) -> None:
    """Everything is delivered, and then the run has the status that its process's end means."""
    how, code, status = ENDS[end]
    script = textwrap.dedent(BLOCKING) + textwrap.dedent(how)
    child = await start(bare_platform, tmp_path, script)
    returned, out, errors = await child.ends()
    assert returned == code, errors
    received = gateway.received(out.split()[0])
    assert received.info["status"] == status
    assert received.info["end_time"] >= received.info["start_time"]
    assert points(gateway, out.split()[0]) == {"loss": list(range(1000))}
    assert "adp_async" not in errors


ASYNCHRONOUS = """
    import asyncio
    import adp_async

    async def main():
        session = await adp_async.Session(linger=60.0).open()
        runs = [await session.start_run("digits") for _ in range(20)]
        for run in runs:
            run.log_metric("loss", 0.5)
        print(*(run.run_id for run in runs), flush=True)
        {end}

    asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("end", "status"), [("", "FINISHED"), ("1 / 0", "FAILED"), ("raise SystemExit", "FINISHED")]
)
async def test_runs_of_a_loop_that_is_gone(
    bare_platform: LocalPlatform, gateway: Gateway, tmp_path: Path, end: str, status: str
) -> None:
    """Their event loop has ended, and they end all the same; all at once."""
    child = await start(bare_platform, tmp_path, ASYNCHRONOUS.format(end=end))
    _, out, _ = await child.ends()
    for run_id in out.split():
        received = gateway.received(run_id)
        assert received.info["status"] == status
        assert len(received.metrics) == 1


CHILDREN = """
    import multiprocessing, sys
    from adp_async import blocking

    def work(queue, how):
        run = blocking.shared_session().start_run("child")
        run.log_metric("loss", 0.5)
        queue.put(run.run_id)
        if how == "raise":
            raise ValueError("the child's own")
        if how == "exit":
            sys.exit(3)

    if __name__ == "__main__":
        context = multiprocessing.get_context(sys.argv[1])
        parents = blocking.start_run("parent") if sys.argv[2] == "parent" else None
        queue = context.Queue()
        for how in ("return", "raise", "exit"):
            child = context.Process(target=work, args=(queue, how))
            child.start()
            print(queue.get(timeout=60), flush=True)
            child.join()
        if parents:
            parents.log_metric("loss", 0.5)
            print(parents.run_id)
"""


@pytest.mark.parametrize("parent", ["parent", "no parent"])
@pytest.mark.parametrize("method", ["fork", "spawn"])
async def test_runs_of_children(
    bare_platform: LocalPlatform, gateway: Gateway, tmp_path: Path, method: str, parent: str
) -> None:
    """A child of `multiprocessing` ends its own runs, as it ends, and none of its parent's."""
    child = await start(bare_platform, tmp_path, CHILDREN, method, parent)
    code, out, errors = await child.ends()
    assert code == 0, errors
    statuses = [gateway.received(run_id).info["status"] for run_id in out.split()]
    assert statuses == ["FINISHED", "FAILED", "FAILED", *["FINISHED"][: parent == "parent"]]


INTERACTIVE = """
from adp_async import blocking
run = blocking.start_run("digits")
print(run.run_id)
1 / 0
print("goes on")
"""


async def test_after_a_failed_statement(bare_platform: LocalPlatform, gateway: Gateway) -> None:
    """At the prompt an exception ends nothing: the run is FINISHED when the user leaves."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-i", "-q"),
        env=environment(bare_platform),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, errors = await asyncio.wait_for(child.communicate(INTERACTIVE.encode()), 60)
    assert b"ZeroDivisionError" in errors
    run_id, *rest = out.decode().split("\n")
    assert rest[0] == "goes on"
    assert gateway.received(run_id).info["status"] == "FINISHED"


async def test_after_a_failed_cell(
    bare_platform: LocalPlatform, gateway: Gateway, tmp_path: Path
) -> None:
    """So it is in IPython."""
    pytest.importorskip("IPython", reason="needs IPython's shell")
    script = """
        from IPython.core.interactiveshell import InteractiveShell
        shell = InteractiveShell.instance()
        shell.run_cell("from adp_async import blocking; run = blocking.start_run('digits')")
        shell.run_cell("1 / 0")
        print("run", shell.user_ns["run"].run_id)
    """
    child = await start(bare_platform, tmp_path, script, recover="off")
    code, out, errors = await child.ends()
    assert code == 0, errors
    assert "ZeroDivisionError" in out
    assert gateway.received(out.split()[-1]).info["status"] == "FINISHED"


async def test_a_service_that_is_gone_by_then(
    bare_platform: LocalPlatform, gateway: Gateway, tmp_path: Path
) -> None:
    """The end takes a bounded time, and a warning names the runs whose end could not be told."""
    patient = "    from adp_async._io import delivery\n    delivery.SHORTEST_COMMIT = 30.0\n"
    script = f"{BLOCKING}{patient}    input()\n"  # (a disk may be slow)
    child = await start(bare_platform, tmp_path, script, exit_timeout=1.0)
    await child.says("")
    await bare_platform.gateway.close()
    code, _, errors = await child.ends()
    assert code == 1  # there is no input
    assert "could not be ended FAILED in time" in errors
    assert "the next session delivers them" in errors


# Close hooks --------------------------------------------------------------------------------------


async def test_close_hooks() -> None:
    """Called once each before the session closes, the last first; an error of one is logged."""
    heard: list[object] = []
    async with FakeSession() as session:
        run = session.attach_run(session.add_run())
        session.on_close(lambda status: heard.append(("first", status, session.is_open)))
        session.on_close(lambda status: 1 / 0)
        session.on_close(lambda status: run.log_metric("last", 1.0))
        forget = session.on_close(lambda status: heard.append("never"))
        forget()
        forget()
        with pytest.raises(TypeError, match="a close hook is a function, not int"):
            session.on_close(3)  # type: ignore[arg-type]
    await session.close()
    assert heard == [("first", None, True)]
    assert [metric.key for metric in session.received(run.run_id).metrics] == ["last"]


def test_close_hooks_of_a_session_that_another_loop_cannot_close() -> None:
    """It stays open, and they are called when it is closed indeed."""
    session, heard = FakeSession(), list[object]()
    session.on_close(heard.append)

    async def close() -> None:
        with pytest.raises(Closed, match="in the event loop it was opened in"):
            await session.close()

    with asyncio.Runner() as runner:
        runner.run(session.open())
        asyncio.run(close())
        assert (session.is_open, heard) == (True, [])
        runner.run(session.close())
    assert heard == [None]


def test_a_close_hook_may_wait(caplog: pytest.LogCaptureFixture) -> None:
    """On the blocking face it runs in the thread that closes, and uses the session as any code."""
    session = FakeBlockingSession().open()
    run = session.start_run()
    session.on_close(lambda status: run.finish("KILLED"))
    session.on_close(lambda status: session.close())
    session.on_close(lambda status: 1 / 0)
    session.close()
    assert session.session.received(run.run_id).info["status"] == "KILLED"
    assert "a close hook of the session failed" in caplog.text


HOOK = """
    import asyncio, sys
    import adp_async
    from adp_async import blocking

    session = blocking.shared_session()
    run = session.attach_run(sys.argv[1])

    def end(status):
        run.log_metric("at the end", 1.0)
        run.finish(status)

    session.on_close(end)
    1 / 0
"""


async def test_a_close_hook_at_the_interpreters_end(
    bare_platform: LocalPlatform, gateway: Gateway, tmp_path: Path
) -> None:
    """It hears how the process ends, and may still log and wait."""
    run_id = gateway.add_run()
    child = await start(bare_platform, tmp_path, HOOK, run_id)
    await child.ends()
    assert gateway.received(run_id).info["status"] == "FAILED"
    assert points(gateway, run_id) == {"at the end": [0]}


async def test_a_deleted_run_is_not_ended() -> None:
    """Nor is one that was finished; one that was only renamed is open."""
    async with FakeSession() as session:
        deleted, finished, renamed = [await session.start_run() for _ in range(3)]
        session.answer("delete_experiment_run", {})
        await session.runs.delete(deleted.run_id)
        await session.runs.update(finished.run_id, status="FINISHED")
        await session.runs.update(renamed.run_id, run_name="other")
        assert list(session._open_runs._run_ids) == [renamed.run_id]


STUCK = """
    import os, signal, time
    from adp_async.testing import FakeBlockingSession

    def opened():
        session = FakeBlockingSession(exit_timeout=0.1, close_timeout=0.1).open()
        return session, session.start_run("digits")

    stuck, alive = opened(), opened()
    # As by a handler of the log, for a lock that the interrupted thread holds.
    stuck[0].session._engine.thread.call_soon(time.sleep, 60.0)
    alive[0].on_close(lambda status: print("closes", status, flush=True))
    while True:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
        except Exception as error:
            print("goes on after", repr(error), flush=True)
"""


async def test_a_session_that_is_stuck(bare_platform: LocalPlatform, tmp_path: Path) -> None:
    """A SIGTERM ends its process and the other sessions, even in a loop that catches all errors."""
    child = await start(bare_platform, tmp_path, STUCK)
    code, out, errors = await child.ends()
    assert (code, out) == (-signal.SIGTERM, "closes KILLED\n"), errors


WHILE_IT_LOGS = """
    import logging, os, signal, time
    from adp_async.testing import FakeBlockingSession

    class Handler(logging.Handler):
        def emit(self, record):
            if record.name == "the program":
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.1)

    logging.basicConfig(level=logging.DEBUG, handlers=[Handler()])
    session = FakeBlockingSession(exit_timeout=20.0, close_timeout=20.0).open()
    run = session.start_run("digits")
    send = session.session.service.send

    async def tell(request, **options):
        print(request.operation, (request.body or b"").decode(), flush=True)
        return await send(request, **options)

    session.session.service.send = tell
    run.log_metric("loss", 0.5)
    logging.getLogger("the program").warning("a line")
    time.sleep(60)
"""


async def test_a_sigterm_while_the_program_logs(
    bare_platform: LocalPlatform, tmp_path: Path
) -> None:
    """The delivery logs through the same handler, which the interrupted thread is in."""
    child = await start(bare_platform, tmp_path, WHILE_IT_LOGS)
    code, out, errors = await child.ends()
    assert code == -signal.SIGTERM, errors
    assert "log_experiment_run_batch" in out
    assert '"status":"KILLED"' in out


AT_ONCE = """
    from adp_async.errors import ConnectionLost
    from adp_async.testing import FakeBlockingSession

    for _ in range(15):
        session = FakeBlockingSession(exit_timeout=1.0).open()
        session.session.answer("log_experiment_run_batch", ConnectionLost("the line is cut"))
        session.start_run("digits").log_metric("loss", 0.5)
    print("ends", flush=True)
"""


async def test_all_sessions_end_at_the_same_time(
    bare_platform: LocalPlatform, tmp_path: Path
) -> None:
    """However many of them wait for a service that is gone, it takes no longer than one."""
    child = await start(bare_platform, tmp_path, AT_ONCE)
    await child.says("ends")
    began = asyncio.get_running_loop().time()
    code, _, errors = await child.ends()
    assert asyncio.get_running_loop().time() - began < 10.0
    assert code == 0
    assert errors.count("1 record") >= 15


def test_an_end_that_fails_is_one_session_s(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The others are ended all the same, and the log has why it failed."""
    ended: list[int] = []

    def end(number: int) -> None:
        if number == 1:
            raise KeyError("a mistake of ours")
        ended.append(number)

    living = [Living(lambda: None, partial(end, each), lambda: False) for each in range(3)]
    monkeypatch.setattr(lifetime, "_living", living)
    lifetime.end_all()
    assert ended == [0, 2]
    assert "a session could not be ended" in caplog.text
    assert "a mistake of ours" in caplog.text


# A session left by hand ---------------------------------------------------------------------------


def updates(session: FakeSession) -> int:
    return sum(request.operation == UPDATE for request in session.requests)


async def test_a_session_closed_by_hand_ends_no_run() -> None:
    """Whoever closes it while a run is open hands the run on."""
    async with FakeSession() as session:
        run = await session.start_run()
    assert session.received(run.run_id).info["status"] == "RUNNING"
    assert updates(session) == 0


# Shared sessions ----------------------------------------------------------------------------------


SHARED = """
    import os, sys
    from adp_async import blocking
    from adp_async.auth import ApiKey

    first = blocking.shared_session(linger=0.02)
    assert first is blocking.shared_session(linger=0.02) and first.is_open
    assert first is not blocking.shared_session(linger=0.03)
    assert first is blocking.shared_session(first.settings.platform_id, linger=0.02)
    child = os.fork()
    if not child:
        mine = blocking.shared_session(linger=0.02)
        assert mine is not first
        mine.attach_run(sys.argv[1]).log_metric("child", 1.0)
        mine.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    first.close()
    again = blocking.shared_session(linger=0.02)
    assert again is not first and again.is_open
    again.attach_run(sys.argv[1]).log_metric("parent", 1.0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
async def test_shared_sessions(
    bare_platform: LocalPlatform, gateway: Gateway, tmp_path: Path
) -> None:
    """One for each settings and process, opened again when it was closed."""
    run_id = gateway.add_run()
    child = await start(bare_platform, tmp_path, SHARED, run_id)
    await child.ends_well()
    assert points(gateway, run_id) == {"child": [0], "parent": [0]}


async def test_all_threads_share_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen threads that ask at the same moment get the same session, opened once."""
    made: list[Any] = []

    def make(**_: object) -> FakeBlockingSession:
        made.append(FakeBlockingSession())
        return made[-1]

    monkeypatch.setattr(blocking, "_shared", SharedSessions(lambda settings: make()))
    knobs: Any = {"platform_id": "ocid1.aidataplatform.oc1..x", "endpoint": "http://localhost"}
    calls = (asyncio.to_thread(blocking.shared_session, **knobs) for _ in range(16))
    sessions = await asyncio.gather(*calls)
    assert len(made) == 1
    assert set(map(id, sessions)) == {id(made[0])}
    made[0].close()
