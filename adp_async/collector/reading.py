"""Reads a worker's log-batch request: its records, or why the service would refuse them.

What is checked here is what the service is known to check, by the same limits; one bad record
fails the whole request, and the message names its place, so that the worker takes the request
apart as it does for the service's own refusals.  What only the service can know (a param that
changes, a character that it does not allow) it decides when the records get there.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

import msgspec
from attrs import frozen

from adp_async._sansio.records import Metric, Param, RunTag
from adp_async._sansio.values import number_of, valid_key, valid_run_id, valid_text, whole_of
from adp_async.errors import InvalidRecord

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from adp_async._sansio.records import AnyRecord, BatchLimits, Kind

INVALID: Final = "INVALID_PARAMETER_VALUE"
#: Seconds until a worker that was refused for want of room asks again.
RETRY_AFTER: Final = 1.0
_INT64: Final = 2**63
_STEP, _TIMESTAMP = attrgetter("step"), attrgetter("timestamp")


class Refused(Exception):
    """The answer to a request that is not taken: its status, code and message."""

    def __init__(
        self, status: int, code: str, message: str, *, retry_after: float | None = None
    ) -> None:
        self.status = status
        self.code = code
        self.message = message
        self.retry_after = retry_after
        super().__init__(message)


@frozen
class Handed:
    """The records of one request, in the order metrics, params, tags."""

    run_id: str
    records: list[AnyRecord]


class _Body(msgspec.Struct):
    """The fast path: numbers are numbers, which is so for nearly all requests."""

    run_id: str
    metrics: list[Metric] = []
    params: list[Param] = []
    tags: list[RunTag] = []


class _LooseMetric(msgspec.Struct):
    """What JSON has no numbers for comes as text, and an int64 may."""

    key: str
    value: float | str
    timestamp: int | str
    step: int | str | None = 0


class _LooseText(msgspec.Struct):
    key: str
    value: str = ""


class _LooseBody(msgspec.Struct):
    run_id: str
    metrics: list[_LooseMetric] = []
    params: list[_LooseText] = []
    tags: list[_LooseText] = []


_decode = msgspec.json.Decoder(_Body).decode
_decode_loosely = msgspec.json.Decoder(_LooseBody).decode


def read_log_batch(body: bytes, limits: BatchLimits, known: dict[str, str]) -> Handed:
    """The records of *body*; raises `Refused`.  *known* are keys that were valid before.

    >>> from adp_async import BatchLimits
    >>> read_log_batch(b'{"run_id":"r","tags":[{"key":"a","value":"b"}]}', BatchLimits(), {})
    Handed(run_id='r', records=[<Receipt for tag 'a' | waiting>])
    """
    if len(body) > limits.body_bytes:
        message = f"the body has {len(body)} bytes; at most {limits.body_bytes} are taken"
        raise Refused(413, "PayloadTooLarge", message)
    found = _parsed(body)
    _check_counts(found, limits)
    try:
        run_id = valid_run_id(found.run_id)
    except ValueError as error:
        raise _invalid(str(error)) from None
    _check_metrics(run_id, found.metrics, limits, known)
    _check_texts(run_id, "param", found.params, limits, known)
    _check_texts(run_id, "tag", found.tags, limits, known)
    return Handed(run_id, [*found.metrics, *found.params, *found.tags])


def named_records(found: Mapping[str, Any]) -> list[AnyRecord]:
    """The records of a log-batch that is not taken, for what they are called.

    >>> named_records({"metrics": [{"key": "loss", "step": 3}, 7]})
    [<Receipt for metric 'loss' | waiting>, <Receipt for metric '' | waiting>]
    """
    given = {kind: found.get(kind) for kind in ("metrics", "params", "tags")}
    named = {
        kind: [each if isinstance(each, dict) else {} for each in records]
        for kind, records in given.items()
        if isinstance(records, list)
    }
    return [
        *(Metric(_name(each), 0.0, 0, _step(each)) for each in named.get("metrics", ())),
        *(Param(_name(each), "") for each in named.get("params", ())),
        *(RunTag(_name(each), "") for each in named.get("tags", ())),
    ]


def _name(record: Mapping[str, Any]) -> str:
    return str(record.get("key", ""))


def _step(record: Mapping[str, Any]) -> int:
    step = record.get("step", 0)
    return step if type(step) is int else 0


def _parsed(body: bytes) -> _Body:
    try:
        return _decode(body)
    except (msgspec.DecodeError, RecursionError):
        pass  # text for a number, or not a log-batch at all
    try:
        loose = _decode_loosely(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise _invalid(f"the body is not a log-batch: {error}") from None
    return _Body(
        loose.run_id,
        [_metric(at, each) for at, each in enumerate(loose.metrics)],
        [Param(each.key, each.value) for each in loose.params],
        [RunTag(each.key, each.value) for each in loose.tags],
    )


def _metric(at: int, loose: _LooseMetric) -> Metric:
    value = number_of(loose.value)
    if value is None:
        raise _invalid(f"not a number: metrics[{at}].value")
    timestamp = _whole(loose.timestamp, at, "timestamp")
    return Metric(loose.key, value, timestamp, _whole(loose.step or 0, at, "step"))


def _whole(number: int | str, at: int, what: str) -> int:
    try:
        whole = whole_of(int(number) if isinstance(number, str) else number)
    except ValueError:
        whole = None
    if whole is None:
        raise _invalid(f"not an int64: metrics[{at}].{what}")
    return whole


def _check_counts(found: _Body, limits: BatchLimits) -> None:
    counts = {
        "metrics": (len(found.metrics), limits.metrics),
        "params": (len(found.params), limits.params),
        "tags": (len(found.tags), limits.tags),
    }
    counts["metrics, params and tags"] = (sum(n for n, _ in counts.values()), limits.entities)
    for what, (count, most) in counts.items():
        if count > most:
            raise _invalid(f"a request can contain at most {most} {what}, this one has {count}")


def _check_metrics(
    run_id: str, metrics: Sequence[Metric], limits: BatchLimits, known: dict[str, str]
) -> None:
    if not metrics:
        return
    for at, metric in enumerate(metrics):
        plain = known.get(metric.key)
        # The same text once, not once a point.
        metric.key = plain or _key(run_id, "metric", at, metric.key, limits, known)
        metric.place = None
    for what, numbers in (("step", _STEP), ("timestamp", _TIMESTAMP)):
        found: list[int] = list(map(numbers, metrics))
        if min(found) < -_INT64 or max(found) >= _INT64:
            at = next(at for at, each in enumerate(found) if not -_INT64 <= each < _INT64)
            raise _invalid(f"outside of int64: metrics[{at}].{what}")


def _check_texts(
    run_id: str,
    kind: Kind,
    texts: Sequence[Any],
    limits: BatchLimits,
    known: dict[str, str],
) -> None:
    values: dict[str, str] = {}
    for at, text in enumerate(texts):
        text.key = _key(run_id, kind, at, text.key, limits, known)
        text.place = None
        try:
            valid_text(text.value, kind=kind, key=text.key, run_id=run_id, limits=limits)
        except InvalidRecord as error:
            raise _invalid(f"{error.rule}: {kind}s[{at}].value") from None
        if kind == "param" and values.setdefault(text.key, text.value) != text.value:
            raise _invalid(f"another value of the same param: params[{at}].value")


def _key(
    run_id: str, kind: Kind, at: int, key: str, limits: BatchLimits, known: dict[str, str]
) -> str:
    try:
        return valid_key(key, kind=kind, run_id=run_id, limits=limits, known=known)
    except InvalidRecord as error:
        raise _invalid(f"{error.rule}: {kind}s[{at}].key") from None


def _invalid(message: str) -> Refused:
    return Refused(400, INVALID, message)
