"""Delivers the records left behind by dead processes in their spools."""

from __future__ import annotations

import asyncio
import random
import time
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from attrs import define, field, frozen

from adp_async._io.log import logger
from adp_async._io.spool import Spool
from adp_async._io.spool_file import (
    SpoolBusy,
    SpoolElsewhere,
    SpoolError,
    check_folder,
    find_spools,
)
from adp_async._io.tidying import ended
from adp_async._io.worker import Worker
from adp_async._sansio.run_start import LOCAL, RunStart
from adp_async._sansio.spilling import restore, restore_start
from adp_async._sansio.texts import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from adp_async._io.delivery import Delivery
    from adp_async._io.loop_thread import LoopThread
    from adp_async._io.spool import Piece
    from adp_async._io.spool_file import Identity
    from adp_async.errors import AdpError

#: Takes over what a spool knows of other processes.
Adopt: TypeAlias = "Callable[[Spool], None]"

#: Memory that the records of one recovered spool may take.
MEMORY_LIMIT = 32 * 2**20
#: Batches of recovered records in flight at once: the session's own come first.
MAX_IN_FLIGHT = 2
#: Seconds that the end of a session waits for the search, or for a commit, to end.
LONGEST_WAIT = 2.0
#: Seconds that params and tags wait for a search, and between two searches.
LONGEST_SEARCH = 5.0
SEARCH_EVERY = 60.0
#: Seconds between two looks at the progress of a recovery.
TIME_TO_LOOK = 0.5
#: Seconds without any delivery from a spool before a warning names it.
REPORTED_AFTER = 5.0
#: Spools that are opened at once: each takes two file descriptors and a lock.
OPENED = 64


@define(eq=False)
class Orphan:
    """A spool whose process is gone, opened by us, with what it still has to deliver."""

    spool: Spool
    pieces: list[Piece]
    #: Runs that its process had started and not ended: to be created, to be ended.
    starts: list[RunStart] = field(factory=list)

    @property
    def run_ids(self) -> list[str]:
        named = [start.run_id for start in self.starts if start.run_id is not None]
        return [*named, *(piece.run_id for piece in self.pieces)]

    @property
    def has_work(self) -> bool:
        return bool(self.records or self.starts)

    @property
    def records(self) -> int:
        spilled = sum(last - first for piece in self.pieces for first, last in piece.spilled)
        return spilled + sum(len(each[2]) for piece in self.pieces for each in piece.sealed)


@frozen
class Found:
    """What a search found: orphans that are open now, and the runs of those whose turn is later."""

    orphans: tuple[Orphan, ...] = ()
    later: frozenset[str] = frozenset()

    def __add__(self, other: Found) -> Found:
        return Found(self.orphans + other.orphans, self.later | other.later)


def open_orphans(
    folder: Path,
    *,
    identity: Identity | None,
    limit: int,
    but_not: set[Path] | None = None,
    most: int = OPENED,
    adopt: Adopt | None = None,
) -> Found:
    """The first *most* spools in *folder* that have something to deliver for *identity*.  Blocks.

    One that is in use, newer, damaged, another user's or of another platform is left untouched; all
    but the first and the last are warned of, and join those of *but_not*, which aren't looked at;
    files that are gone leave it.
    Raises `SpoolError` for a folder that can't be read, or is another user's.  *adopt* as for
    `open_orphan`.
    """
    but_not = set() if but_not is None else but_not
    orphans: list[Orphan] = []
    later: set[str] = set()
    paths = find_spools(folder)
    but_not -= {each for each in but_not if each.parent == folder}.difference(paths)
    if paths:
        check_folder(folder)
    for path in paths:
        if path in but_not:
            continue
        try:
            orphan = open_orphan(path, identity=identity, limit=limit, adopt=adopt)
        except SpoolElsewhere as error:
            logger.info("%s", error)
        except SpoolBusy as error:
            logger.debug("%s", error)
        except SpoolError as error:
            but_not.add(path)
            logger.warning("%s", error)
        else:
            if orphan is not None and len(orphans) < most:
                orphans.append(orphan)
            elif orphan is not None:
                later.update(orphan.run_ids)
                orphan.spool.release()
    return Found(tuple(orphans), frozenset(later))


def open_orphan(
    path: Path,
    *,
    identity: Identity | None,
    limit: int,
    again: bool = False,
    adopt: Adopt | None = None,
) -> Orphan | None:
    """The spool *path*, None when there is nothing in it to deliver for *identity*.  Blocks.

    *again*: deliver refused records as well.  *adopt* gets the spool before its file may go: it
    knows what other processes have handed over to the dead one, and they will ask again.  Raises
    `SpoolError`, of which `SpoolBusy` is one.
    """
    spool = Spool.open(path, limit=limit)
    try:
        if identity is not None and not spool.identity.is_same_place(identity):
            spool.release()
            return None
        if adopt is not None:
            adopt(spool)
        if again:
            spool.requeue_refused()
        orphan = Orphan(spool, spool.pieces(), spool.starts())
        if orphan.has_work and _take(spool):
            orphan.pieces = spool.pieces()
        last_sign = int(1000 * (spool.written_at or time.time()))
        starts = [*orphan.starts, *_unknown(orphan)]
        orphan.starts = [start.left_behind(last_sign) for start in starts]
    except BaseException:
        spool.release()
        raise
    if not orphan.has_work:
        spool.close()
        return None
    return orphan


def _unknown(orphan: Orphan) -> Iterator[RunStart]:
    """Runs that had started offline, of which nothing but the records can be read any more."""
    known = {start.key for start in orphan.starts}
    for piece in orphan.pieces:
        if piece.run_id.startswith(LOCAL) and piece.run_id not in known:
            message = (
                "%s: what is known of run %s is damaged; its records go into the run that has been "
                "created for them, or else into a new one without a name"
            )
            about = {"run_id": piece.run_id}
            logger.warning(message, orphan.spool.path, piece.run_id, extra=about)
            yield RunStart(piece.run_id)


def _take(spool: Spool) -> int:
    """Take *spool*; returns how many damaged rows were set aside."""
    try:
        return spool.take()
    except SpoolError as error:  # a full disk: then there is SQLite's lock alone
        logger.debug("%s", error)
        return 0


@define(eq=False)
class Recovery:
    """Delivers one orphan, the way a session delivers its own records."""

    orphan: Orphan
    delivery: Delivery
    #: Told at the beginning, and after every batch.
    on_progress: Callable[[Recovery], None] | None = None

    def __attrs_post_init__(self) -> None:
        pieces, self.orphan.pieces = self.orphan.pieces, []
        accumulator = self.delivery.accumulator
        for start in self.orphan.starts:
            restore_start(accumulator, start)
        for piece in pieces:
            restore(accumulator, piece.run_id, piece.spilled, piece.sealed, piece.last)

    @property
    def counts(self) -> tuple[int, int]:
        """Records delivered so far, and rejected."""
        accumulator = self.delivery.accumulator
        return accumulator.delivered, sum(accumulator.rejected.values())

    @property
    def trouble(self) -> AdpError | None:
        """Why nothing is delivered at the moment; None when all is well."""
        return self.delivery.starts.trouble or self.delivery.sender.trouble

    async def run(self, thread: LoopThread) -> bool:
        """Until all of it is settled, or the rest can't be; whether it was all.

        In the delivery thread.  Cancelled, it releases the file.
        """
        delivery = self.delivery
        await delivery.open(thread, self.orphan.spool, is_recovery=True)
        try:
            for start in self.orphan.starts:
                delivery.starts.restore(start)
            while self._is_left and not self._is_stuck:
                if self.on_progress is not None:
                    self.on_progress(self)
                await delivery.something_settled(TIME_TO_LOOK)
            if self.on_progress is not None:
                self.on_progress(self)
            return not self._is_left
        finally:
            await delivery.stop(LONGEST_WAIT)

    @property
    def _is_stuck(self) -> bool:
        """Whether nothing is left but what the service failed on, or refused, again and again."""
        lanes = list(self.delivery.accumulator.lanes.values())
        runs = self.delivery.starts.pending
        hopeless = {each.lane for each in runs if each.is_stuck}
        are_stuck = all(lane.is_stuck or lane in hopeless or lane.is_idle for lane in lanes)
        return bool(lanes or runs) and are_stuck and all(each.is_stuck for each in runs)

    @property
    def _is_left(self) -> bool:
        """Whether something is still to be delivered, created or ended."""
        return bool(self.delivery.accumulator.unsettled or self.delivery.starts.pending)


@define(eq=False)
class Recoveries:
    """Finds records left behind by dead processes, and delivers them, while a session lives.

    *find* looks for orphans, in a thread; *make* makes a `Delivery` for one; *bar* gets the
    runs whose params and tags must wait, since older ones come first (None: all).
    """

    find: Callable[[set[Path], int], Found]
    make: Callable[[], Delivery]
    bar: Callable[[frozenset[str] | None], None]
    thread: LoopThread
    folder: Path
    _seen: set[Path] = field(factory=set, init=False)
    #: The runs of each orphan that is being delivered, or will be, in the order of their names.
    _runs: dict[Path, frozenset[str]] = field(factory=dict, init=False)
    _done: dict[Path, asyncio.Event] = field(factory=dict, init=False)
    _later: frozenset[str] = field(default=frozenset(), init=False)
    _tasks: set[asyncio.Task[None]] = field(factory=set, init=False)
    #: Set after the first search.
    searched: asyncio.Event = field(factory=asyncio.Event, init=False)
    #: Orphans in trouble: since when, and how much was settled by then; and those told of.
    _since: dict[Path, tuple[float, int]] = field(factory=dict, init=False)
    _reported: set[Path] = field(factory=set, init=False)

    @property
    def is_done(self) -> bool:
        """Whether all that was found so far is delivered, or left alone."""
        return self.searched.is_set() and not self._tasks

    async def settled(self) -> None:
        """Wait until all that was found so far is delivered, or left alone."""
        await self.searched.wait()
        while self._tasks:
            await asyncio.wait(list(self._tasks))

    async def run(self) -> None:
        """Look now and every minute, until cancelled."""
        worker = Worker("adp_async recovery")
        try:
            while True:
                found = await self._search(worker)
                self._start(found)
                if found.later:
                    await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
                else:
                    # Not at the same moment as the processes that were started together.
                    await asyncio.sleep(SEARCH_EVERY * random.uniform(0.8, 1.2))  # noqa: S311
        finally:
            self.bar(frozenset())
            for task in self._tasks:
                task.cancel()
            await ended([*self._tasks], LONGEST_WAIT)
            worker.stop()

    async def _search(self, worker: Worker) -> Found:
        finding = worker.do(self.find, self._seen, OPENED - len(self._tasks))
        try:
            done, _ = await asyncio.wait([finding], timeout=LONGEST_SEARCH)
            if not done:
                message = "the search for records left behind in %s takes long; delivery continues"
                logger.warning(message, self.folder)
                self._bar()
            return await asyncio.shield(finding)
        except asyncio.CancelledError:
            if await ended([finding], LONGEST_WAIT) and finding.exception() is None:
                for orphan in finding.result().orphans:
                    orphan.spool.release()
            raise
        except SpoolError as error:
            logger.warning("%s", error)
        except Exception:
            logger.exception("records left behind in %s could not be looked for", self.folder)
        return Found()

    def _start(self, found: Found) -> None:
        if found.orphans:
            records = counted(sum(orphan.records for orphan in found.orphans), "record")
            if runs := sum(len(orphan.starts) for orphan in found.orphans):
                records += f" and {counted(runs, 'open run')}"
            processes = counted(len(found.orphans), "dead process", "es")
            message = "delivering %s left behind by %s in %s"
            logger.warning(message, records, processes, self.folder)
        for orphan in found.orphans:
            path = orphan.spool.path
            self._seen.add(path)
            self._runs[path] = frozenset(orphan.run_ids)
            self._done[path] = asyncio.Event()
            task = asyncio.create_task(
                self._deliver(orphan), name=f"adp_async recovery {path.name}"
            )
            self._tasks.add(task)
            task.add_done_callback(partial(self._ended, orphan))
        self._later = found.later
        self.searched.set()
        self._bar()

    def _bar(self) -> None:
        self.bar(self._later.union(*self._runs.values()))

    def _look_at(self, recovery: Recovery) -> None:
        """Name an orphan of which nothing is delivered; of many the 1st, the 10th, the 100th."""
        path, now, settled = recovery.orphan.spool.path, time.monotonic(), sum(recovery.counts)
        since, before = self._since.setdefault(path, (now, settled))
        if recovery.trouble is None or settled > before:
            self._since[path] = now, settled
        elif path not in self._reported and now >= since + REPORTED_AFTER:
            self._reported.add(path)
            count = len(self._reported)
            if count == 1 or len(str(count)) > len(str(count - 1)):
                message = (
                    "%s: none of its records can be delivered; this is retried, and holds up its "
                    "own runs only (%s so far; `adp-async sync --discard` gives one up): %s"
                )
                files = counted(count, "such file")
                logger.warning(message, path, files, recovery.trouble)

    async def _deliver(self, orphan: Orphan) -> None:
        path = orphan.spool.path
        try:
            # Of one run the older records come first; other orphans don't wait.
            mine = self._runs[path]
            older = [each for each in self._runs if (each.name, each) < (path.name, path)]
            for end in [self._done[each] for each in older if self._runs[each] & mine]:
                await end.wait()
            recovery = Recovery(orphan, self.make(), self._look_at)
            if not await recovery.run(self.thread):
                logger.warning("%s: some records could not be delivered; they are kept", path)
            delivered, rejected = recovery.counts
            told = counted(delivered, "record")
            logger.info("%s: %s delivered, %d rejected", path, told, rejected)
        except Exception:
            logger.exception("%s: recovery failed; what it had is still on disk", path)

    def _ended(self, orphan: Orphan, task: asyncio.Task[None]) -> None:
        """Also one that was cancelled before its first step."""
        path = orphan.spool.path
        orphan.spool.release()
        self._tasks.discard(task)
        del self._runs[path]
        self._since.pop(path, None)
        self._done.pop(path).set()
        self._bar()
