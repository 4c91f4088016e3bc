"""Entities and JSON, both ways: what is lenient, what is refused, and with which message."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from collections import deque
from datetime import UTC, date, datetime, timedelta, timezone
from types import MappingProxyType
from typing import Any
from uuid import UUID

import attrs
import msgspec
import pytest
from api_samples import MODELS, SCHEMAS, class_of, entity, filled
from hypothesis import given, settings
from hypothesis import strategies as st

from adp_async import entities
from adp_async._sansio.codec import decode, encode
from adp_async._sansio.messages import Reply
from adp_async._sansio.wire_names import wire_name
from adp_async.entities import (
    Dataset,
    DatasetInput,
    DeploymentLogSummary,
    Experiment,
    Metric,
    ModelVersion,
    Param,
    Run,
    RunInfo,
    RunTag,
)
from adp_async.entities._fields import ABSENT
from adp_async.entities.runs import MetricPage, RunReply
from adp_async.errors import UnreadableReply

WITH_CLASS = [schema for schema in MODELS if class_of(schema)]

#: Fields of ours that no schema has, and where they come from.
OF_OUR_OWN = {"PermissionPage.next_page_token": "the reply's opc-next-page header"}

METRIC = {"key": "loss", "value": 0.5, "timestamp": 7, "step": 1}


def read(value: object, type_: Any) -> Any:
    return decode(json.dumps(value).encode(), type_)


def complaint(value: object, type_: Any) -> str:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    reply = Reply(200, {"opc-request-id": "id/1"}, body)
    with pytest.raises(UnreadableReply) as caught:
        decode(body, type_, reply=reply, operation="search_runs")
    error = caught.value
    assert (error.status, error.request_id, error.operation) == (200, "id/1", "search_runs")
    assert error.maybe_applied
    assert error.__cause__ is None
    return str(error)


# the schemas


def test_every_schema_has_its_place() -> None:
    """All 162 schemas are an entity, a method's arguments, or what a method returns."""
    assert set(SCHEMAS) == set(MODELS)
    assert len(SCHEMAS) == 162


@pytest.mark.parametrize("schema", WITH_CLASS)
def test_an_entity_has_the_fields_of_its_schema(schema: str) -> None:
    """The same names on the wire; what the schema requires has no default, the rest has."""
    class_ = class_of(schema)
    assert class_ is not None
    ours = {
        wire_name(class_.__name__, field.name): field
        for field in attrs.fields(class_)
        if f"{class_.__name__}.{field.name}" not in OF_OUR_OWN
    }
    published = MODELS[schema]["fields"]

    assert set(ours) == set(published)
    for name, field in ours.items():
        may_be_left_out = field.default is not attrs.NOTHING or ABSENT in field.metadata
        assert may_be_left_out or published[name].get("required"), name


@pytest.mark.parametrize("schema", WITH_CLASS)
def test_a_whole_entity_survives_the_round_trip(schema: str) -> None:
    """What a filled reply is read into is written as that reply again."""
    sample = filled(schema)

    assert json.loads(encode(entity(schema, sample))) == sample


@pytest.mark.parametrize("schema", WITH_CLASS)
def test_the_required_fields_are_enough(schema: str) -> None:
    """A reply with only what it must have is read, also when the rest is null."""
    sparse = filled(schema, required_only=True)
    nulls = dict.fromkeys(MODELS[schema]["fields"]) | sparse

    assert repr(entity(schema, sparse)) == repr(entity(schema, nulls))  # NaN is not itself


@pytest.mark.parametrize("schema", WITH_CLASS)
def test_fields_and_enum_values_of_tomorrow_are_survived(schema: str) -> None:
    """Unknown fields are skipped at every depth, unknown enum values stay the text they are."""
    sample = filled(schema)

    read_today = entity(schema, of_tomorrow(schema, sample))

    for name, told in MODELS[schema]["fields"].items():
        attribute = next(
            field.name
            for field in attrs.fields(type(read_today))
            if wire_name(type(read_today).__name__, field.name) == name
        )
        value = getattr(read_today, attribute)
        if told.get("enum"):
            assert value in ("TOMORROW", ("TOMORROW", "TOMORROW"))


def of_tomorrow(schema: str, sample: dict[str, Any]) -> dict[str, Any]:
    """A filled reply with a new field in every object and a new value in every enum."""
    changed: dict[str, Any] = {"field_of_tomorrow": {"deep": [1, {"er": None}]}}
    for name, value in sample.items():
        told = MODELS[schema]["fields"][name]
        inner = told["type"].removeprefix("list[").removesuffix("]")
        many = isinstance(value, list)
        if told.get("enum"):
            changed[name] = ["TOMORROW"] * len(value) if many else "TOMORROW"
        elif inner in MODELS:
            deeper = [of_tomorrow(inner, one) for one in (value if many else [value])]
            changed[name] = deeper if many else deeper[0]
        else:
            changed[name] = value
    return changed


def test_entities_are_frozen() -> None:
    """A fact cannot be changed behind the back of who else has it."""
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Param("a", "b").value = "c"  # type: ignore[misc]


# writing


def test_what_is_not_given_is_left_out() -> None:
    """None and an empty optional sequence are not written; zero and empty text are."""
    data = Dataset("d", "digest", "local", "file")

    assert encode(DatasetInput(data)) == (
        b'{"dataset":{"name":"d","digest":"digest","source_type":"local","source":"file"}}'
    )
    assert encode(Metric("m", 0, 0)) == b'{"key":"m","value":0.0,"timestamp":0,"step":0}'
    assert encode(RunTag("k", "")) == b'{"key":"k","value":""}'


def test_required_sequences_are_written_even_when_empty() -> None:
    """To give nothing is something to say where the schema requires the field."""
    page = entities.RunPage(runs=())

    assert encode(page) == b'{"runs":[]}'


def test_sequences_may_be_lists() -> None:
    """An entity takes any sequence and keeps a tuple."""
    data = Dataset("d", "digest", "local", "file")
    tags = [entities.InputTag("context", "train")]

    assert DatasetInput(data, tags).tags == tuple(tags)
    assert entities.PermissionAssignees("USER", ["ada"]).targets == ("ada",)


@pytest.mark.parametrize(
    ("value", "json_text"),
    [
        (math.nan, b'"NaN"'),
        (math.inf, b'"Infinity"'),
        (-math.inf, b'"-Infinity"'),
        (0.1, b"0.1"),
        (1e300, b"1e300"),
        (-0.0, b"-0.0"),
    ],
)
def test_floats_that_json_has_not_become_text(value: float, json_text: bytes) -> None:
    """At every depth, in entities and in plain mappings; never null."""
    assert encode({"a": [value]}) == b'{"a":[' + json_text + b"]}"
    assert b'"value":' + json_text in encode({"metrics": [Metric("m", value, 1)]})


def test_a_metric_takes_whatever_float_takes() -> None:
    """A numpy scalar is a value like any other, and is not kept."""
    numpy = pytest.importorskip("numpy")

    assert type(Metric("m", numpy.float32(0.5), 1).value) is float


@dataclasses.dataclass
class Point:
    x: int


class Pixel(msgspec.Struct):
    x: int


class Stage(enum.Enum):
    LIVE = "live"


class Level(enum.IntEnum):
    HIGH = 3


@pytest.mark.parametrize(
    ("value", "json_text"),
    [
        (Level.HIGH, b"3"),
        (Stage.LIVE, b'"live"'),
        (Point(1), b'{"x":1}'),
        (Pixel(1), b'{"x":1}'),
        (MappingProxyType({"x": MappingProxyType({})}), b'{"x":{}}'),
        (deque([1, {2}]), b"[1,[2]]"),
        (UUID(int=1), b'"00000000-0000-0000-0000-000000000001"'),
        (date(2026, 1, 2), b'"2026-01-02"'),
    ],
)
def test_what_has_one_obvious_spelling_is_written(value: object, json_text: bytes) -> None:
    """Whatever type it is of."""
    assert encode({"a": [value]}) == b'{"a":[' + json_text + b"]}"


@pytest.mark.parametrize(
    "value", [range(2), b"x", bytearray(b"x"), memoryview(b"x"), msgspec.Raw(b"1"), ..., 1j]
)
def test_what_has_no_spelling_is_refused(value: object) -> None:
    """By its type, and with the place it stands at."""
    told = rf"the body\.a\[1\]: a {type(value).__name__} cannot be written as JSON"
    with pytest.raises(TypeError, match=told):
        encode({"a": [0, value]})


def test_moments_are_written_in_utc() -> None:
    """RFC 3339 with a Z, whatever the time zone it was given in."""
    moment = datetime(2026, 1, 2, 3, 4, 5, 600_000, tzinfo=timezone(timedelta(hours=2)))

    assert encode({"at": moment}) == b'{"at":"2026-01-02T01:04:05.600000Z"}'


def test_a_naive_moment_is_refused() -> None:
    """Nobody can know which moment it is."""
    with pytest.raises(ValueError, match="no time zone"):
        encode({"at": datetime(2026, 1, 2)})


def test_names_in_plain_mappings_are_left_alone() -> None:
    """Callers of `session.call` use the names of the wire."""
    assert encode({"workspace_key": None}) == b'{"workspace_key":null}'


# reading


@pytest.mark.parametrize(
    ("given", "value"),
    [(7, 7), ("7", 7), (7.0, 7), (-(2**63), -(2**63)), ("9223372036854775807", 2**63 - 1)],
)
def test_integers_may_come_as_text(given: object, value: int) -> None:
    """MLflow writes an int64 as a string; none is rounded on the way."""
    assert read(METRIC | {"step": given}, Metric).step == value


@pytest.mark.parametrize(
    ("given", "value"),
    [
        (1, 1.0),
        ("0.5", 0.5),
        ("Infinity", math.inf),
        ("-Infinity", -math.inf),
        (2**60, float(2**60)),
    ],
)
def test_floats_may_come_as_text_or_integers(given: object, value: float) -> None:
    """The spellings that JSON forces on a service."""
    assert read(METRIC | {"value": given}, Metric).value == value


@pytest.mark.parametrize("nan", [b'"NaN"', b"NaN", b"null"])
def test_nan_is_read_however_it_is_written(nan: bytes) -> None:
    """As text, as the bare word some encoders write, and as the null of the others."""
    body = b'{"key":"m","timestamp":1,"value":%b}' % nan

    assert math.isnan(decode(body, Metric).value)


@given(
    st.floats(), st.integers(-(2**63), 2**63 - 1), st.text(st.characters(exclude_categories=["Cs"]))
)
def test_any_metric_survives(value: float, step: int, key: str) -> None:
    """Every double and every int64 come back as they went."""
    metric = Metric(key, value, step, step)
    back = decode(encode(metric), Metric)

    assert (back.key, back.timestamp, back.step) == (key, step, step)
    assert back.value == value or (math.isnan(back.value) and math.isnan(value))


@pytest.mark.parametrize(
    "text", ["2026-01-02T03:04:05Z", "2026-01-02T03:04:05", "2026-01-02T04:04:05.000+01:00"]
)
def test_moments_come_out_with_a_time_zone(text: str) -> None:
    """Whatever the service writes; what has no zone is the service's, so UTC."""
    record = filled("DeploymentLogSummary") | {"timestamp": text}

    moment = read(record, DeploymentLogSummary).timestamp

    assert moment == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert moment.utcoffset() is not None


def test_what_a_reply_leaves_out() -> None:
    """Optional fields are None, sequences (), the parts of a run empty, its ids empty text."""
    run = read({"run": {}}, RunReply).run

    assert run == Run()
    assert run.info == RunInfo(run_id="", status=None)
    assert run.data.metrics == ()
    assert read({}, ModelVersion).aliases == ()
    assert read({"experiment_id": "1", "name": "n"}, Experiment).artifact_location is None
    assert read({}, RunTag) == RunTag("", "")


@pytest.mark.parametrize("type_", [entities.RunPage, entities.InferenceInvocationPage])
def test_a_list_left_out_is_empty(type_: Any) -> None:
    """MLflow leaves empty lists out, also those that the schema requires."""
    times = {"timeStart": "2026-01-02T00:00:00Z", "timeEnd": "2026-01-02T00:00:00Z"}

    assert read(times, type_).items == ()
    assert read(times | {"runs": None, "items": None}, type_).items == ()


@pytest.mark.parametrize(
    ("value", "type_", "told"),
    [
        ({"metrics": [METRIC, METRIC | {"value": []}]}, MetricPage, "a number @ MetricPage.m"),
        ({"metrics": [METRIC | {"step": 1.5}]}, MetricPage, "an integer @ MetricPage.metrics[0]."),
        ({"metrics": [METRIC | {"step": True}]}, MetricPage, "an integer @ MetricPage.metrics[0]."),
        ({"metrics": [METRIC | {"value": False}]}, MetricPage, "a number @"),
        ({"metrics": [METRIC | {"value": 10**400}]}, MetricPage, "MetricPage.metrics[0].value"),
        ({"metrics": "abc"}, MetricPage, "a list @ MetricPage.metrics"),
        ({"metrics": {"a": 1}}, MetricPage, "a list @ MetricPage.metrics"),
        ({"metrics": [7]}, MetricPage, "an object @ MetricPage.metrics[0]"),
        ([], MetricPage, "an object @ MetricPage"),
        (7, MetricPage, "an object @ MetricPage"),
        (None, MetricPage, "an object @ MetricPage"),
        ({"run": {"info": {"run_id": 7}}}, RunReply, "text @ RunReply.run.info.run_id"),
        ({"run": {"info": {"start_time": "soon"}}}, RunReply, "RunReply.run.info.start_time"),
        ({"run": {"info": []}}, RunReply, "an object @ RunReply.run.info"),
        ({}, RunReply, "missing @ RunReply.run"),
        ({"run": None}, RunReply, "missing @ RunReply.run"),
        ({"experiment_id": "1"}, Experiment, "missing @ Experiment.name"),
        (b"", RunReply, "the body is empty"),
        (b" \n", RunReply, "the body is empty"),
        (b"<html>", RunReply, "the body is not JSON (6 bytes)"),
        (b'{"run":', RunReply, "the body is not JSON (7 bytes)"),
        (b"\xff\xfe", RunReply, "the body is not JSON (2 bytes)"),
        (b"[" * 100_000, RunReply, "the body is not JSON (100000 bytes)"),
        (b"9" * 5_000, RunReply, "the body is not JSON (5000 bytes)"),
        (b'{"run":{"info":{"start_time":' + b"9" * 5_000, object, "the body is not JSON"),
        (b"<html>", object, "the body is not JSON (6 bytes)"),
    ],
)  # fmt: skip
def test_a_wrong_reply_is_told_by_field(value: object, type_: Any, told: str) -> None:
    """The error says what was expected where, and which request it was."""
    message = complaint(value, type_)

    assert told in message
    assert "id/1" in message


def test_a_complaint_names_the_place_in_a_list() -> None:
    """The hundredth metric of a page is found at once."""
    metrics = [METRIC] * 100 + [METRIC | {"value": []}]

    assert complaint({"metrics": metrics}, MetricPage) == (
        "search_runs: wrong type, expected a number @ MetricPage.metrics[100].value "
        "(opc-request-id id/1)"
    )


@pytest.mark.parametrize(
    ("body", "type_", "told"),
    [
        (b'{"error":"hush"}', RunReply, "missing @ RunReply.run: 200 text/html, an object with"),
        (b'{"error":"hush"}', MetricPage, "none of the fields of MetricPage is there: 200 text"),
        (b'{"error":1,"e\\u202ef":2}', entities.RunPage, "an object with 'error', 'e f' (opc"),
        (b'{"a":1,"b":1,"c":1,"d":1,"e":1,"f":1}', entities.ArtifactPage, "'d', 'e' (opc"),
        (b"<p>Sign in</p>", RunReply, "not JSON (14 bytes): 200 text/html, 'Sign in' (opc"),
        (b"Sign in", object, "not JSON (7 bytes): 200 text/html, 'Sign in' (opc"),
        (b'{"run":"hush', RunReply, "not JSON (12 bytes): 200 text/html (opc"),
        (b"", RunReply, "the body is empty: 200 text/html (opc"),
    ],
)
def test_a_complaint_names_who_answered(body: bytes, type_: Any, told: str) -> None:
    """Another application's JSON is not a reply without fields; its own fields are named."""
    reply = Reply(200, {"content-type": "text/html; charset=utf-8"}, body)
    with pytest.raises(UnreadableReply) as caught:
        decode(body, type_, reply=reply, operation="search_runs")

    assert told in str(caught.value)
    assert "hush" not in str(caught.value)


def test_a_complaint_about_a_body_alone() -> None:
    """Without its reply nothing is known of who answered."""
    with pytest.raises(UnreadableReply) as caught:
        decode(b"<html>", RunReply)

    assert str(caught.value) == ("a reply: the body is not JSON (6 bytes) (opc-request-id unknown)")


def test_a_reply_may_be_read_as_plain_containers() -> None:
    """`session.call(..., returning=dict)`, which has no fields to look for."""
    body = b'{"a":1}'

    assert decode(body, dict, reply=Reply(200, {}, body)) == {"a": 1}


def test_a_complaint_never_shows_a_value() -> None:
    """The value may be a secret of the user's; its place is enough."""
    secrets = {"key": ["hush1"], "value": "hush2", "timestamp": "hush3", "step": {"hush4": 1}}

    assert "hush" not in complaint({"metrics": [secrets]}, MetricPage)
    assert "hush" not in complaint(b'{"key": hush5', MetricPage)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(WITH_CLASS), st.data())
def test_any_json_is_read_or_unreadable(schema: str, data: st.DataObject) -> None:
    """Whatever stands in the fields of whatever reply."""
    record = filled(schema)
    names = st.sampled_from(sorted(record)) if record else st.just("x")
    record |= data.draw(st.dictionaries(names, JSON_VALUES, max_size=3))
    body = json.dumps(record).encode()
    try:
        decode(body, class_of(schema), reply=Reply(200, {}, body))
    except UnreadableReply:
        return


def test_plain_json_for_an_operation_of_tomorrow() -> None:
    """`object` gives what JSON has, and None for an empty body."""
    assert decode(b'{"a":[1,null]}', object) == {"a": [1, None]}
    assert decode(b"", object) is None
