"""The gateway: an HTTP server that behaves as the service does, in front of a `Backend`.

In the order a request meets them: the signature (401), the platform and workspace (404), the
operation (404), the quota (429), an injected fault, the retry token, the backend.  Everything a
test may change while it runs is a plain attribute, and may be set from any thread.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import socket
import time
import uuid
from collections import Counter
from datetime import UTC, datetime
from email.utils import formatdate
from typing import TYPE_CHECKING, TypeVar

from aiohttp import web
from attrs import define, field
from yarl import URL

from adp_async.local.answers import Answer, Received, refusal
from adp_async.local.faults import Fault, FaultScript, Injection
from adp_async.local.quota import Quota, TokenBucket
from adp_async.local.retry_tokens import InvalidatedRetryToken, RetryTokens
from adp_async.local.routes import ROUTES, Place, Route, RouteTable, locate
from adp_async.local.spoilt import SpoiltReply, reset
from adp_async.local.stand_in import ReceivedRun, StandIn
from adp_async.local.verifier import Refused, Verifier

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Coroutine

    from adp_async.local.answers import Backend
    from adp_async.local.storage import StorageCall, StorageServer

__all__ = ["Counts", "Gateway"]

T = TypeVar("T")

_TABLE = RouteTable(ROUTES)
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]+")
#: The service's own limit is not published.
_MAX_BODY_BYTES = 32 * 1024 * 1024


@define(eq=False)
class Counts:
    """What came in since the start, or since `Gateway.reset_counts`."""

    requests: int = 0
    refused: int = 0
    concurrent: int = 0
    max_concurrent: int = 0
    by_operation: Counter[str] = field(factory=Counter)
    by_status: Counter[int] = field(factory=Counter)


class Gateway:
    """The service's face of the local platform.

    Knobs: *quota* (None: no limit), *latency* in seconds before a request is served,
    *clock_offset* in seconds added to the server's idea of the time, *deduplicate* by retry
    token (on), *record* every request in *recorded* (off).
    """

    def __init__(
        self,
        backend: Backend,
        verifier: Verifier,
        *,
        platform_id: str,
        workspace: str,
        storage: StorageServer | None = None,
    ) -> None:
        self.latency = 0.0
        self.clock_offset = 0.0
        self.deduplicate = True
        self.record = False
        self.recorded: list[Received] = []
        self.faults = FaultScript()
        self.counts = Counts()
        self.port = 0
        self.backend = backend
        self.verifier = verifier
        self.storage = storage
        self._platform_id = platform_id
        self._workspace = workspace
        self._bucket: TokenBucket | None = None
        self._tokens = RetryTokens()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._runner: web.ServerRunner | None = None
        self._server: web.Server | None = None
        self._site: web.BaseSite | None = None
        #: Bound while it is down, so that nobody else gets the port.
        self._reserved: socket.socket | None = None
        self._tls: ssl.SSLContext | None = None
        self._closing = asyncio.Event()

    # -- lifetime

    async def start(self, port: int = 0, *, tls: ssl.SSLContext | None = None) -> None:
        """Listen on 127.0.0.1; *port* 0 picks a free one.  With *tls*, speak nothing else."""
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._server = web.Server(self._handle, access_log=None, auto_decompress=False)
        self._runner = web.ServerRunner(self._server, shutdown_timeout=1.0)
        await self._runner.setup()
        self.port = port
        await self._listen()

    async def close(self) -> None:
        """Stop listening, release hanging requests, close the backend."""
        self._closing.set()
        if self._runner is not None:
            self._reset_connections()
            await self._runner.cleanup()
        if self._reserved is not None:
            self._reserved.close()
        await self.backend.close()

    async def down(self) -> None:
        """Refuse connections from now on, and reset the open ones."""
        await self._on_own_loop(self._go_down)

    async def up(self) -> None:
        """Listen again, on the same port."""
        await self._on_own_loop(self._listen)

    async def _listen(self) -> None:
        if self._site is None and self._runner is not None:
            site: web.BaseSite
            if self._reserved is None:
                site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self._tls)
            else:
                site = web.SockSite(self._runner, self._reserved, ssl_context=self._tls)
            await site.start()
            self._reserved = None
            self._site = site
            self.port = self._runner.addresses[0][1]
            if self.storage is not None:
                self.storage.base_url = self.url

    async def _go_down(self) -> None:
        site, self._site = self._site, None
        if site is not None:
            await site.stop()
            self._reserved = _bound(self.port)
        self._reset_connections()

    def _reset_connections(self) -> None:
        connections = self._server.connections if self._server is not None else []
        for connection in connections:
            reset(connection.transport)

    async def _on_own_loop(self, action: Callable[[], Coroutine[None, None, T]]) -> T:
        if self._loop is None or self._loop is asyncio.get_running_loop():
            return await action()
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(action(), self._loop))

    # -- what a test may ask and change

    @property
    def url(self) -> str:
        """The base URL that it listens at."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def quota(self) -> Quota | None:
        """The limit on requests, beyond which it answers 429; None for no limit.  To be set."""
        return self._bucket.quota if self._bucket else None

    @quota.setter
    def quota(self, quota: Quota | None) -> None:
        self._bucket = TokenBucket(quota, now=time.monotonic()) if quota else None

    def inject(
        self,
        fault: Fault,
        *,
        times: int | None = 1,
        operation: str | Callable[[str], bool] | None = None,
    ) -> Injection:
        """Let *fault* hit the next *times* requests (None: every one) of *operation*.

        *operation* is the API's name of one, or a predicate on it; None means any.  Only
        requests with a valid signature count; ``injection.hits`` says how many it has hit.
        """
        return self.faults.inject(fault, times=times, operation=operation)

    def clear_faults(self) -> None:
        """Forget all faults that were injected."""
        self.faults.clear()

    def received(self, run_id: str) -> ReceivedRun:
        """What arrived for a run, exactly; only without MLflow."""
        return self._stand_in().runs[run_id]

    def add_run(self, run_id: str | None = None) -> str:
        """Create a run without a request; only without MLflow."""
        return self._stand_in().add_run(run_id)

    def reset(self) -> None:
        """Reset every knob and all counts; keep what is stored."""
        self.quota = None
        self.latency = self.clock_offset = 0.0
        self.deduplicate = True
        self.record = False
        self.clear_faults()
        self.reset_counts()

    def reset_counts(self) -> None:
        """Count from zero, and forget what was recorded."""
        self.counts = Counts(concurrent=self.counts.concurrent)
        self.recorded.clear()

    @property
    def requests(self) -> int:
        """How many requests have arrived."""
        return self.counts.requests

    @property
    def refused(self) -> int:
        """Requests answered 429 by the quota."""
        return self.counts.refused

    @property
    def by_operation(self) -> Counter[str]:
        """How many requests have arrived of each operation, by the API's name."""
        return self.counts.by_operation

    @property
    def max_concurrent(self) -> int:
        """The most requests that were under way at once."""
        return self.counts.max_concurrent

    def time(self) -> float:
        """Unix time by the platform's clock."""
        return time.time() + self.clock_offset

    def _stand_in(self) -> StandIn:
        if not isinstance(self.backend, StandIn):
            raise TypeError("this platform has a real MLflow: ask it through the API")
        return self.backend

    # -- one request

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        counts = self.counts
        counts.requests += 1
        counts.concurrent += 1
        counts.max_concurrent = max(counts.max_concurrent, counts.concurrent)
        try:
            response = await self._answer(request)
        finally:
            counts.concurrent -= 1
            self.counts.concurrent = counts.concurrent
        counts.by_status[response.status] += 1
        return response

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if self.storage is not None:
            call = self.storage.find(request.method, request.raw_path)
            if call is not None:
                return await self._store(request, call, self.storage)
        if (request.content_length or 0) > _MAX_BODY_BYTES:
            return self._reply(request, refusal(413, "PayloadTooLarge", "the body is too large"))
        place = locate(request.raw_path.partition("?")[0])
        route = _TABLE.find(request.method, place) if place else None
        received = await _receive(request, route)
        if self.record:
            self.recorded.append(received)
        if self.latency:
            await asyncio.sleep(self.latency)
        no = self._admission(received, place, route)
        if no is not None or route is None:
            return self._reply(request, no or _not_found())
        return await self._serve(request, route, received)

    def _admission(
        self, received: Received, place: Place | None, route: Route | None
    ) -> Answer | None:
        """The refusal of a request that may not go further."""
        refused = self._unauthenticated(received)
        if refused is not None:
            return refused
        if place is None or route is None or not self._is_ours(place):
            return _not_found()
        self.counts.by_operation[route.operation] += 1
        return self._malformed(received) or self._throttled()

    def _unauthenticated(self, received: Received) -> Answer | None:
        now = datetime.fromtimestamp(self.time(), UTC)
        try:
            self.verifier.verify(
                received.method, received.raw_path, received.headers, received.body, now=now
            )
        except Refused as refused:
            return refusal(401, "NotAuthenticated", str(refused))
        return None

    def _is_ours(self, place: Place) -> bool:
        platform = URL.build(path=place.platform, encoded=True).path
        workspace = place.workspace and URL.build(path=place.workspace, encoded=True).path
        return platform == self._platform_id and workspace in (None, self._workspace)

    def _malformed(self, received: Received) -> Answer | None:
        request_id = received.headers.get("opc-request-id")
        if request_id is not None and not _REQUEST_ID.fullmatch(request_id):
            return refusal(400, "InvalidParameter", "opc-request-id has illegal characters")
        token = received.headers.get("opc-retry-token")
        if token is not None and not 1 <= len(token) <= 64:
            return refusal(400, "InvalidParameter", "opc-retry-token must have 1 to 64 characters")
        return None

    def _throttled(self) -> Answer | None:
        if self._bucket is None or self._bucket.take(time.monotonic()):
            return None
        self.counts.refused += 1
        headers = self._bucket.quota.headers(self.time())
        return refusal(429, "TooManyRequests", "Too many requests for the user", headers)

    async def _serve(
        self, request: web.BaseRequest, route: Route, received: Received
    ) -> web.StreamResponse:
        fault = self.faults.take(route.operation)
        if fault is None:
            return self._reply(request, await self._once(route, received))
        answer = await self._once(route, received) if fault.after_write else Answer(200)
        return await self._spoilt(request).send(fault, answer)

    async def _once(self, route: Route, received: Received) -> Answer:
        token = received.headers.get("opc-retry-token")
        if token is None or not self.deduplicate:
            return await self.backend.answer(route, received)
        path = received.raw_path.encode()
        fingerprint = hashlib.sha256(path + b"\0" + received.body).digest()
        try:
            return await self._tokens.answer(
                token, fingerprint, lambda: self.backend.answer(route, received), now=self.time()
            )
        except InvalidatedRetryToken:
            message = "the retry token was used for another request"
            return refusal(409, "InvalidatedRetryToken", message)

    async def _store(
        self, request: web.BaseRequest, call: StorageCall, storage: StorageServer
    ) -> web.StreamResponse:
        """A request for Object Storage or Volumes; what it carries goes by, unread."""
        self.counts.by_operation[call.operation] += 1
        if self.record:
            headers = {name.lower(): value for name, value in request.headers.items()}
            path = request.raw_path
            self.recorded.append(Received(request.method, path, headers, b"", call.operation))
        if self.latency:
            await asyncio.sleep(self.latency)
        now = datetime.fromtimestamp(self.time(), UTC)
        if (refused := await storage.refused(call, request, now=now)) is not None:
            return self._reply(request, refused)
        fault = self.faults.take(call.operation)
        if fault is None:
            return self._reply(request, await storage.answer(call, request))
        answer = await storage.answer(call, request) if fault.after_write else Answer(200)
        return await self._spoilt(request).send(fault, answer)

    # -- replies

    def _spoilt(self, request: web.BaseRequest) -> SpoiltReply:
        return SpoiltReply(request, self._reply, self._headers, self._closing)

    def _reply(self, request: web.BaseRequest, answer: Answer) -> web.Response:
        headers = self._headers(request, answer)
        return web.Response(status=answer.status, body=answer.body, headers=headers)

    def _headers(self, request: web.BaseRequest, answer: Answer) -> dict[str, str]:
        ours = uuid.uuid4().hex.upper()
        theirs = request.headers.get("opc-request-id", "")
        request_id = f"{theirs}/{ours}" if _REQUEST_ID.fullmatch(theirs) else ours
        headers = {
            "content-type": "application/json",
            "date": formatdate(self.time(), localtime=False, usegmt=True),
            "opc-request-id": request_id,
        }
        if answer.status == 200:
            headers["etag"] = hashlib.blake2b(answer.body, digest_size=16).hexdigest()
        return headers | answer.headers

    def __repr__(self) -> str:
        state = f"127.0.0.1:{self.port}" if self._site else "down"
        return f"<Gateway {state} | {self.requests} requests | {self.refused} refused>"


async def _receive(request: web.BaseRequest, route: Route | None) -> Received:
    body = await request.content.read() if request.content_length else b""
    headers: dict[str, str] = {}
    for name, value in request.headers.items():
        known = headers.get(name.lower())
        headers[name.lower()] = value if known is None else f"{known}, {value}"
    operation = route.operation if route else ""
    return Received(request.method, request.raw_path, headers, body, operation)


def _not_found() -> Answer:
    message = "Authorization failed or requested resource not found."
    return refusal(404, "NotAuthorizedOrNotFound", message)


def _bound(port: int) -> socket.socket:
    """A socket of this machine at *port* that does not listen: whoever connects is refused."""
    bound = socket.socket()
    if os.name == "posix":  # connections that were closed a moment ago don't matter
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", port))
    return bound
