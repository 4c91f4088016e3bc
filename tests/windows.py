"""Makes an interpreter look like one on Windows, as far as our code can tell: run it first.

What only POSIX has is gone from `os`, `signal` and `socket`, its modules cannot be imported,
`sys.platform` says win32, git is not installed, and a signal to a process is an error: there it
would end that process, or press Ctrl-C in its console, whatever its number.  Other packages, which
have code of their own for Windows, are imported before.
"""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path

GONE = {
    os: """fork forkpty register_at_fork getuid geteuid getgid getegid getgroups getpgid getpgrp
        setsid killpg chown lchown fchown chroot statvfs fstatvfs uname mkfifo mknod nice wait wait3
        wait4 waitid posix_spawn posix_spawnp pread pwrite readv writev sendfile openpty fchmod
        getloadavg sync getpriority setpriority O_NOFOLLOW O_NONBLOCK O_CLOEXEC
        O_DIRECTORY WNOHANG sysconf ttyname""",
    signal: """SIGKILL SIGHUP SIGQUIT SIGUSR1 SIGUSR2 SIGALRM SIGCHLD SIGPIPE SIGSTOP SIGCONT
        SIGTSTP alarm pause setitimer getitimer pthread_kill pthread_sigmask sigwait sigpending
        siginterrupt""",
    socket: "SO_REUSEPORT MSG_NOSIGNAL MSG_DONTWAIT send_fds recv_fds",
}
MODULES = ["fcntl", "pwd", "grp", "resource", "termios", "tty", "pty", "readline", "syslog"]
OTHERS = """aiohttp anyio attrs cattrs cryptography msgspec multiprocessing oci.signer oci.regions
    oci.auth.signers platformdirs rich.console rich.progress rich.prompt shutil sqlite3 ssl
    subprocess tempfile typer uuid yarl concurrent.futures getpass uvicorn zoneinfo"""


def become_windows() -> None:
    """From here on, for the whole process; on a real Windows nothing is to be done."""
    if sys.platform == "win32":
        return
    for name in OTHERS.split():
        __import__(name)
    asyncio.new_event_loop().close()
    platform.uname()  # is remembered, and so is the next
    sysconfig.get_config_vars()
    for module, names in GONE.items():
        for name in names.split():
            vars(module).pop(name, None)
    for name in MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    os.kill = _kill
    shutil.disk_usage = _disk_usage  # type: ignore[assignment]
    vars(shutil)["_use_fd_functions"] = False
    subprocess.run = _not_found  # type: ignore[assignment]
    sys.platform = "win32"
    import adp_async._io.owner as owner

    owner._PROC = Path("nowhere")  # type: ignore[misc]


def _kill(pid: int, number: int) -> None:
    message = f"on Windows os.kill({pid}, {number}) would end that process, or press its Ctrl-C"
    raise AssertionError(message)


def _not_found(*_: object, **__: object) -> None:
    raise FileNotFoundError(2, "The system cannot find the file specified")


def _disk_usage(_path: object) -> shutil._ntuple_diskusage:
    """Of the standard library's own for Windows."""
    return shutil._ntuple_diskusage(2**40, 0, 2**40)
