"""Ids by name, remembered for a while, since things may be renamed, deleted or recreated."""

from __future__ import annotations

from typing import Final

from attrs import define, field

#: How long an id is remembered.
SECONDS: Final = 300.0
#: How many are remembered at once.
AT_MOST: Final = 1000


@define(eq=False)
class Names:
    """The id of each name when it was last looked up.

    >>> names = Names(seconds=300.0)
    >>> names.remember("churn", "1", now=0.0)
    >>> names.find("churn", now=299.0), names.find("churn", now=300.0)
    ('1', None)
    """

    seconds: float = SECONDS
    at_most: int = AT_MOST
    #: The id, and until when it counts; the oldest first.
    _known: dict[str, tuple[str, float]] = field(factory=dict, init=False)

    def find(self, name: str, now: float) -> str | None:
        """The id of *name*, None when it has to be looked up."""
        found, until = self._known.get(name, ("", now))
        return found if now < until else None

    def remember(self, name: str, found: str, now: float) -> None:
        """*name* was looked up, and has the id *found*."""
        self._known.pop(name, None)
        self._known[name] = (found, now + self.seconds)
        if len(self._known) > self.at_most:
            del self._known[next(iter(self._known))]

    def forget(self, name: str) -> None:
        """*name* seems to have another id by now."""
        self._known.pop(name, None)
