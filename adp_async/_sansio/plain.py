"""Whatever callers hand in, as plain JSON: dicts, lists, text and numbers that any encoder takes.

What is None, and an optional sequence that is empty, is left out of an entity; NaN and the
infinities become the strings the service reads (JSON has none, and fast encoders write ``null``);
a datetime becomes RFC 3339 in UTC.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any

import attrs
import msgspec

from adp_async._sansio.values import is_unicode, scalar_of
from adp_async._sansio.wire_names import wire_name
from adp_async.errors import shown, type_name

#: There is no agreed way to write bytes in JSON.
_RAW = (bytes, bytearray, memoryview)


def rfc3339(moment: datetime) -> str:
    """A point in time as the wire has it; a datetime without a time zone is a ValueError.

    >>> rfc3339(datetime.fromisoformat("2026-01-02T03:04:05+01:00"))
    '2026-01-02T02:04:05Z'
    """
    written = ""
    try:
        is_naive = moment.utcoffset() is None
        written = "" if is_naive else moment.astimezone(UTC).isoformat()
    except Exception:  # from a foreign time zone, or a moment before year 1 or after 9999
        is_naive = False
    if written:
        return written.replace("+00:00", "Z")
    if is_naive:
        shown_moment = moment.replace(tzinfo=None).isoformat()
        raise ValueError(f"{shown_moment} has no time zone; use datetime.now(UTC) or .astimezone()")
    raise ValueError("the moment cannot be written in UTC, from year 1 to year 9999")


def plain_json(value: object, what: str) -> Any:
    """*value* as dicts, lists, text, numbers that any encoder takes.

    TypeError, or ValueError for text that isn't Unicode, an int beyond 64 bits and a datetime
    without a time zone; the message says where, beginning with *what*.

    >>> plain_json({"tags": [b"team"]}, "the body")
    Traceback (most recent call last):
    TypeError: the body.tags[0]: a bytes cannot be written as JSON
    """
    try:
        return _plain(value)
    except _Unwritable as found:
        fault = found
    except RecursionError:
        fault = _Unwritable(ValueError, "nested too deeply, or contains itself")
    raise fault.kind(f"{what}{''.join(reversed(fault.path))}: {fault.rule}")


class _Unwritable(Exception):
    """What is wrong, and the path to it from the innermost name to the outermost."""

    def __init__(self, kind: type[Exception], rule: str) -> None:
        self.kind = kind
        self.rule = rule
        self.path: list[str] = []


def _plain(value: Any) -> Any:
    kind = type(value)
    if kind is str:
        return _plain_text(value)
    if kind is float:
        return _wire_float(value)
    if kind is int:
        return _plain_int(value)
    if kind is bool or value is None:
        return value
    if kind is dict:
        return _plain_dict(list(value.items()))
    if kind is list or kind is tuple:
        return _plain_list(list(value))
    try:
        return _converted(value)
    except (_Unwritable, RecursionError):
        raise
    except Exception:  # raised by a foreign object
        raise _unwritable_type(value) from None


def _unwritable_type(value: object) -> _Unwritable:
    return _Unwritable(TypeError, f"a {type_name(value)} cannot be written as JSON")


def _converted(value: Any) -> Any:
    """Values that are not of JSON's own types: entities, subclasses, NumPy's scalars, ..."""
    kind = type(value)
    if issubclass(kind, str):
        return _plain_text(str.__str__(value))
    if issubclass(kind, int):
        return _plain_int(int.__int__(value))
    if issubclass(kind, float):
        return _wire_float(float.__float__(value))
    if attrs.has(kind):
        return _plain_entity(value)
    if issubclass(kind, datetime):
        return _plain_moment(value)
    if issubclass(kind, Mapping):
        return _plain_dict(list(value.items()))
    if issubclass(kind, (list, tuple, set, frozenset, deque)):
        return _plain_list(list(value))
    if issubclass(kind, _RAW):
        raise _unwritable_type(value)
    scalar = scalar_of(value)
    if scalar is not value:
        return _plain(scalar)
    # Dataclasses, structs, plain enums, UUIDs, dates, ...
    return _plain(msgspec.to_builtins(value, builtin_types=(*_RAW, datetime), str_keys=True))


def _plain_text(text: str) -> str:
    if not is_unicode(text):
        raise _Unwritable(ValueError, "must be encodable as UTF-8 (it has a lone surrogate)")
    return text


def _plain_int(number: int) -> int:
    if not -(2**63) <= number < 2**64:
        raise _Unwritable(ValueError, "the int is outside of 64 bits")
    return number


def _plain_moment(moment: datetime) -> str:
    try:
        return rfc3339(moment)
    except ValueError as error:
        rule = str(error)
    raise _Unwritable(ValueError, rule)


def _plain_dict(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    name: object = ""
    try:
        for name, value in pairs:
            if not issubclass(type(name), str):
                raise _Unwritable(TypeError, f"a name is a str, not {type_name(name)}")
            plain[_plain_text(str.__str__(name))] = _plain(value)
    except _Unwritable as fault:
        if issubclass(type(name), str):
            fault.path.append(_step(str.__str__(name)))
        raise
    return plain


def _plain_list(items: list[Any]) -> list[Any]:
    plain: list[Any] = []
    try:
        for item in items:
            plain.append(_plain(item))  # noqa: PERF401 - its length says where a fault is
    except _Unwritable as fault:
        fault.path.append(f"[{len(plain)}]")
        raise
    return plain


def _plain_entity(entity: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    name = ""
    try:
        type_: Any = type(entity)
        for name, wire, default in _written_fields(type_):
            value = getattr(entity, name)
            # Only None and () are left out: a step of 0 or an empty text means something.
            if value is None and default is None:
                continue
            if default == () and type(value) is tuple and not value:
                continue
            plain[wire] = _plain(value)
    except _Unwritable as fault:
        fault.path.append(_step(name))
        raise
    return plain


@cache
def _written_fields(type_: Any) -> list[tuple[str, str, object]]:
    """The name of each field, its name on the wire, and its default if that matters."""
    return [
        (
            field.name,
            wire_name(type_.__name__, field.name),
            field.default if field.default in (None, ()) else ...,
        )
        for field in attrs.fields(type_)
    ]


def _step(name: str) -> str:
    return f".{name}" if name.isidentifier() and len(name) <= 80 else f"[{shown(name)}]"


def _wire_float(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
