"""What bad input gets: at the call, naming run, key and rule; and what is not bad input at all."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

from adp_async.errors import InvalidRecord
from adp_async.testing import FakeSession

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from adp_async import Run


@pytest.fixture
async def session() -> AsyncIterator[FakeSession]:
    async with FakeSession() as session:
        yield session


@pytest.fixture
def run(session: FakeSession) -> Run:
    return session.attach_run(session.add_run("the-run"))


class Unconvertible:
    """What `float` and `str` fail on, in a way of its own."""

    def __float__(self) -> float:
        raise RuntimeError("a tensor with many elements")

    def __str__(self) -> str:
        raise RuntimeError("no words")


BAD_KEYS = {
    "no string": (7, "a key is a str, not int"),
    "None": (None, "not None"),
    "bytes": (b"loss", "not bytes"),
    "unhashable": (["loss"], "not list"),
    "empty": ("", "must not be empty"),
    "too long": ("k" * 251, "at most 250 characters, this one has 251"),
    "line break": ("a\nb", "control characters"),
    "NUL": ("a\x00", "control characters"),
    "C1 control": ("a\x85b", "control characters"),
    "lone surrogate": ("a\ud800", "UTF-8"),
}


@pytest.mark.parametrize(("key", "rule"), BAD_KEYS.values(), ids=BAD_KEYS)
async def test_keys(run: Run, session: FakeSession, key: Any, rule: str) -> None:
    """The same rule for metrics, params and tags; nothing of it is taken."""
    for kind, log in (
        ("metric", lambda: run.log_metric(key, 1.0)),
        ("metric", lambda: run.log_metric(key, 1, step=2**40)),
        ("param", lambda: run.log_param(key, 1)),
        ("tag", lambda: run.set_tag(key, 1)),
        ("metric", lambda: session.logger.log_metric("the-run", key, 1.0)),
    ):
        with pytest.raises(InvalidRecord, match=rule) as caught:
            log()
        assert (caught.value.run_id, caught.value.kind, caught.value.key) == ("the-run", kind, key)
        assert str(caught.value).startswith(f"{kind} ")
        assert "of run the-run: " in str(caught.value)
        assert isinstance(caught.value, ValueError)
        assert len(str(caught.value)) < 250
    assert run.stats().accepted == 0


BAD_VALUES = {
    "None": None,
    "text": "many",
    "list": [1.0],
    "dict": {},
    "complex": 1j,
    "array of two": np.array([1.0, 2.0]),
    "what fails in its own way": Unconvertible(),
    "too large an int": 10**400,
}


@pytest.mark.parametrize("value", BAD_VALUES.values(), ids=BAD_VALUES)
async def test_values(run: Run, value: Any) -> None:
    """What `float` refuses is refused, with its type and without its content."""
    with pytest.raises(InvalidRecord, match=r"float\(\)|double") as caught:
        run.log_metric("loss", value)
    assert caught.value.key == "loss"
    assert caught.value.__cause__ is caught.value.__context__ is None
    assert "many" not in str(caught.value)
    assert run.stats().accepted == 0


@pytest.mark.parametrize("what", ["step", "timestamp"])
@pytest.mark.parametrize(
    "number", [1.5, "1", None, 2**63, -(2**63) - 1, float("nan"), [1]], ids=repr
)
async def test_steps_and_timestamps(run: Run, what: str, number: Any) -> None:
    """They are int64s, nothing else; None is 0, and now."""
    if number is None:
        run.log_metric("loss", 1.0, **{what: number})
        return
    with pytest.raises(InvalidRecord, match=what) as caught:
        run.log_metric("loss", 1.0, **{what: number})
    assert caught.value.key == "loss"
    with pytest.raises(InvalidRecord, match=what):
        run.log_metrics({"loss": 1.0}, **{what: number})


async def test_long_texts(run: Run) -> None:
    """A param's value has at most 6,000 characters, a tag's 8,000; it isn't repeated."""
    run.log_param("p", "x" * 6000)
    run.set_tag("t", "ü" * 8000)
    for log in (lambda: run.log_param("p", "x" * 6001), lambda: run.set_tag("t", "x" * 8001)):
        with pytest.raises(InvalidRecord, match="characters, this one has") as caught:
            log()
        assert "xxx" not in str(caught.value)
    for log in (lambda: run.log_param("p", "\udc80"), lambda: run.set_tag("t", "\udc80")):
        with pytest.raises(InvalidRecord, match="surrogate"):
            log()
    with pytest.raises(InvalidRecord, match=r"str\(\) failed") as caught:
        run.log_param("p", Unconvertible())
    assert caught.value.__cause__ is caught.value.__context__ is None
    await run.flush()


async def test_all_or_none(run: Run) -> None:
    """In a dict of many the culprit is named, and none is taken."""
    for culprit, log in (
        ("bad", lambda: run.log_metrics({"a": 1.0, "bad": "x", "c": 2.0})),
        ("", lambda: run.log_metrics({"a": 1.0, "": 1.0})),
        ("bad", lambda: run.log_params({"a": 1, "bad": "x" * 6001, "c": 2})),
        ("bad\n", lambda: run.set_tags({"a": 1, "bad\n": 1})),
    ):
        with pytest.raises(InvalidRecord) as caught:
            log()
        assert caught.value.key == culprit
    assert run.stats().accepted == 0


async def test_a_bad_record_spoils_nothing(run: Run, session: FakeSession) -> None:
    """The session goes on as if the call had not been made."""
    with pytest.raises(InvalidRecord):
        run.log_metric("", 1.0)
    await run.log_metric("loss", 1.0)
    assert len(session.received("the-run").metrics) == 1


GOOD_VALUES = {
    "float": (0.1, 0.1),
    "int": (3, 3.0),
    "int beyond 2^53": (2**53 + 1, float(2**53)),
    "bool": (True, 1.0),
    "Decimal": (Decimal("0.1"), 0.1),
    "Fraction": (Fraction(1, 4), 0.25),
    "text of a number": ("0.5", 0.5),
    "numpy float32": (np.float32(0.5), 0.5),
    "numpy float16": (np.float16(0.5), 0.5),
    "numpy int": (np.int64(7), 7.0),
    "numpy bool": (np.bool_(True), 1.0),
    "0-d array": (np.array(0.25), 0.25),
    "NaN": (math.nan, "NaN"),
    "infinity": (math.inf, "Infinity"),
    "minus infinity": (-math.inf, "-Infinity"),
    "numpy NaN": (np.float64("nan"), "NaN"),
    "smallest": (5e-324, 5e-324),
    "largest": (1.7976931348623157e308, 1.7976931348623157e308),
    "minus zero": (-0.0, -0.0),
}


async def test_good_values(run: Run, session: FakeSession) -> None:
    """Whatever `float` takes is sent, as the service spells it."""
    for key, (value, _) in GOOD_VALUES.items():
        run.log_metric(key.replace("^", ""), value)  # type: ignore[arg-type]
    await run.flush()
    (request,) = session.requests
    sent = {
        metric["key"]: metric["value"] for metric in msgspec.json.decode(request.body)["metrics"]
    }
    assert sent == {key.replace("^", ""): wire for key, (_, wire) in GOOD_VALUES.items()}
    assert math.copysign(1.0, sent["minus zero"]) == -1.0


async def test_good_numbers(run: Run, session: FakeSession) -> None:
    """Steps and timestamps may be any int64, numpy's as well; timestamps come out as given."""
    numbers = [0, -1, 2**62, 2**63 - 1, -(2**63), np.int32(5), True]
    for number in numbers:
        run.log_metric("loss", 1.0, step=number, timestamp=7)
    run.log_metric("loss", 1.0, timestamp=np.int64(1_700_000_000_000))
    await run.flush()
    metrics = session.received("the-run").metrics
    assert [metric.step for metric in metrics] == [*map(int, numbers), 0]
    assert [metric.timestamp for metric in metrics] == [7] * 7 + [1_700_000_000_000]


async def test_values_are_not_kept(run: Run, session: FakeSession) -> None:
    """What is logged is what was at the call, whatever becomes of the object."""
    loss = np.array(1.0)
    run.log_metric("loss", loss)  # type: ignore[arg-type]
    loss[...] = 2.0
    await run.flush()
    assert session.received("the-run").metrics[0].value == 1.0


async def test_good_keys_and_texts(run: Run, session: FakeSession) -> None:
    """Letters of all scripts, spaces, slashes and colons; values of any type by `str`."""
    keys = ["Verlust/Größe", "損失", "a b:c-d_e.f", "k" * 250]
    for key in keys:
        run.log_metric(key, 1.0)
        run.log_param(key, {"depth": 3})
        run.set_tag(key, None)
    run.set_tag("text", 'line\nbreak, "quotes", \\ and \x00')
    run.log_param("empty", "")
    await run.flush()
    received = session.received("the-run")
    assert [metric.key for metric in received.metrics] == keys
    assert received.params == [*((key, "{'depth': 3}") for key in keys), ("empty", "")]
    assert received.tags[-1] == ("text", 'line\nbreak, "quotes", \\ and \x00')
