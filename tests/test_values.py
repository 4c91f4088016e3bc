"""What is taken at the call, what is kept of it, and the messages for invalid values."""

from __future__ import annotations

import json
import math
import uuid
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pytest
from odd import (
    HOSTILE,
    Half,
    Key,
    ManyElements,
    Mute,
    Nameless,
    NoIndex,
    Pairs,
    Safe,
    Scalar,
    Tensor,
    Whole,
    Word,
    alone,
)

from adp_async._sansio.records import BatchLimits
from adp_async._sansio.values import (
    KNOWN_KEYS,
    pairs_of,
    valid_int64,
    valid_key,
    valid_name,
    valid_run_id,
    valid_text,
    valid_value,
)
from adp_async.errors import InvalidRecord, shown

LIMITS = BatchLimits()


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


def test_so_many_good_keys_are_remembered_and_no_more() -> None:
    """Unlimited keys, such as user ids, cost time, not memory."""
    known = {str(number): str(number) for number in range(KNOWN_KEYS - 1)}
    for key in ("last", "one too many"):
        assert valid_key(key, kind="metric", run_id="run", limits=LIMITS, known=known) == key
    assert len(known) == KNOWN_KEYS
    assert "last" in known


def test_a_subclass_of_str_becomes_a_plain_one() -> None:
    """Nothing of the caller's is kept: of an enum its value, of a numpy string the text."""
    for given_key in (np.str_("loss"), Key.LOSS, Word.LOSS, Safe("loss")):
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
        (np.array([1.5]), 1.5),
        (np.array([[0.5]], dtype=np.float32), 0.5),
        (np.array([[3]]), 3.0),
        (np.array([Decimal("0.5")], dtype=object), 0.5),
        (np.longdouble(0.5), 0.5),
        (np.str_("0.5"), 0.5),
        (pd.Series([0.5], index=["loss"]), 0.5),
        (Tensor([2.5]), 2.5),
        (Scalar(2.5), 2.5),
        (Half(0.5), 0.5),
        (Scalar(Half(0.5)), 0.5),
        (Whole(3), 3.0),
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
        (None, "must be a number that float() takes, not None"),
        ("high", "must be a number that float() takes, not this str"),
        ([1.0], "must be a number that float() takes, not list"),
        (1 + 2j, "must be a number that float() takes, not complex"),
        (np.complex128(1 + 2j), "must be a number that float() takes, not complex128"),
        (np.complex64(1 + 2j), "must be a number that float() takes, not complex64"),
        (np.clongdouble(1), "must be a number that float() takes, not clongdouble"),
        (np.array([1j]), "exactly one element, a real number"),
        (
            np.zeros(3),
            "must be a number that float() takes, not ndarray; an array or a tensor must have",
        ),
        (np.zeros(0), "exactly one element"),
        (np.array([None], dtype=object), "exactly one element"),
        (np.ma.masked, "must be a number that float() takes, not MaskedConstant"),
        (np.ma.array([0.5], mask=[True]), "must be a number that float() takes, not MaskedArray"),
        (Tensor([1.0, 2.0]), "exactly one element"),
        (pd.Series([1.0, 2.0]), "exactly one element"),
        (pd.NaT, "must be a number that float() takes, not NaTType"),
        ({}, "must be a number that float() takes, not dict"),
        (float, "must be a number that float() takes, not type"),
        (Fraction(10**400), "must be a number that float() takes, not Fraction"),
        (Decimal("sNaN"), "must be a number that float() takes, not Decimal"),
        (ManyElements(), "must be a number that float() takes, not ManyElements"),
        (10**400, "too large for a double"),
    ],
)
def test_what_float_refuses_is_named(value: object, rule: str) -> None:
    """The type is shown, the value is not: it may be a secret."""
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
        (np.array([5]), 5),
        (np.array([[5.0]]), 5),
        (7.0, 7),
        (-0.0, 0),
        (-float(2**63), -(2**63)),
        (np.float64(7), 7),
        (np.float16(7), 7),
        (np.float32(2**31), 2**31),
        (np.longdouble(7), 7),
        (Decimal(7), 7),
        (Decimal(2**53 + 1), 2**53 + 1),
        (Fraction(14, 2), 7),
        (pd.Series([7]), 7),
        (Whole(7), 7),
        (Tensor([7.0]), 7),
    ],
)
def test_an_int64_is_taken(number: object, whole: int) -> None:
    """Also numpy's, and whatever else is a whole number; a plain int is kept of it."""
    taken = valid_int64(number, what="step", key="loss", run_id="run")

    assert taken == whole
    assert type(taken) is int


@pytest.mark.parametrize("what", ["step", "timestamp"])
@pytest.mark.parametrize(
    ("number", "rule"),
    [
        (1.5, "must be a whole number"),
        (math.nan, "must be a whole number"),
        (np.float64(0.1), "must be a whole number"),
        (np.float32(0.1), "must be a whole number"),
        ("1", "must be an int or a whole number, not str"),
        (b"1", "must be an int or a whole number, not bytes"),
        (None, "must be an int or a whole number, not NoneType"),
        ([1], "must be an int or a whole number, not list"),
        (1 + 0j, "must be an int or a whole number, not complex"),
        (np.complex64(1), "must be an int or a whole number, not complex"),
        (np.array([1, 2]), "must be an int or a whole number, not ndarray"),
        (np.datetime64("2026-01-02"), "must be an int or a whole number, not date"),
        (Decimal("0.5"), "must be an int or a whole number, not Decimal"),
        (Fraction(1, 3), "must be an int or a whole number, not Fraction"),
        (Decimal("sNaN"), "must be an int or a whole number, not Decimal"),
        (NoIndex(), "must be an int or a whole number, not NoIndex"),
        (math.inf, "is outside of int64"),
        (float(2**63), "is outside of int64"),
        (Decimal("1e999999999"), "is outside of int64"),
        (Fraction(10**400), "is outside of int64"),
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
        ("NUL\x00", "NUL\x00"),
        (np.str_("x"), "x"),
        (Safe("x"), "x"),
        (Key.LOSS, "Key.LOSS"),
        (Word.LOSS, "loss"),
    ],
)
def test_a_text_is_written_with_str(value: object, text: str) -> None:
    """Params and tags are strings on the wire; line breaks are their own business."""
    taken = valid_text(value, kind="param", key="k", run_id="run", limits=LIMITS)

    assert (type(taken), taken) == (str, text)


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
    ("value", "rule"),
    [("\udc00", "lone surrogate"), (Mute(LookupError()), "str() failed on a value of type Mute")],
)
def test_a_text_that_cannot_be_written_is_named(value: object, rule: str) -> None:
    """What has no UTF-8, or no text at all."""
    with pytest.raises(InvalidRecord) as caught:
        valid_text(value, kind="tag", key="note", run_id="run", limits=LIMITS)

    assert rule in caught.value.rule


# Run ids


@pytest.mark.parametrize(
    "run_id", ["7", "0123456789abcdef" * 2, "r" * 256, "ü 損失", np.str_("run"), Safe("run")]
)
def test_a_run_id_becomes_plain(run_id: str) -> None:
    """Whatever names a run is taken, and nothing of a subclass is kept."""
    taken = valid_run_id(run_id)

    assert type(taken) is str
    assert taken == str.__str__(run_id)


def test_an_enum_is_its_value() -> None:
    """Not the name of the member, which is what str() gives."""
    assert valid_run_id(Key.LOSS) == valid_run_id(Word.LOSS) == "loss"


@pytest.mark.parametrize(
    ("run_id", "rule"),
    [
        (None, "a str, not NoneType"),
        (7, "a str, not int"),
        (b"run", "a str, not bytes"),
        (["run"], "a str, not list"),
        (uuid.uuid4(), "a str, not UUID; pass its .hex, or str"),
        ("", "must not be empty"),
        (" \n", "must not be empty"),
        ("r" * 257, "at most 256 characters, this one has 257"),
        ("r" * 1_000_000, "at most 256 characters, this one has 1000000"),
        (json.loads(r'"\ud83d"'), "lone surrogate"),
        (np.str_("a\udc80"), "lone surrogate"),
        (Safe("a\nb"), "control characters"),
        ("a\x00", "control characters"),
        ("a\x85b", "control characters"),
        ("a\u2028b", "control characters"),
        ("a\u2029b", "control characters"),
        ("a\u202eb", "control characters"),
        ("\u2066a", "control characters"),
        ("a\u200f", "control characters"),
    ],
)
def test_a_wrong_run_id_is_named_with_its_rule(run_id: object, rule: str) -> None:
    """A ValueError of one line that fits on it, with nothing in front."""
    with pytest.raises(ValueError, match=r"^a run id ") as caught:
        valid_run_id(run_id)

    assert rule in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200
    assert alone(caught.value)


# Mappings


@pytest.mark.parametrize(
    "mapping", [{"a": 1, "b": 2}, pd.Series({"a": 1, "b": 2}), Pairs(iter([("a", 1), ("b", 2)]))]
)
def test_whatever_has_items_is_a_mapping(mapping: object) -> None:
    """A dict, a Series, and what only looks like them."""
    assert pairs_of(mapping, "log_params") == [("a", 1), ("b", 2)]


@pytest.mark.parametrize(
    ("mapping", "rule"),
    [
        (None, "takes a mapping of keys to values, not NoneType"),
        ("loss", "not str; use log_param"),
        ([("loss", 0.5)], "not list"),
        ({"loss"}, "not set"),
        ((pair for pair in ()), "not generator"),
        (7, "not int"),
        (type("Namespace", (), {})(), "not Namespace; pass vars() of it"),
        (dict, "items() of this type failed"),
        (Pairs(None), "items() of this Pairs failed"),
        (Pairs([("a", 1), "ab"]), "items() of this Pairs returned a str"),
        (Pairs([("a", 1, 2)]), "items() of this Pairs returned a tuple"),
        (Pairs([7]), "items() of this Pairs returned a int"),
    ],
)
def test_what_is_no_mapping_is_named(mapping: object, rule: str) -> None:
    """The message says what was given and what to give."""
    with pytest.raises(TypeError, match=r"^log_params takes a mapping") as caught:
        pairs_of(mapping, "log_params", instead="log_param(key, value)")

    assert rule in str(caught.value)
    assert alone(caught.value)


# What all of them share


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_foreign_object_raises_is_not_passed_on(name: str) -> None:
    """Whatever it is, it becomes an error of ours that names the type, with nothing in front."""
    odd = HOSTILE[name]
    for check in (
        lambda: valid_run_id(odd),
        lambda: pairs_of(odd, "log_params"),
        lambda: valid_key(odd, kind="tag", run_id="run", limits=LIMITS, known={"loss": "loss"}),
        lambda: valid_value(odd, key="k", run_id="run"),
        lambda: valid_int64(odd, what="step", key="k", run_id="run"),
        lambda: valid_name(odd, "a name"),
    ):
        with pytest.raises((ValueError, TypeError)) as caught:
            check()
        assert type.__dict__["__name__"].__get__(type(odd)) in str(caught.value)
        assert alone(caught.value)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_who_wants_to_stop_is_not_kept(stop: type[BaseException]) -> None:
    """Ctrl-C in the middle of a conversion is not a fault of the value."""

    class Slow:
        def __float__(self) -> float:
            raise stop

    with pytest.raises(stop):
        valid_value(Slow(), key="k", run_id="run")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a\u202eb", r"'a\u202eb'"),
        ("x" * 10**6, "'" + "x" * 76 + "..."),
        (b"x" * 10**6, "b'" + "x" * 75 + "..."),
        pytest.param(10**5000, "<int>", id="huge"),
        pytest.param(Safe("safe"), "'safe'", id="safe"),
        (Key.LOSS, "'loss'"),
        (True, "True"),
        (None, "None"),
        ({"password": "hunter2"}, "<dict>"),
        (type("Secret\nname", (), {})(), r"<Secret\nname>"),
        pytest.param(Nameless(), "<Nameless>", id="nameless"),
    ],
)
def test_anything_can_be_shown(value: object, text: str) -> None:
    """On one line, short, printable; and nothing of a type that may hold a secret."""
    assert shown(value) == text
