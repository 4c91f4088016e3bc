"""Drains the accumulator: which batch leaves when, and what its answer means.

The sender is handed two callables, `post` and `run_is_gone`, and never sees the session.  It runs
as one task of the session's own, with a task for every batch in flight.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Final, Protocol

from attrs import define, field

from adp_async._sansio.concurrency import Concurrency
from adp_async._sansio.verdicts import Action, action_for
from adp_async.errors import AdpError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from adp_async._sansio.accumulator import Accumulator
    from adp_async._sansio.lane import RecordBatch
    from adp_async._sansio.retry import RetryPolicy
    from adp_async._sansio.throttle import Throttle

logger = logging.getLogger("adp_async")

#: Seconds between two looks at what came while nothing can leave, however short the linger.
SHORTEST_PAUSE: Final = 0.01


class Post(Protocol):
    """One attempt of one log-batch request: signed, sent, read.  Raises `AdpError`."""

    def __call__(self, body: bytes, retry_token: str) -> Awaitable[object]: ...


@define(eq=False, repr=False)
class Sender:
    """Sends what is ready, at most *max_in_flight* batches at once.

    *take_in* fetches the records that callers have left since the last look.
    """

    accumulator: Accumulator
    throttle: Throttle
    policy: RetryPolicy
    post: Post
    run_is_gone: Callable[[str], Awaitable[bool]]
    take_in: Callable[[float], None]
    clock: Callable[[], float]
    max_in_flight: int = 4
    #: Awaited before a batch leaves: a spool has to write down that it does.
    before_departure: Callable[[RecordBatch], Awaitable[None]] | None = None
    jitter: Callable[[], float] = random.random
    requests: int = field(default=0, init=False)
    retries: int = field(default=0, init=False)
    #: Why the last batch without a verdict has none; None when all is well.
    trouble: AdpError | None = field(default=None, init=False)
    _concurrency: Concurrency = field(init=False)
    _failures: int = field(default=0, init=False)
    _resume_at: float = field(default=0.0, init=False)
    _wake: asyncio.Event = field(factory=asyncio.Event, init=False)
    _posts: set[asyncio.Task[None]] = field(factory=set, init=False)
    #: Batches without an answer yet; also those whose task was cancelled before its first step.
    _under_way: set[RecordBatch] = field(factory=set, init=False)

    def __attrs_post_init__(self) -> None:
        self._concurrency = Concurrency(self.max_in_flight)

    def wake(self) -> None:
        """Look again now.  For the loop's own thread."""
        self._wake.set()

    async def run(self) -> None:
        """Send until cancelled.  Raises what no delivery should: a mistake of ours."""
        try:
            while True:
                self._wake.clear()
                now = self.clock()
                self.take_in(now)
                for batch in self.accumulator.drain(now, self._room(now)):
                    self._start(batch)
                await self._sleep(self._next_look(now))
                self._raise_crash()
        except GeneratorExit:
            raise  # its loop was closed, and nothing can be awaited any more
        except BaseException:
            await self._stop()
            raise

    def _room(self, now: float) -> int:
        """How many batches may leave now.  The later one leaves, the fuller it is."""
        if self._waits_until(now) > now:
            return 0
        room = self._concurrency.limit - self.accumulator.batches_in_flight
        if self._failures:
            # One batch finds out whether the service is back.
            return 1 if self.accumulator.batches_in_flight == 0 else 0
        return min(room, 1) if self.throttle.is_paced else room

    def _waits_until(self, now: float) -> float:
        return max(now + self.throttle.delay(now), self._resume_at)

    def _next_look(self, now: float) -> float:
        """When there may be something to do, if nothing happens before."""
        # Records that came since are not seen yet, and must not wait for longer than a linger.
        pause = max(self.accumulator.linger, SHORTEST_PAUSE)
        look = now + pause if self.accumulator.unsettled else float("inf")
        if self._room(now) > 0 or self._waits_until(now) > now:
            deadline = self.accumulator.next_deadline()
            if deadline is not None:
                look = min(look, max(deadline, self._waits_until(now)))
        return look

    async def _sleep(self, until: float) -> None:
        if until <= self.clock():
            await asyncio.sleep(0)
            return
        timer: asyncio.TimerHandle | None = None
        if until != float("inf"):
            delay = until - self.clock()
            timer = asyncio.get_running_loop().call_later(delay, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            if timer is not None:
                timer.cancel()

    def _start(self, batch: RecordBatch) -> None:
        task = asyncio.create_task(self._deliver(batch), name=f"adp_async batch {batch.run_id}")
        self._posts.add(task)
        self._under_way.add(batch)

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
        # Nobody knows what became of them: they wait again.
        for batch in self._under_way:
            self.accumulator.retry_later(batch, self.clock(), self.clock())
        self._under_way.clear()

    async def _deliver(self, batch: RecordBatch) -> None:
        try:
            if self.before_departure is not None:
                await self.before_departure(batch)
            self.requests += 1
            error, action = await self._ask(batch)
            self._under_way.discard(batch)
            self._judge(batch, error, action)
        finally:
            self.wake()

    async def _ask(self, batch: RecordBatch) -> tuple[AdpError | None, Action]:
        try:
            await self.post(batch.body, batch.retry_token)
        except AdpError as error:
            action = action_for(error, batch.run_id)
            if action is Action.SPLIT:
                return await self._look_at_run(batch, error)
            return error, action
        self._learn(batch)
        return None, Action.DELIVERED

    def _learn(self, batch: RecordBatch) -> None:
        """How many under way are worth it: that shows while more could leave than may."""
        now = self.clock()
        deadline = self.accumulator.next_deadline()
        others_wait = deadline is not None and deadline <= now
        if others_wait and not self.throttle.is_paced:
            self._concurrency.landed(len(batch.records), now)
        else:
            self._concurrency.paused()

    def _succeeded(self, batch: RecordBatch) -> None:
        if self.trouble is not None:
            logger.info("batches are delivered again")
        self._failures = 0
        self._resume_at = 0.0
        self.trouble = None
        self.accumulator.succeed(batch, self.clock())
        logger.debug("run %s: delivered a batch of %d", batch.run_id, len(batch.records))

    def _judge(self, batch: RecordBatch, error: AdpError | None, action: Action) -> None:
        if error is None or action is Action.DELIVERED:
            self._succeeded(batch)
            return
        logger.debug("run %s: a batch of %d: %s", batch.run_id, len(batch.records), action.name)
        now = self.clock()
        refused_before = batch.lane.refused_count
        match action:
            case Action.WAIT_TURN:
                self.retries += 1
                self.accumulator.retry_later(batch, now, now)
            case Action.BACK_OFF | Action.HOLD:
                self._back_off(batch, error, action, now)
            case Action.RENEW_TOKEN:
                self.retries += 1
                self.accumulator.renew(batch, now)
            case Action.HALVE:
                self._judged()
                self.accumulator.too_large(batch, error, now)
            case Action.SPLIT:
                self._judged()
                self.accumulator.refuse(batch, error, now)
            case Action.GIVE_UP:
                self._judged()
                self.accumulator.give_up(batch, error, now)
        self._tell_refused(batch, error, refused_before)

    def _judged(self) -> None:
        """A verdict is an answer too: the service is there."""
        self._failures = 0
        self._resume_at = 0.0

    def _back_off(self, batch: RecordBatch, error: AdpError, action: Action, now: float) -> None:
        self.retries += 1
        self._failures += 1
        attempts = batch.lane.failures + 1
        retry_after = getattr(error, "retry_after", None) or 0.0
        delay = self.policy.delay(attempts, jitter=self.jitter(), retry_after=retry_after)
        self.accumulator.retry_later(batch, now + delay, now)
        # One failure may be that batch's own; a second tells that others would fail as well.
        if self._failures > 1:
            shared = self.policy.delay(self._failures - 1, jitter=self.jitter())
            self._resume_at = max(self._resume_at, now + shared)
        self._tell(error, action)

    def _tell(self, error: AdpError, action: Action) -> None:
        """One WARNING for a trouble that lasts, not one for each batch."""
        is_news = self.trouble is None or type(self.trouble) is not type(error)
        self.trouble = error
        if is_news:
            hint = " (check the credentials)" if action is Action.HOLD else ""
            logger.warning("batches are held back and will be sent again: %s%s", error, hint)

    async def _look_at_run(self, batch: RecordBatch, error: AdpError) -> tuple[AdpError, Action]:
        """Whether it is the run itself that takes no records; then no record has to be found."""
        if len(batch.records) == 1 or not batch.is_whole:
            return error, Action.SPLIT
        try:
            is_gone = await self.run_is_gone(batch.run_id)
        except AdpError as trouble:
            logger.debug("run %s could not be looked at: %s", batch.run_id, trouble)
            # Nothing is decided while the service can't be asked.
            return (trouble, Action.BACK_OFF) if trouble.retriable else (error, Action.SPLIT)
        return error, Action.GIVE_UP if is_gone else Action.SPLIT

    def _tell_refused(self, batch: RecordBatch, error: AdpError, before: int) -> None:
        """A WARNING for a run's first refused record, its tenth, its hundredth, ..."""
        count = batch.lane.refused_count
        if count > before and (not before or len(str(count)) > len(str(before))):
            last = batch.lane.refused[-1]
            name = f"{last.kind} {last.key!r}"
            message = "run %s: %d records refused so far, the last one %s: %s"
            logger.warning(message, batch.run_id, count, name, error)
