"""Our errors as MLflow's: the same classes and codes that its own REST store would raise."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from mlflow.exceptions import MlflowException, RestException
from mlflow.protos.databricks_pb2 import ErrorCode

from adp_async import errors

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: By our class, most special first; for the service's own code when MLflow doesn't know it.
_CODES: Final[tuple[tuple[type[Exception], str], ...]] = (
    (errors.NotFound, "RESOURCE_DOES_NOT_EXIST"),
    (errors.Conflict, "RESOURCE_CONFLICT"),
    (errors.NotAuthenticated, "UNAUTHENTICATED"),
    (errors.Forbidden, "PERMISSION_DENIED"),
    (errors.Throttled, "REQUEST_LIMIT_EXCEEDED"),
    (errors.BadRequest, "INVALID_PARAMETER_VALUE"),
    (errors.PayloadTooLarge, "INVALID_PARAMETER_VALUE"),
    (errors.ConnectionFailed, "TEMPORARILY_UNAVAILABLE"),
    (errors.ConnectionLost, "TEMPORARILY_UNAVAILABLE"),
    (errors.InvalidRecord, "INVALID_PARAMETER_VALUE"),
    (errors.ConfigurationError, "INVALID_PARAMETER_VALUE"),
    (errors.BufferFull, "RESOURCE_LIMIT_EXCEEDED"),
    (errors.Closed, "INVALID_STATE"),
    (ValueError, "INVALID_PARAMETER_VALUE"),
    (TypeError, "INVALID_PARAMETER_VALUE"),
    (TimeoutError, "TEMPORARILY_UNAVAILABLE"),
)
_BY_STATUS: Final = {501: "NOT_IMPLEMENTED", 503: "TEMPORARILY_UNAVAILABLE"}
#: What is raised at the call, translated into MLflow's terms.
_OURS: Final = (errors.AdpError, ValueError, TypeError, TimeoutError)


@contextmanager
def in_mlflows_words() -> Iterator[None]:
    """Raise our errors as MLflow's, with ours as their cause."""
    try:
        yield
    except MlflowException:
        raise
    except errors.AdpError as error:
        # How it came about inside us helps nobody; of other errors the frames are kept.
        raise as_mlflow(error) from error.with_traceback(None)
    except _OURS as error:
        raise as_mlflow(error) from error


def as_mlflow(error: Exception) -> MlflowException:
    """MLflow's exception for one of ours.

    A reply of the service becomes a RestException, as MLflow's own store raises it; what never
    reached the service, a plain MlflowException.
    """
    code = code_of(error)
    if isinstance(error, errors.ServiceError):
        return RestException({"error_code": code, "message": str(error)})
    if isinstance(error, errors.DeliveryError) and error.rejections:
        return refusal(error.rejections)
    return MlflowException(str(error), error_code=ErrorCode.Value(code))


def code_of(error: Exception | None) -> str:
    """The name of MLflow's error code for one of our errors."""
    if isinstance(error, errors.DeliveryError):
        return code_of(error.cause)
    if isinstance(error, errors.ServiceError):
        if error.code in ErrorCode.keys():  # noqa: SIM118 - protobuf's enum is not a mapping
            return error.code
        if error.status in _BY_STATUS:
            return _BY_STATUS[error.status]
        # On this `mlflow.register_model` goes on with a new version of the model.
        if isinstance(error, errors.Conflict) and "create" in error.operation:
            return "RESOURCE_ALREADY_EXISTS"
    return next((code for kind, code in _CODES if isinstance(error, kind)), "INTERNAL_ERROR")


def code_of_reply(status: int, code: str, operation: str) -> str:
    """MLflow's code for an error reply: its HTTP *status* and *code*, to which *operation*."""
    kinds: dict[int, type[errors.ServiceError]] = {
        401: errors.NotAuthenticated,
        403: errors.Forbidden,
        404: errors.NotFound,
        409: errors.Conflict,
        413: errors.PayloadTooLarge,
        429: errors.Throttled,
    }
    kind = kinds.get(status, errors.ServiceFault if status >= 500 else errors.BadRequest)
    return code_of(kind(status=status, code=code, operation=operation))


def refusal(rejections: Sequence[errors.Rejection]) -> MlflowException:
    """What the service refused of one run's records, as one exception."""
    first, more = rejections[0], len(rejections) - 1
    others = f" (and {more} more of its records)" if more else ""
    message = f"the service refused what was logged earlier: {first}{others}"
    return RestException({"error_code": code_of(first.cause), "message": message})


def not_published(what: str, instead: str) -> MlflowException:
    """For an operation of MLflow that the platform's API does not have."""
    message = f"{what}: the MLOps API of Oracle AI Data Platform has no such operation. {instead}"
    return MlflowException(message, error_code=ErrorCode.Value("NOT_IMPLEMENTED"))
