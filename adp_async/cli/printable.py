"""Text from outside, made fit for a terminal."""

from __future__ import annotations

from typing import Final

__all__ = ["printable"]

_STAND_IN: Final = "\N{REPLACEMENT CHARACTER}"


def printable(text: str, limit: int = 2000) -> str:
    """*text* without what would steer a terminal or hide: control, bidi and format characters.

    >>> printable("run\\x1b[31m\\u202e\\tX"), printable("a long story", 8)
    ('run\\ufffd[31m\\ufffd X', 'a lon...')
    """
    if len(text) > limit:
        text = f"{text[: max(0, limit - 3)]}..."
    if text.isprintable():
        return text
    return "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character.isspace() else _STAND_IN
