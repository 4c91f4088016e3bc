"""Which of many processes this one is."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: Of torchrun, Slurm and Open MPI.
VARIABLES: Final = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")


def find_rank(environ: Mapping[str, str] | None = None) -> int | None:
    """The rank of this process as its launcher says it; None where nobody does.

    Engines that this process has not imported are not asked.
    """
    environ = os.environ if environ is None else environ
    for name in VARIABLES:
        if (text := environ.get(name, "").strip()).isdecimal():
            return int(text)
    for module, ask in _ENGINES.items():
        if (engine := sys.modules.get(module)) is not None and (
            rank := _asked(ask, engine)
        ) is not None:
            return rank
    return None


def _asked(ask: Callable[[Any], Any], engine: Any) -> int | None:
    try:
        rank = ask(engine)
    except Exception:  # an engine that is imported, but not where this runs
        return None
    return rank if isinstance(rank, int) and rank >= 0 else None


def _rank_in_spark(pyspark: Any) -> Any:
    context = pyspark.TaskContext.get()
    return None if context is None else context.partitionId()


def _rank_in_ray(train: Any) -> Any:
    return train.get_context().get_world_rank()


_ENGINES: Final[dict[str, Callable[[Any], Any]]] = {
    "pyspark": _rank_in_spark,
    "ray.train": _rank_in_ray,
}
