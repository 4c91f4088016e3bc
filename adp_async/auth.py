"""Who signs: one frozen class for each way OCI knows to prove who is calling.

A class says *how* to sign and its ``load`` builds the signer of ``oci`` that does, which reads
files, may ask a metadata service and imports ``oci`` (over a second).  Who calls it, and when, is
the business of `adp_async._io.authenticator`.
"""

from __future__ import annotations

import logging
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, TypeAlias, TypeVar

from attrs import evolve, field, frozen

from adp_async.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
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
_OCID: Final = r"(?a)[\w-]+[.:](?:[\w-]*[.:]){3,}[\w-]+"
_FINGERPRINT: Final = r"(?:[0-9a-f]{2}:){15}[0-9a-f]{2}"


class Signer(Protocol):
    """What signs: it reads a request's method, url, path_url, headers and body, writes headers.

    A signer that has ``refresh_security_token()`` is told to renew itself after a 401.
    """

    def __call__(self, request: Any, /) -> object: ...


def misconfigured(setting: str, problem: str, *, looked: str, fix: str) -> ConfigurationError:
    """The error that names a setting, what is wrong, where it was looked for, and the fix."""
    return ConfigurationError(f"{setting}: {problem} (looked in {looked}). {fix}")


def is_ocid(value: str) -> bool:
    """Whether *value* has the shape of an OCID.

    >>> is_ocid("ocid1.tenancy.oc1..aaaa"), is_ocid("my-tenancy")
    (True, False)
    """
    return value.startswith("ocid") and re.fullmatch(_OCID, value) is not None


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


# The modes that live in OCI's config file -------------------------------------------------------


@frozen
class Profile:
    """One profile of an OCI config file, and what was given by argument in its place."""

    where: str
    values: Mapping[str, str] = field(repr=False)
    given: Mapping[str, str] = field(factory=dict)

    def get(self, key: str) -> str:
        return (self.given.get(key) or self.values.get(key, "")).strip()

    def looked(self, key: str) -> str:
        return f"the argument {key}" if key in self.given else self.where

    def required(self, key: str, fix: str) -> str:
        value = self.get(key)
        if not value:
            raise misconfigured(key, "is missing", looked=self.where, fix=fix)
        return value

    def ocid(self, key: str) -> str:
        shape = f"ocid1.{key}.oc1..<unique id>"
        value = self.required(key, f"Add a line `{key}={shape}`.")
        if not is_ocid(value):
            problem = f"{value!r:.80} is no OCID"
            raise misconfigured(
                key, problem, looked=self.looked(key), fix=f"It looks like {shape}."
            )
        return value

    def path(self, key: str, fix: str) -> Path:
        return expanded(Path(self.required(key, fix)), key, looked=self.looked(key))


def expanded(path: Path, setting: str, *, looked: str) -> Path:
    """*path* with its ``~`` expanded; `ConfigurationError` when there is no home folder."""
    try:
        return path.expanduser()
    except RuntimeError:
        problem = f"{str(path)!r:.80} leads to no home folder: this user has none, or it is unknown"
        fix = "Set HOME, or give the path from the root."
        raise misconfigured(setting, problem, looked=looked, fix=fix) from None


def read_profile(config_file: FilePath | None, profile: str | None) -> Profile:
    """The *profile* of *config_file*; what is None comes from the environment or OCI's default."""
    environ = os.environ
    source = _source_of_path(config_file)
    file = Path(config_file or environ.get("OCI_CONFIG_FILE") or DEFAULT_CONFIG_FILE)
    file = expanded(file, "config_file", looked=source)
    name = profile or environ.get("OCI_CLI_PROFILE") or DEFAULT_PROFILE
    parser = _parsed(file, source)
    if name not in parser or not parser[name]:
        known = ", ".join(each for each in parser if parser[each]) or "none at all"
        fix = f"The file has: {known}. Set OCI_CLI_PROFILE or pass profile=."
        raise misconfigured("profile", f"{name!r} does not exist", looked=str(file), fix=fix)
    return Profile(f"profile {name!r} of {file}", dict(parser[name]))


def _source_of_path(config_file: FilePath | None) -> str:
    if config_file:
        return "the argument config_file"
    if os.environ.get("OCI_CONFIG_FILE"):
        return "the environment's OCI_CONFIG_FILE"
    return "OCI's default place, as neither config_file nor OCI_CONFIG_FILE is given"


def _parsed(file: Path, source: str) -> ConfigParser:
    import configparser

    looked = f"{file}, {source}"
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        fix = "Run `oci setup config`, or set OCI_CONFIG_FILE to where the file is."
        raise misconfigured("config_file", "does not exist", looked=looked, fix=fix) from None
    except OSError as error:
        fix = "Make it readable for this user."
        problem = f"cannot be read: {error.strerror}"
        raise misconfigured("config_file", problem, looked=looked, fix=fix) from error
    except (configparser.Error, UnicodeDecodeError) as error:
        line = getattr(error, "lineno", None)
        problem = "is no INI file" if line is None else f"is no INI file at line {line}"
        fix = "It consists of [PROFILE] lines and key=value lines."
        # The parser's own message quotes the line, which may hold a passphrase.
        raise misconfigured("config_file", problem, looked=looked, fix=fix) from None
    return parser


@frozen
class ApiKey(Auth):
    """An API key, from a profile of OCI's config file or given outright.

    *config_file*: default ``OCI_CONFIG_FILE``, else ``~/.oci/config``.  *profile*: default
    ``OCI_CLI_PROFILE``, else ``DEFAULT``.  *passphrase* opens an encrypted key.  *key_content* is
    the key itself in PEM, in place of *key_file*.  *tenancy*, *user*, *fingerprint* and
    *key_file* replace what the profile says; with all of them the config file isn't read.
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
        pem, looked = self._key(profile)
        passphrase = self.passphrase or profile.get("pass_phrase")
        load_private_key(pem, passphrase, looked=looked)
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

    def _given(self) -> dict[str, str]:
        given = {
            "tenancy": self.tenancy,
            "user": self.user,
            "fingerprint": self.fingerprint,
            "key_file": self.key_file and os.fspath(self.key_file),
        }
        return {key: value for key, value in given.items() if value}

    def _is_complete(self) -> bool:
        return len(self._given()) + bool(self.key_content and not self.key_file) == 4

    def _profile(self) -> Profile:
        if self._is_complete():
            return Profile("the arguments", {}, self._given())
        return evolve(read_profile(self.config_file, self.profile), given=self._given())

    def _user(self, profile: Profile) -> str:
        if not profile.get("user") and profile.get("security_token_file"):
            problem = "is missing, but the profile has a security_token_file"
            fix = "For a session token set OCI_CLI_AUTH=security_token or auth='security_token'."
            raise misconfigured("user", problem, looked=profile.where, fix=fix)
        return profile.ocid("user")

    def _key(self, profile: Profile) -> tuple[bytes, str]:
        if self.key_content:
            return self.key_content.encode(), "the argument key_content"
        return _read_key_file(profile)


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
        passphrase = self.passphrase or profile.get("pass_phrase")
        return _FileSigner(
            lambda: _session_signer(profile, token_file, passphrase), (token_file, key_file)
        )

    def region(self, signer: Signer) -> str | None:
        return read_profile(self.config_file, self.profile).get("region") or None


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

    def __call__(self, request: Any) -> None:
        now = self._clock()
        if now >= self._look_again:
            self._look_again = now + _SECONDS_BETWEEN_LOOKS
            if self._stamps_now() != self._stamps:
                self._renew_or_keep()
        self._signer(request)

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
        problem = f"{value!r:.80} is no fingerprint"
        raise misconfigured("fingerprint", problem, looked=profile.looked("fingerprint"), fix=fix)
    return value


def _read_key_file(profile: Profile) -> tuple[bytes, str]:
    file = profile.path("key_file", "Add a line `key_file=<path of the private key>`.")
    looked = f"{file}, named by {profile.looked('key_file')}"
    return _read(file, "key_file", looked), looked


def _read_token(file: Path, setting: str, where: str) -> str:
    looked = f"{file}, named by {where}"
    token = _read(file, setting, looked).strip()
    if not token or not token.isascii():
        fix = "Get a new one, with `oci session authenticate`."
        raise misconfigured(setting, "holds no token", looked=looked, fix=fix)
    return token.decode("ascii")


def _read(file: Path, setting: str, looked: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        fix = f"Correct {setting}, or make the file readable for this user."
        problem = f"cannot be read: {error.strerror}"
        raise misconfigured(setting, problem, looked=looked, fix=fix) from error


def load_private_key(pem: bytes, passphrase: str | None, *, looked: str) -> Any:
    """The RSA key in *pem*, or `ConfigurationError` with what is wrong with it."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    _wait_for_oci()
    from oci.exceptions import InvalidPrivateKey, MissingPrivateKeyPassphrase
    from oci.signer import load_private_key as load

    def wrong(problem: str, fix: str) -> ConfigurationError:
        return misconfigured("key_file", problem, looked=looked, fix=fix)

    if b"PUBLIC KEY" in pem or pem.lstrip().startswith(b"ssh-"):
        fix = "Name the private key, often the file without `_public` in its name."
        raise wrong("is a public key, a private one is needed", fix)
    try:
        private_key = load(pem.strip(), passphrase.encode() if passphrase else None)
    except MissingPrivateKeyPassphrase as error:
        fix = "Add a line `pass_phrase=` to the profile, or pass passphrase=."
        raise wrong("is encrypted and no passphrase is given", fix) from error
    except (InvalidPrivateKey, UnsupportedAlgorithm, ValueError) as error:
        if b"ENCRYPTED" in pem:
            fix = "Correct pass_phrase in the profile, or passphrase=."
            raise wrong("does not open with the given passphrase", fix) from error
        raise wrong("is no private key in PEM format", "Download the key again.") from error
    if not isinstance(private_key, RSAPrivateKey):
        raise wrong("is no RSA key", "OCI signs with RSA keys only.")
    return private_key


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
        token = self.token or self._token_from_file()
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
        problem = f"{mode!r} gave no credentials ({type(error).__name__})"
        looked = "the metadata service and environment of this machine"
        raise misconfigured("auth", problem, looked=looked, fix=fix) from error


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


def auth_from(value: Auth | Signer | str | None, environ: Mapping[str, str]) -> Auth:
    """What ``Session(auth=...)`` means: one of the classes here, a mode's name, or a signer.

    None is the mode that ``OCI_CLI_AUTH`` names, or else an API key.
    """
    if isinstance(value, Auth):
        return value
    if callable(value) and not isinstance(value, type):
        return CustomSigner(value)
    mode = value or environ.get("OCI_CLI_AUTH") or ApiKey.mode
    if not isinstance(mode, str) or mode not in _MODES:
        looked = "the environment's OCI_CLI_AUTH" if value is None else "the argument auth"
        fix = f"Use one of {', '.join(_MODES)}, a class of adp_async.auth, or an object that signs."
        raise misconfigured("auth", f"{mode!r:.80} is unknown", looked=looked, fix=fix)
    return _MODES[mode]()
