"""Runs opened before a fork and used in the child, which gets a session of its own for them."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import sys
import urllib.request
from typing import TYPE_CHECKING

import pytest
from children import environment, points, start

if TYPE_CHECKING:
    from pathlib import Path

    from adp_async.local import LocalPlatform

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

COMMON = """
    import asyncio, multiprocessing, os, sys, threading, time
    import adp_async
    from adp_async import blocking

    def forked(function, *arguments):
        pid = os.fork()
        if pid:
            return pid
        function(*arguments)
        sys.exit()  # through the interpreter's end, which delivers what waits

    def ends_well(*pids):
        for pid in pids:
            assert os.waitpid(pid, 0)[1] == 0

    def log(run, key, first=0, last=100):
        for step in range(first, last):
            run.log_metric(key, 1.0, step=step)
"""

STARTED = """
    def child(run):
        log(run, "child")
        run.log_metrics({"wide": 0.5, "other": 0.5}, step=1)
        run.log_param("pid", "child")
        receipt = run.set_tag("who", "child")
        run.flush()
        assert receipt.delivered
        assert run.stats().delivered == 104, run.stats()
        assert run.run_name == "digits"
        for finish in (run.finish, run._run.finish):
            try:
                done = finish("FAILED")
                if done is not None:
                    asyncio.run(done)
            except adp_async.Closed as error:
                assert "belongs to the parent process, which ends it" in str(error)
            else:
                os._exit(3)

    with blocking.start_run(run_name="digits") as run:
        log(run, "parent")
        run.flush()
        ends_well(forked(child, run))
        log(run, "parent", 100, 200)
    print(run.run_id)
"""


async def test_a_started_run(bare_platform: LocalPlatform, tmp_path: Path) -> None:
    """The child logs into it, flushes and counts by itself, and cannot end it."""
    child = await start(bare_platform, tmp_path, COMMON + STARTED)
    run_id = (await child.ends_well()).strip()
    arrived = points(bare_platform.gateway, run_id)
    received = bare_platform.gateway.received(run_id)
    assert {key: sorted(steps) for key, steps in arrived.items()} == {
        "parent": list(range(200)),
        "child": list(range(100)),
        "wide": [1],
        "other": [1],
    }
    assert dict(received.params) == {"pid": "child"}
    assert dict(received.tags)["who"] == "child"
    assert received.info["status"] == "FINISHED"


LEFT_BY_THE_CHILD = """
    def main():
        with blocking.start_run() as run:
            log(run, "parent")
            pid = os.fork()
            if pid == 0:
                if sys.argv[1] == "used":
                    log(run, "child")
                return
            ends_well(pid)
            response = run._session.session.runs.get(run.run_id)
            print(run._session.call(response).info.status, run.run_id)

    pid = os.getpid()
    main()
    if os.getpid() != pid:
        names = [each.name for each in threading.enumerate()]
        assert (len(names) > 1) == (sys.argv[1] == "used"), names
        if sys.argv[1] == "used":
            sys.stdout.write("")
"""


@pytest.mark.parametrize("how", ["used", "unused"])
async def test_a_child_that_leaves_the_block(
    bare_platform: LocalPlatform, tmp_path: Path, how: str
) -> None:
    """The run goes on: what the child logged is delivered, and of what it didn't use nothing is."""
    child = await start(bare_platform, tmp_path, COMMON + LEFT_BY_THE_CHILD, how)
    status, run_id = (await child.ends_well()).split()
    arrived = points(bare_platform.gateway, run_id)
    assert status == "RUNNING"
    assert sorted(arrived["parent"]) == list(range(100))
    assert sorted(arrived.get("child", [])) == (list(range(100)) if how == "used" else [])
    assert bare_platform.gateway.received(run_id).info["status"] == "FINISHED"


OTHER_HANDLES = """
    def child(run, key):
        log(run, key)
        run.flush()

    def closes(run, key):
        log(run, key)
        run.close()

    def attached_and_left(run, key):
        with run:
            log(run, key)

    def flushes_first(run, key):
        run.flush()
        assert run.try_flush() is None
        log(run, key)
        run.flush()

    def closes_unused(run):
        run.close()
        assert not blocking._shared._sessions

    session = blocking.Session().open()
    handles = {
        "attached": session.attach_run(sys.argv[1]),
        "lenient": session.attach_run(sys.argv[1], strict=False),
    }
    own = blocking.attach_run(sys.argv[1])
    pids = [forked(child, run, key) for key, run in handles.items()]
    pids += [forked(closes, own, "closes"), forked(attached_and_left, own, "leaves")]
    pids += [forked(flushes_first, own, "flushes"), forked(closes_unused, own)]
    ends_well(*pids)
    for key, run in [*handles.items(), ("own", own)]:
        child(run, f"parents {key}")
    own.close()
    session.close()
"""


async def test_other_handles(bare_platform: LocalPlatform, tmp_path: Path) -> None:
    """Attached ones, lenient ones, and those with a session of their own."""
    run_id = bare_platform.gateway.add_run()
    child = await start(bare_platform, tmp_path, COMMON + OTHER_HANDLES, run_id)
    await child.ends_well()
    arrived = points(bare_platform.gateway, run_id)
    assert {key: sorted(steps) for key, steps in arrived.items()} == {
        key: list(range(100))
        for key in (
            *("attached", "lenient", "closes", "leaves", "flushes"),
            *("parents attached", "parents lenient", "parents own"),
        )
    }


MANY = """
    def logs_in_threads(run):
        sys.setswitchinterval(1e-6)
        begin = threading.Barrier(8)

        def work(number):
            begin.wait()
            log(run, f"thread-{number}", 0, 50)
            run.log_metrics({f"thread-{number}": 0.5}, step=50)

        threads = [threading.Thread(target=work, args=[number]) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(blocking._shared._sessions) == 1
        log(run, "child")
        ends_well(forked(log, run, "grandchild"))
        log(run, "child", 100, 200)

    with blocking.start_run() as run:
        log(run, "parent")
        ends_well(*[forked(logs_in_threads, run)])
    print(run.run_id)
"""


async def test_threads_and_grandchildren(bare_platform: LocalPlatform, tmp_path: Path) -> None:
    """Threads of a child that use it first at the same time share one session."""
    child = await start(bare_platform, tmp_path, COMMON + MANY)
    arrived = points(bare_platform.gateway, (await child.ends_well()).strip())
    expected = {f"thread-{number}": list(range(51)) for number in range(8)}
    expected |= {"parent": list(range(100)), "child": list(range(200))}
    expected["grandchild"] = list(range(100))
    assert {key: sorted(steps) for key, steps in arrived.items()} == expected


POOL = """
    def task(number):
        run.log_metric("pool", 1.0, step=number)
        run.flush()
        return os.getpid()

    context = multiprocessing.get_context("fork")
    with blocking.start_run() as run:
        run.log_metric("parent", 1.0)
        pool = context.Pool(3)
        pids = pool.map(task, range(30), chunksize=1)
        pool.close()
        pool.join()
        assert os.getpid() not in pids
        process = context.Process(target=log, args=[run, "process"])
        process.start()
        process.join()
        assert process.exitcode == 0
    print(run.run_id)
"""


async def test_multiprocessing(bare_platform: LocalPlatform, tmp_path: Path) -> None:
    """Forked workers use the run of the module."""
    child = await start(bare_platform, tmp_path, COMMON + POOL)
    arrived = points(bare_platform.gateway, (await child.ends_well()).strip())
    assert sorted(arrived["pool"]) == list(range(30))
    assert sorted(arrived["process"]) == list(range(100))
    assert arrived["parent"] == [0]


IN_A_LOOP = """
    def child(run):
        log(run, "child")
        asyncio.new_event_loop().run_until_complete(run.flush())
        assert run.stats().delivered == 100
        os._exit(0)

    async def main():
        async with adp_async.Session() as session:
            async with session.start_run() as run:
                log(run, "parent")
                pid = os.fork()
                if pid == 0:
                    child_thread = threading.Thread(target=child, args=[run])
                    child_thread.start()
                    child_thread.join()
                code = await asyncio.to_thread(os.waitpid, pid, 0)
                assert code[1] == 0, code
                log(run, "parent", 100, 200)
        print(run.run_id)

    asyncio.run(main())
"""


async def test_of_an_event_loop(bare_platform: LocalPlatform, tmp_path: Path) -> None:
    """A run of an asynchronous session logs and flushes in the child, too."""
    child = await start(bare_platform, tmp_path, COMMON + IN_A_LOOP)
    arrived = points(bare_platform.gateway, (await child.ends_well()).strip())
    assert sorted(arrived["parent"]) == list(range(200))
    assert sorted(arrived["child"]) == list(range(100))


SHARED = """
    def child(run):
        log(run, "child")
        run.flush()
        assert run.settings.endpoint != os.environ["AIDP_ENDPOINT"], run.settings
        assert not blocking._shared._sessions

    with blocking.start_run() as run:
        log(run, "parent")
        with run.shared():
            ends_well(forked(child, run), forked(child, run))
    print(run.run_id)
"""


async def test_of_a_shared_run(bare_platform: LocalPlatform, tmp_path: Path) -> None:
    """The child hands over to the collector: neither credentials nor a spool of its own."""
    child = await start(bare_platform, tmp_path, COMMON + SHARED)
    arrived = points(bare_platform.gateway, (await child.ends_well()).strip())
    assert sorted(arrived["child"]) == sorted([*range(100), *range(100)])


BEGUN_OFFLINE = """
    def too_early(run):
        for log in (run.log_metric, run.set_tag):
            try:
                log("loss", 1.0)
            except adp_async.AdpError as error:
                assert "a run in a forked process: " in str(error), error
            else:
                os._exit(3)

    def child(run):
        log(run, "child")
        run.flush()
        assert run.stats().delivered == 100

    with blocking.start_run(start_timeout=0.2) as run:
        log(run, "parent")
        assert run.run_id is None
        ends_well(forked(too_early, run))
        print("offline", flush=True)
        run.created(60.0)
        ends_well(forked(child, run))
    print(run.run_id)
"""


async def test_of_a_run_that_began_offline(bare_platform: LocalPlatform, tmp_path: Path) -> None:
    """Nobody can log into it elsewhere before it is created; then by its own id."""
    await bare_platform.gateway.down()
    child = await start(bare_platform, tmp_path, COMMON + BEGUN_OFFLINE)
    await child.says("offline")
    await bare_platform.gateway.up()
    code, out, errors = await child.ends()
    assert code == 0, errors
    arrived = points(bare_platform.gateway, out.split()[-1])
    assert sorted(arrived["parent"]) == sorted(arrived["child"]) == list(range(100))


NO_SESSION = """
    def child(run):
        os.environ["OCI_CONFIG_FILE"] = "/nowhere"
        for log in (run.log_metric, run.set_tag):
            try:
                log("loss", 1.0)
            except adp_async.Closed as error:
                assert "this forked process has no session for it" in str(error), error
                assert "/nowhere" in str(error), error
            else:
                os._exit(3)

    with blocking.start_run() as run:
        ends_well(forked(child, run))
"""


async def test_without_credentials(bare_platform: LocalPlatform, tmp_path: Path) -> None:
    """Where no session can be opened, the error says why."""
    child = await start(bare_platform, tmp_path, COMMON + NO_SESSION)
    await child.ends_well()


# gunicorn -----------------------------------------------------------------------------

APPLICATION = """
import os
from adp_async import blocking

run = blocking.attach_run(os.environ["RUN_ID"])
run.log_metric("master", 1.0)
calls = 0

def app(environ, start_response):
    global calls
    run.log_metric(f"worker-{os.getpid()}", 1.0, step=calls)
    calls += 1
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"ok"]
"""


@pytest.mark.skipif(not importlib.util.find_spec("gunicorn"), reason="gunicorn is not installed")
@pytest.mark.parametrize("end", ["SIGTERM", "SIGQUIT"])
async def test_gunicorn_with_preload(
    bare_platform: LocalPlatform, tmp_path: Path, end: str
) -> None:
    """A run of the application's module serves every worker; each call's point arrives."""
    run_id = bare_platform.gateway.add_run()
    (tmp_path / "application.py").write_text(APPLICATION)
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gunicorn", "--preload", "-w", "3", "-b", "127.0.0.1:0"),
        *("--graceful-timeout", "15", "--worker-tmp-dir", str(tmp_path), "application:app"),
        cwd=tmp_path,
        env={**environment(bare_platform), "RUN_ID": run_id},
        stderr=asyncio.subprocess.PIPE,
    )
    assert server.stderr is not None
    said: list[str] = []
    try:
        async with asyncio.timeout(120):
            while "Listening at" not in (line := (await server.stderr.readline()).decode()):
                said.append(line)
            url = line.partition("at: ")[2].split()[0]
            for _ in range(60):
                assert await asyncio.to_thread(_get, url) == b"ok"
            server.send_signal(getattr(signal, end))
            said.append((await server.stderr.read()).decode())
            await server.wait()
    finally:
        if server.returncode is None:
            server.kill()
    arrived = points(bare_platform.gateway, run_id)
    assert arrived.pop("master") == [0]
    assert sum(map(len, arrived.values())) == 60
    for steps in arrived.values():
        assert sorted(steps) == list(range(len(steps)))
    for trouble in ("Traceback", "destroyed", "Unclosed", "Closed"):
        assert trouble not in "".join(said)


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as reply:
        return bytes(reply.read())
