"""Files with credentials: their paths and tokens, and a signer that follows their changes."""

from __future__ import annotations

import logging
import os
import re
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from adp_async._sansio.rules import shown
from adp_async.errors import ConfigurationError, misconfigured

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("adp_async")

FilePath: TypeAlias = "str | os.PathLike[str]"

# A stat of two files costs 3 us, but a network drive may take its time.
_SECONDS_BETWEEN_LOOKS: Final = 1.0

# What a header may hold: tokens are base64 and dots, and some services add other characters.
_HEADER_TEXT: Final = r"[\x21-\x7e]+"

#: Far larger than any config file, key or token.
_LARGEST_FILE: Final = 2**20
_LONGEST_PATH: Final = 4096


def is_given(path: object) -> bool:
    return path is not None and not (isinstance(path, str) and not str.strip(path))


def text_of(name: str, value: object) -> str:
    """An argument that is text, without the blanks around it; "" when it isn't given."""
    if value is None:
        return ""
    if not isinstance(value, str):
        # Never show its content, which may be a key or a passphrase.
        problem = f"must be a str, not {type(value).__name__:.40}"
        raise misconfigured(name, problem, looked=f"the argument {name}", fix=f"Correct {name}=.")
    return str.__str__(value).strip()


def path_of(value: Any, setting: str, *, looked: str) -> Path:
    """A path as people write it; `ConfigurationError` for what cannot be one."""

    def wrong(problem: str, fix: str = "") -> ConfigurationError:
        return misconfigured(setting, problem, looked=looked, fix=fix or f"Correct {setting}.")

    try:
        written: object = os.fspath(value)
    except Exception:  # not a path, or one whose own method fails
        written = None
    if not isinstance(written, str):
        raise wrong(f"must be a path, not {shown(value)}")
    text = str.__str__(written).strip()
    if "-----BEGIN" in text:
        raise wrong("must be a path, not the key itself", "Pass the key as key_content=.")
    if "\0" in text or not _is_encodable(text):
        raise wrong(f"{shown(text)} cannot be a path")
    if len(text) > _LONGEST_PATH:
        raise wrong(f"must have at most {_LONGEST_PATH:,} characters, not {len(text):,}")
    try:
        return Path(text).expanduser()
    except RuntimeError:  # no HOME, and a user that the system doesn't know
        fix = "Set HOME, or give the whole path."
        raise wrong(f"{shown(text)} needs a home directory, and this user has none", fix) from None


def _is_encodable(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeError:
        return False
    return True


def shown_path(path: Path) -> str:
    text = str(path)
    text = text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
    return text if len(text) <= 300 else f"...{text[-297:]}"


def read_token(file: Path, setting: str, where: str) -> str:
    looked = f"{shown_path(file)}, named by {where}"
    return token_of(read_file(file, setting, looked).decode("utf-8", "replace"), setting, looked)


def token_of(text: str, setting: str, looked: str) -> str:
    """The token in *text*, which goes into a header."""
    token = text.strip()
    if not re.fullmatch(_HEADER_TEXT, token):
        fix = "Get a new one, with `oci session authenticate`."
        problem = "holds no token" if not token.split() else "holds more than a token"
        if not token.isascii():
            problem = "holds no token, but text that is not ASCII"
        raise misconfigured(setting, problem, looked=looked, fix=fix)
    return token


def read_file(file: Path, setting: str, looked: str, *, if_missing: str = "") -> bytes:
    """A regular file of reasonable size: a pipe or a device may never end.

    *if_missing* is what to do when there is none.
    """

    def unusable(problem: str) -> ConfigurationError:
        fix = f"Correct {setting}, or make the file readable for this user."
        return misconfigured(setting, f"cannot be read: {problem}", looked=looked, fix=fix)

    try:
        found = file.stat()
        if not stat.S_ISREG(found.st_mode):
            is_folder = stat.S_ISDIR(found.st_mode)
            raise unusable("Is a directory" if is_folder else "not a regular file")
        with file.open("rb") as opened:
            content = opened.read(_LARGEST_FILE + 1)
    except OSError as error:
        if if_missing and isinstance(error, FileNotFoundError):
            raise misconfigured(setting, "does not exist", looked=looked, fix=if_missing) from None
        raise unusable(error.strerror or type(error).__name__) from None
    if len(content) > _LARGEST_FILE:
        raise unusable(f"larger than {_LARGEST_FILE:,} bytes")
    return content


class FileSigner:
    """A signer made from files, and made again when one of them changes.

    A renewal that fails half way (the files are written one after the other) keeps the old
    credentials and is tried again at the next look.
    """

    def __init__(
        self,
        load: Callable[[], Any],
        files: tuple[Path, ...],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load
        self._files = files
        self._clock = clock
        self._warned = False
        self._look_again = 0.0
        self._stamps = self._stamps_now()
        self._signer = load()
        #: How often the credentials have changed.
        self.renewals = 0

    def __call__(self, request: Any, **options: Any) -> None:
        now = self._clock()
        if now >= self._look_again:
            self._look_again = now + _SECONDS_BETWEEN_LOOKS
            if self._stamps_now() != self._stamps:
                self._renew_or_keep()
        self._signer(request, **options)

    def refresh_security_token(self) -> bool:
        """Read the files again; True if they hold anything new.  Raises when they are unusable.

        Their times are ignored: a 401 is reason enough, and some file systems count in seconds.
        """
        stamps, signer = self._stamps_now(), self._load()
        if stamps == self._stamps and signer.key_id == self._signer.key_id:
            return False
        self._signer, self._stamps = signer, stamps
        self.renewals += 1
        self._warned = False
        return True

    def _renew_or_keep(self) -> None:
        try:
            self.refresh_security_token()
            logger.info("the session token changed on disk and is used from now on")
        except ConfigurationError as error:
            if not self._warned:
                logger.warning("the session token changed on disk, but cannot be used: %s", error)
            self._warned = True

    def _stamps_now(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(file) for file in self._files]


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:  # missing while it is being replaced: that is a change, too
        return None
    return (found.st_mtime_ns, found.st_size, found.st_ino)
