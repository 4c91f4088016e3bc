"""What goes out and what comes back, as plain values.

Structs, since every call makes several; their `repr` leaves out what may be secret or long.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from adp_async._sansio.texts import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

#: How much of an error's body is kept.
ERROR_BODY_BYTES = 64 * 1024


class Request(msgspec.Struct, frozen=True):
    """One HTTP request, complete except for its signature.

    *url* is absolute and already percent-encoded: exactly these characters are signed and sent.
    Header names are lower case.
    """

    method: str
    url: str
    headers: Mapping[str, str] = {}
    body: bytes | None = None
    operation: str = ""

    def with_headers(self, headers: Mapping[str, str]) -> Request:
        return msgspec.structs.replace(self, headers={**self.headers, **headers})

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.url}>"


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
