"""Metrics, params and tags of a run: in their order, and by their keys."""

from __future__ import annotations

from typing import Any, Generic, TypeVar, overload

Item = TypeVar("Item")
Value = TypeVar("Value")
Other = TypeVar("Other")


class Keyed(tuple[Item, ...], Generic[Item, Value]):
    """A tuple of things with a key and a value, which also reads like a mapping.

    Iteration, length and ``[0]`` are the tuple's: they give the things themselves.  ``["lr"]``,
    ``"lr" in``, *keys*, *values*, *items*, *get* and ``dict(...)`` are a mapping's: they give
    values.  Of a key that is there twice, the last one counts.
    """

    __slots__ = ()

    @overload  # type: ignore[override]
    def __getitem__(self, key: str, /) -> Value: ...

    @overload
    def __getitem__(self, key: int, /) -> Item: ...

    @overload
    def __getitem__(self, key: slice, /) -> tuple[Item, ...]: ...

    def __getitem__(self, key: Any, /) -> Any:
        """The value of a key, or the thing at an index; KeyError, IndexError."""
        if not isinstance(key, str):
            return tuple.__getitem__(self, key)
        for each in reversed(self):
            if each.key == key:  # type: ignore[attr-defined]
                return each.value  # type: ignore[attr-defined]
        raise KeyError(key)

    def __contains__(self, key: object, /) -> bool:
        """Whether there is a key, or a thing."""
        return key in self.keys() if isinstance(key, str) else tuple.__contains__(self, key)

    @overload
    def get(self, key: str) -> Value | None: ...

    @overload
    def get(self, key: str, default: Other) -> Value | Other: ...

    def get(self, key: str, default: object = None) -> Any:
        """The value of *key*, or *default*."""
        return self._by_key().get(key, default)

    def keys(self) -> list[str]:
        """Each key once."""
        return list(self._by_key())

    def values(self) -> list[Value]:
        """The value of each key."""
        return list(self._by_key().values())

    def items(self) -> list[tuple[str, Value]]:
        """Each key with its value."""
        return list(self._by_key().items())

    def _repr_html_(self) -> str:
        from adp_async._html import table  # only a notebook asks

        return table([each._row() for each in self]) if self else "none"  # type: ignore[attr-defined]

    def _by_key(self) -> dict[str, Any]:
        return {each.key: each.value for each in self}  # type: ignore[attr-defined]
