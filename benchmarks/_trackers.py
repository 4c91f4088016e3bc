"""The trackers that a training loop is measured with: ours and other people's, all kept offline.

Each logs the metrics of a step in its shortest way, and says how long it took to finish.  What
it does beside (watching the machine, the console, git, installed packages) is switched off where
there is a switch, since none of it is logging.  Ours and MLflow send to a server on loopback; the
others write files, and may reach no network (see `stay_offline`).
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

from benchmarks._servers import Target

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from adp_async import Stats
    from benchmarks._harness import Role

    Log = Callable[[Mapping[str, float], int], Any]
    #: Runs the training loop with what is called in every step.
    Train = Callable[[Log], None]

#: For the environment of every contender: no network, no telemetry, no output.
OFFLINE = {
    "COMET_DISABLE_ANNOUNCEMENT": "1",
    "COMET_LOGGING_CONSOLE": "ERROR",
    "DO_NOT_TRACK": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "NEPTUNE_MODE": "offline",
    "SWANLAB_MODE": "offline",
    "WANDB_CONSOLE": "off",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    # For helpers that are not Python: a proxy that nobody listens at.
    "HTTP_PROXY": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "NO_PROXY": "127.0.0.1,localhost",
}

_LOOKS_UP = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}
_SENDS = {"socket.connect", "socket.sendto"}
_LOOPBACK = ("127.", "::1", "localhost")


def stay_offline() -> None:
    """Refuse this process every address that is not on loopback, from now on.

    An attempt raises ConnectionRefusedError: to the trackers the network is down.
    """

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _LOOKS_UP:
            host = arguments[0]
        elif event in _SENDS and isinstance(arguments[1], tuple):  # else a path, or netlink
            host = arguments[1][0]
        else:
            return
        text = host.decode(errors="replace") if isinstance(host, bytes) else host
        if text and not str(text).startswith(_LOOPBACK):
            raise ConnectionRefusedError(f"benchmarks stay on loopback: {event}")

    sys.addaudithook(refuse)


@frozen
class Place:
    """Where a contender may write, and the server for those that send."""

    folder: Path
    url: str
    target: Target

    def as_json(self) -> dict[str, str]:
        target = self.target
        return {
            "folder": str(self.folder),
            "url": self.url,
            "endpoint": target.endpoint,
            "platform_id": target.platform_id,
            "workspace": target.workspace,
            "config_file": str(target.config_file),
        }

    @classmethod
    def from_json(cls, found: Mapping[str, str]) -> Place:
        target = Target(
            found["endpoint"], found["platform_id"], found["workspace"], Path(found["config_file"])
        )
        return cls(Path(found["folder"]), found["url"], target)


@frozen
class Tracker:
    """A contender.  *use* trains with it and returns the seconds that finishing took."""

    name: str
    role: Role
    use: Callable[[Train, Place], float]
    #: The module it needs, and the package that brings it.
    module: str = ""
    package: str = ""

    @property
    def is_installed(self) -> bool:
        return not self.module or importlib.util.find_spec(self.module) is not None


def _timed(finish: Callable[[], object]) -> float:
    began = time.perf_counter()
    finish()
    return time.perf_counter() - began


def _nothing(train: Train, place: Place) -> float:
    train(lambda metrics, step: None)
    return 0.0


# Ours, with the spool ----------------------------------------------------------------------------


def _blocking(train: Train, place: Place) -> float:
    with place.target.blocking_session(spool=place.folder) as session:
        run = session.attach_run("bench")
        train(run.log_metrics)
        began = time.perf_counter()
    seconds = time.perf_counter() - began
    _check(run.stats())
    return seconds


def _asynchronous(train: Train, place: Place) -> float:
    async def use() -> float:
        async with place.target.session(spool=place.folder) as session:
            run = session.attach_run("bench")
            train(run.log_metrics)
            began = time.perf_counter()
        seconds = time.perf_counter() - began
        _check(run.stats())
        return seconds

    return asyncio.run(use())


def _check(stats: Stats) -> None:
    if not stats.accepted or stats.delivered != stats.accepted:
        raise RuntimeError(f"not everything was delivered: {stats}")


# Other people's ----------------------------------------------------------------------------------


def _mlflow(train: Train, place: Place) -> float:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

    client = MlflowClient(place.url)

    def log(metrics: Mapping[str, float], step: int) -> None:
        now = time.time_ns() // 1_000_000
        points = [Metric(key, value, now, step) for key, value in metrics.items()]
        client.log_batch("bench", metrics=points, synchronous=False)

    train(log)
    return _timed(client._tracking_client.store.flush_async_logging)


def _mlflow_buffered(train: Train, place: Place) -> float:
    os.environ["MLFLOW_ASYNC_LOGGING_BUFFERING_SECONDS"] = "1"  # the smallest it takes
    return _mlflow(train, place)


def _wandb(train: Train, place: Place) -> float:
    import wandb

    settings = wandb.Settings(
        x_disable_stats=True, x_disable_meta=True, disable_git=True, disable_code=True
    )
    run = wandb.init(project="bench", mode="offline", dir=place.folder, settings=settings)
    train(run.log)
    return _timed(run.finish)


def _trackio(train: Train, place: Place) -> float:
    os.environ["TRACKIO_DIR"] = str(place.folder)
    import trackio

    run = trackio.init(project="bench", auto_log_cpu=False, auto_log_gpu=False)
    train(run.log)
    return _timed(run.finish)


def _swanlab(train: Train, place: Place) -> float:
    import swanlab

    probe = {"hardware": False, "requirements": False, "git": False, "monitor": False}
    settings = swanlab.Settings(probe=probe)
    run = swanlab.init(
        project="bench", mode="offline", log_dir=str(place.folder), settings=settings
    )
    train(run.log)
    return _timed(run.finish)


def _tensorboard_x(train: Train, place: Place) -> float:
    from tensorboardX import SummaryWriter

    writer = SummaryWriter(str(place.folder))

    def log(metrics: Mapping[str, float], step: int) -> None:
        # Not `add_scalars`, which opens a file for each of them.
        for key, value in metrics.items():
            writer.add_scalar(key, value, step)

    train(log)
    return _timed(writer.close)


def _comet(train: Train, place: Place) -> float:
    import comet_ml

    experiment = comet_ml.OfflineExperiment(
        project_name="bench",
        offline_directory=str(place.folder),
        log_code=False,
        log_graph=False,
        log_env_details=False,
        log_git_metadata=False,
        log_git_patch=False,
        auto_param_logging=False,
        auto_metric_logging=False,
        auto_output_logging=False,
        parse_args=False,
        display_summary_level=0,
    )

    def log(metrics: Mapping[str, float], step: int) -> None:
        experiment.log_metrics(metrics, step=step)

    train(log)
    return _timed(experiment.end)


def _neptune(train: Train, place: Place) -> float:
    from neptune_scale import Run

    run = Run(
        project="bench/bench",
        run_id="bench",
        mode="offline",
        log_directory=place.folder,
        enable_console_log_capture=False,
        source_tracking_config=None,
    )
    train(run.log_metrics)
    return _timed(run.close)


ALONE = "no logging"
OURS = ("adp_async, blocking", "adp_async, asyncio")

TRACKERS = (
    Tracker(ALONE, "floor", _nothing),
    Tracker(OURS[0], "ours", _blocking),
    Tracker(OURS[1], "ours", _asynchronous),
    Tracker("MLflow, asynchronous", "peer", _mlflow, "mlflow", "mlflow"),
    Tracker("MLflow, buffered", "peer", _mlflow_buffered, "mlflow", "mlflow"),
    Tracker("wandb, offline", "peer", _wandb, "wandb", "wandb"),
    Tracker("trackio", "peer", _trackio, "trackio", "trackio"),
    Tracker("swanlab, offline", "peer", _swanlab, "swanlab", "swanlab"),
    Tracker("tensorboardX", "peer", _tensorboard_x, "tensorboardX", "tensorboardX"),
    Tracker("comet, offline", "peer", _comet, "comet_ml", "comet-ml"),
    Tracker("neptune-scale, offline", "peer", _neptune, "neptune_scale", "neptune-scale"),
)
