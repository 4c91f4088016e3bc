"""A callback for the ``Trainer`` of Hugging Face's transformers.

::

    args = TrainingArguments(..., report_to="none")
    Trainer(model, args, ..., callbacks=[AdpCallback("digits")]).train()
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final, Unpack

from adp_async.integrations._shared import NoRun, TrackedRun, missing, never_raises

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise missing("transformers", error) from None

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adp_async import blocking
    from adp_async.settings import Knobs

EXPERIMENT: Final = "ADP_ASYNC_EXPERIMENT"
RUN_ID: Final = "ADP_ASYNC_RUN_ID"


class AdpCallback(TrainerCallback):
    """Logs what the trainer logs into one run, in the background, from the main process alone.

    *experiment* is the new run's, by default ``$ADP_ASYNC_EXPERIMENT`` or the service's default
    one; *run_name* by default that of the arguments.  *run_id*, or ``$ADP_ASYNC_RUN_ID``, resumes
    a run instead; *run* is one of yours, which you end.  *log_params* logs the arguments and the
    model's configuration, flattened.  *session* is a session of yours; without it, and with the
    *knobs* of one, there is one for the process.

    The run ends with ``train``, and what ``evaluate`` finds afterwards is logged into it as well;
    when an exception ends the training, it is FAILED at the latest when the process ends.  Each
    trial of a hyperparameter search has a run of its own.
    """

    def __init__(
        self,
        experiment: str | None = None,
        *,
        run: blocking.Run | None = None,
        run_id: str | None = None,
        run_name: str | None = None,
        tags: Mapping[str, object] | None = None,
        log_params: bool = True,
        session: blocking.Session | None = None,
        **knobs: Unpack[Knobs],
    ) -> None:
        super().__init__()
        self._experiment = experiment or os.environ.get(EXPERIMENT) or None
        if run is None:
            run_id = run_id or os.environ.get(RUN_ID) or None
        self._given: dict[str, Any] = {
            "run": run,
            "run_id": run_id,
            "session": session,
            "knobs": knobs,
        }
        self._run_name = run_name
        self._tags = tags
        self._log_params = log_params
        self._has_params = False
        self._tracked = self._track(run_name)

    def _track(self, run_name: str | None) -> TrackedRun:
        return TrackedRun(self._experiment, run_name=run_name, tags=self._tags, **self._given)

    @property
    def run(self) -> blocking.Run | NoRun:
        """The run, which begins now if it hasn't."""
        return self._tracked.run

    @never_raises
    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Begin the run, and log its params."""
        if not state.is_world_process_zero:  # pragma: no cover - one process trains in tests
            return
        if state.is_hyper_param_search:
            self._tracked = self._track(state.trial_name or self._run_name)
            self._has_params = False
        elif not self._tracked.has_begun:
            self._tracked = self._track(self._run_name or getattr(args, "run_name", None))
        if self._log_params and not self._has_params:
            self._has_params = True
            self._tracked.log_params(_params(args, more.get("model")))

    @never_raises
    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> None:
        """Log what the trainer does, at its global step."""
        if state.is_world_process_zero and logs:  # pragma: no branch - one process trains in tests
            self._tracked.log_metrics(logs, state.global_step)

    @never_raises
    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """End the run."""
        if state.is_world_process_zero:  # pragma: no branch - one process trains in tests
            self._tracked.finish()


def _params(args: Any, model: Any) -> dict[str, Any]:
    config: Any = getattr(model, "config", None)
    of_model = config.to_dict() if hasattr(config, "to_dict") else {}
    # The trainer's own go last: some models have a config with the same names.
    return {**of_model, **args.to_sanitized_dict()}
