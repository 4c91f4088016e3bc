"""The benchmarks run and say what they should; never how fast anything is."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks import NAMES, step
from benchmarks._harness import (
    Contender,
    Goal,
    Options,
    Report,
    Samples,
    Table,
    best_floor,
    take_turns,
)
from benchmarks._servers import ROOT
from benchmarks._trackers import OURS, TRACKERS, Tracker
from benchmarks._training import cpu_of_the_tree

if TYPE_CHECKING:
    from pathlib import Path

#: MLflow is imported by these; its warnings, and the time it takes, are not for this process.
WITH_MLFLOW = ("call", "integrations", "memory", "mlflow", "step")
WITHOUT_MLFLOW = tuple(name for name in NAMES if name not in ("integrations", "mlflow"))
#: Their goals are all against peers.
NO_GOALS_ALONE = ("step",)


def _check(printed: str, report: dict[str, Any], *, has_goals: bool = True) -> None:
    assert report["title"] in printed
    assert bool(report["goals"]) is has_goals, "a benchmark states its goals"
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

    printed = capsys.readouterr().out
    _check(printed, json.loads(file.read_text()), has_goals=name not in NO_GOALS_ALONE)


@pytest.mark.mlflow
@pytest.mark.parametrize("name", WITH_MLFLOW)
def test_smoke_with_mlflow(name: str, tmp_path: Path) -> None:
    """The same with MLflow as a peer."""
    file = tmp_path / "report.json"
    command = [sys.executable, "-m", f"benchmarks.{name}", "--smoke", "--json", str(file)]

    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=True)

    _check(ran.stdout, json.loads(file.read_text()))
    assert "MLflow" in ran.stdout


def test_without_nginx(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without nginx a substitute answers, and the report says that, and how to get nginx."""
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

    subprocess.run(command, cwd=ROOT, capture_output=True, timeout=240, check=True)

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


def _tracker(name: str) -> Tracker:
    return next(each for each in TRACKERS if each.name == name)


def test_a_tracker_that_is_not_installed_is_left_out_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The others take part, and the report says which package is missing, once."""
    absent = [
        Tracker(f"absent, {way}", "peer", lambda train, place: 0.0, "no_such_module", "absent")
        for way in ("plain", "buffered")
    ]
    monkeypatch.setattr(step, "TRACKERS", (*TRACKERS[:3], *absent))

    contest = step.Contest.of(Options())

    assert contest.trackers == list(TRACKERS[:3])
    assert contest.left_out == ["Left out, not installed: absent."]


def test_a_tracker_that_fails_is_left_out_and_ours_is_not() -> None:
    """A peer that breaks costs its own row; if we break, the whole benchmark fails."""
    ours, peer = _tracker(OURS[0]), _tracker("trackio")
    contest = step.Contest([ours, peer], [])

    contest.drop(peer, step.Failed("OSError: disk full"))

    assert contest.trackers == [ours]
    assert contest.left_out == ["Left out, failed: trackio: OSError: disk full."]
    with pytest.raises(step.Failed, match="broken"):
        contest.drop(ours, step.Failed("broken"))


def test_what_a_process_said_last_is_why_it_failed(tmp_path: Path) -> None:
    """A contender that raises leaves no numbers, and its error is the reason."""
    specification = {"tracker": "nobody", "loop": "numpy", "steps": 1, "place": {}}

    said = step._run({**specification, "result": str(tmp_path / "result.json")}, tmp_path)

    assert said.startswith("ValueError")
    assert not (tmp_path / "result.json").exists()


def test_the_goal_of_a_step_is_against_the_best_other_tracker() -> None:
    """The dearer of our faces counts, and the cheapest of the others."""
    added = {OURS[0]: 6.0, OURS[1]: 9.0, "trackio": 45.0, "wandb, offline": 260.0}
    trackers = [_tracker(name) for name in added]
    rounds = step.Rounds({name: [{"added": value}] for name, value in added.items()})

    (goal,) = step._goal("numpy", rounds, trackers)

    assert goal.note == "trackio"
    assert goal.measured == pytest.approx(0.2)
    assert goal.is_met
    assert step._goal("numpy", rounds, trackers[:2]) == []


def test_trackers_reach_no_network() -> None:
    """Names and addresses outside loopback are refused before anything is sent."""
    script = """
import socket
from benchmarks._trackers import stay_offline
stay_offline()
with socket.create_server(("127.0.0.1", 0)) as server:
    socket.create_connection(server.getsockname(), timeout=60).close()
for reach in (
    lambda: socket.create_connection(("192.0.2.1", 80), timeout=5),
    lambda: socket.getaddrinfo("tracker.example", 443),
    lambda: socket.gethostbyaddr("192.0.2.1"),
    lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 53)),
):
    try:
        reach()
    except ConnectionRefusedError as error:
        print(error)
"""
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )

    assert ran.stdout.count("benchmarks stay on loopback") == 4


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_cpu_of_children_counts_while_they_run() -> None:
    """A tracker that works in another process pays for that as well."""
    burn = "import time\nwhile time.process_time() < 0.2: pass\nprint(flush=True)\ninput()"
    before = cpu_of_the_tree()
    with subprocess.Popen(
        [sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        while_it_runs = cpu_of_the_tree() - before
        child.communicate(b"\n", timeout=120)
    afterwards = cpu_of_the_tree() - before

    assert while_it_runs > 0.15
    assert afterwards >= while_it_runs - 0.02
