"""The URL of a call: its arguments sorted into path, query and body, and quoted.

Which argument goes where follows from the operation's row in `endpoints`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from adp_async._sansio.arguments import checked, query_texts
from adp_async._sansio.endpoints import API_VERSION, Scope
from adp_async._sansio.values import valid_name
from adp_async._sansio.wire_names import camel_case, wire_name
from adp_async.errors import ConfigurationError, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from adp_async._sansio.endpoints import Endpoint

_PATH_PART = re.compile(r"{(\w+)}")


class Placed(NamedTuple):
    """The arguments of one call, each where it belongs, under its name on the wire."""

    path: Mapping[str, str]
    query: Mapping[str, object]
    body: Mapping[str, object] | None


def place(endpoint: Endpoint, arguments: Mapping[str, object]) -> Placed:
    """Sort a method's arguments into path, query and body; None means not given.

    TypeError or ValueError names an argument that can't be sent.

    The row decides: names that occur in the path go there, and the others are the query of a GET
    or the body of a POST.

    >>> from adp_async._sansio.endpoints import Endpoint
    >>> place(Endpoint("GET", "things/{thingId}"), {"thing_id": "7", "limit": 5, "page": None})
    Placed(path={'thingId': '7'}, query={'limit': 5}, body=None)
    """
    parts = _PATH_PART.findall(endpoint.path)
    path: dict[str, str] = {}
    others: dict[str, object] = {}
    for name, given in arguments.items():
        try:
            value = None if given is None else checked(endpoint.operation, name, given)
        except (TypeError, ValueError) as error:
            # It is the caller's mistake: where we found it doesn't matter.
            raise error.with_traceback(None)  # noqa: B904 - the same error
        if value is None:
            continue
        if camel_case(name) in parts:
            path[camel_case(name)] = value
        else:
            others[wire_name(endpoint.operation, name)] = value
    if endpoint.method == "GET":
        return Placed(path, others, None)
    return Placed(path, {}, others)


def url_of(
    endpoint: Endpoint,
    base_url: str,
    platform_id: str,
    workspace: str | None,
    path_arguments: Mapping[str, str],
    query: Mapping[str, object],
) -> str:
    """The absolute URL of a call, percent-encoded to the last character.

    Every path part is quoted completely, slashes included; a query value has its spaces as
    ``%20``, its lists repeat the name, and None is left out.

    >>> from adp_async._sansio.endpoints import Endpoint
    >>> get = Endpoint("GET", "runs/get")
    >>> url_of(get, "https://host", "ocid1", "w/1", {}, {"run_id": "a b", "brief": True})
    'https://host/20260430/aiDataPlatforms/ocid1/workspaces/w%2F1/mlops/api/2.0/runs/get?run_id=a%20b&brief=true'
    """
    in_workspace = endpoint.scope is Scope.WORKSPACE
    owner = _required(workspace, endpoint) if in_workspace else None
    path = _PATH_PART.sub(
        lambda part: _quoted_part(part[1], path_arguments.get(part[1], "")), endpoint.path
    )
    pairs = "&".join(_query_pairs(query))
    url = _root(base_url, platform_id, owner) + path
    return f"{url}?{pairs}" if pairs else url


@lru_cache(maxsize=16)
def _root(base_url: str, platform_id: str, workspace: str | None) -> str:
    """The common beginning of all URLs of a workspace, or of the platform itself."""
    scope = f"aiDataPlatforms/{_quoted_part('platform_id', platform_id)}"
    if workspace is not None:
        scope += f"/workspaces/{_quoted_part('workspace', workspace)}"
    return f"{base_url}/{API_VERSION}/{scope}/mlops/api/2.0/"


def _required(workspace: str | None, endpoint: Endpoint) -> str:
    if workspace:
        return workspace
    message = (
        f"workspace is not set, and {endpoint.operation} is an operation of a workspace: "
        "give Session its key, or set AIDP_WORKSPACE"
    )
    raise ConfigurationError(message)


def _quoted_part(name: str, value: str) -> str:
    # Dots can't be percent-encoded away: servers and proxies resolve "." and ".." and would
    # answer for another resource than the one that was signed.
    plain = valid_name(value, name) or ""
    if plain in {"", ".", ".."}:
        message = f"{name} must not be {plain!r}: it is a part of the path"
        raise ValueError(message)
    return quote(plain, safe="")


def _query_pairs(query: Mapping[str, object]) -> Iterator[str]:
    for name, value in query.items():
        what = f"query: {shown(name)}"
        quoted = quote(name, safe="")
        for text in query_texts(value, what):
            yield f"{quoted}={quote(text, safe='')}"
