"""What Spark's accumulator carries home, without Spark; `test_cluster_engines` has the real one."""

from __future__ import annotations

import asyncio
import pickle
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from adp_async import BadRequest
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


class Collector:
    """Gives these statuses, one after the other."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)

    async def answer(self, *_: object) -> tuple[int, dict[str, str], bytes]:
        return self.statuses.pop(0), {}, b"{}"


@pytest.mark.parametrize("statuses", [[200], [429, 503, 200], [400]])
def test_a_collector_that_is_full(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, statuses: list[int]
) -> None:
    """It is asked again, as a worker would; what it refuses is named."""
    sleep = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda _: sleep(0))
    collector: Any = Collector(*statuses)
    asyncio.run(spark._hand_over(collector, ("POST", "x", {}, b"")))
    assert collector.statuses == []
    assert len(caplog.messages) == (statuses[-1] == 400)
