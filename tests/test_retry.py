"""Back-off and Retry-After, by tables."""

from __future__ import annotations

import pytest

from adp_async._sansio.retry import LONGEST_RETRY_AFTER, RetryPolicy, parse_retry_after

DATE = "Thu, 01 Jan 2026 12:00:00 GMT"


@pytest.mark.parametrize(
    ("attempt", "jitter", "delay"),
    [
        (1, 0.0, 0.0),
        (1, 0.5, 0.5),
        (2, 0.5, 1.0),
        (6, 0.5, 16.0),
        (7, 0.5, 30.0),
        (7, 0.999, 59.94),
        (10_000, 0.5, 30.0),
    ],
)
def test_back_off_doubles_with_full_jitter(attempt: int, jitter: float, delay: float) -> None:
    """From nothing up to a ceiling that doubles and stops at 60 s, for ever if need be."""
    assert RetryPolicy().delay(attempt, jitter=jitter) == pytest.approx(delay)


def test_retry_after_is_a_floor() -> None:
    """The jitter goes on top, so that clients don't come back as one herd."""
    policy = RetryPolicy()

    assert [policy.delay(1, jitter=j, retry_after=7.0) for j in (0.0, 0.5)] == [7.0, 7.5]


@pytest.mark.parametrize(
    "knobs", [{"first_backoff": 0.0}, {"max_backoff": -1.0}, {"max_attempts": 0}]
)
def test_a_policy_without_sense_is_refused(knobs: dict[str, float]) -> None:
    """A back-off of nothing would hammer the service."""
    with pytest.raises(ValueError, match=next(iter(knobs))):
        RetryPolicy(**knobs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("7", 7.0),
        (" 7 ", 7.0),
        ("1.5", 1.5),
        ("3600", 3600.0),
        ("3601", LONGEST_RETRY_AFTER),
        ("999999999999", LONGEST_RETRY_AFTER),
        ("Thu, 01 Jan 2026 12:00:30 GMT", 30.0),
        ("Thu, 01 Jan 2026 14:00:30 +0200", 30.0),
        ("Thursday, 01-Jan-26 12:00:30 GMT", 30.0),
        ("Thu Jan  1 12:00:30 2026", None),
        ("Thu, 01 Jan 2026 11:59:00 GMT", 0.0),
        ("Fri, 02 Jan 2026 12:00:00 GMT", LONGEST_RETRY_AFTER),
    ],
)
def test_seconds_and_dates(value: str, seconds: float | None) -> None:
    """Either form of the header, up to an hour; a date counts from the reply's own date."""
    assert parse_retry_after(value, date=DATE) == seconds


@pytest.mark.parametrize(
    "value",
    [None, "", " ", "soon", "-1", "-0.1", "nan", "inf", "-inf", "1e400", "12:00", "7 s", "\x00"],
)
def test_garbage_is_no_retry_after(value: str | None) -> None:
    """What can't be read, or makes no sense, leaves the waiting to the policy."""
    assert parse_retry_after(value, date=DATE) is None


@pytest.mark.parametrize("date", [None, "", "yesterday", "Thu, 01 Jan 2026"])
def test_a_date_without_the_replys_own_tells_nothing(date: str | None) -> None:
    """No clock of ours plays a part."""
    assert parse_retry_after("Thu, 01 Jan 2026 12:00:30 GMT", date=date) is None
