"""Runs that start while the service is not there: created once, by whoever reaches it first."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from children import points, start, until
from spools import orphan

from adp_async import RetryPolicy, address, blocking
from adp_async._io.spool_file import find_spools
from adp_async._sansio.journal import Changes
from adp_async._sansio.run_start import RunStart
from adp_async.errors import (
    AdpError,
    BadRequest,
    ConnectionFailed,
    DeliveryError,
    NotAuthenticated,
    ServiceFault,
    UploadError,
)
from adp_async.local import Fault, LocalPlatform
from adp_async.local.retry_tokens import RetryTokens
from adp_async.testing import FakeBlockingSession, FakeSession

if TYPE_CHECKING:
    from pathlib import Path

    from adp_async import Session
    from adp_async.local import Gateway
    from adp_async.local.stand_in import ReceivedRun

pytestmark = pytest.mark.usefixtures("patient_end", "patient_loop")

CREATE, BY_NAME = "create_experiment_run", "get_experiment_by_name"
SEARCH, UPDATE = "list_experiment_runs", "update_experiment_run"
DAY = 86_400.0
SOON: dict[str, Any] = {
    "linger": 0.01,
    "spool_interval": 0.01,
    "close_timeout": 30.0,
    "retry": RetryPolicy(first_backoff=0.01, max_backoff=0.05),
}


@pytest.fixture
def gateway(bare_platform: LocalPlatform) -> Gateway:
    return bare_platform.gateway


def session_of(platform: LocalPlatform, **knobs: Any) -> Session:
    return platform.session(**(SOON | knobs))


def runs(gateway: Gateway) -> list[ReceivedRun]:
    """Those that the service has."""
    return list(gateway._stand_in().runs.values())


def the_run(gateway: Gateway) -> ReceivedRun:
    """The only one that the service has."""
    (run,) = runs(gateway)
    return run


def steps(run: ReceivedRun) -> list[int]:
    return [metric.step for metric in run.metrics]


def spools(platform: LocalPlatform) -> list[Path]:
    assert platform.directory is not None
    return find_spools(platform.directory / "spool")


def move_clock(monkeypatch: pytest.MonkeyPatch, gateway: Gateway, seconds: float) -> None:
    """That by which runs are created; the platform forgets its tokens after a day."""
    clock = SimpleNamespace(time=lambda: time.time() + seconds, monotonic=time.monotonic)
    monkeypatch.setattr("adp_async._io.run_starts.time", clock)
    if seconds > DAY:
        gateway._tokens = RetryTokens()


def log(run: Any, first: int, last: int) -> None:
    for step in range(first, last):
        run.log_metric("loss", 0.5, step=step)


# In the same session ------------------------------------------------------------------------------


async def test_down_for_a_while(
    bare_platform: LocalPlatform, gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    """The run starts, and when the service is back it is created with all that was logged."""
    await gateway.down()
    async with session_of(bare_platform) as session:
        began = time.monotonic()
        started = session.start_run(
            "digits", run_name="sgd", params={"lr": 0.1}, tags={"team": "a"}, start_timeout=0.1
        )
        async with started as run:
            assert time.monotonic() - began < 9.0
            assert run.run_id is None
            assert (run.run_name, run.experiment_id, run.url) == ("sgd", None, None)
            assert "not yet created 'sgd' | 0 delivered | 1 waiting" in repr(run)
            assert "not yet created" in run._repr_html_()
            assert session.health().status == "failing"
            log(run, 0, 100)
            receipt = run.log_metric("last", 1.0)
            await asyncio.sleep(0.1)
            assert run.stats().undelivered == 102
            assert runs(gateway) == []
            await gateway.up()
            created = await run.created()
            assert (run.run_id, run.experiment_id, run.run_name) == (created, "1", "sgd")
            await receipt
            assert run.stats().delivered == 102
            assert session.health().status == "ok"
            assert run.status is None
            log(session.attach_run(created), 100, 101)
    found = the_run(gateway)
    assert found.run_id == created
    assert found.info["run_name"] == "sgd"
    assert found.info["status"] == "FINISHED"
    assert steps(found)[-1] == 100
    assert sorted(steps(found)) == [0, *range(101)]
    assert found.params == [("lr", "0.1")]
    tags = dict(found.tags)
    assert tags["team"] == "a"
    assert tags["adp_async.local_id"].startswith("local-")
    warnings = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    # (On a slow machine the call at the start may be told of as well.)
    warnings = [each for each in warnings if "still failing after" not in each]
    assert len(warnings) == 2
    assert "starts offline, its records wait on disk" in warnings[0]
    assert f"it is created now, as run {created}" in warnings[1]
    assert spools(bare_platform) == []


async def test_who_waits_does_not_wait_out_the_back_off(
    bare_platform: LocalPlatform, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for, ended or closed, a run is tried for at once, but not more than once a second."""
    monkeypatch.setattr("random.random", lambda: 0.9)
    await gateway.down()
    patient = {"retry": RetryPolicy(first_backoff=50.0), "close_timeout": 30.0}
    async with session_of(bare_platform, **patient) as session:
        run, other, last = [await session.start_run("digits", offline=True) for _ in range(3)]
        await until(lambda: session._delivery.starts.failing_since is not None)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await run.created()
        await gateway.up()
        await asyncio.sleep(1.0)
        async with asyncio.timeout(30.0):
            await run.created()
            await other.finish()
        log(last, 0, 1)
    assert len(runs(gateway)) == 3
    assert spools(bare_platform) == []


@pytest.mark.parametrize(
    "fault", [Fault.reply(503), Fault.reply(429), Fault.html(200), Fault.html(403), Fault.drop()]
)
async def test_what_is_out_of_reach(
    bare_platform: LocalPlatform, gateway: Gateway, fault: Fault
) -> None:
    """Failures of the service, throttling, and pages of somebody else."""
    trouble = gateway.inject(fault, times=None)
    async with (
        session_of(bare_platform) as session,
        session.start_run("digits", start_timeout=0.2) as run,
    ):
        assert run.run_id is None
        run.log_metric("loss", 0.5)
        gateway.faults.remove(trouble)
        assert await run.created() == the_run(gateway).run_id
    assert the_run(gateway).info["status"] == "FINISHED"


async def test_what_the_service_refuses_is_raised(
    bare_platform: LocalPlatform, gateway: Gateway
) -> None:
    """Its own word, and mistakes of the caller or in the settings; and all with offline=False."""
    async with session_of(bare_platform) as session:
        for status, code, kind in (
            (400, "InvalidParameter", BadRequest),
            (401, "NotAuthenticated", NotAuthenticated),
        ):
            gateway.inject(Fault.reply(status, code), times=None)
            with pytest.raises(kind):
                await session.start_run("digits")
            gateway.clear_faults()
        gateway.inject(Fault.reply(503), times=None)
        with pytest.raises(ServiceFault):
            await session.start_run("digits", offline=False)
        with pytest.raises(ValueError, match="offline is 'auto', True or False, not 'yes'"):
            session.start_run(offline="yes")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="start_timeout must be a number of seconds"):
            session.start_run(start_timeout=-1)
        with pytest.raises(ValueError, match="param ''"):
            session.start_run(params={"": 1}, offline=True)
        assert not session._open_runs
    assert spools(bare_platform) == []


async def test_never_asked(bare_platform: LocalPlatform, gateway: Gateway) -> None:
    """With offline=True the run is there before anything is asked, and created right after."""
    gateway.latency = 0.1
    async with session_of(bare_platform) as session:
        run = await session.start_run(experiment_id="0", offline=True)
        assert run.run_id is None
        assert not gateway.by_operation
        log(run, 0, 10)
        await run.flush()
        assert the_run(gateway).run_id == run.run_id
        await run.finish("FAILED")
        assert run.status == "FAILED"
    assert the_run(gateway).info["status"] == "FAILED"
    assert steps(the_run(gateway)) == list(range(10))


async def test_while_it_is_known_to_be_down_nobody_waits(
    bare_platform: LocalPlatform, gateway: Gateway
) -> None:
    """The second run starts at once; all are created in the end, and children know their parent."""
    await gateway.down()
    async with session_of(bare_platform) as session:
        parent = await session.start_run("digits", start_timeout=0.3)
        began = time.monotonic()
        children = [
            await session.start_run("digits", run_name=f"child {number}", parent=parent)
            for number in range(5)
        ]
        assert time.monotonic() - began < 9.0
        with pytest.raises(AdpError, match="cannot be part of one that is not created yet"):
            await session.start_run("digits", parent=parent, offline=False)
        await gateway.up()
        for run in (*children, parent):
            await run.created()
        assert parent.run_id is not None
        for child in children:
            tags = dict(gateway.received(child.run_id).tags)
            assert tags["mlflow.parentRunId"] == parent.run_id
    assert len(runs(gateway)) == 6


async def test_what_needs_the_id(bare_platform: LocalPlatform, gateway: Gateway) -> None:
    """It is an error that says how to wait, also for a pickle; what is drawn is not lost."""
    await gateway.down()
    async with session_of(bare_platform) as session:
        run = await session.start_run("digits", offline=True)
        hint = r"not yet created\); `run.created\(\)` waits until it is"
        with pytest.raises(AdpError, match=hint):
            await run.log_inputs([])
        with pytest.raises(AdpError, match=hint):
            run.history("loss")
        with pytest.raises(AdpError, match=hint):
            pickle.dumps(run)
        with pytest.raises(AdpError, match=hint):
            address.address_of(run)
        log(run, 0, 5)
        await gateway.up()
        await run.flush()
        assert address.address_of(run).run_id == run.run_id
        assert len(run.plot("loss").charts[0]["loss"]) == 5


async def test_discarded(bare_platform: LocalPlatform, gateway: Gateway) -> None:
    """Its records are given up; it is still created, with what is logged later."""
    await gateway.down()
    async with session_of(bare_platform) as session:
        run = await session.start_run("digits", offline=True)
        log(run, 0, 10)
        await asyncio.sleep(0.05)
        assert run.discard() == 10
        log(run, 10, 12)
        stats = run.stats()
        assert (stats.accepted, stats.dropped, stats.undelivered) == (12, 10, 2)
        await gateway.up()
        await run.flush()
    assert steps(the_run(gateway)) == [10, 11]


async def test_refused_records_of_a_late_run(
    bare_platform: LocalPlatform, gateway: Gateway
) -> None:
    """They are raised by its flush and its finish, as those of any other."""
    await gateway.down()
    async with session_of(bare_platform) as session:
        run = await session.start_run("digits", offline=True)
        run.log_param("lr", 1)
        run.log_param("lr", 2)
        await gateway.up()
        with pytest.raises(DeliveryError, match="param 'lr'") as raised:
            await run.flush()
        assert raised.value.run_id == run.run_id
        await run.finish()
    assert the_run(gateway).info["status"] == "FINISHED"


async def test_spilled_and_read_back(bare_platform: LocalPlatform, gateway: Gateway) -> None:
    """What memory has no room for waits on disk alone, and arrives once, in its order."""
    await gateway.down()
    async with session_of(bare_platform, buffer_limit=200_000, close_timeout=10.0) as session:
        run = await session.start_run("digits", offline=True)
        for first in range(0, 5000, 100):
            log(run, first, first + 100)
            await run.drain()
        await until(lambda: run.stats().spooled > 1000)
        await gateway.up()
        await run.finish()
    assert sorted(steps(the_run(gateway))) == list(range(5000))


async def test_the_service_says_no_later(
    bare_platform: LocalPlatform, gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    """One WARNING names the run; others are created; it is once the service takes it."""
    async with session_of(bare_platform) as session:
        no = gateway.inject(Fault.reply(400, "InvalidParameter", "no such luck"), operation=CREATE)
        refused, other = [await session.start_run("digits", offline=True) for _ in range(2)]
        await other.created()
        await refused.created()
        assert no.hits == 1
    told = [line for line in caplog.messages if "the service refuses it" in line]
    assert len(told) == 1
    assert "no such luck" in told[0]
    assert len(runs(gateway)) == 2


# Created once -------------------------------------------------------------------------------------


@pytest.mark.parametrize("deduplicates", [True, False])
async def test_a_create_at_the_start_that_nobody_heard_of(
    bare_platform: LocalPlatform, gateway: Gateway, deduplicates: bool
) -> None:
    """It took effect, and its answer was lost: the run is found, by when and as what it started."""
    gateway.deduplicate = deduplicates
    lost = gateway.inject(Fault.hang(after_write=True), operation=CREATE)
    async with session_of(bare_platform) as session:
        run = await session.start_run("digits", run_name="sgd", start_timeout=1.5)
        assert lost.hits == 1
        log(run, 0, 10)
        await run.finish()
    assert steps(the_run(gateway)) == list(range(10))
    assert "adp_async.local_id" not in dict(the_run(gateway).tags)


async def test_lost_answers_of_creates_that_come_later(
    bare_platform: LocalPlatform, gateway: Gateway
) -> None:
    """Whatever happens to the answers, and however long that takes, there is one run."""
    gateway.deduplicate = False  # only the search can tell
    for fault in (Fault.drop(after_write=True), Fault.reply(503, after_write=True), Fault.cut()):
        gateway.inject(fault, operation=CREATE)
    async with (
        session_of(bare_platform) as session,
        session.start_run("digits", offline=True) as run,
    ):
        log(run, 0, 10)
        await run.created()
    assert steps(the_run(gateway)) == list(range(10))


async def test_a_token_that_is_spent(bare_platform: LocalPlatform, gateway: Gateway) -> None:
    """Then the service is asked for the run first, and for a new one under a new token."""
    gateway.inject(Fault.reply(409, "InvalidatedRetryToken"), operation=CREATE)
    gateway.record = True
    async with session_of(bare_platform) as session:
        run = await session.start_run(experiment_id="0", offline=True)
        await run.created()
    asked = [each.operation for each in gateway.recorded if each.operation in (CREATE, SEARCH)]
    assert asked == [CREATE, SEARCH, CREATE]
    tokens = [
        each.headers["opc-retry-token"] for each in gateway.recorded if each.operation == CREATE
    ]
    assert tokens[0] != tokens[1]


# Down for ever, and the next session --------------------------------------------------------------


async def test_down_for_ever_then_the_next_session(
    bare_platform: LocalPlatform, gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    """Leaving takes a bounded time and raises nothing: run, end and records are kept."""
    await gateway.down()
    began = time.monotonic()
    async with session_of(bare_platform, close_timeout=1.0) as session:
        with pytest.raises(KeyError, match="the body's own"):  # noqa: PT012 - so does a block
            async with session.start_run("digits", run_name="sgd", start_timeout=0.1) as run:
                log(run, 0, 100)
                run.set_tag("state", "late")
                raise KeyError("the body's own")
        assert run.status == "FAILED"
    ended = time.time()
    assert time.monotonic() - began < 15.0
    assert "its end and 101 records wait in" in caplog.text
    assert "1 run not created yet, 101 records not delivered yet" in caplog.text
    (spool,) = spools(bare_platform)
    await gateway.up()
    async with session_of(bare_platform):
        await until(lambda: not spool.exists())
    found = the_run(gateway)
    assert (found.info["run_name"], found.info["status"]) == ("sgd", "FAILED")
    assert 0.0 <= ended - found.info["end_time"] / 1000 < 15.0
    assert found.info["end_time"] >= found.info["start_time"]
    assert sorted(steps(found)) == list(range(100))
    assert found.tags[-1] == ("state", "late")


async def test_several_sessions_that_fail(bare_platform: LocalPlatform, gateway: Gateway) -> None:
    """Each releases what it found, until one reaches the service."""
    await gateway.down()
    async with session_of(bare_platform, close_timeout=0.2) as session:
        run = await session.start_run("digits", offline=True)
        log(run, 0, 10)
        await run.finish()
    for _ in range(3):
        async with session_of(bare_platform, close_timeout=0.2):
            await asyncio.sleep(0.1)
        assert len(spools(bare_platform)) == 1
    await gateway.up()
    (spool,) = spools(bare_platform)
    async with session_of(bare_platform):
        await until(lambda: not spool.exists())
    assert steps(the_run(gateway)) == list(range(10))


async def test_a_token_older_than_a_day(
    bare_platform: LocalPlatform, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The create took effect unheard, and the token is forgotten: the tag finds the run."""
    stuck = gateway.inject(Fault.reply(503, after_write=True), operation=CREATE, times=1)
    gateway.inject(Fault.reply(503), times=None, operation=lambda name: stuck.hits > 0)
    async with session_of(bare_platform, close_timeout=0.3) as session:
        run = await session.start_run("digits", offline=True)
        log(run, 0, 10)
        await until(lambda: stuck.hits > 0)
        await run.finish()
    assert steps(the_run(gateway)) == []
    gateway.clear_faults()
    move_clock(monkeypatch, gateway, 25 * 3600.0)
    gateway.record = True
    (spool,) = spools(bare_platform)
    async with session_of(bare_platform):
        await until(lambda: not spool.exists())
    assert CREATE not in [each.operation for each in gateway.recorded]
    assert steps(the_run(gateway)) == list(range(10))


@pytest.mark.parametrize("hours", [1.0, 25.0, -25.0])
async def test_the_next_session_some_time_later(
    bare_platform: LocalPlatform, gateway: Gateway, monkeypatch: pytest.MonkeyPatch, hours: float
) -> None:
    """The service never had it: a search finds nothing; after a day there is a new token."""
    await gateway.down()
    async with session_of(bare_platform, close_timeout=0.2) as session:
        run = await session.start_run(experiment_id="0", offline=True)
        assert run._started is not None
        key, token = run._run_id, run._started.start.retry_token
        await run.finish()
    assert run.status == "FINISHED"
    move_clock(monkeypatch, gateway, 3600.0 * hours)
    await gateway.up()
    gateway.record = True
    (spool,) = spools(bare_platform)
    async with session_of(bare_platform) as session:
        await until(lambda: not spool.exists())
    assert dict(the_run(gateway).tags)["adp_async.local_id"] == key
    asked = {
        each.operation: each for each in gateway.recorded if each.operation in (CREATE, SEARCH)
    }
    assert list(asked) == [SEARCH, CREATE]
    assert (asked[CREATE].headers["opc-retry-token"] == token) is (hours == 1.0)


# Without a spool ----------------------------------------------------------------------------------


async def test_without_a_spool(caplog: pytest.LogCaptureFixture) -> None:
    """The run waits in memory, which is said; what is lost in the end is counted and named."""
    session = FakeSession(close_timeout=0.3)
    session.answer(BY_NAME, ConnectionFailed("no route"))
    async with session:
        run = await session.start_run("digits", run_name="sgd", start_timeout=0.05)
        log(run, 0, 3)
        assert "its records wait in memory only, since there is no spool" in caplog.text
        with pytest.raises(DeliveryError, match="'sgd' in experiment 'digits', not yet created"):
            await run.finish()
        with pytest.raises(DeliveryError, match=r"3 records were not delivered; .*'sgd'"):
            await session.close()
        assert run.stats().dropped == 3
        assert session.logger.stats().dropped == 3


async def test_a_run_without_records_is_named_as_well() -> None:
    """Nothing was logged into it, and still somebody waits for it."""
    session = FakeSession(close_timeout=0.2)
    session.answer(BY_NAME, status=503)
    await session.open()
    run = await session.start_run("digits", start_timeout=0.05)
    waiting = asyncio.ensure_future(run.created())
    with pytest.raises(DeliveryError, match=r"not reached for run local-\w+ \(in experiment 'd"):
        await session.close()
    with pytest.raises(AdpError, match="clos"):
        await waiting


# Artifacts ----------------------------------------------------------------------------------------


async def test_artifacts_of_a_late_run(bare_platform: LocalPlatform, gateway: Gateway) -> None:
    """They are uploaded when it is created."""
    await gateway.down()
    async with (
        session_of(bare_platform) as session,
        session.start_run("digits", offline=True) as run,
    ):
        upload = run.log_text("all is well", "notes.txt")
        await asyncio.sleep(0.05)
        assert not upload.done
        await gateway.up()
        await upload
        assert upload.uploaded


async def test_artifacts_that_are_lost(bare_platform: LocalPlatform, gateway: Gateway) -> None:
    """They are in no spool: leaving says which are not uploaded."""
    await gateway.down()
    async with session_of(bare_platform, close_timeout=0.5) as session:
        run = await session.start_run("digits", offline=True)
        run.log_text("all is well", "notes.txt")
        with pytest.raises(UploadError, match=r"notes\.txt"):
            await run.finish()
        with pytest.raises(UploadError, match=r"notes\.txt"):
            await session.close()


# The blocking face --------------------------------------------------------------------------------


def test_on_the_blocking_face() -> None:
    """It starts, waits for its id only when asked, and ends as any other."""
    with FakeBlockingSession(close_timeout=30.0) as session:
        down = session.session.answer(BY_NAME, ConnectionFailed("no route"))
        run = session.start_run("digits", run_name="sgd", start_timeout=0.05)
        log(run, 0, 10)
        assert run.run_id is None
        assert (run.run_name, run.status) == ("sgd", None)
        assert "not yet created" in repr(run)
        with pytest.raises(TimeoutError):
            run.created(timeout=0.02)
        with pytest.raises(TimeoutError):
            run.flush(timeout=0.02)
        assert "10 records not delivered yet" in str(run.try_flush(0.02))
        child = session.start_run("digits", parent=run)
        down.left = 0
        assert run.created(timeout=60.0) == run.run_id
        run.flush(timeout=60.0)
        assert run.stats().delivered == 10
        child.finish()
        run.finish("KILLED")
        received = session.session.received(run.run_id)
        assert received.info["status"] == "KILLED"
        tags = dict(session.session.received(child.run_id).tags)
        assert tags["mlflow.parentRunId"] == run.run_id


async def test_a_training_script_without_a_service(
    bare_platform: LocalPlatform, gateway: Gateway
) -> None:
    """``with blocking.start_run`` trains, ends in time, and raises nothing of ours."""
    await gateway.down()
    settings = session_of(bare_platform, close_timeout=0.5).settings

    def train() -> float:
        began = time.monotonic()
        knobs = attrs.asdict(settings, recurse=False)
        with blocking.start_run("digits", start_timeout=0.1, **knobs) as run:
            log(run, 0, 100)
        return time.monotonic() - began

    assert await asyncio.to_thread(train) < 9.0
    await gateway.up()
    (spool,) = spools(bare_platform)
    async with session_of(bare_platform):
        await until(lambda: not spool.exists())
    assert the_run(gateway).info["status"] == "FINISHED"
    assert steps(the_run(gateway)) == list(range(100))


# Sessions that close while a run is open ----------------------------------------------------------


async def test_a_session_that_hands_a_run_on(
    bare_platform: LocalPlatform, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closed by hand, it has others end its runs: also one that only they create."""
    async with session_of(bare_platform) as session:
        open_ = await session.start_run("digits", run_name="open")
        await asyncio.sleep(0.05)
    assert spools(bare_platform) == []
    await gateway.down()
    async with session_of(bare_platform, close_timeout=0.2) as session:
        run = await session.start_run("digits", run_name="late", offline=True)
        log(run, 0, 10)
        waiting = [asyncio.ensure_future(each) for each in (run.created(), run.flush())]
        await asyncio.sleep(0)
    for each in waiting:
        with pytest.raises(AdpError):
            await each
    await gateway.up()
    (spool,) = spools(bare_platform)
    async with session_of(bare_platform):
        await until(lambda: not spool.exists())
    (late,) = [each for each in runs(gateway) if each.run_id != open_.run_id]
    assert late.info["run_name"] == "late"
    assert steps(late) == list(range(10))
    assert {each.info["status"] for each in runs(gateway)} == {"RUNNING"}


async def test_an_end_that_takes_too_long_is_told_later(
    bare_platform: LocalPlatform, gateway: Gateway
) -> None:
    """Leaving the run says so, and the session keeps trying; then nothing is left of it."""
    async with session_of(bare_platform, close_timeout=0.5, timeout=0.3) as session:
        run = await session.start_run("digits")
        hanging = gateway.inject(Fault.hang(), operation=UPDATE, times=None)
        with pytest.raises(DeliveryError, match="its status could not be set in time"):
            await run._leave(None)
        gateway.faults.remove(hanging)
        await until(lambda: gateway.received(run.run_id).info["status"] == "FINISHED")
        await until(lambda: not session._delivery.starts.pending)
    assert spools(bare_platform) == []


async def test_a_mistake_of_ours_costs_one_run(
    bare_platform: LocalPlatform, gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, others are created, and what it had is still on disk."""
    async with session_of(bare_platform, close_timeout=2.0) as session:
        creator = session._delivery.starts.creator
        create, asked = creator.create, []

        async def broken(start: Any) -> Any:
            asked.append(start)
            if len(asked) == 1:
                raise ZeroDivisionError
            return await create(start)

        creator.create = broken  # type: ignore[method-assign]
        lost = await session.start_run("digits", offline=True)
        other = await session.start_run("digits", offline=True)
        log(lost, 0, 3)
        assert await other.created()
        await other.finish()
    assert "what was to be done for it failed; it is still on disk" in caplog.text
    assert len(runs(gateway)) == 1
    assert len(spools(bare_platform)) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
async def test_in_a_forked_child(
    bare_platform: LocalPlatform, gateway: Gateway, tmp_path: Path
) -> None:
    """It logs into the run once that is created, and is told before that it is not."""
    script = """
        import os, sys
        from adp_async import blocking
        from adp_async.errors import AdpError

        session = blocking.Session().open()
        run = session.start_run("digits", offline=True)

        def child(key):
            pid = os.fork()
            if not pid:
                try:
                    run.log_metric(key, 1.0)
                    print(key, run.run_id, flush=True)
                    blocking.shared_session(**{}).close()
                except AdpError as error:
                    print("not yet created" in str(error), flush=True)
                os._exit(0)
            os.waitpid(pid, 0)

        child("before")
        print("forked", flush=True)
        run.created()
        child("after")
        run.finish()
    """
    await gateway.down()
    child = await start(bare_platform, tmp_path, script)
    await child.says("forked")
    await gateway.up()
    code, out, errors = await child.ends()
    assert code == 0, errors
    run = the_run(gateway)
    assert out.split() == ["after", run.run_id]
    assert points(gateway, run.run_id) == {"after": [0]}


# What else the service may say --------------------------------------------------------------------


async def late_run(*answers: tuple[str, dict[str, Any]]) -> FakeSession:
    """Create a run later, in a session that first gets *answers*, each once; the session."""
    async with FakeSession() as session:
        for operation, answer in answers:
            session.answer(operation, answer.pop("body", None), times=1, **answer)
        run = await session.start_run("digits", offline=True)
        run.log_metric("loss", 0.5)
        async with asyncio.timeout(60):
            await run.created()
        await run.finish()
        (found,) = session.service.store.runs.values()
        assert found.info["status"] == "FINISHED"
        assert found.info["experiment_id"] == "1"
    return session


@pytest.mark.parametrize("body", [{}, {"run": {"info": {}}}, {"run": {"info": {"run_id": "a\nb"}}}])
async def test_a_reply_that_makes_no_sense(body: object) -> None:
    """It names no run: it is asked again."""
    session = await late_run((CREATE, {"body": body}))
    asked = [each.operation for each in session.requests]
    assert asked.count(CREATE) == 2


async def test_an_experiment_that_somebody_creates_meanwhile() -> None:
    """Its name is taken, and so it is there."""
    refused = {"body": {"code": "RESOURCE_ALREADY_EXISTS"}, "status": 409, "after_write": True}
    await late_run(("create_experiment", refused))


async def test_an_experiment_that_cannot_be_created() -> None:
    """The service's word, which is asked for again; a page of somebody else is none."""
    refused = {"body": {"code": "LimitExceeded"}, "status": 400}
    page = {"body": b"<html>", "status": 404}
    await late_run(("create_experiment", refused), (BY_NAME, page))


async def test_an_experiment_that_goes_away_meanwhile() -> None:
    """It is looked up again when the service refuses it."""
    refused = {"body": {"code": "RESOURCE_DOES_NOT_EXIST"}, "status": 404}
    session = await late_run((CREATE, refused))
    asked = [each.operation for each in session.requests]
    assert asked.count(BY_NAME) == 2


@pytest.mark.parametrize(
    ("info", "status"),
    [
        ({}, "KILLED"),
        ({"status": "SCHEDULED"}, "KILLED"),
        ({"status": "FAILED"}, "FAILED"),
        ({"lifecycle_stage": "deleted"}, "RUNNING"),
    ],
)
async def test_a_run_that_was_left_open(tmp_path: Path, info: Any, status: str) -> None:
    """It is ended if it is there, and has not ended."""
    path = orphan(tmp_path, Changes([RunStart("left", "left"), RunStart("gone", "gone")]))
    session = FakeSession(spool=tmp_path)
    session.add_run("left")
    session.received("left").info.update(info)
    session.answer("get_experiment_run_by_id", b"<html>", status=404, times=1)
    async with session:
        await until(lambda: not path.exists())
    assert session.received("left").info["status"] == status


async def test_a_401_is_not_away(caplog: pytest.LogCaptureFixture) -> None:
    """While the credentials are refused, a run that starts is told so, and does not wait."""
    async with FakeSession() as session:
        refused = session.answer(BY_NAME, {"code": "NotAuthenticated"}, status=401)
        run = await session.start_run("digits", offline=True)
        await until(lambda: refused.given > 1)
        assert session.health().status == "failing"
        with pytest.raises(NotAuthenticated):
            await session.start_run("digits")
        refused.left = 0
        await run.created()
    assert "401 NotAuthenticated" in caplog.text


async def test_a_run_that_the_service_never_takes(
    bare_platform: LocalPlatform, gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    """The next session gives it up after a few times, and keeps what it has."""
    gateway.inject(Fault.reply(400, "InvalidParameter"), times=None, operation=CREATE)
    async with session_of(bare_platform, close_timeout=0.2) as session:
        run = await session.start_run("digits", offline=True)
        log(run, 0, 3)
        await run.finish()
    async with session_of(bare_platform) as session:
        await until(lambda: session._engine.recoveries is not None)
        assert session._engine.recoveries is not None
        await until(lambda: "some records could not be delivered" in caplog.text)
        await until(lambda: bool(session._engine.recoveries and session._engine.recoveries.is_done))
    (spool,) = spools(bare_platform)
    gateway.clear_faults()
    async with session_of(bare_platform):
        await until(lambda: not spool.exists())
    assert steps(the_run(gateway)) == [0, 1, 2]
