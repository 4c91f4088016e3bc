"""The README's FastAPI application under real servers, told to stop in the middle of its work.

``pytest tests/test_web_servers.py -s`` prints how many requests a second there were, and how long
the server took to end.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from aiohttp import ClientSession
from attrs import define, field
from children import environment, free_port, not_outlived_by, until

from adp_async.local import Fault

if TYPE_CHECKING:
    from adp_async.local import LocalPlatform

BATCH: Final = "log_experiment_run_batch"
README: Final = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
#: Requests a second that are tried, over so many connections, for so many seconds.
RATE: Final = 2000
CONNECTIONS: Final = 40
SECONDS: Final = 1.5
#: The process manager's grace, and what of it is for requests and for closing; all of the README's
#: figures are about four times as long.
GRACE: Final = 9.0
FOR_REQUESTS: Final = 1.0
CLOSE_TIMEOUT: Final = 4.0

SERVERS: Final = {
    "uvicorn": [
        *("uvicorn", "main:app", "--port", "PORT", "--no-access-log"),
        *("--timeout-graceful-shutdown", f"{FOR_REQUESTS:.0f}"),
    ],
    "gunicorn": [
        *("gunicorn", "main:app", "--bind", "127.0.0.1:PORT", "--graceful-timeout", f"{GRACE:.0f}"),
        *("--worker-class", "uvicorn.workers.UvicornWorker"),
    ],
    "gunicorn asgi": [
        *("gunicorn", "main:app", "--bind", "127.0.0.1:PORT", "--graceful-timeout", f"{GRACE:.0f}"),
        *("--worker-class", "asgi", "--keep-alive", "1", "--workers", "2"),
    ],
}


@define
class Load:
    """Clients that post one score after the other, and what they have heard."""

    port: int
    path: str
    accepted: list[int] = field(factory=list)
    #: Posts without an answer: they may have been accepted or not.
    unanswered: list[int] = field(factory=list)
    others: Counter[int] = field(factory=Counter)
    _next: int = 0
    _tasks: list[asyncio.Task[None]] = field(factory=list)

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._client(n)) for n in range(CONNECTIONS)]

    async def ended(self) -> None:
        """Until no client finds the server any more."""
        async with asyncio.timeout(60):
            await asyncio.gather(*self._tasks)

    async def _client(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        turn = loop.time() + number / RATE
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                return  # it has stopped listening
            with suppress(OSError, asyncio.IncompleteReadError):
                while await self._post(reader, writer):
                    turn = max(turn + CONNECTIONS / RATE, loop.time() - 1.0)
                    await asyncio.sleep(turn - loop.time())
            writer.close()

    async def _post(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One post; whether the connection goes on."""
        value, self._next = self._next, self._next + 1
        body = json.dumps({"score": value}).encode()
        head = f"POST {self.path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        self.unanswered.append(value)
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        reply = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = re.search(r"content-length: (\d+)", reply)
        assert length is not None, reply
        await reader.readexactly(int(length[1]))
        self.unanswered.remove(value)
        status = int(reply.split()[1])
        if status == 200:
            self.accepted.append(value)
        else:
            self.others[status] += 1
        return "connection: close" not in reply


async def serve(
    folder: Path, command: list[str], environment: dict[str, str]
) -> asyncio.subprocess.Process:
    """Start a server of the README's application, whose log is a file beside it."""
    blocks = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    (code,) = [block for block in blocks if "import FastAPI" in block]
    (folder / "main.py").write_text(code)
    with (folder / "log").open("wb") as log:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "ignore::DeprecationWarning", "-m", *command),
            env=environment,
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


async def answers(port: int) -> None:
    """Until a worker answers: the master of several listens earlier."""
    async with asyncio.timeout(60), ClientSession() as http:
        while True:
            with suppress(OSError):
                async with http.get(f"http://127.0.0.1:{port}/health") as answer:
                    assert (await answer.json())["tracking"] == "ok"
                    return
            await asyncio.sleep(0.05)


async def sync(environment: dict[str, str]) -> str:
    command = (sys.executable, "-m", "adp_async", "sync")
    process = await asyncio.create_subprocess_exec(
        *command,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    with not_outlived_by(process):
        async with asyncio.timeout(60):
            out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    return out.decode()


@pytest.mark.skipif(sys.platform == "win32", reason="these servers and their signals are POSIX's")
@pytest.mark.parametrize("name", SERVERS)
async def test_sigterm_while_the_service_hangs(
    name: str, bare_platform: LocalPlatform, tmp_path: Path
) -> None:
    """The worker ends within its grace, and `sync` delivers each accepted score once."""
    gateway = bare_platform.gateway
    run_id = gateway.add_run()
    gateway.inject(Fault.hang(), operation=BATCH, times=None)
    given = environment(bare_platform, close_timeout=CLOSE_TIMEOUT, linger=0.1)
    port = free_port()
    command = [part.replace("PORT", str(port)) for part in SERVERS[name]]

    server = await serve(tmp_path, command, given)
    with not_outlived_by(server):
        await answers(port)
        load = Load(port, f"/runs/{run_id}/scores")
        load.start()
        await asyncio.sleep(SECONDS)
        rate = len(load.accepted) / SECONDS
        await until(lambda: len(load.accepted) > 100)
        server.send_signal(signal.SIGTERM)
        told_at = time.monotonic()
        async with asyncio.timeout(GRACE + 20.0):
            code = await server.wait()
        took = time.monotonic() - told_at
        await load.ended()
    log = (tmp_path / "log").read_text()
    print(f"\n{name}: {rate:,.0f} requests/s; ended with {code} after {took:.1f} s; {load.others}")

    assert code in (0, -signal.SIGTERM), log
    assert took < GRACE, log
    assert "SIGKILL" not in log
    assert "Traceback" not in log
    assert gateway.received(run_id).metrics == [], "the service has taken nothing so far"

    gateway.faults.clear()
    told = await sync(given)

    arrived = Counter(round(point.value) for point in gateway.received(run_id).metrics)
    assert set(arrived.values()) == {1}, told
    assert set(load.accepted) <= set(arrived) <= {*load.accepted, *load.unanswered}
    assert await sync(given) != told  # there is nothing left
    assert len(gateway.received(run_id).metrics) == len(arrived)


def test_the_readme_starts_these_servers() -> None:
    """With a limit for requests, and the worker class."""
    commands = " ".join(re.findall(r"^```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL))

    for option in ("uvicorn main:app --timeout-graceful-shutdown ", "--worker-class uvicorn"):
        assert option in commands
