"""Sends one signed request, once, and says how far it got.

Whether a request never left or was lost on the way is decided here, since nobody can tell later:
`ConnectionFailed` when no connection came about, `ConnectionLost` from the moment there was one,
also when the service closed an old connection just as it was used again.  An answer of any status
is a `Reply`; what it means is read elsewhere (`adp_async._sansio.replies`).

Whatever aiohttp, ssl or the system raise becomes one of these, made anew: their own errors hold
URLs, headers and a proxy's password, and would be shown as its cause.  And what is wrong with the
set-up is told from what passes by itself: a certificate that nobody vouches for is no better in a
minute.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import warnings
from contextlib import aclosing, suppress
from contextvars import ContextVar
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Self

import aiohttp
from aiohttp import http_exceptions
from attrs import define, evolve, frozen
from yarl import URL

from adp_async._io.resolver import Resolver
from adp_async._io.road import Proxy, proxy_for, trusted_certificates
from adp_async._sansio.messages import ERROR_BODY_BYTES, Reply
from adp_async._sansio.signing import problem_of_header
from adp_async._sansio.texts import printable
from adp_async.auth import reason_of
from adp_async.errors import (
    AdpError,
    Closed,
    ConfigurationError,
    ConnectionFailed,
    ConnectionLost,
    RequestTimeout,
    UnreadableReply,
)

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator

    from aiohttp.connector import Connection

    from adp_async._sansio.messages import Request, Stream

__all__ = ["AiohttpTransport"]

USER_AGENT: Final = "adp-async"

#: The largest good reply that is read.  A page of 1000 runs with all their tags is about 10 MB.
MAX_REPLY_BYTES: Final = 64 * 2**20

#: The longest reply header.  Some gateways put whole tokens there.
MAX_HEADER_BYTES: Final = 64 * 1024

#: How long a direct call retries what may be a mistake in the set-up, or may pass.
PATIENCE: Final = 2.5
_PROBE_TIMEOUT: Final = 1.0


class _Journey:
    """How far one request got."""

    __slots__ = ("connected", "connecting")

    def __init__(self) -> None:
        self.connecting = False
        self.connected = False


#: That of the task: it is the request's own task in which aiohttp asks for a connection.
_JOURNEY: Final[ContextVar[_Journey]] = ContextVar("journey")


@define
class _Way:
    """How requests get to one server, and whether one was ever answered there."""

    proxy: Proxy | None
    answered: bool = False


class AiohttpTransport:
    """A pool of connections.  Safe for many requests at once, on one event loop.

    *connect_timeout* bounds connecting, *timeout* one attempt from start to end, *limit* the
    connections that are open at once, *max_reply_bytes* a good reply's body.  *ca_bundle*: whom
    to trust, see `trusted_certificates`.
    """

    def __init__(
        self,
        *,
        connect_timeout: float = 10.0,
        timeout: float = 60.0,
        limit: int = 100,
        max_reply_bytes: int = MAX_REPLY_BYTES,
        ca_bundle: str | os.PathLike[str] | None = None,
    ) -> None:
        self._connect_timeout = connect_timeout
        self._timeout = timeout
        self._limit = limit
        self._max_reply_bytes = max_reply_bytes
        self._ca_bundle = ca_bundle
        self._session: aiohttp.ClientSession | None = None
        self._certificates: ssl.SSLContext | None = None
        self._is_loaded = False
        self._ways: dict[str, _Way] = {}

    def __repr__(self) -> str:
        state = "closed" if self._session is None else "open"
        return f"<AiohttpTransport {state} | at most {self._limit} connections>"

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def load(self, address: str = "") -> None:
        """Read the certificates, and which proxy leads to *address*.  Blocks.

        Raises `ConfigurationError`.
        """
        self._certificates = trusted_certificates(self._ca_bundle)
        self._is_loaded = True
        self._ways.clear()
        if address:
            self._way_to(URL(address, encoded=True))

    async def open(self) -> None:
        """Make the pool.  Nothing is connected before the first request."""
        if not self._is_loaded:
            self.load()
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=_Connector(
                    limit=self._limit, ssl=self._certificates or True, resolver=Resolver()
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"user-agent": USER_AGENT},
                # Proxies are looked up in `load`: aiohttp's trust_env brings .netrc along, which
                # replaces the signature, and costs two hops to other threads a request.
                trust_env=False,
                max_line_size=MAX_HEADER_BYTES,
                max_field_size=MAX_HEADER_BYTES,
            )

    async def close(self) -> None:
        """Close all connections.  Requests on their way end with an error."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def abandon(self) -> None:
        """Drop the connections, whose event loop may be gone; the system closes them."""
        session, self._session = self._session, None
        connector = None if session is None else session.connector
        if session is not None and connector is not None:
            session.detach()
            with suppress(RuntimeError), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                connector.close()  # of which only the waiting is left out

    async def send(self, request: Request, *, timeout: float | None = None) -> Reply:
        """Send *request* exactly as it is and read the reply to its end.

        Raises `ConnectionFailed`, `ConnectionLost`, `RequestTimeout` after *timeout* seconds
        (default: that of the transport; with a stream it counts from the last chunk that left),
        `UnreadableReply` for a good reply that is too big, and the failure of a stream; nothing
        that isn't an `AdpError`.  Cancelling closes the connection.
        """
        if self._session is None:
            message = "the transport is not open"
            raise Closed(message)
        seconds = self._timeout if timeout is None else timeout
        journey = _Journey()
        _JOURNEY.set(journey)
        way = _Way(None)
        try:
            url = URL(request.url, encoded=True)
            way = self._way_to(url)
            reply = await self._exchange(self._session, request, url, way, seconds)
            way.answered = True
            return reply
        except ConfigurationError as error:  # only of an address that was not loaded before
            problem = _Problem(ConnectionFailed, f"no connection: {error}", is_permanent=True)
        except AdpError:
            raise
        except asyncio.CancelledError as error:
            if _is_cancelled() or not (journey.connecting or journey.connected):
                raise
            problem = _problem_of(error, request, way, journey, seconds)
        except Exception as error:
            problem = _problem_of(error, request, way, journey, seconds)
        # Out here the error has no context: nothing of aiohttp's is shown behind it.
        if request.stream is not None and request.stream.failure is not None:
            raise request.stream.failure
        if problem.may_be_tls and not way.answered and await _speaks_tls(url):
            what = "no connection: the server speaks TLS; the address must begin with https://"
            problem = _Problem(ConnectionFailed, what, is_permanent=True)
        raise problem.as_error(request, way)

    async def _exchange(
        self,
        session: aiohttp.ClientSession,
        request: Request,
        url: URL,
        way: _Way,
        seconds: float,
    ) -> Reply:
        if request.stream is None:
            return await self._sent(session, request, url, way, request.body, seconds)
        async with asyncio.timeout(seconds) as stalled:
            body = _watched(request.stream, stalled, seconds)
            try:
                return await self._sent(session, request, url, way, body, None)
            finally:
                # aiohttp lets go of it in the middle; where it has been cancelled, it ends itself.
                with suppress(RuntimeError):
                    await body.aclose()

    async def _sent(
        self,
        session: aiohttp.ClientSession,
        request: Request,
        url: URL,
        way: _Way,
        body: object,
        seconds: float | None,
    ) -> Reply:
        proxy = way.proxy
        async with session.request(
            request.method,
            url,
            headers=request.headers,
            data=body,
            # A redirect would replay the signature at another target.
            allow_redirects=False,
            proxy=proxy.url if proxy else None,
            proxy_headers=proxy.headers if proxy else None,
            timeout=_client_timeout(seconds, self._connect_timeout),
        ) as response:
            body = await self._read(response, request)
            headers = {name.lower(): value for name, value in response.headers.items()}
            return Reply(response.status, headers, body)

    async def _read(self, response: aiohttp.ClientResponse, request: Request) -> bytes:
        if 200 <= response.status < 300:
            return await self._read_whole(response, request)
        body = bytearray()
        try:
            await _read_up_to(ERROR_BODY_BYTES, response, body)
        except (aiohttp.ClientError, TimeoutError, OSError):
            # The status is the answer; what there is of its explanation will do.
            response.close()
        return bytes(body)

    async def _read_whole(self, response: aiohttp.ClientResponse, request: Request) -> bytes:
        body = bytearray()
        limit = self._max_reply_bytes
        if (response.content_length or 0) <= limit:
            await _read_up_to(limit + 1, response, body)
            if len(body) <= limit:
                return bytes(body)
        response.close()
        message = f"{_name(request)}: the reply is larger than {limit} bytes"
        request_id = printable(response.headers.get("opc-request-id", ""))
        raise UnreadableReply(
            message, status=response.status, request_id=request_id, operation=request.operation
        )

    def _way_to(self, url: URL) -> _Way:
        origin = f"{url.scheme}://{url.raw_authority}"
        way = self._ways.get(origin)
        if way is None:
            way = self._ways[origin] = _Way(proxy_for(url))
        return way


async def _read_up_to(limit: int, response: aiohttp.ClientResponse, body: bytearray) -> None:
    """Read into *body*, at most *limit* bytes; a connection with more to come is closed."""
    read = response.content.readany
    while chunk := await read():
        body += chunk[: limit - len(body)]
        if len(body) >= limit:
            response.close()
            return


async def _watched(
    stream: Stream, stalled: asyncio.Timeout, seconds: float
) -> AsyncGenerator[bytes, None]:
    """The chunks of *stream*, each of which puts the end of *stalled* off."""
    loop = asyncio.get_running_loop()
    async with aclosing(stream.chunks()) as chunks:
        async for chunk in chunks:
            yield chunk
            with suppress(RuntimeError):  # the answer came early, and all is over
                stalled.reschedule(loop.time() + seconds)


@lru_cache
def _client_timeout(total: float | None, connect: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=total, sock_connect=connect)


class _Connector(aiohttp.TCPConnector):
    """Keeps the `_Journey` of whoever asks for a connection.

    aiohttp's tracing would tell it, too, but makes URLs, objects and calls for everything that
    happens to a request: a tenth of what sending one costs.
    """

    async def connect(self, *arguments: Any, **named: Any) -> Connection:
        journey = _JOURNEY.get()
        journey.connecting = True
        connection = await super().connect(*arguments, **named)
        journey.connecting = False
        journey.connected = True
        return connection


def _is_cancelled() -> bool:
    """Whether it is us who are cancelled, and not a task that aiohttp waited for."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


async def _speaks_tls(url: URL) -> bool:
    """Whether TLS can be agreed on with a server that broke a request of plain http."""
    anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anyone.check_hostname = False
    anyone.verify_mode = ssl.CERT_NONE  # nothing is sent, and nothing is believed
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT):
            _, writer = await asyncio.open_connection(url.host, url.port, ssl=anyone)
    except (OSError, RuntimeError, ValueError):  # SSLError and TimeoutError are OSErrors
        return False
    writer.transport.abort()
    return True


# What went wrong ----------------------------------------------------------------------------------


@frozen
class _Problem:
    """What an error of the network means.

    *is_permanent*: it doesn't pass by itself.  *is_doubtful*: it may pass, or be a mistake in the
    set-up, as long as that has never worked.  *may_be_tls*: a server that expects TLS breaks
    plain http like that.
    """

    kind: type[AdpError]
    what: str
    fix: str = ""
    is_permanent: bool = False
    is_doubtful: bool = False
    may_be_tls: bool = False

    def as_error(self, request: Request, way: _Way) -> AdpError:
        by_way_of = f" by way of the proxy {way.proxy}" if way.proxy else ""
        fix = f". {self.fix}" if self.fix else ""
        error = self.kind(f"{_name(request)}: {self.what} ({_host(request)}{by_way_of}){fix}")
        if self.is_permanent:
            error.retriable = False
        elif self.is_doubtful and not way.answered and isinstance(error, ConnectionFailed):
            error.patience = PATIENCE
        return error


def _problem_of(
    error: BaseException, request: Request, way: _Way, journey: _Journey, seconds: float
) -> _Problem:
    is_known = isinstance(error, aiohttp.ClientError | OSError) and not isinstance(
        error, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError
    )
    if not is_known and (header := _bad_header(request)):
        return _Problem(ConnectionFailed, f"not sent: {header}", is_permanent=True)
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return _refused_by_proxy(error, way)
    if (
        journey.connecting
        or isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
        or not (is_known or journey.connected or isinstance(error, asyncio.CancelledError))
    ):
        return _no_connection(error, way, is_known=is_known)
    if isinstance(error, TimeoutError):
        return _Problem(RequestTimeout, f"no whole reply within {seconds:g} s")
    is_http = isinstance(_parser_error(error), http_exceptions.LineTooLong)
    may_be_tls = request.url.startswith("http://") and not is_http
    return _Problem(ConnectionLost, f"the connection broke{_reason(error)}", may_be_tls=may_be_tls)


def _refused_by_proxy(error: aiohttp.ClientHttpProxyError, way: _Way) -> _Problem:
    status = error.status
    fix = _PROXY_FIXES.get(status, "")
    if status == 407 and way.proxy and way.proxy.headers:
        fix = "It does not accept the user and password that it was given."
    problem = _Problem(ConnectionFailed, f"the proxy answered {status}", fix)
    is_refusal = status < 500 and status not in _PASSING_STATUSES
    return evolve(problem, is_permanent=is_refusal, is_doubtful=True)


def _no_connection(error: BaseException, way: _Way, *, is_known: bool) -> _Problem:
    if isinstance(error, TimeoutError | aiohttp.ConnectionTimeoutError):
        return _Problem(ConnectionFailed, "no connection in time")
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        cause = error.certificate_error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return _untrusted(cause)
    if isinstance(cause, ssl.SSLError):
        return _no_tls(cause)
    if isinstance(cause, socket.gaierror):
        return _no_address(cause, way)
    if isinstance(cause, ConnectionResetError | ConnectionAbortedError | BrokenPipeError):
        return _closed_while_connecting(way)
    whose = "no connection to the proxy" if _is_about_proxy(error, way) else "no connection"
    reason = _reason(cause)
    if isinstance(error, aiohttp.ClientConnectorError) and _is_plain(error.os_error.strerror):
        reason = f": {error.os_error.strerror}"  # it says which address it was, too
    problem = _Problem(ConnectionFailed, f"{whose}{reason}", is_permanent=not is_known)
    return evolve(problem, is_doubtful=way.proxy is not None)


def _is_plain(text: str | None) -> bool:
    return bool(text) and re.fullmatch(r"[\w\s()',:.%\[\]-]{1,300}", text or "") is not None


def _is_about_proxy(error: BaseException, way: _Way) -> bool:
    is_direct = isinstance(error, aiohttp.ClientConnectorError)
    return way.proxy is not None and (
        isinstance(error, aiohttp.ClientProxyConnectionError) or not is_direct
    )


def _untrusted(error: ssl.SSLCertVerificationError) -> _Problem:
    said = getattr(error, "verify_message", "") or "unknown reason"
    fix = _CERTIFICATE_FIXES.get(getattr(error, "verify_code", 0), _CA_FIX)
    what = f"no connection: its certificate is not accepted: {said} [CERTIFICATE_VERIFY_FAILED]"
    return _Problem(ConnectionFailed, what, fix, is_permanent=True)


def _no_tls(error: ssl.SSLError) -> _Problem:
    reason = getattr(error, "reason", None) or ""  # one that wasn't made by OpenSSL has none
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError):
        return _closed_while_connecting(_Way(None))
    shown = reason or type(error).__name__
    if reason in _NOT_TLS:
        what, fix = "the server does not speak TLS", "Check the endpoint: is it an http server?"
    elif reason in _OLD_TLS:
        what, fix = "no common version of TLS", "TLS 1.2 or later is needed."
    else:
        what, fix = "TLS could not be agreed on", ""
    is_passing = reason == "TLSV1_ALERT_INTERNAL_ERROR"
    problem = _Problem(ConnectionFailed, f"no connection: {what} [{shown}]", fix)
    return evolve(problem, is_permanent=not is_passing, is_doubtful=is_passing)


def _no_address(error: socket.gaierror, way: _Way) -> _Problem:
    whose = "the proxy's host" if way.proxy else "the host"
    what = f"no connection: {whose} has no address: {error.strerror or 'no reason given'}"
    if error.errno == socket.EAI_AGAIN:
        return _Problem(ConnectionFailed, what)
    fix = "Check its name (endpoint, region, HTTPS_PROXY), then DNS and VPN."
    return _Problem(ConnectionFailed, what, fix, is_doubtful=True)


def _closed_while_connecting(way: _Way) -> _Problem:
    by = "proxy or server" if way.proxy else "server"
    what = f"no connection: the {by} closed it while TLS was being agreed on"
    fix = "If that lasts, check the port, firewalls, and that the server offers TLS 1.2 or later."
    return _Problem(ConnectionFailed, what, fix, is_doubtful=True)


_PASSING_STATUSES: Final = frozenset({408, 425, 429})
_PROXY_FIXES: Final = {
    407: "It wants a user and password: HTTPS_PROXY=http://user:password@host:port.",
    403: "It does not let this host pass: have it allowed, or exempt the host with NO_PROXY.",
}
_CA_FIX: Final = (
    "If a company or a proxy signs with its own authority, name its certificates by the setting "
    "ca_bundle or by ADP_ASYNC_CA_BUNDLE, REQUESTS_CA_BUNDLE or SSL_CERT_FILE."
)
#: By OpenSSL's number for what is wrong with a certificate.
_CERTIFICATE_FIXES: Final = {
    9: "Check the clock of this machine.",
    10: "It has expired, or the clock of this machine is wrong.",
    62: "Check the endpoint: another server answers there, or it has another name.",
    64: "Check the endpoint: another server answers there, or it has another name.",
}
_NOT_TLS: Final = frozenset(
    {
        "WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "RECORD_LAYER_FAILURE",
        "PACKET_LENGTH_TOO_LONG", "UNKNOWN_PROTOCOL", "UNEXPECTED_MESSAGE",
    }
)  # fmt: skip
_OLD_TLS: Final = frozenset(
    {
        "UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION", "NO_PROTOCOLS_AVAILABLE",
        "WRONG_SSL_VERSION", "UNSUPPORTED_SSL_VERSION", "VERSION_TOO_LOW",
    }
)  # fmt: skip


def _reason(error: BaseException) -> str:
    """What the system says.  aiohttp's own texts can hold whole headers, queries and URLs."""
    cause = _parser_error(error)
    if isinstance(cause, http_exceptions.LineTooLong):
        return f": a header of the reply is longer than {MAX_HEADER_BYTES} bytes"
    if cause is not None:
        return f": the reply is not HTTP ({type(cause).__name__})"
    return f": {reason_of(error)}"


def _parser_error(error: BaseException) -> http_exceptions.HttpProcessingError | None:
    """What aiohttp's parser stumbled over: the last in a row of causes, whose type tells most."""
    found = None
    cause = error.__cause__ if isinstance(error, aiohttp.ClientResponseError) else None
    while isinstance(cause, http_exceptions.HttpProcessingError):
        found, cause = cause, cause.__cause__
    return found


def _bad_header(request: Request) -> str:
    for name, value in request.headers.items():
        if problem := problem_of_header(name, value):
            return problem
    return ""


def _host(request: Request) -> str:
    try:
        url = URL(request.url, encoded=True)
    except ValueError:
        return "an address that cannot be read"
    return url.raw_authority.rpartition("@")[2]


def _name(request: Request) -> str:
    if request.operation:
        return request.operation
    # Up to the query, which may hold what was searched for.
    path = re.sub(r"^\w+://[^/?#]*", "", request.url).partition("?")[0]
    return f"{request.method} {path}"
