"""Mistakes on the road to the service: a direct call fails in seconds, the logger holds.

One table for both.  Then what is judged on opening, and that nothing secret is shown behind any of
the errors.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import socket
import ssl
import subprocess
import time
import traceback
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from attrs import define, frozen
from roads import HOST, Authority, ConnectProxy, Fork, listening, server_context, tls_before

from adp_async import RetryPolicy
from adp_async._io import network_problems, resolver
from adp_async._io.road import trusted_certificates
from adp_async._io.transport import AiohttpTransport
from adp_async._sansio.messages import Request
from adp_async.collector.certificate import Certificate
from adp_async.errors import AdpError, ConfigurationError, ConnectionFailed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from adp_async import Session
    from adp_async.local import LocalPlatform

PASSWORD = "hunter2!"
CREDENTIALS = "robot:hunter2%21"

#: Only patience ends what is tried again, and a second is enough to see it.
KNOBS: dict[str, Any] = {
    "linger": 0.01,
    "close_timeout": 5.0,
    "retry": RetryPolicy(first_backoff=0.02, max_backoff=0.05, max_attempts=10_000),
}


@frozen
class Mistake:
    """The expected message; *passes*: it might pass, and is retried for some seconds."""

    told: str
    passes: bool = False


CA_HINT = r"ca_bundle.*ADP_ASYNC_CA_BUNDLE.*REQUESTS_CA_BUNDLE.*SSL_CERT_FILE"
PROXY = r"proxy 127\.0\.0\.1:\d+, named by the environment's HTTPS_PROXY"

MISTAKES = {
    "unknown authority": Mistake(rf"certificate is not accepted: .*issuer.*{CA_HINT}"),
    "signed by itself": Mistake(rf"certificate is not accepted: .*{CA_HINT}"),
    "another name": Mistake(r"certificate is not accepted: [Hh]ostname mismatch.*the endpoint"),
    "expired": Mistake(r"certificate is not accepted: certificate has expired.*expired, or the cl"),
    "not yet valid": Mistake(r"certificate is not accepted: .*not yet valid.*clock"),
    "http server at https": Mistake(r"does not speak TLS \[.+\].*http server"),
    "https server at http": Mistake(r"server speaks TLS; the address must begin with https://"),
    "TLS 1.0": Mistake("during the TLS handshake.*TLS 1.2 or later", passes=True),
    "TLS 1.1": Mistake("during the TLS handshake.*TLS 1.2 or later", passes=True),
    "closes at once": Mistake("during the TLS handshake", passes=True),
    "no such host": Mistake(r"the host has no address: Name or service.*endpoint", passes=True),
    "proxy says 403": Mistake(rf"the proxy answered 403 .*{PROXY}.*NO_PROXY"),
    "proxy says 407": Mistake(rf"the proxy answered 407 .*{PROXY}.*user and password"),
    "proxy says 302": Mistake(rf"the proxy answered 302 .*{PROXY}"),
    "proxy says 429": Mistake(rf"the proxy answered 429 .*{PROXY}", passes=True),
    "proxy says 502": Mistake(rf"the proxy answered 502 .*{PROXY}", passes=True),
    "proxy speaks SSH": Mistake(rf"to the proxy: the reply is not HTTP.*{PROXY}", passes=True),
    "proxy closes": Mistake(rf"no connection to the proxy: .*{PROXY}", passes=True),
    "proxy is not there": Mistake(rf"no connection to the proxy: .*{PROXY}", passes=True),
}


@define
class Road:
    """A way to the platform that is wrong until *mend* is called."""

    platform: LocalPlatform
    endpoint: str
    mend: Callable[[], Any]

    def session(self, **knobs: Any) -> Session:
        return self.platform.session(endpoint=self.endpoint, **(KNOBS | knobs))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(autouse=True)
def _nobodys_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith(("_proxy", "_ca_bundle", "ssl_cert_file")):
            monkeypatch.delenv(name)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_problems, "PATIENCE", 0.2)


@pytest.fixture
async def road(
    request: pytest.FixtureRequest,
    bare_platform: LocalPlatform,
    authority: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Road]:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.file))
    plain = bare_platform.gateway.port
    good = server_context(authority.server("localhost", HOST))
    async with AsyncExitStack() as stack:
        good_port = await stack.enter_async_context(tls_before(plain, good))
        wrong = _wrong_certificate(request.param, authority, tmp_path)
        if wrong is not None:
            wrong_port = await stack.enter_async_context(tls_before(plain, wrong))
            fork = await stack.enter_async_context(Fork(wrong_port).open())
        elif request.param.startswith("proxy"):
            yield await _by_proxy(request.param, bare_platform, good_port, stack, monkeypatch)
            return
        elif request.param == "no such host":
            yield _by_name(bare_platform, good_port, monkeypatch)
            return
        else:
            target = {"http server at https": plain, "https server at http": good_port}
            fork = await stack.enter_async_context(Fork(target.get(request.param)).open())
        is_plain = request.param == "https server at http"
        goal = plain if is_plain else good_port
        endpoint = f"{'http' if is_plain else 'https'}://localhost:{fork.port}"
        yield Road(bare_platform, endpoint, lambda: setattr(fork, "target", goal))


def _wrong_certificate(name: str, authority: Authority, folder: Path) -> ssl.SSLContext | None:
    match name:
        case "unknown authority":
            return server_context(Authority(folder, "someone else").server("localhost"))
        case "signed by itself":
            return server_context(Authority(folder, "server").server("localhost"))
        case "another name":
            return server_context(authority.server("other.example.test"))
        case "expired":
            return server_context(authority.server("localhost", since=-9, until=-1))
        case "not yet valid":
            return server_context(authority.server("localhost", since=1, until=9))
        case "TLS 1.0":
            return server_context(authority.server("localhost"), only=ssl.TLSVersion.TLSv1)
        case "TLS 1.1":
            return server_context(authority.server("localhost"), only=ssl.TLSVersion.TLSv1_1)
    return None


ANSWERS = {
    "proxy says 403": b"HTTP/1.1 403 Forbidden\r\ncontent-length: 4\r\n\r\nno!\n",
    "proxy says 407": b"HTTP/1.1 407 Who?\r\nproxy-authenticate: Basic realm=x\r\n\r\n",
    "proxy says 302": b"HTTP/1.1 302 Found\r\nlocation: http://login.example.test/\r\n\r\n",
    "proxy says 429": b"HTTP/1.1 429 Too Many\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n",
    "proxy says 502": b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n",
    "proxy speaks SSH": b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
    "proxy closes": b"",
}


async def _by_proxy(
    name: str,
    platform: LocalPlatform,
    good_port: int,
    stack: AsyncExitStack,
    monkeypatch: pytest.MonkeyPatch,
) -> Road:
    proxy = await stack.enter_async_context(ConnectProxy(good_port, ANSWERS.get(name)).open())
    fork = Fork(proxy.port)
    if name == "proxy is not there":
        # Bound, so that nobody else gets the port, and nobody listens.
        unused = stack.enter_context(socket.socket())
        unused.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        unused.bind(("127.0.0.1", 0))
        fork.port = unused.getsockname()[1]

        async def mend() -> None:
            await stack.enter_async_context(listening(fork._connected, port=fork.port))

        monkeypatch.setenv("HTTPS_PROXY", f"{CREDENTIALS}@127.0.0.1:{fork.port}")
        return Road(platform, f"https://{HOST}:7777", mend)
    monkeypatch.setenv("HTTPS_PROXY", f"http://{CREDENTIALS}@127.0.0.1:{proxy.port}")
    return Road(platform, f"https://{HOST}", lambda: setattr(proxy, "answer", None))


def _by_name(platform: LocalPlatform, port: int, monkeypatch: pytest.MonkeyPatch) -> Road:
    look_up = resolver.look_up
    known: list[bool] = []

    def looked_up(host: str, port: int, family: int) -> Any:
        if host == HOST:
            if not known:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            host = "127.0.0.1"
        return look_up(host, port, family)

    monkeypatch.setattr(resolver, "look_up", looked_up)
    return Road(platform, f"https://{HOST}:{port}", lambda: known.append(True))


def everything_shown(error: BaseException) -> str:
    """The traceback, and every `repr` that can be reached from the error."""
    shown = ["".join(traceback.format_exception(error))]
    behind: list[BaseException | None] = [error]
    for each in behind:
        if each is not None:
            shown.append(f"{each!r} {each.__dict__!r}")
            behind += [each.__cause__, each.__context__]
    return "\n".join(shown)


def check_nothing_secret(error: BaseException) -> None:
    text = everything_shown(error)
    for secret in (PASSWORD, CREDENTIALS, "hunter2", "Signature version", "proxy-authorization"):
        assert secret not in text


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("what", ["direct call", "start_run"])
@pytest.mark.parametrize(
    ("mistake", "road"), [(MISTAKES[name], name) for name in MISTAKES],
    ids=MISTAKES, indirect=["road"],
)  # fmt: skip
async def test_a_direct_call(mistake: Mistake, road: Road, what: str) -> None:
    """It fails in seconds, names culprit and fix, and shows nothing secret."""
    async with road.session(spool=False, recover=False) as session:
        began = time.monotonic()
        asking: Any = session.runs.get("r")
        if what == "start_run":
            asking.close()
            asking = session.start_run("e", offline=False)
        with pytest.raises(ConnectionFailed, match=mistake.told) as raised:
            await asking
        assert time.monotonic() - began < 20.0

    assert raised.value.retriable is mistake.passes
    assert not raised.value.maybe_applied
    check_nothing_secret(raised.value)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("mistake", "road"), [(MISTAKES[name], name) for name in MISTAKES],
    ids=MISTAKES, indirect=["road"],
)  # fmt: skip
async def test_a_run_starts(mistake: Mistake, road: Road, caplog: pytest.LogCaptureFixture) -> None:
    """What may pass is told in seconds, by a WARNING, and the run starts; the rest is raised."""
    async with road.session() as session:
        began = time.monotonic()
        if not mistake.passes:
            with pytest.raises(ConnectionFailed, match=mistake.told):
                await session.start_run("e")
            return
        run = await session.start_run("e")
        assert time.monotonic() - began < 20.0
        assert run.run_id is None
        (line,) = [each for each in caplog.messages if "starts offline" in each]
        assert re.search(mistake.told, line)
        assert not any(secret in caplog.text for secret in (PASSWORD, CREDENTIALS, "hunter2"))
        mending = road.mend()
        if mending is not None:
            await mending
        async with asyncio.timeout(30):
            assert await run.created() in road.platform.gateway._stand_in().runs
        await run.finish()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("mistake", "road"), [(MISTAKES[name], name) for name in MISTAKES],
    ids=MISTAKES, indirect=["road"],
)  # fmt: skip
async def test_the_logger(mistake: Mistake, road: Road, caplog: pytest.LogCaptureFixture) -> None:
    """It holds its records, logs a WARNING, and delivers once the mistake is corrected."""
    gateway = road.platform.gateway
    run_id = gateway.add_run()
    async with road.session() as session:
        run = session.attach_run(run_id)
        for step in range(5):
            run.log_metric("loss", step / 2, step)
        async with asyncio.timeout(30):
            while not caplog.records:  # noqa: ASYNC110 - a log line is no event
                await asyncio.sleep(0.005)
        assert run.stats().undelivered == 5
        mending = road.mend()
        if mending is not None:
            await mending
        async with asyncio.timeout(30):
            await run.flush()
        stats = run.stats()

    assert (stats.accepted, stats.delivered, stats.undelivered) == (5, 5, 0)
    received = gateway.received(run_id).metrics
    assert sorted((point.step, point.value) for point in received) == [
        (step, step / 2) for step in range(5)
    ]
    told = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    # (One more of them if a connection breaks while the server is replaced.)
    warning, *_, all_clear = told
    assert "held back" in warning
    assert all_clear == "batches are delivered again"
    assert "hunter2" not in caplog.text


@pytest.mark.parametrize("road", ["no such host"], indirect=True)
async def test_with_the_usual_policy(road: Road) -> None:
    """What might pass is tried for about two seconds, whatever the policy and the time allow."""
    async with road.session(retry=RetryPolicy(), spool=False) as session:
        began = time.monotonic()
        with pytest.raises(ConnectionFailed, match="no address"):
            await session.runs.get("r")
        assert time.monotonic() - began < 20.0


@pytest.mark.parametrize("road", ["proxy says 502", "no such host"], indirect=True)
async def test_a_road_that_has_worked(road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the service has answered, what might pass is waited for as long as a call may take."""
    monkeypatch.setattr(network_problems, "PATIENCE", 0.0)
    run_id = road.platform.gateway.add_run()
    async with road.session(spool=False) as session:
        with pytest.raises(ConnectionFailed):
            await session.runs.get(run_id)
        road.mend()
        await session.runs.get(run_id)
        way = session._engine.direct.transport._ways[road.endpoint]
        assert way.answered
        problem = network_problems.Problem(ConnectionFailed, "no", is_doubtful=True)
        request = Request("GET", road.endpoint)
        assert problem.as_error(request, way).patience == float("inf")  # type: ignore[attr-defined]


def tls_error(reason: str | None) -> ssl.SSLError:
    error = ssl.SSLError(1, SECRET_WORDS)
    if reason is not None:
        error.reason = reason
    return error


SECRET_WORDS = "as said to http://robot:hunter2@proxy"


@pytest.mark.parametrize(
    ("error", "told", "retriable", "is_patient"),
    [
        (tls_error("TLSV1_ALERT_PROTOCOL_VERSION"), "no common version of TLS", False, True),
        (tls_error("UNSUPPORTED_PROTOCOL"), "no common version of TLS", False, True),
        (tls_error("HTTP_REQUEST"), "does not speak TLS", False, True),
        (tls_error("SSLV3_ALERT_HANDSHAKE_FAILURE"), "handshake failed", False, True),
        (tls_error("TLSV1_ALERT_INTERNAL_ERROR"), "handshake failed", True, False),
        (tls_error(None), r"handshake failed \[SSLError\]", False, True),
        (ssl.SSLEOFError(8, SECRET_WORDS), "closed it during the TLS", True, False),
        (ConnectionResetError(), "closed it during the TLS", True, False),
        (socket.gaierror(socket.EAI_AGAIN, "Try again"), "no address: Try again", True, True),
        (socket.gaierror(socket.EAI_FAIL, "Failed"), "no address: Failed", True, False),
        (socket.gaierror(), "no address: no reason given", True, False),
        (
            ConnectionRefusedError(111, "Connect call failed ('::1', 1)"),
            "refused at ::1, port 1",
            True,
            True,
        ),
        (OSError(101, SECRET_WORDS), "no connection: Network is unreachable", True, True),
        (OSError(SECRET_WORDS), "no connection: OSError", True, True),
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_what_the_system_says(
    error: OSError, told: str, retriable: bool, is_patient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which faults pass, which may, and which don't; and that each has a reason."""

    async def fail(*_: Any, **__: Any) -> Any:
        raise error

    def not_found(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(asyncio.BaseEventLoop, "create_connection", fail)
    if isinstance(error, socket.gaierror):
        monkeypatch.setattr(resolver, "look_up", not_found)
    async with listening(fail) as port, AiohttpTransport() as transport:
        with pytest.raises(ConnectionFailed, match=told) as raised:
            await transport.send(Request("GET", f"https://localhost:{port}/"))
    assert raised.value.retriable is retriable
    assert (raised.value.patience == float("inf")) is is_patient
    assert "  (" not in str(raised.value), "a reason is missing"
    check_nothing_secret(raised.value)


async def test_a_proxy_that_was_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """For an address not named on opening, a wrong proxy is reported at its first request."""
    monkeypatch.setenv("HTTPS_PROXY", "socks5://robot:hunter2@localhost")
    async with AiohttpTransport() as transport:
        with pytest.raises(ConnectionFailed, match="'socks5' is not supported") as raised:
            await transport.send(Request("GET", f"https://{HOST}/"))
    assert not raised.value.retriable
    check_nothing_secret(raised.value)


# On opening --------------------------------------------------------------------------------------


@asynccontextmanager
async def behind_tls(platform: LocalPlatform, authority: Authority) -> AsyncIterator[str]:
    context = server_context(authority.server("localhost"))
    async with tls_before(platform.gateway.port, context) as port:
        yield f"https://localhost:{port}"


@pytest.mark.parametrize(
    ("proxy", "told"),
    [
        ("socks5://robot:hunter2@proxy.example.test:1080", r"'socks5'.*proxy\.example\.test:1080"),
        ("socks4a://proxy.example.test", r"'socks4a'.*proxy\.example\.test"),
        ("ftp://robot:hunter2@proxy.example.test", r"'ftp' is not supported"),
        ("hhtp://robot:hunter2@proxy.example.test:80", r"'hhtp' is not supported"),
        ("http://proxy.example.test:port", "cannot be read"),
        ("robot:hunter2@proxy.example.test:99999", "cannot be read"),
        ("http://proxy.example.test:0", "cannot be read"),
        ("http://proxy.example.test:-1", "cannot be read"),
        ("http://robot:hunter2/2@proxy.example.test:80", "cannot be read"),
        ("http://robot:80#hunter2@proxy.example.test", "cannot be read"),
        ("http://robot%3Ax:hunter2@proxy.example.test", "cannot be read"),
        ("http://[::1", "cannot be read"),
        ("http://two words:80", "cannot be read"),
        ("http:/proxy.example.test", "cannot be read"),
        ("://", "cannot be read"),
        ("http://", "cannot be read"),
        ("http://@:80", "cannot be read"),
    ],
)
@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy"])
async def test_a_proxy_that_cannot_be_used(
    bare_platform: LocalPlatform,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    proxy: str,
    told: str,
) -> None:
    """The session doesn't open; the error names the variable and never user or password."""
    monkeypatch.setenv(variable, proxy)
    session = bare_platform.session(endpoint=f"https://{HOST}")
    with pytest.raises(ConfigurationError, match=rf"^proxy: .*{told}.*'s {variable}\)") as raised:
        await session.open()
    assert "robot" not in str(raised.value)
    check_nothing_secret(raised.value)

    monkeypatch.setenv("NO_PROXY", "example.test")
    await session.open()
    await session.close()


async def test_no_proxy_for_this_machine(
    bare_platform: LocalPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain http goes to this machine, and no proxy of the environment is looked at."""
    monkeypatch.setenv("HTTPS_PROXY", "socks5://nowhere")
    async with bare_platform.session() as session:
        await session.runs.get(bare_platform.gateway.add_run())


@pytest.mark.parametrize("credentials", [f"{CREDENTIALS}@", ""])
async def test_by_way_of_a_proxy(
    bare_platform: LocalPlatform,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
    credentials: str,
) -> None:
    """A good proxy gets user and password, if any, and everything arrives."""
    context = server_context(authority.server(HOST))
    async with (
        tls_before(bare_platform.gateway.port, context) as port,
        ConnectProxy(port).open() as proxy,
    ):
        monkeypatch.setenv("https_proxy", f"http://{credentials}127.0.0.1:{proxy.port}")
        knobs = {**KNOBS, "endpoint": f"https://{HOST}", "ca_bundle": authority.file}
        async with bare_platform.session(**knobs) as session:
            await session.runs.get(bare_platform.gateway.add_run())

    assert b"CONNECT aidp.example.test:443 " in proxy.heads[0]
    told = b"proxy-authorization: basic cm9ib3q6ahvudgvymie=\r\n" in proxy.heads[0].lower()
    assert told is bool(credentials)


async def test_a_password_that_is_refused(
    bare_platform: LocalPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy that was told user and password, and says 407, does not accept them."""
    async with ConnectProxy(1, ANSWERS["proxy says 407"]).open() as proxy:
        monkeypatch.setenv("https_proxy", f"http://{CREDENTIALS}@127.0.0.1:{proxy.port}")
        async with bare_platform.session(**KNOBS, endpoint=f"https://{HOST}") as session:
            with pytest.raises(
                ConnectionFailed, match="does not accept the given user and password"
            ):
                await session.runs.get("r")


SOURCES = ["argument", "ADP_ASYNC_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"]


@pytest.mark.parametrize("kind", ["file", "home", "folder"])
@pytest.mark.parametrize("source", SOURCES)
async def test_an_authority_of_ones_own(
    bare_platform: LocalPlatform,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    source: str,
    kind: str,
) -> None:
    """A file, one in the home folder, or a folder of hashes; set long after the import."""
    named = str(authority.file)
    if kind == "home":
        monkeypatch.setenv("HOME", str(authority.folder))
        named = f"~/{authority.file.name}"
    elif kind == "folder":
        named = str(tmp_path)
        openssl = shutil.which("openssl")
        if openssl is None:
            pytest.skip("there is no openssl that could hash")
        command = [openssl, "x509", "-hash", "-noout", "-in", str(authority.file)]
        found = await asyncio.to_thread(subprocess.check_output, command, text=True)
        shutil.copy(authority.file, tmp_path / f"{found.strip()}.0")
    knobs = {"ca_bundle": named} if source == "argument" else {}
    if source != "argument":
        monkeypatch.setenv(source, named)
        for later in SOURCES[SOURCES.index(source) + 1 :]:
            monkeypatch.setenv(later, "/nowhere.pem")
    async with (
        behind_tls(bare_platform, authority) as endpoint,
        bare_platform.session(**KNOBS, **knobs, endpoint=endpoint) as session,
    ):
        await session.runs.get(bare_platform.gateway.add_run())


async def test_it_is_trusted_in_place_of_the_others(
    bare_platform: LocalPlatform, authority: Authority, tmp_path: Path
) -> None:
    """A bundle without the service's authority does not help, as for requests."""
    other = Authority(tmp_path, "another one").file
    async with behind_tls(bare_platform, authority) as endpoint:
        knobs = {**KNOBS, "endpoint": endpoint, "ca_bundle": other}
        async with bare_platform.session(**knobs) as session:
            with pytest.raises(ConnectionFailed, match="certificate is not accepted"):
                await session.runs.get("r")


def _bad_bundle(kind: str, folder: Path, authority: Authority) -> str:
    path = folder / "bundle.pem"
    match kind:
        case "missing":
            return str(path)
        case "empty":
            path.touch()
        case "text":
            path.write_text("these are my certificates\n")
        case "half":
            path.write_bytes(authority.file.read_bytes()[:300])
        case "a key":
            path.write_text(authority.server("x").read_text().partition("-----BEGIN PRIVATE")[2])
        case "a revocation list":
            path.write_bytes(authority.revocations())
        case "binary":
            path.write_bytes(bytes(range(256)) * 10)
        case "folder":
            path.mkdir()
            (path / "ca.pem").write_bytes(authority.file.read_bytes())
        case "pipe":
            os.mkfifo(path)
        case "nobody's home":
            return "~nobody-of-that-name/ca.pem"
        case "below a file":
            path.touch()
            return str(path / "ca.pem")
    return str(path)


BAD_BUNDLES = [
    "missing", "empty", "text", "half", "a key", "a revocation list", "binary", "folder", "pipe",
    "nobody's home", "below a file",
]  # fmt: skip


@pytest.mark.parametrize("kind", BAD_BUNDLES)
@pytest.mark.parametrize("source", SOURCES)
async def test_a_bundle_that_cannot_be_used(
    bare_platform: LocalPlatform,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    source: str,
    kind: str,
) -> None:
    """The session doesn't open, says which setting it was, and opens once that is right."""
    named = _bad_bundle(kind, tmp_path, authority)
    variable = "ADP_ASYNC_CA_BUNDLE" if source == "argument" else source
    if source != "argument":
        monkeypatch.setenv(source, named)
    session = bare_platform.session(**({"ca_bundle": named} if source == "argument" else {}))
    async with asyncio.timeout(30):
        with pytest.raises(ConfigurationError, match=rf"^ca_bundle: .*{variable}.*PEM") as raised:
            await session.open()
    assert raised.value.__context__ is None
    with pytest.raises(AdpError, match="not open yet"):
        await session.runs.get("r")


@pytest.mark.parametrize("bad", ["", "a\0b", 7, b"bytes", ["list"]])
def test_a_bundle_that_is_no_path(bare_platform: LocalPlatform, bad: Any) -> None:
    """What can't be a path is refused when the session is made."""
    with pytest.raises(ConfigurationError, match=r"^ca_bundle: .*a file of certificates"):
        bare_platform.session(ca_bundle=bad)


async def test_nothing_is_connected_on_opening(
    bare_platform: LocalPlatform, authority: Authority
) -> None:
    """Certificates and proxy are read; the service isn't asked."""
    connections = []

    async def connected(_reader: Any, _writer: Any) -> None:
        connections.append(True)

    async with listening(connected) as port:
        knobs = {"endpoint": f"https://localhost:{port}", "ca_bundle": authority.file}
        async with bare_platform.session(**knobs):
            pass
    assert connections == []


def test_certificates_are_read_once(tmp_path: Path) -> None:
    """However many sessions open; a file that was replaced is another one."""
    bundle = tmp_path / "ca.pem"
    bundle.write_bytes(Certificate.make().pem)
    first = trusted_certificates(bundle)
    assert trusted_certificates(bundle) is first
    bundle.write_bytes(Certificate.make().pem + Certificate.make().pem)
    second = trusted_certificates(bundle)
    assert first is not None
    assert second is not None
    assert (first.cert_store_stats()["x509"], second.cert_store_stats()["x509"]) == (1, 2)
