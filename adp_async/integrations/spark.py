"""One run from Spark's executors: the driver collects what tasks log.

    from adp_async.integrations.spark import shared

    with adp_async.blocking.start_run("digits") as run, shared(run, spark) as handle:
        rdd.foreachPartition(lambda rows: train(rows, handle))

    def train(rows, handle):
        with handle.attach(rank="auto") as run:   # the rank is the partition
            run.log_metric("loss", 0.5)

Executors need a way to the driver, at a port of its own choosing, and nothing else: no credentials,
no configuration.  Where they have none, ``shared(run, spark, accumulator=True)`` has an accumulator
bring home what a task has logged, when the task has ended well.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import msgspec
from attrs import field, frozen

from adp_async.collector import Carrier
from adp_async.collector.one_way import hand_over
from adp_async.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from adp_async import Run, blocking
    from adp_async.collector import Handle, Shared
    from adp_async.collector.one_way import Request

__all__ = ["shared"]

#: What a worker asks for that needs no answer of the driver's.
_ONE_WAY: Final = ("mlflow/runs/log-batch", "collector/enter", "collector/leave")
_JSON: Final = {"content-type": "application/json"}
#: Seconds that the driver waits for room in its collector.
_PATIENCE: Final = 60.0


@contextmanager
def shared(
    run: Run | blocking.Run, spark: Any, *, port: int = 0, accumulator: bool = False
) -> Iterator[Handle]:
    """Share *run* with the tasks of *spark*, a session or a context.

    It listens at all addresses of the driver, by TLS, and executors reach it by the name by which
    they know the driver (``spark.driver.host``); *port* is for a firewall that must let them.  The
    handle travels in a task's closure, or in a broadcast.

    With *accumulator* nobody listens, and executors need no way to the driver.  A last resort:
    points come home at the end of their task, wait in the executor's memory until then, and don't
    come from a task that fails; ``flush(delivered=True)`` and ``commit="task"`` raise `BadRequest`.
    (Nothing is doubled without the latter: Spark itself counts a task once.)  What the collector
    refuses is counted, and told by the owner's ``flush`` and ``finish``.
    """
    context = _context_of(spark)
    if not accumulator:
        host = context.getConf().get("spark.driver.host", "127.0.0.1")
        with run.shared(f"0.0.0.0:{port}", advertise=host) as handle:
            yield handle
        return
    home = _Home()
    brought = context.accumulator([], home)
    collecting = run.shared(carrier=_AccumulatorCarrier(brought.aid, brought))
    with collecting as handle:
        home.collector = collecting
        yield handle


def _context_of(spark: Any) -> Any:
    """The context of a session; `ConfigurationError` where the driver is another process."""
    context = getattr(spark, "sparkContext", spark)
    if hasattr(context, "getConf"):
        return context
    message = (
        "spark: it has no context here, as with Spark Connect; name an address by which executors "
        "reach this process: `run.shared('0.0.0.0', advertise='this.host')`"
    )
    raise ConfigurationError(message)


class _Home:
    """How Spark adds up requests: in a task to a list, and in the driver into the collector."""

    def __init__(self) -> None:
        self.collector: Shared | None = None

    def zero(self, value: list[Request]) -> list[Request]:
        return []

    def addInPlace(self, first: list[Request], more: list[Request]) -> list[Request]:  # noqa: N802
        if self.collector is None:
            first.extend(more)
            return first
        for request in more:
            asyncio.run(hand_over(self.collector, request, _PATIENCE))
        return first

    def __reduce__(self) -> tuple[Any, ...]:
        return _Home, ()


@frozen
class _AccumulatorCarrier(Carrier):
    """Keeps requests in the task's accumulator, which Spark brings to the driver."""

    aid: int
    _accumulator: Any = field(eq=False, repr=False)

    async def carry(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, Mapping[str, str], bytes]:
        if not target.endswith(_ONE_WAY):
            message = "an accumulator comes home when its task has ended: nothing can be asked"
            error = {"code": "NotSupported", "message": message}
            return 400, _JSON, msgspec.json.encode(error)
        brought = self._of_this_task()
        if (collector := brought.accum_param.collector) is not None:  # in the driver itself
            return await collector.answer(method, target, headers, body)  # type: ignore[no-any-return]
        brought.add([(method, target, dict(headers), body)])
        return 200, _JSON, b"{}"

    def _of_this_task(self) -> Any:
        """A Python worker runs many tasks, one after the other, and each has its own."""
        from pyspark import accumulators

        registry: dict[int, Any] = accumulators._accumulatorRegistry
        found = registry.get(self.aid)
        if found is None:  # the handle came with an earlier task, or by a broadcast
            found = registry[self.aid] = accumulators.Accumulator(self.aid, [], _Home())
        return found
