"""Makes a worker's run of a handle, and checks what it is asked for."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final, Literal

from adp_async.collector.ranks import find_rank, find_task
from adp_async.collector.session import Whose, session_of, sessions
from adp_async.collector.worker import WorkerRun
from adp_async.collector.worker_writer import Part
from adp_async.errors import type_name

if TYPE_CHECKING:
    from adp_async.collector.handle import Commit, Handle, Texts
    from adp_async.collector.session import WorkerSession

#: Characters of a task's name.
LONGEST_NAME: Final = 200


def attach(
    handle: Handle,
    run_id: str | None,
    *,
    prefix: str | None,
    rank: int | Literal["auto"] | None,
    texts: Texts,
    attempt: str | None,
    commit: Commit,
    strict: bool,
) -> WorkerRun:
    """What `Handle.attach` does."""
    if rank == "auto":
        rank = find_rank()
    elif rank is not None and (type(rank) is not int or rank < 0):
        raise ValueError(f"rank: must be 0 or more, 'auto' or None, not {rank!r:.80}")
    if texts not in ("rank0", "all"):
        raise ValueError(f"texts: must be 'rank0' or 'all', not {texts!r:.80}")
    if commit not in ("stream", "task"):
        raise ValueError(f"commit: must be 'stream' or 'task', not {commit!r:.80}")
    if attempt is not None and not (type(attempt) is str and 0 < len(attempt) <= LONGEST_NAME):
        raise ValueError(f"attempt: must be the name of a task, not {attempt!r:.80}")
    if prefix is not None and not isinstance(prefix, str):
        raise ValueError(f"prefix: must be a str, not {type_name(prefix)}")
    if prefix is None:
        prefix = "" if rank is None else "rank{rank}/"
    name = prefix.replace("{rank}", "" if rank is None else str(rank))
    part = Part(name, takes_texts=texts == "all" or not rank)
    run_id = _run_of(handle, run_id)
    if commit == "task":
        return _attempt(handle, run_id, part, _task_of(handle, attempt), strict=strict)
    with sessions.lock:  # it is in use from its first moment
        return _worker(session_of(Whose(handle)), run_id, part, strict=strict)


def attach_again(whose: Whose, run_id: str, part: Part, strict: bool) -> WorkerRun:
    """A worker's run that was pickled: the same in this process."""
    own = Part(part.prefix, takes_texts=part.takes_texts)
    with sessions.lock:
        return _worker(session_of(whose), run_id, own, strict=strict)


def _worker(session: WorkerSession, run_id: str, part: Part, *, strict: bool) -> WorkerRun:
    if strict:
        return WorkerRun(run_id, session, part)
    from adp_async.collector.lenient_worker import LenientWorkerRun

    return LenientWorkerRun(run_id, session, part)


def _attempt(handle: Handle, run_id: str, part: Part, task: str, *, strict: bool) -> WorkerRun:
    if strict:
        from adp_async.collector.attempt_run import AttemptRun

        return AttemptRun(handle, run_id, part, task)
    from adp_async.collector.lenient_worker import LenientAttemptRun

    return LenientAttemptRun(handle, run_id, part, task)


def _task_of(handle: Handle, attempt: str | None) -> str:
    task = _engine_task(handle) if attempt == "auto" else attempt
    if task is None:
        what = "no engine here says which task this is" if attempt else "it is not given"
        raise ValueError(f"attempt: commit='task' needs the name of the task, and {what}")
    return task


def _engine_task(handle: Handle) -> str | None:
    """The engine's name of this task, as long as one collector is there.

    Spark counts its stages from 0 in each application: the next one that logs into the run does
    other tasks.
    """
    task = find_task()
    share = hashlib.sha256(handle.token.encode()).hexdigest()[:12]
    return None if task is None else f"{share} {task}"


def _run_of(handle: Handle, run_id: str | None) -> str:
    if run_id is None:
        if handle.run_id is None:
            raise ValueError("run_id: this handle is for a session; say which of its runs")
        return handle.run_id
    if handle.run_id not in (None, run_id):
        raise ValueError(f"run_id: this handle is for the run {handle.run_id} alone")
    return run_id
