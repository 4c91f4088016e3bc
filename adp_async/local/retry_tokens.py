"""Deduplicates by ``opc-retry-token``: the same token is the same call, for 24 hours."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from attrs import define

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from adp_async.local.answers import Answer

__all__ = ["InvalidatedRetryToken", "RetryTokens"]

#: Seconds a token is remembered.
LIFETIME = 24 * 3600.0


class InvalidatedRetryToken(Exception):
    """The token was used for another request."""


@define(eq=False)
class _Use:
    fingerprint: bytes
    expires: float
    answer: asyncio.Future[Answer]


class RetryTokens:
    """What was answered to each retry token.

    A request whose token is still being served waits for that answer.  An answer that is an error
    did nothing, so it is not kept, and the token may be tried again.
    """

    def __init__(self) -> None:
        self._uses: dict[str, _Use] = {}

    def __len__(self) -> int:
        return len(self._uses)

    async def answer(
        self,
        token: str,
        fingerprint: bytes,
        serve: Callable[[], Awaitable[Answer]],
        *,
        now: float,
    ) -> Answer:
        """Serve the first request with *token*; repeat its answer to every later one.

        *now* is Unix time by the platform's clock.
        """
        self._forget_old(now)
        use = self._uses.get(token)
        if use is None:
            return await self._first(token, fingerprint, serve, now=now)
        if use.fingerprint != fingerprint:
            raise InvalidatedRetryToken
        return await asyncio.shield(use.answer)

    async def _first(
        self,
        token: str,
        fingerprint: bytes,
        serve: Callable[[], Awaitable[Answer]],
        *,
        now: float,
    ) -> Answer:
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._uses[token] = _Use(fingerprint, now + LIFETIME, future)
        try:
            answer = await serve()
        except BaseException:
            self._uses.pop(token, None)
            future.cancel()
            raise
        if answer.status >= 300:
            self._uses.pop(token, None)
        future.set_result(answer)
        return answer

    def _forget_old(self, now: float) -> None:
        # Kept in the order of use, so the old ones come first.
        while self._uses:
            token = next(iter(self._uses))
            if self._uses[token].expires > now:
                return
            del self._uses[token]
