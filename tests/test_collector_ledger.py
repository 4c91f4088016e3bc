"""The collector's books: tokens, workers, and what is settled of what they handed over."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from adp_async._io.handover import Taken
from adp_async._sansio.accumulator import Accumulator
from adp_async._sansio.lane import Lane
from adp_async._sansio.records import Metric
from adp_async.collector import ledger as books
from adp_async.collector.ledger import Ledger
from adp_async.errors import BadRequest, Rejection


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


def test_tokens_are_remembered_up_to_a_number(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest is forgotten first; one that is heard of again is young."""
    monkeypatch.setattr(books, "KEPT_TOKENS", 2)
    ledger.learn(["a", "b", "a", "c"])
    assert [name for name in "abc" if ledger.knows(name)] == ["a", "c"]


def test_workers_are_remembered_up_to_a_number(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is within its block is not the one to be forgotten; no count is lost."""
    monkeypatch.setattr(books, "KEPT_WORKERS", 2)
    ledger.worker("within").inside.add("1")
    accumulator = Accumulator(linger=0.0)
    hand_over(ledger, accumulator, "outside", "xyz")
    ledger.worker("new")
    assert set(ledger.workers) == {"within", "new"}
    monkeypatch.setattr(Lane, "settled_until", property(lambda _: 2))
    assert ledger.stats()["others"].taken == 3
    assert ledger.stats()["others"].settled == 2
    hand_over(ledger, accumulator, "new", "x")
    ledger.worker("newer")
    told = ledger.stats()
    assert sum(each.taken for each in told.values()) == 4
    assert (told["others"].taken, told["others"].settled) == (4, 2)


def hand_over(ledger: Ledger, accumulator: Accumulator, name: str, keys: str) -> Taken:
    lane = accumulator.lane("run")
    records = [Metric(key, 0.5, 1, 0, lane) for key in keys]
    first = lane.next_seq
    accumulator.take_in(records, 0.0)
    taken = Taken(lane, first, lane.next_seq)
    ledger.count(ledger.worker(name), taken)
    return taken


def test_what_is_settled_is_counted_by_worker(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the middle of what one has handed over, however often somebody asks."""
    accumulator = Accumulator(linger=0.0)
    for name, keys in (("a", "xy"), ("b", "z"), ("a", "z")):
        hand_over(ledger, accumulator, name, keys)
    for until, settled in ((1, [1, 0]), (3, [2, 1]), (4, [3, 1])):
        monkeypatch.setattr(Lane, "settled_until", property(lambda _, at=until: at))
        for _ in range(2):
            told = ledger.stats()
            assert [told[name].settled for name in "ab"] == settled
        assert told["a"].waiting == 3 - settled[0]
    hand_over(ledger, accumulator, "b", "z")  # which counts what is settled by then
    told = ledger.stats()
    assert [(told[name].taken, told[name].settled) for name in "ab"] == [(3, 3), (2, 1)]


def test_what_is_refused_is_its_worker_s(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its number; what is not named counts, and the last that are named are remembered."""
    monkeypatch.setattr(books, "KEPT_REFUSALS", 2)
    accumulator = Accumulator(linger=0.0)
    for name, keys in (("a", "vwx"), ("b", "y"), ("a", "z")):
        lane = hand_over(ledger, accumulator, name, keys).lane
    why = BadRequest("no", status=400)
    named = [Rejection("run", "metric", key, 0, why) for key in "vxyz"]
    ledger.refused(lane, [0, 2, 3, 4], named)
    ledger.refused(lane, range(1, 2))
    ledger.refused(lane, [99])
    ledger.refused(accumulator.lane("another"), [0])
    told = ledger.stats()
    assert [told[name].rejected for name in "ab"] == [4, 1]
    a, b = ledger.workers["a"], ledger.workers["b"]
    assert a.refused_since("run", 0) == (named[1:2] + named[3:], 4)
    assert a.refused_since("run", 3) == (named[3:], 4)
    assert a.refused_since("run", 9) == ([], 4)
    assert b.refused_since("run", 0) == (named[2:3], 1)
    assert b.refused_since("another", 0) == ([], 0)


def test_runs_whose_records_are_settled_are_forgotten(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node's agent sees many."""
    monkeypatch.setattr(books, "MANY_LANES", 10)
    accumulator = Accumulator(linger=0.0)
    worker = ledger.worker("w")
    monkeypatch.setattr(Lane, "settled_until", property(lambda lane: lane.next_seq))
    for number in range(100):
        lane = accumulator.lane(f"run {number}")
        accumulator.take_in([Metric("x", 0.5, 1, 0, lane)], 0.0)
        ledger.count(worker, Taken(lane, 0, 1))
    assert len(ledger._handed) <= 20
    assert ledger.stats()["w"].settled == 100


def test_somebody_asks_while_others_hand_over(ledger: Ledger) -> None:
    """From another thread, all the time."""
    accumulator = Accumulator(linger=0.0)
    asked = []

    def ask() -> None:
        while len(asked) < 200:
            asked.append(sum(each.taken for each in ledger.stats().values()))

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        count = 0
        while not asking.done():
            hand_over(ledger, accumulator, f"w{count}", "x")
            count += 1
        asking.result()
    assert asked == sorted(asked)
    assert sum(each.taken for each in ledger.stats().values()) == count
