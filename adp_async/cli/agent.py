"""`adp-async agent`: a collector for all processes of a machine, or of several."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer
from attrs import define, evolve

from adp_async import Session
from adp_async._hop import FILE, FOLDER, VARIABLE
from adp_async._sansio.endpoints import Endpoint
from adp_async._sansio.texts import counted
from adp_async.collector.certificate import Certificate, write_private
from adp_async.collector.collector import Collector
from adp_async.collector.handle import Handle
from adp_async.collector.sockets import Listen, host_and_port
from adp_async.errors import AdpError, ConfigurationError

if TYPE_CHECKING:
    from adp_async._io.loop_thread import LoopThread

#: Seconds between two looks whether anybody is still there.
LOOK_EVERY: Final = 0.25
_STATUS: Final = Endpoint("POST", "collector/status", takes_retry_token=True)
_CERTIFICATE: Final = "certificate.pem"
_SPOOL: Final = "spool"


@define
class Options:
    """What the command line says."""

    socket: Path | None
    listen: str | None
    advertise: str | None
    folder: Path | None
    idle_timeout: float | None

    def home(self) -> Path:
        """The agent's folder: its handle, its certificate and its spool."""
        if self.folder is not None:
            return self.folder.expanduser().absolute()
        if self.socket is not None:
            path = self.socket.expanduser().absolute()
            return path.with_name(path.name + FOLDER)
        import platformdirs

        return Path(platformdirs.user_state_dir("adp_async", appauthor=False)) / "agent"


def run_agent(options: Options) -> int:
    """Collect until a signal, or until nobody has come for a while; returns the exit code."""
    home = _made(options.home())
    # It is not its own client.
    os.environ.pop(VARIABLE, None)
    return asyncio.run(_serve(options, home))


def _made(home: Path) -> Path:
    """The folder, made for its owner alone; one that others can write into is refused."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    if sys.platform != "win32" and home.stat().st_mode & 0o022:
        message = (
            f"{home}: other users can write into this folder, and could lead the agent's clients "
            "elsewhere; name one of your own, or `chmod go-w` it"
        )
        raise ConfigurationError(message)
    return home


async def _serve(options: Options, home: Path) -> int:
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(ending.set))
    async with Session(spool=home / _SPOOL, recover=True) as session:
        engine = session._engine
        assert engine.thread is not None
        collector = _collector(options, home, session)
        handle = await engine.thread.run(collector.open())
        write_private(home / FILE, handle.to_json().encode())
        typer.echo(f"export {VARIABLE}={home / FILE}")
        try:
            await _until_over(ending, collector, session, options.idle_timeout)
        finally:
            await _close(engine.thread, collector)
    return 0


def _collector(options: Options, home: Path, session: Session) -> Collector:
    before = _handle_before(home)
    certificate = None
    if options.listen is not None:
        certificate = Certificate.kept_in(home / _CERTIFICATE)
    return Collector(
        session._engine,
        None,
        listen=_place(options, home, before),
        advertise=options.advertise,
        token=before.token if before is not None else None,
        certificate=certificate,
    )


def _place(options: Options, home: Path, before: Handle | None) -> Path | Listen:
    """Where to listen: with a port of its own choosing, where clients of the one before look."""
    if options.listen is None:
        return options.socket or home / "socket"
    listen = Listen.of(options.listen)
    if listen.port or before is None or before.socket or _port_of(options.advertise):
        return listen
    return evolve(listen, port=_port_of(before.address.removeprefix("https://")))


def _port_of(address: str | None) -> int:
    return 0 if address is None else host_and_port(address, "advertise")[1]


def _handle_before(home: Path) -> Handle | None:
    """The handle of the agent before this one, whose clients go on."""
    return Handle.from_file(home / FILE) if (home / FILE).exists() else None


async def _until_over(
    ending: asyncio.Event, collector: Collector, session: Session, idle_timeout: float | None
) -> None:
    while not ending.is_set():
        try:
            async with asyncio.timeout(LOOK_EVERY):
                await ending.wait()
        except TimeoutError:
            ledger = collector.handler.ledger
            is_idle = not ledger.are_inside(60.0) and not session.logger.stats().undelivered
            quiet = time.monotonic() - ledger.last_seen
            if idle_timeout is not None and is_idle and quiet > idle_timeout:
                return


async def _close(thread: LoopThread, collector: Collector) -> None:
    await thread.run(collector.close(timeout=2.0, is_continued=True))


def show_status(options: Options) -> int:
    """Say what an agent has taken, and from whom; 1 when there is none."""
    home = options.home()
    try:
        handle = Handle.from_file(home / FILE)
    except ConfigurationError:
        typer.echo(f"there is no agent in {home}", err=True)
        return 1
    with handle.session() as session:
        try:
            told: Any = session.call(_STATUS, body={}, timeout=10.0)
        except AdpError as error:
            typer.echo(f"the agent at {handle.address} does not answer: {error}", err=True)
            return 1
    typer.echo(f"{handle.address}: {counted(told['waiting'], 'record')} waiting for the service")
    for name, counts in sorted(told["workers"].items()):
        if counts["taken"]:
            taken, batches = (
                counted(counts["taken"], "record"),
                counted(counts["batches"], "request"),
            )
            rejected = f", {counts['rejected']:,} rejected" if counts["rejected"] else ""
            seen = f"last heard of {counts['seen']:.0f} s ago"
            typer.echo(f"  {name}: {taken} in {batches}{rejected}, {seen}")
    return 0
