"""The collector's books: tokens, workers, and what is settled of what they handed over."""

from __future__ import annotations

import pytest

from adp_async._io.handover import Taken
from adp_async._sansio.accumulator import Accumulator
from adp_async._sansio.records import Metric
from adp_async.collector import ledger as books
from adp_async.collector.ledger import Ledger


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
    """One that is within its block is not the one to be forgotten."""
    monkeypatch.setattr(books, "KEPT_WORKERS", 2)
    ledger.worker("within").inside.add("1")
    ledger.worker("outside")
    ledger.worker("new")
    assert set(ledger.workers) == {"within", "new"}


def test_what_is_settled_is_counted_by_worker(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the middle of what one has handed over; keys are remembered up to a number."""
    monkeypatch.setattr(books, "KEPT_KEYS", 1)
    accumulator = Accumulator(linger=0.0)
    lane = accumulator.lane("run")
    for name, keys in (("a", "xy"), ("b", "z"), ("a", "z")):
        records = [Metric(key, 0.5, 1, 0, lane) for key in keys]
        first = lane.next_seq
        accumulator.take_in(records, 0.0)
        taken = Taken(lane, first, lane.next_seq)
        ledger.count(ledger.worker(name), records, taken)
    assert ledger.workers["a"].keys == {"x", "y"}
    for until, settled in ((1, [1, 0]), (3, [2, 1]), (4, [3, 1])):
        monkeypatch.setattr(type(lane), "settled_until", property(lambda _, at=until: at))
        told = ledger.stats()
        assert [told[name].settled for name in "ab"] == settled
        assert told["a"].waiting == 3 - settled[0]
