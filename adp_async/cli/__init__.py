"""The command line: ``adp-async demo | serve | doctor``.

Here are the commands and their options; what they do is in the module of that name, imported
when it is asked for.
"""

import typer

from adp_async.cli.commands import app

__all__ = ["app", "main"]


def main() -> None:
    """The entry point ``adp-async``."""
    typer.main.get_command(app)()
