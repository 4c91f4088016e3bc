"""The official client and ours make the same calls and read the same replies, all 68.

Oracle's `aidp-python-client` is an independent reader of the same API: synchronous, generated,
on `requests`.  Both clients sign for real and talk to one recording server on loopback.
"""

from __future__ import annotations

import json
import re
import threading
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest
import pytest_asyncio
from api_samples import (
    MODELS,
    OPERATIONS,
    arguments_of,
    class_of,
    filled,
    invoke,
    snake_case,
    wire_call,
)
from attrs import define, field, frozen
from cryptography.hazmat.primitives import serialization

from adp_async import ApiKey, Endpoint, Session
from adp_async.entities import RunData, RunInfo, RunInputs, RunOutputs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

pytestmark = pytest.mark.asyncio(loop_scope="module")  # one session for all

PLATFORM = "ocid1.aidataplatform.oc1.iad.platform"
WORKSPACE = "workspace/1%2F+é"
FINGERPRINT = ":".join(["aa"] * 16)
TENANCY = "ocid1.tenancy.oc1..tenancy"
USER = "ocid1.user.oc1..user"


@frozen
class Recorded:
    """One request as it arrived."""

    method: str
    target: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)

    @property
    def path(self) -> list[str]:
        return [unquote(part) for part in urlsplit(self.target).path.split("/")]

    @property
    def query(self) -> list[tuple[str, str]]:
        pairs = parse_qsl(urlsplit(self.target).query, keep_blank_values=True, strict_parsing=True)
        return sorted(pairs)

    @property
    def json(self) -> Any:
        return json.loads(self.body) if self.body else None

    @property
    def signed_headers(self) -> list[str]:
        found = re.search(r'\bheaders="([^"]*)"', self.headers.get("authorization", ""))
        return sorted(found[1].split()) if found else []


@define
class RecordingServer:
    """Answers every request with *answer* and keeps what came."""

    answer: object = None
    answer_headers: dict[str, str] = field(factory=dict)
    requests: list[Recorded] = field(factory=list)
    url: str = ""

    def take(self) -> Recorded:
        """The one request since the last time."""
        (recorded,) = self.requests
        self.requests.clear()
        return recorded


@pytest.fixture(scope="module")
def started() -> Iterator[RecordingServer]:
    recording = RecordingServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            recording.requests.append(Recorded(self.command, self.path, headers, body))
            content = b"" if recording.answer is None else json.dumps(recording.answer).encode()
            self.send_response(200)
            for name, value in recording.answer_headers.items():
                self.send_header(name, value)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        recording.url = f"http://127.0.0.1:{server.server_port}"
        yield recording
        server.shutdown()
        thread.join()


@pytest.fixture
def server(started: RecordingServer) -> RecordingServer:
    """The recording server, with nothing recorded and a request id and an etag to give."""
    started.requests.clear()
    started.answer = {}
    started.answer_headers = {"opc-request-id": "a/b/c", "etag": "tag", "opc-next-page": "page 2"}
    return started


@pytest.fixture(scope="module")
def key_content(api_key: RSAPrivateKey) -> str:
    return api_key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


@pytest.fixture(scope="module")
def official(started: RecordingServer, key_content: str) -> Iterator[Any]:
    """Oracle's own client, with nothing repeated and path parts quoted completely."""
    import oci
    from aidp_python_client.aidataplatform_dp import MLOpsClient

    config = {
        "region": "us-ashburn-1",
        "tenancy": TENANCY,
        "user": USER,
        "fingerprint": FINGERPRINT,
        "key_content": key_content,
    }
    client = MLOpsClient(
        config,
        service_endpoint=started.url,
        retry_strategy=oci.retry.NoneRetryStrategy(),
        enable_strict_url_encoding=True,
    )
    client.base_client.session.trust_env = False
    yield client
    client.base_client.session.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def session(started: RecordingServer, key_content: str) -> AsyncIterator[Session]:
    """Ours, with the same key."""
    auth = ApiKey(tenancy=TENANCY, user=USER, fingerprint=FINGERPRINT, key_content=key_content)
    async with Session(
        PLATFORM, WORKSPACE, endpoint=started.url, auth=auth, spool=False
    ) as session:
        yield session


def official_model(schema: str, value: Mapping[str, Any]) -> Any:
    """A JSON object as the official client's model."""
    from aidp_python_client.aidataplatform_dp import models

    fields = MODELS[schema]["fields"]
    given = {snake_case(name): official_value(fields[name]["type"], value[name]) for name in value}
    return getattr(models, schema)(**given)


def official_value(type_: str, value: Any) -> Any:
    if type_.startswith("list["):
        return [official_value(type_[5:-1], one) for one in value]
    if type_ == "datetime":
        return datetime.fromisoformat(value)
    return official_model(type_, value) if type_ in MODELS else value


def official_call(client: Any, operation: str, *, required_only: bool, **headers: str) -> Any:
    row = OPERATIONS[operation]
    call = wire_call(operation, required_only=required_only)
    given = {snake_case(name): value for name, value in call["path"].items()}
    for name, value in call["query"].items():
        given[snake_case(name)] = official_value(row["query"][name]["type"], value)
    if "{workspaceKey}" in row["path"]:
        given["workspace_key"] = WORKSPACE
    if row["body"]:
        given[snake_case(row["body"])[1:]] = official_model(row["body"], call["body"])
    return getattr(client, operation)(PLATFORM, **given, **headers)


def reply_of(operation: str) -> object:
    schema = OPERATIONS[operation]["response"]
    return filled(schema) if schema else None


#: Headers that only one of the two sends or that say something else, and why.
HEADERS_ON_PURPOSE = {
    "accept-encoding": "each HTTP library names the compressions it can read",
    "authorization": "another date, and so another signature; the signed headers are compared",
    "connection": "requests asks for what HTTP/1.1 does by itself",
    "content-length": "ours writes JSON without spaces, and unicode as it is",
    "date": "the moment of signing",
    "opc-client-info": "the SDK's name and version, which ours isn't",
    "user-agent": "each client says who it is",
    "x-content-sha256": "as content-length; that both sign it is compared",
}

#: Where a method of ours takes or gives something else than the official client, and why.
ON_PURPOSE = {
    "sequences left out of a reply": "(): `for tag in run.data.tags` needs no question first",
    "ids and names left out of a reply": "empty text: `run.info.run_id` is a str, never None",
    "parts left out of a run": "empty ones: `run.data.metrics` needs no question first",
    "is_dir left out": "False: a file is what an artifact is unless it says otherwise",
    "optional sequences given empty": "left out of the body, as if they were not given",
    "records": "a metric, param or tag has its key and value, and a metric its timestamp and step",
    "tags to delete": "keys, where the official client wants an object around each",
    "path parts": "always quoted completely; the official client does so when told, as here",
    "moments without a time zone": "a ValueError; the official client takes them for UTC",
    "retry tokens": "made up for every operation that takes one; the official client's retries do",
    "principal": "`dh-user-principal` is documented; the official Python client has no way to it",
    "wrongly typed replies": "UnreadableReply; the official client makes text of anything",
}


@pytest.mark.parametrize("required_only", [False, True], ids=["everything", "required-only"])
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_same_request(
    operation: str, required_only: bool, server: RecordingServer, official: Any, session: Session
) -> None:
    """Method, path, query, body and the set of signed headers are those of the official client."""
    server.answer = reply_of(operation)
    takes_token = OPERATIONS[operation]["opc_retry_token"]

    token = {"opc_retry_token": "token-1"} if takes_token else {}
    official_call(official, operation, required_only=required_only, opc_request_id="id-1", **token)
    theirs = server.take()
    token = {"retry_token": "token-1"} if takes_token else {}
    arguments = arguments_of(operation, required_only=required_only)
    await invoke(session, operation, arguments, request_id="id-1", **token)
    ours = server.take()

    assert ours.method == theirs.method
    assert ours.path == theirs.path
    assert ours.query == theirs.query
    assert ours.json == theirs.json
    assert ours.signed_headers == theirs.signed_headers
    assert len(ours.signed_headers) == (3 if ours.method == "GET" else 6)
    told_apart = {
        name
        for name in {*ours.headers, *theirs.headers}
        if ours.headers.get(name) != theirs.headers.get(name)
    }
    assert told_apart <= set(HEADERS_ON_PURPOSE)


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_every_awkward_character_arrives_as_meant(
    operation: str, server: RecordingServer, session: Session
) -> None:
    """Quotes, slashes, percent signs, unicode, spaces and plus: what arrives is what was given."""
    server.answer = reply_of(operation)
    meant = wire_call(operation, required_only=False)

    await invoke(session, operation, arguments_of(operation, required_only=False))

    arrived = server.take()
    assert arrived.target.isascii()
    for value in meant["path"].values():
        assert value in arrived.path
    assert dict(arrived.query) == {name: as_query(value) for name, value in meant["query"].items()}
    assert (arrived.json or {}) == meant["body"]


def as_query(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@pytest.mark.parametrize("operation", [name for name in OPERATIONS if OPERATIONS[name]["response"]])
async def test_same_reply(
    operation: str, server: RecordingServer, official: Any, session: Session
) -> None:
    """A reply with every field filled is read alike, field by field, down to the last."""
    schema = OPERATIONS[operation]["response"]
    server.answer = filled(schema)

    theirs = official_call(official, operation, required_only=True)
    ours = await invoke(session, operation, arguments_of(operation, required_only=True))

    if class_of(schema) is not None:
        assert_same(schema, theirs.data, ours)
    elif not MODELS[schema]["fields"]:
        assert ours is None
    else:
        ((name, inner),) = MODELS[schema]["fields"].items()
        assert_same_value(inner["type"], getattr(theirs.data, name), ours)


@pytest.mark.parametrize("operation", [name for name in OPERATIONS if OPERATIONS[name]["response"]])
async def test_same_sparse_reply(
    operation: str, server: RecordingServer, official: Any, session: Session
) -> None:
    """A reply with only what it must have is read alike, but for what `ON_PURPOSE` tells."""
    schema = OPERATIONS[operation]["response"]
    server.answer = filled(schema, required_only=True)

    theirs = official_call(official, operation, required_only=True)
    ours = await invoke(session, operation, arguments_of(operation, required_only=True))

    for name, told in MODELS[schema]["fields"].items():
        if class_of(schema) and not told.get("required"):
            assert getattr(theirs.data, snake_case(name)) is None
            assert is_nothing(getattr(ours, snake_case(name)))


def is_nothing(ours: object) -> bool:
    """None, or one of our intended differences; a token comes by header."""
    return ours in (None, (), "", "page 2", False, RunInfo(), RunData(), RunInputs(), RunOutputs())


@pytest.mark.parametrize("given", [[], ()])
async def test_empty_sequences_are_left_out(
    given: Any, server: RecordingServer, official: Any, session: Session
) -> None:
    """The one body that differs: to set no tags and not to set tags are the same."""
    from aidp_python_client.aidataplatform_dp.models import CreateExperimentDetails

    server.answer = reply_of("create_experiment")

    official.create_experiment(PLATFORM, WORKSPACE, CreateExperimentDetails(name="n", tags=given))
    theirs = server.take()
    await session.experiments.create("n", tags=given)
    ours = server.take()

    assert theirs.json == {"name": "n", "tags": []}
    assert ours.json == {"name": "n"}


def assert_same(schema: str, theirs: Any, ours: Any) -> None:
    for name, told in MODELS[schema]["fields"].items():
        attribute = snake_case(name)
        assert_same_value(told["type"], getattr(theirs, attribute), getattr(ours, attribute))


def assert_same_value(type_: str, theirs: Any, ours: Any) -> None:
    assert theirs is not None
    if type_.startswith("list["):
        assert len(theirs) == len(ours) == 2
        for one, other in zip(theirs, ours, strict=True):
            assert_same_value(type_[5:-1], one, other)
    elif type_ in MODELS:
        assert_same(type_, theirs, ours)
    else:
        assert ours == theirs


async def test_permissions_page_by_the_same_header(
    server: RecordingServer, official: Any, session: Session
) -> None:
    """The token of the next page is the official client's `next_page`."""
    operation = "list_registered_model_permissions"
    server.answer = reply_of(operation)

    theirs = official_call(official, operation, required_only=True)
    ours = await invoke(session, operation, arguments_of(operation, required_only=True))

    assert ours.next_page_token == theirs.next_page == "page 2"


async def test_request_id_and_etag_are_within_reach(
    server: RecordingServer, official: Any, session: Session
) -> None:
    """`on_reply` gives the headers that the official client has on its responses."""
    server.answer = reply_of("get_experiment_run_by_id")
    replies: list[Any] = []

    theirs = official_call(official, "get_experiment_run_by_id", required_only=True)
    await session.runs.get("7", on_reply=replies.append)

    (ours,) = replies
    assert ours.request_id == theirs.request_id == "a/b/c"
    assert ours.etag == theirs.headers["etag"] == "tag"


@pytest.mark.parametrize(
    "operation", [name for name, row in OPERATIONS.items() if row["opc_retry_token"]]
)
async def test_a_retry_token_of_our_own_making(
    operation: str, server: RecordingServer, session: Session
) -> None:
    """Where an operation takes a token and the caller brings none, a new one is made up."""
    server.answer = reply_of(operation)
    arguments = arguments_of(operation, required_only=True)
    tokens = []

    for _ in range(2):
        await invoke(session, operation, arguments, principal="ada")
        recorded = server.take()
        tokens.append(recorded.headers["opc-retry-token"])

    assert len(set(tokens)) == 2
    assert all(1 <= len(token) <= 64 for token in tokens)
    assert recorded.headers["dh-user-principal"] == "ada"


async def test_an_operation_of_tomorrow(server: RecordingServer, session: Session) -> None:
    """`session.call` takes a row that the library doesn't know, and names as on the wire."""
    server.answer = {"answerOfTomorrow": [1, {"x": None}]}
    tomorrow = Endpoint("POST", "mlflow/tomorrow/{someKey}/do", takes_retry_token=True)

    answer = await session.call(
        tomorrow, path={"someKey": "a/b"}, query={"a b": True}, body={"workspaceKey": None}
    )

    recorded = server.take()
    assert answer == server.answer
    assert recorded.target.endswith("/mlflow/tomorrow/a%2Fb/do?a%20b=true")
    assert recorded.json == {"workspaceKey": None}
    assert "opc-retry-token" in recorded.headers
