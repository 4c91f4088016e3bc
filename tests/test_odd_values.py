"""One odd value costs one value: whatever is given, wherever, and a good run beside it."""

from __future__ import annotations

import argparse
import json
import math
import uuid
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from attrs import field, frozen
from odd import (
    HOSTILE,
    LOG_BATCH,
    Arrived,
    Half,
    Key,
    Pairs,
    Safe,
    Tensor,
    Whole,
    Word,
    alone,
    arrived,
    frames_of_ours,
)

from adp_async import Stats, blocking
from adp_async.errors import InvalidRecord
from adp_async.testing import FakeBlockingSession, FakeSession

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from adp_async import Run

LONE = json.loads(r'"\ud83d"')  # half an emoji, as in the JSON of a web client
REFUSED: Any = object()
#: How arrays and dicts are written is their own business.
SOME_TEXT: Any = object()


@frozen
class Given:
    """Something odd, and what arrives of it where: REFUSED unless it says otherwise.

    *key*: as a key, a run's id or its name.  *whole*: as a step or a timestamp.
    """

    odd: Any = field(repr=False)
    key: Any = REFUSED
    run_id: Any = REFUSED
    name: Any = REFUSED
    value: Any = REFUSED
    whole: Any = REFUSED
    text: Any = REFUSED
    metrics: Any = REFUSED
    texts: Any = REFUSED


def plain(text: str) -> dict[str, str]:
    return {"key": text, "run_id": text, "name": text, "text": text}


GIVEN = {
    "None": Given(None, name=None, whole=0, text="None"),
    "numpy text": Given(np.array(["run-x"])[0], **plain("run-x")),
    "SafeString": Given(Safe("x"), **plain("x")),
    "str enum": Given(Key.LOSS, key="loss", run_id="loss", name="loss", text="Key.LOSS"),
    "StrEnum": Given(Word.LOSS, **plain("loss")),
    "text of a number": Given("0.5", **plain("0.5"), value=0.5),
    "empty": Given("", name="", text=""),
    "half an emoji": Given(LONE),
    "a byte that is not UTF-8": Given("a\udc80"),
    "NUL": Given("a\x00b", name="a\x00b", text="a\x00b"),
    "two lines": Given("a\nb", name="a\nb", text="a\nb"),
    "line separator": Given("a\u2028b", key="a\u2028b", name="a\u2028b", text="a\u2028b"),
    "right to left": Given("a\u202eb", key="a\u202eb", name="a\u202eb", text="a\u202eb"),
    "a megabyte": Given("x" * 1_000_000, name="x" * 1_000_000),
    "bytes": Given(b"x", text="b'x'"),
    "UUID": Given(uuid.UUID(int=7), text="00000000-0000-0000-0000-000000000007"),
    "int": Given(7, value=7.0, whole=7, text="7"),
    "bool": Given(True, value=1.0, whole=1, text="True"),
    "whole float": Given(7.0, value=7.0, whole=7, text="7.0"),
    "half": Given(1.5, value=1.5, text="1.5"),
    "NaN": Given(math.nan, value="NaN", text="nan"),
    "infinity": Given(-math.inf, value="-Infinity", text="-inf"),
    "subclass of float": Given(Half(7), value=7.0, whole=7, text="7.0"),
    "index": Given(Whole(7), value=7.0, whole=7, text="whole"),
    "huge int": Given(10**400, text=str(10**400)),
    "int of 5,000 digits": Given(10**5000),
    "2^63": Given(2**63, value=float(2**63), text=str(2**63)),
    "Decimal": Given(Decimal(7), value=7.0, whole=7, text="7"),
    "endless Decimal": Given(Decimal("1e999999999"), value="Infinity", text="1E+999999999"),
    "Fraction": Given(Fraction(14, 2), value=7.0, whole=7, text="7"),
    "complex": Given(7 + 0j, text="(7+0j)"),
    "numpy int": Given(np.int64(7), value=7.0, whole=7, text="7"),
    "numpy float": Given(np.float32(7), value=7.0, whole=7, text="7.0"),
    "numpy complex": Given(np.complex64(7), text="(7+0j)"),
    "numpy array of one": Given(np.array([[7.0]]), value=7.0, whole=7, text="[[7.]]"),
    "numpy array of two": Given(np.array([7, 8]), text="[7 8]"),
    "masked": Given(np.ma.masked, text="--"),
    "tensor": Given(Tensor([7.0]), value=7.0, whole=7, text="tensor"),
    "tensor of two": Given(Tensor([7.0, 8.0]), text="tensor"),
    "list": Given([7.0], text="[7.0]"),
    "set": Given({7}, text="{7}"),
    "generator": Given((pair for pair in [("m", 0.5)]), text=SOME_TEXT),
    "dict": Given({"m": 0.5}, text="{'m': 0.5}", metrics=[("m", 0.5)], texts=[("m", "0.5")]),
    "empty dict": Given({}, text="{}", metrics=[], texts=[]),
    "dict with odd keys": Given(
        {np.str_("m"): 1}, text=SOME_TEXT, metrics=[("m", 1.0)], texts=[("m", "1")]
    ),
    "dict with a bad key": Given({"m": 0.5, "": 0.5}, text=SOME_TEXT),
    "dict with a bad value": Given({"m": 0.5, "n": LONE}, text=SOME_TEXT),
    "dict with None": Given(
        {"m": 0.5, "n": None}, text=SOME_TEXT, texts=[("m", "0.5"), ("n", "None")]
    ),
    "proxy": Given(
        MappingProxyType({"m": 1}), text=SOME_TEXT, metrics=[("m", 1.0)], texts=[("m", "1")]
    ),
    "Series": Given(
        pd.Series({"m": 0.5, "n": 1.0}),
        text=SOME_TEXT,
        metrics=[("m", 0.5), ("n", 1.0)],
        texts=[("m", "0.5"), ("n", "1.0")],
    ),
    "Series without names": Given(pd.Series([0.5, 1.0]), text=SOME_TEXT),
    "items of no pairs": Given(Pairs([("m", 0.5), "mn"]), text=SOME_TEXT),
    "Namespace": Given(argparse.Namespace(m=0.5), text="Namespace(m=0.5)"),
    **{name: Given(odd) for name, odd in HOSTILE.items()},
    # These can be asked for their text and answer.
    "a class that lies": Given(HOSTILE["a class that lies"], text=SOME_TEXT),
    "a metaclass that raises": Given(HOSTILE["a metaclass that raises"], text=SOME_TEXT),
}


def the(what: str, index: int) -> Callable[[Arrived], object]:
    """Of what arrived, this part of the only metric, param or tag."""

    def read(run: Arrived) -> object:
        (record,) = getattr(run, what)
        return record[index]

    return read


def metrics(run: Arrived) -> object:
    return [(key, value) for key, value, _ in run.metrics]


#: Where it is given: as what, by which call, and where the server has it.
PLACES: dict[str, tuple[str, Callable[[Run, Any], object], Callable[[Arrived], object]]] = {
    "key of a metric": ("key", lambda run, odd: run.log_metric(odd, 0.5), the("metrics", 0)),
    "key at an odd step": (
        "key",
        lambda run, odd: run.log_metric(odd, 1, step=2**40),
        the("metrics", 0),
    ),
    "value": ("value", lambda run, odd: run.log_metric("k", odd), the("metrics", 1)),
    "step": ("whole", lambda run, odd: run.log_metric("k", 0.5, odd), the("metrics", 2)),
    "step of many": (
        "whole",
        lambda run, odd: run.log_metrics({"k": 0.5}, odd),
        the("metrics", 2),
    ),
    "metrics": ("metrics", lambda run, odd: run.log_metrics(odd), metrics),
    "one of several metrics": (
        "value",
        lambda run, odd: run.log_metrics({"k": odd}),
        the("metrics", 1),
    ),
    "key among metrics": (
        "key",
        lambda run, odd: run.log_metrics(Pairs([(odd, 0.5)])),
        the("metrics", 0),
    ),
    "key of a param": ("key", lambda run, odd: run.log_param(odd, 1), the("params", 0)),
    "param": ("text", lambda run, odd: run.log_param("k", odd), the("params", 1)),
    "params": ("texts", lambda run, odd: run.log_params(odd), lambda run: run.params),
    "one of several params": (
        "text",
        lambda run, odd: run.log_params({"k": odd}),
        the("params", 1),
    ),
    "key of a tag": ("key", lambda run, odd: run.set_tag(odd, 1), the("tags", 0)),
    "tag": ("text", lambda run, odd: run.set_tag("k", odd), the("tags", 1)),
    "tags": ("texts", lambda run, odd: run.set_tags(odd), lambda run: run.tags),
}


async def good_run(session: FakeSession) -> None:
    """A run beside it delivers everything, and the sums are right."""
    good = session.attach_run("good")
    for step in range(3):
        good.log_metric("loss", 0.5, step)
    good.log_param("lr", 0.1)
    good.set_tag("team", "vision")
    await session.logger.flush()
    runs = arrived(session)
    assert runs["good"].metrics == [("loss", 0.5, step) for step in range(3)]
    assert runs["good"].params == [("lr", "0.1")]
    assert runs["good"].tags == [("team", "vision")]
    assert good.stats().accepted == good.stats().delivered == 5
    stats = session.logger.stats()
    assert stats.accepted == stats.delivered == sum(run.records for run in runs.values())


def is_named(error: BaseException) -> bool:
    """Whether it is an error of ours, in a few words that can be shown, and nothing before it."""
    return (
        type(error) in (InvalidRecord, ValueError, TypeError)
        and alone(error)
        and frames_of_ours(error) <= 4
        and str(error).isprintable()
        and 0 < len(str(error)) < 250
    )


@pytest.fixture
async def session() -> AsyncIterator[FakeSession]:
    async with FakeSession() as session:
        session.answer(LOG_BATCH)  # it takes whatever we let through
        yield session


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", GIVEN)
async def test_what_is_logged(name: str, place: str, session: FakeSession) -> None:
    """It arrives as a plain value, or it is named at the call and nothing is taken."""
    given = GIVEN[name]
    sort, log, read = PLACES[place]
    expected = getattr(given, sort)
    run = session.attach_run("run")

    if expected is REFUSED:
        with pytest.raises((ValueError, TypeError)) as caught:
            log(run, given.odd)
        assert is_named(caught.value)
        assert run.stats().accepted == 0

    else:
        log(run, given.odd)
        await run.flush()
        found = read(arrived(session).get("run", Arrived()))
        assert found == expected or expected is SOME_TEXT

    await good_run(session)


#: Where a run's id is given: by which call.
RUN_IDS: dict[str, Callable[[FakeSession, Any], object]] = {
    "attach_run": lambda session, odd: session.attach_run(odd).log_metric("k", 0.5),
    "log_metric": lambda session, odd: session.logger.log_metric(odd, "k", 0.5),
    "log_metrics": lambda session, odd: session.logger.log_metrics(odd, {"k": 0.5}),
    "log_param": lambda session, odd: session.logger.log_param(odd, "k", 1),
    "log_params": lambda session, odd: session.logger.log_params(odd, {"k": 1}),
    "set_tag": lambda session, odd: session.logger.set_tag(odd, "k", 1),
    "set_tags": lambda session, odd: session.logger.set_tags(odd, {"k": 1}),
}


@pytest.mark.parametrize("call", RUN_IDS)
@pytest.mark.parametrize("name", GIVEN)
async def test_what_names_a_run(name: str, call: str, session: FakeSession) -> None:
    """The record arrives under the plain id, or the id is named and nothing is taken."""
    given = GIVEN[name]

    if given.run_id is REFUSED:
        with pytest.raises(ValueError, match="a run id") as caught:
            RUN_IDS[call](session, given.odd)
        assert is_named(caught.value)
        assert session.logger.stats().accepted == 0

    else:
        RUN_IDS[call](session, given.odd)
        await session.logger.flush(given.odd)
        assert session.logger.stats(given.odd).delivered == 1
        assert arrived(session)[given.run_id].records == 1

    await good_run(session)


@pytest.mark.parametrize("name", GIVEN)
async def test_asking_for_a_run(name: str, session: FakeSession) -> None:
    """`flush` and `stats` name an odd id, and leave nothing behind of one nobody has logged to."""
    given = GIVEN[name]

    if given.run_id is REFUSED and given.odd is not None:
        with pytest.raises(ValueError, match="a run id") as caught:
            await session.logger.flush(given.odd)
        assert is_named(caught.value)
        with pytest.raises(ValueError, match="a run id") as caught:
            session.logger.stats(given.odd)
        assert is_named(caught.value)
    else:
        assert session.logger.stats(given.odd) == Stats()
        await session.logger.flush(given.odd)

    assert not session._delivery.accumulator.lanes
    await good_run(session)
    assert list(arrived(session)) == ["good"]


#: Where a run that is not there yet is told something: as what, by which arguments.
STARTS: dict[str, tuple[str, Callable[[Any], dict[str, Any]]]] = {
    "params": ("texts", lambda odd: {"params": odd}),
    "a param": ("text", lambda odd: {"params": {"k": odd}}),
    "key of a param": ("key", lambda odd: {"params": Pairs([(odd, 1)])}),
    "tags": ("texts", lambda odd: {"tags": odd}),
    "a tag": ("text", lambda odd: {"tags": {"k": odd}}),
    "key of a tag": ("key", lambda odd: {"tags": Pairs([(odd, 1)])}),
    "run_name": ("name", lambda odd: {"run_name": odd}),
}


@pytest.mark.parametrize("place", STARTS)
@pytest.mark.parametrize("name", GIVEN)
async def test_what_starts_a_run(name: str, place: str, session: FakeSession) -> None:
    """The run is created with plain values, or the odd one is named and no run is created."""
    given = GIVEN[name]
    sort, arguments = STARTS[place]
    expected = getattr(given, sort)
    if place in ("params", "tags") and given.odd is None:
        expected = []

    if expected is REFUSED:
        with pytest.raises((ValueError, TypeError)) as caught:
            session.start_run(**arguments(given.odd))
        assert is_named(caught.value)
        assert session.requests == []

    else:
        run = await session.start_run(**arguments(given.odd), source=False)
        await run.flush()
        created = msgspec.json.decode(session.requests[0].body)
        params = arrived(session).get(run.run_id, Arrived()).params
        tags = [(tag["key"], tag["value"]) for tag in created.get("tags", ())]
        found = {
            "params": params,
            "tags": tags,
            "run_name": created.get("run_name"),
            "a param": params and params[0][1],
            "a tag": tags and tags[0][1],
            "key of a param": params and params[0][0],
            "key of a tag": tags and tags[0][0],
        }
        assert found[place] == expected or expected is SOME_TEXT

    await good_run(session)


@pytest.mark.parametrize("name", GIVEN)
def test_without_an_event_loop(name: str) -> None:
    """The same errors, as close to the user's line, by the blocking calls."""
    given = GIVEN[name]
    calls: list[tuple[Any, Callable[[FakeBlockingSession], object]]] = [
        (given.run_id, lambda session: session.attach_run(given.odd)),
        (given.key, lambda session: session.attach_run("run").log_metric(given.odd, 0.5)),
        (given.text, lambda session: session.attach_run("run").set_tag("k", given.odd)),
        (given.key, lambda session: session.start_run(params=Pairs([(given.odd, 1)]))),
        (given.text, lambda session: session.start_run(tags={"k": given.odd})),
    ]
    with FakeBlockingSession() as session:
        session.session.answer(LOG_BATCH)
        for expected, call in calls:
            if expected is not REFUSED:
                call(session)
                continue
            with pytest.raises((ValueError, TypeError)) as caught:
                call(session)
            assert is_named(caught.value)


@pytest.mark.parametrize(
    "status", ["RUNNING", "SCHEDULED", "finished", "", None, 3, b"FINISHED", LONE]
)
async def test_a_status_that_is_no_end(status: Any, session: FakeSession) -> None:
    """It is named with those that are, before anything is sent."""
    run = session.attach_run("run")
    with pytest.raises(ValueError, match="ends FINISHED, FAILED or KILLED, not") as caught:
        await run.finish(status)
    assert is_named(caught.value)
    assert run.status is None
    assert session.requests == []


@pytest.mark.parametrize("status", ["FINISHED", np.str_("FAILED"), Safe("KILLED")])
async def test_a_status_that_is_one(status: Any, session: FakeSession) -> None:
    """A subclass of str is one as well, and a plain str is kept."""
    run = session.attach_run(session.add_run("run"))
    await run.finish(status)
    assert type(run.status) is str
    assert session.received("run").info["status"] == str.__str__(status)


def test_a_status_that_is_no_end_of_a_blocking_run() -> None:
    """The session that the run has for itself stays open, and the run can still be ended."""
    with FakeBlockingSession() as session:
        run = blocking.StartedRun(session.start_run()._run, session, owns_session=True)
        with pytest.raises(ValueError, match="FINISHED, FAILED or KILLED, not 'RUNNING'") as caught:
            run.finish("RUNNING")  # type: ignore[arg-type]
        assert is_named(caught.value)
        assert session.is_open
        run.finish("KILLED")
        assert not session.is_open
        assert session.session.received(run.run_id).info["status"] == "KILLED"


def test_a_session_of_its_own_is_not_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """`blocking.attach_run` with an odd id opens nothing."""
    opened: list[object] = []
    monkeypatch.setattr(blocking.Session, "open", opened.append)
    with pytest.raises(ValueError, match="a run id is a str, not int") as caught:
        blocking.attach_run(7)  # type: ignore[arg-type]
    assert is_named(caught.value)
    assert opened == []


async def test_who_lets_go_of_everything(session: FakeSession) -> None:
    """A `__float__` that interrupts does so, and nothing of that call is taken."""

    class Interrupt:
        def __float__(self) -> float:
            raise KeyboardInterrupt

    run = session.attach_run("run")
    with pytest.raises(KeyboardInterrupt):
        run.log_metrics({"a": 0.5, "b": Interrupt()})
    assert run.stats().accepted == 0
    await good_run(session)


async def test_a_key_that_lies_about_itself(session: FakeSession) -> None:
    """What claims to equal a known key is not one: the key is looked at, not asked."""

    class Liar(str):
        __slots__ = ()

        def __hash__(self) -> int:
            raise RuntimeError("no hash")

    run = session.attach_run("run")
    run.log_metric(Liar("loss"), 0.5)
    run.log_metrics(Pairs([(Liar("loss"), 0.5)]))
    await run.flush()
    assert arrived(session)["run"].metrics == [("loss", 0.5, 0)] * 2
    await good_run(session)
