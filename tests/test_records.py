"""Records as they wait: their body on the wire, and the receipts they are."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adp_async._sansio import records
from adp_async._sansio.records import (
    DELIVERED,
    METRIC_COST,
    BatchLimits,
    GivenUp,
    Metric,
    Param,
    RunTag,
    cost_of,
    encode_records,
    spell,
)
from adp_async.errors import Closed, DeliveryError

LIMITS = BatchLimits()


# Bodies


@pytest.mark.parametrize(
    ("value", "spelled"),
    [(math.nan, "NaN"), (math.inf, "Infinity"), (-math.inf, "-Infinity"), (0.5, 0.5), (-0.0, -0.0)],
)
def test_values_are_spelled_as_the_service_reads_them(value: float, spelled: object) -> None:
    """JSON has no NaN and no infinities; the service reads strings in their place."""
    (metric,) = body_of([Metric("loss", value, 1, 2)])["metrics"]

    assert metric == {"key": "loss", "value": spelled, "timestamp": 1, "step": 2}
    assert spell(value) == spelled


def body_of(records: list[Any]) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(encode_records("run", records))
    return body


@pytest.mark.parametrize("key", ['"value":null', 'a"value":null,', "null", "NaN", "\\", "a/b"])
def test_a_key_may_look_like_json(key: str) -> None:
    """What a key or a value says is never taken for the body's own."""
    records = [Metric(key, 0.5, 1, 2), Metric(key, math.nan, 1, 3), Param(key, '"value":null')]

    body = body_of(records)

    assert [metric["key"] for metric in body["metrics"]] == [key, key]
    assert [metric["value"] for metric in body["metrics"]] == [0.5, "NaN"]
    assert body["params"] == [{"key": key, "value": '"value":null'}]


@given(
    values=st.lists(st.floats(width=64), max_size=20),
    key=st.text(st.characters(codec="utf-8"), min_size=1, max_size=30),
)
def test_every_double_arrives_as_it_is(values: list[float], key: str) -> None:
    """Bit for bit, for any key."""
    metrics = [Metric(key, value, 1, step) for step, value in enumerate(values)]

    arrived = body_of(metrics).get("metrics", [])

    for value, metric in zip(values, arrived, strict=True):
        number = float(metric["value"])
        assert metric["key"] == key
        assert number == value or (math.isnan(number) and math.isnan(value))


def test_what_is_empty_is_left_out() -> None:
    """A batch of one tag has no metrics and no params."""
    assert body_of([RunTag("stage", "")]) == {
        "run_id": "run",
        "tags": [{"key": "stage", "value": ""}],
    }


def test_zero_is_not_empty() -> None:
    """Step 0, timestamp 0 and value 0 are sent."""
    assert body_of([Metric("loss", 0.0, 0, 0)])["metrics"] == [
        {"key": "loss", "value": 0.0, "timestamp": 0, "step": 0}
    ]


# Receipts


def test_a_record_tells_what_became_of_it() -> None:
    """Delivered, or given up with the reason; waiting for what has ended returns at once."""
    delivered, refused = Metric("loss", 0.5, 1, 2), Param("lr", "secret")
    delivered.place = DELIVERED
    refused.place = GivenUp(DeliveryError("the service refused it"))

    delivered.wait()
    with pytest.raises(DeliveryError, match="the service refused it"):
        refused.wait()
    assert (delivered.delivered, delivered.done) == (True, True)
    assert (refused.delivered, refused.done) == (False, True)
    assert repr(delivered) == "<Receipt for metric 'loss' | delivered>"
    assert repr(refused) == "<Receipt for param 'lr' | not delivered: DeliveryError>"


async def test_a_record_can_be_awaited_after_its_end() -> None:
    """As often as one likes."""
    record = Metric("loss", 0.5, 1, 2)
    record.place = DELIVERED

    await record
    await record


async def test_a_record_that_no_session_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for nothing: waiting for it is an error, both ways."""
    monkeypatch.setattr(records, "_LOOKS", 3)
    record = Metric("loss", 0.5, 1, 2)

    with pytest.raises(Closed, match="this record was not accepted by a session"):
        record.wait(timeout=5)
    with pytest.raises(Closed, match="this record was not accepted by a session"):
        await record
    assert (record.done, record.delivered) == (False, False)


def test_a_record_that_is_just_being_encoded() -> None:
    """Its place is away for that moment, and looked for until it is back."""

    class Encoded:
        """A record as another thread sees it."""

        wait = records.Record.wait
        looks = iter([None, None, DELIVERED])

        @property
        def place(self) -> object:
            return next(self.looks)

    record = Encoded()
    record.wait(timeout=5)  # type: ignore[misc, arg-type]

    assert next(record.looks, "all used") == "all used"


def test_memory_is_counted() -> None:
    """A metric costs the same whatever it says; a text costs its length besides."""
    assert cost_of(Metric("k" * 200, 0.5, 1, 2)) == METRIC_COST
    assert cost_of(RunTag("note", "x" * 1000)) == METRIC_COST + 1004
    for text in ("x" * 1000, "é" * 1000, "音" * 1000, "🎵" * 1000):
        cost = cost_of(Param("note", text)) - METRIC_COST - len("note")
        assert len(text.encode()) <= cost
        assert sys.getsizeof(text) - sys.getsizeof("") <= cost + 100
