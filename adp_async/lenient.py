"""``strict=False``: what logging would raise is mended, or skipped, and a warning says so.

For callers who must go on whatever they are given, such as a training framework's logger, which
passes on the keys and values that a user's model comes up with.
"""

from __future__ import annotations

from time import time_ns
from typing import TYPE_CHECKING, Any, Final

from adp_async._io.log import logger
from adp_async._sansio.cleaning import clean_key, cut_text
from adp_async._sansio.records import GivenUp, Metric, Param, RunTag
from adp_async._sansio.values import KNOWN_KEYS, pairs_of, text_of
from adp_async.errors import AdpError, InvalidRecord, shown, type_name
from adp_async.writer import Receipt, Receipts, RunWriter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adp_async._sansio.records import AnyRecord, Kind
    from adp_async._sansio.values import Metrics, MetricValue, Texts, WholeNumber

#: How often a run warns of anything at all.
MOST_WARNINGS: Final = 1000


class LenientWriter(RunWriter):
    """``log_*`` that raise nothing, for a run with ``strict=False``.

    Characters that the service refuses in a key become ``_``, keys and texts are cut to what it
    takes, and what is not a number is skipped; so is everything once the session is closed or its
    buffer full.  One warning a key says it.  The receipt of what was skipped raises why.
    """

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        #: From a key as it is given to the one that is sent: the short way takes it from here.
        self._known = {}
        self._warned: set[object] = set()

    def log_metric(
        self,
        key: str,
        value: MetricValue,
        step: WholeNumber | None = 0,
        timestamp: WholeNumber | None = None,
    ) -> Receipt:
        """As `Run.log_metric`, but it raises nothing."""
        try:
            return super().log_metric(key, value, step, timestamp)
        except InvalidRecord as error:
            return self._skipped(key, error)
        except AdpError as error:
            self._not_taken(error)
            return Metric(self._key("metric", key), 0.0, 0, 0, GivenUp(error))

    def log_metrics(
        self,
        metrics: Metrics,
        step: WholeNumber | None = 0,
        timestamp: WholeNumber | None = None,
    ) -> Receipts:
        """As `Run.log_metrics`, but it raises nothing."""
        if timestamp is None:
            timestamp = time_ns() // 1_000_000
        records: list[Any] | None = self._known_metrics(metrics, step, timestamp)
        if records is None:
            pairs = self._pairs("log_metrics", metrics)
            records = [self._metric_or_skipped(step, timestamp, *pair) for pair in pairs]
        return self._take(records)

    def log_param(self, key: str, value: object) -> Receipt:
        """As `Run.log_param`, but it raises nothing."""
        return self._take([self._text(Param, "param", key, value)])[0]

    def log_params(self, params: Texts) -> Receipts:
        """As `Run.log_params`, but it raises nothing."""
        pairs = self._pairs("log_params", params)
        return self._take([self._text(Param, "param", *pair) for pair in pairs])

    def set_tag(self, key: str, value: object) -> Receipt:
        """As `Run.set_tag`, but it raises nothing."""
        return self._take([self._text(RunTag, "tag", key, value)])[0]

    def set_tags(self, tags: Texts) -> Receipts:
        """As `Run.set_tags`, but it raises nothing."""
        pairs = self._pairs("set_tags", tags)
        return self._take([self._text(RunTag, "tag", *pair) for pair in pairs])

    def _pairs(self, what: str, mapping: object) -> list[tuple[object, object]]:
        try:
            return pairs_of(mapping, what)
        except TypeError as error:
            self._warn(what, str(error))
            return []

    def _metric_or_skipped(
        self, step: object, timestamp: object, key: object, value: object
    ) -> Metric:
        try:
            return self._metric(step, timestamp, key, value)
        except InvalidRecord as error:
            return self._skipped(key, error)

    def _skipped(self, key: object, error: AdpError) -> Metric:
        plain = self._key("metric", key)
        self._warn(plain, f"skipped: {error}")
        return Metric(plain, 0.0, 0, 0, GivenUp(error))

    def _take(self, records: Sequence[AnyRecord]) -> Receipts:
        try:
            self._hand_over([each for each in records if type(each.place) is not GivenUp])
        except AdpError as error:
            self._not_taken(error)
        return Receipts(records)

    def _not_taken(self, error: AdpError) -> None:
        """The session is closed, or its buffer full."""
        self._warn(type(error), f"records are skipped: {error}")

    def _key(self, kind: Kind, key: object) -> str:
        found = self._known.get(key) if type(key) is str else None
        if found is None:
            found = clean_key(key, self._intake.limits)
            if found != key:
                self._warn(found, f"the {kind} key {shown(key)} is logged as {found!r}")
            if type(key) is str and len(self._known) < KNOWN_KEYS:
                self._known[key] = found
        return found

    def _text(
        self, make: type[Param] | type[RunTag], kind: Kind, key: object, value: object
    ) -> Param | RunTag:
        plain = self._key(kind, key)
        text = text_of(value)
        if text is None:
            text = f"<{type_name(value)}>"
            self._warn(plain, f"str() failed on the value of the {kind} {plain!r}")
        fitting = cut_text(text, kind, self._intake.limits)
        if fitting != text:
            self._warn(plain, f"the value of the {kind} {plain!r} is cut to {len(fitting)}")
        return make(plain, fitting, self._lane)

    def _warn(self, about: object, message: str) -> None:
        """Once *about* the same thing."""
        if about not in self._warned and len(self._warned) < MOST_WARNINGS:
            self._warned.add(about)
            logger.warning("run %s: %s", self._run_id, message, extra={"run_id": self._run_id})
