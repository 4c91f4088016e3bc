"""Sends one signed request, once, and says how far it got.

Whether a request never left or was lost on the way is decided here, since nobody can tell later:
`ConnectionFailed` when no connection was made, `ConnectionLost` once there was one, also when the
service closed an old connection just as it was used again.  An answer of any status
is a `Reply`; what it means is read elsewhere (`adp_async._sansio.replies`).

Whatever aiohttp, ssl or the system raise becomes one of these; `network_problems` says which.
"""

from __future__ import annotations

import asyncio
import ssl
import warnings
from contextlib import aclosing, suppress
from contextvars import ContextVar
from functools import lru_cache
from inspect import iscoroutine
from typing import TYPE_CHECKING, Any, Final, Self
from weakref import WeakSet

import aiohttp
from yarl import URL

from adp_async._io.network_problems import (
    MAX_HEADER_BYTES,
    Journey,
    Problem,
    Way,
    name_of,
    problem_of,
)
from adp_async._io.resolver import Resolver
from adp_async._io.road import proxy_for, trusted_certificates
from adp_async._io.user_agent import user_agent
from adp_async._sansio.messages import ERROR_BODY_BYTES, Reply
from adp_async._sansio.texts import printable
from adp_async.errors import (
    AdpError,
    Closed,
    ConfigurationError,
    ConnectionFailed,
    UnreadableReply,
)

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator

    from aiohttp.connector import Connection

    from adp_async._sansio.messages import Request, Stream

__all__ = ["AiohttpTransport"]

#: The largest successful reply that is read.  A page of 1000 runs with all their tags is about 10
#: MB.
MAX_REPLY_BYTES: Final = 64 * 2**20

_PROBE_TIMEOUT: Final = 1.0


#: One a task: aiohttp asks for a connection in the task of the request.
_JOURNEY: Final[ContextVar[Journey]] = ContextVar("journey")


class AiohttpTransport:
    """A pool of connections, for any number of concurrent requests on one event loop.

    *connect_timeout* bounds connecting, *timeout* one attempt from start to end, *limit* the
    connections that are open at once, *max_reply_bytes* a successful reply's body.  *ca_bundle*:
    whom to trust, see `trusted_certificates`.
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
        self._resolver: Resolver | None = None
        self._certificates: ssl.SSLContext | None = None
        self._is_loaded = False
        self._ways: dict[str, Way] = {}

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
                connector=self._connector(),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"user-agent": user_agent()},
                # Proxies are looked up in `load`: aiohttp's trust_env brings .netrc along, which
                # replaces the signature, and costs two hops to other threads a request.
                trust_env=False,
                max_line_size=MAX_HEADER_BYTES,
                max_field_size=MAX_HEADER_BYTES,
            )

    def _connector(self) -> aiohttp.BaseConnector:
        certificates = self._certificates or True
        # aiohttp does not close a resolver that it was given.
        self._resolver = Resolver()
        return _Connector(limit=self._limit, ssl=certificates, resolver=self._resolver)

    def _stop_resolver(self) -> None:
        resolver, self._resolver = self._resolver, None
        if resolver is not None:
            resolver.stop()

    async def close(self) -> None:
        """Close all connections.  Requests on their way end with an error."""
        session, self._session = self._session, None
        try:
            if session is not None:
                await session.close()
        finally:
            self._stop_resolver()

    def abort(self) -> None:
        """Drop the connections, whose event loop may be gone; the system closes them."""
        session, self._session = self._session, None
        self._stop_resolver()
        connector = None if session is None else session.connector
        if session is not None and connector is not None:
            session.detach()
            with suppress(RuntimeError, StopIteration), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                closing: Any = connector.close()
                if iscoroutine(closing):  # all of closing except waiting
                    closing.send(None)
                    closing.close()

    async def send(self, request: Request, *, timeout: float | None = None) -> Reply:
        """Send *request* exactly as it is and read the reply to its end.

        Raises `ConnectionFailed`, `ConnectionLost`, `RequestTimeout` after *timeout* seconds
        (default: that of the transport; with a stream they count from the last chunk that left),
        `UnreadableReply` for a successful reply that is too large, and the failure of a stream;
        always an `AdpError`.  Cancelling closes the connection.
        """
        if self._session is None:
            message = "the transport is not open"
            raise Closed(message)
        seconds = self._timeout if timeout is None else timeout
        journey = Journey()
        _JOURNEY.set(journey)
        way = Way(None)
        try:
            url = URL(request.url, encoded=True)
            way = self._way_to(url)
            reply = await self._send_once(self._session, request, url, way, seconds)
            way.answered = True
            return reply
        except ConfigurationError as error:  # for an address that `load` was not told
            problem = Problem(ConnectionFailed, f"no connection: {error}", is_permanent=True)
        except AdpError:
            raise
        except asyncio.CancelledError as error:
            if _is_cancelled() or not (journey.connecting or journey.connected):
                raise
            problem = problem_of(error, request, way, journey, seconds)
        except Exception as error:
            problem = problem_of(error, request, way, journey, seconds)
        # Raised out here, without a context, so that aiohttp's error is not shown behind it.
        if request.stream is not None and request.stream.failure is not None:
            raise request.stream.failure
        if problem.may_be_tls and not way.answered and await _speaks_tls(url):
            what = "no connection: the server speaks TLS; the address must begin with https://"
            problem = Problem(ConnectionFailed, what, is_permanent=True)
        raise problem.as_error(request, way)

    async def _send_once(
        self,
        session: aiohttp.ClientSession,
        request: Request,
        url: URL,
        way: Way,
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
        way: Way,
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
            # The status is the answer; part of its explanation is enough.
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
        message = f"{name_of(request)}: the reply is larger than {limit} bytes"
        request_id = printable(response.headers.get("opc-request-id", ""))
        raise UnreadableReply(
            message, status=response.status, request_id=request_id, operation=request.operation
        )

    def _way_to(self, url: URL) -> Way:
        origin = f"{url.scheme}://{url.raw_authority}"
        way = self._ways.get(origin)
        if way is None:
            way = self._ways[origin] = Way(proxy_for(url))
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


class Journeying(aiohttp.BaseConnector):
    """Updates the `Journey` of the task that asks for a connection.

    aiohttp's tracing would tell that as well, but makes URLs, objects and calls for everything that
    happens to a request, which adds a tenth to the cost of sending one.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        #: Those that have answered a request.
        self._used: WeakSet[Any] = WeakSet()

    async def connect(self, *arguments: Any, **named: Any) -> Connection:
        journey = _JOURNEY.get()
        journey.connecting = True
        connection = await super().connect(*arguments, **named)
        while self._has_more_to_say(connection):
            connection.close()
            connection = await super().connect(*arguments, **named)
        self._used.add(connection.protocol)
        journey.connecting = False
        journey.connected = True
        return connection

    def _has_more_to_say(self, connection: Connection) -> bool:
        """Whether the server sent something since the last answer.

        Nobody had asked for it, and aiohttp takes it for the answer to the next request.
        """
        protocol = connection.protocol
        return protocol is not None and protocol in self._used and protocol.should_close


class _Connector(Journeying, aiohttp.TCPConnector):
    """Connects to the service."""


def _is_cancelled() -> bool:
    """Whether our own task is cancelled, not one that aiohttp waited for."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


async def _speaks_tls(url: URL) -> bool:
    """Whether a server that broke off a plain http request speaks TLS."""
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
