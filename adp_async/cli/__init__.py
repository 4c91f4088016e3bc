"""The command line: ``adp-async demo | serve | sync | doctor``.

Each command is a module of that name, imported when the command is run.
"""

import io
import sys

import typer

from adp_async.cli.commands import app

__all__ = ["app", "main"]


def main() -> None:
    """The entry point ``adp-async``."""
    # Don't fail on a terminal that cannot show braille or the micro sign.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    # By this name the shell's completion finds it, however it was started.
    typer.main.get_command(app)(prog_name="adp-async")
