"""Artifacts in a folder of this machine: they are copied."""

from __future__ import annotations

import uuid
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import url2pathname

from attrs import define

from adp_async._io.streams import ContentStream, named
from adp_async.errors import AdpError, reason_of

if TYPE_CHECKING:
    import asyncio

    from adp_async._io.streams import Content
    from adp_async._io.worker import Worker
    from adp_async._sansio.artifact_uris import LocalFolder


@define(eq=False)
class LocalFolders:
    """Folders of this machine; *worker* copies."""

    worker: Worker

    async def put(self, folder: LocalFolder, name: str, content: Content) -> None:
        """Copy *content* under *name*, which nobody sees before it is whole."""
        target = Path(url2pathname(folder.url_path), name)
        partial_file = target.with_name(f".{uuid.uuid4().hex}.partial")
        stream = ContentStream(content, self.worker, await self.worker.do(content.measure))
        try:
            await self.worker.do(partial(target.parent.mkdir, parents=True, exist_ok=True))
            file = await self.worker.do(partial_file.open, "wb")
            try:
                async with aclosing(stream.chunks()) as chunks:
                    async for chunk in chunks:
                        await self.worker.do(file.write, chunk)
            finally:
                await self.worker.do(file.close)
            await self.worker.do(partial_file.replace, target)
        except OSError as error:
            problem = f"{named(target)} cannot be written: {reason_of(error)}"
        else:
            return
        finally:
            self.worker.do(partial(partial_file.unlink, missing_ok=True)).add_done_callback(_seen)
        raise AdpError(problem)


def _seen(future: asyncio.Future[None]) -> None:
    """What is in the way of tidying up has been told before."""
    if not future.cancelled():
        future.exception()
