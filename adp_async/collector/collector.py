"""A collector: the handler and the socket of one shared run, or of a whole session."""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from typing import TYPE_CHECKING, Any, Final

from attrs import frozen

from adp_async.collector.certificate import Certificate
from adp_async.collector.handle import Handle
from adp_async.collector.handler import Handler
from adp_async.collector.permit import Permit
from adp_async.collector.server import Server
from adp_async.collector.sockets import Listen, host_and_port
from adp_async.errors import Closed, ConfigurationError

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from adp_async._hop import Carrier
    from adp_async._io.engine import Engine
    from adp_async._io.loop_thread import LoopThread
    from adp_async.collector.ledger import WorkerStats
    from adp_async.errors import AdpError

#: Seconds that a collector waits, when it closes, for a worker it has heard nothing of.
LEASE: Final = 30.0
#: Seconds that opening waits for the search for records of a collector before this one.
LONGEST_SEARCH: Final = 30.0


@frozen
class CollectorStats:
    """What a collector has taken in all, and by worker.

    *taken* is the sum of *delivered*, *rejected* and *waiting*; the first two are *settled*.
    *workers* are by name: host and process; beyond 10,000 the oldest are ``"others"`` together.
    """

    taken: int
    settled: int
    rejected: int
    workers: Mapping[str, WorkerStats]

    @property
    def delivered(self) -> int:
        """Records that the service has."""
        return self.settled - self.rejected

    @property
    def waiting(self) -> int:
        """Records that are here, and that the service does not have yet."""
        return self.taken - self.settled


class Collector:
    """Takes the records of other processes, for the session with the working parts *engine*.

    *run_id*: the run that it is for; None: all that the session may do.  *token* and *certificate*
    are new ones, unless it continues one before it.
    """

    def __init__(
        self,
        engine: Engine,
        run_id: str | None,
        *,
        listen: str | os.PathLike[str] | Listen | None = None,
        advertise: str | None = None,
        carrier: Carrier | None = None,
        token: str | None = None,
        certificate: Certificate | None = None,
    ) -> None:
        self._engine = engine
        self._run_id = run_id
        self._listen = Listen.of(listen)
        self._advertise = advertise
        self._token = token or secrets.token_urlsafe(32)
        self._certificate = certificate
        self._carrier = carrier
        self._server: Server | None = None
        self.handler = Handler(engine, Permit.of(self._token, run_id, self._named))
        self.handle: Handle | None = None
        self._was_opened = self._is_open = False

    def _named(self) -> str | None:
        """What the service calls the run."""
        return (
            None if self._run_id is None else self._engine.delivery.intake.lane(self._run_id).run_id
        )

    async def open(self) -> Handle:
        """Listen, and return what workers need.  In the delivery thread.

        Once: a handle is dead when its collector has closed.
        """
        if self._was_opened:
            raise Closed("it was shared before; `run.shared()` anew makes another handle")
        self._was_opened = True
        await self.prepare()
        if self._carrier is None:
            await self._listen_there()
        self.handle = self._make_handle(self._server)
        self._is_open = True
        self._engine.handles.setdefault(self._run_id, []).append(self.handle)
        return self.handle

    async def _listen_there(self) -> None:
        tls = None
        if not self._listen.is_socket:
            self._certificate = self._certificate or Certificate.make()
            tls = self._certificate.context()
        self._server = Server(self.handler, self._listen, tls)
        await self._server.open()

    async def prepare(self) -> None:
        """Learn what a collector before this one has taken, and what is refused from now on."""
        engine = self._engine
        engine.lifetime.check()
        engine.delivery.state.watchers.add(self.handler.ledger)
        if engine.recoveries is not None:
            try:
                async with asyncio.timeout(LONGEST_SEARCH):
                    await engine.recoveries.searched.wait()
            except TimeoutError:
                message = "the search for records left behind takes too long for a collector"
                raise ConfigurationError(message) from None
        await self.handler.attempts.forget_old()
        if (keeper := engine.delivery.keeper) is not None:
            tokens = [token for token, _ in await keeper.doing(keeper.spool.taken)]
            self.handler.ledger.learn(tokens)
            self.handler.attempts.learn(tokens)

    def _make_handle(self, server: Server | None) -> Handle:
        settings = self._engine.settings
        if server is None:
            address, fingerprint = "carrier:", ""
        elif self._listen.is_socket:
            address, fingerprint = f"unix:{server.path}", ""
        else:
            assert self._certificate is not None
            address = f"https://{self._public_address(server.port)}"
            fingerprint = self._certificate.fingerprint.hex()
        return Handle(
            address=address,
            platform_id=settings.platform_id,
            workspace=settings.workspace,
            run_id=self._run_id,
            fingerprint=fingerprint,
            token=self._token,
            carrier=self._carrier,
        )

    def _public_address(self, port: int) -> str:
        host = self._listen.host
        if self._advertise is not None:
            host, given = host_and_port(self._advertise, "advertise")
            port = given or port
        elif host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
            host = _own_address()
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def close(
        self,
        lease: float | None = None,
        timeout: float | None = None,
        *,
        is_continued: bool = False,
    ) -> None:
        """Wait for workers within their ``with`` block, then answer nobody any more.

        For at most *timeout* seconds (default: ``close_timeout``); one that was not heard of for
        *lease* seconds (default: 30) is not waited for.  *is_continued*: another one will be
        started for the same workers, whose attempts go on.  In the delivery thread.
        """
        longest = self._engine.settings.close_timeout if timeout is None else timeout
        until = time.monotonic() + longest
        while self._is_open and time.monotonic() < until:
            if not self.handler.ledger.are_inside(LEASE if lease is None else lease):
                break
            await asyncio.sleep(0.02)
        await self.shut()
        keeper = self._engine.delivery.keeper
        if not is_continued:
            await self.handler.attempts.close()
        elif keeper is not None:
            keeper.spool.is_continued = True

    async def shut(self) -> None:
        """Answer nobody any more."""
        self._is_open = False
        server, self._server = self._server, None
        handles = self._engine.handles.get(self._run_id, [])
        if self.handle in handles:
            handles.remove(self.handle)
        if server is not None:
            await server.close()

    async def answer(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body of the reply to a request that was carried here."""
        thread = self._open_thread()
        reply = await thread.run(self.handler.handle(method, target, headers, body))
        return reply.status, reply.headers, reply.body

    async def refuse(
        self, headers: Mapping[str, str], found: Mapping[str, Any], error: AdpError
    ) -> int:
        """Count the records of a log-batch as rejected; see `Shared.refuse`."""
        return await self._open_thread().run(self.handler.refuse(headers, found, error))

    def _open_thread(self) -> LoopThread:
        thread = self._engine.thread
        if not self._is_open or thread is None:
            raise Closed("the collector is closed")
        return thread

    def stats(self) -> CollectorStats:
        """What was taken, in all and by worker.  From any thread."""
        with self._engine.delivery.intake.lock:
            workers = self.handler.ledger.stats()
        taken, settled, rejected = (
            sum(getattr(each, name) for each in workers.values())
            for name in ("taken", "settled", "rejected")
        )
        return CollectorStats(taken, settled, rejected, workers)


def _own_address() -> str:
    """The address of this machine on the network that leads out of it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()
