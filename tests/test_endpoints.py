"""The rows of the operations against the API's own list, and the URLs made from them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest
from api_samples import AWKWARD, ENDPOINT_OF, OPERATIONS
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from adp_async._sansio import endpoints
from adp_async._sansio.endpoints import ENDPOINTS, Endpoint, Scope
from adp_async._sansio.urls import place, url_of
from adp_async.errors import ConfigurationError

PLATFORM = "ocid1.aidataplatform.oc1.iad.one"
BASE = "https://aidp.us-ashburn-1.oci.oraclecloud.com"
GET = Endpoint("GET", "things/{thingId}/parts/{partId}")


def url(endpoint: Endpoint = GET, *, workspace: str | None = "w", **given: object) -> str:
    placed = place(endpoint, given)
    return url_of(endpoint, BASE, PLATFORM, workspace, placed.path, placed.query)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_row_is_the_published_one(operation: str) -> None:
    """Method, path, scope and retry token of every row are those of the API's list."""
    published = OPERATIONS[operation]
    row = ENDPOINT_OF[operation]
    scope = "/workspaces/{workspaceKey}" if row.scope is Scope.WORKSPACE else ""
    prefix = f"/20260430/aiDataPlatforms/{{aiDataPlatformId}}{scope}/mlops/api/2.0"

    assert row.method == published["method"]
    assert f"{prefix}/{row.path}" == published["path"]
    assert row.takes_retry_token == published["opc_retry_token"]


def test_all_68_operations_have_a_row() -> None:
    """No operation is missing, none is there twice."""
    assert len(ENDPOINTS) == 68
    assert {row.operation for row in ENDPOINTS} == set(OPERATIONS)


@pytest.mark.parametrize(
    ("endpoint", "may_be"),
    [
        (endpoints.GET_RUN, True),
        (endpoints.SEARCH_RUNS, True),
        (endpoints.CREATE_RUN, True),
        (endpoints.ACTIVATE_DEPLOYMENT, False),
        (endpoints.MANAGE_REGISTERED_MODEL_PERMISSION, False),
    ],
)
def test_what_may_be_sent_again(endpoint: Endpoint, may_be: bool) -> None:
    """What only reads, and what has a retry token, does no harm the second time."""
    assert endpoint.may_be_resent is may_be


def test_path_stands_in_for_the_name_of_an_operation() -> None:
    """A row that a user makes for an operation of tomorrow needs no name."""
    assert Endpoint("GET", "mlflow/tomorrow").operation == "mlflow/tomorrow"


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.operation)
def test_awkward_characters_come_back_out_of_the_url(endpoint: Endpoint) -> None:
    """Path parts and queries are quoted so completely that a URL parser gives them back."""
    names = [part[1:-1] for part in endpoint.path.split("/") if part.startswith("{")]
    made = url_of(
        endpoint,
        BASE,
        PLATFORM + AWKWARD,
        "w" + AWKWARD,
        {name: name + AWKWARD for name in names},
        {"filter" + AWKWARD: AWKWARD},
    )
    expected = f"/20260430/aiDataPlatforms/{{}}/mlops/api/2.0/{endpoint.path}"
    if endpoint.scope is Scope.WORKSPACE:
        expected = expected.replace("/mlops", "/workspaces/w{}/mlops")
    parts = urlsplit(made).path.split("/")

    assert made.isascii()
    assert len(parts) == len(expected.split("/"))
    assert [unquote(part) for part in parts if "%" in part] == [
        PLATFORM + AWKWARD,
        *(["w" + AWKWARD] if endpoint.scope is Scope.WORKSPACE else []),
        *(name + AWKWARD for name in names),
    ]
    assert parse_qsl(urlsplit(made).query) == [("filter" + AWKWARD, AWKWARD)]
    assert "+" not in made


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda s: s.strip(".")))
def test_any_text_survives_in_path_and_query(text: str) -> None:
    """Whatever the text, the URL says just that, and yarl sends it unchanged."""
    made = url(GET, thing_id=text, part_id="p", q=text)

    part = urlsplit(made).path.partition("/things/")[2].partition("/parts/")[0]
    assert unquote(part) == text
    assert parse_qsl(urlsplit(made).query, keep_blank_values=True) == [("q", text)]
    assert str(URL(made, encoded=True)) == made


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("is_permanent", True, "true"),
        ("is_permanent", False, "false"),
        ("step", 7, "7"),
        ("q", "a b", "a%20b"),
        ("timeStart", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "2026-01-02T03%3A04%3A05Z"),
        (
            "timeStart",
            datetime(2026, 1, 2, tzinfo=timezone(timedelta(hours=1))),
            "2026-01-01T23%3A00%3A00Z",
        ),
    ],
)
def test_query_values_are_spelled_as_the_service_reads_them(
    name: str, value: object, text: str
) -> None:
    """Booleans are lower case, spaces are %20, moments are RFC 3339 in UTC."""
    argument = "time_start" if name == "timeStart" else name
    made = url(thing_id="t", part_id="p", **{argument: value})
    assert made.endswith(f"?{name}={text}")


def test_lists_repeat_the_name_and_none_is_left_out() -> None:
    """A query has a pair for each member of a list, and nothing for None."""
    made = url_of(Endpoint("GET", "x"), BASE, PLATFORM, "w", {}, {"a": ["1", None, "2"], "b": None})

    assert made.endswith("/x?a=1&a=2")


def test_no_query_no_question_mark() -> None:
    """Without a query the URL ends with the path."""
    assert url(thing_id="t", part_id="p").endswith("/things/t/parts/p")


def test_a_path_prefix_is_kept() -> None:
    """One guide shows /api before the version: it is part of the base."""
    made = url_of(Endpoint("GET", "x"), f"{BASE}/api", PLATFORM, "w", {}, {})

    assert made.startswith(f"{BASE}/api/20260430/aiDataPlatforms/{PLATFORM}/workspaces/w/mlops/")


@pytest.mark.parametrize("part", ["", ".", ".."])
def test_a_part_that_would_change_the_path_is_refused(part: str) -> None:
    """An empty part or a dot segment would address another resource."""
    with pytest.raises(ValueError, match="thingId must not be"):
        url(thing_id=part, part_id="p")


def test_a_part_that_is_not_given_is_refused() -> None:
    """None never becomes the text "None" in a path."""
    with pytest.raises(ValueError, match="thingId must not be ''"):
        url(thing_id=None, part_id="p")


def test_a_workspace_operation_needs_the_workspace() -> None:
    """The error names the setting and the fix; the platform's operations do without."""
    with pytest.raises(ConfigurationError, match="AIDP_WORKSPACE"):
        url(workspace=None, thing_id="t", part_id="p")
    assert "workspaces" not in url(Endpoint("GET", "x", Scope.PLATFORM), workspace=None, limit=5)


def test_a_body_takes_what_the_path_does_not() -> None:
    """Of a POST, what is not in the path is the body; None was not given."""
    placed = place(endpoints.EXPORT_INFERENCES, {"deployment_id": "d", "time_end": None, "step": 0})

    assert placed.path == {"deploymentId": "d"}
    assert placed.query == {}
    assert placed.body == {"step": 0}


def test_names_are_those_of_the_wire() -> None:
    """camelCase where the API has it, snake_case beside it, even for the same word."""
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    filters = {"model_version": "1", "time_start": moment, "page_token": "p"}

    assert place(endpoints.SEARCH_INFERENCES, filters).body == {
        "modelVersion": "1",
        "timeStart": moment,
        "pageToken": "p",
    }
    assert place(endpoints.EXPORT_INFERENCES, filters).body == {
        "model_version": "1",
        "timeStart": moment,
        "page_token": "p",
    }


def test_a_naive_datetime_is_refused_by_name() -> None:
    """Nobody can know which moment a datetime without a time zone is."""
    with pytest.raises(ValueError, match=r"time_start=2026-01-02T00:00:00 has no time zone"):
        place(endpoints.GET_INFERENCE_SUMMARY, {"time_start": datetime(2026, 1, 2)})
