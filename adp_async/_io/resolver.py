"""Looks hosts up in a thread of our own.

An event loop's default pool is shared with whatever else the program does in threads: six long
jobs would hold up every connection.  And it accepts no jobs when the interpreter is ending, while
records are still being delivered.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

from aiohttp.abc import AbstractResolver, ResolveResult

from adp_async._io.worker import Worker

if TYPE_CHECKING:
    from typing import Any

_NUMERIC: Final = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV


def look_up(host: str, port: int, family: int) -> list[tuple[Any, ...]]:
    """The result of `socket.getaddrinfo`.  Blocks."""
    kind, flags = socket.SOCK_STREAM, socket.AI_ADDRCONFIG
    return list(socket.getaddrinfo(host, port, family=family, type=kind, flags=flags))


class Resolver(AbstractResolver):
    """A resolver with a thread of its own."""

    def __init__(self) -> None:
        self._worker = Worker("adp_async resolver")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses of *host*; raises OSError."""
        found = await self._worker.do(look_up, host, port, family)
        return [
            ResolveResult(
                hostname=host, host=name, port=number, family=kind, proto=proto, flags=_NUMERIC
            )
            for kind, _, proto, _, address in found
            for name, number in [_named(kind, address)]
        ]

    def stop(self) -> None:
        """End the thread; one that hangs is abandoned."""
        self._worker.stop()

    async def close(self) -> None:
        """The same, for aiohttp."""
        self.stop()


def _named(kind: int, address: tuple[Any, ...]) -> tuple[str, int]:
    # A link-local IPv6 address needs its interface.
    if kind == socket.AF_INET6 and len(address) > 3 and address[3]:
        return f"{address[0]}%{address[3]}", address[1]
    return address[0], address[1]
