"""What the gateway does with a request that isn't spoilt: who may pass, and how it answers."""

from __future__ import annotations

import asyncio
import re
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from yarl import URL

from adp_async.local import Quota
from adp_async.local.answers import Answer
from adp_async.local.retry_tokens import RetryTokens
from adp_async.local.stand_in import StandIn

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import SignedClient

    from adp_async.local import LocalPlatform
    from adp_async.local.answers import Received
    from adp_async.local.routes import Route

LOG_BATCH = "mlflow/runs/log-batch"


def batch(run_id: str, *steps: int) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "metrics": [{"key": "loss", "value": 0.5, "timestamp": 1, "step": step} for step in steps],
    }


@pytest.fixture
def run_id(bare_platform: LocalPlatform) -> str:
    return bare_platform.gateway.add_run()


def steps(platform: LocalPlatform, run_id: str) -> list[int]:
    return [metric.step for metric in platform.gateway.received(run_id).metrics]


# -- the form of a reply


async def test_good_request(bare_client: SignedClient, run_id: str) -> None:
    """A signed request passes; the reply has date, etag, and a request id of two parts."""
    reply = await bare_client.call(
        "POST", LOG_BATCH, batch(run_id, 1, 2), headers={"opc-request-id": "mine-1"}
    )

    assert (reply.status, reply.body) == (200, b"{}")
    assert re.fullmatch(r"mine-1/[0-9A-F]{32}", reply.headers["opc-request-id"])
    assert reply.headers["etag"]
    assert reply.headers["content-type"] == "application/json"
    assert abs(parsedate_to_datetime(reply.headers["date"]).timestamp() - time.time()) < 60
    assert steps(bare_client.platform, run_id) == [1, 2]


async def test_request_id_without_the_clients(bare_client: SignedClient) -> None:
    """Errors have a request id too, and none of the client's in it when it sent none."""
    reply = await bare_client.call("POST", LOG_BATCH, batch("nobody", 1))

    assert reply.status == 404
    assert reply.code == "RESOURCE_DOES_NOT_EXIST"
    assert re.fullmatch(r"[0-9A-F]{32}", reply.headers["opc-request-id"])
    assert "etag" not in reply.headers


# -- who may pass


async def test_unsigned_request(bare_platform: LocalPlatform, bare_client: SignedClient) -> None:
    """401, with the reason in the message."""
    reply = await bare_client.send("POST", bare_client.url(LOG_BATCH), b"{}", {})

    assert (reply.status, reply.code) == (401, "NotAuthenticated")
    assert "Authorization header is missing" in reply.json["message"]
    assert bare_platform.gateway.by_operation == {}


@pytest.mark.parametrize(
    ("date", "signed", "signature"),
    [
        (b"Sun, 05 Jan 99999 21:31:40 GMT", b"date", b"AAAA"),
        (b"Sun, 05 Jan 2014 21:31:40 -9999999999999999", b"date", b"AAAA"),
        (b"Sun, 05 Jan 2014 21:31:40", b"date", b"AAAA"),
        (b"\xff\xfe", b"date", b"AAAA"),
        (b"Sun, 05 Jan 2014 21:31:40 GMT", b"date", b"\xc3\xa4AA"),
        (b"Sun, 05 Jan 2014 21:31:40 GMT", b"date \xff", b"AAAA"),
        (b"Sun, 05 Jan 2014 21:31:40 GMT", b"date", b"\xff" * 8),
    ],
)
async def test_bytes_that_make_no_signature(
    bare_platform: LocalPlatform, date: bytes, signed: bytes, signature: bytes
) -> None:
    """Whatever the headers hold, the answer is a 401: the gateway itself doesn't fail."""
    address = URL(bare_platform.endpoint)
    path = f"/20260430/aiDataPlatforms/{bare_platform.platform_id}/mlops/api/2.0/x".encode()
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(
        b"GET %b HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ndate: %b\r\n"
        b'authorization: Signature version="1",keyId="x",algorithm="rsa-sha256",'
        b'headers="(request-target) host %b",signature="%b"\r\n\r\n'
        % (path, date, signed, signature)
    )
    reply = await asyncio.wait_for(reader.read(), 60)
    writer.close()
    await writer.wait_closed()

    assert reply.startswith(b"HTTP/1.1 401 "), reply


async def test_request_that_was_changed_on_the_way(bare_client: SignedClient, run_id: str) -> None:
    """A signature of another query is refused."""
    url = bare_client.url(f"mlflow/runs/get?run_id={run_id}")
    headers = bare_client.sign("GET", url, None, {})

    assert (await bare_client.send("GET", url, None, headers)).status == 200
    assert (await bare_client.send("GET", f"{url}0", None, headers)).status == 401


@pytest.mark.parametrize(
    ("method", "path", "options"),
    [
        ("POST", LOG_BATCH, {"platform_id": "ocid1.aidataplatform.oc1.iad.other"}),
        ("POST", LOG_BATCH, {"workspace": False}),
        ("GET", LOG_BATCH, {}),
        ("POST", "mlflow/nothing", {}),
    ],
)
async def test_address_that_is_not_here(
    bare_client: SignedClient, method: str, path: str, options: dict[str, Any]
) -> None:
    """404 as OCI words it: another platform, scope, method or operation."""
    reply = await bare_client.call(method, path, {}, **options)

    assert (reply.status, reply.code) == (404, "NotAuthorizedOrNotFound")


async def test_another_workspace(bare_client: SignedClient) -> None:
    """404, also when the key only looks like ours until it is decoded."""
    url = bare_client.url(LOG_BATCH).replace("/workspaces/local/", "/workspaces/%6Cocal2/")

    headers = bare_client.sign("POST", url, b"{}", {})

    assert (await bare_client.send("POST", url, b"{}", headers)).status == 404


async def test_workspace_may_be_percent_encoded(bare_client: SignedClient, run_id: str) -> None:
    """``%6Cocal`` is the workspace ``local``."""
    url = bare_client.url(f"mlflow/runs/get?run_id={run_id}").replace("/local/", "/%6Cocal/")
    headers = bare_client.sign("GET", url, None, {})

    assert (await bare_client.send("GET", url, None, headers)).status == 200


@pytest.mark.parametrize(
    "headers", [{"opc-request-id": "a/b"}, {"opc-retry-token": "x" * 65}, {"opc-retry-token": ""}]
)
async def test_illegal_header(
    bare_client: SignedClient, run_id: str, headers: dict[str, str]
) -> None:
    """400 for a request id or a retry token that the service's pages exclude."""
    reply = await bare_client.call("POST", LOG_BATCH, batch(run_id, 1), headers=headers)

    assert (reply.status, reply.code) == (400, "InvalidParameter")


async def test_body_that_is_too_large(
    bare_client: SignedClient, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """413 by the announced length, before anything is read."""
    monkeypatch.setattr("adp_async.local.gateway._MAX_BODY_BYTES", 100)

    assert (await bare_client.call("POST", LOG_BATCH, batch(run_id, *range(9)))).status == 413
    assert steps(bare_client.platform, run_id) == []


async def test_body_that_is_no_json(bare_client: SignedClient) -> None:
    """400."""
    assert (await bare_client.call("POST", LOG_BATCH, b"{")).status == 400


async def test_clock_of_the_service(
    bare_platform: LocalPlatform, bare_client: SignedClient, run_id: str
) -> None:
    """With its clock 20 minutes ahead everything is refused, and its Date says by how much."""
    bare_platform.gateway.clock_offset = 1200.0

    reply = await bare_client.call("POST", LOG_BATCH, batch(run_id, 1))

    assert (reply.status, reply.code) == (401, "NotAuthenticated")
    offset = parsedate_to_datetime(reply.headers["date"]).timestamp() - time.time()
    assert offset == pytest.approx(1200, abs=60)


# -- retry tokens


def token(value: str) -> dict[str, str]:
    return {"opc-retry-token": value}


async def test_same_token_is_the_same_call(bare_client: SignedClient, run_id: str) -> None:
    """Sent three times, applied once; the recorded reply comes back."""
    replies = [
        await bare_client.call("POST", "mlflow/runs/create", {"run_name": "n"}, headers=token("t"))
        for _ in range(3)
    ]

    assert [reply.status for reply in replies] == [200, 200, 200]
    assert len({reply.json["run"]["info"]["run_id"] for reply in replies}) == 1
    assert len({reply.headers["opc-request-id"] for reply in replies}) == 3


async def test_same_token_with_another_body(bare_client: SignedClient, run_id: str) -> None:
    """409 InvalidatedRetryToken, and nothing is applied."""
    await bare_client.call("POST", LOG_BATCH, batch(run_id, 1), headers=token("t"))

    reply = await bare_client.call("POST", LOG_BATCH, batch(run_id, 2), headers=token("t"))

    assert (reply.status, reply.code) == (409, "InvalidatedRetryToken")
    assert steps(bare_client.platform, run_id) == [1]


async def test_token_lives_a_day() -> None:
    """After 24 hours the same token is a new call."""
    tokens, calls = RetryTokens(), []

    async def serve() -> Answer:
        calls.append(1)
        return Answer(200)

    for now in (0.0, 86_399.0, 86_401.0):
        await tokens.answer("t", b"same", serve, now=now)

    assert len(calls) == 2
    assert len(tokens) == 1


async def test_failed_call_leaves_its_token_free(bare_client: SignedClient) -> None:
    """A refusal did nothing, so the same call may succeed later."""
    body = batch("later", 1)
    first = await bare_client.call("POST", LOG_BATCH, body, headers=token("t"))
    bare_client.platform.gateway.add_run("later")
    second = await bare_client.call("POST", LOG_BATCH, body, headers=token("t"))

    assert (first.status, second.status) == (404, 200)


async def test_a_call_that_breaks_leaves_its_token_free() -> None:
    """Waiters for the same call are cancelled with it, and the next call is a first one."""
    tokens = RetryTokens()
    may_go = asyncio.Event()

    async def breaks() -> Answer:
        await may_go.wait()
        raise RuntimeError("the backend is gone")

    async def works() -> Answer:
        return Answer(200, b"{}")

    first = asyncio.create_task(tokens.answer("t", b"same", breaks, now=0.0))
    await asyncio.sleep(0)
    second = asyncio.create_task(tokens.answer("t", b"same", works, now=0.0))
    await asyncio.sleep(0)
    may_go.set()

    with pytest.raises(RuntimeError, match="the backend is gone"):
        await first
    with pytest.raises(asyncio.CancelledError):
        await second
    assert len(tokens) == 0
    assert (await tokens.answer("t", b"same", works, now=0.0)).status == 200


async def test_the_quota_can_be_asked_for(bare_platform: LocalPlatform) -> None:
    """As it was set; at first there is none."""
    gateway = bare_platform.gateway
    assert gateway.quota is None
    gateway.quota = Quota(rate=5, burst=2)
    assert gateway.quota == Quota(rate=5, burst=2)


@pytest.fixture
def may_go(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """What requests wait for before the stand-in answers them."""
    may_go, answer = asyncio.Event(), StandIn.answer

    async def slow(self: StandIn, route: Route, received: Received) -> Answer:
        await may_go.wait()
        return await answer(self, route, received)

    monkeypatch.setattr(StandIn, "answer", slow)
    return may_go


async def test_token_under_way_is_waited_for(
    bare_platform: LocalPlatform, bare_client: SignedClient, run_id: str, may_go: asyncio.Event
) -> None:
    """The second request with a token joins the first while that is still being served."""
    calls = [
        asyncio.create_task(
            bare_client.call("POST", LOG_BATCH, batch(run_id, 1), headers=token("t"))
        )
        for _ in range(2)
    ]
    await until(lambda: bare_platform.gateway.max_concurrent == 2)
    may_go.set()

    assert [(await call).status for call in calls] == [200, 200]
    assert steps(bare_platform, run_id) == [1]


async def test_deduplication_can_be_turned_off(
    bare_platform: LocalPlatform, bare_client: SignedClient, run_id: str
) -> None:
    """Whether the real service deduplicates log-batch is unknown: tests can have it not to."""
    bare_platform.gateway.deduplicate = False
    for _ in range(2):
        await bare_client.call("POST", LOG_BATCH, batch(run_id, 1), headers=token("t"))

    assert steps(bare_platform, run_id) == [1, 1]


# -- knobs and counts


async def test_quota(bare_platform: LocalPlatform, bare_client: SignedClient, run_id: str) -> None:
    """Beyond it 429; lifted while running, requests pass again."""
    gateway = bare_platform.gateway
    gateway.quota = Quota(rate=0.001, burst=2.0, retry_after=7)

    replies = [await bare_client.call("POST", LOG_BATCH, batch(run_id, n)) for n in range(3)]

    assert [reply.status for reply in replies] == [200, 200, 429]
    assert replies[-1].code == "TooManyRequests"
    assert replies[-1].headers["retry-after"] == "7"
    assert (gateway.requests, gateway.refused) == (3, 1)

    gateway.quota = None
    assert (await bare_client.call("POST", LOG_BATCH, batch(run_id, 3))).status == 200


async def test_latency(bare_platform: LocalPlatform, bare_client: SignedClient) -> None:
    """Each request waits that long before it is served."""
    bare_platform.gateway.latency = 0.03
    began = time.monotonic()

    await bare_client.call("POST", "mlflow/runs/create", {})

    assert time.monotonic() - began >= 0.03


async def test_counts(
    bare_platform: LocalPlatform, bare_client: SignedClient, run_id: str, may_go: asyncio.Event
) -> None:
    """Requests by operation and status, and how many were there at once."""
    gateway = bare_platform.gateway
    calls = [
        *(bare_client.call("POST", LOG_BATCH, batch(run_id, n)) for n in range(4)),
        bare_client.call("GET", f"mlflow/runs/get?run_id={run_id}"),
    ]
    answers = asyncio.gather(*calls)
    await until(lambda: gateway.max_concurrent == 5)
    may_go.set()
    await answers

    assert gateway.by_operation == {"log_experiment_run_batch": 4, "get_experiment_run_by_id": 1}
    assert gateway.counts.by_status == {200: 5}
    assert gateway.max_concurrent == 5
    gateway.latency = 0.02
    gateway.reset()
    assert (gateway.requests, gateway.latency, gateway.counts.concurrent) == (0, 0.0, 0)


async def test_recording(
    bare_platform: LocalPlatform, bare_client: SignedClient, run_id: str
) -> None:
    """With `record` every request is kept as it came, its path still encoded."""
    bare_platform.gateway.record = True
    path = f"mlflow/runs/get?run_id={run_id}&x=a%27b%2Fc%20d"

    await bare_client.call("GET", path, headers={"dh-user-principal": "me"})

    (received,) = bare_platform.gateway.recorded
    assert (received.method, received.operation) == ("GET", "get_experiment_run_by_id")
    assert received.raw_path.endswith(f"/{path}")
    assert received.headers["dh-user-principal"] == "me"
    assert received.headers["authorization"] not in repr(received)


# -- down and up


async def test_down_refuses_connections(
    bare_platform: LocalPlatform, bare_client: SignedClient, run_id: str
) -> None:
    """While it is down a connection is refused for real; up again, it is on the same port."""
    endpoint = bare_platform.endpoint
    await bare_client.call("POST", LOG_BATCH, batch(run_id, 1))

    await bare_platform.gateway.down()
    await asyncio.sleep(0.01)  # the client's pool hears of the resets
    for _ in range(2):
        with pytest.raises(aiohttp.ClientConnectorError):
            await bare_client.call("POST", LOG_BATCH, batch(run_id, 2))
        await bare_platform.gateway.down()
    await bare_platform.gateway.up()
    await bare_platform.gateway.up()

    assert bare_platform.endpoint == endpoint
    assert (await bare_client.call("POST", LOG_BATCH, batch(run_id, 3))).status == 200
    assert steps(bare_platform, run_id) == [1, 3]


async def test_down_resets_what_is_under_way(
    bare_platform: LocalPlatform, bare_client: SignedClient, run_id: str
) -> None:
    """A request that waits for its reply loses its connection."""
    bare_platform.gateway.latency = 30.0
    call = asyncio.create_task(bare_client.call("POST", LOG_BATCH, batch(run_id, 1)))
    await until(lambda: bare_platform.gateway.counts.concurrent == 1)

    await bare_platform.gateway.down()

    with pytest.raises((aiohttp.ClientOSError, aiohttp.ServerDisconnectedError)):
        await call


async def test_stand_in_questions_need_the_stand_in(bare_platform: LocalPlatform) -> None:
    """With another backend `received` raises an error."""
    gateway = bare_platform.gateway
    gateway.backend = object()  # type: ignore[assignment]
    try:
        with pytest.raises(TypeError, match="real MLflow"):
            gateway.received("r")
    finally:
        gateway.backend = StandIn()


async def test_gateway_is_fast_enough_for_big_tests(
    bare_platform: LocalPlatform, bare_client: SignedClient, run_id: str
) -> None:
    """A hundred full batches arrive in far less than the seconds a test may take."""
    bodies = [batch(run_id, *range(n * 1000, (n + 1) * 1000)) for n in range(100)]
    for body in bodies:
        await bare_client.call("POST", LOG_BATCH, body)

    assert steps(bare_platform, run_id) == list(range(100_000))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 -- there is no event to wait for
            await asyncio.sleep(0.002)
