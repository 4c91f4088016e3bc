"""The stand-ins for Object Storage and volumes refuse what the real ones would."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from adp_async._sansio.messages import Request

if TYPE_CHECKING:
    from adp_async.local import LocalPlatform

OBJECTS = "/n/local/b/models"


async def asked(
    platform: LocalPlatform, method: str, path: str, *, signed: bool = True, **given: Any
) -> tuple[int, str]:
    """The status and the code of the answer to a request."""
    headers, body = given.get("headers", {}), given.get("body")
    if body is not None:
        headers = {**headers, "content-type": "application/json"}
    request = Request(method, f"{platform.endpoint}{path}", headers, body)
    async with platform.session() as session, aiohttp.ClientSession() as client:
        if signed:
            request = await session._engine.auth.sign(request)
        url = aiohttp.client.URL(request.url, encoded=True)
        async with client.request(method, url, headers=request.headers, data=request.body) as reply:
            content = await reply.read()
            code = (await reply.json()).get("code", "") if content[:1] == b"{" else ""
            return reply.status, code


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
    namespace = storage.artifacts.add_bucket("models").partition("@")[2].partition("/")[0]
    path = path.format(
        bucket=f"/n/{namespace}/b/models",
        namespace=f"/n/{namespace}",
        platform=f"/20260430/aiDataPlatforms/{storage.platform_id}",
        other="/20260430/aiDataPlatforms/ocid1.aidataplatform.oc1.iad.other",
    )
    assert await asked(storage, method, path, **given) == answer
