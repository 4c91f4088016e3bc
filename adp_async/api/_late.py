"""The families of a session as attributes that are imported at their first use.

Their classes are a third of the time that importing the package would take.
"""

from __future__ import annotations

from functools import cached_property
from importlib import import_module
from typing import Any, TypeVar

T = TypeVar("T")


class Late(cached_property[T]):
    """A family of operations, created at its first use from *where*, a class in `adp_async.api`.

    *doc* is the attribute's docstring.
    """

    def __init__(self, where: str, doc: str) -> None:
        super().__init__(self._made)
        self._where = where
        self.__doc__ = doc

    def _made(self, session: Any) -> T:
        return self._kind()(session)  # type: ignore[no-any-return]

    def _kind(self) -> Any:
        module, _, name = self._where.rpartition(".")
        return getattr(import_module(f"adp_async.api.{module}"), name)


class LateTwin(Late[T]):
    """The same for a blocking session: it waits for the family of its asynchronous *session*."""

    def _made(self, session: Any) -> T:
        family = getattr(session.session, self.attrname or "")
        return self._kind()(family, session)  # type: ignore[no-any-return]
