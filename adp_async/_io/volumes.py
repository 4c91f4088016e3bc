"""Artifacts in a volume of the platform: put, list, get.

The platform says where a file's content goes, by a pre-authenticated URL that belongs to Object
Storage, and hears when it is there.  Such a URL is as good as a password: it is in no message.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlsplit

import msgspec
from attrs import define, field

from adp_async._io.log import logger
from adp_async._io.object_storage import PUT_OBJECT, Entry, read
from adp_async._io.streams import content_type_of
from adp_async._sansio.artifact_uris import Part
from adp_async._sansio.endpoints import API_VERSION, Endpoint
from adp_async._sansio.messages import Request, Signing
from adp_async._sansio.replies import answered, unreadable
from adp_async._sansio.service_address import is_loopback
from adp_async.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    NotAuthenticated,
    NotFound,
    ServiceError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from adp_async._io.caller import Caller
    from adp_async._io.object_storage import ObjectStorage
    from adp_async._io.streams import Content
    from adp_async._sansio.artifact_uris import VolumeFolder
    from adp_async._sansio.messages import Reply


def _row(method: str, path: str, operation: str) -> Endpoint:
    return Endpoint(method, path, takes_retry_token=True, operation=operation)


UPLOAD_FILE: Final = _row("POST", "actions/uploadFileMeta", "upload_file_with_par")
DOWNLOAD_FILE: Final = _row("POST", "actions/downloadFileMeta", "download_file_with_par")
LIST_FILES: Final = _row("GET", "files", "list_files")
LIST_VOLUMES: Final = _row("GET", "", "list_volumes")

#: The URL may have expired while the file was tried again: it is sent to a new one, once.
_EXPIRED: Final = (NotAuthenticated, Forbidden, NotFound)
_FOLDER: Final = "FOLDER"


class FileUrl(msgspec.Struct, frozen=True, rename="camel"):
    """The reply to upload_file_with_par and download_file_with_par."""

    par_url: str = ""

    def __repr__(self) -> str:
        return "<FileUrl>"


class VolumeFile(msgspec.Struct, frozen=True, rename="camel"):
    """One file or folder of a listing."""

    path: str
    type: str


class FileListing(msgspec.Struct, frozen=True):
    """The reply to list_files."""

    items: list[VolumeFile]


class VolumeSummary(msgspec.Struct, frozen=True, rename="camel"):
    """One volume of a listing."""

    key: str
    display_name: str


class VolumeListing(msgspec.Struct, frozen=True):
    """The reply to list_volumes."""

    items: list[VolumeSummary]


@define(eq=False)
class Volumes:
    """The volumes of the platform, asked by *caller*; their content is with *storage*."""

    caller: Caller
    storage: ObjectStorage
    _keys: dict[str, str] = field(factory=dict, init=False)

    async def put(self, folder: VolumeFolder, name: str, content: Content) -> None:
        """Send *content*, which takes the place of a file of the same name."""
        path = folder.path(name)
        size = await self.storage.worker.do(content.measure)
        query = dict.fromkeys(
            ("isOverwrite", "shouldCreateRecursively", "shouldGenerateNewPar"), "true"
        )

        new_url = partial(
            self._url, UPLOAD_FILE, folder, path, query, {"action": "CREATE", "size": size}
        )

        async def sent_to(url: str) -> str:
            headers = {"content-type": content_type_of(name)}
            part = Part(1, 0, size)
            send = self.storage.send
            return await send(PUT_OBJECT, url, content, part, headers, Signing.NOTHING)

        url = await new_url()
        try:
            etag = await sent_to(url)
        except _EXPIRED as error:
            logger.debug("a pre-authenticated URL was refused: %s", error)
            etag = await sent_to(await new_url())
        await self._close(folder, path, query, {"action": "UPDATE", "eTag": etag, "size": size})

    async def _close(
        self,
        folder: VolumeFolder,
        path: str,
        query: Mapping[str, str],
        details: Mapping[str, object],
    ) -> None:
        """Tell that the content is there, so that the platform lists it."""
        try:
            await self._ask(UPLOAD_FILE, folder, path, query, details)
        except (BadRequest, Conflict, NotFound) as error:
            # It is published as an option: where it is refused, the content is there all the same.
            logger.warning("the platform may not list %s in %s: %s", path, folder.key, error)

    async def entries(self, folder: VolumeFolder, name: str) -> list[Entry]:
        """What the folder *name* holds; the platform tells no sizes."""
        path = folder.path(name)
        query, found = {"path": path}, list[Entry]()
        while True:
            try:
                reply = await self._ask(LIST_FILES, folder, "", query)
            except NotFound:
                return found
            for file in read(reply, FileListing, LIST_FILES).items:
                if file.path != path:
                    last = file.path.rstrip("/").rpartition("/")[2]
                    found.append(Entry(last, is_folder=file.type == _FOLDER))
            if not (following := reply.headers.get("opc-next-page")):
                return found
            query = {"path": path, "page": following}

    async def get(self, folder: VolumeFolder, name: str, path: Path) -> None:
        """Write a file's content to the file *path*."""
        url = await self._url(DOWNLOAD_FILE, folder, folder.path(name), {}, {})
        await self.storage.receive(url, path, Signing.NOTHING)

    async def _url(
        self,
        endpoint: Endpoint,
        folder: VolumeFolder,
        path: str,
        query: Mapping[str, str],
        details: Mapping[str, object],
    ) -> str:
        reply = await self._ask(endpoint, folder, path, query, details)
        url = read(reply, FileUrl, endpoint).par_url
        parts = urlsplit(url)
        is_local = parts.scheme == "http" and is_loopback(parts.hostname or "")
        if not (parts.hostname and parts.scheme == "https") and not is_local:
            complaint = f"the answer has no parUrl that can be used: {answered(reply)}"
            raise unreadable(reply, endpoint.operation, complaint)
        return url

    async def _ask(
        self,
        endpoint: Endpoint,
        folder: VolumeFolder,
        path: str,
        query: Mapping[str, str],
        details: Mapping[str, object] | None = None,
    ) -> Reply:
        key = self._keys.get(folder.key, folder.key)
        try:
            return await self._ask_of(endpoint, f"{quote(key, safe='')}/", path, query, details)
        except NotFound:
            if folder.key in self._keys:
                raise
            # A volume's key is its full name, as everybody writes it; nothing says it must be.
            found = await self._look_up(folder)
            if found == key:
                raise
        self._keys[folder.key] = found
        return await self._ask_of(endpoint, f"{quote(found, safe='')}/", path, query, details)

    async def _look_up(self, folder: VolumeFolder) -> str:
        """The key of the volume that is called so; the one that we use when there is none."""
        query = {
            "catalogKey": folder.catalog,
            "schemaKey": folder.schema_key,
            "displayName": folder.volume,
        }
        try:
            reply = await self._ask_of(LIST_VOLUMES, "", "", query)
        except ServiceError as error:
            logger.debug("the volume %s could not be looked up: %s", folder.key, error)
            return folder.key
        found = read(reply, VolumeListing, LIST_VOLUMES).items
        keys = [each.key for each in found if each.display_name == folder.volume]
        return keys[0] if keys else folder.key

    async def _ask_of(
        self,
        endpoint: Endpoint,
        volume: str,
        path: str,
        query: Mapping[str, str],
        details: Mapping[str, object] | None = None,
    ) -> Reply:
        settings, new_token = self.caller.settings, self.caller.new_token
        platform = quote(settings.platform_id, safe="")
        root = f"{settings.base_url}/{API_VERSION}/aiDataPlatforms/{platform}/volumes"
        url = f"{root}/{volume}{endpoint.path}".rstrip("/")
        if query:
            given = "&".join(f"{name}={quote(value, safe='')}" for name, value in query.items())
            url = f"{url}?{given}"
        headers = {"accept": "application/json", "opc-request-id": new_token()}
        body = None
        if details is not None:
            body = msgspec.json.encode(details)
            headers |= {"content-type": "application/json", "opc-retry-token": new_token()}
        if path:
            headers["path"] = path
        request = Request(endpoint.method, url, headers, body, endpoint.operation)
        return await self.caller.answered(request, endpoint, settings.call_timeout)
