"""The background logger of a session: from the inbox to the end of a record, and who waits for it.

Calls of ``log_*`` (`adp_async.writer`) leave their records in the `Inbox`.  Everything behind it
belongs to the event loop's thread.  ``inbox.gate`` is how many records may lie there before
a caller has to look up: 0 while the sender sleeps (the first record wakes it), a batchful while it
is awake, less when memory runs out, and -1 when nothing is accepted any more.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import logging
import os
import threading
import time
import weakref
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, TypeVar

from attrs import define, field, frozen

from adp_async._io.sender import Sender
from adp_async._io.tokens import Tokens
from adp_async._sansio.accumulator import (
    KEPT_REJECTIONS,
    REJECTION_COST,
    Accumulator,
    delivery_error,
)
from adp_async._sansio.dispatch import Pulse, discarded
from adp_async._sansio.records import (
    METRIC_COST,
    GivenUp,
    Metric,
    cost_of,
    take_first,
)
from adp_async._sansio.retry import RetryPolicy
from adp_async._sansio.values import valid_run_id
from adp_async.errors import AdpError, BufferFull, Closed, DeliveryError
from adp_async.writer import Inbox, Receipt, Receipts, RunWriter

if TYPE_CHECKING:
    from collections.abc import (
        Awaitable,
        Callable,
        Coroutine,
        Generator,
        Iterable,
        Mapping,
        Sequence,
    )
    from typing import Literal

    from adp_async._io.keeper import SpoolKeeper
    from adp_async._io.sender import Post
    from adp_async._io.spool import Spool
    from adp_async._sansio.lane import Lane
    from adp_async._sansio.records import AnyRecord, BatchLimits
    from adp_async._sansio.throttle import Throttle
    from adp_async._sansio.values import Metrics, MetricValue, Texts, WholeNumber

T = TypeVar("T")

logger = logging.getLogger("adp_async")

#: `drain` waits until this share of ``buffer_limit`` is taken.
HIGH_WATER: Final = 0.5
#: The share of it that refused records may take, which are kept until somebody is told.
REJECTIONS_SHARE: Final = 0.1
#: Seconds that the interpreter's end waits for what a session has to write down.
LAST_COMMIT: Final = 5.0
#: Runs whose writers are kept although nothing of theirs waits.
KEPT_WRITERS: Final = 4096


@frozen
class Stats:
    """How much was logged, and what became of it.

    *accepted* is the sum of *delivered*, *rejected*, *dropped*, *waiting*, *in_flight* and
    *spooled*.  *rejected* counts by the class of the error, *dropped* what found no room, and
    what a session without a spool had left when it ended.  *spooled* is on disk only, after the
    end for the next session.  *requests*, *retries* and *throttled* (429s) count log-batch
    requests of the whole session.  *oldest*: seconds the oldest record has waited, 0 when none
    does.
    """

    accepted: int = 0
    delivered: int = 0
    rejected: Mapping[str, int] = field(factory=dict)
    dropped: int = 0
    waiting: int = 0
    in_flight: int = 0
    spooled: int = 0
    requests: int = 0
    retries: int = 0
    throttled: int = 0
    oldest: float = 0.0

    @property
    def undelivered(self) -> int:
        """Records that are still on their way."""
        return self.waiting + self.in_flight + self.spooled


class _Flush:
    """Somebody waits until the records that some lanes hold by now have their end.

    *until*: the lanes that are not there yet, and up to which record.
    """

    __slots__ = ("done", "until")

    def __init__(self, lanes: Iterable[Lane]) -> None:
        self.until = {lane: lane.next_seq for lane in lanes if lane.settled_until < lane.next_seq}
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def look_at(self, lane: Lane) -> None:
        """Records of *lane* had their end: perhaps they were the last."""
        if lane.settled_until >= self.until.get(lane, 0):
            self.until.pop(lane, None)
            if not self.until:
                _resolve(self.done)


@define(eq=False, repr=False)
class BatchLogger:
    """Coalesces metrics, params and tags of many runs into few log-batch requests.

    ``session.logger`` is the one of a session; its ``log_*`` take the run's id first and are
    otherwise those of `Run`.
    """

    post: Post
    run_is_gone: Callable[[str], Awaitable[bool]]
    throttle: Throttle
    limits: BatchLimits
    linger: float = 1.0
    max_in_flight: int = 4
    buffer_limit: int = 256 * 1024 * 1024
    max_block: float = 10.0
    overflow: Literal["block", "drop"] = "block"
    policy: RetryPolicy = field(factory=RetryPolicy)
    pulse: Pulse = field(factory=Pulse)
    new_token: Callable[[], str] = field(factory=Tokens)
    accumulator: Accumulator = field(init=False)
    inbox: Inbox = field(init=False)
    known_keys: dict[str, str] = field(factory=dict, init=False)
    _sender: Sender = field(init=False)
    _keeper: SpoolKeeper | None = field(default=None, init=False)
    _task: asyncio.Task[None] | None = field(default=None, init=False)
    _loop: asyncio.AbstractEventLoop | None = field(default=None, init=False)
    _thread: int = field(default=0, init=False)
    _why_closed: str = field(default="it has not been opened", init=False)
    _writers: dict[str, RunWriter] = field(factory=dict, init=False)
    _most_writers: int = field(default=KEPT_WRITERS, init=False)
    _receipts: dict[int, list[asyncio.Future[None]]] = field(factory=dict, init=False)
    _flushes: dict[Lane, list[_Flush]] = field(factory=dict, init=False)
    _drains: list[asyncio.Future[None]] = field(factory=list, init=False)
    _all_settled: asyncio.Event = field(factory=asyncio.Event, init=False)
    _crash: Exception | None = field(default=None, init=False)
    #: What is left when nothing is delivered any more, by run: in the spool, or nowhere.
    _kept: Counter[str] = field(factory=Counter, init=False)
    _lost: Counter[str] = field(factory=Counter, init=False)
    _looked_at: float = field(default=0.0, init=False)
    #: Memory of params and tags in the inbox beyond that of metrics.
    _text_cost: int = field(default=0, init=False)
    #: Who may change that, move records from the inbox to the lanes, or say what room is left.
    #: Reentrant: a signal handler, or a finalizer, may log in the middle of it.
    _lock: threading.RLock = field(factory=threading.RLock, init=False)
    _room: threading.Condition = field(factory=threading.Condition, init=False)
    _blocked: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self.inbox = Inbox()
        self.inbox.gate = -1
        kept = REJECTIONS_SHARE * self.buffer_limit / REJECTION_COST
        self.accumulator = Accumulator(
            linger=self.linger,
            limits=self.limits,
            new_token=self.new_token,
            board=self,
            on_settled=self._settled,
            kept_rejections=max(1, min(KEPT_REJECTIONS, int(kept))),
        )
        self._sender = Sender(
            accumulator=self.accumulator,
            throttle=self.throttle,
            policy=self.policy,
            post=self.post,
            run_is_gone=self.run_is_gone,
            take_in=self.take_in,
            clock=time.monotonic,
            max_in_flight=self.max_in_flight,
            pulse=self.pulse,
        )

    # ------------------------------------------------------------------ what callers use

    def log_metric(
        self,
        run_id: str,
        key: str,
        value: MetricValue,
        step: WholeNumber | None = 0,
        timestamp: WholeNumber | None = None,
    ) -> Receipt:
        """`Run.log_metric` of the run *run_id*."""
        return self.writer(run_id).log_metric(key, value, step, timestamp)

    def log_metrics(
        self,
        run_id: str,
        metrics: Metrics,
        step: WholeNumber | None = 0,
        timestamp: WholeNumber | None = None,
    ) -> Receipts:
        """`Run.log_metrics` of the run *run_id*."""
        return self.writer(run_id).log_metrics(metrics, step, timestamp)

    def log_param(self, run_id: str, key: str, value: object) -> Receipt:
        """`Run.log_param` of the run *run_id*."""
        return self.writer(run_id).log_param(key, value)

    def log_params(self, run_id: str, params: Texts) -> Receipts:
        """`Run.log_params` of the run *run_id*."""
        return self.writer(run_id).log_params(params)

    def set_tag(self, run_id: str, key: str, value: object) -> Receipt:
        """`Run.set_tag` of the run *run_id*."""
        return self.writer(run_id).set_tag(key, value)

    def set_tags(self, run_id: str, tags: Texts) -> Receipts:
        """`Run.set_tags` of the run *run_id*."""
        return self.writer(run_id).set_tags(tags)

    async def flush(self, run_id: str | None = None) -> None:
        """Wait until the service has everything accepted so far, of one run or of all.

        Doesn't linger.  Raises `DeliveryError` when records were refused that no flush has
        reported yet.  There is no time limit: use ``asyncio.timeout``.
        """
        self.check_open()
        now = time.monotonic()
        self.take_in(now)
        lanes = list(self.accumulator.lanes.values())
        if run_id is not None:
            lanes = [self.lane(valid_run_id(run_id))]
        busy = [lane for lane in lanes if not lane.is_idle]
        for lane in busy:
            self.accumulator.urge(lane, now)
        self._sender.wake()
        await self._flush(busy)
        self._raise_refused(run_id)

    async def drain(self) -> None:
        """Wait until the buffer is below its high-water mark, half of ``buffer_limit``."""
        self.check_open()
        self.take_in(time.monotonic())
        if self._is_low():
            await asyncio.sleep(0)
            return
        self._sender.wake()
        done = asyncio.get_running_loop().create_future()
        self._drains.append(done)
        await done

    def discard(self, run_id: str) -> int:
        """Give up what waits for a run: how many records that are, counted as dropped.

        For a run that the service does not show, or fails on, and so holds for ever.  What is on
        its way just now may still be delivered; what is logged afterwards is accepted again.
        From any thread.  Raises `Closed`.
        """
        return self._on_loop(self._discard, valid_run_id(run_id))

    def _discard(self, run_id: str) -> int:
        now = time.monotonic()
        self.take_in(now)
        lane = self.lane(run_id)
        error = discarded(run_id, lane.unsettled)
        count = self.accumulator.discard(lane, now, error)
        self._sender.wake()
        return count

    def _on_loop(self, function: Callable[..., T], *arguments: Any) -> T:
        """What *function* returns, called in the event loop's thread."""
        if self._why_closed:
            raise Closed(self._closed_message())
        if threading.get_ident() == self._thread:
            return function(*arguments)

        async def call() -> T:
            return function(*arguments)

        return self.block_on(call(), None)

    def stats(self, run_id: str | None = None) -> Stats:
        """Counts as of now, of one run or of all; from any thread."""
        if run_id is not None:
            return self._stats_of_run(valid_run_id(run_id))
        accumulator, sender = self.accumulator, self._sender
        inbox = len(self.inbox)
        rejected = dict(accumulator.rejected)
        waiting = accumulator.waiting + inbox
        settled = accumulator.delivered + sum(rejected.values())
        spooled = accumulator.spooled + self._kept.total()
        dropped = accumulator.dropped + self._lost.total()
        return Stats(
            accepted=settled + waiting + accumulator.in_flight + spooled + dropped,
            delivered=accumulator.delivered,
            rejected=rejected,
            dropped=dropped,
            waiting=waiting,
            in_flight=accumulator.in_flight,
            spooled=spooled,
            requests=sender.requests,
            retries=sender.retries,
            throttled=self.throttle.throttled,
            oldest=self._oldest(list(accumulator.lanes.values())),
        )

    def _stats_of_run(self, run_id: str) -> Stats:
        lane = self.lane(run_id)
        inbox = sum(record.place is lane for record in list(self.inbox))
        in_flight = lane.flying
        waiting = lane.unsettled - in_flight - lane.spooled + inbox
        spooled, dropped = lane.spooled + self._kept[run_id], lane.dropped + self._lost[run_id]
        settled = lane.delivered + lane.refused_count
        return Stats(
            accepted=settled + waiting + in_flight + spooled + dropped,
            delivered=lane.delivered,
            rejected=dict(lane.rejected),
            dropped=dropped,
            waiting=waiting,
            in_flight=in_flight,
            spooled=spooled,
            requests=self._sender.requests,
            retries=self._sender.retries,
            throttled=self.throttle.throttled,
            oldest=self._oldest([lane]),
        )

    def _oldest(self, lanes: list[Lane]) -> float:
        # Copies, taken at once: another thread may ask while the loop's own changes them.
        firsts = [times[0] for lane in lanes if (times := lane.times[:1])]
        firsts += [span.since for lane in lanes for span in list(lane.spans)]
        return max(0.0, time.monotonic() - min(firsts)) if firsts else 0.0

    def __repr__(self) -> str:
        accumulator = self.accumulator
        busy = sum(not lane.is_idle for lane in list(accumulator.lanes.values()))
        parts = [
            f"{busy} runs",
            f"{accumulator.waiting + len(self.inbox)} waiting",
            f"{accumulator.batches_in_flight} batches in flight",
        ]
        held = self.throttle.held_until - time.monotonic()
        if held > 0:
            parts.append(f"held {held:.0f} s")
        if self._why_closed:
            parts.append(f"closed: {self._why_closed}")
        return f"<BatchLogger {' | '.join(parts)}>"

    # ------------------------------------------------------------------ the way in

    def writer(self, run_id: str) -> RunWriter:
        """The ``log_*`` of one run."""
        if type(run_id) is not str:
            run_id = valid_run_id(run_id)
        writer = self._writers.get(run_id)
        if writer is None:
            if len(self._writers) >= self._most_writers:
                self._forget_idle()
            writer = self._writers[run_id] = RunWriter(run_id, self)
        return writer

    def lane(self, run_id: str) -> Lane:
        """The one lane of a run.  From any thread."""
        with self._lock:
            return self.accumulator.lane(run_id)

    def _forget_idle(self) -> None:
        """Keep no writer of which nothing waits.  A lane lives as long as somebody holds it."""
        for run_id, writer in list(self._writers.items()):
            if writer.lane.is_idle:
                self._writers.pop(run_id, None)
        # Where most are busy it isn't looked again before there are twice as many.
        self._most_writers = max(KEPT_WRITERS, 2 * len(self._writers))

    def accept(self, records: Sequence[AnyRecord]) -> None:
        """Take the records of one call, all or none."""
        if not records:
            return
        extra = sum(map(cost_of, records)) - METRIC_COST * len(records)
        inbox = self.inbox
        if extra:
            with self._lock:
                self._text_cost += extra
                inbox.extend(records)
        else:
            inbox.extend(records)
        if len(inbox) > inbox.gate or self._text_cost > self.limits.body_bytes:
            self.look_up(records)

    def look_up(self, records: Sequence[AnyRecord]) -> None:
        """The gate is reached: wake the sender, make room, or refuse *records*, the last ones."""
        if self._loop is not None and self._loop.is_closed():
            self.shut("its event loop ended, and the session was not left before")
        if self._why_closed:
            # None is there any more when they came just in time.
            if self._take_out(records):
                raise Closed(self._closed_message())
            return
        if len(self.inbox) <= len(records):
            self._looked_at = time.monotonic()  # nothing lay there before, and lingers since
        if self._used() > self.buffer_limit:
            self._overflow(records)
        on_loop = threading.get_ident() == self._thread
        self._open_gate(len(self.inbox) + self.limits.entities)
        if on_loop:
            if self._keeper is not None:
                self._keeper.commit_soon()
            self._sender.wake()
        else:
            self._call_loop(self._sender.wake)

    def _call_loop(self, callback: Callable[[], object]) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            self.shut("its event loop was closed without closing the session")

    def _let_nothing_lie(self) -> None:
        """The event loop doesn't come around: let the next call look up, which writes."""
        if self.inbox and self.inbox.gate > 0:
            self.inbox.gate = 0

    def _used(self) -> int:
        with self._lock:
            return self.accumulator.memory + len(self.inbox) * METRIC_COST + self._text_cost

    def _is_low(self) -> bool:
        return self._used() <= HIGH_WATER * self.buffer_limit

    def _open_gate(self, upto: int) -> None:
        with self._lock:
            room = (self.buffer_limit - self.accumulator.memory - self._text_cost) // METRIC_COST
            self.inbox.gate = max(0, min(upto, room))
        if self._why_closed:  # looked at last, since another thread may be about to shut
            self.inbox.gate = -1

    def _overflow(self, records: Sequence[AnyRecord]) -> None:
        is_on_loop = threading.get_ident() == self._thread
        if self._keeper is not None and self._keeper.failure is None:
            has_room = self._spill_here() if is_on_loop else self._wait_for_room()
            if has_room:
                return
        if self.overflow == "drop" and all(type(record) is Metric for record in records):
            error = BufferFull("the metric was dropped: the buffer is full (overflow='drop')")
            self._withdraw(records, error, dropping=True)
        elif is_on_loop:
            self._refuse(records)
        else:
            self._wait_outside(records)

    def _spill_here(self) -> bool:
        """Let the disk take what memory can't hold, while the event loop waits for it."""
        assert self._keeper is not None
        self.take_in(time.monotonic())
        self._keeper.commit_here()
        self._keeper.let_go()
        return self._used() <= self.buffer_limit

    def _refuse(self, records: Sequence[AnyRecord]) -> None:
        error = self._full(self.accumulator.unsettled + len(self.inbox) - len(records))
        if self._withdraw(records, error):
            raise error

    def _full(self, waiting: int) -> BufferFull:
        message = (
            f"{waiting} records wait, which is all that "
            f"buffer_limit={self.buffer_limit} bytes hold; `await run.drain()` waits for room"
        )
        return BufferFull(message)

    def _wait_outside(self, records: Sequence[AnyRecord]) -> None:
        """This thread waits for room, and its records with it: outside of the buffer."""
        mine = self._take_out(records)
        has_room = self._wait_for_room(sum(map(cost_of, mine)))
        if not mine:
            return  # the sender had been quicker
        if self._why_closed:
            raise Closed(self._closed_message())
        if not has_room:
            raise self._full(self.accumulator.unsettled + len(self.inbox))
        with self._lock:
            self._text_cost += sum(map(cost_of, mine)) - METRIC_COST * len(mine)
            self.inbox.extend(mine)

    def _wait_for_room(self, needed: int = 0) -> bool:
        self._call_loop(self._hurry)
        limit = max(self.buffer_limit, needed)
        with self._room:
            self._blocked += 1
            try:
                return self._room.wait_for(
                    lambda: bool(self._why_closed) or self._used() + needed <= limit,
                    self.max_block,
                )
            finally:
                self._blocked -= 1

    def _hurry(self) -> None:
        self.take_in(time.monotonic())
        if self._keeper is not None:
            self._keeper.hurry()
        self._sender.wake()

    def _take_out(self, records: Sequence[AnyRecord]) -> list[AnyRecord]:
        """Those of *records* that still lay in the inbox, and no longer do."""
        with self._lock:
            mine = [record for record in reversed(records) if _removed(self.inbox, record)][::-1]
            self._text_cost -= sum(map(cost_of, mine)) - METRIC_COST * len(mine)
        return mine

    def _withdraw(
        self, records: Sequence[AnyRecord], error: AdpError, *, dropping: bool = False
    ) -> int:
        """Give up what still lies in the inbox; how many that were."""
        mine = self._take_out(records)
        with self._lock:
            for record in mine:
                if dropping:
                    self.accumulator.count_dropped(record.place, 1)
                record.place = GivenUp(error)
        return len(mine)

    def take_in(self, now: float) -> None:
        """Move what lies in the inbox into the lanes.  For the loop's own thread."""
        inbox = self.inbox
        with self._lock:
            # Whoever appends from here on wakes the sender; so nobody's record is overlooked.
            if not self._why_closed:
                inbox.gate = 0
            if records := take_first(inbox, len(inbox)):
                # While the gate was open they may have come at any time since the last look.
                self.accumulator.take_in(records, self._looked_at)
                self._text_cost = 0
        self._looked_at = now
        if self.accumulator.unsettled:
            self._open_gate(self.limits.entities - 1)

    # ------------------------------------------------------------------ who waits

    def wait(self, lane: Lane, record: AnyRecord) -> Generator[Any, None, None]:
        """A record's `Receipt.__await__`."""
        return self._wait(lane, record).__await__()

    def wait_blocking(self, lane: Lane, record: AnyRecord, timeout: float | None) -> None:
        """A record's `Receipt.wait`."""
        self.block_on(self._wait(lane, record), timeout)

    def block_on(self, waiting: Coroutine[Any, Any, T], timeout: float | None) -> T:
        """Let this thread wait for something that the event loop does."""
        loop = self._loop
        if loop is None or loop.is_closed() or threading.get_ident() == self._thread:
            waiting.close()
            message = self._closed_message() if loop is None or loop.is_closed() else _WOULD_BLOCK
            raise Closed(message)
        future = asyncio.run_coroutine_threadsafe(waiting, loop)
        try:
            return future.result(timeout)
        except concurrent.futures.CancelledError:
            raise Closed(self._closed_message()) from None
        except TimeoutError:
            future.cancel()
            raise

    async def _wait(self, lane: Lane, record: AnyRecord) -> None:
        now = time.monotonic()
        self.take_in(now)
        if record.place is lane:
            self.check_open()
            self.accumulator.urge(lane, now)
            self._sender.wake()
            await self._settled_future(record)
        record.place.wait_blocking(record, 0)

    async def _settled_future(self, record: AnyRecord) -> None:
        future = asyncio.get_running_loop().create_future()
        futures = self._receipts.setdefault(id(record), [])
        futures.append(future)
        try:
            await future
        finally:
            futures.remove(future)
            if not futures:
                self._receipts.pop(id(record), None)

    async def _flush(self, lanes: Iterable[Lane]) -> None:
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

    def _settled(self, lane: Lane, records: Sequence[AnyRecord]) -> None:
        """Records of *lane* have their end: tell those who wait for it."""
        if self._receipts:
            for record in records:
                for future in self._receipts.get(id(record), ()):
                    _resolve(future)
        for flush in self._flushes.get(lane, ()):
            flush.look_at(lane)
        if self._keeper is not None and self.accumulator.spooled:
            self._keeper.wake()
        self._tell_room()
        if not self.accumulator.unsettled:
            self._all_settled.set()

    def _tell_room(self) -> None:
        if self._drains and self._is_low():
            drains, self._drains = self._drains, []
            for future in drains:
                _resolve(future)
        if self._blocked and self._used() <= self.buffer_limit:
            with self._room:
                self._room.notify_all()

    def _made_room(self) -> None:
        """Records went to the disk, or came back from it."""
        self._tell_room()
        self._sender.wake()

    def _raise_refused(self, run_id: str | None = None) -> None:
        """Raise what was refused since the last time somebody was told."""
        rejections, rejected = self.accumulator.take_refused(run_id)
        if rejected:
            raise delivery_error(rejections, rejected=rejected)

    # ------------------------------------------------------------------ lifetime

    def open(
        self,
        spool: Spool | None = None,
        interval: float = 0.2,
        after: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        """Start accepting and sending, in the running event loop; *spool* outlives the process.

        *after* is awaited before params and tags of a run leave.
        """
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._why_closed = ""
        self.inbox.gate = 0
        if spool is not None:
            self._keeper = self._keep(spool, interval, after)
        self._task = asyncio.create_task(self._supervise(), name="adp_async sender")
        _open_loggers.add(self)

    def _keep(
        self, spool: Spool, interval: float, after: Callable[[str], Awaitable[None]] | None
    ) -> SpoolKeeper:
        from adp_async._io.keeper import SpoolKeeper

        keeper = SpoolKeeper(
            accumulator=self.accumulator,
            spool=spool,
            interval=interval,
            memory_limit=self.buffer_limit,
            take_in=self.take_in,
            changed=self._made_room,
            trouble=lambda: str(self._sender.trouble or ""),
            overdue=self._let_nothing_lie,
            after=after,
        )
        self._sender.before_departure = keeper.before_departure
        return keeper

    async def _supervise(self) -> None:
        """Run the sender, and the keeper of the spool beside it, until cancelled."""
        runs = [self._sender.run()] + ([self._keeper.run()] if self._keeper else [])
        tasks = [asyncio.create_task(run) for run in runs]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        except asyncio.CancelledError:
            await _stopped(tasks)
            if self._task is not None:
                # It wasn't `close` that cancelled this, so the loop is being torn down.
                self._leave_behind("its event loop ended, and the session was not left before")
            raise
        except Exception as error:
            logger.exception("the sender crashed; nothing is delivered any more")
            self._crash = error
            self.shut(f"its sender crashed with {type(error).__name__}")
            self._abandon()
            self._all_settled.set()
            await _stopped(tasks)

    def _leave_behind(self, why: str) -> None:
        """The end came without `close`: write down what is left, or say how much is lost."""
        _open_loggers.discard(self)
        self.shut(why)
        self._abandon()
        if lost := self._lost.total():
            logger.warning("%d records were not delivered: %s", lost, self._why_closed)

    def interpreter_ends(self) -> None:
        """The same when the loop, as in a notebook, will never run again.  From the main thread."""
        loop, why = self._loop, "the interpreter ended, and the session was not left before"
        if loop is not None and loop.is_running():  # in a thread that still lives
            written = threading.Event()
            loop.call_soon_threadsafe(self._leave_behind, why)
            loop.call_soon_threadsafe(written.set)
            written.wait(LAST_COMMIT)
            return
        # A loop that was closed takes no callbacks, and there is nobody left to be told.
        self._all_settled = asyncio.Event()
        if self._keeper is not None:
            self._keeper.detach()
        for waiting in (self._receipts, self._flushes, self._drains):
            waiting.clear()
        self._leave_behind(why)

    async def close(self, timeout: float) -> None:
        """Accept nothing more, deliver for at most *timeout* seconds, account for the rest.

        Raises `DeliveryError` when records were refused and nobody was told, or could not be
        delivered in time.
        """
        if self._task is None:
            return
        task, self._task = self._task, None
        self.shut("the session was left")
        try:
            async with asyncio.timeout(timeout):
                await self._deliver_all()
        except TimeoutError:
            logger.debug("time ran out while closing; %d left", self.accumulator.unsettled)
        finally:
            task.cancel()
            await asyncio.wait([task])
            self._abandon()
            if self._keeper is not None:
                await self._keeper.close()
            _open_loggers.discard(self)
        self._raise_end(self._lost.total())

    async def _deliver_all(self) -> None:
        now = time.monotonic()
        self.take_in(now)
        for lane in list(self.accumulator.lanes.values()):  # another thread may add one
            self.accumulator.urge(lane, now)
        self._all_settled.clear()
        self._sender.wake()
        if self.accumulator.unsettled and self._crash is None:
            await self._all_settled.wait()

    def _raise_end(self, left: int) -> None:
        try:
            self._raise_refused()
        except DeliveryError as refused:
            if not left:
                raise
            raise delivery_error(
                refused.rejections, rejected=refused.rejected, undelivered=left
            ) from self._cause()
        if left:
            raise delivery_error([], undelivered=left) from self._cause()

    def _cause(self) -> BaseException | None:
        return self._crash or self._sender.trouble

    def _abandon(self) -> None:
        """This session delivers nothing more: write down what is left, and tell who waits."""
        self.take_in(time.monotonic())
        left = self.accumulator.unsettled
        is_on_disk = self._keeper is not None and self._keeper.commit_here()
        why = "left in the spool, for the next session" if is_on_disk else "lost with the session"
        end = self._kept if is_on_disk else self._lost
        for lane, count, records in self.accumulator.abandon():
            end[lane.run_id] += count
            error = delivery_error([], undelivered=count, run_id=lane.run_id)
            error.add_note(why)
            error.__cause__ = self._cause()
            for record in records:
                record.place = GivenUp(error)
            for flush in self._flushes.get(lane, ()):
                if not flush.done.done():
                    flush.done.set_exception(error)
            self._settled(lane, records)
        if is_on_disk and left:
            assert self._keeper is not None
            message = "%d records are not delivered yet; the next session delivers them from %s"
            logger.warning(message, left, self._keeper.spool.path)

    def shut(self, why: str) -> None:
        """Accept nothing more.  From any thread."""
        self._why_closed = self._why_closed or why
        self.inbox.gate = -1
        with self._room:
            self._room.notify_all()

    def forked(self) -> None:
        """In a forked child: everything here belongs to the parent, who will send it."""
        # The parent's threads are gone, and one of them may have held a lock.
        self._lock, self._room = threading.RLock(), threading.Condition()
        self._why_closed = "it belongs to the parent process; open a session of this process's own"
        self.inbox.clear()
        self.inbox.gate = -1
        # Should the child take the parent's loop down, nothing is written or said on its behalf.
        self._loop = self._task = self._keeper = None

    def check_open(self) -> None:
        """Raise `Closed` unless this may be awaited here."""
        if self._why_closed:
            raise Closed(self._closed_message())
        self.check_loop()

    def check_loop(self) -> None:
        """Raise `Closed` on another event loop than its own, and in a forked child."""
        if self._loop is None:
            raise Closed(self._closed_message())
        if asyncio.get_running_loop() is not self._loop:
            message = "the session belongs to another event loop, the one it was opened in"
            raise Closed(message)

    def _closed_message(self) -> str:
        return f"the session takes no records: {self._why_closed}"


_WOULD_BLOCK = "waiting here would block the event loop; use `await` in its place"


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


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


_open_loggers: weakref.WeakSet[BatchLogger] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for each in list(_open_loggers):
        each.forked()
    _open_loggers.clear()


async def _stopped(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@atexit.register
def _interpreter_ends() -> None:
    for each in list(_open_loggers):
        each.interpreter_ends()


if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows has no fork
    os.register_at_fork(after_in_child=_after_fork_in_child)
