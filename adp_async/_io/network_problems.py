"""What a failure of the network means: how far the request got, whose fault it is, what helps.

Whatever aiohttp, ssl or the system raise becomes a new error of ours: their own errors hold URLs,
headers and a proxy's password, and would be shown as its cause.  And mistakes in the set-up are
distinguished from what passes by itself: an untrusted certificate won't be trusted in a minute.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from typing import TYPE_CHECKING, Final

import aiohttp
from aiohttp import http_exceptions
from attrs import define, evolve, frozen
from yarl import URL

from adp_async._sansio.signing import problem_of_header
from adp_async.errors import ConnectionFailed, ConnectionLost, RequestTimeout, reason_of

if TYPE_CHECKING:
    from adp_async._io.road import Proxy
    from adp_async._sansio.messages import Request
    from adp_async.errors import AdpError

#: The longest reply header.  Some gateways put whole tokens there.
MAX_HEADER_BYTES: Final = 64 * 1024

#: How long a direct call retries what may pass, or may be a mistake in the set-up.
PATIENCE: Final = 2.5


class Journey:
    """How far one request got."""

    __slots__ = ("connected", "connecting")

    def __init__(self) -> None:
        self.connecting = False
        self.connected = False


@define
class Way:
    """How requests get to one server, and whether it has ever answered one."""

    proxy: Proxy | None
    answered: bool = False


@frozen
class Problem:
    """What an error of the network means.

    *is_permanent*: it doesn't pass by itself.  *is_doubtful*: it may pass, or be a mistake in a
    set-up that has never worked.  *may_be_tls*: a server that expects TLS breaks plain http in
    this way.
    """

    kind: type[AdpError]
    what: str
    fix: str = ""
    is_permanent: bool = False
    is_doubtful: bool = False
    may_be_tls: bool = False

    def as_error(self, request: Request, way: Way) -> AdpError:
        through = f" through the proxy {way.proxy}" if way.proxy else ""
        fix = f". {self.fix}" if self.fix else ""
        host = _host(request)
        # An address is told besides a name, and not besides itself.
        what = self.what.removesuffix(_at(*host.rsplit(":", 1)))
        error = self.kind(f"{name_of(request)}: {what} ({host}{through}){fix}")
        if self.is_permanent:
            error.retriable = False
        elif self.is_doubtful and not way.answered and isinstance(error, ConnectionFailed):
            error.patience = PATIENCE
        return error


def problem_of(
    error: BaseException, request: Request, way: Way, journey: Journey, seconds: float
) -> Problem:
    is_known = isinstance(error, aiohttp.ClientError | OSError) and not isinstance(
        error, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError
    )
    if not is_known and (header := _bad_header(request)):
        return Problem(ConnectionFailed, f"not sent: {header}", is_permanent=True)
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return _refused_by_proxy(error, way)
    if (
        journey.connecting
        or isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
        or not (is_known or journey.connected or isinstance(error, asyncio.CancelledError))
    ):
        return _no_connection(error, way, is_known=is_known)
    if isinstance(error, TimeoutError):
        return Problem(RequestTimeout, f"no complete reply within {seconds:g} s")
    is_http = isinstance(_parser_error(error), http_exceptions.LineTooLong)
    may_be_tls = request.url.startswith("http://") and not is_http
    return Problem(ConnectionLost, f"the connection broke{_reason(error)}", may_be_tls=may_be_tls)


def _refused_by_proxy(error: aiohttp.ClientHttpProxyError, way: Way) -> Problem:
    status = error.status
    fix = _PROXY_FIXES.get(status, "")
    if status == 407 and way.proxy and way.proxy.headers:
        fix = "It does not accept the given user and password."
    problem = Problem(ConnectionFailed, f"the proxy answered {status}", fix)
    is_refusal = status < 500 and status not in _PASSING_STATUSES
    return evolve(problem, is_permanent=is_refusal, is_doubtful=True)


def _no_connection(error: BaseException, way: Way, *, is_known: bool) -> Problem:
    if isinstance(error, TimeoutError | aiohttp.ConnectionTimeoutError):
        return Problem(ConnectionFailed, "no connection in time")
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        cause = error.certificate_error
    if isinstance(cause, aiohttp.ServerFingerprintMismatch):
        what = "no connection: its certificate is another one's"
        fix = "Is the handle of another job, or of one that has ended?"
        return Problem(ConnectionFailed, what, fix, is_permanent=True)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return _untrusted(cause)
    if isinstance(cause, ssl.SSLError):
        return _no_tls(cause)
    if isinstance(cause, socket.gaierror):
        return _no_address(cause, way)
    if isinstance(cause, ConnectionResetError | ConnectionAbortedError | BrokenPipeError):
        return _closed_while_connecting(way)
    whose = "no connection to the proxy" if _is_about_proxy(error, way) else "no connection"
    reason = _reason(cause)
    if isinstance(error, aiohttp.ClientConnectorError):
        reason = _with_address(reason, error.os_error.strerror)
    problem = Problem(ConnectionFailed, f"{whose}{reason}", is_permanent=not is_known)
    return evolve(problem, is_doubtful=way.proxy is not None)


def _with_address(reason: str, said: str | None) -> str:
    """*reason*, and the address that asyncio names in what it *said*: a name may have several."""
    found = re.match(r"Connect call failed \('([^']{1,60})', (\d+)", said or "")
    if found is not None:
        return reason + _at(found[1], found[2])
    return f": {said}" if _is_plain(said) else reason


def _at(address: str, port: str = "") -> str:
    return f" at {address}, port {port}"


def _is_plain(text: str | None) -> bool:
    return bool(text) and re.fullmatch(r"[\w\s()',:.%\[\]-]{1,300}", text or "") is not None


def _is_about_proxy(error: BaseException, way: Way) -> bool:
    is_direct = isinstance(error, aiohttp.ClientConnectorError)
    return way.proxy is not None and (
        isinstance(error, aiohttp.ClientProxyConnectionError) or not is_direct
    )


def _untrusted(error: ssl.SSLCertVerificationError) -> Problem:
    said = getattr(error, "verify_message", "") or "unknown reason"
    fix = _CERTIFICATE_FIXES.get(getattr(error, "verify_code", 0), _CA_FIX)
    what = f"no connection: its certificate is not accepted: {said} [CERTIFICATE_VERIFY_FAILED]"
    return Problem(ConnectionFailed, what, fix, is_permanent=True)


def _no_tls(error: ssl.SSLError) -> Problem:
    reason = getattr(error, "reason", None) or ""  # one that wasn't made by OpenSSL has none
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError):
        return _closed_while_connecting(Way(None))
    shown = reason or type(error).__name__
    if reason in _NOT_TLS:
        what, fix = "the server does not speak TLS", "Check the endpoint: is it an http server?"
    elif reason in _OLD_TLS:
        what, fix = "no common version of TLS", "TLS 1.2 or later is needed."
    else:
        what, fix = "the TLS handshake failed", ""
    is_passing = reason == "TLSV1_ALERT_INTERNAL_ERROR"
    problem = Problem(ConnectionFailed, f"no connection: {what} [{shown}]", fix)
    return evolve(problem, is_permanent=not is_passing, is_doubtful=is_passing)


def _no_address(error: socket.gaierror, way: Way) -> Problem:
    whose = "the proxy's host" if way.proxy else "the host"
    what = f"no connection: {whose} has no address: {error.strerror or 'no reason given'}"
    if error.errno == socket.EAI_AGAIN:
        return Problem(ConnectionFailed, what)
    fix = "Check its name (endpoint, region, HTTPS_PROXY), then DNS and VPN."
    return Problem(ConnectionFailed, what, fix, is_doubtful=True)


def _closed_while_connecting(way: Way) -> Problem:
    by = "proxy or server" if way.proxy else "server"
    what = f"no connection: the {by} closed it during the TLS handshake"
    fix = (
        "If this persists, check the port, firewalls, and that the server offers TLS 1.2 or later."
    )
    return Problem(ConnectionFailed, what, fix, is_doubtful=True)


_PASSING_STATUSES: Final = frozenset({408, 425, 429})
_PROXY_FIXES: Final = {
    407: "It requires a user and password: HTTPS_PROXY=http://user:password@host:port.",
    403: "It blocks this host: have it allowed, or exempt the host with NO_PROXY.",
}
_CA_FIX: Final = (
    "If a company or a proxy uses an authority of its own, name its certificates with the setting "
    "ca_bundle or with ADP_ASYNC_CA_BUNDLE, REQUESTS_CA_BUNDLE or SSL_CERT_FILE."
)
#: By OpenSSL's number for what is wrong with a certificate.
_CERTIFICATE_FIXES: Final = {
    9: "Check the clock of this machine.",
    10: "It has expired, or the clock of this machine is wrong.",
    62: "Check the endpoint: another server answers, or it has another name.",
    64: "Check the endpoint: another server answers, or it has another name.",
}
_NOT_TLS: Final = frozenset(
    {
        "WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "RECORD_LAYER_FAILURE",
        "PACKET_LENGTH_TOO_LONG", "UNKNOWN_PROTOCOL", "UNEXPECTED_MESSAGE",
    }
)  # fmt: skip
_OLD_TLS: Final = frozenset(
    {
        "UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION", "NO_PROTOCOLS_AVAILABLE",
        "WRONG_SSL_VERSION", "UNSUPPORTED_SSL_VERSION", "VERSION_TOO_LOW",
    }
)  # fmt: skip


def _reason(error: BaseException) -> str:
    """What the system says.  aiohttp's own texts can hold whole headers, queries and URLs."""
    cause = _parser_error(error)
    if isinstance(cause, http_exceptions.LineTooLong):
        return f": a header of the reply is longer than {MAX_HEADER_BYTES} bytes"
    if cause is not None:
        return f": the reply is not HTTP ({type(cause).__name__})"
    return f": {reason_of(error)}"


def _parser_error(error: BaseException) -> http_exceptions.HttpProcessingError | None:
    """What aiohttp's parser failed at: the last in the chain of causes, which is the most exact."""
    found = None
    cause = error.__cause__ if isinstance(error, aiohttp.ClientResponseError) else None
    while isinstance(cause, http_exceptions.HttpProcessingError):
        found, cause = cause, cause.__cause__
    return found


def _bad_header(request: Request) -> str:
    for name, value in request.headers.items():
        if problem := problem_of_header(name, value):
            return problem
    return ""


def _host(request: Request) -> str:
    try:
        url = URL(request.url, encoded=True)
    except ValueError:
        return "an address that cannot be read"
    return url.raw_authority.rpartition("@")[2]


def name_of(request: Request) -> str:
    if request.operation:
        return request.operation
    # Up to the query, which may hold what was searched for.
    path = re.sub(r"^\w+://[^/?#]*", "", request.url).partition("?")[0]
    return f"{request.method} {path}"
