"""Replies that go wrong: what the client of a request sees of a `Fault`."""

from __future__ import annotations

import asyncio
import math
import socket
import struct
import time
from typing import TYPE_CHECKING, Final

from aiohttp import web
from attrs import define, evolve

from adp_async.local.answers import Answer
from adp_async.local.faults import Effect

if TYPE_CHECKING:
    from collections.abc import Callable

    from adp_async.local.faults import Fault

__all__ = ["SpoiltReply", "reset"]

#: So that the reply is read before the reset arrives, which would discard it.
_BEFORE_RESET: Final = 0.02


@define(eq=False)
class SpoiltReply:
    """One reply of the gateway that goes wrong.

    *reply* makes a good one, *headers* those of any; *closing* is set when the gateway closes.
    """

    request: web.BaseRequest
    reply: Callable[[web.BaseRequest, Answer], web.Response]
    headers: Callable[[web.BaseRequest, Answer], dict[str, str]]
    closing: asyncio.Event

    async def send(self, fault: Fault, answer: Answer) -> web.StreamResponse:
        """Spoil *answer* as *fault* says."""
        match fault.effect:
            case Effect.REPLY:
                answer = Answer(fault.status, fault.body, dict(fault.headers))
            case Effect.TRUNCATE:
                answer = evolve(answer, body=answer.body[: len(answer.body) // 2])
            case Effect.DROP:
                reset(self.request.transport)
            case Effect.HANG:
                await self._pause(math.inf)
                reset(self.request.transport)
            case Effect.DRIP:
                return await self._drip(answer, fault.seconds)
            case Effect.CUT:
                return await self._cut(answer, len(answer.body) // 2)
            case Effect.RESET:
                return await self._cut(answer, len(answer.body))
        return self.reply(self.request, answer)

    async def _drip(self, answer: Answer, seconds: float) -> web.StreamResponse:
        response = await self._begin(answer)
        for position in range(len(answer.body)):
            await self._pause(seconds)
            if self._is_gone():
                break
            await response.write(answer.body[position : position + 1])
        return response

    async def _cut(self, answer: Answer, end: int) -> web.StreamResponse:
        response = await self._begin(answer)
        await response.write(answer.body[:end])
        await asyncio.sleep(_BEFORE_RESET)
        reset(self.request.transport)
        return response

    async def _begin(self, answer: Answer) -> web.StreamResponse:
        headers = self.headers(self.request, answer)
        response = web.StreamResponse(status=answer.status, headers=headers)
        response.content_length = len(answer.body)
        await response.prepare(self.request)
        return response

    async def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        # aiohttp has no event for a client that disconnects.
        while not self._is_gone() and (left := end - time.monotonic()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(min(left, 0.02))

    def _is_gone(self) -> bool:
        transport = self.request.transport
        return self.closing.is_set() or transport is None or transport.is_closing()


def reset(transport: asyncio.Transport | asyncio.BaseTransport | None) -> None:
    if not isinstance(transport, asyncio.Transport):
        return
    endpoint = transport.get_extra_info("socket")
    if endpoint is not None:
        # Closing with a linger of zero sends RST, as a proxy that dies does.
        endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
