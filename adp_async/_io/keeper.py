"""Keeps the spool up to date while records come and go, and moves what memory can't hold.

Three things happen here, all in one task of the event loop, with SQLite in a worker's thread: every
*interval* a group commit of what was accepted and not yet delivered; after it, when memory runs
short, letting go of records that are on disk; and reading them back when their lane has sent what
it had.  When the disk fails, one warning says so, logging goes on in memory, and the commit is
tried again now and then.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import TYPE_CHECKING, Final

from attrs import define, field

from adp_async._io.spool import SpoolError
from adp_async._io.worker import Worker
from adp_async._sansio.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Callable

    from adp_async._io.spool import Spool
    from adp_async._sansio.accumulator import Accumulator, Lane
    from adp_async._sansio.journal import Changes

logger = logging.getLogger("adp_async")

#: After a commit that failed, seconds until the next try.
SECONDS_AFTER_FAILURE: Final = 10.0
#: Letting go of records stops when memory is down to this share of its limit.
LOW_WATER: Final = 0.5


@define(eq=False)
class SpoolKeeper:
    """The spool of one accumulator.

    *take_in* fetches what callers have left; *changed* is told when there is room again, or
    something to send; *trouble* says why nothing is delivered at the moment.
    """

    accumulator: Accumulator
    spool: Spool
    interval: float
    memory_limit: int
    take_in: Callable[[float], None]
    changed: Callable[[], None]
    trouble: Callable[[], str]
    journal: Journal = field(factory=Journal, init=False)
    #: Why nothing is written at the moment; None when all is well.
    failure: SpoolError | None = field(default=None, init=False)
    _worker: Worker | None = field(default=None, init=False)
    _wake: asyncio.Event = field(factory=asyncio.Event, init=False)
    _committing: asyncio.Lock = field(factory=asyncio.Lock, init=False)
    _write_lock: threading.Lock = field(factory=threading.Lock, init=False)
    _under_way: Changes | None = field(default=None, init=False)
    _outcome: SpoolError | None = field(default=None, init=False)
    _is_written: bool = field(default=False, init=False)
    _next_commit: float = field(default=0.0, init=False)
    _told: str = field(default="", init=False)

    def __attrs_post_init__(self) -> None:
        self.accumulator.journal = self.journal

    @property
    def _working(self) -> Worker:
        if self._worker is None:
            self._worker = Worker("adp_async spool")
        return self._worker

    def wake(self) -> None:
        """Something may have to be read back, or written before its time."""
        self._wake.set()

    def hurry(self) -> None:
        """Commit now: memory runs short."""
        if self.failure is None:
            self._next_commit = 0.0
        self._wake.set()

    async def run(self) -> None:
        """Commit, let go and read back until cancelled."""
        while True:
            self._wake.clear()
            now = time.monotonic()
            if now >= self._next_commit:
                self.take_in(now)
                await self.commit()
                self._next_commit = time.monotonic() + self._pause()
            self.let_go()
            await self._read_back()
            await self._sleep()

    def _pause(self) -> float:
        return self.interval if self.failure is None else SECONDS_AFTER_FAILURE

    async def _sleep(self) -> None:
        is_idle = not (self.accumulator.unsettled or self.journal.is_dirty)
        timeout = None if is_idle else max(0.0, self._next_commit - time.monotonic())
        try:
            async with asyncio.timeout(timeout):
                await self._wake.wait()
        except TimeoutError:
            return

    # Writing

    async def commit(self) -> None:
        """Write what there is to write, now."""
        async with self._committing:
            changes = self._collect()
            if changes is not None:
                # Whoever waits may be cancelled; the commit goes on, and is booked by the next.
                await asyncio.shield(self._working.do(self._write, changes))
                self._book()

    def commit_here(self) -> bool:
        """The same in this thread, which is the event loop's; whether all is on disk now."""
        if self._under_way is not None:
            self._write(self._under_way)
        changes = self._collect()
        if changes is not None:
            self._write(changes)
            self._book()
        return self.failure is None

    def _collect(self) -> Changes | None:
        self._book()
        changes = self.journal.collect()
        trouble = self.trouble()
        if not changes and trouble == self._told:
            self.journal.committed(changes)
            return None
        self._under_way, self._outcome, self._is_written = changes, None, False
        return changes

    def _write(self, changes: Changes) -> None:
        """Write *changes*, unless another thread has done so.  Any thread."""
        with self._write_lock:
            if self._under_way is not changes or self._is_written:
                return
            try:
                self.spool.commit(changes, self.trouble())
            except SpoolError as error:
                self._outcome = error
            self._is_written = True

    def _book(self) -> None:
        changes = self._under_way
        if changes is None or not self._is_written:
            return
        self._under_way = None
        if self._outcome is not None:
            self.journal.failed(changes)
            self._fail(self._outcome)
            return
        self._told = self.trouble()
        self.journal.committed(changes)
        if self.failure is not None:
            self.failure = None
            logger.warning("the spool is written again")

    def _fail(self, error: SpoolError) -> None:
        if self.failure is None:
            logger.warning(
                "the spool cannot be written, so accepted records are only in memory: %s", error
            )
        self.failure = error

    # Memory

    def let_go(self) -> None:
        """When memory runs short, forget records that are on disk, the fullest lanes first."""
        accumulator = self.accumulator
        if accumulator.cost <= self.memory_limit * LOW_WATER:
            return
        count = self._let_go_of(accumulator.limits.entities) + self._let_go_of(0)
        if count:
            logger.debug("%d records are on disk only from now on", count)
            self.changed()

    def _let_go_of(self, keep: int) -> int:
        accumulator, count = self.accumulator, 0
        lanes = sorted(self.journal.journaled_until, key=_memory_of, reverse=True)
        for lane in lanes:
            if accumulator.cost <= self.memory_limit * LOW_WATER:
                break
            until = self.journal.journaled_until[lane]
            count += accumulator.spill(lane, keep=keep, journaled_until=until)
        return count

    async def _read_back(self) -> None:
        accumulator = self.accumulator
        if not accumulator.spooled:
            return
        for lane in [lane for lane in accumulator.lanes.values() if lane.spilled]:
            wanted = accumulator.next_spilled(lane)
            if wanted is not None:
                await self._read(lane, *wanted)

    async def _read(self, lane: Lane, first: int, last: int) -> None:
        try:
            records = await self._working.do(self.spool.load, lane.run_id, first, last)
        except SpoolError as error:
            logger.warning("records of run %s cannot be read back: %s", lane.run_id, error)
            self.accumulator.lose_spilled(lane, error, time.monotonic())
        else:
            self.accumulator.reload(lane, first, records, time.monotonic())
        self.changed()

    # The end

    async def close(self) -> None:
        """A last commit, and let go of the file; it is removed when nothing is left in it."""
        await self.commit()
        try:
            await self._working.do(self.spool.close)
        except SpoolError as error:
            logger.warning("the spool could not be closed: %s", error)
        self._working.stop()


def _memory_of(lane: Lane) -> int:
    return len(lane.queue) + len(lane.tail)
