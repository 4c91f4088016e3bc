"""Hands over requests whose worker has gone, and hears no answer.

What a worker would do with the answer is done here: try again while the collector is full, take a
request apart of which something is refused, and tell what is refused for good.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from adp_async._io.log import logger
from adp_async._sansio.messages import Reply
from adp_async._sansio.replies import read_reply
from adp_async._sansio.texts import counted
from adp_async.errors import AdpError, ServiceError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TypeAlias

    from adp_async.collector.sharing import Shared

#: Method, target, headers and body of a request.
Request: TypeAlias = "tuple[str, str, Mapping[str, str], bytes]"

#: Seconds until a full collector is asked again.
PAUSE: Final = 0.5
_LOG_BATCH: Final = "mlflow/runs/log-batch"
_OPERATION: Final = "log_experiment_run_batch"
_RETRY: Final = "opc-retry-token"
_KINDS: Final = ("metrics", "params", "tags")
#: Of a request of which some record is to blame.
_TO_BLAME: Final = (400, 413, 422)


async def hand_over(shared: Shared, request: Request, patience: float) -> None:
    """Hand *request* over; for at most *patience* seconds while the collector is full.

    Records that are refused count as rejected, and are told by the owner's flush.  Raises nothing.
    """
    try:
        error = await _answer(shared, request, patience)
        if error is None or not request[1].endswith(_LOG_BATCH):
            return
        parts = _halves(request) if error.status in _TO_BLAME else []
        for part in parts:
            await hand_over(shared, part, patience)
        if not parts:
            await _refuse(shared, request, error)
    except AdpError as closed:
        logger.warning("what a worker has logged is lost: %s", closed)


async def _answer(shared: Shared, request: Request, patience: float) -> ServiceError | None:
    """Why it is refused; None when it is not."""
    until = time.monotonic() + patience
    while True:
        reply = Reply(*await shared.answer(*request))
        try:
            read_reply(reply, _OPERATION if request[1].endswith(_LOG_BATCH) else "")
        except ServiceError as error:
            if not error.retriable or time.monotonic() > until:
                return error
        else:
            return None
        await asyncio.sleep(PAUSE)


def _halves(request: Request) -> list[Request]:
    """The records of *request* in two requests; none when there is nothing to take apart."""
    method, target, headers, body = request
    found = _body_of(body)
    named = [(kind, record) for kind in _KINDS for record in found.get(kind, ())]
    if len(named) < 2:
        return []
    halves: list[Request] = []
    for number, half in enumerate((named[: len(named) // 2], named[len(named) // 2 :])):
        more = {kind: [record for of, record in half if of == kind] for kind in _KINDS}
        own = {_RETRY: f"{headers.get(_RETRY, '')}{number}"}
        encoded = msgspec.json.encode({**found, **more})
        halves.append((method, target, {**headers, **own}, encoded))
    return halves


async def _refuse(shared: Shared, request: Request, error: ServiceError) -> None:
    _, _, headers, body = request
    count = await shared.refuse(headers, _body_of(body), error)
    message = "the service refused %s of a worker that has ended: %s"
    logger.warning(message, counted(count, "record"), error)


def _body_of(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.DecodeError:
        return {}
