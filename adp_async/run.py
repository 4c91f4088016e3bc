"""One run's handle: log into it, flush, finish."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, Self

import anyio

from adp_async._failures import noted, within
from adp_async._io.log import logger
from adp_async._sansio.outward import outward
from adp_async._sansio.service_address import page_of_run
from adp_async._sansio.statuses import EndStatus, end_status, status_of
from adp_async._sansio.texts import not_delivered_yet
from adp_async._sharing import SharesRun
from adp_async.artifacts import ArtifactWriter, LenientArtifactWriter
from adp_async.errors import AdpError, Closed, DeliveryError
from adp_async.late_run import LateRun
from adp_async.lenient import LenientWriter

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from adp_async._io.contact import Started
    from adp_async._io.delivery import Delivery
    from adp_async._io.engine import Engine
    from adp_async._io.intake import Intake
    from adp_async._io.open_runs import OpenRuns
    from adp_async._io.uploads import Uploader
    from adp_async._progress import watched
    from adp_async.api._experiment_names import ExperimentNames
    from adp_async.api._family import Listing
    from adp_async.api.runs import Runs
    from adp_async.display import Picture
    from adp_async.entities.runs import DatasetInput, Metric, MetricPage
    from adp_async.logger import BatchLogger
    from adp_async.settings import Settings
    from adp_async.stats import Stats


class Host(Protocol):
    """What a run needs of its session."""

    logger: BatchLogger

    @property
    def _intake(self) -> Intake: ...

    def _shared_engine(self) -> Engine: ...

    @property
    def _uploader(self) -> Uploader: ...

    def _has_uploads(self, run_id: str) -> bool: ...

    def _watched(
        self, what: str, run_id: str | None = None, limit: float | None = None
    ) -> watched: ...

    #: The deadline shared by the exits of a run that ran out of time and of its session.
    _ends_by: float | None

    @property
    def runs(self) -> Runs: ...

    @property
    def settings(self) -> Settings: ...

    @property
    def _open_runs(self) -> OpenRuns: ...

    async def _source_tags(self) -> dict[str, str]: ...

    @property
    def _experiment_names(self) -> ExperimentNames: ...


class Run(SharesRun, ArtifactWriter, LateRun):
    """A run of this session: ``log_*`` from anywhere, the rest from the event loop.

    *run_id*, None for a run that started offline until the service has named it; *run_name* and
    *experiment_id* are None for an attached run, which sends no request.
    *status* is the one that this handle has given the run, or None.

    A notebook shows it as a table, with a line for each metric of this process.
    """

    def __init__(
        self,
        run_id: str,
        session: Host,
        *,
        run_name: str | None = None,
        experiment_id: str | None = None,
        artifact_uri: str | None = None,
        started: Started | None = None,
    ) -> None:
        super().__init__(run_id, session._intake)
        self._host = session
        self._artifact_uri = artifact_uri
        self._run_name = run_name
        self._experiment_id = experiment_id
        self._started = started
        self.status: EndStatus | None = None
        #: The experiment's name, when the run was started by it.
        self._experiment: str | None = None

    @property
    def _session(self) -> Host:
        """The session that this process uses it with."""
        if self._is_inherited:
            self._attach_anew()
        return self._host

    @property
    def _uploader(self) -> Uploader:
        return self._session._uploader

    def _shared_engine(self) -> Engine:
        return self._host._shared_engine()

    @property
    def _delivery(self) -> Delivery:
        return self._session.logger._delivery

    @property
    def settings(self) -> Settings:
        """The settings of the run's session."""
        return self._host.settings

    async def flush(self) -> None:
        """Wait until the service has everything logged into this run so far.

        Doesn't linger.  Raises `DeliveryError` naming what was refused and not yet reported.
        There is no time limit: use ``asyncio.timeout``.
        """
        with self._watched():
            await self._session.logger.flush(self._run_id)

    async def try_flush(self) -> AdpError | None:
        """As `flush`, but returns the error that would be raised; see `BatchLogger.try_flush`."""
        with self._watched():
            return await self._session.logger.try_flush(self._run_id)

    async def drain(self) -> None:
        """Wait until the session's buffer is below its high-water mark, half of ``buffer_limit``.

        Below it, this returns at once.  Raises `Closed`.
        """
        await self._session.logger.drain()

    async def finish(self, status: EndStatus = "FINISHED") -> None:
        """Flush, wait for the uploads, then give the run its *status* and end time.

        The status goes out at once, in an operation of its own: POST ``mlflow/runs/update``.
        Uploads are waited for up to ``close_timeout``.  Raises `DeliveryError` when records were
        refused, `UploadError` when artifacts are not uploaded; the status is set all the same.
        What is logged afterwards, as long as the session is open, is delivered as well.
        ValueError, before anything is done, for a status that does not end a run.

        A run that is not created yet ends all the same: that is written down, and after
        ``close_timeout`` a WARNING says where the run waits.
        """
        status = end_status(status)
        self._check_ours()
        failures: list[AdpError] = []
        with self._watched():
            if not self._lane.is_created:
                ends_by = time.monotonic() + self._session.settings.close_timeout
                await self._finish_late(status, ends_by, failures)
                self._report(None, failures)
                return
            try:
                await noted(self.flush(), failures)
            finally:
                timeout = self._session.settings.close_timeout
                try:
                    await noted(self._finish_uploads(timeout), failures)
                finally:
                    await noted(self._end(status), failures)
        self._report(None, failures)

    def _watched(self, limit: float | None = None) -> watched:
        name = f"run {self.run_name or self._run_id}"
        return self._session._watched(name, self._run_id, limit)

    def _check_ours(self) -> None:
        """Raise `Closed` in a forked child: the parent ends its run itself."""
        if self._is_inherited or self._is_parents:
            message = f"run {self.run_id} belongs to the parent process, which ends it"
            raise Closed(message)

    async def _finish_uploads(self, timeout: float) -> None:
        """Until its artifacts are uploaded, for at most *timeout* seconds; `UploadError`."""
        if self._session._has_uploads(self._run_id):
            await self._uploader.all_settled(self._run_id, timeout)

    async def _end(self, status: EndStatus) -> None:
        end_time = time.time_ns() // 1_000_000
        await self._session.runs.update(self.run_id, status=status, end_time=end_time)
        self.status = status

    async def log_inputs(self, dataset_inputs: Sequence[DatasetInput]) -> None:
        """Record which datasets the run reads: `adp_async.entities.DatasetInput`.

        A direct call, which raises what the service answers: POST ``mlflow/runs/log-inputs``.
        """
        run_id = self._needs_id("log_inputs")
        await self._session.runs.log_inputs(run_id, dataset_inputs=dataset_inputs)

    def discard(self) -> int:
        """Give up the records that wait for this run; returns how many.  They count as dropped.

        For a run whose records are held forever, because the service does not know it or keeps
        failing on it.  Records in flight may still be delivered; records logged later are accepted
        again.  A run that is not created yet is created all the same.  From any thread.
        """
        return self._host.logger.discard(self._run_id)

    def stats(self) -> Stats:
        """Counts of this run as of now; from any thread."""
        return self._host.logger.stats(self._run_id)

    async def _leave(self, error: BaseException | None) -> None:
        """Flush and end the run, within ``close_timeout``; what exiting ``start_run`` does."""
        if self._is_inherited or self._is_parents:
            await Run.__aexit__(self, None, error, None)
            return
        await self._end_in_time(None if self.status else status_of(error), error)

    async def _end_in_time(self, status: EndStatus | None, error: BaseException | None) -> None:
        timeout = self._session.settings.close_timeout
        failures: list[AdpError] = []
        with anyio.CancelScope(shield=True), self._watched(timeout):
            ends_by = time.monotonic() + timeout
            if self._lane.is_created:
                await self._finish_now(status, ends_by, failures)
            else:
                await self._finish_late(status, ends_by - 0.1 * timeout, failures)
            if failures or not self._lane.is_created:
                self._session._ends_by = ends_by
        self._report(error, failures)

    async def _finish_now(
        self, status: EndStatus | None, ends_by: float, failures: list[AdpError]
    ) -> None:
        # Time is kept for setting the status, even if the flush could use all of it, and for the
        # session, which may be exited right after.
        timeout = self._session.settings.close_timeout
        await within(0.7 * timeout, self.flush(), self._undelivered, failures)
        await self._uploads_within(ends_by - 0.3 * timeout, failures)
        if status is not None:
            count = len(failures)
            left = ends_by - 0.1 * timeout - time.monotonic()
            await within(left, self._end(status), self._not_ended, failures)
            if len(failures) > count:
                await self._end_afterwards(status, failures[-1])

    async def _finish_late(
        self, status: EndStatus | None, ends_by: float, failures: list[AdpError]
    ) -> None:
        """The same of a run that is not created yet."""
        try:
            if (failure := await self._end_late(status, ends_by - time.monotonic())) is not None:
                failures.append(failure)
        except AdpError as closed:
            failures.append(closed)
        if self._lane.is_created:
            left = max(0.0, ends_by - time.monotonic())
            await within(left, self.flush(), self._undelivered, failures)
        await self._uploads_within(ends_by, failures)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._is_inherited:
            return  # nothing was logged here
        timeout = self._session.settings.close_timeout
        failures: list[AdpError] = []
        with anyio.CancelScope(shield=True), self._watched(timeout):
            ends_by = time.monotonic() + timeout
            await within(0.8 * timeout, self.flush(), self._undelivered, failures)
            await self._uploads_within(ends_by - 0.2 * timeout, failures)
            if failures:
                self._session._ends_by = ends_by
        self._report(error, failures)

    def _report(self, error: BaseException | None, failures: list[AdpError]) -> None:
        """Raise the first of *failures*, or note them on the caller's own *error*."""
        if error is None and failures:
            first, *others = failures
            for other in others:
                first.add_note(f"also: {other}")
            raise outward(first) from first.__cause__
        for failure in failures:
            assert error is not None
            attach_note(error, failure)

    async def _uploads_within(self, ends_by: float, failures: list[AdpError]) -> None:
        await noted(self._finish_uploads(ends_by - time.monotonic()), failures)

    def _undelivered(self) -> DeliveryError:
        left = self.stats().undelivered
        message = f"{self._described()}: {not_delivered_yet(left)}"
        return DeliveryError(message, undelivered=left, run_id=self._run_id)

    def _not_ended(self) -> DeliveryError:
        message = f"run {self.run_id}: its status could not be set in time"
        return DeliveryError(message, run_id=self.run_id)

    def __repr__(self) -> str:
        stats = self.stats()
        name = f" {self.run_name!r}" if self.run_name else ""
        status = f"{self.status} | " if self.status else ""
        run_id = self.run_id or "not yet created"
        return (
            f"<Run {run_id}{name} | {status}{stats.delivered} delivered | "
            f"{stats.undelivered} waiting | {sum(stats.rejected.values())} rejected>"
        )

    @property
    def url(self) -> str | None:
        """The run's page, by the setting *page_url*.

        None without that setting, when the page needs the experiment, which an attached run does
        not know, and as long as the run is not created.
        """
        settings = self._host.settings
        if settings.page_url is None or not self._lane.is_created:
            return None
        return page_of_run(
            settings.page_url,
            run_id=self.run_id,
            experiment_id=self.experiment_id,
            workspace=settings.workspace,
            platform_id=settings.platform_id,
        )

    def history(self, key: str, *, limit: int | None = None) -> Listing[Metric, MetricPage]:
        """Every point of the metric *key* that the service has: ``async for point in ...``.

        At most *limit* of them.  ``await run.history("loss").to_list()`` and ``.to_pandas()`` read
        it at once.  What still waits here is not in it: `flush` first.  Raises `NotFound` when the
        service does not know the run.  Operation: GET ``mlflow/metrics/get-history``.
        """
        return self._session.runs.metric_history(self._needs_id("history"), key, limit=limit)

    def plot(self, *keys: str) -> Picture:
        """The metrics called *keys* in one chart; without keys, each in a chart of its own.

        A notebook shows what this returns as a picture, ``print`` and the interactive interpreter
        draw it in the terminal.  It has what this session delivered so far: up to 128 points of
        each of a run's first 32 metrics.  Nothing is asked of the service.  Raises ValueError for
        a key of which no point was delivered.
        """
        from adp_async.display import picture_of_run

        return picture_of_run(self._host.logger._delivery, self._run_id, keys)

    def _status(self) -> str:
        """The status as far as this session knows it."""
        if not self._lane.is_created:
            return "not yet created"
        is_open = self.run_id in self._host._open_runs
        return "RUNNING" if is_open else self.status or "unknown"

    def _repr_html_(self) -> str:
        from adp_async.display import run_page  # only a notebook asks

        experiment = self.experiment_id
        if self._experiment is not None:
            which = "" if experiment is None else f" (id {experiment})"
            experiment = f"{self._experiment}{which}"
        facts: dict[str, object] = {"experiment": experiment, "status": self._status()}
        delivery = self._host.logger._delivery
        return run_page(delivery, self._run_id, name=self.run_name, facts=facts, url=self.url)


class LenientRun(LenientWriter, LenientArtifactWriter, Run):
    """A run with ``strict=False``: what the others raise is a warning."""

    async def flush(self) -> None:
        """As `Run.flush`, but what was refused is a warning."""
        with warned(self):
            await super().flush()

    async def drain(self) -> None:
        """As `Run.drain`, but of a closed session it returns."""
        with warned(self):
            await super().drain()

    async def finish(self, status: EndStatus = "FINISHED") -> None:
        """As `Run.finish`, within ``close_timeout``, but what fails is a warning.

        ValueError for a status that does not end a run.
        """
        status = end_status(status)
        try:
            self._check_ours()
        except Closed as failure:
            self._report(None, [failure])
        else:
            await self._end_in_time(status, None)

    async def log_inputs(self, dataset_inputs: Sequence[DatasetInput]) -> None:
        """As `Run.log_inputs`, but what fails is a warning."""
        with warned(self):
            await super().log_inputs(dataset_inputs)

    def _report(self, error: BaseException | None, failures: list[AdpError]) -> None:
        for failure in failures:
            if error is None:
                logger.warning("%s", failure, extra={"run_id": self.run_id})
            else:
                attach_note(error, failure)


@contextmanager
def warned(run: Run) -> Iterator[None]:
    """What fails in the block, or takes too long, is a warning, and ends only the block."""
    try:
        yield
    except AdpError as failure:
        logger.warning("%s", failure, extra={"run_id": run.run_id})
    except TimeoutError:
        logger.warning("%s", run._undelivered(), extra={"run_id": run.run_id})


def attach_note(error: BaseException, failure: AdpError) -> None:
    """Log *failure* and note it on the caller's own *error*, which comes out bare.

    Unless that says the same: what a flush in the body raised is not new at the end.
    """
    if str(failure) == str(error):
        return
    logger.warning("%s", failure)
    error.add_note(f"adp_async: {type(failure).__name__}: {failure}")
