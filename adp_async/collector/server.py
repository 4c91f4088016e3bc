"""The sockets of a collector: a Unix socket for one machine, TLS for several.

The server runs in the delivery thread of the session, whose event loop it shares.
"""

from __future__ import annotations

import asyncio
import logging
import os
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from adp_async._io.log import logger
from adp_async.collector.sockets import BACKLOG, listen_at
from adp_async.errors import ConfigurationError

if TYPE_CHECKING:
    import ssl

    from adp_async._sansio.messages import Reply
    from adp_async.collector.handler import Handler
from adp_async.collector.sockets import Listen, Listening

MOST_BYTES: Final = 32 * 2**20
#: Seconds that requests under way get when the server closes.
SHUTDOWN: Final = 2.0
#: Seconds that a new connection gets for the head of its first request, and any request for its
#: body: what connects and says nothing, or half of it, is not a worker.
LONGEST_HEAD: Final = 10.0
LONGEST_BODY: Final = 30.0
#: Seconds until a connection is closed that nothing comes by: longer than a worker keeps one.
LONGEST_SILENCE: Final = 90.0


class Server:
    """Listens at one place, and has *handler* answer."""

    def __init__(self, handler: Handler, listen: Listen, tls: ssl.SSLContext | None = None) -> None:
        self._handler = handler
        self._listen = listen
        self._tls = tls
        self._runner: web.ServerRunner | None = None
        self._server: _Connections | None = None
        self._listening: Listening | None = None
        #: The path of the socket, or host and port.
        self.path = listen.path
        self.port = listen.port

    async def open(self) -> None:
        """Listen.  Raises `ConfigurationError` where that is not possible."""
        self._server = _Connections(
            self._answer,
            access_log=None,
            logger=_Garbage(logger.logger, {}),
            auto_decompress=False,
            keepalive_timeout=LONGEST_SILENCE,
        )
        self._runner = web.ServerRunner(self._server, shutdown_timeout=SHUTDOWN)
        await self._runner.setup()
        try:
            listening = self._listening = await listen_at(self._listen)
            self.path, self.port = listening.path, listening.port
            # It has the certificate as well; what listens already is not connected to.
            site = web.SockSite(
                self._runner, listening.socket, ssl_context=self._tls, backlog=BACKLOG
            )
            await site.start()
        except OSError as error:
            await self.close()
            message = f"a collector cannot listen on {self._listen}: {error.strerror or error}"
            raise ConfigurationError(message) from error
        except BaseException:
            await self.close()
            raise
        _open_servers.add(self)

    async def close(self) -> None:
        """Answer what is under way, and listen no more."""
        _open_servers.discard(self)
        runner, self._runner = self._runner, None
        listening, self._listening = self._listening, None
        if listening is not None:
            listening.remove()
        if runner is not None:
            await runner.cleanup()
        if listening is not None:
            listening.socket.close()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        assert self._server is not None
        self._server.heard_of(request.protocol)
        headers = {name.lower(): value for name, value in request.headers.items()}
        if (refusal := self._handler.turned_away(headers)) is not None:
            return _last(_response(refusal))
        try:
            async with asyncio.timeout(LONGEST_BODY):
                body = await _body_of(request)
        except TimeoutError:
            return _last(web.Response(status=408))
        if body is None:
            return _last(web.Response(status=411 if request.content_length is None else 413))
        handle = self._handler.handle
        return _response(await handle(request.method, request.raw_path, headers, body))

    def forked(self) -> None:
        """In a forked child: let go of the parent's sockets, so that its end is noticed."""
        connections = self._server.connections if self._server is not None else []
        transports = [each.transport for each in connections if each.transport is not None]
        listening = [self._listening.socket] if self._listening is not None else []
        sockets = [*listening, *(each.get_extra_info("socket") for each in transports)]
        nowhere = os.open(os.devnull, os.O_RDWR)
        for each in sockets:
            with suppress(OSError):
                # Not closed: their objects are here as well, and would close another's file.
                os.dup2(nowhere, each.fileno(), inheritable=False)
        os.close(nowhere)


class _Garbage(logging.LoggerAdapter[logging.Logger]):
    """What aiohttp logs of requests that are not HTTP, for those who look for it.

    Every scan of the port would be an error with a traceback otherwise, and bytes of the request
    in it.
    """

    def log(self, level: int, msg: object, *given: Any, **more: Any) -> None:
        more.pop("exc_info", None)
        super().log(logging.DEBUG, msg, *given, **more)


class _Connections(web.Server):
    """Those to one server: each has to bring a request soon."""

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self._silent: dict[object, asyncio.TimerHandle] = {}

    def connection_made(self, handler: Any, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        loop = asyncio.get_running_loop()
        self._silent[handler] = loop.call_later(LONGEST_HEAD, transport.abort)

    def connection_lost(self, handler: Any, exc: BaseException | None = None) -> None:
        self.heard_of(handler)
        super().connection_lost(handler, exc)

    def heard_of(self, handler: object) -> None:
        """A request has come by that connection, or it is lost."""
        if (timer := self._silent.pop(handler, None)) is not None:
            timer.cancel()


async def _body_of(request: web.BaseRequest) -> bytes | None:
    """What it brings; None when that is too much, or of no known size."""
    length = request.content_length
    if length is None:
        return None if request.can_read_body else b""
    if length > MOST_BYTES:
        return None
    return await request.content.read() if length else b""


def _response(reply: Reply) -> web.Response:
    return web.Response(status=reply.status, headers=reply.headers, body=reply.body)


def _last(response: web.Response) -> web.Response:
    """The last by its connection; what is still coming is read for a while, and not kept."""
    response.force_close()
    return response


_open_servers: weakref.WeakSet[Server] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for server in list(_open_servers):
        server.forked()
    _open_servers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
