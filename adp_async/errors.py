"""The error tree: what went wrong, whose fault it is, and what the caller can do about it.

An error knows whether trying again can help (`retriable`) and whether the request may have taken
effect although no good reply came (`maybe_applied`).  Nothing else in the package looks at a
status.  No message holds a record's value, a key, a token or a signature.
"""

from __future__ import annotations

import os
import socket
import ssl
from typing import TYPE_CHECKING, Any, Final

from attrs import field, frozen

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "AdpError",
    "BadRequest",
    "BufferFull",
    "Closed",
    "ConfigurationError",
    "Conflict",
    "ConnectionFailed",
    "ConnectionLost",
    "DeliveryError",
    "Forbidden",
    "InvalidRecord",
    "NotAuthenticated",
    "NotFound",
    "PayloadTooLarge",
    "Rejection",
    "RequestTimeout",
    "ServiceError",
    "ServiceFault",
    "Throttled",
    "UnreadableReply",
    "UploadError",
]


class AdpError(Exception):
    """Base of every error this library raises."""

    #: Trying again later can help.
    retriable: bool = False
    #: The request may have taken effect although no good reply came.
    maybe_applied: bool = False


class ConnectionFailed(AdpError):
    """The request never left: no name, no route, connection refused, TLS refused.

    *retriable* is False for a mistake in the set-up that doesn't pass by itself: a certificate
    that is not trusted, a proxy that forbids.  *patience* is how long a direct call keeps trying,
    in seconds; short for what may be such a mistake, such as a host that does not exist.
    """

    retriable = True
    patience: float = float("inf")


class ConnectionLost(AdpError):
    """The request was sent, and no complete reply came back."""

    retriable = True
    maybe_applied = True


class RequestTimeout(ConnectionLost):
    """No complete reply within the time limit of an attempt, or of the whole call."""


class ServiceError(AdpError):
    """The service, or something on the way to it, answered with an error.

    *status* is the HTTP status, *code* the service's short error code, *message* its sentence
    without logged values, *request_id* the ``opc-request-id`` to give to Oracle's support,
    *operation* the API's name of the operation.

    *code* is "" when the body is not an error of the service.  Then something else, a proxy or a
    login page, may have answered: *message* is the first words of its body and *content_type*
    the media type.
    """

    def __init__(
        self,
        message: str = "",
        *,
        status: int = 0,
        code: str = "",
        request_id: str = "",
        operation: str = "",
        content_type: str = "",
        retriable: bool | None = None,
    ) -> None:
        self.status = status
        self.code = code
        self.message = message
        self.request_id = request_id
        self.operation = operation
        self.content_type = content_type
        if retriable is not None:
            self.retriable = retriable
        super().__init__(message)

    def __str__(self) -> str:
        what = f"{self.operation}: " if self.operation else ""
        code = f" {self.code or self.content_type}" if self.code or self.content_type else ""
        text = f": {self.message}" if self.message else ""
        request = f" (opc-request-id {self.request_id})" if self.request_id else ""
        status = str(self.status) if self.status else "no status"
        return f"{what}{status}{code}{text}{request}"


class BadRequest(ServiceError):
    """400, and every 4xx that has no class of its own: the request as it stands is wrong."""


class NotAuthenticated(ServiceError):
    """401: signature, key, token or clock were not accepted.

    *server_date* is the ``Date`` of the reply, which tells whether the clock is to blame.
    """

    server_date: str | None = None


class Forbidden(ServiceError):
    """403: known, but not allowed."""


class NotFound(ServiceError):
    """404: it does not exist, or these credentials may not see it."""


class Conflict(ServiceError):
    """409: the resource is not in the state that the request expects."""


class PayloadTooLarge(ServiceError):
    """413: the body is larger than the service takes."""


class Throttled(ServiceError):
    """429: too many requests.  *retry_after* is what the service asked for, in seconds, or None."""

    retriable = True
    retry_after: float | None = None


class ServiceFault(ServiceError):
    """5xx: the service failed.  *retry_after* as for `Throttled`."""

    retriable = True
    maybe_applied = True
    retry_after: float | None = None


class UnreadableReply(AdpError):
    """A 2xx reply that is not the service's reply to the operation.

    Its body is damaged or too large, or something else answered: a login page, a web filter,
    another application.  So the operation may or may not have taken effect.  The message says
    what answered: status, content type, and the first words or the fields.  An operation with a
    retry token has been asked again under the same token before this is raised; the logger holds
    the batch and sends it again.
    """

    maybe_applied = True

    def __init__(
        self, message: str, *, status: int = 0, request_id: str = "", operation: str = ""
    ) -> None:
        self.status = status
        self.request_id = request_id
        self.operation = operation
        super().__init__(message)


@frozen
class Rejection:
    """One record the service refused for good, and why.

    *kind* is ``"metric"``, ``"param"`` or ``"tag"``; *step* is None except for metrics.
    """

    run_id: str
    kind: str
    key: str
    step: int | None
    cause: AdpError = field(eq=False)

    def __str__(self) -> str:
        step = "" if self.step is None else f" at step {self.step}"
        return f"{self.kind} {self.key!r}{step} of run {self.run_id}: {self.cause}"


class DeliveryError(AdpError):
    """Records that were accepted and will not arrive, or had not arrived when time ran out.

    *rejections* names the refused records (at most the last 1,000 that are kept);
    *rejected* and *undelivered* count them all.  *run_id*, *kind*, *key*, *step* and *cause*
    are those of the first rejection, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        rejections: Sequence[Rejection] = (),
        rejected: int = 0,
        undelivered: int = 0,
        run_id: str | None = None,
        cause: AdpError | None = None,
    ) -> None:
        first = rejections[0] if rejections else None
        self.rejections = tuple(rejections)
        self.rejected = rejected or len(self.rejections)
        self.undelivered = undelivered
        self.run_id = first.run_id if first else run_id
        self.kind = first.kind if first else None
        self.key = first.key if first else None
        self.step = first.step if first else None
        self.cause = first.cause if first else cause
        super().__init__(message)


class UploadError(DeliveryError):
    """Artifacts that were accepted and are not uploaded, or not yet when time ran out.

    *artifacts* are their names, *run_id* is the run of the first, *cause* what kept the first
    that failed from being uploaded, or None.  It is not about records: *rejections* is empty.
    """

    def __init__(
        self,
        message: str,
        *,
        artifacts: Sequence[str] = (),
        run_id: str | None = None,
        cause: AdpError | None = None,
    ) -> None:
        super().__init__(message, run_id=run_id, cause=cause)
        self.artifacts = tuple(artifacts)
        self.__cause__ = cause


class BufferFull(AdpError):
    """The buffer is full, and the caller cannot wait, or has waited long enough.

    Raised by ``log_*`` on the event loop's own thread, or on another one after ``max_block``
    seconds.  The record was not accepted.  ``await run.drain()`` waits for room.
    """


class InvalidRecord(AdpError, ValueError):
    """An invalid metric, param or tag; raised by the ``log_*`` call.

    *run_id* and *key* name the culprit, *rule* says what is wrong with it.  Nothing of the call
    was accepted.
    """

    def __init__(self, *, run_id: str, kind: str, key: object, rule: str) -> None:
        self.run_id = run_id
        self.kind = kind
        self.key = key
        self.rule = rule
        super().__init__(f"{kind} {shown(key)} of run {run_id}: {rule}")


class ConfigurationError(AdpError):
    """A setting is missing or wrong; names it, where it was looked for, and the fix."""


def misconfigured(setting: str, problem: str, *, looked: str, fix: str) -> ConfigurationError:
    """The error that names a setting, what is wrong, where it was looked for, and the fix."""
    return ConfigurationError(f"{setting}: {problem} (looked in {looked}). {fix}")


class Closed(AdpError):
    """Used before it is opened, after it is closed, in a forked child or on another event loop."""


#: Types whose `repr` is shown; that of any other may be long, or secret, or raise.
_SHOWN: Final[tuple[Any, ...]] = (str, bytes, bool, int, float, type(None))
_LENGTH: Final = 80


def reason_of(error: BaseException) -> str:
    """What may be shown of a foreign *error*: its type, and what the system says.

    Its own words may hold a URL with a password, a header or a token.

    >>> reason_of(ConnectionRefusedError(111, "for http://user:secret@example.com"))
    'Connection refused'
    >>> reason_of(ValueError("secret"))
    'ValueError'
    """
    number = getattr(error, "errno", None)
    if isinstance(error, OSError) and isinstance(number, int):
        if isinstance(error, ssl.SSLError):
            return str(getattr(error, "reason", None) or type(error).__name__)
        if isinstance(error, socket.gaierror):
            return error.strerror or type(error).__name__
        if number > 0:
            return os.strerror(number)
    return type(error).__name__


def shown(value: object) -> str:
    """*value* in a message: short, on one line, printable, whatever it is."""
    for kind in _SHOWN:
        # Not `isinstance`, which asks the value itself what its class is.
        if issubclass(type(value), kind):
            try:
                text = kind.__repr__(_cut(value))
            except ValueError:  # an int of more than 4,300 digits
                break
            return text if len(text) <= _LENGTH else f"{text[: _LENGTH - 3]}..."
    return f"<{type_name(value)}>"


def _cut(value: Any) -> Any:
    return value[:_LENGTH] if issubclass(type(value), (str, bytes)) else value


def type_name(value: object) -> str:
    """The name of *value*'s type, whatever its metaclass does."""
    name = _NAME(type(value))
    return name if name.isprintable() and len(name) <= _LENGTH else ascii(name)[1:-1][:_LENGTH]


_NAME: Final = type.__dict__["__name__"].__get__
