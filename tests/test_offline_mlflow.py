"""Runs that start offline, against a real MLflow: what finds them again is what it understands."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from children import until

from adp_async import RetryPolicy
from adp_async._io.spool_file import find_spools
from adp_async.local import Fault

if TYPE_CHECKING:
    from pathlib import Path

    from adp_async import Session
    from adp_async.local import Gateway, LocalPlatform

pytestmark = pytest.mark.mlflow

CREATE = "create_experiment_run"
LOCAL_ID = "adp_async.local_id"


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def session_of(platform: LocalPlatform, spool: Path, **knobs: Any) -> Session:
    soon = {"linger": 0.01, "spool": spool, "retry": RetryPolicy(0.01, 0.1), **knobs}
    return platform.session(**soon)


@pytest.fixture
def name() -> str:
    """Of an experiment that is not there yet."""
    return f"offline {uuid.uuid4().hex[:8]}"


async def runs_of(session: Session, name: str) -> list[Any]:
    return await session.runs.search(experiment_names=[name]).to_list()


async def test_created_later(
    platform: LocalPlatform, gateway: Gateway, spool: Path, name: str
) -> None:
    """With its experiment, its points in order, and the end that it had."""
    async with session_of(platform, spool) as session:
        await gateway.down()
        run = await session.start_run(name, run_name="sgd", start_timeout=0.2, params={"lr": 1})
        for step in range(100):
            run.log_metric("loss", step / 2, step)
        ending = asyncio.ensure_future(run.finish("FAILED"))
        await asyncio.sleep(0.1)
        await gateway.up()
        await ending
        (found,) = await runs_of(session, name)
        assert found.info.run_id == run.run_id
        assert (found.info.run_name, found.info.status) == ("sgd", "FAILED")
        assert found.data.params["lr"] == "1"
        points = await session.runs.metric_history(found.info.run_id, "loss").to_list()
        assert sorted(point.step for point in points) == list(range(100))


@pytest.mark.usefixtures("patient_end")
@pytest.mark.parametrize("given", ["a name", "an id", "neither"])
async def test_found_by_its_tag(
    platform: LocalPlatform, gateway: Gateway, spool: Path, name: str, given: str
) -> None:
    """The create of the first session took effect unheard, and its token is forgotten."""
    gateway.deduplicate = False
    where: dict[str, Any] = {}
    async with session_of(platform, spool) as session:
        if given == "a name":
            where = {"experiment": name}
        elif given == "an id":
            where = {"experiment_id": await session.experiments.create(name)}
    hanging = gateway.inject(Fault.hang(after_write=True), operation=CREATE)
    async with session_of(platform, spool, close_timeout=0.5) as session:
        run = await session.start_run(**where, run_name=name, offline=True)
        run.log_metric("loss", 0.5, 7)
        await until(lambda: hanging.hits == 1)
        await run.finish()
        key = run._run_id
    (left,) = find_spools(spool)
    async with session_of(platform, spool) as session:
        await until(lambda: not left.exists())
        experiments = [each.experiment_id async for each in session.experiments.search()]
        called = f"attributes.run_name = '{name}'"
        (found,) = await session.runs.search(
            experiment_ids=experiments, filter_string=called
        ).to_list()
        assert found.info.status == "FINISHED"
        assert found.data.tags[LOCAL_ID] == key
        assert found.data.metrics["loss"] == 0.5


async def test_found_by_its_start(
    platform: LocalPlatform, gateway: Gateway, spool: Path, name: str
) -> None:
    """The create at the start itself, which has no tag of ours."""
    gateway.deduplicate = False
    async with session_of(platform, spool) as session:
        await session.experiments.create(name)
        other = await session.start_run(name, run_name="sgd")
        gateway.inject(Fault.hang(after_write=True), operation=CREATE)
        run = await session.start_run(name, run_name="sgd", start_timeout=2.0)
        run.log_metric("loss", 0.5, 7)
        await run.finish()
        await other.finish()
        assert run.run_id != other.run_id
        found = await runs_of(session, name)
        assert {each.info.run_id for each in found} == {run.run_id, other.run_id}
        assert all(LOCAL_ID not in each.data.tags for each in found)
