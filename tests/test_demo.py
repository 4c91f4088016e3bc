"""The demo: what it trains, how it proves delivery, and what it draws."""

from __future__ import annotations

import math
import subprocess
import sys
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from rich.console import Console

from adp_async._line_chart import Line, Plot
from adp_async.cli import demo
from adp_async.cli.demo import TAGS, Bounds, Ledger, ServerRun, differences
from adp_async.entities import runs
from adp_async.errors import ConfigurationError
from adp_async.testing import FakeBlockingSession

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adp_async.cli.training import Training
    from adp_async.local import LocalPlatform

PARAMS = {"lr": 0.1, "layers": (64, 32)}

# ------------------------------------------------------------------ the proof


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(
        points={"loss": [(1, 0.5), (2, 0.25)], "precision": [(2, math.nan)]}, calls=3, seconds=1e-6
    )


@pytest.fixture
def found() -> ServerRun:
    """The run on the server, exactly as it was logged."""
    dataset = {"digest": "d", "source_type": "code", "source": "s"}
    inputs = tuple(
        runs.DatasetInput(runs.Dataset(name=f"digits-{part}", **dataset))
        for part in ("testing", "training")
    )
    tags = {**TAGS, "mlflow.runName": "sgd"}
    return ServerRun(
        runs.Run(
            info=runs.RunInfo(status="FINISHED"),
            data=runs.RunData(
                params=tuple(runs.Param(key, str(value)) for key, value in PARAMS.items()),
                tags=tuple(runs.RunTag(key, value) for key, value in tags.items()),
            ),
            inputs=runs.RunInputs(inputs),
        ),
        {"loss": [(2, 0.25), (1, 0.5)], "precision": [(2, math.nan)]},
    )


def with_points(found: ServerRun, **points: list[tuple[int, float]]) -> ServerRun:
    return attrs.evolve(found, points={**found.points, **points})


def test_what_arrived_as_it_was_logged_is_equal(ledger: Ledger, found: ServerRun) -> None:
    """Neither the order on the server nor NaN is a difference."""
    assert differences(ledger, PARAMS, found) == []


@pytest.mark.parametrize(
    ("points", "told"),
    [
        ([(1, 0.5)], ["metric loss at step 2: 0.25 was logged and is missing"]),
        ([(1, 0.5), (2, 0.25), (2, 0.25)], ["metric loss at step 2: 0.25 was never logged"]),
        (
            [(1, 0.5), (2, math.nextafter(0.25, 1.0))],
            [
                "metric loss at step 2: 0.25 was logged and is missing",
                "metric loss at step 2: 0.25000000000000006 was never logged",
            ],
        ),
        (
            [(1, 0.5), (3, 0.25)],
            [
                "metric loss at step 2: 0.25 was logged and is missing",
                "metric loss at step 3: 0.25 was never logged",
            ],
        ),
    ],
    ids=["missing", "doubled", "last bit", "step"],
)
def test_every_point_counts(
    ledger: Ledger, found: ServerRun, points: list[tuple[int, float]], told: list[str]
) -> None:
    """A point that is missing, doubled, moved or off by the last bit is named."""
    assert differences(ledger, PARAMS, with_points(found, loss=points)) == told


def test_a_metric_nobody_logged_is_a_difference(ledger: Ledger, found: ServerRun) -> None:
    """The server must not have more than was logged."""
    wrong = differences(ledger, PARAMS, with_points(found, ghost=[(0, 1.0)]))

    assert wrong == ["metric ghost at step 0: 1.0 was never logged"]


def test_params_tags_inputs_and_status_count(ledger: Ledger, found: ServerRun) -> None:
    """Each of them is compared; MLflow's own tags are not."""
    bare = runs.Run(info=runs.RunInfo(status="RUNNING"))

    wrong = differences(ledger, PARAMS, attrs.evolve(found, run=bare))

    assert {line.partition(" ")[0].rstrip(":") for line in wrong} == {
        "param",
        "tag",
        "inputs",
        "status",
    }


def test_the_bounds_are_points_or_seconds() -> None:
    """Seconds, when given, take the place of points."""
    assert not Bounds(points=10).are_reached(9, 1e9)
    assert Bounds(points=10).are_reached(10, 0.0)
    assert Bounds(points=10, seconds=2.0).are_reached(0, 2.0)
    assert not Bounds(points=10, seconds=2.0).are_reached(10, 1.9)
    assert Bounds(points=10).share(5, 0.0) == 0.5
    assert Bounds(seconds=0.0).share(5, 1.0) == 1.0


# ------------------------------------------------------------------ the training


@pytest.fixture(scope="module")
def training() -> Training:
    from adp_async.cli.training import Training

    return Training()


def test_the_training_is_real(training: Training) -> None:
    """Three epochs of gradient descent bring most digits right; every value is a float."""
    before = next(training.epoch())
    for _ in range(3):
        steps = list(training.epoch())
    after = training.test()

    assert before["train/loss"] > 2.0 > steps[-1]["train/loss"]
    assert after["test/accuracy"] > 0.8
    assert {type(value) for value in (*steps[-1].values(), *after.values())} == {float}
    assert sum(key.startswith("test/recall/") for key in after) == 10


def test_the_dataset_is_named_by_its_content(training: Training) -> None:
    """Both parts have a digest of their own, and the context that MLflow shows."""
    inputs = training.digits.as_inputs()

    assert [each.tags[0].value for each in inputs] == ["training", "testing"]
    assert len({each.dataset.digest for each in inputs}) == 2


@pytest.fixture
def session() -> Iterator[FakeBlockingSession]:
    with FakeBlockingSession() as session:
        yield session


@pytest.mark.parametrize("is_terminal", [False, True])
def test_the_training_is_watched(session: FakeBlockingSession, is_terminal: bool) -> None:
    """Live in a terminal, no oftener than ten times a second; elsewhere in two lines."""
    screen = StringIO()
    console = Console(file=screen, force_terminal=is_terminal, width=120, no_color=True)
    ledger = Ledger(points={"test/accuracy": [(9, 0.875)]}, calls=1234)
    with session.start_run() as run, demo._Watch(console, Bounds(points=5000)) as watch:
        watch.update(ledger, run, 0.2)
        shown = watch._progress.tasks[0].description
        ledger.points["test/accuracy"].append((10, 0.5))
        watch.update(ledger, run, 0.25)
        assert watch._progress.tasks[0].description == shown
        watch.say("waiting until the server has everything")

    assert shown == ("training, 87.5% right" if is_terminal else "training")
    assert ("training a classifier" in screen.getvalue()) != is_terminal
    assert "waiting until the server has everything" in screen.getvalue()


def test_refused_points_do_not_end_the_demo(session: FakeBlockingSession) -> None:
    """They are named, and the comparison with the server finds what is missing."""
    screen = StringIO()
    with session.start_run() as run:
        run.log_metric("b@d", 0.5)
        demo._flush(Console(file=screen, width=400), run)

    assert screen.getvalue().startswith("refused: ")
    assert "b@d" in screen.getvalue()


def test_the_demo_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """That brings what it learns with."""
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    monkeypatch.delitem(sys.modules, "adp_async.cli.training", raising=False)
    with pytest.raises(
        ConfigurationError, match=r"needs sklearn.*pip install 'adp-async\[local\]'"
    ):
        demo._load_training(Console(file=StringIO()))


@pytest.mark.parametrize(
    ("directory", "told"),
    [(None, "`adp-async demo --keep`"), ("a b", "`adp-async serve --directory 'a b'`")],
)
def test_the_demo_says_how_to_come_back(directory: str | None, told: str) -> None:
    """To the page it has just shown."""
    screen = StringIO()
    demo._show_how_to_keep(Console(file=screen), None if directory is None else Path(directory))

    assert told in screen.getvalue()


# ------------------------------------------------------------------ the whole of it


@pytest.fixture
def with_platform(
    platform: LocalPlatform, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LocalPlatform]:
    """The demo finds the platform of the tests already started."""

    @contextmanager
    def running(*arguments: object, **options: object) -> Iterator[LocalPlatform]:
        yield platform

    platform.gateway.reset()
    monkeypatch.setattr(demo, "running_platform", running)
    yield platform
    platform.gateway.reset()


@pytest.mark.mlflow
def test_the_demo_delivers_every_point() -> None:
    """From the command line: the exit code is 0, and a pipe gets no control codes."""
    command = [sys.executable, "-c", "from adp_async.cli import main; main()"]
    done = subprocess.run(
        [*command, "demo", "--points", "3000"], capture_output=True, text=True, timeout=240
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "Read back and equal: 3," in done.stdout
    assert "/#/experiments/" in done.stdout
    assert "\x1b" not in done.stdout
    assert "\r" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120
    assert done.stderr == ""


@pytest.mark.mlflow
def test_the_demo_notices_one_lost_point(
    with_platform: LocalPlatform,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The exit code is 1, and the point is named."""
    fetch = ServerRun.fetch

    async def fetch_less(session: Any, run_id: str) -> ServerRun:
        found = await fetch(session, run_id)
        del found.points["train/loss"][7]
        return found

    monkeypatch.setattr(ServerRun, "fetch", fetch_less)

    assert demo.run_demo(Bounds(points=200)) == 1
    printed = capsys.readouterr().out
    assert "metric train/loss at step 8: " in printed
    assert "was logged and is missing" in printed
    assert "1 differences" in printed


@pytest.mark.mlflow
def test_the_demo_survives_throttling(
    with_platform: LocalPlatform, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused requests are sent again, and every point arrives."""
    from adp_async.local import Quota

    with_platform.gateway.quota = Quota(rate=30, burst=3)

    assert demo.run_demo(Bounds(points=1000)) == 0
    assert "Read back and equal" in capsys.readouterr().out


# ------------------------------------------------------------------ the picture


def drawn(plot: Plot, width: int = 60, *, encoding: str = "utf-8") -> list[str]:
    console = Console(file=StringIO(), width=width)
    options = console.options
    options.encoding = encoding
    return "".join(segment.text for segment in console.render(plot, options)).splitlines()


def test_the_plot_falls_where_the_line_falls() -> None:
    """A line that falls begins high on the left and ends low on the right."""
    rows = drawn(Plot([Line("loss", [(step, 100.0 - step) for step in range(100)])], height=6))
    picture = [row[7:] for row in rows[1:-1]]

    assert len(picture) == 6
    assert picture[0].strip()
    assert len(picture[0].rstrip()) < len(picture[-1].rstrip())
    assert not picture[-1].startswith("⠉")


@pytest.mark.parametrize("width", [40, 80, 120, 300])
def test_the_plot_keeps_the_width(width: int) -> None:
    """No row is longer than the terminal, nor wider than is pleasant."""
    rows = drawn(Plot([Line("loss", [(step, 1 / step) for step in range(1, 5000)])]), width)

    assert max(map(len, rows)) <= min(width, 110)


def test_the_plot_marks_powers_of_ten() -> None:
    """Over several decades the axis is logarithmic, as its marks show."""
    text = "\n".join(drawn(Plot([Line("loss", [(step, 10.0**-step) for step in range(5)])])))

    for mark in ("1┤", "0.1┤", "0.01┤", "0.001┤"):
        assert mark in text


@pytest.mark.parametrize(
    "points",
    [
        [(0, 1.0)],
        [(0, 3.0), (9, 3.0)],
        [(0, 0.0), (5, -1.0), (9, 2.0)],
        [(0, math.nan), (1, 1.0), (2, math.inf), (3, 2.0)],
        [(0, 1e-300), (1, 1e300)],
        [(0, 0.0), (1, 0.0)],
    ],
    ids=["one", "flat", "negative", "not finite", "extreme", "zero"],
)
def test_the_plot_takes_whatever_a_metric_can_be(points: list[tuple[float, float]]) -> None:
    """Something is drawn, and nothing raised."""
    rows = drawn(Plot([Line("any", points)], height=4))

    assert any(0x2800 < ord(character) < 0x2900 for row in rows for character in row)


def test_the_plot_of_nothing_is_nothing() -> None:
    """No points, or none that is finite."""
    assert drawn(Plot([Line("any", [])])) == []
    assert drawn(Plot([Line("any", [(0, math.nan)])])) == []


def test_the_plot_has_stars_where_there_is_no_braille() -> None:
    """An output that is ASCII gets ASCII."""
    text = "\n".join(drawn(Plot([Line("loss", [(0, 1.0), (9, 2.0)])]), encoding="ascii"))

    assert "*" in text
    assert text.isascii()
