"""``adp-async experiments | runs | show | plot``: what the service has."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from math import isfinite
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console

from adp_async import NotFound, RetryPolicy, Session
from adp_async._line_chart import Line, Plot
from adp_async._sansio.records import spell
from adp_async._sansio.service_address import page_of_run
from adp_async._sansio.texts import counted
from adp_async._svg_chart import chart
from adp_async.cli.output import (
    console_for,
    duration,
    local_time,
    print_facts,
    print_json,
    print_table,
    say,
    shown,
)
from adp_async.display import COLOURS
from adp_async.errors import AdpError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from adp_async.cli.options import CommandLine
    from adp_async.entities.experiments import Experiment
    from adp_async.entities.runs import Run
    from adp_async.settings import Settings

__all__ = ["list_experiments", "list_runs", "plot", "show"]

#: Somebody is waiting: a service that does not answer is told after some seconds, not minutes.
ATTEMPTS: Final = 3
#: The most experiments whose runs are looked through when none is named: the latest.
MOST_EXPERIMENTS: Final = 100
#: The most metrics that are drawn when none is named.
MOST_CHARTS: Final = 6
#: Columns that a terminal needs for everything.
WIDE: Final = 100

#: Points of a metric: its name, and what is drawn.
Points = dict[str, list[tuple[float, float]]]


@asynccontextmanager
async def _session(given: CommandLine) -> AsyncIterator[Session]:
    """A session that only reads."""
    retry = RetryPolicy(max_attempts=ATTEMPTS)
    known = given.session_arguments()
    async with Session(**known, spool=False, recover=False, retry=retry) as session:
        session.settings.required_workspace()
        yield session


# Experiments -------------------------------------------------------------------------------------


def list_experiments(given: CommandLine, *, limit: int, as_json: bool) -> None:
    """Print the experiments that changed last."""
    found = asyncio.run(_experiments(given, limit))
    if as_json:
        print_json([_experiment_fields(each) for each in found])
        return
    console = console_for()
    rows = [
        (each.experiment_id, each.name, local_time(each.last_update_datetime)) for each in found
    ]
    print_table(console, ("ID", "NAME", "CHANGED"), rows, flexible={"NAME"})
    _say_limit(console, len(found), limit)


def _say_limit(console: Console, count: int, limit: int) -> None:
    if count == limit:
        say(console, f"the latest {limit:,}; --limit shows more")


async def _experiments(given: CommandLine, limit: int) -> list[Experiment]:
    async with _session(given) as session:
        return await _latest_experiments(session, limit)


async def _latest_experiments(session: Session, limit: int) -> list[Experiment]:
    order = ["last_update_time DESC"]
    return await session.experiments.search(order_by=order, limit=limit).to_list()


def _experiment_fields(experiment: Experiment) -> dict[str, object]:
    return {
        "experiment_id": experiment.experiment_id,
        "name": experiment.name,
        "lifecycle_stage": experiment.lifecycle_stage,
        "artifact_location": experiment.artifact_location,
        "created": _iso(experiment.creation_datetime),
        "changed": _iso(experiment.last_update_datetime),
        "tags": {tag.key: tag.value for tag in experiment.tags},
    }


# Runs --------------------------------------------------------------------------------------------


def list_runs(given: CommandLine, experiment: str | None, *, limit: int, as_json: bool) -> None:
    """Print the latest runs, of one experiment or of all."""
    settings, found, names = asyncio.run(_runs(given, experiment, limit))
    if as_json:
        print_json([run_fields(run, names.get(run.info.experiment_id), settings) for run in found])
        return
    console = console_for()
    if not found:
        say(console, f"no runs in the experiment {experiment!r}" if experiment else "no runs")
        return
    hidden = {"EXPERIMENT"} if experiment else set()
    if console.width < WIDE:
        hidden |= {"EXPERIMENT", "TOOK"}
    rows = [_row(run, names) for run in found]
    columns = [name for name in rows[0] if name not in hidden]
    cells = [[row[name] for name in columns] for row in rows]
    print_table(console, columns, cells, flexible={"NAME", "EXPERIMENT"})
    _say_limit(console, len(found), limit)


def _row(run: Run, names: Mapping[str, str]) -> dict[str, str]:
    home = run.info.experiment_id
    return {
        "RUN": run.info.run_id,
        "NAME": run.info.run_name or "",
        "EXPERIMENT": names.get(home, home),
        "STATUS": run.info.status or "",
        "STARTED": local_time(run.info.start_datetime)[:-3],  # without seconds
        "TOOK": _took(run),
    }


async def _runs(
    given: CommandLine, experiment: str | None, limit: int
) -> tuple[Settings, list[Run], dict[str, str]]:
    """The runs, and the names of their experiments."""
    async with _session(given) as session:
        if experiment is None:
            homes = await _latest_experiments(session, MOST_EXPERIMENTS)
        else:
            homes = [await _named(session, experiment)]
        names = {each.experiment_id: each.name for each in homes}
        if not names:
            return session.settings, [], names
        search = session.runs.search(
            experiment_ids=list(names), order_by=["attributes.start_time DESC"], limit=limit
        )
        return session.settings, await search.to_list(), names


async def _named(session: Session, name: str) -> Experiment:
    try:
        return await session.experiments.get_by_name(name)
    except NotFound:
        known = await _latest_experiments(session, 10)
        names = ", ".join(repr(each.name) for each in known) or "none"
        message = f"there is no experiment called {name!r}; the latest are: {names}"
        raise AdpError(message) from None


def _took(run: Run) -> str:
    start, end = run.info.start_time, run.info.end_time
    return "" if start is None or end is None else duration((end - start) / 1000)


# One run -----------------------------------------------------------------------------------------


def show(given: CommandLine, run_id: str, *, as_json: bool) -> None:
    """Print a run: its facts, params, the last value of each metric, and tags."""
    settings, run, experiment = asyncio.run(_run(given, run_id))
    fields = run_fields(run, experiment, settings)
    if as_json:
        print_json(fields)
        return
    console = console_for()
    print_facts(console, list(_facts(run, fields).items()))
    metrics = [
        (each.key, f"{each.value:g}", f"{each.step:,}", local_time(each.datetime))
        for each in sorted(run.data.metrics, key=lambda each: each.key)
    ]
    if metrics:
        say(console, "")
        columns = ("METRIC", "LAST VALUE", "STEP", "TIME")
        print_table(console, columns, metrics, flexible={"METRIC"})
    for title, pairs in (("PARAM", run.data.params), ("TAG", run.data.tags)):
        if pairs:
            say(console, "")
            rows = sorted(pairs.items())
            print_table(console, (title, "VALUE"), rows, flexible={title, "VALUE"})


async def _run(given: CommandLine, run_id: str) -> tuple[Settings, Run, str | None]:
    async with _session(given) as session:
        run = await session.runs.get(run_id)
        try:
            home = await session.experiments.get(run.info.experiment_id)
        except NotFound:  # deleted for good, while its runs are still there
            return session.settings, run, None
        return session.settings, run, home.name


def _facts(run: Run, fields: Mapping[str, Any]) -> dict[str, str]:
    took = f", after {taken}" if (taken := _took(run)) else ""
    ended = local_time(run.info.end_datetime)
    known = {
        "run": run.info.run_id,
        "name": run.info.run_name,
        "experiment": f"{fields['experiment'] or 'unknown'} (id {run.info.experiment_id})",
        "status": run.info.status,
        "started": local_time(run.info.start_datetime),
        "ended": f"{ended}{took}" if ended else "",
        "page": fields["url"],
        "artifacts": run.info.artifact_uri,
        "lifecycle": run.info.lifecycle_stage if run.info.lifecycle_stage != "active" else "",
    }
    return {name: text for name, text in known.items() if text}


def run_fields(run: Run, experiment: str | None, settings: Settings) -> dict[str, object]:
    """A run for programs: what ``show --json`` prints, and ``runs --json`` a list of.

    Times are ISO 8601 in UTC.  Values that are not finite are the service's words for them:
    "NaN", "Infinity" and "-Infinity".
    """
    info, data = run.info, run.data
    template = settings.page_url
    return {
        "run_id": info.run_id,
        "name": info.run_name,
        "experiment_id": info.experiment_id,
        "experiment": experiment,
        "status": info.status,
        "lifecycle_stage": info.lifecycle_stage,
        "started": _iso(info.start_datetime),
        "ended": _iso(info.end_datetime),
        "url": template and _page(template, run, settings),
        "artifact_uri": info.artifact_uri,
        "params": dict(data.params.items()),
        "metrics": {
            each.key: {
                "value": spell(each.value),
                "step": each.step,
                "time": _iso(each.datetime),
            }
            for each in data.metrics
        },
        "tags": dict(data.tags.items()),
    }


def _page(template: str, run: Run, settings: Settings) -> str | None:
    return page_of_run(
        template,
        run_id=run.info.run_id,
        experiment_id=run.info.experiment_id,
        workspace=settings.workspace,
        platform_id=settings.platform_id,
    )


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


# Charts ------------------------------------------------------------------------------------------


def plot(given: CommandLine, run_id: str, keys: Sequence[str], *, svg: Path | None) -> None:
    """Draw metrics of a run in the terminal, or into a new file *svg*."""
    points, others, x_name = asyncio.run(_points(given, run_id, keys))
    if svg is not None:
        with svg.open("x", encoding="utf-8") as file:
            file.write(chart(points, x_name))
        return
    console = Console(highlight=False)
    # Lines in one chart are told apart by their colours only.
    together = bool(keys) and console.is_terminal and not console.no_color
    charts = [points] if together else [{key: drawn} for key, drawn in points.items()]
    for lines in charts:
        _draw(console, lines, x_name)
    if others:
        names = ", ".join(others)
        say(console, f"and {counted(len(others), 'other metric')}, drawn when named: {names}")


def _draw(console: Console, lines: Points, x_name: str) -> None:
    if not any(isfinite(y) for drawn in lines.values() for _, y in drawn):
        say(console, f"{', '.join(lines)}: no finite value")
        return
    named = [
        Line(shown(name), drawn, COLOURS[number % len(COLOURS)])
        for number, (name, drawn) in enumerate(lines.items())
    ]
    console.print(Plot(named, x_name=x_name))


async def _points(
    given: CommandLine, run_id: str, keys: Sequence[str]
) -> tuple[Points, list[str], str]:
    """The points of each metric, the names of those that are not drawn, and what x is."""
    async with _session(given) as session:
        known = sorted((await session.runs.get(run_id)).data.metrics.keys())
        _check_keys(run_id, keys, known)
        chosen = list(dict.fromkeys(keys)) or known[:MOST_CHARTS]
        found = {key: await session.runs.metric_history(run_id, key).to_list() for key in chosen}
    # Logged without steps, all points would be on top of one another.
    has_steps = any(point.step for points in found.values() for point in points)
    first = min((point.timestamp for points in found.values() for point in points), default=0)
    drawn: Points = {
        key: sorted(
            (float(point.step) if has_steps else (point.timestamp - first) / 1000, point.value)
            for point in points
        )
        for key, points in found.items()
    }
    return drawn, [] if keys else known[MOST_CHARTS:], "step" if has_steps else "seconds"


def _check_keys(run_id: str, keys: Sequence[str], known: Sequence[str]) -> None:
    if not known:
        message = f"run {run_id}: no metric has been logged"
        raise AdpError(message)
    if missing := [key for key in keys if key not in known]:
        names = ", ".join(map(repr, known))
        message = f"run {run_id} has no metric {', '.join(map(repr, missing))}; it has: {names}"
        raise AdpError(message)
