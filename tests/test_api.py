"""The typed operations: what they ask for, what they give back, how they page."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import attrs
import pytest
from api_samples import (
    ENDPOINT_OF,
    MODELS,
    OPERATIONS,
    SCHEMAS,
    FakeSession,
    arguments_of,
    filled,
    invoke,
    wire_call,
)

from adp_async import entities
from adp_async.api.__main__ import FAMILIES, rows, table
from adp_async.api._family import Listing
from adp_async.entities import (
    Metric,
    Param,
    PermissionAssignees,
    PermissionChange,
    Run,
    RunInfo,
    RunTag,
)
from adp_async.errors import UnreadableReply

PUBLIC_METHODS = [
    (family, name, method)
    for family, class_ in FAMILIES.items()
    for name, method in inspect.getmembers(class_)
    if inspect.isfunction(method) and not name.startswith("_")
]


@pytest.fixture
def session() -> FakeSession:
    return FakeSession()


def page(name: str, *items: object, token: str | None = None) -> dict[str, object]:
    return {name: list(items)} | ({"next_page_token": token} if token else {})


def run(run_id: str) -> dict[str, object]:
    return {"info": {"run_id": run_id}}


# the table of operations and methods


def test_every_operation_has_one_method() -> None:
    """The table made from the docstrings is complete, and nothing is in it twice."""
    made = list(rows())

    assert {row.operation for row in made} == set(OPERATIONS)
    assert len(made) == len({row.method for row in made}) == len(PUBLIC_METHODS) == 68


@pytest.mark.parametrize("row", list(rows()), ids=lambda row: row.method)
def test_a_docstring_tells_the_truth(row: Any) -> None:
    """Operation, HTTP method and path in a docstring are those of the row that is called."""
    endpoint = ENDPOINT_OF[row.operation]

    assert (row.http_method, row.path) == (endpoint.method, endpoint.path)


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_a_method_calls_its_operation(operation: str, session: FakeSession) -> None:
    """The row behind a method is the one its docstring names, and it is called once."""
    response = OPERATIONS[operation]["response"]
    session.replies = [filled(response) if response else None]
    arguments = arguments_of(operation, required_only=False)

    await invoke(session, operation, arguments)

    (call,) = session.calls
    assert call.endpoint is ENDPOINT_OF[operation]


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_what_is_not_given_is_not_sent(operation: str, session: FakeSession) -> None:
    """Of a call with the required arguments only, nothing else is on the wire."""
    response = OPERATIONS[operation]["response"]
    session.replies = [filled(response) if response else None]
    wire = wire_call(operation, required_only=True)

    await invoke(session, operation, arguments_of(operation, required_only=True))

    (call,) = session.calls
    assert set(call.path) == set(wire["path"])
    assert set(call.query) == set(wire["query"])
    assert set(call.body or {}) == set(wire["body"])


@pytest.mark.parametrize("operation", [name for name, row in OPERATIONS.items() if row["response"]])
async def test_empty_replies_are_none(operation: str, session: FakeSession) -> None:
    """An operation whose reply says nothing returns None, and no envelope is ever returned."""
    response = OPERATIONS[operation]["response"]
    session.replies = [filled(response)]

    result = await invoke(session, operation, arguments_of(operation, required_only=True))

    if not MODELS[response]["fields"]:
        assert result is None
    else:
        assert not type(result).__name__.endswith("Reply")
        assert result is not None


@pytest.mark.parametrize(("family", "name", "method"), PUBLIC_METHODS)
def test_required_fields_are_required_arguments(family: str, name: str, method: Any) -> None:
    """What the schema requires has no default; everything else is keyword-only."""
    row = next(row for row in rows() if row.method == f"{family}.{name}")
    required = arguments_of(row.operation, required_only=True)
    parameters = dict(inspect.signature(method).parameters)
    del parameters["self"], parameters["options"]

    assert {n for n, p in parameters.items() if p.default is p.empty} == set(required)
    assert {n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY} == {
        n for n, p in parameters.items() if p.default is not p.empty
    }
    sent = set(arguments_of(row.operation, required_only=False))
    assert sent <= set(parameters)
    # What is ours: how many items of all pages, and names in place of ids.
    ours = {"limit"} if "page_token" in parameters else set()
    if row.method == "runs.search":
        ours.add("experiment_names")
    assert set(parameters) == sent | ours


@pytest.mark.parametrize(("family", "name", "method"), PUBLIC_METHODS)
def test_no_signature_says_any(family: str, name: str, method: Any) -> None:
    """A type checker knows every argument and every result; `tests/typing_api.py` uses them."""
    said = " ".join(map(str, method.__annotations__.values()))

    assert "return" in method.__annotations__
    assert not re.search(r"\b(Any|object)\b", said)


def test_entities_say_object_only_where_the_schema_does() -> None:
    """Three fields hold whatever JSON they hold; nothing is `Any`."""
    said = {
        f"{name}.{field.name}": str(field.type)
        for name in set(SCHEMAS.values()) & set(entities.__all__)
        for field in attrs.fields(getattr(entities, name))
    }

    assert not [name for name, type_ in said.items() if "Any" in type_]
    assert {name for name, type_ in said.items() if "object" in type_} == {
        "InferenceInvocationDetails.request_payload",
        "InferenceInvocationDetails.response_payload",
        "LoggedModel.data",
    }


@pytest.mark.parametrize(("family", "name", "method"), PUBLIC_METHODS)
def test_a_docstring_opens_for_people_in_a_hurry(family: str, name: str, method: Any) -> None:
    """One sentence, one line, before anything else."""
    first, blank = (inspect.getdoc(method) or "").splitlines()[:2]

    assert re.fullmatch(r"[A-Z].*[.)]", first), first
    assert blank == ""


def test_the_table_is_a_command() -> None:
    """`python -m adp_async.api` prints the table in Markdown."""
    done = subprocess.run(
        [sys.executable, "-m", "adp_async.api"],
        check=True,
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=Path(__file__).parent.parent,
    )

    assert done.stdout == table() + "\n"
    assert len(done.stdout.splitlines()) == 2 + 68
    assert "| `runs.update` | `update_experiment_run` | `POST mlflow/runs/update` |" in done.stdout


# entities


def test_every_public_entity_can_be_had() -> None:
    """The names that `adp_async.entities` lists are there, and no entity is left out."""
    for name in entities.__all__:
        assert getattr(entities, name) is not None
    named = {name for name in SCHEMAS.values() if " " not in name}
    assert named <= set(entities.__all__)
    assert set(entities.__all__) <= set(dir(entities))


#: Those with a name of the schema's own for them.  (Deployments' logs have them further inside.)
PAGES = [
    page
    for page in (getattr(entities, name) for name in entities.__all__)
    if isinstance(vars(page).get("items"), property) and page is not entities.DeploymentLogPage
]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_items(page: Any) -> None:
    """By whatever name the schema has for them; that is the first of its sequences."""
    name = next(name for name, each in attrs.fields_dict(page).items() if "tuple" in str(each.type))
    assert page(**{name: ("one", "two")}).items == ("one", "two")


def test_an_unknown_entity_is_an_attribute_error() -> None:
    """A misspelt name fails as it does in any module."""
    with pytest.raises(AttributeError, match="Experimint"):
        _ = entities.Experimint


def test_deployments_are_imported_when_they_are_used() -> None:
    """`import adp_async` doesn't pay for thirty classes that few people need."""
    code = (
        "import sys, adp_async, adp_async.entities as entities;"
        "before = 'adp_async.entities.deployments' in sys.modules;"
        "print(before, entities.ModelDeployment.__module__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
    )

    assert done.stdout.split() == ["False", "adp_async.entities.deployments"]


# calls


async def test_an_envelope_is_taken_off(session: FakeSession) -> None:
    """What comes back is the thing asked for, not the object around it."""
    session.replies = [{"run": run("7")}, {"run_info": {"run_id": "7"}}, {"experiment_id": "1"}]

    assert await session.runs.get("7") == Run(info=RunInfo(run_id="7"))
    assert await session.runs.update("7", status="FINISHED") == RunInfo(run_id="7")
    assert await session.experiments.create("digits") == "1"


async def test_options_reach_the_session(session: FakeSession) -> None:
    """Retry token, request id, principal, timeout and on_reply go along with any call."""
    seen: list[object] = []
    options = {
        "retry_token": "token",
        "request_id": "id",
        "principal": "ada",
        "timeout": 3.0,
        "on_reply": seen.append,
    }

    await session.runs.restore("7", **options)
    await session.registered_models.permissions("a.b.c", **options).pages().aclose()

    assert session.calls[0].options == options


async def test_options_reach_every_page(session: FakeSession) -> None:
    """A listing gives its options to each of its requests."""
    session.replies = [page("runs", run("1"), token="a"), page("runs")]

    [_ async for _ in session.runs.search(timeout=3.0)]

    assert [call.options for call in session.calls] == [{"timeout": 3.0}] * 2


async def test_a_batch_is_made_of_entities(session: FakeSession) -> None:
    """Metrics, params and tags of one run in one request."""
    await session.runs.log_batch(
        "7",
        metrics=[Metric("loss", float("nan"), 1, 2)],
        params=[Param("lr", "0.1")],
        tags=(RunTag("team", "vision"),),
    )

    assert session.calls[0].body == {
        "run_id": "7",
        "metrics": [{"key": "loss", "value": "NaN", "timestamp": 1, "step": 2}],
        "params": [{"key": "lr", "value": "0.1"}],
        "tags": [{"key": "team", "value": "vision"}],
    }


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("runs", ["7"]),
        ("experiments", ["7"]),
        ("registered_models", ["7"]),
        ("model_versions", ["7", "1"]),
        ("deployments", ["7"]),
    ],
)
async def test_tags_to_delete_are_keys(family: str, names: list[str], session: FakeSession) -> None:
    """A sequence of keys; one text would delete a tag for each of its letters."""
    update_tags = getattr(session, family).update_tags

    await update_tags(*names, delete_tags=["team", "owner"])
    assert session.calls[0].body["delete_tags"] == [{"key": "team"}, {"key": "owner"}]

    with pytest.raises(TypeError, match="delete_tags is a sequence of str, not one str: put"):
        await update_tags(*names, delete_tags="team")
    assert len(session.calls) == 1


async def test_permissions_are_assigned_and_revoked(session: FakeSession) -> None:
    """The two long names of the wire are *assign* and *revoke*."""
    change = PermissionChange(PermissionAssignees("GROUP", ["ml"]), ["READ"])

    await session.registered_models.manage_permission("a.b.c", assign=change)

    assert session.calls[0].path == {"registeredModelKey": "a.b.c"}
    assert session.calls[0].body == {
        "assignRegisteredModelPermissionDetails": {
            "assignees": {"type": "GROUP", "targets": ["ml"]},
            "permissions": ["READ"],
        }
    }


async def test_a_naive_datetime_is_refused_at_the_call(session: FakeSession) -> None:
    """Before anything is sent, also by an operation that pages."""
    naive = datetime(2026, 1, 2)

    with pytest.raises(ValueError, match="time_start=2026-01-02T00:00:00 has no time zone"):
        session.deployments.search_inferences("d", time_start=naive)
    with pytest.raises(ValueError, match="time_end"):
        await session.deployments.inference_summary("d", time_end=naive)
    assert session.calls == []


def test_a_family_shows_itself(session: FakeSession) -> None:
    """A notebook shows what it is and whose."""
    assert repr(session.runs).startswith("<Runs of FakeSession(")


# pages


async def test_a_listing_goes_through_all_pages(session: FakeSession) -> None:
    """Items come in order, each page asked for with the token of the one before."""
    session.replies = [
        page("runs", run("1"), run("2"), token="a"),
        page("runs", token="b"),
        page("runs", run("3")),
    ]

    found = [r.info.run_id async for r in session.runs.search(max_results=2)]

    assert found == ["1", "2", "3"]
    assert [call.body for call in session.calls] == [
        {"max_results": 2},
        {"max_results": 2, "page_token": "a"},
        {"max_results": 2, "page_token": "b"},
    ]


async def test_a_listing_by_get_pages_in_the_query(session: FakeSession) -> None:
    """The same of an operation that is a GET."""
    session.replies = [page("metrics", token="a"), page("metrics")]

    [_ async for _ in session.runs.metric_history("7", "loss")]

    query = {"run_id": "7", "metric_key": "loss"}
    assert [call.query for call in session.calls] == [query, query | {"page_token": "a"}]
    assert [call.body for call in session.calls] == [None, None]


async def test_whole_pages(session: FakeSession) -> None:
    """`.pages()` gives each page with its items, its token and what else it carries."""
    session.replies = [
        {"root_uri": "s3://b", "files": [{"path": "a"}], "next_page_token": "a"},
        {"root_uri": "s3://b"},
    ]

    pages = [one async for one in session.runs.list_artifacts("7").pages()]

    assert [(one.root_uri, one.next_page_token) for one in pages] == [
        ("s3://b", "a"),
        ("s3://b", None),
    ]
    assert [len(one.items) for one in pages] == [1, 0]


async def test_a_listing_asks_for_nothing_until_it_is_used(session: FakeSession) -> None:
    """And for no page more than is used."""
    session.replies = [page("runs", run("1"), token="a")]
    listing = session.runs.search()
    assert session.calls == []

    async for _ in listing:
        break

    assert len(session.calls) == 1


async def test_a_listing_can_be_used_again(session: FakeSession) -> None:
    """Every loop over it starts with the first page."""
    session.replies = [page("runs", run("1"))]
    listing = session.runs.search()

    assert [r.info.run_id async for r in listing] == ["1"]
    assert [r.info.run_id async for r in listing] == ["1"]


async def test_a_listing_starts_where_it_is_told(session: FakeSession) -> None:
    """With a page token of earlier, it goes on from there."""
    session.replies = [page("runs")]

    [_ async for _ in session.runs.search(page_token="kept")]

    assert session.calls[0].body == {"page_token": "kept"}


@pytest.mark.parametrize("token", [None, ""])
async def test_no_token_is_the_end(token: str | None, session: FakeSession) -> None:
    """A null and an empty token end a listing as well as none."""
    session.replies = [{"runs": [], "next_page_token": token}]

    assert [_ async for _ in session.runs.search()] == []
    assert len(session.calls) == 1


async def test_a_token_that_repeats_is_an_error(session: FakeSession) -> None:
    """A service that gives a page's own token as the next would be asked for ever."""
    session.replies = [page("runs", run("1"), token="a")]

    with pytest.raises(UnreadableReply, match="never end"):
        [_ async for _ in session.runs.search()]
    assert len(session.calls) == 2


async def test_permissions_page_by_header(session: FakeSession) -> None:
    """The token comes in opc-next-page and goes out as `page`."""
    grant = {"grantee": "ada", "granteeType": "USER", "granteePermissions": ["READ"]}
    session.replies = [{"items": [grant]}, {"items": [grant | {"grantee": "bob"}]}]
    session.headers = [{"opc-next-page": "p2"}, {}]

    found = [p.grantee async for p in session.registered_models.permissions("a.b.c", limit=1)]

    assert found == ["ada", "bob"]
    assert [call.query for call in session.calls] == [{"limit": 1}, {"limit": 1, "page": "p2"}]


async def test_log_pages_carry_their_tokens_inside(session: FakeSession) -> None:
    """A deployment's log keeps items and token one level down, and says what it covers."""
    first, second = filled("DeploymentLogCollection"), filled("DeploymentLogCollection")
    first["logs"]["nextPageToken"] = "a"
    del second["logs"]["nextPageToken"]
    session.replies = [first, second]
    moment = datetime.fromisoformat("2026-01-02T00:00:00Z")

    pages = [one async for one in session.deployments.search_logs("d", moment, moment).pages()]

    assert [len(one.items) for one in pages] == [2, 2]
    assert pages[0].coverage.state in {"UNKNOWN", "PARTIAL", "COMPLETE_WITHIN_RETENTION"}
    assert session.calls[1].body["pageToken"] == "a"


def test_every_paging_operation_is_a_listing(session: FakeSession) -> None:
    """What has a page token among its arguments can be looped over."""
    for family, name, _ in PUBLIC_METHODS:
        row = next(row for row in rows() if row.method == f"{family}.{name}")
        given = arguments_of(row.operation, required_only=False)
        if "page_token" in given:
            assert isinstance(getattr(getattr(session, family), name)(**given), Listing)
