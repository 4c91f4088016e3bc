"""One run from the ranks of a torch process group: rank 0 collects what all of them log.

from adp_async.integrations.torch import shared

dist.init_process_group("gloo")
owner = adp_async.blocking.start_run("digits") if dist.get_rank() == 0 else None
with shared(owner) as run:                    # in every rank
    run.log_metric("loss", 0.5, step)         # rank0/loss, rank1/loss, ...
if owner is not None:
    owner.finish()
"""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch.distributed as dist

from adp_async.collector import Handle
from adp_async.errors import AdpError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adp_async import blocking
    from adp_async.collector.worker import WorkerRun

__all__ = ["shared"]

_KEY = "adp_async/handle"


@contextmanager
def shared(
    run: blocking.Run | None,
    *,
    store: dist.Store | None = None,
    listen: str = "0.0.0.0",  # noqa: S104 - by TLS, with a token
    advertise: str | None = None,
    prefix: str | None = None,
    texts: Literal["rank0", "all"] = "rank0",
) -> Iterator[WorkerRun]:
    """The run of rank 0, in every rank of the default process group: ``with shared(run) as run``.

    *run* is given in rank 0 and None elsewhere, where no credentials are needed.  *store*: hands
    the handle over, such as a ``TCPStore``; by default the process group does.  *listen*,
    *advertise*: see `adp_async.Run.shared`; *prefix*, *texts*: see `Handle.attach`.  Every rank has
    handed over what it has logged when it exits; rank 0 waits for the others.  Raises `AdpError`
    in all ranks when rank 0 cannot share it.
    """
    rank = dist.get_rank()
    if (run is None) != (rank != 0):
        raise ValueError("run: is given in rank 0, and None in the others")
    with ExitStack() as stack:
        handle = None
        try:
            if run is not None:
                handle = stack.enter_context(run.shared(listen, advertise=advertise))
        finally:  # also when it cannot be: the others wait for it
            handle = _handed_over(handle, store, rank)
        if handle is None:
            raise AdpError("rank 0 could not share the run; its own error says why")
        with handle.attach(rank=rank, prefix=prefix, texts=texts) as worker:
            # Nobody leaves before all have come.
            dist.barrier()
            if store is not None:
                _forget(store, rank)
            yield worker


def _handed_over(handle: Handle | None, store: dist.Store | None, rank: int) -> Handle | None:
    """Rank 0's *handle*, in all ranks; None when it has none."""
    if store is None:
        box: list[Any] = [handle]
        dist.broadcast_object_list(box, src=0)
        found: Handle | None = box[0]
        return found
    if rank == 0:
        store.set(_key(), "" if handle is None else handle.to_json())
        return handle
    text = store.get(_key())
    return Handle.from_json(text) if text else None


def _forget(store: dist.Store, rank: int) -> None:
    """All have the handle: the next block's ranks must wait for theirs."""
    if rank == 0:
        store.delete_key(_key())
    dist.barrier()


def _key() -> str:
    """A store outlives the ranks that torchrun starts again."""
    return f"{_KEY}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
