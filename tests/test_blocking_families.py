"""The operations for code without an event loop: all of them, as the asynchronous session's."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from api_samples import ENDPOINT_OF, METHODS, OPERATIONS, arguments_of, filled, invoke
from odd import alone, frames_of_ours

from adp_async import ApiKey, Endpoint, Scope, blocking
from adp_async import Session as AsyncSession
from adp_async.api._family import BlockingListing, Listing
from adp_async.entities import Metric
from adp_async.errors import Closed, NotFound, RequestTimeout, ServiceFault, UnreadableReply
from adp_async.testing import PLATFORM_ID, FakeBlockingSession, FakeSession

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adp_async.local import LocalPlatform

SEARCH = "list_experiment_runs"
TOMORROW = Endpoint("POST", "mlflow/tomorrow/{key}", Scope.PLATFORM, operation="tomorrow")


@pytest.fixture
def session() -> Iterator[FakeBlockingSession]:
    with FakeBlockingSession() as session:
        yield session


def method_of(session: Any, operation: str) -> Any:
    family, method = METHODS[operation].split(".")
    return getattr(getattr(session, family), method)


def reply_to(operation: str) -> Any:
    response = OPERATIONS[operation]["response"]
    return filled(response) if response else b""


def page_of(*run_ids: str, token: str | None = None) -> dict[str, object]:
    runs = [{"info": {"run_id": run_id}} for run_id in run_ids]
    return {"runs": runs, "next_page_token": token}


# The same operations ------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_same_parameters(operation: str) -> None:
    """A method's parameters, its name and what its docstring says are those of its twin."""
    mine = method_of(FakeBlockingSession(), operation)
    twin = method_of(FakeSession(), operation)
    assert inspect.signature(mine) == inspect.signature(twin)
    assert mine.__name__ == twin.__name__
    assert mine.__qualname__ == twin.__qualname__
    assert inspect.getdoc(mine) == (inspect.getdoc(twin) or "").replace("async for", "for")
    assert not inspect.iscoroutinefunction(mine)


def test_no_method_is_missing() -> None:
    """Whatever a family of the asynchronous session shows has a twin, and nothing else has."""
    mine, theirs = FakeBlockingSession(), FakeSession()
    for family in {name.split(".")[0] for name in METHODS.values()}:
        shown = [public(getattr(session, family)) for session in (mine, theirs)]
        assert shown[0] == shown[1], family


def test_nothing_else_is_missing() -> None:
    """Sessions, runs and loggers show the same names as the asynchronous ones."""
    given: Any = {"platform_id": PLATFORM_ID, "workspace": "w", "endpoint": "http://localhost"}
    with FakeBlockingSession() as session:
        run = session.start_run()
        assert public(blocking.Session(**given)) - {"session"} == public(AsyncSession(**given))
        assert public(run) == public(run._run)
        assert public(session.logger) == public(session.session.logger)


def public(thing: object) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_the_same_requests_and_results(operation: str) -> None:
    """Called once, it sends what its twin sends, and returns what its twin returns."""
    arguments = {**arguments_of(operation, required_only=False), "request_id": "7"}
    if ENDPOINT_OF[operation].takes_retry_token:
        arguments["retry_token"] = "token"
    async with FakeSession() as twin:
        twin.answer(operation, reply_to(operation))
        expected = await invoke(twin, operation, arguments)

    def call() -> tuple[Any, Any]:
        with FakeBlockingSession() as session:
            session.session.answer(operation, reply_to(operation))
            found = method_of(session, operation)(**arguments)
            if isinstance(found, BlockingListing):
                found = next(found.pages())
            return found, session.session.requests

    found, requests = await asyncio.to_thread(call)
    assert found == expected
    assert [told(request) for request in requests] == [told(request) for request in twin.requests]


def told(request: Any) -> tuple[object, ...]:
    headers = {name: text for name, text in request.headers.items() if name.lower() != "date"}
    return request.operation, request.method, request.raw_path, headers, request.body


# Listings -----------------------------------------------------------------------------------------


def test_a_listing_is_a_plain_iterator(session: FakeBlockingSession) -> None:
    """Every page is asked for when the one before it is used up, and each ``for`` starts anew."""
    session.session.answer(SEARCH, page_of("1", "2", token="more"), times=1)
    session.session.answer(SEARCH, page_of(), times=1)
    requests = session.session.requests
    listing = session.runs.search()
    assert isinstance(listing, BlockingListing)
    assert not isinstance(listing, Listing)
    assert requests == []
    with pytest.raises(TypeError):
        aiter(listing)  # type: ignore[call-overload]
    found = iter(listing)
    assert requests == []
    assert [next(found).info.run_id, next(found).info.run_id] == ["1", "2"]
    assert len(requests) == 1
    assert list(found) == []
    assert len(requests) == 2
    assert b"more" in requests[1].body

    session.session.answer(SEARCH, page_of("3"))
    assert [run.info.run_id for run in listing] == ["3"]
    assert b"more" not in requests[2].body


def test_pages(session: FakeBlockingSession) -> None:
    """The pages themselves are a plain iterator as well; *page_token* says where they start."""
    session.session.answer(SEARCH, page_of("1", token="b"), times=1)
    session.session.answer(SEARCH, page_of("2"), times=1)
    pages = list(session.runs.search(page_token="a").pages())
    assert [len(page.items) for page in pages] == [1, 1]
    assert [page.next_page_token for page in pages] == ["b", None]
    assert [
        b'"page_token":"%c"' % token in request.body
        for token, request in zip(b"ab", session.session.requests, strict=True)
    ] == [True, True]


@pytest.mark.parametrize("how", ["break", "exception", "close", "forgotten", "session closed"])
def test_leaving_a_listing_early(how: str) -> None:
    """Nothing more is asked for, nothing is left running, and the session closes."""
    with FakeBlockingSession() as session:
        session.session.answer(SEARCH, page_of("1", "2", token="more"))
        found = iter(session.runs.search())
        if how == "break":
            for _ in found:
                break
        elif how == "exception":
            with pytest.raises(ZeroDivisionError):
                [1 / 0 for _ in found]
        else:
            next(found)
        if how == "close":
            found.close()  # type: ignore[attr-defined]
        elif how == "forgotten":
            del found
        assert len(session.session.requests) == 1
        tasks = session.call(tasks_there())
        assert not any("search" in task or "asyncgen" in task for task in tasks)
    if how == "session closed":
        assert next(found).info.run_id == "2"  # of the page that is here
        with pytest.raises(Closed):
            next(found)


async def tasks_there() -> list[str]:
    return [repr(task) for task in asyncio.all_tasks() - {asyncio.current_task()}]


def test_a_listing_that_never_ends(session: FakeBlockingSession) -> None:
    """The same page token twice is an error, as in the asynchronous listing."""
    session.session.answer(SEARCH, page_of("1", token="again"))
    with pytest.raises(UnreadableReply, match="never end"):
        list(session.runs.search())


def test_listings_of_several_threads(session: FakeBlockingSession) -> None:
    """Each thread has its own place in a listing that they share."""
    session.session.answer(SEARCH, page_of("1", "2"))
    listing = session.runs.search()
    found: list[list[str]] = []

    def read() -> None:
        found.append([run.info.run_id for run in listing])

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [["1", "2"]] * 8


# Errors -------------------------------------------------------------------------------------------


def test_an_error_comes_out_as_it_is(session: FakeBlockingSession) -> None:
    """What the service said, with nothing of ours before or behind it."""
    with pytest.raises(NotFound, match="no-such-run") as caught:
        session.runs.get("no-such-run")
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert not hasattr(caught.value, "__notes__")
    assert caught.value.operation == "get_experiment_run_by_id"


def test_an_error_of_a_listing_comes_out_as_it_is(session: FakeBlockingSession) -> None:
    """It is raised where its page is needed, after the items before it."""
    session.session.answer(SEARCH, page_of("1", token="more"), times=1)
    session.session.answer(SEARCH, {"code": "NotFound", "message": "gone"}, status=404)
    found = iter(session.runs.search())
    assert next(found).info.run_id == "1"
    with pytest.raises(NotFound, match="gone") as caught:
        next(found)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    ("doing", "rule"),
    [
        (lambda session: session.runs.get(7), "run_id"),
        (lambda session: session.runs.get(), "run_id"),
        (lambda session: session.runs.search(max_results="x"), "max_results"),
        (lambda session: session.runs.get("1", retries=3), "retries"),
    ],
    ids=["wrong type", "missing", "listing", "unknown"],
)
def test_a_wrong_argument(session: FakeBlockingSession, doing: Any, rule: str) -> None:
    """TypeError at the call, naming it; nothing is sent."""
    with pytest.raises(TypeError, match=rule) as caught:
        doing(session)
    assert alone(caught.value)
    assert frames_of_ours(caught.value) <= (6 if rule == "retries" else 4)
    assert session.session.requests == []


def test_a_closed_session() -> None:
    """Operations and listings raise that it is not open, before and after."""
    session = FakeBlockingSession()
    for is_over in (False, True):
        if is_over:
            session.open().close()
        with pytest.raises(Closed):
            session.runs.get("1")
        with pytest.raises(Closed):
            list(session.runs.search())
        with pytest.raises(Closed):
            session.logger.flush()
        with pytest.raises(Closed):
            session.call(TOMORROW, path={"key": "k"})
        assert not session.is_open


# call, fetch, logger ------------------------------------------------------------------------------


def test_operations_of_tomorrow(session: FakeBlockingSession) -> None:
    """`call` sends an endpoint as the asynchronous one does; `fetch` returns the reply itself."""
    session.session.answer("tomorrow", {"info": {"run_id": "1"}})
    given: dict[str, Any] = {"path": {"key": "a/b"}, "query": {"x": True}, "body": {"y": [1]}}
    assert session.call(TOMORROW, **given) == {"info": {"run_id": "1"}}
    assert session.call(endpoint=TOMORROW, returning=dict, **given)["info"] == {"run_id": "1"}
    assert session.fetch(TOMORROW, **given).body == b'{"info":{"run_id":"1"}}'
    assert {(r.raw_path, r.body) for r in session.session.requests} == {
        (session.session.requests[0].raw_path, b'{"y":[1]}')
    }
    assert session.session.requests[0].raw_path.endswith("/mlflow/tomorrow/a%2Fb?x=true")


def test_a_timeout_of_call(session: FakeBlockingSession) -> None:
    """Of an operation it is `RequestTimeout` with its retries; of anything else TimeoutError."""
    session.session.answer("tomorrow", status=503)
    with pytest.raises((RequestTimeout, ServiceFault)):
        session.call(TOMORROW, path={"key": "k"}, timeout=0.03)
    with pytest.raises(TimeoutError):
        session.call(asyncio.sleep(60), 0.02)


def test_call_of_awaitables(session: FakeBlockingSession) -> None:
    """Coroutines and other awaitables run to their end; anything else is refused."""
    run_id = session.session.add_run()
    assert session.call(session.session.runs.get(run_id)).info.run_id == run_id
    assert session.call(session.session.start_run("digits")).experiment_id == "1"
    for wrong in (7, session.session.runs.get, None):
        with pytest.raises(TypeError, match="an Endpoint or an awaitable, not"):
            session.call(wrong)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="path"):
        session.call(session.session.runs.get(run_id), path={})  # type: ignore[call-overload]


def test_the_logger(session: FakeBlockingSession) -> None:
    """Its ``log_*`` take the run's id; `flush` and `drain` wait, and take a timeout."""
    run_id = session.session.add_run()
    log = session.logger
    receipt = log.log_metric(run_id, "loss", 0.5, step=1)
    log.log_metrics(run_id, {"f1": 0.5, "acc": 1})
    log.log_param(run_id, "lr", 0.1)
    log.log_params(run_id, {"depth": 3})
    log.set_tag(run_id, "a", "b")
    log.set_tags(run_id, {"c": "d"})
    log.drain(20)
    log.flush(run_id, timeout=20)
    assert receipt.delivered
    received = session.session.received(run_id)
    assert (len(received.metrics), len(received.params), len(received.tags)) == (3, 2, 2)
    assert log.stats(run_id).delivered == log.stats().delivered == 7
    assert session.logger is log

    script = session.session.answer("log_experiment_run_batch", status=503)
    log.log_metric(run_id, "loss", 0.4)
    with pytest.raises(TimeoutError):
        log.flush(timeout=0.02)
    wait_for(lambda: log.discard(run_id) == 1 or log.stats().dropped == 1)
    script.left = 0
    log.flush(timeout=20)


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_discarding_a_run(session: FakeBlockingSession) -> None:
    """`Run.discard` gives up what waits, as the asynchronous run's."""
    run = session.attach_run(session.session.add_run())
    script = session.session.answer("log_experiment_run_batch", status=503)
    run.log_metric("loss", 0.5)
    wait_for(lambda: run.discard() == 1 or run.stats().dropped == 1)
    script.left = 0
    run.flush(20)


def test_settings_and_spool_folder(session: FakeBlockingSession, tmp_path: Any) -> None:
    """They are those of the asynchronous session."""
    assert session.settings is session.session.settings
    assert FakeBlockingSession(spool=tmp_path).spool_folder == tmp_path


# Ctrl-C and a socket ------------------------------------------------------------------------------


def does_main_thread_wait() -> bool:
    """Whether it waits for another thread."""
    ident = threading.main_thread().ident
    assert ident is not None
    return sys._current_frames()[ident].f_code.co_filename == threading.__file__


@pytest.mark.parametrize("what", ["operation", "listing", "call", "fetch", "flush"])
def test_ctrl_c_while_a_call_waits(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """KeyboardInterrupt comes out at once; the call is cancelled, and the session works on."""
    session = FakeBlockingSession(linger=60.0)
    service, hanging = session.session.service, [True]
    answered, interrupted, cancelled = service.send, threading.Event(), threading.Event()

    async def send(request: Any, *, timeout: float | None = None) -> Any:
        while not does_main_thread_wait():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.005)
        if hanging and not interrupted.is_set():
            interrupted.set()
            os.kill(os.getpid(), signal.SIGINT)
        try:
            while hanging:  # noqa: ASYNC110 - it is cleared in another thread
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return await answered(request, timeout=timeout)

    monkeypatch.setattr(service, "send", send)
    run_id = session.session.add_run()
    doing: dict[str, Any] = {
        "operation": lambda: session.runs.get(run_id),
        "listing": lambda: list(session.runs.metric_history(run_id, "loss")),
        "call": lambda: session.call(TOMORROW, path={"key": "k"}),
        "fetch": lambda: session.fetch(TOMORROW, path={"key": "k"}),
        "flush": lambda: session.logger.flush(run_id),
    }
    with session:
        session.logger.log_metric(run_id, "loss", 0.5)
        with pytest.raises(KeyboardInterrupt) as caught:
            doing[what]()
        assert caught.value.__context__ is None
        assert what == "flush" or cancelled.wait(20)
        hanging.clear()
        assert session.runs.get(run_id).info.run_id == run_id
        session.logger.flush(run_id, 20)
    assert len(session.session.received(run_id).metrics) == 1


async def test_over_a_socket(bare_platform: LocalPlatform) -> None:
    """Signed and sent: what a program without an event loop asks a platform."""

    arguments: dict[str, Any] = {
        "platform_id": bare_platform.platform_id,
        "workspace": bare_platform.workspace,
        "endpoint": bare_platform.endpoint,
        "auth": ApiKey(config_file=bare_platform.config_file),
        "spool": False,
    }

    def program() -> tuple[list[str], str]:
        with blocking.Session(**arguments) as session:
            experiment_id = session.experiments.create("digits")
            run = session.runs.create(experiment_id=experiment_id, run_name="sgd")
            session.runs.log_batch(run.info.run_id, metrics=[Metric("loss", 0.5, 7)])
            found = session.runs.get(run.info.run_id)
            with pytest.raises(NotFound):
                session.runs.get("no-such-run")
            return [experiment_id, found.info.experiment_id], found.info.run_id

    ids, run_id = await asyncio.to_thread(program)
    assert ids[0] == ids[1]
    assert [metric.value for metric in bare_platform.gateway.received(run_id).metrics] == [0.5]
