"""A session: settings, lifetime, the families of operations, and runs.

A thin face over `Caller` (direct calls, on the event loop of whoever calls) and `Delivery` (the
background logger, in a thread of its own).  Both share one throttle and one authenticator.
"""

from __future__ import annotations

import asyncio
import time
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack, overload

import anyio
import attrs

from adp_async._io.authenticator import Authenticator
from adp_async._io.caller import Caller, SharedThrottle
from adp_async._io.delivery import SHORTEST_COMMIT, Delivery
from adp_async._io.lifetime import Living, Why, forget, register
from adp_async._io.log import logger
from adp_async._io.loop_thread import LoopThread
from adp_async._io.tokens import Tokens
from adp_async._io.transport import AiohttpTransport
from adp_async._io.uploads import Uploader
from adp_async._sansio.dispatch import Pulse
from adp_async._sansio.names import Names
from adp_async.errors import AdpError, Closed, NotFound, ServiceError
from adp_async.logger import BatchLogger
from adp_async.run import Run, StartedRun, tell_behind
from adp_async.settings import Settings, absolute_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from types import TracebackType

    from adp_async._io.caller import Transport
    from adp_async._io.intake import Intake
    from adp_async._io.lifetime import Lifetime
    from adp_async._io.recovery import Found, Orphan, Recoveries, Recovery
    from adp_async._io.spool import Spool
    from adp_async._io.spool_file import Identity
    from adp_async._sansio.endpoints import Endpoint
    from adp_async._sansio.messages import Reply
    from adp_async._sansio.values import Texts
    from adp_async.api._family import CallOptions
    from adp_async.api.deployments import Deployments
    from adp_async.api.experiments import Experiments
    from adp_async.api.logged_models import LoggedModels
    from adp_async.api.model_versions import ModelVersions
    from adp_async.api.registered_models import RegisteredModels
    from adp_async.api.runs import Runs
    from adp_async.entities.experiments import Experiment
    from adp_async.settings import Knobs

T = TypeVar("T")


def connections(settings: Settings) -> AiohttpTransport:
    """A pool of connections with the limits of *settings*."""
    return AiohttpTransport(
        connect_timeout=settings.connect_timeout,
        timeout=settings.timeout,
        limit=settings.max_connections,
        ca_bundle=settings.ca_bundle,
    )


class Session:
    """A client of one AI Data Platform and workspace.

    ``async with Session() as session`` takes its settings from the arguments, the environment and
    OCI's config file; see `Settings` for every knob.  Nothing blocks here: the signer is loaded
    and the connections are opened on entering (or by `open`), which may raise
    `ConfigurationError`.

    *runs*, *experiments*, *registered_models*, *model_versions*, *logged_models* and
    *deployments* are the operations of the service; *logger* is the background logger; `call` is
    the escape hatch for operations unknown to this library.

    Operations belong to the event loop that the session was opened in.  *logger*, and the ``log_*``
    and flushes of runs, are for any thread and any event loop: they are delivered in a thread of
    the session's own.  *transport* makes what requests leave by, for tests.
    """

    def __init__(
        self,
        platform_id: str | None = None,
        workspace: str | None = None,
        *,
        transport: Callable[[Settings], Transport] = connections,
        **knobs: Unpack[Knobs],
    ) -> None:
        given: dict[str, object] = {"platform_id": platform_id, "workspace": workspace, **knobs}
        self._settings = settings = Settings.resolve(given)
        # Now: where a relative one is changes with the working folder.
        spool = settings.spool
        self._spool_folder = None if isinstance(spool, bool) else absolute_folder(spool)
        self._changing = asyncio.Lock()  # opening and closing, whoever does it
        self._auth = Authenticator(settings.auth)
        self._throttle = SharedThrottle(settings.retry)
        self._pulse = Pulse()
        self._new_token = Tokens()
        # Two pools, since each belongs to its event loop.
        self._direct = self._caller(transport(settings))
        self._batches = self._caller(transport(settings))
        self._delivery = self._make_delivery(settings)
        self._uploader = Uploader(
            self._lifetime,
            self._batches,
            self._auth,
            # Other servers have other limits, and so their own throttle.
            make_caller=lambda: self._caller(
                transport(self._settings), SharedThrottle(settings.retry)
            ),
            find_endpoint=self._object_storage_endpoint,
        )
        self._thread: LoopThread | None = None
        self._owns_thread = False
        #: The task that opens it just now.
        self._opening: asyncio.Task[Any] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._recoveries: Recoveries | None = None
        self._recovering: asyncio.Task[None] | None = None
        self._experiment_ids = Names()
        self._ends_by: float | None = None
        self._living = Living(self._forked, self._interpreter_ends)
        self.logger = BatchLogger(self._delivery)

    def _caller(self, transport: Transport, throttle: SharedThrottle | None = None) -> Caller:
        throttle = throttle or self._throttle
        return Caller(self._settings, throttle, self._auth, transport, self._new_token)

    @property
    def _intake(self) -> Intake:
        return self._delivery.intake

    def _object_storage_endpoint(self) -> str:
        from adp_async._io.object_storage import endpoint_of

        return endpoint_of(self._settings, self._auth.region)

    def _make_delivery(self, settings: Settings) -> Delivery:
        return Delivery(
            settings,
            self._batches,
            throttle=self._throttle,
            new_token=self._new_token,
            pulse=self._pulse,
        )

    # The families are imported at their first use: their classes are a third of the import's time.

    @cached_property
    def runs(self) -> Runs:
        """Runs, and what is logged into them."""
        from adp_async.api.runs import Runs

        return Runs(self)

    @cached_property
    def experiments(self) -> Experiments:
        """Experiments and their tags."""
        from adp_async.api.experiments import Experiments

        return Experiments(self)

    @cached_property
    def registered_models(self) -> RegisteredModels:
        """Registered models, their tags and permissions."""
        from adp_async.api.registered_models import RegisteredModels

        return RegisteredModels(self)

    @cached_property
    def model_versions(self) -> ModelVersions:
        """Versions of registered models."""
        from adp_async.api.model_versions import ModelVersions

        return ModelVersions(self)

    @cached_property
    def logged_models(self) -> LoggedModels:
        """Models as runs have logged them."""
        from adp_async.api.logged_models import LoggedModels

        return LoggedModels(self)

    @cached_property
    def deployments(self) -> Deployments:
        """Model deployments, their activities, logs and inferences."""
        from adp_async.api.deployments import Deployments

        return Deployments(self)

    @property
    def settings(self) -> Settings:
        """The settings in use; the endpoint of a region is known once it is open."""
        return self._settings

    def __repr__(self) -> str:
        where = self._settings.endpoint or self._settings.region or "region of the credentials"
        state = repr(self.logger).strip("<>") if self.is_open else f"closed: {self._lifetime}"
        return f"<Session {where} workspace {self._settings.workspace} | {state}>"

    # ------------------------------------------------------------------ lifetime

    @property
    def is_open(self) -> bool:
        """Whether the session accepts calls and records."""
        return self._lifetime.is_open

    @property
    def _lifetime(self) -> Lifetime:
        return self._delivery.lifetime

    async def open(self) -> Self:
        """Load the signer, open the pool and start the delivery thread; what entering does.

        Nothing is connected yet.  Raises `ConfigurationError` for settings that are wrong,
        certificates and the proxy of the environment included.
        """
        await self._open_with(LoopThread)
        return self

    async def _open_with(self, make_thread: Callable[[], LoopThread]) -> None:
        """The same with a thread that is made, or that this is, as for the blocking face."""
        async with self._changing:
            if self._lifetime.why is Why.NOT_OPENED:
                await self._open_unless_closed(make_thread)
            elif not self._lifetime.is_open:
                raise Closed("a closed session cannot be reopened; create a new one")
        self._check_open()

    async def _open_unless_closed(self, make_thread: Callable[[], LoopThread]) -> None:
        """`close` doesn't wait for an opening that hangs: it cancels that."""
        task = self._opening = asyncio.current_task()
        assert task is not None
        try:
            await self._open(make_thread)
        except asyncio.CancelledError:
            if self._opening is task or task.uncancel():
                raise  # not by us, or not by us alone
            is_closed = True
        else:
            is_closed = False
        finally:
            self._opening = None
        if is_closed:
            raise Closed("the session was closed while it was being opened")

    async def _open(self, make_thread: Callable[[], LoopThread]) -> None:
        await self._auth.open()
        thread: LoopThread | None = None
        try:
            settings = await self._auth.run(self._settings.complete, self._auth.region)
            self._settings = self._direct.settings = self._batches.settings = settings
            await self._auth.run(self._direct.transport.load, settings.base_url)
            await self._auth.run(self._batches.transport.load, settings.base_url)
            await self._direct.transport.open()
            spool = await self._make_spool()
            self._thread = thread = make_thread()
            self._loop = asyncio.get_running_loop()
            await thread.run(self._open_delivery(thread, spool))
        except BaseException:
            self._thread = None
            await self._direct.transport.close()
            await self._auth.close()
            if thread is not None and not thread.is_here:
                thread.stop()
            raise
        self._owns_thread = not thread.is_here
        register(self._living)

    async def _open_delivery(self, thread: LoopThread, spool: Spool | None) -> None:
        """In the delivery thread."""
        await self._batches.transport.open()
        # Where no spool can be made none can be emptied either.
        does_recover = spool is not None and self._settings.recover
        if does_recover:
            self._delivery.bar(None)
        await self._delivery.open(thread, spool)
        self._uploader.open(thread)
        if does_recover:
            self._recoveries = self._make_recoveries(thread)
            recovering = self._recoveries.run()
            self._recovering = asyncio.create_task(recovering, name="adp_async recovery")

    async def close(self) -> None:
        """Deliver what waits, for at most ``close_timeout`` seconds; what exiting does.

        Raises `DeliveryError` when records were refused that no flush has reported, or could not be
        delivered in time.
        """
        await self._close_within(self._time_to_close())

    def _time_to_close(self) -> float:
        """Less than ``close_timeout`` right after the exit of a run has used it up."""
        timeout, now = self._settings.close_timeout, time.monotonic()
        if self._ends_by is None or now > self._ends_by + 0.1 * timeout:
            return timeout
        return max(0.1 * timeout, self._ends_by - now)

    async def _close_within(self, seconds: float) -> None:
        # Being cancelled was the reason to come here; it must not keep us from tidying up.
        with anyio.CancelScope(shield=True):
            if (opening := self._opening) is not None:
                self._opening = None
                opening.cancel()
            async with self._changing:
                if self._thread is not None:
                    await self._close(self._thread, seconds)

    async def _close(self, thread: LoopThread, seconds: float) -> None:
        if self._lifetime.why is Why.FORKED:
            raise self._lifetime.error()
        self._check_loop()
        self._thread = None
        forget(self._living)
        try:
            await thread.run(self._close_delivery(seconds))
        finally:
            await self._direct.transport.close()
            await self._auth.close()
            if self._owns_thread:
                thread.stop()

    async def _close_delivery(self, seconds: float, why: Why = Why.CLOSED) -> None:
        """In the delivery thread."""
        ends_at, recovering = time.monotonic() + seconds, self._recovering
        if recovering is not None:
            # It lets go of its files while this session's own records are written down.
            asyncio.get_running_loop().call_later(0.8 * seconds, recovering.cancel)
        try:
            await self._close_both(seconds, why)
        finally:
            if recovering is not None:
                recovering.cancel()
                left = max(SHORTEST_COMMIT, ends_at - time.monotonic())
                await asyncio.wait([recovering], timeout=left)
            await self._batches.transport.close()

    async def _close_both(self, seconds: float, why: Why) -> None:
        """Records and uploads have the same time; the first failure is raised, the other noted."""
        delivering = self._delivery.close(seconds, why)
        closing = (delivering, self._uploader.close(seconds))
        ends = await asyncio.gather(*closing, return_exceptions=True)
        failures = [end for end in ends if end is not None]
        for other in failures[1:]:
            failures[0].add_note(f"also: {other}")
        if failures:
            raise failures[0]

    def _forked(self) -> None:
        self._delivery.forked()

    def _interpreter_ends(self) -> None:
        """It was not closed: deliver for a while, and keep the rest."""
        thread, self._thread = self._thread, None
        if thread is None or not thread.is_alive:
            return
        seconds = min(self._settings.exit_timeout, self._settings.close_timeout)
        try:
            thread.wait(self._close_delivery(seconds, Why.ENDED), 2.0 * seconds + 1.0)
        except (AdpError, TimeoutError) as failure:
            # There is no caller to catch it.
            logger.warning("%s", failure)
        finally:
            if self._loop is thread.loop:
                thread.wait(self._direct.transport.close(), seconds)
            else:
                self._direct.transport.abandon()
            thread.stop()

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
            tell_behind(error, failure)

    def _check_open(self) -> None:
        self._lifetime.check()
        self._check_loop()

    def _check_loop(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            message = (
                "operations of a session belong to the event loop it was opened in; "
                "its logger and the log_* of its runs may be used from any"
            )
            raise Closed(message)

    # ------------------------------------------------------------------ what outlives a process
    # (imported when there is a spool: SQLite and its tables are a quarter of the import's time)

    @property
    def spool_folder(self) -> Path:
        """Where spools are: what ``spool=`` names, or the user's state folder.

        Raises an `AdpError` when that user has no home.
        """
        from adp_async._io.spool_file import default_spool_folder

        return self._spool_folder or default_spool_folder()

    @property
    def _identity(self) -> Identity:
        from adp_async._io.spool_file import Identity

        settings = self._settings
        return Identity(settings.base_url, settings.platform_id, settings.workspace or "")

    async def _make_spool(self) -> Spool | None:
        if self._settings.spool is False:
            return None
        # Now, as the caller waits: a fork during an import leaves the module locked for good.
        import adp_async._io.keeper
        import adp_async._io.recovery  # noqa: F401
        from adp_async._io.spool import Spool
        from adp_async._io.spool_file import SpoolError

        limit = self._settings.spool_limit
        try:
            create = partial(Spool.create, self.spool_folder, self._identity, limit=limit)
            return await self._auth.run(create)
        except SpoolError as error:
            logger.warning("accepted records are only in memory: %s", error)
            return None

    def _make_recoveries(self, thread: LoopThread) -> Recoveries:
        from adp_async._io.recovery import Recoveries, open_orphans

        folder, limit = self.spool_folder, self._settings.spool_limit
        identity = self._identity

        def find(seen: set[Path], most: int) -> Found:
            return open_orphans(folder, identity=identity, limit=limit, but_not=seen, most=most)

        return Recoveries(
            find=find,
            make=self._make_recovery,
            bar=self._delivery.bar,
            thread=thread,
            folder=folder,
        )

    def _make_recovery(self) -> Delivery:
        """What delivers the records of one process that is gone."""
        from adp_async._io.recovery import MAX_IN_FLIGHT, MEMORY_LIMIT

        settings = attrs.evolve(
            self._settings,
            linger=0.0,
            max_in_flight=MAX_IN_FLIGHT,
            buffer_limit=MEMORY_LIMIT,
            spool_interval=1.0,
        )
        return self._make_delivery(settings)

    # ------------------------------------------------------------------ runs

    def start_run(
        self,
        experiment: str | None = None,
        *,
        experiment_id: str | None = None,
        run_name: str | None = None,
        params: Texts | None = None,
        tags: Texts | None = None,
    ) -> StartedRun:
        """Create a run: ``async with session.start_run(...) as run`` or ``run = await ...``.

        *experiment* is found by its name, or created; without it and *experiment_id* the service
        chooses its default.  Entered, the run ends with the body: FINISHED, FAILED when it
        raised, KILLED when it was cancelled or interrupted.  Awaited, that is left to
        `Run.finish`.  Raises `InvalidRecord` for *params* or *tags* before anything is created.
        """
        return StartedRun(
            self,
            experiment=experiment,
            experiment_id=experiment_id,
            run_name=run_name,
            params=params,
            tags=tags,
        )

    def attach_run(self, run_id: str) -> Run:
        """A handle of a run that exists, without a request.

        As a context manager it flushes and leaves the run's status alone.  Raises
        `ConfigurationError` without a workspace, which runs belong to.
        """
        self._settings.required_workspace()
        return Run(run_id, self)

    async def _experiment_id_of(self, name: str) -> str:
        """The id of the experiment called *name*, which is created unless it exists.

        It is remembered for five minutes.
        """
        known = self._experiment_ids.find(name, time.monotonic())
        return known or (await self._look_up_experiment(name)).experiment_id

    async def _look_up_experiment(self, name: str) -> Experiment:
        """The experiment called *name* now, which is created unless it exists."""
        self._experiment_ids.forget(name)
        found = await self._find_or_create(name)
        if found.lifecycle_stage != "deleted":
            self._experiment_ids.remember(name, found.experiment_id, time.monotonic())
        return found

    async def _find_or_create(self, name: str) -> Experiment:
        from adp_async.entities.experiments import Experiment

        try:
            return await self.experiments.get_by_name(name)
        except NotFound:
            logger.debug("there is no experiment of that name yet")
        try:
            created = await self.experiments.create(name)
        except AdpError as refused:
            # Somebody else may have created it in between.
            try:
                return await self.experiments.get_by_name(name)
            except NotFound:
                _tell_of_hidden(refused, name)
                raise refused from None
        return Experiment(created, name)

    # ------------------------------------------------------------------ calls

    @overload
    async def call(
        self,
        endpoint: Endpoint,
        *,
        path: Mapping[str, str] = ...,
        query: Mapping[str, object] = ...,
        body: object = ...,
        returning: type[T],
        **options: Unpack[CallOptions],
    ) -> T: ...

    @overload
    async def call(
        self,
        endpoint: Endpoint,
        *,
        path: Mapping[str, str] = ...,
        query: Mapping[str, object] = ...,
        body: object = ...,
        returning: None = None,
        **options: Unpack[CallOptions],
    ) -> object: ...

    async def call(
        self,
        endpoint: Endpoint,
        *,
        path: Mapping[str, str] | None = None,
        query: Mapping[str, object] | None = None,
        body: object = None,
        returning: type[Any] | None = None,
        **options: Unpack[CallOptions],
    ) -> Any:
        """One operation: signed, sent, tried again as its row allows, and its reply decoded.

        *path* and *query* go into the URL, quoted; *body* is JSON, or bytes as they are.
        *returning* is the class to read the reply as; without it plain JSON comes back, and None
        for an empty reply.  Raises the error that the status means, `ConnectionFailed` and
        `ConnectionLost`, `RequestTimeout` after *timeout* seconds (``call_timeout``), and
        `UnreadableReply` for a 2xx that is not the service's reply to the operation.
        """

        self._check_open()
        return await self._direct.call(
            endpoint, path=path, query=query, body=body, returning=returning, **options
        )

    async def fetch(
        self,
        endpoint: Endpoint,
        *,
        path: Mapping[str, str] | None = None,
        query: Mapping[str, object] | None = None,
        body: object = None,
        **options: Unpack[CallOptions],
    ) -> Reply:
        """As `call`, but the reply as it came: status, headers and body; a web page is an error."""
        self._check_open()
        return await self._direct.fetch(endpoint, path=path, query=query, body=body, **options)


async def recover_orphan(
    session: Session, orphan: Orphan, on_progress: Callable[[Recovery], None] | None = None
) -> None:
    """Deliver the records of a dead process, as *session*; *on_progress* hears of it."""
    from adp_async._io.recovery import Recovery

    session._check_open()
    assert session._thread is not None
    recovery = Recovery(orphan, session._make_recovery(), on_progress)
    await session._thread.run(recovery.run(session._thread))


def _tell_of_hidden(refused: AdpError, name: str) -> None:
    """An experiment can neither be found nor created: most likely it was deleted."""
    if isinstance(refused, ServiceError) and refused.code == "RESOURCE_ALREADY_EXISTS":
        refused.message = (
            f"experiment {name!r:.120} exists but cannot be found; if it was deleted, "
            "session.experiments.restore(its id) brings it back, or take another name: "
            f"{refused.message}"
        )
