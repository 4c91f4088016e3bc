"""The same for code without an event loop: a background thread owns one.

``with adp_async.blocking.start_run("digits") as run`` is all a training script needs;
`Session` is for more than one run.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import copyreg
import logging
import os
import threading
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

import attrs
from attrs import field, frozen

import adp_async.session
from adp_async._sansio.values import valid_run_id
from adp_async.errors import AdpError, Closed
from adp_async.run import Run as AsyncRun
from adp_async.run import end_status, tell_behind
from adp_async.writer import RunWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from types import TracebackType

    from adp_async._sansio.values import Texts
    from adp_async.entities.runs import DatasetInput
    from adp_async.logger import Stats
    from adp_async.run import EndStatus
    from adp_async.settings import Knobs, Settings

T = TypeVar("T")

#: Seconds that calls of other threads have to end when the session is closed.
LAST_WORDS = 0.5

logger = logging.getLogger("adp_async")

__all__ = ["AttachedRun", "Run", "RunAddress", "Session", "StartedRun", "attach_run", "start_run"]


class _Portal:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._pid = os.getpid()
        # A daemon: an interpreter that ends with a session open must not wait here for ever;
        # `Session` closes itself at exit.
        self._thread = threading.Thread(target=self._run, name="adp_async loop", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        # The thread that looks up hosts: at the end of the interpreter, when what waits is
        # delivered, Python 3.12 would start none.
        self.loop.run_in_executor(None, int)
        try:
            self.loop.run_forever()
            self.loop.run_until_complete(_last_words())
        finally:
            self.loop.close()

    def call(self, doing: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        try:
            self.check()
        except Closed:
            doing.close()
            raise
        future = asyncio.run_coroutine_threadsafe(doing, self.loop)
        try:
            return future.result(timeout)
        except concurrent.futures.CancelledError:
            raise Closed("the session was left meanwhile") from None
        except (TimeoutError, KeyboardInterrupt):
            future.cancel()
            raise

    def check(self) -> None:
        """Raise `Closed` where nobody can wait for the loop."""
        if os.getpid() != self._pid:
            raise Closed("the session belongs to the parent process; open one in this process")
        if threading.current_thread() is self._thread:
            raise Closed("waiting here would block the session's own event loop")
        if self.loop.is_closed():
            raise Closed("the session was left")

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(timeout=5.0)


async def _last_words() -> None:
    """Threads that wait hear how it ended; what goes on regardless is cancelled."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        _, lasting = await asyncio.wait(others, timeout=LAST_WORDS)
        for task in lasting:
            task.cancel()
        await asyncio.gather(*lasting, return_exceptions=True)


class Run(RunWriter):
    """A run of a blocking session: ``log_*`` return at once, the rest waits.  Any thread."""

    def __init__(self, run: AsyncRun, session: Session) -> None:
        super().__init__(run.run_id, session.session.logger)
        self._run = run
        self._session = session

    @property
    def run_name(self) -> str | None:
        return self._run.run_name

    @property
    def settings(self) -> Settings:
        """What the run's session works with."""
        return self._run.settings

    @property
    def experiment_id(self) -> str | None:
        return self._run.experiment_id

    @property
    def status(self) -> EndStatus | None:
        """The status this handle has given the run, or None."""
        return self._run.status

    def flush(self, timeout: float | None = None) -> None:
        """Wait until the service has everything logged so far.

        Raises `DeliveryError` naming what was refused, `TimeoutError` after *timeout* seconds.
        """
        self._session.call(self._run.flush(), timeout)

    def drain(self, timeout: float | None = None) -> None:
        """Wait until the buffer is below its high-water mark."""
        self._session.call(self._run.drain(), timeout)

    def discard(self) -> int:
        """Give up what waits for this run: how many records that are, counted as dropped.

        For a run that the service does not show, or fails on, and so holds for ever.  What is on
        its way just now may still be delivered; what is logged afterwards is accepted again.
        """
        return self._run.discard()

    def finish(self, status: EndStatus = "FINISHED") -> None:
        """Flush, then give the run its *status* and end time.

        ValueError for a status that is no end, before anything is done.
        """
        self._session.call(self._run.finish(end_status(status)))

    def log_inputs(self, dataset_inputs: Sequence[DatasetInput]) -> None:
        """Say which datasets the run reads."""
        self._session.call(self._run.log_inputs(dataset_inputs))

    def stats(self) -> Stats:
        """Counts of this run as of now."""
        return self._run.stats()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._session.call(self._run.__aexit__(kind, error, traceback))

    def __repr__(self) -> str:
        return repr(self._run)

    def _repr_html_(self) -> str:
        return self._run._repr_html_()


class StartedRun(Run):
    """A run that ends with its ``with`` block, and its session with it when it has its own."""

    def __init__(self, run: AsyncRun, session: Session, *, owns_session: bool) -> None:
        super().__init__(run, session)
        self._owns_session = owns_session

    def finish(self, status: EndStatus = "FINISHED") -> None:
        """Flush, give the run its *status* and end time, and close a session of its own."""
        status = end_status(status)
        try:
            super().finish(status)
        finally:
            if self._owns_session:
                self._session.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._owns_session:
            self._session.call(self._run.leave(error))
        elif self._session.is_open:  # unless `finish` has closed it
            with self._session:
                self._session.call(self._run.leave(error))


class AttachedRun(Run):
    """A run that was there before, with a session of its own that ends with ``with``."""

    def close(self) -> None:
        """Deliver what waits and close the session; leaves the run's status alone."""
        self._session.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._session.is_open:  # unless `close` was called
            with self._session:
                super().__exit__(kind, error, traceback)


class Session:
    """A session whose event loop runs in a background thread; see `adp_async.Session`.

    *session* is the asynchronous one; `call` waits for anything of it:
    ``blocking.call(blocking.session.runs.get(run_id))``.  Left open when the interpreter ends, it
    is closed then, within ``close_timeout``.
    """

    def __init__(
        self, platform_id: str | None = None, workspace: str | None = None, **knobs: Unpack[Knobs]
    ) -> None:
        self.session = adp_async.session.Session(platform_id, workspace, **knobs)
        self._portal: _Portal | None = None

    def open(self) -> Self:
        """Start the thread and open the session.  Raises `ConfigurationError`."""
        if self._portal is not None:
            return self
        portal = _Portal()
        try:
            portal.call(self.session.open())
        except BaseException:
            portal.stop()
            raise
        self._portal = portal
        _open_sessions.add(self)
        _see_to_the_end()
        return self

    def close(self) -> None:
        """Deliver what waits, for at most ``close_timeout`` seconds, and stop the thread."""
        portal = self._portal
        if portal is None:
            return
        portal.check()
        self._portal = None
        _open_sessions.discard(self)
        try:
            portal.call(self.session.close())
        finally:
            portal.stop()

    def call(self, doing: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run a coroutine of `session` to its end; `TimeoutError` after *timeout* seconds."""
        if self._portal is None:
            doing.close()
            raise Closed("the session is not open")
        return self._portal.call(doing, timeout)

    def start_run(
        self,
        experiment: str | None = None,
        *,
        experiment_id: str | None = None,
        run_name: str | None = None,
        params: Texts | None = None,
        tags: Texts | None = None,
    ) -> StartedRun:
        """Create a run; ``with`` ends it.  See `adp_async.Session.start_run`."""
        return self._start(
            owns_session=False,
            experiment=experiment,
            experiment_id=experiment_id,
            run_name=run_name,
            params=params,
            tags=tags,
        )

    def _start(self, *, owns_session: bool, **arguments: Any) -> StartedRun:
        starting = self.session.start_run(**arguments)

        async def start() -> AsyncRun:
            return await starting

        return StartedRun(self.call(start()), self, owns_session=owns_session)

    def attach_run(self, run_id: str) -> Run:
        """A handle of a run that exists, without a request; ``with`` only flushes."""
        return Run(self.session.attach_run(valid_run_id(run_id)), self)

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except AdpError as failure:
            if error is None:
                raise
            tell_behind(error, failure)

    @property
    def is_open(self) -> bool:
        return self._portal is not None

    def __repr__(self) -> str:
        return f"<blocking {repr(self.session).strip('<>')}>"


_open_sessions: set[Session] = set()


def _close_at_exit() -> None:
    for session in list(_open_sessions):
        try:
            session.close()
        except AdpError as failure:
            # Nobody is left to catch it.
            logger.warning("%s", failure)


@cache
def _see_to_the_end() -> None:
    """Have the sessions closed that are still open when the interpreter ends."""
    # A connection that has to be made then asks an executor for the host's address, and those stop
    # before `atexit` runs.  What runs before them has no public name; the last that is registered
    # runs first, so this module has to be there by now.
    import concurrent.futures.thread  # noqa: F401

    register: Callable[[Callable[[], None]], object]
    register = getattr(threading, "_register_atexit", atexit.register)
    # Too late when the interpreter has begun to end: who opens a session then closes it, too.
    with suppress(RuntimeError):
        register(_close_at_exit)


if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows has no fork
    # A forked child has no business with its parent's sessions.
    os.register_at_fork(after_in_child=_open_sessions.clear)


@frozen
class RunAddress:
    """Where a run is, for another process: pickle it, and `attach` there.

    A pickled run is its address as well: it arrives as a handle with a session of the process it
    arrives in.  *settings* are those of the session it comes from; what they hold of credentials
    is where to find them, unless they were given outright.
    """

    run_id: str
    settings: Settings = field(repr=False)

    def attach(self) -> Run:
        """A handle of the run, with a session that this process has once for all its runs.

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


if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows has no fork
    os.register_at_fork(after_in_child=_forget_parents_sessions)


def _reduce(run: Any) -> tuple[Callable[[RunAddress], Run], tuple[RunAddress]]:
    return RunAddress.attach, (address_of(run),)


def address_of(run: AsyncRun | Run) -> RunAddress:
    """The address of *run*, for another process."""
    return RunAddress(run.run_id, run.settings)


for _kind in (AsyncRun, Run, StartedRun, AttachedRun):
    copyreg.pickle(_kind, _reduce)


def start_run(
    experiment: str | None = None,
    *,
    experiment_id: str | None = None,
    run_name: str | None = None,
    params: Texts | None = None,
    tags: Texts | None = None,
    platform_id: str | None = None,
    workspace: str | None = None,
    **knobs: Unpack[Knobs],
) -> StartedRun:
    """Open a session of its own, create a run, and end both with the ``with`` block.

    *platform_id*, *workspace* and *knobs* are those of `Session`; the rest as for
    `adp_async.Session.start_run`.  In place of ``with``, ``run.finish()`` ends both as well.
    """
    session = Session(platform_id, workspace, **knobs).open()
    try:
        return session._start(
            owns_session=True,
            experiment=experiment,
            experiment_id=experiment_id,
            run_name=run_name,
            params=params,
            tags=tags,
        )
    except BaseException:
        session.close()
        raise


def attach_run(
    run_id: str,
    *,
    platform_id: str | None = None,
    workspace: str | None = None,
    **knobs: Unpack[Knobs],
) -> AttachedRun:
    """A handle of a run that exists, with a session of its own that ``with`` closes."""
    run_id = valid_run_id(run_id)
    session = Session(platform_id, workspace, **knobs).open()
    try:
        return AttachedRun(session.session.attach_run(run_id), session)
    except BaseException:
        session.close()
        raise
