"""What logging costs a Lightning training: 500 steps of 20 metrics, until all is delivered.

The same training without a logger, and with one that drops everything; with Lightning's own
``MLFlowLogger``, synchronous as is its default, into MLflow over http, and on ``aidp://``; and with
`AdpLogger`.  Then all of them again with 50 ms of latency on the road, and with a quota of 5
requests a second.  Needs ``pip install 'adp-async[test-frameworks]'``; the entry point of
``aidp://`` needs an installed package.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

from attrs import frozen

from benchmarks._harness import Goal, Options, Report, Table, run
from benchmarks._servers import ask, child, platform

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from subprocess import Popen

METRICS = 20
ROUNDS = 3


@frozen
class Road:
    """How the service is reached."""

    name: str
    latency: float
    rate: float | None
    #: The rounds; one where a training waits for the road most of the time.
    rounds: int


ROADS = (
    Road("on this machine", 0.0, None, ROUNDS),
    Road("50 ms of latency", 0.05, None, 1),
    Road("a quota of 5 requests/s", 0.0, 5.0, 1),
)
NONE = "no logger"
#: What Lightning itself does for a logger, whichever it is.
DROPS = "a logger that drops everything"
PLAIN = "MLFlowLogger, MLflow over http"
ON_AIDP = "MLFlowLogger, aidp://"
OURS = "AdpLogger"


class Bench:
    """The platform, the road to it, and the process that trains."""

    def __init__(self, stack: ExitStack, options: Options) -> None:
        self._where = where = stack.enter_context(platform(mlflow=True))
        urls = (where.mlflow_url, where.target.endpoint)
        self._proxy = stack.enter_context(child("benchmarks._slow_proxy", *urls))
        assert self._proxy.stdout is not None
        plain, endpoint = json.loads(self._proxy.stdout.readline())
        self._uris = {PLAIN: plain, ON_AIDP: "aidp://"}
        spool = stack.enter_context(tempfile.TemporaryDirectory(prefix="adp-async-bench-"))
        self._trainer: Popen[str] = stack.enter_context(
            child(
                "benchmarks._lightning_peer",
                MLFLOW_DISABLE_TELEMETRY="true",
                AIDP_ENDPOINT=endpoint,
                AIDP_INSTANCE_ID=where.target.platform_id,
                AIDP_WORKSPACE=where.target.workspace,
                OCI_CONFIG_FILE=str(where.target.config_file),
                ADP_ASYNC_SPOOL=spool,
            )
        )
        self._steps = options.size(500, 5)

    def take(self, road: Road) -> None:
        ask(self._proxy, {"latency": road.latency, "rate": road.rate})

    def train(self, name: str, *, steps: int | None = None) -> dict[str, Any]:
        """Seconds of one training; all its points have arrived."""
        how = {NONE: "none", DROPS: "drops", OURS: "ours"}.get(name, "mlflow")
        size = {"steps": steps or self._steps, "metrics": METRICS}
        took: dict[str, Any] = ask(
            self._trainer, {"how": how, "uri": self._uris.get(name, ""), **size}
        )
        if how in ("mlflow", "ours"):
            arrived = sum(1 for _ in self._points(took["run_id"], f"metric{METRICS - 1}"))
            if arrived != size["steps"]:
                raise RuntimeError(f"{name}: {arrived} of {size['steps']} points arrived")
        return took

    def _points(self, run_id: str, key: str) -> Iterator[Any]:
        path = "/api/2.0/mlflow/metrics/get-history"
        url = f"{self._where.mlflow_url}{path}?run_id={run_id}&metric_key={key}&max_results=20000"
        with urlopen(url) as reply:
            yield from json.load(reply).get("metrics", ())


def measure(options: Options) -> Report:
    """A training with each logger, on each road."""
    report = Report("Integrations: a Lightning training of 500 steps with 20 metrics each")
    names = [NONE, DROPS, *([PLAIN] if options.peers else []), ON_AIDP, OURS]
    with ExitStack() as stack:
        bench = Bench(stack, options)
        for name in names:
            bench.train(name, steps=5)  # imports and connections
        for road in ROADS:
            bench.take(road)
            found = _rounds(bench, names, options.size(road.rounds, 1))
            report.tables.append(_table(road, found))
            if road.rate is None and not road.latency:
                report.goals = [
                    Goal.at_most(
                        f"{name}: share of the steps' time that is logging",
                        0.03,
                        _share(found, name, "steps"),
                    )
                    for name in (ON_AIDP, OURS)
                ]
    report.notes.append(
        "A training lasts until all its points have arrived, which is checked. The shares compare "
        "with the logger that drops everything. MLflow, gateway and road run on this machine too, "
        "and take their share of its cores while a training goes on."
    )
    return report


def _rounds(bench: Bench, names: Sequence[str], rounds: int) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            found[name].append(bench.train(name))
    return found


def _share(found: dict[str, list[dict[str, Any]]], name: str, part: str = "fit") -> float:
    """Of the time of a training, what is not needed when everything is dropped."""
    pairs = zip(found[DROPS], found[name], strict=True)
    return statistics.median(1.0 - bare[part] / logged[part] for bare, logged in pairs)


def _table(road: Road, found: dict[str, list[dict[str, Any]]]) -> Table:
    table = Table(
        f"The service: {road.name}",
        ("logger", "seconds", "of steps", "of CPU", "more seconds", "more of steps", "more of CPU"),
    )
    for name, rounds in found.items():
        parts = ("fit", "steps", "cpu")
        times = [statistics.median(each[part] for each in rounds) for part in parts]
        shares = [f"{100 * _share(found, name, part):.0f} %" for part in parts]
        table.add(name, *times, *(shares if name not in (NONE, DROPS) else ("", "", "")))
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    return run(measure, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
