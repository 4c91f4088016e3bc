"""Tells hooks what happens to direct calls and to requests, while there are any hooks."""

from __future__ import annotations

import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, TypeVar

from attrs import define, field
from yarl import URL

from adp_async.instrumentation import (
    Attempt,
    BatchSettled,
    CallEnded,
    CallStarted,
    Hold,
    watching,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from adp_async._sansio.batch import RecordBatch
    from adp_async._sansio.endpoints import Endpoint
    from adp_async._sansio.messages import Reply, Request
    from adp_async._sansio.throttle import Throttle
    from adp_async.errors import Throttled

T = TypeVar("T")


@define(eq=False)
class _Call:
    """A direct call that is under way, and what its requests came to."""

    started: CallStarted
    began: float = field(factory=time.monotonic)
    attempts: int = 0
    status: int | None = None
    request_id: str | None = None


#: The direct call that the current task makes.
_CALL: Final[ContextVar[_Call | None]] = ContextVar("adp_async call", default=None)


def are_calls_watched() -> bool:
    """Whether anybody is told of direct calls, or of the one that a request belongs to."""
    return bool(watching.on_call_started or watching.on_call_ended or watching.on_attempt)


async def watched_call(endpoint: Endpoint, base_url: str, doing: Awaitable[T]) -> T:
    """Await *doing*, a direct call, and tell hooks of its beginning and end."""
    url = URL(base_url)
    host, port = url.host or "", url.port
    started = CallStarted(endpoint.operation, endpoint.method, endpoint.path, host, port)
    call = _Call(started)
    watching.tell(watching.on_call_started, started)
    _CALL.set(call)
    error: BaseException | None = None
    try:
        return await doing
    except BaseException as failure:
        error = failure
        raise
    finally:
        _CALL.set(None)
        seconds = time.monotonic() - call.began
        ended = CallEnded(started, call.attempts, seconds, call.status, call.request_id, error)
        watching.tell(watching.on_call_ended, ended)
        error = None  # it holds this frame


async def watched_attempt(request: Request, asked_at: float, answering: Awaitable[Reply]) -> Reply:
    """Await *answering*, the reply to *request*, which waited for its turn since *asked_at*."""
    left_at = time.monotonic()
    known: Any = None
    error: BaseException | None = None
    try:
        known = await answering
    except BaseException as failure:
        known = error = failure
        raise
    else:
        reply: Reply = known
        return reply
    finally:
        _tell_attempt(request, known, error, left_at - asked_at, time.monotonic() - left_at)
        known = error = None


def _tell_attempt(
    request: Request, known: Any, error: BaseException | None, waited: float, seconds: float
) -> None:
    url = URL(request.url, encoded=True)
    status = getattr(known, "status", None) or None
    request_id = getattr(known, "request_id", None) or request.headers.get("opc-request-id")
    call = _CALL.get()
    if call is not None:
        call.attempts += 1
        call.status, call.request_id = status, request_id
    attempt = Attempt(
        request.operation,
        request.method,
        url.host or "",
        url.port,
        waited,
        seconds,
        status,
        request_id,
        error,
        None if call is None else call.started,
    )
    watching.tell(watching.on_attempt, attempt)


def tell_hold(error: Throttled, throttle: Throttle, now: float) -> None:
    """A 429 came, and *throttle* knows of it."""
    if watching.on_hold:
        seconds, rate = max(0.0, throttle.held_until - now), throttle.rate(now)
        hold = Hold(error.operation, seconds, error.retry_after, rate, error.request_id or None)
        watching.tell(watching.on_hold, hold)


class WatchedBatch:
    """What the answer to *batch* does to the counts of its lane; made before it is judged."""

    def __init__(self, batch: RecordBatch) -> None:
        self._batch = batch
        lane = batch.lane
        self._before = (lane.delivered, dict(lane.rejected), lane.dropped)

    def tell(self, now: float) -> None:
        """Tell hooks what is settled by it, if anything is."""
        lane = self._batch.lane
        delivered, rejected, dropped = self._before
        more = {name: count - rejected.get(name, 0) for name, count in lane.rejected.items()}
        settled = BatchSettled(
            lane.run_id,
            lane.delivered - delivered,
            {name: count for name, count in more.items() if count},
            lane.dropped - dropped,
            # (Of a dead process's records nobody knows it.)
            max(0.0, now - (self._batch.span.since or self._batch.departed_at)),
        )
        if settled.delivered or settled.rejected or settled.dropped:
            watching.tell(watching.on_batch_settled, settled)
