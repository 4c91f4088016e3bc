"""What goes out and what comes back, as plain values.

Structs, since every call makes several; their `repr` leaves out what may be secret or long.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Protocol

import msgspec

from adp_async._sansio.texts import printable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from adp_async.errors import AdpError

#: How much of an error's body is kept.
ERROR_BODY_BYTES = 64 * 1024


class Signing(enum.Enum):
    """What of a request is signed."""

    WHOLE = "with its body"
    #: Date, target and host: Object Storage takes the body of an object so, which may be a stream.
    HEAD = "without its body"
    #: The URL itself is the credential, and as secret as one.
    NOTHING = "not at all"


class Stream(Protocol):
    """A body of a known *size* that is never in memory as a whole.

    *failure*: why it could not be read to its end, the last time it was read.
    """

    size: int
    failure: AdpError | None

    def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body from its beginning; each attempt asks anew."""


class Request(msgspec.Struct, frozen=True):
    """One HTTP request, complete except for its signature.

    *url* is absolute and already percent-encoded: exactly these characters are signed and sent.
    Header names are lower case.  The body is either *body* or *stream*.
    """

    method: str
    url: str
    headers: Mapping[str, str] = {}
    body: bytes | None = None
    operation: str = ""
    stream: Stream | None = None
    signing: Signing = Signing.WHOLE

    def with_headers(self, headers: Mapping[str, str]) -> Request:
        return msgspec.structs.replace(self, headers={**self.headers, **headers})

    def __repr__(self) -> str:
        url = self.operation if self.signing is Signing.NOTHING else self.url
        return f"<Request {self.method} {url}>"


class Reply(msgspec.Struct, frozen=True):
    """One HTTP reply, read to its end.  Header names are lower case."""

    status: int
    headers: Mapping[str, str] = {}
    body: bytes = b""

    @property
    def request_id(self) -> str:
        """The ``opc-request-id``, fit to be shown; *headers* has it as it came."""
        return printable(self.headers.get("opc-request-id", ""))

    @property
    def content_type(self) -> str:
        """The media type, fit to be shown and without its parameters; "" when none was given."""
        return printable(self.headers.get("content-type", "").partition(";")[0], 80).lower()

    @property
    def etag(self) -> str | None:
        return self.headers.get("etag")

    def __repr__(self) -> str:
        return f"<Reply {self.status}>"
