"""The commands and their options; each calls the module of its name."""

from pathlib import Path
from typing import Annotated

import typer

import adp_async
from adp_async.cli.mistakes import check_exclusive, errors_in_one_line
from adp_async.cli.options import (
    AuthMode,
    CommandLine,
    ConfigFile,
    Directory,
    Json,
    Limit,
    ListeningPort,
    Profile,
    RunId,
    examples,
    with_settings,
)
from adp_async.errors import AdpError

app = typer.Typer(
    help="Experiment tracking on Oracle AI Data Platform.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(
        "adp-async demo                        # try it, without an account",
        "adp-async doctor                      # are settings, key and network right?",
        "adp-async --install-completion        # complete commands in this shell",
    ),
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


#: Of `serve`: not in IANA's list, and below the ports that systems give to clients.
DEFAULT_PORT = 8237


@app.command(
    "demo",
    epilog=examples("adp-async demo", "adp-async demo --points 100000 --keep"),
)
@errors_in_one_line
def demo_command(
    points: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Train until at least this many metric points are logged."
        ),
    ] = 20_000,
    seconds: Annotated[
        float | None,
        typer.Option(min=0.0, metavar="SECONDS", help="Train for this long instead."),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the platform running afterwards, until Ctrl-C.")
    ] = False,
    directory: Directory = None,
    port: ListeningPort = 0,
) -> None:
    """Train a classifier on a local platform.

    It reads the run back and compares every point that arrived.

    Needs no account: signed requests go through a local gateway to a real MLflow.
    """
    from adp_async.cli.demo import Bounds, run_demo

    bounds = Bounds(points=points, seconds=seconds)
    raise typer.Exit(run_demo(bounds, keep=keep, directory=directory, port=port))


@app.command(
    "serve",
    epilog=examples(
        "adp-async serve",
        "adp-async serve --directory platform --env env # then, elsewhere: . ./env",
        "adp-async serve --no-mlflow --quota 5          # answers 429 beyond it",
    ),
)
@errors_in_one_line
def serve_command(
    port: ListeningPort = DEFAULT_PORT,
    directory: Directory = None,
    quota: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            metavar="RATE",
            help="Requests a second; more are answered with 429 (too many requests).",
        ),
    ] = None,
    mlflow: Annotated[
        bool,
        typer.Option(
            help="Start a real MLflow, or a stand-in in memory that starts at once and knows only "
            "runs."
        ),
    ] = True,
    tls: Annotated[
        bool,
        typer.Option(
            "--tls", help="Speak https, with a certificate authority made for this platform."
        ),
    ] = False,
    env: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False,
            metavar="FILE",
            help="Write the settings, as exports for a shell, into this file; it is removed when "
            "the platform stops.",
        ),
    ] = None,
) -> None:
    """Run a whole platform on this machine, until Ctrl-C."""
    from adp_async.cli.serve import serve

    serve(port=port, directory=directory, quota=quota, mlflow=mlflow, tls=tls, env=env)


@app.command(
    "doctor",
    epilog=examples(
        "adp-async doctor",
        "adp-async doctor --profile TRAINING --region us-ashburn-1",
        "adp-async doctor --json",
    ),
)
@with_settings
@errors_in_one_line
def doctor_command(given: CommandLine, as_json: Json = False) -> None:
    """Check settings, credentials, network and clock.

    All that can be examined is examined at once, and each finding is shown with what to do about
    it. No secret is shown, and nothing is changed. The exit code is 0 if a session will work,
    warnings or not, and 1 if anything is wrong.

    With --json it is an object with ok and findings, a list of objects with step, state (ok,
    warning, wrong or skipped), message and fix.
    """
    from adp_async.cli.doctor import run_doctor

    raise typer.Exit(run_doctor(given, as_json=as_json))


@app.command(
    "experiments",
    epilog=examples("adp-async experiments", "adp-async experiments --limit 100 --json"),
)
@with_settings
@errors_in_one_line
def experiments_command(given: CommandLine, limit: Limit = 20, as_json: Json = False) -> None:
    """List experiments, those that changed last first.

    With --json it is a list of objects with experiment_id, name, lifecycle_stage,
    artifact_location, created, changed and tags; times are ISO 8601.
    """
    from adp_async.cli.reading import list_experiments

    list_experiments(given, limit=limit, as_json=as_json)


@app.command(
    "runs",
    epilog=examples(
        "adp-async runs",
        "adp-async runs --experiment digits --limit 5",
        "adp-async runs --json | jq -r '.[].run_id'",
    ),
)
@with_settings
@errors_in_one_line
def runs_command(
    given: CommandLine,
    experiment: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Only runs of this experiment; without it of all."),
    ] = None,
    limit: Limit = 20,
    as_json: Json = False,
) -> None:
    """List runs, the latest first.

    With --json it is a list of the objects that `adp-async show RUN --json` prints.
    """
    from adp_async.cli.reading import list_runs

    list_runs(given, experiment, limit=limit, as_json=as_json)


@app.command(
    "show",
    epilog=examples(
        "adp-async show RUN",
        "adp-async show RUN --json",
    ),
)
@with_settings
@errors_in_one_line
def show_command(given: CommandLine, run_id: RunId, as_json: Json = False) -> None:
    """Show a run: status, times, params, metrics, tags.

    Of each metric it is the last value. With --json it is an object with run_id, name,
    experiment_id, experiment, status, lifecycle_stage, started, ended, url, artifact_uri, params,
    metrics (each with value, step and time) and tags; times are ISO 8601, and values that are not
    finite the texts "NaN", "Infinity" and "-Infinity".
    """
    from adp_async.cli.reading import show

    show(given, run_id, as_json=as_json)


@app.command(
    "plot",
    epilog=examples(
        "adp-async plot RUN",
        "adp-async plot RUN loss val/loss",
        "adp-async plot RUN loss --svg loss.svg",
    ),
)
@with_settings
@errors_in_one_line
def plot_command(
    given: CommandLine,
    run_id: RunId,
    keys: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY", help="The metrics to draw in one chart; without it each in its own."
        ),
    ] = None,
    svg: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False, metavar="FILE", help="Write one chart into this new file instead."
        ),
    ] = None,
) -> None:
    """Draw metrics of a run in the terminal.

    All points that the service has, by step, or by time if they were logged without steps. Where
    there are no colours, each metric has a chart of its own.
    """
    from adp_async.cli.reading import plot

    plot(given, run_id, keys or [], svg=svg)


@app.command(
    "sync",
    epilog=examples(
        "adp-async sync --list",
        "adp-async sync",
        "adp-async sync --export - | head",
        "adp-async sync --to-recorded-endpoint spools/",
    ),
)
@errors_in_one_line
def sync_command(
    path: Annotated[
        Path | None,
        typer.Argument(
            metavar="PATH", help="A spool, or a folder of them; without it the user's own."
        ),
    ] = None,
    show: Annotated[
        bool, typer.Option("--list", help="Only list the spools and what they hold.")
    ] = False,
    export: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Only write the records as JSON lines into this new file; - is standard output.",
        ),
    ] = None,
    again: Annotated[
        bool,
        typer.Option(
            "--again", help="Deliver, and send the records that the service refused once more."
        ),
    ] = False,
    to_recorded_endpoint: Annotated[
        bool,
        typer.Option(
            "--to-recorded-endpoint",
            help="Deliver PATH to the endpoint, platform and workspace recorded in it.",
        ),
    ] = False,
    discard: Annotated[
        bool, typer.Option("--discard", help="Only delete the spools, after confirmation.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Delete without asking for confirmation.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --list: print JSON for programs.")
    ] = False,
    timeout: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            metavar="SECONDS",
            help="Stop after this many seconds; the rest stays on disk.",
        ),
    ] = None,
    auth: AuthMode = None,
    config_file: ConfigFile = None,
    profile: Profile = None,
) -> None:
    """Deliver the records that dead processes left on disk.

    Without PATH these are the spools of this user's sessions, and each is delivered to the
    service that it came from. A PATH is delivered only if it came from the endpoint, platform and
    workspace of the settings. Records that the service refused are kept until they are sent
    --again or discarded. A spool that a running process uses is left alone. The exit code is 1 if
    anything remains.

    --list --json prints a list of objects with path, endpoint, platform_id, workspace, waiting
    (records), runs (each with run_id, metrics, params, tags and oldest), starts (runs that were
    not ended, each with key, run_id, which is null until the run is created, run_name, experiment,
    experiment_id and status), rejected (each with run_id, kind, key and reason), last_error and
    trouble.
    """
    from adp_async.cli import spools, sync

    check_exclusive(list=show, export=export is not None, discard=discard, again=again)
    if as_json and not show:
        raise AdpError("--json goes with --list")
    if show:
        raise typer.Exit(spools.list_spools(path, as_json=as_json))
    if export is not None:
        raise typer.Exit(spools.export(path, export))
    if discard:
        raise typer.Exit(spools.discard(path, is_sure=yes))
    given = CommandLine(auth=auth, config_file=config_file, profile=profile)
    wish = sync.Wish(path, again=again, anywhere=to_recorded_endpoint, timeout=timeout)
    raise typer.Exit(sync.sync(wish, given))


@app.command(
    "agent",
    epilog=examples(
        "adp-async agent                            # for this user, on this machine",
        "adp-async agent --listen 0.0.0.0           # for other machines, by TLS",
        "adp-async agent --status",
    ),
)
@errors_in_one_line
def agent_command(
    socket: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Listen on this Unix socket, instead of one in FOLDER."),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(metavar="HOST", help="Listen on this address, with TLS; also HOST:PORT."),
    ] = None,
    advertise: Annotated[
        str | None,
        typer.Option(metavar="HOST", help="The address that others reach it by; also HOST:PORT."),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            file_okay=False,
            help="Keep its handle, certificate and spool here; without it beside the socket, or "
            "in the user's state folder.",
        ),
    ] = None,
    idle_timeout: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            metavar="SECONDS",
            help="End when no client has sent anything for this long: more than one may compute.",
        ),
    ] = None,
    status: Annotated[
        bool, typer.Option("--status", help="Show what a running agent has taken.")
    ] = False,
) -> None:
    """Collect for processes without credentials.

    It journals what they log and sends it in full requests, until a signal ends it. It prints the
    line that leads their sessions to it. Started again in the same folder, it goes on where the
    last one ended, however that was.
    """
    from adp_async.cli.agent import Options, run_agent, show_status

    check_exclusive(socket=socket is not None, listen=listen is not None)
    options = Options(socket, listen, advertise, folder, idle_timeout)
    raise typer.Exit(show_status(options) if status else run_agent(options))
