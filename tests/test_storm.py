"""The storm: names that the service refuses, again and again, beside many that it takes.

``pytest tests/test_storm.py --storm 120 -s`` is the long one, and prints what it cost; without the
option it takes a few seconds.  The service is a real MLflow behind the gateway, with a quota.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from attrs import frozen

from adp_async import RetryPolicy
from adp_async.errors import DeliveryError
from adp_async.local import Quota

if TYPE_CHECKING:
    from adp_async.local import LocalPlatform

GOOD, BAD = 30, 5
STEPS_A_SECOND = 20
LOG_BATCH = "log_experiment_run_batch"

pytestmark = pytest.mark.mlflow


@frozen
class Storm:
    """What one went like: *behind* in seconds, *arrived* points by name."""

    requests: int
    behind: float
    logged: int
    arrived: dict[str, int]


async def storm(platform: LocalPlatform, bad: int, seconds: float) -> Storm:
    """*seconds* of 20 steps a second, each with 30 good names and *bad* ones."""
    # A short one would mostly wait: for the requests that find the names, and between them.
    is_long = seconds > 30
    platform.gateway.quota = Quota(5.0 if is_long else 30.0)
    retry = RetryPolicy(first_backoff=1.0 if is_long else 0.05)
    async with platform.session(linger=1.0, retry=retry) as session:
        experiment = f"storm {bad} {time.time_ns()}"
        async with session.start_run(experiment, run_name="storm") as run:
            steps = round(seconds * STEPS_A_SECOND)
            began, before = time.monotonic(), session.logger.stats().requests
            for step in range(steps):
                for number in range(GOOD):
                    run.log_metric(f"good{number}", 0.5, step=step)
                for number in range(bad):
                    run.log_metric(f"bad@{number}", 0.5, step=step)
                await asyncio.sleep(began + (step + 1) / STEPS_A_SECOND - time.monotonic())
            stats = run.stats()
            behind, requests = stats.oldest, session.logger.stats().requests - before
            with suppress(DeliveryError):  # of the refused ones
                await run.flush()
            assert run.stats().accepted == (GOOD + bad) * steps
            assert run.stats().rejected.get("BadRequest", 0) == bad * steps
            assert run.stats().delivered == GOOD * steps
        platform.gateway.quota = None
        arrived = {}
        for key in (f"good{number}" for number in range(GOOD)):
            points = [point async for point in session.runs.metric_history(run.run_id, key)]
            assert sorted(point.step for point in points) == list(range(steps))
            arrived[key] = len(points)
    return Storm(requests, behind, steps, arrived)


async def test_a_storm_of_refused_names(
    platform: LocalPlatform, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    """All that is good arrives, all that is bad is counted, and neither waits for the other."""
    seconds = request.config.getoption("--storm")
    alone = await storm(platform, 0, seconds)
    beside = await storm(platform, BAD, seconds)
    if seconds > 30:
        ratio = beside.requests / alone.requests
        with capsys.disabled():
            print(
                f"\n{seconds:.0f} s: {alone.requests} requests for the good names alone, "
                f"{beside.requests} beside refused ones ({ratio:.2f} times); the oldest record "
                f"waits {alone.behind:.1f} and {beside.behind:.1f} s at the end"
            )
        # What it takes to find five names shows in a short one, and not in a long one.
        assert ratio <= 1.2
        assert beside.behind <= 2.0
