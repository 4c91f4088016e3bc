"""Anything at all, given to ``log_*`` and to direct calls: ``--inputs`` of each.

Each call does what it is for, or raises an error of ours: `AdpError`, ValueError or TypeError,
raised by a ``raise`` of this package, in printable words, with no other error in front.
"""

from __future__ import annotations

import asyncio
import collections
import datetime
import inspect
import math
import re
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from api_samples import arguments_of
from attrs import field, frozen
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from odd import LOG_BATCH, Arrived, Key, Mute, Pairs, Safe, Tensor, Whole, arrived, is_ours

from adp_async import Endpoint, Scope
from adp_async._sansio.records import Metric, Param, RunTag, spell
from adp_async.api.__main__ import rows
from adp_async.errors import AdpError, BadRequest, RequestTimeout
from adp_async.testing import FakeSession

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hypothesis.strategies import SearchStrategy

# What is given.  Recipes, since hypothesis shows and compares what it draws, and these can't be.


@frozen
class Odd:
    """How something is made: *make* of the *parts*, which may be recipes themselves."""

    name: str
    make: Callable[..., Any] = field(repr=False, eq=False)
    parts: tuple[Any, ...] = ()

    def made(self) -> Any:
        return self.make(*(part.made() if isinstance(part, Odd) else part for part in self.parts))


def recipe(make: Callable[..., Any], *parts: SearchStrategy[Any]) -> SearchStrategy[Odd]:
    name = getattr(make, "__name__", "odd")
    return st.tuples(*parts).map(lambda drawn: Odd(name, make, drawn))


def itself(value: object) -> object:
    return value


def hostile(base: type, dunders: frozenset[str], error: type[Exception]) -> Any:
    """An object of a subclass of *base*, some of whose methods raise."""

    def fail(*_: object, **__: object) -> Any:
        raise error("a foreign error, which may hold a secret")

    class_ = type("Hostile", (base,), dict.fromkeys(dunders, fail))
    return base.__new__(class_)


def mapping(*parts: Any) -> dict[Any, Any]:
    """A dict of what can be a key; the first half are the keys."""
    half = len(parts) // 2
    made = {}
    for key, value in zip(parts[:half], parts[half:], strict=False):
        try:
            made[key] = value
        except Exception:
            continue
    return made


def pairs(*parts: Any) -> Pairs:
    half = len(parts) // 2
    return Pairs(list(zip(parts[:half], parts[half:], strict=False)))


def array(*parts: Any) -> Any:
    made = np.empty(len(parts), dtype=object)
    for index, part in enumerate(parts):
        made[index] = part
    return made


TEXTS = st.one_of(
    st.sampled_from(["loss", "acc", "lr", "a/b", "é", "損失"]),
    st.text(max_size=20),
    st.text(st.characters(categories=["Cs", "Cc", "Cf", "Zl", "Zp", "Ll"]), max_size=5),
    st.integers(240, 260).map(lambda n: "k" * n),
    st.integers(5_990, 8_010).map(lambda n: "v" * n),
)
NUMBERS = st.one_of(
    st.floats(),
    st.integers(-100, 100),
    st.integers(),
    st.sampled_from([2**63, -(2**63), 2**63 - 1, 2**64, 10**400]),
    st.booleans(),
    st.decimals(),
    st.sampled_from([Decimal("sNaN"), Decimal("1e999999999"), Decimal("-1e-999999999")]),
    st.fractions(),
    st.complex_numbers(),
)
DTYPES = ["f2", "f4", "f8", "g", "i1", "i8", "u8", "?", "c8", "G", "U", "S", "O", "M8[s]", "m8[s]"]
SHAPES = st.sampled_from([(), (0,), (1,), (1, 1), (2,), (2, 2)])
DUNDERS = [
    "__str__", "__repr__", "__hash__", "__eq__", "__lt__", "__le__", "__ge__", "__float__",
    "__int__", "__index__", "__bool__", "__len__", "__iter__", "__getitem__", "__format__",
    "__getattribute__", "__class__", "__complex__", "items", "keys", "item", "encode", "mask",
    "utcoffset",
]  # fmt: skip
ERRORS = [ValueError, TypeError, KeyError, RuntimeError, RecursionError, MemoryError, OverflowError]


def shaped(dtype: str, shape: tuple[int, ...]) -> Any:
    return np.ones(shape, "i8").astype(dtype)


def huge(digits: int) -> int:
    return int(10**digits)


def scalar(dtype: str) -> Any:
    return shaped(dtype, ())[()]


SCALARS = st.one_of(
    recipe(itself, TEXTS),
    recipe(itself, NUMBERS),
    recipe(itself, st.none() | st.binary(max_size=3) | st.dates() | st.datetimes() | st.uuids()),
    recipe(huge, st.just(5000)),
    recipe(Safe, TEXTS),
    recipe(np.str_, TEXTS),
    recipe(Whole, st.integers()),
    recipe(scalar, st.sampled_from(DTYPES)),
    recipe(shaped, st.sampled_from(DTYPES), SHAPES),
    recipe(Tensor, st.lists(st.floats(), max_size=2)),
    recipe(Key, st.just("loss")),
    recipe(lambda error: Mute(error("no")), st.sampled_from(ERRORS)),
    recipe(
        hostile,
        st.sampled_from([object, str, float, int, dict, list, datetime.datetime]).filter(
            lambda base: base is not datetime.datetime
        ),
        st.frozensets(st.sampled_from(DUNDERS), min_size=1),
        st.sampled_from(ERRORS),
    ),
)


def containers(inner: SearchStrategy[Odd]) -> SearchStrategy[Odd]:
    def several(make: Callable[..., Any]) -> SearchStrategy[Odd]:
        return st.lists(inner, max_size=6).map(lambda drawn: Odd(make.__name__, make, tuple(drawn)))

    makers = [mapping, pairs, lambda *parts: list(parts), lambda *parts: parts, array]
    return st.one_of(*map(several, makers))


ANYTHING = st.recursive(SCALARS, containers, max_leaves=12)
#: What would disturb the terminal that an error is shown on.
UNSHOWABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
GOOD_KEYS = recipe(itself, st.sampled_from(["loss", "acc", "lr", "team"]))
GOOD_NUMBERS = recipe(itself, st.floats() | st.integers(-100, 100))
KEYS = GOOD_KEYS | SCALARS
VALUES = GOOD_NUMBERS | ANYTHING
STEPS = recipe(itself, st.integers(-(2**63), 2**63 - 1)) | SCALARS
TIMES = recipe(itself, st.none() | st.integers(0, 2**60)) | SCALARS


def of_pairs(keys: SearchStrategy[Odd], values: SearchStrategy[Odd]) -> SearchStrategy[Odd]:
    """Mostly mappings, mostly valid."""
    drawn = st.lists(st.tuples(keys, values), max_size=5)
    return st.one_of(
        drawn.map(
            lambda them: Odd("mapping", mapping, (*(k for k, _ in them), *(v for _, v in them)))
        ),
        drawn.map(lambda them: Odd("pairs", pairs, (*(k for k, _ in them), *(v for _, v in them)))),
        ANYTHING,
    )


def call(name: str, *arguments: SearchStrategy[Odd]) -> SearchStrategy[tuple[str, tuple[Odd, ...]]]:
    return st.tuples(st.just(name), st.tuples(*arguments))


CALLS = st.one_of(
    call("log_metric", KEYS, VALUES, STEPS, TIMES),
    call("log_metric", GOOD_KEYS, GOOD_NUMBERS),
    call("log_metrics", of_pairs(KEYS, VALUES), STEPS, TIMES),
    call("log_metrics", of_pairs(GOOD_KEYS, GOOD_NUMBERS)),
    call("log_param", KEYS, ANYTHING),
    call("log_params", of_pairs(KEYS, ANYTHING)),
    call("set_tag", KEYS, ANYTHING),
    call("set_tags", of_pairs(KEYS, ANYTHING)),
)
RUNS = recipe(itself, st.sampled_from(["one", "two"])) | SCALARS


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


def fuzz(request: pytest.FixtureRequest, *strategies: SearchStrategy[Any]) -> Any:
    """Give the test ``--inputs`` examples, each within a few seconds."""

    def run(test: Callable[..., None]) -> None:
        settings(
            max_examples=request.config.getoption("inputs"),
            deadline=datetime.timedelta(seconds=30),
            suppress_health_check=list(HealthCheck),
            database=None,
            phases=(Phase.generate,),
            report_multiple_bugs=False,
        )(given(*strategies)(test))()

    return run


def tried(do: Callable[[], Any]) -> Any:
    """What *do* returns, or None after an error of ours; any other error fails the test."""
    try:
        return do()
    except (AdpError, ValueError, TypeError) as error:
        check_error(error)
        return None


def check_error(error: BaseException) -> None:
    assert is_ours(error), error
    assert not UNSHOWABLE.search(str(error))
    assert len(str(error)) < 500
    assert "secret" not in str(error)


@pytest.mark.filterwarnings("error")
def test_what_is_logged(request: pytest.FixtureRequest, runner: asyncio.Runner) -> None:
    """What was accepted arrives point for point, and nothing else; the counts add up."""

    @fuzz(request, st.lists(st.tuples(RUNS, st.booleans(), CALLS), min_size=1, max_size=8))
    def check(calls: list[tuple[Odd, bool, tuple[str, tuple[Odd, ...]]]]) -> None:
        runner.run(log(calls))


async def log(calls: list[tuple[Odd, bool, tuple[str, tuple[Odd, ...]]]]) -> None:
    accepted: dict[str, list[Any]] = collections.defaultdict(list)
    handles: list[Any] = []  # of which one has to live for its run to be counted
    async with FakeSession() as session, asyncio.timeout(30.0):
        session.answer(LOG_BATCH)
        for run, by_handle, (name, recipes) in calls:
            run_id = run.made()
            arguments = [each.made() for each in recipes]
            if by_handle:
                handles.append(handle := tried(partial(session.attach_run, run_id)))
                do = partial(getattr(handle, name), *arguments) if handle else None
            else:
                do = partial(getattr(session.logger, name), run_id, *arguments)
            receipts = tried(do) if do else None
            if receipts is not None:
                of_call = [receipts] if isinstance(receipts, (Metric, Param, RunTag)) else receipts
                accepted[str.__str__(run_id)] += of_call
                check_of_call(name, arguments, list(of_call))
        await session.logger.flush()
        runs = arrived(session)
        for run_id, records in accepted.items():
            check_arrived(records, runs.get(run_id, Arrived()))
            stats = session.logger.stats(run_id)
            assert stats.accepted == stats.delivered == len(records)
        stats = session.logger.stats()
        assert stats.accepted == stats.delivered == sum(map(len, accepted.values()))
        assert set(runs) <= set(accepted)


def check_of_call(name: str, arguments: list[Any], records: list[Any]) -> None:
    """What is kept is what was given, where that is of Python's own types."""
    if name in ("log_metric", "log_param", "set_tag"):
        (record,) = records
        key, value = arguments[:2]
        assert record.key == str.__str__(key)
        if type(value) in (int, float, bool, str, type(None)):
            kept = float(value) if name == "log_metric" else str(value)
            assert record.value == kept or math.isnan(kept)
        if name == "log_metric" and len(arguments) > 2 and type(arguments[2]) in (int, float):
            assert record.step == arguments[2]
    elif type(arguments[0]) is dict:
        assert [record.key for record in records] == [str.__str__(key) for key in arguments[0]]


def check_arrived(records: list[Any], run: Arrived) -> None:
    metrics = [(one.key, spell(one.value), one.step) for one in records if type(one) is Metric]
    assert collections.Counter(metrics) == collections.Counter(run.metrics)
    # Of a param or a tag that is given twice in one request only the last is sent.
    assert {one.key: one.value for one in records if type(one) is Param} == dict(run.params)
    assert {one.key: one.value for one in records if type(one) is RunTag} == dict(run.tags)


# Direct calls


METHODS = {row.operation: row.method for row in rows()}
OPTIONS = ["timeout", "request_id", "retry_token", "principal", "on_reply"]


@st.composite
def direct_calls(draw: Any) -> tuple[str, dict[str, Odd]]:
    """An operation, and the odd ones among its arguments."""
    operation = draw(st.sampled_from(sorted(METHODS)))
    names = [*arguments_of(operation, required_only=False), *OPTIONS]
    odd = draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True))
    return operation, {name: draw(ANYTHING) for name in odd}


def test_direct_calls(request: pytest.FixtureRequest, runner: asyncio.Runner) -> None:
    """Every operation, with odd arguments among good ones: sent as JSON, or named and not sent."""

    @fuzz(request, direct_calls())
    def check(calling: tuple[str, dict[str, Odd]]) -> None:
        operation, odd = calling
        given = arguments_of(operation, required_only=False)
        given |= {name: each.made() for name, each in odd.items()}
        family, _, method = METHODS[operation].partition(".")
        runner.run(
            ask(operation, lambda session: getattr(getattr(session, family), method)(**given))
        )


GET = Endpoint("GET", "things/{thingId}", Scope.PLATFORM)
POST = Endpoint("POST", "things/{thingId}", Scope.PLATFORM)


def test_calls_of_unknown_operations(
    request: pytest.FixtureRequest, runner: asyncio.Runner
) -> None:
    """`Session.call` with any path, query and body."""
    parts = recipe(itself, st.just("7")) | ANYTHING
    paths = parts.map(lambda part: Odd("path", lambda it: {"thingId": it}, (part,))) | ANYTHING

    @fuzz(request, st.sampled_from([GET, POST]), paths, of_pairs(KEYS, VALUES), ANYTHING)
    def check(endpoint: Endpoint, path: Odd, query: Odd, body: Odd) -> None:
        given = {"path": path.made(), "query": query.made(), "body": body.made()}
        if issubclass(type(given["body"]), bytes):
            return  # which are sent as they are
        runner.run(ask(endpoint.operation, lambda session: session.call(endpoint, **given)))


async def ask(operation: str, call: Callable[[FakeSession], Any]) -> None:
    async with FakeSession() as session, asyncio.timeout(30.0):
        session.answer(operation, {"code": "Refused", "message": "no"}, status=400)
        try:
            calling = call(session)
            if inspect.isawaitable(calling):
                await calling
            else:
                async for _ in calling:
                    break
        except BadRequest:
            (request,) = session.requests
            assert request.raw_path.isascii()
            if request.body:
                msgspec.json.decode(request.body)
        except RequestTimeout:  # of no seconds
            assert session.requests == []
        except (ValueError, TypeError) as error:
            check_error(error)
            assert session.requests == []
        else:
            pytest.fail("the fake refuses everything")
