"""What Spark's accumulator carries home, without Spark; `test_cluster_engines` has the real one."""

from __future__ import annotations

import pickle
import sys
import uuid
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from test_collector import ROOT, metric

from adp_async import BadRequest, DeliveryError
from adp_async.collector import one_way
from adp_async.collector.handler import Handler
from adp_async.collector.reading import Refused
from adp_async.errors import ConfigurationError
from adp_async.integrations import spark
from adp_async.testing import FakeBlockingSession

if TYPE_CHECKING:
    from collections.abc import Iterator


class Accumulator:
    """As Spark's: a task has one of its own, whose value the driver's adds to itself."""

    def __init__(self, aid: int, value: Any, param: Any) -> None:
        self.aid, self.accum_param, self._value = aid, param, value

    def add(self, term: Any) -> None:
        self._value = self.accum_param.addInPlace(self._value, term)


class Context:
    """As much of a Spark context as is needed, and where its tasks' accumulators are."""

    def __init__(self) -> None:
        self.registry: dict[int, Accumulator] = {}

    def getConf(self) -> dict[str, str]:
        return {}

    def accumulator(self, value: Any, param: Any) -> Accumulator:
        self.drivers = Accumulator(7, value, param)
        return self.drivers

    def task_ends(self) -> None:
        """Successfully: what it has added comes home."""
        self.drivers.add(self.registry.pop(7)._value)


@pytest.fixture
def fake() -> Iterator[FakeBlockingSession]:
    with FakeBlockingSession(linger=0.01) as session:
        yield session


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> Context:
    context = Context()
    module = SimpleNamespace(Accumulator=Accumulator, _accumulatorRegistry=context.registry)
    monkeypatch.setitem(sys.modules, "pyspark", SimpleNamespace(accumulators=module))
    return context


def test_a_task(fake: FakeBlockingSession, context: Context) -> None:
    """Its records arrive when it has ended, and not before; a handle is as good in the next."""
    with fake.start_run() as run, spark.shared(run, context, accumulator=True) as handle:
        for task in range(2):
            with handle.attach() as mine:
                mine.log_metrics({f"w{task}": 0.5, "b": 1.0}, step=task)
            assert mine.stats().undelivered == 0
            run.flush()
            assert len(fake.session.received(run.run_id).metrics) == 2 * task
            context.task_ends()
            run.flush()
    keys = sorted(point.key for point in fake.session.received(run.run_id).metrics)
    assert keys == ["b", "b", "w0", "w1"]


def test_what_has_no_answer(fake: FakeBlockingSession, context: Context) -> None:
    """Whoever asks is told that nothing can be."""
    with (
        fake.start_run() as run,
        spark.shared(run, context, accumulator=True) as handle,
        handle.attach() as mine,
        pytest.raises(BadRequest, match="when its task has ended"),
    ):
        mine.flush(delivered=True)


def test_in_the_driver_itself(fake: FakeBlockingSession, context: Context) -> None:
    """There the collector answers at once."""
    with fake.start_run() as run, spark.shared(run, context, accumulator=True) as handle:
        context.registry[7] = context.drivers
        with handle.attach() as mine:
            mine.log_metric("loss", 0.5)
        run.flush()
        assert len(fake.session.received(run.run_id).metrics) == 1


def test_the_param_travels_without_the_collector(
    fake: FakeBlockingSession, context: Context
) -> None:
    """Tasks get an empty one."""
    with fake.start_run() as run, spark.shared(run, context, accumulator=True):
        home = pickle.loads(pickle.dumps(context.drivers.accum_param))
    assert home.collector is None
    assert home.zero(["something"]) == []
    assert home.addInPlace([1], [2]) == [1, 2]


def task_with(context: Context, *records: dict[str, Any], run_id: str, token: str = "") -> None:
    """A task ends that has logged these metrics in one request, whatever they are."""
    body = msgspec.json.encode({"run_id": run_id, "metrics": records})
    headers = {"authorization": f"Bearer {token}", "x-adp-worker": "host:7"}
    headers["opc-retry-token"] = uuid.uuid4().hex
    request = ("POST", f"{ROOT}mlflow/runs/log-batch", headers, body)
    context.registry[7] = Accumulator(7, [request], None)
    context.task_ends()


def test_what_the_collector_refuses(
    fake: FakeBlockingSession, context: Context, caplog: pytest.LogCaptureFixture
) -> None:
    """One bad record costs one record; it is counted, and the owner's flush tells it."""
    with fake.start_run() as run:
        with spark.shared(run, context, accumulator=True) as handle:
            good = [metric(step=step) for step in range(8)]
            good[3]["timestamp"] = 2**70
            task_with(context, *good, run_id=run.run_id, token=handle.token)
            stats = context.drivers.accum_param.collector.stats()
            assert (stats.taken, stats.rejected) == (8, 1)
            assert stats.workers["host:7"].rejected == 1
            assert run.stats().rejected == {"BadRequest": 1}
            assert run.stats().accepted == 8
        with pytest.raises(DeliveryError, match="at step 3") as caught:
            run.flush()
    assert caught.value.rejected == 1
    steps = [point.step for point in fake.session.received(run.run_id).metrics]
    assert sorted(steps) == [0, 1, 2, 4, 5, 6, 7]
    assert "the service refused 1 record of a worker that has ended: " in caplog.text


def test_a_task_of_another_run(fake: FakeBlockingSession, context: Context) -> None:
    """It is not counted as this one's."""
    with fake.start_run() as run, spark.shared(run, context, accumulator=True) as handle:
        task_with(context, metric(), run_id="another", token=handle.token)
        task_with(context, run_id=run.run_id, token=handle.token)
        run.flush()
        assert run.stats().accepted == 0


def test_a_task_that_ends_too_late(
    fake: FakeBlockingSession, context: Context, caplog: pytest.LogCaptureFixture
) -> None:
    """The block is exited: that is said, and Spark's own thread goes on."""
    with fake.start_run() as run:
        with spark.shared(run, context, accumulator=True) as handle:
            pass
        task_with(context, metric(), run_id=run.run_id, token=handle.token)
        assert run.stats().accepted == 0
    assert "what a worker has logged is lost: the collector is closed" in caplog.text


def test_a_collector_that_is_full(
    fake: FakeBlockingSession, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked again, as a worker would, for a while."""
    monkeypatch.setattr(one_way, "PAUSE", 0.0)
    monkeypatch.setattr(spark, "_PATIENCE", 0.5)
    left = [3, 10**9]

    async def until_room(self: object) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise Refused(429, "TooManyRequests", "the collector is full", retry_after=1)

    monkeypatch.setattr(Handler, "_until_room", until_room)
    with fake.start_run() as run:
        with spark.shared(run, context, accumulator=True) as handle:
            task_with(context, metric(), run_id=run.run_id, token=handle.token)
            run.flush()
            assert run.stats().delivered == 1
            del left[0]
            task_with(context, metric(step=1), metric(), run_id=run.run_id, token=handle.token)
        with pytest.raises(DeliveryError, match="the collector is full"):
            run.flush()
    assert run.stats().rejected == {"Throttled": 2}


def test_a_driver_elsewhere(fake: FakeBlockingSession) -> None:
    """Of Spark Connect there is no context here: the error says what to do."""
    with (
        fake.start_run() as run,
        pytest.raises(ConfigurationError, match="Spark Connect"),
        spark.shared(run, SimpleNamespace(client=None)),
    ):
        raise AssertionError("it was entered")


def test_the_driver_s_address(fake: FakeBlockingSession, context: Context) -> None:
    """By which executors know it; of a session, or of its context."""
    with fake.start_run() as run:
        for given in (context, SimpleNamespace(sparkContext=context)):
            with spark.shared(run, given) as handle, handle.attach() as worker:
                assert handle.address.startswith("https://127.0.0.1:")
                worker.log_metric("loss", 0.5)
        run.flush()
        assert len(fake.session.received(run.run_id).metrics) == 2
