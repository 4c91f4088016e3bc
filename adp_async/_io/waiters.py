"""Waiters: for a record, for the present records of some runs, or for everything.

All of it belongs to the delivery loop; a waiter on another loop or in a thread hands a coroutine
over (`adp_async._io.loop_thread`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from adp_async._sansio.lane import Lane
    from adp_async._sansio.records import AnyRecord
    from adp_async.errors import AdpError


class _Flush:
    """Waits until the present records of some lanes are settled.

    *until*: the lanes that are not there yet, and up to which record.
    """

    __slots__ = ("done", "until")

    def __init__(self, lanes: Iterable[Lane]) -> None:
        self.until = {lane: lane.next_seq for lane in lanes if lane.settled_until < lane.next_seq}
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def look_at(self, lane: Lane) -> None:
        """Records of *lane* were settled: perhaps they were the last."""
        if lane.settled_until >= self.until.get(lane, 0):
            self.until.pop(lane, None)
            if not self.until:
                _resolve(self.done)


class Waiters:
    """The waiters for receipts, flushes and the end, woken when those are settled."""

    def __init__(self) -> None:
        self._receipts: dict[int, list[asyncio.Future[None]]] = {}
        self._flushes: dict[Lane, list[_Flush]] = {}
        self._everything: list[asyncio.Future[None]] = []
        self._anything: list[asyncio.Future[None]] = []

    @property
    def are_none(self) -> bool:
        """Whether nobody waits."""
        return not (self._receipts or self._flushes or self._everything)

    async def settled(self, record: AnyRecord) -> None:
        """Wait until *record* is settled."""
        future = asyncio.get_running_loop().create_future()
        futures = self._receipts.setdefault(id(record), [])
        futures.append(future)
        try:
            await future
        finally:
            futures.remove(future)
            if not futures:
                self._receipts.pop(id(record), None)

    async def lanes_settled(self, lanes: Iterable[Lane]) -> None:
        """Wait until the present records of *lanes* are settled."""
        flush = _Flush(lanes)
        waited_for = list(flush.until)
        for lane in waited_for:
            self._flushes.setdefault(lane, []).append(flush)
        try:
            if waited_for:
                await flush.done
        finally:
            for lane in waited_for:
                flushes = self._flushes.pop(lane, [])
                if others := [each for each in flushes if each is not flush]:
                    self._flushes[lane] = others

    async def all_settled(self) -> None:
        """Wait until `nothing_left` is called."""
        await self._next(self._everything)

    async def something_settled(self) -> None:
        """Wait until any record is settled."""
        await self._next(self._anything)

    async def _next(self, futures: list[asyncio.Future[None]]) -> None:
        future = asyncio.get_running_loop().create_future()
        futures.append(future)
        await future

    def resolve(self, lane: Lane, records: Sequence[AnyRecord]) -> None:
        """*records* of *lane* are settled: wake their waiters."""
        if self._receipts:
            for record in records:
                for future in self._receipts.get(id(record), ()):
                    _resolve(future)
        for flush in self._flushes.get(lane, ()):
            flush.look_at(lane)
        _resolve_all(self._anything)

    def nothing_left(self) -> None:
        """Everything is settled."""
        _resolve_all(self._everything)

    def fail(self, lane: Lane, error: AdpError) -> None:
        """No record of *lane* will be settled any more."""
        for flush in self._flushes.get(lane, ()):
            if not flush.done.done():
                flush.done.set_exception(error)


def _resolve_all(futures: list[asyncio.Future[None]]) -> None:
    while futures:
        _resolve(futures.pop())


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
