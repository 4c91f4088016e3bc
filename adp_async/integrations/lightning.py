"""A logger for Lightning's ``Trainer``.

::

    trainer = Trainer(logger=AdpLogger("digits", run_name="sgd"))
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final, Unpack

from adp_async.integrations._shared import NoRun, TrackedRun, ending, missing, never_raises

try:
    from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
    from lightning.pytorch.utilities.rank_zero import rank_zero_only
except ImportError as error:
    try:
        from pytorch_lightning.loggers.logger import Logger, rank_zero_experiment
        from pytorch_lightning.utilities.rank_zero import rank_zero_only
    except ImportError:
        raise missing("lightning", error) from None

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Mapping

    from adp_async import EndStatus, blocking
    from adp_async.settings import Knobs

#: What a trainer says when it is done.
_ENDS: Final[dict[str, EndStatus]] = {
    "success": "FINISHED",
    "finished": "FINISHED",
    "failed": "FAILED",
    "interrupted": "KILLED",
    "aborted": "KILLED",
}


class AdpLogger(Logger):
    """Logs into one run of *experiment*, in the background, from rank zero alone.

    *run_name*, *tags* and *params* are the new run's; *run_id* resumes one instead.  *prefix* goes
    before every metric's name, with a hyphen.  *save_dir* is where the trainer puts its own files,
    below ``experiment/run id``.  *log_checkpoints* logs checkpoints as artifacts, into the folder
    ``checkpoints``: True those there are at the end, "all" each as it is written, and waits for
    it.  *session* is a session of yours; without it, and
    with the *knobs* of one, there is one for the process.

    The run goes on after ``fit``: ``test`` with the same logger logs into it as well.  Its status
    is the trainer's: FINISHED, FAILED after an exception, KILLED after Ctrl-C.  Raises
    `ConfigurationError` when the settings are wrong; after that, no hook raises anything.
    """

    LOGGER_JOIN_CHAR = "-"

    def __init__(
        self,
        experiment: str = "lightning_logs",
        *,
        run_name: str | None = None,
        run_id: str | None = None,
        tags: Mapping[str, object] | None = None,
        params: Mapping[str, object] | None = None,
        prefix: str = "",
        save_dir: str | None = None,
        log_checkpoints: bool | str = False,
        session: blocking.Session | None = None,
        **knobs: Unpack[Knobs],
    ) -> None:
        super().__init__()
        self._name = experiment
        self._prefix = f"{prefix}{self.LOGGER_JOIN_CHAR}" if prefix else ""
        self._save_dir = save_dir
        self._log_checkpoints = log_checkpoints
        self._checkpoints: Any = None
        #: When each checkpoint that is logged was written.
        self._logged: dict[str, float] = {}
        self._tracked = TrackedRun(
            experiment,
            run_id=run_id,
            run_name=run_name,
            tags=tags,
            params=params,
            session=session,
            knobs=knobs,
        )

    @property
    @rank_zero_experiment
    def experiment(self) -> blocking.Run | NoRun:
        """The run, on rank zero; elsewhere, and when it could not begin, nothing happens in it."""
        return self._tracked.run

    @property
    def name(self) -> str:
        """The name of the experiment."""
        return self._name

    @property
    def version(self) -> str | None:
        """The run's id; None where a run could not begin, and before it did on other ranks."""
        return self._tracked.run_id if rank_zero_only.rank == 0 else None

    @property
    def save_dir(self) -> str | None:
        """Where the trainer puts its own files."""
        return self._save_dir

    @rank_zero_only
    @never_raises
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """Params of the run, nested ones joined with a slash."""
        self._tracked.log_params(params)

    @rank_zero_only
    @never_raises
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Metrics at the trainer's step."""
        if self._prefix:
            metrics = {f"{self._prefix}{key}": value for key, value in metrics.items()}
        self._tracked.log_metrics(metrics, step)

    @rank_zero_only
    @never_raises
    def finalize(self, status: str) -> None:
        """Deliver what waits, and give the run the trainer's status."""
        if not self._tracked.has_begun:
            return
        if self._checkpoints is not None:
            self._log_checkpoints_of(self._checkpoints)
        end = _ENDS.get(status, "FINISHED")
        self._tracked.finish("KILLED" if ending(sys.exception()) == "KILLED" else end)

    @rank_zero_only
    @never_raises
    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Log the checkpoint now, or what there is at the end."""
        if self._log_checkpoints == "all":
            for upload in self._log_checkpoints_of(checkpoint_callback):
                upload.wait()  # the trainer may delete it for the next one
        elif self._log_checkpoints:
            self._checkpoints = checkpoint_callback

    def _log_checkpoints_of(self, callback: Any) -> list[Any]:
        """Those that are new, or were written again, since the last time; their uploads."""
        run: Any = self._tracked.run
        uploads = []
        paths = {callback.best_model_path, callback.last_model_path, *callback.best_k_models}
        for path in sorted(path for path in paths if path and os.path.exists(path)):
            written = os.path.getmtime(path)
            if self._logged.get(path) != written:
                self._logged[path] = written
                name = os.path.basename(path)
                if os.path.isdir(path):  # of a strategy that shards them
                    uploads.append(run.log_artifacts(path, f"checkpoints/{name}"))
                else:
                    uploads.append(run.log_artifact(path, "checkpoints"))
        return [upload for upload in uploads if upload is not None]
