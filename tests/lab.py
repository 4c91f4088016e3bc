"""JupyterLab in a real browser without a window: cells are typed, run, read and photographed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT: Final = Path(__file__).parent.parent
#: In seconds: for JupyterLab to answer, to show a notebook, and for its kernel to be ready.
LONGEST_START: Final = 90.0
BROWSERS: Final = ("chromium", "chromium-browser", "google-chrome")
#: Nothing is fetched from anywhere, and a container has no sandbox of its own.
FLAGS: Final = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
#: Cells stay in the page when they are scrolled out of it; nobody is asked about news.
SETTINGS: Final = {
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
THEMES: Final = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
#: Of a text to what is behind it; 4.5 is what the Web's guidelines for accessibility ask for, and
#: the numbers beside an axis are paler on purpose.
LEAST_CONTRAST: Final = 3.0
#: An empty notebook.
DOCUMENT: Final = {
    "cells": [],
    "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}},
    "nbformat": 4,
    "nbformat_minor": 5,
}

#: The texts and lines of an output that hardly differ from what is behind them.
FAINT: Final = """
(output, least) => {
    const numbers = text => (text.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
    const light = ([r, g, b]) => [r, g, b].map(each => each / 255).map(
        each => each <= 0.03928 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4
    ).reduce((sum, each, at) => sum + each * [0.2126, 0.7152, 0.0722][at], 0);
    const behind = element => {
        for (let at = element; at; at = at.parentElement) {
            const found = numbers(getComputedStyle(at).backgroundColor);
            if (found.length < 4 || found[3] > 0.9) return found;
        }
        return [255, 255, 255];
    };
    const contrast = (one, other) => {
        const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
        return (high + 0.05) / (low + 0.05);
    };
    const faint = [];
    for (const element of output.querySelectorAll("th, td, a, p, span, text, polyline, circle")) {
        const style = getComputedStyle(element);
        const colour = {text: style.fill, polyline: style.stroke, circle: style.fill}[
            element.tagName.toLowerCase()] || style.color;
        const found = contrast(numbers(colour), behind(element));
        if (found < least) faint.push(`${element.outerHTML.slice(0, 80)}: ${found.toFixed(1)}`);
    }
    return faint;
}
"""
#: What of an output is cut off, or has to be scrolled to.
TOO_WIDE: Final = """
output => [...output.querySelectorAll("table, svg")].filter(
    each => each.getBoundingClientRect().right > output.getBoundingClientRect().right + 1
).map(each => each.outerHTML.slice(0, 80))
"""
FACTS: Final = """
output => Object.fromEntries([...output.querySelectorAll("tr")]
    .filter(row => row.children.length == 2 && row.children[0].tagName == "TH")
    .map(row => [...row.children].map(cell => cell.innerText.trim())))
"""


def browser() -> str | None:
    """A browser of this machine that can be driven."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


class Lab:
    """A server of JupyterLab and a browser, for one notebook after the other.

    Its kernels have *variables* in their environment.
    """

    def __init__(self, folder: Path, variables: Mapping[str, str]) -> None:
        self._folder = folder
        self._variables = variables
        self._numbers = count(1)
        self._exits = ExitStack()

    def __enter__(self) -> Self:
        from playwright.sync_api import sync_playwright

        with self._exits as exits:
            self._url = exits.enter_context(_server(self._folder, self._variables))
            chromium = exits.enter_context(sync_playwright()).chromium
            started = chromium.launch(executable_path=browser(), headless=True, args=list(FLAGS))
            exits.callback(started.close)
            self._context = started.new_context(viewport={"width": 1100, "height": 2400})
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._exits.close()

    @contextmanager
    def notebook(self, *, theme: str) -> Iterator[Notebook]:
        """A new notebook with a kernel of its own, which ends with the block."""
        name = f"notebook-{next(self._numbers)}"
        (self._folder / f"{name}.ipynb").write_text(json.dumps(DOCUMENT))
        _configure(self._folder, {"apputils-extension/themes": {"theme": THEMES[theme]}})
        page = self._context.new_page()
        try:
            page.set_default_timeout(1000 * LONGEST_START)
            page.goto(f"{self._url}lab/workspaces/{name}/tree/{name}.ipynb")
            page.get_by_text(re.compile("ipykernel.* . Idle")).wait_for()
            yield Notebook(page)
        finally:
            page.close()
            self._end_kernels()

    def _end_kernels(self) -> None:
        for kernel in self._ask("GET", "api/kernels"):
            self._ask("DELETE", f"api/kernels/{kernel['id']}")

    def _ask(self, method: str, path: str) -> Any:
        with urllib.request.urlopen(
            urllib.request.Request(f"{self._url}{path}", method=method), timeout=30
        ) as reply:
            return json.loads(reply.read() or b"null")


@contextmanager
def _server(folder: Path, variables: Mapping[str, str]) -> Iterator[str]:
    """A server of JupyterLab whose notebooks are in *folder*; its URL."""
    _configure(folder, SETTINGS)
    log = folder / ".lab.log"
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
        *("--ServerApp.ip=127.0.0.1", "--ServerApp.port=0", "--IdentityProvider.token="),
        # Without a token, so without the check of cookies that goes with one.
        *("--ServerApp.disable_check_xsrf=True", f"--ServerApp.root_dir={folder}"),
    ]
    places = {
        "JUPYTERLAB_SETTINGS_DIR": str(folder / ".settings"),
        "JUPYTER_RUNTIME_DIR": str(folder / ".runtime"),
        "JUPYTER_CONFIG_DIR": str(folder / ".config"),
        "IPYTHONDIR": str(folder / ".ipython"),
        "PYTHONPATH": str(ROOT),
    }
    with log.open("w") as said:
        server = subprocess.Popen(
            command,
            env={**os.environ, **variables, **places},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
        )
    try:
        yield _url_of(server, log)
    finally:
        server.terminate()  # it ends its kernels
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _configure(folder: Path, settings: Mapping[str, object]) -> None:
    for name, values in settings.items():
        place = folder / ".settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(values))


def _url_of(server: subprocess.Popen[bytes], log: Path) -> str:
    ends_at = time.monotonic() + LONGEST_START
    while time.monotonic() < ends_at and server.poll() is None:
        if found := re.search(r"http://127\.0\.0\.1:\d+/", log.read_text()):
            try:
                with urllib.request.urlopen(f"{found[0]}api/status", timeout=5):
                    return found[0]
            except OSError:
                pass  # it listens a moment later
        time.sleep(0.2)
    raise AssertionError(f"JupyterLab did not start:\n{log.read_text()}")


class Notebook:
    """One notebook, open in a page of the browser."""

    def __init__(self, page: Any) -> None:
        self._page = page
        self._cells = 0

    def start(self, code: str) -> Cell:
        """Type *code* into a new last cell and run it; the cell, which may go on computing."""
        page = self._page
        if self._cells == 0:
            page.click(".jp-Notebook-footer")
        self._cells += 1
        cell = Cell(page.locator(".jp-Notebook .jp-Cell").nth(self._cells - 1))
        cell.type(page.keyboard, code.strip("\n"))
        page.keyboard.press("Shift+Enter")
        return cell

    def run(self, code: str, *, seconds: float = 60.0, picture: Path | None = None) -> Output:
        """Type *code* into a new last cell, run it, and wait for its end."""
        cell = self.start(code)
        cell.wait(seconds)
        if picture is not None:
            cell.output.picture(picture)
        return cell.output


class Cell:
    """A cell and what is shown below it."""

    def __init__(self, place: Any) -> None:
        self._place = place
        self._prompt = place.locator(".jp-InputArea-prompt")
        self.output = Output(place)

    def type(self, keyboard: Any, code: str) -> None:
        editor = self._place.locator(".cm-content")
        editor.click()
        keyboard.insert_text(code)
        typed = [line.inner_text().rstrip() for line in editor.locator(".cm-line").all()]
        assert typed == [line.rstrip() for line in code.split("\n")], "the editor changed it"

    @property
    def is_running(self) -> bool:
        return "*" in self._prompt.inner_text()

    def wait(self, seconds: float = 60.0) -> None:
        """Until it has been computed."""
        from playwright.sync_api import expect

        expect(self._prompt).to_have_text(re.compile(r"\[\d+\]:"), timeout=1000 * seconds)

    def wait_for_text(self, text: str, seconds: float = 30.0) -> None:
        """Until its output contains *text*."""
        found = self._place.locator(".jp-OutputArea").get_by_text(text)
        found.first.wait_for(timeout=1000 * seconds)


class Output:
    """What is shown below a cell."""

    def __init__(self, cell: Any) -> None:
        self._cell = cell
        self._area = cell.locator(".jp-Cell-outputArea")

    @property
    def text(self) -> str:
        """All of it, without the prompt in front."""
        shown = self._area.locator(".jp-OutputArea-output")
        return "\n".join(each.inner_text() for each in shown.all()).strip()

    @property
    def errors(self) -> list[str]:
        """What is shown as an error: tracebacks, and what is written to standard error."""
        found = self._area.locator("[data-mime-type$='stderr']")
        return [str(each.inner_text()) for each in found.all()]

    @property
    def facts(self) -> dict[str, str]:
        """The rows of a table of names and values."""
        found: dict[str, str] = self._area.evaluate(FACTS)
        return found

    @property
    def faint(self) -> list[str]:
        """What does not stand out from its background."""
        found: list[str] = self._area.evaluate(FAINT, LEAST_CONTRAST)
        return found

    @property
    def too_wide(self) -> list[str]:
        """What does not fit in the page."""
        found: list[str] = self._area.evaluate(TOO_WIDE)
        return found

    def count(self, selector: str) -> int:
        """How many elements of it a CSS selector finds."""
        return int(self._area.locator(selector).count())

    def picture(self, path: Path) -> None:
        self._cell.scroll_into_view_if_needed()
        self._cell.screenshot(path=str(path))
