"""Where a session spools: the folder, its own spool there, and those of dead processes.

SQLite and its tables are a quarter of the import's time: they are imported when there is a spool.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from adp_async._io.log import logger
from adp_async._io.tidying import ended
from adp_async._knobs import absolute_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from adp_async._io.authenticator import Authenticator
    from adp_async._io.recovery import Adopt, Found
    from adp_async._io.spool import Spool
    from adp_async._io.spool_file import Identity
    from adp_async.settings import Settings


#: Seconds that a cancelled opening waits for the disk to have made its file.
LONGEST_WAIT = 2.0


class SpoolFolder:
    """The folder of the spools of a session with *settings*."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        # Resolved now: the working folder may change.
        spool = settings.spool
        self._path = None if isinstance(spool, bool) else absolute_folder(spool)

    @property
    def path(self) -> Path:
        """Where it is; an `AdpError` when the user has no home."""
        from adp_async._io.spool_file import default_spool_folder

        return self._path or default_spool_folder()

    async def create(self, auth: Authenticator) -> Spool | None:
        """A spool for this process, made in the thread of *auth*.

        None when ``spool`` is off; None as well, with a WARNING, when none can be made.
        """
        if self.settings.spool is False:
            return None
        # Now, as the caller waits: a fork during an import leaves the module locked for good.
        import adp_async._io.keeper
        import adp_async._io.recovery  # noqa: F401
        from adp_async._io.spool import Spool
        from adp_async._io.spool_file import SpoolError

        limit = self.settings.spool_limit
        try:
            create = partial(Spool.create, self.path, self._identity(), limit=limit)
            making = asyncio.ensure_future(auth.run(create))
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            if await ended([making], LONGEST_WAIT) and making.exception() is None:
                _close(making.result())
            raise
        except SpoolError as error:
            logger.warning("accepted records are only in memory: %s", error)
            return None

    def finder(self, adopt: Adopt | None = None) -> Callable[[set[Path], int], Found]:
        """A function that opens spools of dead processes: not those seen, and at most so many.

        *adopt* as for `open_orphan`.
        """
        from adp_async._io.recovery import open_orphans

        folder, limit = self.path, self.settings.spool_limit
        identity = self._identity()

        def find(seen: set[Path], most: int) -> Found:
            return open_orphans(
                folder, identity=identity, limit=limit, but_not=seen, most=most, adopt=adopt
            )

        return find

    def _identity(self) -> Identity:
        from adp_async._io.spool_file import Identity

        settings = self.settings
        return Identity(settings.base_url, settings.platform_id, settings.workspace or "")


def _close(spool: Spool) -> None:
    """Release a file that nothing was written to; the reason for that is what is raised."""
    try:
        spool.close()
    except Exception as failure:
        logger.warning("%s could not be closed: %s", spool.path, failure)
