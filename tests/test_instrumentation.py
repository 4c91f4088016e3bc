"""Hooks: what they are told, that nothing they do harms delivery, and that they can be undone."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import os
import threading
import traceback
from typing import TYPE_CHECKING, Any, Final

import attrs
import pytest

import adp_async
from adp_async import ConnectionLost, NotFound, RetryPolicy, ServiceFault, instrumentation
from adp_async.instrumentation import (
    HOOKS,
    Attempt,
    BatchSettled,
    CallEnded,
    CallStarted,
    Hold,
    SessionClosed,
    SessionOpened,
    instrument,
    watching,
)
from adp_async.testing import FakeBlockingSession, FakeSession

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BATCH: Final = "log_experiment_run_batch"
GET: Final = "get_experiment_run_by_id"
FACTS: Final = {
    "on_session_opened": SessionOpened,
    "on_session_closed": SessionClosed,
    "on_call_started": CallStarted,
    "on_call_ended": CallEnded,
    "on_attempt": Attempt,
    "on_batch_settled": BatchSettled,
    "on_hold": Hold,
}


class Notes:
    """Keeps every fact, with the thread it came from."""

    def __init__(self) -> None:
        self.facts: list[tuple[type, Any, int]] = []

    def _note(self, fact: Any) -> None:
        self.facts.append((type(fact), fact, threading.get_ident()))

    on_session_opened = on_session_closed = on_call_started = on_call_ended = _note
    on_attempt = on_batch_settled = on_hold = _note

    def of(self, kind: type) -> list[Any]:
        return [fact for each, fact, _ in self.facts if each is kind]

    def threads(self, kind: type) -> set[int]:
        return {thread for each, _, thread in self.facts if each is kind}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests may have left sessions open in this process."""
    monkeypatch.setattr(watching, "_sessions", {})


@pytest.fixture
def notes() -> Iterator[Notes]:
    kept = Notes()
    with adp_async.instrument(kept):
        yield kept
    assert all(getattr(watching, name) == () for name in HOOKS)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110 - facts come from another thread
            await asyncio.sleep(0.002)


# ------------------------------------------------------------------ what is told


async def test_a_direct_call(notes: Notes) -> None:
    """Its beginning, its requests and its end, in the caller's own task and in this order."""
    async with FakeSession(endpoint="https://aidp.example.com:8443") as session:
        run_id = session.add_run()
        await session.runs.get(run_id)

    order = [kind for kind, _, _ in notes.facts if kind in (CallStarted, Attempt, CallEnded)]
    assert order == [CallStarted, Attempt, CallEnded]
    (started,), (attempt,), (ended,) = map(notes.of, order)
    assert attrs.astuple(started) == (GET, "GET", "mlflow/runs/get", "aidp.example.com", 8443)
    assert (attempt.operation, attempt.method, attempt.status) == (GET, "GET", 200)
    assert (attempt.server_address, attempt.server_port) == ("aidp.example.com", 8443)
    assert attempt.request_id == ended.request_id == "fake-1"
    assert attempt.call is ended.started is started
    assert (ended.attempts, ended.status, ended.error, attempt.error) == (1, 200, None, None)
    assert 0.0 <= attempt.seconds <= ended.seconds < 5.0
    assert notes.threads(CallStarted) == notes.threads(Attempt) == {threading.get_ident()}


async def test_a_call_that_is_retried(notes: Notes) -> None:
    """Each request counts, with its error; the end has what the caller got."""
    async with FakeSession() as session:
        run_id = session.add_run()
        session.answer(GET, status=503, times=2)
        await session.runs.get(run_id)

    attempts, (ended,) = notes.of(Attempt), notes.of(CallEnded)
    assert [each.status for each in attempts] == [503, 503, 200]
    assert [type(each.error) for each in attempts] == [ServiceFault, ServiceFault, type(None)]
    assert (ended.attempts, ended.status, ended.error) == (3, 200, None)


async def test_a_call_that_fails(notes: Notes) -> None:
    """The error is the one that is raised, with its status."""
    async with FakeSession() as session:
        with pytest.raises(NotFound) as caught:
            await session.runs.get("nobody")

    (ended,) = notes.of(CallEnded)
    assert ended.error is caught.value
    assert (ended.attempts, ended.status) == (1, 404)


async def test_a_request_without_a_reply(notes: Notes) -> None:
    """It has no status, and the id that was sent."""
    async with FakeSession(retry=RetryPolicy(max_attempts=1)) as session:
        session.answer(GET, ConnectionLost("gone"))
        with pytest.raises(ConnectionLost):
            await session.runs.get("r", request_id="support-1")

    (attempt,), (ended,) = notes.of(Attempt), notes.of(CallEnded)
    assert (attempt.status, attempt.request_id) == (ended.status, ended.request_id)
    assert (attempt.status, attempt.request_id) == (None, "support-1")
    assert isinstance(attempt.error, ConnectionLost)


async def test_a_call_that_is_cancelled(notes: Notes) -> None:
    """It has ended as well, by the cancellation."""
    async with FakeSession(retry=RetryPolicy(first_backoff=60.0)) as session:
        session.answer(GET, status=503)
        calling = asyncio.ensure_future(session.runs.get("r"))
        await until(lambda: bool(notes.of(Attempt)))
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling

    (ended,) = notes.of(CallEnded)
    assert isinstance(ended.error, asyncio.CancelledError)


async def test_a_raw_call(notes: Notes) -> None:
    """`fetch` and `call` are told alike, once each."""
    endpoint = adp_async.Endpoint("GET", "mlflow/runs/get", operation=GET)
    async with FakeSession() as session:
        run_id = session.add_run()
        await session.fetch(endpoint, query={"run_id": run_id})
        await session.call(endpoint, query={"run_id": run_id})

    assert [each.operation for each in notes.of(CallStarted)] == [GET, GET]
    assert [each.attempts for each in notes.of(CallEnded)] == [1, 1]


async def test_a_batch(notes: Notes) -> None:
    """Told from the thread that delivers: the request, and what became of the records."""
    async with FakeSession() as session:
        run = session.attach_run(session.add_run("r"))
        run.log_metrics({"loss": 0.5, "acc": 0.25})
        run.log_param("lr", 0.1)
        await run.flush()
        stats = session.logger.stats()

    settled = notes.of(BatchSettled)
    assert {each.run_id for each in settled} == {"r"}
    assert sum(each.delivered for each in settled) == stats.delivered == 3
    assert all((each.rejected, each.dropped) == ({}, 0) for each in settled)
    assert all(0.0 < each.seconds < 5.0 for each in settled)
    batches = [each for each in notes.of(Attempt) if each.operation == BATCH]
    assert len(batches) == stats.requests
    assert all(each.call is None for each in batches)
    assert threading.get_ident() not in notes.threads(BatchSettled)


async def test_what_is_refused_and_dropped(notes: Notes) -> None:
    """The counts of all batches are those of the statistics, by the class of the error."""
    refusal = {"error_code": "INVALID_PARAMETER_VALUE", "message": "no"}
    async with FakeSession() as session:
        run = session.attach_run(session.add_run())
        run.log_params({"lr": 0.1, "seed": 1})
        await run.flush()
        run.log_params({"lr": 0.2, "seed": 1, "depth": 3})
        assert await run.try_flush() is not None
        session.answer(BATCH, refusal, status=400, times=1)
        run.log_metric("loss", 1.0)
        assert await run.try_flush() is not None
        stats = session.logger.stats()
        session.logger._delivery.accumulator.rejections.take(None)

    rejected: dict[str, int] = {}
    for each in notes.of(BatchSettled):
        for name, count in each.rejected.items():
            rejected[name] = rejected.get(name, 0) + count
    assert rejected == stats.rejected == {"BadRequest": 2}
    assert sum(each.delivered for each in notes.of(BatchSettled)) == stats.delivered == 4


async def test_a_hold(notes: Notes) -> None:
    """A 429 is told with what was asked for, and with what it means for the others."""
    async with FakeSession() as session:
        session.answer(BATCH, status=429, headers={"retry-after": "0.1"}, times=1)
        run = session.attach_run(session.add_run())
        run.log_metric("loss", 1.0)
        await run.flush()
        stats = session.logger.stats()

    (hold,) = notes.of(Hold)
    assert (hold.operation, hold.retry_after, stats.throttled) == (BATCH, 0.1, 1)
    assert 0.1 <= hold.seconds < 3.0
    assert hold.rate is not None
    assert hold.rate > 0.0
    waited = [each.waited for each in notes.of(Attempt) if each.operation == BATCH]
    assert len(waited) == 2


async def test_a_call_waits_for_its_turn(notes: Notes) -> None:
    """How long it waited for a hold is told apart from how long the service took."""
    async with FakeSession() as session:
        run_id = session.add_run()
        session.answer(GET, status=429, headers={"retry-after": "0.1"}, times=1)
        await session.runs.get(run_id)

    first, second = notes.of(Attempt)
    (ended,) = notes.of(CallEnded)
    assert (first.status, second.status) == (429, 200)
    assert second.waited + first.seconds + second.seconds <= ended.seconds
    assert ended.seconds >= 0.1


async def test_sessions(notes: Notes) -> None:
    """Opened and closed once each; the last counts are complete."""
    async with FakeSession(endpoint="https://aidp.example.com") as session:
        (opened,) = notes.of(SessionOpened)
        assert (opened.platform_id, opened.workspace) == (
            session.settings.platform_id,
            session.settings.workspace,
        )
        assert opened.endpoint == "https://aidp.example.com"
        run = session.attach_run(session.add_run())
        run.log_metric("loss", 1.0)
        assert opened.stats().accepted == 1
        assert opened.health().status == "ok"
        assert notes.of(SessionClosed) == []

    (closed,) = notes.of(SessionClosed)
    assert closed.session is opened
    assert (closed.stats.accepted, closed.stats.delivered) == (1, 1)
    assert opened.stats() == closed.stats


async def test_a_session_that_is_open_already() -> None:
    """Late hooks hear of it at once, and of its end."""
    async with FakeSession():
        late = Notes()
        with instrument(late):
            assert len(late.of(SessionOpened)) == 1
    assert late.of(SessionClosed) == []  # undone before
    with instrument(Notes()) as handle:
        assert repr(handle).startswith("<Instrumentation on_session_opened")
        handle.undo()
        assert repr(handle) == "<Instrumentation undone>"


def test_the_blocking_face(notes: Notes) -> None:
    """Its calls are told as well."""
    with FakeBlockingSession() as session:
        with session.start_run("digits") as run:
            run.log_metric("loss", 0.5)
        operations = {each.started.operation for each in notes.of(CallEnded)}
    assert "create_experiment_run" in operations
    assert "update_experiment_run" in operations
    assert sum(each.delivered for each in notes.of(BatchSettled)) == 1
    assert len(notes.of(SessionOpened)) == len(notes.of(SessionClosed)) == 1


WHO: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")


@pytest.mark.parametrize("is_blocking", [False, True])
def test_context_variables_are_the_callers(is_blocking: bool) -> None:
    """A trace finds its parent, with and without an event loop."""
    seen: list[tuple[str, str]] = []

    class Hooks:
        def on_call_started(self, call: CallStarted) -> None:
            seen.append((call.operation, WHO.get()))

        def on_call_ended(self, ended: CallEnded) -> None:
            seen.append((ended.started.operation, WHO.get()))

    async def call() -> None:
        async with FakeSession() as session:
            run_id = session.add_run()
            WHO.set("async")
            await session.runs.get(run_id)

    with instrument(Hooks()):
        if is_blocking:
            with FakeBlockingSession() as session:
                run_id = session.session.add_run()
                token = WHO.set("blocking")
                session.runs.get(run_id)
                WHO.reset(token)
        else:
            asyncio.run(call())
    assert seen == [(GET, "blocking" if is_blocking else "async")] * 2


# ------------------------------------------------------------------ harm


class Evil(BaseException):
    pass


RAISED: Final = [ValueError, Evil, asyncio.CancelledError, SystemExit, KeyboardInterrupt]


@pytest.mark.parametrize("error", [*RAISED, GeneratorExit, StopIteration, MemoryError])
async def test_a_hook_that_raises_in_the_delivery_thread(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever it is: everything is delivered, other hooks are told, and it is logged once."""

    class Hooks:
        def on_attempt(self, attempt: Attempt) -> None:
            if attempt.operation == BATCH:
                raise error("with a secret")

        def on_batch_settled(self, settled: BatchSettled) -> None:
            raise error

        def on_hold(self, hold: Hold) -> None:
            raise error

        def on_session_closed(self, closed: SessionClosed) -> None:
            raise error

    others = Notes()
    with instrument(Hooks()), instrument(others):
        async with FakeSession() as session:
            session.answer(BATCH, status=429, headers={"retry-after": "0.01"}, times=1)
            run = session.attach_run(session.add_run())
            for step in range(5):
                run.log_metric("loss", 1.0, step)
                await run.flush()
            assert session.logger.stats().delivered == 5
    assert sum(each.delivered for each in others.of(BatchSettled)) == 5
    assert len(others.of(SessionClosed)) == 1
    said = [each for each in caplog.records if "the hook" in each.getMessage()]
    assert len(said) == 4
    assert all(
        each.levelno == logging.ERROR and error.__name__ in each.getMessage() for each in said
    )
    assert not [each for each in caplog.records if "delivery ended" in each.getMessage()]


@pytest.mark.parametrize("error", [ValueError, Evil, asyncio.CancelledError, GeneratorExit])
@pytest.mark.parametrize("hook", ["on_call_started", "on_attempt", "on_call_ended"])
async def test_a_hook_that_raises_in_a_call(hook: str, error: type[BaseException]) -> None:
    """The call returns what it would have returned."""

    def fail(fact: object) -> None:
        raise error

    with instrument(type("Hooks", (), {hook: staticmethod(fail)})()):
        async with FakeSession() as session:
            run = await session.runs.get(session.add_run("r"))
    assert run.info.run_id == "r"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
async def test_ctrl_c_during_a_hook(error: type[BaseException]) -> None:
    """In the main thread a signal's exception may come up in a hook, and is not the hook's."""

    class Hooks:
        def on_call_ended(self, ended: CallEnded) -> None:
            raise error

    async with FakeSession() as session:
        run_id = session.add_run()
        with instrument(Hooks()):
            call = session.runs.get(run_id)
            with pytest.raises(error):
                await call


async def test_a_log_handler_that_raises_as_well() -> None:
    """There is nowhere left to say it, and delivery goes on."""

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())
            raise ValueError

    lines: list[str] = []

    class Hooks:
        def on_batch_settled(self, settled: BatchSettled) -> None:
            raise ValueError

    broken = Broken()
    logging.getLogger("adp_async").addHandler(broken)
    try:
        with instrument(Hooks()):
            async with FakeSession() as session:
                run = session.attach_run(session.add_run())
                await run.log_metric("loss", 1.0)
    finally:
        logging.getLogger("adp_async").removeHandler(broken)
    assert [line for line in lines if "the hook" in line]


async def test_a_hook_that_logs_and_undoes_itself() -> None:
    """It may use the session it is told of, and take itself back from within."""
    told: list[BatchSettled] = []

    class Hooks:
        def on_batch_settled(self, settled: BatchSettled) -> None:
            told.append(settled)
            handle.undo()
            run.log_metric("batches", len(told))

    async with FakeSession() as session:
        run = session.attach_run(session.add_run())
        handle = instrument(Hooks())
        run.log_metric("loss", 1.0)
        await until(lambda: session.logger.stats().delivered == 2)
        await run.flush()
    assert len(told) == 1
    assert [each.key for each in session.received(run.run_id).metrics] == ["loss", "batches"]


# ------------------------------------------------------------------ the handle


async def test_undone() -> None:
    """Nothing more is told; undoing twice, or calling the handle, is the same."""
    first, second = Notes(), Notes()
    handle, other = instrument(first), instrument(second)
    handle.undo()
    handle()
    async with FakeSession() as session:
        await session.runs.get(session.add_run())
    assert first.facts == []
    assert len(second.of(CallEnded)) == 1
    other()
    assert all(getattr(watching, name) == () for name in HOOKS)


async def test_the_same_hooks_twice() -> None:
    """They are told twice, and each handle takes back its own."""
    notes = Notes()
    with instrument(notes), instrument(notes):
        async with FakeSession() as session:
            await session.runs.get(session.add_run())
    assert len(notes.of(CallEnded)) == 2


@pytest.mark.parametrize("name", HOOKS)
async def test_each_hook_alone(name: str) -> None:
    """An object may have any of them, and gets that fact and no other."""
    told: list[object] = []
    with instrument(type("Hooks", (), {name: staticmethod(told.append)})()):
        async with FakeSession() as session:
            session.answer(BATCH, status=429, headers={"retry-after": "0.01"}, times=1)
            run = session.attach_run(session.add_run())
            await session.runs.get(run.run_id)
            await run.log_metric("loss", 1.0)
    assert {type(each) for each in told} == {FACTS[name]}


class Misspelt:
    def on_atempt(self, fact: object) -> None: ...


class Coroutine:
    async def on_attempt(self, fact: object) -> None: ...


class NotCallable:
    on_attempt = 1


@pytest.mark.parametrize(
    ("hooks", "said"),
    [
        (object(), "object has no hook"),
        (None, "NoneType has no hook"),
        (Notes, "not the class Notes"),
        (Misspelt(), "Misspelt.on_atempt is not a hook; they are on_session_opened,"),
        (Coroutine(), "Coroutine.on_attempt is a coroutine function"),
        (NotCallable(), "NotCallable.on_attempt cannot be called"),
    ],
    ids=["nothing", "None", "a class", "misspelt", "coroutine", "not callable"],
)
def test_wrong_hooks(hooks: object, said: str) -> None:
    """A mistake is told at once, with the name, and nothing is registered."""
    with pytest.raises(TypeError) as caught:
        instrument(hooks)
    assert said in str(caught.value)
    assert all(getattr(watching, name) == () for name in HOOKS)


# ------------------------------------------------------------------ facts

OBVIOUS: Final = {
    "method", "operation", "platform_id", "workspace", "started", "run_id", "request_id",
    "server_address", "server_port",
}  # fmt: skip


@pytest.mark.parametrize("kind", FACTS.values(), ids=lambda kind: kind.__name__)
def test_facts(kind: type) -> None:
    """Each is frozen, and its docstring names all its fields."""
    explained = inspect.getdoc(kind) or ""
    for field in attrs.fields(kind):
        assert field.name in explained or field.name in OBVIOUS, field.name
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        object.__new__(kind).run_id = 1  # type: ignore[attr-defined]


def test_the_table_is_complete() -> None:
    """The module's table has every hook with its fact."""
    table = inspect.getdoc(instrumentation) or ""
    assert tuple(FACTS) == HOOKS
    for name, kind in FACTS.items():
        (row,) = [line for line in table.splitlines() if line.startswith(f"`{name}`")]
        assert f"`{kind.__name__}`" in row


async def test_no_hooks_no_frames() -> None:
    """Without hooks a call goes its usual way: nothing of them is in a traceback."""
    async with FakeSession() as session:
        with pytest.raises(NotFound) as caught:
            await session.runs.get("nobody")
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert not [each for each in frames if "observing" in each.filename]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
async def test_a_forked_child() -> None:
    """The parent's session is not the child's: late hooks there hear of none."""
    async with FakeSession():
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            notes = Notes()
            instrument(notes)
            os.write(writing, b"%d" % len(notes.facts))
            os._exit(0)
        os.waitpid(pid, 0)  # noqa: ASYNC222 - it ends at once
        assert os.read(reading, 9) == b"0"
        os.close(reading)
        os.close(writing)
        with instrument(late := Notes()):
            assert len(late.of(SessionOpened)) == 1
