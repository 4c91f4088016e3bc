"""The benchmarks run and say what they should; never how fast anything is."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks import NAMES
from benchmarks._harness import Contender, Goal, Report, Samples, Table, best_floor, take_turns
from benchmarks._servers import ROOT

if TYPE_CHECKING:
    from pathlib import Path

#: MLflow is imported by these; its warnings, and the time it takes, are not for this process.
WITH_MLFLOW = ("call", "memory", "mlflow")
WITHOUT_MLFLOW = tuple(name for name in NAMES if name != "mlflow")


def _check(printed: str, report: dict[str, Any]) -> None:
    assert report["title"] in printed
    assert report["goals"], "a benchmark states its goals"
    for goal in report["goals"]:
        assert goal["what"] in printed
        assert isinstance(goal["is_met"], bool)
    for table in report["tables"]:
        assert table["title"] in printed
        assert table["rows"]
        assert {len(row) for row in table["rows"]} == {len(table["headings"])}


@pytest.mark.parametrize("name", WITHOUT_MLFLOW)
def test_smoke(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each benchmark runs in tiny, prints its tables, keeps its numbers and ends well."""
    file = tmp_path / "report.json"
    options = ["--no-peers"] if name in WITH_MLFLOW else []
    module = importlib.import_module(f"benchmarks.{name}")

    assert module.main(["--smoke", "--json", str(file), *options]) == 0

    _check(capsys.readouterr().out, json.loads(file.read_text()))


@pytest.mark.mlflow
@pytest.mark.parametrize("name", WITH_MLFLOW)
def test_smoke_with_mlflow(name: str, tmp_path: Path) -> None:
    """The same with MLflow as a peer."""
    file = tmp_path / "report.json"
    command = [sys.executable, "-m", f"benchmarks.{name}", "--smoke", "--json", str(file)]

    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)

    _check(ran.stdout, json.loads(file.read_text()))
    assert "MLflow" in ran.stdout


def test_without_nginx(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without nginx a substitute answers, and the report says so and how to get nginx."""
    monkeypatch.setattr("benchmarks._servers.shutil.which", lambda _: None)
    module = importlib.import_module("benchmarks.direct")

    assert module.main(["--smoke", "--no-peers"]) == 0

    printed = capsys.readouterr().out
    assert "The server is a minimal asyncio server" in printed
    assert "apt-get install nginx-light" in printed


def test_everything_is_written_down(tmp_path: Path) -> None:
    """Running several benchmarks collects their goals and tables, with machine and versions."""
    output = tmp_path / "RESULTS.md"
    command = [sys.executable, "-m", "benchmarks", "lanes", "spool", "--smoke"]
    command += ["--output", str(output)]

    subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=True)

    written = output.read_text()
    assert "## The goals: " in written
    assert "| 50 runs / 1 run, cost per record, 1 of a run in a row |" in written
    assert "`python -m benchmarks.spool`" in written
    assert "- Python 3" in written


async def test_turns_are_taken() -> None:
    """In each round another contender begins, and the first round is not counted."""
    order: list[str] = []

    def contender(name: str) -> Contender:
        async def once() -> float:
            order.append(name)
            return float(len(order))

        return Contender(name, "ours", once)

    samples = await take_turns([contender("a"), contender("b")], rounds=2)

    assert order == ["a", "b", "a", "b", "b", "a"]
    assert [each.values for each in samples] == [(3.0, 6.0), (4.0, 5.0)]


def test_a_ratio_is_taken_within_rounds() -> None:
    """A machine that becomes ten times slower in the middle changes no ratio."""
    ours = Samples("ours", "ours", (2.0, 20.0, 2.0))
    floor = Samples("floor", "floor", (1.0, 10.0, 1.0))

    assert ours.over(floor) == 2.0


def test_the_best_floor() -> None:
    """The hardest floor is the highest rate, or the lowest cost."""
    slow, fast = Samples("slow", "floor", (1.0,)), Samples("fast", "floor", (2.0,))

    assert best_floor([slow, fast], more_is_better=True) is fast
    assert best_floor([slow, fast], more_is_better=False) is slow


def test_a_report_survives_json() -> None:
    """What one process measured is what the other writes down."""
    table = Table("title", ("what", "number"))
    table.add("row", 0.12345)
    report = Report("a report", [table], [Goal.at_most("cost", 2.0, 1.5)], ["a note"], 1.0)

    again = Report.from_json(json.loads(json.dumps(report.as_json())))

    assert again.text() == report.text()
    assert "0.123" in again.text()
