"""A road to several servers that can be made long and narrow, told so in lines.

The arguments are the servers' URLs; it prints its own, one for each.  A line of JSON sets the
*latency* of a request in seconds, and the *rate* of requests a second beyond which it answers 429
itself (None: no limit), for each road by itself; a request keeps its headers, and so its signature.
"""

from __future__ import annotations

import asyncio
import json
import sys
from time import monotonic

from aiohttp import ClientSession, web

from adp_async.local import Quota
from adp_async.local.answers import refusal
from adp_async.local.quota import TokenBucket

#: What a server says about one connection alone.
HOP = {"connection", "content-encoding", "content-length", "date", "server", "transfer-encoding"}


class Road:
    """One server, and how it is reached."""

    def __init__(self, url: str, http: ClientSession) -> None:
        self._url = url.rstrip("/")
        self._http = http
        self._latency = 0.0
        self._bucket: TokenBucket | None = None

    def set(self, latency: float, rate: float | None) -> None:
        self._latency = latency
        quota = None if rate is None else Quota(rate, burst=rate, retry_after=1.0)
        self._bucket = TokenBucket(quota, now=monotonic()) if quota else None

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        await asyncio.sleep(self._latency)
        if self._bucket is not None and not self._bucket.take(monotonic()):
            refused = refusal(429, "TooManyRequests", "the quota of the road is used up")
            headers = {"content-type": "application/json", "retry-after": "1"}
            return web.Response(status=429, body=refused.body, headers=headers)
        url = f"{self._url}{request.raw_path}"
        sending = self._http.request(request.method, url, headers=request.headers, data=body)
        async with sending as reply:
            headers = {name: value for name, value in reply.headers.items()
                       if name.lower() not in HOP}  # fmt: skip
            return web.Response(status=reply.status, body=await reply.read(), headers=headers)


async def main(urls: list[str]) -> None:
    async with ClientSession() as http:
        roads = [Road(url, http) for url in urls]
        runners = [web.ServerRunner(web.Server(road.answer)) for road in roads]
        ports: list[int] = []
        for runner in runners:
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            ports.append(runner.addresses[0][1])
        print(json.dumps([f"http://127.0.0.1:{port}" for port in ports]), flush=True)
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            for road in roads:
                road.set(**json.loads(line))
            print("{}", flush=True)
        for runner in runners:
            await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
