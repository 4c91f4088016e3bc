"""The integration with OpenTelemetry, against the real SDK with exporters in memory."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import re
import sys
from typing import TYPE_CHECKING, Any, Final

import pytest
from attrs import define
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, get_current_span

import adp_async
from adp_async import ConnectionLost, NotFound, RetryPolicy
from adp_async.instrumentation import watching
from adp_async.integrations import opentelemetry
from adp_async.testing import PLATFORM_ID, WORKSPACE, FakeBlockingSession, FakeSession

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace import ReadableSpan

    from adp_async.instrumentation import CallEnded
    from adp_async.local import LocalPlatform

BATCH: Final = "log_experiment_run_batch"
GET: Final = "get_experiment_run_by_id"
PLACE: Final = {"adp_async.platform_id": PLATFORM_ID, "adp_async.workspace": WORKSPACE}


@define
class Telemetry:
    """An application's providers, and what they have exported."""

    tracers: TracerProvider
    exporter: InMemorySpanExporter
    meters: MeterProvider
    reader: InMemoryMetricReader

    def spans(self, name: str = "") -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if name in ("", span.name)]

    def points(self, name: str) -> dict[frozenset[tuple[str, Any]], Any]:
        """The points of a metric: its value, or its count for a histogram, by attributes."""
        data = self.reader.get_metrics_data()
        found = {}
        for resource in data.resource_metrics if data is not None else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    if metric.name == f"adp_async.{name}":
                        for point in metric.data.data_points:
                            value = getattr(point, "value", None)
                            key = frozenset((point.attributes or {}).items())
                            found[key] = point.count if value is None else value  # type: ignore[union-attr]
        return found

    def value(self, name: str, **attributes: object) -> Any:
        """The value of the only point with these *attributes*."""
        wanted = {key.replace("__", "."): value for key, value in attributes.items()}
        found = [
            value for key, value in self.points(name).items() if wanted.items() <= dict(key).items()
        ]
        assert len(found) == 1, (name, self.points(name))
        return found[0]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests may have left sessions open in this process."""
    monkeypatch.setattr(watching, "_sessions", {})


@pytest.fixture
def providers() -> Iterator[Telemetry]:
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers, meters = TracerProvider(), MeterProvider([reader])
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    yield Telemetry(tracers, exporter, meters, reader)
    tracers.shutdown()
    meters.shutdown()


@pytest.fixture
def telemetry(providers: Telemetry) -> Iterator[Telemetry]:
    """The providers, with the integration on."""
    with opentelemetry.instrument(
        tracer_provider=providers.tracers, meter_provider=providers.meters
    ):
        yield providers


# ------------------------------------------------------------------ spans


async def test_a_call_is_a_span_below_the_callers(telemetry: Telemetry) -> None:
    """Named by its operation, with the attributes of the semantic conventions."""
    tracer = telemetry.tracers.get_tracer("application")
    async with FakeSession(endpoint="https://aidp.example.com:8443") as session:
        run_id = session.add_run()
        with tracer.start_as_current_span("request") as parent:
            await session.runs.get(run_id)
            assert get_current_span() is parent

    (span,) = telemetry.spans(GET)
    assert span.parent == parent.get_span_context()
    assert span.kind is SpanKind.CLIENT
    assert span.status.status_code is StatusCode.UNSET
    assert dict(span.attributes or {}) == {
        "rpc.system": "oci-api",
        "rpc.method": GET,
        "http.request.method": "GET",
        "server.address": "aidp.example.com",
        "server.port": 8443,
        "url.template": "mlflow/runs/get",
        "http.response.status_code": 200,
        "adp_async.request_id": "fake-1",
    }
    assert span.instrumentation_scope is not None
    assert span.instrumentation_scope.version == adp_async.__version__


async def test_concurrent_calls_keep_their_parents(telemetry: Telemetry) -> None:
    """Each task's call is below the span of that task."""
    tracer = telemetry.tracers.get_tracer("application")

    async def ask(session: FakeSession, run_id: str) -> None:
        with tracer.start_as_current_span(run_id):
            await session.runs.get(run_id)
            await session.runs.get(run_id)

    async with FakeSession() as session:
        run_ids = [session.add_run(f"r{number}") for number in range(5)]
        await asyncio.gather(*(ask(session, run_id) for run_id in run_ids))

    parents = {
        each.context.span_id: each.name for each in telemetry.spans() if each.name in run_ids
    }
    below = [parents[each.parent.span_id] for each in telemetry.spans(GET) if each.parent]
    assert sorted(below) == sorted(run_ids * 2)


async def test_what_a_call_does_is_below_its_span(telemetry: Telemetry) -> None:
    """An instrumented HTTP library, or a signer, finds the call's span as its parent."""
    seen = []

    async def send(self: Any, request: Any, **options: Any) -> Any:
        seen.append(get_current_span())
        return await usual(self, request, **options)

    async with FakeSession() as session:
        run_id = session.add_run()
        kind = type(session.service)
        usual = kind.send
        try:
            kind.send = send  # type: ignore[method-assign]
            await session.runs.get(run_id)
        finally:
            kind.send = usual  # type: ignore[method-assign]
    (span,) = telemetry.spans(GET)
    assert [each.get_span_context() for each in seen] == [span.context]


def test_the_blocking_face(telemetry: Telemetry) -> None:
    """The call runs in another thread, and its span is below the caller's all the same."""
    tracer = telemetry.tracers.get_tracer("application")
    with FakeBlockingSession() as session:
        run_id = session.session.add_run()
        with tracer.start_as_current_span("script") as parent:
            session.runs.get(run_id)
    (span,) = telemetry.spans(GET)
    assert span.parent == parent.get_span_context()


async def test_retries_are_events(telemetry: Telemetry) -> None:
    """One span for the call, with an event for each attempt that failed."""
    async with FakeSession() as session:
        run_id = session.add_run()
        session.answer(GET, status=503, times=2)
        await session.runs.get(run_id)

    (span,) = telemetry.spans(GET)
    attributes = dict(span.attributes or {})
    assert attributes["http.request.resend_count"] == 2
    assert attributes["http.response.status_code"] == 200
    assert "error.type" not in attributes
    assert [(each.name, dict(each.attributes or {})) for each in span.events] == [
        ("failed attempt", {"http.response.status_code": 503, "error.type": "503"})
    ] * 2


@pytest.mark.parametrize(
    ("answer", "error_type"), [(None, "404"), (ConnectionLost("gone"), "ConnectionLost")]
)
async def test_a_call_that_fails(
    answer: Exception | None, error_type: str, telemetry: Telemetry
) -> None:
    """Its span is an error; the type is the status, or that of the exception."""
    async with FakeSession(retry=RetryPolicy(max_attempts=1)) as session:
        if answer is not None:
            session.answer(GET, answer)
        with pytest.raises((NotFound, ConnectionLost)):
            await session.runs.get("nobody")
    (span,) = telemetry.spans(GET)
    assert span.status.status_code is StatusCode.ERROR
    assert dict(span.attributes or {})["error.type"] == error_type


async def test_a_call_that_is_cancelled(telemetry: Telemetry) -> None:
    """Its span ends, and the caller's context is back."""
    tracer = telemetry.tracers.get_tracer("application")
    async with FakeSession(retry=RetryPolicy(first_backoff=60.0)) as session:
        session.answer(GET, status=503)
        with tracer.start_as_current_span("request") as parent:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await session.runs.get("r")
            assert get_current_span() is parent
    (span,) = telemetry.spans(GET)
    assert dict(span.attributes or {})["error.type"] == "CancelledError"


async def test_a_batch_has_no_parent(telemetry: Telemetry) -> None:
    """Its records are many callers': it is a span of its own, wherever the session was opened."""
    tracer = telemetry.tracers.get_tracer("application")
    with tracer.start_as_current_span("start-up"):
        async with FakeSession() as session:
            session.answer(BATCH, status=503, times=1)
            run = session.attach_run(session.add_run())
            run.log_metric("loss", 0.5)
            await run.flush()
    failed, delivered = telemetry.spans(BATCH)
    assert failed.parent is delivered.parent is None
    assert failed.context.trace_id != delivered.context.trace_id
    assert (failed.attributes or {})["error.type"] == "503"
    assert delivered.status.status_code is StatusCode.UNSET
    assert failed.start_time is not None
    assert failed.end_time is not None
    assert delivered.start_time is not None
    assert failed.start_time <= failed.end_time <= delivered.start_time


@pytest.mark.parametrize(("spans", "batch_spans"), [(False, True), (True, False)])
async def test_spans_can_be_left_out(spans: bool, batch_spans: bool, providers: Telemetry) -> None:
    """All of them, or those of batches."""
    given: Any = {"tracer_provider": providers.tracers, "meter_provider": providers.meters}
    with opentelemetry.instrument(**given, spans=spans, batch_spans=batch_spans):
        async with FakeSession() as session:
            run = session.attach_run(session.add_run())
            run.log_metric("loss", 0.5)
            await run.flush()
            await session.runs.get(run.run_id)
        assert providers.value("records.delivered") == 1
    assert len(providers.spans(BATCH)) == 0
    assert len(providers.spans(GET)) == spans


# ------------------------------------------------------------------ metrics


async def until_it_is(status: str, session: FakeSession) -> None:
    async with asyncio.timeout(60):
        while session.health().status != status:  # noqa: ASYNC110 - it is looked at from outside
            await asyncio.sleep(0.005)


async def test_counts_are_those_of_the_session(telemetry: Telemetry) -> None:
    """Accepted, delivered, rejected and waiting add up, while it is open and afterwards."""
    async with FakeSession() as session:
        run = session.attach_run(session.add_run())
        run.log_params({"lr": 0.1, "seed": 1})
        await run.flush()
        run.log_params({"lr": 0.2, "seed": 1, "depth": 3})
        assert await run.try_flush() is not None
        session.logger._delivery.accumulator.rejections.take(None)
        stats = session.logger.stats()
        assert telemetry.points("records.accepted") == {frozenset(PLACE.items()): 5}
        assert telemetry.value("records.delivered") == stats.delivered == 4
        assert telemetry.value("records.rejected", error__type="BadRequest") == 1
        assert telemetry.value("records.dropped") == 0
        assert sum(telemetry.points("records.waiting").values()) == 0

    async with FakeSession() as other:
        run = other.attach_run(other.add_run())
        run.log_metric("loss", 1.0)
        await run.flush()
        assert telemetry.value("records.accepted") == 6, "what a closed session counted is kept"
    assert telemetry.value("records.accepted") == 6
    assert telemetry.value("records.delivered") == 5
    assert telemetry.value("records.rejected") == 1


async def test_an_outage_shows(telemetry: Telemetry) -> None:
    """Records wait, the oldest grows old, delivery fails; and all is well again."""
    async with FakeSession() as session:
        script = session.answer(BATCH, status=503)
        run = session.attach_run(session.add_run())
        run.log_metrics({"loss": 0.5, "acc": 0.25})
        await until_it_is("failing", session)
        assert sum(telemetry.points("records.waiting").values()) == 2
        assert 0.0 < telemetry.value("records.age") < 10.0
        assert telemetry.value("delivery.health", adp_async__health="failing") == 1
        assert telemetry.value("delivery.health", adp_async__health="ok") == 0
        script.left = 0
        await run.flush()
        assert sum(telemetry.points("records.waiting").values()) == 0
        assert telemetry.value("records.age") == 0.0
        assert telemetry.value("delivery.health", adp_async__health="ok") == 1
        assert telemetry.value("delivery.duration") == 1
        failed = telemetry.value("requests", rpc__method=BATCH, error__type="503")
        assert failed == script.given
        assert telemetry.value("requests", rpc__method=BATCH, http__response__status_code=200) == 1
        assert sum(telemetry.points("request.duration").values()) == session.logger.stats().requests
    assert telemetry.points("delivery.health") == {}, "no session is open"


async def test_a_hold_shows(telemetry: Telemetry) -> None:
    """How many 429s there were, and how long nobody may send."""
    async with FakeSession(close_timeout=0.2) as session:
        session.answer(BATCH, status=429, headers={"retry-after": "60"})
        run = session.attach_run(session.add_run())
        assert telemetry.value("hold") == 0.0
        run.log_metric("loss", 0.5)
        await until_it_is("holding", session)
        assert session._engine.thread is not None
        await session._engine.thread.run(asyncio.sleep(0))  # it is counted a moment later
        assert 50.0 < telemetry.value("hold") <= 75.0
        assert telemetry.value("throttled", rpc__method=BATCH) == session.logger.stats().throttled
        run.discard()
        assert telemetry.value("records.dropped") == 1


async def test_a_session_that_is_open_already(providers: Telemetry) -> None:
    """It is counted as well, whenever the application sets OpenTelemetry up."""
    async with FakeSession() as session:
        run = session.attach_run(session.add_run())
        await run.log_metric("loss", 0.5)
        with opentelemetry.instrument(meter_provider=providers.meters):
            assert providers.value("records.delivered") == 1


async def test_undone(providers: Telemetry) -> None:
    """Nothing is reported any more, and a call that is under way is not harmed."""
    handle = opentelemetry.instrument(
        tracer_provider=providers.tracers, meter_provider=providers.meters
    )
    async with FakeSession() as session:
        run_id = session.add_run()
        await session.runs.get(run_id)
        handle.undo()
        handle.undo()
        await session.runs.get(run_id)
        assert len(providers.spans(GET)) == 1
        assert providers.points("records.accepted") == {}


async def test_set_up_in_the_middle_of_a_call(providers: Telemetry) -> None:
    """The call that was under way has no span, and ends as it would have."""
    async with FakeSession(retry=RetryPolicy(first_backoff=0.1, max_backoff=0.1)) as session:
        run_id = session.add_run()
        session.answer(GET, status=503, times=1)

        class Early:
            def on_call_ended(self, ended: CallEnded) -> None:
                """Somebody else watches already."""

        with adp_async.instrument(Early()):
            calling = asyncio.ensure_future(session.runs.get(run_id))
            await asyncio.sleep(0.01)
            with opentelemetry.instrument(tracer_provider=providers.tracers):
                run = await calling
    assert run.info.run_id == run_id
    assert providers.spans(GET) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
async def test_a_forked_child(telemetry: Telemetry) -> None:
    """What the parent has counted is not reported by the child as well."""
    async with FakeSession() as session:
        run = session.attach_run(session.add_run())
        await run.log_metric("loss", 0.5)
        assert session._engine.thread is not None
        await session._engine.thread.run(asyncio.sleep(0))  # it holds no lock at the fork
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(writing, b"%d" % len(telemetry.points("records.accepted")))
            os._exit(0)
        os.waitpid(pid, 0)  # noqa: ASYNC222 - it ends at once
        assert os.read(reading, 9) == b"0"
        os.close(reading)
        os.close(writing)
        assert telemetry.value("records.accepted") == 1


async def test_over_a_socket(bare_platform: LocalPlatform, telemetry: Telemetry) -> None:
    """With signatures and a real server: address, port and request id are those of the wire."""
    async with bare_platform.session() as session, session.start_run("digits") as run:
        run.log_metric("loss", 0.5)
        await run.flush()
    (span,) = telemetry.spans("create_experiment_run")
    attributes = dict(span.attributes or {})
    assert f"{attributes['server.address']}:{attributes['server.port']}" in bare_platform.endpoint
    assert attributes["adp_async.request_id"]
    assert telemetry.value("records.delivered") == 1


async def test_the_table_of_metrics_is_complete(telemetry: Telemetry) -> None:
    """The module's table names every metric that a busy session makes."""
    async with FakeSession() as session:
        session.answer(BATCH, status=429, headers={"retry-after": "0.01"}, times=1)
        refusal = {"error_code": "INVALID_PARAMETER_VALUE", "message": "no"}
        session.answer(BATCH, refusal, status=400, times=1)
        run = session.attach_run(session.add_run())
        run.log_metric("loss", 0.5)
        assert await run.try_flush() is not None
        session.logger._delivery.accumulator.rejections.take(None)
        run.log_metric("acc", 0.25)
        await run.flush()
        data = telemetry.reader.get_metrics_data()
    assert data is not None
    made = {
        metric.name
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    told = set(re.findall(r"^`(adp_async\.[\w.]+)`", inspect.getdoc(opentelemetry) or "", re.M))
    assert made == told


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of the import names the extra."""
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.delitem(sys.modules, "adp_async.integrations.opentelemetry")
    with pytest.raises(ImportError, match=r"pip install 'adp-async\[opentelemetry\]'"):
        importlib.import_module("adp_async.integrations.opentelemetry")
