"""The session behind an ``aidp://`` URI, and read-your-writes for MLflow's direct calls."""

from __future__ import annotations

import json
import logging
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from adp_async.blocking import shared_session
from adp_async.collector import attached_session
from adp_async.errors import Closed, DeliveryError
from adp_async.integrations.mlflow import ending
from adp_async.integrations.mlflow.failures import in_mlflows_words, refusal
from adp_async.integrations.mlflow.uri import StoreAddress
from adp_async.integrations.mlflow.wire import BY_PATH, call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from adp_async.blocking import BatchLogger, Session
    from adp_async.collector.session import WorkerSession
    from adp_async.errors import Rejection
    from adp_async.settings import Settings
    from adp_async.writer import Receipt

logger = logging.getLogger("adp_async")

#: Seconds between two looks whether anything moves.
_LOOK: Final = 2.0
#: Seconds that a search waits for runs of which nothing moves.
_PATIENCE_OF_A_SEARCH: Final = 3.0
#: Refusals that are known to have been raised: a session keeps no more by their names.
_KEPT: Final = 1000
_GET_RUN: Final = "mlflow/runs/get"
_SEARCH_RUNS: Final = "mlflow/runs/search"
_READS: Final = frozenset(path for path, row in BY_PATH.items() if row.method == "GET")


@lru_cache(maxsize=100)
def connection_of(uri: str) -> Connection:
    """The connection of a tracking or registry URI, one a process.

    Raises MlflowException for what is wrong with the URI.
    """
    with in_mlflows_words():
        return Connection(StoreAddress.parse(uri))


class Connection:
    """The shared session of one ``aidp://`` URI.  Any thread; a forked child gets a session anew.

    *address* is what the URI says.
    """

    def __init__(self, address: StoreAddress) -> None:
        self.address = address
        self._session: Session | None = None
        self._hooks: list[Callable[[str | None], object]] = []
        #: Refusals that were raised where somebody waited for the record.
        self._told: dict[tuple[object, ...], None] = {}

    @property
    def session(self) -> Session:
        """The session, open.  Raises MlflowException when it cannot be opened.

        Within ``with handle.attach()`` a URI that names no platform leads to the collector.
        """
        if (worker := self._worker()) is not None:
            return worker
        session = self._session
        if session is None or not session.is_open:
            with in_mlflows_words():
                if ending.time_left() is not None:
                    raise Closed("the interpreter is ending: no session is opened any more")
                session = self._session = shared_session(**self.address.knobs())
            ending.watch_the_exit(session.settings.exit_timeout)
            for hook in self._hooks:
                session.on_close(hook)
        return session

    def _worker(self) -> WorkerSession | None:
        return None if self.address.knobs() else attached_session()

    def is_of_another_process(self, run_id: str) -> bool:
        """Whether this process logs into the run by a collector, and another one ends it."""
        worker = self._worker()
        return worker is not None and worker.handle.run_id == run_id

    def on_close(self, hook: Callable[[str | None], object]) -> None:
        """Have *hook* called before any session of this connection closes; see `Session.on_close`.

        It hears how the process ends, or None when it goes on.
        """
        self._hooks.append(hook)
        if self._session is not None and self._session.is_open:
            self._session.on_close(hook)

    @property
    def settings(self) -> Settings:
        """The settings of the session, which may be closed by now."""
        return (self._worker() or self._session or self.session).settings

    @property
    def logger(self) -> BatchLogger:
        """The batch logger of the session."""
        return self.session.logger

    def call(
        self, path: str, json_body: str | None, reply: Any, *, timeout: float | None = None
    ) -> Any:
        """Make a call of MLflow's and read the answer into the proto *reply*.

        What was logged before is settled first: into the run that the call names, or into all
        runs before a search for runs.  Raises MlflowException; a call that changes a run also for
        what the service has refused of it.
        """
        fields: Mapping[str, Any] = json.loads(json_body) if json_body else {}
        if run_id := fields.get("run_id") or fields.get("run_uuid"):
            self.settle(run_id, is_read=path in _READS)
        elif path == _SEARCH_RUNS:
            self.settle_all()
        return self.send(path, fields, reply, timeout=timeout)

    def send(
        self, path: str, fields: Mapping[str, Any], reply: Any, *, timeout: float | None = None
    ) -> Any:
        """The same without settling anything."""
        limits = [limit for limit in (timeout, ending.time_left()) if limit is not None]
        return call(self.session, path, fields, reply, timeout=min(limits, default=None))

    def settle(self, run_id: str, *, is_read: bool = False) -> None:
        """Until the service has what was logged into a run; raises what it refused of that run.

        That is left to the next call where this one only reads: MLflow 2 reads a run before it
        ends it.  Raises TEMPORARILY_UNAVAILABLE when nothing of it gets through for
        ``close_timeout`` seconds, and RESOURCE_DOES_NOT_EXIST when there is no such run.
        """
        with in_mlflows_words():
            self._until_settled(run_id, self._patience)
            if not is_read:
                self._tell(run_id)

    def settle_all(self) -> None:
        """Until the service has what was logged into any run, or nothing moves any more.

        What it refuses is raised by the next call that changes the run.
        """
        try:
            self._until_settled(None, min(_PATIENCE_OF_A_SEARCH, self._patience))
        except TimeoutError:
            waiting = self.logger.stats().undelivered
            logger.warning("a search does not see records that still wait: %d", waiting)

    def wait(self, receipts: Iterable[Receipt], timeout: float | None = None) -> None:
        """Until the service has these records; raises what it refused, reporting it once."""
        with in_mlflows_words():
            for receipt in receipts:
                try:
                    receipt.wait(timeout)
                except DeliveryError as error:
                    self._told.update(dict.fromkeys(map(_name_of, error.rejections)))
                    while len(self._told) > _KEPT:
                        self._told.pop(next(iter(self._told)), None)
                    raise

    def settle_and_tell(self) -> None:
        """Settle all runs and raise what was refused of any; ``mlflow.flush_async_logging``."""
        with in_mlflows_words():
            self._until_settled(None, self._patience)
            self._tell(None)

    @property
    def _patience(self) -> float:
        left = ending.time_left()
        timeout = self.settings.close_timeout
        return timeout if left is None else min(left, timeout)

    def _until_settled(self, run_id: str | None, patience: float) -> None:
        """Flush one run or all; TimeoutError after *patience* seconds in which nothing moved."""
        moved_at, settled = time.monotonic(), self._settled(run_id)
        while (left := moved_at + patience - time.monotonic()) > 0:
            error = self.logger.try_flush(run_id, min(left, _LOOK))
            if error is None or (isinstance(error, DeliveryError) and not error.undelivered):
                return
            if not isinstance(error, DeliveryError):
                raise error
            now = self._settled(run_id)
            if now != settled:
                moved_at, settled = time.monotonic(), now
            elif run_id is not None:
                self._check_exists(run_id)
        waiting = self.logger.stats(run_id).undelivered
        whose = "" if run_id is None else f" of run {run_id}"
        message = (
            f"records{whose} that could not be delivered for {patience:.0f} s: {waiting}; they are "
            "kept, and delivered as soon as the service takes them"
        )
        raise TimeoutError(message)

    def _settled(self, run_id: str | None) -> int:
        stats = self.logger.stats(run_id)
        return stats.accepted - stats.undelivered

    def _check_exists(self, run_id: str) -> None:
        """Raise RESOURCE_DOES_NOT_EXIST for a run that does not exist: its records never arrive."""
        from mlflow.protos.service_pb2 import GetRun

        self.send(_GET_RUN, {"run_id": run_id}, GetRun.Response())

    def _tell(self, run_id: str | None) -> None:
        """Raise what was refused, of one run or of all, and not yet reported."""
        try:
            self.logger.flush(run_id, _LOOK)
        except DeliveryError as error:
            names = {_name_of(rejection): rejection for rejection in error.rejections}
            untold = [names[name] for name in names if name not in self._told]
            for name in names:
                self._told.pop(name, None)
            if untold:
                raise refusal(untold) from error
            if not names:
                raise


def _name_of(rejection: Rejection) -> tuple[object, ...]:
    return rejection.run_id, rejection.kind, rejection.key, rejection.step
