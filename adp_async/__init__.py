"""Asyncio client for the MLOps API of Oracle AI Data Platform.

A script logs with ``with adp_async.blocking.start_run("digits") as run: ...``, asyncio code with
``async with adp_async.Session() as session, session.start_run("digits") as run: ...``, and MLflow
code by ``mlflow.set_tracking_uri("aidp://")``.  In either block ``run.log_metric("loss", 0.5, 1)``
returns at once, and leaving it delivers what was logged and ends the run.

`Session` and `Run` are where to read on; `Settings` explains every setting, and `AdpError` is the
base of all errors.  Durations are seconds and sizes bytes, but for timestamps: Unix milliseconds.
"""

from adp_async import address, blocking
from adp_async._sansio.batch import RecordBatch
from adp_async._sansio.endpoints import Endpoint, Scope
from adp_async._sansio.flattening import flatten
from adp_async._sansio.records import BatchLimits
from adp_async._sansio.retry import RetryPolicy
from adp_async._sansio.statuses import EndStatus
from adp_async._version import __version__ as __version__
from adp_async.artifacts import Upload, Uploads
from adp_async.auth import (
    ApiKey,
    CustomSigner,
    DelegationToken,
    InstancePrincipal,
    ResourcePrincipal,
    SessionToken,
    WorkloadIdentity,
)
from adp_async.errors import (
    AdpError,
    BadRequest,
    BufferFull,
    Closed,
    ConfigurationError,
    Conflict,
    ConnectionFailed,
    ConnectionLost,
    DeliveryError,
    Forbidden,
    InvalidRecord,
    NotAuthenticated,
    NotFound,
    PayloadTooLarge,
    Rejection,
    RequestTimeout,
    ServiceError,
    ServiceFault,
    Throttled,
    UnreadableReply,
    UploadError,
)
from adp_async.instrumentation import instrument
from adp_async.logger import BatchLogger
from adp_async.run import Run
from adp_async.session import Session
from adp_async.settings import Settings
from adp_async.stats import Health, Stats
from adp_async.writer import Receipt, Receipts

__all__ = [
    "AdpError",
    "ApiKey",
    "BadRequest",
    "BatchLimits",
    "BatchLogger",
    "BufferFull",
    "Closed",
    "ConfigurationError",
    "Conflict",
    "ConnectionFailed",
    "ConnectionLost",
    "CustomSigner",
    "DelegationToken",
    "DeliveryError",
    "EndStatus",
    "Endpoint",
    "Forbidden",
    "Health",
    "InstancePrincipal",
    "InvalidRecord",
    "NotAuthenticated",
    "NotFound",
    "PayloadTooLarge",
    "Receipt",
    "Receipts",
    "RecordBatch",
    "Rejection",
    "RequestTimeout",
    "ResourcePrincipal",
    "RetryPolicy",
    "Run",
    "Scope",
    "ServiceError",
    "ServiceFault",
    "Session",
    "SessionToken",
    "Settings",
    "Stats",
    "Throttled",
    "UnreadableReply",
    "Upload",
    "UploadError",
    "Uploads",
    "WorkloadIdentity",
    "address",
    "blocking",
    "flatten",
    "instrument",
]
