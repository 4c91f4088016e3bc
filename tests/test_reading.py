"""Reading back: listings at once, mappings, histories, times, and pandas."""

from __future__ import annotations

import pickle
import sys
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from adp_async import NotFound
from adp_async._sansio.codec import decode, encode
from adp_async.entities import (
    Experiment,
    LoggedModelInfo,
    Metric,
    ModelVersion,
    Param,
    Run,
    RunData,
    RunInfo,
    RunPage,
    RunTag,
)
from adp_async.testing import FakeBlockingSession, FakeSession


def answer_pages(session: FakeSession, *pages: int) -> None:
    """Answer a search for runs with so many runs a page, numbered from 0."""
    first = 0
    for number, count in enumerate(pages):
        runs = [{"info": {"run_id": str(n)}} for n in range(first, first + count)]
        token = {"next_page_token": str(number)} if number + 1 < len(pages) else {}
        session.answer("list_experiment_runs", {"runs": runs, **token}, times=1)
        first += count


def bodies(session: FakeSession, operation: str) -> list[Any]:
    return [
        msgspec.json.decode(each.body) for each in session.requests if each.operation == operation
    ]


# Listings


@pytest.mark.parametrize(
    ("limit", "found", "requests"),
    [(None, 7, 3), (0, 0, 0), (1, 1, 1), (3, 3, 1), (4, 4, 2), (6, 6, 2), (7, 7, 3), (99, 7, 3)],
)
async def test_limit(limit: int | None, found: int, requests: int) -> None:
    """It bounds what is found on all pages together, and no page is fetched in vain."""
    async with FakeSession() as session:
        answer_pages(session, 3, 3, 1)
        listing = session.runs.search(limit=limit)
        runs = await listing.to_list()
        assert [run.info.run_id for run in runs] == [str(n) for n in range(found)]
        assert len(session.requests) == requests

    with FakeBlockingSession() as blocking:
        answer_pages(blocking.session, 3, 3, 1)
        assert [run.info.run_id for run in blocking.runs.search(limit=limit)] == [
            str(n) for n in range(found)
        ]
        assert len(blocking.session.requests) == requests


async def test_pages_are_no_larger_than_needed() -> None:
    """Without a size of their own they have as many items as are wanted, and 1000 at most."""
    async with FakeSession() as session:
        for limit, max_results in ((7, None), (5000, None), (7, 3), (None, None)):
            answer_pages(session, 1)
            await session.runs.search(limit=limit, max_results=max_results).to_list()
        sizes = [body.get("max_results") for body in bodies(session, "list_experiment_runs")]
        assert sizes == [7, 1000, 3, None]


@pytest.mark.parametrize("wrong", [-1, 1.5, "7", True])
async def test_wrong_limits(wrong: Any) -> None:
    """They are refused at the call, by name."""
    async with FakeSession() as session:
        with pytest.raises(ValueError, match="limit must be an int >= 0"):
            session.runs.search(limit=wrong)
        with pytest.raises(ValueError, match="limit must be"):
            session.runs.metric_history("7", "loss", limit=wrong)


async def test_first() -> None:
    """It is the first item, or None, and fetches one page; a limit of 0 holds for it as well."""
    async with FakeSession() as session:
        answer_pages(session, 0, 2, 2)
        found = await session.runs.search().first()
        assert found is not None
        assert found.info.run_id == "0"
        assert len(session.requests) == 2
    async with FakeSession() as session:
        answer_pages(session, 0)
        assert await session.runs.search().first() is None
        assert await session.runs.search(limit=0).first() is None

    with FakeBlockingSession() as blocking:
        answer_pages(blocking.session, 2, 2)
        first = blocking.runs.search().first()
        assert first is not None
        assert first.info.run_id == "0"
        assert len(blocking.session.requests) == 1
        assert blocking.runs.search(limit=0).first() is None


def answer_runs(session: FakeSession, *runs: Run) -> None:
    """Answer every search for runs with these."""
    session.answer("list_experiment_runs", msgspec.json.decode(encode(RunPage(runs))))


def answer_history(session: FakeSession, count: int) -> None:
    points = [{"key": "loss", "value": 1.0, "timestamp": 7, "step": n} for n in range(count)]
    session.answer("get_experiment_run_metric_history", {"metrics": points})


def trained(number: int, lr: str) -> Run:
    return Run(
        RunInfo(
            run_id=str(number),
            run_name="<b>sgd</b>",
            status="FINISHED",
            start_time=1_700_000_000_000 + number,
        ),
        RunData([Metric("loss", float(lr), 7)], [Param("lr", lr)], [RunTag("team", "vision")]),
    )


async def test_a_list_shows_itself_as_a_table() -> None:
    """In a notebook, what was found has a row each, with markup escaped."""
    async with FakeSession() as session:
        answer_runs(session, trained(1, "0.1"), trained(2, "0.01"))
        runs = await session.runs.search().to_list()
        assert runs == [trained(1, "0.1"), trained(2, "0.01")]
        page = runs._repr_html_()  # type: ignore[attr-defined]
        assert "<b>" not in page
        assert page.count("<tr>") == 3
        assert "metrics.loss</th>" in page
        none = await session.runs.search(limit=0).to_list()
        assert none._repr_html_() == "nothing found"  # type: ignore[attr-defined]


async def test_pandas() -> None:
    """A frame has a row a run, a column a metric, param and tag, and times as datetimes."""
    pandas = pytest.importorskip("pandas")
    async with FakeSession() as session:
        answer_runs(session, trained(1, "0.1"), trained(2, "0.01"))
        frame = await session.runs.search().to_pandas()
        assert list(frame["params.lr"]) == ["0.1", "0.01"]
        assert list(frame["metrics.loss"]) == [0.1, 0.01]
        assert set(frame["tags.team"]) == {"vision"}
        assert list(frame["status"]) == ["FINISHED", "FINISHED"]
        assert isinstance(frame["start_time"].dtype, pandas.DatetimeTZDtype)

    with FakeBlockingSession() as blocking:
        answer_history(blocking.session, 3)
        frame = blocking.attach_run("7").history("loss").to_pandas()
        assert list(frame["step"]) == [0, 1, 2]
        assert list(frame.columns) == ["key", "value", "timestamp", "step"]


async def test_without_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, "pandas", None)
    async with FakeSession() as session:
        answer_pages(session, 1)
        with pytest.raises(ImportError, match="pip install pandas"):
            await session.runs.search().to_pandas()


# Histories, and experiments by name


async def test_history() -> None:
    """A run reads what the service has of a metric; with a limit, the first points of it."""
    async with FakeSession() as session:
        answer_history(session, 5)
        run = session.attach_run("7")
        assert [point.step async for point in run.history("loss")] == [0, 1, 2, 3, 4]
        assert "run_id=7" in session.requests[-1].raw_path
        assert "metric_key=loss" in session.requests[-1].raw_path
        assert len(await run.history("loss", limit=2).to_list()) == 2

    with FakeBlockingSession() as blocking:
        answer_history(blocking.session, 2)
        assert [point.step for point in blocking.attach_run("7").history("loss")] == [0, 1]
        assert len(blocking.attach_run("7").history("loss", limit=1).to_list()) == 1


async def test_runs_of_experiments_by_name() -> None:
    """Names are looked up once, before the first page, and join the ids."""
    async with FakeSession() as session:
        ids = [await session.experiments.create(name) for name in ("digits", "letters")]
        answer_runs(session, trained(1, "0.1"))
        asked = len(session.requests)
        listing = session.runs.search(experiment_ids=["77"], experiment_names=("digits", "letters"))
        assert len(session.requests) == asked
        for _ in range(2):
            assert len(await listing.to_list()) == 1
        operations = [each.operation for each in session.requests[asked:]]
        assert operations == [*["get_experiment_by_name"] * 2, *["list_experiment_runs"] * 2]
        for body in bodies(session, "list_experiment_runs"):
            assert body["experiment_ids"] == ["77", *ids]


async def test_a_name_that_no_experiment_has() -> None:
    """It is the service's NotFound when the search begins; text in place of a list is refused."""
    async with FakeSession() as session:
        with pytest.raises(NotFound):
            await session.runs.search(experiment_names=["nowhere"]).first()
        with pytest.raises((TypeError, ValueError), match="experiment_names"):
            session.runs.search(experiment_names="digits")


# Mappings


DATA = RunData(
    (Metric("loss", 0.5, 7), Metric("acc", 0.9, 7)),
    (Param("lr", "0.1"),),
    (RunTag("team", "a"), RunTag("team", "b")),
)


def test_values_by_key() -> None:
    """What was logged reads like a mapping of values."""
    assert DATA.metrics["loss"] == 0.5
    assert DATA.params["lr"] == "0.1"
    assert DATA.tags["team"] == "b"
    assert dict(DATA.metrics) == {"loss": 0.5, "acc": 0.9}
    assert DATA.tags.keys() == ["team"]
    assert DATA.metrics.values() == [0.5, 0.9]
    assert DATA.params.items() == [("lr", "0.1")]
    assert (DATA.params.get("lr"), DATA.params.get("no"), DATA.params.get("no", 7)) == (
        "0.1",
        None,
        7,
    )
    assert "lr" in DATA.params
    assert "no" not in DATA.params
    with pytest.raises(KeyError, match="no"):
        DATA.params["no"]


def test_still_a_tuple() -> None:
    """Iteration, indexes, slices, length, equality, hash and pickling are a tuple's."""
    assert [metric.key for metric in DATA.metrics] == ["loss", "acc"]
    assert DATA.metrics[0] == DATA.metrics[-2] == Metric("loss", 0.5, 7)
    assert DATA.metrics[:1] == (Metric("loss", 0.5, 7),)
    assert len(DATA.metrics) == 2
    assert Param("lr", "0.1") in DATA.params
    assert RunData().params == ()
    assert hash(DATA) == hash(pickle.loads(pickle.dumps(DATA)))
    with pytest.raises(IndexError):
        DATA.params[7]


def test_read_from_a_reply() -> None:
    """What the service sends, or leaves out, is such a mapping."""
    body = b'{"info": {"run_id": "7"}, "data": {"params": [{"key": "lr", "value": "1"}]}}'
    run = decode(body, Run)

    assert run.data.params["lr"] == "1"
    assert run.data.metrics == ()
    assert run.data.metrics.get("loss") is None


# Times


def test_datetimes() -> None:
    """Each time is there as an aware datetime as well, exact to the millisecond."""
    info = RunInfo(start_time=1_700_000_000_123, end_time=None)

    assert info.start_datetime == datetime(2023, 11, 14, 22, 13, 20, 123_000, UTC)
    assert info.end_datetime is None
    assert Metric("loss", 0.5, 0).datetime == datetime(1970, 1, 1, tzinfo=UTC)
    assert Experiment("1", "digits", last_update_time=-1).last_update_datetime == datetime(
        1969, 12, 31, 23, 59, 59, 999_000, UTC
    )
    assert ModelVersion("m", "1", creation_timestamp=1).creation_datetime is not None
    assert LoggedModelInfo(creation_timestamp_ms=1).creation_datetime is not None


def test_times_beyond_the_calendar() -> None:
    """What no datetime can hold is None, and the int is still there."""
    info = RunInfo(start_time=2**62)

    assert info.start_datetime is None
    assert info._row()["start_time"] == 2**62


def test_datetimes_are_explained() -> None:
    """The class's attribute has a docstring."""
    assert "start_time" in (RunInfo.start_datetime.__doc__ or "")
