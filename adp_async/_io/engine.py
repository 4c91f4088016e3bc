"""The working parts of a session: signer, throttle, connections, and the thread that delivers.

They are opened and closed together.  Forks, and the end of the interpreter while a session is open,
are handled here as well.
"""

from __future__ import annotations

import asyncio
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import attrs

from adp_async._hop import Hop
from adp_async._io.authenticator import Authenticator
from adp_async._io.caller import Caller, SharedThrottle
from adp_async._io.close_hooks import CloseHooks
from adp_async._io.counting import counted, examined
from adp_async._io.delivery import SHORTEST_COMMIT, Delivery
from adp_async._io.ending import how_it_ends
from adp_async._io.lifetime import Living, Why, forget, keep_forever, register
from adp_async._io.log import logger
from adp_async._io.loop_thread import result_of
from adp_async._io.measuring import told
from adp_async._io.notebook import warn_of_another
from adp_async._io.open_runs import OpenRuns
from adp_async._io.spool_folder import SpoolFolder
from adp_async._io.tidying import ended
from adp_async._io.tokens import Tokens
from adp_async._io.transport import AiohttpTransport
from adp_async._sansio.dispatch import Pulse
from adp_async.errors import AdpError, Closed
from adp_async.instrumentation import SessionOpened, watching

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from adp_async._io.caller import Transport
    from adp_async._io.lifetime import Lifetime
    from adp_async._io.loop_thread import LoopThread
    from adp_async._io.recovery import Orphan, Recoveries, Recovery
    from adp_async._io.spool import Spool
    from adp_async._io.uploads import Uploader
    from adp_async._sansio.statuses import EndStatus
    from adp_async.settings import Settings


#: Seconds that an opening which failed may take to close what it had opened.
LONGEST_UNDOING = 5.0


def connections(settings: Settings) -> Transport:
    """A pool of connections with the limits of *settings*, to the service or to the agent."""
    if settings.agent is not None:
        from adp_async._io.hop import transport_to

        return transport_to(Hop.from_file(settings.agent), settings)
    return AiohttpTransport(
        connect_timeout=settings.connect_timeout,
        timeout=settings.timeout,
        limit=settings.max_connections,
        ca_bundle=settings.ca_bundle,
    )


def _await_end(
    thread: LoopThread, ending: Future[None], ends_by: float, drop: Callable[[], object]
) -> None:
    try:
        result_of(ending, max(0.0, ends_by - time.monotonic()))
    except (AdpError, TimeoutError) as failure:
        # Nobody could catch it.
        logger.warning("%s", failure)
    finally:
        drop()
        thread.stop()


def _nothing() -> None:
    """There is nothing to drop."""


class Engine:
    """The working parts of one session, and their common lifetime.

    *direct* calls the service from the event loop it was opened in, *batches* from the delivery
    thread; both share the throttle and the authenticator *auth*.  *settings* are those in use: the
    endpoint of a region is known once it is open.
    """

    def __init__(
        self, settings: Settings, transport: Callable[[Settings], Transport] | None = None
    ) -> None:
        transport = transport or connections
        self.settings = settings
        self.spools = SpoolFolder(settings)
        self.auth = Authenticator(settings.auth)
        self._throttle = SharedThrottle(settings.retry)
        self._pulse = Pulse()
        self._new_token = Tokens()
        self.open_runs = OpenRuns(self._tell_journal)
        # Two pools, since each belongs to its event loop.
        self.direct = self._caller(transport(settings))
        self.batches = self._caller(transport(settings))
        self.delivery = self._make_delivery(settings)
        self.transport = transport
        self._uploader: Uploader | None = None
        self._making = threading.Lock()
        self.thread: LoopThread | None = None
        self.recoveries: Recoveries | None = None
        self.close_hooks = CloseHooks()
        #: By run (None: all of it), how other processes reach what is shared, the newest last.
        self.handles: dict[str | None, list[Any]] = {}
        self._owns_thread = False
        self._changing = asyncio.Lock()  # held while opening or closing
        #: The task that is opening it.
        self._opening: asyncio.Task[Any] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._recovering: asyncio.Task[None] | None = None
        self._opened: SessionOpened | None = None
        locks = self.delivery.intake, self._throttle
        self._living = Living(
            self._forked, self._interpreter_ends, lambda: any(lock.is_locked_here for lock in locks)
        )

    def _caller(self, transport: Transport, throttle: SharedThrottle | None = None) -> Caller:
        throttle = throttle or self._throttle
        return Caller(self.settings, throttle, self.auth, transport, self._new_token)

    def _object_storage_endpoint(self) -> str:
        from adp_async._io.object_storage import endpoint_of

        return endpoint_of(self.settings, self.auth.region)

    def _make_delivery(self, settings: Settings) -> Delivery:
        return Delivery(
            settings,
            self.batches,
            throttle=self._throttle,
            tokens=self._new_token,
            pulse=self._pulse,
            open_runs=self.open_runs,
        )

    def _tell_journal(self, run_id: str, is_open: bool) -> None:
        """A run of this session began, or has ended.  From any thread."""
        if (thread := self.thread) is not None:
            starts = self.delivery.starts
            thread.call_soon(starts.began if is_open else starts.ended, run_id)

    @property
    def uploader(self) -> Uploader:
        """Who uploads artifacts, made when first asked for; from any thread."""
        from adp_async._io.uploads import Uploader

        with self._making:
            if self._uploader is None:
                self._uploader = Uploader(
                    self.lifetime,
                    self.batches,
                    self.auth,
                    make_caller=self._caller_of_other_servers,
                    find_endpoint=self._object_storage_endpoint,
                    created=self.delivery.starts.created,
                )
            if self.thread is not None:
                self._uploader.open(self.thread)
            return self._uploader

    def has_uploads(self, run_id: str) -> bool:
        """Whether an artifact of the run is in flight, or has failed without being reported."""
        return self._uploader is not None and self._uploader.has_any(run_id)

    def uploads_on_their_way(self, run_id: str | None = None) -> int:
        """How many artifacts of one run, or of all, are not uploaded yet."""
        return 0 if self._uploader is None else len(self._uploader.of(run_id))

    def _caller_of_other_servers(self) -> Caller:
        """They have other limits, and so a throttle of their own."""
        return self._caller(self.transport(self.settings), SharedThrottle(self.settings.retry))

    @property
    def lifetime(self) -> Lifetime:
        """Whether it is open, or why not."""
        return self.delivery.lifetime

    def check_open(self) -> None:
        """Raise `Closed` unless it is open, and was opened in the running event loop."""
        self.lifetime.check()
        self._check_loop()

    def _check_loop(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            message = (
                "the operations of a session work only in the event loop it was opened in: open a "
                "session in this one; log_* and flush of its runs work from any loop and thread"
            )
            raise Closed(message)

    # ------------------------------------------------------------------ opening

    async def open(self, make_thread: Callable[[], LoopThread]) -> None:
        """Load the signer, open the pools and start to deliver, in the thread of *make_thread*.

        That is a new one, or for the blocking face the one that this runs in.
        """
        async with self._changing:
            if self.lifetime.why is Why.NOT_OPENED:
                await self._open_unless_closed(make_thread)
            elif not self.lifetime.is_open:
                raise Closed("a closed session cannot be reopened; create a new one")
        self.check_open()

    async def _open_unless_closed(self, make_thread: Callable[[], LoopThread]) -> None:
        """Open; `close` cancels an opening that hangs, and doesn't wait for it."""
        task = self._opening = asyncio.current_task()
        assert task is not None
        try:
            await self._open(make_thread)
        except asyncio.CancelledError:
            if self._opening is task or task.uncancel():
                raise  # not by us, or not by us alone
            is_closed = True
        else:
            is_closed = False
        finally:
            self._opening = None
        if is_closed:
            raise Closed("the session was closed while it was being opened")

    async def _open(self, make_thread: Callable[[], LoopThread]) -> None:
        await self.auth.open()
        thread: LoopThread | None = None
        spool: Spool | None = None
        try:
            settings = await self.auth.run(self.settings.complete, self.auth.region)
            for part in (self, self.spools, self.direct, self.batches):
                part.settings = settings
            await self.auth.run(self.direct.transport.load, settings.base_url)
            await self.auth.run(self.batches.transport.load, settings.base_url)
            await self.direct.transport.open()
            spool = await self.spools.create(self.auth)
            self.thread = thread = make_thread()
            self._loop = asyncio.get_running_loop()
            await thread.run(self._open_delivery(thread, spool))
        except BaseException:
            # However often it is cancelled: the delivery may be open by now.
            await ended([asyncio.ensure_future(self._undo_opening(thread, spool))], LONGEST_UNDOING)
            raise
        self._owns_thread = not thread.is_here
        register(self._living)
        warn_of_another(self, is_blocking=not self._owns_thread)
        self._tell_opened()

    def _tell_opened(self) -> None:
        settings, delivery = self.settings, self.delivery
        self._opened = SessionOpened(
            settings.platform_id,
            settings.workspace,
            settings.base_url,
            stats=partial(counted, delivery),
            health=partial(examined, delivery),
        )
        watching.opened(self._opened)

    async def _undo_opening(self, thread: LoopThread | None, spool: Spool | None) -> None:
        self.thread = None
        try:
            if thread is not None:
                await thread.run(self._close_delivery(0.2 * LONGEST_UNDOING))
            if spool is not None and self.delivery.keeper is None:
                await self.auth.run(spool.close)
        except Exception as failure:  # the opening's own error is the one to raise
            logger.warning("what was opened could not be closed: %s", failure)
        finally:
            await self.direct.transport.close()
            await self.auth.close()
            if thread is not None and not thread.is_here:
                thread.stop()

    async def _open_delivery(self, thread: LoopThread, spool: Spool | None) -> None:
        """In the delivery thread."""
        await self.batches.transport.open()
        # Where no spool can be created, none can be emptied.
        does_recover = spool is not None and self.settings.recover
        if does_recover:
            self.delivery.bar(None)
        await self.delivery.open(thread, spool)
        if does_recover:
            self.recoveries = self._make_recoveries(thread)
            recovering = self.recoveries.run()
            self._recovering = asyncio.create_task(recovering, name="adp_async recovery")

    # ------------------------------------------------------------------ closing

    async def close(self, seconds: float) -> None:
        """Deliver what waits, for at most so many *seconds*, and stop; harmless when closed.

        Raises `DeliveryError` for records that were refused or not delivered in time.
        """
        # A cancellation may be why we are closing; it must not interrupt that.
        with anyio.CancelScope(shield=True):
            if (opening := self._opening) is not None:
                self._opening = None
                opening.cancel()
            async with self._changing:
                if self.thread is not None:
                    if self.lifetime.why is Why.FORKED:
                        raise self.lifetime.error()
                    self._check_loop()
                    self.close_hooks.run(None)
                    await self._close(self.thread, seconds)

    async def _close(self, thread: LoopThread, seconds: float) -> None:
        self.thread = None
        forget(self._living)
        try:
            await thread.run(self._close_delivery(seconds))
        finally:
            await self.direct.transport.close()
            await self.auth.close()
            if self._owns_thread:
                thread.stop()

    async def _close_delivery(self, seconds: float, why: Why = Why.CLOSED) -> None:
        """In the delivery thread."""
        ends_at, recovering = time.monotonic() + seconds, self._recovering
        if recovering is not None:
            # It releases its files while this session's own records are being written.
            asyncio.get_running_loop().call_later(0.8 * seconds, recovering.cancel)
        try:
            await self._close_both(seconds, why)
        finally:
            if recovering is not None:
                recovering.cancel()
                left = max(SHORTEST_COMMIT, ends_at - time.monotonic())
                await asyncio.wait([recovering], timeout=left)
            await self.batches.transport.close()
            if self._opened is not None:
                watching.closed(self._opened)

    async def _close_both(self, seconds: float, why: Why) -> None:
        """Records and uploads have the same time; the first failure is raised, the other noted."""
        closing = [self.delivery.close(seconds, why)]
        if self._uploader is not None:
            closing.append(self._uploader.close(seconds))
        ends = await asyncio.gather(*closing, return_exceptions=True)
        failures = [end for end in ends if end is not None]
        for other in failures[1:]:
            failures[0].add_note(f"also: {other}")
        if failures:
            raise failures[0]

    def _forked(self) -> None:
        keep_forever(self)
        if self.thread is not None:
            self.thread.forked()
        self._making = threading.Lock()  # a thread of the parent may hold the other
        self.delivery.forked()
        self.open_runs.forked()
        self.close_hooks.forked()

    def _interpreter_ends(self) -> Callable[[], None] | None:
        """The session is still open: end its runs, deliver for a while, and spool the rest.

        That begins; what is returned waits for it.
        """
        status = how_it_ends()
        self.close_hooks.run(status)
        thread, self.thread = self.thread, None
        if thread is None or not thread.is_alive:
            return None
        seconds = min(self.settings.exit_timeout, self.settings.close_timeout)
        ending = thread.begin(told(self._end(status, seconds), self.delivery, seconds))
        # `_end` closes the connections of a session that belongs to the same loop.
        drop = self.direct.transport.abort if self._loop is not thread.loop else _nothing
        return partial(_await_end, thread, ending, time.monotonic() + 2 * seconds + 1, drop)

    async def _end(self, status: EndStatus, seconds: float) -> None:
        """In the delivery thread."""
        ends_at = time.monotonic() + seconds
        try:
            if self.open_runs:
                await self.open_runs.end(
                    status, 0.7 * seconds, delivery=self.delivery, call=self.batches.call
                )
            left = max(0.3 * seconds, ends_at - time.monotonic())
            await self._close_delivery(left, Why.ENDED)
        finally:
            if self._loop is asyncio.get_running_loop():
                await self.direct.transport.close()

    # ------------------------------------------------------------------ records of dead processes

    def _make_recoveries(self, thread: LoopThread) -> Recoveries:
        from adp_async._io.recovery import Recoveries

        assert self.delivery.keeper is not None  # where no spool can be created, none is emptied
        return Recoveries(
            find=self.spools.finder(self.delivery.keeper.spool.adopt),
            make=self._make_recovery,
            bar=self.delivery.bar,
            thread=thread,
            folder=self.spools.path,
        )

    def _make_recovery(self) -> Delivery:
        """A delivery for the records of one dead process."""
        from adp_async._io.recovery import MAX_IN_FLIGHT, MEMORY_LIMIT

        settings = attrs.evolve(
            self.settings,
            linger=0.0,
            max_in_flight=MAX_IN_FLIGHT,
            buffer_limit=MEMORY_LIMIT,
            spool_interval=1.0,
        )
        return self._make_delivery(settings)

    async def recover(
        self, orphan: Orphan, on_progress: Callable[[Recovery], None] | None = None
    ) -> None:
        """Deliver the records of a dead process; *on_progress* is called on the way."""
        from adp_async._io.recovery import Recovery

        self.check_open()
        assert self.thread is not None
        recovery = Recovery(orphan, self._make_recovery(), on_progress)
        await self.thread.run(recovery.run(self.thread))
