"""What every way to sign has in common, and the signer that is given ready-made."""

from __future__ import annotations

import os
from typing import Any, ClassVar, Final, Protocol, Self, SupportsIndex
from weakref import WeakValueDictionary

from attrs import field, frozen

from adp_async.errors import ConfigurationError


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

    def holds_secret(self) -> str:
        """What of it is a secret, as code that gives it looks; "" if nothing is."""
        return ""

    # A copy in this process is the thing itself.

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        """For a pickle.  Raises `ConfigurationError` where that would hold a secret."""
        self._check_travels()
        return super().__reduce_ex__(protocol)

    def _check_travels(self) -> None:
        # Engines keep pickles on disks, and copy them to every machine.
        if secret := self.holds_secret():
            message = f"auth: {secret} is a secret, and secrets never travel in a pickle. {_FIX}"
            raise ConfigurationError(message)

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
    """Any object that signs (see `Signer`), built by the caller.

    Copies that arrive in a process by pickles of the same `CustomSigner` are one there, and so
    have one session.
    """

    mode: ClassVar[str] = "custom signer"

    signer: Signer = field(repr=lambda signer: f"<{type(signer).__name__}>")

    def load(self) -> Signer:
        return self.signer

    def holds_secret(self) -> str:
        held = [self.signer, *getattr(self.signer, "__dict__", {}).values()]
        if any(str(type(each).__module__).startswith(_MODULES_OF_KEYS) for each in held):
            return f"the key of a {type(self.signer).__qualname__:.80}"
        return ""

    def __hash__(self) -> int:
        try:
            return hash(self.signer)
        except TypeError:  # a dataclass, for instance, which has an __eq__ alone
            return hash(type(self.signer))

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        self._check_travels()
        # Two signers that were unpickled differ, unless their class says otherwise.
        origin = self.__dict__.setdefault("_origin", os.urandom(16).hex())
        _known.setdefault(origin, self)
        return _arrived, (origin, self.signer)


#: Those that were pickled here or have arrived here, by the id made when they were pickled first.
_known: Final[WeakValueDictionary[str, CustomSigner]] = WeakValueDictionary()


def _arrived(origin: str, signer: Signer) -> CustomSigner:
    found = CustomSigner(signer)
    found.__dict__["_origin"] = origin
    return _known.setdefault(origin, found)


#: Where the classes of keys are, and of signers that hold one.
_MODULES_OF_KEYS: Final = ("oci.", "cryptography.")
_FIX: Final = (
    "Have each process find the credentials itself: by a profile of OCI's config file, a key_file, "
    "the environment (OCI_CLI_KEY_CONTENT, OCI_CLI_PASSPHRASE), or a principal of the machine; or "
    "pickle the run within `with run.shared():`, whose handle needs no credentials."
)
