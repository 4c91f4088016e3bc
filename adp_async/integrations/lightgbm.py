"""A callback for LightGBM's ``train``, ``cv`` and estimators.

::

    lightgbm.train(params, data, valid_sets=[data], callbacks=[log_evaluation()])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

from adp_async.integrations._shared import NoRun, TrackedRun, missing, never_raises

try:
    import lightgbm  # noqa: F401 - nothing of it is needed; without it this is of no use
except ImportError as error:
    raise missing("lightgbm", error) from None

if TYPE_CHECKING:
    from adp_async import EndStatus, blocking
    from adp_async.settings import Knobs


def log_evaluation(
    run: blocking.Run | None = None,
    *,
    experiment: str = "lightgbm",
    run_name: str | None = None,
    period: int = 1,
    log_params: bool = True,
    session: blocking.Session | None = None,
    **knobs: Unpack[Knobs],
) -> LogEvaluation:
    """A callback that logs each evaluation into one run: *run*, or a new one of *experiment*.

    Metrics are named ``valid_0-l2``; those of ``cv`` are the mean, and ``valid_0-l2-std``.
    *period*: every how many rounds.  *log_params* logs the params of the training.  *session* is a
    session of yours; without it, and with the *knobs* of one, there is one for the process.

    The run ends with the last round.  LightGBM tells no callback that training has stopped early,
    or failed: `LogEvaluation.finish` ends the run then, or the end of the process.
    """
    tracked = TrackedRun(experiment, run=run, run_name=run_name, session=session, knobs=knobs)
    return LogEvaluation(tracked, period=period, log_params=log_params)


class LogEvaluation:
    """What `log_evaluation` returns."""

    #: LightGBM's: among the callbacks after a round, before the one that stops early.
    order = 10
    before_iteration = False

    def __init__(self, tracked: TrackedRun, *, period: int, log_params: bool) -> None:
        self._tracked = tracked
        self._period = period
        self._log_params = log_params

    @property
    def run(self) -> blocking.Run | NoRun:
        """The run, which begins now if it hasn't."""
        return self._tracked.run

    @never_raises
    def __call__(self, env: Any) -> None:
        """LightGBM's hook: a round has ended."""
        if self._log_params:
            self._log_params = False
            self._tracked.log_params(env.params)
        if env.evaluation_result_list and (env.iteration + 1) % self._period == 0:
            self._tracked.log_metrics(_metrics(env.evaluation_result_list), env.iteration)
        if env.iteration == env.end_iteration - 1:
            self._tracked.finish()

    @never_raises
    def finish(self, status: EndStatus = "FINISHED") -> None:
        """End the run, unless it is yours."""
        self._tracked.finish(status)


def _metrics(results: list[tuple[Any, ...]]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for data, metric, value, _, *deviation in results:
        metrics[f"{data}-{metric}"] = value
        if deviation and deviation[0] is not None:
            metrics[f"{data}-{metric}-std"] = deviation[0]
    return metrics
