"""A run for another process: its address, which can be pickled, and what a fork inherits."""

from __future__ import annotations

import copyreg
from typing import TYPE_CHECKING, Any

import attrs
from attrs import field, frozen

from adp_async._blocking_runs import LenientAttachedRun, LenientRun, LenientStartedRun
from adp_async.blocking import AttachedRun, Run, StartedRun, shared_session
from adp_async.lenient import LenientWriter
from adp_async.run import LenientRun as AsyncLenientRun
from adp_async.run import Run as AsyncRun

if TYPE_CHECKING:
    from collections.abc import Callable

    from adp_async.settings import Settings

__all__ = ["RunAddress", "address_of"]


@frozen
class RunAddress:
    """Where a run is, for another process: pickle it, and `attach` there.

    A pickled run is its address as well: it arrives as a handle with a session of the process it
    arrives in; while the run is shared (`Run.shared`), as what `Handle.attach` gives.  *settings*
    are those of the session it comes from; they say where to find the credentials.  Where they
    hold some themselves (a key, a passphrase or a token that was given as an argument), pickling
    raises `ConfigurationError`.
    """

    run_id: str
    settings: Settings = field(repr=False)
    #: Whether what it logs there may raise; see `adp_async.Session.start_run`.
    strict: bool = True

    def attach(self) -> Run:
        """A handle of the run, on a session shared by all attached runs of this process.

        That session ends with the process, and then delivers what waits.
        """
        session = shared_session(**attrs.asdict(self.settings, recurse=False))
        return session.attach_run(self.run_id, strict=self.strict)


def _reduce(run: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    if (handle := run._shared_handle()) is not None:
        return _attach_shared, (handle, not isinstance(run, LenientWriter))
    return RunAddress.attach, (address_of(run),)


def _attach_shared(handle: Any, strict: bool) -> Run:
    attached: Run = handle.attach(strict=strict)
    return attached


def address_of(run: AsyncRun | Run) -> RunAddress:
    """The address of *run*, for another process.

    An `AdpError` for a run that started offline and is not created yet: nobody else can log into
    it before.
    """
    known = run._inner if isinstance(run, Run) else run
    run_id = known._needs_id("a run's address, as in a pickle")
    return RunAddress(run_id, run.settings, not isinstance(run, LenientWriter))


for _kind in (
    AsyncRun, AsyncLenientRun, Run, StartedRun, AttachedRun,
    LenientRun, LenientStartedRun, LenientAttachedRun,
):  # fmt: skip
    copyreg.pickle(_kind, _reduce)
