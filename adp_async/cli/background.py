"""The local platform as a command runs it: its start is shown, its mistakes are a line."""

from __future__ import annotations

import errno
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from rich.status import Status

from adp_async.errors import AdpError
from adp_async.local import LocalPlatform

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rich.console import Console

__all__ = ["running_platform"]


@contextmanager
def running_platform(
    console: Console,
    *,
    directory: Path | None = None,
    port: int = 0,
    mlflow: bool = True,
    tls: bool = False,
) -> Iterator[LocalPlatform]:
    """A started `LocalPlatform`; its start is shown on *console*."""
    with ExitStack() as stack:
        with _Start(console) as start, _port_may_be_taken(port):
            platform = LocalPlatform(
                directory, port=port, mlflow=mlflow, tls=tls, progress=start.show
            )
            stack.enter_context(platform)
        yield platform


@contextmanager
def _port_may_be_taken(port: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        message = (
            f"port {port}: address already in use, perhaps by another `adp-async serve`; "
            "choose one with --port, or a free one with --port 0"
        )
        raise AdpError(message) from error


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
