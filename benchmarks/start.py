"""How fast it starts: importing, and the first delivered metric, each in fresh processes.

The floor of an import is importing what every such client imports: aiohttp, attrs, cattrs, anyio.
The first metric is counted from before the import to the verdict of the service; by hand it is
``oci``'s signer and aiohttp, the peer is the official client.
"""

from __future__ import annotations

import asyncio
import atexit
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from typing import TYPE_CHECKING

from benchmarks._harness import Contender, Goal, Options, Report, comparison, run, take_turns
from benchmarks._servers import ROOT, answering

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks._harness import Role
    from benchmarks._servers import Target

_TIMED = """
import time
began = time.perf_counter()
{body}
print(time.perf_counter() - began)
"""

_OURS = """
import asyncio, adp_async
async def main():
    auth = adp_async.ApiKey(config_file={config_file!r})
    session = adp_async.Session(
        {platform_id!r}, {workspace!r}, endpoint={endpoint!r}, auth=auth, spool=False
    )
    async with session:
        await session.attach_run("bench").log_metric("loss", 0.5, 1)
asyncio.run(main())
"""

_BY_HAND = """
import asyncio
from pathlib import Path
from benchmarks._clients import Batch, HandWritten, Point
from benchmarks._clients import _encode
class Target:
    def signer(self):
        import oci.config, oci.signer
        return oci.signer.Signer.from_config(oci.config.from_file({config_file!r}))
    def url(self, path):
        return {url!r}
async def main():
    async with HandWritten(Target()) as hand:
        await hand.post(_encode(Batch("bench", [Point("loss", 0.5, 1, 1)])))
asyncio.run(main())
"""

_OFFICIAL = """
import oci
from aidp_python_client.aidataplatform_dp import MLOpsClient, models
client = MLOpsClient(
    oci.config.from_file({config_file!r}), service_endpoint={endpoint!r} + "/20260430"
)
metric = models.ExperimentRunMetric(key="loss", value=0.5, timestamp=1, step=1)
client.log_experiment_run_batch(
    {platform_id!r},
    {workspace!r},
    models.LogExperimentRunBatchDetails(run_id="bench", metrics=[metric]),
)
"""


@cache
def compiled_once() -> dict[str, str]:
    """As for an installed package: compiled once, by the warm-up round."""
    folder = tempfile.mkdtemp(prefix="adp-async-pycache-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    kept = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": folder}


def _seconds(body: str) -> float:
    """What *body* says it took, in a fresh interpreter."""
    found = subprocess.run(
        [sys.executable, "-c", _TIMED.format(body=body)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60.0,
        env=compiled_once(),
    )
    return float(found.stdout.split()[-1])


def _contender(name: str, role: Role, body: str) -> Contender:
    async def once() -> float:
        return await asyncio.to_thread(_seconds, body) * 1000

    return Contender(name, role, once)


def _imports_oci() -> bool:
    code = "import adp_async, sys, json; print(json.dumps('oci' in sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    is_imported: bool = json.loads(found.stdout)
    return is_imported


def _first_metric(target: Target, options: Options) -> list[Contender]:
    facts = {
        "config_file": str(target.config_file),
        "platform_id": target.platform_id,
        "workspace": target.workspace,
        "endpoint": target.endpoint,
        "url": target.url("mlflow/runs/log-batch"),
    }
    contenders = [
        _contender("adp_async", "ours", _OURS.format(**facts)),
        _contender("aiohttp and oci's signer, by hand", "floor", _BY_HAND.format(**facts)),
    ]
    if options.peers and importlib.util.find_spec("aidp_python_client"):
        contenders.append(_contender("MLOpsClient", "peer", _OFFICIAL.format(**facts)))
    return contenders


def measure(options: Options) -> Report:
    """Milliseconds of an import, and until the first metric is delivered."""
    report = Report("Starting")
    imports = [
        _contender("import adp_async", "ours", "import adp_async"),
        _contender(
            "import aiohttp, attrs, cattrs, anyio", "floor", "import aiohttp, attrs, cattrs, anyio"
        ),
    ]
    found = asyncio.run(take_turns(imports, options.size(15, 1)))
    report.tables.append(comparison("Import, in a fresh process", "ms", found))
    what = "import adp_async / import aiohttp, attrs, cattrs, anyio"
    report.goals.append(Goal.at_most(what, 1.15, found[0].over(found[1])))
    what = "modules of oci imported by `import adp_async`"
    report.goals.append(Goal.at_most(what, 0.0, float(_imports_oci())))
    with answering() as server:
        contenders = _first_metric(server.target, options)
        first = asyncio.run(take_turns(contenders, options.size(5, 1)))
        report.notes += server.notes
    title = "From before the import to the first metric delivered"
    report.tables.append(comparison(title, "ms", first))
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    return run(measure, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
