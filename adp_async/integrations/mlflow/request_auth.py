"""MLflow's own REST client on the service: ``MLFLOW_TRACKING_AUTH=aidp`` and an ``https`` URI.

For tools that insist on an ``https`` tracking URI, which is then
``https://aidp.<region>.oci.oraclecloud.com/20260430/aiDataPlatforms/<ocid>/workspaces/<key>/mlops``.
Requests stay MLflow's, one a call.  On its way out each gets the service's path, verb and names of
fields, and a signature for every attempt; an error reply gets the code that MLflow looks for.
``aidp://`` does more, and is an order of magnitude cheaper.
"""

from __future__ import annotations

import json
import re
import threading
from email.utils import formatdate
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import parse_qs, quote, urlencode, urlsplit, urlunsplit
from uuid import uuid4

from attrs import define
from requests.auth import AuthBase
from requests.structures import CaseInsensitiveDict

from adp_async import Scope
from adp_async.auth import auth_from
from adp_async.integrations.mlflow.failures import code_of_reply
from adp_async.integrations.mlflow.wire import PREFIX, Translated, translated, unpublished

if TYPE_CHECKING:
    from adp_async.auth import Signer

_JSON: Final = "application/json"
_IN_A_WORKSPACE: Final = re.compile(r"/workspaces/[^/]+(?=/mlops$)")
#: The part of a URL's path that belongs to MLflow's API.
_API: Final = re.compile(r"/(?:api|ajax-api)/\d+\.\d+/.*$")
_BODY_METHODS: Final = frozenset({"POST", "PUT", "PATCH"})


@cache
def signed_by_oci() -> SignedByOci:
    """The auth of this process, with the credentials that the environment names.

    Raises `ConfigurationError` when they cannot be loaded.
    """
    import os

    return SignedByOci(auth_from(None, os.environ).load())


class SignedByOci(AuthBase):
    """Translates a request of MLflow's REST client for the service, and signs each attempt."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer
        # Signing and renewing must not overlap, or the signature carries the wrong key id.
        self._lock = threading.Lock()

    def __call__(self, request: Any) -> Any:
        """Prepare *request*; raises MlflowException for an operation that is not published."""
        parts = urlsplit(request.url)
        match = _API.search(parts.path)
        if match is None:
            raise unpublished(parts.path)
        doing = translated(PREFIX.sub("", match[0]), _fields(request, parts.query))
        base = parts.path[: match.start()]
        if doing.endpoint.scope is Scope.PLATFORM:
            base = _IN_A_WORKSPACE.sub("", base)
        path = f"{base}/api/2.0/{doing.endpoint.path}"
        query = urlencode(doing.query, doseq=True, quote_via=quote)
        request.url = urlunsplit((parts.scheme, parts.netloc, path, query, ""))
        self._set_body(request, doing)
        request.headers = SignedHeaders.of(self, request)
        request.register_hook("response", self._answered)
        return request

    def _set_body(self, request: Any, doing: Translated) -> None:
        request.method = doing.endpoint.method
        request.body = None if doing.body is None else json.dumps(doing.body).encode()
        for name in ("content-length", "content-type"):
            request.headers.pop(name, None)
        if doing.endpoint.takes_retry_token:
            # One for all attempts of the call: urllib3 repeats it when a reply is lost.
            request.headers["opc-retry-token"] = uuid4().hex

    def sign(self, request: Any, headers: Any) -> None:
        """Write a fresh date and signature into *headers*."""
        signable = _Signable.of(request, headers)
        with self._lock:
            self._signer(signable)
        headers.update(signable.headers)

    def _answered(self, response: Any, **options: Any) -> Any:
        if response.is_redirect:
            # A redirect would replay the signature elsewhere.
            response.headers.pop("location")
        if response.status_code == 401 and self._renew():
            response.content  # noqa: B018 - read to its end, the connection can be used again
            request = response.request.copy()
            request.deregister_hook("response", self._answered)
            response = response.connection.send(request, **options)
        return _with_mlflows_code(response)

    def _renew(self) -> bool:
        renew = getattr(self._signer, "refresh_security_token", None)
        if renew is None:
            return False
        with self._lock:
            renew()
        return True


class SignedHeaders(CaseInsensitiveDict):  # type: ignore[type-arg]  # it is generic in the stubs only
    """Headers that are signed when they are about to be sent.

    urllib3 repeats a request by itself and knows nothing of signatures; what it does on every
    attempt is to go through the headers.
    """

    _auth: SignedByOci
    _request: Any

    @classmethod
    def of(cls, auth: SignedByOci, request: Any) -> Self:
        headers = cls(request.headers)
        # urllib3 adds a host and a length of its own before it goes through them.
        headers.update(_needed(request))
        headers._auth, headers._request = auth, request
        return headers

    def copy(self) -> Self:
        copied = type(self)(self._store.values())
        copied._auth, copied._request = self._auth, self._request
        return copied

    def items(self) -> Any:
        self._auth.sign(self._request, self)
        return super().items()


@define(slots=False)
class _Signable:
    """One attempt as a signer of ``oci`` takes it: it reads everything and writes *headers*."""

    method: str
    url: str
    path_url: str
    headers: dict[str, str]
    body: bytes | None

    @classmethod
    def of(cls, request: Any, headers: Any) -> Self:
        # (Not `items`, which would sign.)
        given = {name.lower(): headers[name] for name in headers}
        given.pop("authorization", None)
        given |= {"date": formatdate(usegmt=True), **_needed(request)}
        return cls(request.method, request.url, request.path_url, given, request.body)


def _needed(request: Any) -> dict[str, str]:
    """The headers that are signed, but for the date."""
    needed = {"host": urlsplit(request.url).netloc}
    if request.method in _BODY_METHODS:
        needed |= {"content-length": str(len(request.body or b"")), "content-type": _JSON}
    return needed


def _fields(request: Any, query: str) -> dict[str, Any]:
    """What MLflow gives, be it in the query or in the body."""
    if request.method == "GET":
        found = parse_qs(query, keep_blank_values=True)
        return {name: values if len(values) > 1 else values[0] for name, values in found.items()}
    body = json.loads(request.body) if request.body else {}
    return dict(body)


def _with_mlflows_code(response: Any) -> Any:
    """An error of the service with MLflow's ``error_code`` beside its ``code``."""
    if response.status_code < 400:
        return response
    try:
        error = response.json()
    except ValueError:
        return response  # not the service's; MLflow shows it as it is
    if isinstance(error, dict) and "error_code" not in error:
        path = urlsplit(response.request.url).path
        code = code_of_reply(response.status_code, str(error.get("code", "")), path)
        response._content = json.dumps({**error, "error_code": code}).encode()
    return response
