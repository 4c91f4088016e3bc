"""The collector's handler: request -> reply around a session, whose service is in this process."""

from __future__ import annotations

import asyncio
import pickle
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from attrs import define, field
from children import until

from adp_async._sansio.records import BatchLimits
from adp_async.collector.collector import Collector
from adp_async.collector.reading import Refused, read_log_batch
from adp_async.testing import PLATFORM_ID, WORKSPACE, FakeSession

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from adp_async._sansio.messages import Reply

ROOT = f"/20260430/aiDataPlatforms/{PLATFORM_ID}/workspaces/{WORKSPACE}/mlops/api/2.0/"
TOKEN = "the-token-of-this-job"


def metric(key: str = "loss", step: Any = 0, value: Any = 0.5) -> dict[str, Any]:
    return {"key": key, "value": value, "timestamp": 1_700_000_000_000, "step": step}


@define
class Bench:
    """A collector without a socket, and a worker's end of it."""

    session: FakeSession
    collector: Collector
    run_id: str
    headers: dict[str, str] = field(
        factory=lambda: {"authorization": f"Bearer {TOKEN}", "x-adp-worker": "w1"}
    )

    async def send(
        self, path: str, body: object = None, *, method: str = "POST", **headers: str
    ) -> Reply:
        content = body if isinstance(body, bytes) else msgspec.json.encode(body or {})
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        thread = self.session._engine.thread
        assert thread is not None
        handle = self.collector.handler.handle
        target = path if path.startswith("/") else ROOT + path
        return await thread.run(handle(method, target, {**self.headers, **names}, content))

    async def log(self, *metrics: dict[str, Any], token: str = "", **more: Any) -> Reply:
        body = {"run_id": self.run_id, "metrics": metrics, **more}
        headers = {"opc_retry_token": token} if token else {}
        return await self.send("mlflow/runs/log-batch", body, **headers)

    def steps(self) -> list[int]:
        return [each.step for each in self.session.received(self.run_id).metrics]


@asynccontextmanager
async def opened(
    spool: Path | bool = False, *, whole: bool = False, **knobs: Any
) -> AsyncIterator[Bench]:
    async with FakeSession(spool=spool, **knobs) as session:
        run_id = session.add_run()
        collector = Collector(session._engine, None if whole else run_id, token=TOKEN)
        thread = session._engine.thread
        assert thread is not None
        await thread.run(collector.prepare())
        yield Bench(session, collector, run_id)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with opened(tmp_path / "spool") as bench:
        yield bench


def told(reply: Reply) -> tuple[int, str, str]:
    body = msgspec.json.decode(reply.body)
    return reply.status, body.get("code", ""), body.get("message", "")


# ------------------------------------------------------------------ log-batch


async def test_what_is_handed_over_is_on_disk_when_it_is_answered(bench: Bench) -> None:
    """The answer is the service's; the records are in the spool by then, with their token."""
    bench.session.answer("log_experiment_run_batch", status=503)
    reply = await bench.log(metric(step=1), metric(step=2), token="t1")

    assert (reply.status, reply.body) == (200, b"{}")
    spool = bench.session._delivery.keeper.spool  # type: ignore[union-attr]
    assert [record.step for _, record in spool.waiting()] == [1, 2]  # type: ignore[union-attr]
    assert [token for token, _ in spool.taken()] == [f"t1 {bench.run_id}"]
    bench.session.logger.discard(bench.run_id)


async def test_the_same_token_is_taken_once(bench: Bench) -> None:
    """A worker that got no answer asks again, and gets it; another token is another request."""
    for token in ("t1", "t1", "t2"):
        assert (await bench.log(metric(step=1), token=token)).status == 200
    await bench.session.logger.flush()

    assert bench.steps() == [1, 1]
    stats = bench.collector.stats()
    assert (stats.taken, stats.settled, stats.waiting) == (2, 2, 0)
    assert (stats.workers["w1"].batches, stats.workers["w1"].repeated) == (3, 1)


async def test_the_same_token_at_the_same_time_is_taken_once(bench: Bench) -> None:
    """Two requests of it may be under way together: the first one's answer is slow."""
    replies = await asyncio.gather(*(bench.log(metric(step=1), token="t1") for _ in range(5)))
    await bench.session.logger.flush()

    assert {reply.status for reply in replies} == {200}
    assert bench.steps() == [1]


async def test_a_token_is_that_of_one_run(tmp_path: Path) -> None:
    """Two workers of different runs may draw the same one."""
    async with opened(tmp_path, whole=True) as bench:
        await bench.log(metric(step=1), token="t1")
        first, bench.run_id = bench.run_id, bench.session.add_run()
        await bench.log(metric(step=2), token="t1")
        await bench.session.logger.flush()
        assert bench.steps() == [2]
        bench.run_id = first
        assert bench.steps() == [1]


async def test_records_do_not_leave_before_their_token_is_on_disk(bench: Bench) -> None:
    """Else a collector that dies in between would take them again."""
    keeper = bench.session._delivery.keeper
    assert keeper is not None
    written: list[bool] = []
    commit = keeper.spool.commit

    def slow(changes: Any, last_error: str = "") -> None:
        written.append(bool(bench.steps()))
        commit(changes, last_error)

    keeper.spool.commit = slow  # type: ignore[method-assign]
    await bench.log(metric(step=1), token="t1")
    await bench.session.logger.flush()

    assert written[0] is False
    assert bench.steps() == [1]


async def test_without_a_spool_the_answer_waits_for_the_service() -> None:
    """What is nowhere but in memory is not safe yet."""
    async with opened(spool=False) as bench:
        assert (await bench.log(metric(step=1), token="t1")).status == 200
        assert bench.steps() == [1], "without a flush"


async def test_without_disk_and_service_the_worker_keeps_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is told to ask again, and its records are not taken twice when it does."""
    monkeypatch.setattr("adp_async.collector.handler.LONGEST_WAIT", 0.05)
    async with opened(spool=False) as bench:
        script = bench.session.answer("log_experiment_run_batch", status=503)
        assert told(await bench.log(metric(step=1), token="t1"))[:2] == (503, "NotYet")
        monkeypatch.setattr("adp_async.collector.handler.LONGEST_WAIT", 20.0)
        script.left = script.given
        assert (await bench.log(metric(step=1), token="t1")).status == 200
        assert bench.steps() == [1]


async def test_a_full_collector_says_so(tmp_path: Path) -> None:
    """429 with Retry-After, as the service would; nothing of the request is taken."""
    async with opened(spool=False, buffer_limit=2000, overflow="drop") as bench:
        bench.session.answer("log_experiment_run_batch", status=503)
        slow = asyncio.create_task(bench.log(*(metric(step=n) for n in range(20)), token="t1"))
        await until(lambda: bench.collector.handler.ledger.knows(f"t1 {bench.run_id}"))
        reply = await bench.log(metric(step=99), token="t2")
        assert told(reply)[:2] == (429, "TooManyRequests")
        assert reply.headers["retry-after"] == "1"
        slow.cancel()
        bench.session.logger.discard(bench.run_id)


async def test_a_spool_at_its_limit_refuses_more(tmp_path: Path) -> None:
    """What cannot be journaled fills half of the memory, and no more."""
    knobs: dict[str, Any] = {"spool_limit": 1, "buffer_limit": 8000}
    async with opened(tmp_path, **knobs) as bench:
        bench.session.answer("log_experiment_run_batch", status=503)
        many = [metric(step=n) for n in range(40)]
        slow = asyncio.create_task(bench.log(*many, token="t1"))
        keeper = bench.session._delivery.keeper
        assert keeper is not None
        await until(lambda: keeper.failure is not None)
        assert (await bench.log(metric(), token="t2")).status == 429
        assert not slow.done(), "it is neither on disk nor delivered"
        slow.cancel()
        bench.session.logger.discard(bench.run_id)


async def test_order_of_a_worker(bench: Bench) -> None:
    """Params and tags take effect in the order in which they were handed over."""
    for number in range(5):
        tags = [{"key": "stage", "value": str(number)}]
        assert (await bench.log(token=f"t{number}", tags=tags)).status == 200
    await bench.session.logger.flush()

    assert bench.session.received(bench.run_id).tags[-1] == ("stage", "4")


async def test_what_the_service_refuses_is_told_to_who_asks(bench: Bench) -> None:
    """To the worker by its flush, and to the run's owner as if it had been logged there."""
    await bench.log(metric("fine", 1), metric("not@fine", 2), token="t1")
    reply = await bench.send("collector/flush", {"run_id": bench.run_id})
    answer = msgspec.json.decode(reply.body)
    assert (answer["settled"], answer["told"]) == (True, 1)
    assert [(each["key"], each["step"]) for each in answer["rejected"]] == [("not@fine", 2)]
    again = await bench.send("collector/flush", {"run_id": bench.run_id, "told": 1})
    nothing = {"settled": True, "rejected": [], "told": 1}
    assert msgspec.json.decode(again.body) == nothing, "it was told"

    # Another worker with the same key has had nothing refused.
    bench.headers["x-adp-worker"] = "w2"
    await bench.log(metric("fine", 3), token="t2")
    reply = await bench.send("collector/flush", {"run_id": bench.run_id})
    assert msgspec.json.decode(reply.body) == {"settled": True, "rejected": [], "told": 0}
    assert (await bench.send("collector/flush", {"told": "x"})).status == 400

    error = await bench.session.logger.try_flush(bench.run_id)
    assert "not@fine" in str(error)
    stats = bench.collector.stats()
    assert (stats.taken, stats.settled, stats.delivered, stats.rejected) == (3, 3, 2, 1)
    counts = {name: (each.delivered, each.rejected) for name, each in stats.workers.items()}
    assert counts == {"w1": (1, 1), "w2": (1, 0)}
    with pytest.raises(Exception, match="not@fine"):
        await bench.session.logger.flush()


# ------------------------------------------------------------------ bad input

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "an empty key": ({"metrics": [metric(), metric("")]}, "metrics[1].key"),
    "a long key": ({"metrics": [metric("k" * 251)]}, "at most 250 characters"),
    "a control character": ({"tags": [{"key": "a\nb", "value": ""}]}, "tags[0].key"),
    "a text": ({"metrics": [metric(value="high")]}, "metrics[0].value"),
    "a step beyond int64": ({"metrics": [metric(step=2**63)]}, "metrics[0].step"),
    "a step of text": ({"metrics": [metric(step="1.5")]}, "metrics[0].step"),
    "a key that is a number": ({"metrics": [metric(7)]}, "metrics[0].key"),  # type: ignore[arg-type]
    "a long param": (
        {"params": [{"key": "a", "value": "1"}, {"key": "p", "value": "v" * 6001}]},
        "params[1].value",
    ),
    "a param with two values": (
        {"params": [{"key": "p", "value": "1"}, {"key": "p", "value": "2"}]},
        "params[1].value",
    ),
    "too many metrics": ({"metrics": [metric()] * 1001}, "at most 1000 metrics"),
    "too many tags": ({"tags": [{"key": str(n), "value": ""} for n in range(101)]}, "at most 100"),
    "too many together": (
        {"metrics": [metric()] * 990, "tags": [{"key": str(n), "value": ""} for n in range(11)]},
        "at most 1000 metrics, params and tags",
    ),
    "no list": ({"metrics": {"loss": 0.5}}, "metrics"),
}


@pytest.mark.parametrize(("more", "named"), BAD.values(), ids=BAD)
async def test_bad_input_is_refused_as_the_service_does(
    bench: Bench, more: dict[str, Any], named: str
) -> None:
    """The whole request, with the place of what is wrong; its token may be used again."""
    body = {"run_id": bench.run_id, **more}
    reply = await bench.send("mlflow/runs/log-batch", body, opc_retry_token="t1")

    status, code, message = told(reply)
    assert (status, code) == (400, "INVALID_PARAMETER_VALUE")
    assert named in message
    assert bench.collector.stats().taken == 0
    assert not bench.collector.handler.ledger.knows(f"t1 {bench.run_id}")


@pytest.mark.parametrize("body", [b"", b"not json", b"[]", b"[" * 5000, b'{"run_id":7}', b"\xff"])
async def test_bodies_that_are_no_log_batch(bench: Bench, body: bytes) -> None:
    """Whatever comes is an answer, not an exception."""
    assert told(await bench.send("mlflow/runs/log-batch", body))[:1] == (400,)


def test_a_body_beyond_the_limit() -> None:
    """413, so that the worker halves it."""
    limits = BatchLimits(body_bytes=20)
    with pytest.raises(Refused) as caught:
        read_log_batch(b'{"run_id": "0123456789"}', limits, {})
    assert caught.value.status == 413


async def test_numbers_that_json_does_not_have(bench: Bench) -> None:
    """They are spelled as on the wire, and an int64 may come as text, as MLflow's own does."""
    values = ["NaN", "Infinity", "-Infinity", 1, 0.5]
    metrics = [metric(value=value, step=str(n)) for n, value in enumerate(values)]
    assert (await bench.log(*metrics, token="t1")).status == 200
    await bench.session.logger.flush()

    received = bench.session.received(bench.run_id).metrics
    assert [each.value for each in received] == ["NaN", "Infinity", "-Infinity", 1.0, 0.5]
    assert [each.step for each in received] == [0, 1, 2, 3, 4]


async def test_a_place_that_is_not_ours_to_give(bench: Bench) -> None:
    """A field of a record's own is not taken from the wire."""
    body = {"run_id": bench.run_id, "metrics": [{**metric(), "place": {"a": 1}}]}
    assert (await bench.send("mlflow/runs/log-batch", body)).status == 200
    await bench.session.logger.flush()
    assert bench.steps() == [0]


# ------------------------------------------------------------------ who may do what


@pytest.mark.parametrize("given", ["", "Bearer another", "Basic abc", f"Bearer {TOKEN}x", TOKEN])
async def test_another_token(bench: Bench, given: str) -> None:
    """401, whatever is asked; nothing is counted for it."""
    bench.headers["authorization"] = given
    for path in ("mlflow/runs/log-batch", "collector/enter", "mlflow/runs/get"):
        assert told(await bench.send(path, {"run_id": bench.run_id}))[:2] == (
            401,
            "NotAuthenticated",
        )
    assert bench.collector.stats().workers == {}


async def test_a_handle_is_for_one_run(bench: Bench) -> None:
    """Another run is refused, whatever is asked of it."""
    other = bench.session.add_run()
    for method, path, body in (
        ("POST", "mlflow/runs/log-batch", {"run_id": other, "metrics": [metric()]}),
        ("POST", "mlflow/runs/set-tag", {"run_id": other, "key": "a", "value": "b"}),
        ("POST", "mlflow/runs/set-tag", {"run_id": bench.run_id, "run_uuid": other, "key": "a"}),
        ("GET", f"mlflow/runs/get?run_id={other}", None),
        ("POST", "collector/flush", {"run_id": other}),
    ):
        reply = await bench.send(path, body, method=method)
        assert told(reply)[:2] == (403, "NotAllowed"), path
    twice = f"mlflow/runs/get?run_id={bench.run_id}&run_id={other}"
    assert (await bench.send(twice, method="GET")).status == 400
    mine = f'{{"run_id":"{bench.run_id}","key":"a","value":"b"'
    for path, body in (
        ("mlflow/runs/set-tag", f'{mine},"run_id":"{other}"}}'),
        ("mlflow/runs/set-tag", f'{{"run_id":"{other}",{mine[1:]}}}'),
        (f"mlflow/runs/set-tag?run_id={other}", f"{mine}}}"),
        ("mlflow/runs/set-tag", "[" * 100_000),
        ("mlflow/runs/set-tag", "not JSON"),
    ):
        assert told(await bench.send(path, body.encode()))[:2] == (400, "INVALID_PARAMETER_VALUE")
    assert (await bench.send("mlflow/runs/set-tag", f"{mine}}}".encode("utf-16"))).status == 400
    assert bench.session.received(other).metrics == []
    assert not [each for each in bench.session.requests if other.encode() in each.body]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("mlflow/runs/delete", {}),
        ("mlflow/runs/restore", {}),
        ("mlflow/runs/create", {}),
        ("mlflow/runs/search", {}),
        ("mlflow/experiments/create", {"name": "x"}),
        ("mlflow/runs/update", {"status": "FINISHED"}),
        ("something/new", {}),
    ],
)
async def test_what_a_run_s_handle_does_not_allow(
    bench: Bench, path: str, body: dict[str, str]
) -> None:
    """What goes beyond the run, and what ends or deletes it."""
    reply = await bench.send(path, {"run_id": bench.run_id, **body})

    assert told(reply)[:2] == (403, "NotAllowed")
    assert bench.session.requests == []


async def test_another_platform(bench: Bench) -> None:
    """A handle that was made for it gets the answer of the service."""
    for path in ("/", "/20260430/aiDataPlatforms/other/workspaces/w/mlops/api/2.0/mlflow/runs/get"):
        assert told(await bench.send(path))[:2] == (404, "NotAuthorizedOrNotFound")


# ------------------------------------------------------------------ everything else


async def test_other_operations_are_passed_on(bench: Bench) -> None:
    """With their query, body and retry token, but not with the worker's token; and come back."""
    reply = await bench.send(f"mlflow/runs/get?run_id={bench.run_id}", method="GET")
    assert msgspec.json.decode(reply.body)["run"]["info"]["run_id"] == bench.run_id

    body = {"run_id": bench.run_id, "run_name": "renamed"}
    reply = await bench.send("mlflow/runs/update", body, opc_retry_token="t1")
    assert msgspec.json.decode(reply.body)["run_info"]["run_name"] == "renamed"
    sent = bench.session.requests[-1]
    assert msgspec.json.decode(sent.body) == body
    assert sent.headers["opc-retry-token"] == "t1"
    assert TOKEN not in str(sent.headers)
    assert "x-adp-worker" not in sent.headers


async def test_reading_sees_what_was_written(bench: Bench) -> None:
    """A worker that has handed over and then reads the run finds it there."""
    await bench.log(metric(step=1), token="t1")
    reply = await bench.send(f"mlflow/runs/get?run_id={bench.run_id}", method="GET")
    assert msgspec.json.decode(reply.body)["run"]["data"]["metrics"][0]["step"] == 1


async def test_reading_does_not_wait_for_ever(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing can be delivered, the answer is what the service has."""
    monkeypatch.setattr("adp_async.collector.handler.LONGEST_LOOK", 0.05)
    bench.session.answer("log_experiment_run_batch", status=503)
    await bench.log(metric(step=1), token="t1")
    reply = await bench.send(f"mlflow/runs/get?run_id={bench.run_id}", method="GET")
    assert msgspec.json.decode(reply.body)["run"]["data"]["metrics"] == []
    bench.session.logger.discard(bench.run_id)


async def test_a_search_sees_what_was_written(tmp_path: Path) -> None:
    """Of all runs."""
    async with opened(tmp_path, whole=True) as bench:
        bench.session.answer("list_experiment_runs", {"runs": []})
        await bench.log(metric(step=1), token="t1")
        await bench.send("mlflow/runs/search", {})
        assert bench.steps() == [1]


async def test_a_whole_session_may_do_more(tmp_path: Path) -> None:
    """Create runs, for one."""
    async with opened(tmp_path, whole=True) as bench:
        reply = await bench.send("mlflow/runs/create", {"experiment_id": "0"})
        run_id = msgspec.json.decode(reply.body)["run"]["info"]["run_id"]
        assert bench.session.received(run_id).run_id == run_id


@pytest.mark.parametrize(
    ("status", "answer", "expected"),
    [
        (404, {"code": "NotFound", "message": "gone"}, (404, "NotFound", "gone")),
        (400, {"code": "X", "message": "bad"}, (400, "X", "bad")),
        (503, {"code": "Y", "message": "down"}, (503, "Y", "down")),
        (502, b"<html>proxy</html>", (502, "", "proxy")),
        (401, {"code": "NotAuthenticated", "message": "key"}, (502, "", None)),
    ],
)
async def test_the_service_s_errors_are_handed_back(
    bench: Bench, status: int, answer: Any, expected: tuple[int, str, str | None]
) -> None:
    """In its shape and with its code; without one where something else has answered.

    That the collector's own credentials are refused is not the worker's mistake.
    """
    bench.session.answer("get_experiment_run_by_id", answer, status=status)
    reply = await bench.send(f"mlflow/runs/get?run_id={bench.run_id}", method="GET")
    assert told(reply)[:2] == expected[:2]
    assert (expected[2] or "") in told(reply)[2]


async def test_a_429_is_waited_out_here(bench: Bench) -> None:
    """The one throttle is the collector's; a worker doesn't hear of it."""
    answer = {"code": "TooManyRequests", "message": "slowly"}
    script = bench.session.answer("get_experiment_run_by_id", answer, status=429, times=1)
    reply = await bench.send(f"mlflow/runs/get?run_id={bench.run_id}", method="GET")
    assert (reply.status, script.given) == (200, 1)


async def test_what_a_collector_does_not_know(bench: Bench) -> None:
    """Its own operations are few."""
    assert (await bench.send("collector/dance")).status == 404
    assert (await bench.send("collector/enter", b"[")).status == 400


async def test_a_closed_session_answers_so(tmp_path: Path) -> None:
    """A worker keeps its records then."""
    async with opened(tmp_path) as bench:
        handler = bench.collector.handler
    target, headers = f"{ROOT}mlflow/runs/log-batch", bench.headers
    body = msgspec.json.encode({"run_id": bench.run_id, "metrics": [metric()]})
    assert told(await handler.handle("POST", target, headers, body))[:2] == (503, "Closed")


# ------------------------------------------------------------------ the handle


async def test_a_handle_shows_no_secret() -> None:
    """It is compared and pickled, and its token stays out of what is printed."""
    async with FakeSession() as session:
        run = session.attach_run(session.add_run())
        async with run.shared() as handle:
            again = pickle.loads(pickle.dumps(handle))
            assert again == handle
            assert hash(again) == hash(handle)
            assert handle.token
            assert handle.token not in repr(handle)
            assert run.run_id in repr(handle)
            other = session.attach_run(session.add_run())
            async with other.shared() as second:
                assert second != handle
