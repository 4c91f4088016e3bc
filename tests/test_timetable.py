"""Turns of a shared quota: tables with numbers, and clients that settle."""

from __future__ import annotations

import pytest

from adp_async._sansio.timetable import (
    LONGEST_PAUSE,
    LONGEST_WITHOUT_TURN,
    PAUSE_REQUESTS,
    PERIOD,
    SHORTENED,
    UNDISPUTED,
    Timetable,
)

FILLED = PERIOD


def filled(*turns: float) -> Timetable:
    """A timetable whose first period is over, with requests that got through at *turns*."""
    timetable = Timetable(began_at=0.0)
    timetable.fill(rate=1.0, first=0.0)
    for turn in turns:
        timetable.depart(turn)
        timetable.succeeded(turn, turn)
    return timetable


def test_the_first_period_is_filled_at_a_rate() -> None:
    """One request every two seconds, whatever becomes of them."""
    timetable = Timetable(began_at=0.0)
    timetable.fill(rate=0.5, first=1.0)
    turns = []
    for _ in range(4):
        turns.append(now := timetable.next_turn)
        timetable.depart(now)

    assert turns == [1.0, 3.0, 5.0, 7.0]
    assert timetable.rate(9.0) == 0.5


def test_what_got_through_has_a_turn_in_every_period() -> None:
    """Ten seconds later to the moment, and again ten seconds after that."""
    timetable = filled(2.0, 5.5)
    timetable.fill(1.0, first=1000.0)
    turns = []
    for _ in range(4):
        turns.append(now := timetable.next_turn)
        timetable.depart(now)
        timetable.succeeded(now, now + 0.1)

    assert turns == [12.0, 15.5, 22.0, 25.5]
    assert timetable.rate(30.0) == pytest.approx(2 / PERIOD + 1 / LONGEST_PAUSE)


def test_what_was_refused_gives_up_its_turn() -> None:
    """And looks for another one within a period, at a moment that chance decides."""
    timetable = filled(2.0, 5.5)
    timetable.depart(12.0)
    timetable.refused(12.0, now=12.1, jitter=0.25)

    assert timetable.next_turn == pytest.approx(12.1 + 2.5)

    timetable.depart(timetable.next_turn)
    assert timetable.next_turn == 15.5


@pytest.mark.parametrize(
    ("turns", "pause"),
    [
        (0, LONGEST_WITHOUT_TURN),
        (5, LONGEST_PAUSE),
        (50, PAUSE_REQUESTS * PERIOD / 50),
    ],
)
def test_trials_are_rare(turns: int, pause: float) -> None:
    """A refused one is followed by the longest pause: 70 s, or 70 requests if that is less."""
    timetable = filled(*(n / 10 for n in range(turns)))

    timetable.refused(FILLED + 0.05, now=20.0, jitter=0.5)
    timetable.skip(1e6)
    while timetable._turns:
        timetable._turns.pop()

    assert timetable.next_turn == pytest.approx(20.0 + pause)


def test_a_trial_that_gets_through_shortens_the_pause() -> None:
    """And has a turn from then on."""
    timetable = filled(1.0)
    timetable.refused(20.0, now=20.0, jitter=0.5)
    now = 20.0 + LONGEST_PAUSE
    timetable.skip(now)
    timetable.succeeded(now, now + 0.1)

    assert now + PERIOD in timetable._turns
    timetable.skip(now + LONGEST_PAUSE)
    assert timetable.next_turn == now + LONGEST_PAUSE * SHORTENED


def test_there_is_room_when_trials_get_through_as_fast_as_turns_come() -> None:
    """Seven turns in ten seconds, and a pause of less than one."""
    timetable = filled(1.0)
    timetable.refused(20.0, now=20.0, jitter=0.5)
    now, found = 21.0, []
    for _ in range(6):
        timetable.succeeded(now, now)
        found.append((len(timetable._turns), timetable._pause, timetable.has_room))
        now += 1.1

    pauses = [LONGEST_PAUSE * SHORTENED**n for n in range(1, 7)]
    assert [pause for _, pause, _ in found] == pytest.approx(pauses)
    assert [(turns, has_room) for turns, _, has_room in found] == [
        (2, False),
        (3, False),
        (4, False),
        (5, False),
        (6, False),
        (7, True),
    ]


def test_turns_that_nobody_disputes() -> None:
    """Three refused trials while no turn is lost; one that is lost begins the count anew."""
    timetable = filled(1.0, 2.0, 3.0)
    for n in range(UNDISPUTED - 1):
        timetable.refused(20.0 + n, now=20.0 + n, jitter=0.5)
    timetable.depart(31.0)
    timetable.refused(31.0, now=31.0, jitter=0.5)
    for n in range(UNDISPUTED):
        assert not timetable.is_undisputed
        timetable.refused(40.0 + n, now=40.0 + n, jitter=0.5)

    assert timetable.is_undisputed


def test_nothing_is_undisputed_without_turns() -> None:
    """A client that gets nothing through is not alone."""
    timetable = filled()
    for n in range(10):
        timetable.refused(20.0 + n, now=20.0 + n, jitter=0.5)

    assert not timetable.is_undisputed


def test_turns_in_a_hold_are_kept() -> None:
    """They come again in a later period, at their own moments, and not all at once."""
    timetable = filled(1.0, 2.0, 6.0)

    timetable.skip(until=15.0)
    assert timetable._turns == [16.0, 21.0, 22.0]

    timetable.skip(until=615.0)
    assert timetable._turns == [616.0, 621.0, 622.0]


def test_a_client_with_little_to_send_leaves_late_once() -> None:
    """After a minute of silence one request leaves at once, and the next in a turn."""
    timetable = filled(1.0, 2.0, 6.0)
    timetable.fill(1.0, first=1000.0)

    timetable.depart(73.0)

    assert timetable._turns == [81.0, 82.0, 83.0]
    assert timetable.next_turn == 81.0
