"""The hold and the rate: by tables, and against simulated services in virtual time."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from adp_async._sansio.retry import RetryPolicy
from adp_async._sansio.throttle import (
    DECREASE,
    LIFTED,
    LONGEST_PLATEAU,
    SHORTEST_PLATEAU,
    Stage,
    Throttle,
)
from tests.quotas import (
    Bucket,
    Changing,
    Gaps,
    PlainBackOff,
    Service,
    Simulation,
    SlidingWindow,
    Windows,
    Workers,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def refuse(throttle: Throttle, now: float, retry_after: float | None = None) -> None:
    throttle.refused(departed=now, now=now, jitter=0.5, retry_after=retry_after)


def after_burst(requests: int) -> Throttle:
    """A throttle that got so many *requests* through at once, was refused, and resumes at 0."""
    throttle = Throttle()
    began = -1.0 / requests
    for _ in range(requests):
        throttle.succeeded(began)
    refuse(throttle, began)
    assert throttle.held_until == pytest.approx(0.0)
    return throttle


# The hold


def test_nothing_is_paced_before_the_first_429() -> None:
    """However many requests leave, none of them waits."""
    throttle = Throttle()
    for _ in range(100):
        throttle.depart(now=1.0)
        throttle.succeeded(now=1.0)

    assert throttle.delay(now=1.0) == 0.0
    assert throttle.rate(now=1.0) is None
    assert not throttle.is_paced


def test_retry_after_is_kept_in_full_with_jitter_on_top() -> None:
    """One that asks for 7 s gets them, and a turn: clients don't come back as one herd."""
    throttle = Throttle()

    refuse(throttle, now=10.0, retry_after=7.0)

    assert throttle.held_until == pytest.approx(18.0)
    assert throttle.delay(now=12.0) == pytest.approx(6.0)
    assert throttle.delay(now=18.0) == 0.0


def test_refusals_in_a_row_hold_longer() -> None:
    """One that ends in another 429 has twice as many turns, up to eight; a success starts over."""
    throttle = Throttle()
    turns = []
    now = 0.0
    for _ in range(4):
        refuse(throttle, now)
        turns.append(held_turns(throttle, now))
        now = throttle.held_until
    throttle.succeeded(now)
    refuse(throttle, now)

    assert turns == pytest.approx([1.0, 2.0, 4.0, 4.0])
    assert held_turns(throttle, now) == pytest.approx(1.0)


def held_turns(throttle: Throttle, now: float) -> float:
    assert throttle._limit is not None
    return (throttle.held_until - now) * throttle._limit


def test_no_hold_of_our_own_is_longer_than_the_longest_back_off() -> None:
    """A Retry-After may be."""
    throttle = Throttle(RetryPolicy(max_backoff=2.0))
    for _ in range(20):
        now = throttle.held_until
        refuse(throttle, now)
        assert throttle.held_until - now < 2.001

    refuse(throttle, now=1000.0, retry_after=600.0)
    assert throttle.held_until == pytest.approx(1602.0)


def test_requests_under_way_tell_nothing_new() -> None:
    """Ten 429s to requests that left before the hold count as one, but for what they ask."""
    throttle = Throttle()
    refuse(throttle, now=1.0)
    rate, held_until = throttle.rate(throttle.held_until), throttle.held_until

    for n in range(9):
        throttle.refused(departed=0.9, now=1.0 + n / 100, jitter=0.5)
    assert (throttle.rate(held_until), throttle.held_until) == (rate, held_until)

    throttle.refused(departed=0.9, now=1.1, jitter=0.5, retry_after=30.0)
    assert throttle.held_until == pytest.approx(31.1)
    assert throttle.throttled == 11


def test_the_rate_does_not_grow_while_holding() -> None:
    """Growth counts from the end of the hold, however long that is."""
    throttle = Throttle()
    refuse(throttle, now=0.0, retry_after=600.0)

    assert throttle.rate(now=0.0) == throttle.rate(now=600.0)


# The rate


def test_turns_are_one_interval_apart() -> None:
    """Whoever leaves much too late is not made up for: two close together would be refused."""
    throttle = after_burst(10)
    now = 3.0  # nothing to send for a while
    rate = throttle.rate(now)
    assert rate is not None

    throttle.depart(now)

    assert throttle.delay(now) == pytest.approx(1.0 / rate)


def test_a_late_timer_is_made_up_for() -> None:
    """A millisecond late with every turn would be a twentieth of 50 requests a second."""
    throttle = after_burst(50)
    now, departures = 0.0, 0
    while now < 2.0:
        throttle.depart(now)
        departures += 1
        now += throttle.delay(now) + 0.0009

    rate = throttle.rate(1.0)
    assert rate is not None
    assert departures == pytest.approx(2.0 * rate, rel=0.02)


def test_the_first_limit_is_what_got_through_within_a_second() -> None:
    """Ten requests of the last second count, three earlier ones don't."""
    throttle = Throttle()
    for now in (0.0, 0.1, 0.2, *(2.0 + n / 20 for n in range(10))):
        throttle.succeeded(now)

    refuse(throttle, now=2.5)

    assert throttle._limit == 10.0


@pytest.mark.parametrize(
    ("now", "rate"),
    [(0.0, 9.5), (5.0, 9.9375), (10.0, 10.0), (15.0, 11.25), (20.0, 20.0), (30.0, 90.0)],
)
def test_the_curve_between_two_429s(now: float, rate: float) -> None:
    """Back to the limit in 100 requests, slow at first beyond it, and then faster and faster."""
    assert after_burst(10).rate(now) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("limit", "asked", "plateau"),
    [
        (10, None, Stage.KNOWS / 10),
        (4, None, Stage.KNOWS / 4),
        (100, None, SHORTEST_PLATEAU),
        (10, 0.3, Stage.KNOWS * 0.4),  # each 429 costs three turns more
        (10, 5.0, LONGEST_PLATEAU),
    ],
)
def test_how_long_the_limit_is_kept_to(limit: int, asked: float | None, plateau: float) -> None:
    """100 requests, and those that a Retry-After costs; within bounds."""
    throttle = Throttle()
    for _ in range(limit):
        throttle.succeeded(0.0)
    refuse(throttle, 0.0, asked)
    resumed = throttle.held_until

    assert throttle.rate(resumed + plateau) == pytest.approx(limit)
    assert (throttle.rate(resumed + 0.9 * plateau) or 0.0) < limit
    assert (throttle.rate(resumed + 1.2 * plateau) or 0.0) > limit


def test_a_lifted_quota_is_let_go() -> None:
    """At a hundred times the limit nothing is paced any more."""
    throttle = after_burst(10)
    lifted = 10.0 * (1.0 + (LIFTED - 1.0) ** (1.0 / 3.0))

    assert throttle.rate(lifted - 0.1) == pytest.approx(10.0 * LIFTED, rel=0.02)
    assert throttle.rate(lifted + 0.1) is None
    assert throttle.delay(lifted + 0.1) == 0.0
    assert not throttle.is_paced


@pytest.mark.parametrize("now", [0.0, 5.0, 10.0, 20.0])
def test_a_429_takes_back_a_share_of_the_rate(now: float) -> None:
    """Of the rate that was refused, wherever on the curve that was."""
    throttle = after_burst(10)
    rate = throttle.rate(now)
    assert rate is not None
    throttle.succeeded(now)

    refuse(throttle, now)

    assert throttle._limit == pytest.approx(DECREASE * rate)
    assert throttle.rate(throttle.held_until) == pytest.approx(DECREASE**2 * rate)


def test_the_rate_when_it_left_is_the_one_that_was_refused() -> None:
    """By the time the 429 comes back the rate has grown."""
    throttle = after_burst(10)
    throttle.succeeded(10.0)

    throttle.refused(departed=10.0, now=16.0, jitter=0.5)

    assert throttle._limit == pytest.approx(DECREASE * 10.0)


@pytest.mark.parametrize(
    ("burst", "plateau", "share"), [(2, 10.0, DECREASE**2), (4, 25.0, DECREASE)]
)
def test_a_small_burst_is_tried_out(burst: int, plateau: float, share: float) -> None:
    """For 20 requests; what was refused then is cut twice, and is known from then on."""
    throttle = after_burst(burst)
    rate = throttle.rate(2.0 * plateau)
    assert rate == pytest.approx(2.0 * burst)
    throttle.succeeded(2.0 * plateau)

    refuse(throttle, 2.0 * plateau)

    assert throttle._limit == pytest.approx(share * rate)
    assert throttle._plateau == pytest.approx(min(LONGEST_PLATEAU, 100.0 / (share * rate)))


def test_the_limit_of_a_single_request_is_searched_for() -> None:
    """A strict service lets one request through at first; the rate doubles after two turns."""
    throttle = Throttle()
    throttle.succeeded(0.0)
    refuse(throttle, now=0.0)
    resumed = throttle.held_until

    assert [throttle.rate(resumed + turns) for turns in (0.0, 1.0, 2.0, 3.0, 4.0)] == [
        pytest.approx(rate) for rate in (0.95, 1.0, 2.0, 9.0, 28.0)
    ]


def test_a_search_ends_with_the_rate_that_last_got_through() -> None:
    """It grows a good deal from one request to the next; what was refused tells little."""
    throttle = Throttle()
    refuse(throttle, now=0.0)
    resumed = throttle.held_until
    throttle.succeeded(resumed + 2.5)

    refuse(throttle, resumed + 3.0)

    assert throttle._limit == pytest.approx(DECREASE * (1.0 + 1.5**3))
    assert throttle._plateau > SHORTEST_PLATEAU


def test_a_search_that_gets_nothing_through_goes_on_from_below() -> None:
    """As for the many clients of a slow service: when a longer hold doesn't help, a lower rate."""
    throttle = Throttle()
    rates = []
    for _ in range(8):
        refuse(throttle, throttle.held_until)
        rates.append(throttle.rate(throttle.held_until) or 0.0)

    powers = (1, 1, 3, 5, 7, 9, 11, 13)
    assert rates == [pytest.approx(DECREASE**power) for power in powers]
    assert throttle._plateau == pytest.approx(DECREASE / rates[-1])


def test_a_hold_that_was_too_short_costs_no_rate() -> None:
    """The second 429 in a row is most often the same hold-up; the third cuts the rate."""
    throttle = after_burst(10)
    throttle.succeeded(10.0)
    limits = []
    for n in range(3):
        refuse(throttle, throttle.held_until if n else 10.0)
        limits.append(throttle._limit)

    assert limits == [9.5, 9.5, pytest.approx(9.5 * DECREASE**2)]


def test_a_short_first_backoff_searches_faster() -> None:
    """With milliseconds, as in a test of one's own, nobody waits for seconds; a long one waits
    longer, but doesn't search more slowly."""
    hurried, patient = (Throttle(RetryPolicy(first_backoff=x)) for x in (0.001, 10.0))
    for throttle in (hurried, patient):
        refuse(throttle, now=0.0)

    assert hurried.rate(hurried.held_until + 0.002) == pytest.approx(2000.0)
    assert patient.rate(patient.held_until + 2.0) == pytest.approx(2.0)


def test_the_rate_never_reaches_zero() -> None:
    """A service that refuses everything for a day is still asked once a minute."""
    throttle = Throttle()
    for _ in range(200):
        refuse(throttle, now=throttle.held_until)

    assert throttle._limit == pytest.approx(1.0 / 60.0)
    assert throttle.delay(throttle.held_until) == 0.0


# Against services, in virtual time


MINUTES = 300.0

QUOTAS = [
    pytest.param(lambda rate: Bucket(rate, rate), 0.95, 0.95, id="a second's burst"),
    pytest.param(lambda rate: Bucket(rate, 1.0), 0.75, 0.85, id="no burst"),
    pytest.param(Windows, 0.8, 0.9, id="windows"),
    pytest.param(SlidingWindow, 0.8, 0.9, id="sliding window"),
]


@pytest.mark.parametrize("retry_after", [None, 1.0], ids=["bare", "retry-after"])
@pytest.mark.parametrize("rate", [2.0, 5.0, 10.0])
@pytest.mark.parametrize(("quota", "at_first", "later"), QUOTAS)
def test_one_client_uses_what_it_may(
    quota: Callable[[float], Service],
    at_first: float,
    later: float,
    rate: float,
    retry_after: float | None,
) -> None:
    """In the first 50 s, and in the minutes after the first 100 s."""
    outcome = Simulation(quota(rate), retry_after=retry_after).run(MINUTES)

    assert outcome.rate(0.0, 50.0) > (at_first if retry_after is None else 0.9 * at_first) * rate
    assert outcome.rate(100.0, MINUTES) > (later if retry_after is None else 0.9 * later) * rate
    assert outcome.refused_share(100.0) < 0.02


@pytest.mark.parametrize("retry_after", [None, 1.0], ids=["bare", "retry-after"])
@pytest.mark.parametrize("rate", [2.0, 10.0, 50.0])
def test_the_goal_against_a_bucket(rate: float, retry_after: float | None) -> None:
    """At least 0.95 of the quota and at most 2 % refused, the start included.

    That start, of three 429s for two requests too many, takes minutes to be made up for at 2/s.
    """
    seconds = 400.0 if rate == 2.0 else 120.0
    taken, refused = 0, 0
    for seed in range(5):
        chance = random.Random(seed)
        outcome = Simulation(Bucket(rate, rate), retry_after=retry_after, chance=chance).run(
            seconds
        )
        taken += len(outcome.taken)
        refused += len(outcome.refused)

    assert taken >= 0.95 * rate * seconds * 5
    assert refused <= 0.02 * (taken + refused)


def test_a_strict_service_is_used_from_the_first_request_on() -> None:
    """A request in 20 ms and none too early, with timers that are a millisecond late."""
    outcome = Simulation(Bucket(50.0, 1.0)).run(60.0)

    assert outcome.rate(0.0, 60.0) > 0.65 * 50.0
    assert outcome.refused_share() < 0.02


def test_so_many_requests_at_a_time() -> None:
    """A service with two workers, and four requests under way: hardly any is refused for long."""
    outcome = Simulation(Workers(2, seconds=0.1), round_trip=0.1).run(MINUTES)

    assert outcome.rate(100.0, MINUTES) > 0.8 * 20.0
    assert outcome.refused_share(100.0) < 0.02


SHARED = [
    pytest.param(lambda rate: Bucket(rate, rate), 10.0, 0.35, id="bucket 10/s"),
    pytest.param(lambda rate: Bucket(rate, rate), 50.0, 0.25, id="bucket 50/s"),
    pytest.param(lambda rate: Bucket(rate, rate), 2.0, 0.85, id="bucket 2/s"),
    pytest.param(Windows, 2.0, 0.95, id="windows 2/s"),
    pytest.param(lambda rate: Bucket(rate, 1.0), 2.0, 0.9, id="strict 2/s"),
    pytest.param(lambda rate: Bucket(rate, 1.0), 10.0, 0.7, id="strict 10/s"),
    pytest.param(lambda rate: Bucket(rate, 1.0), 50.0, 0.5, id="strict 50/s"),
]


@pytest.mark.parametrize("clients", [8, 16])
@pytest.mark.parametrize(("quota", "rate", "refused"), SHARED)
def test_clients_share_a_quota(
    quota: Callable[[float], Service], rate: float, refused: float, clients: int
) -> None:
    """None knows of the others.  Next to plain back-off: most of its goodput, fewer refusals."""
    ours = Simulation(quota(rate), clients=clients).run(120.0)
    back_off = Simulation(quota(rate), clients=clients, law=PlainBackOff, in_flight=1)
    plain = back_off.run(120.0)

    assert ours.rate(0.0, 120.0) > 0.6 * plain.rate(0.0, 120.0)
    assert ours.refused_share() < refused * plain.refused_share()


@pytest.mark.parametrize("rate", [5.0, 10.0, 50.0])
def test_eight_clients_settle(rate: float) -> None:
    """The start's refusals don't go on."""
    outcome = Simulation(Bucket(rate, rate), clients=8).run(600.0)

    assert outcome.rate(300.0, 600.0) > 0.95 * rate
    assert outcome.refused_share(300.0) < 0.08


@pytest.mark.parametrize("clients", [8, 16])
def test_shares_of_a_quota_are_fair(clients: int) -> None:
    """The rate grows with time, not with requests: a client that has less catches up."""
    outcome = Simulation(Bucket(10.0, 10.0), clients=clients).run(600.0)

    assert outcome.fairness > 0.8


@pytest.mark.parametrize(("rate", "median"), [(10.0, 1.5), (50.0, 1.0)])
def test_processes_that_log_a_little(rate: float, median: float) -> None:
    """Sixteen with five records a second each; a batch takes all that waited meanwhile."""
    simulation = Simulation(Bucket(rate, rate), clients=16, pause=0.2, in_flight=1)
    outcome = simulation.run(MINUTES)

    assert outcome.latency(0.5) < median
    assert len(outcome.latencies) > 0.95 * 16 * 5 * MINUTES


def test_a_short_hold_up_costs_seconds_not_minutes() -> None:
    """60 full batches against 5 requests/s, no burst: 12 s at best, and at most twice that."""
    assert len(Simulation(Bucket(5.0, 1.0)).run(24.0).taken) >= 60


def test_429s_that_have_nothing_to_do_with_the_rate_cost_little() -> None:
    """Somebody else uses up the user's limit for a moment, every ten seconds."""
    outcome = Simulation(Gaps(10.0), round_trip=0.05).run(MINUTES)

    assert outcome.rate(200.0, MINUTES) > outcome.rate(0.0, 50.0) > 20.0


@pytest.mark.parametrize("burst", [1.0, 5.0], ids=["no burst", "a second's burst"])
def test_a_quota_that_shrinks_is_kept_to_within_seconds(burst: float) -> None:
    """From 50 to 5 requests a second."""
    outcome = Simulation(Changing(100.0, Bucket(50.0, burst), Bucket(5.0, burst))).run(160.0)

    assert outcome.rate(120.0, 160.0) > 0.8 * 5.0
    assert outcome.refused_share(120.0) < 0.03


def test_a_quota_that_grows_is_found_within_a_minute() -> None:
    """From 5 to 50 requests a second."""
    outcome = Simulation(Changing(100.0, Bucket(5.0, 5.0), Bucket(50.0, 50.0))).run(MINUTES)

    assert outcome.rate(160.0, MINUTES) > 0.95 * 50.0


@pytest.mark.parametrize("burst", [1.0, None], ids=["no burst", "a second's burst"])
@pytest.mark.parametrize(("rate", "within"), [(2.0, 110.0), (10.0, 24.0), (50.0, 7.0)])
def test_a_quota_that_is_lifted_is_found(rate: float, within: float, burst: float | None) -> None:
    """Twice the quota gets through within two plateaus or so, whenever it was lifted.

    With one request in 50 to try a higher rate with, it can't be found much sooner.
    """
    for lifted in (100.0, 103.0, 107.0, 115.0):
        quota = Bucket(rate, burst or rate)
        outcome = Simulation(Changing(lifted, quota, None)).run(lifted + within)
        assert outcome.rate(lifted + within - 1.0, lifted + within) >= 2.0 * rate, lifted
