"""A run in a worker: the faces of `adp_async.Run`, with what many processes of one run need."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any, Final, Literal

import anyio
import attrs

from adp_async._blocking_runs import Run as BlockingRun
from adp_async._io.log import logger
from adp_async._sansio.records import Param, RunTag, Verdict
from adp_async._sansio.values import pairs_of
from adp_async.collector.ranks import find_rank, find_task
from adp_async.collector.rejected import from_wire
from adp_async.collector.session import ENTER, FLUSH, LEAVE, entered, exited, session_of
from adp_async.errors import (
    AdpError,
    type_name,
)
from adp_async.run import Run
from adp_async.writer import Receipts, RunWriter

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

    from adp_async._io.uploads import Uploader
    from adp_async._sansio.records import AnyRecord
    from adp_async._sansio.statuses import EndStatus
    from adp_async._sansio.values import Metrics, MetricValue, WholeNumber
    from adp_async._sansio.values import Texts as TextValues
    from adp_async.collector.handle import Commit, Handle, Texts
    from adp_async.collector.session import WorkerSession
    from adp_async.stats import Stats
    from adp_async.writer import Receipt

#: Characters of a task's name.
LONGEST_NAME: Final = 200
#: Seconds that entering waits for the collector's greeting, and exiting for its goodbye.
GREETING: Final = 5.0


class _NotMine(Verdict):
    """The verdict on a param or tag of another rank than 0."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<not logged: params and tags are those of rank 0>"


NOT_MINE: Final = _NotMine()


@attrs.define(eq=False)
class Part:
    """This process's part of the run: what it is called, and what of it counts."""

    prefix: str
    takes_texts: bool
    id: str = attrs.field(factory=lambda: uuid.uuid4().hex)
    #: Params and tags that were not logged.
    dropped: int = 0


class _WorkerWriter(RunWriter):
    """``log_*`` with the prefix and the rank of a worker."""

    _part: Part

    def log_metric(
        self,
        key: str,
        value: MetricValue,
        step: WholeNumber | None = 0,
        timestamp: WholeNumber | None = None,
    ) -> Receipt:
        """As `Run.log_metric`; the key gets this worker's prefix."""
        return super().log_metric(self._named(key), value, step, timestamp)

    def log_metrics(
        self,
        metrics: Metrics,
        step: WholeNumber | None = 0,
        timestamp: WholeNumber | None = None,
    ) -> Receipts:
        """As `Run.log_metrics`; the keys get this worker's prefix."""
        if self._part.prefix:
            pairs = pairs_of(metrics, "log_metrics", instead="log_metric(key, value)")
            metrics = {self._named(key): value for key, value in pairs}  # type: ignore[misc]
        return super().log_metrics(metrics, step, timestamp)

    def log_param(self, key: str, value: object) -> Receipt:
        """As `Run.log_param`; of another rank than 0 it is dropped, and counted."""
        return (
            self._not_mine([self._text(Param, "param", key, value)])[0]
            if self._drops()
            else (super().log_param(key, value))
        )

    def log_params(self, params: TextValues) -> Receipts:
        """As `Run.log_params`; of another rank than 0 they are dropped, and counted."""
        if not self._drops():
            return super().log_params(params)
        pairs = pairs_of(params, "log_params", instead="log_param(key, value)")
        return self._not_mine([self._text(Param, "param", *pair) for pair in pairs])

    def set_tag(self, key: str, value: object) -> Receipt:
        """As `Run.set_tag`; of another rank than 0 it is dropped, and counted."""
        return (
            self._not_mine([self._text(RunTag, "tag", key, value)])[0]
            if self._drops()
            else (super().set_tag(key, value))
        )

    def set_tags(self, tags: TextValues) -> Receipts:
        """As `Run.set_tags`; of another rank than 0 they are dropped, and counted."""
        if not self._drops():
            return super().set_tags(tags)
        pairs = pairs_of(tags, "set_tags", instead="set_tag(key, value)")
        return self._not_mine([self._text(RunTag, "tag", *pair) for pair in pairs])

    def _named(self, key: Any) -> Any:
        prefix = self._part.prefix
        return prefix + key if prefix and issubclass(type(key), str) else key

    def _drops(self) -> bool:
        return not self._part.takes_texts

    def _not_mine(self, records: Sequence[AnyRecord]) -> Receipts:
        self._part.dropped += len(records)
        for record in records:
            record.place = NOT_MINE
        return Receipts(records)

    def _counted(self, stats: Stats) -> Stats:
        dropped = self._part.dropped
        return attrs.evolve(
            stats, accepted=stats.accepted + dropped, dropped=stats.dropped + dropped
        )


class _AsyncWorkerRun(_WorkerWriter, Run):
    """A worker's run for code on an event loop: ``async with handle.attach() as run``."""

    def __init__(self, worker: WorkerRun) -> None:
        session = worker._session.session
        super().__init__(worker.run_id, session)
        self._worker = worker
        self._part = worker._part

    @property
    def _uploader(self) -> Uploader:
        raise _no_artifacts()

    async def flush(self, delivered: bool = False) -> None:
        """Wait until the collector has everything on disk; with *delivered*, the service.

        Raises `DeliveryError` naming what was refused; with *delivered* also what the service has
        refused of what this process has handed over, once.
        """
        await super().flush()
        if delivered:
            await self._worker._in_thread(self._worker._until_delivered())

    async def finish(self, status: EndStatus = "FINISHED") -> None:
        """The run is ended by the process that shares it: raises `AdpError`."""
        raise _not_ours()

    def stats(self) -> Stats:
        """Counts of this process as of now: *delivered* is what the collector has."""
        return self._counted(super().stats())


class WorkerRun(_WorkerWriter, BlockingRun):
    """A shared run in another process; see `Handle.attach`.  Thread-safe.

    ``async with`` gives the same with an asynchronous ``flush``.
    """

    _session: WorkerSession

    def __init__(self, run_id: str, session: WorkerSession, part: Part) -> None:
        super().__init__(session.session.attach_run(run_id), session)
        self._part = part
        self.handle = session.handle

    @property
    def _uploader(self) -> Uploader:
        raise _no_artifacts()

    def flush(self, timeout: float | None = None, *, delivered: bool = False) -> None:
        """Wait until the collector has everything on disk; with *delivered*, the service.

        Raises `DeliveryError` naming what was refused, with *delivered* also what the service has
        refused of what this process has handed over, once; `TimeoutError` after *timeout* seconds.
        """
        ends_at = None if timeout is None else time.monotonic() + timeout
        super().flush(timeout)
        if delivered:
            left = None if ends_at is None else max(0.0, ends_at - time.monotonic())
            self._session.call(self._until_delivered(), left)

    def finish(self, status: EndStatus = "FINISHED") -> None:
        """The run is ended by the process that shares it: raises `AdpError`."""
        raise _not_ours()

    def stats(self) -> Stats:
        """Counts of this process as of now: *delivered* is what the collector has."""
        return self._counted(super().stats())

    async def _until_delivered(self) -> None:
        """In the session's thread."""
        session = self._session
        while True:
            before = session.told.get(self.run_id, 0)
            asked = {"run_id": self.run_id, "told": before}
            answer: Any = await session.session.call(FLUSH, body=asked)
            if answer["settled"]:
                break
        session.told[self.run_id] = max(answer["told"], session.told.get(self.run_id, 0))
        if answer["told"] > before:
            raise from_wire(self.run_id, answer["rejected"], answer["told"] - before)

    # Entering and exiting

    def __enter__(self) -> Self:
        self._session.call(self._greet())
        entered(self._session)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            super().__exit__(kind, error, traceback)
        finally:
            exited(self._session)
            self._session.call(self._say(LEAVE))

    async def __aenter__(self) -> _AsyncWorkerRun:
        await self._in_thread(self._greet())
        entered(self._session)
        return _AsyncWorkerRun(self)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with anyio.CancelScope(shield=True):
            try:
                await self._run.__aexit__(kind, error, traceback)
            finally:
                exited(self._session)
                await self._in_thread(self._say(LEAVE))

    async def _in_thread(self, doing: Any) -> Any:
        thread = self._session._thread
        assert thread is not None
        return await thread.run(doing)

    async def _greet(self) -> None:
        """Tell the collector that we are here.  Raises when it refuses us."""
        try:
            await self._session.session.call(ENTER, body={"id": self._part.id}, timeout=GREETING)
        except AdpError as error:
            if not error.retriable:  # it refuses us, or has another one's certificate
                raise
            message = "run %s: the collector does not answer; what is logged waits for it: %s"
            logger.warning(message, self.run_id, error, extra={"run_id": self.run_id})

    async def _say(self, endpoint: Any) -> None:
        try:
            await self._session.session.call(endpoint, body={"id": self._part.id}, timeout=GREETING)
        except AdpError as error:
            message = "run %s: the collector did not hear of the end: %s"
            logger.debug(message, self.run_id, error, extra={"run_id": self.run_id})


def attach(
    handle: Handle,
    run_id: str | None,
    *,
    prefix: str | None,
    rank: int | Literal["auto"] | None,
    texts: Texts,
    attempt: str | None,
    commit: Commit,
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
        from adp_async.collector.attempt_run import AttemptRun

        return AttemptRun(handle, run_id, part, _task_of(attempt))
    return WorkerRun(run_id, session_of(handle), part)


def _task_of(attempt: str | None) -> str:
    task = find_task() if attempt == "auto" else attempt
    if task is None:
        what = "no engine here says which task this is" if attempt else "it is not given"
        raise ValueError(f"attempt: commit='task' needs the name of the task, and {what}")
    return task


def _run_of(handle: Handle, run_id: str | None) -> str:
    if run_id is None:
        if handle.run_id is None:
            raise ValueError("run_id: this handle is for a session; say which of its runs")
        return handle.run_id
    if handle.run_id not in (None, run_id):
        raise ValueError(f"run_id: this handle is for the run {handle.run_id} alone")
    return run_id


def _not_ours() -> AdpError:
    return AdpError("a shared run is ended by the process that shares it")


def _no_artifacts() -> AdpError:
    message = (
        "artifacts need credentials, which this process does not have: upload them in the process "
        "that shares the run"
    )
    return AdpError(message)
