"""``adp-async serve``: runs the local platform until Ctrl-C."""

from __future__ import annotations

import shlex
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.text import Text

from adp_async.cli.background import running_platform
from adp_async.errors import AdpError
from adp_async.local import Quota
from adp_async.local.identity import write_private

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from adp_async.local import LocalPlatform

__all__ = ["environment", "python_lines", "serve", "wait_for_the_end"]

_FIRST_LINE: Final = "# Written by adp-async serve: the platform that runs on this machine."


def serve(
    *,
    port: int = 0,
    directory: Path | None = None,
    quota: float | None = None,
    mlflow: bool = True,
    tls: bool = False,
    env: Path | None = None,
) -> None:
    """Run a platform, show how to reach it, and stop at Ctrl-C or SIGTERM.

    The file *env* is there when the platform is ready, and while it runs.
    """
    console = Console(highlight=False)
    _check_env(env)
    with running_platform(
        console, directory=directory, port=port, mlflow=mlflow, tls=tls
    ) as platform:
        if quota is not None:
            platform.gateway.quota = Quota(quota)
        with _written(env, platform):
            show(console, platform)
            if env is not None:
                console.print("\n[bold]which are also in a file[/]\n")
                _print_as_it_is(console, [f". {shlex.quote(str(env.absolute()))}"])
            wait_for_the_end(console, platform)


def _check_env(env: Path | None) -> None:
    """Raise if *env* cannot be written, or would overwrite what is not ours."""
    if env is None:
        return
    if not env.parent.is_dir():
        message = f"--env: {env.parent} is not a folder"
        raise AdpError(message)
    if env.exists() and not env.read_bytes().startswith(_FIRST_LINE.encode()):
        message = f"--env: {env} exists, and was not written by `adp-async serve`"
        raise AdpError(message)


@contextmanager
def _written(env: Path | None, platform: LocalPlatform) -> Iterator[None]:
    if env is None:
        yield
        return
    write_private(env, "\n".join([_FIRST_LINE, *_exports(platform), ""]).encode())
    try:
        yield
    finally:
        env.unlink(missing_ok=True)


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
    _print_as_it_is(console, _exports(platform))


def _facts(platform: LocalPlatform) -> dict[str, str]:
    facts = {
        "endpoint": platform.endpoint,
        "platform": platform.platform_id,
        "workspace": platform.workspace,
        "config file": f"{platform.config_file}, profile {platform.profile}",
        "MLflow's page": platform.mlflow_url or "not available: started without MLflow",
    }
    if platform.ca_bundle is not None:
        facts["CA certificate"] = str(platform.ca_bundle)
    return facts


def python_lines(platform: LocalPlatform) -> list[str]:
    """Lines that log a metric, wherever they are pasted, and how a notebook begins."""
    given = {
        "platform_id": repr(platform.platform_id),
        "workspace": repr(platform.workspace),
        "endpoint": repr(platform.endpoint),
        "auth": f"adp_async.ApiKey({str(platform.config_file)!r})",
    }
    if platform.mlflow_url:
        given["page_url"] = repr(_page_url(platform))
    if platform.ca_bundle is not None:
        given["ca_bundle"] = repr(str(platform.ca_bundle))
    arguments = ", ".join(f"{name}={value}" for name, value in given.items())
    return [
        "import adp_async",
        f"platform = dict({arguments})",
        "with adp_async.blocking.start_run('first', **platform) as run: run.log_metric('loss', .5)",
        "# in a notebook: session = await adp_async.Session(**platform).open()",
    ]


def environment(platform: LocalPlatform) -> dict[str, str]:
    """The variables with which a session without arguments uses *platform*.

    With TLS also those with which Oracle's own command line does: it takes https only.
    """
    variables = {
        "AIDP_ENDPOINT": platform.endpoint,
        "AIDP_INSTANCE_ID": platform.platform_id,
        "AIDP_WORKSPACE": platform.workspace,
        "OCI_CONFIG_FILE": str(platform.config_file),
        "OCI_CLI_PROFILE": platform.profile,
    }
    if platform.mlflow_url:
        variables["ADP_ASYNC_PAGE_URL"] = _page_url(platform)
    if platform.ca_bundle is not None:
        variables |= {
            "ADP_ASYNC_CA_BUNDLE": str(platform.ca_bundle),
            "REQUESTS_CA_BUNDLE": str(platform.trusted_certificates),
            "OCI_CLI_AUTH": "api_key",
            "OCI_CLI_CONFIG_FILE": str(platform.config_file),
        }
    return variables


def _exports(platform: LocalPlatform) -> list[str]:
    """The lines that set them: of a shell, on Windows of PowerShell."""
    return [_assignment(name, text) for name, text in environment(platform).items()]


def _assignment(name: str, text: str) -> str:
    if sys.platform == "win32":
        quoted = text.replace("'", "''")
        return f"$env:{name} = '{quoted}'"
    return f"export {name}={shlex.quote(text)}"


def _page_url(platform: LocalPlatform) -> str:
    """Where MLflow shows a run."""
    return f"{platform.mlflow_url}/#/experiments/{{experiment_id}}/runs/{{run_id}}"


def _print_as_it_is(console: Console, lines: list[str]) -> None:
    # Lines to copy: without wrapping and markup.
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)
