"""Counts what a session has done, from its lanes, and examines how delivery fares."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from adp_async.stats import Health, Stats

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from adp_async._io.delivery import Delivery
    from adp_async._sansio.lane import Lane
    from adp_async.stats import HealthStatus


def examined(delivery: Delivery) -> Health:
    """How delivery fares as of now.  From any thread."""
    now, date = time.monotonic(), datetime.now(UTC)
    with delivery.intake.lock:
        status, since = _status(delivery, now)
        waiting = _of_all(delivery).undelivered
    return Health(
        status,
        date - timedelta(seconds=max(0.0, now - since)),
        delivery.crash or delivery.starts.trouble or delivery.state.dispatcher.last_error,
        waiting,
    )


def _status(delivery: Delivery, now: float) -> tuple[HealthStatus, float]:
    dispatcher = delivery.state.dispatcher
    if delivery.crash is not None:
        return "failing", delivery.crashed_at
    failing = [
        since
        for since in (dispatcher.failing_since, delivery.starts.failing_since)
        if since is not None
    ]
    if failing:
        return "failing", min(failing)
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
        dropped=accumulator.dropped + delivery.leftovers.lost.total(),
        waiting=accumulator.waiting + len(delivery.intake.inbox),
        in_flight=accumulator.in_flight,
        spooled=accumulator.spooled + delivery.leftovers.kept.total(),
    )


def _of_run(delivery: Delivery, run_id: str) -> Stats:
    lane = delivery.intake.lane(run_id)
    inbox = sum(record.place is lane for record in list(delivery.intake.inbox))
    return _stats(
        delivery,
        [lane],
        delivered=lane.delivered,
        rejected=dict(lane.rejected),
        dropped=lane.dropped + delivery.leftovers.lost[lane.key],
        waiting=lane.unsettled - lane.flying - lane.spooled + inbox,
        in_flight=lane.flying,
        spooled=lane.spooled + delivery.leftovers.kept[lane.key],
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
