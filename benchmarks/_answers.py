"""A server that answers at once, for machines without nginx; run as a process of its own.

It reads a request to its end, looks at nothing but its length and path, and answers as the nginx
of `benchmarks._servers` does.  It ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import re
import sys
from typing import cast

from benchmarks._servers import REPLIES

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_END = b"\r\n\r\n"


def _reply(body: str) -> bytes:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return f"{head}\r\n\r\n{body}".encode()


_REPLIES = {path.encode(): _reply(body) for path, body in REPLIES.items()}


class Answering(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._end_of_request()) is not None:
            assert self._transport is not None
            self._transport.write(self._answer())
            del self._received[:end]

    def _end_of_request(self) -> int | None:
        head = self._received.find(_END)
        if head < 0:
            return None
        found = _LENGTH.search(self._received, 0, head + 2)
        end = head + len(_END) + int(found[1] if found else 0)
        return end if len(self._received) >= end else None

    def _answer(self) -> bytes:
        path = self._received.split(b" ", 2)[1]
        return next(reply for end, reply in _REPLIES.items() if path.endswith(end))


async def main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Answering, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
