"""Lightning, HF's Trainer and Keras: real small trainings, each point once, the right status."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import pytest
from children import ROOT
from trainings import LONGEST, keys, needs, steps, train

if TYPE_CHECKING:
    from pathlib import Path

    from adp_async.local import LocalPlatform

# Lightning ----------------------------------------------------------------------------------------

LIGHTNING = """
    import copy, os, pathlib, pickle, signal, sys, warnings
    warnings.simplefilter("ignore")
    import lightning, torch
    from lightning.pytorch import LightningModule, Trainer
    from torch.utils.data import DataLoader, TensorDataset
    from adp_async import blocking
    from adp_async.integrations.lightning import AdpLogger

    class Model(LightningModule):
        def __init__(self, lr=0.1, fails_at=None, error=None):
            super().__init__()
            self.save_hyperparameters({"lr": lr, "nested": {"deep": {"er": 1}}})
            self.layer = torch.nn.Linear(4, 1)
            self.fails_at, self.error = fails_at, error

        def training_step(self, batch, index):
            if self.global_step == self.fails_at:
                self.error()
            x, y = batch
            loss = torch.nn.functional.mse_loss(self.layer(x), y)
            self.log("loss", loss)
            self.log("odd@key", 1.0)
            return loss

        def test_step(self, batch, index):
            self.log("test_loss", 0.5)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def data(workers=0):
        x = torch.randn(64, 4)
        return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8,
                          num_workers=workers)

    def trainer(logger, **more):
        defaults = {"max_epochs": 2, "enable_checkpointing": False}
        return Trainer(logger=logger, log_every_n_steps=1, accelerator="cpu",
                       enable_progress_bar=False, enable_model_summary=False,
                       **{**defaults, **more})

    def interrupt():
        os.kill(os.getpid(), signal.SIGINT)

    def fail():
        raise ValueError("the model's own")
"""


def main(script: str) -> str:
    """What only the first process does: the others, which Lightning spawns, import the script."""
    return 'if __name__ == "__main__":\n' + textwrap.indent(textwrap.dedent(script), "    ")


#: Scripts, whether they succeed, how often each step of the loss arrives, and the run's status.
LIGHTNING_CASES: dict[str, tuple[str, bool, dict[str, list[int]], str]] = {
    "fit": (
        """
        logger = AdpLogger("digits", run_name="sgd", tags={"a": 1}, params={"b": {"c": 2}})
        trainer(logger).fit(Model(), data())
        assert logger.experiment.status == "FINISHED"
        assert (logger.name, logger.version) == ("digits", logger.experiment.run_id)
        """,
        True,
        {"loss": list(range(16))},
        "FINISHED",
    ),
    "fit, then test": (
        """
        logger, model = AdpLogger(), Model()
        trainer(logger).fit(model, data())
        trainer(logger).test(model, data(), verbose=False)
        """,
        True,
        {"loss": list(range(16)), "test_loss": [0]},
        "FINISHED",
    ),
    "a prefix": (
        """
        trainer(AdpLogger(prefix="fold1")).fit(Model(), data())
        """,
        True,
        {"fold1-loss": list(range(16))},
        "FINISHED",
    ),
    "resumed": (
        """
        first = AdpLogger()
        trainer(first).fit(Model(), data())
        again = AdpLogger(run_id=first.version, linger=0.02)  # (a session of its own)
        assert again.version == first.version
        trainer(again, max_epochs=1).fit(Model(), data())
        """,
        True,
        {"loss": sorted([*range(16), *range(8)])},
        "FINISHED",
    ),
    "pickled and copied": (
        """
        logger = AdpLogger()
        copies = [pickle.loads(pickle.dumps(logger)), copy.deepcopy(logger)]
        assert {each.version for each in copies} == {logger.version}
        for each in copies:
            trainer(each, max_epochs=1).fit(Model(), data())
        """,
        True,
        {"loss": sorted([*range(8)] * 2)},
        "FINISHED",
    ),
    "two processes": (
        """
        logger = AdpLogger("digits")
        model = Model()
        trainer(logger, strategy="ddp_spawn", devices=2).fit(model, data())
        logger.log_metrics({"after": 1.0}, step=1)
        """,
        True,
        {"loss": list(range(8)), "after": [1]},
        "FINISHED",
    ),
    "an exception in two processes": (
        """
        model = Model(fails_at=4, error=fail)
        trainer(AdpLogger(), strategy="ddp_spawn", devices=2).fit(model, data())
        """,
        False,
        {"loss": list(range(4))},
        "FAILED",
    ),
    "workers that are forked": (
        """
        trainer(AdpLogger()).fit(Model(), data(workers=2))
        """,
        True,
        {"loss": list(range(16))},
        "FINISHED",
    ),
    "an exception": (
        """
        trainer(AdpLogger()).fit(Model(fails_at=5, error=fail), data())
        """,
        False,
        {"loss": list(range(5))},
        "FAILED",
    ),
    "Ctrl-C": (
        """
        trainer(AdpLogger()).fit(Model(fails_at=5, error=interrupt), data())
        """,
        False,
        {"loss": list(range(5))},
        "KILLED",
    ),
    "within a session that closes": (
        """
        with blocking.Session() as session:
            logger = AdpLogger(session=session)
            logger.log_hyperparams({"lr": 0.1, "nested": {"deep": {"er": 1}}})
            logger.log_metrics({"loss": 1.0}, step=3)
            fail()
        """,
        False,
        {"loss": [3]},
        "FAILED",
    ),
}


@needs("lightning")
@pytest.mark.parametrize("case", LIGHTNING_CASES)
async def test_lightning(bare_platform: LocalPlatform, tmp_path: Path, case: str) -> None:
    """All points arrive once, in one run, which ends as the training did."""
    script, succeeds, expected, status = LIGHTNING_CASES[case]
    trained = await train(bare_platform, tmp_path, LIGHTNING, main(script))
    assert (trained.code == 0) == succeeds, trained.errors
    assert "training goes on" not in trained.errors
    assert {key: steps(trained.run, key) for key in expected} == expected
    assert trained.status == status
    params = dict(trained.run.params)
    assert (params["lr"], params["nested/deep/er"]) == ("0.1", "1")
    if case == "fit":
        assert "odd_key" in keys(trained.run)
        assert params["b/c"] == "2"
        assert dict(trained.run.tags)["a"] == "1"
        assert trained.run.info["run_name"] == "sgd"


CHECKPOINTS = """
    from lightning.pytorch.callbacks import ModelCheckpoint

    logger = AdpLogger(log_checkpoints={which!r}, save_dir=sys.path[0])
    keep = ModelCheckpoint(every_n_train_steps=4, monitor="loss", save_top_k=1, save_last=True)
    trainer(logger, enable_checkpointing=True, callbacks=[keep]).fit(Model(), data())
    print(os.path.basename(keep.best_model_path))
"""


@needs("lightning")
@pytest.mark.parametrize("which", [True, "all", False])
async def test_checkpoints(bare_platform: LocalPlatform, tmp_path: Path, which: bool | str) -> None:
    """They become artifacts: those there are at the end, all that were written, or none."""
    script = main(CHECKPOINTS.format(which=which))
    trained = await train(bare_platform, tmp_path, LIGHTNING, script)
    assert trained.code == 0, trained.errors
    assert "training goes on" not in trained.errors
    uri = str(trained.run.info["artifact_uri"])
    names = set(bare_platform.gateway.storage.artifacts.names(f"{uri}/checkpoints"))
    best = trained.out.splitlines()[-1]
    if which is True:
        assert names == {best, "last.ckpt"}
    else:
        assert (names > {"last.ckpt"}) if which else names == set()
    assert trained.status == "FINISHED"


@needs("lightning")
async def test_lightning_without_the_service(bare_platform: LocalPlatform, tmp_path: Path) -> None:
    """Training goes on, checkpoints are written, and the run waits on disk, with one warning."""
    script = """
            logger = AdpLogger(endpoint="http://127.0.0.1:9", call_timeout=0.2)
            trainer(logger, enable_checkpointing=True, default_root_dir=sys.path[0]).fit(
                Model(), data())
            print("checkpoints", len(list(pathlib.Path(sys.path[0]).rglob("*.ckpt"))))
            print(repr(logger.experiment), logger.version)
            logger.experiment.log_metric("nothing", 1.0)
    """
    trained = await train(bare_platform, tmp_path, LIGHTNING, main(script))
    assert trained.code == 0, trained.errors
    assert "not yet created" in trained.out.splitlines()[-1]
    assert trained.errors.count("starts offline") == 1
    assert trained.runs == []
    assert "checkpoints 1" in trained.out


@needs("lightning")
async def test_lightning_with_wrong_settings(bare_platform: LocalPlatform, tmp_path: Path) -> None:
    """They are told at once, and not in the middle of a training."""
    script = """
            AdpLogger(endpoint="http://example.com")
    """
    trained = await train(bare_platform, tmp_path, LIGHTNING, main(script))
    assert trained.code == 1
    assert (
        "ConfigurationError: endpoint: plain http is allowed for localhost only" in trained.errors
    )


# HF's Trainer -------------------------------------------------------------------------------------

TRAINER = """
    import os, signal, sys, warnings
    warnings.simplefilter("ignore")
    import torch
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
    from transformers import TrainerCallback
    from adp_async import blocking
    from adp_async.integrations.transformers import AdpCallback

    config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=8, max_position_embeddings=8)

    class Data(torch.utils.data.Dataset):
        def __len__(self):
            return 32

        def __getitem__(self, index):
            return {"input_ids": torch.arange(4) + index % 8, "labels": index % 2}

    class FailsAt(TrainerCallback):
        def __init__(self, step, error):
            self.step, self.error = step, error

        def on_step_end(self, args, state, control, **more):
            if state.global_step == self.step:
                self.error()

    def interrupt():
        os.kill(os.getpid(), signal.SIGINT)

    def fail():
        raise ValueError("the trainer's own")

    def trainer(*callbacks, **more):
        args = TrainingArguments(
            output_dir=sys.path[0], per_device_train_batch_size=4, logging_steps=1, max_steps=10,
            report_to="none", disable_tqdm=True, save_strategy="no", use_cpu=True, **more)
        return Trainer(BertForSequenceClassification(config), args, train_dataset=Data(),
                       eval_dataset=Data(), callbacks=list(callbacks))
"""
TRAINER_CASES: dict[str, tuple[str, bool, dict[str, list[int]], str]] = {
    "train": (
        """
        callback = AdpCallback("digits", tags={"a": 1})
        trainer(callback, run_name="bert").train()
        assert callback.run.status == "FINISHED"
        """,
        True,
        {"loss": list(range(1, 11)), "train_runtime": [10]},
        "FINISHED",
    ),
    "train, then evaluate": (
        """
        trained = trainer(AdpCallback())
        trained.train()
        trained.evaluate()
        """,
        True,
        {"loss": list(range(1, 11)), "eval_loss": [10]},
        "FINISHED",
    ),
    "resumed by the environment": (
        """
        with blocking.start_run() as run:
            pass
        os.environ["ADP_ASYNC_RUN_ID"] = run.run_id
        trainer(AdpCallback()).train()
        """,
        True,
        {"loss": list(range(1, 11))},
        "FINISHED",
    ),
    "a run of the user's": (
        """
        with blocking.start_run() as run:
            trainer(AdpCallback(run=run)).train()
            assert run.status is None
        """,
        True,
        {"loss": list(range(1, 11))},
        "FINISHED",
    ),
    "an exception": (
        """
        trainer(AdpCallback(), FailsAt(4, fail)).train()
        """,
        False,
        {"loss": [1, 2, 3]},
        "FAILED",
    ),
    "Ctrl-C": (
        """
        trainer(AdpCallback(), FailsAt(4, interrupt)).train()
        """,
        False,
        {"loss": [1, 2, 3]},
        "KILLED",
    ),
}


@needs("transformers", "accelerate", "torch")
@pytest.mark.parametrize("case", TRAINER_CASES)
async def test_transformers(bare_platform: LocalPlatform, tmp_path: Path, case: str) -> None:
    """All points arrive once, in one run, which ends as the training did, with all params."""
    script, succeeds, expected, status = TRAINER_CASES[case]
    trained = await train(bare_platform, tmp_path, TRAINER, script)
    assert (trained.code == 0) == succeeds, trained.errors
    assert "training goes on" not in trained.errors
    assert {key: steps(trained.run, key) for key in expected} == expected
    assert trained.status == status
    params = dict(trained.run.params)
    assert len(params) > 100
    assert (params["max_steps"], params["hidden_size"]) == ("10", "8")
    if case == "train":
        assert trained.run.info["run_name"] == "bert"
        assert dict(trained.run.tags)["a"] == "1"


@needs("transformers", "accelerate", "torch", "optuna")
async def test_a_search_with_the_trainer(bare_platform: LocalPlatform, tmp_path: Path) -> None:
    """Each trial has a run of its own."""
    script = """
    args = TrainingArguments(
        output_dir=sys.path[0], per_device_train_batch_size=4, logging_steps=1, max_steps=4,
        report_to="none", disable_tqdm=True, save_strategy="no", use_cpu=True)
    searched = Trainer(None, args, train_dataset=Data(), eval_dataset=Data(),
                       model_init=lambda trial: BertForSequenceClassification(config),
                       callbacks=[AdpCallback()])
    searched.hyperparameter_search(
        backend="optuna", n_trials=2,
        hp_space=lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2)})
    """
    trained = await train(bare_platform, tmp_path, TRAINER, script)
    assert trained.code == 0, trained.errors
    assert [steps(run, "loss") for run in trained.runs] == [[1, 2, 3, 4]] * 2
    assert {run.info["status"] for run in trained.runs} == {"FINISHED"}


# Keras --------------------------------------------------------------------------------------------

KERAS = """
    import os, signal
    os.environ["KERAS_BACKEND"] = "torch"
    import keras, numpy as np
    from adp_async import blocking
    from adp_async.integrations.keras import AdpCallback

    x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    y = x.sum(axis=1)
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.05), loss="mse", metrics=["mae"])

    def fit(*callbacks):
        model.fit(x, y, epochs=3, batch_size=8, validation_split=0.25, verbose=0,
                  callbacks=list(callbacks))

    class FailsAt(keras.callbacks.Callback):
        def __init__(self, epoch, error):
            super().__init__()
            self.epoch, self.error = epoch, error

        def on_epoch_begin(self, epoch, logs=None):
            if epoch == self.epoch:
                self.error()

    def interrupt():
        os.kill(os.getpid(), signal.SIGINT)

    def fail():
        raise ValueError("the model's own")
"""
EPOCHS = {key: [0, 1, 2] for key in ("loss", "mae", "val_loss", "val_mae", "learning_rate")}
KERAS_CASES: dict[str, tuple[str, bool, dict[str, list[int]], str]] = {
    "fit": (
        """
        callback = AdpCallback(run_name="dense")
        fit(callback)
        assert callback.run.status == "FINISHED"
        """,
        True,
        {**EPOCHS, "batch/loss": []},
        "FINISHED",
    ),
    "batches": (
        """
        fit(AdpCallback(log_freq="batch"))
        """,
        True,
        {**EPOCHS, "batch/loss": list(range(1, 19))},
        "FINISHED",
    ),
    "every fourth batch, then evaluate": (
        """
        callback = AdpCallback(log_freq=4)
        fit(callback)
        model.evaluate(x, y, verbose=0, callbacks=[callback])
        """,
        True,
        {**EPOCHS, "batch/mae": [4, 8, 12, 16], "test/loss": [2], "test/mae": [2]},
        "FINISHED",
    ),
    "a run of the user's": (
        """
        with blocking.start_run() as run:
            fit(AdpCallback(run))
            assert run.status is None
        """,
        True,
        EPOCHS,
        "FINISHED",
    ),
    "an exception": (
        """
        fit(AdpCallback(), FailsAt(2, fail))
        """,
        False,
        {key: steps[:2] for key, steps in EPOCHS.items()},
        "FAILED",
    ),
    "Ctrl-C": (
        """
        fit(AdpCallback(), FailsAt(2, interrupt))
        """,
        False,
        {key: steps[:2] for key, steps in EPOCHS.items()},
        "KILLED",
    ),
}


@needs("keras", "torch")
@pytest.mark.parametrize("case", KERAS_CASES)
async def test_keras(bare_platform: LocalPlatform, tmp_path: Path, case: str) -> None:
    """All points arrive once, in one run, which ends as the training did."""
    script, succeeds, expected, status = KERAS_CASES[case]
    trained = await train(bare_platform, tmp_path, KERAS, script)
    assert (trained.code == 0) == succeeds, trained.errors
    assert "training goes on" not in trained.errors
    assert {key: steps(trained.run, key) for key in expected} == expected
    assert trained.status == status
    params: dict[str, Any] = dict(trained.run.params)
    assert params["epochs"] == "3"
    assert params["model/optimizer/name"] == "sgd"
    assert params["model/weights"] == "5"


@needs("keras", "torch")
async def test_a_wrong_log_freq(bare_platform: LocalPlatform, tmp_path: Path) -> None:
    """It is told when the callback is made."""
    trained = await train(bare_platform, tmp_path, KERAS, "AdpCallback(log_freq='step')\n")
    assert "log_freq is 'epoch', 'batch' or a number of batches, not 'step'" in trained.errors


# What it costs ------------------------------------------------------------------------------------


@needs("lightning")
@pytest.mark.mlflow
def test_the_benchmark_runs(tmp_path: Path) -> None:
    """It trains with each logger on each road, and every point arrives."""
    file = tmp_path / "report.json"
    command = [sys.executable, "-m", "benchmarks.integrations_lightning", "--smoke", "--no-peers"]
    ran = subprocess.run(
        [*command, "--json", str(file)], cwd=ROOT, capture_output=True, text=True, timeout=LONGEST
    )
    assert ran.returncode == 0, ran.stderr
    report = json.loads(file.read_text())
    assert [table["title"] for table in report["tables"]] == [
        "The service: on this machine",
        "The service: 50 ms of latency",
        "The service: a quota of 5 requests/s",
    ]
    for table in report["tables"]:
        assert [row[0] for row in table["rows"]] == [
            "no logger", "a logger that drops everything", "MLFlowLogger, aidp://", "AdpLogger",
        ]  # fmt: skip
    assert len(report["goals"]) == 2
