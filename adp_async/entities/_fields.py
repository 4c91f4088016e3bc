"""What the entities share: sequences, tags, and what a reader takes for a field left out."""

from collections.abc import Mapping
from typing import Final

from attrs import field, frozen

ABSENT: Final = "absent"


def absent(value: object) -> Mapping[str, object]:
    """Metadata of a field that people must give, and that a reply may yet leave out.

    The schemas call nearly every field optional.  A metric without a value makes no sense to
    send, but a reader must not stumble over one: it takes *value* instead.
    """
    return {ABSENT: value}


@frozen
class Tag:
    """A key and a value, both text."""

    key: str = field(metadata=absent(""))
    value: str = field(metadata=absent(""))
