"""What the callbacks of training frameworks share: one run, and no harm done."""

from __future__ import annotations

import copy
import pickle
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from adp_async import AdpError, ConfigurationError, DeliveryError
from adp_async.auth import CustomSigner
from adp_async.integrations import _shared
from adp_async.integrations._shared import NoRun, TrackedRun, ending, missing, never_raises
from adp_async.testing import FakeBlockingSession

if TYPE_CHECKING:
    from collections.abc import Iterator

LOG_BATCH = "log_experiment_run_batch"


@pytest.fixture
def session() -> Iterator[FakeBlockingSession]:
    with FakeBlockingSession() as session:
        yield session


def tracked(session: FakeBlockingSession | None = None, **given: Any) -> TrackedRun:
    return TrackedRun("digits", session=session, knobs={}, **given)


def received(session: FakeBlockingSession, run: TrackedRun) -> Any:
    return session.session.received(str(run.run_id))


def test_it_begins_when_it_is_needed(session: FakeBlockingSession) -> None:
    """By the first to ask, of whatever thread, and once."""
    run = tracked(session, run_name="sgd", params={"opt": {"lr": 0.1}}, tags={"a": 1})
    assert repr(run) == "<TrackedRun not begun>"
    assert not run.has_begun
    run.finish()
    assert session.session.requests == []
    threads = [threading.Thread(target=lambda: run.log_metrics({"loss": 0.5})) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run.finish()
    assert len(session.session.service.store.runs) == 1
    found = received(session, run)
    assert len(found.metrics) == 8
    assert found.params == [("opt/lr", "0.1")]
    assert found.info["run_name"] == "sgd"
    assert found.info["status"] == "FINISHED"


def test_whatever_a_framework_comes_up_with(session: FakeBlockingSession) -> None:
    """Keys are cleaned, texts cut; params may be nested, or a namespace."""
    run = tracked(session)
    run.log_metrics({"f1@5": 1, "text": "x"}, step=None)
    run.log_params(SimpleNamespace(deep={"er": "x" * 7000}))
    run.finish("KILLED")
    found = received(session, run)
    assert [(metric.key, metric.step) for metric in found.metrics] == [("f1_5", 0)]
    assert found.params == [("deep/er", "x" * 6000)]
    assert found.info["status"] == "KILLED"


def test_a_run_of_the_users(session: FakeBlockingSession, caplog: pytest.LogCaptureFixture) -> None:
    """Its owner ends it; what a strict one does not take is skipped, and said once a key."""
    with session.start_run() as own:
        run = tracked(run=own)
        for step in range(3):
            run.log_metrics({"loss": 0.5, "te\nxt": 1.0, "bad": "x"}, step)
        run.log_params({"a\nb": 1, "c": 2})
        run.finish("FAILED")
        assert own.status is None
        session.session.answer(LOG_BATCH, {"code": "No"}, status=400)
        run.log_metrics({"refused": 1.0})
        run.finish()
        with pytest.raises(DeliveryError, match="refused"):
            own.flush()
    found = received(session, run)
    assert [metric.key for metric in found.metrics] == ["loss"] * 3
    assert found.params == [("c", "2")]
    assert found.info["status"] == "FINISHED"
    skipped = [message for message in caplog.messages if message.startswith("skipped")]
    assert len(skipped) == 3
    assert any("the service refused" in message for message in caplog.messages)


def test_a_run_that_goes_on(session: FakeBlockingSession) -> None:
    """With its id it is resumed, and ends here."""
    with session.start_run() as first:
        pass
    run = tracked(session, run_id=first.run_id)
    assert run.run_id == first.run_id
    assert not run.has_begun
    run.log_metrics({"loss": 0.5})
    assert received(session, run).info["status"] == "RUNNING"
    run.finish("FAILED")
    assert received(session, run).info["status"] == "FAILED"


def test_wrong_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are told when the callback is made, not in the middle of a training."""
    monkeypatch.delenv("AIDP_INSTANCE_ID", raising=False)
    with pytest.raises(ConfigurationError, match="platform_id"):
        TrackedRun("digits", knobs={})
    with pytest.raises(ConfigurationError, match="linger"):
        TrackedRun("digits", knobs={"platform_id": "ocid1.x.oc1..y", "linger": -1})
    with pytest.raises(ValueError, match="a run or a run's id, not both"):
        TrackedRun("digits", run=NoRun(), run_id="7", knobs={})


def test_a_run_that_cannot_begin(
    session: FakeBlockingSession, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning, and nothing happens in it."""
    refusal = {"code": "NotAuthorizedOrNotFound", "message": "no such workspace"}
    session.session.answer("create_experiment_run", refusal, status=404)
    run = tracked(session)
    for _ in range(3):
        run.log_metrics({"loss": 0.5})
    run.log_params({"a": 1})
    run.finish()
    assert isinstance(run.run, NoRun)
    assert run.run_id is run.run.status is run.run.log_artifact("file") is None
    assert repr(run) == "<TrackedRun <NoRun>>"
    assert len([each for each in caplog.messages if "nothing is logged" in each]) == 1
    assert not hasattr(run.run, "__array__")
    copied = pickle.loads(pickle.dumps(run))
    assert isinstance(copied.run, NoRun)


def sign_nothing(request: object) -> None:
    """A signer that can be pickled."""


def test_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy logs into the same run, and does not end it; a copy here is the thing itself."""
    with FakeBlockingSession(auth=CustomSigner(sign_nothing)) as session:
        monkeypatch.setattr("adp_async.address.shared_session", lambda **_: session)
        run = tracked(session)
        assert copy.copy(run) is copy.deepcopy(run) is run
        assert not run.has_begun
        there = pickle.loads(pickle.dumps(run))
        assert there.run_id == run.run_id
        assert not there.has_begun
        there.log_metrics({"f1@5": 1.0})
        there.finish("FAILED")
        assert received(session, run).info["status"] == "RUNNING"
        run.finish()
        assert received(session, run).info["status"] == "FINISHED"
        assert [metric.key for metric in received(session, run).metrics] == ["f1_5"]


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "FINISHED"), (ValueError("own"), "FAILED"), (KeyboardInterrupt(), "KILLED")],
)
def test_a_session_that_closes_first(error: BaseException | None, status: str) -> None:
    """The run ends as the block does whose session it is."""
    assert ending(error) == status
    session, raised = FakeBlockingSession(), None
    try:
        with session:
            run = tracked(session)
            run.log_metrics({"loss": 0.5})
            if error is not None:
                raise error
    except BaseException as caught:
        raised = caught
    assert raised is error
    assert received(session, run).info["status"] == status


def test_a_session_that_closes_later(session: FakeBlockingSession) -> None:
    """A run that has ended is not ended again."""
    run = tracked(session)
    run.log_metrics({"loss": 0.5})
    run.finish("KILLED")
    session.close()
    assert received(session, run).info["status"] == "KILLED"


def test_a_hook_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """The log has it with its traceback, and training goes on."""

    @never_raises
    def hook(number: int) -> int:
        """What it does."""
        return 1 // number

    assert hook(1) == 1
    assert hook(0) is None
    assert hook.__doc__ == "What it does."
    assert "hook failed; training goes on" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_an_interrupt_is_not_a_failure() -> None:
    """Ctrl-C in a hook is the user's."""

    @never_raises
    def hook() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hook()


def test_a_framework_that_is_not_installed() -> None:
    """The error says what to install."""
    error = missing("optuna", ModuleNotFoundError("No module named 'optuna'", name="optuna"))
    assert str(error) == (
        "adp_async.integrations.optuna needs optuna, which cannot be imported; "
        "install it with: pip install 'adp-async[optuna]'"
    )
    assert isinstance(error, ImportError)


def test_a_session_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one given it is the shared one, of the same knobs."""
    asked: list[dict[str, Any]] = []

    def shared_session(**knobs: Any) -> Any:
        asked.append(knobs)
        raise AdpError("no session here")

    monkeypatch.setattr(_shared.blocking, "shared_session", shared_session)
    knobs = {"platform_id": "ocid1.aidataplatform.oc1..x", "linger": 0.5}
    run = TrackedRun("digits", knobs=knobs)
    assert asked == []
    assert isinstance(run.run, NoRun)
    assert asked == [knobs]
