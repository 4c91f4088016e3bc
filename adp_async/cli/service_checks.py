"""What ``adp-async doctor`` finds between this machine and the service."""

from __future__ import annotations

import os
import socket
import time
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from yarl import URL

from adp_async import RetryPolicy, Session
from adp_async._io.road import proxy_for, trusted_certificates
from adp_async._io.transport import AiohttpTransport
from adp_async._regions import find_region, published_names
from adp_async._sansio.messages import Request
from adp_async._sansio.signing import parse_http_date
from adp_async.cli.finding import Finding, State
from adp_async.errors import (
    AdpError,
    ConfigurationError,
    ConnectionFailed,
    Forbidden,
    NotAuthenticated,
    NotFound,
    RequestTimeout,
    ServiceFault,
    Throttled,
    UnreadableReply,
)

if TYPE_CHECKING:
    from adp_async._io.road import Proxy
    from adp_async.cli.options import CommandLine
    from adp_async.settings import Settings

__all__ = ["certificates", "clock", "network", "proxy", "region", "service"]

#: The service refuses a signature whose date is off by more than 5 minutes.
CLOCK_WORTH_SAYING: Final = 60.0
CALL_TIMEOUT: Final = 20.0
#: Of the proxy: a host to ask for when the service's own is not known.
ANY_ADDRESS: Final = "https://aidp.us-ashburn-1.oci.oraclecloud.com"


def region(name: str) -> Finding:
    """Whether the region is known, here or to ``oci``.  Blocks where that has to be imported."""
    if find_region(name).is_known:
        return Finding("region", "ok", f"{name}, a region of OCI")
    names = published_names()
    near = get_close_matches(name, names, n=1)
    told = f"{name} is not among the {len(names)} regions that are known"
    fix = "A new region needs a newer oci, or AIDP_ENDPOINT."
    return Finding("region", "warning", told, f"Did you mean {near[0]}? {fix}" if near else fix)


def certificates(settings: Settings, address: str) -> Finding:
    """Whom to trust."""
    step = "certificates"
    if address.startswith("http://"):
        return Finding(step, "ok", "not needed: plain http to this machine")
    try:
        context = trusted_certificates(settings.ca_bundle)
    except ConfigurationError as error:
        return Finding(step, "wrong", str(error))
    if context is None:
        return Finding(step, "ok", "those of the system")
    count = context.cert_store_stats()["x509"]
    named = settings.ca_bundle or _first_set("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
    return Finding(step, "ok", f"{count or 'hashed'} of {named}")


def _first_set(*names: str) -> str:
    return next(each for name in names if (each := os.environ.get(name, "").strip()))


def proxy(address: str) -> tuple[Finding | None, Proxy | None]:
    """The proxy that leads to *address*; a finding if there is one, or should be."""
    try:
        found = proxy_for(URL(address or ANY_ADDRESS, encoded=True))
    except ConfigurationError as error:
        return Finding("proxy", "wrong", str(error)), None
    return (Finding("proxy", "ok", str(found)) if found else None), found


def network(address: str, proxy: Proxy | None) -> Finding:
    """Whether the service, or the *proxy* that leads to it, accepts a connection.  Blocks."""
    parts = urlsplit(address)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    whose, check = "", "endpoint, then firewall and proxy (HTTPS_PROXY)"
    if proxy is not None:
        host, port = proxy.url.host or "", proxy.url.port or 80
        whose, check = "the proxy ", "proxy (HTTPS_PROXY, NO_PROXY)"
    try:
        with socket.create_connection((host, port), timeout=10.0) as connection:
            told = f"connected to {whose}{connection.getpeername()[0]}, port {port}"
            return Finding("network", "ok", told)
    except socket.gaierror as error:
        fix = "Check region and endpoint, then the network: DNS, VPN, proxy (HTTPS_PROXY)."
        return Finding("network", "wrong", f"{whose}{host} has no address: {error.strerror}", fix)
    except OSError as error:
        why = error.strerror or "no answer within 10 s"
        told = f"{whose}{host}, port {port}: {why}"
        return Finding("network", "wrong", told, f"Check the {check}.")


async def clock(settings: Settings) -> Finding:
    """The error of the local clock; any reply tells, so the request isn't even signed."""
    try:
        road = AiohttpTransport(timeout=CALL_TIMEOUT, ca_bundle=settings.ca_bundle)
        async with road as transport:
            reply = await transport.send(Request("GET", f"{settings.base_url}/"))
    except AdpError as error:
        return Finding("clock", "skipped", f"not compared: no reply ({_sentence(error)})")
    date = parse_http_date(reply.headers.get("date"))
    if date is None:
        return Finding("clock", "skipped", "not compared: the reply has no readable date")
    behind = date - time.time()
    if abs(behind) < CLOCK_WORTH_SAYING:
        return Finding("clock", "ok", "in sync with the service")
    told = f"{abs(behind):,.0f} s {'behind' if behind > 0 else 'ahead of'} the service's"
    fix = "A session corrects for it after one refused request; better to set the clock."
    return Finding("clock", "warning", told, fix)


async def service(given: CommandLine, settings: Settings) -> Finding:
    """A signed call that changes nothing."""
    scope = f"workspace {settings.workspace}" if settings.workspace else "platform"
    try:
        await _search(given, settings)
    except Throttled:
        return Finding("service", "warning", "accepted the signature, but throttles (429)")
    except ServiceFault as error:
        # 501: the operation is not supported.
        state: State = "wrong" if error.retriable else "warning"
        return Finding("service", state, _sentence(error), _fix(error))
    except AdpError as error:
        return Finding("service", "wrong", _sentence(error), _fix(error))
    return Finding("service", "ok", f"answered a signed search in the {scope}")


async def _search(given: CommandLine, settings: Settings) -> None:
    retry = RetryPolicy(max_attempts=2)
    known = given.session_arguments()
    async with Session(**known, spool=False, recover=False, retry=retry) as session:
        family = session.experiments if settings.workspace else session.registered_models
        await anext(family.search(max_results=1, timeout=CALL_TIMEOUT).pages())


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split())


def _fix(error: AdpError) -> str:
    for kind, fix in _FIXES.items():
        if isinstance(error, kind):
            return fix
    return ""


_FIXES: Final[dict[type[AdpError], str]] = {
    NotAuthenticated: "Compare user, tenancy and fingerprint of the profile with the API keys of "
    "that user in OCI's console; a session token may have to be renewed.",
    NotFound: "Check platform and workspace. OCI also says this when a policy that lets this "
    "user see them is missing.",
    Forbidden: "A policy must allow this user to use the platform.",
    ConnectionFailed: "See the network above; for TLS, whether a proxy shows its own certificate.",
    RequestTimeout: "The endpoint accepts connections but doesn't answer: is it the service's?",
    UnreadableReply: "Something other than the service answers: check the endpoint.",
    ServiceFault: "The signature was accepted. Oracle's support asks for the request id.",
}
