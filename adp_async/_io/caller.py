"""Calls the service: one signed attempt, and a direct call with its retries.

Every request goes through `Caller.attempt`: wait for the turn that all calls share, sign, send,
read.  A direct call repeats that under the `RetryPolicy`; a batch of the logger is one
attempt, and the dispatcher decides what is next.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any, Protocol

from attrs import define, field

from adp_async._io.call_progress import CallProgress
from adp_async._io.log import logger
from adp_async._io.observing import are_calls_watched, tell_hold, watched_attempt, watched_call
from adp_async._sansio.actions import is_about_the_run
from adp_async._sansio.call import Call
from adp_async._sansio.codec import decode, encode
from adp_async._sansio.endpoints import GET_RUN, LOG_BATCH
from adp_async._sansio.messages import Request, Signing
from adp_async._sansio.replies import read_reply
from adp_async._sansio.retry import TELL_AFTER
from adp_async._sansio.signing import check_principal, check_request_id, check_retry_token
from adp_async._sansio.throttle import Throttle
from adp_async._sansio.urls import url_of
from adp_async.errors import (
    AdpError,
    NotAuthenticated,
    NotFound,
    Throttled,
    UnreadableReply,
)
from adp_async.instrumentation import watching

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from adp_async._io.authenticator import Authenticator
    from adp_async._sansio.endpoints import Endpoint
    from adp_async._sansio.messages import Reply
    from adp_async.settings import Settings

#: How often an operation with a retry token is sent while its reply cannot be read: again at once,
#: since a reply may be damaged on its way, then after a back-off.  A login page that stays is
#: reported within seconds.
READINGS = 3

#: A wrong clock hides that a token has expired: each can be corrected once in an attempt.
MAX_FIXES = 2


class Transport(Protocol):
    """Sends one signed request, once: `AiohttpTransport`, or a test's replacement."""

    def load(self, base_url: str) -> object:
        """Read what blocks, such as certificates.  Called in a thread."""

    async def open(self) -> None:
        """Make the pool."""

    async def close(self) -> None:
        """Close all connections."""

    def abort(self) -> None:
        """Drop the connections, whose event loop may be gone."""

    async def send(self, request: Request, *, timeout: float | None = None) -> Reply:
        """Send *request* exactly as it is and read the reply to its end."""


@define(eq=False, repr=False)
class SharedThrottle(Throttle):
    """The throttle of a session, safe to use from several threads."""

    _lock: threading.RLock = field(factory=threading.RLock, init=False)

    @property
    def is_locked_here(self) -> bool:
        """Whether this thread holds the lock."""
        return self._lock._is_owned()  # type: ignore[attr-defined, no-any-return]

    def take_turn(self, now: float) -> float:
        """Leave now, or in how many seconds to ask again."""
        with self._lock:
            delay = self.delay(now)
            if delay <= 0.0:
                self.depart(now)
            return delay

    def rate(self, now: float) -> float | None:
        with self._lock:
            return Throttle.rate(self, now)

    def patience(self, now: float) -> float:
        with self._lock:
            return Throttle.patience(self, now)

    def succeeded(self, *, departed: float, now: float) -> None:
        with self._lock:
            Throttle.succeeded(self, departed=departed, now=now)

    def refused(
        self, *, departed: float, now: float, jitter: float, retry_after: float | None = None
    ) -> None:
        with self._lock:
            Throttle.refused(
                self, departed=departed, now=now, jitter=jitter, retry_after=retry_after
            )


@define(eq=False, repr=False)
class Caller:
    """Calls the service on one event loop, with connections of its own.

    The *throttle* and the authenticator *auth* are shared by all callers of a session.
    """

    settings: Settings
    throttle: SharedThrottle
    auth: Authenticator
    transport: Transport
    new_token: Callable[[], str]
    _under_way: int = field(default=0, init=False)
    _log_batch_url: str = field(default="", init=False)

    async def call(self, call: Call, returning: type[Any] | None = None) -> Any:
        """One operation with its retries, and its reply decoded; see `Session.call`."""
        if not are_calls_watched():
            return await self._call(call, returning)
        doing = self._call(call, returning)
        return await watched_call(call.endpoint, self.settings.base_url, doing)

    async def _call(self, call: Call, returning: type[Any] | None) -> Any:
        endpoint = call.endpoint

        async def ask() -> Any:
            reply = await self._fetch(call)
            operation = endpoint.operation
            return decode(reply.body, returning or object, reply=reply, operation=operation)

        if not endpoint.takes_retry_token:
            return await ask()
        deadline = time.monotonic() + self._timeout_of(call)
        if "retry_token" not in call.options:
            call = call.with_options(retry_token=self.new_token())
        for attempt in range(1, READINGS):
            try:
                return await ask()
            except UnreadableReply as error:
                # It may have taken effect.  Under the same token the service tells the result
                # again: otherwise nobody would know what a create has made.
                wait = self._wait_after(error, attempt) if attempt > 1 else 0.0
                if time.monotonic() + wait > deadline:
                    raise
                message = "%s: retrying, the reply could not be decoded: %s"
                about = {"operation": endpoint.operation}
                logger.debug(message, endpoint.operation, error, extra=about)
            await asyncio.sleep(wait)
            call = call.with_options(timeout=max(0.0, deadline - time.monotonic()))
        return await ask()

    async def once(self, call: Call, returning: type[Any] | None = None) -> Any:
        """One attempt of an operation, and its reply decoded."""
        reply = await self.attempt(self._request(call))
        operation = call.endpoint.operation
        return decode(reply.body, returning or object, reply=reply, operation=operation)

    async def fetch(self, call: Call) -> Reply:
        """As `call`, but the reply as it came: status, headers and body; a web page is an error."""
        if not are_calls_watched():
            return await self._fetch(call)
        return await watched_call(call.endpoint, self.settings.base_url, self._fetch(call))

    async def _fetch(self, call: Call) -> Reply:
        request = self._request(call)
        reply = await self.answered(request, call.endpoint, self._timeout_of(call))
        if on_reply := call.options.get("on_reply"):
            on_reply(reply)
        return reply

    async def answered(self, request: Request, endpoint: Endpoint, timeout: float) -> Reply:
        """The reply to *request*, which is tried again as *endpoint* allows; see `fetch`."""
        progress = CallProgress(endpoint, timeout, self.settings.retry.max_attempts)
        warning = asyncio.get_running_loop().call_later(TELL_AFTER, progress.warn, TELL_AFTER)
        try:
            async with asyncio.timeout(timeout):
                return await self._until_answered(request, progress)
        except TimeoutError:
            raise progress.timed_out() from progress.last_error
        finally:
            warning.cancel()

    def _timeout_of(self, call: Call) -> float:
        timeout: float = call.options.get("timeout", self.settings.call_timeout)
        return timeout

    async def _until_answered(self, request: Request, progress: CallProgress) -> Reply:
        """Try until it works, or until another attempt is pointless."""
        while True:
            progress.is_under_way = True
            try:
                return await self.attempt(request, progress)
            except AdpError as error:
                progress.failed(error)
                error.maybe_applied = progress.maybe_applied
                if not progress.may_try_again(error):
                    raise
                wait = self._wait_after(error, progress.attempts)
                if time.monotonic() + wait > progress.ends_at():
                    raise
                message, operation = "%s: attempt %d: %s", request.operation
                logger.debug(message, operation, progress.attempts, error, extra=_about(request))
            progress.warn()
            await asyncio.sleep(wait)

    def _wait_after(self, error: AdpError, attempts: int) -> float:
        if isinstance(error, Throttled):
            return self.throttle.delay(time.monotonic())
        retry_after = getattr(error, "retry_after", None) or 0.0
        policy = self.settings.retry
        return policy.delay(attempts, jitter=random.random(), retry_after=retry_after)  # noqa: S311

    async def attempt(self, request: Request, progress: CallProgress | None = None) -> Reply:
        """One attempt; repeated after a 401 that the right time or a refresh can fix.

        Whatever goes wrong becomes an `AdpError`, so that it costs this request and nothing else.
        """
        try:
            return await self._until_accepted(request, progress)
        except AdpError:
            raise
        except Exception as error:
            failure = _unexpected(error, request)
        raise failure

    async def _until_accepted(self, request: Request, progress: CallProgress | None) -> Reply:
        if request.signing is Signing.NOTHING:
            return await self._attempt_once(request, progress)
        before = self.auth.skew
        fixes = 0
        while True:
            generation, skew = self.auth.generation, self.auth.skew
            try:
                reply = await self._attempt_once(request, progress)
            except NotAuthenticated as error:
                # Refreshed, and still refused: there is nothing left to fix.
                is_final = fixes == MAX_FIXES or (fixes and skew == before)
                if is_final or not await self._fix(error, generation):
                    self.auth.refused(skew)
                    raise
                fixes += 1
            else:
                self.auth.accepted(skew)
                return reply

    async def _fix(self, error: NotAuthenticated, generation: int) -> bool:
        date = error.server_date
        return await self.auth.recover(error, generation=generation, server_date=date)

    async def _attempt_once(self, request: Request, progress: CallProgress | None) -> Reply:
        throttle = self.throttle
        asked_at = departed = time.monotonic()
        while (delay := throttle.take_turn(departed)) > 0.0:
            if progress is not None:
                progress.is_held = True
            await asyncio.sleep(delay)
            departed = time.monotonic()
        if progress is not None:
            progress.is_held = False
        answering = self._answer(request, departed)
        if watching.on_attempt or watching.on_call_ended:
            return await watched_attempt(request, asked_at, answering)
        return await answering

    async def _answer(self, request: Request, departed: float) -> Reply:
        """The reply to *request*, which leaves now; what it says of the rate is learned."""
        throttle = self.throttle
        reply = await self._signed_and_sent(request)
        try:
            read_reply(reply, request.operation)
        except Throttled as error:
            now = time.monotonic()
            throttle.refused(
                departed=departed,
                now=now,
                jitter=random.random(),  # noqa: S311
                retry_after=error.retry_after,
            )
            tell_hold(error, throttle, now)
            raise
        except NotAuthenticated as error:
            error.server_date = reply.headers.get("date")
            raise
        throttle.succeeded(departed=departed, now=time.monotonic())
        return reply

    async def _signed_and_sent(self, request: Request) -> Reply:
        self._under_way += 1
        try:
            # Every attempt is signed anew: the date is signed, too.
            signed = await self.auth.sign(request, alone=self._under_way == 1)
            return await self.transport.send(signed)
        finally:
            self._under_way -= 1

    def _request(self, call: Call) -> Request:
        settings, endpoint, body = self.settings, call.endpoint, call.body
        url = url_of(
            endpoint,
            settings.base_url,
            settings.platform_id,
            settings.workspace,
            call.path,
            call.query,
        )
        payload: Any = None
        if body is not None or endpoint.method != "GET":
            payload = (
                body if issubclass(type(body), bytes) else encode({} if body is None else body)
            )
        headers = _headers(endpoint, call.options, self.new_token, has_body=payload is not None)
        return Request(endpoint.method, url, headers, payload, endpoint.operation)

    # What the sender needs

    async def post_batch(self, body: bytes, retry_token: str) -> None:
        """One attempt of one log-batch request."""
        if not self._log_batch_url:
            self._log_batch_url = self._request(Call.of(LOG_BATCH, body=b"")).url
        headers = {
            "accept": "application/json",
            "content-type": "application/json",
            "opc-request-id": self.new_token(),
            "opc-retry-token": retry_token,
        }
        url, operation = self._log_batch_url, LOG_BATCH.operation
        await self.attempt(Request("POST", url, headers, body, operation))

    async def run_is_gone(self, run_id: str) -> bool:
        """Whether the run cannot take records at all: it is deleted, or does not exist.

        Raises when something other than the service answered, which decides nothing.
        """
        request = self._request(Call.of(GET_RUN, query={"run_id": run_id}))
        try:
            reply = await self.attempt(request)
        except NotFound as error:
            if not error.code:
                raise
            return is_about_the_run(error, run_id)
        from adp_async.entities.runs import RunReply

        info = decode(reply.body, RunReply, reply=reply, operation=GET_RUN.operation).run.info
        return info.run_id == run_id and info.lifecycle_stage == "deleted"


def _headers(
    endpoint: Endpoint, options: Mapping[str, Any], new_token: Callable[[], str], *, has_body: bool
) -> dict[str, str]:
    headers = {"accept": "application/json"}
    if has_body:
        headers["content-type"] = "application/json"
    request_id = options["request_id"] if "request_id" in options else new_token()
    headers["opc-request-id"] = check_request_id(request_id)
    if "retry_token" in options and not endpoint.takes_retry_token:
        raise ValueError(f"{endpoint.operation} does not take a retry token")
    if endpoint.takes_retry_token:
        token = options["retry_token"] if "retry_token" in options else new_token()
        headers["opc-retry-token"] = check_retry_token(token)
    if "principal" in options:
        headers["dh-user-principal"] = check_principal(options["principal"])
    return headers


def _unexpected(error: Exception, request: Request) -> AdpError:
    """An error of ours for an unexpected one, whose own message may hold anything."""
    where = "".join(traceback.format_tb(error.__traceback__))
    message, name = "%s: unexpected %s:\n%s", type(error).__name__
    logger.debug(message, request.operation, name, where, extra=_about(request))
    return AdpError(f"{request.operation}: failed with {type(error).__name__}")


def _about(request: Request) -> dict[str, object]:
    """What a line of the log says of a request beside its message."""
    request_id = request.headers.get("opc-request-id")
    return {"operation": request.operation, "request_id": request_id}
