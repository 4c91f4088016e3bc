"""Settings of any content by every road: an error that names them, or settings that work."""

from __future__ import annotations

import asyncio
import logging
import os
from itertools import count
from typing import TYPE_CHECKING, Any

import attrs
import hypothesis.strategies as st
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from fuzz import SECRET, Hostile, anything, from_parts, mutated, ours, texts, try_all
from yarl import URL

from adp_async._knobs import variable_of
from adp_async._sansio.endpoints import GET_RUN
from adp_async._sansio.retry import RetryPolicy
from adp_async._sansio.rules import LONGEST, MOST
from adp_async._sansio.urls import url_of
from adp_async.auth import ApiKey, DelegationToken, SessionToken
from adp_async.errors import AdpError, ConfigurationError
from adp_async.settings import Settings
from adp_async.testing import FakeSession

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["try_all"]  # the fixture

PLATFORM = "ocid1.aidataplatform.oc1.iad.aaaa"
KNOBS = attrs.fields_dict(Settings)

numbers = st.floats(0, 1e9) | st.integers(0, 2**64)
urls = from_parts(
    *("https://", "http://", "localhost", "127.0.0.1", "[::1]", "a.example.com", ":443", ":0"),
    *(":99999", "/", "/api", "%20", "%", "?a=b", "#f", "..", "\\", "\t", " ", "ä", "[", "]", "."),
    *(f"user:{SECRET}@", "20260430"),
)
near = st.one_of(
    anything,
    numbers,
    urls,
    from_parts("ocid1", ".", "aidataplatform", ":", "oc1", "iad", "a" * 60),
    from_parts("us-", "ashburn", "-1", "iad", "-"),
    st.sampled_from(["on", "off", "block", "drop", "api_key", "security_token", "/api", "ws"]),
    st.sampled_from([ApiKey(), SessionToken(), RetryPolicy()]),
    st.just(f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----"),
)
arguments = st.dictionaries(st.sampled_from(sorted(KNOBS)) | texts(8), near, max_size=4)
# What a process can have in its environment: bytes that are no UTF-8 come as surrogates.
of_environment = st.one_of(
    texts(),
    numbers.map(str),
    urls,
    from_parts("1", "0", "_", ".", "e", "-", "+", "x", "s", "٣", "inf", "nan", " "),
    st.sampled_from(["on", "off", "OFF", " drop\r", "security_token\r", "", " ", "9" * 5000]),
)
environments = st.dictionaries(
    st.sampled_from([*(variable_of(knob) for knob in KNOBS.values()), "OCI_CLI_REGION"]),
    of_environment,
    max_size=4,
)


def test_arguments_and_environment(try_all: Callable[..., None]) -> None:
    """The settings that come out of any input are plain, bounded, and make a URL."""

    def check(given: tuple[dict[str, Any], dict[str, str], bool]) -> None:
        arguments, environ, has_platform = given
        if has_platform:
            arguments = {"platform_id": PLATFORM} | arguments
        kinds = (ConfigurationError,) if arguments.keys() <= KNOBS.keys() else (AdpError, TypeError)
        settings = ours(lambda: Settings.resolve(arguments, environ), *kinds)
        if settings is not None:
            check_settings(settings)

    try_all(st.tuples(arguments, environments, st.booleans()), check)


def check_settings(settings: Settings) -> None:
    for name, knob in KNOBS.items():
        value = getattr(settings, name)
        if isinstance(knob.default, float):
            assert type(value) is float
            assert 0 <= value <= LONGEST
        elif isinstance(knob.default, int) and not isinstance(knob.default, bool):
            assert type(value) is int
            assert 1 <= value <= MOST
        elif name in ("platform_id", "workspace", "endpoint", "path_prefix", "region", "overflow"):
            assert value is None or type(value) is str
            assert (value or "").encode().decode().isprintable()
    if settings.endpoint is None:
        return
    base, workspace = settings.base_url, settings.workspace or "ws"
    url = url_of(GET_RUN, base, settings.platform_id, workspace, {}, {})
    parsed = URL(url, encoded=True)
    assert str(parsed) == url
    assert parsed.host
    assert parsed.raw_path == url.removeprefix(str(parsed.origin())), "nothing is resolved away"
    assert evolved(settings) == settings


def evolved(settings: Settings) -> Settings:
    return Settings(**attrs.asdict(settings, recurse=False))


def test_by_hand(try_all: Callable[..., None]) -> None:
    """`Settings`, `RetryPolicy` and the classes that sign take any input, or say why not."""

    def check(given: tuple[str, Any]) -> None:
        name, value = given
        settings = ours(lambda: Settings(**{"platform_id": PLATFORM} | {name: value}), AdpError)
        if settings is not None:
            check_settings(settings)
        policy = attrs.fields(RetryPolicy)[hash(name) % 3].name
        ours(lambda: RetryPolicy(**{policy: value}), ValueError)

    try_all(st.tuples(st.sampled_from(sorted(KNOBS)), near), check)


def test_a_session_works_with_them(try_all: Callable[..., None], tmp_path: Path) -> None:
    """Numbers that are taken overflow nowhere later: not in a lock, a timer or a sum."""
    durations = st.sampled_from([0, 5e-324, 1e-9, 0.5, 2.0**31, LONGEST - 1, LONGEST])
    counts = st.sampled_from([1, 2, 2**31, 2**32, 2**62, MOST])
    extreme = {
        name: durations if isinstance(knob.default, float) else counts
        for name, knob in KNOBS.items()
        if type(knob.default) in (int, float) and name != "close_timeout"
    }

    folders = count()

    def check(knobs: dict[str, Any]) -> None:
        knobs = {"close_timeout": 0.01, "spool": tmp_path / str(next(folders))} | knobs
        session = ours(lambda: FakeSession(**knobs), ConfigurationError)
        if session is not None:
            asyncio.run(use(session, in_thread="buffer_limit" not in knobs))

    async def use(session: FakeSession, *, in_thread: bool) -> None:
        try:
            async with asyncio.timeout(60), session:
                run = session.attach_run(session.add_run())
                if in_thread:  # which may wait for room, as long as max_block says
                    await asyncio.to_thread(run.log_metric, "loss", 1.0)
                run.log_metric("loss", 1.0)
                await run.flush()
                await session.runs.get(run.run_id)
        except AdpError:
            pass  # a time limit of nothing, or a buffer of one byte

    try_all(st.fixed_dictionaries({}, optional=extreme), check, share=10)


# Files -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pem() -> bytes:
    # A short one, since each is checked when it is read.
    return rsa.generate_private_key(65537, 1024).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


@pytest.fixture
def folder(
    tmp_path: Path, pem: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Path:
    for name in list(os.environ):
        if name.startswith("OCI_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "key").write_bytes(pem)
    (tmp_path / "token").write_text("a.token")
    caplog.set_level(logging.ERROR, "adp_async")
    return tmp_path


def config(folder: Path) -> bytes:
    return (
        f"[DEFAULT]\ntenancy=ocid1.tenancy.oc1..a\nuser=ocid1.user.oc1..b\n"
        f"fingerprint={':'.join(['a1'] * 16)}\nkey_file={folder}/key\nregion=iad\n"
        f"security_token_file={folder}/token\ndelegation_token_file={folder}/token\n\n"
        f"[mine]\npass_phrase={SECRET}\n"
    ).encode()


def test_config_files(try_all: Callable[..., None], folder: Path) -> None:
    """A config file of any content signs, or is named with what is wrong."""
    good = config(folder)
    lines = from_parts(
        *("[DEFAULT]\n", "[mine]\r\n", "[", "]", "\n", "=", ":", "%", "%(user)s", ";", "#", "\x00"),
        *("tenancy=ocid1.tenancy.oc1..a\n", "user=ocid1.user.oc1..b\n", f"pass_phrase={SECRET}\n"),
        *(f"fingerprint={':'.join(['a1'] * 16)}\n", f"key_file={folder}/key\n", "\ufeff", "\r"),
        *("key_file=~/key\n", "key_file=~x/\n", "key_file=/dev/zero\n", "region=\n", " more\n"),
    )
    encoded = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-7", "cp1252"])
    contents = st.one_of(
        st.binary(),
        mutated(good),
        lines.map(lambda text: text.encode("utf-8", "surrogatepass")),
        st.tuples(lines, encoded).map(lambda both: both[0].encode(both[1], "ignore")),
        encoded.map(lambda encoding: good.decode().encode(encoding)),
    )
    profiles = st.sampled_from([None, "mine", "DEFAULT", ""]) | texts()
    classes = st.sampled_from([ApiKey, SessionToken])

    def check(given: tuple[bytes, Any, Any]) -> None:
        content, profile, kind = given
        (folder / "config").write_bytes(content)
        auth = kind(folder / "config", profile)
        signer = ours(auth.load, ConfigurationError)
        if signer is not None:
            region = ours(lambda: auth.region(signer), ConfigurationError)
            settings = Settings(PLATFORM, auth=auth)
            ours(lambda: settings.complete(region), ConfigurationError)

    try_all(st.tuples(contents, profiles, classes), check)


def test_keys_and_tokens(try_all: Callable[..., None], folder: Path, pem: bytes) -> None:
    """What is in a key's or a token's file, and how it is opened, is any content as well."""
    secret = SECRET.encode()
    encrypted = serialization.load_pem_private_key(pem, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.BestAvailableEncryption(secret),
    )
    contents = st.one_of(
        st.binary(),
        mutated(pem),
        mutated(encrypted),
        st.sampled_from([pem, encrypted, pem.replace(b"\n", b"\r\n"), b"\xef\xbb\xbf" + pem]),
        from_parts("-----BEGIN ", "RSA ", "PRIVATE KEY", "-----\n", "QUJD", "-----END ").map(
            lambda text: text.encode("utf-8", "surrogatepass")
        ),
    )
    passphrases = st.none() | texts() | st.sampled_from([SECRET, "x" * 5000, b"x", 7])
    (folder / "config").write_bytes(config(folder))

    def check(given: tuple[bytes, bytes, Any]) -> None:
        key, token, passphrase = given
        (folder / "key").write_bytes(key)
        (folder / "token").write_bytes(token)
        for kind in (ApiKey, SessionToken):
            auth = kind(folder / "config", "DEFAULT", passphrase=passphrase)
            ours(auth.load, ConfigurationError)

    tokens = (
        st.just(b"a.token")
        | st.binary()
        | texts().map(lambda text: text.encode("utf-16", "ignore"))
    )
    try_all(st.tuples(contents, tokens, passphrases), check)


def test_arguments_of_an_api_key(try_all: Callable[..., None], folder: Path) -> None:
    """Each of them may be anything, and so may the variables of OCI's command line."""
    (folder / "config").write_bytes(config(folder))
    names = [field.name for field in attrs.fields(ApiKey)]
    values = anything | st.sampled_from(["DEFAULT", "~/config", "/", "a\0b", f"{folder}/key"])
    variables = [
        *("OCI_CONFIG_FILE", "OCI_CLI_CONFIG_FILE", "OCI_CLI_PROFILE", "OCI_CLI_USER"),
        *("OCI_CLI_KEY_CONTENT", "OCI_CLI_KEY_FILE", "OCI_CLI_PASSPHRASE", "OCI_CLI_TENANCY"),
    ]
    possible = st.binary(max_size=20).map(lambda raw: os.fsdecode(raw.replace(b"\0", b"")))
    environ = st.dictionaries(st.sampled_from(variables), possible, max_size=2)

    def check(given: tuple[dict[str, Any], dict[str, str]]) -> None:
        arguments, environ = given
        with pytest.MonkeyPatch.context() as patch:
            for name, text in environ.items():
                patch.setenv(name, text)
            ours(ApiKey(**{"config_file": f"{folder}/config"} | arguments).load, ConfigurationError)
            ours(ApiKey(**arguments).load, ConfigurationError)
        token = arguments.get("passphrase")
        if isinstance(token, str | bytes | Hostile) and not (
            isinstance(token, str) and token.isascii()
        ):
            ours(DelegationToken(token).load, ConfigurationError)

    try_all(st.tuples(st.dictionaries(st.sampled_from(names), values, max_size=3), environ), check)
