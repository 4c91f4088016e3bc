"""Checks of settings, for values of any kind.

Each check returns the plain value (a float, an int, a str, not a subclass) or raises ValueError
with the rule that is broken, in words that follow the setting's name: "must be ..., not ...".
Anything that an object's own methods raise counts as a broken rule, and its message is ignored,
since it may quote a secret.
"""

from __future__ import annotations

import math
import operator
import re
from numbers import Number
from typing import Any, Final

__all__ = ["LONGEST", "MOST", "OCID", "count", "require", "seconds", "shown", "text"]

#: The longest duration that can be set: ten years.  Timers and locks overflow after 292.
LONGEST: Final = 10 * 365 * 86_400.0

#: The largest count or size that can be set: the limit of SQLite and other C code.
MOST: Final = 2**63 - 1

# Compiled when first used, so that importing takes no time for it.
OCID: Final = r"(?a)(?=ocid)[\w-]+[.:](?:[\w-]*[.:]){3,}[\w-]+"

_SHOWN: Final = 80
_PRIVATE: Final = r"(?i)-----BEGIN|PRIVATE KEY|pass_?(?:phrase|word)|secret|:\S*@"


def shown(value: object) -> str:
    """*value* for a message: at most 80 printable characters, and nothing that may be a secret.

    >>> shown("a\\nb"), shown(10**400), shown({"pass_phrase": "sesame"})
    ("'a\\\\nb'", 'a huge int', 'a dict')
    """
    try:
        whole = _repr(value)
    except Exception:  # a repr that fails, or a subclass that lies about itself
        return _kind(value)
    if re.search(_PRIVATE, whole):
        return f"{_kind(value)} that may hold a secret"
    if not whole.isprintable():
        whole = whole.encode("unicode_escape").decode("ascii")
    return whole if len(whole) <= _SHOWN else f"{whole[: _SHOWN - 3]}..."


def _repr(value: object) -> str:
    if isinstance(value, str):
        return str.__repr__(str.__getitem__(value, slice(1000)))
    if isinstance(value, int) and abs(value) >= 10**_SHOWN:
        return "a huge int"  # writing it out may take seconds, or fail
    if value is None or isinstance(value, Number):
        return str.__str__(repr(value))
    # Anything else may hold a secret: a configuration, a key as it was read, an error.
    return _kind(value)


def _kind(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name:.40}"


def require(holds: bool, rule: str, value: object) -> None:
    """Raise ValueError, that *value* must be *rule*, unless it *holds*."""
    if not holds:
        message = f"must be {rule}, not {shown(value)}"
        raise ValueError(message)


def seconds(value: Any, *, above: bool = False, most: float = LONGEST) -> float:
    """A duration from 0 (or *above* it) to *most*, from anything `float` accepts except text.

    >>> seconds(2)
    2.0
    """
    rule = f"must be a number of seconds {'>' if above else '>='} 0"
    number = _float(value)
    if number is None or not math.isfinite(number) or number < 0 or (above and number == 0):
        message = f"{rule}, not {shown(value)}"
        raise ValueError(message)
    if number > most:
        message = f"{rule} and at most {most:,.0f} ({most / 86_400:,.0f} days), not {shown(value)}"
        raise ValueError(message)
    return number


def _float(value: Any) -> float | None:
    try:
        is_number = not isinstance(value, str | bytes | bytearray) and not _is_bool(value)
        return float.__float__(float(value)) if is_number else None
    except OverflowError:
        return math.inf
    except Exception:  # not a number, for whatever reason
        return None


def count(value: Any, *, least: int = 1, most: int = MOST) -> int:
    """A whole number from *least* to *most*, from anything `operator.index` accepts."""
    number = _int(value)
    if number is None or not least <= number <= most:
        bound = f" and <= {most:,}" if number is not None and number > most else ""
        message = f"must be an int >= {least}{bound}, not {shown(value)}"
        raise ValueError(message)
    return number


def _int(value: Any) -> int | None:
    try:
        return None if _is_bool(value) else int(operator.index(value))
    except Exception:  # not an int, for whatever reason
        return None


def _is_bool(value: Any) -> bool:
    # NumPy's and torch's own bools are not subclasses of bool, and float() accepts them.
    return isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")


def text(value: Any, rule: str, *, pattern: str, most: int) -> str:
    """Text without the blanks around it that matches *pattern* and has at most *most* characters.

    *rule* is what the value must be, as in "must be an OCID".
    """
    plain = str.__str__(value).strip() if isinstance(value, str) else None
    if plain is not None and len(plain) > most:
        message = f"must have at most {most:,} characters, not {len(plain):,}"
        raise ValueError(message)
    require(plain is not None and bool(re.fullmatch(pattern, plain)), rule, value)
    return plain or ""
