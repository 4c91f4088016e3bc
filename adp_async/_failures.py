"""Several things that end a run one after the other: each is tried, and its failure noted."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from adp_async.errors import AdpError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from adp_async.errors import DeliveryError

__all__ = ["noted", "within"]


async def noted(doing: Coroutine[Any, Any, None], failures: list[AdpError]) -> None:
    try:
        await doing
    except AdpError as error:
        failures.append(error)


async def within(
    timeout: float,
    doing: Coroutine[Any, Any, None],
    too_late: Callable[[], DeliveryError],
    failures: list[AdpError],
) -> None:
    try:
        async with asyncio.timeout(timeout):
            await noted(doing, failures)
    except TimeoutError:
        failures.append(too_late())
