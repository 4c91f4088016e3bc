"""The fault matrix through the hop: between worker and collector, and between it and the service.

Whatever happens on either leg, what a worker has logged arrives once, in order of its params and
tags, and its counts say so.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from attrs import define

from adp_async.collector import server as servers
from adp_async.collector import session as sessions
from adp_async.local import Fault
from adp_async.local.spoilt import reset

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from adp_async.local import Gateway, LocalPlatform

    Answer = Callable[[Any, web.BaseRequest], Awaitable[web.StreamResponse]]

POINTS = 30

#: Of the leg to the service; how often.
OF_THE_SERVICE: dict[str, tuple[Fault, int]] = {
    "429": (Fault.reply(429, "TooManyRequests"), 1),
    "429 with Retry-After": (Fault.reply(429, headers={"retry-after": "1"}), 1),
    "500": (Fault.reply(500, "InternalServerError"), 2),
    "502 with HTML": (Fault.html(502), 2),
    "503 after the write": (Fault.reply(503, "ServiceUnavailable", after_write=True), 2),
    "reset before the write": (Fault.drop(), 2),
    "reset before the reply": (Fault.drop(after_write=True), 2),
    "reset in the middle": (Fault.cut(), 2),
    "truncated JSON": (Fault.truncate(), 1),
    "hang before the write": (Fault.hang(), 1),
    "hang after the write": (Fault.hang(after_write=True), 1),
    "401 for a while": (Fault.reply(401, "NotAuthenticated"), 3),
    "404 of the platform": (Fault.reply(404, "NotAuthorizedOrNotFound"), 2),
    "409 InvalidatedRetryToken": (Fault.reply(409, "InvalidatedRetryToken"), 1),
    "413": (Fault.reply(413, "PayloadTooLarge"), 1),
}


@define
class Spoiler:
    """Spoils the next *left* answers of a collector to log-batch.

    *before*: without the request having been handled.
    """

    how: str
    before: bool
    left: int
    spoilt: int = 0

    async def answer(
        self, genuine: Answer, server: Any, request: web.BaseRequest
    ) -> web.StreamResponse:
        if not self.left or not request.path.endswith("log-batch"):
            return await genuine(server, request)
        self.left -= 1
        self.spoilt += 1
        response: web.StreamResponse = web.Response(status=503)
        if not self.before:
            response = await genuine(server, request)
            assert response.status == 200
        return await self._spoil(request, response)

    async def _spoil(
        self, request: web.BaseRequest, response: web.StreamResponse
    ) -> web.StreamResponse:
        match self.how:
            case "disconnect":
                reset(request.transport)
            case "hang":
                await asyncio.sleep(1.0)
            case "slow":
                await asyncio.sleep(0.3)
            case "html":
                return web.Response(status=200, text="<html>login</html>", content_type="text/html")
            case "truncated":
                return web.Response(status=200, text="{", content_type="application/json")
            case "429":
                headers = {"retry-after": "1"}
                body = {"code": "TooManyRequests", "message": "full"}
                return web.json_response(body, status=429, headers=headers)
            case "500":
                return web.json_response({"code": "InternalError", "message": "x"}, status=500)
            case status:
                return web.Response(status=int(status))
        return response


OF_THE_HOP = {
    f"{how} {'before' if before else 'after'}": (how, before, times)
    for how, times in (
        ("disconnect", 3), ("hang", 1), ("slow", 2), ("html", 2), ("truncated", 2), ("429", 1),
        ("500", 3), ("404", 2), ("502", 2),
    )
    for before in (True, False)
    if not (how == "slow" and before)
}  # fmt: skip


@asynccontextmanager
async def worker_of(platform: LocalPlatform, spool: Path, listen: str | None) -> AsyncIterator[Any]:
    knobs = {"linger": 0.01, "timeout": 0.5, "spool": spool}
    run_id = platform.gateway.add_run("r")
    async with platform.session(**knobs) as session:
        run = session.attach_run(run_id)
        shared = run.shared(listen)
        async with shared as handle, handle.attach() as worker:
            yield worker
        stats = shared.stats()
        assert stats.taken == POINTS + 6, "each record was taken once"
        await run.flush()
        assert shared.stats().waiting == 0
        assert run.stats().delivered == POINTS + 6


async def log(worker: Any) -> None:
    """Points in several requests, and params and tags between them."""
    for part in range(3):
        for step in range(POINTS // 3):
            worker.log_metric("loss", step * 0.5, part * 10 + step)
        worker.set_tag("stage", part)
        worker.log_param(f"p{part}", part)
        async with asyncio.timeout(120):
            await worker.flush()


def check(gateway: Gateway, worker: Any) -> None:
    received = gateway.received("r")
    counts = Counter(metric.step for metric in received.metrics)
    assert sorted(counts) == list(range(POINTS))
    assert set(counts.values()) == {1}
    assert [value for key, value in received.tags if key == "stage"][-1] == "2"
    assert sorted(received.params) == [("p0", "0"), ("p1", "1"), ("p2", "2")]
    stats = worker.stats()
    assert (stats.accepted, stats.delivered, stats.rejected) == (POINTS + 6, POINTS + 6, {})


@pytest.mark.parametrize(("how", "before", "times"), OF_THE_HOP.values(), ids=OF_THE_HOP)
@pytest.mark.parametrize("listen", [None, "127.0.0.1"], ids=["socket", "tls"])
async def test_faults_between_worker_and_collector(
    bare_platform: LocalPlatform,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    before: bool,
    times: int,
    listen: str | None,
) -> None:
    """The worker asks again under the same token, and nothing is taken twice."""
    spoiler = Spoiler(how, before, times)
    genuine = servers.Server._answer

    async def answer(server: Any, request: web.BaseRequest) -> web.StreamResponse:
        return await spoiler.answer(genuine, server, request)

    monkeypatch.setattr(servers.Server, "_answer", answer)
    monkeypatch.setitem(sessions.DEFAULTS, "timeout", 0.5)  # type: ignore[misc]
    async with worker_of(bare_platform, tmp_path / "spool", listen) as worker:
        await log(worker)
    assert spoiler.spoilt == times
    check(bare_platform.gateway, worker)


@pytest.mark.parametrize(("fault", "times"), OF_THE_SERVICE.values(), ids=OF_THE_SERVICE)
async def test_faults_between_collector_and_service(
    bare_platform: LocalPlatform, tmp_path: Path, fault: Fault, times: int
) -> None:
    """The worker's own flush does not wait for that; one that waits for the service does."""
    injected = bare_platform.gateway.inject(
        fault, times=times, operation="log_experiment_run_batch"
    )
    async with worker_of(bare_platform, tmp_path / "spool", None) as worker:
        await log(worker)
        async with asyncio.timeout(120):
            await worker.flush(delivered=True)
        check(bare_platform.gateway, worker)
    assert injected.hits == times


async def test_a_service_that_is_down(bare_platform: LocalPlatform, tmp_path: Path) -> None:
    """Workers hand over as ever, and leave; the owner keeps it."""
    await bare_platform.gateway.down()
    async with worker_of(bare_platform, tmp_path / "spool", None) as worker:
        async with asyncio.timeout(120):
            await log(worker)
            await worker.flush()
        assert bare_platform.gateway.received("r").metrics == []
        await bare_platform.gateway.up()
    check(bare_platform.gateway, worker)
