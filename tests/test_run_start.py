"""The rules by which a run that a process has started is created once, and ended."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from spools import FAKE, LIMIT, chunk, metrics, old_orphan, orphan, sealed, settled

from adp_async._io.recovery import open_orphan
from adp_async._io.spool import Spool
from adp_async._sansio.accumulator import Accumulator, name
from adp_async._sansio.journal import Changes, Journal
from adp_async._sansio.records import Metric
from adp_async._sansio.retry import RetryPolicy
from adp_async._sansio.run_start import (
    LOCAL_ID,
    PARENT,
    TOKEN_LIFETIME,
    Ask,
    RunEnd,
    RunStart,
    found_among,
    is_its_own,
    is_out_of_reach,
    next_ask,
    patience,
    search_filter,
)
from adp_async._sansio.spilling import restore, restore_start
from adp_async.entities.runs import Run, RunData, RunInfo, RunTag
from adp_async.errors import (
    AdpError,
    BadRequest,
    Closed,
    ConfigurationError,
    ConnectionFailed,
    ConnectionLost,
    Forbidden,
    NotAuthenticated,
    NotFound,
    RequestTimeout,
    ServiceFault,
    Throttled,
    UnreadableReply,
)

if TYPE_CHECKING:
    from pathlib import Path

    from adp_async._io.spool_file import Identity

MADE = 1_000_000.0
START = RunStart(
    "local-1",
    experiment="digits",
    run_name="sgd",
    tags={"team": "a"},
    start_time=5000,
    retry_token="token",
    token_made_at=MADE,
)


# What to ask --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("age", "may_exist", "ask"),
    [
        (0.0, False, Ask.CREATE),
        (0.0, True, Ask.SEARCH),
        (TOKEN_LIFETIME - 1.0, False, Ask.CREATE),
        (TOKEN_LIFETIME, False, Ask.RENEW),
        (TOKEN_LIFETIME, True, Ask.SEARCH),
        (30 * 86_400.0, False, Ask.RENEW),
        # A clock that was set back: the token may be older than it looks.
        (-60.0, False, Ask.CREATE),
        (-2 * 86_400.0, False, Ask.RENEW),
    ],
)
def test_what_to_ask_next(age: float, may_exist: bool, ask: Ask) -> None:
    """A search where a create may have taken effect; a new token when the old one is forgotten."""
    assert next_ask(START, may_exist=may_exist, now=MADE + age) is ask


def gone_bad(**given: Any) -> AdpError:
    error = ConnectionFailed("the certificate is not accepted")
    error.retriable = False
    return error


@pytest.mark.parametrize(
    ("error", "out_of_reach", "its_own"),
    [
        (ConnectionFailed("refused"), True, False),
        (gone_bad(), False, False),
        (ConnectionLost("reset"), True, False),
        (RequestTimeout("too late"), True, False),
        (UnreadableReply("a login page"), True, False),
        (Throttled(status=429, code="TooManyRequests"), True, False),
        (ServiceFault(status=503, code="Unavailable"), True, False),
        (ServiceFault(status=502), True, False),
        (BadRequest(status=400, code="InvalidParameter"), False, True),
        (BadRequest(status=405), True, False),
        (Forbidden(status=403, code="NotAllowed"), False, True),
        (Forbidden(status=403), True, False),
        (NotFound(status=404, code="NotAuthorizedOrNotFound"), False, True),
        (NotFound(status=404), True, False),
        (NotAuthenticated(status=401, code="NotAuthenticated"), False, False),
        (NotAuthenticated(status=401), True, False),
        (ConfigurationError("no key"), False, True),
        (Closed("closed"), False, True),
        (AdpError("it failed with TypeError"), False, True),
    ],
)
def test_what_an_error_says(error: AdpError, out_of_reach: bool, its_own: bool) -> None:
    """Whether a run starts all the same; and later, whether other runs may fare better."""
    assert is_out_of_reach(error) is out_of_reach
    assert is_its_own(error) is its_own


@given(st.integers(1, 60), st.floats(0.0, 1.0, exclude_max=True))
def test_patience_is_bounded(refusals: int, jitter: float) -> None:
    """It grows to a quarter of an hour at most, and never to nothing."""
    assert 0.5 <= patience(RetryPolicy(), refusals, jitter=jitter) <= 900.0


# Which run it is ----------------------------------------------------------------------------------


def run(run_id: str = "r", *, start_time: int = 5000, name: str = "sgd", **tags: str) -> Run:
    info = RunInfo(run_id=run_id, run_name=name, start_time=start_time)
    given = [RunTag(key.replace("local_id", LOCAL_ID), value) for key, value in tags.items()]
    return Run(info=info, data=RunData(tags=given))


def test_found_by_its_tag() -> None:
    """Of many that a search gives, whatever its filter was worth."""
    others = [run("a"), run("b", local_id="local-2"), run("", local_id="local-1")]
    mine = run("c", local_id="local-1")
    assert search_filter(START) == "tags.`adp_async.local_id` = 'local-1'"
    assert found_among(START, [*others, mine]) is mine
    assert found_among(START, others) is None
    assert START.sent_tags == {"team": "a", LOCAL_ID: "local-1"}


def test_found_by_when_it_started() -> None:
    """Without a tag: the same moment, name and tags, and not another's that has a tag of ours."""
    start = evolve(START, is_tagged=False)
    assert search_filter(start) == "attributes.start_time = 5000"
    assert start.sent_tags == {"team": "a"}
    others = [
        run("a", team="a", start_time=5001),
        run("b", team="a", name="adam"),
        run("c", team="b"),
        run("d"),
        run("e", team="a", local_id="local-2"),
    ]
    mine = run("f", team="a", more="tags")
    assert found_among(start, [*others, mine]) is mine
    assert found_among(start, others) is None
    assert found_among(evolve(start, run_name=None), others) is others[1]


def test_a_new_token_begins_anew() -> None:
    """Nothing has to be the same as before: it gets its tag, and its experiment is looked up."""
    unheard = evolve(START, is_tagged=False, experiment_id="7")
    renewed = unheard.renewed("new", MADE + 90_000.0)
    assert (renewed.retry_token, renewed.is_tagged) == ("new", True)
    assert (renewed.experiment, renewed.experiment_id) == ("digits", None)
    by_id = evolve(unheard, experiment=None).renewed("new", MADE)
    assert by_id.experiment_id == "7"


# Its life -----------------------------------------------------------------------------------------


def test_named() -> None:
    """What it was created with is forgotten; how it ended is not."""
    named = START.ended("FAILED", 7000).named("r1")
    assert named == RunStart("local-1", "r1", end=RunEnd("FAILED", 7000))
    assert str(named) == "run r1"


@pytest.mark.parametrize(
    ("start", "text"),
    [
        (START, "run local-1 ('sgd' in experiment 'digits', not yet created)"),
        (RunStart("local-1"), "run local-1 (not yet created)"),
        (RunStart("local-1", experiment_id="7"), "run local-1 (in experiment 7, not yet created)"),
        (RunStart("local-1", run_name="sgd"), "run local-1 ('sgd', not yet created)"),
    ],
)
def test_what_a_person_is_told(start: RunStart, text: str) -> None:
    """As much as is known."""
    assert str(start) == text


def test_left_behind() -> None:
    """It was killed at its last sign of life, unless it had ended, or was handed on."""
    assert START.left_behind(9000).end == RunEnd("KILLED", 9000)
    ended = START.ended("FINISHED", 7000)
    assert ended.left_behind(9000) is ended
    handed_on = evolve(START, is_handed_on=True)
    assert handed_on.left_behind(9000) is handed_on


def test_below_a_parent() -> None:
    """A child learns what its parent is called."""
    child = evolve(START, key="local-2", parent="local-1")
    assert child.below("local-9", "r9") is child
    below = child.below("local-1", "r1")
    assert (below.parent, below.tags) == (None, {"team": "a", PARENT: "r1"})


@pytest.mark.parametrize(
    "start",
    [
        START,
        evolve(START, is_tagged=False, experiment_id="7", parent="local-0"),
        START.ended("KILLED", 9000),
        RunStart("r1", "r1"),
        START.named("r1"),
    ],
)
def test_as_text(start: RunStart) -> None:
    """What is written down is read back the same."""
    assert RunStart.from_text(start.as_text()) == start


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", "null", '{"key": ""}', '{"key": 3}', None, b"\xff",
        '{"key": "local-1", "retry_token": ""}',
        '{"key": "local-1", "retry_token": "a\\nb"}',
        '{"key": "r1", "run_id": ""}',
        '{"key": "r1", "run_id": "r1", "end": {"status": "RUNNING", "end_time": 1}}',
        '{"key": "r1", "run_id": "r1", "tags": 3}',
    ],
)  # fmt: skip
def test_text_of_somebody_else(text: object) -> None:
    """Nothing is made of it."""
    assert RunStart.from_text(text) is None


@given(st.text())
def test_any_text(text: str) -> None:
    """It never raises."""
    RunStart.from_text(text)


# Lanes --------------------------------------------------------------------------------------------


def test_nothing_leaves_before_it_has_a_name() -> None:
    """However long it waits, and however full it is; then under that name, and in order."""
    accumulator = Accumulator(linger=0.0)
    lane = accumulator.lane("local-1")
    lane.hold()
    for number in range(2500):
        accumulator.add("local-1", Metric("loss", 0.5, 1, number), now=0.0)
    accumulator.skip_linger(lane, 0.0)
    assert accumulator.drain(1e9, 100) == []
    assert accumulator.next_deadline() is None
    other = Metric("loss", 0.5, 1, 0)
    accumulator.add("other", other, now=0.0)
    assert [batch.run_id for batch in accumulator.drain(1e9, 100)] == ["other"]
    name(accumulator, lane, "r1", now=2.0)
    batches = accumulator.drain(2.0, 100)
    assert [batch.run_id for batch in batches] == ["r1"] * 3
    assert all(b'"run_id":"r1"' in batch.body for batch in batches)
    steps = [record.step for batch in batches for record in batch.records]  # type: ignore[union-attr]
    assert steps == list(range(2500))
    assert accumulator.lane("r1") is lane
    assert accumulator.lane("local-1") is lane


def test_a_lane_that_has_the_name_already() -> None:
    """Somebody knew the id before we did: both go on, each with its records."""
    accumulator = Accumulator(linger=0.0)
    known = accumulator.lane("r1")
    accumulator.add("r1", Metric("a", 1.0, 1, 0), now=0.0)
    lane = accumulator.lane("local-1")
    lane.hold()
    accumulator.add("local-1", Metric("b", 1.0, 1, 0), now=0.0)
    name(accumulator, lane, "r1", now=0.0)
    assert accumulator.lane("r1") is known
    batches = accumulator.drain(0.0, 10)
    assert sorted(batch.records[0].key for batch in batches) == ["a", "b"]
    for batch in batches:
        accumulator.succeed(batch, 1.0)
    assert not accumulator.unsettled
    assert not accumulator.lanes


def test_restored_before_it_has_a_name() -> None:
    """Tokens that were damaged into being there before the name count for nothing."""
    accumulator = Accumulator(linger=0.0)
    restore_start(accumulator, START)
    records = metrics(4)
    restore(accumulator, "local-1", [(4, 10)], [(((0, 4),), "token", [*records])], 10)
    lane = accumulator.lane("local-1")
    assert (lane.spilled, lane.sealed, accumulator.spooled) == ([(0, 10)], [], 10)
    restore_start(accumulator, START.named("r1"))
    assert accumulator.lane("r1").run_id == "r1"


# The journal --------------------------------------------------------------------------------------


def test_the_journal_keeps_the_last_word() -> None:
    """Of many notes on a run the last counts, and a failed commit forgets none."""
    journal = Journal()
    journal.note_start(START)
    journal.note_start(START.named("r1"))
    changes = journal.collect()
    assert changes
    assert changes.starts == [START.named("r1")]
    journal.note_start(RunStart("r2", "r2"))
    journal.note_ended("local-1")
    journal.failed(changes)
    again = journal.collect()
    assert (again.starts, again.ended) == ([RunStart("r2", "r2")], ["local-1"])
    journal.committed(again)
    assert not journal.is_dirty
    assert not journal.collect()


def test_ended_and_begun_again() -> None:
    """A run that is taken up once more is there afterwards."""
    journal = Journal()
    journal.note_ended("r1")
    journal.note_start(RunStart("r1", "r1"))
    changes = journal.collect()
    assert (changes.starts, changes.ended) == ([RunStart("r1", "r1")], ["r1"])


# The spool ----------------------------------------------------------------------------------------


def starts(*starts: RunStart, ended: tuple[str, ...] = ()) -> Changes:
    return Changes(list(starts), list(ended))


def opened(path: Path) -> list[RunStart]:
    found = open_orphan(path, identity=FAKE, limit=LIMIT)
    if found is None:
        return []
    found.spool.release()
    return found.starts


def test_a_spool_has_the_runs_of_its_process(tmp_path: Path) -> None:
    """Also one without records; and none that has ended."""
    path = orphan(tmp_path, starts(START, RunStart("r1", "r1")), starts(ended=("r1",)))
    (found,) = opened(path)
    assert found.end is not None
    assert found.end.status == "KILLED"
    assert evolve(found, end=None) == START
    with_records = orphan(tmp_path, starts(START), chunk(metrics(3), run_id="local-1"))
    spool = Spool.open(with_records, limit=LIMIT)
    assert [row.start for row in spool.contents().runs] == [START]
    assert spool.contents().others == ()
    spool.release()
    empty = orphan(tmp_path, starts(START), starts(ended=("local-1",)))
    assert opened(empty) == []
    assert not empty.exists()


def test_begun_again_in_one_commit(tmp_path: Path) -> None:
    """The end of before goes first."""
    path = orphan(tmp_path, starts(RunStart("r1", "r1"), ended=("r1",)))
    assert [each.key for each in opened(path)] == ["r1"]


def test_a_file_of_an_older_format(tmp_path: Path) -> None:
    """It has no such runs, and is delivered as before."""
    path = old_orphan(tmp_path, [("run", 0, metrics(3))])
    found = open_orphan(path, identity=FAKE, limit=LIMIT)
    assert found is not None
    assert (found.starts, found.records) == ([], 3)
    found.spool.commit(Changes(ended=["run"]))
    found.spool.release()


@pytest.mark.parametrize("damage", ["body = 'x'", "checksum = 0", "run_id = 'local-9'"])
def test_a_damaged_row(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    """The key of its records is still known: the run is looked for, or made without a name."""
    path = orphan(tmp_path, starts(START), chunk(metrics(3), run_id="local-1"))
    spool = Spool.open(path, limit=LIMIT)
    with spool._database.transaction() as connection:
        connection.execute(f"UPDATE starts SET {damage}")
    spool.release()
    (found,) = opened(path)
    assert (found.key, found.run_name, found.experiment) == ("local-1", None, None)
    assert next_ask(found, may_exist=True, now=MADE) is Ask.SEARCH
    assert next_ask(found, may_exist=False, now=MADE) is Ask.RENEW
    assert "what is known of run local-1 is damaged" in caplog.text
    spool = Spool.open(path, limit=LIMIT)
    assert "1 rows are damaged and set aside" in spool.contents().trouble
    spool.release()


def test_the_last_sign_of_life(tmp_path: Path) -> None:
    """That of its own process: neither looking at it nor delivering it counts."""
    before = time.time()
    path = orphan(tmp_path, starts(START))
    after = time.time()
    for _ in range(2):
        (found,) = opened(path)
        assert found.end is not None
        assert 1000 * before - 1 <= found.end.end_time <= 1000 * after
    spool = Spool.open(path, limit=LIMIT)
    written_at = spool.written_at
    spool.commit(starts(found))
    assert spool.written_at == written_at
    with spool._database.transaction() as connection:
        connection.execute("UPDATE meta SET value = 'x' WHERE name = 'written_at'")
    assert spool.written_at == 0.0
    spool.release()


def test_sealed_under_the_key(tmp_path: Path) -> None:
    """The name is in the file before any token: both are read back together."""
    path = orphan(
        tmp_path,
        starts(START.named("r1")),
        chunk(metrics(10), run_id="local-1"),
        sealed(0, 5, "t1", run_id="local-1"),
        settled(2, run_id="local-1"),
    )
    found = open_orphan(path, identity=FAKE, limit=LIMIT)
    assert found is not None
    assert found.run_ids == ["r1", "local-1"]
    found.spool.release()


def test_another_place(tmp_path: Path) -> None:
    """Runs of another platform are left to their own sessions."""
    elsewhere: Identity = evolve(FAKE, platform_id="ocid1.aidataplatform.oc1.iad.other")
    path = orphan(tmp_path, starts(START), identity=elsewhere)
    assert opened(path) == []
    assert path.exists()
