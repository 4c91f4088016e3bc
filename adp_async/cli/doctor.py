"""``adp-async doctor``: checks everything between this machine and the service, step by step.

Each finding is shown at once: what is right, what is wrong, and the fix.  Names and places are
shown, never the content of a key, a token or a passphrase.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import socket
import stat
import tempfile
import time
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import attrs
from attrs import frozen
from rich.console import Console
from rich.table import Table
from rich.text import Text

import adp_async
from adp_async import RetryPolicy, Session
from adp_async._io.spool_file import SpoolError, check_folder, default_spool_folder
from adp_async._io.transport import AiohttpTransport
from adp_async._knobs import absolute_folder, found_in, variables_of
from adp_async._oci_config import read_profile
from adp_async._sansio.messages import Request
from adp_async._sansio.signing import parse_http_date
from adp_async._sansio.texts import printable
from adp_async.auth import ApiKey, Auth, SessionToken
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
from adp_async.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from adp_async.cli.options import CommandLine

__all__ = ["Finding", "examine", "run_doctor"]

State = Literal["ok", "warning", "wrong", "skipped"]

#: The service refuses a signature whose date is off by more than 5 minutes.
CLOCK_WORTH_SAYING: Final = 60.0
CALL_TIMEOUT: Final = 20.0
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
#: An OCID to check other settings with when the platform's own is missing or wrong.
_ANY_OCID: Final = "ocid1.aidataplatform.oc1.iad.any"
_SIGNS: Final[dict[State, tuple[str, str]]] = {
    "ok": ("ok", "green"),
    "warning": ("look", "yellow"),
    "wrong": ("WRONG", "bold red"),
    "skipped": ("-", "dim"),
}


@frozen
class Finding:
    """What one step found: *told* is the fact, *fix* what to do about it."""

    step: str
    state: State
    told: str
    fix: str = ""


def run_doctor(given: CommandLine) -> int:
    """Examine and print; the exit code, 1 if anything is wrong."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 1000  # don't wrap lines for programs
    # The library's warnings would repeat the findings.
    logging.getLogger("adp_async").addHandler(logging.NullHandler())
    return asyncio.run(_print_all(console, examine(given)))


async def _print_all(console: Console, findings: AsyncIterator[Finding]) -> int:
    wrong = 0
    async for finding in findings:
        wrong += finding.state == "wrong"
        _print(console, finding)
    console.print()
    if wrong:
        console.print(f"{wrong} problem{'s' * (wrong > 1)} to fix", style="bold red")
    else:
        console.print("All is well: a session will work with these settings.", style="bold green")
    return 1 if wrong else 0


def _print(console: Console, finding: Finding) -> None:
    sign, style = _SIGNS[finding.state]
    line = Table.grid(padding=(0, 1, 0, 0))
    line.add_column(width=5, justify="right", style=style)
    line.add_column(width=12, style="bold", no_wrap=True)
    line.add_column(overflow="fold")
    line.add_row(sign, finding.step, Text(printable(finding.told, 2000)))
    if finding.fix:
        line.add_row("", "", Text(printable(finding.fix, 2000)))
    console.print(line)


# The steps ---------------------------------------------------------------------------------------


async def examine(given: CommandLine) -> AsyncIterator[Finding]:
    """All steps in turn, without those that depend on a failed one."""
    yield Finding("version", "ok", f"adp_async {adp_async.__version__}")
    problems = list(_problems(given))
    for problem in problems:
        yield Finding("settings", "wrong", problem)
    if problems:
        yield Finding("service", "skipped", "skipped: fix the settings first")
        return
    auth = given.authentication()
    settings = Settings.resolve({**given.arguments(), "auth": auth})
    for finding in _sources(settings, given):
        yield finding
    yield _spool(settings)
    async for finding in _outside(given, settings):
        yield finding


async def _outside(given: CommandLine, settings: Settings) -> AsyncIterator[Finding]:
    """The steps that need key files, the network and the service."""
    for finding in _files(settings.auth):
        yield finding
    try:
        settings, told = await asyncio.to_thread(_completed, settings)
    except ConfigurationError as error:
        yield Finding("credentials", "wrong", str(error))
        yield Finding("service", "skipped", "skipped: no credentials")
        return
    yield Finding("credentials", "ok", told)
    yield Finding("address", "ok", settings.base_url)
    yield await asyncio.to_thread(_network, settings.base_url)
    yield await _clock(settings)
    yield await _service(given, settings)


def _problems(given: CommandLine) -> Iterator[str]:
    """Every setting that is wrong, not only the first."""
    try:
        given.authentication()
    except ConfigurationError as error:
        yield str(error)
    arguments = given.arguments()
    for knob in attrs.fields(Settings):
        if knob.name == "auth":
            continue
        alone: dict[str, object] = {"auth": ApiKey(), knob.name: arguments.get(knob.name)}
        if knob.name != "platform_id":
            alone["platform_id"] = _ANY_OCID
        try:
            Settings.resolve(alone, {name: os.environ.get(name, "") for name in variables_of(knob)})
        except ConfigurationError as error:
            yield str(error)


def _sources(settings: Settings, given: CommandLine) -> Iterator[Finding]:
    """Where each setting comes from; of the knobs only those that are set."""
    if settings.workspace is None:
        fix = "Set AIDP_WORKSPACE; without it only operations of the whole platform work."
        yield Finding("workspace", "warning", "none", fix)
    for knob in attrs.fields(Settings):
        source = _source(knob, given)
        if knob.name == "auth":
            yield Finding("auth", "ok", f"{settings.auth.mode}  ({source or 'default'})")
        elif source:
            yield Finding(knob.name, "ok", f"{getattr(settings, knob.name)}  ({source})")


def _source(knob: attrs.Attribute[object], given: CommandLine) -> str:
    if knob.name in given.arguments():
        return f"--{knob.name.replace('_', '-')}"
    variable = found_in(os.environ, knob)
    return f"environment, {variable}" if variable else ""


def _spool(settings: Settings) -> Finding:
    """Whether records can be journaled."""
    if settings.spool is False:
        return Finding("spool", "warning", "off: a killed process loses its undelivered records")
    try:
        named = settings.spool
        folder = default_spool_folder() if isinstance(named, bool) else absolute_folder(named)
    except SpoolError as error:
        fix = "Until then records are only in memory: a killed process loses them."
        return Finding("spool", "warning", str(error), fix)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_folder(folder, to_create=True)
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except SpoolError as error:
        return Finding("spool", "wrong", str(error))
    except OSError as error:
        fix = "Make it writable, or set ADP_ASYNC_SPOOL to another folder or to off."
        return Finding("spool", "wrong", f"{folder} cannot be written: {error.strerror}", fix)
    told = f"{folder}, {free / 2**30:.1f} GiB free"
    if free < settings.spool_limit:
        fix = "An outage of hours may need more: ADP_ASYNC_SPOOL names another folder."
        return Finding("spool", "warning", told, fix)
    return Finding("spool", "ok", told)


def _files(auth: Auth) -> Iterator[Finding]:
    """The profile, and whether other users can read its files."""
    if not isinstance(auth, ApiKey | SessionToken):
        return
    try:
        profile = read_profile(auth.config_file, auth.profile)
        doubts = auth.doubts() if isinstance(auth, ApiKey) else ""
    except ConfigurationError:
        return  # loading the credentials reports it, if they need the file
    if doubts:
        yield Finding("config file", "warning", doubts)
    else:
        yield Finding("config file", "ok", profile.where)
    for key in ("key_file", "security_token_file"):
        try:
            file = profile.path(key, "")
            is_open = file.stat().st_mode & _OTHERS
        except (ConfigurationError, OSError):
            continue  # not named, or missing: as above
        if is_open:
            told = f"{file} is readable by other users of this machine"
            yield Finding(key, "warning", told, f"chmod 600 {file}")


def _completed(settings: Settings) -> tuple[Settings, str]:
    """With the endpoint of the credentials' region; loads them, which blocks."""
    began = time.perf_counter()
    signer = settings.auth.load()
    settings = settings.complete(settings.auth.region(signer))
    took = time.perf_counter() - began
    return settings, f"{type(signer).__name__} loaded in {took:.1f} s"


def _network(address: str) -> Finding:
    parts = urlsplit(address)
    host = parts.hostname or ""
    if getproxies().get(parts.scheme) and not proxy_bypass(host):
        # The URL of a proxy may contain a password.
        return Finding("network", "ok", "through the proxy set in the environment")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((host, port), timeout=10.0) as connection:
            told = f"connected to {connection.getpeername()[0]}, port {port}"
            return Finding("network", "ok", told)
    except socket.gaierror as error:
        fix = "Check region and endpoint, then the network: DNS, VPN, proxy (HTTPS_PROXY)."
        return Finding("network", "wrong", f"{host} has no address: {error.strerror}", fix)
    except OSError as error:
        fix = "Check the endpoint, then firewall and proxy (HTTPS_PROXY)."
        why = error.strerror or "no answer within 10 s"
        return Finding("network", "wrong", f"{host}, port {port}: {why}", fix)


async def _clock(settings: Settings) -> Finding:
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


async def _service(given: CommandLine, settings: Settings) -> Finding:
    """A signed call that changes nothing."""
    scope = f"workspace {settings.workspace}" if settings.workspace else "platform"
    try:
        await _search(given, settings)
    except Throttled:
        return Finding("service", "warning", "accepted the signature, but throttles (429)")
    except ServiceFault as error:
        state: State = (
            "wrong" if error.retriable else "warning"
        )  # 501: the operation is not supported
        return Finding("service", state, _sentence(error), _fix(error))
    except AdpError as error:
        return Finding("service", "wrong", _sentence(error), _fix(error))
    return Finding("service", "ok", f"answered a signed search in the {scope}")


async def _search(given: CommandLine, settings: Settings) -> None:
    known = {"auth": settings.auth, "spool": False, "recover": False}
    arguments: dict[str, Any] = {**given.arguments(), **known}
    async with Session(**arguments, retry=RetryPolicy(max_attempts=2)) as session:
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
