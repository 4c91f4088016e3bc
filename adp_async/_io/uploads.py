"""Uploads in the background: which artifacts of which run are on their way, and how they end.

Callers hand artifacts in from any thread; everything else happens in the delivery thread, with
connections and a throttle of its own, since other servers take them.  A failure is kept until the
run or the session is finished, as a refused record is.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import traceback
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from attrs import define, field

from adp_async._io.lifetime import Why
from adp_async._io.log import logger
from adp_async._io.streams import BytesContent, FileContent, named
from adp_async._io.worker import Worker
from adp_async._sansio.artifact_uris import PART_BYTES, LocalFolder, VolumeFolder, place_of
from adp_async._sansio.call import Call
from adp_async._sansio.endpoints import GET_RUN
from adp_async.errors import (
    AdpError,
    BufferFull,
    Closed,
    ConfigurationError,
    UploadError,
    reason_of,
    type_name,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from pathlib import Path

    from adp_async._io.authenticator import Authenticator
    from adp_async._io.caller import Caller
    from adp_async._io.lifetime import Lifetime
    from adp_async._io.loop_thread import LoopThread
    from adp_async._io.object_storage import Entry
    from adp_async._io.streams import Content
    from adp_async._io.volumes import Volumes
    from adp_async._sansio.artifact_uris import Place

#: Artifacts under way at once.
MOST_AT_ONCE: Final = 4
#: Threads that read the files: more than one, as some disks take their time.
READERS: Final = 2
TOO_LATE: Final = "the session was closed before that"
#: So many names of artifacts are in one message.
NAMES_SHOWN: Final = 5
#: Seconds that uploads which are given up have to tidy up.
LAST_MOMENT: Final = 3.0
#: The last failures that are kept while nobody asks for them; and the runs of which it is known
#: where their artifacts go, and what a WARNING has reported.
KEPT_FAILURES: Final = 10_000
KEPT_RUNS: Final = 1000
#: In the place of what has been uploaded, or will not be.
_NO_CONTENT: Final = BytesContent(b"")


class Storage(Protocol):
    """One way to store artifacts, in folders of its kind."""

    async def put(self, folder: Any, name: str, content: Content) -> None:
        """Store *content* under *name*; raises `AdpError`."""

    async def entries(self, folder: Any, name: str) -> list[Entry]:
        """What the folder *name* holds."""

    async def get(self, folder: Any, name: str, path: Path) -> None:
        """Write the artifact *name* to the file *path*."""


@define(eq=False)
class Job:
    """One artifact on its way: *run_id* and *artifact_uri* (None: not known yet) say where to.

    Without a *run_id*, only the handle reports its failure.
    """

    run_id: str
    name: str
    content: Content = field(repr=False)
    artifact_uri: str | None
    #: Memory that the content takes while it waits.
    memory: int = 0
    #: Its end: None, or why it is not uploaded.
    future: concurrent.futures.Future[AdpError | None] = field(
        factory=concurrent.futures.Future, init=False, repr=False
    )

    @classmethod
    def of(cls, run_id: str, name: str, content: Path | bytes, artifact_uri: str | None) -> Job:
        """The upload of a file, or of bytes, which wait in memory."""
        if isinstance(content, bytes):
            return cls(run_id, name, BytesContent(content), artifact_uri, memory=len(content))
        return cls(run_id, name, FileContent(content), artifact_uri)

    def check(self) -> None:
        """Raise `UploadError` when it has ended without being uploaded."""
        if (error := self.future.result(0)) is not None:
            raise upload_error([(self, error)])


@define(eq=False)
class Uploader:
    """Uploads the artifacts of a session.

    *service* calls the platform, *make_caller* makes what calls the servers that take contents;
    both belong to the delivery thread.
    """

    lifetime: Lifetime
    service: Caller
    auth: Authenticator
    make_caller: Callable[[], Caller]
    #: Where Object Storage is; blocks.
    find_endpoint: Callable[[], str]
    #: What the service calls a run, once it has it.
    created: Callable[[str], Awaitable[str]]
    part_bytes: int = PART_BYTES
    _thread: LoopThread | None = field(default=None, init=False)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)
    #: In the order of the calls.
    _pending: dict[Job, None] = field(factory=dict, init=False)
    _failed: deque[tuple[Job, AdpError]] = field(factory=deque, init=False)
    _memory: int = field(default=0, init=False)
    # What follows belongs to the delivery thread.
    _is_closed: bool = field(default=False, init=False)
    _tasks: set[asyncio.Task[None]] = field(factory=set, init=False)
    #: The last upload of each name, which the next one of it waits for.
    _last: dict[tuple[str, str], asyncio.Task[None]] = field(factory=dict, init=False)
    _gate: asyncio.Semaphore = field(factory=lambda: asyncio.Semaphore(MOST_AT_ONCE), init=False)
    _uris: dict[str, asyncio.Task[str]] = field(factory=dict, init=False)
    _opening: asyncio.Task[Volumes] | None = field(default=None, init=False)
    _caller: Caller | None = field(default=None, init=False)
    _worker: Worker | None = field(default=None, init=False)
    #: What a WARNING has reported, once a run.
    _reported: dict[tuple[str, type[AdpError], str], None] = field(factory=dict, init=False)

    # ------------------------------------------------------------------ any thread

    def open(self, thread: LoopThread) -> None:
        """Take artifacts from now on, and upload them in *thread*."""
        self._thread = thread

    def add(self, jobs: Iterable[Job]) -> None:
        """Begin to upload *jobs*.  Raises `Closed`, and `BufferFull` when their memory is full."""
        self.lifetime.check()
        # Now, as the caller waits: a fork during an import leaves the module locked for good.
        import adp_async._io.local_folders
        import adp_async._io.volumes
        import adp_async.entities.runs  # noqa: F401

        thread = self._thread
        jobs = list(jobs)
        memory = sum(job.memory for job in jobs)
        limit = self.service.settings.buffer_limit
        with self._lock:
            if self._memory + memory > limit:
                message = (
                    f"{self._memory:,} bytes of texts and figures wait to be uploaded; "
                    f"buffer_limit is {limit:,}. Wait for an upload, or log a file"
                )
                raise BufferFull(message)
            self._memory += memory
            self._pending |= dict.fromkeys(jobs)
        for job in jobs:
            job.future.set_running_or_notify_cancel()  # whoever waits cannot cancel it
        if thread is None or not thread.call_soon(self._start, jobs):
            error = self.lifetime.error()
            for job in jobs:
                self._settle(job, error)
            raise error

    def of(self, run_id: str | None) -> list[Job]:
        """What is on its way for a run, or for all of them."""
        with self._lock:
            return [job for job in self._pending if run_id in (None, job.run_id)]

    def has_any(self, run_id: str) -> bool:
        """Whether something of the run is on its way, or has failed without being reported."""
        with self._lock:
            failed = any(job.run_id == run_id for job, _ in self._failed)
            return failed or any(job.run_id == run_id for job in self._pending)

    async def settled(self, job: Job) -> None:
        """Until *job* is uploaded; raises `UploadError`.  On any event loop."""
        self._check(job)
        # Whoever stops waiting stops nothing.
        await asyncio.shield(asyncio.wrap_future(job.future))
        job.check()

    def wait(self, job: Job, timeout: float | None) -> None:
        """The same for a thread; `TimeoutError` after *timeout* seconds."""
        self._check(job)
        if not job.future.done() and self._thread is not None and self._thread.is_here:
            raise Closed("waiting here would block the session's own event loop")
        job.future.result(timeout)
        job.check()

    def _check(self, job: Job) -> None:
        if not job.future.done() and self.lifetime.why is Why.FORKED:
            raise self.lifetime.error()

    async def all_settled(self, run_id: str, timeout: float) -> None:
        """Until all of a run is uploaded, for at most *timeout* seconds.  On any event loop.

        Raises `UploadError` for what failed since the last time, and for what is not done.
        """
        if pending := self.of(run_id):
            futures = [asyncio.wrap_future(job.future) for job in pending]
            await asyncio.wait(futures, timeout=max(0.0, timeout))
        self._raise(run_id, "the session keeps trying")

    def _raise(self, run_id: str | None, what_next: str) -> None:
        with self._lock:
            mine = [each for each in self._failed if run_id in (None, each[0].run_id)]
            self._failed = deque(each for each in self._failed if each not in mine)
        late = self.of(run_id)
        if mine or late:
            raise upload_error(mine, late, what_next)

    # ------------------------------------------------------------------ in the delivery thread

    async def close(self, seconds: float) -> None:
        """Wait for all uploads, for at most *seconds*; give up the rest, and say which.

        Raises `UploadError` for what failed without being reported, or is not done.
        """
        last_moment = min(LAST_MOMENT, 0.2 * seconds)
        try:
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=seconds - last_moment)
            self._is_closed = True
            self._raise(None, "the session is closed")
        finally:
            self._is_closed = True
            await self._give_up(last_moment)
            if self._caller is not None:
                await self._caller.transport.close()
            if self._worker is not None:
                self._worker.stop()

    async def _give_up(self, seconds: float) -> None:
        tasks: set[asyncio.Task[Any]] = {*self._tasks, *self._uris.values()}
        if self._opening is not None:
            tasks.add(self._opening)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
        for job in self.of(None):
            self._settle(job, AdpError(TOO_LATE))
        with self._lock:
            self._failed.clear()

    def _start(self, jobs: Iterable[Job]) -> None:
        loop = asyncio.get_running_loop()
        for job in jobs:
            if self._is_closed:
                self._settle(job, AdpError(TOO_LATE))
                continue
            key = job.run_id, job.name
            task = loop.create_task(self._do(job, self._last.get(key)), name="adp_async upload")
            self._last[key] = task
            self._tasks.add(task)
            task.add_done_callback(partial(self._ended, job))

    def _ended(self, job: Job, task: asyncio.Task[None]) -> None:
        key = job.run_id, job.name
        self._tasks.discard(task)
        if is_last := self._last.get(key) is task:
            del self._last[key]
        if task.cancelled() and not self._is_closed:  # not by us: somebody cancels all tasks
            if is_last:
                self._start([job])
            else:
                self._settle(job, AdpError("it was cancelled, and a later one has its name"))

    async def _do(self, job: Job, previous: asyncio.Task[None] | None) -> None:
        error: AdpError | None
        try:
            if previous is not None:
                await asyncio.wait([previous])
            # Those of a run that is not created yet keep no others waiting.
            run_id = await self.created(job.run_id) if job.run_id else ""
            async with self._gate:
                await self._put(job, run_id)
            error = None
        except AdpError as failure:
            error = failure
        except Exception as unexpected:
            where = "".join(traceback.format_tb(unexpected.__traceback__))
            logger.debug("an upload: unexpected %s:\n%s", type_name(unexpected), where)
            error = AdpError(f"it failed with {type_name(unexpected)}")
        self._settle(job, error)

    async def _put(self, job: Job, run_id: str) -> None:
        uri = job.artifact_uri
        if uri is None:
            uri = await self._artifact_uri(run_id)
        place = place_of(uri)
        if isinstance(place, LocalFolder):
            from adp_async._io.local_folders import LocalFolders

            await LocalFolders(self._reader()).put(place, job.name, job.content)
        else:
            await (await self._storage_of(place)).put(place, job.name, job.content)

    def _settle(self, job: Job, error: AdpError | None) -> None:
        with self._lock:
            if job not in self._pending:
                return
            del self._pending[job]
            self._memory -= job.memory
            job.content = _NO_CONTENT  # whose memory does not count any more
            if error is not None and job.run_id:
                self._failed.append((job, error))
                if len(self._failed) > KEPT_FAILURES:
                    self._failed.popleft()
        if error is not None:
            # (A reply's message has its request id, and so is another one each time.)
            reason = job.run_id, type(error), str(getattr(error, "code", error))
            log = logger.debug if reason in self._reported else logger.warning
            self._reported[reason] = None
            _forget_oldest(self._reported)
            log("%s not uploaded: %s", _named([job]), error)
        job.future.set_result(error)

    # Where to

    async def _artifact_uri(self, run_id: str) -> str:
        """What the platform says; asked once a run, unless it cannot say."""
        task = self._uris.get(run_id)
        if task is None or _has_failed(task):
            asking = self._ask_for_uri(run_id)
            task = self._uris[run_id] = asyncio.get_running_loop().create_task(asking)
            _forget_oldest(self._uris)
        return await asyncio.shield(task)

    async def _ask_for_uri(self, run_id: str) -> str:
        from adp_async.entities.runs import RunReply

        call = Call.of(GET_RUN, query={"run_id": run_id})
        found = await self.service.call(call, RunReply)
        return found.run.info.artifact_uri or ""

    async def _storage_of(self, place: Place) -> Storage:
        volumes = await self._opened()
        return volumes if isinstance(place, VolumeFolder) else volumes.storage

    async def entries(self, artifact_uri: str, folder: str) -> list[Entry]:
        """What a folder of artifacts holds."""
        place, storage = await self._to_read(artifact_uri)
        return await storage.entries(place, folder)

    async def download(self, artifact_uri: str, name: str, path: Path) -> None:
        """Write an artifact to the file *path*."""
        place, storage = await self._to_read(artifact_uri)
        try:
            await storage.get(place, name, path)
        except OSError as error:
            problem = f"{named(path)} cannot be written: {reason_of(error)}"
        else:
            return
        raise AdpError(problem)

    async def _to_read(self, artifact_uri: str) -> tuple[Place, Storage]:
        place = place_of(artifact_uri)
        if isinstance(place, LocalFolder):
            raise ConfigurationError("a file: URI is a folder of this machine: read it there")
        self.lifetime.check()
        return place, await self._storage_of(place)

    def _reader(self) -> Worker:
        if self._worker is None:
            self._worker = Worker("adp_async uploads", threads=READERS)
        return self._worker

    async def _opened(self) -> Volumes:
        if self._opening is None or _has_failed(self._opening):
            self._opening = asyncio.get_running_loop().create_task(self._open())
        return await asyncio.shield(self._opening)

    async def _open(self) -> Volumes:
        from adp_async._io.object_storage import ObjectStorage
        from adp_async._io.volumes import Volumes

        base_url = await self.auth.run(self.find_endpoint)
        caller = self.make_caller()
        await self.auth.run(caller.transport.load, base_url)
        await caller.transport.open()
        self._caller = caller
        storage = ObjectStorage(caller, self._reader(), base_url, self.part_bytes)
        return Volumes(self.service, storage)


def _forget_oldest(known: dict[Any, Any]) -> None:
    if len(known) > KEPT_RUNS:
        del known[next(iter(known))]


def _has_failed(task: asyncio.Task[Any]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


def upload_error(
    failed: Sequence[tuple[Job, AdpError]], late: Sequence[Job] = (), what_next: str = ""
) -> UploadError:
    """The error that names what *failed*, and what is *late*, and what becomes of that."""
    parts = []
    if failed:
        reason = f": {failed[0][1]}"
        parts.append(f"{_named([job for job, _ in failed])} not uploaded{reason}")
    if late:
        parts.append(f"{_named(late)} not uploaded yet; {what_next}")
    jobs = [*(job for job, _ in failed), *late]
    return UploadError(
        "; ".join(parts),
        artifacts=[job.name for job in jobs],
        run_id=jobs[0].run_id or None,
        cause=failed[0][1] if failed else None,
    )


def _named(jobs: Sequence[Job]) -> str:
    """So many artifacts, and whose."""
    names = ", ".join(repr(job.name) for job in jobs[:NAMES_SHOWN])
    if len(jobs) > NAMES_SHOWN:
        names += ", ..."
    runs = [run_id for run_id in dict.fromkeys(job.run_id for job in jobs) if run_id]
    whose = (
        f" of {len(runs)} runs" if len(runs) > 1 else "".join(f" of run {each}" for each in runs)
    )
    if len(jobs) == 1:
        return f"artifact {names}{whose} is"
    return f"{len(jobs)} artifacts{whose} ({names}) are"
