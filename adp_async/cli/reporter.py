"""The progress of a delivery: as lines, or as a bar on a terminal."""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from attrs import define, field, frozen
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from adp_async._sansio.texts import counted
from adp_async.cli.output import say
from adp_async.cli.spools import short_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console

    from adp_async._io.recovery import Orphan, Recovery

__all__ = ["Reporter"]

_SECONDS_BETWEEN_LINES: Final = 5.0


@frozen
class Outcome:
    """The outcome for one spool."""

    delivered: int = 0
    rejected: int = 0


@define(eq=False)
class Reporter:
    """Shows the progress as lines."""

    console: Console
    delivered: int = field(default=0, init=False)
    _told_at: float = field(default=0.0, init=False)
    _handler: logging.Handler | None = field(default=None, init=False)

    @classmethod
    def of(cls, console: Console) -> Reporter:
        return BarReporter(console) if console.is_terminal else cls(console)

    def __enter__(self) -> Reporter:
        self._handler = _Told(self.say)
        logging.getLogger("adp_async").addHandler(self._handler)
        return self

    def __exit__(self, *error: object) -> None:
        assert self._handler is not None
        logging.getLogger("adp_async").removeHandler(self._handler)

    def say(self, message: str) -> None:
        say(self.console, message)

    @contextmanager
    def spool(self, orphan: Orphan) -> Iterator[Callable[[Recovery], None]]:
        """A callback for the progress of one spool."""
        name, total = short_name(orphan.spool.path), orphan.records
        last = Outcome()
        self.begin(name, total)
        if orphan.starts:
            self.say(f"{name}: {counted(len(orphan.starts), 'run')} to create, or to end")

        def on_progress(recovery: Recovery) -> None:
            nonlocal last
            last = Outcome(*recovery.counts)
            self.progress(name, last, total)

        try:
            yield on_progress
        finally:
            self.delivered += last.delivered
            self.end(name, last, total)

    def begin(self, name: str, total: int) -> None:
        self.say(f"{name}: {counted(total, 'record')} to deliver")
        self._told_at = time.monotonic()

    def progress(self, name: str, outcome: Outcome, total: int) -> None:
        if time.monotonic() - self._told_at > _SECONDS_BETWEEN_LINES:
            self._told_at = time.monotonic()
            self.say(f"{name}: {outcome.delivered:,} of {total:,}")

    def end(self, name: str, outcome: Outcome, total: int) -> None:
        rejected = f", {outcome.rejected:,} rejected" if outcome.rejected else ""
        self.say(f"{name}: {outcome.delivered:,} of {total:,} delivered{rejected}")


@define(eq=False)
class BarReporter(Reporter):
    """Shows the progress as a bar."""

    _progress: Progress = field(init=False)
    _task: Any = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        columns = TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn()
        self._progress = Progress(*columns, console=self.console, expand=True)

    def __enter__(self) -> Reporter:
        self._progress.start()
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._progress.stop()

    def begin(self, name: str, total: int) -> None:
        self._task = self._progress.add_task(name, total=total)

    def progress(self, name: str, outcome: Outcome, total: int) -> None:
        done = outcome.delivered + outcome.rejected
        self._progress.update(self._task, completed=done)

    def end(self, name: str, outcome: Outcome, total: int) -> None:
        if outcome.rejected:
            self.say(f"{name}: {outcome.rejected:,} rejected")


class _Told(logging.Handler):
    """Puts the library's warnings among the lines of progress."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(record.getMessage())
