"""`shared` of sessions and runs: other processes may log into them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

    from adp_async._io.engine import Engine
    from adp_async.collector import Carrier, Handle, Shared


class SharesSession:
    """A session that other processes may use."""

    def _shared_engine(self) -> Engine:
        raise NotImplementedError

    def shared(
        self,
        listen: str | os.PathLike[str] | None = None,
        *,
        advertise: str | None = None,
        carrier: Carrier | None = None,
        token: str | None = None,
    ) -> Shared:
        """Have other processes use this session: ``with session.shared() as handle``.

        ``handle.attach(run_id)`` there logs into a run, ``handle.session()`` starts and reads them;
        all of it is signed and sent here.  Whoever has the handle can do whatever this session can.
        Arguments and errors as for `Run.shared`.
        """
        from adp_async.collector import Shared

        return Shared(self._shared_engine(), None, listen, advertise, carrier, token)


class SharesRun:
    """A run that other processes may log into."""

    _run_id: str

    def _shared_engine(self) -> Engine:
        raise NotImplementedError

    def shared(
        self,
        listen: str | os.PathLike[str] | None = None,
        *,
        advertise: str | None = None,
        carrier: Carrier | None = None,
        token: str | None = None,
    ) -> Shared:
        """Have other processes log into this run: ``with run.shared() as handle``.

        *handle* is picklable and has no credentials: ``with handle.attach() as run`` in another
        process gives the run there.  What is logged there is handed over to this process, which
        journals it and delivers it together with its own.  Within the block, a pickled run is that
        as well.

        *listen*: by default a Unix socket, for processes of this machine (on Windows its own
        address).  For those of others a
        host, such as ``"0.0.0.0"``, with or without a port; then it is TLS, with a certificate
        made for this block and known by its fingerprint.  *advertise*: the host, with or without a
        port, by which others reach it; by default the address of this machine.  *carrier*: carries
        requests in place of a socket.  *token*: what the handle authenticates with, for a collector
        that goes on where one before it ended; by default a new one.

        Raises `ConfigurationError` where it cannot listen, and `Closed`.
        """
        from adp_async.collector import Shared

        return Shared(self._shared_engine(), self._run_id, listen, advertise, carrier, token)

    def _attach_anew(self) -> None:
        """In a forked child: log by a session of this process from now on."""
        from adp_async._inherited import attach_anew

        attach_anew(self)

    def _shared_handle(self) -> Handle | None:
        """The handle by which this run is shared at present."""
        handles = self._shared_engine().handles.get(self._run_id)
        return handles[-1] if handles else None
