"""Defaults for fields that a reply leaves out."""

from collections.abc import Mapping
from typing import Final

ABSENT: Final = "absent"


def absent(value: object) -> Mapping[str, object]:
    """Metadata of a field that is a required argument, but may be missing in a reply.

    The schemas call nearly every field optional.  A metric without a value makes no sense to
    send, but reading one must not fail: *value* is used instead.
    """
    return {ABSENT: value}
