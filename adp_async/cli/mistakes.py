"""A user's mistakes end in one line on standard error, not in a traceback."""

from __future__ import annotations

import functools
import signal
import sys
from typing import TYPE_CHECKING, NoReturn, ParamSpec

import typer

from adp_async._sansio.texts import printable
from adp_async.errors import AdpError

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")

__all__ = ["Terminated", "check_exclusive", "errors_in_one_line"]


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does, and stops everything it started."""


def errors_in_one_line(command: Callable[P, None]) -> Callable[P, None]:
    """*command* with an error shown in one line, and exit code 1; 130 or 143 at signals."""

    @functools.wraps(command)
    def told(*arguments: P.args, **options: P.kwargs) -> None:
        before = signal.signal(signal.SIGTERM, _terminate)
        try:
            command(*arguments, **options)
        except AdpError as error:
            _fail(". ".join([str(error), *getattr(error, "__notes__", ())]))
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            _fail(f"{where}{error.strerror or error}")
        except Terminated:
            _say("terminated")
            raise typer.Exit(128 + signal.SIGTERM) from None
        except KeyboardInterrupt:
            _say("interrupted")
            raise typer.Exit(128 + signal.SIGINT) from None
        finally:
            signal.signal(signal.SIGTERM, before)

    return told


def _say(message: str) -> None:
    """One line on standard error."""
    sys.stderr.write(f"adp-async: {printable(message, 2000)}\n")


def _fail(message: str) -> NoReturn:
    _say(message)
    raise typer.Exit(1) from None


def _terminate(number: int, frame: object) -> NoReturn:
    raise Terminated


def check_exclusive(**chosen: bool) -> None:
    """Raise if more than one option is chosen."""
    names = [f"--{name}" for name, is_chosen in chosen.items() if is_chosen]
    if len(names) > 1:
        raise AdpError(f"{' and '.join(names)} cannot be combined")
