"""Signing with a key of one's own, next to OCI's signers: every byte of it is the same."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import oci
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from adp_async._private_keys import KeySigner, load_private_key
from adp_async._sansio.messages import Request
from adp_async._sansio.signing import Signable
from adp_async.errors import ConfigurationError
from tests.children import not_outlived_by, start

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    from adp_async.local import LocalPlatform

TENANCY, USER = "ocid1.tenancy.oc1..aaaa", "ocid1.user.oc1..bbbb"
FINGERPRINT = ":".join(["a1"] * 16)
KEY_ID = f"{TENANCY}/{USER}/{FINGERPRINT}"
DATE = "Sun, 05 Jan 2014 21:31:40 GMT"
SECRET = "hidden"
KEYS: dict[int, RSAPrivateKey] = {
    size: rsa.generate_private_key(65537, size) for size in (1024, 2048, 3072)
}


def pem_of(
    key: RSAPrivateKey,
    form: PrivateFormat = PrivateFormat.PKCS8,
    passphrase: str | None = None,
) -> bytes:
    lock = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    return key.private_bytes(Encoding.PEM, form, lock)


def api_key_of_oci(pem: bytes, passphrase: str | None = None) -> Any:
    return oci.signer.Signer(TENANCY, USER, FINGERPRINT, None, passphrase, pem)


def headers_by(signer: Any, request: Request, **options: bool) -> dict[str, str]:
    signable = Signable.of(request, date=DATE)
    signer(signable, **options)
    return signable.headers


TEXT = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=30)
REQUESTS = st.builds(
    lambda method, url, headers, body: Request(method, url, headers, body),
    st.sampled_from(["GET", "HEAD", "DELETE", "POST", "PUT", "PATCH"]),
    st.from_regex(
        r"https://aidp\.example\.com(:[1-9][0-9]{3})?(/[a-z0-9._~%2B-]{1,8}){1,4}(\?[a-z=&%20]*)?",
        fullmatch=True,
    ),
    st.dictionaries(
        st.sampled_from(
            ["content-type", "opc-request-id", "opc-retry-token", "x-content-sha256", "Accept"]
        ),
        TEXT,
    ),
    st.none() | st.binary(max_size=200),
)


@given(REQUESTS, st.booleans())
def test_every_byte_is_that_of_ocis_signer(request_: Request, with_content: bool) -> None:
    """Whatever the method, path, headers and body, with the content signed or not."""
    pem = pem_of(KEYS[1024])
    options = {"enforce_content_headers": with_content}

    ours = headers_by(KeySigner(KEY_ID, KEYS[1024]), request_, **options)

    assert ours == headers_by(api_key_of_oci(pem), request_, **options)


@given(REQUESTS)
def test_session_tokens_are_signed_as_oci_signs_them(request_: Request) -> None:
    """The key id is the token; all else is as for an API key."""
    ours = headers_by(KeySigner("ST$to.ke.n", KEYS[1024]), request_)

    assert ours == headers_by(oci.auth.signers.SecurityTokenSigner("to.ke.n", KEYS[1024]), request_)


def test_large_bodies() -> None:
    """A full batch, and what an upload leaves out."""
    body = bytes(range(256)) * 4000
    request = Request("POST", "https://aidp.example.com/a", body=body)
    theirs = api_key_of_oci(pem_of(KEYS[2048]))

    assert headers_by(KeySigner(KEY_ID, KEYS[2048]), request) == headers_by(theirs, request)


def test_what_is_missing_or_cannot_be_signed_is_an_error() -> None:
    """Nothing is signed that the service would compute otherwise."""
    sign = KeySigner(KEY_ID, KEYS[1024])
    signable = Signable.of(Request("GET", "https://example.com/"), date="naïve")
    with pytest.raises(UnicodeEncodeError):
        sign(signable)
    del signable.headers["date"]
    with pytest.raises(KeyError, match="date"):
        sign(signable)
    assert "authorization" not in signable.headers


def test_threads_sign_side_by_side() -> None:
    """A signer keeps no state between two signatures."""
    sign = KeySigner(KEY_ID, KEYS[2048])
    requests = [Request("GET", f"https://example.com/{number}") for number in range(40)]
    found: dict[int, str] = {}

    def work(numbers: range) -> None:
        for number in numbers:
            found[number] = headers_by(sign, requests[number])["authorization"]

    threads = [threading.Thread(target=work, args=[range(first, 40, 4)]) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    alone = [headers_by(sign, request)["authorization"] for request in requests]
    assert [found[number] for number in range(40)] == alone


def test_it_shows_no_secret() -> None:
    """Neither a session token, which is its key id, nor the key."""
    assert repr(KeySigner("ST$token", KEYS[1024])) == "<KeySigner 1024 bits>"


# Reading keys


@pytest.mark.parametrize("passphrase", [None, "plain", "sésame", "  blanks "])
@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
@pytest.mark.parametrize("bits", KEYS)
def test_keys_that_oci_reads(bits: int, form: PrivateFormat, passphrase: str | None) -> None:
    """PKCS#1 and PKCS#8, locked or not, of any size: the same key comes out."""
    pem = pem_of(KEYS[bits], form, passphrase)

    ours = load_private_key(pem, passphrase, looked="here")

    theirs = oci.signer.load_private_key(pem.strip(), passphrase and passphrase.encode())
    assert ours.private_numbers() == theirs.private_numbers() == KEYS[bits].private_numbers()


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
def test_a_passphrase_too_many(form: PrivateFormat) -> None:
    """A key that is not locked opens with any passphrase, as with OCI's tools."""
    key = load_private_key(pem_of(KEYS[1024], form), SECRET, looked="here")

    assert key.private_numbers() == KEYS[1024].private_numbers()


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
@pytest.mark.parametrize(
    ("given_", "problem", "fix"),
    [
        (None, "is encrypted and no passphrase is given", "pass_phrase="),
        (SECRET, "does not open with the given passphrase", "Correct pass_phrase"),
    ],
)
def test_locked_keys(form: PrivateFormat, given_: str | None, problem: str, fix: str) -> None:
    """The error names the file, the rule and the fix, and no passphrase."""
    pem = pem_of(KEYS[1024], form, "right")

    with pytest.raises(ConfigurationError) as raised:
        load_private_key(pem, given_, looked="/home/me/key.pem")

    message = str(raised.value)
    assert message.startswith(f"key_file: {problem} (looked in /home/me/key.pem). ")
    assert fix in message
    assert_nothing_is_told(raised.value, pem)


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
@pytest.mark.parametrize("passphrase", [None, SECRET])
@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("ends_well", [True, False])
def test_a_truncated_key(
    form: PrivateFormat, passphrase: str | None, share: float, ends_well: bool
) -> None:
    """A half copied file is told from a wrong passphrase only where it is locked."""
    pem = pem_of(KEYS[1024], form, passphrase)
    begin, end = pem[: int(len(pem) * share)], pem.rstrip().splitlines()[-1]
    cut = begin + b"\n" + end + b"\n" if ends_well else begin

    with pytest.raises(ConfigurationError, match=r"^key_file: (is not a PEM|does not open)") as r:
        load_private_key(cut, passphrase, looked="/home/me/key.pem")

    assert "/home/me/key.pem" in str(r.value)
    assert_nothing_is_told(r.value, pem)


def damaged(**changes: int) -> bytes:
    numbers = KEYS[1024].private_numbers()
    parts = {name: getattr(numbers, name) for name in ("p", "q", "d", "dmp1", "dmq1", "iqmp")}
    broken = rsa.RSAPrivateNumbers(
        **{name: value + changes.get(name, 0) for name, value in parts.items()},
        public_numbers=numbers.public_numbers,
    )
    return pem_of(broken.private_key(unsafe_skip_rsa_key_validation=True))


def test_a_key_whose_numbers_do_not_belong_together() -> None:
    """Its signatures would be refused, and tell the key: it isn't used for one."""
    with pytest.raises(ConfigurationError, match=r"^key_file: is damaged: .* here\). Download"):
        load_private_key(damaged(d=2, dmp1=2), None, looked="here")


def assert_nothing_is_told(error: BaseException, pem: bytes) -> None:
    """Neither *error* nor a cause of it quotes the passphrase or a line of the key."""
    told: BaseException | None = error
    while told is not None:
        text = f"{told} {told!r} {vars(told)}"
        assert SECRET not in text
        assert "right" not in text
        for line in pem.decode().splitlines()[1:-1]:
            assert len(line) < 20 or line not in text
        told = told.__cause__ or told.__context__


# Nothing of oci

WITHOUT_OCI = """
    import asyncio, sys
    import adp_async

    assert not [name for name in sys.modules if name.split(".")[0] == "oci"]
    auth = {auth}

    async def main():
        async with adp_async.Session(auth=auth) as session:
            run = session.attach_run(sys.argv[1])
            run.log_metric("loss", 0.5, step=1)
            await run.flush()
            await session.runs.get(run.run_id)

    asyncio.run(main())
    settings = adp_async.Settings.resolve({{"endpoint": None, "region": "iad"}}, {{
        "AIDP_INSTANCE_ID": "ocid1.aidataplatform.oc1.iad.x",
    }}).complete()
    print(settings.base_url)
    print("oci" in sys.modules)
"""


@pytest.mark.parametrize("mode", ["api_key", "security_token"])
async def test_a_session_imports_nothing_of_oci(
    bare_platform: LocalPlatform, tmp_path: Path, mode: str
) -> None:
    """From the import to the last request: OCI's SDK is for principals."""
    auth = "adp_async.ApiKey()"
    if mode == "security_token":
        profile = bare_platform.add_session_profile()
        named = str(profile.config_file), profile.profile
        auth = f"adp_async.SessionToken(*{named!r})"
    run_id = bare_platform.gateway.add_run()

    child = await start(bare_platform, tmp_path, WITHOUT_OCI.format(auth=auth), run_id)

    with not_outlived_by(child.process):
        out = (await child.ends_well()).split()
    assert out == ["https://aidp.us-ashburn-1.oci.oraclecloud.com", "False"]
    assert len(bare_platform.gateway.received(run_id).metrics) == 1
