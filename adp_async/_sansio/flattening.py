"""Nested configurations made flat, as params are."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

from adp_async._sansio.values import pairs_of
from adp_async.errors import shown

#: Nobody's configuration is as deep; one that holds itself is.
_DEEPEST: Final = 100


def flatten(params: object, sep: str = "/") -> dict[str, object]:
    """A nested configuration as one mapping: ``{"opt": {"lr": 0.1}}`` is ``{"opt/lr": 0.1}``.

    *params*: a mapping (whatever has ``items()``), an ``argparse.Namespace``, an instance of a
    dataclass or of an attrs class, and in it any of these to any depth.  Keys are joined with
    *sep* and written with ``str``.  All other values, lists among them, stay as they are, and so
    does an empty mapping.

    Raises TypeError for *params* of another type, ValueError when two values come to the same
    key, or the nesting is deeper than 100, as that of a mapping which contains itself.

    >>> flatten({"opt": {"name": "sgd", "lr": 0.1}, "layers": [64, 10]})
    {'opt/name': 'sgd', 'opt/lr': 0.1, 'layers': [64, 10]}
    """
    pairs = _parts(params)
    flat: dict[str, object] = {}
    _flatten(pairs_of(params, "flatten") if pairs is None else pairs, "", sep, 1, flat)
    return flat


def _flatten(
    pairs: list[tuple[object, object]], before: str, sep: str, depth: int, flat: dict[str, object]
) -> None:
    if depth > _DEEPEST:
        message = f"flatten: nested deeper than {_DEEPEST}, or within itself, at {shown(before)}"
        raise ValueError(message)
    for name, value in pairs:
        key = f"{before}{name}"
        if inner := _parts(value):
            _flatten(inner, f"{key}{sep}", sep, depth + 1, flat)
        elif key in flat:
            raise ValueError(f"flatten: two values come to the key {shown(key)}")
        else:
            flat[key] = value


def _parts(value: Any) -> list[tuple[object, object]] | None:
    """What *value* is made of; None if it is a value of its own."""
    kind = type(value)
    if dataclasses.is_dataclass(kind):
        return [(each.name, getattr(value, each.name)) for each in dataclasses.fields(value)]
    if hasattr(kind, "__attrs_attrs__"):
        return [(each.name, getattr(value, each.name)) for each in kind.__attrs_attrs__]
    if kind.__name__.endswith("Namespace"):
        return list(vars(value).items())
    if not all(hasattr(kind, name) for name in ("items", "keys", "__getitem__")):
        return None
    # A table, a row for each item, is not a configuration.
    return None if hasattr(kind, "shape") else pairs_of(value, "flatten")
