"""What is undelivered when a session closes: kept in the spool for the next one, or lost."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from attrs import define, field

from adp_async._io.log import logger
from adp_async._sansio.discarding import abandon
from adp_async._sansio.records import GivenUp
from adp_async._sansio.rejections import delivery_error
from adp_async._sansio.texts import counted

if TYPE_CHECKING:
    from pathlib import Path

    from adp_async._io.run_starts import RunStarts
    from adp_async._io.state import DeliveryState
    from adp_async.errors import DeliveryError


@define(eq=False)
class Leftovers:
    """The records, by run, and the runs without an id that a session leaves behind."""

    state: DeliveryState
    starts: RunStarts
    #: Undelivered records: in the spool, or lost.
    kept: Counter[str] = field(factory=Counter, init=False)
    lost: Counter[str] = field(factory=Counter, init=False)

    def account_for(self, cause: BaseException | None, *, is_on_disk: bool) -> None:
        """Give up everything unsettled, and wake everyone waiting for it."""
        state = self.state
        why = "left in the spool, for the next session" if is_on_disk else "lost with the session"
        end = self.kept if is_on_disk else self.lost
        if not is_on_disk:
            self.starts.lost = [each.start for each in self.starts.not_created]
        for lane, count, records in abandon(state.accumulator):
            end[lane.key] += count
            error = delivery_error([], undelivered=count, run_id=lane.run_id)
            error.add_note(why)
            error.__cause__ = cause
            for record in records:
                record.place = GivenUp(error)
            state.waiters.fail(lane, error)
            state.waiters.resolve(lane, records)
        state.intake.room_made()
        state.waiters.nothing_left()

    def warn(self, records: int, path: Path) -> None:
        """Say where the next session finds what is left."""
        if runs := len(self.starts.not_created):
            message = (
                "%s not created yet, %s not delivered yet; the next session delivers them from %s"
            )
            logger.warning(message, counted(runs, "run"), counted(records, "record"), path)
        elif records:
            message = "%s not delivered yet; the next session delivers them from %s"
            logger.warning(message, counted(records, "record"), path)

    def error(self, refused: DeliveryError | None) -> DeliveryError | None:
        """What the close raises: *refused* itself when nothing is lost, else one for both."""
        left, runs = self.lost.total(), [str(start) for start in self.starts.lost]
        if not (left or runs):
            return refused
        rejections = () if refused is None else refused.rejections
        rejected = 0 if refused is None else refused.rejected
        return delivery_error(rejections, rejected=rejected, undelivered=left, lost_runs=runs)
