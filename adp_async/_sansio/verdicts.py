"""What a failed log-batch means for the batch: another try, a smaller one, or the end.

Only the service's own verdict on the records themselves ends their wait: a 400, 409 or 422 with
its error code.  Credentials come back, networks come back, a platform that answers 404 comes back,
and so does whatever a login page, a proxy or a web filter stands in the way of.
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
    WAIT_TURN = "throttled: again when the hold that all calls share is over"
    BACK_OFF = "no verdict: again after a back-off"
    HOLD = "credentials, the platform, or not the service: again after a back-off; tell a person"
    RENEW_TOKEN = "the retry token is spent: again under a new one"  # noqa: S105
    HALVE = "too large; for a single record a verdict only with the service's code"
    SPLIT = "refused: find the bad records"
    GIVE_UP = "the run is gone, or there is none: no record of the batch can be delivered"


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
    is a message that names the run.  Without a code it is not the service that answers.
    """
    if error.code in ("", "NotAuthorizedOrNotFound"):
        return False
    return error.code == "RESOURCE_DOES_NOT_EXIST" or run_id in error.message
