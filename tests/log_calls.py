"""The log lines of the package, read off its sources."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attrs import frozen

import adp_async

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(adp_async.__file__).parent
LEVELS: Final = {"debug", "info", "warning", "error", "exception", "critical", "log"}
_LOGS: Final = {f"logger.{level}" for level in LEVELS}


@frozen
class LogCall:
    """One call that logs: where it is, what it says, and what it says beside that."""

    where: str
    level: str
    #: Its message, with an ellipsis for what is filled in.
    message: str
    #: The names in what is filled in.
    names: frozenset[str]
    #: The source of its ``extra``, with that of the name it is given as.
    extra: str


def log_calls() -> Iterator[LogCall]:
    """Every call of the logger in the package."""
    for path in sorted(ROOT.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                values = _assigned(function)
                for call in _calls(function):
                    yield _described(path, call, values)


def _calls(function: ast.AST) -> Iterator[ast.Call]:
    """Those of *function* itself, not of one that is defined in it."""
    for node in ast.iter_child_nodes(function):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.Call) and ast.unparse(node.func) in _LOGS:
            yield node
        yield from _calls(node)


def _assigned(function: ast.AST) -> dict[str, list[ast.expr]]:
    """What the names in *function* are set to, one by one or together."""
    values: dict[str, list[ast.expr]] = {}
    for node in ast.walk(function):
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            both = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
            names = target.elts if both else [target]  # type: ignore[attr-defined]
            given = node.value.elts if both else [node.value]  # type: ignore[attr-defined]
            for name, value in zip(names, given, strict=True):
                if isinstance(name, ast.Name):
                    values.setdefault(name.id, []).append(value)
    return values


def _described(path: Path, call: ast.Call, values: dict[str, list[ast.expr]]) -> LogCall:
    assert isinstance(call.func, ast.Attribute)
    first, *filled = call.args
    level = call.func.attr
    if level == "log":
        level, first, *filled = ast.unparse(first), *filled
    names = {node.id for part in filled for node in ast.walk(part) if isinstance(node, ast.Name)}
    names |= {
        node.attr for part in filled for node in ast.walk(part) if isinstance(node, ast.Attribute)
    }
    extra = next((each.value for each in call.keywords if each.arg == "extra"), None)
    return LogCall(
        f"{path.relative_to(ROOT)}:{call.lineno}",
        level,
        _message(_last(first, call, values)),
        frozenset(names),
        ast.unparse(_last(extra, call, values)) if extra is not None else "",
    )


def _last(value: ast.expr, call: ast.Call, values: dict[str, list[ast.expr]]) -> ast.expr:
    """*value*, or what its name was last set to before *call*."""
    if isinstance(value, ast.Name):
        before = [each for each in values.get(value.id, []) if each.lineno <= call.lineno]
        return max(before, key=lambda each: each.lineno, default=value)
    return value


def _message(value: ast.expr) -> str:
    text = value.value if isinstance(value, ast.Constant) else None
    assert isinstance(text, str), f"a message that is not a plain text: {ast.unparse(value)}"
    return re.sub(r"%[.\d]*[a-z]", "…", text)
