"""Where the artifacts of a run belong, and what they may be called.

A run's ``artifact_uri`` decides the way: a folder of this machine, a bucket of Object Storage, or
a volume of the platform.  Who copies or sends is the business of `adp_async._io.uploads`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import quote, urlsplit

from attrs import frozen

from adp_async._sansio.values import is_unicode
from adp_async.errors import ConfigurationError, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

#: What Object Storage takes in one request, by the practice of OCI's own clients, and the size of
#: a part beyond that.
PART_BYTES: Final = 128 * 2**20
#: An object has at most so many parts.
MOST_PARTS: Final = 10_000
#: The longest name of an object.
OBJECT_NAME_BYTES: Final = 1024
#: The longest path in a volume, which travels in a header.
VOLUME_PATH_CHARACTERS: Final = 255

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_BUCKET: Final = re.compile(r"oci://(?P<bucket>[\w.-]+)@(?P<namespace>[\w.-]+)(?:/(?P<prefix>.*))?")
_VOLUME: Final = re.compile(
    r"/Volumes/(?P<catalog>[^/]+)/(?P<schema>[^/]+)/(?P<volume>[^/]+)(?:/(?P<prefix>.*))?"
)
_REGION_IN_HOST: Final = re.compile(r"\.([a-z]{2,}(?:-[a-z]+)+-[0-9]+)\.oci\.")
_HOW: Final = (
    "Artifacts can go to file:///folder, oci://bucket@namespace/prefix and "
    "/Volumes/catalog/schema/volume/folder: create the experiment with such an artifact_location."
)


@frozen
class LocalFolder:
    """A folder of this machine; *url_path* is percent-encoded, as the URI has it."""

    url_path: str


@frozen
class ObjectFolder:
    """Objects of a bucket whose names begin with *prefix* and a slash; *prefix* may be empty."""

    bucket: str
    namespace: str
    prefix: str = ""

    def object_name(self, name: str) -> str:
        """What the artifact *name* is called in the bucket; `ConfigurationError` if too long."""
        whole = _joined(self.prefix, name)
        if (size := len(whole.encode())) > OBJECT_NAME_BYTES:
            message = (
                f"the object {shown(whole)} would have a name of {size} bytes; Object Storage "
                f"takes {OBJECT_NAME_BYTES}"
            )
            raise ConfigurationError(message)
        return whole

    def url(self, kind: str, base_url: str, object_name: str = "") -> str:
        """The address of an object (*kind* ``"o"``), or of a multipart upload (``"u"``).

        >>> ObjectFolder("b", "n").url("o", "https://host", "a/b c")
        'https://host/n/n/b/b/o/a/b%20c'
        """
        bucket, namespace = quote(self.bucket, safe=""), quote(self.namespace, safe="")
        root = f"{base_url}/n/{namespace}/b/{bucket}/{kind}"
        return f"{root}/{quote(object_name)}" if object_name else root


@frozen
class VolumeFolder:
    """A folder of a volume; *prefix* may be empty."""

    catalog: str
    schema: str
    volume: str
    prefix: str = ""

    @property
    def key(self) -> str:
        """The volume's full name, by which the platform finds it."""
        return f"{self.schema_key}.{self.volume}"

    @property
    def schema_key(self) -> str:
        return f"{self.catalog}.{self.schema}"

    def path(self, name: str = "") -> str:
        """The path of the artifact *name* in the volume; `ConfigurationError` if it has none."""
        whole = f"/{_joined(self.prefix, name)}" if name else f"/{self.prefix}"
        problem = ""
        if len(whole) > VOLUME_PATH_CHARACTERS:
            problem = f"has {len(whole)} characters; the platform takes {VOLUME_PATH_CHARACTERS}"
        elif not whole.isascii():
            # It travels in a header, and nobody says in which encoding.
            problem = "holds other characters than ASCII, which the platform takes no path with"
        if problem:
            message = f"the path {shown(whole)} in the volume {self.key} {problem}"
            raise ConfigurationError(message)
        return whole


Place: TypeAlias = LocalFolder | ObjectFolder | VolumeFolder


def place_of(artifact_uri: str) -> Place:
    """Where *artifact_uri* leads; `ConfigurationError` for a scheme that nothing here can serve.

    >>> place_of("oci://models@tenancy/digits/7/artifacts/")
    ObjectFolder(bucket='models', namespace='tenancy', prefix='digits/7/artifacts')
    >>> place_of("/Volumes/main/default/files/7").key
    'main.default.files'
    """
    uri = artifact_uri.rstrip("/")
    if found := _VOLUME.fullmatch(uri):
        return VolumeFolder(**_without_dots(found.groupdict(default="")))
    scheme = found[1].lower() if (found := _SCHEME.match(uri)) else ""
    if scheme == "oci" and (found := _BUCKET.fullmatch(uri)):
        return ObjectFolder(**_without_dots(found.groupdict(default="")))
    if scheme == "file":
        return _local_folder(uri)
    raise ConfigurationError(f"{_complaint(uri, scheme)} {_HOW}")


def _local_folder(uri: str) -> LocalFolder:
    parts = urlsplit(uri)
    is_here = parts.netloc in ("", "localhost") and parts.path.startswith("/")
    if not is_here or parts.query or parts.fragment:
        message = "the run's artifact_uri (scheme 'file') is not a folder of this machine."
        raise ConfigurationError(f"{message} {_HOW}")
    return LocalFolder(parts.path)


def _complaint(uri: str, scheme: str) -> str:
    # No more of it is shown: some have a password or a token in them.
    if uri.startswith("/Volumes"):
        return "the run's artifact_uri names no volume: it lacks the catalog, schema or volume."
    if scheme == "oci":
        return "the run's artifact_uri (scheme 'oci') names no bucket and namespace."
    if scheme:
        return f"the run's artifact_uri has the scheme {scheme!r:.40}, where nothing can be sent."
    return "the run's artifact_uri has no scheme."


def _without_dots(parts: dict[str, str]) -> dict[str, str]:
    names = [part for text in parts.values() for part in text.split("/")]
    if not {".", ".."}.isdisjoint(names):
        message = "the run's artifact_uri has a part '.' or '..', which leads elsewhere."
        raise ConfigurationError(f"{message} {_HOW}")
    return parts


def _joined(prefix: str, name: str) -> str:
    return f"{prefix}/{name}" if prefix else name


# Names --------------------------------------------------------------------------------------------


def folder_name(to: object) -> str:
    """*to* if it can be a folder of artifacts, "" for their root.  TypeError or ValueError.

    >>> folder_name("plots/")
    'plots'
    """
    text = _text(to)
    return artifact_name(text.removesuffix("/")) if text else ""


def artifact_name(to: object, folder: str = "") -> str:
    """*to* in *folder* if it can be the name of an artifact.  TypeError or ValueError.

    >>> artifact_name("loss.png", "plots")
    'plots/loss.png'
    """
    text = _text(to)
    if problem := _problem_of_name(text):
        message = f"an artifact cannot be called {shown(text)}: {problem}"
        raise ValueError(message)
    return _joined(folder, text)


def _text(to: object) -> str:
    if not issubclass(type(to), str):
        message = f"the name of an artifact is a str, not {type(to).__name__:.40}"
        raise TypeError(message)
    return str.__str__(to)


def _problem_of_name(text: str) -> str:
    parts = text.split("/")
    if not text:
        return "it is empty"
    if text.startswith("/"):
        return "it begins with '/'; names are relative to the run's artifact_uri"
    if "" in parts:
        return "a part of it is empty"
    if not {".", ".."}.isdisjoint(parts):
        return "a part of it is '.' or '..'"
    if "\\" in text:
        return "its parts are separated by '/', not by a backslash"
    if not is_unicode(text) or any(ord(each) < 32 or ord(each) == 127 for each in text):
        return "it holds a control character, or one that cannot be encoded"
    return ""


# Parts --------------------------------------------------------------------------------------------


@frozen
class Part:
    """So many bytes of a file, from *offset* on; the first has the *number* 1."""

    number: int
    offset: int
    size: int


def parts_of(size: int, part_bytes: int = PART_BYTES) -> Iterator[Part]:
    """The parts in which a file of *size* bytes is sent.

    >>> [part.size for part in parts_of(10, part_bytes=4)]
    [4, 4, 2]
    """
    part_bytes = max(part_bytes, -(-size // MOST_PARTS))
    for number, offset in enumerate(range(0, size, part_bytes), 1):
        yield Part(number, offset, min(part_bytes, size - offset))


def region_in(endpoint: str) -> str | None:
    """The region that the host of *endpoint* names.

    >>> region_in("https://aidp.us-ashburn-1.oci.oraclecloud.com")
    'us-ashburn-1'
    """
    found = _REGION_IN_HOST.search(urlsplit(endpoint).netloc)
    return found[1] if found else None
