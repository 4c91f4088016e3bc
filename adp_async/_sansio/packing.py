"""Records as bytes, for the disk: MessagePack, which keeps every float as it is."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

import msgspec

from adp_async._sansio.records import KINDS, Metric, Param, RunTag

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adp_async._sansio.records import AnyRecord

_encoder = msgspec.msgpack.Encoder()
_METRIC_FIELDS = attrgetter("key", "value", "timestamp", "step")
_decoder = msgspec.msgpack.Decoder(list[tuple[Any, ...]])


def pack(records: Sequence[AnyRecord]) -> bytes:
    """*records* as bytes."""
    if set(map(type, records)) == {Metric}:  # nearly always, so this is the fast path
        return _encoder.encode(list(map(_METRIC_FIELDS, records)))
    return _encoder.encode(
        [
            _METRIC_FIELDS(record)
            if type(record) is Metric
            else (KINDS[type(record)][0], record.key, record.value)
            for record in records
        ]
    )


def unpack(body: object) -> list[AnyRecord]:
    """What `pack` packed; for anything else one of `DAMAGED` is raised."""
    if not isinstance(body, bytes):
        message = "records are packed as bytes"
        raise ValueError(message)
    return [_metric(*row) if len(row) == 4 else _text(*row) for row in _decoder.decode(body)]


def _metric(key: object, value: object, timestamp: object, step: object) -> Metric:
    if (
        type(key) is str
        and (type(value) is float or type(value) is int)
        and (type(timestamp) is int and -_INT64 <= timestamp < _INT64)
        and (type(step) is int and -_INT64 <= step < _INT64)
    ):
        return Metric(key, value, timestamp, step)
    message = "a field of a metric is of another type"
    raise ValueError(message)


def _text(
    kind: object = None, key: object = None, value: object = None, *more: object
) -> AnyRecord:
    if type(kind) is str and kind in _TEXTS and type(key) is type(value) is str and not more:
        return _TEXTS[kind](key, value)
    message = "a field of a param or a tag is of another type"
    raise ValueError(message)


#: Raised by `unpack` for bytes that `pack` didn't write.  (msgspec's errors are ValueErrors.)
DAMAGED: Final = (ValueError, RecursionError)
_INT64: Final = 2**63
_TEXTS: Final[dict[str, type[Param] | type[RunTag]]] = {"p": Param, "t": RunTag}
