"""A worker's run with ``strict=False``: what the others raise is a warning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from adp_async._blocking_runs import Lenient
from adp_async.collector.attempt_run import AttemptRun
from adp_async.collector.worker import AsyncWorkerRun, WorkerRun
from adp_async.run import LenientRun, warned

if TYPE_CHECKING:
    from adp_async._sansio.statuses import EndStatus


class LenientAsyncWorkerRun(AsyncWorkerRun, LenientRun):
    """The same for code on an event loop."""

    async def flush(self, delivered: bool = False) -> None:
        """As `AsyncWorkerRun.flush`, but what was refused is a warning."""
        with warned(self):
            await super().flush(delivered)

    async def finish(self, status: EndStatus = "FINISHED") -> None:
        """The run is ended by the process that shares it, says a warning."""
        with warned(self):
            await super().finish(status)


class _LenientWorker(WorkerRun):
    """What ``strict=False`` changes of a worker's run, with or without an attempt."""

    _is_strict: ClassVar = False
    _for_a_loop: ClassVar = LenientAsyncWorkerRun

    def flush(self, timeout: float | None = None, *, delivered: bool = False) -> None:
        """As `WorkerRun.flush`, but what fails is a warning."""
        with warned(self._inner):
            super().flush(timeout, delivered=delivered)

    def finish(self, status: EndStatus = "FINISHED") -> None:
        """The run is ended by the process that shares it, says a warning."""
        with warned(self._inner):
            super().finish(status)

    def __exit__(self, *given: Any) -> None:
        with warned(self._inner):
            super().__exit__(*given)

    async def __aexit__(self, *given: Any) -> None:
        with warned(self._inner):
            await super().__aexit__(*given)

    async def _enter(self) -> None:
        with warned(self._inner):
            await super()._enter()


class LenientWorkerRun(_LenientWorker, Lenient):
    """A worker's run with ``strict=False``."""


class LenientAttemptRun(_LenientWorker, AttemptRun, Lenient):
    """An attempt with ``strict=False``."""
