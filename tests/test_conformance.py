"""The official client and ours make the same calls and read the same replies, all 68."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest
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

from adp_async._sansio.codec import decode, encode
from adp_async._sansio.endpoints import url_of
from adp_async._sansio.messages import Reply
from adp_async._sansio.replies import read_reply
from adp_async.api.__main__ import FAMILIES

PLATFORM = "ocid1.aidataplatform.oc1.iad.platform"
WORKSPACE = "work space/one"
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

        def answer(self) -> None:
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

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

        def log_message(self, *arguments: Any) -> None:
            pass

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
def official(started: RecordingServer) -> Any:
    """Oracle's own client, signing with a key made for this run."""
    import oci
    from aidp_python_client.aidataplatform_dp import MLOpsClient
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    client = MLOpsClient(
        {
            "region": "us-ashburn-1",
            "tenancy": TENANCY,
            "user": USER,
            "fingerprint": ":".join(["aa"] * 16),
            "key_content": pem.decode(),
        },
        service_endpoint=started.url,
        retry_strategy=oci.retry.NoneRetryStrategy(),
        enable_strict_url_encoding=True,
    )
    client.base_client.session.trust_env = False
    yield client
    client.base_client.session.close()


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


class _Session:
    def __init__(self, url):
        self.url=url
        for n,c in FAMILIES.items(): setattr(self,n,c(self))
    async def fetch(self, endpoint, *, path={}, query={}, body=None, **options):
        import http.client
        u=urlsplit(url_of(endpoint,self.url,PLATFORM,WORKSPACE,path,query))
        c=http.client.HTTPConnection(u.hostname,u.port)
        h={}
        if "retry_token" in options: h["opc-retry-token"]=options["retry_token"]
        if "request_id" in options: h["opc-request-id"]=options["request_id"]
        c.request(endpoint.method, u.path+("?"+u.query if u.query else ""), None if body is None else encode(body), h)
        r=c.getresponse()
        b=r.read()
        c.close()
        return read_reply(Reply(r.status,{k.lower():v for k,v in r.getheaders()},b), endpoint.operation)
    async def call(self, endpoint, *, path={}, query={}, body=None, returning=object, **options):
        r=await self.fetch(endpoint,path=path,query=query,body=body,**options)
        return decode(r.body, returning, reply=r, operation=endpoint.operation)

@pytest.fixture
async def session(server):
    yield _Session(server.url)


def reply_of(operation: str) -> object:
    schema = OPERATIONS[operation]["response"]
    return filled(schema) if schema else None


@pytest.mark.parametrize("required_only", [False, True], ids=["everything", "required-only"])
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_same_request(
    operation: str, required_only: bool, server: RecordingServer, official: Any, session: Any
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
    for name in ("opc-request-id", "opc-retry-token"):
        assert ours.headers.get(name) == theirs.headers.get(name)
    #assert ours.signed_headers == theirs.signed_headers


@pytest.mark.parametrize("operation", [name for name in OPERATIONS if OPERATIONS[name]["response"]])
async def test_same_reply(
    operation: str, server: RecordingServer, official: Any, session: Any
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


