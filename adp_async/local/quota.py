"""The quota: how many requests a second the platform takes, and how it refuses more."""

from __future__ import annotations

import math
from email.utils import formatdate

from attrs import field, frozen

__all__ = ["Quota", "TokenBucket"]


@frozen
class Quota:
    """At most *rate* requests a second, *burst* at once; beyond that the answer is 429.

    *retry_after*, in seconds, is sent with a refusal; None sends no ``Retry-After``, as the real
    service was seen to do.  It is sent as whole seconds, or as an HTTP date with *as_date*.

    >>> Quota(rate=5).burst
    1.0
    """

    rate: float
    burst: float = field(default=1.0)
    retry_after: float | None = None
    as_date: bool = False

    def headers(self, server_time: float) -> dict[str, str]:
        """The headers of a refusal; *server_time* is Unix time by the platform's clock."""
        if self.retry_after is None:
            return {}
        if self.as_date:
            # Rounded up: an HTTP date has whole seconds, and must not be too early.
            return {
                "retry-after": formatdate(math.ceil(server_time + self.retry_after), False, True)
            }
        return {"retry-after": str(math.ceil(self.retry_after))}


class TokenBucket:
    """Counts requests against a `Quota`.

    >>> bucket = TokenBucket(Quota(rate=2.0, burst=2.0), now=0.0)
    >>> [bucket.take(now) for now in (0.0, 0.0, 0.0, 0.5, 0.5)]
    [True, True, False, True, False]
    """

    def __init__(self, quota: Quota, *, now: float) -> None:
        self.quota = quota
        self._tokens = quota.burst
        self._filled = now

    def take(self, now: float) -> bool:
        """Whether the request that came at *now* (monotonic seconds) is within the quota."""
        grown = self._tokens + (now - self._filled) * self.quota.rate
        self._tokens = min(self.quota.burst, grown)
        self._filled = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
