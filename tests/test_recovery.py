"""What a session does with its spool while it runs, and what the next one does with what is left.

Killed processes are spools without one; sessions are real but for the network.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sqlite3
import threading
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from spools import FAKE, LIMIT, chunk, metrics, old_orphan, orphan, sealed, settled

from adp_async._io import recovery, spool
from adp_async._io.recovery import Recovery, open_orphan
from adp_async._io.spool import Spool
from adp_async._io.spool_file import Identity, SpoolError, find_spools
from adp_async._io.spool_writer import Writer
from adp_async._sansio.messages import Reply
from adp_async._sansio.packing import pack
from adp_async._sansio.records import Metric, Param, RunTag
from adp_async._sansio.retry import RetryPolicy
from adp_async.errors import ConnectionLost, DeliveryError
from adp_async.local import Fault
from adp_async.testing import FakeSession

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from adp_async._io.keeper import SpoolKeeper
    from adp_async._sansio.journal import Changes
    from adp_async.local import LocalPlatform
    from adp_async.local.stand_in import StandIn

pytestmark = pytest.mark.usefixtures("patient_end", "patient_loop")

LOG_BATCH = "log_experiment_run_batch"
DOWN = ConnectionLost("the line is cut")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - a thread and a disk have no event
            await asyncio.sleep(0.002)


@asynccontextmanager
async def session_with(
    folder: Path, store: StandIn | None = None, *, down: bool = False, **knobs: Any
) -> AsyncIterator[FakeSession]:
    """A session with a spool in *folder*, before a service with the runs of *store*."""
    given = {"spool": folder, "spool_interval": 0.02, "close_timeout": 0.1, **knobs}
    session = FakeSession(**given)
    if store is not None:
        session.service.store = store
    if down:
        session.answer(LOG_BATCH, DOWN)
    async with session:
        yield session


def steps(session: FakeSession, run_id: str = "run") -> list[int]:
    return [metric.step for metric in session.received(run_id).metrics]


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def keeper(session: FakeSession) -> SpoolKeeper:
    found = session._delivery.keeper
    assert found is not None
    return found


def on_disk(session: FakeSession) -> int:
    return keeper(session).spool.contents().records


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def recoveries(
    find: Callable[[set[Path], int], recovery.Found], folder: Path
) -> recovery.Recoveries:
    """Those of a session that delivers nothing."""
    return recovery.Recoveries(
        find,
        make=lambda: None,  # type: ignore[arg-type,return-value]
        bar=lambda run_ids: None,
        thread=None,  # type: ignore[arg-type]
        folder=folder,
    )


async def test_what_a_thread_finds_for_nobody(folder: Path) -> None:
    """A cancelled search holds no file of another process afterwards."""
    path = orphan(folder, chunk(metrics(3)))
    may_look = threading.Event()

    def find(seen: set[Path], most: int) -> recovery.Found:
        may_look.wait(60)
        return recovery.open_orphans(folder, identity=FAKE, limit=LIMIT)

    searching = asyncio.create_task(recoveries(find, folder).run())
    await asyncio.sleep(0.01)
    searching.cancel()
    await asyncio.sleep(0)
    may_look.set()
    await asyncio.wait([searching])
    again = open_orphan(path, identity=FAKE, limit=LIMIT)
    assert again is not None
    again.spool.release()


async def test_a_thread_that_finds_nothing_in_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that hangs keeps nobody from leaving."""
    monkeypatch.setattr(recovery, "LONGEST_WAIT", 0.0)
    may_look = threading.Event()

    def find(seen: set[Path], most: int) -> recovery.Found:
        may_look.wait(60)
        return recovery.Found()

    searching = asyncio.create_task(recoveries(find, folder).run())
    await asyncio.sleep(0.01)
    searching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await searching
    may_look.set()


def test_an_orphan_that_breaks_while_it_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file is released: the next attempt finds it as it was."""
    path = orphan(folder, chunk(metrics(3)))
    with monkeypatch.context() as patch:
        patch.setattr(Spool, "pieces", lambda _spool: int("broken"))
        with pytest.raises(ValueError, match="broken"):
            open_orphan(path, identity=FAKE, limit=LIMIT)
    opened = open_orphan(path, identity=FAKE, limit=LIMIT)
    assert opened is not None
    opened.spool.release()


# While it runs


async def test_what_waits_is_on_disk_within_the_interval(folder: Path) -> None:
    """Also when nothing was logged for a while before."""
    async with session_with(folder, down=True) as session:
        run = session.attach_run(session.add_run())
        await asyncio.sleep(0.03)
        for count in (10, 20):
            run.log_metrics({f"m{number}": 1.0 for number in range(10)})
            begin = time.monotonic()
            await until(lambda: on_disk(session) == count)  # noqa: B023
            assert time.monotonic() - begin < 20.0


async def test_code_that_never_awaits_is_written_too(folder: Path) -> None:
    """A training loop that keeps the event loop to itself loses no more than any other."""
    async with session_with(folder, linger=60.0) as session:
        run = session.attach_run(session.add_run())
        for step in range(10):
            run.log_metric("loss", 0.5, step)
            time.sleep(0.025)  # noqa: ASYNC251 - that is the point
        until_then = time.monotonic() + 20.0
        while on_disk(session) < 10 and time.monotonic() < until_then:
            time.sleep(0.005)  # noqa: ASYNC251
        assert on_disk(session) == 10


async def test_what_is_delivered_in_time_never_touches_the_disk(folder: Path) -> None:
    """And a spool without anything in it is gone when the session is left."""
    async with session_with(folder, spool_interval=60.0) as session:
        await asyncio.sleep(0.02)
        run = session.attach_run(session.add_run())
        for _ in range(5):
            run.log_metrics({"a": 1.0, "b": 2.0})
            await run.flush()
        (path,) = find_spools(folder)
        wal = path.with_name(f"{path.name}-wal")
        assert wal.stat().st_size < 20_000

    assert left_in(folder) == []


async def test_a_journaled_batch_leaves_after_its_token_was_written(folder: Path) -> None:
    """The request that a later process would repeat is on disk before it goes out."""
    async with session_with(folder, linger=60.0) as session:
        run = session.attach_run(session.add_run("run"))
        seen: list[tuple[str, ...]] = []
        post = session.service.send

        async def send(request: Any, **options: Any) -> Any:
            if request.operation == LOG_BATCH:
                rows = keeper(session).spool._database.connection.execute(
                    "SELECT token FROM sealed"
                )
                seen.append((request.headers["opc-retry-token"], *(row[0] for row in rows)))
            return await post(request, **options)

        session.service.send = send  # type: ignore[method-assign]
        run.log_metric("loss", 0.5, 1)
        await until(lambda: on_disk(session) == 1)
        await run.flush()
        assert [len(set(tokens)) for tokens in seen] == [1]
        assert len(seen[0]) == 2


@pytest.mark.parametrize("spool_knob", [False, "off"])
async def test_without_a_spool_nothing_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, spool_knob: bool | str
) -> None:
    """Turned off by the argument, or by the environment."""
    monkeypatch.setenv("ADP_ASYNC_SPOOL", "off" if spool_knob == "off" else str(folder))
    session = FakeSession(close_timeout=0.05)
    if spool_knob == "off":
        from adp_async.settings import Settings

        arguments = {"platform_id": FAKE.platform_id, "workspace": "fake"}
        assert Settings.resolve(arguments).spool is False
    session.answer(LOG_BATCH, DOWN)
    await session.open()
    session.attach_run(session.add_run()).log_metric("loss", 0.5)
    await asyncio.sleep(0.01)
    with pytest.raises(DeliveryError, match="1 record was not delivered"):
        await session.close()

    assert session._delivery.keeper is None
    assert find_spools(folder.parent) == find_spools(folder) == []


async def test_what_is_left_at_the_end_is_said_and_delivered_later(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No error: the records are safe.  The next session has them delivered."""
    async with session_with(folder, down=True) as first:
        first.attach_run(first.add_run("run")).log_metrics({"loss": 1.0}, step=7)
    assert any("the next session delivers them" in each for each in warnings(caplog))

    async with session_with(folder, first.service.store) as second:
        await until(lambda: find_spools(folder) == [keeper(second).spool.path])
        assert steps(second) == [7]


async def test_a_commit_that_is_cancelled_is_not_lost(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session is left in the middle of one: that and the next are written."""
    entered, go_on = threading.Event(), threading.Event()
    commit = Spool.commit

    def slow(self: Spool, changes: Changes, last_error: str = "") -> None:
        if changes.chunks and not entered.is_set():
            entered.set()
            go_on.wait(60)
        commit(self, changes, last_error)

    monkeypatch.setattr(Spool, "commit", slow)
    async with session_with(folder, down=True, close_timeout=0.01) as session:
        run = session.attach_run(session.add_run("run"))
        run.log_metric("loss", 1.0, 1)
        await until(entered.is_set)
        run.log_metric("loss", 1.0, 2)
        threading.Timer(0.05, go_on.set).start()

    (path,) = find_spools(folder)
    left = Spool.open(path, limit=LIMIT)
    assert [record.step for _, record in left.waiting()] == [1, 2]  # type: ignore[union-attr]
    left.release()


async def test_a_disk_that_fails_is_said_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Logging goes on in memory, and when the disk is back what waits is written."""
    monkeypatch.setattr("adp_async._io.keeper.SECONDS_AFTER_FAILURE", 0.02)
    insert = Writer._insert
    is_full = True

    def failing(self: Writer, connection: sqlite3.Connection, changes: Changes) -> None:
        if is_full:
            raise sqlite3.OperationalError("database or disk is full")
        insert(self, connection, changes)

    monkeypatch.setattr(Writer, "_insert", failing)
    async with session_with(folder, down=True) as session:
        run = session.attach_run(session.add_run("run"))
        for step in range(20):
            run.log_metric("loss", 1.0, step)
            await asyncio.sleep(0.005)
        await until(lambda: any("disk is full" in each for each in warnings(caplog)))
        troubles = [each for each in warnings(caplog) if "disk is full" in each]
        assert len(troubles) == 1
        assert "only in memory" in troubles[0]
        assert run.stats().waiting + run.stats().in_flight == 20

        is_full = False
        await until(lambda: any("works again" in each for each in warnings(caplog)))
        assert on_disk(session) == 20


async def test_a_disk_that_fails_costs_no_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is delivered while nothing can be written is not kept for when it can."""

    def failing(self: Writer, connection: sqlite3.Connection, changes: Changes) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Writer, "_insert", failing)
    async with session_with(folder, linger=60.0) as session:
        run = session.attach_run(session.add_run("run"))
        run.log_metric("loss", 0.5)
        await until(lambda: keeper(session).failure)
        for step in range(5000):
            run.log_metric("loss", 0.5, step)
        await run.flush()
        notes = keeper(session).journal._notes
        await until(lambda: not (notes.took or notes.sealed))


# Memory


async def test_the_disk_takes_what_memory_cannot_hold(folder: Path) -> None:
    """Memory stays within its limit, order is kept, receipts come true."""
    async with session_with(folder, down=True, buffer_limit=400_000) as session:
        run = session.attach_run(session.add_run("run"))
        receipts = []
        for step in range(20_000):
            receipt = run.log_metric("loss", 0.5, step)
            if step % 4999 == 0:
                receipts.append(receipt)
                await asyncio.sleep(0)
        assert session._delivery.accumulator.cost <= 400_000
        assert run.stats().spooled > 15_000
        assert run.stats().accepted == 20_000

        session.service._scripts.clear()
        async with asyncio.timeout(120):
            await asyncio.gather(*receipts)
            await run.flush()
        assert sorted(steps(session)) == list(range(20_000))
        assert session._delivery.accumulator.cost == 0

    assert left_in(folder) == []


async def test_a_thread_waits_for_the_disk(folder: Path) -> None:
    """It is held up for as long as a commit takes, and gets no error."""
    async with session_with(folder, down=True, buffer_limit=1_000_000) as session:
        run = session.attach_run(session.add_run("run"))

        def log() -> None:
            for step in range(20_000):
                run.log_metric("loss", 0.5, step)

        await asyncio.to_thread(log)
        assert session._intake.used() <= 1_000_000 + 1000
        session.service._scripts.clear()
        async with asyncio.timeout(120):
            await run.flush()
        assert sorted(steps(session)) == list(range(20_000))


async def test_many_runs_share_what_memory_there_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading back stays within the limit, takes turns, and reads little twice."""
    read = 0
    load = Spool.load

    def counted(self: Spool, run_id: str, first: int, last: int) -> Any:
        nonlocal read
        records = load(self, run_id, first, last)
        read += len(records)
        return records

    monkeypatch.setattr(Spool, "load", counted)
    async with session_with(folder, down=True, buffer_limit=500_000) as session:
        runs = [session.attach_run(session.add_run(f"run-{number}")) for number in range(50)]
        for step in range(400):
            for run in runs:
                run.log_metric("loss", 0.5, step)
            if step % 40 == 0:
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)
        assert session._delivery.accumulator.cost <= 500_000

        session.service._scripts.clear()
        peak = 0
        flush = asyncio.ensure_future(session.logger.flush())
        async with asyncio.timeout(120):
            while not flush.done():
                peak = max(peak, session._delivery.accumulator.cost)
                await asyncio.sleep(0)
        for run in runs:
            assert steps(session, run.run_id) == list(range(400))
    assert peak <= 500_000
    assert read < 100_000


# The next session


async def test_the_next_session_delivers_and_says_so(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In one line; with the tokens they had; and the file is gone."""
    text = [Param("p", "v"), RunTag("t", "v")]
    orphan(folder, chunk(metrics(30)), sealed(0, 10, "token-a"), sealed(10, 20, "token-b"))
    orphan(folder, chunk(text))
    async with session_with(folder) as session:
        session.add_run("run")
        await until(lambda: find_spools(folder) == [keeper(session).spool.path])
        assert sorted(steps(session)) == list(range(30))
        tokens = [request.headers["opc-retry-token"] for request in session.requests]
        received = session.received("run")
        assert (received.params, received.tags) == ([("p", "v")], [("t", "v")])

    assert tokens[:2] == ["token-a", "token-b"]
    assert [each for each in warnings(caplog) if "processes" in each] == [
        f"delivering 32 records left behind by 2 dead processes in {folder}"
    ]
    assert left_in(folder) == []


async def test_left_alone_it_stays(folder: Path) -> None:
    """``recover=False`` looks at nothing; another platform's spool is nobody's business."""
    mine = orphan(folder, chunk(metrics(3)))
    theirs = orphan(
        folder, chunk(metrics(3)), identity=Identity(FAKE.endpoint, FAKE.platform_id, "other")
    )
    async with session_with(folder, recover=False) as session:
        session.add_run("run")
        await asyncio.sleep(0.03)
        assert steps(session) == []
    async with session_with(folder, session.service.store) as session:
        await until(lambda: len(steps(session)) == 3)
        await until(lambda: not mine.exists())

    assert find_spools(folder) == [theirs]


@pytest.mark.parametrize("other", ["platform", "workspace"])
async def test_a_spool_of_elsewhere_is_not_delivered_here(folder: Path, other: str) -> None:
    """Whether it comes before ours or after: its records belong into another workspace."""
    names = {"platform": ("ocid1.aidataplatform.oc1.iad.other", FAKE.workspace)}
    place = names.get(other, (FAKE.platform_id, "other"))
    elsewhere = Identity(FAKE.endpoint, *place)
    theirs = orphan(folder, chunk(metrics(3, 50)), identity=elsewhere)
    await asyncio.sleep(0.002)
    orphan(folder, chunk(metrics(3)))
    await asyncio.sleep(0.002)
    later = orphan(folder, chunk(metrics(3, 70)), identity=elsewhere)
    before = theirs.read_bytes()
    async with session_with(folder) as session:
        session.add_run("run")
        await until(lambda: session._engine.recoveries.is_done)  # type: ignore[union-attr]

    assert steps(session) == [0, 1, 2]
    assert find_spools(folder) == sorted([theirs, later])
    assert theirs.read_bytes() == before
    assert open_orphan(theirs, identity=FAKE, limit=LIMIT) is None


async def test_another_address_of_the_same_workspace_is_the_same_place(folder: Path) -> None:
    """An endpoint may move; platform and workspace say where the records belong."""
    orphan(
        folder,
        chunk(metrics(3)),
        identity=Identity("https://elsewhere", FAKE.platform_id, FAKE.workspace),
    )
    async with session_with(folder) as session:
        session.add_run("run")
        await until(lambda: len(steps(session)) == 3)


async def test_rejected_records_stay_and_are_not_announced(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Otherwise every start would warn, although nothing can be done but discard it."""
    orphan(folder, chunk([Metric("bad key!", 0.5, 1, 1), *metrics(5)]))
    async with session_with(folder) as session:
        session.add_run("run")
        await until(lambda: len(steps(session)) == 5)
        await until(lambda: len(find_spools(folder)) == 2 and not is_busy(folder, session))
    (path,) = find_spools(folder)
    caplog.clear()
    async with session_with(folder):
        await asyncio.sleep(0.03)

    assert warnings(caplog) == []
    left = Spool.open(path, limit=LIMIT)
    (row,) = left.contents().rejected
    assert (row.key, left.contents().records) == ("bad key!", 0)
    assert "illegal key" in row.reason
    left.release()


def is_busy(folder: Path, session: FakeSession) -> bool:
    own = keeper(session).spool.path
    return any(is_held(path) for path in find_spools(folder) if path != own)


def is_held(path: Path) -> bool:
    """Whether somebody has that spool open."""
    try:
        Spool.open(path, limit=LIMIT).release()
    except SpoolError:
        return True
    return False


async def test_records_of_a_run_that_is_gone_are_rejected_and_kept(folder: Path) -> None:
    """It was deleted: nobody will ever take them, and a person has to know."""
    path = orphan(folder, chunk(metrics(500), run_id="deleted"), chunk(metrics(5)))
    async with session_with(folder) as session:
        session.add_run("deleted")
        session.received("deleted").info["lifecycle_stage"] = "deleted"
        session.add_run("run")
        await until(lambda: len(steps(session)) == 5)
        await until(lambda: not is_busy(folder, session))

    left = Spool.open(path, limit=LIMIT)
    contents = left.contents()
    assert (contents.records, len(contents.rejected)) == (0, 500)
    assert "deleted" in contents.rejected[0].reason
    left.release()


async def test_killed_while_a_batch_is_taken_apart(folder: Path) -> None:
    """The next session sends a part with the token that it had, so none arrives twice."""
    async with session_with(folder, linger=60.0) as session:
        run = session.attach_run(session.add_run("run"))
        refusal = {"code": "InvalidParameter", "message": "no"}
        session.answer(LOG_BATCH, refusal, status=400, times=1)
        session.answer(LOG_BATCH, times=1, after_write=True)
        script = session.answer(LOG_BATCH, DOWN, after_write=True)
        run.log_metrics({f"m{number}": 1.0 for number in range(100)})
        await until(lambda: on_disk(session) == 100)
        flushing = asyncio.create_task(run.flush())
        await until(lambda: script.given >= 2)
        flushing.cancel()
        copy = folder.parent / "copy"
        shutil.copytree(folder, copy)
        store, sent = session.service.store, tokens(session)
    assert len(sent) == 3

    async with session_with(copy, store) as session:
        await until(lambda: tokens(session) and len(find_spools(copy)) == 1)
        again = tokens(session)

    assert again == {body: sent[body] for body in again}


async def test_what_was_discarded_does_not_come_back(folder: Path) -> None:
    """It is gone from the disk as well, and what was logged after that is not."""
    retry = RetryPolicy(first_backoff=600.0, max_backoff=600.0)
    async with session_with(folder, down=True, retry=retry) as session:
        run = session.attach_run(session.add_run("run"))
        for step in range(50):
            run.log_metric("loss", 0.5, step)
        await until(lambda: on_disk(session) == 50)
        await until(lambda: session.requests and not run.stats().in_flight)
        assert run.discard() == 50
        for step in range(50, 55):
            run.log_metric("loss", 0.5, step)
        store = session.service.store

    async with session_with(folder, store) as session:
        await until(lambda: len(steps(session)) >= 5)
        await until(lambda: len(find_spools(folder)) == 1)
        assert steps(session) == list(range(50, 55))


def tokens(session: FakeSession) -> dict[bytes, set[str]]:
    """The retry tokens that the body of each log-batch was sent with."""
    found: dict[bytes, set[str]] = {}
    for request in session.requests:
        if request.operation == LOG_BATCH:
            found.setdefault(request.body, set()).add(request.headers["opc-retry-token"])
    return found


async def test_a_second_kill_while_the_service_is_down(folder: Path) -> None:
    """Recovery gets nowhere, and a little further, and ends: each record arrives once."""
    path = orphan(folder, chunk(metrics(5000)), sealed(0, 1000, "token-a"), settled(0))
    async with session_with(folder, down=True) as first:
        first.add_run("run")
        await until(lambda: first.requests)
    assert path.exists()

    second = FakeSession(spool=folder, close_timeout=0.1)
    second.service.store = first.service.store
    async with second:
        await until(lambda: len(steps(second)) >= 1000)
        second.answer(LOG_BATCH, DOWN)
        await asyncio.sleep(0.01)
    reached = len(steps(second))

    async with session_with(folder, first.service.store) as third:
        await until(lambda: find_spools(folder) == [keeper(third).spool.path])
        assert sorted(steps(third)) == list(range(5000))
    assert reached % 1000 == 0


async def test_leaving_while_recovering_leaves_the_rest_in_the_file(folder: Path) -> None:
    """The end of a session doesn't wait for what others have left."""
    path = orphan(folder, chunk(metrics(3000)))
    other = orphan(folder, chunk(metrics(10), run_id="other"))
    async with session_with(folder, down=True) as session:
        session.add_run("run")
        await until(lambda: session.requests)
        begin = time.monotonic()
    assert time.monotonic() - begin < 20.0

    for each, count in ((path, 3000), (other, 10)):
        left = Spool.open(each, limit=LIMIT)
        assert left.contents().records == count
        left.release()


async def test_a_damaged_row_costs_no_other(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The others are delivered, one warning names it, and it is still in the file."""
    path = orphan(folder, *(chunk(metrics(1000, first), first) for first in range(0, 5000, 1000)))
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE chunks SET body = x'c1' WHERE first = 2000")
    connection.close()
    async with session_with(folder) as session:
        session.add_run("run")
        await until(lambda: len(steps(session)) == 4000)
        await until(lambda: not is_busy(folder, session))

    assert steps(session) == [*range(2000), *range(3000, 5000)]
    assert len([each for each in warnings(caplog) if "are damaged" in each]) == 1
    left = Spool.open(path, limit=LIMIT)
    assert "damaged" in left.contents().trouble
    left.release()


async def test_leaving_while_looking_lets_go_of_what_is_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that looks isn't through yet: what it opens then is nobody's."""
    path = orphan(folder, chunk(metrics(3)))
    open_one = recovery.open_orphan

    def slow(*arguments: Any, **options: Any) -> Any:
        time.sleep(0.04)
        return open_one(*arguments, **options)

    monkeypatch.setattr(recovery, "open_orphan", slow)
    async with session_with(folder):
        await asyncio.sleep(0.01)

    await until(lambda: not is_held(path))


async def test_many_spools_are_delivered_some_at_a_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each that is open takes two file descriptors, and a fleet may have died."""
    monkeypatch.setattr(recovery, "OPENED", 3)
    for number in range(8):
        orphan(folder, chunk(metrics(1, number)))
    opened: list[int] = []
    before = len(spool._open_spools)
    async with session_with(folder) as session:
        session.add_run("run")
        while len(steps(session)) < 8:
            opened.append(len(spool._open_spools) - before)
            await asyncio.sleep(0.001)

    assert sorted(steps(session)) == list(range(8))
    assert max(opened) <= 5  # the session's own, three, and one that is looked at


async def test_only_one_of_two_sessions_delivers(folder: Path) -> None:
    """Only one can have it open, even within one process."""
    for number in range(6):
        orphan(folder, chunk(metrics(100, number * 100)))
    async with session_with(folder) as first:
        first.add_run("run")
        async with session_with(folder, first.service.store) as second:
            await until(lambda: len(steps(first)) >= 600)
            await asyncio.sleep(0.02)
            assert sorted(steps(second)) == list(range(600))

    assert left_in(folder) == []


# Damage


@pytest.mark.parametrize(
    "body",
    [
        msgspec.msgpack.encode([["loss", None, 1000, 10]]),
        msgspec.msgpack.encode([["p", "key", 5]]),
        msgspec.msgpack.encode([[["loss"], 0.5, 1000, 10]]),
        b"\x91\x94\xa1\xff\xcb" + bytes(8) + b"\x01\x02",
        pack(metrics(9, 10)),
    ],
    ids=["no value", "number as text", "list as key", "key not UTF-8", "too few"],
)
@pytest.mark.parametrize("version", [1, 2])
async def test_whatever_is_damaged_delivery_goes_on(
    folder: Path, caplog: pytest.LogCaptureFixture, body: bytes, version: int
) -> None:
    """The row's neighbours, another spool and this session's own records all arrive."""
    rows = [("run", first, metrics(10, first)) for first in (0, 10, 20)]
    changes = [chunk(records, first) for _, first, records in rows]
    path = orphan(folder, *changes) if version == 2 else old_orphan(folder, rows)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE chunks SET body = ? WHERE first = 10", (body,))
    connection.close()
    await asyncio.sleep(0.002)
    orphan(folder, chunk(metrics(10, 30)))
    async with session_with(folder) as session:
        session.add_run("run")
        run = session.attach_run("run")
        run.set_tag("state", "new")
        async with asyncio.timeout(60):
            await run.flush()
        await until(lambda: not is_busy(folder, session))

    assert sorted(steps(session)) == [*range(10), *range(20, 40)]
    assert session.received("run").tags == [("state", "new")]
    assert (
        len([each for each in warnings(caplog) if "10 to 20 of run 'run' are damaged" in each]) == 1
    )
    left = Spool.open(path, limit=LIMIT)
    assert "1 rows are damaged" in left.contents().trouble
    left.release()


# A run that goes on


async def test_a_recovery_that_fails_holds_nobody(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session goes on with a run whose older records could not be looked at."""

    async def broken(self: Any, *arguments: Any, **named: Any) -> None:
        raise SpoolError("somebody pulled the plug")

    monkeypatch.setattr(Recovery, "run", broken)
    orphan(folder, chunk([RunTag("state", "old")]))
    async with session_with(folder) as session:
        session.add_run("run")
        run = session.attach_run("run")
        run.set_tag("state", "new")
        run.log_metric("loss", 0.5, 1)
        async with asyncio.timeout(60):
            await run.flush()

    assert session.received("run").tags == [("state", "new")]
    assert len(find_spools(folder)) == 1


async def test_who_goes_on_with_a_run_overwrites_what_was_left(folder: Path) -> None:
    """The tag of the process that died is set first, then that of the one that took over."""
    orphan(folder, chunk([RunTag("state", "old"), *metrics(2000)]))
    session = FakeSession(spool=folder)
    session.add_run("run")
    async with session:
        run = session.attach_run("run")
        run.set_tag("state", "new")
        await run.flush()

    assert session.received("run").tags == [("state", "old"), ("state", "new")]


async def test_a_session_that_is_left_early_keeps_that_order(folder: Path) -> None:
    """What had to wait is in the second file then, and the first is delivered before it."""
    orphan(folder, chunk([RunTag("state", "old")]))
    await asyncio.sleep(0.01)
    async with session_with(folder, down=True) as session:
        session.add_run("run")
        session.attach_run("run").set_tag("state", "new")
    assert len(find_spools(folder)) == 2
    async with session_with(folder, session.service.store) as session:
        await until(lambda: len(session.received("run").tags) == 2)

    assert session.received("run").tags == [("state", "old"), ("state", "new")]


# Beside each other


def holding(session: FakeSession, held: Callable[[bytes], bool]) -> threading.Event:
    """Requests whose body is *held* are answered once the event that is returned is set."""
    released, send = threading.Event(), session.service.send

    async def hold(request: Any, *, timeout: float | None = None) -> Any:
        while held(request.body or b"") and not released.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        return await send(request, timeout=timeout)

    session.service.send = hold  # type: ignore[method-assign]
    return released


async def test_a_run_that_waits_for_its_predecessor_holds_no_other(folder: Path) -> None:
    """Its tags come after those that were left behind; other runs' tags and its points don't."""
    orphan(folder, chunk([RunTag("state", "old"), *metrics(5000)], run_id="resumed"))
    async with session_with(folder, max_in_flight=2) as session:
        released = holding(session, lambda body: b'"old"' in body or b'"timestamp":1000' in body)
        for run_id in ("resumed", "other"):
            session.add_run(run_id)
        resumed, other = session.attach_run("resumed"), session.attach_run("other")
        for number in range(10):
            resumed.set_tag("state", f"new {number}")
        resumed.log_metric("fresh", 1.0)
        for step in range(50):
            other.log_metric("loss", 0.5, step=step)
        other.set_tag("state", "running")
        async with asyncio.timeout(60):
            await other.flush()
        assert session.received("other").tags == [("state", "running")]
        assert session.received("resumed").tags == []
        released.set()
        async with asyncio.timeout(60):
            await resumed.flush()
        values = [value for _, value in session.received("resumed").tags]
        assert values[0] == "old"
        assert values[-1] == "new 9"


@pytest.mark.parametrize("failure", ["cut", 500, 403])
async def test_one_orphan_in_trouble_holds_no_other(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    failure: object,
) -> None:
    """The service fails on one for ever: it is named, once, and the others are delivered."""
    monkeypatch.setattr(recovery, "TIME_TO_LOOK", 0.02)
    monkeypatch.setattr(recovery, "REPORTED_AFTER", 0.1)
    bad = orphan(folder, chunk([RunTag("state", "old"), *metrics(20)], run_id="bad"))
    await asyncio.sleep(0.002)
    for number in range(3):
        orphan(folder, chunk(metrics(10, 10 * number), run_id="good"))
    async with session_with(folder) as session:
        for run_id in ("bad", "good", "mine"):
            session.add_run(run_id)
        send = session.service.send

        async def fail(request: Any, *, timeout: float | None = None) -> Any:
            if b'"bad"' not in (request.body or b""):
                return await send(request, timeout=timeout)
            if failure == "cut":
                raise DOWN
            return Reply(failure, {}, b'{"code": "Odd", "message": "no"}')

        session.service.send = fail  # type: ignore[method-assign]
        mine = session.attach_run("mine")
        mine.log_metric("loss", 0.5, step=1)
        mine.set_tag("state", "new")
        session.attach_run("bad").set_tag("state", "new")
        async with asyncio.timeout(60):
            await mine.flush()
        await until(lambda: len(steps(session, "good")) == 30)
        await until(lambda: any(bad.name in message for message in warnings(caplog)))
        assert session.received("bad").tags == []
    assert len([message for message in warnings(caplog) if bad.name in message]) == 1
    assert bad in find_spools(folder)


async def test_a_pipe_in_the_folder(folder: Path) -> None:
    """What is not a file, and would block when opened, holds up neither tags nor orphans."""
    folder.mkdir(mode=0o700)  # noqa: ASYNC240
    os.mkfifo(folder / "x.spool")
    os.mkfifo(folder / "20200101-000000-000000-1-00000000.spool")
    orphan(folder, chunk(metrics(10)))
    async with session_with(folder) as session:
        session.add_run("run")
        run = session.attach_run("run")
        run.set_tag("state", "new")
        run.log_param("lr", 1)
        async with asyncio.timeout(60):
            await run.flush()
        await until(lambda: len(steps(session)) == 10)


async def test_a_search_that_hangs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After some seconds nothing waits for it any more, and one line reports it."""
    monkeypatch.setattr(recovery, "LONGEST_SEARCH", 2.0)
    monkeypatch.setattr(recovery, "LONGEST_WAIT", 0.1)
    released = threading.Event()

    def hangs(*_: Any, **__: Any) -> Any:
        released.wait(60.0)
        return []

    monkeypatch.setattr(recovery, "find_spools", hangs)
    try:
        async with session_with(folder) as session:
            run = session.attach_run(session.add_run("run"))
            run.set_tag("state", "new")
            run.log_param("lr", 1)
            await asyncio.sleep(0.02)
            assert session.received("run").tags == []
            async with asyncio.timeout(60):
                await run.flush()
            assert session.received("run").tags == [("state", "new")]
            begin = time.monotonic()
        assert time.monotonic() - begin < 20.0
    finally:
        released.set()
    assert len([each for each in warnings(caplog) if "takes long" in each]) == 1


async def test_the_order_of_many_orphans(folder: Path) -> None:
    """More processes than are opened at once have died, one after the other, with one run."""
    count = 70
    for number in range(count):
        orphan(folder, chunk([RunTag("state", f"{number:03}")]))
        await asyncio.sleep(0.001)
    async with session_with(folder) as session:
        session.add_run("run")
        run = session.attach_run("run")
        run.set_tag("state", "new")
        async with asyncio.timeout(120):
            await run.flush()

    values = [value for _, value in session.received("run").tags]
    assert values == [*(f"{number:03}" for number in range(count)), "new"]


async def test_orphans_that_appear_later(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that die while the session lives are found, each once."""
    monkeypatch.setattr(recovery, "SEARCH_EVERY", 0.03)
    async with session_with(folder) as session:
        session.add_run("run")
        await asyncio.sleep(0.02)
        for number in range(3):
            orphan(folder, chunk(metrics(10, 10 * number)))
            await until(lambda: len(steps(session)) == 10 * (number + 1))  # noqa: B023
        run = session.attach_run("run")
        run.set_tag("state", "new")
        await run.flush()
        await asyncio.sleep(0.1)
        assert steps(session) == list(range(30))
        found = session._engine.recoveries
        assert found is not None
        # In a folder where processes are killed every minute, that would be a leak.
        await until(lambda: not [*found._seen, *found._runs, *found._done, *found._since])


# Two processes

RACER = """
import asyncio
from adp_async import Session

async def main():
    async with Session():
        await asyncio.sleep(120)

asyncio.run(main())
"""


async def test_two_processes_never_deliver_the_same_spool(
    bare_platform: LocalPlatform, tmp_path: Path
) -> None:
    """Both start at once before a folder of orphans: every point arrives once."""
    from children import start

    gateway = bare_platform.gateway
    run_id = gateway.add_run()
    folder = tmp_path / "spool"
    here = Identity(bare_platform.endpoint, bare_platform.platform_id, bare_platform.workspace)
    for number in range(12):
        rows = chunk(metrics(200, number * 200), run_id=run_id)
        orphan(folder, rows, sealed(0, 100, f"token-{number}", run_id=run_id), identity=here)
    gateway.inject(Fault.drop(), times=3, operation=LOG_BATCH)
    racers = [await start(bare_platform, tmp_path, RACER, spool=folder) for _ in range(2)]
    await until(lambda: len(gateway.received(run_id).metrics) >= 2400)
    for racer in racers:
        racer.process.terminate()
        await racer.process.wait()

    arrived = sorted(metric.step for metric in gateway.received(run_id).metrics)
    assert arrived == list(range(2400))


def test_a_recovery_is_of_one_orphan(folder: Path) -> None:
    """`open_orphan` says None for a spool without anything to deliver, and removes an empty one."""
    empty = orphan(folder)
    full = orphan(folder, chunk(metrics(1)))
    found = open_orphan(full, identity=None, limit=LIMIT)

    assert open_orphan(empty, identity=None, limit=LIMIT) is None
    assert not empty.exists()
    assert found is not None
    assert found.records == 1
    found.spool.release()
