"""Answers the requests of workers, in the service's own words.

log-batch is journaled together with its retry token, in one transaction, and then answered;
every other operation is signed, throttled and passed on, and its answer handed back.  What is
under ``collector/`` is for the collector itself.

There is no socket here: a carrier hands a request in and takes the reply.
"""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs

import msgspec
from attrs import asdict, define, field

from adp_async._io.handover import has_room, is_safe, reject, take
from adp_async._io.hop import WORKER
from adp_async._io.log import logger
from adp_async._sansio.endpoints import LOG_BATCH, SEARCH_RUNS, Scope
from adp_async._sansio.messages import Reply, Request
from adp_async._sansio.run_start import LOCAL
from adp_async._sansio.signing import check_retry_token
from adp_async._sansio.urls import url_of
from adp_async.collector.attempts import Attempts
from adp_async.collector.ledger import Ledger
from adp_async.collector.permit import find_endpoint
from adp_async.collector.reading import (
    INVALID,
    RETRY_AFTER,
    Refused,
    named_records,
    read_log_batch,
)
from adp_async.collector.rejected import to_wire
from adp_async.errors import (
    AdpError,
    Closed,
    ConnectionFailed,
    NotAuthenticated,
    ServiceError,
    Throttled,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adp_async._io.engine import Engine
    from adp_async._sansio.endpoints import Endpoint
    from adp_async.collector.ledger import Worker
    from adp_async.collector.permit import Permit

#: Seconds that a request waits for memory, and for the service: less than a worker waits.
LONGEST_WAIT_FOR_ROOM: Final = 1.0
LONGEST_WAIT: Final = 20.0
LONGEST_LOOK: Final = 5.0
#: Headers of a worker's request that are the service's business.
PASSED_ON: Final = (
    "accept", "content-type", "opc-request-id", "opc-retry-token", "dh-user-principal",
)  # fmt: skip
#: And those of the service's reply that are the worker's.
HANDED_BACK: Final = ("content-type", "opc-request-id", "etag", "opc-next-page")
#: What a worker reads of a run.
READINGS: Final = ("get_experiment_run_by_id", "get_experiment_run_metric_history")
#: A run that started offline is called so here.
_STARTED_OFFLINE: Final = re.compile(rb"\b%b[0-9a-f]{32}\b" % LOCAL.encode())
_MARK: Final = "/mlops/api/2.0/"
_JSON: Final = {"content-type": "application/json"}
EMPTY: Final = Reply(200, _JSON, b"{}")


@define(eq=False)
class Handler:
    """Request -> reply, around the working parts of one session.  In its delivery thread."""

    engine: Engine
    permit: Permit
    ledger: Ledger = field(factory=Ledger)
    attempts: Attempts = field(init=False)
    #: Requests by what they were answered.
    by_status: dict[int, int] = field(factory=dict, init=False)
    _heads: dict[str, Scope] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self.attempts = Attempts(self.engine, self.ledger)
        settings = self.engine.settings
        for scope in Scope:
            if scope is Scope.PLATFORM or settings.workspace:
                root = find_endpoint("GET", scope, "x")
                url = url_of(root, "", settings.platform_id, settings.workspace, {}, {})
                self._heads[url.partition(_MARK)[0]] = scope

    def turned_away(self, headers: Mapping[str, str]) -> Reply | None:
        """The refusal of a request without the job's token, of which no body need be read."""
        try:
            self.permit.check_token(headers)
        except Refused as refused:
            return self._counted(_refusal(refused))
        return None

    async def handle(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> Reply:
        """The reply to one request; *target* is its path and query, as they came.

        Header names are lower case.  Raises nothing.
        """
        try:
            reply = await self._answered(method, target, headers, body)
        except Refused as refused:
            reply = _refusal(refused)
        except Closed:
            reply = _refusal(Refused(503, "Closed", "the collector is closed"))
        except AdpError as error:
            reply = _error(error)
        except Exception:
            logger.exception("a request of a worker failed: %s %.200s", method, target)
            reply = _refusal(Refused(500, "InternalError", "the collector failed"))
        return self._counted(reply)

    def _counted(self, reply: Reply) -> Reply:
        self.by_status[reply.status] = self.by_status.get(reply.status, 0) + 1
        return reply

    async def _answered(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> Reply:
        self.permit.check_token(headers)
        worker = self.ledger.worker(headers.get(WORKER, "")[:200])
        path, _, query = target.partition("?")
        head, _, rest = path.partition(_MARK)
        scope = self._heads.get(head)
        if scope is None or not rest:
            message = "Authorization failed or requested resource not found."
            raise Refused(404, "NotAuthorizedOrNotFound", message)
        if rest.startswith("collector/"):
            return await self._asked(rest.removeprefix("collector/"), worker, headers, body)
        endpoint = find_endpoint(method, scope, rest)
        if endpoint is LOG_BATCH:
            return await self._log_batch(worker, headers, body)
        self.permit.check_operation(endpoint, query, body)
        await self._until_visible(endpoint, query)
        target, body = self._as_known(target.encode()).decode(), self._as_known(body)
        return await self._pass_on(endpoint, target, headers, body)

    # log-batch

    async def _log_batch(self, worker: Worker, headers: Mapping[str, str], body: bytes) -> Reply:
        delivery = self.engine.delivery
        handed = read_log_batch(body, delivery.intake.limits, delivery.intake.known_keys)
        self.permit.check_run(handed.run_id)
        attempt = self.attempts.of(headers, handed.run_id)
        token = _token_of(headers, handed.run_id)
        worker.batches += 1
        if token and self.ledger.knows(token):
            worker.repeated += 1
            return await self._safe(token)
        if not handed.records:
            return EMPTY
        await self._until_room()
        if attempt is not None:
            await self.attempts.hold(attempt, handed, token, worker)
            return EMPTY
        if token and self.ledger.knows(token):  # sent again while it waited
            return await self._safe(token)
        taken = take(delivery, handed.run_id, handed.records, token)
        self.ledger.count(worker, taken)
        if not token:
            return EMPTY if await is_safe(delivery, taken, LONGEST_WAIT) else _not_yet()
        self.ledger.open(token, taken)
        return await self._safe(token)

    async def _safe(self, token: str) -> Reply:
        """Answer when what came under *token* is on disk, or delivered."""
        taken = self.ledger.pending(token)
        if taken is not None:
            if not await is_safe(self.engine.delivery, taken, LONGEST_WAIT):
                return _not_yet()
            self.ledger.close(token)
        return EMPTY

    async def refuse(
        self, headers: Mapping[str, str], found: Mapping[str, Any], error: AdpError
    ) -> int:
        """Count what a log-batch has *found* in it as rejected; returns how many records."""
        records = named_records(found)
        run_id = str(found.get("run_id", ""))
        if records and self.permit.run_id in (None, run_id):
            worker = self.ledger.worker(headers.get(WORKER, "")[:200])
            lane, rejections = reject(self.engine.delivery, run_id, records, error)
            self.ledger.reject(worker, lane.key, rejections)
        return len(records)

    async def _until_room(self) -> None:
        delivery, until = self.engine.delivery, time.monotonic() + LONGEST_WAIT_FOR_ROOM
        while not has_room(delivery):
            delivery.lifetime.check()
            if delivery.keeper is not None:
                delivery.keeper.commit_early()
            if time.monotonic() > until:
                message = "the collector is full: buffer_limit, or spool_limit, is reached"
                raise Refused(429, "TooManyRequests", message, retry_after=RETRY_AFTER)
            await asyncio.sleep(0.02)

    # Everything else

    async def _until_visible(self, endpoint: Endpoint, query: str) -> None:
        """Reading sees what was handed over before it, as far as that can be delivered soon."""
        if endpoint is SEARCH_RUNS:
            run_ids: list[str | None] = [None]
        elif endpoint.operation in READINGS:
            run_ids = [*parse_qs(query).get("run_id", [])]
        else:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(LONGEST_LOOK):
                for run_id in run_ids:
                    await self.engine.delivery.settled(run_id)

    def _as_known(self, part: bytes) -> bytes:
        """Part of a request, with runs that started offline called as the service calls them."""
        return _STARTED_OFFLINE.sub(self._known, part)

    def _known(self, found: re.Match[bytes]) -> bytes:
        lane = self.engine.delivery.intake.lane(found[0].decode())
        if not lane.is_created:
            message = "the run started offline, and the service does not have it yet"
            raise Refused(503, "NotYet", message, retry_after=RETRY_AFTER)
        return lane.run_id.encode()

    async def _pass_on(
        self, endpoint: Endpoint, target: str, headers: Mapping[str, str], body: bytes
    ) -> Reply:
        engine, ends_at = self.engine, time.monotonic() + LONGEST_WAIT
        passed = {name: headers[name] for name in PASSED_ON if name in headers}
        payload = None if endpoint.method == "GET" else body
        url = engine.settings.base_url + target
        request = Request(endpoint.method, url, passed, payload, endpoint.operation)
        while True:
            try:
                async with asyncio.timeout_at(_loop_time(ends_at)):
                    reply = await engine.batches.attempt(request)
            except TimeoutError:
                return _refusal(Refused(504, "", f"no answer within {LONGEST_WAIT:g} s"))
            except Throttled as error:
                # `attempt` waits for its turn; a worker's own pace has nothing to do with it.
                if time.monotonic() + (error.retry_after or 0.0) > ends_at:
                    return _error(error)
            else:
                kept = {name: reply.headers[name] for name in HANDED_BACK if name in reply.headers}
                return Reply(reply.status, kept, reply.body)

    # The collector's own

    async def _asked(
        self, what: str, worker: Worker, headers: Mapping[str, str], body: bytes
    ) -> Reply:
        given = _arguments(body)
        run_id = str(given.get("run_id", ""))
        attempt = self.attempts.of(headers, run_id)
        match what:
            case "enter":
                if attempt is not None:
                    self.attempts.check()
                worker.inside.add(str(given.get("id", "")))
            case "leave":
                worker.inside.discard(str(given.get("id", "")))
            case "commit" if attempt is not None:
                self.permit.check_run(run_id)
                is_safe = await self.attempts.commit(attempt, worker, LONGEST_WAIT)
                return EMPTY if is_safe else _not_yet()
            case "abort" if attempt is not None:
                self.permit.check_run(run_id)
                await self.attempts.abort(attempt, worker)
            case "status":
                return self._status()
            case "flush":
                return await self._flush(worker, given)
            case _:
                raise Refused(404, "NotFound", f"a collector has no {what[:80]!r}")
        return EMPTY

    def _status(self) -> Reply:
        stats = self.ledger.stats()
        workers = {name: asdict(each) for name, each in stats.items()}
        waiting = sum(each.waiting for each in stats.values())
        return _json({"workers": workers, "waiting": waiting, "answers": self.by_status})

    async def _flush(self, worker: Worker, given: Mapping[str, Any]) -> Reply:
        """Wait until the service has what this run has so far; and what it has refused.

        Of this worker's records, after the first *told* that were.
        """
        run_id, told = str(given.get("run_id", "")), given.get("told", 0)
        if type(told) is not int:
            raise Refused(400, INVALID, "told is a number")
        self.permit.check_run(run_id)
        delivery = self.engine.delivery
        delivery.lifetime.check()
        is_settled = True
        try:
            async with asyncio.timeout(LONGEST_WAIT):
                await delivery.settled(run_id)
                if (others := self.engine.recoveries) is not None:
                    await others.settled()  # records of a collector before this one
        except TimeoutError:
            is_settled = False
        rejections, count = worker.refused_since(delivery.intake.lane(run_id).key, told)
        rejected = [to_wire(each) for each in rejections]
        return _json({"settled": is_settled, "rejected": rejected, "told": count})


def _loop_time(at: float) -> float:
    return asyncio.get_running_loop().time() + at - time.monotonic()


def _token_of(headers: Mapping[str, str], run_id: str) -> str:
    """The retry token, with the run that it was used for; "" without one."""
    token = headers.get("opc-retry-token")
    if token is None:
        return ""
    try:
        return f"{check_retry_token(token)} {run_id}"
    except ValueError as error:
        raise Refused(400, INVALID, str(error)) from None


def _arguments(body: bytes) -> Mapping[str, Any]:
    try:
        return msgspec.json.decode(body or b"{}", type=dict[str, Any])
    except msgspec.DecodeError:
        raise Refused(400, INVALID, "the body is not a JSON object") from None


def _json(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(status, {**_JSON, **(headers or {})}, msgspec.json.encode(value))


def _not_yet() -> Reply:
    message = "the collector can write nothing, and the service has not answered yet"
    return _refusal(Refused(503, "NotYet", message))


def _refusal(refused: Refused) -> Reply:
    """As the service words an error; without a code, something in between has answered."""
    body = {"message": refused.message}
    if refused.code:
        body["code"] = refused.code
    headers = {}
    if refused.retry_after is not None:
        headers["retry-after"] = f"{max(1, round(refused.retry_after))}"
    return _json(body, refused.status, headers)


def _error(error: AdpError) -> Reply:
    """The reply to a request that could not be passed on, or that the service refused."""
    if isinstance(error, NotAuthenticated):  # which is not the worker's doing
        return _refusal(Refused(502, "", f"the collector's own credentials are refused: {error}"))
    if isinstance(error, ServiceError):
        after = getattr(error, "retry_after", None)
        return _refusal(Refused(error.status, error.code, error.message, retry_after=after))
    status = 503 if isinstance(error, ConnectionFailed) else 504
    return _refusal(Refused(status, "", str(error)))
