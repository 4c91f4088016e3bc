"""A platform in memory, for tests of code that logs: no network, no keys, no ``oci``, no MLflow.

::

    from adp_async.testing import FakeSession

    async def test_training_logs_its_loss():
        async with FakeSession() as session:
            run_id = await train(session)                    # the code under test

        run = session.received(run_id)
        assert [metric.value for metric in run.metrics] == [0.5, 0.25]
        assert run.info["status"] == "FINISHED"

`FakeSession` is an `adp_async.Session` in every respect but one: its requests go no further than
this process.  Runs, experiments and log-batch are answered as the service does, by its rules;
anything else that the code under test asks for is scripted with `FakeSession.answer`, and so are
failures.  `FakeBlockingSession` is the same for code without an event loop.

For tests against a whole platform, with signatures, a socket and a real MLflow, there is
`adp_async.local.LocalPlatform`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, Unpack
from urllib.parse import unquote

import msgspec
from attrs import define
from yarl import URL

from adp_async import blocking
from adp_async._sansio.messages import Reply
from adp_async._sansio.retry import RetryPolicy
from adp_async.auth import CustomSigner
from adp_async.local.answers import Answer, Received, refusal
from adp_async.local.routes import ROUTES, RouteTable, locate
from adp_async.local.stand_in import ReceivedRun, StandIn
from adp_async.session import Session

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adp_async._sansio.messages import Request
    from adp_async.settings import Knobs

__all__ = ["FakeBlockingSession", "FakeService", "FakeSession", "Received", "ReceivedRun"]

PLATFORM_ID: Final = "ocid1.aidataplatform.oc1.iad.fake"
WORKSPACE: Final = "fake"

_ROUTES = RouteTable(ROUTES)
_BUCKET: Final = "artifacts"
_ROOT: Final = f"oci://{_BUCKET}@fake/"
_OBJECT: Final = re.compile(f"/n/fake/b/{_BUCKET}/o/(.+)")


@define(eq=False)
class Script:
    """What is answered to the next *left* requests of one operation (None: to all of them)."""

    answer: Answer | Exception
    after_write: bool
    left: int | None
    #: How often it was given.
    given: int = 0


class FakeService:
    """Takes the place of the network: answers requests, and remembers them.

    *requests* are all that came, in their order; ``request.operation`` is the API's name.
    """

    def __init__(self) -> None:
        self.requests: list[Received] = []
        self.store = StandIn(_ROOT.rstrip("/"))
        self._scripts: dict[str, list[Script]] = {}

    def script(self, operation: str, script: Script) -> Script:
        """Let *script* answer *operation* when those before it are used up."""
        self._scripts.setdefault(operation, []).append(script)
        return script

    def load(self, address: str = "") -> None:
        """Nothing to do: there are no certificates and no proxy."""

    async def open(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""

    def abort(self) -> None:
        """Nothing to do."""

    async def send(self, request: Request, *, timeout: float | None = None) -> Reply:
        """What `adp_async._io.transport.AiohttpTransport.send` does over a socket."""
        received = await _received(request)
        self.requests.append(received)
        script = self._next_script(request.operation)
        if script is None:
            answer = await self._serve(received)
        else:
            if script.after_write:
                await self._serve(received)
            answer = _answer_of(script)
        number = f"fake-{len(self.requests)}"
        return Reply(answer.status, {"opc-request-id": number, **answer.headers}, answer.body)

    async def _serve(self, received: Received) -> Answer:
        if found := _OBJECT.fullmatch(received.raw_path):
            return self._keep(unquote(found[1]), received.body)
        place = locate(received.raw_path.partition("?")[0])
        route = _ROUTES.find(received.method, place) if place else None
        if route is None:
            operation = received.operation
            return refusal(
                501, "NotImplemented", f"{operation}: script a reply with FakeSession.answer"
            )
        return await self.store.answer(route, received)

    def _keep(self, name: str, content: bytes) -> Answer:
        """An artifact goes to the run that it belongs to."""
        for run in self.store.runs.values():
            root = f"{run.info['artifact_uri'].removeprefix(_ROOT)}/"
            if name.startswith(root):
                run.artifacts[name.removeprefix(root)] = content
        return Answer(200, b"", {"etag": "fake"})

    def _next_script(self, operation: str) -> Script | None:
        for script in self._scripts.get(operation, ()):
            if script.left is None or script.given < script.left:
                script.given += 1
                return script
        return None


async def _received(request: Request) -> Received:
    body = request.body or b""
    if request.stream is not None:
        body = b"".join([chunk async for chunk in request.stream.chunks()])
    path = URL(request.url, encoded=True).raw_path_qs
    headers = dict(request.headers)
    return Received(request.method, path, headers, body, request.operation)


def _answer_of(script: Script) -> Answer:
    if isinstance(script.answer, Exception):
        raise script.answer
    return script.answer


class FakeSession(Session):
    """A session whose requests are answered in this process.

    It takes the knobs of `adp_async.Session`; those that make a test wait or leave traces have
    other defaults: *linger* and the back-off are milliseconds, *spool* is off.  *service* is the
    `FakeService` that answers.
    """

    def __init__(self, **knobs: Unpack[Knobs]) -> None:
        defaults: Knobs = {
            "endpoint": "http://localhost",
            "path_prefix": "",
            "auth": CustomSigner(_sign_nothing),
            "linger": 0.005,
            "close_timeout": 5.0,
            "spool": False,
            "retry": RetryPolicy(first_backoff=0.001, max_backoff=0.01),
        }
        self.service = service = FakeService()
        super().__init__(
            PLATFORM_ID, WORKSPACE, transport=lambda settings: service, **(defaults | knobs)
        )

    @property
    def requests(self) -> list[Received]:
        """Every request that was sent, log-batch included, in order."""
        return self.service.requests

    def received(self, run_id: str) -> ReceivedRun:
        """What arrived for a run: *metrics*, *params* and *tags* in order, *info*, *artifacts*."""
        return self.service.store.runs[run_id]

    def add_run(self, run_id: str | None = None) -> str:
        """Make a run without a request, for `attach_run`; returns its id."""
        return self.service.store.add_run(run_id)

    def answer(
        self,
        operation: str,
        answer: object = None,
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        times: int | None = None,
        after_write: bool = False,
    ) -> Script:
        """Let the next *times* requests of *operation* (None: all) get *answer*.

        *operation* is the API's name, such as ``"update_registered_model"``; *answer* a reply's
        JSON, its body as bytes, or an exception to raise such as ``ConnectionLost("...")``.
        With *after_write* the request takes effect before it gets that answer.

        ``session.answer("log_experiment_run_batch", status=503, times=2)`` fails two requests;
        *given* of the returned script counts them.
        """
        if not isinstance(answer, Exception):
            body = answer if isinstance(answer, bytes) else msgspec.json.encode(answer or {})
            answer = Answer(status, body, dict(headers or {}))
        return self.service.script(operation, Script(answer, after_write, times))


class FakeBlockingSession(blocking.Session):
    """An `adp_async.blocking.Session` whose requests are answered in this process.

    ``fake.session`` is its `FakeSession`: ``fake.session.received(run_id)``.
    """

    session: FakeSession

    def __init__(self, **knobs: Unpack[Knobs]) -> None:
        self.session = FakeSession(**knobs)


def _sign_nothing(request: Any) -> None:
    """Sign nothing: no signature is checked here."""
