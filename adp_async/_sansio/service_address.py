"""Checks of the settings that locate the service: platform, workspace, region and URL.

Each returns the plain value, or raises ValueError with what it must be; see `rules`.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any, Final
from urllib.parse import quote, urlsplit, urlunsplit

from adp_async._sansio import rules
from adp_async._sansio.rules import shown

__all__ = [
    "endpoint",
    "is_loopback",
    "page_of_run",
    "page_url",
    "path_prefix",
    "platform_id",
    "region",
    "workspace",
]

_REGION: Final = r"(?i:[a-z]{3}|[a-z]{2,}(?:-[a-z]+)+-[0-9]+)"
_WORKSPACE: Final = r"[^\x00-\x20\x7f]+"
_PATH: Final = r"(?:[A-Za-z0-9._~!$&'()*+,;=:/-]|%[0-9A-Fa-f]{2})+"
_LABEL: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_URL: Final = (
    rf"(?i:https?)://(?:{_LABEL}(?:\.{_LABEL})*\.?|\[[0-9A-Fa-f:.]+\])(?::[^/]*)?(?:/(?:{_PATH})?)?"
)
_A_URL: Final = "https://aidp.us-ashburn-1.oci.oraclecloud.com"
#: OCIDs that stand beside the platform's in the console and in OCI's config file.
_OTHER_KINDS: Final = frozenset(
    {"user", "tenancy", "compartment", "group", "dynamicgroup", "bucket"}
)
#: What the template of a run's page may ask for.
PAGE_FIELDS: Final = ("run_id", "experiment_id", "workspace", "platform_id")


def platform_id(value: Any) -> str:
    found = rules.text(value, "an OCID", pattern=rules.OCID, most=255)
    # What the type of a platform's OCID is called is the service's to say, but it is none of these.
    kind = found.split(".")[1] if "." in found else ""
    if kind in _OTHER_KINDS:
        message = f"must be the OCID of an AI Data Platform, not of a {kind}"
        raise ValueError(message)
    return found


def workspace(value: Any) -> str | None:
    if value is None:
        return None
    found = rules.text(value, "the key of a workspace", pattern=_WORKSPACE, most=255)
    # It becomes a part of a path, and servers resolve "." and "..".
    is_part = found not in (".", "..") and found.isprintable()
    rules.require(is_part, "the key of a workspace", value)
    return found


def region(value: Any) -> str | None:
    rule = "a region such as us-ashburn-1, or its key such as iad"
    return None if value is None else rules.text(value, rule, pattern=_REGION, most=100)


def path_prefix(value: Any) -> str:
    found = rules.text(value, "a path such as /api", pattern=f"(?:{_PATH})?", most=1000)
    _check_path(found)
    return found


def endpoint(value: Any) -> str | None:
    if value is None:
        return None
    rules.require(isinstance(value, str), f"a URL such as {_A_URL}", value)
    url = str.__str__(value).strip()
    # Anything before an @ may be a password, and isn't shown.
    if "@" in url:
        message = "a URL must not contain credentials; requests are signed"
        raise ValueError(message)
    # A query may be a secret as well.
    if "?" in url or "#" in url:
        message = f"must be a URL such as {_A_URL}, without a query or a fragment"
        raise ValueError(message)
    return _checked_url(rules.text(url, f"a URL such as {_A_URL}", pattern=_URL, most=2000))


def page_url(value: Any) -> str | None:
    """A template of the page of a run: a URL with the names of `PAGE_FIELDS` in braces."""
    if value is None:
        return None
    rule = "a URL such as https://host/#/experiments/{experiment_id}/runs/{run_id}"
    found = rules.text(value, rule, pattern=r"(?i:https?)://[^\s/?#@]+(?:[/?#]\S*)?", most=2000)
    rules.require(found.isprintable(), rule, value)
    names = re.findall(r"\{([^{}]*)\}", found)
    if unknown := [name for name in names if name not in PAGE_FIELDS]:
        known = ", ".join(f"{{{name}}}" for name in PAGE_FIELDS)
        message = f"has the field {{{unknown[0]:.40}}}; those of a run's page are {known}"
        raise ValueError(message)
    if "{run_id}" not in found or "{" in (rest := re.sub(r"\{[^{}]*\}", "", found)) or "}" in rest:
        message = f"must be {rule}, with {{run_id}} in it, not {shown(found)}"
        raise ValueError(message)
    return found


def page_of_run(template: str, **known: str | None) -> str | None:
    """The URL that *template* makes of what is *known* of a run; None if it needs something else.

    >>> page_of_run("https://host/runs/{run_id}", run_id="a b")
    'https://host/runs/a%20b'
    """
    url = template
    for name in re.findall(r"\{([^{}]*)\}", template):
        value = known.get(name)
        if value is None:
            return None
        url = url.replace(f"{{{name}}}", quote(value, safe=""))
    return url


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        if ":" in host:
            ipaddress.IPv6Address(host)
    except ValueError as error:
        message = f"{shown(url)} is not a URL: {error}"
        raise ValueError(message) from None
    if port == 0 or parts.netloc.endswith(":"):
        message = f"{shown(url)} is not a URL: a port is a number from 1 to 65535"
        raise ValueError(message)
    if parts.scheme == "http" and not is_loopback(host):
        message = f"plain http is allowed for localhost only, not for {shown(host)[1:-1]}"
        raise ValueError(message)
    _check_path(parts.path)
    # The host as it will be in the signed header.
    return urlunsplit((parts.scheme, parts.netloc.lower(), parts.path, "", ""))


def _check_path(path: str) -> None:
    # Servers and proxies resolve them, and would answer for another path than the signed one.
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
