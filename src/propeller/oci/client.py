"""A client of OCI registries for Wasm programs: push, pull, resolve; every byte is checked against its digest.

It speaks the OCI distribution specification 1.1. Why it is written here: docs/decisions/0020-oci-client.md.
"""

import asyncio
import hashlib
import io
import json
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Protocol, Self

import httpx

from propeller.digests import digest_of, is_digest
from propeller.functions import SECTION, functions_of
from propeller.native_program import NativeProgram, is_native
from propeller.oci import manifest
from propeller.oci.allowed import AllowedRegistries
from propeller.oci.authorization import Authorizer, Purpose, Scope
from propeller.oci.connection import PIECE_BYTES, RETRY_DELAYS, RegistryConnections
from propeller.oci.credentials import Logins
from propeller.oci.errors import (
    LOGIN_HELP,
    ArtifactNotFoundError,
    ArtifactTooLargeError,
    DigestMismatchError,
    InvalidReferenceError,
)
from propeller.oci.manifest import Descriptor
from propeller.oci.reference import Reference
from propeller.oci.responses import read_document
from propeller.oci.signatures import (
    MAX_SIGNATURES,
    Signature,
    signature_manifest,
    signature_of,
    signature_tag,
)
from propeller.oci.upload import Progress, Upload
from propeller.protocol.programs import WASM_MAGIC
from propeller.protocol.wire import read_count

MAX_PROGRAM_BYTES = 64 * 1024 * 1024
"""The largest program that is pulled; the sandbox takes no larger one."""

_MAX_PROBED_LAYERS = 16
_NOT_USED = "nothing of it was used; push the artifact again, or check what is between you and the registry"


@dataclass(frozen=True)
class Artifact:
    """What a reference stands for.

    Attributes:
        digest: of its manifest; ``repository@digest`` names it for good.
        program: the layer that holds the Wasm program, with a digest of its own.
        manifest: its bytes.
        runtime: the layer that holds the shared runtime which the program needs, if it does and the artifact has it.
    """

    digest: str
    program: Descriptor
    manifest: bytes = b""
    runtime: Descriptor | None = None


class ManifestStore(Protocol):
    """Keeps manifests by digest, so that a reference by digest needs no registry."""

    def get(self, digest: str) -> bytes | None:
        """The manifest, or ``None``."""

    def put(self, digest: str, data: bytes) -> None:
        """Keep a manifest, which is checked already."""


class RegistryClient:
    """Pushes and pulls programs; keeps connections and tokens, close it with ``aclose`` or ``async with``."""

    def __init__(
        self,
        logins: Logins | None = None,
        *,
        login_help: str = LOGIN_HELP,
        manifests: ManifestStore | None = None,
        max_bytes: int = MAX_PROGRAM_BYTES,
        idle_timeout: float = 30.0,
        total_timeout: float = 600.0,
        retry_delays: tuple[float, ...] = RETRY_DELAYS,
        allowed: AllowedRegistries | None = None,
    ) -> None:
        """Make a client.

        Args:
            logins: credentials by registry; ``logins_for`` reads those of ``docker login``.
            login_help: how a person gives a login, for errors (``errors.LOGIN_HELP``).
            manifests: where manifests are kept; without it the registry is asked each time.
            max_bytes: the largest program that is pulled.
            idle_timeout: seconds without a byte of a registry.
            total_timeout: seconds for one try of a whole transfer.
            retry_delays: seconds between tries after transient faults.
            allowed: the registries that others may have it ask; without it any, as for a person.
        """
        self._allowed = allowed
        self._manifests, self._max_bytes = manifests, max_bytes
        self._http = RegistryConnections(
            Authorizer(logins or {}, login_help),
            idle_timeout=idle_timeout,
            total_timeout=total_timeout,
            retry_delays=retry_delays,
            allowed=allowed,
        )

    def check(self, reference: Reference) -> None:
        """Refuse a reference to a registry that is not allowed, also where its program is kept.

        Raises:
            RegistryNotAllowedError: it says which are.
        """
        if self._allowed is not None:
            self._allowed.check(reference.registry)

    async def resolve(self, reference: Reference) -> Artifact:
        """Find the program that a reference names now: one ``HEAD`` if its manifest is kept.

        An image index with one image for Wasm stands for that, whose digest is then the artifact's.

        Raises:
            OciError: with the cause and the remedy.
        """
        self.check(reference)
        digest = reference.digest or await self._get_digest(reference)
        data = await self._get_manifest(reference, digest)
        if (inner := manifest.select_from_index(data, str(reference))) is not None:
            data = await self._get_manifest(reference, inner)
        found = manifest.read_layers(data, str(reference))
        typed = [layer for layer in found if manifest.is_program_type(layer.media_type)]
        if not typed:
            typed = [
                layer for layer in found[:_MAX_PROBED_LAYERS] if await self._starts_as_wasm(reference, layer)
            ]
        runtime = next((layer for layer in found if layer.media_type == manifest.RUNTIME), None)
        return Artifact(digest_of(data), manifest.select_program(typed, str(reference), found), data, runtime)

    async def pull(self, reference: Reference, progress: Progress | None = None) -> tuple[Artifact, bytes]:
        """Resolve a reference and get its program's bytes, verified.

        Raises:
            OciError: with the cause and the remedy.
        """
        resolution = await self.resolve(reference)
        sink = io.BytesIO()
        await self.fetch(
            reference, resolution.program.digest, sink, size=resolution.program.size, progress=progress
        )
        return resolution, sink.getvalue()

    async def fetch(
        self,
        reference: Reference,
        digest: str,
        sink: BinaryIO,
        *,
        size: int | None = None,
        progress: Progress | None = None,
    ) -> int:
        """Stream a program of the reference's repository into ``sink``, verified when this returns.

        Args:
            reference: gives the registry and repository.
            digest: of the program, as ``resolve`` found it.
            sink: is written from its start, also when a broken transfer begins again.
            size: what the manifest says, if it is known.
            progress: told after each piece.

        Returns:
            The size in bytes.

        Raises:
            OciError: with the cause and the remedy; then ``sink`` holds nothing that may be used.
        """
        self.check(reference)
        what = f"{reference.registry}/{reference.repository}@{digest}"
        purpose = _purpose(reference, what)
        if size is not None:
            self._check_size(size, what)

        async def transfer() -> int:
            async with self._get(purpose, f"blobs/{digest}") as response:
                announced = read_count(response.headers.get("content-length", "")) or 0
                total = announced if size is None else size
                self._check_size(total, what)
                sink.seek(0)
                sink.truncate()
                hashed, done, head = hashlib.sha256(), 0, b""
                async for piece in response.aiter_bytes(PIECE_BYTES):
                    hashed.update(piece)
                    sink.write(piece)
                    done += len(piece)
                    head = (head + piece[: manifest.HEAD_BYTES])[: manifest.HEAD_BYTES]
                    if size is not None and done > size:
                        break  # it is the wrong one already: the digest below says so
                    self._check_size(done, what)
                    if progress is not None:
                        progress(done, total)
            if f"sha256:{hashed.hexdigest()}" != digest or (size is not None and done != size):
                raise DigestMismatchError(
                    f"{what}: the registry sent {done} bytes with another digest or size", _NOT_USED
                )
            manifest.check_program(head, what)
            return done

        return await self._http.with_retries(purpose, transfer)

    async def push(
        self,
        reference: Reference,
        program: Path | bytes,
        *,
        title: str | None = None,
        runtime: bytes | None = None,
        progress: Progress | None = None,
    ) -> Artifact:
        """Store a program under a tag, as ``oras push REFERENCE TITLE:application/wasm`` does.

        Blobs that the registry has are not sent again. An annotation of the layer has the functions that the file says it has.

        Args:
            reference: where to; it names a tag.
            program: the file, or its bytes.
            title: the file name that the artifact keeps; without it that of ``program``.
            runtime: the shared runtime that the program needs.
            progress: told after each piece.

        Raises:
            OciError: with the cause and the remedy.
        """
        if reference.digest is not None:
            raise InvalidReferenceError(
                f"{reference}: cannot push to a digest", "push to a tag; the digest follows from the file"
            )
        if isinstance(program, Path):
            title, program = title or program.name, await asyncio.to_thread(program.read_bytes)
        title = title or "program.wasm"
        manifest.check_program(program, title)
        media_type, said = _described(program)
        layer = Descriptor.of(media_type, program, {manifest.TITLE: title, **said})
        upload = Upload(self._http, reference)
        await upload.store_blob(Descriptor.of(manifest.EMPTY_CONFIG, manifest.EMPTY), manifest.EMPTY, None)
        await upload.store_blob(layer, program, progress)
        beside = None
        if runtime is not None:
            beside = Descriptor.of(manifest.RUNTIME, runtime, {manifest.TITLE: "runtime.wasm"})
            await upload.store_blob(beside, runtime, progress)
        data = manifest.program_manifest(layer, beside)
        return Artifact(await upload.store_manifest(data), layer, data, beside)

    async def signatures(self, reference: Reference, digest: str) -> list[Signature]:
        """The signatures of an artifact in cosign's format; what is no signature among them is left out.

        Args:
            reference: gives the registry and repository.
            digest: of the artifact's manifest.

        Raises:
            OciError: they cannot be read; not if there are none.
        """
        self.check(reference)
        found: list[Signature] = []
        for layer in (await self._signature_layers(reference, digest))[:MAX_SIGNATURES]:
            value = signature_of(layer)
            if value is not None:
                found.append(Signature(await self._get_payload(reference, layer), value))
        return found

    async def add_signature(self, reference: Reference, digest: str, signature: Signature) -> None:
        """Store a signature beside those that an artifact has.

        Args:
            reference: gives the registry and repository.
            digest: of the artifact's manifest.
            signature: of that digest.

        Raises:
            OciError: with the cause and the remedy.
        """
        layers = [*await self._signature_layers(reference, digest), signature.layer]
        upload = Upload(self._http, replace(reference, tag=signature_tag(digest), digest=None))
        data, config = signature_manifest(layers)
        await upload.store_blob(Descriptor.of("", config), config, None)
        await upload.store_blob(signature.layer, signature.payload, None)
        await upload.store_manifest(data)

    async def _signature_layers(self, reference: Reference, digest: str) -> list[Descriptor]:
        try:
            data = await self._get_document(reference, signature_tag(digest))
        except ArtifactNotFoundError:
            return []
        return manifest.read_layers(data, f"the signatures of {reference}")

    async def _get_payload(self, reference: Reference, layer: Descriptor) -> bytes:
        async def get() -> bytes:
            async with self._get(_purpose(reference), f"blobs/{layer.digest}") as response:
                return await read_document(response, f"a signature of {reference}")

        data = await self._http.with_retries(_purpose(reference), get)
        if digest_of(data) != layer.digest:
            raise DigestMismatchError(
                f"a signature of {reference} is not what {layer.digest} names", _NOT_USED
            )
        return data

    async def aclose(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.aclose()

    async def _get_digest(self, reference: Reference) -> str:
        async def head() -> str | None:
            async with self._get(
                _purpose(reference),
                f"manifests/{reference.target}",
                method="HEAD",
                accept=manifest.ACCEPTED_TYPES,
            ) as response:
                digest: str | None = response.headers.get("docker-content-digest")
                return digest

        digest = await self._http.with_retries(_purpose(reference), head)
        if digest and is_digest(digest):
            return digest
        # Some registries do not say it; then it follows from the manifest itself.
        return digest_of(await self._get_document(reference, reference.target))

    async def _get_manifest(self, reference: Reference, digest: str) -> bytes:
        stored = self._manifests.get(digest) if self._manifests is not None else None
        if stored is not None:
            return stored
        data = await self._get_document(reference, digest)
        if digest_of(data) != digest:
            raise DigestMismatchError(f"{reference}: its manifest is not what {digest} names", _NOT_USED)
        if self._manifests is not None:
            self._manifests.put(digest, data)
        return data

    async def _get_document(self, reference: Reference, target: str) -> bytes:
        async def get() -> bytes:
            async with self._get(
                _purpose(reference), f"manifests/{target}", accept=manifest.ACCEPTED_TYPES
            ) as response:
                return await read_document(response, str(reference))

        return await self._http.with_retries(_purpose(reference), get)

    async def _starts_as_wasm(self, reference: Reference, layer: Descriptor) -> bool:
        async def head_of_layer() -> bytes:
            async with self._get(
                _purpose(reference), f"blobs/{layer.digest}", byte_range="bytes=0-7"
            ) as response:
                async for piece in response.aiter_bytes(len(WASM_MAGIC)):
                    return piece
            return b""

        if layer.size < len(WASM_MAGIC):
            return False
        head = await self._http.with_retries(_purpose(reference), head_of_layer)
        return head == WASM_MAGIC

    def _get(
        self,
        purpose: Purpose,
        path: str,
        *,
        method: str = "GET",
        accept: str = "*/*",
        byte_range: str | None = None,
    ) -> AbstractAsyncContextManager[httpx.Response]:
        headers = {"Accept": accept} | ({"Range": byte_range} if byte_range else {})
        return self._http.send(method, f"/v2/{purpose.scope.repository}/{path}", purpose, headers=headers)

    def _check_size(self, size: int, what: str) -> None:
        if size > self._max_bytes:
            raise ArtifactTooLargeError(
                f"{what} has {size} bytes, over the limit of {self._max_bytes}", "make the program smaller"
            )


def _purpose(reference: Reference, what: str | None = None) -> Purpose:
    return Purpose(reference.registry, Scope(reference.repository), what or str(reference))


def _described(program: bytes) -> tuple[str, dict[str, str]]:
    """The media type of a program, and the annotations that tell what is to be known before anybody fetches it."""
    if is_native(program):
        native = NativeProgram.decode(program)
        required = {"python": native.requires_python, "dependencies": list(native.dependencies)}
        return manifest.NATIVE, {
            SECTION: " ".join(native.functions),
            manifest.REQUIREMENTS: json.dumps(required),
        }
    functions = functions_of(program)
    return manifest.WASM, {} if functions is None else {SECTION: " ".join(functions)}
