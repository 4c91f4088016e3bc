"""Asyncio client for the MLOps API of Oracle AI Data Platform."""

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
