"""What was handed over: under which tokens, and by whom.

A worker that got no answer sends the same request again, under the same retry token: it gets the
same answer, and its records are not taken twice.  The tokens are in the spool as well, so that the
next collector of that spool knows them.
"""

from __future__ import annotations

import time
from collections import deque
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from attrs import define, field, frozen

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from adp_async._io.handover import Taken
    from adp_async._sansio.lane import Lane
    from adp_async._sansio.records import AnyRecord

_KEY: Final = attrgetter("key")

#: Tokens that are remembered.
KEPT_TOKENS: Final = 100_000
#: Workers that are remembered by name.
KEPT_WORKERS: Final = 10_000
#: Keys of a worker that are remembered, to tell it what was refused.
KEPT_KEYS: Final = 10_000


@frozen
class WorkerStats:
    """What one worker has handed over.

    *taken* are its records, of which *settled* are delivered or rejected by the service; the others
    wait in the collector.  *batches* are its requests, *repeated* those that were here already.
    *dropped* are records of attempts that did not count.  *seen*: seconds since it was last heard
    of.
    """

    taken: int
    settled: int
    batches: int
    repeated: int
    dropped: int
    seen: float

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
    batches: int = 0
    repeated: int = 0
    dropped: int = 0
    seen_at: float = 0.0
    #: ``with`` blocks of it that it has not exited.
    inside: set[str] = field(factory=set)
    keys: set[str] = field(factory=set)

    def stats(self, now: float) -> WorkerStats:
        return WorkerStats(
            self.taken,
            self.settled,
            self.batches,
            self.repeated,
            self.dropped,
            max(0.0, now - self.seen_at),
        )


@define(eq=False)
class Ledger:
    """The tokens and the workers of one collector.  Belongs to its event loop."""

    _tokens: dict[str, Taken | None] = field(factory=dict, init=False)
    workers: dict[str, Worker] = field(factory=dict, init=False)
    _handed: dict[Lane, deque[tuple[int, int, Worker]]] = field(factory=dict, init=False)
    #: When anybody was last heard of.
    last_seen: float = field(factory=time.monotonic, init=False)

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

    def count(self, worker: Worker, records: Sequence[AnyRecord], taken: Taken) -> None:
        """*records* of *worker* are here."""
        worker.taken += len(records)
        if len(worker.keys) < KEPT_KEYS:
            worker.keys.update(map(_KEY, records))
        handed = self._handed.setdefault(taken.lane, deque())
        handed.append((taken.first, taken.last, worker))
        self._settle(taken.lane, handed)

    def settle(self) -> None:
        """Count what is settled by now."""
        for lane, handed in list(self._handed.items()):
            self._settle(lane, handed)
            if not handed:
                del self._handed[lane]

    def _settle(self, lane: Lane, handed: deque[tuple[int, int, Worker]]) -> None:
        until = lane.settled_until
        while handed and handed[0][0] < until:
            first, last, worker = handed.popleft()
            worker.settled += min(last, until) - first
            if last > until:
                handed.appendleft((until, last, worker))
                return

    def stats(self) -> dict[str, WorkerStats]:
        """By worker, what it has handed over."""
        self.settle()
        now = time.monotonic()
        return {name: worker.stats(now) for name, worker in self.workers.items()}

    def are_inside(self, lease: float) -> list[str]:
        """Workers within a ``with`` block that were heard of in the last *lease* seconds."""
        since = time.monotonic() - lease
        return [each.name for each in self.workers.values() if each.inside and each.seen_at > since]
