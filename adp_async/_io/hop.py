"""The connection of a worker to its collector: a Unix socket, or TLS with one known certificate.

Requests are those for the service; nothing is signed, and the token of the job goes along.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import aiohttp

from adp_async._io.network_problems import Way
from adp_async._io.transport import AiohttpTransport, Journeying
from adp_async.auth import Auth
from adp_async.errors import AdpError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from yarl import URL

    from adp_async._sansio.messages import Reply, Request
    from adp_async.auth import Signer

#: What every URL to a collector at a socket begins with.
AT_A_SOCKET: Final = "http://localhost"


class Unsigned(Auth):
    """For a session whose requests a collector signs."""

    mode = "collector"
    only_computes = True

    def load(self) -> Signer:
        return _sign_nothing

    def is_quick(self, signer: Signer) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        return type(other) is Unsigned

    def __hash__(self) -> int:
        return hash(Unsigned)


def _sign_nothing(request: object) -> None:
    """Nothing to do."""


class HopTransport(AiohttpTransport):
    """A pool of connections to one collector.

    *socket* is the path of its Unix socket; without one, *fingerprint* is the SHA-256 of its
    certificate, and no other is accepted.  *headers* go with each request.
    """

    def __init__(
        self,
        *,
        base_url: str,
        socket: str = "",
        fingerprint: bytes = b"",
        headers: Mapping[str, str],
        connect_timeout: float,
        timeout: float,
        limit: int,
    ) -> None:
        super().__init__(connect_timeout=connect_timeout, timeout=timeout, limit=limit)
        self._base_url = base_url
        self._socket = socket
        self._fingerprint = fingerprint
        self._headers = headers

    def load(self, address: str = "") -> None:
        """There is nothing to read: one certificate is trusted, and no proxy is on the way."""
        self._is_loaded = True

    def _connector(self) -> aiohttp.BaseConnector:
        if self._socket:
            return _SocketConnector(self._socket, limit=self._limit)
        return _PinnedConnector(limit=self._limit, ssl=aiohttp.Fingerprint(self._fingerprint))

    def _way_to(self, url: URL) -> Way:
        # A job's own network: no proxy of the environment leads there.
        return self._ways.setdefault("", Way(None, answered=True))

    async def send(self, request: Request, *, timeout: float | None = None) -> Reply:
        if not request.url.startswith(f"{self._base_url}/"):
            # Other servers want credentials, which are only where the collector is.
            message = (
                "this process has no credentials: what goes to other servers than the tracking "
                "service, such as artifacts, is sent by the process that shares the run"
            )
            raise AdpError(message)
        return await super().send(request.with_headers(self._headers), timeout=timeout)


class _SocketConnector(Journeying, aiohttp.UnixConnector):
    """Connects to a Unix socket."""


class _PinnedConnector(Journeying, aiohttp.TCPConnector):
    """Connects by TLS; which certificate is right is checked before anything is sent."""
