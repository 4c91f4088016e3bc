"""The session of a worker: an ordinary one whose requests lead to the collector."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote
from weakref import WeakSet

from attrs import frozen

from adp_async._hop import NEARBY, Unsigned
from adp_async._io.hop import transport_to
from adp_async._io.lifetime import Why
from adp_async._io.log import logger
from adp_async._sansio.endpoints import Endpoint
from adp_async._sansio.retry import RetryPolicy
from adp_async._shared_sessions import SharedSessions
from adp_async.blocking import Session as BlockingSession
from adp_async.collector.names import ATTEMPT, TASK
from adp_async.collector.presence import Presence
from adp_async.errors import AdpError
from adp_async.session import Session

if TYPE_CHECKING:
    from adp_async.collector.handle import Handle
    from adp_async.collector.worker import WorkerRun
    from adp_async.settings import Knobs

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
    # Time alone limits a call: a collector that is started again takes more than a few attempts.
    "retry": RetryPolicy(first_backoff=0.1, max_backoff=2.0, max_attempts=1000),
}


@frozen
class Whose:
    """Whose records a session hands over: those of a *task*'s *attempt*, or of no task."""

    handle: Handle
    task: str = ""
    attempt: str = ""

    @property
    def headers(self) -> dict[str, str]:
        """What goes with each request, so that records of others are not mixed with its own."""
        if not self.task:
            return {}
        return {TASK: quote(self.task, safe=""), ATTEMPT: quote(self.attempt, safe="")}


class WorkerSession(BlockingSession):
    """A blocking session whose requests lead to a collector; see `Handle.session`."""

    def __init__(self, whose: Whose) -> None:
        handle = whose.handle
        self.whose = whose
        self.handle = handle
        #: By run, how many refused records this process was told of.
        self.told: dict[str, int] = {}
        #: Runs that log by it; and whether somebody else may use it as well.
        self.users: WeakSet[WorkerRun] = WeakSet()
        self.is_given_out = False
        knobs: Any = {**NEARBY, **DEFAULTS, "endpoint": handle.base_url, "auth": Unsigned()}
        self.session = Session(
            handle.platform_id,
            handle.workspace or NO_WORKSPACE,
            transport=partial(transport_to, handle, more=whose.headers),
            **knobs,
        )
        self.presence = Presence(self.session)

    @property
    def is_unused(self) -> bool:
        """Whether nobody can log by it any more, and nothing waits."""
        is_idle = not self.users and not self.session.logger.stats().undelivered
        return self.is_open and not self.is_given_out and is_idle

    def in_this_process(self) -> WorkerSession:
        """In a forked child, the one that hands over the same in its place."""
        return session_of(self.whose)


#: Of this process.
sessions: Final = SharedSessions(WorkerSession)


def session_of(whose: Whose) -> WorkerSession:
    """The open session of this process; a forked child gets one of its own.

    A process may live longer than many handles, as those of clusters do: before it gets another
    session, those that nobody uses any more are closed.
    """
    with sessions.lock:
        if not sessions.has(whose):
            for unused in sessions.take(lambda session: session.is_unused):
                _close(unused)
        return sessions.of(whose)


def _close(unused: WorkerSession) -> None:
    try:
        unused.close()
    except AdpError as error:
        logger.warning("%s", error)


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
            return session.in_this_process()
    return None
