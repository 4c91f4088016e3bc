"""Under a quota: how much of it is used, how many requests are refused, how fast a backlog drains.

The gateway takes so many requests a second and answers 429 beyond that, with or without a
``Retry-After`` of one second.  It lets what was not used for up to a second be made up for, or it
is strict: one request at a time, and a bit too early is too early.  One client has all of the
quota, or eight of them share it without knowing of each other.

All have more to send than the quota takes: ours logs metrics, the others have full batches ready.
The peers: ``oci``'s retry strategy as it comes (`AsyncBaseClient`, its circuit breaker included),
and plain exponential back-off (1, 2, 4, ... at most 60 s, with jitter).

Contenders have a gateway each and run side by side, and so do the quotas that leave the machine
idle.  After that the quota is lifted, and a backlog of 20 batches a client drains.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from itertools import product, starmap
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import oci
from attrs import define, field, frozen
from circuitbreaker import CircuitBreakerError  # type: ignore[import-untyped]

from benchmarks._clients import (
    BATCH,
    LOG_BATCH,
    HandWritten,
    oci_async_client,
    ready_batches,
    value_of,
)
from benchmarks._harness import Goal, Options, Report, Table, number, run
from benchmarks._servers import platform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adp_async import Session
    from benchmarks._servers import Platform, Target

#: How long a quota is in force, by the number of clients; half as long for fast ones.  The goals
#: are those of one client, which needs half a minute and more between two probes of a slow quota.
SECONDS = {1: 120.0, 8: 50.0}
STRICT = (False, True)
RETRY_AFTER = 1.0
#: Batches that each client has waiting, at least, and that it drains in the end.
BACKLOG = 20
LONGEST_DRAIN = 15.0


class Sending(Protocol):
    """All clients of one scenario."""

    async def feed(self) -> None:
        """Keep sending until cancelled."""

    async def drain(self) -> None:
        """Deliver a backlog, as far as it is there."""


class Ours:
    """Sessions, with somebody who logs."""

    def __init__(self, sessions: Sequence[Session]) -> None:
        self._sessions = sessions
        self._values = [value_of(step) for step in range(BATCH)]

    async def feed(self) -> None:
        while True:
            for session in self._sessions:
                self._fill(session)
            await asyncio.sleep(0.02)

    def _fill(self, session: Session) -> None:
        run = session.attach_run("bench")
        while session.logger.stats().waiting < BACKLOG * BATCH:
            for step, value in enumerate(self._values):
                run.log_metric("loss", value, step)

    async def drain(self) -> None:
        await asyncio.gather(*(session.logger.flush() for session in self._sessions))


@define
class Peers:
    """Clients that post a ready batch, and then the next one."""

    clients: list[Any]
    given_up: int = 0
    _batches_left: int | None = None

    async def feed(self) -> None:
        async with asyncio.TaskGroup() as group:
            for each in self.clients:
                group.create_task(self._work(each))

    async def drain(self) -> None:
        self._batches_left = BACKLOG * len(self.clients)
        await asyncio.gather(*(self._work(each) for each in self.clients))

    async def _work(self, client: Any) -> None:
        while self._may_send():
            if not await client.deliver():
                self.given_up += 1
                await asyncio.sleep(1.0)

    def _may_send(self) -> bool:
        if self._batches_left is None:
            return True
        self._batches_left -= 1
        return self._batches_left >= 0


@define
class PlainBackOff:
    """Exponential back-off with full jitter, a batch at a time."""

    hand: HandWritten
    body: bytes = field(repr=False)

    async def deliver(self) -> bool:
        for attempt in itertools.count():
            status, _ = await self.hand.post(self.body)
            if status == 200:
                return True
            await asyncio.sleep(random.random() * min(60.0, 2.0**attempt))
        raise AssertionError("not reached")


@define
class OciRetries:
    """`AsyncBaseClient` with the default retry strategy and circuit breaker of ``oci``."""

    client: Any
    path: str
    body: str = field(repr=False)

    async def deliver(self) -> bool:
        try:
            await self.client.call_api(self.path, "POST", body=self.body)
        except (oci.exceptions.ServiceError, CircuitBreakerError):
            return False
        return True


async def _ours(target: Target, clients: int, stack: AsyncExitStack) -> Sending:
    sessions = [target.session(close_timeout=0.0) for _ in range(clients)]
    for session in sessions:
        await session.open()
        stack.push_async_callback(_leave, session)
    return Ours(sessions)


async def _leave(session: Session) -> None:
    from adp_async import DeliveryError

    with contextlib.suppress(DeliveryError):  # what could not be drained in time
        await session.close()


async def _plain(target: Target, clients: int, stack: AsyncExitStack) -> Sending:
    body = msgspec.json.encode(ready_batches(["bench"], 1)[0])
    made = [await stack.enter_async_context(HandWritten(target)) for _ in range(clients)]
    return Peers([PlainBackOff(hand, body) for hand in made])


async def _oci(target: Target, clients: int, stack: AsyncExitStack) -> Sending:
    body = msgspec.json.encode(ready_batches(["bench"], 1)[0]).decode()
    made = []
    for _ in range(clients):
        # A breaker each: eight clients stand for eight processes.
        client = oci_async_client(
            target,
            retry_strategy=oci.retry.DEFAULT_RETRY_STRATEGY,
            circuit_breaker_strategy=oci.circuit_breaker.CircuitBreakerStrategy(),
        )
        stack.push_async_callback(client.close)
        made.append(OciRetries(client, f"{target.base}/{LOG_BATCH}", body))
    return Peers(made)


WAYS = {"adp_async": _ours, "oci's retry strategy": _oci, "plain back-off": _plain}


@frozen
class Scenario:
    """One line of the table."""

    quota: float
    is_strict: bool
    retry_after: float | None
    clients: int
    way: str

    @property
    def burst(self) -> float:
        return 1.0 if self.is_strict else self.quota

    @property
    def name(self) -> str:
        return f"{self.quota:g}/s{' strict' if self.is_strict else ''}  {self.way}"


@frozen
class Share:
    """Of the best possible: what got through; of all requests: what was refused."""

    goodput: float
    refused: float

    @classmethod
    def between(cls, before: dict[str, int], after: dict[str, int], best: float) -> Share:
        came = {name: after[name] - before[name] for name in after}
        return cls(came["records"] / (best * BATCH), came["refused"] / max(1, came["requests"]))


@frozen
class Outcome:
    """*whole*: from the first request on; *later*: the second half of the time."""

    whole: Share
    later: Share
    drained: float
    given_up: int


async def _play(
    scenario: Scenario, where: Platform, gateway: int, seconds: float, longest: float
) -> Outcome:
    target = where.targets[gateway]
    async with AsyncExitStack() as stack:
        sending = await WAYS[scenario.way](target, scenario.clients, stack)
        where.set_quota(gateway, scenario.quota, scenario.burst, scenario.retry_after)
        counts = [where.counts(gateway)]
        feeding = asyncio.create_task(sending.feed())
        for _ in range(2):
            await asyncio.sleep(seconds / 2)
            counts.append(where.counts(gateway))
        feeding.cancel()
        await asyncio.wait([feeding])
        drained = await _drain(sending, where, gateway, longest)
    best = scenario.quota * seconds
    return Outcome(
        Share.between(counts[0], counts[2], best + scenario.burst),
        Share.between(counts[1], counts[2], best / 2),
        drained,
        getattr(sending, "given_up", 0),
    )


async def _drain(sending: Sending, where: Platform, gateway: int, longest: float) -> float:
    where.lift_quota(gateway)
    began = time.monotonic()
    try:
        async with asyncio.timeout(longest):
            await sending.drain()
    except TimeoutError:
        return longest
    return time.monotonic() - began


async def _play_together(
    scenarios: Sequence[Scenario], where: Platform, seconds: float, options: Options
) -> dict[Scenario, Outcome]:
    # oci sleeps in threads of the default executor, and must not wait for one.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(64))
    longest = options.size(LONGEST_DRAIN, 2.0)
    plays = [_play(each, where, n, seconds, longest) for n, each in enumerate(scenarios)]
    return dict(zip(scenarios, await asyncio.gather(*plays), strict=True))


def _groups(options: Options) -> list[tuple[float, list[Scenario]]]:
    """Seconds, and the scenarios that run side by side for so long."""
    ways = list(WAYS) if options.peers else ["adp_async"]
    asked = (None, RETRY_AFTER)
    if options.smoke:
        return [(0.5, [Scenario(20, False, None, 1, way) for way in ways])]
    slow = [
        (seconds, list(starmap(Scenario, product((2, 10), STRICT, asked, (n,), ways))))
        for n, seconds in SECONDS.items()
    ]
    fast = [
        (seconds / 2, list(starmap(Scenario, product((50,), STRICT, (after,), (n,), ways))))
        for n, seconds in SECONDS.items()
        for after in asked
    ]
    return [*slow, *fast]


def _table(found: dict[Scenario, Outcome], retry_after: float | None, clients: int) -> Table:
    how = "no Retry-After" if retry_after is None else f"Retry-After: {retry_after:g}"
    headings = (
        "quota, contender",
        "goodput / best",
        "later half",
        "refused",
        "later half",
        "drained in s",
        "given up",
    )
    table = Table(f"{_who(clients)}, {how}", headings)
    for scenario, outcome in sorted(found.items(), key=_order):
        if (scenario.retry_after, scenario.clients) == (retry_after, clients):
            table.add(scenario.name, *_cells(outcome))
    return table


def _order(found: tuple[Scenario, Outcome]) -> tuple[float, bool]:
    scenario, _ = found
    return scenario.quota, scenario.is_strict


def _who(clients: int) -> str:
    return "1 client" if clients == 1 else f"{clients} clients that share the quota"


def _cells(outcome: Outcome) -> list[str | float]:
    whole, later = outcome.whole, outcome.later
    drained = f"> {LONGEST_DRAIN:g}" if outcome.drained >= LONGEST_DRAIN else outcome.drained
    refused = [f"{share.refused:.1%}" for share in (whole, later)]
    return [whole.goodput, later.goodput, *refused, drained, str(outcome.given_up)]


def _worst(
    found: dict[Scenario, Outcome], clients: int, *, is_strict: bool
) -> dict[str, tuple[float, float]]:
    """The lowest goodput and the largest share refused of all quotas, with and without
    Retry-After: from the first request on, and in the later half."""
    ours = [
        outcome
        for each, outcome in found.items()
        if each.way == "adp_async" and (each.clients, each.is_strict) == (clients, is_strict)
    ]
    shares = {
        "from the first request on": [outcome.whole for outcome in ours],
        "later half": [outcome.later for outcome in ours],
    }
    return {
        when: (min(each.goodput for each in those), max(each.refused for each in those))
        for when, those in shares.items()
        if those
    }


def _goals(found: dict[Scenario, Outcome]) -> list[Goal]:
    """Those of a client that has the quota for itself."""
    goals = []
    for is_strict in STRICT:
        kind = "strict quotas" if is_strict else "quotas"
        for when, (goodput, refused) in _worst(found, 1, is_strict=is_strict).items():
            what = f"worst of all {kind}, {when}"
            goals.append(Goal.at_least(f"{what}: goodput / best possible", 0.95, goodput))
            goals.append(Goal.at_most(f"{what}: share refused", 0.02, refused))
    return goals


def _note_on_sharing(found: dict[Scenario, Outcome], clients: int) -> str:
    parts = []
    for is_strict in STRICT:
        worst = _worst(found, clients, is_strict=is_strict)
        if "later half" in worst:
            goodput, refused = worst["later half"]
            kind = "strict quotas" if is_strict else "quotas"
            parts.append(f"{kind}, later half: goodput {number(goodput)}, {refused:.0%} refused")
    return f"{_who(clients)}, worst of all {'; '.join(parts)}."


def measure(options: Options) -> Report:
    """Goodput, refusals and draining under every quota."""
    groups = _groups(options)
    report = Report("Under a quota")
    found: dict[Scenario, Outcome] = {}
    with platform(mlflow=False, gateways=max(len(group) for _, group in groups)) as where:
        for seconds, scenarios in groups:
            found |= asyncio.run(_play_together(scenarios, where, seconds, options))
    kinds = dict.fromkeys((each.retry_after, each.clients) for each in found)
    report.tables = [_table(found, *kind) for kind in sorted(kinds, key=lambda kind: kind[1])]
    report.goals = _goals(found)
    times = ", ".join(number(seconds) for seconds, _ in groups)
    report.notes.append(f"One round; the quotas were in force for {times} s.")
    if not options.smoke:
        report.notes += [_note_on_sharing(found, n) for n in SECONDS if n > 1]
    report.notes += [
        "A strict quota takes a request a moment too early for one too many: the closer to it, the"
        " more of the network's and the timers' jitter is refused, and clients that know nothing of"
        " each other collide by chance.",
    ]
    report.notes.append(f"Drained: {BACKLOG} batches a client after the quota was lifted.")
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    return run(measure, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
