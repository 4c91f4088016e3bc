"""The same for code without an event loop: a background thread owns one.

``with adp_async.blocking.start_run("digits") as run`` is all a training script needs;
`Session` is for more than one run.
"""

from __future__ import annotations

from functools import cached_property
from inspect import isawaitable, iscoroutine
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack, overload

import adp_async.session
from adp_async._io.loop_thread import LoopThread
from adp_async._sansio.endpoints import Endpoint
from adp_async._sansio.values import valid_run_id
from adp_async.api._late import LateTwin
from adp_async.artifacts import ArtifactWriter
from adp_async.errors import AdpError, Closed
from adp_async.logger import LoggerFace
from adp_async.run import Run as AsyncRun
from adp_async.run import end_status, tell_behind
from adp_async.writer import RunWriter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine, Sequence
    from pathlib import Path
    from types import TracebackType

    from adp_async._sansio.messages import Reply
    from adp_async._sansio.values import Texts
    from adp_async.api._family import CallArguments
    from adp_async.api.blocking import (
        Deployments,
        Experiments,
        LoggedModels,
        ModelVersions,
        RegisteredModels,
        Runs,
    )
    from adp_async.entities.runs import DatasetInput
    from adp_async.run import EndStatus
    from adp_async.settings import Knobs, Settings
    from adp_async.stats import Stats

T = TypeVar("T")

__all__ = ["AttachedRun", "BatchLogger", "Run", "Session", "StartedRun", "attach_run", "start_run"]


class Run(ArtifactWriter, RunWriter):
    """A run of a blocking session: ``log_*`` return at once, the rest waits.  Any thread."""

    def __init__(self, run: AsyncRun, session: Session) -> None:
        super().__init__(run.run_id, session.session._intake)
        self._uploader = session.session._uploader
        self._artifact_uri = run._artifact_uri
        self._run = run
        self._session = session

    @property
    def run_name(self) -> str | None:
        """The run's name; None for an attached run."""
        return self._run.run_name

    @property
    def settings(self) -> Settings:
        """The settings of the run's session."""
        return self._run.settings

    @property
    def experiment_id(self) -> str | None:
        """The id of the run's experiment; None for an attached run."""
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

    def finish(self, status: EndStatus = "FINISHED") -> None:
        """Flush, wait for the uploads, then give the run its *status* and end time.

        See `adp_async.Run.finish`.
        """
        self._session.call(self._run.finish(end_status(status)))

    def log_inputs(self, dataset_inputs: Sequence[DatasetInput]) -> None:
        """Record which datasets the run reads."""
        self._session.call(self._run.log_inputs(dataset_inputs))

    def discard(self) -> int:
        """Give up the records that wait for this run; see `adp_async.Run.discard`."""
        return self._run.discard()

    def stats(self) -> Stats:
        """Counts of this run as of now; from any thread."""
        return self._run.stats()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._session.call(self._exit(error))

    async def _exit(self, error: BaseException | None) -> None:
        """What exiting does on the session's event loop."""
        await self._run.__aexit__(None, error, None)

    def __repr__(self) -> str:
        return repr(self._run)

    def _repr_html_(self) -> str:
        return self._run._repr_html_()


class _RunWithSession(Run):
    """A run that closes its session with it, when that is its own."""

    def __init__(self, run: AsyncRun, session: Session, *, owns_session: bool = True) -> None:
        super().__init__(run, session)
        self._owns_session = owns_session

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._owns_session:
            super().__exit__(kind, error, traceback)
        elif self._session._thread is not None:  # unless it was closed by hand
            try:
                super().__exit__(kind, error, traceback)
            finally:
                self._session.__exit__(kind, error, traceback)


class StartedRun(_RunWithSession):
    """A run that ends with its ``with`` block, and its session with it when it has its own."""

    def finish(self, status: EndStatus = "FINISHED") -> None:
        """Flush, give the run its *status* and end time, and close a session of its own."""
        status = end_status(status)
        try:
            super().finish(status)
        finally:
            if self._owns_session:
                self._session.close()

    async def _exit(self, error: BaseException | None) -> None:
        await self._run._leave(error)


class AttachedRun(_RunWithSession):
    """A run that existed before, with a session of its own that ends with ``with``."""

    def close(self) -> None:
        """Deliver what waits and close the session; leaves the run's status alone."""
        self._session.close()


class BatchLogger(LoggerFace):
    """The background logger of a blocking session; ``log_*`` return at once.  Any thread.

    Its ``log_*`` take the run's id first and are otherwise those of `Run`.
    """

    def __init__(self, session: Session) -> None:
        super().__init__(session.session._delivery)
        self._session = session

    def flush(self, run_id: str | None = None, timeout: float | None = None) -> None:
        """Wait until the service has everything accepted so far, of one run or of all.

        Doesn't linger.  Raises `DeliveryError` when records were refused that no flush has
        reported yet, `TimeoutError` after *timeout* seconds.
        """
        self._session.call(self._session.session.logger.flush(run_id), timeout)

    def drain(self, timeout: float | None = None) -> None:
        """Wait until the buffer is below its high-water mark, half of ``buffer_limit``.

        Raises `TimeoutError` after *timeout* seconds.
        """
        self._session.call(self._session.session.logger.drain(), timeout)


class Session:
    """A session for code without an event loop; see `adp_async.Session`.

    It has every operation of that one, without ``await``: *runs*, *experiments*,
    *registered_models*, *model_versions*, *logged_models* and *deployments*, whose listings are
    plain iterators, *logger*, `call` and `fetch`.  They run in an event loop in a background
    thread, and so does what *on_reply* names.  Any thread may use them, and Ctrl-C interrupts a
    call that waits.

    *session* is the asynchronous session.  Left open when the interpreter ends, it is closed
    then, within ``close_timeout``.
    """

    runs: LateTwin[Runs] = LateTwin("blocking.Runs", "Runs, and what is logged into them.")
    experiments: LateTwin[Experiments] = LateTwin(
        "blocking.Experiments", "Experiments and their tags."
    )
    registered_models: LateTwin[RegisteredModels] = LateTwin(
        "blocking.RegisteredModels", "Registered models, their tags and permissions."
    )
    model_versions: LateTwin[ModelVersions] = LateTwin(
        "blocking.ModelVersions", "Versions of registered models."
    )
    logged_models: LateTwin[LoggedModels] = LateTwin(
        "blocking.LoggedModels", "Models as runs have logged them."
    )
    deployments: LateTwin[Deployments] = LateTwin(
        "blocking.Deployments", "Model deployments, their activities, logs and inferences."
    )

    _thread: LoopThread | None = None
    #: The same while it opens: `close` may come in between.
    _opening: LoopThread | None = None

    def __init__(
        self, platform_id: str | None = None, workspace: str | None = None, **knobs: Unpack[Knobs]
    ) -> None:
        self.session = adp_async.session.Session(platform_id, workspace, **knobs)

    @cached_property
    def logger(self) -> BatchLogger:
        """The background logger, which coalesces what is logged into few requests."""
        return BatchLogger(self)

    @property
    def settings(self) -> Settings:
        """The settings in use; the endpoint of a region is known once it is open."""
        return self.session.settings

    @property
    def spool_folder(self) -> Path:
        """Where spools are; see `adp_async.Session.spool_folder`."""
        return self.session.spool_folder

    def open(self) -> Self:
        """Start the thread and open the session; what entering does.

        Raises `ConfigurationError`.
        """
        if self._thread is not None:
            return self
        thread = self._opening = LoopThread()
        try:
            thread.wait(self.session._engine.open(lambda: thread))
        except BaseException:
            thread.stop()
            raise
        finally:
            self._opening = None
        self._thread = thread
        return self

    def close(self) -> None:
        """Deliver what waits, for at most ``close_timeout`` seconds, and stop the thread.

        What exiting does.  Raises `DeliveryError` when records were refused that no flush has
        reported, or could not be delivered in time.
        """
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

    @overload
    def call(self, doing: Awaitable[T], /, timeout: float | None = ...) -> T: ...

    @overload
    def call(
        self, endpoint: Endpoint, *, returning: type[T], **given: Unpack[CallArguments]
    ) -> T: ...

    @overload
    def call(
        self, endpoint: Endpoint, *, returning: None = None, **given: Unpack[CallArguments]
    ) -> object: ...

    def call(
        self, endpoint: Awaitable[T] | Endpoint, timeout: float | None = None, **given: Any
    ) -> Any:
        """One operation, as `adp_async.Session.call`; or whatever *session* can be asked to do.

        ``call(Endpoint(...), path=..., query=..., body=..., returning=...)`` sends that operation
        and returns its reply.  ``call(awaitable)`` runs, for instance, a coroutine of *session* to
        its end and returns its result.  Raises `TimeoutError` (an operation: `RequestTimeout`)
        after *timeout* seconds.
        """
        if isinstance(endpoint, Endpoint):
            if timeout is not None:
                given["timeout"] = timeout
            return self._wait(self.session.call(endpoint, **given))
        if not isawaitable(endpoint):
            message = f"call takes an Endpoint or an awaitable, not {type(endpoint).__name__}"
            raise TypeError(message)
        doing = endpoint if iscoroutine(endpoint) else _awaited(endpoint)
        if given:
            doing.close()
            raise TypeError(f"call of an awaitable takes no {', '.join(given)}")
        return self._wait(doing, timeout)

    def fetch(self, endpoint: Endpoint, **given: Unpack[CallArguments]) -> Reply:
        """As `call`, but the reply as it came; see `adp_async.Session.fetch`."""
        return self._wait(self.session.fetch(endpoint, **given))

    def _wait(self, doing: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
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
        """Whether the session accepts calls and records."""
        return self._thread is not None and self.session.is_open

    def __repr__(self) -> str:
        return f"<blocking {repr(self.session).strip('<>')}>"


async def _awaited(doing: Awaitable[T]) -> T:
    return await doing


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
