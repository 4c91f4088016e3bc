"""The same for code without an event loop: plain threads, scripts that end, Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from children import not_outlived_by

import adp_async
from adp_async import blocking
from adp_async._io import loop_thread
from adp_async.auth import ApiKey
from adp_async.blocking import AttachedRun
from adp_async.entities import Dataset, DatasetInput
from adp_async.errors import (
    Closed,
    ConfigurationError,
    DeliveryError,
    InvalidRecord,
    NotFound,
)
from adp_async.testing import FakeBlockingSession

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adp_async.local import LocalPlatform

LOG_BATCH = "log_experiment_run_batch"


@pytest.fixture
def session() -> Iterator[FakeBlockingSession]:
    with FakeBlockingSession() as session:
        yield session


def status(session: FakeBlockingSession, run: Any) -> str:
    return str(session.session.received(run.run_id).info["status"])


# Runs ---------------------------------------------------------------------------------------------


def test_a_run_from_beginning_to_end(session: FakeBlockingSession) -> None:
    """``with`` creates the run, and flushes and finishes it."""
    with session.start_run(
        "digits", run_name="sgd", params={"lr": 0.1}, tags={"a": "b"}, source=False
    ) as run:
        assert (run.run_name, run.experiment_id, run.status) == ("sgd", "1", None)
        receipts = [run.log_metric("loss", 0.5, step=step) for step in range(2500)]
        run.log_metrics({"loss": 0.4, "accuracy": 0.9}, step=2500)
        run.set_tags({"stage": "last"})
    assert all(receipt.delivered for receipt in receipts)
    assert run.status == status(session, run) == "FINISHED"
    received = session.session.received(run.run_id)
    assert len(received.metrics) == 2502
    assert received.params == [("lr", "0.1")]
    assert received.tags == [("a", "b"), ("stage", "last")]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("no"), "FAILED"),
        (SystemExit(2), "FAILED"),
        (SystemExit(0), "FINISHED"),
        (KeyboardInterrupt(), "KILLED"),
    ],
    ids=repr,
)
def test_the_bodys_error(session: FakeBlockingSession, error: BaseException, expected: str) -> None:
    """It comes out as it is, and says how the run ended; what was accepted is delivered."""
    run = session.start_run()

    def body() -> None:
        with run:
            run.log_metric("loss", 0.5)
            raise error

    with pytest.raises(type(error)) as caught:
        body()
    assert caught.value is error
    assert not hasattr(error, "__notes__")
    assert status(session, run) == expected
    assert len(session.session.received(run.run_id).metrics) == 1


def test_what_was_refused(session: FakeBlockingSession) -> None:
    """Leaving raises it; behind an error of the body's own it is a note."""
    run = session.start_run()
    run.log_param("b@d", 1)
    with pytest.raises(DeliveryError, match="'b@d'"), run:
        pass
    assert status(session, run) == "FINISHED"

    other, mistake = session.start_run(), ValueError("the caller's own")
    other.log_param("b@d", 1)
    with pytest.raises(ValueError, match="the caller's own") as caught, other:
        raise mistake
    assert caught.value is mistake
    assert "'b@d'" in mistake.__notes__[0]


def test_finish_in_place_of_with(session: FakeBlockingSession) -> None:
    """Without ``with``, `finish` ends the run; within it, a status that was given stays."""
    run = session.start_run()
    run.log_metric("loss", 0.5)
    run.finish("FAILED")
    assert status(session, run) == "FAILED"
    with session.start_run() as other:
        other.finish("KILLED")
    assert status(session, other) == "KILLED"


def test_attached(session: FakeBlockingSession) -> None:
    """It flushes and leaves the status alone."""
    run_id = session.session.add_run()
    with session.attach_run(run_id) as run:
        receipt = run.log_metric("loss", 0.5)
    assert receipt.delivered
    assert status(session, run) == "RUNNING"


def test_direct_calls(session: FakeBlockingSession) -> None:
    """`call` waits for anything of the session; errors come out as they are."""
    run_id = session.session.add_run()
    run = session.call(session.session.runs.get(run_id))
    assert run.info.run_id == run_id
    with pytest.raises(NotFound, match="no-such-run"):
        session.call(session.session.runs.get("no-such-run"))


def test_bad_records(session: FakeBlockingSession) -> None:
    """They raise at the call, in the caller's thread."""
    run = session.start_run()
    with pytest.raises(InvalidRecord, match=run.run_id):
        run.log_metric("", 0.5)
    with pytest.raises(InvalidRecord):
        session.start_run(params={"": 1})


# Waiting ------------------------------------------------------------------------------------------


def test_waiting_for_a_receipt(session: FakeBlockingSession) -> None:
    """``wait`` returns when it is delivered, raises TimeoutError in time, and can be repeated."""
    run = session.start_run()
    receipt = run.log_metric("loss", 0.5)
    receipt.wait()
    receipt.wait(0)
    script = session.session.answer(LOG_BATCH, status=503)
    stuck = run.log_metric("loss", 0.4)
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        stuck.wait(0.05)
    both = run.log_metrics({"loss": 0.3, "accuracy": 0.9})
    with pytest.raises(TimeoutError):
        both.wait(timeout=0.05)
    assert 0.09 < time.monotonic() - began < 20.0
    script.left = 0
    stuck.wait(60)
    both.wait(60)


def test_waiting_for_a_refused_receipt(session: FakeBlockingSession) -> None:
    """``wait`` raises what the service said."""
    run = session.start_run()
    receipt = run.log_param("b@d", 1)
    with pytest.raises(DeliveryError, match="'b@d'"):
        receipt.wait()
    with pytest.raises(DeliveryError, match="'b@d'"):
        run.flush()


def test_flush_and_drain_take_a_timeout(session: FakeBlockingSession) -> None:
    """TimeoutError when time runs out; the records stay and are delivered later."""
    run = session.start_run()
    script = session.session.answer(LOG_BATCH, status=503)
    receipt = run.log_metric("loss", 0.5)
    with pytest.raises(TimeoutError):
        run.flush(timeout=0.05)
    run.drain(timeout=0.05)  # there is room
    script.left = 0
    run.flush(timeout=60)
    assert receipt.delivered
    assert session.session._delivery._waiters.are_none


def test_threads_that_wait(session: FakeBlockingSession) -> None:
    """Any thread may wait, for a receipt or a flush."""
    run = session.start_run()
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for step in range(20):
                receipt = run.log_metric(f"loss{number}", 0.5, step=step)
                receipt.wait(60) if step % 2 else run.flush(60)
                assert receipt.delivered
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(session.session.received(run.run_id).metrics) == 160


def test_a_handle_shows_what_it_is(session: FakeBlockingSession) -> None:
    """The run's settings, its inputs, its rows in a notebook; whether the session is open."""
    session.session.answer("log_experiment_run_inputs", {})
    with session.start_run("digits") as run:
        assert run.settings is session.session.settings
        run.log_inputs([DatasetInput(Dataset("digits", "1", "local", "file"))])
        assert session.session.requests[-1].operation == "log_experiment_run_inputs"
        assert run.run_id in run._repr_html_()
    assert session.is_open
    session.close()
    assert not session.is_open


def test_finished_inside_of_its_block(session: FakeBlockingSession) -> None:
    """A session of the run's own is closed by then, and leaving the block does nothing more."""
    with session._begin(session.session.start_run("digits"), owns_session=True) as run:
        run.finish("KILLED")
        assert not session.is_open
    assert status(session, run) == "KILLED"


@pytest.mark.parametrize("closes", [True, False])
def test_an_attached_run_closes_its_session(session: FakeBlockingSession, closes: bool) -> None:
    """By `close` or by its block, once; the run goes on."""
    run_id = session.session.add_run()
    with AttachedRun(session.session.attach_run(run_id), session) as run:
        run.log_metric("loss", 0.5)
        if closes:
            run.close()
            assert not session.is_open
    assert not session.is_open
    assert len(session.session.received(run_id).metrics) == 1
    assert status(session, run) == "RUNNING"


@pytest.mark.parametrize("name", ["start_run", "attach_run"])
def test_a_function_that_fails_closes_its_session(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """`start_run` and `attach_run` leave no session open that nobody could close."""
    session = FakeBlockingSession()
    monkeypatch.setattr(blocking, "Session", lambda *_places, **_knobs: session)
    if name == "start_run":
        session.session.answer("create_experiment_run", {"code": "Odd"}, status=404)
        with pytest.raises(NotFound, match="Odd"):
            blocking.start_run(experiment_id="1")
    else:
        monkeypatch.setattr(session.session, "attach_run", lambda *_, **__: int("no"))
        with pytest.raises(ValueError, match="no"):
            blocking.attach_run("run")
    assert not session.is_open


def test_in_a_forked_child(session: FakeBlockingSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop's thread is the parent's: waiting for it is an error."""
    with monkeypatch.context() as patch:
        patch.setattr(loop_thread, "os", SimpleNamespace(getpid=lambda: -1))
        with pytest.raises(Closed, match="belongs to the parent process"):
            session.call(session.session.runs.get("7"))
    with pytest.raises(NotFound):
        session.call(session.session.runs.get("7"))


def test_on_the_loops_own_thread(session: FakeBlockingSession) -> None:
    """Blocking there would never end, and is an error."""
    run = session.start_run()

    async def wrong() -> list[str]:
        found = []
        receipt = run.log_metric("loss", 0.5)
        for waiting in (run.flush, run.finish, receipt.wait, session.close):
            with pytest.raises(Closed) as caught:
                waiting()
            found.append(str(caught.value))
        return found

    for message in session.call(wrong()):
        assert "block the" in message
        assert "event loop" in message
    run.flush()


# The session --------------------------------------------------------------------------------------


def test_before_and_after() -> None:
    """The error says whether a session is not open yet or closed."""
    session = FakeBlockingSession()
    with pytest.raises(Closed, match="not open yet: enter it with `with`"):
        session.start_run()
    with session:
        run = session.start_run()
        assert session.open() is session
    with pytest.raises(Closed, match="it is closed, for its `with` block has ended"):
        run.flush()
    with pytest.raises(Closed, match="closed"):
        run.log_metric("loss", 0.5)
    with pytest.raises(Closed, match="cannot be reopened"):
        session.open()
    session.close()
    assert repr(session).startswith("<blocking Session http://localhost")


def test_no_thread_is_left() -> None:
    """Closing stops the thread, also when opening failed."""
    before = threading.active_count()
    with FakeBlockingSession() as session:
        session.start_run()
    arguments: dict[str, Any] = {"auth": ApiKey(config_file="/no/such/file"), "spool": False}
    with pytest.raises(ConfigurationError):
        adp_async.blocking.start_run(
            platform_id="ocid1.aidataplatform.oc1.iad.x",
            workspace="w",
            endpoint="http://localhost",
            **arguments,
        )
    deadline = time.monotonic() + 20.0
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_closing_says_what_remains() -> None:
    """What can't be delivered in time is counted, or noted behind the body's own error."""
    session = FakeBlockingSession(close_timeout=0.05).open()
    session.session.answer(LOG_BATCH, status=503)
    session.start_run().log_metric("loss", 0.5)
    with pytest.raises(DeliveryError, match="1 record was not delivered"):
        session.close()

    mistake = ValueError("the caller's own")
    other = FakeBlockingSession(close_timeout=0.05).open()
    other.session.answer(LOG_BATCH, status=503)
    other.start_run().log_metric("loss", 0.5)
    with pytest.raises(ValueError, match="the caller's own"), other:
        raise mistake
    assert "1 record was not" in mistake.__notes__[0]


async def test_in_a_program_with_a_loop() -> None:
    """A blocking session can be used by the threads of an asynchronous program."""

    def work() -> int:
        with FakeBlockingSession() as session, session.start_run() as run:
            run.log_metric("loss", 0.5)
        return len(session.session.received(run.run_id).metrics)

    assert await asyncio.gather(*(asyncio.to_thread(work) for _ in range(4))) == [1] * 4


# Whole programs -----------------------------------------------------------------------------------


def program(platform: LocalPlatform, body: str) -> str:
    """A script with a run of its own, `arguments` for more, and *body*."""
    return textwrap.dedent(f"""
        import os, sys, time, threading
        import adp_async
        from adp_async import blocking, ApiKey
        arguments = dict(
            platform_id={platform.platform_id!r},
            workspace={platform.workspace!r},
            endpoint={platform.endpoint!r},
            auth=ApiKey(config_file={str(platform.config_file)!r}),
            spool=False,
        )
    """) + textwrap.dedent(body)


async def finished(script: str, interrupt_at: str = "") -> tuple[int, str, str]:
    """Run *script* to its end; send Ctrl-C when it prints *interrupt_at*."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        script,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    assert child.stdout is not None
    printed = b""
    with not_outlived_by(child):
        if interrupt_at:
            async with asyncio.timeout(60):
                printed = await child.stdout.readuntil(interrupt_at.encode())
            await asyncio.sleep(0.05)
            child.send_signal(signal.SIGINT)
        async with asyncio.timeout(60):
            out, errors = await child.communicate()
    assert child.returncode is not None
    return child.returncode, (printed + out).decode(), errors.decode()


async def test_a_script_that_uses_with(bare_platform: LocalPlatform) -> None:
    """``with adp_async.blocking.start_run(...)`` is all a training script needs."""
    script = program(
        bare_platform,
        """
        with blocking.start_run("digits", run_name="sgd", **arguments) as run:
            for step in range(3000):
                run.log_metric("loss", 1 / (step + 1), step=step)
        print(run.run_id, run.status)
        """,
    )
    code, out, errors = await finished(script)
    assert (code, errors) == (0, "")
    run_id, status = out.split()
    received = bare_platform.gateway.received(run_id)
    assert status == received.info["status"] == "FINISHED"
    assert [metric.step for metric in sorted(received.metrics, key=lambda m: m.step)] == list(
        range(3000)
    )


async def test_a_script_that_just_ends(bare_platform: LocalPlatform) -> None:
    """What waits is delivered at the end of a script that closes nothing, and its run ends."""
    script = program(
        bare_platform,
        """
        run = blocking.start_run(linger=60.0, **arguments)
        for step in range(3000):
            run.log_metric("loss", 1 / (step + 1), step=step)
        print(run.run_id)
        """,
    )
    code, out, errors = await finished(script)
    assert (code, errors) == (0, "")
    received = bare_platform.gateway.received(out.strip())
    assert len(received.metrics) == 3000
    assert received.info["status"] == "FINISHED"


async def test_a_script_that_fails(bare_platform: LocalPlatform) -> None:
    """Its own traceback is what it shows; the run is FAILED and complete."""
    script = program(
        bare_platform,
        """
        with blocking.start_run(linger=60.0, **arguments) as run:
            print(run.run_id, flush=True)
            run.log_metric("loss", 0.5)
            raise ValueError("the caller's own")
        """,
    )
    code, out, errors = await finished(script)
    assert code == 1
    assert errors.strip().endswith("ValueError: the caller's own")
    assert "During handling" not in errors
    received = bare_platform.gateway.received(out.strip())
    assert (received.info["status"], len(received.metrics)) == ("FAILED", 1)


async def test_ctrl_c(bare_platform: LocalPlatform) -> None:
    """Ctrl-C in a training loop: KILLED, complete, KeyboardInterrupt, and no hanging."""
    script = program(
        bare_platform,
        """
        with blocking.start_run(linger=60.0, **arguments) as run:
            for step in range(1000):
                run.log_metric("loss", 0.5, step=step)
            print(run.run_id, flush=True)
            while True:
                time.sleep(0.01)
        """,
    )
    code, out, errors = await finished(script, interrupt_at="\n")
    assert code in (130, -signal.SIGINT)
    assert errors.strip().endswith("KeyboardInterrupt")
    received = bare_platform.gateway.received(out.strip())
    assert (received.info["status"], len(received.metrics)) == ("KILLED", 1000)


async def test_ctrl_c_while_it_waits(bare_platform: LocalPlatform) -> None:
    """Ctrl-C interrupts a wait for the service at once; what remains is reported at the end."""
    script = program(
        bare_platform,
        """
        run = blocking.start_run(close_timeout=0.2, **arguments)
        print("ready", flush=True)
        sys.stdin.readline()
        run.log_metric("loss", 0.5)
        try:
            print("waits", flush=True)
            run.flush()
        except KeyboardInterrupt:
            print("interrupted")
        """,
    )
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=-1
    )
    assert child.stdout is not None
    assert child.stdin is not None
    with not_outlived_by(child):
        assert await child.stdout.readline() == b"ready\n"
        await bare_platform.gateway.down()
        child.stdin.write(b"\n")
        await child.stdin.drain()
        assert await child.stdout.readline() == b"waits\n"
        await asyncio.sleep(0.1)
        began = time.monotonic()
        child.send_signal(signal.SIGINT)
        async with asyncio.timeout(60):
            out, errors = await child.communicate()
    assert time.monotonic() - began < 30.0
    assert out == b"interrupted\n"
    assert b"1 record was not delivered" in errors


def test_a_thread_that_goes_on_at_the_end() -> None:
    """What a daemon thread logs after the end is dropped, said once, and nothing hangs."""
    script = textwrap.dedent(
        """
        import sys, threading, time
        import adp_async
        from adp_async.testing import FakeBlockingSession
        session = FakeBlockingSession(linger=60.0).open()
        run = session.start_run()
        def work():
            while True:
                run.log_metric("loss", 0.5)
                time.sleep(0.0001)
        threading.Thread(target=work, daemon=True).start()
        time.sleep(0.1)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "")
    told = "records are dropped: the session cannot be used: the interpreter is ending\n"
    assert done.stderr in ("", told)
