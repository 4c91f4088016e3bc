"""The sender against a scripted service, in virtual time: an hour of outage takes milliseconds.

`VirtualLoop` is a real event loop whose clock leaps to the next timer in place of waiting for it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytest
from attrs import define, field, frozen

from adp_async._io.sender import NotYet, Sender
from adp_async._io.state import DeliveryState
from adp_async._sansio.accumulator import Accumulator
from adp_async._sansio.concurrency import Concurrency
from adp_async._sansio.dispatch import Dispatcher
from adp_async._sansio.records import Metric, RunTag
from adp_async._sansio.retry import RetryPolicy
from adp_async._sansio.throttle import Throttle
from adp_async.errors import (
    AdpError,
    BadRequest,
    Conflict,
    ConnectionFailed,
    Forbidden,
    NotAuthenticated,
    NotFound,
    PayloadTooLarge,
    ServiceFault,
    Throttled,
    UnreadableReply,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable

    from adp_async._sansio.batch import RecordBatch
    from adp_async._sansio.records import AnyRecord

DOWN = ConnectionFailed("no route to host")
REFUSED = BadRequest("bad", status=400, code="INVALID_PARAMETER_VALUE")


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time leaps to the next timer."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__()
        select = self._selector.select  # type: ignore[attr-defined]

        def leap(timeout: float | None) -> Any:
            assert timeout is not None, "everybody waits, and nobody will ever wake them"
            self.now += timeout
            return select(0)

        self._selector.select = leap  # type: ignore[attr-defined]

    def time(self) -> float:
        return self.now


def run_virtually(scene: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(scene)


def now() -> float:
    return asyncio.get_running_loop().time()


@frozen
class Scribe:
    """In the place of a spool's keeper: what is done before a batch leaves."""

    before_departure: Callable[[RecordBatch], Awaitable[None]]


@define(eq=False)
class Stage:
    """A sender, what was posted when, and what the service says to it."""

    #: What becomes of the posts, in their order; after the last one all is well.
    script: Iterable[BaseException | None] = ()
    latency: float = 0.1
    linger: float = 1.0
    max_in_flight: int = 4
    #: Whether the run is found to be gone, or why that can't be told.
    is_gone: bool | AdpError = False
    keeper: Scribe | None = None
    posted: list[float] = field(factory=list, init=False)
    tokens: list[str] = field(factory=list, init=False)
    looks: int = field(default=0, init=False)
    asked: int = field(default=0, init=False)
    most_in_flight: int = field(default=0, init=False)
    throttle: Throttle = field(factory=Throttle, init=False)
    inbox: list[AnyRecord] = field(factory=list, init=False)
    accumulator: Accumulator = field(init=False)
    sender: Sender = field(init=False)
    _in_flight: int = field(default=0, init=False)

    #: What a post does.
    posting: Callable[[bytes, str], Awaitable[None]] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.script = iter(self.script)
        self.posting = self.post
        self.accumulator = Accumulator(
            linger=self.linger, tokens=(f"token-{number}" for number in itertools.count())
        )
        dispatcher = Dispatcher(
            self.accumulator, self.throttle, RetryPolicy(), Concurrency(self.max_in_flight)
        )
        state = DeliveryState(self.accumulator, dispatcher, self)  # type: ignore[arg-type]
        self.sender = Sender(state, self, clock=now, jitter=lambda: 0.5)
        if self.keeper is not None:
            self.sender.keeper = self.keeper  # type: ignore[assignment]

    # What the sender sees of an intake

    lock = nullcontext()

    def room_made(self) -> None:
        """Nobody waits for room."""

    def log(self, run_id: str, *records: AnyRecord) -> None:
        for record in records:
            record.place = self.accumulator.lane(run_id)
            self.inbox.append(record)
        self.sender.wake()

    def pull(self, now: float, *, leave_excess: bool = False) -> None:
        self.looks += 1
        records, self.inbox = self.inbox, []
        if records:
            self.accumulator.take_in(records, now)

    async def post_batch(self, body: bytes, retry_token: str) -> None:
        await self.posting(body, retry_token)

    async def post(self, body: bytes, retry_token: str) -> None:
        while delay := self.throttle.delay(now()):  # noqa: ASYNC110 - time, no event
            await asyncio.sleep(delay)
        departed = now()
        self.throttle.depart(departed)
        self.posted.append(departed)
        self.tokens.append(retry_token)
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            await asyncio.sleep(self.latency)
            self.answer(departed)
        finally:
            self._in_flight -= 1

    def answer(self, departed: float) -> None:
        error = next(self.script, None)  # type: ignore[call-overload]
        if isinstance(error, Throttled):
            self.throttle.refused(
                departed=departed, now=now(), jitter=0.5, retry_after=error.retry_after
            )
        elif error is None:
            self.throttle.succeeded(departed=departed, now=now())
        if error is not None:
            raise error

    async def run_is_gone(self, run_id: str) -> bool:
        self.asked += 1
        if isinstance(self.is_gone, AdpError):
            raise self.is_gone
        return self.is_gone

    async def play(self, seconds: float) -> None:
        """Let the sender run for that long; then it is cancelled, as a session does at its end."""
        task = asyncio.create_task(self.sender.run())
        await asyncio.wait([task], timeout=seconds)
        if task.done():
            await task
        task.cancel()
        await asyncio.wait([task])


def metrics(count: int) -> list[Metric]:
    return [Metric("loss", 0.5, 0, step) for step in range(count)]


def waits(stage: Stage) -> list[float]:
    """The pauses between two posts, without the time that they took themselves."""
    return [
        round(later - earlier - stage.latency, 3)
        for earlier, later in itertools.pairwise(stage.posted)
    ]


# When batches leave


def test_a_batch_leaves_after_its_linger() -> None:
    """One request for all that came meanwhile."""

    async def scene() -> None:
        stage = Stage()
        stage.log("run", *metrics(5))
        asyncio.get_running_loop().call_later(0.5, stage.log, "run", *metrics(5))
        await stage.play(10.0)
        assert stage.posted == [1.0]
        assert stage.accumulator.delivered == 10

    run_virtually(scene())


def test_without_records_it_sleeps() -> None:
    """A day with nothing to do takes one look."""

    async def scene() -> None:
        stage = Stage()
        await stage.play(86_400.0)
        assert stage.looks == 1

    run_virtually(scene())


def test_a_wake_is_never_lost() -> None:
    """Records that come at any time between two looks are seen in time."""

    async def scene() -> None:
        stage = Stage(latency=0.05)
        for n in range(200):
            asyncio.get_running_loop().call_later(
                n * 0.0731, stage.log, f"run-{n % 7}", *metrics(1)
            )
        await stage.play(60.0)
        assert stage.accumulator.delivered == 200
        assert stage.posted[-1] <= 200 * 0.0731 + 1.0

    run_virtually(scene())


def test_at_most_so_many_are_in_flight() -> None:
    """And as many as that, when there is enough to send."""

    async def scene() -> None:
        stage = Stage(max_in_flight=3)
        for n in range(40):
            stage.log(f"run-{n}", *metrics(1000))
        await stage.play(10.0)
        assert stage.most_in_flight == 3
        assert stage.accumulator.delivered == 40_000

    run_virtually(scene())


def test_while_throttled_nothing_leaves() -> None:
    """Retry-After is kept, and what follows is paced: one at a time, a rate's interval apart."""

    async def scene() -> None:
        throttled = Throttled("slow down", status=429)
        throttled.retry_after = 7.0
        stage = Stage(script=[throttled])
        for n in range(4):
            stage.log(f"run-{n}", *metrics(1000))
        await stage.play(60.0)
        assert stage.posted[0] == 0.0
        assert stage.posted[1] == pytest.approx(7.6)
        assert all(later - earlier > 0.2 for earlier, later in itertools.pairwise(stage.posted[1:]))
        assert stage.accumulator.delivered == 4000
        assert stage.sender.retries == 1

    run_virtually(scene())


def test_a_hold_of_another_call_counts_as_well() -> None:
    """A 429 to a direct call is news for the sender, who leaves the records to grow in company."""

    async def scene() -> None:
        stage = Stage()
        stage.throttle.refused(departed=0.0, now=0.0, jitter=0.5, retry_after=20.0)
        for n in range(50):
            asyncio.get_running_loop().call_later(n / 10, stage.log, "run", *metrics(2))
        await stage.play(60.0)
        assert stage.posted == [20.5]
        assert stage.accumulator.delivered == 100

    run_virtually(scene())


@pytest.mark.parametrize("linger", [0.0, 0.001, 1.0])
def test_waiting_for_an_answer_costs_little(linger: float) -> None:
    """However short the linger, an answer that takes a minute isn't waited for in circles."""

    async def scene() -> None:
        stage = Stage(latency=60.0, linger=linger)
        stage.log("run", *metrics(1))
        await stage.play(100.0)
        assert stage.accumulator.delivered == 1
        assert stage.looks <= 6100

    run_virtually(scene())


# When the service is away


def test_it_backs_off() -> None:
    """Half of 1, 2, 4, ... 60 s by the jitter given here, for as long as it takes."""

    async def scene() -> None:
        stage = Stage(script=[DOWN] * 9)
        stage.log("run", *metrics(10))
        await stage.play(600.0)
        assert waits(stage) == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
        assert len(set(stage.tokens)) == 1
        assert stage.accumulator.delivered == 10

    run_virtually(scene())


def test_retry_after_of_a_fault_is_kept() -> None:
    """A 503 may say when to come back."""

    async def scene() -> None:
        fault = ServiceFault("down for maintenance", status=503)
        fault.retry_after = 100.0
        stage = Stage(script=[fault])
        stage.log("run", *metrics(10))
        await stage.play(600.0)
        assert waits(stage) == [100.5]

    run_virtually(scene())


def test_one_batch_finds_out_whether_the_service_is_back() -> None:
    """A hundred runs wait through an hour of outage: a few hundred requests, not a storm."""

    async def scene() -> None:
        stage = Stage(script=[DOWN] * 120)
        for n in range(100):
            stage.log(f"run-{n}", *metrics(10))
        await stage.play(7200.0)
        during = stage.posted[:120]
        assert during[-1] > 3000.0
        assert stage.accumulator.delivered == 1000
        assert min(later - earlier for earlier, later in itertools.pairwise(during[4:])) > 0.4

    run_virtually(scene())


def test_after_an_outage_of_30_s_it_is_soon_over() -> None:
    """Nothing is lost, and nobody waits for minutes once the service is back."""

    async def scene() -> None:
        stage = Stage(script=[])

        async def post(body: bytes, retry_token: str) -> None:
            await asyncio.sleep(0.05)
            stage.posted.append(now())
            if 5.0 < now() < 35.0:
                raise DOWN

        stage.posting = post
        for n in range(600):
            asyncio.get_running_loop().call_later(n / 10, stage.log, "run", *metrics(100))
        await stage.play(120.0)
        assert stage.accumulator.delivered == 60_000
        assert any(35.0 < time < 60.0 for time in stage.posted)

    run_virtually(scene())


def test_a_batch_that_fails_for_ever_does_not_stop_the_others() -> None:
    """A run the service stumbles over backs off by itself."""

    async def scene() -> None:
        stage = Stage()

        async def post(body: bytes, retry_token: str) -> None:
            await asyncio.sleep(0.05)
            if b'"cursed"' in body:
                raise ServiceFault("oops", status=500)

        stage.posting = post
        lanes = {run_id: stage.accumulator.lane(run_id) for run_id in ("cursed", "blessed")}
        for n in range(100):
            for run_id in lanes:
                asyncio.get_running_loop().call_later(n, stage.log, run_id, *metrics(10))
        await stage.play(120.0)
        assert lanes["blessed"].delivered == 1000
        assert lanes["cursed"].unsettled == 1000
        assert stage.sender.requests < 160

    run_virtually(scene())


# What answers mean


def test_one_bad_record_costs_twenty_requests_and_one_look_at_the_run() -> None:
    """Its 999 neighbours are delivered."""

    async def scene() -> None:
        stage = Stage()

        async def post(body: bytes, retry_token: str) -> None:
            await asyncio.sleep(0.05)
            if b'"step":617}' in body:
                raise REFUSED

        stage.posting = post
        stage.log("run", *metrics(1000))
        await stage.play(60.0)
        assert stage.accumulator.delivered == 999
        assert stage.accumulator.rejected == {"BadRequest": 1}
        assert stage.sender.requests <= 21
        assert stage.asked == 1

    run_virtually(scene())


def test_a_run_that_is_gone_takes_one_request() -> None:
    """No record has to be found where none is to blame."""

    async def scene() -> None:
        stage = Stage(script=[REFUSED], is_gone=True)
        stage.log("run", *metrics(1000))
        await stage.play(60.0)
        assert stage.accumulator.rejected == {"BadRequest": 1000}
        assert (stage.sender.requests, stage.asked) == (1, 1)

    run_virtually(scene())


def test_nothing_is_judged_while_the_run_cannot_be_looked_at() -> None:
    """The same batch goes again: splitting it may be a thousand requests for nothing."""

    async def scene() -> None:
        stage = Stage(script=[REFUSED], is_gone=DOWN)
        stage.log("run", *metrics(10))
        await stage.play(60.0)
        assert stage.accumulator.delivered == 10
        assert stage.sender.requests == 2

    run_virtually(scene())


@pytest.mark.parametrize(
    ("script", "requests", "delivered"),
    [
        ([UnreadableReply("truncated", status=200)] * 3, 4, 10),
        ([Conflict("spent", status=409, code="InvalidatedRetryToken")], 2, 10),
        ([PayloadTooLarge("too much", status=413)], 3, 10),
        ([NotAuthenticated("clock", status=401)] * 3, 4, 10),
        ([NotFound("no platform", status=404)] * 3, 4, 10),
        ([NotFound("no run", status=404, code="RESOURCE_DOES_NOT_EXIST")] * 3, 4, 10),
    ],
    ids=["unreadable", "spent token", "too large", "credentials", "no platform", "no run"],
)
def test_answers(script: list[AdpError], requests: int, delivered: int) -> None:
    """Each error has its own consequence, and nothing but a verdict on the records ends them."""

    async def scene() -> None:
        stage = Stage(script=script)
        stage.log("run", *metrics(10))
        await stage.play(600.0)
        assert stage.sender.requests == requests
        assert stage.accumulator.delivered == delivered
        assert stage.accumulator.unsettled == 0

    run_virtually(scene())


def test_a_spent_token_is_replaced() -> None:
    """And the one of a batch that is merely tried again is not."""

    async def scene() -> None:
        spent = Conflict("spent", status=409, code="InvalidatedRetryToken")
        stage = Stage(script=[DOWN, spent, DOWN])
        stage.log("run", *metrics(10))
        await stage.play(60.0)
        first, second, third, fourth = stage.tokens
        assert first == second != third == fourth

    run_virtually(scene())


@pytest.mark.parametrize(
    ("is_gone", "parts"),
    [(False, True), (True, False), (DOWN, False)],
    ids=["shown", "not shown", "cannot be asked"],
)
def test_a_batch_is_taken_apart_where_the_run_is_shown(
    is_gone: bool | AdpError, parts: bool
) -> None:
    """While nothing else is sent, only that tells a bad record from a service that is down."""

    async def scene() -> None:
        broken = ServiceFault("no", status=500, code="InternalError")
        stage = Stage(script=[broken] * 10_000, is_gone=is_gone)
        stage.log("run", *metrics(2))
        await stage.play(3600.0)
        assert (len(set(stage.tokens)) > 1) is parts
        assert stage.asked > 0
        assert stage.accumulator.unsettled == 2

    run_virtually(scene())


def test_a_batch_leaves_when_it_is_written_down() -> None:
    """With a spool the retry token is on disk before the request leaves."""

    async def scene() -> None:
        async def write_down(batch: RecordBatch) -> None:
            await asyncio.sleep(0.25)

        stage = Stage(keeper=Scribe(write_down))
        stage.log("run", *metrics(10))
        await stage.play(60.0)
        assert stage.posted == [1.25]

    run_virtually(scene())


# Ends


@pytest.mark.parametrize("when", [0.0, 1.0, 1.05])
def test_cancelled_it_gives_back_what_was_in_flight(when: float) -> None:
    """Nobody knows what became of it, so it waits again: before, at and after its departure."""

    async def scene() -> None:
        stage = Stage()
        stage.log("run", *metrics(10), RunTag("stage", "end"))
        await stage.play(when)
        accumulator = stage.accumulator
        stage.pull(now())
        assert (accumulator.waiting, accumulator.in_flight) == (11, 0)
        assert accumulator.batches_in_flight == 0

    run_virtually(scene())


def test_whatever_is_raised_while_sending_costs_one_batch_a_while() -> None:
    """A signer or an encoder that stumbles holds its batch, and stops nobody else."""

    async def scene() -> None:
        stage = Stage(script=[None, ZeroDivisionError("theirs"), None])
        stage.log("run", *metrics(3000))
        await stage.play(60.0)
        assert stage.accumulator.delivered == 3000
        assert stage.sender.retries == 1

    run_virtually(scene())


def test_what_may_not_leave_yet_keeps_its_turn() -> None:
    """A batch whose token can't be written down is tried again, and counts as no failure."""

    async def scene() -> None:
        troubles = [NotYet("full"), NotYet("full"), ValueError("odd")]

        async def write_down(batch: RecordBatch) -> None:
            if troubles:
                raise troubles.pop(0)

        stage = Stage(keeper=Scribe(write_down))
        stage.log("run", *metrics(10))
        await stage.play(60.0)
        assert stage.posted == [4.0]
        assert stage.sender.retries == 0
        assert stage.accumulator.delivered == 10

    run_virtually(scene())


def test_cancelled_it_gives_back_once_what_could_not_leave() -> None:
    """A batch that keeps its turn waits already."""

    async def scene() -> None:
        async def write_down(batch: RecordBatch) -> None:
            raise NotYet("full")

        stage = Stage(keeper=Scribe(write_down))
        stage.log("run", *metrics(10))
        await stage.play(10.0)
        accumulator = stage.accumulator
        assert (accumulator.waiting, accumulator.in_flight) == (10, 0)
        assert accumulator.batches_in_flight == 0

    run_virtually(scene())


def test_how_many_under_way_are_worth_it_does_not_show_while_there_is_one() -> None:
    """A run that logs now and then tells nothing of what the service can take."""

    async def scene() -> None:
        stage = Stage(latency=0.5, linger=0.0)
        playing = asyncio.create_task(stage.play(100.0))
        for _ in range(90):
            stage.log("run", *metrics(1))
            await asyncio.sleep(1.0)
            assert stage.sender.dispatcher.concurrency.limit == 1
        await playing

    run_virtually(scene())


# What a person hears


def messages(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno == level]


def test_one_warning_for_a_trouble_that_lasts(caplog: pytest.LogCaptureFixture) -> None:
    """Another one when it changes its kind, and a word when it is over."""
    caplog.set_level(logging.INFO, logger="adp_async")

    async def scene() -> None:
        expired = NotAuthenticated("expired", status=401, request_id="abc/def")
        stage = Stage(script=[DOWN] * 5 + [expired] * 5)
        stage.log("run", *metrics(10))
        await stage.play(3600.0)

    run_virtually(scene())

    first, second, last = messages(caplog, logging.WARNING)
    assert "no route to host" in first
    assert "check the credentials" in second
    assert "abc/def" in second
    assert last == "batches are delivered again"


def test_each_trouble_is_told_anew(caplog: pytest.LogCaptureFixture) -> None:
    """The second outage of a night is as much news as the first, and so is its end."""
    caplog.set_level(logging.INFO, logger="adp_async")

    async def scene() -> None:
        stage = Stage(script=[DOWN, DOWN, None, None, DOWN, None])
        stage.log("run", *metrics(4000))
        await stage.play(600.0)
        assert stage.accumulator.delivered == 4000

    run_virtually(scene())

    warnings = messages(caplog, logging.WARNING)
    assert len(warnings) == 4
    assert warnings[1::2] == ["batches are delivered again"] * 2


def test_a_run_in_trouble_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """However often it is tried, and that it is over as well."""
    caplog.set_level(logging.INFO, logger="adp_async")

    async def scene() -> None:
        forbidden = Forbidden("not yours", status=403, code="NotAuthorized")
        stage = Stage(script=[forbidden] * 15)
        stage.log("run", *metrics(10))
        await stage.play(36_000.0)
        assert stage.accumulator.delivered == 10

    run_virtually(scene())

    alarm, all_clear = messages(caplog, logging.WARNING)
    assert "run run" in alarm
    assert "1 such run so far" in alarm
    assert all_clear == "run run: its records are delivered again"


def test_refused_records_are_told_at_1_10_100(caplog: pytest.LogCaptureFixture) -> None:
    """A param in a hot loop doesn't fill the log."""

    async def scene() -> None:
        stage = Stage(script=[REFUSED] * 10_000, latency=0.001)
        stage.log("run", *[Metric(f"m{n}", 1.0, 0, 0) for n in range(150)])
        await stage.play(600.0)
        assert stage.accumulator.rejected == {"BadRequest": 150}

    run_virtually(scene())

    warnings = messages(caplog, logging.WARNING)
    assert [message.split(":")[1].split()[0] for message in warnings] == ["1", "10", "100"]
    assert "the last one metric 'm" in warnings[0]


def test_no_value_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Neither at DEBUG nor in a repr."""
    caplog.set_level(logging.DEBUG, logger="adp_async")

    async def scene() -> None:
        stage = Stage(script=[DOWN, REFUSED])
        stage.log("run", RunTag("password", "swordfish"), RunTag("note", "swordfish"))
        await stage.play(600.0)
        assert "swordfish" not in repr(stage.accumulator.lanes)

    run_virtually(scene())

    assert caplog.records
    assert "swordfish" not in caplog.text
