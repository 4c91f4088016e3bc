"""What comes from signers, clocks and reply headers: held or told, never a crash."""

from __future__ import annotations

import asyncio
import logging
import re
import string
import time
import traceback
from typing import TYPE_CHECKING, Any

import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

import adp_async._io.caller
from adp_async import RetryPolicy
from adp_async._io import resolver
from adp_async._io.transport import AiohttpTransport
from adp_async._sansio import retry
from adp_async._sansio.messages import Request
from adp_async._sansio.retry import LONGEST_RETRY_AFTER, TELL_AFTER, RetryNotice, parse_retry_after
from adp_async._sansio.signing import corrected_skew, http_date, parse_http_date, problem_of_header
from adp_async.auth import Auth, CustomSigner
from adp_async.errors import (
    AdpError,
    ConfigurationError,
    ConnectionFailed,
    ConnectionLost,
    NotAuthenticated,
    ServiceFault,
)
from adp_async.testing import FakeSession

if TYPE_CHECKING:
    from collections.abc import Callable

    from adp_async._io.authenticator import Authenticator
    from adp_async.local import LocalPlatform

SECRET = "s3cr3t"
GET_RUN = "get_experiment_run_by_id"
LOG_BATCH = "log_experiment_run_batch"


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - what is waited for is no event
            await asyncio.sleep(0.002)


# Signers -----------------------------------------------------------------------------------------


class Unexpected(BaseException):
    """No Exception, as a framework's own ways to stop."""


def raising(error: BaseException) -> Callable[[Any], object]:
    def sign(_request: Any) -> object:
        raise error

    return sign


def writing(name: Any, value: Any) -> Callable[[Any], object]:
    def sign(request: Any) -> None:
        request.headers["authorization"] = f"Signature {SECRET}"
        request.headers[name] = value

    return sign


def replacing(headers: Any) -> Callable[[Any], object]:
    def sign(request: Any) -> None:
        request.headers = headers

    return sign


async def coroutine(request: Any) -> None:
    request.headers["authorization"] = SECRET


#: A signer, and what is told about it.
SIGNERS: dict[str, tuple[Callable[[Any], object], str]] = {
    "ValueError": (raising(ValueError(SECRET)), "failed with ValueError"),
    "OSError": (raising(ConnectionRefusedError(111, SECRET)), r"Error \(Connection refused\)"),
    "StopIteration": (raising(StopIteration(SECRET)), "failed with StopIteration"),
    "StopAsyncIteration": (raising(StopAsyncIteration()), "failed with StopAsyncIteration"),
    "CancelledError": (raising(asyncio.CancelledError(SECRET)), "failed with CancelledError"),
    "GeneratorExit": (raising(GeneratorExit()), "failed with GeneratorExit"),
    "RecursionError": (raising(RecursionError()), "failed with RecursionError"),
    "a BaseException": (raising(Unexpected(SECRET)), "failed with Unexpected"),
    "settings": (raising(ConfigurationError(SECRET)), "failed with ConfigurationError"),
    "bytes": (writing("authorization", SECRET.encode()), "'authorization' is bytes"),
    "None": (writing("authorization", None), "'authorization' is NoneType"),
    "a number": (writing("x-request", 7), "'x-request' is int"),
    "a line end": (writing("x-token", f"{SECRET}\nx-other: a"), "'x-token' holds a line end"),
    "a line end behind": (writing("authorization", f"{SECRET}\r"), "'authorization' holds a line"),
    "a NUL": (writing("x-token", f"{SECRET}\0"), "'x-token' holds a line end or another control"),
    "a surrogate": (writing("x-token", f"{SECRET}\udcff"), "'x-token' holds"),
    "a name with a space": (writing("x token", SECRET), "a header has an invalid name"),
    "a name with a line end": (writing(f"x\n{SECRET}", ""), "a header has an invalid name"),
    "a name of bytes": (writing(b"authorization", SECRET), "a header has an invalid name"),
    "an empty name": (writing("", SECRET), "a header has an invalid name"),
    "no authorization": (writing("authorization", ""), "did not set the header 'authorization'"),
    "another header": (
        replacing({"x-signature": SECRET}),
        "did not set the header 'authorization'",
    ),
    "headers returned": (
        lambda _: {"authorization": SECRET},
        "did not set the header 'authorization'",
    ),
    "no headers": (replacing(None), "left NoneType in place of the headers"),
    "a coroutine function": (coroutine, "is a coroutine function"),
    "not callable so": (lambda: None, "failed with TypeError"),
}


@define
class Mendable:
    """Signs as *spoilt* does until it is mended."""

    spoilt: Callable[[Any], object]
    is_mended: bool = False

    def __call__(self, request: Any) -> object:
        if not self.is_mended:
            return self.spoilt(request)
        request.headers["authorization"] = "good"
        return None


def check_nothing_secret(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    assert error.__cause__ is None
    assert error.__context__ is None
    assert SECRET not in "".join(traceback.format_exception_only(error))
    assert SECRET not in caplog.text


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", SIGNERS)
async def test_a_signer_and_a_direct_call(
    name: str, quick: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """It fails at once, in the signer's thread or on the loop, and says what is wrong."""
    sign, told = SIGNERS[name]

    class Quick(CustomSigner):
        def is_quick(self, signer: Any) -> bool:
            return quick

    async with FakeSession(auth=Quick(Mendable(sign))) as session:
        with pytest.raises(NotAuthenticated, match=rf"the signer \(custom.*{told}") as raised:
            async with asyncio.timeout(30):
                await session.runs.get("r")
        assert session.requests == []
    assert raised.value.code == "CannotSign"
    check_nothing_secret(raised.value, caplog)


@pytest.mark.parametrize("name", SIGNERS)
async def test_a_signer_and_the_logger(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Records are held, one WARNING says why, and all arrive once the signer is mended."""
    sign, told = SIGNERS[name]
    signer = Mendable(sign)
    async with FakeSession(auth=CustomSigner(signer)) as session:
        run = session.attach_run(session.add_run())
        for step in range(3):
            run.log_metric("loss", step / 2, step)
        await until(lambda: "held back" in caplog.text)
        assert run.stats().undelivered == 3
        signer.is_mended = True
        async with asyncio.timeout(30):
            await run.flush()
        received = session.received(run.run_id).metrics
    assert [(point.step, point.value) for point in received] == [(0, 0.0), (1, 0.5), (2, 1.0)]
    warning, all_clear = warnings(caplog)
    assert re.search(told, warning)
    assert all_clear == "batches are delivered again"
    assert SECRET not in caplog.text


async def test_a_signer_that_does_nothing() -> None:
    """Where somebody else signs a signer need not: it writes nothing, and nothing is missed."""
    async with FakeSession(auth=CustomSigner(lambda _request: None)) as session:
        await session.runs.get(session.add_run())


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
async def test_what_ends_a_process_passes(error: type[BaseException]) -> None:
    """An interrupt that lands in a signer on the loop's own thread is nobody's failure."""

    class Quick(CustomSigner):
        def is_quick(self, signer: Any) -> bool:
            return True

    async with FakeSession(auth=Quick(raising(error()))) as session:
        try:
            await session.runs.get("r")
        except error:
            return
    pytest.fail("it was swallowed")


@pytest.mark.parametrize(
    "error", [asyncio.CancelledError(), StopIteration(), Unexpected(), OSError(13, SECRET)]
)
async def test_a_renewal_that_fails_oddly(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever a renewal raises, the 401 comes out, with the type of what failed."""

    class Signer:
        renewals = "many"

        def __call__(self, request: Any) -> None:
            request.headers["authorization"] = SECRET

        def refresh_security_token(self) -> None:
            raise error

    async with FakeSession(auth=CustomSigner(Signer())) as session:
        session.answer(GET_RUN, status=401, times=1)
        with pytest.raises(NotAuthenticated, match=f"failed with {type(error).__name__}") as raised:
            async with asyncio.timeout(30):
                await session.runs.get("r")
    assert raised.value.__cause__ is None
    assert SECRET not in "".join(traceback.format_exception(raised.value)) + caplog.text


@pytest.mark.parametrize("error", [StopIteration(SECRET), asyncio.CancelledError(), OSError(5, "")])
async def test_credentials_that_do_not_load(error: BaseException) -> None:
    """What a way to sign raises on opening is a ConfigurationError that names its type."""

    class Odd(Auth):
        mode = "odd"

        def load(self) -> Any:
            raise error

    session = FakeSession(auth=Odd())
    with pytest.raises(ConfigurationError, match=rf"auth: .*\(odd\).*{type(error).__name__}"):
        async with asyncio.timeout(30):
            await session.open()


@pytest.mark.parametrize("error", [RuntimeError("no home"), ValueError("NUL"), MemoryError()])
async def test_opening_that_fails_half_way(
    bare_platform: LocalPlatform, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left open, and the session can be opened once that is mended."""
    session = bare_platform.session()

    async def fail(auth: Authenticator) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(session._engine.spools, "create", fail)
        with pytest.raises(type(error)):
            await session.open()
    assert "closed" in repr(session._engine.direct.transport)
    assert "closed" in repr(session._engine.auth)
    async with session:
        await session.runs.get(bare_platform.gateway.add_run())


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("authorization", 'Signature a="b"', ""),
        ("x-tab", "a\tb", ""),
        ("dh-user-principal", "Jörg", ""),
        ("x", "a\nb", "line end"),
        ("x", "\x7f", "control character"),
        ("x", "\ud83d", "control character"),
        ("x:y", "a", "name"),
        ("é", "a", "name"),
        ("", "a", "name"),
        (None, "a", "name"),
        ("x", bytearray(b"a"), "bytearray"),
    ],
)
def test_headers_that_can_be_sent(name: Any, value: Any, problem: str) -> None:
    """Every header is judged before it is sent, and its value isn't shown."""
    found = problem_of_header(name, value)
    assert (problem in found) if problem else found == ""


# The clock ---------------------------------------------------------------------------------------

NOW = 1_767_268_800.0
DAY = 86_400.0


@pytest.mark.parametrize(
    ("ahead", "skew", "corrected"),
    [
        (3600.0, 0.0, 3600.0),
        (-3600.0, 0.0, -3600.0),
        (DAY, 0.0, DAY),
        (DAY + 1, 0.0, None),
        (-DAY - 1, 0.0, None),
        (3 * DAY, 0.0, None),
        (74 * 365 * DAY, 0.0, None),
        (-NOW, 0.0, None),
        # What counts is how far it is from our own clock, not from the last correction.
        (DAY + 7200, 7200.0, None),
        (-DAY, DAY, -DAY),
    ],
)
def test_the_correction_is_bounded(ahead: float, skew: float, corrected: float | None) -> None:
    """Nobody makes us sign for a time further off than a day."""
    assert corrected_skew(skew, now=NOW, server_date=http_date(NOW + ahead)) == corrected


ODD_DATES = [
    "Fri, 31 Dec 9999 23:59:59 GMT",
    "Sat, 01 Jan 10000 00:00:00 GMT",
    "Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
    "Mon, 99999999999999999999 Jan 2026 00:00:00 GMT",
    "Thu, 01 Jan 2026 12:00:00 +99999999999999999999",
    "Thu, 01 Jan 2026 12:00:00 -9999",
    "Thu, 01 Jan 2026 99:99:99 GMT",
    "Thu, 01 Jan 0000 00:00:00 GMT",
    "Thu, 01 Jan -2026 00:00:00 GMT",
    "Thu, 01 Jan 2026",
    "Thu, 01 Jan ٢٠٢٦ 12:00:00 GMT",
    ",,,,,,",
    ": : :",
    "\udcff\udcfe",
    "Thu, " * 12_000,
    "0" * 60_000,
]


@pytest.mark.parametrize("date", ODD_DATES, ids=lambda date: repr(date[:24]))
async def test_odd_dates(date: str) -> None:
    """A date of any content with a 401, a 429 and a 503 neither raises nor breaks what follows."""
    parsed = parse_http_date(date)
    assert parsed is None or isinstance(parsed, float)
    async with FakeSession(auth=CustomSigner(lambda _: None)) as session:
        run_id = session.add_run()
        session.answer(GET_RUN, status=401, headers={"date": date}, times=1)
        with pytest.raises(NotAuthenticated):
            await session.runs.get(run_id)
        headers = {"date": date, "retry-after": date}
        session.answer(GET_RUN, status=503, headers=headers, times=1)
        session.answer(LOG_BATCH, status=503, headers=headers, times=1)
        assert session._engine.auth.skew == 0.0
        run = session.attach_run(run_id)
        run.log_metric("loss", 0.5)
        async with asyncio.timeout(30):
            await session.runs.get(run_id)
            await run.flush()


@define
class Doubtful:
    """A service, and what may answer in its place with a wrong time."""

    session: FakeSession
    hour: float = 3600.0
    asked: list[float] = field(factory=list)

    def refuse(self, times: int, ahead: float) -> None:
        headers = {"date": http_date(time.time() + ahead)}
        self.session.answer(GET_RUN, status=401, headers=headers, times=times)


async def test_a_correction_that_does_not_help_is_taken_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """401 with the new time as well: the next call is signed by our own clock again."""
    async with FakeSession() as session:
        run_id = session.add_run()
        service = Doubtful(session)
        for _ in range(3):
            service.refuse(2, ahead=7200)
            with pytest.raises(NotAuthenticated):
                await session.runs.get(run_id)
            assert session._engine.auth.skew == 0.0
        await session.runs.get(run_id)
        dates = [parse_http_date(request.headers["date"]) for request in session.requests]
    assert [round((date or 0) - time.time(), -3) for date in dates] == [0, 7000] * 3 + [0]
    assert caplog.text.count("the local clock is off") == 1, "said once, however often it was tried"


async def test_a_correction_that_helped_stays() -> None:
    """A later 401 about something else doesn't take it back."""
    async with FakeSession() as session:
        run_id = session.add_run()
        service = Doubtful(session)
        service.refuse(1, ahead=7200)
        await session.runs.get(run_id)
        service.refuse(1, ahead=7200)
        with pytest.raises(NotAuthenticated):
            await session.runs.get(run_id)
        assert session._engine.auth.skew == pytest.approx(7200, abs=30)


async def test_an_answer_to_an_old_signature_confirms_nothing() -> None:
    """What was signed before the correction says nothing about it."""
    async with FakeSession() as session:
        auth = session._engine.auth
        auth._correct_clock(http_date(time.time() + 7200))
        auth.accepted(0.0)
        auth.refused(0.0)
        assert auth.skew == pytest.approx(7200, abs=30)
        auth.refused(auth.skew)
        assert auth.skew == 0.0


async def test_clock_and_token_wrong_at_once() -> None:
    """The time is put right, then the token renewed, and the correction stays."""

    class Signer:
        token = 0

        def __call__(self, request: Any) -> None:
            request.headers["authorization"] = f"token {self.token}"

        def refresh_security_token(self) -> None:
            self.token += 1

    async with FakeSession(auth=CustomSigner(Signer())) as session:
        run_id = session.add_run()
        Doubtful(session).refuse(2, ahead=3600)
        await session.runs.get(run_id)
        assert session._engine.auth.skew == pytest.approx(3600, abs=30)
        assert [each.headers["authorization"] for each in session.requests] == [
            "token 0",
            "token 0",
            "token 1",
        ]


# Retry-After -------------------------------------------------------------------------------------

DATE = "Thu, 01 Jan 2026 12:00:00 GMT"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0007", 7.0),
        ("9" * 300, LONGEST_RETRY_AFTER),
        ("1" * 60_000, LONGEST_RETRY_AFTER),
        ("Fri, 31 Dec 9999 23:59:59 GMT", LONGEST_RETRY_AFTER),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        *((value, None) for value in ("1_0", "1e3", "٣", "+7", "0x10", "7,5", ".5", "5.", "٣.5")),
        *((value, None) for value in ("-0", "NaN", "Infinity", "7\x00", "\udcff", "x" * 60_000)),
        *((value, None) for value in ODD_DATES[1:4]),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_retry_after_of_any_content(value: str, seconds: float | None) -> None:
    """A number of seconds up to an hour, or none."""
    assert parse_retry_after(value, date=DATE) == seconds


DATE_TEXT = st.one_of(
    st.text(max_size=80),
    st.text(alphabet=string.digits + ":+-, JanGMT", max_size=60),
    st.builds(
        "{}, {} {} {} {}:{}:{} {}".format,
        st.sampled_from(["Mon", "", "0", "Montag"]),
        st.integers(-5, 10**20),
        st.sampled_from(["Jan", "Feb", "Foo", "13", ""]),
        st.integers(-5, 10**20),
        st.integers(-1, 10**10),
        st.integers(-1, 10**10),
        st.integers(-1, 10**10),
        st.sampled_from(["GMT", "", "+9999", "-0000", "+999999999999", "EST", "x"]),
    ),
)


@settings(max_examples=500, deadline=None)
@given(DATE_TEXT, DATE_TEXT)
def test_no_header_raises(value: str, date: str) -> None:
    """Whatever stands in Retry-After and Date, what comes of it is bounded."""
    wait = parse_retry_after(value, date=date)
    assert wait is None or 0.0 <= wait <= LONGEST_RETRY_AFTER
    skew = corrected_skew(0.0, now=NOW, server_date=date)
    assert skew is None or abs(skew) <= DAY
    assert http_date(NOW + (skew or 0.0))


# Whatever else ------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError(SECRET), KeyError(SECRET), MemoryError()])
async def test_an_error_that_nobody_thought_of(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """It is named by its type, costs the call or holds the batch, and other runs go on."""
    caplog.set_level(logging.DEBUG)
    async with FakeSession() as session:
        run = session.attach_run(session.add_run())
        session.answer(GET_RUN, error, times=1)
        session.answer(LOG_BATCH, error, times=2)
        with pytest.raises(AdpError, match=f"failed with {type(error).__name__}") as raised:
            await session.runs.get(run.run_id)
        run.log_metric("loss", 0.5)
        async with asyncio.timeout(30):
            await run.flush()
        assert run.stats().delivered == 1
    check_nothing_secret(raised.value, caplog)
    assert "unexpected" in caplog.text


async def test_an_executor_that_was_shut_down(bare_platform: LocalPlatform) -> None:
    """Names are looked up without the loop's own pool, which others may block or shut down."""
    endpoint = f"http://localhost:{bare_platform.gateway.port}"
    async with bare_platform.session(endpoint=endpoint, linger=0.01) as session:
        await asyncio.get_running_loop().shutdown_default_executor()
        run = session.attach_run(bare_platform.gateway.add_run())
        run.log_metric("loss", 0.5)
        await session.runs.get(run.run_id)
        await run.flush()
        assert run.stats().delivered == 1


async def test_a_cancellation_of_somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task inside that was cancelled fails the request; nobody has cancelled the caller."""

    def cancelled(*_: Any) -> Any:
        raise asyncio.CancelledError

    monkeypatch.setattr(resolver, "look_up", cancelled)
    async with AiohttpTransport() as transport:
        with pytest.raises(ConnectionFailed, match="CancelledError"):
            await transport.send(Request("GET", "http://localhost:1/"))


@pytest.mark.parametrize(
    "url",
    ["https://[::1/", "https:///", "ftp://example.test/", "nonsense", f"https://{'a' * 70}.test/"],
)
async def test_an_address_that_leads_nowhere(url: str) -> None:
    """It never left, and asking again doesn't help."""
    async with AiohttpTransport() as transport:
        with pytest.raises(ConnectionFailed) as raised:
            await transport.send(Request("GET", url))
    assert not raised.value.retriable
    assert raised.value.__context__ is None


async def _answering(head: bytes) -> tuple[asyncio.Server, str]:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    return server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


@pytest.mark.parametrize("size", [8_200, 30_000, 60_000])
async def test_a_long_reply_header(size: int) -> None:
    """What requests takes is taken."""
    value = b"v" * size
    head = b"HTTP/1.1 200 OK\r\nx-long: " + value + b"\r\ncontent-length: 2\r\n\r\n{}"
    server, url = await _answering(head)
    async with server, AiohttpTransport() as transport:
        reply = await transport.send(Request("GET", url))
    assert reply.headers["x-long"] == value.decode()


async def test_a_reply_header_without_end() -> None:
    """Beyond 64 KB the error says that a header was too long, not what it contained."""
    head = b"HTTP/1.1 200 OK\r\nx-long: " + SECRET.encode() * 20_000 + b"\r\n\r\n"
    server, url = await _answering(head)
    async with server, AiohttpTransport() as transport:
        with pytest.raises(ConnectionLost, match="longer than 65536 bytes") as raised:
            await transport.send(Request("POST", url, {"authorization": SECRET}, b"{}"))
    assert SECRET not in "".join(traceback.format_exception(raised.value))
    assert raised.value.__context__ is None


# Said once, after two seconds --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("looks", "said_at"),
    [
        # When it looks, and whether something has gone wrong by then.
        ([(0.1, True), (1.9, True), (2.0, True), (2.1, True), (9.0, True)], 2.0),
        ([(2.0, False), (3.5, True), (4.0, True)], 3.5),
        ([(0.5, True), (30.0, True)], 30.0),
        ([(2.0, False), (60.0, False)], None),
        ([(1.0, True)], None),
    ],
)
def test_when_a_call_says_that_it_goes_on(
    looks: list[tuple[float, bool]], said_at: float | None
) -> None:
    """Two seconds after its first attempt began, or at the first trouble after that; once."""
    notice = RetryNotice(began=100.0)
    said = [at for at, trouble in looks if notice.is_due(100.0 + at, in_trouble=trouble)]
    assert said == ([] if said_at is None else [said_at])
    assert TELL_AFTER == 2.0


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "TELL_AFTER", 0.03)
    monkeypatch.setattr(adp_async._io.caller, "TELL_AFTER", 0.03)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]


@pytest.mark.usefixtures("soon")
async def test_a_long_back_off(caplog: pytest.LogCaptureFixture) -> None:
    """One failed attempt and a long wait: it is logged during the wait, not after it."""
    async with FakeSession(retry=RetryPolicy(first_backoff=30.0, max_backoff=60.0)) as session:
        session.answer(GET_RUN, status=503, headers={"retry-after": "20"}, times=1)
        call = asyncio.create_task(session.runs.get("r", timeout=100.0))
        await until(lambda: warnings(caplog))
        assert not call.done()
        call.cancel()
    (said,) = warnings(caplog)
    assert re.match(rf"{GET_RUN}: still failing after \d+ s; retrying for up to \d+ s more", said)
    assert "at most 7 times" in said
    assert "503" in said


@pytest.mark.usefixtures("soon")
async def test_a_call_that_a_429_holds(caplog: pytest.LogCaptureFixture) -> None:
    """The refused call logs it, and so does another one that never got its turn."""
    async with FakeSession() as session:
        session.answer(GET_RUN, status=429, headers={"retry-after": "30"}, times=1)
        refused = asyncio.create_task(session.runs.get("r", timeout=60.0))
        await until(lambda: len(session.requests) == 1)
        await asyncio.sleep(0)
        held = asyncio.create_task(session.experiments.get("e", timeout=60.0))
        await until(lambda: len(warnings(caplog)) == 2)
        refused.cancel()
        held.cancel()
    first, second = sorted(warnings(caplog), reverse=True)
    assert first.startswith(f"{GET_RUN}: still failing")
    assert "429" in first
    assert re.match(r"get_experiment_by_id: .*the service throttles \(429\)", second)


@pytest.mark.usefixtures("soon")
async def test_said_once_a_call(caplog: pytest.LogCaptureFixture) -> None:
    """However long it goes on; a call without trouble says nothing, slow as it may be."""
    knobs: Any = {"retry": RetryPolicy(first_backoff=0.01, max_backoff=0.02, max_attempts=50)}
    async with FakeSession(**knobs) as session:
        session.answer(GET_RUN, status=503, times=20)
        await session.runs.get(session.add_run())
        assert len(warnings(caplog)) == 1
        await session.runs.get(next(iter(session.service.store.runs)))
        await asyncio.sleep(0.05)
    assert len(warnings(caplog)) == 1


@pytest.mark.usefixtures("soon")
async def test_the_first_trouble_comes_late(caplog: pytest.LogCaptureFixture) -> None:
    """An attempt that hangs is not logged; when it fails and is retried, that is."""
    async with FakeSession() as session:
        send = session.service.send
        failing = [True]

        async def late(request: Any, **options: Any) -> Any:
            if failing and failing.pop():
                await asyncio.sleep(0.045)
                assert warnings(caplog) == []
                raise ConnectionLost("it broke")
            return await send(request, **options)

        session.service.send = late  # type: ignore[method-assign]
        await session.runs.get(session.add_run())
    (said,) = warnings(caplog)
    assert said.endswith("it broke")


@pytest.mark.usefixtures("soon")
async def test_what_is_not_tried_again_is_only_raised(caplog: pytest.LogCaptureFixture) -> None:
    """A verdict, or the last failure, is the caller's to know."""
    async with FakeSession(retry=RetryPolicy(max_attempts=1)) as session:
        session.answer(GET_RUN, status=503)
        with pytest.raises(ServiceFault):
            await session.runs.get("r")
        await asyncio.sleep(0.04)
    assert warnings(caplog) == []
