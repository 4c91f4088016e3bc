"""LocalPlatform: the gateway, MLflow and the credentials of a whole platform on this machine."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from attrs import define, field

from adp_async.local.gateway import Gateway
from adp_async.local.identity import (
    REGION,
    Identity,
    KeyFile,
    make_token,
    write_private,
    write_profile,
)
from adp_async.local.mlflow_backend import MlflowBackend
from adp_async.local.mlflow_server import MlflowServer
from adp_async.local.objects import BUCKET, NAMESPACE, Artifacts
from adp_async.local.stand_in import StandIn
from adp_async.local.storage import StorageServer
from adp_async.local.verifier import Verifier

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    from adp_async import Session
    from adp_async.local.answers import Backend

__all__ = ["LocalPlatform", "SessionProfile"]

PROFILE = "DEFAULT"


@define(eq=False)
class SessionProfile:
    """A profile of the config file that signs in with a session token.

    `renew` is what ``oci session refresh`` does: a new token in the same file; the old one is
    refused from then on.  `expire` lets the present one be refused and leaves the file alone.
    """

    profile: str
    config_file: Path
    token_file: Path
    key_file: KeyFile = field(repr=False)
    _verifier: Verifier = field(repr=False)
    _key_id: str = field(default="", repr=False)

    def renew(self, *, new_key: bool = False) -> None:
        """Write a new token, with *new_key* also a new key, as a fresh sign-in does."""
        self.expire()
        if new_key:
            path = self.key_file.path
            path.unlink()
            self.key_file = KeyFile.load_or_write(path)
        token = make_token(self.profile, time.time() + 3600)
        self._key_id = f"ST${token}"
        self._verifier.register(self._key_id, self.key_file.key.public_key())
        write_private(self.token_file, token.encode())

    def expire(self) -> None:
        """Refuse the present token from now on."""
        self._verifier.forget(self._key_id)


class LocalPlatform:
    """A whole platform on this machine, for the demo, for our tests and for yours.

    ``async with LocalPlatform() as platform: ...`` starts a real MLflow on SQLite behind a gateway
    that checks signatures, and writes an OCI config file and key for its clients.

    *directory* keeps database, artifacts, config and key; without one they are temporary and
    gone at exit.  *port* is the gateway's, 0 takes a free one.  ``mlflow=False`` puts a stand-in
    in MLflow's place, which starts at once and knows only runs and log-batch.  *progress* is
    called with a phase and the seconds so far while MLflow starts.  *key* is the user's RSA key
    when it shouldn't be generated.

    Raises `ConfigurationError` when MLflow is not installed.
    """

    profile = PROFILE

    def __init__(
        self,
        directory: str | Path | None = None,
        *,
        port: int = 0,
        mlflow: bool = True,
        progress: Callable[[str, float], None] | None = None,
        start_timeout: float = 180.0,
        key: RSAPrivateKey | None = None,
    ) -> None:
        self.directory = Path(directory).absolute() if directory is not None else None
        self._port = port
        self._with_mlflow = mlflow
        self._progress = progress
        self._start_timeout = start_timeout
        self._key = key
        self._is_temporary = directory is None
        self._identity: Identity | None = None
        self._gateway: Gateway | None = None
        self._artifacts: Artifacts | None = None
        self.mlflow_server: MlflowServer | None = None

    # -- lifetime

    async def start(self) -> Self:
        """What ``async with`` does; may happen in another task than `close`."""
        try:
            await self._start()
        except BaseException:
            await self.close()
            raise
        return self

    async def close(self) -> None:
        """Stop the gateway and MLflow; remove the directory when it is temporary."""
        if self._gateway is not None:
            await self._gateway.close()
        if self.mlflow_server is not None:
            await self.mlflow_server.stop()
        if self._is_temporary and self.directory is not None:
            shutil.rmtree(self.directory, ignore_errors=True)

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _start(self) -> None:
        directory = self._make_directory()
        self._identity = identity = Identity.load_or_invent(directory / "platform.json")
        verifier = Verifier()
        self._artifacts = Artifacts.in_folder(directory / "storage")
        self._write_credentials(identity, verifier)
        self._gateway = Gateway(
            await self._make_backend(directory),
            verifier,
            platform_id=identity.platform_id,
            workspace=identity.workspace,
            storage=StorageServer(self.artifacts, verifier, identity.platform_id),
        )
        await self._gateway.start(self._port)

    def _make_directory(self) -> Path:
        if self._is_temporary:
            self.directory = Path(tempfile.mkdtemp(prefix="adp-async-"))
        assert self.directory is not None
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self.directory

    async def _make_backend(self, directory: Path) -> Backend:
        if not self._with_mlflow:
            return StandIn(f"oci://{BUCKET}@{NAMESPACE}")
        self.mlflow_server = MlflowServer(
            directory, start_timeout=self._start_timeout, progress=self._progress
        )
        await self.mlflow_server.start()
        return MlflowBackend(self.mlflow_server.url)

    def _write_credentials(self, identity: Identity, verifier: Verifier) -> None:
        key_file = KeyFile.load_or_write(self._path("api_key.pem"), self._key)
        fingerprint = key_file.fingerprint
        entries = {
            "user": identity.user,
            "fingerprint": fingerprint,
            "tenancy": identity.tenancy,
            "region": REGION,
            "key_file": str(key_file.path),
        }
        write_profile(self.config_file, PROFILE, entries)
        verifier.register(identity.key_id(fingerprint), key_file.key.public_key())

    # -- what a client needs

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.gateway.port}"

    @property
    def platform_id(self) -> str:
        return self._started_identity.platform_id

    @property
    def workspace(self) -> str:
        return self._started_identity.workspace

    @property
    def config_file(self) -> Path:
        """The OCI config file to use; the key lies beside it."""
        return self._path("oci_config")

    @property
    def mlflow_url(self) -> str:
        """MLflow's own page, or "" without MLflow."""
        return self.mlflow_server.url if self.mlflow_server else ""

    @property
    def gateway(self) -> Gateway:
        """Quota, latency, faults, clock, counts: everything tests turn."""
        if self._gateway is None:
            raise RuntimeError("the local platform is not started: enter it with async with")
        return self._gateway

    @property
    def artifacts(self) -> Artifacts:
        """What arrived in Object Storage and in volumes, to read and to list; their stand-in."""
        if self._artifacts is None:
            raise RuntimeError("the local platform is not started: enter it with async with")
        return self._artifacts

    def session(self, **overrides: Any) -> Session:
        """An `adp_async.Session` for this platform, not entered yet.

        Its spool lies in the platform's directory, and so is gone with it.
        """
        from adp_async import Session
        from adp_async.auth import ApiKey

        settings: dict[str, Any] = {
            "endpoint": self.endpoint,
            "auth": ApiKey(config_file=self.config_file, profile=self.profile),
            "spool": self._path("spool"),
        }
        return Session(self.platform_id, self.workspace, **(settings | overrides))

    def add_session_profile(self, profile: str = "SESSION") -> SessionProfile:
        """Add a profile with a session token to the config file, for the same platform."""
        token_file = self._path(f"{profile.lower()}_token")
        key_file = KeyFile.load_or_write(self._path(f"{profile.lower()}_key.pem"))
        entries = {
            "fingerprint": key_file.fingerprint,
            "tenancy": self._started_identity.tenancy,
            "region": REGION,
            "key_file": str(key_file.path),
            "security_token_file": str(token_file),
        }
        write_profile(self.config_file, profile, entries)
        verifier = self.gateway.verifier
        session = SessionProfile(profile, self.config_file, token_file, key_file, verifier)
        session.renew()
        return session

    @property
    def _started_identity(self) -> Identity:
        if self._identity is None:
            raise RuntimeError("the local platform is not started: enter it with async with")
        return self._identity

    def _path(self, name: str) -> Path:
        if self.directory is None:
            raise RuntimeError("the local platform is not started: enter it with async with")
        return self.directory / name

    def __repr__(self) -> str:
        if self._gateway is None:
            return "<LocalPlatform not started>"
        return f"<LocalPlatform {self.endpoint} | MLflow {self.mlflow_url or 'off'}>"
