"""How a worker is told which of its records were refused, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adp_async._sansio.rejections import delivery_error
from adp_async._sansio.replies import class_of
from adp_async.errors import AdpError, Rejection, ServiceError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from adp_async.errors import DeliveryError


def to_wire(rejection: Rejection) -> dict[str, object]:
    """*rejection* as JSON."""
    cause = rejection.cause
    told: dict[str, object] = {"message": str(cause)}
    if isinstance(cause, ServiceError):
        told = {
            "message": cause.message,
            "status": cause.status,
            "code": cause.code,
            "request_id": cause.request_id,
            "operation": cause.operation,
        }
    record = {"kind": rejection.kind, "key": rejection.key, "step": rejection.step}
    return {**record, "cause": told}


def from_wire(run_id: str, told: Sequence[Mapping[str, Any]], count: int) -> DeliveryError:
    """The error for *count* records of a run that were refused, of which *told* are named."""
    rejections = [
        Rejection(run_id, each["kind"], each["key"], each["step"], _cause(each["cause"]))
        for each in told
    ]
    return delivery_error(rejections, rejected=count, run_id=run_id)


def _cause(told: Mapping[str, Any]) -> AdpError:
    if "status" not in told:
        return AdpError(told["message"])
    return class_of(told["status"])(**told)
