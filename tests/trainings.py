"""Real trainings as processes of their own, and what of them arrived at the platform."""

from __future__ import annotations

import importlib.util
import textwrap
from typing import TYPE_CHECKING, Any

import pytest
from attrs import define
from children import start

if TYPE_CHECKING:
    from pathlib import Path

    from adp_async.local import LocalPlatform
    from adp_async.local.stand_in import ReceivedRun

#: A training on a busy machine, with the import of its framework.
LONGEST = 180.0


def needs(*packages: str) -> pytest.MarkDecorator:
    """Skip where a framework is not installed."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    reason = f"needs {', '.join(absent)}: pip install 'adp-async[test-frameworks]'"
    return pytest.mark.skipif(bool(absent), reason=reason)


@define
class Trained:
    """How a training ended, and the runs that it has left, in the order they began."""

    code: int
    out: str
    errors: str
    runs: list[ReceivedRun]

    @property
    def run(self) -> ReceivedRun:
        """The one run there is."""
        (run,) = self.runs
        return run

    @property
    def status(self) -> str:
        return str(self.run.info["status"])


async def train(platform: LocalPlatform, folder: Path, *parts: str, **knobs: Any) -> Trained:
    """Run a script made of *parts*, which are dedented one by one, to its end."""
    script = "".join(map(textwrap.dedent, parts))
    child = await start(platform, folder, script, **knobs)
    code, out, errors = await child.ends(LONGEST)
    return Trained(code, out, errors, list(platform.gateway._stand_in().runs.values()))


def steps(run: ReceivedRun, key: str) -> list[int]:
    """The steps of a metric that arrived, in their order, doubles included."""
    return sorted(metric.step for metric in run.metrics if metric.key == key)


def keys(run: ReceivedRun) -> set[str]:
    return {metric.key for metric in run.metrics}
