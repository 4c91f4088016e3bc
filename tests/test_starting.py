"""What begins a run: its parent, its description, its source; and resuming one."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from children import ROOT, environment, start

from adp_async import blocking
from adp_async._io import source
from adp_async.errors import NotFound
from adp_async.testing import FakeBlockingSession, FakeSession

if TYPE_CHECKING:
    from pathlib import Path

    from adp_async.local import Gateway, LocalPlatform


@pytest.fixture
def gateway(bare_platform: LocalPlatform) -> Gateway:
    return bare_platform.gateway


def tags(session: FakeSession, run: Any) -> dict[str, str]:
    return dict(session.received(run.run_id).tags)


def info(session: FakeSession, run: Any) -> dict[str, Any]:
    return session.received(run.run_id).info


# Parent and description ---------------------------------------------------------------------------


async def test_a_run_of_a_run() -> None:
    """The parent is a run of either face, an attached one, or its id; MLflow's tag says it."""
    async with FakeSession() as session:
        async with session.start_run("digits", description="all **trials**") as study:
            children = [
                await session.start_run("digits", parent=parent)
                for parent in (study, study.run_id, session.attach_run(study.run_id))
            ]
        assert tags(session, study)["mlflow.note.content"] == "all **trials**"
        for child in children:
            assert tags(session, child)["mlflow.parentRunId"] == study.run_id
        with pytest.raises(ValueError, match="a run id is a str, not int"):
            session.start_run(parent=3)  # type: ignore[arg-type]
    with FakeBlockingSession() as session_:
        parent = session_.start_run()
        child = session_.start_run(parent=parent)
        assert tags(session_.session, child)["mlflow.parentRunId"] == parent.run_id


# Source -------------------------------------------------------------------------------------------


async def test_the_source_can_be_left_out() -> None:
    """Without it there are the caller's own tags alone; with it these come first."""
    async with FakeSession() as session:
        without = await session.start_run(tags={"a": 1}, source=False)
        own = await session.start_run(tags={"mlflow.user": "somebody else"})
        assert tags(session, without) == {"a": "1"}
        found = tags(session, own)
        assert found["mlflow.user"] == "somebody else"
        assert found["mlflow.source.type"] == "LOCAL"
        assert found["mlflow.source.name"] == sys.argv[0]


def git(folder: Path, *command: str) -> str:
    names = ("AUTHOR", "COMMITTER")
    identity = {f"GIT_{name}_{what}": "x@y.zz" for name in names for what in ("NAME", "EMAIL")}
    made = subprocess.run(
        ("git", "-C", str(folder), *command),
        env={**os.environ, **identity},
        capture_output=True,
        check=True,
    )
    return made.stdout.decode().strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one commit, and a folder that it ignores."""
    folder = tmp_path / "repository"
    (folder / "code").mkdir(parents=True)
    (folder / "ignored").mkdir()
    git(folder, "init", "--quiet")
    (folder / ".gitignore").write_text("ignored/\n")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "one")
    return folder


OURS = """
    import json, sys
    from adp_async import blocking

    with blocking.start_run() as run:
        print(run.run_id)
"""
#: What MLflow's own client records for a run of the same script.
THEIRS = """
from mlflow.tracking.context import registry
import json
print(json.dumps(registry.resolve_tags()))
"""


@pytest.mark.parametrize("place", ["code", "ignored", "outside"])
async def test_what_mlflows_client_records(
    bare_platform: LocalPlatform, gateway: Gateway, repository: Path, tmp_path: Path, place: str
) -> None:
    """The same user, name, type and commit for a script in a repository, ignored, or outside."""
    pytest.importorskip("mlflow", reason="needs MLflow's own client to compare with")
    folder = tmp_path if place == "outside" else repository / place
    child = await start(bare_platform, folder, OURS)
    ours = dict(gateway.received((await child.ends_well()).strip()).tags)
    (folder / "script.py").write_text(THEIRS)
    theirs = await asyncio.create_subprocess_exec(
        *(sys.executable, str(folder / "script.py")),
        env=environment(bare_platform),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await asyncio.wait_for(theirs.communicate(), 60)
    recorded = json.loads(out)
    assert ours == {name: recorded[name] for name in ours}
    assert {"mlflow.user", "mlflow.source.name", "mlflow.source.type"} <= set(ours)
    commit = git(repository, "rev-parse", "HEAD") if place == "code" else None
    assert ours.get("mlflow.source.git.commit") == commit
    assert recorded.get("mlflow.source.git.commit") == commit


def test_a_system_that_knows_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No name of the user, no git, no arguments, no working folder: a run starts all the same."""

    def unknown() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr("getpass.getuser", unknown)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "no\0file"), "\udcff"])
    assert set(source.source_tags()) == {"mlflow.source.name", "mlflow.source.type"}
    monkeypatch.setattr(sys, "argv", None)
    assert source.source_tags()["mlflow.source.name"] == "<console>"
    monkeypatch.setattr(sys, "argv", ["relative\udcff.py"])

    def nowhere(_: object) -> str:
        raise FileNotFoundError("no working folder")

    monkeypatch.setattr("os.path.isfile", lambda _: True)
    monkeypatch.setattr("os.path.abspath", nowhere)
    with FakeBlockingSession() as session:
        run = session.start_run()
        assert tags(session.session, run)["mlflow.source.name"] == "relative?.py"


def test_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file's name, where the editor or Jupyter's server say it."""
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    monkeypatch.setenv("JPY_SESSION_NAME", "/notebooks/digits.ipynb")
    found = source.source_tags()
    assert found["mlflow.source.name"] == "digits.ipynb"
    assert found["mlflow.source.type"] == "NOTEBOOK"


def test_git_that_hangs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is given up."""
    slow = tmp_path / "git"
    slow.write_text("#!/bin/sh\nexec sleep 30\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(source, "_LONGEST", 0.05)
    monkeypatch.setattr(sys, "argv", [str(slow)])
    assert "mlflow.source.git.commit" not in source.source_tags()


def test_git_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many runs a process starts."""
    asked: list[tuple[str, ...]] = []

    def git(_folder: str, *command: str) -> str | None:
        asked.append(command)
        return None if command[0] == "check-ignore" else "0" * 40

    monkeypatch.setattr(source, "_git", git)
    monkeypatch.setattr(sys, "argv", [str(ROOT / "tests" / "children.py")])
    source._commit.cache_clear()
    with FakeBlockingSession() as session:
        for _ in range(5):
            run = session.start_run()
    assert len(asked) == 2
    assert tags(session.session, run)["mlflow.source.git.commit"] == "0" * 40
    source._commit.cache_clear()


# Resuming -----------------------------------------------------------------------------------------


async def test_resumed_and_left() -> None:
    """The run is RUNNING again, with its name, and ends with the block, as a started one does."""
    async with FakeSession() as session:
        async with session.start_run("digits", run_name="sgd") as run:
            pass
        assert info(session, run)["status"] == "FINISHED"
        mistake = ValueError("the body's own")
        with pytest.raises(ValueError, match="the body's own"):  # noqa: PT012 - so does a block
            async with session.attach_run(run.run_id, resume=True) as again:
                assert info(session, run)["status"] == "RUNNING"
                assert (again.run_name, again.experiment_id) == ("sgd", "1")
                again.log_metric("loss", 0.5, step=1)
                raise mistake
        assert info(session, run)["status"] == "FAILED"
        assert len(session.received(run.run_id).metrics) == 1
        awaited = await session.attach_run(run.run_id, resume=True, strict=False)
        awaited.log_metric("a@b", 0.5)
        await awaited.finish("KILLED")
        assert info(session, run)["status"] == "KILLED"


def test_resumed_on_the_blocking_face(monkeypatch: pytest.MonkeyPatch) -> None:
    """So it is there, and with a session of its own."""
    session = FakeBlockingSession().open()
    run = session.start_run()
    run.finish("FAILED")
    with session.attach_run(run.run_id, resume=True):
        assert info(session.session, run)["status"] == "RUNNING"
    assert info(session.session, run)["status"] == "FINISHED"
    monkeypatch.setattr(blocking, "Session", lambda *_places, **_knobs: session)
    with blocking.attach_run(run.run_id, resume=True) as again:
        again.log_metric("loss", 0.5)
        assert info(session.session, run)["status"] == "RUNNING"
    assert not session.is_open
    assert info(session.session, run)["status"] == "FINISHED"


async def test_resuming_what_is_not_there() -> None:
    """The service's error comes out, and nothing is open."""
    async with FakeSession() as session:
        with pytest.raises(NotFound):
            await session.attach_run("unknown", resume=True)
        with pytest.raises(ValueError, match="must not be empty"):
            session.attach_run("", resume=True)
        assert not session._open_runs


RESUMED = """
    import sys
    from adp_async import blocking

    run = blocking.attach_run(sys.argv[1], resume=True)
    run.log_metric("loss", 0.5)
    1 / 0
"""


async def test_a_resumed_run_ends_with_its_process(
    bare_platform: LocalPlatform, gateway: Gateway, tmp_path: Path
) -> None:
    """An attached one that is not resumed is left alone; see test_ending for the others."""
    run_id = gateway.add_run()
    for script, status in (
        (RESUMED.replace(", resume=True", ""), "RUNNING"),
        (RESUMED, "FAILED"),
        (RESUMED.replace("1 / 0", ""), "FINISHED"),
    ):
        child = await start(bare_platform, tmp_path, script, run_id)
        await child.ends()
        assert gateway.received(run_id).info["status"] == status


# A flush that reports -----------------------------------------------------------------------------


async def test_a_flush_that_reports() -> None:
    """It returns what a flush would raise, and leaves it to be raised."""
    async with FakeSession() as session:
        run, other = [await session.start_run() for _ in range(2)]
        assert await run.try_flush() is None
        script = session.answer("log_experiment_run_batch", {"code": "No"}, status=400)
        run.log_metric("loss", 0.5)
        for flush in (run.try_flush, session.logger.try_flush, run.try_flush):
            assert "the service refused" in str(await flush())
        assert await other.try_flush() is None
        assert "the service refused" in str(await session.logger.try_flush(run.run_id))
        with pytest.raises(Exception, match="the service refused"):
            await run.flush()
        assert await session.logger.try_flush() is None
        script.left = 0
    assert "closed" in str(await run.try_flush())


def test_a_blocking_flush_that_reports() -> None:
    """So it is there, and when the time is over it says how much waits."""
    with FakeBlockingSession(close_timeout=0.2) as session:
        run = session.start_run()
        assert run.try_flush() is None
        assert session.logger.try_flush() is None
        script = session.session.answer("log_experiment_run_batch", status=503)
        run.log_metric("loss", 0.5)
        assert "1 record not delivered yet" in str(run.try_flush(0.05))
        assert "1 record not delivered yet" in str(session.logger.try_flush(run.run_id, 0.05))
        script.left = 0
        assert run.try_flush(60.0) is None
    assert "it is closed" in str(run.try_flush())
    assert "it is closed" in str(session.logger.try_flush())
