"""Makes texts from outside fit for a terminal, a log or an error: printable, short, no values.

A service's message may repeat what was logged, an intermediary's page may repeat the request, and
either may hold escape sequences.  Everything that is shown of them goes through here.
"""

from __future__ import annotations

import json
import re
from functools import cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: Patterns are compiled at their first use, when something has gone wrong: all of them would add a
#: tenth to the time of our import.
_pattern = cache(re.compile)

#: What replaces a value.
HIDDEN: Final = "..."

#: How much of a body is searched for its first words.
_PAGE_BYTES: Final = 16 * 1024

#: How much of a message is searched: a hundred params and their old values can be megabytes.
_MESSAGE_CHARACTERS: Final = 16 * 1024


def printable(text: str, limit: int = 200) -> str:
    """*text* in one line of at most *limit* characters, all harmless to a terminal.

    Controls, escapes, line breaks, bidirectional and invisible format characters, lone surrogates
    and what Unicode has not assigned become spaces, and a run of spaces becomes one.

    >>> printable("run\\x1b[31m 7\\u202e\\r\\nINFO forged")
    'run [31m 7 INFO forged'
    """
    text = text[: 8 * limit]
    if not text.isprintable():
        text = "".join([each if each.isprintable() else " " for each in text])
    return " ".join(text.split())[:limit]


def first_words(body: bytes, limit: int = 200) -> str:
    """The first words of *body*, without markup, values and unprintable characters.

    >>> first_words(b"<html><head><title>Sign in</title><style>p {}</style></head><p>Who is it?")
    'Sign in Who is it?'
    """
    text = body[:_PAGE_BYTES].decode("utf-8", errors="replace")
    if "<" in text:
        text = _without_markup(text)
    # Only a short text is searched for values: one that is cut extends to the end.
    return printable(without_values(" ".join(text.split())[: 8 * limit]), limit)


# Searches from a place onward, each of which ends the loop when it finds nothing: linear, where
# one pattern for all of it takes a tenth of a second for a page of "<".
_UNSEEN: Final = r"(?i)<(script|style)(?=[\s/>])"


def _without_markup(text: str) -> str:
    parts: list[str] = []
    at = 0
    while (start := text.find("<", at)) >= 0:
        parts.append(text[at:start])
        if text.startswith("<!--", start):
            at = text.find("-->", start) + 3
            if at < 3:
                return " ".join(parts)
            continue
        if unseen := _pattern(_UNSEEN).match(text, start):
            end = _pattern(rf"(?i)</{unseen[1].lower()}").search(text, unseen.end())
            if end is None:
                return " ".join(parts)
            start = end.start()
        end_of_tag = text.find(">", start)
        if end_of_tag < 0:
            parts.append(text[start:])
            return " ".join(parts)
        at = end_of_tag + 1
    parts.append(text[at:])
    return " ".join(parts)


# ------------------------------------------------------------------ values

#: Where values begin in the messages of MLflow, of the databases behind it and of readers of JSON.
#: `_ENDS` says by the name of the group where each of them ends.
_VALUE_AHEAD: Final = r"""(?ix)
  (?P<json>       \b invalid [ ] value [ ] (?!for\b) )
| (?P<rest>       \b logged [ ] with [ ] value= (?=') )
| (?P<parameters> \[parameters: [ ] )
| (?P<row>        \b Failing [ ] row [ ] contains [ ] (?=\() )
| (?P<key>        \b Key [ ] \( [^()]{0,200} \b value \b [^()]{0,200} \) = (?=\() )
| (?P<entry>      \b Duplicate [ ] entry [ ] (?=['"]) )
| (?P<model>      \b Malformed [ ] model [ ] info\.\s* )
| (?P<got>        \b got [ ] (?=['"]) )
| (?P<quoted>     value s? [ ] (?: (?: of | is | was | from | to | at ) [ ] )? (?=['"]) )
| (?P<literal>    value s? ["']? \s* [:=] \s*
                | (?<=["']) input ["'] \s* : \s*
                | \b from [ ] String [ ] (?=['"])
                | \b invalid [ ] input [ ] syntax [ ] for [^:"]{0,80} : [ ] (?=['"]) )
"""

#: The arguments of which MLflow's "Invalid value ... for parameter" shows nothing that was logged.
_NAMES = frozenset(
    {
        "experiment_id",
        "experiment_ids",
        "key",
        "max_results",
        "name",
        "order_by",
        "page_token",
        "run_id",
        "run_uuid",
        "stage",
        "step",
        "timestamp",
        "version",
    }
)

_FOR_PARAMETER: Final = r" for parameter '([^']{0,300})'"
_FOR_SOMETHING: Final = r"(?is).* (?=for (?:metric|param|parameter|tag) ')"
_QUOTED: Final = {"'": r"(?s)'(?:[^'\\]|\\.)*'", '"': r'(?s)"(?:[^"\\]|\\.)*"'}
_BARE: Final = r"[^\s,;)}\]]+"
_BEHIND_A_VALUE = frozenset(" ,;:.)}]'\"\n\r\t")
_read_json_at = json.JSONDecoder().raw_decode


def without_values(text: str) -> str:
    """*text*, a message of the service, with ``...`` in place of logged values.

    Keys, indices and rules are kept.

    >>> without_values("Params were already logged='[{'key': 'lr', 'old_value': '1'}]'.")
    "Params were already logged='[{'key': 'lr', 'old_value': ...}]'."
    >>> without_values("Invalid value \\"x\\" for parameter 'metrics[7].value' supplied.")
    "Invalid value ... for parameter 'metrics[7].value' supplied."
    """
    text = text[:_MESSAGE_CHARACTERS]
    parts: list[str] = []
    at = 0
    while (found := _pattern(_VALUE_AHEAD).search(text, at)) is not None:
        start = found.end()
        end, is_value = _ENDS[found.lastgroup or ""](text, start)
        parts += text[at:start], HIDDEN if is_value and end > start else text[start:end]
        at = end
    return "".join([*parts, text[at:]])


def _end_of_json(text: str, start: int) -> tuple[int, bool]:
    """MLflow: ``Invalid value <JSON> for parameter '<path>'``, and the path may be a key's."""
    try:
        _, end = _read_json_at(text, start)
        parameter = _pattern(_FOR_PARAMETER).match(text, end)
    except (ValueError, RecursionError):
        parameter = None
    if parameter is not None:
        is_name = parameter[1].rpartition(".")[2] in _NAMES
        return (parameter.end(), False) if is_name else (end, True)
    # MLflow 2 has the value as it is, whatever it holds: so the last place where it may end.
    if (before := _pattern(_FOR_SOMETHING).match(text, start)) is not None:
        return before.end() - 1, True
    return (_end_of_quoted(text, start) if text[start : start + 1] in _QUOTED else len(text)), True


def _end_of_literal(text: str, start: int) -> tuple[int, bool]:
    """Python, JSON, or one word."""
    first = text[start : start + 1]
    if first in _QUOTED:
        return _end_of_quoted(text, start), True
    if first and first in "[{(":
        return _end_of_brackets(text, start), True
    if (bare := _pattern(_BARE).match(text, start)) is None:
        return start, False
    # "value: must be a number" is a rule; "value: 0.5" and "value=abc" are not.
    is_rule = text[start - 2 : start] == ": " and bare[0].isalpha() and bare[0].islower()
    return bare.end(), not is_rule


def _end_of_quoted(text: str, start: int) -> int:
    quoted = _pattern(_QUOTED[text[start]]).match(text, start)
    end = quoted.end() if quoted else len(text)
    # Where quotes were put around a text as it is, one inside a word isn't the last.
    while end < len(text) and text[end] not in _BEHIND_A_VALUE:
        end = text.find(text[start], end) + 1 or len(text)
    return end


def _end_of_brackets(text: str, start: int) -> int:
    depth, at = 0, start
    while at < len(text):
        each = text[at]
        if each in _QUOTED and (quoted := _pattern(_QUOTED[each]).match(text, at)):
            at = quoted.end()
            continue
        depth += (each in "[{(") - (each in ")}]")
        at += 1
        if depth == 0:
            return at
    return len(text)


def _end_of_prose(text: str, start: int) -> tuple[int, bool]:
    """MLflow 2: ``Param value '<as it is>' had length 6001, which exceeded ...``."""
    end = text.rfind(f"{text[start]} had length ", start + 1)
    return (_end_of_quoted(text, start) if end < 0 else end + 1), True


def _end_at_last_quote(text: str, start: int) -> tuple[int, bool]:
    return (text.rfind(text[start], start + 1) + 1 or len(text)), True


def _end_before(what: str) -> Callable[[str, int], tuple[int, bool]]:
    """Before the last *what*, which no value can bring forward; without it, all the rest."""

    def end_of(text: str, start: int) -> tuple[int, bool]:
        end = text.rfind(what, start)
        return (len(text) if end < 0 else end), True

    return end_of


def _end_of_text(text: str, start: int) -> tuple[int, bool]:
    return len(text), True


#: From the text and the place where a value begins: where it ends, and whether it is one.
_ENDS: Mapping[str, Callable[[str, int], tuple[int, bool]]] = {
    "json": _end_of_json,
    "rest": _end_of_text,
    "parameters": _end_before("\n(Background on"),
    "row": _end_before("\n[SQL:"),
    "key": _end_before(" already exists"),
    "entry": _end_before(" for key"),
    "model": _end_before(" is not a valid JSON"),
    "got": _end_at_last_quote,
    "quoted": _end_of_prose,
    "literal": _end_of_literal,
}


def not_delivered_yet(count: int) -> str:
    """What is said of *count* records when somebody has stopped waiting for them."""
    return f"{counted(count, 'record')} not delivered yet; the session keeps trying"


def counted(count: int, what: str, ending: str = "s") -> str:
    """*count* and *what*, with its *ending* unless the count is 1.

    >>> counted(1, "run"), counted(2000, "process", "es")
    ('1 run', '2,000 processes')
    """
    return f"{count:,} {what}{'' if count == 1 else ending}"
