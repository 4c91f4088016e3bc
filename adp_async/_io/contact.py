"""Whether the service can be reached, for runs that wait for it: asked one at a time.

One attempt finds out for all of them; after one that failed there is the usual back-off, which is
cut short when somebody waits.  What the service says of one run holds up that run alone.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Final, TypeVar

from attrs import define, field

from adp_async._io.log import logger
from adp_async._sansio.run_start import is_its_own, patience
from adp_async.errors import AdpError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from adp_async._sansio.lane import Lane
    from adp_async._sansio.retry import RetryPolicy
    from adp_async._sansio.run_start import RunStart
    from adp_async.entities.runs import RunInfo

T = TypeVar("T")

#: So often the service must have refused a run before that stops waiting for it.
REFUSALS: Final = 3
#: Seconds between two attempts, whoever waits.
SHORTEST_PAUSE: Final = 1.0


@define(eq=False)
class Started:
    """A run that is not created yet, or has to be ended here."""

    start: RunStart
    lane: Lane
    #: A create may have taken effect that nobody heard of.
    may_exist: bool
    #: Whether it may have been taken up, or ended, by somebody else.
    is_left_behind: bool = False
    #: What the service says of it; None until it was created here.
    info: RunInfo | None = None
    #: Why it is not created, or not ended, yet; how often the service has refused that.
    trouble: AdpError | None = None
    refusals: int = 0
    #: Nothing is left to be done.
    is_finished: bool = False
    #: For those who wait: they are set as well when nothing more is done.
    created: asyncio.Event = field(factory=asyncio.Event, init=False)
    has_end: asyncio.Event = field(factory=asyncio.Event, init=False)
    done: asyncio.Event = field(factory=asyncio.Event, init=False)
    task: asyncio.Task[None] | None = field(default=None, init=False)

    @property
    def is_pending(self) -> bool:
        """Whether something is still to be done, without which nothing may end."""
        is_running = self.lane.is_created and self.start.end is None
        return not (self.is_finished or (is_running and not self.start.is_handed_on))

    @property
    def is_stuck(self) -> bool:
        """Whether there is no hope that waiting helps."""
        return self.refusals >= REFUSALS or (self.lane.is_created and self.lane.is_stuck)


@define(eq=False, repr=False)
class Contact:
    """Asks for one run after the other, as often as it takes.

    *trouble*: why nothing can be asked at the moment, and *failing_since* when; None when all is
    well.  *has_journal* says whether a run that waits outlives the process.
    """

    policy: RetryPolicy
    has_journal: Callable[[], bool]
    trouble: AdpError | None = field(default=None, init=False)
    failing_since: float | None = field(default=None, init=False)
    #: Held by the one that asks.
    _turn: asyncio.Lock = field(factory=asyncio.Lock, init=False)
    _failures: int = field(default=0, init=False)
    _not_before: float = field(default=0.0, init=False)
    #: When the service was asked last; set when somebody cannot wait for the next time.
    _asked_at: float = field(default=float("-inf"), init=False)
    _hurries: asyncio.Event = field(factory=asyncio.Event, init=False)
    _is_told: bool = field(default=False, init=False)

    async def asked(self, started: Started, ask: Callable[[], Awaitable[T]]) -> T:
        """What the service answers, however long it takes until it does."""
        while True:
            async with self._turn:
                # One of them finds out whether the service is there; the others wait for that.
                await self._back_off()
                self._asked_at = time.monotonic()
                try:
                    answer = await ask()
                except AdpError as error:
                    pause = self._failed(started, error)
                else:
                    self._answered(started)
                    return answer
            await asyncio.sleep(pause)

    async def _back_off(self) -> None:
        """Until the service may be asked again, or somebody cannot wait for that."""
        self._hurries.clear()
        left = self._not_before - time.monotonic()
        if left > 0.0:
            try:
                async with asyncio.timeout(left):
                    await self._hurries.wait()
            except TimeoutError:
                return

    def hurry(self) -> None:
        """Somebody waits: ask now rather than when the back-off is over, but not without end."""
        if time.monotonic() - self._asked_at >= SHORTEST_PAUSE:
            self._hurries.set()

    def _failed(self, started: Started, error: AdpError) -> float:
        """Seconds until that run is asked for again, for reasons of its own."""
        started.trouble = error
        jitter = random.random()  # noqa: S311
        if is_its_own(error):
            started.refusals += 1
            if started.refusals == 1:
                message = "%s: the service refuses it, and will be asked again: %s"
                logger.warning(message, started.start, error, extra=about(started.start))
            return patience(self.policy, started.refusals, jitter=jitter)
        self._failures += 1
        retry_after = getattr(error, "retry_after", None) or 0.0
        delay = self.policy.delay(self._failures, jitter=jitter, retry_after=retry_after)
        self._not_before = time.monotonic() + delay
        self.warn(started, error)
        return 0.0

    def warn(self, started: Started, error: AdpError) -> None:
        """One WARNING for lasting trouble, not one for each run."""
        self.trouble = error
        if self.failing_since is None:
            self.failing_since = time.monotonic()
        if self._is_told:
            return
        self._is_told = True
        start, fields = started.start, about(started.start)
        if started.lane.is_created:
            logger.warning("%s cannot be ended yet, and will be: %s", start, error, extra=fields)
        elif started.is_left_behind:
            logger.warning("%s cannot be created yet, and will be: %s", start, error, extra=fields)
        else:
            where = "on disk"
            if not self.has_journal():
                where = "in memory only, since there is no spool"
            message = (
                "%s starts offline, its records wait %s, and it is created when the service "
                "answers: %s"
            )
            logger.warning(message, start, where, error, extra=fields)

    def _answered(self, started: Started) -> None:
        started.trouble = self.trouble = self.failing_since = None
        started.refusals = self._failures = 0
        self._not_before = 0.0

    def all_clear(self, start: RunStart, run_id: str) -> None:
        was_told, self._is_told = self._is_told, False
        message, fields = "%s: it is created now, as run %s", {"run_id": run_id}
        if was_told:
            logger.warning(message, start, run_id, extra=fields)
        else:
            logger.info(message, start, run_id, extra=fields)


def about(start: RunStart) -> dict[str, str]:
    """What a log line about it has as fields."""
    return {"run_id": start.run_id or start.key}
