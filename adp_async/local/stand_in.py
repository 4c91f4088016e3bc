"""A stand-in for MLflow, in memory, for tests of faults and time only.

It takes log-batch under MLflow's rules and remembers exactly what arrived, in the order it
arrived, duplicates included.  Runs and experiments have just enough to log into; all else is 501.
Searches know just the filters by which our own client finds a run it has created.
It is not a tracking server: the service's behaviour is tested against the real MLflow.
"""

from __future__ import annotations

import posixpath
import re
import time
import uuid
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import msgspec
from attrs import define, field

from adp_async.local.answers import EMPTY, Answer, refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adp_async.local.answers import Received
    from adp_async.local.routes import Route

__all__ = ["ReceivedMetric", "ReceivedRun", "StandIn"]

_METRICS = 1000
_PARAMS = 100
_TAGS = 100
_ENTITIES = 1000
_BODY_BYTES = 1_000_000
_KEY = 250
_PARAM_VALUE = 6000
_TAG_VALUE = 8000
_ILLEGAL = re.compile(r"[^\w\-./ :]")
_NOT_FINITE = frozenset({"NaN", "Infinity", "-Infinity"})


class ReceivedMetric(msgspec.Struct, frozen=True):
    """One metric point as it arrived; values that are not finite are strings, as on the wire."""

    key: str
    value: float | str
    timestamp: int
    step: int = 0


class _Pair(msgspec.Struct, frozen=True):
    key: str
    value: str = ""


class _Batch(msgspec.Struct):
    run_id: str
    metrics: list[ReceivedMetric] = []
    params: list[_Pair] = []
    tags: list[_Pair] = []


@define(eq=False)
class ReceivedRun:
    """Everything that arrived for one run, in order of arrival, duplicates included.

    *params* and *tags* hold ``(key, value)`` pairs, *batches* the number of entities of each
    log-batch that was accepted.  *artifacts* holds contents by name, of `FakeSession` only: a
    `LocalPlatform` has them in ``platform.artifacts``.
    """

    info: dict[str, Any] = field(repr=False)
    metrics: list[ReceivedMetric] = field(factory=list, repr=False)
    params: list[tuple[str, str]] = field(factory=list, repr=False)
    tags: list[tuple[str, str]] = field(factory=list, repr=False)
    batches: list[int] = field(factory=list)
    param_values: dict[str, str] = field(factory=dict, repr=False)
    artifacts: dict[str, bytes] = field(factory=dict, repr=False)

    @property
    def run_id(self) -> str:
        """The id of the run."""
        return str(self.info["run_id"])


class _Refused(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        self.answer = refusal(status, code, message)
        super().__init__(message)


class StandIn:
    """The stand-in store.  With *any_run*, unknown runs are created at their first use.

    *artifact_root* is where the artifacts of experiments belong that don't say it themselves.
    """

    def __init__(self, artifact_root: str = "stand-in:") -> None:
        self._artifact_root = artifact_root
        self.any_run = False
        self.runs: dict[str, ReceivedRun] = {}
        self.experiments: dict[str, dict[str, Any]] = {}
        self._decode = msgspec.json.Decoder(_Batch).decode
        self._answers: dict[str, Callable[[Received], Answer]] = {
            "log_experiment_run_batch": self._log_batch,
            "create_experiment_run": self._create_run,
            "get_experiment_run_by_id": self._get_run,
            "update_experiment_run": self._update_run,
            "list_experiment_runs": self._search_runs,
            "list_experiments": self._search_experiments,
            "create_experiment": self._create_experiment,
            "get_experiment_by_id": self._get_experiment,
            "get_experiment_by_name": self._get_experiment_by_name,
        }
        self._new_experiment("Default")

    async def answer(self, route: Route, received: Received) -> Answer:
        answer = self._answers.get(route.operation)
        if answer is None:
            return refusal(501, "NotImplemented", f"the stand-in has no {route.operation}")
        try:
            return answer(received)
        except _Refused as refused:
            return refused.answer
        except msgspec.DecodeError as error:
            return refusal(400, "INVALID_PARAMETER_VALUE", str(error))

    async def close(self) -> None:
        """Do nothing."""

    def add_run(self, run_id: str | None = None) -> str:
        """Create a run without a request."""
        run_id = run_id or uuid.uuid4().hex
        location = self.experiments["0"]["artifact_location"]
        self.runs[run_id] = ReceivedRun(_run_info(run_id, "0", location, run_id, None))
        return run_id

    # -- log-batch

    def _log_batch(self, received: Received) -> Answer:
        if len(received.body) > _BODY_BYTES:
            raise _invalid(f"a request can have at most {_BODY_BYTES} bytes")
        batch = self._decode(received.body)
        run = self._run(batch.run_id)
        if run.info["lifecycle_stage"] != "active":
            raise _invalid(f"The run {batch.run_id} must be in the 'active' state.")
        # Everything is checked before anything is stored: one bad record fails them all.
        _check_counts(batch)
        _check_records(batch)
        _check_params(run, batch.params)
        _take(run, batch)
        return EMPTY

    def _run(self, run_id: str) -> ReceivedRun:
        if run_id not in self.runs:
            if not self.any_run:
                raise _missing(f"Run with id={run_id} not found")
            self.add_run(run_id)
        return self.runs[run_id]

    # -- runs

    def _create_run(self, received: Received) -> Answer:
        details = _details(received)
        experiment_id = details.get("experiment_id") or "0"
        location = self._experiment(experiment_id)["artifact_location"]
        run_id = uuid.uuid4().hex
        name = details.get("run_name") or f"run-{run_id[:8]}"
        start_time = details.get("start_time")
        run = ReceivedRun(_run_info(run_id, experiment_id, location, name, start_time))
        run.tags += [(tag["key"], tag.get("value", "")) for tag in details.get("tags") or ()]
        self.runs[run_id] = run
        return _reply({"run": _run_reply(run)})

    def _get_run(self, received: Received) -> Answer:
        return _reply({"run": _run_reply(self._run(_argument(received, "run_id")))})

    def _update_run(self, received: Received) -> Answer:
        details = _details(received)
        run = self._run(details.pop("run_id", ""))
        changes = {
            name: details[name]
            for name in ("status", "end_time", "run_name")
            if details.get(name) is not None
        }
        run.info.update(changes)
        return _reply({"run_info": run.info})

    def _search_runs(self, received: Received) -> Answer:
        """All at once; the filter is one tag, or the time of the start."""
        details = _details(received)
        among = details.get("experiment_ids") or ()
        matches = _filter(details.get("filter") or "")
        found = [
            _run_reply(run)
            for run in self.runs.values()
            if run.info["experiment_id"] in among and matches(run)
        ]
        return _reply({"runs": found})

    # -- experiments

    def _search_experiments(self, _received: Received) -> Answer:
        return _reply({"experiments": list(self.experiments.values())})

    def _create_experiment(self, received: Received) -> Answer:
        details = _details(received)
        name = details.get("name", "")
        if not name:
            raise _invalid("an experiment needs a name")
        if any(known["name"] == name for known in self.experiments.values()):
            raise _Refused(409, "RESOURCE_ALREADY_EXISTS", "the experiment exists already")
        location = details.get("artifact_location") or ""
        return _reply({"experiment_id": self._new_experiment(name, location)})

    def _get_experiment(self, received: Received) -> Answer:
        return _reply({"experiment": self._experiment(_argument(received, "experiment_id"))})

    def _get_experiment_by_name(self, received: Received) -> Answer:
        name = _argument(received, "experiment_name")
        for experiment in self.experiments.values():
            if experiment["name"] == name:
                return _reply({"experiment": experiment})
        raise _missing("an experiment of that name does not exist")

    def _experiment(self, experiment_id: str) -> dict[str, Any]:
        if experiment_id not in self.experiments:
            raise _missing(f"No Experiment with id={experiment_id} exists")
        return self.experiments[experiment_id]

    def _new_experiment(self, name: str, artifact_location: str = "") -> str:
        experiment_id = str(len(self.experiments))
        self.experiments[experiment_id] = {
            "experiment_id": experiment_id,
            "name": name,
            "artifact_location": artifact_location or f"{self._artifact_root}/{experiment_id}",
            "lifecycle_stage": "active",
        }
        return experiment_id


def _filter(text: str) -> Callable[[ReceivedRun], bool]:
    if not text:
        return lambda run: True
    if found := re.fullmatch(r"tags\.`([^`]+)` = '([^']*)'", text):
        key, value = found.groups()
        return lambda run: dict(run.tags).get(key) == value
    if found := re.fullmatch(r"attributes\.start_time = (\d+)", text):
        start_time = int(found[1])
        return lambda run: bool(run.info["start_time"] == start_time)
    raise _Refused(501, "NotImplemented", f"the stand-in knows no filter {text[:80]!r}")


def _take(run: ReceivedRun, batch: _Batch) -> None:
    run.metrics += batch.metrics
    run.params += [(param.key, param.value) for param in batch.params]
    run.tags += [(tag.key, tag.value) for tag in batch.tags]
    run.param_values.update((param.key, param.value) for param in batch.params)
    run.batches.append(len(batch.metrics) + len(batch.params) + len(batch.tags))


def _check_counts(batch: _Batch) -> None:
    entities = len(batch.metrics) + len(batch.params) + len(batch.tags)
    _check_count("metrics", len(batch.metrics), _METRICS)
    _check_count("params", len(batch.params), _PARAMS)
    _check_count("tags", len(batch.tags), _TAGS)
    _check_count("metrics, params, and tags", entities, _ENTITIES)


def _check_count(what: str, count: int, limit: int) -> None:
    if count > limit:
        raise _invalid(f"a request can contain at most {limit} {what}, got {count}")


def _check_records(batch: _Batch) -> None:
    """As MLflow does, an error names the place of the record in the request."""
    for at, metric in enumerate(batch.metrics):
        place = f"metrics[{at}]"
        _check_key(metric.key, f"{place}.name")
        if isinstance(metric.value, str) and metric.value not in _NOT_FINITE:
            raise _invalid(f"illegal value at {place}.value")
        if metric.timestamp < 0:
            raise _invalid(f"illegal timestamp at {place}.timestamp")
    _check_pairs("params", batch.params, _PARAM_VALUE)
    _check_pairs("tags", batch.tags, _TAG_VALUE)


def _check_pairs(kind: str, pairs: Sequence[_Pair], limit: int) -> None:
    for at, pair in enumerate(pairs):
        _check_key(pair.key, f"{kind}[{at}].key")
        if len(pair.value) > limit:
            raise _invalid(f"more than {limit} characters at {kind}[{at}].value")


def _check_key(key: str, place: str) -> None:
    if not _is_legal(key):
        raise _invalid(f"illegal key {key[:80]!r} at {place}")


@lru_cache(maxsize=4096)
def _is_legal(key: str) -> bool:
    if not key or len(key) > _KEY or _ILLEGAL.search(key):
        return False
    path = posixpath.normpath(key)
    return path == key and path != "." and not path.startswith(("..", "/"))


def _check_params(run: ReceivedRun, params: Sequence[_Pair]) -> None:
    if len({param.key for param in params}) < len(params):
        raise _invalid("duplicate param keys in one request")
    for param in params:
        if run.param_values.get(param.key, param.value) != param.value:
            raise _invalid(f"changing param values is not allowed: {param.key!r}")


def _run_info(
    run_id: str, experiment_id: str, location: str, name: str, start_time: int | None
) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "run_uuid": run_id,
        "run_name": name,
        "experiment_id": experiment_id,
        "status": "RUNNING",
        "start_time": start_time or int(time.time() * 1000),
        "artifact_uri": f"{location}/{run_id}/artifacts",
        "lifecycle_stage": "active",
    }


def _run_reply(run: ReceivedRun) -> dict[str, Any]:
    latest = {metric.key: metric for metric in run.metrics}
    params, tags = dict(run.params), dict(run.tags)
    data = {
        "metrics": list(latest.values()),
        "params": [{"key": key, "value": value} for key, value in params.items()],
        "tags": [{"key": key, "value": value} for key, value in tags.items()],
    }
    return {"info": run.info, "data": data, "inputs": {}}


def _details(received: Received) -> dict[str, Any]:
    return msgspec.json.decode(received.body, type=dict[str, Any])


def _argument(received: Received, name: str) -> str:
    values = parse_qs(received.query, keep_blank_values=True).get(name)
    if not values:
        raise _invalid(f"the query lacks {name}")
    return values[0]


def _reply(value: object) -> Answer:
    return Answer(200, msgspec.json.encode(value))


def _invalid(message: str) -> _Refused:
    return _Refused(400, "INVALID_PARAMETER_VALUE", message)


def _missing(message: str) -> _Refused:
    return _Refused(404, "RESOURCE_DOES_NOT_EXIST", message)
