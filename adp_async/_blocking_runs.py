"""Handles of runs for code without an event loop; `adp_async.blocking` has them for users."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn, Protocol, TypeVar

from adp_async._sansio.statuses import end_status
from adp_async._sharing import SharesRun
from adp_async.artifacts import ArtifactWriter, LenientArtifactWriter
from adp_async.errors import AdpError, Closed
from adp_async.lenient import LenientWriter
from adp_async.run import warned
from adp_async.writer import RunWriter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence
    from types import TracebackType
    from typing import Self

    from adp_async._io.engine import Engine
    from adp_async._io.loop_thread import LoopThread
    from adp_async._io.uploads import Uploader
    from adp_async._sansio.statuses import EndStatus
    from adp_async.api._family import BlockingListing
    from adp_async.display import Picture
    from adp_async.entities.runs import DatasetInput, Metric, MetricPage
    from adp_async.run import Run as AsyncRun
    from adp_async.settings import Settings
    from adp_async.stats import Stats

T = TypeVar("T")


class Host(Protocol):
    """What a run needs of its session."""

    _thread: LoopThread | None

    def call(self, doing: Awaitable[T], /, timeout: float | None = ...) -> T: ...

    def close(self) -> None: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class Run(SharesRun, ArtifactWriter, RunWriter):
    """A run of a blocking session: ``log_*`` return at once, the rest waits.  Thread-safe."""

    def __init__(self, run: AsyncRun, session: Host) -> None:
        super().__init__(run._run_id, run._intake)
        self._artifact_uri = run._artifact_uri
        self._inner = run
        self._host = session

    # Those that this process uses it with; see `RunWriter._attach_anew`.

    @property
    def _run(self) -> AsyncRun:
        if self._is_inherited:
            self._attach_anew()
        return self._inner

    @property
    def _session(self) -> Host:
        if self._is_inherited:
            self._attach_anew()
        return self._host

    @property
    def _uploader(self) -> Uploader:
        return self._run._uploader

    def _shared_engine(self) -> Engine:
        return self._inner._shared_engine()

    @property
    def run_name(self) -> str | None:
        """The run's name; see `adp_async.Run.run_name`."""
        return self._inner.run_name

    @property
    def settings(self) -> Settings:
        """The settings of the run's session."""
        return self._inner.settings

    @property
    def experiment_id(self) -> str | None:
        """The id of the run's experiment; None for an attached run."""
        return self._inner.experiment_id

    @property
    def status(self) -> EndStatus | None:
        """The status this handle has given the run, or None."""
        return self._inner.status

    @property
    def url(self) -> str | None:
        """The run's page, by the setting *page_url*; see `adp_async.Run.url`."""
        return self._inner.url

    def history(self, key: str, *, limit: int | None = None) -> BlockingListing[Metric, MetricPage]:
        """Every point of the metric *key* that the service has: ``for point in ...``.

        At most *limit* of them; see `adp_async.Run.history`.
        """
        from adp_async.api._family import BlockingListing

        return BlockingListing(self._run.history(key, limit=limit), self._session.call)

    def plot(self, *keys: str) -> Picture:
        """The metrics called *keys* as this session delivered them; see `adp_async.Run.plot`."""
        return self._inner.plot(*keys)

    def created(self, timeout: float | None = None) -> str:
        """Wait until the service has the run; returns its id.  See `adp_async.Run.created`.

        Raises `TimeoutError` after *timeout* seconds.
        """
        return self._session.call(self._run.created(), timeout)

    def flush(self, timeout: float | None = None) -> None:
        """Wait until the service has everything logged so far.

        Raises `DeliveryError` naming what was refused, `TimeoutError` after *timeout* seconds.
        """
        try:
            self._session.call(self._run.flush(), timeout)
        except TimeoutError:
            raise TimeoutError(str(self._run._undelivered())) from None

    def try_flush(self, timeout: float | None = None) -> AdpError | None:
        """As `flush`, but returns the error that would be raised; None when all went well.

        After *timeout* seconds, a `DeliveryError` that says how many records are still waiting.
        What was refused remains to be told: a later `flush`, or leaving the run, raises it.
        """
        try:
            return self._session.call(self._run.try_flush(), timeout)
        except TimeoutError:
            return self._run._undelivered()
        except AdpError as error:  # closed
            return error

    def drain(self, timeout: float | None = None) -> None:
        """Wait until the buffer is below its high-water mark, half of ``buffer_limit``.

        Raises `TimeoutError` after *timeout* seconds.
        """
        self._session.call(self._run.drain(), timeout)

    def finish(self, status: EndStatus = "FINISHED") -> None:
        """Flush, wait for the uploads, then give the run its *status* and end time.

        Errors as for `adp_async.Run.finish`.  ValueError, before anything is done, for a status
        that does not end a run.
        """
        status = end_status(status)
        self._inner._check_ours()
        self._session.call(self._run.finish(status))

    def log_inputs(self, dataset_inputs: Sequence[DatasetInput]) -> None:
        """Record which datasets the run reads; see `adp_async.Run.log_inputs`."""
        self._session.call(self._run.log_inputs(dataset_inputs))

    def discard(self) -> int:
        """Give up the records that wait for this run; see `adp_async.Run.discard`."""
        return self._inner.discard()

    def stats(self) -> Stats:
        """Counts of this run as of now; from any thread."""
        return self._inner.stats()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._is_inherited:  # else nothing was logged here
            self._session.call(self._exit(error))

    if not TYPE_CHECKING:  # for a type checker, these are not there

        def __aenter__(self) -> NoReturn:
            message = f"run {self.run_id} is of a blocking session: use `with`"
            raise TypeError(message)

        async def __aexit__(self, *error: object) -> None: ...

    async def _exit(self, error: BaseException | None) -> None:
        """What exiting does on the session's event loop."""
        await self._run.__aexit__(None, error, None)

    def __repr__(self) -> str:
        return repr(self._inner)

    def _repr_html_(self) -> str:
        return self._inner._repr_html_()


class _RunWithSession(Run):
    """A run that closes its session when it ends, if the session is its own."""

    def __init__(self, run: AsyncRun, session: Host, *, owns_session: bool = True) -> None:
        super().__init__(run, session)
        self._owns_session = owns_session

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._is_inherited or not self._owns_session:
            super().__exit__(kind, error, traceback)
        elif self._session._thread is not None:  # unless it was closed by hand
            try:
                super().__exit__(kind, error, traceback)
            finally:
                self._session.__exit__(kind, error, traceback)


class StartedRun(_RunWithSession):
    """A run that ends with its ``with`` block, and closes a session of its own."""

    def finish(self, status: EndStatus = "FINISHED") -> None:
        """Flush, give the run its *status* and end time, and close a session of its own.

        A second time it does nothing, unless *status* is another one: then `Closed`.
        """
        status = end_status(status)
        self._inner._check_ours()
        if self._owns_session and self._session._thread is None and self.status is not None:
            if status == self.status:
                return
            message = (
                f"run {self.run_id} has ended {self.status}, and its session is closed; "
                "`session.runs.update(run_id, status=...)` changes it"
            )
            raise Closed(message)
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
        if not self._owns_session:  # in a forked child, whose session may serve others
            self.flush()
        elif not self._is_inherited:
            self._session.close()


class Lenient(LenientWriter, LenientArtifactWriter, Run):
    """What ``strict=False`` changes of a run: what would be raised is a warning."""

    def flush(self, timeout: float | None = None) -> None:
        """As `Run.flush`, but what fails is a warning."""
        with warned(self._inner):
            super().flush(timeout)

    def drain(self, timeout: float | None = None) -> None:
        """As `Run.drain`, but what fails is a warning."""
        with warned(self._inner):
            super().drain(timeout)

    def finish(self, status: EndStatus = "FINISHED") -> None:
        """As `Run.finish`, within ``close_timeout``, but what fails is a warning.

        ValueError for a status that does not end a run.
        """
        with warned(self._inner):
            super().finish(status)

    def log_inputs(self, dataset_inputs: Sequence[DatasetInput]) -> None:
        """As `Run.log_inputs`, but what fails is a warning."""
        with warned(self._inner):
            super().log_inputs(dataset_inputs)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with warned(self._inner):
            super().__exit__(kind, error, traceback)


class LenientRun(Lenient, Run):
    """An attached run with ``strict=False``."""


class LenientStartedRun(Lenient, StartedRun):
    """A started run with ``strict=False``."""


class LenientAttachedRun(Lenient, AttachedRun):
    """An attached run with ``strict=False`` and a session of its own."""

    def close(self) -> None:
        """As `AttachedRun.close`, but what fails is a warning."""
        with warned(self._inner):
            super().close()


def handle_of(run: AsyncRun, session: Host) -> Run:
    """The handle of an attached run."""
    return LenientRun(run, session) if isinstance(run, LenientWriter) else Run(run, session)


def started(run: AsyncRun, session: Host, *, owns_session: bool) -> StartedRun:
    """The handle of a run that was started, or resumed."""
    kind = LenientStartedRun if isinstance(run, LenientWriter) else StartedRun
    return kind(run, session, owns_session=owns_session)


def attached(run: AsyncRun, session: Host) -> AttachedRun:
    """The handle of an attached run that has a session of its own."""
    kind = LenientAttachedRun if isinstance(run, LenientWriter) else AttachedRun
    return kind(run, session)
