"""SIGTERM ends open runs KILLED, where the program has no handler of its own.

Without a handler the process would end at once, and its runs when the next session finds what it
left.  With this one, which is set when the first run starts, the sessions end as at the
interpreter's end, within ``exit_timeout``: first it is written down how their runs ended, then
what waits is delivered.  Then the signal takes its default action, so that whoever sent it sees
a process that was terminated.  A second SIGTERM in the meantime does so at once.

A signal with a handler in Python is lost where it reaches a forked child before the interpreter
there has begun: whoever waits for the child's end, as `multiprocessing.Pool` does, would wait for
ever.  So it is blocked while a process forks, and comes right after.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from functools import cache
from typing import Final

from adp_async._io.ending import terminated
from adp_async._io.lifetime import end_all, is_any_busy_here

#: Seconds until a signal that came at a bad moment is raised again, and how often that is done: a
#: handler of the log may block for ever, and the process has to end all the same.
_SOON: Final = 0.01
_MOST_TIMES: Final = 100

#: How often it was raised again.
_times = 0


def hear_sigterm() -> None:
    """From now on; does nothing outside of the main thread, and where a handler is set."""
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        _block_it_at_forks()
        signal.signal(signal.SIGTERM, _terminated)


@cache
def _block_it_at_forks() -> None:
    if sys.platform != "win32":
        mine = threading.local()

        def before() -> None:
            mine.mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

        def after() -> None:
            # (A thread that was forking already has blocked nothing.)
            if (mask := mine.__dict__.pop("mask", None)) is not None:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)

        os.register_at_fork(before=before, after_in_parent=after, after_in_child=after)


def _terminated(number: int, _frame: object) -> None:
    global _times
    if is_any_busy_here() and _times < _MOST_TIMES:
        _times += 1
        # This thread was interrupted while it held what the delivery thread needs.
        again = threading.Timer(_SOON, _raise_here, (threading.get_ident(), number))
        again.daemon = True
        again.start()
        return
    signal.signal(number, signal.SIG_DFL)
    terminated()
    try:
        end_all()
    finally:  # whatever goes wrong, or a second Ctrl-C, the process ends
        signal.raise_signal(number)


def _raise_here(thread: int, number: int) -> None:
    """Raise the signal in that thread, so that it does not sleep on."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(thread, number)
    else:  # pragma: no cover - Windows
        signal.raise_signal(number)
