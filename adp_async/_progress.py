"""Live progress of what waits longer than two seconds: flush, finish, and leaving.

A notebook and a terminal show one line that changes, anything else gets a line of the log now and
then.  It is shown by a thread of its own, so that neither an event loop nor the delivery waits for
a terminal; and only one wait of the process at a time, the first.  Whatever goes wrong with it is
logged at DEBUG.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from contextvars import copy_context
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

import attrs

from adp_async._io.log import logger
from adp_async._io.measuring import AFTER, Measure
from adp_async._io.notebook import is_notebook
from adp_async._sansio.waiting import Wait, end_line, line, share

if TYPE_CHECKING:
    from types import TracebackType


__all__ = ["watched"]

#: Seconds between two looks whether another wait is not shown any more.
AGAIN: Final = 1.0
#: Seconds that the end of a wait may be delayed by showing it.
LONGEST_END: Final = 0.5
#: Held by the one wait that is shown.
_turn = threading.Lock()


class watched:  # noqa: N801 - used like the functions of contextlib
    """``with watched(measure):`` while a coroutine waits in the block.

    Nothing happens with ``progress=False``.
    """

    def __init__(self, measure: Measure) -> None:
        self._measure = measure
        self._timer: asyncio.TimerHandle | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self._measure.delivery.settings.progress:
            self._measure.begin()
            self._timer = asyncio.get_running_loop().call_later(AFTER, self._begin)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._thread is not None:
            self._over.set()
            self._thread.join(LONGEST_END)

    def _begin(self) -> None:
        if not _turn.acquire(blocking=False):
            self._timer = asyncio.get_running_loop().call_later(AGAIN, self._begin)
            return
        self._over = threading.Event()
        # A notebook finds the cell that waits by a context variable.
        run = copy_context().run
        thread = threading.Thread(
            target=run, args=(self._show,), name="adp_async progress", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:  # the interpreter is ending, or there are too many
            _turn.release()
            logger.debug("progress is not shown: %s", error)
        else:
            self._thread = thread

    def _show(self) -> None:
        """In a thread of its own."""
        try:
            face = _face(self._measure.run_id)
            try:
                face.update(self._measure.now())
                while not self._over.wait(face.every):
                    face.update(self._measure.now())
            finally:
                face.end(self._measure.now())
        except Exception as error:
            logger.debug("progress is not shown: %s: %s", type(error).__name__, error)
        finally:
            _turn.release()


# ------------------------------------------------------------------ where it is shown


class _Face(Protocol):
    #: Seconds between two updates.
    every: float

    def update(self, wait: Wait) -> None: ...

    def end(self, wait: Wait) -> None: ...


def _face(run_id: str | None) -> _Face:
    if is_notebook():
        return _Notebook()
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    if is_terminal and os.environ.get("TERM") not in ("dumb", "unknown"):
        return _Terminal()
    return _Log(run_id)


class _Notebook:
    """A display of the cell that waits."""

    every = 0.5

    def __init__(self) -> None:
        self._handle: Any = None

    def update(self, wait: Wait) -> None:
        from adp_async._html import bar

        self._display(line(wait), f"{bar(share(wait))} ")

    def end(self, wait: Wait) -> None:
        self._display(end_line(wait), "")

    def _display(self, text: str, before: str) -> None:
        from adp_async._html import line as html_line

        shown = {"text/plain": text, "text/html": html_line(text, before)}
        if self._handle is None:
            ipython: Any = import_module("IPython.display")
            self._handle = ipython.display(shown, raw=True, display_id=True)
        else:
            self._handle.update(shown, raw=True)


class _Terminal:
    """A line of rich with a bar, which is gone in the end."""

    every = 0.2

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column

        text = Column(no_wrap=True, overflow="ellipsis", ratio=1)
        self._progress = Progress(
            BarColumn(bar_width=16),
            TextColumn("{task.fields[line]}", markup=False, table_column=text),
            console=Console(stderr=True, force_jupyter=False),
            transient=True,
            auto_refresh=False,
            expand=True,
            # What others print is theirs.
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._progress.add_task("", total=1.0, line="")

    def update(self, wait: Wait) -> None:
        self._progress.update(self._task, completed=share(wait), line=line(wait))
        self._progress.start()
        self._progress.refresh()

    def end(self, wait: Wait) -> None:
        self._progress.stop()


class _Log:
    """A line of the log every ten seconds; WARNING when nothing has moved since the last."""

    every = 10.0

    def __init__(self, run_id: str | None) -> None:
        self._extra = {} if run_id is None else {"run_id": run_id}
        self._last: Wait | None = None

    def update(self, wait: Wait) -> None:
        last, self._last = self._last, wait
        is_stuck = last is not None and not _has_moved(last, wait)
        if is_stuck:
            logger.warning("still waiting: %s", line(wait), extra=self._extra)
        else:
            logger.info("%s", line(wait), extra=self._extra)

    def end(self, wait: Wait) -> None:
        logger.info("%s", end_line(wait), extra=self._extra)


def _has_moved(last: Wait, wait: Wait) -> bool:
    then = attrs.evolve(last, elapsed=0.0, held=0.0, error=None)
    return attrs.evolve(wait, elapsed=0.0, held=0.0, error=None) != then


def _after_fork_in_child() -> None:
    global _turn
    _turn = threading.Lock()  # the thread that held the other is the parent's


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
