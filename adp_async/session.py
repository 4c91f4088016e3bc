"""A session: its lifetime, and one signed call with its retries.

Everything that leaves goes through `Session._attempt`, which is steps 1 to 4 of the drawing in
`adp_async._sansio`: wait for the turn that all calls share, sign, send, read.  A direct call
repeats that under the `RetryPolicy`; a batch of the logger is one attempt, and the sender decides
what is next.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import traceback
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack, overload

import anyio
from attrs import define, field

from adp_async._io.authenticator import Authenticator
from adp_async._io.tokens import Tokens
from adp_async._io.transport import AiohttpTransport
from adp_async._sansio.arguments import checked_options, named
from adp_async._sansio.codec import decode, encode
from adp_async._sansio.dispatch import Pulse
from adp_async._sansio.endpoints import GET_RUN, LOG_BATCH, check_endpoint
from adp_async._sansio.messages import Request
from adp_async._sansio.names import Names
from adp_async._sansio.records import BatchLimits
from adp_async._sansio.replies import read_reply
from adp_async._sansio.retry import TELL_AFTER, RetryNotice
from adp_async._sansio.signing import check_principal, check_request_id, check_retry_token
from adp_async._sansio.throttle import Throttle
from adp_async._sansio.urls import url_of
from adp_async._sansio.verdicts import is_about_the_run
from adp_async.errors import (
    AdpError,
    Closed,
    NotAuthenticated,
    NotFound,
    RequestTimeout,
    ServiceError,
    Throttled,
    UnreadableReply,
)
from adp_async.logger import BatchLogger
from adp_async.run import Run, StartedRun, tell_behind
from adp_async.settings import Settings, absolute_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from adp_async._io.recovery import Orphan, Predecessors, Recovery
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

logger = logging.getLogger("adp_async")

#: How often an operation with a retry token is asked while its reply cannot be read: at once, as a
#: reply may be damaged on its way, and after a back-off.  A page that stays is told in seconds.
READINGS = 3

#: A wrong clock hides that a token has expired: each can be mended once in an attempt.
MENDINGS = 2


class Session:
    """A client of one AI Data Platform and workspace.

    ``async with Session() as session`` takes its settings from the arguments, the environment and
    OCI's config file; see `Settings` for every knob.  Nothing blocks here: the signer is loaded
    and the connections are opened on entering (or by `open`), which may raise
    `ConfigurationError`.

    *runs*, *experiments*, *registered_models*, *model_versions*, *logged_models* and
    *deployments* are the operations of the service; *logger* is the background logger; `call` is
    the door for an operation that this library doesn't know yet.
    """

    def __init__(
        self, platform_id: str | None = None, workspace: str | None = None, **knobs: Unpack[Knobs]
    ) -> None:
        given: dict[str, object] = {"platform_id": platform_id, "workspace": workspace, **knobs}
        self._settings = settings = Settings.resolve(given)
        # Now: where a relative one is changes with the working folder.
        spool = settings.spool
        self._spool_folder = None if isinstance(spool, bool) else absolute_folder(spool)
        self._auth = Authenticator(settings.auth)
        self._transport = AiohttpTransport(
            connect_timeout=settings.connect_timeout,
            timeout=settings.timeout,
            limit=settings.max_connections,
            ca_bundle=settings.ca_bundle,
        )
        self._throttle = Throttle(settings.retry)
        self._pulse = Pulse()
        self._new_token = Tokens()
        self._state = "it has not been entered"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lifetime = asyncio.Lock()  # opening and closing, whoever does it
        self._under_way = 0  # requests, of calls and of batches
        self._experiment_ids = Names()
        self._log_batch_url = ""
        self._recovering: asyncio.Task[None] | None = None
        self.logger = BatchLogger(
            post=self._post_batch,
            run_is_gone=self._run_is_gone,
            throttle=self._throttle,
            pulse=self._pulse,
            limits=BatchLimits(),
            linger=settings.linger,
            max_in_flight=settings.max_in_flight,
            buffer_limit=settings.buffer_limit,
            max_block=settings.max_block,
            overflow=settings.overflow,
            policy=settings.retry,
            new_token=self._new_token,
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
        """What the session works with; the endpoint of a region is known once it is open."""
        return self._settings

    def __repr__(self) -> str:
        where = self._settings.endpoint or self._settings.region or "region of the credentials"
        state = f"closed: {self._state}" if self._state else repr(self.logger).strip("<>")
        return f"<Session {where} workspace {self._settings.workspace} | {state}>"

    # ------------------------------------------------------------------ lifetime

    async def open(self) -> Self:
        """Load the signer and open the pool; what entering does.

        Nothing is connected yet.  Raises `ConfigurationError` for settings that are wrong,
        certificates and the proxy of the environment included.
        """
        async with self._lifetime:
            if self._loop is None:
                await self._open()
            elif self._state:
                raise Closed(f"a session is opened once; {self._state}")
        self._check_open()
        return self

    async def _open(self) -> None:
        await self._auth.open()
        before = self._state
        try:
            settings = self._settings
            self._settings = await self._auth.run(settings.complete, self._auth.region)
            await self._auth.run(self._transport.load, self._settings.base_url)
            await self._transport.open()
            self._loop, self._state = asyncio.get_running_loop(), ""
            spool = await self._make_spool()
        except BaseException:
            self._loop, self._state = None, before
            await self._transport.close()
            await self._auth.close()
            raise
        interval = self._settings.spool_interval
        # Where no spool can be made none can be emptied either.
        if spool is None or not self._settings.recover:
            self.logger.open(spool, interval)
            return
        # Now, as the caller waits: a fork during an import leaves the module locked for good.
        from adp_async._io.recovery import Predecessors

        before_us = Predecessors()
        self.logger.open(spool, interval, before_us.wait)
        recovering = self._recover(before_us)
        self._recovering = asyncio.create_task(recovering, name="adp_async recovery")

    async def close(self) -> None:
        """Deliver what waits, for at most ``close_timeout`` seconds; what leaving does.

        Raises `DeliveryError` when records were refused and nobody was told, or could not be
        delivered in time.
        """
        if self._loop is None or self._state:
            return
        self.logger.check_loop()
        # Being cancelled was the reason to come here; it must not keep us from tidying up.
        with anyio.CancelScope(shield=True):
            async with self._lifetime:
                if not self._state:
                    await self._close()

    async def _close(self) -> None:
        try:
            await self.logger.close(self._settings.close_timeout)
        finally:
            self._state = "it was left"
            await self._stop_recovering()
            await self._transport.close()
            await self._auth.close()

    async def _stop_recovering(self) -> None:
        task, self._recovering = self._recovering, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled() and (error := task.exception()) is not None:
                logger.error("recovery failed; what it had is still on disk", exc_info=error)

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
        if self._state:
            raise Closed(f"the session cannot be used: {self._state}")
        self.logger.check_open()

    # ------------------------------------------------------------------ what outlives a process
    # (imported when there is a spool: SQLite and its tables are a quarter of the import's time)

    @property
    def spool_folder(self) -> Path:
        """Where spools lie: what ``spool=`` names, or the user's state folder.

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
        from adp_async._io.spool import Spool
        from adp_async._io.spool_file import SpoolError

        limit = self._settings.spool_limit
        try:
            create = partial(Spool.create, self.spool_folder, self._identity, limit=limit)
            return await self._auth.run(create)
        except SpoolError as error:
            logger.warning("accepted records are only in memory: %s", error)
            return None

    async def _recover(self, before_us: Predecessors) -> None:
        """Deliver what processes that died have left for this platform and workspace."""
        from adp_async._io.recovery import found_by, open_orphans
        from adp_async._io.spool_file import SpoolError
        from adp_async._io.worker import Worker

        worker = Worker("adp_async recovery")
        seen: set[Path] = set()
        try:
            while True:
                find = partial(
                    open_orphans,
                    self.spool_folder,
                    identity=self._identity,
                    limit=self._settings.spool_limit,
                    but_not=seen,
                )
                orphans = await found_by(worker.do(find))
                before_us.found(orphans)
                if not orphans:
                    return
                records = _counted(sum(orphan.records for orphan in orphans), "record")
                processes = _counted(len(orphans), "process", "es")
                message = "delivering %s of %s that ended, from %s"
                logger.warning(message, records, processes, self.spool_folder)
                seen.update(orphan.spool.path for orphan in orphans)
                try:
                    for orphan in orphans:
                        run_ids = orphan.run_ids
                        await self.recover([orphan])
                        before_us.delivered(run_ids)
                finally:
                    for orphan in orphans:
                        orphan.spool.let_go()
        except SpoolError as error:
            logger.warning("%s", error)
        finally:
            before_us.given_up()
            worker.stop()

    async def recover(
        self, orphans: Sequence[Orphan], on_progress: Callable[[Recovery], None] | None = None
    ) -> None:
        """Deliver what `open_orphans` found, one after the other; *on_progress* hears of it."""
        from adp_async._io.recovery import Recovery

        left = list(orphans)
        try:
            while left:
                recovery = Recovery(
                    left.pop(0),
                    self._post_batch,
                    self._run_is_gone,
                    self._throttle,
                    BatchLimits(),
                    self._settings.retry,
                    self._pulse,
                    on_progress=on_progress,
                )
                await recovery.run()
                delivered, rejected = recovery.counts
                path = recovery.orphan.spool.path
                logger.info("%s: %d records delivered, %d rejected", path, delivered, rejected)
        finally:
            for orphan in left:
                orphan.spool.let_go()

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

    async def experiment_id_of(self, name: str) -> str:
        """The id of the experiment called *name*, which is created unless it exists.

        It is remembered for five minutes.
        """
        known = self._experiment_ids.find(name, time.monotonic())
        return known or (await self.look_up_experiment(name)).experiment_id

    async def look_up_experiment(self, name: str) -> Experiment:
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

        async def ask() -> Any:
            reply = await self.fetch(endpoint, path=path, query=query, body=body, **options)
            operation = endpoint.operation
            return decode(reply.body, returning or object, reply=reply, operation=operation)

        check_endpoint(endpoint)
        options = checked_options(options)
        if not endpoint.takes_retry_token:
            return await ask()
        deadline = time.monotonic() + options.get("timeout", self._settings.call_timeout)
        options.setdefault("retry_token", self._new_token())
        for attempt in range(1, READINGS):
            try:
                return await ask()
            except UnreadableReply as error:
                # It may have taken effect, and who knows its token is told again: what a create
                # has made would stay behind unknown.
                wait = self._wait_after(error, attempt) if attempt > 1 else 0.0
                if time.monotonic() + wait > deadline:
                    raise
                logger.debug("%s: asked again: %s", endpoint.operation, error)
            await asyncio.sleep(wait)
            options["timeout"] = max(0.0, deadline - time.monotonic())
        return await ask()

    async def fetch(
        self,
        endpoint: Endpoint,
        *,
        path: Mapping[str, str] | None = None,
        query: Mapping[str, object] | None = None,
        body: object = None,
        **options: Unpack[CallOptions],
    ) -> Reply:
        """As `call`, but the reply as it came: status, headers and body, which is no page."""
        self._check_open()
        check_endpoint(endpoint)
        options = checked_options(options)
        path, query = named(path, "path"), named(query, "query")
        request = self._request(endpoint, path, query, body, options)
        timeout = options.get("timeout", self._settings.call_timeout)
        call = _Call(endpoint, timeout, self._settings.retry.max_attempts)
        tell = asyncio.get_running_loop().call_later(TELL_AFTER, call.tell, True)
        try:
            async with asyncio.timeout(timeout):
                reply = await self._persist(request, call)
        except TimeoutError:
            raise call.timed_out() from call.last_error
        finally:
            tell.cancel()
        if on_reply := options.get("on_reply"):
            on_reply(reply)
        return reply

    async def _persist(self, request: Request, call: _Call) -> Reply:
        """Try until it works, or until trying again makes no sense."""
        while True:
            try:
                return await self._attempt(request, call)
            except AdpError as error:
                call.failed(error)
                if not call.may_try_again(error):
                    raise
                wait = self._wait_after(error, call.attempts)
                if time.monotonic() + wait > call.ends_at():
                    raise
                logger.debug("%s: attempt %d: %s", request.operation, call.attempts, error)
            call.tell()
            await asyncio.sleep(wait)

    def _wait_after(self, error: AdpError, attempts: int) -> float:
        if isinstance(error, Throttled):
            return self._throttle.delay(time.monotonic())
        retry_after = getattr(error, "retry_after", None) or 0.0
        policy = self._settings.retry
        return policy.delay(attempts, jitter=random.random(), retry_after=retry_after)  # noqa: S311

    async def _attempt(self, request: Request, call: _Call | None = None) -> Reply:
        """One attempt; and once more after a 401 that the right time or a refresh can mend.

        Whatever goes wrong is an `AdpError`: the request that met it is held or fails, and
        nothing else.
        """
        try:
            return await self._mended(request, call)
        except AdpError:
            raise
        except Exception as error:
            failure = _unexpected(error, request)
        raise failure

    async def _mended(self, request: Request, call: _Call | None) -> Reply:
        before = self._auth.skew
        mendings = 0
        while True:
            generation, skew = self._auth.generation, self._auth.skew
            try:
                reply = await self._exchange(request, call)
            except NotAuthenticated as error:
                # Once it was refreshed, and still isn't good, there is nothing left to mend.
                is_mended = mendings == MENDINGS or (mendings and skew == before)
                if is_mended or not await self._mend(error, generation):
                    self._auth.refused(skew)
                    raise
                mendings += 1
            else:
                self._auth.accepted(skew)
                return reply

    async def _mend(self, error: NotAuthenticated, generation: int) -> bool:
        date = error.server_date
        return await self._auth.recover(error, generation=generation, server_date=date)

    async def _exchange(self, request: Request, call: _Call | None) -> Reply:
        throttle = self._throttle
        while (delay := throttle.delay(time.monotonic())) > 0.0:
            if call is not None:
                call.is_held = True
            await asyncio.sleep(delay)
        if call is not None:
            call.is_held = False
        departed = time.monotonic()
        throttle.depart(departed)
        reply = await self._signed_and_sent(request)
        try:
            read_reply(reply, request.operation)
        except Throttled as error:
            throttle.refused(
                departed=departed,
                now=time.monotonic(),
                jitter=random.random(),  # noqa: S311
                retry_after=error.retry_after,
            )
            raise
        except NotAuthenticated as error:
            error.server_date = reply.headers.get("date")
            raise
        throttle.succeeded(time.monotonic())
        return reply

    async def _signed_and_sent(self, request: Request) -> Reply:
        self._under_way += 1
        try:
            # Every attempt is signed anew: the date is signed, too.
            signed = await self._auth.sign(request, alone=self._under_way == 1)
            return await self._transport.send(signed)
        finally:
            self._under_way -= 1

    def _request(
        self,
        endpoint: Endpoint,
        path: Mapping[str, str],
        query: Mapping[str, object],
        body: object,
        options: CallOptions,
    ) -> Request:
        settings = self._settings
        url = url_of(
            endpoint, settings.base_url, settings.platform_id, settings.workspace, path, query
        )
        payload: Any = None
        if body is not None or endpoint.method != "GET":
            payload = (
                body if issubclass(type(body), bytes) else encode({} if body is None else body)
            )
        headers = _headers(endpoint, options, self._new_token, has_body=payload is not None)
        return Request(endpoint.method, url, headers, payload, endpoint.operation)

    # ------------------------------------------------------------------ what the sender needs

    async def _post_batch(self, body: bytes, retry_token: str) -> None:
        if not self._log_batch_url:
            self._log_batch_url = self._request(LOG_BATCH, {}, {}, b"", {}).url
        headers = {
            "accept": "application/json",
            "content-type": "application/json",
            "opc-request-id": self._new_token(),
            "opc-retry-token": retry_token,
        }
        url, operation = self._log_batch_url, LOG_BATCH.operation
        await self._attempt(Request("POST", url, headers, body, operation))

    async def _run_is_gone(self, run_id: str) -> bool:
        """Whether the run takes no records at all: deleted, or not there.

        Raises what answered when that was not the service, which decides nothing.
        """
        request = self._request(GET_RUN, {}, {"run_id": run_id}, None, {})
        try:
            reply = await self._attempt(request)
        except NotFound as error:
            if not error.code:
                raise
            return is_about_the_run(error, run_id)
        from adp_async.entities.runs import RunReply

        info = decode(reply.body, RunReply, reply=reply, operation=GET_RUN.operation).run.info
        return info.run_id == run_id and info.lifecycle_stage == "deleted"


@define(eq=False, repr=False)
class _Call:
    """One direct call: what bounds it and what has gone wrong so far."""

    endpoint: Endpoint
    timeout: float
    max_attempts: int
    began: float = field(factory=time.monotonic, init=False)
    attempts: int = field(default=0, init=False)
    last_error: AdpError | None = field(default=None, init=False)
    #: It waits for its turn, as the service throttles.
    is_held: bool = field(default=False, init=False)
    _notice: RetryNotice = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._notice = RetryNotice(self.began)

    def failed(self, error: AdpError) -> None:
        self.last_error = error
        self.attempts += not isinstance(error, Throttled)  # time alone limits those

    def may_try_again(self, error: AdpError) -> bool:
        if not error.retriable or self.attempts >= self.max_attempts:
            return False
        return self.endpoint.may_be_resent or not error.maybe_applied

    def ends_at(self) -> float:
        """When it is given up: its own time, or less after what may be a wrong set-up."""
        patience = getattr(self.last_error, "patience", float("inf"))
        return self.began + min(self.timeout, patience)

    def tell(self, is_time: bool = False) -> None:
        """Say in a WARNING, once, that it is still tried again.  *is_time*: a timer says so."""
        now = time.monotonic()
        if is_time:  # timers are a little early at times
            now = max(now, self.began + TELL_AFTER)
        if not self._notice.is_due(now, in_trouble=self.is_held or self.last_error is not None):
            return
        left = max(0.0, self.ends_at() - now)
        limit = f"up to {left:.0f} s more"
        if self.attempts:
            limit += f", at most {_counted(self.max_attempts - self.attempts, 'time')}"
        why = self.last_error or "the service throttles (429), and this call waits for its turn"
        message = "%s: not done after %.0f s; it is tried again for %s: %s"
        logger.warning(message, self.endpoint.operation, now - self.began, limit, why)

    def timed_out(self) -> RequestTimeout:
        after = f", after {self.last_error}" if self.last_error else ""
        operation = self.endpoint.operation
        return RequestTimeout(f"{operation}: no reply within {self.timeout:g} s{after}")


def _headers(
    endpoint: Endpoint, options: CallOptions, new_token: Callable[[], str], *, has_body: bool
) -> dict[str, str]:
    headers = {"accept": "application/json"}
    if has_body:
        headers["content-type"] = "application/json"
    request_id = options["request_id"] if "request_id" in options else new_token()
    headers["opc-request-id"] = check_request_id(request_id)
    if "retry_token" in options and not endpoint.takes_retry_token:
        raise ValueError(f"{endpoint.operation} takes no retry token")
    if endpoint.takes_retry_token:
        token = options["retry_token"] if "retry_token" in options else new_token()
        headers["opc-retry-token"] = check_retry_token(token)
    if "principal" in options:
        headers["dh-user-principal"] = check_principal(options["principal"])
    return headers


def _unexpected(error: Exception, request: Request) -> AdpError:
    """An error of ours for one that nobody thought of; its own words may hold anything."""
    where = "".join(traceback.format_tb(error.__traceback__))
    logger.debug("%s: unexpected %s:\n%s", request.operation, type(error).__name__, where)
    return AdpError(f"{request.operation}: failed with {type(error).__name__}")


def _tell_of_hidden(refused: AdpError, name: str) -> None:
    """An experiment can neither be found nor created: most likely it was deleted."""
    if isinstance(refused, ServiceError) and refused.code == "RESOURCE_ALREADY_EXISTS":
        refused.message = (
            f"experiment {name!r:.120} exists, and cannot be found; if it was deleted, "
            "session.experiments.restore(its id) brings it back, or take another name: "
            f"{refused.message}"
        )


def _counted(count: int, what: str, ending: str = "s") -> str:
    return f"{count} {what}{ending if count != 1 else ''}"
