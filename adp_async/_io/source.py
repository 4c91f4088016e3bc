"""Who started a run, and from which code: the tags that MLflow's own client records.

Nothing here fails: what cannot be found out has no tag.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from typing import Any, Final

#: Seconds that git has to answer; it takes some milliseconds.
_LONGEST: Final = 1.0
#: Where editors and Jupyter's server say which notebook the kernel is of.
_NOTEBOOKS: Final = ("__vsc_ipynb_file__", "IPYNB_FILE", "JPY_SESSION_NAME")


def source_tags() -> dict[str, str]:
    """``mlflow.user``, ``mlflow.source.name``, ``.type`` and ``.git.commit``.  Blocks, shortly."""
    script = _script()
    notebook = _notebook()
    found = {
        "mlflow.user": _user(),
        "mlflow.source.name": notebook or script or "<console>",
        "mlflow.source.type": "NOTEBOOK" if notebook else "LOCAL",
        "mlflow.source.git.commit": _commit(_folder(script), os.getpid()) if script else "",
    }
    return {name: value for name, value in found.items() if value}


def _script() -> str:
    arguments: Any = getattr(sys, "argv", None)  # an embedded interpreter may have none
    return str(arguments[0]) if arguments else ""


def _notebook() -> str:
    """The file name of the notebook whose kernel this is; "" where that isn't known."""
    if "ipykernel" not in sys.modules:
        return ""
    names = getattr(sys.modules.get("__main__"), "__dict__", {})
    path = next((str(each[name]) for name in _NOTEBOOKS for each in (names, os.environ)
                 if name in each), "")  # fmt: skip
    return os.path.basename(path)


def _user() -> str:
    import getpass  # only here

    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # the system knows no name of this user
        return ""


def _folder(script: str) -> str:
    try:
        return os.path.dirname(os.path.abspath(script)) if os.path.isfile(script) else script
    except (OSError, ValueError):  # there is no working folder; or no path has such characters
        return script


@cache
def _commit(folder: str, pid: int) -> str:
    """The commit that the git repository of *folder* is at, unless git ignores the folder."""
    if _git(folder, "check-ignore", "--quiet", ".") is not None:
        return ""
    return _git(folder, "rev-parse", "--verify", "HEAD") or ""


def _git(folder: str, *command: str) -> str | None:
    """What git says; None when it fails, or is not there."""
    import subprocess  # only here

    try:
        answer = subprocess.run(  # noqa: S603 - nothing of it comes from outside
            ("git", "-C", folder, *command),  # noqa: S607 - where it is, is the user's choice
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=_LONGEST,
            check=True,
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return answer.stdout.decode("ascii", "replace").strip()
