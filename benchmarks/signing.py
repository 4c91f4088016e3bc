"""What signing costs with an API key: loading it, and the CPU of a signature.

The floor of a signature is `cryptography`'s, of a string that is ready; the peer is ``oci``'s own
signer, given the same request.  Loading is measured in fresh processes, from after the import of
adp_async to the first signature, and by the memory that it adds.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256

from adp_async._io.authenticator import Authenticator
from adp_async._sansio.messages import Request
from adp_async._sansio.signing import Signable, http_date
from adp_async.auth import ApiKey
from benchmarks._harness import Contender, Goal, Options, Report, comparison, run, take_turns
from benchmarks._servers import ROOT, answering
from benchmarks.start import compiled_once

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks._harness import Role, Samples
    from benchmarks._servers import Target

_FRESH = """
import sys, time
import adp_async
from pathlib import Path
from adp_async._sansio.messages import Request
from adp_async._sansio.signing import Signable

def private():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024

signable = Signable.of(Request("GET", "https://example.com/"), date="now")
memory, began = private(), time.perf_counter()
{load}
signer(signable)
print((time.perf_counter() - began) * 1000, private() - memory)
"""
_OURS = "signer = adp_async.ApiKey(config_file=sys.argv[1]).load()"
_OCIS = """
import oci
signer = oci.signer.Signer.from_config(oci.config.from_file(sys.argv[1]))
"""


def _fresh(load: str, target: Target, column: int) -> float:
    """Milliseconds (0) or MB (1) that *load* and a signature take, in a fresh interpreter."""
    found = subprocess.run(
        [sys.executable, "-c", _FRESH.format(load=load), str(target.config_file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60.0,
        env=compiled_once(),
    )
    return float(found.stdout.split()[column])


def _loading(target: Target, column: int) -> list[Contender]:
    def contender(name: str, role: Role, load: str) -> Contender:
        async def once() -> float:
            return await asyncio.to_thread(_fresh, load, target, column)

        return Contender(name, role, once)

    return [contender("adp_async", "ours", _OURS), contender("oci's signer", "peer", _OCIS)]


def _signatures(target: Target, body: bytes | None, count: int) -> list[Contender]:
    signer: Any = ApiKey(config_file=target.config_file).load()
    theirs = target.signer()
    request = Request("GET" if body is None else "POST", target.url("mlflow/runs/x"), body=body)
    ready = Signable.of(request, date=http_date(0.0)).path_url.encode() * 4
    authenticator = Authenticator(ApiKey(config_file=target.config_file))

    def bare() -> None:
        signer.private_key.sign(ready, PKCS1v15(), SHA256())

    def by(sign: Callable[[Any], object]) -> Callable[[], None]:
        def once() -> None:
            sign(Signable.of(request, date=http_date(0.0)))

        return once

    def contender(name: str, role: Role, sign: Callable[[], object]) -> Contender:
        async def once() -> float:
            began = time.process_time()
            for _ in range(count):
                sign()
            return (time.process_time() - began) / count * 1e6

        return Contender(name, role, once)

    async def attempts() -> float:
        await authenticator.open()
        try:
            began = time.process_time()
            for _ in range(count):
                await authenticator.sign(request, alone=True)
            return (time.process_time() - began) / count * 1e6
        finally:
            await authenticator.close()

    return [
        contender("adp_async", "ours", by(signer)),
        Contender("adp_async, headers checked", "", attempts),
        contender("cryptography alone", "floor", bare),
        contender("oci's signer", "peer", by(theirs)),
    ]


def measure(options: Options) -> Report:
    """Milliseconds and MB until a key signs, and microseconds of CPU a signature."""
    report = Report("Signing")
    with answering() as server:
        rounds = options.size(7, 1)
        took = _compared(report, "Loading an API key", "ms", _loading(server.target, 0), rounds)
        what = "loading an API key / importing oci and loading it"
        report.goals.append(Goal.at_most(what, 0.4, took[0].over(took[-1])))
        grown = _compared(report, "Memory it adds", "MB", _loading(server.target, 1), rounds)
        what = "memory of a loaded API key / with oci"
        report.goals.append(Goal.at_most(what, 0.4, grown[0].over(grown[-1])))
        bodies = {"no body": None, "a body of 80 kB": bytes(80_000)}
        for told, body in bodies.items():
            contenders = _signatures(server.target, body, options.size(1000, 5))
            title = f"CPU of a signature, {told}"
            found = _compared(report, title, "us", contenders, options.rounds)
            if body is None:
                what = "CPU of a signature without a body / cryptography alone"
                report.goals.append(Goal.at_most(what, 1.1, found[0].over(found[2])))
            what = f"CPU of a signature, {told} / oci's signer"
            report.goals.append(Goal.at_most(what, 1.0, found[0].over(found[-1])))
        report.notes += server.notes
    return report


def _compared(
    report: Report, title: str, unit: str, contenders: list[Contender], rounds: int
) -> list[Samples]:
    found = asyncio.run(take_turns(contenders, rounds))
    report.tables.append(comparison(title, unit, found))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    return run(measure, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
