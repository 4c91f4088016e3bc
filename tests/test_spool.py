"""The file itself: what is written comes back, in whatever process, and whatever happened to it."""

from __future__ import annotations

import math
import os
import sqlite3
import stat
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given, settings
from spools import FAKE, LIMIT, chunk, metrics, orphan, sealed, settled

from adp_async._io import spool as spool_module
from adp_async._io.spool import Spool
from adp_async._io.spool_database import Database
from adp_async._io.spool_file import (
    SpoolBusy,
    SpoolError,
    SpoolLimit,
    SpoolNewer,
    SpoolUnreadable,
    find_spools,
    remove,
)
from adp_async._io.spool_reader import LOADED
from adp_async._io.spool_rows import checksum_of
from adp_async._io.spool_schema import FORMAT
from adp_async._io.spool_writer import KEPT_REFUSED, Writer
from adp_async._sansio.journal import Changes, Chunk, Refused, Sealed, Unreadable
from adp_async._sansio.packing import DAMAGED, pack, unpack
from adp_async._sansio.records import Metric, Param, RunTag
from adp_async.errors import BadRequest, Rejection

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adp_async._sansio.records import AnyRecord


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    spool = Spool.create(tmp_path, FAKE, limit=LIMIT)
    yield spool
    spool.release()


def fields(record: AnyRecord) -> tuple[Any, ...]:
    if type(record) is Metric:
        return (record.key, repr(record.value), record.timestamp, record.step)
    return (type(record).__name__, record.key, record.value)  # type: ignore[union-attr]


def steps(records: list[AnyRecord]) -> list[int]:
    return [record.step for record in records]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE refused SET reason = x'ff'",
        "UPDATE refused SET run_id = ''",
        "UPDATE refused SET refused_at = 'soon'",
        "UPDATE refused SET reason = 'another'",
        "UPDATE refused SET body = x'00'",
        "UPDATE refused SET body = x'c1', checksum = checksum_of(x'c1', run_id, kind, key, reason)",
        "UPDATE refused SET body = x'90', checksum = checksum_of(x'90', run_id, kind, key, reason)",
    ],
)
def test_a_damaged_refusal(tmp_path: Path, damage: str) -> None:
    """It isn't shown, and isn't sent again; its neighbours are."""
    rejection = Rejection("run", "metric", "loss", 7, BadRequest("no", status=400))
    refused = Changes(refused=[Refused(rejection, Metric("loss", 0.5, 1, 7))])
    path = orphan(tmp_path, refused)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.create_function("checksum_of", 5, checksum_of)
        connection.execute(damage)
    spool = Spool.open(path, limit=LIMIT)
    spool.commit(refused)
    shown = len(spool.contents().rejected)
    again = spool.requeue_refused()
    spool.release()
    assert (shown, again) == (1, 1)


@pytest.mark.parametrize(
    ("damage", "runs"),
    [
        ("UPDATE chunks SET run_id = '' WHERE run_id = 'a'", ["b"]),
        ("UPDATE chunks SET metrics = 'many', accepted_at = 'soon' WHERE run_id = 'a'", ["b"]),
        ("UPDATE chunks SET metrics = 0 WHERE run_id = 'a'", ["b"]),
        ("INSERT INTO runs VALUES ('a', 'much')", ["a", "b"]),
        ("INSERT INTO runs VALUES (x'ff', 1)", ["a", "b"]),
    ],
)
def test_a_damaged_count(tmp_path: Path, damage: str, runs: list[str]) -> None:
    """The list shows what is known of the others."""
    path = orphan(tmp_path, chunk(metrics(3), run_id="a"), chunk(metrics(3), run_id="b"))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(damage)
    spool = Spool.open(path, limit=LIMIT)
    shown = [run.run_id for run in spool.contents().runs]
    spool.release()
    assert sorted(shown) == runs


def test_waiting_records_beside_damaged_ones(tmp_path: Path) -> None:
    """An export has all that can be read."""
    path = orphan(tmp_path, chunk(metrics(3)), chunk(metrics(3, 3), 3), chunk(metrics(3, 6), 6))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE chunks SET body = x'c1' WHERE first = 3")
    spool = Spool.open(path, limit=LIMIT)
    left = [record for _, record in spool.waiting()]
    spool.release()
    assert steps(left) == [0, 1, 2, 6, 7, 8]


@pytest.mark.parametrize("token", ["", "two words", "\n", "x" * 65], ids=repr)
def test_a_damaged_token(tmp_path: Path, token: str) -> None:
    """A batch whose retry token is invalid is sent with a new one."""
    path = orphan(tmp_path, chunk(metrics(3)), sealed(0, 2, "token"))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE sealed SET token = ?", (token,))
    spool = Spool.open(path, limit=LIMIT)
    (piece,) = spool.pieces()
    spool.release()
    assert (piece.sealed, piece.spilled) == ((), ((0, 3),))


def test_an_owner_that_cannot_be_taken_out(spool: Spool, caplog: Any) -> None:
    """The file is released anyway; later, its owner has ended."""
    caplog.set_level("DEBUG", "adp_async")
    spool._database.connection.execute("DROP TABLE meta")
    spool.release()
    assert "names its owner until that ends" in caplog.text
    with pytest.raises(sqlite3.ProgrammingError):
        spool._database.connection.execute("SELECT 1")


def test_removed_while_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the process that had it: then there is nothing left to deliver."""
    path = orphan(tmp_path, chunk(metrics(3)))
    connect = spool_module.connect

    def connect_late(late: Path) -> sqlite3.Connection:
        connection = connect(late)
        remove(late)
        return connection

    monkeypatch.setattr(spool_module, "connect", connect_late)
    with pytest.raises(SpoolBusy, match="was removed by another process"):
        Spool.open(path, limit=LIMIT)
    assert find_spools(tmp_path) == []


# Records as bytes

int64 = st.integers(-(2**63), 2**63 - 1)
texts = st.text(st.characters(codec="utf-8"))
records = st.one_of(
    st.builds(Metric, texts, st.floats(), int64, int64),
    st.builds(Param, texts, texts),
    st.builds(RunTag, texts, texts),
)


@given(st.lists(records))
def test_what_is_packed_comes_back(given_records: list[AnyRecord]) -> None:
    """Every float, int64 and character, whatever kinds lie side by side."""
    back = unpack(pack(given_records))

    assert list(map(fields, back)) == list(map(fields, given_records))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.0, 5e-324, 0.1 + 0.2])
def test_a_float_comes_back_bit_by_bit(value: float) -> None:
    """NaN and the infinities included."""
    (back,) = unpack(pack([Metric("loss", value, -(2**63), 2**63 - 1)]))

    assert fields(back) == ("loss", repr(value), -(2**63), 2**63 - 1)


METRIC = ["loss", 0.5, 1000, 7]


def changed(at: int, value: object) -> list[object]:
    return [*METRIC[:at], value, *METRIC[at + 1 :]]


@pytest.mark.parametrize(
    "rows",
    [
        [changed(0, None)],
        [changed(0, ["loss"])],
        [changed(0, b"loss")],
        [changed(0, 5)],
        [changed(1, None)],
        [changed(1, "0.5")],
        [changed(1, True)],
        [changed(1, [0.5])],
        [changed(2, 1000.0)],
        [changed(2, 2**63)],
        [changed(3, None)],
        [changed(3, False)],
        [changed(3, "7")],
        [changed(3, 2**63)],
        [METRIC, METRIC[:3]],
        [[*METRIC, 1]],
        [["p", "key", 5]],
        [["p", "key", None]],
        [["t", 5, "value"]],
        [["t", "key", ["value"]]],
        [["x", "key", "value"]],
        [[["p"], "key", "value"]],
        [["p", "key"]],
        [["p", "key", "value", "of", "more"]],
        [[]],
        [5],
        {"loss": METRIC},
        None,
    ],
    ids=repr,
)
def test_other_types_are_damage(rows: object) -> None:
    """Whatever a flipped bit makes of a row, nothing but records comes out of it."""
    with pytest.raises(DAMAGED):
        unpack(msgspec.msgpack.encode(rows))


@pytest.mark.parametrize(
    "body", ["text", None, 5, b"", b"\x91\x94\xa1\xff\x01\x02\x03", b"\x91" * 10_000], ids=repr
)
def test_other_bytes_are_damage(body: object) -> None:
    """Text that is not UTF-8, nothing at all, nesting without an end."""
    with pytest.raises(DAMAGED):
        unpack(body)


# The file


def test_a_spool_is_its_owners_alone(tmp_path: Path) -> None:
    """The folder that is made, the file and its WAL are nobody else's to read."""
    before = os.umask(0)
    try:
        spool = Spool.create(tmp_path / "made" / "here", FAKE, limit=LIMIT)
        spool.commit(chunk(metrics(10)))
    finally:
        os.umask(before)
    wal = spool.path.with_name(spool.path.name + "-wal")

    assert stat.S_IMODE(spool.path.parent.stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in (spool.path, wal)] == [0o600, 0o600]
    spool.release()


def test_a_spool_knows_whose_records_it_holds(tmp_path: Path) -> None:
    """Endpoint, platform and workspace are in the file."""
    path = orphan(tmp_path, chunk(metrics(1)))
    spool = Spool.open(path, limit=LIMIT)

    assert spool.identity == FAKE
    spool.release()


def test_an_empty_spool_goes_when_it_is_closed(spool: Spool) -> None:
    """Neither the file nor what SQLite puts beside it is left."""
    spool.commit(chunk(metrics(10)))
    spool.commit(settled(10))
    spool.close()

    assert list(spool.path.parent.iterdir()) == []


def test_a_spool_with_something_in_it_stays(spool: Spool) -> None:
    """Closed in good order it is one file."""
    spool.commit(chunk(metrics(10)))
    spool.close()

    assert list(spool.path.parent.iterdir()) == [spool.path]


def test_spools_are_found_oldest_first(tmp_path: Path) -> None:
    """Their names begin with the time; other files are none."""
    for name in ("20260102-x.spool", "20260101-x.spool", "20260101-x.spool-wal", "notes.txt"):
        (tmp_path / name).touch()

    names = [path.name for path in find_spools(tmp_path)]
    assert names == ["20260101-x.spool", "20260102-x.spool"]
    assert find_spools(tmp_path / "missing") == []


# The lock


def test_a_spool_in_use_is_busy(spool: Spool) -> None:
    """Nobody opens it while its session lives, not even one of the same process."""
    with pytest.raises(SpoolBusy, match="in use"):
        Spool.open(spool.path, limit=LIMIT)


def test_a_spool_that_is_locked_is_busy(tmp_path: Path) -> None:
    """Even without an owner in it: another process has it open."""
    path = orphan(tmp_path, chunk(metrics(5)))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(SpoolBusy, match="in use by a running process"):
            Spool.open(path, limit=LIMIT)


def test_looking_at_a_spool_of_this_process_leaves_its_lock(spool: Spool) -> None:
    """Closing a file gives up all the locks a process has on it, so it must not be opened."""
    spool.commit(chunk(metrics(1)))
    with pytest.raises(SpoolBusy):
        Spool.open(spool.path, limit=LIMIT)
    link = spool.path.with_name("other.spool")
    link.symlink_to(spool.path)
    with pytest.raises(SpoolBusy):
        Spool.open(link, limit=LIMIT)

    assert is_locked(spool.path)


def is_locked(path: Path) -> bool:
    """What another process finds."""
    import subprocess

    script = (
        "import sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)\n"
        "connection.execute('BEGIN IMMEDIATE')"
    )
    command = [sys.executable, "-c", script, str(path)]
    return subprocess.run(command, capture_output=True, check=False).returncode != 0


def test_the_lock_goes_with_the_spool(tmp_path: Path) -> None:
    """A released spool can be opened, once."""
    path = orphan(tmp_path, chunk(metrics(1)))
    first = Spool.open(path, limit=LIMIT)
    with pytest.raises(SpoolBusy):
        Spool.open(path, limit=LIMIT)
    first.release()

    Spool.open(path, limit=LIMIT).release()


def test_a_spool_in_the_making_is_left_alone(tmp_path: Path) -> None:
    """Another process has made the file and not yet said what it is: no reason to warn."""
    path = tmp_path / "new.spool"
    path.touch()
    with pytest.raises(SpoolBusy, match="being created"):
        Spool.open(path, limit=LIMIT)

    os.utime(path, (time.time() - 3600,) * 2)
    with pytest.raises(SpoolError, match="not a spool file"):
        Spool.open(path, limit=LIMIT)


def test_a_spool_that_has_gone_is_somebody_elses(tmp_path: Path) -> None:
    """Another process delivered it between the look at the folder and the look at the file."""
    with pytest.raises(SpoolBusy, match="removed"):
        Spool.open(tmp_path / "gone.spool", limit=LIMIT)


@pytest.mark.parametrize("is_open", [False, True], ids=["before", "after"])
def test_one_that_is_removed_while_it_is_opened(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, is_open: bool
) -> None:
    """Its owner has finished: that is not a failure, whether SQLite has the file open or not."""
    connect = sqlite3.connect

    def slow(*arguments: Any, **named: Any) -> sqlite3.Connection:
        if not is_open:
            remove(spool.path)
        connection: sqlite3.Connection = connect(*arguments, **named)
        remove(spool.path)
        return connection

    spool.release()
    monkeypatch.setattr(sqlite3, "connect", slow)

    with pytest.raises(SpoolBusy, match="removed by another process"):
        Spool.open(spool.path, limit=LIMIT)
    assert find_spools(spool.path.parent) == []


def test_a_newer_spool_is_left_as_it_is(tmp_path: Path) -> None:
    """Not a byte of it changes, and the message says what to do."""
    path = orphan(tmp_path, chunk(metrics(1)))
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {FORMAT + 1}")
    connection.close()
    before = path.read_bytes()

    with pytest.raises(SpoolNewer, match="upgrade"):
        Spool.open(path, limit=LIMIT)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_database_of_somebody_else_is_not_touched(tmp_path: Path) -> None:
    """It has the name of a spool, and is none."""
    path = tmp_path / "a.spool"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    os.utime(path, (time.time() - 3600,) * 2)
    before = path.read_bytes()

    with pytest.raises(SpoolError, match="not a spool file"):
        Spool.open(path, limit=LIMIT)
    assert path.read_bytes() == before


# Commits


def test_a_commit_is_whole_or_not_at_all(spool: Spool) -> None:
    """A record that can't be packed leaves nothing of its commit behind."""
    bad = [Metric("loss", object(), 1, 1)]  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        spool.commit(Changes(chunks=[Chunk("run", 0, metrics(5)), Chunk("run", 5, bad)]))

    assert spool.pieces() == []
    spool.commit(chunk(metrics(3)))
    assert spool.pieces()[0].spilled == ((0, 3),)


def test_what_frees_space_is_written_when_there_is_none(tmp_path: Path) -> None:
    """Over the limit nothing more is taken, and what was delivered goes all the same."""
    spool = Spool.create(tmp_path, FAKE, limit=100_000)
    spool.commit(chunk(metrics(5000)))
    both = chunk(metrics(1000, 5000), 5000)
    both.settled = settled(1000).settled
    with pytest.raises(SpoolError, match="spool_limit"):
        spool.commit(both)

    assert both.is_settled
    assert spool.pieces()[0].spilled == ((1000, 5000),)
    spool.commit(settled(5000))
    spool.commit(chunk(metrics(1000, 5000), 5000))
    assert spool.pieces()[0].spilled == ((5000, 6000),)
    spool.release()


def test_the_limit_is_where_it_ends(tmp_path: Path) -> None:
    """A spool of just so many bytes takes no more; with a byte less in it one commit goes in."""
    spool = Spool.create(tmp_path, FAKE, limit=LIMIT)
    spool._writer.limit = spool.size
    with pytest.raises(SpoolError, match="spool_limit"):
        spool.commit(chunk(metrics(1)))
    spool._writer.limit += 1
    spool.commit(chunk(metrics(1)))

    assert spool.pieces()[0].spilled == ((0, 1),)
    spool.release()


def test_at_the_limit_tokens_are_written(spool: Spool) -> None:
    """Those of records that are on disk: only when these have left there is room again."""
    spool.commit(chunk(metrics(10)))
    spool._writer.limit = 1
    with pytest.raises(SpoolLimit):
        spool.commit(
            Changes(
                chunks=[Chunk("run", 10, metrics(5, 10))],
                sealed=[Sealed("run", ((0, 10),), "token")],
            )
        )
    (piece,) = spool.pieces()
    assert [(ranges, token) for ranges, token, _ in piece.sealed] == [(((0, 10),), "token")]
    assert (piece.spilled, piece.last) == ((), 10)


def test_the_file_shrinks_when_its_records_are_gone(spool: Spool) -> None:
    """Free pages are given back beyond a few that are kept for what comes next."""
    text = "x" * 6000
    spool.commit(chunk([Param(f"p{number}", text) for number in range(5000)]))
    assert spool.path.stat().st_size + wal_bytes(spool) > 25_000_000
    spool.commit(settled(5000))
    for number in range(10):
        spool.commit(chunk(metrics(1, number), number, run_id="other"))
        spool.commit(settled(number + 1, run_id="other"))
    spool.commit(chunk(metrics(1)))
    spool.release()

    assert spool.path.stat().st_size < 10_000_000


def wal_bytes(spool: Spool) -> int:
    return spool.path.with_name(spool.path.name + "-wal").stat().st_size


def test_refused_records_are_bounded(spool: Spool) -> None:
    """The last ten thousand are kept."""
    for first in range(0, KEPT_REFUSED + 2000, 1000):
        spool.commit(Changes(refused=[refusal(number) for number in range(first, first + 1000)]))

    rejected = spool.contents().rejected
    assert len(rejected) == KEPT_REFUSED
    assert [rejected[0].record.step, rejected[-1].record.step] == [2000, KEPT_REFUSED + 1999]  # type: ignore[union-attr]


def refusal(step: int = 0) -> Refused:
    record = Metric("loss", 0.5, 1, step)
    error = BadRequest("no such thing", status=400, code="INVALID")
    return Refused(Rejection("run", "metric", "loss", step, error), record)


def test_a_refused_record_keeps_the_file(spool: Spool) -> None:
    """Until a person has seen it: with its reason, and the record itself."""
    spool.commit(Changes(refused=[refusal(7)]))
    spool.close()
    again = Spool.open(spool.path, limit=LIMIT)
    (row,) = again.contents().rejected

    assert (row.run_id, row.kind, row.key, fields(row.record)[3]) == ("run", "metric", "loss", 7)
    assert "400 INVALID: no such thing" in row.reason
    assert again.pieces() == []
    again.discard()
    assert find_spools(spool.path.parent) == []


def test_any_thread_may_write(spool: Spool) -> None:
    """One lock lets them in, one after the other."""

    def write(number: int) -> None:
        for first in range(0, 100, 10):
            spool.commit(chunk(metrics(10, first), first, run_id=f"run-{number}"))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [piece.spilled for piece in spool.pieces()] == [((0, 100),)] * 4


# Reading


def test_records_are_read_across_rows(spool: Spool) -> None:
    """From the middle of one row to the middle of another."""
    for first in range(0, 50, 10):
        spool.commit(chunk(metrics(10, first), first))

    assert steps(spool.load("run", 5, 33)) == list(range(5, 33))
    assert spool.load("run", 5, 5) == []


def test_reading_stops_at_a_hole(spool: Spool) -> None:
    """What comes before it is read; nothing is made up, and the error says where the gap ends."""
    spool.commit(chunk(metrics(10)))
    spool.commit(chunk(metrics(10, 20), 20))

    assert steps(spool.load("run", 0, 30)) == list(range(10))
    with pytest.raises(SpoolUnreadable) as raised:
        spool.load("run", 10, 30)
    assert raised.value.until == 20


@pytest.mark.parametrize("damage", [b"", b"\xc1", pack([])[:0] + b"\x93\x01", b"\x91\x92\xa1x\x01"])
def test_a_damaged_row_costs_no_other(spool: Spool, damage: bytes) -> None:
    """Records before and after it are read, and it is put aside as it is."""
    for first in range(0, 30, 10):
        spool.commit(chunk(metrics(10, first), first))
    spool._database.connection.execute("UPDATE chunks SET body = ? WHERE first = 10", (damage,))

    assert steps(spool.load("run", 0, 30)) == list(range(10))
    with pytest.raises(SpoolUnreadable, match="damaged") as raised:
        spool.load("run", 10, 30)
    assert raised.value.until == 20
    assert steps(spool.load("run", 20, 30)) == list(range(20, 30))

    spool.commit(Changes(unreadable=[Unreadable("run", 10, 20)], settled=settled(30).settled))
    assert spool.pieces() == []
    spool.close()
    again = Spool.open(spool.path, limit=LIMIT)
    assert "1 rows are damaged" in again.contents().trouble
    again.release()


def test_what_is_left_of_a_run(spool: Spool) -> None:
    """Not before where it is settled, not what is done out of turn, and batches by themselves."""
    spool.commit(chunk(metrics(100)))
    spool.commit(sealed(20, 30, "token-a"))
    spool.commit(sealed(40, 50, "token-b"))
    spool.commit(settled(10, (40, 60)))
    (piece,) = spool.pieces()

    assert piece.spilled == ((10, 20), (30, 40), (60, 100))
    assert [(ranges[0][0], token, steps(found)) for ranges, token, found in piece.sealed] == [
        (20, "token-a", list(range(20, 30)))
    ]
    assert piece.last == 100


def test_what_is_settled_is_said_again_and_again(spool: Spool) -> None:
    """Each time as a whole: spans that were written before are not in the way."""
    spool.commit(chunk(metrics(20)))
    spool.commit(settled(0, (5, 8)))
    spool.commit(settled(0, (5, 8), (9, 10)))
    spool.commit(settled(8, (9, 10)))
    (piece,) = spool.pieces()
    assert piece.spilled == ((8, 9), (10, 20))


@pytest.mark.parametrize(
    "change",
    ["UPDATE sealed SET token = 'two' || char(10) || 'lines'", "UPDATE sealed SET token = ''"],
    ids=["line end", "empty"],
)
def test_a_damaged_token_costs_no_record(spool: Spool, change: str) -> None:
    """It could not be sent: the records are, as if they had not been under way."""
    spool.commit(chunk(metrics(10)))
    spool.commit(sealed(0, 10, "token"))
    spool._database.connection.execute(change)
    (piece,) = spool.pieces()
    assert (piece.sealed, piece.spilled) == ((), ((0, 10),))


def test_a_batch_that_cannot_be_read_whole_is_no_batch(spool: Spool) -> None:
    """With fewer records its token would stand for another request."""
    spool.commit(chunk(metrics(5)))
    spool.commit(chunk(metrics(5, 5), 5))
    spool.commit(sealed(0, 10, "token"))
    spool._database.connection.execute("UPDATE chunks SET body = x'00' WHERE first = 5")
    (piece,) = spool.pieces()
    assert (piece.sealed, piece.spilled) == ((), ((0, 10),))


def test_counts_leave_out_what_is_settled(spool: Spool) -> None:
    """A half-delivered row counts by half, kind by kind."""
    mixed: list[AnyRecord] = [*metrics(10), Param("p", "v"), RunTag("t", "v"), *metrics(10, 12)]
    spool.commit(chunk(mixed))
    spool.commit(settled(5, (10, 12), (20, 21)))
    (row,) = spool.contents().runs

    assert (row.metrics, row.params, row.tags) == (5 + 9, 0, 0)
    assert spool.contents().records == len(list(spool.waiting()))


def test_what_waits_is_listed_in_order(spool: Spool) -> None:
    """Batches under way have their place among the others."""
    spool.commit(chunk(metrics(30)))
    spool.commit(chunk(metrics(5), run_id="other"))
    spool.commit(sealed(10, 20, "token"))
    spool.commit(settled(5))

    waiting = [(run_id, fields(record)[3]) for run_id, record in spool.waiting()]
    assert waiting == [
        *(("run", step) for step in range(5, 30)),
        *(("other", step) for step in range(5)),
    ]


def test_nothing_is_kept_of_a_run_that_is_through(spool: Spool) -> None:
    """A process of many runs leaves no trace of each."""
    for number in range(20):
        spool.commit(chunk(metrics(3), run_id=f"run-{number}"))
        spool.commit(sealed(0, 3, "token", run_id=f"run-{number}"))
        spool.commit(settled(3, run_id=f"run-{number}"))

    for table in ("chunks", "sealed", "runs", "done"):
        count = spool._database.connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        assert count == 0, table


def test_many_runs_are_found_in_good_time(spool: Spool) -> None:
    """Time grows with the rows, not with rows times runs."""
    changes = Changes(chunks=[Chunk(f"run-{number}", 0, metrics(1)) for number in range(5000)])
    spool.commit(changes)
    begin = time.thread_time()  # which passes no faster on a busy machine

    assert len(spool.pieces()) == 5000
    assert time.thread_time() - begin < 1.0


def test_no_record_is_in_a_repr(spool: Spool) -> None:
    """The `repr` of objects does not show logged values."""
    secret = "a value of somebody"
    spool.commit(chunk([RunTag("t", secret)]))
    spool.commit(Changes(refused=[refusal()]))

    assert secret not in repr([spool, spool.contents(), spool.contents().rejected])


def test_the_module_forgets_spools_that_were_let_go_of(tmp_path: Path) -> None:
    """A long process that recovers many spools holds on to none."""
    before = len(spool_module._open_spools)
    spool = Spool.create(tmp_path, FAKE, limit=LIMIT)
    spool.close()

    assert len(spool_module._open_spools) == before


# Damage


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("body", b""),
        ("body", pack(metrics(9, 10))),  # fewer than the row says
        ("body", pack(metrics(11, 10))),
        ("body", pack(metrics(10, 11))),  # well-formed, and others
        ("body", "text"),
        ("checksum", 5),
        ("checksum", "x"),
        ("last", 19),
        ("last", 21),
        ("last", 2**40),
        ("last", 19.5),
        ("last", "x"),
        ("first", 11),
        ("first", 20),
        ("first", 5),
        ("first", -10),
        ("first", 2**62 + 1),
        ("first", "x"),
        ("run_id", "rum"),
        ("run_id", b"\xff\xfe"),
        ("run_id", ""),
    ],
)
def test_a_damaged_row_is_put_aside(tmp_path: Path, column: str, value: object) -> None:
    """Whatever of it is damaged: nothing of it is read, its neighbours are, and it is kept."""
    path = orphan(tmp_path, *(chunk(metrics(10, first), first) for first in (0, 10, 20)))
    with sqlite3.connect(path) as connection:
        query = f"UPDATE chunks SET {column} = ? WHERE first = 10"
        connection.execute(query, (value,))
        if isinstance(value, bytes) and column == "run_id":
            connection.execute("UPDATE chunks SET run_id = CAST(run_id AS TEXT) WHERE first = 10")
    connection.close()
    spool = Spool.open(path, limit=LIMIT)
    spool.take()
    before = sorted(steps([record for _, record in spool.waiting()]))
    left, reads = drained(spool)

    assert sorted(steps(left)) == before == [*range(10), *range(20, 30)]
    assert reads < 20
    assert "1 rows are damaged" in spool.contents().trouble
    assert spool.contents().records == 0
    spool.close()
    assert path.exists()


def drained(spool: Spool) -> tuple[list[AnyRecord], int]:
    """What is read of it as recovery does, with what can't be read put aside; in how many reads."""
    left: list[AnyRecord] = []
    reads = 0
    for piece in spool.pieces():
        for first, last in piece.spilled:
            at = first
            while at < last:
                reads += 1
                records, until = read_or_put_aside(spool, piece.run_id, at, last)
                left += records
                assert until > at, "somebody would wait for ever"
                at = until
        spool.commit(settled(piece.last, run_id=piece.run_id))
    return left, reads


def read_or_put_aside(
    spool: Spool, run_id: str, first: int, last: int
) -> tuple[list[AnyRecord], int]:
    try:
        records = spool.load(run_id, first, min(last, first + LOADED))
    except SpoolUnreadable as error:
        spool.commit(Changes(unreadable=[Unreadable(run_id, first, error.until)]))
        return [], error.until
    return records, first + len(records)


@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=150, deadline=None)
def test_a_flipped_bit_sends_nothing_wrong(intact: Path, where: float, bit: int) -> None:
    """Anywhere in the file: what is read is what was written, or the damage is reported."""
    content = bytearray(intact.read_bytes())
    written = [at for at, byte in enumerate(content) if byte]
    content[written[int(where * len(written))]] ^= 1 << bit
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.spool"
        path.write_bytes(content)
        os.utime(path, (0, 0))
        found = all_in(path)
    expected = [fields(record) for record in [*metrics(40), Param("p", "v"), *metrics(20, 41)]]

    assert [record for record in found if record not in expected] == []


def all_in(path: Path) -> list[tuple[Any, ...]]:
    """What is read of *path*; nothing where it can't be opened, or only in part."""
    try:
        spool = Spool.open(path, limit=LIMIT)
    except SpoolError:
        return []
    try:
        assert all(piece.run_id for piece in spool.pieces())
        spool.take()
        found = [fields(record) for _, record in spool.waiting()]
        spool.contents()
        drained(spool)
    except SpoolError:
        return []
    else:
        return found
    finally:
        spool.release()


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound spool, to be damaged."""
    mixed = [Param("p", "v"), *metrics(20, 41)]
    changes = chunk(metrics(40)), chunk(mixed, 40), sealed(0, 20, "token")
    return orphan(tmp_path_factory.mktemp("intact"), *changes)


def test_an_index_that_does_not_fit_is_made_anew(tmp_path: Path) -> None:
    """Records are found by it, and a page of it may be damaged while the table is well."""
    path = orphan(tmp_path, *(chunk(metrics(10, first), first) for first in (0, 10, 20)))
    with sqlite3.connect(path) as connection:
        query = "SELECT rootpage FROM sqlite_master WHERE name = 'chunks_by_run'"
        (page,) = connection.execute(query).fetchone()
    connection.close()
    content = bytearray(path.read_bytes())
    start = (page - 1) * 4096
    where = content.rindex(b"run", start, start + 4096)
    content[where : where + 3] = b"sun"
    path.write_bytes(content)
    spool = Spool.open(path, limit=LIMIT)

    assert steps(spool.load("run", 0, 30)) == list(range(30))
    spool.release()


def test_a_damaged_refused_row_keeps_no_other(spool: Spool) -> None:
    """It is counted as damaged, and put aside when the others are to be sent again."""
    spool.commit(Changes(refused=[refusal(step) for step in range(3)]))
    spool._database.connection.execute("UPDATE refused SET body = x'c1' WHERE rowid = 2")

    assert [row.record.step for row in spool.contents().rejected] == [0, 2]  # type: ignore[union-attr]
    assert "1 rows are damaged" in spool.contents().trouble
    assert spool.requeue_refused() == 2
    assert "1 rows are damaged" in spool.contents().trouble
    assert steps([record for _, record in spool.waiting()]) == [0, 2]


def test_a_refused_row_that_says_something_else_is_damaged(spool: Spool) -> None:
    """Its checksum is about the run, the key and the reason, too."""
    spool.commit(Changes(refused=[refusal(1), refusal(2)]))
    spool._database.connection.execute("UPDATE refused SET run_id = 'another' WHERE rowid = 1")
    contents = spool.contents()
    assert [each.record.step for each in contents.rejected] == [2]  # type: ignore[union-attr]
    assert contents.trouble


def test_a_spool_that_says_not_whose_records(spool: Spool) -> None:
    """It is damaged, and no other error than that comes out."""
    spool.commit(chunk(metrics(3)))
    spool._database.connection.execute("DELETE FROM meta WHERE name = 'workspace'")

    with pytest.raises(SpoolError, match="doesn't say whose"):
        _ = spool.identity


# Refused records once more


def test_refused_records_wait_once_more(spool: Spool) -> None:
    """Behind what waits, in their order, run by run; and no more among the refused."""
    spool.commit(chunk(metrics(10)))
    spool.commit(settled(4))
    spool.commit(Changes(refused=[refusal(step) for step in range(100, 2600)]))
    count = spool.requeue_refused()

    assert count == 2500
    assert spool.contents().rejected == ()
    assert steps([record for _, record in spool.waiting()]) == [*range(4, 10), *range(100, 2600)]
    assert spool.requeue_refused() == 0


def test_of_a_run_that_is_through_as_well(spool: Spool) -> None:
    """Sequence numbers that were settled are not given again."""
    spool.commit(chunk(metrics(10)))
    spool.commit(settled(5, (8, 10)))
    spool.commit(Changes(refused=[refusal(50)]))
    spool.requeue_refused()
    (piece,) = spool.pieces()
    assert piece.spilled == ((5, 8), (10, 11))

    spool.commit(settled(11))
    spool.commit(Changes(refused=[refusal(51)]))
    spool.requeue_refused()
    assert steps([record for _, record in spool.waiting()]) == [51]


def test_of_a_run_whose_rows_are_damaged(spool: Spool) -> None:
    """How far it was settled still counts: what is sent once more comes behind that."""
    spool.commit(chunk(metrics(10)))
    spool.commit(settled(5))
    spool.commit(Changes(refused=[refusal(50)]))
    spool._database.connection.execute("UPDATE chunks SET body = x'00'")
    assert spool.take() == 1
    spool.requeue_refused()
    assert steps([record for _, record in spool.waiting()]) == [50]


def test_a_failure_in_the_middle_moves_none(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """They leave the one table and enter the other together."""
    spool.commit(Changes(refused=[refusal(step) for step in range(5)]))

    def failing(self: Database, connection: sqlite3.Connection, table: str, rows: Any) -> None:
        insert(self, connection, table, list(rows)[:2])
        raise sqlite3.OperationalError("database or disk is full")

    insert = Database.insert_rows
    with monkeypatch.context() as patch:
        patch.setattr(Database, "insert_rows", failing)
        with pytest.raises(SpoolError, match="disk is full"):
            spool.requeue_refused()

    assert spool.pieces() == []
    assert len(spool.contents().rejected) == 5


# Forks


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_fork_waits_for_a_commit(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that starts in the middle of one would inherit SQLite's locks for good."""
    inside, go_on = threading.Event(), threading.Event()
    happened: list[str] = []
    insert = Writer._insert

    def slow(self: Writer, connection: sqlite3.Connection, changes: Changes) -> None:
        inside.set()
        go_on.wait(30)
        insert(self, connection, changes)
        happened.append("written")

    monkeypatch.setattr(Writer, "_insert", slow)
    writer = threading.Thread(target=spool.commit, args=(chunk(metrics(3)),))
    writer.start()
    assert inside.wait(30)
    threading.Timer(0.03, go_on.set).start()
    child = os.fork()
    if not child:
        os._exit(0 if happened == ["written"] else 1)
    _, status = os.waitpid(child, 0)
    writer.join()

    assert os.waitstatus_to_exitcode(status) == 0
    assert happened == ["written"]
