"""Optuna, XGBoost and LightGBM: real small trainings, each point once, the right status."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from trainings import keys, needs, steps, train

if TYPE_CHECKING:
    from pathlib import Path

    from adp_async.local import LocalPlatform

# Optuna -------------------------------------------------------------------------------------------

STUDY = """
    import os, signal
    import optuna
    from adp_async import blocking
    from adp_async.integrations.optuna import AdpCallback

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(study_name="study", sampler=optuna.samplers.RandomSampler(seed=1))
"""
OBJECTIVE = """
    def objective(trial):
        x = trial.suggest_float("x", -1, 1)
        for step in range(3):
            trial.report(x, step)
        if trial.number % 5 == 3:
            raise optuna.TrialPruned
        if trial.number % 5 == 4:
            raise ValueError("no luck")
        return x * x

    callback = AdpCallback("digits", metric_name="loss")
    study.optimize(objective, n_trials=20, n_jobs=4, callbacks=[callback], catch=ValueError)
"""


@needs("optuna")
async def test_a_study_in_four_threads(bare_platform: LocalPlatform, tmp_path: Path) -> None:
    """A run for each trial, within the study's, with its params, values and end."""
    trained = await train(bare_platform, tmp_path, STUDY, OBJECTIVE)
    assert trained.code == 0, trained.errors
    parents = [run for run in trained.runs if "mlflow.parentRunId" not in dict(run.tags)]
    (study,) = parents
    trials = {int(dict(run.tags)["trial"]): run for run in trained.runs if run is not study}
    assert sorted(trials) == list(range(20))
    assert study.info["status"] == "FINISHED"
    assert steps(study, "best_loss") == [n for n in range(20) if n % 5 < 3]
    for number, run in trials.items():
        expected = {3: "KILLED", 4: "FAILED"}.get(number % 5, "FINISHED")
        assert run.info["status"] == expected
        assert dict(run.tags)["mlflow.parentRunId"] == study.info["run_id"]
        assert run.info["run_name"] == f"study-{number}"
        ((name, text),) = run.params
        assert name == "x"
        assert steps(run, "loss/intermediate") == [0, 1, 2]
        values = [metric.value for metric in run.metrics if metric.key == "loss"]
        assert values == ([float(text) ** 2] if expected == "FINISHED" else [])


TRACKED = """
    callback = AdpCallback(nested=False)

    @callback.track
    def objective(trial, run):
        x = trial.suggest_float("x", -1, 1)
        for step in range(4):
            run.log_metric("inner", x, step=step)
        if trial.number == 1:
            raise optuna.TrialPruned
        if trial.number == 3:
            raise {error}
        return x

    study.optimize(objective, n_trials=4, {callbacks})
"""


@needs("optuna")
@pytest.mark.parametrize("callbacks", ["", "callbacks=[callback]"])
@pytest.mark.parametrize(
    ("error", "status"), [("ValueError", "FAILED"), ("KeyboardInterrupt", "KILLED")]
)
async def test_trials_that_log(
    bare_platform: LocalPlatform, tmp_path: Path, error: str, status: str, callbacks: str
) -> None:
    """The objective gets the trial's run, which ends with it, also when that ends the study."""
    script = TRACKED.format(error=error, callbacks=callbacks)
    trained = await train(bare_platform, tmp_path, STUDY, script)
    assert error in trained.errors
    assert [run.info["status"] for run in trained.runs] == [
        "FINISHED", "KILLED", "FINISHED", status,
    ]  # fmt: skip
    for run in trained.runs:
        assert steps(run, "inner") == [0, 1, 2, 3]
        assert [key for key, _ in run.params] == ["x"]
    counts = [len(steps(run, "value")) for run in trained.runs]
    assert counts == [1, 0, 1, 0]


OBJECTIVES = """
    study = optuna.create_study(study_name="pareto", directions=["minimize", "maximize"])
    names = {names}
    callback = AdpCallback(metric_name=names, linger=0.01)
    study.optimize(lambda t: (t.suggest_float("x", 0, 1), 2.0), n_trials=2, callbacks=[callback])
    callback.finish("KILLED")
    assert callback.run.status == "KILLED"
"""


@needs("optuna")
@pytest.mark.parametrize(
    ("names", "expected"),
    [("'value'", {"value_0", "value_1"}), ("['cost', 'gain']", {"cost", "gain"})],
)
async def test_two_objectives(
    bare_platform: LocalPlatform, tmp_path: Path, names: str, expected: set[str]
) -> None:
    """Each value has a name of its own; there is no best one."""
    trained = await train(bare_platform, tmp_path, STUDY, OBJECTIVES.format(names=names))
    assert trained.code == 0, trained.errors
    study, *trials = trained.runs
    assert study.info["status"] == "KILLED"
    assert study.metrics == []
    assert [keys(run) for run in trials] == [expected] * 2


# XGBoost ------------------------------------------------------------------------------------------

DATA = """
    import numpy as np
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 5))
    y = x[:, 0] + 0.1 * rng.normal(size=200)
"""
XGBOOST = """
    import xgboost
    from adp_async import blocking
    from adp_async.integrations.xgboost import AdpCallback

    data, other = xgboost.DMatrix(x[:150], y[:150]), xgboost.DMatrix(x[150:], y[150:])
    params = {"max_depth": 2, "eta": 0.3}
    evals = [(data, "train"), (other, "test")]
"""
XGBOOST_CASES = {
    "train": (
        """
        xgboost.train(params, data, 10, evals=evals, callbacks=[AdpCallback()], verbose_eval=False)
        """,
        {"train-rmse": 10, "test-rmse": 10},
        "FINISHED",
    ),
    "early stopping": (
        """
        xgboost.train(params, data, 500, evals=evals, callbacks=[AdpCallback(period=2)],
                      early_stopping_rounds=2, verbose_eval=False)
        """,
        {"best_iteration": 1, "best_score": 1},
        "FINISHED",
    ),
    "cv": (
        """
        xgboost.cv(params, data, 5, nfold=3, callbacks=[AdpCallback()])
        """,
        {"train-rmse": 5, "train-rmse-std": 5, "test-rmse": 5, "test-rmse-std": 5},
        "FINISHED",
    ),
    "an estimator": (
        """
        model = xgboost.XGBRegressor(n_estimators=7, callbacks=[AdpCallback()])
        model.fit(x, y, eval_set=[(x, y)], verbose=False)
        """,
        {"validation_0-rmse": 7},
        "FINISHED",
    ),
    "an exception": (
        """
        class Fails(xgboost.callback.TrainingCallback):
            def after_iteration(self, model, epoch, evals_log):
                if epoch == 4:
                    raise ValueError("the user's own")
                return False
        xgboost.train(params, data, 10, evals=evals, callbacks=[AdpCallback(), Fails()],
                      verbose_eval=False)
        """,
        {"train-rmse": 5, "test-rmse": 5},
        "FAILED",
    ),
    "a run of the user's": (
        """
        with blocking.start_run("mine") as run:
            xgboost.train(params, data, 4, evals=evals, callbacks=[AdpCallback(run)],
                          verbose_eval=False)
            assert run.status is None
            run.log_metric("after", 1.0)
        """,
        {"train-rmse": 4, "test-rmse": 4, "after": 1},
        "FINISHED",
    ),
}


@needs("xgboost")
@pytest.mark.parametrize("case", XGBOOST_CASES)
async def test_xgboost(bare_platform: LocalPlatform, tmp_path: Path, case: str) -> None:
    """Each round's evaluation arrives once, in one run, with the booster's params."""
    script, expected, status = XGBOOST_CASES[case]
    trained = await train(bare_platform, tmp_path, DATA, XGBOOST, script)
    assert (trained.code == 0) == (status == "FINISHED"), trained.errors
    counts = Counter(metric.key for metric in trained.run.metrics)
    assert expected.items() <= counts.items()
    assert trained.status == status
    for key in counts:
        assert len(set(steps(trained.run, key))) == counts[key]
    if case != "cv":
        assert dict(trained.run.params)["learner_train_param/objective"] == "reg:squarederror"


# LightGBM -----------------------------------------------------------------------------------------

LIGHTGBM = """
    import lightgbm
    from adp_async import blocking
    from adp_async.integrations.lightgbm import log_evaluation

    data = lightgbm.Dataset(x[:150], y[:150])
    other = lightgbm.Dataset(x[150:], y[150:], reference=data)
    params = {"num_leaves": 4, "objective": "l2", "verbosity": -1, "min_data_in_leaf": 5}
"""
LIGHTGBM_CASES = {
    "train": (
        """
        lightgbm.train(params, data, 10, valid_sets=[other], callbacks=[log_evaluation()])
        """,
        {"valid_0-l2": 10},
        "FINISHED",
    ),
    "every third": (
        """
        logs = log_evaluation(period=3)
        lightgbm.train(params, data, 10, valid_sets=[other], valid_names=["other"],
                       callbacks=[logs, lightgbm.early_stopping(50, verbose=False)])
        logs.finish("KILLED")
        assert logs.run.status == "KILLED"
        """,
        {"other-l2": 3},
        "KILLED",
    ),
    "cv": (
        """
        lightgbm.cv(params, data, 5, nfold=3, stratified=False, callbacks=[log_evaluation()])
        """,
        {"valid-l2": 5, "valid-l2-std": 5},
        "FINISHED",
    ),
    "an exception": (
        """
        def fails(env):
            if env.iteration == 4:
                raise ValueError("the user's own")
        lightgbm.train(params, data, 10, valid_sets=[other], callbacks=[log_evaluation(), fails])
        """,
        {"valid_0-l2": 5},
        "FAILED",
    ),
    "a run of the user's": (
        """
        with blocking.start_run("mine") as run:
            lightgbm.train(params, data, 4, valid_sets=[other], callbacks=[log_evaluation(run)])
            assert run.status is None
        """,
        {"valid_0-l2": 4},
        "FINISHED",
    ),
}


@needs("lightgbm")
@pytest.mark.parametrize("case", LIGHTGBM_CASES)
async def test_lightgbm(bare_platform: LocalPlatform, tmp_path: Path, case: str) -> None:
    """Each round's evaluation arrives once, in one run, with the params."""
    script, expected, status = LIGHTGBM_CASES[case]
    trained = await train(bare_platform, tmp_path, DATA, LIGHTGBM, script)
    assert (trained.code == 0) == (status != "FAILED"), trained.errors
    assert Counter(metric.key for metric in trained.run.metrics) == expected
    for key, count in expected.items():
        assert len(set(steps(trained.run, key))) == count
    assert trained.status == status
    assert dict(trained.run.params)["num_leaves"] == "4"
