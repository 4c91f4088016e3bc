"""One run from Ray's tasks and actors: a named actor collects what they log.

    from adp_async.integrations.ray import collector

    with collector() as handle, handle.session().start_run("digits") as run:
        ray.get([train.remote(handle, run.run_id) for _ in range(8)])

    @ray.remote
    def train(handle, run_id):
        with handle.attach(run_id) as run:
            run.log_metric("loss", 0.5)

Discovery, network and placement are Ray's.  An actor that dies is started again by Ray, and goes on
with what it had journaled if it comes up on the same machine, or where *spool* is a shared folder.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray
from attrs import field, frozen

from adp_async.blocking import Session
from adp_async.collector import Carrier

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from adp_async.collector import Handle

__all__ = ["collector"]


@frozen
class _ActorCarrier(Carrier):
    """Carries requests to the actor called *name*."""

    name: str
    namespace: str
    _found: dict[str, Any] = field(factory=dict, eq=False, repr=False)

    async def carry(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, Mapping[str, str], bytes]:
        answer = self._actor().answer.remote(method, target, dict(headers), body)
        status, answered, content = await answer
        return status, answered, content

    def _actor(self) -> Any:
        if "actor" not in self._found:
            self._found["actor"] = ray.get_actor(self.name, namespace=self.namespace)
        return self._found["actor"]

    def __reduce__(self) -> tuple[Any, ...]:
        return _ActorCarrier, (self.name, self.namespace)


class _Collector:
    """What the actor is; it is made anew, with the same arguments, when it has died."""

    def __init__(self, carrier: Carrier, token: str, knobs: dict[str, Any]) -> None:
        # A folder of its own: it finds what it had when it is started again.
        folder = Session(**knobs).spool_folder / f"ray-{carrier.name}"  # type: ignore[attr-defined]
        self._session = Session(**{**knobs, "spool": folder}).open()
        self._shared = self._session.shared(carrier=carrier, token=token)
        self._handle = self._shared.open()

    async def handle(self) -> Handle:
        return self._handle

    async def answer(
        self, method: str, target: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        status, answered, content = await self._shared.answer(method, target, headers, body)
        return status, dict(answered), content

    async def close(self) -> None:
        """Deliver what is there."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        try:
            self._shared.close()
        finally:
            self._session.close()


@contextmanager
def collector(
    name: str = "adp_async",
    *,
    namespace: str | None = None,
    options: Mapping[str, Any] | None = None,
    **knobs: Any,
) -> Iterator[Handle]:
    """A named actor that collects for tasks and actors: ``with collector() as handle``.

    It needs the credentials, tasks and the driver do not.  *handle* is for a whole session:
    ``handle.session()`` starts runs, ``handle.attach(run_id)`` logs into one.  *name* and
    *namespace* are the actor's; by default the namespace is the job's, so that two jobs of a
    cluster have a collector each.  *knobs* are those of
    `adp_async.Session`; *options* are Ray's for the actor, in place of ``num_cpus=0`` and
    ``max_restarts=-1``: where it runs, for one.  Exiting delivers what is there, for at most
    ``close_timeout``, and ends the actor; what could not be delivered stays in its spool.
    """
    if namespace is None:
        namespace = ray.get_runtime_context().namespace
    carrier = _ActorCarrier(name, namespace)
    given = {
        "num_cpus": 0,
        "max_restarts": -1,
        "max_concurrency": 1000,
        "name": name,
        "namespace": namespace,
        **(options or {}),
    }
    actor: Any = ray.remote(_Collector).options(**given)
    actor = actor.remote(carrier, secrets.token_urlsafe(32), knobs)
    try:
        handle: Handle = ray.get(actor.handle.remote())
        try:
            yield handle
        finally:
            ray.get(actor.close.remote())
    finally:
        ray.kill(actor, no_restart=True)
