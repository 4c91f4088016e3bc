"""Loading what signs: every mode, and every way a configuration can be wrong."""

import errno
import logging
import os
import re
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import oci.auth.signers
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from adp_async._sansio.messages import Request
from adp_async._sansio.signing import Signable
from adp_async.auth import (
    ApiKey,
    Auth,
    CustomSigner,
    DelegationToken,
    InstancePrincipal,
    ResourcePrincipal,
    SessionToken,
    WorkloadIdentity,
    auth_from,
)
from adp_async.auth._choice import _takes_a_request
from adp_async.auth._principals import _told_by
from adp_async.errors import ConfigurationError, reason_of

TENANCY = "ocid1.tenancy.oc1..aaaaaaaatenancy"
USER = "ocid1.user.oc1..aaaaaaaauser"
FINGERPRINT = ":".join(["a1"] * 16)
PASSPHRASE = "sésame"  # not ASCII, on purpose
DATE = "Sun, 05 Jan 2014 21:31:40 GMT"


def pem_of(key, passphrase: str | None = None) -> str:
    encryption = (
        serialization.BestAvailableEncryption(passphrase.encode())
        if passphrase
        else serialization.NoEncryption()
    )
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    ).decode()


@pytest.fixture(scope="module")
def key():
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture(scope="module")
def pem(key):
    return pem_of(key)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home of one's own, and none of the variables of the machine."""
    for name in list(os.environ):
        if name.startswith(("OCI_", "AIDP_", "ADP_ASYNC_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def write_config(home, pem):
    """Write a config file with one profile; a value of None leaves a line out."""

    def write(name: str = "config", profile: str = "DEFAULT", **changes: object) -> Path:
        key_file = home / "key.pem"
        if not key_file.exists():
            key_file.write_text(pem)
        values = {
            "tenancy": TENANCY,
            "user": USER,
            "fingerprint": FINGERPRINT,
            "key_file": key_file,
            "region": "eu-frankfurt-1",
        }
        values |= changes
        lines = [f"{key}={value}" for key, value in values.items() if value is not None]
        file = home / name
        file.write_text("\n".join([f"[{profile}]", *lines, ""]))
        return file

    return write


def key_id(signer) -> str:
    signable = Signable.of(Request("GET", "https://example.com/"), date=DATE)
    signer(signable)
    return signable.headers["authorization"].partition('keyId="')[2].partition('"')[0]


# API keys


def test_api_key_of_a_profile(write_config):
    """The key id consists of tenancy, user and fingerprint."""
    auth = ApiKey(write_config(profile="other"), "other")

    signer = auth.load()

    assert key_id(signer) == f"{TENANCY}/{USER}/{FINGERPRINT}"
    assert auth.region(signer) == "eu-frankfurt-1"


def test_the_environment_names_file_and_profile(write_config, monkeypatch):
    """OCI_CONFIG_FILE and OCI_CLI_PROFILE stand in for the arguments."""
    monkeypatch.setenv("OCI_CONFIG_FILE", str(write_config("elsewhere", "mine")))
    monkeypatch.setenv("OCI_CLI_PROFILE", "mine")

    assert key_id(ApiKey().load()).startswith(TENANCY)


def test_the_default_place(write_config, home):
    """Without either it is ~/.oci/config, profile DEFAULT."""
    (home / ".oci").mkdir()
    write_config(".oci/config")

    assert key_id(ApiKey().load()).startswith(TENANCY)


def test_a_profile_inherits_from_default(write_config):
    """What a profile doesn't say is taken from DEFAULT, as OCI's own tools do."""
    config = write_config()
    config.write_text(f"{config.read_text()}\n[mine]\nuser={USER}x\n")

    assert key_id(ApiKey(config, "mine").load()) == f"{TENANCY}/{USER}x/{FINGERPRINT}"


def test_arguments_replace_lines(write_config):
    """An explicit user replaces that of the profile."""
    auth = ApiKey(write_config(), user=f"{USER}x")

    assert key_id(auth.load()) == f"{TENANCY}/{USER}x/{FINGERPRINT}"


def test_all_arguments_need_no_file(pem, home):
    """With tenancy, user, fingerprint and key given, no config file has to exist."""
    (home / "own.pem").write_text(pem)
    given = {"tenancy": TENANCY, "user": USER, "fingerprint": FINGERPRINT.upper()}
    expected = f"{TENANCY}/{USER}/{FINGERPRINT}"

    by_content = ApiKey(key_content=pem, **given)
    by_file = ApiKey(key_file=home / "own.pem", **given)

    assert key_id(by_content.load()) == expected
    assert key_id(by_file.load()) == expected
    assert by_content.region(by_content.load()) is None


@pytest.mark.parametrize("from_file", [True, False])
def test_passphrase(write_config, home, key, from_file):
    """An encrypted key opens with the profile's pass_phrase, or with the argument."""
    (home / "key.pem").write_text(pem_of(key, PASSPHRASE))
    config = write_config(pass_phrase=PASSPHRASE if from_file else None)
    auth = ApiKey(config, passphrase=None if from_file else PASSPHRASE)

    assert key_id(auth.load()).startswith(TENANCY)


def test_a_passphrase_too_many_does_no_harm(write_config):
    """DEFAULT may have a pass_phrase that another profile's key doesn't need."""
    assert ApiKey(write_config(pass_phrase="left over")).load()


def test_a_group_readable_key_is_taken(write_config, home):
    """Permissions are the user's own business."""
    config = write_config()
    (home / "key.pem").chmod(0o644)

    assert ApiKey(config).load()


def test_text_after_the_key(write_config, home, pem):
    """OCI's console appends a label to the key it gives out."""
    (home / "key.pem").write_text(f"{pem}OCI_API_KEY\n")

    assert ApiKey(write_config()).load()


@pytest.mark.parametrize(
    ("changes", "setting", "expected"),
    [
        ({"tenancy": None}, "tenancy", "is missing"),
        ({"user": ""}, "user", "is missing"),
        ({"tenancy": "my tenancy"}, "tenancy", "'my tenancy' is not an OCID"),
        ({"user": "ocid1.user"}, "user", "'ocid1.user' is not an OCID"),
        ({"fingerprint": None}, "fingerprint", "is missing"),
        ({"fingerprint": "a1:b2"}, "fingerprint", "'a1:b2' is not a fingerprint"),
        ({"key_file": None}, "key_file", "is missing"),
        ({"key_file": "/nowhere/key.pem"}, "key_file", "cannot be read: No such file"),
        ({"user": None, "security_token_file": "t"}, "user", "auth='security_token'"),
    ],
)
def test_wrong_lines(write_config, changes, setting, expected):
    """The error names the setting, what is wrong, the file and profile, and the fix."""
    config = write_config(**changes)

    with pytest.raises(ConfigurationError) as raised:
        ApiKey(config).load()

    message = str(raised.value)
    assert message.startswith(f"{setting}: ")
    assert expected in message
    assert f"profile 'DEFAULT' of {config}" in message
    assert message.endswith(".")


@pytest.mark.parametrize("complete", [True, False])
def test_wrong_arguments(write_config, pem, complete):
    """A wrong argument is not blamed on the file."""
    good = {"user": USER, "fingerprint": FINGERPRINT, "key_content": pem} if complete else {}

    with pytest.raises(ConfigurationError, match=r"^tenancy: .*looked in the argument tenancy"):
        ApiKey(write_config(), tenancy="mine", **good).load()


def test_a_directory_is_no_key(write_config, home):
    """A key_file that cannot be read says why."""
    with pytest.raises(ConfigurationError, match=r"key_file: cannot be read: Is a directory"):
        ApiKey(write_config(key_file=home)).load()


def test_wrong_keys(write_config, home, key):
    """Each kind of wrong key has an error of its own."""
    public = key.public_key()
    pkix = serialization.PublicFormat.SubjectPublicKeyInfo
    wrong = {
        "is a public key": public.public_bytes(serialization.Encoding.PEM, pkix).decode(),
        "is a public key,": public.public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        ).decode(),
        "is encrypted and no passphrase is given": pem_of(key, PASSPHRASE),
        "is not a PEM private key": "-----BEGIN CERTIFICATE-----\nnil\n-----END CERTIFICATE-----",
        "is not a PEM private key ": "",
        "is not an RSA key": pem_of(ec.generate_private_key(ec.SECP256R1())),
    }
    config = write_config()
    for expected, content in wrong.items():
        (home / "key.pem").write_text(content)
        with pytest.raises(ConfigurationError, match=f"^key_file: {expected}") as raised:
            ApiKey(config).load()
        assert str(home / "key.pem") in str(raised.value)


def test_wrong_passphrase(write_config, home, key):
    """A wrong passphrase is called that, and isn't repeated."""
    (home / "key.pem").write_text(pem_of(key, PASSPHRASE))

    with pytest.raises(ConfigurationError, match="does not open with the given") as raised:
        ApiKey(write_config(), passphrase="guess").load()

    assert "guess" not in str(raised.value)


@pytest.mark.parametrize("content", ["AA", "A" * 16, "A" * 30, "A" * 32, "Z", "A" * 5000])
@pytest.mark.parametrize("cipher", ["AES-256-CBC", "DES-EDE3-CBC", "nonsense"])
def test_a_damaged_encrypted_key(write_config, home, key, cipher, content):
    """Its header may be anything, also what makes its reader panic."""
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.BestAvailableEncryption(b"right"),
    )
    (home / "key.pem").write_bytes(
        re.sub(rb"DEK-Info: .*", f"DEK-Info: {cipher},{content}".encode(), pem)
    )

    with pytest.raises(ConfigurationError, match=r"^key_file: (does not open|is not a PEM)"):
        ApiKey(write_config(), passphrase="right").load()


def test_an_interrupt_while_a_key_is_read(write_config, monkeypatch):
    """Ctrl-C is not taken for a wrong key."""

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(serialization, "load_pem_private_key", interrupted)

    with pytest.raises(KeyboardInterrupt):
        ApiKey(write_config()).load()


def test_key_content_is_called_that(write_config):
    """A wrong key_content is looked for where it was given."""
    with pytest.raises(ConfigurationError, match="looked in the argument key_content"):
        ApiKey(write_config(), key_content="nonsense").load()


# The config file itself


def test_no_config_file(home, monkeypatch):
    """The error says which file, and who named it."""
    with pytest.raises(ConfigurationError, match=rf"{home}/\.oci/config, OCI's default place"):
        ApiKey().load()
    monkeypatch.setenv("OCI_CONFIG_FILE", "/nowhere")
    with pytest.raises(ConfigurationError, match=r"/nowhere, the environment's OCI_CONFIG_FILE"):
        ApiKey().load()
    with pytest.raises(ConfigurationError, match=r"/nothing, the argument config_file.*oci setup"):
        ApiKey("/nothing").load()


def test_no_such_profile(write_config):
    """The error lists the profiles that are there."""
    with pytest.raises(ConfigurationError, match=r"profile: 'mine' does not exist.*has: DEFAULT"):
        ApiKey(write_config(), "mine").load()


def test_an_empty_config_file(home):
    """An empty file has no profile at all."""
    (home / "config").touch()

    with pytest.raises(ConfigurationError, match=r"'DEFAULT' does not exist.*has: no profile"):
        ApiKey(home / "config").load()


def test_a_directory_is_no_config_file(home):
    """A config file that cannot be read says why."""
    with pytest.raises(ConfigurationError, match=r"config_file: cannot be read: Is a directory"):
        ApiKey(home).load()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"pass_phrase=hidden", "a valid INI file: line 1 comes before the first"),
        (b"[DEFAULT]\nhidden\n", "a valid INI file: line 2 is not key=value"),
        (b"[D]\na=b\n\n[P]\na=b\n[P]\nhidden=1", "a valid INI file: line 6 repeats a profile"),
        (b"[P]\r\nhidden=1\r\nhidden = 2", "a valid INI file: line 3 repeats a key"),
        (b"[DEFAULT]\nuser=hidden\xff", "UTF-8 text at line 2"),
        ("[DEFAULT]\nuser=hidden\u0107".encode("cp1250"), "UTF-8 text at line 2"),
        ("[DEFAULT]\nuser=hidden".encode("utf-16"), "UTF-8 text; it looks like UTF-16"),
        ("[DEFAULT]\nuser=hidden".encode("utf-16-be"), "UTF-8 text; it looks like UTF-16"),
        (b"[DEFAULT]\npass_phrase=hid\x00den", "UTF-8 text; it looks like UTF-16"),
    ],
)
def test_what_is_no_ini_file(home, content, problem):
    """The error doesn't quote the file, whose lines may be secrets, nor does its context."""
    (home / "config").write_bytes(content)

    with pytest.raises(ConfigurationError, match=f"^config_file: is not {problem}") as raised:
        ApiKey(home / "config").load()

    assert "hidden" not in str(raised.value)
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


@pytest.mark.parametrize("make", ["fifo", "device", "huge"])
@pytest.mark.parametrize("setting", ["config_file", "key_file", "security_token_file"])
def test_what_may_never_end_is_not_read(write_config, home, make, setting):
    """A pipe, a device or a file of any size is refused, not waited for."""
    odd = home / "odd"
    if make == "fifo":
        os.mkfifo(odd)
    elif make == "device":
        odd = Path("/dev/zero")
    else:
        with odd.open("wb") as file:
            file.truncate(2**40)  # a hole: it takes no room on the disk
    auth = {
        "config_file": lambda: ApiKey(odd),
        "key_file": lambda: ApiKey(write_config(key_file=odd)),
        "security_token_file": lambda: SessionToken(write_config(security_token_file=odd)),
    }[setting]()
    problem = "larger than 1,048,576 bytes" if make == "huge" else "not a regular file"

    with pytest.raises(ConfigurationError, match=f"^{setting}: cannot be read: {problem}"):
        auth.load()


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_files_of_other_systems(write_config, home, pem, end, mark):
    """Line ends of Windows, a byte order mark and a % are nothing special."""
    config = write_config(note="100 %(done)s %%")
    for file, text in ((config, config.read_text()), (home / "key.pem", pem)):
        file.write_bytes((mark + text.replace("\n", end)).encode())

    assert key_id(ApiKey(config).load()).startswith(TENANCY)


class Fails:
    """What raises whatever it is asked, and would tell a secret."""

    def _fail(self, *_: object) -> str:
        raise RuntimeError("hidden")

    __fspath__ = __str__ = __repr__ = __eq__ = _fail
    __hash__ = None


@pytest.mark.parametrize(
    ("arguments", "setting", "problem"),
    [
        ({"config_file": 7}, "config_file", "must be a path, not 7"),
        ({"config_file": b"/etc/config"}, "config_file", "must be a path, not a bytes"),
        ({"config_file": Fails()}, "config_file", "must be a path, not "),
        ({"config_file": "a\0b"}, "config_file", r"'a\\x00b' cannot be a path"),
        ({"config_file": "a\ud800"}, "config_file", r"'a\\ud800' cannot be a path"),
        ({"config_file": "x" * 5000}, "config_file", "at most 4,096 characters, not 5,000"),
        ({"config_file": "x" * 4000}, "config_file", "cannot be read: File name too long"),
        ({"profile": 7}, "profile", "must be a str, not int"),
        ({"profile": "\ud800\0"}, "profile", r"'\\ud800\\x00' does not exist"),
        ({"profile": "m" * 9999}, "profile", "'mmm.*mmm... does not exist"),
        ({"passphrase": b"hidden"}, "passphrase", "must be a str, not bytes"),
        ({"key_content": b"hidden"}, "key_content", "must be a str, not bytes"),
        ({"key_content": Fails()}, "key_content", "must be a str, not Fails"),
        ({"key_content": "hidden\ud800ä"}, "key_content", "is not a PEM private key"),
        ({"tenancy": ["hidden"]}, "tenancy", "must be a str, not list"),
        ({"tenancy": f"{TENANCY}\0"}, "tenancy", "is not an OCID"),
        ({"tenancy": f"{TENANCY}{'a' * 300}"}, "tenancy", "is not an OCID"),
        ({"fingerprint": "\u0130" * 47}, "fingerprint", "is not a fingerprint"),
        ({"fingerprint": "SHA256:" + "aB/" * 14}, "fingerprint", "is not a fingerprint"),
        ({"key_file": "-----BEGIN PRIVATE KEY-----\nhidden"}, "key_file", "not the key itself"),
        ({"key_file": Fails()}, "key_file", "must be a path"),
        ({"key_file": "k\0"}, "key_file", "cannot be a path"),
    ],
)
def test_odd_arguments(write_config, arguments, setting, problem):
    """Each is named with what it must be; no secret is shown, nor is what an object raises."""
    with pytest.raises(ConfigurationError, match=f"^{setting}: .*{problem}") as raised:
        ApiKey(**{"config_file": write_config()} | arguments).load()

    error = raised.value
    assert "hidden" not in f"{error}{error.__cause__}"
    assert error.__suppress_context__ or error.__context__ is None
    assert len(str(error)) < 1000


@pytest.mark.parametrize("line", ["key_file=k\x0c\x01\n", "key_file=~nobody-of-that-name/key\n"])
def test_odd_key_files_of_the_profile(write_config, line):
    """What can't be a key's path is looked for in the profile."""
    config = write_config(key_file=None)
    config.write_text(config.read_text() + line)

    with pytest.raises(ConfigurationError, match=r"^key_file: .*profile 'DEFAULT' of .*config"):
        ApiKey(config).load()


def test_a_passphrase_that_is_no_text(write_config, home, key):
    """It is not repeated, neither whole nor in part."""
    (home / "key.pem").write_text(pem_of(key, PASSPHRASE))

    with pytest.raises(ConfigurationError, match=r"^passphrase: is not UTF-8") as raised:
        ApiKey(write_config(), passphrase="hidden\ud83d").load()

    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__


def test_nobodys_home(monkeypatch):
    """Without HOME, and as a user the system doesn't know, the error says what to set."""
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)

    with pytest.raises(ConfigurationError, match=r"^config_file: '~/.oci/config' needs a home"):
        ApiKey().load()


# What the command line of OCI reads


def test_the_names_of_the_command_line(write_config, home, monkeypatch):
    """OCI_CLI_CONFIG_FILE and OCI_CLI_KEY_CONTENT do when nothing else names file or key."""
    (home / "key.pem").write_text("nonsense")
    monkeypatch.setenv("OCI_CLI_CONFIG_FILE", f" {write_config('elsewhere')}\r")
    with pytest.raises(ConfigurationError, match="key_file: is not a PEM private key"):
        ApiKey().load()
    monkeypatch.setenv("OCI_CLI_KEY_CONTENT", pem_of(rsa.generate_private_key(65537, 2048)))

    assert ApiKey().load()


def test_the_command_lines_variables_alone(pem, monkeypatch):
    """In a pipeline with all of them no file has to exist."""
    for key, value in {
        "TENANCY": TENANCY,
        "USER": USER,
        "FINGERPRINT": FINGERPRINT,
        "KEY_CONTENT": pem,
    }.items():
        monkeypatch.setenv(f"OCI_CLI_{key}", value)

    assert key_id(ApiKey().load()) == f"{TENANCY}/{USER}/{FINGERPRINT}"
    monkeypatch.setenv("OCI_CLI_FINGERPRINT", "a1")
    with pytest.raises(ConfigurationError, match="environment's OCI_CLI_FINGERPRINT"):
        ApiKey().load()


def test_the_command_lines_variables_come_last(write_config, pem, home, monkeypatch):
    """OCI_CONFIG_FILE and every argument win over them."""
    config = write_config()
    monkeypatch.setenv("OCI_CLI_CONFIG_FILE", "/nowhere")
    monkeypatch.setenv("OCI_CLI_KEY_CONTENT", "nonsense")
    monkeypatch.setenv("OCI_CLI_USER", "nonsense")

    assert ApiKey(config).load()
    monkeypatch.setenv("OCI_CONFIG_FILE", str(config))
    assert ApiKey(user=USER, key_file=home / "key.pem").load()
    assert ApiKey(user=USER, key_content=pem).load()
    assert ApiKey(profile="DEFAULT").load()


# A session token under api_key


def test_a_token_under_api_key(write_config, token_file, caplog):
    """A section of `oci session authenticate` with the user of DEFAULT gets a warning."""
    config = write_config()
    config.write_text(f"{config.read_text()}\n[mine]\nsecurity_token_file={token_file}\n")

    ApiKey(config, "mine").load()

    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"profile 'mine' of {config}" in record.getMessage()
    assert "auth='security_token'" in record.getMessage()


def test_a_user_beside_a_token_is_meant(write_config, token_file, caplog):
    """A section with a user of its own, by line or by argument, may well have an API key."""
    both = write_config(security_token_file=token_file)
    ApiKey(both).load()
    config = write_config("other")
    lines = f"{config.read_text()}\n[mine]\nsecurity_token_file={token_file}\n"
    config.write_text(lines)
    ApiKey(config, "mine", user=f"{USER}z").load()
    config.write_text(f"{lines}user={USER}y\n")
    ApiKey(config, "mine").load()

    assert caplog.records == []


# Session tokens


@pytest.fixture
def token_file(home):
    file = home / "token"
    file.write_text("token-one\n")
    return file


def test_session_token(write_config, token_file):
    """The key id is the token, stripped, behind ST$."""
    auth = SessionToken(write_config(user=None, security_token_file=token_file))

    signer = auth.load()

    assert key_id(signer) == "ST$token-one"
    assert auth.region(signer) == "eu-frankfurt-1"


def test_a_changed_token_file_is_read_again(write_config, token_file):
    """At most once a second a look is taken, and a new token signs from then on."""
    auth = SessionToken(write_config(security_token_file=token_file))
    signer = auth.load()
    clock = SimpleNamespace(now=100.0)
    signer._clock = lambda: clock.now

    assert key_id(signer) == "ST$token-one"
    token_file.write_text("token-two-longer")
    assert key_id(signer) == "ST$token-one"
    clock.now += 1.0
    assert key_id(signer) == "ST$token-two-longer"
    assert signer.renewals == 1


def test_a_replaced_token_file_is_noticed(write_config, token_file, home):
    """A file of the same size and time, moved over the old one, is another file."""
    signer = SessionToken(write_config(security_token_file=token_file)).load()
    found = token_file.stat()
    (home / "new").write_text("token-two\n")
    os.utime(home / "new", ns=(found.st_atime_ns, found.st_mtime_ns))
    (home / "new").replace(token_file)

    assert key_id(signer) == "ST$token-two"


def test_a_changed_key_file_is_read_again(write_config, token_file, home, pem):
    """The key belongs to the token; a new one is taken, too."""
    signer = SessionToken(write_config(security_token_file=token_file)).load()
    (home / "key.pem").write_text(pem + "\n")

    key_id(signer)

    assert signer.renewals == 1


def test_after_a_401_the_files_are_looked_at_at_once(write_config, token_file):
    """A refresh doesn't wait for the next look, and says whether there was anything new."""
    signer = SessionToken(write_config(security_token_file=token_file)).load()
    key_id(signer)

    assert signer.refresh_security_token() is False
    token_file.write_text("token-two")
    assert signer.refresh_security_token() is True
    assert key_id(signer) == "ST$token-two"


def test_after_a_401_times_of_files_are_not_believed(write_config, token_file):
    """On a file system that counts in seconds a new token may look like the old file."""
    signer = SessionToken(write_config(security_token_file=token_file)).load()
    found = token_file.stat()
    token_file.write_text("token-two\n")
    os.utime(token_file, ns=(found.st_atime_ns, found.st_mtime_ns))

    assert signer.refresh_security_token() is True
    assert key_id(signer) == "ST$token-two"


def test_a_half_written_token_keeps_the_old_one(write_config, token_file, caplog):
    """Between truncation and writing the old token goes on, with one warning."""
    signer = SessionToken(write_config(security_token_file=token_file)).load()
    clock = SimpleNamespace(now=100.0)
    signer._clock = lambda: clock.now
    caplog.set_level(logging.INFO, "adp_async")

    token_file.write_text("")
    for _ in range(3):
        clock.now += 1.0
        assert key_id(signer) == "ST$token-one"
    token_file.write_text("token-two")
    clock.now += 1.0

    assert key_id(signer) == "ST$token-two"
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "token-" not in caplog.text


def test_a_missing_token_file_keeps_the_old_one(write_config, token_file):
    """A token file that is gone for a moment is no reason to stop."""
    signer = SessionToken(write_config(security_token_file=token_file)).load()
    token_file.unlink()

    assert key_id(signer) == "ST$token-one"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "cannot be read: No such file"),
        (" \n", "holds no token"),
        ("one\ntwo", "holds more than a token"),
        ("one\x00two", "holds more than a token"),
        ("tökén", "holds no token, but text that is not ASCII"),
    ],
)
def test_wrong_token_files(write_config, token_file, content, expected):
    """The error names the setting, the file, the profile that named it, and the fix."""
    token_file.unlink() if content is None else token_file.write_text(content)
    config = write_config(security_token_file=token_file)

    with pytest.raises(ConfigurationError, match=f"security_token_file: {expected}") as raised:
        SessionToken(config).load()

    assert f"{token_file}, named by profile 'DEFAULT' of {config}" in str(raised.value)


def test_a_profile_without_a_token(write_config):
    """The fix is the command that makes one."""
    with pytest.raises(ConfigurationError, match=r"security_token_file: is missing.*authenticate"):
        SessionToken(write_config()).load()


# The modes that OCI itself vouches for


@pytest.mark.parametrize(
    ("auth", "factory"),
    [
        (InstancePrincipal(), "InstancePrincipalsSecurityTokenSigner"),
        (DelegationToken("obo"), "InstancePrincipalsDelegationTokenSigner"),
        (ResourcePrincipal(), "get_resource_principals_signer"),
        (WorkloadIdentity(), "get_oke_workload_identity_resource_principal_signer"),
    ],
)
def test_principals(monkeypatch, auth, factory):
    """Each principal is built by OCI's own factory, and knows its region."""
    built = SimpleNamespace(region="us-ashburn-1")
    seen = []
    monkeypatch.setattr(oci.auth.signers, factory, lambda **given: seen.append(given) or built)

    assert auth.load() is built
    assert auth.region(built) == "us-ashburn-1"
    assert seen == [
        {"delegation_token": "obo"} if factory.endswith("DelegationTokenSigner") else {}
    ]


@pytest.mark.parametrize(
    ("auth", "fix"),
    [(ResourcePrincipal(), "OCI_RESOURCE_PRINCIPAL_"), (WorkloadIdentity(), "OKE cluster")],
)
def test_principals_elsewhere(monkeypatch, auth, fix):
    """Away from OCI the error says where the mode works, and its cause which errors led to it."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)

    with pytest.raises(ConfigurationError, match=f"auth: '{auth.mode}' gave no.*{fix}") as raised:
        auth.load()

    assert re.fullmatch(r"\w+( \(.*\))?( <- .*)*", str(raised.value.__cause__))
    assert raised.value.__suppress_context__


def test_delegation_token_of_a_file(monkeypatch, write_config, token_file):
    """Without a token the profile's delegation_token_file is read, as in Cloud Shell."""
    seen = {}
    name = "InstancePrincipalsDelegationTokenSigner"
    monkeypatch.setattr(oci.auth.signers, name, lambda **given: seen.update(given) or object())

    DelegationToken(config_file=write_config(delegation_token_file=token_file)).load()

    assert seen == {"delegation_token": "token-one"}


def test_a_delegation_token_is_signed(monkeypatch, key):
    """The opc-obo-token that the signer adds is among the signed headers and is sent."""
    signer_class = oci.auth.signers.InstancePrincipalsDelegationTokenSigner
    signer = signer_class.__new__(signer_class)
    signer.delegation_token = "obo"
    signer._reset_signers = lambda: None
    generic = ["date", "(request-target)", "host", "opc-obo-token"]
    signer.create_signers("ST$t", key, generic, [])
    request = Request("GET", "https://example.com/")
    signable = Signable.of(request, date=DATE)

    signer(signable)
    headers = signable.signed(request).headers

    assert headers["opc-obo-token"] == "obo"
    assert 'headers="date (request-target) host opc-obo-token"' in headers["authorization"]


def test_quick_signatures(key):
    """Those of an API key are, up to 2048 bits; of the others nobody knows."""

    def signer(bits):
        return SimpleNamespace(private_key=SimpleNamespace(key_size=bits))

    assert ApiKey().is_quick(signer(2048))
    assert not ApiKey().is_quick(signer(4096))
    assert not SessionToken().is_quick(signer(2048))


# From what a user writes


def test_auth_from():
    """A class, a mode's name, a signer, or what OCI_CLI_AUTH says."""

    def signer(request):
        return request

    key = ApiKey("somewhere")
    assert auth_from(key, {}) is key
    assert auth_from(None, {}) == ApiKey()
    assert auth_from(None, {"OCI_CLI_AUTH": "security_token"}) == SessionToken()
    assert auth_from("instance_obo_user", {"OCI_CLI_AUTH": "api_key"}) == DelegationToken()
    assert auth_from(signer, {}).load() is signer
    modes = ("instance_principal", "resource_principal", "oke_workload_identity")
    classes = (InstancePrincipal, ResourcePrincipal, WorkloadIdentity)
    assert tuple(type(auth_from(mode, {})) for mode in modes) == classes


@pytest.mark.parametrize(
    ("value", "environ", "looked"),
    [
        ("apikey", {}, "the argument auth"),
        (None, {"OCI_CLI_AUTH": "apikey"}, "the environment's OCI_CLI_AUTH"),
        (7, {}, "the argument auth"),
        (ApiKey, {}, "the argument auth"),
        ({}, {}, "the argument auth"),
        (None, {"OCI_CLI_AUTH": "\udcff"}, "the environment's OCI_CLI_AUTH"),
    ],
)
def test_unknown_auth(value, environ, looked):
    """What is none of that names the modes there are."""
    with pytest.raises(ConfigurationError, match=f"looked in {looked}.*api_key, security_token"):
        auth_from(value, environ)


@pytest.mark.parametrize("text", ["security_token\r", " security_token ", "\tsecurity_token\n"])
def test_blanks_around_a_mode(text):
    """A variable from a file with Windows' line ends is as good as another."""
    assert auth_from(None, {"OCI_CLI_AUTH": text}) == SessionToken()
    assert auth_from(text, {}) == SessionToken()
    assert auth_from(None, {"OCI_CLI_AUTH": " \r"}) == ApiKey()


async def signs_later(request):
    """A coroutine, which nobody would wait for."""


class Asked:
    """What raises when it is looked at."""

    @property
    def __class__(self):
        raise RuntimeError("hidden")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"pass_phrase": "hidden"}, r"an object of type dict cannot sign: it lacks __call__"),
        (["hidden"], "type list cannot sign: it lacks __call__"),
        (b"hidden", "type bytes cannot sign: it lacks __call__"),
        (0, "type int cannot sign"),
        (ApiKey, "is the class ApiKey; an instance of it is needed"),
        (signs_later, "must not be a coroutine function"),
        (lambda: None, "must take one argument, the request"),
        (lambda a, b: None, "must take one argument, the request"),
        ("-----BEGIN PRIVATE KEY-----\nhidden", "is not the name of a mode"),
        ("hidden.token.of.somebody", "is not the name of a mode"),
        ("x" * 10_000, "is not the name of a mode"),
    ],
)
def test_what_cannot_sign(value, problem):
    """The error says what is lacking, and shows nothing that may be a secret."""
    with pytest.raises(ConfigurationError, match=f"^auth: .*{problem}.*argument auth") as raised:
        auth_from(value, {})

    assert "hidden" not in str(raised.value)


def test_what_raises_when_it_is_looked_at():
    """It is reported by the type of its error, not by its message."""
    with pytest.raises(ConfigurationError, match=r"^auth: .* raised RuntimeError") as raised:
        auth_from(Asked(), {})

    assert "hidden" not in str(raised.value)


@pytest.mark.parametrize("token", ["a\nb", "a b", "\ud800", b"token", 7])
def test_a_delegation_token_of_any_content(token):
    """It goes into a header, so that it is looked at before; it isn't shown."""
    with pytest.raises(ConfigurationError, match=r"^token: ") as raised:
        DelegationToken(token).load()

    assert repr(token) not in str(raised.value)


def named_ssl_error(reason):
    error = ssl.SSLError(1, "hush")
    error.reason = reason
    return error


def test_a_signer_is_what_load_makes():
    """`Auth` itself makes none, and its credentials are in no particular place."""
    with pytest.raises(NotImplementedError):
        Auth().load()
    assert Auth().place_of_region() == "the credentials"
    assert not Auth().is_quick(print)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] hush (_ssl.c:1)"), "SSLError"),
        (named_ssl_error("WRONG_VERSION_NUMBER"), "WRONG_VERSION_NUMBER"),
        (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
        (socket.gaierror(-2, ""), "gaierror"),
        (OSError(errno.ECONNREFUSED, "hush"), os.strerror(errno.ECONNREFUSED)),
        (OSError(-5, "hush"), "OSError"),
        (OSError("hush"), "OSError"),
        (ValueError("hush"), "ValueError"),
    ],
    ids=repr,
)
def test_what_may_be_shown_of_a_foreign_error(error, reason):
    """What the system says of it, and else its type: its own words may hold a secret."""
    assert reason_of(error) == reason


def test_a_long_chain_of_errors_is_cut():
    """Ten of them tell enough."""
    error = None
    for number in range(12):
        error, before = OSError(errno.ENOENT, f"hush {number}"), error
        error.__cause__ = before

    assert list(_told_by(error)) == [f"FileNotFoundError ({os.strerror(errno.ENOENT)})"] * 10


@pytest.mark.parametrize(
    ("value", "takes"),
    [
        (print, True),
        (dict.fromkeys, True),
        (lambda: 0, False),
        (lambda a, b: 0, False),
        (iter, True),
    ],
)
def test_what_takes_a_request(value, takes):
    """Built-in functions that don't say what they take are believed."""
    assert _takes_a_request(value) == takes


def test_reprs_hide_secrets():
    """No repr shows a passphrase, a key, a token or a signer's insides."""

    class Mine:
        def __call__(self, request):
            """Sign nothing."""

        def __repr__(self):
            return "hidden"

    secretive = [
        ApiKey("file", passphrase="hidden", key_content="hidden"),
        SessionToken("file", passphrase="hidden"),
        DelegationToken("hidden"),
        CustomSigner(Mine()),
    ]

    assert "hidden" not in repr(secretive)
    assert repr(secretive[-1]) == "CustomSigner(signer=<Mine>)"


def test_importing_auth_leaves_oci_alone():
    """oci takes its time to import, and is imported when a signer is loaded."""
    code = "import sys, adp_async.auth, adp_async.settings; sys.exit('oci' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
