"""Whether something is open, or why not; and what to call at forks and the interpreter's end."""

from __future__ import annotations

import atexit
import enum
import os
import sys
import threading
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Final, TypeVar

from attrs import frozen

from adp_async._io.log import is_locked_here, logger
from adp_async.errors import Closed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


T = TypeVar("T")


class Why(enum.Enum):
    """Why nothing is accepted."""

    NOT_OPENED = "it is not open yet: enter it with `async with`, or `await session.open()`"
    CLOSED = "it is closed"
    CRASHED = "its sender crashed"
    FORKED = "it belongs to the parent process; open a session in this process"
    ENDED = "the interpreter is ending"


#: What an error says of it besides: someone may have a run in hand, and have seen no session.
_HOW_CLOSED: Final = (
    ", for its `with` block has ended, or `close` or `finish` was called; open a new one, or start "
    "a new run"
)


class Lifetime:
    """Open, or why not."""

    __slots__ = ("_detail", "why")

    def __init__(self) -> None:
        self.why: Why | None = Why.NOT_OPENED
        self._detail = ""

    @property
    def is_open(self) -> bool:
        return self.why is None

    def open(self) -> None:
        self.why = None

    def close(self, why: Why, detail: str = "") -> None:
        """Close it.  The first reason counts, except that a fork's replaces any other."""
        if self.why is None or why is Why.FORKED or self.why is Why.NOT_OPENED:
            self.why, self._detail = why, detail

    def __str__(self) -> str:
        return "open" if self.why is None else f"{self.why.value}{self._detail}"

    def error(self) -> Closed:
        how = _HOW_CLOSED if self.why is Why.CLOSED else ""
        return Closed(f"the session cannot be used: {self}{how}")

    def check(self) -> None:
        """Raise `Closed`, with the reason, unless it is open."""
        if self.why is not None:
            raise self.error()


@frozen(eq=False)
class Living:
    """What to call in a forked child, and when the interpreter ends."""

    #: Called in a forked child: everything here belongs to the parent.
    forked: Callable[[], None]
    #: Called when the interpreter ends, after all threads that are not daemons: begins to end it.
    #: What is returned waits for that.
    interpreter_ends: Callable[[], Callable[[], None] | None]
    #: Whether this thread is in the middle of something that ending waits for.
    is_busy_here: Callable[[], bool]


#: Kept until they are closed: a session goes on delivering when nobody refers to it any more.
_living: set[Living] = set()


def register(living: Living) -> None:
    """Call *living* at forks and at the end."""
    _living.add(living)
    _hear_of_the_end()


@cache
def _hear_of_the_end() -> None:
    """Register for the end of a child of `multiprocessing`, which does not run `atexit`."""
    processes = sys.modules.get("multiprocessing.process")
    if processes is not None and processes.parent_process() is not None:
        # There is no public function for it.  It fails once the child has begun to end.
        with suppress(AttributeError, RuntimeError):
            threading._register_atexit(_interpreter_ends)  # type: ignore[attr-defined]


def keep_forever(*things: object) -> None:
    """Have nothing of *things* torn down, now or at the interpreter's end.

    In a forked child they share sockets and the kernel's list of what to watch with the parent.  A
    task or a connection that is collected there closes itself: the parent would hear no more of
    its own connection, or the server be told that it ends.
    """
    ctypes = sys.modules.get("ctypes")
    increment = getattr(getattr(ctypes, "pythonapi", None), "Py_IncRef", None)
    if ctypes is not None and increment is not None:  # pragma: no branch - CPython has it
        for thing in things:
            increment(ctypes.py_object(thing))


def forget(living: Living) -> None:
    """Call *living* no more."""
    _living.discard(living)


def _all_living() -> Iterable[Living]:
    return list(_living)


def _before_fork() -> None:
    if _living:
        # For `keep_forever`: in the child another thread's import of it would never end.
        import ctypes  # noqa: F401


def _after_fork_in_child() -> None:
    for each in _all_living():
        each.forked()
    _living.clear()
    _hear_of_the_end.cache_clear()


def is_any_busy_here() -> bool:
    """Whether this thread holds anything that the end of a session would wait for."""
    return is_locked_here() or any(each.is_busy_here() for each in _all_living())


def end_all() -> None:
    """End all sessions that are open, at the same time: the process ends."""
    waits = [_tried(each.interpreter_ends) for each in _all_living()]
    for wait in waits:
        if wait is not None:
            _tried(wait)


def _tried(step: Callable[[], T]) -> T | None:
    try:
        return step()
    except Exception:  # it costs no other session its end
        logger.exception("a session could not be ended")
        return None


@atexit.register
def _interpreter_ends() -> None:
    end_all()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
