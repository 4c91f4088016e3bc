"""Makes callers' arguments plain: run ids, keys, numbers, texts and mappings.

Each function returns what goes on the wire, as plain ``str``, ``float`` and ``int``, so that
nothing fails later, or raises an error that names the culprit and the rule.  Errors that
a foreign object raises are not passed on: they may hold the value.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Protocol,
    SupportsFloat,
    SupportsIndex,
    SupportsInt,
    TypeAlias,
    TypeVar,
)

from adp_async.errors import InvalidRecord, shown, type_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from adp_async._sansio.records import BatchLimits, Kind

Key = TypeVar("Key", covariant=True)
Value = TypeVar("Value", covariant=True)
T = TypeVar("T")


class SupportsItem(Protocol):
    """An array or tensor: NumPy's, torch's, ..."""

    def item(self) -> Any: ...


class SupportsItems(Protocol[Key, Value]):
    """A mapping, as far as it takes to log what it holds."""

    def items(self) -> Iterable[tuple[Key, Value]]: ...


class Labelled(SupportsItems[Hashable, Value], Protocol[Value]):
    """A ``pandas.Series``, whose labels are of any type as far as a type checker knows."""

    @property
    def index(self) -> Any: ...


MetricValue: TypeAlias = SupportsFloat | SupportsIndex | SupportsItem | str
WholeNumber: TypeAlias = SupportsIndex | SupportsInt | SupportsItem
Metrics: TypeAlias = SupportsItems[str, MetricValue] | Labelled[MetricValue]
Texts: TypeAlias = SupportsItems[str, object] | Labelled[object]

#: MLflow's run ids are 32 characters, and so is the longest the service's specification allows.
#: Another service may allow more, but a megabyte of text is never a run id.
RUN_ID_LENGTH: Final = 256
#: How many valid keys are remembered; others are checked at every call.
KNOWN_KEYS: Final = 10_000
_INT64: Final = 2**63

_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f-\x9f]")
#: Includes characters that break a line, or turn its direction, where a run id is shown.
_UNSHOWABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)


# Text.  `issubclass(type(...), str)`, since `isinstance` trusts what an object says of itself;
# `str.__str__`, since str() of a subclass may return the subclass (Django's SafeString), or the
# name of an enum's member instead of its value.


def valid_run_id(run_id: object) -> str:
    """*run_id* as a plain str; anything that can't be a run's id is a ValueError."""
    if not issubclass(type(run_id), str):
        hint = "; pass its .hex, or str() of it" if type_name(run_id) == "UUID" else ""
        raise ValueError(f"a run id is a str, not {type_name(run_id)}{hint}")
    plain = str.__str__(run_id)
    rule = ""
    if not plain.strip():
        rule = "must not be empty"
    elif len(plain) > RUN_ID_LENGTH:
        rule = f"has at most {RUN_ID_LENGTH} characters, this one has {len(plain)}"
    elif _UNSHOWABLE.search(plain):
        rule = "must not have control characters"
    elif not is_unicode(plain):
        rule = "must be encodable as UTF-8 (it has a lone surrogate)"
    if rule:
        raise ValueError(f"a run id {rule}: {shown(plain)}")
    return plain


def valid_key(
    key: object,
    *,
    kind: Kind,
    run_id: str,
    limits: BatchLimits,
    known: dict[str, str] | None = None,
) -> str:
    """*key* as a plain str that the service can take; *known* holds keys that were valid before."""
    plain: object = key
    rule = ""
    if not issubclass(type(key), str):
        rule = f"a key is a str, not {type_name(key)}"
    else:
        plain = str.__str__(key)
        if known is not None and plain in known:
            return known[plain]
        if not plain:
            rule = "a key must not be empty"
        elif len(plain) > limits.key_length:
            rule = f"a key has at most {limits.key_length} characters, this one has {len(plain)}"
        elif _CONTROL_CHARACTER.search(plain):
            rule = "a key must not have control characters"
        elif not is_unicode(plain):
            rule = "a key must be encodable as UTF-8 (it has a lone surrogate)"
    if rule:
        raise InvalidRecord(run_id=run_id, kind=kind, key=plain, rule=rule)
    if known is not None and len(known) < KNOWN_KEYS:
        known[plain] = plain  # type: ignore[index,assignment]
    return plain  # type: ignore[return-value]


def valid_text(value: object, *, kind: Kind, key: str, run_id: str, limits: BatchLimits) -> str:
    """*value* of a param or tag, written with ``str``."""
    text = value if type(value) is str else text_of(value)
    rule = ""
    longest = limits.param_length if kind == "param" else limits.tag_length
    if text is None:
        rule = f"str() failed on a value of type {type_name(value)}"
    else:
        if len(text) > longest:
            rule = f"a {kind}'s value has at most {longest} characters, this one has {len(text)}"
        elif not is_unicode(text):
            rule = "the value must be encodable as UTF-8 (it has a lone surrogate)"
    if rule:
        raise InvalidRecord(run_id=run_id, kind=kind, key=key, rule=rule)
    return text  # type: ignore[return-value]


def text_of(value: object) -> str | None:
    """*value* written with ``str``; None where that raises."""
    text = _asked(str, value)
    return None if text is None else str.__str__(text)


def valid_name(name: object, what: str) -> str | None:
    """*name* as a plain str, or None; *what* it is the name of."""
    if name is None:
        return None
    if not issubclass(type(name), str):
        raise TypeError(f"{what} is a str, not {type_name(name)}")
    plain = str.__str__(name)
    if not is_unicode(plain):
        raise ValueError(f"{what} must be encodable as UTF-8 (it has a lone surrogate)")
    return plain


def is_unicode(text: str) -> bool:
    """Whether *text* can be sent: JSON is UTF-8, which has no halves of a pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# Numbers


def valid_value(value: object, *, key: str, run_id: str) -> float:
    """*value* as ``float()`` reads it; of an array or a tensor its one element.

    An int beyond 2^53 is rounded to the nearest double, as the service stores it.
    """
    number = number_of(value)
    if number is not None:
        return number
    rule = f"the value must be a number that float() takes, not {_kind_of(value)}"
    if issubclass(type(value), int):
        rule = "the int is too large for a double"
    elif _asked(_has_item, value):
        rule += "; an array or a tensor must have exactly one element, a real number"
    raise InvalidRecord(run_id=run_id, kind="metric", key=key, rule=rule)


def _kind_of(value: object) -> str:
    """What *value* is instead of a number; its content may be secret."""
    if value is None:
        return "None"
    # Of a text such as "0.5" it takes what it says.
    return "this str" if issubclass(type(value), str) else type_name(value)


def valid_int64(number: object, *, what: str, key: str, run_id: str) -> int:
    """*number* as an int64, if it is one or a whole float; *what* is "step" or "timestamp"."""
    if type(number) is int and -_INT64 <= number < _INT64:
        return number
    number = scalar_of(number)
    whole = _asked(_whole, number)
    if whole is None:
        rule = f"the {what} must be an int or a whole number, not {type_name(number)}"
        if issubclass(type(number), float):
            rule = f"the {what} must be a whole number"
    elif not -_INT64 <= whole < _INT64:
        rule = f"the {what} is outside of int64 (-2^63 to 2^63 - 1)"
    else:
        return whole
    raise InvalidRecord(run_id=run_id, kind="metric", key=key, rule=rule)


def number_of(value: object) -> float | None:
    """*value* as ``float()`` reads it; None if it is not a number."""
    return _asked(_float_of, value)


def whole_of(value: object) -> int | None:
    """*value* as an int of any size, if it is one or a whole number."""
    return _asked(_whole, scalar_of(value))


def scalar_of(value: object) -> object:
    """The one element of an array or a tensor; any other *value* as it is.

    ``float()`` accepts ``numpy.array([0.5])`` as well, but with a warning.
    """
    kind = type(value)
    if kind is int or kind is float or issubclass(kind, (float, int, str)):
        return value
    found = _asked(_element_of, value)
    return value if found is None else found[0]


def _has_item(value: object) -> bool:
    return hasattr(type(value), "item")


def _element_of(array: Any) -> tuple[object]:
    mask = getattr(array, "mask", False)
    is_masked = not callable(mask) and bool(mask)  # then the data under the mask is not a value
    return (None,) if is_masked else (array.item(),)


def _float_of(value: Any) -> float | None:
    kind = type(value)
    if kind is float or kind is int:
        return float(value)
    if hasattr(kind, "__len__"):
        value = scalar_of(value)
        kind = type(value)
    if issubclass(kind, str):
        return float(str.__str__(value))
    if issubclass(kind, float):
        return float.__float__(value)
    if not hasattr(kind, "__float__"):
        return float(value)
    if hasattr(kind, "__complex__") and hasattr(kind, "item"):
        return None  # float() drops a part of NumPy's complex numbers, with a warning
    # Not `float()`, which warns when the result is of a subclass.
    return float.__float__(kind.__float__(value))


def _whole(value: Any) -> int | None:
    kind = type(value)
    if issubclass(kind, int):
        return int.__int__(value)
    if hasattr(kind, "__index__"):
        return int.__int__(kind.__index__(value))
    number = float.__float__(value) if issubclass(kind, float) else value
    if number != number:
        return None
    if not -_INT64 <= number < _INT64:
        return _INT64  # Decimal("1e999999999") is never written out
    whole = int.__int__(type(number).__int__(number))
    return whole if whole == number else None


def _asked(question: Callable[[Any], T], value: object) -> T | None:
    """*question* of *value*, or None if that raises: foreign code may raise anything."""
    try:
        return question(value)
    except Exception:
        return None


# Mappings


def pairs_of(mapping: object, what: str, *, instead: str = "") -> list[tuple[object, object]]:
    """The pairs of ``mapping.items()``.  *what* is who takes it, *instead* who takes one pair.

    Raises TypeError for anything else.
    """
    kind = type_name(mapping)
    items = _asked(_items_of, mapping)
    if items is None:
        hint = f"; use {instead} for a single one" if instead else ""
        if kind.endswith("Namespace"):
            hint = "; pass vars() of it"
        raise TypeError(f"{what} takes a mapping of keys to values, not {kind}{hint}")
    pairs = _asked(_listed, items)
    if pairs is None:
        raise TypeError(f"{what} takes a mapping, and items() of this {kind} failed")
    for pair in pairs:
        if type(pair) is not tuple or len(pair) != 2:
            found = type_name(pair)
            raise TypeError(
                f"{what} takes a mapping, and items() of this {kind} returned a {found}"
            )
    return pairs  # type: ignore[return-value]


def _items_of(mapping: Any) -> object:
    return mapping.items


def _listed(items: Any) -> list[object]:
    return list(items())
