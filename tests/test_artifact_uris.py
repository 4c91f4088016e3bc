"""Where artifacts belong, and what they may be called: texts in, values out."""

from __future__ import annotations

import pytest

from adp_async._sansio.artifact_uris import (
    MOST_PARTS,
    LocalFolder,
    ObjectFolder,
    VolumeFolder,
    artifact_name,
    folder_name,
    parts_of,
    place_of,
    region_in,
)
from adp_async.errors import ConfigurationError

PLACES = {
    "oci://b@n": ObjectFolder("b", "n"),
    "oci://b@n/": ObjectFolder("b", "n"),
    "oci://my.bucket-1@ten_ancy/a/b": ObjectFolder("my.bucket-1", "ten_ancy", "a/b"),
    "/Volumes/c/s/v": VolumeFolder("c", "s", "v"),
    "/Volumes/c/s/v/a/b/": VolumeFolder("c", "s", "v", "a/b"),
    "file:///srv/a%20b": LocalFolder("/srv/a%20b"),
    "file://localhost/tmp": LocalFolder("/tmp"),
    "file:/srv/a": LocalFolder("/srv/a"),
}
REFUSED = {
    "s3://bucket/x": "scheme 's3'",
    "mlflow-artifacts:/0/abc": "scheme 'mlflow-artifacts'",
    "wasbs://c@a/x?sig=s3cr3t": "scheme 'wasbs'",
    "/srv/somewhere": "no scheme",
    "": "no scheme",
    "/Volumes/catalog/schema": "names no volume",
    "oci://bucket/x": "names no bucket and namespace",
    "file://host/share": "not a folder of this machine",
    "file:relative": "not a folder of this machine",
    "file:///a?b": "not a folder of this machine",
    "oci://b@n/a/../b": "'.' or '..'",
    "/Volumes/c/../v/x": "'.' or '..'",
}


@pytest.mark.parametrize("uri", PLACES)
def test_a_place(uri: str) -> None:
    """A URI leads to a folder, a bucket or a volume; a slash at its end means nothing."""
    assert place_of(uri) == PLACES[uri]


@pytest.mark.parametrize("uri", REFUSED)
def test_no_place(uri: str) -> None:
    """Whatever else it is, the error says what is wrong and what to set, and shows no secret."""
    with pytest.raises(ConfigurationError, match="artifact_location") as caught:
        place_of(uri)

    assert REFUSED[uri] in str(caught.value)
    assert "s3cr3t" not in str(caught.value)


def test_the_name_of_an_object_has_a_limit() -> None:
    """Object Storage takes 1,024 bytes, the prefix included."""
    folder = ObjectFolder("b", "n", "p" * 1000)

    assert folder.object_name("x" * 23) == "p" * 1000 + "/" + "x" * 23
    with pytest.raises(ConfigurationError, match="1026 bytes"):
        folder.object_name("x" * 23 + "ü")


def test_the_path_in_a_volume_has_a_limit() -> None:
    """The platform takes 255 characters, and says nothing about others than ASCII."""
    folder = VolumeFolder("c", "s", "v", "p" * 200)

    assert folder.path() == "/" + "p" * 200
    assert len(folder.path("x" * 53)) == 255
    with pytest.raises(ConfigurationError, match="256 characters"):
        folder.path("x" * 54)
    with pytest.raises(ConfigurationError, match="ASCII"):
        folder.path("größe.txt")


@pytest.mark.parametrize("name", ["a", "a/b.txt", ".hidden", "...", "a b/ü", "C:x", "~"])
def test_a_name(name: str) -> None:
    """Names are paths below the artifact_uri."""
    assert artifact_name(name) == name
    assert artifact_name(name, "in") == f"in/{name}"
    assert folder_name(f"{name}/") == folder_name(name) == name


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "empty"),
        ("/etc/passwd", "begins with '/'"),
        ("a//b", "a part of it is empty"),
        ("../x", "'.' or '..'"),
        ("a/../../x", "'.' or '..'"),
        ("./x", "'.' or '..'"),
        ("..\\x", "backslash"),
        ("a\nb", "control character"),
        ("a\x7fb", "control character"),
        ("\ud800", "cannot be encoded"),
    ],
)
def test_no_name(name: str, why: str) -> None:
    """What leads out of the folder, or cannot be sent, is refused before anything happens."""
    with pytest.raises(ValueError, match=why):
        artifact_name(name)
    if name:
        with pytest.raises(ValueError, match=why):
            folder_name(name)


def test_a_name_is_text() -> None:
    """Nothing is converted."""
    with pytest.raises(TypeError, match="is a str, not int"):
        artifact_name(7)
    assert folder_name("") == ""


def test_parts() -> None:
    """They follow each other without a gap; a huge file has larger ones, not more."""
    parts = list(parts_of(10, part_bytes=4))

    assert [(part.number, part.offset, part.size) for part in parts] == [
        (1, 0, 4),
        (2, 4, 4),
        (3, 8, 2),
    ]
    assert sum(1 for _ in parts_of(50_001, part_bytes=1)) <= MOST_PARTS


def test_the_region_of_an_endpoint() -> None:
    """It stands in the host's name, unless that is another one."""
    assert region_in("https://aidp.eu-frankfurt-1.oci.oraclecloud.com/api") == "eu-frankfurt-1"
    assert region_in("https://aidp.us-gov-ashburn-1.oci.oraclegovcloud.com") == "us-gov-ashburn-1"
    assert region_in("https://aidp.example.com") is None
