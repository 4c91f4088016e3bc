"""One run's handle: log into it, flush, finish."""

from __future__ import annotations

import asyncio
import time
from itertools import starmap
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, get_args

import anyio

from adp_async._io.log import logger
from adp_async._sansio.values import pairs_of, valid_key, valid_name, valid_text
from adp_async.artifacts import ArtifactWriter
from adp_async.errors import AdpError, BadRequest, Conflict, DeliveryError, NotFound, shown
from adp_async.writer import RunWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator, Sequence
    from types import TracebackType

    from adp_async._io.intake import Intake
    from adp_async._io.uploads import Uploader
    from adp_async._sansio.records import BatchLimits
    from adp_async._sansio.values import Texts
    from adp_async.api._experiment_names import ExperimentNames
    from adp_async.api.runs import Runs
    from adp_async.entities.experiments import Experiment
    from adp_async.entities.runs import DatasetInput, RunTag
    from adp_async.entities.runs import Run as RunEntity
    from adp_async.errors import ServiceError
    from adp_async.logger import BatchLogger
    from adp_async.settings import Settings
    from adp_async.stats import Stats

#: How a run ends.
EndStatus = Literal["FINISHED", "FAILED", "KILLED"]


class Host(Protocol):
    """What a run needs of its session."""

    logger: BatchLogger

    @property
    def _intake(self) -> Intake: ...

    @property
    def _uploader(self) -> Uploader: ...

    #: The deadline shared by the exits of a run that ran out of time and of its session.
    _ends_by: float | None

    @property
    def runs(self) -> Runs: ...

    @property
    def settings(self) -> Settings: ...

    @property
    def _experiment_names(self) -> ExperimentNames: ...


class Run(ArtifactWriter, RunWriter):
    """A run of this session: ``log_*`` from anywhere, the rest from the event loop.

    *run_id*; *run_name* and *experiment_id* are None for an attached run, which doesn't ask.
    *status* is the one that this handle has given the run, or None.
    """

    def __init__(
        self,
        run_id: str,
        session: Host,
        *,
        run_name: str | None = None,
        experiment_id: str | None = None,
        artifact_uri: str | None = None,
    ) -> None:
        super().__init__(run_id, session._intake)
        self._session = session
        self._uploader = session._uploader
        self._artifact_uri = artifact_uri
        self.run_name = run_name
        self.experiment_id = experiment_id
        self.status: EndStatus | None = None

    @property
    def settings(self) -> Settings:
        """The settings of the run's session."""
        return self._session.settings

    async def flush(self) -> None:
        """Wait until the service has everything logged into this run so far.

        Doesn't linger.  Raises `DeliveryError` naming what was refused and not yet reported.
        There is no time limit: use ``asyncio.timeout``.
        """
        await self._session.logger.flush(self.run_id)

    async def drain(self) -> None:
        """Wait until the session's buffer is below its high-water mark."""
        await self._session.logger.drain()

    async def finish(self, status: EndStatus = "FINISHED") -> None:
        """Flush, wait for the uploads, then give the run its *status* and end time.

        Uploads are waited for up to ``close_timeout``.  Raises `DeliveryError` when records were
        refused, `UploadError` when artifacts are not uploaded; the status is set all the same.
        ValueError for a status that is not an end, before anything is done.
        """
        status = end_status(status)
        try:
            try:
                await self.flush()
            finally:
                await self._finish_uploads(self._session.settings.close_timeout)
        finally:
            await self._end(status)

    async def _finish_uploads(self, timeout: float) -> None:
        """Until its artifacts are uploaded, for at most *timeout* seconds; `UploadError`."""
        if self._uploader.has_any(self.run_id):
            await self._uploader.all_settled(self.run_id, timeout)

    async def _end(self, status: EndStatus) -> None:
        end_time = time.time_ns() // 1_000_000
        await self._session.runs.update(self.run_id, status=status, end_time=end_time)
        self.status = status

    async def log_inputs(self, dataset_inputs: Sequence[DatasetInput]) -> None:
        """Record which datasets the run reads.  A direct call: POST ``mlflow/runs/log-inputs``."""
        await self._session.runs.log_inputs(self.run_id, dataset_inputs=dataset_inputs)

    def discard(self) -> int:
        """Give up the records that wait for this run; returns how many.  They count as dropped.

        For a run whose records are held forever, since the service does not know it or fails on
        it.  Records in flight may still be delivered; records logged later are accepted again.
        From any thread.
        """
        return self._session.logger.discard(self.run_id)

    def stats(self) -> Stats:
        """Counts of this run as of now; from any thread."""
        return self._session.logger.stats(self.run_id)

    async def _leave(self, error: BaseException | None) -> None:
        """Flush and end the run, within ``close_timeout``; what exiting ``start_run`` does."""
        timeout = self._session.settings.close_timeout
        failures: list[AdpError] = []
        with anyio.CancelScope(shield=True):
            ends_by = time.monotonic() + timeout
            # The status is worth a part of the time, also when the flush needs all it can get, and
            # so is the session, which may be exited right after.
            await _within(0.7 * timeout, self.flush(), self._undelivered, failures)
            await self._uploads_within(ends_by - 0.3 * timeout, failures)
            if self.status is None:
                left = ends_by - 0.1 * timeout - time.monotonic()
                await _within(left, self._end(status_of(error)), self._not_ended, failures)
            if failures:
                self._session._ends_by = ends_by
        _tell(error, failures)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        timeout = self._session.settings.close_timeout
        failures: list[AdpError] = []
        with anyio.CancelScope(shield=True):
            ends_by = time.monotonic() + timeout
            await _within(0.8 * timeout, self.flush(), self._undelivered, failures)
            await self._uploads_within(ends_by - 0.2 * timeout, failures)
            if failures:
                self._session._ends_by = ends_by
        _tell(error, failures)

    async def _uploads_within(self, ends_by: float, failures: list[AdpError]) -> None:
        try:
            await self._finish_uploads(ends_by - time.monotonic())
        except AdpError as error:
            failures.append(error)

    def _undelivered(self) -> DeliveryError:
        left = self.stats().undelivered
        message = f"run {self.run_id}: {left} records not delivered yet; the session keeps trying"
        return DeliveryError(message, undelivered=left, run_id=self.run_id)

    def _not_ended(self) -> DeliveryError:
        message = f"run {self.run_id}: its status could not be set in time"
        return DeliveryError(message, run_id=self.run_id)

    def __repr__(self) -> str:
        stats = self.stats()
        name = f" {self.run_name!r}" if self.run_name else ""
        status = f"{self.status} | " if self.status else ""
        return (
            f"<Run {self.run_id}{name} | {status}{stats.delivered} delivered | "
            f"{stats.undelivered} waiting | {sum(stats.rejected.values())} rejected>"
        )

    def _repr_html_(self) -> str:
        import html  # only a notebook asks

        stats = self.stats()
        rows = {
            "run": self.run_id,
            "name": self.run_name or "",
            "status": self.status or "RUNNING",
            "delivered": stats.delivered,
            "waiting": stats.undelivered,
            "rejected": sum(stats.rejected.values()),
        }
        cells = "".join(
            f"<tr><th style='text-align:left'>{name}</th>"
            f"<td style='text-align:left'>{html.escape(str(value))}</td></tr>"
            for name, value in rows.items()
        )
        return f"<table>{cells}</table>"


class StartedRun:
    """What ``session.start_run`` returns: awaited or entered, it creates the run."""

    def __init__(
        self,
        session: Host,
        *,
        experiment: str | None,
        experiment_id: str | None,
        run_name: str | None,
        params: Texts | None,
        tags: Texts | None,
    ) -> None:
        if experiment is not None and experiment_id is not None:
            raise TypeError("give an experiment's name or its id, not both")
        self._session = session
        limits = session._intake.limits
        # Mistakes are reported before anything is created.
        try:
            self._experiment = valid_name(experiment, "the name of an experiment")
            self._experiment_id = valid_name(experiment_id, "the id of an experiment")
            self._run_name = valid_name(run_name, "the name of a run")
            self._params = _checked("param", params, self._run_name, limits)
            self._tags = _checked("tag", tags, self._run_name, limits)
        except (TypeError, ValueError) as error:
            # It is the caller's mistake: the way we found it is of no interest.
            raise error.with_traceback(None)  # noqa: B904 - the same error
        self._run: Run | None = None

    def __await__(self) -> Generator[Any, None, Run]:
        return self._create().__await__()

    async def _create(self) -> Run:
        if self._experiment is None:
            created = await self._create_in(self._experiment_id)
        else:
            created = await self._create_by_name(self._experiment)
        info = created.info
        names = {
            "run_name": info.run_name,
            "experiment_id": info.experiment_id,
            "artifact_uri": info.artifact_uri,
        }
        try:
            run = Run(info.run_id, self._session, **names)
        except ValueError as error:
            raise AdpError(f"the service created a run, and {error}") from None
        if self._params:
            run.log_params(self._params)
        return run

    async def _create_in(self, experiment_id: str | None) -> RunEntity:
        return await self._session.runs.create(
            experiment_id=experiment_id,
            run_name=self._run_name,
            start_time=time.time_ns() // 1_000_000,
            tags=_as_sent(self._tags),
        )

    async def _create_by_name(self, name: str) -> RunEntity:
        """Create it in the experiment called *name*; the error of one that fails names that.

        When the service refuses the experiment that had the name, it is looked up once more:
        somebody may have deleted it, or given its name to another.
        """
        tried = await self._session._experiment_names.id_of(name)
        try:
            return await self._create_in(tried)
        except (BadRequest, NotFound, Conflict) as refused:
            if not refused.code:  # not the service's own words
                raise
            now = await self._looked_up(name)
            if now is None or now.experiment_id == tried or now.lifecycle_stage == "deleted":
                _tell_of_experiment(refused, name, now, tried)
                raise
        try:
            return await self._create_in(now.experiment_id)
        except (BadRequest, NotFound, Conflict) as refused:
            _tell_of_experiment(refused, name, now, now.experiment_id)
            raise

    async def _looked_up(self, name: str) -> Experiment | None:
        try:
            return await self._session._experiment_names.look_up(name)
        except AdpError as error:
            logger.debug("experiment %r could not be looked up again: %s", name, error)
            return None

    async def __aenter__(self) -> Run:
        self._run = await self._create()
        return self._run

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._run is not None
        await self._run._leave(error)


def _checked(
    kind: Literal["param", "tag"], given: Texts | None, run_name: str | None, limits: BatchLimits
) -> dict[str, str]:
    """Params or tags of a run that is not yet there, as they are sent."""
    texts: dict[str, str] = {}
    run_id = f"{shown(run_name)} (not yet created)"
    pairs = [] if given is None else pairs_of(given, f"start_run({kind}s=...)")
    for key, value in pairs:
        plain = valid_key(key, kind=kind, run_id=run_id, limits=limits)
        texts[plain] = valid_text(value, kind=kind, key=plain, run_id=run_id, limits=limits)
    return texts


def _as_sent(tags: dict[str, str]) -> list[RunTag]:
    from adp_async.entities.runs import RunTag

    return list(starmap(RunTag, tags.items()))


def end_status(status: object) -> EndStatus:
    """*status* if a run can end with it, else ValueError."""
    for allowed in get_args(EndStatus):
        if issubclass(type(status), str) and str.__str__(status) == allowed:
            return allowed  # type: ignore[no-any-return]
    message = f"a run ends FINISHED, FAILED or KILLED, not {shown(status)}"
    raise ValueError(message)


def _tell_of_experiment(
    refused: ServiceError, name: str, found: Experiment | None, tried: str
) -> None:
    """Have the error of a run that could not be created name its experiment."""
    what = f"experiment {name!r:.120} (id {tried})"
    if found is not None and found.lifecycle_stage == "deleted":
        what += (
            " is deleted; bring it back with "
            f"session.experiments.restore({found.experiment_id!r}), or take another name"
        )
    refused.message = f"{what}: {refused.message}" if refused.message else what


def status_of(error: BaseException | None) -> EndStatus:
    """How a run ends whose body ended with *error*."""
    if error is None:
        return "FINISHED"
    if isinstance(error, SystemExit):
        return "FINISHED" if error.code in (None, 0) else "FAILED"
    return "FAILED" if isinstance(error, Exception) else "KILLED"


async def _within(
    timeout: float,
    doing: Coroutine[Any, Any, None],
    too_late: Callable[[], DeliveryError],
    failures: list[AdpError],
) -> None:
    try:
        async with asyncio.timeout(timeout):
            await doing
    except TimeoutError:
        failures.append(too_late())
    except AdpError as error:
        failures.append(error)


def _tell(error: BaseException | None, failures: list[AdpError]) -> None:
    """Raise the first of *failures*, or note them on the caller's own *error*."""
    if error is None and failures:
        first, *others = failures
        for other in others:
            first.add_note(f"also: {other}")
        raise first
    for failure in failures:
        assert error is not None
        tell_behind(error, failure)


def tell_behind(error: BaseException, failure: AdpError) -> None:
    """Log *failure* and note it on the caller's own *error*, which comes out bare."""
    logger.warning("%s", failure)
    error.add_note(f"adp_async: {type(failure).__name__}: {failure}")
