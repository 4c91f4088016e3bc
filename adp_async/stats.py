"""How much was logged, and what became of it: counted from the lanes."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal

from attrs import asdict, field, frozen

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from adp_async._io.delivery import Delivery
    from adp_async._sansio.lane import Lane

__all__ = ["Health", "Stats"]

HealthStatus = Literal["ok", "holding", "failing"]


@frozen
class Stats:
    """How much was logged, and what became of it.

    *accepted* is the sum of *delivered*, *rejected*, *dropped*, *waiting*, *in_flight* and
    *spooled*.  *rejected* counts by the class of the error.  *dropped* counts what found no room,
    what was discarded, and what a session without a spool had not delivered when it ended.
    *spooled* is on disk only; after the end, for the next session.  *requests*, *retries* and
    *throttled* (429s) count log-batch requests of the whole session.  *oldest*: seconds the oldest
    record has waited, 0 when none does.
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

    def _repr_html_(self) -> str:
        from adp_async._html import facts  # only a notebook asks

        rejected = [f"{name}: {count:,}" for name, count in self.rejected.items()]
        counts = {
            name.replace("_", " "): f"{value:,}" if isinstance(value, int) else value
            for name, value in asdict(self, recurse=False).items()
        }
        return facts(
            {
                **counts,
                "rejected": ", ".join(rejected) or "0",
                "oldest": f"{self.oldest:.1f} s",
            }
        )


@frozen
class Health:
    """Whether delivery works, for a probe or a person.

    *status*: ``"ok"``; ``"holding"`` when records wait although the service answers, for it asked
    for that (429) or does not take those of some run; ``"failing"`` when nobody gets through, or
    the session can deliver no more.  *since*: since when, an aware datetime in UTC.  *last_error*:
    the last error that a log-batch got, also when all is well again; None when there was none.
    *waiting*: records that are still on their way.
    """

    status: HealthStatus
    since: datetime
    last_error: BaseException | None = None
    waiting: int = 0

    def _repr_html_(self) -> str:
        from adp_async._html import facts  # only a notebook asks

        last = self.last_error
        error = None if last is None else f"{type(last).__name__}: {last}"
        return facts(
            {
                "delivery": self.status,
                "since": self.since,
                "last error": error,
                "waiting": f"{self.waiting:,}",
            }
        )


def examined(delivery: Delivery) -> Health:
    """How delivery fares as of now.  From any thread."""
    now = time.monotonic()
    with delivery.intake.lock:
        status, since = _status(delivery, now)
        waiting = _of_all(delivery).undelivered
    return Health(
        status,
        datetime.now(UTC) - timedelta(seconds=max(0.0, now - since)),
        delivery.crash or delivery.state.dispatcher.last_error,
        waiting,
    )


def _status(delivery: Delivery, now: float) -> tuple[HealthStatus, float]:
    dispatcher = delivery.state.dispatcher
    if delivery.crash is not None:
        return "failing", delivery.crashed_at
    if dispatcher.failing_since is not None:
        return "failing", dispatcher.failing_since
    if (held := delivery.throttle.held_since(now)) is not None:
        return "holding", held
    lanes = list(delivery.accumulator.lanes.values())
    if troubled := [since for lane in lanes if lane.failures and (since := lane.since())]:
        return "holding", min(troubled)
    ended = min(now, delivery.throttle.held_until)
    return "ok", max(delivery.made_at, dispatcher.recovered_at, ended)


def counted(delivery: Delivery, run_id: str | None = None) -> Stats:
    """The counts of *delivery* as of now, of one run or of all.  From any thread."""
    # Under the lock, no record is on its way from one count to another.
    with delivery.intake.lock:
        return _of_all(delivery) if run_id is None else _of_run(delivery, run_id)


def _of_all(delivery: Delivery) -> Stats:
    accumulator = delivery.accumulator
    return _stats(
        delivery,
        list(accumulator.lanes.values()),
        delivered=accumulator.delivered,
        rejected=dict(accumulator.rejected),
        dropped=accumulator.dropped + delivery.lost.total(),
        waiting=accumulator.waiting + len(delivery.intake.inbox),
        in_flight=accumulator.in_flight,
        spooled=accumulator.spooled + delivery.kept.total(),
    )


def _of_run(delivery: Delivery, run_id: str) -> Stats:
    lane = delivery.intake.lane(run_id)
    inbox = sum(record.place is lane for record in list(delivery.intake.inbox))
    return _stats(
        delivery,
        [lane],
        delivered=lane.delivered,
        rejected=dict(lane.rejected),
        dropped=lane.dropped + delivery.lost[run_id],
        waiting=lane.unsettled - lane.flying - lane.spooled + inbox,
        in_flight=lane.flying,
        spooled=lane.spooled + delivery.kept[run_id],
    )


def _stats(
    delivery: Delivery, lanes: list[Lane], *, rejected: Mapping[str, int], **counts: int
) -> Stats:
    return Stats(
        accepted=sum(counts.values()) + sum(rejected.values()),
        rejected=rejected,
        requests=delivery.sender.requests,
        retries=delivery.sender.retries,
        throttled=delivery.throttle.throttled,
        oldest=_oldest(lanes),
        **counts,
    )


def _oldest(lanes: Iterable[Lane]) -> float:
    """Seconds that the oldest record of *lanes* has waited, 0 when none does."""
    # Copies, taken at once: another thread may ask while the delivery thread changes them.
    firsts = [since for lane in lanes if (since := lane.since()) is not None]
    return max(0.0, time.monotonic() - min(firsts)) if firsts else 0.0
