"""``strict=False``: keys cleaned, texts cut, what is no number skipped, nothing raised."""

from __future__ import annotations

import os
import pickle
import posixpath
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adp_async import BatchLimits, Closed, InvalidRecord
from adp_async._sansio.cleaning import clean_key, cut_text
from adp_async.address import RunAddress, address_of
from adp_async.auth import CustomSigner
from adp_async.testing import FakeBlockingSession, FakeSession

if TYPE_CHECKING:
    from collections.abc import Callable

LOG_BATCH = "log_experiment_run_batch"
UPDATE = "update_experiment_run"
LIMITS = BatchLimits()


class Unspeakable:
    """Nothing can be asked of it."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __float__ = __index__ = __hash__ = __str__  # type: ignore[assignment]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]


# Cleaning -----------------------------------------------------------------------------------------


@given(st.text() | st.integers() | st.none())
def test_a_clean_key_is_one_that_mlflow_takes(key: object) -> None:
    """By MLflow's own rules: its characters, its length, and a path that leads down."""
    clean = clean_key(key, LIMITS)
    path = posixpath.normpath(clean)
    assert re.fullmatch(r"[/\w.\- :]+", clean)
    assert len(clean) <= LIMITS.key_length
    assert path == clean
    assert path != "."
    assert not path.startswith(("..", "/"))


@given(st.text("abz09_/-. :", min_size=1, max_size=300))
def test_a_good_key_stays_as_it_is(key: str) -> None:
    """Whatever MLflow takes is not changed."""
    path = posixpath.normpath(key)
    if path == key != "." and not path.startswith(("..", "/")) and len(key) <= LIMITS.key_length:
        assert clean_key(key, LIMITS) == key
    assert clean_key(clean_key(key, LIMITS), LIMITS) == clean_key(key, LIMITS)


def test_a_text_is_cut_and_encodable() -> None:
    """To the limit of its kind; half a pair becomes a question mark."""
    assert len(cut_text("x" * 9000, "param", LIMITS)) == LIMITS.param_length
    assert len(cut_text("x" * 9000, "tag", LIMITS)) == LIMITS.tag_length
    assert cut_text("a\ud800", "tag", LIMITS) == "a?"


# Logging ------------------------------------------------------------------------------------------


async def test_odd_keys_and_values(caplog: pytest.LogCaptureFixture) -> None:
    """What can be mended arrives, what cannot is skipped, and each is said once."""
    async with FakeSession() as session:
        async with session.start_run(strict=False, source=False) as run:
            for step in range(3):
                run.log_metric("f1@5", 0.5, step=step)
                run.log_metric("bad", "nan?", step=step)
                run.log_metrics({"loss": 0.25, "text": "x", 7: 1.0}, step=step)  # type: ignore[dict-item]
            skipped = run.log_metric("loss", Unspeakable())
            run.log_metric("loss", 0.125, step=2.5)
            run.log_param("layers", "x" * 10_000)
            run.log_params({"a//b": 1, "odd": Unspeakable()})
            run.set_tags({"t@g": "\ud800"})
            run.set_tag("fine", "text")
            run.log_metrics(3)  # type: ignore[arg-type]
            run.log_params(None)  # type: ignore[arg-type]
        received = session.received(run.run_id)
    assert sorted((m.key, m.value, m.step) for m in received.metrics) == sorted(
        (key, value, step)
        for step in range(3)
        for key, value in (("f1_5", 0.5), ("loss", 0.25), ("7", 1.0))
    )
    assert received.params == [("layers", "x" * 6000), ("a/b", "1"), ("odd", "<Unspeakable>")]
    assert received.tags == [("t_g", "?"), ("fine", "text")]
    assert received.info["status"] == "FINISHED"
    with pytest.raises(InvalidRecord, match="loss"):
        await skipped
    said = warnings(caplog)
    assert len(said) == len(set(said))
    for word in ("'f1@5'", "bad", "text", "7", "loss", "layers", "a//b", "odd", "t_g"):
        assert any(word in each for each in said), word
    assert len([each for each in said if "f1@5" in each]) == 1
    assert not any("nan?" in each for each in said)  # no value is shown


def test_the_short_way_cleans_as_well(caplog: pytest.LogCaptureFixture) -> None:
    """A key that was cleaned once is cleaned at every later call, by either method."""
    with FakeBlockingSession() as session, session.start_run(strict=False) as run:
        for step in range(100):
            run.log_metric("val:loss%", 1.0, step=step)
            run.log_metrics({"lr-[0]": 0.5}, step=step)
    received = session.session.received(run.run_id)
    assert {(m.key, m.step) for m in received.metrics} == {
        (key, step) for step in range(100) for key in ("val:loss_", "lr-_0_")
    }
    assert len(warnings(caplog)) == 2


def test_two_runs_keep_their_keys_apart() -> None:
    """A strict run of the same session still refuses what the lenient one cleans."""
    with FakeBlockingSession() as session:
        lenient, strict = session.start_run(strict=False), session.start_run()
        lenient.log_metric("a\nb", 1.0)
        with pytest.raises(InvalidRecord, match="control characters"):
            strict.log_metric("a\nb", 1.0)


def test_what_starts_it() -> None:
    """Params and tags of `start_run` are mended as well; a description is the caller's own."""
    with FakeBlockingSession() as session:
        with session.start_run(
            params={"a@b": "x" * 7000}, tags={"t\n": 1}, strict=False, source=False
        ) as run:
            pass
        with pytest.raises(InvalidRecord, match=r"mlflow\.note\.content"):
            session.start_run(description="x" * 9000, strict=False)
    received = session.session.received(run.run_id)
    assert received.params == [("a_b", "x" * 6000)]
    assert received.tags == [("t_", "1")]


# Nothing raised -----------------------------------------------------------------------------------


REFUSED = {"code": "InvalidParameter", "message": "no"}


async def test_refused_records_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """`flush`, `finish` and leaving say what the service refused, and go on."""
    async with FakeSession() as session:
        async with session.start_run(strict=False) as run:
            session.answer(LOG_BATCH, REFUSED, status=400)
            run.log_metric("loss", 0.5)
            await run.flush()
            assert "the service refused metric 'loss'" in warnings(caplog)[-1]
            run.log_metric("loss", 0.5)
        assert "the service refused metric 'loss'" in warnings(caplog)[-1]
        assert session.received(run.run_id).info["status"] == "FINISHED"
        run.log_metric("loss", 0.5)
        await run.finish("KILLED")
        assert session.received(run.run_id).info["status"] == "KILLED"
    assert run.stats().rejected == {"BadRequest": 3}


def finish(run: Any) -> None:
    run.finish("FAILED")


def leave(run: Any) -> None:
    run.__exit__(None, None, None)


@pytest.mark.parametrize("end", [finish, leave])
def test_a_service_that_is_down(
    caplog: pytest.LogCaptureFixture, end: Callable[[Any], None]
) -> None:
    """Ending takes ``close_timeout`` at most, and is a warning."""
    with FakeBlockingSession(close_timeout=0.2, spool=False) as session:
        run = session.start_run(strict=False)
        script = session.session.answer(LOG_BATCH, status=503)
        session.session.answer(UPDATE, status=503)
        run.log_metric("loss", 0.5)
        run.flush(timeout=0.05)
        end(run)
        assert any("not delivered yet" in each for each in warnings(caplog))
        assert any(re.search("status could not|update_exp", each) for each in warnings(caplog))
        script.left = 0
        session.logger.flush(timeout=20)


def test_once_it_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    """Logging, flushing and finishing after the session's end are a warning, said once."""
    with FakeBlockingSession() as session:
        run = session.start_run(strict=False)
    receipts = [run.log_metric("loss", 0.5), run.log_metric("loss", 0.5)]
    run.log_metrics({"a": 1.0, "b": 2.0})
    run.log_params({"a": 1})
    run.set_tag("a", 1)
    assert len(warnings(caplog)) == 1
    for receipt in receipts:
        with pytest.raises(Closed):
            receipt.wait()
    run.flush()
    run.drain()
    run.finish()
    run.log_inputs([])
    with pytest.raises(ValueError, match="not 'DONE'"):
        run.finish("DONE")  # type: ignore[arg-type]


def test_a_full_buffer(caplog: pytest.LogCaptureFixture) -> None:
    """What finds no room is skipped, and its receipt says so."""
    session = FakeBlockingSession(buffer_limit=2000, max_block=0.0, spool=False)
    with session:
        run = session.start_run(strict=False)
        script = session.session.answer(LOG_BATCH, status=503)
        receipts = [run.log_metric("loss", 0.5, step=step) for step in range(100)]
        assert any(receipt.done for receipt in receipts)
        assert any("buffer full" in each for each in warnings(caplog))
        script.left = 0
        session.logger.flush(timeout=20)


def test_the_bodys_own_error(caplog: pytest.LogCaptureFixture) -> None:
    """It comes out bare, and the run is FAILED."""
    with FakeBlockingSession() as session:
        mistake = OSError("the body's own")
        with pytest.raises(OSError, match="own") as caught, session.start_run(strict=False) as run:
            raise mistake
        assert caught.value is mistake
        assert session.session.received(run.run_id).info["status"] == "FAILED"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_in_a_forked_child() -> None:
    """The child logs by a session of its own, doesn't end the run, and raises nothing."""
    with FakeBlockingSession() as session:
        run = session.start_run(strict=False)
        child = os.fork()
        if not child:
            try:
                run.log_metric("loss", 0.5)
                run.log_metrics({"loss": 0.5})
                run.flush()
                run.finish()
                os._exit(7 if run.stats().delivered == 2 and run.status is None else 3)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        run.flush()
        assert session.session.received(run.run_id).metrics == []


# Attached, and in other processes -----------------------------------------------------------------


def sign_nothing(request: object) -> None:
    """A signer that can be pickled."""


async def test_an_attached_run() -> None:
    """`attach_run` has it as well, on both faces."""
    async with FakeSession() as session:
        async with session.attach_run(session.add_run(), strict=False) as run:
            run.log_metric("a@b", 0.5)
        assert [m.key for m in session.received(run.run_id).metrics] == ["a_b"]
    with FakeBlockingSession() as blocking:
        with blocking.attach_run(blocking.session.add_run(), strict=False) as attached:
            attached.log_metric("a@b", 0.5)
        assert [m.key for m in blocking.session.received(attached.run_id).metrics] == ["a_b"]


def test_its_address_is_lenient() -> None:
    """Pickled, it stays so."""
    with FakeBlockingSession(auth=CustomSigner(sign_nothing)) as session:
        lenient, strict = session.start_run(strict=False), session.start_run()
        assert not address_of(lenient).strict
        assert not address_of(lenient._run).strict
        assert address_of(strict).strict
        copied = pickle.loads(pickle.dumps(address_of(lenient)))
    assert copied == RunAddress(lenient.run_id, session.settings, strict=False)


async def test_a_timestamp_of_ones_own() -> None:
    """It is that of every point of the call."""
    async with FakeSession() as session:
        run = session.attach_run(session.add_run(), strict=False)
        run.log_metrics({"a": 1.0, "b": 2.0}, timestamp=1_700_000_000_000)
        await run.flush()
        metrics = session.received(run.run_id).metrics
    assert {metric.timestamp for metric in metrics} == {1_700_000_000_000}
