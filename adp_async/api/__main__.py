"""``python -m adp_async.api``: a Markdown table of every operation and its method.

The methods' docstrings are the source: each names the API's operation and its path.
"""

from __future__ import annotations

import inspect
import re
import sys
from typing import TYPE_CHECKING

from attrs import frozen

from adp_async.api.deployments import Deployments
from adp_async.api.experiments import Experiments
from adp_async.api.logged_models import LoggedModels
from adp_async.api.model_versions import ModelVersions
from adp_async.api.registered_models import RegisteredModels
from adp_async.api.runs import Runs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from adp_async.api._family import Family

#: The families under the names that a session gives them.
FAMILIES: Mapping[str, type[Family]] = {
    "experiments": Experiments,
    "runs": Runs,
    "registered_models": RegisteredModels,
    "model_versions": ModelVersions,
    "logged_models": LoggedModels,
    "deployments": Deployments,
}

_OPERATION = re.compile(r"Operation: (\w+),\s+(GET|POST) \.\.\./(\S+)")


@frozen
class Row:
    """One operation, where it goes, and the method that calls it."""

    operation: str
    http_method: str
    path: str
    method: str


def rows() -> Iterator[Row]:
    for family, class_ in FAMILIES.items():
        methods = {name: each for kind in class_.__mro__ for name, each in vars(kind).items()}
        for name, function in methods.items():
            told = _OPERATION.search(inspect.getdoc(function) or "")
            if told and not name.startswith("_"):
                yield Row(told[1], told[2], told[3], f"{family}.{name}")


def table() -> str:
    """The table in Markdown, in the order of the families."""
    lines = ["| method | operation | path below `.../mlops/api/2.0/` |", "|---|---|---|"]
    lines += [f"| `{r.method}` | `{r.operation}` | `{r.http_method} {r.path}` |" for r in rows()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
