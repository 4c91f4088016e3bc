"""How this process ends, for the runs that are still open then.

At the interpreter's end most of it is past: an exception that nobody caught has been printed, and a
``SystemExit`` is gone without a trace.  So `watch` has calls of ``sys.exit`` remembered.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from functools import cache, wraps
from typing import TYPE_CHECKING, Any, Final, NoReturn

from adp_async._sansio.statuses import status_of

if TYPE_CHECKING:
    from adp_async._sansio.statuses import EndStatus

#: Signals that ask a process to end.
_ENDS: Final = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGBREAK")
    if hasattr(signal, name)
)
#: A shell's exit status for a process that a signal ended is this and the signal's number.
_BY_SIGNAL: Final = 128


class _Ending:
    """What was seen of this process's end."""

    def __init__(self) -> None:
        self.is_watching = False
        #: Of an exception that was printed before anybody watched.
        self.printed_before: BaseException | None = None
        #: What a child of `multiprocessing` ends with.
        self.childs_error: BaseException | None = None
        #: A SIGTERM ends it, and nobody handles that but us.
        self.is_terminated = False
        #: What the last ``sys.exit`` of the main thread means.
        self.exit: EndStatus = "FINISHED"


_ending = _Ending()


def watch() -> None:
    """From now on `how_it_ends` can say it."""
    if _ending.is_watching:
        return
    _ending.is_watching = True
    _ending.printed_before = _printed()
    _remember_exits()
    processes = sys.modules.get("multiprocessing.process")
    if processes is not None and processes.parent_process() is not None:
        # It ends without printing through the interpreter; up to Python 3.12 this is called on its
        # way out, later ones only tell its exit code.
        from multiprocessing.util import Finalize

        Finalize(None, _child_ends, exitpriority=0)


def how_it_ends() -> EndStatus:
    """The status of what is open as this process ends.

    FAILED after an exception that nobody caught or an exit with an error, KILLED after Ctrl-C, a
    SIGTERM or an exit from the handler of a signal.  In an interactive interpreter a failed
    statement or cell is not the end: FINISHED.
    """
    if _ending.is_terminated:
        return "KILLED"
    if _is_interactive():
        return "FINISHED"
    if _ending.childs_error is not None:
        return _status_of(_ending.childs_error)
    if _ending.exit == "FINISHED" and (code := _childs_exit_code()):
        return _status_of(SystemExit(code))
    printed = _printed()
    if printed is not None and printed is not _ending.printed_before:
        return _status_of(printed)
    return _ending.exit


def terminated() -> None:
    """A SIGTERM ends this process."""
    _ending.is_terminated = True


def _printed() -> BaseException | None:
    """The exception that the interpreter has printed last, since nobody caught it."""
    return getattr(sys, "last_value", None)


def _is_interactive() -> bool:
    if hasattr(sys, "ps1") or sys.flags.interactive:
        return True
    ipython: Any = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None


def _child_ends() -> None:
    _ending.childs_error = sys.exception()


def _childs_exit_code() -> object:
    """What a child of `multiprocessing` that is ending will return; None elsewhere."""
    frame: Any = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "multiprocessing.process":
            return frame.f_locals.get("exitcode")
        frame = frame.f_back
    return None


@cache
def _remember_exits() -> None:
    exit_ = sys.exit

    @wraps(exit_)
    def remember(status: Any = None, /) -> NoReturn:
        if threading.current_thread() is threading.main_thread():
            is_interrupt = isinstance(sys.exception(), KeyboardInterrupt) or _is_in_handler()
            _ending.exit = "KILLED" if is_interrupt else _status_of(SystemExit(status))
        exit_(status)

    sys.exit = remember


def _status_of(error: BaseException) -> EndStatus:
    if isinstance(error, SystemExit) and error.code in _EXITS_BY_SIGNAL:
        return "KILLED"
    return status_of(error)


_EXITS_BY_SIGNAL: Final = frozenset(_BY_SIGNAL + number for number in _ENDS)


def _is_in_handler() -> bool:
    """Whether this is called from a handler of a signal that asks the process to end."""
    handlers = [signal.getsignal(number) for number in _ENDS]
    codes = {getattr(getattr(each, "__func__", each), "__code__", None) for each in handlers}
    # The one that raises KeyboardInterrupt has no code.
    codes.discard(None)
    frame: Any = sys._getframe()
    while frame is not None:
        if frame.f_code in codes:
            return True
        frame = frame.f_back
    return False


def _after_fork_in_child() -> None:
    global _ending
    _ending = _Ending()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
