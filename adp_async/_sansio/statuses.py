"""How a run ends, and which end follows from an exception."""

from __future__ import annotations

from typing import Literal, get_args

from adp_async.errors import shown

#: How a run ends.
EndStatus = Literal["FINISHED", "FAILED", "KILLED"]


def end_status(status: object) -> EndStatus:
    """*status* if a run can end with it, else ValueError."""
    for allowed in get_args(EndStatus):
        if issubclass(type(status), str) and str.__str__(status) == allowed:
            return allowed  # type: ignore[no-any-return]
    message = f"a run ends FINISHED, FAILED or KILLED, not {shown(status)}"
    raise ValueError(message)


def status_of(error: BaseException | None) -> EndStatus:
    """The status of a run whose body ended with *error*."""
    if error is None:
        return "FINISHED"
    if isinstance(error, SystemExit):
        return "FINISHED" if error.code in (None, 0) else "FAILED"
    return "FAILED" if isinstance(error, Exception) else "KILLED"
