"""Processes: fork with and without exec, multiprocessing, and runs that are pickled into workers.

All of it happens in processes of the tests' own, since the one that runs the tests has threads
which a fork would not copy.  ``pytest tests/test_processes.py --rounds 200`` is the long one.
"""

from __future__ import annotations

import copy
import os
import pickle
from typing import TYPE_CHECKING

import pytest
from children import points, start, until

import adp_async.blocking
from adp_async._io.spool import Spool
from adp_async._io.spool_file import find_spools
from adp_async._shared_sessions import SharedSessions
from adp_async.address import address_of
from adp_async.auth import CustomSigner
from adp_async.blocking import _session_of
from adp_async.local import Fault, LocalPlatform
from adp_async.testing import FakeBlockingSession

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

# Fork ---------------------------------------------------------------------------------------------

FORK_ROUNDS = """
    import os, signal, sys, threading, time
    from adp_async import blocking
    from adp_async.address import address_of

    def child(run_id, number):
        session = blocking.Session().open()
        run = session.attach_run(run_id)
        for step in range(20):
            run.log_metric(f"child-{number}", 1.0, step=step)
        if number % 3 == 0:
            session.close()
            os._exit(0)
        if number % 3 == 1:
            run.flush()
        sys.exit()  # through the interpreter's end, which delivers what waits

    def reap(pid):
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                assert status == 0, status
                return
            time.sleep(0.001)
        os.kill(pid, signal.SIGABRT)
        sys.exit("a child hangs")

    def log_all_the_time():
        step = 0
        while not done.is_set():
            run.log_metric("parent", 1.0, step=step)
            if step % 50 == 0:
                run.set_tag("step", step)
            step += 1
            time.sleep(0.0005)
        print("parent", step)

    run_id, rounds = sys.argv[1], int(sys.argv[2])
    session = blocking.Session().open()
    run = session.attach_run(run_id)
    done = threading.Event()
    thread = threading.Thread(target=log_all_the_time)
    thread.start()
    for number in range(rounds):
        pid = os.fork()
        if pid == 0:
            child(run_id, number)
        reap(pid)
    done.set()
    thread.join()
    session.close()
"""


@needs_fork
async def test_parent_and_children_log_at_once(
    bare_platform: LocalPlatform, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Forked in the middle of it, again and again: every point arrives once, nothing hangs."""
    rounds = request.config.getoption("--rounds")
    run_id = bare_platform.gateway.add_run()
    child = await start(bare_platform, tmp_path, FORK_ROUNDS, run_id, rounds, spool_interval=0.005)
    out = await child.ends_well(240 + rounds)
    arrived = points(bare_platform.gateway, run_id)
    parents = int(out.split()[-1])
    assert sorted(arrived.pop("parent")) == list(range(parents))
    assert {key: sorted(steps) for key, steps in arrived.items()} == {
        f"child-{number}": list(range(20)) for number in range(rounds)
    }
    assert list((bare_platform.directory / "spool").iterdir()) == []  # type: ignore[operator]


FORKED_SPOOL = """
    import os, sys
    from pathlib import Path
    from adp_async._io.spool import Spool
    from adp_async._io.spool_file import Identity, SpoolError
    from adp_async._sansio.journal import Changes, Chunk
    from adp_async._sansio.records import Metric

    def commit(first):
        records = [Metric("loss", 1.0, 1, step) for step in range(first, first + 100)]
        spool.commit(Changes(chunks=[Chunk("r", first, records)]))

    folder, how = Path(sys.argv[1]), sys.argv[2]
    spool = Spool.create(folder, Identity("https://x", "platform", "workspace"), limit=10**9)
    commit(0)
    pid = os.fork()
    if pid == 0:
        if how == "closes":
            spool.close()
        elif how == "forgets":
            del spool
        elif how == "writes":
            try:
                commit(1000)
            except SpoolError:
                sys.exit()
            sys.exit("it wrote")
        sys.exit()
    assert os.waitpid(pid, 0)[1] == 0
    commit(100)
    os.kill(os.getpid(), 9)
"""


@needs_fork
@pytest.mark.parametrize("how", ["exits", "forgets", "closes", "writes"])
async def test_a_forked_spool(bare_platform: LocalPlatform, tmp_path: Path, how: str) -> None:
    """Whatever a child does with its copy of an open spool, the parent's file stays whole."""
    folder = tmp_path / "forked"
    child = await start(bare_platform, tmp_path, FORKED_SPOOL, folder, how)
    code, _, errors = await child.ends()
    assert (code, errors) == (-9, "")
    (path,) = find_spools(folder)
    spool = Spool.open(path, limit=10**9)
    assert [piece.spilled for piece in spool.pieces()] == [((0, 200),)]
    spool.release()


FORK_AND_DIE = """
    import gc, os, sys, time
    from adp_async import blocking
    from adp_async.address import address_of

    session = blocking.Session().open()
    run = session.attach_run(sys.argv[1])

    def log(first, last):
        for step in range(first, last):
            run.log_metric("loss", 1.0, step=step)
        keeper = session.session._delivery.keeper
        while keeper.spool.contents().records < last:
            time.sleep(0.01)

    log(0, 100)
    pid = os.fork()
    if pid == 0:
        if sys.argv[2] == "forgets":
            del session, run, log
            gc.collect()
        sys.exit()
    assert os.waitpid(pid, 0)[1] == 0
    log(100, 200)
    os.kill(os.getpid(), 9)
"""


@needs_fork
@pytest.mark.parametrize("how", ["forgets", "exits"])
async def test_a_childs_end_leaves_the_parents_journal(
    bare_platform: LocalPlatform, tmp_path: Path, how: str
) -> None:
    """A forked child that ends takes nothing of the parent's spool with it."""
    gateway = bare_platform.gateway
    run_id = gateway.add_run()
    await gateway.down()
    child = await start(bare_platform, tmp_path, FORK_AND_DIE, run_id, how, spool_interval=0.02)
    code, _, errors = await child.ends()
    assert code == -9, errors
    await gateway.up()
    async with bare_platform.session():
        await until(lambda: len(gateway.received(run_id).metrics) == 200)
    assert sorted(points(gateway, run_id)["loss"]) == list(range(200))


FORK_AND_GO_ON = """
    import gc, os, sys, threading, time
    from adp_async import blocking

    session = blocking.Session(timeout=20.0).open()
    run = session.attach_run(sys.argv[1])
    how = sys.argv[2]
    run.log_metric("loss", 1.0, step=0)
    run.flush()  # its connection is kept open
    if how == "in flight":
        run.log_metric("loss", 1.0, step=1)
        flushing = threading.Thread(target=run.flush)
        flushing.start()
        time.sleep(0.2)  # the answer takes half a second
    pid = os.fork()
    if pid == 0:
        if how == "forgets":
            del session, run
            gc.collect()
        sys.exit()
    assert os.waitpid(pid, 0)[1] == 0
    began = time.monotonic()
    if how == "in flight":
        flushing.join()
    run.log_metric("loss", 1.0, step=2)
    run.flush()
    print(time.monotonic() - began)
    session.close()
"""


@needs_fork
@pytest.mark.parametrize("tls", [False, True], ids=["http", "tls"])
@pytest.mark.parametrize("how", ["exits", "forgets", "in flight"])
async def test_a_childs_end_leaves_the_parents_connections(
    api_key: RSAPrivateKey, tmp_path: Path, how: str, tls: bool
) -> None:
    """A child that ends closes, and says, nothing on the connections it shares with its parent."""
    async with LocalPlatform(tmp_path / "here", mlflow=False, key=api_key, tls=tls) as platform:
        gateway, run_id = platform.gateway, platform.gateway.add_run()
        if how == "in flight":
            gateway.inject(Fault.drip(0.25), times=None)
        knobs = {"spool": "off", **({"ca_bundle": platform.ca_bundle} if tls else {})}
        child = await start(platform, tmp_path, FORK_AND_GO_ON, run_id, how, **knobs)
        seconds = float(await child.ends_well())
        assert seconds < 15.0
        steps = sorted(points(gateway, run_id)["loss"])
        assert steps == ([0, 1, 2] if how == "in flight" else [0, 2])
        assert gateway.counts.by_status == {200: len(steps)}, "nothing was sent again"


EXEC = """
    import subprocess, sys
    from adp_async import blocking
    from adp_async.address import address_of

    who, run_id = sys.argv[1:]
    with blocking.attach_run(run_id) as run:
        if who == "parent":
            run.log_metric("parent", 1.0, step=0)
            child = subprocess.Popen([sys.executable, __file__, "child", run_id])
            for step in range(1, 500):
                run.log_metric("parent", 1.0, step=step)
            assert child.wait(100) == 0
        else:
            for step in range(500):
                run.log_metric("child", 1.0, step=step)
"""


async def test_fork_and_exec(bare_platform: LocalPlatform, tmp_path: Path) -> None:
    """A program that a program starts logs into the same run."""
    run_id = bare_platform.gateway.add_run()
    child = await start(bare_platform, tmp_path, EXEC, "parent", run_id)
    await child.ends_well()
    arrived = points(bare_platform.gateway, run_id)
    assert {key: sorted(steps) for key, steps in arrived.items()} == {
        "parent": list(range(500)),
        "child": list(range(500)),
    }


FORK_IN_A_LOOP = """
    import asyncio, os, sys
    import adp_async
    from adp_async import blocking
    from adp_async.address import address_of

    def child(session, run):
        try:
            session.logger.log_metric(run.run_id, "child", 1.0)
        except adp_async.Closed as error:
            assert "parent process" in str(error), error
        else:
            os._exit(3)
        with address_of(run).attach() as own:
            for step in range(100):
                own.log_metric("child", 1.0, step=step)
        os._exit(0)

    async def main(run_id):
        async with adp_async.Session() as session:
            run = session.attach_run(run_id)
            for step in range(100):
                run.log_metric("parent", 1.0, step=step)
                if step == 50:
                    pid = os.fork()
                    if pid == 0:
                        child(session, run)
                await asyncio.sleep(0)
            code = await asyncio.to_thread(os.waitpid, pid, 0)
            assert code[1] == 0, code

    asyncio.run(main(sys.argv[1]))
"""


@needs_fork
async def test_a_fork_within_a_running_loop(bare_platform: LocalPlatform, tmp_path: Path) -> None:
    """In the child, the parent's session is an error; a handle of its own works."""
    run_id = bare_platform.gateway.add_run()
    child = await start(bare_platform, tmp_path, FORK_IN_A_LOOP, run_id)
    await child.ends_well()
    arrived = points(bare_platform.gateway, run_id)
    assert sorted(arrived["parent"]) == sorted(arrived["child"]) == list(range(100))


HOOKS = """
    import os, sys
    from adp_async import blocking
    from adp_async.address import address_of

    with blocking.attach_run(sys.argv[1]) as run:
        os.register_at_fork(
            before=lambda: run.log_metric("before", 1.0),
            after_in_parent=lambda: run.log_metric("after", 1.0),
        )
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
"""


@needs_fork
async def test_hooks_that_log(bare_platform: LocalPlatform, tmp_path: Path) -> None:
    """What a program does at a fork may log."""
    run_id = bare_platform.gateway.add_run()
    child = await start(bare_platform, tmp_path, HOOKS, run_id)
    await child.ends_well()
    assert points(bare_platform.gateway, run_id) == {"before": [0], "after": [0]}


# multiprocessing ----------------------------------------------------------------------------------

WORKERS = """
    import asyncio, multiprocessing, sys
    import adp_async
    from adp_async import blocking
    from adp_async.address import address_of

    def log(run, key, first, last):
        for step in range(first, last):
            run.log_metric(key, 1.0, step=step)

    def with_address(address, key):
        log(address.attach(), key, 0, 300)

    def with_run(run, key):
        log(run, key, 0, 300)

    def fails(address, key):
        with_address(address, key)
        raise SystemExit(3)

    def setup(address):
        global loaders_run
        loaders_run = address.attach()

    def load(number):
        log(loaders_run, "loader", 10 * number, 10 * number + 10)
        return number

    def in_processes(context, run):
        address = address_of(run)
        # Forked, a process gets its arguments as they are; else they are pickled.
        how = with_address if context.get_start_method() == "fork" else with_run
        what = address if how is with_address else run
        processes = [
            context.Process(target=with_address, args=(address, "address"), daemon=True),
            context.Process(target=how, args=(what, "run")),
            context.Process(target=fails, args=(address, "failed")),
        ]
        for process in processes:
            process.start()
        log(run, "parent", 0, 300)
        with context.Pool(2, initializer=setup, initargs=(address,)) as pool:
            assert pool.map(load, range(30), chunksize=1) == list(range(30))
            pool.close()
            pool.join()
        for process in processes:
            process.join()  # the test's own limit is the only one, and says where it hangs
        return [process.exitcode for process in processes]

    async def asynchronous(context, run_id, in_a_thread):
        async with adp_async.Session() as session:
            run = session.attach_run(run_id)
            if in_a_thread:
                return await asyncio.to_thread(in_processes, context, run)
            return in_processes(context, run)

    if __name__ == "__main__":
        run_id, method, kind = sys.argv[1:]
        context = multiprocessing.get_context(method)
        if kind == "blocking":
            with blocking.attach_run(run_id) as run:
                codes = in_processes(context, run)
        else:
            codes = asyncio.run(asynchronous(context, run_id, kind == "in a thread"))
        print(codes)
"""


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        pytest.param("fork", "blocking", marks=needs_fork),
        pytest.param("fork", "asynchronous", marks=needs_fork),
        pytest.param("fork", "in a thread", marks=needs_fork),
        ("spawn", "blocking"),
        ("spawn", "in a thread"),
    ],
)
async def test_multiprocessing(
    bare_platform: LocalPlatform, tmp_path: Path, method: str, kind: str
) -> None:
    """Processes and a pool log into the parent's run, each by its own session, which delivers.

    They got the run's address, or the run itself, which arrives as a handle; nobody closes.
    """
    run_id = bare_platform.gateway.add_run()
    child = await start(bare_platform, tmp_path, WORKERS, run_id, method, kind)
    # Six processes import all of it, which takes a busy machine a minute.
    codes = await child.ends_well(300)
    if (method, kind) != ("fork", "in a thread"):
        # Python's own: a child that an executor's thread has forked can't end well.
        assert codes == "[0, 0, 3]\n"
    arrived = points(bare_platform.gateway, run_id)
    assert {key: sorted(steps) for key, steps in arrived.items()} == {
        key: list(range(300)) for key in ("parent", "address", "run", "failed", "loader")
    }
    assert list((bare_platform.directory / "spool").iterdir()) == []  # type: ignore[operator]


TERMINATED = """
    import multiprocessing, sys, time
    from adp_async import blocking
    from adp_async.address import address_of

    def setup(address):
        global run, logged
        run, logged = address.attach(), 0

    def load(number):
        global logged
        logged += 1
        run.log_metric("loader", 1.0, step=number)
        keeper = run._session.session._delivery.keeper
        while keeper.spool.contents().records < logged:
            time.sleep(0.002)

    if __name__ == "__main__":
        with blocking.attach_run(sys.argv[1]) as parents:
            address = address_of(parents)
            context = multiprocessing.get_context("fork")
            with context.Pool(2, initializer=setup, initargs=(address,)) as pool:
                pool.map(load, range(100), chunksize=1)
"""


@needs_fork
async def test_workers_that_are_terminated(bare_platform: LocalPlatform, tmp_path: Path) -> None:
    """A pool that ends its workers by a signal, as ``with Pool`` does: the spools are delivered."""
    gateway = bare_platform.gateway
    run_id = gateway.add_run()
    knobs = {"spool_interval": 0.02, "linger": 60.0}
    child = await start(bare_platform, tmp_path, TERMINATED, run_id, **knobs)
    await child.ends_well()
    assert points(gateway, run_id) == {}
    async with bare_platform.session():
        await until(lambda: len(gateway.received(run_id).metrics) == 100)
    assert sorted(points(gateway, run_id)["loader"]) == list(range(100))


# Pickles ------------------------------------------------------------------------------------------


def sign_nothing(request: object) -> None:
    """A signer that can be pickled."""


def test_a_pickled_run_says_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is pickled is the run's id and its session's settings; all handles share a session."""
    opened: list[FakeBlockingSession] = []

    def session(**settings: object) -> FakeBlockingSession:
        opened.append(FakeBlockingSession())
        assert settings["linger"] == 0.005
        return opened[-1]

    monkeypatch.setattr(adp_async.blocking, "Session", session)
    monkeypatch.setattr(adp_async.blocking, "_shared", SharedSessions(_session_of))
    with FakeBlockingSession(auth=CustomSigner(sign_nothing)) as parents:
        run = parents.start_run()
        copies = [pickle.loads(pickle.dumps(each)) for each in (run, run._run, run)]
        address = pickle.loads(pickle.dumps(address_of(run)))
    assert address.run_id == run.run_id
    assert {each.run_id for each in copies} == {run.run_id}
    assert len(opened) == 1
    assert "settings" not in repr(address)
    for each in opened:
        each.close()


def test_the_settings_of_an_address() -> None:
    """An address is a value: equal, copied and pickled as such."""
    with FakeBlockingSession(auth=CustomSigner(sign_nothing)) as session:
        address = address_of(session.start_run())
    assert copy.deepcopy(address) == pickle.loads(pickle.dumps(address)) == address
