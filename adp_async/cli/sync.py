"""``adp-async sync``: records that dead processes left on disk, delivered by hand.

A spool that a running process has open is left alone.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from attrs import frozen

from adp_async import Session
from adp_async._io.recovery import open_orphan
from adp_async._io.spool import Spool
from adp_async._io.spool_file import SpoolBusy, SpoolError
from adp_async._sansio.texts import counted
from adp_async.cli.output import console_for, say
from adp_async.cli.reporter import Reporter
from adp_async.cli.spools import (
    NO_LIMIT,
    in_use,
    look_at,
    short_name,
    spools_at,
    usual_folders,
)
from adp_async.errors import ConfigurationError, Forbidden, NotAuthenticated, NotFound
from adp_async.session import recover_orphan
from adp_async.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rich.console import Console

    from adp_async._io.recovery import Orphan, Recovery
    from adp_async._io.spool_file import Identity
    from adp_async.auth import Auth
    from adp_async.cli.options import CommandLine

__all__ = ["Wish", "sync"]

#: Errors that a person has to fix; anything else is retried until it works.
_HOPELESS: Final = (NotAuthenticated, Forbidden, NotFound)
#: An OCID to read the other settings with when the platform's own isn't set.
_ANY_OCID: Final = "ocid1.aidataplatform.oc1.iad.any"


@frozen
class Wish:
    """What `sync` is to deliver: *path*, or the usual folder.

    *again*: refused records as well.  *anywhere*: deliver *path* to where it came from, even if
    the settings name another place.  *timeout* in seconds.
    """

    path: Path | None
    again: bool = False
    anywhere: bool = False
    timeout: float | None = None


def sync(wish: Wish, given: CommandLine) -> int:
    """Deliver the spools; returns the exit code, 1 when something remains."""
    console = console_for()
    paths = spools_at(wish.path)
    if not paths:
        say(console, f"no spools in {wish.path or usual_folders()[0]}")
        return 0
    with Reporter.of(console) as reporter:
        try:
            asyncio.run(_deliver_all(paths, wish, given, reporter))
        except TimeoutError:
            reporter.say(f"timed out after {wish.timeout:g} s")
    return _conclude(console, paths, reporter)


async def _deliver_all(
    paths: list[Path], wish: Wish, given: CommandLine, reporter: Reporter
) -> None:
    # Spools in the usual folder were written by sessions of this user; a path may be from
    # anybody, and the credentials of this user go to whatever host a spool names.
    is_bound = wish.path is not None and not wish.anywhere
    async with asyncio.timeout(wish.timeout):
        place = await asyncio.to_thread(Place.of, given) if is_bound else None
        for path in paths:
            try:
                orphan = await asyncio.to_thread(_opened, path, place, again=wish.again)
            except SpoolBusy as error:
                reporter.say(f"{short_name(path)}: {in_use(path, error)}")
            except SpoolError as error:
                reporter.say(str(error))
            else:
                if orphan is not None:
                    await _deliver(orphan, given, reporter)


def _opened(path: Path, place: Place | None, *, again: bool) -> Orphan | None:
    """The spool with what is to be delivered of it.  Raises `SpoolError`."""
    if place is not None and (problem := place.problem_with(path)):
        message = f"{path}: {problem}; --to-recorded-endpoint delivers it there anyway"
        raise SpoolError(message)
    return open_orphan(path, identity=None, limit=NO_LIMIT, again=again)


@frozen
class Place:
    """The place of the service in the settings; None for what is not set."""

    endpoint: str | None
    platform_id: str | None
    workspace: str | None

    @classmethod
    def of(cls, given: CommandLine) -> Place:
        """Blocks: the region may be that of the credentials.  Raises `ConfigurationError`."""
        auth = given.authentication()
        platform_id = os.environ.get("AIDP_INSTANCE_ID", "").strip() or None
        settings = Settings.resolve({"platform_id": platform_id or _ANY_OCID, "auth": auth})
        region = settings.region
        if settings.endpoint is None and region is None:
            region = auth.region(auth.load())
        is_known = settings.endpoint is not None or region is not None
        endpoint = settings.complete(region).base_url if is_known else None
        return cls(endpoint, platform_id, settings.workspace)

    def problem_with(self, path: Path) -> str:
        """Why the spool *path* is from elsewhere; empty if it isn't, or holds nothing."""
        spool = Spool.open(path, limit=NO_LIMIT)
        try:
            identity = spool.identity
        finally:
            spool.release()
        if self.endpoint is None:
            return f"its endpoint is {identity.endpoint}, and the settings do not name one"
        for what, here, there in (
            ("endpoint", self.endpoint, identity.endpoint),
            ("platform", self.platform_id, identity.platform_id),
            ("workspace", self.workspace, identity.workspace),
        ):
            if here is not None and _address(here) != _address(there):
                return f"its {what} is {there or 'none'}, that of the settings {here}"
        return ""


def _address(text: str) -> str:
    """*text* as it is compared: the host of a URL in any case, its usual port left out."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return text
    if parts.scheme not in ("http", "https"):
        return text
    usual = {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.scheme}://{parts.hostname}:{port or usual}{parts.path.rstrip('/')}"


async def _deliver(orphan: Orphan, given: CommandLine, reporter: Reporter) -> None:
    auth = given.authentication()
    try:
        try:
            unopened = _session_for(orphan.spool.identity, auth)
        except ConfigurationError as error:  # the file names an impossible place
            reporter.say(f"{orphan.spool.path}: {error}")
            return
        async with unopened as session:
            with reporter.spool(orphan) as on_progress:
                await _until_hopeless(session, orphan, on_progress)
    finally:
        orphan.spool.release()


def _session_for(identity: Identity, auth: Auth) -> Session:
    return Session(
        identity.platform_id,
        identity.workspace or None,
        endpoint=identity.endpoint,
        path_prefix="",  # the endpoint has it
        auth=auth,
        spool=False,
        recover=False,
    )


async def _until_hopeless(
    session: Session, orphan: Orphan, on_progress: Callable[[Recovery], None]
) -> None:
    """Deliver *orphan*; raise what only a person can fix."""
    recoveries: list[Recovery] = []

    def note(recovery: Recovery) -> None:
        recoveries[:] = [recovery]
        on_progress(recovery)

    delivering = asyncio.create_task(recover_orphan(session, orphan, note))
    try:
        while not delivering.done():
            await asyncio.wait([delivering], timeout=0.1)
            trouble = recoveries[0].trouble if recoveries else None
            if isinstance(trouble, _HOPELESS):
                raise trouble
        delivering.result()
    finally:
        delivering.cancel()
        await asyncio.wait([delivering])


def _conclude(console: Console, paths: list[Path], reporter: Reporter) -> int:
    left = [look_at(path) for path in paths if path.exists()]
    mine = [each for each in left if not each.trouble.startswith("in use")]
    waiting = sum(each.records for each in mine)
    rejected = sum(len(each.rejected) for each in mine)
    told = [f"{counted(reporter.delivered, 'record')} delivered"]
    told += [f"{waiting:,} still waiting"] if waiting else []
    starts = [start for each in mine for start in each.starts]
    late = sum(start.run_id is None for start in starts)
    told += [f"{counted(late, 'run')} not yet created"] if late else []
    told += [f"{counted(len(starts) - late, 'run')} not yet ended"] if len(starts) > late else []
    kept = "rejected and kept (--list shows them); --again sends them once more"
    told += [f"{rejected:,} {kept}"] if rejected else []
    console.print(", ".join(told), soft_wrap=True)
    return 1 if mine else 0
