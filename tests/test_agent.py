"""`adp-async agent`: sessions of other processes find it, and need no credentials."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from attrs import evolve
from children import HANDED_ON, environment, points

import adp_async
from adp_async import blocking
from adp_async._hop import FILE, Hop
from adp_async.cli.agent import Options, _place
from adp_async.collector import Carrier, Handle
from adp_async.errors import AdpError, ConfigurationError, NotAuthenticated
from adp_async.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from adp_async.local import LocalPlatform

PLATFORM = "ocid1.aidataplatform.oc1.iad.aaaa"
COMMAND = (sys.executable, "-c", "import sys; from adp_async.cli import main; sys.exit(main())")


class Agent:
    """One that runs."""

    def __init__(self, process: asyncio.subprocess.Process, line: str) -> None:
        self.process = process
        self.file = line.removeprefix("export ADP_ASYNC_AGENT=").strip()

    async def ends(self, *, by: str = "terminate") -> int:
        getattr(self.process, by)()
        return await asyncio.wait_for(self.process.wait(), 60)


async def start(platform: LocalPlatform, *arguments: object, cwd: Path | None = None) -> Agent:
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "agent", *map(str, arguments),
        env=environment(platform),
        cwd=cwd,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    return Agent(process, (await process.stdout.readline()).decode())


@pytest.fixture
async def agent(bare_platform: LocalPlatform, tmp_path: Path) -> AsyncIterator[Agent]:
    agent = await start(bare_platform, "--socket", tmp_path / "agent.sock")
    yield agent
    if agent.process.returncode is None:
        agent.process.kill()
        await agent.process.wait()


async def said(*arguments: object) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "agent", *map(str, arguments),
        env={name: os.environ[name] for name in HANDED_ON if name in os.environ}
        | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, out.decode(), errors.decode()


async def test_a_session_finds_it(
    agent: Agent, bare_platform: LocalPlatform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the variable, with neither platform nor credentials; all operations go through it."""
    monkeypatch.setenv("ADP_ASYNC_AGENT", str(tmp_path / "agent.sock"))
    monkeypatch.delenv("ADP_ASYNC_SPOOL")
    async with adp_async.Session(linger=60.0) as session:
        settings = session.settings
        assert (settings.platform_id, settings.workspace, settings.spool) == (
            bare_platform.platform_id, bare_platform.workspace, False,
        )  # fmt: skip
        async with session.start_run(run_name="by the agent") as run:
            for step in range(10):
                run.log_metric("loss", 0.5, step)
            await run.flush()
        assert (await session.runs.get(run.run_id)).info.run_name == "by the agent"
    code, out, _ = await said("--status", "--socket", tmp_path / "agent.sock")
    assert code == 0
    assert "10 records in 1 request, " in out
    assert await agent.ends() == 0
    assert points(bare_platform.gateway, run.run_id) == {"loss": list(range(10))}
    assert bare_platform.gateway.received(run.run_id).info["status"] == "FINISHED"


async def test_its_files_are_its_owner_s(agent: Agent, tmp_path: Path) -> None:
    """The handle holds a token."""
    folder = tmp_path / "agent.sock.d"
    assert agent.file == str(folder / FILE)
    for path, mode in ((folder, 0o700), (folder / FILE, 0o600), (tmp_path / "agent.sock", 0o600)):
        assert stat.S_IMODE(path.stat().st_mode) == mode


async def test_one_that_is_started_again(bare_platform: LocalPlatform, tmp_path: Path) -> None:
    """Those that have its handle go on; by TLS as well, where its port and certificate stay."""
    options = ("--listen", "127.0.0.1", "--folder", tmp_path / "agent")
    agent = await start(bare_platform, *options)
    handle = Handle.from_file(agent.file)
    assert await agent.ends(by="kill") < 0
    again = await start(bare_platform, *options)
    assert Handle.from_file(again.file) == handle
    run_id = bare_platform.gateway.add_run()
    async with handle.attach(run_id) as run:
        run.log_metric("loss", 0.5)
        await run.flush(delivered=True)
    assert points(bare_platform.gateway, run_id) == {"loss": [0]}
    with pytest.raises(NotAuthenticated):
        async with Handle(**_facts(evolve(handle, token="guess"))).attach(run_id):
            pytest.fail("it let us in")
    assert await again.ends() == 0


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not _has_ipv6(), reason="this machine has no ::1")
async def test_one_that_is_started_again_by_ipv6(
    bare_platform: LocalPlatform, tmp_path: Path
) -> None:
    """At the same port, for which its address has colons enough of its own."""
    options = ("--listen", "::1", "--folder", tmp_path / "agent")
    agent = await start(bare_platform, *options)
    handle = Handle.from_file(agent.file)
    assert handle.address.startswith("https://[::1]:")
    assert await agent.ends() == 0
    again = await start(bare_platform, *options)
    assert Handle.from_file(again.file) == handle
    run_id = bare_platform.gateway.add_run()
    async with handle.attach(run_id) as run:
        run.log_metric("loss", 0.5)
    assert await again.ends() == 0
    assert points(bare_platform.gateway, run_id) == {"loss": [0]}


@pytest.mark.parametrize(
    ("listen", "advertise", "before", "place"),
    [
        ("0.0.0.0", None, "https://10.0.0.1:8443", "0.0.0.0:8443"),
        ("0.0.0.0:9000", None, "https://10.0.0.1:8443", "0.0.0.0:9000"),
        ("::", None, "https://[fe80::1]:8443", "[::]:8443"),
        ("[::]:9000", None, "https://[fe80::1]:8443", "[::]:9000"),
        ("0.0.0.0", "gateway", "https://gateway:8443", "0.0.0.0:8443"),
        # That of the gateway is not the agent's own.
        ("0.0.0.0", "gateway:443", "https://gateway:443", "0.0.0.0:0"),
        ("0.0.0.0", None, "unix:/run/agent", "0.0.0.0:0"),
        ("0.0.0.0", None, None, "0.0.0.0:0"),
    ],
)
def test_the_port_of_the_one_before(
    tmp_path: Path, listen: str, advertise: str | None, before: str | None, place: str
) -> None:
    """Clients look for it there, unless the command line says otherwise."""
    options = Options(None, listen, advertise, tmp_path, None)
    handle = None if before is None else Handle(before, PLATFORM, "w", None)
    assert str(_place(options, tmp_path, handle)) == place


@pytest.mark.parametrize("by", ["terminate", "kill"])
async def test_an_attempt_across_two_agents(
    bare_platform: LocalPlatform, tmp_path: Path, by: str
) -> None:
    """What it has handed over to the first counts with the second, and a task is done for both."""
    options = ("--folder", tmp_path / "agent")
    agent = await start(bare_platform, *options)
    handle = Handle.from_file(agent.file)
    run_id = bare_platform.gateway.add_run()
    async with handle.attach(run_id, attempt="done", commit="task") as done:
        done.log_metric("done", 0.5)
    async with handle.attach(run_id, attempt="part 1", commit="task") as run:
        run.log_metric("loss", 0.5, 1)
        await run.flush()
        await agent.ends(by=by)
        agent = await start(bare_platform, *options)
        run.log_metric("loss", 0.5, 2)
    async with handle.attach(run_id, attempt="done", commit="task") as late:
        late.log_metric("done", 0.5, 1)
    assert await agent.ends() == 0
    assert points(bare_platform.gateway, run_id) == {"loss": [1, 2], "done": [0]}


async def test_a_folder_that_others_can_write_into(tmp_path: Path) -> None:
    """It is refused, and its mode stays what it was."""
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    code, _, errors = await said("--folder", tmp_path / "open")
    assert code != 0
    assert "other users can write into this folder" in " ".join(errors.split())
    assert stat.S_IMODE((tmp_path / "open").stat().st_mode) == 0o777


async def test_a_folder_that_is_there_already(bare_platform: LocalPlatform, tmp_path: Path) -> None:
    """Its mode is its owner's business: what the agent writes into it is private anyway."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home").chmod(0o755)
    agent = await start(bare_platform, "--folder", tmp_path / "home")
    assert await agent.ends() == 0
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "home" / FILE).stat().st_mode) == 0o600


async def test_a_socket_without_a_folder(bare_platform: LocalPlatform, tmp_path: Path) -> None:
    """A bare name is a path too, and not a host's."""
    agent = await start(bare_platform, "--socket", "agent.sock", cwd=tmp_path)
    assert Handle.from_file(agent.file).address == f"unix:{tmp_path / 'agent.sock'}"
    assert await agent.ends() == 0


def _facts(hop: Hop) -> dict[str, Any]:
    return {name: getattr(hop, name) for name in ("address", "platform_id", "workspace", "run_id",
                                                  "fingerprint", "token")}  # fmt: skip


async def test_it_ends_when_nobody_comes(bare_platform: LocalPlatform, tmp_path: Path) -> None:
    """After the time that was given; not while somebody logs."""
    agent = await start(bare_platform, "--folder", tmp_path / "agent", "--idle-timeout", 2.0)
    run_id = bare_platform.gateway.add_run()
    async with Handle.from_file(agent.file).attach(run_id) as run:
        began = time.monotonic()
        while time.monotonic() < began + 2.5:
            run.log_metric("loss", 0.5)
            await asyncio.sleep(0.1)
        assert agent.process.returncode is None
    assert await asyncio.wait_for(agent.process.wait(), 60) == 0
    assert len(bare_platform.gateway.received(run_id).metrics) == run.stats().delivered


async def test_status_of_none(tmp_path: Path) -> None:
    """It says so."""
    code, _, errors = await said("--status", "--socket", tmp_path / "none")
    assert (code, errors.startswith("there is no agent in")) == (1, True)


async def test_two_ways_to_listen() -> None:
    """One agent listens at one place."""
    code, _, errors = await said("--socket", "agent.sock", "--listen", "127.0.0.1")
    assert code != 0
    assert "--listen" in errors


# ------------------------------------------------------------------ settings


def facts(**changed: str | None) -> str:
    """The text of a handle, but for what is *changed*."""
    known = {"address": "unix:/nowhere", "platform_id": PLATFORM, "workspace": "w", "run_id": None}
    return json.dumps({**known, "token": "t", **changed})


def test_the_text_of_a_handle() -> None:
    """It is read back; one with a carrier has none, which would be lost."""
    for handle in (
        Handle.from_json(facts()),
        Handle.from_json(facts(address="https://x:1", fingerprint="0f" * 32, run_id="r")),
    ):
        assert Handle.from_json(handle.to_json()) == handle
    carried = Handle("carrier:", PLATFORM, "w", "r", token="t", carrier=Carrier())
    with pytest.raises(ConfigurationError, match="pickle it"):
        carried.to_json()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / FILE
    hop = Hop("unix:/nowhere", PLATFORM, "w", None, token="t")
    path.write_text(hop.to_json())
    return path


def test_what_it_changes(file: Path) -> None:
    """Where requests go, and what a collector near by makes needless; the rest is as ever."""
    found = Settings.resolve({"agent": file}, {})
    assert (found.platform_id, found.workspace) == (PLATFORM, "w")
    assert (found.endpoint, found.auth.mode) == ("http://localhost", "collector")
    assert (found.linger, found.spool, found.recover) == (0.05, False, False)
    assert found.timeout == Settings.resolve({"platform_id": PLATFORM}, {}).timeout
    again = Settings.resolve({"agent": file, "linger": 3, "spool": "/s"}, {})
    assert (again.linger, again.spool) == (3.0, "/s")
    environ = {"ADP_ASYNC_AGENT": str(file), "ADP_ASYNC_LINGER": "2", "ADP_ASYNC_SPOOL": "/s"}
    again = Settings.resolve({}, environ)
    assert (again.linger, again.spool) == (2.0, "/s")


def test_what_goes_before_the_variable(file: Path) -> None:
    """Code that says where to go, or how to sign."""
    environ = {"ADP_ASYNC_AGENT": str(file)}
    for given in ({"endpoint": "https://a"}, {"auth": "api_key"}):
        found = Settings.resolve({"platform_id": PLATFORM, **given}, environ)
        assert (found.agent, found.auth.mode) == (None, "api_key")


@pytest.mark.parametrize("given", [{"platform_id": "ocid1.other"}, {"workspace": "other"}])
def test_an_agent_of_another_platform(file: Path, given: dict[str, str]) -> None:
    """It can't be used, and that is said."""
    with pytest.raises(ConfigurationError, match="the agent is for the"):
        Settings.resolve({"agent": file, **given}, {})


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "cannot be read"), ("", "is not the handle"), ("[]", "is not the handle"),
     ('{"address": 7}', "is not the handle"), ('{"x": "y"}', "is not the handle"),
     (facts(address=None), "is not the handle"), (facts(address="http://x"), "is not the handle"),
     (facts(address="unix:"), "is not the handle"), (facts(token=""), "is not the handle"),
     (facts(address="https://x:1"), "is not the handle"),
     (facts(address="https://x:1", fingerprint="zz" * 32), "is not the handle")],
)  # fmt: skip
def test_files_that_are_no_handle(tmp_path: Path, content: str | None, problem: str) -> None:
    """The error names the file, and where it was looked for."""
    path = tmp_path / FILE
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigurationError, match=problem) as caught:
        Settings.resolve({"agent": path}, {})
    assert "ADP_ASYNC_AGENT" in str(caught.value)


@pytest.mark.parametrize("agent", [7, "", "a\0b", b"x"])
def test_what_is_no_path(agent: Any) -> None:
    """As for any other setting."""
    with pytest.raises(ConfigurationError, match="agent"):
        Settings.resolve({"agent": agent, "platform_id": PLATFORM}, {})


def test_one_that_is_not_there_holds(file: Path) -> None:
    """As any service that is down does; a call says what is wrong."""
    session = blocking.Session(agent=file, call_timeout=0.5, close_timeout=0.2)
    with session, pytest.raises(AdpError, match="no connection"):
        session.runs.get("r")


def test_a_key_in_place_of_a_path() -> None:
    """What somebody has put into the wrong variable is not shown in the error."""
    key = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBg\n-----END PRIVATE KEY-----"
    for arguments, environ in (({"agent": key}, {}), ({}, {"ADP_ASYNC_AGENT": key})):
        with pytest.raises(ConfigurationError, match=r"^agent: .* cannot be read") as caught:
            Settings.resolve(arguments, environ)
        assert "MIIEvQIBADANBg" not in str(caught.value)
