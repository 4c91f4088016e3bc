"""Who signs: one frozen class for each way OCI knows to prove who is calling.

A class says *how* to sign and its ``load`` builds the signer of ``oci`` that does, which reads
files, may ask a metadata service and imports ``oci`` (over a second).  Who calls it, and when, is
the business of `adp_async._io.authenticator`.
"""

from __future__ import annotations

import inspect
import logging
import os
import re
import socket
import ssl
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn, Protocol, TypeAlias, TypeVar

from attrs import evolve, field, frozen

from adp_async._sansio.rules import shown
from adp_async.errors import ConfigurationError

if TYPE_CHECKING:
    import configparser
    from collections.abc import Callable, Iterator, Mapping
    from configparser import ConfigParser


__all__ = [
    "ApiKey",
    "Auth",
    "CustomSigner",
    "DelegationToken",
    "InstancePrincipal",
    "ResourcePrincipal",
    "SessionToken",
    "Signer",
    "WorkloadIdentity",
]

logger = logging.getLogger("adp_async")

T = TypeVar("T")
FilePath: TypeAlias = "str | os.PathLike[str]"

DEFAULT_CONFIG_FILE: Final = "~/.oci/config"
DEFAULT_PROFILE: Final = "DEFAULT"

# A stat of two files costs 3 us, but a network drive may take its time.
_SECONDS_BETWEEN_LOOKS: Final = 1.0

# Patterns are compiled when first asked for: an import waits for none of them.
OCID: Final = r"(?a)(?=ocid)[\w-]+[.:](?:[\w-]*[.:]){3,}[\w-]+"
_FINGERPRINT: Final = r"(?:[0-9a-f]{2}:){15}[0-9a-f]{2}"
_MODE: Final = r"[A-Za-z_ -]{1,40}"
# Of a header: tokens are base64 and dots, some services add others.
_HEADER_TEXT: Final = r"[\x21-\x7e]+"

#: Lines of a profile, and what OCI's command line reads in place of them.
_VARIABLES: Final = {
    "tenancy": "OCI_CLI_TENANCY",
    "user": "OCI_CLI_USER",
    "fingerprint": "OCI_CLI_FINGERPRINT",
    "key_content": "OCI_CLI_KEY_CONTENT",
    "key_file": "OCI_CLI_KEY_FILE",
    "pass_phrase": "OCI_CLI_PASSPHRASE",
}

#: No config file, key or token comes near it.
_LARGEST_FILE: Final = 2**20
_LONGEST_PATH: Final = 4096


class Signer(Protocol):
    """What signs: it reads a request's method, url, path_url, headers and body, writes headers.

    A signer that has ``refresh_security_token()`` is told to renew itself after a 401.  For an
    artifact it is called with ``enforce_content_headers=False``, if it takes that: the body is a
    stream, and is not signed.
    """

    def __call__(self, request: Any, /) -> object: ...


def misconfigured(setting: str, problem: str, *, looked: str, fix: str) -> ConfigurationError:
    """The error that names a setting, what is wrong, where it was looked for, and the fix."""
    return ConfigurationError(f"{setting}: {problem} (looked in {looked}). {fix}")


def reason_of(error: BaseException) -> str:
    """What may be shown of a foreign *error*: its type, and what the system says.

    Its own words may hold a URL with a password, a header or a token.

    >>> reason_of(ConnectionRefusedError(111, "for http://user:secret@example.com"))
    'Connection refused'
    >>> reason_of(ValueError("secret"))
    'ValueError'
    """
    number = getattr(error, "errno", None)
    if isinstance(error, OSError) and isinstance(number, int):
        if isinstance(error, ssl.SSLError):
            return str(getattr(error, "reason", None) or type(error).__name__)
        if isinstance(error, socket.gaierror):
            return error.strerror or type(error).__name__
        if number > 0:
            return os.strerror(number)
    return type(error).__name__


def is_ocid(value: str) -> bool:
    """Whether *value* has the shape of an OCID.

    >>> is_ocid("ocid1.tenancy.oc1..aaaa"), is_ocid("my-tenancy")
    (True, False)
    """
    return re.fullmatch(OCID, value) is not None


def _wait_for_oci() -> None:
    """Import all of ``oci`` before a part of it.

    Another thread may be half-way through importing it, and who imports a part doesn't wait.
    """
    import oci  # noqa: F401


class Auth:
    """Base of the classes that say how to sign."""

    #: The name of this mode in ``OCI_CLI_AUTH`` and in ``Session(auth=...)``.
    mode: ClassVar[str] = ""
    #: Whether the signer only computes: it asks nobody, and nothing is left of one signature at
    #: the next.  Then several threads may sign at once.
    only_computes: ClassVar[bool] = False

    def load(self) -> Signer:
        """The signer.  Blocks; raises `ConfigurationError`."""
        raise NotImplementedError

    def is_quick(self, signer: Signer) -> bool:
        """Whether a signature only computes, and for less than a millisecond."""
        return False

    def region(self, signer: Signer) -> str | None:
        """The region these credentials belong to, if they know it.  May read the config file."""
        region = getattr(signer, "region", None)
        return region if isinstance(region, str) else None

    def place_of_region(self) -> str:
        """Where that region is written, for a message."""
        return "the credentials"


# The modes that live in OCI's config file -------------------------------------------------------


@frozen
class Profile:
    """One profile of an OCI config file, and what was given by argument in its place."""

    where: str
    values: Mapping[str, str] = field(repr=False)
    #: What stands in place of the file's lines, and where that was found.
    given: Mapping[str, tuple[str, str]] = field(factory=dict, repr=False)
    #: The lines of DEFAULT, which are among the values of every profile.
    inherited: Mapping[str, str] = field(factory=dict, repr=False)

    def get(self, key: str) -> str:
        if key in self.given:
            return self.given[key][0].strip()
        return self.values.get(key, "").strip()

    def looked(self, key: str) -> str:
        return self.given[key][1] if key in self.given else self.where

    def required(self, key: str, fix: str) -> str:
        value = self.get(key)
        if not value:
            raise misconfigured(key, "is missing", looked=self.where, fix=fix)
        return value

    def ocid(self, key: str) -> str:
        shape = f"ocid1.{key}.oc1..<unique id>"
        value = self.required(key, f"Add a line `{key}={shape}`.")
        if len(value) > 255 or not is_ocid(value):
            problem = f"{shown(value)} is not an OCID"
            raise misconfigured(
                key, problem, looked=self.looked(key), fix=f"It looks like {shape}."
            )
        return value

    def path(self, key: str, fix: str) -> Path:
        return _path_of(self.required(key, fix), key, looked=self.looked(key))

    def has_another_token(self) -> bool:
        """Whether the section is one of `oci session authenticate`, with the user of DEFAULT."""
        keys = ("security_token_file", "user")
        token, user = (self.values.get(key) not in (None, self.inherited.get(key)) for key in keys)
        return token and not user and "user" not in self.given


def read_profile(config_file: FilePath | None, profile: str | None) -> Profile:
    """The *profile* of *config_file*; what is None comes from the environment or OCI's default."""
    file, source = _config_file(config_file)
    name, looked = _profile_name(profile)
    parser = _parsed(file, f"{_shown_path(file)}, {source}")
    if name not in parser or not parser[name]:
        names = [shown(each)[1:-1] for each in parser if parser[each]]
        known = ", ".join(names[:20]) or "none at all"
        fix = f"The file has: {known}. Set OCI_CLI_PROFILE or pass profile=."
        problem = f"{shown(name)} does not exist"
        raise misconfigured("profile", problem, looked=f"{_shown_path(file)}{looked}", fix=fix)
    where = f"profile {shown(name)} of {_shown_path(file)}"
    return Profile(where, dict(parser[name]), inherited=parser.defaults())


def _place_of(config_file: FilePath | None, profile: str | None) -> str:
    try:
        return read_profile(config_file, profile).where
    except ConfigurationError:  # gone since it was read, and the file isn't what is asked about
        return "OCI's config file"


def _config_file(given: FilePath | None) -> tuple[Path, str]:
    setting = "config_file"
    if _is_given(given):
        source = "the argument config_file"
        return _path_of(given, setting, looked=source), source
    # The second is the name that the command line of OCI knows.
    if variable := _first_set("OCI_CONFIG_FILE", "OCI_CLI_CONFIG_FILE"):
        source = f"the environment's {variable}"
        return _path_of(os.environ[variable], setting, looked=source), source
    source = "OCI's default place, as neither config_file nor OCI_CONFIG_FILE is given"
    return _path_of(DEFAULT_CONFIG_FILE, setting, looked=source), source


def _profile_name(given: str | None) -> tuple[str, str]:
    if name := _text("profile", given):
        return name, ""
    if variable := _first_set("OCI_CLI_PROFILE"):
        return os.environ[variable].strip(), f", as the environment's {variable} says"
    return DEFAULT_PROFILE, ""


def _first_set(*variables: str) -> str | None:
    """The first of the environment's *variables* that is neither empty nor blank."""
    return next((name for name in variables if os.environ.get(name, "").strip()), None)


def _is_given(path: object) -> bool:
    return path is not None and not (isinstance(path, str) and not str.strip(path))


def _text(name: str, value: object) -> str:
    """An argument that is text, without the blanks around it; "" when it isn't given."""
    if value is None:
        return ""
    if not isinstance(value, str):
        # Not its content: it may be a key or a passphrase.
        problem = f"must be a str, not {type(value).__name__:.40}"
        raise misconfigured(name, problem, looked=f"the argument {name}", fix=f"Correct {name}=.")
    return str.__str__(value).strip()


def _path_of(value: Any, setting: str, *, looked: str) -> Path:
    """A path as people write it; `ConfigurationError` for what can be none."""

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
        raise wrong(f"{shown(text)} needs a home directory, and there is none", fix) from None


def _is_encodable(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeError:
        return False
    return True


def _shown_path(path: Path) -> str:
    text = str(path)
    text = text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
    return text if len(text) <= 300 else f"...{text[-297:]}"


def _parsed(file: Path, looked: str) -> ConfigParser:
    import configparser

    try:
        content = _read(file, "config_file", looked)
    except ConfigurationError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            fix = "Run `oci setup config`, or set OCI_CONFIG_FILE to where the file is."
            raise misconfigured("config_file", "does not exist", looked=looked, fix=fix) from None
        raise
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(_decoded(content, looked))
    except configparser.Error as error:
        # The parser's own message quotes the line, which may hold a passphrase.
        fix = "It consists of [PROFILE] lines and key=value lines."
        raise misconfigured("config_file", _what_is_wrong(error), looked=looked, fix=fix) from None
    return parser


def _decoded(content: bytes, looked: str) -> str:
    try:
        if b"\0" not in content:
            text = content.decode("utf-8-sig")
            return text.replace("\r\n", "\n").replace("\r", "\n")
        problem = "is not UTF-8 text; it looks like UTF-16"
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        is_utf_16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        hint = "; it looks like UTF-16" if is_utf_16 else f" at line {line}"
        problem = f"is not UTF-8 text{hint}"
    raise misconfigured("config_file", problem, looked=looked, fix="Save it as UTF-8.")


def _what_is_wrong(error: configparser.Error) -> str:
    import configparser

    line = getattr(error, "lineno", None)
    if isinstance(error, configparser.DuplicateSectionError):
        why = "begins a profile that is there already"
    elif isinstance(error, configparser.DuplicateOptionError):
        why = "repeats a key of its profile"
    elif isinstance(error, configparser.MissingSectionHeaderError):
        why = "stands before the first [PROFILE] line"
    else:
        line = getattr(error, "errors", [(None,)])[0][0]
        why = "is not key=value"
    return f"is not a valid INI file: line {line} {why}"


@frozen
class ApiKey(Auth):
    """An API key, from a profile of OCI's config file or given outright.

    *config_file*: default ``OCI_CONFIG_FILE``, then ``OCI_CLI_CONFIG_FILE``, then
    ``~/.oci/config``.  *profile*: default ``OCI_CLI_PROFILE``, else ``DEFAULT``.  *passphrase*
    opens an encrypted key.  *key_content* is the key itself in PEM, in place of *key_file*.
    *tenancy*, *user*, *fingerprint* and *key_file* replace what the profile says; with all of
    them the config file isn't read.  Where neither *config_file* nor *profile* is given,
    ``OCI_CLI_USER``, ``_TENANCY``, ``_FINGERPRINT``, ``_KEY_CONTENT``, ``_KEY_FILE`` and
    ``_PASSPHRASE`` replace it as well, as for OCI's command line.
    """

    mode: ClassVar[str] = "api_key"
    only_computes: ClassVar[bool] = True

    config_file: FilePath | None = None
    profile: str | None = None
    passphrase: str | None = field(default=None, kw_only=True, repr=False)
    key_content: str | None = field(default=None, kw_only=True, repr=False)
    tenancy: str | None = field(default=None, kw_only=True)
    user: str | None = field(default=None, kw_only=True)
    fingerprint: str | None = field(default=None, kw_only=True)
    key_file: FilePath | None = field(default=None, kw_only=True)

    def load(self) -> Signer:
        profile = self._profile()
        tenancy, user = profile.ocid("tenancy"), self._user(profile)
        fingerprint = _fingerprint(profile)
        pem = profile.get("key_content").encode("ascii", "replace")
        setting, looked = "key_content", profile.looked("key_content")
        if not pem:
            setting, (pem, looked) = "key_file", _read_key_file(profile)
        # Blanks belong to a passphrase, if not to one in a file.
        passphrase = self.passphrase or profile.get("pass_phrase")
        load_private_key(pem, passphrase, looked=looked, setting=setting)
        if profile.has_another_token():
            logger.warning("%s", _another_token(profile))
        _wait_for_oci()
        from oci.signer import Signer as ApiKeySigner

        secret = passphrase and passphrase.encode()
        signer: Signer = ApiKeySigner(tenancy, user, fingerprint, None, secret, pem.strip())
        return signer

    def is_quick(self, signer: Any) -> bool:
        # 0.3 ms; the 2 ms of a key of 4096 bits are better spent in another thread.
        return bool(signer.private_key.key_size <= 2048)

    def region(self, signer: Signer) -> str | None:
        return self._profile().get("region") or None

    def place_of_region(self) -> str:
        return _place_of(self.config_file, self.profile)

    def doubts(self) -> str:
        """What looks like a mistake in the profile, though the service has to say, or ""."""
        profile = self._profile()
        return _another_token(profile) if profile.has_another_token() else ""

    def _profile(self) -> Profile:
        given = self._given()
        is_complete = {"tenancy", "user", "fingerprint"} <= given.keys()
        if is_complete and not given.keys().isdisjoint(("key_content", "key_file")):
            return Profile("the arguments", {}, given)
        return evolve(read_profile(self.config_file, self.profile), given=given)

    def _given(self) -> dict[str, tuple[str, str]]:
        """What replaces lines of the profile, and where it was found."""
        _text("passphrase", self.passphrase)  # only looked at: blanks may belong to it
        arguments = {
            "tenancy": _text("tenancy", self.tenancy),
            "user": _text("user", self.user),
            "fingerprint": _text("fingerprint", self.fingerprint),
            "key_content": _text("key_content", self.key_content),
            "key_file": self._key_file(),
        }
        given = {key: (text, f"the argument {key}") for key, text in arguments.items() if text}
        # Whoever names file or profile in the code means its lines.
        is_named = self.config_file is not None or self.profile is not None
        return given if is_named else _given_by_environment(given)

    def _key_file(self) -> str:
        if not _is_given(self.key_file):
            return ""
        return str(_path_of(self.key_file, "key_file", looked="the argument key_file"))

    def _user(self, profile: Profile) -> str:
        if not profile.get("user") and profile.get("security_token_file"):
            problem = "is missing, but the profile has a security_token_file"
            fix = "For a session token set OCI_CLI_AUTH=security_token or auth='security_token'."
            raise misconfigured("user", problem, looked=profile.where, fix=fix)
        return profile.ocid("user")


def _given_by_environment(given: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """With what the variables of OCI's command line give, as it replaces lines there as well."""
    found = dict(given)
    has_key = "key_content" in given or "key_file" in given
    for key, variable in _VARIABLES.items():
        if _first_set(variable) and key not in given and not (has_key and key.startswith("key_")):
            found[key] = (os.environ[variable], f"the environment's {variable}")
    return found


def _another_token(profile: Profile) -> str:
    return (
        f"{profile.where} has a security_token_file of its own, but the user of DEFAULT: if the "
        "service refuses the signature, use auth='security_token' or OCI_CLI_AUTH=security_token"
    )


@frozen
class SessionToken(Auth):
    """A session token of ``oci session authenticate``; re-read whenever its file changes.

    *config_file* and *profile* as for `ApiKey`; the profile names the ``security_token_file`` and
    the ``key_file``.  `oci session refresh` in another terminal is all it takes to go on.
    """

    mode: ClassVar[str] = "security_token"

    config_file: FilePath | None = None
    profile: str | None = None
    passphrase: str | None = field(default=None, kw_only=True, repr=False)

    def load(self) -> Signer:
        profile = read_profile(self.config_file, self.profile)
        fix = "Run `oci session authenticate`, or use auth='api_key'."
        token_file = profile.path("security_token_file", fix)
        key_file = profile.path("key_file", fix)
        _text("passphrase", self.passphrase)
        passphrase = self.passphrase or profile.get("pass_phrase")
        return _FileSigner(
            lambda: _session_signer(profile, token_file, passphrase), (token_file, key_file)
        )

    def region(self, signer: Signer) -> str | None:
        return read_profile(self.config_file, self.profile).get("region") or None

    def place_of_region(self) -> str:
        return _place_of(self.config_file, self.profile)


def _session_signer(profile: Profile, token_file: Path, passphrase: str | None) -> Any:
    token = _read_token(token_file, "security_token_file", profile.where)
    pem, looked = _read_key_file(profile)
    private_key = load_private_key(pem, passphrase, looked=looked)
    _wait_for_oci()
    from oci.auth.signers import SecurityTokenSigner

    return SecurityTokenSigner(token, private_key)


class _FileSigner:
    """A signer made from files, made anew when one of them changes.

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

        Their times aren't asked: a 401 is reason enough, and some file systems count in seconds.
        """
        stamps, signer = self._stamps_now(), self._load()
        if stamps == self._stamps and signer.api_key == self._signer.api_key:
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


def _fingerprint(profile: Profile) -> str:
    fix = "OCI's console shows it beside the API key: 16 pairs of hex digits, aa:bb:..."
    value = profile.required("fingerprint", fix).lower()
    if not re.fullmatch(_FINGERPRINT, value):
        problem = f"{shown(value)} is not a fingerprint"
        raise misconfigured("fingerprint", problem, looked=profile.looked("fingerprint"), fix=fix)
    return value


def _read_key_file(profile: Profile) -> tuple[bytes, str]:
    file = profile.path("key_file", "Add a line `key_file=<path of the private key>`.")
    looked = f"{_shown_path(file)}, named by {profile.looked('key_file')}"
    return _read(file, "key_file", looked), looked


def _read_token(file: Path, setting: str, where: str) -> str:
    looked = f"{_shown_path(file)}, named by {where}"
    return _token(_read(file, setting, looked).decode("utf-8", "replace"), setting, looked)


def _token(text: str, setting: str, looked: str) -> str:
    """The token in *text*, which goes into a header."""
    token = text.strip()
    if not re.fullmatch(_HEADER_TEXT, token):
        fix = "Get a new one, with `oci session authenticate`."
        problem = "holds no token" if not token.split() else "holds more than a token"
        if not token.isascii():
            problem = "holds no token, but text that is not ASCII"
        raise misconfigured(setting, problem, looked=looked, fix=fix)
    return token


def _read(file: Path, setting: str, looked: str) -> bytes:
    """A regular file of reasonable size: a pipe or a device may never end."""

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
        raise unusable(error.strerror or type(error).__name__) from error
    if len(content) > _LARGEST_FILE:
        raise unusable(f"larger than {_LARGEST_FILE:,} bytes")
    return content


def load_private_key(
    pem: bytes, passphrase: str | None, *, looked: str, setting: str = "key_file"
) -> Any:
    """The RSA key in *pem*, or `ConfigurationError` with what is wrong with it."""
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    _wait_for_oci()
    from oci.signer import load_private_key as load

    def wrong(problem: str, fix: str) -> ConfigurationError:
        return misconfigured(setting, problem, looked=looked, fix=fix)

    if b"PUBLIC KEY" in pem or pem.lstrip().startswith(b"ssh-"):
        fix = "Name the private key, often the file without `_public` in its name."
        raise wrong("is a public key, a private one is needed", fix)
    secret = _encoded(passphrase) if passphrase else None
    try:
        private_key = load(pem.strip(), secret)
    except BaseException as error:
        # `cryptography` is in Rust, and its panics are no Exception: one follows a short IV.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        _not_a_key(pem, error, wrong)
    if not isinstance(private_key, RSAPrivateKey):
        raise wrong("is not an RSA key", "OCI signs with RSA keys only.")
    return private_key


def _encoded(passphrase: str) -> bytes:
    try:
        return passphrase.encode()
    except UnicodeEncodeError:
        looked = "the argument passphrase and the environment's OCI_CLI_PASSPHRASE"
        raise misconfigured(
            "passphrase", "is not UTF-8 text", looked=looked, fix="Correct it."
        ) from None


def _not_a_key(
    pem: bytes, error: BaseException, wrong: Callable[[str, str], ConfigurationError]
) -> NoReturn:
    from oci.exceptions import MissingPrivateKeyPassphrase

    if isinstance(error, MissingPrivateKeyPassphrase):
        fix = "Add a line `pass_phrase=` to the profile, or pass passphrase=."
        raise wrong("is encrypted and no passphrase is given", fix) from error
    if b"ENCRYPTED" in pem:
        fix = "Correct pass_phrase in the profile, or passphrase=."
        raise wrong("does not open with the given passphrase", fix) from error
    raise wrong("is not a PEM private key", "Download the key again.") from error


# The modes that OCI itself vouches for ----------------------------------------------------------


@frozen
class InstancePrincipal(Auth):
    """The compute instance this runs on; its token renews itself."""

    mode: ClassVar[str] = "instance_principal"

    def load(self) -> Signer:
        _wait_for_oci()
        from oci.auth.signers import InstancePrincipalsSecurityTokenSigner

        return _built(self.mode, InstancePrincipalsSecurityTokenSigner, _ON_AN_INSTANCE)


@frozen
class DelegationToken(Auth):
    """An instance that acts for a user, by a delegation token, as in OCI's Cloud Shell.

    *token* is the token itself; without it the ``delegation_token_file`` of the *profile* in
    *config_file* is read.
    """

    mode: ClassVar[str] = "instance_obo_user"

    token: str | None = field(default=None, repr=False)
    config_file: FilePath | None = field(default=None, kw_only=True)
    profile: str | None = field(default=None, kw_only=True)

    def load(self) -> Signer:
        given = _text("token", self.token)
        looked = "the argument token"
        token = _token(given, "token", looked) if given else self._token_from_file()
        _wait_for_oci()
        from oci.auth.signers import InstancePrincipalsDelegationTokenSigner

        def build() -> Signer:
            signer: Signer = InstancePrincipalsDelegationTokenSigner(delegation_token=token)
            return signer

        return _built(self.mode, build, _ON_AN_INSTANCE)

    def _token_from_file(self) -> str:
        profile = read_profile(self.config_file, self.profile)
        fix = "Pass DelegationToken(token=...), or name the file in the profile."
        file = profile.path("delegation_token_file", fix)
        return _read_token(file, "delegation_token_file", profile.where)


@frozen
class ResourcePrincipal(Auth):
    """The OCI resource this runs in (functions, data science, ...), versions 1.1 to 3.0."""

    mode: ClassVar[str] = "resource_principal"

    def load(self) -> Signer:
        _wait_for_oci()
        from oci.auth.signers import get_resource_principals_signer

        fix = "Resource principals work inside an OCI resource that sets OCI_RESOURCE_PRINCIPAL_*."
        return _built(self.mode, get_resource_principals_signer, fix)


@frozen
class WorkloadIdentity(Auth):
    """The Kubernetes service account of a pod in an enhanced OKE cluster."""

    mode: ClassVar[str] = "oke_workload_identity"

    def load(self) -> Signer:
        _wait_for_oci()
        from oci.auth.signers import get_oke_workload_identity_resource_principal_signer

        fix = "Workload identity works in a pod of an enhanced OKE cluster."
        return _built(self.mode, get_oke_workload_identity_resource_principal_signer, fix)


@frozen
class CustomSigner(Auth):
    """Any object that signs (see `Signer`), built by the caller."""

    mode: ClassVar[str] = "custom signer"

    signer: Signer = field(repr=lambda signer: f"<{type(signer).__name__}>")

    def load(self) -> Signer:
        return self.signer


_ON_AN_INSTANCE: Final = (
    "It works on an OCI compute instance, whose metadata service at 169.254.169.254 it asks."
)


def _built(mode: str, build: Callable[[], Signer], fix: str) -> Signer:
    try:
        return build()
    except Exception as error:
        # The error itself may show the URL of a proxy, and the password in it.
        problem = f"{mode!r} gave no credentials ({type(error).__name__})"
        cause = _ForeignError(" <- ".join(_told_by(error)))
    looked = "the metadata service and environment of this machine"
    raise misconfigured("auth", problem, looked=looked, fix=fix) from cause


class _ForeignError(Exception):
    """Stands in for an error of another library: the types behind it, and what the system said."""


def _told_by(error: BaseException) -> Iterator[str]:
    """What may be shown of *error* and of what led to it, the last one first."""
    deep: BaseException | None = error
    for _ in range(10):
        if deep is None:
            return
        name, reason = type(deep).__name__, reason_of(deep)
        yield name if reason == name else f"{name} ({reason})"
        deep = deep.__cause__ or deep.__context__


# From what a user writes ------------------------------------------------------------------------

_MODES: Final[dict[str, type[Auth]]] = {
    each.mode: each
    for each in (
        ApiKey,
        SessionToken,
        InstancePrincipal,
        DelegationToken,
        ResourcePrincipal,
        WorkloadIdentity,
    )
}


def auth_from(value: object, environ: Mapping[str, str]) -> Auth:
    """What ``Session(auth=...)`` means: one of the classes here, a mode's name, or a signer.

    None is the mode that ``OCI_CLI_AUTH`` names, or else an API key.
    """
    looked = "the environment's OCI_CLI_AUTH" if value is None else "the argument auth"
    try:
        if isinstance(value, Auth):
            return value
        if value is not None and not isinstance(value, str):
            return CustomSigner(_signing(value))
        text = environ.get("OCI_CLI_AUTH", "") if value is None else str.__str__(value)
        problem = _unknown_mode(mode := text.strip() or ApiKey.mode)
        if not problem:
            return _MODES[mode]()
    except ValueError as error:
        problem = str(error)
    except Exception as error:  # what the object's own methods raise when they are asked
        problem = f"{type(value).__name__:.40} cannot sign: it raised {type(error).__name__}"
    fix = f"Use one of {', '.join(_MODES)}, a class of adp_async.auth, or an object that signs."
    raise misconfigured("auth", problem, looked=looked, fix=fix) from None


def _unknown_mode(mode: str) -> str:
    if mode in _MODES:
        return ""
    # Anything longer may be a key or a token.
    return f"{mode!r} is unknown" if re.fullmatch(_MODE, mode) else "is not the name of a mode"


def _signing(value: Any) -> Signer:
    """*value* if it can sign as far as can be seen, else ValueError with what it lacks."""
    name = type(value).__name__[:40]
    if isinstance(value, type):
        message = f"is the class {value.__name__:.40}; an instance of it is needed"
    elif not callable(value):
        message = f"an object of type {name} cannot sign: it lacks __call__(request)"
    elif inspect.iscoroutinefunction(value) or inspect.iscoroutinefunction(value.__call__):
        message = f"an object of type {name} cannot sign: it must not be a coroutine function"
    elif not _takes_a_request(value):
        message = f"an object of type {name} cannot sign: it must take one argument, the request"
    else:
        signer: Signer = value
        return signer
    raise ValueError(message)


def _takes_a_request(value: Any) -> bool:
    try:
        inspect.signature(value).bind(None)
    except TypeError:
        return False
    except ValueError:  # built-in, and doesn't say
        return True
    return True
