"""The base of all kinds of tags."""

from attrs import field, frozen

from adp_async.entities._entity import Entity
from adp_async.entities._fields import absent


@frozen
class Tag(Entity):
    """A key and a value, both text."""

    key: str = field(metadata=absent(""))
    value: str = field(metadata=absent(""))
