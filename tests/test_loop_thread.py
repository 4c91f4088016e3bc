"""An event loop in a thread of its own, and waiting for it from elsewhere."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from adp_async._io.loop_thread import LoopThread
from adp_async.errors import Closed

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def thread() -> Iterator[LoopThread]:
    thread = LoopThread("a loop of the test")
    yield thread
    thread.stop()


async def forty_two() -> int:
    await asyncio.sleep(0)
    return 42


async def for_ever() -> None:
    await asyncio.Event().wait()


def test_a_thread_waits_for_what_the_loop_does(thread: LoopThread) -> None:
    """It gets the result, the error, or `TimeoutError` when time runs out."""

    async def fail() -> None:
        raise KeyError("its own")

    assert thread.wait(forty_two()) == 42
    with pytest.raises(KeyError, match="its own"):
        thread.wait(fail())
    with pytest.raises(TimeoutError):
        thread.wait(for_ever(), 0.01)
    assert not thread.is_here


async def test_an_event_loop_awaits_it(thread: LoopThread) -> None:
    """From its own loop as well, which is not made to wait for itself."""

    async def there() -> tuple[bool, int]:
        return thread.is_here, await thread.run(forty_two())

    assert await thread.run(there()) == (True, 42)
    waiting = asyncio.create_task(thread.run(for_ever()))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


def test_its_own_thread_may_not_block_for_it(thread: LoopThread) -> None:
    """That would never end, and is an error."""

    async def block() -> None:
        thread.wait(forty_two())

    with pytest.raises(Closed, match="would block"):
        thread.wait(block())


def test_after_its_end_nobody_waits(thread: LoopThread) -> None:
    """Waiters learn that it is closed, and callbacks are refused."""
    waits: list[BaseException] = []

    def wait() -> None:
        try:
            thread.wait(for_ever())
        except Closed as error:
            waits.append(error)

    other = threading.Thread(target=wait)
    other.start()
    while len(asyncio.all_tasks(thread.loop)) == 0:
        pass
    thread.stop()
    other.join(60)
    assert "while this call waited" in str(waits[0])
    with pytest.raises(Closed, match="is closed"):
        thread.wait(forty_two())
    assert not thread.call_soon(print)
    thread.stop()


def test_a_loop_that_ends_just_now(thread: LoopThread, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was alive a moment ago, and takes nothing any more."""
    thread.stop()
    monkeypatch.setattr(LoopThread, "is_alive", True)
    with pytest.raises(Closed, match="is closed"):
        thread.wait(forty_two())


def test_calls_that_come_as_it_ends(thread: LoopThread) -> None:
    """Each is answered or refused: no thread waits for a loop that has closed meanwhile."""
    begun = threading.Barrier(5)

    def call() -> None:
        begun.wait()
        with suppress(Closed):
            while True:
                assert thread.wait(forty_two()) == 42

    others = [threading.Thread(target=call, daemon=True) for _ in range(4)]
    for other in others:
        other.start()
    begun.wait()
    thread.stop()
    for other in others:
        other.join(60.0)
        assert not other.is_alive()


async def test_a_call_in_the_very_last_moment(
    thread: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop took it and never began it: its waiter hears of that, on an event loop as well."""
    monkeypatch.setattr(LoopThread, "is_alive", True)
    close, calls = thread.loop.close, []

    def close_after_a_call() -> None:
        calls.append(thread._submit(forty_two()))
        close()

    monkeypatch.setattr(thread.loop, "close", close_after_a_call)
    thread.stop()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wrap_future(calls[0])


def test_a_thread_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system allows no more of them, its event loop is closed: nothing is left open."""
    made, new_event_loop = [], asyncio.new_event_loop

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def make() -> asyncio.AbstractEventLoop:
        made.append(new_event_loop())
        return made[-1]

    monkeypatch.setattr(threading.Thread, "start", refuse)
    monkeypatch.setattr(asyncio, "new_event_loop", make)
    with pytest.raises(RuntimeError, match="can't start"):
        LoopThread()
    assert [loop.is_closed() for loop in made] == [True]
