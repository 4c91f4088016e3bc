"""Oracle's own client against the gateway: it is honest only if that client is happy with it."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adp_async.local import Gateway, LocalPlatform

pytestmark = pytest.mark.mlflow


@pytest.fixture(scope="module")
def models() -> Any:
    from aidp_python_client.aidataplatform_dp import models

    return models


@pytest.fixture
def official(platform: LocalPlatform, gateway: Gateway) -> Iterator[Any]:
    """``MLOpsClient`` with the platform's own config file, and no retries that hide a failure."""
    import oci
    from aidp_python_client.aidataplatform_dp import MLOpsClient

    config = oci.config.from_file(str(platform.config_file), platform.profile)
    client = MLOpsClient(
        config,
        service_endpoint=f"{platform.endpoint}/20260430",
        retry_strategy=oci.retry.NoneRetryStrategy(),
    )
    yield client
    client.base_client.session.close()


@pytest.fixture
def where(platform: LocalPlatform) -> tuple[str, str]:
    return platform.platform_id, platform.workspace


def unique(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex[:12]}"


def test_tracking(official: Any, models: Any, where: tuple[str, str]) -> None:
    """Experiment, run, batch, search, tags, inputs, delete and restore."""
    created = official.create_experiment(
        *where, models.CreateExperimentDetails(name=unique("official"))
    )
    assert created.headers["opc-request-id"].count("/") == 1
    assert created.headers["etag"]
    experiment_id = created.data.experiment_id

    run = official.create_experiment_run(
        *where,
        models.CreateExperimentRunDetails(
            experiment_id=experiment_id, run_name="läuft 'gut'", start_time=1
        ),
        opc_retry_token=uuid.uuid4().hex,
    ).data.run
    run_id = run.info.run_id
    assert run.info.run_name == "läuft 'gut'"

    official.log_experiment_run_batch(
        *where,
        models.LogExperimentRunBatchDetails(
            run_id=run_id,
            metrics=[
                models.ExperimentRunMetric(key="loss", value=1 / n, timestamp=n, step=n)
                for n in range(1, 101)
            ],
            params=[models.ExperimentRunParam(key="lr", value="0.1")],
            tags=[models.ExperimentRunTag(key="kind", value="test")],
        ),
    )
    official.update_experiment_run_tags(
        *where,
        models.UpdateExperimentRunTagsDetails(
            run_id=run_id,
            set_tags=[models.ExperimentRunTag(key="new", value="1")],
            delete_tags=[models.ExperimentRunTagKey(key="kind")],
        ),
    )
    dataset = models.Dataset(name="digits", digest="d", source_type="local", source="{}")
    official.log_experiment_run_inputs(
        *where,
        models.LogExperimentRunInputsDetails(
            run_id=run_id, dataset_inputs=[models.DatasetInput(dataset=dataset)]
        ),
    )

    (found,) = official.list_experiment_runs(
        *where,
        models.ListExperimentRunsDetails(
            experiment_ids=[experiment_id], filter="params.lr = '0.1'"
        ),
    ).data.runs
    assert found.info.run_id == run_id
    assert [(metric.value, metric.step) for metric in found.data.metrics] == [(0.01, 100)]
    assert {tag.key for tag in found.data.tags} == {"mlflow.runName", "new"}
    assert found.inputs.dataset_inputs[0].dataset.name == "digits"

    history = official.get_experiment_run_metric_history(*where, run_id, "loss").data.metrics
    assert [metric.step for metric in history] == list(range(1, 101))

    ended = official.update_experiment_run(
        *where, models.UpdateExperimentRunDetails(run_id=run_id, status="FINISHED", end_time=2)
    ).data.run_info
    assert (ended.status, ended.end_time) == ("FINISHED", 2)

    official.delete_experiment_run(*where, models.DeleteExperimentRunDetails(run_id=run_id))
    official.restore_experiment_run(*where, models.RestoreExperimentRunDetails(run_id=run_id))
    again = official.get_experiment_run_by_id(*where, run_id).data.run
    assert again.info.lifecycle_stage == "active"


def test_registry(official: Any, models: Any, where: tuple[str, str]) -> None:
    """Registered model and versions: create, tag, update, transition, search, delete."""
    platform_id, _ = where
    name = unique("model")
    official.create_registered_model(
        platform_id, models.CreateRegisteredModelDetails(name=name, description="d")
    )
    details = models.CreateModelVersionDetails(name=name, source="s3://bucket/model")
    assert official.create_model_version(platform_id, details).data.model_version.version == "1"
    second = official.create_workspace_model_version(*where, details).data.model_version
    assert (second.version, second.status) == ("2", "READY")

    official.set_registered_model_tag(
        platform_id, models.SetRegisteredModelTagDetails(name=name, key="a", value="1")
    )
    official.update_registered_model(
        platform_id, models.UpdateRegisteredModelDetails(name=name, description="new")
    )
    moved = official.transition_model_version_stage(
        platform_id,
        models.TransitionModelVersionStageDetails(
            name=name, version="1", stage="Staging", archive_existing_versions=False
        ),
    ).data.model_version
    assert moved.current_stage == "Staging"

    (found,) = official.list_registered_models(
        platform_id, filter=f"name LIKE '{name}%'", order_by="name ASC"
    ).data.registered_models
    assert (found.description, found.tags[0].key) == ("new", "a")
    assert {version.version for version in found.latest_versions} == {"1", "2"}

    official.delete_registered_model_tag(
        platform_id, models.DeleteRegisteredModelTagDetails(name=name, key="a")
    )
    official.delete_model_version(
        platform_id, models.DeleteModelVersionDetails(name=name, version="2")
    )
    official.delete_registered_model(platform_id, models.DeleteRegisteredModelDetails(name=name))


@pytest.mark.parametrize(
    ("platform_id", "status", "code"),
    [(None, 404, "RESOURCE_DOES_NOT_EXIST"), ("ocid1.other", 404, "NotAuthorizedOrNotFound")],
)
def test_errors(
    official: Any, where: tuple[str, str], platform_id: str | None, status: int, code: str
) -> None:
    """Its ServiceError finds status, code and request id where it looks for them."""
    import oci

    with pytest.raises(oci.exceptions.ServiceError) as raised:
        official.get_registered_model(platform_id or where[0], "nobody")

    assert (raised.value.status, raised.value.code) == (status, code)
    assert raised.value.request_id


def test_what_mlflow_cannot_do(official: Any, where: tuple[str, str]) -> None:
    """501 reaches the caller as such."""
    import oci

    with pytest.raises(oci.exceptions.ServiceError) as raised:
        official.get_registered_model_summary(where[0], "catalog", "schema")

    assert (raised.value.status, raised.value.code) == (501, "NotImplemented")
