"""OCI's config file: its profiles, and the environment variables that override them."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

from attrs import field, frozen

from adp_async._credential_files import (
    is_given,
    path_of,
    read_file,
    shown_path,
    text_of,
)
from adp_async._sansio.rules import OCID, shown
from adp_async.errors import ConfigurationError, misconfigured

if TYPE_CHECKING:
    import configparser
    from collections.abc import Mapping
    from configparser import ConfigParser
    from pathlib import Path

    from adp_async._credential_files import FilePath

DEFAULT_CONFIG_FILE: Final = "~/.oci/config"
DEFAULT_PROFILE: Final = "DEFAULT"

_FINGERPRINT: Final = r"(?:[0-9a-f]{2}:){15}[0-9a-f]{2}"

#: Lines of a profile, and the variables with which OCI's command line overrides them.
_VARIABLES: Final = {
    "tenancy": "OCI_CLI_TENANCY",
    "user": "OCI_CLI_USER",
    "fingerprint": "OCI_CLI_FINGERPRINT",
    "key_content": "OCI_CLI_KEY_CONTENT",
    "key_file": "OCI_CLI_KEY_FILE",
    "pass_phrase": "OCI_CLI_PASSPHRASE",
}


@frozen
class Profile:
    """One profile of an OCI config file, and the values that override it."""

    where: str
    values: Mapping[str, str] = field(repr=False)
    #: Values that override lines of the file, and where each was found.
    given: Mapping[str, tuple[str, str]] = field(factory=dict, repr=False)
    #: The lines of DEFAULT, which every profile inherits.
    inherited: Mapping[str, str] = field(factory=dict, repr=False)

    def get(self, key: str) -> str:
        if key in self.given:
            return self.given[key][0].strip()
        return self.values.get(key, "").strip()

    def looked(self, key: str) -> str:
        return self.given[key][1] if key in self.given else self.where

    def required(self, key: str, fix: str) -> str:
        value = self.get(key)
        if not value:
            raise misconfigured(key, "is missing", looked=self.where, fix=fix)
        return value

    def ocid(self, key: str) -> str:
        shape = f"ocid1.{key}.oc1..<unique id>"
        value = self.required(key, f"Add a line `{key}={shape}`.")
        if len(value) > 255 or not is_ocid(value):
            problem = f"{shown(value)} is not an OCID"
            raise misconfigured(
                key, problem, looked=self.looked(key), fix=f"It looks like {shape}."
            )
        return value

    def path(self, key: str, fix: str) -> Path:
        return path_of(self.required(key, fix), key, looked=self.looked(key))

    def has_another_token(self) -> bool:
        """Whether the section is one of `oci session authenticate`, with the user of DEFAULT."""
        keys = ("security_token_file", "user")
        token, user = (self.values.get(key) not in (None, self.inherited.get(key)) for key in keys)
        return token and not user and "user" not in self.given


def read_profile(config_file: FilePath | None, profile: str | None) -> Profile:
    """The *profile* of *config_file*; None: from the environment, or the default."""
    file, source = _config_file(config_file)
    name, looked = _profile_name(profile)
    parser = _parsed(file, f"{shown_path(file)}, {source}")
    if name not in parser or not parser[name]:
        names = [shown(each)[1:-1] for each in parser if parser[each]]
        known = ", ".join(names[:20]) or "no profile"
        fix = f"The file has: {known}. Set OCI_CLI_PROFILE or pass profile=."
        problem = f"{shown(name)} does not exist"
        raise misconfigured("profile", problem, looked=f"{shown_path(file)}{looked}", fix=fix)
    where = f"profile {shown(name)} of {shown_path(file)}"
    return Profile(where, dict(parser[name]), inherited=parser.defaults())


def place_of(config_file: FilePath | None, profile: str | None) -> str:
    try:
        return read_profile(config_file, profile).where
    except (
        ConfigurationError
    ):  # the file is gone since it was read, which is not the caller's question
        return "OCI's config file"


def _config_file(given: FilePath | None) -> tuple[Path, str]:
    setting = "config_file"
    if is_given(given):
        source = "the argument config_file"
        return path_of(given, setting, looked=source), source
    # The second is the name that OCI's command line uses.
    if variable := first_set("OCI_CONFIG_FILE", "OCI_CLI_CONFIG_FILE"):
        source = f"the environment's {variable}"
        return path_of(os.environ[variable], setting, looked=source), source
    source = "OCI's default place, as neither config_file nor OCI_CONFIG_FILE is given"
    return path_of(DEFAULT_CONFIG_FILE, setting, looked=source), source


def _profile_name(given: str | None) -> tuple[str, str]:
    if name := text_of("profile", given):
        return name, ""
    if variable := first_set("OCI_CLI_PROFILE"):
        return os.environ[variable].strip(), f", as the environment's {variable} says"
    return DEFAULT_PROFILE, ""


def first_set(*variables: str) -> str | None:
    """The first of the environment's *variables* that is neither empty nor blank."""
    return next((name for name in variables if os.environ.get(name, "").strip()), None)


def given_by_environment(given: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """*given*, and what the variables of OCI's command line override besides."""
    found = dict(given)
    has_key = "key_content" in given or "key_file" in given
    for key, variable in _VARIABLES.items():
        if first_set(variable) and key not in given and not (has_key and key.startswith("key_")):
            found[key] = (os.environ[variable], f"the environment's {variable}")
    return found


def is_ocid(value: str) -> bool:
    """Whether *value* has the shape of an OCID.

    >>> is_ocid("ocid1.tenancy.oc1..aaaa"), is_ocid("my-tenancy")
    (True, False)
    """
    return re.fullmatch(OCID, value) is not None


def fingerprint_of(profile: Profile) -> str:
    fix = "OCI's console shows it beside the API key: 16 pairs of hex digits, aa:bb:..."
    value = profile.required("fingerprint", fix).lower()
    if not re.fullmatch(_FINGERPRINT, value):
        problem = f"{shown(value)} is not a fingerprint"
        raise misconfigured("fingerprint", problem, looked=profile.looked("fingerprint"), fix=fix)
    return value


def read_key_file(profile: Profile) -> tuple[bytes, str]:
    file = profile.path("key_file", "Add a line `key_file=<path of the private key>`.")
    looked = f"{shown_path(file)}, named by {profile.looked('key_file')}"
    return read_file(file, "key_file", looked), looked


def _parsed(file: Path, looked: str) -> ConfigParser:
    import configparser

    fix = "Run `oci setup config`, or set OCI_CONFIG_FILE to where the file is."
    content = read_file(file, "config_file", looked, if_missing=fix)
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(_decoded(content, looked))
    except configparser.Error as error:
        # The parser's own message quotes the line, which may hold a passphrase.
        fix = "It consists of [PROFILE] lines and key=value lines."
        raise misconfigured("config_file", _what_is_wrong(error), looked=looked, fix=fix) from None
    return parser


def _decoded(content: bytes, looked: str) -> str:
    try:
        if b"\0" not in content:
            text = content.decode("utf-8-sig")
            return text.replace("\r\n", "\n").replace("\r", "\n")
        problem = "is not UTF-8 text; it looks like UTF-16"
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        is_utf_16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        hint = "; it looks like UTF-16" if is_utf_16 else f" at line {line}"
        problem = f"is not UTF-8 text{hint}"
    raise misconfigured("config_file", problem, looked=looked, fix="Save it as UTF-8.")


def _what_is_wrong(error: configparser.Error) -> str:
    import configparser

    line = getattr(error, "lineno", None)
    if isinstance(error, configparser.DuplicateSectionError):
        why = "repeats a profile"
    elif isinstance(error, configparser.DuplicateOptionError):
        why = "repeats a key of its profile"
    elif isinstance(error, configparser.MissingSectionHeaderError):
        why = "comes before the first [PROFILE] line"
    else:
        line = getattr(error, "errors", [(None,)])[0][0]
        why = "is not key=value"
    return f"is not a valid INI file: line {line} {why}"
