"""What goes out and what comes back, as plain values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The most of an error's body that is kept.
ERROR_BODY_BYTES = 64 * 1024


@frozen
class Request:
    """One HTTP request, complete but for its signature.

    *url* is absolute and already percent-encoded: exactly these characters are signed and sent.
    Header names are lower case.
    """

    method: str
    url: str
    headers: Mapping[str, str] = field(factory=dict, repr=False)
    body: bytes | None = field(default=None, repr=False)
    operation: str = ""

    def with_headers(self, headers: Mapping[str, str]) -> Request:
        # attrs.evolve takes twice as long, and every request comes by here.
        headers = {**self.headers, **headers}
        return Request(self.method, self.url, headers, self.body, self.operation)


@frozen
class Reply:
    """One HTTP reply, read to its end.  Header names are lower case."""

    status: int
    headers: Mapping[str, str] = field(factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)

    @property
    def request_id(self) -> str:
        return self.headers.get("opc-request-id", "")

    @property
    def etag(self) -> str | None:
        return self.headers.get("etag")
