"""Spools as processes that were killed leave them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adp_async._io.spool import Spool
from adp_async._io.spool_file import Identity
from adp_async._sansio.journal import Changes, Chunk, Sealed, Settled
from adp_async._sansio.records import Metric
from adp_async.testing import PLATFORM_ID, WORKSPACE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from adp_async._sansio.records import AnyRecord

#: Where a `FakeSession` believes to be.
FAKE = Identity("http://localhost", PLATFORM_ID, WORKSPACE)
LIMIT = 2**30


def metrics(count: int, first: int = 0, key: str = "loss") -> list[Metric]:
    """Points whose step, value and timestamp all tell which one it is."""
    return [Metric(key, step / 2, 1000 + step, step) for step in range(first, first + count)]


def chunk(records: Sequence[AnyRecord], first: int = 0, run_id: str = "run") -> Changes:
    return Changes(chunks=[Chunk(run_id, first, records)])


def sealed(first: int, last: int, token: str, run_id: str = "run") -> Changes:
    return Changes(sealed=[Sealed(run_id, first, last, token)])


def settled(until: int, *done: tuple[int, int], run_id: str = "run") -> Changes:
    return Changes(settled=[Settled(run_id, until, done)])


def orphan(folder: Path, *changes: Changes, identity: Identity = FAKE, error: str = "") -> Path:
    """A spool with *changes* in it whose process is gone."""
    spool = Spool.create(folder, identity, limit=LIMIT)
    for each in changes:
        spool.commit(each, error)
    spool.let_go()
    return spool.path
