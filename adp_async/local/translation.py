"""Where MLflow's REST API differs from the service's, as plain functions of bodies and queries."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

import msgspec
from attrs import frozen

from adp_async.local.answers import Answer, refusal

__all__ = [
    "TAG_UPDATES",
    "Call",
    "TagUpdate",
    "as_service",
    "mlflow_body",
    "mlflow_query",
    "tag_calls",
    "wants_permanent",
    "without_permanent",
]

#: Lists the service always gives and MLflow leaves out when they are empty.
_REQUIRED_LISTS = {
    "list_experiments": "experiments",
    "list_experiment_runs": "runs",
    "list_registered_models": "registered_models",
    "list_model_versions": "model_versions",
}

_RENAMED = {"log_experiment_run_inputs": {"dataset_inputs": "datasets"}}

#: Optional for the service, but required by MLflow's REST API.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "create_experiment_run": {"experiment_id": "0"},
    "list_experiments": {"max_results": 1000},
}

#: MLflow answers 400 to these; the service's pages have 409 for a conflict with what exists.
_CONFLICTS = frozenset({"RESOURCE_ALREADY_EXISTS", "RESOURCE_CONFLICT"})

_CODES = {400: "InvalidParameter", 404: "NotAuthorizedOrNotFound", 501: "NotImplemented"}


@frozen
class Call:
    """One request to MLflow: method, path below ``/api/2.0/`` and body."""

    method: str
    path: str
    body: bytes


@frozen
class TagUpdate:
    """How MLflow sets and deletes the tags of one kind of thing, which *owner* fields name."""

    owner: tuple[str, ...]
    set_path: str
    delete_method: str
    delete_path: str


TAG_UPDATES = {
    "update_experiment_tags": TagUpdate(
        ("experiment_id",),
        "mlflow/experiments/set-experiment-tag",
        "POST",
        "mlflow/experiments/delete-experiment-tag",
    ),
    "update_experiment_run_tags": TagUpdate(
        ("run_id",), "mlflow/runs/set-tag", "POST", "mlflow/runs/delete-tag"
    ),
    "update_registered_model_tags": TagUpdate(
        ("name",),
        "mlflow/registered-models/set-tag",
        "DELETE",
        "mlflow/registered-models/delete-tag",
    ),
    "update_model_version_tags": TagUpdate(
        ("name", "version"),
        "mlflow/model-versions/set-tag",
        "DELETE",
        "mlflow/model-versions/delete-tag",
    ),
}


def tag_calls(update: TagUpdate, body: dict[str, Any]) -> list[Call]:
    """The single calls for one update-tags call: first those that set, then those that delete."""
    owner = {name: body[name] for name in update.owner if name in body}
    sets = [_call("POST", update.set_path, {**owner, **tag}) for tag in body.get("set_tags") or ()]
    deletes = [
        _call(update.delete_method, update.delete_path, {**owner, "key": tag.get("key")})
        for tag in body.get("delete_tags") or ()
    ]
    return sets + deletes


def _call(method: str, path: str, body: dict[str, Any]) -> Call:
    return Call(method, path, msgspec.json.encode(body))


def mlflow_body(operation: str, body: bytes) -> bytes:
    """The body as MLflow wants it; untouched, and not even read, for nearly all operations."""
    names, defaults = _RENAMED.get(operation, {}), _DEFAULTS.get(operation, {})
    if not names and not defaults:
        return body
    details = {
        names.get(name, name): value
        for name, value in msgspec.json.decode(body, type=dict[str, Any]).items()
        if value is not None
    }
    return msgspec.json.encode(defaults | details)


def mlflow_query(operation: str, query: str) -> str:
    """The query as MLflow wants it: one ``order_by`` for each column, not one with commas."""
    if "order_by=" not in query:
        return query
    pairs = []
    for name, value in parse_qsl(query, keep_blank_values=True):
        values = value.split(",") if name == "order_by" else [value]
        pairs += [(name, one.strip()) for one in values]
    return urlencode(pairs, quote_via=quote)


def wants_permanent(body: bytes) -> bool:
    """Whether a deletion is permanent, ``is_permanent``."""
    return bool(msgspec.json.decode(body, type=dict[str, Any]).get("is_permanent"))


def without_permanent(body: bytes) -> bytes:
    details = msgspec.json.decode(body, type=dict[str, Any])
    details.pop("is_permanent", None)
    return msgspec.json.encode(details)


def as_service(operation: str, answer: Answer) -> Answer:
    """MLflow's answer as the service gives it."""
    if answer.status >= 300:
        return _as_service_error(answer)
    name = _REQUIRED_LISTS.get(operation)
    if name is None:
        return answer
    reply = msgspec.json.decode(answer.body, type=dict[str, Any])
    return Answer(answer.status, msgspec.json.encode({name: [], **reply}))


def _as_service_error(answer: Answer) -> Answer:
    fallback = _CODES.get(answer.status, "InternalServerError")
    try:
        error = msgspec.json.decode(answer.body, type=dict[str, Any])
    except msgspec.DecodeError:
        return refusal(answer.status, fallback, "MLflow did not give a readable reason")
    code = error.get("error_code") or fallback
    status = 409 if code in _CONFLICTS else answer.status
    return refusal(status, code, str(error.get("message", "")))
