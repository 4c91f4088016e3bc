"""`adp-async experiments`, `runs`, `show` and `plot`, for people and for programs."""

from __future__ import annotations

import json
import math
import uuid
from datetime import datetime
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest
from attrs import field, frozen
from typer.testing import CliRunner

from adp_async import ApiKey, blocking
from adp_async.cli import app
from adp_async.cli.serve import environment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from click.testing import Result

    from adp_async.local import LocalPlatform

pytestmark = pytest.mark.mlflow

EVIL = "x\x1b[31mred\u202e"


@frozen
class Logged:
    """Runs of an experiment of its own, and what was logged into them."""

    experiment: str
    #: FINISHED, with metrics by step, params and tags; logged without steps; and RUNNING.
    good: str
    stepless: str
    running: str
    settings: dict[str, str] = field(repr=False)


def session_at(platform: LocalPlatform) -> blocking.Session:
    return blocking.Session(
        platform.platform_id,
        platform.workspace,
        endpoint=platform.endpoint,
        auth=ApiKey(platform.config_file, platform.profile),
        spool=False,
    )


@pytest.fixture(scope="module")
def logged(platform: LocalPlatform) -> Iterator[Logged]:
    platform.gateway.reset()
    experiment = f"reading {uuid.uuid4().hex[:8]}"
    with session_at(platform) as session:
        with session.start_run(
            experiment, run_name="a long name" * 9, params={"lr": 0.1}, tags={"team": "vision"}
        ) as good:
            for step in range(50):
                good.log_metric("loss", math.exp(-step), step)
                good.log_metric("val/loss", 2 * math.exp(-step), step)
            good.log_metric("bad", math.nan, 3)
        stepless = session.start_run(experiment, run_name=EVIL)
        stepless.log_metric("load", 1.0)
        stepless.log_metric("load", 2.0)
        stepless.finish("FAILED")
        running = session.start_run(experiment)
        yield Logged(
            experiment, good.run_id, stepless.run_id, running.run_id, environment(platform)
        )
        running.finish()


@pytest.fixture(autouse=True)
def at_platform(
    logged: Logged, platform: LocalPlatform, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    monkeypatch.delenv("OCI_CLI_AUTH", raising=False)
    for name, value in logged.settings.items():
        monkeypatch.setenv(name, value)
    yield
    platform.gateway.reset()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def read(*arguments: str) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


# ------------------------------------------------------------------ lists


def test_runs_are_listed_the_latest_first(logged: Logged) -> None:
    """A line each: id, name, status, start and length; no escape codes, no spaces at the end."""
    result = run("runs", "--experiment", logged.experiment)

    lines = result.stdout.splitlines()
    assert lines[0].split() == ["RUN", "NAME", "STATUS", "STARTED", "TOOK"]
    assert [line.split()[0] for line in lines[1:]] == [
        logged.running, logged.stepless, logged.good
    ]  # fmt: skip
    assert "RUNNING" in lines[1]
    assert "FAILED" in lines[2]
    assert "a long name" * 9 in lines[3]
    assert all(each.isprintable() or each == "\n" for each in result.stdout)
    assert lines == [line.rstrip() for line in lines]


def test_runs_of_all_experiments(logged: Logged) -> None:
    """Without --experiment the experiment of each is told; --limit is the most, and says so."""
    result = run("runs", "--limit", "2")

    lines = result.stdout.splitlines()
    assert lines[0].split()[2] == "EXPERIMENT"
    assert [line.split()[0] for line in lines[1:3]] == [logged.running, logged.stepless]
    assert all(logged.experiment in line for line in lines[1:3])
    assert lines[3:] == ["the latest 2; --limit shows more"]


@pytest.mark.parametrize("width", [80, 120])
def test_runs_fit_a_terminal(logged: Logged, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's id is whole, to be copied; its name is cut."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width))
    from rich.text import Text

    lines = Text.from_ansi(run("runs").stdout).plain.splitlines()

    assert max(map(len, lines)) <= width
    assert ("EXPERIMENT" in lines[0]) == (width > 100)
    (good,) = [line for line in lines if logged.good in line]
    assert "…" in good


def test_runs_for_programs(logged: Logged) -> None:
    """A list of what `show --json` prints."""
    found = read("runs", "--experiment", logged.experiment)

    assert found == [read("show", each) for each in (logged.running, logged.stepless, logged.good)]


def test_an_experiment_that_is_not_there_is_named(logged: Logged) -> None:
    """With those that are."""
    result = run("runs", "--experiment", "typo")

    assert (result.exit_code, result.stdout) == (1, "")
    assert "there is no experiment called 'typo'; the latest are: " in result.stderr
    assert f"{logged.experiment!r}" in result.stderr


def test_an_experiment_without_runs_says_so(platform: LocalPlatform) -> None:
    """Rather than nothing."""
    name = f"empty {uuid.uuid4().hex[:8]}"
    with session_at(platform) as session:
        session.experiments.create(name)

    assert run("runs", "--experiment", name).stdout == f"no runs in the experiment {name!r}\n"
    assert read("runs", "--experiment", name) == []


def test_experiments_are_listed(logged: Logged) -> None:
    """Id, name and last change; as JSON with everything."""
    lines = run("experiments", "--limit", "50").stdout.splitlines()

    assert lines[0].split() == ["ID", "NAME", "CHANGED"]
    (line,) = [line for line in lines if logged.experiment in line]
    (found,) = [each for each in read("experiments") if each["name"] == logged.experiment]
    assert line.split()[0] == found["experiment_id"]
    assert found["lifecycle_stage"] == "active"
    assert set(found) == {
        "experiment_id", "name", "lifecycle_stage", "artifact_location", "created", "changed",
        "tags",
    }  # fmt: skip
    assert run("experiments", "--limit", "1").stdout.count("\n") == 3


# ------------------------------------------------------------------ one run


def test_a_run_is_shown(logged: Logged) -> None:
    """Facts, link, metrics with step, params and tags."""
    result = run("show", logged.good)

    text = result.stdout
    assert result.exit_code == 0
    for line in (
        f"run         {logged.good}",
        f"experiment  {logged.experiment} (id ",
        "status      FINISHED",
        "page        http://127.0.0.1:",
        "bad       nan ",
        "loss      5.24289e-22  49 ",
        "lr     0.1",
        "team ",
    ):
        assert f"\n{line}" in f"\n{text}", line
    assert all(line == line.rstrip() for line in text.splitlines())


def test_a_run_for_programs(logged: Logged) -> None:
    """Fields that stay; what is not finite is a text, and so it is JSON for everybody."""
    found = read("show", logged.good)

    assert list(found) == [
        "run_id", "name", "experiment_id", "experiment", "status", "lifecycle_stage", "started",
        "ended", "url", "artifact_uri", "params", "metrics", "tags",
    ]  # fmt: skip
    assert found["run_id"] == logged.good
    assert found["experiment"] == logged.experiment
    assert found["url"].endswith(f"/experiments/{found['experiment_id']}/runs/{logged.good}")
    assert found["params"] == {"lr": "0.1"}
    assert found["tags"]["team"] == "vision"
    assert found["metrics"]["loss"]["value"] == math.exp(-49)
    assert found["metrics"]["loss"]["step"] == 49
    assert found["metrics"]["bad"]["value"] == "NaN"
    started, ended = (datetime.fromisoformat(found[name]) for name in ("started", "ended"))
    assert started <= datetime.fromisoformat(found["metrics"]["bad"]["time"]) <= ended
    assert read("show", logged.running)["ended"] is None


def test_what_a_run_is_called_does_not_steer_the_terminal(logged: Logged) -> None:
    """Neither its name nor anything else of it; JSON escapes it."""
    shown = run("show", logged.stepless).stdout
    as_json = run("show", logged.stepless, "--json").stdout

    assert all(each.isprintable() or each == "\n" for each in shown + as_json)
    assert json.loads(as_json)["name"] == EVIL


def test_a_run_that_is_not_there_is_one_line() -> None:
    """With the service's own words."""
    result = run("show", "0" * 32)

    assert (result.exit_code, result.stdout) == (1, "")
    assert len(result.stderr.splitlines()) == 1
    assert "404" in result.stderr


def test_without_a_workspace_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs belong to one."""
    monkeypatch.delenv("AIDP_WORKSPACE")

    result = run("runs")

    assert result.exit_code == 1
    assert "AIDP_WORKSPACE" in result.stderr


# ------------------------------------------------------------------ charts


def test_metrics_are_drawn_apart_where_there_are_no_colours(logged: Logged) -> None:
    """Two lines in one chart could not be told apart in a pipe; each is named."""
    text = run("plot", logged.good, "loss", "val/loss").stdout

    assert text.count("step 49") == 2
    assert "loss" in text.partition("step 49")[0]
    assert "val/loss" in text.partition("step 49")[2]
    assert max(map(len, text.splitlines())) <= 80


def test_metrics_are_drawn_together_in_colours(
    logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a person asked for both."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    text = run("plot", logged.good, "loss", "val/loss").stdout

    assert text.count("step 49") == 1
    assert "\x1b[36m" in text
    assert "\x1b[33m" in text


def test_without_keys_each_metric_is_drawn(logged: Logged) -> None:
    """One that has no finite value is named."""
    text = run("plot", logged.good).stdout

    assert text.count("step 49") == 2
    assert "bad: no finite value\n" in text


def test_metrics_without_steps_are_drawn_by_time(logged: Logged) -> None:
    """All of them would be above one another at step 0."""
    assert "seconds" in run("plot", logged.stepless, "load").stdout


def test_more_metrics_than_are_drawn_are_named(
    logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To be asked for by name."""
    monkeypatch.setattr("adp_async.cli.reading.MOST_CHARTS", 1)
    text = run("plot", logged.good).stdout

    assert text == ("bad: no finite value\nand 2 other metrics, drawn when named: loss, val/loss\n")


def test_a_metric_that_is_not_there_is_named(logged: Logged) -> None:
    """With those that are; and a run without any says that."""
    typo = run("plot", logged.good, "los", "loss")
    none = run("plot", logged.running)

    assert (typo.exit_code, none.exit_code) == (1, 1)
    assert "no metric 'los'; it has: 'bad', 'loss', 'val/loss'" in typo.stderr
    assert "no metric has been logged" in none.stderr


def test_a_chart_is_written_into_a_new_file(logged: Logged, tmp_path: Path) -> None:
    """As SVG; a file that is there is not overwritten."""
    target = tmp_path / "loss.svg"
    command = ("plot", logged.good, "loss", "val/loss", "--svg", str(target))

    first, second = run(*command), run(*command)

    assert (first.exit_code, first.stdout) == (0, "")
    root = ElementTree.fromstring(target.read_text())
    assert len(root.findall("{http://www.w3.org/2000/svg}polyline")) == 2
    assert (second.exit_code, second.stderr) == (1, f"adp-async: {target}: File exists\n")


def test_reading_writes_nothing(
    logged: Logged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even a spool; and who reads delivers nothing of others."""
    monkeypatch.setenv("ADP_ASYNC_SPOOL", str(tmp_path / "spool"))
    for command in (["runs"], ["show", logged.good], ["plot", logged.good], ["experiments"]):
        assert run(*command).exit_code == 0

    assert list(tmp_path.iterdir()) == []


def test_a_service_that_is_down_is_told_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a line that names the address, after a few attempts."""
    monkeypatch.setenv("AIDP_ENDPOINT", "http://127.0.0.1:9")
    result = run("runs")

    assert result.exit_code == 1
    assert "127.0.0.1" in result.stderr.splitlines()[-1]
