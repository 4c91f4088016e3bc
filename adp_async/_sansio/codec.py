"""Entities to JSON bytes and back: the one converter, and the one place that knows wire names.

Writing: what is None, and an optional sequence that is empty, is left out; NaN and the infinities
become the strings the service reads (JSON has none, and fast encoders write ``null``); a datetime
becomes RFC 3339 in UTC.

Reading is lenient where the service may grow and strict where a value would be wrong: unknown
fields are skipped, unknown enum values stay text, a missing optional field is None and a missing
sequence is ``()``, an int64 may come as text (MLflow does that), a float as ``"NaN"``.  Anything
else of a wrong type raises `UnreadableReply`, which names the field and never the value; so does
an object that has none of the fields of the reply, which is another application's.
"""

from __future__ import annotations

import json
import math
from collections import deque
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
from adp_async._sansio.replies import answered, unreadable
from adp_async._sansio.texts import first_words, printable
from adp_async._sansio.values import is_unicode, scalar_of
from adp_async.entities._fields import ABSENT
from adp_async.errors import shown, type_name

T = TypeVar("T")

_Hook = Callable[[Any, Any], Any]

#: Spelled in camelCase wherever they occur, also among snake_case neighbours.
_CAMEL_CASE_NAMES = frozenset(
    {
        "auth_details",
        "auth_type",
        "compute_key",
        "compute_name",
        "time_end",
        "time_start",
        "workspace_key",
        "workspace_name",
    }
)

#: Entities, and operations as to their arguments, that spell every name in camelCase.
_CAMEL_CASE_OWNERS = frozenset(
    {
        "DeploymentLogCoverage",
        "DeploymentLogDetail",
        "DeploymentLogMessage",
        "DeploymentLogMetadata",
        "DeploymentLogPage",
        "DeploymentLogQuery",
        "DeploymentLogRecords",
        "DeploymentLogSummary",
        "DeploymentOAuthDetails",
        "InferenceInvocationCounts",
        "InferenceInvocationDetails",
        "InferenceInvocationMetadata",
        "InferenceInvocationPage",
        "InferenceInvocationSummary",
        "InferenceInvocationTotals",
        "RegisteredModelPermission",
        "list_registered_model_permissions",
        "manage_registered_model_permission",
        "search_deployment_logs",
        "search_model_deployment_inferences",
    }
)

#: Bytes in JSON are a matter of agreement, and there is none.
_RAW = (bytes, bytearray, memoryview)

_UNREADABLE = (
    BaseValidationError,
    AttributeError,
    KeyError,
    OverflowError,  # an integer beyond every double
    TypeError,
    ValueError,
)


@cache
def wire_name(owner: str, name: str) -> str:
    """How the wire spells *name*, an attribute of the entity or an argument of the operation.

    >>> wire_name("ModelDeployment", "workspace_key"), wire_name("ModelDeployment", "model_name")
    ('workspaceKey', 'model_name')
    """
    if name in _CAMEL_CASE_NAMES or owner in _CAMEL_CASE_OWNERS:
        return camel_case(name)
    return name


@cache
def camel_case(name: str) -> str:
    """A name as the wire spells it in paths, and in the schemas that are Oracle's own.

    >>> camel_case("registered_model_key")
    'registeredModelKey'
    """
    first, *others = name.split("_")
    return first + "".join(part.capitalize() for part in others)


def rfc3339(moment: datetime) -> str:
    """A point in time as the wire has it; a datetime without a time zone is a ValueError.

    >>> rfc3339(datetime.fromisoformat("2026-01-02T03:04:05+01:00"))
    '2026-01-02T02:04:05Z'
    """
    written = ""
    try:
        is_naive = moment.utcoffset() is None
        written = "" if is_naive else moment.astimezone(UTC).isoformat()
    except Exception:  # of a time zone's own, or a moment before year 1 or after 9999
        is_naive = False
    if written:
        return written.replace("+00:00", "Z")
    if is_naive:
        shown_moment = moment.replace(tzinfo=None).isoformat()
        raise ValueError(f"{shown_moment} has no time zone; say datetime.now(UTC) or .astimezone()")
    raise ValueError("the moment cannot be written in UTC, from year 1 to year 9999")


def encode(value: object) -> bytes:
    """JSON for *value*: entities, mappings with names as on the wire, sequences, numbers, text.

    TypeError or ValueError for what JSON or the service can't have; see `plain_json`.

    >>> encode({"run_id": "7", "value": float("nan")})
    b'{"run_id":"7","value":"NaN"}'
    """
    return msgspec.json.encode(plain_json(value, "the body"))


def plain_json(value: object, what: str) -> Any:
    """*value* as dicts, lists, text, numbers that any encoder takes.

    TypeError, or ValueError for text that isn't Unicode, an int beyond 64 bits and a datetime
    without a time zone; they say what is wrong where, beginning with *what*.

    >>> plain_json({"tags": [b"team"]}, "the body")
    Traceback (most recent call last):
    TypeError: the body.tags[0]: a bytes cannot be written as JSON
    """
    try:
        return _plain(value)
    except _Unwritable as found:
        fault = found
    except RecursionError:
        fault = _Unwritable(ValueError, "nested too deeply, or it holds itself")
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
    except Exception:  # whatever a foreign object raises when it is looked at
        raise _unwritable_type(value) from None


def _unwritable_type(value: object) -> _Unwritable:
    return _Unwritable(TypeError, f"a {type_name(value)} cannot be written as JSON")


def _converted(value: Any) -> Any:
    """What is of none of JSON's own types: entities, subclasses, NumPy's scalars, ..."""
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
            # Only None and () are left out: a step of 0 or an empty text is something to say.
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
    """Of each field its name, how the wire spells it, and its default as far as it matters."""
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


def decode(body: bytes, type_: type[T], *, reply: Reply | None = None, operation: str = "") -> T:
    """Read *body* as a *type_*; ``object`` gives plain JSON, and None for an empty body.

    *reply* is whose body it is, the whole of it: then an object without a single field of *type_*
    is not taken for one in which all of them were left out.  *operation* is for the error.
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
        # Python's own reader also takes a bare NaN, which some encoders write.
        return json.loads(body)


def _complaint(body: bytes, type_: type, reply: Reply | None) -> str:
    """What is wrong with *body*, and what answered when it is not the service's at all."""
    try:
        raw = _parse(body)
    except (ValueError, RecursionError):
        size = f"the body is not JSON ({len(body)} bytes)"
        complaint = size if body.strip() else "the body is empty"
        # Half a reply may be full of what was logged.
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
    """What is wrong where, found by the slower converter that keeps track of the path."""
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
    return f"no {getattr(type_, '__name__', type_)}"


@cache
def _converter(*, detailed: bool = False) -> Converter:
    """The converter; a class's own code is made when it is first met, not at import."""
    converter = Converter(detailed_validation=detailed)
    for type_, hook in _SCALARS.items():
        converter.register_structure_hook(type_, hook)
    converter.register_structure_hook_func(_is_as_it_comes, lambda raw, _: raw)
    converter.register_structure_hook_factory(_is_sequence, _sequence_reader(converter))
    converter.register_structure_hook_factory(attrs.has, _entity_reader(converter))
    return converter


def _is_as_it_comes(type_: Any) -> bool:
    # A Literal too: an enum value of tomorrow is text that we don't know yet, no error.
    return type_ is object or get_origin(type_) is Literal


def _is_sequence(type_: Any) -> bool:
    return get_origin(type_) is tuple


def _sequence_reader(converter: Converter) -> Callable[[Any], _Hook]:
    def reader_of(type_: Any) -> _Hook:
        item_list: Any = GenericAlias(list, get_args(type_)[:1])
        read_items = converter.get_structure_hook(item_list)

        def read(raw: Any, _: Any) -> Any:
            return () if raw is None else tuple(read_items(_checked(raw, list), item_list))

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
    """What to read instead of a field that is left out although somebody requires it.

    MLflow leaves empty lists out, also the one that a page is all about.
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


def _wire_float(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


class _WrongType(TypeError):
    """JSON has something else where its text, the kind of value we expect, should be."""


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
