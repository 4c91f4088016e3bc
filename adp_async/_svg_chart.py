"""A line chart as SVG, for notebooks: in the page's own colours but for the lines.

The lines have colours of a middle lightness, which stand out from white and from black.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from adp_async._html import Markup, scale, text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["chart"]

WIDTH: Final = 640
HEIGHT: Final = 220
LEFT, RIGHT, BOTTOM, TOP = 64, 12, 24, 10
#: Height of a row of the legend, and how wide a character is in it.
ROW: Final = 18
CHARACTER: Final = 7.0
LONGEST_NAME: Final = 60
COLOURS: Final = ("#3b82f6", "#ea7317", "#16a34a", "#a855f7", "#e11d48", "#0d9488")
DASHES: Final = ("", "6 3", "2 3")
#: All values above zero that are so many times apart have a logarithmic axis.
DECADES: Final = 100.0


def chart(lines: Mapping[str, Sequence[tuple[float, float]]], x_name: str = "step") -> Markup:
    """*lines* by their names, over a common x axis; points that are not finite are left out.

    Without a name, the x axis is the order of the points, and has no numbers.
    """
    finite = {
        name: [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
        for name, points in lines.items()
    }
    legend, top = _legend(list(finite))
    ys = [y for points in finite.values() for _, y in points]
    xs = [x for points in finite.values() for x, _ in points]
    if not ys:
        return Markup(f"<p>{text(', '.join(lines) or 'metrics')}: no finite value</p>")
    is_log = min(ys) > 0.0 and max(ys) / min(ys) >= DECADES
    height = HEIGHT + top
    across = scale(xs, LEFT, WIDTH - RIGHT)
    up = scale([_height(y, is_log=is_log) for y in ys], height - BOTTOM, top + TOP)
    drawn = [
        _line([(across(x), up(_height(y, is_log=is_log))) for x, y in points], number)
        for number, points in enumerate(finite.values())
    ]
    rows = [(up(_height(mark, is_log=is_log)), mark) for mark in _marks(ys, is_log=is_log)]
    columns = [(across(mark), mark) for mark in _marks(xs, is_log=False)] if x_name else []
    return Markup(
        f"<svg width='{WIDTH}' height='{height}' viewBox='0 0 {WIDTH} {height}' role='img' "
        "xmlns='http://www.w3.org/2000/svg' font-family='sans-serif' font-size='11' "
        "style='max-width:100%;height:auto'>"
        f"{legend}{_axes(rows, columns, height, x_name)}{''.join(drawn)}</svg>"
    )


def _height(value: float, *, is_log: bool) -> float:
    return math.log10(value) if is_log else value


def _legend(names: Sequence[str]) -> tuple[str, float]:
    """The names with the colours of their lines, and how high that is."""
    parts: list[str] = []
    x, y = float(LEFT), 14.0
    for number, name in enumerate(names):
        shown = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 3]}..."
        width = 26.0 + CHARACTER * len(shown) + 12.0
        if x > LEFT and x + width > WIDTH:
            x, y = float(LEFT), y + ROW
        parts.append(
            f"<line x1='{x:.0f}' y1='{y - 4:.0f}' x2='{x + 20:.0f}' y2='{y - 4:.0f}' "
            f"{_stroke(number)}/>"
            f"<text x='{x + 26:.0f}' y='{y:.0f}' fill='currentColor'>{text(shown)}</text>"
        )
        x += width
    return "".join(parts), y + 4.0


def _stroke(number: int) -> str:
    dash = DASHES[number // len(COLOURS) % len(DASHES)]
    dashes = f" stroke-dasharray='{dash}'" if dash else ""
    return f"fill='none' stroke='{COLOURS[number % len(COLOURS)]}' stroke-width='1.6'{dashes}"


def _line(points: Sequence[tuple[float, float]], number: int) -> str:
    if len(points) == 1:
        ((x, y),) = points
        return (
            f"<circle cx='{x:.1f}' cy='{y:.1f}' r='2.5' fill='{COLOURS[number % len(COLOURS)]}'/>"
        )
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f"<polyline points='{path}' stroke-linejoin='round' {_stroke(number)}/>"


def _axes(
    rows: Sequence[tuple[float, float]],
    columns: Sequence[tuple[float, float]],
    height: float,
    x_name: str,
) -> str:
    bottom = height - BOTTOM
    parts = [
        f"<line x1='{LEFT}' y1='{y:.1f}' x2='{WIDTH - RIGHT}' y2='{y:.1f}' stroke='currentColor' "
        f"stroke-opacity='0.15'/><text x='{LEFT - 6}' y='{y + 4:.1f}' text-anchor='end' "
        f"fill='currentColor' fill-opacity='0.75'>{mark:.4g}</text>"
        for y, mark in rows
    ]
    below = f"y='{height - 8:.1f}' fill='currentColor' fill-opacity='0.75'"
    parts += [
        f"<text x='{x:.1f}' text-anchor='{'middle' if x < WIDTH - 40 else 'end'}' {below}>"
        f"{mark:,.6g}</text>"
        for x, mark in columns
    ]
    parts.append(f"<text x='2' {below}>{text(x_name)}</text>")
    parts.append(
        f"<line x1='{LEFT}' y1='{bottom}' x2='{WIDTH - RIGHT}' y2='{bottom}' "
        "stroke='currentColor' stroke-opacity='0.5'/>"
    )
    return "".join(parts)


def _marks(values: Sequence[float], *, is_log: bool) -> list[float]:
    """Round numbers between the smallest and the largest of *values*: four to nine, or so."""
    low, high = min(values), max(values)
    if is_log:
        first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
        every = max(1, math.ceil((last - first + 1) / 7))
        return [10.0**decade for decade in range(first, last + 1, every)]
    # Halved, since the distance of two doubles may be more than a double holds.
    span = high / 2.0 - low / 2.0
    if not span > 0.0:
        return [low]
    rough = span / 2.5
    step = 10.0 ** math.floor(math.log10(rough)) if rough >= 1e-300 else 0.0
    step = next((each * step for each in (1.0, 2.0, 5.0, 10.0) if each * step >= rough), 0.0)
    if not (step > 0.0 and low + step > low and math.isfinite(step)):
        return [low, high]
    first = math.ceil(low / step)
    return [n * step for n in range(first, first + 12) if n * step <= high]
