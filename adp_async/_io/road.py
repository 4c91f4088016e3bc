"""The road from this machine to the service: the certificates to trust, and the proxy.

Both are read from files and from the environment, once, when a session opens.  A mistake in
them is a `ConfigurationError` then, which names the setting or variable; messages and `repr` never
show a proxy's user and password.
"""

from __future__ import annotations

import base64
import os
import re
import ssl
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from attrs import field, frozen
from yarl import URL

from adp_async.errors import misconfigured, reason_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from urllib.parse import SplitResult

    from adp_async.errors import ConfigurationError

__all__ = ["Proxy", "proxy_for", "read_proxy", "trusted_certificates"]

# Certificates -------------------------------------------------------------------------------------

#: Where certificates are looked for when the setting ``ca_bundle`` is not given.
_CA_VARIABLES: Final = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
_CA_SETTING: Final = "the setting ca_bundle (ADP_ASYNC_CA_BUNDLE)"
#: How OpenSSL names the certificates of a folder: by a hash of their subject.
_HASHED: Final = re.compile(r"[0-9a-f]{8}\.[0-9]+")


def trusted_certificates(ca_bundle: str | os.PathLike[str] | None) -> ssl.SSLContext | None:
    """A context that trusts the certificates of *ca_bundle* and no others.

    Without it, those of the file that ``REQUESTS_CA_BUNDLE`` or ``SSL_CERT_FILE`` names now; None
    when neither is set: those of the system.  Raises `ConfigurationError`.
    """
    if ca_bundle is not None:
        return _context(os.fspath(ca_bundle), _CA_SETTING)
    for variable in _CA_VARIABLES:
        if named := os.environ.get(variable, "").strip():
            return _context(named, f"the environment's {variable}")
    return None


def _context(named: str, looked: str) -> ssl.SSLContext:
    def wrong(problem: str) -> ConfigurationError:
        fix = "Name a file of certificates in PEM format, or a folder of `openssl rehash`."
        return misconfigured("ca_bundle", f"{named!r:.200} {problem}", looked=looked, fix=fix)

    failure: ConfigurationError
    try:
        path = Path(named).expanduser()
        if path.is_dir():
            if not any(_HASHED.fullmatch(each) for each in os.listdir(path)):
                raise wrong("is a folder without hashed certificates")
            return _loaded(capath=str(path))
        if path.exists() and not path.is_file():  # opening a pipe would block
            raise wrong("is neither a file nor a folder")
        with path.open("rb") as file:  # clearer than what OpenSSL says of one that cannot be opened
            facts = os.fstat(file.fileno())
        version = facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns
        context = _loaded_once(str(path), version)
        if context.cert_store_stats()["x509"]:
            return context
        failure = wrong("does not contain a certificate")
    except ssl.SSLError:
        failure = wrong("does not contain a certificate in PEM format")
    except (OSError, ValueError, RuntimeError) as error:  # no such file, a NUL, no home for the ~
        failure = wrong(f"cannot be read: {reason_of(error)}")
    raise failure


@lru_cache(maxsize=4)
def _loaded_once(cafile: str, version: tuple[int, ...]) -> ssl.SSLContext:
    """It takes 17 ms for a system's certificates, and each pool of each session asks."""
    return _loaded(cafile=cafile)


def _loaded(*, cafile: str | None = None, capath: str | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=cafile, capath=capath)
    context.set_alpn_protocols(("http/1.1",))
    return context


# The proxy ----------------------------------------------------------------------------------------

_SCHEMES: Final = ("http", "https")
_PROXY_HOST: Final = re.compile(r"[^\s\x00-\x20\x7f/?#@\\]+")


@frozen
class Proxy:
    """A proxy, and the headers that authenticate us.  *source* says where it was set."""

    url: URL
    source: str
    headers: Mapping[str, str] | None = field(default=None, repr=False)

    def __str__(self) -> str:
        host = self.url.host or ""
        return f"{f'[{host}]' if ':' in host else host}:{self.url.port}, named by {self.source}"


def proxy_for(url: URL) -> Proxy | None:
    """The proxy that the environment names for *url*, unless ``NO_PROXY`` exempts it.

    Raises `ConfigurationError` for one that cannot be used.
    """
    # Plain http is for this machine only (see `Settings`), and needs no proxy.
    if url.scheme != "https":
        return None
    named = (getproxies().get("https") or "").strip()
    if not named or proxy_bypass(url.host or ""):
        return None
    return read_proxy(named, source=_source())


def _source() -> str:
    # urllib prefers the lower-case name, too.
    names = [name for name in os.environ if name.lower() == "https_proxy" and os.environ[name]]
    return f"the environment's {max(names)}" if names else "the system's settings"


def read_proxy(text: str, *, source: str) -> Proxy:
    """The proxy that *text* means, a URL or ``host:port``; raises `ConfigurationError`.

    >>> str(read_proxy("user:secret@proxy.example.com:3128", source="HTTPS_PROXY"))
    'proxy.example.com:3128, named by HTTPS_PROXY'
    """
    # A text that cannot be parsed is never shown: any part of it may be a password.
    fix = (
        "It looks like http://proxy.example.com:3128 or http://user:password@...; "
        "special characters of user and password are percent-encoded."
    )
    problem = "its URL cannot be read: it has no host, or a port that is not a number up to 65535"
    failure = misconfigured("proxy", problem, looked=source, fix=fix)
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        port = parts.port
        host = parts.hostname or ""
        is_whole = _PROXY_HOST.fullmatch(host) and port != 0
        is_whole = is_whole and not (host in _SCHEMES and "://" not in text)  # http:/proxy
        if not is_whole or "@" in f"{parts.path}{parts.query}{parts.fragment}":
            raise failure
        if parts.scheme not in _SCHEMES:
            raise _unsupported(parts, source)
        port = port or (443 if parts.scheme == "https" else 80)
        url = URL.build(scheme=parts.scheme, host=host, port=port)
        return Proxy(url, source, _authorization(parts))
    except ValueError:  # of urlsplit or yarl; UnicodeError is one
        pass
    raise failure


def _unsupported(parts: SplitResult, source: str) -> ConfigurationError:
    port = f":{parts.port}" if parts.port else ""
    problem = f"{parts.scheme[:20]!r} is not supported for the proxy {parts.hostname}{port}"
    fix = "Use an http:// or https:// proxy, or exempt the service's host with NO_PROXY."
    return misconfigured("proxy", problem, looked=source, fix=fix)


def _authorization(parts: SplitResult) -> Mapping[str, str] | None:
    if parts.username is None:
        return None
    user, password = unquote(parts.username), unquote(parts.password or "")
    if ":" in user:
        message = "the proxy would mistake its second half for the password"
        raise ValueError(message)
    credentials = base64.b64encode(f"{user}:{password}".encode()).decode("ascii")
    return {"proxy-authorization": f"Basic {credentials}"}
