"""The base of what the service sends: how an entity shows itself, and its line in a table."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self, overload

import attrs

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
#: What the names of times in Unix milliseconds end in.
_TIMES: Final = ("_time", "timestamp", "timestamp_ms")


def moment(milliseconds: int | None) -> datetime | None:
    """*milliseconds* since 1970 as an aware datetime, in UTC.

    None for None, and for what no datetime can hold: the years 1 to 9999.

    >>> moment(1_700_000_000_123).isoformat()
    '2023-11-14T22:13:20.123000+00:00'
    """
    if milliseconds is None:
        return None
    try:
        return _EPOCH + timedelta(milliseconds=milliseconds)
    except OverflowError:
        return None


class Moment:
    """The time in the field called *name*, Unix milliseconds, as an aware datetime in UTC."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.__doc__ = f"*{name}* as an aware datetime in UTC, or None."

    @overload
    def __get__(self, entity: None, owner: type) -> Self: ...

    @overload
    def __get__(self, entity: object, owner: type) -> datetime | None: ...

    def __get__(self, entity: object | None, owner: type) -> Self | datetime | None:
        return self if entity is None else moment(getattr(entity, self._name))


class Entity:
    """Something that the service sends, or takes."""

    __slots__ = ()

    def _row(self) -> dict[str, object]:
        """Its fields by name, those of its parts after a dot, and times as datetimes."""
        row: dict[str, object] = {}
        for each in attrs.fields(type(self)):  # type: ignore[arg-type]  # all subclasses have
            row |= _cells(each.name, getattr(self, each.name))
        return row

    def _repr_html_(self) -> str:
        from adp_async._html import facts  # only a notebook asks

        return facts(self._row())


def _cells(name: str, value: Any) -> dict[str, object]:
    if isinstance(value, Entity):
        return {f"{name}.{inner}": cell for inner, cell in value._row().items()}
    if isinstance(value, tuple):
        if all(hasattr(each, "key") and hasattr(each, "value") for each in value):
            return {f"{name}.{each.key}": each.value for each in value}
        return {name: value}
    if name.endswith(_TIMES) and isinstance(value, int):
        return {name: moment(value) or value}
    return {name: value}
