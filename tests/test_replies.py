"""What each status and body means."""

from __future__ import annotations

import json

import pytest
from api_samples import MODELS, OPERATIONS
from hypothesis import given, settings
from hypothesis import strategies as st

from adp_async._sansio.codec import decode
from adp_async._sansio.messages import ERROR_BODY_BYTES, Reply, Request
from adp_async._sansio.replies import EMPTY_REPLIES, SILENT_OPERATIONS, read_reply
from adp_async.entities import RunPage
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


def error_of(
    status: int, body: bytes = b'{"code":"Code","message":"Why."}', **headers: str
) -> ServiceError:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with pytest.raises(ServiceError) as caught:
        read_reply(Reply(status, named, body), "update_experiment_run")
    return caught.value


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_2xx_is_the_reply_itself(status: int) -> None:
    """A good reply comes back as it is; its body is decoded elsewhere."""
    reply = Reply(status, {}, b"not looked at")

    assert read_reply(reply, "op") is reply


@pytest.mark.parametrize(
    ("status", "class_", "retriable", "maybe_applied"),
    [
        (100, ServiceError, False, False),
        (301, ServiceError, False, False),
        (307, ServiceError, False, False),
        (400, BadRequest, False, False),
        (401, NotAuthenticated, False, False),
        (402, BadRequest, False, False),
        (403, Forbidden, False, False),
        (404, NotFound, False, False),
        (405, BadRequest, False, False),
        (408, BadRequest, True, False),
        (409, Conflict, False, False),
        (412, BadRequest, False, False),
        (413, PayloadTooLarge, False, False),
        (422, BadRequest, False, False),
        (429, Throttled, True, False),
        (499, BadRequest, False, False),
        (500, ServiceFault, True, True),
        (501, ServiceFault, False, False),
        (502, ServiceFault, True, True),
        (503, ServiceFault, True, True),
        (504, ServiceFault, True, True),
        (599, ServiceFault, True, True),
        (600, ServiceError, False, False),
    ],
)
def test_status_decides_the_class_and_what_can_be_done(
    status: int, class_: type, retriable: bool, maybe_applied: bool
) -> None:
    """Every status has its class, and the class or the exception knows whether to ask again."""
    error = error_of(status)

    assert type(error) is class_
    assert (error.retriable, error.maybe_applied) == (retriable, maybe_applied)
    assert error.status == status


@pytest.mark.parametrize(
    ("code", "retriable"),
    [
        ("IncorrectState", True),
        ("LockConflict", True),
        ("InvalidatedRetryToken", False),
        ("RESOURCE_ALREADY_EXISTS", False),
        ("", False),
    ],
)
def test_two_conflicts_pass_by_themselves(code: str, retriable: bool) -> None:
    """A 409 is retried with two codes only."""
    body = json.dumps({"code": code, "message": "m"}).encode()

    assert error_of(409, body).retriable is retriable


@pytest.mark.parametrize("code", ["TooManyRequests", "QuotaExceeded", "Anything"])
def test_429_is_retriable_with_any_code(code: str) -> None:
    """Nobody publishes the codes of a 429, so none is looked at."""
    assert error_of(429, json.dumps({"code": code, "message": ""}).encode()).retriable


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (b'{"code":"NotFound","message":"No run."}', "NotFound", "No run."),
        (b'{"error_code":"INVALID","message":"Bad."}', "INVALID", "Bad."),
        (b'{"code":"A","error_code":"B","message":"Both."}', "A", "Both."),
        (b'{"code":"Alone"}', "Alone", ""),
        (b'{"message":"Alone"}', "", "Alone"),
        (b'{"code":7,"message":["x"]}', "", '{"code":7,"message":["x"]}'),
        (b'{"detail":"other"}', "", '{"detail":"other"}'),
        (b"[1]", "", "[1]"),
        (b"null", "", "null"),
        (b"", "", ""),
        (b"   ", "", ""),
        (b"<html><head><title>502 Bad</title></head><body><h1>Oh</h1></body>", "", "502 Bad Oh"),
        (b"<style>a{}</style>x<script>y</script>", "", "x"),
        (b"plain\r\ntext\x00\x1b[31m", "", "plain text [31m"),
        (b"\xff\xfe broken", "", "\ufffd\ufffd broken"),
        (b'{"code":"Cut","mess', "", '{"code":"Cut","mess'),
        (b"[" * 5_000, "", "[" * 200),
    ],
)
def test_any_body_is_survived(body: bytes, code: str, message: str) -> None:
    """The service's, MLflow's, a proxy's, a broken one: a code and a message, or an excerpt."""
    error = error_of(500, body)

    assert (error.code, error.message) == (code, message)


def test_an_excerpt_is_short() -> None:
    """At most 200 characters of a body that is not an error of the service."""
    assert len(error_of(500, b"word " * 10_000).message) == 200


def test_a_message_cannot_forge_a_log_line() -> None:
    """Control characters and line breaks of a message become spaces."""
    body = json.dumps({"code": "A\nB", "message": "one\r\ntwo\x1b[0m\u2028three"}).encode()
    error = error_of(400, body)

    assert error.code == "A B"
    assert error.message == "one two [0m three"


def test_a_redirect_is_not_followed_and_says_so() -> None:
    """A redirect would replay the signature at another target."""
    error = error_of(302, b"<a href='x'>here</a>", location="https://elsewhere.example")

    assert "redirects are not followed" in error.message
    assert "elsewhere" not in str(error)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry_after": "7"}, 7.0),
        ({"retry_after": "soon"}, None),
        (
            {
                "retry_after": "Thu, 05 Mar 2026 10:00:20 GMT",
                "date": "Thu, 05 Mar 2026 10:00:00 GMT",
            },
            20.0,
        ),
    ],
)
def test_retry_after_is_read(status: int, headers: dict[str, str], seconds: float | None) -> None:
    """Seconds, or a date taken relative to the reply's own."""
    error = error_of(status, **headers)

    assert isinstance(error, (Throttled, ServiceFault))
    assert error.retry_after == seconds


def test_an_error_names_operation_and_request_id() -> None:
    """What Oracle's support asks for is in the message."""
    error = error_of(404, opc_request_id="client/service/part")

    assert error.request_id == "client/service/part"
    assert error.operation == "update_experiment_run"
    assert str(error) == (
        "update_experiment_run: 404 Code: Why. (opc-request-id client/service/part)"
    )


# Whose body it is


@pytest.mark.parametrize(
    "body",
    [
        b'{"code":400,"message":"no"}',
        b'{"code":"","message":"no"}',
        b'{"code":" \\u200b","message":"no"}',
        b'{"code":"400","message":"no"}',
        b'{"code":null,"error_code":["X"],"message":"no"}',
        b'{"error":{"code":"X"},"message":"no"}',
        b'{"Code":"X","message":"no"}',
        b'[{"code":"X","message":"no"}]',
        b'"code"',
    ],
)
def test_whose_code_is_not_the_services(body: bytes) -> None:
    """A code is text, and more than digits; everything else is another application's error."""
    error = error_of(400, body, content_type="application/json; charset=utf-8")

    assert (error.code, error.content_type) == ("", "application/json")
    assert str(error).startswith("update_experiment_run: 400 application/json")


def test_mlflows_code_counts_where_code_is_a_number() -> None:
    """One of the two is enough."""
    assert error_of(400, b'{"code":3,"error_code":"INVALID"}').code == "INVALID"


def test_a_content_type_is_shown_only_where_it_tells_something() -> None:
    """The service's own error is recognised by its code."""
    error = error_of(400, content_type="application/json")

    assert error.content_type == ""
    assert str(error) == "update_experiment_run: 400 Code: Why."


@pytest.mark.parametrize("name", ["code", "error_code"])
@pytest.mark.parametrize("cut", range(14))
def test_an_error_that_was_too_large_to_be_read(name: str, cut: int) -> None:
    """MLflow repeats up to a hundred params of 6,000 characters: cut off, it still counts."""
    changed = [{"key": "lr", "old_value": 'é🎉\\"' * 9_000, "new_value": "hush"}]
    message = f"Changing param values is not allowed. Params were already logged='{changed}'"
    body = json.dumps({name: "INVALID_PARAMETER_VALUE", "message": message}).encode()

    error = error_of(400, body[: ERROR_BODY_BYTES + cut])

    assert len(body) > ERROR_BODY_BYTES + cut
    assert error.code == "INVALID_PARAMETER_VALUE"
    assert error.message.startswith("Changing param values is not allowed. Params were already")
    assert error.message.endswith("'key': 'lr', 'old_value': ...")


@pytest.mark.parametrize(
    "body",
    [
        b'{"code":"Cut","message":"no' + b"x" * 100,
        b'{"code":7,"message":"' + b"x" * ERROR_BODY_BYTES,
        b"<html>" + b'{"code":"X"' * ERROR_BODY_BYTES,
        b'{"message":"' + b"x" * ERROR_BODY_BYTES,
    ],
)
def test_half_an_error_is_nobodys(body: bytes) -> None:
    """One that is short was cut on its way, and a long one begins with its code."""
    assert error_of(400, body[:ERROR_BODY_BYTES]).code == ""


@pytest.mark.parametrize("rest", [b'"details":"', b'"message":"\n'])
def test_a_cut_error_without_a_readable_message(rest: bytes) -> None:
    """The code is enough."""
    body = b'{"code":"TooMuch",' + rest + b"x" * ERROR_BODY_BYTES

    error = error_of(400, body)

    assert (error.code, error.message) == ("TooMuch", "")


def test_values_are_not_in_a_message() -> None:
    """The service's words are shown, and what they repeat of the request is not."""
    changed = [{"key": "db", "old_value": "postgres://u:hush@h", "new_value": 'it\'s "hush"'}]
    message = f"Changing param values is not allowed. Params were already logged='{changed}'."
    error = error_of(400, json.dumps({"error_code": "INVALID", "message": message}).encode())

    assert "hush" not in f"{error} {error.message} {error!r} {error.args}"
    assert "'key': 'db', 'old_value': ..., 'new_value': ..." in error.message


def test_a_message_in_another_encoding() -> None:
    """A code is ASCII whatever the message is written in."""
    error = error_of(422, b'{"code":"Invalid","message":"ung\xfcltig"}')

    assert (error.code, error.message) == ("Invalid", "ung\ufffdltig")


#: What bodies are made of, and what readers stumble over.
PIECES = [
    b"{", b"}", b"[", b"]", b'"', b":", b",", b"code", b'"error_code":', b'"message":', b"null",
    b"1e999", b"-", b"\\ud800", b"\\", b"\xff", b"\xef\xbb\xbf", b"\x00", b"<script", b"<", b">",
    b"<!--", b"value='", b"Invalid value ", b"\r\n", b" ", b"NaN", b'{"code":"X","message":"',
    b'"old_value":', b"[parameters: ", b"9" * 5_000, b"\xe2\x80\xae",
]  # fmt: skip
BODIES = st.binary(max_size=200) | st.lists(st.sampled_from(PIECES), max_size=30).map(b"".join)
HEADERS = st.dictionaries(
    st.sampled_from(["opc-request-id", "content-type", "retry-after", "date", "location"]),
    st.text(max_size=50) | st.text(max_size=50).map(lambda text: text * 200),
)


@settings(max_examples=500, deadline=None)
@given(
    st.integers(0, 1000) | st.sampled_from([200, 204, 400, 404, 409]),
    HEADERS,
    BODIES,
    st.sampled_from(["log_experiment_run_batch", "delete_model_deployment", "list_artifacts", ""]),
)
def test_any_reply_is_one_or_an_error_of_ours(
    status: int, headers: dict[str, str], body: bytes, operation: str
) -> None:
    """Whatever comes, of any length: read, or refused in one line that a terminal can show."""
    reply = Reply(status, headers, body)
    told = ""
    try:
        read_reply(reply, operation)
        decode(body, RunPage, reply=reply, operation=operation)
    except (ServiceError, UnreadableReply) as error:
        told = str(error)

    assert told.isprintable()
    assert len(told) < 3_000


# Which reply is the operation's


def documented_replies(*, empty: bool) -> set[str]:
    """Operations with a documented reply without fields, or without a documented reply."""
    return {
        name
        for name, row in OPERATIONS.items()
        if (row["response"] and not MODELS[row["response"]]["fields"] if empty
            else not row["response"])
    }  # fmt: skip


def test_operations_that_reply_nothing_are_the_documented_ones() -> None:
    """As the schemas have them."""
    assert documented_replies(empty=True) == EMPTY_REPLIES
    assert documented_replies(empty=False) == SILENT_OPERATIONS


def is_taken(status: int, body: bytes, operation: str, content_type: str = "") -> bool:
    reply = Reply(status, {"content-type": content_type}, body)
    try:
        return read_reply(reply, operation) is reply
    except UnreadableReply:
        return False


@pytest.mark.parametrize(
    ("status", "body", "empty", "silent", "other"),
    [
        (200, b"{}", True, True, True),
        (200, b" { }\n", True, True, True),
        (200, b"", False, True, True),
        (200, b"null", False, False, True),
        (200, b"[]", False, False, True),
        (200, b'{"a":1}', False, False, True),
        (200, b"{", False, False, True),
        (200, b"OK", False, False, True),
        (200, b" \n<html>", False, False, False),
        (200, b"\xef\xbb\xbf<html>", False, False, False),
        (201, b"{}", False, False, True),
        (202, b"{}", False, True, True),
        (202, b"", False, True, True),
        (204, b"", False, True, True),
        (206, b"{}", False, False, True),
        (299, b"", False, False, True),
    ],
)
def test_a_2xx_is_taken_for_what_the_operation_replies(
    status: int, body: bytes, empty: bool, silent: bool, other: bool
) -> None:
    """An empty object, nothing, or what is read later; a page never."""
    assert is_taken(status, body, "log_experiment_run_batch") is empty
    assert is_taken(status, body, "set_registered_model_tag") is empty
    assert is_taken(status, body, "delete_model_deployment") is silent
    assert is_taken(status, body, "get_experiment_run_by_id") is other
    assert is_taken(status, body, "an/operation/of/tomorrow") is other


def test_text_called_html_is_a_page() -> None:
    """And JSON that is called so is not: some gateway renamed it."""
    assert not is_taken(200, b"It works!", "op", "text/html")
    assert is_taken(200, b'{"a":1}', "op", "text/html")
    assert is_taken(200, b"It works!", "op", "text/plain")


def test_neither_headers_nor_bodies_in_a_repr() -> None:
    """They hold signatures and what was logged."""
    hush = {"authorization": "Signature hush"}

    assert repr(Request("POST", "https://x/a", hush, b"hush")) == "<Request POST https://x/a>"
    assert repr(Reply(200, hush, b"hush")) == "<Reply 200>"


def test_what_somebody_has_stored_may_be_a_page() -> None:
    """An object is the service's when it has an etag, whatever its first byte is."""
    page = b"<html>the report of a run</html>"
    stored = Reply(206, {"etag": "e1", "content-type": "text/html"}, page)

    assert read_reply(stored, "get_object").body == page
    with pytest.raises(UnreadableReply, match="not the service's"):
        read_reply(Reply(200, {"content-type": "text/html"}, page), "get_object")
