"""A session: settings, lifetime, the families of operations, and runs.

A thin face over the `Engine`: direct calls run on the event loop of the caller, the background
logger delivers from a thread of its own.
"""

from __future__ import annotations

import asyncio
import time
import warnings
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self, TypeVar, Unpack, overload

# What is registered for the interpreter's end runs in reverse order: what a program registers
# after this import may still log into open sessions.
import adp_async._io.lifetime  # noqa: F401
from adp_async._io.loop_thread import LoopThread
from adp_async._io.source import source_tags
from adp_async._sansio.outward import outward
from adp_async._sharing import SharesSession
from adp_async._signatures import SignatureWithKnobs
from adp_async.api._late import Late
from adp_async.errors import AdpError
from adp_async.logger import BatchLogger
from adp_async.run import LenientRun, Run, attach_note
from adp_async.settings import Settings
from adp_async.starting import START_TIMEOUT, BegunRun, Offline, ResumedRun, StartedRun

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from types import TracebackType

    from adp_async._io.caller import Transport
    from adp_async._io.delivery import Delivery
    from adp_async._io.engine import Engine
    from adp_async._io.intake import Intake
    from adp_async._io.open_runs import OpenRuns
    from adp_async._io.recovery import Orphan, Recovery
    from adp_async._io.uploads import Uploader
    from adp_async._progress import watched
    from adp_async._sansio.endpoints import Endpoint
    from adp_async._sansio.messages import Reply
    from adp_async._sansio.statuses import EndStatus
    from adp_async._sansio.values import Texts
    from adp_async.api._experiment_names import ExperimentNames
    from adp_async.api._family import CallArguments
    from adp_async.api.deployments import Deployments
    from adp_async.api.experiments import Experiments
    from adp_async.api.logged_models import LoggedModels
    from adp_async.api.model_versions import ModelVersions
    from adp_async.api.registered_models import RegisteredModels
    from adp_async.api.runs import Runs
    from adp_async.settings import Knobs
    from adp_async.stats import Health
    from adp_async.writer import RunWriter

T = TypeVar("T")


class Session(SharesSession):
    """A client of one AI Data Platform and workspace.  Durations are seconds, sizes bytes.

    ``async with Session() as session`` takes its settings from the arguments, the environment and
    OCI's config file; see `Settings` for every knob.  Nothing blocks here: the signer is loaded
    and the connections are opened on entering (or by `open`), which may raise
    `ConfigurationError`.

    *runs*, *experiments*, *registered_models*, *model_versions*, *logged_models* and
    *deployments* are the operations of the service; *logger* is the background logger; `call` is
    the escape hatch for operations that this library does not know.

    Operations belong to the event loop in which the session was opened.  *logger*, and ``log_*``
    and ``flush`` of runs, may be used from any thread and any event loop: records are delivered in
    a thread of the session's own.  *transport* replaces the connections, for tests.
    """

    __signature__ = SignatureWithKnobs(Settings)

    runs: Late[Runs] = Late("runs.Runs", "Runs, and what is logged into them.")
    experiments: Late[Experiments] = Late("experiments.Experiments", "Experiments and their tags.")
    registered_models: Late[RegisteredModels] = Late(
        "registered_models.RegisteredModels", "Registered models, their tags and permissions."
    )
    model_versions: Late[ModelVersions] = Late(
        "model_versions.ModelVersions", "Versions of registered models."
    )
    logged_models: Late[LoggedModels] = Late(
        "logged_models.LoggedModels", "Models as runs have logged them."
    )
    deployments: Late[Deployments] = Late(
        "deployments.Deployments", "Model deployments, their activities, logs and inferences."
    )

    def __init__(
        self,
        platform_id: str | None = None,
        workspace: str | None = None,
        *,
        transport: Callable[[Settings], Transport] | None = None,
        **knobs: Unpack[Knobs],
    ) -> None:
        given: dict[str, object] = {"platform_id": platform_id, "workspace": workspace, **knobs}
        # With the first session: whoever only imports the package does without all of it.
        from adp_async._io.engine import Engine

        try:
            settings = Settings.resolve(given)
        except (AdpError, TypeError) as error:
            raise outward(error) from error.__cause__
        self._engine: Engine = Engine(settings, transport)
        self._ends_by: float | None = None
        self.logger = BatchLogger(self._delivery)

    @property
    def settings(self) -> Settings:
        """The settings in use; the endpoint of a region is known once it is open."""
        return self._engine.settings

    @property
    def spool_folder(self) -> Path:
        """Where spools are: what ``spool=`` names, or the user's state folder.

        Once the session is open it is the folder in use, which is another where that one cannot be
        written.  Raises an `AdpError` when there is none.
        """
        return self._engine.spools.path

    @property
    def _delivery(self) -> Delivery:
        return self._engine.delivery

    @property
    def _uploader(self) -> Uploader:
        return self._engine.uploader

    def _shared_engine(self) -> Engine:
        return self._engine

    def _watched(self, what: str, run_id: str | None = None, limit: float | None = None) -> watched:
        from adp_async._io.measuring import Measure
        from adp_async._progress import watched

        uploads = partial(self._engine.uploads_on_their_way, run_id)
        return watched(Measure(self._delivery, what, run_id, limit=limit, uploads=uploads))

    def _has_uploads(self, run_id: str) -> bool:
        return self._engine.has_uploads(run_id)

    @property
    def _intake(self) -> Intake:
        return self._delivery.intake

    def __repr__(self) -> str:
        settings, lifetime = self.settings, self._engine.lifetime
        where = settings.endpoint or settings.region or "region of the credentials"
        state = repr(self.logger).strip("<>") if lifetime.is_open else f"closed: {lifetime}"
        return f"<Session {where} workspace {settings.workspace} | {state}>"

    def _repr_html_(self) -> str:
        from adp_async.display import session_page  # only a notebook asks

        return session_page(self._delivery, self.settings)

    # ------------------------------------------------------------------ lifetime

    @property
    def is_open(self) -> bool:
        """Whether the session accepts calls and records."""
        return self._engine.lifetime.is_open

    def health(self) -> Health:
        """Whether delivery works: ``ok``, ``holding`` or ``failing``; see `adp_async.Health`.

        It asks the service for nothing, raises nothing, and is for any thread.
        """
        return self.logger.health()

    async def open(self) -> Self:
        """Load the signer, open the pool and start the delivery thread; what entering does.

        Nothing is connected yet.  Raises `ConfigurationError` for settings that are wrong,
        certificates and the proxy of the environment included.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            message = "a Session needs asyncio; with trio, use adp_async.blocking in a thread"
            raise RuntimeError(message) from None
        try:
            await self._engine.open(LoopThread)
        except AdpError as error:
            raise outward(error) from error.__cause__
        return self

    async def close(self) -> None:
        """Deliver what waits, for at most ``close_timeout`` seconds; what exiting does.

        Raises `DeliveryError` when records were refused that no flush has reported, or could not be
        delivered in time.
        """
        seconds = self._time_to_close()
        try:
            with self._watched("closing the session", limit=seconds):
                await self._engine.close(seconds)
        except AdpError as error:
            raise outward(error) from error.__cause__

    def on_close(self, hook: Callable[[EndStatus | None], object]) -> Callable[[], None]:
        """Have *hook* called when the session closes, before it does: it still accepts everything.

        It gets how the process ends ("FINISHED", "FAILED" or "KILLED") when the interpreter's end
        closes the session, and None when the program does.  The last hook is called first, each
        once; an exception that it raises is logged.  What is returned takes the hook back.  Any
        thread.
        """
        return self._engine.close_hooks.add(hook)

    def _time_to_close(self) -> float:
        """Less than ``close_timeout`` right after the exit of a run that used it up."""
        timeout, now = self.settings.close_timeout, time.monotonic()
        if self._ends_by is None or now > self._ends_by + 0.1 * timeout:
            return timeout
        return max(0.1 * timeout, self._ends_by - now)

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self.close()
        except AdpError as failure:
            if error is None:
                raise
            attach_note(error, failure)

    def __del__(self) -> None:
        engine = self.__dict__.get("_engine")
        if engine is not None and engine.lifetime.is_open:
            # Not its repr: this may run in any thread, which may hold one of the session's locks.
            where = engine.settings.endpoint or engine.settings.region
            message = f"unclosed session of {where}; it delivers until the interpreter ends"
            warnings.warn(message, ResourceWarning, stacklevel=2, source=self)

    if not TYPE_CHECKING:  # for a type checker, these are not there

        def __enter__(self) -> NoReturn:
            message = (
                "a Session is asynchronous: use `async with`; adp_async.blocking.Session is for "
                "code without an event loop"
            )
            raise TypeError(message)

        def __exit__(self, *error: object) -> None: ...

    # ------------------------------------------------------------------ runs

    def start_run(
        self,
        experiment: str | None = None,
        *,
        experiment_id: str | None = None,
        run_name: str | None = None,
        params: Texts | None = None,
        tags: Texts | None = None,
        parent: RunWriter | str | None = None,
        description: str | None = None,
        source: bool = True,
        strict: bool = True,
        offline: Offline = "auto",
        start_timeout: float = START_TIMEOUT,
    ) -> BegunRun:
        """Create a run: ``async with session.start_run(...) as run`` or ``run = await ...``.

        *experiment* is found by its name, or created; without it and *experiment_id* the service
        chooses its default.  *parent* is a run, or its id, that this one is part of;
        *description* is text that is shown with it.  With *source*, tags say who started it and
        from which code, as MLflow's client records it.

        Entered, the run ends with the body: FINISHED, FAILED when it raised, KILLED when it was
        cancelled or interrupted.  Awaited, that is left to `Run.finish`; a run that is open when
        the interpreter ends then ends as the process does.

        *offline*: when the service cannot be reached within *start_timeout* seconds (no
        connection, 5xx, 429, or a page of somebody else), ``"auto"`` starts the run all the same.
        It is written down in the spool with what is logged, and ``run.run_id`` is None until this
        session, the next one or ``adp-async sync`` has created it, once; `Run.created` waits for
        that.  True doesn't ask at the start at all; False raises the error instead.  What the
        service itself refuses, and mistakes in the settings, are raised in any case.

        Operation: POST ``mlflow/runs/create``.  Raises `InvalidRecord` for *params* or *tags*
        before anything is created.  With ``strict=False``, for keys and values that are not yours
        to choose, nothing of the run's raises: keys are cleaned, texts cut, and what is not a
        number is skipped, with one warning a key; so is what the service refuses.
        """
        return StartedRun(
            self,
            experiment=experiment,
            experiment_id=experiment_id,
            run_name=run_name,
            params=params,
            tags=tags,
            parent=parent,
            description=description,
            source=source,
            strict=strict,
            offline=offline,
            start_timeout=start_timeout,
        )

    @overload
    def attach_run(
        self, run_id: str, *, resume: Literal[False] = ..., strict: bool = ...
    ) -> Run: ...

    @overload
    def attach_run(self, run_id: str, *, resume: Literal[True], strict: bool = ...) -> BegunRun: ...

    def attach_run(
        self, run_id: str, *, resume: bool = False, strict: bool = True
    ) -> Run | BegunRun:
        """A handle for an existing run; sends no request.

        As a context manager it flushes and leaves the run's status alone.  With *resume* it is
        awaited or entered, as `start_run` is: that sets the run RUNNING again, and leaving ends
        it.  *strict* as for `start_run`.  Raises `ConfigurationError` without a workspace, which
        runs belong to.
        """
        self.settings.required_workspace()
        if resume:
            return ResumedRun(run_id, self, strict=strict)
        return Run(run_id, self) if strict else LenientRun(run_id, self)

    @property
    def _open_runs(self) -> OpenRuns:
        return self._engine.open_runs

    async def _source_tags(self) -> dict[str, str]:
        self._engine.check_open()
        return await self._engine.auth.run(source_tags)

    @cached_property
    def _experiment_names(self) -> ExperimentNames:
        from adp_async.api._experiment_names import ExperimentNames

        return ExperimentNames(self.experiments)

    # ------------------------------------------------------------------ calls

    @overload
    async def call(
        self, endpoint: Endpoint, *, returning: type[T], **given: Unpack[CallArguments]
    ) -> T: ...

    @overload
    async def call(
        self, endpoint: Endpoint, *, returning: None = None, **given: Unpack[CallArguments]
    ) -> object: ...

    async def call(
        self,
        endpoint: Endpoint,
        *,
        path: Mapping[str, str] | None = None,
        query: Mapping[str, object] | None = None,
        body: object = None,
        returning: type[Any] | None = None,
        **options: Any,
    ) -> Any:
        """One operation: signed, sent, retried where *endpoint* allows it, and its reply decoded.

        *path* and *query* go into the URL, quoted; *body* is JSON, or bytes as they are.
        *returning* is the class to read the reply as; without it plain JSON comes back, and None
        for an empty reply.  Raises the error that the status means, `ConnectionFailed` and
        `ConnectionLost`, `RequestTimeout` after *timeout* seconds (``call_timeout``), and
        `UnreadableReply` for a 2xx that is not the service's reply to the operation.
        """
        from adp_async._sansio.call import Call

        try:
            self._engine.check_open()
            call = Call.of(endpoint, path=path, query=query, body=body, **options)
            reply = await self._engine.direct.call(call, returning)
        except AdpError as error:
            raise outward(error) from error.__cause__
        self._open_runs.heard(endpoint, body)
        return reply

    async def fetch(self, endpoint: Endpoint, **given: Unpack[CallArguments]) -> Reply:
        """As `call`, but the reply as it came: status, headers and body; a web page is an error."""
        from adp_async._sansio.call import Call

        try:
            self._engine.check_open()
            return await self._engine.direct.fetch(Call.of(endpoint, **given))
        except AdpError as error:
            raise outward(error) from error.__cause__


async def recover_orphan(
    session: Session, orphan: Orphan, on_progress: Callable[[Recovery], None] | None = None
) -> None:
    """Deliver the records of a dead process, as *session*; *on_progress* is called on the way."""
    await session._engine.recover(orphan, on_progress)
