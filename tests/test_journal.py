"""What is written down, and what comes back from it: the journal with an accumulator and a spool.

A state machine plays callers, sender, service, disk and whoever kills the process, and recovers
what is left; the service applies a request once for each retry token, as the real one does.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import ref

import hypothesis.strategies as st
import pytest
from attrs import define, field
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from adp_async._io.spool import Spool
from adp_async._io.spool_file import Identity, SpoolError
from adp_async._sansio import spilling
from adp_async._sansio.accumulator import SEALED_AHEAD, Accumulator
from adp_async._sansio.events import Settled
from adp_async._sansio.journal import CHUNK, Journal
from adp_async._sansio.records import BatchLimits, Metric, Param, RunTag
from adp_async._sansio.spilling import lose, reload, restore
from adp_async.errors import BadRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adp_async._sansio.batch import RecordBatch
    from adp_async._sansio.journal import Changes
    from adp_async._sansio.lane import Lane
    from adp_async._sansio.records import AnyRecord

LIMITS = BatchLimits(metrics=6, params=6, tags=6, entities=6, body_bytes=600)
HERE = Identity("http://localhost", "ocid1.platform", "workspace")


@define(eq=False)
class Bench:
    """An accumulator with its journal, and tokens that count up."""

    limits: BatchLimits = field(factory=BatchLimits)
    _journal: Journal = field(factory=Journal)
    accumulator: Accumulator = field(init=False)
    tokens: Iterator[int] = field(factory=lambda: iter(range(10**9)))

    def __attrs_post_init__(self) -> None:
        self.accumulator = Accumulator(
            linger=0.0,
            limits=self.limits,
            tokens=(f"token-{number}" for number in self.tokens),
        )
        self.accumulator.seals_ahead = True

    @property
    def journal(self) -> Journal:
        """It knows all that has happened."""
        for event in self.accumulator.take_events():
            self._journal.note(event)
        return self._journal

    def log(self, *records: AnyRecord, run_id: str = "run") -> Lane:
        lane = self.accumulator.lane(run_id)
        for record in records:
            record.place = lane
        self.accumulator.take_in(records, 0.0)
        return lane

    def commit(self) -> Changes:
        changes = self.journal.collect()
        self.journal.committed(changes)
        return changes


@pytest.fixture
def bench() -> Bench:
    return Bench()


def metrics(count: int, first: int = 0) -> list[Metric]:
    return [Metric("loss", float(step), 1000, step) for step in range(first, first + count)]


def spans(changes: Changes) -> list[tuple[int, int]]:
    return [(chunk.first, chunk.last) for chunk in changes.chunks]


# What a commit holds


def test_what_waits_is_written_once(bench: Bench) -> None:
    """One commit has it, in pieces of a row each, and the next has nothing more to say."""
    bench.log(*metrics(CHUNK + 10))

    assert spans(bench.commit()) == [(0, CHUNK), (CHUNK, CHUNK + 10)]
    assert not bench.commit()


def test_small_helpings_make_one_row(bench: Bench) -> None:
    """Records that came one by one are written together."""
    for record in metrics(50):
        bench.log(record)

    assert spans(bench.commit()) == [(0, 50)]


def test_delivered_before_its_turn_is_never_written(bench: Bench) -> None:
    """Neither rows, nor a token, nor where it ended; and nothing is remembered of it."""
    lane = bench.log(*metrics(10))
    (batch,) = bench.accumulator.drain(0.0)
    bench.accumulator.succeed(batch, 0.0)

    assert not bench.commit()
    assert lane not in bench.journal.journaled_until


def test_delivered_out_of_turn_before_it_was_written(bench: Bench) -> None:
    """The second of two batches is delivered: the rows leave its records out."""
    bench.log(*metrics(2000))
    _first, second = bench.accumulator.drain(0.0, room=2)
    bench.accumulator.succeed(second, 0.0)
    bench.log(*metrics(5))

    assert spans(bench.commit()) == [(0, 1000), (2000, 2005)]


def test_a_batch_under_way_is_written_with_its_token(bench: Bench) -> None:
    """Its records and its token come in one commit."""
    bench.log(*metrics(10))
    (batch,) = bench.accumulator.drain(0.0)
    changes = bench.commit()

    assert spans(changes) == [(0, 10)]
    assert [each.retry_token for each in changes.sealed] == [batch.retry_token]


def test_a_batch_of_written_records_concerns_the_journal(bench: Bench) -> None:
    """Its token has to be there before it leaves; afterwards there is nothing more to write."""
    bench.log(*metrics(10))
    bench.commit()
    (batch,) = bench.accumulator.drain(0.0)

    assert bench.journal.concerns(batch)
    changes = bench.journal.collect_for(batch)
    assert [each.retry_token for each in changes.sealed] == [batch.retry_token]
    bench.journal.committed(changes)
    assert not bench.journal.collect_for(batch)


def test_one_commit_has_the_tokens_of_the_next_batches_too(bench: Bench) -> None:
    """While batches get through, full ones are sealed a few at a time; later ones wait for none."""
    bench.log(*metrics(1000 * (SEALED_AHEAD + 2)))
    (first,) = bench.accumulator.drain(0.0)
    bench.accumulator.succeed(first, 0.0)
    bench.commit()
    batches = bench.accumulator.drain(0.0, room=SEALED_AHEAD)
    changes = bench.journal.collect_for(batches[0])
    bench.journal.committed(changes)

    tokens = [batch.retry_token for batch in batches]
    assert [each.retry_token for each in changes.sealed] == tokens
    firsts = [batch.ranges[0][0] for batch in batches]
    assert firsts == [1000 * n for n in range(1, SEALED_AHEAD + 1)]
    assert not any(bench.journal.collect_for(batch) for batch in batches[1:])


def test_what_was_handed_over_is_written_with_its_token(bench: Bench) -> None:
    """In one commit, before any of it leaves; a failed one keeps both together."""
    lane = bench.log(*metrics(5))
    bench.journal.pledge(lane, "theirs")
    other = bench.log(*metrics(3), run_id="other")
    (batch, _) = bench.accumulator.drain(0.0, room=2)
    assert batch.lane is lane
    assert bench.journal.concerns(batch)

    changes = bench.journal.collect_for(batch)
    assert (spans(changes), changes.taken) == ([(0, 5), (0, 3)], ["theirs"])
    assert not changes.is_due
    bench.journal.failed(changes)
    assert bench.journal.is_dirty
    assert bench.journal.concerns(batch)

    changes = bench.journal.collect()
    assert (spans(changes), changes.taken) == ([(0, 5), (0, 3)], ["theirs"])
    bench.journal.committed(changes)
    assert not bench.journal.is_dirty
    assert other is not lane


def test_a_batch_of_another_run_leaves_what_was_handed_over_alone(bench: Bench) -> None:
    """Its commit takes its own records; the token stays with those that came under it."""
    lane = bench.log(*metrics(5), run_id="theirs")
    bench.journal.pledge(lane, "theirs")
    mine = bench.log(*metrics(3))
    batches = bench.accumulator.drain(0.0, room=2)
    (batch,) = [each for each in batches if each.lane is mine]

    changes = bench.journal.collect_for(batch)
    assert changes.taken == []
    changes = bench.journal.collect()
    assert changes.taken == ["theirs"]
    assert (0, 5) in spans(changes)


def test_a_token_whose_records_are_settled_is_written_as_well(bench: Bench) -> None:
    """While the disk was full they were delivered from memory: their worker may still ask."""
    lane = bench.log(*metrics(2))
    bench.journal.pledge(lane, "theirs")
    bench.journal.failed(bench.journal.collect())
    (batch,) = bench.accumulator.drain(0.0)
    bench.accumulator.succeed(batch, 0.0)
    bench.journal.prune()

    changes = bench.journal.collect()
    assert changes
    assert (changes.chunks, changes.taken) == ([], ["theirs"])


@pytest.mark.parametrize("first", [0, 1], ids=["first", "second"])
def test_parts_of_a_refused_batch_leave_with_their_tokens(bench: Bench, first: int) -> None:
    """Whichever of them leaves first, the tokens of both replace that of the whole."""
    bench.log(*metrics(10))
    bench.commit()
    (whole,) = bench.accumulator.drain(0.0)
    bench.commit()
    bench.accumulator.refuse(whole, BadRequest("bad", status=400), 0.0)
    parts = [bench.accumulator.drain(0.0)[0] for _ in range(2)]
    assert bench.journal.concerns(parts[first])

    changes = bench.journal.collect_for(parts[first])

    assert [(each.ranges, each.retry_token) for each in changes.sealed] == [
        (((0, 5),), parts[0].retry_token),
        (((5, 10),), parts[1].retry_token),
    ]


def test_parts_of_a_batch_whose_records_could_not_be_written(bench: Bench) -> None:
    """The token of the whole may be on disk without them: those of all parts replace it."""
    bench.log(*metrics(5))
    bench.commit()
    bench.log(*metrics(5, 5))
    (whole,) = bench.accumulator.drain(0.0)
    bench.journal.failed(bench.journal.collect_for(whole))  # beyond ``spool_limit``
    bench.accumulator.refuse(whole, BadRequest("bad", status=400), 0.0)
    parts = [bench.accumulator.drain(0.0)[0] for _ in range(2)]

    changes = bench.journal.collect_for(parts[1])

    written = {each.retry_token for each in changes.sealed}
    assert written >= {part.retry_token for part in parts}


def test_a_renewed_token_is_written_before_its_batch_leaves(bench: Bench) -> None:
    """The one on disk is spent: after a kill it would be refused once more, or worse, believed."""
    bench.log(*metrics(10))
    bench.commit()
    (spent,) = bench.accumulator.drain(0.0)
    bench.commit()
    bench.accumulator.renew(spent, 0.0)
    (renewed,) = bench.accumulator.drain(0.0)
    assert bench.journal.concerns(renewed)

    (written,) = bench.journal.collect_for(renewed).sealed

    assert written.retry_token == renewed.retry_token != spent.retry_token


def test_nothing_is_sealed_ahead_while_the_service_is_down(bench: Bench) -> None:
    """What is sealed could not be let go of when memory runs short."""
    lane = bench.log(*metrics(10_000))
    (first,) = bench.accumulator.drain(0.0)
    bench.accumulator.succeed(first, 0.0)
    (second,) = bench.accumulator.drain(0.0)
    assert len(lane.sealed) == SEALED_AHEAD - 1
    for now in range(SEALED_AHEAD + 1):
        bench.accumulator.back_off(second, now + 1.0, now)
        (second,) = bench.accumulator.drain(now + 1.0)

    other = bench.log(*metrics(10_000), run_id="other")
    (_third,) = bench.accumulator.drain(10.0)
    assert not other.sealed


def test_a_batch_of_unwritten_records_leaves_without_the_disk(bench: Bench) -> None:
    """What is fast enough never touches it."""
    bench.log(*metrics(10))
    (batch,) = bench.accumulator.drain(0.0)

    assert not bench.journal.concerns(batch)


def test_only_what_shares_the_batch_is_written_with_it(bench: Bench) -> None:
    """A batch half of which is on disk takes its other half along, not everything that waits."""
    bench.log(*metrics(600))
    bench.commit()
    bench.log(*metrics(900, 600))
    (batch,) = bench.accumulator.drain(0.0)
    changes = bench.journal.collect_for(batch)
    bench.journal.committed(changes)

    assert spans(changes) == [(600, 1000)]
    assert spans(bench.commit()) == [(1000, 1500)]


def test_a_tag_leaves_after_what_it_overwrites_was_settled(bench: Bench) -> None:
    """Otherwise a kill would bring the old one back from the disk."""
    bench.log(RunTag("state", "old"))
    bench.commit()
    (old,) = bench.accumulator.drain(0.0)
    bench.journal.committed(bench.journal.collect_for(old))
    bench.accumulator.succeed(old, 0.0)
    bench.log(RunTag("state", "new"))
    (new,) = bench.accumulator.drain(0.0)

    assert bench.journal.concerns(new)
    (settled,) = bench.journal.collect_for(new).settled
    assert settled.until == 1


def test_settled_out_of_turn_is_noted_as_a_span(bench: Bench) -> None:
    """The second batch is done while the first still flies; then all before the end is."""
    bench.log(*metrics(3000))
    bench.commit()
    first, second = bench.accumulator.drain(0.0, room=2)
    bench.accumulator.succeed(second, 0.0)
    (settled,) = bench.commit().settled
    assert (settled.until, settled.done) == (0, ((1000, 2000),))

    bench.accumulator.succeed(first, 0.0)
    (settled,) = bench.commit().settled
    assert (settled.until, settled.done) == (2000, ())


def test_a_failed_commit_keeps_its_notes(bench: Bench) -> None:
    """What could not be written is written by the next one, but for what ended meanwhile."""
    bench.log(*metrics(1500))
    (batch,) = bench.accumulator.drain(0.0)
    bench.journal.failed(bench.journal.collect())
    bench.accumulator.succeed(batch, 0.0)
    bench.log(*metrics(5, 1500))

    assert spans(bench.commit()) == [(1000, 1505)]
    assert not bench.commit().chunks


def test_a_half_failed_commit_keeps_the_other_half(bench: Bench) -> None:
    """A full disk takes what frees space; that is not written a second time."""
    bench.log(*metrics(1000))
    bench.commit()
    (batch,) = bench.accumulator.drain(0.0)
    bench.accumulator.succeed(batch, 0.0)
    bench.log(*metrics(10, 1000))
    changes = bench.journal.collect()
    changes.is_settled = True
    bench.journal.failed(changes)

    again = bench.commit()
    assert (len(again.settled), spans(again)) == (0, [(1000, 1010)])


def test_a_failed_commit_keeps_what_was_refused(bench: Bench) -> None:
    """A person sees it when the disk works again, once."""
    bench.log(*metrics(1))
    (batch,) = bench.accumulator.drain(0.0)
    bench.accumulator.refuse(batch, BadRequest("no", status=400), 0.0)
    bench.journal.failed(bench.journal.collect())

    (refused,) = bench.commit().refused
    assert refused.rejection.key == "loss"
    assert not bench.journal.collect()


def test_notes_of_what_was_delivered_are_forgotten(bench: Bench) -> None:
    """To the last record: there is nothing left that waits for the disk."""
    bench.log(*metrics(10))
    bench.log(*metrics(10, 10))
    bench.journal.failed(bench.journal.collect())
    assert bench.journal.has_unwritten

    deliver_all(bench)
    bench.journal.prune()

    assert not bench.journal.has_unwritten


def test_a_lane_that_is_lost_altogether_is_forgotten(bench: Bench) -> None:
    """Nothing of it is on disk, and the journal holds on to no lane without records."""
    lane = bench.log(*metrics(10))
    bench.commit()
    spill(bench, lane)
    lose(bench.accumulator, lane, 10, SpoolError("damaged"), 0.0)

    assert [(each.first, each.last) for each in bench.commit().unreadable] == [(0, 10)]
    assert lane not in bench.journal.journaled_until


def test_settled_while_the_commit_is_under_way(bench: Bench) -> None:
    """The rows are on disk the moment they are no longer needed: the next commit says so."""
    lane = bench.log(*metrics(10))
    (batch,) = bench.accumulator.drain(0.0)
    changes = bench.journal.collect()
    bench.accumulator.succeed(batch, 0.0)
    bench.journal.committed(changes)

    (settled,) = bench.commit().settled
    assert settled.until == 10
    assert lane not in bench.journal.journaled_until


def test_a_restored_lane_keeps_what_was_settled_out_of_turn(bench: Bench) -> None:
    """A second kill must not bring back what the first process had delivered."""
    restore(bench.accumulator, "run", [(0, 1000), (2000, 3000)], [], 3000)
    bench.journal.restored(lane := bench.accumulator.lane("run"))
    reload(bench.accumulator, lane, 0, metrics(1000), 0.0)
    (batch,) = bench.accumulator.drain(0.0)
    bench.accumulator.refuse(batch, BadRequest("no", status=400), 0.0)  # split in two
    halves = bench.accumulator.drain(0.0, room=2)
    bench.accumulator.succeed(halves[0], 0.0)
    bench.journal.note(Settled(lane, (), batch.span))

    (settled,) = bench.commit().settled
    assert (settled.until, settled.done) == (0, ((1000, 2000),))


def test_a_restored_lane_is_not_settled_beyond_what_is_on_disk(bench: Bench) -> None:
    """A batch that was under way is delivered before the rest has been read: that stays there."""
    restore(bench.accumulator, "run", [(10, 100)], [([(0, 10)], "token", metrics(10))], 100)
    bench.journal.restored(bench.accumulator.lanes["run"])
    (batch,) = bench.accumulator.drain(0.0)
    bench.accumulator.succeed(batch, 0.0)

    (settled,) = bench.commit().settled
    assert (settled.until, settled.done) == (10, ())


def test_a_forgotten_lane_and_its_successor_share_no_number(bench: Bench) -> None:
    """What the journal still says of the old one must not meet the records of the new one."""
    other = bench.log(*metrics(3), run_id="other")
    (slow,) = bench.accumulator.drain(0.0)
    was = ref(bench.log(*metrics(10)))
    bench.commit()
    (batch,) = bench.accumulator.drain(0.0)
    for each in (batch, slow):
        bench.accumulator.succeed(each, 0.0)
    del other, slow, batch, each
    bench.commit()
    assert bench.accumulator.next_deadline() is None
    assert was() is None, "nobody holds it, not even the line"
    successor = bench.log(*metrics(3))

    assert spans(bench.commit()) == [(10, 13)]
    assert successor.settled_until == 10


def test_a_forgotten_lane_that_somebody_holds_stays_the_one_of_its_run(bench: Bench) -> None:
    """Two lanes of one run would know nothing of each other's order."""
    lane = bench.log(*metrics(1))
    (batch,) = bench.accumulator.drain(0.0)
    bench.accumulator.succeed(batch, 0.0)

    assert bench.accumulator.lane("run") is lane


# What is on disk only


def spill(bench: Bench, lane: Lane, keep: int = 0) -> int:
    until = bench.journal.journaled_until.get(lane, 0)
    return spilling.spill(bench.accumulator, lane, 0.0, keep=keep, journaled_until=until)


def test_what_is_spilled_takes_no_memory(bench: Bench) -> None:
    """Nobody holds on to the records: the cost goes, and they do."""
    lane = bench.log(*metrics(5000))
    bench.commit()

    assert spill(bench, lane, keep=1000) == 4000
    assert bench.accumulator.cost == 1000 * 160
    assert (bench.accumulator.spooled, len(lane.queue), len(lane.held)) == (4000, 1000, 0)


def test_only_what_is_on_disk_is_spilled(bench: Bench) -> None:
    """What came since waits behind it, and is spilled when it is written too."""
    lane = bench.log(*metrics(2000))
    bench.commit()
    bench.log(*metrics(500, 2000))

    assert spill(bench, lane) == 2000
    assert (lane.spooled, len(lane.tail)) == (2000, 500)
    bench.commit()
    assert spill(bench, lane) == 500
    assert (lane.spooled, len(lane.tail)) == (2500, 0)


def test_a_receipt_survives_being_spilled(bench: Bench) -> None:
    """Whoever holds a receipt learns of the end of the very record."""
    records = metrics(3000)
    receipts = {2500: records[2500], 2999: records[2999]}
    lane = bench.log(*records)
    del records
    bench.commit()
    spill(bench, lane, keep=1000)
    assert sorted(lane.held) == [2500, 2999]

    read_back(bench, lane, [None] * 3000)
    deliver_all(bench)
    assert all(receipt.delivered for receipt in receipts.values())


def test_a_lane_that_is_on_disk_only_has_nothing_to_hand_out(bench: Bench) -> None:
    """Though its records have lingered: an empty request would leave, as a barrier besides."""
    lane = bench.log(*metrics(5))
    bench.commit()
    spill(bench, lane, keep=0)
    assert (bench.accumulator.next_deadline(), bench.accumulator.drain(0.0)) == (None, [])


def read_back(bench: Bench, lane: Lane, log: list[Any]) -> None:
    wanted = lane.next_spilled(bench.accumulator.limits)
    if wanted is not None:
        first, last = wanted
        reload(bench.accumulator, lane, first, metrics(last - first, first), 0.0)


def deliver_all(bench: Bench) -> list[AnyRecord]:
    delivered: list[AnyRecord] = []
    for _ in range(100):
        for batch in bench.accumulator.drain(0.0):
            delivered += batch.records
            bench.accumulator.succeed(batch, 0.0)
        for lane in bench.accumulator.lanes.values():
            read_back(bench, lane, [])
    return delivered


def test_order_is_kept_across_the_disk(bench: Bench) -> None:
    """Spilled, come since, read back in helpings: the numbers leave in their order."""
    lane = bench.log(*metrics(25_000))
    bench.commit()
    spill(bench, lane, keep=300)
    bench.log(*metrics(700, 25_000))

    steps = [record.step for record in deliver_all(bench)]  # type: ignore[union-attr]
    assert (len(steps), steps == list(range(25_700))) == (25_700, True)
    assert lane.is_idle
    assert lane.settled_until == lane.next_seq == 25_700


def test_text_records_are_counted_across_the_disk(bench: Bench) -> None:
    """Params and tags that leave the queue for the disk leave its counts, and come back to them."""
    records = [Param(f"p{number}", "v" * 100) for number in range(250)]
    lane = bench.log(*records)
    bench.commit()
    spill(bench, lane, keep=50)
    assert (lane.queue.text_counts[Param], len(lane.queue.text_seqs)) == (50, 50)

    first, last = lane.next_spilled(bench.accumulator.limits) or (0, 0)
    assert (first, last) == (50, 250)
    reload(bench.accumulator, lane, first, list(records[first:last]), 0.0)
    assert (lane.queue.text_counts[Param], len(lane.queue.text_seqs)) == (250, 250)
    sizes = []
    while batches := bench.accumulator.drain(0.0):
        sizes.append(len(batches[0].records))
        bench.accumulator.succeed(batches[0], 0.0)
    assert sizes == [100, 100, 50]
    assert (lane.queue.text_counts[Param], lane.queue.text_cost, bench.accumulator.cost) == (
        0,
        0,
        0,
    )


def test_text_records_that_are_not_on_disk_yet_are_counted_once(bench: Bench) -> None:
    """They stay in memory behind the hole, and are counted when they have their turn again."""
    lane = bench.log(*metrics(10))
    bench.commit()
    bench.log(*(RunTag(f"t{number}", "v" * 100) for number in range(30)))
    spill(bench, lane)
    assert (lane.queue.text_counts[RunTag], lane.queue.text_cost, len(lane.tail)) == (0, 0, 30)

    assert len(deliver_all(bench)) == 40
    assert (lane.queue.text_counts[RunTag], lane.queue.text_cost, bench.accumulator.cost) == (
        0,
        0,
        0,
    )


def test_what_is_spilled_twice_has_its_place_once(bench: Bench) -> None:
    """Of what came since only as much goes to the disk as has been written there."""
    lane = bench.log(*metrics(20))
    bench.commit()
    spill(bench, lane)
    bench.log(*metrics(10, 20))
    bench.commit()
    bench.log(*metrics(5, 30))
    assert spill(bench, lane) == 10
    assert (lane.spooled, len(lane.tail), lane.unsettled) == (30, 5, 35)

    steps = [record.step for record in deliver_all(bench)]  # type: ignore[union-attr]
    assert steps == list(range(35))


def test_a_suspect_read_back_travels_apart(bench: Bench) -> None:
    """A key that was refused before spoils no batch, wherever its record has been."""
    lane = bench.log(Metric("bad", 0.0, 1, 0))
    (batch,) = bench.accumulator.drain(0.0)
    bench.accumulator.refuse(batch, BadRequest("no", status=400), 0.0)
    bench.log(Metric("loss", 1.0, 1, 1), Metric("bad", 2.0, 1, 2))
    bench.commit()
    spill(bench, lane)
    first, _ = lane.next_spilled(bench.accumulator.limits) or (0, 0)
    back: list[AnyRecord] = [Metric("loss", 1.0, 1, 1), Metric("bad", 2.0, 1, 2)]
    reload(bench.accumulator, lane, first, back, 0.0)

    keys = [[record.key for record in batch.records] for batch in bench.accumulator.drain(0.0, 4)]
    assert keys == [["loss"], ["bad"]]


def test_ranges_with_a_hole_between_them_leave_all_the_same(bench: Bench) -> None:
    """A few records, then some that are done, then more: nobody waits for the hole to fill."""
    restore(bench.accumulator, "run", [(0, 10), (20, 30)], [], 40)
    bench.journal.restored(bench.accumulator.lane("run"))

    steps = [record.step for record in deliver_all(bench)]  # type: ignore[union-attr]
    assert steps == [*range(10), *range(20, 30)]


def test_what_cannot_be_read_is_rejected_and_put_aside(bench: Bench) -> None:
    """The rest of the lane goes on, a receipt hears of it, and its rows are not settled away."""
    records = metrics(3000)
    receipt = records[1500]
    lane = bench.log(*records)
    del records
    bench.commit()
    spill(bench, lane)
    bench.log(*metrics(10, 3000))
    reload(bench.accumulator, lane, 0, metrics(1000), 0.0)
    (batch,) = bench.accumulator.drain(0.0)
    lose(bench.accumulator, lane, 2000, SpoolError("damaged"), 0.0)
    bench.accumulator.succeed(batch, 0.0)

    assert receipt.done
    assert not receipt.delivered
    assert len(deliver_all(bench)) == 1010
    assert lane.is_idle
    assert lane.settled_until == 3010
    assert bench.accumulator.rejected == {"SpoolError": 1000}
    (lost,) = bench.commit().unreadable
    assert (lost.first, lost.last) == (1000, 2000)


# Whatever happens


class Killed(Exception):
    """The process is no more."""


@define(eq=False)
class Service:
    """Applies a request once for each retry token; refuses what holds a bad record."""

    bodies: dict[str, bytes] = field(factory=dict)
    applied: Counter[int] = field(factory=Counter)
    tags: dict[str, list[int]] = field(factory=dict)

    def post(self, batch: RecordBatch) -> bool:
        body = self.bodies.setdefault(batch.retry_token, batch.body)
        assert body == batch.body, "the same token comes with the same request"
        content = json.loads(body)
        if any(metric["key"] == "bad" for metric in content.get("metrics", ())):
            return False
        if not self.has(batch):
            self.applied.update(number for number in numbers(content))
            tags = [int(tag["value"]) for tag in content.get("tags", ())]
            self.tags.setdefault(batch.run_id, []).extend(tags)
            self.done.add(batch.retry_token)
        return True

    done: set[str] = field(factory=set)

    def has(self, batch: RecordBatch) -> bool:
        return batch.retry_token in self.done


def numbers(content: dict[str, Any]) -> list[int]:
    return [
        *(metric["step"] for metric in content.get("metrics", ())),
        *(int(param["key"]) for param in content.get("params", ())),
        *(int(tag["value"]) for tag in content.get("tags", ())),
    ]


def number_of(record: AnyRecord) -> int:
    if type(record) is Metric:
        return record.step
    return int(record.key if type(record) is Param else record.value)  # type: ignore[union-attr]


class SpoolMachine(RuleBasedStateMachine):
    """One process after the other logs, delivers, spills and is killed; the next one recovers."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="spool-machine-"))
        self.service = Service()
        self.next_number = 0
        #: Every record that was accepted, and those that a commit has put on disk.
        self.accepted: set[int] = set()
        self.journaled: set[int] = set()
        #: Those that the service refuses.
        self.bad: set[int] = set()
        self.now = 0.0
        self.superseded: set[int] = set()
        self.tokens = iter(range(10**9))
        self.steps_since_kill = 0
        self.is_recovering = False
        self.start(Spool.create(self.folder, HERE, limit=2**30))

    def start(self, spool: Spool) -> None:
        self.spool = spool
        self.bench = Bench(limits=LIMITS, tokens=self.tokens)
        self.flying: list[RecordBatch] = []
        self.under_way: Changes | None = None

    def teardown(self) -> None:
        try:
            self.kill(applied=1)
            self.finish()
        finally:
            self.spool.release()
            shutil.rmtree(self.folder)

    # What callers do

    @precondition(lambda self: not self.is_recovering)
    @rule(
        run_id=st.sampled_from("ab"),
        kinds=st.lists(st.sampled_from("mmmmmmmmbpt"), min_size=1, max_size=15),
    )
    def log(self, run_id: str, kinds: list[str]) -> None:
        records = [self.record(kind) for kind in kinds]
        self.bench.log(*records, run_id=run_id)

    @precondition(lambda self: not self.is_recovering)
    @rule(count=st.integers(1, 20), is_sent=st.booleans())
    def log_and_commit(self, count: int, is_sent: bool) -> None:
        self.log("a", ["m"] * count)
        self.commit(is_disk_full=False)
        if is_sent:
            self.depart(2)

    def record(self, kind: str) -> AnyRecord:
        number = self.next_number
        self.next_number += 1
        self.accepted.add(number)
        match kind:
            case "p":
                return Param(str(number), "v" * 30)
            case "t":
                return RunTag("state", str(number))
            case "b":
                self.bad.add(number)
                return Metric("bad", 0.5, 1, number)
            case _:
                return Metric("loss", 0.5, 1, number)

    # What the sender does

    @rule(room=st.integers(1, 3))
    def depart(self, room: int) -> None:
        for batch in self.bench.accumulator.drain(self.now, room):
            self.leave(batch)
            self.flying.append(batch)

    def leave(self, batch: RecordBatch) -> None:
        assert batch.records
        self.book()
        if self.bench.journal.concerns(batch):
            changes = self.bench.journal.collect_for(batch)
            self.write(changes)
            self.bench.journal.committed(changes)
        tags = [number_of(record) for record in batch.records if type(record) is RunTag]
        self.superseded.update(tags[:-1])  # one request carries only the last of them

    @precondition(lambda self: self.flying)
    @rule(index=st.integers(0, 9), is_heard=st.booleans(), arrives=st.booleans())
    def end(self, index: int, is_heard: bool, arrives: bool) -> None:
        batch = self.flying.pop(index % len(self.flying))
        self.answer(batch, is_heard=is_heard, arrives=arrives)

    def answer(self, batch: RecordBatch, *, is_heard: bool, arrives: bool) -> None:
        accumulator = self.bench.accumulator
        if not arrives:
            accumulator.wait_turn(batch, self.now, self.now)
            return
        is_good = self.service.post(batch)
        if not is_heard:
            accumulator.wait_turn(batch, self.now, self.now)
        elif is_good:
            accumulator.succeed(batch, self.now)
        else:
            accumulator.refuse(batch, BadRequest("bad", status=400), self.now)

    # What the keeper does

    @rule(is_disk_full=st.booleans())
    def commit(self, is_disk_full: bool) -> None:
        self.book()
        changes = self.bench.journal.collect()
        if is_disk_full:
            self.bench.journal.failed(changes)
            return
        self.write(changes)
        self.bench.journal.committed(changes)

    @rule()
    def begin_commit(self) -> None:
        """It is written, and its end is taken note of some time later."""
        self.book()
        self.under_way = self.bench.journal.collect()
        self.write(self.under_way)

    @rule()
    def book(self) -> None:
        if self.under_way is not None:
            self.bench.journal.committed(self.under_way)
            self.under_way = None

    def write(self, changes: Changes) -> None:
        self.spool.commit(changes)
        for chunk in changes.chunks:
            self.journaled.update(map(number_of, chunk.records))

    @rule(run_id=st.sampled_from("ab"), keep=st.sampled_from((0, 6)))
    def spill(self, run_id: str, keep: int) -> None:
        lane = self.bench.accumulator.lanes.get(run_id)
        if lane is not None:
            spill(self.bench, lane, keep)

    @rule(most=st.integers(1, 20))
    def read_back(self, most: int) -> None:
        accumulator = self.bench.accumulator
        for lane in accumulator.lanes.values():
            wanted = lane.next_spilled(accumulator.limits)
            if wanted is not None:
                first, last = wanted
                records = self.spool.load(lane.run_id, first, min(last, first + most))
                reload(accumulator, lane, first, records, self.now)

    # What happens to the process

    @precondition(lambda self: self.journaled and self.steps_since_kill > 3)
    @rule(applied=st.integers(0, 7), commit=st.sampled_from(("none", "lost", "unheard")))
    def kill_at(self, applied: int, commit: str) -> None:
        """Killed in the middle of things: a commit, requests of which some arrive."""
        if commit != "none":
            changes = self.bench.journal.collect()
            if commit == "unheard":
                self.write(changes)
        self.kill(applied)

    def kill(self, applied: int) -> None:
        for position, batch in enumerate(self.flying):
            if applied >> position & 1:
                self.service.post(batch)
        self.spool.release()
        self.steps_since_kill = 0
        spool = Spool.open(self.spool.path, limit=2**30)
        self.start(spool)
        for piece in spool.pieces():
            accumulator = self.bench.accumulator
            restore(accumulator, piece.run_id, piece.spilled, piece.sealed, piece.last)
        for lane in self.bench.accumulator.lanes.values():
            self.bench.journal.restored(lane)
        self.is_recovering = True

    @precondition(lambda self: self.is_recovering and self.steps_since_kill > 3)
    @rule()
    def finish(self) -> None:
        """All is delivered; then another process begins."""
        accumulator = self.bench.accumulator
        for _ in range(2000):
            self.now += 60.0
            self.read_back(10_000)
            self.depart(3)
            while self.flying:
                self.answer(self.flying.pop(0), is_heard=True, arrives=True)
            if not accumulator.unsettled:
                break
        assert not accumulator.unsettled
        self.commit(is_disk_full=False)
        left = self.spool.contents()
        assert left.records == 0
        rejected = {number_of(each.record) for each in left.rejected}
        assert rejected <= self.bad
        missing = self.journaled - set(self.service.applied) - rejected - self.superseded
        assert not missing, "what was journaled arrived, or is shown as rejected"
        self.is_recovering = False
        self.bad.clear()
        self.journaled.clear()
        self.spool.discard()
        self.start(Spool.create(self.folder, HERE, limit=2**30))

    @invariant()
    def time_passes(self) -> None:
        self.steps_since_kill += 1

    @invariant()
    def nothing_arrives_twice(self) -> None:
        doubles = {number for number, count in self.service.applied.items() if count > 1}
        assert not doubles

    @invariant()
    def tags_never_go_back(self) -> None:
        for tags in self.service.tags.values():
            assert tags == sorted(tags)

    @invariant()
    def what_is_known_of_the_lanes_agrees(self) -> None:
        accumulator = self.bench.accumulator
        lanes = accumulator.lanes.values()
        assert sum(lane.unsettled for lane in lanes) == accumulator.unsettled
        assert sum(lane.spooled for lane in lanes) == accumulator.spooled
        for lane in lanes:
            open_count = sum(b - a for a, b in lane.unsettled_within(0, lane.next_seq))
            assert open_count >= lane.unsettled, "a span is open until its last record is settled"


TestSpoolMachine = SpoolMachine.TestCase
TestSpoolMachine.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
