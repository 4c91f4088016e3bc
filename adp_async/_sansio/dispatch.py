"""When a batch may leave, and what the answer to it means for the batches after it.

Whose fault is a failure?  One that names the run (a 403, a 404) is the run's.  One that keeps a
request from leaving, or refuses the credentials, is everybody's: all batches wait, for longer and
longer, and then one of them finds out.  All others (a 503, a broken connection, somebody else's
page) can be either.  They are the run's when another run got through lately; else runs that have
not failed are tried, one after the other, before all wait.

So a run in trouble slows itself alone, costs one request now and then, and the service is spared
while it answers nobody.

A batch that fails again and again while others get through may hold a record that the service
cannot store.  It is halved until that is found, and a record that fails alone lets others go before
it.  It is given up, with the failure as its reason, when the service itself answers 500 and chance
is unlikely: if every second request failed, one record in a million would be given up.  Failing
between two batches that are delivered counts for two bits of that *evidence*, failing while the
service shows the run for one; when another batch fails as well, it begins anew.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from attrs import define, field

from adp_async._sansio.actions import Action
from adp_async._sansio.discarding import drop
from adp_async._sansio.line import LASTING
from adp_async._sansio.texts import counted
from adp_async.errors import (
    AdpError,
    ConnectionFailed,
    DeliveryError,
    Forbidden,
    NotAuthenticated,
    NotFound,
    ServiceFault,
)

if TYPE_CHECKING:
    from adp_async._sansio.accumulator import Accumulator
    from adp_async._sansio.batch import RecordBatch
    from adp_async._sansio.concurrency import Concurrency
    from adp_async._sansio.lane import Lane
    from adp_async._sansio.retry import RetryPolicy
    from adp_async._sansio.throttle import Throttle

#: Seconds between two looks at what came while nothing can leave, however short the linger.
SHORTEST_PAUSE: Final = 0.01
#: A run that got through so many seconds ago tells that the service is there.
LATELY: Final = 10.0
#: Runs that are tried one right after the other when nobody gets through; and the longest pause
#: between two of those that come after them, as a multiple of the first back-off.
FREE_PROBES: Final = 16
LONGEST_PROBE: Final = 1.0
#: Seconds between two attempts for runs in trouble, all of them together; and how many requests of
#: others leave in between at least, where the rate is limited.
TROUBLE_PAUSE: Final = 0.1
TROUBLE_TURNS: Final = 10.0
#: The longest back-off, in seconds, of a run whose trouble lasts while others get through; and the
#: pause between two attempts for such runs, all of them together.
LONGEST_TROUBLE: Final = 900.0
LASTING_PAUSE: Final = 1.0
#: Failures of a batch before it is halved; batches of a run that are taken apart without success.
BEFORE_HALVING: Final = 4
FRUITLESS: Final = 14
#: So many more where they leave open whether the batch was taken: had it been, an attempt since
#: would have been answered so.
LIKELY_TAKEN: Final = 8
#: Bits of evidence against a record before it is given up, and how often it must have failed
#: between two that did not: a service that takes nothing must not cost a record.
ENOUGH_EVIDENCE: Final = 20
ENOUGH_CONTRASTS: Final = 3
#: While more than this share of so many batches fails, a failure does not count as evidence.
FAILING: Final = 0.5
REMEMBERED: Final = 64
#: Records of a run that others may go before; more of them, and it is the run that is in trouble.
MOST_ASIDE: Final = 3


class Fault(enum.Enum):
    """Whose fault a failure is, going by the error alone."""

    RUN = "403 or 404 of the service itself: this run"
    ALL = "the request did not leave, or the credentials were refused: every run"
    EITHER = "anything else"


def fault_of(error: AdpError) -> Fault:
    """Whose fault *error* is.

    >>> fault_of(ConnectionFailed("no route to host")).name
    'ALL'
    """
    match error:
        case Forbidden() | NotFound() if error.code:
            return Fault.RUN
        case ConnectionFailed() | NotAuthenticated():
            return Fault.ALL
        case _:
            return Fault.EITHER


@define(eq=False)
class Pulse:
    """Which runs got through last, and when.  Shared by all senders to one service."""

    run_id: str = ""
    at: float = float("-inf")
    #: When another run than that did.
    other_at: float = float("-inf")
    #: When the last batch left that was delivered; when one failed that is not suspected.
    departed_at: float = float("-inf")
    failed_at: float = float("-inf")
    #: The share of batches that failed lately.
    failing: float = 0.0

    def got_through(self, run_id: str, departed: float, now: float) -> None:
        self.departed_at = max(self.departed_at, departed)
        self.failing -= self.failing / REMEMBERED
        if run_id != self.run_id:
            self.run_id, self.other_at = run_id, self.at
        self.at = now

    def failed(self, batch: RecordBatch, now: float) -> None:
        # What fails each time must not make all the others look as if they did.
        if batch.failures < 4 * BEFORE_HALVING:
            self.failing += (1.0 - self.failing) / REMEMBERED
        if batch.blamed < BEFORE_HALVING:
            self.failed_at = now

    def of_others(self, run_id: str) -> float:
        """When a run other than *run_id* got through."""
        return self.other_at if run_id == self.run_id else self.at


@define(eq=False, repr=False)
class Dispatcher:
    """Hands out batches, and learns from their answers when the next ones may leave.

    *jitter* is a draw from [0, 1) wherever it is an argument.  *pulse* is shared by all senders to
    the same service.
    """

    accumulator: Accumulator
    throttle: Throttle
    policy: RetryPolicy
    concurrency: Concurrency
    pulse: Pulse = field(factory=Pulse)
    #: Why the last batch without a verdict has none; None when all is well.
    trouble: AdpError | None = field(default=None, init=False)
    #: The last answer that was an error, of whatever kind.
    last_error: AdpError | None = field(default=None, init=False)
    #: Since when nobody gets through; None while somebody does.  When that last ended.
    failing_since: float | None = field(default=None, init=False)
    recovered_at: float = field(default=float("-inf"), init=False)
    retries: int = field(default=0, init=False)
    #: Failures in a row, of all runs, that may be everybody's; those of runs that had not failed.
    _failures: int = field(default=0, init=False)
    _probes: int = field(default=0, init=False)
    #: When a run that has not failed may be tried, and one that has.
    _probe_at: float = field(default=0.0, init=False)
    _retry_at: float = field(default=0.0, init=False)
    #: Runs that failed since nobody gets through, and may have done so without their fault.
    _stricken: set[Lane] = field(factory=set, init=False)
    #: Batches in flight of runs in trouble.
    _retried: set[RecordBatch] = field(factory=set, init=False)

    # What may leave

    def drain(self, now: float) -> list[RecordBatch]:
        """The batches that leave *now*.  The later one leaves, the fuller it is."""
        accumulator = self.accumulator
        schedule = accumulator.schedule
        schedule.patience = self.throttle.patience(now)
        schedule.line.full_first = self.throttle.is_paced
        if self.throttle.delay(now) > 0.0:
            return []
        if self._failures:
            batch = self._probe(now)
            batches = [batch] if batch is not None else []
        else:
            batches = accumulator.drain(now, self._room(now), troubled=self._troubled_room(now))
        self._retried.update(batch for batch in batches if batch.lane.failures)
        return batches

    def _room(self, now: float) -> int:
        room = self.concurrency.limit - self.accumulator.batches_in_flight
        # One that is tried again for a run in trouble keeps nobody else from leaving.
        room += min(len(self._retried), self.concurrency.most - self.concurrency.limit)
        return min(room, 1) if self.throttle.is_paced else room

    def _troubled_room(self, now: float) -> int:
        return int(now >= self._retry_at and not self._retried)

    def _probe(self, now: float) -> RecordBatch | None:
        """One batch finds out whether the service answers."""
        if self.accumulator.batches_in_flight:
            return None
        return self.accumulator.probe(
            now, healthy=now >= self._probe_at, troubled=now >= self._retry_at
        )

    def next_look(self, now: float) -> float:
        """When to look again, unless woken before."""
        accumulator = self.accumulator
        # Records that came since are not seen yet, and must not wait for longer than a linger.
        pause = max(accumulator.schedule.linger, SHORTEST_PAUSE)
        look = now + pause if accumulator.unsettled else float("inf")
        throttled = now + self.throttle.delay(now)
        if throttled > now:
            deadline = accumulator.next_deadline()
            return look if deadline is None else min(look, max(deadline, throttled))
        for deadline, may_leave_at in self._chances(now):
            if deadline is not None and may_leave_at is not None:
                look = min(look, max(deadline, may_leave_at))
        return look

    def _chances(self, now: float) -> list[tuple[float | None, float | None]]:
        """For each of the two lines: when its first lane is ready, and when one may leave."""
        healthy, troubled = (
            self.accumulator.schedule.line.first_healthy(),
            self.accumulator.schedule.line.first_troubled(),
        )
        if self._failures:
            is_free = not self.accumulator.batches_in_flight
            return [
                (healthy, self._probe_at if is_free else None),
                (troubled, self._retry_at if is_free else None),
            ]
        has_room = self._room(now) > 0
        may_retry = has_room and not self._retried
        return [
            (healthy, now if has_room else None),
            (troubled, self._retry_at if may_retry else None),
        ]

    # What became of it

    def answered(
        self,
        batch: RecordBatch,
        error: AdpError | None,
        action: Action,
        now: float,
        *,
        jitter: float,
        is_visible: bool = False,
    ) -> Fault | None:
        """The answer to *batch*: None when it was delivered, or an *error* and what it calls for.

        *is_visible*: the service has just shown the run, see `doubts`.  Returns whose fault it is
        that records are held, and None when none are.
        """
        lane, accumulator = batch.lane, self.accumulator
        self._retried.discard(batch)
        if error is None:
            self._delivered(batch, now)
            return None
        self.last_error = error
        if batch.span.first < lane.discarded_until:
            drop(accumulator, batch, discarded(lane.run_id, len(batch.records)), now)
            return None
        match action:
            case Action.WAIT_TURN:
                self.retries += 1
                accumulator.wait_turn(batch, now, now)
            case Action.BACK_OFF | Action.HOLD:
                return self._failed(batch, error, now, jitter, is_visible=is_visible)
            case Action.RENEW_TOKEN:
                self.retries += 1
                accumulator.renew(batch, now)
            case Action.HALVE if len(batch.records) > 1:
                self._judged(now)
                accumulator.too_large(batch, error, now)
            case Action.HALVE if not getattr(error, "code", ""):
                # Something on the way refuses a record of that size; the service has not.
                return self._failed(batch, error, now, jitter, is_visible=is_visible)
            case Action.SPLIT:
                self._judged(now)
                accumulator.refuse(batch, error, now)
            case _:
                self._judged(now)
                accumulator.give_up(batch, error, now)
        return None

    def stays(self, batch: RecordBatch, not_before: float, now: float) -> None:
        """*batch* did not leave: it keeps its turn."""
        self._retried.discard(batch)
        self.accumulator.wait_turn(batch, not_before, now)

    def _delivered(self, batch: RecordBatch, now: float) -> None:
        self.pulse.got_through(batch.run_id, batch.departed_at, now)
        self.trouble = None
        self._judged(now)
        stricken, self._stricken = self._stricken, set()
        self.accumulator.succeed(batch, now)
        for lane in stricken:
            self.accumulator.hurry(lane, now)

    def _judged(self, now: float) -> None:
        """A verdict is an answer too: the service is there."""
        if self.failing_since is not None:
            self.failing_since, self.recovered_at = None, now
        self._failures = self._probes = 0
        self._probe_at = 0.0

    def _failed(
        self, batch: RecordBatch, error: AdpError, now: float, jitter: float, *, is_visible: bool
    ) -> Fault:
        self.retries += 1
        self.trouble = error
        lane, fault = batch.lane, fault_of(error)
        was_troubled = lane.failures > 0
        others = self.pulse.of_others(lane.run_id) >= now - LATELY
        is_its_own = fault is Fault.RUN or (fault is Fault.EITHER and others)
        delay = self._delay(lane.failures + 1, error, jitter, others=others)
        if fault is not Fault.EITHER or not self._looks_for_record(
            batch, error, now, delay, others=others, is_visible=is_visible
        ):
            self.accumulator.back_off(batch, now + delay, now)
        if fault is Fault.EITHER:
            self.pulse.failed(batch, now)
        if is_its_own:
            self._retry_at = now + self._trouble_pause(lane, now)
        else:
            self._stricken.add(lane)
            self._may_be_down(fault, now, jitter, is_news=not was_troubled)
        return Fault.RUN if is_its_own else Fault.ALL

    def _may_be_down(self, fault: Fault, now: float, jitter: float, *, is_news: bool) -> None:
        """Nobody gets through: how long until the next run is tried, or one that failed before."""
        self._failures += 1
        if self.failing_since is None:
            self.failing_since = now
        # One failure may be that batch's own; a second tells that others would fail as well.
        if self._failures > 1:
            pause = self.policy.delay(self._failures - 1, jitter=jitter)
            self._retry_at = max(self._retry_at, now + pause)
        self._probe_at = self._retry_at
        if fault is Fault.EITHER:
            self._probes += is_news
            later, pause = self._probes - FREE_PROBES, 0.0
            if later > 0:
                longest = LONGEST_PROBE * self.policy.first_backoff
                pause = min(longest, self.policy.delay(later, jitter=jitter))
            self._probe_at = now + pause

    def _delay(self, attempts: int, error: AdpError, jitter: float, *, others: bool) -> float:
        """Seconds that a run in trouble waits, after so many failures."""
        retry_after = getattr(error, "retry_after", None) or 0.0
        delay = self.policy.delay(attempts, jitter=jitter, retry_after=retry_after)
        if others and attempts > LASTING:
            longest = max(LONGEST_TROUBLE, self.policy.max_backoff)
            longer = self.policy.max_backoff * 2.0 ** min(attempts - LASTING, 32)
            delay = max(delay, (0.5 + 0.5 * jitter) * min(longest, longer))
        return delay

    def _trouble_pause(self, lane: Lane, now: float) -> float:
        pause = TROUBLE_PAUSE if lane.failures <= LASTING else LASTING_PAUSE
        rate = self.throttle.rate(now)
        return pause if rate is None else max(pause, TROUBLE_TURNS / rate)

    def _looks_for_record(
        self,
        batch: RecordBatch,
        error: AdpError,
        now: float,
        delay: float,
        *,
        others: bool,
        is_visible: bool,
    ) -> bool:
        """Whether *batch* was split, set aside or given up, since it is to blame itself."""
        lane, accumulator = batch.lane, self.accumulator
        has_failed = batch.failures > 0
        is_blamed = others or is_visible or (has_failed and self.pulse.at > batch.failed_at)
        batch.blamed = batch.blamed + 1 if is_blamed else 0
        # Halves have new tokens, which would double what was taken, unheard, by an attempt before.
        has_said_so = is_blamed and _is_breakdown(error)
        batch.breakdowns = batch.breakdowns + 1 if has_said_so else 0
        self._weigh(batch, is_visible=is_visible)
        if self._is_condemned(batch, error):
            accumulator.give_up(batch, error, now)
            return True
        if batch.blamed < BEFORE_HALVING:
            return False
        was_not_taken = max(batch.breakdowns, batch.blamed - LIKELY_TAKEN) >= BEFORE_HALVING
        if was_not_taken and len(batch.records) > 1 and lane.fruitless < FRUITLESS:
            accumulator.halve(batch, now)
            return True
        if len(batch.records) == 1 and len(lane.aside) < MOST_ASIDE:
            accumulator.put_aside(batch, now + delay, now)
            return True
        return False

    def _weigh(self, batch: RecordBatch, *, is_visible: bool) -> None:
        """What this failure of *batch* says, beside what became of others since the last one."""
        if not batch.failures:
            return
        if self.pulse.failed_at > batch.failed_at or self.pulse.failing > FAILING:
            batch.evidence = batch.contrasts = 0
        elif self.pulse.departed_at >= batch.failed_at:
            batch.evidence += 2
            batch.contrasts += 1
        elif is_visible:
            batch.evidence += 1

    def _is_condemned(self, batch: RecordBatch, error: AdpError) -> bool:
        """Whether the one record of *batch* is what the service can't store."""
        if len(batch.records) > 1 or not _is_breakdown(error):
            return False
        return batch.evidence >= ENOUGH_EVIDENCE and batch.contrasts >= ENOUGH_CONTRASTS

    def doubts(self, batch: RecordBatch, error: AdpError) -> bool:
        """Whether the run should be looked at before *error* is judged.

        Nothing else shows then whether the service is down, or fails on this batch.
        """
        is_its_own_word = isinstance(error, ServiceFault) and error.code != ""
        return is_its_own_word and self.pulse.at <= batch.failed_at


def _is_breakdown(error: AdpError) -> bool:
    """A 500 of the service itself; a 503 says that it passes, a 502 comes from somebody else."""
    return isinstance(error, ServiceFault) and error.status == 500 and error.code != ""


def discarded(run_id: str, count: int) -> DeliveryError:
    """The error of records that were discarded."""
    message = f"{counted(count, 'record')} of run {run_id} discarded"
    return DeliveryError(message, undelivered=count, run_id=run_id)
