"""The arithmetic of the quota; time is a number."""

from __future__ import annotations

from email.utils import parsedate_to_datetime

import pytest

from adp_async.local.quota import Quota, TokenBucket


def test_burst_then_rate() -> None:
    """The burst goes at once, then one request every 1/rate seconds."""
    bucket = TokenBucket(Quota(rate=4.0, burst=2.0), now=10.0)

    taken = [bucket.take(10.0 + now / 8) for now in range(9)]

    assert taken == [True, True, True, False, True, False, True, False, True]


def test_idle_time_saves_no_more_than_the_burst() -> None:
    """An hour of silence doesn't allow an hour's worth of requests."""
    bucket = TokenBucket(Quota(rate=5.0, burst=1.0), now=0.0)

    assert [bucket.take(3600.0) for _ in range(3)] == [True, False, False]


def test_hammering_gets_exactly_the_rate() -> None:
    """Refused requests cost nothing: 1,000 tries a second get what 10 a second get."""
    bucket = TokenBucket(Quota(rate=10.0), now=0.0)

    assert sum(bucket.take(n / 1000) for n in range(10_000)) == pytest.approx(100, abs=1)


def test_no_retry_after_unless_given() -> None:
    """The bare 429 is the default, as the real one was seen."""
    assert Quota(rate=1.0).headers(0.0) == {}


def test_retry_after_in_whole_seconds() -> None:
    """Seconds are rounded up, as the header has no fractions."""
    assert Quota(rate=1.0, retry_after=1.2).headers(0.0) == {"retry-after": "2"}


def test_retry_after_as_a_date() -> None:
    """The date is of the platform's clock and never too early."""
    header = Quota(rate=1.0, retry_after=3.0, as_date=True).headers(1_000_000.5)["retry-after"]

    assert parsedate_to_datetime(header).timestamp() == 1_000_004
