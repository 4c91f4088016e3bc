"""Odd values: what is a number, a text or a mapping in its own way, and what only pretends.

For every test of what comes in from callers.
"""

from __future__ import annotations

import traceback
import warnings
from enum import Enum, StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from attrs import define, field

import adp_async

if TYPE_CHECKING:
    from adp_async.testing import FakeSession

LOG_BATCH = "log_experiment_run_batch"

OURS = str(Path(adp_async.__file__).parent)


def alone(error: BaseException) -> bool:
    """Whether a traceback shows nothing but *error*."""
    return error.__cause__ is None and (error.__context__ is None or error.__suppress_context__)


def frames_of_ours(error: BaseException) -> int:
    """How many frames of this package a traceback of *error* shows."""
    frames = traceback.extract_tb(error.__traceback__)
    return sum(frame.filename.startswith(OURS) for frame in frames)


def is_ours(error: BaseException) -> bool:
    """Whether *error* was raised here, on purpose: by our own frame, with words, and alone."""
    frames = traceback.extract_tb(error.__traceback__)
    raised_here = frames[-1].filename.startswith(OURS) and "raise " in (frames[-1].line or "")
    return raised_here and bool(str(error)) and alone(error)


@define
class Arrived:
    """What came of one run, in order: metrics with key, value and step, params and tags."""

    metrics: list[tuple[str, float | str, int]] = field(factory=list)
    params: list[tuple[str, str]] = field(factory=list)
    tags: list[tuple[str, str]] = field(factory=list)

    @property
    def records(self) -> int:
        return len(self.metrics) + len(self.params) + len(self.tags)


def arrived(session: FakeSession) -> dict[str, Arrived]:
    """What a service that takes everything was sent, by run: the bytes themselves are read."""
    runs: dict[str, Arrived] = {}
    for request in session.requests:
        if request.operation == LOG_BATCH:
            body = msgspec.json.decode(request.body)
            run = runs.setdefault(body["run_id"], Arrived())
            run.metrics += [
                (one["key"], one["value"], one["step"]) for one in body.get("metrics", ())
            ]
            run.params += [(one["key"], one["value"]) for one in body.get("params", ())]
            run.tags += [(one["key"], one["value"]) for one in body.get("tags", ())]
    return runs


class Scalar:
    """A number that is not a float, but can become one."""

    def __init__(self, value: float) -> None:
        self._value = value

    def __float__(self) -> float:
        return self._value


class Half(float):
    """What `float` warns of when it is the answer."""


class Whole:
    def __init__(self, value: int) -> None:
        self._value = value

    def __index__(self) -> int:
        return self._value

    def __str__(self) -> str:
        return "whole"


class Tensor:
    """What a torch tensor looks like that requires a gradient: `float` of it warns."""

    def __init__(self, values: list[float]) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def __float__(self) -> float:
        warnings.warn("converting a tensor with requires_grad=True to a scalar", stacklevel=1)
        return self._values[0]

    def __str__(self) -> str:
        return "tensor"

    def item(self) -> float:
        if len(self._values) != 1:
            raise RuntimeError("a Tensor with 2 elements cannot be converted to Scalar")
        return self._values[0]


class ManyElements:
    def __float__(self) -> float:
        raise RuntimeError("a Tensor with 3 elements cannot be converted to Scalar")


class NoIndex:
    def __index__(self) -> int:
        raise ValueError("only integer tensors of a single element can be converted to an index")


class Key(str, Enum):  # noqa: UP042 - the old way, whose str() is the member's name
    LOSS = "loss"


class Word(StrEnum):
    LOSS = "loss"


class Safe(str):
    """Django's SafeString: text that gives itself for its text."""

    __slots__ = ()

    def __str__(self) -> str:
        return self

    def __repr__(self) -> str:
        raise LookupError("nothing to show")


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise LookupError("not even this")


class Mute:
    """Asked for anything at all, it raises."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def _raise(self, *_: object) -> Any:
        raise self._error

    __str__ = __repr__ = __float__ = __index__ = __hash__ = __eq__ = __len__ = __bool__ = _raise
    items = keys = item = __iter__ = __getitem__ = __format__ = __lt__ = __le__ = _raise


class Liar:
    """A type and an object that answer no question of theirs truthfully."""

    @property
    def __class__(self) -> type:  # type: ignore[override]
        return str


class Meta(type):
    def __hash__(cls) -> int:
        raise LookupError("no hash")

    def __eq__(cls, other: object) -> bool:
        raise LookupError("no equal")

    @property
    def __name__(cls) -> str:
        raise LookupError("no name")


class Nameless(metaclass=Meta):
    pass


class Pairs:
    """Whatever has `items`."""

    def __init__(self, items: Any) -> None:
        self._items = items

    def items(self) -> Any:
        return self._items


#: Objects that raise what they like.  By name: pytest itself can't show them.
HOSTILE: dict[str, object] = {
    "RuntimeError": Mute(RuntimeError("no")),
    "RecursionError": Mute(RecursionError("no")),
    "MemoryError": Mute(MemoryError()),
    "an error that raises": Mute(UnspeakableError()),
    "a class that lies": Liar(),
    "a metaclass that raises": Nameless(),
}
