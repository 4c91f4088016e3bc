"""``log_*`` of one run: what happens at the call, before anything waits or is sent.

A call validates, coerces and stamps its records and leaves them in the `Inbox`, the one thing that
threads share; `deque.append` is atomic, so the way in takes no lock.  What lies behind the inbox
is the business of `adp_async.logger`.
"""

from __future__ import annotations

import time
from collections import deque
from time import time_ns
from typing import TYPE_CHECKING, Any, Final, Protocol

from adp_async._sansio.records import (
    SMALL_STEP,
    Metric,
    Param,
    Record,
    RunTag,
    valid_int64,
    valid_key,
    valid_text,
    valid_value,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from adp_async._sansio.lane import Lane
    from adp_async._sansio.records import AnyRecord, BatchLimits, Kind

#: Keys that are known to be good; beyond that many a key is checked at every call.
KNOWN_KEYS: Final = 10_000

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
        return all(receipt.delivered for receipt in self)

    @property
    def done(self) -> bool:
        return all(receipt.done for receipt in self)

    def __repr__(self) -> str:
        done = sum(receipt.done for receipt in self)
        return f"<Receipts {len(self)} records | {done} done>"


class Inbox(deque["AnyRecord"]):
    """Records between their call and the event loop; how many may lie here is the *gate*."""

    __slots__ = ("gate",)
    gate: int


class Log(Protocol):
    """What takes a writer's records: the session's logger."""

    @property
    def inbox(self) -> Inbox: ...

    @property
    def known_keys(self) -> dict[str, str]: ...

    @property
    def limits(self) -> BatchLimits: ...

    def lane(self, run_id: str) -> Lane: ...

    def accept(self, records: Sequence[AnyRecord]) -> None: ...

    def look_up(self, records: Sequence[AnyRecord]) -> None: ...


class RunWriter:
    """``log_*`` of one run: plain calls from any thread, O(1), never a wait for the network."""

    def __init__(self, run_id: str, log: Log) -> None:
        if not isinstance(run_id, str) or not run_id:
            message = f"a run id is a str that is not empty, not {run_id!r:.80}"
            raise ValueError(message)
        self._run_id = run_id
        self._log = log
        self._lane = log.lane(run_id)
        self._inbox = log.inbox
        self._known = log.known_keys

    @property
    def lane(self) -> Lane:
        """Where its records wait."""
        return self._lane

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self._run_id

    def log_metric(
        self, key: str, value: float, step: int = 0, timestamp: int | None = None
    ) -> Receipt:
        """Log one point of a metric; returns at once.

        *value*: whatever ``float()`` takes; NaN and infinities are sent as the service spells
        them.  *step*: an int64.  *timestamp*: Unix milliseconds, by default now.  Raises
        `InvalidRecord` for a wrong key, value, step or timestamp, `BufferFull` when no memory is
        left (see ``overflow``), and `Closed`.
        """
        # The short way, for what a training loop logs; anything else is looked at more closely.
        if (
            type(value) is float
            and type(step) is int
            and -SMALL_STEP < step < SMALL_STEP
            and timestamp is None
        ):
            try:
                record = Metric(self._known[key], value, time_ns() // 1_000_000, step, self._lane)
            except (KeyError, TypeError):
                record = self._metric(key, value, step, None)
        else:
            record = self._metric(key, value, step, timestamp)
        inbox = self._inbox
        inbox.append(record)
        if len(inbox) > inbox.gate:
            self._log.look_up((record,))
        return record

    def log_metrics(
        self, metrics: Mapping[str, float], step: int = 0, timestamp: int | None = None
    ) -> Receipts:
        """Log several metrics at one *step* and time; see `log_metric`.

        When one of them is invalid, none is taken.
        """
        if timestamp is None:
            timestamp = time_ns() // 1_000_000
        known, lane = self._known, self._lane
        if not metrics.keys() <= known.keys() or set(map(type, metrics.values())) != {float}:
            return self._accept(
                [self._metric(key, value, step, timestamp) for key, value in metrics.items()]
            )
        # The short way, as in `log_metric`: there is nothing to check but what all of them share.
        key = next(iter(metrics))
        step = valid_int64(step, what="step", key=key, run_id=self._run_id)
        timestamp = valid_int64(timestamp, what="timestamp", key=key, run_id=self._run_id)
        return self._accept(
            [Metric(known[key], value, timestamp, step, lane) for key, value in metrics.items()]
        )

    def log_param(self, key: str, value: object) -> Receipt:
        """Log a param: write-once, *value* written with ``str``, at most 6,000 characters.

        The same value again is accepted by the service, another one is refused.  Errors as for
        `log_metric`.
        """
        return self._accept([self._text(Param, "param", key, value)])[0]

    def log_params(self, params: Mapping[str, object]) -> Receipts:
        """Log several params; when one of them is invalid, none is taken."""
        return self._accept(
            [self._text(Param, "param", key, value) for key, value in params.items()]
        )

    def set_tag(self, key: str, value: object) -> Receipt:
        """Set a tag: the last value wins; written with ``str``, at most 8,000 characters.

        Errors as for `log_metric`.
        """
        return self._accept([self._text(RunTag, "tag", key, value)])[0]

    def set_tags(self, tags: Mapping[str, object]) -> Receipts:
        """Set several tags; when one of them is invalid, none is taken."""
        return self._accept([self._text(RunTag, "tag", key, value) for key, value in tags.items()])

    def _metric(self, key: str, value: object, step: object, timestamp: object) -> Metric:
        run_id = self._run_id
        key = self._key("metric", key)
        value = valid_value(value, key=key, run_id=run_id)
        step = valid_int64(step, what="step", key=key, run_id=run_id)
        if timestamp is None:
            timestamp = time_ns() // 1_000_000
        timestamp = valid_int64(timestamp, what="timestamp", key=key, run_id=run_id)
        return Metric(key, value, timestamp, step, self._lane)

    def _text(
        self, make: type[Param] | type[RunTag], kind: Kind, key: str, value: object
    ) -> Param | RunTag:
        key = self._key(kind, key)
        limits = self._log.limits
        text = valid_text(value, kind=kind, key=key, run_id=self._run_id, limits=limits)
        return make(key, text, self._lane)

    def _key(self, kind: Kind, key: object) -> str:
        known = self._known
        try:
            return known[key]  # type: ignore[index]
        except (KeyError, TypeError):
            limits = self._log.limits
            valid = valid_key(key, kind=kind, run_id=self._run_id, limits=limits)
        if len(known) < KNOWN_KEYS:
            known[valid] = valid
        return valid

    def _accept(self, records: Sequence[AnyRecord]) -> Receipts:
        self._log.accept(records)
        return Receipts(records)
