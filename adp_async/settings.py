"""Every setting of a session: arguments, then environment, then OCI's config file -> `Settings`.

`Settings.resolve` takes arguments and environment and touches nothing else, so that a session can
be made anywhere.  `Settings.complete` adds what needs the disk or the import of ``oci``: the
endpoint of a region.  It blocks, and runs in the signer's thread when the session opens.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypedDict, TypeVar, cast
from urllib.parse import urlsplit, urlunsplit

import attrs
from attrs import evolve, field, frozen

from adp_async._sansio import rules
from adp_async._sansio.endpoints import API_VERSION
from adp_async._sansio.retry import RetryPolicy
from adp_async._sansio.rules import shown
from adp_async.auth import OCID, ApiKey, Auth, Signer, auth_from, misconfigured

if TYPE_CHECKING:
    from os import PathLike

    from adp_async.errors import ConfigurationError

__all__ = ["Knobs", "Overflow", "Settings"]

logger = logging.getLogger("adp_async")

Overflow = Literal["block", "drop"]

MEBIBYTE: Final = 2**20
GIBIBYTE: Final = 2**30

#: Locks and timers take no more; on Windows that is 49 days.
_LONGEST: Final = min(rules.LONGEST, threading.TIMEOUT_MAX)

_REGION: Final = r"(?i:[a-z]{3}|[a-z]{2,}(?:-[a-z]+)+-[0-9]+)"
_WORKSPACE: Final = r"[^\x00-\x20\x7f]+"
_PATH: Final = r"(?:[A-Za-z0-9._~!$&'()*+,;=:/-]|%[0-9A-Fa-f]{2})+"
_LABEL: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_URL: Final = (
    rf"(?i:https?)://(?:{_LABEL}(?:\.{_LABEL})*\.?|\[[0-9A-Fa-f:.]+\])(?::[^/]*)?(?:/(?:{_PATH})?)?"
)
_A_URL: Final = "https://aidp.us-ashburn-1.oci.oraclecloud.com"

#: Numbers of the environment: plain digits, as Python writes them.
_INT: Final = r"[+-]?[0-9]+(?:_[0-9]+)*"
_FLOAT: Final = rf"(?:{_INT}(?:\.[0-9]*)?|[+-]?\.[0-9]+)(?:[eE][+-]?[0-9]+)?"


class Knobs(TypedDict, total=False):
    """What a session takes by keyword; `Settings` explains each."""

    endpoint: str | None
    path_prefix: str
    object_storage_endpoint: str | None
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
    exit_timeout: float
    ca_bundle: str | PathLike[str] | None
    connect_timeout: float
    timeout: float
    call_timeout: float
    max_connections: int
    retry: RetryPolicy


# Each rule returns the plain value (None: as it is), or raises ValueError with what it must be ----

T = TypeVar("T")
Rule = Callable[[Any], Any]


def _says(broken: bool, rule: str, value: object) -> None:
    if broken:
        message = f"must be {rule.rstrip(',')}, not {shown(value)}"
        raise ValueError(message)


def _seconds(value: Any) -> float:
    return rules.seconds(value, most=_LONGEST)


def _some_seconds(value: Any) -> float:
    return rules.seconds(value, above=True, most=_LONGEST)


def _count(value: Any) -> int:
    return rules.count(value)


def _switch(value: Any) -> None:
    _says(not isinstance(value, bool), "True or False", value)


def _overflow(value: Any) -> Overflow:
    found = rules.text(value, "'block' or 'drop'", pattern="block|drop", most=100)
    return cast("Overflow", found)


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
        # With an empty HOME the home would be the root of all.
        is_nowhere = os.environ.get("HOME") == "" and (path == "~" or path.startswith("~/"))
        if is_nowhere or (not folder.is_absolute() and path.startswith("~")):
            message = f"{path!r:.80} leads to no home folder: HOME is empty or relative"
            raise ValueError(message)
        return folder.absolute()
    except RuntimeError:
        message = f"{path!r:.80} leads to no home folder: this user has none, or it is unknown"
        raise ValueError(message) from None
    except OSError:
        message = f"{path!r:.80} is relative, and there is no working folder"
        raise ValueError(message) from None


def _ca_bundle(value: Any) -> str | PathLike[str] | None:
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if value is not None and (not isinstance(path, str) or not path or "\0" in path):
        message = f"must be a file of certificates, or a folder of them, not {shown(value)}"
        raise ValueError(message)
    found: str | PathLike[str] | None = value
    return found


def _platform_id(value: Any) -> str:
    return rules.text(value, "an OCID", pattern=OCID, most=255)


def _workspace(value: Any) -> str | None:
    if value is None:
        return None
    found = rules.text(value, "the key of a workspace", pattern=_WORKSPACE, most=255)
    # What is part of a path must not be what servers resolve.
    is_part = found not in (".", "..") and found.isprintable()
    _says(not is_part, "the key of a workspace", value)
    return found


def _region(value: Any) -> str | None:
    rule = "a region such as us-ashburn-1, or its key such as iad"
    return None if value is None else rules.text(value, rule, pattern=_REGION, most=100)


def _path_prefix(value: Any) -> str:
    found = rules.text(value, "a path such as /api", pattern=f"(?:{_PATH})?", most=1000)
    _check_path(found)
    return found


def _endpoint(value: Any) -> str | None:
    if value is None:
        return None
    _says(not isinstance(value, str), f"a URL such as {_A_URL}", value)
    endpoint = str.__str__(value).strip()
    # Whatever stands before an @ may be a password, and isn't shown.
    if "@" in endpoint:
        message = "a URL must not contain credentials; requests are signed"
        raise ValueError(message)
    # A query may be a secret as well.
    if "?" in endpoint or "#" in endpoint:
        message = f"must be a URL such as {_A_URL}, without a query or a fragment"
        raise ValueError(message)
    rules.text(endpoint, f"a URL such as {_A_URL}", pattern=_URL, most=2000)
    return _checked_url(endpoint)


def _checked_url(endpoint: str) -> str:
    try:
        parts = urlsplit(endpoint)
        host, port = parts.hostname or "", parts.port
        if ":" in host:
            ipaddress.IPv6Address(host)
    except ValueError as error:
        message = f"{shown(endpoint)} is not a URL: {error}"
        raise ValueError(message) from None
    if port == 0 or parts.netloc.endswith(":"):
        message = f"{shown(endpoint)} is not a URL: a port is a number from 1 to 65535"
        raise ValueError(message)
    if parts.scheme == "http" and not is_loopback(host):
        message = f"plain http is allowed for localhost only, not for {shown(host)[1:-1]}"
        raise ValueError(message)
    _check_path(parts.path)
    # The host as it will stand in the signed header.
    return urlunsplit((parts.scheme, parts.netloc.lower(), parts.path, "", ""))


def _check_path(path: str) -> None:
    # Servers and proxies resolve them, and would answer for another path than was signed.
    if not {".", ".."}.isdisjoint(path.split("/")):
        message = f"must not have '.' or '..' in its path: {shown(path)}"
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


def _instance_of(kind: type, called: str) -> Rule:
    def rule(value: Any) -> None:
        if not isinstance(value, kind):
            message = f"must be {called}, not {type(value).__name__:.40}"
            raise ValueError(message)

    return rule


# How text of the environment is read -------------------------------------------------------------

_SWITCHES: Final = {
    **dict.fromkeys(("on", "true", "yes", "1"), True),
    **dict.fromkeys(("off", "false", "no", "0"), False),
}


def _switch_from(text: str) -> bool:
    switch = _SWITCHES.get(text.lower())
    if switch is None:
        message = f"must be on or off, not {shown(text)}"
        raise ValueError(message)
    return switch


def _spool_from(text: str) -> bool | str:
    return _SWITCHES.get(text.lower(), text)


def _float_from(text: str) -> float:
    return float(_number_from(text, "a number such as 0.5, without a unit", _FLOAT))


def _int_from(text: str) -> int:
    return int(_number_from(text, "a whole number such as 100, without a unit", _INT))


def _number_from(text: str, rule: str, pattern: str) -> str:
    if len(text) > 100 or not re.fullmatch(pattern, text):
        message = f"must be {rule}, not {shown(text)}"
        raise ValueError(message)
    return text


def _knob(
    default: T,
    rule: Rule,
    *,
    read: Callable[[str], Any] = str,
    variable: str = "",
    also: str = "",
    fix: str = "",
) -> T:
    """A field that is checked by *rule* and can come from an environment *variable* as well.

    The variable is ``ADP_ASYNC_<NAME>`` unless it has a name of its own.  *also* is what others
    call it, which is read when it isn't set.
    """
    metadata = {"rule": rule, "read": read, "variable": variable, "also": also, "fix": fix}
    found: T = field(default=default, kw_only=True, metadata=metadata)
    return found


def _by_its_rule(_: type, knobs: list[attrs.Attribute[Any]]) -> list[attrs.Attribute[Any]]:
    """Every field becomes what its rule returns, however a `Settings` is made."""
    return [knob.evolve(converter=partial(_argument, knob)) for knob in knobs]


def _argument(knob: attrs.Attribute[Any], value: object) -> Any:
    return _checked(knob, value, f"the argument {knob.name}")


def _checked(knob: attrs.Attribute[Any], value: object, looked: str | Callable[[], str]) -> Any:
    try:
        found = knob.metadata["rule"](value)
        return value if found is None else found
    except ValueError as error:
        problem = str(error)
    except Exception as error:  # what an object's own methods raise when they are asked
        problem = f"{shown(value)} cannot be used: it raised {type(error).__name__}"
    where = looked if isinstance(looked, str) else looked()
    raise misconfigured(knob.name, problem, looked=where, fix=_fix(knob)) from None


def variable_of(knob: attrs.Attribute[Any]) -> str:
    """The environment variable of one field of `Settings`."""
    return knob.metadata["variable"] or f"ADP_ASYNC_{knob.name.upper()}"


def variables_of(knob: attrs.Attribute[Any]) -> tuple[str, ...]:
    """The variables that are read for it, the first that is set wins."""
    also = knob.metadata.get("also")
    return (variable_of(knob), also) if also else (variable_of(knob),)


def found_in(environ: Mapping[str, str], knob: attrs.Attribute[Any]) -> str | None:
    """The first of its variables that is set.  One that is empty, or blank, is not."""
    return next((name for name in variables_of(knob) if environ.get(name, "").strip()), None)


def _fix(knob: attrs.Attribute[Any]) -> str:
    known: str = knob.metadata["fix"]
    return known or f"Pass {knob.name}=, or set {variable_of(knob)} in the environment."


@frozen(field_transformer=_by_its_rule)
class Settings:
    """Every setting of a session, checked.  Durations are seconds, sizes bytes.

    Where the service is, and who asks:

    *platform_id*: the OCID of the AI Data Platform.  ``AIDP_INSTANCE_ID``.
    *workspace*: the key of the workspace; operations of the whole platform do without.
    ``AIDP_WORKSPACE``.
    *endpoint*: the base URL, ``https://aidp.<region>.oci.<domain>`` unless given; ``http`` only
    to this machine.  ``AIDP_ENDPOINT``.
    *path_prefix*: what some gateways want before ``/20260430``, such as ``/api``.  Default none.
    *object_storage_endpoint*: where artifacts with ``oci:`` go; default the region's Object
    Storage.
    *region*: in place of an endpoint, ``us-ashburn-1`` or ``iad``; default that of the
    credentials.  ``OCI_REGION``, then ``OCI_CLI_REGION``.
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
    *close_timeout*: the longest that leaving a run and its session takes.  Default 25 s, below the
    usual 30 s grace of process managers.
    *exit_timeout*: for how long a session that nobody closed delivers when the interpreter ends.
    Default 10 s.

    What survives the process:

    *spool*: whether accepted records are journaled on disk, or the folder for it: ``~`` is the
    user's home, and a relative one is seen from where the session is made.  Default True.
    *spool_interval*: how often, and so what a killed process can lose at most.  Default 0.2 s.
    *spool_limit*: the size the journal may grow to.  Default 4 GiB.
    *recover*: whether records of a process that died are delivered.  Default True.

    How it calls:

    *ca_bundle*: the certificates to trust in place of the system's: a file in PEM format, or a
    folder of hashed certificates.  Default: what ``REQUESTS_CA_BUNDLE`` or else ``SSL_CERT_FILE``
    names when the session opens.
    *connect_timeout*: for connecting, TLS included.  Default 10 s.
    *timeout*: for one attempt from start to end.  Default 60 s.
    *call_timeout*: for a whole direct call with its retries.  Default 300 s.
    *max_connections*: open at once.  Default 100.
    *retry*: how failures are tried again, see `RetryPolicy`.

    Each has an environment variable: the one named above, or else ``ADP_ASYNC_`` and its name in
    capitals (``ADP_ASYNC_SPOOL=off``); *retry* has none.  Numbers there are plain digits (``0.5``,
    ``1e3``, ``64_000_000``), without a unit; a variable that is empty is not set.  An argument
    wins.

    Durations are at most ten years, counts and sizes less than 2**63, and whatever can be such a
    number is taken, text apart.  Blanks around a text are dropped.  What is wrong raises
    `ConfigurationError`.
    """

    platform_id: str = field(
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
    object_storage_endpoint: str | None = _knob(
        None,
        _endpoint,
        fix="Leave it out, or give a URL such as "
        "https://objectstorage.us-ashburn-1.oraclecloud.com.",
    )
    region: str | None = _knob(None, _region, variable="OCI_REGION", also="OCI_CLI_REGION")
    auth: Auth = field(
        factory=ApiKey,
        kw_only=True,
        metadata={"rule": _instance_of(Auth, "an Auth"), "variable": "OCI_CLI_AUTH", "fix": ""},
    )

    linger: float = _knob(1.0, _seconds, read=_float_from)
    max_in_flight: int = _knob(4, _count, read=_int_from)
    buffer_limit: int = _knob(256 * MEBIBYTE, _count, read=_int_from)
    max_block: float = _knob(10.0, _seconds, read=_float_from)
    overflow: Overflow = _knob("block", _overflow)  # noqa: RUF009 - _knob makes a field
    close_timeout: float = _knob(25.0, _seconds, read=_float_from)
    exit_timeout: float = _knob(10.0, _seconds, read=_float_from)

    spool: bool | str | PathLike[str] = _knob(True, _spool, read=_spool_from)  # noqa: RUF009
    spool_interval: float = _knob(0.2, _seconds, read=_float_from)
    spool_limit: int = _knob(4 * GIBIBYTE, _count, read=_int_from)
    recover: bool = _knob(True, _switch, read=_switch_from)

    ca_bundle: str | PathLike[str] | None = _knob(None, _ca_bundle)  # noqa: RUF009 - as above
    connect_timeout: float = _knob(10.0, _some_seconds, read=_float_from)
    timeout: float = _knob(60.0, _some_seconds, read=_float_from)
    call_timeout: float = _knob(300.0, _some_seconds, read=_float_from)
    max_connections: int = _knob(100, _count, read=_int_from)
    retry: RetryPolicy = field(
        factory=RetryPolicy,
        kw_only=True,
        metadata={
            "rule": _instance_of(RetryPolicy, "a RetryPolicy"),
            "variable": "",
            "fix": "Pass retry=RetryPolicy(...).",
        },
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
        if unknown := [name for name in given if name not in knobs]:
            raise TypeError(_unknown(unknown, knobs))
        values: dict[str, Any] = {"auth": auth_from(given.pop("auth", None), environ)}
        for name, knob in knobs.items():
            if name in given:
                values[name] = given[name]
            elif "read" in knob.metadata and (variable := found_in(environ, knob)):
                values[name] = _from_environment(knob, variable, environ[variable].strip())
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
            knob = attrs.fields_dict(type(self))["region"]
            region = _checked(knob, region, self.auth.place_of_region)
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


def _unknown(names: list[str], knobs: Iterable[str]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(str(names[0])[:100], knobs, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    settings = "setting" if len(names) == 1 else "settings"
    return f"unknown {settings} {', '.join(shown(name) for name in names[:10])}{hint}"


def _from_environment(knob: attrs.Attribute[Any], variable: str, text: str) -> Any:
    looked = f"the environment's {variable}"
    try:
        value = knob.metadata["read"](text)
    except ValueError as error:
        raise misconfigured(knob.name, str(error), looked=looked, fix=_fix(knob)) from None
    return _checked(knob, value, looked)


def _missing(knob: attrs.Attribute[Any]) -> ConfigurationError:
    looked = f"the argument {knob.name} and the environment's {variable_of(knob)}"
    return misconfigured(knob.name, "is missing", looked=looked, fix=_fix(knob))


def _no_region() -> ConfigurationError:
    looked = (
        "the arguments endpoint and region, AIDP_ENDPOINT, OCI_REGION, OCI_CLI_REGION and the "
        "credentials"
    )
    fix = "Set one of them, or a line `region=us-ashburn-1` in the profile of OCI's config file."
    return misconfigured(
        "endpoint", "neither an endpoint nor a region is set", looked=looked, fix=fix
    )


def _endpoint_of(region: str) -> str:
    import oci.regions

    known = oci.regions.get_region_from_short_name(region)
    if "-" not in known:
        fix = "Give the region in full, such as us-ashburn-1."
        raise misconfigured("region", f"{shown(region)} is unknown", looked="oci.regions", fix=fix)
    template = "https://aidp.{region}.oci.{secondLevelDomain}"
    endpoint: str = oci.regions.endpoint_for(
        "aidp", region=known, service_endpoint_template=template
    )
    if not oci.regions.is_region(known):
        logger.warning("oci doesn't know the region %s; trying %s", known, endpoint)
    return endpoint
