"""Shows, exports and discards spools.

A spool that a running process has open is left alone.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TextIO

from rich.padding import Padding
from rich.prompt import Confirm
from rich.table import Table
from rich.text import Text

from adp_async._io.owner import started_at
from adp_async._io.spool import Contents, Spool
from adp_async._io.spool_file import (
    SpoolBusy,
    SpoolElsewhere,
    SpoolError,
    SpoolForeign,
    find_spools,
    remove,
)
from adp_async._io.spool_places import may_search, spool_places
from adp_async._knobs import absolute_folder
from adp_async._sansio.records import KINDS, Metric, spell
from adp_async._sansio.texts import counted, printable
from adp_async.cli.output import console_for, duration, print_json, say, shown
from adp_async.cli.spool_fields import fields_of
from adp_async.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rich.console import Console

    from adp_async._io.spool_report import RunRow
    from adp_async._sansio.records import AnyRecord
    from adp_async._sansio.run_start import RunStart

__all__ = [
    "NO_LIMIT",
    "discard",
    "export",
    "in_use",
    "list_spools",
    "look_at",
    "short_name",
    "spools_at",
    "usual_folders",
]

#: A spool that is only emptied never grows.
NO_LIMIT: Final = 2**62
_SHOWN_RUNS: Final = 12
_NAME = re.compile(r"(\d{4})(\d\d)(\d\d)-(\d\d)(\d\d)(\d\d)-\d+-(\d+)-[0-9a-f]+\.spool")


def spools_at(path: Path | None) -> list[Path]:
    """The spools to work on: one file, or those of a folder or of the usual ones."""
    if path is None:
        return [spool for folder in usual_folders() for spool in find_spools(folder)]
    if path.is_dir():
        return find_spools(path)
    if not path.exists():
        raise SpoolError(f"{path} does not exist")
    return [path]


def usual_folders() -> list[Path]:
    """The folders that sessions of this user spool to.  Raises `ConfigurationError`."""
    named = os.environ.get("ADP_ASYNC_SPOOL", "").strip()
    is_switch = named.lower() in ("", "on", "off", "true", "false", "yes", "no", "1", "0")
    if is_switch:
        places = spool_places()
        return [each for each in places if may_search(each)] or places[:1]
    try:
        return [absolute_folder(named)]
    except ValueError as error:
        raise ConfigurationError(f"ADP_ASYNC_SPOOL: {error}") from None


# Showing -----------------------------------------------------------------------------------------


def list_spools(path: Path | None, *, as_json: bool = False) -> int:
    """Show the spools."""
    console = console_for()
    paths = spools_at(path)
    if as_json:
        print_json([fields_of(look_at(each)) for each in paths])
        return 0
    for each in paths:
        _show(console, look_at(each))
    if not paths:
        say(console, f"no spools in {path or usual_folders()[0]}")
    return 0


def look_at(path: Path) -> Contents:
    """What *path* holds, or why that can't be read."""
    try:
        spool = Spool.open(path, limit=NO_LIMIT)
    except SpoolBusy as error:
        return Contents(path, None, trouble=in_use(path, error))
    except SpoolError as error:
        return Contents(path, None, trouble=str(error))
    try:
        return spool.contents()
    except SpoolError as error:
        return Contents(path, None, trouble=str(error))
    finally:
        spool.release()


def in_use(path: Path, error: SpoolBusy) -> str:
    """Which process has the spool open, going by its name or *error*."""
    if isinstance(error, SpoolElsewhere):
        return str(error).removeprefix(f"{path.absolute()} is ")
    found = _NAME.fullmatch(path.name)
    if found is not None and started_at(pid := int(found[7])) is not None:
        return f"in use by pid {pid}"
    return "in use by another process, which delivers it"


def _show(console: Console, contents: Contents) -> None:
    console.print(Text(printable(contents.path.name, 2000), style="bold"), soft_wrap=True)
    facts = [(name, shown(value)) for name, value in _facts(contents)]
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
            yield "", f"and {counted(more, 'run')} more"
        yield from (("run", _other(start)) for start in contents.others[:_SHOWN_RUNS])
        if (more := len(contents.others) - _SHOWN_RUNS) > 0:
            yield "", f"and {counted(more, 'run')} more without records"
    if contents.rejected:
        last = contents.rejected[-1]
        yield "rejected", counted(len(contents.rejected), "record")
        yield "the last", f"{last.kind} {last.key!r} of run {last.run_id}: {last.reason}"
    if contents.last_error:
        yield "last error", contents.last_error
    if contents.trouble:
        yield "state", contents.trouble.removeprefix(f"{contents.path} ")


def _waiting(contents: Contents) -> str:
    if not contents.runs:
        return "nothing"
    age = time.time() - min(run.oldest for run in contents.runs)
    runs = counted(len(contents.runs), "run")
    return f"{counted(contents.records, 'record')} of {runs}, the oldest {duration(age)} old"


def _run(run: RunRow) -> str:
    counts = {"metric": run.metrics, "param": run.params, "tag": run.tags}
    told = ", ".join(counted(count, kind) for kind, count in counts.items() if count)
    name = run.run_id if run.start is None else _name(run.start)
    return f"{name}  {told}"


def _other(start: RunStart) -> str:
    """A run of which no records wait."""
    if start.run_id is None:
        return f"{_name(start)}  no records"
    status = start.end.status if start.end is not None else "KILLED"
    return f"{_name(start)}  to be ended {status}"


def _name(start: RunStart) -> str:
    return str(start).removeprefix("run ")


def short_name(path: Path) -> str:
    """A spool's name for a person."""
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
                say(problems, f"{each.name}: {in_use(each, error)}")
            except SpoolError as error:
                failed += 1
                say(problems, str(error))
    problems.print(f"{counted(exported, 'record')} exported")
    return 1 if failed else 0


@contextmanager
def _written(target: Path) -> Iterator[TextIO]:
    if str(target) == "-":
        yield sys.stdout
        return
    # Readable by its owner only, and an existing file is never overwritten.
    descriptor = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        yield file


def _export(path: Path, file: TextIO) -> int:
    count = 0
    spool = Spool.open(path, limit=NO_LIMIT)
    try:
        for line in _lines(spool):
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            count += 1
    finally:
        spool.release()
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
    """Delete the spools, after confirmation; keep those in use and files that are not spools."""
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
    console.print(f"{counted(len(removable), 'spool')} discarded")
    return 0


def _may_go(console: Console, contents: Contents) -> bool:
    try:
        Spool.open(contents.path, limit=NO_LIMIT).release()
    except (SpoolBusy, SpoolForeign) as error:
        say(console, f"kept: {error}")
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
    question = f"Discard {counted(records, 'record')} in {counted(len(spools), 'spool')} for good?"
    return Confirm.ask(question, default=False)


def _is_somebody_there() -> bool:
    return sys.stdin.isatty()


def _discard(path: Path) -> None:
    try:
        spool = Spool.open(path, limit=NO_LIMIT)
    except SpoolBusy:
        raise
    except SpoolError:
        remove(path)  # it cannot be read
    else:
        spool.discard()
