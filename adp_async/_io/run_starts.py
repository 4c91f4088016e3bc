"""The runs that this process has started: created late if need be, and ended.

A run whose creation the service did not answer has started all the same.  Here it is created, one
attempt at a time for all such runs, with the usual back-off; then its lane gets the name that the
service has for it, and its records leave.  A run whose end could not be told is ended here, once
its records are settled.  `adp_async._sansio.run_start` has the rules.

What is known of each is in the journal, and leaves it when the run has ended.  All of this belongs
to the delivery thread.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING

from attrs import define, evolve, field

from adp_async._io.contact import Contact, Started, about
from adp_async._io.log import logger
from adp_async._sansio.accumulator import name
from adp_async._sansio.run_start import Ask, RunStart, next_ask
from adp_async.errors import AdpError, Conflict, DeliveryError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adp_async._io.open_runs import OpenRuns
    from adp_async._io.run_creator import RunCreator
    from adp_async._io.state import DeliveryState
    from adp_async._sansio.lane import Lane
    from adp_async._sansio.retry import RetryPolicy
    from adp_async._sansio.statuses import EndStatus
    from adp_async.entities.runs import RunInfo


@define(eq=False, repr=False)
class RunStarts:
    """Creates runs, and ends them.

    *creator* asks the service; *tokens* makes retry tokens; *open_runs* are those of this session,
    which it ends itself.
    """

    state: DeliveryState
    creator: RunCreator
    policy: RetryPolicy
    tokens: Iterator[str]
    open_runs: OpenRuns
    #: When the service is asked.
    contact: Contact = field(init=False)
    #: Runs that were not created when the session ended, and are in no spool.
    lost: list[RunStart] = field(factory=list, init=False)
    _started: dict[str, Started] = field(factory=dict, init=False)
    #: Keys of runs that were created at once, and have not ended.
    _running: set[str] = field(factory=set, init=False)
    _changed: asyncio.Event = field(factory=asyncio.Event, init=False)
    _is_stopped: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.contact = Contact(self.policy, lambda: self.state.journal is not None)

    @property
    def trouble(self) -> AdpError | None:
        """Why nothing can be asked at the moment; None when all is well."""
        return self.contact.trouble

    @property
    def failing_since(self) -> float | None:
        """Since when that is."""
        return self.contact.failing_since

    @property
    def pending(self) -> list[Started]:
        """Runs that are not created yet, or not ended although their end is known."""
        return [each for each in self._started.values() if each.is_pending]

    @property
    def not_created(self) -> list[Started]:
        """Those of them that the service does not have, as far as is known."""
        return [each for each in self.pending if not each.lane.is_created]

    def find(self, run_id: str) -> Started | None:
        """The run with that id, or key, if there is something to do for it."""
        return self._started.get(self.state.intake.lane(run_id).key)

    # ------------------------------------------------------------------ runs come and go

    def began(self, run_id: str) -> None:
        """The service has created, or resumed, a run of this session."""
        self._running.add(run_id)
        self._note(RunStart(run_id, run_id))

    def begin(self, start: RunStart, *, may_exist: bool, trouble: AdpError | None) -> Started:
        """A run starts without the service, for that *trouble* if it was asked."""
        with self.state.intake.lock:
            lane = self.state.accumulator.lane(start.key)
            lane.hold()
        started = Started(start, lane, may_exist, trouble=trouble)
        if trouble is not None:
            self.contact.warn(started, trouble)
        self._note(start)
        self._see_to(started)
        return started

    def restore(self, start: RunStart) -> None:
        """A run of a process that died, whose lane is restored."""
        lane = self.state.intake.lane(start.key)
        self._note(start)  # when it ended, as far as that is known
        self._see_to(Started(start, lane, may_exist=True, is_left_behind=True))

    def end(self, key: str, status: EndStatus, end_time: int) -> Started:
        """The run ended so: it gets that *status* once its records are settled."""
        started = self._started.get(key)
        if started is None:
            start, lane = RunStart(key, key), self.state.intake.lane(key)
            started = Started(start, lane, may_exist=False)
            self._see_to(started)
        if started.start.end is None:
            started.start = started.start.ended(status, end_time)
            self._note(started.start)
            started.has_end.set()
        return started

    def note_end(self, run_id: str, status: EndStatus, end_time: int) -> Started:
        """The same of a run whose end somebody else here tells the service; see `ended`."""
        started = self.find(run_id)
        if started is not None and started.task is not None:
            return self.end(started.start.key, status, end_time)
        if started is None:
            start = RunStart(run_id, run_id).ended(status, end_time)
            started = Started(start, self.state.intake.lane(run_id), may_exist=False)
            self._started[run_id] = started
            self._note(start)
        return started

    def ended(self, run_id: str) -> None:
        """The service was told, by somebody else here, how that run ended."""
        key = self.state.intake.lane(run_id).key
        started = self._started.get(key)
        if started is not None and started.lane.is_created:
            if started.task is not None:
                started.task.cancel()
            self._finish(started)
        elif key in self._running:
            self._forget(key)

    def hand_on(self) -> None:
        """The session closes: what it has not ended is in other hands."""
        for key in list(self._running):
            self._forget(key)
        for started in list(self._started.values()):
            if started.start.end is not None:
                continue
            if started.lane.is_created:
                self._finish(started)
            else:
                started.start = evolve(started.start, is_handed_on=True)
                started.has_end.set()
                self._note(started.start)

    async def created(self, key: str) -> str:
        """Wait until the service has that run; `DeliveryError` when it is stopped before.

        Returns what the service calls it, which is *key* for any run that is not known here.
        """
        if (started := self._started.get(key)) is not None:
            self.contact.hurry()
            await started.created.wait()
            _check(started)
        return self.state.intake.lane(key).run_id

    async def done(self, key: str) -> None:
        """Wait until that run is created, its records are settled, and it has ended."""
        if (started := self._started.get(key)) is not None:
            self.contact.hurry()
            await started.done.wait()
            _check(started)

    async def all_done(self) -> None:
        """Wait until nothing is `pending` that is done here."""
        self.contact.hurry()
        while any(each.task is not None for each in self.pending):
            self._changed.clear()
            await self._changed.wait()

    async def stop(self) -> None:
        """Do nothing more; what is not done is in the journal."""
        self._is_stopped = True
        tasks = [each.task for each in self._started.values() if each.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for started in self._started.values():
            started.created.set()
            started.done.set()

    def forked(self) -> None:
        """In a forked child: they are the parent's."""
        self._started.clear()
        self._running.clear()

    def _note(self, start: RunStart) -> None:
        if self.state.journal is not None:
            self.state.journal.note_start(start)
            self.state.keeper_wakes.set()

    def _forget(self, key: str) -> None:
        self._running.discard(key)
        if self.state.journal is not None:
            self.state.journal.note_ended(key)
            self.state.keeper_wakes.set()

    def _finish(self, started: Started) -> None:
        self._started.pop(started.start.key, None)
        self._forget(started.start.key)
        started.is_finished = True
        started.done.set()
        self._changed.set()

    # ------------------------------------------------------------------ what is done for each

    def _see_to(self, started: Started) -> None:
        self._started[started.start.key] = started
        if started.lane.is_created:
            started.created.set()
        if started.start.end is not None or started.start.is_handed_on:
            started.has_end.set()
        title = f"adp_async {started.start.key}"
        started.task = asyncio.get_running_loop().create_task(self._do(started), name=title)
        started.task.add_done_callback(partial(self._has_ended, started))

    def _has_ended(self, started: Started, task: asyncio.Task[None]) -> None:
        if task.cancelled() and not (self._is_stopped or started.is_finished):
            self._see_to(started)  # it was not us: somebody cancels all tasks

    async def _do(self, started: Started) -> None:
        try:
            if not started.lane.is_created:
                await self._create(started)
            await started.has_end.wait()
            await self._settled(started.lane)
            await self._end(started)
        except AdpError as failure:  # its records were given up as the session ends
            logger.debug("%s: %s", started.start, failure)
        except Exception:
            # A mistake of ours costs this run, and it is still in the journal.
            message = "%s: what was to be done for it failed; it is still on disk"
            logger.exception(message, started.start, extra=about(started.start))
        else:
            self._finish(started)

    async def _create(self, started: Started) -> None:
        parent = self._started.get(started.start.parent or "")
        if parent is not None:
            await parent.created.wait()  # which says what it is called
        info = await self.contact.asked(started, lambda: self._created(started))
        run_id = info.run_id
        start = started.start
        with self.state.intake.lock:
            name(self.state.accumulator, started.lane, run_id, time.monotonic())
        started.info, started.start = info, start.named(run_id)
        self._note(started.start)
        for other in self._started.values():
            below = other.start.below(start.key, run_id)
            if below is not other.start:
                other.start = below
                self._note(below)
        self.open_runs.named(start.key, run_id)
        started.created.set()
        self._changed.set()
        self.state.sender_wakes.set()
        self.contact.all_clear(start, run_id)

    async def _created(self, started: Started) -> RunInfo:
        """What the service says of the run, which it has now."""
        now = time.time()
        ask = next_ask(started.start, may_exist=started.may_exist, now=now)
        if ask is Ask.SEARCH:
            found = await self.creator.find(started.start)
            if found is not None:
                return found
            started.may_exist = False
            ask = next_ask(started.start, may_exist=False, now=now)
        if ask is Ask.RENEW:
            started.start = started.start.renewed(next(self.tokens), now)
            self._note(started.start)
        try:
            return await self.creator.create(started.start)
        except AdpError as error:
            is_spent = isinstance(error, Conflict) and error.code == "InvalidatedRetryToken"
            started.may_exist = started.may_exist or is_spent or error.maybe_applied
            if is_spent:
                started.start = started.start.renewed(next(self.tokens), now)
                self._note(started.start)
            raise
        except asyncio.CancelledError:
            started.may_exist = True
            raise

    async def _settled(self, lane: Lane) -> None:
        self.state.skip_linger(lane.key, time.monotonic())
        self.state.sender_wakes.set()
        await self.state.waiters.lanes_settled([lane])

    async def _end(self, started: Started) -> None:
        start = started.start
        if start.end is None:
            return
        if not started.is_left_behind or await self._is_ours_to_end(started):
            await self.contact.asked(started, lambda: self._told(start))

    async def _told(self, start: RunStart) -> None:
        assert start.run_id is not None
        assert start.end is not None
        await self.creator.end(start.run_id, start.end)
        self.open_runs.ended(start.run_id)

    async def _is_ours_to_end(self, started: Started) -> bool:
        """Whether nobody here has the run open, and it has not ended."""
        run_id = started.start.run_id
        assert run_id is not None
        if run_id in self.open_runs:
            return False
        return await self.contact.asked(started, lambda: self.creator.is_open(run_id))


def _check(started: Started) -> None:
    """Raise unless it was created before everything was stopped."""
    if not started.lane.is_created:
        left = started.lane.unsettled
        message = f"{started.start}: the session closed before"
        raise DeliveryError(message, undelivered=left, run_id=started.start.key)
