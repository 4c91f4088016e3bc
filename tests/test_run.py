"""A run's handle: how it begins, how it ends whatever its body does, and what it shows."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import textwrap
import time
from typing import TYPE_CHECKING, Any

import anyio
import msgspec
import pytest
from children import not_outlived_by

from adp_async.entities import Dataset, DatasetInput
from adp_async.errors import (
    AdpError,
    Closed,
    DeliveryError,
    InvalidRecord,
    NotFound,
    ServiceFault,
)
from adp_async.testing import FakeSession

if TYPE_CHECKING:
    from collections.abc import Callable

    from adp_async import Run

LOG_BATCH = "log_experiment_run_batch"
UPDATE = "update_experiment_run"


def status(session: FakeSession, run: Run) -> str:
    return str(session.received(run.run_id).info["status"])


def operations(session: FakeSession) -> list[str]:
    return [request.operation for request in session.requests]


class OwnError(Exception):
    """The caller's own."""


# Beginning ----------------------------------------------------------------------------------------


async def test_a_run_from_beginning_to_end() -> None:
    """Created with its name, tags and params, logged into, FINISHED with an end time."""
    async with FakeSession(linger=60.0) as session:
        began = time.time() * 1000 - 1
        async with session.start_run(
            "digits", run_name="sgd", params={"lr": 0.1}, tags={"team": "vision"}, source=False
        ) as run:
            assert run.run_name == "sgd"
            assert run.experiment_id == "1"
            assert run.status is None
            run.log_metric("loss", 0.5, step=3)
            assert status(session, run) == "RUNNING"
        assert run.status == "FINISHED"
        received = session.received(run.run_id)
        assert received.info["status"] == "FINISHED"
        assert began <= received.info["start_time"] <= received.info["end_time"]
        assert received.tags == [("team", "vision")]
        assert received.params == [("lr", "0.1")]
        assert [(metric.key, metric.value, metric.step) for metric in received.metrics] == [
            ("loss", 0.5, 3)
        ]
        assert operations(session) == [
            "get_experiment_by_name",
            "create_experiment",
            "create_experiment_run",
            LOG_BATCH,
            UPDATE,
        ]


async def test_awaited_in_place_of_entered() -> None:
    """``run = await session.start_run()`` leaves the end to `finish`, as a notebook wants it."""
    async with FakeSession() as session:
        run = await session.start_run()
        receipt = run.log_metric("loss", 0.5)
        await run.finish("FAILED")
        assert receipt.delivered
        assert run.status == status(session, run) == "FAILED"


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        ({"params": {"lr": 0.1, "": 1}}, "''"),
        ({"params": {"k" * 251: 1}}, "250"),
        ({"params": {"lr": "x" * 6001}}, "6000"),
        ({"params": {"line\nbreak": 1}}, "control"),
        ({"tags": {"team": "x" * 8001}}, "8000"),
        ({"tags": {7: "x"}}, "7"),
        ({"params": {"lr": 1}, "tags": {"bad\x00": "x"}}, "control"),
        ({"params": {"text": "\ud800"}}, "surrogate"),
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_bad_params_and_tags_create_nothing(arguments: Any, culprit: str) -> None:
    """They are looked at before the first request; the error names run, key and rule."""
    async with FakeSession() as session:
        with pytest.raises(InvalidRecord, match=culprit) as caught:
            session.start_run("digits", run_name="sgd", **arguments)
        assert "'sgd' (not yet created)" in str(caught.value)
        assert session.requests == []


async def test_a_create_that_fails() -> None:
    """Nothing is entered, the error is the service's, and the body isn't run."""
    async with FakeSession() as session:
        session.answer("create_experiment_run", {"code": "Odd"}, status=404)
        with pytest.raises(NotFound, match="Odd"):
            async with session.start_run():
                pytest.fail("there is no run")


@pytest.mark.parametrize(
    "answer",
    [{}, {"run": {"info": {}}}, {"run": {"info": {"run_id": "a\nb"}}}, b"<html>"],
    ids=repr,
)
async def test_a_create_whose_reply_makes_no_sense(answer: object) -> None:
    """A 200 without a run's id can't be used, and is an error."""
    async with FakeSession() as session:
        session.answer("create_experiment_run", answer)
        with pytest.raises(AdpError, match="run"):
            await session.start_run(offline=False)


async def test_a_create_whose_reply_is_spoilt_once() -> None:
    """It is asked again with its token, and what was created is found: no ghost run."""
    async with FakeSession() as session:
        session.answer("create_experiment_run", b"<html>", times=1, after_write=True)
        await session.start_run()
        assert len({request.headers["opc-retry-token"] for request in session.requests}) == 1


async def test_attached() -> None:
    """A handle of a run that exists needs no request; as a context manager it only flushes."""
    async with FakeSession() as session:
        run_id = session.add_run()
        async with session.attach_run(run_id) as run:
            assert (run.run_id, run.run_name, run.experiment_id) == (run_id, None, None)
            assert session.requests == []
            receipt = run.log_metric("loss", 0.5)
        assert receipt.delivered
        assert operations(session) == [LOG_BATCH]
        assert status(session, run) == "RUNNING"


@pytest.mark.parametrize("run_id", ["", None, 7, b"r"], ids=repr)
async def test_attached_to_nothing(run_id: Any) -> None:
    """A run's id is text that isn't empty."""
    async with FakeSession() as session:
        with pytest.raises(ValueError, match="run id"):
            session.attach_run(run_id)
        with pytest.raises(ValueError, match="run id"):
            session.logger.log_metric(run_id, "loss", 0.5)


async def test_two_handles_of_one_run() -> None:
    """They log into the same run, in the order of the calls, and each flushes both."""
    async with FakeSession(linger=60.0) as session:
        run_id = session.add_run()
        one, other = session.attach_run(run_id), session.attach_run(run_id)
        for number in range(10):
            (one, other)[number % 2].set_tag("last", number)
        session.logger.set_tag(run_id, "last", 10)
        await one.flush()
        assert session.received(run_id).tags == [("last", "10")]


# Ending -------------------------------------------------------------------------------------------


async def ended_by(session: FakeSession, body: Any) -> tuple[Run, BaseException | None]:
    """Start a run, log a point, do *body*, and say what came out."""
    run = None
    try:
        async with session.start_run() as run:
            run.log_metric("loss", 0.5)
            await body()
    except BaseException as error:
        assert run is not None
        return run, error
    assert run is not None
    return run, None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OwnError("no"), "FAILED"),
        (ExceptionGroup("two", [OwnError("no")]), "FAILED"),
        (SystemExit(1), "FAILED"),
        (SystemExit("a message"), "FAILED"),
        (SystemExit(0), "FINISHED"),
        (SystemExit(), "FINISHED"),
        (KeyboardInterrupt(), "KILLED"),
        (asyncio.CancelledError(), "KILLED"),
        (GeneratorExit(), "KILLED"),
    ],
    ids=repr,
)
async def test_the_bodys_error(error: BaseException, expected: str) -> None:
    """It comes out as it is, and says how the run ended; what was accepted is delivered."""

    async def body() -> None:
        raise error

    async with FakeSession(linger=60.0) as session:
        run, caught = await ended_by(session, body)
        assert caught is error
        assert not hasattr(caught, "__notes__")
        assert status(session, run) == run.status == expected
        assert len(session.received(run.run_id).metrics) == 1


async def test_a_body_that_finished_the_run() -> None:
    """A status that was given in the body stays."""
    async with FakeSession() as session:
        async with session.start_run() as run:
            await run.finish("FAILED")
        assert status(session, run) == "FAILED"
        assert operations(session).count(UPDATE) == 1


async def cancelled_run(
    session: FakeSession, entered: Callable[[], object], runs: list[Run]
) -> None:
    async with session.start_run() as run:
        runs.append(run)
        for step in range(1500):
            run.log_metric("loss", 0.5, step=step)
        run.log_param("lr", 0.1)
        entered()
        await asyncio.sleep(60)


def check_killed(session: FakeSession, run: Run) -> None:
    assert status(session, run) == "KILLED"
    received = session.received(run.run_id)
    assert len(received.metrics) == 1500
    assert received.params == [("lr", "0.1")]


async def test_a_task_that_is_cancelled() -> None:
    """KILLED, and everything that was accepted is delivered before the task ends."""
    async with FakeSession(linger=60.0) as session:
        entered, runs = asyncio.Event(), list[Any]()
        task = asyncio.create_task(cancelled_run(session, entered.set, runs))
        await entered.wait()
        task.cancel("enough")
        with pytest.raises(asyncio.CancelledError):
            await task
        check_killed(session, runs[0])


async def test_a_deadline() -> None:
    """asyncio.timeout around a run is a TimeoutError of the caller's, and the run is KILLED."""
    async with FakeSession(linger=60.0) as session:
        runs: list[Any] = []
        now = asyncio.get_running_loop().time
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(None) as limit:
                await cancelled_run(session, lambda: limit.reschedule(now()), runs)
        check_killed(session, runs[0])


async def test_a_deadline_of_anyio() -> None:
    """A cancel scope, whose cancellation comes again and again, doesn't keep a run from ending."""
    async with FakeSession(linger=60.0) as session:
        runs: list[Any] = []
        with anyio.CancelScope() as scope:
            now = anyio.current_time
            await cancelled_run(session, lambda: setattr(scope, "deadline", now()), runs)
        assert scope.cancelled_caught
        check_killed(session, runs[0])


async def test_a_sibling_that_fails() -> None:
    """In a task group the run's task is cancelled: KILLED; the group holds the other's error."""
    async with FakeSession(linger=60.0) as session:
        entered, runs = asyncio.Event(), list[Any]()

        async def sibling() -> None:
            await entered.wait()
            raise OwnError

        async def family() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(cancelled_run(session, entered.set, runs))
                group.create_task(sibling())

        with pytest.raises(ExceptionGroup) as caught:
            await family()
        assert [type(error) for error in caught.value.exceptions] == [OwnError]
        check_killed(session, runs[0])


async def test_what_was_refused_is_said_at_the_end() -> None:
    """Leaving raises DeliveryError for it; the run is FINISHED all the same."""
    async with FakeSession() as session:

        async def body() -> None:
            session.attach_run(next(iter(session.service.store.runs))).log_param("b@d", 1)

        run, caught = await ended_by(session, body)
        assert isinstance(caught, DeliveryError)
        assert caught.key == "b@d"
        assert status(session, run) == "FINISHED"


async def test_what_was_refused_stands_behind_the_bodys_error() -> None:
    """The caller's error comes out bare, with a note about the records."""
    mistake = OwnError("no")

    async with FakeSession() as session:

        async def body() -> None:
            session.attach_run(next(iter(session.service.store.runs))).log_param("b@d", 1)
            raise mistake

        run, caught = await ended_by(session, body)
        assert caught is mistake
        assert len(mistake.__notes__) == 1
        assert mistake.__notes__[0].startswith("adp_async: DeliveryError: ")
        assert "'b@d'" in mistake.__notes__[0]
        assert status(session, run) == "FAILED"


async def test_the_end_is_bounded() -> None:
    """With the service gone, leaving takes *close_timeout* and says what isn't delivered yet."""
    async with FakeSession(close_timeout=2.0) as session:
        run = await session.start_run()
        session.answer(LOG_BATCH, status=503)
        run.log_metric("loss", 0.5)
        began = time.monotonic()
        with pytest.raises(DeliveryError, match="1 record not delivered yet") as caught:
            await run._leave(None)
        assert 0.5 < time.monotonic() - began < 20.0
        assert caught.value.undelivered == 1
        assert status(session, run) == "FINISHED", "the status has its part of the time"
        with pytest.raises(DeliveryError):
            await session.close()


async def test_a_status_that_cannot_be_set() -> None:
    """It is reported, after other errors, and the handle doesn't claim the status."""
    async with FakeSession(close_timeout=2.0) as session:
        run = await session.start_run()
        session.answer(UPDATE, {"code": "Odd"}, status=500)
        run.log_param("b@d", 1)
        with pytest.raises(DeliveryError, match="'b@d'") as caught:
            await run._leave(None)
        assert "500 Odd" in caught.value.__notes__[0]
        assert run.status is None
        with pytest.raises(ServiceFault):
            await run.finish()


async def test_finish_with_refused_records() -> None:
    """`finish` raises what was refused, and sets the status all the same."""
    async with FakeSession() as session:
        run = await session.start_run()
        run.log_param("b@d", 1)
        with pytest.raises(DeliveryError):
            await run.finish()
        assert status(session, run) == "FINISHED"


async def test_leaving_after_the_session() -> None:
    """A run that outlives its session is an error when it ends."""
    async with FakeSession() as session:
        run = await session.start_run()
    with pytest.raises(Closed, match="closed"):
        await run._leave(None)


async def test_many_runs_at_once() -> None:
    """Each run of a hundred gets its own records and its own end."""

    async def train(session: FakeSession, number: int) -> Run:
        async with session.start_run("digits", run_name=f"run {number}") as run:
            for step in range(50):
                run.log_metric("loss", number + step / 100, step=step)
                await asyncio.sleep(0)
        return run

    async with FakeSession(close_timeout=60.0) as session:
        runs = await asyncio.gather(*(train(session, number) for number in range(100)))
        for number, run in enumerate(runs):
            received = session.received(run.run_id)
            assert [metric.value for metric in received.metrics] == [
                number + step / 100 for step in range(50)
            ]
            assert received.info["status"] == "FINISHED"


# What else a run can do ---------------------------------------------------------------------------


async def test_inputs() -> None:
    """`log_inputs` is a direct call with the run's id."""
    async with FakeSession() as session:
        session.answer("log_experiment_run_inputs")
        run = await session.start_run()
        dataset = Dataset(name="digits", digest="d", source_type="local", source="sklearn")
        await run.log_inputs([DatasetInput(dataset)])
        body = msgspec.json.decode(session.requests[-1].body)
        assert body["run_id"] == run.run_id
        assert body["dataset_inputs"][0]["dataset"]["name"] == "digits"


async def test_repr() -> None:
    """It shows the id, the name, the status and the counts."""
    async with FakeSession(linger=60.0) as session:
        run = await session.start_run(run_name="sgd")
        await run.log_metric("loss", 0.5)
        run.log_metric("loss", 0.4)
        assert repr(run) == f"<Run {run.run_id} 'sgd' | 1 delivered | 1 waiting | 0 rejected>"
        await run.finish()
        assert repr(run) == (
            f"<Run {run.run_id} 'sgd' | FINISHED | 2 delivered | 0 waiting | 0 rejected>"
        )


async def test_in_a_notebook() -> None:
    """It shows itself as a table, and a name is not markup."""
    async with FakeSession() as session:
        run = await session.start_run(run_name="<script>alert('x')</script>")
        shown = run._repr_html_()
        assert shown.startswith("<table>")
        assert "<script>" not in shown
        assert "&lt;script&gt;" in shown
        assert "RUNNING" in shown
        await run.finish("KILLED")
        assert "KILLED" in run._repr_html_()


INTERRUPTED = """
    import asyncio, sys
    from adp_async.testing import FakeSession

    async def main():
        global session, run
        async with FakeSession(linger=60.0) as session:
            async with session.start_run() as run:
                run.log_metric("loss", 0.5)
                print("ready", flush=True)
                {wait}

    try:
        asyncio.run(main())
    except KeyboardInterrupt as error:
        print("KeyboardInterrupt", getattr(error, "__notes__", ""))
    received = session.received(run.run_id)
    print(received.info["status"], len(received.metrics))
"""


@pytest.mark.parametrize(
    "wait",
    [
        "await asyncio.sleep(60)",
        "while True: await asyncio.sleep(0)",
        "import time; time.sleep(0.5); await asyncio.sleep(60)",
    ],
    ids=["awaiting", "busy", "in synchronous code"],
)
def test_ctrl_c(wait: str) -> None:
    """Ctrl-C: the run is KILLED, its records are delivered, KeyboardInterrupt comes out."""
    script = textwrap.dedent(INTERRUPTED.format(wait=wait))
    with (
        subprocess.Popen(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as child,
        not_outlived_by(child),
    ):
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        out, errors = child.communicate(timeout=120)
    assert errors == ""
    assert out.splitlines() == ["KeyboardInterrupt ", "KILLED 1"]
