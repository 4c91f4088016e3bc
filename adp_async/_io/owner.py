"""The owner of a spool: which process has it, and whether it is alive when no lock can tell.

A file system whose locks don't lock (NFS mounted with ``nolock``, some FUSE, Lustre with
``localflock``) lets a second process take the spool of a live one, and send all of it twice.  So
the file names its owner.  On the same machine, a live process keeps its spool, whatever the lock
says.  A process of another machine cannot be looked up: its spool is taken once it was not written
to for ten minutes and the lock is free.  (Two processes that find a dead one's spool in the same
moment, without locks, may still both take it.)
"""

from __future__ import annotations

import os
import socket
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Self

import msgspec
from attrs import asdict, frozen

#: A spool of another machine counts as abandoned when it was not written to for so long.
SECONDS_OF_SILENCE: Final = 600.0
_PROC: Final = Path("/proc")
_INODES: Final = 2**63


@frozen
class Owner:
    """A process, identified among all machines, and the file it has.

    *host* and *boot*: the machine, and its start; *boot* is empty where the system has no such
    id.  *pid* and *started*: the process; *started* is empty where that isn't known.  *inode*: of
    the file, so that a copy of it has no owner; its lower bits, as Windows has some of 128.
    """

    host: str
    boot: str
    pid: int
    started: str
    inode: int

    @classmethod
    def this_process(cls, inode: int) -> Self:
        """This process, having the file *inode*."""
        pid = os.getpid()
        return cls(socket.gethostname(), _boot(), pid, started_at(pid) or "", inode % _INODES)

    def as_text(self) -> str:
        return msgspec.json.encode(asdict(self)).decode()

    @classmethod
    def from_text(cls, text: object) -> Self | None:
        """What `as_text` wrote; None for anything else."""
        try:
            found: dict[str, Any] = msgspec.json.decode(str(text).encode(), type=dict[str, Any])
            owner = cls(**found)
        except (ValueError, TypeError, RecursionError):
            return None
        kinds = {"host": str, "boot": str, "pid": int, "started": str, "inode": int}
        fits = all(type(getattr(owner, name)) is kind for name, kind in kinds.items())
        return owner if fits and 0 < owner.pid < 2**31 else None


def why_in_use(owner: Owner, *, here: Owner, seconds_silent: float) -> str:
    """Why *owner* may still have its file; empty when it can't, or only the lock can tell.

    *here* is this process with the file as found; *seconds_silent*: since the last write.
    """
    if owner.inode != here.inode or owner == here:  # this process knows what it has open
        return ""
    if owner.host == here.host:
        is_another_boot = owner.boot and here.boot and owner.boot != here.boot
        return "" if is_another_boot or not _lives(owner) else f"in use by pid {owner.pid}"
    if owner.boot and owner.boot == here.boot:
        return ""  # another container of this machine: one kernel keeps the locks of both
    if seconds_silent < SECONDS_OF_SILENCE:
        return (
            f"in use by pid {owner.pid} of host {owner.host!r:.80}, or was until "
            f"{seconds_silent:.0f} s ago; it can be taken {SECONDS_OF_SILENCE / 60:.0f} min after "
            "the last write"
        )
    return ""


def _lives(owner: Owner) -> bool:
    started = started_at(owner.pid)
    if started is None:
        return False
    return not (started and owner.started) or started == owner.started


def started_at(pid: int) -> str | None:
    """When the process *pid* started, in the system's own terms; None when it is not running.

    Empty when it is running, and the system doesn't say since when.
    """
    if not (_PROC / "self" / "stat").exists():
        return "" if _takes_signals(pid) else None
    try:
        stat = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # After the name, which may hold anything; 'Z' and 'X' are processes that have ended.
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else fields[18]


def _takes_signals(pid: int) -> bool:
    if sys.platform == "win32":
        return False  # there a signal of any number would end it, and locks hold
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@lru_cache(maxsize=1)
def _boot() -> str:
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
