"""One subject a module: what has more lines than this has more subjects than one."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING, Final

import adp_async

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(adp_async.__file__).parent

MAX_CLASS_LINES: Final = 350
MAX_MODULE_LINES: Final = 450


def sizes() -> Iterator[tuple[str, int, int]]:
    """Every module and class of the package: its name, its lines and how many it may have."""
    for path in sorted(ROOT.rglob("*.py")):
        source, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
        yield name, len(source.splitlines()), MAX_MODULE_LINES
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                assert node.end_lineno is not None
                lines = node.end_lineno - node.lineno + 1
                yield f"{name}: class {node.name}", lines, MAX_CLASS_LINES


def test_no_class_and_no_module_is_too_long() -> None:
    """Nothing is longer than the limits above."""
    too_long = {name: lines for name, lines, limit in sizes() if lines > limit}

    assert too_long == {}
