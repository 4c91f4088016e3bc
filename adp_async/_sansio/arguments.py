"""The types of an operation's arguments, by name, checked before anything is sent.

Most are text.  The others stand in a table here, which a test compares with the signatures of all
methods; so an int in place of an id, or text in place of a flag, never reaches the service.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, Literal, TypeAlias, TypeVar

import attrs

from adp_async._sansio.plain import plain_json, rfc3339
from adp_async._sansio.values import number_of, pairs_of, valid_name, whole_of
from adp_async.errors import shown, type_name

Sort: TypeAlias = Literal[
    "text", "integer", "number", "flag", "moment", "entity", "texts", "entities", "texts or text"
]

Options = TypeVar("Options", bound=Mapping[str, Any])

_SORTS: Final[dict[str, Sort]] = {
    "archive_existing_versions": "flag",
    "assign_registered_model_permission_details": "entity",
    "auth_details": "entity",
    "dataset_inputs": "entities",
    "delete_tags": "entities",
    "deployment_targets": "entities",
    "end_time": "integer",
    "experiment_ids": "texts",
    "experiment_names": "texts",
    "filters": "entity",
    "is_deployment_summary_enabled": "flag",
    "is_overwrite": "flag",
    "is_permanent": "flag",
    "levels": "texts",
    "limit": "integer",
    "max_results": "integer",
    "metrics": "entities",
    "order_by": "texts or text",
    "params": "entities",
    "revoke_registered_model_permission_details": "entity",
    "set_tags": "entities",
    "start_time": "integer",
    "step": "integer",
    "tags": "entities",
    "time_end": "moment",
    "time_start": "moment",
    "timestamp": "integer",
}

#: The keys of `CallOptions`.
_OPTIONS: Final = frozenset({"retry_token", "request_id", "principal", "timeout", "on_reply"})
#: About thirty years: no clock overflows.
MOST_SECONDS: Final = 1e9

#: Names that mean something else in one operation.
_SORTS_OF_ONE_OPERATION: Final[dict[tuple[str, str], Sort]] = {
    ("get_model_deployment_contract", "model_version"): "integer",
    ("list_logged_models", "order_by"): "entities",
    ("log_experiment_run_metric", "value"): "number",
}


def sort_of(operation: str, name: str) -> Sort:
    """What kind of thing the argument *name* of *operation* is."""
    return _SORTS_OF_ONE_OPERATION.get((operation, name)) or _SORTS.get(name, "text")


def checked(operation: str, name: str, value: object) -> Any:
    """*value* as it goes on the wire; None for an empty sequence, which was not given.

    TypeError or ValueError, naming operation and argument.
    """
    what = f"{operation}: {name}"
    sort = sort_of(operation, name)
    if sort == "text" or (sort == "texts or text" and issubclass(type(value), str)):
        return valid_name(value, what)
    if sort == "integer":
        return _integer(value, what)
    if sort == "number":
        return plain_json(_number(value, what), what)
    if sort == "flag":
        return _flag(value, what)
    if sort == "moment":
        return _moment(value, what)
    if sort == "entity":
        return plain_json(_entity(value, what), what)
    return _many(value, what, of_texts=sort != "entities") or None


def checked_options(options: Options, operation: str) -> Options:
    """The options of a call, *timeout* as a float; TypeError or ValueError for invalid ones."""
    if unknown := sorted(options.keys() - _OPTIONS):
        names = ", ".join(map(shown, unknown))
        message = (
            f"{operation or 'the operation'} does not take {names}; `help` lists its arguments"
        )
        raise TypeError(message)
    given: dict[str, Any] = {**options}
    if not callable(given.get("on_reply", callable)):
        raise TypeError(f"on_reply is called with a reply, not {type_name(given['on_reply'])}")
    if "timeout" in given:
        given["timeout"] = _number(given["timeout"], "timeout")
        if not 0.0 <= given["timeout"] <= MOST_SECONDS:
            raise ValueError(f"timeout is a number of seconds from 0 to {MOST_SECONDS:g}")
    return given  # type: ignore[return-value]


def named(values: object, what: str) -> dict[str, Any]:
    """*values* by name, as `adp_async.Session.call` takes them for its path and its query."""
    if values is None:
        return {}
    named: dict[str, Any] = {}
    for name, value in pairs_of(values, what):
        named[valid_name(name, f"a name in {what}") or ""] = value
    return named


def checked_texts(value: object, what: str) -> list[str]:
    """The members of a sequence of str; a str itself is refused, as its letters would be sent."""
    return _many(value, what, of_texts=True)


def query_texts(value: object, what: str) -> list[str]:
    """A value of a query as text, or each member of a list; None is left out."""
    several: list[Any] | None = [value]
    if issubclass(type(value), (list, tuple)):
        several = _items(value)
    if several is None:
        raise TypeError(f"{what} cannot be read: {type_name(value)}")
    return [_query_text(one, what) for one in several if one is not None]


def _query_text(value: object, what: str) -> str:
    kind = type(value)
    if kind is bool:
        return "true" if value else "false"
    if issubclass(kind, str):
        return str(valid_name(value, what))
    if issubclass(kind, datetime):
        return rfc3339(_moment(value, what))
    return str(_integer(value, what, or_else="text, an int, a bool or a datetime"))


def _integer(value: object, what: str, or_else: str = "an int") -> int:
    number = whole_of(value)
    if number is None:
        raise TypeError(f"{what} is {or_else}, not {type_name(value)}")
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{what} is outside of int64 (-2^63 to 2^63 - 1)")
    return number


def _number(value: object, what: str) -> float:
    number = number_of(value)
    if number is None:
        raise TypeError(f"{what} is a number, not {type_name(value)}")
    return number


def _flag(value: object, what: str) -> bool:
    # Or NumPy's own, which cannot be subclassed.
    if type(value) is not bool and type_name(value) not in ("bool", "bool_"):
        raise TypeError(f"{what} is a bool, not {type_name(value)}")
    return number_of(value) == 1.0


def _moment(value: object, what: str) -> datetime:
    if not issubclass(type(value), datetime):
        raise TypeError(f"{what} is a datetime, not {type_name(value)}")
    moment: Any = value
    try:
        rfc3339(moment)
    except ValueError as error:
        rule = str(error)
    else:
        return moment  # type: ignore[no-any-return]
    raise ValueError(f"{what}={rule}")


def _entity(value: object, what: str) -> object:
    if not _is_entity(value):
        raise TypeError(f"{what} is an entity of adp_async.entities, not {type_name(value)}")
    return value


def _many(value: Any, what: str, *, of_texts: bool) -> list[Any]:
    of_what = "str" if of_texts else "entities of adp_async.entities"
    items = _items(value)
    if items is None:
        one = issubclass(type(value), str) and of_texts
        found = "one str: put it into a list" if one else type_name(value)
        raise TypeError(f"{what} is a sequence of {of_what}, not {found}")
    for number, item in enumerate(items):
        if not (issubclass(type(item), str) if of_texts else _is_entity(item)):
            found = type_name(item)
            raise TypeError(f"{what}[{number}]: one of {of_what} is wanted, not {found}")
    return plain_json(items, what)  # type: ignore[no-any-return]


def _items(value: Any) -> list[Any] | None:
    try:
        kind = type(value)
        if issubclass(kind, (str, bytes, bytearray, memoryview, Mapping)):
            return None
        # An iterator would be used up by the first page.
        return None if hasattr(kind, "__next__") else list(value)
    except Exception:  # anything that a foreign __iter__ raises
        return None


def _is_entity(value: object) -> bool:
    try:
        return attrs.has(type(value)) or issubclass(type(value), dict)
    except Exception:  # raised by a metaclass
        return False
