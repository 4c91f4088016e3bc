"""Each fault does what it says, as seen by a client on a real socket."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec
import pytest
from children import until

from adp_async.local import Fault, spoilt
from adp_async.local.faults import FaultScript

if TYPE_CHECKING:
    from conftest import SignedClient, SignedReply

    from adp_async.local import LocalPlatform

LOST = (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError)


@pytest.fixture
def run_id(bare_platform: LocalPlatform) -> str:
    return bare_platform.gateway.add_run("r")


async def log(client: SignedClient, step: int = 1, **options: Any) -> SignedReply:
    metrics = [{"key": "loss", "value": 0.5, "timestamp": 1, "step": step}]
    body = {"run_id": "r", "metrics": metrics}
    return await client.call("POST", "mlflow/runs/log-batch", body, **options)


def arrived(platform: LocalPlatform) -> int:
    return len(platform.gateway.received("r").metrics)


@pytest.mark.parametrize("after_write", [False, True])
@pytest.mark.parametrize("status", [401, 409, 413, 429, 500, 503])
async def test_status(
    bare_platform: LocalPlatform,
    bare_client: SignedClient,
    run_id: str,
    status: int,
    after_write: bool,
) -> None:
    """The given status with the service's error body; the write happened only when asked for."""
    fault = Fault.reply(
        status, "Code", "why", headers={"retry-after": "3"}, after_write=after_write
    )
    bare_platform.gateway.inject(fault)

    reply = await log(bare_client)

    assert (reply.status, reply.json) == (status, {"code": "Code", "message": "why"})
    assert reply.headers["retry-after"] == "3"
    assert "opc-request-id" in reply.headers
    assert arrived(bare_platform) == after_write
    assert (await log(bare_client)).status == 200


async def test_html(bare_platform: LocalPlatform, bare_client: SignedClient, run_id: str) -> None:
    """A proxy's page instead of JSON."""
    bare_platform.gateway.inject(Fault.html(502))

    reply = await log(bare_client)

    assert (reply.status, reply.headers["content-type"]) == (502, "text/html")
    assert reply.body.startswith(b"<html>")


async def test_any_body(
    bare_platform: LocalPlatform, bare_client: SignedClient, run_id: str
) -> None:
    """A body may be whatever it likes, the empty one included."""
    bare_platform.gateway.inject(Fault.reply(200, body=b"\xff\x00"))
    bare_platform.gateway.inject(Fault.reply(503, body=""))

    assert (await log(bare_client)).body == b"\xff\x00"
    assert (await log(bare_client)).body == b""


@pytest.mark.parametrize("after_write", [False, True])
async def test_drop(
    bare_platform: LocalPlatform, bare_client: SignedClient, run_id: str, after_write: bool
) -> None:
    """The connection is reset without a byte of a reply."""
    bare_platform.gateway.inject(Fault.drop(after_write=after_write))

    with pytest.raises(LOST):
        await log(bare_client)

    assert arrived(bare_platform) == after_write
    assert (await log(bare_client)).status == 200


async def test_cut(bare_platform: LocalPlatform, bare_client: SignedClient, run_id: str) -> None:
    """Head and half of the body come, then the reset; the write happened."""
    bare_platform.gateway.inject(Fault.cut())

    with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ClientOSError)):
        await log(bare_client)

    assert arrived(bare_platform) == 1


async def test_reset_after_reply(
    bare_platform: LocalPlatform,
    bare_client: SignedClient,
    run_id: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The reply is whole; who uses that connection at once loses the next request unapplied."""
    monkeypatch.setattr(spoilt, "_BEFORE_RESET", 1.0)  # signing alone may take 20 ms
    bare_platform.gateway.inject(Fault.reset_after_reply())

    assert (await log(bare_client)).body == b"{}"
    with pytest.raises(LOST):
        await log(bare_client)
    assert (await log(bare_client)).status == 200
    assert arrived(bare_platform) == 2


async def test_truncate(
    bare_platform: LocalPlatform, bare_client: SignedClient, run_id: str
) -> None:
    """A 200 whose JSON ends in the middle, though its length is right."""
    bare_platform.gateway.inject(Fault.truncate())

    reply = await bare_client.call("GET", "mlflow/runs/get?run_id=r")

    assert reply.status == 200
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(reply.body)


async def test_drip(bare_platform: LocalPlatform, bare_client: SignedClient, run_id: str) -> None:
    """One byte at a time, and complete in the end."""
    bare_platform.gateway.inject(Fault.drip(seconds=0.02))
    began = time.monotonic()

    reply = await log(bare_client)

    assert (reply.body, arrived(bare_platform)) == (b"{}", 1)
    assert time.monotonic() - began >= 0.04


@pytest.mark.parametrize("fault", [Fault.hang(), Fault.hang(after_write=True), Fault.drip(60.0)])
async def test_client_may_give_up(
    bare_platform: LocalPlatform, bare_client: SignedClient, run_id: str, fault: Fault
) -> None:
    """A reply that never ends stops as soon as the client disconnects."""
    injection = bare_platform.gateway.inject(fault)

    call = asyncio.create_task(log(bare_client))
    await until(lambda: injection.is_spent and arrived(bare_platform) == fault.after_write)
    await asyncio.sleep(0.02)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call

    assert arrived(bare_platform) == fault.after_write
    await until(lambda: not bare_platform.gateway.counts.concurrent)


async def test_hang_does_not_outlive_the_platform(
    bare_platform: LocalPlatform, bare_client: SignedClient, run_id: str
) -> None:
    """Closing the platform takes no longer because somebody hangs."""
    bare_platform.gateway.inject(Fault.hang())
    call = asyncio.create_task(log(bare_client))
    await until(lambda: bare_platform.gateway.counts.concurrent > 0)

    began = time.monotonic()
    await bare_platform.close()

    assert time.monotonic() - began < 5
    with pytest.raises(LOST):
        await call


async def test_lost_reply_and_retry_token(
    bare_platform: LocalPlatform, bare_client: SignedClient, run_id: str
) -> None:
    """The write behind a lost reply is remembered by its token: the retry doesn't repeat it."""
    bare_platform.gateway.inject(Fault.drop(after_write=True))
    token = {"opc-retry-token": "t"}
    with pytest.raises(LOST):
        await log(bare_client, headers=token)

    assert (await log(bare_client, headers=token)).status == 200
    assert arrived(bare_platform) == 1


async def test_bad_signature_uses_no_fault_up(
    bare_platform: LocalPlatform, bare_client: SignedClient, run_id: str
) -> None:
    """Only a request that would be served is hit."""
    injection = bare_platform.gateway.inject(Fault.reply(500))
    await bare_client.send("POST", bare_client.url("mlflow/runs/log-batch"), b"{}", {})

    assert injection.hits == 0
    assert (await log(bare_client)).status == 500
    assert injection.is_spent


def test_script_hits_as_often_as_told() -> None:
    """First injected, first taken; each as many times as it says."""
    script, first, second = FaultScript(), Fault.reply(500), Fault.reply(501)
    script.inject(first, times=2)
    script.inject(second)

    assert [script.take("x") for _ in range(4)] == [first, first, second, None]


def test_script_looks_at_the_operation() -> None:
    """By name or by predicate; the others pass."""
    script, named, guessed = FaultScript(), Fault.reply(500), Fault.reply(501)
    script.inject(named, times=None, operation="a")
    script.inject(guessed, times=None, operation=lambda name: name.startswith("b"))

    assert [script.take(name) for name in ("a", "b1", "c", "a")] == [named, guessed, None, named]


def test_script_can_be_emptied() -> None:
    """One injection is removed, or all of them."""
    script = FaultScript()
    forever = script.inject(Fault.drop(), times=None)
    script.inject(Fault.hang(), times=None)

    script.remove(forever)
    assert script.take("x") == Fault.hang()
    script.clear()
    assert script.take("x") is None
