"""``log_*`` of one run: what happens at the call, before anything waits or is sent.

A call validates, coerces and stamps its records and leaves them in the inbox of the `Intake`, where
threads meet; `deque.append` is atomic, so the way in takes no lock.
"""

from __future__ import annotations

import time
from functools import partial
from itertools import starmap
from time import time_ns
from typing import TYPE_CHECKING, Any, Final, Self

from adp_async._io.lifetime import Why
from adp_async._sansio.outward import outward
from adp_async._sansio.records import SMALL_STEP, Metric, Param, Record, RunTag
from adp_async._sansio.texts import counted
from adp_async._sansio.values import (
    pairs_of,
    valid_int64,
    valid_key,
    valid_run_id,
    valid_text,
    valid_value,
)
from adp_async.errors import InvalidRecord

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from adp_async._io.intake import Intake
    from adp_async._sansio.records import AnyRecord, Kind
    from adp_async._sansio.values import Metrics, MetricValue, Texts, WholeNumber

_FLOATS: Final = {float}
#: In milliseconds, of a timestamp that needs no closer look.
_FAR_FUTURE: Final = 2**62

Receipt = Record


class Receipts(tuple[Record, ...]):
    """The receipts of several records of one call; waiting for it waits for all of them."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, None]:
        for receipt in self:
            yield from receipt.__await__()

    def wait(self, timeout: float | None = None) -> None:
        """Block this thread until the service has all of them.  See `Receipt.wait`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        for receipt in self:
            receipt.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))

    @property
    def delivered(self) -> bool:
        """Whether the service has all of them by now."""
        return all(receipt.delivered for receipt in self)

    @property
    def done(self) -> bool:
        """Whether all of them are settled: delivered or given up."""
        return all(receipt.done for receipt in self)

    def __repr__(self) -> str:
        done = sum(receipt.done for receipt in self)
        return f"<Receipts {counted(len(self), 'record')} | {done} done>"


class RunWriter:
    """``log_*`` of one run: plain calls from any thread, O(1), never a wait for the network."""

    def __init__(self, run_id: str, intake: Intake) -> None:
        #: What the run is called here, which is its id unless it started offline.
        self._run_id = valid_run_id(run_id)
        self._intake = intake
        self._lane = intake.lane(self._run_id)
        self._inbox = intake.inbox
        self._known = intake.known_keys

    @property
    def run_id(self) -> str:
        """The run's id; None for a run that started offline, until the service has named it."""
        lane = self._lane
        # Typed as what it is but for that time: with ``offline=False`` it is always there.
        return lane.run_id if lane.is_created else None  # type: ignore[return-value]

    # A forked child inherits handles of its parent's session, and uses them with one of its own:
    # then *_intake* is that session's.  The way in remains the parent's, which is closed for good;
    # so what is logged comes by here, and is handed over, whatever other threads do meanwhile.

    #: Whether the run was opened in the parent of this process, and has a session of this one.
    _is_parents = False

    @property
    def _is_inherited(self) -> bool:
        """Whether it is the parent's, and has no session of this process yet."""
        return self._intake.lifetime.why is Why.FORKED

    def _attach_anew(self) -> None:
        """Give an inherited handle a session of this process; the logger's writers have none."""
        raise self._intake.lifetime.error()

    def _gate_reached(self, records: Sequence[AnyRecord]) -> None:
        if self._is_parents or self._is_inherited:
            self._inbox.clear()
            self._hand_over(records)
        else:
            self._intake.gate_reached(records)

    def _hand_over(self, records: Sequence[AnyRecord]) -> None:
        if self._inbox.gate < 0:  # it is closed, or the parent's
            if self._is_inherited:
                self._attach_anew()
            if self._is_parents:
                lane = self._intake.lane(self._run_id)
                for record in records:
                    record.place = lane
        self._intake.add_all(records)

    # The one handle of a run in this process: copying or deep-copying returns it.

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def log_metric(
        self,
        key: str,
        value: MetricValue,
        step: WholeNumber | None = 0,
        timestamp: WholeNumber | None = None,
    ) -> Receipt:
        """Log one point of a metric; returns at once.

        *value*: whatever ``float()`` takes, also an array or a tensor of one element; NaN and
        infinities are sent as the service spells them.  *step*: an int64, or a float that is
        whole; None is 0.  *timestamp*: Unix milliseconds, by default now.  Raises
        `InvalidRecord` for a wrong key, value, step or timestamp, `BufferFull` when the
        buffer is full (see ``overflow``), and `Closed`.
        """
        # The fast path, for what a training loop logs; anything else is checked in full.
        if (
            type(value) is float
            and type(step) is int
            and -SMALL_STEP < step < SMALL_STEP
            and timestamp is None
        ):
            try:
                record = Metric(self._known[key], value, time_ns() // 1_000_000, step, self._lane)
            except Exception:  # noqa: S110 - the key is not known, or its __hash__ raised anything
                pass
            else:
                inbox = self._inbox
                inbox.append(record)
                if len(inbox) > inbox.gate:
                    self._gate_reached((record,))
                return record
        try:
            record = self._metric(step, timestamp, key, value)
        except InvalidRecord as error:
            raise outward(error) from None
        inbox = self._inbox
        inbox.append(record)
        if len(inbox) > inbox.gate:
            self._gate_reached((record,))
        return record

    def log_metrics(
        self,
        metrics: Metrics,
        step: WholeNumber | None = 0,
        timestamp: WholeNumber | None = None,
    ) -> Receipts:
        """Log several metrics at one *step* and time; see `log_metric`.

        *metrics*: a mapping of keys to values, or anything else with ``items()``, such as a
        ``pandas.Series``; TypeError for anything else.  When one of them is invalid, none is
        accepted.
        """
        if timestamp is None:
            timestamp = time_ns() // 1_000_000
        records = self._known_metrics(metrics, step, timestamp)
        if records is None:
            pairs = pairs_of(metrics, "log_metrics", instead="log_metric(key, value)")
            records = list(starmap(partial(self._metric, step, timestamp), pairs))
        return self._accept(records)

    def log_param(self, key: str, value: object) -> Receipt:
        """Log a param: write-once, *value* written with ``str``, at most 6,000 characters.

        The service accepts the same value again and refuses another one.  Errors as for
        `log_metric`.
        """
        return self._accept([self._text(Param, "param", key, value)])[0]

    def log_params(self, params: Texts) -> Receipts:
        """Log several params, a mapping as for `log_metrics`.

        When one of them is invalid, none is accepted.
        """
        pairs = pairs_of(params, "log_params", instead="log_param(key, value)")
        return self._accept(list(starmap(partial(self._text, Param, "param"), pairs)))

    def set_tag(self, key: str, value: object) -> Receipt:
        """Set a tag: the last value wins; written with ``str``, at most 8,000 characters.

        Errors as for `log_metric`.
        """
        return self._accept([self._text(RunTag, "tag", key, value)])[0]

    def set_tags(self, tags: Texts) -> Receipts:
        """Set several tags, a mapping as for `log_metrics`.

        When one of them is invalid, none is accepted.
        """
        pairs = pairs_of(tags, "set_tags", instead="set_tag(key, value)")
        return self._accept(list(starmap(partial(self._text, RunTag, "tag"), pairs)))

    def _known_metrics(
        self, metrics: object, step: object, timestamp: object
    ) -> list[AnyRecord] | None:
        """The fast path, as in `log_metric`; None when something has to be checked in full."""
        if type(metrics) is not dict or type(step) is not int or type(timestamp) is not int:
            return None
        if not (-SMALL_STEP < step < SMALL_STEP and 0 <= timestamp < _FAR_FUTURE):
            return None
        known, lane = self._known, self._lane
        try:
            if set(map(type, metrics.values())) != _FLOATS:
                return None
            return [
                Metric(known[key], value, timestamp, step, lane) for key, value in metrics.items()
            ]
        except Exception:  # a key is not known; or else what its own __hash__ raised
            return None

    # What follows has the arguments that many calls share first, for `partial`.

    def _metric(self, step: object, timestamp: object, key: object, value: object) -> Metric:
        run_id = self._run_id
        plain = self._key("metric", key)
        number = valid_value(value, key=plain, run_id=run_id)
        if step is None:
            step = 0
        elif type(step) is not int or not -SMALL_STEP < step < SMALL_STEP:
            step = valid_int64(step, what="step", key=plain, run_id=run_id)
        if timestamp is None:
            timestamp = time_ns() // 1_000_000
        else:
            timestamp = valid_int64(timestamp, what="timestamp", key=plain, run_id=run_id)
        return Metric(plain, number, timestamp, step, self._lane)

    def _text(
        self, make: type[Param] | type[RunTag], kind: Kind, key: object, value: object
    ) -> Param | RunTag:
        plain = self._key(kind, key)
        limits = self._intake.limits
        text = valid_text(value, kind=kind, key=plain, run_id=self._run_id, limits=limits)
        return make(plain, text, self._lane)

    def _key(self, kind: Kind, key: object) -> str:
        known = self._known
        plain = known.get(key) if type(key) is str else None
        if plain is not None:
            return plain
        limits = self._intake.limits
        return valid_key(key, kind=kind, run_id=self._run_id, limits=limits, known=known)

    def _accept(self, records: Sequence[AnyRecord]) -> Receipts:
        self._hand_over(records)
        return Receipts(records)
