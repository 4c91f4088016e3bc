"""Answers of the platform's backends: status and JSON, before the gateway adds headers."""

from __future__ import annotations

from typing import Protocol

import msgspec
from attrs import field, frozen

from adp_async.local.routes import Route  # noqa: TC001 -- Received is read at runtime by attrs

__all__ = ["EMPTY", "Answer", "Backend", "Received", "refusal"]


@frozen
class Received:
    """One request as it reached the gateway; *raw_path* holds the query too, as it was sent.

    Header names are lower case.  *operation* is "" when the service has no such path.
    """

    method: str
    raw_path: str
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    operation: str = ""

    @property
    def query(self) -> str:
        """The query as it was sent, without its question mark."""
        return self.raw_path.partition("?")[2]


@frozen
class Answer:
    """Status and JSON body of a reply."""

    status: int
    body: bytes = field(default=b"{}", repr=False)
    headers: dict[str, str] = field(factory=dict)


EMPTY = Answer(200)


def refusal(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Answer:
    """An error as the service words it."""
    body = msgspec.json.encode({"code": code, "message": message})
    return Answer(status, body, headers or {})


class Backend(Protocol):
    """Does the work behind the gateway: MLflow, or its stand-in."""

    async def answer(self, route: Route, received: Received) -> Answer: ...

    async def close(self) -> None: ...
