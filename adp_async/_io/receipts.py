"""How a receipt is waited for: on any event loop, and in any thread."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from attrs import define

from adp_async._sansio.records import KINDS
from adp_async._sansio.texts import not_delivered_yet
from adp_async.errors import Closed

if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from adp_async._io.delivery import Delivery
    from adp_async._sansio.lane import Lane
    from adp_async._sansio.records import AnyRecord


@define(eq=False, repr=False)
class ReceiptWaits:
    """A record that is its own receipt asks its lane, and the lane asks here."""

    delivery: Delivery

    def wait(self, lane: Lane, record: AnyRecord) -> Generator[Any, None, None]:
        """A record's `Receipt.__await__`."""
        return self._wait_on_any_loop(lane, record).__await__()

    def wait_blocking(self, lane: Lane, record: AnyRecord, timeout: float | None) -> None:
        """A record's `Receipt.wait`."""
        lifetime, thread = self.delivery.lifetime, self.delivery.thread
        if thread is None:
            raise lifetime.error()
        try:
            thread.wait(self._wait(lane, record), timeout)
        except Closed:
            if record.done:  # it was given up while this thread waited
                return record.wait(0)
            if thread.is_here or lifetime.is_open:
                raise
            raise lifetime.error() from None
        except TimeoutError:
            kind = KINDS[type(record)]
            message = f"{kind} {record.key!r} of run {lane.run_id}: {not_delivered_yet(1)}"
            raise TimeoutError(message) from None

    async def _wait_on_any_loop(self, lane: Lane, record: AnyRecord) -> None:
        try:
            await self.delivery.running(self._wait(lane, record))
        except Closed:
            if not record.done:
                raise
        if record.place is not lane and record.place is not None:
            record.place.wait_blocking(record, 0)

    async def _wait(self, lane: Lane, record: AnyRecord) -> None:
        """In the delivery thread."""
        delivery, now = self.delivery, time.monotonic()
        delivery.state.pull(now)
        if record.place is lane:
            delivery.lifetime.check()
            delivery.accumulator.skip_linger(lane, now)
            delivery.sender.wake()
            await delivery.state.waiters.settled(record)
        record.place.wait_blocking(record, 0)
