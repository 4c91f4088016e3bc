"""A collector in trouble: its service, its disk and its own mistakes, as workers see them."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from attrs import define, evolve, field
from children import until
from test_collector import ROOT, TOKEN, metric, opened, told

from adp_async import CustomSigner, Session
from adp_async._io.spool_aside import Aside
from adp_async._io.spool_file import SpoolError
from adp_async.collector import Carrier
from adp_async.collector import collector as collectors
from adp_async.collector.certificate import Certificate
from adp_async.collector.collector import Collector
from adp_async.collector.ledger import Ledger
from adp_async.collector.ranks import find_rank, find_task
from adp_async.collector.session import DEFAULTS
from adp_async.errors import (
    AdpError,
    ConfigurationError,
    Conflict,
    ConnectionFailed,
    ConnectionLost,
    RequestTimeout,
)
from adp_async.testing import PLATFORM_ID, FakeBlockingSession, FakeService

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping
    from pathlib import Path

    from test_collector import Bench

    from adp_async._sansio.messages import Reply

LOG_BATCH = "log_experiment_run_batch"
GET_RUN = "get_experiment_run_by_id"


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with opened(tmp_path / "spool") as bench:
        yield bench


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adp_async.collector.handler.LONGEST_WAIT", 0.05)


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeBlockingSession]:
    with FakeBlockingSession(spool=tmp_path / "spool") as session:
        yield session


# ------------------------------------------------------------------ requests


async def test_a_mistake_of_the_collector_is_an_answer(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """500, so that the worker keeps its records; the collector's log has the traceback."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Ledger, "worker", fail)
    reply = await bench.log(metric(), token="t1")

    assert told(reply) == (500, "InternalError", "the collector failed")
    assert "ZeroDivisionError" in caplog.text
    assert TOKEN not in caplog.text


async def test_an_empty_log_batch(bench: Bench) -> None:
    """It is right, and nothing follows from it."""
    assert told(await bench.log(token="t1"))[0] == 200
    await bench.session.logger.flush()

    assert bench.session.requests == []
    assert not bench.collector.handler.ledger.knows(f"t1 {bench.run_id}")


async def test_a_token_that_is_none(bench: Bench) -> None:
    """The rule is named, and nothing is taken."""
    reply = await bench.log(metric(), token="t" * 65)
    assert told(reply)[:2] == (400, "INVALID_PARAMETER_VALUE")
    assert "retry" in told(reply)[2]
    assert bench.collector.stats().taken == 0


@pytest.mark.parametrize("path", ["mlflow/runs/log-batch", "mlflow/runs/set-tag"])
async def test_a_run_that_is_not_named(bench: Bench, path: str) -> None:
    """A handle of one run is no reason to guess."""
    reply = await bench.send(path, {"key": "a", "value": "b"})
    assert told(reply)[:2] == (400, "INVALID_PARAMETER_VALUE")
    assert "run_id" in told(reply)[2]


async def test_a_run_that_cannot_be_one(tmp_path: Path) -> None:
    """Its id is checked as the session checks it, also where any run is allowed."""
    async with opened(tmp_path, whole=True) as bench:
        body = {"run_id": "a\nb", "metrics": [metric()]}
        reply = await bench.send("mlflow/runs/log-batch", body)
        assert told(reply)[:2] == (400, "INVALID_PARAMETER_VALUE")
        assert "run" in told(reply)[2]


async def test_a_request_that_is_sent_again_while_it_waits_for_room() -> None:
    """Both wait, both are answered, and its records are taken once."""
    async with opened(buffer_limit=2000, overflow="drop") as bench:
        script = bench.session.answer(LOG_BATCH, status=503)
        full = asyncio.create_task(bench.log(*(metric(step=n) for n in range(20)), token="t1"))
        await until(lambda: bench.collector.handler.ledger.knows(f"t1 {bench.run_id}"))
        twice = [asyncio.create_task(bench.log(metric(step=99), token="t2")) for _ in range(2)]
        await until(lambda: bench.collector.handler.ledger.workers["w1"].batches == 3)
        script.left = script.given

        assert [reply.status for reply in await asyncio.gather(full, *twice)] == [200] * 3
        assert sorted(bench.steps()) == [*range(20), 99]


async def test_a_session_of_a_whole_platform() -> None:
    """Without a workspace it answers for what belongs to the platform, and for no run."""
    service = FakeService()
    knobs: Any = {"endpoint": "http://localhost", "auth": CustomSigner(print), "spool": False}
    async with Session(PLATFORM_ID, None, transport=lambda _: service, **knobs) as session:
        handler = Collector(session._engine, None, token=TOKEN).handler
        headers = {"authorization": f"Bearer {TOKEN}"}
        reply = await handler.handle("POST", f"{ROOT}mlflow/runs/log-batch", headers, b"{}")
    assert told(reply)[:2] == (404, "NotAuthorizedOrNotFound")
    assert service.requests == []


# ------------------------------------------------------------------ the service


@pytest.mark.usefixtures("impatient")
async def test_a_service_that_does_not_answer_in_time(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """504 without a code: it is not the service that says so."""
    never = asyncio.Event()

    async def wait(*_: object, **__: object) -> None:
        await never.wait()

    monkeypatch.setattr(bench.session._engine.batches.transport, "send", wait)
    reply = await bench.send(f"mlflow/runs/get?run_id={bench.run_id}", method="GET")
    assert told(reply) == (504, "", "no answer within 0.05 s")


async def test_a_quota_that_is_far_beyond_is_handed_back(bench: Bench) -> None:
    """A worker hears of a 429 whose Retry-After is longer than it would wait for the answer."""
    answer = {"code": "TooManyRequests", "message": "tomorrow"}
    bench.session.answer(GET_RUN, answer, status=429, headers={"retry-after": "90"})
    reply = await bench.send(f"mlflow/runs/get?run_id={bench.run_id}", method="GET")
    assert told(reply) == (429, "TooManyRequests", "tomorrow")
    assert reply.headers["retry-after"] == "90"


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (ConnectionFailed("nobody is there"), 503),
        (ConnectionLost("it is gone"), 504),
        (RequestTimeout("no reply"), 504),
    ],
)
async def test_a_service_that_cannot_be_reached(
    bench: Bench, failure: AdpError, status: int
) -> None:
    """503 where nothing was sent, 504 where that is not known; and why."""
    bench.session.answer(GET_RUN, failure)
    reply = await bench.send(f"mlflow/runs/get?run_id={bench.run_id}", method="GET")
    assert told(reply) == (status, "", str(failure))


@pytest.mark.usefixtures("impatient")
def test_a_flush_asks_until_the_service_has_it(fake: FakeBlockingSession) -> None:
    """However often the collector has to say that it is not settled yet."""
    run = fake.attach_run(fake.session.add_run())
    script = fake.session.answer(LOG_BATCH, status=503)
    shared = run.shared()
    with shared as handle, handle.attach() as worker:
        worker.log_metric("loss", 0.5)
        worker.flush()
        flushing = threading.Thread(target=lambda: worker.flush(delivered=True))
        before = shared._collector.handler.by_status[200]
        flushing.start()
        deadline = threading.Event()
        while shared._collector.handler.by_status[200] < before + 2:
            assert not deadline.wait(0.01)
            assert flushing.is_alive(), "it is not delivered"
        script.left = script.given
        flushing.join(30)
        assert not flushing.is_alive()
    assert [each.step for each in fake.session.received(run.run_id).metrics] == [0]


# ------------------------------------------------------------------ opening


async def test_records_of_a_collector_before_this_one_are_searched_first(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where that takes too long it does not open: it would take the same records twice."""
    monkeypatch.setattr(collectors, "LONGEST_SEARCH", 0.02)
    engine = bench.session._engine
    searching = SimpleNamespace(searched=asyncio.Event())
    monkeypatch.setattr(engine, "recoveries", searching)
    with pytest.raises(ConfigurationError, match="search for records left behind"):
        await bench.collector.prepare()


def test_a_machine_without_a_network(
    fake: FakeBlockingSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The handle has its name where it has no address that leads out of it."""
    import socket

    class Nowhere(socket.socket):
        def connect(self, address: Any) -> None:
            if address[0] == "192.0.2.1":
                raise OSError(101, "Network is unreachable")
            super().connect(address)

    monkeypatch.setattr(collectors.socket, "socket", Nowhere)
    monkeypatch.setattr(collectors.socket, "gethostname", lambda: "driver.example")
    with fake.start_run() as run, run.shared("0.0.0.0") as handle:
        assert handle.address.startswith("https://driver.example:")


@pytest.mark.parametrize("place", ["/sys/adp-async", "/a\0b"])
def test_a_socket_that_cannot_be_there(fake: FakeBlockingSession, place: str) -> None:
    """The place is named, and the run goes on unshared."""
    with fake.start_run() as run:
        with pytest.raises(ConfigurationError, match=r"listen"):
            run.shared(place).__enter__()
        run.log_metric("loss", 0.5)
    assert len(fake.session.received(run.run_id).metrics) == 1


def test_a_certificate_is_kept(tmp_path: Path) -> None:
    """Who has a handle goes on when the agent is started again."""
    path = tmp_path / "certificate.pem"
    first, again = Certificate.kept_in(path), Certificate.kept_in(path)
    assert first.fingerprint == again.fingerprint
    assert path.stat().st_mode & 0o077 == 0
    assert again.context().cert_store_stats() is not None


# ------------------------------------------------------------------ attempts

OF_A_TASK = {"x_adp_task": "part%201", "x_adp_attempt": "a"}


async def hold(bench: Bench, *steps: int, token: str = "t1", **headers: str) -> Reply:
    body = {"run_id": bench.run_id, "metrics": [metric(step=step) for step in steps]}
    named = {**OF_A_TASK, **({"opc_retry_token": token} if token else {}), **headers}
    return await bench.send("mlflow/runs/log-batch", body, **named)


async def end(bench: Bench, how: str = "commit", **headers: str) -> Reply:
    named = {**OF_A_TASK, **headers}
    return await bench.send(f"collector/{how}", {"run_id": bench.run_id}, **named)


@pytest.mark.parametrize(
    "named", [{"x_adp_attempt": ""}, {"x_adp_attempt": "a b"}, {"x_adp_task": "t" * 501}]
)
async def test_attempts_without_a_proper_name(bench: Bench, named: dict[str, str]) -> None:
    """They could not be told from each other."""
    reply = await hold(bench, 1, **named)
    assert told(reply)[:2] == (400, "INVALID_PARAMETER_VALUE")


async def test_an_attempt_needs_tokens(bench: Bench) -> None:
    """Without, what is sent again would be held aside twice."""
    assert "opc-retry-token" in told(await hold(bench, 1, token=""))[2]


async def test_a_disk_that_fails_an_attempt(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The worker asks again, on logging and on ending; in the end all of it counts, once."""
    put, read = Aside.put, Aside.of

    def full(*_: object) -> None:
        raise SpoolError("database or disk is full")

    monkeypatch.setattr(Aside, "put", full)
    assert told(await hold(bench, 1))[:2] == (503, "NotYet")
    monkeypatch.setattr(Aside, "put", put)
    assert (await hold(bench, 1)).status == 200
    monkeypatch.setattr(Aside, "of", full)
    assert told(await end(bench))[:2] == (503, "NotYet")
    monkeypatch.setattr(Aside, "of", read)
    assert (await end(bench)).status == 200

    assert caplog.text.count("disk is full") == 2
    await bench.session.logger.flush()
    assert bench.steps() == [1]


async def test_what_comes_after_the_end_of_a_task(bench: Bench) -> None:
    """It is dropped, and counted; its attempt hears of it on ending."""
    await hold(bench, 1)
    assert (await end(bench)).status == 200
    assert (await end(bench, "abort")).status == 200, "of the one that counts: too late"
    late = {"x_adp_attempt": "b"}
    assert (await hold(bench, 2, token="t2", **late)).status == 200
    assert told(await end(bench, **late))[:2] == (409, "AlreadyCommitted")
    assert bench.collector.stats().workers["w1"].dropped == 1

    await bench.session.logger.flush()
    assert bench.steps() == [1]


async def test_two_commits_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply that was slow, and the same request again: its records are taken once."""
    await hold(bench, 1, 2)
    replies = await asyncio.gather(*(end(bench) for _ in range(4)))
    assert {reply.status for reply in replies} == {200}

    await bench.session.logger.flush()
    assert bench.steps() == [1, 2]


@pytest.mark.usefixtures("impatient")
async def test_a_commit_that_is_not_safe_yet(bench: Bench) -> None:
    """While neither the disk nor the service takes it the worker asks again."""
    await hold(bench, 1)
    script = bench.session.answer(LOG_BATCH, status=503)
    keeper = bench.session._delivery.keeper
    assert keeper is not None
    spool: Any = keeper.spool
    commit = spool.commit

    def full(*_: object) -> None:
        raise SpoolError("database or disk is full")

    spool.commit = full
    assert told(await end(bench))[:2] == (503, "NotYet")
    spool.commit = commit
    script.left = script.given
    await bench.session.logger.flush()
    assert (await end(bench)).status == 200
    assert bench.steps() == [1]


# ------------------------------------------------------------------ workers


@define(eq=False)
class Road(Carrier):
    """Carries within this process; what *instead* has for an operation happens in its place."""

    shared: Any = None
    instead: dict[str, Any] = field(factory=dict)

    async def carry(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Any:
        answer = self.instead.get(target.rpartition("/")[2])
        if isinstance(answer, list):
            answer = answer.pop() if answer else None
        if isinstance(answer, Exception):
            raise answer
        return answer or await self.shared.answer(method, target, headers, body)


def shared_by(road: Road, run: Any) -> Any:
    road.shared = run.shared(carrier=road)
    return road.shared


@pytest.mark.parametrize("failure", [ConnectionFailed("nobody listens"), ConnectionLost("cut")])
def test_a_collector_that_is_not_there_yet(
    fake: FakeBlockingSession,
    failure: AdpError,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Entering goes on after a WARNING; what is logged waits for it."""
    monkeypatch.setattr("adp_async.collector.presence.GREETING", 0.1)
    road = Road(instead={"enter": failure, "leave": failure})
    caplog.set_level(logging.DEBUG, "adp_async")
    with fake.start_run() as run, shared_by(road, run) as handle, handle.attach() as worker:
        worker.log_metric("loss", 0.5)
    assert "the collector does not answer; what is logged waits for it" in caplog.text
    assert "the collector did not hear of the end" in caplog.text
    assert len(fake.session.received(run.run_id).metrics) == 1


def test_a_commit_that_is_refused(fake: FakeBlockingSession) -> None:
    """The block raises what the collector said, and nothing of it counts."""
    refusal = 409, {"content-type": "application/json"}, b'{"code": "Other", "message": "no"}'
    road = Road(instead={"commit": refusal})
    with fake.start_run() as run, shared_by(road, run) as handle:
        with pytest.raises(Conflict, match="no"), handle.attach(**TASK) as worker:
            worker.log_metric("loss", 0.5)
        (stats,) = road.shared.stats().workers.values()
        assert (stats.taken, stats.dropped) == (0, 1)
    assert fake.session.received(run.run_id).metrics == []


TASK: dict[str, Any] = {"attempt": "part 1", "commit": "task"}


@pytest.mark.parametrize("what", ["commit", "flush"])
def test_a_collector_that_is_away_for_long(
    fake: FakeBlockingSession, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """It is asked again until the time is over, however often it does not answer."""
    quick = evolve(DEFAULTS["retry"], first_backoff=0.001, max_backoff=0.001)
    monkeypatch.setitem(DEFAULTS, "retry", quick)  # type: ignore[misc]
    left = [50]

    class Away(Road):
        async def carry(self, method: str, target: str, *more: Any) -> Any:
            if target.endswith(what) and left[0]:
                left[0] -= 1
                raise ConnectionFailed("nobody listens")
            return await super().carry(method, target, *more)

    road = Away()
    how = TASK if what == "commit" else {}
    with fake.start_run() as run:
        with shared_by(road, run) as handle, handle.attach(**how) as worker:
            worker.log_metric("loss", 0.5)
            if what == "flush":
                worker.flush(timeout=30, delivered=True)
        run.flush()
        assert not left[0]
        assert len(fake.session.received(run.run_id).metrics) == 1


def test_an_end_that_nobody_hears(
    fake: FakeBlockingSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The body's own error comes out, with a note of it; nothing of the attempt counts."""
    monkeypatch.setattr("adp_async.collector.attempt_run.GREETING", 1.0)
    road = Road(instead={"abort": ConnectionLost("cut")})

    def fail(handle: Any) -> None:
        with handle.attach(**TASK) as worker:
            worker.log_metric("loss", 0.5)
            worker.flush()
            raise ZeroDivisionError

    run = fake.attach_run(fake.session.add_run())
    with shared_by(road, run) as handle, pytest.raises(ZeroDivisionError) as caught:
        fail(handle)
    assert "cut" in "".join(caught.value.__notes__)
    assert fake.session.received(run.run_id).metrics == []


async def test_what_is_the_owner_s_alone() -> None:
    """Of both faces: a worker ends no run and uploads nothing, and says whose that is."""
    with FakeBlockingSession() as fake, fake.start_run() as run, run.shared() as handle:
        with handle.attach() as worker:
            with pytest.raises(AdpError, match="ended by the process that shares it"):
                worker.finish()
            with pytest.raises(AdpError, match="artifacts need credentials"):
                worker.log_text("text", "notes.txt")
        async with handle.attach() as other:
            with pytest.raises(AdpError, match="artifacts need credentials"):
                other.log_text("text", "notes.txt")


def test_a_param_of_another_rank_says_why_it_is_not_logged(fake: FakeBlockingSession) -> None:
    """Its receipt does, where a person looks."""
    with fake.start_run() as run, run.shared() as handle, handle.attach(rank=1) as worker:
        assert "params and tags are those of rank 0" in repr(worker.log_param("lr", 0.1))


def test_texts_of_nobody(fake: FakeBlockingSession) -> None:
    """The argument is named."""
    run = fake.attach_run(fake.session.add_run())
    with run.shared() as handle, pytest.raises(ValueError, match=r"^texts: must be 'rank0'"):
        handle.attach(texts="rank1")  # type: ignore[arg-type]


# ------------------------------------------------------------------ engines


def engine(monkeypatch: pytest.MonkeyPatch, module: str, **names: Any) -> None:
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(**names))  # type: ignore[arg-type]


def test_the_rank_that_an_engine_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that are imported, the first that knows; one that is not running says nothing."""
    context: Any = None
    engine(monkeypatch, "pyspark", TaskContext=SimpleNamespace(get=lambda: context))
    engine(monkeypatch, "ray.train", get_context=lambda: SimpleNamespace(get_world_rank=lambda: 3))
    assert find_rank({}) == 3
    context = SimpleNamespace(partitionId=lambda: 5)
    assert find_rank({}) == 5


def test_the_task_that_ray_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """None outside of a cluster, where it raises."""
    monkeypatch.delitem(sys.modules, "pyspark", raising=False)
    engine(monkeypatch, "ray", get_runtime_context=lambda: SimpleNamespace(get_task_id=lambda: "7"))
    assert find_task() == "7"

    def outside() -> Any:
        raise RuntimeError("ray is not initialized")

    engine(monkeypatch, "ray", get_runtime_context=outside)
    assert find_task() is None
