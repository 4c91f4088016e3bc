"""How torch's ranks get the handle, without torch; `test_cluster_engines` has the real one."""

from __future__ import annotations

import importlib
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from adp_async.errors import ConfigurationError
from adp_async.testing import FakeBlockingSession

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Group(ModuleType):
    """A process group of two ranks, which are threads."""

    def __init__(self) -> None:
        super().__init__("torch.distributed")
        self.ranks = threading.local()
        self.meeting = threading.Barrier(2, timeout=60)
        self.sent: Any = None

    def get_rank(self) -> int:
        rank: int = self.ranks.rank
        return rank

    def barrier(self) -> None:
        self.meeting.wait()

    def broadcast_object_list(self, box: list[Any], src: int) -> None:
        if self.get_rank() == src:
            self.sent = box[0]
        self.meeting.wait()
        box[0] = self.sent

    def run(self, *bodies: Callable[[], object]) -> list[Any]:
        """What each rank returned, or raised."""

        def within(rank: int, body: Callable[[], object]) -> object:
            self.ranks.rank = rank
            try:
                return body()
            except Exception as error:
                return error

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(within, range(len(bodies)), bodies))


class Store:
    """As much of a ``TCPStore`` as is needed: who asks for a key waits for it."""

    def __init__(self) -> None:
        self.found: dict[str, bytes] = {}
        self.changed = threading.Condition()

    def set(self, key: str, value: str) -> None:
        with self.changed:
            self.found[key] = value.encode()
            self.changed.notify_all()

    def get(self, key: str) -> bytes:
        with self.changed:
            if not self.changed.wait_for(lambda: key in self.found, timeout=60):
                raise RuntimeError("wait timeout")
            return self.found[key]

    def delete_key(self, key: str) -> bool:
        with self.changed:
            return self.found.pop(key, None) is not None


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Group:
    group, torch = Group(), ModuleType("torch")
    torch.distributed = group  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch.distributed", group)
    return group


@pytest.fixture
def shared(group: Group, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.delitem(sys.modules, "adp_async.integrations.torch", raising=False)
    yield importlib.import_module("adp_async.integrations.torch").shared
    del sys.modules["adp_async.integrations.torch"]


@pytest.mark.parametrize("kind", [None, Store], ids=["process group", "store"])
def test_two_ranks(shared: Any, group: Group, kind: type[Store] | None) -> None:
    """Each logs under its own prefix, params are rank 0's; the next block has its own handle."""
    store = None if kind is None else kind()

    def rank(owner: Any) -> None:
        for block in range(3):
            with shared(owner, store=store, listen="127.0.0.1") as run:
                run.log_metric("loss", 0.5, block)
                run.log_param(f"block {block}", "first" if owner else "other")

    with FakeBlockingSession(linger=0.01) as session, session.start_run() as owner:
        assert group.run(lambda: rank(owner), lambda: rank(None)) == [None, None]
        owner.flush()
        received = session.session.received(owner.run_id)
    found = sorted((point.key, point.step) for point in received.metrics)
    assert found == [(f"rank{rank}/loss", block) for rank in range(2) for block in range(3)]
    assert received.params == [(f"block {block}", "first") for block in range(3)]


@pytest.mark.parametrize("kind", [None, Store], ids=["process group", "store"])
def test_a_run_that_cannot_be_shared(shared: Any, group: Group, kind: type[Store] | None) -> None:
    """The other ranks are told, instead of waiting for a handle until the group gives up."""
    store = None if kind is None else kind()

    def rank(owner: Any) -> None:
        with shared(owner, store=store, listen="192.0.2.1"):
            raise AssertionError("it was entered")

    with FakeBlockingSession() as session, session.start_run() as owner:
        mine, other = group.run(lambda: rank(owner), lambda: rank(None))
    assert isinstance(mine, ConfigurationError)
    assert "cannot listen on" in str(mine)
    assert str(other) == "rank 0 could not share the run; its own error says why"


def test_ranks_that_are_started_again(
    shared: Any, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the store still has of those before them, which died, is not theirs."""
    store = Store()
    store.set("adp_async/handle/0", "of a rank 0 that died")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")

    def rank(owner: Any) -> None:
        with shared(owner, store=store, listen="127.0.0.1") as run:
            run.log_metric("loss", 0.5)

    with FakeBlockingSession(linger=0.01) as session, session.start_run() as owner:
        assert group.run(lambda: rank(owner), lambda: rank(None)) == [None, None]


@pytest.mark.parametrize("rank", [0, 1])
def test_who_has_the_run(shared: Any, group: Group, rank: int) -> None:
    """Rank 0, and nobody else."""
    group.ranks.rank = rank
    with FakeBlockingSession() as session, session.start_run() as owner:
        given = None if rank == 0 else owner
        with pytest.raises(ValueError, match="given in rank 0"), shared(given):
            raise AssertionError("it was entered")
