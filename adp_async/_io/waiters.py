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


class Moment:
    """What any number of tasks wait for, again and again; one that is cancelled waits no more."""

    __slots__ = ("_futures",)

    def __init__(self) -> None:
        self._futures: set[asyncio.Future[None]] = set()

    def __bool__(self) -> bool:
        """Whether anybody waits for it."""
        return bool(self._futures)

    async def wait(self) -> None:
        """Until `has_come` is called next."""
        future = asyncio.get_running_loop().create_future()
        self._futures.add(future)
        try:
            await future
        finally:
            self._futures.discard(future)

    def has_come(self) -> None:
        """Wake all tasks that wait for it now."""
        while self._futures:
            _resolve(self._futures.pop())


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
        self._everything = Moment()
        self._anything = Moment()

    @property
    def are_none(self) -> bool:
        """Whether nobody waits."""
        return not (self._receipts or self._flushes or self._everything or self._anything)

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
        await self._everything.wait()

    async def something_settled(self) -> None:
        """Wait until any record is settled."""
        await self._anything.wait()

    def resolve(self, lane: Lane, records: Sequence[AnyRecord]) -> None:
        """*records* of *lane* are settled: wake their waiters."""
        if self._receipts:
            for record in records:
                for future in self._receipts.get(id(record), ()):
                    _resolve(future)
        for flush in self._flushes.get(lane, ()):
            flush.look_at(lane)
        self._anything.has_come()

    def nothing_left(self) -> None:
        """Everything is settled."""
        self._everything.has_come()

    def fail(self, lane: Lane, error: AdpError) -> None:
        """No record of *lane* will be settled any more."""
        for flush in self._flushes.get(lane, ()):
            if not flush.done.done():
                flush.done.set_exception(error)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
