"""The modes of OCI's config file: an API key, and a session token.

They sign with `cryptography`, which is imported when one is loaded, and need nothing of ``oci``.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import evolve, field, frozen

from adp_async._credential_files import FileSigner, is_given, path_of, read_token, text_of
from adp_async._oci_config import (
    Profile,
    fingerprint_of,
    given_by_environment,
    place_of,
    read_key_file,
    read_profile,
)
from adp_async.auth._base import Auth, Signer
from adp_async.errors import misconfigured

if TYPE_CHECKING:
    from pathlib import Path

    from adp_async._credential_files import FilePath
    from adp_async._private_keys import KeySigner

logger = logging.getLogger("adp_async")


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
        from adp_async._private_keys import KeySigner, load_private_key

        profile = self._profile()
        tenancy, user = profile.ocid("tenancy"), self._user(profile)
        fingerprint = fingerprint_of(profile)
        pem = profile.get("key_content").encode("ascii", "replace")
        setting, looked = "key_content", profile.looked("key_content")
        if not pem:
            setting, (pem, looked) = "key_file", read_key_file(profile)
        # Blanks are part of a passphrase, unless it comes from a file.
        passphrase = self.passphrase or profile.get("pass_phrase")
        private_key = load_private_key(pem, passphrase, looked=looked, setting=setting)
        if profile.has_another_token():
            logger.warning("%s", _another_token(profile))
        return KeySigner(f"{tenancy}/{user}/{fingerprint}", private_key)

    def holds_secret(self) -> str:
        given = [name for name in ("key_content", "passphrase") if getattr(self, name) is not None]
        return f"ApiKey({given[0]}=...)" if given else ""

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

    def holds_secret(self) -> str:
        return "" if self.passphrase is None else "SessionToken(passphrase=...)"

    def region(self, signer: Signer) -> str | None:
        return read_profile(self.config_file, self.profile).get("region") or None

    def place_of_region(self) -> str:
        return place_of(self.config_file, self.profile)


def _session_signer(profile: Profile, token_file: Path, passphrase: str | None) -> KeySigner:
    from adp_async._private_keys import KeySigner, load_private_key

    token = read_token(token_file, "security_token_file", profile.where)
    pem, looked = read_key_file(profile)
    return KeySigner(f"ST${token}", load_private_key(pem, passphrase, looked=looked))
