"""Faults to inject, and the script that decides which requests they hit, and how often."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Self

import msgspec
from attrs import define, field, frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Effect", "Fault", "FaultScript", "Injection"]


class Effect(Enum):
    """What the caller sees of a fault."""

    REPLY = "another reply"
    DROP = "the connection is reset, no byte of a reply"
    CUT = "the connection is reset in the middle of the reply"
    RESET = "the whole reply comes, then the connection is reset"
    TRUNCATE = "a well-formed reply whose JSON is cut in half"
    DRIP = "the reply comes one byte at a time"
    HANG = "no reply at all, the connection stays open"


@frozen
class Fault:
    """One way to go wrong.  The classmethods read best: ``Fault.reply(503, after_write=True)``.

    *after_write* is True when the request takes effect before it goes wrong: it is handed on and
    recorded, and only the reply is affected.
    """

    effect: Effect
    after_write: bool = False
    status: int = 500
    headers: Mapping[str, str] = field(factory=dict)
    body: bytes = field(default=b"", repr=False)
    seconds: float = 1.0

    @classmethod
    def reply(
        cls,
        status: int,
        code: str = "InjectedFault",
        message: str = "a fault was injected",
        *,
        body: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
        after_write: bool = False,
    ) -> Self:
        """Answer *status* with the service's error body, or with *body* when it is given."""
        if body is None:
            body = msgspec.json.encode({"code": code, "message": message})
        encoded = body.encode() if isinstance(body, str) else body
        return cls(Effect.REPLY, after_write, status, dict(headers or {}), encoded)

    @classmethod
    def html(cls, status: int = 502, *, after_write: bool = False) -> Self:
        """Answer as a proxy in front of the service does."""
        page = f"<html><head><title>{status}</title></head><body><h1>Bad Gateway</h1></body></html>"
        headers = {"content-type": "text/html"}
        return cls.reply(status, body=page, headers=headers, after_write=after_write)

    @classmethod
    def drop(cls, *, after_write: bool = False) -> Self:
        """Reset the connection without a reply."""
        return cls(Effect.DROP, after_write)

    @classmethod
    def cut(cls) -> Self:
        """Take the request, then reset the connection in the middle of the reply."""
        return cls(Effect.CUT, after_write=True)

    @classmethod
    def reset_after_reply(cls) -> Self:
        """Take the request, reply in full, then reset the connection, 20 ms later.

        A client that has sent its next request on that connection by then loses it, unapplied.
        """
        return cls(Effect.RESET, after_write=True)

    @classmethod
    def truncate(cls) -> Self:
        """Take the request, then reply with half of the JSON, in a valid HTTP reply."""
        return cls(Effect.TRUNCATE, after_write=True)

    @classmethod
    def drip(cls, seconds: float = 1.0) -> Self:
        """Take the request, then reply one byte every *seconds*."""
        return cls(Effect.DRIP, after_write=True, seconds=seconds)

    @classmethod
    def hang(cls, *, after_write: bool = False) -> Self:
        """Never reply; the connection stays open until the client or the platform closes it."""
        return cls(Effect.HANG, after_write)


@define(eq=False)
class Injection:
    """A fault that waits for its requests: *times* of them (None: all), where *matches* is true."""

    fault: Fault
    times: int | None
    matches: Callable[[str], bool] = field(repr=False)
    hits: int = 0

    @property
    def is_spent(self) -> bool:
        """Whether it has hit as many requests as it was to."""
        return self.times is not None and self.hits >= self.times


class FaultScript:
    """The injections in force, first in, first out."""

    def __init__(self) -> None:
        self._injections: list[Injection] = []

    def inject(
        self,
        fault: Fault,
        *,
        times: int | None = 1,
        operation: str | Callable[[str], bool] | None = None,
    ) -> Injection:
        injection = Injection(fault, times, _predicate(operation))
        self._injections.append(injection)
        return injection

    def remove(self, injection: Injection) -> None:
        self._injections = [other for other in self._injections if other is not injection]

    def clear(self) -> None:
        self._injections.clear()

    def take(self, operation: str) -> Fault | None:
        """The fault for the request that just came, if any; it is counted."""
        for injection in self._injections:
            if not injection.is_spent and injection.matches(operation):
                injection.hits += 1
                return injection.fault
        return None


def _predicate(operation: str | Callable[[str], bool] | None) -> Callable[[str], bool]:
    if operation is None:
        return lambda name: True
    if isinstance(operation, str):
        return lambda name: name == operation
    return operation
