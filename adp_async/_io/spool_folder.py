"""Where a session spools: the folder, its own spool there, and those of dead processes.

SQLite and its tables are a quarter of the import's time: they are imported when there is a spool.
"""

from __future__ import annotations

import asyncio
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
        self._named = None if isinstance(spool, bool) else absolute_folder(spool)
        #: Where this process's own is, once there is one.
        self._taken: Path | None = None

    @property
    def path(self) -> Path:
        """Where it is, or would be; an `AdpError` when there is no place for it."""
        return self._taken or self._places()[0]

    def _places(self) -> list[Path]:
        from adp_async._io.spool_places import spool_places

        return spool_places() if self._named is None else [self._named]

    async def create(self, auth: Authenticator) -> Spool | None:
        """A spool for this process, made in the thread of *auth*.

        None when ``spool`` is off; None as well, with a WARNING, when none can be made.
        """
        if self.settings.spool is False:
            return None
        # Now, as the caller waits: a fork during an import leaves the module locked for good.
        import adp_async._io.keeper
        import adp_async._io.recovery  # noqa: F401
        from adp_async._io.spool_file import SpoolError

        try:
            making = asyncio.ensure_future(auth.run(self._create))
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            if await ended([making], LONGEST_WAIT) and making.exception() is None:
                _close(making.result())
            raise
        except SpoolError as error:
            logger.warning("accepted records are only in memory: %s", error)
            return None

    def _create(self) -> Spool:
        """In the first place that can be written.  Raises the `SpoolError` of the first place."""
        from adp_async._io.spool import Spool
        from adp_async._io.spool_file import SpoolError
        from adp_async._io.spool_places import prepare, why_not_first

        problems: list[SpoolError] = []
        for place in self._places():
            try:
                if self._named is None:
                    prepare(place)
                spool = Spool.create(place, self._identity(), limit=self.settings.spool_limit)
            except SpoolError as error:
                problems.append(error)
                continue
            self._taken = place
            if self._named is None and (why := why_not_first(place, problems)):
                logger.warning("accepted records are journaled in %s: %s", place, why)
            return spool
        raise problems[0]

    def finder(self, adopt: Adopt | None = None) -> Callable[[set[Path], int], Found]:
        """A function that opens spools of dead processes: not those seen, and at most so many.

        *adopt* as for `open_orphan`.
        """
        from adp_async._io.recovery import Found, open_orphans
        from adp_async._io.spool_file import SpoolError
        from adp_async._io.spool_places import may_search

        folders = [each for each in self._places() if self._named is not None or may_search(each)]
        limit, identity = self.settings.spool_limit, self._identity()

        def find(seen: set[Path], most: int) -> Found:
            found, problems = Found(), []
            for folder in folders:
                try:
                    found += open_orphans(
                        folder,
                        identity=identity,
                        limit=limit,
                        but_not=seen,
                        most=most - len(found.orphans),
                        adopt=adopt,
                    )
                except SpoolError as error:  # the others are searched all the same
                    problems.append(error)
            if problems and not found.orphans:
                raise problems[0]
            return found

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
