"""Refused records: how many, why, and the last of them by name until they are reported."""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING

from attrs import define, field

from adp_async._sansio.records import KINDS, Metric
from adp_async._sansio.texts import counted
from adp_async.errors import DeliveryError, Rejection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adp_async._sansio.lane import Lane
    from adp_async._sansio.records import AnyRecord
    from adp_async.errors import AdpError

#: Refused records that are kept by name, in all; their memory, error included (measured); and
#: runs whose unreported refusals are counted.
KEPT_REJECTIONS = 1000
REJECTION_COST = 1024
KEPT_RUNS = 10_000


@define(eq=False)
class Rejections:
    """What was refused, of all runs.  *kept*: how many records are kept by name."""

    kept: int = KEPT_REJECTIONS
    #: How many records were refused, by the class of the error.
    by_error: Counter[str] = field(factory=Counter, init=False)
    #: The last unreported refused records, and how many there are of each run.
    last: deque[Rejection] = field(init=False)
    unreported: Counter[str] = field(factory=Counter, init=False)

    def __attrs_post_init__(self) -> None:
        self.last = deque(maxlen=self.kept)

    @property
    def memory(self) -> int:
        """About how many bytes they take."""
        return len(self.last) * REJECTION_COST

    def add(self, lane: Lane, records: Sequence[AnyRecord], error: AdpError) -> list[Rejection]:
        """*records* of *lane* are refused."""
        rejections = [_rejection(lane.run_id, record, error) for record in records]
        self.count(lane, error, len(records))
        lane.last_refused = rejections[-1]
        self.last += rejections[-self.kept :]
        return rejections

    def count(self, lane: Lane, error: AdpError, count: int) -> None:
        """So many records of *lane* are refused, the names of which are not known."""
        name = type(error).__name__
        lane.refused_count += count
        lane.rejected[name] = lane.rejected.get(name, 0) + count
        self.by_error[name] += count
        # Beyond so many runs they are counted together.
        is_known = lane.run_id in self.unreported or len(self.unreported) < KEPT_RUNS
        self.unreported[lane.run_id if is_known else ""] += count

    def of(self, run_id: str | None = None) -> tuple[list[Rejection], int]:
        """What `take` would return; it is still to be reported."""
        if run_id is None:
            return list(self.last), self.unreported.total()
        return [each for each in self.last if each.run_id == run_id], self.unreported[run_id]

    def take(self, run_id: str | None = None) -> tuple[list[Rejection], int]:
        """What was refused and not yet reported, of one run or of all; and how many."""
        if run_id is None:
            rejections, count = list(self.last), self.unreported.total()
            self.last.clear()
            self.unreported.clear()
            return rejections, count
        count = self.unreported.pop(run_id, 0)
        if not count:
            return [], 0
        rejections = [each for each in self.last if each.run_id == run_id]
        others = [each for each in self.last if each.run_id != run_id]
        self.last.clear()
        self.last += others
        return rejections, count


def _rejection(run_id: str, record: AnyRecord, error: AdpError) -> Rejection:
    step = record.step if type(record) is Metric else None
    return Rejection(run_id, KINDS[type(record)], record.key, step, error)


def delivery_error(
    rejections: Sequence[Rejection],
    *,
    rejected: int = 0,
    undelivered: int = 0,
    run_id: str = "",
    lost_runs: Sequence[str] = (),
) -> DeliveryError:
    """The error that names *rejections*; *rejected* counts those no longer kept as well.

    *lost_runs* describe runs that had started offline, and will never be created.
    """
    rejected = rejected or len(rejections)
    parts = []
    if rejected:
        more = f" (and {rejected - 1} more)" if rejected > 1 else ""
        parts.append(
            f"the service refused {rejections[0]}{more}" if rejections else f"{rejected} refused"
        )
    if undelivered:
        of_run = f" of run {run_id}" if run_id else ""
        were = "was" if undelivered == 1 else "were"
        parts.append(f"{counted(undelivered, 'record')}{of_run} {were} not delivered")
    if lost_runs:
        more = f" and {len(lost_runs) - 5} more" if len(lost_runs) > 5 else ""
        parts.append(f"the service was not reached for {', '.join(lost_runs[:5])}{more}")
    return DeliveryError(
        "; ".join(parts),
        rejections=rejections,
        rejected=rejected,
        undelivered=undelivered,
        run_id=run_id or None,
    )
