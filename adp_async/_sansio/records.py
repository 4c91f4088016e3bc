"""Metric, param and tag as they wait: validated, coerced and stamped at the call.

A record is one C-allocated struct, and it is its own receipt: *place* says where it is now (its
lane, and in the end its verdict), and waiting for it is delegated there.  *place* is
the struct's default while a body is encoded, which keeps it off the wire.

The structs are not tracked by the garbage collector; the cycle record -> lane -> record is broken
by hand when a record has its end, and its *place* becomes a `Verdict`.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Sequence  # noqa: TC003 - a struct's field is read at run time
from itertools import repeat, starmap
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeAlias

import msgspec
from attrs import frozen

from adp_async.errors import AdpError, Closed, InvalidRecord

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Generator

#: Steps up to here take the short way through ``log_metric``.
SMALL_STEP: Final = 2**30 - 1
_INT64: Final = 2**63
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f-\x9f]")

Kind = Literal["metric", "param", "tag"]


@frozen
class BatchLimits:
    """What one log-batch request may hold, as data: the service publishes none, these are MLflow's.

    *metrics*, *params*, *tags*: records of each kind.  *entities*: all kinds together.
    *body_bytes*: bytes of JSON.  *key_length*, *param_length*, *tag_length*: characters of a key,
    a param's value and a tag's value.
    """

    metrics: int = 1000
    params: int = 100
    tags: int = 100
    # The service counts the three kinds together as well: 900 + 50 + 51 is refused.
    entities: int = 1000
    body_bytes: int = 1_000_000
    key_length: int = 250
    param_length: int = 6000
    tag_length: int = 8000


class Place(Protocol):
    """Where a record is: it can say whether the end is known, and wait for it."""

    def wait(self, record: Record) -> Generator[Any, None, None]: ...

    def wait_blocking(self, record: Record, timeout: float | None) -> None: ...

    def verdict(self, record: Record) -> Verdict | None: ...


class Record(msgspec.Struct, gc=False, omit_defaults=True, eq=False):
    """One metric, param or tag, and the receipt for it.

    ``await receipt`` returns when the service has the record and raises `DeliveryError` when it
    never will; ``receipt.wait(timeout)`` is the same for a thread.  Either sends what waits for
    the run at once, without linger.
    """

    # *key* and *place* stand in the subclasses: fields of a base come first in a constructor.

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
        """Whether its end is known: delivered, or given up."""
        return self._verdict() is not None

    def _verdict(self) -> Verdict | None:
        # (None while its batch is being encoded, which is before any verdict.)
        place = self.place  # type: ignore[attr-defined]
        return None if place is None else place.verdict(self)

    def __repr__(self) -> str:
        verdict = self._verdict()
        state = "waiting" if verdict is None else repr(verdict).strip("<>")
        key: str = self.key  # type: ignore[attr-defined]
        return f"<{type(self).__name__} {key!r} {state}>"


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
    return METRIC_COST + len(record.key) + len(record.value)  # type: ignore[arg-type]


class Verdict:
    """The end of a record that was delivered, and the base of the other ends."""

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
        """Raise what became of *record*, unless it was delivered."""

    def __repr__(self) -> str:
        return "<delivered>"


class GivenUp(Verdict):
    """The end of a record that was refused, or that nothing will deliver any more."""

    __slots__ = ("error",)

    def __init__(self, error: AdpError) -> None:
        self.error = error

    def check(self, record: Record) -> None:
        # A fresh look at the same error each time: a raised exception collects its traceback.
        raise self.error.with_traceback(None)

    def __repr__(self) -> str:
        return f"<not delivered: {type(self.error).__name__}>"


DELIVERED: Final = Verdict()


class _Nowhere:
    """The place of a record that no logger has taken."""

    def wait(self, record: Record) -> Generator[Any, None, None]:
        raise Closed("no session has taken this record")

    def wait_blocking(self, record: Record, timeout: float | None) -> None:
        raise Closed("no session has taken this record")

    def verdict(self, record: Record) -> None:
        return None


_NOWHERE: Final = _Nowhere()


def _at(record: Any) -> Place:
    # None is only for the tenth of a millisecond in which another thread encodes its batch.  Who
    # looks just then may have to hand the interpreter over first, which takes 5 ms a thread.
    for _ in range(20_000_000):
        if (place := record.place) is not None:
            return place  # type: ignore[no-any-return]
    return _NOWHERE


# Coercion: each function returns what goes on the wire, or raises InvalidRecord.


def valid_key(key: object, *, kind: Kind, run_id: str, limits: BatchLimits) -> str:
    """*key* as a plain str that the service can take."""
    rule = _rule_broken_by_key(key, limits)
    if rule:
        raise InvalidRecord(run_id=run_id, kind=kind, key=key, rule=rule)
    return str.__str__(key)  # of a str enum its value, which was checked, and not its name


def _rule_broken_by_key(key: object, limits: BatchLimits) -> str:
    if not isinstance(key, str):
        return f"a key is a str, not {type(key).__name__}"
    if not key:
        return "a key must not be empty"
    if len(key) > limits.key_length:
        return f"a key has at most {limits.key_length} characters, this one has {len(key)}"
    if _CONTROL_CHARACTER.search(key):
        return "a key must not have control characters"
    if not _is_unicode(key):
        return "a key must be encodable as UTF-8 (it has a lone surrogate)"
    return ""


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def valid_value(value: object, *, key: str, run_id: str) -> float:
    """*value* as ``float()`` reads it: numpy and torch scalars, Decimal, bool, int, str.

    An int beyond 2^53 is rounded to the nearest double, as the service stores it.
    """
    try:
        return float(value)  # type: ignore[arg-type]
    except Exception as error:  # a tensor's conversion may raise anything
        rule = f"float() does not take a value of type {type(value).__name__}"
        if isinstance(error, OverflowError):
            rule = "the int is too large for a double"
        raise InvalidRecord(run_id=run_id, kind="metric", key=key, rule=rule) from error


def valid_int64(number: object, *, what: str, key: str, run_id: str) -> int:
    """*number* as an int64; *what* is "step" or "timestamp"."""
    try:
        whole = operator.index(number)  # type: ignore[arg-type]
    except Exception as error:  # a tensor's conversion may raise anything
        rule = f"the {what} is an int, not {type(number).__name__}"
        raise InvalidRecord(run_id=run_id, kind="metric", key=key, rule=rule) from error
    if not -_INT64 <= whole < _INT64:
        rule = f"the {what} is outside of int64 (-2^63 to 2^63 - 1)"
        raise InvalidRecord(run_id=run_id, kind="metric", key=key, rule=rule)
    return int(whole)


def valid_text(value: object, *, kind: Kind, key: str, run_id: str, limits: BatchLimits) -> str:
    """*value* of a param or tag, written with ``str``."""
    rule = ""
    try:
        text = str(value)
    except Exception as error:  # whatever a foreign __str__ raises
        rule = f"str() failed on a value of type {type(value).__name__}"
        raise InvalidRecord(run_id=run_id, kind=kind, key=key, rule=rule) from error
    longest = limits.param_length if kind == "param" else limits.tag_length
    if len(text) > longest:
        rule = f"a {kind}'s value has at most {longest} characters, this one has {len(text)}"
    elif not _is_unicode(text):
        rule = "the value must be encodable as UTF-8 (it has a lone surrogate)"
    if rule:
        raise InvalidRecord(run_id=run_id, kind=kind, key=key, rule=rule)
    return text


# The body of a log-batch request.

_encoder = msgspec.json.Encoder()
# Structural JSON only: inside a key or value the quotes would be escaped.
_NULL_VALUE = b'"value":null'


class _Body(msgspec.Struct, omit_defaults=True):
    run_id: str
    metrics: Sequence[Any] = []
    params: list[Any] = []
    tags: list[Any] = []


def has_text(records: Sequence[AnyRecord]) -> bool:
    """Whether there is a param or a tag among *records*."""
    if len(records) == 1:
        return type(records[0]) is not Metric
    return set(map(type, records)) != {Metric}


def take_first(queue: deque[AnyRecord], count: int) -> list[AnyRecord]:
    """The first *count* records of *queue*, which no longer has them.

    Without a step of the interpreter for each; other threads may append meanwhile.
    """
    return list(starmap(queue.popleft, repeat((), count)))


def encode_records(run_id: str, records: Sequence[AnyRecord]) -> bytes:
    """The JSON of a log-batch request with *records*, whose *place* must be None.

    A tag that is overwritten by a later record is left out, and so is a param given again: within
    one request only the last can be seen.
    """
    body = _sorted(run_id, records) if has_text(records) else _Body(run_id, records)
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
    """*value* as the service spells it: JSON has no NaN and no infinities."""
    if math.isfinite(value):
        return value
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"
