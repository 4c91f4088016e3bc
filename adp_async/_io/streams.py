"""The content of an artifact: a file or bytes, measured once and read in chunks as it is sent."""

from __future__ import annotations

import base64
import hashlib
import io
import mimetypes
import os
import stat
import threading
from typing import TYPE_CHECKING, BinaryIO, Final, Protocol

from attrs import define, field, frozen

from adp_async.errors import AdpError, reason_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from adp_async._io.worker import Worker

#: What is read at once, and so what an upload has in memory.
CHUNK_BYTES: Final = 256 * 1024


class Content(Protocol):
    """What an artifact holds."""

    def measure(self) -> int:
        """Its size in bytes.  Blocks; raises `AdpError` when it cannot be read."""

    def open(self) -> BinaryIO:
        """It, from its beginning.  Blocks; raises `AdpError` likewise."""


@frozen
class FileContent:
    """A file, as it is when it is sent."""

    path: Path

    def measure(self) -> int:
        try:
            found = os.stat(self.path)
        except OSError as error:
            raise self._unreadable(reason_of(error)) from None
        if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for
            raise self._unreadable("it is not a file")
        return found.st_size

    def open(self) -> BinaryIO:
        self.measure()
        try:
            return self.path.open("rb")
        except OSError as error:
            raise self._unreadable(reason_of(error)) from None

    def _unreadable(self, why: str) -> AdpError:
        return AdpError(f"{named(self.path)} cannot be read: {why}")


@frozen
class BytesContent:
    """Bytes that are in memory anyway."""

    data: bytes = field(repr=False)

    def measure(self) -> int:
        return len(self.data)

    def open(self) -> BinaryIO:
        return io.BytesIO(self.data)


@define(eq=False)
class ContentStream:
    """*size* bytes of *content* from *offset* on, read in a thread of *worker*.

    *md5* is that of the last reading, in base64 as Object Storage writes it.
    """

    content: Content
    worker: Worker
    size: int
    offset: int = 0
    failure: AdpError | None = field(default=None, init=False)
    md5: str = field(default="", init=False)

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        self.failure, self.md5 = None, ""
        reading = _Reading(self.content, self.offset)
        left = self.size
        try:
            while left:
                chunk = await self.worker.do(reading.read, min(left, CHUNK_BYTES))
                left -= len(chunk)
                yield chunk
            self.md5 = base64.b64encode(reading.digest.digest()).decode()
        except AdpError as error:
            self.failure = error
            raise
        finally:
            # Not here: a reading that was cancelled may still be under way in that thread.
            self.worker.do(reading.close)


class _Reading:
    """A content that is read, in threads, and closed whatever they are about to do."""

    def __init__(self, content: Content, offset: int) -> None:
        self.digest = hashlib.md5(usedforsecurity=False)
        self._content = content
        self._offset = offset
        self._file: BinaryIO | None = None
        self._is_closed = False
        self._lock = threading.Lock()

    def read(self, size: int) -> bytes:
        """At most *size* bytes; `AdpError` when there are none."""
        with self._lock:
            chunk = self._read(size)
        if not chunk:
            raise AdpError("the file became shorter while it was uploaded")
        self.digest.update(chunk)
        return chunk

    def _read(self, size: int) -> bytes:
        if self._is_closed:
            return b""
        if self._file is None:
            self._file = self._content.open()
            self._file.seek(self._offset)
        try:
            return self._file.read(size)
        except OSError as error:
            problem = f"the file cannot be read: {reason_of(error)}"
        raise AdpError(problem)

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            if self._file is not None:
                self._file.close()


def named(path: Path) -> str:
    """*path* in a message."""
    return f"{str(path)!r:.300}"


def content_type_of(name: str) -> str:
    """The media type that the ending of *name* stands for."""
    return mimetypes.guess_type(name)[0] or "application/octet-stream"
