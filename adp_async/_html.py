"""HTML for notebooks: tables and small pictures, escaped, in the colours of the page around them.

Nothing here sets a background or a colour of text, so that dark themes and light ones show it
alike.
"""

from __future__ import annotations

import html
import math
from datetime import datetime
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["Markup", "bar", "facts", "line", "link", "sparkline", "table"]

#: Characters of a value that are shown, and rows and columns of a table.
LONGEST: Final = 300
MOST_ROWS: Final = 100
MOST_COLUMNS: Final = 24
_LEFT: Final = "text-align:left"
#: A long id or URL takes several lines, where it would be cut off at the edge of the page.
_WRAPPED: Final = f"{_LEFT};overflow-wrap:anywhere"
#: Of a sparkline, in pixels.
WIDTH: Final = 180
HEIGHT: Final = 24
#: The width of a bar.
BAR: Final = 160


class Markup(str):
    """HTML that is shown as it is; any other text is escaped."""

    __slots__ = ()


def text(value: object) -> str:
    """*value* for a page: escaped, printable, and cut when it is long."""
    if isinstance(value, Markup):
        return value
    shown = _plain(value)
    shown = shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 3]}..."
    return html.escape("".join(each if each.isprintable() else " " for each in shown))


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.8g}"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S} {value.tzname() or ''}".rstrip()
    return str(value)


def facts(rows: Mapping[str, object]) -> str:
    """A table of names and values, of which the first hundred are shown.

    Values that are None or an empty text are left out.
    """
    there = [(name, value) for name, value in rows.items() if _is_there(value)]
    cells = "".join(
        f"<tr><th style='{_LEFT}'>{text(name)}</th><td style='{_WRAPPED}'>{text(value)}</td></tr>"
        for name, value in there[:MOST_ROWS]
    )
    return f"<table>{cells}</table>{_more(len(there) - MOST_ROWS, '')}"


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """A table with a line for each of *rows*, of which the first hundred are shown.

    Columns without any value are left out; of the others, the first 24 are shown.
    """
    shown = rows[:MOST_ROWS]
    columns = list(dict.fromkeys(name for row in shown for name in row if _is_there(row[name])))
    names = columns[:MOST_COLUMNS]
    head = "".join(f"<th style='{_LEFT}'>{text(name)}</th>" for name in names)
    lines = "".join(f"<tr>{''.join(_cell(row.get(name)) for name in names)}</tr>" for row in shown)
    more = _more(len(rows) - MOST_ROWS, "") + _more(len(columns) - MOST_COLUMNS, " columns")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>{more}"


def _is_there(value: object) -> bool:
    return value is not None and value != ""


def _more(count: int, of_what: str) -> str:
    return f"<p>and {count:,} more{of_what}</p>" if count > 0 else ""


def _cell(value: object) -> str:
    style = f"{_LEFT};white-space:nowrap" if isinstance(value, datetime) else _LEFT
    return f"<td style='{style}'>{'' if value is None else text(value)}</td>"


def link(url: str) -> Markup:
    """A link to *url*, shown as it is.  Only for the web: not a script, nor a file."""
    if not url.startswith(("https://", "http://")):
        return Markup(text(url))
    escaped = html.escape(url)
    return Markup(f"<a href='{escaped}' target='_blank' rel='noopener'>{escaped}</a>")


def sparkline(points: Iterable[tuple[float, float]]) -> Markup:
    """A small line without axes, and the last value beside it; points that aren't finite are left
    out."""
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if not finite:
        return Markup("no finite value")
    if len(finite) == 1:
        return Markup(f"{finite[0][1]:.5g}")
    across = scale([x for x, _ in finite], 2.0, WIDTH - 2.0)
    up = scale([y for _, y in finite], HEIGHT - 3.0, 3.0)
    at = [(across(x), up(y)) for x, y in finite]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
    x, y = at[-1]
    return Markup(
        f"<svg width='{WIDTH}' height='{HEIGHT}' viewBox='0 0 {WIDTH} {HEIGHT}' role='img' "
        "style='vertical-align:middle' xmlns='http://www.w3.org/2000/svg'>"
        f"<polyline points='{line}' fill='none' stroke='currentColor' stroke-width='1.2'/>"
        f"<circle cx='{x:.1f}' cy='{y:.1f}' r='2' fill='currentColor'/></svg> {finite[-1][1]:.5g}"
    )


def bar(share: float) -> Markup:
    """How much of something is done, from 0 to 1."""
    done = (BAR - 2) * min(1.0, max(0.0, share))
    return Markup(
        f"<svg width='{BAR}' height='10' viewBox='0 0 {BAR} 10' role='img' "
        "style='vertical-align:middle' xmlns='http://www.w3.org/2000/svg'>"
        f"<rect x='0.5' y='0.5' width='{BAR - 1}' height='9' fill='none' stroke='currentColor' "
        "stroke-opacity='0.5'/>"
        f"<rect x='1' y='1' width='{done:.1f}' height='8' fill='currentColor' "
        "fill-opacity='0.6'/></svg>"
    )


def line(value: str, before: str = "") -> str:
    """A line of text, with markup *before* it."""
    return f"<div>{before}<span style='overflow-wrap:anywhere'>{text(value)}</span></div>"


class scale:  # noqa: N801 - called like the function that it is
    """From the range of some values to pixels; a range of nothing leads to the middle."""

    __slots__ = ("_first", "_low", "_span", "_width")

    def __init__(self, values: Sequence[float], first: float, last: float) -> None:
        # Halved, since the distance of two doubles may be more than a double holds.
        low, high = min(values) / 2.0, max(values) / 2.0
        self._low, self._span = low, high - low
        self._first, self._width = first, last - first

    def __call__(self, value: float) -> float:
        share = (value / 2.0 - self._low) / self._span if self._span else 0.5
        return self._first + share * self._width
