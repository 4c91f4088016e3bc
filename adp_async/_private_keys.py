"""RSA keys: reading one, with what is wrong with it, and signing requests with it.

Made of `cryptography` alone: importing ``oci`` for the same costs a quarter of a second and 20 MB.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from adp_async._sansio.signature import (
    authorization,
    content_hash,
    signed_headers,
    signing_string,
)
from adp_async.errors import misconfigured

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

    from adp_async.errors import ConfigurationError


class Unsigned(Protocol):
    """A request to be signed.  Its header names are lower case."""

    @property
    def method(self) -> str: ...
    @property
    def path_url(self) -> str: ...
    @property
    def headers(self) -> MutableMapping[str, str]: ...
    @property
    def body(self) -> bytes | None: ...


class KeySigner:
    """Signs with *private_key*, as *key_id*: ``tenancy/user/fingerprint``, or ``ST$`` and a token.

    Pure computation, from any number of threads at once.
    """

    def __init__(self, key_id: str, private_key: RSAPrivateKey) -> None:
        from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
        from cryptography.hazmat.primitives.hashes import SHA256

        self.key_id = key_id
        self.private_key = private_key
        self._scheme = PKCS1v15(), SHA256()

    def __call__(self, request: Unsigned, *, enforce_content_headers: bool = True) -> None:
        """Write the signature of *request* into its headers.

        They have to hold its date and host, and its length if it has a body.
        *enforce_content_headers* False leaves the body out of what is signed.
        """
        headers = request.headers
        headers.setdefault("content-type", "application/json")  # also of a GET, as `oci` has it
        names = signed_headers(request.method, with_body=enforce_content_headers)
        if "x-content-sha256" in names and "x-content-sha256" not in headers:
            headers["x-content-sha256"] = content_hash(request.body)
        signed = signing_string(request.method, request.path_url, names, headers)
        signature = self.private_key.sign(signed, *self._scheme)
        headers["authorization"] = authorization(self.key_id, names, signature)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.private_key.key_size} bits>"


def load_private_key(
    pem: bytes, passphrase: str | None, *, looked: str, setting: str = "key_file"
) -> RSAPrivateKey:
    """The RSA key in *pem*, or `ConfigurationError` with what is wrong with it."""
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    def wrong(problem: str, fix: str) -> ConfigurationError:
        return misconfigured(setting, problem, looked=looked, fix=fix)

    if b"PUBLIC KEY" in pem or pem.lstrip().startswith(b"ssh-"):
        fix = "Name the private key, often the file without `_public` in its name."
        raise wrong("is a public key, a private one is needed", fix)
    secret = _encoded(passphrase) if passphrase else None
    try:
        private_key = _read(pem.strip(), secret)
    except BaseException as error:
        # `cryptography` is in Rust: its panics, as after a short IV, are not Exceptions.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        is_locked = isinstance(error, TypeError) and secret is None
        # What `cryptography` says is in ours, and its frames help nobody.
        raise wrong(*_why_not_a_key(pem, is_locked=is_locked)) from None
    if not isinstance(private_key, RSAPrivateKey):
        raise wrong("is not an RSA key", "OCI signs with RSA keys only.")
    if not _is_sound(private_key):
        raise wrong("is damaged: its signatures do not match", "Download the key again.")
    return private_key


def _read(pem: bytes, secret: bytes | None) -> PrivateKeyTypes:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    # Testing its primes takes 27 ms, a tenth of opening a session; see `_is_sound`.
    try:
        return load_pem_private_key(pem, secret, unsafe_skip_rsa_key_validation=True)
    except TypeError:  # encrypted and no passphrase is given, or the other way round
        if secret is None:
            raise
    # A profile inherits a pass_phrase of DEFAULT, which its own key may not need.
    return load_pem_private_key(pem, None, unsafe_skip_rsa_key_validation=True)


def _is_sound(private_key: RSAPrivateKey) -> bool:
    """Whether its signature is right.

    One made by a key whose numbers don't belong together would be refused, and may tell its
    primes.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.hashes import SHA256

    try:
        signature = private_key.sign(b"", PKCS1v15(), SHA256())
        private_key.public_key().verify(signature, b"", PKCS1v15(), SHA256())
    except (ValueError, InvalidSignature):
        return False
    return True


def _encoded(passphrase: str) -> bytes:
    try:
        return passphrase.encode()
    except UnicodeEncodeError:
        looked = "the argument passphrase and the environment's OCI_CLI_PASSPHRASE"
        raise misconfigured(
            "passphrase", "is not UTF-8 text", looked=looked, fix="Correct it."
        ) from None


def _why_not_a_key(pem: bytes, *, is_locked: bool) -> tuple[str, str]:
    """The problem and the fix."""
    if is_locked:
        fix = "Add a line `pass_phrase=` to the profile, or pass passphrase=."
        return "is encrypted and no passphrase is given", fix
    if b"ENCRYPTED" in pem:
        fix = "Correct pass_phrase in the profile, or passphrase=."
        return "does not open with the given passphrase", fix
    return (
        "is not a PEM private key",
        "Name the .pem file that has the API key, or download it again.",
    )
