"""The main job through a session, against the real MLflow behind the gateway."""

from __future__ import annotations

import asyncio
import math
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from adp_async import blocking
from adp_async.auth import ApiKey
from adp_async.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    Metric,
    Param,
    RegisteredModelTag,
    RunTag,
)
from adp_async.errors import BadRequest, Conflict, DeliveryError, NotFound

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from adp_async import Session
    from adp_async._sansio.messages import Reply
    from adp_async.local import Gateway, LocalPlatform

pytestmark = pytest.mark.mlflow


@pytest.fixture
async def session(platform: LocalPlatform, gateway: Gateway) -> AsyncIterator[Session]:
    gateway.record = True
    async with platform.session(spool=False) as session:
        yield session


async def history(session: Session, run_id: str, key: str) -> list[Metric]:
    return [point async for point in session.runs.metric_history(run_id, key, max_results=25_000)]


def unique(name: str) -> str:
    return f"{name} {uuid.uuid4().hex[:8]}"


# The operations of the five pages, and what else the main job needs ------------------------------


async def test_create_and_get(session: Session) -> None:
    """A run with all that it can be created with comes back as it was given."""
    experiment_id = await session.experiments.create(unique("created"))
    created = await session.runs.create(
        experiment_id=experiment_id,
        run_name="Läufe/損失 'a' 100%",
        start_time=1_700_000_000_123,
        tags=[RunTag("team", "vision"), RunTag("text", 'ä "quoted" \\ line\nbreak')],
    )
    run = await session.runs.get(created.info.run_id)
    assert run.info == created.info
    assert run.info.run_name == "Läufe/損失 'a' 100%"
    assert run.info.start_time == 1_700_000_000_123
    assert run.info.experiment_id == experiment_id
    assert (run.info.status, run.info.lifecycle_stage) == ("RUNNING", "active")
    tags = {tag.key: tag.value for tag in run.data.tags}
    assert tags["team"] == "vision"
    assert tags["text"] == 'ä "quoted" \\ line\nbreak'


@pytest.mark.parametrize("status", ["RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"])
async def test_update(session: Session, status: Any) -> None:
    """Status, end and name change, alone or together; the rest stays."""
    run_id = (await session.runs.create(run_name="before")).info.run_id
    info = await session.runs.update(run_id, status=status, end_time=1_800_000_000_000)
    assert (info.status, info.end_time, info.run_name) == (status, 1_800_000_000_000, "before")
    info = await session.runs.update(run_id, run_name="näch/her: 'x'")
    assert (info.status, info.end_time) == (status, 1_800_000_000_000)
    found = (await session.runs.get(run_id)).info
    assert (found.run_name, found.status) == ("näch/her: 'x'", status)


async def test_headers(session: Session, gateway: Gateway) -> None:
    """Request id, retry token and principal arrive; request id and etag come back."""
    run_id = (await session.runs.create()).info.run_id
    replies: list[Reply] = []
    options: dict[str, Any] = {
        "request_id": "request-7",
        "principal": "ocid1.user.oc1..x",
        "on_reply": replies.append,
    }
    gateway.recorded.clear()
    name = unique("headers")
    await session.runs.update(run_id, run_name="x", retry_token=unique("t")[-8:], **options)
    await session.runs.log_batch(run_id, params=[Param("a", "1")], retry_token="t1", **options)
    await session.runs.log_inputs(run_id, dataset_inputs=[digits()], retry_token="t2", **options)
    await session.runs.delete(run_id)
    await session.runs.restore(run_id, retry_token="t3", **options)
    await session.registered_models.create(name)
    await session.registered_models.update(name, description="d", retry_token="t4", **options)
    assert len(replies) == 5
    assert all(reply.request_id.startswith("request-7/") for reply in replies)
    assert all(reply.etag for reply in replies)
    with_them = [r for r in gateway.recorded if r.headers["opc-request-id"] == "request-7"]
    assert [r.operation for r in with_them] == [
        "update_experiment_run",
        "log_experiment_run_batch",
        "log_experiment_run_inputs",
        "restore_experiment_run",
        "update_registered_model",
    ]
    assert {r.headers["dh-user-principal"] for r in with_them} == {"ocid1.user.oc1..x"}
    assert [r.headers["opc-retry-token"] for r in with_them][1:] == ["t1", "t2", "t3", "t4"]


async def test_log_batch(session: Session) -> None:
    """A direct batch with all three kinds, NaN and infinities as the service spells them."""
    run_id = (await session.runs.create()).info.run_id
    await session.runs.log_batch(
        run_id,
        metrics=[
            Metric("loss", 0.25, 1_700_000_000_000, 3),
            Metric("Verlust/Größe", -1e300, 5),
            Metric("nan", math.nan, 6),
            Metric("inf", math.inf, 7),
        ],
        params=[Param("lr", "0.1"), Param("empty", "")],
        tags=[RunTag("stage", "last")],
    )
    data = (await session.runs.get(run_id)).data
    metrics = {metric.key: metric for metric in data.metrics}
    assert metrics["loss"] == Metric("loss", 0.25, 1_700_000_000_000, 3)
    assert metrics["Verlust/Größe"].value == -1e300
    assert math.isnan(metrics["nan"].value)
    assert metrics["inf"].value >= 1.7976931348623157e308
    assert {param.key: param.value for param in data.params} == {"lr": "0.1", "empty": ""}
    assert RunTag("stage", "last") in data.tags


async def test_a_direct_batch_with_a_bad_record(session: Session) -> None:
    """The service refuses all of it, and the caller hears why."""
    run_id = (await session.runs.create()).info.run_id
    metrics = [Metric("loss", 0.25, 1)]
    with pytest.raises(BadRequest, match="b@d") as caught:
        await session.runs.log_batch(run_id, metrics=metrics, params=[Param("b@d", "1")])
    assert caught.value.request_id
    assert (await session.runs.get(run_id)).data.metrics == ()


def digits(**changes: Any) -> DatasetInput:
    facts = {"name": "digits", "digest": "d1", "source_type": "local", "source": "sklearn"}
    tags = [InputTag("mlflow.data.context", "training")]
    return DatasetInput(Dataset(**facts | changes), tags=tags)


async def test_log_inputs(session: Session) -> None:
    """Datasets with schema, profile and tags come back as they were given."""
    run_id = (await session.runs.create()).info.run_id
    inputs = [digits(), digits(name="more", schema='{"columns": []}', profile='{"rows": 1797}')]
    await session.runs.log_inputs(run_id, dataset_inputs=inputs)
    found = (await session.runs.get(run_id)).inputs.dataset_inputs
    assert sorted(found, key=lambda each: each.dataset.name) == inputs


async def test_a_restored_run(session: Session) -> None:
    """A deleted run refuses records, a restored one takes them again."""
    async with session.start_run() as run:
        await run.log_metric("loss", 0.5, step=0)
        await session.runs.delete(run.run_id)
        assert (await session.runs.get(run.run_id)).info.lifecycle_stage == "deleted"
        before = session.logger.stats().requests
        for step in range(1, 500):
            run.log_metric("loss", 0.5, step=step)
        with pytest.raises(DeliveryError, match="active") as caught:
            await run.flush()
        assert caught.value.rejected == 499
        assert session.logger.stats().requests - before <= 2
        await session.runs.restore(run.run_id)
        await run.log_metric("loss", 0.5, step=1000)
    assert [point.step for point in await history(session, run.run_id, "loss")] == [0, 1000]
    assert (await session.runs.get(run.run_id)).info.status == "FINISHED"


async def test_registered_models(session: Session) -> None:
    """Created with all fields, updated, and found under a name with spaces, quotes and slashes."""
    name = unique("modèle 'a' & \"b\" 100%")
    tags = [RegisteredModelTag("team", "vision")]
    created = await session.registered_models.create(name, description="first", tags=tags)
    assert (created.name, created.description) == (name, "first")
    updated = await session.registered_models.update(name, description="zweitens: ä/ö")
    assert updated.description == "zweitens: ä/ö"
    assert (updated.last_updated_timestamp or 0) >= (created.creation_timestamp or 0) > 0
    found = await session.registered_models.get(name)
    assert (found.description, found.tags) == ("zweitens: ä/ö", tuple(tags))
    with pytest.raises(Conflict):
        await session.registered_models.create(name)
    with pytest.raises(NotFound) as caught:
        await session.registered_models.update("no such model", description="x")
    assert caught.value.operation == "update_registered_model"
    assert caught.value.request_id


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "with spaces",
        "it's",
        'say "yes"',
        "a/b:c",
        "100% + ä & ü?=#",
        "損失",
        "a\\b",
        "~!*()",
    ],
)
async def test_names_in_queries(session: Session, gateway: Gateway, name: str) -> None:
    """Quotes, spaces, slashes, colons: what arrives verifies, and is the name asked for."""
    name = unique(name)
    experiment_id = await session.experiments.create(name)
    assert (await session.experiments.get_by_name(name)).experiment_id == experiment_id
    run = await session.start_run(name, run_name=name)
    escaped = name.replace("\\", "\\\\").replace("'", "\\'")
    if "'" not in name and "\\" not in name:
        search = session.runs.search(
            experiment_ids=[experiment_id], filter_string=f"attributes.run_name = '{escaped}'"
        )
        assert [found.info.run_id async for found in search] == [run.run_id]
    assert 401 not in gateway.counts.by_status


# The background logger ----------------------------------------------------------------------------


def test_twenty_thousand_points_from_four_threads(platform: LocalPlatform) -> None:
    """Not one is lost, doubled or changed: read back from the server and compared exactly."""
    auth = ApiKey(config_file=platform.config_file)
    session = blocking.Session(
        platform.platform_id, platform.workspace, endpoint=platform.endpoint, auth=auth, spool=False
    )
    logged: dict[str, list[tuple[int, float]]] = {}

    def work(number: int) -> None:
        points = logged[f"loss{number}"] = []
        for step in range(5000):
            value = math.sin(step) / (number + 1)
            run.log_metric(f"loss{number}", value, step=step)
            points.append((step, value))

    with session, session.start_run(unique("threads"), run_name="four threads") as run:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        called = time.perf_counter() - began
        run.flush()
        took = time.perf_counter() - began
        stats = session.session.logger.stats()
        print(f"\n20,000 points: calls {called:.2f} s, delivered {took:.1f} s, {stats.requests=}")
        assert (stats.accepted, stats.delivered) == (20_000, 20_000)
        for key, points in logged.items():
            found = session.call(history(session.session, run.run_id, key))
            assert [(point.step, point.value) for point in sorted(found, key=lambda p: p.step)] == (
                points
            )


async def test_a_bad_param_among_good_records(session: Session) -> None:
    """It alone is refused and named; its neighbours of the same batch are delivered."""
    async with session.start_run(params={"lr": 0.1}) as run:
        await run.flush()
        good = [run.log_metric("loss", step / 100, step=step) for step in range(200)]
        good += run.log_params({f"p{number}": number for number in range(20)})
        changed = run.log_param("lr", 0.2)
        good += [run.log_param("depth", 3), run.set_tag("stage", "last")]
        same = run.log_param("lr", 0.1)
        with pytest.raises(DeliveryError, match="param 'lr'") as caught:
            await run.flush()
        assert (caught.value.rejected, caught.value.run_id) == (1, run.run_id)
        assert isinstance(caught.value.cause, BadRequest)
        assert caught.value.cause.request_id
        assert not changed.delivered
        assert same.delivered
        assert all(receipt.delivered for receipt in good)
    found = await session.runs.get(run.run_id)
    params = {param.key: param.value for param in found.data.params}
    expected = {f"p{number}": str(number) for number in range(20)}
    assert params == expected | {"lr": "0.1", "depth": "3"}
    points = await history(session, run.run_id, "loss")
    assert sorted(point.step for point in points) == list(range(200))


async def test_a_tag_set_a_thousand_times(session: Session) -> None:
    """It ends with the last value, and few of the thousand are sent."""
    async with session.start_run() as run:
        for number in range(1000):
            run.set_tag("progress", number)
            if number % 100 == 0:
                await asyncio.sleep(0.01)
    found = await session.runs.get(run.run_id)
    assert {tag.key: tag.value for tag in found.data.tags}["progress"] == "999"
    assert run.stats().delivered == 1000


async def test_what_the_service_lost_and_found(session: Session, gateway: Gateway) -> None:
    """Replies lost after the write and 503s: each point is there once."""
    from adp_async.local import Fault

    async with session.start_run() as run:
        for fault in (Fault.reply(503, after_write=True), Fault.drop(after_write=True)):
            gateway.inject(fault, operation="log_experiment_run_batch")
        gateway.deduplicate = False  # also where the token means nothing, a point is itself
        for step in range(2500):
            run.log_metric("loss", step / 7, step=step)
        await run.flush()
        assert run.stats().retries >= 2
    points = await history(session, run.run_id, "loss")
    assert sorted((point.step, point.value) for point in points) == [
        (step, step / 7) for step in range(2500)
    ]


async def test_a_run_of_a_body_that_fails(session: Session) -> None:
    """FAILED with an end time, and complete."""

    async def train() -> None:
        nonlocal run_id
        async with session.start_run(run_name="fails") as run:
            run_id = run.run_id
            for step in range(100):
                run.log_metric("loss", 1.0, step=step)
            raise ValueError("the caller's own")

    run_id = ""
    with pytest.raises(ValueError, match="the caller's own"):
        await train()
    info = (await session.runs.get(run_id)).info
    assert info.status == "FAILED"
    assert (info.end_time or 0) >= (info.start_time or 0) > 0
    assert len(await history(session, run_id, "loss")) == 100


async def test_history_in_pages(session: Session) -> None:
    """``async for`` goes from page to page."""
    async with session.start_run() as run:
        for step in range(250):
            run.log_metric("loss", float(step), step=step)
    listing = session.runs.metric_history(run.run_id, "loss", max_results=100)
    assert sorted([point.step async for point in listing]) == list(range(250))
    assert len([page async for page in listing.pages()]) == 3


async def test_two_sessions_and_a_new_experiment(platform: LocalPlatform) -> None:
    """Named by two processes at once, it is created once, and both runs are in it."""
    name = unique("raced")
    one, other = platform.session(spool=False), platform.session(spool=False)
    async with one, other:
        runs = await asyncio.gather(*(s.start_run(name) for s in (one, other, one, other)))
        assert len({run.experiment_id for run in runs}) == 1
        await asyncio.gather(*(run.finish() for run in runs))
