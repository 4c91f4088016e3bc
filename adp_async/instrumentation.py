"""What the client does, as frozen facts for those who watch it: metrics, traces, a debugger.

A *hook* is a method of an object that `instrument` was given, called with one of these facts:

====================  =====================  =====================================================
method                fact                   when
====================  =====================  =====================================================
`on_session_opened`   `SessionOpened`        a session accepts records; for one that is open
                                             already, at once
`on_session_closed`   `SessionClosed`        it has delivered what it could, and counts no more
`on_call_started`     `CallStarted`          a direct call begins
`on_call_ended`       `CallEnded`            it returns or raises, after all of its attempts
`on_attempt`          `Attempt`              one request was answered, or failed
`on_batch_settled`    `BatchSettled`         records of a log-batch were delivered or given up
`on_hold`             `Hold`                 a 429 holds all requests of the session
====================  =====================  =====================================================

Hooks are called where the thing happens, and it waits for them, so they must be quick: for direct
calls in the task that makes the call (its context variables are the caller's), for the rest in the
thread that delivers.  One that raises, whatever it raises, costs a line in the log, and neither the
call nor delivery.  No fact holds a record's value, a URL, a header or a body.

Without hooks nothing of this costs anything but a look at an empty tuple.
"""

from __future__ import annotations

import inspect
import logging
import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias

from attrs import field, frozen

from adp_async.errors import type_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from adp_async.stats import Health, Stats

__all__ = [
    "Attempt",
    "BatchSettled",
    "CallEnded",
    "CallStarted",
    "Hold",
    "Instrumentation",
    "SessionClosed",
    "SessionOpened",
    "instrument",
]


@frozen(eq=False)
class SessionOpened:
    """A session accepts records from now on.

    *endpoint* is the service's base URL.  *stats* and *health* return the session's counts, and how
    delivery fares, as of now; they are for any thread, at any time.
    """

    platform_id: str
    workspace: str | None
    endpoint: str
    stats: Callable[[], Stats] = field(repr=False)
    health: Callable[[], Health] = field(repr=False)


@frozen(eq=False)
class SessionClosed:
    """*session* is closed, and *stats* are its last counts.

    What they call ``spooled`` is on disk, for the next session.
    """

    session: SessionOpened
    stats: Stats


@frozen(eq=False)
class CallStarted:
    """A direct call begins: one operation with its retries, as the caller awaits it.

    *operation* is the API's name of it, *path* what follows ``.../mlops/api/2.0/``, with
    placeholders where it has any.  *server_address* and *server_port* are the service's.
    """

    operation: str
    method: str
    path: str
    server_address: str
    server_port: int | None


@frozen(eq=False)
class CallEnded:
    """A direct call returned, or raised *error*.

    *attempts* counts its requests, 0 when none left.  *status* and *request_id* are those of the
    last one, None when it had no reply.  *seconds* include waiting for a turn and between attempts.
    *error* may be a cancellation.
    """

    started: CallStarted
    attempts: int
    seconds: float
    status: int | None = None
    request_id: str | None = None
    error: BaseException | None = None


@frozen(eq=False)
class Attempt:
    """One request was answered, or failed: of a direct call, a log-batch or an upload.

    *waited* are the seconds that it waited for its turn before it left, *seconds* those from then
    until the reply was read.  *status* is None without a reply.  *error* is what the reply means,
    or why there is none; None when all went well.  *request_id* is the ``opc-request-id``; the one
    that was sent when no reply has one.  *call* is the direct call that it belongs to, None for a
    log-batch and for uploads.
    """

    operation: str
    method: str
    server_address: str
    server_port: int | None
    waited: float
    seconds: float
    status: int | None = None
    request_id: str | None = None
    error: BaseException | None = None
    call: CallStarted | None = None


@frozen(eq=False)
class BatchSettled:
    """Records of one run are settled by the answer to a log-batch.

    *delivered*, *rejected* (by the class of the error, as in `Stats`) and *dropped* count them.
    *seconds* is how long the oldest record of the batch has waited since it was logged, or,
    for one of a dead process, since the batch left.
    """

    run_id: str
    delivered: int
    rejected: Mapping[str, int]
    dropped: int
    seconds: float


@frozen(eq=False)
class Hold:
    """The service answered 429 to *operation*: no request of the session leaves for *seconds*.

    *retry_after* is what the service asked for, None when it did not say.  *rate* is what the
    client allows itself after that, in requests a second; None: no limit.
    """

    operation: str
    seconds: float
    retry_after: float | None
    rate: float | None
    request_id: str | None = None


Fact: TypeAlias = (
    SessionOpened | SessionClosed | CallStarted | CallEnded | Attempt | BatchSettled | Hold
)

#: The methods that an object of hooks may have.
HOOKS: Final = (
    "on_session_opened",
    "on_session_closed",
    "on_call_started",
    "on_call_ended",
    "on_attempt",
    "on_batch_settled",
    "on_hold",
)


class _Watching:
    """Who is told of what: for each hook, its methods, in the order they came.

    The tuples are replaced, never changed, so that no look at them needs a lock.
    """

    __slots__ = ("_lock", "_said", "_sessions", *HOOKS)

    on_session_opened: tuple[Callable[[Any], object], ...]
    on_session_closed: tuple[Callable[[Any], object], ...]
    on_call_started: tuple[Callable[[Any], object], ...]
    on_call_ended: tuple[Callable[[Any], object], ...]
    on_attempt: tuple[Callable[[Any], object], ...]
    on_batch_settled: tuple[Callable[[Any], object], ...]
    on_hold: tuple[Callable[[Any], object], ...]

    def __init__(self) -> None:
        for name in HOOKS:
            setattr(self, name, ())
        self._lock = threading.Lock()
        #: Sessions that are open; hooks of which a failure was logged.
        self._sessions: dict[SessionOpened, None] = {}
        self._said: set[int] = set()

    def add(self, methods: Mapping[str, Callable[[Any], object]]) -> None:
        with self._lock:
            for name, method in methods.items():
                setattr(self, name, (*getattr(self, name), method))
            sessions = list(self._sessions)
        if "on_session_opened" in methods:
            for session in sessions:
                self.tell((methods["on_session_opened"],), session)

    def remove(self, methods: Mapping[str, Callable[[Any], object]]) -> None:
        with self._lock:
            for name, method in methods.items():
                left = tuple(each for each in getattr(self, name) if each is not method)
                setattr(self, name, left)
                self._said.discard(id(method))

    def tell(self, hooks: tuple[Callable[[Any], object], ...], fact: Fact) -> None:
        """Call *hooks* with *fact*.  Raises nothing of theirs."""
        for hook in hooks:
            try:
                hook(fact)
            except BaseException as error:
                # There Ctrl-C and a signal's exit may come up, which are not the hook's.
                if not isinstance(error, Exception) and _is_interrupt(error):
                    raise
                self._report(hook, error)

    def _report(self, hook: Callable[[Any], object], error: BaseException) -> None:
        if id(hook) in self._said:
            return
        self._said.add(id(hook))
        name, kind = getattr(hook, "__qualname__", "a hook"), type_name(error)
        with suppress(Exception):  # a handler that raises as well
            message = "the hook %s failed with %s; it is called again, but this is not said again"
            logger.error(message, name, kind, exc_info=error)

    # Sessions

    def opened(self, session: SessionOpened) -> None:
        with self._lock:
            self._sessions[session] = None
            hooks = self.on_session_opened
        self.tell(hooks, session)

    def closed(self, session: SessionOpened) -> None:
        with self._lock:
            is_open = session in self._sessions
            self._sessions.pop(session, None)
        if is_open and self.on_session_closed:
            self.tell(self.on_session_closed, SessionClosed(session, session.stats()))

    def forked(self) -> None:
        """In a forked child: the sessions are the parent's, and so may be who holds the lock."""
        self._lock = threading.Lock()
        self._sessions = {}


def _is_interrupt(error: BaseException) -> bool:
    is_main = threading.current_thread() is threading.main_thread()
    return is_main and isinstance(error, KeyboardInterrupt | SystemExit)


logger = logging.getLogger("adp_async")
watching: Final = _Watching()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=watching.forked)


class Instrumentation:
    """What `instrument` returns: `undo` takes the hooks back, as does the end of a ``with``."""

    def __init__(self, methods: Mapping[str, Callable[[Any], object]]) -> None:
        self._methods = dict(methods)
        watching.add(self._methods)

    def undo(self) -> None:
        """Call the hooks no more.  Harmless when done before; for any thread, and for a hook."""
        methods, self._methods = self._methods, {}
        watching.remove(methods)

    def __call__(self) -> None:
        self.undo()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    def __repr__(self) -> str:
        return f"<Instrumentation {', '.join(self._methods) or 'undone'}>"


def instrument(hooks: object) -> Instrumentation:
    """Have the methods of *hooks* called with what happens in all sessions of this process.

    *hooks* has any of the methods of the module's table; others it may have are ignored, unless
    they begin with ``on_``.  Each is a plain function, and quick.  Returns what undoes it:
    ``undo()``, or leaving it as a context manager.  Raises TypeError for an object without hooks,
    and for one with a hook that does not exist or cannot be called.
    """
    if isinstance(hooks, type):
        raise TypeError(f"hooks must be an object, not the class {hooks.__qualname__} itself")
    methods = dict(_methods_of(hooks))
    if not methods:
        raise TypeError(f"{type_name(hooks)} has no hook; they are {', '.join(HOOKS)}")
    return Instrumentation(methods)


def _methods_of(hooks: object) -> Iterator[tuple[str, Callable[[Any], object]]]:
    kind = type_name(hooks)
    for name in dir(hooks):
        if name.startswith("on_") and name not in HOOKS:
            raise TypeError(f"{kind}.{name} is not a hook; they are {', '.join(HOOKS)}")
    for name in HOOKS:
        method = getattr(hooks, name, None)
        if method is None:
            continue
        if not callable(method):
            raise TypeError(f"{kind}.{name} cannot be called")
        if inspect.iscoroutinefunction(method):
            raise TypeError(f"{kind}.{name} is a coroutine function; hooks are plain functions")
        yield name, method
