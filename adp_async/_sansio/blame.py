"""What the message of a refusal says: which record it blames, and whether it is the same again.

MLflow names the place in the request, such as ``metrics[3].name``.  Whether the service does is
not documented; so the first such place is checked (see `Accumulator.refuse`), not believed.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from attrs import frozen

from adp_async._sansio.records import Metric, Param, RunTag

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adp_async._sansio.records import AnyRecord
    from adp_async.errors import AdpError

_PLACE: Final = r"\b(metrics|params|tags)\[(\d{1,6})\](?:\.(\w+))?"
_KINDS: Final[dict[str, type[AnyRecord]]] = {"metrics": Metric, "params": Param, "tags": RunTag}
#: What differs between two refusals for the same reason: quoted words, numbers and ids.
_PARTICULARS: Final = r"'[^']*'|\"[^\"]*\"|\b[0-9a-f]{32}\b|\d+"


@frozen
class Blame:
    """The record that a refusal names: its position in the batch; whether its key is at fault."""

    position: int
    is_for_key: bool


def blamed(error: AdpError, records: Sequence[AnyRecord]) -> Blame | None:
    """Which of *records*, sent together, the service's message names, or None."""
    found = re.search(_PLACE, getattr(error, "message", ""))
    if found is None:
        return None
    kind, index, what = _KINDS[found[1]], int(found[2]), found[3]
    sent = _sent(kind, records)
    if index >= len(sent):
        return None
    return Blame(sent[index], what in ("name", "key"))


def _sent(kind: type[AnyRecord], records: Sequence[AnyRecord]) -> list[int]:
    """Positions of the records of *kind* in the order of the request's body."""
    mine = [at for at, record in enumerate(records) if type(record) is kind]
    if kind is Metric:
        return mine
    # Of a repeated key only the last record is sent, in the place of the first.
    return list({records[at].key: at for at in mine}.values())


def gist(error: AdpError) -> str:
    """The reason of a refusal without what differs from record to record.

    >>> from adp_async.errors import BadRequest
    >>> gist(BadRequest("'a@b' is not a name: metrics[3].name", status=400, code="Invalid"))
    '400 Invalid # is not a name: metrics[#].name'
    """
    status, code = getattr(error, "status", 0), getattr(error, "code", "")
    return f"{status} {code} {_without_particulars(getattr(error, 'message', ''))}"


@lru_cache(maxsize=64)
def _without_particulars(message: str) -> str:
    return re.sub(_PARTICULARS, "#", message)
