"""``adp-async doctor``: checks everything between this machine and the service.

All that can be examined is examined at once: on a new machine one round shows what to set.  Each
finding is shown as it is made: what is right, what is wrong, and the fix.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import TYPE_CHECKING, Final

from rich.table import Table
from rich.text import Text

from adp_async._hop import VARIABLE
from adp_async._sansio.texts import counted
from adp_async.cli import checks, service_checks
from adp_async.cli.checks import Known
from adp_async.cli.finding import Finding, State
from adp_async.cli.output import console_for, print_json, shown
from adp_async.errors import ConfigurationError
from adp_async.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from rich.console import Console

    from adp_async.auth import Auth, Signer
    from adp_async.cli.options import CommandLine

__all__ = ["examine", "run_doctor"]

_SIGNS: Final[dict[State, tuple[str, str]]] = {
    "ok": ("ok", "green"),
    "warning": ("warn", "yellow"),
    "wrong": ("WRONG", "bold red"),
    "skipped": ("-", "dim"),
}


def run_doctor(given: CommandLine, *, as_json: bool = False) -> int:
    """Examine and print; the exit code, 1 if anything is wrong."""
    console = None if as_json else console_for()
    # Without a handler, Python would print the library's warnings, which repeat the findings.
    logger, handler = logging.getLogger("adp_async"), logging.NullHandler()
    logger.addHandler(handler)
    try:
        findings = asyncio.run(_examined(console, given))
    finally:
        logger.removeHandler(handler)
    wrong = sum(each.state == "wrong" for each in findings)
    if console is None:
        print_json({"ok": not wrong, "findings": [each.fields() for each in findings]})
    elif wrong:
        console.print(f"\n{counted(wrong, 'problem')} to fix", style="bold red")
    else:
        console.print("\nAll is well: a session will work with these settings.", style="bold green")
    return 1 if wrong else 0


async def _examined(console: Console | None, given: CommandLine) -> list[Finding]:
    findings = []
    async for finding in examine(given):
        findings.append(finding)
        if console is not None:
            _print(console, finding)
    return findings


def _print(console: Console, finding: Finding) -> None:
    sign, style = _SIGNS[finding.state]
    lines = [shown(each) for each in (finding.told, finding.fix) if each]
    if not console.is_terminal:
        for name, step, line in zip((sign, ""), (finding.step, ""), lines, strict=False):
            console.print(Text(f"{name:>5} {step:<12} {line}"), soft_wrap=True)
        return
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=5, justify="right", style=style)
    grid.add_column(width=12, style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, step, line in zip((sign, ""), (finding.step, ""), lines, strict=False):
        grid.add_row(name, step, Text(line))
    console.print(grid)


# The steps ---------------------------------------------------------------------------------------


async def examine(given: CommandLine) -> AsyncIterator[Finding]:
    """All steps in turn, without those that cannot be taken since others failed."""
    yield checks.versions()
    for finding in checks.variables(os.environ):
        yield finding
    if checks.leads_to_agent(given, os.environ):
        async for finding in _through_agent(given):
            yield finding
        return
    known = Known.of(given)
    for finding in checks.sources(known, given):
        yield finding
    if "spool" not in known.problems:
        yield checks.spool(known.settings)
    found, credentials = await asyncio.to_thread(_credentials, known)
    for finding in found:
        yield finding
    found, settings = await asyncio.to_thread(_address, known, credentials)
    for finding in found:
        yield finding
    async for finding in _road(known, settings):
        yield finding
    if known.problems or credentials is None or settings is None:
        yield Finding("service", "skipped", "not asked: fix what is wrong above first")
    else:
        yield await service_checks.service(given, settings)


async def _through_agent(given: CommandLine) -> AsyncIterator[Finding]:
    """Credentials, network and spool are the agent's."""
    try:
        settings = await asyncio.to_thread(Settings.resolve, given.arguments())
    except ConfigurationError as error:
        yield Finding("agent", "wrong", str(error))
        return
    yield Finding("agent", "ok", f"{settings.agent}  (environment, {VARIABLE})")
    yield Finding("platform_id", "ok", f"{settings.platform_id}  (of the agent)")
    yield Finding("workspace", "ok", f"{settings.workspace or 'none'}  (of the agent)")
    yield await service_checks.service(given, settings)


def _credentials(known: Known) -> tuple[list[Finding], tuple[Auth, Signer] | None]:
    """What the credentials are made of, and the signer they make.  Blocks."""
    if "auth" in known.problems:
        return [], None
    auth = known.settings.auth
    found = [*checks.files(auth), *checks.expiry(auth)]
    began = time.perf_counter()
    try:
        signer = auth.load()
    except ConfigurationError as error:
        return [*found, Finding("credentials", "wrong", str(error))], None
    told = f"{type(signer).__name__} loaded in {time.perf_counter() - began:.1f} s"
    return [*found, Finding("credentials", "ok", told), *checks.fingerprint(auth, signer)], (
        auth,
        signer,
    )


def _address(
    known: Known, credentials: tuple[Auth, Signer] | None
) -> tuple[list[Finding], Settings | None]:
    """The region, and the address of the service, if they are known.  Blocks."""
    if not known.problems.keys().isdisjoint(("endpoint", "region", "path_prefix")):
        return [Finding("address", "skipped", "not known: fix the settings first")], None
    settings = known.settings
    region = settings.region
    try:
        if region is None and settings.endpoint is None and credentials is not None:
            auth, signer = credentials
            region = auth.region(signer)
        completed = settings.complete(region)
    except ConfigurationError as error:
        state: State = "wrong" if credentials is not None else "skipped"
        return [Finding("address", state, str(error))], None
    return [*_region(settings, completed), Finding("address", "ok", completed.base_url)], completed


def _region(settings: Settings, completed: Settings) -> Iterator[Finding]:
    """Nothing where an endpoint is given: then no region is looked up."""
    if settings.endpoint is None and completed.region is not None:
        yield service_checks.region(completed.region)


async def _road(known: Known, settings: Settings | None) -> AsyncIterator[Finding]:
    """Certificates, proxy, network and clock; of the last two nothing without an address."""
    address = settings.base_url if settings else ""
    certificates = None
    if "ca_bundle" not in known.problems:
        certificates = service_checks.certificates(known.settings, address)
        yield certificates
    finding, proxy = service_checks.proxy(address)
    if finding is not None:
        yield finding
    if settings is None or (finding is not None and finding.state == "wrong"):
        return
    yield await asyncio.to_thread(service_checks.network, address, proxy)
    if certificates is not None and certificates.state != "wrong":
        yield await service_checks.clock(settings)
