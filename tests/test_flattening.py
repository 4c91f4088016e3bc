"""Nested configurations made flat."""

from __future__ import annotations

import argparse
import doctest
from dataclasses import dataclass, field
from types import SimpleNamespace

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import adp_async
from adp_async._sansio import cleaning, flattening


@dataclass
class Optimizer:
    name: str = "sgd"
    betas: tuple[float, float] = (0.9, 0.99)


@attrs.frozen
class Data:
    path: str = "digits"


@dataclass
class Config:
    lr: float = 0.1
    optimizer: Optimizer = field(default_factory=Optimizer)
    data: Data = field(default_factory=Data)


@pytest.mark.parametrize("module", [cleaning, flattening])
def test_the_examples(module: object) -> None:
    """What the docstrings show is so."""
    result = doctest.testmod(module)  # type: ignore[arg-type]
    assert result.attempted > 0
    assert result.failed == 0


def test_what_is_nested() -> None:
    """Mappings, namespaces, dataclasses and attrs classes, in each other; lists stay."""
    given = argparse.Namespace(
        config=Config(), space=SimpleNamespace(dim=3), layers=[64, {"in": 1}], none=None, empty={}
    )
    assert adp_async.flatten(given, sep=".") == {
        "config.lr": 0.1,
        "config.optimizer.name": "sgd",
        "config.optimizer.betas": (0.9, 0.99),
        "config.data.path": "digits",
        "space.dim": 3,
        "layers": [64, {"in": 1}],
        "none": None,
        "empty": {},
    }


def test_classes_and_arrays_are_values() -> None:
    """A dataclass itself, or an array, is not taken apart."""
    array = np.zeros(3)
    flat = adp_async.flatten({"kind": Config, "weights": array, 3: {4: 5}})
    assert flat == {"kind": Config, "weights": array, "3/4": 5}


@pytest.mark.parametrize("odd", [3, "text", None, [1], {1, 2}])
def test_what_is_not_nested(odd: object) -> None:
    """Anything else is a TypeError that names its type."""
    with pytest.raises(TypeError, match=f"not {type(odd).__name__}"):
        adp_async.flatten(odd)


def test_two_values_of_one_key() -> None:
    """None of them is lost silently."""
    with pytest.raises(ValueError, match="two values come to the key 'a/b'"):
        adp_async.flatten({"a": {"b": 1}, "a/b": 2})


def test_a_mapping_within_itself() -> None:
    """It is refused; it does not overflow the stack."""
    endless: dict[str, object] = {}
    endless["self"] = endless
    with pytest.raises(ValueError, match="within itself, at 'self/self"):
        adp_async.flatten(endless)


NESTED = st.recursive(
    st.integers() | st.text(),
    lambda inner: st.dictionaries(st.text("abc", min_size=1), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text("abc", min_size=1), NESTED))
def test_no_value_is_lost(nested: dict[str, object]) -> None:
    """Every value that is not a mapping with entries is there, under the path to it."""

    def leaves(value: object) -> int:
        if isinstance(value, dict) and value:
            return sum(map(leaves, value.values()))
        return 1

    flat = adp_async.flatten(nested)
    assert len(flat) == (leaves(nested) if nested else 0)
    for path, value in flat.items():
        found: object = nested
        for name in path.split("/"):
            assert isinstance(found, dict)
            found = found[name]
        assert found == value
