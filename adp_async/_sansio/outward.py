"""Errors on their way out: callers see their line and what they called, not our inner frames."""

from __future__ import annotations

from typing import TypeVar

from adp_async.errors import AdpError

__all__ = ["outward"]

E = TypeVar("E", bound=BaseException)


def outward(error: E) -> E:
    """*error*, whose traceback starts anew where it is raised, and its causes without theirs.

    For errors that are meant for the caller; whatever else is raised keeps all of its frames.
    ``raise outward(error) from error.__cause__``
    """
    cause = error.__cause__
    while isinstance(cause, AdpError):
        cause.__traceback__ = None
        cause = cause.__cause__
    return error.with_traceback(None)
