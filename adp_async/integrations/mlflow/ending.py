"""How runs end: as their body, or the process, ended.

MLflow itself ends the active run FINISHED when the interpreter ends, whatever happened before.
Here that waits until the session hears how the process ends: FAILED after an uncaught exception,
KILLED after Ctrl-C.  So do other runs that this process has begun and not ended, as those of
`MlflowClient`; at a normal end they stay open, as MLflow leaves them.

::

    the interpreter ends ──► _begin ──► MLflow ends its active run ──► the session is about to close
                             (first)    (`OpenRuns.defer`)             (`OpenRuns.session_closes`)
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import sys
import time
from functools import cache
from typing import TYPE_CHECKING, Final

from mlflow.exceptions import MlflowException

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("adp_async")

_INTERRUPTED: Final = (KeyboardInterrupt, asyncio.CancelledError)

#: Seconds for everything that happens when the interpreter ends.
_seconds = 10.0
#: When it has begun to: until when calls may take, else None.
_ends_by: float | None = None


def watch_the_exit(seconds: float) -> None:
    """From now on this module hears of it first; calls may then take *seconds* altogether."""
    global _seconds
    _seconds = seconds
    _register()


@cache
def _register() -> None:
    # Handlers run in reverse order: after this import ours comes before MLflow's own.
    import mlflow.tracking.fluent  # noqa: F401

    atexit.register(_begin)


def _begin() -> None:
    global _ends_by
    if _ends_by is None:
        _ends_by = time.monotonic() + _seconds


def time_left() -> float | None:
    """Seconds for a call when the interpreter is ending, else None."""
    return None if _ends_by is None else max(0.1, _ends_by - time.monotonic())


def status_now(status: str) -> str:
    """FAILED is KILLED while the body of a run is left by Ctrl-C or by a cancellation."""
    if status == "FAILED" and isinstance(sys.exc_info()[1], _INTERRUPTED):
        return "KILLED"
    return status


class OpenRuns:
    """Runs that this process has begun, or taken up again, and not ended.

    *end* gives a run its status.  A forked child starts with none.
    """

    def __init__(self, end: Callable[[str, str], object]) -> None:
        self._end = end
        self._pid = os.getpid()
        #: By their ids, and whether MLflow has ended them since the interpreter is ending.
        self._runs: dict[str, bool] = {}

    def began(self, run_id: str) -> None:
        """This process ends the run."""
        self._forget_parents()
        self._runs[run_id] = False

    def ended(self, run_id: str) -> None:
        """The run has ended."""
        self._runs.pop(run_id, None)

    def defer(self, run_id: str) -> bool:
        """Whether MLflow's end of a run has to wait, since the interpreter is ending.

        What the parent process of a fork has begun is not ended at all.
        """
        if _ends_by is None:
            return False
        self._forget_parents()
        if run_id in self._runs:
            self._runs[run_id] = True
        return True

    def session_closes(self, status: str | None) -> None:
        """End what is open; *status* says how the process ends, None that it goes on."""
        self._forget_parents()
        if status is None:
            return
        _begin()
        for run_id, is_deferred in reversed(list(self._runs.items())):
            if is_deferred or status != "FINISHED":
                try:
                    self._end(run_id, status)
                except MlflowException as error:
                    # There is no caller to catch it.
                    message = "run %s, at the end of the process (%s): %s"
                    about = {"run_id": run_id}
                    logger.warning(message, run_id, status, error, extra=about)
            self.ended(run_id)

    def _forget_parents(self) -> None:
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._runs.clear()
