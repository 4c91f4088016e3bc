"""The log: its fields, its levels, and the table that explains it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

import pytest
from log_calls import LEVELS, ROOT, LogCall, log_calls

from adp_async._io.log import FIELDS, logger
from adp_async.errors import (
    AdpError,
    ConnectionFailed,
    DeliveryError,
    InvalidRecord,
    Rejection,
    ServiceFault,
)

README: Final = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
CALLS: Final = list(log_calls())
FAULT: Final = ServiceFault("down", status=503, request_id="abc/def", operation="log_metric")


def fields(caplog: pytest.LogCaptureFixture) -> dict[str, object]:
    (record,) = caplog.records
    return {name: record.__dict__[name] for name in FIELDS}


# ------------------------------------------------------------------ fields


def test_a_line_has_all_fields(caplog: pytest.LogCaptureFixture) -> None:
    """A format may name them, whatever the line is about and whoever logged it."""
    logging.getLogger("adp_async").warning("a line of some module")

    assert fields(caplog) == dict.fromkeys(FIELDS)


def test_what_an_error_knows_is_a_field(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody has to repeat it."""
    logger.warning("batches are held back: %s%s", FAULT, "")

    assert fields(caplog) == {
        "run_id": None,
        "operation": "log_metric",
        "status": 503,
        "request_id": "abc/def",
    }


@pytest.mark.parametrize(
    "error",
    [
        Rejection("run", "metric", "loss", 1, FAULT),
        DeliveryError("refused", rejections=[Rejection("run", "metric", "loss", 1, FAULT)]),
        DeliveryError("too late", run_id="run", cause=FAULT),
    ],
    ids=["rejection", "refused", "undelivered"],
)
def test_a_cause_knows_more(error: object, caplog: pytest.LogCaptureFixture) -> None:
    """Of records that are refused the run comes from the error, the rest from the service."""
    logger.warning("%s", error)

    assert fields(caplog) == {
        "run_id": "run",
        "operation": "log_metric",
        "status": 503,
        "request_id": "abc/def",
    }


def test_what_is_given_counts_first(caplog: pytest.LogCaptureFixture) -> None:
    """An error of another run, or none with a status, changes nothing of it."""
    error = InvalidRecord(run_id="other", kind="metric", key="loss", rule="too long")
    error.__cause__ = ConnectionFailed("no route")
    logger.warning("%s", error, extra={"run_id": "run", "operation": "create_run"})

    found = fields(caplog)
    assert (found["run_id"], found["operation"], found["status"]) == ("run", "create_run", None)


def test_arguments_by_name(caplog: pytest.LogCaptureFixture) -> None:
    """A line may be given a mapping instead."""
    logger.warning("%(why)s", {"why": FAULT})

    assert fields(caplog)["status"] == 503


def test_a_format_may_name_all_fields() -> None:
    """It takes any line of the logger."""
    names = " ".join(f"{name}=%({name})s" for name in FIELDS)
    lines: list[str] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    handler = Lines()
    handler.setFormatter(logging.Formatter(names))
    logger.logger.addHandler(handler)
    try:
        logger.warning("%s", AdpError("x"))
    finally:
        logger.logger.removeHandler(handler)

    assert lines == ["run_id=None operation=None status=None request_id=None"]


# ------------------------------------------------------------------ the sources


def test_the_sources_are_found() -> None:
    """Every call of a logger in the text of the package is one of those below."""
    marks = [f"logger.{level}(" for level in LEVELS]
    texts = [path.read_text(encoding="utf-8") for path in ROOT.rglob("*.py")]
    count = sum(text.count(mark) for text in texts for mark in marks)

    inner = sum("self.logger.log(" in text for text in texts)
    assert len(CALLS) == count - inner
    assert len({call.where for call in CALLS}) == len(CALLS)


#: What a line knows when one of these is filled into its message.
KNOWN: Final = {"run_id": "run_id", "operation": "operation"}


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.where)
def test_what_is_known_is_a_field(call: LogCall) -> None:
    """A run or an operation that stands in a message is also beside it."""
    for name, key in KNOWN.items():
        if name in call.names:
            assert f"'{key}'" in call.extra or "_about(request)" in call.extra, call.message


def test_the_rule_finds_something() -> None:
    """Lines with a run, and lines with an operation."""
    for name in KNOWN:
        assert sum(name in call.names for call in CALLS) > 3


# ------------------------------------------------------------------ the table


def rows() -> list[str]:
    table = README.partition("<!-- log -->\n")[2].partition("<!-- /log -->")[0]
    firsts = [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines()[2:]]
    return [first.removeprefix("`").removesuffix("`") for first in firsts]


def test_the_table_of_messages_is_complete() -> None:
    """Each warning and error of the package is explained once, and nothing else."""
    told = {call.message for call in CALLS if call.level not in ("debug", "info")}

    assert sorted(rows()) == sorted(told)
