"""The transport's translation of replies and errors, without a socket (aioresponses)."""

import asyncio
import errno
import functools
import inspect
import ssl
from types import SimpleNamespace

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey
from aioresponses import aioresponses
from yarl import URL

from adp_async._io.transport import AiohttpTransport
from adp_async._io.user_agent import user_agent
from adp_async._sansio.messages import Request
from adp_async.errors import ConnectionFailed, ConnectionLost, RequestTimeout

ADDRESS = "https://aidp.example.com/20260430/a"
REQUEST = Request("POST", ADDRESS, {"x-own": "1"}, b"{}", operation="update_run")
KEY = ConnectionKey("aidp.example.com", 443, True, True, None, None, None)


class Response(aiohttp.ClientResponse):
    """aioresponses 0.7.9 doesn't know the argument that aiohttp 3.14 asks for."""

    def __init__(self, *args, **kwargs):
        if "stream_writer" in inspect.signature(aiohttp.ClientResponse.__init__).parameters:
            kwargs.setdefault("stream_writer", SimpleNamespace(output_size=0))
        super().__init__(*args, **kwargs)


@pytest.fixture
def mocked():
    with aioresponses() as mocked:
        mocked.post = functools.partial(mocked.post, response_class=Response)
        yield mocked


@pytest.fixture
async def transport():
    async with AiohttpTransport(connect_timeout=3, timeout=7) as transport:
        yield transport


async def test_reply(mocked, transport):
    """Status, lower-case headers and body of a reply."""
    headers = {"Opc-Request-Id": "id", "ETag": "e"}
    mocked.post(ADDRESS, status=201, body=b'{"a":1}', headers=headers)

    reply = await transport.send(REQUEST)

    assert (reply.status, reply.body, reply.request_id, reply.etag) == (201, b'{"a":1}', "id", "e")


async def test_what_aiohttp_is_asked(mocked, transport):
    """The very URL, no redirects, both time limits, the bytes as they are."""
    mocked.post(ADDRESS, body=b"{}")

    await transport.send(REQUEST)

    ((method, url),) = mocked.requests
    (call,) = mocked.requests[method, url]
    assert (method, url) == ("POST", URL(ADDRESS, encoded=True))
    assert call.kwargs["allow_redirects"] is False
    assert call.kwargs["data"] == b"{}"
    assert call.kwargs["headers"] == {"x-own": "1", "user-agent": user_agent()}
    assert call.kwargs["timeout"] == aiohttp.ClientTimeout(total=7, sock_connect=3)


async def test_the_time_of_one_attempt(mocked, transport):
    """A timeout given with the request replaces the transport's."""
    mocked.post(ADDRESS, body=b"{}")

    await transport.send(REQUEST, timeout=0.5)

    (call,) = mocked.requests["POST", URL(ADDRESS)]
    assert call.kwargs["timeout"].total == 0.5


def connector_error(kind, error):
    return kind(KEY, error)


NEVER_LEFT = [
    connector_error(aiohttp.ClientConnectorError, OSError(errno.ECONNREFUSED, "refused")),
    connector_error(aiohttp.ClientConnectorDNSError, OSError(-2, "no such name")),
    connector_error(aiohttp.ClientProxyConnectionError, OSError(errno.ECONNREFUSED, "refused")),
    connector_error(aiohttp.ClientConnectorSSLError, ssl.SSLError(1, "no cipher")),
    connector_error(
        aiohttp.ClientConnectorCertificateError, ssl.SSLCertVerificationError(1, "unknown issuer")
    ),
    aiohttp.ConnectionTimeoutError("took too long"),
]

LEFT = [
    aiohttp.ServerDisconnectedError("hidden"),
    aiohttp.ClientOSError(errno.ECONNRESET, "reset"),
    aiohttp.ClientConnectionResetError("hidden"),
    aiohttp.ClientConnectionError("hidden"),
    aiohttp.ClientPayloadError("hidden"),
    aiohttp.ClientError("hidden"),
    ConnectionResetError(errno.ECONNRESET, "reset"),
    BrokenPipeError(),
]


@pytest.mark.parametrize("error", NEVER_LEFT, ids=lambda error: type(error).__name__)
async def test_never_left(mocked, transport, error):
    """Errors of connecting: it can be sent again without a thought."""
    mocked.post(ADDRESS, exception=error)

    with pytest.raises(ConnectionFailed, match=r"^update_run: no connection.*aidp\.") as raised:
        await transport.send(REQUEST)

    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None
    assert not raised.value.maybe_applied


@pytest.mark.parametrize("error", LEFT, ids=lambda error: type(error).__name__)
async def test_left(mocked, transport, error):
    """All other errors: it may have taken effect.  aiohttp's own words stay out of the message."""
    mocked.post(ADDRESS, exception=error)

    with pytest.raises(ConnectionLost, match=r"^update_run: the connection broke") as raised:
        await transport.send(REQUEST)

    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None
    assert raised.value.maybe_applied
    assert "hidden" not in str(raised.value)


@pytest.mark.parametrize("error", [TimeoutError(), aiohttp.SocketTimeoutError("hidden")])
async def test_timeouts(mocked, transport, error):
    """Time that ran out after connecting is a RequestTimeout, and so a ConnectionLost."""
    mocked.post(ADDRESS, exception=error)

    with pytest.raises(RequestTimeout, match=r"^update_run: no complete reply within 7 s"):
        await transport.send(REQUEST)


async def test_cancellation_passes(mocked, transport):
    """A cancellation is nobody's error."""
    mocked.post(ADDRESS, exception=asyncio.CancelledError())

    with pytest.raises(asyncio.CancelledError):
        await transport.send(REQUEST)


async def test_a_request_without_an_operation_is_named_by_its_path(mocked, transport):
    """The query, which may hold what was searched for, stays out of messages."""
    address = f"{ADDRESS}?filter=hidden"
    mocked.post(address, exception=aiohttp.ClientPayloadError())

    with pytest.raises(ConnectionLost, match=r"^POST /20260430/a: ") as raised:
        await transport.send(Request("POST", address))

    assert "hidden" not in str(raised.value)
