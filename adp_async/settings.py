"""Every setting of a session: arguments, then environment, then OCI's config file -> `Settings`.

`Settings.resolve` takes arguments and environment and touches nothing else, so that a session can
be made anywhere.  `Settings.complete` adds what needs the disk or the import of ``oci``: the
endpoint of a region.  It blocks, and runs in the signer's thread when the session opens.
"""

from __future__ import annotations

import ipaddress
import logging
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypedDict, TypeVar
from urllib.parse import urlsplit

import attrs
from attrs import evolve, field, frozen

from adp_async._sansio.retry import RetryPolicy
from adp_async.auth import ApiKey, Auth, Signer, auth_from, is_ocid, misconfigured

if TYPE_CHECKING:
    from os import PathLike

    from adp_async.errors import ConfigurationError

__all__ = ["Knobs", "Overflow", "Settings"]

logger = logging.getLogger("adp_async")

Overflow = Literal["block", "drop"]

MEBIBYTE: Final = 2**20
GIBIBYTE: Final = 2**30

#: The version of the API, the first part of every path.
API_VERSION: Final = "20260430"

_REGION: Final = r"[a-z]{3}|[a-z]{2,}(?:-[a-z]+)+-[0-9]+"
_URL_CHARACTERS: Final = r"[A-Za-z0-9._~%!$&'()*+,;=:@/\[\]-]+"
_WORKSPACE: Final = r"[^\x00-\x20\x7f]+"


class Knobs(TypedDict, total=False):
    """What a session takes by keyword; `Settings` explains each."""

    endpoint: str | None
    path_prefix: str
    region: str | None
    auth: Auth | Signer | str | None
    linger: float
    max_in_flight: int
    buffer_limit: int
    max_block: float
    overflow: Overflow
    spool: bool | str | PathLike[str]
    spool_interval: float
    spool_limit: int
    recover: bool
    close_timeout: float
    connect_timeout: float
    timeout: float
    call_timeout: float
    max_connections: int
    retry: RetryPolicy


# What a setting may be: each rule raises ValueError with the rule it found broken -----------------

Rule = Callable[[Any], None]
T = TypeVar("T")


def _says(broken: bool, rule: str, value: object) -> None:
    if broken:
        shown = repr(value)
        message = f"{rule} is needed, not {shown if len(shown) <= 80 else shown[:77] + '...'}"
        raise ValueError(message)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _seconds(value: Any) -> None:
    _says(not _is_number(value) or value < 0, "a number of seconds, 0 or more,", value)


def _some_seconds(value: Any) -> None:
    _says(not _is_number(value) or value <= 0, "a number of seconds above 0", value)


def _count(value: Any) -> None:
    is_int = isinstance(value, int) and not isinstance(value, bool)
    _says(not is_int or value < 1, "an int, 1 or more,", value)


def _switch(value: Any) -> None:
    _says(not isinstance(value, bool), "True or False", value)


def _overflow(value: Any) -> None:
    _says(value not in ("block", "drop"), "'block' or 'drop'", value)


def _spool(value: Any) -> None:
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    is_path = isinstance(path, str) and bool(path)
    _says(not isinstance(value, bool) and not is_path, "True, False or a folder", value)
    if isinstance(path, str):
        absolute_folder(path)


def absolute_folder(path: str | PathLike[str]) -> Path:
    """*path* from the root, its ``~`` expanded; ValueError with the rule that it breaks."""
    path = os.fspath(path)
    is_encodable = path.encode("utf-8", "replace").decode() == path
    _says("\0" in path or not is_encodable, "a folder without NUL and surrogates in its name", path)
    try:
        folder = Path(path).expanduser()
        if not folder.is_absolute() and path.startswith("~"):
            message = f"{path!r:.80} leads to no home folder: HOME is empty or relative"
            raise ValueError(message)
        return folder.absolute()
    except RuntimeError:
        message = f"{path!r:.80} leads to no home folder: this user has none, or it is unknown"
        raise ValueError(message) from None
    except OSError:
        message = f"{path!r:.80} is relative, and there is no working folder"
        raise ValueError(message) from None


def _platform_id(value: Any) -> None:
    _says(not isinstance(value, str) or not is_ocid(value), "an OCID", value)


def _workspace(value: Any) -> None:
    good = value is None or (isinstance(value, str) and re.fullmatch(_WORKSPACE, value))
    _says(not good, "the key of a workspace", value)


def _region(value: Any) -> None:
    good = value is None or (isinstance(value, str) and re.fullmatch(_REGION, value.lower()))
    _says(not good, "a region such as us-ashburn-1, or its key such as iad,", value)


def _path_prefix(value: Any) -> None:
    good = isinstance(value, str) and (not value or re.fullmatch(_URL_CHARACTERS, value))
    _says(not good, "a path such as /api", value)


def _endpoint(value: Any) -> None:
    if value is not None:
        _says(not isinstance(value, str), "a URL", value)
        _check_endpoint(value)


def _check_endpoint(endpoint: str) -> None:
    # Whatever stands before an @ may be a password, and isn't shown.
    if "@" in endpoint:
        message = "user and password don't belong into a URL; requests are signed"
        raise ValueError(message)
    try:
        parts = urlsplit(endpoint)
        _ = parts.port  # looks whether it is one
    except ValueError as error:
        message = f"{endpoint!r:.80} is no URL: {error}"
        raise ValueError(message) from None
    whole = parts.scheme in ("https", "http") and parts.hostname
    good = whole and re.fullmatch(_URL_CHARACTERS, endpoint)
    _says(not good, "a URL such as https://aidp.us-ashburn-1.oci.oraclecloud.com", endpoint)
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        message = f"http is for this machine only, and {parts.hostname} is another"
        raise ValueError(message)


def is_loopback(host: str) -> bool:
    """Whether *host* is this machine, by its name or address alone.

    >>> is_loopback("localhost"), is_loopback("127.0.0.1"), is_loopback("10.0.0.1")
    (True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _instance_of(kind: type) -> Rule:
    def rule(value: Any) -> None:
        _says(not isinstance(value, kind), f"a {kind.__name__}", value)

    return rule


# How text of the environment is read -------------------------------------------------------------

_SWITCHES: Final = {
    **dict.fromkeys(("on", "true", "yes", "1"), True),
    **dict.fromkeys(("off", "false", "no", "0"), False),
}


def _switch_from(text: str) -> bool:
    switch = _SWITCHES.get(text.lower())
    if switch is None:
        message = f"'on' or 'off' is needed, not {text!r:.80}"
        raise ValueError(message)
    return switch


def _spool_from(text: str) -> bool | str:
    return _SWITCHES.get(text.lower(), text)


def _knob(
    default: T, rule: Rule, *, read: Callable[[str], Any] = str, variable: str = "", fix: str = ""
) -> T:
    """A field that is checked by *rule* and can come from an environment *variable* as well.

    The variable is ``ADP_ASYNC_<NAME>`` unless it has a name of its own.
    """
    metadata = {"rule": rule, "read": read, "variable": variable, "fix": fix}
    found: T = field(default=default, kw_only=True, validator=_follows_rule, metadata=metadata)
    return found


def _follows_rule(settings: object, knob: attrs.Attribute[Any], value: object) -> None:
    _check(knob, value, f"the argument {knob.name}")


def _check(knob: attrs.Attribute[Any], value: object, looked: str) -> None:
    try:
        knob.metadata["rule"](value)
    except ValueError as error:
        raise misconfigured(knob.name, str(error), looked=looked, fix=_fix(knob)) from None


def variable_of(knob: attrs.Attribute[Any]) -> str:
    """The environment variable of one field of `Settings`."""
    return knob.metadata["variable"] or f"ADP_ASYNC_{knob.name.upper()}"


def _fix(knob: attrs.Attribute[Any]) -> str:
    known: str = knob.metadata["fix"]
    return known or f"Pass {knob.name}=, or set {variable_of(knob)} in the environment."


@frozen
class Settings:
    """Every setting of a session, checked.  Durations are seconds, sizes bytes.

    Where the service is, and who asks:

    *platform_id*: the OCID of the AI Data Platform.  ``AIDP_INSTANCE_ID``.
    *workspace*: the key of the workspace; operations of the whole platform do without.
    ``AIDP_WORKSPACE``.
    *endpoint*: the base URL, ``https://aidp.<region>.oci.<domain>`` unless given; ``http`` only
    to this machine.  ``AIDP_ENDPOINT``.
    *path_prefix*: what some gateways want before ``/20260430``, such as ``/api``.  Default none.
    *region*: in place of an endpoint, ``us-ashburn-1`` or ``iad``; default that of the
    credentials.  ``OCI_REGION``.
    *auth*: how to sign, see `adp_async.auth`.  Default an API key.  ``OCI_CLI_AUTH``.

    How it logs:

    *linger*: the longest a record waits for company.  Longer means fewer requests and later
    charts.  Default 1 s.
    *max_in_flight*: batches on their way at once, at most: as many as make it faster are used.
    More help on a slow line.  Default 4.
    *buffer_limit*: the memory that waiting records may take.  Default 256 MiB.
    *overflow*: what happens beyond that without a spool: ``"block"`` makes a thread wait,
    ``"drop"`` drops new metrics and counts them.  Default ``"block"``.
    *max_block*: the longest a thread waits then, before it gets `BufferFull`.  Default 10 s.
    *close_timeout*: the longest that leaving a session takes.  Default 30 s.

    What survives the process:

    *spool*: whether accepted records are journaled on disk, or the folder for it: ``~`` is the
    user's home, and a relative one is seen from where the session is made.  Default True.
    *spool_interval*: how often, and so what a killed process can lose at most.  Default 0.2 s.
    *spool_limit*: the size the journal may grow to.  Default 4 GiB.
    *recover*: whether records of a process that died are delivered.  Default True.

    How it calls:

    *connect_timeout*: for connecting, TLS included.  Default 10 s.
    *timeout*: for one attempt from start to end.  Default 60 s.
    *call_timeout*: for a whole direct call with its retries.  Default 300 s.
    *max_connections*: open at once.  Default 100.
    *retry*: how failures are tried again, see `RetryPolicy`.

    Each has an environment variable: the one named above, or else ``ADP_ASYNC_`` and its name in
    capitals (``ADP_ASYNC_SPOOL=off``); *retry* has none.  An argument wins.  What is wrong raises
    `ConfigurationError`.
    """

    platform_id: str = field(
        validator=_follows_rule,
        metadata={
            "rule": _platform_id,
            "read": str,
            "variable": "AIDP_INSTANCE_ID",
            "fix": "Pass platform_id= or set AIDP_INSTANCE_ID: the OCID of the AI Data Platform, "
            "ocid1.aidataplatform...., as OCI's console shows it.",
        },
    )
    workspace: str | None = _knob(None, _workspace, variable="AIDP_WORKSPACE")
    endpoint: str | None = _knob(
        None,
        _endpoint,
        variable="AIDP_ENDPOINT",
        fix="Use https, or http to localhost; or leave it out and set a region.",
    )
    path_prefix: str = _knob("", _path_prefix)
    region: str | None = _knob(None, _region, variable="OCI_REGION")
    auth: Auth = field(
        factory=ApiKey,
        kw_only=True,
        validator=_follows_rule,
        metadata={"rule": _instance_of(Auth), "variable": "OCI_CLI_AUTH", "fix": ""},
    )

    linger: float = _knob(1.0, _seconds, read=float)
    max_in_flight: int = _knob(4, _count, read=int)
    buffer_limit: int = _knob(256 * MEBIBYTE, _count, read=int)
    max_block: float = _knob(10.0, _seconds, read=float)
    overflow: Overflow = _knob("block", _overflow)  # noqa: RUF009 - _knob makes a field
    close_timeout: float = _knob(30.0, _seconds, read=float)

    spool: bool | str | PathLike[str] = _knob(True, _spool, read=_spool_from)  # noqa: RUF009
    spool_interval: float = _knob(0.2, _seconds, read=float)
    spool_limit: int = _knob(4 * GIBIBYTE, _count, read=int)
    recover: bool = _knob(True, _switch, read=_switch_from)

    connect_timeout: float = _knob(10.0, _some_seconds, read=float)
    timeout: float = _knob(60.0, _some_seconds, read=float)
    call_timeout: float = _knob(300.0, _some_seconds, read=float)
    max_connections: int = _knob(100, _count, read=int)
    retry: RetryPolicy = field(
        factory=RetryPolicy,
        kw_only=True,
        validator=_follows_rule,
        metadata={"rule": _instance_of(RetryPolicy), "variable": "", "fix": "Pass a RetryPolicy."},
    )

    @classmethod
    def resolve(
        cls,
        arguments: Mapping[str, object] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Self:
        """The settings that *arguments* and *environ* (default: the process's) make together.

        An argument that is None is one that isn't given.
        """
        given = {name: value for name, value in (arguments or {}).items() if value is not None}
        environ = os.environ if environ is None else environ
        knobs = attrs.fields_dict(cls)
        if unknown := given.keys() - knobs.keys():
            message = f"a session has no setting {', '.join(sorted(unknown))}"
            raise TypeError(message)
        values: dict[str, Any] = {"auth": auth_from(given.pop("auth", None), environ)}  # type: ignore[arg-type]
        for name, knob in knobs.items():
            if name in given:
                values[name] = given[name]
            elif (text := environ.get(variable_of(knob))) and "read" in knob.metadata:
                values[name] = _from_environment(knob, text.strip())
        if "platform_id" not in values:
            raise _missing(knobs["platform_id"])
        return cls(**values)

    def complete(self, credentials_region: str | None = None) -> Self:
        """With the endpoint of the region, or else of the *credentials_region*.

        Blocks while ``oci``, which knows all regions, is imported.
        """
        if self.endpoint is not None:
            return self
        region = self.region or credentials_region
        if region is None:
            raise _no_region()
        if self.region is None:
            looked = "OCI's config file or credentials"
            _check(attrs.fields_dict(type(self))["region"], region, looked)
        return evolve(self, endpoint=_endpoint_of(region), region=region)

    @property
    def base_url(self) -> str:
        """What every URL begins with, up to ``/20260430``."""
        if self.endpoint is None:
            raise _no_region()
        # Some give the endpoint with the API's version, as the address bar shows it.
        base = self.endpoint.rstrip("/").removesuffix(f"/{API_VERSION}")
        prefix = self.path_prefix.strip("/")
        return f"{base}/{prefix}" if prefix else base

    def required_workspace(self) -> str:
        """The workspace, or `ConfigurationError` when there is none."""
        if self.workspace is None:
            raise _missing(attrs.fields_dict(type(self))["workspace"])
        return self.workspace


def _from_environment(knob: attrs.Attribute[Any], text: str) -> Any:
    looked = f"the environment's {variable_of(knob)}"
    try:
        value = knob.metadata["read"](text)
    except ValueError:
        kind = "on or off" if knob.metadata["read"] is _switch_from else "a number"
        problem = f"{kind} is needed, not {text!r:.80}"
        raise misconfigured(knob.name, problem, looked=looked, fix=_fix(knob)) from None
    _check(knob, value, looked)
    return value


def _missing(knob: attrs.Attribute[Any]) -> ConfigurationError:
    looked = f"the argument {knob.name} and the environment's {variable_of(knob)}"
    return misconfigured(knob.name, "is missing", looked=looked, fix=_fix(knob))


def _no_region() -> ConfigurationError:
    looked = "the arguments endpoint and region, AIDP_ENDPOINT, OCI_REGION and the credentials"
    fix = "Set one of them, or a line `region=us-ashburn-1` in the profile of OCI's config file."
    return misconfigured("endpoint", "nothing says where the service is", looked=looked, fix=fix)


def _endpoint_of(region: str) -> str:
    import oci.regions

    known = oci.regions.get_region_from_short_name(region)
    if "-" not in known:
        fix = "Give the region in full, such as us-ashburn-1."
        raise misconfigured("region", f"{region!r} is unknown", looked="oci.regions", fix=fix)
    template = "https://aidp.{region}.oci.{secondLevelDomain}"
    endpoint: str = oci.regions.endpoint_for(
        "aidp", region=known, service_endpoint_template=template
    )
    if not oci.regions.is_region(known):
        logger.warning("oci doesn't know the region %s; trying %s", known, endpoint)
    return endpoint
