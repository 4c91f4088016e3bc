"""Signs the requests of one session, off its event loop, and renews what it signs with.

Loading the signer, every signature and every renewal of a token happen in the one thread of an
`Authenticator`: signing never overlaps a refresh, and the event loop never waits for either.  An
API key, which is never renewed, signs in two threads: the mathematics of one signature goes on
while the other one waits for the interpreter.  And where nothing else is under way, it signs in
none: going to a thread and back takes half as long as the signature itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

from adp_async._io.worker import Worker
from adp_async._sansio.signing import Signable, corrected_skew, http_date
from adp_async.errors import Closed, NotAuthenticated

if TYPE_CHECKING:
    from collections.abc import Callable

    from adp_async._sansio.messages import Request
    from adp_async.auth import Auth, Signer

T = TypeVar("T")

logger = logging.getLogger("adp_async")

_CANNOT_SIGN: Final = "CannotSign"
_THREADS: Final = 2
#: The largest body that is hashed on the event loop: 0.05 ms.
_SMALL_BODY: Final = 16 * 1024


class Authenticator:
    """Signs the requests of one session, and renews what it signs with.

    *generation* grows with every renewal and every correction of the clock.  Read it before
    `sign`, and hand it to `recover` when that request comes back with a 401.
    """

    def __init__(self, auth: Auth, *, clock: Callable[[], float] = time.time) -> None:
        self._auth = auth
        self._clock = clock
        self._worker: Worker | None = None
        self._signer: Signer | None = None
        self._is_quick = False
        self._refreshing: asyncio.Future[bool] | None = None
        self._recoveries = 0
        #: Seconds that are added to our clock to get the service's.
        self.skew = 0.0
        #: The region the credentials belong to, if they know it.
        self.region: str | None = None

    def __repr__(self) -> str:
        state = "closed" if self._worker is None else "open"
        return f"<Authenticator {self._auth.mode} | {state} | generation {self.generation}>"

    @property
    def generation(self) -> int:
        return self._recoveries + int(getattr(self._signer, "renewals", 0))

    async def open(self) -> None:
        """Load the signer.  Raises `ConfigurationError`, and can then be tried again."""
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
        """Take no more requests.  A refresh that hangs is left behind, not waited for."""
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Do something that blocks in a signer's thread."""
        return await self._working().do(function, *arguments)

    async def sign(self, request: Request, *, alone: bool = False) -> Request:
        """The *request* with a fresh date, everything that is signed, and the signature.

        *alone*: nobody else has anything under way who could use the time.
        """
        worker = self._working()
        try:
            if alone and self._is_quick and len(request.body or b"") <= _SMALL_BODY:
                return self._sign(request)
            return await worker.do(self._sign, request)
        except Exception as error:
            message = f"the signer ({self._auth.mode}) failed with {type(error).__name__}"
            raise NotAuthenticated(
                message, code=_CANNOT_SIGN, operation=request.operation
            ) from error

    async def recover(
        self, error: NotAuthenticated, *, generation: int, server_date: str | None
    ) -> bool:
        """Whether one more try is worth it after a 401: the clock or the credentials are new.

        *generation* is what it was when the refused request was about to be signed, and
        *server_date* the ``Date`` of the reply.  All who wait share one refresh.  Raises
        `NotAuthenticated` when the refresh failed, with the reason as its cause.
        """
        if self.generation > generation:
            return True
        if error.code == _CANNOT_SIGN:
            return False  # nobody refused anything: what could be renewed has just failed
        if self._correct_clock(server_date):
            return True
        refresh = self._shared_refresh()
        try:
            return await asyncio.shield(refresh)
        except Exception as cause:
            raise _refresh_failed(error, cause) from cause

    def _working(self) -> Worker:
        if self._worker is None:
            message = "the authenticator is not open"
            raise Closed(message)
        return self._worker

    def _correct_clock(self, server_date: str | None) -> bool:
        skew = corrected_skew(self.skew, now=self._clock(), server_date=server_date)
        if skew is None:
            return False
        logger.warning("the clock differs by %.0f s from the service's, which is used now", skew)
        self.skew = skew
        self._recoveries += 1
        return True

    def _shared_refresh(self) -> asyncio.Future[bool]:
        if self._refreshing is None:
            self._refreshing = self._working().do(self._refresh)
            self._refreshing.add_done_callback(self._refreshed)
        return self._refreshing

    def _refreshed(self, future: asyncio.Future[bool]) -> None:
        self._refreshing = None
        if not future.cancelled() and (error := future.exception()) is not None:
            # Logged here as well: everyone who waited may have been cancelled.
            logger.debug("refreshing the credentials failed with %s", type(error).__name__)

    # From here on: in a thread of the worker, but for a quick signature.

    def _load(self) -> None:
        self._signer = self._auth.load()
        self._is_quick = self._auth.is_quick(self._signer)
        self.region = self._auth.region(self._signer)

    def _sign(self, request: Request) -> Request:
        assert self._signer is not None
        signable = Signable.of(request, date=http_date(self._clock() + self.skew))
        # The signer itself, never its do_request_sign: only the call renews instance principals.
        self._signer(signable)
        return signable.signed(request)

    def _refresh(self) -> bool:
        refresh = getattr(self._signer, "refresh_security_token", None)
        if refresh is None or refresh() is False:
            return False
        self._recoveries += 1
        return True


def _refresh_failed(error: NotAuthenticated, cause: Exception) -> NotAuthenticated:
    return NotAuthenticated(
        f"{error.message}; refreshing the credentials failed with {type(cause).__name__}",
        status=error.status,
        code=error.code,
        request_id=error.request_id,
        operation=error.operation,
    )
