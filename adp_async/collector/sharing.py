"""What `run.shared()` and `session.shared()` return: a collector, open within a ``with`` block."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import anyio

from adp_async.collector.collector import Collector
from adp_async.errors import Closed

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

    from adp_async._hop import Carrier
    from adp_async._io.engine import Engine
    from adp_async._io.loop_thread import LoopThread
    from adp_async.collector.collector import CollectorStats
    from adp_async.collector.handle import Handle
    from adp_async.errors import AdpError


#: Seconds that workers are waited for when the owner's body has raised.
AFTER_AN_ERROR: Final = 2.0


class Shared:
    """A run, or a session, that other processes log into: ``with run.shared() as handle``.

    ``async with`` is the same.  *handle* is what they need, `stats` what they have handed over.
    Exiting waits for those that are within their own ``with`` block, for at most
    ``close_timeout``, and not for one that was not heard of for 30 s; when the body has raised,
    for 2 s.  What was handed over is then the session's to deliver, as if it had been logged here.

    `open` and `close` are for owners without a block, such as a web server's master process.
    """

    def __init__(
        self,
        engine: Engine,
        run_id: str | None,
        listen: str | os.PathLike[str] | None = None,
        advertise: str | None = None,
        carrier: Carrier | None = None,
        token: str | None = None,
    ) -> None:
        self._engine = engine
        self._collector = Collector(
            engine, run_id, listen=listen, advertise=advertise, carrier=carrier, token=token
        )
        self._unhook: Callable[[], None] | None = None

    @property
    def handle(self) -> Handle:
        """The way to it, for other processes.  Raises `Closed` unless it is open."""
        handle = self._collector.handle
        if handle is None:
            raise Closed("it is not shared yet: use it as `with run.shared() as handle:`")
        return handle

    def stats(self) -> CollectorStats:
        """What was handed over, in all and by worker.  From any thread."""
        return self._collector.stats()

    async def answer(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body of the reply to a request that a `Carrier` brought.

        On any event loop of this process.  Raises `Closed`.
        """
        return await self._collector.answer(method, target, headers, body)

    async def refuse(
        self, headers: Mapping[str, str], found: Mapping[str, Any], error: AdpError
    ) -> int:
        """Count the records of a log-batch as rejected for *error*; returns how many there are.

        *found* is its body.  On any event loop of this process.  Raises `Closed`.
        """
        return await self._collector.refuse(headers, found, error)

    def __repr__(self) -> str:
        return repr(self._collector.handle or "<Shared, not open>")

    def open(self) -> Handle:
        """Listen, and return the handle; what entering does.  Blocks, as does `close`."""
        thread = self._thread()
        with self._or_shut(thread):
            handle = thread.wait(self._collector.open())
            self._hook()
        return handle

    def close(self) -> None:
        """Wait for workers that are within their block, and answer nobody any more."""
        self._close(None)

    def _close(self, error: BaseException | None) -> None:
        thread = self._engine.thread
        if thread is not None and thread.is_alive:
            thread.wait(self._collector.close(timeout=_patience(error)))
        self._forget()

    def __enter__(self) -> Handle:
        return self.open()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close(error)

    async def __aenter__(self) -> Handle:
        thread = self._thread()
        with self._or_shut(thread):
            handle = await thread.run(self._collector.open())
            self._hook()
        return handle

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        thread = self._engine.thread
        if thread is not None and thread.is_alive:
            with anyio.CancelScope(shield=True):
                await thread.run(self._collector.close(timeout=_patience(error)))
        self._forget()

    @contextmanager
    def _or_shut(self, thread: LoopThread) -> Iterator[None]:
        """One that was interrupted or cancelled as it opened is not open, whatever it has done."""
        try:
            yield
        except BaseException:
            thread.call_soon(partial(_start, thread, self._collector))
            raise

    def _thread(self) -> LoopThread:
        self._engine.lifetime.check()
        thread = self._engine.thread
        assert thread is not None
        return thread

    def _hook(self) -> None:
        """A session that closes takes nothing more, whoever forgot to exit this."""
        thread = self._thread()

        def shut(_: object) -> None:
            thread.call_soon(partial(_start, thread, self._collector))

        self._unhook = self._engine.close_hooks.add(shut)

    def _forget(self) -> None:
        unhook, self._unhook = self._unhook, None
        if unhook is not None:
            unhook()


def _patience(error: BaseException | None) -> float | None:
    """How long workers are waited for; None is ``close_timeout``."""
    return None if error is None else AFTER_AN_ERROR


def _start(thread: LoopThread, collector: Collector) -> None:
    task = thread.loop.create_task(collector.shut(), name="adp_async collector ends")
    _ending.add(task)
    task.add_done_callback(_ending.discard)


_ending: set[object] = set()
