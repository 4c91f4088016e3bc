"""What ``sync --list --json`` prints: fields that stay, for programs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from adp_async.entities._entity import moment

if TYPE_CHECKING:
    from adp_async._io.spool_report import Contents, RunRow
    from adp_async._sansio.run_start import RunStart

__all__ = ["fields_of"]


def fields_of(contents: Contents) -> dict[str, object]:
    """A spool: its place, how many records *waiting* by run, and those *rejected*.

    *starts*: runs that its process had started and not ended.  *run_id* is None for one that is not
    created yet, whose records are those of *key*; *status* is how it ended, None if it was killed.
    *trouble* is why it cannot be read, or not all of it; *last_error* the service's last one.  Both
    are None without, and so are the places of a spool that cannot be read.
    """
    identity = contents.identity
    return {
        "path": str(contents.path),
        "endpoint": identity.endpoint if identity else None,
        "platform_id": identity.platform_id if identity else None,
        "workspace": (identity.workspace or None) if identity else None,
        "waiting": contents.records,
        "runs": [_run_fields(run) for run in contents.runs],
        "starts": [_start_fields(start) for start in contents.starts],
        "rejected": [
            {"run_id": row.run_id, "kind": row.kind, "key": row.key, "reason": row.reason}
            for row in contents.rejected
        ],
        "last_error": contents.last_error or None,
        "trouble": contents.trouble or None,
    }


def _start_fields(start: RunStart) -> dict[str, object]:
    return {
        "key": start.key,
        "run_id": start.run_id,
        "run_name": start.run_name,
        "experiment": start.experiment,
        "experiment_id": start.experiment_id,
        "status": start.end.status if start.end is not None else None,
    }


def _run_fields(run: RunRow) -> dict[str, object]:
    oldest = moment(int(run.oldest * 1000)) if math.isfinite(run.oldest) else None
    return {
        "run_id": run.run_id,
        "metrics": run.metrics,
        "params": run.params,
        "tags": run.tags,
        "oldest": oldest.isoformat() if oldest else None,
    }
