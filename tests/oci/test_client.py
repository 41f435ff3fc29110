"""The client against real registries, and against ones that misbehave."""

import asyncio
import contextlib
import io
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from propeller.digests import digest_of
from propeller.functions import SECTION, with_functions
from propeller.oci import errors, manifest
from propeller.oci.client import RegistryClient
from propeller.oci.credentials import Credential, Login, Token
from propeller.oci.layout import Layout
from propeller.oci.manifest import Descriptor
from propeller.oci.reference import Reference
from propeller.oci_registry.api import create_api
from support.net import free_port
from support.registries import LOGIN, basic, debian, embedded, find_unverified, serving, wasm

PROGRAM = wasm(1_300_000)


def client(logins: dict[str, Credential] | None = None, **options: Any) -> RegistryClient:
    return RegistryClient(logins, **{"retry_delays": (0.01, 0.01), **options})


@contextlib.asynccontextmanager
async def registry(kind: str, folder: Path) -> AsyncIterator[tuple[str, dict[str, Credential]]]:
    """A registry, and the logins it wants."""
    private = kind.endswith("private")
    async with contextlib.AsyncExitStack() as stack:
        if kind.startswith("embedded"):
            given = {"username": LOGIN[0], "password": LOGIN[1]} if private else {}
            host = await stack.enter_async_context(embedded(folder, **given))
        else:
            host = stack.enter_context(debian(folder, LOGIN if private else None))
        yield host, {host: Login(*LOGIN)} if private else {}


KINDS = ["embedded", "embedded private", "debian", "debian private"]


@pytest.mark.parametrize("kind", KINDS)
async def test_push_resolve_pull(kind: str, tmp_path: Path) -> None:
    async with registry(kind, tmp_path) as (host, logins), client(logins) as one:
        reference = Reference.parse(f"{host}/user/fl-client-wasm:v1")
        seen: list[tuple[int, int]] = []
        (tmp_path / "fl-client.wasm").write_bytes(PROGRAM)
        pushed = await one.push(reference, tmp_path / "fl-client.wasm", progress=lambda *at: seen.append(at))
        assert seen[-1] == (len(PROGRAM), len(PROGRAM))
        assert seen == sorted(seen)
        assert pushed.program.digest == digest_of(PROGRAM)
        assert await one.resolve(reference) == pushed
        assert pushed.program.annotations == {manifest.TITLE: "fl-client.wasm"}
        pulled, data = await one.pull(reference, progress=lambda *at: seen.append(at))
        assert (pulled, data) == (pushed, PROGRAM)
        by_digest = Reference.parse(f"{host}/user/fl-client-wasm@{pushed.digest}")
        assert await one.pull(by_digest) == (pushed, PROGRAM)
        # The same again sends nothing, and is the same artifact.
        assert await one.push(reference, PROGRAM, title="fl-client.wasm") == pushed
        said = await one.push(reference, with_functions(PROGRAM[:8], ["train"]), title="fl-client.wasm")
        assert (await one.resolve(reference)).program == said.program
        assert said.program.annotations == {manifest.TITLE: "fl-client.wasm", SECTION: "train"}
        with pytest.raises(errors.ArtifactNotFoundError, match="404") as caught:
            await one.pull(Reference.parse(f"{host}/user/fl-client-wasm:v2"))
        assert "exactly the name" in caught.value.remedy
        with pytest.raises(errors.ArtifactNotFoundError):
            await one.fetch(reference, digest_of(b"nothing"), io.BytesIO())


@pytest.mark.parametrize("kind", ["embedded private", "debian private"])
@pytest.mark.parametrize("credential", [None, Login("user", "wrong"), Token("wrong")])
async def test_wrong_credentials_say_what_to_set(
    kind: str, credential: Credential | None, tmp_path: Path
) -> None:
    async with registry(kind, tmp_path) as (host, _):
        logins: dict[str, Credential] = {} if credential is None else {host: credential}
        async with client(logins) as one:
            for call in (
                one.pull(Reference.parse(f"{host}/x")),
                one.push(Reference.parse(f"{host}/x"), PROGRAM),
            ):
                with pytest.raises(errors.RegistryLoginError, match="401") as caught:
                    await call
                assert f"docker login {host}" in caught.value.remedy
                assert "wrong" not in str(caught.value)


async def test_a_tampered_blob_or_manifest_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Layout, "find_blob", find_unverified)
    async with embedded(tmp_path) as host, client() as one:
        reference = Reference.parse(f"{host}/x")
        pushed = await one.push(reference, PROGRAM)
        blob = Layout(tmp_path).find_blob(pushed.program.digest)
        assert blob is not None
        blob.write_bytes(PROGRAM[:-1] + b"!")
        with pytest.raises(errors.DigestMismatchError):
            await one.pull(reference)
        blob.write_bytes(PROGRAM + b"!")
        with pytest.raises(errors.DigestMismatchError):
            await one.pull(reference)
        blob.write_bytes(PROGRAM[:-1])
        with pytest.raises(errors.DigestMismatchError):
            await one.pull(reference)
        document = Layout(tmp_path).find_blob(pushed.digest)
        assert document is not None
        document.write_bytes(document.read_bytes().replace(b"application/wasm", b"application/msaw"))
        with pytest.raises(errors.DigestMismatchError, match="manifest"):
            await one.pull(reference)


async def test_too_large_is_refused_before_and_while_it_comes(tmp_path: Path) -> None:
    async with embedded(tmp_path) as host, client() as one, client(max_bytes=1_000_000) as small:
        reference = Reference.parse(f"{host}/x")
        pushed = await one.push(reference, PROGRAM)
        for call in (
            small.pull(reference),
            small.fetch(reference, pushed.program.digest, io.BytesIO()),
        ):
            with pytest.raises(errors.ArtifactTooLargeError, match="1300000 bytes"):
                await call


async def store(host: str, folder: Path, layers: list[tuple[str, bytes]], name: str = "x") -> Reference:
    """Put an artifact with some layers into the embedded registry's folder."""
    layout = Layout(folder)
    for data in [manifest.EMPTY, *(data for _, data in layers)]:
        layout.store_blob(data)
    document = {
        "schemaVersion": 2,
        "config": Descriptor.of(manifest.EMPTY_CONFIG, manifest.EMPTY).to_json(),
        "layers": [Descriptor.of(kind, data).to_json() for kind, data in layers],
    }
    layout.store_manifest(name, "latest", manifest.IMAGE_MANIFEST, json.dumps(document).encode())
    return Reference.parse(f"{host}/{name}")


async def test_which_layer_is_the_program(tmp_path: Path) -> None:
    other, text = wasm(2000, seed=3), ("text/plain", b"hello world")
    async with embedded(tmp_path) as host, client() as one:
        for layers in (
            [("application/vnd.wasm.content.layer.v1+wasm", other), text],
            [("application/octet-stream", other)],
            [text, ("text/plain", b""), ("application/octet-stream", other)],
        ):
            reference = await store(host, tmp_path, layers)
            assert (await one.pull(reference))[1] == other
        for layers, said in (
            ([text], "no Wasm layer"),
            ([], "no Wasm layer"),
            ([("application/wasm", other), ("application/wasm", PROGRAM)], "2 Wasm layers"),
            ([("application/wasm", b"hello world")], "not a Wasm module"),
        ):
            reference = await store(host, tmp_path, layers)
            with pytest.raises(errors.UnsupportedArtifactError, match=said):
                await one.pull(reference)
        Layout(tmp_path).store_manifest("x", "latest", manifest.IMAGE_INDEX, b'{"manifests":[]}')
        with pytest.raises(errors.UnsupportedArtifactError, match="image index"):
            await one.pull(reference)


async def test_an_index_with_one_image_for_wasm_is_followed(tmp_path: Path) -> None:
    """As docker buildx makes one, with an attestation beside the image."""
    async with embedded(tmp_path) as host, client() as one:
        reference = Reference.parse(f"{host}/x")
        pushed = await one.push(reference, PROGRAM)
        entries = [
            {"mediaType": manifest.IMAGE_MANIFEST, "digest": digest, "size": 1, "platform": platform}
            for digest, platform in (
                (pushed.digest, {"architecture": "wasm", "os": "wasip1"}),
                ("sha256:" + "0" * 64, {"architecture": "unknown", "os": "unknown"}),
            )
        ]
        index = json.dumps({"mediaType": manifest.IMAGE_INDEX, "manifests": entries}).encode()
        Layout(tmp_path).store_manifest("x", "both", manifest.IMAGE_INDEX, index)
        artifact, content = await one.pull(Reference.parse(f"{host}/x:both"))
        assert (artifact.digest, content) == (pushed.digest, PROGRAM)


async def test_what_cannot_be_pushed(tmp_path: Path) -> None:
    async with client() as one:
        with pytest.raises(errors.UnsupportedArtifactError, match="not a Wasm"):
            await one.push(Reference.parse("localhost/x"), b"hello")
        with pytest.raises(errors.InvalidReferenceError, match="push to a digest"):
            await one.push(Reference.parse(f"localhost/x@{digest_of(b'')}"), PROGRAM)


class ManifestDict(dict[str, bytes]):
    """Manifests by digest."""

    def put(self, digest: str, data: bytes) -> None:
        self[digest] = data


async def test_a_kept_manifest_makes_digests_independent_of_the_registry(tmp_path: Path) -> None:
    manifests = ManifestDict()
    async with client(manifests=manifests) as one:
        async with embedded(tmp_path) as host:
            pushed = await one.push(Reference.parse(f"{host}/x"), PROGRAM)
            reference = Reference.parse(f"{host}/x@{pushed.digest}")
            assert await one.resolve(reference) == pushed
        assert list(manifests) == [pushed.digest]
        assert await one.resolve(reference) == pushed


# A registry behind a token server, as GHCR and Docker Hub are


class TokenRegistry:
    """The embedded registry behind the token flow; counts what is asked of it."""

    def __init__(self, folder: Path, token_port: int) -> None:
        self.asked: list[tuple[str, str | None]] = []
        self.port = token_port
        self.faults: list[int] = []
        self._inner = create_api(Layout(folder))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            header = dict(scope["headers"]).get(b"authorization", b"").decode()
            needs = "pull,push" if scope["method"] in {"POST", "PUT"} else "pull"
            name = scope["path"].removeprefix("/v2/").split("/manifests/")[0].split("/blobs/")[0]
            if not header.startswith("Bearer good-") or needs not in header:
                challenge = (
                    f'Bearer realm="http://127.0.0.1:{self.port}/token",service="r",'
                    f'scope="repository:{name}:{needs}"'
                )
                body = {"errors": [{"code": "UNAUTHORIZED", "message": "token please"}]}
                await JSONResponse(body, 401, {"WWW-Authenticate": challenge})(scope, receive, send)
                return
        await self._inner(scope, receive, send)

    def tokens(self) -> Starlette:
        async def token(request: Request) -> Response:
            self.asked.append((request.query_params["scope"], request.headers.get("authorization")))
            assert request.query_params["service"] == "r"
            if self.faults:
                return Response(status_code=self.faults.pop())
            scope = request.query_params["scope"]
            if request.headers.get("authorization") != basic(LOGIN):
                return JSONResponse({"errors": [{"code": "DENIED"}]}, 403)
            return JSONResponse({"token": f"good-{scope}", "expires_in": 300})

        return Starlette(routes=[Route("/token", token)])


async def test_the_token_flow_asks_once_for_a_scope(tmp_path: Path) -> None:
    port, token_port = free_port(), free_port()
    behind = TokenRegistry(tmp_path, token_port)
    async with serving(behind, port), serving(behind.tokens(), token_port):
        host = f"127.0.0.1:{port}"
        async with client({host: Login(*LOGIN)}) as one:
            reference = Reference.parse(f"{host}/u/x")
            await one.push(reference, PROGRAM)
            for _ in range(3):
                assert (await one.pull(reference))[1] == PROGRAM
        assert [scope for scope, _ in behind.asked] == [
            "repository:u/x:pull",
            "repository:u/x:pull,push",
            "repository:u/x:pull",
        ]


async def test_a_token_server_that_is_busy_is_asked_again(tmp_path: Path) -> None:
    port, token_port = free_port(), free_port()
    behind = TokenRegistry(tmp_path, token_port)
    behind.faults = [503, 500]
    async with serving(behind, port), serving(behind.tokens(), token_port):
        host = f"127.0.0.1:{port}"
        async with client({host: Login(*LOGIN)}) as one:
            await one.push(Reference.parse(f"{host}/u/x"), PROGRAM)
    assert behind.faults == []


async def test_a_token_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    port, token_port = free_port(), free_port()
    async with serving(TokenRegistry(tmp_path, token_port), port), client() as one:
        with pytest.raises(
            errors.RegistryUnreachableError, match=f"127.0.0.1:{token_port} cannot be reached"
        ):
            await one.pull(Reference.parse(f"127.0.0.1:{port}/u/x"))
    behind = Starlette(routes=[Route("/other", lambda _request: Response())])
    async with (
        serving(TokenRegistry(tmp_path, token_port), port),
        serving(behind, token_port),
        client() as one,
    ):
        with pytest.raises(errors.RegistryError, match=r"the token server of .* answered 404") as caught:
            await one.pull(Reference.parse(f"127.0.0.1:{port}/u/x"))
        assert "push" not in caught.value.remedy


async def test_a_token_that_does_not_allow_it_is_said_so(tmp_path: Path) -> None:
    async def refuse(_request: Request) -> Response:
        return Response(status_code=401, headers={"WWW-Authenticate": 'Bearer error="insufficient_scope"'})

    app = Starlette(routes=[Route("/{path:path}", refuse)])
    async with serving(app) as port, client({f"127.0.0.1:{port}": Token("secret")}) as one:
        with pytest.raises(errors.RegistryRefusedError, match="no permission for this repository") as caught:
            await one.pull(Reference.parse(f"127.0.0.1:{port}/u/x"))
        assert "read:packages" in caught.value.remedy


async def test_a_token_server_that_refuses(tmp_path: Path) -> None:
    port, token_port = free_port(), free_port()
    behind = TokenRegistry(tmp_path, token_port)
    async with serving(behind, port), serving(behind.tokens(), token_port), client() as one:
        with pytest.raises(errors.RegistryRefusedError, match="403 Forbidden") as caught:
            await one.pull(Reference.parse(f"127.0.0.1:{port}/u/x"))
        assert "read:packages" in caught.value.remedy
        assert behind.asked == [("repository:u/x:pull", None)]


@pytest.mark.parametrize("credential", [Login(*LOGIN), Token("secret")])
async def test_credentials_do_not_follow_a_redirect(credential: Credential, tmp_path: Path) -> None:
    port, other = free_port(), free_port()
    seen: list[str | None] = []
    program = Descriptor.of(manifest.WASM, PROGRAM)

    async def elsewhere(request: Request) -> Response:
        seen.append(request.headers.get("authorization"))
        if request.query_params.get("deny"):
            return Response(status_code=401, headers={"WWW-Authenticate": 'Basic realm="phishing"'})
        return Response(PROGRAM)

    async def home(request: Request) -> Response:
        if request.headers.get("authorization") not in {basic(LOGIN), "Bearer secret"}:
            return Response(status_code=401, headers={"WWW-Authenticate": 'Basic realm="r"'})
        if "/blobs/" in request.url.path:
            return RedirectResponse(f"http://127.0.0.1:{other}/blob?{request.url.query}", 307)
        data = manifest.program_manifest(program)
        return Response(data, headers={"Docker-Content-Digest": digest_of(data)})

    async with (
        serving(Starlette(routes=[Route("/{path:path}", home)]), port),
        serving(Starlette(routes=[Route("/{path:path}", elsewhere)]), other),
        client({f"127.0.0.1:{port}": credential}) as one,
    ):
        assert (await one.pull(Reference.parse(f"127.0.0.1:{port}/x")))[1] == PROGRAM
        assert seen == [None]


async def test_a_registry_that_hangs_is_given_up_in_time(tmp_path: Path) -> None:
    over = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        await writer.wait_closed()
        over.set()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, client(idle_timeout=0.2) as one:
        begun = time.monotonic()
        with pytest.raises(errors.RegistryTimeoutError, match=r"did not answer within 0\.2 s"):
            await one.pull(Reference.parse(f"127.0.0.1:{port}/x"))
        assert time.monotonic() - begun < 5
        await one.aclose()
        await over.wait()


async def test_a_registry_that_trickles_is_given_up_in_time(tmp_path: Path) -> None:
    async def trickle(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        with contextlib.suppress(OSError):
            for _ in range(1000):
                await send({"type": "http.response.body", "body": b" ", "more_body": True})
                await asyncio.sleep(0.05)

    async with server_without_lifespan(trickle) as port, client(idle_timeout=5, total_timeout=0.3) as one:
        with pytest.raises(errors.RegistryTimeoutError, match=r"within 0\.3 s"):
            await one.fetch(Reference.parse(f"127.0.0.1:{port}/x"), digest_of(b""), io.BytesIO())


@contextlib.asynccontextmanager
async def server_without_lifespan(app: Any) -> AsyncIterator[int]:
    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for kind in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{kind}.complete"})
            return
        await app(scope, receive, send)

    async with serving(wrapped) as port:
        yield port


async def test_nothing_listens(tmp_path: Path) -> None:
    async with client() as one:
        with pytest.raises(errors.RegistryUnreachableError, match="cannot be reached"):
            await one.pull(Reference.parse(f"127.0.0.1:{free_port()}/x"))


async def test_plain_http_where_https_was_asked_for_says_what_to_write(tmp_path: Path) -> None:
    async with embedded(tmp_path) as host, client() as one:
        with pytest.raises(errors.RegistryUnreachableError) as caught:
            await one.pull(Reference.parse(f"https://{host}/x"))
        assert f"http://{host}" in caught.value.remedy


async def test_transient_faults_are_tried_again(tmp_path: Path) -> None:
    faults = {"HEAD": [503, 429], "GET": [500, 502], "POST": [504], "PUT": [503]}
    inner = create_api(Layout(tmp_path))

    async def flaky(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and faults.get(scope["method"]):
            await Response(status_code=faults[scope["method"]].pop())(scope, receive, send)
            return
        await inner(scope, receive, send)

    async with serving(flaky) as port, client(retry_delays=(0.01,) * 4) as one:
        reference = Reference.parse(f"127.0.0.1:{port}/x")
        await one.push(reference, PROGRAM)
        assert (await one.pull(reference))[1] == PROGRAM
    assert faults == {"HEAD": [], "GET": [], "POST": [], "PUT": []}


async def test_a_broken_transfer_begins_again(tmp_path: Path) -> None:
    breaks = [1, 1]

    async def breaking(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            f"HTTP/1.1 200 OK\r\nContent-Length: {len(PROGRAM)}\r\nConnection: close\r\n\r\n".encode()
        )
        writer.write(PROGRAM[: 500_000 if breaks else None])
        if breaks:
            breaks.pop()
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(breaking, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    sink = io.BytesIO()
    async with server, client() as one:
        assert await one.fetch(Reference.parse(f"127.0.0.1:{port}/x"), digest_of(PROGRAM), sink) == len(
            PROGRAM
        )
    assert sink.getvalue() == PROGRAM
    assert breaks == []


async def test_answers_that_are_not_a_registrys(tmp_path: Path) -> None:
    answers: list[Response] = []

    async def say(_request: Request) -> Response:
        return answers[0]

    app = Starlette(routes=[Route("/{path:path}", say, methods=["GET", "POST", "PUT"])])
    async with serving(app) as port, client() as one:
        reference = Reference.parse(f"127.0.0.1:{port}/x")
        for answer, kind, said in (
            (Response("<html>", 200), errors.UnsupportedArtifactError, "not a JSON object"),
            (Response(b" " * 5_000_000, 200), errors.ArtifactTooLargeError, "over 4194304 bytes"),
            (Response("", 418), errors.RegistryError, "418"),
            (RedirectResponse("/again", 302), errors.RegistryUnreachableError, "redirects more than 5"),
            (RedirectResponse("ftp://x/", 302), errors.RegistryUnreachableError, "not HTTPS"),
            (Response("", 403), errors.RegistryRefusedError, "403"),
        ):
            answers[:] = [answer]
            with pytest.raises(kind, match=said):
                await one.resolve(reference)
