"""One run from several processes of this machine, through a collector, over both carriers."""

from __future__ import annotations

import asyncio
import multiprocessing
import pickle
import re
import socket
import stat
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
import pytest
import workers
from children import points

import adp_async
from adp_async import DeliveryError, blocking
from adp_async.collector import Carrier, attached_session
from adp_async.collector import session as sessions
from adp_async.collector.ranks import find_rank
from adp_async.collector.sockets import host_and_port
from adp_async.errors import (
    AdpError,
    BadRequest,
    Closed,
    ConfigurationError,
    ConnectionFailed,
    Forbidden,
    NotAuthenticated,
)
from adp_async.testing import FakeBlockingSession, FakeSession

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adp_async.local import LocalPlatform

CARRIERS: dict[str, str | None] = {"socket": None, "tls": "127.0.0.1"}


@pytest.fixture(params=CARRIERS.values(), ids=CARRIERS)
def listen(request: pytest.FixtureRequest) -> str | None:
    found: str | None = request.param
    return found


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeBlockingSession]:
    with FakeBlockingSession(spool=tmp_path / "spool") as session:
        yield session


@pytest.fixture
def bare(api_key: Any, tmp_path: Path) -> Iterator[LocalPlatform]:
    """A platform without MLflow in a thread: the owner of the run is in this process."""
    with adp_async.local.LocalPlatform(tmp_path / "platform", mlflow=False, key=api_key) as bare:
        yield bare


def session_of(platform: LocalPlatform, **knobs: Any) -> blocking.Session:
    auth = adp_async.ApiKey(config_file=platform.config_file, profile=platform.profile)
    given = {"endpoint": platform.endpoint, "auth": auth, "linger": 0.1, **knobs}
    return blocking.Session(platform.platform_id, platform.workspace, **given)


def steps(fake: FakeBlockingSession, run_id: str) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for metric in fake.session.received(run_id).metrics:
        found.setdefault(metric.key, []).append(metric.step)
    return found


# ------------------------------------------------------------------ processes


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_a_pool_logs_into_one_run(bare: LocalPlatform, listen: str | None, method: str) -> None:
    """Every point of every task once, in few requests; the tasks have handed all of it over."""
    with session_of(bare, linger=60.0) as session, session.start_run() as run:
        shared = run.shared(listen)
        with shared as handle:
            with multiprocessing.get_context(method).Pool(2) as pool:
                told = pool.starmap(workers.log_some, [(handle, n) for n in range(6)])
            # The pool was terminated: nothing of it was on its way any more.
            assert shared.stats().taken == 600
            names = {name.rpartition(":")[2] for name in shared.stats().workers}
            assert names == {str(process) for process, _ in told}
        run.log_metric("own", 1.0, 0)
        run.flush()
        assert run.stats().delivered == 601
    assert bare.gateway.received(run.run_id).info["status"] == "FINISHED"
    found = points(bare.gateway, run.run_id)
    assert {key: sorted(each) for key, each in found.items()} == {
        "own": [0],
        **{f"w{n}": list(range(100)) for n in range(6)},
    }
    assert len(bare.gateway.received(run.run_id).batches) <= 6


def test_a_run_that_is_passed_takes_the_same_way(bare: LocalPlatform) -> None:
    """Within `shared`, a pickled run needs no credentials; outside it is an address as before."""
    with session_of(bare) as session, session.start_run() as run:
        assert b"config" in pickle.dumps(run)
        with run.shared() as handle:
            assert b"config" not in pickle.dumps(run)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                pool.apply(workers.log_by_run, (run, 0))
                pool.apply(workers.log_async, (handle, 1))
        assert b"config" in pickle.dumps(run)
    found = points(bare.gateway, run.run_id)
    assert {key: sorted(each) for key, each in found.items()} == {
        "w0": list(range(100)),
        "w1": list(range(100)),
    }


def test_a_worker_imports_little(bare: LocalPlatform, monkeypatch: pytest.MonkeyPatch) -> None:
    """No oci, no spool, no cryptography: it is up in the time that Python takes."""
    # What measures coverage imports sqlite3 itself.
    monkeypatch.delenv("COVERAGE_PROCESS_START", raising=False)
    spawn = multiprocessing.get_context("spawn")
    owner, pool = session_of(bare), spawn.Pool(1)
    with owner, owner.start_run() as run, run.shared() as handle, pool:
        assert pool.apply(workers.what_is_imported, (handle, 0)) == []


@pytest.mark.parametrize("how", ["stream", "attempt"])
def test_mlflow_code_in_a_worker(bare: LocalPlatform, how: str) -> None:
    """`aidp://` leads to the collector there, without credentials, and the run is the owner's."""
    pool = multiprocessing.get_context("spawn").Pool(1)
    with session_of(bare) as session, session.start_run() as run, run.shared() as handle, pool:
        assert pool.apply(workers.log_by_mlflow, (handle, how)) == "RUNNING"
    received = bare.gateway.received(run.run_id)
    assert sorted(points(bare.gateway, run.run_id)[how]) == list(range(100))
    assert received.params == [(f"by {how}", "1")]
    assert received.info["status"] == "FINISHED"


def test_outside_of_a_block_nothing_is_attached(fake: FakeBlockingSession) -> None:
    """The block entered last counts, and each is forgotten on exiting, however it ends."""
    with fake.start_run() as run, run.shared() as handle:
        assert attached_session() is None
        with handle.attach() as first:
            assert attached_session() is handle.session()
            assert first.run_id == run.run_id
            with suppress(KeyError), handle.attach(attempt="7", commit="task"):
                assert attached_session() is not handle.session()
                raise KeyError
            assert attached_session() is handle.session()
        assert attached_session() is None


def test_killed_workers_are_not_waited_for_long(bare: LocalPlatform) -> None:
    """What they had handed over is there, and who never entered is not waited for at all."""
    with session_of(bare) as session, session.start_run() as run:
        shared = run.shared()
        with shared as handle:
            process = multiprocessing.get_context("spawn").Process(
                target=workers.log_without_leaving, args=(handle, 0)
            )
            process.start()
            while not (shared.stats().workers and shared.stats().taken == 100):
                time.sleep(0.01)
            process.kill()
            process.join()
            began = time.monotonic()
        assert time.monotonic() - began < 15.0  # a living one is waited for twice as long
    assert sorted(points(bare.gateway, run.run_id)["w0"]) == list(range(100))


# ------------------------------------------------------------------ both faces


async def test_an_asynchronous_owner_and_worker() -> None:
    """`async with` on both sides; receipts, counts and flushes are those of any run."""
    async with (
        FakeSession() as session,
        session.start_run() as run,
        run.shared() as handle,
        handle.attach() as worker,
    ):
        receipt = worker.log_metric("loss", 0.5, step=1)
        await receipt
        assert receipt.delivered
        worker.log_params({"lr": 0.1})
        await worker.flush(delivered=True)
        received = session.received(run.run_id)
        assert [metric.step for metric in received.metrics] == [1]
        assert received.params == [("lr", "0.1")]
        assert worker.stats().delivered == 2
        with pytest.raises(AdpError, match="ended by the process that shares it"):
            await worker.finish()
    assert session.received(run.run_id).info["status"] == "FINISHED"


def test_a_flush_waits_for_the_collector_or_for_the_service(
    fake: FakeBlockingSession, listen: str | None
) -> None:
    """The first returns while the service is down, the second does not."""
    run = fake.attach_run(fake.session.add_run())
    script = fake.session.answer("log_experiment_run_batch", status=503)
    with run.shared(listen) as handle, handle.attach() as worker:
        worker.log_metric("loss", 0.5)
        worker.flush(timeout=30)
        with pytest.raises(TimeoutError):
            worker.flush(timeout=0.1, delivered=True)
        assert steps(fake, run.run_id) == {}
        script.left = script.given
        worker.flush(timeout=30, delivered=True)
        assert steps(fake, run.run_id) == {"loss": [0]}


def test_what_the_service_refuses_is_told_to_both(fake: FakeBlockingSession) -> None:
    """To the worker that asks, by key and step; to the owner's flush as its own."""
    run = fake.attach_run(fake.session.add_run())
    with run.shared() as handle, handle.attach() as worker:
        worker.log_metric("acc@5", 0.5, step=3)
        worker.flush()
        with pytest.raises(DeliveryError, match="acc@5") as caught:
            worker.flush(delivered=True)
        assert (caught.value.key, caught.value.step) == ("acc@5", 3)
        cause = caught.value.cause
        assert isinstance(cause, BadRequest)
        assert (cause.status, cause.code) == (400, "INVALID_PARAMETER_VALUE")
        assert str(caught.value).count("the service refused") == 1
        assert "no status" not in str(caught.value)
        worker.flush(delivered=True)  # it was told
        worker.log_metric("acc@5", 0.5, step=4)
        worker.log_metric("acc@5", 0.5, step=5)
        with pytest.raises(DeliveryError) as caught:
            worker.flush(delivered=True)
        assert [each.step for each in caught.value.rejections] == [4, 5]
    with pytest.raises(DeliveryError, match="acc@5"):
        run.flush()


def test_one_session_for_all_tasks_of_a_process(fake: FakeBlockingSession) -> None:
    """Attaching again costs no connection and no thread."""
    run = fake.attach_run(fake.session.add_run())
    with run.shared() as handle:
        first, second = handle.attach(), pickle.loads(pickle.dumps(handle)).attach(prefix="b/")
        assert first._session is second._session
        assert handle.session() is first._session
        for worker in (first, second):
            with worker:
                worker.log_metric("loss", 0.5)
        names = {thread.name for thread in threading.enumerate()}
        with handle.attach():
            assert {thread.name for thread in threading.enumerate()} <= names
    run.flush()
    assert steps(fake, run.run_id) == {"loss": [0], "b/loss": [0]}


def test_a_forked_child_does_not_hold_the_parent_s_sockets(
    fake: FakeBlockingSession, listen: str | None
) -> None:
    """When the parent has closed its collector nobody listens there, however long a child lives."""
    run = fake.attach_run(fake.session.add_run())
    fork = multiprocessing.get_context("fork")
    lives, stop = fork.Event(), fork.Event()

    def live() -> None:
        lives.set()
        stop.wait(60)

    with run.shared(listen) as handle, handle.attach() as worker:
        worker.log_metric("loss", 0.5)
        worker.flush()  # there is a connection
        child = fork.Process(target=live)
        child.start()
        assert lives.wait(30)
    try:
        if listen is None:
            assert not Path(handle.address.removeprefix("unix:")).exists()
        else:
            host, _, port = handle.address.removeprefix("https://").rpartition(":")
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((host, int(port)), timeout=20).close()
    finally:
        stop.set()
        child.join()
    assert child.exitcode == 0
    run.flush()
    assert steps(fake, run.run_id) == {"loss": [0]}


def test_leaving_waits_for_workers(fake: FakeBlockingSession) -> None:
    """The owner's exit waits for one that is within its block."""
    run = fake.attach_run(fake.session.add_run())
    entered = threading.Event()

    def work(handle: Any) -> None:
        with handle.attach() as worker:
            entered.set()
            time.sleep(0.3)
            worker.log_metric("late", 1.0)

    with run.shared() as handle:
        thread = threading.Thread(target=work, args=(handle,))
        thread.start()
        assert entered.wait(30)
    thread.join()
    run.flush()
    assert steps(fake, run.run_id) == {"late": [0]}


def test_an_owner_that_fails_does_not_wait_long(fake: FakeBlockingSession) -> None:
    """Its own error comes out, although a worker is still within its block."""
    run = fake.attach_run(fake.session.add_run())

    def fail() -> None:
        with run.shared() as handle:
            handle.attach().__enter__()
            raise ZeroDivisionError

    began = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        fail()
    assert 1.5 < time.monotonic() - began < 15.0


def test_a_shared_session_serves_many_runs(fake: FakeBlockingSession, listen: str | None) -> None:
    """Its handle starts runs, and reads what the service has; all of it is sent from here."""
    with fake.shared(listen) as handle:
        with pytest.raises(ValueError, match="which of its runs"):
            handle.attach()
        with handle.session().start_run(run_name="trial") as trial:
            trial.log_metric("loss", 0.5)
        with handle.attach(trial.run_id) as worker:
            worker.log_metric("more", 0.5)
    fake.logger.flush()
    assert steps(fake, trial.run_id) == {"loss": [0], "more": [0]}
    assert fake.session.received(trial.run_id).info["status"] == "FINISHED"


def test_a_run_that_starts_offline_is_shared_as_well(fake: FakeBlockingSession) -> None:
    """Workers hand over before the service knows the run; it gets all of it in the end."""
    script = fake.session.answer("create_experiment_run", status=503)
    fake.session.answer("log_experiment_run_batch", status=503)
    with fake.start_run(offline=True) as run:
        assert run.run_id is None
        with run.shared() as handle:
            assert b"config" not in pickle.dumps(run)
            with handle.attach() as worker:
                for step in range(10):
                    worker.log_metric("loss", 0.5, step)
                worker.flush(timeout=30)
        assert run.stats().undelivered == 10
        script.left = script.given
        fake.session.service._scripts.clear()
        run.flush(timeout=20)
        assert steps(fake, run.run_id) == {"loss": list(range(10))}


def test_artifacts_are_the_owner_s(fake: FakeBlockingSession) -> None:
    """They need credentials: the error says where they can be uploaded."""
    run = fake.attach_run(fake.session.add_run())
    refused = pytest.raises(AdpError, match="in the process that shares the run")
    with run.shared() as handle, handle.attach() as worker, refused:
        worker.log_text("hello", "a.txt")


# ------------------------------------------------------------------ ranks


@pytest.mark.parametrize(
    ("how", "key", "texts"),
    [
        ({}, "loss", True),
        ({"prefix": "a/"}, "a/loss", True),
        ({"rank": 0}, "rank0/loss", True),
        ({"rank": 3}, "rank3/loss", False),
        ({"rank": 3, "prefix": ""}, "loss", False),
        ({"rank": 3, "prefix": "gpu{rank}."}, "gpu3.loss", False),
        ({"rank": 3, "texts": "all"}, "rank3/loss", True),
    ],
)
def test_ranks(fake: FakeBlockingSession, how: dict[str, Any], key: str, texts: bool) -> None:
    """Metrics get the prefix; params and tags are rank 0's, those of others are counted."""
    run = fake.attach_run(fake.session.add_run())
    with run.shared() as handle, handle.attach(**how) as worker:
        worker.log_metric("loss", 0.5, 1)
        worker.log_metrics({"loss": 0.25}, 2)
        receipts = [worker.log_param("lr", 0.1), worker.set_tag("a", "b")]
        receipts += [*worker.log_params({"p": 1}), *worker.set_tags({"c": "d"})]
        worker.flush(delivered=True)
        for receipt in receipts:
            receipt.wait(20)
            assert receipt.done
            assert receipt.delivered is texts
        stats = worker.stats()
    received = fake.session.received(run.run_id)
    assert steps(fake, run.run_id) == {key: [1, 2]}
    assert len(received.params) == len(received.tags) == (2 if texts else 0)
    assert stats.dropped == (0 if texts else 4)
    assert stats.accepted == stats.delivered + stats.dropped


@pytest.mark.parametrize("rank", [-1, "first", 1.5, True])
def test_a_rank_that_is_none(rank: Any) -> None:
    """It is named, before anything is opened."""
    handle = adp_async.collector.Handle("unix:/nowhere", "ocid1.x", "w", "r")
    with pytest.raises(ValueError, match="rank"):
        handle.attach(rank=rank)


@pytest.mark.parametrize("prefix", [3, b"x", ["x"]])
def test_a_prefix_that_is_none(prefix: Any) -> None:
    """It is named as well."""
    handle = adp_async.collector.Handle("unix:/nowhere", "ocid1.x", "w", "r")
    with pytest.raises(ValueError, match="prefix: must be a str"):
        handle.attach(prefix=prefix)


@pytest.mark.parametrize(
    ("environ", "rank"),
    [
        ({}, None),
        ({"RANK": "2"}, 2),
        ({"SLURM_PROCID": "5"}, 5),
        ({"OMPI_COMM_WORLD_RANK": "7"}, 7),
        ({"RANK": "1", "SLURM_PROCID": "5"}, 1),
        ({"RANK": "", "SLURM_PROCID": "5"}, 5),
        ({"RANK": "x"}, None),
        ({"RANK": "-1"}, None),
        ({"RANK": "²"}, None),
        ({"RANK": "9" * 5000}, None),
        ({"RANK": " 3\n"}, 3),
    ],
)
def test_the_rank_that_a_launcher_says(environ: dict[str, str], rank: int | None) -> None:
    """torchrun's first, then Slurm's and Open MPI's; what is not a number is passed over."""
    assert find_rank(environ) == rank


def test_the_task_s_rank_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of a Spark that Slurm has started all have the SLURM_PROCID of their node."""
    task = SimpleNamespace(partitionId=lambda: 7)
    spark = SimpleNamespace(TaskContext=SimpleNamespace(get=lambda: task))
    monkeypatch.setitem(sys.modules, "pyspark", spark)
    assert find_rank({"SLURM_PROCID": "1"}) == 7
    monkeypatch.setattr(spark.TaskContext, "get", lambda: None)  # in the driver
    assert find_rank({"SLURM_PROCID": "1"}) == 1


# ------------------------------------------------------------------ who is refused


def test_a_socket_is_its_owner_s(fake: FakeBlockingSession, tmp_path: Path) -> None:
    """0600 in a folder of 0700; both are gone afterwards."""
    run = fake.attach_run(fake.session.add_run())
    with run.shared() as handle:
        path = Path(handle.address.removeprefix("unix:"))
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not path.parent.exists()
    with run.shared(tmp_path / "new" / "socket"):
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
        assert stat.S_IMODE((tmp_path / "new" / "socket").stat().st_mode) == 0o600
    assert not (tmp_path / "new" / "socket").exists()


def test_a_wrong_token(fake: FakeBlockingSession, listen: str | None) -> None:
    """Entering raises, and nothing arrives."""
    run = fake.attach_run(fake.session.add_run())
    with run.shared(listen) as handle:
        forged = attrs.evolve(handle, token="guess")
        with pytest.raises(NotAuthenticated), forged.attach():
            pytest.fail("it let us in")
        worker = forged.attach()
        worker.log_metric("loss", 0.5)
        with pytest.raises(TimeoutError):
            worker.flush(timeout=0.3)
        worker.discard()
    run.flush()
    assert steps(fake, run.run_id) == {}


def test_another_job_s_certificate(fake: FakeBlockingSession) -> None:
    """Nothing is sent to it: not the records, and not the token."""
    run = fake.attach_run(fake.session.add_run())
    other = fake.attach_run(fake.session.add_run())
    mine, others = run.shared("127.0.0.1"), other.shared("127.0.0.1")
    with mine as handle, others as impostor:
        lured = attrs.evolve(handle, address=impostor.address)
        with pytest.raises(ConnectionFailed, match="certificate is another one's"), lured.attach():
            pytest.fail("it let us in")
        assert others._collector.handler.by_status == {}


def test_a_replayed_handle(fake: FakeBlockingSession, listen: str | None) -> None:
    """When its collector is closed it is of no use, even where another one listens."""
    run = fake.attach_run(fake.session.add_run())
    with run.shared(listen) as handle, handle.attach() as worker:
        worker.log_metric("loss", 0.5)
    if listen is None:
        where = handle.address.removeprefix("unix:")
    else:
        where = handle.address.removeprefix("https://")
    with run.shared(where) as second:
        replayed = pickle.loads(pickle.dumps(handle))
        with pytest.raises((NotAuthenticated, ConnectionFailed)), attrs.evolve(replayed).attach():
            pytest.fail("it let us in")
        with second.attach() as worker:
            worker.log_metric("loss", 0.5, 1)
    run.flush()
    assert steps(fake, run.run_id) == {"loss": [0, 1]}


def test_a_handle_of_one_run_used_for_another(fake: FakeBlockingSession) -> None:
    """The worker says so, and so does the collector to one who does not ask its own code."""
    run, other = (fake.attach_run(fake.session.add_run()) for _ in range(2))
    with run.shared() as handle:
        with pytest.raises(ValueError, match="alone"):
            handle.attach(other.run_id)
        session = handle.session()
        session.logger.log_metric(other.run_id, "loss", 0.5)
        with pytest.raises(TimeoutError):
            session.logger.flush(other.run_id, timeout=0.3)
        session.logger.discard(other.run_id)
        with pytest.raises(Forbidden, match="alone"):
            session.runs.get(other.run_id)
        with pytest.raises(Forbidden):
            session.runs.delete(run.run_id)
    assert steps(fake, other.run_id) == {}


def test_plain_http_to_a_tls_collector(fake: FakeBlockingSession) -> None:
    """It is cut off before anything is read."""
    run = fake.attach_run(fake.session.add_run())
    shared = run.shared("127.0.0.1")
    with shared as handle:
        host, _, port = handle.address.removeprefix("https://").rpartition(":")
        with socket.create_connection((host, int(port))) as plain:
            plain.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
            plain.settimeout(30)
            assert b"HTTP/1.1 200" not in plain.recv(1000)
        assert shared._collector.handler.by_status == {}


# ------------------------------------------------------------------ carriers of one's own


@attrs.frozen
class ByHand(Carrier):
    """Carries requests within this process, to what is shared under *name*."""

    name: str
    desks: ClassVar[dict[str, Any]] = {}

    async def carry(self, *request: Any) -> Any:
        answer = self.desks[self.name]
        if isinstance(answer, list):
            failure = answer.pop(0)
            if not answer:
                self.desks[self.name] = self.desks[f"{self.name} mended"]
            raise failure
        return await answer(*request)


def test_a_carrier_in_place_of_a_socket(fake: FakeBlockingSession) -> None:
    """Requests are carried as they are; what it raises means that no answer came."""
    run = fake.attach_run(fake.session.add_run())
    shared = run.shared(carrier=ByHand("desk"))
    ByHand.desks["desk"] = [ValueError("secret"), ConnectionFailed("gone")]
    ByHand.desks["desk mended"] = shared.answer
    with shared as handle:
        assert pickle.loads(pickle.dumps(handle)) == handle
        worker = handle.attach()
        worker.log_metric("loss", 0.5)
        worker.flush(timeout=30, delivered=True)
        with pytest.raises(NotAuthenticated):
            attrs.evolve(handle, token="guess").attach().__enter__()
    assert steps(fake, run.run_id) == {"loss": [0]}
    with pytest.raises(Closed):
        asyncio.run(shared.answer("POST", "/", {}, b""))


def test_a_carrier_that_is_slow(fake: FakeBlockingSession) -> None:
    """It is given up after the time of an attempt, and asked again."""
    run = fake.attach_run(fake.session.add_run())
    shared = run.shared(carrier=ByHand("slow"))

    async def slow(*request: Any) -> Any:
        ByHand.desks["slow"] = shared.answer
        await asyncio.sleep(30)

    ByHand.desks["slow"] = slow
    with pytest.MonkeyPatch.context() as patch, shared as handle:
        patch.setitem(sessions.DEFAULTS, "timeout", 0.2)  # type: ignore[misc]
        worker = handle.attach()
        worker.log_metric("loss", 0.5)
        worker.flush(timeout=30)
    run.flush()
    assert steps(fake, run.run_id) == {"loss": [0]}


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize("listen", ["host:x", "host:99999", "", ":80", "/a" * 60])
def test_places_that_cannot_be_listened_at(fake: FakeBlockingSession, listen: str) -> None:
    """The rule is named."""
    run = fake.attach_run(fake.session.add_run())
    with pytest.raises(ConfigurationError, match="listen"):
        run.shared(listen)


def test_a_place_that_is_taken(fake: FakeBlockingSession, tmp_path: Path) -> None:
    """A port, a socket, a name that is not ours."""
    run = fake.attach_run(fake.session.add_run())
    with run.shared("127.0.0.1") as handle, run.shared(tmp_path / "s") as second:
        for taken in (handle.address.removeprefix("https://"), second.address[5:]):
            with pytest.raises(ConfigurationError, match="cannot listen on"):
                run.shared(taken).__enter__()
    with pytest.raises(ConfigurationError, match="cannot listen on"):
        run.shared("192.0.2.1").__enter__()


def test_a_socket_that_a_dead_collector_left(fake: FakeBlockingSession, tmp_path: Path) -> None:
    """It is replaced."""
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(tmp_path / "s"))
    dead.close()
    run = fake.attach_run(fake.session.add_run())
    with run.shared(tmp_path / "s") as handle, handle.attach() as worker:
        worker.log_metric("loss", 0.5)
    run.flush()
    assert steps(fake, run.run_id) == {"loss": [0]}


def test_what_others_are_told_to_use(fake: FakeBlockingSession) -> None:
    """*advertise* is what stands in the handle."""
    run = fake.attach_run(fake.session.add_run())
    for listen, advertise, expected in (
        ("127.0.0.1", "driver", r"https://driver:\d+"),
        ("127.0.0.1", "driver:8443", "https://driver:8443"),
        ("0.0.0.0", None, r"https://[\w.-]+:\d+"),
    ):
        with run.shared(listen, advertise=advertise) as handle:
            assert re.fullmatch(expected, handle.address)
            assert "0.0.0.0" not in handle.address


def test_a_session_that_closes_under_it(listen: str | None) -> None:
    """Workers are answered no more, whoever forgot to exit."""
    session = FakeBlockingSession().open()
    run = session.attach_run(session.session.add_run())
    shared = run.shared(listen)
    handle = shared.open()
    session.close()
    with pytest.raises(Closed):
        run.shared().__enter__()
    worker = handle.attach()
    worker.log_metric("loss", 0.5)
    with pytest.raises(TimeoutError):
        worker.flush(timeout=0.2)
    worker.discard()
    shared.close()


def test_outside_of_its_block() -> None:
    """There is no handle then."""
    with FakeBlockingSession() as session:
        shared = session.shared()
        with pytest.raises(Closed, match="not shared yet"):
            _ = shared.handle


# ------------------------------------------------------------------ what a socket may bring


@pytest.mark.parametrize(
    ("head", "status"),
    [("content-length: 99999999999", 413), ("transfer-encoding: chunked", 411)],
)
def test_requests_of_no_known_size(fake: FakeBlockingSession, head: str, status: int) -> None:
    """They are refused before anything of them is read."""
    with fake.start_run() as run, run.shared() as handle, socket.socket(socket.AF_UNIX) as client:
        client.connect(handle.socket)
        token = f"authorization: Bearer {handle.token}"
        head = f"POST /x HTTP/1.1\r\nhost: localhost\r\n{token}\r\n{head}\r\n\r\n"
        client.sendall(head.encode())
        assert client.recv(1000).startswith(f"HTTP/1.1 {status} ".encode())


def test_addresses_of_ipv6() -> None:
    """In brackets, as in a URL."""
    assert host_and_port("[::1]:8443", "listen") == ("::1", 8443)
    assert host_and_port("[::1]", "listen") == ("::1", 0)
