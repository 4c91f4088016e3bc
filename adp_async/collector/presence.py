"""Which blocks of a process are entered, and that its collector knows of them.

A collector that closes waits for workers within their block, as long as it hears of them: one that
computes for a while, and logs nothing, says every few seconds that it is still there.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from attrs import define, field

from adp_async._io.log import logger
from adp_async._sansio.endpoints import Endpoint
from adp_async.errors import AdpError

if TYPE_CHECKING:
    from adp_async.session import Session

ENTER: Final = Endpoint("POST", "collector/enter", takes_retry_token=True)
LEAVE: Final = Endpoint("POST", "collector/leave", takes_retry_token=True)
#: Seconds that entering waits for the collector's greeting, and exiting for its goodbye.
GREETING: Final = 5.0
#: Seconds between two signs of life: a third of the time after which nobody waits any more.
RENEW_EVERY: Final = 10.0


@define(eq=False)
class Presence:
    """The blocks that a process is within.  In the event loop of its *session*."""

    session: Session
    _inside: set[str] = field(factory=set, init=False)
    #: The next sign of life: a timer, since a task would hold up a session that closes within.
    _next: asyncio.TimerHandle | None = field(default=None, init=False)
    _renewing: asyncio.Task[None] | None = field(default=None, init=False)

    async def enter(self, name: str, run_id: str) -> None:
        """The block *name* is entered.  Raises what the collector refuses it with."""
        try:
            await self._say(ENTER, name)
        except AdpError as error:
            if not error.retriable:  # it refuses us, or has another one's certificate
                raise
            message = "run %s: the collector does not answer; what is logged waits for it: %s"
            logger.warning(message, run_id, error, extra={"run_id": run_id})
        self._inside.add(name)
        if self._next is None:
            self._renew_later()

    async def leave(self, name: str, run_id: str) -> None:
        """The block *name* is exited."""
        self._inside.discard(name)
        if not self._inside and self._next is not None:
            self._next.cancel()
            self._next = None
        if self._renewing is not None:  # a sign of life must not come after the goodbye
            await asyncio.wait([self._renewing], timeout=GREETING)
        try:
            await self._say(LEAVE, name)
        except AdpError as error:
            message = "run %s: the collector did not hear of the end: %s"
            logger.debug(message, run_id, error, extra={"run_id": run_id})

    def _renew_later(self) -> None:
        if self._next is not None:  # of another block, which was entered meanwhile
            self._next.cancel()
        self._next = asyncio.get_running_loop().call_later(RENEW_EVERY, self._renew_now)

    def _renew_now(self) -> None:
        self._renewing = asyncio.create_task(self._renew(), name="adp_async presence")

    async def _renew(self) -> None:
        for name in list(self._inside):
            if name in self._inside:  # not exited meanwhile
                with suppress(AdpError):  # what is logged meets the same, and tells of it
                    await self._say(ENTER, name)
        if self._inside:
            self._renew_later()

    async def _say(self, endpoint: Endpoint, name: str) -> Any:
        return await self.session.call(endpoint, body={"id": name}, timeout=GREETING)
