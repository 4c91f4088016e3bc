"""``adp-async sync``: records that dead processes left on disk, delivered or shown by hand.

A spool that a running process has open is its own business, and left alone.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TextIO
from urllib.parse import urlsplit

from attrs import define, field, frozen
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.prompt import Confirm
from rich.table import Table
from rich.text import Text

from adp_async import Session
from adp_async._io.recovery import open_orphan
from adp_async._io.spool import Contents, Spool
from adp_async._io.spool_file import (
    SpoolBusy,
    SpoolElsewhere,
    SpoolError,
    SpoolForeign,
    default_spool_folder,
    find_spools,
    remove,
)
from adp_async._sansio.records import KINDS, Metric, spell
from adp_async._sansio.texts import printable
from adp_async.errors import AdpError, ConfigurationError, Forbidden, NotAuthenticated, NotFound
from adp_async.session import recover_orphan
from adp_async.settings import Settings, absolute_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from adp_async._io.recovery import Orphan, Recovery
    from adp_async._io.spool import RunRow
    from adp_async._io.spool_file import Identity
    from adp_async._sansio.records import AnyRecord
    from adp_async.auth import Auth
    from adp_async.cli.doctor import Given

__all__ = ["discard", "export", "list_spools", "spools_at", "sync"]

#: A spool that is only emptied never grows.
_NO_LIMIT: Final = 2**62
#: What a person has to fix; anything else is tried until it works.
_HOPELESS: Final = (NotAuthenticated, Forbidden, NotFound)
_SHOWN_RUNS: Final = 12
#: An OCID to read the other settings with when the platform's own isn't set.
_ANY_OCID: Final = "ocid1.aidataplatform.oc1.iad.any"
_SECONDS_BETWEEN_LINES: Final = 5.0
_NAME = re.compile(r"(\d{4})(\d\d)(\d\d)-(\d\d)(\d\d)(\d\d)-\d+-(\d+)-[0-9a-f]+\.spool")


def spools_at(path: Path | None) -> list[Path]:
    """The spools that are meant: one file, those of a folder, or those of the usual one."""
    if path is None:
        return find_spools(_usual_folder())
    if path.is_dir():
        return find_spools(path)
    if not path.exists():
        raise SpoolError(f"{path}: there is no such file or folder")
    return [path]


def _usual_folder() -> Path:
    named = os.environ.get("ADP_ASYNC_SPOOL", "").strip()
    is_switch = named.lower() in ("", "on", "off", "true", "false", "yes", "no", "1", "0")
    if is_switch:
        return default_spool_folder()
    try:
        return absolute_folder(named)
    except ValueError as error:
        raise ConfigurationError(f"ADP_ASYNC_SPOOL: {error}") from None


def console_for(file: TextIO | None = None) -> Console:
    """A console whose lines are not folded when a program reads them."""
    console = Console(file=file, highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 1000
    return console


# Showing -----------------------------------------------------------------------------------------


def list_spools(path: Path | None) -> int:
    """Show the spools."""
    console = console_for()
    paths = spools_at(path)
    for each in paths:
        _show(console, look_at(each))
    if not paths:
        _say(console, f"no spools in {path or _usual_folder()}")
    return 0


def _say(console: Console, message: str) -> None:
    console.print(Text(printable(message, 2000)), soft_wrap=True)


def look_at(path: Path) -> Contents:
    """What *path* holds, or why that can't be read."""
    try:
        spool = Spool.open(path, limit=_NO_LIMIT)
    except SpoolBusy as error:
        return Contents(path, None, trouble=_in_use(path, error))
    except SpoolError as error:
        return Contents(path, None, trouble=str(error))
    try:
        return spool.contents()
    except SpoolError as error:
        return Contents(path, None, trouble=str(error))
    finally:
        spool.let_go()


def _in_use(path: Path, error: SpoolBusy) -> str:
    if isinstance(error, SpoolElsewhere):
        return str(error).removeprefix(f"{path.absolute()} is ")
    found = _NAME.fullmatch(path.name)
    if found is not None and _is_alive(pid := int(found[7])):
        return f"in use by pid {pid}"
    return "in use by another process, which delivers it"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _show(console: Console, contents: Contents) -> None:
    console.print(Text(printable(contents.path.name, 2000), style="bold"), soft_wrap=True)
    facts = [(name, printable(value, 2000)) for name, value in _facts(contents)]
    if not console.is_terminal:
        for name, value in facts:
            console.print(Text(f"  {name:<10}  {value}"), soft_wrap=True)
        return
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts:
        grid.add_row(name, Text(value))
    console.print(Padding(grid, (0, 0, 0, 2)))


def _facts(contents: Contents) -> Iterator[tuple[str, str]]:
    if contents.identity is not None:
        yield "platform", contents.identity.platform_id
        yield "workspace", contents.identity.workspace or "none"
        yield "endpoint", contents.identity.endpoint
        yield "waiting", _waiting(contents)
        yield from (("run", _run(run)) for run in contents.runs[:_SHOWN_RUNS])
        if (more := len(contents.runs) - _SHOWN_RUNS) > 0:
            yield "", f"and {_many(more, 'run')} more"
    if contents.rejected:
        last = contents.rejected[-1]
        yield "rejected", _many(len(contents.rejected), "record")
        yield "the last", f"{last.kind} {last.key!r} of run {last.run_id}: {last.reason}"
    if contents.last_error:
        yield "last error", contents.last_error
    if contents.trouble:
        yield "state", contents.trouble.removeprefix(f"{contents.path} ")


def _waiting(contents: Contents) -> str:
    if not contents.runs:
        return "nothing"
    age = time.time() - min(run.oldest for run in contents.runs)
    runs = _many(len(contents.runs), "run")
    return f"{_many(contents.records, 'record')} of {runs}, the oldest {_duration(age)} old"


def _run(run: RunRow) -> str:
    counts = {"metric": run.metrics, "param": run.params, "tag": run.tags}
    told = ", ".join(_many(count, kind) for kind, count in counts.items() if count)
    return f"{run.run_id}  {told}"


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _duration(seconds: float) -> str:
    """*seconds* in the unit that a person would take.

    >>> [_duration(each) for each in (5, 600, 7200, 400_000)]
    ['5 s', '10 min', '2 h', '5 days']
    """
    if seconds < 120:
        return f"{max(0.0, seconds):.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"


def short_name(path: Path) -> str:
    """A spool's name as a person reads it."""
    found = _NAME.fullmatch(path.name)
    if found is None:
        return printable(path.name, 2000)
    year, month, day, hour, minute, second, pid = found.groups()
    return f"{year}-{month}-{day} {hour}:{minute}:{second} pid {pid}"


# Exporting ---------------------------------------------------------------------------------------


def export(path: Path | None, target: Path) -> int:
    """Write every record that waits or was rejected as a line of JSON; nothing is removed."""
    problems = console_for(sys.stderr)
    exported = failed = 0
    with _written(target) as file:
        for each in spools_at(path):
            try:
                exported += _export(each, file)
            except SpoolBusy as error:
                _say(problems, f"{each.name}: {_in_use(each, error)}")
            except SpoolError as error:
                failed += 1
                _say(problems, str(error))
    problems.print(f"{_many(exported, 'record')} exported")
    return 1 if failed else 0


@contextmanager
def _written(target: Path) -> Iterator[TextIO]:
    if str(target) == "-":
        yield sys.stdout
        return
    # What was logged is its owner's business alone, and no file is overwritten.
    descriptor = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        yield file


def _export(path: Path, file: TextIO) -> int:
    count = 0
    spool = Spool.open(path, limit=_NO_LIMIT)
    try:
        for line in _lines(spool):
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            count += 1
    finally:
        spool.let_go()
    return count


def _lines(spool: Spool) -> Iterator[dict[str, object]]:
    identity = spool.identity
    where = {"platform_id": identity.platform_id, "workspace": identity.workspace}
    for run_id, record in spool.waiting():
        yield {**where, "run_id": run_id, **_fields(record), "state": "waiting"}
    for row in spool.contents().rejected:
        told = {"state": "rejected", "reason": row.reason}
        yield {**where, "run_id": row.run_id, **_fields(row.record), **told}


def _fields(record: AnyRecord) -> dict[str, object]:
    fields: dict[str, object] = {"kind": KINDS[type(record)], "key": record.key}
    if isinstance(record, Metric):
        value = spell(record.value)
        return {**fields, "value": value, "timestamp": record.timestamp, "step": record.step}
    return {**fields, "value": record.value}


# Discarding --------------------------------------------------------------------------------------


def discard(path: Path | None, *, is_sure: bool) -> int:
    """Delete the spools, after confirmation; a spool in use, or a file that is not one, stays."""
    console = console_for()
    found = [look_at(each) for each in spools_at(path)]
    removable = [each for each in found if _may_go(console, each)]
    if not removable:
        console.print("nothing to discard")
        return 0
    for each in removable:
        _show(console, each)
    if not is_sure and not _is_confirmed(removable):
        console.print("nothing was discarded")
        return 1
    for each in removable:
        _discard(each.path)
    console.print(f"{_many(len(removable), 'spool')} discarded")
    return 0


def _may_go(console: Console, contents: Contents) -> bool:
    try:
        Spool.open(contents.path, limit=_NO_LIMIT).let_go()
    except (SpoolBusy, SpoolForeign) as error:
        _say(console, f"kept: {error}")
        return False
    except SpoolError:
        return True
    return True


def _is_confirmed(spools: list[Contents]) -> bool:
    if not _is_somebody_there():
        raise ConfigurationError(
            "stdin is not a terminal: pass --yes to discard without confirmation"
        )
    records = sum(each.records + len(each.rejected) for each in spools)
    question = f"Discard {_many(records, 'record')} in {_many(len(spools), 'spool')} for good?"
    return Confirm.ask(question, default=False)


def _is_somebody_there() -> bool:
    return sys.stdin.isatty()


def _discard(path: Path) -> None:
    try:
        spool = Spool.open(path, limit=_NO_LIMIT)
    except SpoolBusy:
        raise
    except SpoolError:
        remove(path)  # it cannot be read
    else:
        spool.discard()


# Delivering --------------------------------------------------------------------------------------


@frozen
class Outcome:
    """What became of one spool."""

    delivered: int = 0
    rejected: int = 0


@frozen
class Wish:
    """What `sync` is to deliver: *path*, or the usual folder.

    *again*: refused records as well.  *anywhere*: *path* wherever it came from, and not only when
    that is where the settings say.  *timeout* in seconds.
    """

    path: Path | None
    again: bool = False
    anywhere: bool = False
    timeout: float | None = None


def sync(wish: Wish, given: Given) -> int:
    """Deliver the spools; returns the exit code, 1 when something remains."""
    console = console_for()
    paths = spools_at(wish.path)
    if not paths:
        _say(console, f"no spools in {wish.path or _usual_folder()}")
        return 0
    with Reporter.of(console) as reporter:
        try:
            asyncio.run(_deliver_all(paths, wish, given, reporter))
        except TimeoutError:
            reporter.say(f"timed out after {wish.timeout:g} s")
    return _conclude(console, paths, reporter)


async def _deliver_all(paths: list[Path], wish: Wish, given: Given, reporter: Reporter) -> None:
    # Spools in the usual folder were written by sessions of this user; a path may be from
    # anybody, and the credentials of this user go to whatever host a spool names.
    is_bound = wish.path is not None and not wish.anywhere
    async with asyncio.timeout(wish.timeout):
        place = await asyncio.to_thread(Place.of, given) if is_bound else None
        for path in paths:
            try:
                orphan = await asyncio.to_thread(_opened, path, place, again=wish.again)
            except SpoolBusy as error:
                reporter.say(f"{short_name(path)}: {_in_use(path, error)}")
            except SpoolError as error:
                reporter.say(str(error))
            else:
                if orphan is not None:
                    await _deliver(orphan, given, reporter)


def _opened(path: Path, place: Place | None, *, again: bool) -> Orphan | None:
    """The spool with what is to be delivered of it.  Raises `SpoolError`."""
    if place is not None and (problem := place.problem_with(path)):
        message = f"{path}: {problem}; --to-recorded-endpoint delivers it there all the same"
        raise SpoolError(message)
    return open_orphan(path, identity=None, limit=_NO_LIMIT, again=again)


@frozen
class Place:
    """Where the settings say that the service is; what they leave open is None."""

    endpoint: str | None
    platform_id: str | None
    workspace: str | None

    @classmethod
    def of(cls, given: Given) -> Place:
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
        """How the spool *path* is from elsewhere; empty when it is from here, or has nothing."""
        spool = Spool.open(path, limit=_NO_LIMIT)
        try:
            identity = spool.identity
        finally:
            spool.let_go()
        if self.endpoint is None:
            return f"its endpoint is {identity.endpoint}, and the settings name none"
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


async def _deliver(orphan: Orphan, given: Given, reporter: Reporter) -> None:
    auth = given.authentication()
    try:
        try:
            unopened = _session_for(orphan.spool.identity, auth)
        except ConfigurationError as error:  # what the file says of its place can't be
            reporter.say(f"{orphan.spool.path}: {error}")
            return
        async with unopened as session:
            with reporter.spool(orphan) as on_progress:
                await _until_hopeless(session, orphan, on_progress)
    finally:
        orphan.spool.let_go()


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
    told = [f"{_many(reporter.delivered, 'record')} delivered"]
    told += [f"{waiting:,} still wait"] if waiting else []
    kept = "rejected and kept (--list shows them); --again sends them once more"
    told += [f"{rejected:,} {kept}"] if rejected else []
    console.print(", ".join(told), soft_wrap=True)
    return 1 if mine else 0


@define(eq=False)
class Reporter:
    """Says how far it is, as lines."""

    console: Console
    delivered: int = field(default=0, init=False)
    _told_at: float = field(default=0.0, init=False)
    _handler: logging.Handler | None = field(default=None, init=False)

    @classmethod
    def of(cls, console: Console) -> Reporter:
        return BarReporter(console) if console.is_terminal else cls(console)

    def __enter__(self) -> Reporter:
        self._handler = _Told(self.say)
        logging.getLogger("adp_async").addHandler(self._handler)
        return self

    def __exit__(self, *error: object) -> None:
        assert self._handler is not None
        logging.getLogger("adp_async").removeHandler(self._handler)

    def say(self, message: str) -> None:
        _say(self.console, message)

    @contextmanager
    def spool(self, orphan: Orphan) -> Iterator[Callable[[Recovery], None]]:
        """For one spool: what to call with its progress."""
        name, total = short_name(orphan.spool.path), orphan.records
        last = Outcome()
        self.begin(name, total)

        def on_progress(recovery: Recovery) -> None:
            nonlocal last
            last = Outcome(*recovery.counts)
            self.progress(name, last, total)

        try:
            yield on_progress
        finally:
            self.delivered += last.delivered
            self.end(name, last, total)

    def begin(self, name: str, total: int) -> None:
        self.say(f"{name}: {_many(total, 'record')} to deliver")
        self._told_at = time.monotonic()

    def progress(self, name: str, outcome: Outcome, total: int) -> None:
        if time.monotonic() - self._told_at > _SECONDS_BETWEEN_LINES:
            self._told_at = time.monotonic()
            self.say(f"{name}: {outcome.delivered:,} of {total:,}")

    def end(self, name: str, outcome: Outcome, total: int) -> None:
        rejected = f", {outcome.rejected:,} rejected" if outcome.rejected else ""
        self.say(f"{name}: {outcome.delivered:,} of {total:,} delivered{rejected}")


@define(eq=False)
class BarReporter(Reporter):
    """Says how far it is, as a bar."""

    _progress: Progress = field(init=False)
    _task: Any = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        columns = TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn()
        self._progress = Progress(*columns, console=self.console, expand=True)

    def __enter__(self) -> Reporter:
        self._progress.start()
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._progress.stop()

    def begin(self, name: str, total: int) -> None:
        self._task = self._progress.add_task(name, total=total)

    def progress(self, name: str, outcome: Outcome, total: int) -> None:
        done = outcome.delivered + outcome.rejected
        self._progress.update(self._task, completed=done)

    def end(self, name: str, outcome: Outcome, total: int) -> None:
        if outcome.rejected:
            self.say(f"{name}: {outcome.rejected:,} rejected")


class _Told(logging.Handler):
    """What the library warns of has its place among what is said."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(record.getMessage())


def check_exclusive(**chosen: bool) -> None:
    """Raise unless at most one thing is asked for."""
    names = [f"--{name}" for name, is_chosen in chosen.items() if is_chosen]
    if len(names) > 1:
        raise AdpError(f"{' and '.join(names)} cannot be combined")
