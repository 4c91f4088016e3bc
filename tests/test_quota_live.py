"""Logging as fast as possible against a quota: all of it arrives, and few requests are refused.

Numbers are printed (``pytest -s``); what is asserted is that nothing is lost.  The measurement
itself takes a minute and is asked for with ``ADP_ASYNC_SLOW=1``.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from adp_async.local import Quota

if TYPE_CHECKING:
    from adp_async.local import LocalPlatform

slow = pytest.mark.skipif(
    not os.environ.get("ADP_ASYNC_SLOW"), reason="takes half a minute: set ADP_ASYNC_SLOW=1"
)


async def log_against(platform: LocalPlatform, quota: Quota, points: int) -> None:
    gateway = platform.gateway
    run_id = gateway.add_run()
    gateway.quota = quota
    async with platform.session(spool=False, close_timeout=120.0) as session:
        run = session.attach_run(run_id)
        began = time.monotonic()
        for step in range(points):
            run.log_metric("loss", step / 7, step=step)
        await run.flush()
        seconds = time.monotonic() - began
        stats = session.logger.stats()
    received = gateway.received(run_id)
    assert sorted(metric.step for metric in received.metrics) == list(range(points))
    assert stats.delivered == stats.accepted == points
    assert stats.throttled == gateway.refused
    carried = seconds * quota.rate
    print(
        f"\n{quota}: {points} points in {len(received.batches)} batches, {gateway.requests} "
        f"requests, {gateway.refused} refused, {seconds:.1f} s "
        f"({len(received.batches) / carried:.0%} of the quota)"
    )


async def test_a_quota(bare_platform: LocalPlatform) -> None:
    """Points that come faster than the quota allows arrive complete."""
    await log_against(bare_platform, Quota(50), 6_000)


@slow
async def test_a_quota_that_asks_for_a_date(bare_platform: LocalPlatform) -> None:
    """A Retry-After that is a date is kept as well."""
    await log_against(bare_platform, Quota(50, retry_after=1, as_date=True), 6_000)


@slow
@pytest.mark.parametrize("retry_after", [None, 1.0], ids=["bare", "Retry-After"])
@pytest.mark.parametrize(("rate", "points"), [(5.0, 60_000), (50.0, 20_000), (50.0, 200_000)])
async def test_a_quota_measured(
    bare_platform: LocalPlatform, rate: float, points: int, retry_after: float | None
) -> None:
    """Sixty thousand points at 5 requests a second arrive complete, and so do others."""
    await log_against(bare_platform, Quota(rate, retry_after=retry_after), points)
