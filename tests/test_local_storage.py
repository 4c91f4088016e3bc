"""The stand-ins for Object Storage and volumes refuse what the real ones would."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from adp_async._sansio.messages import Request, Signing
from adp_async.local import LocalPlatform
from adp_async.local.objects import VOLUMES_BUCKET, Artifacts

if TYPE_CHECKING:
    from pathlib import Path


async def asked(
    platform: LocalPlatform, method: str, path: str, *, signed: bool = True, **given: Any
) -> tuple[int, Any]:
    """The status of the answer to a request, and its JSON, or what it is else."""
    headers, body = given.get("headers", {}), given.get("body")
    if body is not None:
        headers = {**headers, "content-type": "application/json"}
    signing = Signing.HEAD if "content" in given else Signing.WHOLE
    url = f"{platform.endpoint}{path}"
    request = Request(method, url, headers, body or given.get("content"), signing=signing)
    async with platform.session() as session, aiohttp.ClientSession() as client:
        if signed:
            request = await session._engine.auth.sign(request)
        url = aiohttp.client.URL(request.url, encoded=True)
        async with client.request(method, url, headers=request.headers, data=request.body) as reply:
            content = await reply.read()
            return reply.status, json.loads(content) if content[:1] == b"{" else content


@pytest.fixture
def storage(bare_platform: LocalPlatform) -> LocalPlatform:
    """A bucket, a volume and a file in it."""
    place = bare_platform.artifacts.add_bucket("models")
    assert place.startswith("oci://models@")
    bare_platform.artifacts.add_volume("main.ml.files")
    return bare_platform


REFUSED = {
    "no operation": ("PATCH", "{bucket}/o/x", {}, (404, "NotAuthorizedOrNotFound")),
    "not signed": ("GET", "{bucket}/o/x", {"signed": False}, (401, "NotAuthenticated")),
    "no bucket": ("GET", "{namespace}/b/other/o/x", {}, (404, "BucketNotFound")),
    "no object": ("GET", "{bucket}/o/x", {}, (404, "ObjectNotFound")),
    "nameless upload": ("POST", "{bucket}/u", {"body": b"{}"}, (400, "InvalidParameter")),
    "not JSON": ("POST", "{bucket}/u", {"body": b"{"}, (400, "InvalidParameter")),
    "no upload": ("DELETE", "{bucket}/u/x?uploadId=7", {}, (404, "NoSuchUpload")),
    "no platform": ("GET", "{other}/volumes", {}, (404, "NotAuthorizedOrNotFound")),
    "no volume": (
        "GET", "{platform}/volumes/other/actions/listFiles", {}, (404, "NotAuthorizedOrNotFound"),
    ),
    "no URL": ("GET", "/p/token{bucket}/o/x", {"signed": False}, (404, "NotAuthorizedOrNotFound")),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
async def test_what_is_refused(storage: LocalPlatform, what: str) -> None:
    """With the status and the code of the real ones, as far as these are known."""
    method, path, given, answer = REFUSED[what]
    path = path.format(
        bucket=bucket_of(storage),
        namespace=bucket_of(storage).removesuffix("/b/models"),
        platform=f"/20260430/aiDataPlatforms/{storage.platform_id}",
        other="/20260430/aiDataPlatforms/ocid1.aidataplatform.oc1.iad.other",
    )
    status, reply = await asked(storage, method, path, **given)
    assert (status, reply["code"]) == answer


def bucket_of(platform: LocalPlatform) -> str:
    namespace = platform.artifacts.add_bucket("models").partition("@")[2].partition("/")[0]
    return f"/n/{namespace}/b/models"


async def test_an_upload_in_parts_is_checked(storage: LocalPlatform) -> None:
    """A part has a number from 1 on, may come again, and is committed by its etag."""
    bucket = bucket_of(storage)
    _, upload = await asked(storage, "POST", f"{bucket}/u", body=b'{"object": "big"}')
    where = f"{bucket}/u/big?uploadId={upload['uploadId']}"
    for number, status in ((0, 400), (1, 200), (1, 200)):
        part = f"{where}&uploadPartNum={number}"
        assert (await asked(storage, "PUT", part, content=b"12345"))[0] == status
    wrong = b'{"partsToCommit": [{"partNum": 1, "etag": "other"}]}'
    status, reply = await asked(storage, "POST", where, body=wrong)
    assert (status, reply["code"]) == (400, "InvalidUploadPart")
    assert (await asked(storage, "DELETE", where))[0] == 204


async def test_an_object_is_read_whole_or_in_part(storage: LocalPlatform) -> None:
    """A range that begins behind its end is refused."""
    place = f"{bucket_of(storage)}/o/small"
    assert (await asked(storage, "PUT", place, content=b"12345"))[0] == 200
    assert await asked(storage, "GET", place) == (200, b"12345")
    for asked_for, answer in (("bytes=1-2", (206, b"23")), ("bytes=3-", (206, b"45"))):
        assert await asked(storage, "GET", place, headers={"range": asked_for}) == answer
    assert (await asked(storage, "GET", place, headers={"range": "bytes=9-"}))[0] == 416


@pytest.mark.parametrize(
    ("path", "action", "query", "status"),
    [
        ("", "CREATE", "", 400),
        ("folder/", "CREATE", "", 400),
        ("deep/in/file", "CREATE", "", 404),
        ("deep/in/file", "CREATE", "?shouldCreateRecursively=true", 200),
        ("file", "UPDATE", "", 409),
        ("file", "CREATE", "", 200),
    ],
)
async def test_a_file_of_a_volume(
    storage: LocalPlatform, path: str, action: str, query: str, status: int
) -> None:
    """It has a path, its folder is there or is made, and only what is there is completed."""
    key = next(iter(storage.artifacts.volumes))
    volume = f"/20260430/aiDataPlatforms/{storage.platform_id}/volumes/{key}"
    body = json.dumps({"action": action, "size": 5, "eTag": "other"}).encode()
    where = f"{volume}/actions/uploadFileMeta{query}"
    answer = await asked(storage, "POST", where, headers={"path": path}, body=body)
    assert answer[0] == status


def test_what_is_kept_is_there_after_a_restart(tmp_path: Path) -> None:
    """Buckets, volumes and what is in them."""
    before = Artifacts.in_folder(tmp_path)
    for bucket, name in (("models", "big"), (VOLUMES_BUCKET, "main.ml.files/small")):
        incoming = before.incoming()
        incoming.write(b"12345")
        before.keep(bucket, name, "text/plain", incoming)
    after = Artifacts.in_folder(tmp_path)

    assert "models" in after.buckets
    assert "main.ml.files" in after.volumes
    namespace = after.add_bucket("models")
    assert after.names(namespace) == ["big"]
    with pytest.raises(KeyError, match="neither oci://"):
        after.names("s3://models")


def test_urls_expire_on_request(tmp_path: Path) -> None:
    """What was given out before is not valid any more."""
    artifacts = Artifacts.in_folder(tmp_path)
    token = artifacts.pre_authenticate("file", "PUT")
    assert artifacts.is_allowed(token, "file", "PUT")
    artifacts.expire_urls()
    assert not artifacts.is_allowed(token, "file", "PUT")


@pytest.mark.parametrize("what", ["artifacts", "config_file"])
def test_a_platform_that_is_not_started_says_so(what: str) -> None:
    """There is nothing to show yet."""
    with pytest.raises(RuntimeError, match="is not started"):
        getattr(LocalPlatform(mlflow=False), what)
