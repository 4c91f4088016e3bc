"""Scripts that tests run as processes of their own, against the platform of the test."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import sys
import textwrap
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import define

if TYPE_CHECKING:
    import subprocess
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

    from adp_async.local import Gateway, LocalPlatform

ROOT = Path(__file__).parent.parent
#: Of the tests' own environment: where the system is, and whether the child is measured.
HANDED_ON = ("PATH", "HOME", "COVERAGE_PROCESS_START", "COVERAGE_FILE")


@define
class Child:
    """A script that runs: what it has said so far, and how it ends."""

    process: asyncio.subprocess.Process

    async def says(self, word: str) -> None:
        """Wait until it prints a line with *word*."""
        async for line in self._lines():
            if word in line:
                return
        raise AssertionError(f"it ended without {word!r}: {await self.errors()}")

    async def _lines(self) -> AsyncIterator[str]:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            yield line.decode()

    async def errors(self) -> str:
        assert self.process.stderr is not None
        return (await self.process.stderr.read()).decode()

    async def ends(self, seconds: float = 120.0) -> tuple[int, str, str]:
        """Its return code, and the rest of its output and errors."""
        try:
            async with asyncio.timeout(seconds):
                out, errors = await self.process.communicate()
        except TimeoutError:
            # With `faulthandler` it says where it hangs, and so do the processes it has started.
            os.killpg(self.process.pid, signal.SIGABRT)
            out, errors = await self.process.communicate()
            raise AssertionError(f"it hangs\n{out.decode()}\n{errors.decode()}") from None
        assert self.process.returncode is not None
        return self.process.returncode, out.decode(), errors.decode()

    async def ends_well(self, seconds: float = 120.0) -> str:
        """Its output, if it said nothing else and succeeded."""
        code, out, errors = await self.ends(seconds)
        if code or errors:
            raise AssertionError(f"it ended with {code}\n{out}\n{errors}")
        return out


@contextmanager
def not_outlived_by(
    process: asyncio.subprocess.Process | subprocess.Popen[Any],
) -> Iterator[None]:
    """The process doesn't outlive this block, however that ends."""
    try:
        yield
    finally:
        if process.returncode is None:
            process.kill()


async def start(
    platform: LocalPlatform,
    folder: Path,
    script: str,
    *arguments: object,
    environ: Mapping[str, str] | None = None,
    **knobs: object,
) -> Child:
    """Run *script*, whose sessions need no argument; *knobs* are theirs.

    *environ* is added to its environment.
    """
    file = folder / "script.py"
    file.write_text(textwrap.dedent(script))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-X", "faulthandler", str(file), *map(str, arguments)),
        env={**environment(platform, **knobs), **(environ or {})},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    return Child(process)


def environment(platform: LocalPlatform, **knobs: object) -> dict[str, str]:
    assert platform.directory is not None
    ours: dict[str, Any] = {"linger": 0.01, "spool": platform.directory / "spool", **knobs}
    return {
        **{name: os.environ[name] for name in HANDED_ON if name in os.environ},
        "PYTHONPATH": str(ROOT),
        # Python 3.12 and later say so of every fork beside a thread.
        "PYTHONWARNINGS": "ignore:This process:DeprecationWarning",
        "AIDP_ENDPOINT": platform.endpoint,
        "AIDP_INSTANCE_ID": platform.platform_id,
        "AIDP_WORKSPACE": platform.workspace,
        "OCI_CONFIG_FILE": str(platform.config_file),
        "OCI_CLI_PROFILE": platform.profile,
        **{f"ADP_ASYNC_{name.upper()}": str(value) for name, value in ours.items()},
    }


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - the other side is a process, not an event
            await asyncio.sleep(0.005)


def free_port() -> int:
    """A port for a server that can't choose one itself.

    Below those that the system gives to connections: none gets it before the server has it.
    """
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("of a hundred ports none is free")


def points(gateway: Gateway, run_id: str) -> dict[str, list[int]]:
    """The steps that arrived for a run, by the metric's key, in their order, doubles included."""
    found: dict[str, list[int]] = {}
    for metric in gateway.received(run_id).metrics:
        found.setdefault(metric.key, []).append(metric.step)
    return found
