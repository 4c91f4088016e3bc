"""Delivers what callers leave in the Intake, in a thread of a session's own.

Everything behind the Intake belongs to the delivery thread: the lanes, the sender, the keeper of
the spool and the waiters.  A waiter in another thread, or on another event loop, hands a coroutine
over.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

from adp_async._io.intake import Intake
from adp_async._io.leftovers import Leftovers
from adp_async._io.lifetime import Lifetime, Why
from adp_async._io.log import logger
from adp_async._io.open_runs import OpenRuns
from adp_async._io.receipts import ReceiptWaits
from adp_async._io.run_creator import RunCreator
from adp_async._io.run_starts import RunStarts
from adp_async._io.sender import Sender
from adp_async._io.state import DeliveryState
from adp_async._io.tidying import first_end
from adp_async._io.worker import is_worker_here
from adp_async._sansio.accumulator import Accumulator
from adp_async._sansio.concurrency import Concurrency
from adp_async._sansio.discarding import discard
from adp_async._sansio.dispatch import Dispatcher, Pulse, discarded
from adp_async._sansio.outward import outward
from adp_async._sansio.records import BatchLimits
from adp_async._sansio.rejections import KEPT_REJECTIONS, REJECTION_COST, delivery_error
from adp_async.errors import AdpError, DeliveryError

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

    from adp_async._io.caller import Caller
    from adp_async._io.contact import Started
    from adp_async._io.keeper import SpoolKeeper
    from adp_async._io.loop_thread import LoopThread
    from adp_async._io.spool import Spool
    from adp_async._sansio.run_start import RunStart
    from adp_async._sansio.statuses import EndStatus
    from adp_async._sansio.throttle import Throttle
    from adp_async.settings import Settings

T = TypeVar("T")

#: The share of ``buffer_limit`` that refused records may take, kept until they are reported.
REJECTIONS_SHARE: Final = 0.1
#: Of the time for closing, the share that is kept for writing down what is left.
LAST_COMMIT: Final = 0.2
#: The least that this takes, in seconds, however short the time for closing is.
SHORTEST_COMMIT: Final = 0.25
#: The least that a disk gets to release the file, when writing took all the time.
SHORTEST_CLOSE: Final = 0.05
#: The most, in seconds, that a run waits for the disk when it starts offline, or ends so.
LONGEST_COMMIT: Final = 2.0
#: The sender is started again when it ends, but not more often than this within so many seconds.
MOST_CRASHES: Final = 10
CRASH_TIME: Final = 10.0


class Delivery:
    """Delivers all records of one session, from the Intake until they are settled."""

    def __init__(
        self,
        settings: Settings,
        service: Caller,
        *,
        throttle: Throttle,
        tokens: Iterator[str],
        pulse: Pulse | None = None,
        limits: BatchLimits | None = None,
        open_runs: OpenRuns | None = None,
    ) -> None:
        self.settings = settings
        self.throttle = throttle
        self.lifetime = Lifetime()
        kept = REJECTIONS_SHARE * settings.buffer_limit / REJECTION_COST
        self.accumulator = Accumulator(
            linger=settings.linger,
            limits=limits or BatchLimits(),
            tokens=tokens,
            waits=ReceiptWaits(self),
            kept_rejections=max(1, min(KEPT_REJECTIONS, int(kept))),
            unit=min(1.0, settings.retry.first_backoff),
        )
        self.intake = Intake(
            self.accumulator,
            self.lifetime,
            doorbell=self._ring,
            spills=self._spills,
            is_here=self._is_ours,
            buffer_limit=settings.buffer_limit,
            max_block=settings.max_block,
            overflow=settings.overflow,
        )
        dispatcher = Dispatcher(
            self.accumulator,
            throttle,
            settings.retry,
            Concurrency(settings.max_in_flight),
            pulse or Pulse(),
        )
        self.state = DeliveryState(self.accumulator, dispatcher, self.intake)
        self.sender = Sender(self.state, service)
        self.starts = RunStarts(
            self.state,
            RunCreator(service),
            settings.retry,
            tokens,
            OpenRuns(lambda run_id, is_open: None) if open_runs is None else open_runs,
        )
        self.keeper: SpoolKeeper | None = None
        self.leftovers = Leftovers(self.state, self.starts)
        self._waiters = self.state.waiters
        self.thread: LoopThread | None = None
        self._task: asyncio.Task[None] | None = None
        #: Whether the supervisor is cancelled by us, not by code that cancels all tasks.
        self._is_over = False
        #: What ended delivery for good, and when.
        self.crash: BaseException | None = None
        self.crashed_at = 0.0
        self.made_at = time.monotonic()

    # ------------------------------------------------------------------ any thread, any event loop

    async def running(self, doing: Coroutine[Any, Any, T]) -> T:
        """Await *doing* in the delivery thread."""
        if not self.lifetime.is_open or self.thread is None:
            doing.close()
            raise self.lifetime.error()
        try:
            return await self.thread.run(doing)
        except AdpError as error:
            raise outward(error) from error.__cause__
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling() or self.lifetime.is_open:
                raise
        raise self.lifetime.error()

    @property
    def trouble(self) -> AdpError | None:
        """What holds all records back, or keeps runs from being created; None without it."""
        return self.starts.trouble or self.sender.trouble

    def _ring(self) -> None:
        """Wake the delivery thread.  From anywhere."""
        if self.thread is not None:  # pragma: no branch - nobody rings before it is opened
            self.thread.call_soon(self._look)

    def _look(self) -> None:
        if self.intake.is_short and self.keeper is not None:
            self.keeper.commit_early()
        self.sender.wake()

    def _spills(self) -> bool:
        return self.keeper is not None and self.keeper.failure is None

    def _is_ours(self) -> bool:
        return is_worker_here() or (self.thread is not None and self.thread.is_here)

    # ------------------------------------------------------------------ in the delivery thread

    async def flush(self, run_id: str | None) -> None:
        """Wait until all accepted records are settled; raises what was refused."""
        await self.settled(run_id)
        if (refused := self._refused(run_id)) is not None:
            raise refused

    async def settled(self, run_id: str | None) -> None:
        """The same, but raises nothing that was refused."""
        busy = self.state.skip_linger(run_id, time.monotonic())
        self.sender.wake()
        await self._waiters.lanes_settled(busy)

    async def drain(self) -> None:
        """Wait until the buffer is below its high-water mark.  On any event loop."""
        self.lifetime.check()
        if self.intake.is_low():
            await asyncio.sleep(0)
        else:
            await self.running(self.intake.below_high_water())

    def discard(self, run_id: str) -> int:
        """Give up a run's waiting records; returns how many.  From any thread."""
        self.lifetime.check()
        if self.thread is None or self.thread.is_here:
            return self._discard(run_id)

        async def discard() -> int:
            return self._discard(run_id)

        return self.thread.wait(discard())

    def _discard(self, run_id: str) -> int:
        now = time.monotonic()
        self.state.pull(now)
        lane = self.intake.lane(run_id)
        with self.intake.lock:
            count = discard(self.accumulator, lane, now, discarded(run_id, lane.unsettled))
        self.state.hand_on()
        self.sender.wake()
        return count

    def _refused(self, run_id: str | None = None) -> DeliveryError | None:
        """What was refused and not yet reported, which it is now."""
        run_id = None if run_id is None else self.intake.lane(run_id).run_id
        rejections, rejected = self.accumulator.rejections.take(run_id)
        return delivery_error(rejections, rejected=rejected) if rejected else None

    # ------------------------------------------------------------------ lifetime

    async def open(
        self, thread: LoopThread, spool: Spool | None = None, *, is_recovery: bool = False
    ) -> None:
        """Accept and send from now on; *spool* outlives the process.  In the delivery thread.

        *is_recovery*: what the spool holds is what there is to deliver; nothing is accepted.
        """
        self.thread = thread
        if spool is not None:
            self.keeper = self._keep(spool)
        if is_recovery:
            assert self.keeper is not None
            for lane in self.accumulator.lanes.values():
                self.keeper.journal.restored(lane)
        else:
            self.lifetime.open()
            self.intake.inbox.gate = 0
        self._task = asyncio.create_task(self._supervise(), name="adp_async sender")

    def _keep(self, spool: Spool) -> SpoolKeeper:
        from adp_async._io.keeper import SpoolKeeper

        keeper = SpoolKeeper(
            state=self.state,
            spool=spool,
            interval=self.settings.spool_interval,
            memory_limit=self.settings.buffer_limit,
        )
        self.sender.keeper = keeper
        return keeper

    async def begin_run(
        self, start: RunStart, *, may_exist: bool, trouble: AdpError | None
    ) -> Started:
        """A run starts without the service, see `RunStarts.begin`; it is on disk afterwards."""
        started = self.starts.begin(start, may_exist=may_exist, trouble=trouble)
        await self.write_down(LONGEST_COMMIT)
        return started

    async def end_run(self, key: str, status: EndStatus, end_time: int) -> Started:
        """A run ended so, see `RunStarts.end`; that, and its records, are on disk afterwards."""
        self.state.pull(time.monotonic())
        started = self.starts.end(key, status, end_time)
        await self.write_down(LONGEST_COMMIT)
        return started

    async def write_down(self, seconds: float) -> bool:
        """Commit now, for at most so many *seconds*; whether all is on disk.

        A disk that hangs goes on with the commit in its own time.
        """
        if self.keeper is None:
            return False
        try:
            async with asyncio.timeout(seconds):
                await self.keeper.commit()
        except TimeoutError:
            return False
        return self.keeper.failure is None

    def bar(self, run_ids: frozenset[str] | None) -> None:
        """Hold the params and tags of these runs; None: of all runs."""
        self.accumulator.bar(run_ids, time.monotonic())
        self.sender.wake()

    async def something_settled(self, seconds: float) -> None:
        """Wait until any record is settled, for at most *seconds*."""
        try:
            async with asyncio.timeout(seconds):
                await self._waiters.something_settled()
        except TimeoutError:
            return

    async def stop(self, seconds: float) -> None:
        """Stop, and leave what is not settled in the spool."""
        task, self._task = self._task, None
        self._is_over = True
        assert task is not None
        assert self.keeper is not None
        task.cancel()
        await asyncio.wait([task])
        await self.starts.stop()
        await self.keeper.close(seconds, is_needed=bool(self.starts.pending))

    async def _supervise(self) -> None:
        """Run the sender, and the keeper of the spool beside it; start them again when they end.

        Whatever ends them but `close` is a mistake of ours, or of foreign code that they call: a
        handler of the log, a task that was cancelled.
        """
        crashes: list[float] = []
        while True:
            keeping = [self.keeper.run()] if self.keeper is not None else []
            ended = await first_end([self.sender.run(), *keeping])
            if self._is_over or (self.thread is not None and self.thread.is_ending):
                return
            now = time.monotonic()
            crashes = [*(each for each in crashes if each > now - CRASH_TIME), now]
            if len(crashes) > MOST_CRASHES:
                break
            logger.error("delivery ended unexpectedly and starts again: %s", _named(ended))
        self.crash, self.crashed_at = ended, now
        self._shut(Why.CRASHED, f" with {type(ended).__name__}")
        await self._abandon(LAST_COMMIT)
        self._waiters.nothing_left()
        logger.error("the sender crashed; no more records will be delivered", exc_info=ended)

    async def close(self, timeout: float, why: Why = Why.CLOSED) -> None:
        """Accept nothing more, deliver for at most *timeout* seconds, account for the rest.

        Raises `DeliveryError` when records were refused and not yet reported, or could not be
        delivered in time.  In the delivery thread.
        """
        task, self._task = self._task, None
        if task is None:
            return
        ends_at = time.monotonic() + timeout
        self._shut(why)
        if why is Why.CLOSED:
            self.starts.hand_on()
        has_keeper = self.keeper is not None
        try:
            async with asyncio.timeout(timeout * (1.0 - LAST_COMMIT * has_keeper)):
                await self._deliver_all()
        except TimeoutError:
            logger.debug("time ran out while closing; %d left", self.accumulator.unsettled)
        finally:
            self._is_over = True
            task.cancel()
            await asyncio.wait([task])
            await self.starts.stop()
            # Both together, however long the disk takes for the first.
            ends_at = max(ends_at, time.monotonic() + SHORTEST_COMMIT)
            await self._abandon(ends_at - time.monotonic())
            if self.keeper is not None:
                is_needed = bool(self.starts.pending)
                left = max(SHORTEST_CLOSE, ends_at - time.monotonic())
                await self.keeper.close(left, is_needed=is_needed)
        self._raise_end()

    async def _deliver_all(self) -> None:
        self.state.skip_linger(None, time.monotonic())
        self.sender.wake()
        if self.crash is None:
            if self.accumulator.unsettled:
                await self._waiters.all_settled()
            await self.starts.all_done()

    def _raise_end(self) -> None:
        refused = self._refused()
        error = self.leftovers.error(refused)
        if error is not None and error is not refused:
            raise error from self._cause()
        if refused is not None:
            raise refused

    def _cause(self) -> BaseException | None:
        return self.crash or self.starts.trouble or self.sender.trouble

    async def _abandon(self, seconds: float) -> None:
        """Deliver nothing more: write down the undelivered records, and wake the waiters."""
        self.state.pull(time.monotonic())
        left = self.accumulator.unsettled
        is_on_disk = False
        try:
            is_on_disk = self.keeper is not None and await self.keeper.commit_last(seconds)
        finally:
            self.leftovers.account_for(self._cause(), is_on_disk=is_on_disk)
        if is_on_disk:
            assert self.keeper is not None
            self.leftovers.warn(left, self.keeper.spool.path)

    def _shut(self, why: Why, detail: str = "") -> None:
        """Accept nothing more.  From any thread."""
        self.lifetime.close(why, detail)
        self.intake.close_gate()

    def forked(self) -> None:
        """In a forked child: everything here belongs to the parent, which will send it."""
        self.lifetime.close(Why.FORKED)
        self.intake.forked()
        self.starts.forked()
        # Nothing is written or logged on the parent's behalf.
        self.thread = self._task = self.keeper = None


def _named(error: BaseException) -> str:
    return f"{type(error).__name__} ({error})" if str(error) else type(error).__name__
