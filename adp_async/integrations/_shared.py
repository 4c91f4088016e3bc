"""What the callbacks of training frameworks have in common: one run, and no harm done.

The run begins when the first hook needs it, in the session that its user gave or in the one that
the process shares; it takes whatever a framework comes up with (``strict=False``), and ends with
the training, with the session, or with the process, as that ended.  No hook raises.
"""

from __future__ import annotations

import logging
import sys
import threading
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from adp_async import AdpError, InvalidRecord, Settings, blocking, flatten
from adp_async.address import address_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from adp_async import EndStatus
    from adp_async.address import RunAddress

logger = logging.getLogger("adp_async")

P = ParamSpec("P")
T = TypeVar("T")


def missing(framework: str, error: ImportError) -> ImportError:
    """The error of an integration whose *framework* cannot be imported, since *error*."""
    message = (
        f"adp_async.integrations.{framework} needs {error.name}, which cannot be imported; "
        f"install it with: pip install 'adp-async[{framework}]'"
    )
    return ImportError(message, name=error.name)


def never_raises(hook: Callable[P, T]) -> Callable[P, T | None]:
    """A hook of a framework: what fails in it is in the log, and training goes on."""

    @wraps(hook)
    def guarded(*given: P.args, **more: P.kwargs) -> T | None:
        try:
            return hook(*given, **more)
        except Exception:
            logger.warning("%s failed; training goes on", hook.__qualname__, exc_info=True)
            return None

    return guarded


class NoRun:
    """Stands where a run could not begin: whatever is asked of it, nothing happens."""

    run_id = run_name = experiment_id = status = None

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("_"):
            raise AttributeError(name)
        return _nothing

    def __repr__(self) -> str:
        return "<NoRun>"


def _nothing(*_: object, **__: object) -> None:
    return None


class TrackedRun:
    """The one run that a callback logs into.

    Given *run*, that is it, and its owner ends it.  With *run_id* the run with that id is resumed,
    else one is started, with the other arguments, and ends here.  Raises `ConfigurationError` when
    the *knobs* of the session are wrong, ValueError for both *run* and *run_id*.

    Pickled, for a process that trains in parallel, it is begun first, and the copy logs into the
    same run.
    """

    def __init__(
        self,
        experiment: str | None,
        *,
        run: blocking.Run | NoRun | None = None,
        run_id: str | None = None,
        address: RunAddress | None = None,
        session: blocking.Session | None = None,
        knobs: Mapping[str, Any],
        params: object = None,
        **start: Any,
    ) -> None:
        if run is not None and run_id is not None:
            raise ValueError("give a run or a run's id, not both")
        if run is None and session is None and address is None:
            Settings.resolve(dict(knobs))
        self._session = session
        self._knobs = dict(knobs)
        self._given = run
        self._run_id = run_id if address is None else address.run_id
        #: Of a run that belongs to another process.
        self._address = address
        self._params = params
        self._start = {"experiment": experiment, **start}
        self._lock = threading.RLock()
        self._handle: blocking.Run | NoRun | None = None
        self._forget_hook: Callable[[], None] = _nothing
        #: Keys that a warning was about.
        self._told: set[str] = set()

    @property
    def run(self) -> blocking.Run | NoRun:
        """The run, which begins now if it hasn't; a `NoRun` when it can't begin."""
        with self._lock:
            if self._handle is None:
                self._handle = self._begin()
            return self._handle

    @property
    def run_id(self) -> str | None:
        """The run's id; the run begins now if it hasn't.  None when it can't begin."""
        return self._run_id or self.run.run_id

    @property
    def has_begun(self) -> bool:
        """Whether anything was asked of the run in this process."""
        return self._handle is not None

    @property
    def is_ours(self) -> bool:
        """Whether it ends here, and not with its owner or in another process."""
        return self._given is None and self._address is None

    def _begin(self) -> blocking.Run | NoRun:
        if self._given is not None:
            return self._given
        try:
            if self._address is not None:
                return self._address.attach()
            run = self._begin_in(self._session or blocking.shared_session(**self._knobs))
        except AdpError as error:
            logger.warning("nothing is logged, the run could not begin: %s", error)
            return NoRun()
        self._run_id = run.run_id
        if self._params is not None:
            self._log_params_of(run, self._params)
        return run

    def _begin_in(self, session: blocking.Session) -> blocking.Run:
        if self._run_id is not None:
            run = session.attach_run(self._run_id, resume=True, strict=False)
        else:
            run = session.start_run(**self._start, strict=False)
        self._forget_hook = session.on_close(self._session_closes)
        return run

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = 0) -> None:
        """`Run.log_metrics`; what a strict run of the user's does not take is skipped."""
        run = self.run
        try:
            run.log_metrics(metrics, step)
        except InvalidRecord:
            for key, value in metrics.items():
                self._log_metric(run, key, value, step)

    def _log_metric(self, run: Any, key: str, value: object, step: int | None) -> None:
        try:
            run.log_metric(key, value, step)
        except InvalidRecord as error:
            if str(key) not in self._told:
                self._told.add(str(key))
                logger.warning("skipped: %s", error)

    def log_params(self, params: object) -> None:
        """Params, flattened: whatever `flatten` takes."""
        self._log_params_of(self.run, params)

    def _log_params_of(self, run: blocking.Run | NoRun, params: object) -> None:
        for key, value in flatten(params).items():
            try:
                run.log_param(key, value)
            except InvalidRecord as error:
                logger.warning("skipped: %s", error)

    def finish(self, status: EndStatus = "FINISHED") -> None:
        """End the run, unless that is its owner's business; what was logged is delivered."""
        if not self.has_begun:
            return
        self._forget_hook()
        if self.is_ours:
            self.run.finish(status)
        else:
            run = self.run
            error = None if isinstance(run, NoRun) else run.try_flush(run.settings.close_timeout)
            if error is not None:
                logger.warning("%s", error)

    def _session_closes(self, status: EndStatus | None) -> None:
        """The session closes before the training has reported its end."""
        if status is None:
            self.finish(ending(sys.exception()))

    # One run in this process, also for whoever copies what holds it.

    def __copy__(self) -> TrackedRun:
        return self

    def __deepcopy__(self, memo: object) -> TrackedRun:
        return self

    def __reduce__(self) -> tuple[Callable[[], TrackedRun], tuple[()]]:
        run = self.run
        if isinstance(run, NoRun):
            return partial(TrackedRun, None, run=run, knobs={}), ()
        return partial(TrackedRun, None, address=address_of(run), knobs={}), ()

    def __repr__(self) -> str:
        return f"<TrackedRun {self._handle or 'not begun'}>"


def ending(error: BaseException | None) -> EndStatus:
    """How a run ends while *error* is being handled."""
    if error is None:
        return "FINISHED"
    return "FAILED" if isinstance(error, Exception) else "KILLED"
