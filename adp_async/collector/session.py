"""The session of a worker: an ordinary one whose requests lead to the collector."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any, Final

from adp_async._io.hop import AT_A_SOCKET, HopTransport, Unsigned
from adp_async._sansio.endpoints import Endpoint
from adp_async._sansio.retry import RetryPolicy
from adp_async._shared_sessions import SharedSessions
from adp_async.blocking import Session as BlockingSession
from adp_async.collector.handler import WORKER
from adp_async.session import Session

if TYPE_CHECKING:
    from adp_async._io.caller import Transport
    from adp_async.collector.handle import Handle
    from adp_async.settings import Knobs, Settings

ENTER: Final = Endpoint("POST", "collector/enter", takes_retry_token=True)
LEAVE: Final = Endpoint("POST", "collector/leave", takes_retry_token=True)
FLUSH: Final = Endpoint("POST", "collector/flush", takes_retry_token=True)
#: For a session of the whole platform: the operations of a run need a workspace's name.
NO_WORKSPACE: Final = "none"

#: The collector is near, journals, and gathers full requests.
DEFAULTS: Final[Knobs] = {
    "linger": 0.05,
    "spool": False,
    "recover": False,
    "path_prefix": "",
    "timeout": 30.0,
    "connect_timeout": 5.0,
    "call_timeout": 60.0,
    "retry": RetryPolicy(first_backoff=0.1, max_backoff=2.0),
}


class WorkerSession(BlockingSession):
    """A blocking session whose requests lead to a collector; see `Handle.session`."""

    def __init__(self, handle: Handle) -> None:
        self.handle = handle
        self.name = worker_name()
        base_url = AT_A_SOCKET if handle.address.startswith("unix:") else handle.address
        knobs: Knobs = {**DEFAULTS, "endpoint": base_url, "auth": Unsigned()}
        self.session = Session(
            handle.platform_id,
            handle.workspace or NO_WORKSPACE,
            transport=self._transport,
            **knobs,
        )

    def _transport(self, settings: Settings) -> Transport:
        handle = self.handle
        headers = {"authorization": f"Bearer {handle.token}", WORKER: self.name}
        if handle.carrier is not None:
            transport: Any = handle.carrier.transport(headers)
            return transport  # type: ignore[no-any-return]
        return HopTransport(
            base_url=settings.base_url,
            socket=handle.address.removeprefix("unix:") if _is_socket(handle) else "",
            fingerprint=bytes.fromhex(handle.fingerprint),
            headers=headers,
            connect_timeout=settings.connect_timeout,
            timeout=settings.timeout,
            limit=settings.max_connections,
        )


def _is_socket(handle: Handle) -> bool:
    return handle.address.startswith("unix:")


def worker_name() -> str:
    """This process's name among the workers: its host and number."""
    return f"{socket.gethostname()}:{os.getpid()}"


_sessions: Final = SharedSessions(WorkerSession)


def session_of(handle: Handle) -> WorkerSession:
    """The open session of this process; a forked child gets one of its own."""
    return _sessions.of(handle)
