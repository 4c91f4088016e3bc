"""A stand-in for Object Storage and for the platform's Volumes API, served by the gateway.

It checks what the services check: who signed, and that what a pre-authenticated URL is used for is
what it was given out for.  Contents go to the disk as they arrive.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, quote, unquote

import msgspec
from attrs import define, field, frozen

from adp_async.local.answers import Answer, refusal
from adp_async.local.objects import NAMESPACE, VOLUMES_BUCKET, MultipartUpload
from adp_async.local.verifier import Refused

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from aiohttp import web

    from adp_async.local.objects import Artifacts, Incoming, Stored
    from adp_async.local.verifier import Verifier

__all__ = ["StorageCall", "StorageServer"]

_OBJECTS: Final = re.compile(
    r"(?:/p/(?P<token>[^/]+))?/n/(?P<namespace>[^/]+)/b/(?P<bucket>[^/]+)"
    r"/(?P<kind>[ou])(?:/(?P<name>.+))?"
)
_VOLUMES: Final = re.compile(
    r"/20260430/aiDataPlatforms/(?P<platform>[^/]+)/volumes(?:/(?P<key>[^/]+)/(?P<rest>.+))?"
)
#: By method, whether an object is named, and what kind of path it is.
_OBJECT_OPERATIONS: Final = {
    ("PUT", True, "o"): "put_object",
    ("GET", True, "o"): "get_object",
    ("GET", False, "o"): "list_objects",
    ("POST", False, "u"): "create_multipart_upload",
    ("PUT", True, "u"): "upload_part",
    ("POST", True, "u"): "commit_multipart_upload",
    ("DELETE", True, "u"): "abort_multipart_upload",
}
_VOLUME_OPERATIONS: Final = {
    ("POST", "actions/uploadFileMeta"): "upload_file_with_par",
    ("POST", "actions/downloadFileMeta"): "download_file_with_par",
    ("GET", "files"): "list_files",
    ("GET", ""): "list_volumes",
}
#: What carries the content of an object, which is not signed and may be large.
_CONTENTS: Final = frozenset({"put_object", "upload_part"})
_RANGE: Final = re.compile(r"bytes=([0-9]+)-([0-9]*)")
_PAGE: Final = 1000


@frozen
class StorageCall:
    """One request that is for us: its operation, and the parts of its path."""

    operation: str
    parts: dict[str, str]
    query: dict[str, str]

    @property
    def is_pre_authenticated(self) -> bool:
        return bool(self.parts.get("token"))


class _Refused(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        self.answer = refusal(status, code, message)
        super().__init__(message)


@define(eq=False)
class StorageServer:
    """Answers for Object Storage and Volumes from *artifacts*; *base_url* is the gateway's own."""

    artifacts: Artifacts
    verifier: Verifier
    platform_id: str
    base_url: str = ""
    #: Volumes whose name is not their key: the key by the full name.
    aliases: dict[str, str] = field(factory=dict)
    _answers: dict[str, Callable[[StorageCall, Any], Answer]] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._answers = {
            "get_object": self._get_object,
            "list_objects": self._list_objects,
            "create_multipart_upload": self._create_upload,
            "commit_multipart_upload": self._commit_upload,
            "abort_multipart_upload": self._abort_upload,
            "upload_file_with_par": self._upload_url,
            "download_file_with_par": self._download_url,
            "list_files": self._list_files,
            "list_volumes": self._list_volumes,
        }

    def find(self, method: str, raw_path: str) -> StorageCall | None:
        """The call that a request is, if it is for us."""
        path, _, given = raw_path.partition("?")
        query = {name: values[-1] for name, values in parse_qs(given).items()}
        if found := _OBJECTS.fullmatch(path):
            parts = {name: unquote(part or "") for name, part in found.groupdict().items()}
            key = (method, bool(parts["name"]), parts["kind"])
            operation = _OBJECT_OPERATIONS.get(key, "")
        elif found := _VOLUMES.fullmatch(path):
            parts = {name: unquote(part or "") for name, part in found.groupdict().items()}
            operation = _VOLUME_OPERATIONS.get((method, parts["rest"]), "")
        else:
            return None
        return StorageCall(operation, parts, query)

    async def refused(
        self, call: StorageCall, request: web.BaseRequest, *, now: datetime
    ) -> Answer | None:
        """The refusal of a request that may not go further."""
        if not call.operation:
            return refusal(404, "NotAuthorizedOrNotFound", "no such operation")
        if call.is_pre_authenticated:
            allowed = self.artifacts.is_allowed(
                call.parts["token"], call.parts["name"], request.method
            )
            return None if allowed else _unknown_url()
        body = None if call.operation in _CONTENTS else await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        try:
            self.verifier.verify(request.method, request.raw_path, headers, body, now=now)
        except Refused as refused:
            return refusal(401, "NotAuthenticated", str(refused))
        return None

    async def answer(self, call: StorageCall, request: web.BaseRequest) -> Answer:
        try:
            self._check_place(call)
            if call.operation in _CONTENTS:
                take = self._put_object if call.operation == "put_object" else self._put_part
                return await take(call, request)
            return self._answers[call.operation](call, request)
        except _Refused as refused:
            return refused.answer
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            return refusal(400, "InvalidParameter", str(error))

    def _check_place(self, call: StorageCall) -> None:
        if "bucket" in call.parts:
            is_ours = call.parts["namespace"] == NAMESPACE
            if not is_ours or call.parts["bucket"] not in self.artifacts.buckets:
                raise _Refused(404, "BucketNotFound", "the bucket does not exist")
        elif call.parts["platform"] != self.platform_id:
            raise _Refused(404, "NotAuthorizedOrNotFound", "no such platform")
        elif call.parts["key"] and call.parts["key"] not in self.artifacts.volumes:
            raise _Refused(404, "NotAuthorizedOrNotFound", "no such volume")

    # Object Storage

    async def _put_object(self, call: StorageCall, request: web.BaseRequest) -> Answer:
        incoming = await self._receive(request)
        content_type = request.headers.get("content-type", "application/octet-stream")
        bucket, name = call.parts["bucket"], call.parts["name"]
        return _stored(self.artifacts.keep(bucket, name, content_type, incoming))

    async def _put_part(self, call: StorageCall, request: web.BaseRequest) -> Answer:
        upload = self._upload(call)
        number = int(call.query.get("uploadPartNum", "0"))
        if not 1 <= number <= 10_000:
            raise _Refused(400, "InvalidUploadPart", "parts have numbers from 1 to 10000")
        incoming = await self._receive(request)
        if (known := upload.parts.pop(number, None)) is not None:
            known.path.unlink()
        upload.parts[number] = incoming
        return _stored(incoming)

    async def _receive(self, request: web.BaseRequest) -> Incoming:
        incoming = self.artifacts.incoming()
        try:
            async for chunk in request.content.iter_any():
                incoming.write(chunk)
            if incoming.size != request.content_length:
                raise _Refused(400, "IncompleteBody", "the body is shorter than content-length")
        except BaseException:
            incoming.path.unlink()
            raise
        return incoming

    def _get_object(self, call: StorageCall, request: web.BaseRequest) -> Answer:
        stored = self.artifacts.find(call.parts["bucket"], call.parts["name"])
        if stored is None:
            raise _Refused(404, "ObjectNotFound", "the object does not exist")
        headers = {"content-type": stored.content_type, "etag": stored.etag}
        content = self.artifacts.content(stored)
        asked = _RANGE.fullmatch(request.headers.get("range", ""))
        if asked is None:
            return Answer(200, content, headers)
        begin, end = int(asked[1]), int(asked[2] or stored.size)
        if begin >= stored.size:
            raise _Refused(416, "InvalidRange", "the range begins behind the end")
        part = content[begin : end + 1]
        headers["content-range"] = f"bytes {begin}-{begin + len(part) - 1}/{stored.size}"
        return Answer(206, part, headers)

    def _list_objects(self, call: StorageCall, request: web.BaseRequest) -> Answer:
        prefix, delimiter = call.query.get("prefix", ""), call.query.get("delimiter", "")
        start, limit = call.query.get("start", ""), int(call.query.get("limit", _PAGE))
        objects: list[dict[str, Any]] = []
        prefixes: dict[str, None] = {}
        for stored in self.artifacts.listed(call.parts["bucket"]):
            if not stored.name.startswith(prefix) or stored.name < start:
                continue
            if len(objects) + len(prefixes) == limit:
                return _json(
                    {"objects": objects, "prefixes": [*prefixes], "nextStartWith": stored.name}
                )
            inside, separator, _ = stored.name.removeprefix(prefix).partition(delimiter or "\0")
            if separator:
                prefixes[f"{prefix}{inside}{separator}"] = None
            else:
                objects.append({"name": stored.name, "size": stored.size})
        return _json({"objects": objects, "prefixes": [*prefixes]})

    def _create_upload(self, call: StorageCall, request: web.BaseRequest) -> Answer:
        details = _details(request)
        name = details.get("object")
        if not isinstance(name, str) or not name:
            raise _Refused(400, "InvalidParameter", "the object has no name")
        upload_id = f"upload-{len(self.artifacts.uploads) + 1}"
        content_type = details.get("contentType") or "application/octet-stream"
        bucket = call.parts["bucket"]
        self.artifacts.uploads[upload_id] = MultipartUpload(bucket, name, content_type)
        return _json({"bucket": bucket, "object": name, "uploadId": upload_id})

    def _commit_upload(self, call: StorageCall, request: web.BaseRequest) -> Answer:
        upload = self._upload(call)
        asked = {each["partNum"]: each["etag"] for each in _details(request)["partsToCommit"]}
        for number, etag in asked.items():
            if number not in upload.parts or upload.parts[number].etag != etag:
                raise _Refused(400, "InvalidUploadPart", f"part {number} is not that one")
        stored = self.artifacts.keep_parts(upload, asked)
        del self.artifacts.uploads[call.query["uploadId"]]
        return _stored(stored)

    def _abort_upload(self, call: StorageCall, request: web.BaseRequest) -> Answer:
        self.artifacts.forget_parts(self._upload(call))
        del self.artifacts.uploads[call.query["uploadId"]]
        return Answer(204, b"")

    def _upload(self, call: StorageCall) -> MultipartUpload:
        upload = self.artifacts.uploads.get(call.query.get("uploadId", ""))
        if upload is None or upload.name != call.parts["name"]:
            raise _Refused(404, "NoSuchUpload", "the upload does not exist")
        return upload

    # Volumes

    def _upload_url(self, call: StorageCall, request: web.BaseRequest) -> Answer:
        name, details = self._file(call, request), _details(request)
        stored = self.artifacts.find(VOLUMES_BUCKET, name)
        if details.get("action") == "UPDATE":
            if stored is None or stored.etag != details.get("eTag"):
                raise _Refused(409, "Conflict", "the file has another etag")
            self.artifacts.closed.add(name)
            return self._url(name, "PUT", stored)
        if stored is not None and call.query.get("isOverwrite") != "true":
            raise _Refused(409, "Conflict", "the file exists")
        folder = name.rpartition("/")[0]
        is_there = "/" not in folder or any(
            each.name.startswith(f"{folder}/") for each in self.artifacts.listed(VOLUMES_BUCKET)
        )
        if not is_there and call.query.get("shouldCreateRecursively") != "true":
            raise _Refused(404, "NotAuthorizedOrNotFound", "the parent folder does not exist")
        return self._url(name, "PUT", stored)

    def _download_url(self, call: StorageCall, request: web.BaseRequest) -> Answer:
        name = self._file(call, request)
        stored = self.artifacts.find(VOLUMES_BUCKET, name)
        if stored is None or name not in self.artifacts.closed:
            raise _Refused(404, "NotAuthorizedOrNotFound", "no such file")
        return self._url(name, "GET", stored)

    def _url(self, name: str, method: str, stored: Stored | None) -> Answer:
        token = self.artifacts.pre_authenticate(name, method)
        place = f"n/{NAMESPACE}/b/{VOLUMES_BUCKET}/o/{quote(name, safe='')}"
        reply = {
            "parUrl": f"{self.base_url}/p/{token}/{place}",
            "eTag": stored.etag if stored else "",
            "locationUri": f"oci://{VOLUMES_BUCKET}@{NAMESPACE}/{name}",
            "size": stored.size if stored else 0,
        }
        return _json(reply)

    def _file(self, call: StorageCall, request: web.BaseRequest) -> str:
        path = request.headers.get("path", "")
        if not 1 <= len(path) <= 255 or not path.isascii() or path.endswith("/"):
            raise _Refused(400, "InvalidParameter", "the header path is missing or wrong")
        return f"{call.parts['key']}/{path.lstrip('/')}"

    def _list_files(self, call: StorageCall, request: web.BaseRequest) -> Answer:
        path = call.query.get("path", "/").strip("/")
        root = f"{call.parts['key']}/"
        prefix = f"{root}{path}/" if path else root
        items: dict[str, dict[str, str]] = {}
        for stored in self.artifacts.listed(VOLUMES_BUCKET):
            if not stored.name.startswith(prefix) or stored.name not in self.artifacts.closed:
                continue
            name, separator, _ = stored.name.removeprefix(prefix).partition("/")
            items[name] = {
                "path": f"/{prefix.removeprefix(root)}{name}",
                "displayName": name,
                "type": "FOLDER" if separator else "FILE",
            }
        begin = int(call.query.get("page", "0"))
        page = [*items.values()][begin : begin + _PAGE]
        is_last = begin + _PAGE >= len(items)
        following = {} if is_last else {"opc-next-page": str(begin + _PAGE)}
        return Answer(200, msgspec.json.encode({"items": page}), following)

    def _list_volumes(self, call: StorageCall, request: web.BaseRequest) -> Answer:
        schema = call.query.get("schemaKey", "")
        keys = {each: each for each in self.artifacts.volumes} | self.aliases
        items = [
            {"key": key, "displayName": name.rpartition(".")[2], "volumeType": "MANAGED"}
            for name, key in sorted(keys.items())
            if name.rpartition(".")[0] == schema
        ]
        return _json({"items": items})


def _details(request: web.BaseRequest) -> dict[str, Any]:
    # It was read when the signature was checked.
    return msgspec.json.decode(request._read_bytes or b"{}", type=dict[str, Any])


def _json(value: object) -> Answer:
    return Answer(200, msgspec.json.encode(value))


def _stored(stored: Stored | Incoming) -> Answer:
    return Answer(200, b"", {"etag": stored.etag, "opc-content-md5": stored.md5})


def _unknown_url() -> Answer:
    return refusal(404, "NotAuthorizedOrNotFound", "the pre-authenticated URL is not valid")
