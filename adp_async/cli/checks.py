"""What ``adp-async doctor`` finds on this machine: versions, settings, spool, credentials.

Names and places are shown, never the content of a key, a token or a passphrase.
"""

from __future__ import annotations

import base64
import json
import os
import platform
import shutil
import stat
import tempfile
import time
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Final

import attrs
from attrs import field, frozen

import adp_async
from adp_async._hop import VARIABLE
from adp_async._io.spool_file import SpoolError, check_folder
from adp_async._io.spool_places import prepare, spool_places, why_not_first
from adp_async._knobs import absolute_folder, found_in, variables_of
from adp_async._oci_config import fingerprint_of, read_profile
from adp_async._sansio.rules import shown
from adp_async.auth import ApiKey, Auth, SessionToken
from adp_async.cli.finding import Finding
from adp_async.cli.output import duration
from adp_async.errors import ConfigurationError
from adp_async.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from adp_async._oci_config import Profile
    from adp_async.cli.options import CommandLine

__all__ = [
    "Known",
    "expiry",
    "files",
    "fingerprint",
    "leads_to_agent",
    "sources",
    "spool",
    "variables",
    "versions",
]

_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
#: An OCID to check other settings with when the platform's own is missing or wrong.
ANY_OCID: Final = "ocid1.aidataplatform.oc1.iad.any"
#: What the environment may name besides settings: for `integrations.transformers`.
_OTHER_VARIABLES: Final = {"ADP_ASYNC_EXPERIMENT", "ADP_ASYNC_RUN_ID"}
_PREFIX: Final = "ADP_ASYNC_"
#: Packages whose versions are worth knowing when something is wrong.
_PACKAGES: Final = ("aiohttp", "cryptography", "oci", "mlflow", "mlflow-skinny")


def versions() -> Finding:
    """Of this package, Python, the system, and what the client is made of."""
    parts = [f"adp_async {adp_async.__version__}", f"Python {platform.python_version()}"]
    parts.append(f"{platform.system()} {platform.machine()}")
    for name in _PACKAGES:
        try:
            parts.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return Finding("version", "ok", ", ".join(parts))


# Settings ----------------------------------------------------------------------------------------


def variables(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Variables that look like ours and are not: a misspelt one would be ignored."""
    knobs = [each for each in attrs.fields(Settings) if each.name != "retry"]  # has none
    known = {name for each in knobs for name in variables_of(each)} | _OTHER_VARIABLES
    for name in sorted(environ):
        if name in known:
            continue
        near = _nearest(name.upper(), known)
        if near or name.upper().startswith(_PREFIX):
            fix = f"Did you mean {near}?" if near else "Unset it, or see the table of settings."
            told = f"{shown(name)[1:-1]} is not a setting, and is ignored"
            yield Finding("environment", "warning", told, fix)


def _nearest(name: str, known: set[str]) -> str | None:
    """The variable of ours that *name* is meant to be, if one is close."""
    if name.startswith(_PREFIX):
        rests = [each.removeprefix(_PREFIX) for each in known if each.startswith(_PREFIX)]
        near = get_close_matches(name.removeprefix(_PREFIX), rests, n=1)
        return f"{_PREFIX}{near[0]}" if near else None
    # Other programs of the platform have variables, too.
    ours = [each for each in known if each.startswith("AIDP_")]
    near = get_close_matches(name, ours, n=1, cutoff=0.85) if name.startswith("AIDP_") else []
    return near[0] if near else None


def leads_to_agent(given: CommandLine, environ: Mapping[str, str]) -> bool:
    """Whether a session goes to the agent that *environ* names, as `Settings` has it."""
    is_told_another_way = given.endpoint is not None or given.says_how_to_sign
    return bool(environ.get(VARIABLE, "").strip()) and not is_told_another_way


@frozen
class Known:
    """The settings that are right, and what is wrong with each of the others.

    Without a platform's OCID, *settings* has one that is made up.
    """

    settings: Settings
    problems: Mapping[str, str] = field(factory=dict)

    @classmethod
    def of(cls, given: CommandLine) -> Known:
        """Every setting by itself, so that each mistake is found, and not only the first."""
        arguments = given.arguments()
        values: dict[str, Any] = {"platform_id": ANY_OCID}
        problems: dict[str, str] = {}
        try:
            values["auth"] = given.authentication()
        except ConfigurationError as error:
            problems["auth"] = str(error)
        for knob in attrs.fields(Settings):
            if knob.name == "auth":
                continue
            alone: dict[str, object] = {"auth": ApiKey(), knob.name: arguments.get(knob.name)}
            if knob.name != "platform_id":
                alone["platform_id"] = ANY_OCID
            environ = {name: os.environ.get(name, "") for name in variables_of(knob)}
            try:
                values[knob.name] = getattr(Settings.resolve(alone, environ), knob.name)
            except ConfigurationError as error:
                problems[knob.name] = str(error)
        return cls(Settings(**values), problems)


def sources(known: Known, given: CommandLine) -> Iterator[Finding]:
    """Where each setting comes from; of the knobs only those that are set."""
    settings = known.settings
    for problem in known.problems.values():
        yield Finding("settings", "wrong", problem)
    if settings.workspace is None and "workspace" not in known.problems:
        fix = "Set AIDP_WORKSPACE; without it only operations of the whole platform work."
        yield Finding("workspace", "warning", "none", fix)
    for knob in attrs.fields(Settings):
        if knob.name in known.problems:
            continue
        source = _source(knob, given)
        if knob.name == "agent" and source:
            told = f"not used: options go before {VARIABLE}"
            yield Finding("agent", "skipped", told)
        elif knob.name == "auth":
            yield Finding("auth", "ok", f"{settings.auth.mode}  ({source or 'default'})")
        elif source:
            yield Finding(knob.name, "ok", f"{getattr(settings, knob.name)}  ({source})")


def _source(knob: attrs.Attribute[object], given: CommandLine) -> str:
    if knob.name in given.arguments():
        return f"--{knob.name.replace('_', '-')}"
    variable = found_in(os.environ, knob)
    return f"environment, {variable}" if variable else ""


# Spool -------------------------------------------------------------------------------------------


def spool(settings: Settings) -> Finding:
    """Whether records can be journaled."""
    named = settings.spool
    if named is False:
        return Finding("spool", "warning", "off: a killed process loses its undelivered records")
    try:
        places = spool_places() if isinstance(named, bool) else [absolute_folder(named)]
    except SpoolError as error:
        fix = "Until then records are only in memory: a killed process loses them."
        return Finding("spool", "warning", str(error), fix)
    problems: list[SpoolError] = []
    for place in places:
        try:
            free = _free(place, is_usual=isinstance(named, bool))
        except SpoolError as error:
            problems.append(error)
        else:
            return _told(settings, place, free, why_not_first(place, problems))
    fix = "Make it writable, or set ADP_ASYNC_SPOOL to another folder or to off."
    return Finding("spool", "wrong", str(problems[0]), fix)


def _free(folder: Path, *, is_usual: bool) -> int:
    """The bytes that are free there.  Raises `SpoolError` where no spool can be created."""
    try:
        if is_usual:
            prepare(folder)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_folder(folder, to_create=True)
        with tempfile.TemporaryFile(dir=folder):
            return shutil.disk_usage(folder).free
    except OSError as error:
        raise SpoolError(f"{folder} cannot be written: {error.strerror}") from error


def _told(settings: Settings, folder: Path, free: int, why: str) -> Finding:
    told = f"{folder}, {free / 2**30:.1f} GiB free"
    if why and isinstance(settings.spool, bool):
        fix = "Others delete such folders sooner: ADP_ASYNC_SPOOL names one that stays."
        return Finding("spool", "warning", f"{told}: {why}", fix)
    if free < settings.spool_limit:
        fix = "An outage of hours may need more: ADP_ASYNC_SPOOL names another folder."
        return Finding("spool", "warning", told, fix)
    return Finding("spool", "ok", told)


# Credentials -------------------------------------------------------------------------------------


def files(auth: Auth) -> Iterator[Finding]:
    """The profile, and whether other users can read its files."""
    profile = _profile_of(auth)
    if profile is None:
        return
    doubts = auth.doubts() if isinstance(auth, ApiKey) else ""
    if doubts:
        yield Finding("config file", "warning", doubts)
    else:
        yield Finding("config file", "ok", profile.where)
    if os.name != "posix":
        return  # permissions are lists there, which these bits don't show
    for key in ("key_file", "security_token_file"):
        file = _file_of(profile, key)
        if file is not None and file.stat().st_mode & _OTHERS:
            told = f"{file} is readable by other users of this machine"
            yield Finding(key, "warning", told, f"chmod 600 {file}")


def _profile_of(auth: Auth) -> Profile | None:
    """The profile of the config file; None where *auth* reads none, or it cannot be read."""
    if not isinstance(auth, ApiKey | SessionToken):
        return None
    try:
        return read_profile(auth.config_file, auth.profile)
    except ConfigurationError:
        return None  # loading the credentials reports it, if they need the file


def _file_of(profile: Profile, key: str) -> Path | None:
    """A file that *profile* names, if it is there."""
    try:
        file = profile.path(key, "")
        return file if file.is_file() else None
    except (ConfigurationError, OSError):
        return None


def fingerprint(auth: Auth, signer: object) -> Iterator[Finding]:
    """Whether the key is the one that the profile names; the service only says 401."""
    key = getattr(signer, "private_key", None)
    if not isinstance(auth, ApiKey) or key is None:
        return
    from adp_async.local.identity import KeyFile

    profile = auth._profile()
    named, computed = fingerprint_of(profile), KeyFile.fingerprint_of(key)
    if named == computed:
        yield Finding("fingerprint", "ok", f"{computed}, in the key and in {profile.where}")
        return
    told = f"the key's is {computed}, and {profile.looked('fingerprint')} says {named}"
    fix = "Name the key that belongs to the fingerprint, or the fingerprint of this key."
    yield Finding("fingerprint", "wrong", told, fix)


def expiry(auth: Auth) -> Iterator[Finding]:
    """How long a session token is still good, as far as it says so itself."""
    profile = _profile_of(auth)
    if not isinstance(auth, SessionToken) or profile is None:
        return
    file = _file_of(profile, "security_token_file")
    expires = None if file is None else _expires(file)
    if expires is None:
        return
    left = expires - time.time()
    if left > 0:
        yield Finding("token", "ok", f"expires in {duration(left)}")
        return
    fix = f"oci session refresh --profile {auth.profile or 'DEFAULT'}, or oci session authenticate"
    yield Finding("token", "wrong", f"expired {duration(-left)} ago", fix)


def _expires(file: Path) -> float | None:
    """When the token in *file* expires, in Unix seconds; None if it doesn't say."""
    try:
        payload = file.read_bytes()[:100_000].split(b".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + b"=" * (-len(payload) % 4)))
        expires = claims["exp"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return float(expires) if isinstance(expires, int | float) else None
