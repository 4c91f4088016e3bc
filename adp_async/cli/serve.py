"""``adp-async serve``: runs the local platform until Ctrl-C."""

from __future__ import annotations

import shlex
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from adp_async.cli.background import running_platform
from adp_async.errors import AdpError
from adp_async.local import Quota

if TYPE_CHECKING:
    from pathlib import Path

    from adp_async.local import LocalPlatform

__all__ = ["environment", "python_lines", "serve", "wait_for_the_end"]


def serve(
    *, port: int = 0, directory: Path | None = None, quota: float | None = None, mlflow: bool = True
) -> None:
    """Run a platform, show how to reach it, and stop at Ctrl-C or SIGTERM."""
    console = Console(highlight=False)
    with running_platform(console, directory=directory, port=port, mlflow=mlflow) as platform:
        if quota is not None:
            platform.gateway.quota = Quota(quota)
        show(console, platform)
        wait_for_the_end(console, platform)


def wait_for_the_end(console: Console, platform: LocalPlatform) -> None:
    """Return at Ctrl-C or SIGTERM; raise when MLflow exits unexpectedly."""
    console.print("\nPress Ctrl-C to stop.")
    try:
        while platform.mlflow_server is None or platform.mlflow_server.is_running:
            time.sleep(0.5)
    except KeyboardInterrupt:
        console.print("stopping")
        return
    message = "the MLflow process exited unexpectedly"
    raise AdpError(message)


def show(console: Console, platform: LocalPlatform) -> None:
    """Everything that is needed to use *platform*."""
    for name, value in _facts(platform).items():
        console.print(Text.assemble((f"{name:<16}", "bold"), value), soft_wrap=True)
    console.print("\n[bold]in Python[/]\n")
    _print_as_it_is(console, python_lines(platform))
    console.print("\n[bold]or in a shell, for every program started from it[/]\n")
    assignments = [f"{name}={shlex.quote(value)}" for name, value in environment(platform).items()]
    _print_as_it_is(console, [f"export {assignment}" for assignment in assignments])


def _facts(platform: LocalPlatform) -> dict[str, str]:
    return {
        "endpoint": platform.endpoint,
        "platform": platform.platform_id,
        "workspace": platform.workspace,
        "config file": f"{platform.config_file}, profile {platform.profile}",
        "MLflow's page": platform.mlflow_url or "not available: started without MLflow",
    }


def python_lines(platform: LocalPlatform) -> list[str]:
    """Three lines that log a metric, wherever they are pasted."""
    arguments = [
        f"platform_id={platform.platform_id!r}",
        f"workspace={platform.workspace!r}",
        f"endpoint={platform.endpoint!r}",
        f"auth=adp_async.ApiKey({str(platform.config_file)!r})",
    ]
    if platform.mlflow_url:
        arguments.append(f"page_url={_page_url(platform)!r}")
    return [
        "import adp_async",
        f"platform = dict({', '.join(arguments)})",
        "with adp_async.blocking.start_run('first', **platform) as run: run.log_metric('loss', .5)",
    ]


def environment(platform: LocalPlatform) -> dict[str, str]:
    """The variables with which a session without arguments uses *platform*."""
    page = {"ADP_ASYNC_PAGE_URL": _page_url(platform)} if platform.mlflow_url else {}
    return {
        "AIDP_ENDPOINT": platform.endpoint,
        "AIDP_INSTANCE_ID": platform.platform_id,
        "AIDP_WORKSPACE": platform.workspace,
        "OCI_CONFIG_FILE": str(platform.config_file),
        "OCI_CLI_PROFILE": platform.profile,
        **page,
    }


def _page_url(platform: LocalPlatform) -> str:
    """Where MLflow shows a run."""
    return f"{platform.mlflow_url}/#/experiments/{{experiment_id}}/runs/{{run_id}}"


def _print_as_it_is(console: Console, lines: list[str]) -> None:
    # Lines to copy: without wrapping and markup.
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)
