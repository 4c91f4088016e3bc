"""The process behind `benchmarks._servers.platform`: gateways that are told what to do in lines.

With the argument ``mlflow`` it is a whole `LocalPlatform`; with a number it is that many gateways
that check signatures and quotas as always and then only count, so that nothing but the client
under test decides what gets through.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from typing import TYPE_CHECKING, Any

from adp_async.local import Gateway, LocalPlatform, Quota
from adp_async.local.answers import EMPTY, Answer

if TYPE_CHECKING:
    from adp_async.local.answers import Received
    from adp_async.local.routes import Route


class Counter:
    """A backend that takes every batch and keeps only how many records came.

    When asked for, also how long ago the moments were that are their values.
    """

    def __init__(self) -> None:
        self.records = 0
        self.latencies: list[float] | None = None

    async def answer(self, route: Route, received: Received) -> Answer:
        self.records += received.body.count(b'"key":')
        if self.latencies is not None:
            now = time.monotonic()
            moments = re.findall(rb'"value":([0-9.e+]+)', received.body)
            self.latencies += [now - float(moment) for moment in moments]
        return EMPTY

    async def close(self) -> None:
        """Nothing is open."""


async def main(what: str) -> None:
    async with LocalPlatform(mlflow=what == "mlflow") as platform:
        gateways = [platform.gateway]
        if what != "mlflow":
            gateways = [_counting(platform) for _ in range(int(what))]
            for gateway in gateways:
                await gateway.start()
        _introduce(platform, gateways)
        try:
            await _obey(gateways)
        finally:
            for gateway in gateways:
                await gateway.close()


def _counting(platform: LocalPlatform) -> Gateway:
    gateway = Gateway(
        Counter(),
        platform.gateway.verifier,
        platform_id=platform.platform_id,
        workspace=platform.workspace,
    )
    gateway.deduplicate = False  # the peers send no retry token
    return gateway


def _introduce(platform: LocalPlatform, gateways: list[Gateway]) -> None:
    about = {
        "endpoints": [f"http://127.0.0.1:{gateway.port}" for gateway in gateways],
        "platform_id": platform.platform_id,
        "workspace": platform.workspace,
        "config_file": str(platform.config_file),
        "mlflow_url": platform.mlflow_url,
    }
    print(json.dumps(about), flush=True)


async def _obey(gateways: list[Gateway]) -> None:
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        question = json.loads(line)
        print(json.dumps(_answer(gateways[question["gateway"]], question)), flush=True)


def _quota(question: dict[str, Any]) -> Quota | None:
    if question["rate"] is None:
        return None
    return Quota(question["rate"], question["burst"], question["retry_after"])


def _answer(gateway: Gateway, question: dict[str, Any]) -> dict[str, Any]:
    if "latencies" in question:
        assert isinstance(gateway.backend, Counter)
        found, gateway.backend.latencies = gateway.backend.latencies, []
        return {"latencies": found or []}
    if "rate" in question:
        gateway.quota = _quota(question)
    if question.get("reset"):
        gateway.reset_counts()
        gateway.backend = Counter() if isinstance(gateway.backend, Counter) else gateway.backend
    records = gateway.backend.records if isinstance(gateway.backend, Counter) else 0
    return {"requests": gateway.requests, "refused": gateway.refused, "records": records}


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
