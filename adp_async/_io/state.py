"""What the sender, the keeper and the faces of one session share in the delivery thread."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Protocol
from weakref import WeakSet

from attrs import define, field

from adp_async._io.waiters import Waiters
from adp_async._sansio.events import Lost, Refused, Settled
from adp_async._sansio.samples import Samples

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from adp_async._io.intake import Intake
    from adp_async._sansio.accumulator import Accumulator
    from adp_async._sansio.dispatch import Dispatcher
    from adp_async._sansio.events import Event
    from adp_async._sansio.journal import Journal
    from adp_async._sansio.lane import Lane
    from adp_async.errors import Rejection


class WatchesRefusals(Protocol):
    """Knows whose records the lanes hold."""

    def refused(
        self, lane: Lane, numbers: Iterable[int], rejections: Sequence[Rejection] = ()
    ) -> None:
        """The records of *lane* with these sequence numbers were refused, and why if it is known.

        They are not settled yet.
        """


@define(eq=False, repr=False)
class DeliveryState:
    """The lanes, and those that must know what happens in them.

    The lanes call nobody: code that changes them calls `hand_on` before it awaits anything.
    """

    accumulator: Accumulator
    dispatcher: Dispatcher
    intake: Intake
    waiters: Waiters = field(factory=Waiters)
    #: Those that are told which records were refused, for as long as they are there.
    watchers: WeakSet[WatchesRefusals] = field(factory=WeakSet, init=False)
    #: What runs draw of their metrics.
    samples: Samples = field(factory=Samples, init=False)
    #: None without a spool.
    journal: Journal | None = None
    sender_wakes: asyncio.Event = field(factory=asyncio.Event, init=False)
    keeper_wakes: asyncio.Event = field(factory=asyncio.Event, init=False)

    def pull(self, now: float, *, leave_excess: bool = False) -> None:
        """Take in what callers have left since the last time; see `Intake.pull`."""
        self.intake.pull(now, leave_excess=leave_excess)
        self.hand_on()

    def skip_linger(self, run_id: str | None, now: float) -> list[Lane]:
        """Let what waits by now leave without linger, of one run or of all: the busy lanes."""
        self.pull(now)
        lanes = list(self.accumulator.lanes.values())
        if run_id is not None:
            lanes = [self.intake.lane(run_id)]
        busy = [lane for lane in lanes if not lane.is_idle]
        for lane in busy:
            self.accumulator.skip_linger(lane, now)
        return busy

    def hand_on(self) -> None:
        """Tell the waiters, the journal and the intake what happened, in this order."""
        events = self.accumulator.take_events()
        if not events:
            return
        if self.watchers:
            self._tell_watchers(events)
        settled = [event for event in events if type(event) is Settled]
        for event in settled:
            self.waiters.resolve(event.lane, event.records)
            self.samples.take(event.lane.key, event.records, time.monotonic())
        if self.journal is not None:
            self._write_down(self.journal, events, is_settled=bool(settled))
        if settled:
            self.intake.room_made()
            if not self.accumulator.unsettled:
                self.waiters.nothing_left()

    def _tell_watchers(self, events: Sequence[Event]) -> None:
        for event in events:
            for watcher in self.watchers:
                if type(event) is Refused:
                    watcher.refused(event.lane, event.numbers, event.rejections)
                elif type(event) is Lost:
                    watcher.refused(event.lane, range(event.first, event.last))

    def _write_down(self, journal: Journal, events: Sequence[Event], *, is_settled: bool) -> None:
        was_written = not journal.has_unwritten
        for event in events:
            journal.note(event)
        # The first record after a commit; and where there is room, spilled ones come back.
        if (was_written and journal.has_unwritten) or (is_settled and self.accumulator.spooled):
            self.keeper_wakes.set()

    def moved(self) -> None:
        """Records went to the disk, or came back from it."""
        self.intake.room_made()
        self.sender_wakes.set()
