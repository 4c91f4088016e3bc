"""Did the tests reach every branch and line of the pure core, and nearly all of the rest?

Reads the JSON of ``coverage json``; pyproject.toml says what is left out of the count.
"""

from __future__ import annotations

import json
import sys

CORE = "adp_async/_sansio/"
COUNTS = {
    "branches": ("covered_branches", "num_branches"),
    "lines": ("covered_lines", "num_statements"),
}


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        modules = {name: each["summary"] for name, each in json.load(file)["files"].items()}
    core = {name: summary for name, summary in modules.items() if name.startswith(CORE)}
    rest = {name: summary for name, summary in modules.items() if name not in core}
    parts = (("_sansio", core, 100.0), ("the rest of adp_async", rest, 95.0))
    enough = [
        reached(part, what, summaries, least) for part, summaries, least in parts for what in COUNTS
    ]
    sys.exit(not all(enough))


def reached(part: str, what: str, summaries: dict[str, dict[str, int]], least: float) -> bool:
    """Whether the share of a part's branches or lines is at least *least* percent; says it."""
    covered, total = (sum(each[count] for each in summaries.values()) for count in COUNTS[what])
    share = 100.0 * covered / total
    print(f"{what} of {part}: {covered} of {total}, {share:.2f} % (at least {least:.0f} %)")
    return share >= least


main()
