"""``adp-async sync``: what a person sees of spools, and what becomes of them."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import sqlite3
import stat
import sys
import tempfile
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest
from attrs import evolve
from children import not_outlived_by
from rich.console import Console
from spools import LIMIT, chunk, metrics, orphan, sealed, settled
from typer.testing import CliRunner

from adp_async._io.owner import Owner
from adp_async._io.spool import Spool
from adp_async._io.spool_file import Identity, SpoolBusy, find_spools
from adp_async._sansio.journal import Changes, Refused
from adp_async._sansio.records import Metric, Param, RunTag
from adp_async.cli import app, reporter, spools
from adp_async.cli import sync as delivery
from adp_async.cli import sync as sync_module
from adp_async.cli.output import duration
from adp_async.cli.serve import environment
from adp_async.errors import BadRequest, Rejection
from adp_async.local import Fault, LocalPlatform

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from click.testing import Result
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

LOG_BATCH = "log_experiment_run_batch"


@pytest.fixture(scope="module")
def bare(
    tmp_path_factory: pytest.TempPathFactory, api_key: RSAPrivateKey
) -> Iterator[LocalPlatform]:
    """A platform without MLflow in a thread of its own: the command has a loop of its own."""
    directory = tmp_path_factory.mktemp("bare")
    with LocalPlatform(directory, mlflow=False, key=api_key) as platform:
        yield platform


@pytest.fixture
def platform(bare: LocalPlatform, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalPlatform]:
    """The environment has the credentials; where to deliver is in the spools."""
    given = environment(bare)
    for name in ("AIDP_ENDPOINT", "AIDP_INSTANCE_ID", "AIDP_WORKSPACE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("OCI_CONFIG_FILE", "OCI_CLI_PROFILE"):
        monkeypatch.setenv(name, given[name])
    monkeypatch.delenv("OCI_CLI_AUTH", raising=False)
    yield bare
    bare.gateway.reset()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADP_ASYNC_SPOOL", str(tmp_path / "spool"))
    return tmp_path / "spool"


@pytest.fixture
def here(platform: LocalPlatform) -> Identity:
    return Identity(platform.endpoint, platform.platform_id, platform.workspace)


@pytest.fixture
def settings_of_here(here: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment says where the service is, too."""
    monkeypatch.setenv("AIDP_ENDPOINT", here.endpoint)
    monkeypatch.setenv("AIDP_INSTANCE_ID", here.platform_id)
    monkeypatch.setenv("AIDP_WORKSPACE", here.workspace)


@pytest.fixture
def run_id(platform: LocalPlatform) -> str:
    return platform.gateway.add_run()


def sync(*arguments: object, **options: Any) -> Result:
    return CliRunner().invoke(app, ["sync", *map(str, arguments)], **options)


def steps(platform: LocalPlatform, run_id: str) -> list[int]:
    return sorted(metric.step for metric in platform.gateway.received(run_id).metrics)


def refusal(run_id: str) -> Changes:
    record = Metric("bad key!", float("nan"), 1000, 7)
    error = BadRequest("illegal key [sic]", status=400, code="INVALID")
    return Changes(refused=[Refused(Rejection(run_id, "metric", "bad key!", 7, error), record)])


# Delivering


def test_what_lies_there_is_delivered(
    platform: LocalPlatform, folder: Path, here: Identity, run_id: str
) -> None:
    """Two spools, said in lines; the place is in them, the credentials in the environment."""
    rows = chunk(metrics(2500), run_id=run_id)
    orphan(folder, rows, sealed(0, 1000, "token", run_id=run_id), identity=here)
    orphan(folder, chunk([Param("p", "v"), RunTag("t", "v")], run_id=run_id), identity=here)
    result = sync()

    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert "2,500 records to deliver" in lines[0]
    assert lines[-1] == "2,502 records delivered"
    assert steps(platform, run_id) == list(range(2500))
    assert platform.gateway.received(run_id).tags == [("t", "v")]
    assert find_spools(folder) == []


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_path_says_which(
    platform: LocalPlatform,
    tmp_path: Path,
    here: Identity,
    run_id: str,
    what: str,
    settings_of_here: None,
) -> None:
    """One spool, or the folder they lie in, wherever that is."""
    elsewhere = tmp_path / "elsewhere"
    path = orphan(elsewhere, chunk(metrics(5), run_id=run_id), identity=here)
    other = orphan(elsewhere, chunk(metrics(5, 5), run_id=run_id), identity=here)
    result = sync(path if what == "file" else elsewhere)

    assert result.exit_code == 0
    assert steps(platform, run_id) == list(range(5 if what == "file" else 10))
    assert other.exists() == (what == "file")


def test_nothing_there_is_fine(folder: Path) -> None:
    """The same goes for a missing folder."""
    result = sync()

    assert (result.exit_code, result.stdout) == (0, f"no spools in {folder}\n")


def test_a_path_that_is_not_there_is_a_mistake(tmp_path: Path) -> None:
    """One line."""
    result = sync(tmp_path / "typo")

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1
    assert "does not exist" in result.stderr


def test_what_is_refused_is_kept_and_said(
    platform: LocalPlatform, folder: Path, here: Identity, run_id: str
) -> None:
    """The rest is delivered; the exit code says that something is left."""
    records = [*metrics(3), Metric("bad key!", 1.0, 1000, 9)]
    orphan(folder, chunk(records, run_id=run_id), identity=here)
    result = sync()

    assert result.exit_code == 1
    assert "3 of 4 delivered, 1 rejected" in result.stdout
    assert "3 records delivered, 1 rejected and kept (--list shows them)" in result.stdout
    assert "illegal key" in sync("--list").stdout


def test_refused_records_are_sent_once_more(
    platform: LocalPlatform, folder: Path, here: Identity, run_id: str
) -> None:
    """What passes now is delivered and gone; what is refused again has its new reason."""
    error = BadRequest("it was a bad day", status=400, code="INVALID")
    records = [*metrics(3), Metric("bad key!", 0.5, 1000, 7)]
    refused = [
        Refused(Rejection(run_id, "metric", each.key, each.step, error), each) for each in records
    ]
    orphan(folder, Changes(refused=refused), identity=here)
    orphan(folder, refusal("another-run"), chunk(metrics(2, 10), run_id=run_id), identity=here)
    plain = sync()
    assert plain.exit_code == 1
    assert steps(platform, run_id) == [10, 11]
    assert "--again sends them once more" in plain.stdout

    result = sync("--again")
    assert result.exit_code == 1
    assert "4 records to deliver" in result.stdout
    assert "3 of 4 delivered, 1 rejected" in result.stdout
    assert "another-run: its records are held back" in result.stdout  # there is no such run
    assert steps(platform, run_id) == [0, 1, 2, 10, 11]
    shown = sync("--list").stdout
    assert "illegal key" in shown
    assert "a bad day" not in shown


def test_again_and_nothing_is_left(
    platform: LocalPlatform, folder: Path, here: Identity, run_id: str
) -> None:
    """The spool goes with its last record; and what an interruption left over comes once."""
    error = BadRequest("it was a bad day", status=400, code="INVALID")
    refused = [
        Refused(Rejection(run_id, "metric", each.key, each.step, error), each)
        for each in metrics(1500)
    ]
    orphan(folder, Changes(refused=refused), identity=here)
    platform.gateway.inject(Fault.reply(503), times=None)
    assert sync("--again", "--timeout", 0.3).exit_code == 1
    platform.gateway.clear_faults()
    platform.gateway.inject(Fault.drop(after_write=True), times=1, operation=LOG_BATCH)
    result = sync("--again")

    assert result.exit_code == 0
    assert steps(platform, run_id) == list(range(1500))
    assert find_spools(folder) == []


def test_again_goes_with_nothing_else(folder: Path) -> None:
    """Showing changes nothing."""
    result = sync("--list", "--again")

    assert (result.exit_code, result.stdout) == (1, "")
    assert "--list and --again" in result.stderr


@pytest.fixture
def stranger(api_key: RSAPrivateKey) -> Iterator[LocalPlatform]:
    """A host that somebody else runs, and knows this user's key to look at the requests."""
    with LocalPlatform(mlflow=False, key=api_key) as platform:
        yield platform


@pytest.mark.parametrize("what", ["file", "folder"])
@pytest.mark.usefixtures("platform", "settings_of_here")
def test_a_path_does_not_say_who_gets_signed_requests(
    stranger: LocalPlatform, tmp_path: Path, here: Identity, what: str
) -> None:
    """The settings do; the message names the file's place, and the option that delivers there."""
    run_id = stranger.gateway.add_run()
    there = Identity(stranger.endpoint, here.platform_id, here.workspace)
    path = orphan(tmp_path / "mail", chunk(metrics(3), run_id=run_id), identity=there)
    before = path.read_bytes()
    result = sync(path if what == "file" else path.parent)

    assert result.exit_code == 1
    assert (
        f"its endpoint is {stranger.endpoint}, that of the settings {here.endpoint}"
        in result.stdout
    )
    assert "--to-recorded-endpoint" in result.stdout
    assert "0 records delivered, 3 still wait" in result.stdout
    assert stranger.gateway.requests == 0
    assert path.read_bytes() == before
    for option in ("--list", "--export"):
        assert sync(option, *(["-"] if option == "--export" else []), path).exit_code == 0

    sync("--to-recorded-endpoint", path)
    assert stranger.gateway.requests > 0


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("AIDP_ENDPOINT", "", "its endpoint is"),  # that of the credentials' region then
        ("AIDP_INSTANCE_ID", "ocid1.aidataplatform.oc1.iad.other", "its platform is"),
        ("AIDP_WORKSPACE", "other", "its workspace is"),
    ],
)
@pytest.mark.usefixtures("settings_of_here")
def test_a_path_of_another_place(
    platform: LocalPlatform,
    tmp_path: Path,
    here: Identity,
    run_id: str,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    words: str,
) -> None:
    """Endpoint, platform and workspace: each has to be that of the settings."""
    path = orphan(tmp_path / "mail", chunk(metrics(3), run_id=run_id), identity=here)
    monkeypatch.setenv(variable, value)
    result = sync(path)

    assert result.exit_code == 1
    assert words in result.stdout
    assert steps(platform, run_id) == []
    assert sync("--to-recorded-endpoint", path).exit_code == 0
    assert steps(platform, run_id) == [0, 1, 2]


@pytest.mark.parametrize(
    ("one", "other", "are_same"),
    [
        ("https://aidp.example.com", "https://AIDP.example.com:443/", True),
        ("https://aidp.example.com/api", "https://aidp.example.com/api/", True),
        ("https://aidp.example.com", "https://aidp.example.com:8443", False),
        ("https://aidp.example.com", "http://aidp.example.com", False),
        ("https://aidp.example.com", "https://aidp.example.com.evil.test", False),
        ("https://aidp.example.com", "https://aidp.example.com:x", False),
        ("main", "Main", False),
        ("ocid1.x", "ocid1.x", True),
    ],
)
def test_addresses_that_are_the_same(one: str, other: str, are_same: bool) -> None:
    """As a URL means it, and no more than that."""
    assert (delivery._address(one) == delivery._address(other)) == are_same


@pytest.mark.usefixtures("platform")
def test_a_place_that_cannot_be_keeps_no_other(folder: Path, here: Identity, run_id: str) -> None:
    """A spool whose platform is not an OCID is reported; the others are delivered."""
    orphan(folder, chunk(metrics(3)), identity=Identity(here.endpoint, "nothing", here.workspace))
    orphan(folder, chunk(metrics(3), run_id=run_id), identity=here)
    result = sync()

    assert result.exit_code == 1
    assert "platform_id" in result.stdout
    assert "3 records delivered, 3 still wait" in result.stdout


EVIL = "run\x1b[31mRED\x1b]0;owned\x07\u202eX\u2066\u200b\x9b2J"


def is_clean(text: str) -> bool:
    return all(character.isprintable() or character == "\n" for character in text)


def test_what_a_spool_says_is_clean(
    platform: LocalPlatform, folder: Path, here: Identity, tmp_path: Path
) -> None:
    """Names, ids, reasons and places steer no terminal, whatever stands in the file."""
    record = Metric(EVIL, 0.5, 1000, 7)
    error = BadRequest(EVIL, status=400, code="INVALID", request_id=EVIL)
    refused = Changes(refused=[Refused(Rejection(EVIL, "metric", EVIL, 7, error), record)])
    changes = [chunk(metrics(3), run_id=EVIL), refused]
    place = Identity(here.endpoint, here.platform_id, EVIL)
    orphan(folder, *changes, identity=place, error=EVIL)
    orphan(folder, chunk(metrics(3), run_id=EVIL), identity=here).rename(folder / f"{EVIL}.spool")
    shown = [sync("--list"), sync("--timeout", 0.5), sync(folder, "--timeout", 0.5)]
    shown += [sync(tmp_path / EVIL), sync("--discard", "--yes")]

    assert all(is_clean(each.stdout + each.stderr) for each in shown)
    assert "run [31mRED" in shown[0].stdout


def test_without_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The usual folders are those for temporary files."""
    import pwd

    def unknown(uid: int) -> Any:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_STATE_HOME", "ADP_ASYNC_SPOOL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for arguments in ([], ["--list"]):
        assert sync(*arguments).stdout.startswith(f"no spools in {tmp_path}/adp_async-spool")


def test_without_any_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line reports it, and how to name one."""
    for name in ("HOME", "XDG_STATE_HOME", "ADP_ASYNC_SPOOL"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr("adp_async._io.spool_places._shared_folders", list)
    for arguments in ([], ["--list"]):
        result = sync(*arguments)
        assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
        assert "no home folder" in result.stderr
        assert "ADP_ASYNC_SPOOL" in result.stderr


def test_the_usual_folder_may_be_below_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a file of settings says it, which no shell expands."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ADP_ASYNC_SPOOL", "~/x")

    assert sync("--list").stdout == f"no spools in {tmp_path / 'x'}\n"


def test_a_spool_of_another_machine_says_whose(folder: Path, here: Identity, run_id: str) -> None:
    """Its process may live, and is not in the way of the others."""
    path = orphan(folder, chunk(metrics(3), run_id=run_id), identity=here)
    owner = evolve(Owner.this_process(path.stat().st_ino), host="node-7", boot="another")
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO meta VALUES ('owner', ?)", (owner.as_text(),))
    connection.close()

    assert "in use by pid" in sync("--list").stdout
    assert "'node-7'" in sync("--list").stdout


def test_a_spool_in_use_is_left_alone(
    platform: LocalPlatform, folder: Path, here: Identity, run_id: str
) -> None:
    """It is somebody's who lives, and so no failure."""
    spool = Spool.create(folder, here, limit=LIMIT)
    spool.commit(chunk(metrics(3), run_id=run_id))
    result = sync()
    spool.close()

    assert result.exit_code == 0
    assert f"in use by pid {os.getpid()}" in result.stdout
    assert "0 records delivered" in result.stdout
    assert steps(platform, run_id) == []


def test_wrong_credentials_end_it_at_once(
    platform: LocalPlatform, folder: Path, here: Identity, run_id: str
) -> None:
    """A session would wait until they are corrected; a command ends with the error."""
    orphan(folder, chunk(metrics(3), run_id=run_id), identity=here)
    platform.gateway.inject(Fault.reply(401, "NotAuthenticated", "who is it"), times=None)
    begin = time.monotonic()
    result = sync()

    assert result.exit_code == 1
    assert time.monotonic() - begin < 10
    assert result.stderr.count("\n") == 1
    assert "401 NotAuthenticated: who is it" in result.stderr
    platform.gateway.clear_faults()
    assert sync().exit_code == 0


def test_an_unknown_profile_is_a_mistake(folder: Path, here: Identity, run_id: str) -> None:
    """Options say how to sign; the spool is released."""
    path = orphan(folder, chunk(metrics(3), run_id=run_id), identity=here)
    result = sync("--profile", "NOBODY")

    assert result.exit_code == 1
    assert "NOBODY" in result.stderr
    assert result.stderr.count("\n") == 1
    Spool.open(path, limit=LIMIT).release()


def test_a_time_limit(platform: LocalPlatform, folder: Path, here: Identity, run_id: str) -> None:
    """What is undelivered by then stays."""
    path = orphan(folder, chunk(metrics(3), run_id=run_id), identity=here)
    platform.gateway.inject(Fault.reply(503), times=None)
    result = sync("--timeout", 4)

    assert result.exit_code == 1
    assert "batches are held back" in result.stdout
    assert "timed out after 4 s" in result.stdout
    assert "0 records delivered, 3 still wait" in result.stdout
    Spool.open(path, limit=LIMIT).release()


def test_one_that_is_damaged_keeps_no_other(
    platform: LocalPlatform, folder: Path, here: Identity, run_id: str
) -> None:
    """It is reported, and the exit code is 1."""
    bad = orphan(folder, chunk(metrics(3), run_id=run_id), identity=here)
    bad.write_bytes(b"x" * 5000)
    os.utime(bad, (0, 0))
    orphan(folder, chunk(metrics(3), run_id=run_id), identity=here)
    result = sync()

    assert result.exit_code == 1
    assert "is not a spool file" in result.stdout
    assert steps(platform, run_id) == [0, 1, 2]


def test_in_a_terminal_there_is_a_bar(
    platform: LocalPlatform,
    folder: Path,
    here: Identity,
    run_id: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It fits 80 columns, and what the library warns of stands above it."""
    orphan(folder, chunk(metrics(3000), run_id=run_id), identity=here)
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80, no_color=True, markup=False)
    monkeypatch.setattr(delivery, "console_for", lambda file=None: console)
    platform.gateway.inject(Fault.reply(503), times=2, operation=LOG_BATCH)
    result = sync()

    assert result.exit_code == 0
    shown = screen.getvalue()
    assert "3000/3000" in shown
    assert "━" in shown
    assert "batches are held back" in shown
    assert logging.getLogger("adp_async").handlers == []


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(-5, "0 s"), (119, "119 s"), (600, "10 min"), (7200, "2 h"), (400_000, "5 days")],
)
def test_how_long_it_waits(seconds: float, told: str) -> None:
    """In the unit a person would take."""
    assert duration(seconds) == told


@pytest.mark.parametrize("started", ["4223", "", None], ids=repr)
def test_whether_a_process_lives(
    started: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One that is gone, or cannot be looked up, has passed the spool on."""
    asked = []

    def started_at(pid: int) -> str | None:
        asked.append(pid)
        return started

    monkeypatch.setattr(spools, "started_at", started_at)
    path = tmp_path / "20260101-000000-000000-4711-00000000.spool"
    is_gone = started is None
    told = "in use by another process, which delivers it" if is_gone else "in use by pid 4711"
    assert spools.in_use(path, SpoolBusy("busy")) == told
    assert asked == [4711]
    assert spools.in_use(tmp_path / "x.spool", SpoolBusy("busy")).startswith("in use by another")


def test_an_export_leaves_out_what_cannot_be_read(folder: Path, here: Identity) -> None:
    """What is in use and what is damaged is named on standard error; the rest is exported."""
    orphan(folder, chunk(metrics(2)), identity=here)
    live = Spool.create(folder, here, limit=LIMIT)
    foreign = folder / "notes.spool"
    foreign.write_text("not a spool at all")
    os.utime(foreign, (0, 0))
    result = sync("--export", "-")
    live.close()

    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == 2
    assert f"in use by pid {os.getpid()}" in result.stderr
    assert "notes.spool is not a spool file" in result.stderr


def test_nothing_to_discard(folder: Path) -> None:
    """Nobody is asked then."""
    result = sync("--discard")

    assert (result.exit_code, result.stdout) == (0, "nothing to discard\n")


def test_a_folder_of_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable is named that leads nowhere."""
    monkeypatch.setenv("ADP_ASYNC_SPOOL", "~nobody-of-this-name/spool")
    result = sync("--list")

    assert result.exit_code == 1
    assert "ADP_ASYNC_SPOOL: " in result.stderr


def test_a_long_delivery_says_how_far_it_is(
    platform: LocalPlatform,
    folder: Path,
    here: Identity,
    run_id: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where a program reads, a line now and then."""
    monkeypatch.setattr(reporter, "_SECONDS_BETWEEN_LINES", 0.0)
    orphan(folder, chunk(metrics(3000), run_id=run_id), identity=here)
    result = sync()

    assert result.exit_code == 0
    assert ": 1,000 of 3,000\n" in result.stdout


def test_in_a_terminal_what_was_rejected_is_said(
    platform: LocalPlatform,
    folder: Path,
    here: Identity,
    run_id: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Above the bar, which only counts."""
    orphan(folder, chunk([*metrics(2), *metrics(3, key="b@d")], run_id=run_id), identity=here)
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80, no_color=True, markup=False)
    monkeypatch.setattr(sync_module, "console_for", lambda file=None: console)
    sync()

    assert ": 3 rejected" in screen.getvalue()


# Showing


def test_the_list_says_what_a_person_asks(folder: Path, here: Identity, run_id: str) -> None:
    """Where from, how much of which kind, how old, why it is still there, what was refused."""
    path = orphan(
        folder,
        chunk([*metrics(1200), Param("p", "v"), RunTag("t", "v")], run_id=run_id),
        settled(100, run_id=run_id),
        refusal(run_id),
        identity=here,
        error="503 Unavailable: come back (opc-request-id abc)",
    )
    before = path.read_bytes()
    result = sync("--list")

    assert result.exit_code == 0
    for each in (
        here.platform_id,
        here.workspace,
        "1,102 records of 1 run, the oldest",
        "1,100 metrics, 1 param, 1 tag",
        "last error  503 Unavailable: come back (opc-request-id abc)",
        "1 record",
        "'bad key!' of run",
        "400 INVALID: illegal key [sic]",
    ):
        assert each in result.stdout
    assert path.read_bytes() == before


def test_the_list_for_programs(folder: Path, here: Identity, run_id: str) -> None:
    """All of it as JSON, of spools that cannot be read as well, by fields that stay."""
    path = orphan(
        folder,
        chunk([*metrics(1200), Param("p", "v")], run_id=run_id),
        settled(100, run_id=run_id),
        refusal(run_id),
        identity=here,
        error="503 Unavailable",
    )
    bad = orphan(folder, identity=here)
    bad.write_bytes(b"x" * 5000)
    os.utime(bad, (0, 0))
    result = sync("--list", "--json")

    assert result.exit_code == 0
    found = {each["path"]: each for each in json.loads(result.stdout)}
    good = found[str(path)]
    (run,) = good.pop("runs")
    assert datetime.fromisoformat(run.pop("oldest")).tzinfo is not None
    assert run == {"run_id": run_id, "metrics": 1100, "params": 1, "tags": 0}
    assert good == {
        "path": str(path),
        "endpoint": here.endpoint,
        "platform_id": here.platform_id,
        "workspace": here.workspace,
        "waiting": 1101,
        "starts": [],
        "rejected": [
            {
                "run_id": run_id,
                "kind": "metric",
                "key": "bad key!",
                "reason": "400 INVALID: illegal key [sic]",
            }
        ],
        "last_error": "503 Unavailable",
        "trouble": None,
    }
    assert "is not a spool file" in found[str(bad)].pop("trouble")
    assert found[str(bad)] == {
        **dict.fromkeys(("endpoint", "platform_id", "workspace", "last_error")),
        "path": str(bad),
        "waiting": 0,
        "runs": [],
        "starts": [],
        "rejected": [],
    }


def test_json_is_for_the_list(folder: Path) -> None:
    """Elsewhere it is a mistake, rather than ignored; and an empty list is JSON, too."""
    assert sync("--json").stderr == "adp-async: --json goes with --list\n"
    assert json.loads(sync("--list", "--json").stdout) == []


def test_the_list_fits_a_terminal(
    folder: Path, here: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """80 columns, and not a line for each of a thousand runs."""
    changes = [chunk(metrics(1), run_id=f"{number:032x}") for number in range(30)]
    orphan(folder, *changes, identity=here, error="x" * 300)
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80, no_color=True, markup=False)
    monkeypatch.setattr(spools, "console_for", lambda file=None: console)
    sync("--list")

    lines = screen.getvalue().splitlines()
    assert "and 18 runs more" in screen.getvalue()
    assert max(len(plain(line)) for line in lines) <= 80
    assert len(lines) < 30


def plain(line: str) -> str:
    from rich.text import Text

    return Text.from_ansi(line).plain


def test_the_list_of_what_cannot_be_read(folder: Path, here: Identity) -> None:
    """Newer, damaged, in use: each with its reason."""
    spool = Spool.create(folder, here, limit=LIMIT)
    bad = orphan(folder, identity=here)
    bad.write_bytes(b"x" * 5000)
    os.utime(bad, (0, 0))
    result = sync("--list")
    spool.close()

    assert result.exit_code == 0
    assert f"in use by pid {os.getpid()}" in result.stdout
    assert "is not a spool file" in result.stdout


# Exporting


def test_records_are_exported_as_lines_of_json(
    folder: Path, tmp_path: Path, here: Identity, run_id: str
) -> None:
    """What waits and what was rejected, with all that is known of it; nothing is removed."""
    path = orphan(
        folder,
        chunk([*metrics(2), Param("p", "ü"), RunTag("t", "v")], run_id=run_id),
        refusal(run_id),
        identity=here,
    )
    target = tmp_path / "out.jsonl"
    result = sync("--export", target)
    lines = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    where = {"platform_id": here.platform_id, "workspace": here.workspace, "run_id": run_id}

    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "5 records exported\n")
    assert lines[1] == {
        **where,
        "kind": "metric",
        "key": "loss",
        "value": 0.5,
        "timestamp": 1001,
        "step": 1,
        "state": "waiting",
    }
    assert [line["kind"] for line in lines] == ["metric", "metric", "param", "tag", "metric"]
    assert lines[4]["value"] == "NaN"
    assert lines[4]["state"] == "rejected"
    assert "illegal key" in lines[4]["reason"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert path.exists()


def test_an_export_to_stdout(folder: Path, here: Identity, run_id: str) -> None:
    """Only JSON there; what else is to say goes to standard error."""
    orphan(folder, chunk(metrics(3), run_id=run_id), identity=here)
    result = sync("--export", "-")

    assert [json.loads(line)["step"] for line in result.stdout.splitlines()] == [0, 1, 2]
    assert result.stderr == "3 records exported\n"


def test_an_export_overwrites_nothing(folder: Path, tmp_path: Path) -> None:
    """One line says so."""
    (tmp_path / "mine").write_text("mine")
    result = sync("--export", tmp_path / "mine")

    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert (tmp_path / "mine").read_text() == "mine"


# Discarding


def test_discarding_asks_first(folder: Path, here: Identity, run_id: str) -> None:
    """And without anybody to answer it takes ``--yes``."""
    path = orphan(folder, chunk(metrics(3), run_id=run_id), refusal(run_id), identity=here)
    refused = sync("--discard", input="")
    assert refused.exit_code == 1
    assert "--yes" in refused.stderr
    assert path.exists()

    result = sync("--discard", "--yes")
    assert result.exit_code == 0
    assert "3 records of 1 run" in result.stdout
    assert "1 spool discarded" in result.stdout
    assert find_spools(folder) == []


@pytest.mark.parametrize(("answer", "is_left"), [("n", True), ("", True), ("y", False)])
def test_the_answer_counts(
    folder: Path, here: Identity, monkeypatch: pytest.MonkeyPatch, answer: str, is_left: bool
) -> None:
    """No is the default."""
    path = orphan(folder, chunk(metrics(3)), identity=here)
    monkeypatch.setattr(spools, "_is_somebody_there", lambda: True)
    result = sync("--discard", input=f"{answer}\n")

    assert "Discard 3 records in 1 spool for good?" in result.stdout
    assert path.exists() == is_left
    assert result.exit_code == int(is_left)


def test_discarding_spares_what_is_in_use_and_what_is_no_spool(
    folder: Path, here: Identity
) -> None:
    """And takes what is damaged: nobody can read that."""
    live = Spool.create(folder, here, limit=LIMIT)
    damaged = orphan(folder, *(chunk(metrics(1000, n), n) for n in range(0, 5000, 1000)))
    content = damaged.read_bytes()
    damaged.write_bytes(content[:4096] + b"\xa5" * (len(content) - 4096))
    foreign = folder / "notes.spool"
    foreign.write_text("not a spool at all")
    os.utime(foreign, (0, 0))
    result = sync("--discard", "--yes")

    assert result.exit_code == 0
    assert (live.path.exists(), damaged.exists(), foreign.exists()) == (True, False, True)
    live.close()


def test_one_thing_at_a_time(folder: Path) -> None:
    """Options that cannot be combined are named, and nothing is done."""
    result = sync("--list", "--discard", "--yes")

    assert result.exit_code == 1
    assert "--list and --discard" in result.stderr


# A session and the command


async def test_two_never_deliver_the_same(
    platform: LocalPlatform, folder: Path, here: Identity, run_id: str
) -> None:
    """While a session recovers, the command leaves what that has; every point arrives once."""
    for number in range(4):
        orphan(folder, chunk(metrics(500, number * 500), run_id=run_id), identity=here)
    platform.gateway.latency = 0.02
    async with platform.session(spool=folder):
        script = "from adp_async.cli import main; main()"
        command = await asyncio.create_subprocess_exec(sys.executable, "-c", script, "sync")
        with not_outlived_by(command):
            async with asyncio.timeout(60):
                await command.wait()
        async with asyncio.timeout(30):
            while len(steps(platform, run_id)) < 2000:  # noqa: ASYNC110 - it is another thread's
                await asyncio.sleep(0.01)

    assert steps(platform, run_id) == list(range(2000))
