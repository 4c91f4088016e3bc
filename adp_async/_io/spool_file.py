"""The file of a spool: the folder it is in, its name and its room, and what may be wrong with it.

One SQLite file for a process.  It belongs to the process that holds SQLite's exclusive lock on it,
which ends with the process, however that ends.  Some network file systems grant that lock to
everybody, so the file names its owner as well; see `owner`.
"""

from __future__ import annotations

import os
import secrets
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeAlias

from attrs import frozen

from adp_async.errors import AdpError

#: Device and inode.
FileId: TypeAlias = "tuple[int, int]"

SUFFIX: Final = ".spool"
#: How much of a disk stays free for tokens and outcomes of the records that are on it already: the
#: size of the largest batch, or this part of a very small disk.
_RESERVED_BYTES: Final = 2**20
_RESERVED_PART: Final = 8
_BESIDE: Final = ("-wal", "-shm", "-journal")
#: Windows' number for a file that another process has open.
_SHARING_VIOLATION: Final = 32


class SpoolError(AdpError):
    """The spool can't be written or read: full disk, no permission, a damaged file."""


class SpoolFull(SpoolError):
    """The disk is full: the spool can be read, but not written."""


class SpoolLimit(SpoolError):
    """The spool has reached its limit, and accepts no more records."""


class SpoolReserve(SpoolLimit):
    """The rest of the disk is reserved for tokens and outcomes of the records on it."""


class SpoolUnreadable(SpoolError):
    """The next records of a run can't be read, up to the sequence number *until*."""

    def __init__(self, message: str, until: int) -> None:
        self.until = until
        super().__init__(message)


class SpoolBusy(SpoolError):
    """Another process, or session, has the spool open."""


class SpoolForeign(SpoolError):
    """Not a spool file, or a truncated one."""


class SpoolElsewhere(SpoolBusy):
    """A process of another machine may have it open."""


class SpoolUntrusted(SpoolForeign):
    """It belongs to another user, or isn't what `lay_out` makes: it is not even opened."""


class SpoolNewer(SpoolError):
    """Written by a newer version of this library."""


@frozen
class Identity:
    """Whose records these are: a spool is delivered where it came from, and nowhere else."""

    endpoint: str
    platform_id: str
    workspace: str

    def is_same_place(self, other: Identity) -> bool:
        """Whether it is the same workspace, by whatever address."""
        return (self.platform_id, self.workspace) == (other.platform_id, other.workspace)


def default_spool_folder() -> Path:
    """The user's state folder, as each system has it.  `SpoolError` when the user has no home."""
    import platformdirs

    is_blank = not (os.environ.get("HOME", "~").strip() or os.environ.get("XDG_STATE_HOME"))
    with suppress(RuntimeError):  # raised by some versions without a home
        folder = Path(platformdirs.user_state_dir("adp_async", appauthor=False))
        if folder.is_absolute() and not is_blank:
            return folder / "spool"
    message = (
        "this user has no home folder for a spool: set HOME, or name a folder with "
        "spool= or ADP_ASYNC_SPOOL"
    )
    raise SpoolError(message)


def new_name() -> str:
    """A name with time and process, which sorts by time."""
    now = time.time()
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now))
    micros = int(now % 1 * 1e6)
    return f"{stamp}-{micros:06}-{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}"


def find_spools(folder: Path) -> list[Path]:
    """The spools in *folder*, oldest first."""
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == SUFFIX)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SpoolError(f"the spool folder {folder} cannot be read: {error.strerror}") from error


def user_id() -> int | None:
    """This process's user; None where users have no numbers."""
    return os.geteuid() if hasattr(os, "geteuid") else None


def check_folder(folder: Path, *, to_create: bool = False) -> None:
    """Raise `SpoolUntrusted` unless spools can be kept in *folder*.

    It belongs to this user, or to root as ``/tmp`` does.  *to_create*: and nobody else can
    replace files there.  `SpoolError` when it can't be read.
    """
    try:
        facts, user = os.stat(folder), user_id()
    except OSError as error:
        raise SpoolError(f"the spool folder {folder} cannot be read: {error.strerror}") from error
    if user is None:
        return
    if facts.st_uid not in (user, 0):
        message = f"the spool folder {folder} belongs to another user (uid {facts.st_uid})"
        raise SpoolUntrusted(f"{message}, so it is not used; name a folder of your own")
    is_open = facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not facts.st_mode & stat.S_ISVTX
    if to_create and is_open:
        message = (
            f"others can write to the spool folder {folder}, so it is not used: chmod go-w it, or "
            "name a new folder inside it, which is made for its owner alone"
        )
        raise SpoolUntrusted(message)


def file_id(facts: os.stat_result) -> FileId:
    return facts.st_dev, facts.st_ino


def beside(path: Path) -> list[Path]:
    return [Path(f"{path}{suffix}") for suffix in _BESIDE]


def is_still(path: Path, file: FileId) -> bool:
    """Whether *path* still names *file*: it was not removed or replaced."""
    try:
        return file_id(os.lstat(path)) == file
    except OSError:
        return False


def has_room(path: Path, size: int) -> bool:
    """Whether the disk of *path* has room for *size* bytes of records, and what must follow them.

    What follows are the tokens of their batches and their outcomes, without which a full disk could
    never be emptied, and the merge of the WAL into the file, which makes room and needs some.
    """
    if not hasattr(os, "statvfs"):
        return True
    try:
        disk = os.statvfs(path)
        wal = os.stat(f"{path}-wal").st_size
    except OSError:
        return True  # writing will report what is wrong
    if not disk.f_blocks:
        return True  # some file systems do not know how large they are
    blocks = disk.f_bavail if user_id() else disk.f_bfree
    reserved = min(_RESERVED_BYTES, disk.f_blocks * disk.f_frsize // _RESERVED_PART)
    has_enough: bool = blocks * disk.f_frsize >= wal + 3 * size + reserved
    return has_enough


def is_open_elsewhere(error: OSError) -> bool:
    """Whether a file cannot be removed since another process has it open, as on Windows."""
    return getattr(error, "winerror", None) == _SHARING_VIOLATION


def remove(path: Path) -> None:
    """Remove a spool that is not open, with SQLite's files beside it."""
    for each in (path, *beside(path)):
        each.unlink(missing_ok=True)
