"""A line chart for the terminal: braille dots, two by four a character."""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING

from attrs import field, frozen
from rich.segment import Segment
from rich.style import Style

from adp_async._sansio.texts import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from rich.console import Console, ConsoleOptions, RenderResult

__all__ = ["Line", "Plot"]

MARGIN = 7
WIDEST = 110
_BRAILLE = 0x2800
#: The bit of each dot of a braille character, by row and column.
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


@frozen
class Line:
    """One line: its points by *x*, and the *style* they are drawn in."""

    name: str
    points: Sequence[tuple[float, float]]
    style: str = ""


@frozen
class Plot:
    """Lines over a common x axis, on a logarithmic y axis where all values are above zero.

    Points in one column of dots are drawn as their mean; points that are not finite are left out.
    Stars replace braille where the output cannot encode it.  Without *x_name*, x is only the order
    of the points, and has no numbers.
    """

    lines: Sequence[Line]
    height: int = 12
    x_name: str = "step"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(options.max_width, WIDEST) - MARGIN - 1
        if width < 8 or not any(_finite(line.points) for line in self.lines):
            return
        canvas = _Canvas.of(self.lines, width, self.height)
        draw = _star if options.ascii_only else _braille
        yield from _legend(self.lines, ascii_only=options.ascii_only)
        yield from _picture(canvas, draw, "|" if options.ascii_only else "┤")
        if self.x_name:
            below = _between(canvas, printable(self.x_name, 2000), width)
            yield Segment(f"{'':{MARGIN}}{below}\n")


def _legend(lines: Sequence[Line], *, ascii_only: bool) -> Iterator[Segment]:
    yield Segment(" " * MARGIN)
    for line in lines:
        yield Segment(" * " if ascii_only else " ━ ", Style.parse(line.style))
        yield Segment(f"{printable(line.name, 2000)}  ")
    yield Segment("\n")


def _picture(
    canvas: _Canvas, draw: Callable[[Mapping[tuple[int, int], str]], str], edge: str
) -> Iterator[Segment]:
    marks = canvas.marks()
    for row in range(canvas.height):
        yield Segment(f"{marks.get(row, ''):>{MARGIN - 1}}{edge}", Style(dim=True))
        for column in range(1 + max((c for r, c in canvas.cells if r == row), default=-1)):
            dots = canvas.cells.get((row, column), {})
            style = list(dots.values())[-1] if dots else ""
            yield Segment(draw(dots), Style.parse(style))
        yield Segment("\n")


def _between(canvas: _Canvas, name: str, width: int) -> str:
    first, last = f"{canvas.x_range[0]:,.0f}", f"{name} {canvas.x_range[1]:,.0f}"
    return f"{first}{last:>{width - len(first)}}"


def _braille(dots: Mapping[tuple[int, int], str]) -> str:
    return chr(_BRAILLE + sum(_DOTS[row][column] for row, column in dots)) if dots else " "


def _star(dots: Mapping[tuple[int, int], str]) -> str:
    return "*" if dots else " "


@frozen
class _Canvas:
    """Cells of two by four dots, and what their edges mean."""

    width: int
    height: int
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    is_log: bool
    #: By row and column of the cell: its dots, by row and column in it, with their style.
    cells: dict[tuple[int, int], dict[tuple[int, int], str]] = field(
        factory=lambda: defaultdict(dict)
    )

    @classmethod
    def of(cls, lines: Sequence[Line], width: int, height: int) -> _Canvas:
        x_range = _range([x for line in lines for x, _ in _finite(line.points)])
        columns = [_by_column(_finite(line.points), x_range, 2 * width) for line in lines]
        values = [value for means in columns for _, value in means]
        canvas = cls(width, height, x_range, _range(values), is_log=min(values) > 0)
        for line, means in zip(lines, columns, strict=True):
            canvas.draw(means, line.style)
        return canvas

    def draw(self, means: Sequence[tuple[int, float]], style: str) -> None:
        """Connect the *means*, each a column of dots and a value."""
        heights = [(column, self._height(value)) for column, value in means]
        for column, height in heights[:1]:
            self._upright(column, height, height, style)
        for (first, base), (last, top) in pairwise(heights):
            slope = (top - base) / (last - first)
            for column in range(first + 1, last + 1):
                height = base + slope * (column - first)
                self._upright(column, height, height - slope, style)

    def _upright(self, column: int, height: float, before: float, style: str) -> None:
        """The dots of one column, from *height* to where the line came from."""
        end, start = round(height), round(before)
        for dot in range(end, start, 1 if start > end else -1) or (end,):
            row = 4 * self.height - 1 - dot
            self.cells[row // 4, column // 2][row % 4, column % 2] = style

    def _height(self, value: float) -> float:
        low, high = map(self._scale, self.y_range)
        return (self._scale(value) - low) / (high - low) * (4 * self.height - 1)

    def _scale(self, value: float) -> float:
        return math.log10(value) if self.is_log else value

    def marks(self) -> dict[int, str]:
        """The labels of the y axis, by row."""
        low, high = self.y_range
        values = _round_numbers(low, high) if self.is_log else []
        if len(values) < 2:
            values = [low + (high - low) * part / 4 for part in range(5)]
        rows = {self.height - 1 - round(self._height(value)) // 4: value for value in values}
        return {row: f"{value:.3g}" for row, value in rows.items()}


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [point for point in points if math.isfinite(point[1])]


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low, low + 1.0)


def _by_column(
    points: Sequence[tuple[float, float]], x_range: tuple[float, float], columns: int
) -> list[tuple[int, float]]:
    gathered: dict[int, list[float]] = defaultdict(list)
    first, last = x_range
    for x, y in points:
        gathered[round((x - first) / (last - first) * (columns - 1))].append(y)
    return [(column, sum(values) / len(values)) for column, values in sorted(gathered.items())]


def _round_numbers(low: float, high: float) -> list[float]:
    """1, 10, 100 and so on in between; with 2 and 5 when there are few of those."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 2, 5)):
        numbers = [step * 10.0**decade for decade in decades for step in steps]
        numbers = [number for number in numbers if low <= number <= high]
        if len(numbers) >= 3:
            return numbers
    return numbers
