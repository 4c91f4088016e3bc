"""What all benchmarks share: options, rounds that take turns, tables of text, goals, JSON."""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import attrs
from attrs import define, field, frozen

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

T = TypeVar("T")

Role = Literal["ours", "floor", "peer", ""]


@frozen
class Options:
    """How much to do.  *smoke*: tiny, for the tests; its numbers mean nothing."""

    smoke: bool = False
    peers: bool = True
    rounds: int = 7

    def size(self, full: T, tiny: T) -> T:
        return tiny if self.smoke else full


@frozen
class Contender:
    """One way to do the work.  *run* does it once and returns the measured number."""

    name: str
    role: Role
    run: Callable[[], Awaitable[float]] = field(repr=False)


@frozen
class Samples:
    """What a contender measured, round by round."""

    name: str
    role: Role
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> str:
        return f"{number(min(self.values))} - {number(max(self.values))}"

    def over(self, other: Samples) -> float:
        """The median of the rounds' ratios, so that what slowed both cancels out."""
        pairs = zip(self.values, other.values, strict=True)
        return statistics.median(mine / theirs for mine, theirs in pairs if theirs)


async def take_turns(contenders: Sequence[Contender], rounds: int) -> list[Samples]:
    """Let each contender run once a round, and each begin in its turn.

    A round nobody counts comes first: connections, caches, imports.
    """
    values: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for number_of_round in range(-1, rounds):
        first = max(number_of_round, 0) % len(contenders)
        for contender in [*contenders[first:], *contenders[:first]]:
            gc.collect()
            value = await contender.run()
            if number_of_round >= 0:
                values[contender.name].append(value)
    return [Samples(each.name, each.role, tuple(values[each.name])) for each in contenders]


def best_floor(samples: Sequence[Samples], *, more_is_better: bool) -> Samples:
    """The floor that is hardest to reach."""
    floors = [each for each in samples if each.role == "floor"]
    return (max if more_is_better else min)(floors, key=lambda each: each.median)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that *share* of *values* do not exceed.

    >>> percentile([4.0, 1.0, 3.0, 2.0], 0.5)
    2.0
    """
    ordered = sorted(values)
    return ordered[max(0, min(len(ordered) - 1, round(share * len(ordered)) - 1))]


def number(value: float) -> str:
    """Three digits that count.

    >>> number(0.012345), number(3.14159), number(1234567.0)
    ('0.0123', '3.14', '1,235k')
    """
    if abs(value) >= 100_000:
        return f"{value / 1000:,.0f}k"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


@define
class Table:
    """Rows of text under *headings*."""

    title: str
    headings: Sequence[str]
    rows: list[Sequence[str]] = field(factory=list)

    def add(self, *cells: str | float) -> None:
        self.rows.append([cell if isinstance(cell, str) else number(cell) for cell in cells])

    def text(self) -> str:
        lines = [self.headings, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.headings))]
        body = [_aligned(line, widths) for line in lines]
        return "\n".join([self.title, "", body[0], "-" * len(body[0]), *body[1:]])


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
    return "  ".join(padded).rstrip()


def comparison(title: str, unit: str, samples: Sequence[Samples]) -> Table:
    """One row a contender; the ratio is ours divided by it."""
    table = Table(title, ("contender", "role", f"median {unit}", "low - high", "ours / it"))
    ours = next((each for each in samples if each.role == "ours"), None)
    for each in samples:
        is_reference = ours is None or each is ours
        ratio = "" if is_reference or ours is None else f"{ours.over(each):.3g}"
        table.add(each.name, each.role, each.median, each.spread, ratio)
    return table


@frozen
class Goal:
    """One line of DESIGN section 8: what was promised, and what was measured."""

    what: str
    goal: str
    measured: float
    is_met: bool
    note: str = ""

    @classmethod
    def at_most(cls, what: str, bound: float, measured: float, **rest: str) -> Goal:
        return cls(what, f"at most {bound:g}", measured, measured <= bound, **rest)

    @classmethod
    def at_least(cls, what: str, bound: float, measured: float, **rest: str) -> Goal:
        return cls(what, f"at least {bound:g}", measured, measured >= bound, **rest)


@define
class Report:
    """What one benchmark found."""

    title: str
    tables: list[Table] = field(factory=list)
    goals: list[Goal] = field(factory=list)
    notes: list[str] = field(factory=list)
    seconds: float = 0.0

    def text(self) -> str:
        parts = [f"## {self.title}", *(table.text() for table in self.tables)]
        if self.goals:
            parts.append(goals_table(self.goals).text())
        parts += [f"- {note}" for note in self.notes]
        return "\n\n".join(parts)

    def as_json(self) -> dict[str, Any]:
        return attrs.asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Report:
        tables = [Table(**table) for table in found.pop("tables")]
        goals = [Goal(**goal) for goal in found.pop("goals")]
        return cls(tables=tables, goals=goals, **found)


def goals_table(goals: Sequence[Goal]) -> Table:
    table = Table("Goals", ("what", "goal", "measured", "met"))
    for goal in goals:
        table.add(goal.what, goal.goal, goal.measured, "yes" if goal.is_met else "NO")
    return table


def run(
    measure: Callable[[Options], Report], about: str | None, arguments: Sequence[str] | None
) -> int:
    """The main function of one benchmark."""
    parser = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    add_options(parser)
    given = parser.parse_args(arguments)
    began = time.monotonic()
    report = measure(options_of(given))
    report.seconds = round(time.monotonic() - began, 1)
    print(report.text(), flush=True)
    if given.json is not None:
        given.json.write_text(json.dumps(report.as_json(), indent=1))
    return 0


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--smoke", action="store_true", help="tiny sizes; the numbers mean nothing")
    parser.add_argument("--no-peers", action="store_true", help="ours and the floor alone")
    parser.add_argument("--rounds", type=int, default=None, help="rounds of each comparison (7)")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="keep the numbers")


def options_of(given: argparse.Namespace) -> Options:
    rounds = given.rounds or (1 if given.smoke else 7)
    return Options(smoke=given.smoke, peers=not given.no_peers, rounds=rounds)
