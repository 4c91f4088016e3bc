"""Runs every benchmark, each in a process of its own, and writes RESULTS.md.

``python -m benchmarks`` takes about half an hour on two cores; ``python -m benchmarks call
direct`` runs only those, and prints in place of writing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import adp_async
from benchmarks import NAMES
from benchmarks._harness import Report, goals_table, number
from benchmarks._servers import ROOT

if TYPE_CHECKING:
    from collections.abc import Sequence

RESULTS = Path(__file__).with_name("RESULTS.md")
#: The longest that one benchmark may take.
LONGEST = 1800.0
FAILED = "no result"
PACKAGES = (
    "aiohttp",
    "aidp-python-client",
    "anyio",
    "attrs",
    "cattrs",
    "comet-ml",
    "cryptography",
    "mlflow",
    "msgspec",
    "neptune-scale",
    "numpy",
    "oci",
    "swanlab",
    "tensorboardX",
    "trackio",
    "wandb",
)


def _run_one(name: str, options: Sequence[str]) -> Report:
    print(f"--- {name}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        command = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(file), *options]
        try:
            subprocess.run(command, cwd=ROOT, check=True, timeout=LONGEST)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            # The others are worth having all the same.
            print(f"{name} failed: {error}", file=sys.stderr)
            return Report(f"{name}: {FAILED}", notes=[f"{type(error).__name__}, see its output."])
        return Report.from_json(json.loads(file.read_text()))


def _machine() -> list[str]:
    cpu = _first("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()
    memory = int((_first("/proc/meminfo", "MemTotal") or "0 kB").split()[0]) / 2**20
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    return [
        f"- Date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        f"- Machine: {cpu}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.platform()}",
        f"- Load before the start (1, 5, 15 minutes): {load}",
        f"- Python {platform.python_version()}; {', '.join(_versions())}",
    ]


def _first(file: str, name: str) -> str:
    path = Path(file)
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def _versions() -> list[str]:
    found = [f"adp-async {adp_async.__version__}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} not installed")
    return found


def _left_out(reports: dict[str, Report]) -> list[str]:
    names = [name for name in NAMES if name not in reports]
    return [f"- Not in this run: {', '.join(names)}"] if names else []


def _document(reports: dict[str, Report], machine: Sequence[str], seconds: float) -> str:
    goals = [goal for report in reports.values() for goal in report.goals]
    met = sum(goal.is_met for goal in goals)
    parts = [
        "# What it costs",
        "Written by `python -m benchmarks`; every number is from this one run. A ratio is the "
        "median of the rounds' ratios, in which the contenders took turns.",
        "\n".join([*machine, f"- The run took {seconds / 60:.1f} minutes", *_left_out(reports)]),
        f"## The goals: {met} of {len(goals)} met",
        "\n".join(
            [
                "| what | goal | measured | met |",
                "|---|---|---|---|",
                *(
                    f"| {goal.what} | {goal.goal} | {number(goal.measured)} "
                    f"| {'yes' if goal.is_met else '**no**'} |"
                    for goal in goals
                ),
            ]
        ),
        *(_chapter(name, report) for name, report in reports.items()),
    ]
    return "\n\n".join(parts) + "\n"


def _chapter(name: str, report: Report) -> str:
    tables = "\n\n".join(table.text() for table in report.tables)
    notes = "\n".join(f"- {note}" for note in report.notes)
    head = f"## {report.title}\n\n`python -m benchmarks.{name}` ({report.seconds:.0f} s)"
    return "\n\n".join(part for part in (head, f"```text\n{tables}\n```", notes) if part)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help="only these; nothing kept")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes; nothing is kept")
    parser.add_argument("--no-peers", action="store_true", help="ours and the floor alone")
    parser.add_argument("--output", type=Path, default=None, help="default: RESULTS.md")
    given = parser.parse_args(arguments)
    if unknown := set(given.names) - set(NAMES):
        parser.error(
            f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}"
        )
    options = [
        f"--{name}" for name in ("smoke", "no-peers") if getattr(given, name.replace("-", "_"))
    ]
    machine, began = _machine(), time.monotonic()
    reports = {name: _run_one(name, options) for name in given.names or NAMES}
    print(goals_table([g for report in reports.values() for g in report.goals]).text())
    is_whole = not given.names and not options
    output = given.output or (RESULTS if is_whole else None)
    if output is not None:
        output.write_text(_document(reports, machine, time.monotonic() - began))
        print(f"\nwritten to {output}")
    return int(any(report.title.endswith(FAILED) for report in reports.values()))


if __name__ == "__main__":
    sys.exit(main())
