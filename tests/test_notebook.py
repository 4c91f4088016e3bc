"""The README's cells, and what objects, errors and progress look like, in JupyterLab in a browser.

It needs JupyterLab, playwright and a chromium: `.ci/notebook` installs them.  Pictures are in the
folder of each test.
"""

from __future__ import annotations

import asyncio
import importlib.util
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import pytest
from lab import ROOT, Lab, browser

import adp_async
from adp_async.cli.serve import environment
from adp_async.local import Fault, Quota

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

    from lab import Notebook

    from adp_async.local import Gateway, LocalPlatform


def _missing() -> str:
    modules = [name for name in ("jupyterlab", "playwright", "pandas") if not _is_there(name)]
    if browser() is None:
        modules.append("a chromium")
    return f"needs {', '.join(modules)}" if modules else ""


def _is_there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


pytestmark = [
    pytest.mark.notebook,
    pytest.mark.mlflow,
    pytest.mark.skipif(bool(_missing()), reason=f"{_missing()}: see .ci/notebook"),
]

OPEN: Final = """
import adp_async, asyncio, time
session = await adp_async.Session(linger=0.1).open()
run = await session.start_run("looks", run_name="by hand")
"""


@pytest.fixture(scope="module")
def lab(platform: LocalPlatform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A JupyterLab whose kernels find the platform by the variables that `serve` prints."""
    folder = tmp_path_factory.mktemp("lab")
    variables = {**environment(platform), "ADP_ASYNC_SPOOL": str(folder / ".spool")}
    with Lab(folder, variables) as lab:
        yield lab


@pytest.fixture(params=["light", "dark"])
def notebook(lab: Lab, gateway: Gateway, request: pytest.FixtureRequest) -> Iterator[Notebook]:
    """A new notebook, in a light theme and in a dark one."""
    with lab.notebook(theme=request.param) as notebook:
        yield notebook


@pytest.fixture
def light(lab: Lab, gateway: Gateway) -> Iterator[Notebook]:
    """A new notebook, in a light theme."""
    with lab.notebook(theme="light") as notebook:
        yield notebook


@pytest.fixture
def reader(
    platform: LocalPlatform, gateway: Gateway, tmp_path: Path
) -> Iterator[adp_async.blocking.Session]:
    """A session of the test's own, to look at what has arrived."""
    with adp_async.blocking.Session(
        platform.platform_id,
        platform.workspace,
        endpoint=platform.endpoint,
        auth=adp_async.ApiKey(platform.config_file, platform.profile),
        spool=tmp_path / "spool",
    ) as session:
        yield session


def cells_of_the_readme() -> list[str]:
    section = re.search(
        r"^### A notebook\n(.*?)^### ", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE
    )
    assert section is not None
    return re.findall(r"^```python\n(.*?)^```$", section[1], re.DOTALL | re.MULTILINE)


def test_the_cells_of_the_readme(
    light: Notebook, reader: adp_async.blocking.Session, tmp_path: Path
) -> None:
    """Typed and run one after the other, each shows what the README says."""
    begin, train, plot, search, end = [
        light.run(code, picture=tmp_path / f"readme-{number}.png")
        for number, code in enumerate(cells_of_the_readme(), start=1)
    ]
    for output in (begin, train, plot, search, end):
        assert output.errors == [], output.text

    facts = train.facts
    assert begin.text == f"run by hand: {facts['link']}"
    assert re.fullmatch(r"digits \(id \d+\)", facts["experiment"])
    assert facts["name"] == "by hand"
    assert facts["status"] == "RUNNING"
    assert facts["link"].endswith(facts["run"])
    # The cell took three seconds: most of its points are there before it ends.
    assert int(facts["delivered"]) >= 20
    assert int(facts["delivered"]) + int(facts["waiting"]) == 61
    assert facts["metrics.loss"] != ""
    assert train.count("td svg polyline") == 2
    assert train.count("a[target=_blank]") == 1
    assert plot.count("svg polyline") == 2
    assert plot.count(".jp-OutputArea-output") == 1
    assert re.search(r"loss.*accuracy.*step", plot.text, re.DOTALL)
    assert "RUNNING" in search.text
    assert end.text == ""

    stored = reader.runs.get(facts["run"])
    assert stored.info.status == "FINISHED"
    assert [point.step for point in reader.runs.metric_history(facts["run"], "loss")] == [
        *range(30)
    ]


@pytest.mark.parametrize(("face", "seconds"), [("await", 10), ("blocking", 8)])
def test_points_arrive_while_a_cell_computes(
    face: str, seconds: int, light: Notebook, reader: adp_async.blocking.Session, tmp_path: Path
) -> None:
    """The kernel is busy all the time; the service has nearly all that was logged until then."""
    start = "await (await adp_async.Session().open()).start_run('busy')"
    if face == "blocking":
        start = "adp_async.blocking.start_run('busy')"
    run_id = light.run(f"import adp_async, time\nrun = {start}\nprint(run.run_id)").text.split()[-1]
    cell = light.start(
        f"""
for step in range({10 * seconds}):
    until = time.monotonic() + 0.1
    while time.monotonic() < until:  # busy, not asleep
        pass
    run.log_metric("loss", 1 / (step + 1), step)
"""
    )
    begun, seen = time.time(), []
    for after in range(2, seconds - 1, 2):
        time.sleep(max(0.0, begun + after - time.time()))
        asked_at = time.time()
        arrived = len(reader.runs.metric_history(run_id, "loss").to_list())
        seen.append((asked_at, arrived))
    assert cell.is_running, seen
    cell.wait()
    points = f"{10 * seconds} points in {seconds} s"
    had = {round(at - begun, 1): arrived for at, arrived in seen}
    print(f"{face}: of {points}, the service had, by seconds: {had}")
    (tmp_path / f"{face}.txt").write_text(f"{had}\n")

    # When each was logged: on a busy machine that takes longer than it should.
    logged = [each.timestamp / 1000 for each in reader.runs.metric_history(run_id, "loss")]
    for at, arrived in seen:
        assert arrived >= sum(each <= at - 3.5 for each in logged), had
    assert [arrived for _, arrived in seen] == sorted({arrived for _, arrived in seen}), seen
    light.run("run.finish()" if face == "blocking" else "await run.finish()")


def test_what_objects_show(notebook: Notebook, gateway: Gateway, tmp_path: Path) -> None:
    """In both themes every text and line stands out from its page, and nothing is cut off."""

    def show(name: str, code: str) -> Any:
        output = notebook.run(code, picture=tmp_path / f"{name}.png")
        assert output.errors == [], output.text
        assert output.faint == [], name
        assert output.too_wide == [], name
        return output

    notebook.run(OPEN)
    session = show("session", "session")
    assert session.facts["session"] == "open"
    assert session.facts["delivery"] == "ok"
    running = show(
        "run-running",
        "for n in range(50): run.log_metrics({'loss': 1 / (n + 1), 'a/long name ' * 6: n}, n)\n"
        "run.log_param('lr', 0.1)\n"
        "await run.flush()\n"
        "run",
    )
    assert (running.facts["status"], running.facts["delivered"]) == ("RUNNING", "101")
    assert running.count("td svg polyline") == 2
    stats = show("stats", "run.stats()")
    assert (stats.facts["accepted"], stats.facts["rejected"]) == ("101", "0")
    assert show("health", "session.health()").facts["delivery"] == "ok"
    assert show("plot", "run.plot()").count("svg polyline") == 2
    assert "async for" in show("listing", "session.runs.search(experiment_names=['looks'])").text

    found = notebook.run(
        "await session.runs.search(experiment_names=['looks']).to_list()",
        picture=tmp_path / "runs.png",
    )
    assert found.faint == []
    assert found.count("tbody tr") >= 1
    entity = show("entity", "entity = await session.runs.get(run.run_id)\nentity")
    assert entity.facts["params.lr"] == "0.1"
    assert entity.facts["start_time"].endswith(" UTC")
    assert show("metrics", "entity.data.metrics").count("tbody tr") == 2

    attached = show("run-attached", "session.attach_run('nonsense')")
    assert attached.facts["status"] == "unknown"
    gateway.inject(Fault.reply(503), operation="log_experiment_run_batch", times=None)
    outage = show(
        "run-outage",
        "run.log_metric('loss', 7, 50)\nfor _ in range(300):\n    await asyncio.sleep(0.1)\n"
        "    if run.stats().retries: break\nawait asyncio.sleep(1.2)\nrun",
    )
    assert outage.facts["waiting"] == "1"
    assert "503" in outage.facts["last error"]
    assert float(outage.facts["oldest waits"].split()[0]) >= 1
    down = show("session-outage", "session")
    assert re.fullmatch(r"(holding|failing) since \d\d:\d\d:\d\d UTC", down.facts["delivery"])
    assert "503" in down.facts["last error"]
    gateway.reset()
    ended = show("run-finished", "await run.finish('FAILED')\nrun")
    assert (ended.facts["status"], ended.facts["waiting"]) == ("FAILED", "0")
    closed = show("session-closed", "await session.close()\nsession")
    assert closed.facts["session"] == "closed"


def test_what_errors_show(light: Notebook, tmp_path: Path) -> None:
    """The six most common mistakes: one traceback, at most four frames of ours, the reason last."""
    light.run(OPEN)
    mistakes = {
        "run.log_metric('a\\nb', 1)": "InvalidRecord: metric",
        "run.log_metric('loss', None)": "InvalidRecord: metric 'loss'",
        "run.log_metrics('loss', 0.5)": "TypeError: ",
        "await session.runs.get('nope')": "NotFound: ",
        "adp_async.Session(lingr=1)": "TypeError: unknown setting 'lingr'; did you mean 'linger'",
        "run.log_param('p', 1)\nrun.log_param('p', 2)\nawait run.flush()": "DeliveryError: ",
    }
    for number, (code, last) in enumerate(mistakes.items(), start=1):
        output = light.run(code, picture=tmp_path / f"error-{number}.png")
        (shown,) = [text for text in output.errors if "Traceback" in text]
        assert shown.count("Traceback (most recent call last)") == 1
        frames = re.findall(r"^File .*adp_async\S*\.py:\d+, in ", shown, re.MULTILINE)
        assert len(frames) <= 4, shown
        assert re.search(rf"^{re.escape(last)}", shown, re.MULTILINE), shown
    light.run("await run.finish()\nawait session.close()")


def test_progress(light: Notebook, gateway: Gateway, tmp_path: Path) -> None:
    """A flush that waits has one line with a bar, which changes, and says in the end what became
    of it."""
    light.run(OPEN)
    gateway.quota = Quota(rate=1.0)
    cell = light.start(
        "for n in range(7000): run.log_metric('loss', 1 / (n + 1), n)\nawait run.flush()"
    )
    cell.wait_for_text("records delivered")
    first, bars = cell.output.text, cell.output.count("svg rect")
    cell.output.picture(tmp_path / "progress.png")
    cell.wait()
    last = cell.output
    last.picture(tmp_path / "progress-end.png")

    assert re.fullmatch(r"run by hand: [\d,]+ of 7,000 records delivered \| \d+ s.*", first.strip())
    assert bars == 2
    assert re.fullmatch(r"run by hand: 7,000 of 7,000 records delivered \| in \d+ s", last.text)
    assert last.count("svg rect") == 0
    assert last.count(".jp-OutputArea-output") == 1
    gateway.reset()
    light.run("await run.finish()\nawait session.close()")


def elsewhere(action: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run it in another thread: the browser's driver has an event loop in this one."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: asyncio.run(action())).result(60)


def test_a_run_that_starts_without_the_service(
    light: Notebook, gateway: Gateway, tmp_path: Path
) -> None:
    """It says that it is not created yet, and why; when the service is back, it is as any other."""
    elsewhere(gateway.down)
    try:
        offline = light.run(
            "import adp_async\nsession = await adp_async.Session(linger=0.1).open()\n"
            "run = await session.start_run('looks', run_name='early', start_timeout=1)\n"
            "run.log_metric('loss', 0.5)\nrun",
            picture=tmp_path / "offline.png",
        )
    finally:
        elsewhere(gateway.up)
    assert offline.facts["run"] == offline.facts["status"] == "not yet created"
    assert offline.facts["experiment"] == "looks"
    assert offline.facts["waiting"] == "1"
    assert offline.facts["last error"].startswith("ConnectionFailed: ")
    assert any("starts offline" in each for each in offline.errors)

    created = light.run(
        "await run.created()\nawait run.flush()\nrun", picture=tmp_path / "created.png"
    )
    assert created.facts["status"] == "RUNNING"
    assert created.facts["delivered"] == "1"
    assert created.facts["link"].endswith(created.facts["run"])
    light.run("await run.finish()\nawait session.close()")
