"""A callback for Keras 3, whatever its backend.

::

    model.fit(x, y, epochs=5, callbacks=[AdpCallback(experiment="digits")])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Unpack

from adp_async.integrations._shared import NoRun, TrackedRun, missing, never_raises

try:
    from keras.callbacks import Callback
except ImportError as error:
    raise missing("keras", error) from None

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adp_async import blocking
    from adp_async.settings import Knobs


class AdpCallback(Callback):
    """Logs into one run, in the background: *run*, which you end, or a new one of *experiment*.

    After each epoch, its metrics and the learning rate, at the epoch's number.  With *log_freq*
    "batch", or a number of batches, also the metrics of batches, as ``batch/loss``, at the number
    of the batch since the beginning: two axes, and so two names.  What ``evaluate`` finds outside
    of ``fit`` is ``test/loss``.  *log_params* logs the arguments of ``fit``, the optimizer's
    configuration and the number of weights.  *session* is a session of yours; without it, and with
    the *knobs* of one, there is one for the process.

    The run ends with ``fit``; when an exception ends that, it is FAILED at the latest when the
    process ends.
    """

    def __init__(
        self,
        run: blocking.Run | None = None,
        *,
        experiment: str = "keras",
        run_name: str | None = None,
        log_freq: Literal["epoch", "batch"] | int = "epoch",
        log_params: bool = True,
        session: blocking.Session | None = None,
        **knobs: Unpack[Knobs],
    ) -> None:
        super().__init__()
        self._every = _batches(log_freq)
        self._log_params = log_params
        self._batch = 0
        self._epoch = 0
        self._is_fitting = False
        self._tracked = TrackedRun(
            experiment, run=run, run_name=run_name, session=session, knobs=knobs
        )

    @property
    def run(self) -> blocking.Run | NoRun:
        """The run, which begins now if it hasn't."""
        return self._tracked.run

    @never_raises
    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Begin the run, and log its params."""
        self._is_fitting = True
        if self._log_params:
            self._log_params = False
            self._tracked.log_params({**self.params, "model": self._about_model()})

    def _about_model(self) -> dict[str, Any]:
        optimizer = getattr(self.model, "optimizer", None)
        about = {"name": self.model.name}
        if self.model.built:
            about["weights"] = self.model.count_params()
        return {**about, "optimizer": optimizer.get_config()} if optimizer else about

    @never_raises
    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Log the metrics of a batch, if that is asked for."""
        self._batch += 1
        if logs and self._every and self._batch % self._every == 0:
            metrics = {f"batch/{key}": value for key, value in logs.items()}
            self._tracked.log_metrics(metrics, self._batch)

    @never_raises
    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Log the metrics of an epoch."""
        self._epoch = epoch
        rate = getattr(getattr(self.model, "optimizer", None), "learning_rate", None)
        metrics = {**(logs or {}), **({} if rate is None else {"learning_rate": float(rate)})}
        self._tracked.log_metrics(metrics, epoch)

    @never_raises
    def on_test_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Log what an evaluation of its own has found."""
        if logs and not self._is_fitting:
            metrics = {f"test/{key}": value for key, value in logs.items()}
            self._tracked.log_metrics(metrics, self._epoch)

    @never_raises
    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """End the run."""
        self._is_fitting = False
        self._tracked.finish()


def _batches(log_freq: object) -> int:
    """Every how many batches; 0 for none."""
    if log_freq == "epoch":
        return 0
    every = 1 if log_freq == "batch" else log_freq
    if type(every) is not int or every < 1:
        raise ValueError(f"log_freq is 'epoch', 'batch' or a number of batches, not {log_freq!r}")
    return every
