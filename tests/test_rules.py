"""How a value is shown in a message, and that no rule believes what a subclass says of itself."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adp_async._sansio import rules
from adp_async._sansio.rules import shown


class Unspeakable(int):
    """An int whose words fail."""

    def __repr__(self) -> str:
        raise RuntimeError("hidden")


class Coloured(int):
    """An int that writes to a terminal."""

    def __repr__(self) -> str:
        return "\x1b[31m7\x1b[0m"


class Half(float):
    """A float that calls itself another one."""

    def __float__(self) -> float:
        return 0.5


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("a\nb\ud800\u202e", r"'a\nb\ud800\u202e'"),
        ("x" * 10**7, f"'{'x' * 76}..."),
        (-1, "-1"),
        (Decimal("1.50"), "Decimal('1.50')"),
        (np.float32(2.5), repr(np.float32(2.5))),
        (None, "None"),
        (True, "True"),
        (10**5000, "a huge int"),
        (Unspeakable(7), "an Unspeakable"),
        (Coloured(7), r"\x1b[31m7\x1b[0m"),
        (b"hidden", "a bytes"),
        (["hidden"], "a list"),
        ({"key": "hidden"}, "a dict"),
        (ValueError("hidden"), "a ValueError"),
        (Path("hidden"), f"a {type(Path()).__name__}"),
        ("-----BEGIN RSA PRIVATE KEY-----\nhidden", "a str that may hold a secret"),
        ("https://me:hidden@example.com", "a str that may hold a secret"),
        ("me:hidden@example.com", "a str that may hold a secret"),
        ("pass_phrase=hidden", "a str that may hold a secret"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_how_values_are_shown(value: Any, words: str) -> None:
    """Short and printable; of what may hold a secret only the type."""
    assert shown(value) == words


def test_the_plain_number() -> None:
    """What is returned is Python's own number, whatever a subclass does later."""
    kept = rules.seconds(Half(2.0))

    assert (type(kept), kept) == (float, 0.5)
    assert type(rules.count(Coloured(7))) is int
    assert rules.count(0, least=0) == 0


def test_the_bounds_are_in_the_message() -> None:
    """The message for a number that is too large names the limit."""
    with pytest.raises(ValueError, match=r">= 0 and at most 60 \(0 days\), not 61\.0$"):
        rules.seconds(61.0, most=60.0)
    with pytest.raises(ValueError, match=r">= 1 and <= 1,000, not 1001$"):
        rules.count(1001, most=1000)
