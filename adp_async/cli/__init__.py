"""The command line: ``adp-async demo | serve | sync | doctor``.

Here are the commands and their options; what they do is in the module of that name, imported
when it is asked for.
"""

import io
import sys

import typer

from adp_async.cli.commands import app

__all__ = ["app", "main"]


def main() -> None:
    """The entry point ``adp-async``."""
    # A terminal that has no braille, nor the sign of micro, is no reason to fail.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    typer.main.get_command(app)()
