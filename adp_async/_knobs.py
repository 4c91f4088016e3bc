"""The knobs of `Settings`: the rule of each, and where its value is found.

A rule takes whatever was given and returns the plain value (None: as it is), or raises ValueError
with what it must be.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import attrs
from attrs import field, frozen

from adp_async._sansio import rules
from adp_async._sansio.rules import require, shown
from adp_async.errors import misconfigured

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike

    from adp_async.errors import ConfigurationError

T = TypeVar("T")
Rule = Callable[[Any], Any]

#: Locks and timers take no more; on Windows that is 49 days.
_LONGEST: Final = min(rules.LONGEST, threading.TIMEOUT_MAX)

#: Numbers of the environment: plain digits, as Python writes them.
_INT: Final = r"[+-]?[0-9]+(?:_[0-9]+)*"
_FLOAT: Final = rf"(?:{_INT}(?:\.[0-9]*)?|[+-]?\.[0-9]+)(?:[eE][+-]?[0-9]+)?"


# ------------------------------------------------------------------ rules


def _seconds(value: Any) -> float:
    return rules.seconds(value, most=_LONGEST)


def _some_seconds(value: Any) -> float:
    return rules.seconds(value, above=True, most=_LONGEST)


def _switch(value: Any) -> None:
    require(isinstance(value, bool), "True or False", value)


def _overflow(value: Any) -> str:
    return rules.text(value, "'block' or 'drop'", pattern="block|drop", most=100)


def _spool(value: Any) -> None:
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    is_path = isinstance(path, str) and bool(path)
    require(isinstance(value, bool) or is_path, "True, False or a folder", value)
    if isinstance(path, str):
        absolute_folder(path)


def absolute_folder(path: str | PathLike[str]) -> Path:
    """*path* from the root, its ``~`` expanded; ValueError with the rule that it breaks."""
    path = os.fspath(path)
    is_encodable = path.encode("utf-8", "replace").decode() == path
    is_name = "\0" not in path and is_encodable
    require(is_name, "a folder without NUL and surrogates in its name", path)
    try:
        folder = Path(path).expanduser()
        # With an empty HOME, ~ would expand to the root folder.
        is_nowhere = os.environ.get("HOME") == "" and (path == "~" or path.startswith("~/"))
        if is_nowhere or (not folder.is_absolute() and path.startswith("~")):
            message = f"{path!r:.80} has no home folder to start from: HOME is empty or relative"
            raise ValueError(message)
        return folder.absolute()
    except RuntimeError:
        message = f"{path!r:.80} has no home folder to start from: the user has none, or is unknown"
        raise ValueError(message) from None
    except OSError:
        message = f"{path!r:.80} is relative, and there is no working folder"
        raise ValueError(message) from None


def _ca_bundle(value: Any) -> str | PathLike[str] | None:
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if value is not None and (not isinstance(path, str) or not path or "\0" in path):
        message = f"must be a file of certificates, or a folder of them, not {shown(value)}"
        raise ValueError(message)
    found: str | PathLike[str] | None = value
    return found


def _agent(value: Any) -> None:
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    is_path = isinstance(path, str) and bool(path) and "\0" not in path
    require(value is None or is_path, "the path of an agent's socket, or of its file", value)


def instance_of(kind: type, called: str) -> Rule:
    """A rule for objects of a class of ours."""

    def rule(value: Any) -> None:
        if not isinstance(value, kind):
            message = f"must be {called}, not {type(value).__name__:.40}"
            raise ValueError(message)

    return rule


# ------------------------------------------------------------------ text of the environment

_SWITCHES: Final = {
    **dict.fromkeys(("on", "true", "yes", "1"), True),
    **dict.fromkeys(("off", "false", "no", "0"), False),
}


def _switch_from(text: str) -> bool:
    switch = _SWITCHES.get(text.lower())
    if switch is None:
        message = f"must be on or off, not {shown(text)}"
        raise ValueError(message)
    return switch


def _spool_from(text: str) -> bool | str:
    return _SWITCHES.get(text.lower(), text)


def _float_from(text: str) -> float:
    return float(_number_from(text, "a number such as 0.5, without a unit", _FLOAT))


def _int_from(text: str) -> int:
    return int(_number_from(text, "a whole number such as 100, without a unit", _INT))


def _number_from(text: str, rule: str, pattern: str) -> str:
    if len(text) > 100 or not re.fullmatch(pattern, text):
        message = f"must be {rule}, not {shown(text)}"
        raise ValueError(message)
    return text


# ------------------------------------------------------------------ knobs


@frozen
class Kind:
    """What a knob takes: the *rule* for values, and how text of the environment is *read*."""

    rule: Rule
    read: Callable[[str], Any] = str


SECONDS: Final = Kind(_seconds, _float_from)
SOME_SECONDS: Final = Kind(_some_seconds, _float_from)
COUNT: Final = Kind(rules.count, _int_from)
SWITCH: Final = Kind(_switch, _switch_from)
OVERFLOW: Final = Kind(_overflow)
SPOOL: Final = Kind(_spool, _spool_from)
CA_BUNDLE: Final = Kind(_ca_bundle)
AGENT: Final = Kind(_agent)


def knob(default: T, kind: Kind, *, variable: str = "", also: str = "", fix: str = "") -> T:
    """A field of *kind*, which can come from an environment *variable* as well.

    The variable is ``ADP_ASYNC_<NAME>`` unless it has a name of its own.  *also*: a variable of
    other tools, read when that one isn't set.
    """
    metadata = {
        "rule": kind.rule,
        "read": kind.read,
        "variable": variable,
        "also": also,
        "fix": fix,
    }
    found: T = field(default=default, kw_only=True, metadata=metadata)
    return found


def by_its_rule(_: type, knobs: list[attrs.Attribute[Any]]) -> list[attrs.Attribute[Any]]:
    """Every field becomes what its rule returns, however a `Settings` is made."""
    return [knob.evolve(converter=partial(_argument, knob)) for knob in knobs]


def _argument(knob: attrs.Attribute[Any], value: object) -> Any:
    return checked(knob, value, f"the argument {knob.name}")


def checked(knob: attrs.Attribute[Any], value: object, looked: str | Callable[[], str]) -> Any:
    """*value* by the rule of *knob*; `ConfigurationError` that names where it was *looked* for."""
    try:
        found = knob.metadata["rule"](value)
        return value if found is None else found
    except ValueError as error:
        problem = str(error)
    except Exception as error:  # raised by the object's own methods
        problem = f"{shown(value)} cannot be used: it raised {type(error).__name__}"
    where = looked if isinstance(looked, str) else looked()
    raise misconfigured(knob.name, problem, looked=where, fix=_fix(knob)) from None


def variable_of(knob: attrs.Attribute[Any]) -> str:
    """The environment variable of one field of `Settings`."""
    return knob.metadata["variable"] or f"ADP_ASYNC_{knob.name.upper()}"


def variables_of(knob: attrs.Attribute[Any]) -> tuple[str, ...]:
    """The variables that are read for it; the first one that is set wins."""
    also = knob.metadata.get("also")
    return (variable_of(knob), also) if also else (variable_of(knob),)


def found_in(environ: Mapping[str, str], knob: attrs.Attribute[Any]) -> str | None:
    """The first of its variables that is set, and not empty or blank."""
    return next((name for name in variables_of(knob) if environ.get(name, "").strip()), None)


def _fix(knob: attrs.Attribute[Any]) -> str:
    known: str = knob.metadata["fix"]
    return known or f"Pass {knob.name}=, or set {variable_of(knob)} in the environment."


def from_environment(knob: attrs.Attribute[Any], variable: str, text: str) -> Any:
    """The value that *text*, found in *variable*, sets; `ConfigurationError`."""
    looked = f"the environment's {variable}"
    try:
        value = knob.metadata["read"](text)
    except ValueError as error:
        raise misconfigured(knob.name, str(error), looked=looked, fix=_fix(knob)) from None
    return checked(knob, value, looked)


def missing(knob: attrs.Attribute[Any]) -> ConfigurationError:
    """The error of a session that needs *knob*, which is not set."""
    looked = f"the argument {knob.name} and the environment's {variable_of(knob)}"
    return misconfigured(knob.name, "is missing", looked=looked, fix=_fix(knob))
