"""How commands print: paragraphs, tables and facts for people, JSON for programs.

What comes from the service or from a file is shown without anything that steers a terminal.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from adp_async._sansio.texts import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime
    from typing import TextIO

__all__ = [
    "console_for",
    "duration",
    "local_time",
    "print_facts",
    "print_json",
    "print_table",
    "say",
    "shown",
]


def console_for(file: TextIO | None = None) -> Console:
    """A console that does not wrap lines for programs."""
    console = Console(file=file, highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 1000
    return console


def shown(text: str) -> str:
    """*text* on one line, without control characters and cut where it is very long."""
    return printable(text, 2000)


def say(console: Console, message: str) -> None:
    """Print *message*, of which parts may come from a file or the service, as one paragraph."""
    console.print(Text(shown(message)), soft_wrap=True)


def print_json(value: object) -> None:
    """*value* on standard output, in ASCII, so that every terminal and pipe takes it."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def print_facts(console: Console, facts: Iterable[tuple[str, str]]) -> None:
    """Each fact beside its name.

    Only the terminal itself wraps lines, so that a long address can be copied.
    """
    told = [(shown(name), shown(value)) for name, value in facts]
    width = max((len(name) for name, _ in told), default=0)
    for name, value in told:
        line = Text.assemble((f"{name:<{width}}", "dim"), f"  {value}")
        line.rstrip()
        console.print(line, soft_wrap=True)


def print_table(
    console: Console, columns: Sequence[str], rows: Iterable[Sequence[str]], *, flexible: set[str]
) -> None:
    """Rows below their *columns*; the *flexible* ones are cut where a terminal is narrow.

    Lines don't end in spaces.
    """
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in columns:
        table.add_column(name, no_wrap=name not in flexible)
    for row in rows:
        table.add_row(*(Text(shown(cell), no_wrap=True, overflow="ellipsis") for cell in row))
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        console.file.write(line.rstrip() + "\n")


def local_time(moment: datetime | None) -> str:
    """*moment* as clocks here show it; empty for None."""
    return "" if moment is None else f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"


def duration(seconds: float) -> str:
    """*seconds* in a unit that suits a person.

    >>> [duration(each) for each in (5, 600, 7200, 400_000)]
    ['5 s', '10 min', '2 h', '5 days']
    """
    if seconds < 120:
        return f"{max(0.0, seconds):.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"
