"""The floor: what one would write by hand for speed alone; and the official client."""

from __future__ import annotations

import asyncio
import math
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, Self

import aiohttp
import msgspec
from attrs import define
from yarl import URL

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from benchmarks._servers import Target

BATCH = 1000
LOG_BATCH = "mlflow/runs/log-batch"


class Point(msgspec.Struct, gc=False):
    key: str
    value: float
    timestamp: int
    step: int


class Batch(msgspec.Struct):
    run_id: str
    metrics: list[Point]


_encode = msgspec.json.Encoder().encode


def value_of(step: int) -> float:
    """Floats as they come out of a training: all digits taken."""
    return math.exp(-step / 50_000) + 0.1 * math.sin(step)


def ready_batches(run_ids: Sequence[str], count: int) -> list[Batch]:
    """*count* batches of 1000 points, made beforehand: steps go to the runs in turn."""
    now = time.time_ns() // 1_000_000
    runs = len(run_ids)
    return [
        Batch(
            run_ids[number % runs],
            _points(number // runs * BATCH * runs + number % runs, runs, now),
        )
        for number in range(count)
    ]


def _points(first: int, stride: int, now: int) -> list[Point]:
    steps = range(first, first + BATCH * stride, stride)
    return [Point("loss", value_of(step), now, step) for step in steps]


@define(slots=False)
class _Signable:
    """What a signer of ``oci`` reads and writes."""

    method: str
    url: str
    path_url: str
    headers: dict[str, str]
    body: bytes


class HandWritten:
    """Signs with ``oci``'s own signer, posts with aiohttp, reads the reply; no retries, no care.

    *threads*: signatures are made in so many threads, 0 makes them on the event loop.
    """

    def __init__(self, target: Target, path: str = LOG_BATCH, *, threads: int = 0) -> None:
        self._signer = target.signer()
        self._url = URL(target.url(path), encoded=True)
        self._host = f"{self._url.host}:{self._url.port}"
        self._pool = ThreadPoolExecutor(threads) if threads else None
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._http is not None
        await self._http.close()
        if self._pool:
            self._pool.shutdown()

    def sign(self, body: bytes) -> dict[str, str]:
        headers = {
            "accept": "application/json",
            "content-length": str(len(body)),
            "content-type": "application/json",
            "date": formatdate(usegmt=True),
            "host": self._host,
        }
        url = self._url
        signable = _Signable("POST", str(url), url.raw_path_qs, headers, body)
        self._signer(signable)
        return signable.headers

    async def post(self, body: bytes) -> tuple[int, bytes]:
        """Status and body of the reply."""
        headers = await self._signed(body)
        assert self._http is not None
        async with self._http.post(self._url, data=body, headers=headers) as response:
            return response.status, await response.read()

    async def _signed(self, body: bytes) -> dict[str, str]:
        if self._pool is None:
            return self.sign(body)
        return await asyncio.get_running_loop().run_in_executor(self._pool, self.sign, body)

    async def send(self, batches: Iterable[Batch], in_flight: int) -> None:
        """Encode, sign and post every batch, *in_flight* of them at once."""
        waiting = iter(batches)
        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(self._send_all(waiting))

    async def _send_all(self, waiting: Iterable[Batch]) -> None:
        for batch in waiting:
            status, reply = await self.post(_encode(batch))
            if status != 200:
                message = f"a hand-written post was answered {status}: {reply[:200]!r}"
                raise RuntimeError(message)


class Official:
    """``MLOpsClient`` of ``aidp-python-client``, without retries that hide what things cost."""

    def __init__(self, target: Target, threads: int) -> None:
        import oci
        from aidp_python_client.aidataplatform_dp import (  # type: ignore[import-untyped]
            MLOpsClient,
            models,
        )

        # Its pool of connections is the default of `requests`; more threads share them.
        self.client = MLOpsClient(
            target.config(),
            service_endpoint=f"{target.endpoint}/20260430",
            retry_strategy=oci.retry.NoneRetryStrategy(),
        )
        self._models = models
        self._where = (target.platform_id, target.workspace)
        self._pool = ThreadPoolExecutor(threads)

    def close(self) -> None:
        self._pool.shutdown()
        self.client.base_client.session.close()

    def log_batch(self, batch: Batch) -> None:
        models = self._models
        metrics = [
            models.ExperimentRunMetric(
                key=point.key, value=point.value, timestamp=point.timestamp, step=point.step
            )
            for point in batch.metrics
        ]
        details = models.LogExperimentRunBatchDetails(run_id=batch.run_id, metrics=metrics)
        self.client.log_experiment_run_batch(*self._where, details)

    def update_run(self, run_id: str) -> None:
        details = self._models.UpdateExperimentRunDetails(run_id=run_id, run_name="name")
        self.client.update_experiment_run(*self._where, details)

    async def in_pool(self, function: Any, arguments: Iterable[Any]) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(self._pool, function, a) for a in arguments))


def oci_async_client(target: Target, **knobs: Any) -> Any:
    """``oci``'s own `AsyncBaseClient`, or None when the installed version has none."""
    try:
        from oci.async_base_client import AsyncBaseClient
    except ImportError:
        return None
    config = target.config()
    return AsyncBaseClient(
        "mlops", config, target.signer(), {}, f"{target.endpoint}/20260430", **knobs
    )
