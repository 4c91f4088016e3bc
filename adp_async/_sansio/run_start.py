"""A run that a process has started: how it is created, what the service calls it, how it ends.

What is written down here outlives the process.  So a run that could not be created is created
later, by whoever finds its `RunStart` in a spool, and exactly once: under the retry token it was
tried with while the service remembers that, and otherwise after a search for what an earlier
attempt, whose answer nobody heard, may have made.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping  # noqa: TC003 - msgspec reads the annotations
from typing import TYPE_CHECKING, Final

import msgspec
from attrs import evolve, field, frozen

from adp_async._sansio.signing import check_retry_token
from adp_async._sansio.statuses import EndStatus  # noqa: TC001 - as well
from adp_async._sansio.values import valid_run_id
from adp_async.errors import (
    AdpError,
    ConnectionFailed,
    ConnectionLost,
    NotAuthenticated,
    ServiceError,
    ServiceFault,
    UnreadableReply,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from adp_async._sansio.retry import RetryPolicy
    from adp_async.entities.runs import Run

#: The tag that tells a run which started offline.
LOCAL_ID: Final = "adp_async.local_id"
#: What a run is called here until the service has named it begins so.
LOCAL: Final = "local-"
#: MLflow's name of the run that a run is part of.
PARENT: Final = "mlflow.parentRunId"
#: Seconds that the service remembers a retry token, less those that clocks may differ by.
TOKEN_LIFETIME: Final = 24 * 3600.0 - 300.0

#: The longest pause, in seconds, between two attempts for a run that the service refuses.
LONGEST_TROUBLE: Final = 900.0


@frozen
class RunEnd:
    """How a run ended; *end_time* in Unix milliseconds."""

    status: EndStatus
    end_time: int


@frozen
class RunStart:
    """A run that this process has started.

    *key*: what it is called here; that is its *run_id*, unless it started offline.  *run_id* is
    None until the service has it.  *experiment* (a name, which is created if need be),
    *experiment_id*, *run_name*, *tags* and *start_time* (Unix milliseconds) are what it is created
    with; *parent* is the key of one that has to be created before.  *retry_token* was made at
    *token_made_at*, in Unix seconds.  *is_tagged*: *tags* have its key, under `LOCAL_ID`.

    *end*: how it ended, None while it is running.  *is_handed_on*: its process went on without it,
    so nobody else ends it.
    """

    key: str
    run_id: str | None = None
    experiment: str | None = None
    experiment_id: str | None = None
    run_name: str | None = None
    tags: Mapping[str, str] = field(factory=dict)
    start_time: int = 0
    parent: str | None = None
    retry_token: str = ""
    token_made_at: float = 0.0
    is_tagged: bool = True
    end: RunEnd | None = None
    is_handed_on: bool = False

    def __str__(self) -> str:
        """What a person is told of it."""
        if self.run_id is not None:
            return f"run {self.run_id}"
        facts = [f"{self.run_name!r:.120}"] if self.run_name else []
        if self.experiment is not None:
            facts.append(f"in experiment {self.experiment!r:.120}")
        elif self.experiment_id is not None:
            facts.append(f"in experiment {self.experiment_id:.120}")
        told = f"{' '.join(facts)}, " if facts else ""
        return f"run {self.key} ({told}not yet created)"

    @property
    def sent_tags(self) -> Mapping[str, str]:
        """The tags that it is created with."""
        return {**self.tags, LOCAL_ID: self.key} if self.is_tagged else self.tags

    def as_text(self) -> str:
        """All of it, for `from_text`."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_text(cls, text: object) -> RunStart | None:
        """What `as_text` wrote; None for anything else."""
        try:
            start = msgspec.json.decode(str(text).encode(), type=cls)
            valid_run_id(start.key)
            if start.run_id is None:
                check_retry_token(start.retry_token)
            else:
                valid_run_id(start.run_id)
        except (ValueError, TypeError, RecursionError):
            return None
        return start

    def named(self, run_id: str) -> RunStart:
        """The service has it, and calls it *run_id*: how it is created is of no interest now."""
        return RunStart(self.key, run_id, end=self.end, is_handed_on=self.is_handed_on)

    def below(self, parent: str, run_id: str) -> RunStart:
        """The same, when what was called *parent* here is *run_id*."""
        if self.parent != parent:
            return self
        return evolve(self, parent=None, tags={**self.tags, PARENT: run_id})

    def renewed(self, retry_token: str, now: float) -> RunStart:
        """The same, to be created under another token, made *now*.

        Nothing of an earlier request has to be repeated then: it gets its tag, and an experiment
        that is given by its name is looked up again.
        """
        start = self if self.experiment is None else evolve(self, experiment_id=None)
        return evolve(start, retry_token=retry_token, token_made_at=now, is_tagged=True)

    def ended(self, status: EndStatus, end_time: int) -> RunStart:
        """It ended so."""
        return evolve(self, end=RunEnd(status, end_time))

    def left_behind(self, last_sign: int) -> RunStart:
        """As the next process finds it: what had not ended was killed at its *last_sign* of life.

        In Unix milliseconds.
        """
        if self.end is not None or self.is_handed_on:
            return self
        return self.ended("KILLED", last_sign)


class Ask(enum.Enum):
    """What to ask the service for next, of a run that it has not named yet."""

    SEARCH = "whether it has the run: a create may have taken effect, and nobody heard"
    CREATE = "to create it, under the token it has"
    RENEW = "to create it, under a new token: the old one is forgotten by now"


def next_ask(start: RunStart, *, may_exist: bool, now: float) -> Ask:
    """What to ask for next.  *now* in Unix seconds.

    *may_exist*: a create was sent, or may have been, since the last search.

    >>> start = RunStart("local-1", retry_token="t", token_made_at=1000.0)
    >>> [next_ask(start, may_exist=each, now=1000.0).name for each in (True, False)]
    ['SEARCH', 'CREATE']
    >>> [next_ask(start, may_exist=each, now=1000.0 + 90_000.0).name for each in (True, False)]
    ['SEARCH', 'RENEW']
    """
    if may_exist:
        return Ask.SEARCH
    # A clock that was set back says nothing about the service's.
    is_young = abs(now - start.token_made_at) < TOKEN_LIFETIME
    return Ask.CREATE if is_young else Ask.RENEW


def search_filter(start: RunStart) -> str:
    """What finds the run on the service, and hardly any other."""
    if start.is_tagged:
        return f"tags.`{LOCAL_ID}` = '{start.key}'"
    return f"attributes.start_time = {start.start_time}"


def found_among(start: RunStart, runs: Iterable[Run]) -> Run | None:
    """Which of *runs* is that of *start*.

    One that has the tag; without a tag, one of the same moment, name and tags.
    """
    for run in runs:
        tags = {tag.key: tag.value for tag in run.data.tags}
        if start.is_tagged:
            is_it = tags.get(LOCAL_ID) == start.key
        else:
            is_it = run.info.start_time == start.start_time and LOCAL_ID not in tags
            is_it = is_it and start.run_name in (None, run.info.run_name)
            is_it = is_it and all(tags.get(key) == value for key, value in start.tags.items())
        if is_it and run.info.run_id:
            return run
    return None


def is_out_of_reach(error: AdpError) -> bool:
    """Whether *error* says that the service cannot be reached for now, rather than that it says no.

    No connection, an answer that is somebody else's, and a service that fails or throttles.  Not a
    mistake in the set-up that does not pass by itself.

    >>> from adp_async.errors import BadRequest, ConfigurationError
    >>> is_out_of_reach(ConnectionFailed("refused")), is_out_of_reach(ConfigurationError("no key"))
    (True, False)
    >>> [is_out_of_reach(BadRequest(status=400, code=code)) for code in ("InvalidParameter", "")]
    [False, True]
    """
    match error:
        case ConnectionFailed() | ServiceFault():
            return error.retriable
        case ConnectionLost() | UnreadableReply():
            return True
        case ServiceError():
            return error.retriable or not error.code
        case _:
            return False


def is_its_own(error: AdpError) -> bool:
    """Whether *error* is the service's word on that one run, so that others may fare better.

    >>> from adp_async.errors import NotAuthenticated, NotFound
    >>> [is_its_own(each(code="Code")) for each in (NotFound, NotAuthenticated, ServiceFault)]
    [True, False, False]
    """
    return not (is_out_of_reach(error) or isinstance(error, NotAuthenticated | ConnectionFailed))


def patience(policy: RetryPolicy, refusals: int, *, jitter: float) -> float:
    """Seconds until a run is asked for again that the service has refused so many times.

    >>> from adp_async._sansio.retry import RetryPolicy
    >>> [patience(RetryPolicy(), each, jitter=0.0) for each in (1, 2, 3, 9)]
    [0.5, 2.0, 8.0, 450.0]
    """
    longest = max(LONGEST_TROUBLE, policy.max_backoff)
    pause = min(longest, policy.first_backoff * 4.0 ** min(refusals - 1, 32))
    return (0.5 + 0.5 * jitter) * pause
