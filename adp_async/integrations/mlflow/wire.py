"""MLflow's REST calls as the service's operations: paths, names of fields, replies.

Shared by the stores, which send through a session, and by the request auth provider, which
rewrites a request of the package ``requests``.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from attrs import frozen
from mlflow.utils.proto_json_utils import parse_dict
from mlflow.utils.rest_utils import extract_api_info_for_service

from adp_async import Scope
from adp_async.api import ENDPOINTS
from adp_async.integrations.mlflow.artifacts import published_uri, reachable_uri
from adp_async.integrations.mlflow.failures import in_mlflows_words, not_published

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlflow.exceptions import MlflowException

    from adp_async import Endpoint
    from adp_async.blocking import Session

#: What MLflow puts before a path, of several versions.
PREFIX: Final = re.compile(r"^/(?:api|ajax-api)/\d+\.\d+/")
_PUBLISHED_VERSION: Final = "/api/2.0"

#: By the path, which is the same in MLflow and here.  One path is there twice, for a workspace and
#: for the platform: MLflow's registry is the platform's.
BY_PATH: Final[Mapping[str, Endpoint]] = {
    endpoint.path: endpoint
    for endpoint in sorted(ENDPOINTS, key=lambda each: each.scope is Scope.PLATFORM)
}

_RENAMED: Final = {"mlflow/runs/log-inputs": {"datasets": "dataset_inputs"}}
#: What of a metric the service has no place for: the model and the dataset it was measured on.
_OF_A_METRIC: Final = {"model_id", "dataset_name", "dataset_digest", "run_id"}
#: What MLflow sends and the service doesn't know.  The user's name is in the tag ``mlflow.user``.
_DROPPED: Final = {
    "mlflow/runs/create": {"user_id"},
    "mlflow/runs/log-inputs": {"models"},
    "mlflow/runs/log-metric": _OF_A_METRIC - {"run_id"},
}
#: What a search is narrowed by and the service doesn't know: dropped, it would find too much.
_REFUSED: Final = {"mlflow/logged-models/search": {"datasets"}}
#: The old name of ``run_id``, which MLflow still sends beside it.
_OLD_NAME: Final = "run_uuid"

#: What to do instead of an operation that is not published, by the start of its path.
_INSTEAD: Final = {
    "mlflow/traces": "Nothing is kept of traces; mlflow.tracing.disable() ends them.",
    "mlflow/registered-models/alias": (
        "Aliases can be read; set them in the platform's console, or use a tag or a stage."
    ),
    **dict.fromkeys(
        (
            "mlflow/logged-models",
            "mlflow/runs/outputs",
            "mlflow/model-versions/get-download-uri",
            "mlflow/registered-models/get-latest-versions",
        ),
        "What it is for works through the tracking URI aidp:// (a model is a folder of its run).",
    ),
    "mlflow/datasets": "mlflow.log_input records the dataset of a run.",
    "mlflow/webhooks": "Ask for what is new with search_model_versions.",
}
_ELSEWHERE: Final = "Keep it on another MLflow server: MlflowClient(tracking_uri=...)."


@frozen
class Translated:
    """One call in the service's words."""

    endpoint: Endpoint
    query: Mapping[str, Any]
    body: Mapping[str, Any] | None


def translated(path: str, fields: Mapping[str, Any]) -> Translated:
    """MLflow's call of *path* (below ``/api/2.0/``) with *fields*, as the service wants it.

    Raises MlflowException for what the service does not publish.
    """
    endpoint = BY_PATH.get(path)
    if endpoint is None:
        raise unpublished(path)
    if refused := [name for name in _REFUSED.get(path, ()) if fields.get(name)]:
        raise not_published(
            f"{path} by {refused[0]}", "Search without, and look through what comes."
        )
    names = _RENAMED.get(path, {})
    dropped = _DROPPED.get(path, set()) | _REFUSED.get(path, set())
    named = {
        names.get(name, name): _published(name, value)
        for name, value in fields.items()
        if name not in dropped and not (name == _OLD_NAME and "run_id" in fields)
    }
    if endpoint.method == "GET":
        return Translated(endpoint, {name: _one(value) for name, value in named.items()}, None)
    return Translated(endpoint, {}, named)


def unpublished(path: str, what: str = "") -> MlflowException:
    """The error for a *path* that the service does not have."""
    instead = next((text for start, text in _INSTEAD.items() if path.startswith(start)), _ELSEWHERE)
    return not_published(what or path, instead)


def _published(name: str, value: Any) -> Any:
    if name in ("source", "artifact_location"):
        return published_uri(value)
    if name == "metrics":
        return [
            {part: each for part, each in metric.items() if part not in _OF_A_METRIC}
            for metric in value
        ]
    return value


def _one(value: Any) -> Any:
    """A value of a query: the service has the columns of ``order_by`` in one text."""
    return ",".join(value) if isinstance(value, list) else value


def readable(reply: Any) -> Any:
    """A reply in whose runs and experiments no artifact location is taken for a local folder."""
    if isinstance(reply, dict):
        return {
            name: reachable_uri(value)
            if name in ("artifact_uri", "artifact_location") and isinstance(value, str)
            else readable(value)
            for name, value in reply.items()
        }
    return [readable(each) for each in reply] if isinstance(reply, list) else reply


class Methods:
    """The calls of one of MLflow's services: from the class of a request to its path."""

    def __init__(self, service: Any) -> None:
        self._info = extract_api_info_for_service(service, _PUBLISHED_VERSION)

    def path_of(self, api: Any, endpoint: str | None = None) -> str:
        """The path below ``/api/2.0/``; *endpoint* is one with its own parts filled in.

        Paths of later versions of MLflow's API are those of operations that are not published.
        """
        if endpoint is None:
            if api not in self._info:
                raise unpublished("", api.__name__)
            endpoint = self._info[api][0]
        return PREFIX.sub("", endpoint)


def call(
    session: Session,
    path: str,
    json_body: str | Mapping[str, Any] | None,
    reply: Any,
    *,
    timeout: float | None = None,
) -> Any:
    """Make a call of MLflow's through *session* and read the answer into the proto *reply*."""
    fields = json.loads(json_body) if isinstance(json_body, str) else json_body or {}
    doing = translated(path, fields)
    with in_mlflows_words():
        found = session.call(
            doing.endpoint, query=doing.query, body=doing.body, **_limited(timeout)
        )
    parse_dict(readable(found or {}), reply)
    return reply


def _limited(timeout: float | None) -> dict[str, Any]:
    return {} if timeout is None else {"timeout": timeout}
