"""The lanes of all runs that have something to do, and those that somebody holds on to."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from adp_async._sansio.lane import Lane

if TYPE_CHECKING:
    from adp_async._sansio.lane import Waits


class Lanes(dict[str, Lane]):
    """By run id, the lanes of which there is something to do.

    *waits*: how receipts are waited for; None when nobody has one.
    """

    def __init__(self, waits: Waits | None = None) -> None:
        super().__init__()
        self._waits = waits
        #: Every lane that somebody holds on to: a writer, a record, or this.
        self._held: WeakValueDictionary[str, Lane] = WeakValueDictionary()
        self._first_seq = 0

    def of(self, run_id: str) -> Lane:
        """The one lane of a run, busy or not."""
        lane = self.get(run_id)
        if lane is None:
            lane = self._held.get(run_id) or Lane(run_id, self._waits, self._first_seq)
            self._held[run_id] = lane
        return lane

    def name(self, lane: Lane, run_id: str) -> None:
        """The service calls the run of *lane* by that id: so may others from now on."""
        lane.name(run_id)
        if self.get(run_id) is None:
            self._held.setdefault(run_id, lane)

    def forget_if_idle(self, lane: Lane) -> None:
        """Hold on no longer to a lane with nothing to do.

        One that is made for the same run later counts on from where no lane has been: what the
        journal still has to say about this one is not about that.
        """
        if lane.is_idle:
            self._first_seq = max(self._first_seq, lane.next_seq)
            self.pop(lane.key, None)
