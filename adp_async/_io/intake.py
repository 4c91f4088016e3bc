"""Where threads meet: the inbox, its gate, and the memory that records may take.

Calls of ``log_*`` (`adp_async.writer`) leave their records in the `Inbox`; the delivery thread
pulls them from there.  ``inbox.gate`` is how many records may lie there before a call has to do
more than append: 0 while the sender sleeps (the first record wakes it), a batchful while it is
awake, less when memory is running low, and -1 when nothing is accepted any more.

When memory is full the spool takes the overflow.  A thread waits for that, or for deliveries, in
the order in which it came; code on an event loop waits no longer than the disk needs, and gets
`BufferFull` then.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final, Literal

from attrs import define, field

from adp_async._io.lifetime import Why
from adp_async._io.log import logger
from adp_async._io.waiters import Moment
from adp_async._sansio.records import METRIC_COST, GivenUp, Metric, cost_of, take_first
from adp_async._sansio.texts import counted
from adp_async.errors import BufferFull

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adp_async._io.lifetime import Lifetime
    from adp_async._sansio.accumulator import Accumulator
    from adp_async._sansio.lane import Lane
    from adp_async._sansio.records import AnyRecord, BatchLimits
    from adp_async.errors import AdpError

#: `below_high_water` waits until this share of ``buffer_limit`` is taken.
HIGH_WATER: Final = 0.5
#: Seconds that an event loop waits for the disk to take what memory can't hold.
LONGEST_PAUSE: Final = 0.5


class Inbox(deque["AnyRecord"]):
    """Records between their call and the delivery thread; the *gate* is how many may be here."""

    __slots__ = ("gate",)
    gate: int


class _Bell:
    """An Event that a signal handler may set in the very thread that waits for it.

    (`threading.Event` has a lock inside, for which a signal handler would wait forever.)
    """

    __slots__ = ("_silence",)

    def __init__(self) -> None:
        self._silence = threading.Lock()
        self._silence.acquire()

    def wait(self, seconds: float) -> bool:
        return self._silence.acquire(timeout=seconds)

    def set(self) -> None:
        """Once."""
        self._silence.release()


class _Ticket:
    """A thread that waits for room for *needed* bytes."""

    __slots__ = ("has_room", "is_over", "needed")

    def __init__(self, needed: int) -> None:
        self.needed = needed
        self.has_room = False
        self.is_over = _Bell()


@define(eq=False, repr=False)
class Intake:
    """Accepts records from any thread, and hands them to one.

    *doorbell* wakes the delivery thread, *spills* says whether a spool takes the overflow,
    *is_here* whether this is a thread of ours, which must never wait for itself.
    """

    accumulator: Accumulator
    lifetime: Lifetime
    doorbell: Callable[[], object]
    spills: Callable[[], bool]
    is_here: Callable[[], bool]
    buffer_limit: int
    max_block: float
    overflow: Literal["block", "drop"]
    #: Guards the counts here and in the lanes.  Reentrant: a signal handler, or a
    #: finalizer, may log in the middle of it.
    lock: threading.RLock = field(factory=threading.RLock)
    inbox: Inbox = field(factory=Inbox, init=False)
    known_keys: dict[str, str] = field(factory=dict, init=False)
    _pulled_at: float = field(default=0.0, init=False)
    #: Memory of params and tags in the inbox beyond that of metrics.
    _text_cost: int = field(default=0, init=False)
    _tickets: deque[_Ticket] = field(factory=deque, init=False)
    #: Memory that was promised to threads which have not used it yet.
    _promised: int = field(default=0, init=False)
    _is_granting: bool = field(default=False, init=False)
    _drained: Moment = field(factory=Moment, init=False)
    _is_told: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.inbox.gate = -1

    # Any thread

    @property
    def limits(self) -> BatchLimits:
        """What one request may hold."""
        return self.accumulator.limits

    @property
    def is_locked_here(self) -> bool:
        """Whether this thread holds the lock."""
        return self.lock._is_owned()  # type: ignore[attr-defined, no-any-return]

    def lane(self, run_id: str) -> Lane:
        """The one lane of a run."""
        with self.lock:
            return self.accumulator.lane(run_id)

    def add_all(self, records: Sequence[AnyRecord]) -> None:
        """Accept the records of one call, all or none."""
        if not records:
            return
        extra = sum(map(cost_of, records)) - METRIC_COST * len(records)
        inbox = self.inbox
        if extra:
            with self.lock:
                self._text_cost += extra
                inbox.extend(records)
        else:
            inbox.extend(records)
        if len(inbox) > inbox.gate or self._text_cost > self.accumulator.limits.body_bytes:
            self.gate_reached(records)

    def gate_reached(self, records: Sequence[AnyRecord]) -> None:
        """Wake the sender, make room, or refuse *records*, the last that came."""
        if not self.lifetime.is_open:
            # The delivery thread may have pulled them just in time.
            if mine := self._take_out(records):
                self._too_late(mine)
            return
        if len(self.inbox) <= len(records):
            self._pulled_at = time.monotonic()  # nothing was there before, and lingers since
        if self._tickets or self.used() > self.buffer_limit:
            self._overflow(records)
        self._open_gate(len(self.inbox) + self.accumulator.limits.entities)
        self.doorbell()

    def _too_late(self, records: Sequence[AnyRecord]) -> None:
        error = self.lifetime.error()
        if self.lifetime.why is not Why.ENDED:
            raise error
        # The main thread has ended while this one trains on, which is not a mistake.
        if not self._is_told:
            self._is_told = True
            logger.warning("records are dropped: %s", error)
        self._drop(records, error)

    def used(self) -> int:
        """Bytes of memory that records take."""
        with self.lock:
            waiting = self.accumulator.memory + len(self.inbox) * METRIC_COST
            return waiting + self._text_cost + self._promised

    def _open_gate(self, upto: int) -> None:
        with self.lock:
            room = (self.buffer_limit - self.used()) // METRIC_COST + len(self.inbox)
            self.inbox.gate = 0 if self._tickets else max(0, min(upto, room))
            if not self.lifetime.is_open:
                self.inbox.gate = -1

    def close_gate(self) -> None:
        """Accept nothing more, and wake the waiting threads."""
        with self.lock:
            self.inbox.gate = -1
            self._grant()

    def _overflow(self, records: Sequence[AnyRecord]) -> None:
        # A handler or finalizer in a thread of ours, or while room is being made: waiting here
        # would be for itself.
        if self.is_here() or self.is_locked_here:
            return
        may_wait = _may_wait()
        is_for_drop = self.overflow == "drop" and all(type(each) is Metric for each in records)
        if self.spills():
            longest = self.max_block if may_wait else min(self.max_block, LONGEST_PAUSE)
        elif is_for_drop or not may_wait:
            longest = 0.0
        else:
            longest = self.max_block
        mine = self._take_out(records)
        if not mine:
            return  # they have been pulled
        if longest and self._wait_for_room(mine, longest):
            return
        if not self.lifetime.is_open:
            self._too_late(mine)
            return
        if is_for_drop:
            self._drop(mine, BufferFull("the metric was dropped: the buffer is full"))
            return
        error = self._full()
        for record in mine:
            record.place = GivenUp(error)
        raise error

    def _drop(self, records: Sequence[AnyRecord], error: AdpError) -> None:
        with self.lock:
            for record in records:
                self.accumulator.count_dropped(record.place, 1)
                record.place = GivenUp(error)

    def _full(self) -> BufferFull:
        waiting = counted(self.accumulator.unsettled + len(self.inbox), "record")
        message = (
            f"buffer full: {waiting} waiting (buffer_limit={self.buffer_limit} bytes); "
            "`await run.drain()` waits for room"
        )
        return BufferFull(message)

    def _wait_for_room(self, records: list[AnyRecord], seconds: float) -> bool:
        """Wait for the turn of *records*, still outside the buffer; returns whether they are in."""
        ticket = _Ticket(sum(map(cost_of, records)))
        try:
            with self.lock:
                self._tickets.append(ticket)
                self._grant()
            self.doorbell()
            # (A wait beyond what the system can count means forever.)
            ticket.is_over.wait(min(seconds, threading.TIMEOUT_MAX))
        except BaseException:  # raised by a signal's handler, such as Ctrl-C
            self._redeem(ticket, [])
            raise
        return self._redeem(ticket, records)

    def _redeem(self, ticket: _Ticket, records: list[AnyRecord]) -> bool:
        """Put *records* where *ticket* has room for them; returns whether they are in."""
        with self.lock:
            if ticket.has_room:
                self._promised -= ticket.needed
            elif ticket in self._tickets:
                self._tickets.remove(ticket)
            if not (ticket.has_room and records and self.lifetime.is_open):
                self._grant()
                return False
            extra = ticket.needed - METRIC_COST * len(records)
            self._text_cost += extra
            self.inbox.extend(records)
            return True

    def _grant(self) -> None:
        """Give the room there is to waiting threads, in their order.  Under the lock."""
        if self._is_granting:
            return  # this interrupts it, in its own thread
        self._is_granting = True
        try:
            while self._tickets:
                first = self._tickets[0]
                limit = max(self.buffer_limit, first.needed)
                if self.lifetime.is_open and self.used() + first.needed > limit:
                    return
                self._tickets.popleft()
                if self.lifetime.is_open:
                    first.has_room = True
                    self._promised += first.needed
                first.is_over.set()
        finally:
            self._is_granting = False

    def _take_out(self, records: Sequence[AnyRecord]) -> list[AnyRecord]:
        """Remove *records* from the inbox; returns those that were still there."""
        with self.lock:
            mine = [each for each in reversed(records) if _removed(self.inbox, each)][::-1]
            # In two steps: a finalizer may log in the middle of a sum.
            extra = sum(map(cost_of, mine)) - METRIC_COST * len(mine)
            self._text_cost -= extra
        return mine

    # The delivery thread

    def pull(self, now: float, *, leave_excess: bool = False) -> None:
        """Move records from the inbox into the lanes.

        *leave_excess*: not the last ones, when memory is full; their calls take them back.
        """
        inbox, accumulator = self.inbox, self.accumulator
        with self.lock:
            # An append from here on wakes the sender, so that no record is overlooked.
            if self.lifetime.is_open:
                inbox.gate = 0
            count = len(inbox) - (self._excess() if leave_excess else 0)
            if records := take_first(inbox, count):
                # While the gate was open they may have come at any time since the last pull.
                accumulator.take_in(records, self._pulled_at)
                # A copy, made at once: other threads append metrics without the lock.  In two
                # steps: a finalizer may log in the middle of a sum.
                left, before = list(inbox), self._text_cost
                extra = sum(map(cost_of, left)) - METRIC_COST * len(left)
                self._text_cost += extra - before
        self._pulled_at = now
        if accumulator.unsettled:
            self._open_gate(accumulator.limits.entities - 1)

    def _excess(self) -> int:
        """How many records in the inbox memory has no room for.

        0 where they must be pulled: a spool takes them, or they are all there is.
        """
        if self.spills() or not self.lifetime.is_open or not self.accumulator.unsettled:
            return 0
        beyond = self.used() - self.buffer_limit
        return max(0, min(len(self.inbox), -(-beyond // METRIC_COST)))

    def room_made(self) -> None:
        """Records were settled, or moved to the disk: wake threads that wait for room."""
        if self.inbox.gate > 0:  # what is kept of a refused record can take more than it did
            self._open_gate(self.inbox.gate)
        if self._tickets:
            with self.lock:
                self._grant()
        if self._drained and self.is_low():
            self._drained.has_come()

    def is_low(self) -> bool:
        """Whether less than half of the memory is taken."""
        return self.used() <= HIGH_WATER * self.buffer_limit

    async def below_high_water(self) -> None:
        """Wait until less than half of the memory is taken."""
        self.pull(time.monotonic())
        if self.is_low():
            return
        self.doorbell()
        await self._drained.wait()

    @property
    def is_short(self) -> bool:
        """Whether a thread waits for memory."""
        return bool(self._tickets)

    # Forks

    def forked(self) -> None:
        """In a forked child: everything here belongs to the parent, which will send it."""
        # The parent's threads are gone, and one of them may have held the lock.
        self.lock = threading.RLock()
        self._tickets = deque()
        self._is_granting = False
        self._drained = Moment()
        self.inbox.clear()
        self.inbox.gate = -1


def _may_wait() -> bool:
    """Whether this thread may be made to wait: it runs no event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return True
    return False


def _removed(inbox: Inbox, record: AnyRecord) -> bool:
    """Take *record* out; mostly it is the last one, and then it doesn't matter how many there are.

    Under the lock: only metrics may come meanwhile, and their order is of no account.
    """
    if inbox and inbox[-1] is record:
        if (last := inbox.pop()) is record:
            return True
        inbox.append(last)  # a metric of another thread, which came in between
    try:
        inbox.remove(record)
    except ValueError:
        return False
    return True
