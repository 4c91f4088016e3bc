"""The modes in which OCI issues the credentials: they sign with the signers of ``oci``.

Importing ``oci`` takes a quarter of a second or more, and building a signer may ask a metadata
service: both happen in `Auth.load`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from attrs import field, frozen

from adp_async._credential_files import read_token, text_of, token_of
from adp_async._oci_config import read_profile
from adp_async.auth._base import Auth, Signer
from adp_async.errors import misconfigured, reason_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from adp_async._credential_files import FilePath


@frozen
class InstancePrincipal(Auth):
    """The compute instance this runs on; its token renews itself."""

    mode: ClassVar[str] = "instance_principal"

    def load(self) -> Signer:
        wait_for_oci()
        from oci.auth.signers import InstancePrincipalsSecurityTokenSigner

        return _built(self.mode, InstancePrincipalsSecurityTokenSigner, _ON_AN_INSTANCE)


@frozen
class DelegationToken(Auth):
    """An instance that acts for a user, by a delegation token, as in OCI's Cloud Shell.

    *token* is the token itself; without it the ``delegation_token_file`` of the *profile* in
    *config_file* is read.
    """

    mode: ClassVar[str] = "instance_obo_user"

    token: str | None = field(default=None, repr=False)
    config_file: FilePath | None = field(default=None, kw_only=True)
    profile: str | None = field(default=None, kw_only=True)

    def load(self) -> Signer:
        given = text_of("token", self.token)
        looked = "the argument token"
        token = token_of(given, "token", looked) if given else self._token_from_file()
        wait_for_oci()
        from oci.auth.signers import InstancePrincipalsDelegationTokenSigner

        def build() -> Signer:
            signer: Signer = InstancePrincipalsDelegationTokenSigner(delegation_token=token)
            return signer

        return _built(self.mode, build, _ON_AN_INSTANCE)

    def holds_secret(self) -> str:
        return "" if self.token is None else "DelegationToken(token=...)"

    def _token_from_file(self) -> str:
        profile = read_profile(self.config_file, self.profile)
        fix = "Pass DelegationToken(token=...), or name the file in the profile."
        file = profile.path("delegation_token_file", fix)
        return read_token(file, "delegation_token_file", profile.where)


@frozen
class ResourcePrincipal(Auth):
    """The OCI resource this runs in (functions, data science, ...), versions 1.1 to 3.0."""

    mode: ClassVar[str] = "resource_principal"

    def load(self) -> Signer:
        wait_for_oci()
        from oci.auth.signers import get_resource_principals_signer

        fix = "Resource principals work inside an OCI resource that sets OCI_RESOURCE_PRINCIPAL_*."
        return _built(self.mode, get_resource_principals_signer, fix)


@frozen
class WorkloadIdentity(Auth):
    """The Kubernetes service account of a pod in an enhanced OKE cluster."""

    mode: ClassVar[str] = "oke_workload_identity"

    def load(self) -> Signer:
        wait_for_oci()
        from oci.auth.signers import get_oke_workload_identity_resource_principal_signer

        fix = "Workload identity works in a pod of an enhanced OKE cluster."
        return _built(self.mode, get_oke_workload_identity_resource_principal_signer, fix)


_ON_AN_INSTANCE: Final = (
    "It only works on an OCI compute instance: it asks the metadata service at 169.254.169.254."
)


def _built(mode: str, build: Callable[[], Signer], fix: str) -> Signer:
    try:
        return build()
    except Exception as error:
        # The error itself may show the URL of a proxy, with a password in it.
        problem = f"{mode!r} gave no credentials ({type(error).__name__})"
        cause = _ForeignError(" <- ".join(_told_by(error)))
    looked = "the metadata service and environment of this machine"
    raise misconfigured("auth", problem, looked=looked, fix=fix) from cause


class _ForeignError(Exception):
    """Replaces an error of another library: its types, and what the system said."""


def _told_by(error: BaseException) -> Iterator[str]:
    """What may be shown of *error* and of its causes, the last one first."""
    deep: BaseException | None = error
    for _ in range(10):
        if deep is None:
            return
        name, reason = type(deep).__name__, reason_of(deep)
        yield name if reason == name else f"{name} ({reason})"
        deep = deep.__cause__ or deep.__context__


def wait_for_oci() -> None:
    """Import all of ``oci`` before a part of it.

    Another thread may be half-way through importing it, and importing a part doesn't wait for that.
    """
    import oci  # noqa: F401
