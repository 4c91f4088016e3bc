"""A run in a worker: the faces of `adp_async.Run`, with what many processes of one run need."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import anyio

from adp_async._blocking_runs import Run as BlockingRun
from adp_async.collector.rejected import from_wire
from adp_async.collector.session import FLUSH, entered, exited
from adp_async.collector.worker_writer import WorkerWriter
from adp_async.errors import AdpError
from adp_async.run import Run

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from adp_async._sansio.statuses import EndStatus
    from adp_async.collector.session import WorkerSession
    from adp_async.collector.worker_writer import Part
    from adp_async.stats import Stats


class AsyncWorkerRun(WorkerWriter, Run):
    """A worker's run for code on an event loop: ``async with handle.attach() as run``."""

    def __init__(self, worker: WorkerRun) -> None:
        session = worker._session.session
        super().__init__(worker.run_id, session)
        self._worker = worker
        self._part = worker._part

    def __reduce__(self) -> tuple[Any, ...]:
        return self._worker.__reduce__()

    def _upload(self, found: Any, to: str = "") -> NoReturn:
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


class WorkerRun(WorkerWriter, BlockingRun):
    """A shared run in another process; see `Handle.attach`.  Thread-safe.

    ``async with`` gives the same with an asynchronous ``flush``.
    """

    _session: WorkerSession
    _is_strict: ClassVar = True
    _for_a_loop: ClassVar = AsyncWorkerRun

    def __init__(self, run_id: str, session: WorkerSession, part: Part) -> None:
        run = session.session.attach_run(run_id, strict=self._is_strict)
        super().__init__(run, session)
        self._part = part
        self.handle = session.handle
        session.users.add(self)

    def _upload(self, found: Any, to: str = "") -> NoReturn:
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
        self._session.call(self._enter())
        entered(self._session)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._is_of_parent:  # which exits the block
            super().__exit__(kind, error, traceback)
            return
        try:
            super().__exit__(kind, error, traceback)
        finally:
            exited(self._session)
            self._session.call(self._leave())

    async def __aenter__(self) -> AsyncWorkerRun:
        await self._in_thread(self._enter())
        entered(self._session)
        return self._for_a_loop(self)

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
                await self._in_thread(self._leave())

    async def _in_thread(self, doing: Any) -> Any:
        thread = self._session._thread
        assert thread is not None
        return await thread.run(doing)

    async def _enter(self) -> None:
        await self._session.presence.enter(self._part.id, self.run_id)

    async def _leave(self) -> None:
        await self._session.presence.leave(self._part.id, self.run_id)

    @property
    def _is_of_parent(self) -> bool:
        """Whether it was entered in the process that this one was forked from."""
        return self._is_inherited or self._is_parents

    def __reduce__(self) -> tuple[Any, ...]:
        """For a process that this one starts: the same part of the run there."""
        from adp_async.collector.attaching import attach_again

        return attach_again, (self._session.whose, self.run_id, self._part, self._is_strict)


def _not_ours() -> AdpError:
    return AdpError("a shared run is ended by the process that shares it")


def _no_artifacts() -> AdpError:
    message = (
        "artifacts need credentials, which this process does not have: upload them in the process "
        "that shares the run"
    )
    return AdpError(message)
