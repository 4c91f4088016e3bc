"""What was handed over: under which tokens, and by whom.

A worker that got no answer sends the same request again, under the same retry token: it gets the
same answer, and its records are not taken twice.  The tokens are in the spool as well, so that the
next collector of that spool knows them.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from attrs import define, field, frozen

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from adp_async._io.handover import Taken
    from adp_async._sansio.lane import Lane
    from adp_async.errors import Rejection

#: Tokens that are remembered.
KEPT_TOKENS: Final = 100_000
#: Workers that are remembered by name; the counts of those before them are added up.
KEPT_WORKERS: Final = 10_000
OTHERS: Final = "others"
#: Refused records of a worker that are remembered by name, to tell it.
KEPT_REFUSALS: Final = 100
#: Runs with records of workers until those that are settled are looked for.
MANY_LANES: Final = 1000


@frozen
class WorkerStats:
    """What one worker has handed over.

    *taken* are its records, of which *settled* are delivered or *rejected*; the others wait in the
    collector.  (What the run's owner discards is settled as well.)  *batches* are its requests,
    *repeated* those that were here already.  *dropped* are records of attempts that did not count.
    *seen*: seconds since it was last heard of.
    """

    taken: int
    settled: int
    rejected: int
    batches: int
    repeated: int
    dropped: int
    seen: float

    @property
    def delivered(self) -> int:
        """Records that the service has."""
        return self.settled - self.rejected

    @property
    def waiting(self) -> int:
        """Records that the collector has and the service does not have yet."""
        return self.taken - self.settled


@define(eq=False)
class Worker:
    """One process that hands records over."""

    name: str
    taken: int = 0
    settled: int = 0
    rejected: int = 0
    batches: int = 0
    repeated: int = 0
    dropped: int = 0
    seen_at: float = 0.0
    #: ``with`` blocks of it that it has not exited.
    inside: set[str] = field(factory=set)
    #: By the key of their run: refused records, the last of them by name, and how many there are.
    refusals: dict[str, deque[Rejection]] = field(factory=dict)
    refused: dict[str, int] = field(factory=dict)

    def refuse(self, run_key: str, rejection: Rejection | None) -> None:
        """One record of it was refused."""
        self.rejected += 1
        self.refused[run_key] = self.refused.get(run_key, 0) + 1
        if rejection is not None:
            kept = self.refusals.setdefault(run_key, deque(maxlen=KEPT_REFUSALS))
            kept.append(rejection)

    def refused_since(self, run_key: str, told: int) -> tuple[list[Rejection], int]:
        """What was refused after the first *told* that were: by name, and how many in all."""
        count = self.refused.get(run_key, 0)
        new = max(0, count - told)
        kept = list(self.refusals.get(run_key, ()))
        return kept[max(0, len(kept) - new) :], count

    def add(self, other: Worker) -> None:
        """Count what *other* has handed over as well."""
        for name in ("taken", "settled", "rejected", "batches", "repeated", "dropped"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.seen_at = max(self.seen_at, other.seen_at)

    def stats(self, now: float, settled: int = 0) -> WorkerStats:
        """Its counts, with *settled* records that are not counted here yet."""
        return WorkerStats(
            self.taken,
            self.settled + settled,
            self.rejected,
            self.batches,
            self.repeated,
            self.dropped,
            max(0.0, now - self.seen_at),
        )


@define
class _Handed:
    """Records *first* to *last* (exclusive) of a lane, which *worker* has handed over."""

    first: int
    last: int
    worker: Worker


@define(eq=False)
class Ledger:
    """The tokens and the workers of one collector.

    Belongs to its event loop, but for `stats`, which any thread may call.
    """

    _tokens: dict[str, Taken | None] = field(factory=dict, init=False)
    workers: dict[str, Worker] = field(factory=dict, init=False)
    #: Those that are not remembered by name.
    _others: Worker = field(factory=lambda: Worker(OTHERS), init=False)
    _handed: dict[Lane, deque[_Handed]] = field(factory=dict, init=False)
    #: With so many lanes it is time to forget those of which all is settled.
    _many_lanes: int = field(default=0, init=False)
    #: When anybody was last heard of.
    last_seen: float = field(factory=time.monotonic, init=False)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)

    # Tokens

    def learn(self, tokens: Iterable[str]) -> None:
        """These were taken before, by a collector that is gone."""
        for token in tokens:
            self.close(token)

    def knows(self, token: str) -> bool:
        """Whether what came under *token* is here, or was."""
        return token in self._tokens

    def open(self, token: str, taken: Taken) -> None:
        """What was *taken* under *token* is not on disk yet."""
        self._tokens[token] = taken

    def pending(self, token: str) -> Taken | None:
        """What came under *token* and is not known to be on disk; None when it is."""
        return self._tokens.get(token)

    def close(self, token: str) -> None:
        """What came under *token* is on disk, or settled."""
        self._tokens.pop(token, None)
        self._tokens[token] = None
        while len(self._tokens) > KEPT_TOKENS:
            del self._tokens[next(iter(self._tokens))]

    # Workers

    def worker(self, name: str) -> Worker:
        """The worker called *name*, which has just been heard of."""
        with self._lock:
            worker = self.workers.get(name)
            if worker is None:
                if len(self.workers) >= KEPT_WORKERS:
                    self._forget_one()
                worker = self.workers[name] = Worker(name)
            worker.seen_at = self.last_seen = time.monotonic()
            return worker

    def _forget_one(self) -> None:
        oldest = min(self.workers.values(), key=lambda each: (bool(each.inside), each.seen_at))
        del self.workers[oldest.name]
        self._others.add(oldest)
        for handed in self._handed.values():
            for each in handed:
                if each.worker is oldest:
                    each.worker = self._others

    def count(self, worker: Worker, taken: Taken) -> None:
        """What was *taken* is *worker*'s."""
        with self._lock:
            worker.taken += taken.last - taken.first
            handed = self._handed.setdefault(taken.lane, deque())
            handed.append(_Handed(taken.first, taken.last, worker))
            _settle(taken.lane, handed)
            if len(self._handed) > max(MANY_LANES, self._many_lanes):
                self._settle_all()
                self._many_lanes = 2 * len(self._handed)

    def reject(self, worker: Worker, run_key: str, rejections: Sequence[Rejection]) -> None:
        """Records of *worker* were refused instead of being taken."""
        with self._lock:
            worker.taken += len(rejections)
            worker.settled += len(rejections)
            for rejection in rejections:
                worker.refuse(run_key, rejection)

    def refused(
        self, lane: Lane, numbers: Iterable[int], rejections: Sequence[Rejection] = ()
    ) -> None:
        """The records of *lane* with these sequence numbers were refused; see `WatchesRefusals`."""
        with self._lock:
            handed = iter(self._handed.get(lane, ()))
            each = next(handed, None)
            named = iter(rejections)
            for number in numbers:
                rejection = next(named, None)
                while each is not None and each.last <= number:
                    each = next(handed, None)
                if each is not None and each.first <= number:
                    each.worker.refuse(lane.key, rejection)

    def _settle_all(self) -> None:
        for lane, handed in list(self._handed.items()):
            _settle(lane, handed)
            if not handed:
                del self._handed[lane]

    def stats(self) -> dict[str, WorkerStats]:
        """By worker, what it has handed over.  From any thread."""
        now = time.monotonic()
        with self._lock:
            settled: dict[Worker, int] = {}
            for lane, handed in self._handed.items():
                until = lane.settled_until
                for each in handed:
                    if each.first >= until:
                        break
                    count = min(each.last, until) - each.first
                    settled[each.worker] = settled.get(each.worker, 0) + count
            workers = [*self.workers.values(), *([self._others] if self._others.seen_at else ())]
            return {each.name: each.stats(now, settled.get(each, 0)) for each in workers}

    def are_inside(self, lease: float) -> list[str]:
        """Workers within a ``with`` block that were heard of in the last *lease* seconds."""
        since = time.monotonic() - lease
        return [each.name for each in self.workers.values() if each.inside and each.seen_at > since]


def _settle(lane: Lane, handed: deque[_Handed]) -> None:
    """Count what of *handed* is settled by now."""
    until = lane.settled_until
    while handed and (first := handed[0].first) < until:
        each = handed[0]
        each.worker.settled += min(each.last, until) - first
        if each.last > until:
            each.first = until
            return
        handed.popleft()
