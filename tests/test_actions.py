"""What an error means for a batch: one row for every class of the tree."""

from __future__ import annotations

import pytest

from adp_async import errors
from adp_async._sansio.actions import Action, action_for, is_about_the_run

RUN = "0123456789abcdef"

TABLE = [
    (errors.ConnectionFailed("no route"), Action.BACK_OFF),
    (errors.ConnectionLost("reset"), Action.BACK_OFF),
    (errors.RequestTimeout("60 s"), Action.BACK_OFF),
    (errors.BadRequest("x", status=400), Action.HOLD),
    (errors.BadRequest("x", status=400, code="INVALID_PARAMETER_VALUE"), Action.SPLIT),
    (errors.BadRequest("x", status=422), Action.HOLD),
    (errors.BadRequest("x", status=422, code="InvalidParameter"), Action.SPLIT),
    (errors.BadRequest("x", status=402, code="PaymentRequired"), Action.HOLD),
    (errors.BadRequest("x", status=405), Action.HOLD),
    (errors.BadRequest("x", status=405, code="MethodNotAllowed"), Action.HOLD),
    (errors.BadRequest("x", status=407), Action.HOLD),
    (errors.BadRequest("x", status=412, code="NoEtagMatch"), Action.HOLD),
    (errors.BadRequest("x", status=415, code="UnsupportedMediaType"), Action.HOLD),
    (errors.BadRequest("x", status=431), Action.HOLD),
    (errors.BadRequest("x", status=451), Action.HOLD),
    (errors.BadRequest("x", status=499), Action.HOLD),
    (errors.BadRequest("x", status=408, retriable=True), Action.BACK_OFF),
    (errors.NotAuthenticated("x", status=401), Action.HOLD),
    (errors.NotAuthenticated("x", status=401, code="NotAuthenticated"), Action.HOLD),
    (errors.Forbidden("x", status=403), Action.HOLD),
    (errors.Forbidden("x", status=403, code="PERMISSION_DENIED"), Action.HOLD),
    (errors.NotFound("x", status=404), Action.HOLD),
    (errors.NotFound("x", status=404, code="NotAuthorizedOrNotFound"), Action.HOLD),
    (errors.NotFound(f"no run {RUN}", status=404, code="NotFound"), Action.HOLD),
    (errors.NotFound("x", status=404, code="RESOURCE_DOES_NOT_EXIST"), Action.HOLD),
    (errors.Conflict("x", status=409), Action.HOLD),
    (errors.Conflict("x", status=409, code="RESOURCE_CONFLICT"), Action.SPLIT),
    (errors.Conflict("x", status=409, code="IncorrectState", retriable=True), Action.BACK_OFF),
    (errors.Conflict("x", status=409, code="InvalidatedRetryToken"), Action.RENEW_TOKEN),
    (errors.PayloadTooLarge("x", status=413), Action.HALVE),
    (errors.PayloadTooLarge("x", status=413, code="PayloadTooLarge"), Action.HALVE),
    (errors.Throttled("x", status=429), Action.WAIT_TURN),
    (errors.ServiceFault("x", status=500), Action.BACK_OFF),
    (errors.ServiceFault("x", status=503), Action.BACK_OFF),
    (errors.ServiceFault("x", status=501, retriable=False), Action.BACK_OFF),
    (errors.ServiceFault("x", status=511), Action.BACK_OFF),
    (errors.ServiceError("x", status=101), Action.HOLD),
    (errors.ServiceError("x", status=302), Action.HOLD),
    (errors.ServiceError("x", status=304, code="NotModified"), Action.HOLD),
    (errors.ServiceError("x", status=666), Action.HOLD),
    (errors.UnreadableReply("x", status=200), Action.HOLD),
    (errors.ConfigurationError("no workspace"), Action.HOLD),
    (errors.AdpError("anything else"), Action.BACK_OFF),
]


@pytest.mark.parametrize(
    ("error", "action"), TABLE, ids=[f"{type(e).__name__}-{a.name}" for e, a in TABLE]
)
def test_every_error_has_its_action(error: errors.AdpError, action: Action) -> None:
    """Only the service's verdict on the records ends their wait; everything else holds them."""
    assert action_for(error) is action


@pytest.mark.parametrize(
    ("code", "message", "is_about_it"),
    [
        ("RESOURCE_DOES_NOT_EXIST", "", True),
        ("NotFound", f"there is no run {RUN}", True),
        ("NotFound", "no such workspace", False),
        ("NotAuthorizedOrNotFound", f"run {RUN}", False),
        ("", f"/mlflow/runs/get?run_id={RUN} was not found on this server", False),
    ],
)
def test_a_404_about_the_run(code: str, message: str, is_about_it: bool) -> None:
    """It comes from the service, and is about this run."""
    error = errors.NotFound(message, status=404, code=code)

    assert is_about_the_run(error, RUN) is is_about_it


def test_the_table_is_complete() -> None:
    """Every error that a request can end with has its row."""
    ours = {"DeliveryError", "BufferFull", "InvalidRecord", "UploadError", "Closed"}
    classes = {
        name
        for name in errors.__all__
        if isinstance(getattr(errors, name), type)
        and issubclass(getattr(errors, name), errors.AdpError)
    }

    assert classes - ours == {type(error).__name__ for error, _ in TABLE}
