"""What ``strict=False`` makes of keys and texts that the service would refuse."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from adp_async._sansio.values import text_of

if TYPE_CHECKING:
    from adp_async._sansio.records import BatchLimits, Kind

#: MLflow refuses any other character in a key.
_UNFIT: Final = re.compile(r"[^/\w.\- :]")


def clean_key(key: object, limits: BatchLimits) -> str:
    """*key* as a key that the service takes: every character that doesn't fit is an underscore.

    A key must also read as a relative path that leads down: no empty part, no ``.`` and ``..``.

    >>> from adp_async._sansio.records import BatchLimits
    >>> [clean_key(key, BatchLimits()) for key in ("f1@5", "/val//loss/", "../x", "..x", 7, "")]
    ['f1_5', 'val/loss', '__/x', '__x', '7', '_']
    """
    text = _UNFIT.sub("_", text_of(key) or "")[: limits.key_length]
    parts = [part for part in text.split("/") if part not in ("", ".")]
    path = "/".join("__" if part == ".." else part for part in parts)
    if path.startswith(".."):
        path = f"__{path[2:]}"
    return path or "_"


def cut_text(text: str, kind: Kind, limits: BatchLimits) -> str:
    """The value of a param or tag, no longer than the service takes it, and encodable."""
    longest = limits.param_length if kind == "param" else limits.tag_length
    return text[:longest].encode("utf-8", "replace").decode()
