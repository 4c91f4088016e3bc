"""What a training step pays for logging 20 metrics, with us and with other trackers.

The same loop of about a millisecond a step, in pure Python and in numpy, runs in a process of its
own for each contender and round.  The time added to a step is that of the logging call, and what
the step's own work waited (for a core, or for the interpreter's lock) more than in the same process
before the tracker was started.  Neither loop gives way: the face for asyncio is measured without an
``await`` between the steps.  CPU is that of the process and all it started, less the steps
themselves; a server is not among them.  ``pip install 'adp-async[peers]'`` brings the other
trackers, and one that is not there is left out by name.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from attrs import define, frozen

from benchmarks._harness import Goal, Options, Report, Samples, Table, number, run
from benchmarks._servers import ROOT, answering
from benchmarks._trackers import ALONE, OFFLINE, OURS, TRACKERS, Place
from benchmarks._training import LOOPS, WIDE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from benchmarks._servers import AnsweringServer
    from benchmarks._trackers import Tracker

STEPS = 2000
ROUNDS = 5
#: The longest that one process may take, in seconds.
LONGEST = 120.0

#: What a process measures, and the heading it stands under.
COLUMNS = {
    "mean": "call mean us",
    "p50": "p50",
    "p99": "p99",
    "max": "max",
    "step": "step us",
    "added": "added us",
    "cpu": "CPU us/metric",
    "finishing": "finish s",
}


class Failed(Exception):
    """A contender that did not come to its end, and why."""


@define
class Rounds:
    """What the contenders of one loop measured, round by round."""

    found: dict[str, list[Mapping[str, float]]]

    def add(self, tracker: Tracker, measured: Mapping[str, float]) -> None:
        self.found.setdefault(tracker.name, []).append(measured)

    def of(self, tracker: Tracker, what: str) -> Samples:
        values = tuple(each[what] for each in self.found[tracker.name])
        return Samples(tracker.name, tracker.role, values)


@frozen
class Contest:
    """The trackers that take part, and the reasons why others don't."""

    trackers: list[Tracker]
    left_out: list[str]

    @classmethod
    def of(cls, options: Options) -> Contest:
        wanted = [each for each in TRACKERS if options.peers or each.role != "peer"]
        missing = dict.fromkeys(each.package for each in wanted if not each.is_installed)
        return cls(
            [each for each in wanted if each.is_installed],
            [f"Left out, not installed: {package}." for package in missing],
        )

    def drop(self, tracker: Tracker, why: Failed) -> None:
        if tracker.role != "peer":
            raise why
        self.trackers.remove(tracker)
        self.left_out.append(f"Left out, failed: {tracker.name}: {why}.")


def _measure_all(server: AnsweringServer, options: Options, contest: Contest) -> dict[str, Rounds]:
    """Each tracker once a round and loop, another first in each round."""
    rounds = {loop: Rounds({}) for loop in LOOPS}
    for number_of_round in range(min(options.rounds, ROUNDS)):
        for loop in LOOPS:
            for tracker in _in_turn(contest.trackers, number_of_round):
                try:
                    measured = _measure_one(tracker, loop, options, server)
                except Failed as why:
                    contest.drop(tracker, why)
                else:
                    rounds[loop].add(tracker, measured)
    return rounds


def _in_turn(trackers: Sequence[Tracker], number_of_round: int) -> Iterator[Tracker]:
    first = number_of_round % len(trackers)
    yield from [*trackers[first:], *trackers[:first]]


def _measure_one(
    tracker: Tracker, loop: str, options: Options, server: AnsweringServer
) -> Mapping[str, float]:
    with tempfile.TemporaryDirectory(prefix="adp-async-step-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        result = folder / "result.json"
        for each in ("data", "tmp"):
            (folder / each).mkdir()
        place = Place(folder / "data", server.url, server.target)
        specification = {
            "tracker": tracker.name,
            "loop": loop,
            "steps": options.size(STEPS, 20),
            "place": place.as_json(),
            "result": str(result),
        }
        said = _run(specification, folder)
        if not result.exists():
            raise Failed(said)
        measured: Mapping[str, float] = json.loads(result.read_text())
        return measured


def _run(specification: Mapping[str, Any], folder: Path) -> str:
    """Run one process to its end; the last line it printed."""
    output = folder / "output.txt"
    environment = {
        **os.environ,
        **OFFLINE,
        # What a tracker keeps for its user is neither read nor left behind.
        "HOME": str(folder),
        "TMPDIR": str(folder / "tmp"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "XDG_CONFIG_HOME": str(folder / "config"),
        # A step is one thread's work.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "benchmarks._training", json.dumps(specification)]
    with output.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(LONGEST)
        except subprocess.TimeoutExpired:
            return f"not done after {LONGEST:g} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    lines = output.read_text(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "no word")[:300]


def _table(loop: str, rounds: Rounds, trackers: Sequence[Tracker]) -> Table:
    table = Table(
        f"A step of {loop}, {WIDE} metrics",
        ("contender", "role", *COLUMNS.values(), "added, ours / it"),
    )
    ours = _ours(rounds, trackers)
    for tracker in trackers:
        cells = [median(rounds.of(tracker, what).values) for what in COLUMNS]
        is_peer = tracker.role == "peer"
        ratio = number(ours.over(rounds.of(tracker, "added"))) if is_peer else ""
        table.add(tracker.name, tracker.role, *cells, ratio)
    return table


def _ours(rounds: Rounds, trackers: Sequence[Tracker]) -> Samples:
    """What the dearer of our two faces adds."""
    faces = [rounds.of(each, "added") for each in trackers if each.name in OURS]
    return max(faces, key=lambda face: face.median)


def _goal(loop: str, rounds: Rounds, trackers: Sequence[Tracker]) -> list[Goal]:
    peers = [rounds.of(each, "added") for each in trackers if each.role == "peer"]
    if not peers:
        return []
    best = min(peers, key=lambda peer: peer.median)
    what = f"time that {WIDE} metrics add to a step of {loop} / that of the best other tracker"
    ratio = _ours(rounds, trackers).over(best)
    return [Goal.at_most(what, 0.2, ratio, note=best.name)]


def measure(options: Options) -> Report:
    """Both loops, with everyone."""
    report = Report("What a training step pays")
    contest = Contest.of(options)
    with answering() as server:
        rounds = _measure_all(server, options, contest)
        report.notes += server.notes
    for loop, found in rounds.items():
        report.tables.append(_table(loop, found, contest.trackers))
        report.goals += _goal(loop, found, contest.trackers)
        report.notes += [
            f"{loop}: the best other tracker is {goal.note}." for goal in report.goals[-1:]
        ]
    report.notes.append(
        f"Medians of the rounds; a call logs all {WIDE}.  What {ALONE!r} adds is how much the "
        "machine was disturbed.  Trackers other than ours and MLflow write files only."
    )
    report.notes += contest.left_out
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    return run(measure, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
