"""MLflow's artifact repository for Object Storage and for volumes, on the shared session.

It waits for what it uploads, as MLflow's callers expect, and reads back, which models are loaded
by.  What it cannot do it says; nothing is written to this machine's disk in place of a volume.
"""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.entities import FileInfo
from mlflow.store.artifact.artifact_repo import ArtifactRepository

from adp_async.artifacts import ArtifactFolder
from adp_async.errors import UploadError
from adp_async.integrations.mlflow.artifacts import published_uri
from adp_async.integrations.mlflow.connection import connection_of
from adp_async.integrations.mlflow.failures import in_mlflows_words, not_published
from adp_async.integrations.mlflow.uri import SCHEME

if TYPE_CHECKING:
    from adp_async.artifacts import Upload, Uploads


class PlatformArtifacts(ArtifactRepository):
    """The artifacts below ``oci://bucket@namespace/prefix`` or ``/Volumes/...``.

    Signed by the session of the tracking URI when that is an ``aidp://`` one, else by the one that
    the usual settings make.
    """

    def __init__(
        self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None
    ) -> None:
        super().__init__(artifact_uri)
        self.tracking_uri = tracking_uri
        self.registry_uri = registry_uri

    @property
    def _folder(self) -> ArtifactFolder:
        uri = self.tracking_uri or mlflow.get_tracking_uri()
        if not uri.startswith(f"{SCHEME}:"):
            uri = f"{SCHEME}://"
        return ArtifactFolder(connection_of(uri).session, published_uri(self.artifact_uri))

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        """Upload a file into the folder *artifact_path*."""
        with in_mlflows_words():
            _wait(self._folder.log_artifact(local_file, artifact_path or ""))

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        """Upload the files of a folder, several at once."""
        with in_mlflows_words():
            _wait(self._folder.log_artifacts(local_dir, artifact_path or ""))

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        """What is in a folder; nothing when *path* is a file, or is not there."""
        with in_mlflows_words():
            found = self._folder.entries(path or "")
        return [
            FileInfo(posixpath.join(path or "", each.name), each.is_folder, each.size)
            for each in found
        ]

    def _download_file(self, remote_file_path: str, local_path: Any) -> None:
        with in_mlflows_words():
            self._folder.download(remote_file_path, local_path)

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        """Not done from here."""
        raise not_published("deleting artifacts", "Delete them in the bucket or in the volume.")


def _wait(upload: Upload | Uploads) -> None:
    try:
        upload.wait()
    except UploadError as error:
        # Its reason has the code that MLflow's callers look at.
        raise error.cause or error from error
