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
    if set(map(type, records)) == {Metric}:  # nearly always, and then it need not take long
        return _encoder.encode(list(map(_METRIC_FIELDS, records)))
    return _encoder.encode(
        [
            _METRIC_FIELDS(record)
            if type(record) is Metric
            else (KINDS[type(record)][0], record.key, record.value)
            for record in records
        ]
    )


def unpack(body: bytes) -> list[AnyRecord]:
    """What `pack` packed."""
    return [
        Metric(*fields) if len(fields) == 4 else _TEXTS[fields[0]](*fields[1:])
        for fields in _decoder.decode(body)
    ]


#: What `unpack` raises for bytes that `pack` didn't write.
DAMAGED: Final = (msgspec.MsgspecError, TypeError, LookupError)
_TEXTS: Final[dict[str, type[Param] | type[RunTag]]] = {"p": Param, "t": RunTag}
