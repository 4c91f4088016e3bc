"""Whose fault is a failure, who is slowed by it, and what that costs: hours of it in moments."""

from __future__ import annotations

import itertools
import random
from functools import partial
from typing import TYPE_CHECKING

import pytest
from play import Play, fault, steps, texts

from adp_async._sansio.dispatch import FREE_PROBES, Fault, fault_of
from adp_async._sansio.lane import Lane
from adp_async._sansio.line import SHARE_OF_TROUBLE, Line
from adp_async._sansio.records import Metric, RunTag
from adp_async.errors import (
    AdpError,
    ConfigurationError,
    ConnectionFailed,
    ConnectionLost,
    Forbidden,
    NotAuthenticated,
    NotFound,
    RequestTimeout,
    ServiceError,
    ServiceFault,
    UnreadableReply,
)
from adp_async.local.quota import Quota

if TYPE_CHECKING:
    from adp_async._sansio.batch import RecordBatch

HIDDEN = NotFound("not here", status=404, code="NotAuthorizedOrNotFound")
NO_RUN = NotFound("no such run", status=404, code="RESOURCE_DOES_NOT_EXIST")
FORBIDDEN = Forbidden("not yours", status=403, code="NotAuthorized")
FAULT = fault(500)
BUSY = fault(503, "ServiceUnavailable")
GATEWAY = fault(502, "")
LOST = ConnectionLost("the line is cut")
PAGE = UnreadableReply("a page", status=200)
UNREACHABLE = ConnectionFailed("no route to host")
EXPIRED = NotAuthenticated("expired", status=401, code="NotAuthenticated")
OF_RUN = [HIDDEN, NO_RUN, FORBIDDEN]
OF_EITHER = [FAULT, BUSY, GATEWAY, LOST, PAGE]
OF_ALL = [UNREACHABLE, EXPIRED]
HOUR = 3600.0


def name(error: object) -> str:
    return f"{type(error).__name__}-{getattr(error, 'status', '')}"


def failing(error: AdpError, *, until: float = float("inf"), since: float = 0.0) -> Play:
    """A service that fails on the runs called bad."""

    def answers(batch: RecordBatch, now: float) -> AdpError | None:
        return error if batch.run_id.startswith("bad") and since <= now < until else None

    return Play(answers)


def down(error: AdpError, since: float, until: float) -> Play:
    return Play(lambda batch, now: error if since <= now < until else None)


# Whose fault


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        *((error, Fault.RUN) for error in OF_RUN),
        *((error, Fault.EITHER) for error in OF_EITHER),
        *((error, Fault.ALL) for error in OF_ALL),
        (NotFound("a proxy's page", status=404), Fault.EITHER),
        (Forbidden("a proxy's page", status=403), Fault.EITHER),
        (ServiceError("teapot", status=418), Fault.EITHER),
        (RequestTimeout("too slow"), Fault.EITHER),
        (ConfigurationError("no workspace"), Fault.EITHER),
        (AdpError("the request could not be sent"), Fault.EITHER),
    ],
    ids=name,
)
def test_whose_fault(error: AdpError, fault: Fault) -> None:
    """Only the service's own words on a run are the run's, only what can't leave is everybody's."""
    assert fault_of(error) is fault


# Who is slowed


@pytest.mark.parametrize("error", [*OF_RUN, *OF_EITHER], ids=name)
@pytest.mark.parametrize("count", [1, 20, 200])
def test_runs_in_trouble_slow_themselves(error: AdpError, count: int) -> None:
    """A run that got through before is delivered every second, as if it were alone."""
    play = failing(error)
    play.watched = "good"
    play.every(0.1, lambda: play.log_points("good", 1), 600.0)
    for number in range(count):
        play.at(20.0, lambda number=number: play.log_points(f"bad-{number}", 10))
    play.run(600.0)

    assert play.oldest["good"] < 1.5
    assert len(play.posts_of("good")) > 500
    assert play.accumulator.rejected.total() == 0
    play.check_books()


@pytest.mark.parametrize("error", [HIDDEN, FORBIDDEN, FAULT, LOST], ids=name)
def test_under_a_quota_as_well(error: AdpError) -> None:
    """Two hundred runs in trouble and 5 requests/s: the good one waits 3 s at most."""
    play = failing(error)
    play.quota = Quota(5.0)
    play.__attrs_post_init__()
    play.watched = "good"
    play.every(0.1, lambda: play.log_points("good", 1), 600.0)
    for number in range(200):
        play.at(60.0, lambda number=number: play.log_points(f"bad-{number}", 10))
    play.run(600.0)

    assert play.oldest["good"] < 3.0
    assert sum(post.status == 429 for post in play.posts) < 0.05 * len(play.posts)


@pytest.mark.parametrize("error", OF_RUN, ids=name)
def test_when_all_begin_at_once(error: AdpError) -> None:
    """Two hundred runs nobody knows yet and a good one behind them: each is tried once."""
    play = failing(error)
    play.latency = 0.01
    play.watched = "good"
    for number in range(200):
        play.log_points(f"bad-{number}", 10)
    play.every(0.1, lambda: play.log_points("good", 1), 300.0)
    play.run(300.0)

    assert play.oldest["good"] < 3.0


@pytest.mark.parametrize("error", OF_ALL, ids=name)
def test_what_is_everybodys_stops_everybody(error: AdpError) -> None:
    """A hundred runs, an hour of outage: fewer requests than one in 20 s, nobody is given up."""
    play = down(error, 60.0, 60.0 + HOUR)
    for number in range(100):
        play.every(60.0, lambda number=number: play.log_points(f"run-{number}", 5), HOUR + 120.0)
    play.run(HOUR + 400.0)

    during = [at for at in play.departures() if 60.0 < at < 60.0 + HOUR]
    assert len(during) < HOUR / 20
    assert play.accumulator.unsettled == 0
    assert play.accumulator.rejected.total() == 0
    play.check_books()


@pytest.mark.parametrize("error", OF_EITHER, ids=name)
def test_nobody_gets_through(error: AdpError) -> None:
    """Of a hundred runs each is tried once, after that one request finds out now and then."""
    play = down(error, 60.0, 60.0 + HOUR)
    for number in range(100):
        play.every(60.0, lambda number=number: play.log_points(f"run-{number}", 5), HOUR + 120.0)
    play.run(HOUR + 400.0)

    during = [at for at in play.departures() if 60.0 < at < 60.0 + HOUR]
    assert len(during) < 100 + HOUR / 20
    assert during[FREE_PROBES] - during[0] < 5.0
    later = during[120:]
    assert min(after - before for before, after in itertools.pairwise(later)) > 0.5
    assert play.accumulator.unsettled == 0
    assert play.accumulator.rejected.total() == 0


def test_a_run_that_delivered_is_tried_first() -> None:
    """When nobody gets through, one that did before finds out, however long others wait."""
    play = down(LOST, 99.0, 101.0)
    play.log_points("proven", 1)
    play.run(98.0)
    for number in range(40):
        play.log_points(f"new-{number}", 1)
    play.run(1.5)
    play.log_points("proven", 1)
    play.run(60.0)

    first, second = play.posts_of("proven")[:2]
    assert first.departed == 1.0
    assert 100.5 <= second.departed < 101.6
    after = [post.run_id for post in play.posts if post.departed >= 100.5]
    assert after[0] == "proven"


def test_after_an_outage_nobody_waits_out_a_back_off() -> None:
    """The first batch that is delivered hurries all the others that failed without their fault."""
    play = down(LOST, 10.0, 10.0 + HOUR)
    for number in range(30):
        play.at(9.9, lambda number=number: play.log_points(f"run-{number}", 10))
    play.run(2 * HOUR)

    back = [post for post in play.posts if post.error is None]
    assert len(back) == 30
    assert back[-1].arrived - back[0].arrived < 30 * 0.06


# What an invisible run costs


@pytest.mark.parametrize(
    ("count", "first_hour", "later_hours"),
    [(1, 20, 8), (200, 3300, 1600), (10_000, 33_000, 24_600)],
)
def test_what_invisible_runs_cost(count: int, first_hour: int, later_hours: int) -> None:
    """A dozen requests, then one in a quarter of an hour each; never more than ten a second."""
    play = failing(HIDDEN)
    play.every(5.0, lambda: play.log_points("good", 1), 2 * HOUR)
    for number in range(count):
        play.log_points(f"bad-{number}", 1)
    play.run(2 * HOUR)

    departures = [post.departed for post in play.posts if post.run_id != "good"]
    hours = [sum(hour <= at / HOUR < hour + 1 for at in departures) for hour in range(2)]
    assert hours[0] <= first_hour
    assert hours[1] <= later_hours
    assert play.accumulator.unsettled >= count


@pytest.mark.parametrize("latency", [0.01, 0.1, 0.5])
def test_a_run_that_was_delivered_is_ahead_of_new_ones(latency: float) -> None:
    """Also what it logged while its first batch was in flight, when it was new itself."""
    play = failing(HIDDEN)
    play.latency, play.watched = latency, "good"
    play.log_points("good", 1)
    for number in range(200):
        play.log_points(f"bad-{number}", 2)
    play.every(0.1, lambda: play.log_points("good", 1), 20.0)
    play.run(20.0)

    assert play.oldest["good"] <= 1.0 + 3 * latency + 0.1


def test_runs_that_are_all_invisible() -> None:
    """Where nobody gets through, two hundred of them cost one request a second together."""
    play = failing(HIDDEN)
    for number in range(200):
        play.log_points(f"bad-{number}", 1)
    play.run(2 * HOUR)

    assert sum(post.departed > HOUR for post in play.posts) <= HOUR


@pytest.mark.parametrize("jitter", [0.0, 0.5, 0.999])
def test_the_back_off_grows_to_a_quarter_of_an_hour(jitter: float) -> None:
    """And no further; with the smallest draw it is half of that."""
    play = failing(HIDDEN)
    play.jitter = jitter
    play.every(1.0, lambda: play.log_points("good", 1), 4 * HOUR)
    play.log_points("bad", 1)
    play.run(4 * HOUR)

    departures = play.departures("bad")
    pauses = [after - before for before, after in itertools.pairwise(departures)]
    assert max(pauses) <= 905.0
    assert pauses[-1] == pytest.approx(900.0 * (0.5 + 0.5 * jitter), abs=5.0)


def test_a_run_that_becomes_visible() -> None:
    """Is delivered with its next try, and is in trouble no longer."""
    play = failing(HIDDEN, until=HOUR)
    play.every(1.0, lambda: play.log_points("good", 1), 2 * HOUR)
    play.log_points("bad", 100)
    play.run(HOUR + 910.0)

    assert play.lanes["bad"].unsettled == 0
    assert play.lanes["bad"].failures == 0


def test_one_that_failed_once_does_not_wait_for_those_that_always_do() -> None:
    """Behind two thousand run ids that don't exist, a stumble costs a few seconds."""
    stumbles = iter([LOST])

    def answers(batch: RecordBatch, now: float) -> AdpError | None:
        if batch.run_id.startswith("bad"):
            return HIDDEN
        return next(stumbles, None) if batch.run_id == "one" and now > HOUR else None

    play = Play(answers)
    play.watched = "one"
    for number in range(2000):
        play.log_points(f"bad-{number}", 1)
    for run_id in ("one", "two"):
        play.every(1.0, lambda run_id=run_id: play.log_points(run_id, 1), HOUR + 60.0)
    play.oldest["one"] = 0.0
    play.run(HOUR - 1.0)
    play.oldest["one"] = 0.0
    play.run(60.0)

    assert next(stumbles, None) is None
    assert play.oldest["one"] < 6.0


# A record that can't be stored


def poisoned(error: AdpError = FAULT, *poisons: str) -> Play:
    """A service that fails on a batch with such a key or value, each time."""
    bad = set(poisons or ("poison",))

    def answers(batch: RecordBatch, now: float) -> AdpError | None:
        for record in batch.records:
            if record.key in bad or getattr(record, "value", None) in bad:
                return error
        return None

    return Play(answers)


@pytest.mark.parametrize("kind", ["tag", "metric"])
@pytest.mark.parametrize("others", [0, 1, 20])
def test_poison_is_found_and_given_up(kind: str, others: int) -> None:
    """Its neighbours, and all tags after it, are delivered in their order, within a minute."""
    play = poisoned()
    play.every(0.2, lambda: play.log_points("run", 5), 120.0)
    poison = RunTag("note", "poison") if kind == "tag" else Metric("poison", 1.0, 0, 0)
    play.at(20.0, lambda: play.log("run", poison))
    numbers = itertools.count()
    play.every(7.0, lambda: play.log("run", RunTag("later", str(next(numbers)))), 120.0)
    for number in range(others):
        play.every(1.0, lambda number=number: play.log_points(f"other-{number}", 3), 120.0)
    play.run(200.0)

    assert play.accumulator.rejected == {"ServiceFault": 1}
    assert play.accumulator.unsettled == 0
    (rejection,) = play.accumulator.rejections.last
    assert rejection.key == poison.key
    assert isinstance(rejection.cause, type(FAULT))
    numbers_of_tags = [int(value) for _, value in texts(play.arrived["run"])]
    assert numbers_of_tags == sorted(numbers_of_tags)
    last = max(post.arrived for post in play.posts if post.error is not None)
    assert last < (90.0 if not others else 40.0)
    assert sum(post.error is not None for post in play.posts) <= 30
    play.check_books()


@pytest.mark.parametrize("count", [10, 545])
def test_poison_that_is_there_from_the_start(count: int) -> None:
    """A session that begins with it, and with nothing else, comes to an end."""
    play = poisoned()
    play.log("run", RunTag("note", "poison"))
    play.log_points("run", count - 1)
    play.run(0.2 * HOUR)

    assert play.accumulator.rejected == {"ServiceFault": 1}
    assert sorted(steps(play.arrived["run"])) == list(range(1, count))
    assert play.accumulator.unsettled == 0


def test_poison_in_many_runs() -> None:
    """Five runs have two such records each: all are found, and no other record is given up."""
    play = poisoned(FAULT, "poison", "venom")
    for number in range(5):
        run_id = f"run-{number}"
        play.every(1.0, lambda run_id=run_id: play.log_points(run_id, 10), 300.0)
        for at, value in ((20.0, "poison"), (21.0, "venom")):
            play.at(at, lambda run_id=run_id, value=value: play.log(run_id, RunTag(value, "")))
    play.run(0.2 * HOUR)

    assert play.accumulator.rejected == {"ServiceFault": 10}
    assert {rejection.key for rejection in play.accumulator.rejections.last} == {"poison", "venom"}
    assert play.accumulator.unsettled == 0


@pytest.mark.parametrize("error", [BUSY, GATEWAY, LOST, PAGE], ids=name)
def test_what_is_no_breakdown_of_the_service_itself_gives_up_nothing(error: AdpError) -> None:
    """A record that always meets a 503, a 502 or a cut line is held, and others go before it."""
    play = poisoned(error)
    play.every(1.0, lambda: play.log_points("run", 5), HOUR)
    play.every(1.0, lambda: play.log_points("other", 5), HOUR)
    play.at(20.0, lambda: play.log("run", RunTag("note", "poison")))
    play.watched = "other"
    play.run(2 * HOUR)

    assert play.accumulator.rejected.total() == 0
    assert play.accumulator.unsettled == 1
    assert play.oldest["other"] < 2.0
    assert play.discard("run") == 1
    play.check_books()


@pytest.mark.parametrize("is_visible", [True, False])
@pytest.mark.parametrize("count", [1, 2, 50])
@pytest.mark.parametrize("each", [1, 30])
def test_a_total_outage_gives_up_nothing(is_visible: bool, count: int, each: int) -> None:
    """Hours of a 500 in the service's words, while it shows the runs: all is delivered after it."""
    play = down(FAULT, 60.0, 60.0 + 2 * HOUR)
    play.is_visible = is_visible
    for number in range(count):
        play.every(
            30.0, lambda number=number: play.log_points(f"run-{number}", each), 2 * HOUR + 120
        )
    play.run(3 * HOUR)

    assert play.accumulator.rejected.total() == 0
    assert play.accumulator.unsettled == 0
    play.check_books()


@pytest.mark.parametrize(
    ("runs", "share", "error", "each"),
    [
        (1, 0.5, BUSY, 3),
        (5, 0.5, BUSY, 3),
        (5, 0.5, BUSY, 1),
        (1, 0.5, FAULT, 1),
        (5, 0.5, FAULT, 1),
        (5, 0.5, FAULT, 30),
        (5, 0.9, FAULT, 3),
    ],
)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_service_that_flaps_gives_up_nothing(
    runs: int, share: float, error: AdpError, each: int, seed: int
) -> None:
    """Where chance decides who fails, no record of thousands of batches is to blame."""
    chance = random.Random(seed)
    play = Play(lambda batch, now: error if now < HOUR / 2 and chance.random() < share else None)
    for number in range(runs):
        play.every(1.0, lambda number=number: play.log_points(f"run-{number}", each), HOUR / 2)
    play.run(HOUR)

    assert play.accumulator.rejected.total() == 0
    assert play.accumulator.unsettled == 0
    play.check_books()


@pytest.mark.parametrize("period", [1.0, 7.0, 60.0])
def test_a_service_that_is_there_by_turns_gives_up_nothing(period: float) -> None:
    """Up and down for as long each time: a failure is no more than bad luck."""
    play = Play(lambda batch, now: FAULT if now < HOUR and now % (2 * period) < period else None)
    for number in range(5):
        play.every(1.0, lambda number=number: play.log_points(f"run-{number}", 1), HOUR)
    play.run(2 * HOUR)

    assert play.accumulator.rejected.total() == 0
    assert play.accumulator.unsettled == 0


# Being discarded


@pytest.mark.parametrize("outcome", [None, HIDDEN, FAULT, LOST], ids=name)
def test_discarded_with_a_batch_in_flight(outcome: AdpError | None) -> None:
    """What is on its way may arrive, or is dropped if it does not; the rest is dropped at once."""
    play = Play(lambda batch, now: outcome)
    play.latency = 5.0
    play.log_points("run", 2500)
    play.run(2.0)
    assert play.accumulator.in_flight == 1000
    assert play.discard("run") == 1500
    play.run(60.0)

    delivered = 1000 if outcome is None else 0
    assert play.accumulator.delivered == delivered
    assert play.accumulator.dropped == 2500 - delivered
    assert play.lanes["run"].dropped == 2500 - delivered
    assert len(play.posts) == 1
    play.check_books()


def test_discarded_with_nothing_in_flight() -> None:
    """A run nobody shows is given up, and what is logged after that is tried again."""
    play = failing(HIDDEN, until=600.0)
    play.log_points("bad", 30)
    play.run(500.0)
    assert play.discard("bad") == 30
    assert play.accumulator.unsettled == 0
    play.run(200.0)
    play.log_points("bad", 3)
    play.run(HOUR)

    assert play.accumulator.delivered == 3
    assert play.accumulator.dropped == 30
    assert play.discard("bad") == 0
    play.check_books()


# Batches that did not leave


def test_what_did_not_leave_keeps_its_turn() -> None:
    """It counts as no failure and no retry, and leaves at the time that was said."""
    play = Play()
    play.log_points("run", 10)
    (batch,) = play.dispatcher.drain(1.0)
    play.dispatcher.stays(batch, 3.0, 1.5)

    assert play.dispatcher.drain(2.9) == []
    assert play.dispatcher.next_look(2.5) <= 3.5
    assert play.dispatcher.drain(3.0) == [batch]
    assert (play.dispatcher.retries, batch.failures, batch.lane.failures) == (0, 0, 0)


# The line itself


def lane(run_id: str, *, delivered: int = 0, failures: int = 0) -> Lane:
    made = Lane(run_id, None)
    made.delivered, made.failures = delivered, failures
    return made


def test_turns_in_the_line() -> None:
    """Two new runs, then one that delivered; of eight healthy ones and more, one in trouble."""
    line = Line()
    for number in range(100):
        line.put(lane(f"new {number}"), 0.0)
        line.put(lane(f"lasting {number}", failures=20), 0.0)
    for number in range(100):
        line.put(lane(f"good {number}", delivered=1), 1.0)
        line.put(lane(f"stumbled {number}", delivered=1, failures=1), 1.0)
    turns = [taken.run_id.split()[0] for _ in range(54) if (taken := line.take(2.0))]

    assert turns[:4] == ["new", "new", "good", "new"]
    assert turns.count("lasting") + turns.count("stumbled") == 54 // (SHARE_OF_TROUBLE + 1)
    assert turns.count("stumbled") == 2
    assert line.take(0.5, healthy=False).run_id.startswith("lasting")  # type: ignore[union-attr]


def test_under_a_quota_full_requests_go_first() -> None:
    """Before new runs and others that waited longer, which have every fourth turn all the same."""
    line = Line()
    for number in range(20):
        full = lane(f"full {number}", delivered=1)
        full.is_full = True
        line.put(full, 1.0)
        line.put(lane(f"part {number}", delivered=1), 0.5)
        line.put(lane(f"new {number}"), 0.6)
    line.full_first = True
    turns = [taken.run_id.split()[0] for _ in range(12) if (taken := line.take(2.0))]

    assert turns == ["full", "full", "full", "part"] * 3


def test_without_a_quota_lanes_go_in_the_order_of_their_times() -> None:
    """Full or not: a request costs nothing but its time."""
    line = Line()
    for number, is_full in enumerate([False, True, False, True]):
        made = lane(f"run {number}", delivered=1)
        made.is_full = is_full
        line.put(made, float(number))

    assert [taken.run_id for _ in range(4) if (taken := line.take(9.0))] == [
        f"run {number}" for number in range(4)
    ]


def test_under_a_quota_a_busy_run_is_not_starved_by_quiet_ones() -> None:
    """Forty runs that log a point a second could use each of two turns a second, and a run of a
    thousand points a second needs one of them."""
    play = Play(latency=0.01)
    play.quota = Quota(2.0, burst=2.0)
    play.__attrs_post_init__()
    for number in range(40):
        play.every(1.0, partial(play.log_points, f"quiet-{number}", 1), 240.0)
    play.every(0.1, lambda: play.log_points("busy", 80), 240.0)
    play.run(240.0)

    arrived = {run_id: len(records) for run_id, records in play.arrived.items()}
    assert arrived["busy"] > 0.9 * 800 * 240
    assert min(arrived.values()) > 100, "and they wait a minute or two, not for ever"


def test_a_lane_stands_in_the_line_once() -> None:
    """With its last place, whatever line that is in."""
    line, moved = Line(), lane("moved")
    line.put(moved, 1.0)
    moved.failures = 1
    line.put(moved, 5.0)
    moved.delivered, moved.failures = 1, 0
    line.put(moved, 3.0)

    assert line.first() == line.first_healthy() == 3.0
    assert line.first_troubled() is None
    assert line.take(2.9) is None
    assert line.take(3.0) is moved
    assert line.take(9.0) is None


@pytest.mark.parametrize(
    ("error", "least"),
    [
        (ServiceFault("it failed", status=500, code="InternalError"), 4),
        (ServiceFault("it failed", status=503, code="Busy"), 12),
        (ConnectionLost("the reply was lost"), 12),
    ],
    ids=["500 of the service", "503", "lost reply"],
)
def test_what_may_have_been_taken_is_not_halved_soon(error: AdpError, least: int) -> None:
    """The halves have tokens of their own: what was taken, unheard, would be there twice."""
    play = Play(answers=lambda batch, now: error if batch.run_id == "bad" else None)
    play.every(1.0, lambda: play.log_points("good", 1), 1200.0)
    play.log_points("bad", 100)
    play.run(1200.0)

    sizes = [post.records for post in play.posts if post.run_id == "bad"]
    assert least <= sizes.index(50) <= least + 2
