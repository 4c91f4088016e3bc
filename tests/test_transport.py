"""The transport against real sockets: what arrives, and how far a request got when it fails."""

import asyncio
import base64
import functools
import gzip
import platform
import re
import ssl
import struct
import threading
from contextlib import asynccontextmanager, contextmanager, suppress
from socket import SO_LINGER, SOL_SOCKET, socket

import aiohttp
import pytest
from attrs import define, field
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from roads import Authority, listening

import adp_async
from adp_async._io.transport import AiohttpTransport
from adp_async._io.user_agent import user_agent
from adp_async._sansio.messages import ERROR_BODY_BYTES, Request
from adp_async._sansio.signing import Signable, http_date
from adp_async.auth import ApiKey
from adp_async.errors import (
    Closed,
    ConnectionFailed,
    ConnectionLost,
    RequestTimeout,
    UnreadableReply,
)

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


def answer(status: str, body: bytes, *headers: str, length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body) if length is None else length}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


@define
class Exchange:
    """One request as its bytes arrived, and the connection to answer on."""

    head: bytes
    body: bytes
    writer: asyncio.StreamWriter
    connection: int

    @property
    def line(self) -> str:
        return self.head.split(b"\r\n")[0].decode()

    @property
    def headers(self) -> dict[str, str]:
        lines = self.head.decode().split("\r\n")[1:]
        pairs = [line.split(": ", 1) for line in lines if line]
        assert len(pairs) == len({name.lower() for name, _ in pairs}), "a header came twice"
        return {name.lower(): value for name, value in pairs}

    def reset(self) -> None:
        """Close so that the other side gets RST instead of an orderly end."""
        connection = self.writer.get_extra_info("socket")
        connection.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@define
class Server:
    """A server that does to each request what the test says."""

    port: int = 0
    exchanges: list[Exchange] = field(factory=list)
    connections: int = 0
    arrived: asyncio.Event = field(factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def request(self, method: str = "POST", path: str = "/a") -> Request:
        body = b"{}" if method == "POST" else None
        return Request(method, f"{self.url}{path}", body=body, operation="update_run")


@asynccontextmanager
async def serving(behave):
    """Serve with *behave*, a coroutine of an `Exchange`; it writes the reply or misbehaves."""
    server = Server()

    async def connected(reader, writer):
        server.connections += 1
        number = server.connections
        while True:
            exchange = await read_request(reader, writer, number)
            server.exchanges.append(exchange)
            server.arrived.set()
            await behave(exchange)
            await writer.drain()

    async with listening(connected) as server.port:
        yield server


async def read_request(reader, writer, number) -> Exchange:
    head = await reader.readuntil(b"\r\n\r\n")
    exchange = Exchange(head, b"", writer, number)
    exchange.body = await reader.readexactly(int(exchange.headers.get("content-length", 0)))
    return exchange


async def good(exchange):
    exchange.writer.write(OK)


@pytest.fixture
async def transport():
    async with AiohttpTransport() as transport:
        yield transport


# What is signed is what is sent

AWKWARD = [
    "/20260430/a%2Fb/c%27d?filter=name%20LIKE%20%27x%27&y=%3A%2F",
    "/a?plus=1%2B1&space=a%20b&percent=%25&unicode=%E4%BD%A0",
    "/a?lower=%2f%c3%bc&quote=%22",
    "/a/./b/../c?x",
    "/a?x=1&x=2&empty=",
]


@pytest.mark.parametrize("path", AWKWARD)
async def test_the_request_line_is_the_url_as_written(transport, path):
    """Trap 1: not one character of path and query is quoted, unquoted or reordered."""
    async with serving(good) as server:
        await transport.send(server.request("GET", path))

        assert server.exchanges[0].line == f"GET {path} HTTP/1.1"


@pytest.mark.parametrize("path", AWKWARD)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_what_arrives_verifies(transport, path, method):
    """The signature over what the server received is good."""
    key = signing_key()
    signer = signer_of(key)
    async with serving(good) as server:
        request = server.request(method, path)
        signable = Signable.of(request, date=http_date(1388957500.0))
        signer(signable)
        await transport.send(signable.signed(request))

        verify(server.exchanges[0], key.public_key())


@functools.cache
def signing_key():
    return rsa.generate_private_key(65537, 2048)


def signer_of(key):
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()
    return ApiKey(
        tenancy="ocid1.tenancy.oc1..a",
        user="ocid1.user.oc1..b",
        fingerprint=":".join(["a1"] * 16),
        key_content=pem,
    ).load()


def verify(exchange: Exchange, public_key) -> None:
    attributes = dict(
        part.split("=", 1) for part in exchange.headers["authorization"][10:].split(",")
    )
    method, target, _ = exchange.line.split(" ")
    values = {"(request-target)": f"{method.lower()} {target}", **exchange.headers}
    names = attributes["headers"].strip('"').split(" ")
    message = "\n".join(f"{name}: {values[name]}" for name in names).encode()
    signature = base64.b64decode(attributes["signature"].strip('"'))
    public_key.verify(signature, message, padding.PKCS1v15(), hashes.SHA256())


async def test_nothing_is_added_to_what_is_signed(transport):
    """Headers arrive as they were given, once each; cookies are neither kept nor sent."""

    async def set_cookie(exchange):
        exchange.writer.write(answer("200 OK", b"{}", "set-cookie: a=b"))

    async with serving(set_cookie) as server:
        given = {"host": "signed.example.com", "content-length": "0", "content-type": "text/x"}
        for _ in range(2):
            await transport.send(Request("POST", f"{server.url}/a", given, b""))
        headers = server.exchanges[1].headers

    automatic = {"accept": "*/*", "accept-encoding": headers["accept-encoding"]}
    assert headers == {**given, **automatic, "user-agent": user_agent()}


def test_the_user_agent_has_versions():
    """Of this client, Python and aiohttp, and the system: what Oracle's support asks first."""
    found = re.fullmatch(r"adp-async/(\S+) Python/(\S+) aiohttp/(\S+) \((.+)\)", user_agent())

    assert found is not None
    assert found.groups()[:3] == (
        adp_async.__version__,
        platform.python_version(),
        aiohttp.__version__,
    )
    assert found[4].startswith(platform.system())
    assert found[4].isprintable()
    assert found[4].isascii()


async def test_netrc_and_proxies_do_not_interfere(monkeypatch, tmp_path):
    """A .netrc doesn't replace the signature, and no proxy stands between us and this machine."""
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    async with serving(good) as server, AiohttpTransport() as transport:
        request = server.request().with_headers({"authorization": "Signature x"})
        await transport.send(request)

        assert server.exchanges[0].headers["authorization"] == "Signature x"


async def test_the_proxy_of_the_environment(monkeypatch):
    """https goes through HTTPS_PROXY; a proxy that refuses is a connection that never was."""

    async def refuse(exchange):
        exchange.writer.write(b"HTTP/1.1 407 No\r\ncontent-length: 0\r\n\r\n")
        exchange.writer.close()

    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    async with serving(refuse) as server, AiohttpTransport() as transport:
        monkeypatch.setenv("https_proxy", f"user:hidden@127.0.0.1:{server.port}")
        request = Request("GET", "https://aidp.example.com/a")
        with pytest.raises(ConnectionFailed, match="the proxy answered 407") as raised:
            await transport.send(request)

        assert server.exchanges[0].line.startswith("CONNECT aidp.example.com:443 ")
        expected = base64.b64encode(b"user:hidden").decode()
        assert server.exchanges[0].headers["proxy-authorization"] == f"Basic {expected}"
        assert "hidden" not in str(raised.value)


async def test_no_proxy(monkeypatch):
    """NO_PROXY keeps a host out of it."""
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "localhost")
    with nobody_listens() as port:
        async with AiohttpTransport() as transport:
            with pytest.raises(ConnectionFailed, match=f"localhost:{port}|refused at 127"):
                await transport.send(Request("GET", f"https://localhost:{port}/"))


# Replies


async def test_reply(transport):
    """Status, lower-case headers and the whole body come back; connections are used again."""

    async def behave(exchange):
        exchange.writer.write(answer("200 OK", b'{"a":1}', "Opc-Request-Id: x/y", 'ETag: "e"'))

    async with serving(behave) as server:
        replies = [await transport.send(server.request()) for _ in range(3)]

    assert replies[2].status == 200
    assert replies[2].body == b'{"a":1}'
    assert replies[2].request_id == "x/y"
    assert replies[2].etag == '"e"'
    assert server.connections == 1


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Again", "308 Moved"])
async def test_redirects_are_not_followed(transport, status):
    """Trap 5: a redirect is a reply like any other."""
    async with serving(good) as target:

        async def redirect(exchange):
            exchange.writer.write(answer(status, b"", f"location: {target.url}/b"))

        async with serving(redirect) as server:
            reply = await transport.send(server.request())

        assert reply.status == int(status[:3])
        assert target.exchanges == []


@pytest.mark.parametrize(
    ("status", "body"),
    [
        ("401 No", b""),
        ("404 No", b'{"code":"NotFound"}'),
        ("502 Bad Gateway", b"<html>\xff</html>"),
        ("429 Slow down", b"not json"),
    ],
)
async def test_errors_are_replies(transport, status, body):
    """Whatever an error's body is, it comes back as bytes with its status."""

    async def behave(exchange):
        exchange.writer.write(answer(status, body, "retry-after: 7"))

    async with serving(behave) as server:
        reply = await transport.send(server.request())

    assert (reply.status, reply.body) == (int(status[:3]), body)
    assert reply.headers["retry-after"] == "7"


async def test_a_huge_error_is_cut(transport):
    """64 KB of an error's body are kept, and the connection with the rest is given up."""

    async def behave(exchange):
        with suppress(ConnectionError):
            exchange.writer.write(answer("500 No", b"x" * 2_000_000))
            await exchange.writer.drain()

    async with serving(behave) as server:
        reply = await transport.send(server.request())
        assert (await transport.send(server.request())).status == 500

    assert reply.body == b"x" * ERROR_BODY_BYTES
    assert server.connections == 2


@pytest.mark.parametrize("says_its_length", [True, False])
async def test_a_huge_reply_is_unreadable(says_its_length):
    """A good reply beyond the limit is not read to its end, and the pool goes on."""
    body = b"x" * 500_000

    async def behave(exchange):
        if len(server.exchanges) > 1:
            exchange.writer.write(OK)
        elif says_its_length:
            exchange.writer.write(answer("200 OK", body, "opc-request-id: id"))
        else:
            head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nopc-request-id: id\r\n\r\n"
            exchange.writer.write(head + b"7a120\r\n" + body)

    async with serving(behave) as server, AiohttpTransport(max_reply_bytes=100_000) as transport:
        with pytest.raises(UnreadableReply, match="larger than 100000 bytes") as raised:
            await transport.send(server.request())
        assert (await transport.send(server.request())).status == 200

    assert raised.value.status == 200
    assert raised.value.request_id == "id"
    assert raised.value.operation == "update_run"
    assert raised.value.maybe_applied


async def test_a_reply_of_exactly_the_limit():
    """The limit itself is still read."""

    async def behave(exchange):
        exchange.writer.write(answer("200 OK", b"x" * 1000))

    async with serving(behave) as server, AiohttpTransport(max_reply_bytes=1000) as transport:
        assert len((await transport.send(server.request())).body) == 1000


async def test_a_compressed_reply_is_bounded_by_its_real_size():
    """A small reply that unpacks to a large one counts as large."""
    packed = gzip.compress(b"x" * 1_000_000)

    async def behave(exchange):
        exchange.writer.write(answer("200 OK", packed, "content-encoding: gzip"))

    async with serving(behave) as server:
        async with AiohttpTransport() as transport:
            assert len((await transport.send(server.request())).body) == 1_000_000
        async with AiohttpTransport(max_reply_bytes=100_000) as transport:
            with pytest.raises(UnreadableReply):
                await transport.send(server.request())


# Never left


@contextmanager
def nobody_listens():
    """A port that is bound, so that nobody else gets it, and refuses connections."""
    with socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield unused.getsockname()[1]


async def test_refused(transport):
    """Nobody listens: it never left, and the error says who was asked for what."""
    with nobody_listens() as port:
        request = Request("GET", f"http://127.0.0.1:{port}/", operation="update_run")
        told = rf"^update_run: .*127\.0\.0\.1:{port}"
        with pytest.raises(ConnectionFailed, match=told) as raised:
            await transport.send(request)

    assert raised.value.retriable
    assert not raised.value.maybe_applied
    assert raised.value.__context__ is None


async def test_no_such_name(transport):
    """A name that doesn't resolve: it never left."""
    with pytest.raises(ConnectionFailed, match=r"no-such-host\.invalid"):
        await transport.send(Request("GET", "http://no-such-host.invalid/"))


async def test_a_peer_that_does_not_speak_tls(transport):
    """A connection that breaks in the TLS handshake never carried the request."""

    async def slam(_reader, _writer):
        """Close at once."""

    async with listening(slam) as port:
        with pytest.raises(ConnectionFailed):
            await transport.send(Request("GET", f"https://127.0.0.1:{port}/"))


async def test_a_certificate_nobody_vouches_for(transport, tmp_path):
    """An unknown certificate: it never left, and the reason is in the message."""

    async def never(_reader, _writer):
        raise AssertionError("the handshake was completed")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(Authority(tmp_path).server("127.0.0.1"))
    async with listening(never, context) as port:
        with pytest.raises(ConnectionFailed, match="CERTIFICATE_VERIFY_FAILED"):
            await transport.send(Request("GET", f"https://127.0.0.1:{port}/"))


@pytest.mark.parametrize("timeouts", [{"connect_timeout": 0.02}, {"timeout": 0.02}])
async def test_a_connection_that_hangs(timeouts):
    """A TLS handshake nobody answers, bounded by either timeout: it never left."""

    async def silent(reader, _writer):
        await reader.read()

    async with listening(silent) as port, AiohttpTransport(**timeouts) as transport:
        with pytest.raises(ConnectionFailed, match="no connection in time"):
            await transport.send(Request("GET", f"https://127.0.0.1:{port}/"))


async def test_waiting_for_a_free_connection():
    """With all connections busy, a request that runs out of time never left."""
    never = asyncio.Event()

    async def hang(_exchange):
        await never.wait()

    async with serving(hang) as server, AiohttpTransport(limit=1) as transport:
        busy = asyncio.create_task(transport.send(server.request()))
        await server.arrived.wait()
        with pytest.raises(ConnectionFailed):
            await transport.send(server.request(), timeout=0.02)
        busy.cancel()

        assert len(server.exchanges) == 1


# Left, and no whole reply


async def reset_before(exchange):
    exchange.reset()


async def close_before(exchange):
    exchange.writer.close()


async def reset_in_the_middle(exchange):
    exchange.writer.write(answer("200 OK", b'{"a"', length=100))
    await exchange.writer.drain()
    await asyncio.sleep(0.02)
    exchange.reset()


async def truncated(exchange):
    exchange.writer.write(answer("200 OK", b'{"a"', length=100))
    exchange.writer.close()


async def truncated_chunks(exchange):
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    exchange.writer.write(head + b'4\r\n{"a"\r\n')
    exchange.writer.close()


async def half_a_head(exchange):
    exchange.writer.write(b"HTTP/1.1 200 OK\r\nset-cookie: hidden")
    exchange.writer.close()


async def not_http(exchange):
    exchange.writer.write(b"220 smtp.example.com hidden\r\n\r\n")
    exchange.writer.close()


async def not_gzip(exchange):
    exchange.writer.write(answer("200 OK", b"hidden", "content-encoding: gzip"))


BROKEN = [
    reset_before,
    close_before,
    reset_in_the_middle,
    truncated,
    truncated_chunks,
    half_a_head,
    not_http,
    not_gzip,
]


@pytest.mark.parametrize("behave", BROKEN)
async def test_lost(transport, behave):
    """Once a request is out, whatever breaks means it may have taken effect."""
    async with serving(behave) as server:
        with pytest.raises(ConnectionLost, match=r"^update_run: the connection broke") as raised:
            await transport.send(server.request())

        assert len(server.exchanges) == 1, "it was sent once"
    assert raised.value.retriable
    assert raised.value.maybe_applied
    assert not isinstance(raised.value, RequestTimeout)
    assert "hidden" not in str(raised.value)


async def test_reset_after_the_reply(transport):
    """A whole reply counts, whatever happens to the connection afterwards."""

    async def behave(exchange):
        exchange.writer.write(OK)
        await exchange.writer.drain()
        await asyncio.sleep(0.02)
        exchange.reset()
        is_reset.set()

    is_reset = asyncio.Event()
    async with serving(behave) as server:
        assert (await transport.send(server.request())).body == b"{}"
        await is_reset.wait()
        await asyncio.sleep(0.02)  # a look at what has come by the connection
        assert (await transport.send(server.request())).body == b"{}"

        assert server.connections == 2


@pytest.mark.parametrize(
    "unasked",
    [
        OK,
        answer("408 Request Timeout", b"", "connection: close"),
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"\r\n",
        b"not HTTP at all",
    ],
    ids=["200", "408", "100", "blank", "noise"],
)
async def test_what_a_server_says_unasked_is_no_answer(transport, unasked):
    """It comes on a connection that waits to be used again, and the next request has another."""

    async def once_too_often(exchange):
        number = len(server.exchanges)
        exchange.writer.write(answer(f"40{number} No", b"%d" % number))
        await exchange.writer.drain()
        await asyncio.sleep(0.02)
        exchange.writer.write(unasked)
        is_said.set()

    is_said = asyncio.Event()
    async with serving(once_too_often) as server:
        for number in range(1, 4):
            reply = await transport.send(server.request())
            assert (reply.status, reply.body) == (400 + number, b"%d" % number)
            await is_said.wait()
            is_said.clear()
            await asyncio.sleep(0.02)  # a look at what has come by the connection
        assert len(server.exchanges) == 3


async def test_a_connection_is_used_again(transport):
    """While the server says no more than it is asked for."""
    async with serving(good) as server:
        for _ in range(3):
            await transport.send(server.request())
            await asyncio.sleep(0.01)
        assert server.connections == 1


async def test_an_old_connection_closed_just_when_it_is_used(transport):
    """The service closes a kept connection upon the next request: that one may have arrived."""

    async def behave(exchange):
        if len(server.exchanges) == 1:
            exchange.writer.write(OK)
        else:
            exchange.writer.close()

    async with serving(behave) as server:
        await transport.send(server.request())
        with pytest.raises(ConnectionLost):
            await transport.send(server.request())

        assert [exchange.connection for exchange in server.exchanges] == [1, 1]


async def test_a_get_may_be_sent_twice(transport):
    """aiohttp itself repeats a GET, signature and all, when a connection ends before the reply."""

    async def behave(exchange):
        if len(server.exchanges) == 1:
            exchange.writer.close()
        else:
            exchange.writer.write(OK)

    async with serving(behave) as server:
        assert (await transport.send(server.request("GET"))).status == 200

        assert len(server.exchanges) == 2


async def hang(_exchange):
    await asyncio.Event().wait()


async def drip(exchange):
    exchange.writer.write(answer("200 OK", b"", length=1000))
    while True:
        exchange.writer.write(b" ")
        await exchange.writer.drain()
        await asyncio.sleep(0.005)


async def drip_the_head(exchange):
    for byte in b"HTTP/1.1 200 OK\r\nx: " + b"y" * 1000:
        exchange.writer.write(bytes([byte]))
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("behave", [hang, drip, drip_the_head])
@pytest.mark.parametrize("of_the_call", [True, False])
async def test_time_is_bounded(behave, of_the_call):
    """An attempt ends after its time however busy the line is; the request may have arrived."""

    async def second(exchange):
        await (good(exchange) if len(server.exchanges) == 1 else behave(exchange))

    own = None if of_the_call else 0.05
    transport = AiohttpTransport(timeout=0.05 if own is None else 60)
    async with serving(second) as server, transport:
        # Making a connection is not part of it: on a busy machine that takes longer.
        await transport.send(server.request(), timeout=20)
        with pytest.raises(RequestTimeout, match=r"no complete reply within 0\.05 s") as raised:
            await transport.send(server.request(), timeout=own)

    assert raised.value.maybe_applied


@pytest.mark.parametrize("how", ["truncated", "dripping"])
async def test_the_status_of_a_broken_error_counts(transport, how):
    """Of an error whose explanation breaks off, the status and what came are the reply."""

    async def behave(exchange):
        head = answer("503 No", b"<html>", "opc-request-id: id", length=1000)
        exchange.writer.write(head)
        if how == "truncated":
            exchange.writer.close()
        else:
            await asyncio.Event().wait()

    async with serving(behave) as server:
        timeout = 20 if how == "truncated" else 2.0
        reply = await transport.send(server.request(), timeout=timeout)

    assert (reply.status, reply.body, reply.request_id) == (503, b"<html>", "id")


# Cancelling, closing


async def test_cancelling_closes_the_connection():
    """The service sees the end of a cancelled request, and the pool of one works on."""
    seen = asyncio.Event()

    async def behave(exchange):
        if len(server.exchanges) > 1:
            exchange.writer.write(OK)
            return
        seen.set()
        await asyncio.Event().wait()

    async with serving(behave) as server, AiohttpTransport(limit=1) as transport:
        task = asyncio.create_task(transport.send(server.request()))
        await seen.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

        assert (await transport.send(server.request())).status == 200
        assert [exchange.connection for exchange in server.exchanges] == [1, 2]


async def test_cancelling_in_the_middle_of_a_body():
    """A connection with half a reply in it is not used again."""
    half = asyncio.Event()

    async def behave(exchange):
        if len(server.exchanges) > 1:
            exchange.writer.write(OK)
            return
        exchange.writer.write(answer("200 OK", b"{", length=10))
        await exchange.writer.drain()
        half.set()
        await asyncio.Event().wait()

    async with serving(behave) as server, AiohttpTransport(limit=1) as transport:
        task = asyncio.create_task(transport.send(server.request()))
        await half.wait()
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

        assert (await transport.send(server.request())).body == b"{}"


async def test_a_deadline_around_a_call_stays_the_callers(transport):
    """asyncio.timeout of the caller is not taken for one of ours."""
    async with serving(hang) as server:
        with pytest.raises(TimeoutError) as raised:
            async with asyncio.timeout(0.02):
                await transport.send(server.request())

    assert not isinstance(raised.value, RequestTimeout)


async def test_many_at_once(transport):
    """No more connections than the limit, and every reply to its own request."""

    async def echo(exchange):
        exchange.writer.write(answer("200 OK", exchange.line.encode()))

    async with serving(echo) as server, AiohttpTransport(limit=5) as small:
        requests = [server.request("GET", f"/{number}") for number in range(50)]
        replies = await asyncio.gather(*map(small.send, requests))

        assert [reply.body for reply in replies] == [
            f"GET /{number} HTTP/1.1".encode() for number in range(50)
        ]
        assert server.connections == 5


async def test_closed():
    """Before opening and after closing nothing is sent; both may be done twice."""
    transport = AiohttpTransport()
    async with serving(good) as server:
        with pytest.raises(Closed):
            await transport.send(server.request())
        await transport.open()
        await transport.open()
        await transport.send(server.request())
        assert repr(transport) == "<AiohttpTransport open | at most 100 connections>"
        await transport.close()
        await transport.close()
        with pytest.raises(Closed):
            await transport.send(server.request())


async def test_closing_ends_what_is_on_its_way(transport):
    """A request that is out when the pool closes may have arrived."""
    async with serving(hang) as server:
        task = asyncio.create_task(transport.send(server.request()))
        await server.arrived.wait()
        await transport.close()
        with pytest.raises(ConnectionLost):
            await task


async def test_a_header_with_a_line_break_is_not_sent(transport):
    """The last line of defence against smuggled headers."""
    async with serving(good) as server:
        request = server.request().with_headers({"x-own": "a\r\nx-other: b"})
        with pytest.raises(ConnectionFailed, match="the header 'x-own' holds a line end") as raised:
            await transport.send(request)
        assert not raised.value.retriable

        assert server.exchanges == []


@pytest.mark.parametrize("ending", ["closed", "aborted"])
async def test_no_thread_outlives_the_pool(ending):
    """The one that looks hosts up ends with it: a notebook opens many sessions."""

    def resolvers() -> set[threading.Thread]:
        return {each for each in threading.enumerate() if each.name == "adp_async resolver"}

    before = resolvers()
    transport = AiohttpTransport()
    await transport.open()
    (resolver,) = resolvers() - before
    if ending == "closed":
        await transport.close()
    else:
        transport.abort()
    async with asyncio.timeout(10):
        while resolver.is_alive():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.005)
