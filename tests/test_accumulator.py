"""The accumulator by tables: what waits, what leaves when, and what becomes of it.

Time is a number.  What must hold whatever happens stands in `test_accumulator_machine`.
"""

from __future__ import annotations

import gc
import itertools
import json
from typing import TYPE_CHECKING, Any

import pytest

from adp_async._sansio import lane as lane_module
from adp_async._sansio import record_queue
from adp_async._sansio.accumulator import Accumulator
from adp_async._sansio.discarding import abandon, discard
from adp_async._sansio.lane import Lane, Suspect
from adp_async._sansio.line import Line
from adp_async._sansio.record_queue import RecordQueue
from adp_async._sansio.records import BatchLimits, GivenUp, Metric, Param, RunTag
from adp_async._sansio.refusals import ENOUGH_REFUSALS, PROVEN_KEYS
from adp_async._sansio.rejections import KEPT_REJECTIONS
from adp_async._sansio.sealing import SMALLEST_BODY_LIMIT
from adp_async._sansio.spilling import lose, reload, spill
from adp_async.errors import AdpError, BadRequest, DeliveryError, PayloadTooLarge

if TYPE_CHECKING:
    from collections.abc import Callable

    from adp_async._sansio.batch import RecordBatch
    from adp_async._sansio.records import AnyRecord

REFUSED = BadRequest("bad", status=400)
TOO_LARGE = PayloadTooLarge("too much", status=413)


def metric(key: str = "loss", value: float = 0.5, step: int = 0) -> Metric:
    return Metric(key, value, 1_700_000_000_000, step)


def metrics(count: int, key: str = "loss") -> list[Metric]:
    return [metric(key, step=step) for step in range(count)]


def add_all(accumulator: Accumulator, run_id: str, records: Any, now: float = 0.0) -> None:
    for record in records:
        accumulator.add(run_id, record, now)


def drain_one(accumulator: Accumulator, now: float) -> RecordBatch:
    (batch,) = accumulator.drain(now)
    return batch


def decoded(batch: RecordBatch) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(batch.body)
    return body


def keys(batch: RecordBatch) -> list[str]:
    return [record.key for record in batch.records]


def deliver_everything(
    accumulator: Accumulator,
    now: float,
    refuses: Callable[[AnyRecord], bool] = lambda record: False,
) -> int:
    """Play a service that refuses a request with a bad record in it; how many requests it took."""
    requests = 0
    # The service may be asked again after a while.
    while (deadline := accumulator.next_deadline()) is not None and deadline <= now + 300.0:
        batches = accumulator.drain(deadline)
        if not batches:
            continue
        (batch,) = batches
        requests += 1
        if any(map(refuses, batch.records)):
            accumulator.refuse(batch, REFUSED, deadline)
        else:
            accumulator.succeed(batch, now)
    return requests


@pytest.fixture
def accumulator() -> Accumulator:
    tokens = itertools.count()
    return Accumulator(tokens=(f"token-{number}" for number in tokens))


# Linger, fullness, and being awaited


def test_an_empty_accumulator_wants_nothing(accumulator: Accumulator) -> None:
    """Nothing waits, so there is nothing to be woken for and nothing to hand out."""
    assert accumulator.next_deadline() is None
    assert accumulator.drain(1e9, room=5) == []


def test_linger_counts_from_the_first_record(accumulator: Accumulator) -> None:
    """A record that joins later doesn't postpone the batch."""
    accumulator.add("run", metric("loss"), now=0.0)
    accumulator.add("run", metric("acc"), now=0.9)

    assert accumulator.next_deadline() == 1.0
    assert accumulator.drain(0.99) == []
    assert keys(drain_one(accumulator, 1.0)) == ["loss", "acc"]
    assert accumulator.next_deadline() is None


def test_linger_of_the_next_batch_counts_from_its_own_first_record() -> None:
    """What stays behind when a batch is cut lingers from the time it came at."""
    accumulator = Accumulator(limits=BatchLimits(metrics=2))
    for now in (0.0, 0.1, 0.25):
        accumulator.add("run", metric(), now)

    drain_one(accumulator, 0.3)

    assert accumulator.next_deadline() == 1.25


def test_linger_of_what_stays_behind_counts_from_its_first_record() -> None:
    """Also when more came after that before the batch was cut."""
    accumulator = Accumulator(limits=BatchLimits(metrics=3))
    for now in (0.0, 0.1, 0.2, 0.25, 0.5):
        accumulator.add("run", metric(), now)

    drain_one(accumulator, 0.6)

    assert accumulator.next_deadline() == 1.25


def test_a_tag_that_joins_later_does_not_postpone_the_batch(accumulator: Accumulator) -> None:
    """However often a tag is set, the first one is not kept waiting."""
    for now in (0.0, 0.5, 0.9):
        accumulator.add("run", RunTag("epoch", str(now)), now)

    assert accumulator.next_deadline() == 1.0


@pytest.mark.parametrize(
    ("limits", "make"),
    [
        (BatchLimits(metrics=3), lambda n: metric(step=n)),
        (BatchLimits(params=3), lambda n: Param(f"p{n}", "1")),
        (BatchLimits(tags=3), lambda n: RunTag(f"t{n}", "1")),
        (BatchLimits(entities=3), lambda n: [metric(), Param("p", "1"), RunTag("t", "1")][n % 3]),
        (BatchLimits(body_bytes=3000), lambda n: RunTag(f"t{n}", "x" * 998)),
    ],
    ids=["metrics", "params", "tags", "entities", "bytes"],
)
def test_a_full_lane_does_not_linger(limits: BatchLimits, make: Callable[[int], Any]) -> None:
    """Whichever of the five limits is reached first, the batch leaves at once."""
    accumulator = Accumulator(limits=limits)
    accumulator.add("run", make(0), now=5.0)
    accumulator.add("run", make(1), now=5.0)
    assert accumulator.drain(5.0) == []

    accumulator.add("run", make(2), now=5.1)

    assert accumulator.next_deadline() == 5.1
    assert accumulator.drain(5.1)


def test_who_waits_does_not_linger(accumulator: Accumulator) -> None:
    """Urged, a lane is ready now, and what comes after that lingers again."""
    accumulator.add("run", metric(), now=0.0)
    accumulator.skip_linger(accumulator.lane("run"), now=0.2)

    assert accumulator.next_deadline() == 0.2
    drain_one(accumulator, 0.2)
    accumulator.add("run", metric(), now=0.3)
    assert accumulator.next_deadline() == 1.3


def test_urging_covers_every_batch_that_it_takes() -> None:
    """All that a lane held at that time leaves without linger, not its first batch only."""
    accumulator = Accumulator(limits=BatchLimits(metrics=2))
    add_all(accumulator, "run", metrics(5))

    accumulator.skip_linger(accumulator.lane("run"), now=0.1)

    assert [len(batch.records) for batch in accumulator.drain(0.1, room=9)] == [2, 2, 1]


# Limits


def test_the_kinds_count_together() -> None:
    """900 metrics, 50 params and 51 tags are one too many for one request."""
    accumulator = Accumulator()
    add_all(accumulator, "run", metrics(900))
    add_all(accumulator, "run", [Param(f"p{n}", "1") for n in range(50)])
    add_all(accumulator, "run", [RunTag(f"t{n}", "1") for n in range(51)])

    first = drain_one(accumulator, 1.0)
    accumulator.succeed(first, 1.0)

    assert len(first.records) == 1000
    assert keys(drain_one(accumulator, 1.0)) == ["t50"]


def test_each_kind_has_its_own_limit() -> None:
    """The 101st param waits for the next request, and nothing overtakes it."""
    accumulator = Accumulator()
    add_all(accumulator, "run", [Param(f"p{n}", "1") for n in range(101)])
    accumulator.add("run", RunTag("last", "1"), now=0.0)

    first = drain_one(accumulator, 0.0)
    accumulator.succeed(first, 1.0)

    assert len(first.records) == 100
    assert keys(drain_one(accumulator, 1.0)) == ["p100", "last"]


@pytest.mark.parametrize("text", ["x" * 6000, "ü" * 6000, "\U0001f600" * 6000, '"\\' * 3000])
def test_no_body_is_larger_than_the_limit(text: str) -> None:
    """Bytes are those on the wire: UTF-8, escapes and all, whatever the values are made of."""
    accumulator = Accumulator()
    add_all(accumulator, "run", [Param(f"p{n}", text) for n in range(100)])

    sent = []
    while batches := accumulator.drain(1.0):
        (batch,) = batches
        assert len(batch.body) <= accumulator.limits.body_bytes
        sent += [param["key"] for param in decoded(batch)["params"]]
        accumulator.succeed(batch, 1.0)

    assert sent == [f"p{n}" for n in range(100)]


def test_a_body_of_exactly_the_limit_is_one_request() -> None:
    """The limit itself is allowed; one byte less makes two requests of it."""
    records = [RunTag("a", "ü" * 50), RunTag("b", "x")]
    accumulator = Accumulator()
    add_all(accumulator, "run", records)
    size = len(drain_one(accumulator, 1.0).body)

    for limit, requests in ((size, 1), (size - 1, 2)):
        accumulator = Accumulator(limits=BatchLimits(body_bytes=limit))
        add_all(accumulator, "run", [RunTag("a", "ü" * 50), RunTag("b", "x")])
        assert deliver_everything(accumulator, 1.0) == requests


def test_long_keys_of_metrics_count_as_well() -> None:
    """A thousand metrics with keys of 250 wide characters don't fit a megabyte."""
    accumulator = Accumulator()
    add_all(accumulator, "run", metrics(1000, key="\U0001f600" * 250))

    sizes = [len(batch.body) for batch in accumulator.drain(1.0, room=9)]

    assert len(sizes) == 2
    assert max(sizes) <= 1_000_000


def test_one_record_larger_than_the_limit_is_sent_all_the_same(accumulator: Accumulator) -> None:
    """It can't be halved, so the service has the last word on it."""
    accumulator.sealer.limits = BatchLimits(body_bytes=100)
    accumulator.add("run", RunTag("note", "x" * 8000), now=0.0)

    assert len(drain_one(accumulator, 1.0).records) == 1


# What a body says


def test_a_body_has_every_field_of_the_api(accumulator: Accumulator) -> None:
    """The three kinds under their names, and the run's id."""
    accumulator.add("run", Metric("loss", 0.25, 1_700_000_000_123, -4), now=0.0)
    accumulator.add("run", Param("lr", "0.1"), now=0.0)
    accumulator.add("run", RunTag("stage", "warm-up"), now=0.0)

    assert decoded(drain_one(accumulator, 1.0)) == {
        "run_id": "run",
        "metrics": [{"key": "loss", "value": 0.25, "timestamp": 1_700_000_000_123, "step": -4}],
        "params": [{"key": "lr", "value": "0.1"}],
        "tags": [{"key": "stage", "value": "warm-up"}],
    }


def test_a_tag_overwritten_within_one_batch_is_sent_once(accumulator: Accumulator) -> None:
    """The last value wins, and every record of it counts as delivered."""
    add_all(accumulator, "run", [RunTag("epoch", str(n)) for n in range(50)])

    batch = drain_one(accumulator, 1.0)
    accumulator.succeed(batch, 1.0)

    assert decoded(batch)["tags"] == [{"key": "epoch", "value": "49"}]
    assert accumulator.delivered == 50


def test_two_values_of_one_param_never_share_a_request(accumulator: Accumulator) -> None:
    """The service would refuse the whole request, and the good value with it."""
    add_all(accumulator, "run", [Param("lr", "1"), Param("lr", "1"), Param("lr", "2"), metric()])

    first = drain_one(accumulator, 1.0)
    accumulator.succeed(first, 1.0)
    second = drain_one(accumulator, 1.0)

    assert decoded(first)["params"] == [{"key": "lr", "value": "1"}]
    assert decoded(second)["params"] == [{"key": "lr", "value": "2"}]
    assert len(decoded(second)["metrics"]) == 1


def test_a_batch_keeps_its_body_and_token_when_tried_again(accumulator: Accumulator) -> None:
    """A resend is the same request, whatever was logged in between."""
    accumulator.add("run", metric(), now=0.0)
    first = drain_one(accumulator, 1.0)
    accumulator.add("run", metric(), now=1.1)

    accumulator.wait_turn(first, not_before=3.0, now=1.5)
    again = drain_one(accumulator, 3.0)

    assert (again.body, again.retry_token) == (first.body, first.retry_token)


# Order


def test_batches_of_metrics_fly_in_parallel(accumulator: Accumulator) -> None:
    """Metrics append, so their order on arrival doesn't matter."""
    add_all(accumulator, "run", metrics(3000))

    assert [len(batch.records) for batch in accumulator.drain(0.0, room=9)] == [1000] * 3


def test_a_batch_with_a_tag_waits_for_those_in_flight(accumulator: Accumulator) -> None:
    """A barrier leaves when nothing else of its run is in flight."""
    add_all(accumulator, "run", metrics(1000))
    accumulator.add("run", RunTag("stage", "end"), now=0.0)
    (metrics_only,) = accumulator.drain(1.0, room=9)

    assert accumulator.next_deadline() is None
    accumulator.succeed(metrics_only, 2.0)

    assert keys(drain_one(accumulator, 2.0)) == ["stage"]


def test_a_part_with_a_tag_waits_for_the_part_before_it(accumulator: Accumulator) -> None:
    """A refused batch is taken apart, and what was a barrier in it still is one."""
    add_all(accumulator, "run", [metric(), RunTag("state", "best")])
    accumulator.refuse(drain_one(accumulator, 1.0), REFUSED, 1.0)
    (point,) = accumulator.drain(2.0, room=5)
    assert keys(point) == ["loss"]

    accumulator.succeed(point, 2.0)
    assert keys(drain_one(accumulator, 2.0)) == ["state"]


def test_a_tag_that_was_put_aside_waits_for_those_in_flight(accumulator: Accumulator) -> None:
    """Others go before it while it fails; it is a barrier all the same."""
    accumulator.add("run", RunTag("state", "old"), 0.0)
    tag = drain_one(accumulator, 1.0)
    accumulator.put_aside(tag, 2.0, 1.0)
    accumulator.add("run", metric(), 1.0)
    point = drain_one(accumulator, 3.0)
    assert keys(point) == ["loss"]

    assert accumulator.drain(4.0, room=5) == []
    accumulator.succeed(point, 4.0)
    assert drain_one(accumulator, 4.0) is tag


def test_nothing_overtakes_a_batch_with_a_tag(accumulator: Accumulator) -> None:
    """While a barrier is in flight, nothing else of its run leaves; other runs do."""
    accumulator.add("run", RunTag("stage", "start"), now=0.0)
    (barrier,) = accumulator.drain(1.0, room=9)
    add_all(accumulator, "run", metrics(2000), now=1.0)
    accumulator.add("other", metric(), now=1.0)

    assert [batch.run_id for batch in accumulator.drain(2.0, room=9)] == ["other"]
    accumulator.succeed(barrier, 3.0)
    assert [batch.run_id for batch in accumulator.drain(3.0, room=9)] == ["run", "run"]


def test_parts_of_a_barrier_keep_their_order(accumulator: Accumulator) -> None:
    """The halves of a refused batch go one after the other where they hold tags."""
    add_all(accumulator, "run", [RunTag("a", "1"), RunTag("b", "1"), RunTag("a", "2")])
    accumulator.refuse(drain_one(accumulator, 1.0), REFUSED, 1.0)

    seen = []
    while batches := accumulator.drain(1.0, room=9):
        assert len(batches) == 1
        seen += [(record.key, record.value) for record in batches[0].records]
        accumulator.succeed(batches[0], 1.0)

    assert seen == [("a", "1"), ("b", "1"), ("a", "2")]


def test_a_tag_right_behind_a_full_load_of_metrics_makes_a_barrier() -> None:
    """Whether the next batch has one is known before it is cut, whichever limit ends it."""
    accumulator = Accumulator(limits=BatchLimits(metrics=2, entities=4))
    add_all(accumulator, "run", metrics(4))
    accumulator.add("run", RunTag("stage", "end"), now=0.0)

    (metrics_only,) = accumulator.drain(5.0, room=9)
    accumulator.succeed(metrics_only, 5.0)

    assert keys(drain_one(accumulator, 5.0)) == ["loss", "loss", "stage"]


def test_metrics_far_ahead_of_a_tag_need_no_barrier(accumulator: Accumulator) -> None:
    """A full batch of metrics leaves although a tag waits behind it."""
    add_all(accumulator, "run", metrics(2000))
    accumulator.add("run", RunTag("stage", "end"), now=0.0)

    assert [batch.is_barrier for batch in accumulator.drain(0.0, room=9)] == [False, False]


# Turns


def test_lanes_take_turns(accumulator: Accumulator) -> None:
    """One busy run and nine quiet ones: each of them is served before the busy one again."""
    add_all(accumulator, "busy", metrics(10_000))
    for n in range(9):
        accumulator.add(f"quiet-{n}", metric(), now=0.0)

    order = [batch.run_id for batch in accumulator.drain(1.0, room=12)]

    assert order == ["busy", *(f"quiet-{n}" for n in range(9)), "busy", "busy"]


def test_old_records_do_not_jump_the_line(accumulator: Accumulator) -> None:
    """A run whose batches hold one record each, all overdue, goes to the end of the line too."""
    add_all(accumulator, "fussy", [Param("lr", str(n)) for n in range(9)])
    accumulator.add("plain", metric(), now=3.0)

    order = []
    for _ in range(3):
        batch = drain_one(accumulator, 5.0)
        order.append(batch.run_id)
        accumulator.succeed(batch, 5.0)

    assert order == ["fussy", "plain", "fussy"]


def test_the_line_does_not_grow_with_waiting(accumulator: Accumulator) -> None:
    """A lane stands in the line a few times at most, however often it is added to."""
    for n in range(5000):
        accumulator.add(f"run-{n % 5}", metric(step=n), now=n / 1000)

    assert accumulator.schedule.line.length <= 20


# What became of a batch


def test_delivered_is_counted_and_let_go(accumulator: Accumulator) -> None:
    """At the end nothing waits, nothing is in flight and no memory is taken."""
    records = [metric(), Param("lr", "0.1"), RunTag("note", "ü" * 100)]
    add_all(accumulator, "run", records)
    assert accumulator.cost > 0

    deliver_everything(accumulator, 1.0)

    assert (accumulator.waiting, accumulator.in_flight, accumulator.cost) == (0, 0, 0)
    assert accumulator.delivered == 3
    assert all(record.delivered for record in records)
    assert accumulator.lane("run").is_idle


def test_wait_turn_holds_the_lane(accumulator: Accumulator) -> None:
    """Until then nothing of the run leaves, and other runs are not held."""
    add_all(accumulator, "run", metrics(2000))
    batch = drain_one(accumulator, 0.0)
    accumulator.wait_turn(batch, not_before=7.0, now=1.0)
    accumulator.add("other", metric(), now=1.0)

    assert [each.run_id for each in accumulator.drain(2.0, room=9)] == ["other"]
    assert accumulator.next_deadline() == 7.0
    assert len(accumulator.drain(7.0, room=9)) == 2


def test_failures_in_a_row_are_counted_until_one_is_judged(accumulator: Accumulator) -> None:
    """The back-off grows with them; being throttled is no failure of the batch."""
    accumulator.add("run", metric(), now=0.0)
    lane = accumulator.lane("run")
    counted: list[int] = []
    for not_before in (2.0, 4.0, 4.0):
        accumulator.back_off(drain_one(accumulator, 4.0 if counted else 1.0), not_before, 1.0)
        counted.append(lane.failures)
    accumulator.wait_turn(drain_one(accumulator, 4.0), 4.0, 4.0)
    counted.append(lane.failures)
    accumulator.succeed(drain_one(accumulator, 4.0), 4.0)

    assert [*counted, lane.failures] == [1, 2, 3, 3, 0]


@pytest.mark.parametrize("verdict", ["give_up", "refuse", "succeed"])
def test_whatever_is_judged_ends_the_trouble_of_its_run(
    accumulator: Accumulator, verdict: str
) -> None:
    """Its next records are those of a run like any other."""
    accumulator.add("run", metric(), 0.0)
    accumulator.back_off(drain_one(accumulator, 1.0), 2.0, 1.0)
    accumulator.add("run", metric(), 1.0)
    batch = drain_one(accumulator, 2.0)
    assert batch.lane.failures == 1
    {
        "give_up": lambda: accumulator.give_up(batch, REFUSED, 2.0),
        "refuse": lambda: accumulator.refuse(batch, REFUSED, 2.0),
        "succeed": lambda: accumulator.succeed(batch, 2.0),
    }[verdict]()

    assert batch.lane.failures == 0
    assert len(accumulator.drain(3.0, troubled=0)) == 1


def test_who_is_hurried_need_not_wait_out_a_back_off(accumulator: Accumulator) -> None:
    """Neither with a batch that failed, nor with a record that was put aside."""
    accumulator.add("one", metric(), 0.0)
    accumulator.add("other", metric(), 0.0)
    one, other = drain_one(accumulator, 1.0), drain_one(accumulator, 1.0)
    accumulator.back_off(one, 100.0, 1.0)
    accumulator.put_aside(other, 100.0, 1.0)
    assert accumulator.next_deadline() == 100.0
    for batch in (one, other):
        accumulator.hurry(batch.lane, 2.0)

    assert accumulator.drain(2.0, room=2) == [one, other]


def test_a_delivery_between_them_makes_halvings_fruitful(accumulator: Accumulator) -> None:
    """What is counted is how often a run was taken apart in vain, one after the other."""
    add_all(accumulator, "run", metrics(8))
    batch = drain_one(accumulator, 1.0)
    accumulator.halve(batch, 1.0)
    half = drain_one(accumulator, 1.0)
    assert half.lane.fruitless == 1
    accumulator.succeed(half, 1.0)

    assert half.lane.fruitless == 0


def test_renew_gives_a_new_token_and_keeps_the_body(accumulator: Accumulator) -> None:
    """A spent retry token is no verdict on the records."""
    accumulator.add("run", metric(), now=0.0)
    first = drain_one(accumulator, 1.0)

    accumulator.renew(first, 1.0)
    again = drain_one(accumulator, 1.0)

    assert again.body == first.body
    assert again.retry_token != first.retry_token


def test_parts_have_tokens_of_their_own(accumulator: Accumulator) -> None:
    """A part is another request: under the old token the service would take it for a resend."""
    add_all(accumulator, "run", metrics(4))
    whole = drain_one(accumulator, 1.0)
    accumulator.refuse(whole, REFUSED, 1.0)

    parts = accumulator.drain(1.0, room=9)

    assert len({whole.retry_token, *(part.retry_token for part in parts)}) == 3
    assert (whole.is_whole, parts[0].is_whole) == (True, False)


def test_settled_until_is_a_watermark() -> None:
    """It moves when everything before is settled, in whatever order batches end."""
    accumulator = Accumulator(limits=BatchLimits(metrics=2))
    add_all(accumulator, "run", metrics(5))
    lane = accumulator.lane("run")
    first, second = accumulator.drain(0.0, room=9)

    watermarks = [lane.settled_until]
    accumulator.succeed(second, 0.0)
    watermarks.append(lane.settled_until)
    accumulator.succeed(first, 0.0)
    watermarks.append(lane.settled_until)
    accumulator.succeed(drain_one(accumulator, 1.0), 1.0)
    watermarks.append(lane.settled_until)

    assert watermarks == [0, 0, 4, 5]


def test_a_refused_batch_is_settled_by_all_of_its_parts(accumulator: Accumulator) -> None:
    """The watermark waits for the last part of the span."""
    add_all(accumulator, "run", metrics(2))
    lane = accumulator.lane("run")
    accumulator.refuse(drain_one(accumulator, 1.0), REFUSED, 1.0)
    left, right = accumulator.drain(1.0, room=9)

    accumulator.succeed(right, 1.0)
    assert (lane.settled_until, lane.unsettled) == (0, 1)
    accumulator.refuse(left, REFUSED, 1.0)

    assert (lane.settled_until, lane.unsettled) == (2, 0)


# Refusals


def test_one_bad_record_among_a_thousand(accumulator: Accumulator) -> None:
    """It costs about twenty requests; the 999 others are delivered."""
    records = [metric(f"m{n % 7}", step=n) for n in range(1000)]
    add_all(accumulator, "run", records)

    requests = deliver_everything(accumulator, 1.0, lambda record: record is records[617])

    assert requests <= 24
    assert accumulator.delivered == 999
    assert accumulator.rejected == {"BadRequest": 1}
    (rejection,) = accumulator.rejections.last
    assert (rejection.kind, rejection.key, rejection.step) == ("metric", "m1", 617)


@pytest.mark.parametrize("bad", [0, 1, 499, 500, 998, 999])
def test_the_bad_record_is_found_wherever_it_is(accumulator: Accumulator, bad: int) -> None:
    """First, last and in the middle."""
    records = metrics(1000)
    add_all(accumulator, "run", records)

    requests = deliver_everything(accumulator, 1.0, lambda record: record is records[bad])

    assert requests <= 21
    assert [record.delivered for record in records].count(False) == 1
    with pytest.raises(DeliveryError, match=f"at step {bad} "):
        records[bad].wait()


def test_a_param_refused_among_good_records(accumulator: Accumulator) -> None:
    """The service's verdict falls on that param alone, with its reason."""
    records: list[AnyRecord] = [*metrics(500), Param("lr", "2"), *metrics(400), RunTag("t", "1")]
    add_all(accumulator, "run", records)

    deliver_everything(accumulator, 1.0, lambda record: record.key == "lr")

    assert accumulator.delivered == 901
    assert isinstance(records[500].place, GivenUp)
    assert "'lr'" in str(records[500].place.error)


def test_a_refused_key_travels_apart(accumulator: Accumulator) -> None:
    """What was refused once no longer spoils a batch of others, while somebody holds the run."""
    lane = accumulator.lane("run")
    for n in range(2):
        accumulator.add("run", metric("bad@key"), now=float(n * 10))
        add_all(accumulator, "run", metrics(500), now=float(n * 10))
        requests = deliver_everything(
            accumulator, n * 10 + 1.0, lambda record: record.key == "bad@key"
        )

    assert requests == 2
    assert accumulator.delivered == lane.delivered == 1000


def test_a_suspect_that_is_delivered_is_none_any_more(accumulator: Accumulator) -> None:
    """It joins the others again."""
    lane = accumulator.lane("run")
    accumulator.add("run", metric("acc"), now=0.0)
    accumulator.refuse(drain_one(accumulator, 1.0), REFUSED, 1.0)
    add_all(accumulator, "run", [metric("acc"), metric("loss")], now=2.0)

    apart = accumulator.drain(3.0, room=9)
    assert [keys(batch) for batch in apart] == [["loss"], ["acc"]]

    for batch in apart:
        accumulator.succeed(batch, 3.0)

    assert lane.suspects == {}


def test_a_bad_key_among_good_ones_is_taken_apart(accumulator: Accumulator) -> None:
    """Once it is known, the rest of the batch is not halved down to it each time."""
    add_all(accumulator, "run", [metric(("good", "bad@key")[n % 2], step=n) for n in range(1000)])

    requests = deliver_everything(accumulator, 1.0, lambda record: record.key == "bad@key")

    assert requests <= 75
    assert accumulator.delivered == 500


def test_parts_of_a_refused_batch_keep_the_limits() -> None:
    """A long tag, overwritten and so left out of the whole, is sent in a part, and counts there."""
    accumulator = Accumulator(limits=BatchLimits(body_bytes=900))
    tags = [RunTag("note", "x" * 800), RunTag("stage", "y" * 200), RunTag("note", "z")]
    add_all(accumulator, "run", [*tags, RunTag("note", "z")])
    accumulator.refuse(drain_one(accumulator, 1.0), REFUSED, 1.0)

    sizes = []
    while batches := accumulator.drain(1.0):
        sizes.append(len(batches[0].body))
        accumulator.succeed(batches[0], 1.0)

    assert len(sizes) == 3
    assert max(sizes) <= 900


def test_a_bad_key_in_a_hot_loop_costs_few_requests(accumulator: Accumulator) -> None:
    """A key that never gets through is given up a batch at a time, not a point at a time."""
    bad = metrics(5000, key="bad@key")
    add_all(accumulator, "run", bad)

    requests = deliver_everything(accumulator, 1.0, lambda record: True)

    assert requests <= 90
    assert accumulator.rejected == {"BadRequest": 5000}
    assert len(accumulator.rejections.last) == KEPT_REJECTIONS


def test_bad_values_of_a_good_key_are_told_apart(accumulator: Accumulator) -> None:
    """A key that did get through is not to blame: each of its records gets its own verdict."""
    records = metrics(1000)
    add_all(accumulator, "run", records)
    bad = {id(record) for record in records[:400] if record.step % 4}

    deliver_everything(accumulator, 1.0, lambda record: id(record) in bad)

    assert accumulator.delivered == 1000 - len(bad)
    assert all((id(record) in bad) != record.delivered for record in records)


def test_few_refusals_do_not_condemn_a_key(accumulator: Accumulator) -> None:
    """A key whose first values are bad is still looked at one by one."""
    records = metrics(ENOUGH_REFUSALS + 3)
    bad = records[: ENOUGH_REFUSALS - 1]
    add_all(accumulator, "run", records)

    deliver_everything(accumulator, 1.0, lambda record: record in bad)

    assert accumulator.delivered == 4


def test_give_up_ends_a_whole_batch(accumulator: Accumulator) -> None:
    """The run is gone: nothing has to be found out record by record."""
    records = metrics(10)
    add_all(accumulator, "run", records)

    accumulator.give_up(drain_one(accumulator, 1.0), REFUSED, 1.0)

    assert accumulator.rejected == {"BadRequest": 10}
    assert accumulator.unsettled == accumulator.cost == 0
    with pytest.raises(DeliveryError) as caught:
        records[3].wait()
    assert caught.value.step == 3
    assert caught.value.cause is REFUSED


# Too large


def test_too_large_halves_and_remembers(accumulator: Accumulator) -> None:
    """What the service took less than is the limit from then on."""
    add_all(accumulator, "run", metrics(2000))
    first, second = accumulator.drain(1.0, room=9)

    accumulator.too_large(first, TOO_LARGE, 1.0)
    halves = accumulator.drain(1.0, room=9)

    assert [len(half.records) for half in halves] == [500, 500]
    assert accumulator.limits.body_bytes == len(first.body) * 9 // 16
    accumulator.succeed(second, 1.0)
    add_all(accumulator, "run", metrics(1000), now=2.0)
    later = accumulator.drain(2.0, room=9)
    assert all(len(batch.body) <= accumulator.limits.body_bytes for batch in later)


def test_the_learned_limit_has_a_floor(accumulator: Accumulator) -> None:
    """A service that refuses small bodies as too large doesn't shrink every later request."""
    add_all(accumulator, "run", metrics(64))

    while batches := accumulator.drain(1.0):
        accumulator.too_large(batches[0], TOO_LARGE, 1.0)

    assert accumulator.limits.body_bytes == SMALLEST_BODY_LIMIT
    assert accumulator.rejected == {"PayloadTooLarge": 64}


# The end


def test_abandon_gives_everything_back_in_order() -> None:
    """What was sealed comes before what was not, and nothing is held any more."""
    accumulator = Accumulator(limits=BatchLimits(metrics=2))
    records = metrics(5)
    add_all(accumulator, "run", records)
    batch = drain_one(accumulator, 0.0)
    accumulator.wait_turn(batch, 9.0, 0.0)

    ((lane, count, left),) = abandon(accumulator)

    assert (lane.run_id, count) == ("run", 5)
    assert left == records
    assert accumulator.unsettled == accumulator.cost == 0
    assert accumulator.next_deadline() is None


def test_a_lane_shows_itself(accumulator: Accumulator) -> None:
    """A repr for whoever debugs at night."""
    add_all(accumulator, "run", metrics(1200))
    batch = drain_one(accumulator, 1.0)

    assert repr(accumulator.lane("run")) == "<Lane run | 1200 unsettled | 1 in flight>"
    assert repr(batch.span) == "<Span 0-1000 | 1000 open>"
    assert "loss" not in repr(batch)


def test_runs_share_what_they_have_none_of(accumulator: Accumulator) -> None:
    """A run with a point waiting has six containers of its own, and what is shared stays empty."""
    for number in range(3):
        run_id = f"run-{number}"
        accumulator.add(run_id, metric(), now=0.0)
        accumulator.add(run_id, RunTag("a", "b"), now=0.0)
        accumulator.add(run_id, Param("lr", "1"), now=0.0)
        spill(accumulator, accumulator.lane(run_id), 0.0, keep=1, journaled_until=2)
        accumulator.add(run_id, metric(), now=0.0)
    for lane in accumulator.lanes.values():
        reload(accumulator, lane, 1, [RunTag("a", "b")], 0.0)
    batch = drain_one(accumulator, 5.0)
    accumulator.succeed(batch, 5.0)
    batch = drain_one(accumulator, 5.0)
    accumulator.put_aside(batch, 9.0, 5.0)
    discard(accumulator, batch.lane, 6.0, AdpError("discarded"))

    assert not lane_module._NOTHING
    assert not lane_module._NO_KEYS
    assert not record_queue._NOTHING
    assert list(record_queue._NO_TEXTS.values()) == [0, 0]
    fresh = Lane("fresh", None)
    fresh.append([metric()], 0.0, with_text=False)
    shared = {id(lane_module._NOTHING), id(lane_module._NO_KEYS)}
    shared |= {id(record_queue._NOTHING), id(record_queue._NO_TEXTS)}
    slots = [getattr(fresh, name, None) for name in Lane.__slots__]
    slots += [getattr(fresh.queue, name) for name in RecordQueue.__slots__]
    own = [each for each in slots if gc.is_tracked(each) and id(each) not in shared]
    assert len(own) <= 6


def test_the_work_of_a_call_does_not_grow_with_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty thousand runs with something waiting: each is given one place in the line."""
    accumulator, put = Accumulator(), Line.put
    puts: list[Lane] = []

    def counting(self: Line, lane: Lane, ready_at: float | None) -> None:
        puts.append(lane)
        put(self, lane, ready_at)

    monkeypatch.setattr(Line, "put", counting)
    for turn in range(3):
        for first in range(0, 20_000, 500):
            batch = [metric() for _ in range(500)]
            for number, record in enumerate(batch, first):
                record.place = accumulator.lane(f"run-{number}")
            accumulator.take_in(batch, now=0.1 * turn)
            assert accumulator.next_deadline() == 1.0
    assert len(puts) == 20_000
    assert accumulator.schedule.line.length == 20_000


# One odd value costs one value


class Odd(str):
    """Text of a kind that the encoder does not take; `log_*` make it plain before."""


def test_a_record_that_cannot_be_encoded_is_given_up_alone(accumulator: Accumulator) -> None:
    """Whatever slipped in costs itself: its neighbours are sealed and sent."""
    odd = RunTag("note", Odd("x"))
    add_all(accumulator, "run", [metric(), odd, metric(step=1)])

    requests = deliver_everything(accumulator, 1.0)

    assert requests == 2
    assert accumulator.delivered == 2
    assert accumulator.rejected == {"AdpError": 1}
    assert accumulator.cost == accumulator.waiting == 0
    with pytest.raises(DeliveryError, match="cannot be written as JSON"):
        odd.wait()


def test_a_lane_of_which_all_is_refused_here_is_no_probe(accumulator: Accumulator) -> None:
    """Whether the service answers is found out with a batch, of the next run that has one."""
    lane = accumulator.lane("bad")
    add_all(accumulator, "bad", metrics(3, key="bad@key"))
    name = (Metric, "bad@key")
    lane.suspects = {name: Suspect(ENOUGH_REFUSALS, REFUSED, 1e9, 60.0)}
    accumulator.add("good", metric(), now=0.5)

    batch = accumulator.probe(5.0, healthy=True, troubled=False)

    assert batch is not None
    assert batch.run_id == "good"
    assert accumulator.rejected == {"BadRequest": 3}


def test_what_is_lost_on_disk_needs_no_journal(accumulator: Accumulator) -> None:
    """It is counted, and who waits for it hears why."""
    lane = accumulator.lane("run")
    add_all(accumulator, "run", records := metrics(5))
    spill(accumulator, lane, 0.0, keep=0, journaled_until=5)
    assert accumulator.spooled == 5

    lose(accumulator, lane, 5, BadRequest("damaged", status=400), 1.0)

    assert accumulator.spooled == accumulator.unsettled == 0
    assert accumulator.rejected == {"BadRequest": 5}
    assert all(record.done for record in records)


def test_a_lane_remembers_so_many_good_keys(accumulator: Accumulator) -> None:
    """Beyond that no key is condemned any more, since it may have been good."""
    lane = accumulator.lane("run")
    lane.prove([f"k{number}" for number in range(PROVEN_KEYS)])
    accumulator.add("run", metric("late"), now=0.0)
    accumulator.succeed(drain_one(accumulator, 1.0), 1.0)

    assert len(lane.proven) == PROVEN_KEYS
    assert "late" not in lane.proven
