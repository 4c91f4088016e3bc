"""The folders that spools may be in where the user names none.

A worker of a cluster's engine often has a home that it cannot write to, or none.  The engine gives
it folders of the node's disk, and the system one for temporary files.
"""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adp_async._io.spool_file import SpoolError, SpoolUntrusted, default_spool_folder, user_id

if TYPE_CHECKING:
    from collections.abc import Sequence

#: What engines call the folders of a node that are for their workers: of Spark, of YARN, of Ray,
#: of Slurm and of Dask.  Some name several, between commas.
VARIABLES: Final = (
    "SPARK_LOCAL_DIRS",
    "LOCAL_DIRS",
    "RAY_TMPDIR",
    "SLURM_TMPDIR",
    "DASK_TEMPORARY_DIRECTORY",
)


def spool_places() -> list[Path]:
    """Where a spool may be, the best place first: the user's state folder, if there is one.

    Then a folder of this user's in each of the engine's local folders that exist, and in the one
    for temporary files.  Raises `SpoolError` when there is none of these.
    """
    found, without_home = [], None
    try:
        found.append(default_spool_folder())
    except SpoolError as error:
        without_home = error
    found += [folder / _own_name() for folder in _shared_folders()]
    if not found and without_home is not None:
        raise without_home
    return list(dict.fromkeys(found))


def _shared_folders() -> list[Path]:
    named = [each for name in VARIABLES for each in os.environ.get(name, "").split(",")]
    folders = [Path(each.strip()) for each in named if each.strip()]
    folders = [each for each in folders if each.is_absolute() and each.is_dir()]
    with suppress(FileNotFoundError):  # no folder of the system's can be written
        folders.append(Path(tempfile.gettempdir()))
    return folders


def _own_name() -> str:
    user = user_id()
    return "adp_async-spool" if user is None else f"adp_async-spool-{user}"


def _is_shared(folder: Path) -> bool:
    """Whether others may have made *folder* before us, since its name is no secret."""
    return folder.name == _own_name()


def prepare(folder: Path) -> None:
    """Make *folder*, if it is one of those within a folder that many share, for this user alone.

    Raises `SpoolUntrusted` for what another user has put there, a link of ours included, and
    `SpoolError` where it cannot be made.
    """
    if not _is_shared(folder):
        return
    try:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        facts = os.lstat(folder)
    except OSError as error:
        raise SpoolError(f"a spool cannot be created in {folder}: {error.strerror}") from error
    if not _is_own(facts):
        message = f"the spool folder {folder} was not made by this user, so it is not used"
        raise SpoolUntrusted(message)


def why_not_first(place: Path, problems: Sequence[SpoolError]) -> str:
    """Why *place* is not the user's state folder; "" if it is."""
    if problems or not _is_shared(place):
        return str(problems[0]) if problems else ""
    return "this user has no home folder"


def may_search(folder: Path) -> bool:
    """Whether spools of this user may be in *folder*, a place of `spool_places`."""
    if not _is_shared(folder):
        return folder.is_dir()
    try:
        return _is_own(os.lstat(folder))
    except OSError:
        return False


def _is_own(facts: os.stat_result) -> bool:
    """A real folder of this user, and nobody else's to write to."""
    if not stat.S_ISDIR(facts.st_mode):
        return False
    user = user_id()
    return user is None or (facts.st_uid == user and not facts.st_mode & 0o022)
