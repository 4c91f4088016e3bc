"""The progress of one direct call: its limits, what has gone wrong, and what is said of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from attrs import define, field

from adp_async._io.log import logger
from adp_async._sansio.retry import RetryNotice
from adp_async._sansio.texts import counted
from adp_async.errors import AdpError, RequestTimeout, Throttled

if TYPE_CHECKING:
    from adp_async._sansio.endpoints import Endpoint


@define(eq=False, repr=False)
class CallProgress:
    """The state of one direct call: its limits, and what has gone wrong so far."""

    endpoint: Endpoint
    timeout: float
    max_attempts: int
    began: float = field(factory=time.monotonic, init=False)
    attempts: int = field(default=0, init=False)
    last_error: AdpError | None = field(default=None, init=False)
    #: Whether it waits for its turn, because the service throttles.
    is_held: bool = field(default=False, init=False)
    #: Whether an attempt may have taken effect; whether one has no outcome yet.
    maybe_applied: bool = field(default=False, init=False)
    is_under_way: bool = field(default=False, init=False)
    _notice: RetryNotice = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._notice = RetryNotice(self.began)

    def failed(self, error: AdpError) -> None:
        self.last_error = error
        self.is_under_way = False
        self.maybe_applied |= error.maybe_applied
        self.attempts += not isinstance(error, Throttled)  # limited by time alone

    def may_try_again(self, error: AdpError) -> bool:
        if not error.retriable or self.attempts >= self.max_attempts:
            return False
        return self.endpoint.may_be_resent or not error.maybe_applied

    def ends_at(self) -> float:
        """When to give up: after its time limit, or earlier if the set-up may be wrong."""
        patience = getattr(self.last_error, "patience", float("inf"))
        return self.began + min(self.timeout, patience)

    def warn(self, after: float = 0.0) -> None:
        """Log one WARNING that it is still being retried.

        *after*: called by a timer of so many seconds, which may fire a little early.
        """
        now = max(time.monotonic(), self.began + after)
        if not self._notice.is_due(now, in_trouble=self.is_held or self.last_error is not None):
            return
        left = max(0.0, self.ends_at() - now)
        limit = f"up to {left:.0f} s more"
        if self.attempts:
            limit += f", at most {counted(self.max_attempts - self.attempts, 'time')}"
        why = self.last_error or "the service throttles (429), and this call waits for its turn"
        message = "%s: still failing after %.0f s; retrying for %s: %s"
        operation = self.endpoint.operation
        about = {"operation": operation}
        logger.warning(message, operation, now - self.began, limit, why, extra=about)

    def timed_out(self) -> RequestTimeout:
        after = f", after {self.last_error}" if self.last_error else ""
        operation = self.endpoint.operation
        error = RequestTimeout(f"{operation}: no reply within {self.timeout:g} s{after}")
        error.maybe_applied = self.maybe_applied or (self.is_under_way and not self.is_held)
        return error
