"""Artifacts: each way to store them, in the background, and how their failures are told."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import os
import threading
import time
import tracemalloc
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any

import pytest
from children import start, until

from adp_async import (
    AdpError,
    BufferFull,
    Closed,
    CustomSigner,
    DeliveryError,
    RetryPolicy,
    Run,
    Session,
    UploadError,
    blocking,
)
from adp_async._io import uploads
from adp_async._io.object_storage import ObjectStorage, endpoint_of
from adp_async._io.streams import CHUNK_BYTES
from adp_async.artifacts import ArtifactFolder
from adp_async.errors import ConfigurationError, NotFound
from adp_async.local import Fault, LocalPlatform
from adp_async.settings import Settings
from adp_async.testing import PLATFORM_ID, FakeBlockingSession, FakeSession

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from adp_async.local import Gateway

QUICK = RetryPolicy(first_backoff=0.01, max_backoff=0.02)
MIB = 2**20


@pytest.fixture
def gateway(bare_platform: LocalPlatform) -> Gateway:
    return bare_platform.gateway


@pytest.fixture
async def session(bare_platform: LocalPlatform) -> AsyncIterator[Session]:
    """What fails in a test is told by the handle, and once more when the session is closed."""
    with suppress(UploadError):
        async with bare_platform.session(retry=QUICK, linger=0.0, spool=False) as session:
            yield session


@pytest.fixture
async def run(session: Session) -> Run:
    """Its artifacts go to Object Storage."""
    return await session.start_run()


@pytest.fixture
async def volume_run(session: Session, bare_platform: LocalPlatform) -> Run:
    return await run_at(session, bare_platform.artifacts.add_volume("main.ml.files"))


async def run_at(session: Session, location: str) -> Run:
    """A run of an experiment whose artifacts belong to *location*."""
    name = f"experiment in {location}"
    experiment = await session.experiments.create(name, artifact_location=location)
    return await session.start_run(experiment_id=experiment)


def uri(run: Run, name: str) -> str:
    return f"{run._artifact_uri}/{name}"


# Each way -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["oci", "volume", "file"])
async def test_every_way(
    way: str, session: Session, bare_platform: LocalPlatform, tmp_path: Path
) -> None:
    """Files, folders, texts, dicts and figures arrive as they are, under their names."""
    artifacts = bare_platform.artifacts
    locations = {
        "oci": artifacts.add_bucket("models") + "/digits",
        "volume": artifacts.add_volume("main.ml.files") + "/digits",
        "file": (tmp_path / "store").as_uri(),
    }
    (tmp_path / "model.bin").write_bytes(os.urandom(3 * CHUNK_BYTES + 7))
    (tmp_path / "in" / "sub dir").mkdir(parents=True)
    (tmp_path / "in" / "empty").touch()
    (tmp_path / "in" / "sub dir" / "100%.txt").write_text("x")
    run = await run_at(session, locations[way])

    await run.log_artifact(tmp_path / "model.bin")
    await run.log_artifact(str(tmp_path / "model.bin"), to="copies/")
    await run.log_artifacts(tmp_path / "in", to="all")
    await run.log_text("größer", "notes/a b.txt")
    await run.log_dict({"lr": 0.1, "layers": [1, 2]}, "config.json")
    await run.log_figure(Figure(), "plots/loss.png")

    expected = {
        "model.bin": (tmp_path / "model.bin").read_bytes(),
        "copies/model.bin": (tmp_path / "model.bin").read_bytes(),
        "all/empty": b"",
        "all/sub dir/100%.txt": b"x",
        "notes/a b.txt": "größer".encode(),
        "plots/loss.png": b"png",
    }
    if way == "file":
        root = tmp_path / "store" / run.run_id / "artifacts"
        stored = {p.relative_to(root).as_posix(): p.read_bytes() for p in files_in(root)}
    else:
        stored = {n: artifacts.read(uri(run, n)) for n in artifacts.names(uri(run, ""))}
    assert json.loads(stored.pop("config.json")) == {"lr": 0.1, "layers": [1, 2]}
    assert stored == expected
    await run.finish()


def files_in(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


class Figure:
    """One as matplotlib has it, for what we need of it."""

    def savefig(self, target: Any, **options: str) -> None:
        target.write(options["format"].encode())


async def test_only_the_head_is_signed(run: Run, gateway: Gateway) -> None:
    """Date, target and host; the content is a stream with its length given."""
    gateway.record = True
    await run.log_text("text", "notes.txt")

    (put,) = (each for each in gateway.recorded if each.operation == "put_object")
    assert 'headers="date (request-target) host"' in put.headers["authorization"]
    assert "x-content-sha256" not in put.headers
    assert "transfer-encoding" not in put.headers
    assert put.headers["content-length"] == "4"
    assert put.headers["content-type"] == "text/plain"


async def test_a_wrong_signature_is_refused(run: Run, bare_platform: LocalPlatform) -> None:
    """The stand-in checks who signed, as the service does."""
    keys = bare_platform.gateway.verifier._keys
    keys.clear()

    with pytest.raises(UploadError, match="401 NotAuthenticated"):
        await run.log_text("text", "notes.txt")


async def test_a_volume_is_told_before_and_after(volume_run: Run, gateway: Gateway) -> None:
    """The platform gives an address that needs no signature, and hears when the content is there.

    The address is as good as a password: no signature goes there, and no path in a query.
    """
    gateway.record = True
    await volume_run.log_text("text", "notes.txt")

    create, put, close = (each for each in gateway.recorded if "volumes" in each.raw_path)
    assert create.headers["path"] == f"/{volume_run.run_id}/artifacts/notes.txt"
    assert "path=" not in create.raw_path
    assert "authorization" not in put.headers
    assert put.operation == "put_object"
    assert close.operation == "upload_file_with_par"


async def test_a_url_is_in_no_message(
    volume_run: Run, gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither in what is logged, at any level, nor in what is raised."""
    caplog.set_level(logging.DEBUG)
    gateway.inject(Fault.reply(500), times=2, operation="put_object")
    gateway.inject(Fault.reply(403, "Forbidden"), times=None, operation="put_object")

    with pytest.raises(UploadError) as caught:
        await volume_run.log_text("text", "notes.txt")

    tokens = volume_run._session._delivery and list(gateway.storage.artifacts._urls)  # type: ignore
    assert len(tokens) == 2
    told = caplog.text + repr(caught.value) + repr(caught.value.__cause__)
    assert not any(token in told for token in tokens)


async def test_a_url_that_has_expired_is_asked_for_anew(
    volume_run: Run, bare_platform: LocalPlatform, gateway: Gateway
) -> None:
    """It may take a while until the content leaves, or until a failure has passed."""
    gateway.inject(Fault.reply(404, "NotAuthorizedOrNotFound"), operation="put_object")
    await volume_run.log_text("text", "notes.txt")

    assert bare_platform.artifacts.read(uri(volume_run, "notes.txt")) == b"text"
    assert gateway.by_operation["upload_file_with_par"] == 3


async def test_a_volume_with_another_key(
    session: Session, bare_platform: LocalPlatform, gateway: Gateway
) -> None:
    """When the full name isn't its key, the volume is looked up, once."""
    artifacts = bare_platform.artifacts
    artifacts.add_volume("main.ml.files")
    server = gateway.storage
    assert server is not None
    server.aliases["main.ml.renamed"] = "main.ml.files"
    run = await run_at(session, "/Volumes/main/ml/renamed")
    await run.log_text("a", "a.txt")
    await run.log_text("b", "b.txt")

    assert artifacts.names(f"/Volumes/main/ml/files/{run.run_id}/artifacts") == ["a.txt", "b.txt"]
    assert gateway.by_operation["list_volumes"] == 1


async def test_a_volume_that_takes_no_close(
    volume_run: Run,
    gateway: Gateway,
    bare_platform: LocalPlatform,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The content is there; that the platform may not list it is a warning."""
    closing = iter([False, True])
    gateway.inject(
        Fault.reply(400, "InvalidParameter"),
        operation=lambda name: name == "upload_file_with_par" and next(closing),
    )
    await volume_run.log_text("text", "notes.txt")

    assert bare_platform.artifacts.read(uri(volume_run, "notes.txt")) == b"text"
    assert "may not list" in caplog.text


@pytest.mark.parametrize(
    ("location", "why"),
    [
        ("s3://bucket/x", "scheme 's3'.*artifact_location"),
        ("/somewhere", "no scheme.*artifact_location"),
        ("oci://nobody@local/x", "404 BucketNotFound"),
        ("/Volumes/main/ml/nobody", "404 NotAuthorizedOrNotFound: no such volume"),
    ],
)
async def test_nowhere_to_go(
    location: str, why: str, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    """Training goes on; the handle and the end of the run say why, the log says it once."""
    run = await run_at(session, location)
    first, second = run.log_text("a", "a.txt"), run.log_text("b", "b.txt")
    with pytest.raises(UploadError, match=why) as caught:
        await first

    assert caught.value.artifacts == ("a.txt",)
    assert caught.value.run_id == run.run_id
    assert caught.value.cause is not None
    await asyncio.wait([asyncio.ensure_future(ended(second))])
    with pytest.raises(UploadError, match=r"2 artifacts.*not uploaded: ") as at_the_end:
        await run.finish()
    assert sorted(at_the_end.value.artifacts) == ["a.txt", "b.txt"]
    assert run.status == "FINISHED"
    warnings = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert len([each for each in warnings if "is not uploaded" in each.getMessage()]) == 1


async def ended(upload: Any) -> None:
    while not upload.done:  # noqa: ASYNC110 - a look from outside is what is tested
        await asyncio.sleep(0.001)


# Parts --------------------------------------------------------------------------------------------


@pytest.fixture
def small_parts(session: Session) -> int:
    """Objects of more than 64 KiB go in parts."""
    session._uploader.part_bytes = 64 * 1024
    return 64 * 1024


async def test_parts(
    run: Run, small_parts: int, gateway: Gateway, bare_platform: LocalPlatform, tmp_path: Path
) -> None:
    """A large file arrives in parts, a few at once, and is one object at the end."""
    file = tmp_path / "model.bin"
    file.write_bytes(os.urandom(10 * small_parts + 1))
    gateway.latency = 0.05
    await run.log_artifact(file)

    assert bare_platform.artifacts.read(uri(run, "model.bin")) == file.read_bytes()
    assert gateway.by_operation["upload_part"] == 11
    assert gateway.by_operation["put_object"] == 0
    assert 2 <= gateway.max_concurrent <= 3
    assert bare_platform.artifacts.uploads == {}


async def test_the_limit_itself_is_no_part(
    run: Run, small_parts: int, gateway: Gateway, tmp_path: Path
) -> None:
    """A file of exactly the size goes at once."""
    (tmp_path / "model.bin").write_bytes(bytes(small_parts))
    await run.log_artifact(tmp_path / "model.bin")

    assert gateway.by_operation["put_object"] == 1


async def test_a_part_is_sent_again(
    run: Run, small_parts: int, gateway: Gateway, bare_platform: LocalPlatform, tmp_path: Path
) -> None:
    """A part that fails costs that part, not the file."""
    file = tmp_path / "model.bin"
    file.write_bytes(os.urandom(4 * small_parts))
    gateway.inject(Fault.reply(503), times=2, operation="upload_part")
    gateway.inject(Fault.drop(after_write=True), operation="upload_part")
    await run.log_artifact(file)

    assert bare_platform.artifacts.read(uri(run, "model.bin")) == file.read_bytes()
    assert gateway.by_operation["upload_part"] == 7


async def test_a_commit_whose_answer_is_lost(
    run: Run, small_parts: int, gateway: Gateway, bare_platform: LocalPlatform, tmp_path: Path
) -> None:
    """Asked again, there is no such upload any more: the object says that it was done."""
    (tmp_path / "model.bin").write_bytes(bytes(3 * small_parts))
    gateway.inject(Fault.drop(after_write=True), operation="commit_multipart_upload")
    await run.log_artifact(tmp_path / "model.bin")

    assert len(bare_platform.artifacts.read(uri(run, "model.bin"))) == 3 * small_parts


async def test_parts_of_a_failure_are_removed(
    run: Run, small_parts: int, gateway: Gateway, bare_platform: LocalPlatform, tmp_path: Path
) -> None:
    """Nobody pays for them."""
    (tmp_path / "model.bin").write_bytes(bytes(5 * small_parts))
    gateway.inject(Fault.reply(400, "InvalidPart"), operation="upload_part")
    with pytest.raises(UploadError, match="upload_part: 400 InvalidPart"):
        await run.log_artifact(tmp_path / "model.bin")

    assert gateway.by_operation["abort_multipart_upload"] == 1
    assert bare_platform.artifacts.uploads == {}
    assert files_in(bare_platform.artifacts.folder) == []


async def test_parts_that_cannot_be_removed(
    run: Run,
    small_parts: int,
    gateway: Gateway,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Somebody has to: it is said in a warning, and the reason of the failure stays."""
    (tmp_path / "model.bin").write_bytes(bytes(2 * small_parts))
    gateway.inject(Fault.reply(400, "No"), times=None, operation="commit_multipart_upload")
    gateway.inject(Fault.reply(403, "No"), times=None, operation="abort_multipart_upload")
    with pytest.raises(UploadError, match="commit_multipart_upload: 400"):
        await run.log_artifact(tmp_path / "model.bin")

    assert "stay in the bucket" in caplog.text


# What goes wrong on the way -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        Fault.reply(500),
        Fault.html(502),
        Fault.reply(429, "TooManyRequests"),
        Fault.drop(),
        Fault.drop(after_write=True),
        Fault.reply(200, body="", headers={"etag": "x", "opc-content-md5": "damaged"}),
    ],
    ids=["500", "proxy", "429", "reset", "lost", "damaged"],
)
async def test_it_is_tried_again(
    fault: Fault, run: Run, gateway: Gateway, bare_platform: LocalPlatform, tmp_path: Path
) -> None:
    """A failure that may pass is waited out, and the file is read anew."""
    file = tmp_path / "model.bin"
    file.write_bytes(os.urandom(2 * MIB))
    gateway.inject(fault, times=2, operation="put_object")
    await run.log_artifact(file)

    assert bare_platform.artifacts.read(uri(run, "model.bin")) == file.read_bytes()
    assert gateway.by_operation["put_object"] == 3


async def test_it_is_given_up(run: Run, gateway: Gateway) -> None:
    """After as many attempts as the retry policy says."""
    gateway.inject(Fault.reply(500), times=None, operation="put_object")
    with pytest.raises(UploadError, match="put_object: 500"):
        await run.log_text("text", "notes.txt")

    assert gateway.by_operation["put_object"] == QUICK.max_attempts


async def test_what_arrives_is_always_damaged(run: Run, gateway: Gateway) -> None:
    """It is not taken for a success, and not sent for ever."""
    damaged = {"etag": "x", "opc-content-md5": "damaged"}
    gateway.inject(Fault.reply(200, body="", headers=damaged), times=None, operation="put_object")
    with pytest.raises(UploadError, match="not what was sent"):
        await run.log_text("text", "notes.txt")

    assert gateway.by_operation["put_object"] == QUICK.max_attempts


@pytest.mark.parametrize(
    "url", ["", "http://example.com/p/x/o/y", "ftp://localhost/x", "not a url"]
)
async def test_a_url_that_nothing_is_sent_to(url: str, volume_run: Run, gateway: Gateway) -> None:
    """What the platform answers must be https, or this machine."""
    reply = json.dumps({"parUrl": url, "eTag": ""})
    gateway.inject(Fault.reply(200, body=reply), times=None, operation="upload_file_with_par")
    with pytest.raises(UploadError, match="no parUrl that can be used"):
        await volume_run.log_text("text", "notes.txt")

    assert gateway.by_operation["put_object"] == 0


async def test_an_answer_that_is_not_json(volume_run: Run, gateway: Gateway) -> None:
    """It is told as what it is."""
    gateway.inject(Fault.reply(200, body="hello"), times=None, operation="upload_file_with_par")
    with pytest.raises(UploadError, match="the answer is not the service's: 200"):
        await volume_run.log_text("text", "notes.txt")


async def test_what_nobody_thought_of(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected exception costs its upload; its words, which may hold anything, stay hidden."""

    def broken(uri: str) -> Any:
        raise RuntimeError("s3cr3t")

    with monkeypatch.context() as patch:
        patch.setattr("adp_async._io.uploads.place_of", broken)
        with pytest.raises(UploadError, match="failed with RuntimeError") as caught:
            await run.log_text("text", "notes.txt")
    await run.log_text("text", "other.txt")

    assert "s3cr3t" not in str(caught.value)


async def test_a_login_page_is_no_success(run: Run, gateway: Gateway) -> None:
    """A 200 without the etag of an object is somebody else's."""
    gateway.inject(
        Fault.reply(200, body="{}", headers={"etag": ""}), times=None, operation="put_object"
    )
    with pytest.raises(UploadError, match="not Object Storage's"):
        await run.log_text("text", "notes.txt")


async def test_retry_after_is_kept(run: Run, gateway: Gateway) -> None:
    """An upload is sent again when the time that the service asks for is over, and no sooner."""
    gateway.inject(
        Fault.reply(429, "TooManyRequests", headers={"retry-after": "1"}), operation="put_object"
    )
    began = time.monotonic()
    await run.log_text("text", "notes.txt")

    assert time.monotonic() - began >= 1.0
    assert gateway.by_operation["put_object"] == 2


async def test_metrics_do_not_wait_for_object_storage(bare_platform: LocalPlatform) -> None:
    """It has a throttle of its own: a hold of it is none of the platform's."""
    gateway = bare_platform.gateway
    throttled = Fault.reply(429, "TooManyRequests", headers={"retry-after": "60"})
    gateway.inject(throttled, operation="put_object")
    session = await bare_platform.session(close_timeout=0.1, spool=False).open()
    run = await session.start_run()
    upload = run.log_text("text", "notes.txt")
    await until(lambda: gateway.by_operation["put_object"] == 1)
    run.log_metric("loss", 0.5)
    async with asyncio.timeout(30):
        await run.flush()

    assert not upload.done
    with pytest.raises(UploadError, match=r"'notes\.txt'"):
        await session.close()


async def test_a_line_that_stands_still(bare_platform: LocalPlatform, tmp_path: Path) -> None:
    """An attempt is given up when nothing moves for ``timeout``, however large the file is."""
    (tmp_path / "model.bin").write_bytes(bytes(MIB))
    gateway = bare_platform.gateway
    gateway.inject(Fault.hang(), operation="put_object")
    async with bare_platform.session(retry=QUICK, timeout=0.3, spool=False) as session:
        run = await session.start_run()
        began = time.monotonic()
        async with asyncio.timeout(30):
            await run.log_artifact(tmp_path / "model.bin")

    assert time.monotonic() - began >= 0.3
    # (On a slow machine another attempt may take too long.)
    assert gateway.by_operation["put_object"] >= 2


async def test_a_slow_file_is_no_stall(bare_platform: LocalPlatform, tmp_path: Path) -> None:
    """As long as chunks leave, it may take longer than ``timeout``."""
    (tmp_path / "model.bin").write_bytes(bytes(6 * CHUNK_BYTES))
    async with bare_platform.session(retry=QUICK, timeout=1.5, spool=False) as session:
        run = await session.start_run()
        reader = session._uploader._reader()
        do = reader.do

        def slowly(function: Any, *arguments: Any) -> Any:
            time.sleep(0.3)
            return do(function, *arguments)

        reader.do = slowly  # type: ignore[method-assign]
        began = time.monotonic()
        await run.log_artifact(tmp_path / "model.bin")

    assert time.monotonic() - began > 1.6
    assert bare_platform.gateway.by_operation["put_object"] == 1


async def test_a_file_that_vanishes(run: Run, gateway: Gateway, tmp_path: Path) -> None:
    """It is read while it is uploaded: when it has gone by then, its handle says so."""
    file = tmp_path / "model.bin"
    file.write_bytes(bytes(100))
    gateway.latency = 0.05
    blockers = [run.log_text("x", f"{number}.txt") for number in range(4)]
    upload = run.log_artifact(file)
    file.unlink()
    with pytest.raises(UploadError, match=r"model.bin' cannot be read: No such file"):
        await upload
    with pytest.raises(UploadError, match=r"'model.bin'"):
        await run.finish()

    assert all(blocker.uploaded for blocker in blockers)


async def test_a_file_that_shrinks(run: Run, gateway: Gateway, tmp_path: Path) -> None:
    """What was promised cannot be sent; nothing half is stored, and nobody waits for the rest."""
    file = tmp_path / "model.bin"
    file.write_bytes(bytes(64 * CHUNK_BYTES))
    content = run._session._uploader
    measured = threading.Event()
    reader = content._reader()
    do = reader.do

    def watched(function: Any, *arguments: Any) -> Any:
        if function.__name__ == "read" and not measured.is_set():
            os.truncate(file, 10)
            measured.set()
        return do(function, *arguments)

    reader.do = watched  # type: ignore[method-assign]
    with pytest.raises(UploadError, match="became shorter"):
        await run.log_artifact(file)

    assert measured.is_set()
    # It may be over before the gateway has read its head; it is not tried again.
    assert gateway.by_operation["put_object"] <= 1


async def test_a_folder_with_a_pipe(run: Run, tmp_path: Path, bare_platform: LocalPlatform) -> None:
    """It would be waited for; the other files of the folder arrive."""
    (tmp_path / "in").mkdir()
    os.mkfifo(tmp_path / "in" / "pipe")
    (tmp_path / "in" / "text").write_text("x")
    (tmp_path / "in" / "dangling").symlink_to(tmp_path / "nowhere")
    uploads = run.log_artifacts(tmp_path / "in")
    with pytest.raises(UploadError, match="2 artifacts") as caught:
        await run.finish()

    assert sorted(caught.value.artifacts) == ["dangling", "pipe"]
    assert uploads.done
    assert not uploads.uploaded
    assert bare_platform.artifacts.names(uri(run, "")) == ["text"]


async def test_a_local_folder_that_cannot_be_written(session: Session, tmp_path: Path) -> None:
    """The folder is named, and nothing half stays behind."""
    (tmp_path / "taken").write_text("a file")
    run = await run_at(session, (tmp_path / "taken").as_uri())
    with pytest.raises(UploadError, match=r"taken.*cannot be written: Not a directory"):
        await run.log_text("x", "x.txt")

    assert files_in(tmp_path) == [p for p in files_in(tmp_path) if "partial" not in p.name]


async def test_a_signer_that_signs_bodies(bare_platform: LocalPlatform) -> None:
    """One that cannot leave the body alone is told what it has to take."""

    def sign(request: Any) -> None:
        request.headers["authorization"] = "Signature x"
        if request.body is not None:
            request.headers["x-content-sha256"] = hashlib.sha256(request.body).hexdigest()

    async with bare_platform.session(auth=CustomSigner(sign), spool=False) as session:
        run = session.attach_run("a" * 32)
        run._artifact_uri = "oci://artifacts@local/x"
        with pytest.raises(UploadError, match="enforce_content_headers=False"):
            await run.log_text("x", "x.txt")
        with pytest.raises(UploadError):
            await run._finish_uploads(1.0)


# How a run ends -----------------------------------------------------------------------------------


async def test_the_end_waits(session: Session, gateway: Gateway) -> None:
    """Leaving a run waits for its uploads, and then its status says that all is there."""
    gateway.latency = 0.1
    async with session.start_run() as run:
        upload = run.log_text("text", "notes.txt")
        assert not upload.done

    assert upload.uploaded
    assert run.status == "FINISHED"


@pytest.mark.parametrize("how", ["finish", "exit"])
async def test_the_end_waits_so_long_only(how: str, bare_platform: LocalPlatform) -> None:
    """What is not uploaded within ``close_timeout`` is named, by the run and by the session."""
    bare_platform.gateway.inject(Fault.hang(), times=None, operation="put_object")
    session = await bare_platform.session(close_timeout=1.0, spool=False).open()
    run = await session.start_run()
    upload = run.log_text("text", "slow.txt")
    began = time.monotonic()
    leave = run.finish() if how == "finish" else run.__aexit__(None, None, None)
    with pytest.raises(UploadError, match=r"'slow\.txt'.*session keeps trying") as caught:
        await leave
    assert caught.value.artifacts == ("slow.txt",)
    assert 0.7 <= time.monotonic() - began < 20.0
    with pytest.raises(UploadError, match=r"'slow\.txt'.*session is closed"):
        await session.close()

    assert time.monotonic() - began < 20.0
    with pytest.raises(UploadError, match="closed before"):
        await upload
    assert upload.done
    assert not upload.uploaded


async def test_the_body_comes_out_bare(session: Session, gateway: Gateway) -> None:
    """An upload that fails is a note on the body's own exception, which decides the status."""
    gateway.inject(Fault.reply(400, "No"), times=None, operation="put_object")
    runs = []

    async def train() -> None:
        async with session.start_run() as run:
            runs.append(run)
            run.log_text("text", "notes.txt")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        await train()

    assert runs[0].status == "FAILED"
    assert "UploadError" in "".join(caught.value.__notes__)


async def test_a_failure_is_told_once(session: Session, gateway: Gateway) -> None:
    """As a refused record: by the first end that comes, not by every one."""
    gateway.inject(Fault.reply(400, "No"), operation="put_object")
    run = await session.start_run()
    run.log_text("text", "notes.txt")
    with pytest.raises(UploadError):
        await run.finish()
    run.log_text("text", "other.txt")
    await run.finish()


async def test_the_session_tells_what_nobody_has(bare_platform: LocalPlatform) -> None:
    """A run that nobody finished: the failure comes out where the session is closed."""
    bare_platform.gateway.inject(Fault.reply(400, "No"), operation="put_object")
    session = await bare_platform.session(spool=False).open()
    (await session.start_run()).log_text("text", "notes.txt")
    with pytest.raises(UploadError, match=r"'notes\.txt'"):
        await session.close()


async def test_records_and_uploads_fail_together(bare_platform: LocalPlatform) -> None:
    """One is raised and the other noted; neither hides the other."""
    gateway = bare_platform.gateway
    gateway.inject(Fault.reply(400, "No"), times=None, operation="put_object")
    gateway.inject(Fault.reply(400, "No", "bad"), times=None, operation="log_experiment_run_batch")
    async with bare_platform.session(linger=0.0, spool=False) as session:
        run = await session.start_run()
        run.log_metric("loss", 0.5)
        run.log_text("text", "notes.txt")
        with pytest.raises(DeliveryError, match="metric 'loss'") as caught:
            await run._leave(None)

    assert any("notes.txt" in note for note in caught.value.__notes__)


async def test_closing_with_both_left(bare_platform: LocalPlatform) -> None:
    """Records and uploads that are left at the end are both told, within the same time."""
    bare_platform.gateway.inject(Fault.hang(), times=None)
    run_id = bare_platform.gateway.add_run()
    session = await bare_platform.session(close_timeout=0.5, linger=0.0, spool=False).open()
    run = session.attach_run(run_id)
    run.log_metric("loss", 0.5)
    run.log_text("text", "notes.txt")
    began = time.monotonic()
    with pytest.raises(DeliveryError, match="1 record") as caught:
        await session.close()

    assert time.monotonic() - began < 20.0
    assert any("notes.txt" in note for note in caught.value.__notes__)


# Waiting, order, threads --------------------------------------------------------------------------


async def test_who_stops_waiting_stops_nothing(
    run: Run, gateway: Gateway, bare_platform: LocalPlatform
) -> None:
    """A timeout or a cancellation is the waiter's affair."""
    gateway.latency = 0.1
    upload = run.log_text("text", "notes.txt")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await upload
    assert not upload.done
    await upload

    assert bare_platform.artifacts.read(uri(run, "notes.txt")) == b"text"


async def test_a_cancelled_body(session: Session, gateway: Gateway) -> None:
    """Its run is KILLED, and what was handed in is uploaded all the same."""
    gateway.latency = 0.05

    async def train() -> None:
        async with session.start_run() as run:
            uploads.append(run.log_text("text", "notes.txt"))
            runs.append(run)
            await asyncio.sleep(60)

    uploads: list[Any] = []
    runs: list[Run] = []
    task = asyncio.create_task(train())
    await until(lambda: bool(runs))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert uploads[0].uploaded
    assert runs[0].status == "KILLED"


async def test_the_last_one_wins(run: Run, gateway: Gateway, bare_platform: LocalPlatform) -> None:
    """Uploads of one name take effect in the order of the calls, retries included."""
    gateway.inject(Fault.reply(500), times=3, operation="put_object")
    uploads = [run.log_text(str(number), "status.txt") for number in range(10)]
    await run.finish()

    assert bare_platform.artifacts.read(uri(run, "status.txt")) == b"9"
    assert all(upload.uploaded for upload in uploads)


async def test_only_some_at_once(run: Run, gateway: Gateway) -> None:
    """A thousand files are no thousand connections."""
    gateway.latency = 0.01
    gateway.reset_counts()
    for number in range(60):
        run.log_text("x", f"{number}.txt")
    await run.finish()

    assert gateway.max_concurrent <= 4


async def test_memory_is_bounded(run: Run, bare_platform: LocalPlatform, tmp_path: Path) -> None:
    """A file is never in memory as a whole."""
    size = 64 * MIB
    with (tmp_path / "model.bin").open("wb") as file:
        file.truncate(size)
    await run.log_text("warm", "up.txt")
    tracemalloc.start()
    try:
        await run.log_artifact(tmp_path / "model.bin")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    stored = bare_platform.artifacts.find("artifacts", uri(run, "model.bin").partition("local/")[2])
    assert stored is not None
    assert stored.size == size
    assert peak < 8 * MIB


async def test_texts_that_wait_are_bounded(bare_platform: LocalPlatform) -> None:
    """They are in memory, which has a limit; it is free again when they are uploaded."""
    async with bare_platform.session(buffer_limit=1000, spool=False) as session:
        run = await session.start_run()
        first = run.log_text("x" * 800, "first.txt")
        with pytest.raises(BufferFull, match=r"800 bytes.*buffer_limit is 1,000"):
            run.log_text("x" * 800, "second.txt")
        await first
        await run.log_text("x" * 800, "second.txt")


async def test_any_thread_and_any_loop(session: Session, bare_platform: LocalPlatform) -> None:
    """Handed in and waited for in threads, and on other event loops."""
    run = await session.start_run()

    def in_thread(number: int) -> None:
        run.log_text(str(number), f"{number}/wait.txt").wait(60)

        async def here() -> None:
            await run.log_text(str(number), f"{number}/loop.txt")

        asyncio.run(here())

    await asyncio.gather(*(asyncio.to_thread(in_thread, number) for number in range(4)))

    names = bare_platform.artifacts.names(uri(run, ""))
    assert names == [f"{number}/{way}.txt" for number in range(4) for way in ("loop", "wait")]


async def test_after_the_end(bare_platform: LocalPlatform) -> None:
    """A closed session takes no artifacts; what was uploaded stays so."""
    async with bare_platform.session(spool=False) as session:
        run = await session.start_run()
        upload = run.log_text("x", "x.txt")
    await upload
    with pytest.raises(Closed):
        run.log_text("x", "y.txt")


async def test_the_address_is_asked_for_once(session: Session, gateway: Gateway) -> None:
    """A run that is attached does not know where its artifacts go."""
    run = session.attach_run(gateway.add_run())
    await asyncio.gather(*(run.log_text("x", f"{number}.txt") for number in range(5)))

    assert gateway.by_operation["get_experiment_run_by_id"] == 1


async def test_a_run_that_is_not_there(session: Session) -> None:
    """Nor can anybody say where its artifacts go."""
    run = session.attach_run("0" * 32)
    with pytest.raises(UploadError, match="get_experiment_run_by_id: 404") as caught:
        await run.log_text("x", "x.txt")
    assert isinstance(caught.value.cause, NotFound)
    with pytest.raises(UploadError):
        await run._finish_uploads(1.0)


# The blocking face --------------------------------------------------------------------------------


@pytest.fixture
def background_platform(api_key: Any, tmp_path: Path) -> Iterator[LocalPlatform]:
    platform = LocalPlatform(tmp_path / "platform", mlflow=False, key=api_key)
    with platform:
        yield platform


def knobs(platform: LocalPlatform) -> dict[str, Any]:
    session = platform.session(spool=False, retry=QUICK)
    names = ("endpoint", "auth", "spool", "retry", "platform_id", "workspace")
    return {name: getattr(session.settings, name) for name in names}


def test_blocking(background_platform: LocalPlatform, tmp_path: Path) -> None:
    """The same methods; the handle has ``wait``."""
    (tmp_path / "model.bin").write_bytes(b"model")
    with blocking.start_run(**knobs(background_platform)) as run:
        uploads = run.log_artifacts(tmp_path, to="in")
        background_platform.gateway.latency = 2.0
        slow = run.log_text("slow", "slow.txt")
        with pytest.raises(TimeoutError):
            slow.wait(0.01)
        background_platform.gateway.latency = 0.0
        uploads.wait(60)
        run.log_figure(Figure(), "a.svg").wait(60)
        root = run._artifact_uri

    names = background_platform.artifacts.names(f"{root}/")
    assert {"in/model.bin", "slow.txt", "a.svg"} < set(names)


def test_blocking_failures(background_platform: LocalPlatform) -> None:
    """Told by the handle and by the exit; the session is closed all the same."""
    gateway = background_platform.gateway
    gateway.inject(Fault.reply(400, "No"), times=None, operation="put_object")
    run = blocking.start_run(**knobs(background_platform))
    upload = run.log_text("text", "notes.txt")
    with pytest.raises(UploadError):
        upload.wait(60)
    with pytest.raises(UploadError, match=r"'notes\.txt'"):
        run.finish()

    assert run.status == "FINISHED"
    with pytest.raises(Closed):
        run.log_text("text", "notes.txt")


@pytest.fixture
def background_session(background_platform: LocalPlatform) -> Iterator[blocking.Session]:
    with blocking.Session(**knobs(background_platform)) as session:
        yield session


@pytest.mark.parametrize("way", ["oci", "volume"])
def test_reading_back(
    way: str,
    background_session: blocking.Session,
    background_platform: LocalPlatform,
    tmp_path: Path,
) -> None:
    """What is below a URI can be written, listed and read, a page and a range after the other."""
    artifacts = background_platform.artifacts
    root = artifacts.add_bucket("b") if way == "oci" else artifacts.add_volume("c.s.v")
    folder = ArtifactFolder(background_session, f"{root}/models/")
    names = ["model.bin", "conf/a b.json", "conf/deep/x", "empty"]
    contents = {name: os.urandom(100) for name in names} | {"empty": b""}
    for name, content in contents.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(content)
    folder.log_artifacts(tmp_path / "in").wait(60)

    found = {each.name: (each.is_folder, each.size) for each in folder.entries()}
    sizes = (100, 0) if way == "oci" else (None, None)
    assert found == {
        "conf": (True, None),
        "empty": (False, sizes[1]),
        "model.bin": (False, sizes[0]),
    }
    assert [each.name for each in folder.entries("conf")] == ["a b.json", "deep"]
    assert folder.entries("model.bin") == folder.entries("nowhere") == []
    for name, content in contents.items():
        folder.download(name, tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == content
    with pytest.raises(NotFound):
        folder.download("nowhere", tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(AdpError, match="cannot be written: Is a directory"):
        folder.download("model.bin", tmp_path)


def test_a_long_listing(
    background_session: blocking.Session,
    background_platform: LocalPlatform,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It comes in pages."""
    monkeypatch.setattr("adp_async.local.storage._PAGE", 2)
    artifacts = background_platform.artifacts
    for root in (artifacts.add_bucket("b"), artifacts.add_volume("c.s.v")):
        folder = ArtifactFolder(background_session, root)
        for number in range(7):
            folder.log_text("x", f"{number}.txt").wait(60)

        assert [each.name for each in folder.entries()] == [f"{n}.txt" for n in range(7)]


def test_a_large_download(
    background_session: blocking.Session,
    background_platform: LocalPlatform,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """It comes in ranges, also when the last one is full."""
    monkeypatch.setattr("adp_async._io.object_storage.RANGE_BYTES", 1000)
    folder = ArtifactFolder(background_session, background_platform.artifacts.add_bucket("b"))
    for size in (999, 1000, 2500):
        content = os.urandom(size)
        (tmp_path / "in").write_bytes(content)
        folder.log_artifact(tmp_path / "in").wait(60)
        folder.download("in", tmp_path / "out")

        assert (tmp_path / "out").read_bytes() == content


@pytest.mark.parametrize("size", [1500, 2500, 3500])
@pytest.mark.parametrize("way", ["oci", "volume"])
def test_a_download_of_what_is_overwritten(
    background_session: blocking.Session,
    background_platform: LocalPlatform,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    way: str,
    size: int,
) -> None:
    """Half of one version and half of another is an error, whatever their sizes are."""
    monkeypatch.setattr("adp_async._io.object_storage.RANGE_BYTES", 1000)
    artifacts = background_platform.artifacts
    root = artifacts.add_bucket("b") if way == "oci" else artifacts.add_volume("c.s.v")
    folder = ArtifactFolder(background_session, root)
    folder.log_text("a" * 3500, "in").wait(60)
    ranges, ask = [], ObjectStorage._range

    async def overwritten(self: ObjectStorage, url: str, *arguments: Any) -> Any:
        ranges.append(await ask(self, url, *arguments))
        if len(ranges) == 2:
            await folder.log_text("b" * size, "in")
        return ranges[-1]

    monkeypatch.setattr(ObjectStorage, "_range", overwritten)
    with pytest.raises(AdpError, match="get_object: the artifact was overwritten while"):
        folder.download("in", tmp_path / "out")
    folder.download("in", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "b" * size


def test_a_folder_that_fails(
    background_session: blocking.Session, background_platform: LocalPlatform, tmp_path: Path
) -> None:
    """Its uploads are told by their handles alone, and what cannot be read says why."""
    folder = ArtifactFolder(background_session, "oci://nobody@local/x")
    with pytest.raises(UploadError, match=r"artifact 'x\.txt' is not uploaded.*BucketNotFound"):
        folder.log_text("x", "x.txt").wait(60)
    with pytest.raises(NotFound, match="BucketNotFound"):
        folder.entries()
    with pytest.raises(ConfigurationError, match="read it there"):
        ArtifactFolder(background_session, "file:///tmp").entries()
    with pytest.raises(ConfigurationError, match="scheme 's3'"):
        ArtifactFolder(background_session, "s3://x").download("y", tmp_path / "y")


FORKED = """
    import os, sys, time
    from adp_async import Closed, blocking

    session = blocking.Session().open()
    run = session.start_run()
    upload = run.log_text("parent", "parent.txt")
    pid = os.fork()
    if pid == 0:
        run.log_text("child", "child.txt").wait(60)
        try:
            upload.wait(30)
        except Closed:
            with blocking.Session() as own:
                own.attach_run(run.run_id).log_text("child", "own.txt").wait(60)
            os._exit(0)
        os._exit(3)
    assert os.waitpid(pid, 0)[1] == 0
    upload.wait(60)
    run.finish()
    session.close()
    print(run._artifact_uri)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
async def test_a_forked_child(bare_platform: LocalPlatform, tmp_path: Path) -> None:
    """The parent's uploads are the parent's; the inherited run and a session of its own work."""
    busy = Fault.reply(503, headers={"retry-after": "2"})  # it is under way at the fork
    bare_platform.gateway.inject(busy, operation="put_object")
    child = await start(bare_platform, tmp_path, FORKED)
    code, out, errors = await child.ends()
    assert code == 0, errors
    root = out.strip()

    assert bare_platform.artifacts.names(root) == ["child.txt", "own.txt", "parent.txt"]


LEFT_OPEN = """
    from adp_async import blocking

    run = blocking.Session().open().start_run()
    run.log_text("text", "notes.txt")
    print(run._artifact_uri, flush=True)
"""


async def test_the_interpreter_ends(bare_platform: LocalPlatform, tmp_path: Path) -> None:
    """A session that nobody closed uploads what it has, as it delivers its records."""
    bare_platform.gateway.latency = 0.2
    child = await start(bare_platform, tmp_path, LEFT_OPEN)
    root = (await child.ends_well()).strip()

    assert bare_platform.artifacts.names(root) == ["notes.txt"]


# What callers hand in -----------------------------------------------------------------------------


@pytest.fixture
def fake_run() -> Iterator[blocking.Run]:
    with FakeBlockingSession() as session:
        yield session.start_run()


def test_paths(fake_run: blocking.Run, tmp_path: Path) -> None:
    """A mistake is told at the call, and nothing is begun."""
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match="nowhere' does not exist"):
        fake_run.log_artifact(tmp_path / "nowhere")
    with pytest.raises(IsADirectoryError, match="log_artifacts takes those"):
        fake_run.log_artifact(tmp_path)
    with pytest.raises(NotADirectoryError, match="is not a folder"):
        fake_run.log_artifacts(tmp_path / "file")
    with pytest.raises(TypeError, match="a path is a str or a Path"):
        fake_run.log_artifact(b"file")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'\.\.'"):
        fake_run.log_artifact(tmp_path / "file", to="../up")
    with pytest.raises(ValueError, match="empty"):
        fake_run.log_text("x", "")
    with pytest.raises(TypeError, match="log_text takes a str, not bytes"):
        fake_run.log_text(b"x", "x.txt")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="surrogate"):
        fake_run.log_text("\ud800", "x.txt")
    with pytest.raises(TypeError, match="log_dict takes a mapping, not list"):
        fake_run.log_dict([1], "x.json")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="JSON has no form for object"):
        fake_run.log_dict({"x": object()}, "x.json")
    assert not fake_run._uploader.has_any(fake_run.run_id)


def test_a_relative_path(
    fake_run: blocking.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It means the file that it meant at the call."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("here")
    upload = fake_run.log_artifact("file")
    monkeypatch.chdir("/")
    upload.wait(60)

    assert received(fake_run) == {"file": b"here"}


def received(run: blocking.Run) -> dict[str, bytes]:
    session: FakeSession = run._session.session  # type: ignore[assignment]
    return session.received(run.run_id).artifacts


def test_values_of_a_dict(fake_run: blocking.Run) -> None:
    """Arrays, their numbers and other mappings are plain JSON; NaN is as Python writes it."""
    numpy = pytest.importorskip("numpy")
    values = {
        "array": numpy.arange(3),
        "number": numpy.float64(0.5),
        "nan": math.nan,
        "mapping": os.environ.__class__({"a": "b"}, str, str, str, str),
    }
    fake_run.log_dict(values, "x.json").wait(60)

    found = json.loads(received(fake_run)["x.json"])
    assert math.isnan(found.pop("nan"))
    assert found == {"array": [0, 1, 2], "number": 0.5, "mapping": {"a": "b"}}


class Broken:
    """A figure that cannot be drawn."""

    def savefig(self, target: Any, **options: str) -> None:
        raise RuntimeError("s3cr3t")


@pytest.mark.parametrize("kind", [FakeSession, FakeBlockingSession])
async def test_strict_off(kind: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing raises; a handle and a warning say what was skipped, and the rest is uploaded."""
    async with AsyncExitStack() as stack:
        if kind is FakeSession:
            session = await stack.enter_async_context(kind())
            run = await session.start_run(strict=False)
        else:
            run = stack.enter_context(kind()).start_run(strict=False)
            session = run._session.session
        failed = [
            run.log_artifact(tmp_path / "nowhere"),
            *run.log_artifacts(tmp_path / "nowhere"),
            run.log_text("x", "../x"),
            run.log_dict([], "x.json"),
            run.log_figure(Broken(), "x.png"),
        ]
        good = run.log_text("x", "x.txt")
        for upload in failed:
            assert upload.done
            assert not upload.uploaded
            with pytest.raises(UploadError):
                upload.wait(0)
        await asyncio.to_thread(good.wait, 60)

    assert session.received(run.run_id).artifacts == {"x.txt": b"x"}
    assert len([each for each in caplog.records if "is skipped" in each.message]) == 4
    assert "s3cr3t" not in caplog.text


class Plot:
    """One as plotly has it."""

    def to_html(self) -> str:
        return "<html>"

    def to_image(self, **options: str) -> bytes:
        return options["format"].encode()


def test_figures(fake_run: blocking.Run) -> None:
    """The ending says how it is drawn, at once."""
    fake_run.log_figure(Figure(), "a.png").wait(60)
    fake_run.log_figure(Plot(), "b.html").wait(60)
    fake_run.log_figure(Plot(), "b.svg").wait(60)
    with pytest.raises(ValueError, match="needs an ending"):
        fake_run.log_figure(Figure(), "plots.d/a")
    with pytest.raises(TypeError, match="not int"):
        fake_run.log_figure(7, "a.png")

    assert received(fake_run) == {"a.png": b"png", "b.html": b"<html>", "b.svg": b"svg"}


def test_matplotlib(fake_run: blocking.Run) -> None:
    """A real one, which may be closed or drawn over right after."""
    figure = pytest.importorskip("matplotlib.figure").Figure()
    figure.subplots().plot([1, 2, 3])
    upload = fake_run.log_figure(figure, "loss.png")
    figure.clear()
    upload.wait(60)

    assert received(fake_run)["loss.png"].startswith(b"\x89PNG")


def test_handles_show_themselves(fake_run: blocking.Run) -> None:
    """What they are, and how far."""
    upload = fake_run.log_text("x", "x.txt")
    assert (upload.name, upload.run_id) == ("x.txt", fake_run.run_id)
    upload.wait(60)

    assert repr(upload) == "<Upload 'x.txt' uploaded>"


def test_waiting_where_it_would_hang(fake_run: blocking.Run) -> None:
    """The session's own event loop cannot wait for itself."""
    thread = fake_run._session._thread
    assert thread is not None

    async def wait() -> None:
        fake_run.log_text("x", "x.txt").wait(60)

    with pytest.raises(Closed, match="would block"):
        thread.wait(wait())


# Where Object Storage is --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "credentials_region", "expected"),
    [
        (
            {"endpoint": "https://aidp.eu-frankfurt-1.oci.oraclecloud.com", "region": "iad"},
            "us-phoenix-1",
            "https://objectstorage.eu-frankfurt-1.oraclecloud.com",
        ),
        (
            {"endpoint": "https://aidp.example.com", "region": "iad"},
            "us-phoenix-1",
            "https://objectstorage.us-ashburn-1.oraclecloud.com",
        ),
        (
            {"endpoint": "https://aidp.example.com"},
            "us-phoenix-1",
            "https://objectstorage.us-phoenix-1.oraclecloud.com",
        ),
        ({"endpoint": "http://127.0.0.1:8000/api"}, "us-phoenix-1", "http://127.0.0.1:8000"),
        (
            {"endpoint": "http://127.0.0.1:8000", "object_storage_endpoint": "https://os.example/"},
            None,
            "https://os.example",
        ),
    ],
)
def test_the_endpoint(given: dict[str, str], credentials_region: str | None, expected: str) -> None:
    """In the platform's region; beside a platform of this machine; or as the setting says."""
    settings = Settings.resolve({"platform_id": PLATFORM_ID, **given}, {})

    assert endpoint_of(settings, credentials_region) == expected


def test_no_endpoint() -> None:
    """Nobody names a region: the error names the setting."""
    given = {"platform_id": PLATFORM_ID, "endpoint": "https://aidp.example.com"}
    with pytest.raises(ConfigurationError, match="object_storage_endpoint is missing"):
        endpoint_of(Settings.resolve(given, {}), None)


async def test_of_many_artifacts_a_few_are_named(run: Run, gateway: Gateway) -> None:
    """The message stays short, however many of them failed."""
    gateway.inject(Fault.reply(403, "NotAuthorized"), times=9, operation="put_object")
    for number in range(9):
        run.log_text("x", f"{number}.txt")
    with pytest.raises(
        UploadError, match=r"^9 artifacts of run \w+ \(('\d\.txt', ){5}\.\.\.\) "
    ) as caught:
        await run.finish()
    assert str(caught.value).count(".txt'") == 5, "those that failed first"


async def test_a_commit_that_finds_nothing(
    run: Run, small_parts: int, gateway: Gateway, tmp_path: Path
) -> None:
    """There is no such upload, and no such object: it was not done, and the handle says so."""
    (tmp_path / "model.bin").write_bytes(bytes(3 * small_parts))
    gone = Fault.reply(404, "NoSuchUpload")
    gateway.inject(gone, times=None, operation="commit_multipart_upload")
    with pytest.raises(UploadError, match="404 NoSuchUpload"):
        await run.log_artifact(tmp_path / "model.bin")


def test_a_download_that_is_refused(
    background_session: blocking.Session, background_platform: LocalPlatform, tmp_path: Path
) -> None:
    """The service's own reason; what a file was before stays."""
    (tmp_path / "out").write_text("before")
    root = background_platform.artifacts.add_bucket("b")
    folder = ArtifactFolder(background_session, root)
    folder.log_text("x", "x.txt").wait(60)
    background_platform.gateway.inject(Fault.reply(400, "Odd"), operation="get_object")
    with pytest.raises(AdpError, match="400 Odd"):
        folder.download("x.txt", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "before"


async def test_failures_that_nobody_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend logs texts into runs that it never finishes: memory does not grow with them."""
    monkeypatch.setattr(uploads, "KEPT_RUNS", 3)
    monkeypatch.setattr(uploads, "KEPT_FAILURES", 5)
    session = await FakeSession(buffer_limit=MIB).open()
    session.answer("get_experiment_run_by_id", status=403)
    tracemalloc.start()
    try:
        for number in range(20):
            with pytest.raises(UploadError):
                await session.attach_run(f"run {number}").log_text("x" * MIB, "a.txt")
        memory = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert memory < 4 * MIB
    with pytest.raises(UploadError, match="5 artifacts of 5 runs") as caught:
        await session.close()
    assert len(caught.value.artifacts) == 5
    uploader = session._uploader
    assert (len(uploader._uris), len(uploader._reported)) == (3, 3)
