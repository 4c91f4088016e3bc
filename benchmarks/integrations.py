"""What an integration costs: ``mlflow.log_metric`` on MLflow's own client and on ``aidp://``.

The same line of stock code, ``mlflow.log_metric(key, value, step=step)``, into the same MLflow:
over http synchronously, asynchronously and buffered, as MLflow itself can, without the gateway in
between; and through ``aidp://``, with signatures, the gateway and the journal on disk.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from benchmarks._harness import Goal, Options, Report, Table, run
from benchmarks._servers import ask, child, platform

if TYPE_CHECKING:
    from collections.abc import Sequence
    from subprocess import Popen

    from benchmarks._servers import Platform

OURS = "aidp://"
#: A name, the mode of `benchmarks._mlflow_fluent`, and calls a round: each at a size that it can
#: deliver in a second or two.
WAYS = (
    ("MLflow over http, synchronous", "sync", 50),
    ("MLflow over http, asynchronous", "default", 50),
    ("MLflow over http, buffered", "buffered", 2000),
    (OURS, "aidp", 2000),
)
#: What of a fluent call may be ours, in microseconds.
OUR_SHARE = 20.0


def _environment(where: Platform, spool: str) -> dict[str, str]:
    target = where.target
    return {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "AIDP_ENDPOINT": target.endpoint,
        "AIDP_INSTANCE_ID": target.platform_id,
        "AIDP_WORKSPACE": target.workspace,
        "OCI_CONFIG_FILE": str(target.config_file),
        "ADP_ASYNC_SPOOL": spool,
    }


def _fluent(where: Platform, options: Options) -> tuple[dict[str, list[Any]], list[float]]:
    """What each way found, round by round, and the microseconds of our store alone."""
    found: dict[str, list[Any]] = {name: [] for name, _, _ in WAYS}
    shares: list[float] = []
    with ExitStack() as stack:
        spool = stack.enter_context(tempfile.TemporaryDirectory(prefix="adp-async-bench-"))
        variables = _environment(where, spool)
        processes: dict[bool, Popen[str]] = {
            is_ours: stack.enter_context(child("benchmarks._mlflow_fluent", uri, **variables))
            for is_ours, uri in ((False, where.mlflow_url), (True, OURS))
        }
        for number_of_round in range(options.rounds):
            for name, mode, count in WAYS:
                question = {"do": "calls", "mode": mode, "count": options.size(count, 5)}
                found[name].append(ask(processes[name == OURS], question))
            question = {"do": "store", "count": options.size(2000, 5)}
            shares.append(ask(processes[True], question)["mean"] / 1000)
            # The first of either is for imports and connections.
            if number_of_round == 0 and options.rounds > 1:
                shares.clear()
                for rounds in found.values():
                    rounds.clear()
    return found, shares


def _table(found: dict[str, list[Any]]) -> Table:
    table = Table(
        "mlflow.log_metric, one call after another, the sender at work",
        ("what", "mean us", "p50 us", "p99 us", "delivered / s", "mean / ours", "rate: ours / it"),
    )
    for name, rounds in found.items():
        cells = [statistics.median(each[part] for each in rounds) / 1000
                 for part in ("mean", "p50", "p99")]  # fmt: skip
        rate = statistics.median(each["rate"] for each in rounds)
        table.add(name, *cells, rate, _ratio(found, name, "mean"), 1 / _ratio(found, name, "rate"))
    return table


def _ratio(found: dict[str, list[Any]], name: str, part: str) -> float:
    """The median of the rounds' ratios, *name* to ours."""
    pairs = zip(found[name], found[OURS], strict=True)
    return statistics.median(its[part] / ours[part] for its, ours in pairs)


def measure(options: Options) -> Report:
    """Costs and rates of stock MLflow code."""
    report = Report("Integrations: stock MLflow code, on its own client and on aidp://")
    with platform(mlflow=True) as where:
        found, shares = _fluent(where, options)
    report.tables.append(_table(found))
    report.goals = [
        Goal.at_least(
            "MLflow's asynchronous mlflow.log_metric / the same on aidp://",
            8.0,
            _ratio(found, "MLflow over http, asynchronous", "mean"),
        ),
        Goal.at_most("of it ours, in us", OUR_SHARE, statistics.median(shares)),
    ]
    report.notes.append(
        "On http MLflow looks for its registry in a Spark session on every call, an import that "
        "fails; on aidp:// the store makes the registry URI explicit, which ends that."
    )
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    return run(measure, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
