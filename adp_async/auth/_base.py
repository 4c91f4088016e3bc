"""What every way to sign has in common, and the signer that is given ready-made."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from attrs import field, frozen


class Signer(Protocol):
    """Signs a request: reads its method, url, path_url, headers and body, and writes headers.

    A signer that has ``refresh_security_token()`` is told to renew itself after a 401.  For an
    artifact it is called with ``enforce_content_headers=False``, if it takes that: the body is a
    stream, and is not signed.
    """

    def __call__(self, request: Any, /) -> object: ...


class Auth:
    """Base of the classes that say how to sign."""

    #: The name of this mode in ``OCI_CLI_AUTH`` and in ``Session(auth=...)``.
    mode: ClassVar[str] = ""
    #: Whether signing is pure computation (no I/O, no state), so that several threads may sign at
    #: once.
    only_computes: ClassVar[bool] = False

    def load(self) -> Signer:
        """The signer.  Blocks; raises `ConfigurationError`."""
        raise NotImplementedError

    def is_quick(self, signer: Signer) -> bool:
        """Whether signing is pure computation that takes less than a millisecond."""
        return False

    def region(self, signer: Signer) -> str | None:
        """The region these credentials belong to, if they know it.  May read the config file."""
        region = getattr(signer, "region", None)
        return region if isinstance(region, str) else None

    def place_of_region(self) -> str:
        """Where that region comes from, for a message."""
        return "the credentials"


@frozen
class CustomSigner(Auth):
    """Any object that signs (see `Signer`), built by the caller."""

    mode: ClassVar[str] = "custom signer"

    signer: Signer = field(repr=lambda signer: f"<{type(signer).__name__}>")

    def load(self) -> Signer:
        return self.signer
