"""The way to a collector, for another process: picklable, and without credentials."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from attrs import frozen

from adp_async._hop import Hop

if TYPE_CHECKING:
    from adp_async.collector.session import WorkerSession
    from adp_async.collector.worker import WorkerRun

Texts = Literal["rank0", "all"]
Commit = Literal["stream", "task"]


@frozen
class Handle(Hop):
    """The way to one shared run, or to a shared session: hand it to other processes.

    It pickles to a few hundred bytes, without the service's credentials; it is good for this run
    alone, and until the collector closes.  Whoever has it can log into the run: its *token* is not
    shown, and should not be written where others can read it.

    *address* is ``unix:`` and a path, or ``https://host:port`` with the SHA-256 *fingerprint* of
    its certificate.  *run_id* is None when a whole session is shared.
    """

    def attach(
        self,
        run_id: str | None = None,
        *,
        prefix: str | None = None,
        rank: int | Literal["auto"] | None = None,
        texts: Texts = "rank0",
        attempt: str | None = None,
        commit: Commit = "stream",
        strict: bool = True,
    ) -> WorkerRun:
        """A run for this process: ``with handle.attach() as run``, or ``async with``.

        It has the ``log_*``, receipts and counts of any run.  What is delivered, for it, is on the
        collector's disk; exiting waits for that, and so does ``flush()``.
        ``flush(delivered=True)`` waits for the service.  It leaves the run's status alone.
        Nothing is sent before something is logged, but for a greeting on entering, which raises
        when the handle is refused.

        *run_id*: of a shared session, which run.  *prefix* goes before the keys of metrics;
        ``{rank}`` in it is the rank.  *rank*: this process's among those that log; ``"auto"`` finds
        it in ``RANK``, ``SLURM_PROCID``, ``OMPI_COMM_WORLD_RANK`` or the context of Ray or Spark.
        With a rank the prefix is ``rank{rank}/`` by default, and params and tags of others than
        rank 0 are dropped and counted, unless *texts* is ``"all"``.

        With ``commit="task"`` what is logged within the block counts when that ends well, and not
        at all when it raises, or is killed: so that a task which its engine runs again does not
        log twice.  *attempt* names the task; each block is another attempt of it, and the first
        that ends well counts.  ``"auto"`` takes the name from Spark's or Ray's context.  Until
        then the collector holds it aside on its disk.

        With ``strict=False`` nothing of the run's own raises, as for `Session.start_run`: what is
        wrong with keys and values is mended or skipped, and warnings say so.

        Raises ValueError for a run that it is not for.
        """
        from adp_async.collector.attaching import attach

        return attach(
            self,
            run_id,
            prefix=prefix,
            rank=rank,
            texts=texts,
            attempt=attempt,
            commit=commit,
            strict=strict,
        )

    def session(self) -> WorkerSession:
        """The open session that this process has for this handle; see `blocking.Session`.

        Of a shared session: it starts runs, reads and searches, as far as the collector's own
        credentials go.
        """
        from adp_async.collector.session import Whose, session_of, sessions

        with sessions.lock:
            session = session_of(Whose(self))
            session.is_given_out = True
            return session
