"""Calls and replies made up from the API's own description, for all 68 operations.

Every value says whose it is and holds what quoting gets wrong: quotes, slashes, percent signs,
spaces, plus, unicode.
"""

from __future__ import annotations

import json
import re
import zlib
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import Factory, define, field
from schemas import SCHEMAS

from adp_async import entities
from adp_async._sansio.codec import decode, encode
from adp_async._sansio.endpoints import ENDPOINTS
from adp_async._sansio.messages import Reply
from adp_async.api.__main__ import FAMILIES, rows
from adp_async.api._family import Listing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adp_async._sansio.endpoints import Endpoint

SAMPLES = Path(__file__).parent / "samples"
OPERATIONS: dict[str, dict[str, Any]] = {
    row["operation"]: row for row in json.loads((SAMPLES / "operations.json").read_text())
}
MODELS: dict[str, dict[str, Any]] = json.loads((SAMPLES / "models.json").read_text())
METHODS = {row.operation: row.method for row in rows()}
ENDPOINT_OF = {endpoint.operation: endpoint for endpoint in ENDPOINTS}

AWKWARD = ' "quoted" it\'s/50%25 a+b&c=d?e#f;g:h@ß…🦆\\~'

#: Arguments of ours that have another name than the field they fill.
ARGUMENT_NAMES = {
    "filter": "filter_string",
    "page": "page_token",
    "requestId": "inference_id",
    "assignRegisteredModelPermissionDetails": "assign",
    "revokeRegisteredModelPermissionDetails": "revoke",
}


def snake_case(wire: str) -> str:
    return re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", wire)


def value_of(type_: str, name: str, allowed: list[str] | None = None) -> Any:
    """A made-up value of a field, as JSON."""
    if type_.startswith("list["):
        return [value_of(type_[5:-1], f"{name}{number}", allowed) for number in (1, 2)]
    if type_.startswith("dict("):
        return {f"{name} key": f"{name} value"}
    if type_ in MODELS:
        return filled(type_)
    if type_ == "str" and allowed:
        return allowed[zlib.crc32(name.encode()) % len(allowed)]
    number = zlib.crc32(name.encode()) % 1_000 + 2
    return {
        "str": f"{name}{AWKWARD}",
        "int": number + 2**53,
        "float": number + 0.5,
        "bool": True,
        "datetime": f"2026-03-04T05:06:07.{number:06}Z",
        "object": {"any": [1, None, name]},
    }.get(type_, f"{name} as text")


def filled(schema: str, *, required_only: bool = False) -> dict[str, Any]:
    """A JSON object of a schema with every field, or only with those it must have."""
    return {
        name: value_of(field["type"], name, field.get("enum"))
        for name, field in MODELS[schema]["fields"].items()
        if field.get("required") or not required_only
    }


def wire_call(operation: str, *, required_only: bool) -> dict[str, dict[str, Any]]:
    """What an operation is given, as path, query and body, under the names of the wire."""
    row = OPERATIONS[operation]
    parts = re.findall(r"{(\w+)}", ENDPOINT_OF[operation].path)
    query = {
        name: value_of(field["type"], name, field.get("allowed"))
        for name, field in row["query"].items()
        if field.get("required") or not required_only
    }
    body = filled(row["body"], required_only=required_only) if row["body"] else {}
    return {"path": {name: value_of("str", name) for name in parts}, "query": query, "body": body}


def arguments_of(operation: str, *, required_only: bool) -> dict[str, Any]:
    """The same call as keyword arguments of our method."""
    row = OPERATIONS[operation]
    types = {name: field["type"] for name, field in row["query"].items()}
    if row["body"]:
        types |= {n: field["type"] for n, field in MODELS[row["body"]]["fields"].items()}
    call = wire_call(operation, required_only=required_only)
    return {
        ARGUMENT_NAMES.get(name, snake_case(name)): argument(types.get(name, "str"), value)
        for part in call.values()
        for name, value in part.items()
    }


def argument(type_: str, value: Any) -> Any:
    """A JSON value as our methods take it: entities for objects, keys for tags to delete."""
    if type_.startswith("list["):
        return [argument(type_[5:-1], one) for one in value]
    if type_ == "datetime":
        return datetime.fromisoformat(value)
    if type_.endswith("TagKey"):
        return value["key"]
    return entity(type_, value) if type_ in MODELS else value


def class_of(schema: str) -> type | None:
    """The entity of a schema, or None when its fields are arguments or a method's result."""
    name = SCHEMAS[schema]
    return getattr(entities, name) if name in entities.__all__ else None


def entity(schema: str, value: Any) -> Any:
    class_ = class_of(schema)
    assert class_ is not None
    return decode(json.dumps(value).encode(), class_)


async def invoke(session: Any, operation: str, arguments: Mapping[str, Any], **options: Any) -> Any:
    """Call our method of an operation; of one that pages, take the first page."""
    family, method = METHODS[operation].split(".")
    result = getattr(getattr(session, family), method)(**arguments, **options)
    if not isinstance(result, Listing):
        return await result
    pages = result.pages()
    page = await anext(pages)
    await pages.aclose()
    return page


@define
class Call:
    """One call as the families hand it to the session."""

    endpoint: Endpoint
    path: Mapping[str, str]
    query: Mapping[str, object]
    body: Any
    options: Mapping[str, object]


@define
class FakeSession:
    """Keeps what the families ask for, and answers with *replies* in turn, the last for ever."""

    replies: list[Any] = Factory(lambda: [{}])
    headers: list[dict[str, str]] = Factory(lambda: [{}])
    calls: list[Call] = field(factory=list)
    families: dict[str, Any] = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self.families = {name: family(self) for name, family in FAMILIES.items()}

    def __getattr__(self, name: str) -> Any:
        if name in FAMILIES:
            return self.families[name]
        raise AttributeError(name)

    async def fetch(
        self,
        endpoint: Endpoint,
        *,
        path: Mapping[str, str] = {},
        query: Mapping[str, object] = {},
        body: object = None,
        **options: Any,
    ) -> Reply:
        sent = None if body is None else json.loads(encode(body))
        self.calls.append(Call(endpoint, path, query, sent, options))
        answer = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        headers = self.headers.pop(0) if len(self.headers) > 1 else self.headers[0]
        return Reply(200, headers, b"" if answer is None else json.dumps(answer).encode())

    async def call(self, endpoint: Endpoint, *, returning: Any = None, **rest: Any) -> Any:
        reply = await self.fetch(endpoint, **rest)
        return decode(reply.body, returning or object, reply=reply, operation=endpoint.operation)
