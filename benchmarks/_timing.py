"""What a call of ``log_metric`` costs: the mean of a tight loop, and each call by itself."""

from __future__ import annotations

from time import perf_counter_ns, thread_time_ns
from typing import TYPE_CHECKING, Any

from benchmarks._harness import percentile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    LogMetric = Callable[[str, float, int], Any]

VALUE = 0.123456789


def mean_cost(log_metric: LogMetric, keys: Sequence[str]) -> float:
    """Nanoseconds of this thread's CPU a call, the loop around it included."""
    value = VALUE
    began = thread_time_ns()
    for step, key in enumerate(keys):
        log_metric(key, value, step)
    return (thread_time_ns() - began) / len(keys)


def each_cost(log_metric: LogMetric, keys: Sequence[str]) -> list[int]:
    """Nanoseconds of every single call, reading the clock included (see `clock_cost`)."""
    clock, value = perf_counter_ns, VALUE
    costs = []
    for step, key in enumerate(keys):
        before = clock()
        log_metric(key, value, step)
        costs.append(clock() - before)
    return costs


def clock_cost() -> int:
    """Nanoseconds between two readings of the clock."""
    clock = perf_counter_ns
    readings = [-(clock() - clock()) for _ in range(1001)]
    return sorted(readings)[500]


def distribution(costs: Sequence[int]) -> dict[str, float]:
    """Mean, median, p99 and the worst of `each_cost`, less what reading the clock takes."""
    own = clock_cost()
    found = {
        "mean": sum(costs) / len(costs),
        "p50": percentile(costs, 0.5),
        "p99": percentile(costs, 0.99),
        "max": float(max(costs)),
    }
    return {name: max(0.0, cost - own) for name, cost in found.items()}
