"""One of the processes of `benchmarks.cluster`: logs when it is told, and says what that took.

A line of JSON says how; the value of a point is the moment at which it was logged, on the clock
that all processes of a machine share.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from adp_async import ApiKey, blocking
from adp_async.collector import Handle


def main() -> None:
    how = json.loads(sys.stdin.readline())
    if how["handle"]:
        run: Any = Handle.from_json(how["handle"]).attach()
    else:
        run = _own_session(how).attach_run("bench")
    print(json.dumps({"ready": True}), flush=True)
    sys.stdin.readline()
    began = time.monotonic()
    if how["rate"]:
        _steadily(run, how["name"], how["rate"], how["seconds"])
    else:
        _flat_out(run, how["name"], how["points"])
    logged = time.monotonic() - began
    failure = ""
    try:
        run.flush(timeout=how["patience"])
    except TimeoutError:
        failure = "not in time"
    told = {
        "logged": logged,
        "flushed": time.monotonic() - began,
        "cpu": _cpu(),
        "memory": _private_memory(),
        "accepted": run.stats().accepted,
        "failure": failure,
    }
    print(json.dumps(told), flush=True)


def _own_session(how: dict[str, Any]) -> blocking.Session:
    session = blocking.Session(
        how["platform_id"],
        how["workspace"],
        endpoint=how["endpoint"],
        auth=ApiKey(config_file=how["config_file"]),
        spool=how["spool"],
        exit_timeout=1.0,
        close_timeout=0.5,
    )
    return session.open()


def _steadily(run: Any, name: str, rate: float, seconds: float) -> None:
    began = time.monotonic()
    for number in range(int(rate * seconds)):
        ahead = began + number / rate - time.monotonic()
        if ahead > 0:
            time.sleep(ahead)
        run.log_metric(name, time.monotonic(), number)


def _flat_out(run: Any, name: str, points: int) -> None:
    for number in range(points):
        run.log_metric(name, 0.5, number)


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _private_memory() -> float:
    """MiB that this process shares with nobody; 0 where the system does not say."""
    path = Path("/proc/self/smaps_rollup")
    if not path.exists():
        return 0.0
    lines = [line.split() for line in path.read_text().splitlines() if line.startswith("Private_")]
    return sum(int(line[1]) for line in lines) / 1024


if __name__ == "__main__":
    main()
