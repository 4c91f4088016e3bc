"""``aidp://[platform-ocid[/workspace]][?profile=&config_file=&endpoint=&linger=&sync=1]``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from attrs import frozen

from adp_async.auth import ApiKey, SessionToken
from adp_async.errors import ConfigurationError

if TYPE_CHECKING:
    from adp_async.auth import Auth

SCHEME: Final = "aidp"
_FORM: Final = "aidp://[platform-ocid[/workspace]][?profile=&config_file=&endpoint=&linger=&sync=1]"
_OPTIONS: Final = ("profile", "config_file", "endpoint", "linger", "sync")
_SWITCH: Final = {"1": True, "true": True, "on": True, "0": False, "false": False, "off": False}
#: The modes that read a profile of OCI's config file.
_WITH_PROFILE: Final = {kind.mode: kind for kind in (ApiKey, SessionToken)}


@frozen
class StoreAddress:
    """What an ``aidp://`` URI says.  What is None comes from the usual settings.

    *sync*: every ``log_*`` waits until the service has it, and raises what it refuses.
    """

    platform_id: str | None = None
    workspace: str | None = None
    profile: str | None = None
    config_file: str | None = None
    endpoint: str | None = None
    linger: float | None = None
    sync: bool = False

    @classmethod
    def parse(cls, uri: str) -> Self:
        """The address of *uri*.  Raises `ConfigurationError` that names the wrong part.

        >>> StoreAddress.parse("aidp:///my-workspace?linger=5").workspace
        'my-workspace'
        """
        parts = urlsplit(uri)
        path = [unquote(part) for part in parts.path.split("/") if part]
        if parts.scheme != SCHEME or len(path) > 1 or parts.fragment or "@" in parts.netloc:
            raise _wrong(uri, f"it must look like {_FORM}")
        options = _options(uri, parts.query)
        return cls(
            platform_id=unquote(parts.netloc) or None,
            workspace=path[0] if path else None,
            profile=options.get("profile"),
            config_file=options.get("config_file"),
            endpoint=options.get("endpoint"),
            linger=_seconds(uri, options["linger"]) if "linger" in options else None,
            sync=_switch(uri, options.get("sync", "0")),
        )

    def knobs(self) -> dict[str, Any]:
        """The arguments of a session, as far as the URI gives any."""
        given = {
            "platform_id": self.platform_id,
            "workspace": self.workspace,
            "endpoint": self.endpoint,
            "linger": self.linger,
            "auth": self._auth(),
        }
        return {name: value for name, value in given.items() if value is not None}

    def _auth(self) -> Auth | None:
        if self.profile is None and self.config_file is None:
            return None
        mode = os.environ.get("OCI_CLI_AUTH", "").strip() or ApiKey.mode
        if mode not in _WITH_PROFILE:
            message = (
                f"profile and config_file in an aidp:// URI go with {' and '.join(_WITH_PROFILE)}; "
                f"the environment's OCI_CLI_AUTH says {mode!r:.40}. Leave them out, or unset it."
            )
            raise ConfigurationError(message)
        return _WITH_PROFILE[mode](self.config_file, self.profile)


def _options(uri: str, query: str) -> dict[str, str]:
    pairs = parse_qsl(query, keep_blank_values=True)
    for name, _ in pairs:
        if name not in _OPTIONS:
            raise _wrong(
                uri, f"{name!r:.40} is not an option; the options are {', '.join(_OPTIONS)}"
            )
    # An empty one is not given, as an empty variable is not.
    return {name: value for name, value in pairs if value}


def _seconds(uri: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise _wrong(uri, f"linger must be seconds such as 0.5, not {text!r:.40}") from None


def _switch(uri: str, text: str) -> bool:
    if text.lower() not in _SWITCH:
        raise _wrong(uri, f"sync must be 1 or 0, not {text!r:.40}")
    return _SWITCH[text.lower()]


def _wrong(uri: str, problem: str) -> ConfigurationError:
    return ConfigurationError(
        f"the tracking URI {uri.partition('?')[0]!r:.200} is wrong: {problem}"
    )
