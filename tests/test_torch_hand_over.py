"""How torch's ranks get the handle, without torch; `test_cluster_engines` has the real one."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from adp_async.testing import FakeBlockingSession

if TYPE_CHECKING:
    from collections.abc import Iterator


class Group(ModuleType):
    """A process group whose ranks take turns in one process."""

    def __init__(self) -> None:
        super().__init__("torch.distributed")
        self.rank = self.barriers = 0
        self.sent: Any = None

    def get_rank(self) -> int:
        return self.rank

    def barrier(self) -> None:
        self.barriers += 1

    def broadcast_object_list(self, box: list[Any], src: int) -> None:
        if self.rank == src:
            self.sent = box[0]
        box[0] = self.sent


class Store(dict[str, bytes]):
    """As much of a ``TCPStore`` as is needed."""

    def set(self, key: str, value: str) -> None:
        self[key] = value.encode()

    def get(self, key: str) -> bytes:  # type: ignore[override]
        return self[key]


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


@pytest.mark.parametrize("store", [None, Store()], ids=["process group", "store"])
def test_two_ranks(shared: Any, group: Group, store: Store | None) -> None:
    """Each logs under its own prefix; params are rank 0's; all come before anybody leaves."""
    with FakeBlockingSession(linger=0.01) as session, session.start_run() as owner:
        with shared(owner, store=store, listen="127.0.0.1") as run:
            run.log_metric("loss", 0.5)
            run.log_param("ranks", 2)
            group.rank = 1
            with shared(None, store=store) as other:
                other.log_metric("loss", 0.25)
                other.log_param("ranks", 3)
            group.rank = 0
        owner.flush()
        received = session.session.received(owner.run_id)
    assert sorted(point.key for point in received.metrics) == ["rank0/loss", "rank1/loss"]
    assert received.params == [("ranks", "2")]
    assert group.barriers == 2


@pytest.mark.parametrize("rank", [0, 1])
def test_who_has_the_run(shared: Any, group: Group, rank: int) -> None:
    """Rank 0, and nobody else."""
    group.rank = rank
    with FakeBlockingSession() as session, session.start_run() as owner:
        given = None if rank == 0 else owner
        with pytest.raises(ValueError, match="given in rank 0"), shared(given):
            raise AssertionError("it was entered")
