"""A worker's run that counts only if its block ends well: ``commit="task"``."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Any, Self

import anyio

from adp_async._io.log import logger
from adp_async.collector.presence import GREETING
from adp_async.collector.session import ABORT, COMMIT, Whose, WorkerSession, exited
from adp_async.collector.worker import WorkerRun
from adp_async.errors import AdpError, Conflict
from adp_async.run import attach_note

if TYPE_CHECKING:
    from types import TracebackType

    from adp_async.collector.handle import Handle
    from adp_async.collector.worker import AsyncWorkerRun
    from adp_async.collector.worker_writer import Part


class AttemptRun(WorkerRun):
    """One attempt of a task.  It has a session of its own, which its block closes."""

    def __init__(self, handle: Handle, run_id: str, part: Part, task: str) -> None:
        session = WorkerSession(Whose(handle, task, uuid.uuid4().hex)).open()
        super().__init__(run_id, session, part)
        self.task = task

    def __enter__(self) -> Self:
        try:
            return super().__enter__()
        except BaseException:
            self._session.close()
            raise

    async def __aenter__(self) -> AsyncWorkerRun:
        try:
            return await super().__aenter__()
        except BaseException:
            await asyncio.to_thread(self._session.close)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._is_of_parent:  # which commits it
            super().__exit__(kind, error, traceback)
            return
        session = self._session
        exited(session)
        try:
            session.call(self._end(error))
        finally:
            session.close()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        session = self._session
        exited(session)
        with anyio.CancelScope(shield=True):
            try:
                await self._in_thread(self._end(error))
            finally:
                await asyncio.to_thread(session.close)

    async def _end(self, error: BaseException | None) -> None:
        """In the session's thread: what was logged counts, or is thrown away."""
        try:
            if error is None:
                await self._run.__aexit__(None, None, None)
                await self._commit()
            else:
                await self._abort(error)
        except BaseException as failure:
            if error is None:
                await self._abort(failure)
            raise
        finally:
            await self._leave()

    async def _commit(self) -> None:
        try:
            await self._session.session.call(COMMIT, body=self._body())
        except Conflict as conflict:
            if conflict.code != "AlreadyCommitted":
                raise
            message = "run %s: the task %r has ended well before; this attempt does not count"
            logger.warning(message, self.run_id, self.task, extra={"run_id": self.run_id})

    async def _abort(self, error: BaseException) -> None:
        self.discard()
        try:
            await self._session.session.call(ABORT, body=self._body(), timeout=GREETING)
        except AdpError as failure:
            # What it has handed over is never committed, and thrown away in the end.
            attach_note(error, failure)

    def _body(self) -> dict[str, Any]:
        return {"id": self._part.id, "run_id": self.run_id}
