"""What is said while a flush, a finish or an exit waits: one line, made of numbers."""

from __future__ import annotations

from typing import Final

from attrs import frozen

from adp_async._sansio.texts import printable

__all__ = ["Wait", "end_line", "line", "share"]

#: Characters of a name and of an error that are said.
LONGEST_NAME: Final = 60
LONGEST_ERROR: Final = 160


@frozen
class Wait:
    """How a wait for *what* (a run, the session) stands.

    Of *total* records that it had to wait for, *delivered* have arrived and *lost* were refused or
    dropped; *uploads* artifacts are on their way.  It has taken *elapsed* seconds and takes at most
    *limit*, if that is known.  The service asked to be left alone for *held* more seconds; *error*
    is what keeps records from being delivered.
    """

    what: str
    delivered: int = 0
    lost: int = 0
    total: int = 0
    uploads: int = 0
    elapsed: float = 0.0
    limit: float | None = None
    held: float = 0.0
    error: str | None = None

    @property
    def is_settled(self) -> bool:
        """Whether no record is on its way any more."""
        return self.delivered + self.lost >= self.total


def line(wait: Wait) -> str:
    """One line, without control characters; what a narrow terminal cuts off comes last.

    >>> line(Wait("run sgd", delivered=1240, total=20000, elapsed=12.3, held=3.2))
    'run sgd: 1,240 of 20,000 records delivered | 12 s | held for 3 s: too many requests'
    >>> line(Wait("the session", total=1, elapsed=4.0, limit=25.0, error="no connection"))
    'the session: 0 of 1 record delivered | 4 s of at most 25 s | no connection'
    """
    parts = [_records(wait)]
    if wait.lost:
        parts.append(f"{wait.lost:,} refused or dropped")
    if wait.uploads:
        parts.append(f"{_many(wait.uploads, 'artifact')} to upload")
    parts += [_time(wait), _trouble(wait)]
    return f"{_name(wait)}: {' | '.join(part for part in parts if part)}"


def _trouble(wait: Wait) -> str:
    """What is waited for."""
    if wait.is_settled:
        return "" if wait.uploads else "waiting for the service's answer"
    if wait.held >= 0.5:
        return f"held for {wait.held:,.0f} s: too many requests"
    return "" if wait.error is None else printable(wait.error, LONGEST_ERROR)


def end_line(wait: Wait) -> str:
    """What remains to be read when the wait is over.

    >>> end_line(Wait("run sgd", delivered=19_990, lost=10, total=20_000, elapsed=31.0))
    'run sgd: 19,990 of 20,000 records delivered | 10 refused or dropped | in 31 s'
    """
    lost = f"{wait.lost:,} refused or dropped" if wait.lost else ""
    uploads = f"{_many(wait.uploads, 'artifact')} not uploaded" if wait.uploads else ""
    parts = [_records(wait), lost, uploads, f"in {wait.elapsed:,.0f} s"]
    return f"{_name(wait)}: {' | '.join(part for part in parts if part)}"


def share(wait: Wait) -> float:
    """How much of it is done, from 0 to 1.

    >>> share(Wait("run sgd", delivered=1, lost=1, total=4))
    0.5
    """
    done = min(wait.total, wait.delivered + wait.lost)
    return done / wait.total if wait.total else 1.0


def _name(wait: Wait) -> str:
    return printable(wait.what, LONGEST_NAME)


def _records(wait: Wait) -> str:
    if not wait.total:
        return ""
    return f"{wait.delivered:,} of {_many(wait.total, 'record')} delivered"


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _time(wait: Wait) -> str:
    limit = "" if wait.limit is None else f" of at most {wait.limit:,.0f} s"
    return f"{wait.elapsed:,.0f} s{limit}"
