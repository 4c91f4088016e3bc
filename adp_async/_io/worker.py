"""Daemon threads that do the blocking jobs of event loops."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import queue
import threading
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from adp_async._io.log import logger
from adp_async.errors import Closed

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_Future: TypeAlias = "asyncio.Future[Any] | concurrent.futures.Future[Any]"
_Job: TypeAlias = "tuple[_Future, Callable[..., Any], tuple[Any, ...]]"


_here = threading.local()


def is_worker_here() -> bool:
    """Whether this is a worker's thread: finalizers may run in it, and log."""
    return getattr(_here, "is_worker", False)


class Worker:
    """Does its jobs one after the other, in the order they came; *threads* at a time.

    Not an executor: the interpreter waits for an executor's threads when it ends, and a refresh
    can hang for minutes; it also costs six times as much a job.
    """

    def __init__(self, name: str, *, threads: int = 1) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._pid = os.getpid()
        self._threads = threads
        for _ in range(threads):
            threading.Thread(target=self._work, name=name, daemon=True).start()

    def do(self, function: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        """Call *function* in a thread, for the running event loop."""
        self._check_process()
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._jobs.put((future, function, arguments))
        return future

    def submit(self, function: Callable[..., T]) -> concurrent.futures.Future[T]:
        """The same, for a waiter on any event loop."""
        self._check_process()
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._jobs.put((future, function, ()))
        return future

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            # Only the forking thread exists in the child: nobody would ever do the job.
            raise Closed("it belongs to the parent process; open a session in this process")

    def stop(self) -> None:
        for _ in range(self._threads):
            self._jobs.put(None)

    def _work(self) -> None:
        _here.is_worker = True
        while (job := self._jobs.get()) is not None:
            future, function, arguments = job
            if not future.cancelled():
                _do(future, function, arguments)
            # Keep nothing alive while waiting for the next job.
            del job, future, function, arguments


def _do(future: _Future, function: Callable[..., Any], arguments: Any) -> None:
    try:
        result = function(*arguments)
    except BaseException as error:  # it belongs to the waiter of the future
        _answer(future, future.set_exception, error)
    else:
        _answer(future, future.set_result, result)


def _answer(future: _Future, settle: Callable[[Any], None], outcome: object) -> None:
    if isinstance(future, concurrent.futures.Future):
        settle(outcome)
        return

    def answer() -> None:
        if not future.done():
            settle(outcome)

    try:
        future.get_loop().call_soon_threadsafe(answer)
    except RuntimeError:
        logger.debug("a job was done after its event loop had been closed")
