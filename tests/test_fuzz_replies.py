"""Replies of any content: what a status, headers and a body mean is a reply or an error of ours."""

from __future__ import annotations

import asyncio
import logging
import math
import unicodedata
from typing import TYPE_CHECKING, Any

import attrs
import hypothesis.strategies as st
import msgspec
import pytest
from fuzz import check_error, from_parts, mutated, ours, texts, try_all

from adp_async import entities
from adp_async._sansio import replies
from adp_async._sansio.codec import decode
from adp_async._sansio.messages import Reply
from adp_async._sansio.replies import read_reply
from adp_async._sansio.retry import LONGEST_RETRY_AFTER, RetryPolicy, parse_retry_after
from adp_async._sansio.signing import corrected_skew, http_date, parse_http_date
from adp_async.errors import AdpError, ServiceError, UnreadableReply
from adp_async.testing import FakeSession

if TYPE_CHECKING:
    from collections.abc import Callable


__all__ = ["try_all"]  # the fixture

DATE = "Thu, 01 Jan 2026 12:00:00 GMT"
DATES = ("Thu, ", "01 ", "31 Feb ", "Jan ", "2026 ", "99999 ", "0000 ", "12:00:00", "25:61:61")
ZONES = (" GMT", " -0000", " +9999", " -99999999999999999", " EST", "\0", "٣", ",", "-", "9" * 5000)

headers_texts = st.one_of(
    texts(),
    st.floats().map(repr),
    st.integers().map(str),
    st.sampled_from([DATE, "7", " 7 ", "1e400", "0x10", "1_0", "nan", "-1", "9" * 5000, ""]),
    from_parts(*DATES, *ZONES, most=8),
    mutated(DATE.encode()).map(lambda raw: raw.decode("latin-1")),
)
NAMES = ["retry-after", "date", "opc-request-id", "content-type", "etag", "location", "x" * 300]
headers = st.dictionaries(st.sampled_from(NAMES), headers_texts, max_size=4)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["code", "error_code", "message", "run", "info", "data", "metrics"])
            | st.text(max_size=4),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
GOOD = (
    b'{"run": {"info": {"run_id": "7", "experiment_id": "1", "status": "RUNNING", '
    b'"start_time": 1767268800000}, "data": {"metrics": [{"key": "loss", "value": 0.5, '
    b'"timestamp": 1, "step": 1}], "params": [], "tags": []}}}'
)
bodies = st.one_of(
    st.binary(),
    json_values.map(lambda value: msgspec.json.encode(value)),
    mutated(GOOD),
    mutated(b'{"code": "InvalidParameter", "message": "metrics[3].name is not valid"}'),
    from_parts("<html>", "<script ", "</script>", "<", ">", "Sign in", "\x1b[2J", "\u2028").map(
        lambda text: text.encode("utf-8", "surrogatepass")
    ),
    st.sampled_from([b"", b"{", b"NaN", b"[" * 100_000, b'{"a":' * 50_000, b"<" * 60_000]),
    st.sampled_from([b"<script " * 8_000, b"\xff\xfe{}", b"1" * 10_000, b"-1e999", b'"\\ud800"']),
)
statuses = st.integers(100, 599) | st.sampled_from([200, 202, 204, 301, 401, 404, 409, 429, 500])
#: `read_reply` without the reading of any body lets msgspec's UnicodeDecodeError through.
reads_any_body = pytest.mark.skipif(not hasattr(replies, "answered"), reason="reads UTF-8 only")

any_status = statuses | st.integers(0, 99_999)
any_reply = st.tuples(any_status, headers, bodies).map(lambda parts: Reply(*parts))
TYPES = [object, *(kind for name in entities.__all__ if attrs.has(kind := getattr(entities, name)))]


@reads_any_body
def test_statuses_headers_and_bodies(try_all: Callable[..., None]) -> None:
    """2xx is the reply itself; the rest is a `ServiceError` with numbers that can be waited for."""

    def check(reply: Reply) -> None:
        try:
            read = read_reply(reply, "get_run")
        except (ServiceError, UnreadableReply) as error:
            check_error(error)
            check_what_it_says(error)
        else:
            assert read is reply

    try_all(any_reply, check)


def check_what_it_says(error: AdpError) -> None:
    wait = getattr(error, "retry_after", None)
    assert wait is None or 0 <= wait <= LONGEST_RETRY_AFTER
    bad = [each for each in str(error) if unicodedata.category(each) in ("Cc", "Cs", "Zl", "Zp")]
    assert bad == [], "it goes to a terminal"


@reads_any_body
def test_bodies(try_all: Callable[..., None]) -> None:
    """A body is what was asked for, or an `UnreadableReply`."""

    def check(given: tuple[Reply, type]) -> None:
        reply, kind = given
        ours(lambda: decode(reply.body, kind, reply=reply, operation="get_run"), UnreadableReply)

    try_all(st.tuples(any_reply, st.sampled_from(TYPES)), check)


def test_times_of_headers(try_all: Callable[..., None]) -> None:
    """A header is a bounded number of seconds, or as good as none."""

    def check(given: tuple[str, str, float, float]) -> None:
        value, date, now, skew = given
        wait = parse_retry_after(value, date=date)
        assert wait is None or 0 <= wait <= LONGEST_RETRY_AFTER
        assert parse_retry_after(value) is None or parse_retry_after(value) >= 0
        moment = parse_http_date(value)
        assert moment is None or math.isfinite(moment)
        corrected = corrected_skew(skew, now=now, server_date=value)
        if corrected is not None:
            assert http_date(now + corrected), "a date that can be signed"

    now = st.floats(1.7e9, 2.2e9)
    skews = st.floats(-1e5, 1e5)
    try_all(st.tuples(headers_texts, headers_texts, now, skews), check)


KNOBS: Any = {
    "retry": RetryPolicy(first_backoff=1e-3, max_backoff=2e-3, max_attempts=2),
    "close_timeout": 0.05,
    "linger": 0.0,
}


@reads_any_body
def test_a_session_goes_on(try_all: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    """After an odd reply to a call, or to a batch, the next ones are served and the sums agree."""
    caplog.set_level(logging.CRITICAL, "adp_async")

    async def use(reply: Reply) -> None:
        session = FakeSession(**KNOBS)
        for operation in ("get_experiment_run_by_id", "log_experiment_run_batch"):
            session.answer(
                operation, reply.body, status=reply.status, headers=dict(reply.headers), times=1
            )
        try:
            async with session:
                run = session.attach_run(session.add_run())
                try:
                    await session.runs.get(run.run_id, timeout=0.05)
                except AdpError as error:
                    check_error(error)
                run.log_metric("loss", 1.0)
                run.set_tag("note", "a")
                async with asyncio.timeout(0.05):
                    await run.flush()
        except AdpError as error:
            check_error(error)
        except TimeoutError:
            pass  # a Retry-After of an hour
        stats = session.logger.stats()
        known = stats.delivered + sum(stats.rejected.values()) + stats.dropped
        assert stats.accepted == 2 == known + stats.waiting + stats.in_flight + stats.spooled

    possible = st.tuples(statuses, headers, bodies).map(lambda parts: Reply(*parts))
    try_all(possible, lambda reply: asyncio.run(use(reply)), share=10)
