"""What a refusal means for each record of a batch, and what finding the bad ones costs."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
from play import Play, steps, texts

from adp_async._sansio.blame import Blame, blamed, gist
from adp_async._sansio.records import Metric, Param, RunTag
from adp_async._sansio.refusals import KEPT_SUSPECTS, LONGEST_PAUSE
from adp_async.errors import AdpError, BadRequest
from adp_async.local.quota import Quota

if TYPE_CHECKING:
    from collections.abc import Callable

    from adp_async._sansio.batch import RecordBatch
    from adp_async._sansio.records import AnyRecord

HOUR = 3600.0


def refusal(message: str = "an illegal name") -> BadRequest:
    return BadRequest(message, status=400, code="INVALID_PARAMETER_VALUE")


def is_illegal(record: AnyRecord) -> bool:
    return "@" in record.key


def refusing(
    is_bad: Callable[[AnyRecord], bool] = is_illegal,
    *,
    field: str | None = "name",
    off_by: int = 0,
) -> Play:
    """A service that refuses such records; it names the first one's place, with *field*."""

    def answers(batch: RecordBatch, now: float) -> AdpError | None:
        sent = {Metric: 0, Param: 0, RunTag: 0}
        for record in batch.records:
            at = sent[type(record)]
            sent[type(record)] += 1
            if is_bad(record):
                if field is None:
                    return refusal(f"Invalid value {record.key!r}")
                kind = {Metric: "metrics", Param: "params", RunTag: "tags"}[type(record)]
                return refusal(f"Invalid value {record.key!r} for {kind}[{at + off_by}].{field}")
        return None

    return Play(answers)


# What the words tell

RECORDS = [
    RunTag("a", "1"), Metric("loss", 1.0, 0, 0), RunTag("b", "1"), Param("p", "1"),
    RunTag("a", "2"), Metric("acc", 1.0, 0, 1), Param("q", "1"), Param("p", "1"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("message", "blame"),
    [
        ("Invalid value for metrics[0].name", Blame(1, True)),
        ("Invalid value for metrics[1].key supplied", Blame(5, True)),
        ("metrics[1].value is no number", Blame(5, False)),
        ("metrics[1]", Blame(5, False)),
        # A key that is there twice is sent once, with its last value, in the place of the first.
        ("tags[0].value", Blame(4, False)),
        ("tags[1].key", Blame(2, True)),
        ("tags[2].key", None),
        ("params[0].value", Blame(7, False)),
        ("params[1].key", Blame(6, True)),
        ("params[2].key", None),
        ("metrics[2].name", None),
        ("metrics[99999999999999999999].name", None),
        ("metrics[-1].name", None),
        ("supermetrics[0].name", None),
        ("it is refused", None),
        ("", None),
    ],
)
def test_which_record_is_named(message: str, blame: Blame | None) -> None:
    """By its kind and its place among those that are sent."""
    assert blamed(refusal(message), RECORDS) == blame


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("'a' at metrics[3].name", "'b' at metrics[977].name", True),
        ("run 0123456789abcdef0123456789abcdef", "run ffffffffffffffffffffffffffffffff", True),
        ("too long", "too short", False),
    ],
)
def test_which_reasons_are_the_same(one: str, other: str, is_same: bool) -> None:
    """Names, numbers and ids don't count."""
    assert (gist(refusal(one)) == gist(refusal(other))) is is_same


# Finding the bad ones


def test_a_place_is_believed_after_one_check() -> None:
    """The first is sent alone, and from then on one request finds a name."""
    play = refusing()
    bad = [f"bad@{number}" for number in range(5)]
    play.log("run", *[Metric(f"good{n}", 1.0, 0, n) for n in range(990)])
    play.log("run", *[Metric(key, 1.0, 0, 0) for key in bad for _ in range(2)])
    play.run(60.0)

    assert play.accumulator.rejected == {"BadRequest": 10}
    assert play.accumulator.delivered == 990
    assert len(play.posts) == 1 + 1 + 5
    play.check_books()


def test_a_place_that_is_wrong_is_not_believed() -> None:
    """It names the neighbour, which is delivered; then the keys are halved, and nothing is lost."""
    play = refusing(off_by=1)
    play.log("run", *[Metric(f"good{n}", 1.0, 0, n) for n in range(100)])
    play.log("run", Metric("bad@", 1.0, 0, 0))
    play.log("run", *[Metric(f"good{n}", 1.0, 0, n) for n in range(100, 200)])
    play.run(60.0)

    assert play.accumulator.rejected == {"BadRequest": 1}
    assert sorted(steps(play.arrived["run"])) == list(range(200))
    assert len(play.posts) < 25


@pytest.mark.parametrize("field", ["value", "timestamp", "step", None])
@pytest.mark.parametrize(
    "bad",
    [range(81), [n * 97 for n in range(11)], [999], [0], [0, 499, 500, 999], range(990, 1000)],
)
def test_a_key_with_bad_values_loses_only_those(field: str | None, bad: range) -> None:
    """Whether the place is named or not: the first, the last, or some in between."""
    places = frozenset(bad)
    play = refusing(lambda record: record.step in places, field=field)  # type: ignore[union-attr]
    play.log("run", Metric("loss", 1.0, 0, 5000))
    play.run(2.0)
    play.log("run", *[Metric("loss", 1.0, 0, n) for n in range(1000)])
    play.run(HOUR)

    expected = [n for n in range(1000) if n not in places]
    assert sorted(steps(play.arrived["run"])) == [*expected, 5000]
    assert play.accumulator.rejected == {"BadRequest": len(places)}
    play.check_books()


def test_a_named_key_is_refused_here_at_once() -> None:
    """All its records of the batch go with it, and the service is asked twice a minute."""
    play = refusing()
    play.every(0.05, lambda: play.log("run", Metric("bad@", 1.0, 0, 0)), 600.0)
    play.every(0.05, lambda: play.log_points("run", 1), 600.0)
    play.run(620.0)

    asked = [post.departed for post in play.posts if post.error is not None]
    assert len(asked) <= 3 + 2 * 600 / LONGEST_PAUSE
    assert len(play.arrived["run"]) == 12_000
    assert play.accumulator.rejected == {"BadRequest": 12_000}


def test_a_nameless_refusal_asks_less_and_less_often() -> None:
    """Ten refusals alone make a key bad; then at once, after 1, 2, 4 ... 60 s."""
    play = refusing(field=None)
    play.every(1.0, lambda: play.log("run", Metric("bad@", 1.0, 0, 0)), HOUR)
    play.every(1.0, lambda: play.log_points("run", 1), HOUR)
    play.run(HOUR + 20.0)

    asked = [post.departed for post in play.posts if post.error is not None]
    assert len(asked) <= 12 + 12 + HOUR / LONGEST_PAUSE
    pauses = [after - before for before, after in itertools.pairwise(asked)]
    assert max(pauses) <= LONGEST_PAUSE + 2.0
    assert pauses[-1] >= LONGEST_PAUSE - 1.0
    assert len(play.arrived["run"]) == 3600


def test_a_service_that_changes_its_mind() -> None:
    """A key that was refused for ten minutes is delivered within a minute of being allowed."""
    play = refusing(lambda record: is_illegal(record) and play.now < 600.0)
    play.every(1.0, lambda: play.log("run", Metric("bad@", 1.0, 0, int(play.now))), 1200.0)
    play.run(1300.0)

    assert min(steps(play.arrived["run"])) <= 600 + LONGEST_PAUSE + 2
    assert steps(play.arrived["run"])[-1] == 1199


def test_texts_keep_their_order() -> None:
    """Tags of a refused batch take effect in the order of the calls."""
    play = refusing()
    for number in range(90):
        play.log("run", RunTag("last", str(number)), RunTag(f"bad@{number % 3}", "x"))
        play.run(0.1)
    play.run(HOUR)

    values = [int(value) for key, value in texts(play.arrived["run"]) if key == "last"]
    assert values == sorted(values)
    assert values[-1] == 89
    play.check_books()


# Whoever speaks for the service


@pytest.mark.parametrize("seconds", [0.2, 1.0])
def test_everything_is_refused_for_a_moment(seconds: float) -> None:
    """A hundred runs and a second of the service's own 400 for all of it: ten records at most."""
    play = Play(
        lambda batch, now: refusal("a mistake of ours") if 5.0 <= now < 5 + seconds else None
    )
    for number in range(100):
        play.every(0.5, lambda number=number: play.log_points(f"run-{number}", 10), 10.0)
    play.run(300.0)

    assert play.accumulator.rejected.total() <= 10
    assert play.accumulator.unsettled == 0
    play.check_books()


# What it costs at most


@pytest.mark.parametrize("field", ["name", None])
def test_what_is_remembered_is_bounded(field: str | None) -> None:
    """Three thousand keys that are refused and as many that are not: a thousand of the former."""
    play = refusing(field=field)
    for first in range(0, 3000, 100):
        keys = [f"bad@{number}" for number in range(first, first + 100)]
        play.log("run", *[Metric(key, 1.0, 0, 0) for key in keys])
        play.log("run", *[Metric(f"good{key[4:]}", 1.0, 0, 0) for key in keys])
        play.run(2.0)
    play.run(2 * HOUR)

    lane = play.lanes["run"]
    assert len(lane.suspects) <= KEPT_SUSPECTS
    assert len(play.arrived["run"]) == 3000
    assert play.accumulator.rejected == {"BadRequest": 3000}
    play.check_books()


@pytest.mark.parametrize(("field", "most", "late"), [("name", 1.2, 2.0), (None, 2.8, 6.0)])
def test_a_storm(field: str | None, most: float, late: float) -> None:
    """30 good and 5 refused names, 20 steps/s for 120 s, under a quota of 5 requests/s.

    Where the service names the place good points are 2 s behind at most, for a fifth more requests.
    """

    def storm(bad: int) -> Play:
        play = refusing(field=field)
        play.quota = Quota(5.0)
        play.__attrs_post_init__()

        def step() -> None:
            number = round(play.now * 20)
            play.log("run", *[Metric(f"good{n}", 1.0, 0, number) for n in range(30)])
            play.log("run", *[Metric(f"bad@{n}", 1.0, 0, number) for n in range(bad)])

        play.every(0.05, step, 120.0)
        play.run(120.0)
        return play

    alone, play = storm(0), storm(5)
    behind = 2399 - max(record.step for record in play.arrived["run"])  # type: ignore[union-attr]
    oldest = 120.0 - (play.lanes["run"].queue.times[:1] or [120.0])[0]
    print(f"\n{field}: {len(play.posts)} requests, {len(alone.posts)} for the good ones alone,")
    print(f"{behind / 20:.1f} s behind, the oldest waits {oldest:.1f} s")

    assert behind / 20 <= late
    assert oldest <= late
    assert len(play.posts) <= most * len(alone.posts)
    missing = 120 * 20 * 30 - len(play.arrived["run"])
    assert missing <= late * 20 * 30 + 30
