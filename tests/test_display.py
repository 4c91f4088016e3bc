"""What a notebook shows of sessions, runs, counts, entities and listings."""

from __future__ import annotations

import asyncio
import math
import re
import sys
from io import BytesIO, TextIOWrapper
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import pytest

from adp_async import ConfigurationError, Settings, Stats, _html, _svg_chart
from adp_async._sansio import samples
from adp_async._sansio.records import DELIVERED, Metric
from adp_async._sansio.samples import Samples
from adp_async._svg_chart import chart
from adp_async.display import Picture
from adp_async.entities import (
    Dataset,
    DatasetInput,
    Experiment,
    Param,
    Run,
    RunData,
    RunInfo,
    RunTag,
)
from adp_async.entities import Metric as MetricEntity
from adp_async.testing import PLATFORM_ID, FakeBlockingSession, FakeSession

PAGE = "https://host/{workspace}/#/experiments/{experiment_id}/runs/{run_id}"


def cells(page: str) -> dict[str, str]:
    """The rows of a table of facts; the page must be well-formed."""
    root = ElementTree.fromstring(page)
    return {row[0].text or "": "".join(row[1].itertext()) for row in root}


def delivered(key: str, *values: float) -> list[Any]:
    return [Metric(key, value, 7, step, DELIVERED) for step, value in enumerate(values)]


async def test_a_run_from_start_to_end() -> None:
    """Its table has experiment, link, status, counts and a line for each metric."""
    async with FakeSession(page_url=PAGE) as session:
        run = await session.start_run("digits", run_name="sgd")
        for step in range(30):
            run.log_metrics({"loss": 1.0 / (step + 1), "acc": step / 30}, step=step)
        await run.flush()
        shown = cells(run._repr_html_())
        assert shown["run"] == run.run_id
        assert shown["name"] == "sgd"
        assert shown["experiment"] == f"digits (id {run.experiment_id})"
        assert shown["status"] == "RUNNING"
        assert shown["link"] == run.url
        assert (shown["delivered"], shown["waiting"], shown["rejected"]) == ("60", "0", "0")
        assert shown["metrics.loss"].strip() == "0.033333"
        assert shown["metrics.acc"].strip() == "0.96667"
        await run.finish()
        assert cells(run._repr_html_())["status"] == "FINISHED"


async def test_an_attached_run_is_not_said_to_be_running() -> None:
    """Nothing is asked of the service: its status is unknown, until this session sets one."""
    async with FakeSession() as session:
        run = session.attach_run(session.add_run())
        assert cells(run._repr_html_())["status"] == "unknown"
        again = await session.attach_run(run.run_id, resume=True)
        assert cells(run._repr_html_())["status"] == "RUNNING"
        await again.finish("FAILED")
        assert cells(run._repr_html_())["status"] == "unknown"
        assert cells(again._repr_html_())["status"] == "FAILED"


async def test_a_run_that_somebody_ended_by_hand() -> None:
    """A status set by a direct call of this session ends it here as well."""
    async with FakeSession() as session:
        run = await session.start_run()
        await session.runs.update(run.run_id, status="FINISHED")
        assert cells(run._repr_html_())["status"] != "RUNNING"


async def test_the_last_error_of_a_run() -> None:
    """What was refused is shown with its key; and what holds records, with the error."""
    async with FakeSession() as session:
        refusal = {"error_code": "INVALID_PARAMETER_VALUE", "message": "<b>bad</b> key"}
        session.answer("log_experiment_run_batch", refusal, status=400, times=1)
        run = await session.start_run()
        run.log_metric("lo<ss", 0.5)
        assert await run.try_flush() is not None
        page = run._repr_html_()
        assert "<b>" not in page
        assert "'lo<ss'" in cells(page)["last error"]
        assert cells(page)["rejected"] == "1"
        session.logger._delivery.accumulator.rejections.take(None)


async def test_a_hold() -> None:
    """While requests are held after a 429, the session and busy runs say until when."""
    async with FakeSession(close_timeout=0.2) as session:
        session.answer("log_experiment_run_batch", status=429, headers={"retry-after": "60"})
        run = await session.start_run()
        assert "held until" not in cells(run._repr_html_())
        run.log_metric("loss", 0.5)
        async with asyncio.timeout(10):
            while not session.logger.stats().throttled:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.005)
        delivery = cells(session._repr_html_())["delivery"]
        assert re.fullmatch(r"holding since \d\d:\d\d:\d\d UTC", delivery)
        for page in (run._repr_html_(), session._repr_html_()):
            held = re.fullmatch(r"\d\d:\d\d:\d\d UTC, for (\d+) s .*", cells(page)["held until"])
            assert held is not None
            assert 55 <= int(held[1]) <= 80
        run.discard()


async def test_a_session() -> None:
    """It says where it leads, whether it is open, and what became of the records."""
    async with FakeSession() as session:
        run = await session.start_run()
        await run.log_metric("loss", 0.5)
        shown = cells(session._repr_html_())
        assert shown["platform"] == PLATFORM_ID
        assert shown["session"] == "open"
        assert shown["delivery"] == "ok"
        assert shown["delivered"] == "1"
    assert cells(session._repr_html_())["session"] == "closed"


async def test_a_logger() -> None:
    """It shows what its session does, and its repr says what holds records."""
    async with FakeSession(linger=0.0, close_timeout=0.2, spool=False) as session:
        assert cells(session.logger._repr_html_())["workspace"] == "fake"
        outage = session.answer("log_experiment_run_batch", status=503)
        run = await session.start_run()
        run.log_metric("loss", 0.5)
        async with asyncio.timeout(10):
            while session.health().status == "ok":  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.005)
        assert repr(session.logger).endswith(" | held back by ServiceFault>")
        shown = cells(session.logger._repr_html_())
        assert shown["last error"].startswith("ServiceFault: ")
        outage.left = 0
        await run.flush()
        assert "held back" not in repr(session.logger)


def test_the_blocking_face() -> None:
    """A blocking session and its runs show themselves as the asynchronous ones do."""
    with FakeBlockingSession(page_url="http://h/{run_id}") as session:
        with session.start_run() as run:
            run.log_metric("loss", 0.5)
            assert cells(run._repr_html_())["status"] == "RUNNING"
        shown = cells(run._repr_html_())
        assert shown["status"] == "FINISHED"
        assert shown["link"] == run.url == f"http://h/{run.run_id}"
        assert shown["metrics.loss"].strip() == "0.5"
        assert cells(session._repr_html_())["session"] == "open"


def test_counts() -> None:
    """Each count is a row, and what was rejected is told by the class of the error."""
    shown = cells(Stats(accepted=1234, rejected={"BadRequest": 3}, oldest=2.04)._repr_html_())

    assert shown["accepted"] == "1,234"
    assert shown["rejected"] == "BadRequest: 3"
    assert shown["oldest"] == "2.0 s"


def test_an_entity() -> None:
    """Parts have a row for each of their fields, params and tags one a key, times are dates."""
    run = Run(
        RunInfo(run_id="7", status="FINISHED", start_time=1_700_000_000_000),
        RunData((MetricEntity("loss", 0.5, 7),), (Param("lr", "0.1"),), (RunTag("team", "<b>"),)),
    )
    page = run._repr_html_()
    shown = cells(page)

    assert "<b>" not in page
    assert shown["run_id"] == "7"
    assert shown["start_time"] == "2023-11-14 22:13:20 UTC"
    assert (shown["metrics.loss"], shown["params.lr"], shown["tags.team"]) == ("0.5", "0.1", "<b>")
    assert cells(Experiment("1", "digits")._repr_html_()) == {
        "experiment_id": "1",
        "name": "digits",
    }


async def test_a_listing_asks_for_nothing() -> None:
    """Showing a listing says how to read it, without a request."""
    async with FakeSession() as session:
        listing = session.runs.search(experiment_ids=["0"])
        assert cells(listing._repr_html_())["listing of"] == "list_experiment_runs"
        assert "list_experiment_runs" in repr(listing)
        assert session.requests == []


def test_everything_is_escaped() -> None:
    """Markup, quotes, controls and half characters come out as harmless text."""
    page = _html.facts({"<i>": "a'\"&\x1b[31m\u202e\ud800", "long": "x" * 1000})

    assert "<i>" not in page
    assert page.encode()
    shown = cells(page)
    assert shown["<i>"] == "a'\"& [31m  "
    assert len(shown["long"]) == _html.LONGEST


def test_a_link_leads_to_the_web_only() -> None:
    """A script in place of a URL is text."""
    assert "href" not in _html.link("javascript:alert(1)")
    assert _html.link("https://h/?a='b'&c").count("'") == 6


def test_long_tables_are_cut() -> None:
    """A hundred rows are shown, and how many more there are."""
    page = _html.table([{"n": n} for n in range(1234)])

    assert page.count("<tr>") == 101
    assert page.endswith("<p>and 1,134 more</p>")


def test_wide_tables_are_cut() -> None:
    """Columns without a value are left out, and beyond 24 only their number is shown."""
    page = _html.table([{"none": None, "empty": "", **{f"m{n}": n for n in range(30)}}])

    assert page.count("<th ") == 24
    assert "none" not in page
    assert page.endswith("<p>and 6 more columns</p>")


def test_facts_without_a_value_are_left_out() -> None:
    """So are those beyond the first hundred, which are counted."""
    assert cells(_html.facts({"a": None, "b": "", "c": 0})) == {"c": "0"}
    page = _html.facts({f"m{n}": n for n in range(500)})
    assert page.count("<tr>") == 100
    assert page.endswith("<p>and 400 more</p>")


def test_long_values_take_several_lines() -> None:
    """An OCID or a URL would be cut off at the edge of the page."""
    assert "overflow-wrap:anywhere" in _html.facts({"platform": PLATFORM_ID})


def test_params_and_metrics_are_tables() -> None:
    """Those of a run that was read show themselves as tables, not as one long line."""
    data = RunData((MetricEntity("loss", 0.1 + 0.2, 1_700_000_000_000, 3),), (Param("lr", "0.1"),))

    rows = [
        [cell.text for cell in row]
        for row in ElementTree.fromstring(data.metrics._repr_html_()).iter("tr")
    ]
    assert rows == [
        ["key", "value", "timestamp", "step"],
        ["loss", "0.3", "2023-11-14 22:13:20 UTC", "3"],
    ]
    assert "lr" in data.params._repr_html_()
    assert data.tags._repr_html_() == "none"


def test_many_metrics_of_a_run() -> None:
    """The first twelve have a row each; of the others, there is their number."""
    with FakeBlockingSession() as session, session.start_run() as run:
        run.log_metrics({f"m{n}": n for n in range(20)})
        run.flush()
        shown = cells(run._repr_html_())
        assert sum(name.startswith("metrics.") for name in shown) == 12
        assert shown["more metrics"] == "8, drawn by run.plot()"
        run.log_metrics({f"n{n}": n for n in range(20)})
        run.flush()
        shown = cells(run._repr_html_())
        assert shown["more metrics"] == "at least 20, drawn by run.plot()"


def test_no_colour_of_text_or_background_is_set() -> None:
    """Whatever the theme of the page is, what is shown has its colours."""
    page = _html.facts({"loss": _html.sparkline([(0, 1.0), (1, 2.0)])})

    assert not re.search(r"(?<!-)color:|background|#[0-9a-f]{3}", page)
    assert "currentColor" in page


@pytest.mark.parametrize(
    "values",
    [[1.0, 1.0], [-1.7e308, 1.7e308], [0.0, 5e-324], [math.nan, 1.0, math.inf, 2.0]],
    ids=["level", "widest", "narrowest", "not finite"],
)
def test_sparklines_of_any_values(values: list[float]) -> None:
    """Every line stays within its picture."""
    page = _html.sparkline(enumerate(values))

    svg = ElementTree.fromstring(page[: page.index("</svg>") + 6])
    for pair in (svg[0].get("points") or "").split():
        x, y = map(float, pair.split(","))
        assert 0 <= x <= _html.WIDTH
        assert 0 <= y <= _html.HEIGHT


def test_a_sparkline_without_a_finite_value() -> None:
    """It says so."""
    assert _html.sparkline([(0, math.nan)]) == "no finite value"


def test_a_single_value_needs_no_line() -> None:
    """Its number is all there is to see."""
    assert _html.sparkline([(7, 0.25), (8, math.inf)]) == "0.25"


# Points that are kept


def test_a_long_series_is_thinned_out_evenly() -> None:
    """Whatever its length, at most so many points are kept, spread over all of it."""
    kept = Samples()
    for start in range(0, 100_000, 50):
        batch = [Metric("loss", float(n), 7, n, DELIVERED) for n in range(start, start + 50)]
        kept.take("run", batch, now=0.0)

    points = kept.of("run")["loss"]
    assert samples.MOST_POINTS / 2 <= len(points) <= samples.MOST_POINTS + 1
    assert points[0] == (0.0, 0.0)
    assert points[-1] == (99_999.0, 99_999.0)
    gaps = {second[0] - first[0] for first, second in pairwise(points[:-1])}
    assert len(gaps) == 1


def test_large_batches_are_looked_at_in_stretches() -> None:
    """Every metric of a step is seen, the last values among them, in a bounded number of looks."""
    kept = Samples()
    kept.take("run", delivered("first", *range(samples.WHOLE)), now=0.0)
    before = len(kept.of("run")["first"])
    batch = [Metric(f"m{n % 20}", float(n), 7, n // 20, DELIVERED) for n in range(1000)]
    kept.take("run", batch, now=0.0)

    found = kept.of("run")
    assert sorted(found) == sorted(["first", *(f"m{n}" for n in range(20))])
    assert found["m19"][-1] == (49.0, 999.0)
    assert sum(map(len, found.values())) - before <= samples.STRETCHES * samples.STRETCH


def test_of_a_short_run_nothing_is_missed() -> None:
    """As long as a metric has few points, each of them is there, however large the batch."""
    kept = Samples()
    kept.take("run", [each for n in range(10) for each in delivered(f"m{n}", *range(100))], 0.0)

    assert all(
        points == [(float(n), float(n)) for n in range(100)] for points in kept.of("run").values()
    )


def test_keys_and_runs_are_bounded() -> None:
    """A run keeps its first metrics; another run gets a place when one has been idle."""
    kept = Samples()
    kept.take("wide", [each for n in range(100) for each in delivered(f"m{n}", 1.0)], now=0.0)
    assert len(kept.of("wide")) == samples.MOST_KEYS

    for n in range(samples.MOST_RUNS - 1):
        kept.take(f"run{n}", delivered("loss", 1.0), now=float(samples.IDLE))
    kept.take("one more", delivered("loss", 1.0), now=samples.IDLE - 1.0)
    assert not kept.of("one more")
    kept.take("one more", delivered("loss", 1.0), now=samples.IDLE + 1.0)
    assert kept.of("one more")
    assert not kept.of("wide")
    assert kept.of("run0")


def test_only_what_was_delivered_is_drawn() -> None:
    """A refused metric leaves no point."""
    kept = Samples()
    kept.take("run", [Metric("loss", 1.0, 7, 0, None)], now=0.0)

    assert kept.of("run") == {}


def test_the_call_does_not_pay_for_the_picture() -> None:
    """`log_metric` runs nothing of the module that takes points."""
    seen: list[str] = []

    def profile(frame: Any, event: str, _: Any) -> None:
        if event == "call":
            seen.append(frame.f_code.co_filename)

    with FakeBlockingSession(linger=60.0) as session:
        run = session.start_run()
        sys.setprofile(profile)
        try:
            run.log_metric("loss", 0.5)
        finally:
            sys.setprofile(None)
        assert seen
        assert not [name for name in seen if "samples" in name]
        run.finish()


# The page of a run


def resolved(page_url: object) -> Settings:
    return Settings.resolve({"platform_id": PLATFORM_ID, "page_url": page_url}, {})


@pytest.mark.parametrize(
    "wrong",
    [
        "https://host/runs",
        "https://host/{run_id}/{user}",
        "https://host/{run_id",
        "https://host/}{run_id}",
        "javascript:{run_id}",
        "https://me:secret@host/{run_id}",
        "https://host/{run_id} x",
        7,
    ],
)
def test_wrong_templates(wrong: object) -> None:
    """A template that names no run, asks for what is unknown or is no web address is refused."""
    with pytest.raises(ConfigurationError, match="page_url") as caught:
        resolved(wrong)
    assert "me:secret" not in str(caught.value)


def test_templates() -> None:
    """One of the environment is taken as well."""
    environ = {"ADP_ASYNC_PAGE_URL": PAGE}
    assert Settings.resolve({"platform_id": PLATFORM_ID}, environ).page_url == PAGE
    assert resolved(None).page_url is None


async def test_urls() -> None:
    """Values are quoted; without the setting, or what it asks for, there is no URL."""
    async with FakeSession(page_url=PAGE) as session:
        run = await session.start_run()
        assert run.url == f"https://host/fake/#/experiments/{run.experiment_id}/runs/{run.run_id}"
        assert session.attach_run(run.run_id).url is None
    async with FakeSession(page_url="https://h/{run_id}") as session:
        assert session.attach_run("a b/c").url == "https://h/a%20b%2Fc"
    async with FakeSession() as session:
        assert session.attach_run("7").url is None


# Charts


def svg_of(page: str) -> ElementTree.Element:
    return ElementTree.fromstring(page)


SVG = "{http://www.w3.org/2000/svg}"


def test_a_chart_of_a_run() -> None:
    """The keys that are named are lines of one chart, in their order."""
    with FakeBlockingSession() as session, session.start_run() as run:
        for step in range(50):
            run.log_metrics({"loss": 1.0 / (step + 1), "acc": step / 50}, step=step)
        run.flush()
        picture = run.plot("acc", "loss")
        svg = svg_of(picture._repr_html_())[0]
        lines = list(svg.iter(f"{SVG}polyline"))
        assert [line.get("points", "").count(",") for line in lines] == [50, 50]
        names = [each.text for each in svg.iter(f"{SVG}text")]
        assert names[:2] == ["acc", "loss"]
        assert names[-6:] == ["0", "10", "20", "30", "40", "step"]
        assert "acc" in str(picture)
        assert any(0x2800 < ord(each) < 0x2900 for each in repr(picture))


def test_without_keys_each_metric_has_a_chart() -> None:
    """Their values need not have anything in common."""
    with FakeBlockingSession() as session, session.start_run() as run:
        assert repr(run.plot()) == run.plot()._repr_html_() == "no points yet"
        run.log_metrics({"loss": 0.5, "tokens": 1e9})
        run.flush()
        assert run.plot()._repr_html_().count("<svg") == 2
        assert repr(run.plot()).count("step") == 2


def test_a_picture_is_shown_once(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """A notebook asks for the text as well; rich would show that by itself there."""
    import rich.console

    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
    picture = Picture([{"loss": [(0, 1.0), (9, 2.0)]}])

    assert "loss" in repr(picture)
    assert capsys.readouterr().out == ""


def test_metrics_without_steps_are_drawn_in_their_order() -> None:
    """All at step 0, they would be one upright line; their axis has no numbers."""
    picture = Picture([{"loss": [(0, 3.0), (0, 2.0), (0, 1.0)]}])

    svg = svg_of(picture._repr_html_())[0]
    (line,) = svg.iter(f"{SVG}polyline")
    xs = [float(pair.split(",")[0]) for pair in line.get("points", "").split()]
    assert xs[0] < xs[1] < xs[2]
    assert [each.text for each in svg.iter(f"{SVG}text")][-1] in (None, "")
    assert "step" not in repr(picture)


def test_batches_that_overtook_one_another_are_drawn_by_step() -> None:
    """The line goes from left to right."""
    picture = Picture([{"loss": [(5, 5.0), (6, 6.0), (1, 1.0), (2, 2.0)]}])

    (line,) = svg_of(picture._repr_html_())[0].iter(f"{SVG}polyline")
    xs = [float(pair.split(",")[0]) for pair in line.get("points", "").split()]
    assert xs == sorted(xs)


def test_a_key_without_points() -> None:
    """The error names it, and what there is."""
    with FakeBlockingSession() as session, session.start_run() as run:
        run.log_metric("loss", 0.5)
        run.flush()
        with pytest.raises(ValueError, match=r"'lost' .* it can plot: 'loss'"):
            run.plot("loss", "lost")


def test_a_terminal_without_braille(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is drawn can be printed where standard output is ASCII."""
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(BytesIO(), encoding="ascii"))
    text = repr(Picture([{"loss": [(0, 1.0), (9, 2.0)]}]))

    assert text.isascii()
    assert "*" in text


@pytest.mark.parametrize(
    "values",
    [
        [1.0],
        [0.0, 0.0, 0.0],
        [-1.7e308, 1.7e308],
        [0.0, 5e-324],
        [5e-324, 1.7e308],
        [1.0, math.nextafter(1.0, 2.0)],
        [1e16, 1e16 + 2.0],
        [math.nan, 1.0, -math.inf],
        [0.001, 1.0, 1000.0],
    ],
)
def test_charts_of_any_values(values: list[float]) -> None:
    """Lines and marks are finite and stay within the picture."""
    svg = svg_of(chart({"any": list(enumerate(values))}))

    height = float(svg.get("height", "0"))
    for line in svg.iter(f"{SVG}polyline"):
        for pair in line.get("points", "").split():
            x, y = map(float, pair.split(","))
            assert 0 <= x <= _svg_chart.WIDTH
            assert 0 <= y <= height
    marks = list(svg.iter(f"{SVG}text"))
    assert 2 <= len(marks) <= 24
    for mark in marks:
        assert 0 <= float(mark.get("x", "-1")) <= _svg_chart.WIDTH
        assert 0 <= float(mark.get("y", "-1")) <= height


def test_a_chart_of_nothing() -> None:
    """It says so, with the names escaped."""
    assert chart({"<b>": [(0, math.nan)]}) == "<p>&lt;b&gt;: no finite value</p>"


def test_legends_wrap() -> None:
    """Many long names take several rows, and the picture grows."""
    lines = {f"validation/metric of head {n}": [(0.0, 1.0), (1.0, 2.0)] for n in range(14)}
    svg = svg_of(chart(lines))

    assert float(svg.get("height", "0")) > _svg_chart.HEIGHT + 3 * _svg_chart.ROW
    strokes = {
        (each.get("stroke"), each.get("stroke-dasharray")) for each in svg.iter(f"{SVG}polyline")
    }
    assert len(strokes) == 14


def test_an_entity_in_an_entity_is_shown_by_its_fields() -> None:
    """What is within has the name of the outer field in front."""
    dataset = Dataset(name="digits", digest="d1", source_type="local", source="here")
    shown = DatasetInput(dataset=dataset)._repr_html_()
    assert "dataset.name" in shown
    assert "digits" in shown


async def test_a_run_that_started_offline() -> None:
    """It says that it is not created yet, and why; then it is as any other."""
    async with FakeSession(linger=0.0, page_url="https://h/{run_id}") as session:
        for operation in ("get_experiment_by_name", "create_experiment_run"):
            session.answer(operation, status=503)
        run = await session.start_run("digits", offline=True)
        run.log_metric("loss", 0.5)
        shown = cells(run._repr_html_())
        assert shown["run"] == shown["status"] == "not yet created"
        assert shown["experiment"] == "digits"
        assert "link" not in shown
        async with asyncio.timeout(10):
            while "last error" not in shown:
                await asyncio.sleep(0.01)
                shown = cells(session._repr_html_())
        assert shown["last error"].startswith("ServiceFault: ")
        assert "held back by ServiceFault" in repr(session.logger)
        session.service._scripts.clear()
        await run.created()
        await run.flush()
        shown = cells(run._repr_html_())
        assert shown["run"] == run.run_id
        assert shown["status"] == "RUNNING"
        assert shown["link"].endswith(str(run.run_id))
        await run.finish()
