"""Sends what the dispatcher hands out, and reports the outcome to it.

The sender is handed a `Service` of two methods, and never sees the session.  It runs as one task
of the delivery thread, with a task for every batch in flight.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import TYPE_CHECKING, Final, Protocol

from attrs import define, field

from adp_async._io.log import logger
from adp_async._io.observing import WatchedBatch
from adp_async._sansio.actions import Action, action_for
from adp_async._sansio.dispatch import Fault, fault_of
from adp_async._sansio.endpoints import LOG_BATCH
from adp_async._sansio.texts import counted
from adp_async.errors import AdpError, Forbidden, NotAuthenticated
from adp_async.instrumentation import watching

if TYPE_CHECKING:
    from collections.abc import Callable

    from adp_async._io.keeper import SpoolKeeper
    from adp_async._io.state import DeliveryState
    from adp_async._sansio.batch import RecordBatch
    from adp_async._sansio.dispatch import Dispatcher
    from adp_async._sansio.lane import Lane

#: Seconds until a batch that could not leave is retried.
SECONDS_UNTIL_NEXT_TRY: Final = 1.0


class Service(Protocol):
    """What the sender needs of the service.  Both raise `AdpError`."""

    async def post_batch(self, body: bytes, retry_token: str) -> None:
        """One attempt of one log-batch request: signed, sent, read."""

    async def run_is_gone(self, run_id: str) -> bool:
        """Whether the run cannot take records at all: it is deleted, or does not exist."""


class NotYet(AdpError):
    """The batch must not leave before something else is done: it keeps its turn."""


@define(eq=False, repr=False)
class Sender:
    """Sends what is ready, and hands on what became of it."""

    state: DeliveryState
    service: Service
    clock: Callable[[], float] = time.monotonic
    jitter: Callable[[], float] = random.random
    #: Writes down what must be on disk before a batch leaves; None without a spool.
    keeper: SpoolKeeper | None = None
    requests: int = field(default=0, init=False)
    #: The trouble of all runs that was logged last; and runs with one of their own.
    _told: type[AdpError] | None = field(default=None, init=False)
    _held_runs: int = field(default=0, init=False)
    _posts: set[asyncio.Task[None]] = field(factory=set, init=False)
    #: Batches without an answer yet; also those whose task was cancelled before its first step.
    _under_way: set[RecordBatch] = field(factory=set, init=False)

    @property
    def dispatcher(self) -> Dispatcher:
        return self.state.dispatcher

    @property
    def retries(self) -> int:
        return self.dispatcher.retries

    @property
    def trouble(self) -> AdpError | None:
        """Why the last batch without a verdict has none; None when all is well."""
        return self.dispatcher.trouble

    def wake(self) -> None:
        """Look again now.  For the delivery thread."""
        self.state.sender_wakes.set()

    async def run(self) -> None:
        """Send until cancelled.  Raises only for a mistake of ours."""
        try:
            while True:
                self.state.sender_wakes.clear()
                now = self.clock()
                self.state.pull(now, leave_excess=True)
                with self.state.intake.lock:
                    batches = self.dispatcher.drain(now)
                self.state.hand_on()
                for batch in batches:
                    self._start(batch)
                await self._sleep(self.dispatcher.next_look(now))
                self._raise_crash()
        except GeneratorExit:
            raise  # its loop was closed, and nothing can be awaited any more
        except BaseException:
            await self._stop()
            raise

    async def _sleep(self, until: float) -> None:
        if until <= self.clock():
            await asyncio.sleep(0)
            return
        timer: asyncio.TimerHandle | None = None
        if until != float("inf"):
            delay = until - self.clock()
            timer = asyncio.get_running_loop().call_later(delay, self.wake)
        try:
            await self.state.sender_wakes.wait()
        finally:
            if timer is not None:
                timer.cancel()

    def _start(self, batch: RecordBatch) -> None:
        self._under_way.add(batch)
        task = asyncio.create_task(self._deliver(batch), name=f"adp_async batch {batch.run_id}")
        self._posts.add(task)

    def _raise_crash(self) -> None:
        done = [task for task in self._posts if task.done()]
        self._posts.difference_update(done)
        for task in done:
            task.result()

    async def _stop(self) -> None:
        for task in self._posts:
            task.cancel()
        await asyncio.gather(*self._posts, return_exceptions=True)
        self._posts.clear()
        # Their outcome is unknown: they wait again.
        for batch in list(self._under_way):
            self._put_back(batch, self.clock())

    async def _deliver(self, batch: RecordBatch) -> None:
        try:
            try:
                if self.keeper is not None:
                    await self.keeper.before_departure(batch)
            except Exception as obstacle:
                self._stays(batch, obstacle)
                return
            self.requests += 1
            error, action = await self._ask(batch)
            is_visible = await self._is_visible(batch, error)
            self._under_way.discard(batch)
            self._judge(batch, error, action, is_visible=is_visible)
        finally:
            self.wake()

    def _stays(self, batch: RecordBatch, error: Exception) -> None:
        if not isinstance(error, NotYet):
            name = type(error).__name__
            message, about = "run %s: a batch could not leave: %s", {"run_id": batch.run_id}
            logger.warning(message, batch.run_id, name, exc_info=True, extra=about)
        self._put_back(batch, self.clock() + SECONDS_UNTIL_NEXT_TRY)

    def _put_back(self, batch: RecordBatch, not_before: float) -> None:
        self._under_way.discard(batch)
        with self.state.intake.lock:
            self.dispatcher.stays(batch, not_before, self.clock())

    async def _ask(self, batch: RecordBatch) -> tuple[AdpError | None, Action]:
        try:
            await self.service.post_batch(batch.body, batch.retry_token)
        except AdpError as error:
            action = action_for(error)
            if fault_of(error) is Fault.RUN:
                self._learn(batch)  # an answer as fast as any
            if action is Action.SPLIT:
                return await self._look_at_run(batch, error)
            return error, action
        except BaseException as error:
            if _is_our_end(error):
                raise
            # An error of a signer, an encoder or a library holds this batch only, and for now.
            message, about = "run %s: a batch could not be sent", {"run_id": batch.run_id}
            logger.debug(message, batch.run_id, exc_info=True, extra=about)
            failure = AdpError(f"the request could not be sent: {type(error).__name__}")
            return failure, Action.BACK_OFF
        self._learn(batch)
        return None, Action.DELIVERED

    def _learn(self, batch: RecordBatch) -> None:
        """Learn how many batches in flight pay off, while more are ready than allowed."""
        now = self.clock()
        deadline = self.state.accumulator.next_deadline()
        others_wait = deadline is not None and deadline <= now
        if others_wait and not self.dispatcher.throttle.is_paced:
            self.dispatcher.concurrency.landed(len(batch.records), now)
        else:
            self.dispatcher.concurrency.paused()

    async def _is_visible(self, batch: RecordBatch, error: AdpError | None) -> bool:
        """Whether the service shows the run, which distinguishes a bad record from an outage."""
        if error is None or not self.dispatcher.doubts(batch, error):
            return False
        try:
            return not await self.service.run_is_gone(batch.run_id)
        except AdpError as trouble:
            _log_unseen(batch, trouble)
            return False

    async def _look_at_run(self, batch: RecordBatch, error: AdpError) -> tuple[AdpError, Action]:
        """Whether the run itself cannot take records, so that no bad one has to be found."""
        if len(batch.records) == 1 or not batch.is_whole:
            return error, Action.SPLIT
        try:
            is_gone = await self.service.run_is_gone(batch.run_id)
        except AdpError as trouble:
            _log_unseen(batch, trouble)
            # Nothing is decided while the service can't be asked.
            return (trouble, Action.BACK_OFF) if trouble.retriable else (error, Action.SPLIT)
        return error, Action.GIVE_UP if is_gone else Action.SPLIT

    def _judge(
        self, batch: RecordBatch, error: AdpError | None, action: Action, *, is_visible: bool
    ) -> None:
        watched = WatchedBatch(batch) if watching.on_batch_settled else None
        with self.state.intake.lock:
            held = self.dispatcher.answered(
                batch, error, action, self.clock(), jitter=self.jitter(), is_visible=is_visible
            )
        self.state.hand_on()
        if watched is not None:
            watched.tell(self.clock())
        about = {"run_id": batch.run_id, "operation": LOG_BATCH.operation}
        message = "run %s: a batch of %d: %s"
        logger.debug(message, batch.run_id, len(batch.records), action.name, extra=about)
        if error is None:
            self._all_clear(batch.lane)
        elif held is not None:
            is_hint = isinstance(error, NotAuthenticated | Forbidden)
            hint = " (check the credentials)" if is_hint else ""
            if held is Fault.RUN:
                self._warn_held(batch.lane, error, hint)
            else:
                self._warn(error, hint)
        self._warn_refused(batch.lane)

    # Warnings

    def _warn(self, error: AdpError, hint: str) -> None:
        """One WARNING for lasting trouble, not one for each batch."""
        is_news = self._told is not type(error)
        self._told = type(error)
        if is_news:
            logger.warning("batches are held back and will be sent again: %s%s", error, hint)

    def _warn_held(self, lane: Lane, error: AdpError, hint: str) -> None:
        """One for each run in trouble of its own; with many of them for the 1st, 10th, 100th."""
        if lane.told is None:
            self._held_runs += 1
            if len(str(self._held_runs)) > len(str(self._held_runs - 1)) or self._held_runs == 1:
                message = (
                    "run %s: its records are held back and will be sent again: %s%s "
                    "(%s so far; `run.discard()` gives up its records, and "
                    "`adp-async sync --discard` those of an earlier process)"
                )
                about = {"run_id": lane.run_id}
                runs = counted(self._held_runs, "such run")
                logger.warning(message, lane.run_id, error, hint, runs, extra=about)
                lane.is_alarmed = True
        lane.told = type(error)

    def _all_clear(self, lane: Lane) -> None:
        if self._told is not None:
            self._told = None
            # At the level of the alarm: otherwise it would never end for most of those it reaches.
            logger.warning("batches are delivered again")
        if lane.told is not None:
            level = logging.WARNING if lane.is_alarmed else logging.INFO
            lane.told, lane.is_alarmed = None, False
            message, about = "run %s: its records are delivered again", {"run_id": lane.run_id}
            logger.log(level, message, lane.run_id, extra=about)

    def _warn_refused(self, lane: Lane) -> None:
        """A WARNING for a run's first refused record, its tenth, its hundredth, ..."""
        count, before = lane.refused_count, lane.told_refused
        last = lane.last_refused
        if last is None or count == before:
            return
        lane.told_refused = count
        if not before or len(str(count)) > len(str(before)):
            name = f"{last.kind} {last.key!r}"
            message = "run %s: %s refused so far, the last one %s: %s"
            about, refused = {"run_id": lane.run_id}, counted(count, "record")
            logger.warning(message, lane.run_id, refused, name, last.cause, extra=about)


def _log_unseen(batch: RecordBatch, trouble: AdpError) -> None:
    about = {"run_id": batch.run_id}
    logger.debug("run %s could not be looked at: %s", batch.run_id, trouble, extra=about)


def _is_our_end(error: BaseException) -> bool:
    """Whether *error* ends this task, or its loop; anything else was raised by foreign code."""
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is None or task.cancelling() > 0
    return isinstance(error, GeneratorExit)
