"""A training loop with one tracker, in a process of its own: what a step and a call take.

``python -m benchmarks._training SPECIFICATION`` reads a JSON object (`tracker`, `loop`, `steps`,
`place` and the file `result`) and leaves its numbers in that file.  The loop runs first without the
tracker and then with it, so that what was added does not depend on which process is the faster one.
"""

from __future__ import annotations

import gc
import json
import os
import random
import resource
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
from attrs import define, field, frozen

from benchmarks._timing import distribution
from benchmarks._trackers import TRACKERS, Place, stay_offline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from benchmarks._trackers import Log

    Step = Callable[[], float]

WIDE = 20
_KEYS = tuple(f"layer{number}/loss" for number in range(WIDE))


# The two loops: about a millisecond a step -------------------------------------------------------


def python_step() -> Step:
    """Linear regression by hand: nothing but bytecode, which holds the interpreter's lock."""
    dice = random.Random(0)
    rows = [([dice.random() for _ in range(16)], dice.random()) for _ in range(700)]
    weights = [0.0] * 16

    def step() -> float:
        nonlocal weights
        loss = 0.0
        for row, target in rows:
            error = sum(weight * x for weight, x in zip(weights, row, strict=True)) - target
            weights = [weight - 0.001 * error * x for weight, x in zip(weights, row, strict=True)]
            loss += error * error
        return loss / len(rows)

    return step


def numpy_step() -> Step:
    """Some layers of matrix products, in which the interpreter's lock is free."""
    weights = numpy.random.default_rng(0).random((192, 192))

    def step() -> float:
        nonlocal weights
        for _ in range(5):
            weights = numpy.tanh(weights @ weights.T / 192.0)
        return float(weights[0, 0])

    return step


LOOPS = {"pure Python": python_step, "numpy": numpy_step}


# Measuring ---------------------------------------------------------------------------------------


@frozen
class Pass:
    """Some steps: seconds of all of it, of the work alone and of its CPU; nanoseconds of calls."""

    steps: int
    seconds: float
    work: float
    cpu: float
    calls: list[int]

    @property
    def waiting(self) -> float:
        """Seconds a step in which the work had no core, or not the interpreter's lock."""
        return max(0.0, self.work - self.cpu) / self.steps


@define
class Training:
    """The loop, with the tracker in its place."""

    step: Step
    steps: int
    #: CPU seconds of the process tree before the first logged step, and the logged steps.
    cpu_before: float = field(default=0.0, init=False)
    logged: Pass | None = field(default=None, init=False)

    def log(self, log: Log) -> None:
        gc.collect()
        self.cpu_before = cpu_of_the_tree()
        self.logged = self.run(self.steps, log)

    def run(self, steps: int, log: Log = lambda metrics, step: None) -> Pass:
        work, clock, cpu_clock = self.step, time.perf_counter_ns, time.thread_time_ns
        calls, seconds, cpu = [], 0, 0
        began = clock()
        for step in range(steps):
            before, cpu_before = clock(), cpu_clock()
            loss = work()
            metrics = dict.fromkeys(_KEYS, loss + step)
            cpu += cpu_clock() - cpu_before
            worked = clock()
            log(metrics, step)
            calls.append(clock() - worked)
            seconds += worked - before
        return Pass(steps, (clock() - began) / 1e9, seconds / 1e9, cpu / 1e9, calls)


def cpu_of_the_tree() -> float:
    """CPU seconds of this process and of all it started, ended or not.

    Without ``/proc`` those that still run are left out.
    """
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    running = sum(_cpu_of(statistics) for _, statistics in _descendants())
    return time.process_time() + ended.ru_utime + ended.ru_stime + running


def _cpu_of(statistics: list[str]) -> float:
    """Its own time and that of its children that ended: fields 14 to 17 of ``stat``."""
    return sum(map(int, statistics[11:15])) / os.sysconf("SC_CLK_TCK")


def _descendants() -> Iterator[tuple[int, list[str]]]:
    """Process ids, and the fields of ``/proc/PID/stat`` from the third on."""
    found: dict[int, list[str]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            pid, _, rest = file.read_text().partition(" (")
            found[int(pid)] = rest.rpartition(") ")[2].split()
    family = {os.getpid()}
    while more := {pid for pid, fields in found.items() if int(fields[1]) in family} - family:
        family |= more
    yield from ((pid, found[pid]) for pid in family - {os.getpid()} if pid in found)


def adopt_orphans() -> None:
    """Become the parent of processes whose parent ends, so that they are found; Linux only."""
    import ctypes

    if sys.platform == "linux":
        set_child_subreaper = 36
        ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)


def _end_descendants() -> None:
    for pid, _ in list(_descendants()):
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def measure(tracker: str, loop: str, steps: int, place: Mapping[str, str]) -> dict[str, float]:
    """Microseconds of a call and a step, CPU microseconds a metric, seconds of finishing.

    *added*: the mean call, and what the work waited more than before the tracker was started.  The
    plain difference of two steps would mostly say how far the machine's speed wavers.
    """
    (contender,) = (each for each in TRACKERS if each.name == tracker)
    training = Training(LOOPS[loop](), steps)
    training.run(max(1, steps // 10))
    alone = training.run(max(1, steps // 2))
    finishing = contender.use(training.log, Place.from_json(place))
    logged = training.logged
    assert logged is not None
    cpu = cpu_of_the_tree() - training.cpu_before - logged.cpu
    call = {name: cost / 1e3 for name, cost in distribution(logged.calls).items()}
    return {
        **call,
        "step": logged.seconds / steps * 1e6,
        "added": call["mean"] + max(0.0, logged.waiting - alone.waiting) * 1e6,
        "cpu": cpu / (steps * WIDE) * 1e6,
        "finishing": finishing,
    }


def main(specification: dict[str, Any]) -> None:
    result = Path(specification.pop("result"))
    adopt_orphans()
    stay_offline()
    try:
        result.write_text(json.dumps(measure(**specification)))
    finally:
        _end_descendants()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
    # A tracker's threads may still be trying something, and nobody waits for that.
    os._exit(0)
