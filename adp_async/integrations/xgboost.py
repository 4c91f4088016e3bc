"""A callback for XGBoost's ``train``, ``cv`` and estimators.

::

    xgboost.train(params, data, evals=[(data, "train")], callbacks=[AdpCallback()])
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Unpack

from adp_async.integrations._shared import NoRun, TrackedRun, missing, never_raises

try:
    from xgboost.callback import TrainingCallback
except ImportError as error:
    raise missing("xgboost", error) from None

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adp_async import blocking
    from adp_async.settings import Knobs


class AdpCallback(TrainingCallback):
    """Logs each evaluation into one run: *run*, which you end, or a new one of *experiment*.

    Metrics are named as XGBoost prints them, ``train-rmse``; those of ``cv`` are the mean, and
    ``train-rmse-std``.  *period*: every how many rounds.  *log_params* logs the booster's
    configuration, flattened.  *session* is a session of yours; without it, and with the *knobs* of
    one, there is one for the process.

    The run ends with the training; when an exception ends that, it is FAILED at the latest when the
    process ends.
    """

    def __init__(
        self,
        run: blocking.Run | None = None,
        *,
        experiment: str = "xgboost",
        run_name: str | None = None,
        period: int = 1,
        log_params: bool = True,
        session: blocking.Session | None = None,
        **knobs: Unpack[Knobs],
    ) -> None:
        super().__init__()
        self._period = period
        self._log_params = log_params
        self._tracked = TrackedRun(
            experiment, run=run, run_name=run_name, session=session, knobs=knobs
        )

    @property
    def run(self) -> blocking.Run | NoRun:
        """The run, which begins now if it hasn't."""
        return self._tracked.run

    def before_training(self, model: Any) -> Any:
        """Begin the run, and log its params."""
        self._begin(model)
        return model

    @never_raises
    def _begin(self, model: Any) -> None:
        if self._log_params and hasattr(model, "save_config"):
            self._log_params = False
            self._tracked.log_params(json.loads(model.save_config())["learner"])

    def after_iteration(
        self, model: Any, epoch: int, evals_log: Mapping[str, Mapping[str, list[Any]]]
    ) -> bool:
        """Log the metrics of a round; training goes on."""
        if epoch % self._period == 0:
            self._log(epoch, evals_log)
        return False

    @never_raises
    def _log(self, epoch: int, evals_log: Mapping[str, Mapping[str, list[Any]]]) -> None:
        metrics: dict[str, float] = {}
        for data, history in evals_log.items():
            for metric, values in history.items():
                newest, *deviation = values[-1] if isinstance(values[-1], tuple) else (values[-1],)
                metrics[f"{data}-{metric}"] = newest
                metrics.update({f"{data}-{metric}-std": each for each in deviation})
        self._tracked.log_metrics(metrics, epoch)

    def after_training(self, model: Any) -> Any:
        """Log where the best round was, if training looked for it, and end the run."""
        self._end(model)
        return model

    @never_raises
    def _end(self, model: Any) -> None:
        best = {name: getattr(model, name, None) for name in ("best_iteration", "best_score")}
        self._tracked.log_metrics(
            {name: value for name, value in best.items() if value is not None}
        )
        self._tracked.finish()
