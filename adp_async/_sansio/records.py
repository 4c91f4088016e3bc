"""Metrics, params and tags as they wait; `values` checks what may become one.

A record is one C-allocated struct, and it is its own receipt: *place* says where it is now (its
lane, and in the end its verdict), and waiting for it is delegated there.  *place* is
the struct's default while a body is encoded, which keeps it off the wire.

The structs are not tracked by the garbage collector; the cycle record -> lane -> record is broken
by hand when a record is settled, and its *place* becomes a `Verdict`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence  # noqa: TC003 - a struct's field is read at run time
from itertools import repeat, starmap
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeAlias

import msgspec
from attrs import frozen

from adp_async.errors import AdpError, Closed

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Generator

#: Steps up to this take the fast path of ``log_metric``.
SMALL_STEP: Final = 2**30 - 1

Kind = Literal["metric", "param", "tag"]


@frozen
class BatchLimits:
    """Limits of one log-batch request; the service publishes none, these are MLflow's.

    *metrics*, *params*, *tags*: records of each kind.  *entities*: all kinds together.
    *body_bytes*: bytes of JSON.  *key_length*, *param_length*, *tag_length*: characters of a key,
    a param's value and a tag's value.
    """

    metrics: int = 1000
    params: int = 100
    tags: int = 100
    # There is a limit on the three kinds together as well: 900 + 50 + 51 is refused.
    entities: int = 1000
    body_bytes: int = 1_000_000
    key_length: int = 250
    param_length: int = 6000
    tag_length: int = 8000


class Place(Protocol):
    """Where a record is: it knows whether the record is settled, and how to wait for that."""

    def wait(self, record: Record) -> Generator[Any, None, None]: ...

    def wait_blocking(self, record: Record, timeout: float | None) -> None: ...

    def verdict(self, record: Record) -> Verdict | None: ...


class Record(msgspec.Struct, gc=False, omit_defaults=True, eq=False):
    """One metric, param or tag, and the receipt for it.

    ``await receipt`` returns when the service has the record and raises `DeliveryError` when it
    never will; ``receipt.wait(timeout)`` is the same for a thread.  Either sends the run's waiting
    records at once, without linger.
    """

    # *key* and *place* are fields of the subclasses: a base's fields come first in a constructor.

    def __await__(self) -> Generator[Any, None, None]:
        return _at(self).wait(self)

    def wait(self, timeout: float | None = None) -> None:
        """Block this thread until the service has the record; not for the event loop's thread.

        Raises `DeliveryError` when it was refused, `TimeoutError` after *timeout* seconds.
        """
        _at(self).wait_blocking(self, timeout)

    @property
    def delivered(self) -> bool:
        """Whether the service has it by now."""
        return self._verdict() is DELIVERED

    @property
    def done(self) -> bool:
        """Whether it is settled: delivered or given up."""
        return self._verdict() is not None

    def _verdict(self) -> Verdict | None:
        # (None while its batch is being encoded, which is before any verdict.)
        place = self.place  # type: ignore[attr-defined]
        return None if place is None else place.verdict(self)

    def __repr__(self) -> str:
        verdict = self._verdict()
        state = "waiting" if verdict is None else repr(verdict).strip("<>")
        key: str = self.key  # type: ignore[attr-defined]
        kind = {Metric: "metric", Param: "param", RunTag: "tag"}.get(type(self), "record")
        return f"<Receipt for {kind} {key!r} | {state}>"


class Metric(Record, gc=False, omit_defaults=True, eq=False):
    """*value* a float, *timestamp* Unix milliseconds, *step* an int64."""

    key: str
    value: float
    timestamp: int
    step: int
    place: Any = None


class Param(Record, gc=False, omit_defaults=True, eq=False):
    key: str
    value: str
    place: Any = None


class RunTag(Record, gc=False, omit_defaults=True, eq=False):
    key: str
    value: str
    place: Any = None


AnyRecord: TypeAlias = Metric | Param | RunTag

KINDS: Final[dict[type, Kind]] = {Metric: "metric", Param: "param", RunTag: "tag"}

#: Memory of a waiting metric: struct, float, two ints and its slot in the queue (measured).
METRIC_COST = 160


def cost_of(record: AnyRecord) -> int:
    """About how many bytes of memory *record* takes while it waits."""
    if type(record) is Metric:
        return METRIC_COST
    return METRIC_COST + _size_of(record.key) + _size_of(record.value)  # type: ignore[arg-type]


def _size_of(text: str) -> int:
    # A character of text that is not ASCII takes 1, 2 or 4 bytes (PEP 393), and 4 at most in UTF-8.
    return len(text) if text.isascii() else 4 * len(text)


class Verdict:
    """The verdict on a delivered record, and the base of the other verdicts."""

    __slots__ = ()

    def wait(self, record: Record) -> Generator[Any, None, None]:
        self.check(record)
        return
        yield  # a generator, for await

    def wait_blocking(self, record: Record, timeout: float | None) -> None:
        self.check(record)

    def verdict(self, record: Record) -> Verdict:
        return self

    def check(self, record: Record) -> None:
        """Raise the error of *record*, unless it was delivered."""

    def __repr__(self) -> str:
        return "<delivered>"


class GivenUp(Verdict):
    """The verdict on a record that was refused or given up."""

    __slots__ = ("error",)

    def __init__(self, error: AdpError) -> None:
        self.error = error

    def check(self, record: Record) -> None:
        # A fresh look at the same error each time: a raised exception collects its traceback.
        raise self.error.with_traceback(None)

    def __repr__(self) -> str:
        return f"<not delivered: {type(self.error).__name__}>"


DELIVERED: Final = Verdict()


#: How often a place is looked for, before the record has none.
_LOOKS = 20_000_000


def _at(record: Any) -> Place:
    # None is only for the tenth of a millisecond in which another thread encodes its batch.  Who
    # looks just then may have to hand the interpreter over first, which takes 5 ms a thread.
    for _ in range(_LOOKS):
        if (place := record.place) is not None:
            return place  # type: ignore[no-any-return]
    raise Closed("this record was not accepted by a session")


# The body of a log-batch request.

_encoder = msgspec.json.Encoder()
# Structural JSON only: inside a key or value the quotes would be escaped.  (The longer it is, the
# faster it is looked for.)
_NULL_VALUE = b'"value":null,"timestamp":'


class _Body(msgspec.Struct, omit_defaults=True):
    run_id: str
    metrics: Sequence[Any] = []
    params: list[Any] = []
    tags: list[Any] = []


def has_text(records: Sequence[AnyRecord]) -> bool:
    """Whether any of *records* is a param or a tag."""
    if len(records) == 1:
        return type(records[0]) is not Metric
    return set(map(type, records)) != {Metric}


def take_first(queue: deque[AnyRecord], count: int) -> list[AnyRecord]:
    """The first *count* records of *queue*, which no longer has them.

    Without a step of the interpreter for each; other threads may append meanwhile.
    """
    return list(starmap(queue.popleft, repeat((), count)))


def encode_records(run_id: str, records: Sequence[AnyRecord], *, with_text: bool = True) -> bytes:
    """The JSON of a log-batch request with *records*, whose *place* must be None.

    *with_text*: whether there may be params and tags among them.

    A tag that is overwritten by a later record is left out, and so is a param given again: within
    one request only the last can be seen.
    """
    body = _sorted(run_id, records) if with_text else _Body(run_id, records)
    encoded = _encoder.encode(body)
    if _NULL_VALUE in encoded:
        body.metrics = [
            metric if math.isfinite(metric.value) else _spelled(metric) for metric in body.metrics
        ]
        encoded = _encoder.encode(body)
    return encoded


def _sorted(run_id: str, records: Sequence[AnyRecord]) -> _Body:
    metrics: list[Any] = []
    params: dict[str, Param] = {}
    tags: dict[str, RunTag] = {}
    for record in records:
        kind = type(record)
        if kind is Metric:
            metrics.append(record)
        elif kind is Param:
            params[record.key] = record  # type: ignore[assignment]
        else:
            tags[record.key] = record  # type: ignore[assignment]
    return _Body(run_id, metrics, list(params.values()), list(tags.values()))


def _spelled(metric: Metric) -> dict[str, object]:
    return {
        "key": metric.key,
        "value": spell(metric.value),
        "timestamp": metric.timestamp,
        "step": metric.step,
    }


def spell(value: float) -> float | str:
    """*value* as the service spells it, since JSON has neither NaN nor infinities."""
    if math.isfinite(value):
        return value
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"
