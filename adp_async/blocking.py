"""The same for code without an event loop: a background thread owns one.

``with adp_async.blocking.start_run("digits") as run`` is all a training script needs;
`Session` is for more than one run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

import adp_async.session
from adp_async._io.loop_thread import LoopThread
from adp_async._sansio.values import valid_run_id
from adp_async.errors import AdpError, Closed
from adp_async.run import Run as AsyncRun
from adp_async.run import end_status, tell_behind
from adp_async.writer import RunWriter

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence
    from types import TracebackType

    from adp_async._sansio.values import Texts
    from adp_async.entities.runs import DatasetInput
    from adp_async.run import EndStatus
    from adp_async.settings import Knobs, Settings
    from adp_async.stats import Stats

T = TypeVar("T")

__all__ = ["AttachedRun", "Run", "Session", "StartedRun", "attach_run", "start_run"]


class Run(RunWriter):
    """A run of a blocking session: ``log_*`` return at once, the rest waits.  Any thread."""

    def __init__(self, run: AsyncRun, session: Session) -> None:
        super().__init__(run.run_id, session.session._intake)
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
            try:
                self._session.call(self._run.leave(error))
            finally:
                self._session.__exit__(kind, error, traceback)


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
            try:
                super().__exit__(kind, error, traceback)
            finally:
                self._session.__exit__(kind, error, traceback)


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
        self._thread: LoopThread | None = None
        self._opening: LoopThread | None = None

    def open(self) -> Self:
        """Start the thread and open the session.  Raises `ConfigurationError`."""
        if self._thread is not None:
            return self
        thread = self._opening = LoopThread()
        try:
            thread.wait(self.session._open_with(lambda: thread))
        except BaseException:
            thread.stop()
            raise
        finally:
            self._opening = None
        self._thread = thread
        return self

    def close(self) -> None:
        """Deliver what waits, for at most ``close_timeout`` seconds, and stop the thread."""
        thread = self._thread
        if thread is None:
            if (opening := self._opening) is not None:
                opening.wait(self.session.close())  # it hears of that, and stops the thread
            return
        thread.check()
        self._thread = None
        try:
            thread.wait(self.session.close())
        finally:
            thread.stop()

    def call(self, doing: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run a coroutine of `session` to its end; `TimeoutError` after *timeout* seconds."""
        if self._thread is None:
            doing.close()
            raise Closed("the session is not open")
        return self._thread.wait(doing, timeout)

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
        """Whether it takes calls and records."""
        return self._thread is not None

    def __repr__(self) -> str:
        return f"<blocking {repr(self.session).strip('<>')}>"


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
