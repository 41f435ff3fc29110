"""The embedded registry as any client of the distribution specification sees it."""

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from propeller.digests import digest_of
from propeller.errors import StartError, UnauthenticatedError
from propeller.oci.credentials import Login
from propeller.oci.layout import Layout
from propeller.oci.manifest import (
    EMPTY,
    EMPTY_CONFIG,
    IMAGE_MANIFEST,
    WASM,
    Descriptor,
    program_manifest,
)
from propeller.oci_registry.api import create_api
from propeller.process.settings import SettingsError
from propeller.web.auth import Admission, Principal
from support.registries import LOGIN, basic, embedded, wasm

BLOB = wasm(300_000)
DIGEST = digest_of(BLOB)


def browser(folder: Path, **options: Any) -> httpx.AsyncClient:
    app = create_api(Layout(folder), **options)
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://r"
    )


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with browser(tmp_path, max_blob=1_000_000) as client:
        yield client


def code(answer: httpx.Response) -> str:
    """The code of a spec-form error."""
    errors = answer.json()["errors"]
    assert set(errors[0]) >= {"code", "message"}
    return str(errors[0]["code"])


async def push_blob(http: httpx.AsyncClient, data: bytes, name: str = "a/b") -> str:
    answer = await http.post(f"/v2/{name}/blobs/uploads/", params={"digest": digest_of(data)}, content=data)
    assert answer.status_code == 201
    return digest_of(data)


async def push(
    http: httpx.AsyncClient, target: str = "v1", name: str = "a/b", **extra: Any
) -> httpx.Response:
    await push_blob(http, EMPTY, name)
    await push_blob(http, BLOB, name)
    document = json.loads(program_manifest(Descriptor.of(WASM, BLOB))) | extra
    headers = {"Content-Type": IMAGE_MANIFEST}
    return await http.put(f"/v2/{name}/manifests/{target}", content=json.dumps(document), headers=headers)


async def test_it_says_that_it_is_a_registry(http: httpx.AsyncClient) -> None:
    for path in ("/v2/", "/v2"):
        answer = await http.get(path)
        assert (answer.status_code, answer.json()) == (200, {})
        assert answer.headers["docker-distribution-api-version"] == "registry/2.0"
    assert (await http.get("/health")).json() == {"status": "ok"}
    assert "propeller_http_requests_total" in (await http.get("/metrics")).text


async def test_a_monolithic_upload(http: httpx.AsyncClient) -> None:
    begun = await http.post("/v2/a/b/blobs/uploads/")
    assert begun.status_code == 202
    assert begun.headers["range"] == "0-0"
    answer = await http.put(begun.headers["location"], params={"digest": DIGEST}, content=BLOB)
    assert answer.status_code == 201
    assert answer.headers["docker-content-digest"] == DIGEST
    got = await http.get(answer.headers["location"])
    assert got.content == BLOB
    assert got.headers["docker-content-digest"] == DIGEST
    assert (await http.put(begun.headers["location"], params={"digest": DIGEST})).status_code == 404


async def test_an_upload_in_chunks(http: httpx.AsyncClient) -> None:
    location = (await http.post("/v2/a/b/blobs/uploads/")).headers["location"]
    first, second, third = BLOB[:100_000], BLOB[100_000:250_000], BLOB[250_000:]
    answer = await http.patch(location, content=first, headers={"Content-Range": "0-99999"})
    assert (answer.status_code, answer.headers["range"]) == (202, "0-99999")
    out_of_order = await http.patch(location, content=third, headers={"Content-Range": "250000-299999"})
    assert (out_of_order.status_code, out_of_order.headers["range"]) == (416, "0-99999")
    assert (await http.patch(location, content=second)).headers["range"] == "0-249999"
    status = await http.get(location)
    assert (status.status_code, status.headers["range"]) == (204, "0-249999")
    answer = await http.put(location, params={"digest": DIGEST}, content=third)
    assert answer.status_code == 201
    assert (await http.get(f"/v2/other/blobs/{DIGEST}")).content == BLOB


async def test_ranges_and_heads(http: httpx.AsyncClient) -> None:
    await push_blob(http, BLOB)
    part = await http.get(f"/v2/a/b/blobs/{DIGEST}", headers={"Range": "bytes=4-7"})
    assert (part.status_code, part.content) == (206, BLOB[4:8])
    head = await http.head(f"/v2/a/b/blobs/{DIGEST}")
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(len(BLOB)), b"")


async def test_wrong_uploads(http: httpx.AsyncClient) -> None:
    wrong = digest_of(b"other")
    answer = await http.post("/v2/a/blobs/uploads/", params={"digest": wrong}, content=BLOB)
    assert (answer.status_code, code(answer)) == (400, "DIGEST_INVALID")
    answer = await http.post("/v2/a/blobs/uploads/", params={"digest": "sha256:12"}, content=BLOB)
    assert (answer.status_code, code(answer)) == (400, "DIGEST_INVALID")
    location = (await http.post("/v2/a/blobs/uploads/")).headers["location"]
    assert code(await http.put(location, content=BLOB)) == "DIGEST_INVALID"
    assert (await http.delete(location)).status_code == 204
    for call in (http.get, http.delete, http.patch, http.put):
        answer = await call(location, params={"digest": DIGEST})
        assert (answer.status_code, code(answer)) == (404, "BLOB_UPLOAD_UNKNOWN")
    answer = await http.patch(f"/v2/a/blobs/uploads/{'x' * 3000}", content=BLOB)
    assert (answer.status_code, code(answer)) == (404, "BLOB_UPLOAD_UNKNOWN")
    location = (await http.post("/v2/a/blobs/uploads/")).headers["location"]
    answer = await http.patch(location, content=b"x", headers={"Content-Range": f"{'9' * 5000}-0"})
    assert (answer.status_code, code(answer)) == (416, "BLOB_UPLOAD_INVALID")
    assert (await http.get(f"/v2/a/blobs/{wrong}")).status_code == 404


async def test_too_large_a_blob_is_refused_by_its_length_and_as_it_comes(
    http: httpx.AsyncClient, tmp_path: Path
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 100_000

    for content in (b"x" * 1_000_001, pieces()):
        answer = await http.post("/v2/a/blobs/uploads/", params={"digest": DIGEST}, content=content)
        assert (answer.status_code, code(answer)) == (413, "SIZE_INVALID")
    assert list((tmp_path / "uploads").iterdir()) == []


async def test_mounting_what_is_here(http: httpx.AsyncClient) -> None:
    await push_blob(http, BLOB, "a")
    mounted = await http.post("/v2/b/blobs/uploads/", params={"mount": DIGEST, "from": "a"})
    assert (mounted.status_code, mounted.headers["location"]) == (201, f"/v2/b/blobs/{DIGEST}")
    other = await http.post("/v2/b/blobs/uploads/", params={"mount": digest_of(b"no"), "from": "a"})
    assert other.status_code == 202


async def test_manifests_by_tag_and_digest(http: httpx.AsyncClient) -> None:
    answer = await push(http)
    assert answer.status_code == 201
    digest = answer.headers["docker-content-digest"]
    assert answer.headers["location"] == f"/v2/a/b/manifests/{digest}"
    for target in ("v1", digest):
        got = await http.get(f"/v2/a/b/manifests/{target}")
        assert digest_of(got.content) == digest == got.headers["docker-content-digest"]
        assert got.headers["content-type"] == IMAGE_MANIFEST
        head = await http.head(f"/v2/a/b/manifests/{target}")
        assert head.headers["docker-content-digest"] == digest
        assert head.headers["content-length"] == str(len(got.content))
    assert code(await http.get("/v2/a/b/manifests/v2")) == "MANIFEST_UNKNOWN"
    assert code(await http.get(f"/v2/a/manifests/{digest}")) == "MANIFEST_UNKNOWN"
    assert (await http.delete(f"/v2/a/b/manifests/{digest}")).status_code == 202
    assert (await http.delete("/v2/a/b/manifests/v1")).status_code == 404


async def test_wrong_manifests(http: httpx.AsyncClient) -> None:
    data = program_manifest(Descriptor.of(WASM, b"\0asm absent"))
    path, oci = "/v2/a/manifests/v1", {"Content-Type": IMAGE_MANIFEST}
    assert code(await http.put(path, content=data, headers=oci)) == "MANIFEST_BLOB_UNKNOWN"
    assert code(await http.put(path, content=data, headers={"Content-Type": "a/b"})) == "MANIFEST_INVALID"
    for body in (b"", b"[]", b"{", b'{"config": 3}', b'{"layers": [{}]}'):
        assert code(await http.put(path, content=body, headers=oci)) == "MANIFEST_INVALID"
    assert (
        code(await http.put(path, content=b'{"config":{"digest":"../x"}}', headers=oci)) == "DIGEST_INVALID"
    )
    assert code(await http.put(f"/v2/a/manifests/{DIGEST}", content=b"{}", headers=oci)) == "DIGEST_INVALID"
    for body in (
        b'{"mediaType": "a/b\\r\\nX-Evil: 1"}',
        '{"mediaType": "é☃/b"}'.encode(),
        b'{"mediaType": ""}',
        b'{"mediaType": 5}',
        b'{"annotations": NaN}',
        "{}".encode("utf-16"),
        b'{"layers": 5}',
        b'{"manifests": {}}',
    ):
        assert code(await http.put(path, content=body)) == "MANIFEST_INVALID", body
    large = await http.put(path, content=b" " * (4 * 1024 * 1024 + 1), headers=oci)
    assert (large.status_code, code(large)) == (413, "SIZE_INVALID")


async def test_tags_and_catalogue_in_pages(http: httpx.AsyncClient) -> None:
    for tag in ("v1", "v3", "v2"):
        await push(http, tag)
    await push(http, "x", "c")
    assert (await http.get("/v2/a/b/tags/list")).json() == {"name": "a/b", "tags": ["v1", "v2", "v3"]}
    page = await http.get("/v2/a/b/tags/list", params={"n": 2})
    assert page.json()["tags"] == ["v1", "v2"]
    rest = await http.get(page.links["next"]["url"])
    assert rest.json()["tags"] == ["v3"]
    assert "link" not in rest.headers
    assert (await http.get("/v2/a/b/tags/list", params={"n": 0})).json()["tags"] == []
    assert (await http.get("/v2/a/b/tags/list", params={"n": "x"})).status_code == 400
    assert (await http.get("/v2/_catalog")).json() == {"repositories": ["a/b", "c"]}
    assert (await http.get("/v2/_catalog", params={"last": "a/b"})).json() == {"repositories": ["c"]}
    assert code(await http.get("/v2/none/tags/list")) == "NAME_UNKNOWN"


async def test_referrers(http: httpx.AsyncClient) -> None:
    subject = (await push(http)).headers["docker-content-digest"]
    descriptor = {"mediaType": IMAGE_MANIFEST, "digest": subject, "size": 3}
    signature = await push(http, "sig", subject=descriptor, artifactType="a/signature")
    assert signature.headers["oci-subject"] == subject
    await push(http, "plain", subject=descriptor, artifactType=None)
    found = (await http.get(f"/v2/a/b/referrers/{subject}")).json()["manifests"]
    assert sorted(entry["artifactType"] for entry in found) == ["a/signature", EMPTY_CONFIG]
    some = await http.get(f"/v2/a/b/referrers/{subject}", params={"artifactType": "a/signature"})
    assert some.headers["oci-filters-applied"] == "artifactType"
    assert [entry["digest"] for entry in some.json()["manifests"]] == [
        signature.headers["docker-content-digest"]
    ]
    assert (await http.get(f"/v2/a/b/referrers/{DIGEST}")).json()["manifests"] == []


@pytest.mark.parametrize(
    "path",
    [
        "/v2/..%2f..%2fetc/blobs/uploads/", "/v2/A/blobs/uploads/", "/v2/a//b/blobs/uploads/",
        "/v2/a%00/blobs/uploads/", "/v2/.a/blobs/uploads/", f"/v2/{'a' * 300}/blobs/uploads/",
    ],
)  # fmt: skip
async def test_repository_names_are_checked(http: httpx.AsyncClient, path: str) -> None:
    answer = await http.post(path)
    assert (answer.status_code, code(answer)) == (400, "NAME_INVALID")


async def test_other_paths_and_methods_answer_in_the_same_form(http: httpx.AsyncClient) -> None:
    assert code(await http.get("/v2/a/nothing")) == "NAME_UNKNOWN"
    assert code(await http.get("/")) == "NAME_UNKNOWN"
    answer = await http.post("/v2/_catalog")
    assert (answer.status_code, code(answer)) == (405, "UNSUPPORTED")
    assert (await http.get("/v2/a/blobs/%2e%2e")).status_code in {400, 404}
    assert code(await http.get("/v2/a/manifests/-bad")) == "MANIFEST_INVALID"


async def test_what_is_unforeseen_says_nothing(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_layout: Layout) -> list[str]:
        raise RuntimeError("broken")

    monkeypatch.setattr(Layout, "list_repositories", fail)
    answer = await http.get("/v2/_catalog")
    assert (answer.status_code, code(answer)) == (500, "UNKNOWN")
    assert "broken" not in answer.text


async def test_it_asks_who_calls(tmp_path: Path) -> None:
    async with browser(tmp_path, login=Login(*LOGIN)) as http:
        for header in ({}, {"Authorization": basic(("user", "wrong"))}, {"Authorization": "Bearer x"}):
            answer = await http.get("/v2/", headers=header)
            assert (answer.status_code, code(answer)) == (401, "UNAUTHORIZED")
            assert answer.headers["www-authenticate"] == 'Basic realm="propeller"'
        assert (await http.get("/v2/", headers={"Authorization": basic(LOGIN)})).status_code == 200
        assert (await http.get("/health")).status_code == 200


async def test_it_is_not_open_to_a_network_by_accident(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="without authentication"):
        async with embedded(tmp_path, host="0.0.0.0"):
            pass
    with pytest.raises(SettingsError, match="set together"):
        async with embedded(tmp_path, username="user"):
            pass


async def test_a_folder_that_cannot_be_had(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match="set OCI_REGISTRY_FOLDER"):
        async with embedded(tmp_path / "file"):
            pass


async def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    async with embedded(tmp_path) as host, httpx.AsyncClient(base_url=f"http://{host}") as http:
        assert (await push(http)).status_code == 201
    async with embedded(tmp_path) as host, httpx.AsyncClient(base_url=f"http://{host}") as http:
        assert (await http.get("/v2/a/b/tags/list")).json()["tags"] == ["v1"]
        assert (await http.get(f"/v2/a/b/blobs/{DIGEST}")).content == BLOB


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo, a docker-style client, is not installed")
async def test_a_docker_style_client_pushes_and_pulls(tmp_path: Path) -> None:
    source = Layout(tmp_path / "source")
    source.store_blob(BLOB)
    config = b'{"architecture":"wasm","os":"wasi","rootfs":{"type":"layers","diff_ids":[]}}'
    source.store_blob(config)
    document = {
        "schemaVersion": 2,
        "mediaType": IMAGE_MANIFEST,
        "config": Descriptor.of("application/vnd.oci.image.config.v1+json", config).to_json(),
        "layers": [Descriptor.of("application/vnd.wasm.content.layer.v1+wasm", BLOB).to_json()],
    }
    stored = source.store_manifest("x", "v1", IMAGE_MANIFEST, json.dumps(document).encode())
    async with embedded(tmp_path / "registry", username=LOGIN[0], password=LOGIN[1]) as host:

        def skopeo(*arguments: str) -> str:
            done = subprocess.run(["skopeo", *arguments], capture_output=True, check=False, timeout=60)
            assert done.returncode == 0, done.stderr
            return done.stdout.decode()

        image, secret = f"docker://{host}/some/x:v1", ":".join(LOGIN)
        await asyncio.to_thread(
            skopeo,
            "copy",
            "--dest-tls-verify=false",
            f"--dest-creds={secret}",
            f"oci:{tmp_path / 'source'}:x:v1",
            image,
        )
        shown = await asyncio.to_thread(
            skopeo, "inspect", "--raw", "--tls-verify=false", f"--creds={secret}", image
        )
        assert digest_of(shown.encode()) == stored.digest
        await asyncio.to_thread(
            skopeo,
            "copy",
            "--src-tls-verify=false",
            f"--src-creds={secret}",
            image,
            f"dir:{tmp_path / 'back'}",
        )
    assert (tmp_path / "back" / DIGEST.removeprefix("sha256:")).read_bytes() == BLOB


async def test_services_that_identity_knows_pull_and_operators_push(tmp_path: Path) -> None:
    roles = {"Basic cHJveHk6aw==": "proxy", "Basic bWFuYWdlcjpr": "operator"}

    async def verify(header: str) -> Principal:
        if header not in roles:
            raise UnauthenticatedError("the key is wrong")
        return Principal("client", roles[header], roles[header])

    async with browser(tmp_path, admission=Admission(verify)) as http:
        assert (await http.get("/health")).status_code == 200
        for header, says in ((None, "credentials required"), ("Basic eDp5", "the key is wrong")):
            refused = await http.get("/v2/", headers={"authorization": header} if header else {})
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"].startswith("Basic")
            assert says in refused.json()["errors"][0]["message"]
        proxy, manager = ({"authorization": header} for header in roles)
        assert (await http.get("/v2/", headers=proxy)).status_code == 200
        denied = await http.post("/v2/a/b/blobs/uploads/", headers=proxy)
        assert (denied.status_code, denied.json()["errors"][0]["code"]) == (403, "DENIED")
        assert (await http.post("/v2/a/b/blobs/uploads/", headers=manager)).status_code == 202


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "manifests/v1"), ("HEAD", "manifests/v1"), ("GET", "tags/list"), ("DELETE", "manifests/v1")],
)
async def test_an_index_that_is_damaged_meanwhile_is_named_until_it_is_mended(
    http: httpx.AsyncClient, tmp_path: Path, method: str, path: str
) -> None:
    await push(http)
    manifest = (await http.get("/v2/a/b/manifests/v1")).content
    before = (tmp_path / "index.json").read_bytes()
    (tmp_path / "index.json").write_bytes(b"\xdf" + before[1:])
    with capture_logs() as logs:
        answer = await http.request(method, f"/v2/a/b/{path}")
        pushed = await http.put(
            "/v2/a/b/manifests/v2", content=manifest, headers={"content-type": IMAGE_MANIFEST}
        )
    assert (answer.status_code, pushed.status_code, code(pushed)) == (503, 503, "UNAVAILABLE")
    assert {entry["event"] for entry in logs} == {"the index cannot be read"}
    assert "index.json is damaged" in logs[0]["reason"]
    (tmp_path / "index.json").write_bytes(before)
    assert (await http.get("/v2/a/b/manifests/v1")).status_code == 200
