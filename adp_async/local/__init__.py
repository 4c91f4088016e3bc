"""A whole platform on this machine: a gateway that checks signatures in front of a real MLflow.

::

                      signed request                     plain request
    adp_async ──────────────────────► Gateway ─────────────────────────► MLflow (SQLite)
    or any OCI client                 verifier, retry tokens,            or StandIn, in memory
                                      quota, faults, clock

`LocalPlatform` starts all of it and writes an OCI config file, so that a client works exactly
as in production.  It needs the extra: ``pip install 'adp-async[local]'``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from adp_async.errors import ConfigurationError

if TYPE_CHECKING:
    from adp_async.local.answers import Received
    from adp_async.local.faults import Effect, Fault, Injection
    from adp_async.local.gateway import Gateway
    from adp_async.local.mlflow_server import MlflowServerError
    from adp_async.local.platform import LocalPlatform, SessionProfile
    from adp_async.local.quota import Quota
    from adp_async.local.stand_in import ReceivedMetric, ReceivedRun
    from adp_async.local.verifier import Refused, Verifier

__all__ = [
    "Effect",
    "Fault",
    "Gateway",
    "Injection",
    "LocalPlatform",
    "MlflowServerError",
    "Quota",
    "Received",
    "ReceivedMetric",
    "ReceivedRun",
    "Refused",
    "SessionProfile",
    "Verifier",
]

_MODULES = {
    "Effect": "faults",
    "Fault": "faults",
    "Gateway": "gateway",
    "Injection": "faults",
    "LocalPlatform": "platform",
    "MlflowServerError": "mlflow_server",
    "Quota": "quota",
    "Received": "answers",
    "ReceivedMetric": "stand_in",
    "ReceivedRun": "stand_in",
    "Refused": "verifier",
    "SessionProfile": "platform",
    "Verifier": "verifier",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    try:
        module = importlib.import_module(f"{__name__}.{_MODULES[name]}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "adp_async":
            raise
        message = (
            f"the local platform needs {error.name}, which cannot be imported; "
            "install it with: pip install 'adp-async[local]'"
        )
        raise ConfigurationError(message) from error
    return getattr(module, name)
