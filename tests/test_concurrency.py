"""How the number of batches under way is learned, with services that are formulas."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adp_async._sansio.concurrency import Concurrency

if TYPE_CHECKING:
    from collections.abc import Callable


def served(concurrency: Concurrency, round_trip: Callable[[int], float], batches: int) -> list[int]:
    """The limits under which *batches* of 1000 records landed, evenly spread over a round trip."""
    limits, now = [], 0.0
    for _ in range(batches):
        limits.append(concurrency.limit)
        now += round_trip(concurrency.limit) / concurrency.limit
        concurrency.landed(1000, now)
    return limits


def test_it_begins_with_one() -> None:
    """The first answer to a flood is then one 429, not four."""
    assert Concurrency(most=4).limit == 1


def test_a_service_that_does_them_side_by_side_gets_as_many_as_may_be() -> None:
    """After two dozen batches; trying fewer now and then costs little."""
    limits = served(Concurrency(most=4), lambda limit: 0.1, 1000)

    assert limits[25] == 4
    assert sum(limits) / len(limits) > 3.9


def test_a_service_that_does_them_one_after_another_gets_one() -> None:
    """More would only wait there; trying more now and then costs little."""
    limits = served(Concurrency(most=4), lambda limit: 0.1 * limit, 1000)

    assert limits.count(1) > 0.9 * len(limits)


def test_what_each_of_them_waits_tells_nothing() -> None:
    """A single writer that serves one at once, and lets three starve: still no more arrives."""
    concurrency = Concurrency(most=4)
    limits = []
    for n in range(400):
        limits.append(concurrency.limit)
        concurrency.landed(1000, 0.1 * (n + 0.3 * (n % 2)))

    assert limits.count(1) > 0.85 * len(limits)


def test_a_service_that_can_do_two_gets_two() -> None:
    """Between the two the number is found as well."""
    limits = served(Concurrency(most=4), lambda limit: 0.1 * max(1.0, limit / 2), 1000)

    assert limits[60:].count(2) > 0.85 * len(limits[60:])


def test_a_service_that_grows_wider_is_noticed() -> None:
    """One more is tried again and again."""
    concurrency = Concurrency(most=4)
    served(concurrency, lambda limit: 0.1 * limit, 500)
    served(concurrency, lambda limit: 0.1, 1500)

    assert concurrency.limit == 4


def test_a_lull_is_no_measurement() -> None:
    """While there is nothing to send, nothing arrives: that is not the service's doing."""
    concurrency = Concurrency(most=4)
    for n in range(100):
        concurrency.landed(1000, 10.0 * n)
        concurrency.paused()

    assert concurrency == Concurrency(most=4)


def test_a_service_that_answers_at_once_gets_as_many_as_may_be() -> None:
    """A millisecond is our own event loop's time: there is nothing to learn from it."""
    limits = served(Concurrency(most=4), lambda limit: 0.001 * limit, 200)

    assert limits[:5] == [1] * 5
    assert set(limits[5:]) == {4}


def test_with_one_there_is_no_choice() -> None:
    """And nothing to try."""
    limits = served(Concurrency(most=1), lambda limit: 0.5, 200)

    assert set(limits) == {1}
