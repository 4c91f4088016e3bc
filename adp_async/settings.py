"""Every setting of a session: arguments, then environment, then OCI's config file -> `Settings`.

`Settings.resolve` takes arguments and environment and touches nothing else, so that a session can
be made anywhere.  `Settings.complete` adds what may need the disk or the import of ``oci``: the
endpoint of a region.  It may block, and runs in the signer's thread when the session opens.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypedDict

import attrs
from attrs import evolve, field, frozen

from adp_async._hop import through_agent
from adp_async._knobs import (
    AGENT,
    CA_BUNDLE,
    COUNT,
    OVERFLOW,
    SECONDS,
    SOME_SECONDS,
    SPOOL,
    SWITCH,
    Kind,
    by_its_rule,
    checked,
    found_in,
    from_environment,
    instance_of,
    knob,
    missing,
)
from adp_async._sansio import service_address
from adp_async._sansio.endpoints import API_VERSION
from adp_async._sansio.retry import RetryPolicy
from adp_async._sansio.rules import shown
from adp_async.auth import ApiKey, Auth, Signer, auth_from
from adp_async.errors import misconfigured

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from os import PathLike

    from adp_async.errors import ConfigurationError

__all__ = ["Knobs", "Overflow", "Settings"]

logger = logging.getLogger("adp_async")

Overflow = Literal["block", "drop"]

MEBIBYTE: Final = 2**20
GIBIBYTE: Final = 2**30


class Knobs(TypedDict, total=False):
    """What a session takes by keyword; `Settings` explains each."""

    endpoint: str | None
    path_prefix: str
    object_storage_endpoint: str | None
    page_url: str | None
    region: str | None
    auth: Auth | Signer | str | None
    agent: str | PathLike[str] | None
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
    progress: bool
    ca_bundle: str | PathLike[str] | None
    connect_timeout: float
    timeout: float
    call_timeout: float
    max_connections: int
    retry: RetryPolicy


@frozen(field_transformer=by_its_rule)
class Settings:
    """Every setting of a session, checked.  Durations are seconds, sizes bytes.

    The service, and the credentials:

    *platform_id*: the OCID of the AI Data Platform.  ``AIDP_INSTANCE_ID``.
    *workspace*: the key of the workspace; operations of the whole platform do without.
    ``AIDP_WORKSPACE``.
    *endpoint*: the base URL, ``https://aidp.<region>.oci.<domain>`` unless given; ``http`` only
    to this machine.  ``AIDP_ENDPOINT``.
    *path_prefix*: what some gateways expect before ``/20260430``, such as ``/api``.  Default none.
    *object_storage_endpoint*: where artifacts with ``oci:`` go; default the region's Object
    Storage.
    *page_url*: where a run's page is, for `Run.url`: a template such as
    ``https://host/#/experiments/{experiment_id}/runs/{run_id}``; ``{workspace}`` and
    ``{platform_id}`` may be in it, too.  Default none.
    *region*: in place of an endpoint, ``us-ashburn-1`` or ``iad``; default that of the
    credentials.  ``OCI_REGION``, then ``OCI_CLI_REGION``.
    *auth*: how to sign, see `adp_async.auth`.  Default an API key.  ``OCI_CLI_AUTH``.
    *agent*: the socket, or the file, of an ``adp-async agent`` that has the credentials: requests
    go there, unsigned.  Default none.  A session with an *endpoint* or *auth* of its own does not
    look for one in the environment.

    How it logs:

    *linger*: the longest a record waits for company, or some turns longer while the service refuses
    requests.  Longer means fewer requests and later charts.  Default 1 s.
    *max_in_flight*: the most batches in flight at once; only as many are used as make delivery
    faster.  More help on a slow line.  Default 4.
    *buffer_limit*: the memory that waiting records may take.  Default 256 MiB.
    *overflow*: what happens beyond that when there is no spool: ``"block"`` makes a thread wait,
    ``"drop"`` drops new metrics and counts them.  Default ``"block"``.
    *max_block*: the longest a thread waits for room, before it gets `BufferFull`.  Default 10 s.
    *close_timeout*: the maximum time to exit a run and its session.  Default 25 s, below the
    usual 30 s grace of process managers.
    *exit_timeout*: how long a session that was not closed goes on delivering when the interpreter
    ends.
    Default 10 s.
    *progress*: whether a flush, a finish and leaving show how far they are when they take longer
    than 2 s: a line in a notebook and in a terminal, else a line of the log now and then.  In the
    first two, the link of a run that starts is printed as well.  Default True.

    What survives the process:

    *spool*: whether accepted records are journaled on disk, or the folder for it: ``~`` is the
    user's home, and a relative one starts where the session is created.  Default True.
    *spool_interval*: how often, and thus the most a killed process can lose.  Default 0.2 s.
    *spool_limit*: the size the journal may grow to.  Default 4 GiB.
    *recover*: whether records of a process that died are delivered.  Default True.

    How it calls:

    *ca_bundle*: the certificates to trust instead of the system's: a file in PEM format, or a
    folder of hashed certificates.  Default: what ``REQUESTS_CA_BUNDLE`` or else ``SSL_CERT_FILE``
    names when the session opens.
    *connect_timeout*: for connecting, TLS included.  Default 10 s.
    *timeout*: for one attempt from start to end.  Default 60 s.
    *call_timeout*: for a whole direct call with its retries.  Default 300 s.
    *max_connections*: the most open at once.  Default 100.
    *retry*: how failed requests are retried, see `RetryPolicy`.

    Each has an environment variable: the one named above, or else ``ADP_ASYNC_`` and its name in
    capitals (``ADP_ASYNC_SPOOL=off``); *retry* has none.  Numbers there are plain digits (``0.5``,
    ``1e3``, ``64_000_000``), without a unit; a variable that is empty is not set.  An argument
    wins.

    Durations are at most ten years, counts and sizes less than 2**63; anything that converts to
    such a number is accepted, except text.  Blanks around a text are dropped.  Anything else
    raises `ConfigurationError`.
    """

    platform_id: str = field(
        metadata={
            "rule": service_address.platform_id,
            "read": str,
            "variable": "AIDP_INSTANCE_ID",
            "fix": "Pass platform_id= or set AIDP_INSTANCE_ID: the OCID of the AI Data Platform, "
            "ocid1.aidataplatform...., as OCI's console shows it.",
        },
    )
    workspace: str | None = knob(None, Kind(service_address.workspace), variable="AIDP_WORKSPACE")
    endpoint: str | None = knob(
        None,
        Kind(service_address.endpoint),
        variable="AIDP_ENDPOINT",
        fix="Use https, or http to localhost; or leave it out and set a region.",
    )
    path_prefix: str = knob("", Kind(service_address.path_prefix))
    object_storage_endpoint: str | None = knob(
        None,
        Kind(service_address.endpoint),
        fix="Leave it out, or give a URL such as "
        "https://objectstorage.us-ashburn-1.oraclecloud.com.",
    )
    page_url: str | None = knob(None, Kind(service_address.page_url))
    region: str | None = knob(
        None, Kind(service_address.region), variable="OCI_REGION", also="OCI_CLI_REGION"
    )
    auth: Auth = field(
        factory=ApiKey,
        kw_only=True,
        metadata={"rule": instance_of(Auth, "an Auth"), "variable": "OCI_CLI_AUTH", "fix": ""},
    )
    agent: str | PathLike[str] | None = knob(None, AGENT)  # noqa: RUF009 - knob makes a field

    linger: float = knob(1.0, SECONDS)
    max_in_flight: int = knob(4, COUNT)
    buffer_limit: int = knob(256 * MEBIBYTE, COUNT)
    max_block: float = knob(10.0, SECONDS)
    overflow: Overflow = knob("block", OVERFLOW)  # noqa: RUF009 - knob makes a field
    close_timeout: float = knob(25.0, SECONDS)
    exit_timeout: float = knob(10.0, SECONDS)
    progress: bool = knob(True, SWITCH)

    spool: bool | str | PathLike[str] = knob(True, SPOOL)  # noqa: RUF009
    spool_interval: float = knob(0.2, SECONDS)
    spool_limit: int = knob(4 * GIBIBYTE, COUNT)
    recover: bool = knob(True, SWITCH)

    ca_bundle: str | PathLike[str] | None = knob(None, CA_BUNDLE)  # noqa: RUF009 - as above
    connect_timeout: float = knob(10.0, SOME_SECONDS)
    timeout: float = knob(60.0, SOME_SECONDS)
    call_timeout: float = knob(300.0, SOME_SECONDS)
    max_connections: int = knob(100, COUNT)
    retry: RetryPolicy = field(
        factory=RetryPolicy,
        kw_only=True,
        metadata={
            "rule": instance_of(RetryPolicy, "a RetryPolicy"),
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

        An argument that is None counts as not given.
        """
        given = {name: value for name, value in (arguments or {}).items() if value is not None}
        environ = os.environ if environ is None else environ
        knobs = attrs.fields_dict(cls)
        check_names(arguments or {})  # None, too, under a name that nobody knows
        given = through_agent(given, environ)
        values: dict[str, Any] = {"auth": auth_from(given.pop("auth", None), environ)}
        for name, each in knobs.items():
            if name in given:
                values[name] = given[name]
            elif "read" in each.metadata and (variable := found_in(environ, each)):
                values[name] = from_environment(each, variable, environ[variable].strip())
        if "platform_id" not in values:
            raise missing(knobs["platform_id"])
        return cls(**values)

    def complete(self, credentials_region: str | None = None) -> Self:
        """With the endpoint of the region, or else of the *credentials_region*.

        Blocks while ``oci`` is imported, for a region that is not known here.
        """
        if self.endpoint is not None:
            return self
        region = self.region or credentials_region
        if region is None:
            raise _no_region()
        if self.region is None:
            knob_of_region = attrs.fields_dict(type(self))["region"]
            region = checked(knob_of_region, region, self.auth.place_of_region)
        return evolve(self, endpoint=_endpoint_of(region), region=region)

    @property
    def base_url(self) -> str:
        """What every URL begins with, up to ``/20260430``."""
        if self.endpoint is None:
            raise _no_region()
        # Some copy the endpoint with the API's version, as the address bar shows it.
        base = self.endpoint.rstrip("/").removesuffix(f"/{API_VERSION}")
        prefix = self.path_prefix.strip("/")
        return f"{base}/{prefix}" if prefix else base

    def required_workspace(self) -> str:
        """The workspace, or `ConfigurationError` when there is none."""
        if self.workspace is None:
            raise missing(attrs.fields_dict(type(self))["workspace"])
        return self.workspace


def check_names(given: Iterable[str], others: Iterable[str] = ()) -> None:
    """TypeError for a name that is not a setting's; one of *others* may have been meant, too."""
    knobs = attrs.fields_dict(Settings)
    if unknown := [name for name in given if name not in knobs]:
        raise TypeError(_unknown(unknown, [*knobs, *others]))


def _unknown(names: list[str], knobs: Iterable[str]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(str(names[0])[:100], knobs, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    settings = "setting" if len(names) == 1 else "settings"
    return f"unknown {settings} {', '.join(shown(name) for name in names[:10])}{hint}"


def _no_region() -> ConfigurationError:
    looked = (
        "the arguments endpoint and region, AIDP_ENDPOINT, OCI_REGION, OCI_CLI_REGION and the "
        "credentials"
    )
    fix = "Set one of them, or a line `region=us-ashburn-1` in the profile of OCI's config file."
    return misconfigured(
        "endpoint", "neither an endpoint nor a region is set", looked=looked, fix=fix
    )


def _endpoint_of(text: str) -> str:
    from adp_async._regions import find_region

    region = find_region(text)
    if "-" not in region.name:
        fix = "Give the region in full, such as us-ashburn-1."
        looked = "OCI's list of regions"
        raise misconfigured("region", f"{shown(text)} is unknown", looked=looked, fix=fix)
    endpoint = f"https://aidp.{region.name}.oci.{region.domain}"
    if not region.is_known:
        logger.warning("oci doesn't know the region %s; trying %s", region.name, endpoint)
    return endpoint
