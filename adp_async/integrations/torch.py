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

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch.distributed as dist

from adp_async.collector import Handle

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
    handed over what it has logged when it exits; rank 0 waits for the others.
    """
    rank = dist.get_rank()
    if (run is None) != (rank != 0):
        raise ValueError("run: is given in rank 0, and None in the others")
    with ExitStack() as stack:
        handle = None
        if run is not None:
            handle = stack.enter_context(run.shared(listen, advertise=advertise))
        handle = _handed_over(handle, store)
        with handle.attach(rank=rank, prefix=prefix, texts=texts) as worker:
            # Nobody leaves before all have come.
            dist.barrier()
            yield worker


def _handed_over(handle: Handle | None, store: dist.Store | None) -> Handle:
    if store is None:
        box: list[Any] = [handle]
        dist.broadcast_object_list(box, src=0)
        found: Handle = box[0]
        return found
    if handle is not None:
        store.set(_KEY, handle.to_json())
        return handle
    return Handle.from_json(store.get(_KEY))
