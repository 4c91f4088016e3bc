"""Where a collector listens, and the sockets that are bound there.

A Unix socket is its owner's alone from its first moment.  One that a dead collector left behind is
replaced; one that somebody listens at, and anything that is not a socket, is not touched.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import socket
import stat
import sys
import tempfile
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from attrs import define, field, frozen

from adp_async.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

#: The longest path of a Unix socket that every system takes.
LONGEST_PATH: Final = 103
#: Connections that wait to be accepted.
BACKLOG: Final = 1024
#: Seconds that binding waits for another process which binds in the same folder.
LONGEST_BINDING: Final = 2.0
_SOCKET: Final = "collector"
#: Python offers these on POSIX only.
_UNIX: Final[Any] = getattr(socket, "AF_UNIX", None)


@frozen
class Listen:
    """Where a collector listens: the *path* of a Unix socket, or *host* and *port*."""

    path: str = ""
    host: str = ""
    port: int = 0

    @classmethod
    def of(cls, given: str | os.PathLike[str] | Listen | None) -> Listen:
        """What a user has written: a path, ``host`` or ``host:port``; None: a new socket.

        Where there are no Unix sockets, as on Windows, that is a port for this machine only.

        >>> Listen.of("0.0.0.0:8443")
        Listen(path='', host='0.0.0.0', port=8443)
        """
        if isinstance(given, Listen):
            return given
        if given is None:
            return cls() if _UNIX else cls(host="127.0.0.1")
        plain = os.fspath(given)
        if os.sep in plain or not isinstance(given, str):
            return cls(path=_socket_path(plain))
        host, port = host_and_port(plain, "listen")
        return cls(host=host, port=port)

    @property
    def is_socket(self) -> bool:
        return not self.host

    def __str__(self) -> str:
        if self.is_socket:
            return self.path or "a new socket"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _socket_path(given: str) -> str:
    if not _UNIX:
        message = (
            f"listen: {given!r:.200} would be a Unix socket, which this system does not "
            "have; name a host, such as 127.0.0.1"
        )
        raise ConfigurationError(message)
    path = os.path.abspath(os.path.expanduser(given))
    # (Linux would take what is before a NUL as the path.)
    if len(os.fsencode(path)) > LONGEST_PATH or "\0" in path:
        rule = f"a socket's path has at most {LONGEST_PATH} bytes, and no NUL"
        message = f"listen: {rule}: {given!r:.200}"
        raise ConfigurationError(message)
    return path


def host_and_port(text: str, what: str) -> tuple[str, int]:
    """``host``, ``host:port`` or ``[ipv6]:port``; `ConfigurationError` that names *what* it is."""
    host, port = text, ""
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        port = port.removeprefix(":")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    if not host or (port and not (port.isdecimal() and int(port) < 2**16)):
        message = (
            f"{what}: {text!r:.100} is not a host, such as 0.0.0.0, a host with a port, such as "
            "0.0.0.0:8443, or the path of a socket"
        )
        raise ConfigurationError(message)
    return host, int(port or 0)


@define(eq=False)
class Listening:
    """A bound *socket* that listens, and what of it is on disk: a *path*, a *folder* of its own."""

    socket: socket.socket
    path: str = ""
    folder: str | None = None
    _inode: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        if self.path:
            self._inode = os.stat(self.path).st_ino

    @property
    def port(self) -> int:
        return 0 if self.path else int(self.socket.getsockname()[1])

    def remove(self) -> None:
        """Remove what is on disk.  While it still listens, so that nobody takes its place before.

        Whatever has come to its path since is another's, and stays.
        """
        if self.path:
            with suppress(FileNotFoundError):
                if os.stat(self.path).st_ino == self._inode:
                    os.unlink(self.path)
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


async def listen_at(listen: Listen) -> Listening:
    """Bind there and listen.  OSError when that is not possible."""
    if not listen.is_socket:
        return Listening(_at_port(listen.host, listen.port))
    if listen.path:
        folder = Path(listen.path).parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        async with _alone_in(folder):
            _remove_dead(listen.path)
            return Listening(_at_path(listen.path), listen.path)
    own = _own_folder()
    path = os.path.join(own, _SOCKET)
    try:
        return Listening(_at_path(path), path, own)
    except BaseException:
        shutil.rmtree(own, ignore_errors=True)
        raise


def _at_path(path: str) -> socket.socket:
    listening = socket.socket(_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(path)
        # Before it listens nobody can connect.  A umask would be that of all threads.
        os.chmod(path, 0o600)
        listening.listen(BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening


def _at_port(host: str, port: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening


def _own_folder() -> str:
    """A new folder, 0700, in which a socket's path is not too long."""
    folder = tempfile.mkdtemp(prefix="adp-async-")
    if len(os.fsencode(os.path.join(folder, _SOCKET))) <= LONGEST_PATH:
        return folder
    os.rmdir(folder)  # TMPDIR is a deep one, as schedulers and build tools make them
    return tempfile.mkdtemp(prefix="adp-async-", dir="/tmp")


@asynccontextmanager
async def _alone_in(folder: Path) -> AsyncIterator[None]:
    """While no other process binds in *folder*: two that find a dead socket don't both replace it.

    Where a file system has no locks, it is not checked.
    """
    if sys.platform == "win32":  # pragma: no cover - no Unix sockets
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            async with asyncio.timeout(LONGEST_BINDING):
                while True:
                    try:
                        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                    except BlockingIOError:
                        await asyncio.sleep(0.02)
        except TimeoutError:
            raise BlockingIOError(
                errno.EAGAIN, "another process holds a lock on its folder"
            ) from None
        except OSError as error:
            if error.errno not in (errno.EBADF, errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):
                raise
        yield
    finally:
        os.close(descriptor)


def _remove_dead(path: str) -> None:
    """Remove a socket that nobody listens at; OSError when somebody does, or it is something else.

    Connecting to a file of another kind is refused as well, and it is not ours to remove.
    """
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise FileExistsError(errno.EEXIST, "it is not a socket")
    with socket.socket(_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # that of a busy one has no room
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            Path(path).unlink(missing_ok=True)
            return
        except BlockingIOError:
            pass
    raise FileExistsError(errno.EEXIST, "another collector listens there")
