"""What is signed, by which clock, and what a header may contain.

The signers of ``oci`` (`adp_async.auth`) compute the signature; here is the value they read and
write, with everything that has to be right before they see it:

- the path and query are those of `yarl.URL(..., encoded=True)`, the very object that is sent;
- header names are lower case, and ``content-length`` is there (with a body of bytes the signers
  look for it and don't set it);
- the date is given, so that a wrong clock can be corrected by what the service says.
"""

from __future__ import annotations

import re
from email.utils import formatdate, parsedate_to_datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import urlsplit

import msgspec
from yarl import URL

from adp_async._sansio.values import is_unicode
from adp_async.errors import shown

if TYPE_CHECKING:
    from adp_async._sansio.messages import Request

#: The methods whose body is signed, even an empty one.  That of a DELETE is not.
BODY_METHODS: Final = frozenset({"POST", "PUT", "PATCH"})

# The service allows 5 minutes.  One of them is for the time the reply takes to get here.
SKEW_TOLERANCE: Final = 240.0

#: The largest error of our clock that is corrected.  Whatever answers a 401 can claim any time, and
#: a signature dated far ahead could be kept and used then.
LARGEST_SKEW: Final = 86_400.0

#: Dates have 29 characters; what is much longer isn't one.
_DATE_CHARACTERS: Final = 64

_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]+")
_RETRY_TOKEN = re.compile(r"[\x21-\x7e]{1,64}")
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
# A header may contain a tab; a lone surrogate cannot be sent.
_NOT_IN_A_HEADER = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")


class Signable(msgspec.Struct, eq=False):
    """One request for a signer of ``oci``, which reads everything and writes *headers*."""

    method: str
    url: str
    path_url: str
    headers: dict[str, str]
    body: bytes | None

    @classmethod
    def of(cls, request: Request, *, date: str) -> Self:
        """The *request* as it will be sent, dated *date* (see `http_date`)."""
        headers = {name.lower(): value for name, value in request.headers.items()}
        headers |= {"date": date, "host": urlsplit(request.url).netloc}
        body = request.body
        if request.method in BODY_METHODS:
            body = body or b""
            size = len(body) if request.stream is None else request.stream.size
            headers["content-length"] = str(size)
            headers.setdefault("content-type", "application/json")
        # A request that was signed before gets a new signature.
        headers.pop("authorization", None)
        return cls(request.method, request.url, _path_url(request.url), headers, body)

    def signed(self, request: Request) -> Request:
        """The *request* with the headers that the signer left here."""
        return request.with_headers({name.lower(): v for name, v in self.headers.items()})

    def __repr__(self) -> str:
        return f"<Signable {self.method} {self.url}>"


def _path_url(url: str) -> str:
    return URL(url, encoded=True).raw_path_qs


def http_date(now: float) -> str:
    """The HTTP date of *now*, seconds since 1970.

    >>> http_date(1388957500.9)
    'Sun, 05 Jan 2014 21:31:40 GMT'
    """
    return _http_date(int(now))


@lru_cache(maxsize=4)
def _http_date(seconds: int) -> str:
    return formatdate(seconds, usegmt=True)


def parse_http_date(value: str | None) -> float | None:
    """Seconds since 1970 of an HTTP date, or None when it cannot be read.

    >>> parse_http_date("Sun, 05 Jan 2014 21:31:40 GMT")
    1388957500.0
    """
    if not value:
        return None
    if len(value) > _DATE_CHARACTERS:
        return None
    try:
        date = parsedate_to_datetime(value)
        # Without a zone, our own would be assumed.
        return None if date.tzinfo is None else date.timestamp()
    except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError):
        return None  # the parser of dates fails in several ways


def corrected_skew(skew: float, *, now: float, server_date: str | None) -> float | None:
    """The skew to sign with from now on, or None when the one in use is good enough.

    *skew* is what has been added to our clock so far, *now* is our clock, *server_date* the
    ``Date`` of the 401 reply.  Nothing is corrected within `SKEW_TOLERANCE`: the service would have
    accepted that date, so the reason is another.  Nor by more than `LARGEST_SKEW`.

    >>> corrected_skew(0.0, now=1388956300.0, server_date="Sun, 05 Jan 2014 21:31:40 GMT")
    1200.0
    >>> corrected_skew(1200.0, now=1388956300.0, server_date="Sun, 05 Jan 2014 21:31:40 GMT")
    """
    server_now = parse_http_date(server_date)
    if server_now is None or abs(server_now - (now + skew)) <= SKEW_TOLERANCE:
        return None
    correction = server_now - now
    return correction if abs(correction) <= LARGEST_SKEW else None


def problem_of_header(name: object, value: object) -> str:
    """Why this header cannot be sent, without showing its value; "" if it can.

    >>> problem_of_header("x-token", "abc\\n")
    "the header 'x-token' holds a line end or another control character"
    """
    if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
        return "a header has an invalid name"
    if not isinstance(value, str):
        return f"the header {name[:80]!r} is {type(value).__name__} instead of str"
    if _NOT_IN_A_HEADER.search(value):
        return f"the header {name[:80]!r} holds a line end or another control character"
    return ""


def check_request_id(value: str) -> str:
    """*value* if it can be an ``opc-request-id``, else ValueError."""
    # Ids that came back from the service may hold a slash; sent again, they are refused.
    return _checked("opc-request-id", value, _REQUEST_ID, "letters, digits, '_' and '-' only")


def check_retry_token(value: str) -> str:
    """*value* if it can be an ``opc-retry-token``, else ValueError."""
    rule = "1 to 64 printable ASCII characters, no spaces"
    return _checked("opc-retry-token", value, _RETRY_TOKEN, rule)


def check_principal(value: str) -> str:
    """*value* if it can be a ``dh-user-principal``, else ValueError."""
    plain = str.__str__(value) if issubclass(type(value), str) else ""
    if not plain or _CONTROL_CHARACTER.search(plain) or not is_unicode(plain):
        rule = "must be text without control characters"
        raise ValueError(f"dh-user-principal: {rule}, not {shown(value)}")
    return plain


def _checked(name: str, value: object, pattern: re.Pattern[str], rule: str) -> str:
    plain = str.__str__(value) if issubclass(type(value), str) else ""
    if not pattern.fullmatch(plain):
        message = f"{name}: {rule}, not {shown(value)}"
        raise ValueError(message)
    return plain
