"""The commands and their options; each calls the module of its name."""

from pathlib import Path
from typing import Annotated

import typer

import adp_async
from adp_async.cli.mistakes import check_exclusive, errors_in_one_line

app = typer.Typer(
    help="Experiment tracking on Oracle AI Data Platform.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"adp-async {adp_async.__version__}")
        raise typer.Exit


@app.callback()
def adp_async_command(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Experiment tracking on Oracle AI Data Platform."""


Directory = Annotated[
    Path | None,
    typer.Option(
        file_okay=False,
        help="The folder for database, key and artifacts (default: temporary).",
    ),
]
Port = Annotated[
    int, typer.Option(min=0, max=65535, help="The port to listen on; 0 picks a free one.")
]


#: Of `serve`: not in IANA's list, and below the ports that systems give to clients.
DEFAULT_PORT = 8237


@app.command("demo")
@errors_in_one_line
def demo_command(
    points: Annotated[
        int, typer.Option(min=1, help="Train until at least this many metric points are logged.")
    ] = 20_000,
    seconds: Annotated[
        float | None, typer.Option(min=0.0, help="Train for this long instead.")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the platform running afterwards, until Ctrl-C.")
    ] = False,
    directory: Directory = None,
    port: Port = 0,
) -> None:
    """Train a classifier on a local platform and check every point that arrived.

    Needs no account: signed requests go through a local gateway to a real MLflow.
    """
    from adp_async.cli.demo import Bounds, run_demo

    bounds = Bounds(points=points, seconds=seconds)
    raise typer.Exit(run_demo(bounds, keep=keep, directory=directory, port=port))


@app.command("serve")
@errors_in_one_line
def serve_command(
    port: Port = DEFAULT_PORT,
    directory: Directory = None,
    quota: Annotated[
        float | None,
        typer.Option(min=0.001, help="Requests a second; more are answered with 429."),
    ] = None,
    mlflow: Annotated[
        bool,
        typer.Option(
            help="A real MLflow, or an in-memory stand-in: starts at once, knows only runs."
        ),
    ] = True,
    tls: Annotated[
        bool,
        typer.Option(
            "--tls", help="Speak https, with a certificate authority of the platform's own."
        ),
    ] = False,
    env: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False,
            help="Write the exports for a shell into this file while the platform runs.",
        ),
    ] = None,
) -> None:
    """Run a whole platform on this machine, until Ctrl-C."""
    from adp_async.cli.serve import serve

    serve(port=port, directory=directory, quota=quota, mlflow=mlflow, tls=tls, env=env)


@app.command("doctor")
@errors_in_one_line
def doctor_command(
    platform_id: Annotated[
        str | None, typer.Option(help="Overrides AIDP_INSTANCE_ID: the platform's OCID.")
    ] = None,
    workspace: Annotated[
        str | None, typer.Option(help="Overrides AIDP_WORKSPACE: the workspace's key.")
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="Overrides AIDP_ENDPOINT: the base URL.")
    ] = None,
    region: Annotated[
        str | None, typer.Option(help="Overrides OCI_REGION, such as us-ashburn-1.")
    ] = None,
    auth: Annotated[
        str | None, typer.Option(help="Overrides OCI_CLI_AUTH, such as api_key.")
    ] = None,
    config_file: Annotated[
        Path | None, typer.Option(help="Overrides OCI_CONFIG_FILE: OCI's config file.")
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="Overrides OCI_CLI_PROFILE: the profile in it.")
    ] = None,
) -> None:
    """Check settings, credentials, network and clock, one after the other."""
    from adp_async.cli.doctor import CommandLine, run_doctor

    given = CommandLine(
        platform_id=platform_id,
        workspace=workspace,
        endpoint=endpoint,
        region=region,
        auth=auth,
        config_file=config_file,
        profile=profile,
    )
    raise typer.Exit(run_doctor(given))


@app.command("sync")
@errors_in_one_line
def sync_command(
    path: Annotated[
        Path | None,
        typer.Argument(help="A spool, or a folder of them (default: the usual one)."),
    ] = None,
    show: Annotated[
        bool, typer.Option("--list", help="List the spools and rejected records.")
    ] = False,
    export: Annotated[
        Path | None,
        typer.Option(help="Only write the records as JSON lines into this new file; - is stdout."),
    ] = None,
    again: Annotated[
        bool,
        typer.Option("--again", help="Also send refused records once more."),
    ] = False,
    to_recorded_endpoint: Annotated[
        bool,
        typer.Option(
            "--to-recorded-endpoint",
            help="Deliver PATH to the endpoint, platform and workspace that it names.",
        ),
    ] = False,
    discard: Annotated[
        bool, typer.Option("--discard", help="Delete the spools, after confirmation.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    timeout: Annotated[
        float | None,
        typer.Option(min=0.0, help="Stop after this many seconds; the rest stays on disk."),
    ] = None,
    auth: Annotated[
        str | None, typer.Option(help="Overrides OCI_CLI_AUTH, such as api_key.")
    ] = None,
    config_file: Annotated[
        Path | None, typer.Option(help="Overrides OCI_CONFIG_FILE: OCI's config file.")
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="Overrides OCI_CLI_PROFILE: the profile in it.")
    ] = None,
) -> None:
    """Deliver the records that dead processes left on disk.

    Spools of the usual folder are delivered to where they came from. A PATH is delivered only if
    it came from the endpoint, platform and workspace of the settings. Records that the service
    refused are kept until they are sent --again or discarded.
    """
    from adp_async.cli import spools, sync
    from adp_async.cli.doctor import CommandLine

    check_exclusive(list=show, export=export is not None, discard=discard, again=again)
    if show:
        raise typer.Exit(spools.list_spools(path))
    if export is not None:
        raise typer.Exit(spools.export(path, export))
    if discard:
        raise typer.Exit(spools.discard(path, is_sure=yes))
    given = CommandLine(auth=auth, config_file=config_file, profile=profile)
    wish = sync.Wish(path, again=again, anywhere=to_recorded_endpoint, timeout=timeout)
    raise typer.Exit(sync.sync(wish, given))
