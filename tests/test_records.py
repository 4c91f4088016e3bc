"""Records at the call: what is taken, how it is written, and what a wrong one is told."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    valid_int64,
    valid_key,
    valid_text,
    valid_value,
)
from adp_async.errors import DeliveryError, InvalidRecord

LIMITS = BatchLimits()


class Tensor:
    """What a torch scalar looks like: no float, but it can become one."""

    def __init__(self, value: float) -> None:
        self._value = value

    def __float__(self) -> float:
        return self._value


class ManyElements:
    def __float__(self) -> float:
        raise RuntimeError("a Tensor with 3 elements cannot be converted to Scalar")


class NoIndex:
    def __index__(self) -> int:
        raise ValueError("only integer tensors of a single element can be converted to an index")


class Key(str, Enum):  # noqa: UP042 - the old way, whose str() is the member's name
    LOSS = "loss"


class Mute:
    def __str__(self) -> str:
        raise LookupError("nothing to say")


def key_rule(key: object) -> InvalidRecord:
    with pytest.raises(InvalidRecord) as caught:
        valid_key(key, kind="metric", run_id="run-7", limits=LIMITS)
    return caught.value


# Keys


@pytest.mark.parametrize(
    ("key", "rule"),
    [
        (7, "a key is a str, not int"),
        (None, "a key is a str, not NoneType"),
        (b"loss", "a key is a str, not bytes"),
        (["loss"], "a key is a str, not list"),
        ("", "must not be empty"),
        ("k" * 251, "at most 250 characters, this one has 251"),
        ("a\nb", "control characters"),
        ("a\x00", "control characters"),
        ("\x7f", "control characters"),
        ("\x85", "control characters"),
        ("\ud800", "lone surrogate"),
    ],
)
def test_a_wrong_key_is_named_with_its_rule(key: object, rule: str) -> None:
    """The error names run, kind, key and rule, and is a ValueError as well."""
    error = key_rule(key)

    assert rule in error.rule
    assert (error.run_id, error.kind, error.key) == ("run-7", "metric", key)
    assert "run-7" in str(error)
    assert rule in str(error)
    assert isinstance(error, ValueError)


def test_a_long_key_is_not_shown_in_full() -> None:
    """A message stays a message, and can be written to any terminal."""
    assert len(str(key_rule("k" * 100_000))) < 250
    assert str(key_rule("\ud800")).isprintable()


@pytest.mark.parametrize(
    "key", ["loss", "k" * 250, "a b/c.d-e_f:g", "ü", "損失", "\U0001f600", 'say "value":null', "\\"]
)
def test_any_other_key_is_taken_as_it_is(key: str) -> None:
    """Which characters it likes is the service's business; it tells for each record."""
    assert valid_key(key, kind="metric", run_id="run", limits=LIMITS) == key


def test_a_subclass_of_str_becomes_a_plain_one() -> None:
    """Nothing of the caller's is kept: of an enum its value, of a numpy string the text."""
    for given_key in (np.str_("loss"), Key.LOSS):
        key = valid_key(given_key, kind="metric", run_id="run", limits=LIMITS)

        assert (type(key), key) == (str, "loss")


# Values


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (0.25, 0.25),
        (3, 3.0),
        (True, 1.0),
        (2**53 + 1, 2.0**53),
        (-(10**300), -1e300),
        (Decimal("0.1"), 0.1),
        (Fraction(1, 4), 0.25),
        ("0.5", 0.5),
        (np.float32(0.5), 0.5),
        (np.float64(0.5), 0.5),
        (np.float16(0.5), 0.5),
        (np.int64(-3), -3.0),
        (np.uint8(200), 200.0),
        (np.bool_(True), 1.0),
        (np.array(1.5), 1.5),
        (Tensor(2.5), 2.5),
        (float("inf"), math.inf),
        (np.float32("-inf"), -math.inf),
    ],
)
def test_whatever_float_takes(value: object, number: float) -> None:
    """Scalars of numpy and torch, 0-d arrays, Decimal, bool: a plain float is kept of each."""
    taken = valid_value(value, key="loss", run_id="run")

    assert taken == number
    assert type(taken) is float


@pytest.mark.parametrize("value", [math.nan, np.float32("nan"), Decimal("nan"), "nan"])
def test_nan_is_a_value(value: object) -> None:
    """A diverged loss is worth knowing."""
    assert math.isnan(valid_value(value, key="loss", run_id="run"))


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        (None, "does not take a value of type NoneType"),
        ("high", "does not take a value of type str"),
        ([1.0], "does not take a value of type list"),
        (1 + 2j, "does not take a value of type complex"),
        (np.zeros(3), "does not take a value of type ndarray"),
        (ManyElements(), "does not take a value of type ManyElements"),
        (10**400, "too large for a double"),
    ],
)
def test_what_float_refuses_is_named(value: object, rule: str) -> None:
    """The type is told, the value is not: it may be a secret."""
    with pytest.raises(InvalidRecord) as caught:
        valid_value(value, key="loss", run_id="run-7")

    assert rule in caught.value.rule
    assert (caught.value.run_id, caught.value.key) == ("run-7", "loss")
    assert "high" not in str(caught.value)


# Steps and timestamps


@pytest.mark.parametrize(
    ("number", "whole"),
    [
        (0, 0),
        (-7, -7),
        (True, 1),
        (2**63 - 1, 2**63 - 1),
        (-(2**63), -(2**63)),
        (np.int32(5), 5),
        (np.uint64(5), 5),
        (np.array(5), 5),
    ],
)
def test_an_int64_is_taken(number: object, whole: int) -> None:
    """Also numpy's, and a plain int is kept of it."""
    taken = valid_int64(number, what="step", key="loss", run_id="run")

    assert taken == whole
    assert type(taken) is int


@pytest.mark.parametrize("what", ["step", "timestamp"])
@pytest.mark.parametrize(
    ("number", "rule"),
    [
        (1.0, "is an int, not float"),
        ("1", "is an int, not str"),
        (None, "is an int, not NoneType"),
        (np.float64(1), "is an int, not float64"),
        (NoIndex(), "is an int, not NoIndex"),
        (2**63, "is outside of int64"),
        (-(2**63) - 1, "is outside of int64"),
        (np.uint64(2**63), "is outside of int64"),
    ],
)
def test_what_is_no_int64_is_named(what: str, number: object, rule: str) -> None:
    """Whether it was the step or the timestamp stands in the message."""
    with pytest.raises(InvalidRecord) as caught:
        valid_int64(number, what=what, key="loss", run_id="run-7")

    assert f"the {what} {rule}" in caught.value.rule
    assert (caught.value.run_id, caught.value.key) == ("run-7", "loss")


# Texts


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("adam", "adam"),
        ("", ""),
        (0.1, "0.1"),
        (None, "None"),
        (True, "True"),
        ([1, 2], "[1, 2]"),
        (np.float64(0.1), "0.1"),
        ("two\nlines", "two\nlines"),
    ],
)
def test_a_text_is_written_with_str(value: object, text: str) -> None:
    """Params and tags are strings on the wire; line breaks are their own business."""
    assert valid_text(value, kind="param", key="k", run_id="run", limits=LIMITS) == text


@pytest.mark.parametrize(("kind", "longest"), [("param", 6000), ("tag", 8000)])
def test_a_text_that_is_too_long_is_named(kind: Any, longest: int) -> None:
    """The limit counts characters, and is another one for params than for tags."""
    fits = "ü" * longest
    assert valid_text(fits, kind=kind, key="k", run_id="run", limits=LIMITS) == fits

    with pytest.raises(InvalidRecord) as caught:
        valid_text(f"{fits}!", kind=kind, key="note", run_id="run-7", limits=LIMITS)

    assert f"at most {longest} characters, this one has {longest + 1}" in caught.value.rule
    assert (caught.value.run_id, caught.value.kind, caught.value.key) == ("run-7", kind, "note")
    assert "üüü" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "rule"), [("\udc00", "lone surrogate"), (Mute(), "str() failed on a value of type")]
)
def test_a_text_that_cannot_be_written_is_named(value: object, rule: str) -> None:
    """What has no UTF-8, or no text at all."""
    with pytest.raises(InvalidRecord) as caught:
        valid_text(value, kind="tag", key="note", run_id="run", limits=LIMITS)

    assert rule in caught.value.rule


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
    assert repr(delivered) == "<Metric 'loss' delivered>"
    assert repr(refused) == "<Param 'lr' not delivered: DeliveryError>"


async def test_a_record_can_be_awaited_after_its_end() -> None:
    """As often as one likes."""
    record = Metric("loss", 0.5, 1, 2)
    record.place = DELIVERED

    await record
    await record


def test_memory_is_counted() -> None:
    """A metric costs the same whatever it says; a text costs its length besides."""
    assert cost_of(Metric("k" * 200, 0.5, 1, 2)) == METRIC_COST
    assert cost_of(RunTag("note", "x" * 1000)) == METRIC_COST + 1004
