"""What is signed: the published vectors, the traps of the signers, dates and header values."""

import base64
import hashlib
import json
from pathlib import Path
from urllib.request import parse_http_list, parse_keqv_list

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from adp_async._sansio.messages import Request
from adp_async._sansio.signing import (
    Signable,
    check_principal,
    check_request_id,
    check_retry_token,
    corrected_skew,
    http_date,
    parse_http_date,
)
from adp_async.auth import ApiKey

SAMPLE = json.loads((Path(__file__).parent / "samples" / "signing_vectors.json").read_text())
VECTORS = SAMPLE["vectors"]
DATE = "Sun, 05 Jan 2014 21:31:40 GMT"
NOW = 1388957500.0
URL = "https://aidp.example.com/20260430/aiDataPlatforms/x"


def key_from_primes(p: int, q: int, e: int) -> str:
    d = pow(e, -1, (p - 1) * (q - 1))
    numbers = rsa.RSAPrivateNumbers(
        p, q, d, d % (p - 1), d % (q - 1), pow(q, -1, p), rsa.RSAPublicNumbers(e, p * q)
    )
    return (
        numbers.private_key()
        .private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        .decode()
    )


@pytest.fixture(scope="module")
def signer():
    """The signer of the published vectors, loaded as any other API key."""
    key = SAMPLE["key"]
    return ApiKey(
        tenancy=SAMPLE["tenancy"],
        user=SAMPLE["user"],
        fingerprint=SAMPLE["fingerprint"],
        key_content=key_from_primes(int(key["p"], 16), int(key["q"], 16), key["e"]),
    ).load()


def attributes(authorization: str) -> dict[str, str]:
    scheme, _, rest = authorization.partition(" ")
    assert scheme == "Signature"
    return parse_keqv_list(parse_http_list(rest))


def signed(signer, request: Request, date: str = DATE) -> Request:
    signable = Signable.of(request, date=date)
    signer(signable)
    return signable.signed(request)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_published_vector(signer, vector):
    """Each attribute of the signature is the one Oracle published."""
    body = vector.get("body")
    request = Request(vector["method"], vector["url"], body=body.encode() if body else None)

    headers = signed(signer, request, vector["date"]).headers

    key_id = "/".join((SAMPLE["tenancy"], SAMPLE["user"], SAMPLE["fingerprint"]))
    assert attributes(headers["authorization"]) == {
        "version": "1",
        "algorithm": "rsa-sha256",
        "headers": vector["headers"],
        "keyId": key_id,
        "signature": vector["signature"],
    }


@pytest.mark.parametrize(
    "path",
    [
        "/a%2Fb%27c",
        "/a?filter=name%20LIKE%20%27x%27",
        "/a?x=1%2B2&y=%3A%2F",
        "/%E4%BD%A0?n=%C3%BC",
        "/a?x=a+b",
        "/",
    ],
)
def test_the_path_is_signed_as_it_is_written(path):
    """Trap 1: nothing is quoted again or unquoted between the URL and the signing string."""
    signable = Signable.of(Request("GET", f"https://aidp.example.com{path}"), date=DATE)

    assert signable.path_url == path


def test_a_body_of_bytes_has_its_length_and_hash_signed(signer):
    """Trap 2: the signers don't set content-length for bytes, so it is there before."""
    body = '{"name":"é"}'.encode()

    headers = signed(signer, Request("POST", URL, {"Content-Type": "text/x"}, body)).headers

    assert headers["content-length"] == str(len(body))
    assert headers["content-type"] == "text/x"
    digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
    assert headers["x-content-sha256"] == digest


def test_header_names_are_lower_case(signer):
    """Trap 2: a signer finds only lower-case names, so no header comes out in two spellings."""
    request = Request("POST", URL, {"Host": "other", "Date": "yesterday", "X-Own": "1"})

    headers = Signable.of(request, date=DATE).headers

    assert set(headers) == {"host", "date", "x-own", "content-length", "content-type"}
    assert headers["host"] == "aidp.example.com"
    assert headers["date"] == DATE


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
@pytest.mark.parametrize("body", [None, b""])
def test_an_empty_body_is_signed_too(signer, method, body):
    """A body method signs length 0 and the hash of nothing."""
    headers = signed(signer, Request(method, URL, body=body)).headers

    assert headers["content-length"] == "0"
    assert headers["x-content-sha256"] == base64.b64encode(hashlib.sha256().digest()).decode()
    assert attributes(headers["authorization"])["headers"].endswith("x-content-sha256")


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
def test_no_body_is_signed_for_a_delete(signer, method):
    """Trap 6: GET, HEAD and DELETE sign date, target and host only, whatever their body."""
    body = b"{}" if method == "DELETE" else None

    headers = signed(signer, Request(method, URL, body=body)).headers

    assert attributes(headers["authorization"])["headers"] == "date (request-target) host"
    assert "x-content-sha256" not in headers


def test_a_signed_request_is_signed_anew(signer):
    """The second attempt carries its own date and signature, not those of the first."""
    first = signed(signer, Request("POST", URL, body=b"{}"))

    second = signed(signer, first, http_date(NOW + 60))

    assert second.headers["date"] == http_date(NOW + 60)
    assert second.headers["authorization"] != first.headers["authorization"]
    assert (
        second.headers
        == signed(signer, Request("POST", URL, body=b"{}"), http_date(NOW + 60)).headers
    )


def test_the_port_belongs_to_the_signed_host():
    """The host header is the URL's own, so that what is signed is what is sent."""
    signable = Signable.of(Request("GET", "http://127.0.0.1:8080/a"), date=DATE)

    assert signable.headers["host"] == "127.0.0.1:8080"


def test_no_secret_in_a_repr(signer):
    """A signable shows neither its headers nor its body."""
    signable = Signable.of(Request("POST", URL, {"x-own": "hidden"}, b"hidden"), date=DATE)
    signer(signable)

    assert "hidden" not in repr(signable)
    assert "Signature" not in repr(signable)


def test_http_date_is_an_imf_fixdate():
    """Fractions of a second are dropped, and the zone is GMT."""
    assert http_date(NOW + 0.999) == DATE


@pytest.mark.parametrize(
    "text", [DATE, "Sunday, 05-Jan-14 21:31:40 GMT", "Sun, 05 Jan 2014 22:31:40 +0100"]
)
def test_dates_are_read_in_every_spelling(text):
    """What a server may write as its Date."""
    assert parse_http_date(text) == NOW


@pytest.mark.parametrize("text", [None, "", "soon", "Sun, 99 Jan 2014 21:31:40 GMT", "1388957500"])
def test_what_is_no_date_is_none(text):
    """A Date that cannot be read corrects nothing."""
    assert parse_http_date(text) is None


@pytest.mark.parametrize(
    ("skew", "ours", "expected"),
    [
        (0.0, NOW, None),  # clocks agree: the 401 has another reason
        (0.0, NOW - 200, None),  # the service would have taken that
        (0.0, NOW - 1200, 1200.0),  # we are slow
        (0.0, NOW + 1200, -1200.0),  # we are fast
        (1200.0, NOW - 1200, None),  # corrected already
        (1200.0, NOW, 0.0),  # somebody has set our clock right meanwhile
    ],
)
def test_skew(skew, ours, expected):
    """The clock follows the server's date, there and back, but not within the tolerance."""
    assert corrected_skew(skew, now=ours, server_date=DATE) == expected


def test_no_date_no_correction():
    """A reply without a Date tells nothing about the clock."""
    assert corrected_skew(0.0, now=0.0, server_date=None) is None


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (check_request_id, ["aB9_-"], ["", "a/b", "a b", "a\n", "ü", None, 7]),
        (check_retry_token, ["t", "x" * 64, "a/b:c"], ["", "x" * 65, "a b", "a\r\nx: y", None]),
        (check_principal, ["someone", "Jörg B."], ["", "a\r\nx: y", "a\x00", "a\x7f", None]),
    ],
)
def test_header_values(check, good, bad):
    """What would break or smuggle a header is refused, and the error names the header."""
    for value in good:
        assert check(value) == value
    for value in bad:
        with pytest.raises(
            ValueError, match=r"^(opc-request-id|opc-retry-token|dh-user-principal): "
        ):
            check(value)
