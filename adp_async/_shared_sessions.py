"""Sessions that a process has once for the same settings, for callers who don't know each other."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable


class Openable(Protocol):
    """A session, as far as sharing it takes."""

    @property
    def is_open(self) -> bool: ...

    def open(self) -> Self: ...


S = TypeVar("S", bound=Openable)
K = TypeVar("K", bound="Hashable")


class SharedSessions(Generic[K, S]):
    """One session for each key, such as `Settings`.

    It is opened when it is first asked for, and again when closed.  A forked child has none of its
    parent's.
    """

    def __init__(self, make: Callable[[K], S]) -> None:
        self._make = make
        self._forked()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self._sessions: dict[K, S] = {}
        # The parent may have held its own.  Reentrant: a signal handler may log meanwhile.
        self.lock = threading.RLock()

    def has(self, key: K) -> bool:
        """Whether there is an open session of *key*."""
        session = self._sessions.get(key)
        return session is not None and session.is_open

    def take(self, which: Callable[[S], bool]) -> list[S]:
        """Remove and return those sessions that *which* says, and forget closed ones."""
        with self.lock:
            found = [(key, session) for key, session in self._sessions.items() if which(session)]
            gone = {key for key, _ in found}
            gone |= {key for key, session in self._sessions.items() if not session.is_open}
            for key in gone:
                del self._sessions[key]
            return [session for _, session in found]

    def of(self, key: K) -> S:
        """The open session of *key*; raises what opening raises."""
        with self.lock:
            session = self._sessions.get(key)
            if session is None or not session.is_open:
                session = self._sessions[key] = self._make(key).open()
            return session
