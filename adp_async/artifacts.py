"""Artifacts of a run: files, texts and figures, uploaded in the background.  Experimental.

``log_artifact`` and its siblings check what they are given, hand it over and return an `Upload`.
Where it goes is decided by the run's ``artifact_uri``.
"""

from __future__ import annotations

import io
import json
import os
import time
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from attrs import frozen

from adp_async._sansio.values import is_unicode
from adp_async.errors import AdpError, shown, type_name

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator, Mapping
    from os import PathLike

    from adp_async._io.uploads import Job, Uploader

T = TypeVar("T")

__all__ = [
    "ArtifactFolder",
    "ArtifactInfo",
    "ArtifactWriter",
    "LenientArtifactWriter",
    "Upload",
    "Uploads",
]


class Upload:
    """One artifact on its way.  ``await upload``, or ``upload.wait(timeout)`` in a thread.

    Either returns when it is uploaded and raises `UploadError` when it will not be.  Whoever stops
    waiting does not stop the upload.
    """

    __slots__ = ("_job", "_uploader")

    def __init__(self, job: Job, uploader: Uploader) -> None:
        self._job = job
        self._uploader = uploader

    @property
    def name(self) -> str:
        """Its name below the run's ``artifact_uri``, such as ``plots/loss.png``."""
        return self._job.name

    @property
    def run_id(self) -> str:
        """The id of its run; "" of an `ArtifactFolder`."""
        return self._job.run_id

    def __await__(self) -> Generator[Any, None, None]:
        return self._uploader.settled(self._job).__await__()

    def wait(self, timeout: float | None = None) -> None:
        """Block this thread until it is uploaded; not for an event loop's thread.

        Raises `UploadError` when it will not be, `TimeoutError` after *timeout* seconds.
        """
        self._uploader.wait(self._job, timeout)

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self._job.future.done()

    @property
    def uploaded(self) -> bool:
        """Whether it is uploaded by now."""
        return self.done and self._job.future.result() is None

    def __repr__(self) -> str:
        state = ("uploaded" if self.uploaded else "failed") if self.done else "on its way"
        return f"<Upload {self.name!r} {state}>"


class Uploads(tuple[Upload, ...]):
    """The uploads of one call; waiting for it waits for all of them."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, None]:
        for upload in self:
            yield from upload.__await__()

    def wait(self, timeout: float | None = None) -> None:
        """Block this thread until all are uploaded.  See `Upload.wait`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        for upload in self:
            upload.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))

    @property
    def done(self) -> bool:
        """Whether all of them have ended, well or not."""
        return all(upload.done for upload in self)

    @property
    def uploaded(self) -> bool:
        """Whether all of them are uploaded by now."""
        return all(upload.uploaded for upload in self)

    def __repr__(self) -> str:
        return f"<Uploads {len(self)} artifacts | {sum(upload.done for upload in self)} done>"


class ArtifactWriter:
    """``log_artifact`` of one run and what belongs to it.  From any thread."""

    if TYPE_CHECKING:

        @property
        def _uploader(self) -> Uploader: ...

    _run_id: str
    #: Where they go; None when the platform has to be asked.
    _artifact_uri: str | None

    def log_artifact(self, path: str | PathLike[str], to: str = "") -> Upload:
        """Upload the file *path* into the folder *to* of the run's artifacts.  Experimental.

        Returns at once; the file is read while it is uploaded, and has to stay until then.  An
        artifact of the same name is replaced.  Raises FileNotFoundError or IsADirectoryError for
        a *path* that is not a file, TypeError or ValueError for a *to* with ``..`` in it, and
        `Closed`.  What goes wrong later is reported by the `Upload`, and by ``finish`` or the exit
        of the run, which wait for it.
        """
        file = _file(path)
        return self._upload([(file.name, file)], to)[0]

    def log_artifacts(self, folder: str | PathLike[str], to: str = "") -> Uploads:
        """Upload the files in *folder*, and in the folders in it, into *to*.  Experimental.

        Links to folders are not followed.  See `log_artifact`.
        """
        root = _path(folder)
        if not root.is_dir():
            raise NotADirectoryError(f"{_named(root)} is not a folder")
        return self._upload(_files(root), to)

    def log_text(self, text: str, to: str) -> Upload:
        """Upload *text*, in UTF-8, as the artifact *to*, such as ``notes/1.txt``.  Experimental.

        It waits in memory: `BufferFull` beyond ``buffer_limit``.  See `log_artifact`.
        """
        if not isinstance(text, str):
            raise TypeError(f"log_text takes a str, not {type_name(text)}")
        if not is_unicode(text):
            raise ValueError("log_text: the text holds half of a surrogate pair")
        return self._upload_bytes(text.encode(), to)

    def log_dict(self, values: Mapping[str, object], to: str) -> Upload:
        """Upload *values* as JSON, as the artifact *to*, such as ``config.json``.  Experimental.

        Arrays and their numbers are written as lists and numbers; NaN and infinities as Python's
        ``json`` does.  TypeError for what JSON has no form for.  See `log_text`.
        """
        if not hasattr(values, "items"):
            raise TypeError(f"log_dict takes a mapping, not {type_name(values)}")
        plain = dict(values.items())
        text = json.dumps(plain, indent=2, default=_plain, ensure_ascii=False)
        return self._upload_bytes(text.encode(), to)

    def log_figure(self, figure: Any, to: str) -> Upload:
        """Upload *figure* as the artifact *to*, whose ending says how: ``loss.png``.  Experimental.

        *figure* has ``savefig``, as those of matplotlib, or ``to_html`` and ``to_image``, as those
        of plotly.  It is drawn before this returns, so that it may change or be closed, which
        takes a while: on an event loop prefer ``await asyncio.to_thread(run.log_figure, ...)``.
        See `log_text`.
        """
        from adp_async._sansio.artifact_uris import artifact_name

        name = artifact_name(to)
        return self._upload_bytes(_drawn(figure, name), name)

    def _upload_bytes(self, data: bytes, to: str) -> Upload:
        return self._upload([(to, data)])[0]

    def _upload(self, found: Iterable[tuple[str, Path | bytes]], to: str = "") -> Uploads:
        """Upload files, or bytes, under their names in the folder *to*."""
        # With the first artifact: most runs have none.
        from adp_async._io.uploads import Job
        from adp_async._sansio.artifact_uris import artifact_name, folder_name

        found = list(found)
        names = list(map(artifact_name, [name for name, _ in found], repeat(folder_name(to))))
        jobs = [
            Job.of(self._run_id, name, content, self._artifact_uri)
            for name, (_, content) in zip(names, found, strict=True)
        ]
        self._uploader.add(jobs)
        return Uploads(Upload(job, self._uploader) for job in jobs)


class LenientArtifactWriter(ArtifactWriter):
    """The same for a run with ``strict=False``: what the others raise is a warning.

    The `Upload` that is returned then has failed, and says why.
    """

    if TYPE_CHECKING:

        def _warn(self, about: object, message: str) -> None: ...

    def log_artifact(self, path: str | PathLike[str], to: str = "") -> Upload:
        """As `Run.log_artifact`, but it raises nothing."""
        return self._attempt(path, partial(super().log_artifact, path, to))[0]

    def log_artifacts(self, folder: str | PathLike[str], to: str = "") -> Uploads:
        """As `Run.log_artifacts`, but it raises nothing."""
        return self._attempt(folder, partial(super().log_artifacts, folder, to))

    def log_text(self, text: str, to: str) -> Upload:
        """As `Run.log_text`, but it raises nothing."""
        return self._attempt(to, partial(super().log_text, text, to))[0]

    def log_dict(self, values: Mapping[str, object], to: str) -> Upload:
        """As `Run.log_dict`, but it raises nothing."""
        return self._attempt(to, partial(super().log_dict, values, to))[0]

    def log_figure(self, figure: Any, to: str) -> Upload:
        """As `Run.log_figure`, but it raises nothing."""
        return self._attempt(to, partial(super().log_figure, figure, to))[0]

    def _attempt(self, what: object, begin: Callable[[], Upload | Uploads]) -> Uploads:
        try:
            begun = begin()
        except Exception as error:  # a figure may raise anything
            said = isinstance(error, AdpError | TypeError | ValueError | OSError)
            problem = AdpError(str(error) if said else type_name(error))
            name = os.fspath(what) if isinstance(what, os.PathLike) else what
            self._warn(("artifact", shown(name)), f"artifact {shown(name)} is skipped: {problem}")
            return Uploads([self._failed(shown(name), problem)])
        return begun if isinstance(begun, Uploads) else Uploads([begun])

    def _failed(self, name: str, error: AdpError) -> Upload:
        from adp_async._io.uploads import Job

        job = Job.of(self._run_id, name, b"", self._artifact_uri)
        job.future.set_result(error)
        return Upload(job, self._uploader)


class BlockingSession(Protocol):
    """What an `ArtifactFolder` needs of an `adp_async.blocking.Session`."""

    session: Any

    def call(self, doing: Coroutine[Any, Any, T], /) -> T:
        """Wait for *doing*."""


@frozen
class ArtifactInfo:
    """One entry of a folder of artifacts.

    *name* is relative to the folder that was listed.  *size* is in bytes, None where it isn't known
    and for a folder.
    """

    name: str
    is_folder: bool = False
    size: int | None = None


class ArtifactFolder(ArtifactWriter):
    """The artifacts below one URI: to write, to list and to read back.

    *session* is an open `adp_async.blocking.Session`, *uri* ``oci://bucket@namespace/prefix`` or
    ``/Volumes/catalog/schema/volume/folder``; what is below a ``file:`` URI needs nobody to read
    it.  Experimental.  Failed uploads are reported by their handles only.
    """

    _run_id = ""

    def __init__(self, session: BlockingSession, uri: str) -> None:
        self.uri = uri
        self._artifact_uri = uri
        self._session = session

    @property
    def _uploader(self) -> Uploader:
        uploader: Uploader = self._session.session._uploader
        return uploader

    def entries(self, folder: str = "") -> list[ArtifactInfo]:
        """What *folder* holds; nothing when there is none.  Raises an `AdpError`."""
        from adp_async._sansio.artifact_uris import folder_name

        found = self._session.call(self._uploader.entries(self.uri, folder_name(folder)))
        return [
            ArtifactInfo(each.name, each.is_folder, each.size)
            for each in sorted(found, key=lambda each: each.name)
        ]

    def download(self, name: str, path: str | PathLike[str]) -> None:
        """Write the artifact *name* to the file *path*.  Raises `NotFound`, or other errors."""
        from adp_async._sansio.artifact_uris import artifact_name

        self._session.call(self._uploader.download(self.uri, artifact_name(name), _path(path)))

    def __repr__(self) -> str:
        return f"<ArtifactFolder {self.uri}>"


def _named(path: Path) -> str:
    from adp_async._io.streams import named  # only an error asks

    return named(path)


def _path(path: object) -> Path:
    found = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(found, str) or not found:
        raise TypeError(f"a path is a str or a Path, and not empty; not {shown(path)}")
    # Where a relative one is changes with the working folder.
    return Path(found).absolute()


def _file(path: object) -> Path:
    file = _path(path)
    if file.is_dir():
        raise IsADirectoryError(f"{_named(file)} is a folder; log_artifacts takes those")
    if not file.is_file():
        raise FileNotFoundError(f"{_named(file)} does not exist or is not a file")
    return file


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    for folder, folders, files in os.walk(root):
        folders.sort()
        for file in sorted(files):
            path = Path(folder, file)
            yield path.relative_to(root).as_posix(), path


def _drawn(figure: Any, name: str) -> bytes:
    ending = name.rpartition(".")[2] if "." in name.rpartition("/")[2] else ""
    if not ending:
        raise ValueError(f"the figure {shown(name)} needs an ending such as .png or .svg")
    if hasattr(figure, "savefig"):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=ending)
        return buffer.getvalue()
    if ending == "html" and hasattr(figure, "to_html"):
        html: str = figure.to_html()
        return html.encode()
    if hasattr(figure, "to_image"):
        return bytes(figure.to_image(format=ending))
    message = f"log_figure takes a figure with savefig or to_image, not {type_name(figure)}"
    raise TypeError(message)


def _plain(value: Any) -> object:
    """What `json` does not know: arrays, their numbers, and mappings of other kinds."""
    if callable(tolist := getattr(value, "tolist", None)):
        return tolist()
    if callable(items := getattr(value, "items", None)):
        return dict(items())
    raise TypeError(f"log_dict: JSON has no form for {type_name(value)}")
