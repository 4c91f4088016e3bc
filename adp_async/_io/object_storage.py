"""Artifacts in a bucket of Object Storage: put, list, get.

An object goes out in one signed PUT, or in parts of 128 MiB, a few of them at once.  A body is
never in memory as a whole and is not signed; its MD5 in the answer is compared with that of what
was sent.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import quote, urlsplit

import msgspec
from attrs import define, frozen

from adp_async._io.log import logger
from adp_async._io.streams import ContentStream, content_type_of
from adp_async._regions import find_region
from adp_async._sansio.artifact_uris import PART_BYTES, Part, parts_of, region_in
from adp_async._sansio.endpoints import Endpoint
from adp_async._sansio.messages import Request, Signing
from adp_async._sansio.replies import answered, unreadable
from adp_async._sansio.service_address import is_loopback
from adp_async.errors import (
    AdpError,
    BadRequest,
    ConfigurationError,
    ConnectionLost,
    NotFound,
)

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Mapping
    from pathlib import Path
    from typing import Any

    from adp_async._io.caller import Caller
    from adp_async._io.streams import Content
    from adp_async._io.worker import Worker
    from adp_async._sansio.artifact_uris import ObjectFolder
    from adp_async._sansio.messages import Reply
    from adp_async.settings import Settings

T = TypeVar("T")

#: Parts of one file under way at once.
PARTS_AT_ONCE: Final = 3
#: Nobody's line is slower, in bytes a second: an upload has a second more for each.
SLOWEST_LINE: Final = 32 * 1024
#: What is read at once of an object.
RANGE_BYTES: Final = 16 * 2**20
#: The status of an object in full, and of a range behind its end.
WHOLE: Final = 200
RANGE_NOT_SATISFIABLE: Final = 416
#: Seconds that giving up a multipart upload may take.
ABORT_TIMEOUT: Final = 2.0


def _idempotent(method: str, operation: str) -> Endpoint:
    """A row of Object Storage's API; what it does twice is done once."""
    return Endpoint(method, operation, takes_retry_token=True, operation=operation)


PUT_OBJECT: Final = _idempotent("PUT", "put_object")
LIST_OBJECTS: Final = _idempotent("GET", "list_objects")
GET_OBJECT: Final = _idempotent("GET", "get_object")
CREATE_MULTIPART_UPLOAD: Final = _idempotent("POST", "create_multipart_upload")
UPLOAD_PART: Final = _idempotent("PUT", "upload_part")
COMMIT_MULTIPART_UPLOAD: Final = _idempotent("POST", "commit_multipart_upload")
ABORT_MULTIPART_UPLOAD: Final = _idempotent("DELETE", "abort_multipart_upload")


@frozen
class Entry:
    """What a folder holds; *size* in bytes, if it is known."""

    name: str
    is_folder: bool = False
    size: int | None = None


class MultipartUpload(msgspec.Struct, frozen=True, rename="camel"):
    """The reply to create_multipart_upload."""

    upload_id: str


class StoredObject(msgspec.Struct, frozen=True, rename="camel"):
    """One object of a listing."""

    name: str
    size: int | None = None


class ObjectListing(msgspec.Struct, frozen=True, rename="camel"):
    """The reply to list_objects; *prefixes* are the folders."""

    objects: list[StoredObject]
    prefixes: list[str] | None = None
    next_start_with: str | None = None


def endpoint_of(settings: Settings, credentials_region: str | None) -> str:
    """Where Object Storage is.  Blocks while ``oci`` is imported, for a region not known here.

    In the region of the platform; beside a platform of this machine, whose gateway has it as well.
    """
    if settings.object_storage_endpoint is not None:
        return settings.object_storage_endpoint.rstrip("/")
    platform = urlsplit(settings.base_url)
    if is_loopback(platform.hostname or ""):
        return f"{platform.scheme}://{platform.netloc}"
    region = region_in(settings.base_url) or settings.region or credentials_region
    if region is None:
        message = (
            "object_storage_endpoint is missing: neither the endpoint nor the credentials name a "
            "region; set region, or object_storage_endpoint to a URL such as "
            "https://objectstorage.us-ashburn-1.oraclecloud.com"
        )
        raise ConfigurationError(message)
    found = find_region(region)
    return f"https://objectstorage.{found.name}.{found.domain}"


@define(eq=False)
class ObjectStorage:
    """Object Storage at *base_url*, called by *caller*; *worker* reads files."""

    caller: Caller
    worker: Worker
    base_url: str
    #: Larger objects are sent in parts of this size.
    part_bytes: int = PART_BYTES

    async def put(self, folder: ObjectFolder, name: str, content: Content) -> None:
        """Send *content*, which takes the place of an object of the same name."""
        object_name = folder.object_name(name)
        size = await self.worker.do(content.measure)
        if size > self.part_bytes:
            await self._put_in_parts(folder, object_name, content, size)
            return
        url = folder.url("o", self.base_url, object_name)
        headers = {"content-type": content_type_of(name)}
        await self.send(PUT_OBJECT, url, content, Part(1, 0, size), headers)

    async def send(
        self,
        endpoint: Endpoint,
        url: str,
        content: Content,
        part: Part,
        headers: Mapping[str, str],
        signing: Signing = Signing.HEAD,
    ) -> str:
        """Send *part* of *content* to *url*; returns its etag."""
        stream = ContentStream(content, self.worker, part.size, part.offset)
        headers = {
            "accept": "application/json",
            # Without it, a stream would be sent in the chunks of HTTP, which is not taken.
            "content-length": str(part.size),
            **headers,
        }
        request = Request(
            "PUT", url, headers, operation=endpoint.operation, stream=stream, signing=signing
        )
        settings = self.caller.settings
        timeout = settings.call_timeout + part.size / SLOWEST_LINE
        for attempt in range(1, settings.retry.max_attempts + 1):
            reply = await self.caller.answered(request, endpoint, timeout)
            arrived = reply.headers.get("opc-content-md5", stream.md5)
            if arrived == stream.md5:
                break
            message, about = "%s: attempt %d arrived damaged", {"operation": endpoint.operation}
            logger.debug(message, endpoint.operation, attempt, extra=about)
        else:
            raise ConnectionLost(f"{endpoint.operation}: what arrives is not what was sent")
        etag = reply.headers.get("etag", "")
        if not etag:
            complaint = f"the answer is not Object Storage's: {answered(reply)} without an etag"
            raise unreadable(reply, endpoint.operation, complaint)
        return etag

    # Parts

    async def _put_in_parts(
        self, folder: ObjectFolder, object_name: str, content: Content, size: int
    ) -> None:
        details = {"object": object_name, "contentType": content_type_of(object_name)}
        url = folder.url("u", self.base_url)
        reply = await self._call(CREATE_MULTIPART_UPLOAD, url, details)
        upload_id = read(reply, MultipartUpload, CREATE_MULTIPART_UPLOAD).upload_id
        url = f"{folder.url('u', self.base_url, object_name)}?uploadId={quote(upload_id, safe='')}"
        try:
            parts = parts_of(size, self.part_bytes)
            etags = await self._send_parts(url, content, parts)
            await self._commit(folder, object_name, url, etags, size)
        except BaseException:
            # Parts that nobody commits are kept, and paid for.
            await self._abort(url)
            raise

    async def _send_parts(
        self, url: str, content: Content, parts: Iterable[Part]
    ) -> list[tuple[int, str]]:
        gate = asyncio.Semaphore(PARTS_AT_ONCE)

        async def send(part: Part) -> tuple[int, str]:
            async with gate:
                at = f"{url}&uploadPartNum={part.number}"
                return part.number, await self.send(UPLOAD_PART, at, content, part, {})

        return await all_of(send(part) for part in parts)

    async def _commit(
        self,
        folder: ObjectFolder,
        object_name: str,
        url: str,
        etags: Iterable[tuple[int, str]],
        size: int,
    ) -> None:
        details = {"partsToCommit": [{"partNum": number, "etag": etag} for number, etag in etags]}
        try:
            await self._call(COMMIT_MULTIPART_UPLOAD, url, details)
        except NotFound:
            # A first attempt may have done it, whose answer was lost.
            found = await self._page(folder, {"prefix": object_name, "limit": "1"})
            if StoredObject(object_name, size) not in found.objects:
                raise

    async def _abort(self, url: str) -> None:
        try:
            async with asyncio.timeout(ABORT_TIMEOUT):
                await self._call(ABORT_MULTIPART_UPLOAD, url)
        except (AdpError, TimeoutError) as error:
            logger.warning("parts of an upload that failed stay in the bucket: %s", error)

    # Reading back

    async def entries(self, folder: ObjectFolder, name: str) -> list[Entry]:
        """What the folder *name* holds."""
        prefix = folder.object_name(f"{name}/" if name else "")
        query = {"prefix": prefix, "delimiter": "/"}
        found: list[Entry] = []
        while True:
            page = await self._page(folder, query)
            folders = (each.removeprefix(prefix).rstrip("/") for each in page.prefixes or ())
            found += [Entry(each, is_folder=True) for each in folders]
            found += [
                Entry(each.name.removeprefix(prefix), size=each.size) for each in page.objects
            ]
            if page.next_start_with is None:
                return found
            query["start"] = page.next_start_with

    async def get(self, folder: ObjectFolder, name: str, path: Path) -> None:
        """Write an object's content to the file *path*."""
        await self.receive(folder.url("o", self.base_url, folder.object_name(name)), path)

    async def receive(self, url: str, path: Path, signing: Signing = Signing.WHOLE) -> None:
        """Write what *url* leads to into the file *path*, a range after the other.

        `AdpError` when it is overwritten meanwhile.
        """
        first = reply = await self._range(url, 0, signing)
        with await self.worker.do(path.open, "wb") as file:
            begin = 0
            while reply is not None:
                await self.worker.do(file.write, reply.body)
                begin += len(reply.body)
                if reply.status == WHOLE or len(reply.body) < RANGE_BYTES:
                    break
                reply = await self._range(url, begin, signing)
                if reply is not None and not _is_of_the_same(reply, first):
                    raise _overwritten()
        if first is not None and _size_in(first) not in (None, begin):
            raise _overwritten()

    async def _range(self, url: str, begin: int, signing: Signing) -> Reply | None:
        """What is there from *begin* on; None behind the end."""
        headers = {"range": f"bytes={begin}-{begin + RANGE_BYTES - 1}"}
        request = Request("GET", url, headers, operation=GET_OBJECT.operation, signing=signing)
        try:
            return await self._answered(request, GET_OBJECT)
        except BadRequest as error:
            if error.status != RANGE_NOT_SATISFIABLE:
                raise
            return None

    async def _page(self, folder: ObjectFolder, query: Mapping[str, str]) -> ObjectListing:
        given = "&".join(f"{key}={quote(value, safe='')}" for key, value in query.items())
        url = f"{folder.url('o', self.base_url)}?{given}&fields=name,size"
        return read(await self._call(LIST_OBJECTS, url), ObjectListing, LIST_OBJECTS)

    async def _call(self, endpoint: Endpoint, url: str, details: object = None) -> Reply:
        body = None if details is None else msgspec.json.encode(details)
        headers = {"accept": "application/json"}
        if body is not None:
            headers["content-type"] = "application/json"
        request = Request(endpoint.method, url, headers, body, endpoint.operation)
        return await self._answered(request, endpoint)

    async def _answered(self, request: Request, endpoint: Endpoint) -> Reply:
        return await self.caller.answered(request, endpoint, self.caller.settings.call_timeout)


def _is_of_the_same(reply: Reply, first: Reply | None) -> bool:
    """Whether a range is of the object that the *first* was of."""
    return first is not None and reply.status != WHOLE and reply.etag == first.etag


def _size_in(reply: Reply) -> int | None:
    """The size of the object that *reply* has a range of; None when it does not say."""
    size = reply.headers.get("content-range", "").rpartition("/")[2]
    return int(size) if size.isdecimal() else None


def _overwritten() -> AdpError:
    operation = GET_OBJECT.operation
    return AdpError(f"{operation}: the artifact was overwritten while it was downloaded; try again")


def read(reply: Reply, kind: type[T], endpoint: Endpoint) -> T:
    """The *reply*'s body as a *kind*; `UnreadableReply` when it is none."""
    try:
        return msgspec.json.decode(reply.body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        complaint = f"the answer is not the service's: {answered(reply)}"
    raise unreadable(reply, endpoint.operation, complaint)


async def all_of(doings: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all *doings*; the first that fails ends the others, and is raised bare."""
    tasks = [asyncio.ensure_future(doing) for doing in doings]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
