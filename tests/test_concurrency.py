"""How the number of batches under way is learned, with services that are formulas."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from adp_async._sansio.concurrency import Concurrency

if TYPE_CHECKING:
    from collections.abc import Callable


def served(concurrency: Concurrency, round_trip: Callable[[int], float], batches: int) -> list[int]:
    """The limits under which *batches* landed, once as many as may be are under way."""
    for _ in range(concurrency.most):
        concurrency.delivered()
    limits = []
    for _ in range(batches):
        limits.append(concurrency.limit)
        concurrency.landed(round_trip(concurrency.limit))
    return limits


def test_it_begins_with_one_and_grows_with_what_is_delivered() -> None:
    """The first answer to a flood is then one 429, not four."""
    concurrency = Concurrency(most=3)
    limits = [concurrency.limit]
    for _ in range(4):
        concurrency.landed(0.1)  # tells nothing yet
        concurrency.delivered()
        limits.append(concurrency.limit)

    assert limits == [1, 2, 3, 3, 3]


def test_a_service_that_does_them_side_by_side_gets_as_many_as_may_be() -> None:
    """Trying fewer now and then costs little."""
    limits = served(Concurrency(most=4), lambda limit: 0.1, 1000)

    assert limits[0] == 4
    assert sum(limits) / len(limits) > 3.9


def test_a_service_that_does_them_one_after_another_gets_one() -> None:
    """More would only wait there; trying more now and then costs little."""
    limits = served(Concurrency(most=4), lambda limit: 0.1 * limit, 1000)

    assert limits[60:].count(1) > 0.9 * len(limits[60:])


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


@pytest.mark.parametrize(("most", "round_trip"), [(1, 0.5), (4, 0.001)])
def test_where_there_is_nothing_to_learn_nothing_is_tried(most: int, round_trip: float) -> None:
    """With one there is no choice, and a millisecond is our own event loop's time."""
    limits = served(Concurrency(most=most), lambda limit: round_trip * limit, 200)

    assert set(limits) == {most}
