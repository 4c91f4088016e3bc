"""Inputs of any content, and what may come of them: an error of ours, or none."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import adp_async
from adp_async.errors import AdpError

if TYPE_CHECKING:
    from collections.abc import Callable

PACKAGE = str(Path(adp_async.__file__).parent)

#: What no message may tell; strategies put it where secrets are.  (It is a literal nowhere:
#: hypothesis tries those of all modules that are imported, other tests too, as plain text as well.)
SECRET = "".join(("never", "to", "be", "told"))


class Hostile:
    """An object whose every method raises, and would tell the secret."""

    def _fail(self, *_: object) -> Any:
        raise RuntimeError(SECRET)

    __float__ = __index__ = __int__ = __str__ = __repr__ = __fspath__ = __eq__ = __bool__ = _fail
    __len__ = __iter__ = __getattr__ = _fail
    __hash__ = None  # type: ignore[assignment]


class Sly(str):
    """A subclass of str that answers otherwise than its content."""

    __slots__ = ()

    def __str__(self) -> str:
        return self

    def __repr__(self) -> str:
        return SECRET

    def strip(self, *_: object) -> str:
        return self


def texts(max_size: int = 40) -> st.SearchStrategy[str]:
    """Any text: control characters and halves of surrogate pairs as well."""
    return st.text(st.characters(exclude_categories=()), max_size=max_size)


def from_parts(*parts: str, most: int = 12) -> st.SearchStrategy[str]:
    """Text that nearly makes sense: *parts* in any order, with anything between them."""
    return st.lists(st.sampled_from(parts) | texts(3), max_size=most).map("".join)


def mutated(good: bytes, most: int = 8) -> st.SearchStrategy[bytes]:
    """*good* with a few bytes replaced, inserted, left out, or cut off."""
    edit = st.tuples(st.integers(0, len(good)), st.integers(0, 3), st.binary(max_size=4))

    def apply(edits: list[tuple[int, int, bytes]]) -> bytes:
        content = good
        for position, removed, inserted in edits:
            content = content[:position] + inserted + content[position + removed :]
        return content

    return st.lists(edit, max_size=most).map(apply)


anything: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**400, -(10**400), 10**5000, 2**63, 2**63 - 1, 2**31, 0, 1]),
    st.floats(),
    st.sampled_from([1e308, 5e-324, 3.2e8, 1e9, -0.0]),
    st.decimals(),
    st.fractions(),
    st.complex_numbers(),
    texts(),
    texts().map(Sly),
    st.just("x" * 100_000),
    st.binary(),
    st.lists(st.integers()),
    st.dictionaries(st.text(), st.just(SECRET)),
    st.sampled_from(
        [
            *(np.float32(2.5), np.int64(3), np.True_, np.str_("a"), np.array([1.0, 2.0])),
            *(np.array(1.0), np.float64("nan"), Decimal("sNaN"), Fraction(1, 3), Path("a")),
            *(datetime(2026, 1, 1), date(2026, 1, 1), timedelta(seconds=5), object, print),
            *(object(), lambda: None, (), frozenset(), memoryview(b"a"), ValueError(SECRET)),
        ]
    ),
    st.builds(Hostile),
)


@pytest.fixture
def try_all(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Check every one of ``--inputs`` inputs (or of *share* of them), each within 20 seconds."""
    inputs = request.config.getoption("inputs")

    def run(strategy: st.SearchStrategy[Any], check: Callable[[Any], None], share: int = 1) -> None:
        @settings(
            max_examples=max(inputs // share, 10),
            deadline=timedelta(seconds=20),
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def each(value: Any) -> None:
            check(value)

        each()

    return run


def ours(call: Callable[[], Any], *kinds: type[Exception]) -> Any:
    """What *call* returns, or None after an error of ours: of *kinds*, or else of any kind."""
    expected = kinds or (AdpError, ValueError, TypeError)
    try:
        return call()
    except expected as error:
        check_error(error)
        return None


def check_error(error: BaseException) -> None:
    """It was raised by us, in words that can be printed, and it tells no secret."""
    message = str(error)
    assert isinstance(error, AdpError) or not isinstance(error, UnicodeError)
    assert isinstance(error, AdpError) or _raised_by(error).startswith(PACKAGE), _raised_by(error)
    assert 0 < len(message) < 3000
    assert message.encode()
    told: BaseException | None = error
    while told is not None:
        assert SECRET not in str(told)
        told = told.__cause__ or (None if told.__suppress_context__ else told.__context__)


def _raised_by(error: BaseException) -> str:
    trace = error.__traceback__
    assert trace is not None
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_code.co_filename
