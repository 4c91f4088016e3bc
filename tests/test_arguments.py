"""Odd arguments of direct calls: named at the call, before anything is sent."""

from __future__ import annotations

import inspect
import re
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from odd import HOSTILE, Key, Safe, alone, frames_of_ours

from adp_async import Endpoint, Scope
from adp_async._sansio.arguments import sort_of
from adp_async._sansio.codec import encode
from adp_async.api.__main__ import FAMILIES, rows
from adp_async.entities import InputTag, LoggedModelOrder, Metric, Param, RunTag
from adp_async.testing import FakeSession

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

GET = Endpoint("GET", "things/{thingId}", Scope.PLATFORM)
POST = Endpoint("POST", "things", Scope.PLATFORM)


@pytest.fixture
async def session() -> AsyncIterator[FakeSession]:
    async with FakeSession() as session:
        yield session


#: Of a parameter's annotation, what the table must say.
SORTS = {
    r"str( \| None)?": "text",
    r"(\w*(Status|Type|Order)|Literal\[.*\])( \| None)?": "text",
    r"int( \| None)?": "integer",
    r"float": "number",
    r"bool( \| None)?": "flag",
    r"datetime( \| None)?": "moment",
    r"(DeploymentOAuthDetails|InferenceFilters|PermissionChange) \| None": "entity",
    r"Sequence\[str\]": "texts",
    r"Sequence\[\w+\]": "entities",
}
#: What a method calls its parameter, and the operation its argument.
RENAMED = {
    "assign": "assign_registered_model_permission_details",
    "revoke": "revoke_registered_model_permission_details",
}


@pytest.mark.parametrize("row", list(rows()), ids=lambda row: row.method)
def test_the_table_agrees_with_the_signatures(row: Any) -> None:
    """What a method's parameter is annotated with is what is checked at the call."""
    family, _, name = row.method.partition(".")
    annotations = dict(getattr(FAMILIES[family], name).__annotations__)
    del annotations["return"], annotations["options"]

    for parameter, annotation in annotations.items():
        sort = sort_of(row.operation, RENAMED.get(parameter, parameter))
        expected = next(
            sort for pattern, sort in SORTS.items() if re.fullmatch(pattern, annotation)
        )
        if parameter == "delete_tags":  # checked by `keys`, which makes objects of them
            expected = "entities"
        if parameter == "order_by" and sort == "texts or text":
            expected = sort
        assert sort == expected, parameter


LONE = "a\ud800"


class Nowhere(tzinfo):
    """A time zone with a mind of its own."""

    def utcoffset(self, moment: Any) -> Any:
        raise RuntimeError("no")


class Unread(list[str]):
    """A list that can't be gone through."""

    def __iter__(self) -> Any:
        raise RuntimeError("no")


class Unasked(type):
    """Of classes that won't be asked what they are."""

    def __getattribute__(cls, name: str) -> Any:
        if name == "__attrs_attrs__":
            raise RuntimeError("no")
        return super().__getattribute__(name)


class Unknown(metaclass=Unasked):
    """Nobody can tell whether it is an entity."""


NOW = datetime(2026, 1, 2, tzinfo=UTC)
FIRST_MOMENT = datetime.min.replace(tzinfo=timezone(timedelta(hours=1)))

#: An odd call of a family, and what its error must say.
ODD_CALLS: dict[str, tuple[Any, str]] = {
    "surrogate in a query": (lambda s: s.runs.get(LONE), "run_id must be encodable as UTF-8"),
    "int for an id": (
        lambda s: s.runs.get(7),
        "get_experiment_run_by_id: run_id is a str, not int",
    ),
    "int for an id in a body": (lambda s: s.experiments.delete(7), "experiment_id is a str"),
    "bytes for an id": (lambda s: s.runs.delete(b"7"), "run_id is a str, not bytes"),
    "object for a name": (lambda s: s.experiments.create(object()), "name is a str, not object"),
    "dot in a path": (lambda s: s.registered_models.manage_permission(".."), "must not be '..'"),
    "surrogate in a path": (
        lambda s: s.registered_models.manage_permission(LONE),
        "registered_model_key must be encodable",
    ),
    "surrogate in a body": (lambda s: s.runs.log_param("7", "k", LONE), "value must be encodable"),
    "float for a text": (lambda s: s.runs.set_tag("7", "k", 0.5), "value is a str, not float"),
    "text for a number": (
        lambda s: s.runs.log_metric("7", "k", "many", 1),
        "log_experiment_run_metric: value is a number, not str",
    ),
    "complex": (lambda s: s.runs.log_metric("7", "k", 1j, 1), "value is a number, not complex"),
    "NaN for an int": (
        lambda s: s.runs.log_metric("7", "k", 1.0, float("nan")),
        "timestamp is an int, not float",
    ),
    "infinity for an int": (
        lambda s: s.runs.update("7", end_time=float("inf")),
        "end_time is outside of int64",
    ),
    "huge int": (lambda s: s.runs.create(start_time=10**400), "start_time is outside of int64"),
    "text for an int": (lambda s: s.runs.search(max_results="5"), "max_results is an int, not str"),
    "text for a flag": (
        lambda s: s.runs.delete("7", is_permanent="false"),
        "is_permanent is a bool, not str",
    ),
    "int for a flag": (
        lambda s: s.runs.delete("7", is_permanent=1),
        "is_permanent is a bool, not int",
    ),
    "text for a moment": (
        lambda s: s.deployments.inference_summary("d", time_start="2026-01-02"),
        "time_start is a datetime, not str",
    ),
    "moment before year 1": (
        lambda s: s.deployments.inference_summary("d", time_start=FIRST_MOMENT),
        "time_start=the moment cannot be written in UTC",
    ),
    "moment of nowhere": (
        lambda s: s.deployments.search_logs("d", NOW, datetime(2026, 1, 2, tzinfo=Nowhere())),
        "time_end=the moment cannot be written in UTC",
    ),
    "dict for tags": (
        lambda s: s.runs.create(tags={"team": "vision"}),
        "create_experiment_run: tags is a sequence of entities of adp_async.entities, not dict",
    ),
    "pairs for tags": (
        lambda s: s.runs.create(tags=[("team", "vision")]),
        r"tags\[0\]: one of entities of adp_async.entities is wanted, not tuple",
    ),
    "an array for tags": (lambda s: s.runs.create(tags=np.zeros(2)), r"tags\[0\]"),
    "generator of ids": (
        lambda s: s.runs.search(experiment_ids=(i for i in "12")),
        "experiment_ids is a sequence of str, not generator",
    ),
    "ints for ids": (
        lambda s: s.runs.search(experiment_ids=["1", 2]),
        r"experiment_ids\[1\]: one of str is wanted, not int",
    ),
    "one text for keys": (
        lambda s: s.runs.update_tags("7", delete_tags="team"),
        "delete_tags is a sequence of str, not one str: put it into a list",
    ),
    "an order of another family": (
        lambda s: s.logged_models.search(order_by=["name"]),
        r"order_by\[0\]: one of entities",
    ),
    "text for an entity": (
        lambda s: s.registered_models.manage_permission("a.b.c", assign="ada"),
        "assign_registered_model_permission_details is an entity",
    ),
    "bytes in an entity": (
        lambda s: s.runs.log_batch("7", params=[Param("a", "1"), Param("k", b"v")]),
        r"log_experiment_run_batch: params\[1\].value: a bytes cannot be written as JSON",
    ),
    "surrogate in an entity": (
        lambda s: s.runs.create(tags=[RunTag(LONE, "v")]),
        r"create_experiment_run: tags\[0\].key: must be encodable as UTF-8",
    ),
    "huge int in an entity": (
        lambda s: s.runs.log_batch("7", metrics=[Metric("k", 0.5, 2**64)]),
        r"metrics\[0\].timestamp: the int is outside of 64 bits",
    ),
    "a page token that is none": (lambda s: s.runs.search(page_token=7), "page_token is a str"),
    "a page that is none": (
        lambda s: s.registered_models.permissions("a.b.c", page_token=7),
        "page is a str, not int",
    ),
    "timeout of words": (lambda s: s.runs.get("7", timeout="soon"), "timeout is a number, not str"),
    "timeout of nothing": (
        lambda s: s.runs.get("7", timeout=None),
        "timeout is a number, not None",
    ),
    "timeout of NaN": (lambda s: s.runs.get("7", timeout=float("nan")), "timeout is a number of s"),
    "timeout without end": (
        lambda s: s.runs.restore("7", timeout=float("inf")),
        "timeout is a number of seconds from 0 to 1e",
    ),
    "a request id of bytes": (
        lambda s: s.runs.get("7", request_id=b"x"),
        "opc-request-id: letters",
    ),
    "a retry token of None": (lambda s: s.runs.restore("7", retry_token=None), "opc-retry-token"),
    "a principal with half a pair": (
        lambda s: s.runs.get("7", principal=LONE),
        "dh-user-principal",
    ),
    "on_reply of no use": (
        lambda s: s.runs.get("7", on_reply=7),
        "on_reply is called with a reply",
    ),
    "an option of another library": (
        lambda s: s.runs.get("7", retries=3),
        "get_experiment_run_by_id does not take 'retries'",
    ),
    "no endpoint": (lambda s: s.call("runs/get"), "an operation must be an Endpoint, not str"),
    "no mapping": (
        lambda s: s.call(GET, path="7"),
        "path takes a mapping of keys to values, not str",
    ),
    "pairs": (lambda s: s.call(GET, query=[("a", 1)]), "query takes a mapping"),
    "path of int": (lambda s: s.call(GET, path={"thingId": 7}), "thingId is a str, not int"),
    "query of objects": (
        lambda s: s.call(GET, path={"thingId": "7"}, query={"q": object()}),
        "query: 'q' is text, an int, a bool or a datetime, not object",
    ),
    "query of floats": (
        lambda s: s.call(GET, path={"thingId": "7"}, query={"q": ["a", 0.5]}),
        "query: 'q' is text, an int, a bool or a datetime, not float",
    ),
    "query that cannot be read": (
        lambda s: s.call(GET, path={"thingId": "7"}, query={"q": Unread(["a"])}),
        "query: 'q' cannot be read: Unread",
    ),
    "a class that won't be asked": (
        lambda s: s.runs.create(tags=[Unknown()]),
        r"tags\[0\]: one of entities of adp_async.entities is wanted, not Unknown",
    ),
    "query of half a pair": (
        lambda s: s.call(GET, path={"thingId": "7"}, query={"q": LONE}),
        "query: 'q' must be encodable",
    ),
    "query of huge ints": (
        lambda s: s.call(GET, path={"thingId": "7"}, query={"q": 10**5000}),
        "query: 'q' is outside of int64",
    ),
    "name of half a pair": (
        lambda s: s.call(GET, path={"thingId": "7"}, query={LONE: "q"}),
        "a name in query must be encodable",
    ),
    "name of int": (lambda s: s.call(POST, body={7: 1}), "the body: a name is a str, not int"),
    "bytes in a body": (
        lambda s: s.call(POST, body={"a": [{"b c": b"x"}]}),
        r"the body.a\[0\]\['b c'\]: a bytes cannot be written as JSON",
    ),
    "huge int in a body": (lambda s: s.call(POST, body={"a": 2**64}), "the body.a: the int is out"),
    "object in a body": (
        lambda s: s.call(POST, body={"a": object()}),
        "the body.a: a object cannot",
    ),
    "naive moment in a body": (
        lambda s: s.call(POST, body=[datetime(2026, 1, 2)]),
        r"the body\[0\]: 2026-01-02T00:00:00 has no time zone",
    ),
    **{
        f"{name}, as {what}": (call, ".")
        for name, odd in HOSTILE.items()
        for what, call in {
            "text": lambda s, odd=odd: s.runs.get(odd),
            "part of a path": lambda s, odd=odd: s.registered_models.manage_permission(odd),
            "int": lambda s, odd=odd: s.runs.update("7", end_time=odd),
            "number": lambda s, odd=odd: s.runs.log_metric("7", "k", odd, 1),
            "flag": lambda s, odd=odd: s.runs.delete("7", is_permanent=odd),
            "moment": lambda s, odd=odd: s.deployments.inference_summary("d", time_start=odd),
            "sequence": lambda s, odd=odd: s.runs.create(tags=odd),
            "member": lambda s, odd=odd: s.runs.create(tags=[odd]),
            "key": lambda s, odd=odd: s.runs.update_tags("7", delete_tags=[odd]),
            "entity": lambda s, odd=odd: s.registered_models.manage_permission("a", assign=odd),
            "order": lambda s, odd=odd: s.runs.search(order_by=odd),
            "timeout": lambda s, odd=odd: s.runs.get("7", timeout=odd),
            "request id": lambda s, odd=odd: s.runs.get("7", request_id=odd),
            "principal": lambda s, odd=odd: s.runs.get("7", principal=odd),
            "endpoint": lambda s, odd=odd: s.call(odd),
            "path": lambda s, odd=odd: s.call(GET, path=odd),
            "query": lambda s, odd=odd: s.call(GET, path={"thingId": "7"}, query={"q": odd}),
            "body": lambda s, odd=odd: s.call(POST, body=odd),
            "part of a body": lambda s, odd=odd: s.call(POST, body={"a": [odd]}),
            "part of an entity": lambda s, odd=odd: s.runs.create(tags=[RunTag("k", odd)]),
        }.items()
    },
}


@pytest.mark.parametrize("name", ODD_CALLS)
async def test_an_odd_argument_is_named(name: str, session: FakeSession) -> None:
    """ValueError or TypeError with words of ours, nothing in front, nothing sent."""
    call, words = ODD_CALLS[name]

    async def calling() -> None:
        if inspect.isawaitable(waiting := call(session)):
            await waiting

    with pytest.raises((ValueError, TypeError), match=words) as caught:
        await calling()

    assert type(caught.value) in (ValueError, TypeError)
    assert alone(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 250
    assert session.requests == []


async def test_the_way_to_the_error_is_short(session: FakeSession) -> None:
    """A traceback shows the user's line, the method, and hardly anything else of ours."""
    with pytest.raises(TypeError) as caught:
        await session.runs.get(7)  # type: ignore[arg-type]
    assert frames_of_ours(caught.value) <= 4

    with pytest.raises(TypeError) as caught:
        await session.runs.log_batch("7", params=[Param("k", b"v")])  # type: ignore[arg-type]
    assert frames_of_ours(caught.value) <= 4


async def test_subclasses_are_made_plain(session: FakeSession) -> None:
    """NumPy's scalars, str enums and SafeString are arguments like any other."""
    run_id = session.add_run("7")
    session.answer("log_experiment_run_metric")
    session.answer("set_experiment_run_tag")
    session.answer("delete_experiment_run")

    assert (await session.runs.get(np.str_(run_id))).info.run_id == "7"
    await session.runs.log_metric(
        Safe("7"),
        Key.LOSS,
        np.array([0.5]),
        np.int64(1),
        step=Decimal(2),  # type: ignore[arg-type]
    )
    await session.runs.set_tag("7", Key.LOSS, np.str_("v"))
    await session.runs.delete("7", is_permanent=np.bool_(True))  # type: ignore[arg-type]

    bodies = [msgspec.json.decode(request.body) for request in session.requests[1:]]
    assert bodies == [
        {"run_id": "7", "key": "loss", "value": 0.5, "timestamp": 1, "step": 2},
        {"run_id": "7", "key": "loss", "value": "v"},
        {"run_id": "7", "is_permanent": True},
    ]


async def test_nan_is_a_value(session: FakeSession) -> None:
    """A metric may diverge; it is spelled as the service reads it."""
    session.answer("log_experiment_run_metric")

    await session.runs.log_metric("7", "loss", np.float32("nan"), 1)

    (request,) = session.requests
    assert msgspec.json.decode(request.body)["value"] == "NaN"


@pytest.mark.parametrize(
    ("value", "json_text"),
    [
        ({"a": np.float32(0.5), "b": np.int64(7), "c": np.str_("x")}, b'{"a":0.5,"b":7,"c":"x"}'),
        ({Key.LOSS: [Key.LOSS]}, b'{"loss":["loss"]}'),
        ({"a": (1, {2}), "b": range(0)}, None),
        ({"a": np.float64("inf")}, b'{"a":"Infinity"}'),
        ({"a": 2**64 - 1, "b": -(2**63)}, b'{"a":18446744073709551615,"b":-9223372036854775808}'),
        ([LoggedModelOrder("name", ascending=True)], b'[{"field_name":"name","ascending":true}]'),
        (InputTag(Safe("k"), Safe("v")), b'{"key":"k","value":"v"}'),
        (msgspec.json.decode(b'{"a":[null,true,1.5,"x"]}'), b'{"a":[null,true,1.5,"x"]}'),
    ],
)
def test_a_body_is_written_plainly(value: object, json_text: bytes | None) -> None:
    """What is a number or a text to Python is one in JSON."""
    if json_text is None:
        with pytest.raises(TypeError, match=r"the body.b: a range cannot be written as JSON"):
            encode(value)
    else:
        assert encode(value) == json_text


def test_what_holds_itself_is_named() -> None:
    """A list in itself, or a tower of them, is a ValueError and no RecursionError."""
    itself: list[Any] = []
    itself.append(itself)
    with pytest.raises(ValueError, match="the body: nested too deeply, or contains itself"):
        encode({"a": itself})
