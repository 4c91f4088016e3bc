"""The client on Windows: on a real one, or as far as it can be tried elsewhere; see `windows`."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from windows import GONE

from adp_async._io.owner import Owner
from adp_async._io.spool import Spool
from adp_async._io.spool_file import Identity, find_spools
from adp_async.cli.serve import environment
from adp_async.errors import ConfigurationError
from adp_async.local import LocalPlatform
from adp_async.testing import FakeBlockingSession

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

#: Settings of the tests' own environment, and what would measure a process that looks odd.
OURS = ("ADP_", "AIDP_", "OCI_", "COVERAGE_")
FOLDER = Path(__file__).parent
HERE = Identity("http://127.0.0.1:9", "ocid1.aidataplatform.oc1.iad.a", "w")


@pytest.fixture(scope="module")
def bare(
    api_key: RSAPrivateKey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalPlatform]:
    directory = tmp_path_factory.mktemp("bare")
    with LocalPlatform(directory, mlflow=False, key=api_key) as platform:
        yield platform


def on_windows(script: str, bare: LocalPlatform, spool: Path, *, ends_with: int = 0) -> str:
    """What *script* prints there; it must end as it should."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{_PRELUDE}\n{textwrap.dedent(script)}"],
        env={
            **{name: text for name, text in os.environ.items() if not name.startswith(OURS)},
            **environment(bare),
            "PYTHONPATH": os.pathsep.join([str(FOLDER), str(FOLDER.parent)]),
            "ADP_ASYNC_SPOOL": str(spool),
        },
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == ends_with, done.stderr[-3000:]
    return done.stdout


_PRELUDE = "import windows; windows.become_windows(); import adp_async, sys"


@pytest.mark.skipif(sys.platform == "win32", reason="it is Windows")
def test_what_it_looks_like(bare: LocalPlatform, tmp_path: Path) -> None:
    """The names are really gone: otherwise the other tests prove nothing."""
    script = """
        import os, signal, socket
        from windows import GONE
        print([name for module, names in GONE.items() for name in names.split()
               if hasattr(module, name)], sys.platform)
        try:
            import fcntl
        except ImportError:
            print("no fcntl")
    """
    assert on_windows(script, bare, tmp_path) == "[] win32\nno fcntl\n"
    assert hasattr(os, "fork")  # but not here
    assert all(GONE.values())


def test_every_module_is_imported(bare: LocalPlatform, tmp_path: Path) -> None:
    """All but what runs MLflow or scikit-learn, and the integrations, which need frameworks."""
    script = """
        import pkgutil
        for each in pkgutil.walk_packages(adp_async.__path__, "adp_async."):
            parts = each.name.split(".")
            if parts[1] == "integrations" or parts[-1] in ("mlflow_process", "training"):
                continue
            __import__(each.name)
        print("all")
    """
    assert on_windows(script, bare, tmp_path) == "all\n"


def test_a_run_of_each_face(bare: LocalPlatform, tmp_path: Path) -> None:
    """Blocking and asynchronous: created, logged, flushed, ended, with nothing left on disk."""
    script = """
        import asyncio
        with adp_async.blocking.start_run("digits") as run:
            for step in range(2000):
                run.log_metric("loss", 1.0, step)
            run.flush()
            print(run.run_id)

        async def main():
            async with adp_async.Session() as session:
                async with session.start_run("digits", params={"lr": 1}) as run:
                    await run.log_metric("loss", 1.0)
                    print(run.run_id)
        asyncio.run(main())
        session = adp_async.blocking.shared_session()
        print(session.start_run().run_id)  # left open: the interpreter's end closes it
    """
    blocking, asynchronous, left = on_windows(script, bare, tmp_path).split()

    received = bare.gateway.received
    assert sorted(each.step for each in received(blocking).metrics) == list(range(2000))
    assert received(asynchronous).params == [("lr", "1")]
    statuses = [received(each).info["status"] for each in (blocking, asynchronous, left)]
    assert statuses == ["FINISHED"] * 3
    assert find_spools(tmp_path) == []


def test_what_a_killed_process_leaves_is_delivered(bare: LocalPlatform, tmp_path: Path) -> None:
    """By the next session and by `sync`; a live process keeps its own, and nobody is signalled."""
    run_id = bare.gateway.add_run()
    killed = f"""
        import os, time
        from spools import all_written
        session = adp_async.blocking.Session(linger=60).open()
        for step in range(500):
            session.logger.log_metric("{run_id}", "loss", 1.0, step=step)
        while not all_written(session.session):
            time.sleep(0.01)
        os._exit(7)
    """
    on_windows(killed, bare, tmp_path, ends_with=7)
    assert len(find_spools(tmp_path)) == 1

    mine = Spool.create(tmp_path, HERE, limit=2**30)
    try:
        script = """
            from typer.testing import CliRunner
            from adp_async.cli import app
            for command in (["sync", "--list"], ["sync"], ["sync", "--list", "--json"]):
                result = CliRunner().invoke(app, command)
                if not isinstance(result.exception, SystemExit | None):
                    raise result.exception
                print(result.output)
        """
        said = on_windows(script, bare, tmp_path)
        assert find_spools(tmp_path) == [mine.path]
    finally:
        mine.close()
    assert "500 records of 1 run" in said
    assert "500 records delivered" in said
    assert "in use by another process" in said
    assert sorted(each.step for each in bare.gateway.received(run_id).metrics) == [*range(500)]


def test_the_other_commands(bare: LocalPlatform, tmp_path: Path) -> None:
    """doctor, show; and MLflow itself is refused with what there is instead."""
    run_id = bare.gateway.add_run()
    script = f"""
        from typer.testing import CliRunner
        from adp_async.cli import app
        for command in (["doctor"], ["show", "{run_id}"], ["serve", "--port", "0"]):
            result = CliRunner().invoke(app, command)
            if not isinstance(result.exception, SystemExit | None):
                raise result.exception
            print(result.exit_code, result.output)
    """
    said = on_windows(script, bare, tmp_path)

    assert "All is well" in said
    assert "chmod" not in said
    assert f"run         {run_id}" in said
    assert "1 adp-async: a real MLflow is started on Linux and macOS only" in said
    assert "serve --no-mlflow" in said


def test_the_stand_in_and_the_fakes(bare: LocalPlatform, tmp_path: Path) -> None:
    """Users' tests run there, too."""
    script = """
        from adp_async.local import LocalPlatform
        from adp_async.testing import FakeBlockingSession
        with LocalPlatform(mlflow=False) as platform:
            given = dict(endpoint=platform.endpoint, platform_id=platform.platform_id,
                         workspace=platform.workspace,
                         auth=adp_async.ApiKey(platform.config_file, platform.profile))
            with adp_async.blocking.start_run("digits", **given) as run:
                run.log_metric("loss", 1.0)
            print(len(platform.gateway.received(run.run_id).metrics))
        with FakeBlockingSession() as session, session.start_run() as run:
            run.log_metric("loss", 1.0)
        print(run.stats().delivered)
    """
    assert on_windows(script, bare, tmp_path).split() == ["1", "1"]


def test_an_empty_spool_that_another_process_looks_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows does not remove it then: it is left to that process, and nothing is raised."""

    def denied(self: Path, missing_ok: bool = False) -> None:
        error = PermissionError(13, "The process cannot access the file")
        error.winerror = 32  # type: ignore[attr-defined]
        raise error

    spool = Spool.create(tmp_path, HERE, limit=2**30)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", denied)
        spool.close()
    again = Spool.open(spool.path, limit=2**30)
    again.close()

    assert find_spools(tmp_path) == []


def test_an_empty_spool_that_may_not_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any other reason is raised, for the log."""

    def denied(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied")

    spool = Spool.create(tmp_path, HERE, limit=2**30)
    monkeypatch.setattr(Path, "unlink", denied)
    with pytest.raises(PermissionError):
        spool.close()


def test_files_have_numbers_of_any_size() -> None:
    """Those of 128 bits, which no JSON number of the owner has, still tell files apart."""
    one, other = Owner.this_process(2**127 + 1), Owner.this_process(2**127 + 2)

    assert one != other
    assert Owner.from_text(one.as_text()) == one


def test_a_collector_without_unix_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """It listens at a port for this machine only, with TLS; a socket's path is refused."""
    monkeypatch.setattr("adp_async.collector.sockets._UNIX", None)
    with FakeBlockingSession() as session, session.start_run() as run:
        with run.shared() as handle, handle.attach() as worker:
            worker.log_metric("loss", 0.5)
            assert handle.address.startswith("https://127.0.0.1:")
        run.flush()
        assert run.stats().delivered == 1
        with pytest.raises(ConfigurationError, match="which this system does not have"):
            run.shared("./collector")
