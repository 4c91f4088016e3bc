"""What a notebook shows of a session and a run: tables with what is known now.

Nothing is asked of the service for it.  `_html` makes the tables; entities, listings and counts
use that themselves.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from adp_async._html import facts as table_of
from adp_async._html import link, sparkline
from adp_async.stats import counted

if TYPE_CHECKING:
    from adp_async._io.delivery import Delivery
    from adp_async._sansio.lane import Lane
    from adp_async.settings import Settings

__all__ = ["run_page", "session_page"]


def run_page(
    delivery: Delivery, run_id: str, *, name: str | None, facts: dict[str, object], url: str | None
) -> str:
    """A run: its *facts*, its counts, what is wrong, and its metrics of this process."""
    lane = delivery.intake.lane(run_id)
    rows = {
        "run": run_id,
        "name": name,
        **facts,
        "link": url and link(url),
        **_counts(delivery, run_id),
        "last error": _trouble_of_run(delivery, lane),
        "held until": _held_until(delivery) if not lane.is_idle else None,
    }
    for key, points in delivery.state.samples.of(run_id).items():
        rows[f"metrics.{key}"] = sparkline(points)
    return table_of(rows)


def session_page(delivery: Delivery, settings: Settings) -> str:
    """A session: where it leads, its counts, and what is wrong."""
    trouble = delivery.sender.trouble
    rows = {
        "service": settings.endpoint or settings.region or "region of the credentials",
        "platform": settings.platform_id,
        "workspace": settings.workspace,
        "session": str(delivery.lifetime).removeprefix("it is "),
        **_counts(delivery),
        "last error": None if trouble is None else _described(trouble),
        "held until": _held_until(delivery),
    }
    return table_of(rows)


def _counts(delivery: Delivery, run_id: str | None = None) -> dict[str, object]:
    stats = counted(delivery, run_id)
    rejected = sum(stats.rejected.values())
    return {
        "delivered": f"{stats.delivered:,}",
        "waiting": f"{stats.undelivered:,}",
        "rejected": f"{rejected:,}",
        "dropped": f"{stats.dropped:,}" if stats.dropped else None,
        "oldest waits": f"{stats.oldest:,.0f} s" if stats.oldest >= 1.0 else None,
    }


def _trouble_of_run(delivery: Delivery, lane: Lane) -> str | None:
    trouble = delivery.sender.trouble
    if lane.failures and trouble is not None:
        return f"its records are held back: {_described(trouble)}"
    refused = lane.last_refused
    if refused is None:
        return None
    return f"refused: {refused.kind} {refused.key!r}: {_described(refused.cause)}"


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _held_until(delivery: Delivery) -> str | None:
    """When the hold that a 429 asked for is over; None without one."""
    left = delivery.throttle.held_until - time.monotonic()
    if left <= 0.0:
        return None
    until = datetime.now(UTC) + timedelta(seconds=left)
    return f"{until:%H:%M:%S} UTC, for {left:,.0f} s (too many requests)"
