"""Who answered?  What stands between us and the service, with any status, against any call.

`INTERMEDIARIES` is what answers in place of the service, `CALLS` who asks.  While it answers, the
logger holds and says so once, and a direct call raises what says who answered.  When it has gone,
everything is there, once.
"""

from __future__ import annotations

import asyncio
import gzip
import logging
import unicodedata
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from attrs import frozen

from adp_async._io.spool import Spool
from adp_async.errors import (
    AdpError,
    DeliveryError,
    ServiceError,
    UnreadableReply,
)
from adp_async.local import Fault
from adp_async.testing import FakeSession

if TYPE_CHECKING:
    from pathlib import Path

    from adp_async.local import LocalPlatform

LOG_BATCH = "log_experiment_run_batch"
GET_RUN = "get_experiment_run_by_id"
CREATE_RUN = "create_experiment_run"

HTML = "text/html; charset=utf-8"
JSON = "application/json"
PROBLEM = "application/problem+json"


@frozen
class Stranger:
    """What answers in place of the service, and the words by which its error is recognised."""

    name: str
    status: int
    content_type: str
    body: bytes
    told: str = ""
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def all_headers(self) -> dict[str, str]:
        return {"content-type": self.content_type, **dict(self.headers)}


def page(title: str) -> bytes:
    return (
        f"<!DOCTYPE html>\n<html><head><title>{title}</title><style>p {{}}</style>"
        f"<script>var a = '<b>' < 3;</script></head><body><h1>{title}</h1></body></html>"
    ).encode()


S3 = (
    b'<?xml version="1.0"?><Error><Code>AccessDenied</Code><Message>Request has expired</Message>'
    b"</Error>"
)
SOAP = (
    b'<soap:Envelope xmlns:soap="http://schemas.xmlsoap.org/soap/envelope/"><soap:Body><soap:Fault>'
    b"<faultcode>soap:Client</faultcode><faultstring>Unmarshalling</faultstring></soap:Fault>"
    b"</soap:Body></soap:Envelope>"
)
KONG = b'{"message":"no Route matched with those values"}'
GOOGLE = b'{"error":{"code":400,"message":"Invalid JSON payload","status":"INVALID_ARGUMENT"}}'
SPRING = b'{"timestamp":"2026-03-05","status":400,"error":"Bad Request","path":"/x"}'
NUMBERED = b'{"code":409,"message":"duplicate"}'
DIGITS = b'{"code":"400","message":"blocked by rule 17"}'
PROBLEM_JSON = b'{"type":"about:blank","title":"Unprocessable","status":422,"detail":"no"}'
ELSEWHERE = (("location", "https://login.example.com/oauth?state=abc"),)

#: Answered with a 2xx by something else: never a success.
WITH_2XX = [
    Stranger("captive portal", 200, HTML, page("Welcome to Hotel WiFi"), "Welcome to Hotel"),
    Stranger("page of an SPA", 200, HTML, page("MyApp"), "MyApp"),
    Stranger("page called JSON", 200, JSON, page("Login"), "Login"),
    Stranger("page behind a BOM", 200, HTML, b"\xef\xbb\xbf" + page("Login"), "Login"),
    Stranger("page without a type", 200, "", page("Log in"), "Log in"),
    Stranger("plain page of HTML type", 200, HTML, b"It works!", "It works!"),
    Stranger("XML of S3", 200, "application/xml", S3, "Request has expired"),
    Stranger("SOAP", 200, "text/xml", SOAP, "Unmarshalling"),
    Stranger("OK", 200, "text/plain", b"OK", "'OK'"),
    Stranger("gzip", 200, "application/gzip", gzip.compress(b"{}" * 99), "application/gzip"),
    Stranger("half an object", 200, JSON, b"{", "application/json"),
    Stranger("a list", 200, JSON, b"[]"),
    Stranger("null", 200, JSON, b"null"),
    Stranger("true", 200, JSON, b"true"),
    Stranger("text", 200, JSON, b'"ok"'),
    Stranger("number", 200, JSON, b"0"),
    Stranger("error of another app", 200, JSON, b'{"error":"session expired"}', "error"),
    Stranger("the service's error", 200, JSON, b'{"code":"NotFound","message":"no"}', "code"),
    Stranger("JSON API of another app", 200, JSON, b'{"data":[],"links":{}}', "data"),
    Stranger("Kong", 200, JSON, KONG, "message"),
    Stranger("created page", 201, HTML, page("Created"), "201 text/html"),
    Stranger("accepted page", 202, HTML, page("Queued"), "202 text/html"),
    Stranger("another's information", 203, HTML, page("Cached"), "203 text/html"),
    Stranger("part of a page", 206, HTML, page("Part"), "206 text/html"),
    Stranger("WebDAV", 207, "application/xml", b"<multistatus/>", "207 application/xml"),
    Stranger("delta", 226, "text/plain", b"diff", "226 text/plain"),
    Stranger("unknown success", 299, HTML, page("Fine"), "299 text/html"),
]

#: Without a body that could tell: for an operation that replies something, or an empty object.
BODILESS = [
    Stranger("nothing", 200, "", b"", "an empty body"),
    Stranger("blanks", 200, JSON, b" \r\n", "200 application/json"),
    Stranger("no content", 204, "", b"", "204"),
    Stranger("reset content", 205, "", b"", "205"),
    Stranger("accepted, empty", 202, JSON, b"{}", "202 application/json"),
    Stranger("created, empty", 201, JSON, b"{}", "201 application/json"),
    Stranger("partly, empty", 206, JSON, b"{}", "206 application/json"),
]

#: Answered with an error by something else: held by the logger, and an error without a code.
WITH_AN_ERROR = [
    Stranger("found", 302, HTML, page("Found"), "redirects are not followed", ELSEWHERE),
    Stranger("moved", 301, HTML, b"", "redirects are not followed", ELSEWHERE),
    Stranger("see other", 303, "", b"", "redirects are not followed", ELSEWHERE),
    Stranger("temporary", 307, HTML, page("x"), "redirects are not followed", ELSEWHERE),
    Stranger("permanent", 308, HTML, page("x"), "redirects are not followed", ELSEWHERE),
    Stranger("found nowhere", 302, HTML, page("Please log in"), "302 text/html: Please log in"),
    Stranger("multiple choices", 300, HTML, page("Which?"), "300 text/html: Which?"),
    Stranger("not modified", 304, "", b"", "304"),
    Stranger("nginx", 400, HTML, page("400 Bad Request"), "400 text/html: 400 Bad Request"),
    Stranger("WAF", 400, JSON, GOOGLE, "400 application/json"),
    Stranger("Spring", 400, JSON, SPRING, "400 application/json"),
    Stranger("digits", 400, JSON, DIGITS, "blocked by rule 17"),
    Stranger("empty 400", 400, "", b"", "400"),
    Stranger("SSO", 401, HTML, page("Sign in"), "401 text/html: Sign in"),
    Stranger("paywall", 402, HTML, page("Pay"), "402 text/html: Pay"),
    Stranger("Cloudflare", 403, HTML, page("Attention Required!"), "Attention Required!"),
    Stranger("S3", 403, "application/xml", S3, "403 application/xml: AccessDenied Request has"),
    Stranger("wrong prefix", 404, HTML, page("404 Not Found"), "404 text/html: 404 Not Found"),
    Stranger("Kong", 404, JSON, KONG, "404 application/json: no Route matched"),
    Stranger("deployment", 405, HTML, page("405"), "405 text/html: 405"),
    Stranger("406", 406, "text/plain", b"Not Acceptable", "406 text/plain: Not Acceptable"),
    Stranger("proxy", 407, HTML, page("Proxy"), "407 text/html: Proxy"),
    Stranger("numbered conflict", 409, JSON, NUMBERED, "409 application/json: duplicate"),
    Stranger("HTML conflict", 409, HTML, page("Conflict"), "409 text/html: Conflict"),
    Stranger("gone", 410, HTML, page("Gone"), "410 text/html: Gone"),
    Stranger("length", 411, HTML, page("Length"), "411 text/html: Length"),
    Stranger("media type", 415, "text/plain", b"Unsupported", "415 text/plain: Unsupported"),
    Stranger("teapot", 418, "text/plain", b"short and stout", "418 text/plain: short"),
    Stranger("misdirected", 421, HTML, page("Misdirected"), "421 text/html: Misdirected"),
    Stranger("problem", 422, PROBLEM, PROBLEM_JSON, "422 application/problem+json"),
    Stranger("HTML 422", 422, HTML, page("Unprocessable"), "422 text/html: Unprocessable"),
    Stranger("upgrade", 426, HTML, page("Upgrade"), "426 text/html: Upgrade"),
    Stranger("headers", 431, HTML, page("Headers"), "431 text/html: Headers"),
    Stranger("law", 451, HTML, page("Blocked"), "451 text/html: Blocked"),
    Stranger("client closed", 499, HTML, page("499"), "499 text/html: 499"),
    Stranger("another 4xx of the service", 405, JSON, b'{"code":"MethodNotAllowed"}', "405 Meth"),
    Stranger("a precondition", 412, JSON, b'{"code":"NoEtagMatch"}', "412 NoEtagMatch"),
    Stranger("a run that is late", 404, JSON, b'{"error_code":"RESOURCE_DOES_NOT_EXIST"}', "404"),
    Stranger("SOAP fault", 500, "text/xml", SOAP, "500 text/xml: soap:Client Unmarshalling"),
    Stranger("network login", 511, HTML, page("Network login"), "511 text/html: Network login"),
    Stranger("beyond", 666, HTML, page("Beast"), "666 text/html: Beast"),
]

#: Statuses that no HTTP client of a socket hands on, read all the same.
BEYOND_A_SOCKET = [
    Stranger("continue", 100, "", b"", "100"),
    Stranger("switching", 101, "text/plain", b"websocket", "101 text/plain: websocket"),
    Stranger("none", 0, HTML, page("?"), "no status text/html: ?"),
    Stranger("thousands", 4000, HTML, page("?"), "4000 text/html: ?"),
]

INTERMEDIARIES = [*WITH_2XX, *BODILESS, *WITH_AN_ERROR, *BEYOND_A_SOCKET]


def name_of(stranger: Stranger) -> str:
    return f"{stranger.status}-{stranger.name}"


def answer_with(session: FakeSession, operation: str, stranger: Stranger, times: int) -> None:
    session.answer(
        operation,
        stranger.body,
        status=stranger.status,
        headers=stranger.all_headers,
        times=times,
    )


# The logger -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stranger", INTERMEDIARIES, ids=name_of)
async def test_the_logger_holds(stranger: Stranger, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is delivered or rejected meanwhile, one WARNING says who it is, and then all comes.

    A flush that has not the time to wait for the service does not report success.
    """
    async with FakeSession(linger=60.0) as session:
        run = session.attach_run(session.add_run("r"))
        answer_with(session, LOG_BATCH, stranger, times=1000)
        for step in range(20):
            run.log_metric("loss", step / 7, step=step)
        run.log_params({"lr": 0.1})
        run.set_tag("stage", "fit")
        flushing = asyncio.create_task(run.flush())
        await until(lambda: session.logger.stats().retries >= 2)
        with pytest.raises((TimeoutError, DeliveryError)):
            async with asyncio.timeout(0.03):
                await flushing
        stats = run.stats()
        assert (stats.delivered, stats.rejected, stats.dropped) == (0, {}, 0)
        assert stats.undelivered == stats.accepted == 22
        for script in session.service._scripts[LOG_BATCH]:
            script.left = 0  # it has gone
        async with asyncio.timeout(60.0):
            await run.flush()
        stats = run.stats()
        assert (stats.accepted, stats.delivered, stats.rejected) == (22, 22, {})
    received = session.received("r")
    assert [metric.step for metric in received.metrics] == list(range(20))
    assert (received.params, received.tags) == ([("lr", "0.1")], [("stage", "fit")])
    tokens = {each.headers["opc-retry-token"] for each in session.requests}
    assert len(tokens) == 1, "one batch, one token"
    warning, all_clear = warnings(caplog)
    assert "delivered again" in all_clear
    assert str(stranger.status or "no status") in warning
    assert stranger.told in warning
    assert stranger.content_type.partition(";")[0] in warning or "code" in str(stranger.body)
    assert "<" not in warning


@pytest.mark.parametrize(
    "stranger",
    [
        WITH_2XX[0],
        Stranger("truncated", 200, JSON, b"{"),
        Stranger("no content", 204, "", b""),
        Stranger("deployment", 405, HTML, page("405"), "405 text/html"),
        Stranger("nginx", 400, HTML, page("400 Bad Request"), "400 text/html"),
        Stranger("redirect", 302, HTML, page("Found"), "redirects", ELSEWHERE),
        Stranger("WAF", 422, JSON, GOOGLE, "422 application/json"),
    ],
    ids=name_of,
)
@pytest.mark.parametrize("after_write", [False, True])
async def test_the_logger_over_the_wire(
    bare_platform: LocalPlatform, stranger: Stranger, after_write: bool
) -> None:
    """The same through a socket, also where the service had the batch and the reply was lost."""
    gateway = bare_platform.gateway
    run_id = gateway.add_run()
    fault = Fault.reply(
        stranger.status,
        body=stranger.body,
        headers=stranger.all_headers,
        after_write=after_write,
    )
    async with bare_platform.session(**quick()) as session:
        gateway.inject(fault, operation=LOG_BATCH, times=2)
        run = session.attach_run(run_id)
        for step in range(50):
            run.log_metric("loss", 0.5, step=step)
        async with asyncio.timeout(60.0):
            await run.flush()
        stats = run.stats()
        assert (stats.accepted, stats.delivered, stats.rejected) == (50, 50, {})
    assert [metric.step for metric in gateway.received(run_id).metrics] == list(range(50))
    assert gateway.by_operation[LOG_BATCH] == 3


@pytest.mark.usefixtures("patient_end")
async def test_what_still_waits_is_kept(bare_platform: LocalPlatform) -> None:
    """A session that ends under a login page leaves its records in the spool; the next delivers."""
    gateway = bare_platform.gateway
    run_id = gateway.add_run()
    injection = gateway.inject(Fault.html(200), operation=LOG_BATCH, times=None)
    async with bare_platform.session(**quick(), close_timeout=0.1) as session:
        for step in range(50):
            session.logger.log_metric(run_id, "loss", 0.5, step=step)
    stats = session.logger.stats()
    assert (stats.accepted, stats.delivered, stats.spooled, stats.rejected) == (50, 0, 50, {})
    gateway.faults.remove(injection)
    async with bare_platform.session(**quick()):
        await until(lambda: len(gateway.received(run_id).metrics) == 50)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, {"code": "InvalidParameter", "message": "no"}),
        (400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "no"}),
        (400, {"code": 400, "error_code": "BAD_REQUEST"}),
        (409, {"code": "RESOURCE_CONFLICT"}),
        (422, {"code": "UnprocessableEntity", "message": 7}),
    ],
)
@pytest.mark.parametrize("content_type", [JSON, HTML, ""])
async def test_the_service_rejects(status: int, body: dict[str, Any], content_type: str) -> None:
    """A verdict is recognised by its body; a proxy may have changed its content type."""
    async with FakeSession() as session:
        run = session.attach_run(session.add_run())
        headers = {"content-type": content_type}
        session.answer(LOG_BATCH, body, status=status, headers=headers)
        receipt = run.log_metric("loss", 0.5)
        with pytest.raises(DeliveryError):
            async with asyncio.timeout(60.0):
                await receipt
        assert sum(run.stats().rejected.values()) == 1
        with pytest.raises(DeliveryError):
            await run.flush()


@pytest.mark.parametrize("body", [b"{}", b" {}\n", b"{ }", b"{\r\n}"])
@pytest.mark.parametrize("content_type", [JSON, "application/json; charset=utf-8", "text/plain"])
async def test_the_service_has_it(body: bytes, content_type: str) -> None:
    """200 and an empty object; no request id is asked for, as a gateway may leave it out."""
    async with FakeSession() as session:
        session.answer(LOG_BATCH, body, headers={"content-type": content_type})
        async with asyncio.timeout(60.0):
            await session.attach_run("r").log_metric("loss", 0.5)
        assert len(session.requests) == 1


@pytest.mark.parametrize(
    ("status", "content_type", "body"),
    [
        (200, HTML, page("Run {run_id}")),
        (200, JSON, b'{"run":{"info":{"run_id":"another","lifecycle_stage":"deleted"}}}'),
        (200, JSON, b'{"lifecycle_stage":"deleted"}'),
        (404, HTML, b"<p>/runs/get?run_id=r was not found on this server</p>"),
        (404, JSON, b'{"message":"r not found"}'),
        (404, JSON, b'{"code":404,"message":"RESOURCE_DOES_NOT_EXIST r"}'),
        (302, HTML, b""),
    ],
)
async def test_only_the_service_says_that_a_run_is_gone(
    status: int, content_type: str, body: bytes
) -> None:
    """Whatever else answers the look at the run, the good records of a refused batch arrive."""
    async with FakeSession() as session:
        run = session.attach_run(session.add_run("r"))
        headers = {"content-type": content_type}
        session.answer(GET_RUN, body, status=status, headers=headers)
        receipts = [run.log_metric(key, 0.5) for key in ("loss", "b@d", "accuracy")]
        async with asyncio.timeout(60.0):
            await asyncio.gather(*receipts, return_exceptions=True)
        assert [receipt.delivered for receipt in receipts] == [True, False, True]
        with pytest.raises(DeliveryError):
            await run.flush()


# Direct calls -----------------------------------------------------------------------------------

DIRECT: dict[str, Any] = {
    "update_experiment_run": lambda session: session.runs.update("r", run_name="x"),
    "set_experiment_run_tag": lambda session: session.runs.set_tag("r", "k", "v"),
    "get_experiment_run_by_id": lambda session: session.runs.get("r"),
    "create_experiment_run": lambda session: session.runs.create(),
    "create_experiment": lambda session: session.experiments.create("e"),
    "list_experiment_runs": lambda session: session.runs.search().__aiter__().__anext__(),
    "get_experiment_run_metric_history": lambda session: (
        session.runs.metric_history("r", "loss").__aiter__().__anext__()
    ),
    "list_artifacts": lambda session: session.runs.list_artifacts("r").__aiter__().__anext__(),
    "list_registered_model_permissions": lambda session: (
        session.registered_models.permissions("m").__aiter__().__anext__()
    ),
    "get_registered_model_summary": lambda session: session.registered_models.summary("c", "s"),
    "activate_model_deployment": lambda session: session.deployments.activate("d"),
    "delete_registered_model": lambda session: session.registered_models.delete("m"),
}


@pytest.mark.parametrize("operation", DIRECT)
@pytest.mark.parametrize("stranger", WITH_2XX, ids=name_of)
async def test_a_direct_call_never_takes_it_for_success(operation: str, stranger: Stranger) -> None:
    """Also not where nothing is read of the reply, and not for a listing that may be empty."""
    async with FakeSession(spool=False) as session:
        answer_with(session, operation, stranger, times=1000)
        with pytest.raises(UnreadableReply) as caught:
            await DIRECT[operation](session)
    error = caught.value
    assert (error.status, error.operation) == (stranger.status, operation)
    assert error.maybe_applied
    assert not error.retriable
    assert stranger.told in str(error) or stranger.body[:1] in b'{["n'
    assert str(error).startswith(f"{operation}: ")
    assert "<" not in str(error)
    assert len(str(error)) < 500


@pytest.mark.parametrize("operation", DIRECT)
@pytest.mark.parametrize("stranger", [*WITH_AN_ERROR, *BEYOND_A_SOCKET], ids=name_of)
async def test_an_error_of_another_has_no_code(operation: str, stranger: Stranger) -> None:
    """Its class is that of the status, and its text names content type and first words."""
    async with FakeSession() as session:
        answer_with(session, operation, stranger, times=1000)
        with pytest.raises(ServiceError) as caught:
            await DIRECT[operation](session)
    error = caught.value
    assert error.status == stranger.status
    assert stranger.told in str(error)
    if b'"code":"' in stranger.body or b'"error_code":"' in stranger.body:
        return
    assert error.code == ""
    assert stranger.content_type.partition(";")[0] in str(error)


@pytest.mark.parametrize("stranger", BODILESS, ids=name_of)
@pytest.mark.parametrize("operation", ["update_experiment_run", "create_experiment_run"])
async def test_a_reply_that_says_nothing(operation: str, stranger: Stranger) -> None:
    """Where the operation has a reply, an empty body is not one."""
    async with FakeSession() as session:
        answer_with(session, operation, stranger, times=1000)
        with pytest.raises(UnreadableReply):
            await DIRECT[operation](session)


@pytest.mark.parametrize("status", [200, 202, 204])
@pytest.mark.parametrize("body", [b"", b" ", b"{}"])
async def test_operations_without_a_documented_reply(status: int, body: bytes) -> None:
    """They may answer without a body, and do nothing but that."""
    async with FakeSession() as session:
        session.answer("activate_model_deployment", body, status=status)
        await session.deployments.activate("d")


async def test_an_empty_listing_of_mlflow_is_one() -> None:
    """MLflow leaves a list out that is empty: `{}` is a page without items."""
    async with FakeSession() as session:
        session.answer("list_experiment_runs", b"{}")
        assert [run async for run in session.runs.search()] == []


# A create ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("after_write", [False, True])
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("stranger", WITH_2XX, ids=name_of)
async def test_a_create_answered_by_a_page(
    stranger: Stranger, times: int, after_write: bool, bare_platform: LocalPlatform
) -> None:
    """Retried under the same token, there is one run, and its id is returned."""
    gateway = bare_platform.gateway
    gateway.record = True
    headers = {"content-type": stranger.content_type} if stranger.content_type else {}
    fault = Fault.reply(
        stranger.status, body=stranger.body, headers=headers, after_write=after_write
    )
    gateway.inject(fault, operation=CREATE_RUN, times=times)
    async with bare_platform.session(**quick()) as session:
        run = await session.runs.create(run_name="only")
    assert list(gateway.backend.runs) == [run.info.run_id]  # type: ignore[attr-defined]
    tokens = {each.headers["opc-retry-token"] for each in gateway.recorded}
    assert (len(gateway.recorded), len(tokens)) == (times + 1, 1)


async def test_a_page_that_stays_is_told_in_seconds() -> None:
    """Three times asked, and then the caller hears of it."""
    async with FakeSession() as session:
        session.answer(CREATE_RUN, page("Log in"), headers={"content-type": HTML})
        with pytest.raises(UnreadableReply, match="200 text/html, 'Log in Log in'"):
            await session.runs.create()
        assert len(session.requests) == 3


@pytest.mark.parametrize(
    "body", [b"{}", b'{"run":{}}', b'{"run":{"id":7}}', b'{"run":{"info":{"run_id":""}}}']
)
async def test_a_run_without_an_id_was_not_created_here(body: bytes) -> None:
    """Nothing could be logged into it."""
    async with FakeSession() as session:
        session.answer(CREATE_RUN, body)
        with pytest.raises(UnreadableReply, match="missing @ RunReply"):
            await session.runs.create()


# What is shown ----------------------------------------------------------------------------------


#: Kinds of characters that no text of ours may hold, whoever sent them.
UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
NASTY = "\x1b[31mred\x1b]0;owned\x07\x9b1m\u202ereversed\u2066\u200b\u2028\ufeff\u00ad\U000e0041"


@pytest.mark.parametrize("status", [200, 302, 400, 401, 404, 409, 429, 500])
async def test_nothing_from_outside_reaches_a_terminal(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Request id, content type, code, message and page: printable, in one line, bounded."""
    long = NASTY * 500
    body = msgspec.json.encode({"code": f"Code{NASTY}", "message": f"oh\r\nINFO forged{long}"})
    headers = {"opc-request-id": f"id-7{long}", "content-type": f"text/html{long}"}
    caplog.set_level(logging.DEBUG, logger="adp_async")
    async with FakeSession(close_timeout=0.1) as session:
        session.answer(LOG_BATCH, body, status=status, headers=headers, times=1)
        session.answer("update_experiment_run", body, status=status, headers=headers)
        with pytest.raises(AdpError) as caught:
            await session.runs.update("r", run_name="x", timeout=0.3)
        run = session.attach_run(session.add_run())
        receipt = run.log_metric("loss", 0.5)
        await asyncio.wait([asyncio.ensure_future(settled(receipt))], timeout=30.0)
        if status in (400, 409):
            with pytest.raises(DeliveryError):
                await run.flush()
    for shown in (str(caught.value), repr(caught.value), *texts(caplog)):
        assert not {unicodedata.category(each) for each in shown} & UNSEEN, shown
        assert len(shown) < 3_000
    if isinstance(caught.value, (ServiceError, UnreadableReply)):
        assert caught.value.request_id.startswith("id-7 [31mred ]0;owned")
        assert len(caught.value.request_id) <= 200


async def test_the_service_says_no_without_the_values(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What was logged is in no error, log line or spool, though the service repeats it."""
    caplog.set_level(logging.DEBUG, logger="adp_async")
    changed = [{"key": "db", "old_value": "pg://u:hush@h", "new_value": "', 'x': 'hush"}]
    message = f"Changing param values is not allowed. Params were already logged='{changed}'."
    answer = {"error_code": "INVALID_PARAMETER_VALUE", "message": message}
    async with FakeSession(spool=tmp_path) as session:
        session.answer(LOG_BATCH, answer, status=400)
        session.answer("log_experiment_run_param", answer, status=400)
        with pytest.raises(ServiceError) as direct:
            await session.runs.log_param("r", "db", "hush")
        run = session.attach_run(session.add_run())
        run.log_param("db", "hush")
        with pytest.raises(DeliveryError) as caught:
            await run.flush()
    (path,) = tmp_path.glob("*.spool")  # noqa: ASYNC240
    spool = Spool.open(path, limit=2**20)
    (rejected,) = spool.contents().rejected
    spool.release()
    shown = [rejected.reason, *texts(caplog)]
    for error in (direct.value, caught.value, caught.value.cause, caught.value.rejections[0]):
        shown += [str(error), repr(error)]
    assert not [each for each in shown if "hush" in each]
    assert "'key': 'db', 'old_value': ..., 'new_value': ..." in rejected.reason


async def test_the_raw_header_can_be_had() -> None:
    """What is shown is cleaned; what came is in the reply's headers."""
    replies: list[Any] = []
    async with FakeSession() as session:
        run_id = session.add_run()
        headers = {"opc-request-id": "a/b\x1b[0m"}
        answer = {"run": {"info": {"run_id": run_id}}}
        session.answer(GET_RUN, answer, headers=headers)
        await session.runs.get(run_id, on_reply=replies.append)
    assert replies[0].request_id == "a/b [0m"
    assert replies[0].headers["opc-request-id"] == "a/b\x1b[0m"


async def settled(receipt: Any) -> None:
    try:
        await receipt
    except DeliveryError:
        return


def texts(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "adp_async"]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "adp_async" and record.levelno == logging.WARNING
    ]


async def until(condition: Any, timeout: float = 60.0) -> None:
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110 - anything, no event
            await asyncio.sleep(0.002)


def quick() -> dict[str, Any]:
    from adp_async._sansio.retry import RetryPolicy

    return {"linger": 60.0, "retry": RetryPolicy(first_backoff=0.005, max_backoff=0.02)}
