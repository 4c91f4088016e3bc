"""Attempts of tasks whose records count only when they end well: exactly once, with retries.

An engine that runs a task again has it log again.  Where a worker says which task it is an attempt
of, what it hands over is held aside on disk, under its retry tokens; when the attempt ends well,
all of it is taken in one transaction together with the name of the task, and that of the other
attempts is thrown away.  The first attempt that ends well counts.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from attrs import define, field

from adp_async._io.handover import is_safe, take
from adp_async._io.log import logger
from adp_async._io.spool_aside import Attempt
from adp_async._io.spool_file import SpoolError, SpoolLimit
from adp_async._sansio.texts import counted
from adp_async.collector.ledger import KEPT_TOKENS
from adp_async.collector.names import ATTEMPT, TASK
from adp_async.collector.reading import INVALID, RETRY_AFTER, Refused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adp_async._io.engine import Engine
    from adp_async._io.keeper import SpoolKeeper
    from adp_async.collector.ledger import Ledger, Worker
    from adp_async.collector.reading import Handed

#: Begins the tokens of tasks that are done; a worker's token has no space.
_DONE: Final = "task "
_LONGEST_NAME: Final = 500
#: Seconds after which an attempt that nothing comes of is not continued any more.
ABANDONED: Final = 7 * 24 * 3600.0


@define(eq=False)
class Attempts:
    """The attempts of one collector.  In the delivery thread."""

    engine: Engine
    ledger: Ledger
    #: By run and task, the attempt that counts.
    _done: dict[tuple[str, str], str] = field(factory=dict, init=False)

    def of(self, headers: Mapping[str, str], run_id: str) -> Attempt | None:
        """The attempt that a request belongs to; None when what it logs counts at once."""
        task, name = (unquote(headers.get(each, "")) for each in (TASK, ATTEMPT))
        if not task:
            return None
        if not name or max(len(task), len(name)) > _LONGEST_NAME or " " in name:
            raise Refused(400, INVALID, "an attempt has a name, and neither is very long")
        return Attempt(run_id, task, name)

    def check(self) -> None:
        """Raise `Refused` unless records can be held aside."""
        self._keeper()

    def _keeper(self) -> SpoolKeeper:
        keeper = self.engine.delivery.keeper
        if keeper is None:
            message = "what an attempt logs is held aside on disk, and the collector has no spool"
            raise Refused(400, "NoSpool", message)
        return keeper

    async def hold(self, attempt: Attempt, handed: Handed, token: str, worker: Worker) -> None:
        """Hold aside what *attempt* has *handed* over, on disk."""
        if not token:
            raise Refused(400, INVALID, "what an attempt logs needs an opc-retry-token")
        if self._winner(attempt) is not None:
            worker.dropped += len(handed.records)  # it is too late
            return
        keeper = self._keeper()
        try:
            await keeper.doing(keeper.spool.aside.put, attempt, token, handed.records)
        except SpoolLimit:
            message = "the collector is full: spool_limit is reached"
            raise Refused(429, "TooManyRequests", message, retry_after=RETRY_AFTER) from None
        except SpoolError as error:
            logger.warning("what an attempt has logged cannot be held aside: %s", error)
            raise Refused(503, "NotYet", "the collector can write nothing") from None

    def _winner(self, attempt: Attempt) -> str | None:
        return self._done.get((attempt.run_id, attempt.task))

    def learn(self, tokens: list[str]) -> None:
        """Tasks that were done with a collector before this one."""
        for token in tokens:
            if token.startswith(_DONE):
                name, _, rest = token.removeprefix(_DONE).partition(" ")
                run_id, _, task = rest.partition(" ")
                self._is_done(run_id, task, name)

    async def commit(self, attempt: Attempt, worker: Worker, seconds: float) -> bool:
        """Take in what *attempt* has handed over; False while that is not safe yet.

        Raises `Refused` when another attempt of the task was first.
        """
        keeper = self._keeper()
        # The task's name is last, since it may have spaces in it.
        token = f"{_DONE}{attempt.name} {attempt.run_id} {attempt.task}"
        winner = self._winner(attempt)
        if winner is None:
            await self._take(keeper, attempt, worker, token)
            winner = self._winner(attempt)
        if winner != attempt.name:
            dropped = await self._drop(keeper, attempt)
            worker.dropped += dropped
            message = f"another attempt of the task {attempt.task[:80]!r} has ended well before"
            raise Refused(409, "AlreadyCommitted", message)
        taken = self.ledger.pending(token)
        if taken is not None:
            if not await is_safe(self.engine.delivery, taken, seconds):
                return False
            self.ledger.close(token)
        await keeper.doing(keeper.spool.aside.drop, [attempt])
        return True

    async def _take(
        self, keeper: SpoolKeeper, attempt: Attempt, worker: Worker, token: str
    ) -> None:
        """It counts from here on, unless another one was first meanwhile."""
        try:
            records = await keeper.doing(keeper.spool.aside.of, attempt)
        except SpoolError as error:
            logger.warning("what an attempt has logged cannot be read back: %s", error)
            raise Refused(503, "NotYet", "the collector can read nothing") from None
        if self._winner(attempt) is not None:  # or asked again meanwhile
            return
        taken = take(self.engine.delivery, attempt.run_id, records, token)
        self.ledger.count(worker, taken)
        self.ledger.open(token, taken)
        self._is_done(attempt.run_id, attempt.task, attempt.name)

    def _is_done(self, run_id: str, task: str, name: str) -> None:
        self._done[run_id, task] = name
        while len(self._done) > KEPT_TOKENS:
            del self._done[next(iter(self._done))]

    async def abort(self, attempt: Attempt, worker: Worker) -> None:
        """The attempt has failed: throw away what it has handed over."""
        if self._winner(attempt) != attempt.name:
            dropped = await self._drop(self._keeper(), attempt)
            worker.dropped += dropped

    async def _drop(self, keeper: SpoolKeeper, attempt: Attempt) -> int:
        count = len(await keeper.doing(keeper.spool.aside.of, attempt))
        await keeper.doing(keeper.spool.aside.drop, [attempt])
        return count

    async def forget_old(self) -> None:
        """Throw away what was held aside for a collector before this one, and is not continued."""
        keeper = self.engine.delivery.keeper
        if keeper is None:
            return
        try:
            since = time.time() - ABANDONED
            count = await keeper.doing(keeper.spool.aside.forget_before, since)
        except SpoolError as error:  # a full disk: the next one does it
            logger.warning("attempts that never ended cannot be dropped: %s", error)
        else:
            if count:
                told = counted(count, "record")
                logger.warning("dropped: %s of attempts that never ended", told)

    async def close(self) -> None:
        """Throw away what is held aside: its attempts were killed, or never ended."""
        keeper = self.engine.delivery.keeper
        if keeper is None:
            return
        left = await keeper.doing(keeper.spool.aside.counts)
        if left:
            message = "%s of %s that did not end well are dropped"
            records, attempts = sum(left.values()), counted(len(left), "attempt")
            logger.warning(message, counted(records, "record"), attempts)
            await keeper.doing(keeper.spool.aside.drop, list(left))
