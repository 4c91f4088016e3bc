"""What ``help`` and a notebook's ``Session?`` show of a class that takes settings by keyword."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from inspect import Signature

__all__ = ["SignatureWithKnobs"]


class SignatureWithKnobs:
    """The signature of ``__init__``, with each field of *settings* in place of ``**knobs``.

    A subclass has its own.
    """

    def __init__(self, settings: type[Any]) -> None:
        self._settings = settings

    def __get__(self, instance: object, owner: type) -> Signature:
        if owner.__dict__.get("__signature__") is not self:
            raise AttributeError("__signature__")
        import inspect

        own = inspect.signature(owner.__init__)  # type: ignore[misc]
        _, *given = own.parameters.values()
        explicit = [each for each in given if each.kind is not each.VAR_KEYWORD]
        known = {each.name for each in explicit}
        knobs = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=_default_of(field),
                annotation=field.type,
            )
            for field in attrs.fields(self._settings)
            if field.name not in known
        ]
        return own.replace(parameters=[*explicit, *knobs])


def _default_of(field: attrs.Attribute[Any]) -> object:
    default: Any = field.default
    return default.factory() if hasattr(default, "factory") else default
