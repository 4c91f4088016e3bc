"""Runs that a forked child inherits, open: they get a session of the child's.

It is opened when the child first uses such a run, one for each session of the parent's.  The run
itself stays the parent's, which ends it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs

import adp_async.blocking as blocking
from adp_async._io.engine import connections
from adp_async._shared_sessions import SharedSessions
from adp_async.errors import AdpError, Closed
from adp_async.run import Run as AsyncRun
from adp_async.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable

    from adp_async._io.caller import Transport
    from adp_async._io.engine import Engine
    from adp_async.settings import Settings


class _Heir(blocking.Session):
    """A session of this process in place of one of its parent's that has its own *transport*."""

    def __init__(self, settings: Settings, transport: Callable[[Settings], Transport]) -> None:
        given = attrs.asdict(settings, recurse=False)
        self.session = Session(transport=transport, **given)


def _heir_of(engine: Engine) -> blocking.Session:
    if engine.transport is connections:
        return blocking.shared_session(**attrs.asdict(engine.settings, recurse=False))
    return _Heir(engine.settings, engine.transport)


_heirs: Final = SharedSessions(_heir_of)


def attach_anew(run: Any) -> None:
    """Have *run*, which was opened before this process was forked, log by a session of its own."""
    inner = run if isinstance(run, AsyncRun) else run._inner
    run_id = inner._needs_id("a run in a forked process")
    with _heirs.lock:
        if run._is_inherited:
            _attach(run, inner, run_id)


def _attach(run: AsyncRun | blocking.Run, inner: AsyncRun, run_id: str) -> None:
    try:
        session = _session_here(run)
    except AdpError as error:
        message = f"run {run_id}: this forked process has no session for it: {error}"
        raise Closed(message) from error
    _adopt(inner, run_id, session.session, session)
    if inner is not run:
        _adopt(run, run_id, session, session)


def _session_here(run: AsyncRun | blocking.Run) -> blocking.Session:
    """To a collector, if the run was shared, or is one of a worker."""
    if (handle := run._shared_handle()) is not None:
        return handle.session()
    host: Any = run._host
    if hasattr(host, "in_this_process"):  # of a worker
        session: blocking.Session = host.in_this_process()
        return session
    return _heirs.of(run._shared_engine())


def _adopt(handle: Any, run_id: str, host: Any, session: blocking.Session) -> None:
    # One that started offline has another name in its parent.
    handle._run_id, handle._host, handle._owns_session = run_id, host, False
    handle._is_parents = True
    # The last: until then it is inherited for other threads, which wait here.
    handle._intake = session.session._intake
