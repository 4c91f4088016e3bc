"""Signs the requests of one session, off its event loop, and renews the credentials.

Loading the signer, every signature and every renewal of a token happen in the one thread of an
`Authenticator`: signing never overlaps a refresh, and the event loop never waits for either.  An
API key, which is never renewed, signs in two threads: one computes a signature while the other
waits for the interpreter.  When no other request is in progress it signs in the caller's thread:
going to another thread and back takes half as long as the signature itself.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

from adp_async._io.log import logger
from adp_async._io.worker import Worker
from adp_async._sansio.messages import Signing
from adp_async._sansio.signing import Signable, corrected_skew, http_date, problem_of_header
from adp_async.errors import AdpError, Closed, ConfigurationError, NotAuthenticated, reason_of

if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import Callable

    from adp_async._sansio.messages import Request
    from adp_async.auth import Auth, Signer

T = TypeVar("T")

_CANNOT_SIGN: Final = "CannotSign"
_THREADS: Final = 2
#: Seconds that a fork waits for signatures in progress, and that they wait for the fork.
_LONGEST_FORK: Final = 1.0
_BODY_HASH: Final = "x-content-sha256"
#: The largest body that is hashed on the event loop: 0.05 ms.
_SMALL_BODY: Final = 16 * 1024
#: The most that two readings of the same clock differ, in seconds.
_SAME_SKEW: Final = 60.0


class Authenticator:
    """Signs the requests of one session, and renews its credentials.

    *generation* grows with every renewal and every correction of the clock.  Read it before
    `sign`, and pass it to `recover` when that request gets a 401.
    """

    def __init__(self, auth: Auth, *, clock: Callable[[], float] = time.time) -> None:
        self._auth = auth
        self._clock = clock
        self._worker: Worker | None = None
        self._signer: Signer | None = None
        self._is_quick = False
        #: The refresh in progress, which may be awaited on several event loops.
        self._refreshing: concurrent.futures.Future[bool] | None = None
        self._lock = threading.Lock()
        self._recoveries = 0
        #: Seconds to add to our clock to get the service's.
        self.skew = 0.0
        #: The skew before a correction that no good reply has confirmed yet, or None.
        self._skew_before: float | None = None
        self._skew_told: float | None = None
        #: The region the credentials belong to, if they know it.
        self.region: str | None = None

    def __repr__(self) -> str:
        state = "closed" if self._worker is None else "open"
        return f"<Authenticator {self._auth.mode} | {state} | generation {self.generation}>"

    @property
    def generation(self) -> int:
        renewals = getattr(self._signer, "renewals", 0)
        return self._recoveries + (renewals if isinstance(renewals, int) else 0)

    async def open(self) -> None:
        """Load the signer.  Raises `ConfigurationError`; may be called again after that."""
        if self._worker is not None:
            return
        threads = _THREADS if self._auth.only_computes else 1
        self._worker = Worker("adp_async signer", threads=threads)
        try:
            await self._worker.do(self._load)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Accept no more requests.  A refresh that hangs is abandoned, not awaited."""
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call something that blocks, in a signer's thread."""
        return await self._working().do(function, *arguments)

    async def sign(self, request: Request, *, alone: bool = False) -> Request:
        """The *request* with a fresh date, everything that is signed, and the signature.

        *alone*: no other call is in progress that could use the time.  Raises
        `NotAuthenticated` with the code ``CannotSign`` when the signer raises anything, or leaves
        headers that cannot be sent.
        """
        worker = self._working()
        if request.signing is Signing.NOTHING:
            return request
        if alone and self._is_quick and len(request.body or b"") <= _SMALL_BODY:
            return self._sign(request)
        return await worker.do(self._sign, request)

    def accepted(self, skew: float) -> None:
        """A signature made with this *skew* was accepted, which confirms it."""
        if skew == self.skew:
            self._skew_before = None

    def refused(self, skew: float) -> None:
        """A 401 that nothing could fix: undo a correction of the clock that didn't help.

        *skew* is the one the refused request was signed with.  The time may have come not from
        the service but from something in front of it.
        """
        if self._skew_before is not None and skew == self.skew:
            logger.debug("the correction of the clock did not help and is undone")
            self.skew, self._skew_before = self._skew_before, None

    async def recover(
        self, error: NotAuthenticated, *, generation: int, server_date: str | None
    ) -> bool:
        """Whether to try once more after a 401: the clock was corrected or the credentials renewed.

        *generation* is the one before the refused request was signed, and
        *server_date* the ``Date`` of the reply.  Concurrent callers share one refresh.  Raises
        `NotAuthenticated` when the refresh failed, with the reason as its cause.
        """
        if self.generation > generation:
            return True
        if error.code == _CANNOT_SIGN:
            return False  # not refused by the service: the signer itself has just failed
        if self._correct_clock(server_date):
            return True
        refresh = asyncio.wrap_future(self._shared_refresh())
        refresh.add_done_callback(_is_seen)
        try:
            return await asyncio.shield(refresh)
        except _RefreshFailed as failure:
            failed = _refresh_failed(error, str(failure))
        raise failed

    def _working(self) -> Worker:
        if self._worker is None:
            message = "the authenticator is not open"
            raise Closed(message)
        return self._worker

    def _correct_clock(self, server_date: str | None) -> bool:
        skew = corrected_skew(self.skew, now=self._clock(), server_date=server_date)
        if skew is None:
            return False
        # Logged once: one that doesn't help is undone, and may be tried again and again.
        is_news = self._skew_told is None or abs(skew - self._skew_told) > _SAME_SKEW
        level = logging.WARNING if is_news else logging.DEBUG
        message = "the local clock is off by %.0f s; using the service's time"
        logger.log(level, message, skew)
        self._skew_told = skew
        if self._skew_before is None:
            self._skew_before = self.skew
        self.skew = skew
        self._recoveries += 1
        return True

    def _shared_refresh(self) -> concurrent.futures.Future[bool]:
        with self._lock:
            refreshing = self._refreshing
            if refreshing is None:
                refreshing = self._refreshing = self._working().submit(self._refresh)
                # (It may be done by now, and forgotten at once.)
                refreshing.add_done_callback(self._refreshed)
            return refreshing

    def _refreshed(self, future: concurrent.futures.Future[bool]) -> None:
        self._refreshing = None
        if (error := future.exception()) is not None:
            # Logged here as well: every task that waited may have been cancelled.
            logger.debug("refreshing the credentials failed with %s", error)

    # From here on: in a thread of the worker, except for a quick signature.

    # Errors of foreign code are reported by their type, and outside of the `except`: as a cause or
    # a context they could show the credentials.  A BaseException of theirs (CancelledError,
    # StopIteration) would be mistaken for the future's or the task's.

    def _load(self) -> None:
        try:
            self._signer = self._auth.load()
            self._is_quick = self._auth.is_quick(self._signer)
            self.region = self._auth.region(self._signer)
            return
        except (AdpError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            failed = f"auth: the credentials ({self._auth.mode}) cannot be loaded: {_named(error)}"
        raise ConfigurationError(failed)

    def _sign(self, request: Request) -> Request:
        signer = self._signer
        assert signer is not None
        try:
            signable = Signable.of(request, date=http_date(self._clock() + self.skew))
            given = dict(signable.headers)
            # The signer itself, never its do_request_sign: only the call renews instance
            # principals.
            with _signing:
                returned = _call(signer, signable, request.signing)
            problem = _problem_of_signature(signable, given, returned)
            if request.signing is Signing.HEAD and not problem:
                problem = _problem_of_head(signable, given)
            if not problem:
                return signable.signed(request)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            problem = f"failed with {_named(error)}"
        message = f"the signer ({self._auth.mode}) {problem}"
        raise NotAuthenticated(message, code=_CANNOT_SIGN, operation=request.operation)

    def _refresh(self) -> bool:
        try:
            refresh = getattr(self._signer, "refresh_security_token", None)
            if refresh is None or refresh() is False:
                return False
            self._recoveries += 1
            return True
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            failed = _named(error)
        raise _RefreshFailed(failed)


def _is_seen(future: asyncio.Future[bool]) -> None:
    """The tasks that waited may have been cancelled; its exception is logged elsewhere."""
    if not future.cancelled():
        future.exception()


class _Signing:
    """Keeps the process from forking in the middle of a signature.

    A child inherits OpenSSL's locks, but not the thread that would release one of them: its first
    signature would never end.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._signatures = 0
        self._is_forking = False

    def __enter__(self) -> None:
        with self._changed:
            while self._is_forking:
                self._changed.wait(_LONGEST_FORK)
            self._signatures += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._signatures -= 1
            if self._is_forking:
                self._changed.notify_all()

    def before_fork(self) -> None:
        """Wait for those in progress; not for one that renews a token, which can take minutes."""
        with self._changed:
            self._is_forking = True
            self._changed.wait_for(lambda: not self._signatures, _LONGEST_FORK)

    def after_fork(self) -> None:
        with self._changed:
            self._is_forking = False
            self._changed.notify_all()


_signing = _Signing()


def _after_fork_in_child() -> None:
    global _signing
    _signing = _Signing()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: _signing.before_fork(),
        after_in_parent=lambda: _signing.after_fork(),
        after_in_child=_after_fork_in_child,
    )


class _RefreshFailed(Exception):
    """Names the type of the error that prevented the renewal of the credentials."""


def _named(error: BaseException) -> str:
    name, reason = type(error).__name__, reason_of(error)
    return name if reason == name else f"{name} ({reason})"


def _call(signer: Any, signable: Signable, signing: Signing) -> object:
    """Have *signable* signed; what a signer of OCI's is told that has to leave the body alone."""
    if signing is Signing.HEAD and _takes_options(signer):
        return signer(signable, enforce_content_headers=False)
    return signer(signable)


def _takes_options(signer: Any) -> bool:
    try:
        parameters = inspect.signature(signer).parameters.values()
    except (TypeError, ValueError):  # some callables of C have none
        return False
    return any(
        each.name == "enforce_content_headers" or each.kind is each.VAR_KEYWORD
        for each in parameters
    )


def _problem_of_head(signable: Signable, given: dict[str, str]) -> str:
    if _BODY_HASH in signable.headers and _BODY_HASH not in given:
        return (
            "signs the body of an upload, which is a stream; it has to take "
            "enforce_content_headers=False as the signers of oci do"
        )
    return ""


def _problem_of_signature(signable: Signable, given: dict[str, str], returned: object) -> str:
    """What is wrong with the headers that a signer left; "" if nothing is."""
    if inspect.iscoroutine(returned):
        returned.close()
        return "is a coroutine function; it is called in a thread, not awaited"
    headers: object = signable.headers
    if not isinstance(headers, dict):
        return f"left {type(headers).__name__} in place of the headers"
    for name, value in headers.items():
        if problem := problem_of_header(name, value):
            return f"cannot be used: {problem}"
    is_signed = any(name.lower() == "authorization" and value for name, value in headers.items())
    # A signer that does nothing at all is intended: something else signs, or nothing checks.
    does_nothing = headers == given and (returned is None or returned is signable)
    if not is_signed and not does_nothing:
        return "did not set the header 'authorization'"
    return ""


def _refresh_failed(error: NotAuthenticated, cause: str) -> NotAuthenticated:
    return NotAuthenticated(
        f"{error.message}; refreshing the credentials failed with {cause}",
        status=error.status,
        code=error.code,
        request_id=error.request_id,
        operation=error.operation,
    )
