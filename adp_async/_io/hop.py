"""The connection of a worker to its collector: a Unix socket, or TLS with one known certificate.

Requests are those for the service; nothing is signed, and the token of the job goes along.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any, Final

import aiohttp

from adp_async._io.network_problems import Way
from adp_async._io.transport import AiohttpTransport, Journeying
from adp_async.errors import AdpError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from yarl import URL

    from adp_async._hop import Hop
    from adp_async._io.caller import Transport
    from adp_async._sansio.messages import Reply, Request
    from adp_async.settings import Settings

#: The header with a worker's name.
WORKER: Final = "x-adp-worker"


def worker_name() -> str:
    """This process's name among the workers: its host and number."""
    return f"{socket.gethostname()}:{os.getpid()}"


def transport_to(hop: Hop, settings: Settings) -> Transport:
    """Connections to the collector at *hop*."""
    headers = {"authorization": f"Bearer {hop.token}", WORKER: worker_name()}
    if hop.carrier is not None:
        carried: Any = hop.carrier.transport(headers)
        return carried  # type: ignore[no-any-return]
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
