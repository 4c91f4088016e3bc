"""When to try again: back-off with full jitter, and what a Retry-After header says."""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any

from attrs import Attribute, field, frozen

from adp_async._sansio import rules

#: The longest a Retry-After is believed.  The header is kept in full below this.
LONGEST_RETRY_AFTER = 3600.0


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
    """How a direct call, and a batch, is tried again.  ValueError if a number makes no sense.

    *first_backoff*: seconds the first wait is drawn from.  With less than a second, the search for
    the limit that a 429 tells of begins at one request in that time.  Default 1 s.
    *max_backoff*: the ceiling that doubling stops at.  Default 60 s.
    *max_attempts*: how often a direct call is sent in all when it keeps failing; being throttled
    doesn't count, only time limits that.  Batches of the logger are tried until the end of the
    session.  Default 8.
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


def parse_retry_after(value: str | None, *, date: str | None = None) -> float | None:
    """Seconds a ``Retry-After`` asks for, or None when there is none that can be read.

    *value* is the header: a number of seconds or an HTTP date.  A date is taken relative to the
    reply's own ``Date`` header, so that no clock of ours plays a part.

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
    if seconds is None or not 0.0 <= seconds < float("inf"):
        return None
    return min(seconds, LONGEST_RETRY_AFTER)


def _seconds(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def _seconds_between(earlier: str | None, later: str) -> float | None:
    if earlier is None:
        return None
    try:
        wait = parsedate_to_datetime(later) - parsedate_to_datetime(earlier)
    except (ValueError, TypeError):  # no date, or one with a time zone and one without
        return None
    return max(0.0, wait.total_seconds())
