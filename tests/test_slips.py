"""What is easily forgotten or mixed up, and what is said then."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import sys
import warnings
from typing import Any

import attrs
import pytest

from adp_async import ApiKey, Closed, RetryPolicy, Session, Settings, blocking
from adp_async._io import notebook
from adp_async.local import LocalPlatform, platform
from adp_async.testing import PLATFORM_ID, FakeBlockingSession, FakeSession


async def test_a_run_that_is_neither_awaited_nor_entered() -> None:
    """It warns, as a coroutine does, and names the run."""
    async with FakeSession() as session:
        with pytest.warns(RuntimeWarning, match=r"start_run\('digits', 'sgd'\) was neither"):
            session.start_run("digits", run_name="sgd")
        with pytest.warns(RuntimeWarning, match=r"attach_run\('7', resume=True\) was neither"):
            session.attach_run("7", resume=True)
        assert session.requests == []


async def test_the_warning_names_the_line_that_made_the_run() -> None:
    """Not the one in which it is dropped, which may be far away."""
    async with FakeSession() as session:
        line = inspect.getframeinfo(inspect.currentframe()).lineno + 1  # type: ignore[arg-type]
        begun = [session.start_run("digits")]
        with pytest.warns(RuntimeWarning) as caught:
            begun.clear()
    (warning,) = caught
    assert (warning.filename, warning.lineno) == (__file__, line)


async def test_runs_that_are_begun_do_not_warn() -> None:
    """Awaited, entered, failed or refused: nobody has forgotten anything."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with FakeSession() as session:
            await (await session.start_run("digits")).finish()
            async with session.start_run("digits"):
                pass
            with pytest.raises(TypeError):
                session.start_run("digits", experiment_id="7")
            with pytest.raises(ValueError, match="run id"):
                session.attach_run("", resume=True)
        begun = session.start_run("digits")
        with pytest.raises(Closed):
            await begun
        del begun
        gc.collect()


def test_blocking_runs_do_not_warn() -> None:
    """Nor where the session cannot begin them."""
    session = FakeBlockingSession()
    with pytest.raises(Closed):
        session.start_run("digits")
    with session, session.start_run("digits"):
        pass
    gc.collect()


async def test_what_start_run_returns_is_no_run_yet() -> None:
    """Its repr says what to do, and so does the error of what only a run has."""
    async with FakeSession() as session:
        begun: Any = session.start_run("digits")
        assert repr(begun) == "<start_run('digits') | await it, or enter it with `async with`>"
        with pytest.raises(AttributeError, match=r"'log_metric'; .*is not a run yet: await it, or"):
            begun.log_metric("loss", 0.5)
        with pytest.raises(AttributeError, match=r"no attribute 'nonsense'$"):
            begun.nonsense  # noqa: B018 - it raises
        with pytest.raises(TypeError, match="use `async with`"), begun:
            pass
        await (await begun).finish()


def test_a_session_in_a_plain_with() -> None:
    """The error says which way is right, and where the blocking face is."""
    session: Any = Session(PLATFORM_ID)
    with pytest.raises(TypeError, match=r"use `async with`; adp_async\.blocking"), session:
        pass


def test_a_session_without_asyncio() -> None:
    """Another event loop, such as trio's, is told what it needs."""
    opening = Session(PLATFORM_ID).open()
    with pytest.raises(RuntimeError, match=r"needs asyncio; with trio, use adp_async.blocking"):
        opening.send(None)


async def test_a_blocking_session_in_an_async_with() -> None:
    """The error says which way is right; so does that of its runs."""
    session: Any = FakeBlockingSession()
    with pytest.raises(TypeError, match=r"use `with`; adp_async\.Session is for an event loop"):
        async with session:
            pass
    with session:
        run: Any = session.start_run("digits")
        with pytest.raises(TypeError, match=r"run \w+ is of a blocking session: use `with`"):
            async with run:
                pass


def test_a_run_that_is_used_when_it_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is logged into it is refused with a reason; ending it once more the same way is not."""
    monkeypatch.setattr(blocking, "Session", lambda *_, **knobs: FakeBlockingSession(**knobs))
    with blocking.start_run("digits") as run:
        run.finish("FAILED")
        run.finish("FAILED")
        with pytest.raises(Closed, match=r"has ended FAILED, and its session is closed; `session"):
            run.finish()
    with pytest.raises(
        Closed, match=r"its `with` block has ended, or .* `finish` was called; open"
    ):
        run.log_metric("loss", 0.5)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("name", "run_name"), ("experiment_name", "experiment"), ("lingr", "linger")],
)
def test_an_argument_by_another_name(name: str, meant: str) -> None:
    """One of the run's is proposed as one of the session's is."""
    wrong: Any = {name: "x"}
    with pytest.raises(TypeError, match=rf"unknown setting '{name}'; did you mean '{meant}'\?"):
        blocking.start_run("digits", platform_id=PLATFORM_ID, **wrong)


def test_a_wait_that_is_too_short() -> None:
    """Each says what waits, and that it goes on waiting."""
    with FakeBlockingSession() as session:
        script = session.session.answer("log_experiment_run_batch", status=503)
        run = session.start_run()
        receipt = run.log_metric("loss", 0.5)
        with pytest.raises(
            TimeoutError, match=r"^run \w+: 1 record not delivered yet; the session k"
        ):
            run.flush(0.02)
        with pytest.raises(TimeoutError, match=r"^1 record not delivered yet; the session keeps"):
            session.logger.flush(timeout=0.02)
        with pytest.raises(
            TimeoutError, match=r"^metric 'loss' of run \w+: 1 record not delivered"
        ):
            receipt.wait(0.02)
        with pytest.raises(TimeoutError, match=r"^timed out after 0\.02 s$"):
            session.call(asyncio.sleep(9.0), timeout=0.02)
        script.left = 0


def _flush_in_vain(session: FakeBlockingSession) -> None:
    with session.start_run() as run:
        run.log_metric("loss", 0.5)
        run.flush(0.02)


def test_a_flush_that_fails_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """The end of the run does not repeat what the body has raised."""
    with FakeBlockingSession(close_timeout=0.2) as session:
        script = session.session.answer("log_experiment_run_batch", status=503)
        with pytest.raises(TimeoutError) as caught:
            _flush_in_vain(session)
        script.left = 0
        session.logger.flush(timeout=30.0)
    told = [*getattr(caught.value, "__notes__", ()), *caplog.messages]
    assert not any("1 record not delivered yet" in each for each in told)


async def test_a_listing_that_is_read_the_wrong_way() -> None:
    """`for` and `await` say how it is read."""
    async with FakeSession() as session:
        listing: Any = session.attach_run("7").history("loss")
        with pytest.raises(TypeError, match=r"asynchronous: `await listing.to_list"):
            list(listing)
        with pytest.raises(TypeError, match=r"not awaited itself: `await listing.to_list"):
            await listing


async def test_a_run_that_was_read_is_not_logged_into() -> None:
    """The error says where the run to log into comes from."""
    async with FakeSession() as session:
        found: Any = await session.runs.get(session.add_run("7"))
        with pytest.raises(AttributeError, match=r"'log_metric': .* session\.attach_run\('7'\)"):
            found.log_metric("loss", 0.5)
        with pytest.raises(AttributeError, match=r"no attribute 'nonsense'$"):
            found.nonsense  # noqa: B018 - it raises


async def test_a_session_that_is_not_open() -> None:
    """The error says how to open it."""
    with pytest.raises(Closed, match=r"not open yet: enter it with `async with`, or `await"):
        await Session(PLATFORM_ID).runs.get("7")


async def test_a_session_that_is_dropped_unclosed() -> None:
    """A ResourceWarning, as from a file; closed or never opened, there is none."""
    sessions = [await FakeSession().open()]
    engine = sessions[0]._engine
    with pytest.warns(
        ResourceWarning, match=r"unclosed session of http://localhost; it delivers until the interp"
    ):
        sessions.clear()
    await engine.close(1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FakeSession()
        async with FakeSession():
            pass
        gc.collect()


@pytest.fixture
def in_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebook, "is_notebook", lambda: True)
    monkeypatch.setattr(notebook, "_has_warned", False)


@pytest.mark.usefixtures("in_notebook")
async def test_a_cell_that_is_run_twice(caplog: pytest.LogCaptureFixture) -> None:
    """A notebook's second open session with the same settings is a warning, once."""
    async with FakeSession(linger=0.5):
        async with FakeSession(linger=0.6):
            assert caplog.messages == []
        with FakeBlockingSession(linger=0.5):
            assert caplog.messages == []
        async with FakeSession(linger=0.5), FakeSession(linger=0.5):
            pass
    (said,) = caplog.messages
    assert "another open session with the same settings" in said


@pytest.mark.usefixtures("in_notebook")
async def test_a_platform_and_blocking_code_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """The platform answers although the cell keeps the kernel's event loop busy."""
    monkeypatch.setattr(platform, "is_notebook", lambda: True)
    async with LocalPlatform(mlflow=False) as local:
        with blocking.start_run(
            platform_id=local.platform_id,
            workspace=local.workspace,
            endpoint=local.endpoint,
            auth=ApiKey(local.config_file, local.profile),
        ) as run:
            run.log_metric("loss", 0.5)
        assert local.gateway.received(run.run_id).info["status"] == "FINISHED"
    async with LocalPlatform(mlflow=False) as other:
        assert other.endpoint != local.endpoint


@pytest.mark.parametrize("place", ["notebook", "terminal", "neither", "switched off", "gone"])
async def test_the_link_of_a_run_is_shown(
    place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once, at its start, to whoever is looking."""
    monkeypatch.setattr(notebook, "is_notebook", lambda: place in ("notebook", "switched off"))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: place in ("terminal", "gone"))
    if place == "gone":
        monkeypatch.setattr(sys, "stderr", _Gone())
    async with FakeSession(page_url="https://h/{run_id}", progress=place != "switched off") as each:
        run = await each.start_run(run_name="sgd")
        await run.finish()
    line = f"run sgd: https://h/{run.run_id}\n"
    shown = capsys.readouterr()
    assert shown.out == (line if place == "notebook" else "")
    assert shown.err == (line if place == "terminal" else "")


class _Gone:
    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> None:
        raise OSError("the terminal is gone")

    def flush(self) -> None: ...


@pytest.mark.usefixtures("in_notebook")
def test_sessions_one_after_the_other(caplog: pytest.LogCaptureFixture) -> None:
    """One that was closed does not count; outside of a notebook, none does."""
    caplog.set_level(logging.WARNING)
    for _ in range(3):
        with FakeBlockingSession():
            pass
    assert caplog.messages == []


def test_two_sessions_in_a_program(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program may have good reasons."""
    monkeypatch.setattr(notebook, "_has_warned", False)
    with FakeBlockingSession(), FakeBlockingSession():
        pass
    assert caplog.messages == []


@pytest.mark.parametrize("kind", [Session, blocking.Session])
def test_help_has_the_knobs(kind: type) -> None:
    """`Session?` shows each setting with its default; a class that takes less has its own."""
    parameters = inspect.signature(kind).parameters

    for knob in attrs.fields(Settings):
        assert knob.name in parameters
    assert parameters["linger"].default == 1.0
    assert parameters["progress"].kind is inspect.Parameter.KEYWORD_ONLY
    assert isinstance(parameters["retry"].default, RetryPolicy)
    assert list(inspect.signature(FakeSession).parameters) == ["knobs"]
