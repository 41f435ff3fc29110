"""Pushing a program: its blobs, each only if the registry lacks it, then its manifest."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import httpx

from propeller.oci import manifest
from propeller.oci.authorization import Purpose, Scope
from propeller.oci.connection import Body, Connections
from propeller.oci.errors import DigestMismatchError, RegistryError
from propeller.oci.manifest import Descriptor, digest_of
from propeller.oci.reference import Reference

Progress = Callable[[int, int], None]
"""Takes the bytes done and the bytes in all."""

_PIECE = 64 * 1024
_MISSING = frozenset({404})


@dataclass(frozen=True)
class Artifact:
    """What a reference stands for.

    Attributes:
        digest: of its manifest; ``repository@digest`` names it for good.
        program: the layer that holds the Wasm program, with a digest of its own.
    """

    digest: str
    program: Descriptor


async def upload_program(
    http: Connections, reference: Reference, program: bytes, title: str, progress: Progress | None
) -> Artifact:
    """Store a program and its manifest under the reference's tag.

    Raises:
        OciError: with the cause and the remedy.
    """
    layer = Descriptor.of(manifest.WASM, program, {manifest.TITLE: title})
    upload = _Upload(http, reference)
    await upload.blob(Descriptor.of(manifest.EMPTY_CONFIG, manifest.EMPTY), manifest.EMPTY, None)
    await upload.blob(layer, program, progress)
    digest = await upload.manifest(manifest.program_manifest(layer))
    return Artifact(digest, layer)


class _Upload:
    """Uploads to one repository."""

    def __init__(self, http: Connections, reference: Reference) -> None:
        self._http, self._tag = http, reference.target
        self._root = f"/v2/{reference.repository}"
        self._purpose = Purpose(reference.registry, Scope(reference.repository, "pull,push"), str(reference))

    async def blob(self, descriptor: Descriptor, data: bytes, progress: Progress | None) -> None:
        async def store() -> None:
            if await self._has(descriptor.digest):
                if progress is not None:
                    progress(descriptor.size, descriptor.size)
                return
            place = await self._begin()
            mark = "&" if "?" in place else "?"
            await self._put(
                f"{place}{mark}digest={descriptor.digest}", "application/octet-stream", data, progress
            )

        await self._http.retrying(self._purpose, store)

    async def manifest(self, data: bytes) -> str:
        digest = digest_of(data)

        async def store() -> str:
            stored = await self._put(
                f"{self._root}/manifests/{self._tag}", manifest.IMAGE_MANIFEST, data, None
            )
            return stored or digest

        stored = await self._http.retrying(self._purpose, store)
        if stored != digest:
            raise DigestMismatchError(
                f"{self._purpose.what}: the registry stored {stored[:80]} instead of {digest}",
                "push it again",
            )
        return digest

    async def _has(self, digest: str) -> bool:
        url = f"{self._root}/blobs/{digest}"
        async with self._http.send("HEAD", url, self._purpose, allow=_MISSING) as response:
            return response.status_code == httpx.codes.OK

    async def _begin(self) -> str:
        """Where the registry wants the bytes; it may be relative, and may have a query of its own."""
        url, headers = f"{self._root}/blobs/uploads/", {"Content-Length": "0"}
        async with self._http.send("POST", url, self._purpose, headers=headers) as response:
            location = response.headers.get("location", "")
            if not location:
                raise RegistryError(
                    f"{self._purpose.what}: the registry named no place to upload to",
                    "see the registry's own log",
                    response.status_code,
                )
            return str(response.url.join(location))

    async def _put(self, url: str, media_type: str, data: bytes, progress: Progress | None) -> str | None:
        headers = {"Content-Type": media_type, "Content-Length": str(len(data))}
        async with self._http.send(
            "PUT", url, self._purpose, headers=headers, body=_pieces(data, progress)
        ) as response:
            digest: str | None = response.headers.get("docker-content-digest")
            return digest


def _pieces(data: bytes, progress: Progress | None) -> Body:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(data), _PIECE):
            yield data[start : start + _PIECE]
            if progress is not None:
                progress(min(start + _PIECE, len(data)), len(data))

    return pieces
