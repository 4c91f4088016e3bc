"""Answers the gateway's requests from a real MLflow server, translating where the two differ."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec
from yarl import URL

from adp_async.local.answers import EMPTY, Answer, refusal
from adp_async.local.mlflow_process import PERMANENT_DELETE_PATH
from adp_async.local.translation import (
    TAG_UPDATES,
    Call,
    TagUpdate,
    as_service,
    mlflow_body,
    mlflow_query,
    tag_calls,
    wants_permanent,
    without_permanent,
)

if TYPE_CHECKING:
    from adp_async.local.answers import Received
    from adp_async.local.routes import Route

__all__ = ["MlflowBackend"]

logger = logging.getLogger("adp_async")

_JSON = {"content-type": "application/json"}
_DELETIONS = frozenset({"delete_experiment", "delete_experiment_run"})


class MlflowBackend:
    """Hands requests on to MLflow at *url* through one pool of connections."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=600.0),
        )

    async def answer(self, route: Route, received: Received) -> Answer:
        if not route.is_answered:
            what = f"MLflow has no counterpart of {route.operation}"
            return refusal(501, "NotImplemented", f"the local platform cannot do this: {what}")
        try:
            return as_service(route.operation, await self._translated(route, received))
        except msgspec.DecodeError:
            return refusal(400, "InvalidParameter", "the body is not a JSON object")
        except aiohttp.ClientError as error:
            message, about = "MLflow did not answer %s: %s", {"operation": route.operation}
            logger.warning(message, route.operation, type(error).__name__, extra=about)
            return refusal(503, "ServiceUnavailable", "MLflow did not answer")

    async def close(self) -> None:
        await self._session.close()

    async def _translated(self, route: Route, received: Received) -> Answer:
        if update := TAG_UPDATES.get(route.operation):
            return await self._update_tags(update, received.body)
        if route.operation in _DELETIONS:
            return await self._delete(route, received.body)
        body = mlflow_body(route.operation, received.body)
        if route.operation == "list_logged_models":
            body = await self._in_some_experiments(body)
        query = mlflow_query(route.operation, received.query)
        return await self._send(Call(route.mlflow_method, route.mlflow_path, body), query)

    async def _update_tags(self, update: TagUpdate, body: bytes) -> Answer:
        details = msgspec.json.decode(body, type=dict[str, Any])
        for call in tag_calls(update, details):
            answer = await self._send(call)
            if answer.status >= 300:
                return answer
        return EMPTY

    async def _in_some_experiments(self, body: bytes) -> bytes:
        """The search, with all experiments if it names none: MLflow requires them."""
        details = msgspec.json.decode(body, type=dict[str, Any])
        if details.get("experiment_ids"):
            return body
        every = await self._send(Call("POST", "mlflow/experiments/search", b'{"max_results":1000}'))
        found = msgspec.json.decode(every.body, type=dict[str, Any]).get("experiments") or ()
        ids = [experiment["experiment_id"] for experiment in found]
        return msgspec.json.encode(details | {"experiment_ids": ids})

    async def _delete(self, route: Route, body: bytes) -> Answer:
        path = route.mlflow_path
        if wants_permanent(body):
            path = PERMANENT_DELETE_PATH.removeprefix("/api/2.0/")
        return await self._send(Call("POST", path, without_permanent(body)))

    async def _send(self, call: Call, query: str = "") -> Answer:
        mark = "?" if query else ""
        # Already encoded: yarl would quote filter expressions differently.
        url = URL(f"{self._url}/api/2.0/{call.path}{mark}{query}", encoded=True)
        # No body on GET: MLflow reads its arguments from the query there.
        body = None if call.method == "GET" else call.body
        request = self._session.request(
            call.method,
            url,
            data=body,
            headers=_JSON if body is not None else None,
            allow_redirects=False,
        )
        async with request as response:
            return Answer(response.status, await response.read())

    def __repr__(self) -> str:
        return f"<MlflowBackend {self._url}>"
