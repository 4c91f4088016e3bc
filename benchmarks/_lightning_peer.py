"""Trainings with Lightning, in a process of their own, told in lines which logger to train with."""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from contextlib import redirect_stdout
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.loggers.logger import DummyLogger
from torch.utils.data import DataLoader, TensorDataset

from adp_async.integrations.lightning import AdpLogger


class Model(LightningModule):
    """A small network that logs so many metrics a step."""

    def __init__(self, metrics: int) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 1)
        )
        self.keys = [f"metric{number}" for number in range(metrics)]

    def training_step(self, batch: Any, index: int) -> Any:
        x, y = batch
        loss = torch.nn.functional.mse_loss(self.layers(x), y)
        self.log_dict(dict.fromkeys(self.keys, loss.detach()))
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Clock(Callback):
    """How long the steps alone took."""

    seconds = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds = time.perf_counter() - self._began


def train(how: str, uri: str, steps: int, metrics: int) -> dict[str, Any]:
    """Seconds of *fit*, until everything is delivered; of its *steps* alone; *cpu* of them."""
    logger: Any = False
    if how == "mlflow":
        logger = MLFlowLogger("benchmark", tracking_uri=uri)
    elif how == "ours":
        logger = AdpLogger("benchmark")
    elif how == "drops":
        logger = DummyLogger()
    if logger:
        logger.version  # noqa: B018 - what begins the run is not a matter of steps
    x = torch.randn(32 * steps, 64)
    data = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=32)
    clock = Clock()
    trainer = Trainer(
        logger=logger,
        callbacks=[clock],
        max_epochs=1,
        log_every_n_steps=1,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    model = Model(metrics)
    began, cpu = time.perf_counter(), time.process_time()
    trainer.fit(model, data)
    return {
        "fit": time.perf_counter() - began,
        "steps": clock.seconds,
        "cpu": time.process_time() - cpu,
        "run_id": logger.version if logger else "",
    }


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for line in sys.stdin:
        with redirect_stdout(sys.stderr):  # what a trainer has to say
            answer = train(**json.loads(line))
        print(json.dumps(answer), flush=True)
