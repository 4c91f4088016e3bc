"""What an error means for a batch: one row for every class of the tree."""

from __future__ import annotations

import pytest

from adp_async import errors
from adp_async._sansio.verdicts import Action, action_for

RUN = "0123456789abcdef"

TABLE = [
    (errors.ConnectionFailed("no route"), Action.BACK_OFF),
    (errors.ConnectionLost("reset"), Action.BACK_OFF),
    (errors.RequestTimeout("60 s"), Action.BACK_OFF),
    (errors.BadRequest("x", status=400), Action.SPLIT),
    (errors.BadRequest("x", status=400, code="INVALID_PARAMETER_VALUE"), Action.SPLIT),
    (errors.BadRequest("x", status=422), Action.SPLIT),
    (errors.BadRequest("x", status=408, retriable=True), Action.BACK_OFF),
    (errors.NotAuthenticated("x", status=401), Action.HOLD),
    (errors.Forbidden("x", status=403), Action.HOLD),
    (errors.NotFound("x", status=404), Action.HOLD),
    (errors.NotFound("x", status=404, code="NotAuthorizedOrNotFound"), Action.HOLD),
    (errors.NotFound(f"run {RUN}", status=404, code="NotAuthorizedOrNotFound"), Action.HOLD),
    (errors.NotFound("x", status=404, code="RESOURCE_DOES_NOT_EXIST"), Action.GIVE_UP),
    (errors.NotFound(f"no run {RUN}", status=404, code="NotFound"), Action.GIVE_UP),
    (errors.Conflict("x", status=409), Action.SPLIT),
    (errors.Conflict("x", status=409, code="IncorrectState", retriable=True), Action.BACK_OFF),
    (errors.Conflict("x", status=409, code="InvalidatedRetryToken"), Action.RENEW_TOKEN),
    (errors.PayloadTooLarge("x", status=413), Action.HALVE),
    (errors.Throttled("x", status=429), Action.WAIT_TURN),
    (errors.ServiceFault("x", status=500), Action.BACK_OFF),
    (errors.ServiceFault("x", status=503), Action.BACK_OFF),
    (errors.ServiceFault("x", status=501, retriable=False), Action.BACK_OFF),
    (errors.ServiceError("x", status=302), Action.BACK_OFF),
    (errors.UnreadableReply("x", status=200), Action.DELIVERED),
    (errors.ConfigurationError("no workspace"), Action.GIVE_UP),
    (errors.AdpError("anything else"), Action.BACK_OFF),
]


@pytest.mark.parametrize(
    ("error", "action"), TABLE, ids=[f"{type(e).__name__}-{a.name}" for e, a in TABLE]
)
def test_every_error_has_its_action(error: errors.AdpError, action: Action) -> None:
    """Only a verdict on the records themselves ends their wait; everything else holds them."""
    assert action_for(error, RUN) is action


def test_the_table_is_complete() -> None:
    """Every error that a request can end with has its row."""
    ours = {"DeliveryError", "BufferFull", "InvalidRecord", "Closed"}
    classes = {
        name
        for name in errors.__all__
        if isinstance(getattr(errors, name), type)
        and issubclass(getattr(errors, name), errors.AdpError)
    }

    assert classes - ours == {type(error).__name__ for error, _ in TABLE}
