"""A run, picklable, for another process."""

from __future__ import annotations

import copyreg
import os
import threading
from typing import TYPE_CHECKING, Any

import attrs
from attrs import field, frozen

from adp_async.blocking import AttachedRun, Run, Session, StartedRun
from adp_async.run import Run as AsyncRun

if TYPE_CHECKING:
    from collections.abc import Callable

    from adp_async.settings import Settings

__all__ = ["RunAddress", "address_of"]


@frozen
class RunAddress:
    """Where a run is, for another process: pickle it, and `attach` there.

    A pickled run is its address as well: it arrives as a handle with a session of the process it
    arrives in.  *settings* are those of the session it comes from; they say where to find the
    credentials, and hold them only if they were given as arguments.
    """

    run_id: str
    settings: Settings = field(repr=False)

    def attach(self) -> Run:
        """A handle of the run, on a session shared by all attached runs of this process.

        That session ends with the process, and then delivers what waits.
        """
        return _session_of_this_process(self.settings).attach_run(self.run_id)


_sessions: dict[Settings, Session] = {}
_sessions_lock = threading.Lock()


def _session_of_this_process(settings: Settings) -> Session:
    with _sessions_lock:
        session = _sessions.get(settings)
        if session is None:
            given = attrs.asdict(settings, recurse=False)
            session = _sessions[settings] = Session(**given).open()
        return session


def _forget_parents_sessions() -> None:
    global _sessions_lock  # the parent may have held it
    _sessions_lock = threading.Lock()
    _sessions.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parents_sessions)


def _reduce(run: Any) -> tuple[Callable[[RunAddress], Run], tuple[RunAddress]]:
    return RunAddress.attach, (address_of(run),)


def address_of(run: AsyncRun | Run) -> RunAddress:
    """The address of *run*, for another process."""
    return RunAddress(run.run_id, run.settings)


for _kind in (AsyncRun, Run, StartedRun, AttachedRun):
    copyreg.pickle(_kind, _reduce)
