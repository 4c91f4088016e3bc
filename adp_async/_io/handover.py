"""The door through which records of other processes come: journaled with their token, or delivered.

For the collector, in the delivery thread.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adp_async._io.delivery import Delivery
    from adp_async._sansio.lane import Lane
    from adp_async._sansio.records import AnyRecord
    from adp_async.errors import AdpError, Rejection

#: While nothing can be written, the share of ``buffer_limit`` that is filled all the same.
SHARE_WITHOUT_DISK: Final = 0.5


@frozen
class Taken:
    """Records that are here: *first* to *last* (exclusive) of a lane."""

    lane: Lane
    first: int
    last: int

    @property
    def is_settled(self) -> bool:
        """Whether none of them waits any more."""
        return self.lane.settled_until >= self.last


def has_room(delivery: Delivery) -> bool:
    """Whether more records can be taken: memory and disk are not full."""
    keeper, intake = delivery.keeper, delivery.intake
    has_disk = keeper is not None and keeper.failure is None
    share = 1.0 if has_disk else SHARE_WITHOUT_DISK
    return intake.used() <= share * intake.buffer_limit


def take(delivery: Delivery, run_id: str, records: Sequence[AnyRecord], token: str) -> Taken:
    """Take *records* in; *token* is written with them, in one transaction, before they leave.

    Raises `Closed`.  They are not on disk yet: see `is_safe`.
    """
    delivery.lifetime.check()
    state, now = delivery.state, time.monotonic()
    state.pull(now)  # what was logged here before
    with state.intake.lock:
        lane = state.accumulator.lane(run_id)
        for record in records:
            record.place = lane
        first = lane.next_seq
        state.accumulator.take_in(records, now)
    state.hand_on()
    if state.journal is not None and token:
        state.journal.pledge(lane, token)
    delivery.sender.wake()
    return Taken(lane, first, first + len(records))


def reject(
    delivery: Delivery, run_id: str, records: Sequence[AnyRecord], error: AdpError
) -> tuple[Lane, list[Rejection]]:
    """Count *records*, which are not taken in, as rejected; they are told as others are.

    Raises `Closed`.
    """
    delivery.lifetime.check()
    state = delivery.state
    with state.intake.lock:
        lane = state.accumulator.lane(run_id)
        rejections = state.accumulator.reject(lane, records, (), error)
    state.hand_on()
    return lane, rejections


async def is_safe(delivery: Delivery, taken: Taken, seconds: float) -> bool:
    """Wait until what was *taken* is on disk, for at most *seconds*, or else is settled."""
    keeper = delivery.keeper
    if keeper is not None and (await keeper.journaled()) is None:
        if delivery.intake.used() > keeper.memory_limit / 2:
            keeper.wake()  # what is on disk need not be here
        return True
    if not taken.is_settled:
        try:
            async with asyncio.timeout(seconds):
                await delivery.state.waiters.lanes_settled([taken.lane])
        except TimeoutError:
            return taken.is_settled
    return True
