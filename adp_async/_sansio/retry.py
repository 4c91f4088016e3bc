"""When to retry, and when to say so: back-off with full jitter, and a Retry-After header."""

from __future__ import annotations

import re
from functools import partial
from typing import Any, Final

from attrs import Attribute, define, field, frozen

from adp_async._sansio import rules
from adp_async._sansio.signing import parse_http_date

#: The longest Retry-After that is obeyed.  A shorter one is obeyed in full.
LONGEST_RETRY_AFTER = 3600.0

#: A direct call that is being retried logs that, so many seconds after its first attempt began.
TELL_AFTER: Final = 2.0

# `float` accepts more than a header may hold: "1_0", "1e3", digits of other scripts.
_SECONDS: Final = re.compile(r"[0-9]+(?:\.[0-9]+)?")


def _by_its_rule(_: type, fields: list[Attribute[Any]]) -> list[Attribute[Any]]:
    return [each.evolve(converter=partial(_checked, each)) for each in fields]


def _checked(number: Attribute[Any], value: object) -> Any:
    try:
        return number.metadata["rule"](value)
    except ValueError as error:
        message = f"RetryPolicy: {number.name} {error}"
        raise ValueError(message) from None


_ABOVE_ZERO = {"rule": partial(rules.seconds, above=True)}
_ONE_OR_MORE = {"rule": rules.count}


@frozen(field_transformer=_by_its_rule)
class RetryPolicy:
    """How direct calls and batches are retried.  ValueError for a number that makes no sense.

    *first_backoff*: the longest first wait, in seconds.  If it is less than a second, the search
    for the rate limit after a 429 begins at one request in that time.  Default 1 s.
    *max_backoff*: the ceiling that doubling stops at.  Default 60 s.
    *max_attempts*: the most attempts of a direct call; throttled ones don't count, only time
    limits those.  Batches of the logger are retried until the end of the session.  Default 8.
    """

    first_backoff: float = field(default=1.0, metadata=_ABOVE_ZERO)
    max_backoff: float = field(default=60.0, metadata=_ABOVE_ZERO)
    max_attempts: int = field(default=8, metadata=_ONE_OR_MORE)

    def delay(self, attempt: int, *, jitter: float, retry_after: float = 0.0) -> float:
        """Seconds to wait after failed attempt number *attempt*, counted from 1.

        *jitter* is a draw from [0, 1).  A ``Retry-After`` is kept in full and the jitter goes on
        top, so that throttled clients don't come back as one herd.

        >>> policy = RetryPolicy(first_backoff=1.0, max_backoff=60.0)
        >>> [policy.delay(n, jitter=0.5) for n in (1, 2, 3, 9)]
        [0.5, 1.0, 2.0, 30.0]
        """
        ceiling = min(self.max_backoff, self.first_backoff * 2.0 ** min(attempt - 1, 32))
        return retry_after + jitter * ceiling


@define(eq=False)
class RetryNotice:
    """When a direct call logs, once, that it is still being retried.

    >>> notice = RetryNotice(began=10.0)
    >>> notice.is_due(11.9, in_trouble=True), notice.is_due(12.0, in_trouble=False)
    (False, False)
    >>> notice.is_due(12.5, in_trouble=True), notice.is_due(13.0, in_trouble=True)
    (True, False)
    """

    began: float
    _told: bool = field(default=False, init=False)

    def is_due(self, now: float, *, in_trouble: bool) -> bool:
        """Whether to log it now.  *in_trouble*: an attempt has failed, or a 429 holds the call."""
        if self._told or not in_trouble or now - self.began < TELL_AFTER:
            return False
        self._told = True
        return True


def parse_retry_after(value: str | None, *, date: str | None = None) -> float | None:
    """Seconds a ``Retry-After`` asks for, or None when there is none that can be read.

    *value* is the header: a number of seconds or an HTTP date.  A date is taken relative to the
    reply's own ``Date`` header, so that our clock doesn't matter.

    >>> parse_retry_after("7")
    7.0
    >>> parse_retry_after("Thu, 05 Jan 2014 21:31:50 GMT", date="Thu, 05 Jan 2014 21:31:40 GMT")
    10.0
    """
    if not value:
        return None
    seconds = _seconds(value.strip())
    if seconds is None:
        seconds = _seconds_between(date, value)
    return None if seconds is None else min(seconds, LONGEST_RETRY_AFTER)


def _seconds(value: str) -> float | None:
    return float(value) if _SECONDS.fullmatch(value) else None


def _seconds_between(earlier: str | None, later: str) -> float | None:
    begin, end = parse_http_date(earlier), parse_http_date(later)
    if begin is None or end is None:
        return None
    return max(0.0, end - begin)
