"""Checks a reply: the service's own is returned, anything else becomes the right error.

The only place in the package that looks at a status.  Between us and the service there are proxies,
gateways, web filters and login pages, and any of them may answer in its place, with any status.  So
a status alone says nothing: a success comes from the service if its body fits the operation, an
error if its body has the service's error code.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from adp_async._sansio.messages import ERROR_BODY_BYTES
from adp_async._sansio.retry import parse_retry_after
from adp_async._sansio.texts import first_words, printable, without_values
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
    UnreadableReply,
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

#: A 409 that passes by itself; any other is final.
_PASSING_CONFLICTS = frozenset({"IncorrectState", "LockConflict"})

#: Operations whose documented reply is an empty object.
EMPTY_REPLIES = frozenset(
    {
        "delete_experiment",
        "delete_experiment_run",
        "delete_experiment_run_tag",
        "delete_experiment_tag",
        "delete_model_version",
        "delete_model_version_tag",
        "delete_registered_model",
        "delete_registered_model_tag",
        "log_experiment_run_batch",
        "log_experiment_run_inputs",
        "log_experiment_run_metric",
        "log_experiment_run_model",
        "log_experiment_run_param",
        "restore_experiment",
        "restore_experiment_run",
        "set_experiment_run_tag",
        "set_experiment_tag",
        "set_model_version_tag",
        "set_registered_model_tag",
        "update_experiment",
        "update_experiment_run_tags",
        "update_experiment_tags",
        "update_model_deployment_tags",
        "update_model_version_tags",
        "update_registered_model_tags",
    }
)

#: Operations without a documented reply: the body is empty, or an empty object.
SILENT_OPERATIONS = frozenset(
    {
        "activate_model_deployment",
        "deactivate_model_deployment",
        "delete_model_deployment",
        "export_model_deployment_inferences",
        "manage_registered_model_permission",
        "roll_back_model_deployment",
        "roll_forward_model_deployment",
    }
)

_REDIRECTS = frozenset({301, 302, 303, 307, 308})

_CODE_CHARACTERS = 100
_MESSAGE_CHARACTERS = 2_000

#: What to do about the codes of OCI that have many causes.
_ADVICE: Final = {
    "NotAuthenticated": (
        "`adp-async doctor` tells whether key, fingerprint, token or clock is to blame"
    ),
    "NotAuthorizedOrNotFound": (
        "OCI says this of what does not exist and of what this user may not see; "
        "`adp-async doctor` checks platform, workspace and region"
    ),
}

#: The beginning of a service error whose body was too large to be read to its end.
_CUT_ERROR: Final = (
    rb'(?s)\s*\{\s*"(?:error_)?code"\s*:\s*"(?P<code>[\w.-]{1,100})"\s*'
    rb'(?:,\s*"message"\s*:\s*"(?P<message>(?:[^"\\]|\\.)*))?'
)


def read_reply(reply: Reply, operation: str) -> Reply:
    """*reply* when it may be the service's reply to *operation*.

    Raises the `ServiceError` for a status other than 2xx, and `UnreadableReply` for a 2xx with a
    page of markup, or with anything but the empty object where the operation replies that.
    """
    if 200 <= reply.status < 300:
        if not _may_be_of_the_service(reply, operation):
            size = f"{len(reply.body)} bytes without text" if reply.body else "an empty body"
            words = first_words(reply.body)
            what = answered(reply, repr(words) if words else size)
            raise unreadable(reply, operation, f"the answer is not the service's: {what}")
        return reply
    code, message = _told(reply)
    error = class_of(reply.status)(
        message,
        status=reply.status,
        code=code,
        request_id=reply.request_id,
        operation=operation,
        content_type="" if code else reply.content_type,
        retriable=_retriable(reply.status, code),
    )
    if isinstance(error, (Throttled, ServiceFault)):
        error.retry_after = parse_retry_after(
            reply.headers.get("retry-after"), date=reply.headers.get("date")
        )
    if reply.status == 501:
        error.maybe_applied = False
    if advice := _ADVICE.get(code, ""):
        error.add_note(advice)
    raise error


def unreadable(reply: Reply, operation: str, complaint: str) -> UnreadableReply:
    """The error for a 2xx that is not a reply to *operation*."""
    request_id = reply.request_id
    message = f"{operation or 'a reply'}: {complaint} (opc-request-id {request_id or 'unknown'})"
    return UnreadableReply(message, status=reply.status, request_id=request_id, operation=operation)


def answered(reply: Reply, body: str = "") -> str:
    """What answered: status, content type, and *body*, which describes the body."""
    what = f"{reply.status} {reply.content_type or 'without a content type'}"
    return f"{what}, {body}" if body else what


def _may_be_of_the_service(reply: Reply, operation: str) -> bool:
    if operation in EMPTY_REPLIES:
        return reply.status == 200 and _is_empty_object(reply.body)
    if operation in SILENT_OPERATIONS:
        says_nothing = not reply.body.strip() or _is_empty_object(reply.body)
        return reply.status in (200, 202, 204) and says_nothing
    if operation in CONTENT_OPERATIONS:
        return "etag" in reply.headers
    return not _is_page(reply)


#: Operations that reply with what somebody has stored, which may be a page.
CONTENT_OPERATIONS = frozenset({"get_object"})


def _is_empty_object(body: bytes) -> bool:
    return body == b"{}" or as_json(body) == {}


def _is_page(reply: Reply) -> bool:
    first = reply.body.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    return first == b"<" or ("html" in reply.content_type and first not in (b"{", b"["))


def class_of(status: int) -> type[ServiceError]:
    """The class of the error that a reply with this *status* is."""
    if status in _CLASSES:
        return _CLASSES[status]
    if 400 <= status < 500:
        return BadRequest
    return ServiceFault if 500 <= status < 600 else ServiceError


def _retriable(status: int, code: str) -> bool | None:
    """Whether to retry against what the error's class says; None to go by the class."""
    if status == 408:
        return True
    if status == 409:
        return code in _PASSING_CONFLICTS
    return False if status == 501 else None


def _told(reply: Reply) -> tuple[str, str]:
    """Code and message in an error's body: the service's, MLflow's or a proxy's."""
    if reply.status in _REDIRECTS and "location" in reply.headers:
        # Following would replay the signature at another target.
        return "", "redirects are not followed; check the endpoint and the path prefix"
    body = as_json(reply.body)
    if not isinstance(body, dict):
        return _told_before_the_cut(reply.body) or ("", first_words(reply.body))
    code = _code_in(body)
    message = body.get("message")
    if not isinstance(message, str):
        return code, "" if code else first_words(reply.body)
    return code, printable(without_values(message), _MESSAGE_CHARACTERS)


def _code_in(body: Mapping[object, object]) -> str:
    """The service's code or MLflow's; "" for an error of another application.

    Others have a number there, or digits.
    """
    for code in (body.get("code"), body.get("error_code")):
        if isinstance(code, str) and (shown := printable(code, _CODE_CHARACTERS)):
            return "" if shown.isdecimal() else shown
    return ""


def _told_before_the_cut(body: bytes) -> tuple[str, str] | None:
    """Code and message in a body that was cut at `ERROR_BODY_BYTES`.

    MLflow's message repeats every changed param, old value and new: that can be megabytes.
    """
    if len(body) < ERROR_BODY_BYTES or (found := re.match(_CUT_ERROR, body)) is None:
        return None
    message = without_values(_unescaped(found["message"] or b""))
    return found["code"].decode(), printable(message, _MESSAGE_CHARACTERS)


def _unescaped(text: bytes) -> str:
    """A JSON string without its quotes, up to the last complete character."""
    for end in range(len(text), max(-1, len(text) - 12), -1):  # a surrogate pair has 12
        found = as_json(b'"%b"' % text[:end])
        if isinstance(found, str):
            return found
    return ""


def as_json(body: bytes) -> object:
    """The JSON in *body*; None if it is not JSON: a page, half a reply, nothing at all."""
    try:
        return msgspec.json.decode(body)
    except UnicodeDecodeError:
        return as_json(body.decode("utf-8", errors="replace").encode())
    except (msgspec.DecodeError, RecursionError):
        return None
