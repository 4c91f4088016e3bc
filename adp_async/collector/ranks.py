"""Which of many processes this one is."""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: Of torchrun, Slurm and Open MPI.
VARIABLES: Final = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")
_NUMBER: Final = re.compile("[0-9]{1,9}")


def find_rank(environ: Mapping[str, str] | None = None) -> int | None:
    """The rank of this process as its engine or its launcher says it; None where nobody does.

    The task that it is in goes before the environment, which may be that of the node: a cluster
    that Slurm has started has SLURM_PROCID in all of its workers.  Engines that this process has
    not imported are not asked.
    """
    environ = os.environ if environ is None else environ
    for module, ask in _ENGINES.items():
        if (engine := sys.modules.get(module)) is not None and (
            rank := _asked(ask, engine)
        ) is not None:
            return rank
    for name in VARIABLES:
        if _NUMBER.fullmatch(text := environ.get(name, "").strip()):
            return int(text)
    return None


def find_task() -> str | None:
    """Which task of its engine this is, the same in each attempt; None where nobody says."""
    for module, ask in (("pyspark", _task_in_spark), ("ray", _task_in_ray)):
        engine = sys.modules.get(module)
        if engine is not None and isinstance(task := _answer(ask, engine), str):
            return task
    return None


def _task_in_spark(pyspark: Any) -> str | None:
    context = pyspark.TaskContext.get()
    return None if context is None else f"{context.stageId()}.{context.partitionId()}"


def _task_in_ray(ray: Any) -> Any:
    return ray.get_runtime_context().get_task_id()


def _answer(ask: Callable[[Any], Any], engine: Any) -> Any:
    try:
        return ask(engine)
    except Exception:  # an engine that is imported, but not where this runs
        return None


def _asked(ask: Callable[[Any], Any], engine: Any) -> int | None:
    rank = _answer(ask, engine)
    return rank if type(rank) is int and rank >= 0 else None


def _rank_in_spark(pyspark: Any) -> Any:
    context = pyspark.TaskContext.get()
    return None if context is None else context.partitionId()


def _rank_in_ray(train: Any) -> Any:
    return train.get_context().get_world_rank()


_ENGINES: Final[dict[str, Callable[[Any], Any]]] = {
    "pyspark": _rank_in_spark,
    "ray.train": _rank_in_ray,
}
