"""One run from Spark's executors: the driver collects what tasks log.

    from adp_async.integrations.spark import shared

    with adp_async.blocking.start_run("digits") as run, shared(run, spark) as handle:
        rdd.foreachPartition(lambda rows: train(rows, handle))

    def train(rows, handle):
        with handle.attach(rank="auto") as run:   # the rank is the partition
            run.log_metric("loss", 0.5)

Executors need a way to the driver, at a port of its own choosing, and nothing else: no credentials,
no configuration.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adp_async import Run, blocking
    from adp_async.collector import Handle

__all__ = ["shared"]


@contextmanager
def shared(run: Run | blocking.Run, spark: Any, *, port: int = 0) -> Iterator[Handle]:
    """Share *run* with the tasks of *spark*, a session or a context.

    It listens at all addresses of the driver, by TLS, and executors reach it by the name by which
    they know the driver (``spark.driver.host``); *port* is for a firewall that must let them.  The
    handle travels in a task's closure, or in a broadcast.
    """
    context = getattr(spark, "sparkContext", spark)
    host = context.getConf().get("spark.driver.host", "127.0.0.1")
    with run.shared(f"0.0.0.0:{port}", advertise=host) as handle:
        yield handle
