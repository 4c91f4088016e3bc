"""The rules of the house, read off the source: who may import whom."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import adp_async

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(adp_async.__file__).parent

#: A layer (a folder or a module of the root) and those below it that it may import.
LAYERS = {
    "_version": set(),
    "errors": set(),
    "_failures": {"errors"},
    "_html": set(),
    "_signatures": set(),
    "stats": {"_html"},
    "instrumentation": {"stats", "errors"},
    "entities": {"_html", "errors"},
    "_sansio": {"entities", "errors"},
    "_credential_files": {"_sansio", "errors"},
    "_oci_config": {"_credential_files", "_sansio", "errors"},
    "_private_keys": {"_sansio", "errors"},
    "auth": {"_private_keys", "_oci_config", "_credential_files", "_sansio", "errors"},
    "_knobs": {"_sansio", "errors"},
    "_hop": {"auth", "_sansio", "errors"},
    "_regions": set(),
    "settings": {"_regions", "_hop", "_knobs", "auth", "_sansio", "errors"},
    "_io": {
        "settings", "_regions", "_hop", "_knobs", "auth", "_sansio", "entities", "instrumentation",
        "stats", "errors", "_version",
    },
    "api": {"_sansio", "entities", "_html", "errors"},
    "_progress": {"_io", "_sansio", "_html"},
    "_line_chart": {"_sansio"},
    "_svg_chart": {"_html"},
    "display": {
        "_svg_chart", "_line_chart", "_io", "settings", "_sansio", "stats", "_html", "errors",
    },
    "writer": {"_io", "_sansio", "errors"},
    "_sharing": {"_io"},
    "logger": {
        "writer", "display", "_progress", "_io", "_sansio", "entities", "stats", "errors",
    },
    "artifacts": {"_io", "_sansio", "errors"},
    "lenient": {"writer", "_io", "_sansio", "errors"},
    "late_run": {"writer", "stats", "_io", "_sansio", "errors"},
    "run": {
        "_failures", "lenient", "artifacts", "late_run", "logger", "_sharing", "writer", "display",
        "_progress",
        "api", "_io", "settings", "_sansio", "entities", "stats", "errors",
    },
    "starting": {"run", "writer", "api", "_io", "_sansio", "entities", "errors"},
    "session": {
        "_signatures", "starting", "run", "logger", "_sharing", "writer", "display", "_progress",
        "api", "_io",
        "settings", "auth", "_sansio", "entities", "stats", "errors",
    },
    "_shared_sessions": set(),
    "_blocking_runs": {
        "run", "lenient", "artifacts", "_sharing", "writer", "display", "api", "_io", "settings",
        "_sansio", "entities", "stats", "errors",
    },
    "_blocking_logger": {"logger", "_sansio", "errors"},
    "blocking": {
        "_signatures", "_blocking_logger", "_blocking_runs", "_shared_sessions", "session",
        "starting", "run",
        "logger", "_sharing", "writer", "api", "_io", "settings", "_sansio", "entities", "stats",
        "errors",
    },
    "_inherited": {"blocking", "_shared_sessions", "session", "run", "_io", "settings", "errors"},
    "address": {"blocking", "_blocking_runs", "run", "lenient", "settings"},
    "collector": {
        "blocking", "_blocking_runs", "_shared_sessions", "session", "run", "writer", "_io",
        "settings", "_hop", "auth", "_sansio", "stats", "errors",
    },
}  # fmt: skip

#: Standing on top of all of it, for users' tests and hands; nothing below may know of them.
TOPS = {"", "cli", "integrations", "local", "testing", "pytest_plugin", "__main__"}

#: What the pure core must not touch: clocks, dice, disks, sockets, tasks.
IMPURE = {
    "adp_async._io", "aiohttp", "anyio", "asyncio", "concurrent", "contextvars", "http", "io",
    "logging", "multiprocessing", "oci", "os", "pathlib", "queue", "random", "requests", "secrets",
    "select", "shutil", "signal", "socket", "sqlite3", "ssl", "subprocess", "tempfile",
    "threading", "time", "urllib.request", "uuid",
}  # fmt: skip

#: Beyond the standard library, what the pure core is made of.
PURE = {"attrs", "cattrs", "msgspec", "yarl"}


#: What a layer hands out although it stands above: imported when it is asked for.
HANDED_OUT = {"_sharing": {"collector", "_inherited"}}


def modules(layer: str) -> list[Path]:
    single = ROOT / f"{layer}.py"
    return [single] if single.exists() else sorted((ROOT / layer).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Dotted names of all imports in *path*, also those for types alone and those in functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            if node.module == "adp_async":
                yield from (f"adp_async.{name.name}" for name in node.names)


def layer_of(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_down_only(layer: str) -> None:
    """A layer knows those below it, and never one above or beside it."""
    for path in modules(layer):
        used = {layer_of(name) for name in imports(path) if is_within(name, "adp_async")}
        assert used - {layer} <= LAYERS[layer] | HANDED_OUT.get(layer, set()), path


def test_there_is_no_layer_without_a_rule() -> None:
    """A new module of the root gets its place in the table above."""
    names = {path.stem if path.suffix else path.name for path in ROOT.iterdir()}
    ours = {name for name in names if name not in ("__init__", "__pycache__", "py")}

    assert ours <= set(LAYERS) | TOPS


def test_the_table_points_down() -> None:
    """No two layers may import each other, directly or around corners."""
    below: set[str] = set()
    for layer, allowed in LAYERS.items():
        assert allowed <= below, layer
        below.add(layer)


@pytest.mark.parametrize("path", modules("integrations"), ids=lambda path: path.stem)
def test_integrations_use_public_names_only(path: Path) -> None:
    """What joins us to a framework could have been written by a user, but for what they share."""
    for name in imports(path):
        parts = name.removeprefix("adp_async.integrations._shared").split(".")
        assert parts[0] != "adp_async" or not any(part.startswith("_") for part in parts), name


@pytest.mark.parametrize("path", modules("_sansio"), ids=lambda path: path.stem)
def test_the_core_is_pure(path: Path) -> None:
    """No clock, no dice, no disk, no socket, no task: those are arguments, or the shell's."""
    for name in imports(path):
        assert not any(is_within(name, impure) for impure in IMPURE), name
        top = name.partition(".")[0]
        assert top in sys.stdlib_module_names or top in PURE | {"adp_async"}, name


@pytest.mark.parametrize("path", modules("_sansio"), ids=lambda path: path.stem)
def test_the_core_does_not_wait(path: Path) -> None:
    """Nothing in it is a coroutine."""
    waits = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)

    assert not any(isinstance(node, waits) for node in ast.walk(ast.parse(path.read_text())))


@pytest.mark.parametrize("path", modules("integrations"), ids=lambda path: path.stem)
def test_integrations_use_public_names(path: Path) -> None:
    """They could be anybody's: nothing of ours with an underscore, but what they share."""
    for name in imports(path):
        if is_within(name, "adp_async") and not is_within(name, "adp_async.integrations"):
            assert "._" not in name, name


@pytest.mark.parametrize("name", ["sender", "keeper"])
def test_the_sender_never_sees_the_session(name: str) -> None:
    """It is handed callables, not what they belong to."""
    source = (ROOT / "_io" / f"{name}.py").read_text()

    assert "Session" not in source


def test_oci_is_imported_late() -> None:
    """It takes over a second: only where a signer is loaded, never when the package is."""
    for path in ROOT.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names]
                module = getattr(node, "module", None) or ""
                assert not any(is_within(name, "oci") for name in [module, *names]), path


#: What the core may hold of the shell, by module and name, each with its reason.
WAYS_BACK = {
    # A record is its own receipt; awaiting it leads through its lane to those who wait.
    ("lane", "Waits"),
}


def protocols(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            bases = [ast.unparse(base).partition("[")[0] for base in node.bases]
            if "Protocol" in bases:
                yield node.name


def annotations(path: Path) -> Iterator[tuple[str, str]]:
    """What classes hold: their fields, annotated attributes and the arguments of ``__init__``."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ClassDef):
            continue
        for each in ast.walk(node):
            if isinstance(each, ast.AnnAssign):
                yield f"{node.name}.{ast.unparse(each.target)}", ast.unparse(each.annotation)
            elif isinstance(each, ast.FunctionDef) and each.name == "__init__":
                arguments = [*each.args.args, *each.args.kwonlyargs]
                for argument in arguments:
                    if argument.annotation is not None:
                        yield f"{node.name}.{argument.arg}", ast.unparse(argument.annotation)


@pytest.mark.parametrize("path", modules("_sansio"), ids=lambda path: path.stem)
def test_the_core_holds_no_callable_of_the_shell(path: Path) -> None:
    """It returns what happened; nothing that it keeps is there to be called up."""
    held = [name for name, kind in annotations(path) if "Callable" in kind]
    assert not held

    # These describe values, where a record is (in a lane, or at its verdict), and a request's body.
    described = {("values", "SupportsItem"), ("values", "SupportsItems"), ("values", "Labelled")}
    described |= {("records", "Place"), ("messages", "Stream")}
    assert {(path.stem, name) for name in protocols(path)} <= WAYS_BACK | described


def test_the_package_is_imported_without_its_machinery() -> None:
    """Connections and delivery come with the first session, uploads with the first artifact."""
    late = ["aiohttp", "oci", "sqlite3", "adp_async._io.engine", "adp_async._io.streams"]
    script = f"import sys, adp_async; print(set({late!r}) & sys.modules.keys())"
    environment = {key: text for key, text in os.environ.items() if key != "COVERAGE_PROCESS_START"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_the_theory_of_operation_names_every_module_of_the_core() -> None:
    """Its table is the map of the pure core."""
    described = adp_async._sansio.__doc__ or ""
    assert [p.stem for p in modules("_sansio") if f"`{p.stem}`" not in described] == ["__init__"]
