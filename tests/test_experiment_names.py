"""Experiments by name: names move, and a run goes into the experiment that has the name now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from adp_async._sansio.names import Names
from adp_async.errors import BadRequest, ServiceError
from adp_async.testing import FakeSession

if TYPE_CHECKING:
    from adp_async.local import LocalPlatform

BY_NAME = "get_experiment_by_name"
CREATE_RUN = "create_experiment_run"


# What is remembered


@pytest.mark.parametrize(
    ("now", "found"), [(0.0, "1"), (299.9, "1"), (300.0, None), (10_000.0, None)]
)
def test_a_name_is_believed_for_a_while(now: float, found: str | None) -> None:
    """Five minutes, counted from when it was looked up."""
    names = Names()
    names.remember("churn", "1", now=0.0)

    assert names.find("churn", now) == found
    assert names.find("other", now) is None


def test_a_name_that_is_looked_up_again_is_believed_anew() -> None:
    """What it meant before is forgotten, and so is when."""
    names = Names(seconds=10.0)
    names.remember("churn", "1", now=0.0)
    names.remember("churn", "2", now=8.0)

    assert names.find("churn", now=17.0) == "2"
    names.forget("churn")
    names.forget("never known")
    assert names.find("churn", now=17.0) is None


def test_names_are_bounded() -> None:
    """The one that was looked up longest ago goes first."""
    names = Names(at_most=2)
    for now, name in enumerate(["a", "b", "a", "c"]):
        names.remember(name, name.upper(), now=float(now))

    assert [names.find(name, now=4.0) for name in "abc"] == ["A", None, "C"]


# A session


def said(code: str, message: str = "") -> dict[str, str]:
    return {"code": code, "message": message}


def asked(session: FakeSession, operation: str) -> int:
    return sum(request.operation == operation for request in session.requests)


def rename(session: FakeSession, old: str, new: str) -> None:
    (found,) = [each for each in experiments(session) if each["name"] == old]
    found["name"] = new


def experiments(session: FakeSession) -> list[dict[str, Any]]:
    return list(session.service.store.experiments.values())


async def test_a_name_is_looked_up_once() -> None:
    """Runs that follow one another don't ask for it again."""
    async with FakeSession() as session:
        runs = [await session.start_run("churn") for _ in range(3)]

        assert {run.experiment_id for run in runs} == {"1"}
        assert asked(session, BY_NAME) == 1


async def test_a_new_experiment_of_an_old_name_gets_the_runs() -> None:
    """After a while: the old one was renamed, and is none of the caller's any more."""
    async with FakeSession() as session:
        await session.start_run("churn")
        rename(session, "churn", "churn (2025)")
        session.service.store._new_experiment("churn")
        session._experiment_names.ids.seconds = 0.0
        before = await session.start_run("churn")
        session._experiment_names.ids.forget("churn")
        after = await session.start_run("churn")

    assert (before.experiment_id, after.experiment_id) == ("1", "2")


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "INVALID_PARAMETER_VALUE"),
        (404, "RESOURCE_DOES_NOT_EXIST"),
        (404, "NotAuthorizedOrNotFound"),
        (409, "IncorrectLifecycle"),
    ],
)
async def test_a_refused_experiment_is_looked_up_again_at_once(status: int, code: str) -> None:
    """The one that has the name now takes the run."""
    async with FakeSession() as session:
        await session.start_run("churn")
        rename(session, "churn", "gone")
        session.answer(CREATE_RUN, said(code), status=status, times=1)
        run = await session.start_run("churn")

        assert run.experiment_id == "2"
        assert asked(session, CREATE_RUN) == 3


async def test_what_is_refused_again_names_the_experiment() -> None:
    """It is tried once more, not for ever, and only in another experiment."""
    async with FakeSession() as session:
        await session.start_run("churn")
        session.answer(CREATE_RUN, said("INVALID", "no such luck"), status=400)
        with pytest.raises(BadRequest, match=r"experiment 'churn' \(id 1\): no such luck"):
            await session.start_run("churn")
        assert asked(session, CREATE_RUN) == 2

        rename(session, "churn", "gone")
        with pytest.raises(BadRequest, match=r"experiment 'churn' \(id 2\): no such luck"):
            await session.start_run("churn")
        assert asked(session, CREATE_RUN) == 4


async def test_what_is_not_the_services_word_changes_nothing() -> None:
    """A proxy's page says nothing about the experiment."""
    async with FakeSession() as session:
        await session.start_run("churn")
        session.answer(CREATE_RUN, said(""), status=400, times=1)
        with pytest.raises(ServiceError) as raised:
            await session.start_run("churn", offline=False)

        assert "churn" not in str(raised.value)
        assert asked(session, BY_NAME) == 1


async def test_an_experiment_by_its_id_is_not_looked_up() -> None:
    """Without a name, no other experiment could be meant."""
    async with FakeSession() as session:
        with pytest.raises(ServiceError):
            await session.start_run(experiment_id="77")
        assert asked(session, BY_NAME) == 0


async def test_a_deleted_experiment_says_so() -> None:
    """Found by its name, and refused: with the way to bring it back; it isn't remembered."""
    async with FakeSession() as session:
        await session.start_run("churn")
        experiments(session)[1]["lifecycle_stage"] = "deleted"
        refused = session.answer(CREATE_RUN, said("INVALID", "must be active"), status=400)
        for _ in range(2):
            with pytest.raises(BadRequest) as raised:
                await session.start_run("churn")
            for words in ("'churn'", "is deleted", "experiments.restore('1')", "must be active"):
                assert words in str(raised.value)
        refused.left = 0
        experiments(session)[1]["lifecycle_stage"] = "active"
        assert (await session.start_run("churn")).experiment_id == "1"


async def test_an_experiment_that_exists_and_cannot_be_found() -> None:
    """A service may hide what was deleted, and keep its name."""
    async with FakeSession() as session:
        session.answer(BY_NAME, said("RESOURCE_DOES_NOT_EXIST"), status=404)
        session.answer("create_experiment", said("RESOURCE_ALREADY_EXISTS"), status=409)
        with pytest.raises(ServiceError, match="'churn' exists but cannot be found") as raised:
            await session.start_run("churn")

    assert "restore" in str(raised.value)


# The real MLflow


@pytest.mark.mlflow
async def test_mlflow_renamed_and_made_again(platform: LocalPlatform) -> None:
    """At once after the old one was deleted, and after a while in any case."""
    async with platform.session(spool=False) as session:
        first = await session.start_run("names")
        assert first.experiment_id
        await session.experiments.update(first.experiment_id, new_name="names (2025)")
        await session.experiments.delete(first.experiment_id)
        second = await session.start_run("names")
        assert second.experiment_id not in (None, first.experiment_id)

        await session.experiments.update(second.experiment_id, new_name="names (2026)")
        session._experiment_names.ids.forget("names")
        third = await session.start_run("names")
        assert third.experiment_id not in (first.experiment_id, second.experiment_id)


@pytest.mark.mlflow
async def test_mlflow_deleted_and_restored(platform: LocalPlatform) -> None:
    """The error says what to do, and doing it works; also in a session that never knew it."""
    async with platform.session(spool=False) as session:
        first = await session.start_run("deleted")
        assert first.experiment_id
        await session.experiments.delete(first.experiment_id)
        restore = rf"'deleted' .* is deleted.*restore\('{first.experiment_id}'\)"
        with pytest.raises(ServiceError, match=restore):
            await session.start_run("deleted")
        async with platform.session(spool=False) as another:
            with pytest.raises(ServiceError, match=restore):
                await another.start_run("deleted")
        await session.experiments.restore(first.experiment_id)
        assert (await session.start_run("deleted")).experiment_id == first.experiment_id
