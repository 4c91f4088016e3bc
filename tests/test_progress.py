"""Live progress of a flush, a finish and an exit that take their time."""

from __future__ import annotations

import asyncio
import logging
import os
import pty
import re
import select
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from adp_async import DeliveryError, _progress
from adp_async._html import bar
from adp_async._sansio.waiting import Wait, end_line, line, share
from adp_async.testing import FakeBlockingSession, FakeSession

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parent.parent


# ------------------------------------------------------------------ the line


@pytest.mark.parametrize(
    ("wait", "shown"),
    [
        (Wait("all runs", total=1), "all runs: 0 of 1 record delivered | 0 s"),
        (
            Wait("run 7", delivered=5, lost=2, total=9, elapsed=3.4),
            "run 7: 5 of 9 records delivered | 2 refused or dropped | 3 s",
        ),
        (
            Wait("run 7", total=9, held=61.0, error="Throttled: 429", elapsed=2),
            "run 7: 0 of 9 records delivered | 2 s | held for 61 s: too many requests",
        ),
        (
            Wait("run 7", total=9, error="ConnectionFailed: no\nconnection \x1b[31m", elapsed=2),
            "run 7: 0 of 9 records delivered | 2 s | ConnectionFailed: no connection [31m",
        ),
        (
            Wait("run 7", delivered=9, total=9, error="Throttled: 429", elapsed=2, limit=5),
            "run 7: 9 of 9 records delivered | 2 s of at most 5 s | "
            "waiting for the service's answer",
        ),
        (Wait("run 7", uploads=1, elapsed=2), "run 7: 1 artifact to upload | 2 s"),
        (
            Wait("run 7", delivered=1, total=1, uploads=1200, elapsed=2),
            "run 7: 1 of 1 record delivered | 1,200 artifacts to upload | 2 s",
        ),
        (Wait("a\r\nb", elapsed=7200), "a b: 7,200 s | waiting for the service's answer"),
    ],
)
def test_lines(wait: Wait, shown: str) -> None:
    """Whatever happens, it is one line that says how far it is, and what is in the way."""
    assert line(wait) == shown


@pytest.mark.parametrize(
    ("wait", "shown"),
    [
        (
            Wait("run 7", delivered=20_000, total=20_000, elapsed=12),
            "20,000 of 20,000 records delivered | in 12 s",
        ),
        (Wait("run 7", total=2, elapsed=25), "0 of 2 records delivered | in 25 s"),
        (Wait("run 7", uploads=2, elapsed=25), "2 artifacts not uploaded | in 25 s"),
    ],
)
def test_last_lines(wait: Wait, shown: str) -> None:
    """What remains to be read says what became of it."""
    assert end_line(wait) == f"run 7: {shown}"


@pytest.mark.parametrize(
    ("wait", "done"),
    [
        (Wait("", total=0), 1.0),
        (Wait("", delivered=1, total=4), 0.25),
        (Wait("", lost=9, total=4), 1.0),
    ],
)
def test_shares(wait: Wait, done: float) -> None:
    """Of nothing all is done, and never more than all."""
    assert share(wait) == done


def test_a_bar_has_the_colours_of_its_page() -> None:
    """It stays within itself, whatever the share."""
    for done, width in ((-1.0, "0.0"), (0.5, "79.0"), (7.0, "158.0")):
        assert f"width='{width}' height='8' fill='currentColor'" in bar(done)


# ------------------------------------------------------------------ where there is no terminal


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seconds are long for a test."""
    monkeypatch.setattr(_progress, "AFTER", 0.05)
    monkeypatch.setattr(_progress, "AGAIN", 0.02)
    monkeypatch.setattr(_progress._Log, "every", 0.05)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[list[tuple[str, str]]]:
    """Level and text of every line of progress."""
    lines: list[tuple[str, str]] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if re.search(r"\d+ of [\d,]+ records? delivered", text) and " s" in text:
                lines.append((record.levelname, text.removeprefix("still waiting: ")))

    handler, root = Handler(), logging.getLogger("adp_async")
    level = root.level
    root.addHandler(handler)
    root.setLevel("INFO")
    yield lines
    root.setLevel(level)
    root.removeHandler(handler)


async def until(seen: Any) -> None:
    async with asyncio.timeout(20):
        while not seen():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


@pytest.mark.usefixtures("soon")
async def test_a_flush_that_waits(said: list[tuple[str, str]]) -> None:
    """It says how far it is; as a WARNING while nothing moves; and when it is over."""
    async with FakeSession(linger=0.0) as session:
        outage = session.answer(
            "log_experiment_run_batch", status=503, headers={"retry-after": "0"}
        )
        run = await session.start_run()
        run.log_metrics({"loss": 0.5, "acc": 0.5})
        await until(lambda: session.health().status == "failing")
        flush = asyncio.create_task(run.flush())
        await until(lambda: any(level == "WARNING" for level, _ in said))
        assert said[0][0] == "INFO"
        name = run.run_name or run.run_id
        begin = rf"run {re.escape(name)}: 0 of 2 records delivered \| \d s \| ServiceFault: "
        assert re.match(begin, said[0][1])
        outage.left = 0
        await flush
        await until(lambda: " | in " in said[-1][1])
        assert said[-1][0] == "INFO"
        assert said[-1][1].startswith(f"run {name}: 2 of 2 records delivered | in ")


async def finished_after_an_outage(
    session: FakeSession, name: str, is_over: Callable[[], bool]
) -> None:
    """Finish a run called *name* in an outage, which ends then."""
    outage = session.answer("log_experiment_run_batch", status=503, headers={"retry-after": "0"})
    run = await session.start_run(run_name=name)
    run.log_metric("loss", 0.5)
    finish = asyncio.create_task(run.finish())
    await until(is_over)
    outage.left = 0
    await finish


@pytest.mark.usefixtures("soon")
async def test_only_one_wait_is_shown(said: list[tuple[str, str]]) -> None:
    """A finish waits for a flush: that is one wait, and has the name of the run."""
    async with FakeSession(linger=0.0) as session:
        await finished_after_an_outage(session, "by hand", lambda: len(said) > 2)
        assert {text.partition(":")[0] for _, text in said} == {"run by hand"}
        await until(lambda: not _progress._turn.locked())


@pytest.mark.usefixtures("soon")
async def test_another_wait_takes_its_turn(said: list[tuple[str, str]]) -> None:
    """When the wait that is shown is over, one that still waits is shown."""
    async with FakeSession(linger=0.0) as session:
        run, other = await session.start_run(run_name="a"), await session.start_run(run_name="b")
        outage = session.answer(
            "log_experiment_run_batch", status=503, headers={"retry-after": "0"}
        )
        for each in (run, other):
            each.log_metric("loss", 0.5)
        first = asyncio.create_task(run.finish())
        await until(lambda: said)
        second = asyncio.create_task(other.finish())
        await asyncio.sleep(0.1)
        assert not [text for _, text in said if text.startswith("run b")]
        first.cancel()
        await asyncio.wait([first])
        await until(lambda: [text for _, text in said if text.startswith("run b")])
        outage.left = 0
        await second


@pytest.mark.usefixtures("soon")
async def test_leaving_says_how_long_at_most(said: list[tuple[str, str]]) -> None:
    """The exit of a run and the close of a session are limited, and say so."""
    session = await FakeSession(linger=0.0, close_timeout=1.0).open()
    starting = session.start_run(run_name="sgd")
    run = await starting.__aenter__()
    session.answer("log_experiment_run_batch", status=503)
    run.log_metric("loss", 0.5)
    with pytest.raises(DeliveryError):
        await starting.__aexit__(None, None, None)
    with pytest.raises(DeliveryError):
        await session.close()
    assert [text for _, text in said if re.match(r"run sgd: 0 of 1 .* of at most 1 s ", text)]


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("off", ["argument", "environment"])
async def test_it_can_be_switched_off(
    said: list[tuple[str, str]], off: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`progress=False`, or ADP_ASYNC_PROGRESS=off."""
    knobs: dict[str, Any] = {"progress": False} if off == "argument" else {}
    if not knobs:
        monkeypatch.setenv("ADP_ASYNC_PROGRESS", "off")
    async with FakeSession(linger=0.0, **knobs) as session:
        outage = session.answer(
            "log_experiment_run_batch", status=503, headers={"retry-after": "0"}
        )
        run = await session.start_run()
        run.log_metric("loss", 0.5)
        flush = asyncio.create_task(run.flush())
        await until(lambda: outage.given > 3)
        await asyncio.sleep(0.2)
        outage.left = 0
        await flush
    assert said == []


async def test_a_short_wait_says_nothing(
    said: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is there a thread for it."""
    monkeypatch.setattr(_progress, "AFTER", 20.0)  # short, that is for a busy machine as well
    before = set(progress_threads())
    async with FakeSession() as session:
        run = await session.start_run()
        run.log_metric("loss", 0.5)
        await run.flush()
        await run.finish()
        assert not set(progress_threads()) - before
    assert said == []


def progress_threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if "progress" in each.name]


@pytest.mark.usefixtures("soon")
def test_blocking_code_in_any_thread(said: list[tuple[str, str]]) -> None:
    """The wait of a thread is shown as well."""
    with FakeBlockingSession(linger=0.0) as session:
        outage = session.session.answer(  # type: ignore[attr-defined]
            "log_experiment_run_batch", status=503, headers={"retry-after": "0"}
        )
        run = session.start_run()
        run.log_metric("loss", 0.5)
        waiting = threading.Thread(target=run.flush)
        waiting.start()
        ends_at = time.monotonic() + 20
        while len(said) < 2 and time.monotonic() < ends_at:
            time.sleep(0.01)
        outage.left = 0
        waiting.join(20)
        run.finish()
    assert len(said) >= 2


@pytest.mark.usefixtures("soon")
async def test_what_fails_while_showing_disturbs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait goes on, and ends as it would have."""

    def broken(*_: object) -> None:
        tried.append(1)
        raise OSError("the terminal is gone")

    tried: list[int] = []
    monkeypatch.setattr(_progress, "_face", broken)
    async with FakeSession(linger=0.0) as session:
        outage = session.answer(
            "log_experiment_run_batch", status=503, headers={"retry-after": "0"}
        )
        run = await session.start_run()
        run.log_metric("loss", 0.5)
        flush = asyncio.create_task(run.flush())
        await until(lambda: tried)
        outage.left = 0
        await flush
        assert run.stats().delivered == 1
    await until(lambda: not _progress._turn.locked())


@pytest.mark.usefixtures("soon")
async def test_no_thread_can_be_started(
    said: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter is ending, or there are too many: the wait goes on without a word."""

    def refused(thread: threading.Thread) -> None:
        tried.append(thread)
        raise RuntimeError("can't start new thread")

    tried: list[threading.Thread] = []
    async with FakeSession(linger=0.0) as session:
        outage = session.answer(
            "log_experiment_run_batch", status=503, headers={"retry-after": "0"}
        )
        run = await session.start_run()
        run.log_metric("loss", 0.5)
        monkeypatch.setattr(threading.Thread, "start", refused)
        flush = asyncio.create_task(run.flush())
        await until(lambda: tried)
        monkeypatch.undo()
        outage.left = 0
        await flush
    assert said == []
    assert not _progress._turn.locked()


# ------------------------------------------------------------------ a terminal

PROGRAM = """
import sys, time
from adp_async import _progress
from adp_async.testing import FakeBlockingSession
_progress.AFTER = 0.5  # which leaves a busy machine time for some updates
with FakeBlockingSession(linger=0.0) as session:
    outage = session.session.answer(
        "log_experiment_run_batch", status=503, headers={"retry-after": "0"}
    )
    run = session.start_run(run_name="sgd")
    run.log_metrics({"loss": 0.5, "acc": 0.1})
    assert run.try_flush(3.5) is not None
    outage.left = 0
    run.finish()
print("done")
"""


def in_terminal(code: str, **environment: str) -> str:
    """What a program writes to a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80", **environment}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=theirs, stdout=theirs, stderr=theirs, env=variables
    ) as program:
        os.close(theirs)
        written, ends_at = b"", time.monotonic() + 120
        while time.monotonic() < ends_at:
            if select.select([ours], [], [], 0.1)[0]:
                try:
                    written += os.read(ours, 4096)
                except OSError:  # it has ended
                    break
        program.kill()
    os.close(ours)
    return written.decode()


def test_a_terminal_has_a_bar() -> None:
    """One line that is written over, with a bar, and in the end it is gone."""
    written = in_terminal(PROGRAM, TERM="xterm")

    assert "━" in written
    assert re.search(r"run sgd: 0 of 2 records delivered \| \d s \| Serv", written)
    # Erased: rich clears the line it was on.
    assert "\x1b[2K" in written.rpartition("records delivered")[2]
    assert written.rstrip().endswith("done")
    lines = [each for each in re.split(r"[\r\n]+", written) if "records delivered" in each]
    assert len(lines) >= 3


def test_a_dumb_terminal_has_lines_of_the_log() -> None:
    """Nothing there can be written over."""
    written = in_terminal(PROGRAM, TERM="dumb")

    assert "━" not in written
    assert "\x1b" not in written
    assert written.rstrip().endswith("done")


EXIT = """
from adp_async.testing import FakeBlockingSession
session = FakeBlockingSession(linger=0.0, exit_timeout=3.0, spool=False).open()
session.session.answer("log_experiment_run_batch", status=503, headers={"retry-after": "0"})
session.attach_run(session.session.add_run("7")).log_metric("loss", 0.5)
"""


def test_the_end_of_a_program() -> None:
    """Nobody has closed the session: after two seconds there is one line, in a terminal."""
    # (On a busy machine a little later.)
    told = re.compile(
        r"the end of the program: 0 of 1 record delivered \| [2-9] s of at most 3 s "
        r"\| ServiceFault: 503"
    )

    off = {"ADP_ASYNC_PROGRESS": "off"}
    with ThreadPoolExecutor() as pool:  # each takes its three seconds
        shown, hidden = pool.map(lambda more: in_terminal(EXIT, TERM="xterm", **more), ({}, off))
    assert len(told.findall(shown)) == 1
    assert not told.search(hidden)


# ------------------------------------------------------------------ a notebook


class Shell:
    kernel = object()


@pytest.mark.usefixtures("soon")
async def test_a_notebook_has_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    """One display is updated, in text and HTML; its last state says what became of it."""
    shown: list[tuple[int, dict[str, str]]] = []

    class Handle:
        def update(self, data: dict[str, str], raw: bool) -> None:
            shown.append((1, data))

    class Display:
        @staticmethod
        def display(data: dict[str, str], raw: bool, display_id: bool) -> Handle:
            shown.append((0, data))
            return Handle()

    class IPython:
        get_ipython = staticmethod(Shell)

    monkeypatch.setitem(sys.modules, "IPython", IPython)
    monkeypatch.setitem(sys.modules, "IPython.display", Display)
    monkeypatch.setattr(_progress._Notebook, "every", 0.02)
    async with FakeSession(linger=0.0) as session:
        await finished_after_an_outage(session, "<b>", lambda: len(shown) > 2)
        await until(lambda: not _progress._turn.locked())
    assert [first for first, _ in shown] == [0] + [1] * (len(shown) - 1)
    assert "<svg" in shown[0][1]["text/html"]
    assert "<b>" not in shown[0][1]["text/html"]
    assert shown[-1][1]["text/plain"].startswith("run <b>: 1 of 1 record delivered | in ")
    assert "<svg" not in shown[-1][1]["text/html"]
