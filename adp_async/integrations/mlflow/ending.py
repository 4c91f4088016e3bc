"""How runs end: as their body, or the process, ended.

MLflow itself ends the active run FINISHED when the interpreter ends, whatever happened before.
Here the runs that this process has begun and not ended become FAILED after an uncaught exception
and KILLED after Ctrl-C, before MLflow's own handler and before the sessions close.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import sys
import time
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Final, Protocol

from mlflow.exceptions import MlflowException

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger("adp_async")

_INTERRUPTED: Final = (KeyboardInterrupt, asyncio.CancelledError)


class Ender(Protocol):
    """What can give a run its status at the end of the process, within *seconds*."""

    def end(self, run_id: str, status: str, seconds: float) -> None: ...

    @property
    def exit_timeout(self) -> float: ...


#: Runs that this process has begun, or taken up again, and not ended.
_open: dict[str, Ender] = {}
#: When the interpreter has begun to end: until when MLflow's calls may take, else None.
_ends_by: float | None = None


def began(run_id: str, ender: Ender) -> None:
    """This process logs into the run from now on, and ends it."""
    _open[run_id] = ender
    _watch_the_exit()


def ended(run_id: str) -> None:
    """The run has its end."""
    _open.pop(run_id, None)


def is_too_late(run_id: str) -> bool:
    """Whether an end is MLflow's own at the interpreter's end, of a run that is ended already.

    Or of one that belongs to the parent process of a fork.
    """
    return _ends_by is not None and run_id not in _open


def time_left() -> float | None:
    """Seconds for a call when the interpreter is ending, else None."""
    return None if _ends_by is None else max(0.1, _ends_by - time.monotonic())


def status_now(status: str) -> str:
    """FAILED is KILLED while the body of a run is left by Ctrl-C or by a cancellation."""
    if status == "FAILED" and isinstance(sys.exc_info()[1], _INTERRUPTED):
        return "KILLED"
    return status


def _of_the_process() -> str | None:
    """How the process ends: None when its end says nothing of the runs."""
    if hasattr(sys, "ps1") or ("IPython" in sys.modules and _in_ipython()):
        return None  # the last error of a prompt or a cell is not the end of the process
    error = getattr(sys, "last_value", None)
    if error is None:
        return None
    return "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"


def _in_ipython() -> bool:
    return sys.modules["IPython"].get_ipython() is not None


@cache
def _watch_the_exit() -> None:
    # Handlers run in reverse order: after this import ours comes before MLflow's own.
    import mlflow.tracking.fluent  # noqa: F401

    atexit.register(_at_exit)


def _at_exit() -> None:
    global _ends_by
    status = _of_the_process()
    runs: Mapping[str, Ender] = dict(_open)
    seconds = min((ender.exit_timeout for ender in runs.values()), default=0.0)
    _ends_by = time.monotonic() + seconds
    if status is None:
        return
    for run_id, ender in reversed(list(runs.items())):
        try:
            ender.end(run_id, status, time_left() or 0.0)
        except MlflowException as error:
            # There is no caller to catch it.
            logger.warning("run %s could not be ended as %s: %s", run_id, status, error)
        ended(run_id)


def _after_fork_in_child() -> None:
    _open.clear()


with suppress(AttributeError):
    os.register_at_fork(after_in_child=_after_fork_in_child)
