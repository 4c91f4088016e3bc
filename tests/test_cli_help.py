"""What the command line says of itself: help, examples, completion, and how it is started."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import typer
from typer.testing import CliRunner

import adp_async
from adp_async.cli import app
from adp_async.cli.options import DOCUMENTATION

if TYPE_CHECKING:
    from pathlib import Path

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
PAGES = [[], *([name] for name in COMMANDS)]


def help_of(page: list[str]) -> str:
    result = CliRunner().invoke(app, [*page, "--help"], prog_name="adp-async")
    assert result.exit_code == 0
    return result.stdout


@pytest.mark.parametrize("page", PAGES, ids=" ".join)
def test_help_fits_a_terminal_and_ends_with_examples(page: list[str]) -> None:
    """No line is cut or wider than 80 columns; the last one says where more is written."""
    text = help_of(page)

    assert max(map(len, text.splitlines())) <= 80
    assert "..." not in text.partition("Commands:")[2].partition("Examples:")[0]
    assert "Examples:" in text
    assert text.splitlines()[-1].split() == ["More:", DOCUMENTATION]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_takes(name: str) -> None:
    """In the words of the command, not in those of the parser; and what it is for."""
    for each in COMMANDS[name].params:
        assert each.help, each.name
        if not getattr(each, "is_flag", False):
            assert re.fullmatch("[A-Z]+", each.metavar or ""), each.name


@pytest.mark.parametrize("page", PAGES, ids=" ".join)
def test_the_examples_are_understood(page: list[str]) -> None:
    """Each line of them parses."""
    examples = re.findall(r"^ +(adp-async .*)$", help_of(page), re.MULTILINE)

    assert examples
    for line in examples:
        _program, name, *arguments = shlex.split(line.partition(" | ")[0], comments=True)
        if name != "--install-completion":
            COMMANDS[name].make_context(name, arguments)


def test_it_runs_as_a_module() -> None:
    """`python -m adp_async` is `adp-async`, for those who have it not on the path."""
    command = [sys.executable, "-m", "adp_async"]

    version = subprocess.run([*command, "--version"], capture_output=True, text=True)
    wrong = subprocess.run([*command, "demmo"], capture_output=True, text=True)

    assert (version.stdout, version.returncode) == (f"adp-async {adp_async.__version__}\n", 0)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("Usage: adp-async [OPTIONS]")


def test_a_shell_completes_commands_and_options() -> None:
    """What bash asks for is answered, by the name that the command is installed as."""

    def completed(*words: str) -> list[str]:
        asking = {
            "_ADP_ASYNC_COMPLETE": "complete_bash",
            "COMP_WORDS": " ".join(["adp-async", *words]),
            "COMP_CWORD": str(len(words)),
        }
        done = subprocess.run(
            [sys.executable, "-m", "adp_async"],
            env={**os.environ, **asking},
            capture_output=True,
            text=True,
        )
        return done.stdout.split()

    assert completed("do") == ["doctor"]
    assert "--keep" in completed("demo", "--k")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_can_be_installed(
    shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--install-completion` writes what the shell reads into the user's home, and nowhere else."""
    monkeypatch.setattr("shellingham.detect_shell", lambda *_: (shell, f"/bin/{shell}"))
    monkeypatch.setenv("HOME", str(tmp_path))

    result = CliRunner().invoke(app, ["--install-completion"], prog_name="adp-async")

    assert result.exit_code == 0, result.output
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any("_ADP_ASYNC_COMPLETE" in path.read_text() for path in written)
