"""Whatever is sent to the embedded registry, its answer is one of the specification, and what it keeps stays whole."""

import asyncio
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
from hypothesis import given, settings
from hypothesis import strategies as st

from propeller.digests import digest_of
from propeller.oci.layout import Layout
from propeller.oci.manifest import IMAGE_MANIFEST
from propeller.oci_registry.api import create_api
from support.oci_requests import CONTENTS, try_requests


@given(st.data())
async def test_whatever_is_sent_is_answered_and_what_is_kept_stays_whole(data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        layout = Layout(Path(folder))
        for content in CONTENTS:
            layout.store_blob(content)
        app = create_api(layout, max_blob=100_000)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://r") as http:
            await try_requests(data, app.routes, http.request, count=20)
        reopened = Layout(Path(folder))
        for repository in reopened.list_repositories():
            for entry in reopened.list_manifests(repository):
                path = reopened.find_blob(entry.digest)
                if path is not None:
                    assert isinstance(json.loads(path.read_bytes()), dict)
        for blob in (Path(folder) / "blobs" / "sha256").iterdir():
            assert digest_of(blob.read_bytes()) == f"sha256:{blob.name}"


@given(st.permutations(["PATCH", "PATCH", "PUT", "PUT", "DELETE", "GET"]))
async def test_requests_for_one_upload_at_the_same_time(methods: list[str]) -> None:
    """Whoever comes too late is told that there is no such upload."""
    with TemporaryDirectory() as folder:
        app = create_api(Layout(Path(folder)))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://r") as http:
            upload = (await http.post("/v2/a/blobs/uploads/")).headers["location"]
            digest = digest_of(CONTENTS[1])
            sent = (
                http.request(each, upload, params={"digest": digest}, content=CONTENTS[1]) for each in methods
            )
            answers = await asyncio.gather(*sent)
        assert {answer.status_code for answer in answers} <= {201, 202, 204, 400, 404}


@given(st.permutations(["GET", "GET", "DELETE", "GET"]))
@settings(max_examples=20)
async def test_a_blob_or_manifest_that_goes_while_it_is_asked_for(methods: list[str]) -> None:
    with TemporaryDirectory() as folder:
        layout = Layout(Path(folder))
        digest = layout.store_blob(CONTENTS[1])
        manifest = layout.store_manifest("a", "v1", IMAGE_MANIFEST, b"{}").digest
        app = create_api(layout)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://r") as http:
            paths = [f"/v2/a/blobs/{digest}", "/v2/a/manifests/v1", f"/v2/a/blobs/{manifest}"]
            sent = [http.request(method, path, content=b"{}") for method in methods for path in paths]
            answers = await asyncio.gather(*sent)
        assert {answer.status_code for answer in answers} <= {200, 201, 202, 400, 404, 405}
