"""The hold and the rate: by tables, and against simulated services in virtual time."""

from __future__ import annotations

import heapq
import random
from typing import Protocol

import pytest
from attrs import define, field, frozen

from adp_async._sansio.retry import RetryPolicy
from adp_async._sansio.throttle import DECREASE, ENOUGH, LOWEST_RATE, Throttle


def refuse(throttle: Throttle, now: float, retry_after: float | None = None) -> None:
    throttle.refused(departed=now, now=now, jitter=0.5, retry_after=retry_after)


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
    """A bare 429 backs off by the policy; one that asks for 7 s gets them and half a second."""
    throttle = Throttle()

    refuse(throttle, now=10.0, retry_after=7.0)

    assert throttle.held_until == pytest.approx(17.5)
    assert throttle.delay(now=12.0) == pytest.approx(5.5)
    assert throttle.delay(now=18.0) == 0.0


def test_refusals_in_a_row_hold_longer() -> None:
    """Each hold that ends in another 429 doubles; a success starts over."""
    throttle = Throttle(RetryPolicy(first_backoff=8.0, max_backoff=60.0))
    holds = []
    now = 0.0
    for _ in range(5):
        refuse(throttle, now)
        holds.append(throttle.held_until - now)
        now = throttle.held_until
    throttle.succeeded(now)
    refuse(throttle, now)

    assert holds == [4.0, 8.0, 16.0, 30.0, 30.0]
    assert throttle.held_until - now == 4.0


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
    """Whoever leaves late is not made up for: two close together would be refused."""
    throttle = Throttle()
    refuse(throttle, now=0.0)
    now = throttle.held_until + 3.0  # nothing to send for a while
    rate = throttle.rate(now)
    assert rate is not None

    throttle.depart(now)

    assert throttle.delay(now) == pytest.approx(1.0 / rate)


def test_the_first_429_starts_with_what_got_through_within_a_second() -> None:
    """Ten requests got through, so ten a second are tried."""
    throttle = Throttle()
    for n in range(10):
        throttle.depart(n / 20)
        throttle.succeeded(n / 20)

    refuse(throttle, now=0.5)

    assert throttle.rate(throttle.held_until) == 10.0


def test_it_searches_upwards_with_every_success() -> None:
    """A strict service lets one request through at first; the rate climbs until the next 429."""
    throttle = Throttle()
    throttle.succeeded(0.0)
    refuse(throttle, now=0.0)
    now = throttle.held_until + 60.0
    rates = []
    for _ in range(13):
        rates.append(throttle.rate(now))
        throttle.succeeded(now)

    assert rates[0] == 1.0
    assert rates[6] == pytest.approx(2.718, abs=0.001)
    assert rates[12] == pytest.approx(7.389, abs=0.001)


def known_limit(limit: float) -> Throttle:
    """A throttle that knows *limit* and whose hold ends at 0."""
    throttle = Throttle()
    throttle.succeeded(-100.0)
    refuse(throttle, now=-100.0)
    throttle._limit, throttle._searches, throttle._hold = limit, False, 0.5
    throttle.held_until = throttle._resumed_at = throttle._refused_at = 0.0
    return throttle


@pytest.mark.parametrize(
    ("now", "rate"),
    [(0.0, 10 * DECREASE), (10.0, 9.95), (20.0, 10.0), (30.0, 10.625), (40.0, 15.0), (60.0, 50.0)],
)
def test_the_curve_between_two_429s(now: float, rate: float) -> None:
    """Back to the limit in 20 s, slow where the 429 came, and then faster and faster."""
    assert known_limit(10.0).rate(now) == pytest.approx(rate)


def test_a_lifted_quota_is_let_go() -> None:
    """After minutes without a 429 nothing is paced any more."""
    throttle = known_limit(10.0)

    assert throttle.rate(600.0) is None
    assert throttle.delay(600.0) == 0.0
    assert not throttle.is_paced


def test_a_slow_limit_takes_longer() -> None:
    """100 requests have to pass before one more is risked, but no more than 100 s."""
    assert known_limit(2.0).rate(50.0) == pytest.approx(2.0)
    assert known_limit(0.1).rate(100.0) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("now", "succeeded", "limit"),
    [
        # Beyond what we knew, at 15/s: a strict service, or one that had saved up.
        (40.0, 410, 0.98 * 15.0),
        (40.0, 598, 598 / 40),
        # On the way back, at 9.95/s.
        (10.0, 80, 0.93 * 9.95),
        (10.0, 97, 9.7),
        # More than the rate can't have got through on time: late replies of the time before.
        (10.0, 150, 9.95),
    ],
)
def test_what_a_429_teaches(now: float, succeeded: int, limit: float) -> None:
    """The larger of what got through since the last one and a little less than the rate now."""
    throttle = known_limit(10.0)
    for n in range(succeeded):
        throttle.succeeded(n * now / succeeded)

    refuse(throttle, now)

    assert throttle._limit == pytest.approx(limit)


def test_few_successes_between_two_429s_cut_the_rate() -> None:
    """They tell nothing but that it is too high."""
    throttle = known_limit(10.0)
    for _ in range(ENOUGH - 1):
        throttle.succeeded(0.5)

    refuse(throttle, now=1.0)

    assert throttle._limit == pytest.approx(0.8 * 9.6, rel=0.01)


def test_the_rate_never_reaches_zero() -> None:
    """A service that refuses everything for a day is still asked now and then."""
    throttle = Throttle()
    for _ in range(200):
        refuse(throttle, now=throttle.held_until)

    assert throttle._limit == LOWEST_RATE
    assert throttle.delay(throttle.held_until) == 0.0


# Against services, in virtual time


class Service(Protocol):
    def takes(self, now: float) -> bool: ...


@define
class Bucket:
    """*rate* a second, and up to *burst* saved up."""

    rate: float
    burst: float
    tokens: float = field(init=False)
    filled_at: float = 0.0

    def __attrs_post_init__(self) -> None:
        self.tokens = self.burst

    def takes(self, now: float) -> bool:
        grown = self.tokens + (now - self.filled_at) * self.rate
        self.tokens, self.filled_at = min(self.burst, grown), now
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


@define
class Windows:
    """*rate* in every second of the clock."""

    rate: float
    second: int = -1
    taken: int = 0

    def takes(self, now: float) -> bool:
        if int(now) != self.second:
            self.second, self.taken = int(now), 0
        self.taken += 1
        return self.taken <= self.rate


@frozen
class Outcome:
    taken: int
    refused: int

    def goodput(self, rate: float, seconds: float) -> float:
        return self.taken / (rate * seconds)

    @property
    def refused_share(self) -> float:
        return self.refused / (self.taken + self.refused)


def simulate(
    service: Service,
    seconds: float,
    *,
    clients: int = 1,
    retry_after: float | None = None,
    in_flight: int = 4,
    round_trip: float = 0.03,
    since: float = 0.0,
) -> Outcome:
    """Clients that always have more to send; counted from *since* on."""
    chance = random.Random(1)
    throttles = [Throttle() for _ in range(clients)]
    events: list[tuple[float, int, int, str, float]] = []
    count = [0, 0]
    number = 0

    def at(time: float, client: int, what: str, departed: float = 0.0) -> None:
        nonlocal number
        number += 1
        heapq.heappush(events, (time, number, client, what, departed))

    for client in range(clients):
        for _ in range(in_flight):
            at(chance.random() / 100, client, "send")
    while (event := heapq.heappop(events))[0] < seconds:
        now, _, client, what, departed = event
        throttle = throttles[client]
        if what == "send":
            if delay := throttle.delay(now):
                at(now + max(delay, 1e-6), client, "send")
                continue
            throttle.depart(now)
            at(now + round_trip * (0.49 + 0.02 * chance.random()), client, "arrive", now)
        elif what == "arrive":
            is_taken = service.takes(now)
            count[not is_taken] += now >= since
            at(now + round_trip / 2, client, "taken" if is_taken else "refused", departed)
        else:
            if what == "taken":
                throttle.succeeded(now)
            else:
                throttle.refused(
                    departed=departed, now=now, jitter=chance.random(), retry_after=retry_after
                )
            at(now, client, "send")
    return Outcome(*count)


MINUTES = 300.0

QUOTAS = [
    pytest.param(lambda rate: Bucket(rate, rate), id="a second's burst"),
    pytest.param(lambda rate: Bucket(rate, 1.0), id="no burst"),
    pytest.param(Windows, id="windows"),
]


@pytest.mark.parametrize("retry_after", [None, 1.0], ids=["bare", "retry-after"])
@pytest.mark.parametrize("rate", [2.0, 5.0, 10.0, 50.0])
@pytest.mark.parametrize("quota", QUOTAS)
def test_one_client_uses_what_it_may(quota: object, rate: float, retry_after: float | None) -> None:
    """Over five minutes, the start included: most of the quota is used and few are refused."""
    outcome = simulate(quota(rate), MINUTES, retry_after=retry_after)  # type: ignore[operator]

    # A burst of none at 50/s leaves no room for the jitter of the network.
    assert outcome.goodput(rate, MINUTES) > (0.82 if rate == 50.0 else 0.88)
    assert outcome.refused_share < (0.03 if rate == 2.0 else 0.02)


@pytest.mark.parametrize("retry_after", [None, 1.0], ids=["bare", "retry-after"])
@pytest.mark.parametrize("rate", [5.0, 10.0, 50.0])
def test_the_goal_against_a_bucket(rate: float, retry_after: float | None) -> None:
    """At least 0.95 of the quota and at most 2 % refused, against a second's burst."""
    outcome = simulate(Bucket(rate, rate), MINUTES, retry_after=retry_after)

    assert outcome.goodput(rate, MINUTES) >= 0.95
    assert outcome.refused_share <= 0.02


@pytest.mark.parametrize("rate", [5.0, 10.0, 50.0])
def test_eight_clients_share_a_quota(rate: float) -> None:
    """They know nothing of each other, and still settle: the start's refusals don't go on."""
    outcome = simulate(Bucket(rate, rate), 600.0, clients=8, since=300.0)

    assert outcome.goodput(rate, 300.0) > 0.9
    assert outcome.refused_share < 0.03


def test_a_short_hold_up_costs_seconds_not_minutes() -> None:
    """60 full batches against 5 requests/s, no burst: 12 s at best, and at most twice that."""
    service = Bucket(5.0, 1.0)

    assert simulate(service, 24.0).taken >= 60
