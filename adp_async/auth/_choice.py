"""What a user passes as ``auth``."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any, Final

from adp_async.auth._base import Auth, CustomSigner, Signer
from adp_async.auth._keys import ApiKey, SessionToken
from adp_async.auth._principals import (
    DelegationToken,
    InstancePrincipal,
    ResourcePrincipal,
    WorkloadIdentity,
)
from adp_async.errors import misconfigured

if TYPE_CHECKING:
    from collections.abc import Mapping

# Compiled when first used, so that importing takes no time for it.
_MODE: Final = r"[A-Za-z_ -]{1,40}"

_MODES: Final[dict[str, type[Auth]]] = {
    each.mode: each
    for each in (
        ApiKey,
        SessionToken,
        InstancePrincipal,
        DelegationToken,
        ResourcePrincipal,
        WorkloadIdentity,
    )
}


def auth_from(value: object, environ: Mapping[str, str]) -> Auth:
    """What ``Session(auth=...)`` means: one of the classes here, a mode's name, or a signer.

    None is the mode that ``OCI_CLI_AUTH`` names, or else an API key.
    """
    looked = "the environment's OCI_CLI_AUTH" if value is None else "the argument auth"
    try:
        if isinstance(value, Auth):
            return value
        if value is not None and not isinstance(value, str):
            return CustomSigner(_signing(value))
        text = environ.get("OCI_CLI_AUTH", "") if value is None else str.__str__(value)
        problem = _unknown_mode(mode := text.strip() or ApiKey.mode)
        if not problem:
            return _MODES[mode]()
    except ValueError as error:
        problem = str(error)
    except Exception as error:  # raised by the object's own methods
        problem = f"{type(value).__name__:.40} cannot sign: it raised {type(error).__name__}"
    fix = f"Use one of {', '.join(_MODES)}, a class of adp_async.auth, or an object that signs."
    raise misconfigured("auth", problem, looked=looked, fix=fix) from None


def _unknown_mode(mode: str) -> str:
    if mode in _MODES:
        return ""
    # Anything longer may be a key or a token.
    return f"{mode!r} is unknown" if re.fullmatch(_MODE, mode) else "is not the name of a mode"


def _signing(value: Any) -> Signer:
    """*value* if it looks like a signer, else ValueError with what it lacks."""
    name = type(value).__name__[:40]
    if isinstance(value, type):
        message = f"is the class {value.__name__:.40}; an instance of it is needed"
    elif not callable(value):
        message = f"an object of type {name} cannot sign: it lacks __call__(request)"
    elif inspect.iscoroutinefunction(value) or inspect.iscoroutinefunction(value.__call__):
        message = f"an object of type {name} cannot sign: it must not be a coroutine function"
    elif not _takes_a_request(value):
        message = f"an object of type {name} cannot sign: it must take one argument, the request"
    else:
        signer: Signer = value
        return signer
    raise ValueError(message)


def _takes_a_request(value: Any) -> bool:
    try:
        inspect.signature(value).bind(None)
    except TypeError:
        return False
    except ValueError:  # a built-in without a signature
        return True
    return True
