"""Artifact locations: those MLflow can reach from here, and those it would get wrong.

MLflow copies files to the location itself.  A location ``/Volumes/...`` it takes for a folder of
this machine, and ``mlflow-artifacts:`` for a path of an ``https`` tracking server; other schemes
need a package that knows them.  Locations that it would get wrong have the scheme
``aidp-artifact:`` in front, for which MLflow asks us: volumes are ours (`repository`), and of
others we say what to do.
"""

from __future__ import annotations

import os
from typing import Any, Final
from urllib.parse import urlsplit

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ErrorCode
from mlflow.store.artifact.artifact_repository_registry import get_registered_artifact_repositories

SCHEME: Final = "aidp-artifact:"
_VOLUMES: Final = "/Volumes/"
_PROXIED: Final = "mlflow-artifacts:"
#: ``/Volumes/<catalog>/<schema>/<volume>``
_VOLUME_DEPTH: Final = 4


def reachable_uri(uri: str) -> str:
    """*uri*, or with ``aidp-artifact:`` in front when MLflow would look in the wrong place.

    A volume that is mounted on this machine, as in the platform's own notebooks, is a folder.

    >>> reachable_uri("file:///srv/artifacts"), reachable_uri("mlflow-artifacts:/1/artifacts")
    ('file:///srv/artifacts', 'aidp-artifact:mlflow-artifacts:/1/artifacts')
    """
    is_mounted = uri.startswith(_VOLUMES) and os.path.isdir(_volume_of(uri))
    is_ours = uri.startswith(_VOLUMES) and not is_mounted
    return f"{SCHEME}{uri}" if is_ours or _problem_of(uri) else uri


def _problem_of(uri: str) -> str:
    """Why neither MLflow nor we can reach *uri* from here, or ""."""
    if uri.startswith(_PROXIED):
        return "such locations need an https tracking URI"
    scheme = urlsplit(uri).scheme
    if scheme in get_registered_artifact_repositories():
        return ""
    return f"no package is installed that gives MLflow the scheme {scheme!r:.40}"


def published_uri(uri: Any) -> Any:
    """*uri* as the service knows it."""
    return uri.removeprefix(SCHEME) if isinstance(uri, str) else uri


def _volume_of(uri: str) -> str:
    return "/".join(uri.split("/")[: _VOLUME_DEPTH + 1])


def check_reachable(uri: str) -> None:
    """Raise what MLflow's user can do, when there is no way to the artifacts at *uri*."""
    where = published_uri(uri)
    problem = _problem_of(where)
    if not problem:
        return
    message = (
        f"artifacts cannot be read or written at {where!r:.300}: {problem}. "
        "Create the experiment with an artifact_location that is reachable from here, such as "
        "file:///shared/artifacts, oci://bucket@namespace/prefix or "
        "/Volumes/catalog/schema/volume: mlflow.create_experiment(name, artifact_location=...)"
    )
    raise MlflowException(message, error_code=ErrorCode.Value("NOT_IMPLEMENTED"))
