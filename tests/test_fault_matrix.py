"""Every fault against every kind of call: what arrives, after how many requests, or which error.

`OUTCOMES` is the whole truth, one row a fault.  A cell says how many requests were sent, whether
they had one retry token (and then the same body), and the error that came out, if one did.  What
always holds stands in the test: nothing is lost, nothing arrives twice, and there is no run that
nobody knows of.
"""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from attrs import define, field

from adp_async._io import resolver
from adp_async._io.transport import AiohttpTransport
from adp_async._sansio.retry import RetryPolicy
from adp_async.errors import AdpError, ConnectionFailed, RequestTimeout
from adp_async.local import Fault

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from adp_async import Session
    from adp_async._sansio.messages import Reply, Request
    from adp_async.local import Gateway, LocalPlatform
    from adp_async.local.answers import Received

#                            |                | a direct call that may be |
#                            | the logger     | resent: runs.update       | runs.create
OUTCOMES = """
429                          | 2 one token    | 2 one token               | 2 one token
429 with Retry-After         | 2 one token    | 2 one token               | 2 one token
500                          | 3 one token    | 3 one token               | 3 one token
502 with HTML                | 3 one token    | 3 one token               | 3 one token
503 before the write         | 3 one token    | 3 one token               | 3 one token
503 after the write          | 3 one token    | 3 one token               | 3 one token
connection refused           | 1              | 1                         | 1
no such host                 | 1              | 1                         | 1
reset before the write       | 3 one token    | 3 one token               | 3 one token
reset before the reply       | 3 one token    | 3 one token               | 3 one token
reset in the middle          | 3 one token    | 3 one token               | 3 one token
reset after the reply        | 1              | 1                         | 1
truncated JSON               | 2 one token    | 2 one token               | 2 one token
a byte a second              | 2 one token    | 2 one token               | 2 one token
hang before the write        | 2 one token    | 2 one token               | 2 one token
hang after the write         | 2 one token    | 2 one token               | 2 one token
401 once                     | 2 one token    | 1 NotAuthenticated        | 1 NotAuthenticated
401 for a while              | 6 one token    | 1 NotAuthenticated        | 1 NotAuthenticated
401 of a token just renewed  | 2 one token    | 2 one token               | 2 one token
clock 20 minutes slow        | 2 one token    | 2 one token               | 2 one token
clock 20 minutes fast        | 2 one token    | 2 one token               | 2 one token
404 of the platform          | 3 one token    | 1 NotFound                | 1 NotFound
409 InvalidatedRetryToken    | 2 other tokens | 1 Conflict                | 1 Conflict
413                          | 3 other tokens | 1 PayloadTooLarge         | 1 PayloadTooLarge
"""

FAULTS: dict[str, tuple[Fault, int]] = {
    # The first 429 a session gets makes it wait for a second, whatever the back-off.
    "429": (Fault.reply(429, "TooManyRequests"), 1),
    "429 with Retry-After": (Fault.reply(429, headers={"retry-after": "1"}), 1),
    "500": (Fault.reply(500, "InternalServerError"), 2),
    "502 with HTML": (Fault.html(502), 2),
    "503 before the write": (Fault.reply(503, "ServiceUnavailable"), 2),
    "503 after the write": (Fault.reply(503, "ServiceUnavailable", after_write=True), 2),
    "reset before the write": (Fault.drop(), 2),
    "reset before the reply": (Fault.drop(after_write=True), 2),
    "reset in the middle": (Fault.cut(), 2),
    "reset after the reply": (Fault.reset_after_reply(), 1),
    "truncated JSON": (Fault.truncate(), 1),
    "a byte a second": (Fault.drip(1.0), 1),
    "hang before the write": (Fault.hang(), 1),
    "hang after the write": (Fault.hang(after_write=True), 1),
    "401 once": (Fault.reply(401, "NotAuthenticated"), 1),
    "401 for a while": (Fault.reply(401, "NotAuthenticated"), 5),
    "401 of a token just renewed": (Fault.reply(401, "NotAuthenticated"), 1),
    "404 of the platform": (Fault.reply(404, "NotAuthorizedOrNotFound"), 2),
    "409 InvalidatedRetryToken": (Fault.reply(409, "InvalidatedRetryToken"), 1),
    "413": (Fault.reply(413, "PayloadTooLarge"), 1),
}
CLOCKS = {"clock 20 minutes slow": 1200.0, "clock 20 minutes fast": -1200.0}
SLOW = {"a byte a second", "hang before the write", "hang after the write"}


# The three kinds of calls: each knows its operation, how it is made and what must have arrived.


@define
class Logger:
    """Metrics, params and tags through the background logger: one batch."""

    operation = "log_experiment_run_batch"

    async def make(self, session: Session, gateway: Gateway) -> None:
        run = session.attach_run(gateway.add_run("r"))
        for step in range(10):
            run.log_metric("loss", 1 / (step + 1), step=step)
        run.log_params({"lr": 0.1, "seed": 7})
        run.set_tags({"stage": "fit", "host": "h"})
        async with asyncio.timeout(60):
            await run.flush()
        stats = run.stats()
        assert (stats.delivered, stats.accepted, stats.rejected) == (14, 14, {})

    def check(self, gateway: Gateway, *, is_done: bool) -> None:
        run = gateway.received("r")
        assert is_done, "whatever happens, the logger delivers"
        steps = [(metric.value, metric.step) for metric in run.metrics]
        assert sorted(steps, key=lambda each: each[1]) == [(1 / (n + 1), n) for n in range(10)]
        assert sorted(run.params) == [("lr", "0.1"), ("seed", "7")]
        assert sorted(run.tags) == [("host", "h"), ("stage", "fit")]


@define
class Update:
    """A direct call that may be resent."""

    operation = "update_experiment_run"

    async def make(self, session: Session, gateway: Gateway) -> None:
        info = await session.runs.update(gateway.add_run("r"), run_name="renamed")
        assert info.run_name == "renamed"

    def check(self, gateway: Gateway, *, is_done: bool) -> None:
        assert gateway.received("r").info["run_name"] == ("renamed" if is_done else "r")


@define
class Create:
    """A create: what is made twice stays behind as a ghost."""

    operation = "create_experiment_run"
    made: list[str] = field(factory=list)

    async def make(self, session: Session, gateway: Gateway) -> None:
        run = await session.runs.create(run_name="only")
        assert run.info is not None
        self.made.append(str(run.info.run_id))

    def check(self, gateway: Gateway, *, is_done: bool) -> None:
        assert list(gateway.backend.runs) == self.made  # type: ignore[attr-defined]
        assert len(self.made) == is_done


CALLS: tuple[type[Logger | Update | Create], ...] = (Logger, Update, Create)


def cells() -> list[Any]:
    """The table's cells, one a test."""
    parameters = []
    for line in OUTCOMES.strip().splitlines():
        fault, *outcomes = (cell.strip() for cell in line.split("|"))
        for call, outcome in zip(CALLS, outcomes, strict=True):
            name = f"{fault}-{call.__name__.lower()}"
            parameters.append(pytest.param(fault, call(), outcome, id=name))
    return parameters


@pytest.mark.parametrize(("fault", "call", "outcome"), cells())
async def test_fault(
    bare_platform: LocalPlatform,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    call: Logger | Update | Create,
    outcome: str,
) -> None:
    """What is accepted arrives once, or its error says why; never a ghost, never a double."""
    gateway = bare_platform.gateway
    gateway.record = True
    async with bare_platform.session(**knobs_for(fault, bare_platform)) as session:
        async with under(fault, call.operation, gateway, monkeypatch):
            error = await error_of(call.make(session, gateway))
        call.check(gateway, is_done=error is None)
    sent = [each for each in gateway.recorded if each.operation == call.operation]
    assert described(sent, error) == outcome, error
    assert list(session.spool_folder.iterdir()) == [], "the spool went with the last record"


@pytest.mark.usefixtures("patient_end")
async def test_a_host_that_never_comes_back(
    bare_platform: LocalPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Direct calls say that they never left, the logger holds, and its end leaves a spool."""
    knobs = knobs_for("no such host", bare_platform) | {"close_timeout": 0.1}
    unknown_host(monkeypatch, times=1_000_000)
    async with bare_platform.session(**knobs) as session:
        for make in (lambda: session.runs.create(), lambda: session.runs.update("r", run_name="x")):
            with pytest.raises(ConnectionFailed, match="Name or service not known") as caught:
                await make()
            assert not caught.value.maybe_applied
        session.attach_run("r").log_metric("loss", 0.5)
    (spool,) = session.spool_folder.glob("*.spool")
    assert spool.stat().st_size > 0
    assert bare_platform.gateway.requests == 0


def knobs_for(fault: str, platform: LocalPlatform) -> dict[str, Any]:
    knobs: dict[str, Any] = {
        "linger": 0.01,
        "close_timeout": 20.0,
        "timeout": 20.0,
        "retry": RetryPolicy(first_backoff=0.01, max_backoff=0.05),
    }
    if fault == "no such host":
        knobs["endpoint"] = f"http://localhost:{platform.gateway.port}"
    if fault == "401 of a token just renewed":
        knobs["auth"] = RenewableSigner(platform)
    return knobs


async def error_of(doing: Awaitable[None]) -> AdpError | None:
    try:
        await doing
    except AdpError as error:
        return error
    return None


def described(sent: list[Received], error: AdpError | None) -> str:
    """A cell of the table."""
    tokens = {request.headers["opc-retry-token"] for request in sent}
    parts = [str(len(sent))]
    if len(sent) > 1 and len(tokens) == 1:
        assert len({request.body for request in sent}) == 1, "one token, one request"
        parts.append("one token")
    elif len(sent) > 1:
        assert len(tokens) == len(sent), "every request of its own has a token of its own"
        parts.append("other tokens")
    if error is not None:
        parts.append(type(error).__name__)
    return " ".join(parts)


@asynccontextmanager
async def under(
    fault: str, operation: str, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[None]:
    """Something is wrong with the service from now on, for some requests or some time."""
    if fault in FAULTS:
        what, times = FAULTS[fault]
        injection = gateway.inject(what, times=times, operation=operation)
        if fault in SLOW:
            impatient_until(monkeypatch, operation, lambda: injection.hits > 0)
        yield
        assert injection.hits >= 1, "the fault never came"
    elif fault in CLOCKS:
        gateway.clock_offset = CLOCKS[fault]
        yield
    elif fault == "no such host":
        with monkeypatch.context() as patch:
            failures = unknown_host(patch, times=2)
            yield
        assert len(failures) == 2
    else:
        assert fault == "connection refused"
        await gateway.down()
        back = asyncio.create_task(up_after(0.05, gateway))
        yield
        await back


async def up_after(seconds: float, gateway: Gateway) -> None:
    await asyncio.sleep(seconds)
    await gateway.up()


def impatient_until(
    patch: pytest.MonkeyPatch, operation: str, happened: Callable[[], bool]
) -> None:
    """Requests of *operation* get little time until it has *happened*; what comes then, enough."""
    send = AiohttpTransport.send

    async def quickly(
        transport: AiohttpTransport, request: Request, *, timeout: float | None = None
    ) -> Reply:
        if request.operation != operation or happened():
            return await send(transport, request, timeout=timeout)
        try:
            return await send(transport, request, timeout=0.35)
        except RequestTimeout:
            # The service of a busy machine may see it a little later.
            ends_at = time.monotonic() + 10.0
            while not happened() and time.monotonic() < ends_at:  # noqa: ASYNC110 - it is a thread
                await asyncio.sleep(0.005)
            raise

    patch.setattr(AiohttpTransport, "send", quickly)


def unknown_host(patch: pytest.MonkeyPatch, *, times: int) -> list[socket.gaierror]:
    """The next look-ups of a name fail."""
    failures: list[socket.gaierror] = []
    look_up = resolver.look_up

    def failing(host: str, port: int, family: int) -> Any:
        if len(failures) < times:
            failures.append(socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
            raise failures[-1]
        return look_up(host, port, family)

    patch.setattr(resolver, "look_up", failing)
    return failures


class RenewableSigner:
    """The platform's own signer, as one that can be renewed after a 401."""

    def __init__(self, platform: LocalPlatform) -> None:
        from adp_async.auth import ApiKey

        self._sign = ApiKey(config_file=platform.config_file, profile=platform.profile).load()

    def __call__(self, request: Any) -> None:
        self._sign(request)

    def refresh_security_token(self) -> None:
        """It signs as before, but the service refuses its key."""
