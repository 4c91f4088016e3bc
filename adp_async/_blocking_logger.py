"""The background logger for code without an event loop; `adp_async.blocking` has it for users."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from adp_async._sansio.texts import not_delivered_yet
from adp_async.errors import AdpError, DeliveryError
from adp_async.logger import LoggerFace

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from adp_async.logger import BatchLogger as AsyncBatchLogger

T = TypeVar("T")


class AsyncSession(Protocol):
    """The session that a blocking one runs in its thread."""

    logger: AsyncBatchLogger


class Host(Protocol):
    """What the logger needs of its session."""

    @property
    def session(self) -> AsyncSession: ...

    def call(self, doing: Awaitable[T], /, timeout: float | None = ...) -> T: ...


class BatchLogger(LoggerFace):
    """The background logger of a blocking session; ``log_*`` return at once.  Thread-safe.

    Its ``log_*`` take the run's id first and are otherwise those of `Run`.
    """

    def __init__(self, session: Host) -> None:
        super().__init__(session.session.logger._delivery)
        self._session = session

    def flush(self, run_id: str | None = None, timeout: float | None = None) -> None:
        """Wait until the service has everything accepted so far, of one run or of all.

        Doesn't linger.  Raises `DeliveryError` when records were refused that no flush has
        reported yet, `TimeoutError` after *timeout* seconds.
        """
        try:
            self._session.call(self._session.session.logger.flush(run_id), timeout)
        except TimeoutError:
            waiting = self.stats(run_id).undelivered
            raise TimeoutError(not_delivered_yet(waiting)) from None

    def try_flush(self, run_id: str | None = None, timeout: float | None = None) -> AdpError | None:
        """As `flush`, but returns the error that would be raised; None when all went well.

        After *timeout* seconds, a `DeliveryError` that says how many records are still waiting.
        What was refused remains to be told: a later `flush`, or the close, raises it.
        """
        try:
            return self._session.call(self._session.session.logger.try_flush(run_id), timeout)
        except TimeoutError:
            left = self.stats(run_id).undelivered
            return DeliveryError(not_delivered_yet(left), undelivered=left, run_id=run_id)
        except AdpError as error:  # closed
            return error

    def drain(self, timeout: float | None = None) -> None:
        """Wait until the buffer is below its high-water mark, half of ``buffer_limit``.

        Raises `TimeoutError` after *timeout* seconds.
        """
        self._session.call(self._session.session.logger.drain(), timeout)
