"""Keeps the spool up to date while records come and go, and moves what memory can't hold.

Three things happen here, all in one task of the event loop, with SQLite in a worker's thread: every
*interval* a group commit of what was accepted and not yet delivered; after it, when memory runs
short, spilling of records that are on disk; and reading them back when their lane has sent what
it had.  When the disk fails, there is one warning, logging continues in memory, and the commit is
retried now and then.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from attrs import define, field

from adp_async._io.log import logger
from adp_async._io.sender import NotYet
from adp_async._io.spool_file import SpoolError, SpoolFull, SpoolLimit, SpoolUnreadable
from adp_async._io.worker import Worker
from adp_async._sansio.journal import Changes, Journal
from adp_async._sansio.records import METRIC_COST
from adp_async._sansio.spilling import cannot_reload, lose, reload, spill

if TYPE_CHECKING:
    from collections.abc import Callable

    from adp_async._io.spool import Spool
    from adp_async._io.state import DeliveryState
    from adp_async._sansio.accumulator import Accumulator
    from adp_async._sansio.batch import RecordBatch
    from adp_async._sansio.lane import Lane
    from adp_async._sansio.records import AnyRecord

T = TypeVar("T")

#: After a commit that failed, seconds until the next try.
SECONDS_AFTER_FAILURE: Final = 10.0
#: Spilling stops when memory is down to this share of its limit.
LOW_WATER: Final = 0.5
#: Seconds between two commits, however short the interval.
SHORTEST_INTERVAL: Final = 0.01
#: A spool that fails and works by turns is logged once in so many seconds.
SECONDS_BETWEEN_WARNINGS: Final = 300.0


@define(eq=False)
class _Commit:
    """A group commit on its way, and how it ended."""

    changes: Changes
    trouble: str
    failure: SpoolError | None = None
    is_written: bool = False


@define(eq=False)
class SpoolKeeper:
    """The spool of one session.

    *interval*: seconds between two commits.  *memory_limit*: bytes that records may take in memory.
    """

    state: DeliveryState
    spool: Spool
    interval: float
    memory_limit: int
    accumulator: Accumulator = field(init=False)
    journal: Journal = field(init=False)
    #: Why nothing is written at the moment; None when all is well.
    failure: SpoolError | None = field(default=None, init=False)
    #: Made at once: an interpreter that ends (Python 3.12) starts no threads.
    _worker: Worker = field(factory=lambda: Worker("adp_async spool"), init=False)
    _committing: asyncio.Lock = field(factory=asyncio.Lock, init=False)
    _under_way: _Commit | None = field(default=None, init=False)
    _next_commit: float = field(default=0.0, init=False)
    _reported: str = field(default="", init=False)
    #: Whether records, not only tokens or outcomes, could not be written.
    _lacks_records: bool = field(default=False, init=False)
    #: When a failure was last logged, and whether its end still has to be.
    _warned_at: float = field(default=float("-inf"), init=False)
    _is_warned: bool = field(default=False, init=False)
    #: Whether that warning said that batches are held back.
    _is_hold_said: bool = field(default=False, init=False)
    #: Whose turn it is to be read back.
    _turn: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self.accumulator = self.state.accumulator
        self.accumulator.seals_ahead = True
        self.journal = self.state.journal = Journal()

    def wake(self) -> None:
        """Something may have to be read back, or written before its time."""
        self.state.keeper_wakes.set()

    def commit_early(self) -> None:
        """Commit now: memory is running low."""
        if self.failure is None:
            self._next_commit = 0.0
        self.state.keeper_wakes.set()

    async def run(self) -> None:
        """Commit, spill and read back until cancelled."""
        while True:
            self.state.keeper_wakes.clear()
            now = time.monotonic()
            if now >= self._next_commit:
                self.state.pull(now)
                await self.commit()
                self._next_commit = time.monotonic() + self._pause()
            elif self.failure is not None:
                self.journal.prune()
            self.spill()
            await self._read_back()
            await self._sleep()

    def _pause(self) -> float:
        if self.failure is not None:
            return SECONDS_AFTER_FAILURE
        return max(self.interval, SHORTEST_INTERVAL)

    async def _sleep(self) -> None:
        is_idle = not (self.accumulator.unsettled or self.journal.is_dirty)
        until_commit = max(0.0, self._next_commit - time.monotonic())
        timeout = min(until_commit, max(self.interval, SHORTEST_INTERVAL))
        try:
            async with asyncio.timeout(None if is_idle else timeout):
                await self.state.keeper_wakes.wait()
        except TimeoutError:
            return

    # Writing

    async def commit(self) -> None:
        """Commit now."""
        await self._commit(self.journal.collect)

    async def journaled(self) -> SpoolError | None:
        """Commit now; why what was accepted so far is not on disk, or None when it is."""
        return await self._commit(self.journal.collect)

    async def doing(self, job: Callable[..., T], *arguments: Any) -> T:
        """Do something with the spool, in the thread that writes it."""
        return await self._worker.do(job, *arguments)

    async def before_departure(self, batch: RecordBatch) -> None:
        """Write what must be on disk before *batch* leaves; `NotYet` if that fails."""
        self.state.hand_on()
        if not self.journal.concerns(batch):
            return
        if self.failure is not None and not isinstance(self.failure, SpoolFull | SpoolLimit):
            return  # nothing will be read from it again, so nothing is sent twice
        failure = await self._commit(partial(self.journal.collect_for, batch))
        if isinstance(failure, SpoolFull):
            self._next_commit = 0.0  # what was delivered meanwhile makes room
            self.wake()
            message = "its retry token cannot be written down before it leaves"
            raise NotYet(message)

    async def _commit(self, collect: Callable[[], Changes]) -> SpoolError | None:
        async with self._committing:
            while self._under_way is not None:  # nobody waited for it to finish
                await self._written(self._under_way)
            commit = self._begin(collect)
            if commit is not None:
                await self._written(commit)
                return commit.failure
            return None

    async def _written(self, commit: _Commit) -> None:
        # The waiting task may be cancelled; the commit continues.
        await asyncio.shield(self._worker.do(self._write, commit))
        self._finish_commit()

    async def commit_last(self, seconds: float) -> bool:
        """Commit, for at most *seconds*; returns whether everything is on disk now."""
        try:
            async with asyncio.timeout(seconds):
                await self.commit()
        except TimeoutError:
            message = f"{self.spool.path}: the disk did not answer in time"
            self._fail(SpoolError(message))
        # A disk that takes nothing more still has what is on it.
        is_there = self.failure is None or isinstance(self.failure, SpoolFull | SpoolLimit)
        return is_there and not self.journal.has_unwritten

    def _begin(self, collect: Callable[[], Changes]) -> _Commit | None:
        assert self._under_way is None
        self.state.hand_on()
        changes = collect()
        trouble = str(self.state.dispatcher.trouble or "")
        if not changes and trouble == self._reported:
            self.journal.committed(changes)
            return None
        self._under_way = _Commit(changes, trouble)
        return self._under_way

    def _write(self, commit: _Commit) -> None:
        """Write *commit*, unless that was done.  In the worker's thread."""
        if commit.is_written:
            return
        try:
            self.spool.commit(commit.changes, commit.trouble)
        except SpoolError as error:
            commit.failure = error
        except Exception as error:  # whatever it was, records stay in memory
            commit.failure = SpoolError(f"the commit failed with {type(error).__name__}")
        commit.is_written = True

    def _finish_commit(self) -> None:
        """Finish the commit in progress, if it has ended."""
        commit = self._under_way
        if commit is None or not commit.is_written:
            return
        self._under_way = None
        if commit.failure is not None:
            self._lacks_records |= bool(commit.changes.chunks)
            self.journal.failed(commit.changes)
            self._fail(commit.failure)
            return
        self._reported = commit.trouble
        self.journal.committed(commit.changes)
        # A disk with room for a token, or an outcome, need not have room for the next record.
        if self.failure is not None and (commit.changes.chunks or not self._lacks_records):
            self._works_again()
        # Tasks that wait for the commit keep it alive; they must not keep its records alive.
        commit.changes = Changes()

    def _works_again(self) -> None:
        self.failure = None
        self._lacks_records = self._is_hold_said = False
        if self._is_warned:
            self._is_warned = False
            logger.warning("writing to the spool works again")

    def _fail(self, error: SpoolError) -> None:
        now = time.monotonic()
        holds = isinstance(error, SpoolFull)
        is_news = self.failure is None or (holds and not self._is_hold_said)
        if is_news and now >= self._warned_at + SECONDS_BETWEEN_WARNINGS:
            self._warned_at, self._is_warned, self._is_hold_said = now, True, holds
            logger.warning(
                "the spool cannot be written, so accepted records are only in memory%s: %s",
                "; those on disk are held back meanwhile" if holds else "",
                error,
            )
        self.failure = error

    # Memory

    def spill(self) -> None:
        """When memory runs short, forget records that are on disk, the fullest lanes first."""
        accumulator = self.accumulator
        if accumulator.cost <= self.memory_limit * LOW_WATER:
            return
        count = self._spill_all_but(accumulator.limits.entities) + self._spill_all_but(0)
        if count:
            logger.debug("%d records are on disk only from now on", count)
            self.state.moved()

    def _spill_all_but(self, keep: int) -> int:
        accumulator, count = self.accumulator, 0
        lanes = sorted(self.journal.journaled_until, key=_memory_of, reverse=True)
        for lane in lanes:
            if accumulator.cost <= self.memory_limit * LOW_WATER:
                break
            until = self.journal.journaled_until[lane]
            with self.state.intake.lock:
                count += spill(
                    accumulator, lane, time.monotonic(), keep=keep, journaled_until=until
                )
        return count

    async def _read_back(self) -> None:
        accumulator = self.accumulator
        if not accumulator.spooled:
            return
        lanes = [lane for lane in accumulator.lanes.values() if lane.spilled and lane.is_created]
        if not lanes:
            return
        start = self._turn % len(lanes)
        for lane in lanes[start:] + lanes[:start]:
            wanted = lane.next_spilled(accumulator.limits)
            if wanted is None:
                continue
            room = self._room()
            if not room:
                break
            self._turn += 1
            first, last = wanted
            await self._read(lane, first, min(last, first + room))

    def _room(self) -> int:
        """How many records may be read back now; 0 is none."""
        accumulator = self.accumulator
        room = self.memory_limit * LOW_WATER - accumulator.cost
        count = int(room / METRIC_COST)
        if count >= accumulator.limits.entities:
            return count
        # Nothing else would ever make room.
        is_stuck = accumulator.next_deadline() is None and not accumulator.in_flight
        return accumulator.limits.entities if is_stuck else 0

    async def _read(self, lane: Lane, first: int, last: int) -> None:
        try:
            records = await self._worker.do(self._load, lane.key, first, last)
        except SpoolError as error:
            if not _is_next(lane, first):
                return
            if lane.queue:
                # When those have departed it is tried once more.
                cannot_reload(self.accumulator, lane, time.monotonic())
                self.state.moved()
                return
            until = error.until if isinstance(error, SpoolUnreadable) else last
            message = "some spooled records cannot be read and will not be delivered: %s"
            logger.warning(message, error, extra={"run_id": lane.run_id})
            with self.state.intake.lock:
                lose(self.accumulator, lane, until, error, time.monotonic())
            self.state.hand_on()
        else:
            if not _is_next(lane, first):
                return
            with self.state.intake.lock:
                reload(self.accumulator, lane, first, records, time.monotonic())
        self.state.moved()

    def _load(self, run_id: str, first: int, last: int) -> list[AnyRecord]:
        """In the worker's thread."""
        try:
            return self.spool.load(run_id, first, last)
        except SpoolError:
            raise
        except Exception as error:  # whatever it was, it must not end the keeper
            problem = f"{self.spool.path}: reading failed with {type(error).__name__}"
        raise SpoolError(problem)

    # The end

    async def close(self, seconds: float, *, is_needed: bool = False) -> None:
        """Commit once more, and release the file, which is removed if it is empty.

        *is_needed*: not when all records are settled, for a run of it is not.
        A disk that hangs is abandoned after *seconds*, with the thread that waits for it.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._close(is_needed=is_needed)
        except TimeoutError:
            logger.warning("the spool could not be closed in time: %s", self.spool.path)
            self._worker.submit(self.spool.release)  # when the disk answers
        except SpoolError as error:
            logger.warning("the spool could not be closed: %s", error)
        except Exception as error:  # it must not replace what the body raised
            name = type(error).__name__
            logger.warning("the spool could not be closed: %s: %s", self.spool.path, name)
        finally:
            self._worker.stop()

    async def _close(self, *, is_needed: bool) -> None:
        # (A full disk may not even have room to note that all was delivered.)
        if not self.accumulator.abandoned:  # which came after a last commit, and told no journal
            await self.commit()
        left = self.accumulator.unsettled or self.accumulator.abandoned
        is_all_settled = not (left or is_needed)
        await self._worker.do(self.spool.close, is_all_settled)


def _is_next(lane: Lane, first: int) -> bool:
    """Whether what was read is still wanted: the run may have been discarded meanwhile."""
    return bool(lane.spilled) and lane.spilled[0][0] == first


def _memory_of(lane: Lane) -> int:
    return len(lane.queue) + len(lane.tail)
