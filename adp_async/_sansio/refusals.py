"""What the service's refusal of a batch means for each of its records.

The service refuses a request as a whole.  The bad records in it are found, in as few requests as
may be, and their neighbours are delivered:

- What the words of the refusal name is believed, once it has proved true (`blame`).
- Else the keys of the batch are halved, and the records of one key after that.
- A key of which ten records were refused alone and none was ever delivered is *bad*.  Of a batch
  under way a sample is looked at before the rest is given up; records that come later are refused
  here, with the last reason.  Now and then they are sent anyway, since the service may accept them
  by now.
- When many records are given up in a row for the same reason and nothing of any run is delivered
  in between, somebody other than the service may be speaking: before more are given up, the same
  request is sent again after a while.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define, field, frozen

from adp_async._sansio.blame import blamed, gist
from adp_async._sansio.lane import Suspect

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adp_async._sansio.batch import RecordBatch
    from adp_async._sansio.lane import Lane, Name
    from adp_async._sansio.records import AnyRecord
    from adp_async.errors import AdpError

#: Records of a key that must be refused alone, and none delivered, before the key is bad; keys
#: that got through, and keys that were refused, which a lane remembers.
ENOUGH_REFUSALS = 10
PROVEN_KEYS = 10_000
KEPT_SUSPECTS = 1000
#: One in so many records of a batch is a sample, when its key is bad.
SAMPLED = 40
#: Seconds until a bad key is asked about again: at once, then after one, two, ... up to a minute.
#: Where the service has named the key, it is a minute from the beginning.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
#: So many records are given up in a row for the same reason before the service is asked again,
#: then twice as many, and so on; and the longest wait before that, in seconds.
GIVEN_UP_AT_ONCE = 10
LONGEST_LOOK = 8.0


@frozen
class Part:
    """Records of a batch, by their positions, that go into a request of their own.

    *is_final*: when that is refused, all of them are given up.
    """

    positions: Sequence[int]
    is_final: bool = False


@frozen
class Ruling:
    """What becomes of the records of a refused batch, each by its position.

    With *look_again_at* nothing does yet: the same request goes again then.
    """

    given_up: Sequence[int] = ()
    parts: Sequence[Part] = ()
    look_again_at: float | None = None


@define(eq=False)
class Refusals:
    """What was refused, apparently by whom, and what follows for the next batch.

    *unit*: what the waits here are multiples of, in seconds; that of the first back-off.
    """

    unit: float = 1.0
    #: Whether the message of a refusal names the right record; None until one was checked.
    _is_believed: bool | None = field(default=None, init=False)
    _accused: AnyRecord | None = field(default=None, init=False)
    #: The reason of the last refusals, and the records given up for it in a row.
    _gist: str = field(default="", init=False)
    _given_up: int = field(default=0, init=False)
    _allowed: int = field(default=GIVEN_UP_AT_ONCE, init=False)
    _looks: int = field(default=0, init=False)

    def delivered(self, batch: RecordBatch) -> None:
        """The service took *batch*."""
        lane = batch.lane
        if self._gist:
            self._forget_gist("")
        if self._accused is batch.records[0]:
            self._is_believed, self._accused = False, None
        if lane.suspects:
            for record in batch.records:
                lane.suspects.pop((type(record), record.key), None)
        if len(lane.proven) < PROVEN_KEYS:
            lane.prove([record.key for record in batch.records])

    def _forget_gist(self, words: str) -> None:
        self._gist, self._given_up, self._allowed, self._looks = words, 0, GIVEN_UP_AT_ONCE, 0

    # When a batch is sealed

    def apart(
        self, lane: Lane, records: Sequence[AnyRecord], now: float
    ) -> tuple[list[Part], list[tuple[Sequence[int], AdpError]]]:
        """How *records* of *lane* are divided, so that refused ones don't spoil a batch of others.

        Also those that are refused here, each with the reason.
        """
        if not lane.suspects:
            return [Part(range(len(records)))], []
        parts: list[Part] = []
        refused: list[tuple[Sequence[int], AdpError]] = []
        others: list[int] = []
        is_asked = False
        for name, positions in lane.by_name(records).items():
            suspect = lane.suspects.get(name)
            if suspect is None:
                others += positions
            elif not self._is_bad(lane, name):
                parts.append(Part(positions))
            elif now >= suspect.ask_at and not is_asked:
                # One key at a time: a lane with a thousand of them asks no more often.
                is_asked = True
                suspect.ask_at = now + suspect.pause
                suspect.pause = min(LONGEST_PAUSE * self.unit, 2.0 * suspect.pause)
                parts.append(Part(positions, is_final=True))
            else:
                refused.append((positions, suspect.error))
        if others:
            parts.insert(0, Part(sorted(others)))
        return parts, refused

    def _is_bad(self, lane: Lane, name: Name) -> bool:
        suspect = lane.suspects.get(name)
        if suspect is None or suspect.refusals < ENOUGH_REFUSALS:
            return False
        return name[1] not in lane.proven and len(lane.proven) < PROVEN_KEYS

    # When it is refused

    def judge(self, batch: RecordBatch, error: AdpError, now: float) -> Ruling:
        """What *error*, the service's verdict on *batch*, means for each of its records."""
        words = gist(error)
        if words != self._gist:
            self._forget_gist(words)
        if self._accused is batch.records[0]:
            self._is_believed, self._accused = True, None
        ruling, is_for_key = self._ruling(batch, error)
        count = len(ruling.given_up)
        if self._given_up + count > self._allowed:
            self._allowed = max(2 * self._allowed, self._given_up + count)
            self._looks += 1
            wait = self.unit * min(LONGEST_LOOK, 2.0 ** (self._looks - 1))
            return Ruling(look_again_at=now + wait)
        self._given_up += count
        self._note(batch, ruling, error, now, is_for_key=is_for_key)
        return ruling

    def _ruling(self, batch: RecordBatch, error: AdpError) -> tuple[Ruling, bool | None]:
        """With it, whether a key is to blame, or a value; None when that is not known."""
        lane, records = batch.lane, batch.records
        everyone = range(len(records))
        blame = blamed(error, records) if self._is_believed is not False else None
        names = lane.by_name(records)
        is_final = batch.is_final and self._is_bad(lane, next(iter(names)))
        if len(records) == 1 or is_final:
            known = blame.is_for_key if blame and self._is_believed else None
            return Ruling(given_up=everyone), known
        if blame is not None:
            accused = [blame.position]
            if blame.is_for_key:
                record = records[blame.position]
                accused = names[type(record), record.key]
            rest = _without(everyone, accused)
            if self._is_believed:
                return Ruling(accused, [Part(rest)] if rest else []), blame.is_for_key
            if rest:
                self._accused = records[accused[0]]
                parts = [Part(accused), Part(rest)]
                # Of a repeated tag, the last value is the suspect.
                return Ruling(parts=parts[::-1] if batch.is_barrier else parts), None
        if len(names) == 1:
            return Ruling(parts=self._searched(batch, next(iter(names)))), None
        return Ruling(parts=self._divided(batch, names)), None

    def _divided(self, batch: RecordBatch, names: dict[Name, list[int]]) -> list[Part]:
        """Each suspect by itself; without suspects, the keys in two halves."""
        known = batch.lane.suspects
        suspects = [positions for name, positions in names.items() if name in known]
        others = [positions for name, positions in names.items() if name not in known]
        if suspects:
            groups = [*([others] if others else []), *([each] for each in suspects)]
        elif batch.is_barrier:
            # Params and tags of different keys keep their order, too.
            return in_halves(len(batch.records))
        else:
            middle = len(others) // 2
            groups = [others[:middle], others[middle:]]
        return [Part(sorted(at for each in group for at in each)) for group in groups]

    def _searched(self, batch: RecordBatch, name: Name) -> list[Part]:
        """Records of one key: in two halves; of a bad key some samples, and the rest."""
        count = len(batch.records)
        if self._is_bad(batch.lane, name) and count > 2:
            samples = range(0, count, max(2, min(SAMPLED, count // 2)))
            rest = _without(range(count), samples)
            return [*(Part([at]) for at in samples), Part(rest, is_final=True)]
        return in_halves(count)

    def _note(
        self,
        batch: RecordBatch,
        ruling: Ruling,
        error: AdpError,
        now: float,
        *,
        is_for_key: bool | None,
    ) -> None:
        """Remember the keys of what is given up, unless their values were to blame."""
        if is_for_key is False:
            return
        lane = batch.lane
        given_up = [batch.records[at] for at in ruling.given_up]
        for name in {(type(record), record.key) for record in given_up}:
            suspect = lane.suspects.get(name)
            if suspect is None:
                if len(lane.suspects) >= KEPT_SUSPECTS:
                    continue
                suspect = lane.suspects[name] = Suspect(0, error, now, FIRST_PAUSE * self.unit)
            suspect.error = error
            suspect.refusals += 1
            if is_for_key:
                suspect.refusals = max(suspect.refusals, ENOUGH_REFUSALS)
                suspect.pause = LONGEST_PAUSE * self.unit
                suspect.ask_at = max(suspect.ask_at, now + suspect.pause)


def in_halves(count: int) -> list[Part]:
    """Both halves of so many records."""
    return [Part(range(count // 2)), Part(range(count // 2, count))]


def _without(everyone: Sequence[int], some: Sequence[int]) -> list[int]:
    left_out = set(some)
    return [at for at in everyone if at not in left_out]
