"""The fakes that our tests and our users' tests share."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import msgspec
import pytest

from adp_async.errors import ConnectionLost, NotFound, ServiceFault
from adp_async.testing import FakeBlockingSession, FakeSession

LOG_BATCH = "log_experiment_run_batch"


async def test_a_run_is_received() -> None:
    """What the code under test logs can be asked for by run."""
    async with (
        FakeSession() as session,
        session.start_run("digits", params={"lr": 0.1}, source=False) as run,
    ):
        run.log_metric("loss", 0.5, step=3)
        run.set_tag("stage", "last")
    received = session.received(run.run_id)
    assert [(metric.key, metric.value, metric.step) for metric in received.metrics] == [
        ("loss", 0.5, 3)
    ]
    assert received.params == [("lr", "0.1")]
    assert received.tags == [("stage", "last")]
    assert received.info["status"] == "FINISHED"


def test_the_blocking_one() -> None:
    """The same for code without an event loop."""
    with FakeBlockingSession() as session, session.start_run() as run:
        run.log_metric("loss", 0.5)
    assert len(session.session.received(run.run_id).metrics) == 1


async def test_requests_are_kept() -> None:
    """Every request is there with operation, path, headers and body."""
    async with FakeSession() as session:
        run_id = session.add_run()
        await session.runs.update(run_id, run_name="x", request_id="mine")
    (request,) = session.requests
    assert (request.method, request.operation) == ("POST", "update_experiment_run")
    assert request.raw_path.endswith("/mlops/api/2.0/mlflow/runs/update")
    assert request.headers["opc-request-id"] == "mine"
    assert msgspec.json.decode(request.body) == {"run_id": run_id, "run_name": "x"}


async def test_answers() -> None:
    """What the platform in memory doesn't know is answered as the test says."""
    async with FakeSession() as session:
        with pytest.raises(ServiceFault, match="501"):
            await session.registered_models.get("digits")
        session.answer("get_registered_model", {"registered_model": {"name": "digits"}}, times=2)
        session.answer("get_registered_model", {"code": "Gone"}, status=404)
        for _ in range(2):
            assert (await session.registered_models.get("digits")).name == "digits"
        with pytest.raises(NotFound, match="Gone"):
            await session.registered_models.get("digits")


async def test_faults() -> None:
    """Requests can fail, before or after they take effect, and it is counted how often."""
    async with FakeSession() as session:
        run = session.attach_run(session.add_run())
        before = session.answer(LOG_BATCH, status=503, times=2)
        after = session.answer(LOG_BATCH, ConnectionLost("no reply"), times=1, after_write=True)
        await run.log_metric("loss", 0.5)
        assert (before.given, after.given) == (2, 1)
        assert len(session.received(run.run_id).metrics) == 2  # nobody deduplicates here


async def test_a_429_costs_no_seconds() -> None:
    """The search for the limit goes by the back-off, which is milliseconds here."""
    async with FakeSession() as session, asyncio.timeout(10.0):
        run_id = session.add_run()
        refusals = session.answer("get_experiment_run_by_id", status=429, times=12)
        for _ in range(20):
            await session.runs.get(run_id)
    assert refusals.given == 12


async def test_headers_of_answers() -> None:
    """Headers come along, and a request id in any case."""
    async with FakeSession() as session:
        session.answer("update_experiment_run", {"run_info": {}}, headers={"etag": "e"})
        replies = []
        await session.runs.update("r", run_name="x", on_reply=replies.append)
        assert (replies[0].etag, replies[0].request_id) == ("e", "fake-1")


async def test_an_operation_of_nobody() -> None:
    """A path that is not one of the service's is refused, with what to do."""
    from adp_async import Endpoint

    async with FakeSession() as session:
        with pytest.raises(ServiceFault, match=r"FakeSession\.answer"):
            await session.call(Endpoint("GET", "mlflow/horoscopes/get"))


def test_it_is_light() -> None:
    """Neither oci, nor MLflow, nor cryptography is imported for it."""
    script = (
        "import asyncio, sys; from adp_async.testing import FakeSession\n"
        "async def main():\n"
        "    async with FakeSession() as session, session.start_run() as run:\n"
        "        run.log_metric('loss', 0.5)\n"
        "asyncio.run(main())\n"
        "print({'oci', 'mlflow', 'cryptography', 'sqlite3'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        # What measures coverage imports sqlite3 itself.
        env={key: value for key, value in os.environ.items() if key != "COVERAGE_PROCESS_START"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("set()\n", "")
