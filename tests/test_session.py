"""A session's life and its direct calls: who may use it when, what is tried again, what is not."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from adp_async._sansio.endpoints import Endpoint, Scope
from adp_async._sansio.retry import RetryPolicy
from adp_async.auth import ApiKey, CustomSigner, SessionToken
from adp_async.errors import (
    AdpError,
    BadRequest,
    Closed,
    ConfigurationError,
    Conflict,
    ConnectionFailed,
    ConnectionLost,
    DeliveryError,
    Forbidden,
    NotAuthenticated,
    NotFound,
    PayloadTooLarge,
    RequestTimeout,
    ServiceError,
    ServiceFault,
    Throttled,
    UnreadableReply,
)
from adp_async.local import Effect, Fault
from adp_async.testing import FakeSession

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from adp_async import Session
    from adp_async._sansio.messages import Reply, Request
    from adp_async.local import Gateway, LocalPlatform

QUICK: dict[str, Any] = {
    "spool": False,
    "linger": 0.01,
    "close_timeout": 2.0,
    "retry": RetryPolicy(first_backoff=0.005, max_backoff=0.02, max_attempts=4),
}


@pytest.fixture
async def session(bare_platform: LocalPlatform) -> AsyncIterator[Session]:
    async with bare_platform.session(**QUICK) as session:
        yield session


@pytest.fixture
def gateway(bare_platform: LocalPlatform) -> Gateway:
    bare_platform.gateway.record = True
    return bare_platform.gateway


def tokens(gateway: Gateway) -> list[str | None]:
    return [request.headers.get("opc-retry-token") for request in gateway.recorded]


# Lifetime -----------------------------------------------------------------------------------------


async def test_before_it_is_entered() -> None:
    """Neither a call nor a record is taken before the session is open, and the error says that."""
    session = FakeSession()
    with pytest.raises(Closed, match="not open yet"):
        await session.runs.get("r")
    with pytest.raises(Closed, match="not open yet"):
        session.attach_run("r").log_metric("loss", 1.0)
    with pytest.raises(Closed, match="not open yet"):
        await session.start_run("digits")
    assert session.requests == []


async def test_after_it_was_left() -> None:
    """A handle that outlives its session raises that it is closed, for every method."""
    async with FakeSession() as session:
        run = await session.start_run()
    for doing in (run.flush, run.drain, run.finish, lambda: session.runs.get(run.run_id)):
        with pytest.raises(Closed, match="closed"):
            await doing()
    with pytest.raises(Closed, match="closed"):
        run.log_metric("loss", 1.0)
    with pytest.raises(Closed, match="closed"):
        session.logger.set_tag(run.run_id, "stage", "late")
    with pytest.raises(Closed, match="cannot be reopened"):
        await session.open()


async def test_who_signs_alone(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request is signed as the only one when nothing else is under way, errors or not."""
    alone: list[bool] = []
    sign = session._engine.auth.sign

    async def noted(request: Request, **how: bool) -> Request:
        alone.append(how["alone"])
        return await sign(request, **how)

    monkeypatch.setattr(session._engine.auth, "sign", noted)
    with pytest.raises(NotFound):
        await session.runs.get("nobody")
    await asyncio.gather(*(session.experiments.create(name) for name in "abc"))
    await session.experiments.create("d")

    assert alone == [True, True, False, False, True]


async def test_refused_records_are_not_kept() -> None:
    """Records that a closed session refuses neither pile up nor count."""
    async with FakeSession() as session:
        run = session.attach_run(session.add_run())
        await run.log_metric("loss", 1.0)
    for step in range(100):
        with pytest.raises(Closed):
            run.log_metric("loss", 1.0, step=step)
    assert len(session._intake.inbox) == 0
    assert session.logger.stats().accepted == 1


async def test_on_another_loop() -> None:
    """Operations belong to the session's own loop; logging, flushes and receipts to any."""
    found: list[str] = []

    async def elsewhere() -> None:
        for doing in (session.close, lambda: session.runs.get("r")):
            with pytest.raises(Closed) as caught:
                await doing()
            found.append(str(caught.value))
        receipt = run.log_metric("loss", 1.0)
        await receipt
        run.log_metric("loss", 2.0)
        await run.flush()
        await run.drain()
        assert run.stats().delivered == 2

    async with FakeSession() as session:
        run = session.attach_run(session.add_run())
        await asyncio.to_thread(asyncio.run, elsewhere())
        assert len(session.received(run.run_id).metrics) == 2
    assert len(found) == 2
    assert all("event loop it was opened in" in message for message in found)


FORK = """
import asyncio, os, sys
from adp_async import Closed
from adp_async.testing import FakeBlockingSession

def closed(do):
    try:
        do()
    except Closed as error:
        return "parent process" in str(error)
    return False

def child():
    async def asynchronous():
        async def each(doing):
            try:
                await doing()
            except Closed as error:
                return "parent process" in str(error)
            return False
        return [await each(doing) for doing in (session.session.runs.search().__aiter__().__anext__,
                                                session.session.close)]
    log_metric = session.logger.log_metric
    good = [closed(lambda: log_metric(waiting.run_id, "loss", 1.0)),
            closed(lambda: receipt.wait(1)), closed(session.logger.flush), closed(session.close),
            *asyncio.run(asynchronous())]
    waiting.log_metric("loss", 1.0)  # a run is used with a session of the child
    waiting.flush()
    good.append(waiting.stats().delivered == 1)
    with FakeBlockingSession() as own:
        run = own.start_run()
        run.log_metric("mine", 2.0)
        run.finish()
        good.append([metric.key for metric in own.session.received(run.run_id).metrics] == ["mine"])
    return good

session = FakeBlockingSession(linger=60.0).open()
waiting = session.start_run()
receipt = waiting.log_metric("loss", 0.5)
pid = os.fork()
if pid == 0:
    print("child", child(), flush=True)
    sys.exit()  # through atexit, as a program's end does
print("child ended with", os.waitpid(pid, 0)[1], flush=True)
waiting.finish()
print("parent sent", len(session.session.received(waiting.run_id).metrics))
"""


def test_in_a_forked_child() -> None:
    """A child may use nothing of its parent's session but its runs, and sends nothing of it."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK], capture_output=True, text=True, timeout=120
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        f"child {[True] * 8}",
        "child ended with 0",
        "parent sent 1",
    ]


async def test_opened_and_closed_by_different_tasks() -> None:
    """Two notebook cells, or a framework's start-up and shut-down."""
    session = FakeSession()
    await asyncio.create_task(session.open())
    run = await asyncio.create_task(_started(session))
    run.log_metric("loss", 1.0)
    await asyncio.create_task(session.close())
    assert len(session.received(run.run_id).metrics) == 1


async def _started(session: Session) -> Any:
    return await session.start_run()


async def test_opened_twice_at_once() -> None:
    """Both who open it get the same open session, with one sender."""
    session = FakeSession()
    both = await asyncio.gather(session.open(), session.open())
    assert both == [session, session]
    loop = session._engine.thread.loop
    senders = [task for task in asyncio.all_tasks(loop) if task.get_name() == "adp_async sender"]
    assert len(senders) == 1
    await session.close()


async def test_closed_twice() -> None:
    """The second close does nothing, and one that comes during the first waits for it."""
    session = await FakeSession(linger=60.0).open()
    run = session.attach_run(session.add_run())
    run.log_metric("loss", 1.0)
    await asyncio.gather(session.close(), session.close())
    assert len(session.received(run.run_id).metrics) == 1
    await session.close()


async def test_closed_before_it_was_open() -> None:
    """Closing what was never opened does nothing."""
    await FakeSession().close()


async def test_opening_can_be_tried_again(bare_platform: LocalPlatform, tmp_path: Path) -> None:
    """Credentials that are missing raise on entering, and are found when they are there."""
    config = tmp_path / "config"
    session = bare_platform.session(**QUICK | {"auth": ApiKey(config_file=config)})
    with pytest.raises(ConfigurationError, match=str(config)):
        await session.open()
    with pytest.raises(Closed, match="not open yet"):
        await session.runs.get("r")
    config.write_text(bare_platform.config_file.read_text())
    await session.open()
    await session.start_run()
    await session.close()


async def test_the_bodys_error_comes_out_bare() -> None:
    """What the body raises is not wrapped, and what was not delivered is noted behind it."""
    mistake = ValueError("the caller's own")

    async def use() -> None:
        async with FakeSession(close_timeout=0.05) as session:
            session.answer("log_experiment_run_batch", status=503)
            session.attach_run("r").log_metric("loss", 1.0)
            raise mistake

    with pytest.raises(ValueError, match="the caller's own") as caught:
        await use()
    assert caught.value is mistake
    assert "1 record was not delivered" in caught.value.__notes__[0]


async def test_leaving_says_what_was_refused() -> None:
    """A refusal that nobody was told of comes out of the session's end."""
    session = await FakeSession().open()
    session.attach_run(session.add_run()).log_param("bad key!", 1)
    with pytest.raises(DeliveryError, match="'bad key!'") as caught:
        await session.close()
    assert (caught.value.rejected, caught.value.undelivered) == (1, 0)


async def test_repr() -> None:
    """It says where it talks to and how it is; no key, no token."""
    session = FakeSession()
    assert "not open yet" in repr(session)
    async with session:
        assert repr(session) == (
            "<Session http://localhost workspace fake | "
            "BatchLogger 0 runs | 0 waiting | 0 batches in flight>"
        )
    assert "it is closed" in repr(session)


# Signing ------------------------------------------------------------------------------------------


class Renewable:
    """A signer that can be renewed, and counts how often it is."""

    refreshes = 0
    #: Whoever asks until this is so shares the refresh that is under way.
    all_have_asked: Callable[[], bool] = staticmethod(lambda: True)

    def __call__(self, request: Any) -> None:
        request.headers["authorization"] = f"token {self.refreshes}"

    def refresh_security_token(self) -> None:
        longest = time.monotonic() + 20.0
        while not self.all_have_asked() and time.monotonic() < longest:
            time.sleep(0.002)
        self.refreshes += 1


async def test_one_refresh_for_all() -> None:
    """Twenty calls that are refused share one refresh, and each is sent once more."""
    signer = Renewable()
    async with FakeSession(auth=CustomSigner(signer)) as session:
        run_id = session.add_run()
        refused = session.answer("get_experiment_run_by_id", status=401, times=20)
        signer.all_have_asked = lambda: refused.given == 20
        runs = await asyncio.gather(*(session.runs.get(run_id) for _ in range(20)))
        assert {run.info.run_id for run in runs} == {run_id}
        assert signer.refreshes == 1
        assert len(session.requests) == 40
        sent = [request.headers["authorization"] for request in session.requests]
        assert sent == ["token 0"] * 20 + ["token 1"] * 20


async def test_one_more_try_and_no_other() -> None:
    """What is still refused after the refresh is the caller's to know."""
    signer = Renewable()
    async with FakeSession(auth=CustomSigner(signer)) as session:
        session.answer("get_experiment_run_by_id", status=401)
        with pytest.raises(NotAuthenticated):
            await session.runs.get("r")
        assert len(session.requests) == 2
        assert signer.refreshes == 1


async def test_a_key_that_is_refused(session: Session, gateway: Gateway) -> None:
    """An API key can't be renewed: one request, and the error has the request id."""
    gateway.inject(Fault.reply(401, "NotAuthenticated"), times=None)
    with pytest.raises(NotAuthenticated) as caught:
        await session.runs.get("r")
    assert caught.value.request_id
    assert gateway.requests == 1


async def test_a_token_that_was_renewed(bare_platform: LocalPlatform, gateway: Gateway) -> None:
    """A session token that was renewed on disk is read again after a 401, by calls and batches."""
    profile = bare_platform.add_session_profile()
    auth = SessionToken(config_file=profile.config_file, profile=profile.profile)
    async with bare_platform.session(**QUICK | {"auth": auth}) as session:
        run = await session.start_run()
        profile.renew(new_key=True)
        run.log_metric("loss", 1.0)
        await asyncio.gather(run.flush(), *(session.runs.get(run.run_id) for _ in range(5)))
        assert len(gateway.received(run.run_id).metrics) == 1
        assert run.stats().retries == 0


@pytest.mark.parametrize("offset", [1200.0, -1200.0])
async def test_a_wrong_clock(
    session: Session, gateway: Gateway, offset: float, caplog: pytest.LogCaptureFixture
) -> None:
    """Twenty minutes off costs one 401; from then on the service's clock is used."""
    gateway.clock_offset = offset
    run_id = gateway.add_run()
    for _ in range(3):
        await session.runs.get(run_id)
    assert gateway.counts.by_status == {401: 1, 200: 3}
    assert "clock" in caplog.text


# What comes back ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, BadRequest),
        (401, NotAuthenticated),
        (403, Forbidden),
        (404, NotFound),
        (405, BadRequest),
        (409, Conflict),
        (412, BadRequest),
        (413, PayloadTooLarge),
        (418, BadRequest),
        (500, ServiceFault),
        (501, ServiceFault),
        (503, ServiceFault),
        (599, ServiceFault),
    ],
)
@pytest.mark.parametrize("body", ["json", "html", "empty", "garbage"])
async def test_errors(status: int, error: type[ServiceError], body: str) -> None:
    """Each status is its class, with code, status and request id, whatever its body is."""
    answer = {
        "json": b'{"code": "NeverHeardOf", "message": "no such luck"}',
        "html": b"<html><head><title>Bad</title></head><body><h1>Bad Gateway</h1></body></html>",
        "empty": b"",
        "garbage": b"\xff\x00{" * 20_000,
    }[body]
    async with FakeSession() as session:
        session.answer("update_experiment_run", answer, status=status)
        with pytest.raises(ServiceError) as caught:
            await session.runs.update("r", run_name="x")
    assert type(caught.value) is error
    assert caught.value.status == status
    assert caught.value.request_id
    assert caught.value.request_id in str(caught.value)
    assert caught.value.operation == "update_experiment_run"
    assert caught.value.code == ("NeverHeardOf" if body == "json" else "")
    assert len(str(caught.value)) < 500


async def test_redirects_are_not_followed(session: Session, gateway: Gateway) -> None:
    """A redirect is an error that says what to check, and the signature goes nowhere else."""
    location = {"location": f"http://127.0.0.1:{gateway.port}/elsewhere"}
    for status in (301, 302, 307, 308):
        gateway.inject(Fault.reply(status, headers=location))
        with pytest.raises(ServiceError, match="redirects are not followed") as caught:
            await session.runs.get("r")
        assert caught.value.status == status
    assert gateway.requests == 4


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b'"run"',
        b'{"run": ',
        b'{"run": 7}',
        b'{"run": {"info": {"run_id": ["r"]}}}',
        b'{"run": {"data": {"metrics": [{"key": "loss", "value": {}}]}}}',
        b"<html><body>Welcome to our proxy</body></html>",
        b"\xff\xfe\x00",
        b"[" * 100_000,
    ],
    ids=lambda body: repr(body[:30]),
)
async def test_good_replies_that_cannot_be_read(body: bytes) -> None:
    """A 200 that makes no sense is UnreadableReply with its request id, and isn't asked again."""
    async with FakeSession() as session:
        session.answer("get_experiment_run_by_id", body)
        with pytest.raises(UnreadableReply, match="get_experiment_run_by_id") as caught:
            await session.runs.get("r")
        assert (caught.value.status, caught.value.request_id) == (200, "fake-1")
        assert "fake-1" in str(caught.value)
        assert len(session.requests) == 1


async def test_over_the_wire(session: Session, gateway: Gateway) -> None:
    """A proxy's page, half of the JSON and a redirect, as they come through a socket."""
    run_id = gateway.add_run()
    gateway.inject(Fault.html(404))
    with pytest.raises(NotFound, match="Bad Gateway") as caught:
        await session.runs.get(run_id)
    assert caught.value.request_id
    gateway.inject(Fault.truncate())
    with pytest.raises(UnreadableReply):
        await session.runs.get(run_id)


async def test_a_huge_reply(session: Session, gateway: Gateway) -> None:
    """A good reply beyond the transport's limit is UnreadableReply, and the next call works."""
    session._engine.direct.transport._max_reply_bytes = 100_000
    run_id = gateway.add_run()
    gateway.inject(Fault.reply(200, body=b'{"run": {}, "x": "' + b"x" * 1_000_000 + b'"}'))
    with pytest.raises(UnreadableReply, match="larger than 100000 bytes") as caught:
        await session.runs.get(run_id)
    assert caught.value.request_id
    assert (await session.runs.get(run_id)).info.run_id == run_id


async def test_what_readers_ignore(session: Session, gateway: Gateway) -> None:
    """Unknown fields are skipped, unknown enum values stay text."""
    info = {"run_id": "r", "status": "HIBERNATING", "mood": {"good": True}}
    gateway.inject(Fault.reply(200, body=msgspec.json.encode({"run": {"info": info}, "v": 2})))
    run = await session.runs.get("r")
    assert (run.info.run_id, run.info.status) == ("r", "HIBERNATING")


# What is tried again ------------------------------------------------------------------------------

LOST_AFTER_WRITE = [
    Fault.reply(503, after_write=True),
    Fault.html(502, after_write=True),
    Fault.drop(after_write=True),
    Fault.hang(after_write=True),
    Fault.cut(),
]


def time_for(fault: Fault) -> dict[str, Any]:
    """Enough for any attempt on a slow machine; of one that hangs the test waits for the end.

    Then such a machine may need some attempts more.
    """
    if fault.effect is not Effect.HANG:
        return {"timeout": 60.0}
    return {"timeout": 0.5, "retry": RetryPolicy(0.005, 0.02, max_attempts=20)}


@pytest.mark.parametrize("fault", LOST_AFTER_WRITE, ids=lambda fault: fault.effect.name)
async def test_no_ghost_runs(bare_platform: LocalPlatform, gateway: Gateway, fault: Fault) -> None:
    """A create whose reply is lost is sent again with its token, and there is one run."""
    async with bare_platform.session(**QUICK | time_for(fault)) as session:
        gateway.inject(fault, operation="create_experiment_run", times=2)
        run = await session.start_run(run_name="only")
        assert list(gateway.backend.runs) == [run.run_id]  # type: ignore[attr-defined]
    sent = [request for request in gateway.recorded if request.operation == "create_experiment_run"]
    assert len(sent) == 3 or (len(sent) > 3 and fault.effect is Effect.HANG)
    assert len({request.headers["opc-retry-token"] for request in sent}) == 1
    assert len({request.body for request in sent}) == 1


TOKENLESS = Endpoint("POST", "model-deployments/activate", Scope.PLATFORM)


@pytest.mark.parametrize(
    "fault",
    LOST_AFTER_WRITE[:4],
    ids=lambda fault: fault.effect.name,
)
async def test_what_has_no_token_is_sent_once(
    bare_platform: LocalPlatform, gateway: Gateway, fault: Fault
) -> None:
    """An operation without a retry token that may have been applied is the caller's to judge."""
    async with bare_platform.session(**QUICK | time_for(fault)) as session:
        gateway.inject(fault, times=None)
        with pytest.raises(AdpError) as caught:
            await session.call(TOKENLESS)
    assert caught.value.maybe_applied
    assert gateway.requests == 1
    assert tokens(gateway) == [None]


@pytest.mark.parametrize("status", [429, 408])
async def test_what_was_not_applied_is_sent_again(
    session: Session, gateway: Gateway, status: int
) -> None:
    """A refusal that took no effect is harmless to repeat, token or no token."""
    gateway.inject(Fault.reply(status))
    gateway.inject(Fault.reply(200, body=b"{}"))
    assert await session.call(TOKENLESS) == {}
    assert gateway.requests == 2


async def test_what_never_left_is_sent_again(session: Session, gateway: Gateway) -> None:
    """A connection that is refused is tried again, token or no token."""
    gateway.inject(Fault.reply(200, body=b"{}"), times=None)
    await gateway.down()
    call = asyncio.create_task(session.call(TOKENLESS))
    await asyncio.sleep(0)
    await gateway.up()
    await call


@pytest.mark.parametrize(
    "fault",
    [Fault.reply(500), Fault.drop(), Fault.html(), Fault.reply(409, "IncorrectState")],
    ids=lambda fault: f"{fault.effect.name} {fault.status}",
)
async def test_a_look_is_repeated(session: Session, gateway: Gateway, fault: Fault) -> None:
    """A GET can be repeated without a token."""
    run_id = gateway.add_run()
    gateway.inject(fault, times=3)
    assert (await session.runs.get(run_id)).info.run_id == run_id


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault.reply(503), ServiceFault),
        (Fault.drop(), ConnectionLost),
        (Fault.reply(409, "LockConflict"), Conflict),
    ],
    ids=["503", "drop", "409"],
)
async def test_attempts_are_bounded(
    session: Session, gateway: Gateway, fault: Fault, error: type[AdpError]
) -> None:
    """After *max_attempts* the last error comes out."""
    gateway.inject(fault, times=None)
    with pytest.raises(error):
        await session.runs.update("r", status="FAILED")
    assert gateway.by_operation["update_experiment_run"] == 4
    assert len(set(tokens(gateway))) == 1


@pytest.mark.parametrize("status", [400, 403, 404, 409, 412, 413, 501])
async def test_verdicts_are_not_repeated(status: int) -> None:
    """What says no will say no again."""
    async with FakeSession() as session:
        session.answer("update_experiment_run", status=status)
        with pytest.raises(ServiceError):
            await session.runs.update("r", status="FAILED")
        assert len(session.requests) == 1


async def test_the_service_is_down(bare_platform: LocalPlatform) -> None:
    """A service nobody reaches is ConnectionFailed after the attempts, and says which host."""
    async with bare_platform.session(**QUICK) as session:
        await bare_platform.gateway.down()
        with pytest.raises(ConnectionFailed, match=r"127\.0\.0\.1") as caught:
            await session.runs.get("r")
        assert not caught.value.maybe_applied


async def test_unreadable_until_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A create whose replies are not the service's is asked for no longer than the call's time."""
    monkeypatch.setattr("random.random", lambda: 0.5)
    async with FakeSession(retry=RetryPolicy(first_backoff=50.0, max_backoff=60.0)) as session:
        session.answer("create_experiment_run", b"<html>Sign in")
        with pytest.raises(UnreadableReply, match="Sign in"):
            await session.runs.create(experiment_id="0", timeout=20.0)
        assert len(session.requests) == 2  # at once, and not after half a minute


async def test_entered_while_it_is_open() -> None:
    """Opening what is open does nothing."""
    session = FakeSession()
    async with session:
        assert await session.open() is session
        assert await session.runs.get(session.add_run())


async def test_throttled_calls_are_not_counted() -> None:
    """429s are limited by the call's time, not by the number of attempts."""
    async with FakeSession(retry=QUICK["retry"]) as session:
        run_id = session.add_run()
        # Many good answers first, so that the rate learned is no second's wait.
        await asyncio.gather(*(session.runs.get(run_id) for _ in range(500)))
        throttled = session.answer("get_experiment_run_by_id", status=429, times=6)
        await session.runs.get(run_id)
        assert throttled.given == 6


async def test_throttled_until_time_is_up() -> None:
    """A call that is throttled for ever ends with Throttled as soon as its time won't do."""
    async with FakeSession() as session:
        session.answer("get_experiment_run_by_id", status=429, headers={"retry-after": "70"})
        began = time.monotonic()
        with pytest.raises(Throttled) as caught:
            await session.runs.get("r", timeout=50.0)
        assert time.monotonic() - began < 30.0
        assert caught.value.retry_after == 70.0


async def test_one_hold_for_all_calls() -> None:
    """A 429 to one call makes every other call wait too."""
    async with FakeSession() as session:
        run_id = session.add_run()
        session.answer("get_experiment_run_by_id", status=429, headers={"retry-after": "60"})
        with pytest.raises(Throttled):
            await session.runs.get(run_id, timeout=30.0)
        with pytest.raises(RequestTimeout):
            await session.runs.update(run_id, run_name="x", timeout=0.05)
        assert [request.operation for request in session.requests] == ["get_experiment_run_by_id"]
        assert "held" in repr(session)


# Time ---------------------------------------------------------------------------------------------


async def test_time_of_an_attempt(bare_platform: LocalPlatform, gateway: Gateway) -> None:
    """An attempt that hangs is given up after *timeout*, and another one is made."""
    run_id = gateway.add_run()
    async with bare_platform.session(
        **QUICK | {"timeout": 0.3, "retry": RetryPolicy(0.005, 0.02)}
    ) as session:
        gateway.inject(Fault.hang(), times=2)
        assert (await session.runs.get(run_id)).info.run_id == run_id
        assert gateway.requests >= 3  # more where a good attempt takes too long as well


@pytest.mark.parametrize("of_the_session", [True, False])
async def test_time_of_a_call(
    bare_platform: LocalPlatform, gateway: Gateway, of_the_session: bool
) -> None:
    """A whole call with its attempts ends in time, and its error names the operation."""
    knobs = QUICK | ({"call_timeout": 0.1} if of_the_session else {})
    options: dict[str, Any] = {} if of_the_session else {"timeout": 0.1}
    async with bare_platform.session(**knobs) as session:
        gateway.inject(Fault.hang(), times=None)
        began = time.monotonic()
        with pytest.raises(RequestTimeout, match=r"get_experiment_run_by_id.*0\.1 s"):
            await session.runs.get("r", **options)
        assert 0.09 < time.monotonic() - began < 10.0


async def test_what_went_wrong_before_time_was_up() -> None:
    """The error of a call that ran out of time says what the last attempt met."""
    slow = RetryPolicy(first_backoff=0.01, max_backoff=0.01, max_attempts=1000)
    async with FakeSession(retry=slow) as session:
        session.answer("get_experiment_run_by_id", {"code": "Tired"}, status=503)
        with pytest.raises((RequestTimeout, ServiceFault), match="Tired"):
            await session.runs.get("r", timeout=0.5)


async def test_the_callers_own_deadline() -> None:
    """asyncio.timeout around a call stays the caller's TimeoutError."""
    async with FakeSession() as session:
        session.answer("get_experiment_run_by_id", status=429, headers={"retry-after": "60"})
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await session.runs.get("r")


# Headers ------------------------------------------------------------------------------------------


async def test_headers(session: Session, gateway: Gateway) -> None:
    """Request id, retry token and principal are sent as given; the reply's are reachable."""
    run_id = gateway.add_run()
    replies: list[Reply] = []
    await session.runs.update(
        run_id,
        run_name="x",
        request_id="my-request_1",
        retry_token="my-token",
        principal="ocid1.user.oc1..somebody",
        on_reply=replies.append,
    )
    (request,) = gateway.recorded
    assert request.headers["opc-request-id"] == "my-request_1"
    assert request.headers["opc-retry-token"] == "my-token"
    assert request.headers["dh-user-principal"] == "ocid1.user.oc1..somebody"
    (reply,) = replies
    assert reply.request_id.startswith("my-request_1/")
    assert reply.etag


async def test_headers_that_nobody_gave(session: Session, gateway: Gateway) -> None:
    """Each call has an id and a token of its own, where the operation takes one."""
    run_id = gateway.add_run()
    for _ in range(2):
        await session.runs.update(run_id, run_name="x")
        await session.runs.get(run_id)
    ids = [request.headers["opc-request-id"] for request in gateway.recorded]
    assert len(set(ids)) == 4
    first, none, second, none_again = tokens(gateway)
    assert first != second
    assert first is not None
    assert 1 <= len(first) <= 64
    assert (none, none_again) == (None, None)
    assert all("dh-user-principal" not in request.headers for request in gateway.recorded)


@pytest.mark.parametrize(
    "options",
    [
        {"request_id": "has/slash"},
        {"request_id": "line\nbreak"},
        {"retry_token": "x" * 65},
        {"retry_token": ""},
        {"principal": "a\r\nx-evil: 1"},
        {"principal": ""},
    ],
    ids=repr,
)
async def test_header_values_are_checked(options: dict[str, Any]) -> None:
    """What could break a header is a ValueError, and nothing is sent."""
    async with FakeSession() as session:
        with pytest.raises(ValueError, match=r"opc-|dh-"):
            await session.runs.update("r", run_name="x", **options)
        assert session.requests == []


async def test_a_token_where_none_is_taken() -> None:
    """A retry token for an operation that ignores it would promise what nobody keeps."""
    async with FakeSession() as session:
        with pytest.raises(ValueError, match="does not take a retry token"):
            await session.runs.get("r", retry_token="t")


async def test_an_operation_nobody_knows_yet(session: Session, gateway: Gateway) -> None:
    """`call` is the door: any path, query and body, and plain JSON back."""
    gateway.record = True
    endpoint = Endpoint("GET", "mlflow/runs/get", takes_retry_token=True)
    run_id = gateway.add_run("a b/c:'d'")
    found = await session.call(endpoint, query={"run_id": run_id}, retry_token="t")
    assert found["run"]["info"]["run_id"] == run_id  # type: ignore[index]
    assert tokens(gateway) == ["t"]
    assert gateway.recorded[0].query == "run_id=a%20b%2Fc%3A%27d%27"


# Experiments --------------------------------------------------------------------------------------


async def test_an_experiment_found_or_created(bare_platform: LocalPlatform) -> None:
    """Ten sessions that name the same new experiment at once find the same one."""
    gateway = bare_platform.gateway
    gateway.latency = 0.15
    sessions = [bare_platform.session(**QUICK) for _ in range(5)]
    await asyncio.gather(*(session.open() for session in sessions))
    started = [session.start_run("digits") for session in sessions for _ in range(2)]
    runs = await asyncio.gather(*started)
    await asyncio.gather(*(session.close() for session in sessions))
    assert len({run.experiment_id for run in runs}) == 1
    assert gateway.by_operation["create_experiment"] > 1, "they didn't meet"


async def test_an_experiment_is_looked_for_once() -> None:
    """A session remembers the ids of the experiments it was told by name."""
    async with FakeSession() as session:
        for _ in range(3):
            await session.start_run("digits")
        asked = [request.operation for request in session.requests]
        assert asked.count("get_experiment_by_name") == asked.count("create_experiment") == 1


async def test_an_experiment_that_may_not_be_created() -> None:
    """The refusal of the create comes out, not that it wasn't found."""
    async with FakeSession() as session:
        session.answer("create_experiment", {"code": "NotAllowed"}, status=403)
        with pytest.raises(Forbidden, match="NotAllowed"):
            await session.start_run("digits")


async def test_name_or_id() -> None:
    """An experiment is given by its name or by its id."""
    with pytest.raises(TypeError, match="not both"):
        FakeSession().start_run("digits", experiment_id="0")


async def test_no_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs belong to a workspace; without one the error comes at once and says the fix."""
    monkeypatch.delenv("AIDP_WORKSPACE", raising=False)
    from adp_async import Session

    session = Session("ocid1.aidataplatform.oc1.iad.x", endpoint="http://localhost", spool=False)
    with pytest.raises(ConfigurationError, match="AIDP_WORKSPACE"):
        session.attach_run("r")


def test_threads_end() -> None:
    """A closed session leaves no thread behind."""

    async def use() -> None:
        async with FakeSession() as session:
            await session.start_run()

    before = set(threading.enumerate())
    asyncio.run(use())
    for thread in set(threading.enumerate()) - before:
        thread.join(30.0)
        assert not thread.is_alive(), thread.name
