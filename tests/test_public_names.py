"""What ``dir`` shows of the faces without a leading underscore: for users, and explained."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final

import pytest

import adp_async
from adp_async import blocking, local, testing
from adp_async.logger import BatchLogger
from adp_async.testing import PLATFORM_ID, FakeBlockingSession, FakeSession

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

FAMILIES: Final = {
    "runs", "experiments", "registered_models", "model_versions", "logged_models", "deployments",
}  # fmt: skip
LOGGING: Final = {
    "log_metric", "log_metrics", "log_param", "log_params", "set_tag", "set_tags",
}  # fmt: skip
SESSION: Final = FAMILIES | {
    "open", "close", "is_open", "settings", "spool_folder", "logger", "call", "fetch",
    "start_run", "attach_run", "on_close", "health", "shared",
}  # fmt: skip
ARTIFACTS: Final = {
    "log_artifact", "log_artifacts", "log_text", "log_dict", "log_figure",
}  # fmt: skip
RUN: Final = LOGGING | ARTIFACTS | {
    "run_id", "run_name", "experiment_id", "status", "settings", "flush", "try_flush", "drain",
    "finish", "log_inputs", "discard", "stats", "url", "history", "plot", "created",
    "shared",
}  # fmt: skip
LOGGER: Final = LOGGING | {"flush", "try_flush", "drain", "discard", "stats", "health"}
FAKE: Final = {"service", "requests", "received", "add_run", "answer"}

FACES: Final = {
    adp_async.Session: SESSION,
    blocking.Session: SESSION | {"session"},
    adp_async.Run: RUN,
    blocking.Run: RUN,
    blocking.StartedRun: RUN,
    blocking.AttachedRun: RUN | {"close"},
    BatchLogger: LOGGER,
    blocking.BatchLogger: LOGGER,
    FakeSession: SESSION | FAKE,
    FakeBlockingSession: SESSION | {"session"},
}


@pytest.fixture(scope="module")
def faces() -> Iterator[dict[type, Any]]:
    """One of each."""
    given: Any = {"workspace": "w", "endpoint": "http://localhost", "spool": False}
    with FakeBlockingSession() as session:
        started = session.start_run()
        run_id = started.run_id
        each = [
            adp_async.Session(PLATFORM_ID, **given),
            blocking.Session(PLATFORM_ID, **given),
            started._run,
            session.attach_run(run_id),
            started,
            blocking.AttachedRun(session.session.attach_run(run_id), session),
            session.session.logger,
            session.logger,
            session.session,
            session,
        ]
        yield {type(face): face for face in each}


def public(thing: object) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


@pytest.mark.parametrize("face", FACES, ids=lambda face: f"{face.__module__}.{face.__name__}")
def test_names(face: type, faces: dict[type, Any]) -> None:
    """They are these, and no other: what the machinery needs has an underscore."""
    assert public(faces[face]) == FACES[face]


@pytest.mark.parametrize("face", FACES, ids=lambda face: f"{face.__module__}.{face.__name__}")
def test_docstrings(face: type) -> None:
    """Each has a docstring; a plain attribute is explained by its class's."""
    for name in FACES[face]:
        found = inspect.getattr_static(face, name, None)
        explained = found is not None and inspect.getdoc(found)
        of_the_class = " ".join(inspect.getdoc(each) or "" for each in face.__mro__[:-1])
        assert explained or f"*{name}*" in of_the_class, name


@pytest.mark.parametrize(
    "module", [adp_async, blocking, local, testing], ids=lambda each: each.__name__
)
def test_whatever_is_exported_is_explained(module: ModuleType) -> None:
    """So are the methods and properties of what is a class; `help` shows no bare name."""
    assert len(inspect.getdoc(module) or "") > 100
    for name in module.__all__:
        thing = getattr(module, name)
        if not inspect.isclass(thing):
            assert not inspect.isfunction(thing) or inspect.getdoc(thing), name
            continue
        assert thing.__doc__, name
        for member in public(thing):
            found = inspect.getattr_static(thing, member)
            if inspect.isfunction(found) or isinstance(found, property | classmethod):
                assert inspect.getdoc(found) or _inherited(thing, member), f"{name}.{member}"


def _inherited(kind: type, member: str) -> str:
    """What is said of *member* where a base class explains it."""
    found = (inspect.getdoc(getattr(base, member, None)) for base in kind.__mro__)
    return next((text for text in found if text), "")


@pytest.mark.parametrize("face", FACES, ids=lambda face: f"{face.__module__}.{face.__name__}")
def test_no_internals_in_signatures(face: type) -> None:
    """No method for users takes or returns what only our own modules know."""
    for name in FACES[face]:
        found = inspect.getattr_static(face, name, None)
        if inspect.isfunction(found):
            hints = " ".join(str(hint) for hint in found.__annotations__.values())
            for internal in ("Orphan", "Intake", "Lane", "Delivery", "Recovery", "LoopThread"):
                assert internal not in hints, name


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_familys_names(family: str, faces: dict[type, Any]) -> None:
    """A family shows operations only, each with a docstring, on both faces."""
    for face in (adp_async.Session, blocking.Session):
        operations = getattr(faces[face], family)
        for name in public(operations):
            assert "Operation: " in (inspect.getdoc(getattr(operations, name)) or ""), name
