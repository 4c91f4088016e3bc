"""Checks OCI HTTP signatures (draft-cavage-http-signatures-08, OCI version 1) as the service does.

Written from the specification on `cryptography` alone and never with the code that signs, so that
a mistake in our signing cannot hide here.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from attrs import field, frozen
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

__all__ = ["Refused", "Signature", "Verifier", "body_hash", "parse_authorization", "signing_string"]

#: How far the client's clock may be from the service's, in seconds.
CLOCK_TOLERANCE = 300.0

_ALWAYS_SIGNED = ("date", "(request-target)", "host")
_SIGNED_WITH_BODY = ("content-length", "content-type", "x-content-sha256")
_METHODS_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
_ATTRIBUTE = re.compile(r'\s*([a-zA-Z]+)="([^"]*)"\s*(?:,|$)')


class Refused(Exception):
    """The signature is not accepted; the message says why, and holds no secret."""


@frozen
class Signature:
    """The attributes of one ``Authorization`` header."""

    key_id: str
    algorithm: str
    headers: tuple[str, ...]
    signature: bytes = field(repr=False)
    version: str


def parse_authorization(value: str | None) -> Signature:
    """Take ``Signature version="1",keyId="...",...`` apart; attributes may be in any order."""
    if value is None:
        raise Refused("the Authorization header is missing")
    scheme, _, rest = value.partition(" ")
    if scheme.lower() != "signature":
        raise Refused("the Authorization scheme is not Signature")
    attributes = _attributes(rest)
    missing = [name for name in ("keyId", "algorithm", "signature") if name not in attributes]
    if missing:
        raise Refused(f"the Authorization header lacks {', '.join(missing)}")
    return Signature(
        key_id=attributes["keyId"],
        algorithm=attributes["algorithm"],
        headers=tuple(attributes.get("headers", "date").lower().split()),
        signature=_decoded(attributes["signature"]),
        version=attributes.get("version", ""),
    )


def signing_string(
    method: str, target: str, names: tuple[str, ...], headers: Mapping[str, str]
) -> bytes:
    """The lines that were signed: *target* is path and query exactly as they were sent."""
    lines = []
    for name in names:
        if name == "(request-target)":
            lines.append(f"{name}: {method.lower()} {target}")
        elif name in headers:
            lines.append(f"{name}: {headers[name].strip()}")
        else:
            raise Refused(f"the signed header {_ascii(name)} was not sent")
    return _bytes("\n".join(lines))


def _ascii(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode()[:80]


def _bytes(text: str) -> bytes:
    # Headers come as text whose stray bytes are surrogates.
    return text.encode("utf-8", "surrogateescape")


def body_hash(body: bytes) -> str:
    """The ``x-content-sha256`` of *body*."""
    return base64.b64encode(hashlib.sha256(body).digest()).decode()


class Verifier:
    """Knows the public keys, and returns who signed a request or raises `Refused`."""

    def __init__(self, keys: Mapping[str, RSAPublicKey] | None = None) -> None:
        self._keys = dict(keys or {})

    def register(self, key_id: str, key: RSAPublicKey) -> None:
        """Accept *key_id* from now on: ``tenancy/user/fingerprint``, or ``ST$`` and a token."""
        self._keys[key_id] = key

    def forget(self, key_id: str) -> None:
        """Refuse *key_id* from now on, as a token that has expired."""
        self._keys.pop(key_id, None)

    def verify(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes | None,
        *,
        now: datetime,
    ) -> str:
        """Return the key id that signed the request.  Header names are lower case.

        *now* is the service's clock, timezone-aware.  With *body* None it needn't be signed, as
        Object Storage has it for the content of an object.
        """
        signature = parse_authorization(headers.get("authorization"))
        _check_form(signature)
        has_body = method in _METHODS_WITH_BODY and body is not None
        _check_signed_headers(signature, method, has_body=has_body)
        _check_date(headers.get("date"), now)
        if has_body:
            _check_body(headers, body or b"")
        self._check_signature(signature, signing_string(method, target, signature.headers, headers))
        return signature.key_id

    def _check_signature(self, signature: Signature, signed: bytes) -> None:
        key = self._keys.get(signature.key_id)
        if key is None:
            raise Refused("the key id is unknown or its token has expired")
        try:
            key.verify(signature.signature, signed, PKCS1v15(), SHA256())
        except InvalidSignature:
            raise Refused("the signature does not match the request") from None

    def __repr__(self) -> str:
        return f"<Verifier {len(self._keys)} keys>"


def _attributes(text: str) -> dict[str, str]:
    attributes: dict[str, str] = {}
    position = 0
    while position < len(text):
        match = _ATTRIBUTE.match(text, position)
        if match is None or match[1] in attributes:
            raise Refused("the Authorization header is malformed")
        attributes[match[1]] = match[2]
        position = match.end()
    return attributes


def _decoded(signature: str) -> bytes:
    try:
        return base64.b64decode(signature, validate=True)
    except ValueError:  # binascii.Error, or text that is not ASCII
        raise Refused("the signature is not base64") from None


def _check_form(signature: Signature) -> None:
    if signature.version != "1":
        raise Refused("the signature version is not 1")
    if signature.algorithm != "rsa-sha256":
        raise Refused("the algorithm is not rsa-sha256")


def _check_signed_headers(signature: Signature, method: str, *, has_body: bool) -> None:
    required = _ALWAYS_SIGNED + (_SIGNED_WITH_BODY if has_body else ())
    missing = [name for name in required if name not in signature.headers]
    if missing:
        raise Refused(f"{method} must sign {', '.join(missing)} as well")


def _check_date(value: str | None, now: datetime) -> None:
    if value is None:
        raise Refused("the date header is missing")
    try:
        # One without a zone cannot be compared: TypeError.
        skew = (parsedate_to_datetime(value) - now).total_seconds()
    except (ValueError, TypeError, OverflowError):
        raise Refused("the date header is not an HTTP date") from None
    if abs(skew) > CLOCK_TOLERANCE:
        raise Refused(f"the date is {skew:+.0f} s off the clock of the service")


def _check_body(headers: Mapping[str, str], body: bytes) -> None:
    if headers.get("content-length") != str(len(body)):
        raise Refused("content-length does not match the body")
    sent = _bytes(headers.get("x-content-sha256", ""))
    if not hmac.compare_digest(sent, _hash_bytes(body)):
        raise Refused("x-content-sha256 does not match the body")


def _hash_bytes(body: bytes) -> bytes:
    return body_hash(body).encode()
