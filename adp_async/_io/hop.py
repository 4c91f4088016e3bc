"""The connection of a worker to its collector: a Unix socket, or TLS with one known certificate.

Requests are those for the service; nothing is signed, and the token of the job goes along.
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING, Final

import aiohttp

from adp_async._io.network_problems import Way, name_of
from adp_async._io.transport import AiohttpTransport, Journeying
from adp_async._sansio.messages import Reply
from adp_async.errors import AdpError, ConnectionLost, RequestTimeout

if TYPE_CHECKING:
    from collections.abc import Mapping

    from yarl import URL

    from adp_async._hop import Hop
    from adp_async._io.caller import Transport
    from adp_async._sansio.messages import Request
    from adp_async.settings import Settings

#: The header with a worker's name.
WORKER: Final = "x-adp-worker"


def worker_name() -> str:
    """This process's name among the workers: its host and number."""
    return f"{socket.gethostname()}:{os.getpid()}"


def transport_to(hop: Hop, settings: Settings, more: Mapping[str, str] | None = None) -> Transport:
    """Connections to the collector at *hop*; *more* headers go with each request."""
    headers = {"authorization": f"Bearer {hop.token}", WORKER: worker_name(), **(more or {})}
    if hop.carrier is not None:
        return CarriedTransport(hop, headers, settings)
    return HopTransport(hop, headers, settings)


class HopTransport(AiohttpTransport):
    """A pool of connections to one collector; *headers* go with each request."""

    def __init__(self, hop: Hop, headers: Mapping[str, str], settings: Settings) -> None:
        super().__init__(
            connect_timeout=settings.connect_timeout,
            timeout=settings.timeout,
            limit=settings.max_connections,
        )
        self._hop = hop
        self._headers = headers

    def load(self, address: str = "") -> None:
        """There is nothing to read: one certificate is trusted, and no proxy is on the way."""
        self._is_loaded = True

    def _connector(self) -> aiohttp.BaseConnector:
        if path := self._hop.socket:
            return _SocketConnector(path, limit=self._limit)
        pinned = aiohttp.Fingerprint(bytes.fromhex(self._hop.fingerprint))
        return _PinnedConnector(limit=self._limit, ssl=pinned)

    def _way_to(self, url: URL) -> Way:
        # A job's own network: no proxy of the environment leads there.
        return self._ways.setdefault("", Way(None, answered=True))

    async def send(self, request: Request, *, timeout: float | None = None) -> Reply:
        check_address(request, self._hop.base_url)
        return await super().send(request.with_headers(self._headers), timeout=timeout)


class CarriedTransport:
    """Has the carrier of *hop* carry each request; *headers* go with it."""

    def __init__(self, hop: Hop, headers: Mapping[str, str], settings: Settings) -> None:
        assert hop.carrier is not None
        self._hop = hop
        self._carrier = hop.carrier
        self._headers = headers
        self._timeout = settings.timeout

    def load(self, address: str = "") -> None:
        """Nothing to do."""

    async def open(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""

    def abort(self) -> None:
        """Nothing to do."""

    async def send(self, request: Request, *, timeout: float | None = None) -> Reply:
        """The reply; `ConnectionLost` when the carrier fails, `RequestTimeout`."""
        check_address(request, self._hop.base_url)
        target = request.url.removeprefix(self._hop.base_url)
        headers = {**request.headers, **self._headers}
        seconds = self._timeout if timeout is None else timeout
        carrying = self._carrier.carry(request.method, target, headers, request.body or b"")
        try:
            async with asyncio.timeout(seconds):
                status, answered, body = await carrying
        except TimeoutError:
            problem: AdpError = RequestTimeout(f"{name_of(request)}: no reply in {seconds:g} s")
        except AdpError:
            raise
        except Exception as error:
            problem = ConnectionLost(f"{name_of(request)}: no reply: {type(error).__name__}")
        else:
            return Reply(status, dict(answered), body)
        raise problem


def check_address(request: Request, base_url: str) -> None:
    """Raise `AdpError` for a request that is for others than the collector."""
    if not request.url.startswith(f"{base_url}/"):
        message = (
            "this process has no credentials: what goes to other servers than the tracking "
            "service, such as artifacts, is sent by the process that shares the run"
        )
        raise AdpError(message)


class _SocketConnector(Journeying, aiohttp.UnixConnector):
    """Connects to a Unix socket."""


class _PinnedConnector(Journeying, aiohttp.TCPConnector):
    """Connects by TLS; which certificate is right is checked before anything is sent."""
