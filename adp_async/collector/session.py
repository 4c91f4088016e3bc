"""The session of a worker: an ordinary one whose requests lead to the collector."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from adp_async._hop import NEARBY, Unsigned
from adp_async._io.hop import transport_to
from adp_async._io.lifetime import Why
from adp_async._sansio.endpoints import Endpoint
from adp_async._sansio.retry import RetryPolicy
from adp_async._shared_sessions import SharedSessions
from adp_async.blocking import Session as BlockingSession
from adp_async.collector.names import ATTEMPT, TASK
from adp_async.session import Session

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adp_async.collector.handle import Handle
    from adp_async.settings import Knobs

ENTER: Final = Endpoint("POST", "collector/enter", takes_retry_token=True)
LEAVE: Final = Endpoint("POST", "collector/leave", takes_retry_token=True)
FLUSH: Final = Endpoint("POST", "collector/flush", takes_retry_token=True)
COMMIT: Final = Endpoint("POST", "collector/commit", takes_retry_token=True)
ABORT: Final = Endpoint("POST", "collector/abort", takes_retry_token=True)
#: For a session of the whole platform: the operations of a run need a workspace's name.
NO_WORKSPACE: Final = "none"

#: The collector is near, journals, and gathers full requests.
DEFAULTS: Final[Knobs] = {
    "path_prefix": "",
    "timeout": 30.0,
    "connect_timeout": 5.0,
    "call_timeout": 60.0,
    "retry": RetryPolicy(first_backoff=0.1, max_backoff=2.0),
}


class WorkerSession(BlockingSession):
    """A blocking session whose requests lead to a collector; see `Handle.session`."""

    def __init__(self, handle: Handle, headers: Mapping[str, str] | None = None) -> None:
        self.handle = handle
        #: By run, how many refused records this process was told of.
        self.told: dict[str, int] = {}
        knobs: Any = {**NEARBY, **DEFAULTS, "endpoint": handle.base_url, "auth": Unsigned()}
        self.session = Session(
            handle.platform_id,
            handle.workspace or NO_WORKSPACE,
            transport=partial(transport_to, handle, more=headers),
            **knobs,
        )


_sessions: Final = SharedSessions(WorkerSession)


def session_of(handle: Handle) -> WorkerSession:
    """The open session of this process; a forked child gets one of its own."""
    return _sessions.of(handle)


def session_of_attempt(handle: Handle, task: str, name: str) -> WorkerSession:
    """An open session for one attempt of a task: what it logs is not mixed with others' records."""
    headers = {TASK: quote(task, safe=""), ATTEMPT: quote(name, safe="")}
    return WorkerSession(handle, headers).open()


#: Of the ``with handle.attach()`` blocks that this process is within, in the order of entering.
_entered: Final[list[WorkerSession]] = []


def entered(session: WorkerSession) -> None:
    """A block of *session* was entered."""
    _entered.append(session)


def exited(session: WorkerSession) -> None:
    """It is exited."""
    if session in _entered:
        _entered.remove(session)


def attached_session() -> WorkerSession | None:
    """The session of the ``with handle.attach()`` block that this process has entered last.

    None outside of any.  For code that has no handle, such as MLflow's within a task.
    """
    for session in reversed(_entered):
        if session.is_open:
            return session
        if session.session._engine.lifetime.why is Why.FORKED:  # the parent's
            return session_of(session.handle)
    return None
