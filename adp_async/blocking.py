"""`adp_async` for code without an event loop: a background thread runs one.

``with adp_async.blocking.start_run("digits") as run`` is all a training script needs;
use `Session` for more than one run.
"""

from __future__ import annotations

from functools import cached_property
from inspect import isawaitable, iscoroutine, signature
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self, TypeVar, Unpack, overload

import attrs

import adp_async.session
from adp_async._blocking_logger import BatchLogger
from adp_async._blocking_runs import AttachedRun, Run, StartedRun, attached, handle_of, started
from adp_async._io.lifetime import Why
from adp_async._io.loop_thread import LoopThread, awaited
from adp_async._sansio.endpoints import Endpoint
from adp_async._sansio.values import valid_run_id
from adp_async._shared_sessions import SharedSessions
from adp_async._sharing import SharesSession
from adp_async._signatures import SignatureWithKnobs
from adp_async.api._late import LateTwin
from adp_async.errors import AdpError, Closed
from adp_async.run import attach_note
from adp_async.settings import Settings, check_names
from adp_async.starting import START_TIMEOUT, Offline

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from pathlib import Path
    from types import TracebackType

    from adp_async._io.engine import Engine
    from adp_async._sansio.messages import Reply
    from adp_async._sansio.statuses import EndStatus
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
    from adp_async.settings import Knobs
    from adp_async.starting import BegunRun
    from adp_async.stats import Health
    from adp_async.writer import RunWriter

T = TypeVar("T")

__all__ = [
    "AttachedRun",
    "BatchLogger",
    "Run",
    "Session",
    "StartedRun",
    "attach_run",
    "shared_session",
    "start_run",
]


class Session(SharesSession):
    """A session for code without an event loop; see `adp_async.Session`.

    It has every operation of that one, without ``await``: *runs*, *experiments*,
    *registered_models*, *model_versions*, *logged_models* and *deployments*, whose listings are
    plain iterators, *logger*, `call` and `fetch`.  They run in an event loop in a background
    thread, as does *on_reply*.  Any thread may use them, and Ctrl-C interrupts a
    call that waits.

    *session* is the asynchronous session.  One that is still open when the interpreter ends is
    closed then, within ``exit_timeout``.
    """

    __signature__ = SignatureWithKnobs(Settings)

    runs: LateTwin[Runs] = LateTwin("blocking.Runs", "Runs, and what is logged into them.")
    experiments: LateTwin[Experiments] = LateTwin("blocking.Experiments", "Experiments and tags.")
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
    #: The same while it is opening: `close` may be called meanwhile.
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

    def _shared_engine(self) -> Engine:
        return self.session._engine

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
                opening.wait(self.session.close())  # `open` then fails, and stops the thread
            return
        thread.check()
        self.session._engine.close_hooks.run(None)  # here, since they may wait for the session
        if self._thread is None:
            return  # one of them has closed it
        self._thread = None
        try:
            thread.wait(self.session.close())
        finally:
            thread.stop()

    def on_close(self, hook: Callable[[EndStatus | None], object]) -> Callable[[], None]:
        """Have *hook* called before the session closes; see `adp_async.Session.on_close`.

        It is called in the thread that closes, and may use the session, and wait for it.
        """
        return self.session.on_close(hook)

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
        """One operation, as `adp_async.Session.call`; or any awaitable, in the session's thread.

        ``call(Endpoint(...), path=..., query=..., body=..., returning=...)`` sends that operation
        and returns its reply.  ``call(awaitable)`` runs it to its end, a coroutine of *session* for
        instance, and returns its result.  Raises `TimeoutError` (an operation: `RequestTimeout`)
        after *timeout* seconds.
        """
        if isinstance(endpoint, Endpoint):
            if timeout is not None:
                given["timeout"] = timeout
            doing = self.session.call(endpoint, **given)
            return self._opened(doing).wait(doing)
        if not isawaitable(endpoint):
            message = f"call takes an Endpoint or an awaitable, not {type(endpoint).__name__}"
            raise TypeError(message)
        doing = endpoint if iscoroutine(endpoint) else awaited(endpoint)
        if given:
            doing.close()
            raise TypeError(f"call of an awaitable does not take {', '.join(given)}")
        return self._opened(doing).wait(doing, timeout)

    def fetch(self, endpoint: Endpoint, **given: Unpack[CallArguments]) -> Reply:
        """As `call`, but the reply as it came; see `adp_async.Session.fetch`."""
        doing = self.session.fetch(endpoint, **given)
        return self._opened(doing).wait(doing)

    def _opened(self, doing: Coroutine[Any, Any, object]) -> LoopThread:
        """The thread in which *doing* is to run, which is closed when there is none."""
        if self._thread is None:
            doing.close()
            if self.session._engine.lifetime.why is Why.NOT_OPENED:
                raise Closed("the session is not open yet: enter it with `with`, or call `open()`")
            raise self.session._engine.lifetime.error()
        return self._thread

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
    ) -> StartedRun:
        """Create a run; ``with`` ends it.  See `adp_async.Session.start_run`."""
        begun = self.session.start_run(
            experiment,
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
        return self._begin(begun, owns_session=False)

    def _begin(self, begun: BegunRun, *, owns_session: bool) -> StartedRun:
        return started(self.call(begun._begun()), self, owns_session=owns_session)

    @overload
    def attach_run(
        self, run_id: str, *, resume: Literal[False] = ..., strict: bool = ...
    ) -> Run: ...

    @overload
    def attach_run(
        self, run_id: str, *, resume: Literal[True], strict: bool = ...
    ) -> StartedRun: ...

    def attach_run(self, run_id: str, *, resume: bool = False, strict: bool = True) -> Run:
        """A handle for an existing run; sends no request.  ``with`` only flushes.

        With *resume* the run is set RUNNING again, and ``with`` ends it.
        """
        run_id = valid_run_id(run_id)
        if resume:
            begun = self.session.attach_run(run_id, resume=True, strict=strict)
            return self._begin(begun, owns_session=False)
        return handle_of(self.session.attach_run(run_id, strict=strict), self)

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
            attach_note(error, failure)

    if not TYPE_CHECKING:  # for a type checker, these are not there

        def __aenter__(self) -> NoReturn:
            message = "a blocking.Session: use `with`; adp_async.Session is for an event loop"
            raise TypeError(message)

        async def __aexit__(self, *error: object) -> None: ...

    def health(self) -> Health:
        """Whether delivery works; see `adp_async.Session.health`."""
        return self.session.health()

    @property
    def is_open(self) -> bool:
        """Whether the session accepts calls and records."""
        return self._thread is not None and self.session.is_open

    def __repr__(self) -> str:
        return f"<blocking {repr(self.session).strip('<>')}>"

    def _repr_html_(self) -> str:
        return self.session._repr_html_()


def start_run(
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
    platform_id: str | None = None,
    workspace: str | None = None,
    **knobs: Unpack[Knobs],
) -> StartedRun:
    """Open a session of its own, create a run, and end both with the ``with`` block.

    *platform_id*, *workspace* and *knobs* are those of `Session`; the rest as for
    `adp_async.Session.start_run`.  Without ``with``, ``run.finish()`` ends both, or the end of the
    process.  Raises `ConfigurationError` for settings that are wrong, and what the service
    answers; not that it cannot be reached, unless *offline* is False.
    """
    check_names(knobs, signature(start_run).parameters)
    session = Session(platform_id, workspace, **knobs).open()
    try:
        begun = session.session.start_run(
            experiment,
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
        return session._begin(begun, owns_session=True)
    except BaseException:
        session.close()
        raise


@overload
def attach_run(
    run_id: str,
    *,
    resume: Literal[False] = ...,
    strict: bool = ...,
    platform_id: str | None = ...,
    workspace: str | None = ...,
    **knobs: Unpack[Knobs],
) -> AttachedRun: ...


@overload
def attach_run(
    run_id: str,
    *,
    resume: Literal[True],
    strict: bool = ...,
    platform_id: str | None = ...,
    workspace: str | None = ...,
    **knobs: Unpack[Knobs],
) -> StartedRun: ...


def attach_run(
    run_id: str,
    *,
    resume: bool = False,
    strict: bool = True,
    platform_id: str | None = None,
    workspace: str | None = None,
    **knobs: Unpack[Knobs],
) -> AttachedRun | StartedRun:
    """A handle for an existing run, with a session of its own that ``with`` closes.

    With *resume* the run is set RUNNING again, and ``with`` ends it as well.  *strict* as for
    `adp_async.Session.start_run`.  Raises ValueError for what cannot be a run's id, and
    `ConfigurationError` for settings that are wrong; without *resume* no request is sent.
    """
    run_id = valid_run_id(run_id)
    session = Session(platform_id, workspace, **knobs).open()
    try:
        if resume:
            begun = session.session.attach_run(run_id, resume=True, strict=strict)
            return session._begin(begun, owns_session=True)
        return attached(session.session.attach_run(run_id, strict=strict), session)
    except BaseException:
        session.close()
        raise


def shared_session(
    platform_id: str | None = None, workspace: str | None = None, **knobs: Unpack[Knobs]
) -> Session:
    """The open session that this process has for these settings, for all who ask for it.

    It is opened when it is first asked for, and a new one when that was closed; a forked child
    has one of its own.  It ends with the process, which delivers what waits.  Arguments as for
    `Session`, and from the same places; raises `ConfigurationError`.
    """
    given: dict[str, object] = {"platform_id": platform_id, "workspace": workspace, **knobs}
    return _shared.of(Settings.resolve(given))


def _session_of(settings: Settings) -> Session:
    return Session(**attrs.asdict(settings, recurse=False))


_shared = SharedSessions(_session_of)
