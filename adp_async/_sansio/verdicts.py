"""What a failed log-batch means for the batch: another try, a smaller one, or the end.

Only a verdict of the service on the records themselves ends their wait.  Credentials come back,
networks come back, and so does a platform that answers 404 for a while.
"""

from __future__ import annotations

import enum

from adp_async.errors import (
    AdpError,
    BadRequest,
    ConfigurationError,
    Conflict,
    Forbidden,
    NotAuthenticated,
    NotFound,
    PayloadTooLarge,
    Throttled,
    UnreadableReply,
)


class Action(enum.Enum):
    """What to do with the batch."""

    DELIVERED = "a 2xx, whatever stands in its body"
    WAIT_TURN = "throttled: again when the hold that all calls share is over"
    BACK_OFF = "no verdict: again after a back-off"
    HOLD = "credentials, or the whole platform: again after a back-off, and tell a person"
    RENEW_TOKEN = "the retry token is spent: again under a new one"  # noqa: S105
    HALVE = "too large"
    SPLIT = "refused: find the bad records"
    GIVE_UP = "the run is gone, or nowhere: no record of the batch can be delivered"


def action_for(error: AdpError, run_id: str) -> Action:
    """What *error*, the answer to a log-batch of the run *run_id*, calls for."""
    match error:
        case UnreadableReply():
            return Action.DELIVERED
        case ConfigurationError():
            return Action.GIVE_UP  # a session's settings never change: there is no workspace
        case Throttled():
            return Action.WAIT_TURN
        case PayloadTooLarge():
            return Action.HALVE
        case NotAuthenticated() | Forbidden():
            return Action.HOLD
        case NotFound():
            return Action.GIVE_UP if is_about_the_run(error, run_id) else Action.HOLD
        case Conflict(code="InvalidatedRetryToken"):
            return Action.RENEW_TOKEN
        case Conflict() | BadRequest() if not error.retriable:
            return Action.SPLIT
        case _:
            return Action.BACK_OFF


def is_about_the_run(error: NotFound, run_id: str) -> bool:
    """Whether a 404 is about this run, and not about the platform or the workspace.

    OCI says ``NotAuthorizedOrNotFound`` for whatever these credentials can't see; what code the
    service gives for a run that doesn't exist is not published.  MLflow's code is clear, and so
    is a message that names the run.  Everything else holds the records.
    """
    if error.code == "NotAuthorizedOrNotFound":
        return False
    return error.code == "RESOURCE_DOES_NOT_EXIST" or run_id in error.message
