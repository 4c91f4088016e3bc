"""Delivers what processes that died have left in their spools."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from attrs import define, field

from adp_async._io.keeper import SpoolKeeper
from adp_async._io.sender import Sender
from adp_async._io.spool import Spool
from adp_async._io.spool_file import (
    SpoolBusy,
    SpoolElsewhere,
    SpoolError,
    check_folder,
    find_spools,
)
from adp_async._io.tokens import Tokens
from adp_async._sansio.accumulator import Accumulator

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from pathlib import Path

    from adp_async._io.sender import Post
    from adp_async._io.spool import Piece
    from adp_async._io.spool_file import Identity
    from adp_async._sansio.dispatch import Pulse
    from adp_async._sansio.lane import Lane
    from adp_async._sansio.records import AnyRecord, BatchLimits
    from adp_async._sansio.retry import RetryPolicy
    from adp_async._sansio.throttle import Throttle
    from adp_async.errors import AdpError

logger = logging.getLogger("adp_async")

#: Memory that the records of one recovered spool may take.
MEMORY_LIMIT = 32 * 2**20
#: Batches of recovered records on their way at once: the session's own come first.
MAX_IN_FLIGHT = 2
#: Seconds that the end of a session waits for the search to end.
LONGEST_WAIT = 2.0
#: Spools that are opened at once: each takes two file descriptors and a lock.
OPENED = 64


@define(eq=False)
class Orphan:
    """A spool whose process is gone, opened by us, with what it still has to deliver."""

    spool: Spool
    pieces: list[Piece]

    @property
    def run_ids(self) -> list[str]:
        return [piece.run_id for piece in self.pieces]

    @property
    def records(self) -> int:
        spilled = sum(last - first for piece in self.pieces for first, last in piece.spilled)
        return spilled + sum(len(each[2]) for piece in self.pieces for each in piece.sealed)


def open_orphans(
    folder: Path, *, identity: Identity | None, limit: int, but_not: set[Path] | None = None
) -> list[Orphan]:
    """The first `OPENED` spools in *folder* that have something to deliver for *identity*.  Blocks.

    One that is in use, newer, damaged, another user's or of another platform is left as it is; all
    but the first and the last are warned of, and join those of *but_not*, which aren't looked at.
    Raises `SpoolError` for a folder that can't be read, or is another user's.
    """
    but_not = set() if but_not is None else but_not
    orphans: list[Orphan] = []
    paths = find_spools(folder)
    if paths:
        check_folder(folder)
    for path in paths:
        if path in but_not:
            continue
        try:
            orphan = open_orphan(path, identity=identity, limit=limit)
        except SpoolElsewhere as error:
            logger.info("%s", error)
        except SpoolBusy as error:
            logger.debug("%s", error)
        except SpoolError as error:
            but_not.add(path)
            logger.warning("%s", error)
        else:
            orphans += [orphan] if orphan else []
        if len(orphans) >= OPENED:
            break
    return orphans


async def found_by(finding: asyncio.Future[list[Orphan]]) -> list[Orphan]:
    """What a thread finds; if nobody waits for that any more, it lets go of it again."""
    try:
        return await asyncio.shield(finding)
    except asyncio.CancelledError:
        await asyncio.wait([finding], timeout=LONGEST_WAIT)
        if finding.done() and finding.exception() is None:
            for orphan in finding.result():
                orphan.spool.let_go()
        raise


def open_orphan(
    path: Path, *, identity: Identity | None, limit: int, again: bool = False
) -> Orphan | None:
    """The spool *path*, None when there is nothing in it to deliver for *identity*.  Blocks.

    *again*: what was refused is to be delivered as well.  Raises `SpoolError`, of which
    `SpoolBusy` is one.
    """
    spool = Spool.open(path, limit=limit)
    try:
        if identity is not None and not spool.identity.is_same_place(identity):
            spool.let_go()
            return None
        if again:
            spool.requeue_refused()
        orphan = Orphan(spool, spool.pieces())
        if orphan.records and _take(spool):
            orphan.pieces = spool.pieces()
    except BaseException:
        spool.let_go()
        raise
    if not orphan.records:
        spool.close()
        return None
    return orphan


def _take(spool: Spool) -> int:
    """How many damaged rows were put aside."""
    try:
        return spool.take()
    except SpoolError as error:  # a full disk: then there is SQLite's lock alone
        logger.debug("%s", error)
        return 0


@define(eq=False)
class Predecessors:
    """Runs of which processes that ended have left something.

    Who goes on with such a run has its params and tags wait: what they overwrite comes first.
    """

    _are_known: asyncio.Event = field(factory=asyncio.Event, init=False)
    _are_through: dict[str, asyncio.Event] = field(factory=dict, init=False)
    _counts: Counter[str] = field(factory=Counter, init=False)

    async def wait(self, run_id: str) -> None:
        """Until all that was left of the run is delivered."""
        await self._are_known.wait()
        if (event := self._are_through.get(run_id)) is not None:
            await event.wait()

    def found(self, orphans: Iterable[Orphan]) -> None:
        """These, and no others, are being recovered."""
        run_ids = [run_id for orphan in orphans for run_id in orphan.run_ids]
        self._counts.update(run_ids)
        for run_id in run_ids:
            self._are_through.setdefault(run_id, asyncio.Event())
        self._are_known.set()

    def delivered(self, run_ids: Iterable[str]) -> None:
        """One orphan with these runs is through."""
        self._counts.subtract(run_ids)
        for run_id in run_ids:
            if not self._counts[run_id]:
                self._are_through.pop(run_id).set()

    def given_up(self) -> None:
        """Recovery is over, whatever it has reached: nobody waits any more."""
        self._are_known.set()
        for event in self._are_through.values():
            event.set()
        self._are_through.clear()


@define(eq=False)
class Recovery:
    """Delivers one orphan: an accumulator and a sender of its own, with the batches it had."""

    orphan: Orphan
    post: Post
    run_is_gone: Callable[[str], Awaitable[bool]]
    throttle: Throttle
    limits: BatchLimits
    policy: RetryPolicy
    pulse: Pulse
    accumulator: Accumulator = field(init=False)
    #: Told at the beginning, and after every batch.
    on_progress: Callable[[Recovery], None] | None = None
    _keeper: SpoolKeeper = field(init=False)
    _sender: Sender = field(init=False)
    _all_settled: asyncio.Event = field(factory=asyncio.Event, init=False)

    def __attrs_post_init__(self) -> None:
        self.accumulator = Accumulator(
            linger=0.0, limits=self.limits, new_token=Tokens(), on_settled=self._settled
        )
        pieces, self.orphan.pieces = self.orphan.pieces, []
        for piece in pieces:
            self.accumulator.restore(piece.run_id, piece.spilled, piece.sealed, piece.last)
        self._sender = Sender(
            accumulator=self.accumulator,
            throttle=self.throttle,
            policy=self.policy,
            post=self.post,
            run_is_gone=self.run_is_gone,
            take_in=lambda now: None,
            clock=time.monotonic,
            max_in_flight=MAX_IN_FLIGHT,
            pulse=self.pulse,
        )
        self._keeper = keeper = SpoolKeeper(
            accumulator=self.accumulator,
            spool=self.orphan.spool,
            interval=1.0,
            memory_limit=MEMORY_LIMIT,
            take_in=lambda now: None,
            changed=self._sender.wake,
            trouble=lambda: str(self._sender.trouble or ""),
        )
        self._sender.before_departure = keeper.before_departure
        for lane in self.accumulator.lanes.values():
            keeper.journal.restored(lane)

    @property
    def counts(self) -> tuple[int, int]:
        """Records delivered so far, and rejected."""
        return self.accumulator.delivered, sum(self.accumulator.rejected.values())

    @property
    def trouble(self) -> AdpError | None:
        """Why nothing is delivered at the moment; None when all is well."""
        return self._sender.trouble

    async def run(self) -> None:
        """Deliver all of it.  What remains when this is cancelled stays in the spool."""
        if self.on_progress is not None:
            self.on_progress(self)
        tasks: list[asyncio.Task[Any]] = [
            asyncio.create_task(self._sender.run()),
            asyncio.create_task(self._keeper.run()),
        ]
        settled: asyncio.Task[Any] = asyncio.create_task(self._all_settled.wait())
        try:
            await asyncio.wait([*tasks, settled], return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()  # a crash is heard
        finally:
            for task in [*tasks, settled]:
                task.cancel()
            await asyncio.gather(*tasks, settled, return_exceptions=True)
            await self._keeper.close()

    def _settled(self, lane: Lane, records: Sequence[AnyRecord]) -> None:
        self._keeper.wake()
        if self.on_progress is not None:
            self.on_progress(self)
        if not self.accumulator.unsettled:
            self._all_settled.set()
