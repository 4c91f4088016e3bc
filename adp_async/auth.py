"""How requests are signed: one frozen class for each kind of OCI credentials.

A class says *how* to sign and its ``load`` builds the signer of ``oci`` that does, which reads
files, may ask a metadata service and imports ``oci`` (over a second).  It is called by
`adp_async._io.authenticator`.
"""

from __future__ import annotations

import inspect
import logging
import re
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from attrs import evolve, field, frozen

from adp_async._credential_files import (
    FileSigner,
    is_given,
    load_private_key,
    path_of,
    read_token,
    text_of,
    token_of,
    wait_for_oci,
)
from adp_async._oci_config import (
    Profile,
    fingerprint_of,
    given_by_environment,
    place_of,
    read_key_file,
    read_profile,
)
from adp_async.errors import misconfigured, reason_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from adp_async._credential_files import FilePath


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


# Compiled when first used, so that importing takes no time for it.
_MODE: Final = r"[A-Za-z_ -]{1,40}"


class Signer(Protocol):
    """Signs a request: reads its method, url, path_url, headers and body, and writes headers.

    A signer that has ``refresh_security_token()`` is told to renew itself after a 401.  For an
    artifact it is called with ``enforce_content_headers=False``, if it takes that: the body is a
    stream, and is not signed.
    """

    def __call__(self, request: Any, /) -> object: ...


class Auth:
    """Base of the classes that say how to sign."""

    #: The name of this mode in ``OCI_CLI_AUTH`` and in ``Session(auth=...)``.
    mode: ClassVar[str] = ""
    #: Whether signing is pure computation (no I/O, no state), so that several threads may sign at
    #: once.
    only_computes: ClassVar[bool] = False

    def load(self) -> Signer:
        """The signer.  Blocks; raises `ConfigurationError`."""
        raise NotImplementedError

    def is_quick(self, signer: Signer) -> bool:
        """Whether signing is pure computation that takes less than a millisecond."""
        return False

    def region(self, signer: Signer) -> str | None:
        """The region these credentials belong to, if they know it.  May read the config file."""
        region = getattr(signer, "region", None)
        return region if isinstance(region, str) else None

    def place_of_region(self) -> str:
        """Where that region comes from, for a message."""
        return "the credentials"


# The modes of OCI's config file -------------------------------------------------------


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
        fingerprint = fingerprint_of(profile)
        pem = profile.get("key_content").encode("ascii", "replace")
        setting, looked = "key_content", profile.looked("key_content")
        if not pem:
            setting, (pem, looked) = "key_file", read_key_file(profile)
        # Blanks are part of a passphrase, unless it comes from a file.
        passphrase = self.passphrase or profile.get("pass_phrase")
        load_private_key(pem, passphrase, looked=looked, setting=setting)
        if profile.has_another_token():
            logger.warning("%s", _another_token(profile))
        wait_for_oci()
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
        return place_of(self.config_file, self.profile)

    def doubts(self) -> str:
        """What looks like a mistake in the profile, or "".  Only the service can tell for sure."""
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
        text_of("passphrase", self.passphrase)  # only its type: blanks may be part of it
        arguments = {
            "tenancy": text_of("tenancy", self.tenancy),
            "user": text_of("user", self.user),
            "fingerprint": text_of("fingerprint", self.fingerprint),
            "key_content": text_of("key_content", self.key_content),
            "key_file": self._key_file(),
        }
        given = {key: (text, f"the argument {key}") for key, text in arguments.items() if text}
        # Code that names a file or a profile means the lines of that.
        is_named = self.config_file is not None or self.profile is not None
        return given if is_named else given_by_environment(given)

    def _key_file(self) -> str:
        if not is_given(self.key_file):
            return ""
        return str(path_of(self.key_file, "key_file", looked="the argument key_file"))

    def _user(self, profile: Profile) -> str:
        if not profile.get("user") and profile.get("security_token_file"):
            problem = "is missing, but the profile has a security_token_file"
            fix = "For a session token set OCI_CLI_AUTH=security_token or auth='security_token'."
            raise misconfigured("user", problem, looked=profile.where, fix=fix)
        return profile.ocid("user")


def _another_token(profile: Profile) -> str:
    return (
        f"{profile.where} has a security_token_file of its own, but the user of DEFAULT: if the "
        "service refuses the signature, use auth='security_token' or OCI_CLI_AUTH=security_token"
    )


@frozen
class SessionToken(Auth):
    """A session token of ``oci session authenticate``; re-read whenever its file changes.

    *config_file* and *profile* as for `ApiKey`; the profile names the ``security_token_file`` and
    the ``key_file``.  `oci session refresh` in another terminal is enough to keep it going.
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
        text_of("passphrase", self.passphrase)
        passphrase = self.passphrase or profile.get("pass_phrase")
        return FileSigner(
            lambda: _session_signer(profile, token_file, passphrase), (token_file, key_file)
        )

    def region(self, signer: Signer) -> str | None:
        return read_profile(self.config_file, self.profile).get("region") or None

    def place_of_region(self) -> str:
        return place_of(self.config_file, self.profile)


def _session_signer(profile: Profile, token_file: Path, passphrase: str | None) -> Any:
    token = read_token(token_file, "security_token_file", profile.where)
    pem, looked = read_key_file(profile)
    private_key = load_private_key(pem, passphrase, looked=looked)
    wait_for_oci()
    from oci.auth.signers import SecurityTokenSigner

    return SecurityTokenSigner(token, private_key)


# The modes in which OCI issues the credentials ----------------------------------------------------


@frozen
class InstancePrincipal(Auth):
    """The compute instance this runs on; its token renews itself."""

    mode: ClassVar[str] = "instance_principal"

    def load(self) -> Signer:
        wait_for_oci()
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
        given = text_of("token", self.token)
        looked = "the argument token"
        token = token_of(given, "token", looked) if given else self._token_from_file()
        wait_for_oci()
        from oci.auth.signers import InstancePrincipalsDelegationTokenSigner

        def build() -> Signer:
            signer: Signer = InstancePrincipalsDelegationTokenSigner(delegation_token=token)
            return signer

        return _built(self.mode, build, _ON_AN_INSTANCE)

    def _token_from_file(self) -> str:
        profile = read_profile(self.config_file, self.profile)
        fix = "Pass DelegationToken(token=...), or name the file in the profile."
        file = profile.path("delegation_token_file", fix)
        return read_token(file, "delegation_token_file", profile.where)


@frozen
class ResourcePrincipal(Auth):
    """The OCI resource this runs in (functions, data science, ...), versions 1.1 to 3.0."""

    mode: ClassVar[str] = "resource_principal"

    def load(self) -> Signer:
        wait_for_oci()
        from oci.auth.signers import get_resource_principals_signer

        fix = "Resource principals work inside an OCI resource that sets OCI_RESOURCE_PRINCIPAL_*."
        return _built(self.mode, get_resource_principals_signer, fix)


@frozen
class WorkloadIdentity(Auth):
    """The Kubernetes service account of a pod in an enhanced OKE cluster."""

    mode: ClassVar[str] = "oke_workload_identity"

    def load(self) -> Signer:
        wait_for_oci()
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
    "It only works on an OCI compute instance: it asks the metadata service at 169.254.169.254."
)


def _built(mode: str, build: Callable[[], Signer], fix: str) -> Signer:
    try:
        return build()
    except Exception as error:
        # The error itself may show the URL of a proxy, with a password in it.
        problem = f"{mode!r} gave no credentials ({type(error).__name__})"
        cause = _ForeignError(" <- ".join(_told_by(error)))
    looked = "the metadata service and environment of this machine"
    raise misconfigured("auth", problem, looked=looked, fix=fix) from cause


class _ForeignError(Exception):
    """Replaces an error of another library: its types, and what the system said."""


def _told_by(error: BaseException) -> Iterator[str]:
    """What may be shown of *error* and of its causes, the last one first."""
    deep: BaseException | None = error
    for _ in range(10):
        if deep is None:
            return
        name, reason = type(deep).__name__, reason_of(deep)
        yield name if reason == name else f"{name} ({reason})"
        deep = deep.__cause__ or deep.__context__


# What a user passes ------------------------------------------------------------------------

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
    except Exception as error:  # raised by the object's own methods
        problem = f"{type(value).__name__:.40} cannot sign: it raised {type(error).__name__}"
    fix = f"Use one of {', '.join(_MODES)}, a class of adp_async.auth, or an object that signs."
    raise misconfigured("auth", problem, looked=looked, fix=fix) from None


def _unknown_mode(mode: str) -> str:
    if mode in _MODES:
        return ""
    # Anything longer may be a key or a token.
    return f"{mode!r} is unknown" if re.fullmatch(_MODE, mode) else "is not the name of a mode"


def _signing(value: Any) -> Signer:
    """*value* if it looks like a signer, else ValueError with what it lacks."""
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
    except ValueError:  # a built-in without a signature
        return True
    return True
