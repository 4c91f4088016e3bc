"""What a stranger reads of the project: metadata, workflows and templates agree with the code."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import adp_async

ROOT = Path(__file__).parent.parent
HOME = "https://github.com/adp-async/adp_async"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOW: dict[str, Any] = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
JOBS: dict[str, Any] = WORKFLOW["jobs"]
SUPPORTED = re.findall(r"Python :: (3\.\d+)\n", "\n".join(PROJECT["classifiers"]) + "\n")


def steps(job: str) -> list[str]:
    return [step["run"] for step in JOBS[job]["steps"] if "run" in step]


def test_the_metadata_is_whole() -> None:
    """Who, where, under which licence, on which systems."""
    assert PROJECT["version"] == adp_async.__version__
    assert PROJECT["authors"] == [{"name": "adp_async developers"}]
    assert PROJECT["license"] == "Apache-2.0"
    assert set(PROJECT["urls"]) == {"Homepage", "Documentation", "Source", "Issues", "Changelog"}
    assert all(url.startswith(HOME) for url in PROJECT["urls"].values())
    systems = {each.rpartition(" :: ")[2] for each in PROJECT["classifiers"] if "Operating" in each}
    assert systems == {"Linux", "MacOS", "Windows"}
    assert PROJECT["requires-python"] == f">={SUPPORTED[0]}"


def test_every_python_that_is_supported_is_tested() -> None:
    """Each of the classifiers on Linux; the oldest and the newest on Windows."""
    linux, windows = (
        JOBS[job]["strategy"]["matrix"]["python-version"] for job in ("linux", "windows")
    )

    assert linux == SUPPORTED
    assert windows == [SUPPORTED[0], SUPPORTED[-1]]


def test_the_workflow_runs_what_is_there() -> None:
    """Test files and scripts that it names exist, and it checks what the gate checks."""
    (tests,) = [run for run in steps("windows") if "pytest -m" in run]
    files = re.findall(r"tests/\S+", tests)

    assert "tests/test_windows.py" in files
    assert [each for each in files if not (ROOT / each).exists()] == []
    for job in ("package", "gate"):
        (script,) = steps(job)
        assert (ROOT / script).stat().st_mode & 0o100
    gate = re.findall(r"^check (ruff|mypy) (.+)$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    for tool, arguments in gate:
        told = re.sub(r' --no-cache| --cache-dir "\S+"', "", arguments)
        assert f"python -m {tool} {told}" in steps("lint")


def test_a_job_may_not_run_for_ever_nor_write() -> None:
    """Each has an end; the token reads."""
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert all(job["timeout-minutes"] <= 120 for job in JOBS.values())


def test_hooks_need_no_network() -> None:
    """They are the environment's own tools; the same that the gate runs."""
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())

    assert [each["repo"] for each in config["repos"]] == ["local"]
    hooks = {hook["id"]: hook for hook in config["repos"][0]["hooks"]}
    assert {"ruff-check", "ruff-format", "mypy", "end-of-file"} <= set(hooks)
    assert {hook["language"] for hook in hooks.values()} == {"system", "pygrep"}


@pytest.mark.parametrize("path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=str)
def test_the_templates_are_forms(path: Path) -> None:
    """With what GitHub demands of one: a name, what it is for, and fields with ids."""
    form = yaml.safe_load(path.read_text())
    if path.name == "config.yml":
        assert {link["url"].split("/")[0] for link in form["contact_links"]} == {"https:"}
        return

    assert form["name"]
    assert form["description"]
    ids = [field["id"] for field in form["body"]]
    assert len(set(ids)) == len(ids) > 0
    assert all(field["attributes"]["label"] for field in form["body"])


def test_links_of_the_readme_work_on_pypi() -> None:
    """Whole URLs, or a heading of the README itself."""
    readme = (ROOT / "README.md").read_text()
    titles = re.findall(r"^#+ (.+)$", readme, re.MULTILINE)
    headings = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
    links = re.findall(r"\]\(([^)\s]+)\)", readme)

    assert links
    wrong = [each for each in links if not each.startswith("https://") and each[1:] not in headings]
    assert wrong == []


def test_addresses_in_help_and_metadata_are_sections() -> None:
    """`--help` and the metadata lead to headings that the README has."""
    from adp_async.cli.options import DOCUMENTATION

    readme = (ROOT / "README.md").read_text()
    for url in (DOCUMENTATION, PROJECT["urls"]["Changelog"]):
        assert url.startswith(f"{HOME}#")
        heading = url.partition("#")[2].replace("-", " ")
        assert re.search(rf"^## {heading}$", readme, re.IGNORECASE | re.MULTILINE), url
