"""An event loop in a daemon thread, and how other threads and loops wait for it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from typing import TYPE_CHECKING, Any, Final, TypeVar

from adp_async._io.lifetime import keep_forever
from adp_async._io.log import logger
from adp_async._sansio.outward import outward
from adp_async.errors import AdpError, Closed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

T = TypeVar("T")

#: Seconds that calls from other threads get to end when the loop stops, and how often they do.
LAST_CALLS: Final = 0.5
LAST_ROUNDS: Final = 3
#: Seconds to wait for the thread when stopping.
LONGEST_JOIN: Final = 5.0


class LoopThread:
    """Runs coroutines for any thread and any event loop, in one event loop of its own.

    A daemon: the interpreter must not wait for ever for a session that is still open.
    """

    def __init__(self, name: str = "adp_async") -> None:
        self.loop = asyncio.new_event_loop()
        self._pid = os.getpid()
        #: The loop is ending, and everything in it should end.
        self.is_ending = False
        #: What other threads and loops wait for.
        self._calls: dict[concurrent.futures.Future[Any], Coroutine[Any, Any, Any]] = {}
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        try:
            self._thread.start()
        except BaseException:  # the system allows no more threads
            self.loop.close()
            raise

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            while not self.is_ending:
                self._run_on()
            for _ in range(LAST_ROUNDS):  # some tasks may begin others
                self.loop.run_until_complete(_last_calls())
                if not asyncio.all_tasks(self.loop):
                    break
        finally:
            self.loop.close()
            self._cancel_calls()

    def _cancel_calls(self) -> None:
        """Calls that came as the loop closed have not begun, and never will."""
        for future, doing in list(self._calls.items()):
            future.cancel()
            doing.close()

    def _run_on(self) -> None:
        try:
            self.loop.run_forever()
        except BaseException as error:
            # A SystemExit or KeyboardInterrupt ends the task that raised it and is raised to its
            # waiter; the other tasks go on.
            logger.debug("the event loop goes on after %s", type(error).__name__)

    def _end(self) -> None:
        self.is_ending = True
        self.loop.stop()

    @property
    def is_here(self) -> bool:
        """Whether this is the loop's own thread."""
        return threading.get_ident() == self._thread.ident

    @property
    def is_alive(self) -> bool:
        """Whether it can still be waited for."""
        has_ended = self.is_ending or self.loop.is_closed()
        return os.getpid() == self._pid and not has_ended and self._thread.is_alive()

    def call_soon(self, callback: Callable[..., object], *arguments: Any) -> bool:
        """Call *callback* there; False when the loop is gone.  From anywhere."""
        try:
            self.loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            return False
        return True

    async def run(self, doing: Coroutine[Any, Any, T]) -> T:
        """Await *doing* there.  From any event loop; cancelling cancels it."""
        if self.is_here:
            return await doing
        return await asyncio.wrap_future(self._submit(doing))

    def wait(self, doing: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Block this thread until *doing* has ended there; `TimeoutError` after *timeout* seconds.

        Raises `Closed` where the loop cannot be waited for: in its own thread, in a forked child,
        and when it has ended.
        """
        future = self.begin(doing)
        try:
            return result_of(future, timeout)
        except AdpError as error:  # one frame of ours less in front of the caller
            raise error.with_traceback(None) from error.__cause__
        finally:
            del future  # it holds the error, which holds this frame

    def begin(self, doing: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Begin *doing* there, for `result_of`.  Raises `Closed` as `wait` does."""
        try:
            self.check()
        except Closed:
            doing.close()
            raise
        return self._submit(doing)

    def check(self) -> None:
        """Raise `Closed` where the loop cannot be waited for."""
        self._check_alive()
        if self.is_here:
            raise Closed("waiting here would block the session's own event loop")

    def _check_alive(self) -> None:
        if os.getpid() != self._pid:
            raise Closed("the session belongs to the parent process; open one in this process")
        if not self.is_alive:
            raise Closed("the session is closed")

    def _submit(self, doing: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        try:
            self._check_alive()
            future = asyncio.run_coroutine_threadsafe(doing, self.loop)
        except Closed:
            doing.close()
            raise
        except RuntimeError:  # it has ended just now
            doing.close()
            raise Closed("the session is closed") from None
        self._calls[future] = doing
        future.add_done_callback(self._calls.pop)
        if self.loop.is_closed():
            self._cancel_calls()
        return future

    def forked(self) -> None:
        """In a forked child: the loop is the parent's, and what waits in it must not end here."""
        keep_forever(self.loop, *asyncio.all_tasks(self.loop))

    def stop(self) -> None:
        """End the loop and its thread.  From another thread than its own."""
        if self.call_soon(self._end):
            self._thread.join(LONGEST_JOIN)


def result_of(future: concurrent.futures.Future[T], timeout: float | None) -> T:
    """What was begun has come to that; see `LoopThread.wait`.  It is cancelled when that is over.

    *timeout* is in seconds.
    """
    try:
        return future.result(timeout)
    except concurrent.futures.CancelledError:
        raise Closed("the session was closed while this call waited") from None
    except AdpError as error:
        raise outward(error) from error.__cause__
    except TimeoutError:
        if not future.cancel():
            raise  # its own
        raise TimeoutError(f"timed out after {timeout:g} s") from None
    finally:
        future.cancel()  # if a signal's handler has raised, as for Ctrl-C
        del future  # it holds the error, which holds this frame


async def awaited(doing: Awaitable[T]) -> T:
    """A coroutine that awaits *doing*, whatever kind of awaitable that is."""
    return await doing


async def _last_calls() -> None:
    """Let waiting threads get their results; cancel whatever goes on regardless."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        _, lasting = await asyncio.wait(others, timeout=LAST_CALLS)
        for task in lasting:
            task.cancel()
        await asyncio.gather(*lasting, return_exceptions=True)
