"""Deployments of models, with their activities, logs and inferences."""

from collections.abc import Mapping
from datetime import datetime
from typing import Literal

from attrs import field, frozen

from adp_async.entities._entity import Entity, Moment
from adp_async.entities._tag import Tag

ActivityStatus = Literal["SUCCESS", "FAILURE"]
AuthType = Literal["AIDP", "OAUTH"]
DeploymentStatus = Literal["INACTIVE", "ACTIVATING", "ACTIVE", "DEACTIVATING", "UPDATING"]
InferenceStatus = Literal["SUCCESS", "MALFORMED", "FAILED", "UNKNOWN"]


@frozen
class ModelDeploymentTag(Tag):
    """A tag of a deployment."""


@frozen
class DeploymentTarget(Entity):
    """A model version and its share of the traffic, in percent."""

    model_version: str
    traffic_percentage: int


@frozen
class DeploymentOAuthDetails(Entity):
    """The issuer whose tokens a deployment accepts."""

    issuer_claim: str
    audience_claim: tuple[str, ...] = field(converter=tuple[str, ...])
    jwks_uri: str


@frozen
class ModelDeployment(Entity):
    """A deployment of a model.  *activated_time* is in Unix milliseconds, other times are text."""

    deployment_id: str
    name: str
    model_name: str
    deployment_targets: tuple[DeploymentTarget, ...]
    workspace_key: str
    compute_key: str
    status: str
    created_time: str
    updated_time: str
    created_by: str
    updated_by: str
    description: str | None = None
    compute_deployment_id: str | None = None
    activated_time: int | None = None
    activated_by: str | None = None
    serving_uri: str | None = None
    tags: tuple[ModelDeploymentTag, ...] = ()
    auth_type: str | None = None
    auth_details: DeploymentOAuthDetails | None = None

    activated_datetime = Moment("activated_time")


@frozen
class ModelDeploymentSummary(Entity):
    """A deployment as a search shows it; times as in `ModelDeployment`."""

    deployment_id: str
    name: str
    model_name: str
    status: str
    created_by: str
    created_time: str
    updated_time: str
    updated_by: str
    description: str | None = None
    activated_time: int | None = None
    activated_by: str | None = None
    serving_uri: str | None = None

    activated_datetime = Moment("activated_time")


@frozen
class ModelDeploymentPage(Entity):
    """One page of a search for deployments."""

    deployments: tuple[ModelDeploymentSummary, ...]
    next_page_token: str | None = None

    @property
    def items(self) -> tuple[ModelDeploymentSummary, ...]:
        return self.deployments


@frozen
class DeploymentContract(Entity):
    """Inputs, outputs and an example of a deployed model, each as JSON text."""

    input_contract: str | None = None
    output_contract: str | None = None
    input_example: str | None = None


@frozen
class DeploymentDetails(Entity):
    """A deployment as it was when an activity touched it."""

    name: str | None = None
    description: str | None = None
    model_name: str | None = None
    deployment_targets: tuple[DeploymentTarget, ...] = ()
    status: str | None = None
    endpoint: str | None = None
    tags: Mapping[str, str] | None = None
    workspace_key: str | None = None
    workspace_name: str | None = None
    compute_key: str | None = None
    compute_name: str | None = None
    ocpus: float | None = None
    memory_in_gbs: float | None = None
    autoscaling: bool | None = None
    min_instances: int | None = None
    max_instances: int | None = None
    instances: int | None = None
    concurrency: int | None = None
    cpu_target: int | None = None
    cooldown: int | None = None
    metric: str | None = None
    authorize_using: str | None = None
    audience_claim: tuple[str, ...] = ()
    issuer_claim: str | None = None
    jwks_uri: str | None = None


@frozen
class DeploymentDetailsSummary(Entity):
    """The few fields of a deployment that a list of activities shows."""

    model_name: str | None = None
    deployment_targets: tuple[DeploymentTarget, ...] = ()


@frozen
class DeploymentActivity(Entity):
    """Something done to a deployment; times are text."""

    activity_id: str
    operation_type: str
    status: str
    start_time: str
    end_time: str
    user: str
    deployment_details: DeploymentDetails
    message: str | None = None
    status_message: str | None = None


@frozen
class DeploymentActivitySummary(Entity):
    """An activity as a search shows it; times are text."""

    activity_id: str
    operation_type: str
    status: str
    start_time: str
    end_time: str
    user: str
    deployment_details: DeploymentDetailsSummary | None = None


@frozen
class DeploymentActivityPage(Entity):
    """One page of a search for activities."""

    activities: tuple[DeploymentActivitySummary, ...]
    next_page_token: str | None = None

    @property
    def items(self) -> tuple[DeploymentActivitySummary, ...]:
        return self.activities


@frozen
class DeploymentLogMessage(Entity):
    """The text of a log record, or, by *state*, why there is none."""

    state: str
    is_truncated: bool
    text: str | None = None


@frozen
class DeploymentLogMetadata(Entity):
    """Where a log record comes from."""

    replica_id: str | None = None
    opc_request_id: str | None = None
    source: str | None = None
    region: str | None = None
    error_code: str | None = None


@frozen
class DeploymentLogDetail(Entity):
    """One log record with its message."""

    deployment_id: str
    record_id: str
    log_id: str
    timestamp: datetime
    timestamp_source: str
    level: str
    message: DeploymentLogMessage
    metadata: DeploymentLogMetadata


@frozen
class DeploymentLogSummary(Entity):
    """One log record as a search shows it."""

    record_id: str
    log_id: str
    timestamp: datetime
    timestamp_source: str
    level: str
    is_detail_available: bool
    opc_request_id: str | None = None
    latency_ms: float | None = None
    replica_id: str | None = None


@frozen
class DeploymentLogRecords(Entity):
    """The records of one page of a log."""

    items: tuple[DeploymentLogSummary, ...]
    next_page_token: str | None = None


@frozen
class DeploymentLogQuery(Entity):
    """The query as the service understood it, and when it was answered."""

    time_start: datetime
    time_end: datetime
    time_evaluated: datetime
    consistency: str
    sort_by: str | None = None
    sort_order: str | None = None


@frozen
class DeploymentLogCoverage(Entity):
    """How much of the requested time the log still covers."""

    state: str
    retention_days: int | None = None
    reasons: tuple[str, ...] = ()


@frozen
class DeploymentLogPage(Entity):
    """One page of a deployment's log, with the query and how much of it the log covers."""

    deployment_id: str
    logs: DeploymentLogRecords
    query: DeploymentLogQuery
    coverage: DeploymentLogCoverage

    @property
    def items(self) -> tuple[DeploymentLogSummary, ...]:
        return self.logs.items

    @property
    def next_page_token(self) -> str | None:
        return self.logs.next_page_token


@frozen
class InferenceInvocationMetadata(Entity):
    """Where an inference ran, and for whom."""

    region: str | None = None
    replica_id: str | None = None
    caller: str | None = None


@frozen
class InferenceInvocationDetails(Entity):
    """One inference with its payloads, which may be any JSON."""

    request_timestamp: datetime
    request_uri: str
    status: str
    request_id: str
    metadata: InferenceInvocationMetadata
    latency_ms: int | None = None
    model_version: str | None = None
    request_payload: object = None
    response_payload: object = None


@frozen
class InferenceInvocationSummary(Entity):
    """One inference as a search shows it."""

    request_timestamp: datetime
    request_uri: str
    status: str
    request_id: str
    model_version: str | None = None
    latency_ms: int | None = None


@frozen
class InferenceInvocationPage(Entity):
    """One page of a search for inferences, and the values it can be filtered by."""

    time_start: datetime
    time_end: datetime
    items: tuple[InferenceInvocationSummary, ...]
    statuses: tuple[str, ...]
    request_uris: tuple[str, ...]
    model_versions: tuple[str, ...]
    next_page_token: str | None = None


@frozen
class InferenceInvocationCounts(Entity):
    """How many inferences there were, and their outcomes; the average is in milliseconds."""

    total_requests: int
    successful_requests: int
    failed_requests: int
    success_rate_percent: float
    malformed_requests: int
    average_response_time_ms: float


@frozen
class InferenceInvocationTotals(Entity):
    """The counts of a span of time."""

    time_start: datetime
    time_end: datetime
    summary: InferenceInvocationCounts


@frozen
class InferenceFilters(Entity):
    """Which inferences to export."""

    status: InferenceStatus | None = None
    model_version: str | None = None
    request_uri: str | None = None
