"""OCI's HTTP signature, version 1 (draft-cavage-http-signatures-08), but for the RSA itself.

What is signed, in which order, and the header that carries it.  The steps have the names of the
specification.
"""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING, Final

from adp_async._sansio.signing import BODY_METHODS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

REQUEST_TARGET: Final = "(request-target)"
#: Signed in every request.
GENERIC_HEADERS: Final = ("date", REQUEST_TARGET, "host")
#: Signed besides where the method takes a body, even an empty one.
BODY_HEADERS: Final = ("content-length", "content-type", "x-content-sha256")
_WITH_BODY: Final = (*GENERIC_HEADERS, *BODY_HEADERS)


def signed_headers(method: str, *, with_body: bool) -> tuple[str, ...]:
    """What is signed of a request with *method*, in this order.

    >>> " ".join(signed_headers("GET", with_body=True))
    'date (request-target) host'
    """
    return _WITH_BODY if with_body and method in BODY_METHODS else GENERIC_HEADERS


def content_hash(body: bytes | None) -> str:
    """The ``x-content-sha256`` of *body*.

    >>> content_hash(b"")
    '47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='
    """
    return base64.b64encode(hashlib.sha256(body or b"").digest()).decode("ascii")


def signing_string(
    method: str, target: str, names: Sequence[str], headers: Mapping[str, str]
) -> bytes:
    """The lines that are signed.  *target*: path and query as they are sent.

    Raises KeyError for a header that is missing, UnicodeEncodeError for one that is not ASCII.

    >>> signing_string("GET", "/a?b=c", ("date", "(request-target)"), {"date": "now"})
    b'date: now\\n(request-target): get /a?b=c'
    """
    lines = [
        f"{name}: {method.lower()} {target}"
        if name == REQUEST_TARGET
        else f"{name}: {headers[name]}"
        for name in names
    ]
    return "\n".join(lines).encode("ascii")


def authorization(key_id: str, names: Sequence[str], signature: bytes) -> str:
    """The ``authorization`` header that says who signed which headers, and the *signature*."""
    encoded = base64.b64encode(signature).decode("ascii")
    return (
        f'Signature algorithm="rsa-sha256",headers="{" ".join(names)}",keyId="{key_id}",'
        f'signature="{encoded}",version="1"'
    )
