"""The local platform in a thread of its own, for code without an event loop."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["Background"]


class Background:
    """Keeps what *begin* starts, in an event loop and thread of its own; `stop` has it end."""

    def __init__(
        self, begin: Callable[[], Awaitable[object]], end: Callable[[], Awaitable[None]]
    ) -> None:
        self._started: Future[None] = Future()
        self._begin = begin
        self._end = end
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(self._keep())
        self._thread = threading.Thread(target=self._run, name="local platform", daemon=True)

    def start(self) -> None:
        """Return when the platform is started; Ctrl-C stops it again."""
        self._thread.start()
        try:
            self._started.result()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the platform, even if it is still starting."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._task.cancel)
            self._thread.join()
        if self._task.done() and not self._task.cancelled():
            self._task.result()

    async def _keep(self) -> None:
        try:
            await self._begin()
            try:
                self._started.set_result(None)
                await asyncio.get_running_loop().create_future()  # until `stop` cancels it
            finally:
                await self._end()
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._kept())

    async def _kept(self) -> None:
        await asyncio.wait([self._task])
