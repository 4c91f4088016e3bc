"""Buckets and volumes in a folder: what the stand-in of Object Storage and of Volumes keeps.

Tests read what arrived by the URI it has for the client: `Artifacts.read` and `Artifacts.names`.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import time
import uuid
from typing import TYPE_CHECKING, Final, Self

import msgspec
from attrs import define, field

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["NAMESPACE", "Artifacts", "Incoming", "MultipartUpload", "PreAuthenticated", "Stored"]

#: The tenancy's namespace of Object Storage, and the bucket that the platform has its volumes in.
NAMESPACE: Final = "local"
VOLUMES_BUCKET: Final = "volumes"
#: What is there from the beginning.
BUCKET: Final = "artifacts"
VOLUME: Final = "local.default.artifacts"

_BUCKET_URI: Final = re.compile(rf"oci://([\w.-]+)@{NAMESPACE}(?:/(.*))?")
_VOLUME_URI: Final = re.compile(r"/Volumes/([^/]+)/([^/]+)/([^/]+)(?:/(.*))?")
_SECONDS_OF_URLS: Final = 3600.0


class Stored(msgspec.Struct, frozen=True):
    """One object.  *md5* is in base64."""

    bucket: str
    name: str
    size: int
    md5: str
    content_type: str
    file: str

    @property
    def etag(self) -> str:
        return self.file


@define
class MultipartUpload:
    """One that is neither committed nor aborted; its *parts* by number."""

    bucket: str
    name: str
    content_type: str
    parts: dict[int, Incoming] = field(factory=dict)


@define
class PreAuthenticated:
    """What a URL that needs no signature is good for."""

    name: str
    method: str
    until: float


@define(eq=False)
class Incoming:
    """Content that arrives, in a file of its own."""

    path: Path
    size: int = 0
    _digest: hashlib._Hash = field(factory=lambda: hashlib.md5(usedforsecurity=False), repr=False)

    def write(self, chunk: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(chunk)
        self._digest.update(chunk)
        self.size += len(chunk)

    @property
    def md5(self) -> str:
        return base64.b64encode(self._digest.digest()).decode()

    @property
    def etag(self) -> str:
        return self.path.name


@define(eq=False)
class Artifacts:
    """What is stored in *folder*, and stays there over restarts.

    There is a bucket ``artifacts`` in the namespace ``local``, and a volume
    ``local.default.artifacts``; `add_bucket` and `add_volume` make more.
    """

    folder: Path
    buckets: set[str] = field(factory=lambda: {BUCKET, VOLUMES_BUCKET})
    volumes: set[str] = field(factory=lambda: {VOLUME})
    #: Files of volumes that the client has said are complete.
    closed: set[str] = field(factory=set)
    uploads: dict[str, MultipartUpload] = field(factory=dict)
    _objects: dict[tuple[str, str], Stored] = field(factory=dict)
    _urls: dict[str, PreAuthenticated] = field(factory=dict)

    @classmethod
    def in_folder(cls, folder: Path) -> Self:
        """With what *folder* has from the last time."""
        folder.mkdir(parents=True, exist_ok=True)
        found = cls(folder)
        for sidecar in folder.glob("*.json"):
            stored = msgspec.json.decode(sidecar.read_bytes(), type=Stored)
            found._objects[stored.bucket, stored.name] = stored
            found.buckets.add(stored.bucket)
            if stored.bucket == VOLUMES_BUCKET:
                found.volumes.add(stored.name.partition("/")[0])
        return found

    # For tests

    def add_bucket(self, name: str) -> str:
        """Make a bucket; returns the URI of its root."""
        self.buckets.add(name)
        return f"oci://{name}@{NAMESPACE}"

    def add_volume(self, name: str) -> str:
        """Make a volume, called ``catalog.schema.volume``; returns its path."""
        self.volumes.add(name)
        return "/Volumes/" + name.replace(".", "/")

    def read(self, uri: str) -> bytes:
        """What is stored under *uri*, such as ``run.info.artifact_uri + "/loss.png"``; KeyError."""
        return self.content(self._objects[self._located(uri)])

    def names(self, uri: str) -> list[str]:
        """The names of everything below *uri*, relative to it."""
        bucket, name = self._located(uri)
        prefix = f"{name.rstrip('/')}/".lstrip("/")
        found = (each for each in self.listed(bucket) if each.name.startswith(prefix))
        return [each.name.removeprefix(prefix) for each in found]

    def expire_urls(self) -> None:
        """Refuse every pre-authenticated URL that was given out so far."""
        self._urls.clear()

    def _located(self, uri: str) -> tuple[str, str]:
        if found := _BUCKET_URI.fullmatch(uri):
            return found[1], found[2] or ""
        if found := _VOLUME_URI.fullmatch(uri):
            return VOLUMES_BUCKET, f"{'.'.join(found.groups()[:3])}/{found[4] or ''}".rstrip("/")
        message = f"{uri!r} is neither oci://bucket@{NAMESPACE}/... nor /Volumes/..."
        raise KeyError(message)

    # For the server

    def incoming(self) -> Incoming:
        """A new, empty file for what arrives."""
        path = self.folder / uuid.uuid4().hex
        path.touch()
        return Incoming(path)

    def keep(self, bucket: str, name: str, content_type: str, incoming: Incoming) -> Stored:
        """Let *incoming* be the object's content from now on."""
        stored = Stored(bucket, name, incoming.size, incoming.md5, content_type, incoming.path.name)
        self.drop(bucket, name)
        self._sidecar(stored).write_bytes(msgspec.json.encode(stored))
        self._objects[bucket, name] = stored
        return stored

    def keep_parts(self, upload: MultipartUpload, numbers: Iterable[int]) -> Stored:
        """Let the parts of an *upload* together be the object's content."""
        whole = self.incoming()
        for number in sorted(numbers):
            with upload.parts[number].path.open("rb") as part:
                while chunk := part.read(2**20):
                    whole.write(chunk)
        self.forget_parts(upload)
        return self.keep(upload.bucket, upload.name, upload.content_type, whole)

    def forget_parts(self, upload: MultipartUpload) -> None:
        for part in upload.parts.values():
            part.path.unlink()

    def drop(self, bucket: str, name: str) -> None:
        """Remove an object, if there is one."""
        if (stored := self._objects.pop((bucket, name), None)) is not None:
            self._sidecar(stored).unlink()
            (self.folder / stored.file).unlink()

    def find(self, bucket: str, name: str) -> Stored | None:
        return self._objects.get((bucket, name))

    def listed(self, bucket: str) -> list[Stored]:
        """All objects of a bucket, by their names."""
        found = (each for each in self._objects.values() if each.bucket == bucket)
        return sorted(found, key=lambda each: each.name)

    def content(self, stored: Stored) -> bytes:
        return (self.folder / stored.file).read_bytes()

    def _sidecar(self, stored: Stored) -> Path:
        return self.folder / f"{stored.file}.json"

    def pre_authenticate(self, name: str, method: str) -> str:
        """A token for *method* on the object *name* of the bucket of volumes."""
        token = secrets.token_urlsafe(32)
        self._urls[token] = PreAuthenticated(name, method, time.monotonic() + _SECONDS_OF_URLS)
        return token

    def is_allowed(self, token: str, name: str, method: str) -> bool:
        """Whether *token* was given out for that."""
        found = self._urls.get(token)
        return (
            found is not None
            and (found.name, found.method) == (name, method)
            and time.monotonic() < found.until
        )
