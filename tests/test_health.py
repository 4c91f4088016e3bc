"""Whether delivery works, since when, and why not: `Session.health` and ``is_open``."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import attrs
import pytest

from adp_async import BadRequest, ConnectionFailed, Health, RetryPolicy, ServiceFault, Throttled
from adp_async.testing import FakeBlockingSession, FakeSession

if TYPE_CHECKING:
    from collections.abc import Callable

BATCH = "log_experiment_run_batch"
ONE_SECOND = timedelta(seconds=1)
#: After a failure, nothing is tried again within a test.
SLOW = RetryPolicy(first_backoff=60.0, max_backoff=60.0)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 - health is looked at from outside
            await asyncio.sleep(0.002)


def just_now(moment: datetime) -> bool:
    return moment.tzinfo is UTC and datetime.now(UTC) - moment < timedelta(seconds=20)


async def test_a_session_that_has_nothing_to_do_is_ok() -> None:
    """It is since it was made, open or not."""
    before = datetime.now(UTC)
    session = FakeSession()
    after = datetime.now(UTC)
    assert session.health().status == "ok"
    assert not session.is_open
    async with session:
        health = session.health()
        assert session.is_open
        assert attrs.evolve(health, since=before) == Health("ok", before)
        # (Counted back by another clock.)
        assert before - ONE_SECOND < health.since < after + ONE_SECOND
    assert session.health().status == "ok"
    assert not session.is_open


async def test_failing_and_well_again() -> None:
    """While nobody gets through it fails, with the error; afterwards it remembers the error."""
    async with FakeSession() as session:
        script = session.answer(BATCH, status=503)
        run = await session.start_run()
        run.log_metric("loss", 0.5)
        await until(lambda: session.health().status == "failing")
        first = session.health()
        assert isinstance(first.last_error, ServiceFault)
        assert first.waiting == 1
        assert just_now(first.since)
        dispatcher = session._delivery.state.dispatcher
        since, given = dispatcher.failing_since, script.given
        await until(lambda: script.given > given + 3)
        assert dispatcher.failing_since == since, "since the first failure"
        assert abs(session.health().since - first.since) < ONE_SECOND

        script.left = 0
        await run.flush()
        health = session.health()
        assert (health.status, health.waiting) == ("ok", 0)
        assert isinstance(health.last_error, ServiceFault)
        assert health.since > first.since


async def test_no_connection() -> None:
    """What never reaches the service fails as well."""
    async with FakeSession(close_timeout=0.2) as session:
        session.answer(BATCH, ConnectionFailed("no route to host"))
        run = await session.start_run()
        run.log_metric("loss", 0.5)
        await until(lambda: session.health().status == "failing")
        assert isinstance(session.logger.health().last_error, ConnectionFailed)
        run.discard()


async def test_holding_for_a_429() -> None:
    """The service asked for it: that is a hold, since the 429."""
    async with FakeSession(close_timeout=0.2) as session:
        session.answer(BATCH, status=429, headers={"retry-after": "60"})
        run = await session.start_run()
        run.log_metric("loss", 0.5)
        await until(lambda: session.health().status == "holding")
        health = session.health()
        assert health.waiting == 1
        assert just_now(health.since)
        await until(lambda: isinstance(session.health().last_error, Throttled))
        run.discard()


async def test_a_run_that_is_not_taken_holds() -> None:
    """Others get through: records of that run wait, which is a hold and no failure."""
    async with FakeSession(retry=SLOW, close_timeout=0.2) as session:
        good, bad = await session.start_run(), await session.start_run()
        await good.log_metric("loss", 0.5)
        refusal = {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such run"}
        session.answer(BATCH, refusal, status=404, times=1)
        session.answer("get_experiment_run_by_id", status=503)
        bad.log_metric("loss", 0.5)
        await until(lambda: session.health().status == "holding")
        await good.log_metric("loss", 0.25)
        assert session.health().status == "holding"
        assert just_now(session.health().since)
        bad.discard()
        assert session.health().status == "ok"


async def test_a_refusal_is_not_a_failure() -> None:
    """The service answered: delivery is well, and the refusal is the last error."""
    async with FakeSession() as session:
        refusal = {"error_code": "INVALID_PARAMETER_VALUE", "message": "no"}
        session.answer(BATCH, refusal, status=400, times=1)
        run = await session.start_run()
        run.log_metric("loss", 0.5)
        assert await run.try_flush() is not None
        health = session.health()
        assert health.status == "ok"
        assert isinstance(health.last_error, BadRequest)
        session.logger._delivery.accumulator.rejections.take(None)


async def test_a_crash_fails() -> None:
    """A session that can deliver no more says so, and what ended it."""
    async with FakeSession(close_timeout=0.2) as session:
        delivery = session.logger._delivery
        delivery.crash, delivery.crashed_at = ZeroDivisionError("ours"), delivery.made_at
        health = session.health()
        assert health.status == "failing"
        assert isinstance(health.last_error, ZeroDivisionError)
        delivery.crash = None


def test_the_blocking_face() -> None:
    """It has the same, from any thread."""
    session = FakeBlockingSession()
    assert not session.is_open
    with session:
        assert session.is_open
        assert session.health().status == session.logger.health().status == "ok"
        with session.start_run() as run:
            run.log_metric("loss", 0.5)
        assert session.health().waiting == 0
    assert not session.is_open
    assert session.health().status == "ok"


@pytest.mark.parametrize(
    ("error", "shown"), [(None, None), (BadRequest("<b>no</b>", status=400), "BadRequest: ")]
)
def test_in_a_notebook(error: Any, shown: str | None) -> None:
    """Its table is escaped, and has the last error if there was one."""
    page = Health("ok", datetime(2026, 1, 2, tzinfo=UTC), error, 1234)._repr_html_()
    cells = {row[0].text: row[1].text or "" for row in ElementTree.fromstring(page)}

    assert cells["delivery"] == "ok"
    assert cells["since"] == "2026-01-02 00:00:00 UTC"
    assert cells["waiting"] == "1,234"
    assert ("last error" in cells) == (shown is not None)
    assert cells.get("last error", "").startswith(shown or "")
    assert "<b>" not in page
