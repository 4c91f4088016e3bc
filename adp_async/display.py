"""What a session and a run show of themselves: tables for a notebook, and charts.

Nothing is asked of the service for it.  `_html` makes the tables; entities, listings and counts
use that themselves.
"""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime, timedelta
from io import BytesIO, TextIOWrapper
from operator import itemgetter
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Final

from attrs import frozen

from adp_async._html import facts as table_of
from adp_async._html import link, sparkline
from adp_async._io.counting import counted, examined
from adp_async._sansio.samples import MOST_KEYS
from adp_async.errors import shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from adp_async._io.delivery import Delivery
    from adp_async._sansio.lane import Lane
    from adp_async.settings import Settings

__all__ = ["Picture", "picture_of_run", "run_page", "session_page"]

#: Of a run, with a line of its own.
MOST_METRICS: Final = 12
#: Of lines in a terminal.
COLOURS: Final = ("cyan", "yellow", "green", "magenta", "red", "blue")


def run_page(
    delivery: Delivery, run_id: str, *, name: str | None, facts: dict[str, object], url: str | None
) -> str:
    """A run: its *facts*, its counts, what is wrong, and its metrics of this process."""
    lane = delivery.intake.lane(run_id)
    rows = {
        "run": lane.run_id if lane.is_created else "not yet created",
        "name": name,
        **facts,
        "link": url and link(url),
        **_counts(delivery, run_id),
        "last error": _trouble_of_run(delivery, lane),
        "held until": _held_until(delivery) if not lane.is_idle else None,
    }
    samples = delivery.state.samples.of(lane.key)
    for key, points in list(samples.items())[:MOST_METRICS]:
        rows[f"metrics.{key}"] = sparkline(_laid_out({key: points})[0][key])
    if len(samples) > MOST_METRICS:
        few = "" if len(samples) < MOST_KEYS else "at least "
        rows["more metrics"] = f"{few}{len(samples) - MOST_METRICS}, drawn by run.plot()"
    return table_of(rows)


def session_page(delivery: Delivery, settings: Settings) -> str:
    """A session: where it leads, its counts, and what is wrong."""
    trouble = delivery.trouble
    rows = {
        "service": settings.endpoint or settings.region or "region of the credentials",
        "platform": settings.platform_id,
        "workspace": settings.workspace,
        "session": str(delivery.lifetime).removeprefix("it is "),
        "delivery": _fares(delivery) if delivery.lifetime.is_open else None,
        **_counts(delivery),
        "last error": None if trouble is None else _described(trouble),
        "held until": _held_until(delivery),
    }
    return table_of(rows)


def _fares(delivery: Delivery) -> str:
    health = examined(delivery)
    if health.status == "ok":
        return health.status
    return f"{health.status} since {health.since:%H:%M:%S} UTC"


def _counts(delivery: Delivery, run_id: str | None = None) -> dict[str, object]:
    stats = counted(delivery, run_id)
    rejected = sum(stats.rejected.values())
    return {
        "delivered": f"{stats.delivered:,}",
        "waiting": f"{stats.undelivered:,}",
        "rejected": f"{rejected:,}",
        "dropped": f"{stats.dropped:,}" if stats.dropped else None,
        "oldest waits": f"{stats.oldest:,.0f} s" if stats.oldest >= 1.0 else None,
    }


def _trouble_of_run(delivery: Delivery, lane: Lane) -> str | None:
    started = delivery.starts.find(lane.key)
    if started is not None and started.trouble is not None:
        return _described(started.trouble)
    trouble = delivery.sender.trouble
    if lane.failures and trouble is not None:
        return f"its records are held back: {_described(trouble)}"
    refused = lane.last_refused
    if refused is None:
        return None
    return f"refused: {refused.kind} {refused.key!r}: {_described(refused.cause)}"


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _held_until(delivery: Delivery) -> str | None:
    """When the hold that a 429 asked for is over; None without one."""
    left = delivery.throttle.held_until - time.monotonic()
    if left <= 0.0:
        return None
    until = datetime.now(UTC) + timedelta(seconds=left)
    return f"{until:%H:%M:%S} UTC, for {left:,.0f} s (too many requests)"


@frozen(repr=False)
class Picture:
    """What `Run.plot` draws: SVG in a notebook; text for `print` and the interactive interpreter.

    *charts* are drawn one below the other; each is its lines by their names, and a line is its
    points by step and value.
    """

    charts: Sequence[Mapping[str, Sequence[tuple[float, float]]]]

    def _repr_html_(self) -> str:
        from adp_async._svg_chart import chart

        drawn = (chart(*_laid_out(lines)) for lines in self.charts)
        return "".join(f"<div>{each}</div>" for each in drawn) or "no points yet"

    def __repr__(self) -> str:
        """The charts as wide as the terminal, in colours if it has them."""
        from rich.console import Console

        from adp_async._line_chart import Line, Plot

        # What standard output cannot encode is drawn in other characters.
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        drawn = TextIOWrapper(BytesIO(), encoding=encoding, errors="replace", newline="\n")
        is_terminal = sys.stdout is not None and sys.stdout.isatty()
        console = Console(
            file=drawn,
            force_terminal=is_terminal,
            force_jupyter=False,  # it would show the picture there, whatever the file
            width=get_terminal_size().columns,
        )
        for points in self.charts:
            lines, x_name = _laid_out(points)
            each = [
                Line(name, line, COLOURS[number % len(COLOURS)])
                for number, (name, line) in enumerate(lines.items())
            ]
            console.print(Plot(each, x_name=x_name))
        drawn.flush()
        text = drawn.buffer.getvalue().decode(encoding)
        return text.rstrip("\n") or "no points yet"


def _laid_out(
    lines: Mapping[str, Sequence[tuple[float, float]]],
) -> tuple[dict[str, list[tuple[float, float]]], str]:
    """*lines* from left to right, and the name of the x axis.

    By their steps, since batches may overtake one another.  Metrics that are logged without steps
    have only one: then by the order of their points, and the axis has no name.
    """
    has_steps = any(len({step for step, _ in points}) > 1 for points in lines.values())
    if has_steps or all(len(points) == 1 for points in lines.values()):
        by_step = {name: sorted(points, key=itemgetter(0)) for name, points in lines.items()}
        return by_step, "step"
    in_order = {
        name: [(float(number), value) for number, (_, value) in enumerate(points)]
        for name, points in lines.items()
    }
    return in_order, ""


def picture_of_run(delivery: Delivery, run_id: str, keys: Sequence[str]) -> Picture:
    """The metrics called *keys* in one chart; without keys, each in a chart of its own."""
    points = delivery.state.samples.of(delivery.intake.lane(run_id).key)
    if not keys:
        return Picture([{key: drawn} for key, drawn in points.items()])
    for key in keys:
        if key not in points:
            known = ", ".join(map(shown, list(points)[:10])) or "none yet"
            message = (
                f"run {run_id}: no point of {shown(key)} was delivered by this session, or too "
                f"many other metrics and runs were drawn before it; it can plot: {known}"
            )
            raise ValueError(message)
    return Picture([{key: points[key] for key in keys}])
