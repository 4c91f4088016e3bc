"""The MLflow server's own process: run as a script by `mlflow_server`, never imported.

It serves MLflow's own application on the listening socket it inherits.  Two things are added:
it ends when its parent does, even if the parent is killed, and it has one private route, the
permanent deletion that MLflow offers only as a command (``mlflow gc``).

It prints each phase of its start in one line on standard output, and "ready" before it serves.
"""

from __future__ import annotations

import importlib
import os
import select
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: Under /api/, so that MLflow's check of cross-origin requests holds here too.
PERMANENT_DELETE_PATH = "/api/2.0/adp-local/permanent-delete"


def main(file_descriptor: int) -> None:
    end_with_parent()
    say("importing MLflow")
    import uvicorn

    flask_app = _mlflow("server").app
    handlers = _mlflow("server.handlers")
    app = _mlflow("server.fastapi_app").app

    say("preparing the database")
    # MLflow would do this at the first request, which would then take seconds.
    handlers._get_tracking_store()
    handlers._get_model_registry_store()
    flask_app.add_url_rule(
        PERMANENT_DELETE_PATH,
        view_func=handlers.catch_mlflow_exception(permanent_delete),
        methods=["POST"],
    )
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=2, ws="none"
    )
    say("ready")
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=file_descriptor)])


def say(phase: str) -> None:
    print(phase, flush=True)


def end_with_parent() -> None:
    threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True).start()


def _watch_parent(parent: int) -> None:
    # A fork of the parent may keep the pipe open, so the parent's number is looked at as well.
    while os.getppid() == parent and not select.select([sys.stdin], [], [], 1.0)[0]:
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(5.0)
    os._exit(1)


def permanent_delete() -> Any:
    """Remove one run, or one experiment that has no runs, and its artifacts."""
    from flask import request

    body = request.get_json()
    store = _mlflow("server.handlers")._get_tracking_store()
    if "run_id" in body:
        return _delete_run(store, body["run_id"])
    return _delete_experiment(store, body["experiment_id"])


def _delete_run(store: Any, run_id: str) -> Any:
    if not hasattr(store, "_hard_delete_run"):
        return _refusal(501, "NotImplemented", "this MLflow cannot delete a run permanently")
    run = store.get_run(run_id)
    store.delete_run(run_id)
    _delete_artifacts(run.info.artifact_uri)
    store._hard_delete_run(run_id)
    return _reply(200, {})


def _delete_experiment(store: Any, experiment_id: str) -> Any:
    if not hasattr(store, "_hard_delete_experiment"):
        return _refusal(501, "NotImplemented", "this MLflow cannot delete it permanently")
    experiment = store.get_experiment(experiment_id)
    if store.search_runs([experiment_id], None, _mlflow("entities").ViewType.ALL, max_results=1):
        return _refusal(409, "Conflict", f"Experiment {experiment_id} still has runs.")
    if experiment.lifecycle_stage != "deleted":
        store.delete_experiment(experiment_id)
    _delete_artifacts(experiment.artifact_location)
    store._hard_delete_experiment(experiment_id)
    return _reply(200, {})


def _delete_artifacts(uri: str) -> None:
    registry = _mlflow("store.artifact.artifact_repository_registry")
    registry.get_artifact_repository(uri).delete_artifacts()


def _mlflow(name: str) -> Any:
    # Imported late, for the phases of the start, and by name: its annotations are not for us.
    return importlib.import_module(f"mlflow.{name}")


def _refusal(status: int, code: str, message: str) -> Any:
    return _reply(status, {"error_code": code, "message": message})


def _reply(status: int, body: Mapping[str, str]) -> Any:
    from flask import jsonify

    reply: Callable[..., Any] = jsonify
    return reply(body), status


if __name__ == "__main__":
    main(int(sys.argv[1]))
