"""``adp-async demo``: a real training run on a local platform, and its proof.

The classifier is trained in the main thread through `adp_async.blocking`, as a training script
would; then everything is read back from the server and compared with what was logged.
"""

from __future__ import annotations

import math
import shlex
import time
from collections import Counter
from contextlib import ExitStack
from statistics import median
from typing import TYPE_CHECKING

from attrs import define, field, frozen
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from adp_async import ApiKey, __version__, blocking
from adp_async._line_chart import Line, Plot
from adp_async._sansio.texts import printable
from adp_async.cli.background import running_platform
from adp_async.cli.serve import wait_for_the_end
from adp_async.errors import ConfigurationError, DeliveryError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from adp_async import Session, Stats
    from adp_async.cli.training import Training
    from adp_async.entities.runs import Run as RunEntity
    from adp_async.local import LocalPlatform

__all__ = ["Bounds", "Ledger", "ServerRun", "differences", "run_demo"]

EXPERIMENT = "digits"
TAGS = {"adp_async.version": __version__, "purpose": "demo"}
#: How many differences are listed; the others are counted.
NAMED = 5


@frozen
class Bounds:
    """How long to train: until *points* are logged, or for *seconds* if given."""

    points: int = 20_000
    seconds: float | None = None

    def are_reached(self, points: int, seconds: float) -> bool:
        return points >= self.points if self.seconds is None else seconds >= self.seconds

    def share(self, points: int, seconds: float) -> float:
        """The progress, from 0 to 1."""
        done = points / self.points if self.seconds is None else seconds / (self.seconds or 1.0)
        return min(1.0, done)


@define
class Ledger:
    """What was logged, recorded independently of the library, and how long the calls took."""

    points: dict[str, list[tuple[int, float]]] = field(factory=dict)
    calls: int = 0
    seconds: float = 0.0
    #: Microseconds of one call, one figure for each step.
    costs: list[float] = field(factory=list)

    def log(self, run: blocking.Run, measured: Mapping[str, float], step: int) -> None:
        began = time.perf_counter()
        for key, value in measured.items():
            run.log_metric(key, value, step)
        took = time.perf_counter() - began
        self.calls += len(measured)
        self.seconds += took
        self.costs.append(took / len(measured) * 1e6)
        for key, value in measured.items():
            self.points.setdefault(key, []).append((step, value))


@frozen
class ServerRun:
    """The run as the server has it: *points* is the whole history of every metric."""

    run: RunEntity
    points: Mapping[str, list[tuple[int, float]]]

    @classmethod
    async def fetch(cls, session: Session, run_id: str) -> ServerRun:
        run = await session.runs.get(run_id)
        points = {}
        for metric in run.data.metrics:
            history = session.runs.metric_history(run_id, metric.key, max_results=25_000)
            points[metric.key] = [(point.step, point.value) async for point in history]
        return cls(run, points)


@frozen
class Result:
    """The outcome of a training run."""

    run_id: str
    experiment_id: str
    stats: Stats
    epochs: int
    #: Seconds that the training loop took, and then until the server had everything.
    training_seconds: float
    delivery_seconds: float


def run_demo(
    bounds: Bounds, *, keep: bool = False, directory: Path | None = None, port: int = 0
) -> int:
    """Train, read back, compare and show; the exit code, 1 if one point differs."""
    console = Console(highlight=False)
    with ExitStack() as stack:
        platform = stack.enter_context(running_platform(console, directory=directory, port=port))
        training = _load_training(console)
        ledger = Ledger()
        with _session(platform) as session:
            result = _train(console, session, training, bounds, ledger)
            found = _read_back(console, session, result.run_id)
        wrong = differences(ledger, training.params, found)
        _show(console, platform, training, ledger, result, wrong)
        _show_address(console, platform, result)
        if keep:
            wait_for_the_end(console, platform)
        else:
            _show_how_to_keep(console, directory)
    return 1 if wrong else 0


def _load_training(console: Console) -> Training:
    with console.status("loading scikit-learn and its digits"):
        try:
            from adp_async.cli.training import Training
        except ModuleNotFoundError as error:
            message = f"the demo needs {error.name}; pip install 'adp-async[local]' brings it"
            raise ConfigurationError(message) from error
        return Training()


def _session(platform: LocalPlatform) -> blocking.Session:
    assert platform.directory is not None
    return blocking.Session(
        platform.platform_id,
        platform.workspace,
        endpoint=platform.endpoint,
        auth=ApiKey(platform.config_file, platform.profile),
        # The spool is for this platform only, and goes with it.
        spool=platform.directory / "spool",
    )


# The training ------------------------------------------------------------------------------------


def _train(
    console: Console,
    session: blocking.Session,
    training: Training,
    bounds: Bounds,
    ledger: Ledger,
) -> Result:
    with (
        _Watch(console, bounds) as watch,
        session.start_run(
            EXPERIMENT, run_name="sgd on digits", params=training.params, tags=TAGS
        ) as run,
    ):
        run.log_inputs(training.digits.as_inputs())
        began = time.perf_counter()
        for measured in _steps(training, bounds, ledger, began):
            ledger.log(run, measured, training.step)
            watch.update(ledger, run, time.perf_counter() - began)
        trained = time.perf_counter()
        watch.say("waiting until the server has everything")
        _flush(console, run)
        delivered = time.perf_counter()
    return Result(
        run_id=run.run_id,
        experiment_id=run.experiment_id or "",
        stats=session.session.logger.stats(),
        epochs=math.ceil(training.step / training.steps_an_epoch),
        training_seconds=trained - began,
        delivery_seconds=delivered - began,
    )


def _steps(
    training: Training, bounds: Bounds, ledger: Ledger, began: float
) -> Iterator[dict[str, float]]:
    """What each step measures, and after each epoch the test, until *bounds* are reached."""
    is_enough = False
    while not is_enough:
        for measured in training.epoch():
            yield measured
            is_enough = bounds.are_reached(ledger.calls, time.perf_counter() - began)
            if is_enough:
                break
        yield training.test()


def _flush(console: Console, run: blocking.Run) -> None:
    try:
        run.flush()
    except DeliveryError as error:
        # The comparison with the server will report what is missing.
        console.print(Text.assemble(("refused: ", "red"), printable(str(error), 2000)))


class _Watch:
    """Progress of the training, live on a terminal and otherwise in two lines."""

    def __init__(self, console: Console, bounds: Bounds) -> None:
        self._console = console
        self._bounds = bounds
        self._seen = 0.0
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[counts]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task("training", total=1.0, counts="")

    def update(self, ledger: Ledger, run: blocking.Run, seconds: float) -> None:
        if seconds < self._seen + 0.1 or self._progress.disable:
            return
        self._seen = seconds
        accuracy = ledger.points.get("test/accuracy", [(0, 0.0)])[-1][1]
        self._progress.update(
            self._task,
            completed=self._bounds.share(ledger.calls, seconds),
            description=f"training, {accuracy:.1%} right",
            counts=f"{ledger.calls:,} points logged, {run.stats().delivered:,} delivered",
        )

    def say(self, what: str) -> None:
        self._progress.update(self._task, completed=1.0, description=what)
        if self._progress.disable:
            self._console.print(what)

    def __enter__(self) -> _Watch:
        if self._progress.disable:
            self._console.print("training a classifier on scikit-learn's digits")
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()


# The proof ---------------------------------------------------------------------------------------


def _read_back(console: Console, session: blocking.Session, run_id: str) -> ServerRun:
    with console.status("reading the run back from the server"):
        return session.call(ServerRun.fetch(session.session, run_id))


def differences(ledger: Ledger, params: Mapping[str, object], found: ServerRun) -> list[str]:
    """The differences between the server and what was logged, a line each."""
    wrong = []
    for key in sorted(ledger.points.keys() | found.points.keys()):
        wrong += _point_differences(key, ledger.points.get(key, []), found.points.get(key, []))
    data = found.run.data
    wrong += _text_differences("param", params, {param.key: param.value for param in data.params})
    tags = {tag.key: tag.value for tag in data.tags if not tag.key.startswith("mlflow.")}
    wrong += _text_differences("tag", TAGS, tags)
    names = sorted(each.dataset.name for each in found.run.inputs.dataset_inputs)
    if names != ["digits-testing", "digits-training"]:
        wrong.append(f"inputs: the server has {names}")
    if found.run.info.status != "FINISHED":
        wrong.append(f"status: the server has {found.run.info.status}")
    return wrong


def _point_differences(
    key: str, logged: list[tuple[int, float]], found: list[tuple[int, float]]
) -> list[str]:
    # As text, in which a float is exact and NaN equals NaN.
    ours = Counter((step, repr(value)) for step, value in logged)
    theirs = Counter((step, repr(value)) for step, value in found)
    missing, extra = (ours - theirs), (theirs - ours)
    return [
        f"metric {key} at step {step}: {value} was {what}"
        for what, points in (("logged and is missing", missing), ("never logged", extra))
        for (step, value), count in sorted(points.items())
        for _ in range(count)
    ]


def _text_differences(
    kind: str, logged: Mapping[str, object], found: Mapping[str, str]
) -> list[str]:
    ours = {key: str(value) for key, value in logged.items()}
    return [
        f"{kind} {key}: {ours.get(key)!r} was logged, the server has {found.get(key)!r}"
        for key in sorted(ours.keys() | found.keys())
        if ours.get(key) != found.get(key)
    ]


# What is shown -----------------------------------------------------------------------------------


def _show(
    console: Console,
    platform: LocalPlatform,
    training: Training,
    ledger: Ledger,
    result: Result,
    wrong: list[str],
) -> None:
    console.print()
    console.print(
        Plot(
            (
                Line("loss of each step", ledger.points["train/loss"], "cyan"),
                Line("loss on the test digits", ledger.points["test/loss"], "bold yellow"),
            )
        )
    )
    console.print()
    console.print(_table(training, ledger, result))
    for line in wrong[:NAMED]:
        console.print(printable(line, 2000), style="red", markup=False)
    console.print(_verdict(ledger, wrong))


def _table(training: Training, ledger: Ledger, result: Result) -> Table:
    stats = result.stats
    accuracy = ledger.points["test/accuracy"][-1][1]
    share = ledger.seconds / result.training_seconds
    rate = stats.delivered / result.delivery_seconds
    rest = result.delivery_seconds - result.training_seconds
    table = Table(box=None, show_header=False, padding=(0, 3, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    for row in (
        (
            "test digits right",
            f"{accuracy:.1%}",
            f"{training.step:,} steps, {result.epochs} epochs",
        ),
        ("log_metric calls", f"{ledger.calls:,}", f"{len(ledger.points)} metrics"),
        ("cost of a call", f"{median(ledger.costs):.2f} µs", f"{share:.1%} of the training"),
        ("log-batch requests", f"{stats.requests:,}", f"{stats.retries:,} retried"),
        ("records a request", f"{stats.delivered / max(1, stats.requests):,.0f}", "1,000 at most"),
        ("delivered", f"{stats.delivered:,}", "points and params"),
        ("rejected", f"{sum(stats.rejected.values()):,}", ""),
        (
            "rate",
            f"{rate:,.0f}/s",
            f"{result.training_seconds:.1f} s of training, {rest:.1f} s for the rest",
        ),
    ):
        table.add_row(*row)
    return table


def _verdict(ledger: Ledger, wrong: list[str]) -> str:
    if wrong:
        return f"\n[bold red]{len(wrong):,} differences between what was logged and the server[/]"
    return (
        f"\n[bold green]Read back and equal:[/] {ledger.calls:,} points of "
        f"{len(ledger.points)} metrics, params, tags, inputs, status"
    )


def _show_address(console: Console, platform: LocalPlatform, result: Result) -> None:
    page = f"{platform.mlflow_url}/#/experiments/{result.experiment_id}/runs/{result.run_id}"
    page = printable(page, 2000)
    console.print(f"\nThe run in MLflow: {page}", soft_wrap=True, style=f"link {page}")


def _show_how_to_keep(console: Console, directory: Path | None) -> None:
    told = (
        "The platform stops with this command: `adp-async demo --keep` leaves it running, to look."
    )
    if directory is not None:
        folder = shlex.quote(str(directory))
        told = f"The platform stops now: `adp-async serve --directory {folder}` brings it back."
    console.print(told, style="dim", soft_wrap=True)
