"""The sockets of a collector: a Unix socket for one machine, TLS for several.

The server runs in the delivery thread of the session, whose event loop it shares.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web
from attrs import frozen

from adp_async.errors import ConfigurationError

if TYPE_CHECKING:
    import ssl

    from adp_async.collector.handler import Handler

#: The longest path of a Unix socket that every system takes.
LONGEST_PATH: Final = 103
MOST_BYTES: Final = 32 * 2**20
#: Seconds that requests under way get when the server closes.
SHUTDOWN: Final = 2.0
_SOCKET: Final = "collector"
#: Python offers these on POSIX only.
_UNIX: Final[Any] = getattr(socket, "AF_UNIX", None)


@frozen
class Listen:
    """Where a collector listens: the *path* of a Unix socket, or *host* and *port*."""

    path: str = ""
    host: str = ""
    port: int = 0

    @classmethod
    def of(cls, text: str | os.PathLike[str] | None) -> Listen:
        """What a user has written: a path, ``host`` or ``host:port``; None: a new socket.

        Where there are no Unix sockets, as on Windows, that is a port for this machine only.

        >>> Listen.of("0.0.0.0:8443")
        Listen(path='', host='0.0.0.0', port=8443)
        """
        if text is None:
            return cls() if _UNIX else cls(host="127.0.0.1")
        plain = os.fspath(text)
        if os.sep in plain:
            if not _UNIX:
                message = (
                    f"listen: {plain!r:.200} would be a Unix socket, which this system does not "
                    "have; name a host, such as 127.0.0.1"
                )
                raise ConfigurationError(message)
            path = os.path.abspath(plain)
            # (Linux would take what is before a NUL as the path.)
            if len(os.fsencode(path)) > LONGEST_PATH or "\0" in path:
                message = (
                    f"listen: a socket's path has at most {LONGEST_PATH} bytes and no NUL: "
                    f"{plain!r:.200}"
                )
                raise ConfigurationError(message)
            return cls(path=path)
        host, port = host_and_port(plain, "listen")
        return cls(host=host, port=port)

    @property
    def is_socket(self) -> bool:
        return not self.host


def host_and_port(text: str, what: str) -> tuple[str, int]:
    """``host``, ``host:port`` or ``[ipv6]:port``; `ConfigurationError` that names *what* it is."""
    host, port = text, ""
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        port = port.removeprefix(":")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    if not host or (port and not (port.isdecimal() and int(port) < 2**16)):
        message = (
            f"{what}: {text!r:.100} is not a host, such as 0.0.0.0, a host with a port, such as "
            "0.0.0.0:8443, or the path of a socket"
        )
        raise ConfigurationError(message)
    return host, int(port or 0)


class Server:
    """Listens at one place, and has *handler* answer."""

    def __init__(self, handler: Handler, listen: Listen, tls: ssl.SSLContext | None = None) -> None:
        self._handler = handler
        self._listen = listen
        self._tls = tls
        self._runner: web.ServerRunner | None = None
        self._server: web.Server | None = None
        self._folder: str | None = None
        self._sockets: list[socket.socket] = []
        #: The path of the socket, or host and port.
        self.path = listen.path
        self.port = listen.port

    async def open(self) -> None:
        """Listen.  Raises `ConfigurationError` where that is not possible."""
        self._server = web.Server(self._answer, access_log=None, auto_decompress=False)
        self._runner = web.ServerRunner(self._server, shutdown_timeout=SHUTDOWN)
        await self._runner.setup()
        try:
            if self._listen.is_socket:
                self._sockets = [self._bind_to_path()]
            else:
                self._sockets = [self._bind_to_port()]
            site = web.SockSite(self._runner, self._sockets[0], ssl_context=self._tls, backlog=1024)
            await site.start()
        except OSError as error:
            await self.close()
            where = self.path or f"{self._listen.host}:{self._listen.port}"
            message = f"a collector cannot listen at {where}: {error.strerror or error}"
            raise ConfigurationError(message) from error
        except BaseException:
            await self.close()
            raise
        _open_servers.add(self)

    def _bind_to_path(self) -> socket.socket:
        if not self.path:
            self._folder = tempfile.mkdtemp(prefix="adp-async-")  # 0700
            self.path = os.path.join(self._folder, _SOCKET)
        else:
            folder = Path(self.path).parent
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _remove_dead(self.path)
        listening = socket.socket(_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)  # 0600 from its first moment
        try:
            listening.bind(self.path)
        except BaseException:
            listening.close()
            raise
        finally:
            os.umask(mask)
        return listening

    def _bind_to_port(self) -> socket.socket:
        host, port = self._listen.host, self._listen.port
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            self.port = listening.getsockname()[1]
        except BaseException:
            listening.close()
            raise
        return listening

    async def close(self) -> None:
        """Answer what is under way, and listen no more."""
        _open_servers.discard(self)
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()
        for each in self._sockets:
            each.close()
        if self._sockets and self._listen.is_socket:
            with suppress(FileNotFoundError):
                os.unlink(self.path)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        length = request.content_length
        if length is None and request.can_read_body:
            return web.Response(status=411)
        if (length or 0) > MOST_BYTES:
            return web.Response(status=413)
        body = await request.content.read() if length else b""
        headers = {name.lower(): value for name, value in request.headers.items()}
        reply = await self._handler.handle(request.method, request.raw_path, headers, body)
        return web.Response(status=reply.status, headers=reply.headers, body=reply.body)

    def forked(self) -> None:
        """In a forked child: let go of the parent's sockets, so that its end is noticed."""
        connections = self._server.connections if self._server is not None else []
        transports = [each.transport for each in connections if each.transport is not None]
        sockets = [*self._sockets, *(each.get_extra_info("socket") for each in transports)]
        nowhere = os.open(os.devnull, os.O_RDWR)
        for each in sockets:
            with suppress(OSError):
                # Not closed: their objects are here as well, and would close another's file.
                os.dup2(nowhere, each.fileno(), inheritable=False)
        os.close(nowhere)


def _remove_dead(path: str) -> None:
    """Remove a socket that nobody listens at; OSError when somebody does."""
    with socket.socket(_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise FileExistsError(17, "another collector listens there")


_open_servers: weakref.WeakSet[Server] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for server in list(_open_servers):
        server.forked()
    _open_servers.clear()


if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows has no fork
    os.register_at_fork(after_in_child=_after_fork_in_child)
