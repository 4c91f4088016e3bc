"""The local platform in a thread of its own, so that the main thread can be a training script."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.status import Status

from adp_async.local import LocalPlatform

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rich.console import Console

__all__ = ["running_platform"]


@contextmanager
def running_platform(
    console: Console, *, directory: Path | None = None, port: int = 0, mlflow: bool = True
) -> Iterator[LocalPlatform]:
    """A started `LocalPlatform`; its start is shown on *console*."""
    with _Start(console) as start:
        platform = LocalPlatform(directory, port=port, mlflow=mlflow, progress=start.show)
        background = _Background(platform)
        try:
            background.started.result()
        except BaseException:
            background.stop()
            raise
    try:
        yield platform
    finally:
        background.stop()


class _Background:
    """Keeps a platform up in an event loop and thread of its own."""

    def __init__(self, platform: LocalPlatform) -> None:
        self.started: Future[None] = Future()
        self._platform = platform
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(self._keep())
        self._thread = threading.Thread(target=self._run, name="local platform", daemon=True)
        self._thread.start()

    async def _keep(self) -> None:
        try:
            async with self._platform:
                self.started.set_result(None)
                await asyncio.get_running_loop().create_future()  # until `stop` cancels it
        except BaseException as error:
            if self.started.done():
                raise
            self.started.set_exception(error)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._kept())

    async def _kept(self) -> None:
        await asyncio.wait([self._task])

    def stop(self) -> None:
        """Stop the platform, even if it is still starting."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._task.cancel)
            self._thread.join()
        if self._task.done() and not self._task.cancelled():
            self._task.result()


class _Start:
    """Shows what the platform does while it starts: a spinner, or a line for each phase."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = Status("starting the local platform", console=console)
        self._phase = ""

    def show(self, phase: str, seconds: float) -> None:
        text = f"starting the local platform: {phase}"
        if self._console.is_terminal:
            self._status.update(f"{text} [dim]{seconds:.0f} s of 3 to 40[/]")
        elif phase != self._phase:
            self._console.print(text)
        if phase == "ready":
            self._console.print(f"local platform started in {seconds:.1f} s")
        self._phase = phase

    def __enter__(self) -> _Start:
        if self._console.is_terminal:
            self._status.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._status.stop()
