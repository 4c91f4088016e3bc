"""What begins a run: `Session.start_run` and ``attach_run(resume=True)``, awaited or entered."""

from __future__ import annotations

import sys
import time
import uuid
import warnings
from itertools import starmap
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, TypeAlias

from adp_async._io.log import logger
from adp_async._io.sigterm import hear_sigterm
from adp_async._sansio.cleaning import cut_text
from adp_async._sansio.outward import outward
from adp_async._sansio.rules import seconds
from adp_async._sansio.run_start import LOCAL, PARENT, RunStart, is_out_of_reach
from adp_async._sansio.values import pairs_of, valid_key, valid_name, valid_run_id, valid_text
from adp_async.errors import AdpError, BadRequest, Conflict, NotFound, shown
from adp_async.run import LenientRun, Run
from adp_async.writer import RunWriter

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator
    from types import TracebackType

    from adp_async._sansio.records import BatchLimits
    from adp_async._sansio.values import Texts
    from adp_async.api._family import CallOptions
    from adp_async.entities.experiments import Experiment
    from adp_async.entities.runs import Run as RunEntity
    from adp_async.entities.runs import RunInfo, RunTag
    from adp_async.errors import ServiceError
    from adp_async.run import Host

Offline: TypeAlias = Literal["auto"] | bool

#: Seconds until a run starts offline, for the service does not answer.
START_TIMEOUT: Final = 10.0
#: MLflow's name of what a run is for.
DESCRIPTION: Final = "mlflow.note.content"
_OURS: Final = "adp_async."
#: What is still to be done with what ``start_run`` returns.
BEGIN: Final = "await it, or enter it with `async with`"


class BegunRun:
    """A run to be: awaited or entered, it begins, and the ``async with`` block ends it."""

    _run: Run | None = None
    #: Nothing is missing from one that could not be made.
    _is_begun = True
    #: File and line that made it.
    _origin = ("<unknown>", 0)

    def __init__(self, session: Host, *, strict: bool) -> None:
        hear_sigterm()
        self._session = session
        self._kind = Run if strict else LenientRun

    async def _begin(self) -> Run:
        raise NotImplementedError

    def _handle(self, info: RunInfo) -> Run:
        run = self._kind(
            info.run_id,
            self._session,
            run_name=info.run_name,
            experiment_id=info.experiment_id,
            artifact_uri=info.artifact_uri,
        )
        self._session._open_runs.started(run.run_id)
        if (url := run.url) is not None:
            logger.info("run %s: %s", run.run_id, url, extra={"run_id": run.run_id})
            if self._session.settings.progress:
                from adp_async._io.notebook import tell

                tell(f"run {run.run_name or run.run_id}: {url}")
        return run

    def _begun(self) -> Coroutine[Any, Any, Run]:
        self._is_begun = True
        return self._begin_outwardly()

    async def _begin_outwardly(self) -> Run:
        try:
            return await self._begin()
        except AdpError as error:
            raise outward(error) from error.__cause__

    def __await__(self) -> Generator[Any, None, Run]:
        return self._begun().__await__()

    async def __aenter__(self) -> Run:
        self._run = await self._begun()
        return self._run

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._run is not None
        await self._run._leave(error)

    def _await_beginning(self) -> None:
        """It is whole, and from here on somebody has to begin it."""
        self._is_begun = False
        self._origin = _line_of_caller()

    def _called(self) -> str:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{self._called()} | {BEGIN}>"

    def __del__(self) -> None:
        if not self._is_begun:
            message = f"{self._called()} was neither awaited nor entered: nothing was done"
            # Where it was made: it may be dropped anywhere.
            warnings.warn_explicit(message, RuntimeWarning, *self._origin, source=self)

    if not TYPE_CHECKING:  # for a type checker, none of these are there

        def __getattr__(self, name: str) -> Any:
            message = f"{type(self).__name__!r} object has no attribute {name!r}"
            hint = f"; {self._called()} is not a run yet: {BEGIN}" if hasattr(Run, name) else ""
            raise AttributeError(f"{message}{hint}", name=name, obj=self)

        def __enter__(self) -> NoReturn:
            message = f"{self._called()} of an asynchronous session: use `async with`"
            raise TypeError(message)

        def __exit__(self, *error: object) -> None: ...


def _line_of_caller() -> tuple[str, int]:
    """File and line of the innermost frame that is not ours."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_OURS):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


class ResumedRun(BegunRun):
    """What ``session.attach_run(run_id, resume=True)`` returns."""

    def __init__(self, run_id: str, session: Host, *, strict: bool) -> None:
        super().__init__(session, strict=strict)
        self._run_id = valid_run_id(run_id)
        self._await_beginning()

    def _called(self) -> str:
        return f"attach_run({self._run_id!r}, resume=True)"

    async def _begin(self) -> Run:
        return self._handle(await self._session.runs.update(self._run_id, status="RUNNING"))


class StartedRun(BegunRun):
    """What ``session.start_run`` returns: it creates the run."""

    def __init__(
        self,
        session: Host,
        *,
        experiment: str | None,
        experiment_id: str | None,
        run_name: str | None,
        params: Texts | None,
        tags: Texts | None,
        parent: object = None,
        description: str | None = None,
        source: bool = True,
        strict: bool = True,
        offline: Offline = "auto",
        start_timeout: float = START_TIMEOUT,
    ) -> None:
        if experiment is not None and experiment_id is not None:
            raise TypeError("give an experiment's name or its id, not both")
        super().__init__(session, strict=strict)
        self._source = source
        self._offline = _valid_offline(offline)
        self._timeout = _valid_timeout(start_timeout)
        #: When the service is given up for now; None when it is not.
        self._asks_until: float | None = None
        #: The key of a parent that is not created yet.
        self._late_parent: str | None = None
        #: Of a create that was sent, and may have taken effect.
        self._unheard: RunStart | None = None
        # Mistakes are reported before anything is created.
        try:
            self._experiment = valid_name(experiment, "the name of an experiment")
            self._experiment_id = valid_name(experiment_id, "the id of an experiment")
            self._run_name = valid_name(run_name, "the name of a run")
            self._check_texts(params, tags, strict=strict)
            self._place(parent, description)
        except (TypeError, ValueError) as error:
            # It is the caller's mistake: where we found it doesn't matter.
            raise error.with_traceback(None)  # noqa: B904 - the same error
        self._await_beginning()

    def _called(self) -> str:
        named = [each for each in (self._experiment, self._run_name) if each is not None]
        return f"start_run({', '.join(map(shown, named))})"

    def _check_texts(self, params: Texts | None, tags: Texts | None, *, strict: bool) -> None:
        """A lenient run mends them as it logs them, once it is there."""
        limits = self._session._intake.limits
        self._params, self._later_tags = (None, None) if strict else (params, tags)
        self._tags: dict[str, str] = {}
        if strict:
            self._params = _checked("param", params, self._run_name, limits)
            self._tags = _checked("tag", tags, self._run_name, limits)

    def _place(self, parent: object, description: str | None) -> None:
        if isinstance(parent, RunWriter) and not parent._lane.is_created:
            self._late_parent = parent._run_id
        elif parent is not None:
            self._tags[PARENT] = valid_run_id(getattr(parent, "run_id", parent))
        if description is not None:
            limits = self._session._intake.limits
            given = {DESCRIPTION: description}
            self._tags |= _checked("tag", given, self._run_name, limits)

    async def _begin(self) -> Run:
        if self._source:
            await self._add_source()
        run = await self._now_or_late()
        # Only for what shows it: an attached run knows no name.
        run._experiment = self._experiment
        if self._later_tags:
            run.set_tags(self._later_tags)
        if self._params:
            run.log_params(self._params)
        return run

    async def _add_source(self) -> None:
        """Tags of the caller's own go before."""
        limits = self._session._intake.limits
        for key, text in (await self._session._source_tags()).items():
            self._tags.setdefault(key, cut_text(text, "tag", limits))

    async def _now_or_late(self) -> Run:
        """Created now, or offline."""
        if self._offline is False:
            if self._late_parent is not None:
                message = "a run with offline=False cannot be part of one that is not created yet"
                raise AdpError(message)
            self._asks_until = time.monotonic() + self._timeout
            return await self._created()
        known = self._session.logger._delivery.starts.trouble
        is_away = known is not None and is_out_of_reach(known)
        if self._offline is True or self._late_parent is not None or is_away:
            return await self._begun_offline(known)
        self._asks_until = time.monotonic() + self._timeout
        try:
            return await self._created()
        except AdpError as error:
            if not is_out_of_reach(error):
                raise
            trouble = error
        return await self._begun_offline(trouble)

    # Offline

    async def _begun_offline(self, trouble: AdpError | None) -> Run:
        """It starts, and is created when the service answers; *trouble*: why it doesn't now."""
        session = self._session
        start = self._unheard or RunStart(
            f"{LOCAL}{uuid.uuid4().hex}",
            experiment=self._experiment,
            experiment_id=self._experiment_id,
            run_name=self._run_name,
            tags=self._tags,
            start_time=time.time_ns() // 1_000_000,
            parent=self._late_parent,
            retry_token=uuid.uuid4().hex,
            token_made_at=time.time(),
        )
        # Before it may be named, which is told to those that are open.
        session._open_runs.started(start.key, is_offline=True)
        delivery = session.logger._delivery
        try:
            started = await delivery.running(
                delivery.begin_run(start, may_exist=not start.is_tagged, trouble=trouble)
            )
        except BaseException:
            session._open_runs.ended(start.key)
            raise
        return self._kind(
            start.key,
            session,
            run_name=start.run_name,
            experiment_id=start.experiment_id,
            started=started,
        )

    # Created now

    def _options(self) -> CallOptions:
        if self._asks_until is None:
            return {}
        return {"timeout": max(0.0, self._asks_until - time.monotonic())}

    async def _created(self) -> Run:
        if self._experiment is None:
            created = await self._create_in(self._experiment_id)
        else:
            created = await self._create_by_name(self._experiment)
        try:
            return self._handle(created.info)
        except ValueError as error:
            raise AdpError(f"the service created a run, and {error}") from None

    async def _create_in(self, experiment_id: str | None) -> RunEntity:
        start_time, token = time.time_ns() // 1_000_000, uuid.uuid4().hex
        options: CallOptions = {**self._options(), "retry_token": token}
        try:
            return await self._session.runs.create(
                experiment_id=experiment_id,
                run_name=self._run_name,
                start_time=start_time,
                tags=_as_sent(self._tags),
                **options,
            )
        except AdpError as error:
            if error.maybe_applied:
                # The token belongs to this very request, which has no tag of ours.
                self._unheard = RunStart(
                    f"{LOCAL}{uuid.uuid4().hex}",
                    experiment=self._experiment,
                    experiment_id=experiment_id,
                    run_name=self._run_name,
                    tags=self._tags,
                    start_time=start_time,
                    retry_token=token,
                    token_made_at=time.time(),
                    is_tagged=False,
                )
            raise

    async def _create_by_name(self, name: str) -> RunEntity:
        """Create it in the experiment called *name*; an error names the experiment.

        When the service refuses the experiment that had the name, it is looked up once more:
        somebody may have deleted it, or given its name to another.
        """
        tried = await self._session._experiment_names.id_of(name, **self._options())
        try:
            return await self._create_in(tried)
        except (BadRequest, NotFound, Conflict) as refused:
            if not refused.code:  # not an error of the service
                raise
            now = await self._looked_up(name)
            if now is None or now.experiment_id == tried or now.lifecycle_stage == "deleted":
                _name_experiment(refused, name, now, tried)
                raise
        try:
            return await self._create_in(now.experiment_id)
        except (BadRequest, NotFound, Conflict) as refused:
            _name_experiment(refused, name, now, now.experiment_id)
            raise

    async def _looked_up(self, name: str) -> Experiment | None:
        try:
            return await self._session._experiment_names.look_up(name, **self._options())
        except AdpError as error:
            logger.debug("experiment %r could not be looked up again: %s", name, error)
            return None


def _valid_offline(offline: object) -> Offline:
    if type(offline) is bool or (type(offline) is str and offline == "auto"):
        return offline  # type: ignore[return-value]
    raise ValueError(f"offline is 'auto', True or False, not {shown(offline)}")


def _valid_timeout(start_timeout: object) -> float:
    try:
        return seconds(start_timeout)
    except ValueError as error:
        message = f"start_timeout {error}"
        raise ValueError(message) from None


def _checked(
    kind: Literal["param", "tag"], given: Texts | None, run_name: str | None, limits: BatchLimits
) -> dict[str, str]:
    """Params or tags of a run that does not exist yet, as they are sent."""
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


def _name_experiment(
    refused: ServiceError, name: str, found: Experiment | None, tried: str
) -> None:
    """Name the experiment in the error of a run that could not be created."""
    what = f"experiment {name!r:.120} (id {tried})"
    if found is not None and found.lifecycle_stage == "deleted":
        what += (
            " is deleted; bring it back with "
            f"session.experiments.restore({found.experiment_id!r}), or take another name"
        )
    refused.message = f"{what}: {refused.message}" if refused.message else what
