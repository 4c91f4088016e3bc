"""Options that commands share, and how they read in ``--help``."""

import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final

import attrs
import typer
from attrs import frozen

from adp_async.auth import ApiKey, Auth, DelegationToken, SessionToken, auth_from
from adp_async.errors import ConfigurationError

__all__ = [
    "DOCUMENTATION",
    "AuthMode",
    "CommandLine",
    "ConfigFile",
    "Directory",
    "Json",
    "Limit",
    "ListeningPort",
    "Profile",
    "RunId",
    "examples",
    "with_settings",
]

DOCUMENTATION: Final = "https://github.com/adp-async/adp_async#the-command-line"

# Each has its metavar, since typer's own say "<int range>".

PlatformId = Annotated[
    str | None,
    typer.Option(metavar="OCID", help="The platform's OCID, instead of AIDP_INSTANCE_ID."),
]
Workspace = Annotated[
    str | None,
    typer.Option(metavar="KEY", help="The workspace's key, instead of AIDP_WORKSPACE."),
]
Endpoint = Annotated[
    str | None,
    typer.Option(metavar="URL", help="The service's base URL, instead of AIDP_ENDPOINT."),
]
Region = Annotated[
    str | None,
    typer.Option(metavar="REGION", help="The region, such as us-ashburn-1, instead of OCI_REGION."),
]
AuthMode = Annotated[
    str | None,
    typer.Option(
        metavar="MODE",
        help="How to sign: api_key, security_token, instance_principal, ...; instead of "
        "OCI_CLI_AUTH.",
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="OCI's config file, instead of OCI_CONFIG_FILE."),
]
Profile = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="The profile in OCI's config file, instead of OCI_CLI_PROFILE."
    ),
]
Directory = Annotated[
    Path | None,
    typer.Option(
        file_okay=False,
        metavar="FOLDER",
        help="Keep database, key and artifacts in this folder; without it they are temporary.",
    ),
]
ListeningPort = Annotated[
    int,
    typer.Option(
        min=0, max=65535, metavar="PORT", help="The port to listen on; 0 picks a free one."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="The id of the run.")]
Limit = Annotated[int, typer.Option(min=1, metavar="N", help="The most to list.")]

#: The options of a session's settings, by their names in `CommandLine`.
_SETTINGS: Final = {
    "platform_id": PlatformId,
    "workspace": Workspace,
    "endpoint": Endpoint,
    "region": Region,
    "auth": AuthMode,
    "config_file": ConfigFile,
    "profile": Profile,
}


@frozen
class CommandLine:
    """The options of the command line; None for those not given."""

    platform_id: str | None = None
    workspace: str | None = None
    endpoint: str | None = None
    region: str | None = None
    auth: str | None = None
    config_file: Path | None = None
    profile: str | None = None

    def arguments(self) -> dict[str, object]:
        """The corresponding arguments of a `Session`."""
        names = ("platform_id", "workspace", "endpoint", "region", "auth")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def session_arguments(self) -> dict[str, Any]:
        """The same, with how to sign if any option says it; raises `ConfigurationError`.

        Otherwise the environment says it, which may lead to an agent that signs.
        """
        found = self.arguments()
        if self.says_how_to_sign:
            found["auth"] = self.authentication()
        return found

    @property
    def says_how_to_sign(self) -> bool:
        """Whether an option does."""
        return any(each is not None for each in (self.auth, self.config_file, self.profile))

    def authentication(self) -> Auth:
        """How to sign; raises `ConfigurationError`."""
        auth = auth_from(self.auth, os.environ)
        places: dict[str, Any] = {"config_file": self.config_file, "profile": self.profile}
        chosen = {name: value for name, value in places.items() if value is not None}
        if not chosen:
            return auth
        if isinstance(auth, ApiKey | SessionToken | DelegationToken):
            return attrs.evolve(auth, **chosen)
        message = f"auth: {auth.mode} does not read a config file; omit --config-file and --profile"
        raise ConfigurationError(message)


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """*command* with an option for each setting, in place of its argument *given*."""

    @functools.wraps(command)
    def told(**options: Any) -> None:
        given = CommandLine(**{name: options.pop(name) for name in _SETTINGS})
        command(given=given, **options)

    own = dict(inspect.signature(command).parameters)
    del own["given"]
    settings = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)
        for name, option in _SETTINGS.items()
    ]
    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own.values()]
    # What typer reads.
    told.__signature__ = inspect.Signature([*parameters, *settings])  # type: ignore[attr-defined]
    told.__annotations__ = {each.name: each.annotation for each in [*parameters, *settings]}
    return told


def examples(*lines: str) -> str:
    """The end of a command's help: *lines* to copy, and where more is written."""
    return "\n".join(
        ["\b", "Examples:", *(f"  {line}" for line in lines), "", "More:", DOCUMENTATION]
    )
