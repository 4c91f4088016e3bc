"""What a reader takes for a field that was left out."""

from collections.abc import Mapping
from typing import Final

ABSENT: Final = "absent"


def absent(value: object) -> Mapping[str, object]:
    """Metadata of a field that people must give, and that a reply may yet leave out.

    The schemas call nearly every field optional.  A metric without a value makes no sense to
    send, but a reader must not stumble over one: it takes *value* instead.
    """
    return {ABSENT: value}
