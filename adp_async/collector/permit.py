"""What a worker may do: the token of the job, and the run that it stands for."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs

from attrs import field, frozen

from adp_async._sansio import endpoints
from adp_async._sansio.endpoints import Endpoint, Scope
from adp_async.collector.reading import INVALID, Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: Operations about one run that its handle allows.  Deleting it is not among them.
OF_A_RUN: Final = frozenset(
    {
        "delete_experiment_run_tag",
        "get_experiment_run_by_id",
        "get_experiment_run_metric_history",
        "list_artifacts",
        "log_experiment_run_batch",
        "log_experiment_run_inputs",
        "log_experiment_run_metric",
        "log_experiment_run_model",
        "log_experiment_run_param",
        "set_experiment_run_tag",
        "update_experiment_run",
        "update_experiment_run_tags",
    }
)
_ENDPOINTS: Final = [each for each in vars(endpoints).values() if isinstance(each, Endpoint)]
_EXACT: Final = {(each.method, each.scope, each.path): each for each in _ENDPOINTS}
_BEARER: Final = re.compile(r"Bearer ([\x21-\x7e]{1,200})")


@frozen
class Permit:
    """Who may use a collector, and for what.

    *digest* is the SHA-256 of the job's token; *run_id* the only run, or None: whatever the
    session may.
    """

    digest: bytes = field(repr=False)
    run_id: str | None = None
    #: What the service calls that run, where it started offline.
    named: Callable[[], str | None] = lambda: None

    @classmethod
    def of(
        cls, token: str, run_id: str | None, named: Callable[[], str | None] = lambda: None
    ) -> Permit:
        return cls(hashlib.sha256(token.encode()).digest(), run_id, named)

    def check_token(self, headers: Mapping[str, str]) -> None:
        """Raise `Refused` unless *headers* bring the token of this job."""
        found = _BEARER.fullmatch(headers.get("authorization", ""))
        given = hashlib.sha256((found[1] if found else "").encode()).digest()
        # Compared by their digests, in a time that says nothing.
        if not hmac.compare_digest(given, self.digest):
            message = "the token is not this collector's: the handle is of another job"
            raise Refused(401, "NotAuthenticated", message)

    def check_run(self, run_id: str) -> None:
        """Raise `Refused` unless the run may be logged into."""
        if self.run_id not in (None, run_id) and run_id != self.named():
            message = f"this handle is for the run {self.run_id} alone"
            raise Refused(403, "NotAllowed", message)

    def check_operation(self, endpoint: Endpoint, query: str, body: bytes) -> None:
        """Raise `Refused` unless the operation may be passed on."""
        if self.run_id is None:
            return
        if endpoint.operation not in OF_A_RUN:
            message = (
                f"{endpoint.operation} is not about the run {self.run_id}, which this handle is for"
            )
            raise Refused(403, "NotAllowed", message)
        named = _named(endpoint, query, body)
        for run_id in (named.get("run_id"), named.get("run_uuid")):
            if run_id is not None:
                self.check_run(str(run_id))
        if "run_id" not in named and "run_uuid" not in named:
            raise Refused(400, INVALID, "the run_id is missing")
        if endpoint.operation == "update_experiment_run" and named.get("status") is not None:
            message = "the run is ended by the process that shares it"
            raise Refused(403, "NotAllowed", message)


def _named(endpoint: Endpoint, query: str, body: bytes) -> Mapping[str, object]:
    """The arguments of a request, by their names, wherever they stand in it."""
    given = parse_qs(query, keep_blank_values=True)
    if any(len(values) > 1 for name, values in given.items() if name in ("run_id", "run_uuid")):
        raise Refused(400, INVALID, "the run_id is given twice")
    named: dict[str, object] = {name: values[0] for name, values in given.items()}
    if endpoint.method == "GET":
        return named
    if {"run_id", "run_uuid"} & named.keys():
        raise Refused(400, INVALID, "the run_id is in the body")
    try:
        found = json.loads(body.decode() or "{}", object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise Refused(400, INVALID, "the body is not a JSON object") from None
    return found if isinstance(found, dict) else {}


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of JSON; a name that is given twice may be read as either of them by others."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Refused(400, INVALID, "a name is given twice in one object")
    return found


def find_endpoint(method: str, scope: Scope, path: str) -> Endpoint:
    """The operation at *path*, what follows ``mlops/api/2.0/``; one that isn't known as well."""
    if found := _EXACT.get((method, scope, path)):
        return found
    for each in _ENDPOINTS:
        if "{" in each.path and (each.method, each.scope) == (method, scope):
            pattern = re.sub(r"\\{\w+\\}", "[^/]+", re.escape(each.path))
            if re.fullmatch(pattern, path):
                return each
    return Endpoint(method, path, scope)
