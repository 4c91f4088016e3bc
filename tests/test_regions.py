"""Where regions are: as OCI's SDK has them, without importing it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from oci.regions_definitions import REALMS, REGION_REALMS, REGIONS_SHORT_NAMES

from adp_async._regions import Region, _published, find_region

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("key", REGIONS_SHORT_NAMES)
def test_every_region_of_ocis_list(key: str) -> None:
    """By its key and by its name, in any case of letters."""
    name = REGIONS_SHORT_NAMES[key]
    expected = Region(name, REALMS[REGION_REALMS[name]])

    assert find_region(key) == find_region(name) == find_region(key.upper()) == expected


def test_no_region_is_known_here_that_oci_has_elsewhere() -> None:
    """The list is a copy of a part of theirs, and says nothing else."""
    for text, region in _published().items():
        assert REGIONS_SHORT_NAMES.get(text, text) == region.name
        assert REALMS[REGION_REALMS[region.name]] == region.domain


SCRIPT = """
import json, sys
from adp_async._regions import find_region
before = "oci" in sys.modules
found = find_region(sys.argv[1])
print(json.dumps([found.name, found.domain, found.is_known, before, "oci" in sys.modules]))
"""


def asked(text: str, home: Path, **environ: str) -> list[Any]:
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT, text],
        capture_output=True,
        check=True,
        env={"HOME": str(home), "PYTHONPATH": ":".join(sys.path), **environ},
        timeout=120,
    )
    return list(json.loads(found.stdout))


def test_known_ones_need_nothing_of_oci(tmp_path: Path) -> None:
    """Also those of the realms of governments."""
    expected = ["us-gov-ashburn-1", "oraclegovcloud.com", True, False, False]

    assert asked("ric", tmp_path) == expected


def test_regions_of_a_file(tmp_path: Path) -> None:
    """``~/.oci/regions-config.json`` may add regions, which ``oci`` reads."""
    (tmp_path / ".oci").mkdir()
    (tmp_path / ".oci" / "regions-config.json").write_text(json.dumps([OWN]))

    assert asked("own", tmp_path) == ["us-own-1", "own.example", True, False, True]


OWN = {
    "realmKey": "oc99",
    "realmDomainComponent": "own.example",
    "regionKey": "own",
    "regionIdentifier": "us-own-1",
}


def test_regions_of_the_environment(tmp_path: Path) -> None:
    """``OCI_REGION_METADATA`` describes one, ``OCI_DEFAULT_REALM`` the realm of all others."""
    environ = {"OCI_REGION_METADATA": json.dumps(OWN)}
    assert asked("us-own-1", tmp_path, **environ)[:3] == ["us-own-1", "own.example", True]

    environ = {"OCI_DEFAULT_REALM": "other.example"}
    assert asked("us-own-1", tmp_path, **environ)[:3] == ["us-own-1", "other.example", False]
