"""What people see of listings, rows and loggers in the states that are rarer than others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from adp_async.cli import service_checks
from adp_async.cli.options import CommandLine
from adp_async.entities._entity import _cells
from adp_async.errors import ServiceFault, Throttled
from adp_async.settings import Settings
from adp_async.testing import PLATFORM_ID, FakeBlockingSession, FakeSession

if TYPE_CHECKING:
    from collections.abc import Callable


def test_a_listing_of_the_blocking_face_shows_itself() -> None:
    """It says how it is read, and asks the service nothing for that."""
    with FakeBlockingSession() as session:
        listing = session.runs.search(experiment_ids=["0"])
        assert repr(listing) == "<Listing of list_experiment_runs | for item in it>"
        assert "listing.to_list()" in listing._repr_html_()
        assert session.session.requests == []


def test_a_cell_of_many_values() -> None:
    """What has keys and values is a column each; anything else stays in one."""
    assert _cells("aliases", ("a", "b")) == {"aliases": ("a", "b")}


async def test_a_logger_that_is_closed_says_so() -> None:
    """With the reason, and what it was held back by before."""
    async with FakeSession() as session:
        logger = session.logger
    assert "closed: it is closed" in repr(logger)


def failing(error: Exception) -> Callable[..., Any]:
    async def search(*_: object) -> None:
        raise error

    return search


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (Throttled("slowly", status=429), "warning"),
        (ServiceFault("not supported", status=501, retriable=False), "warning"),
        (ServiceFault("broken", status=500), "wrong"),
    ],
)
async def test_a_service_that_is_there_and_does_not_answer_as_it_should(
    error: Exception, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`doctor` tells what passes, and what is not supported, from what is broken."""
    monkeypatch.setattr(service_checks, "_search", failing(error))
    settings = Settings.resolve({"platform_id": PLATFORM_ID, "workspace": "w"}, {})
    found = await service_checks.service(CommandLine(), settings)
    assert found.state == state
