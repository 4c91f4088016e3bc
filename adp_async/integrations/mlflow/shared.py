"""One session a process for all stores of the same settings."""

from __future__ import annotations

import os
import threading
from typing import Any

from adp_async.blocking import Session

_sessions: dict[str, Session] = {}
_lock = threading.Lock()


def shared_session(**knobs: Any) -> Session:
    """The open session of these settings, opened anew when it is closed."""
    probe = Session(**knobs)
    key = repr(probe.settings)
    with _lock:
        session = _sessions.get(key)
        if session is None or not session.is_open:
            session = _sessions[key] = probe.open()
        return session


def _forget_parents_sessions() -> None:
    global _lock  # the parent may have held it
    _lock = threading.Lock()
    _sessions.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parents_sessions)
