"""A callback for Optuna's studies: a run for each trial, within one for the study.

::

    callback = AdpCallback("digits")
    study.optimize(objective, n_trials=20, n_jobs=4, callbacks=[callback])
    callback.finish()
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final, Unpack

from adp_async.integrations._shared import NoRun, TrackedRun, ending, missing, never_raises

try:
    from optuna import TrialPruned
    from optuna.trial import TrialState
except ImportError as error:
    raise missing("optuna", error) from None

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

    from adp_async import EndStatus, blocking
    from adp_async.settings import Knobs

#: How a trial's run ends.
_ENDS: Final[dict[TrialState, EndStatus]] = {
    TrialState.COMPLETE: "FINISHED",
    TrialState.PRUNED: "KILLED",
    TrialState.FAIL: "FAILED",
}


class AdpCallback:
    """Logs each trial of a study into a run of its own, with its params, values and attributes.

    *experiment*: that of the runs, by default the study's name.  *metric_name*: of the value, or
    a list of names for several objectives; one name for several gives ``value_0`` and so on.
    Reported intermediate values are ``value/intermediate`` at their steps.  *nested*: one run for
    the study is the parent of all; `finish` ends it, or the end of the process.  *session* is a
    session of yours; without it, and with the *knobs* of one, there is one for the process.

    A trial that completes is FINISHED, one that is pruned KILLED, one that fails FAILED.  Trials
    may run in threads (``n_jobs``); nothing waits for another's run.  Optuna calls no callback for
    a trial whose exception ends the study: `track` hears of that as well.
    """

    def __init__(
        self,
        experiment: str | None = None,
        *,
        metric_name: str | Sequence[str] = "value",
        nested: bool = True,
        session: blocking.Session | None = None,
        **knobs: Unpack[Knobs],
    ) -> None:
        self._experiment = experiment
        self._metric_name = metric_name
        self._nested = nested
        self._session: dict[str, Any] = {"session": session, "knobs": knobs}
        self._lock = threading.Lock()
        self._study: TrackedRun | None = None
        #: The study's name and the number of each trial that `track` looks after.
        self._tracked: set[tuple[str, int]] = set()
        # Wrong settings are heard of now.
        TrackedRun(experiment, **self._session)

    @property
    def run(self) -> blocking.Run | NoRun | None:
        """The study's run, once its first trial has begun; None before, and unless *nested*."""
        return None if self._study is None else self._study.run

    def track(
        self, objective: Callable[[Trial, Any], float | Sequence[float]]
    ) -> Callable[[Trial], float | Sequence[float]]:
        """An objective for ``study.optimize`` from one that gets the trial's run as well.

        ``def objective(trial, run): ... run.log_metric("loss", loss, step=epoch)``.  The run begins
        with the trial, and ends with it as it ended.  Also as a decorator, and with or without the
        callback.
        """

        def tracked(trial: Trial) -> float | Sequence[float]:
            run = self._begin(trial.study, trial.number)
            try:
                value = objective(trial, run.run if run else NoRun())
            except TrialPruned:
                self._end(run, trial, "KILLED")
                raise
            except BaseException as error:
                self._end(run, trial, ending(error))
                raise
            self._end(run, trial, "FINISHED", value)
            return value

        return tracked

    @never_raises
    def __call__(self, study: Study, trial: FrozenTrial) -> None:
        """Optuna's hook: the trial has ended."""
        if (study.study_name, trial.number) not in self._tracked:
            run = self._track(study, trial.number)
            self._log(run, trial)
            # (Optuna also gives a pruned trial its last intermediate value.)
            self._log_values(run, trial.values if trial.state is TrialState.COMPLETE else None)
            run.finish(_ENDS.get(trial.state, "FINISHED"))
        if self._nested and len(study.directions) == 1 and trial.state is TrialState.COMPLETE:
            self._run_of(study).log_metrics({f"best_{self._names(1)[0]}": study.best_value},
                                            trial.number)  # fmt: skip

    @never_raises
    def finish(self, status: EndStatus = "FINISHED") -> None:
        """End the run of the study."""
        if self._study is not None:
            self._study.finish(status)

    @never_raises
    def _begin(self, study: Study, number: int) -> TrackedRun:
        self._tracked.add((study.study_name, number))
        return self._track(study, number)

    @never_raises
    def _end(
        self, run: TrackedRun | None, trial: Trial, status: EndStatus, value: object = None
    ) -> None:
        if run is not None:
            trials = trial.study.get_trials(deepcopy=False)
            self._log(run, next(each for each in trials if each.number == trial.number))
            self._log_values(run, value)
            run.finish(status)

    def _track(self, study: Study, number: int) -> TrackedRun:
        parent = self._run_of(study).run_id if self._nested else None
        experiment = self._experiment or study.study_name
        name = f"{study.study_name}-{number}"
        return TrackedRun(experiment, run_name=name, parent=parent, **self._session)

    def _run_of(self, study: Study) -> TrackedRun:
        with self._lock:
            if self._study is None:
                tags = {"directions": [direction.name for direction in study.directions]}
                self._study = TrackedRun(
                    self._experiment or study.study_name,
                    run_name=study.study_name,
                    tags=tags,
                    **self._session,
                )
            return self._study

    def _log(self, run: TrackedRun, trial: FrozenTrial) -> None:
        run.log_params(trial.params)
        run.run.set_tags({"trial": trial.number, **trial.user_attrs})
        for step, value in trial.intermediate_values.items():
            run.log_metrics({f"{self._names(1)[0]}/intermediate": value}, step)

    def _log_values(self, run: TrackedRun, value: Any) -> None:
        if value is None:
            return
        values = list(value) if hasattr(value, "__iter__") else [value]
        run.log_metrics(dict(zip(self._names(len(values)), values, strict=False)))

    def _names(self, count: int) -> list[str]:
        name = self._metric_name
        if not isinstance(name, str):
            return list(name)
        return [name] if count == 1 else [f"{name}_{index}" for index in range(count)]
