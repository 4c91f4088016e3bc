"""MLflow code, unchanged, on this client: ``mlflow.set_tracking_uri("aidp://")``.

::

    mlflow (fluent API, autolog, MlflowClient, Lightning's MLFlowLogger, ...)
      │ the scheme of the URI: aidp
      ├── TrackingStore ── log_*  ──► batch logger ──┐
      │                 ── others ──► Session.call ──┼──► the service
      └── RegistryStore ───────────► Session.call ───┘

The stores are MLflow's own REST stores with another way to make a call, so that whatever MLflow
builds on those works.  They share one `adp_async.blocking.Session` a process.  For tools that
insist on an ``https`` tracking URI there is a request auth provider, ``MLFLOW_TRACKING_AUTH=aidp``.

MLflow finds the functions below by entry points.  They import late: MLflow loads entry points
whenever it is imported, and would report an ImportError as an unknown URI scheme.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adp_async.integrations.mlflow.registry import RegistryStore
    from adp_async.integrations.mlflow.repository import PlatformArtifacts
    from adp_async.integrations.mlflow.request_auth import SignedByOci
    from adp_async.integrations.mlflow.tracking import TrackingStore

__all__ = ["RequestAuth", "artifact_repository", "registry_store", "tracking_store"]


def tracking_store(store_uri: str, artifact_uri: str | None = None, **_: Any) -> TrackingStore:
    """The tracking store of an ``aidp://`` URI; what MLflow calls once a URI.

    Raises MlflowException for a wrong URI or setting.
    """
    from adp_async.integrations.mlflow.tracking import TrackingStore

    return TrackingStore(store_uri)


def registry_store(store_uri: str, **_: Any) -> RegistryStore:
    """The model registry store of an ``aidp://`` URI; what MLflow calls once a URI."""
    from adp_async.integrations.mlflow.registry import RegistryStore

    return RegistryStore(store_uri)


def artifact_repository(
    artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None
) -> PlatformArtifacts:
    """The repository of artifacts in Object Storage (``oci:``) or in a volume.

    Raises MlflowException for a location that cannot be reached from here, and says what to do.
    """
    from adp_async.integrations.mlflow.artifacts import check_reachable
    from adp_async.integrations.mlflow.repository import PlatformArtifacts

    check_reachable(artifact_uri)
    return PlatformArtifacts(artifact_uri, tracking_uri, registry_uri)


class RequestAuth:
    """MLflow's request auth provider called ``aidp``; see `request_auth`."""

    def get_name(self) -> str:
        """The name for ``MLFLOW_TRACKING_AUTH``."""
        return "aidp"

    def get_auth(self) -> SignedByOci:
        """What signs a request of the package ``requests``, anew for each attempt."""
        from adp_async.integrations.mlflow.request_auth import signed_by_oci

        return signed_by_oci()
