"""The gateway's own table of operations against the published list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adp_async.local.routes import ROUTES, RouteTable, locate

OPERATIONS = json.loads((Path(__file__).parent / "samples" / "operations.json").read_text())


def test_every_operation_once() -> None:
    """The table has the 68 published operations and no other."""
    assert sorted(route.operation for route in ROUTES) == sorted(
        operation["operation"] for operation in OPERATIONS
    )


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation["operation"])
def test_published_path_finds_its_operation(operation: dict[str, Any]) -> None:
    """A request to the published path is that operation, in that scope."""
    path = operation["path"].format_map(
        {
            "aiDataPlatformId": "ocid1.x",
            "workspaceKey": "w",
            "deploymentId": "d%2F1",
            "logId": "l",
            "requestId": "r",
            "registeredModelKey": "a%20b",
        }
    )
    place = locate(path)
    assert place is not None

    route = RouteTable(ROUTES).find(operation["method"], place)

    assert route is not None
    assert route.operation == operation["operation"]
    assert (place.platform, place.workspace) == ("ocid1.x", "w" if route.in_workspace else None)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/20260430/aiDataPlatforms/p/workspaces/w/mlops/api/2.0/mlflow/runs/update"),
        ("POST", "/20260430/aiDataPlatforms/p/mlops/api/2.0/mlflow/runs/update"),
        ("POST", "/20260430/aiDataPlatforms/p/workspaces/w/mlops/api/2.0/mlflow/runs/update/"),
        ("POST", "/20260430/aiDataPlatforms/p/workspaces/w/mlops/api/2.0/mlflow/runs/nothing"),
        (
            "GET",
            "/20260430/aiDataPlatforms/p/mlops/api/2.0/model-deployments/a/b/logs/c",
        ),
    ],
)
def test_other_paths_are_no_operation(method: str, path: str) -> None:
    """Another method, scope, or one slash more is another address."""
    place = locate(path)
    assert place is not None

    assert RouteTable(ROUTES).find(method, place) is None


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/20250101/aiDataPlatforms/p/mlops/api/2.0/x",
        "/20260430/aiDataPlatforms/p/workspaces/w/x/mlops/api/2.0/mlflow/runs/update",
    ],
)
def test_paths_of_another_service(path: str) -> None:
    """What isn't of the service's form has no place in it."""
    assert locate(path) is None
