"""Entities to JSON bytes and back: the one converter.

What is written is plain JSON, see `plain`.

Reading is lenient where the service may grow and strict where a value would be wrong: unknown
fields are skipped, unknown enum values stay text, a missing optional field is None and a missing
sequence is ``()``, an int64 may come as text (MLflow does that), a float as ``"NaN"``.  Anything
else of a wrong type raises `UnreadableReply`, which names the field and never the value; so does
an object that has none of the fields of the reply, which is another application's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from types import GenericAlias
from typing import Any, Literal, TypeVar, get_args, get_origin

import attrs
import msgspec
from cattrs import BaseValidationError, Converter, transform_error
from cattrs.gen import make_dict_structure_fn, override

from adp_async._sansio.messages import Reply
from adp_async._sansio.plain import plain_json
from adp_async._sansio.replies import answered, unreadable
from adp_async._sansio.texts import first_words, printable
from adp_async._sansio.wire_names import wire_name
from adp_async.entities._fields import ABSENT
from adp_async.entities._keyed import Keyed

T = TypeVar("T")

_Hook = Callable[[Any, Any], Any]

_UNREADABLE = (
    BaseValidationError,
    AttributeError,
    KeyError,
    OverflowError,  # an integer beyond every double
    TypeError,
    ValueError,
)


def encode(value: object) -> bytes:
    """JSON for *value*: entities, mappings with names as on the wire, sequences, numbers, text.

    TypeError or ValueError for what JSON or the service can't have; see `plain_json`.

    >>> encode({"run_id": "7", "value": float("nan")})
    b'{"run_id":"7","value":"NaN"}'
    """
    return msgspec.json.encode(plain_json(value, "the body"))


def decode(body: bytes, type_: type[T], *, reply: Reply | None = None, operation: str = "") -> T:
    """Read *body* as a *type_*; ``object`` gives plain JSON, and None for an empty body.

    *reply* is the one whose whole body it is: then an object without a single field of *type_* is
    an error, not an object that leaves all of them out.  *operation* is for the error.
    """
    try:
        return _read(body, type_, is_whole=reply is not None)
    except (*_UNREADABLE, msgspec.MsgspecError, RecursionError):
        complaint = _complaint(body, type_, reply)
    raise unreadable(reply or Reply(0), operation, complaint)


def _read(body: bytes, type_: type[T], *, is_whole: bool) -> T:
    if type_ is object:
        return _parse(body) if body.strip() else None  # type: ignore[return-value]
    raw = _parse(body)
    if is_whole and _is_of_another(raw, type_):
        raise _WrongType(type_.__name__)
    return _converter().structure(raw, type_)


def _is_of_another(raw: Any, type_: type) -> bool:
    """Whether *raw* has fields, and none of them is *type_*'s.  MLflow leaves out what is empty."""
    if not isinstance(raw, dict) or not raw or not attrs.has(type_):
        return False
    return raw.keys().isdisjoint(_wire_names(type_))


@cache
def _wire_names(type_: Any) -> frozenset[str]:
    return frozenset(wire_name(type_.__name__, field.name) for field in attrs.fields(type_))


def _parse(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError:
        # Python's own reader also accepts a bare NaN, which some encoders write.
        return json.loads(body)


def _complaint(body: bytes, type_: type, reply: Reply | None) -> str:
    """What is wrong with *body*, and what answered if it wasn't the service."""
    try:
        raw = _parse(body)
    except (ValueError, RecursionError):
        size = f"the body is not JSON ({len(body)} bytes)"
        complaint = size if body.strip() else "the body is empty"
        # Half a reply may be full of logged values.
        words = "" if body.lstrip()[:1] in (b"{", b"[") else first_words(body)
        return _with_author(complaint, reply, repr(words) if words else "")
    complaint = _by_field(raw, type_)
    if not _is_of_another(raw, type_):
        return complaint
    names = ", ".join(repr(printable(name, 40)) for name in list(raw)[:5])
    return _with_author(complaint, reply, f"an object with {names}")


def _with_author(complaint: str, reply: Reply | None, body: str) -> str:
    return f"{complaint}: {answered(reply, body)}" if reply else complaint


def _by_field(raw: Any, type_: type) -> str:
    """What is wrong, and where: found by the slower converter, which tracks the path."""
    try:
        _converter(detailed=True).structure(raw, type_)
    except _UNREADABLE as detailed:
        found = transform_error(detailed, path=type_.__name__, format_exception=_fault)
        return "; ".join(found[:3])
    return f"none of the fields of {type_.__name__} is there"


def _fault(error: BaseException, type_: type | None) -> str:
    # Never the error's own text: Python puts the value into it.
    if isinstance(error, KeyError):
        return "missing"
    if isinstance(error, _WrongType):
        return f"wrong type, expected {error}"
    return f"not a valid {getattr(type_, '__name__', type_)}"


@cache
def _converter(*, detailed: bool = False) -> Converter:
    """The converter; code for a class is generated at its first use, not at import."""
    converter = Converter(detailed_validation=detailed)
    for type_, hook in _SCALARS.items():
        converter.register_structure_hook(type_, hook)
    converter.register_structure_hook_func(_is_as_it_comes, lambda raw, _: raw)
    converter.register_structure_hook_factory(_is_sequence, _sequence_reader(converter))
    converter.register_structure_hook_factory(attrs.has, _entity_reader(converter))
    return converter


def _is_as_it_comes(type_: Any) -> bool:
    # A Literal too: a future enum value is text we don't know yet, not an error.
    return type_ is object or get_origin(type_) is Literal


def _is_sequence(type_: Any) -> bool:
    return get_origin(type_) in (tuple, Keyed)


def _sequence_reader(converter: Converter) -> Callable[[Any], _Hook]:
    def reader_of(type_: Any) -> _Hook:
        item_list: Any = GenericAlias(list, get_args(type_)[:1])
        read_items = converter.get_structure_hook(item_list)
        kind: Callable[[Any], Any] = get_origin(type_)

        def read(raw: Any, _: Any) -> Any:
            return kind(() if raw is None else read_items(_checked(raw, list), item_list))

        return read

    return reader_of


def _entity_reader(converter: Converter) -> Callable[[Any], _Hook]:
    def reader_of(type_: Any) -> _Hook:
        read_whole = make_dict_structure_fn(type_, converter, **_overrides(type_))
        when_absent = _when_absent(type_)

        def read(raw: Any, _: Any) -> Any:
            _checked(raw, dict)
            try:
                return read_whole(raw, type_)
            except _UNREADABLE:
                # The common case pays nothing for the rare one: a field left out or null.
                given = {key: value for key, value in raw.items() if value is not None}
                return read_whole(when_absent | given, type_)

        return read

    return reader_of


def _when_absent(type_: Any) -> dict[str, object]:
    """Defaults for required fields that a reply leaves out.

    MLflow leaves out empty lists, even the items of a page.
    """
    instead: dict[str, object] = {}
    for field in attrs.fields(type_):
        if ABSENT in field.metadata or _is_sequence(field.type):
            instead[wire_name(type_.__name__, field.name)] = field.metadata.get(ABSENT, [])
    return instead


def _overrides(type_: Any) -> dict[str, Any]:
    """How each field of an entity is spelled."""
    return {
        field.name: override(rename=wire_name(type_.__name__, field.name))
        for field in attrs.fields(type_)
    }


class _WrongType(TypeError):
    """JSON has a value of another kind; its message is the kind that is expected."""


def _checked(raw: Any, expected: type) -> Any:
    if not isinstance(raw, expected):
        raise _WrongType(_JSON_KIND[expected])
    return raw


def _read_int(raw: Any, _: Any) -> int:
    if type(raw) is int:
        return raw
    if isinstance(raw, str) or (isinstance(raw, float) and raw.is_integer()):
        return int(raw)
    raise _WrongType(_JSON_KIND[int])


def _read_float(raw: Any, _: Any) -> float:
    if type(raw) is float:
        return raw
    if isinstance(raw, (int, str)) and not isinstance(raw, bool):
        return float(raw)
    raise _WrongType(_JSON_KIND[float])


def _read_text(raw: Any, _: Any) -> str:
    return str(_checked(raw, str))


def _read_bool(raw: Any, _: Any) -> bool:
    return bool(_checked(raw, bool))


def _read_datetime(raw: Any, _: Any) -> datetime:
    """A moment in time; one without a zone is the service's, so UTC."""
    moment = datetime.fromisoformat(_checked(raw, str))
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


_JSON_KIND: Mapping[type, str] = {
    str: "text",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}

_SCALARS: Mapping[type, _Hook] = {
    str: _read_text,
    int: _read_int,
    float: _read_float,
    bool: _read_bool,
    datetime: _read_datetime,
}
