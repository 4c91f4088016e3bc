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
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import ray
from attrs import field, frozen

from adp_async.blocking import Session
from adp_async.collector import Carrier
from adp_async.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from adp_async.collector import Handle

__all__ = ["collector"]

NAME: Final = "adp_async"


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

    def __init__(self, carrier: Carrier, token: str, knobs: dict[str, Any], folder: str) -> None:
        # In a folder apart: it finds what it had when it is started again.
        spool = Session(**knobs).spool_folder / f"ray-{folder}"
        self._session = Session(**{**knobs, "spool": spool}).open()
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
    name: str = NAME,
    *,
    namespace: str = "adp_async",
    options: Mapping[str, Any] | None = None,
    **knobs: Any,
) -> Iterator[Handle]:
    """A named actor that collects for tasks and actors: ``with collector() as handle``.

    It needs the credentials, tasks and the driver do not.  *handle* is for a whole session:
    ``handle.session()`` starts runs, ``handle.attach(run_id)`` logs into one.  *name* and
    *namespace* are the actor's; where another job of the cluster has the default name, it gets one
    of its own.  *knobs* are those of `adp_async.Session`; *options* are Ray's for the actor, in
    place of ``num_cpus=0`` and ``max_restarts=-1``: where it runs, for one.  A name of your own
    that is taken raises `ConfigurationError`.  Exiting delivers what is there, for at most
    ``close_timeout``, and ends the actor; what could not be delivered stays in its spool.
    """
    given = {
        "num_cpus": 0,
        "max_restarts": -1,
        "max_concurrency": 1000,
        "namespace": namespace,
        **(options or {}),
    }
    token = secrets.token_urlsafe(32)

    def start(called: str) -> Any:
        making: Any = ray.remote(_Collector).options(**{"name": called, **given})
        return making.remote(_ActorCarrier(called, namespace), token, knobs, name)

    try:
        actor = start(name)
    except ValueError as error:  # it is taken
        if name != NAME:
            raise ConfigurationError(f"name: {error}") from None
        actor = start(f"{name}-{uuid.uuid4().hex[:8]}")
    try:
        handle: Handle = ray.get(actor.handle.remote())
        try:
            yield handle
        finally:
            ray.get(actor.close.remote())
    finally:
        ray.kill(actor, no_restart=True)
