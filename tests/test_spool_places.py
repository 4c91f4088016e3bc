"""Where a spool is when the user names no folder: the first place that can be written."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING, Any

import pytest
from children import points, start, until

from adp_async._io.spool import Spool
from adp_async._io.spool_file import SpoolUntrusted, find_spools, user_id
from adp_async._io.spool_places import VARIABLES, may_search, prepare, spool_places
from adp_async.cli import spools
from adp_async.cli.checks import spool as check_spool
from adp_async.testing import FakeSession

if TYPE_CHECKING:
    from pathlib import Path

    from adp_async.local import LocalPlatform

pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="users have no numbers")

NAME = f"adp_async-spool-{user_id()}"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files, which everybody may write to, and no engine's."""
    for name in (*VARIABLES, "ADP_ASYNC_SPOOL"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "tmp"
    folder.mkdir()
    folder.chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def unwritable(tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home in which nothing can be made, for root neither."""
    home = tmp_path / "home"
    home.touch()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    return home


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]


async def logs(**knobs: Any) -> Path:
    """Log a record in a session; returns where its spool was."""
    async with FakeSession(spool=True, **knobs) as session:
        run = session.attach_run(session.add_run())
        run.log_metric("loss", 0.5)
        await run.flush()
        found: Path = session.spool_folder
        assert len(find_spools(found)) == 1
        assert os.stat(found).st_mode & 0o777 == 0o700
    assert find_spools(found) == []
    return found


async def test_the_state_folder_comes_first(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """Where it can be written nothing else is touched, and nothing said."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("SPARK_LOCAL_DIRS", str(temporary))

    assert await logs() == tmp_path / "state" / "adp_async" / "spool"

    assert os.listdir(temporary) == []
    assert warnings(caplog) == []


@pytest.mark.parametrize("variable", VARIABLES)
async def test_the_engines_folders_come_next(
    unwritable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, variable: str
) -> None:
    """The first of them that exists and can be written; one line says it."""
    good, full = tmp_path / "disk2", tmp_path / "full"
    good.mkdir()
    full.touch()
    named = ["", "relative", str(tmp_path / "missing"), str(full), f" {good} ", str(tmp_path)]
    monkeypatch.setenv(variable, ",".join(named))

    assert await logs() == good / NAME

    (said,) = warnings(caplog)
    assert said.startswith(f"accepted records are journaled in {good / NAME}: ")
    assert "a spool cannot be created in" in said


async def test_the_folder_for_temporary_files_is_the_last(
    unwritable: Path, temporary: Path, caplog: Any
) -> None:
    """Each session says it once, whatever it logs."""
    assert await logs() == await logs() == temporary / NAME
    assert len(warnings(caplog)) == 2


async def test_without_a_home(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """A container's user may have none."""
    monkeypatch.setenv("HOME", "")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)

    assert await logs() == temporary / NAME

    assert warnings(caplog) == [
        f"accepted records are journaled in {temporary / NAME}: this user has no home folder"
    ]


def _link(place: Path, elsewhere: Path) -> None:
    elsewhere.mkdir(mode=0o700)
    place.symlink_to(elsewhere)


def _open(place: Path, elsewhere: Path) -> None:
    place.mkdir()
    place.chmod(0o777)


def _file(place: Path, elsewhere: Path) -> None:
    place.touch()


def _of_another(place: Path, elsewhere: Path) -> None:
    place.mkdir(mode=0o700)
    os.chown(place, 12345, 12345)


@pytest.mark.parametrize("spoil", [_link, _open, _file, _of_another])
async def test_what_others_put_there_is_not_used(
    unwritable: Path, temporary: Path, tmp_path: Path, caplog: Any, spoil: Any
) -> None:
    """The name is no secret: a link, somebody's folder, or an open one is neither used nor read."""
    if spoil is _of_another and user_id() != 0:
        pytest.skip("only root can give a folder away")
    place, elsewhere = temporary / NAME, tmp_path / "elsewhere"
    spoil(place, elsewhere)

    with pytest.raises(SpoolUntrusted, match="was not made by this user"):
        prepare(place)
    assert not may_search(place)
    async with FakeSession(spool=True) as session:
        run = session.attach_run(session.add_run())
        run.log_metric("loss", 0.5)
        await run.flush()

    (said,) = warnings(caplog)
    assert said.startswith("accepted records are only in memory: ")
    assert not elsewhere.exists() or list(elsewhere.iterdir()) == []


def test_a_named_folder_is_the_only_one(unwritable: Path, tmp_path: Path) -> None:
    """Who names a folder gets that one, or a warning."""
    session = FakeSession(spool=tmp_path / "mine" / NAME)

    assert session._engine.spools._places() == [tmp_path / "mine" / NAME]


def test_the_command_line_looks_there_too(
    unwritable: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`sync` finds what was journaled in any of the places; `doctor` names the one in use."""
    session = FakeSession(spool=True)
    spool = Spool.create(temporary / NAME, session._engine.spools._identity(), limit=10**6)

    assert spools.spools_at(None) == [spool.path]
    found = check_spool(session.settings)
    spool.close()

    assert found.state == "warning"
    assert found.told.startswith(f"{temporary / NAME}, ")
    assert len(spool_places()) == 2


KILLED = """
    import os, signal, sys, time
    from adp_async import blocking

    if sys.argv[2] != "SIGKILL":  # those who run the tests under nohup ignore SIGHUP
        signal.signal(getattr(signal, sys.argv[2]), signal.SIG_DFL)
    session = blocking.Session(linger=60.0).open()
    run = session.attach_run(sys.argv[1])
    for step in range(100):
        run.log_metric("loss", 0.5, step=step)
    while session.session._delivery.keeper.spool.contents().records < 100:
        time.sleep(0.01)
    os.kill(os.getpid(), getattr(signal, sys.argv[2]))
    time.sleep(30)
"""


@pytest.mark.parametrize("how", ["SIGTERM", "SIGHUP", "SIGKILL"])
async def test_a_worker_that_is_ended(
    bare_platform: LocalPlatform,
    unwritable: Path,
    temporary: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    """What it accepted is on the node's disk, and the next session there delivers it.

    Also by a signal for which the program has no handler, as clusters end their workers.
    """
    gateway = bare_platform.gateway
    run_id = gateway.add_run()
    monkeypatch.setenv("SPARK_LOCAL_DIRS", str(temporary))
    handed = {"SPARK_LOCAL_DIRS": str(temporary), "HOME": str(unwritable)}
    await gateway.down()
    child = await start(bare_platform, tmp_path, KILLED, run_id, how, environ=handed, spool="on")
    code, _, _ = await child.ends()
    assert code != 0
    (left,) = find_spools(temporary / NAME)
    await gateway.up()
    async with bare_platform.session(spool=True):
        await until(lambda: len(gateway.received(run_id).metrics) == 100)
        await until(lambda: not left.exists())
    assert sorted(points(gateway, run_id)["loss"]) == list(range(100))


async def test_what_was_left_elsewhere_is_found(
    bare_platform: LocalPlatform,
    temporary: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A session with a state folder delivers what others left in the other places."""
    gateway = bare_platform.gateway
    run_id = gateway.add_run()
    await gateway.down()
    blocked = tmp_path / "file"
    blocked.touch()
    environ = {"TMPDIR": str(temporary), "HOME": str(blocked)}
    child = await start(
        bare_platform, tmp_path, KILLED, run_id, "SIGKILL", environ=environ, spool="on"
    )
    await child.ends()
    assert len(find_spools(temporary / NAME)) == 1
    await gateway.up()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    async with bare_platform.session(spool=True) as session:
        assert session.spool_folder.is_relative_to(tmp_path / "state")
        await until(lambda: len(gateway.received(run_id).metrics) == 100)
