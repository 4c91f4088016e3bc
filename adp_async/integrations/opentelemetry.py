"""Metrics and traces of what the client does, for OpenTelemetry.

::

    from adp_async.integrations import opentelemetry

    opentelemetry.instrument()          # with the providers that the application has set

Call it once, before or after sessions are opened; it is about all sessions of the process.

Each direct call is a span of kind CLIENT, named by its operation, whose parent is the caller's
span; what an instrumented aiohttp adds is below it.  A log-batch, and a request of an upload, is a
span of its own without a parent, since it is made of what many callers logged.

===============================  ==============================  ===============================
metric                           instrument                      attributes
===============================  ==============================  ===============================
`adp_async.records.accepted`     counter
`adp_async.records.delivered`    counter
`adp_async.records.rejected`     counter                         `error.type`
`adp_async.records.dropped`      counter
`adp_async.records.waiting`      up-down counter                 `adp_async.place`: ``memory``,
                                                                 ``in_flight``, ``disk``
`adp_async.records.age`          gauge, s: the oldest waiting
`adp_async.delivery.health`      gauge: 1 for the current one    `adp_async.health`: ``ok``,
                                                                 ``holding``, ``failing``
`adp_async.delivery.duration`    histogram, s: from logging
                                 to delivery, by batch
`adp_async.requests`             counter                         `rpc.method`, `error.type`,
                                                                 `http.response.status_code`,
                                                                 `server.address`
`adp_async.request.duration`     histogram, s                    as `adp_async.requests`
`adp_async.throttled`            counter: 429s                   `rpc.method`
`adp_async.hold`                 gauge, s: what is left of the
                                 hold after a 429
===============================  ==============================  ===============================

Those of records and delivery have `adp_async.platform_id` and `adp_async.workspace` as well, but
for the histogram.  The counts of a closed session are kept, so that counters never fall.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Final, Self

import attrs

import adp_async
from adp_async import Stats
from adp_async.integrations._shared import missing

try:
    from opentelemetry import context, metrics, trace
    from opentelemetry.metrics import Observation
    from opentelemetry.trace import SpanKind, Status, StatusCode
except ImportError as error:
    raise missing("opentelemetry", error) from None

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextvars import Token

    from opentelemetry.context import Context
    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider
    from opentelemetry.trace import Span, TracerProvider

    from adp_async.instrumentation import (
        Attempt,
        BatchSettled,
        CallEnded,
        CallStarted,
        Hold,
        SessionClosed,
        SessionOpened,
    )

__all__ = ["OpenTelemetry", "instrument"]

#: Seconds, where the SDK's own boundaries are meant for milliseconds.
BOUNDARIES: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600)
SYSTEM: Final = "oci-api"
HEALTH: Final = ("ok", "holding", "failing")

_Attributes = dict[str, str | int]
#: Platform and workspace: what the counts are kept by.
_Place = tuple[str, str]


def instrument(
    *,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    spans: bool = True,
    batch_spans: bool = True,
) -> OpenTelemetry:
    """Report to OpenTelemetry what all sessions of this process do; returns what undoes it.

    *tracer_provider* and *meter_provider*: those of the application by default.  *spans*: make
    spans at all; *batch_spans*: also for log-batches and uploads, which have no parent.
    """
    meter = metrics.get_meter("adp_async", adp_async.__version__, meter_provider)
    hooks: list[object] = [sessions := _Sessions(), requests := _Requests(meter)]
    if spans:
        tracer = trace.get_tracer("adp_async", adp_async.__version__, tracer_provider)
        hooks.append(_Spans(tracer, batches=batch_spans))
    return OpenTelemetry(hooks, _Observed(meter, sessions, requests))


class OpenTelemetry:
    """What `instrument` returns: `undo` ends it, as does the end of a ``with``."""

    def __init__(self, hooks: Iterable[object], observed: _Observed) -> None:
        self._observed = observed
        self._handles = [adp_async.instrument(each) for each in hooks]

    def undo(self) -> None:
        """Report nothing more.  Harmless when done before."""
        for handle in self._handles:
            handle.undo()
        self._observed.is_over = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()


# ------------------------------------------------------------------ traces


class _Spans:
    """Hooks that make spans."""

    def __init__(self, tracer: trace.Tracer, *, batches: bool) -> None:
        self._tracer = tracer
        self._batches = batches
        #: Calls under way: their spans, and what puts the caller's context back.
        self._open: dict[CallStarted, tuple[Span, Token[Context]]] = {}

    def on_call_started(self, call: CallStarted) -> None:
        attributes = {**_asked(call), "url.template": call.path}
        span = self._tracer.start_span(call.operation, kind=SpanKind.CLIENT, attributes=attributes)
        # In the task of the call, so that what it does is below this span.
        self._open[call] = span, context.attach(trace.set_span_in_context(span))

    def on_call_ended(self, ended: CallEnded) -> None:
        if ended.started not in self._open:  # it began before we were there
            return
        span, token = self._open.pop(ended.started)
        context.detach(token)
        if ended.attempts > 1:
            span.set_attribute("http.request.resend_count", ended.attempts - 1)
        _finish(span, ended)
        span.end()

    def on_attempt(self, attempt: Attempt) -> None:
        if attempt.call is None:
            if self._batches:
                self._past_span(attempt)
        elif attempt.error is not None and attempt.call in self._open:
            self._open[attempt.call][0].add_event("failed attempt", _replied(attempt))

    def _past_span(self, attempt: Attempt) -> None:
        now = time.time_ns()
        span = self._tracer.start_span(
            attempt.operation,
            context=context.Context(),
            kind=SpanKind.CLIENT,
            attributes=_asked(attempt),
            start_time=now - int(attempt.seconds * 1e9),
        )
        _finish(span, attempt)
        span.end(now)


def _finish(span: Span, ended: CallEnded | Attempt) -> None:
    span.set_attributes(_replied(ended))
    if ended.request_id:
        span.set_attribute("adp_async.request_id", ended.request_id)
    if ended.error is not None:
        span.set_status(Status(StatusCode.ERROR, str(ended.error)))


# ------------------------------------------------------------------ metrics


class _Requests:
    """Hooks that count requests, batches and holds."""

    def __init__(self, meter: Meter) -> None:
        self._requests = meter.create_counter(
            "adp_async.requests", "{request}", "Requests that were answered, or failed."
        )
        self._throttled = meter.create_counter(
            "adp_async.throttled", "{request}", "Requests that were answered 429."
        )
        self._request_duration = _histogram(
            meter, "adp_async.request.duration", "From sending a request to its reply."
        )
        self._delivery_duration = _histogram(
            meter, "adp_async.delivery.duration", "From logging a batch's first record to delivery."
        )
        self._held_until = 0.0

    @property
    def held(self) -> float:
        """Seconds that are left of the last hold."""
        return max(0.0, self._held_until - time.monotonic())

    def on_attempt(self, attempt: Attempt) -> None:
        attributes = {
            "rpc.method": attempt.operation,
            "server.address": attempt.server_address,
            **_replied(attempt),
        }
        self._requests.add(1, attributes)
        self._request_duration.record(attempt.seconds, attributes)

    def on_batch_settled(self, settled: BatchSettled) -> None:
        if settled.delivered:
            self._delivery_duration.record(settled.seconds)

    def on_hold(self, hold: Hold) -> None:
        self._held_until = time.monotonic() + hold.seconds
        self._throttled.add(1, {"rpc.method": hold.operation})


def _histogram(meter: Meter, name: str, what: str) -> metrics.Histogram:
    return meter.create_histogram(name, "s", what, explicit_bucket_boundaries_advisory=BOUNDARIES)


class _Sessions:
    """Hooks that keep an eye on open sessions, and sums of those that are closed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[SessionOpened, None] = {}
        self._ended: dict[_Place, Stats] = {}
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        """In a forked child: the parent reports them."""
        self._lock = threading.Lock()
        self._open, self._ended = {}, {}

    def on_session_opened(self, session: SessionOpened) -> None:
        with self._lock:
            self._open[session] = None

    def on_session_closed(self, closed: SessionClosed) -> None:
        place = _place_of(closed.session)
        # What is still undelivered is the next session's.
        left = attrs.evolve(closed.stats, waiting=0, in_flight=0, spooled=0, oldest=0.0)
        with self._lock:
            self._open.pop(closed.session, None)
            self._ended[place] = _sum(self._ended.get(place, Stats()), left)

    def open(self) -> list[SessionOpened]:
        with self._lock:
            return list(self._open)

    def counts(self) -> dict[_Place, Stats]:
        """The counts of all sessions, open and closed, by platform and workspace."""
        with self._lock:
            counts, sessions = dict(self._ended), list(self._open)
        for session in sessions:
            place = _place_of(session)
            counts[place] = _sum(counts.get(place, Stats()), session.stats())
        return counts


def _place_of(session: SessionOpened) -> _Place:
    return session.platform_id, session.workspace or ""


def _sum(one: Stats, other: Stats) -> Stats:
    rejected = {
        name: one.rejected.get(name, 0) + other.rejected.get(name, 0)
        for name in {*one.rejected, *other.rejected}
    }
    return Stats(
        accepted=one.accepted + other.accepted,
        delivered=one.delivered + other.delivered,
        rejected=rejected,
        dropped=one.dropped + other.dropped,
        waiting=one.waiting + other.waiting,
        in_flight=one.in_flight + other.in_flight,
        spooled=one.spooled + other.spooled,
        oldest=max(one.oldest, other.oldest),
    )


class _Observed:
    """The instruments that are read when somebody collects."""

    def __init__(self, meter: Meter, sessions: _Sessions, requests: _Requests) -> None:
        #: An instrument cannot be taken back; from then on it has nothing to say.
        self.is_over = False
        self._sessions, self._requests = sessions, requests
        for name, read, what in (
            ("accepted", self._count("accepted"), "Records that were accepted."),
            ("delivered", self._count("delivered"), "Records that the service has taken."),
            ("rejected", self._rejected, "Records that the service has refused."),
            ("dropped", self._count("dropped"), "Records that found no room, or were given up."),
        ):
            meter.create_observable_counter(
                f"adp_async.records.{name}", [self._callback(read)], "{record}", what
            )
        meter.create_observable_up_down_counter(
            "adp_async.records.waiting",
            [self._callback(self._waiting)],
            "{record}",
            "Records that are still on their way.",
        )
        for name, read, unit, what in (
            ("records.age", self._age, "s", "How long the oldest record has waited."),
            ("delivery.health", self._health, "1", "Whether delivery works."),
            ("hold", self._hold, "s", "What is left of the hold after a 429."),
        ):
            meter.create_observable_gauge(f"adp_async.{name}", [self._callback(read)], unit, what)

    def _callback(
        self, read: Callable[[], Iterable[Observation]]
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterable[Observation]:
            return [] if self.is_over else read()

        return observe

    def _count(self, name: str) -> Callable[[], Iterator[Observation]]:
        def read() -> Iterator[Observation]:
            for place, stats in self._sessions.counts().items():
                yield Observation(getattr(stats, name), _named(place))

        return read

    def _rejected(self) -> Iterator[Observation]:
        for place, stats in self._sessions.counts().items():
            for name, count in stats.rejected.items():
                yield Observation(count, {**_named(place), "error.type": name})

    def _waiting(self) -> Iterator[Observation]:
        for place, stats in self._sessions.counts().items():
            where = {"memory": stats.waiting, "in_flight": stats.in_flight, "disk": stats.spooled}
            for name, count in where.items():
                yield Observation(count, {**_named(place), "adp_async.place": name})

    def _age(self) -> Iterator[Observation]:
        for place, stats in self._sessions.counts().items():
            yield Observation(stats.oldest, _named(place))

    def _health(self) -> Iterator[Observation]:
        worst: dict[_Place, int] = {}
        for session in self._sessions.open():
            place, state = _place_of(session), HEALTH.index(session.health().status)
            worst[place] = max(state, worst.get(place, 0))
        for place, state in worst.items():
            for number, name in enumerate(HEALTH):
                attributes = {**_named(place), "adp_async.health": name}
                yield Observation(int(number == state), attributes)

    def _hold(self) -> Iterator[Observation]:
        yield Observation(self._requests.held)


# ------------------------------------------------------------------ attributes


def _named(place: _Place) -> _Attributes:
    platform_id, workspace = place
    return {"adp_async.platform_id": platform_id, "adp_async.workspace": workspace}


def _asked(asked: CallStarted | Attempt) -> _Attributes:
    """What is known of a request before it leaves, by the names of the semantic conventions."""
    attributes: _Attributes = {
        "rpc.system": SYSTEM,
        "rpc.method": asked.operation,
        "http.request.method": asked.method,
        "server.address": asked.server_address,
    }
    if asked.server_port is not None:
        attributes["server.port"] = asked.server_port
    return attributes


def _replied(answered: CallEnded | Attempt) -> _Attributes:
    """What is known when it is answered: the status, and the error's type if it is one."""
    attributes: _Attributes = {}
    if answered.status is not None:
        attributes["http.response.status_code"] = answered.status
    if answered.error is not None:
        status = getattr(answered.error, "status", None) or 0
        name = str(status) if status >= 400 else type(answered.error).__name__
        attributes["error.type"] = name
    return attributes
