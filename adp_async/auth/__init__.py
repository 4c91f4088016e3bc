"""How requests are signed: one frozen class for each kind of OCI credentials.

A class says *how* to sign and its ``load`` builds the signer that does, which reads files and may
ask a metadata service.  It is called by `adp_async._io.authenticator`.
"""

from adp_async.auth._base import Auth, CustomSigner, Signer
from adp_async.auth._choice import auth_from as auth_from
from adp_async.auth._keys import ApiKey, SessionToken
from adp_async.auth._principals import (
    DelegationToken,
    InstancePrincipal,
    ResourcePrincipal,
    WorkloadIdentity,
)

__all__ = [
    "ApiKey",
    "Auth",
    "CustomSigner",
    "DelegationToken",
    "InstancePrincipal",
    "ResourcePrincipal",
    "SessionToken",
    "Signer",
    "WorkloadIdentity",
]
