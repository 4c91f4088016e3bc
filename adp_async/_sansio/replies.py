"""Status and body of a reply: the reply itself when it is good, the right error when it is not.

The only place in the package that looks at a status.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from adp_async._sansio.retry import parse_retry_after
from adp_async.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    NotAuthenticated,
    NotFound,
    PayloadTooLarge,
    ServiceError,
    ServiceFault,
    Throttled,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adp_async._sansio.messages import Reply

_CLASSES: Mapping[int, type[ServiceError]] = {
    401: NotAuthenticated,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: PayloadTooLarge,
    429: Throttled,
}

#: A 409 that passes by itself; any other is a verdict.
_PASSING_CONFLICTS = frozenset({"IncorrectState", "LockConflict"})

_EXCERPT_CHARACTERS = 200
_MESSAGE_CHARACTERS = 2_000
_MARKUP: Final = r"(?is)<(script|style)\b.*?</\1>|<[^>]*>"
_CONTROL_CHARACTERS: Final = r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+"


def read_reply(reply: Reply, operation: str) -> Reply:
    """*reply* when its status is 2xx; otherwise raise the `ServiceError` that it means."""
    if 200 <= reply.status < 300:
        return reply
    code, message = _told(reply)
    error = _class_of(reply.status)(
        message,
        status=reply.status,
        code=code,
        request_id=reply.request_id,
        operation=operation,
        retriable=_retriable(reply.status, code),
    )
    if isinstance(error, (Throttled, ServiceFault)):
        error.retry_after = parse_retry_after(
            reply.headers.get("retry-after"), date=reply.headers.get("date")
        )
    if reply.status == 501:
        error.maybe_applied = False
    raise error


def _class_of(status: int) -> type[ServiceError]:
    if status in _CLASSES:
        return _CLASSES[status]
    if 400 <= status < 500:
        return BadRequest
    return ServiceFault if 500 <= status < 600 else ServiceError


def _retriable(status: int, code: str) -> bool | None:
    """The exceptions to what the error's class says; None when it speaks for itself."""
    if status == 408:
        return True
    if status == 409:
        return code in _PASSING_CONFLICTS
    return False if status == 501 else None


def _told(reply: Reply) -> tuple[str, str]:
    """The code and the message of an error's body, be it the service's, MLflow's or a proxy's."""
    if 300 <= reply.status < 400:
        # Following would replay the signature at another target.
        return "", "redirects are not followed; check the endpoint and the path prefix"
    body = _as_json(reply.body)
    if not isinstance(body, dict):
        return "", _excerpt(reply.body)
    code = body.get("code") or body.get("error_code")
    message = body.get("message")
    if not isinstance(message, str):
        message = "" if isinstance(code, str) else _excerpt(reply.body)
    return _clean(code)[:100] if isinstance(code, str) else "", _clean(message)[
        :_MESSAGE_CHARACTERS
    ]


def _as_json(body: bytes) -> object:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return None  # a proxy's page, or nothing at all; the caller shows an excerpt of it


def _excerpt(body: bytes) -> str:
    """The first words of a body that is no error of ours, without its markup."""
    text = body[: 8 * 1024].decode("utf-8", errors="replace")
    return _clean(re.sub(_MARKUP, " ", text))[:_EXCERPT_CHARACTERS]


def _clean(text: str) -> str:
    return " ".join(re.sub(_CONTROL_CHARACTERS, " ", text).split())
