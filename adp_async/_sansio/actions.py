"""What a failed log-batch means for the batch: retry it, make it smaller, or give up.

Only the service's own verdict on the records gives them up: a 400, 409 or 422 with its error code.
Credentials come back, networks come back, a platform that answers 404 comes back, and so does a
service that a login page, a proxy or a web filter hides.
"""

from __future__ import annotations

import enum

from adp_async.errors import (
    AdpError,
    ConfigurationError,
    Conflict,
    NotFound,
    PayloadTooLarge,
    ServiceError,
    ServiceFault,
    Throttled,
    UnreadableReply,
)

#: The statuses by which the service refuses what a request holds.
VERDICTS = frozenset({400, 409, 422})


class Action(enum.Enum):
    """What to do with the batch."""

    DELIVERED = "the service has it"
    WAIT_TURN = "throttled: retry when the hold that all calls share is over"
    BACK_OFF = "no verdict: retry after a back-off"
    HOLD = "credentials, the platform, or not the service: retry after a back-off, and warn"
    RENEW_TOKEN = "the retry token is spent: retry with a new one"  # noqa: S105
    HALVE = "too large; for a single record, final only with the service's code"
    SPLIT = "refused: find the bad records"
    GIVE_UP = "the run is deleted or does not exist: no record of the batch can be delivered"


def action_for(error: AdpError) -> Action:
    """What *error*, the answer to a log-batch, calls for."""
    match error:
        case Throttled():
            return Action.WAIT_TURN
        case PayloadTooLarge():
            return Action.HALVE
        case Conflict(code="InvalidatedRetryToken"):
            return Action.RENEW_TOKEN
        case ServiceFault():
            return Action.BACK_OFF
        case ServiceError() if error.retriable:
            return Action.BACK_OFF
        case ServiceError() if error.status in VERDICTS and error.code:
            return Action.SPLIT
        case ServiceError() | UnreadableReply() | ConfigurationError():
            return Action.HOLD
        case _:
            return Action.BACK_OFF


def is_about_the_run(error: NotFound, run_id: str) -> bool:
    """Whether a 404 is the service's, and about this run: not the platform, not the workspace.

    OCI says ``NotAuthorizedOrNotFound`` for whatever these credentials can't see; what code the
    service gives for a run that doesn't exist is not published.  MLflow's code is clear, and so
    is a message that names the run.  Without a code, the service did not answer.
    """
    if error.code in ("", "NotAuthorizedOrNotFound"):
        return False
    return error.code == "RESOURCE_DOES_NOT_EXIST" or run_id in error.message
