"""The rows of a spool: how records are written, and what of a row that may be damaged is read."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, Final

from attrs import field, frozen

from adp_async._sansio.packing import DAMAGED, pack, unpack
from adp_async._sansio.records import Metric, Param, RunTag
from adp_async._sansio.run_start import RunStart
from adp_async._sansio.signing import check_retry_token

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adp_async._sansio.journal import Refused
    from adp_async._sansio.records import AnyRecord, Kind

#: Sequence numbers beyond this were never assigned.
_LAST_POSSIBLE: Final = 2**62
#: A row that claims to hold more has a damaged number.
_LONGEST_ROW: Final = 1_000_000
#: The place that each row of chunks claims.
PLACES: Final = "SELECT rowid, run_id, first, last FROM chunks"


@frozen
class RejectedRow:
    """A record the service refused, and why."""

    run_id: str
    kind: Kind
    key: str
    record: AnyRecord = field(repr=False)
    reason: str
    refused_at: float


def counts_of(records: Sequence[AnyRecord]) -> tuple[int, int, int]:
    kinds = [type(record) for record in records]
    return kinds.count(Metric), kinds.count(Param), kinds.count(RunTag)


def chunk_row(run_id: str, first: int, records: Sequence[AnyRecord], now: float) -> tuple[Any, ...]:
    last, body = first + len(records), pack(records)
    checksum = checksum_of(body, run_id, first, last)
    return (run_id, first, last, *counts_of(records), body, now, checksum)


def refused_row(refused: Refused, now: float) -> tuple[Any, ...]:
    rejection = refused.rejection
    reason = str(rejection.cause)[:2000].encode("utf-8", "replace").decode()
    texts = (rejection.run_id, rejection.kind, rejection.key, reason)
    body = pack([refused.record])
    return (*texts[:3], body, reason, now, checksum_of(body, *texts))


def start_row(start: RunStart) -> tuple[Any, ...]:
    text = start.as_text()
    return (start.key, text, checksum_of(text.encode(), start.key))


def start_of(key: object, text: object, checksum: object) -> RunStart | None:
    """The run of a row of starts; None when it is damaged."""
    if not (is_run_id(key) and is_encodable(text)):
        return None
    if checksum != checksum_of(str(text).encode(), key):
        return None
    start = RunStart.from_text(text)
    return start if start is not None and start.key == key else None


def checksum_of(body: object, *place: object) -> int | None:
    """CRC-32 of a row: of its body and its place."""
    if not isinstance(body, bytes):
        return None
    return zlib.crc32(body, zlib.crc32("\0".join(map(str, place)).encode()))


def records_of(
    run_id: str, first: object, last: object, body: object, checksum: object
) -> list[AnyRecord] | None:
    """The records of a row of chunks; None when it is damaged.  *checksum*: None in format 1."""
    if not is_span(first, last) or checksum not in (None, checksum_of(body, run_id, first, last)):
        return None
    try:
        records = unpack(body)
    except DAMAGED:
        return None
    return records if len(records) == last - first else None  # type: ignore[operator]


def is_place(run_id: object, first: Any, last: Any) -> bool:
    return is_run_id(run_id) and is_span(first, last) and int(last - first) <= _LONGEST_ROW


def is_span(first: object, last: object) -> bool:
    return type(first) is int and type(last) is int and 0 <= first < last <= _LAST_POSSIBLE


def is_run_id(run_id: object) -> bool:
    return is_encodable(run_id) and bool(run_id)


def is_encodable(text: object) -> bool:
    try:
        return isinstance(text, str) and text.encode() is not None
    except UnicodeEncodeError:
        return False


def is_token(token: object) -> bool:
    try:
        return check_retry_token(token) == token  # type: ignore[arg-type]
    except ValueError:
        return False


def rejected_of(row: Any) -> RejectedRow | None:
    """A row of `Database.refused`; None when it is damaged."""
    _, run_id, kind, key, body, reason, refused_at, checksum = row
    texts = (run_id, kind, key, reason)
    if not (all(map(is_encodable, texts)) and run_id and isinstance(refused_at, float)):
        return None
    if checksum not in (None, checksum_of(body, *texts)):
        return None
    try:
        (record,) = unpack(body)
    except DAMAGED:
        return None
    return RejectedRow(run_id, kind, key, record, reason, refused_at)
