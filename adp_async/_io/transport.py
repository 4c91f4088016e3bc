"""Sends one signed request, once, and says how far it got.

Whether a request never left or was lost on the way is decided here, since nobody can tell later:
`ConnectionFailed` when no connection came about, `ConnectionLost` from the moment there was one,
also when the service closed an old connection just as it was used again.  An answer of any status
is a `Reply`; what it means is read elsewhere (`adp_async._sansio.replies`).
"""

from __future__ import annotations

from contextvars import ContextVar
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from adp_async._sansio.messages import ERROR_BODY_BYTES, Reply
from adp_async._sansio.texts import printable
from adp_async.errors import (
    AdpError,
    Closed,
    ConnectionFailed,
    ConnectionLost,
    RequestTimeout,
    UnreadableReply,
)

if TYPE_CHECKING:
    from aiohttp.connector import Connection

    from adp_async._sansio.messages import Request

__all__ = ["AiohttpTransport"]

USER_AGENT: Final = "adp-async"

#: The largest good reply that is read.  A page of 1000 runs with all their tags is about 10 MB.
MAX_REPLY_BYTES: Final = 64 * 2**20


class _Journey:
    """How far one request got."""

    __slots__ = ("connecting",)

    def __init__(self) -> None:
        self.connecting = False


#: That of the task: it is the request's own task in which aiohttp asks for a connection.
_JOURNEY: Final[ContextVar[_Journey]] = ContextVar("journey")


class AiohttpTransport:
    """A pool of connections.  Safe for many requests at once, on one event loop.

    *connect_timeout* bounds connecting, *timeout* one attempt from start to end, *limit* the
    connections that are open at once, *max_reply_bytes* a good reply's body.
    """

    def __init__(
        self,
        *,
        connect_timeout: float = 10.0,
        timeout: float = 60.0,
        limit: int = 100,
        max_reply_bytes: int = MAX_REPLY_BYTES,
    ) -> None:
        self._connect_timeout = connect_timeout
        self._timeout = timeout
        self._limit = limit
        self._max_reply_bytes = max_reply_bytes
        self._session: aiohttp.ClientSession | None = None
        self._proxies: dict[str, URL | None] = {}

    def __repr__(self) -> str:
        state = "closed" if self._session is None else "open"
        return f"<AiohttpTransport {state} | at most {self._limit} connections>"

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self) -> None:
        """Make the pool.  Nothing is connected before the first request."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=_Connector(limit=self._limit),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"user-agent": USER_AGENT},
                # Proxies are looked up here: aiohttp's trust_env brings .netrc along, which
                # replaces the signature, and costs two hops to other threads a request.
                trust_env=False,
            )

    async def close(self) -> None:
        """Close all connections.  Requests on their way end with an error."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def send(self, request: Request, *, timeout: float | None = None) -> Reply:
        """Send *request* exactly as it is and read the reply to its end.

        Raises `ConnectionFailed`, `ConnectionLost`, `RequestTimeout` after *timeout* seconds
        (default: that of the transport), and `UnreadableReply` for a good reply that is too big.
        Cancelling closes the connection.
        """
        if self._session is None:
            message = "the transport is not open"
            raise Closed(message)
        seconds = self._timeout if timeout is None else timeout
        journey = _Journey()
        _JOURNEY.set(journey)
        try:
            return await self._exchange(self._session, request, seconds, journey)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            _raise_as_ours(error, request, journey, seconds)

    async def _exchange(
        self, session: aiohttp.ClientSession, request: Request, seconds: float, journey: _Journey
    ) -> Reply:
        url = URL(request.url, encoded=True)
        async with session.request(
            request.method,
            url,
            headers=request.headers,
            data=request.body,
            # A redirect would replay the signature at another target.
            allow_redirects=False,
            proxy=self._proxy(url),
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

    def _proxy(self, url: URL) -> URL | None:
        origin = f"{url.scheme}://{url.raw_host}"
        if origin not in self._proxies:
            self._proxies[origin] = _proxy_of_environment(url)
        return self._proxies[origin]


async def _read_up_to(limit: int, response: aiohttp.ClientResponse, body: bytearray) -> None:
    """Read into *body*, at most *limit* bytes; a connection with more to come is closed."""
    read = response.content.readany
    while chunk := await read():
        body += chunk[: limit - len(body)]
        if len(body) >= limit:
            response.close()
            return


@lru_cache
def _client_timeout(total: float, connect: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=total, sock_connect=connect)


def _proxy_of_environment(url: URL) -> URL | None:
    """The proxy that ``HTTPS_PROXY`` and ``NO_PROXY`` name for *url*."""
    # Plain http goes to this machine only (see `Settings`), where no proxy can help.
    proxy = getproxies().get("https") if url.scheme == "https" else None
    if not proxy or proxy_bypass(url.host or ""):
        return None
    return URL(proxy if "://" in proxy else f"http://{proxy}")


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
        return connection


def _raise_as_ours(
    error: Exception, request: Request, journey: _Journey, seconds: float
) -> NoReturn:
    kind, what = _kind_of(error, journey, seconds)
    host = URL(request.url, encoded=True).raw_authority
    message = f"{_name(request)}: {what} ({host})"
    raise kind(message) from error


def _kind_of(error: Exception, journey: _Journey, seconds: float) -> tuple[type[AdpError], str]:
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return ConnectionFailed, f"the proxy answered {error.status}"
    is_timeout = isinstance(error, TimeoutError)
    if journey.connecting or isinstance(
        error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError
    ):
        return ConnectionFailed, f"no connection{' in time' if is_timeout else _reason(error)}"
    if is_timeout:
        return RequestTimeout, f"no whole reply within {seconds:g} s"
    return ConnectionLost, f"the connection broke{_reason(error)}"


def _reason(error: Exception) -> str:
    """What the system says.  aiohttp's own texts can hold whole headers and queries."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f": {error.certificate_error}"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f": {error.os_error}"
    if isinstance(error, OSError) and error.strerror:
        return f": {error.strerror}"
    return f": {type(error).__name__}"


def _name(request: Request) -> str:
    return request.operation or f"{request.method} {URL(request.url, encoded=True).raw_path}"
