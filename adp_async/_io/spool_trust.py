"""Whether a file may be opened as a spool: it is one, belongs to this user, and is not in use.

A spool names the records to send, and where, with the credentials of the user that delivers it.  So
one is opened only when it is this user's, and has exactly the tables of `spool_schema`.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Final

from attrs import frozen

from adp_async._io.owner import Owner, why_in_use
from adp_async._io.spool_file import (
    SpoolBusy,
    SpoolElsewhere,
    SpoolError,
    SpoolForeign,
    SpoolNewer,
    SpoolUntrusted,
    beside,
    file_id,
    user_id,
)
from adp_async._io.spool_schema import APPLICATION_ID, FORMAT, check_schema, text_of

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from adp_async._io.spool_file import FileId

#: A younger file that does not look like a spool yet may be one that is being created.
_SECONDS_IN_THE_MAKING: Final = 60.0
_MAGIC: Final = b"SQLite format 3\0"
_HEADER_BYTES: Final = 100

_LOOKING: Final = (
    os.O_RDONLY
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)


@frozen
class Header:
    """What is known of a file before SQLite touches it."""

    file: FileId
    format: int


def check_is_ours(path: Path, facts: os.stat_result) -> None:
    """Raise `SpoolUntrusted` unless *facts* are of a plain file of this user."""
    if stat.S_ISLNK(facts.st_mode):
        problem = "is a symbolic link"
    elif not stat.S_ISREG(facts.st_mode):
        problem = "is not a regular file"
    elif (user := user_id()) is not None and facts.st_uid != user:
        problem = f"belongs to another user (uid {facts.st_uid})"
    else:
        return
    raise SpoolUntrusted(f"{path} {problem}; left untouched")


def check_header(path: Path, in_use: Collection[FileId]) -> Header:
    """Read the header without SQLite, which would write to a file of another kind.

    A file *in_use* by this process is not opened: closing it here would release the lock that
    another part of this process holds, as POSIX demands.
    """
    try:
        if file_id(os.stat(path)) in in_use:
            raise SpoolBusy(f"{path} is in use by this process")
        check_is_ours(path, os.lstat(path))  # opening a FIFO or a device would have an effect
        header, facts = _beginning(path)
        for each in beside(path):
            with suppress(FileNotFoundError):
                check_is_ours(each, os.lstat(each))
    except FileNotFoundError:
        raise SpoolBusy(f"{path} was removed by another process") from None
    except OSError as error:
        raise SpoolError(f"{path} cannot be read: {error.strerror}") from error
    application = _number(header, 68) if header.startswith(_MAGIC) else 0
    if not application and time.time() - facts.st_mtime < _SECONDS_IN_THE_MAKING:
        raise SpoolBusy(f"{path} is being created by another process")
    if application != APPLICATION_ID:
        message = f"{path} is not a spool file (or is truncated); left untouched"
        raise SpoolForeign(message)
    version = _number(header, 60)
    if version > FORMAT:
        message = (
            f"{path} was written by a newer version of adp_async (format {version}, this "
            f"version knows {FORMAT}); left untouched: upgrade to deliver it"
        )
        raise SpoolNewer(message)
    if version < 1:
        raise SpoolForeign(f"{path} is not a spool file: it has no format; left untouched")
    return Header(file_id(facts), version)


def _beginning(path: Path) -> tuple[bytes, os.stat_result]:
    descriptor = os.open(path, _LOOKING)
    try:
        facts = os.fstat(descriptor)
        check_is_ours(path, facts)
        return os.read(descriptor, _HEADER_BYTES), facts
    finally:
        os.close(descriptor)


def _number(header: bytes, position: int) -> int:
    return int.from_bytes(header[position : position + 4], "big")


def check_owner(path: Path, header: Header) -> None:
    """Raise `SpoolBusy` when the owner of the file may be alive, whatever the lock says."""
    owner = _read_owner(path, header)
    if owner is None:
        return
    here = Owner.this_process(header.file[1])
    if reason := why_in_use(owner, here=here, seconds_silent=_seconds_silent(path)):
        kind = SpoolBusy if owner.host == here.host else SpoolElsewhere
        raise kind(f"{path} is {reason}")


def _read_owner(path: Path, header: Header) -> Owner | None:
    """The owner in the file itself: SQLite must not touch the WAL of a live process."""
    if header.format < 2:
        return None
    try:
        with closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
        ) as connection:
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.text_factory = text_of
            check_schema(path, connection, header.format)
            query = "SELECT value FROM meta WHERE name = 'owner'"
            found = connection.execute(query).fetchone()
    except SpoolUntrusted:
        raise
    except (sqlite3.Error, UnicodeDecodeError, SpoolError):
        return None  # damaged, or gone: opening it will report that
    return Owner.from_text(found[0]) if found else None


def _seconds_silent(path: Path) -> float:
    """The least time since it was last written; a wrong clock doesn't make it older."""
    times = []
    for each in (path, *beside(path)):
        with suppress(OSError):
            times.append(os.stat(each).st_mtime)
    now = time.time()
    return min((abs(now - each) for each in times), default=0.0)
