"""What the journal on disk costs: the same work with ``spool=`` on and off.

Records are accepted, journaled within ``spool_interval``, delivered and crossed out; the server
answers at once, so this is the worst case: nothing else takes any time.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from typing import TYPE_CHECKING

from benchmarks._clients import value_of
from benchmarks._harness import Contender, Goal, Options, Report, comparison, run, take_turns
from benchmarks._servers import answering
from benchmarks._timing import mean_cost
from benchmarks.end_to_end import log_all

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adp_async import Session
    from benchmarks._harness import Samples
    from benchmarks._servers import Target


def _rate(name: str, session: Session, values: Sequence[float]) -> Contender:
    async def once() -> float:
        began = time.perf_counter()
        await log_all(session.attach_run("bench"), values)
        return len(values) / (time.perf_counter() - began)

    return Contender(name, "ours" if "on" in name else "floor", once)


def _call(name: str, session: Session, keys: Sequence[str]) -> Contender:
    async def once() -> float:
        run = session.attach_run("bench")
        cost = mean_cost(run.log_metric, keys)
        await run.flush()
        return cost

    return Contender(name, "ours" if "on" in name else "floor", once)


async def _compare(target: Target, options: Options) -> list[list[Samples]]:
    values = [value_of(step) for step in range(options.size(300_000, 2000))]
    keys = ["loss"] * options.size(20_000, 500)
    with tempfile.TemporaryDirectory(prefix="adp-async-spool-") as folder:
        async with target.session(spool=folder) as on, target.session(spool=False) as off:
            sessions = {"spool on": on, "spool off": off}
            rates = [_rate(name, session, values) for name, session in sessions.items()]
            calls = [_call(name, session, keys) for name, session in sessions.items()]
            return [
                await take_turns(rates, options.rounds),
                await take_turns(calls, options.rounds),
            ]


def measure(options: Options) -> Report:
    """Rate and cost of a call, with and without."""
    report = Report("Spool on against off")
    with answering() as server:
        rates, calls = asyncio.run(_compare(server.target, options))
        report.notes += server.notes
    report.tables = [
        comparison("Metrics delivered a second", "metrics/s", rates),
        comparison("A log_metric call", "ns", calls),
    ]
    what = "rate with the spool on / off"
    report.goals.append(Goal.at_least(what, 0.7, rates[0].over(rates[1])))
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    return run(measure, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
