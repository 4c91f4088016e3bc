"""The tracking store: MLflow's REST store whose calls go through our session."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Any, Final

import mlflow
from mlflow.entities import RunInfo, RunStatus
from mlflow.environment_variables import MLFLOW_TRUNCATE_LONG_VALUES
from mlflow.exceptions import MlflowException
from mlflow.protos.service_pb2 import LogInputs, MlflowService, UpdateRun
from mlflow.protos.service_pb2 import RunInfo as ProtoRunInfo
from mlflow.store.tracking.rest_store import RestStore
from mlflow.utils.async_logging.run_operations import RunOperations
from mlflow.utils.rest_utils import MlflowHostCreds

from adp_async import BatchLimits
from adp_async.integrations.mlflow.connection import Connection, connection_of
from adp_async.integrations.mlflow.ending import OpenRuns, status_now
from adp_async.integrations.mlflow.failures import in_mlflows_words
from adp_async.integrations.mlflow.logged_models import LoggedModels
from adp_async.integrations.mlflow.wire import Methods, unpublished

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adp_async import Receipt

logger = logging.getLogger("adp_async")

_METHODS: Final = Methods(MlflowService)
_LIMITS: Final = BatchLimits()
_ENDS: Final = frozenset({"FINISHED", "FAILED", "KILLED"})
#: Methods of MLflow's store that reach for an http server themselves, in some of its versions.
_BY_HTTP: Final = {
    "log_spans": "mlflow/traces",
    "upsert_online_scoring_config": "mlflow/scorers",
    "get_online_scoring_configs": "mlflow/scorers",
}


class TrackingStore(LoggedModels, RestStore):  # type: ignore[misc]  # MLflow's own bases disagree
    """The tracking store of an ``aidp://`` URI.

    Metrics, params and tags of a run go to the batch logger and return at once; with ``?sync=1``
    they wait until the service has them.  Every other call goes out at once and sees what was
    logged before it.  What the service refuses is raised by the next call that changes its run, at
    the latest by the one that ends it.
    """

    #: MLflow's workspaces are not the platform's, which the URI names.
    supports_workspaces = False

    def __init__(self, store_uri: str, artifact_uri: str | None = None) -> None:
        self._uri = store_uri
        self._connection: Connection = connection_of(store_uri)
        self._runs = OpenRuns(self._end_run)
        self._connection.on_close(self._runs.session_closes)
        super().__init__(self._host_creds)
        # MLflow would print a link to its own page at the end of each run, to this "host".
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        _set_registry_uri(store_uri)

    def _host_creds(self) -> MlflowHostCreds:
        return MlflowHostCreds(self._uri)

    # ------------------------------------------------------------------ calls

    def _call_endpoint(
        self,
        api: Any,
        json_body: str | None = None,
        endpoint: str | None = None,
        retry_timeout_seconds: float | None = None,
        response_proto: Any = None,
        **_: Any,
    ) -> Any:
        self._check_workspace()
        path = _METHODS.path_of(api, endpoint)
        return self._connection.call(path, json_body, response_proto or api.Response())

    def _check_workspace(self) -> None:
        check = getattr(self, "_validate_workspace_support_if_specified", None)
        if check is not None:  # pragma: no branch - depends on MLflow's version
            check()

    # ------------------------------------------------------------------ what is logged

    def log_metric(self, run_id: str, metric: Any) -> None:
        try:
            receipt = self._connection.logger.log_metric(
                run_id, metric.key, metric.value, metric.step, metric.timestamp
            )
        except Exception:
            with in_mlflows_words():
                raise
        if self._connection.address.sync:
            self._connection.wait([receipt])

    def log_param(self, run_id: str, param: Any) -> None:
        self.log_batch(run_id, (), (param,), ())

    def set_tag(self, run_id: str, tag: Any) -> None:
        self.log_batch(run_id, (), (), (tag,))

    def log_batch(
        self, run_id: str, metrics: Sequence[Any], params: Sequence[Any], tags: Sequence[Any]
    ) -> None:
        receipts = self._log(run_id, metrics, params, tags)
        if self._connection.address.sync:
            self._connection.wait(receipts)

    def log_batch_async(
        self, run_id: str, metrics: Sequence[Any], params: Sequence[Any], tags: Sequence[Any]
    ) -> RunOperations:
        """As `log_batch`; the operations that MLflow's caller may wait for are our receipts."""
        return RunOperations([Pending(self._log(run_id, metrics, params, tags), self._connection)])

    def _log(
        self, run_id: str, metrics: Sequence[Any], params: Sequence[Any], tags: Sequence[Any]
    ) -> list[Receipt]:
        batch = self._connection.logger
        with in_mlflows_words():
            return [
                *self._log_metrics(run_id, metrics),
                *(
                    batch.log_param(run_id, p.key, _cut("param", p, _LIMITS.param_length))
                    for p in params
                ),
                *(batch.set_tag(run_id, t.key, _cut("tag", t, _LIMITS.tag_length)) for t in tags),
            ]

    def _log_metrics(self, run_id: str, metrics: Sequence[Any]) -> Sequence[Receipt]:
        batch = self._connection.logger
        # Most often they are of one step and time, with a key each.
        moments = {(metric.step, metric.timestamp) for metric in metrics}
        if len(moments) == 1:
            values = {metric.key: metric.value for metric in metrics}
            if len(values) == len(metrics):
                return batch.log_metrics(run_id, values, *moments.pop())
        return [batch.log_metric(run_id, m.key, m.value, m.step, m.timestamp) for m in metrics]

    def flush_async_logging(self) -> None:
        """Wait until the service has what was logged into all runs; raises what it refused."""
        self._connection.settle_and_tell()

    def shut_down_async_logging(self) -> None:
        """Nothing to shut down: the end of a run waits for its own records."""

    def end_async_logging(self) -> None:
        """Nothing to end; see `shut_down_async_logging`."""

    def log_inputs(
        self, run_id: str, datasets: Sequence[Any] | None = None, models: Any = None
    ) -> None:
        """Record the datasets a run reads.  Which models it reads the API has no place for."""
        if models:
            message = "the API has no place for the model inputs of run %s"
            logger.debug(message, run_id, extra={"run_id": run_id})
        if datasets:  # pragma: no branch - depends on MLflow's version
            from mlflow.utils.proto_json_utils import message_to_json

            body = LogInputs(run_id=run_id, datasets=[each.to_proto() for each in datasets])
            self._call_endpoint(LogInputs, message_to_json(body))

    # ------------------------------------------------------------------ how runs begin and end

    def create_run(self, *args: Any, **kwargs: Any) -> Any:
        run = super().create_run(*args, **kwargs)
        self._runs.began(run.info.run_id)
        return run

    def update_run_info(
        self, run_id: str, run_status: Any, end_time: int | None, run_name: str | None
    ) -> RunInfo:
        """Settle what was logged into the run, then update it.

        An end is given also when records were refused, which is raised afterwards, unless the
        run's body is being left by an exception of its own.  A run that another process shares
        keeps its status: that one ends it.
        """
        if self._connection.is_of_another_process(run_id):
            self._connection.settle(run_id)
            info: RunInfo = self.get_run(run_id).info
            return info
        status = None if run_status is None else RunStatus.to_string(run_status)
        if status not in _ENDS:
            self._connection.settle(run_id)
            info = self._update(run_id, status=status, end_time=end_time, run_name=run_name)
            if status == "RUNNING":
                self._runs.began(run_id)
            return info
        if self._runs.defer(run_id):
            return RunInfo.from_proto(ProtoRunInfo(run_id=run_id, status=run_status))
        return self._end_run(run_id, status_now(status), end_time=end_time, run_name=run_name)

    def _end_run(self, run_id: str, status: str, **changes: Any) -> RunInfo:
        failure: MlflowException | None = None
        try:
            self._connection.settle(run_id)
        except MlflowException as error:
            failure = error
        # The end of a run is bounded, as leaving our own runs is.
        timeout = self._connection.settings.close_timeout
        info = self._update(run_id, timeout=timeout, status=status, **changes)
        self._runs.ended(run_id)
        if failure is not None and sys.exc_info()[1] is None:
            raise failure
        if failure is not None:
            logger.warning("run %s: %s", run_id, failure, extra={"run_id": run_id})
        return info

    def _update(self, run_id: str, *, timeout: float | None = None, **changes: Any) -> RunInfo:
        given = {name: value for name, value in changes.items() if value is not None}
        fields = {"run_id": run_id, **given}
        path = _METHODS.path_of(UpdateRun)
        reply = self._connection.send(path, fields, UpdateRun.Response(), timeout=timeout)
        return RunInfo.from_proto(reply.run_info)


class Pending:
    """The receipts of one call, in the shape of the futures that MLflow's RunOperations hold."""

    def __init__(self, receipts: Sequence[Receipt], connection: Connection) -> None:
        self._receipts = receipts
        self._connection = connection

    def result(self, timeout: float | None = None) -> None:
        """Wait until the service has the records; raises MlflowException for what it refused."""
        self._connection.wait(self._receipts, timeout)

    def done(self) -> bool:
        """Whether all of them are settled."""
        return all(receipt.done for receipt in self._receipts)


def _cut(kind: str, record: Any, most: int) -> Any:
    """The value, cut as MLflow cuts it unless ``MLFLOW_TRUNCATE_LONG_VALUES`` is off."""
    value = record.value
    if isinstance(value, str) and len(value) > most and MLFLOW_TRUNCATE_LONG_VALUES.get():
        message = "the value of %s %r is cut from %d to the %d characters that are allowed"
        logger.warning(message, kind, record.key, len(value), most)
        return value[:most]
    return value


def _set_registry_uri(store_uri: str) -> None:
    """Make the registry URI explicit when it follows the tracking URI.

    Otherwise MLflow looks for it in a Spark session on every call, and an ``import pyspark`` that
    fails takes 85 % of a fluent call's time.
    """
    if mlflow.get_tracking_uri() == store_uri == mlflow.get_registry_uri():
        mlflow.set_registry_uri(store_uri)


def _refusing(path: str, name: str) -> Any:
    def refuse(self: Any, *_: Any, **__: Any) -> None:
        raise unpublished(path, name)

    refuse.__name__ = name
    return refuse


for _name, _path in _BY_HTTP.items():
    if hasattr(RestStore, _name):
        setattr(TrackingStore, _name, _refusing(_path, _name))
