"""How much was logged and what became of it, and whether delivery works.

Frozen facts; `_io.counting` makes them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from attrs import asdict, field, frozen

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

__all__ = ["Health", "Stats"]

HealthStatus = Literal["ok", "holding", "failing"]


@frozen
class Stats:
    """How much was logged, and what became of it.

    *accepted* is the sum of *delivered*, *rejected*, *dropped*, *waiting*, *in_flight* and
    *spooled*.  *rejected* counts by the class of the error.  *dropped* counts what found no room,
    what was discarded, and what a session without a spool had not delivered when it ended.
    *spooled* is on disk only; after the end, for the next session.  *requests*, *retries* and
    *throttled* (429s) count log-batch requests of the whole session.  *oldest*: seconds the oldest
    record has waited, 0 when none does.
    """

    accepted: int = 0
    delivered: int = 0
    rejected: Mapping[str, int] = field(factory=dict)
    dropped: int = 0
    waiting: int = 0
    in_flight: int = 0
    spooled: int = 0
    requests: int = 0
    retries: int = 0
    throttled: int = 0
    oldest: float = 0.0

    @property
    def undelivered(self) -> int:
        """Records that are still on their way."""
        return self.waiting + self.in_flight + self.spooled

    def _repr_html_(self) -> str:
        from adp_async._html import facts  # only a notebook asks

        rejected = [f"{name}: {count:,}" for name, count in self.rejected.items()]
        counts = {
            name.replace("_", " "): f"{value:,}" if isinstance(value, int) else value
            for name, value in asdict(self, recurse=False).items()
        }
        return facts(
            {
                **counts,
                "rejected": ", ".join(rejected) or "0",
                "oldest": f"{self.oldest:.1f} s",
            }
        )


@frozen
class Health:
    """Whether delivery works, for a probe or a person.

    *status*: ``"ok"``; ``"holding"`` when records wait although the service answers, for it asked
    for that (429) or does not take those of some run; ``"failing"`` when nobody gets through, or
    the session can deliver no more.  *since*: since when, an aware datetime in UTC.  *last_error*:
    the last error that a log-batch got, also when all is well again; None when there was none.
    *waiting*: records that are still on their way.
    """

    status: HealthStatus
    since: datetime
    last_error: BaseException | None = None
    waiting: int = 0

    def _repr_html_(self) -> str:
        from adp_async._html import facts  # only a notebook asks

        last = self.last_error
        error = None if last is None else f"{type(last).__name__}: {last}"
        return facts(
            {
                "delivery": self.status,
                "since": self.since,
                "last error": error,
                "waiting": f"{self.waiting:,}",
            }
        )
