"""Retry tokens and request ids: unique, not secret."""

from __future__ import annotations

import itertools
import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Self


class Tokens:
    """Makes tokens of 32 hex digits: 64 random bits of its own, then a count.

    They take one system call in all: where those are slow (in a sandbox, say), a ``uuid4`` for
    every request costs as much as encoding a batch of a thousand metrics.
    """

    def __init__(self) -> None:
        self._prefix = uuid.uuid4().hex[:16]
        self._count = itertools.count(1)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        return self()

    def __call__(self) -> str:
        """The next one.  From any thread."""
        return f"{self._prefix}{next(self._count):016x}"
